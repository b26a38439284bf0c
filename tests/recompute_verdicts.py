"""Every primary contrast of docs/PROTOCOL.md, computed again from the record files by code that shares nothing with excursion/.

    python tests/recompute_verdicts.py --records FOLDER [--report OUT/report.md] [--readme README.md]

Prints value, 95% interval and Holm-corrected verdict of each; with --report, also what the report's tables say where
they differ; with --readme, whether the values and verdicts of its table of findings are these. It was first written
from PROTOCOL.md, without a look at the code. Where that page left a choice open (CHOICE below; most are named in its
second clarification now) it takes the one that excursion/ takes, written anew. tests/test_verdicts.py has both judge
random studies.
"""

import argparse
import gzip
import json
import re
from collections import defaultdict
from dataclasses import dataclass, field
from math import comb, exp, inf, log
from pathlib import Path

import numpy as np
from scipy.optimize import brentq
from scipy.stats import f as fisher
from scipy.stats import t as student

ALPHA, FOLD, COMMON, SMALL = 0.05, 3.65, 0.02, 0.02

# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def pass_at(k: int, n: int, c: int) -> float:
    return 1.0 - comb(n - c, k) / comb(n, k)


class Model:
    """An evaluated model."""

    def __init__(self, meta: dict, record: dict):
        self.meta, self.record = meta, record
        self.recipe, self.tokens, self.variant = meta["recipe"], meta["tokens"], meta.get("variant") or {}
        self.step = int(meta.get("step") or record.get("step") or 0)
        self.temperature = meta.get("temperature", 0.6)
        pretrained = meta.get("pretraining_seed", record["lineage"][0]["args"]["seed"])
        self.keys = [(pretrained, s) for s in meta.get("seeds") or [meta["seed"]]]  # (pretraining run, seed)
        curve = meta.get("curve") or {}
        self.curve, self.validation = curve, curve.get("val_process@1") or curve.get("val_pass@1") or []
        self.cache: dict = {}

    def values(self, what: tuple) -> tuple[list, list, np.ndarray] | None:
        """(ids, clusters, values) of a measure: (k, count, set) of questions, ("tasks",) or ("bits",)."""
        if what not in self.cache:
            self.cache[what] = self._values(what)
        return self.cache[what]

    def _values(self, what: tuple):
        if what == ("bits",):
            text = [v["bits_per_byte"] for name, v in self.record["text"].items() if name != "math"]
            return (["bits"], ["bits"], np.array([np.mean(text)])) if text else None
        if what == ("tasks",):
            tasks = self.record["tasks"]
            if not tasks:
                return None
            size = {name: len(t["items"]) for name, t in tasks.items()}
            weight = {name: sum(size.values()) / len(size) / n for name, n in size.items()}
            ids = [f"{name}/{i}" for name in tasks for i in range(size[name])]
            return ids, ids, np.array([weight[name] * x for name, t in tasks.items() for x in t["items"]])
        k, count, only = what
        rows = [
            (f"{s}/{q['id']}", q)
            for s, part in self.record["questions"].items()
            if only in ("", s)
            for q in part["questions"]
        ]
        if not rows or any(count not in q for _, q in rows):
            return None
        ids = [i for i, _ in rows]
        clusters = [q["facts"][0] if q.get("facts") else i for i, q in rows]
        return ids, clusters, np.array([pass_at(k, q["n"], q[count]) for _, q in rows])

    def mean(self, what: tuple) -> float:
        return float(self.values(what)[2].mean())


Side = dict[tuple[int, int], Model]  # (pretraining run, seed) → model


class Study:
    def __init__(self, folder: Path):
        self.runs: dict = defaultdict(dict)  # (recipe, variant, tokens) → {key: {step: model}}, at temperature 0.6
        for path in sorted(folder.glob("*.cell.json")):
            meta = json.loads(path.read_text())
            model = Model(meta, json.loads(gzip.decompress((folder / f"{meta['name']}.json.gz").read_bytes())))
            if model.temperature != 0.6:
                continue
            place = model.recipe, tuple(sorted(model.variant.items())), model.tokens
            for key in model.keys:
                self.runs[place].setdefault(key, {})[model.step] = model
        self.tokens = sorted({t for _, v, t in self.runs if not v})

    def run(self, recipe: str, tokens: int, **variant) -> dict:
        return self.runs.get((recipe, tuple(sorted(variant.items())), tokens), {})

    def primary(self, recipe: str, tokens: int, **variant) -> Side:
        """Each run at its named step with the best validation score, of equals the earliest; marks checked."""
        found = {}
        for key, steps in self.run(recipe, tokens, **variant).items():
            if len(steps) == 1 and (recipe.startswith("base") or recipe in ("sft", "gold", "sft_converged", "soup")):
                found[key] = next(iter(steps.values()))
                continue
            score = dict(map(tuple, next(iter(steps.values())).validation))
            named = sorted(s for s in next(iter(steps.values())).meta.get("points") or steps if s in score)
            best = max(named, key=lambda s: (score[s], -s))
            if best in steps:
                found[key] = steps[best]
            marks = [s for s, m in steps.items() if m.meta.get("primary")]
            if marks != [best]:
                print(f"NOTE: {recipe} {tokens} {variant} {key}: marked primary {marks}, by its curve {best}")
        return found

    def end(self, recipe: str, tokens: int, **variant) -> Side:
        """Each run at its last named step."""
        found = {}
        for key, steps in self.run(recipe, tokens, **variant).items():
            last = max(next(iter(steps.values())).meta.get("points") or steps)
            if last in steps:
                found[key] = steps[last]
        return found

    def grown(self, tokens: int) -> Side:
        """RL at the first named step where validation pass@1 has grown FOLD-fold since step 0, else at the last.
        CHOICE: one step for all runs of a checkpoint, by the mean of their curves (not each run by its own curve)."""
        run = self.run("rl", tokens)
        if not run:
            return {}
        named = sorted(set.intersection(*(set(steps) for steps in run.values())))
        scores = [dict(map(tuple, next(iter(steps.values())).validation)) for steps in run.values()]
        scores = [score for score in scores if score]
        mean = {s: np.mean([score[s] for score in scores]) for s in (0, *named)} if scores else {}
        at = [s for s in named if mean and mean[s] >= FOLD * mean[0] > 0] or named[-1:]
        return {key: steps[at[0]] for key, steps in run.items()} if at else {}

    def early(self) -> int | None:
        """The first checkpoint at which seeds start from pretraining runs of their own (PROTOCOL: the two primary ones do)."""
        own = [
            t
            for t in self.tokens
            if len({p for (_, v, u), r in self.runs.items() if u == t and not v for p, _ in r}) > 1
        ]
        return own[0] if own else None

    def main(self) -> int | None:
        """The checkpoint of the plan sharpening: where there are other rates."""
        other = sorted({t for r, v, t in self.runs if dict(v).get("rate") and r.endswith("rl")})
        return other[-1] if other else None


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Estimate:
    mean: float
    se: float
    df: float
    seeds: int

    def interval(self) -> tuple[float, float]:
        half = student.ppf(0.975, self.df) * self.se if self.se > 0 else 0.0
        return self.mean - half, self.mean + half

    def p_above(self, x: float) -> float:
        """One-sided, of mean > x."""
        if self.se == inf:
            return 1.0
        if self.se == 0:
            return 0.0 if self.mean > x else 1.0
        return float(student.sf((self.mean - x) / self.se, self.df))

    def p_below(self, x: float) -> float:
        return Estimate(-self.mean, self.se, self.df, self.seeds).p_above(-x)


def two_way(y: np.ndarray, clusters: list[str]) -> Estimate | None:
    """Seeds × questions, both random: Var(mean) = seeds' + questions' − residual's, none of them below either margin."""
    s, q = y.shape
    names = sorted(set(clusters))
    place = np.array([names.index(c) for c in clusters]) if q > 1 else np.zeros(1, int)
    c = len(names)
    total = y.mean()
    if s == 1 and c == 1:
        return Estimate(float(total), inf, 1.0, 1)  # one value: no interval
    row, col = y.mean(1) - total, y.mean(0) - total

    def of_clusters(x: np.ndarray) -> np.ndarray:
        return np.array([np.bincount(place, weights=line, minlength=c) for line in np.atleast_2d(x)])

    va = (row**2).sum() / (s - 1) / s if s > 1 else 0.0
    vb = (of_clusters(col) ** 2).sum() / q**2 * c / (c - 1) if c > 1 else 0.0
    rest = y - total - row[:, None] - col[None, :]
    ve = (of_clusters(rest) ** 2).sum() / (s * q) ** 2 * s / (s - 1) * c / (c - 1) if s > 1 and c > 1 else 0.0
    v = max(va + vb - ve, va, vb)
    terms = [(va, s - 1), (vb, c - 1), (ve, (s - 1) * (c - 1))]
    below = sum(x * x / d for x, d in terms if d > 0)
    return Estimate(float(total), v**0.5, v * v / below if below > 0 else inf, s)


@dataclass
class Claim:
    text: str
    x: Estimate | None
    wanted: str  # above, below, alike
    margin: float = 0.0
    small: float | None = None  # contradicted too, if certainly less than this
    log: bool = False  # x is a logarithm
    apart: bool = False  # no x, but both sides were judged
    across: bool = False  # its sides come from different pretraining runs
    p: list[float] = field(default_factory=lambda: [1.0, 1.0])  # raw, of shown and contradicted
    holm: list[float] = field(default_factory=lambda: [1.0, 1.0])
    factor: tuple[float, float, float] | None = None  # what is written in place of x

    def __post_init__(self):
        x = self.x
        if x is None:
            return
        if self.wanted == "alike":  # two one-sided tests
            self.p[0] = max(x.p_above(-self.margin), x.p_below(self.margin))
            self.p[1] = 2 * min(x.p_above(self.margin), x.p_below(-self.margin))  # CHOICE: two-sided beyond
        else:
            up, down = x.p_above(self.margin), x.p_below(self.margin)
            self.p = [2 * up, 2 * down] if self.wanted == "above" else [2 * down, 2 * up]
            if self.small is not None:  # CHOICE: one-sided
                self.p[1] = min(self.p[1], x.p_below(self.small))
        self.p = [min(1.0, p) for p in self.p]

    @property
    def verdict(self) -> str:
        if self.x is None:
            return "unclear" if self.apart else "not run"
        if self.across and self.x.seeds == 1:
            return "unclear"
        one = " in one run" if self.x.seeds == 1 else ""
        return ("shown" if self.holm[0] <= ALPHA else "contradicted" if self.holm[1] <= ALPHA else "unclear") + (
            one if min(self.holm) <= ALPHA else "")  # fmt: skip

    @property
    def numbers(self) -> tuple[float, float, float]:
        if self.factor:
            return self.factor
        values = (self.x.mean, *self.x.interval())
        return tuple(exp(min(v, 700.0)) for v in values) if self.log else values


def holm(claims: list[Claim]) -> None:
    """CHOICE: of the two directions each by itself; what was not run counts, with p = 1."""
    for side in (0, 1):
        running = 0.0
        for i, claim in enumerate(sorted(claims, key=lambda c: c.p[side])):
            running = max(running, min(1.0, (len(claims) - i) * claim.p[side]))
            claim.holm[side] = running


# ---------------------------------------------------------------------------------------------------------------------
# Contrasts
# ---------------------------------------------------------------------------------------------------------------------

PROCESS1, PROCESS8, PROCESS32 = ((k, "c_process", "") for k in (1, 8, 32))
PLAIN1 = (1, "c", "")


@dataclass
class Table:
    """Values of replicates × questions."""

    keys: list
    ids: list
    clusters: list
    y: np.ndarray

    def estimate(self) -> Estimate | None:
        return two_way(self.y, self.clusters)


def contrast(sides: list[tuple[float, Side]], what: tuple) -> Table | None:
    """Weighted sum of sides, paired by replicate and question."""
    keys = sorted(set.intersection(*({k for k, m in side.items() if m.values(what)} for _, side in sides)))
    if not keys:
        return None
    ids, clusters, _ = sides[0][1][keys[0]].values(what)
    rows = []
    for key in keys:
        row = np.zeros(len(ids))
        for weight, side in sides:
            own, _, values = side[key].values(what)
            assert own == ids, "questions differ"
            row += weight * values
        rows.append(row)
    return Table(keys, ids, clusters, np.array(rows))


def mean_of(tables: dict[int, Table | None]) -> tuple[Table | None, list[int]]:
    """Over the checkpoints that lack no seed of the checkpoint with most, by seed."""
    there = {t: x for t, x in tables.items() if x is not None}
    if not there:
        return None, []
    by_seed = {t: {k[1]: i for i, k in enumerate(x.keys)} for t, x in there.items()}
    seeds = sorted(max(by_seed.values(), key=len))
    places = [t for t in there if set(seeds) <= set(by_seed[t])]
    y = np.mean([there[t].y[[by_seed[t][s] for s in seeds]] for t in places], axis=0)
    first = there[places[0]]
    return Table(seeds, first.ids, first.clusters, y), places


def estimate_of(table: Table | None) -> Estimate | None:
    return None if table is None else table.estimate()


def factor_claim(text: str, a: Side, b: Side, what: tuple, times: float) -> Claim:
    """mean a / mean b above `times`. CHOICE: tested as a − times · b above 0; the interval of the factor is Fieller's."""
    made = Claim(text, estimate_of(contrast([(1, a), (-times, b)], what)), "above")
    keys = [k for k in {*a} & {*b}]
    if made.x is None:
        return made
    top, under = (contrast([(1, {k: side[k] for k in keys})], what) for side in (a, b))
    center = top.y.mean() / under.y.mean()

    def beyond(r: float) -> float:
        """Below 0: r is in the interval."""
        x = two_way(top.y - r * under.y, top.clusters)
        return abs(x.mean) - (x.mean - x.interval()[0])

    low = brentq(beyond, 0, center) if beyond(0.0) > 0 else 0.0
    far = next((f for f in center * 2.0 ** np.arange(1, 14) if beyond(f) > 0), None)
    made.factor = (center, low, brentq(beyond, center, far) if far else inf)
    return made


# Trajectories ---------------------------------------------------------------------------------------------------------

STARTS = {"rl": "base_0shot", "sft_rl": "sft", "sft_converged_rl": "sft_converged", "gold_rl": "gold"}


def trajectory(study: Study, recipe: str, tokens: int, **variant) -> dict:
    """key → its start and its named steps in order."""
    starts = study.primary(STARTS[recipe], tokens)
    return {
        key: ([starts[key]] if key in starts else []) + [steps[s] for s in sorted(steps)]
        for key, steps in study.run(recipe, tokens, **variant).items()
    }


def crossing(points: list[Model], what: tuple, level: float) -> np.ndarray:
    """Per question, pass@k where mean pass@1 first rises to `level`, on the straight line between two judged steps.
    CHOICE: first rise in the order of steps. CHOICE: minus slope · (pass@1 − level), so that the interval holds the
    crossing's noise."""
    one = np.array([m.values((1, *what[1:]))[2] for m in points])
    top = np.array([m.values(what)[2] for m in points])
    x, y = one.mean(1), top.mean(1)
    i = next(i for i in range(len(x) - 1) if x[i] <= level <= x[i + 1] and x[i] < x[i + 1])
    share = (level - x[i]) / (x[i + 1] - x[i])
    slope = (y[i + 1] - y[i]) / (x[i + 1] - x[i])
    at = top - slope * one
    return at[i] + share * (at[i + 1] - at[i]) + slope * level


def at_equal_pass1(a: dict, b: dict, what: tuple) -> tuple[Table | None, bool]:
    """a − b in pass@k at equal pass@1. (None, True): some seed has less than 2 points in common.
    CHOICE: at a quarter, half and three quarters of the range from the higher start to the lower maximum; three models
    or more."""
    keys = [k for k in sorted({*a} & {*b}) if min(len(a[k]), len(b[k])) > 2]
    rows = []
    for key in keys:
        ones = [[m.mean((1, *what[1:])) for m in side[key]] for side in (a, b)]
        low, high = max(x[0] for x in ones), min(max(x) for x in ones)
        if high - low < COMMON:
            return None, True
        levels = [low + (high - low) * q for q in (0.25, 0.5, 0.75)]
        rows.append(np.mean([crossing(a[key], what, x) - crossing(b[key], what, x) for x in levels], axis=0))
    if not rows:
        return None, False
    ids, clusters, _ = a[keys[0]][0].values(what)
    return Table(keys, ids, clusters, np.array(rows)), False


# ---------------------------------------------------------------------------------------------------------------------
# Findings
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Finding:
    number: str
    claims: list[Claim]
    any_shows: bool = False  # shown if one is, contradicted if all are (3b)
    family: list[Claim] | None = None  # of Holm's correction, if larger

    @property
    def verdict(self) -> str:
        v = [c.verdict.split(" in ")[0] for c in self.claims]
        if self.any_shows:
            return (
                "shown"
                if "shown" in v
                else "contradicted"
                if {*v} == {"contradicted"}
                else "not run"
                if {*v} == {"not run"}
                else "unclear"
            )
        # CHOICE: one that is contradicted decides, also where another was not run
        return (
            "contradicted"
            if "contradicted" in v
            else "not run"
            if "not run" in v
            else "shown"
            if {*v} == {"shown"}
            else "unclear"
        )


def grid_mean(study: Study, a, b, what: tuple) -> Estimate | None:
    tables = {t: contrast([(1, a(t)), (-1, b(t))], what) for t in study.tokens}
    return estimate_of(mean_of(tables)[0])


def findings(study: Study) -> list[Finding]:
    def best(recipe):
        return lambda t: study.primary(recipe, t)

    def end(recipe):
        return lambda t: study.end(recipe, t)

    def at(t, a, b, what):
        return None if t is None else estimate_of(contrast([(1, a(t)), (-1, b(t))], what))

    found = []
    # 1
    early = study.early()
    rl, base = (study.primary(r, early) if early else {} for r in ("rl", "base"))
    found.append(
        Finding(
            "1", [factor_claim(f"{n} RL / base", rl, base, m, 4) for n, m in (("process", PROCESS1), ("plain", PLAIN1))]
        )
    )
    # 2. CHOICE: the last checkpoint of the grid
    last = study.tokens[-1] if study.tokens else None
    found.append(Finding("2", [
        Claim("pass@1 RL − SFT", at(last, best("rl"), best("sft"), PROCESS1), "above"),
        Claim("pass@1 RL − RL after SFT", at(last, best("rl"), best("sft_rl"), PROCESS1), "alike", 0.05),
        Claim("pass@8 Gold − RL", at(last, best("gold"), best("rl"), PROCESS8), "above"),
        Claim("pass@32 Gold − RL", at(last, best("gold"), best("rl"), PROCESS32), "above"),
    ]))  # fmt: skip
    # 3a
    found.append(
        Finding(
            "3a",
            [
                Claim(f"pass@{m[0]} RL − base", grid_mean(study, study.grown, best("base"), m), "above")
                for m in (PROCESS32, PROCESS1)
            ],
        )
    )
    # 3b
    main, paper = study.main(), None
    for (recipe, variant, t), run in study.runs.items():  # marked: RL after SFT at the highest rate of the plan
        if (
            recipe == "sft_rl"
            and t == main
            and any(m.meta.get("paper") for steps in run.values() for m in steps.values())
        ):
            paper = estimate_of(
                contrast([(1, study.end(recipe, t, **dict(variant))), (-1, study.primary("sft", t))], PROCESS32)
            )
    found.append(Finding("3b", [
        Claim("pass@32 RL after SFT − SFT, our rate", grid_mean(study, end("sft_rl"), best("sft"), PROCESS32), "below"),
        Claim("pass@32 RL after SFT − SFT, the paper's rate", paper, "below"),
    ], any_shows=True))  # fmt: skip
    # 3c
    order = {
        t: at_equal_pass1(trajectory(study, "rl", t), trajectory(study, "sft_rl", t), PROCESS32) for t in study.tokens
    }
    there = estimate_of(mean_of({t: x for t, (x, _) in order.items()})[0])
    apart = there is None and any(none_in_common for _, none_in_common in order.values())
    found.append(
        Finding(
            "3c",
            [Claim("pass@32 RL − RL after SFT, equal pass@1", there, "above", small=SMALL, apart=apart)],
        )
    )
    # 4, one family
    tasks = [Claim("tasks SFT to the end − base", grid_mean(study, best("sft_converged"), best("base"), ("tasks",)), "below"),
             Claim("tasks RL − base", grid_mean(study, best("rl"), best("base"), ("tasks",)), "alike", 0.01)]  # fmt: skip
    bits = [Claim("bits SFT to the end − base", grid_mean(study, best("sft_converged"), best("base"), ("bits",)), "above"),
            Claim("bits RL − base", grid_mean(study, best("rl"), best("base"), ("bits",)), "alike", 0.01)]  # fmt: skip
    found += [Finding("4", tasks, family=tasks + bits), Finding("4 by text", bits, family=tasks + bits)]
    # 5
    found.append(Finding("5", [
        Claim(f"pass@32 averaging − {r}", grid_mean(study, best("parallel"), best(r), PROCESS32), "above", small=SMALL if r == "sft_dose" else None)
        for r in ("sft", "rl", "sft_rl", "sft_dose")
    ]))  # fmt: skip
    found += [six(study), seven(study), eight(study), sharpening(study), demonstrations(study)]
    for f in found:
        if f.number != "4 by text":
            holm(f.family or f.claims)
    return found


def six(study: Study) -> Finding:
    """Gain by math share − gain by size, hard questions, pass@1 of RL. CHOICE: at its primary step; largest − smallest size."""
    hard = (1, "c_process", "test_hard")

    def by(name: str) -> dict:
        return {
            dict(v)[name]: study.primary("rl", t, **dict(v)) for r, v, t in study.runs if r == "rl" and name in dict(v)
        }

    shares = by("math")
    sizes = {
        (next(iter(s.values())).tokens, n): s for n, s in by("size").items()
    }  # equal FLOPs: the smaller, the more tokens
    x = None
    if len(shares) > 1 and len(sizes) > 1:
        ends = [(1, shares[max(shares)]), (-1, shares[min(shares)]), (-1, sizes[min(sizes)]), (1, sizes[max(sizes)])]
        x = estimate_of(contrast(ends, hard))
    return Finding("6", [Claim("pass@1 hard: gain by mixture − gain by size", x, "above", across=True)])


def seven(study: Study) -> Finding:
    """log(CV early / CV last) of pass@1 over seeds of RL. CHOICE: the interval of the F distribution, as if
    means were known; written as that of Student's t of the same width."""
    runs = defaultdict(dict)
    for r, v, t in study.runs:
        if r == "rl" and "rlseed" in dict(v):
            for m in study.primary(r, t, **dict(v)).values():
                runs[t][dict(v)["rlseed"]] = m.mean(PROCESS1)
    runs = {t: np.array(list(x.values())) for t, x in runs.items() if len(x) >= 3}
    x = None
    if len(runs) > 1:
        (u, nu), (w, nw) = (
            (log(y.std(ddof=1) / y.mean()), len(y) - 1) for _, y in (min(runs.items()), max(runs.items()))
        )
        half = (log(fisher.ppf(0.975, nu, nw)) + log(fisher.ppf(0.975, nw, nu))) / 4
        x = Estimate(u - w, half / student.ppf(0.975, nu + nw), nu + nw, nu + nw + 2)
    return Finding("7", [Claim("spread of pass@1, early / last", x, "above", log=True)])


def reached(curve: list, target: float) -> float | None:
    """First judged step at the target, without interpolation; None: never, or at once."""
    step = next((s for s, v in curve if v >= target), 0)
    return step or None


def flops_at(model: Model, step: float) -> float:
    """FLOPs of the run itself up to a step: interpolated between logged steps, from step 0 by the mean of a step."""
    s, f = np.array(model.curve["flops"], float).T
    start = f[0] - s[0] * (f[-1] - f[0]) / (s[-1] - s[0])
    return float(np.interp(step, [0, *s], [start, *f]) - start)


def eight(study: Study) -> Finding:
    claims = []
    bands = sorted({dict(v)["band"] for r, v, _ in study.runs if r == "rl" and "n" in dict(v)}) or ["easy"]
    for band in bands:
        counts = sorted({dict(v)["n"] for _, v, _ in study.runs if dict(v).get("band") == band and "n" in dict(v)})
        place = next((t for _, v, t in study.runs if dict(v).get("band") == band and "n" in dict(v)), 0)
        sides = [study.end("rl", place, band=band, n=n) for n in (counts[:1] + counts[-1:])]
        if len(counts) < 2:
            claims += [Claim(f"{band}: {w}", None, "above") for w in ("end", "steps", "FLOPs")]
            continue
        few, many = sides
        claims.append(
            Claim(
                f"{band}: pass@1 at the end, few − many",
                estimate_of(contrast([(1, few), (-1, many)], PROCESS1)),
                "alike",
                0.05,
            )
        )
        logs = {"steps": [], "FLOPs": []}
        for key in sorted({*few} & {*many}):
            curves = [side[key].validation for side in (few, many)]
            first, gained = curves[0][0][1], min(max(v for _, v in curve) for curve in curves)
            target = first + 0.9 * (gained - first)  # CHOICE: 90% of the gain that both reach
            steps = [reached(curve, target) for curve in curves]
            if None in steps:
                continue
            logs["steps"].append(log(steps[0] / steps[1]))
            logs["FLOPs"].append(log(flops_at(few[key], steps[0]) / flops_at(many[key], steps[1])))
        for name, wanted in (("steps", "above"), ("FLOPs", "below")):
            y = np.array(logs[name])[:, None]
            claims.append(
                Claim(f"{band}: {name} to 90% of the gain", two_way(y, ["one"]) if len(y) else None, wanted, log=True)
            )
    return Finding("8", claims)


def sharpening(study: Study) -> Finding:
    t = study.main()
    order = rate = dose = None
    apart = [False, False]
    if t is not None:
        runs = {
            (r, f): trajectory(study, r, t, **({} if f == 1 else {"rate": f}))
            for r in ("rl", "sft_rl")
            for f in (1.0, 3.0)
        }
        order, apart[0] = at_equal_pass1(runs["sft_rl", 1.0], runs["rl", 1.0], PROCESS32)
        rate, apart[1] = at_equal_pass1(runs["sft_rl", 3.0], runs["sft_rl", 1.0], PROCESS32)
        parts = [(w / 2, side(r, t)) for r in ("rl", "sft_rl") for w, side in ((1, study.end), (-1, study.primary))]
        dose = estimate_of(contrast(parts, PROCESS32))
    return Finding(
        "order, rate or dose",
        [
            Claim("order", estimate_of(order), "below", apart=apart[0]),
            Claim("rate", estimate_of(rate), "below", apart=apart[1]),
            Claim("dose", dose, "below"),
        ],
    )


def demonstrations(study: Study) -> Finding:
    counts = sorted({dict(v)["solved"] for _, v, _ in study.runs if "solved" in dict(v)})
    place = next((t for _, v, t in study.runs if "solved" in dict(v)), 0)
    claims = []
    for n in counts:  # RL on as many questions as there are: the largest count
        sides = [(1, study.primary("rl", place, solved=counts[-1])), (-1, study.primary("sft", place, solved=n))]
        claims.append(Claim(f"pass@1 RL on {counts[-1]} − SFT on {n}", estimate_of(contrast(sides, PROCESS1)), "above"))
    return Finding("demonstrations", claims or [Claim("RL − SFT", None, "above")])


# ---------------------------------------------------------------------------------------------------------------------
# Beside the report
# ---------------------------------------------------------------------------------------------------------------------

HEADS = {"What lowers": "order, rate or dose", "RL on questions": "demonstrations"}


def reported(path: Path) -> dict[str, list[tuple[str, str, str]]]:
    """finding → [(contrast, value, verdict)] of the primary tables, which stand before what is beside; "verdict" → of
    the heading."""
    found: dict = {}
    number, beside = None, False
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            match = re.match(r"### \S+ ([1-8][abc]?(?: by text)?)\. .*: ([\w ]+)$", line)
            words = next((n for head, n in HEADS.items() if line.startswith(f"### {head}")), None)
            number, beside = (match[1] if match else words), False
            if number:
                found[number] = {"verdict": match[2] if match else "", "rows": []}
        elif line.startswith("<details>"):
            beside = True
        elif number and not beside and re.match(r"\| [✓✗?–] \|", line):
            cells = [c.strip() for c in line.strip("| ").split(" | ")]
            found[number]["rows"].append((cells[1], cells[2], cells[-1]))
    return found


def shown(c: Claim) -> str:
    if c.x is None:
        return "–"
    a = c.numbers
    if (c.log or c.factor) and c.x.se == inf:
        return f"×{a[0]:.2f} [one value: no interval]"
    if c.log or c.factor:
        return "×{:.2f} [{:.2f}, {:.2f}]".format(*(inf if v > 1e6 else v for v in a)).replace("inf", "∞")
    if c.text.startswith("bits"):
        return "{:+.4f} [{:+.4f}, {:+.4f}]".format(*a).replace("-", "−")
    return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*(100 * v for v in a)).replace("-", "−")


def numbers(text: str) -> list[float]:
    return [float(v.replace("−", "-").replace("∞", "inf")) for v in re.findall(r"[−+-]?(?:∞|[\d.]+)", text)]


def same(mine: str, theirs: str) -> bool:
    """Equal but for one in the last digit."""
    a, b = numbers(mine), numbers(theirs)
    unit = 1.01 * 10.0 ** -len(theirs.split(" ")[0].partition(".")[2]) if b else 0
    return len(a) == len(b) and all(x == y or abs(x - y) <= max(unit, 2e-4 * abs(y)) for x, y in zip(a, b, strict=True))


def rows_of_readme(readme: Path, found: list[Finding]) -> dict[str, bool]:
    """Row of the README's table of findings, | 3b. what was measured | values with intervals | verdict |, → are its
    values those of primary contrasts of this finding, in their order, and is the verdict the finding's."""
    known, rows = {f.number: f for f in found}, {}
    for line in readme.read_text().splitlines():
        if match := re.match(r"\| ([1-8][abc]?(?: by text)?)\. ", line):
            *_, values, verdict = [c.strip() for c in line.strip("| ").split(" | ")]
            f, values = known[match[1]], re.findall(r"[×+−][\d.]+ \[[^\]]*\]", values)
            claims = iter(f.claims)  # each value takes it on from the one before
            right = bool(values) and all(any(c.x and numbers(shown(c)) == numbers(v) for c in claims) for v in values)
            one_run = any(c.verdict.endswith(" in one run") for c in f.claims)
            verdicts = [f.verdict, f"{f.verdict} in one run"][: 1 + one_run]
            rows[line] = right and verdict.strip("*✓✗? ") in verdicts
    return rows


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--records", type=Path, required=True)
    parser.add_argument("--report", type=Path)
    parser.add_argument("--readme", type=Path)
    args = parser.parse_args()
    there, found = reported(args.report) if args.report else {}, findings(Study(args.records))
    for row, right in rows_of_readme(args.readme, found).items() if args.readme else ():
        print("same   " if right else "DIFFERS", row)
    for f in found:
        theirs = there.get(f.number, {"verdict": "", "rows": []})
        mark = (
            ""
            if not theirs["verdict"]
            else "  same"
            if theirs["verdict"].startswith(f.verdict)
            else f"  DIFFERS: {theirs['verdict']}"
        )
        print(f"\n{f.number}: {f.verdict}{mark}")
        rows = theirs["rows"] + [None] * (len(f.claims) - len(theirs["rows"]))
        for c, row in zip(f.claims, rows, strict=False):
            print(f"   {c.text}: {shown(c)} {c.verdict}" + (f" p {c.holm[0]:.2g} {c.holm[1]:.2g}" if c.x else ""))
            if row:
                ok = same(shown(c), row[1]) and row[2] == c.verdict
                print("      same" if ok else f"      DIFFERS: {row[0]}: {row[1]} {row[2]}")
        if len(theirs["rows"]) > len(f.claims):
            print(f"   the report has {len(theirs['rows'])} rows")
