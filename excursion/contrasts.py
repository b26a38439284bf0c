"""Records beside each other: what differs between recipes, question by question.

A measure gives one value a question of a record (records.py). A *contrast* is a weighted sum of a measure over models,
paired by seed and question: values (S, Q), S replicates (seeds) by Q questions, of which stats.py makes a mean with its
interval. A *measure* is a function Entry → Row or None; g is a Grid.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from excursion.recipes import RECIPES, STARTS
from excursion.records import Entry, Key, Questions, Row
from excursion.stats import Estimate, bootstrap, estimate

Terms = list[tuple[float, dict[Key, Entry]]]  # (weight, replicate → model) each: what `contrast` adds up


def stopped(path: dict[int, Entry]) -> Entry:
    """The model of a run that was judged at several steps: the one that is marked as best on validation, else the last."""
    marked = [step for step, e in path.items() if e.meta.get("primary")]
    return path[max(marked or path)]


def main_temperature(entries: list[Entry]) -> float:
    """The paper's 0.6; where nothing was judged at it, the one that most were judged at."""
    counts = Counter(e.temperature for e in entries)
    return max(sorted(counts), key=counts.get) if counts and 0.6 not in counts else 0.6


def paths_of(entries: list[Entry]) -> dict[Key, dict[int, Entry]]:
    """replicate → step → model, of one recipe from one checkpoint. A run that is judged along the way counts once its
    end and its best step are judged: until then another step would stand for them."""
    paths: dict[Key, dict[int, Entry]] = {}
    for e in entries:
        for key in e.keys:
            paths.setdefault(key, {})[e.step] = e
    return {key: path for key, path in paths.items() if awaited(path) <= set(path)}


def awaited(path: dict[int, Entry]) -> set[int]:
    """The steps without which a run has no result yet; none where the records do not say."""
    e = next(iter(path.values()))
    points, best = e.meta.get("points"), e.meta.get("best_step")
    if not points or e.recipe not in RECIPES or RECIPES[e.recipe].judged != "points":
        return set()
    return {max(points)} | ({best} if best is not None and e.temperature != 1 else set())


def models(entries: list[Entry], end: bool = False) -> dict[Key, Entry]:
    """By replicate: where the run is stopped, or its end."""
    return {key: path[max(path)] if end else stopped(path) for key, path in paths_of(entries).items()}


def judged_alike(entries: list[Entry]) -> list[Entry]:
    """Those at the main temperature."""
    main = main_temperature(entries)
    return [e for e in entries if e.temperature == main]


class Grid:
    """Entries of one variant and one sampling temperature, by recipe, pretraining tokens, replicate and step."""

    def __init__(self, entries: list[Entry], temperature: float | None = None):
        self.temperature = main_temperature(entries) if temperature is None else temperature
        self.entries = [e for e in entries if e.temperature == self.temperature]
        places: dict[tuple[str, int], list[Entry]] = {}  # (recipe, tokens) → its models
        for e in self.entries:
            places.setdefault((e.recipe, e.tokens), []).append(e)
        self.paths = {place: paths_of(here) for place, here in places.items()}  # place → replicate → step → model
        self.tokens = sorted({tokens for _, tokens in places})
        self.recipes = [r for r in RECIPES if r in {recipe for recipe, _ in places}]
        self.k = min((e.largest_k for e in self.entries), default=1)  # the paper's 32, or what there is

    def has(self, *recipes: str) -> bool:
        return {*recipes} <= {*self.recipes}

    def steps(self, recipe: str, tokens: int) -> list[int]:
        """Steps at which every replicate was judged."""
        paths = self.paths.get((recipe, tokens), {})
        return sorted(set.intersection(*(set(p) for p in paths.values()))) if paths else []

    def models(self, recipe: str, tokens: int, step: int | str | None = None) -> dict[Key, Entry]:
        """By replicate: where the run is stopped; at its "end"; or at a step, where it was judged there."""
        paths = self.paths.get((recipe, tokens), {})
        if step is None:
            return {key: stopped(path) for key, path in paths.items()}
        return {key: path[at] for key, path in paths.items() if (at := max(path) if step == "end" else step) in path}

    def level(self, recipe: str, tokens: int, measure, step: int | str | None = None) -> "Contrast | None":
        """The measure itself, of a recipe's models."""
        return contrast([(1.0, self.models(recipe, tokens, step))], measure)


def best_measure(entries: list[Entry], k: int) -> Questions:
    """The primary measure: process-right pass@k, being free of luck, where it is known of every model; else pass@k."""
    process = Questions(k, "c_process")
    return process if entries and all(process(e) is not None for e in entries) else Questions(k)


def measures(entries: list[Entry], k: int) -> list[tuple[Questions, bool]]:
    """(measure, does it count): the primary one, and beside it plain pass@k where that is another."""
    best = best_measure(entries, k)
    return [(best, True)] + [(Questions(k), False)] * (best != Questions(k))


@dataclass
class Contrast:
    """values: (S, Q), a weighted sum of a measure. clusters: (Q,) the fact of each question, or None. keys: (S,) the
    replicate of each row. places: of a mean, its checkpoints; one_run: those at which all replicates start from one
    pretraining run."""

    values: np.ndarray
    clusters: tuple[str, ...] | None
    keys: tuple[Key, ...]
    places: tuple[int, ...] = ()
    one_run: tuple[int, ...] = ()

    @property
    def from_one_run(self) -> bool:
        """Do several replicates start from one pretraining run?"""
        return len(self.keys) > 1 and len({pretrained for pretrained, _ in self.keys}) == 1

    def estimate(self) -> Estimate:
        return estimate(self.values, self.clusters)

    def bootstrap(self) -> tuple[float, float]:
        return bootstrap(self.values, self.clusters)


def combine(rows: dict[Key, list[tuple[float, Row | None]]]) -> Contrast | None:
    """rows: replicate → its terms (weight, values). The sum of weight · values for each replicate, at the questions
    that all have. None if values are missing or no question is shared."""
    flat = [row for terms in rows.values() for _, row in terms]
    if not flat or any(row is None for row in flat):
        return None
    if flat[0].ids is None:  # items of tasks, or one number a run: nothing to match, but as many in every row
        if len({len(row.values) for row in flat}) > 1:
            return None
        clusters = None
    else:
        shared = set.intersection(*(set(ids) for ids in {row.ids for row in flat}))
        ids = tuple(i for i in flat[0].ids if i in shared)
        if not ids:
            return None
        rows = {key: [(weight, row.take(ids)) for weight, row in terms] for key, terms in rows.items()}
        clusters = flat[0].take(ids).clusters
    values = np.array([sum(weight * row.values for weight, row in terms) for terms in rows.values()])
    return Contrast(values, clusters, tuple(rows))


def contrast(terms: Terms, measure) -> Contrast | None:
    """Σ weight · measure, question by question, at the replicates that all terms have."""
    keys = sorted(set.intersection(*(set(models) for _, models in terms)))
    return combine({key: [(weight, measure(models[key])) for weight, models in terms] for key in keys})


def mean_of(found: dict[int, Contrast | None]) -> Contrast | None:
    """Mean over checkpoints of contrasts, seed by seed. found: pretraining tokens → contrast; None is left out, and so
    is a checkpoint that lacks a seed of the checkpoint with most: more checkpoints must not cost seeds.

    A replicate is (pretraining seed, seed). At some checkpoints each seed has a pretraining run of its own, at others
    all share one. So rows are matched by the second seed, unless it does not tell a contrast's rows apart."""
    there = {t: c for t, c in found.items() if c is not None}
    if not there or len({c.values.shape[1] for c in there.values()}) > 1:
        return None
    by_seed = all(len({seed for _, seed in c.keys}) == len(c.keys) for c in there.values())
    # for each contrast: what its rows are matched by
    names = {t: [key[1] if by_seed else key for key in c.keys] for t, c in there.items()}
    wanted = sorted(max(names.values(), key=len))
    there = {t: c for t, c in there.items() if {*wanted} <= {*names[t]}}
    rows = [c.values[[names[t].index(key) for key in wanted]] for t, c in there.items()]
    keys = tuple((key, key) for key in wanted) if by_seed else tuple(wanted)
    one_run = tuple(t for t, c in there.items() if c.from_one_run)
    return Contrast(np.mean(rows, axis=0), next(iter(there.values())).clusters, keys, tuple(there), one_run)


def by_variant(entries: list[Entry], *keys: str) -> dict[tuple, list[Entry]]:
    """The entries of a named plan: those whose variant has exactly these keys, grouped by their values."""
    groups: dict[tuple, list[Entry]] = {}
    for e in entries:
        if set(e.variant) == set(keys):
            groups.setdefault(tuple(e.variant[key] for key in keys), []).append(e)
    return dict(sorted(groups.items()))


def trajectory(g: Grid, recipe: str, tokens: int, key: Key) -> dict[int, Entry]:
    """{step: model} of one run, with the model that it started from as step 0, asked in the same way."""
    path = dict(sorted(g.paths.get((recipe, tokens), {}).get(key, {}).items()))
    start = g.models(STARTS.get(recipe, ""), tokens).get(key)
    return {0: start, **path} if start is not None and path else path


def at_pass1(points: list[Entry], level: float, m: Questions) -> Row | None:
    """(Q,) pass@k of a run where its mean pass@1 first reaches `level`, on a straight line between two judged steps.

    Where on the line this is depends on the same questions, so its uncertainty belongs into the result. With b the
    slope of mean pass@k over mean pass@1 on that line, the value of a question is pass@k - b (pass@1 - level). This
    leaves the mean as it is, since mean pass@1 is `level` there, and gives the values the variance of pass@k at the
    crossing (delta method).
    """
    ones, ks = [[measure(e) for e in points] for measure in (m.at(1), m)]
    if any(row is None for row in ones + ks) or len({row.ids for row in ones}) > 1:
        return None
    means = [row.values.mean() for row in ones]
    for i in range(len(points) - 1):
        if means[i] <= level <= means[i + 1] and means[i] < means[i + 1]:
            w = (level - means[i]) / (means[i + 1] - means[i])  # 0 at step i, 1 at the next
            one, top = ((1 - w) * rows[i].values + w * rows[i + 1].values for rows in (ones, ks))
            slope = (ks[i + 1].values.mean() - ks[i].values.mean()) / (means[i + 1] - means[i])
            return Row(top - slope * (one - level), ks[i].ids, ks[i].clusters)
    return None


def runs(g: Grid, recipe: str, tokens: int) -> dict[Key, list[Entry]]:
    """The trajectories of a recipe by replicate."""
    return {key: list(trajectory(g, recipe, tokens, key).values()) for key in g.paths.get((recipe, tokens), {})}


def at_equal_pass1(a: dict[Key, list[Entry]], b: dict[Key, list[Entry]], m: Questions) -> Contrast | None:
    """a − b by pass@k, at a quarter, a half and three quarters of the range of pass@1 that both runs pass through. Runs
    of fewer than three models do not count. None if there are none, or if the two runs of any replicate have less than
    two points of pass@1 in common: to leave out that replicate alone would choose among seeds by their results."""
    rows = {}
    for key in sorted(set(a) & set(b)):
        ones = [[m.at(1)(e) for e in run] for run in (a[key], b[key])]
        if min(map(len, ones)) < 3 or any(row is None for run in ones for row in run):
            continue
        means = [[row.values.mean() for row in run] for run in ones]
        low, high = max(v[0] for v in means), min(max(v) for v in means)
        if high - low < 0.02:
            return None
        terms = []
        for level in low + (high - low) * np.array([0.25, 0.5, 0.75]):
            terms += [(1 / 3, at_pass1(a[key], level, m)), (-1 / 3, at_pass1(b[key], level, m))]
        rows[key] = terms
    return combine(rows)


def both_judged(a: dict[Key, list[Entry]], b: dict[Key, list[Entry]]) -> bool:
    """Has any replicate a trajectory on both sides? If at_equal_pass1 is None there, they have no pass@1 in common."""
    return any(min(len(a[key]), len(b[key])) > 2 for key in set(a) & set(b))
