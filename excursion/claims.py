"""Claims and their verdicts: what a contrast was expected to be, and what its interval says.

A *finding* is a list of *primary* claims, each about one contrast in a stated direction, and others that stand beside
them. Intervals are 95%, small-sample (stats.py), paired by question and seed. Holm's correction over the primary claims
of a finding, one for "shown" and one for "contradicted", keeps the chance of any wrong one of either at 5%; a contrast
that was not run counts there too. A claim is

    shown          significantly on the paper's side
    contradicted   significantly on the other side; or, where the paper claims an advantage over a control, significantly
                   less than a named margin: alike is a contradiction there
    unclear        neither: its interval says how large the effect may be, and "visible" how large it had to be to be seen
                   in four of five such studies. Or no value: the two sides share no pass@1 at which to compare them
    not run        records are missing; the line says which

"Alike" and "unchanged" are shown by two one-sided tests within a named margin, never by a difference that is not
significant. Such a test, and that of a named margin, is one-sided at 5%, so that a 95% interval may reach across the
margin all the same. With one seed an interval is over questions alone. Such a verdict holds for that one run, and says
so; where the two sides come from different pretraining runs it is "unclear", since one seed cannot tell an effect from
how runs differ.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from excursion.contrasts import Contrast
from excursion.records import million
from excursion.stats import ALPHA, Estimate, holm

ONE_RUN = " in one run"  # behind a verdict that no second seed was asked about


@dataclass
class Claim:
    """A contrast with a stated direction."""

    text: str
    x: Estimate | None  # the contrast's mean with its standard error; None: records are missing
    wanted: str  # "above" or "below" the margin, or "alike": within ± margin
    margin: float = 0.0
    at: int | None = None  # one checkpoint; None: the mean over all
    counts: bool = True  # towards the finding's verdict; else it stands beside
    unit: str = "points"  # of 100; or bits (per byte), log (of a factor)
    needs: str = ""  # which records are missing
    boot: tuple[float, float] | None = None  # the interval of the bootstrap
    # "above" is contradicted by an effect that is significantly smaller than margin + small; 0: no such rule
    small: float = 0.0
    across_runs: bool = False  # its sides come from different pretraining runs
    over: str = ""  # of a mean: its checkpoints; and where all seeds start from one pretraining run
    settles: bool = True  # False: these records could show it, but not contradict it (such as at too small a dose)
    apart: bool = False  # x is None though both sides were judged: they share no pass@1 at which to compare them
    shown_as: str = ""  # in place of mean and interval
    visible_as: str = ""  # in place of the smallest visible effect
    wish: str = ""  # in place of `expected`
    p_shown: float = 1.0  # after Holm, which Finding applies
    p_against: float = 1.0

    @property
    def tests(self) -> tuple[float, float]:
        """p-values of "shown" and of "contradicted", two-sided, before Holm (equivalence: one-sided, see stats.py)."""
        x, m = self.x, self.margin
        if x is None:
            return 1.0, 1.0
        if self.wanted == "alike":
            return x.p_within(m), min(1.0, 2 * min(x.p_above(m), x.p_below(-m)))
        if self.wanted == "below":
            x, m = replace(x, mean=-x.mean), -m
        against = min(1.0, 2 * x.p_below(m))
        if self.small:
            against = min(against, x.p_below(m + self.small))
        return min(1.0, 2 * x.p_above(m)), against

    @property
    def verdict(self) -> str:
        if self.x is None:
            return "unclear" if self.apart else "not run"
        if self.of_one_seed and self.across_runs:
            return "unclear"
        if self.p_shown <= ALPHA:
            return "shown"
        return "contradicted" if self.p_against <= ALPHA and self.settles else "unclear"

    @property
    def of_one_seed(self) -> bool:
        return self.x is not None and self.x.seeds == 1

    # How the report writes it. "–": nothing to write

    @property
    def said(self) -> str:
        """The verdict, with what it holds for."""
        decided = self.verdict in ("shown", "contradicted")
        return self.verdict + ONE_RUN * (decided and self.of_one_seed)

    def number(self, value: float, sign: str = "+") -> str:
        if self.unit == "log":
            return f"×{np.exp(value):.2f}"
        text = f"{100 * value:{sign}.1f}" if self.unit == "points" else f"{value:{sign}.4f}"
        return text.replace("-", "−")

    def interval(self, low: float, high: float) -> str:
        return f"[{self.number(low)}, {self.number(high)}]"

    @property
    def numbers(self) -> str:
        """Mean and interval."""
        if self.x is None:
            return "–"
        if self.shown_as:
            return self.shown_as
        known = np.isfinite(self.x.se)
        return f"{self.number(self.x.mean)} {self.interval(self.x.low, self.x.high) if known else '[one value: no interval]'}"

    @property
    def bootstrap(self) -> str:
        return "–" if self.boot is None or np.isinf(self.boot[0]) else self.interval(*self.boot)

    @property
    def visible(self) -> str:
        """The smallest effect that four of five such studies would see; of "alike" the smallest margin that they could show."""
        if self.x is None or np.isinf(self.x.se):
            return "–"
        if self.wanted == "alike":
            return f"± {self.number(self.x.equal_within, '')}"
        return self.visible_as or self.number(self.x.visible, "")

    @property
    def n(self) -> str:
        """How many values it is over: seeds × questions; of which checkpoints, if it is a mean; and where seeds share a
        pretraining run."""
        if self.x is None:
            return "–"
        clusters = f" ({self.x.clusters} clusters)" if self.x.clusters < self.x.questions else ""
        values = f"{self.x.seeds}" if self.x.questions == 1 else f"{self.x.seeds} × {self.x.questions}{clusters}"
        return f"{values}, {self.over}" if self.over else values

    @property
    def expected(self) -> str:
        if self.wish:
            return self.wish
        if self.unit == "log":
            return f"{self.wanted} ×1"
        margin = f"{100 * self.margin:g}" if self.unit == "points" else f"{self.margin:g}"
        return {"alike": f"within ± {margin}", "above": f"> {margin}", "below": f"< {margin}"}[self.wanted]


def claim(c: Contrast | None, text: str, wanted: str, margin: float = 0.0, **more) -> Claim:
    """A claim about a contrast; None: it could not be made of these records. more: fields of Claim."""
    if c is None:
        return Claim(text, None, wanted, margin, **more)
    return Claim(text, c.estimate(), wanted, margin, boot=c.bootstrap(), over=over(c), **more)


def over(c: Contrast) -> str:
    """Of a mean its checkpoints; and where all seeds start from one pretraining run. Empty: neither."""
    words = [("mean of " if len(c.places) > 1 else "at ") + listed([*map(million, c.places)])] if c.places else []
    if c.one_run == c.places if c.places else c.from_one_run:
        words.append("one pretraining run")
    elif c.one_run:
        words.append(f"one pretraining run at {listed([*map(million, c.one_run)])}")
    return ", ".join(words)


def correct(claims: list[Claim]) -> None:
    """Holm's correction over these. What was not run counts with p = 1, so that no later record weakens the correction."""
    tests = [c.tests for c in claims]
    shown, against = (holm([p[side] for p in tests]) for side in (0, 1))
    for i, c in enumerate(claims):
        c.p_shown, c.p_against = shown[i], against[i]


@dataclass
class Finding:
    """Claims that stand or fall together."""

    number: str
    title: str
    claims: list[Claim] = field(default_factory=list)
    any_of: bool = False  # one primary claim is enough to show it, and all must speak against it to contradict it
    notes: list[str] = field(default_factory=list)
    needs: str = ""  # what to run, if nothing of it was

    def __post_init__(self):
        """Holm's correction over the primary claims; the others keep their own p-values."""
        for c in self.beside:
            c.p_shown, c.p_against = c.tests
        correct(self.primary)

    @property
    def primary(self) -> list[Claim]:
        return [c for c in self.claims if c.counts]

    @property
    def beside(self) -> list[Claim]:
        """The other claims, as far as they have records."""
        return [c for c in self.claims if not c.counts and c.x is not None]

    @property
    def verdict(self) -> str:
        verdicts = {c.verdict for c in self.primary}
        if verdicts <= {"not run"}:
            return "not run"
        if self.any_of:
            return "shown" if "shown" in verdicts else "contradicted" if verdicts == {"contradicted"} else "unclear"
        if "contradicted" in verdicts:
            return "contradicted"
        return "not run" if "not run" in verdicts else "shown" if verdicts == {"shown"} else "unclear"

    @property
    def said(self) -> str:
        """The verdict, with what it holds for."""
        decisive = [c for c in self.primary if c.verdict == self.verdict]
        decided = self.verdict in ("shown", "contradicted")
        all_needed = (self.verdict == "shown") != self.any_of  # else one claim alone decides
        one_run = (any if all_needed else all)(c.of_one_seed for c in decisive)
        return self.verdict + ONE_RUN * (decided and one_run)


def listed(names: list[str]) -> str:
    """a, b and c"""
    return " and ".join([", ".join(names[:-1]), *names[-1:]][len(names) < 2 :])
