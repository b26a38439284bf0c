"""Where a torture happens: a world, a base model, texts; the commands that are tortured; the rows of its table."""

import json
import math
import random
import re
import shutil
import signal
from dataclasses import dataclass
from pathlib import Path

import torch
from forked import Ended, content, fork

import eval as evaluation
import rl


@dataclass
class Row:
    """A line of the table."""

    part: str
    what: str
    cases: int = 0
    injected: int = 0  # kills, failed writes, flipped bits, odd values
    equal: int = 0  # ended with the same bits, or as if nothing had been injected
    refused: int = 0  # one line, exit code 2
    dead_ends: int = 0
    tracebacks: int = 0
    other: int = 0  # other failures

    def fail(self, kind: str, what: str) -> None:
        setattr(self, kind, getattr(self, kind) + 1)
        what = re.sub(r"/\S*/torture-\w+/", "", what)  # the folder of this run
        print(f"FAILED {self.part}, {self.what}: {kind}: {what}", flush=True)


class Torture:
    """The place of a torture: a world, a base model, a text, the rows of the table, random numbers."""

    def __init__(self, work: Path, seed: int, short: bool):
        self.work, self.seed, self.short, self.rows = work, seed, short, []
        self.count = 0
        self.wholes: dict[str, tuple[Path, Ended]] = {}  # of `undisturbed`
        self.made("prepare", "--input world --max_tokens 40000 --out data", work / "world")
        self.world = work / "world/data"
        self.made("pretrain", f"{PRETRAIN} --data {self.world} --out run", work / "base")
        self.base = work / "base/run/last.pt"
        self.made("sft", f"--init {self.base} --data {self.world} {SFT} --eval_every 0 --out run", work / "other")
        self.other = work / "other/run/step_0000006.pt"
        rng = random.Random(0)
        words = "the sun on a red hill and two pears of Tom or some more rain in May".split()
        lines = [json.dumps({"text": " ".join(rng.choices(words, k=60))}) for _ in range(150)]
        self.text = work / "text.jsonl"
        self.text.write_text("\n".join([*lines[:75], "not json", *lines[75:]]) + "\n")
        self.asked = work / "asked.jsonl"  # questions to prepare
        self.asked.write_text("".join((self.world / "questions/validation.jsonl").open().readlines()[:60]))
        self.flags = {
            name: (stage, flags.format(W=self.world, B=self.base, O=self.other, T=self.text, Q=self.asked).split())
            for name, (stage, flags) in RUNS.items()
        }

    def made(self, stage: str, flags: str, folder: Path) -> None:
        ended = fork(stage, flags.split(), folder)
        assert ended.code == 0, f"{ended}\n{ended.err}"

    def folder(self) -> Path:
        """A new folder, two levels down, so that ../.. as a flag is in here too. The one before the last is removed."""
        cases = self.work / "cases"
        cases.mkdir(exist_ok=True)
        self.count += 1
        shutil.rmtree(cases / f"case{self.count - 2}", ignore_errors=True)
        return cases / f"case{self.count}"

    def row(self, part: str, what: str) -> Row:
        self.rows.append(Row(part, what))
        print(f"{part}: {what}", flush=True)
        return self.rows[-1]

    def random(self, *what) -> random.Random:
        return random.Random(repr((self.seed, *what)))

    def some(self, things: list, short: int, long: int, *what) -> list:
        """So many of them, chosen by the seed, in the short and in the long form."""
        return self.random(*what).sample(things, min(short if self.short else long, len(things)))


PRETRAIN = "--scale smoke --batch 4 --seq_len 64 --steps 8 --save_at 3,6 --save_every 2 --eval_every 3 --val_tokens 500"
HELD_OUT = "--eval_every 2 --eval_limit 2"
POST = f"--init {{B}} --data {{W}} --steps 6 --save_at 2,4 --save_every 3 {HELD_OUT} --out run"
SFT = "--limit 16 --rows 4 --steps 6"
GRPO = "--prompts 2 --rollouts 4 --max_new_tokens 8 --limit 12"
ONE = "--steps 1 --eval_every 0 --out new"
EVAL = "--limit 4 --samples 2 --k 1 --max_new_tokens 4 --val_tokens 300 --out new"
RUNS = {  # what is killed, and killed again: stage, flags
    "pretrain": ("pretrain", f"{PRETRAIN} --data {{W}} --out run"),
    "sft": ("sft", f"{POST} --limit 16 --rows 4"),
    "rl": ("rl", f"{POST} {GRPO} --kl 0.1 --minibatch 1"),
    "average": ("average", f"{POST} {GRPO} --rows 4"),
    "average interleaved": ("average", f"{POST} {GRPO} --rows 4 --mode interleaved"),
    "average soup": ("average", "--init {B} --other {O} --mode soup --weight 0.3 --out run"),
    "prepare text": (
        "prepare",
        "--input {T} --tokenizer world --shard_tokens 2000 --val_fraction 0.1 --workers 1 --out data",
    ),
    "prepare questions": (
        "prepare",
        "--input {Q} --tokenizer world --questions also --validation_questions 10 --workers 1 --out data",
    ),
    "prepare world": ("prepare", "--input world --max_tokens 20000 --out data"),
    "eval": (
        "eval",
        "--checkpoint {B} {O} --data {W} --limit 2 --samples 4 --k 1 2 --max_new_tokens 8 --val_tokens 300 --overwrite --out run",
    ),
}


def varied_rewards() -> None:
    """In a fork: a reward that varies, since a new model gets no question right; and little held-out text, whose bits
    per byte would take most of the time of these runs."""
    evaluation.HELD_OUT_TOKENS = 300
    rl.reward_of = lambda text, *rest, **more: (float(len(text) % 3), False)


def again(stage: str, flags: list[str], folder: Path) -> list[str]:
    """The flags of the next start, as a user would pass them: with --resume where there is a checkpoint to go on from,
    with all the other flags or without."""
    if stage in ("prepare", "eval") or "soup" in flags or not (folder / "run/last.pt").exists():
        return flags
    return ["--resume", "--out", "run"] if folder.name[-1] in "02468" else [*flags, "--resume"]


def undisturbed(t: Torture, what: str) -> tuple[Path, Ended]:
    """The folder of the run without injury, made once, and how it went."""
    if what not in t.wholes:
        stage, flags = t.flags[what]
        folder = t.work / "whole" / what.replace(" ", "_")
        t.wholes[what] = folder, fork(stage, flags, folder, prepare=varied_rewards)
    folder, ended = t.wholes[what]
    assert ended.code == 0, f"{ended}\n{ended.err}"
    return folder, ended


def judge(row: Row, ended: Ended, folder: Path, what: str, before: dict | None = None) -> None:
    """A run on something malicious or odd is refused in one line and leaves no file, or works with finite results. (One
    that trains on happily at the time limit saves when it is told to stop.)"""
    row.cases += 1
    row.injected += 1
    files = contents(folder)
    works_on = ended.code == -signal.SIGTERM and ended.command.startswith("prepare")  # it has no need to save
    if ended.hung or (ended.code in (-signal.SIGTERM, -signal.SIGKILL) and not works_on):
        row.fail("other", f"{what}: {'hangs' if ended.seconds > 1 else 'dies'}: {ended}")
    elif ended.refused:
        names = {p.name for p in files}
        begun = before is None and names <= {"lock", "metrics.jsonl"}  # refused by its first step: no memory for a row
        diverged = "not finite" in ended.lines[-1]
        if files != (before or {}) and not begun and not diverged:
            row.fail("other", f"{what}: refused, but files changed: {sorted(names)}: {ended}")
        else:
            row.refused += 1
    elif ended.traceback:
        row.fail("tracebacks", f"{what}: {ended}")
    elif ended.code not in (0, 128 + signal.SIGTERM) and not works_on:
        row.fail("other", f"{what}: {ended}")
    elif ruined := [p.name for p in files if not finite(p)]:
        row.fail("other", f"{what}: exit {ended.code}, but {', '.join(ruined)} not finite: {ended.command}")
    else:
        row.equal += 1


def contents(folder: Path) -> dict:
    """What is in each file of a folder."""
    return {p: content(p) if p.suffix == ".gz" else p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def finite(path: Path) -> bool:
    """No NaN and no infinity in a file of results."""
    if path.suffix == ".pt":
        return all(v.isfinite().all() for v in torch.load(path, weights_only=True)["model"].values())
    if path.name == "metrics.jsonl":  # of a step that was skipped and counted they may be there
        return all(_finite(line) or line.get("skipped") for line in map(json.loads, path.read_text().splitlines()))
    return path.suffix != ".json" or _finite(json.loads(path.read_text()))


def _finite(thing) -> bool:
    if isinstance(thing, dict | list):
        return all(map(_finite, thing.values() if isinstance(thing, dict) else thing))
    return not isinstance(thing, float) or math.isfinite(thing)
