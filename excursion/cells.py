"""From a recipe to cells: the commands that make a model from a base checkpoint, and those that judge it.

plan.py says which recipes, from which checkpoints. `Builder` turns each into cells: pretrain() → a Base for every
checkpoint, train() → a model, evaluate() → its records. Flags are written here as a stage would be called by hand. What
lies where: command.py.
"""

import math
import os
import shlex
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import pretrain
from cli import UserError
from data.tokenizer import load_tokenizer
from eval import HELD_OUT_SAMPLES
from excursion.config import MEMORY, PAPER_COOLING, Config
from excursion.given import count_name, parse_stage_flags, read_bases
from excursion.recipes import RECIPES
from excursion.runner import Cell, needed
from model import config_of, train_flops

ROOT = Path(__file__).parent.parent

# Seconds on one idle core at micro, measured. Estimates of a plan are made of these
SECONDS = {
    "answer": 2.05 / 512,  # in RL: 2.05 s for a step of 16 x 32 answers; up to 2.7 s where most questions carry signal
    "judged": 45 / (512 * 32),  # an answer in an evaluation
    "row": 0.2 / 32,  # of SFT
    "token": 1e-4,  # of pretraining
    "read": 1.5e-5,  # a token whose likelihood is measured
    "start": 4.0,  # a command
}


@dataclass
class Base:
    """A checkpoint M_t to start from."""

    folder: str  # seed2/4.00M, below OUT: of everything that starts from here
    checkpoint: Path
    tokens: int
    seed: int  # of what is done from here
    source: int  # seed of its pretraining run
    primary: bool  # one of those that are worked on first
    scale: str
    variant: dict  # what its cells change of the grid's settings, {"rate": 3.0}; {}: nothing


def vary(base: Base, **variant) -> Base:
    """The same checkpoint for cells that differ in something else than the recipe."""
    seed, tokens = base.folder.rsplit("/", 1)
    return replace(base, folder=f"{seed}/{variant_name(variant)}/{tokens}", variant=base.variant | variant)


def variant_name(variant: dict) -> str:
    """{"band": "0:1", "n": 5} → "0-1_n5", for the name of a folder (a colon would mean something to make)."""
    words = (f"{k}{v:g}" if isinstance(v, int | float) else str(v) for k, v in variant.items())
    return "_".join(words).replace(":", "-")


def record_name(cell: Cell) -> str:
    """seed1/4.00M/rl/eval_step_0000048 → seed1-4.00M-rl@48; without a step at the end of a run; -T1 at temperature 1"""
    meta = cell.meta
    step = f"@{meta['step']}" if meta["step"] and meta["step"] != meta["points"][-1] else ""
    return "-".join([*cell.name.split("/")[:-2], meta["recipe"] + step]) + ("-T1" if meta["temperature"] == 1 else "")


def commands_of(cell: Cell, cells: list[Cell]) -> dict[str, str | list[str]]:
    """Of an evaluation: "command", which trained the model (of a base model or a soup: its own again), "evaluation",
    its own, and "behind", all others that its result rests on, without how often they save."""
    home = cell.name.rsplit("/", 1)[0]
    made = [c for c in cells if c.run and c.name == f"{home}/train"]
    both = {"command": (made or [cell])[0], "evaluation": cell}
    said = {key: shlex.join(["python", *c.command]) for key, c in both.items()}
    own = {c.name for c in both.values()}
    others = [without(c.command, "--save_at", "--save_every") for c in needed(cells, [cell]) if c.name not in own]
    return said | {"behind": [shlex.join(["python", *command]) for command in others]}


def without(command: list[str], *flags: str) -> list[str]:
    """A command without these flags and their values (one each)."""
    return [word for i, word in enumerate(command) if word not in flags and (not i or command[i - 1] not in flags)]


def script(name: str) -> str:
    """Path of a stage from here, as a user would type it."""
    return os.path.relpath(ROOT / f"{name}.py")


def flags_of(flags: dict) -> list[str]:
    """{"lr": 1e-4, "k": (1, 8)} → ["--lr", "0.0001", "--k", "1", "8"]"""
    words = []
    for key, value in flags.items():
        values = value if isinstance(value, tuple) else (value,)
        words += [f"--{key}", *(f"{v:g}" if isinstance(v, float) else str(v) for v in values)]
    return words


def grid_of(n: int, early: int) -> list[int]:
    """Indices of the five checkpoints of a grid among n. early: the index of the early one. They are the one before it,
    the early one, the next (the main one), one half-way from main to the last, and the last."""
    main = min(early + 1, n - 1)
    return sorted({max(0, early - 1), early, main, (main + n) // 2, n - 1})


def in_thousands(counts: list[float]) -> str:
    """Token counts as a flag: "3333k,3718k"."""
    return ",".join(dict.fromkeys(f"{count / 1e3:.12g}k" for count in sorted(counts)))


@lru_cache
def size_of(scale: str) -> float:
    """FLOPs a token, micro = 1, both with the world's vocabulary: what SECONDS are multiplied by."""
    vocab = load_tokenizer("world").padded_vocab_size
    return train_flops(config_of(scale, vocab), 256) / train_flops(config_of("micro", vocab), 256)


class Builder:
    """Collects the cells of a plan in `cells`; a cell that is asked for twice is one.

    Plans call pretrain() and evaluate(), which calls train(). validate(), difficulty() and main() serve some plans.

    Args:
        factors: recipe → factor of its learning rates.
        chosen: what OUT/checkpoints.json says; empty: nothing.
    """

    def __init__(self, config: Config, factors: dict[str, float], chosen: dict[str, list[float]]):
        self.config, self.factors, self.chosen = config, factors, chosen
        self.out = Path(config.out)
        self.own_flags = parse_stage_flags(config.stage_flags)  # stage → flag → its words
        self.part = ""  # of the plan, of the cells that are added now
        self.cells: dict[str, Cell] = {}

    def add(self, cell: Cell) -> Cell:
        cell.part = self.part
        if self.cells.setdefault(cell.name, cell).command != cell.command:
            raise UserError(
                f"{cell.name}: two cells have this name (--checkpoints, --kept or a plan's values are too near each other)"
            )
        return self.cells[cell.name]

    def command(self, stage: str, flags: dict) -> list[str]:
        """A stage's command with these flags; one that the user gave (--stage_flags) stands in the plan's place."""
        own = self.own_flags.get(stage, {})
        words = [word for given in own.values() for word in given]
        return [script(stage), *flags_of({k: v for k, v in flags.items() if k not in own}), *words]

    def seconds(self, scale: str, **counts: float) -> float:
        """Estimated for a command on one idle core."""
        return SECONDS["start"] + size_of(scale) * sum(SECONDS[what] * count for what, count in counts.items())

    def counts(self, total: float, scale: str) -> tuple[list[float], list[float], list[float]]:
        """Token counts of the checkpoints that are worked on, of the primary ones among them, and of those to choose from.

        Without a choice (--checkpoints, or OUT/checkpoints.json) the counts grow by a constant factor up to `total`:
        five from 40% of it on; or, where pretraining keeps more for a choice (--kept), these from 30% on, and five of
        them. With --budget paper they are those that the scale's pretraining keeps by itself, for olmo2-1b the
        paper's."""
        c, preset = self.config, pretrain.PRESETS[scale]
        kept = [round(total * 0.3 ** (1 - i / (c.kept - 1)), -3) for i in range(c.kept)] if c.kept > 1 else []
        if c.checkpoints != "auto":
            counts = [pretrain.parse_count(part.strip()) for part in c.checkpoints.split(",")]
            primary = [counts[len(counts) // 2]]
        elif self.chosen:
            counts, primary = self.chosen["checkpoints"], self.chosen["primary"]
        elif kept:
            places = grid_of(len(kept), len(kept) // 3)
            counts, primary = [kept[i] for i in places], [kept[i] for i in places[1:3]]
        elif c.budget == "paper":
            per_step = preset["batch"] * preset["seq_len"]
            steps = pretrain.parse_save_at(preset["save_at"], round(total / per_step), per_step)
            counts = [step * per_step for step in steps]
            primary = [counts[len(counts) // 5], counts[len(counts) // 2]]  # an early one too
        else:
            counts = [round(total * 0.4 ** (1 - i / 4), -3) for i in range(5)]
            primary = counts[2:3]
        if c.primary:
            primary = [pretrain.parse_count(part.strip()) for part in c.primary.split(",")]
        return counts, primary, kept

    def pretrain(
        self, seed: int, source: int = -1, scale: str = "", tokens: str = "", mix: str = "", variant: dict | None = None
    ) -> list[Base]:
        """A pretraining run (of seed `source`; -1: the same) and its checkpoints as `seed` starts from them, in order;
        with --bases those, which nothing has to make."""
        if self.config.bases:
            return self.given(seed)
        c, variant, source = self.config, variant or {}, seed if source < 0 else source
        scale, tokens, mix = scale or c.scale, tokens or c.tokens, mix or c.mix
        preset = pretrain.PRESETS[scale]
        total, per_step = pretrain.parse_count(tokens), preset["batch"] * preset["seq_len"]
        steps = max(1, round(total / per_step))
        # which checkpoints, as tokens and as steps
        counts, primary, kept = self.counts(total, scale)
        if max(*counts, *primary) > total + per_step:
            where = f"--checkpoints {c.checkpoints}" + (f" --primary {c.primary}" if c.primary else "")
            raise UserError(f"{where}: beyond the {tokens} tokens of pretraining (--tokens)")

        def steps_at(counts: list[float]) -> set[int]:
            return {pretrain.parse_save_at(in_thousands([count]), steps, per_step)[0] for count in counts}

        all_steps, primary_steps = sorted(steps_at(counts)), steps_at(primary)
        if not primary_steps <= set(all_steps):
            raise UserError(f"--primary {c.primary}: not all of them are among the checkpoints")
        # the run, which all seeds share that start from `source`
        # its place below OUT, and the folder of what `seed` starts from it
        place, folder = ("/".join(filter(None, (f"seed{s}", variant_name(variant)))) for s in (source, seed))
        run = self.out / place / "pretrain/run"
        flags = dict(
            scale=scale, data=c.data, seed=source, tokens=tokens, save_at=in_thousands(counts + kept), eval_every=0
        )
        flags |= dict(mix=mix) if mix else {}
        flags |= dict(save_every=self.save_every(max(20, steps // 20)), out=run)
        paths = {step: run / f"step_{step:07d}.pt" for step in sorted({*steps_at(counts + kept), steps})}
        command = self.command("pretrain", flags)
        seconds = self.seconds(scale, token=total)
        self.add(Cell(f"{place}/pretrain/train", f"pretrain {scale}", command, list(paths.values()), [], seconds, run))
        return [
            Base(f"{folder}/{count_name(n * per_step)}", paths[n], n * per_step, seed, source, n in primary_steps, scale, variant)
            for n in all_steps
        ]  # fmt: skip

    def given(self, seed: int) -> list[Base]:
        """The checkpoints of --bases as `seed` starts from them. Where tokens do not tell two apart, or are unknown,
        its name makes one a variant: a row of the report's table, without a place on an axis of tokens."""
        bases = read_bases(self.config.bases)
        counts, middle = [g.tokens for g in bases], bases[len(bases) // 2]
        if self.config.plan != "grid" and any(not t or counts.count(t) > 1 for t in counts):
            raise UserError(f"--bases: of unknown tokens, or two with equal ones: --plan {self.config.plan} cannot tell them from its "
                            "own variants")  # fmt: skip
        return [
            Base(f"seed{seed}/{g.label}", g.path, g.tokens, seed, g.seed, g is middle, g.scale,
                 {} if g.tokens and counts.count(g.tokens) == 1 else {"base": g.label})
            for g in bases
        ]  # fmt: skip

    def main(self, seed: int) -> Base:
        """The checkpoint of the plans that have one: the last of the primary ones."""
        own = self.config.pretraining != "one"
        return [b for b in self.pretrain(seed, seed if own else self.config.seeds[0]) if b.primary][-1]

    def rates_of(self, recipe: str) -> dict[str, float]:
        """A recipe's learning rates as flags. A dose control (rl_dose, sft_dose) has the rate of its side of averaging,
        times its `dose`."""
        r, table = RECIPES[recipe], self.config.rates
        name = r.rates or r.run or recipe
        if name == "paper":  # both sides at the paper's ratio to RL's and SFT's rates
            return {"lr": self.rates_of("rl")["lr"], "sft_lr": self.rates_of("sft")["lr"] / PAPER_COOLING}
        if name not in table:
            raise UserError(
                f"--recipes {recipe}: no rates of {name} in RATES (config.py): name another recipe's by `rates` (recipes.py)"
            )
        rates = {key: rate * r.dose * self.factors.get(name, 1.0) for key, rate in table[name].items()}
        if "sft_lr" in rates:  # the sweep of averaging varies its SFT side alone; its RL side goes with RL's own rate
            rates["lr"] = table[name]["lr"] * r.dose * self.factors.get("rl", 1.0)
        if r.mode == "combined":
            return {"lr": rates["lr"]}  # one loss, one optimizer
        if r.stage == "average":
            return rates
        return {"lr": rates["sft_lr"] if r.stage == "sft" and "sft_lr" in rates else rates["lr"]}

    def steps_of(self, recipe: str, changes: dict) -> tuple[int, ...]:
        """Named steps of a recipe's run; the last is its end."""
        r, c = RECIPES[recipe], self.config
        named = (
            c.points if r.stage != "sft" or r.averaged else c.gold_points if "gold" in (recipe, r.run) else c.sft_points
        )
        end = changes.get("steps", named[-1])
        return (*(s for s in named if s < end), end)

    def train(self, recipe: str, base: Base, start: Path | None = None, **changes) -> Path:
        """The cells that make a recipe's model, with those of what it starts from (unless `start` is given); the
        model's path. `changes` are flags that differ from the plan's (also of what it starts from), and `needs`,
        further files that must be there."""
        r = RECIPES[recipe]
        if missing := {r.after, r.run} - {"", *RECIPES}:
            raise UserError(f"--recipes {recipe}: there is no recipe {missing.pop()} (excursion/recipes.py)")
        if not r.stage:
            return base.checkpoint
        name = f"{base.folder}/{r.run or recipe}"
        run = self.out / name / "run"
        points = self.steps_of(recipe, changes)
        last = run / f"step_{points[-1]:07d}.pt"
        if r.run:  # no run of its own: the end of another recipe's
            self.train(r.run, base, start, **changes)
            return last
        # a flag that makes this recipe or this plan what it is cannot be another
        for flag in self.own_flags.get(r.stage, {}).keys() & {*r.flags, *changes}:
            where = f"the plan {self.config.plan} varies it" if flag in changes else f"the recipe {recipe} sets it"
            raise UserError(f"--stage_flags {r.stage} --{flag}: {where} (excursion/recipes.py, excursion/plan.py)")
        # what it starts from
        init = start or (self.train(r.after, base, **changes) if r.after else base.checkpoint)
        if r.mode == "soup":  # no training: the mean of two finished models
            other = self.train("sft", base, **changes)
            flags = dict(init=init) | r.flags | dict(other=other, out=run)
            command = [script("average"), *flags_of(flags)]  # a mean, to which no flag of a training run applies
            self.add(Cell(f"{name}/train", "soup", command, [run / "last.pt"], [init, other], SECONDS["start"]))
            return run / "last.pt"
        # its run, kept at each named step
        flags = self.training_flags(recipe, base, init, points)
        flags |= {k: v for k, v in changes.items() if k != "needs"} | dict(out=run)
        command = self.command(r.stage, flags)
        kept = [run / f"step_{step:07d}.pt" for step in points]
        needs = [init, *changes.get("needs", ())]
        self.add(Cell(f"{name}/train", r.stage, command, kept, needs, self.training_seconds(base.scale, flags), run))
        if r.judged != "best":
            return last
        # the kept step that is best on validation
        best = self.out / name / "best.pt"
        command = ["-m", "excursion", "choose", "--out", str(best.parent)]
        self.add(Cell(f"{name}/choose", "choose", command, [best], [last], SECONDS["start"]))
        return best

    def training_flags(self, recipe: str, base: Base, init: Path, points: tuple[int, ...]) -> dict:
        """Flags of a recipe's run: it ends at the last of `points`, and is saved and judged on validation at each. What
        is set after r.flags is the same for all recipes, whatever r.flags says."""
        c, r = self.config, RECIPES[recipe]
        flags = dict(init=init, data=c.data, seed=base.seed, limit=c.pool, steps=points[-1])
        flags |= r.flags | self.rates_of(recipe)
        if r.stage != "sft":
            flags |= dict(prompts=c.prompts, rollouts=c.rollouts, kl=0) | self.length()
        if r.stage != "rl":
            flags |= dict(rows=c.average_rows if r.averaged else c.rows)
        flags |= self.memory(r.stage)
        flags |= dict(eval_every=-1, eval_limit=c.val_limit, eval_tasks="none")
        for key, value in r.flags.items():
            if flags[key] != value:
                raise UserError(f"--recipes {recipe}: its {key}={value} is overwritten by the plan's {flags[key]} (which flags are the "
                                "same for all recipes: excursion/recipes.py)")  # fmt: skip
        every = self.save_every(max(1, math.ceil(points[-1] / 16)))
        return flags | dict(save_at=",".join(map(str, points)), save_every=every)

    def memory(self, stage: str) -> dict[str, int]:
        """Flags of memory that a stage needs at the paper's size."""
        return MEMORY.get(stage, {}) if self.config.budget == "paper" else {}

    def save_every(self, steps: int) -> int | str:
        """How often a run is saved, as a flag: steps, or at the paper's size, where those take hours, minutes."""
        return "30m" if self.config.budget == "paper" else steps

    def training_seconds(self, scale: str, flags: dict) -> float:
        """Estimated for a training run with these flags."""
        steps, every = flags["steps"], flags["eval_every"]
        times = 1 + (len(flags["save_at"].split(",")) if every < 0 else math.ceil(steps / every))
        answers = steps * flags.get("prompts", 0) * flags.get("rollouts", 0)
        judged = HELD_OUT_SAMPLES * flags["eval_limit"] * times
        return self.seconds(scale, answer=answers, row=steps * flags.get("rows", 0), judged=judged)

    def length(self) -> dict[str, int]:
        """The flag of the longest answer, where the plan has one."""
        longest = self.config.max_new_tokens
        return dict(max_new_tokens=longest) if longest else {}

    def ask(self, name: str, model: Path, folder: Path, seconds: float, flags: dict, shots: int, meta: dict) -> Cell:
        """The cell of one evaluation: eval.py with these flags, at the paper's k as far as there are samples."""
        samples = self.config.samples
        flags = dict(checkpoint=model, data=self.config.data, questions=flags["questions"], samples=samples) | flags
        flags |= dict(k=tuple(k for k in (1, 8, 32) if k <= samples) or (samples,), shots=shots)
        command = self.command("eval", flags | self.length() | self.memory("eval") | dict(out=folder))
        return self.add(Cell(name, "eval", command, [folder / f"{model.stem}.json"], [model], seconds, meta=meta))

    def evaluate(self, recipe: str, base: Base, start: Path | None = None, **changes) -> None:
        """All cells of a recipe, its evaluations on test questions included: of each named step, or of one model; at
        temperature .6, some at 1 too. Arguments as of `train`."""
        c, r = self.config, RECIPES[recipe]
        last = self.train(recipe, base, start, **changes)
        # where its records lie
        home, seed = base.folder, base.seed
        if not r.stage and base.source != seed:  # several seeds start from this very model: one evaluation for all
            home, seed = home.replace(f"seed{seed}", f"seed{base.source}", 1), base.source
        # which models are judged
        points = self.steps_of(recipe, changes) if r.stage and r.mode != "soup" else ()
        models = {0: last}  # step → model, 0: the only one
        if r.judged == "points" and r.stage:
            models = {step: last.with_name(f"step_{step:07d}.pt") for step in points}
        # what the report has to know of them
        meta = dict(
            recipe=recipe, start=r.after or ("base" if r.stage else ""), seed=seed, seeds=[], tokens=base.tokens,
            pretraining_seed=base.source, scale=base.scale, variant=base.variant, budget=c.budget, points=list(points),
            rates=self.rates_of(recipe) if points else {},
        )  # fmt: skip
        meta["rates"] |= {k: v for k, v in changes.items() if k in ("lr", "sft_lr")}
        own = self.own_flags.get(r.stage, {})
        meta["rates"] |= {k: own[k][-1].split("=")[-1] for k in meta["rates"].keys() & own}
        if self.own_flags:
            meta["stage_flags"] = [
                f"{stage} {shlex.join(w for g in own.values() for w in g)}" for stage, own in self.own_flags.items()
            ]
        if r.stage == "rl":
            meta["rate"] = base.variant.get("rate", 1.0)  # times the rate of all RL stages
            top = max(c.factors)
            far = recipe == "sft_rl" and meta["rate"] == top > 1  # see plan_sharpening
            meta["paper"] = far or (recipe, meta["rate"]) == ("rl", 1.0)
        for step, model in models.items():
            hot = r.hot and c.points_t1 and (step in c.points_t1 or not step)
            for temperature in (0.6, 1.0) if hot else (0.6,):
                self.judge(home, recipe, model, meta | dict(step=step, temperature=temperature), base)

    def judge(self, home: str, recipe: str, model: Path, meta: dict, base: Base) -> None:
        """The cell of one evaluation on test questions. At temperature 1 it asks these alone: tasks and text are not
        sampled, so their results would be the same again."""
        c, r, hot = self.config, RECIPES[recipe], meta["temperature"] == 1
        kind, place = "eval_t1" if hot else "eval", f"{home}/{r.run or recipe}"
        asked = len(c.questions) * (c.limit if c.limit > 0 else 256)
        # an estimate of the tokens read: of two sources of text, and three tasks of 60 tokens an item
        read = 0 if hot else 2 * c.val_tokens + 3 * (c.limit if c.limit > 0 else 1000) * 60
        seconds = self.seconds(base.scale, judged=asked * c.samples, read=read)
        flags = dict(questions=c.questions, limit=max(0, c.limit))
        flags |= dict(temperature=1.0, tasks="none") if hot else dict(val_tokens=c.val_tokens)
        name, folder, shots = f"{place}/{kind}_{model.stem}", self.out / place / kind, r.flags.get("shots", 0)
        cell = self.ask(name, model, folder, seconds, flags, shots, meta)
        if cell.meta["recipe"] != recipe:
            raise UserError(
                f"--recipes {recipe}: it is judged at a model at which {cell.meta['recipe']} is, too (`run`, excursion/recipes.py)"
            )
        cell.meta["seeds"] = sorted({*cell.meta["seeds"], base.seed})  # the seeds that this evaluation stands for

    def validate(self, recipe: str, base: Base) -> None:
        """The cell that asks a base model validation questions."""
        c, name = self.config, f"{base.folder}/{recipe}/validation"
        seconds = self.seconds(c.scale, judged=c.val_limit * c.samples)
        flags = dict(questions="validation", limit=c.val_limit, tasks="none")
        self.ask(name, base.checkpoint, self.out / name, seconds, flags, RECIPES[recipe].flags["shots"], meta={})

    def difficulty(self, recipe: str, base: Base, model: Path) -> Path:
        """The cell that finds how often a model answers each training question; the file that it makes."""
        c, name = self.config, f"{base.folder}/difficulty/{recipe}"
        result = self.out / name / f"{model.stem}.difficulty.json"
        flags = dict(preset="difficulty", checkpoint=model, data=c.data, limit=c.pool)
        command = self.command("eval", flags | self.length() | self.memory("eval") | dict(out=self.out / name))
        self.add(Cell(name, "eval", command, [result], [model], self.seconds(base.scale, judged=64 * c.pool)))
        return result
