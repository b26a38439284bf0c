"""A plan goes on from its records alone (known.py)."""

import json
from pathlib import Path

import pytest

from excursion import known
from excursion.runner import Cell


def plan(out: Path) -> list[Cell]:
    """Two pretraining runs; from each, RL and its evaluation, and the evaluation of the base."""
    cells = []
    for unit in ("one", "two"):
        base, model = out / unit / "base.pt", out / unit / "rl.pt"
        cells += [
            Cell(f"{unit}/pretrain", "pretrain micro", ["pretrain.py"], [base], [], 1.0, out / unit / "pretrain"),
            Cell(
                f"{unit}/base/eval",
                "eval",
                ["eval.py"],
                [out / unit / "base.json"],
                [base],
                1.0,
                meta={"recipe": "base"},
            ),
            Cell(f"{unit}/rl/train", "rl", ["rl.py"], [model], [base], 1.0, out / unit / "rl"),
            Cell(f"{unit}/rl/eval", "eval", ["eval.py"], [out / unit / "rl.json"], [model], 1.0, meta={"recipe": "rl"}),
        ]
    return cells


def name(cell: Cell) -> str:
    return cell.name.replace("/", "-")


def commands(cell: Cell) -> dict[str, str]:
    return {"command": " ".join(["python", *cell.command]), "evaluation": "python eval.py"}


@pytest.mark.parametrize("weights", ["same", "other"])
def test_what_is_left(tmp_path, monkeypatch, capsys, weights):
    """A finished unit is not touched; of a half-done one the base model is made again, and a record stands if it is of
    that very model; another command's record does not stand."""
    cells, records, ran = plan(tmp_path / "out"), tmp_path / "records", []
    records.mkdir()
    for cell in cells:
        if cell.meta and cell.name != "two/rl/eval":
            (records / f"{name(cell)}.cell.json").write_text(json.dumps(commands(cell)))
            (records / f"{name(cell)}.json").write_text(json.dumps({"lineage": [{"weights": weights}]}))

    def run(some: list[Cell]) -> bool:
        ran.extend(cell.name for cell in some)
        return True

    monkeypatch.setattr(known, "load_checkpoint", lambda path: {"lineage": [{"weights": "same"}]})
    left, stand = known.left(cells, name, commands, records, run)
    assert ran == ["two/pretrain"]
    if weights == "same":
        assert [cell.name for cell in left] == ["two/pretrain", "two/rl/train", "two/rl/eval"]
        assert stand == {"one/base/eval", "one/rl/eval", "two/base/eval"}
    else:
        assert [cell.name for cell in left] == ["two/pretrain", "two/base/eval", "two/rl/train", "two/rl/eval"]
        assert stand == {"one/base/eval", "one/rl/eval"} and "another pretraining run" in capsys.readouterr().err
    rl = next(cell for cell in cells if cell.name == "one/rl/eval")
    for said, stands in (
        ({"command": "python rl.py"}, True),  # an older record does not say how it was judged
        (commands(rl) | {"command": "python rl.py --kl 1"}, False),
        (commands(rl) | {"evaluation": "python eval.py --samples 4"}, False),
        ({}, False),
    ):
        (records / "one-rl-eval.cell.json").write_text(json.dumps(said))
        expected = commands(rl) | {"command": "python rl.py"}
        assert known.made_by(records / "one-rl-eval.cell.json", expected) == stands
    left, stand = known.left(cells, name, commands, records, run)
    assert "one/rl/eval" in {cell.name for cell in left} - stand


def test_records_that_stand_are_copied(tmp_path):
    """They take part in the report of the run that goes on, for all seeds that start from their model in this plan."""
    for folder in ("records", "out"):
        (tmp_path / folder).mkdir()
    (tmp_path / "records/a.json").write_text("{}")
    (tmp_path / "records/a.cell.json").write_text('{"name": "a", "seeds": [1]}')
    known.copy(tmp_path / "records", tmp_path / "out", {"a": [1, 2]})
    assert json.loads((tmp_path / "out/a.cell.json").read_text()) == {"name": "a", "seeds": [1, 2]}
    known.copy(tmp_path / "out", tmp_path / "out", {"a": [1, 2]})  # onto itself: nothing to do
    assert (tmp_path / "out/a.json").read_text() == "{}"
