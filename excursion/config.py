"""How much of everything: the flags of the excursion, the budgets that fill them, the learning rates.

The paper's own settings are not here: they are PRESETS["paper"] of each stage, and docs/paper.md lists them.
"""

import math
import os
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal

from tyro.conf import Positional, UseAppendAction

import average
import cli
import eval as evaluation
import pretrain
import rl
import sft
from cli import UserError
from data.loader import integer_weights, parse_mix
from data.questions import BANDS, HUB_QUESTIONS
from data.world import SPLITS
from excursion.given import read_bases
from excursion.recipes import RECIPES
from model import SCALES


@dataclass
class Config:
    """Excursion: zero or empty is the budget's own value (BUDGETS in excursion/config.py)"""

    RANGES: ClassVar[dict] = {"limit": "[-1, 2147483647]", "rollout_counts": cli.RANGES["rollouts"]}
    DASHED: ClassVar[tuple] = ("sbatch",)  # flags whose value may begin with a dash (cli.joined)
    PAIRED: ClassVar[tuple] = ("stage_flags",)  # flags of two words, of which the second may

    # plan: print the commands; run: execute what is missing, then report; report: tables and figures of what is there;
    # choose: (a cell of a plan) link the kept checkpoint of OUT/run that is best on validation to OUT/best.pt;
    # compare: the change from the first evaluation record to the mean of the others, paired by question
    command: Positional[Literal["plan", "run", "report", "choose", "compare"]] = "run"
    files: Positional[tuple[str, ...]] = ()  # of `compare`: records of eval.py
    # grid: every recipe from five checkpoints, findings 1 to 5. checkpoints, sweep: which checkpoints to start from,
    # which learning rates, both by validation questions. sharpening: the order, the rate or the dose of RL? rollouts:
    # few or many answers a question? mixture, scale: math share of pretraining; two sizes at equal FLOPs. seeds: RL
    # from the primary checkpoints and the last with other seeds. demonstrations: SFT on how many solutions is RL worth?
    plan: Literal[
        "grid", "checkpoints", "sweep", "sharpening", "rollouts", "mixture", "scale", "seeds", "demonstrations"
    ] = "grid"
    scale: Literal[tuple(SCALES)] = "micro"  # size of the model (SCALES in model.py)
    # smoke: a minute; short: half an hour at micro; study: the confirmatory study of docs/PROTOCOL.md; paper: its size,
    # doses and rates, otherwise equal settings for all recipes (docs/paper.md).
    # Empty: smoke for --scale smoke, paper for olmo2-1b and 4b, else short
    budget: Literal["", "smoke", "short", "study", "paper"] = ""

    # Where, and how it is executed
    out: str = "out/excursion"  # folder of everything; another command for a cell that is there already is refused
    data: str = pretrain.WORLD  # folder of data/prepare.py; the default is the embedded world, built if absent
    # of `report`: this folder of records instead of OUT/records; of `run`: what has a record there is not made again
    records: str = ""
    format: Literal["list", "make", "slurm"] = "list"  # of `plan`: commands, a makefile, a script of sbatch commands
    launch: str = "python"  # of `plan`: what starts a stage, as the shell reads it: "torchrun --nproc_per_node=8" (docs/launch.md)
    sbatch: str = ""  # of `plan --format slurm`: options of every sbatch command: "--gres=gpu:8 --time=24:00:00"
    retry: bool = False  # of `run`: failed cells again
    jobs: int = 0  # cells side by side; 0: as many as there are cores, divided by --threads
    threads: int = 1  # of each cell (OMP_NUM_THREADS); with another number the results differ in their last bits

    # In place of the plan's own
    # checkpoints to start from, whatever the seed; the middle one by tokens is the main one
    bases: tuple[str, ...] = ()
    # STAGE "FLAGS", again for each stage: rl "--kl 0.01 --advantage mean" for all cells of pretrain, sft, rl, average or eval
    stage_flags: UseAppendAction[tuple[str, ...]] = ()

    # Which models are made
    seeds: tuple[int, ...] = ()  # of everything after pretraining
    # whose pretraining run a seed starts from: each its own; all that of the first seed (one); or its own at the
    # primary checkpoints and that of the first seed at the others (primary)
    pretraining: Literal["", "each", "one", "primary"] = ""
    tokens: str = ""  # of pretraining; empty: the scale's own
    mix: str = ""  # of pretraining: weights per source (pretrain.py --mix)
    # checkpoints to start from, as token counts: 2M,4M; auto: OUT/checkpoints.json, or spread over the run
    checkpoints: str = "auto"
    primary: str = ""  # the checkpoints that are worked on first; the last of these is the one of the other plans
    kept: int = 0  # further checkpoints that pretraining keeps, for --plan checkpoints to choose from; 1: none
    recipes: tuple[str, ...] = ()  # names in RECIPES (excursion/recipes.py); what they start from is added
    controls: Literal["", "none", "primary", "all"] = ""  # checkpoints at which --control_recipes run, after all else
    control_recipes: tuple[str, ...] = ()  # names in RECIPES

    # How each is trained
    pool: int = 0  # the first so many training questions, for every recipe
    # steps of RL and of averaging at which checkpoints are kept and judged; the last is the end
    points: tuple[int, ...] = ()
    points_t1: tuple[int, ...] = ()  # those of --points that are judged at temperature 1 too
    prompts: int = 0  # questions per RL step
    rollouts: int = 0  # answers per question
    sft_points: tuple[int, ...] = ()  # the same steps of SFT, whose model is the one that is best on validation
    gold_points: tuple[int, ...] = ()  # the same of Gold, which has many times the rows
    rows: int = 0  # of SFT per step
    average_rows: int = 0  # of the SFT side of averaging, and of its dose control
    max_new_tokens: int = 0  # longest answer, in training as in evaluation; 0: the stages' default

    # How each is judged
    val_limit: int = 0  # validation questions at each of --points, 8 answers each
    questions: tuple[str, ...] = ()  # test sets (eval.py --questions)
    limit: int = 0  # the first so many questions of each test set and items of each task; -1: all
    samples: int = 0  # answers per test question
    val_tokens: int = 0  # held-out tokens per source for bits per byte

    # What the other plans vary
    sweep: tuple[float, ...] = (1 / 3, 1.0, 3.0)  # sweep: factors of the learning rates
    factors: tuple[float, ...] = ()  # sharpening: factors of RL's learning rate
    side_steps: int = 0  # RL steps of rollouts, mixture, scale, seeds, demonstrations, and of sharpening at other rates
    rollout_counts: tuple[int, ...] = (5, 64)  # rollouts: answers per question
    bands: tuple[str, ...] = ("easy", "hard")  # rollouts: pass rates of the training questions (rl.py --difficulty)
    shares: tuple[float, ...] = (0.4, 0.65, 0.9)  # mixture: of the source math in --mix; empty: the world's
    scales: tuple[str, ...] = ()  # scale: sizes to compare; empty: --scale and the next smaller one
    rl_seeds: tuple[int, ...] = (1, 2, 3, 4, 5)  # seeds: of RL, from the same pretraining run
    solved: tuple[int, ...] = ()  # demonstrations: questions with solutions

    def idle(self) -> dict[str, str]:
        """flag → why this plan or verb does not read it; giving such a flag is an error (cli.refuse_idle)."""
        others = {flag: name for flag, name in ONLY.items() if name not in (self.plan, self.command)}
        idle = {flag: f"outside of `{name}`" for flag, name in others.items()}
        if self.format != "slurm":
            idle["sbatch"] = "outside of `plan --format slurm`"
        if self.plan == "scale":
            idle |= dict.fromkeys(("checkpoints", "primary"), "where each size is judged at its end")
        if self.bases:
            own = ("scale", "tokens", "mix", "checkpoints", "primary", "kept", "pretraining")
            idle |= dict.fromkeys(own, "beside --bases: nothing is pretrained")
        if self.plan in ("checkpoints", "mixture", "scale"):
            idle["bases"] = f"in the plan {self.plan}, which pretrains"
        return idle

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """recipe → its learning rates as flags, which --plan sweep multiplies."""
        return PAPER_RATES if self.budget == "paper" else RATES


# The recipes of a grid, the most telling first. "sft" is judged at its best named step, "sft_converged" at its end
MAIN = ("base", "base_0shot", "rl", "sft", "sft_rl", "parallel", "sft_dose", "sft_converged", "gold", "soup")
CONTROLS = ("gold_rl", "parallel_paper", "sft_converged_rl", "sft_dose_rl")
TEST = ("test_easy", "test_hard")  # of the study alone
TRIAL = ("explore_easy", "explore_hard")  # of everything else
# What the plans beside the grid vary, but for the paper's budget
SIDE = dict(factors=(1 / 3, 1.0, 2.0, 3.0), solved=(64, 256, 1000))
PAPER = {module.__name__: module.PRESETS["paper"] for module in (rl, sft, average, evaluation)}
PAPER_SFT_POINTS = (500, 1000, 2000, 4000, PAPER["sft"]["steps"])
BUDGETS = {
    "smoke": dict(
        seeds=(0,), pretraining="each", kept=1, tokens="40k",
        recipes=("base", "base_0shot", "rl", "sft", "parallel"), controls="none", control_recipes=CONTROLS, pool=16,
        points=(1, 2), prompts=2, rollouts=4, side_steps=2,
        sft_points=(2, 4), gold_points=(2, 4), rows=4, average_rows=4,
        val_limit=4, questions=TRIAL, limit=4, samples=8, val_tokens=2000, **SIDE,
    ),
    # `make excursion`, of 7 M tokens: half an hour on 2 idle cores (EXPERIMENTS.md: 22 to 26 minutes, 51 on a slow day)
    "short": dict(
        seeds=(0,), pretraining="each", kept=1,
        recipes=("base", "base_0shot", "rl", "sft", "sft_rl", "parallel"), controls="none", control_recipes=CONTROLS, pool=256,
        points=(16, 40), prompts=16, rollouts=16, side_steps=40,
        sft_points=(20, 40, 80), gold_points=(40, 80, 160), rows=32, average_rows=16,
        val_limit=48, questions=TRIAL, limit=48, samples=32, val_tokens=20_000, **SIDE,
    ),
    # 320 steps of 16 x 32 answers on 512 questions are the paper's 320 answers per question
    "study": dict(
        seeds=(1, 2, 3), pretraining="primary", kept=12,
        recipes=MAIN, controls="primary", control_recipes=CONTROLS, pool=512,
        points=(24, 48, 96, 160, 320), points_t1=(96, 320), prompts=16, rollouts=32, side_steps=320,
        sft_points=(40, 80, 160, 320, 640, 960), gold_points=(40, 80, 160, 320, 640, 960, 1920), rows=32, average_rows=16,
        val_limit=256, questions=TEST, limit=-1, samples=32, val_tokens=100_000, **SIDE,
    ),
    # parallel_paper is no control here: at the paper's rates it is `parallel` itself. Factor 40: the paper's rate of RL after SFT
    "paper": dict(
        seeds=(0, 1, 2, 3), pretraining="each", kept=1,
        recipes=MAIN, controls="all", control_recipes=("rl_dose", "gold_rl", "sft_converged_rl", "sft_dose_rl"), pool=80_000,
        points=(60, 120, 240, 400, 800, 1560), points_t1=(240, 1560), prompts=PAPER["rl"]["prompts"],
        rollouts=PAPER["rl"]["rollouts"], side_steps=800, max_new_tokens=PAPER["average"]["max_new_tokens"],
        sft_points=PAPER_SFT_POINTS, gold_points=PAPER_SFT_POINTS, rows=PAPER["sft"]["rows"], average_rows=PAPER["average"]["rows"],
        val_limit=1000, questions=("gsm8k",), limit=1000, samples=PAPER["eval"]["samples"], val_tokens=1_000_000,
        factors=(1 / 3, 1.0, 3.0, 40.0), solved=(5_000, 20_000, 80_000),
    ),
}  # fmt: skip
# Flags with which a stage fits a GPU of 80 GB at the size of --budget paper, and samples many rows at once: by
# `python -m tools.dry_run`, not measured on one
MEMORY = {"rl": dict(kv_gib=24), "average": dict(kv_gib=24, micro_tokens=8192), "eval": dict(kv_gib=24)}

# Learning rates where no OUT/rates.json says otherwise. RL's rate is that of every RL stage and, doubled, of
# averaging's RL side; sft_lr is of averaging's SFT side.
RATES = {"rl": dict(lr=1e-4), "sft": dict(lr=1e-4), "gold": dict(lr=1e-4), "parallel": dict(lr=2e-4, sft_lr=5e-5)}
PAPER_RATES = {
    "rl": dict(lr=PAPER["rl"]["lr"]),
    "sft": dict(lr=PAPER["sft"]["lr"]),
    "gold": dict(lr=PAPER["sft"]["lr"]),
    "parallel": dict(lr=PAPER["average"]["lr"], sft_lr=PAPER["average"]["sft_lr"]),
}

# The paper averages at RL's rate on both sides: that of its SFT side is a fortieth of SFT's
PAPER_COOLING = round(PAPER["sft"]["lr"] / PAPER["average"]["sft_lr"])

# Flags that only one plan or one verb reads
ONLY = {"sweep": "sweep", "shares": "mixture", "scales": "scale", "rollout_counts": "rollouts", "bands": "rollouts",
        "solved": "demonstrations", "rl_seeds": "seeds", "factors": "sharpening", "controls": "grid",
        "control_recipes": "grid", "retry": "run", "format": "plan", "launch": "plan"}  # fmt: skip


def resolve(config: Config) -> Config:
    """Fill what was left to the budget. UserError for what no plan can do, before hours are spent on its first part."""
    cli.refuse_idle(config)
    asked_t1 = config.points_t1
    if config.bases:
        config.bases = cli.expand("--bases", config.bases)
        config.scale, config.pretraining = read_bases(config.bases)[-1].scale, "one"
    paper = config.scale in ("olmo2-1b", "4b")
    config.budget = config.budget or ("smoke" if config.scale == "smoke" else "paper" if paper else "short")
    for name, value in BUDGETS[config.budget].items():
        setattr(config, name, getattr(config, name) or value)
    config.points_t1 = asked_t1 or tuple(point for point in config.points_t1 if point in config.points)
    config.tokens = config.tokens or pretrain.PRESETS[config.scale]["tokens"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    config.jobs = config.jobs or max(1, cores // max(1, config.threads))
    names = list(SCALES)
    config.scales = config.scales or tuple(dict.fromkeys((config.scale, names[max(0, names.index(config.scale) - 1)])))
    for name, right, why in rules(config):
        if not right:
            raise UserError(f"--{name} {_words(getattr(config, name))}".rstrip() + f": {why}")
    integer_weights(parse_mix(config.mix) or {"": 1})
    return config


def rules(c: Config) -> Iterator[tuple[str, bool, str]]:
    """(flag, is its value sound, what it has to be) of a config whose budget is filled in."""
    yield "out", bool(c.out), "name a folder"
    yield "records", not c.records or Path(c.records).is_dir(), "no such folder"
    for name in ("recipes", "control_recipes"):
        yield name, set(getattr(c, name)) <= set(RECIPES), f"recipes are {', '.join(RECIPES)}"
    for name in ("launch", "sbatch"):
        yield name, is_shell_words(getattr(c, name)), "a quote in it is not closed"
    yield "launch", bool(c.launch.strip()), "name a command, such as python"
    for name in "jobs threads pool prompts rollouts rows average_rows val_limit samples side_steps".split():
        yield name, getattr(c, name) >= 1, "at least 1"
    for name in ("points", "sft_points", "gold_points"):
        steps = getattr(c, name)
        rising = min(steps) >= 1 and list(steps) == sorted(set(steps))
        yield name, rising, "steps from 1 on, each larger than the one before"
    yield "points_t1", set(c.points_t1) <= set(c.points), f"not all of them are among --points {_words(c.points)}"
    for name in "seeds rl_seeds rollout_counts bands shares scales solved sweep factors".split():
        values = getattr(c, name)
        yield name, len(values) > 0 and len(set(values)) == len(values), "one or more values, each once"
    yield "solved", min(c.solved) >= 1, "at least 1"
    yield "shares", all(0 < share < 1 for share in c.shares), "between 0 and 1"
    yield "scales", set(c.scales) <= set(SCALES), f"scales are {', '.join(SCALES)}"
    bands = all(band in BANDS or re.fullmatch(r"[\d.]+:[\d.]+", band) for band in c.bands)
    yield "bands", bands, f"{', '.join(BANDS)} or LOW:HIGH"
    for name in ("sweep", "factors"):
        yield name, all(0 < factor < math.inf for factor in getattr(c, name)), "of a learning rate, above 0"
    context = min((g.context for g in read_bases(c.bases)), default=SCALES[c.scale]["context"])
    yield "max_new_tokens", c.max_new_tokens < context, f"less than the {context} tokens of {c.scale}'s context"
    folder = Path(c.data) / "questions"
    names = sorted(path.stem for path in folder.glob("*.jsonl")) or (list(SPLITS) if c.data == pretrain.WORLD else [])
    if names:  # else the first cell says that the data are missing
        known = all(name in names or name in HUB_QUESTIONS or Path(name).exists() for name in c.questions)
        yield "questions", known, f"neither files nor among {', '.join([*names, *HUB_QUESTIONS])}"


def is_shell_words(text: str) -> bool:
    """Can a shell split it into words?"""
    try:
        shlex.split(text)
    except ValueError:
        return False
    return True


def _words(values) -> str:
    """A value as a user types it."""
    return " ".join(map(str, values)) if isinstance(values, tuple) else str(values)
