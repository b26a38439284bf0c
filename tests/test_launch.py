"""A plan as jobs of SLURM: the script is run with a stub in the place of sbatch, which runs each job at once."""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import ROOT, run, small_cell

from cli import UserError, joined
from excursion import choose, command
from excursion.collect import collect
from excursion.config import Config, resolve
from excursion.plan import make_plan
from excursion.runner import Cell, Runner, read_state
from files import take_lock

# Knows the options that the script uses, and refuses others, as sbatch does. Of job N, folder/N has the exit code
STUB = """#!{python}
import argparse, pathlib, re, subprocess, sys
parser = argparse.ArgumentParser(allow_abbrev=False)
for flag in ("--parsable", "--requeue"):
    parser.add_argument(flag, action="store_true", required=True)
for flag in ("--job-name", "--output", "--wrap", "--dependency", "--open-mode", "--kill-on-invalid-dep", "--gres", "--time"):
    parser.add_argument(flag, required=flag in ("--job-name", "--output", "--gres", "--time"))
parser.add_argument("script", nargs="?")
job = parser.parse_args()
assert (job.wrap is None) != (job.script is None) and job.gres == "gpu:8" and job.time == "1:00:00"
folder = pathlib.Path({folder!r})
number = str(len(list(folder.iterdir())) + 100)
kind, *needs = (job.dependency or "afterok").split(":")
assert kind == "afterok" and all((folder / need).exists() for need in needs), job.dependency
if any((folder / need).read_text() != "0" for need in needs):
    rc = "never started"
else:
    path = re.sub("%(.)", lambda m: {{"%": "%", "j": number}}[m[1]], job.output)  # sbatch makes no folder for it
    with open(path, "a" if job.open_mode == "append" else "w") as log:
        shell = ["sh", "-c", job.wrap] if job.wrap else ["sh", job.script]
        rc = subprocess.run(shell, stdout=log, stderr=log).returncode
(folder / number).write_text(str(rc))
print(f"{{number}};cluster")
"""
SBATCH = "--gres=gpu:8 --time=1:00:00"


@pytest.fixture
def submit(tmp_path):
    """submit(script) runs the text of a script where sbatch is the stub, from another folder; the jobs' ends, in order."""
    (tmp_path / "bin").mkdir()
    stub, jobs, elsewhere = (tmp_path / name for name in ("bin/sbatch", "jobs", "elsewhere"))
    stub.write_text(STUB.format(python=sys.executable, folder=str(jobs)))
    stub.chmod(0o755)
    elsewhere.mkdir()

    def run_script(script: str) -> list[str]:
        subprocess.run(["rm", "-rf", jobs], check=True)
        jobs.mkdir()
        for shell in ("bash", "sh"):
            assert subprocess.run([shell, "-n"], input=script, text=True).returncode == 0
        env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
        subprocess.run(["sh"], input=script, text=True, check=True, env=env, cwd=elsewhere, timeout=600)
        return [path.read_text() for path in sorted(jobs.iterdir())]

    return run_script


def test_a_plan_as_jobs(world, tmp_path, submit):
    """The script of `plan` makes the files of the cells through torchrun, though OUT has a blank in it, each log beside
    its cell; run again it submits nothing; the report's records are collected from what the jobs left."""
    out = tmp_path / "an out of 5%j"
    flags = ["--scale", "smoke", "--tokens", "20k", "--checkpoints", "20k", "--recipes", "base", "--limit", "2"]
    flags += ["--data", world, "--out", out, "--format", "slurm", "--launch", "torchrun --nproc_per_node=1"]
    code, script, err = run("-m", "excursion", "plan", *flags, "--sbatch", SBATCH)
    assert code == 0 and script.count("\nsubmit ") == 2, err
    assert run("-m", "excursion", "plan", *flags, f"--sbatch={SBATCH}") == (0, script, "")
    assert submit(script) == ["0", "0"]
    record = next(out.glob("seed0/*/base/eval/*.json"))
    logs = [out / "seed0/pretrain/train.log", *out.glob("seed0/*/base/eval_step_*.log")]
    assert len(logs) == 2 and all(log.read_text() for log in logs) and (out / "seed0/pretrain/run/last.pt").exists()
    made = record.stat().st_mtime_ns
    note = out / "seed0/pretrain/train.json"
    written = note.stat().st_mtime_ns
    assert submit(script) == [] and record.stat().st_mtime_ns == made and note.stat().st_mtime_ns == written
    config = Config(command="report", scale="smoke", tokens="20k", checkpoints="20k", recipes=("base",), out=str(out))
    config = resolve(replace(config, data=str(world), limit=2))
    assert list(collect(config, make_plan(config)).glob("*-base.json.gz"))
    assert json.loads(next(out.glob("records/*-base.cell.json")).read_text())["seconds"]["evaluation"] > 0
    assert not Runner(make_plan(config), out)()  # what jobs have finished is finished


def test_a_sweep_of_jobs(world, tmp_path, submit):
    """Rates are chosen by `report` once jobs have made all runs. A job leaves the folder of a run alone in which
    another is at work, and begins anew in one that a kill has left without a checkpoint."""
    flags = ["--plan", "sweep", "--scale", "smoke", "--tokens", "20k", "--checkpoints", "20k", "--recipes", "sft", "--sweep", "1", "3",
             "--data", world, "--out", tmp_path / "out"]  # fmt: skip
    code, script, err = run("-m", "excursion", "plan", *flags, "--format", "slurm", "--sbatch", SBATCH)
    assert code == 0, err
    left = next(line.split()[1] for line in script.splitlines() if line.startswith("submit seed0/sweep3"))
    folder = tmp_path / "out" / left.removesuffix("train") / "run"
    folder.mkdir(parents=True)
    (folder / "metrics.jsonl").write_text('{"step": 99, "val_pass@1": 1.0}\n')
    lock = take_lock(folder)
    assert submit(script) == ["0", "0", "0", "2", "never started"]
    assert "another process is at work there" in folder.with_name("train.log").read_text()
    assert json.loads((folder / "metrics.jsonl").read_text())["step"] == 99
    report = ("-m", "excursion", "report", *flags)
    code, said, err = run(*report)
    assert code == 0 and said.startswith("1 of 2 runs") and not (tmp_path / "out/rates.json").exists(), err
    os.close(lock)
    assert submit(script) == ["0"] * 2
    assert [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()][-1] == 4
    code, said, err = run(*report)
    table = json.loads((tmp_path / "out/rates.json").read_text())
    assert code == 0 and said.startswith("2 of 2 runs") and table["sft"]["factor"] in (1, 3), err
    assert 99 not in choose.validation_scores(folder)


def test_the_page_names_cells_that_are_there(tmp_path):
    """The target of a makefile and the log of a job in docs/launch.md are those of a cell of the default plan."""
    named = re.findall(r"\bseed\d+/[\w./]+(?=`)", (ROOT / "docs/launch.md").read_text())
    cells = {cell.name for cell in make_plan(resolve(Config(out=str(tmp_path))))}
    assert len(named) == 2 and {name.removesuffix(".log") for name in named} <= cells


@pytest.mark.skipif(not shutil.which("make"), reason="no make")
def test_a_makefile_leaves_notes(tmp_path, capsys):
    """Of each cell that has succeeded, as the runner would, whatever characters its command has; of others none. A
    training run that has its last checkpoint and no note, killed in its last evaluation, goes on; a given file has to
    be there. The python is the one of the plan, whatever PATH says."""
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/python").write_text("#!/bin/sh\nexit 9\n")
    (tmp_path / "bin/python").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}"}
    odd = "x = '$HOME %s {} \\\\n'; open(PATH, 'w').write(x)"
    given = tmp_path / "given $base #1.pt"
    cells = [
        replace(small_cell(tmp_path, "odd", odd), needs=[given]),
        small_cell(tmp_path, "bad", "raise SystemExit(3)"),
        small_cell(tmp_path, "last", odd, ["odd"]),
        replace(small_cell(tmp_path, "killed", odd), run=tmp_path / "run"),
    ]
    config = resolve(Config(command="plan", scale="smoke", format="make", out=str(tmp_path / "out")))
    command.print_plan(config, cells)
    (tmp_path / "out/cells").mkdir(parents=True)
    (tmp_path / "killed.txt").touch()
    text = capsys.readouterr().out

    def make():
        done = subprocess.run(["make", "-k", "-f", "-"], input=text, text=True, capture_output=True, env=env)
        notes = [read_state(tmp_path / f"out/{cell.name}.json") for cell in cells]
        return done.returncode, done.stderr, [note and (note["command"], note["rc"]) for note in notes]

    finished = [(cell.command, 0) for cell in cells]
    code, said, notes = make()
    assert code == 2 and f"No rule to make target '{given}'" in said and notes == [None] * 3 + finished[3:]
    assert (tmp_path / "killed.txt").read_text()
    given.touch()
    for _ in range(2):
        assert make()[::2] == (2, [finished[0], None, *finished[2:]])


def test_no_other_command_goes_on_with_a_run(tmp_path):
    """--resume takes from last.pt what a command does not say: so a run that was killed is noted from its start, and
    refused to another command, by `run` (with --retry too) and in the shell. Without a checkpoint it begins anew by
    any."""
    note = tmp_path / "out/cells/x.json"
    code = f"import shutil, sys; shutil.copy({str(note)!r}, PATH) if '--fail' not in sys.argv else sys.exit('no disk')"
    cell = replace(small_cell(tmp_path, "x", code), run=tmp_path / "run")
    other, fails = (replace(cell, command=[*cell.command, word]) for word in ("--kl", "--fail"))
    config = resolve(Config(command="plan", scale="smoke", out=str(tmp_path / "out")))
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}

    def by_shell(cell: Cell) -> tuple[int, str]:
        line = " || ".join(command.shell(cell, config))
        done = subprocess.run(["sh", "-c", line], env=env, text=True, capture_output=True)
        return done.returncode, done.stderr

    def by_runner(cell: Cell) -> tuple[int, str]:
        return Runner([cell], tmp_path / "out")(), ""

    for execute in (by_runner, by_shell):
        assert execute(cell) == (0, "") and read_state(note)["rc"] == 0
        begun = cell.result.read_text()
        assert json.loads(begun) == read_state(cell.result) == {"command": cell.command, "rc": None, "seconds": 0}
        # killed
        note.write_text(begun)
        cell.result.unlink()
        (tmp_path / "run/last.pt").parent.mkdir(exist_ok=True)
        (tmp_path / "run/last.pt").touch()
        with pytest.raises(UserError, match="was made by another command"):
            Runner([other], tmp_path / "out")
        code, said = by_shell(other)
        assert code == 2 and "is of another command: pass the same flags" in said
        assert execute(cell) == (0, "")
        note.write_text(begun)
        (tmp_path / "run/last.pt").unlink()
        cell.result.unlink()
        assert execute(other) == (0, "") and read_state(note)["command"] == other.command
        note.unlink()
        cell.result.unlink()
    # another command, whose runner waits for one that is just stopping, and saves
    waiting = Runner([other], tmp_path / "out")
    note.write_text(begun)
    (tmp_path / "run/last.pt").touch()
    with pytest.raises(UserError, match="was made by another command"):
        waiting()
    assert note.read_text() == begun
    note.unlink()
    (tmp_path / "run/last.pt").unlink()
    # failed
    assert by_runner(fails)[0] == 1
    (tmp_path / "run/last.pt").touch()
    for retry in (False, True):
        with pytest.raises(UserError, match="was made by another command"):
            Runner([cell], tmp_path / "out", retry=retry)
    assert Runner([fails], tmp_path / "out", retry=True)() == 1


def test_a_failed_job_keeps_its_dependents_from_running(tmp_path, submit, capsys):
    """What needs a failed cell never starts, the rest runs; the log says why; mended, the same script does what is left."""

    write = "open(PATH, 'a').write('x')  # $HOME 'a' %s"
    bad = f"import os, sys; os.path.exists({str(tmp_path / 'mended')!r}) or sys.exit('no disk'); {write}"
    cells = [
        small_cell(tmp_path, "bad", bad),
        small_cell(tmp_path, "good", write),
        small_cell(tmp_path, "after", write, ["bad", "good"]),
        small_cell(tmp_path, "last", write, ["after"]),
    ]
    config = resolve(Config(command="plan", scale="smoke", format="slurm", out=str(tmp_path / "out"), sbatch=SBATCH))
    command.print_plan(config, cells)
    script = capsys.readouterr().out
    assert submit(script) == ["1", "0", "never started", "never started"]
    assert (tmp_path / "out/cells/bad.log").read_text() == "no disk\n" and (tmp_path / "good.txt").exists()
    assert not (tmp_path / "after.txt").exists() and not (tmp_path / "out/cells/after.log").exists()
    (tmp_path / "mended").touch()
    assert submit(script) == ["0"] * 3
    assert [(tmp_path / f"{c.name[6:]}.txt").read_text() for c in cells] == ["x"] * 4
    assert [read_state(tmp_path / f"out/{c.name}.json")["command"] for c in cells] == [c.command for c in cells]


def test_launch_goes_before_every_stage(tmp_path, capsys):
    """--launch is the shell's to read, in each format; `choose`, which is no stage, is one process."""
    host = "$(hostname)"
    stage = Cell("a", "sft", ["sft.py"], [Path("a")], [], 1.0)
    chooser = Cell("b", "choose", ["-m", "excursion", "choose"], [Path("b")], [Path("a")], 1.0)
    for form, shown in (("list", host), ("make", f"${host}"), ("slurm", host)):
        config = resolve(Config(command="plan", scale="smoke", format=form, launch=f"srun torchrun --x={host}"))
        command.print_plan(config, [stage, chooser])
        text = capsys.readouterr().out
        assert f"srun torchrun --x={shown} sft.py" in text and "python -m excursion choose" in text, form


def test_a_makefile_of_any_bases(tmp_path, capsys):
    """A path with = : ; or a space is no prerequisite: make would take it for something else, and make nothing."""
    for name in ("lr=0.01", "12:30", "a b", "x;y", "a|b", "$x", "#1"):
        base = tmp_path / name / "m.pt"
        base.parent.mkdir()
        base.touch()
        cells = [Cell("a", "eval", ["eval.py", str(base)], [tmp_path / "a.json"], [base], 1.0)]
        command.print_plan(resolve(Config(command="plan", scale="smoke", format="make")), cells)
        done = subprocess.run(["make", "-n", "-f", "-"], input=capsys.readouterr().out, text=True, capture_output=True)
        assert "eval.py" in done.stdout, (name, done.stderr)
    with pytest.raises(UserError, match="a makefile takes no name with a line end"):
        command.print_plan(resolve(Config(command="plan", scale="smoke", format="make", out="a\nb")), [])


def test_values_that_begin_with_a_dash():
    """Only the flags that a config names take the next word whatever it is."""
    words = ["plan", "--sbatch", "--gres=gpu:8", "--out", "x", "--sbatch"]
    assert joined(words, Config) == ["plan", "--sbatch=--gres=gpu:8", "--out", "x", "--sbatch"]
    assert joined(words, int) == words
    assert joined(["--stage-flags", "rl", "--kl 0.01"], Config) == ["--stage-flags=rl --kl 0.01"]
    code, _, err = run("-m", "excursion", "run", "--launch", "torchrun")
    assert (code, err) == (2, "error: --launch has no effect outside of `plan`: leave it out\n")
