"""A plan goes on from its records alone (known.py)."""

import gzip
import json
from dataclasses import replace
from pathlib import Path

import pytest

from excursion import known
from excursion.cells import record_name
from excursion.collect import collect
from excursion.config import Config
from excursion.runner import Cell
from files import read_json, write_jsonl


def plan(out: Path) -> list[Cell]:
    """Two pretraining runs; from each, RL and its evaluation, and the evaluation of the base."""
    cells = []
    for unit in ("one", "two"):
        base, model = out / unit / "base.pt", out / unit / "rl.pt"
        judged = [
            Cell(f"{unit}/{recipe}/eval", "eval", ["eval.py"], [out / unit / f"{recipe}.json"], [path], 1.0, meta=meta(recipe))
            for recipe, path in (("base", base), ("rl", model))
        ]  # fmt: skip
        cells += [
            Cell(f"{unit}/pretrain", "pretrain micro", ["pretrain.py"], [base], [], 1.0, out / unit / "pretrain"),
            judged[0],
            Cell(f"{unit}/rl/train", "rl", ["rl.py"], [model], [base], 1.0, out / unit / "rl"),
            judged[1],
        ]
    return cells


def meta(recipe: str, seeds: list[int] | None = None) -> dict:
    return {"recipe": recipe, "step": 0, "points": [], "temperature": 0.6, "seeds": seeds or [1]}


def commands(cell: Cell) -> dict[str, str]:
    return {"command": f"python {'rl' if cell.name.endswith('rl/eval') else 'eval'}.py", "evaluation": "python eval.py"}


@pytest.mark.parametrize("weights", ["same", "other"])
def test_what_is_left(tmp_path, monkeypatch, capsys, weights):
    """A finished unit is not touched; of a half-done one the base model is made again, and a record stands if it is of
    that very model; another command's record does not stand."""
    cells, records, ran = plan(tmp_path / "out"), tmp_path / "records", []
    records.mkdir()
    for cell in cells:
        if cell.meta and cell.name != "two/rl/eval":
            (records / f"{record_name(cell)}.cell.json").write_text(json.dumps(commands(cell)))
            write_jsonl(records / f"{record_name(cell)}.json.gz", [{"lineage": [{"weights": weights}]}])

    def run(some: list[Cell]) -> bool:
        ran.extend(cell.name for cell in some)
        return True

    monkeypatch.setattr(known, "load_checkpoint", lambda path: {"lineage": [{"weights": "same"}]})
    left, standing = known.left(cells, records, run)
    assert ran == ["two/pretrain"]
    if weights == "same":
        assert [cell.name for cell in left] == ["two/pretrain", "two/rl/train", "two/rl/eval"]
        assert {cell.name for cell in standing} == {"one/base/eval", "one/rl/eval", "two/base/eval"}
    else:
        assert [cell.name for cell in left] == ["two/pretrain", "two/base/eval", "two/rl/train", "two/rl/eval"]
        assert {cell.name for cell in standing} == {
            "one/base/eval",
            "one/rl/eval",
        } and "another pretraining run" in capsys.readouterr().err
    rl = next(cell for cell in cells if cell.name == "one/rl/eval")
    for said, stands in (
        ({"command": "python rl.py"}, True),  # an older record does not say how it was judged
        (commands(rl) | {"command": "python rl.py --kl 1"}, False),
        (commands(rl) | {"evaluation": "python eval.py --samples 4"}, False),
        ({}, False),
    ):
        (records / "one-rl.cell.json").write_text(json.dumps(said))
        assert known.has_record(rl, cells, records) == stands
    left, standing = known.left(cells, records, run)
    assert rl in left and rl not in standing


def test_records_that_stand_are_copied(tmp_path):
    """They take part in the report of the run that goes on, for all seeds that start from their model in this plan or
    an earlier one."""
    for folder in ("records", "out"):
        (tmp_path / folder).mkdir()
    write_jsonl(tmp_path / "records/one-base.json.gz", [{}])
    (tmp_path / "records/one-base.cell.json").write_text('{"name": "one-base", "seeds": [1]}')
    cell = Cell("one/base/eval", "eval", [], [], [], 1.0, meta=meta("base", [1, 2]))
    known.copy([cell], tmp_path / "records", tmp_path / "out")
    assert json.loads((tmp_path / "out/one-base.cell.json").read_text()) == {"name": "one-base", "seeds": [1, 2]}
    known.copy([cell], tmp_path / "out", tmp_path / "out")  # onto itself: nothing to do
    assert read_json(tmp_path / "out/one-base.json.gz") == {}
    # a narrower plan takes no seed away: neither from a record that stands, nor from one that is collected again
    narrow = replace(cell, meta=meta("base", [1]))
    known.copy([narrow], tmp_path / "out", tmp_path / "out")
    assert json.loads((tmp_path / "out/one-base.cell.json").read_text())["seeds"] == [1, 2]


def test_a_narrower_plan_keeps_the_seeds_of_a_collected_record(tmp_path):
    """A base stands for the seeds of every plan that it was collected for."""
    result = tmp_path / "one/base/eval/last.json"
    result.parent.mkdir(parents=True)
    result.write_text('{"step": 0, "questions": {}}')
    with gzip.open(result.with_suffix(".jsonl.gz"), "wt"):
        pass
    cell = Cell("one/base/eval", "eval", ["eval.py"], [result], [], 1.0, meta=meta("base", [1, 2]))
    for seeds in ([1, 2], [1], [3]):
        folder = collect(Config(out=str(tmp_path)), [replace(cell, meta=meta("base", seeds))])
    assert json.loads((folder / "one-base.cell.json").read_text())["seeds"] == [1, 2, 3]
