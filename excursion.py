"""The whole experiment: every recipe from every kept checkpoint, evaluated, tabled, drawn.

    python excursion.py --scale micro                        # run and report: half an hour on 2 cores
    python excursion.py plan --scale micro                   # the same, as a list of commands (--format make, slurm)
    python excursion.py run --plan sweep                     # choose learning rates on validation questions
    python excursion.py run --budget study --base_seed 0     # 3 seeds from one pretraining run: 1.5 hours (estimated)
    python excursion.py run --budget long                    # 3 seeds, longer RL: some 6 hours on 2 cores (estimated)
    python excursion.py report --records results/excursion   # tables and figures again, from committed records alone

A *cell* is one ordinary command of one stage: it makes one file, and may start when the files that it needs are there.
`run` executes the cells whose file is missing, the most telling comparison first (RL, SFT and parallel averaging at the
middle checkpoint), several at a time with one thread each, and may be killed and started again at any moment. A cell that
fails is reported with its log and left alone until --retry. What lies where:

    OUT/seed0/pretrain/run/                  a stage's own files (checkpoints, metrics); beside it
    OUT/seed0/pretrain/train.log, .json      what it printed; its command, exit code and seconds
    OUT/seed0/4.00M/sft/run/, train.log ...  the same
    OUT/seed0/4.00M/sft/best.pt              the kept checkpoint with the best validation pass@1 (`excursion.py choose`)
    OUT/seed0/4.00M/sft/eval/best.json       its evaluation record
    OUT/records/seed0-4.00M-sft.json         the same, with .cell.json beside it: recipe, seed, curve, samples, seconds
    OUT/report.md, report.html, figures/     made by report.py from OUT/records alone

The recipes of a plan are a controlled comparison: same questions, prompts × rollouts a step, response length, no KL, one
RL budget; SFT is judged where its validation pass@1 was best (`sft`) and at its end (`sft_converged`); beside parallel
averaging stand SFT alone and RL alone at its dose (as many steps, half the learning rate). Learning rates are those of
OUT/rates.json, which `--plan sweep` writes, or RATES below. Test questions choose nothing.

Other plans: `rollouts` (few against many answers a question, easy and hard), `mixture` (math share of pretraining),
`scale` (two sizes at equal FLOPs), `seeds` (RL from the same checkpoint with other seeds), `demonstrations` (how many
questions have a solution: where does RL overtake SFT?). They share OUT, and so the cells that they have in common.
"""

import gzip
import json
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from tyro.conf import Positional

import pretrain
import report
from cli import UserError, cli
from data.tokenizer import load_tokenizer
from files import replacing_path, write_text
from model import SCALES, config_of, train_flops
from runner import Cell, Runner, read_state

ROOT = Path(__file__).parent
CONTROLS = ("sft_dose", "rl_dose")


@dataclass
class Config:
    """Flags of excursion.py. Zero or empty: the budget's own value (BUDGETS in excursion.py)."""

    # plan: print the commands; run: execute what is missing, then report; report: tables and figures of what is there;
    # choose: (a cell of a plan) link the kept checkpoint of OUT/run that is best on validation to OUT/best.pt
    command: Positional[Literal["plan", "run", "report", "choose"]] = "run"
    plan: Literal["grid", "sweep", "rollouts", "mixture", "scale", "seeds", "demonstrations"] = "grid"  # see above
    scale: Literal[tuple(SCALES)] = "micro"  # size of the model (SCALES in model.py)
    # smoke: seconds; short: half an hour at micro; study: 3 seeds, as in EXPERIMENTS.md; long: longer RL; paper: its settings.
    # Empty: smoke for --scale smoke, paper for olmo2-1b and 4b, else short
    budget: Literal["", "smoke", "short", "study", "long", "paper"] = ""
    out: str = "out/excursion"  # folder of everything; another command for a cell that is there already is refused
    data: str = pretrain.WORLD  # folder of data/prepare.py; the default is the embedded world, built if absent
    format: Literal["list", "make", "slurm"] = "list"  # of `plan`: make -f -j 8, or a script of sbatch commands
    records: str = ""  # of `report`: this folder of records instead of OUT/records
    retry: bool = False  # run failed cells again
    jobs: int = 0  # cells side by side; 0: as many as there are cores, divided by --threads
    threads: int = 1  # of each cell (OMP_NUM_THREADS); another number adds up in another order
    seeds: tuple[int, ...] = ()  # of everything
    base_seed: int = -1  # of one pretraining run that all seeds start from; -1: each seed has its own
    checkpoints: str = "auto"  # M_t: token counts such as 2M,4M; auto: at half, 80% and all of pretraining
    tokens: str = ""  # of pretraining
    mix: str = ""  # of pretraining: weights per source (pretrain.py --mix)
    recipes: tuple[str, ...] = ()  # names in RECIPES; what they start from is added
    controls: Literal["", "none", "middle", "all"] = ""  # checkpoints at which the controls run
    control_recipes: tuple[str, ...] = CONTROLS  # which: the dose controls, and combined, interleaved, soup if wanted
    pool: int = 0  # the first so many training questions, for every recipe
    rl_steps: int = 0  # of RL and of averaging
    prompts: int = 0  # questions per RL step
    rollouts: int = 0  # answers per question
    sft_steps: int = 0  # of SFT
    rows: int = 0  # of SFT per step, and of the SFT side of averaging
    points: int = 0  # evaluations on validation questions during a training run, where SFT may be stopped
    val_limit: int = 0  # validation questions of these, 8 answers each
    max_new_tokens: int = 0  # longest answer, in training as in evaluation; 0: the stages' default
    questions: tuple[str, ...] = ("test_easy", "test_hard")  # test sets (eval.py --questions)
    limit: int = 0  # the first so many questions of each test set and items of each task; -1: all
    samples: int = 0  # answers per test question
    val_tokens: int = 0  # held-out tokens per source for bits per byte
    shares: tuple[float, ...] = (0.4, 0.65, 0.9)  # mixture: math shares of the world
    scales: tuple[str, ...] = ()  # scale: sizes to compare; empty: --scale and the next smaller one
    rollout_counts: tuple[int, ...] = (5, 64)  # rollouts: answers per question
    bands: tuple[str, ...] = ("easy", "hard")  # rollouts: pass rates of the training questions (rl.py --band)
    solved: tuple[int, ...] = (64, 256, 1000)  # demonstrations: questions with solutions
    rl_seeds: tuple[int, ...] = (0, 1, 2, 3, 4)  # seeds: of RL, from the same pretraining run


MAIN = ("base", "base_0shot", "rl", "sft", "parallel", "sft_rl", "sft_converged", "gold", "gold_rl")
BUDGETS = {
    "smoke": dict(
        tokens="40k", seeds=(0,), recipes=MAIN[:5], controls="none", pool=16, rl_steps=2, prompts=2, rollouts=4, sft_steps=4,
        rows=4, points=2, val_limit=4, limit=4, samples=8, val_tokens=2000,
    ),
    "short": dict(
        seeds=(0,), recipes=MAIN, controls="middle", pool=512, rl_steps=40, prompts=16, rollouts=16, sft_steps=160,
        rows=32, points=5, val_limit=64, limit=96, samples=32, val_tokens=50_000,
    ),
    "study": dict(
        seeds=(0, 1, 2), recipes=(*MAIN[:-1], "sft_converged_rl"), controls="middle", pool=512, rl_steps=48, prompts=16,
        rollouts=16, sft_steps=400, rows=32, points=5, val_limit=128, limit=128, samples=32, val_tokens=50_000,
    ),
    "long": dict(
        seeds=(0, 1, 2), recipes=(*MAIN, "sft_converged_rl"), controls="all", pool=512, rl_steps=160, prompts=16, rollouts=32,
        sft_steps=400, rows=32, points=8, val_limit=256, limit=-1, samples=32, val_tokens=50_000,
    ),
    "paper": dict(
        seeds=(0, 1, 2, 3), recipes=(*MAIN, "sft_converged_rl"), controls="all", pool=80_000, rl_steps=1560,
        prompts=512, rollouts=32, sft_steps=9500, rows=512, points=10, val_limit=1000, limit=1000, samples=32,
        val_tokens=1_000_000, max_new_tokens=512,
    ),
}  # fmt: skip

# Learning rates where no OUT/rates.json says otherwise: the winners of --plan sweep at micro, on validation questions
# (EXPERIMENTS.md). sft_lr is of the SFT side of averaging.
RATES = {"rl": dict(lr=1e-4), "sft": dict(lr=1e-4), "parallel": dict(lr=1e-4, sft_lr=3e-4)}
PAPER_RATES = {"rl": dict(lr=1e-6), "sft": dict(lr=4e-5), "parallel": dict(lr=1e-6, sft_lr=1e-6)}
SWEEP = (1 / 3, 1.0, 3.0)  # factors of these


@dataclass
class Recipe:
    """How a model is made from a base checkpoint."""

    stage: str  # whose command; empty: the base model itself
    after: str = ""  # starts from this recipe's model; empty: from the base
    flags: dict = field(default_factory=dict)
    rates: str = ""  # has the learning rates of this recipe; empty: its own
    dose: float = 1.0  # times this
    judged: str = "last"  # last checkpoint of the run, or the best one on validation
    run: str = ""  # no training of its own: judges the run of this recipe


RECIPES = {
    "base": Recipe("", flags=dict(shots=8)),
    "base_0shot": Recipe("", flags=dict(shots=0)),
    "rl": Recipe("rl"),
    "sft": Recipe("sft", judged="best", flags=dict(solutions="one")),
    "parallel": Recipe("average", flags=dict(mode="parallel", solutions="one")),
    "sft_rl": Recipe("rl", after="sft", rates="rl"),
    "sft_converged": Recipe("sft", run="sft"),
    "sft_converged_rl": Recipe("rl", after="sft_converged", rates="rl"),
    "gold": Recipe("sft", rates="sft", judged="best", flags=dict(solutions="all")),
    "gold_rl": Recipe("rl", after="gold", rates="rl"),
    "sft_dose": Recipe("sft", rates="parallel", dose=0.5, flags=dict(solutions="one")),
    "rl_dose": Recipe("rl", rates="parallel", dose=0.5),
    "combined": Recipe("average", rates="parallel", flags=dict(mode="combined", solutions="one")),
    "interleaved": Recipe("average", rates="parallel", flags=dict(mode="interleaved", solutions="one")),
    "soup": Recipe("average", after="rl", flags=dict(mode="soup")),  # and sft's best
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
    for name in (
        "jobs",
        "threads",
        "pool",
        "rl_steps",
        "prompts",
        "rollouts",
        "sft_steps",
        "rows",
        "points",
        "val_limit",
        "samples",
    ):
        if getattr(config, name) < 1:
            raise UserError(f"--{name} {getattr(config, name)}: at least 1")
    if len(set(config.seeds)) < len(config.seeds) or min(config.seeds) < 0:
        raise UserError(f"--seeds {' '.join(map(str, config.seeds))}: each once, none negative")
    if not all(0 < share < 1 for share in config.shares):
        raise UserError(f"--shares {' '.join(map(str, config.shares))}: between 0 and 1")
    for name in config.scales:
        if name not in SCALES:
            raise UserError(f"--scales {name}: none of {', '.join(SCALES)}")
    return config


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


# ---------------------------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Base:
    """A checkpoint M_t to start from."""

    folder: str  # seed0/4.00M
    checkpoint: Path
    tokens: int
    seed: int
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


class Builder:
    """Collects the cells of a plan; a cell that is asked for twice is one."""

    def __init__(self, config: Config, rates: dict[str, float]):
        self.config, self.rates = config, rates  # rates: recipe → factor
        self.out = Path(config.out)
        self.cells: dict[str, Cell] = {}

    def add(self, cell: Cell) -> Cell:
        assert self.cells.setdefault(cell.name, cell).command == cell.command, cell.name
        return self.cells[cell.name]

    def pretrain(
        self, seed: int, scale: str = "", tokens: str = "", mix: str = "", variant: dict | None = None
    ) -> list[Base]:
        """A pretraining run and its checkpoints, the first to be worked on (the middle one) first."""
        c, variant = self.config, variant or {}
        scale, tokens = scale or c.scale, tokens or c.tokens
        preset = pretrain.PRESETS[scale]
        total, per_step = pretrain.parse_count(tokens), preset["batch"] * preset["seq_len"]
        steps = max(1, round(total / per_step))
        counts = [total * fraction for fraction in (0.5, 0.8, 1.0)]
        if c.checkpoints != "auto":
            counts = [pretrain.parse_count(part.strip()) for part in c.checkpoints.split(",")]
        if max(counts) > total + per_step:
            raise UserError(f"--checkpoints {c.checkpoints}: beyond the {tokens} tokens of pretraining (--tokens)")
        save_at = [f"{count / 1e3:g}k" for count in sorted(counts)]
        at = sorted({pretrain.parse_save_at(text, steps, per_step)[0] for text in save_at})
        source = seed if c.base_seed < 0 else c.base_seed
        place, folder = ("/".join(filter(None, (f"seed{s}", label_of(variant)))) for s in (source, seed))
        run = self.out / place / "pretrain/run"
        flags = dict(scale=scale, data=c.data, seed=source, tokens=tokens, save_at=",".join(save_at), eval_every=0)
        flags |= dict(mix=mix or c.mix) if mix or c.mix else {}
        flags |= dict(save_every=max(20, steps // 20), out=run)
        paths = {step: run / f"step_{step:07d}.pt" for step in sorted({*at, steps})}
        command = [script("pretrain"), *flags_of(flags)]
        self.add(
            Cell(f"{place}/pretrain/train", f"pretrain {scale}", command, list(paths.values()), [], 3 * total, run)
        )
        bases = []
        for step in at:
            seen = step * per_step
            bases.append(Base(f"{folder}/{count_name(seen)}", paths[step], seen, seed, scale, variant))
        middle = len(bases) // 2
        return [bases[middle], *bases[:middle], *bases[middle + 1 :]]

    def rates_of(self, recipe: str) -> dict[str, float]:
        """Learning rates as flags; those of a dose control are those of its side of the average."""
        r = RECIPES[recipe]
        name = r.rates or recipe
        rates = (PAPER_RATES if self.config.budget == "paper" else RATES)[name]
        rates = {key: rate * r.dose * self.rates.get(name, 1.0) for key, rate in rates.items()}
        if r.stage == "average":
            return rates
        return {"lr": rates["sft_lr"] if r.stage == "sft" and "sft_lr" in rates else rates["lr"]}

    def train(self, recipe: str, base: Base, start: Path | None = None, **changes) -> Path:
        """The cells that make a recipe's model, with those of what it starts from (unless `start` is given); the
        model's path. `changes` are flags that differ from the plan's, and `needs`, further files that must be there."""
        c, r = self.config, RECIPES[recipe]
        if not r.stage:
            return base.checkpoint
        name = f"{base.folder}/{r.run or recipe}"
        folder, run = self.out / name, self.out / name / "run"
        steps = changes.get("steps", c.sft_steps if r.stage == "sft" and r.dose == 1 else c.rl_steps)
        last = run / f"step_{steps:07d}.pt"
        if r.run:
            self.train(r.run, base, start, **changes)
            return last
        init = start or (self.train(r.after, base, **changes) if r.after else base.checkpoint)
        flags = dict(init=init, data=c.data, seed=base.seed)
        if r.flags.get("mode") == "soup":
            other = self.train("sft", base, **changes)
            command = [script("average"), *flags_of(flags | r.flags | dict(other=other, out=run))]
            self.add(Cell(f"{name}/train", "soup", command, [run / "last.pt"], [init, other], 1e5))
            return run / "last.pt"
        flags |= dict(limit=c.pool, steps=steps) | r.flags | self.rates_of(recipe)
        cost = 0.0
        if r.stage != "sft":
            flags |= dict(prompts=c.prompts, rollouts=c.rollouts, kl=0)
            cost += 4 * 45 * steps * c.prompts * changes.get("rollouts", c.rollouts)
            if c.max_new_tokens:
                flags |= dict(max_new_tokens=c.max_new_tokens)
        if r.stage != "rl":
            flags |= dict(rows=c.rows)
            cost += 3 * 100 * steps * c.rows
        every = max(1, math.ceil(steps / c.points))
        flags |= dict(
            eval_every=every, eval_limit=c.val_limit, eval_samples=8, eval_tokens=0, eval_tasks=(), save_every=every
        )
        cost += 45 * 8 * c.val_limit * (1 + math.ceil(steps / every))
        if r.judged == "best":
            flags |= dict(save_at=",".join(str(s) for s in range(every, steps, every)) or str(steps))
        flags |= {k: v for k, v in changes.items() if k != "needs"} | dict(out=run)
        command = [script(r.stage), *flags_of(flags)]
        needs = [init, *changes.get("needs", ())]
        self.add(Cell(f"{name}/train", r.stage, command, [last], needs, cost, run))
        if r.judged == "last":
            return last
        best = folder / "best.pt"
        self.add(
            Cell(f"{name}/choose", "choose", [script("excursion"), "choose", "--out", str(folder)], [best], [last], 1e5)
        )
        return best

    def evaluate(self, recipe: str, base: Base, **changes) -> None:
        """All cells of a recipe, its evaluation on test questions included."""
        c, r = self.config, RECIPES[recipe]
        model = self.train(recipe, base, **changes)
        home, seed = base.folder, base.seed
        if not r.stage and c.base_seed >= 0:  # all seeds start from this very model: one evaluation for all
            home, seed = home.replace(f"seed{seed}", f"seed{c.base_seed}", 1), c.base_seed
        folder = self.out / home / (r.run or recipe) / "eval"
        flags = dict(checkpoint=model, data=c.data, questions=c.questions, samples=c.samples, limit=max(0, c.limit))
        flags |= dict(val_tokens=c.val_tokens)
        flags |= dict(k=tuple(k for k in (1, 8, 32) if k <= c.samples) or (c.samples,), shots=r.flags.get("shots", 0))
        flags |= dict(max_new_tokens=c.max_new_tokens) if c.max_new_tokens else {}
        command = [script("eval"), *flags_of(flags | dict(out=folder))]
        cost = 45.0 * len(c.questions) * (c.limit if c.limit > 0 else 256) * c.samples + 2e5
        meta = dict(
            recipe=recipe,
            start=r.after or ("base" if r.stage else ""),
            seed=seed,
            seeds=[],
            tokens=base.tokens,
            scale=base.scale,
        )
        meta |= dict(variant=base.variant, budget=c.budget)
        name = f"{home}/{r.run or recipe}/eval_{model.stem}"
        cell = self.add(Cell(name, "eval", command, [folder / f"{model.stem}.json"], [model], cost, meta=meta))
        cell.meta["seeds"] = sorted({*cell.meta["seeds"], base.seed})  # that this evaluation stands for


def count_name(tokens: float) -> str:
    """3999744 → "4.00M", always with one unit, so that names sort."""
    return f"{tokens / 1e6:.2f}M" if tokens < 1e9 else f"{tokens / 1e9:.2f}B"


def plan_grid(b: Builder) -> None:
    c = b.config
    for i, bases in enumerate(zip(*(b.pretrain(seed) for seed in c.seeds), strict=True)):  # checkpoint by checkpoint
        controls = c.control_recipes if c.controls == "all" or (c.controls == "middle" and i == 0) else ()
        for base in bases:
            for recipe in (*c.recipes, *controls):
                b.evaluate(recipe, base)


def plan_sweep(b: Builder) -> None:
    """Every recipe that has a rate of its own, at one checkpoint and seed; nothing is judged on test questions."""
    base = b.pretrain(b.config.seeds[0])[0]
    for recipe in [r for r in RATES if r in b.config.recipes]:
        for factor in SWEEP:
            b.rates = {recipe: factor}
            b.train(recipe, vary(base, rate=factor))


def vary(base: Base, **variant) -> Base:
    """The same checkpoint for cells that differ in something else than the recipe."""
    label, place = label_of(variant), base.folder.rsplit("/", 1)
    return Base(
        f"{place[0]}/{label}/{place[1]}", base.checkpoint, base.tokens, base.seed, base.scale, base.variant | variant
    )


def plan_rollouts(b: Builder) -> None:
    """Few and many answers a question, on easy and on hard questions, as many answers in total."""
    c = b.config
    for seed in c.seeds:
        base = b.pretrain(seed)[0]
        b.evaluate("base_0shot", base)
        folder = b.out / base.folder / "difficulty"
        rates = folder / f"{base.checkpoint.stem}.difficulty.json"
        flags = dict(checkpoint=base.checkpoint, data=c.data, limit=c.pool, out=folder)
        flags |= dict(max_new_tokens=c.max_new_tokens) if c.max_new_tokens else {}
        command = [script("eval"), "--difficulty", *flags_of(flags)]
        b.add(Cell(f"{base.folder}/difficulty/eval", "eval", command, [rates], [base.checkpoint], 45.0 * 64 * c.pool))
        for band in c.bands:
            for n in c.rollout_counts:
                steps = max(
                    1, round(c.rl_steps * math.sqrt(max(c.rollout_counts) / n))
                )  # neither equal steps nor equal FLOPs
                b.evaluate(
                    "rl",
                    vary(base, band=band, n=n),
                    rollouts=n,
                    steps=steps,
                    difficulty=rates,
                    band=band,
                    needs=[rates],
                )


def plan_mixture(b: Builder) -> None:
    for seed in b.config.seeds:
        for share in b.config.shares:
            for base in b.pretrain(seed, mix=f"general={1 - share:g},math={share:g}", variant={"math": share}):
                for recipe in ("base", "base_0shot", "rl"):
                    b.evaluate(recipe, base)


def plan_scale(b: Builder) -> None:
    """Sizes at equal pretraining FLOPs: those of --scale for --tokens."""
    c, names = b.config, list(SCALES)
    scales = c.scales or (c.scale, names[max(0, names.index(c.scale) - 1)])
    vocab = (
        100_352 if c.budget == "paper" else load_tokenizer("world").padded_vocab_size
    )  # cl100k, without its download

    def per_token(scale: str) -> float:
        return train_flops(config_of(scale, vocab), pretrain.PRESETS[scale]["seq_len"])

    flops = per_token(c.scale) * pretrain.parse_count(c.tokens)
    for seed in c.seeds:
        for scale in scales:
            tokens = f"{flops / per_token(scale) / 1e3:.0f}k"
            for base in b.pretrain(seed, scale, tokens, variant={"size": scale}):
                for recipe in ("base", "base_0shot", "rl"):
                    b.evaluate(recipe, base)


def plan_seeds(b: Builder) -> None:
    """RL from the same checkpoints with other seeds of data order and sampling."""
    for base in b.pretrain(b.config.seeds[0]):
        b.evaluate("base_0shot", base)
        for seed in b.config.rl_seeds:
            b.evaluate("rl", vary(base, rlseed=seed), seed=seed)


def plan_demonstrations(b: Builder) -> None:
    for seed in b.config.seeds:
        base = b.pretrain(seed)[0]
        b.evaluate("base_0shot", base)
        for count in b.config.solved:
            for recipe in ("sft", "rl"):
                b.evaluate(recipe, vary(base, solved=count), limit=count)


PLANS = {"grid": plan_grid, "sweep": plan_sweep, "rollouts": plan_rollouts, "mixture": plan_mixture,
         "scale": plan_scale, "seeds": plan_seeds, "demonstrations": plan_demonstrations}  # fmt: skip


def make_plan(config: Config) -> list[Cell]:
    """The cells of --plan, each after those that it needs, the most telling ones first."""
    rates = {}
    path = Path(config.out) / "rates.json"
    if path.exists() and config.plan != "sweep":
        try:
            rates = {recipe: float(entry["factor"]) for recipe, entry in json.loads(path.read_text()).items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"{path}: not what --plan sweep writes ({error!r}); delete it or sweep again") from None
    builder = Builder(config, rates)
    PLANS[config.plan](builder)
    return list(builder.cells.values())


def record_name(cell: Cell) -> str:
    """seed0/4.00M/sft/eval_last → seed0-4.00M-sft_converged"""
    return "-".join([*cell.name.split("/")[:-2], cell.meta["recipe"]])


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


def print_plan(config: Config, cells: list[Cell]) -> None:
    """The commands in order, as a list, as a makefile, or as sbatch commands."""
    if config.format == "list":
        for cell in cells:
            print(shlex.join(["python", *cell.command]))
    elif config.format == "make":
        print("all:", *(cell.result for cell in cells))
        for cell in cells:
            print(f"\n{' '.join(map(str, cell.results))}{' &' * (len(cell.results) > 1)}:", *cell.needs)
            print("\t" + shell(cell, config).replace("$", "$$"))
    else:
        print("#!/bin/sh\nset -e")
        maker = {path: i for i, cell in enumerate(cells) for path in cell.results}
        for i, cell in enumerate(cells):
            after = "".join(f":$j{maker[path]}" for path in cell.needs)
            depends = f"--dependency=afterok{after} " if after else ""
            name = f"--job-name={cell.name} --parsable --requeue"
            print(f"j{i}=$(sbatch {name} {depends}--wrap {shlex.quote(shell(cell, config))})")


# ---------------------------------------------------------------------------------------------------------------------
# Run it
# ---------------------------------------------------------------------------------------------------------------------


def choose(folder: Path) -> Path:
    """FOLDER/best.pt: the kept checkpoint of FOLDER/run with the best validation pass@1; of equals the earliest."""
    try:
        lines = [json.loads(line) for line in (folder / "run/metrics.jsonl").read_text().splitlines()]
        score = {int(line["step"]): float(line["val_pass@1"]) for line in lines if "val_pass@1" in line}
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise UserError(f"{folder / 'run/metrics.jsonl'}: no metrics of a run ({error})") from None
    paths = {step: folder / f"run/step_{step:07d}.pt" for step in score}
    paths = {step: path for step, path in paths.items() if path.exists()}
    if not paths:
        raise UserError(f"{folder / 'run'}: no kept checkpoint with a validation pass@1 (--save_at, --eval_every)")
    step = max(paths, key=lambda s: (score[s], -s))
    with replacing_path(folder / "best.pt") as part:
        try:
            os.link(paths[step], part)
        except OSError:  # a file system without links
            shutil.copyfile(paths[step], part)
    print(f"validation pass@1 by step {score}; {folder / 'best.pt'} is step {step}")
    return paths[step]


def write_rates(config: Config, cells: list[Cell]) -> None:
    """OUT/rates.json from a finished sweep: for each recipe the factor with the best validation pass@1 (of the run's
    last evaluation; where a run is stopped at its best one, of that)."""
    scores: dict[str, dict[float, float]] = {}
    for cell in cells:
        if cell.run is None or cell.kind.startswith("pretrain"):
            continue
        recipe = cell.name.split("/")[-2]
        factor = min(SWEEP, key=lambda f: abs(f - float(cell.name.split("/rate")[1].split("/")[0])))  # noqa: B023
        lines = [json.loads(line) for line in (cell.run / "metrics.jsonl").read_text().splitlines()]
        values = [line["val_pass@1"] for line in lines if "val_pass@1" in line and line["step"] > 0]
        scores.setdefault(recipe, {})[factor] = max(values) if RECIPES[recipe].judged == "best" else values[-1]
    table = {}
    for recipe, by_factor in scores.items():
        factor = max(by_factor, key=lambda f: (by_factor[f], -abs(math.log(f))))  # of equals the one next to 1
        rates = {k: v * factor for k, v in (PAPER_RATES if config.budget == "paper" else RATES)[recipe].items()}
        table[recipe] = {"factor": factor, **rates, "validation pass@1 by factor": by_factor}
    write_text(Path(config.out) / "rates.json", json.dumps(table, indent=1) + "\n")
    print(f"wrote {Path(config.out) / 'rates.json'}: " + ", ".join(f"{r} x {e['factor']:g}" for r, e in table.items()))


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------

CURVE = ("reward", "length", "entropy", "val_pass@1", "val_pass@8", "sft_loss", "flops")
SHOWN = 3  # questions of each test set whose samples go into the record, 4 samples each


def thin_curve(lines: Iterable[dict], points: int = 100) -> dict[str, list]:
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
    """Copy what the report needs of every evaluated cell to OUT/records."""
    folder = Path(config.out) / "records"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if not cell.meta or not cell.result.exists():
            continue
        name, home = record_name(cell), cell.result.parent.parent
        metrics, curve = home / "run/metrics.jsonl", {}
        if metrics.exists():
            curve = thin_curve(map(json.loads, metrics.read_text().splitlines()))
        with gzip.open(cell.result.with_suffix(".jsonl.gz"), "rt") as file:
            rows = [json.loads(line) for line in file]
        samples = []
        for label in dict.fromkeys(row["set"] for row in rows):
            for row in [r for r in rows if r["set"] == label][:SHOWN]:
                samples.append({**row, "samples": row["samples"][:4]})
        paths = (Path(config.out) / f"{cell.name}.json", home / "train.json")
        seconds = [(read_state(path) or {}).get("seconds") for path in paths]
        meta = {"name": name, **cell.meta, "command": training_command(cell, cells), "curve": curve, "samples": samples}
        meta |= {"seconds": {"evaluation": seconds[0], "training": seconds[1]}}
        write_text(folder / f"{name}.json", cell.result.read_text())
        write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
    return folder


def training_command(cell: Cell, cells: list[Cell]) -> str:
    """The command that made the evaluated model."""
    home = cell.name.rsplit("/", 1)[0]
    made = [c for c in cells if c.run and c.name == f"{home}/train"]
    return shlex.join(["python", *(made or [cell])[0].command])


def main(config: Config) -> None:
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
    missing = Runner(cells, config.out, config.jobs, config.threads, config.retry)() if config.command == "run" else 0
    if config.plan == "sweep":
        if not missing:
            write_rates(config, cells)
    else:
        report.write_report(collect(config, cells), Path(config.out))
    if missing:
        sys.exit(1)


if __name__ == "__main__":
    cli(main, Config)
