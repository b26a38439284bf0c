"""Flags of the excursion and its budgets: how many seeds, steps, answers, and at which learning rates."""

import math
import os
from dataclasses import dataclass
from typing import ClassVar, Literal

from tyro.conf import Positional

import average
import cli
import eval as evaluation
import pretrain
import rl
import sft
from cli import UserError
from excursion.recipes import RECIPES
from model import SCALES


@dataclass
class Config:
    """Flags of `python -m excursion`. Zero or empty: the budget's own value (BUDGETS in excursion/config.py)."""

    RANGES: ClassVar[dict] = {"limit": "[-1, 2147483647]", "rollout_counts": cli.RANGES["rollouts"]}

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

    @property
    def rates(self) -> dict[str, dict[str, float]]:
        """recipe → its learning rates as flags, which --plan sweep multiplies."""
        return PAPER_RATES if self.budget == "paper" else RATES


# The most telling first. "sft" is judged at its best named step, "sft_converged" at its end
MAIN = ("base", "base_0shot", "rl", "sft", "sft_rl", "parallel", "sft_dose", "sft_converged", "gold", "soup")
CONTROLS = ("gold_rl", "parallel_paper", "sft_converged_rl", "sft_dose_rl")
TEST = ("test_easy", "test_hard")  # of the study alone
TRIAL = ("explore_easy", "explore_hard")  # of everything else
PAPER = {module.__name__: module.PRESETS["paper"] for module in (rl, sft, average, evaluation)}
PAPER_SFT_POINTS = (500, 1000, 2000, 4000, PAPER["sft"]["steps"])
BUDGETS = {
    "smoke": dict(
        seeds=(0,), pretraining="each", kept=1, tokens="40k",
        recipes=("base", "base_0shot", "rl", "sft", "parallel"), controls="none", control_recipes=CONTROLS, pool=16,
        points=(1, 2), prompts=2, rollouts=4, side_steps=2,
        sft_points=(2, 4), gold_points=(2, 4), rows=4, average_rows=4,
        val_limit=4, questions=TRIAL, limit=4, samples=8, val_tokens=2000,
    ),
    # Of 7 M tokens, 30 minutes on 2 idle cores at most: 0.6 core-hours, 22 minutes on 2 cores, by the estimate of SECONDS
    "short": dict(
        seeds=(0,), pretraining="each", kept=1,
        recipes=("base", "base_0shot", "rl", "sft", "sft_rl", "parallel"), controls="none", control_recipes=CONTROLS, pool=256,
        points=(16, 40), prompts=16, rollouts=16, side_steps=40,
        sft_points=(20, 40, 80), gold_points=(40, 80, 160), rows=32, average_rows=16,
        val_limit=48, questions=TRIAL, limit=48, samples=32, val_tokens=20_000,
    ),
    # 320 steps of 16 x 32 answers on 512 questions are the paper's 320 answers per question
    "study": dict(
        seeds=(1, 2, 3), pretraining="primary", kept=12,
        recipes=MAIN, controls="primary", control_recipes=CONTROLS, pool=512,
        points=(24, 48, 96, 160, 320), points_t1=(96, 320), prompts=16, rollouts=32, side_steps=320,
        sft_points=(40, 80, 160, 320, 640, 960), gold_points=(40, 80, 160, 320, 640, 960, 1920), rows=32, average_rows=16,
        val_limit=256, questions=TEST, limit=-1, samples=32, val_tokens=100_000,
    ),
    "paper": dict(
        seeds=(0, 1, 2, 3), pretraining="each", kept=1,
        recipes=MAIN, controls="all", control_recipes=("rl_dose", *CONTROLS), pool=80_000,
        points=(60, 120, 240, 400, 800, 1560), points_t1=(240, 1560), prompts=PAPER["rl"]["prompts"],
        rollouts=PAPER["rl"]["rollouts"], side_steps=800, max_new_tokens=PAPER["average"]["max_new_tokens"],
        sft_points=PAPER_SFT_POINTS, gold_points=PAPER_SFT_POINTS, rows=PAPER["sft"]["rows"], average_rows=PAPER["average"]["rows"],
        val_limit=1000, questions=TEST, limit=1000, samples=PAPER["eval"]["samples"], val_tokens=1_000_000,
    ),
}  # fmt: skip

# Learning rates where no OUT/rates.json says otherwise. RL's rate is that of every RL stage and, doubled, of averaging's RL
# side; sft_lr is of averaging's SFT side.
RATES = {"rl": dict(lr=1e-4), "sft": dict(lr=1e-4), "gold": dict(lr=1e-4), "parallel": dict(lr=2e-4, sft_lr=5e-5)}
PAPER_RATES = {
    "rl": dict(lr=PAPER["rl"]["lr"]),
    "sft": dict(lr=PAPER["sft"]["lr"]),
    "gold": dict(lr=PAPER["sft"]["lr"]),
    "parallel": dict(lr=PAPER["average"]["lr"], sft_lr=PAPER["average"]["sft_lr"]),
}


def resolve(config: Config) -> Config:
    """Fill what was left to the budget. UserError for what no plan can do."""
    paper = config.scale in ("olmo2-1b", "4b")
    config.budget = config.budget or ("smoke" if config.scale == "smoke" else "paper" if paper else "short")
    for name, value in BUDGETS[config.budget].items():
        setattr(config, name, getattr(config, name) or value)
    config.tokens = config.tokens or pretrain.PRESETS[config.scale]["tokens"]
    config.jobs = config.jobs or max(1, _cores() // max(1, config.threads))

    def refuse_unless(right: bool, name: str, why: str) -> None:
        if not right:
            value = getattr(config, name)
            words = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"--{name} {words}: {why}")

    for name in ("recipes", "control_recipes"):
        refuse_unless(set(getattr(config, name)) <= set(RECIPES), name, f"recipes are {', '.join(RECIPES)}")
    refuse_unless(set(config.scales) <= set(SCALES), "scales", f"scales are {', '.join(SCALES)}")
    for name in "jobs threads pool prompts rollouts rows average_rows val_limit samples side_steps".split():
        refuse_unless(getattr(config, name) >= 1, name, "at least 1")
    for name in ("points", "sft_points", "gold_points"):
        steps = getattr(config, name)
        rising = min(steps) >= 1 and list(steps) == sorted(set(steps))
        refuse_unless(rising, name, "steps from 1 on, each larger than the one before")
    once = len(set(config.seeds)) == len(config.seeds) and min(config.seeds) >= 0
    refuse_unless(once, "seeds", "each once, none negative")
    refuse_unless(all(0 < share < 1 for share in config.shares), "shares", "between 0 and 1")
    for name in ("sweep", "factors"):
        factors = getattr(config, name)
        positive = len(factors) > 0 and all(0 < factor < math.inf for factor in factors)
        refuse_unless(positive, name, "of a learning rate, above 0")
    return config


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
