"""What became of the paper's findings: records, contrasts, bootstrap intervals, verdicts.

Every finding is a list of contrasts, each computed question by question and with a stated direction. Intervals are 95%
bootstrap intervals: questions are resampled (the same ones for both sides, so they are paired) and, where there are
several seeds, seeds too. A contrast is *shown* if its interval lies wholly on the stated side, *not shown* if wholly on the
other, else *unclear*. Three seeds resample coarsely: read an interval over seeds as a lower bound of the doubt. The
"start" of direct RL is the better of the base with worked examples and without, so that no gain is format alone.

A record is what eval.py wrote (NAME.json: per question n and how many were right) with NAME.cell.json beside it, by
excursion.py: recipe, seed, pretraining tokens, variant, training curve, a few samples, seconds.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from cli import UserError
from eval import BOOTSTRAP, mean_interval, pass_at_k

ALIKE = 0.05  # pass rates closer than this count as alike
KEPT = 0.01  # accuracy on general tasks that may be lost without a loss of capability

# recipe → (name, colour, marker, line, filled): the palette of Okabe and Ito, and never colour alone
STYLE = {
    "base": ("base, worked examples", "#000000", "o", "--", True),
    "base_0shot": ("base, 0-shot", "#000000", "o", ":", False),
    "rl": ("direct RL", "#0072B2", "s", "-", True),
    "rl_dose": ("RL, half dose", "#0072B2", "s", ":", False),
    "sft": ("SFT, best on validation", "#E69F00", "^", "-", True),
    "sft_converged": ("SFT, to the end", "#E69F00", "^", "--", False),
    "sft_dose": ("SFT, half dose", "#E69F00", "<", ":", False),
    "sft_rl": ("SFT → RL", "#D55E00", "D", "-", True),
    "sft_converged_rl": ("SFT to the end → RL", "#D55E00", "D", "--", False),
    "gold": ("SFT-Gold", "#009E73", "v", "-", True),
    "gold_rl": ("SFT-Gold → RL", "#56B4E9", ">", "-", True),
    "parallel": ("parallel averaging", "#CC79A7", "*", "-", True),
    "combined": ("combined loss", "#7F7F7F", "P", "-", True),
    "interleaved": ("interleaved", "#7F7F7F", "X", "--", True),
    "soup": ("soup of RL and SFT", "#7F7F7F", "h", ":", True),
}


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Entry:
    """An evaluated model: its record and what .cell.json says of it."""

    record: dict
    meta: dict

    @property
    def recipe(self) -> str:
        return self.meta["recipe"]

    @property
    def seeds(self) -> list[int]:
        """That it stands for: several, where they start from one base (--base_seed)."""
        return self.meta.get("seeds", [self.meta["seed"]])

    @property
    def sets(self) -> dict[str, dict]:
        return self.record["questions"]

    @property
    def largest_k(self) -> int:
        return max(int(key[5:]) for q in self.sets.values() for key in q["strict"])

    def pass_at(self, k: int, name: str = "") -> np.ndarray:
        """(Q,) pass@k of every question of a set, or of all sets."""
        rows = [q for n, s in self.sets.items() if name in ("", n) for q in s["questions"]]
        return pass_at_k(np.array([q["n"] for q in rows]), np.array([q["c"] for q in rows]), k)

    def tasks(self) -> np.ndarray:
        """(I,) one value per item of all general tasks, whose mean is the mean over tasks of their accuracies."""
        tasks = [np.array(t["items"], dtype=float) for t in self.record["tasks"].values()]
        total = sum(map(len, tasks))
        return np.concatenate([t * total / (len(tasks) * len(t)) for t in tasks]) if tasks else np.zeros(0)

    @cached_property
    def bits(self) -> float:
        """Bits per byte of held-out text that is not math, mean over its sources; nan without any."""
        text = self.record["text"]
        values = [v["bits_per_byte"] for name, v in text.items() if name != "math" or len(text) == 1]
        return float(np.mean(values)) if values else float("nan")


def load(folder: Path) -> list[Entry]:
    """All records of a folder, in the order of their names. UserError for a folder without any, or a broken one."""
    entries = []
    for path in sorted(folder.glob("*.cell.json")):
        try:
            meta = json.loads(path.read_text())
            record = json.loads((folder / f"{meta['name']}.json").read_text())
            record["flops"] = np.nan if record.get("flops") is None else record["flops"]  # unknown; not drawn
            entry = Entry(record, {"variant": {}, "curve": {}, "samples": [], "seconds": {}, **meta})
            entry.recipe, entry.largest_k, entry.bits, entry.tasks(), meta["seed"], meta["tokens"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path}: no record of excursion.py ({error!r})") from None
        entries.append(entry)
    if not entries:
        raise UserError(f"{folder}: no record in it yet: nothing was evaluated so far")
    return entries


class Grid:
    """Entries of one variant, by recipe, pretraining tokens and seed."""

    def __init__(self, entries: list[Entry]):
        self.at: dict[tuple[str, int], dict[int, Entry]] = {}
        for e in entries:
            for seed in e.seeds:
                self.at.setdefault((e.recipe, e.meta["tokens"]), {})[seed] = e
        self.tokens = sorted({tokens for _, tokens in self.at})
        self.recipes = [r for r in STYLE if any(recipe == r for recipe, _ in self.at)]
        self.k = min((e.largest_k for e in entries), default=1)  # the paper's 32, or what there is

    def values(self, recipe: str, tokens: int, value: Callable[[Entry], np.ndarray]) -> dict[int, np.ndarray]:
        """{seed: (Q,)}; "start" stands for the better of the bases, by the mean of `value`."""
        if recipe == "start":
            both = [self.values(r, tokens, value) for r in ("base", "base_0shot")]
            return max(both, key=lambda v: np.mean([x.mean() for x in v.values()]) if v else -np.inf)
        return {seed: value(e) for seed, e in self.at.get((recipe, tokens), {}).items()}

    def contrast(self, terms: dict[str, float], tokens: int, value: Callable[[Entry], np.ndarray]) -> np.ndarray | None:
        """(S, Q): Σ weight · value of the recipes, question by question, at the seeds that all of them have."""
        parts = {r: self.values(r, tokens, value) for r in terms}
        seeds = sorted(set.intersection(*(set(p) for p in parts.values())))
        if not seeds:
            return None
        return np.array([sum(weight * parts[r][seed] for r, weight in terms.items()) for seed in seeds])

    def mean_contrast(self, terms: dict[str, float], value: Callable[[Entry], np.ndarray]) -> np.ndarray | None:
        """(S, Q): mean of the contrast over the checkpoints that have it; where those have different seeds, the common."""
        found = [c for c in (self.contrast(terms, t, value) for t in self.tokens) if c is not None]
        if not found or len({c.shape[1] for c in found}) > 1:
            return None
        n = min(len(c) for c in found)
        return np.mean([c[:n] for c in found], axis=0)


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


@lru_cache(16)
def resample(n: int, seed: int) -> np.ndarray:
    """(B, n): the weight of each of n things in each bootstrap sample; rows sum to 1."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), BOOTSTRAP) / n


def interval(values: np.ndarray, alpha: float = 0.05, seed: int = 0) -> dict:
    """Mean of (S, Q) values, seeds × questions, with a bootstrap interval.

    Seeds and questions are resampled independently: all seeds are asked the same questions (crossed, not nested). With
    one seed this is eval.mean_interval, an interval over questions; with one column (no questions to resample) and one
    seed there is none.
    """
    values = np.atleast_2d(values)
    n_seeds, n_questions = values.shape
    if n_seeds == n_questions == 1:
        return {"mean": float(values[0, 0]), "low": -np.inf, "high": np.inf}
    if n_seeds == 1 and alpha == 0.05:
        return mean_interval(values[0], seed)
    seeds, questions = resample(n_seeds, seed), resample(n_questions, seed + 1)
    means = ((seeds @ values) * questions).sum(1)
    low, high = np.quantile(means, [alpha / 2, 1 - alpha / 2])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def verdict(x: dict | None, wanted: str, margin: float = 0.0) -> str:
    """shown, not shown, unclear or no data.

    wanted: "above" or "below" the margin; "alike": within ± margin; "kept": not more than the margin below 0.
    """
    if x is None:
        return "no data"
    low, high = x["low"], x["high"]
    if wanted == "alike":
        return (
            "shown" if -margin < low and high < margin else "not shown" if low > margin or high < -margin else "unclear"
        )
    if wanted == "below":
        low, high, margin = -high, -low, -margin
    if wanted == "kept":
        margin = -margin
    return "shown" if low > margin else "not shown" if high < margin else "unclear"


@dataclass
class Claim:
    """A contrast with a stated direction."""

    text: str
    value: dict | None  # {"mean", "low", "high"}
    wanted: str
    margin: float = 0.0
    counts: bool = True  # towards the finding's verdict; else it stands beside
    unit: str = "points"  # of 100; or bits (per byte), ratio

    @property
    def verdict(self) -> str:
        return verdict(self.value, self.wanted, self.margin)

    @property
    def numbers(self) -> str:
        if self.value is None:
            return "–"
        scale, digits = (100, 1) if self.unit == "points" else (1, 4 if self.unit == "bits" else 2)
        mean, low, high = (scale * self.value[key] for key in ("mean", "low", "high"))
        inside = "one seed: no interval" if np.isinf(low) else f"{low:+.{digits}f}, {high:+.{digits}f}"
        return f"{mean:+.{digits}f} [{inside}]"

    @property
    def expected(self) -> str:
        if self.wanted in ("above", "below"):
            return f"{'>' if self.wanted == 'above' else '<'} {self.margin:g}"
        margin = f"{100 * self.margin:g}" if self.unit == "points" else f"{self.margin:g}"
        return f"within ± {margin}" if self.wanted == "alike" else f"> −{margin}"


@dataclass
class Finding:
    number: str
    text: str
    claims: list[Claim] = field(default_factory=list)
    any_of: bool = False  # one of the claims is enough

    @property
    def verdict(self) -> str:
        verdicts = [c.verdict for c in self.claims if c.counts]
        if set(verdicts) <= {"no data"} or "no data" in verdicts and not self.any_of:
            return "no data"
        if self.any_of:
            return "shown" if "shown" in verdicts else "not shown" if set(verdicts) == {"not shown"} else "unclear"
        return "not shown" if "not shown" in verdicts else "shown" if set(verdicts) == {"shown"} else "unclear"


def million(tokens: float) -> str:
    return f"{tokens / 1e6:.3g} M" if tokens < 1e9 else f"{tokens / 1e9:.3g} B"


def label(recipe: str) -> str:
    return "start" if recipe == "start" else STYLE[recipe][0] if recipe in STYLE else recipe


def grid_findings(g: Grid) -> list[Finding]:
    """Findings 1 to 5 of the paper, from the grid."""
    if not g.tokens:
        return []

    def at_k(k: int):
        return lambda e: e.pass_at(k)

    def bits(e: Entry):
        return np.array([e.bits])

    def minus(
        a: str, b: str, value, what: str, wanted: str, margin=0.0, counts=True, at: int | None = None, unit="points"
    ):
        d = g.mean_contrast({a: 1, b: -1}, value) if at is None else g.contrast({a: 1, b: -1}, at, value)
        if d is not None and not d.size:
            d = None
        text = f"{what}: {label(a)} − {label(b)}" + ("" if at is None else f", {million(at)} tokens")
        return Claim(text, None if d is None else interval(d), wanted, margin, counts, unit)

    def each(a: str, b: str, value, what: str, wanted: str, margin=0.0, unit="points"):
        """The same at each checkpoint, beside the verdict."""
        if len(g.tokens) == 1:
            return []
        rows = [minus(a, b, value, what, wanted, margin, False, t, unit) for t in g.tokens]
        return [row for row in rows if row.value is not None]

    top, p1 = f"pass@{g.k}", at_k(1)
    early = g.tokens[:-1] or g.tokens
    one = Finding("1", f"RL works early: pass@1 at least ×4 at a checkpoint before the last ({len(early)} tried: intervals "
                       f"of {100 - 5 / len(early):.3g}%)", any_of=True)  # fmt: skip
    for t in early:
        d = g.contrast({"rl": 1, "start": -4}, t, p1)
        value = None if d is None else interval(d, 0.05 / len(early))
        one.claims.append(Claim(f"pass@1: direct RL − 4 × start, {million(t)} tokens", value, "above"))
    one.claims += [minus("rl", "start", p1, "pass@1", "above", 0, False, t) for t in early]

    last = g.tokens[-1]
    two = Finding("2", f"Late (here: {million(last)} tokens), direct RL beats one-solution SFT on pass@1 and matches SFT → RL; "
                       f"SFT-Gold beats RL on pass@8 and {top}")  # fmt: skip
    two.claims = [
        minus("rl", "sft", p1, "pass@1", "above", at=last),
        minus("rl", "sft_rl", p1, "pass@1", "alike", ALIKE, at=last),
        minus("gold", "rl", at_k(min(8, g.k)), f"pass@{min(8, g.k)}", "above", at=last),
        minus("gold", "rl", at_k(g.k), top, "above", at=last),
        minus("rl", "sft_converged", p1, "pass@1", "above", 0, False, last),
    ]
    three = Finding("3", f"Direct RL raises pass@1 and {top} (expansion); RL after SFT raises pass@1 and lowers {top} "
                         "(sharpening)")  # fmt: skip
    pairs = [("rl", "start", "above"), ("sft_rl", "sft", "below")]
    for a, b, direction in pairs:
        three.claims += [minus(a, b, p1, "pass@1", "above"), minus(a, b, at_k(g.k), top, direction)]
    if "sft_converged_rl" in g.recipes:
        pairs.append(("sft_converged_rl", "sft_converged", "below"))
        three.claims += [minus("sft_converged_rl", "sft_converged", at_k(g.k), top, "below", counts=False)]
    for a, b, direction in pairs:
        three.claims += each(a, b, at_k(g.k), top, direction)

    text, tasks = "bits per byte of general text", "accuracy on general tasks"
    four = Finding("4", "SFT costs general capability, RL does not, by bits per byte (more is worse)")
    four.claims = [
        minus("sft_converged", "base", bits, text, "above", unit="bits"),
        minus("sft_converged", "rl", bits, text, "above", unit="bits"),
        minus("rl", "base", bits, text, "alike", 0.01, unit="bits"),
        minus("sft", "base", bits, text, "above", counts=False, unit="bits"),
        minus("parallel", "base", bits, text, "alike", 0.01, counts=False, unit="bits"),
    ]
    four_tasks = Finding("4, by tasks", "The same by accuracy, as in the paper")
    four_tasks.claims = [
        minus("sft_converged", "base", Entry.tasks, tasks, "below"),
        minus("rl", "base", Entry.tasks, tasks, "kept", KEPT),
        minus("sft", "base", Entry.tasks, tasks, "below", counts=False),
        minus("parallel", "base", Entry.tasks, tasks, "kept", KEPT, counts=False),
    ]
    five = Finding(
        "5", f"Parallel averaging has the best {top} among the recipes that see at most one solution a question"
    )
    for rival in ("sft", "sft_converged", "rl", "sft_rl"):
        if rival in g.recipes or rival in ("sft", "rl"):
            five.claims.append(minus("parallel", rival, at_k(g.k), top, "above"))
    for control in ("sft_dose", "rl_dose"):
        if control in g.recipes:
            five.claims.append(minus("parallel", control, at_k(g.k), f"{top}, control", "above", counts=False))
    five.claims.append(minus("parallel", "rl", p1, "pass@1 (given up)", "below", counts=False))
    for rival in ("sft", "rl"):
        five.claims += each("parallel", rival, at_k(g.k), top, "above")
    return [one, two, three, four, four_tasks, five]


def by_variant(entries: list[Entry], *keys: str) -> dict[tuple, list[Entry]]:
    """The entries of a named plan: those whose variant has exactly these keys, grouped by their values."""
    groups: dict[tuple, list[Entry]] = {}
    for e in entries:
        if set(e.meta["variant"]) == set(keys):
            groups.setdefault(tuple(e.meta["variant"][key] for key in keys), []).append(e)
    return dict(sorted(groups.items()))


def seeds_finding(entries: list[Entry]) -> list[Finding]:
    """Finding 7, from --plan seeds."""
    at: dict[int, list[Entry]] = {}
    for group in by_variant(entries, "rlseed").values():
        for e in group:
            at.setdefault(e.meta["tokens"], []).append(e)
    at = {t: v for t, v in sorted(at.items()) if len(v) > 2}
    if len(at) < 2:
        return []
    table = {t: np.array([e.pass_at(1) for e in v]) for t, v in at.items()}  # (S, Q)
    rng, draws = np.random.default_rng(0), []

    def spread(values: np.ndarray) -> float:
        means = values.mean(1)
        return means.std(ddof=1) / max(means.mean(), 1e-12)

    first, last = table[min(table)], table[max(table)]
    for _ in range(BOOTSTRAP):
        a, b = (v[rng.integers(0, len(v), len(v))][:, rng.integers(0, v.shape[1], v.shape[1])] for v in (first, last))
        draws.append(spread(a) - spread(b))
    low, high = np.quantile(draws, [0.025, 0.975])
    value = {"mean": spread(first) - spread(last), "low": float(low), "high": float(high)}
    finding = Finding("7", "Early checkpoints are brittle across seeds of RL, at equal training reward")
    finding.claims = [
        Claim("spread over seeds (std / mean of pass@1), first − last checkpoint", value, "above", unit="ratio")
    ]
    for t, group in at.items():
        rewards = [
            np.mean([v for _, v in e.meta["curve"]["reward"][-8:]]) for e in group if e.meta["curve"].get("reward")
        ]
        scores = ", ".join(f"{100 * e.pass_at(1).mean():.1f}" for e in group)
        text = f"{million(t)} tokens: pass@1 of {len(group)} seeds {scores}"
        if rewards:
            text += f"; training reward at the end {min(rewards):.2f} to {max(rewards):.2f}"
        spread_t = spread(table[t])
        finding.claims.append(
            Claim(text, {"mean": spread_t, "low": spread_t, "high": spread_t}, "above", 0, False, "ratio")
        )
    return [finding]


def reach(e: Entry, target: float, against: str) -> float:
    """Step, or FLOPs spent by the stage, at which validation pass@1 first reaches a target; nan if never, or at once."""
    steps = [s for s, v in e.meta["curve"].get("val_pass@1", []) if v >= target]
    if not steps or steps[0] == 0:
        return float("nan")
    return float(steps[0] if against == "step" else np.interp(steps[0], *zip(*stage_flops(e), strict=True)))


def stage_flops(e: Entry) -> list[tuple[float, float]]:
    """(step, FLOPs spent since the stage began) along the curve; the log counts all stages, one line a step."""
    points = e.meta["curve"].get("flops", [])
    if not points:  # unknown
        return [(0.0, np.nan)]
    if len(points) < 2:
        return [(0.0, 0.0), *points]
    per_step = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
    return [(0.0, 0.0), *((s, f - points[0][1] + per_step * points[0][0]) for s, f in points)]


def rollouts_finding(entries: list[Entry]) -> list[Finding]:
    """Finding 8, from --plan rollouts."""
    groups = by_variant(entries, "band", "n")
    finding = Finding("8", "Many rollouts a question need fewer steps, few need fewer FLOPs, both end alike")
    for band in dict.fromkeys(band for band, _ in groups):
        counts = sorted(n for b, n in groups if b == band)
        if len(counts) < 2:
            continue
        few, many = ({e.meta["seed"]: e for e in groups[band, n]} for n in (counts[0], counts[-1]))
        seeds = sorted(set(few) & set(many))
        if not seeds:
            continue
        d = np.array([few[s].pass_at(1) - many[s].pass_at(1) for s in seeds])
        what = f"{band} questions, n = {counts[0]} against {counts[-1]}"
        finding.claims.append(Claim(f"{what}: pass@1 at the end", interval(d), "alike", ALIKE))
        for against, wanted in (("step", "above"), ("flops", "below")):
            ratios = []
            for s in seeds:
                ends = [e.meta["curve"].get("val_pass@1", [[0, np.nan]]) for e in (few[s], many[s])]
                target = ends[0][0][1] + 0.9 * (min(max(v for _, v in end) for end in ends) - ends[0][0][1])
                ratios.append([np.log(reach(few[s], target, against) / reach(many[s], target, against))])
            value = None if np.isnan(ratios).any() else interval(np.array(ratios))
            finding.claims.append(
                Claim(
                    f"{what}: log ratio of {'steps' if against == 'step' else 'FLOPs'} to 90% of the gain in validation pass@1",
                    value,
                    wanted,
                    unit="ratio",
                )
            )
    return [finding] if finding.claims else []


def hard_finding(entries: list[Entry]) -> list[Finding]:
    """Finding 6, from --plan mixture (and scale)."""
    effects = {}
    for key in ("math", "size"):
        groups: dict = {}
        for (value,), group in by_variant([e for e in entries if e.recipe == "rl"], key).items():
            last = max(e.meta["tokens"] for e in group)
            groups[value] = {e.meta["seed"]: e for e in group if e.meta["tokens"] == last}
        if len(groups) < 2:
            continue
        # at equal FLOPs the larger model has seen fewer tokens
        rank = {v: v if key == "math" else -max(e.meta["tokens"] for e in g.values()) for v, g in groups.items()}
        low, high = min(rank, key=rank.get), max(rank, key=rank.get)
        seeds = sorted(set(groups[low]) & set(groups[high]))
        if seeds:
            hard = next((name for name in groups[low][seeds[0]].sets if "hard" in name), "")
            d = np.array([groups[high][s].pass_at(1, hard) - groups[low][s].pass_at(1, hard) for s in seeds])
            effects[key] = (f"{low} → {high}", d)
    finding = Finding("6", "On hard questions the pretraining mixture matters more than scale (after RL, pass@1)")
    names = {"math": "math share", "size": "size at equal FLOPs"}
    for key, (what, d) in effects.items():
        finding.claims.append(Claim(f"{names[key]} {what}", interval(d), "above", counts=False))
    if len(effects) == 2:
        (_, a), (_, b) = effects["math"], effects["size"]
        n = min(len(a), len(b))
        finding.claims.append(Claim("effect of the mixture − effect of scale", interval(a[:n] - b[:n]), "above"))
    return [finding] if finding.claims else []


def all_findings(entries: list[Entry]) -> list[Finding]:
    found = grid_findings(Grid([e for e in entries if not e.meta["variant"]]))
    return [*found, *hard_finding(entries), *seeds_finding(entries), *rollouts_finding(entries)]
