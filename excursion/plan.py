"""The cells of each plan, in the order of their worth: which recipes, from which checkpoints, with which seeds.

A plan calls b.evaluate(recipe, base) for every model that it wants (b: the Builder of cells.py); the cells that this
needs are added by themselves, once. A further plan is a function here, its row in PLANS, and its name in Config.plan
(config.py). What is finished when a run is stopped is a smaller study. Plans share OUT, and so the cells that they have
in common.
"""

import math

import pretrain
from cli import UserError
from data.loader import parse_mix
from data.tokenizer import load_tokenizer
from excursion.cells import Builder, in_thousands, vary
from excursion.choose import chosen_checkpoints, chosen_rates
from excursion.config import Config
from excursion.given import check_commands
from excursion.recipes import RECIPES
from excursion.runner import Cell
from model import config_of, train_flops

SWEEP_SEED = 0  # no seed of the study


def plan_grid(b: Builder) -> None:
    """The primary checkpoints seed by seed, the other checkpoints seed by seed, the controls; later checkpoints first."""
    c = b.config
    parts = [("primary checkpoints", True, c.recipes), ("other checkpoints", False, c.recipes)]
    if c.controls in ("primary", "all"):
        parts.append(("controls", True, c.control_recipes))
    if c.controls == "all":
        parts.append(("controls", False, c.control_recipes))
    for part, primary, recipes in parts:
        shared = c.pretraining == "one" or (c.pretraining == "primary" and not primary)
        for seed in c.seeds:
            b.part = f"{part}, seed {seed}"
            bases = b.pretrain(seed, c.seeds[0] if shared else seed)
            for base in reversed([base for base in bases if base.primary == primary]):
                for recipe in recipes:
                    b.evaluate(recipe, base)


def plan_checkpoints(b: Builder) -> None:
    """Every checkpoint that the first seed's pretraining keeps, asked validation questions with and without examples."""
    c = b.config
    counts, _, kept = b.counts(pretrain.parse_count(c.tokens), c.scale)
    c.checkpoints = in_thousands(kept or counts)
    c.primary, b.chosen = "", {}
    for base in b.pretrain(c.seeds[0]):
        for recipe in ("base", "base_0shot"):
            b.validate(recipe, base)


def plan_sweep(b: Builder) -> None:
    """Every recipe that has a rate of its own, and SFT → RL, at the dose that is used, from the main checkpoint of a
    run that the study does not use; nothing is judged on test questions."""
    base = b.main(SWEEP_SEED)
    recipes = [r for r in ("rl", "sft", "gold", "parallel", "sft_rl") if r in b.config.recipes]
    if not recipes:
        raise UserError(f"--recipes {' '.join(b.config.recipes)}: none of them has a rate to sweep")
    for recipe in recipes:
        start = b.train("sft", vary(base, sweep=1.0)) if recipe == "sft_rl" else None
        for factor in b.config.sweep:
            b.factors = {RECIPES[recipe].rates or recipe: factor}
            b.train(recipe, vary(base, sweep=factor), start)
        b.factors = {}


def plan_sharpening(b: Builder) -> None:
    """RL from the base, from SFT at its best and at its end, and from Gold, at several rates, judged along the way: is
    it the order, the rate or the dose? The rate that the grid uses is the grid's own run. Last, RL on those questions
    alone that the start seldom answers: is it the dose per solved question?

    The paper's own pair is marked: direct RL at its rate, and RL after SFT at the highest factor: forty, as the
    paper's, with --budget paper; three otherwise, for forty breaks a small model."""
    c = b.config
    # recipe → the recipe whose model it starts from; "": the base
    starts = {recipe: RECIPES[recipe].after for recipe in ("rl", "sft_rl", "sft_converged_rl", "gold_rl")}
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
            rates = b.difficulty(after, base, start)
            changes = dict(difficulty=f"{rates}:hard", needs=[rates], steps=c.side_steps)
            b.evaluate(recipe, vary(base, band="hard"), start, **changes)


def plan_rollouts(b: Builder) -> None:
    """Few and many answers a question, on easy and on hard questions."""
    c = b.config
    for seed in c.seeds:
        base = b.main(seed)
        b.evaluate("base_0shot", base)
        rates = b.difficulty("base", base, base.checkpoint)
        for band in c.bands:
            for n in c.rollout_counts:
                # half-way, in logarithms, between as many steps for all and as many answers for all
                steps = max(1, round(c.side_steps * math.sqrt(min(c.rollout_counts) / n)))
                # judged on validation every 8 steps: when does it get there?
                more = dict(difficulty=f"{rates}:{band}", needs=[rates], eval_every=8)
                b.evaluate("rl", vary(base, band=band, n=n), rollouts=n, steps=steps, **more)


def plan_mixture(b: Builder) -> None:
    """Math shares of pretraining, judged at its end. The other sources of the mixture share the rest in their ratio."""
    weights = parse_mix(b.config.mix or "general=1,math=1")
    rest = sum(weights.values()) - weights.get("math", 0)
    if "math" not in weights or not rest:
        raise UserError(f"--mix {b.config.mix}: the plan mixture varies its source math among others: name them all")
    for seed in b.config.seeds:
        for share in b.config.shares:
            shares = {name: share if name == "math" else w * (1 - share) / rest for name, w in weights.items()}
            mix = ",".join(f"{name}={value:g}" for name, value in shares.items())
            last = b.pretrain(seed, mix=mix, variant={"math": share})[-1]
            for recipe in ("base", "base_0shot", "rl"):
                b.evaluate(recipe, last, steps=b.config.side_steps)


def plan_scale(b: Builder) -> None:
    """Sizes at equal pretraining FLOPs, those of --scale for --tokens, judged at its end."""
    c = b.config
    cl100k = 100_352  # its size, without its download
    vocab = cl100k if c.budget == "paper" else load_tokenizer("world").padded_vocab_size

    def per_token(scale: str) -> float:
        return train_flops(config_of(scale, vocab), pretrain.PRESETS[scale]["seq_len"])

    flops = per_token(c.scale) * pretrain.parse_count(c.tokens)
    b.chosen, c.checkpoints, c.primary = {}, "auto", ""  # of --scale alone
    for seed in c.seeds:
        for scale in c.scales:
            tokens = f"{flops / per_token(scale) / 1e3:.0f}k"
            last = b.pretrain(seed, scale=scale, tokens=tokens, variant={"size": scale})[-1]
            for recipe in ("base", "base_0shot", "rl"):
                b.evaluate(recipe, last, steps=c.side_steps)


def plan_seeds(b: Builder) -> None:
    """RL from the same checkpoints, the primary ones and the last, with other seeds of data order and sampling."""
    *bases, last = b.pretrain(b.config.seeds[0])
    for base in [*(base for base in bases if base.primary), last]:
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
    builder = Builder(config, chosen_rates(config), chosen_checkpoints(config))
    PLANS[config.plan](builder)
    cells = list(builder.cells.values())
    check_commands(cells, builder.own_flags, config.launch)
    return cells
