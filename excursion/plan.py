"""The whole experiment: every recipe from every kept checkpoint, evaluated, tabled, drawn.

    python -m excursion --scale micro --tokens 7M            # make excursion: half an hour on 2 cores at most
    python -m excursion plan --scale micro                   # the same, as a list of commands (--format make, slurm)
    python -m excursion run --plan checkpoints --budget study    # the confirmatory study (docs/PROTOCOL.md): from which
    python -m excursion run --plan sweep --budget study          # checkpoints, at which rates (both on validation
    python -m excursion run --budget study                       # questions), then the grid and order x rate x dose
    python -m excursion run --plan sharpening --budget study
    python -m excursion report --records results/excursion   # tables and figures again, from committed records alone
    python -m excursion compare BASE.json SEED0.json SEED1.json      # the change from one record of eval.py to others

A *cell* is one ordinary command of one stage: it makes one file, and may start when the files that it needs are there.
`run` executes the cells whose file is missing, the first of the plan first, several at a time with one thread each, and
may be killed and started again at any moment. `plan` begins with the estimated core-hours of its parts, in their order:
what is finished when a run is stopped is a smaller study. A cell that fails is reported with its log and left alone
until --retry. What lies where:

    OUT/seed1/pretrain/run/                  a stage's own files (checkpoints, metrics); beside it
    OUT/seed1/pretrain/train.log, .json      what it printed; its command, exit code and seconds
    OUT/seed1/4.00M/rl/run/, train.log ...   the same; run/step_0000048.pt: kept at a named step (--points)
    OUT/seed1/4.00M/sft/best.pt              the kept checkpoint that is best on validation (`choose`)
    OUT/seed1/4.00M/rl/eval/                 evaluation records of its checkpoints; eval_t1/: at temperature 1
    OUT/records/seed1-4.00M-rl.json          the record of the end; seed1-4.00M-rl@48.json of a named step, -T1 appended at
                                             temperature 1; beside each .cell.json: recipe, seed, step, curve, samples, ...
    OUT/report.md, report.html, figures/     made by report.py from OUT/records alone

The recipes of a plan are a controlled comparison: same questions, prompts x rollouts a step, response length, no KL, one
RL budget and one RL rate, also after SFT. Every run is kept at named steps and stopped by one rule, whatever the
recipe: the named step with the best validation pass@1 (process-right, where that can be told) is `primary` in its
.cell.json; the end of the run, which is the paper's dose, stands beside it. Parallel averaging has twice RL's rate on its
RL side: halved by the average it is direct RL, which therefore is its control of the RL dose; `sft_dose` is that of the
SFT side (as many steps and rows, half the rate). Test questions choose nothing.

Further plans: `checkpoints` (which ones to start from: OUT/checkpoints.json), `sweep` (learning rates: OUT/rates.json),
`sharpening` (is it the order, the rate or the dose of RL?), `rollouts` (few against many answers a question, easy and
hard), `mixture` (math share of pretraining), `scale` (two sizes at equal FLOPs), `seeds` (RL from the same checkpoint with
other seeds), `demonstrations` (how many questions have a solution: where does RL overtake SFT?). They share OUT, and so
the cells that they have in common.
"""

import contextlib
import gzip
import json
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional

import pretrain
from cli import UserError
from data.tokenizer import load_tokenizer
from excursion import compare, known, report
from excursion.runner import Cell, Runner, read_state
from files import MALFORMED, read_json, replacing_path, write_text
from model import SCALES, config_of, train_flops

ROOT = Path(__file__).parent.parent
EARLY = 0.03  # validation pass@1 of the base with worked examples at which RL begins to be of interest (PROTOCOL.md)


@dataclass
class Config:
    """Flags of `python -m excursion`. Zero or empty: the budget's own value (BUDGETS in excursion/plan.py)."""

    RANGES: ClassVar[dict] = {"limit": "[-1, 2147483647]"}

    # plan: print the commands; run: execute what is missing, then report; report: tables and figures of what is there;
    # choose: (a cell of a plan) link the kept checkpoint of OUT/run that is best on validation to OUT/best.pt;
    # compare: the change from the first evaluation record to the mean of the others, paired by question
    command: Positional[Literal["plan", "run", "report", "choose", "compare"]] = "run"
    files: Positional[tuple[str, ...]] = ()  # of `compare`: records of eval.py
    plan: Literal[
        "grid", "checkpoints", "sweep", "sharpening", "rollouts", "mixture", "scale", "seeds", "demonstrations"
    ] = "grid"  # see above
    scale: Literal[tuple(SCALES)] = "micro"  # size of the model (SCALES in model.py)
    # smoke: seconds; short: half an hour at micro; study: the confirmatory study of docs/PROTOCOL.md; paper: its settings.
    # Empty: smoke for --scale smoke, paper for olmo2-1b and 4b, else short
    budget: Literal["", "smoke", "short", "study", "paper"] = ""
    out: str = "out/excursion"  # folder of everything; another command for a cell that is there already is refused
    data: str = pretrain.WORLD  # folder of data/prepare.py; the default is the embedded world, built if absent
    format: Literal["list", "make", "slurm"] = "list"  # of `plan`: make -f -j 8, or a script of sbatch commands
    # of `report`: this folder of records instead of OUT/records; of `run`: what lies there is not made again (known.py)
    records: str = ""
    retry: bool = False  # run failed cells again
    jobs: int = 0  # cells side by side; 0: as many as there are cores, divided by --threads
    threads: int = 1  # of each cell (OMP_NUM_THREADS); another number adds up in another order
    seeds: tuple[int, ...] = ()  # of everything after pretraining
    # whose pretraining run a seed starts from: each its own; all that of the first seed (one); or its own at the primary
    # checkpoints and that of the first seed at the others (primary)
    pretraining: Literal["", "each", "one", "primary"] = ""
    checkpoints: str = "auto"  # M_t: token counts such as 2M,4M; auto: OUT/checkpoints.json, or spread over the run
    primary: str = ""  # those of them that are worked on first; the last of these is the one of the other plans
    kept: int = 0  # checkpoints that pretraining keeps, beside these, for --plan checkpoints to choose from; 1: none
    tokens: str = ""  # of pretraining
    mix: str = ""  # of pretraining: weights per source (pretrain.py --mix)
    recipes: tuple[str, ...] = ()  # names in RECIPES; what they start from is added
    controls: Literal["", "none", "primary", "all"] = ""  # checkpoints at which the controls run, after all else
    control_recipes: tuple[str, ...] = ()  # which
    pool: int = 0  # the first so many training questions, for every recipe
    # named steps of RL and of averaging, where checkpoints are kept and judged; the last is the end
    points: tuple[int, ...] = ()
    points_t1: tuple[int, ...] = ()  # those of them that are judged at temperature 1 too
    prompts: int = 0  # questions per RL step
    rollouts: int = 0  # answers per question
    sft_points: tuple[int, ...] = ()  # named steps of SFT, one of which is best on validation; the last is the end
    gold_points: tuple[int, ...] = ()  # those of Gold, which has many times the rows
    rows: int = 0  # of SFT per step
    average_rows: int = 0  # of the SFT side of averaging, and of its dose control
    val_limit: int = 0  # validation questions at each named step, 8 answers each
    max_new_tokens: int = 0  # longest answer, in training as in evaluation; 0: the stages' default
    questions: tuple[str, ...] = ()  # test sets (eval.py --questions)
    limit: int = 0  # the first so many questions of each test set and items of each task; -1: all
    samples: int = 0  # answers per test question
    val_tokens: int = 0  # held-out tokens per source for bits per byte
    sweep: tuple[float, ...] = (1 / 3, 1.0, 3.0)  # sweep: factors of the learning rates
    factors: tuple[float, ...] = (1 / 3, 1.0, 2.0, 3.0)  # sharpening: of RL's learning rate
    side_steps: int = 0  # rollouts, mixture, scale, seeds, demonstrations; sharpening at other rates: RL steps
    shares: tuple[float, ...] = (0.4, 0.65, 0.9)  # mixture: math shares of the world
    scales: tuple[str, ...] = ()  # scale: sizes to compare; empty: --scale and the next smaller one
    rollout_counts: tuple[int, ...] = (5, 64)  # rollouts: answers per question
    bands: tuple[str, ...] = ("easy", "hard")  # rollouts: pass rates of the training questions (rl.py --band)
    solved: tuple[int, ...] = (64, 256, 1000)  # demonstrations: questions with solutions
    rl_seeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # seeds: of RL, from the same pretraining run


# The most telling first. "sft" is judged at its best named step, "sft_converged" at its end.
MAIN = ("base", "base_0shot", "rl", "sft", "sft_rl", "parallel", "sft_dose", "sft_converged", "gold", "soup")
CONTROLS = ("gold_rl", "parallel_paper", "sft_converged_rl", "sft_dose_rl")
TEST = ("test_easy", "test_hard")  # of the study alone
TRIAL = ("explore_easy", "explore_hard")  # of everything else
BUDGETS = {
    "smoke": dict(
        tokens="40k", seeds=(0,), pretraining="each", kept=1, recipes=("base", "base_0shot", "rl", "sft", "parallel"),
        controls="none", control_recipes=CONTROLS, pool=16, points=(1, 2), prompts=2, rollouts=4, sft_points=(2, 4), gold_points=(2, 4), rows=4,
        average_rows=4, val_limit=4, questions=TRIAL, limit=4, samples=8, val_tokens=2000, side_steps=2,
    ),
    # Of 7 M tokens, 30 minutes on 2 idle cores at most: 0.6 core-hours, 22 minutes on 2 cores, by the estimate of SECONDS
    "short": dict(
        seeds=(0,), pretraining="each", kept=1, recipes=("base", "base_0shot", "rl", "sft", "sft_rl", "parallel"),
        controls="none", control_recipes=CONTROLS, pool=256, points=(16, 40), prompts=16, rollouts=16,
        sft_points=(20, 40, 80), gold_points=(40, 80, 160), rows=32, average_rows=16, val_limit=48, questions=TRIAL, limit=48, samples=32,
        val_tokens=20_000, side_steps=40,
    ),
    # 320 steps of 16 x 32 answers on 512 questions are the paper's 320 answers per question
    "study": dict(
        seeds=(1, 2, 3), pretraining="primary", kept=12, recipes=MAIN, controls="primary", control_recipes=CONTROLS,
        pool=512, points=(24, 48, 96, 160, 320), points_t1=(96, 320), prompts=16, rollouts=32,
        sft_points=(40, 80, 160, 320, 640, 960),
        gold_points=(40, 80, 160, 320, 640, 960, 1920), rows=32, average_rows=16, val_limit=256, questions=TEST, limit=-1,
        samples=32, val_tokens=100_000, side_steps=320,
    ),
    "paper": dict(
        seeds=(0, 1, 2, 3), pretraining="each", kept=1, recipes=MAIN, controls="all", control_recipes=("rl_dose", *CONTROLS),
        pool=80_000, points=(60, 120, 240, 400, 800, 1560), points_t1=(240, 1560), prompts=512, rollouts=32,
        sft_points=(500, 1000, 2000, 4000, 9500), gold_points=(500, 1000, 2000, 4000, 9500), rows=512, average_rows=512, val_limit=1000, questions=TEST, limit=1000,
        samples=32, val_tokens=1_000_000, max_new_tokens=512, side_steps=800,
    ),
}  # fmt: skip

# Learning rates where no OUT/rates.json says otherwise (--plan sweep multiplies them). RL's rate is that of every RL stage
# and, doubled, of averaging's RL side; sft_lr is of its SFT side.
RATES = {"rl": dict(lr=1e-4), "sft": dict(lr=1e-4), "gold": dict(lr=1e-4), "parallel": dict(lr=2e-4, sft_lr=5e-5)}
PAPER_RATES = {
    "rl": dict(lr=1e-6), "sft": dict(lr=4e-5), "gold": dict(lr=4e-5), "parallel": dict(lr=1e-6, sft_lr=1e-6)
}  # fmt: skip
SWEEP_SEED = 0  # no seed of the study


@dataclass
class Recipe:
    """How a model is made from a base checkpoint."""

    stage: str  # whose command; empty: the base model itself
    after: str = ""  # starts from this recipe's model; empty: from the base
    flags: dict = field(default_factory=dict)
    rates: str = ""  # has the learning rates of this recipe; empty: its own
    dose: float = 1.0  # times this
    judged: str = "points"  # at every named step; "best": at the best of them on validation; "last": at the end
    run: str = ""  # no training of its own: judges the run of this recipe
    averaged: bool = False  # has the rows of averaging and, if it is SFT, the steps
    hot: bool = False  # is judged at temperature 1 too (--points_t1)


RECIPES = {
    "base": Recipe("", flags=dict(shots=8), hot=True),
    "base_0shot": Recipe("", flags=dict(shots=0), hot=True),
    "rl": Recipe("rl", hot=True),
    "sft": Recipe("sft", judged="best", flags=dict(solutions="one"), hot=True),
    "parallel": Recipe("average", averaged=True, flags=dict(mode="parallel", solutions="one"), hot=True),
    "sft_rl": Recipe("rl", after="sft", rates="rl", hot=True),
    "sft_converged": Recipe("sft", run="sft", judged="last"),
    "sft_converged_rl": Recipe("rl", after="sft_converged", rates="rl"),
    "gold": Recipe("sft", judged="best", flags=dict(solutions="all")),
    "gold_rl": Recipe("rl", after="gold", rates="rl"),
    "sft_dose": Recipe("sft", rates="parallel", dose=0.5, averaged=True, flags=dict(solutions="one")),
    "sft_dose_rl": Recipe("rl", after="sft_dose", rates="rl"),  # both doses of averaging, one after the other
    "rl_dose": Recipe("rl", rates="parallel", dose=0.5),
    "parallel_paper": Recipe("average", rates="paper", flags=dict(mode="parallel", solutions="one")),
    "combined": Recipe("average", rates="parallel", averaged=True, flags=dict(mode="combined", solutions="one")),
    "interleaved": Recipe("average", rates="parallel", averaged=True, flags=dict(mode="interleaved", solutions="one")),
    "soup": Recipe("average", after="rl", judged="last", flags=dict(mode="soup")),  # and sft's best
}

# Seconds on one idle core at micro: of a training answer (2.05 s per step of 16 x 32; up to 2.7 where most questions carry
# signal), a judged answer (512 x 32 in 45 s), an SFT row (0.2 s per step of 32), a token of pretraining, a token read
# (likelihood), and of starting a command
SECONDS = {
    "answer": 2.05 / 512,
    "judged": 45 / (512 * 32),
    "row": 0.2 / 32,
    "token": 1e-4,
    "read": 1.5e-5,
    "start": 4.0,
}


def resolve(config: Config) -> Config:
    """Fill what was left to the budget. UserError for what no plan can do."""
    paper = config.scale in ("olmo2-1b", "4b")
    config.budget = config.budget or ("smoke" if config.scale == "smoke" else "paper" if paper else "short")
    for name, value in BUDGETS[config.budget].items():
        setattr(config, name, getattr(config, name) or value)
    config.tokens = config.tokens or pretrain.PRESETS[config.scale]["tokens"]
    config.jobs = config.jobs or max(1, _cores() // max(1, config.threads))
    for name in (*config.recipes, *config.control_recipes):
        if name not in RECIPES:
            raise UserError(f"--recipes {name}: none of {', '.join(RECIPES)}")
    for name in "jobs threads pool prompts rollouts rows average_rows val_limit samples side_steps".split():
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: at least 1")
    for name in ("points", "sft_points", "gold_points"):
        steps = getattr(config, name)
        if min(steps) < 1 or list(steps) != sorted(set(steps)):
            raise UserError(f"--{name} {' '.join(map(str, steps))}: steps from 1 on, each larger than the one before")
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, config.seeds))}: each once, none negative")
    if not all(0 < share < 1 for share in config.shares):
        raise UserError(f"--shares {' '.join(map(str, config.shares))}: between 0 and 1")
    for name in config.scales:
        if name not in SCALES:
            raise UserError(f"--scales {name}: none of {', '.join(SCALES)}")
    for name in ("sweep", "factors"):
        factors = getattr(config, name)
        if not factors or not all(0 < factor < math.inf for factor in factors):
            raise UserError(f"--{name} {' '.join(map(str, factors))}: of a learning rate, above 0")
    return config


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Base:
    """A checkpoint M_t to start from."""

    folder: str  # seed2/4.00M
    checkpoint: Path
    tokens: int
    seed: int  # of what is done from here
    source: int  # seed of its pretraining run
    primary: bool  # one of those that are worked on first
    scale: str
    variant: dict


def flags_of(flags: dict) -> list[str]:
    """{"lr": 1e-4, "k": (1, 8)} → ["--lr", "0.0001", "--k", "1", "8"]"""
    words = []
    for key, value in flags.items():
        words += [f"--{key}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in _as_tuple(value))]
    return words


def _as_tuple(value) -> tuple:
    return value if isinstance(value, tuple) else (value,)


def script(name: str) -> str:
    """Path of a stage from here, as a user would type it."""
    return os.path.relpath(ROOT / f"{name}.py")


def label_of(variant: dict) -> str:
    """{"band": "0:1", "n": 5} → "0-1_n5", for the name of a folder (a colon would mean something to make)."""
    words = (f"{k}{v:g}" if isinstance(v, int | float) else str(v) for k, v in variant.items())
    return "_".join(words).replace(":", "-")


@lru_cache
def size_of(scale: str) -> float:
    """FLOPs a token, micro = 1, both with the world's vocabulary: what SECONDS are multiplied by."""
    vocab = load_tokenizer("world").padded_vocab_size
    return train_flops(config_of(scale, vocab), 256) / train_flops(config_of("micro", vocab), 256)


class Builder:
    """Collects the cells of a plan; a cell that is asked for twice is one."""

    def __init__(self, config: Config, rates: dict[str, float], chosen: dict | None = None):
        self.config, self.rates = config, rates  # rates: recipe → factor
        self.chosen = chosen  # what OUT/checkpoints.json says
        self.out = Path(config.out)
        self.part = ""  # of the plan, of the cells that are added now
        self.cells: dict[str, Cell] = {}

    def add(self, cell: Cell) -> Cell:
        cell.part = self.part
        assert self.cells.setdefault(cell.name, cell).command == cell.command, cell.name
        return self.cells[cell.name]

    def seconds(self, scale: str, **counts: float) -> float:
        """Estimated for a command on one idle core."""
        return SECONDS["start"] + size_of(scale) * sum(SECONDS[what] * count for what, count in counts.items())

    def counts(self, total: float) -> tuple[list[float], list[float], list[float]]:
        """Token counts of the checkpoints that are worked on, of the primary ones among them, and of those to choose from."""
        c = self.config
        kept = [round(total * 0.3 ** (1 - i / (c.kept - 1)), -3) for i in range(c.kept)] if c.kept > 1 else []
        if c.checkpoints != "auto":
            counts = [pretrain.parse_count(part.strip()) for part in c.checkpoints.split(",")]
            primary = [counts[len(counts) // 2]]
        elif self.chosen:
            counts, primary = self.chosen["checkpoints"], self.chosen["primary"]
        elif kept:
            places = grid_of(len(kept), len(kept) // 3)
            counts, primary = [kept[i] for i in places], [kept[i] for i in places[1:3]]
        else:
            counts = [total * 0.55 ** (1 - i / 4) for i in range(5)]
            primary = counts[2:3]
        if c.primary:
            primary = [pretrain.parse_count(part.strip()) for part in c.primary.split(",")]
        return counts, primary, kept

    def pretrain(
        self, seed: int, source: int = -1, scale: str = "", tokens: str = "", mix: str = "", variant: dict | None = None
    ) -> list[Base]:
        """A pretraining run (of seed `source`; -1: the same) and its checkpoints as `seed` starts from them, in order."""
        c, variant, source = self.config, variant or {}, seed if source < 0 else source
        scale, tokens = scale or c.scale, tokens or c.tokens
        preset = pretrain.PRESETS[scale]
        total, per_step = pretrain.parse_count(tokens), preset["batch"] * preset["seq_len"]
        steps = max(1, round(total / per_step))
        counts, primary, kept = self.counts(total)
        if max(*counts, *primary) > total + per_step:
            raise UserError(
                f"--checkpoints {c.checkpoints} --primary {c.primary}: beyond the {tokens} tokens of pretraining (--tokens)"
            )

        def steps_of(counts: list[float]) -> set[int]:
            return {pretrain.parse_save_at(f"{count / 1e3:g}k", steps, per_step)[0] for count in counts}

        save_at = ",".join(dict.fromkeys(f"{count / 1e3:g}k" for count in sorted(counts + kept)))
        place, folder = ("/".join(filter(None, (f"seed{s}", label_of(variant)))) for s in (source, seed))
        run = self.out / place / "pretrain/run"
        flags = dict(scale=scale, data=c.data, seed=source, tokens=tokens, save_at=save_at, eval_every=0)
        flags |= dict(mix=mix or c.mix) if mix or c.mix else {}
        flags |= dict(save_every=max(20, steps // 20), out=run)
        paths = {step: run / f"step_{step:07d}.pt" for step in sorted({*steps_of(counts + kept), steps})}
        command = [script("pretrain"), *flags_of(flags)]
        seconds = self.seconds(scale, token=total)
        self.add(Cell(f"{place}/pretrain/train", f"pretrain {scale}", command, list(paths.values()), [], seconds, run))
        at, first = sorted(steps_of(counts)), steps_of(primary)
        if not first <= set(at):
            raise UserError(f"--primary {c.primary}: not all of them are among the checkpoints")
        return [
            Base(
                f"{folder}/{count_name(n * per_step)}", paths[n], n * per_step, seed, source, n in first, scale, variant
            )
            for n in at
        ]

    def main(self, seed: int, **more) -> Base:
        """The checkpoint of the plans that have one: the last of the primary ones."""
        own = self.config.pretraining != "one"
        return [b for b in self.pretrain(seed, seed if own else self.config.seeds[0], **more) if b.primary][-1]

    def rates_of(self, recipe: str) -> dict[str, float]:
        """Learning rates as flags. Those of a dose control are those of its side of the average."""
        r, tables = RECIPES[recipe], PAPER_RATES if self.config.budget == "paper" else RATES
        name = r.rates or r.run or recipe
        if name == "paper":  # the paper averages at RL's rate on both sides, a fortieth of SFT's
            return {"lr": self.rates_of("rl")["lr"], "sft_lr": self.rates_of("sft")["lr"] / 40}
        rates = {key: rate * r.dose * self.rates.get(name, 1.0) for key, rate in tables[name].items()}
        if "sft_lr" in rates:  # the sweep of averaging is one of its SFT side
            rates["lr"] = tables[name]["lr"] * r.dose * self.rates.get("rl", 1.0)
        if r.flags.get("mode") == "combined":
            return {"lr": rates["lr"]}  # one loss, one optimizer
        if r.stage == "average":
            return rates
        return {"lr": rates["sft_lr"] if r.stage == "sft" and "sft_lr" in rates else rates["lr"]}

    def steps_of(self, recipe: str, changes: dict) -> tuple[int, ...]:
        """Named steps of a recipe's run; the last is its end."""
        r, c = RECIPES[recipe], self.config
        named = c.points if r.stage != "sft" or r.averaged else c.gold_points if recipe == "gold" else c.sft_points
        end = changes.get("steps", named[-1])
        return (*(s for s in named if s < end), end)

    def train(self, recipe: str, base: Base, start: Path | None = None, **changes) -> Path:
        """The cells that make a recipe's model, with those of what it starts from (unless `start` is given); the
        model's path. `changes` are flags that differ from the plan's, and `needs`, further files that must be there."""
        c, r = self.config, RECIPES[recipe]
        if not r.stage:
            return base.checkpoint
        name = f"{base.folder}/{r.run or recipe}"
        folder, run = self.out / name, self.out / name / "run"
        points = self.steps_of(recipe, changes)
        last = run / f"step_{points[-1]:07d}.pt"
        if r.run:
            self.train(r.run, base, start, **changes)
            return last
        init = start or (self.train(r.after, base, **changes) if r.after else base.checkpoint)
        flags = dict(init=init, data=c.data, seed=base.seed)
        if r.flags.get("mode") == "soup":
            other = self.train("sft", base, **changes)
            command = [script("average"), *flags_of(dict(init=init) | r.flags | dict(other=other, out=run))]
            self.add(Cell(f"{name}/train", "soup", command, [run / "last.pt"], [init, other], SECONDS["start"]))
            return run / "last.pt"
        flags |= dict(limit=c.pool, steps=points[-1]) | r.flags | self.rates_of(recipe)
        answers = rows = 0
        if r.stage != "sft":
            flags |= dict(prompts=c.prompts, rollouts=c.rollouts, kl=0)
            answers = points[-1] * c.prompts * changes.get("rollouts", c.rollouts)
            if c.max_new_tokens:
                flags |= dict(max_new_tokens=c.max_new_tokens)
        if r.stage != "rl":
            flags |= dict(rows=c.average_rows if r.averaged else c.rows)
            rows = points[-1] * flags["rows"]
        flags |= dict(eval_every=-1, eval_limit=c.val_limit, eval_samples=8, eval_tokens=0, eval_tasks=())
        flags |= dict(save_at=",".join(map(str, points)), save_every=max(1, math.ceil(points[-1] / 16)))
        flags |= {k: v for k, v in changes.items() if k != "needs"} | dict(out=run)
        every = flags["eval_every"]
        judged = 8 * c.val_limit * (1 + (len(points) if every < 0 else math.ceil(points[-1] / every)))
        command = [script(r.stage), *flags_of(flags)]
        needs = [init, *changes.get("needs", ())]
        seconds = self.seconds(base.scale, answer=answers, row=rows, judged=judged)
        kept = [run / f"step_{step:07d}.pt" for step in points]
        self.add(Cell(f"{name}/train", r.stage, command, kept, needs, seconds, run))
        if r.judged != "best":
            return last
        best = folder / "best.pt"
        command = ["-m", "excursion", "choose", "--out", str(folder)]
        self.add(Cell(f"{name}/choose", "choose", command, [best], [last], SECONDS["start"]))
        return best

    def evaluate(self, recipe: str, base: Base, start: Path | None = None, **changes) -> None:
        """All cells of a recipe, its evaluations on test questions included: of each named step, or of one model; at
        temperature .6, some at 1 too. Arguments as of `train`."""
        c, r = self.config, RECIPES[recipe]
        last = self.train(recipe, base, start, **changes)
        home, seed = base.folder, base.seed
        if not r.stage and base.source != seed:  # several seeds start from this very model: one evaluation for all
            home, seed = home.replace(f"seed{seed}", f"seed{base.source}", 1), base.source
        points = self.steps_of(recipe, changes) if r.stage and r.flags.get("mode") != "soup" else ()
        models = {0: last}  # step → model, 0: the only one
        if r.judged == "points" and r.stage:
            models = {step: last.with_name(f"step_{step:07d}.pt") for step in points}
        meta = dict(
            recipe=recipe, start=r.after or ("base" if r.stage else ""), seed=seed, seeds=[], tokens=base.tokens
        )
        meta |= dict(pretraining_seed=base.source, scale=base.scale, variant=base.variant, budget=c.budget)
        meta |= dict(points=list(points), rates=self.rates_of(recipe) if points else {})
        meta["rates"] |= {k: v for k, v in changes.items() if k in ("lr", "sft_lr")}
        if r.stage == "rl":
            meta["rate"] = base.variant.get("rate", 1.0)  # times the rate of all RL stages
            meta["paper"] = (recipe, meta["rate"]) in (("rl", 1.0), ("sft_rl", max(c.factors)))  # see plan_sharpening
        for step, model in models.items():
            hot = r.hot and c.points_t1 and (step in c.points_t1 or not step)
            for temperature in (0.6, 1.0) if hot else (0.6,):
                self._judge(home, recipe, model, meta | dict(step=step, temperature=temperature), base)

    def _judge(self, home: str, recipe: str, model: Path, meta: dict, base: Base) -> None:
        """The cell of one evaluation on test questions. At temperature 1 these alone: the rest would be the same again."""
        c, r, warm = self.config, RECIPES[recipe], meta["temperature"] == 1
        folder = self.out / home / (r.run or recipe) / ("eval_t1" if warm else "eval")
        flags = dict(checkpoint=model, data=c.data, questions=c.questions, samples=c.samples, limit=max(0, c.limit))
        flags |= dict(temperature=1.0, tasks=(), text=()) if warm else dict(val_tokens=c.val_tokens)
        flags |= dict(k=tuple(k for k in (1, 8, 32) if k <= c.samples) or (c.samples,), shots=r.flags.get("shots", 0))
        flags |= dict(max_new_tokens=c.max_new_tokens) if c.max_new_tokens else {}
        command = [script("eval"), *flags_of(flags | dict(out=folder))]
        asked = len(c.questions) * (c.limit if c.limit > 0 else 256)
        read = 0 if warm else 2 * c.val_tokens + 3 * (c.limit if c.limit > 0 else 1000) * 60
        name = f"{home}/{r.run or recipe}/{folder.name}_{model.stem}"
        seconds = self.seconds(base.scale, judged=asked * c.samples, read=read)
        cell = self.add(Cell(name, "eval", command, [folder / f"{model.stem}.json"], [model], seconds, meta=meta))
        cell.meta["seeds"] = sorted({*cell.meta["seeds"], base.seed})  # that this evaluation stands for


def count_name(tokens: float) -> str:
    """3999744 → "4.00M", 28672 → "0.029M": steps of the smallest scale differ; names sort by tokens up to a billion."""
    return f"{tokens / 1e6:.{2 if tokens >= 1e6 else 3}f}M" if tokens < 1e9 else f"{tokens / 1e9:.2f}B"


def grid_of(n: int, early: int) -> list[int]:
    """Places of the five checkpoints of a grid among n: one before the early one, that, the next (main), one between main
    and the last, the last."""
    main = min(early + 1, n - 1)
    return sorted({max(0, early - 1), early, main, (main + n) // 2, n - 1})


def plan_grid(b: Builder) -> None:
    """The primary checkpoints seed by seed, the other checkpoints seed by seed, the controls."""
    c = b.config

    def bases(seed: int, primary: bool) -> list[Base]:
        shared = c.pretraining == "one" or (c.pretraining == "primary" and not primary)
        found = b.pretrain(seed, c.seeds[0] if shared else seed)
        return [base for base in found if base.primary == primary]

    for primary, name in ((True, "primary checkpoints"), (False, "other checkpoints")):
        for seed in c.seeds:
            b.part = f"{name}, seed {seed}"
            for base in reversed(bases(seed, primary)):
                for recipe in c.recipes:
                    b.evaluate(recipe, base)
    for primary in (True, False) if c.controls == "all" else (True,) if c.controls == "primary" else ():
        for seed in c.seeds:
            b.part = f"controls, seed {seed}"
            for base in reversed(bases(seed, primary)):
                for recipe in c.control_recipes:
                    b.evaluate(recipe, base)


def plan_checkpoints(b: Builder) -> None:
    """Every checkpoint that the first seed's pretraining keeps, asked validation questions with and without examples."""
    c = b.config
    counts, _, kept = b.counts(pretrain.parse_count(c.tokens))
    c.checkpoints = ",".join(f"{count / 1e3:g}k" for count in sorted(kept or counts))
    c.primary, b.chosen = "", None
    for base in b.pretrain(c.seeds[0]):
        for recipe in ("base", "base_0shot"):
            folder = b.out / base.folder / recipe / "validation"
            flags = dict(
                checkpoint=base.checkpoint, data=c.data, questions="validation", samples=c.samples, limit=c.val_limit
            )
            flags |= dict(shots=RECIPES[recipe].flags["shots"], tasks=(), text=(), out=folder)
            flags |= dict(k=tuple(k for k in (1, 8, 32) if k <= c.samples) or (c.samples,))
            name, result = f"{base.folder}/{recipe}/validation", folder / f"{base.checkpoint.stem}.json"
            seconds = b.seconds(c.scale, judged=c.val_limit * c.samples)
            b.add(Cell(name, "eval", [script("eval"), *flags_of(flags)], [result], [base.checkpoint], seconds))


def plan_sweep(b: Builder) -> None:
    """Every recipe that has a rate of its own, and SFT → RL, at the dose that is used, from the main checkpoint of a run
    that the study does not use; nothing is judged on test questions."""
    base = b.main(SWEEP_SEED)
    recipes = [r for r in ("rl", "sft", "gold", "parallel", "sft_rl") if r in b.config.recipes]
    for recipe in recipes:
        start = b.train("sft", vary(base, sweep=1.0)) if recipe == "sft_rl" else None
        for factor in b.config.sweep:
            b.rates = {RECIPES[recipe].rates or recipe: factor}
            b.train(recipe, vary(base, sweep=factor), start)
        b.rates = {}


def plan_sharpening(b: Builder) -> None:
    """RL from the base, from SFT at its best and at its end, and from Gold, at several rates, judged along the way: is it the
    order, the rate or the dose? The rate that the grid uses is the grid's own run. Last, RL on those questions alone that
    the start seldom answers: is it the dose per solved question?

    The paper's own pair is marked: direct RL at its rate, and RL after SFT at a far higher one (forty times; here the
    highest factor, for the paper's breaks a model of this size)."""
    c = b.config
    starts = {"rl": None, "sft_rl": "sft", "sft_converged_rl": "sft_converged", "gold_rl": "gold"}
    for seed in c.seeds:
        b.part = f"sharpening, seed {seed}"
        base = b.main(seed)
        for recipe in ("base", "base_0shot", "sft", "sft_converged", "gold"):
            b.evaluate(recipe, base)
        for factor in sorted(c.factors, key=lambda f: abs(math.log(f))):  # the grid's first
            for recipe, after in starts.items():
                if factor == 1:
                    b.evaluate(recipe, base)
                    continue
                start = b.train(after, base) if after else None
                lr = factor * b.rates_of(recipe)["lr"]
                b.evaluate(recipe, vary(base, rate=factor), start, lr=lr, steps=c.side_steps)
    for seed in c.seeds:
        b.part = f"seldom solved questions alone, seed {seed}"
        base = b.main(seed)
        for recipe, after in (("rl", "base"), ("sft_rl", "sft")):
            start = b.train(after, base)
            rates = difficulty(b, base, after, start)
            changes = dict(difficulty=rates, band="hard", needs=[rates], steps=c.side_steps)
            b.evaluate(recipe, vary(base, band="hard"), start, **changes)


def vary(base: Base, **variant) -> Base:
    """The same checkpoint for cells that differ in something else than the recipe."""
    label, place = label_of(variant), base.folder.rsplit("/", 1)
    return replace(base, folder=f"{place[0]}/{label}/{place[1]}", variant=base.variant | variant)


def difficulty(b: Builder, base: Base, recipe: str, model: Path) -> Path:
    """The cell that finds how often a model answers each training question; the file that it makes."""
    c = b.config
    folder = b.out / base.folder / "difficulty" / recipe
    rates = folder / f"{model.stem}.difficulty.json"
    flags = dict(checkpoint=model, data=c.data, limit=c.pool, out=folder)
    flags |= dict(max_new_tokens=c.max_new_tokens) if c.max_new_tokens else {}
    command = [script("eval"), "--difficulty", *flags_of(flags)]
    seconds = b.seconds(base.scale, judged=64 * c.pool)
    b.add(Cell(f"{base.folder}/difficulty/{recipe}", "eval", command, [rates], [model], seconds))
    return rates


def plan_rollouts(b: Builder) -> None:
    """Few and many answers a question, on easy and on hard questions, as many answers in total."""
    c = b.config
    for seed in c.seeds:
        base = b.main(seed)
        b.evaluate("base_0shot", base)
        rates = difficulty(b, base, "base", base.checkpoint)
        for band in c.bands:
            for n in c.rollout_counts:  # neither equal steps nor equal FLOPs
                steps = max(1, round(c.side_steps * math.sqrt(min(c.rollout_counts) / n)))
                more = dict(difficulty=rates, band=band, needs=[rates], eval_every=8)  # when does it get there?
                b.evaluate("rl", vary(base, band=band, n=n), rollouts=n, steps=steps, **more)


def plan_mixture(b: Builder) -> None:
    """Math shares of pretraining, judged at its end."""
    for seed in b.config.seeds:
        for share in b.config.shares:
            last = b.pretrain(seed, mix=f"general={1 - share:g},math={share:g}", variant={"math": share})[-1]
            for recipe in ("base", "base_0shot", "rl"):
                b.evaluate(recipe, last, **({"steps": b.config.side_steps} if recipe == "rl" else {}))


def plan_scale(b: Builder) -> None:
    """Sizes at equal pretraining FLOPs, those of --scale for --tokens, judged at its end."""
    c, names = b.config, list(SCALES)
    scales = c.scales or (c.scale, names[max(0, names.index(c.scale) - 1)])
    vocab = (
        100_352 if c.budget == "paper" else load_tokenizer("world").padded_vocab_size
    )  # cl100k, without its download

    def per_token(scale: str) -> float:
        return train_flops(config_of(scale, vocab), pretrain.PRESETS[scale]["seq_len"])

    flops = per_token(c.scale) * pretrain.parse_count(c.tokens)
    b.chosen, c.checkpoints, c.primary = None, "auto", ""  # of --scale alone
    for seed in c.seeds:
        for scale in scales:
            tokens = f"{flops / per_token(scale) / 1e3:.0f}k"
            last = b.pretrain(seed, scale=scale, tokens=tokens, variant={"size": scale})[-1]
            for recipe in ("base", "base_0shot", "rl"):
                b.evaluate(recipe, last, **({"steps": c.side_steps} if recipe == "rl" else {}))


def plan_seeds(b: Builder) -> None:
    """RL from the same checkpoints, the primary ones and the last, with other seeds of data order and sampling."""
    bases = b.pretrain(b.config.seeds[0])
    for base in [base for base in bases if base.primary or base is bases[-1]]:
        b.evaluate("base_0shot", base)
        for seed in b.config.rl_seeds:
            b.evaluate("rl", vary(base, rlseed=seed), seed=seed, steps=b.config.side_steps)


def plan_demonstrations(b: Builder) -> None:
    """SFT and RL on the first so many questions."""
    for seed in b.config.seeds:
        base = b.main(seed)
        b.evaluate("base_0shot", base)
        for count in b.config.solved:
            b.evaluate("sft", vary(base, solved=count), limit=count)
            b.evaluate("rl", vary(base, solved=count), limit=count, steps=b.config.side_steps)


PLANS = {"grid": plan_grid, "checkpoints": plan_checkpoints, "sweep": plan_sweep, "sharpening": plan_sharpening,
         "rollouts": plan_rollouts, "mixture": plan_mixture, "scale": plan_scale, "seeds": plan_seeds,
         "demonstrations": plan_demonstrations}  # fmt: skip


def make_plan(config: Config) -> list[Cell]:
    """The cells of --plan, each after those that it needs, the most telling ones first."""

    def chosen(name: str, plan: str, read: Callable):
        """What an earlier plan wrote to OUT/NAME.json; {} if it was not run."""
        places = [Path(folder) / f"{name}.json" for folder in (config.out, config.records) if folder]
        path = next((place for place in places if place.exists()), None)
        if path is None or config.plan == plan:
            return {}
        try:
            return read(json.loads(path.read_text()))
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(
                f"{path}: not what --plan {plan} writes ({error!r}); delete it or run that plan again"
            ) from None

    def positive(value) -> float:
        if not 0 < float(value) < 1e18:
            raise ValueError(f"{value} is not a positive number")
        return float(value)

    def checkpoints(table: dict) -> dict[str, list[float]]:
        at = {key: [positive(count) for count in table[key]] for key in ("checkpoints", "primary")}
        if not at["primary"] or not set(at["primary"]) <= set(at["checkpoints"]):
            raise ValueError("the primary ones are not among the checkpoints")
        return at

    rates = chosen("rates", "sweep", lambda table: {recipe: positive(row["factor"]) for recipe, row in table.items()})
    at = chosen("checkpoints", "checkpoints", checkpoints)
    builder = Builder(config, rates, at)
    PLANS[config.plan](builder)
    return list(builder.cells.values())


def record_name(cell: Cell) -> str:
    """seed1/4.00M/rl/eval_step_0000048 → seed1-4.00M-rl@48; without a step at the end of a run; -T1 at temperature 1"""
    meta = cell.meta
    step = f"@{meta['step']}" if meta["step"] and meta["step"] != meta["points"][-1] else ""
    return "-".join([*cell.name.split("/")[:-2], meta["recipe"] + step]) + ("-T1" if meta["temperature"] == 1 else "")


# ---------------------------------------------------------------------------------------------------------------------
# What can be done with a plan: print it
# ---------------------------------------------------------------------------------------------------------------------


def shell(cell: Cell, config: Config) -> str:
    """The cell as one line of shell that goes on with a run that was killed."""
    command = shlex.join(["python", *cell.command])
    if cell.run:
        run = shlex.quote(str(cell.run))
        command = f"if [ -e {run}/last.pt ]; then {command} --resume; else rm -rf {run}; {command}; fi"
    return f"export OMP_NUM_THREADS={config.threads}; {command}"


def estimate(config: Config, cells: list[Cell]) -> list[str]:
    """What a plan takes, part by part in the order of work. Of scales that are not for a CPU, the number of cells alone."""
    hours: dict[str, list[float]] = {}
    for cell in cells:
        hours.setdefault(cell.part, []).append(cell.cost / 3600)
    lines = [f"{config.plan}, budget {config.budget}: {len(cells)} commands"]
    if config.scale in ("smoke", "micro", "mini"):
        lines[0] += (
            f", about {sum(map(sum, hours.values())):.1f} core-hours in all (estimated: SECONDS in excursion/plan.py)"
        )
        done = 0.0
        for part, costs in hours.items() if len(hours) > 1 else ():
            done += sum(costs)
            lines.append(f"{part}: {len(costs)} commands, {sum(costs):.1f} core-hours; {done:.1f} up to here")
    return lines


def print_plan(config: Config, cells: list[Cell]) -> None:
    """The commands in order, as a list, as a makefile, or as sbatch commands; first, in comments, what they take."""
    if config.format == "slurm":
        print("#!/bin/sh\nset -e")
    print(*(f"# {line}" for line in estimate(config, cells)), sep="\n")
    if config.format == "list":
        for cell in cells:
            print(shlex.join(["python", *cell.command]))
    elif config.format == "make":
        print("all:", *(cell.result for cell in cells))
        for cell in cells:
            print(f"\n{' '.join(map(str, cell.results))}{' &' * (len(cell.results) > 1)}:", *cell.needs)
            print("\t" + shell(cell, config).replace("$", "$$"))
    else:
        maker = {path: i for i, cell in enumerate(cells) for path in cell.results}
        for i, cell in enumerate(cells):
            after = "".join(f":$j{maker[path]}" for path in cell.needs)
            depends = f"--dependency=afterok{after} " if after else ""
            name = f"--job-name={cell.name} --parsable --requeue"
            print(f"j{i}=$(sbatch {name} {depends}--wrap {shlex.quote(shell(cell, config))})")


# ---------------------------------------------------------------------------------------------------------------------
# Run it
# ---------------------------------------------------------------------------------------------------------------------


def validation_scores(run: Path) -> dict[int, float]:
    """step → validation pass@1 of a run, process-right where that can be told; of the starting model at step 0.
    UserError for a run without a log."""
    try:
        lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
        key = "val_process@1" if any("val_process@1" in line for line in lines) else "val_pass@1"
        return {int(line["step"]): float(line[key]) for line in lines if key in line}
    except MALFORMED as error:
        raise UserError(f"{run / 'metrics.jsonl'}: no metrics of a run ({error})") from None


def best_step(scores: dict[int, float], among: Iterable[int]) -> int:
    """The step with the best score; of equals the earliest."""
    return max(among, key=lambda step: (scores[step], -step))


def choose(folder: Path) -> Path:
    """FOLDER/best.pt: the kept checkpoint of FOLDER/run that is best on validation."""
    scores = validation_scores(folder / "run")
    paths = {step: folder / f"run/step_{step:07d}.pt" for step in scores}
    paths = {step: path for step, path in paths.items() if path.exists()}
    if not paths:
        raise UserError(f"{folder / 'run'}: no kept checkpoint with a validation pass@1 (--save_at, --eval_every)")
    step = best_step(scores, paths)
    with replacing_path(folder / "best.pt") as part:
        try:
            os.link(paths[step], part)
        except OSError:  # a file system without links
            shutil.copyfile(paths[step], part)
    print(f"validation pass@1 by step {scores}; {folder / 'best.pt'} is step {step}")
    return paths[step]


def swept(config: Config, cells: list[Cell]) -> dict[str, dict[int, float]]:
    """name → validation scores of the runs of a sweep that are finished, here or in --records; notes them in
    OUT/records/sweep.json."""
    notes: dict[str, dict] = {}
    for folder in filter(None, (config.records, Path(config.out) / "records")):
        with contextlib.suppress(UserError, *MALFORMED):
            notes |= read_json(Path(folder) / "sweep.json")
    scores = {}
    for cell in cells:
        if cell.run is None or cell.kind.startswith("pretrain"):
            continue
        state = read_state(Path(config.out) / f"{cell.name}.json") or {}
        if state.get("rc") == 0:  # by its own command, which need not be that of this plan
            notes[cell.name] = {"command": state["command"], "scores": validation_scores(cell.run)}
        with contextlib.suppress(*MALFORMED):  # no note, or none of ours
            if notes[cell.name]["command"] == cell.command:
                scores[cell.name] = {int(step): float(x) for step, x in notes[cell.name]["scores"].items()}
    write_text(Path(config.out) / "records" / "sweep.json", json.dumps(notes, indent=1) + "\n")
    return scores


def write_rates(config: Config, found: dict[str, dict[int, float]]) -> None:
    """OUT/rates.json from a finished sweep: for each recipe the factor with the best validation pass@1 at any named step,
    which is where a run is stopped. SFT → RL is reported, but runs at RL's rate, or the order would change the rate."""
    scores: dict[str, dict[float, float]] = {}
    for name, values in found.items():
        recipe = name.split("/")[-2]
        factor = min(config.sweep, key=lambda f: abs(f - float(name.split("/sweep")[1].split("/")[0])))  # noqa: B023
        scores.setdefault(recipe, {})[factor] = max(value for step, value in values.items() if step)
    table = {}
    for recipe, by_factor in scores.items():
        factor = max(by_factor, key=lambda f: (by_factor[f], -abs(math.log(f))))  # of equals the one next to 1
        rates = (PAPER_RATES if config.budget == "paper" else RATES)[RECIPES[recipe].rates or recipe]
        rates = {k: v * factor for k, v in rates.items() if k == "sft_lr" or "sft_lr" not in rates}
        table[recipe] = {"factor": factor, **rates, "validation pass@1 by factor": by_factor}
    write_text(Path(config.out) / "rates.json", json.dumps(table, indent=1) + "\n")
    print(f"wrote {Path(config.out) / 'rates.json'}: " + ", ".join(f"{r} x {e['factor']:g}" for r, e in table.items()))


def write_checkpoints(config: Config, cells: list[Cell]) -> None:
    """OUT/checkpoints.json from the validation records of --plan checkpoints. The early checkpoint is the first whose base
    with worked examples has a pass@1 of EARLY, process-right where that can be told; the main one is the next; with one
    before, one between main and the last, and the last they make the grid. UserError if none gets that far."""
    table: dict[int, dict] = {}
    for cell in cells:
        if not cell.name.endswith("/validation"):
            continue
        record = json.loads(cell.result.read_text())
        asked = record["questions"]["validation"]
        row = {
            kind: {k: round(v["mean"], 4) for k, v in asked[kind].items()}
            for kind in ("strict", "process")
            if kind in asked
        }
        table.setdefault(record["tokens"], {})[cell.name.split("/")[-2]] = row | {"box": asked["box"]}
    tokens = sorted(table)
    counts = [pretrain.parse_count(part) for part in config.checkpoints.split(",")]  # as the plan asked for them
    reached = [i for i, t in enumerate(tokens) if list(table[t]["base"].values())[-2]["pass@1"] >= EARLY]
    print(
        *(f"{count_name(t)}  " + "  ".join(f"{r}: {values}" for r, values in table[t].items()) for t in tokens),
        sep="\n",
    )
    if not reached:
        raise UserError(
            f"no checkpoint has a validation pass@1 of {EARLY:.0%} with examples: pretrain for longer (--tokens)"
        )
    places = grid_of(len(tokens), reached[0])
    chosen = {"checkpoints": [counts[i] for i in places], "primary": counts[reached[0] : reached[0] + 2]}
    write_text(Path(config.out) / "checkpoints.json", json.dumps({**chosen, "validation": table}, indent=1) + "\n")
    print(f"wrote {Path(config.out) / 'checkpoints.json'}: {chosen}")


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------

CURVE = ("reward", "length", "entropy", "val_pass@1", "val_pass@8", "val_process@1", "sft_loss", "flops")
SHOWN = 3  # questions of each test set whose samples go into the record, 4 samples each
# Of each question: what pass@k, process, entropies and their intervals are computed from. The rest has its means
PER_QUESTION = ("id", "facts", "n", "c", "c_lenient", "c_process", "h_answers", "h_paths")


def thin_curve(lines: Iterable[dict], points: int = 50) -> dict[str, list]:
    """{metric: [[step, value], ...]} of a metrics.jsonl: at most so many points of each, the last one always."""
    curve: dict[str, list] = {}
    for line in lines:
        for key in CURVE:
            if line.get(key) is not None:  # FLOPs may be unknown
                curve.setdefault(key, []).append([line["step"], float(f"{line[key]:.6g}")])
    for key, values in curve.items():
        every = math.ceil(len(values) / points)
        curve[key] = values[::-every][::-1]
    return curve


def collect(config: Config, cells: list[Cell]) -> Path:
    """Copy what the report needs of every evaluated cell to OUT/records: small enough to be committed."""
    folder = Path(config.out) / "records"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if not cell.meta or not cell.result.exists():
            continue
        name, home = record_name(cell), cell.result.parent.parent
        metrics, curve, record = home / "run/metrics.jsonl", {}, json.loads(cell.result.read_text())
        stopped = {"step": record["step"] if cell.meta["points"] else 0, "primary": True}
        if metrics.exists():
            curve = thin_curve(map(json.loads, metrics.read_text().splitlines()))
            scores = validation_scores(home / "run")
            stopped["best_step"] = best_step(scores, [p for p in cell.meta["points"] if p in scores])
            if RECIPES[cell.meta["recipe"]].judged == "points":
                stopped["primary"] = stopped["step"] == stopped["best_step"]
        with gzip.open(cell.result.with_suffix(".jsonl.gz"), "rt") as file:
            rows = [json.loads(line) for line in file]
        samples = []
        for label in dict.fromkeys(row["set"] for row in rows):
            for row in [r for r in rows if r["set"] == label][:SHOWN]:
                samples.append({**row, "samples": row["samples"][:4]})
        paths = (Path(config.out) / f"{cell.name}.json", home / "train.json")
        seconds = [(read_state(path) or {}).get("seconds") for path in paths]
        meta = {
            "name": name,
            **cell.meta,
            **stopped,
            **commands_of(cell, cells),
            "curve": curve,
            "samples": samples,
        }
        meta |= {"seconds": {"evaluation": seconds[0], "training": seconds[1]}}
        for asked in record["questions"].values():
            asked["questions"] = [{key: q[key] for key in PER_QUESTION if key in q} for q in asked["questions"]]
        write_text(folder / f"{name}.json", json.dumps(record) + "\n")
        write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
    return folder


def commands_of(cell: Cell, cells: list[Cell]) -> dict[str, str]:
    """Of an evaluation: the command that made the model, and its own."""
    home = cell.name.rsplit("/", 1)[0]
    made = [c for c in cells if c.run and c.name == f"{home}/train"]
    both = {"command": (made or [cell])[0], "evaluation": cell}
    return {key: shlex.join(["python", *c.command]) for key, c in both.items()}


def main(config: Config) -> None:
    if config.command == "compare":
        return compare.print_changes(config.files)
    if config.files:
        raise UserError(f"{config.files[0]}: {config.command} takes no files; compare does")
    if config.command == "choose":
        choose(Path(config.out))
        return
    config = resolve(config)
    if config.command == "report" and config.records:
        report.write_report(Path(config.records), Path(config.out))
        return
    cells = make_plan(config)
    if config.command == "plan":
        if hasattr(signal, "SIGPIPE"):
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
        return print_plan(config, cells)

    def run(cells: list[Cell]) -> bool:
        return not Runner(cells, config.out, config.jobs, config.threads, config.retry)()

    whole, stand = cells, set()
    if config.records and any(cell.meta for cell in cells):
        commands = {cell.name: commands_of(cell, cells) for cell in cells if cell.meta}
        cells, stand = known.left(cells, record_name, lambda cell: commands[cell.name], Path(config.records), run)
    if config.plan == "sweep":
        done = swept(config, cells)
        runs = [cell for cell in cells if cell.run and not cell.kind.startswith("pretrain") and cell.name not in done]
        cells = known.needed(cells, runs, {path: cell for cell in cells for path in cell.results})
    missing = config.command == "run" and not run(cells)
    if config.plan == "sweep":
        done = swept(config, whole)
        print(f"{len(done)} runs of the sweep are finished: {Path(config.out) / 'records/sweep.json'}")
        if not missing and config.command == "run":
            write_rates(config, done)
    elif config.plan == "checkpoints":
        if not missing:
            write_checkpoints(config, cells)
    else:
        folder = collect(config, cells)
        seeds = {record_name(cell): cell.meta["seeds"] for cell in whole if cell.name in stand}
        known.copy(Path(config.records), folder, seeds)
        report.write_report(folder, Path(config.out))
    if missing:
        sys.exit(1)
