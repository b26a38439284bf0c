"""stats.py: intervals that hold what they promise at three seeds, clusters, equivalence, Holm, power, ratios."""

import numpy as np
import pytest

from excursion.stats import Estimate, bootstrap, estimate, holm, log_spread_ratio, ratio


def draw(rng, seed: float, question: float, rest: float, shape=(3, 512)) -> np.ndarray:
    """Values of the model of stats.py with mean 0 and these standard deviations."""
    return rng.normal(0, seed, (shape[0], 1)) + rng.normal(0, question, (1, shape[1])) + rng.normal(0, rest, shape)


@pytest.mark.parametrize(
    "seed, question, rest", [(0, 0.3, 0.3), (0.01, 0.3, 0.3), (0.03, 0.3, 0.3), (0.08, 0.3, 0.3), (0.01, 0.5, 0.1)]
)
def test_interval_covers_the_mean_at_three_seeds(seed, question, rest):
    """3 seeds × 512 questions, from seeds that are alike to seeds that differ more than questions do: the small-sample
    interval holds the true mean in 92% of draws or more (95% promised; 1.5% is three standard errors of 500 draws)."""
    rng = np.random.default_rng(0)
    found = [estimate(draw(rng, seed, question, rest)) for _ in range(500)]
    assert np.mean([x.low <= 0 <= x.high for x in found]) >= 0.92 - 0.015


def test_bootstrap_is_too_narrow_where_seeds_differ():
    """Why the small-sample interval decides: with three seeds that differ, the crossed bootstrap misses the mean in
    more than a tenth of draws, the small-sample interval in fewer than half as many."""
    rng, misses = np.random.default_rng(1), np.zeros(2)
    for _ in range(600):
        y = draw(rng, 0.4, 0.3, 0.3, (3, 32))
        x, (low, high) = estimate(y), bootstrap(y)
        misses += [not x.low <= 0 <= x.high, not low <= 0 <= high]
    assert misses[1] / 600 > 0.1 and misses[0] < misses[1] / 2


def test_estimate_against_hand_computed_cases():
    """One seed: Student's t over questions. One number a run: over seeds. Equal seeds: as many questions as there are,
    no more. One value: no interval."""
    x = estimate(np.array([[1.0, 2.0, 3.0, 6.0]]))
    assert x.mean == 3 and x.se == pytest.approx(np.std([1, 2, 3, 6], ddof=1) / 2) and x.df == pytest.approx(3)
    assert x.high - x.mean == pytest.approx(3.182446 * x.se, rel=1e-6)  # t of 3 degrees of freedom
    by_run = estimate(np.array([[1.0], [2.0], [4.5]]))
    assert by_run.se == pytest.approx(np.std([1, 2, 4.5], ddof=1) / 3**0.5) and by_run.df == pytest.approx(2)
    assert by_run.half_width == pytest.approx(4.302653 * by_run.se, rel=1e-6)  # t of 2
    one = np.random.default_rng(0).random((1, 50))
    assert estimate(np.repeat(one, 4, 0)).half_width == pytest.approx(estimate(one).half_width, rel=1e-9)
    assert np.isinf(estimate(np.array([[0.3]])).half_width) and estimate(np.array([[0.3]])).p_above() == 1
    # Two seeds, two questions: seed means 2 and 6, question means 1 and 7, residuals of ±1. Va = 4, Vb = 9, Ve = 1
    both = estimate(np.array([[0.0, 4.0], [2.0, 10.0]]))
    assert both.se == pytest.approx((4 + 9 - 1) ** 0.5) and both.df == pytest.approx(12**2 / (4**2 + 9**2 + 1**2))
    # Va = Vb = 0.25 and Ve = 2.25: never below either
    assert estimate(np.array([[0.0, 4.0], [4.0, 2.0]])).se == pytest.approx(0.5)
    exact = estimate(np.full((3, 9), 0.25))
    assert exact.low == exact.high == 0.25 and exact.p_above() == 0 and exact.p_above(0.25) == 1


def test_bootstrap_against_hand_computed_cases():
    """Three seeds of 0, 1, 2 for all questions: means of 3 draws, whose ends have a probability of 1/27 > 2.5%."""
    assert bootstrap(np.repeat([[0.0], [1.0], [2.0]], 7, 1)) == pytest.approx((0, 2))
    one = np.random.default_rng(0).random((1, 50))
    low, high = bootstrap(one)
    assert (high - low) / 2 == pytest.approx(1.96 * one.std() / 50**0.5, rel=0.08)


def test_questions_of_one_fact_count_once():
    """Each question asked four times under other names, clustered: the interval of the questions themselves. Without
    the clusters it would be half as wide."""
    y = draw(np.random.default_rng(0), 0.0, 1.0, 0.3, (3, 64))
    four, facts = np.repeat(y, 4, axis=1), np.repeat(np.arange(64), 4)
    assert estimate(four, facts).half_width == pytest.approx(estimate(y).half_width, rel=1e-9)
    assert estimate(four).half_width < 0.7 * estimate(y).half_width
    wide, narrow = bootstrap(four, facts), bootstrap(four)
    assert wide[1] - wide[0] > 1.3 * (narrow[1] - narrow[0])


def test_holm():
    """Holm's own order: the smallest times m, the next times m − 1, never below an earlier one, at most 1."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0] and holm([]) == []


def test_equivalence_needs_both_sides():
    """Within ± margin: the larger of two one-sided p-values; a wide interval around 0 shows nothing."""
    narrow, wide = (Estimate(0.0, se, 100.0, 3, 500, 500) for se in (0.001, 0.02))
    assert narrow.p_within(0.01) < 1e-6 and wide.p_within(0.01) > 0.3
    beyond = Estimate(0.03, 0.001, 100.0, 3, 500, 500)
    assert beyond.p_within(0.01) > 0.99 and beyond.p_above(0.01) < 1e-6 and beyond.p_below(0.0) > 0.99


def test_visible_effect_is_seen_in_four_of_five():
    """An effect as large as `visible` is significant in 80% of draws (1.3% is one standard error of 1000)."""
    rng, n = np.random.default_rng(2), 40
    effect = estimate(np.tile([1.0, -1.0], n // 2)[None]).visible  # of values with unit spread
    seen = [estimate(rng.normal(effect, 1.0, (1, n))).low > 0 for _ in range(1000)]
    assert np.mean(seen) == pytest.approx(0.8, abs=0.04)


def test_equality_within_its_margin_is_shown_in_four_of_five():
    """Two equal things are called equal within `equal_within` in 80% of draws."""
    rng, n = np.random.default_rng(2), 40
    margin = estimate(np.tile([1.0, -1.0], n // 2)[None]).equal_within
    shown = [estimate(rng.normal(0, 1.0, (1, n))).p_within(margin) <= 0.05 for _ in range(1000)]
    assert np.mean(shown) == pytest.approx(0.8, abs=0.04)


def test_ratio_is_fiellers():
    """The interval holds the ratio in 95% of draws, and is open where the denominator may be 0."""
    rng, hits = np.random.default_rng(3), 0
    for _ in range(200):
        base = rng.normal(0.1, 0.15, (1, 200))
        center, low, high = ratio(3 * base + rng.normal(0, 0.3, (1, 200)), base)
        hits += low <= 3 <= high
    assert hits / 200 > 0.91
    assert np.isinf(ratio(np.ones((1, 9)), np.array([[1.0, -1, 1, -1, 1, -1, 1, -1, 0.1]]))[2])


def test_spread_ratio_against_the_f_table():
    """Two groups of five: the 95% interval of the ratio of standard deviations is a factor of √9.6045 (F of 4 and 4) each way."""
    a, b = np.array([1.0, 2, 3, 4, 5]), np.array([2.0, 2.5, 3, 3.5, 4])
    x = log_spread_ratio(a, b)
    assert np.exp(x.mean) == pytest.approx(2.0) and np.exp(x.half_width) == pytest.approx(9.60453**0.5, rel=1e-4)
