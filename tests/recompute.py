"""The numbers that README quotes, computed again from the committed records by other code than the report's.

    python tests/recompute.py [--readme README.md] [--records results/study3]
    python tests/recompute.py --fill rl-base:32p@8.00M rl.320-rl.48:32p@8.00M      # other values, such as EXPERIMENTS.md's

Only the standard library: no stats.py, records.py or findings.py. The records are those of the first `report --records` in the
README. Each sentence of QUOTES is filled in with what comes out here and must stand in the README word for word.
"""

import argparse
import gzip
import json
import math
import re
from pathlib import Path
from statistics import fmean as mean
from statistics import variance

ROOT = Path(__file__).parent.parent
TASKS = "tasks"  # beside k of pass@k

# Sentences of the README. {a-b:k@tokens} is the change of pass@k (or tasks) in points with its interval, {a:k@tokens} the level, {a/b:k@tokens} the
# ratio of levels; k with p is process-right; without @ the mean over the checkpoints that have both; @last, @first, @3.72M: a checkpoint;
# @3.72M#2: one seed there. a.48 is a at its named step 48, a alone where validation stopped it.
QUOTES = """
has {base:1p@4.15M#1}, {base:1p@4.15M#2} and {base:1p@4.15M#3}% pass@1 at 4.15 M)
there it takes pass@1 from {base:1p@first}% (base with examples) to {rl:1p@first}%, {rl/base:1p@first} times as much; at 8 M from {base:1p@last}% to {rl:1p@last}%, {rl/base:1p@last} times as much
changes pass@32 by {rl-base:32p@first} against the base with examples at 3.33 M
and by {rl-base:32p@last} at 8 M.
SFT itself is, at 8 M: {sft-base_0shot:32p@last} against the 0-shot base
more pass@32 than RL ({parallel-rl:32p}) and than SFT ({parallel-sft:32p}), but not than SFT alone at averaging's smaller dose and lower rate ({parallel-sft_dose:32p}).
Its pass@1 is above that of this slower SFT ({parallel-sft_dose:1p}, unplanned).
less pass@1 at 3.33 M ({sft_dose-sft:1p@3.33M}) and more at 8 M ({sft_dose-sft:1p@last}), more pass@32 ({sft_dose-sft:32p}),
changes general accuracy by {sft_dose-base:tasks} points instead of {sft-base:tasks}.
the three pretraining runs: {base:1p@3.72M#1} → {rl:1p@3.72M#1}, {base:1p@3.72M#2} → {rl:1p@3.72M#2}, {base:1p@3.72M#3} → {rl:1p@3.72M#3}%
"""  # noqa: E501


def pass_at_k(n: int, c: int, k: int) -> float:
    return 1 - math.comb(n - c, k) / math.comb(n, k)


def student_t(df: float, p: float = 0.975) -> float:
    """Quantile of Student's t: P(T < t) by Simpson's rule over t = √df tan(a), then bisection."""

    def density(a: float) -> float:
        return math.cos(a) ** (df - 1)

    def area(high: float, n: int = 4000) -> float:
        h = high / n
        return h / 3 * sum((1 if i in (0, n) else 4 if i % 2 else 2) * density(i * h) for i in range(n + 1))

    whole, low, high = area(math.pi / 2), 0.0, math.pi / 2
    for _ in range(40):
        a = (low + high) / 2
        low, high = (a, high) if 0.5 + 0.5 * area(a) / whole < p else (low, a)
    return math.sqrt(df) * math.tan(low)


def interval(rows: list[list[float]], clusters: list[str]) -> tuple[float, float, float]:
    """Mean of seeds × questions with the interval of the two-way random model (docs/PROTOCOL.md, Statistics)."""
    s, q = len(rows), len(rows[0])
    total = mean(map(mean, rows))
    names = sorted(set(clusters))
    sums: dict[str, float] = dict.fromkeys(names, 0.0)
    rest: dict[tuple[int, str], float] = {}
    for j in range(q):
        here = mean(row[j] for row in rows)
        sums[clusters[j]] += here - total
        for i in range(s):
            rest[i, clusters[j]] = rest.get((i, clusters[j]), 0.0) + rows[i][j] - mean(rows[i]) - here + total
    c = len(names)
    va = variance([mean(row) for row in rows]) / s if s > 1 else 0.0
    vb = sum(x * x for x in sums.values()) / q**2 * c / (c - 1) if c > 1 else 0.0
    ve = sum(x * x for x in rest.values()) / (s * q) ** 2 * s / (s - 1) * c / (c - 1) if s > 1 and c > 1 else 0.0
    v = max(va + vb - ve, va, vb)
    parts = [(va, s - 1), (vb, c - 1), (ve, (s - 1) * (c - 1))]
    df = v * v / sum(x * x / d for x, d in parts if d)
    half = student_t(df) * math.sqrt(v)
    return total, total - half, total + half


class Records:
    def __init__(self, folder: Path):
        self.found: dict[tuple, dict] = {}  # (recipe or recipe.step, tokens, seed) → record, of the grid at T = 0.6
        for path in sorted(folder.glob("*.cell.json")):
            meta = json.loads(path.read_text())
            if meta.get("variant") or meta.get("temperature", 0.6) != 0.6:
                continue
            record = json.loads(gzip.decompress((folder / f"{meta['name']}.json.gz").read_bytes()))
            for seed in meta.get("seeds") or [meta["seed"]]:
                self.found[f"{meta['recipe']}.{meta.get('step')}", meta["tokens"], seed] = record
                if meta.get("primary", True):  # where it was stopped
                    self.found[meta["recipe"], meta["tokens"], seed] = record
        self.tokens = sorted({t for _, t, _ in self.found})

    def values(self, record: dict, what: str) -> list[float]:
        if what == TASKS:  # the mean of items is the mean of the tasks' accuracies
            tasks = [t["items"] for t in record["tasks"].values()]
            items = sum(map(len, tasks)) / len(tasks)
            return [x * items / len(t) for t in tasks for x in t]
        key, k = ("c_process", int(what[:-1])) if what.endswith("p") else ("c", int(what))
        return [pass_at_k(q["n"], q[key], k) for s in record["questions"].values() for q in s["questions"]]

    def clusters(self, record: dict, what: str) -> list[str]:
        if what == TASKS:
            return [f"{name}/{i}" for name, t in record["tasks"].items() for i in range(len(t["items"]))]
        rows = [(name, q) for name, s in record["questions"].items() for q in s["questions"]]
        return [q["facts"][0] if q.get("facts") else f"{name}/{q['id']}" for name, q in rows]

    def seeds(self, recipes: list[str], tokens: int) -> list[int]:
        have = [{s for r, t, s in self.found if (r, t) == (recipe, tokens)} for recipe in recipes]
        return sorted(set.intersection(*have))

    def level(self, recipe: str, what: str, tokens: int, seed: int = 0) -> float:
        seeds = [seed] if seed else self.seeds([recipe], tokens)
        return mean(mean(self.values(self.found[recipe, tokens, s], what)) for s in seeds)

    def change(self, a: str, b: str, what: str, places: list[int]) -> tuple[float, float, float]:
        seeds = max(
            (self.seeds([a, b], t) for t in places), key=len
        )  # of the checkpoint with most; one that lacks any is left out
        places = [t for t in places if {*seeds} <= {*self.seeds([a, b], t)}]
        rows = []
        for s in seeds:
            pairs = [(self.values(self.found[a, t, s], what), self.values(self.found[b, t, s], what)) for t in places]
            rows.append([mean(x[j] - y[j] for x, y in pairs) for j in range(len(pairs[0][0]))])
        return interval(rows, self.clusters(self.found[a, places[0], seeds[0]], what))

    def fill(self, quote: str) -> str:
        """What stands between the braces of a quote, computed."""
        names, _, at = quote.partition("@")
        at, _, seed = at.partition("#")
        names, what = names.split(":")
        places = {"": self.tokens, "first": self.tokens[:1], "last": self.tokens[-1:]}.get(at)
        places = places or [t for t in self.tokens if f"{t / 1e6:.2f}M" == at]
        if "-" in names:
            x = [100 * v for v in self.change(*names.split("-"), what, places)]
            return "{:+.1f} [{:+.1f}, {:+.1f}]".format(*x).replace("-", "−")
        if "/" in names:
            a, b = names.split("/")
            return f"{self.level(a, what, places[0]) / self.level(b, what, places[0]):.1f}"
        return f"{100 * self.level(names, what, places[0], int(seed or 0)):.1f}"


def main(readme: Path, folder: Path | None = None) -> list[tuple[str, bool]]:
    """(sentence with its numbers, is it in the README)."""
    text = " ".join(readme.read_text().split())
    records = Records(folder or ROOT / re.search(r"report --records (\S+)", text)[1])
    sentences = [re.sub(r"\{([^}]+)\}", lambda m: records.fill(m[1]), line) for line in QUOTES.strip().splitlines()]
    return [(sentence, " ".join(sentence.split()) in text) for sentence in sentences]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    parser.add_argument("--records", type=Path)
    parser.add_argument("--fill", nargs="*", default=[], help="what stands between the braces of QUOTES")
    args = parser.parse_args()
    if args.fill:
        records = Records(args.records or ROOT / "results/study3")
        print(*(f"{quote}  {records.fill(quote)}" for quote in args.fill), sep="\n")
    else:
        for sentence, there in main(args.readme, args.records):
            print("ok " if there else "NOT", sentence)
