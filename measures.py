"""Measures of sampled answers: judged and counted per question, means over questions with their intervals.

pass@k is the unbiased estimator of arXiv 2107.03374 §2.1. In shapes, Q is the number of questions; each has n answers,
of which c are right.
"""

from collections import Counter
from dataclasses import dataclass

import numpy as np

from cli import UserError
from verifier import GRADERS, judge, last_box, normal_form
from verifier.process import equations, sound

BOOTSTRAP = 2000  # resamples of the questions


@dataclass
class Judged:
    """The n answers to one question."""

    counts: dict  # how many are right, have a box, ...: the question's row in the record
    values: list[str | None]  # what each answer says, in the grader's normal form (verifier.normal_form); None: nothing
    gold: str  # the right answer, in that form
    samples: list[dict]  # text and verdict of each; cut: True where it has no stop token


def judge_answers(
    question: dict, texts: list[str], finished: list[bool], lengths: list[int], grader: str, truncated: str
) -> Judged:
    """Judge and count the n sampled answers to a question.

    Args:
        finished: ended by the stop token? lengths: in tokens. grader, truncated: see verifier.judge.
    """
    grades = [judge(text, question["answer"], f, grader, truncated) for text, f in zip(texts, finished, strict=True)]
    said = [grade.answer for grade in grades]
    values = [answer if answer is None else normal_form(answer, grader) for answer in said]  # 1/2 and 0.5 are one value
    samples = [{"text": text, "right": grade.right} for text, grade in zip(texts, grades, strict=True)]
    for row, whole in zip(samples, finished, strict=True):
        if not whole:
            row["cut"] = True
    vote = majority_vote(said, values)
    counts = {"id": question["id"], **{key: question[key] for key in ("facts",) if key in question}, "n": len(texts)}
    counts["c"] = sum(grade.right for grade in grades)
    counts["c_lenient"] = sum(GRADERS["lenient"](text, question["answer"]).right for text in texts)
    if question.get("source") == "world":  # whose solutions have their arithmetic written out
        paths = [equations(text) for text in texts]
        for sample, path in zip(samples, paths, strict=True):
            sample["process"] = sample["right"] and sound(path)
        counts["c_process"] = sum(sample["process"] for sample in samples)
        counts["h_paths"] = entropy([" ".join(path) for path in paths])
    counts["h_answers"] = entropy(values)
    counted = [whole or truncated == "score" for whole in finished]
    counts["box"] = sum(last_box(text) is not None for text, whole in zip(texts, counted, strict=True) if whole)
    counts["majority"] = float(vote is not None and grades[said.index(vote)].right)
    counts["finished"] = sum(finished)
    counts["tokens"] = sum(lengths)
    return Judged(counts, values, normal_form(question["answer"], grader), samples)


def summary(judged: list[Judged], ks: list[int], seed: int = 0) -> dict:
    """Means over questions of which each has n answers, n at least every k:

        {"strict": {"pass@1": {"mean", "low", "high"}, ...}, "lenient": {...}, "process": {...}, "floor": {"pass@1": mean, ...},
         "entropy": {"answers", "paths"}, "majority": {"mean", "low", "high"}, "box", "finished", "tokens" (mean length
         of an answer), "questions": [{"id", "n", "c", "c_lenient", "c_process", "floor", "h_answers", "h_paths", ...}]}

    Of a question, c counts the right answers by the chosen grader, c_lenient and c_process by these; h are entropies.
    "process" (right, and every written equation true) and the entropy of solution paths (the equations, whatever the
    words) are there only if every question is the world's; "floor" (`guess_floor`) if there are at least two
    questions. "strict" is by the chosen grader, whichever it is. Entropies are in nats over a question's n answers; to
    have no answer is one more answer.
    """
    rows = [j.counts for j in judged]
    n = rows[0]["n"]

    def column(name: str) -> np.ndarray | None:  # (Q,), if all questions have it
        return np.array([row[name] for row in rows]) if all(name in row for row in rows) else None

    record = {}
    for kind, count in (("strict", "c"), ("lenient", "c_lenient"), ("process", "c_process")):
        if (right := column(count)) is not None:
            record[kind] = {f"pass@{k}": mean_interval(pass_at_k(n, right, k), seed) for k in ks}
    if len(rows) > 1:
        values, gold = [j.values for j in judged], [j.gold for j in judged]
        floors = {f"pass@{k}": guess_floor(values, gold, k) for k in ks}
        record["floor"] = {k: float(floor.mean()) for k, floor in floors.items()}
        for i, row in enumerate(rows):
            row["floor"] = {k: float(floor[i]) for k, floor in floors.items()}
    entropies = {kind: column(f"h_{kind}") for kind in ("answers", "paths")}
    record["entropy"] = {kind: float(values.mean()) for kind, values in entropies.items() if values is not None}
    record["majority"] = mean_interval(column("majority"), seed)
    record |= {share: float(column(share).mean() / n) for share in ("box", "finished", "tokens")}
    return {**record, "questions": rows}


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
    """Mean of one value per question, with a bootstrap 95% interval over questions. UserError without a value."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        raise UserError("no question to take a mean over: a file of questions or a record of an evaluation is empty")
    rng = np.random.default_rng(seed)
    size, means = len(values), []
    while (left := BOOTSTRAP - sum(map(len, means))) > 0:  # so many at once that their numbers take 64 MB at most
        draws = rng.integers(0, size, (min(left, max(1, 4_000_000 // size)), size))
        means.append(values[draws].mean(1))
    means = np.concatenate(means)
    low, high = np.quantile(means, [0.025, 0.975])
    return {"mean": float(values.mean()), "low": float(low), "high": float(high)}


def majority_vote(answers: list[str | None], values: list[str | None]) -> str | None:
    """The most frequent answer, in its most frequent spelling; of equally frequent ones the first. No answer, no vote.

    values: the normal form of each answer. Those of one value are counted together."""
    votes = Counter(value for value in values if value is not None)  # Counter keeps the order of first appearance
    if not votes:
        return None
    winner = max(votes, key=votes.get)
    spellings = Counter(answer for answer, value in zip(answers, values, strict=True) if value == winner)
    return max(spellings, key=spellings.get)


def guess_floor(answers: list[list[str | None]], gold: list[str], k: int) -> np.ndarray:
    """(Q,) pass@k of each question's answers when they are judged against another question's right answer: what luck gives.

    The mean over all other questions, which is what random permutations of the questions give on average, exactly. An
    answer can count only where another question has its value, so the distinct values suffice.

    Args:
        answers: of each question, the normal forms (verifier.normal_form) of its n samples, None without an answer.
        gold: of each question, that of the right answer. ValueError for a single question.
    """
    if len(gold) < 2:
        raise ValueError("a guess floor needs two questions")
    wanted, floor = Counter(gold), np.zeros(len(gold))
    for i, attempts in enumerate(answers):
        counts = {a: c for a, c in Counter(attempts).items() if a in wanted}  # value → answers that have it
        # Of each value: how many other questions it is right for
        others = np.array([wanted[a] - (a == gold[i]) for a in counts])
        if counts:
            floor[i] = others @ pass_at_k(len(attempts), np.array(list(counts.values())), k) / (len(gold) - 1)
    return floor.round(6)  # what a record keeps of them has the record's mean


def entropy(values: list) -> float:
    """Nats of the empirical distribution of a question's n samples over their values; at most log n."""
    share = np.array(list(Counter(values).values())) / len(values)
    return round(float((share * -np.log(share)).sum()), 6)
