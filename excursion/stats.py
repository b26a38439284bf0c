"""Intervals, tests and their correction for what was measured at a few seeds on many questions.

Values are (S, Q): seeds × questions, all seeds asked the same questions (crossed, not nested). The model is

    y[s, q] = mean + seed[s] + question[q] + rest[s, q]          all three drawn at random and independent

and the variance of the grand mean is estimated by the parts of a two-way analysis of variance,

    V = Va + Vb - Ve      Va: variance of the S seed means / S            (holds seed and rest)
                          Vb: variance of the Q question means / Q        (holds question and rest)
                          Ve: variance of the residuals / (S Q)           (rest, which both of them hold)

never below Va or Vb, since no part is negative, with Satterthwaite's degrees of freedom. Student's t with these is the
*small-sample interval*, and verdicts are by it. The crossed bootstrap stands beside it: it resamples the few seeds that
there are, whose resampled variance is (S - 1) / S of what it should be, and takes no account of how uncertain that is.
test_stats.py measures the coverage of both at 3 seeds × 512 questions.

Questions that hinge on the same fact are not independent. `clusters` names each question's fact; sums over a cluster
then take the place of questions in Vb and Ve (cluster-robust variance: Liang and Zeger, 1986), and the bootstrap draws
clusters.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from scipy.special import fdtri, stdtr, stdtrit

ALPHA = 0.05  # of intervals and tests; of all contrasts of a finding together, after Holm's correction
BOOTSTRAP = 2000  # draws


@dataclass(frozen=True)
class Estimate:
    """A mean with its standard error. seeds, questions, clusters: how many it is over."""

    mean: float
    se: float  # inf: one value alone, no interval
    df: float
    seeds: int
    questions: int
    clusters: int

    @property
    def half_width(self) -> float:
        return float(stdtrit(self.df, 1 - ALPHA / 2)) * self.se

    @property
    def low(self) -> float:
        return self.mean - self.half_width

    @property
    def high(self) -> float:
        return self.mean + self.half_width

    @property
    def visible(self) -> float:
        """The smallest true effect that a test of this size calls significant in 80% of cases (before Holm)."""
        return float(stdtrit(self.df, 1 - ALPHA / 2) + stdtrit(self.df, 0.8)) * self.se

    @property
    def equal_within(self) -> float:
        """The smallest margin within which p_within calls two equal things equal in 80% of cases (before Holm)."""
        return float(stdtrit(self.df, 1 - ALPHA) + stdtrit(self.df, 0.9)) * self.se

    def p_above(self, at: float = 0.0) -> float:
        """One-sided p-value against "the true mean is at most `at`"."""
        if np.isinf(self.se):
            return 1.0
        if self.se == 0:
            return 0.0 if self.mean > at else 1.0
        return float(stdtr(self.df, -(self.mean - at) / self.se))

    def p_below(self, at: float = 0.0) -> float:
        """One-sided p-value against "the true mean is at least `at`"."""
        return replace(self, mean=-self.mean).p_above(-at)

    def p_within(self, margin: float) -> float:
        """Equivalence by two one-sided tests (Schuirmann, 1987): against "the true mean is outside ± margin"."""
        return max(self.p_above(-margin), self.p_below(margin))


def _by_cluster(values: np.ndarray, clusters) -> tuple[np.ndarray, np.ndarray, int]:
    """(S, Q) values, the number of each question's cluster (without clusters each is its own), and how many there are."""
    y = np.atleast_2d(np.asarray(values, dtype=float))
    codes = np.arange(y.shape[1]) if clusters is None else np.unique(np.asarray(clusters), return_inverse=True)[1]
    return y, codes, int(codes.max()) + 1


def estimate(values: np.ndarray, clusters=None) -> Estimate:
    """Grand mean of (S, Q) values with its small-sample standard error. clusters: (Q,) a label for each question.

    One seed: over questions alone; one question (a number per run): over seeds alone; one of both: no interval.
    """
    y, codes, n_clusters = _by_cluster(values, clusters)
    n_seeds, n_questions = y.shape
    mean, by_seed, by_question = float(y.mean()), y.mean(1), y.mean(0)
    if n_seeds == n_clusters == 1:
        return Estimate(mean, float("inf"), 1.0, n_seeds, n_questions, n_clusters)

    def squares(rows: np.ndarray) -> float:
        """Σ over rows and clusters of the squared sum over the cluster."""
        return float(sum((np.bincount(codes, row, n_clusters) ** 2).sum() for row in rows))

    va = float(by_seed.var(ddof=1)) / n_seeds if n_seeds > 1 else 0.0
    vb = ve = 0.0
    if n_clusters > 1:
        more = n_clusters / (n_clusters - 1)  # as ddof=1 does for a variance
        vb = squares((by_question - mean)[None]) / n_questions**2 * more
        if n_seeds > 1:
            rest = y - by_seed[:, None] - by_question + mean
            ve = squares(rest) / (n_seeds * n_questions) ** 2 * more * n_seeds / (n_seeds - 1)
    v = max(va + vb - ve, va, vb)
    parts = [(va, n_seeds - 1), (vb, n_clusters - 1), (ve, (n_seeds - 1) * (n_clusters - 1))]
    spread = sum(part**2 / df for part, df in parts if df > 0)
    return Estimate(mean, v**0.5, v**2 / spread if spread > 0 else 1.0, n_seeds, n_questions, n_clusters)


@lru_cache(4)
def resample(n: int, seed: int) -> np.ndarray:
    """(B, n): how often each of n things is drawn in each bootstrap sample of n."""
    return np.random.default_rng(seed).multinomial(n, np.full(n, 1 / n), BOOTSTRAP).astype(np.float32)


def bootstrap(values: np.ndarray, clusters=None) -> tuple[float, float]:
    """Crossed bootstrap interval of the grand mean: seeds and questions (or clusters) are drawn independently."""
    y, codes, n = _by_cluster(values, clusters)
    if len(y) == n == 1:
        return -np.inf, np.inf
    sums = np.array([np.bincount(codes, row, n) for row in y])  # (S, C)
    draws, seeds = resample(n, 1), resample(len(y), 0)
    means = ((seeds @ sums) * draws).sum(1) / len(y) / (draws @ np.bincount(codes, minlength=n))
    low, high = np.quantile(means, [ALPHA / 2, 1 - ALPHA / 2])
    return float(low), float(high)


def ratio(above: np.ndarray, below: np.ndarray, clusters=None) -> tuple[float, float, float]:
    """Ratio of two grand means, paired by seed and question, with Fieller's interval: every r for which
    mean(above - r below) = 0 is not rejected. The interval may be open (inf) where `below` is not clearly above 0."""
    center = float(np.mean(above) / np.mean(below)) if np.mean(below) > 0 else float("inf")
    if np.isinf(center):
        return center, 0.0, float("inf")

    def rejected(r: float) -> bool:
        x = estimate(above - r * below, clusters)
        return not x.low <= 0 <= x.high

    def edge(inside: float, outside: float) -> float:
        for _ in range(40):
            middle = (inside + outside) / 2
            inside, outside = (inside, middle) if rejected(middle) else (middle, outside)
        return inside

    far = 2 * center + 1
    while not rejected(far) and far < 1e4:
        far *= 2
    return center, edge(center, 0.0) if rejected(0.0) else 0.0, edge(center, far) if far < 1e4 else float("inf")


def log_spread_ratio(a: np.ndarray, b: np.ndarray) -> Estimate:
    """log(relative spread of a / relative spread of b) of values of several seeds, spread: standard deviation / mean.

    The interval is that of the F distribution of the ratio of two variances of normal values (their means are known far
    better than their spreads); se and df are those of the Student's t whose 95% interval has the same width.
    """
    spreads = [float(np.std(x, ddof=1) / max(np.mean(x), 1e-12)) for x in (a, b)]
    if min(spreads) <= 0:
        return Estimate(float("nan"), float("inf"), 1.0, len(a) + len(b), 1, 1)
    da, db = len(a) - 1, len(b) - 1
    # The two logs add up to the width of the interval of log F, the log ratio of variances. That of standard deviations
    # is half as wide, and half of it lies on each side
    width = 0.25 * float(np.log(fdtri(da, db, 1 - ALPHA / 2)) + np.log(fdtri(db, da, 1 - ALPHA / 2)))
    df = da + db
    return Estimate(float(np.log(spreads[0] / spreads[1])), width / float(stdtrit(df, 1 - ALPHA / 2)), df, df + 2, 1, 1)


def holm(p_values: list[float]) -> list[float]:
    """p-values adjusted so that all tests together are wrong in at most ALPHA of cases (Holm, 1979)."""
    adjusted, largest = [1.0] * len(p_values), 0.0
    for rank, i in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[i]))
        adjusted[i] = largest
    return adjusted
