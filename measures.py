"""Measures of sampled answers, as functions of counts: pass@k, majority vote, guess floor, entropy, a mean's interval.

pass@k is the unbiased estimator of arXiv 2107.03374 §2.1.
"""

from collections import Counter

import numpy as np

from verifier import canonical

BOOTSTRAP = 2000  # resamples of the questions


def pass_at_k(n: np.ndarray | int, c: np.ndarray, k: int) -> np.ndarray:
    """Probability that at least one of k samples, drawn from n of which c are right, is right: 1 - C(n-c, k) / C(n, k).

    Args:
        n, c: (Q,) or scalars. k: at most every n (ValueError else).
    """
    n, c = np.broadcast_arrays(np.asarray(n), np.asarray(c))
    if k < 1 or (n < k).any():
        raise ValueError(f"pass@{k} needs at least {k} samples a question, there are {int(n.min())}")
    i = np.arange(k)  # the product of (n - c - i) / (n - i) hits zero when fewer than k are wrong
    return 1.0 - np.prod(np.clip((n - c)[..., None] - i, 0, None) / (n[..., None] - i), axis=-1)


def mean_interval(values: np.ndarray, seed: int = 0) -> dict:
    """Mean of one value per question, with a bootstrap 95% interval over questions. ValueError without a value."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise ValueError("no question to take a mean over")
    rng = np.random.default_rng(seed)
    means = values[rng.integers(0, len(values), (BOOTSTRAP, len(values)))].mean(1)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def majority_vote(answers: list[str | None]) -> str | None:
    """The most frequent answer, equal values counted together; of equally frequent ones the first. No answer, no vote."""
    votes = Counter(canonical(a) for a in answers if a is not None)  # Counter keeps the order of first appearance
    if not votes:
        return None
    winner = max(votes, key=votes.get)
    return next(a for a in answers if a is not None and canonical(a) == winner)


def guess_floor(answers: list[list[str]], gold: list[str], k: int) -> np.ndarray:
    """(Q,) pass@k of each question's answers when they are judged against another question's right answer: what luck gives.

    The mean over all other questions, which is what random permutations of the questions give on average, exactly: a
    question's answers are right together only where another question has their value, so the distinct values suffice.

    Args:
        answers: of each question, the normal forms (verifier.canonical) of its n samples, None without an answer.
        gold: of each question, that of the right answer. ValueError for a single question.
    """
    if len(gold) < 2:
        raise ValueError("a guess floor needs two questions")
    wanted, floor = Counter(gold), np.zeros(len(gold))
    for i, attempts in enumerate(answers):
        counts = {a: c for a, c in Counter(attempts).items() if a in wanted}
        others = np.array([wanted[a] - (a == gold[i]) for a in counts])
        if counts:
            floor[i] = others @ pass_at_k(len(attempts), np.array(list(counts.values())), k) / (len(gold) - 1)
    return floor.round(6)  # what a record keeps of them has the record's mean


def entropy(values: list) -> float:
    """Nats of the empirical distribution of a question's n samples over their values; at most log n."""
    share = np.array(list(Counter(values).values())) / len(values)
    return round(float((share * -np.log(share)).sum()), 6)
