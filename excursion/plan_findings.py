"""Findings 6 to 8 and the question of the demonstrations, from the named plans of plan.py (what sharpens: sharpening.py).

Rules, verdicts and intervals are those of findings.py. What has no records is "not run", with the command that makes them.
"""

import numpy as np

from excursion.claims import Claim, Finding, claim, listed
from excursion.contrasts import Contrast, by_variant, contrast, judged_alike, models
from excursion.findings import MATCH, grid_findings
from excursion.records import Entry, Questions, million
from excursion.sharpening import Sharpening, answer
from excursion.stats import log_spread_ratio


def per_seed(values: list[float]) -> Contrast | None:
    """One number a seed, as a contrast; None if any is missing."""
    rows = np.array(values, dtype=float)[:, None]
    return (
        None if not len(rows) or np.isnan(rows).any() else Contrast(rows, None, tuple((i, i) for i in range(len(rows))))
    )


# ---------------------------------------------------------------------------------------------------------------------
# 6: mixture against scale
# ---------------------------------------------------------------------------------------------------------------------


def hard_finding(entries: list[Entry]) -> Finding:
    sides, needs = (
        {},
        "plans mixture and scale: RL from base at the last checkpoint of two math shares and of two sizes",
    )
    for key in ("math", "size"):
        groups: dict = {}
        for (value,), group in by_variant([e for e in entries if e.recipe == "rl"], key).items():
            last = max(e.tokens for e in group)
            groups[value] = [e for e in group if e.tokens == last]
        if len(groups) > 1:
            # at equal FLOPs the larger model has seen fewer tokens
            rank = {v: v if key == "math" else -max(e.tokens for e in group) for v, group in groups.items()}
            low, high = min(rank, key=rank.get), max(rank, key=rank.get)
            sides[key] = (f"{low} → {high}", models(groups[high]), models(groups[low]))
    sets = [name for e in entries for name in e.sets if "hard" in name]
    measure, claims = Questions(1, set=sets[0] if sets else ""), []
    names = {"math": "math share", "size": "size at equal FLOPs"}
    for key, (what, high, low) in sides.items():
        claims.append(
            claim(
                contrast([(1, high), (-1, low)], measure), f"{measure.name}: {names[key]} {what}", "above", counts=False
            )
        )
    both = None
    if len(sides) == 2:
        (_, a, b), (_, c, d) = sides["math"], sides["size"]
        both = contrast([(1, a), (-1, b), (-1, c), (1, d)], measure)
    claims.append(claim(both, f"{measure.name}: gain by the mixture − gain by size", "above", needs=needs))
    return Finding(
        "6",
        "On hard questions the pretraining mixture matters more than scale (RL from base, pass@1)",
        claims,
        needs=needs,
    )


# ---------------------------------------------------------------------------------------------------------------------
# 7: seeds
# ---------------------------------------------------------------------------------------------------------------------


def seeds_finding(entries: list[Entry]) -> Finding:
    at: dict[int, list[Entry]] = {}
    for group in by_variant(entries, "rlseed").values():  # a seed of RL; of several steps the last
        for e in {e.tokens: e for e in sorted(group, key=lambda e: e.step)}.values():
            at.setdefault(e.tokens, []).append(e)
    at = {t: group for t, group in sorted(at.items()) if len(group) > 2}
    needs = "plan seeds: three seeds or more of RL from each of two checkpoints"
    title = "Early checkpoints are brittle across seeds of RL, at equal training reward"
    if len(at) < 2:
        return Finding(
            "7",
            title,
            [Claim("spread of pass@1 over seeds, first / last checkpoint", None, "above", needs=needs)],
            needs=needs,
        )
    one = Questions(1)
    scores = {t: np.array([one(e).values.mean() for e in group]) for t, group in at.items()}
    rewards = {
        t: np.array([np.mean([v for _, v in e.curve("reward")[-8:]]) for e in group if e.curve("reward")])
        for t, group in at.items()
    }
    first, last = min(at), max(at)
    text = f"spread over seeds (standard deviation / mean), {million(first)} / {million(last)}"
    claims = [Claim(f"{text}: pass@1", log_spread_ratio(scores[first], scores[last]), "above", unit="log")]
    if all(len(r) > 2 for r in rewards.values()):
        claims.append(Claim(f"{text}: training reward at the end", log_spread_ratio(rewards[first], rewards[last]), "above",
                            counts=False, unit="log"))  # fmt: skip
    notes = []
    for t in at:
        reward = (
            f"; training reward at the end {rewards[t].min():.2f} to {rewards[t].max():.2f}" if len(rewards[t]) else ""
        )
        notes.append(
            f"{million(t)}: pass@1 of {len(at[t])} seeds {', '.join(f'{100 * s:.1f}' for s in scores[t])}{reward}."
        )
    return Finding("7", title, claims, notes=notes, needs=needs)


# ---------------------------------------------------------------------------------------------------------------------
# 8: rollouts
# ---------------------------------------------------------------------------------------------------------------------


def stage_flops(e: Entry) -> list[tuple[float, float]]:
    """(step, FLOPs spent since the stage began) along the curve; the log counts all stages, one line a step."""
    points = e.curve("flops")
    if not points:  # unknown
        return [(0.0, np.nan)]
    if len(points) < 2:
        return [(0.0, 0.0), *points]
    per_step = (points[-1][1] - points[0][1]) / (points[-1][0] - points[0][0])
    return [(0.0, 0.0), *((s, f - points[0][1] + per_step * points[0][0]) for s, f in points)]


def reach(e: Entry, target: float, against: str) -> float:
    """Step, or FLOPs spent by the stage, at which validation pass@1 first reaches a target; nan if never, or at once."""
    steps = [s for s, v in e.curve("val_pass@1") if v >= target]
    if not steps or steps[0] == 0:
        return float("nan")
    return float(steps[0] if against == "step" else np.interp(steps[0], *zip(*stage_flops(e), strict=True)))


def rollouts_finding(entries: list[Entry]) -> Finding:
    groups, claims = by_variant(entries, "band", "n"), []
    needs = "plan rollouts: RL from base with few and with many answers a question, same seeds"
    for band in dict.fromkeys(band for band, _ in groups) or ["easy"]:
        counts = sorted(n for b, n in groups if b == band)
        few, many = (
            (models(groups[band, n], end=True) for n in (counts[0], counts[-1])) if len(counts) > 1 else ({}, {})
        )
        what = (
            f"{band} training questions, {counts[0]} against {counts[-1]} answers"
            if len(counts) > 1
            else f"{band} questions"
        )
        claims.append(
            claim(
                contrast([(1, few), (-1, many)], Questions(1)),
                f"{what}: pass@1 at the end",
                "alike",
                MATCH,
                needs=needs,
            )
        )
        for against, wanted in (("step", "above"), ("flops", "below")):
            ratios = []
            for key in sorted(set(few) & set(many)):
                ends = [e.curve("val_pass@1") or [[0, np.nan]] for e in (few[key], many[key])]
                target = ends[0][0][1] + 0.9 * (min(max(v for _, v in end) for end in ends) - ends[0][0][1])
                ratios.append(np.log(reach(few[key], target, against) / reach(many[key], target, against)))
            name = "steps" if against == "step" else "FLOPs"
            claims.append(claim(per_seed(ratios), f"{what}: {name} to 90% of the gain in validation pass@1, few / many", wanted,
                                unit="log", needs=needs))  # fmt: skip
    title = "Many rollouts a question need fewer steps, few need fewer FLOPs, both end alike"
    return Finding("8", title, claims, needs=needs)


# ---------------------------------------------------------------------------------------------------------------------
# Demonstrations: how many solutions is RL worth?
# ---------------------------------------------------------------------------------------------------------------------


def demonstrations(entries: list[Entry]) -> Finding:
    groups = {count: group for (count,), group in by_variant(entries, "solved").items()}
    sides = {
        count: {r: models([e for e in group if e.recipe == r]) for r in ("rl", "sft")}
        for count, group in groups.items()
    }
    title, needs = (
        "RL on questions without solutions is worth SFT on how many solutions? (pass@1)",
        "plan demonstrations",
    )
    if not sides:
        return Finding("solutions", title, [Claim("pass@1: RL − SFT", None, "above", needs=needs)], needs=needs)
    most, measure = max(sides), Questions(1)
    claims = []
    for count, side in sides.items():
        c = contrast([(1, sides[most]["rl"]), (-1, side["sft"])], measure)
        claims.append(
            claim(c, f"pass@1: RL on {most} questions − SFT on {count} with a solution each", "above", needs=needs)
        )
    for count, side in sides.items():
        c = contrast([(1, side["rl"]), (-1, side["sft"])], measure)
        claims.append(claim(c, f"pass@1: RL − SFT, both on {count} questions", "above", needs=needs, counts=False))
    return Finding("solutions", title, claims, needs=needs)


def demonstrations_answer(f: Finding) -> str:
    """What the intervals say, in a sentence."""
    words = []
    for verdict, word in (("shown", "above"), ("contradicted", "below"), ("unclear", "not told apart from")):
        counts = [
            c.text.split("SFT on ")[1].split(" ")[0] for c in f.primary if c.x is not None and c.verdict == verdict
        ]
        words += [f"{word} SFT on {listed(counts)} solutions"] if counts else []
    return f"RL is {listed(words)}." if words else "Not run: plan demonstrations."


def all_findings(entries: list[Entry]) -> list[Finding]:
    """The paper's eight findings in their order."""
    alike = judged_alike(entries)
    return [*grid_findings(entries), hard_finding(alike), seeds_finding(alike), rollouts_finding(alike)]


def questions(entries: list[Entry]) -> list[tuple[Finding, str]]:
    """Beyond the paper's findings: (contrasts, the answer in words)."""
    sharpening, solutions = Sharpening(entries).finding(), demonstrations(judged_alike(entries))
    return [(sharpening, answer(sharpening)), (solutions, demonstrations_answer(solutions))]
