"""Records made by hand, in the form that an excursion leaves, for tests of findings and of the report."""

import json
import zlib

import numpy as np

from excursion.cells import record_name
from excursion.config import Config, resolve
from excursion.plan import make_plan
from excursion.recipes import RECIPES
from excursion.records import Entry
from files import write_jsonl

STEPS = (16, 48, 100, 160, 320)


def make_entry(recipe, tokens, seed, right, process=None, facts=None, items=(1, 0), bits=1.0, h=(1.5, 1.2), floor=None, sets=("test",),
               args=None, **meta) -> Entry:  # fmt: skip
    """A record with 32 samples a question, of which right[q] (process[q] with every equation true) are right. What is
    None is absent, as in older records."""
    rows = [
        {"id": str(i), "n": 32, "c": int(c), "box": 32, "c_lenient": int(c), "majority": float(c > 16)}
        for i, c in enumerate(right)
    ]
    for i, row in enumerate(rows):
        row |= {} if process is None else {"c_process": int(process[i]), "h_answers": h[0], "h_paths": h[1]}
        row |= {} if facts is None else {"facts": facts[i]}

    def mean(c):
        return {f"pass@{k}": {"mean": float(np.mean(c) / 32), "low": 0.0, "high": 1.0} for k in (1, 8, 32)}

    questions = {}
    for i, name in enumerate(sets):
        part = rows[i :: len(sets)]
        questions[name] = {
            "n": 32,
            "temperature": meta.get("temperature", 0.6),
            "top_p": 0.95,
            "box": 1.0,
            "questions": part,
        }
        questions[name] |= {"strict": mean([r["c"] for r in part]), "lenient": mean([r["c"] for r in part])}
        questions[name] |= {} if process is None else {"process": mean([r["c_process"] for r in part]),
                                                       "entropy": {"answers": h[0], "paths": h[1]}}  # fmt: skip
        questions[name] |= {} if floor is None else {"floor": {f"pass@{k}": floor * k**0.5 for k in (1, 8, 32)}}
    record = {
        "questions": questions,
        "tasks": {"facts": {"accuracy": {"mean": float(np.mean(items)), "low": 0.0, "high": 1.0}, "items": [int(x) for x in items]}},
        "text": {"general": {"bits_per_byte": bits}, "math": {"bits_per_byte": 9.0}},
        "flops": 1e12 * tokens / 1e6, "step": meta.get("step", 0),
        "lineage": [{"stage": "pretrain", "args": {"seed": meta.pop("pretrained", 1)}}, {"stage": "rl", "args": args or {}}],
    }  # fmt: skip
    base = {
        "recipe": recipe,
        "tokens": tokens,
        "seed": seed,
        "scale": "micro",
        "budget": "study",
        "variant": {},
        "curve": {},
    }
    return Entry(record, base | {"samples": [], "seconds": {}} | meta)


def save(entries: list[Entry], folder) -> None:
    """As records of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for i, e in enumerate(entries):
        name = f"{i:04d}-{e.recipe}"
        write_jsonl(folder / f"{name}.json.gz", [e.record])
        (folder / f"{name}.cell.json").write_text(json.dumps({"name": name, **e.meta}))


class World:
    """Answers of models to questions: each question has a difficulty, a model an ability and a sharpness. The sharper,
    the less pass@32 for the same pass@1."""

    def __init__(self, n: int = 200, seed: int = 0, with_facts: bool = True):
        self.rng = np.random.default_rng(seed)
        self.difficulty = self.rng.normal(0, 2.2, n)
        self.facts = [[f"fact {i // 8}"] if i % 2 and with_facts else [] for i in range(n)]

    def entry(self, recipe, tokens, seed, ability, sharpness=1.0, **meta) -> Entry:
        shift = np.random.default_rng(seed).normal(0, 0.1)
        p = 1 / (
            1 + np.exp(-sharpness * (ability + shift - self.difficulty + self.rng.normal(0, 0.4, len(self.difficulty))))
        )
        right = self.rng.binomial(32, p)
        args = {"prompts": 16, "rollouts": 32, "limit": 512, "lr": 1e-4}
        meta = {"bits": 0.35 + (0.02 if recipe == "sft_converged" else 0.001) + self.rng.normal(0, 2e-4)} | meta
        items = self.rng.random(1000) < meta.pop("items", 0.5)
        fill = dict(facts=self.facts, floor=0.003, sets=("test_easy", "test_hard"), args=args, items=items)
        return make_entry(recipe, tokens, seed, right, self.rng.binomial(right, 0.97), h=(3.5 / (1 + sharpness), 2 / (1 + sharpness)),
                          **(fill | meta))  # fmt: skip

    def run(self, recipe, tokens, seed, abilities, sharpnesses, **meta) -> list[Entry]:
        """A trajectory over STEPS."""
        curve = {"val_pass@1": [[s, min(0.9, 0.03 + 0.05 * a)] for s, a in zip((0, *STEPS), (0, *range(1, 9)), strict=False)],
                 "reward": [[s, 0.1 + 0.001 * s] for s in range(1, 321, 4)], "entropy": [[s, 1 - 0.002 * s] for s in range(1, 321, 4)],
                 "length": [[s, 30.0] for s in range(1, 321, 4)], "flops": [[1, 1e10], [320, 3.2e12]]}  # fmt: skip
        return [self.entry(recipe, tokens, seed, a, s, step=step, curve=curve, **meta)
                for step, a, s in zip(STEPS, abilities, sharpnesses, strict=True)]  # fmt: skip


def study(seeds=(1, 2, 3), tokens=(3_500_000, 4_400_000, 5_600_000, 7_000_000, 9_000_000), n=200) -> list[Entry]:
    """A grid with trajectories at two temperatures and the sharpening plan, in which the paper's findings hold roughly."""
    w, entries = World(n), []
    for i, t in enumerate(tokens):
        level = -4.2 + 0.75 * i
        for seed in seeds:
            entries += [
                w.entry("base_0shot", t, seed, level, 0.9),
                w.entry("base", t, seed, level + 0.6, 0.95),
                w.entry("sft", t, seed, level + 1.4, 1.1, step=100, items=0.47),
                w.entry("sft_converged", t, seed, level + 1.4, 1.3, step=160, items=0.45),
                w.entry("gold", t, seed, level + 2.0, 1.1, step=160, items=0.45),
                w.entry("sft_dose", t, seed, level + 1.4, 1.1, step=320),
                w.entry("rl_dose", t, seed, level + 2.2, 1.4, step=320),
            ]
            for temperature, factor in ((0.6, 1.0), (1.0, 0.8)):
                more = dict(temperature=temperature, points=STEPS)
                rise = np.array([0.5, 1.2, 1.8, 2.1, 2.2])
                entries += w.run("rl", t, seed, level + rise, factor * (0.9 + 0.12 * np.arange(5)), paper=True, **more)
                entries += w.run(
                    "sft_rl",
                    t,
                    seed,
                    level + 1.4 + rise / 2.5,
                    factor * (1.1 + 0.35 * np.arange(5)),
                    items=0.47,
                    **more,
                )
                entries += w.run("parallel", t, seed, level + 0.4 + rise, factor * (0.9 + 0.1 * np.arange(5)), **more)
    t = tokens[len(tokens) // 2]
    level = -4.2 + 0.75 * (len(tokens) // 2)
    for seed in seeds:
        for rate in (1 / 3, 3.0):
            for recipe, extra in (("rl", 0.0), ("sft_rl", 1.4), ("sft_converged_rl", 1.4), ("gold_rl", 2.0)):
                rise = np.array([0.5, 1.2, 1.8, 2.1, 2.2]) * min(rate, 1.2) / (2.5 if extra else 1)
                paper = {"paper": recipe == "sft_rl" and rate == 3.0}
                entries += w.run(
                    recipe,
                    t,
                    seed,
                    level + extra + rise,
                    1 + 0.2 * rate * np.arange(5),
                    variant={"rate": rate},
                    **paper,
                )
    return entries


def noise(seed: int, *what) -> np.random.Generator:
    """Of these words alone, whatever the order of calls."""
    return np.random.default_rng([seed, zlib.crc32(repr(what).encode())])


def random_study(seed: int, effect: float = 1.0, drop: float = 0.0, n: int = 40, spread: float = 0.25) -> list[Entry]:
    """What the study's plans would leave, with made-up answers: abilities, curves and marks differ between recipes,
    seeds and steps.

    Args:
        effect: how far recipes lie apart. drop: share of runs that are missing, as in an unfinished study. n: questions.
        spread: how far runs of one recipe lie apart.
    """
    w, found = World(n, seed), {}
    own = np.random.default_rng(seed)
    recipe_effect = {r: effect * own.normal(0, 0.6) for r in RECIPES}
    sharp_effect = {r: float(np.exp(effect * own.normal(0, 0.25))) for r in RECIPES}
    for plan in ("grid", "sharpening", "rollouts", "mixture", "scale", "seeds", "demonstrations"):
        for cell in make_plan(resolve(Config(command="plan", plan=plan, scale="micro", budget="study", out="none"))):
            if not cell.meta or record_name(cell) in found:
                continue
            meta = dict(cell.meta)
            recipe, tokens, s, points = meta.pop("recipe"), meta.pop("tokens"), meta.pop("seed"), meta["points"]
            variant = tuple(meta["variant"].items())
            run = (RECIPES[recipe].run or recipe, tokens, s, variant)
            if noise(seed, "drop", *run).random() < drop:
                continue
            r = noise(seed, "run", *run)
            shift, growth = r.normal(0, spread), float(np.exp(r.normal(0, 0.5)))
            # validation: grows and may fall again, ties are made by rounding
            top = r.choice([0.3, 0.6, 1.0, 2.0])
            val = {0: 0.02 + 0.02 * r.random()}
            end = max(points or [1])
            stops = sorted({*points, *range(8, end + 1, 8)}) if "n" in meta["variant"] else points
            for p in stops:
                u = p / end
                val[p] = round(
                    val[0] + 0.25 * growth * (1 - abs(u - top) / max(top, 1 - top)) + r.normal(0, 0.01),
                    2 if r.random() < 0.5 else 4,
                )
            best = max(points, key=lambda p: (val[p], -p)) if points else 0
            judged = RECIPES[recipe].judged
            meta["step"] = meta["step"] or (best if judged == "best" else points[-1] if points else 0)
            meta["primary"] = judged != "points" or meta["step"] == best
            curve = {"val_pass@1": [[p, min(0.99, v + 0.01 * r.random())] for p, v in val.items()], "val_process@1": [[p, v] for p, v in val.items()],
                     "reward": [[p, 0.1 + 1e-4 * (p + s)] for p in range(1, 400, 4)],
                     "flops": [[p, 2e13 + (1 + r.random()) * 1e10 * p * (1 + meta["variant"].get("n", 32))] for p in (5, 12, *range(19, end + 1, 7), end)]} if points else {}  # fmt: skip
            u = meta["step"] / 320 if recipe.endswith("rl") or recipe == "parallel" else 1.0
            step = noise(seed, "step", *run, meta["step"])
            ability = (
                -3.2
                + 0.8 * np.log2(tokens / 3.3e6)
                + shift
                + step.normal(0, 0.15)
                + recipe_effect[recipe]
                + (0.6 if points else 0)
            )
            ability += (2.4 if recipe == "rl" else 1.2) * u * (meta.get("rate", 1) or 1) ** 0.3 if points else 0
            sharp = sharp_effect[recipe] ** (0.3 + u) * (meta.get("rate", 1) or 1) ** (0.15 * effect * u)
            args = {"prompts": 16, "rollouts": 32, "limit": 512}
            more = dict(bits=0.35 + 0.01 * effect * own.random() * (recipe == "sft_converged") + step.normal(0, 1e-3), items=float(np.clip(0.45 + 0.02 * effect * step.normal(), 0.1, 0.9)))  # fmt: skip
            meta["pretrained"] = meta["pretraining_seed"]
            found[record_name(cell)] = w.entry(
                recipe, tokens, s, ability, sharp, curve=curve, args=args, **more, **meta
            )
    return list(found.values())
