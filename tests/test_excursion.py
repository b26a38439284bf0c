"""The excursion: the notebook that runs it, plans, the runner, kill and restart, and where SFT is stopped."""

import json
import os
import re
import shutil
import signal
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tyro
from conftest import ROOT, repository_files, run, small_cell, start

import average
import cli
import eval as evaluation
import pretrain
import rl
import sft
from cli import UserError
from data.loader import parse_mix
from excursion import choose, command, report
from excursion import figures as draw
from excursion.cells import record_name
from excursion.collect import collect, thin_curve
from excursion.config import BUDGETS, Config, resolve
from excursion.document import Document
from excursion.given import refuse_other_weights
from excursion.plan import PLANS, make_plan
from excursion.recipes import RECIPES
from excursion.runner import Cell, Runner, read_state
from files import read_json, write_jsonl
from logs import Log

TINY = "--scale smoke --tokens 30k --checkpoints 30k --limit 2 --val_limit 2 --max_new_tokens 24".split()


def excursion_run(*flags) -> tuple[int, str, str]:
    process = start("-m", "excursion", *flags)
    out, err = process.communicate(timeout=900)
    return process.returncode, out, err


@pytest.fixture(scope="module")
def tour(world, tmp_path_factory):
    """tour.ipynb after its run, and OUT of its experiment. It runs in a copy of the checkout, since it writes there;
    its grid has one checkpoint, on the tests' world."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    place = tmp_path_factory.mktemp("excursion")
    for name in repository_files():
        if not name.startswith(("results/", "tests/")):
            (place / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, place / name)
    (place / "out").mkdir()
    (place / "out/data").symlink_to(world)
    out, text = place / "out/tour", (place / "tour.ipynb").read_text()
    for old, new in (
        ("--scale smoke --checkpoints 20k,40k", f"{' '.join(TINY)} --points_t1 2 --jobs 1 --data {world}"),
        ("--out out/tour", f"--out {out}"),
    ):
        assert text.count(old) == 1, old
        text = text.replace(old, new)
    notebook = nbformat.reads(text, as_version=4)
    nbclient.NotebookClient(notebook, timeout=900, resources={"metadata": {"path": str(place)}}).execute()
    return notebook, out


@pytest.fixture(scope="module")
def grid(tour):
    """The smallest grid, run to its end."""
    return tour[1]


def test_tour(tour):
    """Every cell of tour.ipynb runs, and shows the figures; its own flags are a plan from two checkpoints."""
    outputs = [output for cell in tour[0].cells if cell.cell_type == "code" for output in cell.outputs]
    assert any("wrote" in output.get("text", "") and "report.html" in output["text"] for output in outputs)
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output.output_type == "error" for output in outputs)
    (flags,) = re.findall(r'FLAGS = \\"(.+?)\\"', (ROOT / "tour.ipynb").read_text())
    config = tyro.cli(Config, args=["plan", *flags.split()], use_underscores=True)
    places = {cell.name.split("/")[1] for cell in make_plan(resolve(config)) if cell.kind in ("rl", "sft", "average")}
    assert places == {"0.020M", "0.040M"}


def records(out) -> dict[str, str]:
    """Records as text, without what may differ between two runs: the folder and the seconds."""
    found = {}
    for path in sorted([*(out / "records").glob("*.json"), *(out / "records").glob("*.json.gz")]):
        content = read_json(path)
        content.pop("seconds", None)
        found[path.name] = json.dumps(content).replace(str(out), "OUT")
    return found


def test_the_whole_experiment(grid):
    """Every recipe has a record, the report names it, and the figures are there; run again, nothing is computed."""
    names = {f"seed0-0.030M-{recipe}" for recipe in ("base", "rl", "sft", "parallel")}
    assert {path.name.split(".json")[0] for path in (grid / "records").glob("*M-*.json.gz")} >= names
    text, page = (grid / "report.md").read_text(), (grid / "report.html").read_text()
    assert "averaging" in text and " 1. RL works early" in text
    assert page.count("data:image/png") == len(list((grid / "figures").glob("*.png"))) >= 4 and "class=reader" in page
    meta = json.loads((grid / "records/seed0-0.030M-rl.cell.json").read_text())
    assert meta["recipe"] == "rl" and meta["curve"]["reward"] and meta["samples"][0]["samples"]
    assert meta["seconds"]["evaluation"] > 0
    named = json.loads((grid / "records/seed0-0.030M-rl@1.cell.json").read_text())
    assert (named["step"], meta["step"], meta["points"], meta["temperature"]) == (1, 2, [1, 2], 0.6)
    assert meta["primary"] + named["primary"] == 1 and meta["best_step"] == named["best_step"] == 1 + meta["primary"]
    steps = list(map(json.loads, (grid / "seed0/0.030M/rl/run/metrics.jsonl").read_text().splitlines()))
    spent = {line["step"]: line["seconds"] for line in steps if "seconds" in line}
    assert named["seconds"]["training"] == pytest.approx(spent[1], abs=0.06)  # of its own steps, whoever ran them
    assert meta["seconds"]["training"] == pytest.approx(spent[1] + spent[2], abs=0.06)
    hot = read_json(grid / "records/seed0-0.030M-rl-T1.json.gz")
    assert set(hot["questions"]["explore_easy"]["questions"][0]) >= {
        "id",
        "n",
        "c",
        "c_process",
        "h_answers",
        "h_paths",
    }
    assert (
        "floor" in hot["questions"]["explore_easy"] and "floor" not in hot["questions"]["explore_easy"]["questions"][0]
    )
    assert hot["questions"]["explore_easy"]["temperature"] == 1 and hot["tasks"] == hot["text"] == {}
    report.write_report(grid / "records", grid / "again")
    assert (grid / "again/report.md").read_text() == text  # from records alone


def test_damage_to_what_a_run_left_is_one_line(grid, world, tmp_path):
    """Hours after they were written: the line names the files, and what to delete."""
    flags = [*TINY, "--points_t1", "2", "--recipes", "base", "rl", "sft", "parallel", "--data", str(world)]
    copied = tmp_path / "out"
    shutil.copytree(grid, copied)
    config = resolve(tyro.cli(Config, args=["report", *flags, "--out", str(copied)], use_underscores=True))
    cells = make_plan(config)
    collect(config, cells)
    home = copied / "seed0/0.030M/rl"
    for path, damage in (
        (home / "eval/step_0000002.jsonl.gz", lambda b: b[:-30]), (home / "eval/step_0000002.json", lambda b: b[:-30]),
        (home / "run/metrics.jsonl", lambda b: b""), (home / "run/metrics.jsonl", lambda b: b"[]\n" + b),
    ):  # fmt: skip
        before = path.read_bytes()
        path.write_bytes(damage(before))
        with pytest.raises(UserError, match="seed0/0.030M/rl.*: damaged .* run again") as error:
            collect(config, cells)
        assert "\n" not in str(error.value)
        path.write_bytes(before)
    (tmp_path / "bases.json").write_text("[]")
    with pytest.raises(UserError, match="bases.json: no JSON object"):
        refuse_other_weights([], tmp_path)


def test_names_from_records_stay_in_the_report(tmp_path):
    """A set of questions called ../x would be a figure outside of --out; a pipe or line end in a name, a broken table."""
    figure = draw.plt.figure()
    doc = Document("t", tmp_path / "out/figures")
    doc.panels("", [("../../x|y", figure, "alt")], "caption")
    doc.table(["a|b\nc"], [["d\ne"]])
    doc.write(tmp_path / "out")
    assert [path.name for path in tmp_path.rglob("*.png")] == [".._.._x_y.png"]
    assert "| a\\|b c |\n|---|\n| d e |" in (tmp_path / "out/report.md").read_text()


def test_records_of_unknown_flops_are_reported(tmp_path):
    """Models of imported weights have no FLOPs to draw or to subtract: the report says unknown, and is made."""
    for unknown in (("rl",), ("base", "rl", "sft")):  # some of them, all of them
        folder = tmp_path / "-".join(unknown)
        (folder / "records").mkdir(parents=True)
        for recipe in ("base", "rl", "sft"):
            path = ROOT / f"results/study/seed0-3.50M-{recipe}.json.gz"
            content = read_json(path)
            if recipe in unknown:
                content["flops"] = None
            write_jsonl(folder / "records" / path.name, [content])
            shutil.copy(path.with_name(f"seed0-3.50M-{recipe}.cell.json"), folder / "records")
        report.write_report(folder / "records", folder)
        text = (folder / "report.md").read_text()
        assert text.count("unknown |") == (2 if len(unknown) == 1 else 6) and "nan" not in text
        assert (folder / "figures/pass_at_k_flops.png").exists() == (len(unknown) == 1)
    lines = [{"step": s, "flops": None, "reward": 0.5} for s in (1, 2)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert thin_curve(tmp_path / "metrics.jsonl") == {"reward": [[1, 0.5], [2, 0.5]]}


def test_a_long_curve_keeps_its_start_and_its_end(tmp_path):
    """At most so many points between: growth on validation is counted from step 0."""
    lines = [{"step": s, "val_pass@1": s / 800} for s in range(0, 801, 8)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    curve = thin_curve(tmp_path / "metrics.jsonl")["val_pass@1"]
    assert curve[0] == [0, 0.0] and curve[-1] == [800, 1.0] and 25 < len(curve) <= 51


def test_a_report_by_other_flags_is_refused(grid, world):
    """`report` may not say of what was made by some flags that it was made by others."""
    path = grid / "records/seed0-0.030M-rl.cell.json"
    before, flags = (
        path.read_bytes(),
        [*TINY, "--points_t1", "2", "--recipes", "base", "rl", "sft", "parallel", "--data", world],
    )
    for more in (["--limit", "3"], ["--stage_flags", "rl --kl 0.5"]):
        code, _, err = excursion_run("report", *flags, *more, "--out", grid)
        assert code == 2 and "was made by another command" in err and len(err.splitlines()) == 1, err
    assert path.read_bytes() == before


def test_soup_records_count_pretraining_once():
    """The committed records: the FLOPs of a soup are those of its two models less those of the base behind both."""
    paths = sorted((ROOT / "results").glob("*/*-soup.json.gz"))
    assert len(paths) >= 3
    for path in paths:
        beside = [path.with_name(path.name.replace("soup", name)) for name in ("soup", "rl", "sft", "base")]
        if not beside[-1].exists():  # where seeds share a pretraining run, its base has one record
            beside[-1] = path.with_name("seed1" + beside[-1].name[len("seed1") :])
        soup, rl, sft, base = (read_json(record)["flops"] for record in beside)
        assert soup == rl + sft - base


def test_killed_and_started_again_gives_the_same_records(grid, world, tmp_path):
    """SIGKILL at a random moment and a restart: the same bits as without. The killed runner's cells die too."""
    flags = ["run", *TINY, "--recipes", "sft", "--data", world, "--out", tmp_path / "x", "--jobs", "2"]
    process = start("-m", "excursion", *flags)
    time.sleep(np.random.default_rng().uniform(2, 14))
    process.send_signal(signal.SIGKILL)
    process.wait()
    code, _, err = excursion_run(*flags)
    assert code == 0, err
    whole, again = records(grid), records(tmp_path / "x")
    assert len(again) == 2 and again == {name: whole[name] for name in again}


def test_an_evaluation_that_a_kill_prevented_is_made_on_resume(grid, world, tmp_path, monkeypatch):
    """Killed after the checkpoint of a step and before its evaluation: resumed, the same lines as without."""
    flags = dict(
        init=str(next((grid / "seed0/pretrain/run").glob("step_*.pt"))), data=str(world), limit=8, rows=4, steps=4
    )
    flags |= dict(eval_every=2, eval_limit=2, eval_tasks=(), save_at="2")
    log, lines = Log.metrics, {}

    def killed(at):
        def log_or_die(self, step, **values):
            if step == at and "val_pass@1" in values:
                raise KeyboardInterrupt
            log(self, step, **values)

        return log_or_die

    for name, at in (("whole", None), ("middle", 2), ("end", 4)):
        monkeypatch.setattr(Log, "metrics", killed(at))
        if at:
            with pytest.raises(KeyboardInterrupt):
                sft.main(sft.Config(out=str(tmp_path / name), **flags))
            monkeypatch.setattr(Log, "metrics", log)
            sft.main(sft.Config(out=str(tmp_path / name), resume=True, **flags))
        else:
            sft.main(sft.Config(out=str(tmp_path / name), **flags))
        rows = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        lines[name] = [{k: v for k, v in row.items() if k not in ("train_tokens_per_s", "seconds")} for row in rows]
    assert len(lines["whole"]) == 7 and lines["whole"] == lines["middle"] == lines["end"]


def make_config(tmp_path, **flags) -> Config:
    return resolve(Config(command="plan", out=str(tmp_path / "out"), **flags))


@pytest.mark.parametrize("plan", PLANS)
def test_plans_of_the_smallest_scale(tmp_path, plan):
    """Checkpoints a few thousand tokens apart have folders of their own."""
    config = make_config(tmp_path, plan=plan, scale="smoke")
    folders = {c.name.split("/")[1] for c in make_plan(config) if c.kind == "rl"}
    assert plan != "grid" or len(folders) > 2


@pytest.mark.parametrize("plan", PLANS)
def test_plans(tmp_path, capsys, plan):
    """Each cell comes after those that make what it needs, no two make one file or one record; makefile and sbatch
    script say the same as the list; what it takes stands before it, in comments."""
    config = make_config(tmp_path, plan=plan, scale="micro", budget="study", seeds=(1, 2), recipes=tuple(RECIPES))
    cells = make_plan(config)
    made = set()
    for cell in cells:
        assert made.issuperset(cell.needs), cell.name
        made.update(cell.results)
    assert len({c.name for c in cells}) == len(cells) and len(made) == sum(len(c.results) for c in cells)
    names = [record_name(c) for c in cells if c.meta]
    assert len(set(names)) == len(names)
    hours = sum(c.cost for c in cells) / 3600
    for form in ("list", "make", "slurm"):
        config.format = form
        command.print_plan(config, cells)
        text = capsys.readouterr().out
        assert f"# {plan}, budget study: {len(cells)} commands, about {hours:.1f} core-hours" in text
        if form == "list":
            lines = [line for line in text.splitlines() if not line.startswith("# ")]
            assert len(lines) == len(cells) and all(line.startswith("python ") for line in lines)
        if form == "slurm":
            assert text.startswith("#!/bin/sh\n") and text.count("\nsubmit ") == len(cells)
            assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
        if form == "make" and shutil.which("make"):
            done = subprocess.run(["make", "-n", "-f", "-"], input=text, text=True, capture_output=True, cwd=tmp_path)
            assert done.returncode == 0 and done.stdout.count("OMP_NUM_THREADS") == len(cells), done.stderr


def plan_of(tmp_path, **flags) -> dict[str, Cell]:
    return {c.name: c for c in make_plan(make_config(tmp_path, **{"scale": "micro", **flags}))}


def flag(cell: Cell, name: str) -> str:
    return cell.command[cell.command.index(f"--{name}") + 1]


def test_the_study_covers_what_it_promises(tmp_path):
    """Five checkpoints, three seeds of everything, three pretraining runs at two of them and one at the others; primary
    contrasts first, whole seeds; named steps of every RL run judged at temperature .6 and two of them at 1; the paper's
    dose at the end; in 8 to 10 core-hours for the primary part and 25 to 29 in all."""
    cells = list(plan_of(tmp_path, budget="study").values())
    metas = [c.meta for c in cells if c.meta]
    for recipe in ("rl", "sft", "sft_rl", "sft_converged", "parallel", "gold", "sft_dose", "soup"):
        places = {(m["tokens"], m["pretraining_seed"], s) for m in metas if m["recipe"] == recipe for s in m["seeds"]}
        tokens = sorted({t for t, _, _ in places})
        assert len(tokens) == 5 and len(places) == 15
        runs = {t: {p for at, p, _ in places if at == t} for t in tokens}
        assert [runs[t] for t in tokens] == [{1}, {1, 2, 3}, {1, 2, 3}, {1}, {1}]
    steps = [
        (m["step"], m["temperature"]) for m in metas if (m["recipe"], m["tokens"], m["seed"]) == ("rl", tokens[2], 3)
    ]
    points = (24, 48, 96, 160, 320)
    assert sorted(steps) == sorted([(p, 0.6) for p in points] + [(96, 1.0), (320, 1.0)])
    config = make_config(tmp_path, scale="micro", budget="study")
    assert points[-1] * config.prompts * config.rollouts == 320 * config.pool
    parts = list(dict.fromkeys(c.part for c in cells))
    assert parts == [f"{part}, seed {seed}" for part in ("primary checkpoints", "other checkpoints", "controls")
                     for seed in (1, 2, 3)]  # fmt: skip
    hours = [sum(c.cost for c in cells if c.part in parts[:n]) / 3600 for n in (3, 9)]
    assert 8 < hours[0] < 10 and 25 < hours[1] < 29


def test_the_papers_grid_starts_where_the_paper_does(tmp_path):
    """--budget paper works on the checkpoints of the paper's 1B run, to the step, and on its end; asks GSM8K."""
    cells = plan_of(tmp_path, scale="olmo2-1b", seeds=(0,), data="out/paper", mix="dolmino50")
    assert flag(cells["seed0/pretrain/train"], "save_at") == ",".join(
        f"{step * 2097.152:.12g}k" for step in (1000, 2000, 3000, 5000, 6000, 7000, 10000, 14000, 22000, 23842)
    )
    starts = {flag(c, "checkpoint") for c in cells.values() if c.meta and c.meta["recipe"] == "base"}
    assert sorted(int(start[-10:-3]) for start in starts) == [
        1000,
        2000,
        3000,
        5000,
        6000,
        7000,
        10000,
        14000,
        22000,
        23842,
    ]
    assert {flag(c, "questions") for c in cells.values() if c.meta} == {"gsm8k"}


def test_the_papers_plans_suit_its_size(tmp_path):
    """--budget paper: runs fit 80 GB by the count of tools.dry_run and are saved every half hour, unless the user says
    otherwise; RL after SFT has the paper's rate among those of `sharpening`; `seeds` has an early checkpoint; no two
    controls are the same."""
    paper = dict(scale="olmo2-1b", seeds=(0,), data="out/paper", mix="dolmino50")
    cells = plan_of(tmp_path, **paper)
    runs = {kind: [c for c in cells.values() if c.kind == kind] for kind in ("rl", "average", "sft", "soup", "eval")}
    assert {(flag(c, "kv_gib"), flag(c, "micro_tokens")) for c in runs["average"]} == {("24", "8192")}
    assert {flag(c, "kv_gib") for c in (*runs["rl"], *runs["eval"])} == {"24"} and not any(
        "--kv_gib" in c.command for c in runs["soup"]
    )
    assert all(flag(c, "save_every") == "30m" for c in cells.values() if c.run)
    own = plan_of(tmp_path, **paper, stage_flags=("average --micro_tokens 4096",))
    assert {(flag(c, "kv_gib"), flag(c, "micro_tokens")) for c in own.values() if c.kind == "average"} == {
        ("24", "4096")
    }
    assert not any("--kv_gib" in c.command or "30m" in c.command for c in plan_of(tmp_path).values())
    # a control has a command of its own, but for its folders
    same = {r: [w.replace(f"/{r}/", "/R/") for w in cells[f"seed0/50.00B/{r}/train"].command]
            for r in ("parallel", *BUDGETS["paper"]["control_recipes"])}  # fmt: skip
    assert len({tuple(words) for words in same.values()}) == len(same) == 5
    # the other plans
    sharp = [c.meta for c in plan_of(tmp_path, plan="sharpening", **paper).values() if c.meta.get("paper")]
    assert {(m["recipe"], round(float(m["rates"]["lr"]), 9)) for m in sharp} == {("rl", 1e-6), ("sft_rl", 4e-5)}
    seeds = [c for c in plan_of(tmp_path, plan="seeds", **paper).values() if c.kind == "rl"]
    assert {flag(c, "init")[-10:-3] for c in seeds} == {"0003000", "0007000", "0023842"}
    shown = [c for c in plan_of(tmp_path, plan="demonstrations", **paper).values() if c.kind == "sft"]
    assert [flag(c, "limit") for c in shown] == ["5000", "20000", "80000"]


def test_the_papers_page_counts_the_grid(tmp_path):
    """docs/paper.md and docs/launch.md: how many jobs and runs there are; each kind of run fits 80 GB by the count of
    tools.dry_run, which takes the plan's own command."""
    page, launch = ((ROOT / f"docs/{name}.md").read_text() for name in ("paper", "launch"))
    cells = list(plan_of(tmp_path, scale="olmo2-1b", data="out/paper", mix="dolmino50").values())
    assert f"seeds: {len(cells)} jobs" in page and f"size has {len(cells)} jobs" in launch
    assert f"and {sum(c.kind == 'eval' for c in cells)} evaluations" in " ".join(page.split())
    rows = {"pretraining, 50 B": "pretrain", "RL, 1560": "rl/", "averaging, 1560": "parallel", "SFT and Gold, 9500": "sft/ gold/",
            "SFT at averaging's": "sft_dose/", "soup": "soup"}  # fmt: skip
    runs = [c for c in cells if c.kind not in ("eval", "choose")]
    for title, kinds in rows.items():
        of_row = [c for c in runs if any(kind in c.name for kind in kinds.split())]
        of_row = [c for c in runs if c.kind == "rl"] if kinds == "rl/" else of_row
        assert re.search(rf"^\| {title}[^|]*\| {len(of_row)} \|", page, re.M), title
    for kind in ("rl", "sft", "average"):
        code, text, err = run("-m", "tools.dry_run", *next(c for c in runs if c.kind == kind).command, "--gpus", "8")
        assert code == 0 and "update |" in text and "✗" not in text, err


def test_shares_of_math_in_a_mixture(tmp_path):
    """The source math of --mix gets each share; the others keep their ratios. Without --mix it is the world's."""

    def mixes(**flags) -> list[dict[str, float]]:
        cells = plan_of(tmp_path, plan="mixture", shares=(0.4, 0.9), **flags).values()
        return [parse_mix(flag(c, "mix")) for c in cells if c.kind.startswith("pretrain")]

    assert mixes() == [{"general": 0.6, "math": 0.4}, {"general": 0.1, "math": 0.9}]
    usual = parse_mix("dolmino50")
    for share, mix in zip((0.4, 0.9), mixes(mix="dolmino50"), strict=True):
        assert mix.keys() == usual.keys() and mix["math"] == share and sum(mix.values()) == pytest.approx(1, abs=1e-6)
        ratios = {round(mix[name] / usual[name], 6) for name in usual if name != "math"}
        assert len(ratios) == 1


@pytest.mark.parametrize(("mode", "expected"), [("each", [[1], [2]]), ("one", [[1, 2]]), ("primary", [[1], [2]])])
def test_seeds_of_one_base_share_its_evaluation(tmp_path, mode, expected):
    """Where seeds start from one pretraining run its base is evaluated once, and the record stands for all of them."""
    flags = dict(budget="study", seeds=(1, 2), checkpoints="3M,6M", primary="6M", pretraining=mode)
    metas = [c.meta for c in plan_of(tmp_path, **flags).values() if c.meta.get("temperature") == 0.6]

    def seeds(recipe: str, tokens: int) -> list:
        return sorted(m["seeds"] for m in metas if m["recipe"] == recipe and round(m["tokens"], -6) == tokens)

    assert seeds("base", 6_000_000) == expected
    assert seeds("base", 3_000_000) == ([[1, 2]] if mode == "primary" else expected)
    assert seeds("sft", 3_000_000) == seeds("sft", 6_000_000) == [[1], [2]]


def test_the_grid_is_controlled(tmp_path):
    """Recipes differ in what they learn from, not in questions, rollouts, KL, length, steps or RL's rate; the dose
    controls of averaging have half of its rates, and direct RL is the one of its RL side; the paper's averaging has its
    ratios."""
    at = "seed0/4.43M"
    recipes = (
        "rl",
        "sft",
        "gold",
        "parallel",
        "sft_rl",
        "gold_rl",
        "sft_dose",
        "rl_dose",
        "parallel_paper",
        "sft_dose_rl",
    )
    cells = plan_of(tmp_path, tokens="7M", recipes=recipes, questions=("test_hard",))
    cell = {recipe: cells[f"{at}/{recipe}/train"] for recipe in recipes}
    sampled = ("rl", "parallel", "sft_rl", "gold_rl", "rl_dose", "parallel_paper", "sft_dose_rl")
    for name, alike in {
        "limit": recipes,
        "kl": sampled,
        "prompts": sampled,
        "rollouts": sampled,
        "steps": (*sampled, "sft_dose"),
        "save_at": (*sampled, "sft_dose"),
        "rows": ("parallel", "sft_dose"),
        "eval_every": recipes,
    }.items():
        assert len({flag(cell[recipe], name) for recipe in alike}) == 1, name
    assert flag(cell["sft"], "rows") == flag(cell["gold"], "rows") == flag(cell["parallel_paper"], "rows") == "32"
    rates = {recipe: float(flag(cell[recipe], "lr")) for recipe in recipes}
    assert rates["rl"] == rates["sft_rl"] == rates["gold_rl"] == rates["rl_dose"] == rates["parallel"] / 2
    assert rates["sft_dose"] == float(flag(cell["parallel"], "sft_lr")) / 2
    assert rates["parallel_paper"] == rates["rl"]
    assert float(flag(cell["parallel_paper"], "sft_lr")) == pytest.approx(rates["sft"] / 40)
    assert flag(cell["sft_rl"], "init").endswith("sft/best.pt") and flag(cell["sft"], "data") == flag(
        cell["rl"], "data"
    )
    judged = [c for c in cells.values() if c.kind == "eval"]
    assert all(flag(c, "questions") == "test_hard" for c in judged)
    first = [name.split("/")[1:3] for name, c in cells.items() if c.kind in ("rl", "sft", "average")][:3]
    assert first == [["4.43M", "rl"], ["4.43M", "sft"], ["4.43M", "gold"]]


def test_rates_and_checkpoints_that_were_chosen_are_used(tmp_path):
    """OUT/rates.json multiplies the rates: RL's those of all RL, averaging's RL side included, averaging's its SFT side
    alone, SFT → RL's nothing. OUT/checkpoints.json says where to start, unless --checkpoints does."""
    (tmp_path / "out").mkdir()
    factors = {"rl": 3.0, "parallel": 1 / 3, "sft_rl": 9.0, "gold": 2.0}
    (tmp_path / "out/rates.json").write_text(json.dumps({r: {"factor": f} for r, f in factors.items()}))
    chosen = {"checkpoints": [3_000_320, 5_000_192, 7_000_064], "primary": [5_000_192], "validation": {}}
    (tmp_path / "out/checkpoints.json").write_text(json.dumps(chosen))
    cells = plan_of(tmp_path, recipes=("rl", "sft", "gold", "parallel", "sft_rl", "sft_dose"))
    at = {name.split("/")[1] for name in cells if name.endswith("rl/train")}
    assert at == {"3.00M", "5.00M", "7.00M"} and next(n for n in cells if "rl/" in n).startswith("seed0/5.00M")
    lr = {
        r: float(flag(cells[f"seed0/5.00M/{r}/train"], "lr"))
        for r in ("rl", "sft", "gold", "parallel", "sft_rl", "sft_dose")
    }
    assert lr == pytest.approx(
        dict(rl=3e-4, sft=1e-4, gold=2e-4, parallel=6e-4, sft_rl=3e-4, sft_dose=2.5e-5 / 3), rel=1e-4
    )
    other = plan_of(tmp_path, checkpoints="4M", recipes=("rl",))
    assert {name.split("/")[1] for name in other if name.endswith("rl/train")} == {"4.00M"}
    wrong = [("rates", '{"rl": 3}'), ("rates", '{"rl": {"factor": NaN}}'), ("checkpoints", '{"rl": 3}')]
    wrong += [
        ("checkpoints", json.dumps(chosen | more))
        for more in ({"primary": []}, {"primary": [1]}, {"checkpoints": [-1]})
    ]
    for name, text in wrong:
        (tmp_path / f"out/{name}.json").write_text(text)
        with pytest.raises(UserError, match=rf"{name}\.json: not what --plan"):
            plan_of(tmp_path)
        (tmp_path / f"out/{name}.json").unlink()


def test_sharpening_crosses_start_rate_and_dose(tmp_path):
    """Every start at every rate, along the way; the factor 1 is the grid's own run; the paper's own pair is marked:
    direct RL at its rate, RL after SFT at the highest; RL on seldom solved questions from the same starts."""
    cells = plan_of(tmp_path, plan="sharpening", budget="study", seeds=(1,))
    grid = plan_of(tmp_path, budget="study")
    recipes = ("rl", "sft_rl", "sft_converged_rl", "gold_rl")
    metas = [c.meta for c in cells.values() if c.meta.get("recipe") in recipes and c.meta["temperature"] == 0.6]
    crossed = [m for m in metas if "band" not in m["variant"]]
    found = {(m["recipe"], m["rate"], m["step"]) for m in crossed}
    assert found == {(r, f, s) for r in recipes for f in (1 / 3, 1, 2, 3) for s in (24, 48, 96, 160, 320)} | {
        (r, 1, 320) for r in recipes
    }
    for m in crossed:
        assert m["rates"]["lr"] == pytest.approx(m["rate"] * 1e-4) and m["variant"] == (
            {} if m["rate"] == 1 else {"rate": m["rate"]}
        )
    assert {(m["recipe"], m["rate"]) for m in crossed if m["paper"]} == {("rl", 1), ("sft_rl", 3)}
    same = [
        name for name, c in cells.items() if c.kind in ("rl", "sft") and "/rate" not in name and "/hard" not in name
    ]
    assert len(same) == 6 and all(grid[name].command == cells[name].command for name in same)
    for name, c in cells.items():
        if "/rate3/" in name and name.endswith("train"):  # from the very models that the grid has
            start = {"rl": "step_", "sft_rl": "sft/best.pt", "gold_rl": "gold/best.pt"}.get(
                name.split("/")[-2], "sft/run/step_"
            )
            assert start in flag(c, "init") and "rate" not in flag(c, "init")
    bands = [c for name, c in cells.items() if "/hard/" in name and name.endswith("train")]
    assert [c.name.split("/")[-2] for c in bands] == ["rl", "sft_rl"] and len(bands) == 2
    assert flag(bands[1], "difficulty").endswith("difficulty/sft/best.difficulty.json:hard")


def write_metrics(run, lines: list[dict], kept=()) -> None:
    run.mkdir(parents=True)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    for step in kept:
        (run / f"step_{step:07d}.pt").write_text(str(step))


def test_runs_are_stopped_at_their_best_validation_point(tmp_path, capsys):
    """The best kept checkpoint, by process-right where that was measured; of equals the earliest; evaluations without a
    kept checkpoint do not count."""
    scores = {0: 0.9, 10: 0.2, 20: 0.5, 30: 0.5, 35: 0.8, 40: 0.4}
    lines = [{"step": s, "val_pass@1": v} for s, v in scores.items()] + [{"step": 40, "sft_loss": 1.0}]
    write_metrics(tmp_path / "plain/run", lines, (10, 20, 30, 40))
    process = [line | {"val_process@1": 1 - line["val_pass@1"]} if "val_pass@1" in line else line for line in lines]
    write_metrics(tmp_path / "process/run", process, (10, 20, 30, 40))
    for name, best in (("plain", "20"), ("process", "10")):
        for _ in range(2):
            choose.choose(tmp_path / name)
            assert (tmp_path / name / "best.pt").read_text() == best
    for line in ("null", '{"step": [], "val_pass@1": 0.5}', '{"step": 1, "val_pass@1": null}'):
        (tmp_path / "plain/run/metrics.jsonl").write_text(line)
        with pytest.raises(UserError, match="no metrics of a run"):
            choose.choose(tmp_path / "plain")
    with pytest.raises(UserError, match=r"metrics\.jsonl"):
        choose.choose(tmp_path / "none")


@pytest.mark.parametrize("note", ["null", "[]", "{}", '{"command": ["x"], "rc": 0, "seconds": "long"}', "[" * 100_000])
def test_a_damaged_note_of_a_cell_is_none(tmp_path, note):
    """What is noted of a cell that has ended counts only whole; else the cell is looked at again."""
    (tmp_path / "x.json").write_text(note)
    runner = Runner([Cell("x", "rl", ["x"], [tmp_path / "x.pt"], [], 1.0)], tmp_path)
    assert not runner.failed(runner.cells[0]) and np.isnan(runner.seconds_left())


def test_rates_are_chosen_on_validation(tmp_path):
    """The sweep makes whole runs of every recipe, from a seed that the study does not use, and judges nothing on test
    questions; the factor of the run that is best at any named step wins."""
    cells = list(plan_of(tmp_path, plan="sweep", budget="study").values())
    assert not any(c.kind == "eval" for c in cells) and all(c.name.startswith("seed0/") for c in cells)
    runs = [c for c in cells if c.kind in ("rl", "sft", "average")]
    assert len(runs) == 15 and {flag(c, "steps") for c in runs if c.kind != "sft"} == {"320"}
    config = make_config(tmp_path, scale="smoke", plan="sweep", recipes=("rl", "sft", "parallel", "sft_rl"))
    cells = make_plan(config)
    curves = {"0.333333": (0.3, 0.1), "1": (0.2, 0.2), "3": (0.1, 0.15)}
    for cell in [c for c in cells if c.run and c.kind != "pretrain smoke"]:
        values = curves[cell.name.split("/sweep")[1].split("/")[0]]
        lines = [{"step": 0, "val_pass@1": 0.9}, *({"step": s + 1, "val_pass@1": v} for s, v in enumerate(values))]
        write_metrics(cell.run, lines)
        note = tmp_path / f"out/{cell.name}.json"
        note.write_text(json.dumps({"command": cell.command, "rc": 0, "seconds": 1.0}))
    choose.write_rates(config, choose.swept(config, cells))
    table = json.loads((tmp_path / "out/rates.json").read_text())
    assert [table[r]["factor"] for r in ("rl", "sft", "parallel", "sft_rl")] == pytest.approx([1 / 3] * 4, abs=1e-6)
    assert table["parallel"]["sft_lr"] == pytest.approx(5e-5 / 3) and "lr" not in table["parallel"]
    # RL after SFT alone, at a factor of 3: the SFT that it starts from is at its own rate, no factor of SFT's
    alone = replace(config, sweep=(3.0,), recipes=("sft_rl",))
    runs = [c.name for c in make_plan(alone) if c.kind in ("rl", "sft")]
    choose.write_rates(alone, {name: {1: 0.5} for name in runs})
    assert len(runs) == 2
    # what earlier sweeps found stays beside it: a further factor is chosen only if it is the best of all
    table |= {"sft_rl": {"factor": 3.0, "lr": config.rates["rl"]["lr"] * 3.0,
                         "validation pass@1 by factor": table["sft_rl"]["validation pass@1 by factor"] | {"3.0": 0.5}}}  # fmt: skip
    assert json.loads((tmp_path / "out/rates.json").read_text()) == table
    # the same from the notes alone, in another place; a run by another command is not taken
    (tmp_path / "out").rename(tmp_path / "old")
    again = replace(config, records=str(tmp_path / "old/records"))
    assert len(choose.swept(again, cells)) == len([c for c in cells if c.run and not c.kind.startswith("pretrain")])
    next(c for c in cells if c.kind == "rl").command.append("--seed")
    assert len(choose.swept(again, cells)) == len([c for c in cells if c.run and not c.kind.startswith("pretrain")]) - 1


def test_a_sweep_takes_no_run_of_another_command(tmp_path):
    """A finished run in OUT that was made with other flags does not count as one of this sweep, nor do damaged notes:
    the runner then refuses the first, and makes the others."""
    config = make_config(tmp_path, scale="smoke", plan="sweep", recipes=("rl",))
    cells = make_plan(config)
    runs = [c for c in cells if c.kind == "rl"]
    for cell, more in zip(runs, ([], ["--kl", "1"], []), strict=True):
        write_metrics(cell.run, [{"step": 1, "val_pass@1": 0.5}])
        note = {"command": [*cell.command, *more], "rc": 0, "seconds": 1.0}
        (tmp_path / f"out/{cell.name}.json").write_text(json.dumps(note))
    (tmp_path / "out/records").mkdir(exist_ok=True)
    for damaged in ("[1]", "3", '{"x": 3}', json.dumps({runs[1].name: {"command": runs[1].command}})):
        (tmp_path / "out/records/sweep.json").write_text(damaged)
        assert choose.swept(config, cells).keys() == {runs[0].name, runs[2].name}
    with pytest.raises(UserError, match="another command"):
        Runner([c for c in cells if c.name == runs[1].name], tmp_path / "out")


def test_checkpoints_are_chosen_on_validation(tmp_path, capsys):
    """The early one is the first whose base with examples has a process-right pass@1 of 3%; luck does not count.
    Pretraining keeps the same checkpoints for the choice and for the grid after it; without any good enough nothing is
    chosen."""
    config = make_config(tmp_path, scale="micro", plan="checkpoints", budget="study")
    cells = make_plan(config)
    judged = [c for c in cells if c.kind == "eval"]
    assert len(judged) == 24 and all(flag(c, "questions") == "validation" and not c.meta for c in judged)
    tokens = sorted({c.name.split("/")[1] for c in judged})
    report_of = replace(config, command="report")  # of jobs that have not ended yet
    assert command.checkpoints(report_of, cells) and capsys.readouterr().out.startswith("0 of 24 evaluations")

    def write(level) -> None:
        for cell in judged:
            i = tokens.index(cell.name.split("/")[1])
            right = {"pass@1": {"mean": level(i)}}
            strict = {"pass@1": {"mean": 0.05 + level(i)}}
            record = {"questions": {"validation": {"strict": strict, "process": right, "box": 1.0}}}
            cell.result.parent.mkdir(parents=True, exist_ok=True)
            cell.result.write_text(json.dumps(record | {"tokens": int(float(tokens[i][:-1]) * 1e6)}))

    write(lambda i: 0.01)
    with pytest.raises(UserError, match="pretrain for longer"):
        choose.write_checkpoints(config, cells)
    write(lambda i: 0.008 * i)
    assert command.checkpoints(report_of, cells)
    assert "process" in capsys.readouterr().out
    grid = plan_of(tmp_path, budget="study")
    places = {name.split("/")[1] for name in grid if name.endswith("/rl/train")}
    assert places == {tokens[i] for i in (3, 4, 5, 8, 11)}
    assert {name.split("/")[1] for name in grid if name.startswith("seed2") and "primary" in grid[name].part} - {"pretrain"} == {
        tokens[4], tokens[5]
    }  # fmt: skip
    assert grid["seed1/pretrain/train"].command == cells[0].command


def test_failures_are_kept_and_not_retried(tmp_path, capsys):
    """A cell that fails is reported once, with its log; what needs it waits; --retry runs it again; the rest goes on."""

    write = "open(PATH, 'w').write('x')"
    bad = f"import os, sys; os.path.exists({str(tmp_path / 'mended')!r}) or sys.exit('no disk'); {write}"
    cells = [
        small_cell(tmp_path, "bad", bad),
        small_cell(tmp_path, "after", write, ["bad"]),
        small_cell(tmp_path, "good", write),
    ]
    out = tmp_path / "out"
    assert Runner(cells, out, jobs=2)() == 2
    err = capsys.readouterr().err
    assert "failed (1): cells/bad: no disk" in err and (tmp_path / "good.txt").exists()
    log = tmp_path / "out/cells/bad.log"
    before = log.read_text()
    (tmp_path / "mended").touch()
    assert Runner(cells, out, jobs=2)() == 2 and log.read_text() == before
    assert Runner(cells, out, jobs=2, retry=True)() == 0 and "no disk" in log.read_text()
    cells[2].command = ["-c", "pass"]
    with pytest.raises(UserError, match="was made by another command"):
        Runner(cells, out, jobs=2)
    # what failed has made nothing: --retry runs the corrected command
    wrong = [small_cell(tmp_path, "typo", "import sys; sys.exit('no such flag')")]
    assert Runner(wrong, out)() == 1
    right = [small_cell(tmp_path, "typo", write)]
    with pytest.raises(UserError, match="failed there by another command.*--retry"):
        Runner(right, out)
    handlers = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]
    assert Runner(right, out, retry=True)() == 0 and (tmp_path / "typo.txt").exists()
    assert [
        signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)
    ] == handlers  # Ctrl-C acts in the report that follows


def test_ctrl_c_once_and_twice(tmp_path, capfd):
    """What ends well after the first one is noted; the second one does not wait until the cells have saved themselves."""
    press = f"import os, signal, sys, time; press = lambda *_: os.kill({os.getpid()}, signal.SIGINT)"
    press += "; signal.signal(signal.SIGINT, lambda *_: sys.exit('at once'))"
    for name, saves in (("once", "open(PATH, 'w').close() or sys.exit(0)"), ("twice", "press()")):
        code = f"{press}; signal.signal(signal.SIGTERM, lambda *_: {saves}); press(); time.sleep(90)"
        with pytest.raises(SystemExit) as ended:
            Runner([small_cell(tmp_path, name, code)], tmp_path / "out")()
        assert ended.value.code == 130 and capfd.readouterr().err.count("stopping:") == 1
    notes = [read_state(tmp_path / f"out/cells/{name}.json") for name in ("once", "twice")]
    assert notes[0]["rc"] == 0 and notes[1] is None
    assert (tmp_path / "out/cells/twice.log").read_text().endswith("at once\n")


def test_bad_input_is_one_line(tmp_path):
    for flags, match in [
        (dict(recipes=("grpo",)), "--recipes grpo"),
        (dict(checkpoints="900M"), "--checkpoints 900M: beyond"),
        (dict(checkpoints="many"), "not a count"),
        (dict(seeds=(1, 1)), "--seeds"),
        (dict(pool=-1), "--pool"),
        (dict(points=(4, 2)), "--points 4 2"),
        (dict(sft_points=(0, 2)), "--sft_points 0 2"),
        (dict(checkpoints="2M,4M", primary="3M"), "--primary 3M"),
        (dict(factors=(0.0,)), "--factors"),
        (dict(sweep=(1.0, float("nan"))), "--sweep"),
        (dict(plan="sweep", sweep=()), "--sweep: one or more"),
        (dict(plan="rollouts", bands=("medium",)), "--bands medium: easy, hard"),
        (dict(plan="rollouts", rollout_counts=(5, 5)), "--rollout_counts 5 5"),
        (dict(plan="seeds", rl_seeds=()), "--rl_seeds: one or more"),
        (dict(plan="scale", scales=("micro", "tiny")), "--scales micro tiny"),
        (dict(plan="demonstrations", solved=(0,)), "--solved 0: at least 1"),
        (dict(rollout_counts=(4, 8)), "--rollout_counts has no effect outside of `rollouts`"),
        (dict(plan="rollouts", controls="all"), "--controls has no effect outside of `grid`"),
        (dict(points_t1=(7,)), "--points_t1 7: not all of them are among --points 16 40"),
        (dict(questions=("test_esay",)), "--questions test_esay: neither files nor among"),
        (dict(max_new_tokens=300), "less than the 256 tokens of micro's context"),
        (dict(mix="general=0.6,math"), "--mix"),
        (dict(plan="mixture", mix="math=1"), "--mix math=1: the plan mixture varies its source math among others"),
        (dict(plan="mixture", mix="dclm=2,wiki=1"), "--mix dclm=2,wiki=1: the plan mixture varies its source math"),
        (dict(plan="scale", checkpoints="2M"), "--checkpoints has no effect where each size is judged at its end"),
        (dict(plan="sweep", recipes=("base",)), "--recipes base: none of them has a rate to sweep"),
        (dict(launch="torchrun 'x"), "--launch torchrun 'x: a quote in it is not closed"),
        (dict(launch=" "), "--launch.*: name a command"),
        (dict(sbatch="--time=1"), "--sbatch has no effect outside of `plan --format slurm`"),
        (dict(records="results/nowhere"), "--records results/nowhere: no such folder"),
    ]:
        with pytest.raises(UserError, match=match) as error:
            make_plan(make_config(tmp_path, scale="micro", **flags))
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="--out: name a folder"):
        resolve(Config(command="plan", scale="smoke", out=""))
    with pytest.raises(UserError, match="--rollout_counts 1: must lie in"):  # rl.py would refuse it, hours later
        cli.check_ranges(Config(rollout_counts=(1, 64)))
    code, _, err = excursion_run("report", "--records", tmp_path / "none", "--out", tmp_path)
    assert code == 2 and err.startswith("error: ") and len(err.splitlines()) == 1


def test_no_cell_has_a_flag_that_its_stage_refuses(tmp_path):
    """The commands of every recipe, plan and budget are accepted by the stage's own checks of ranges and of flags
    without effect."""
    checks = {
        "average": (average, average.Config.check),
        "eval": (evaluation, cli.refuse_idle),
        "excursion": (command, lambda c: None),
        "pretrain": (pretrain, pretrain.Config.check),
        "rl": (rl, rl.Config.check),
        "sft": (sft, sft.Config.check),
    }
    seen = set()
    for plan in PLANS:
        for budget in BUDGETS:
            scale = {"smoke": "smoke", "paper": "olmo2-1b"}.get(budget, "micro")
            flags = dict(plan=plan, budget=budget, scale=scale, seeds=(1,), recipes=tuple(RECIPES))
            for cell in plan_of(tmp_path, **flags).values():
                words = cell.command[int(cell.command[0] == "-m") :]  # python -m excursion choose, or python rl.py ...
                stage, words = Path(words[0]).stem, words[1:]
                mode = flag(cell, "mode") if "--mode" in words else ""
                if (key := (stage, mode, *(word for word in words if word.startswith("--")))) in seen:
                    continue
                seen.add(key)
                module, check = checks[stage]
                config = tyro.cli(module.Config, args=words, use_underscores=True)
                config.given = cli.given_on(words, config)
                cli.check_ranges(config)
                check(config)
    assert {stage for stage, *_ in seen} == checks.keys()
