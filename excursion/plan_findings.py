"""Findings 6 to 8, and how many demonstrations RL is worth, from the records of the other plans (what sharpens: sharpening.py).

What a claim is, and when it is shown or contradicted: claims.py. A finding without records is "not run" and names its plan.
"""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from excursion.claims import ONE_RUN, Claim, Finding, claim, listed
from excursion.contrasts import Contrast, Terms, by_variant, contrast, judged_alike, measures, models
from excursion.findings import MATCH, grid_findings
from excursion.records import Entry, Key, Questions, million
from excursion.sharpening import Sharpening, answer
from excursion.stats import log_spread_ratio


def at_the_end(entries: list[Entry], key: str) -> dict[object, list[Entry]]:
    """value of a variant → its entries from its last checkpoint."""
    groups = by_variant(entries, key)
    return {value: [e for e in group if e.tokens == max(o.tokens for o in group)] for (value,), group in groups.items()}


def gain(groups: dict, rank: Callable) -> tuple[str, Terms]:
    """("LOW → HIGH", the terms of the models at the highest value minus those at the lowest). rank: what a value is
    ordered by. ("", []) without two values."""
    if len(groups) < 2:
        return "", []
    low, high = min(groups, key=rank), max(groups, key=rank)
    return f"{low} → {high}", [(1, models(groups[high])), (-1, models(groups[low]))]


def hard_finding(entries: list[Entry]) -> Finding:
    """Finding 6, on hard questions: what a larger math share gains, minus what a larger model gains."""
    shares, sizes = (at_the_end([e for e in entries if e.recipe == "rl"], key) for key in ("math", "size"))
    mixture = gain(shares, lambda share: share)
    scale = gain(sizes, lambda size: -sizes[size][0].tokens)  # at equal FLOPs the larger model has seen fewer tokens
    # hard questions, where a set is called so; else all
    sets = [name for e in entries for name in e.sets if "hard" in name]
    terms, claims = mixture[1] + [(-weight, group) for weight, group in scale[1]], []
    needs = "plans mixture and scale: RL from base at the last checkpoint of two math shares and of two sizes"
    for m, counts in measures([e for _, group in terms for e in group.values()], 1):
        measure = replace(m, set=sets[0] if sets else "")
        for name, (what, gained) in (("math share", mixture), ("size at equal FLOPs", scale)) if counts else ():
            if gained:
                text = f"{measure.name}: {name} {what}"
                claims.append(claim(contrast(gained, measure), text, "above", counts=False, across_runs=True))
        both = contrast(terms, measure) if len(terms) == 4 else None
        text = f"{measure.name}: gain by the mixture − gain by size"
        claims.append(claim(both, text, "above", counts=counts, needs=needs, across_runs=True))
    title = f"{'On hard questions the' if sets or not entries else 'The'} pretraining mixture matters more than scale (RL from base, pass@1)"
    return Finding("6", title, claims, needs=needs)


def of_seeds(entries: list[Entry], end: bool) -> dict[int, list[Entry]]:
    """checkpoint → RL of every seed of plan seeds, where it is stopped, or its end."""
    found: dict[int, list[Entry]] = {}
    for group in by_variant(entries, "rlseed").values():
        for t in {e.tokens for e in group}:
            found.setdefault(t, []).extend(models([e for e in group if e.tokens == t], end).values())
    return {t: group for t, group in sorted(found.items()) if group}


def seeds_finding(entries: list[Entry]) -> Finding:
    """Finding 7: the spread of pass@1 over seeds of RL at the first checkpoint, relative to that at the last."""
    at, ends = ({t: group for t, group in of_seeds(entries, end).items() if len(group) > 2} for end in (False, True))
    needs = "plan seeds: three seeds or more of RL from each of two checkpoints"
    title = "Early checkpoints are brittle across seeds of RL, at equal training reward"
    if len(at) < 2:
        missing = Claim("spread of pass@1 over seeds, first / last checkpoint", None, "above", needs=needs)
        return Finding("7", title, [missing], needs=needs)

    def reward(e: Entry) -> float:
        return np.mean([value for _, value in e.curve("reward")[-8:]])

    rewards = {t: np.array([reward(e) for e in group if e.curve("reward")]) for t, group in at.items()}
    first, last = min(at), max(at)
    text = f"spread over seeds (standard deviation / mean), {million(first)} / {million(last)}"
    kinds = measures([e for group in at.values() for e in group], 1)
    cases = [(m, at, "", counts) for m, counts in kinds] + [(kinds[0][0], ends, " at the end of RL", False)]
    claims, scores = [], {}
    pretrained = {key[0] for t in (first, last) for e in at[t] for key in e.keys}
    one_run = "one pretraining run" if len(pretrained) == 1 else ""
    for m, group, when, counts in cases:
        scores[m, when] = {t: np.array([m(e).values.mean() for e in group[t]]) for t in group}
        x = log_spread_ratio(scores[m, when][first], scores[m, when][last])
        claims.append(Claim(f"{text}: {m.name}{when}", x, "above", unit="log", counts=counts, over=one_run))
    if all(len(r) > 2 for r in rewards.values()):
        x = log_spread_ratio(rewards[first], rewards[last])
        claims.append(Claim(f"{text}: training reward at the end", x, "above", counts=False, unit="log"))
    notes = []
    for t, r in rewards.items():
        levels = scores[kinds[0][0], ""][t]
        said = f"{million(t)}: {kinds[0][0].name} of {len(levels)} seeds {', '.join(f'{100 * s:.1f}' for s in levels)}"
        notes.append(f"{said}{f'; training reward at the end {r.min():.2f} to {r.max():.2f}' if len(r) else ''}.")
    return Finding("7", title, claims, notes=notes, needs=needs)


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
    steps = [s for s, v in e.validation if v >= target]
    if not steps or steps[0] == 0:
        return float("nan")
    return float(steps[0] if against == "step" else np.interp(steps[0], *zip(*stage_flops(e), strict=True)))


def per_seed(values: dict[Key, float]) -> Contrast | None:
    """One number a replicate, as a contrast of those that have one; None if none has."""
    known = {key: value for key, value in values.items() if not np.isnan(value)}
    return Contrast(np.array([*known.values()])[:, None], None, tuple(known)) if known else None


def log_ratio(few: Entry, many: Entry, against: str) -> float:
    """Log of few / many of the steps, or FLOPs, to 90% of the gain in validation pass@1 that both reach; nan if unknown."""
    a, b = (e.validation or [[0, np.nan]] for e in (few, many))
    start, top = a[0][1], min(max(value for _, value in curve) for curve in (a, b))
    target = start + 0.9 * (top - start)
    return np.log(reach(few, target, against) / reach(many, target, against))


def rollouts_finding(entries: list[Entry]) -> Finding:
    """Finding 8: for each band of difficulty, the fewest answers a question against the most."""
    groups, claims, notes = by_variant(entries, "band", "n"), [], []
    needs = "plan rollouts: RL from base with few and with many answers a question, same seeds"
    for band in dict.fromkeys(band for band, _ in groups) or ["easy"]:
        counts, few, many, what = sorted(n for b, n in groups if b == band), {}, {}, f"{band} questions"
        if len(counts) > 1:
            few, many = (models(groups[band, n], end=True) for n in (counts[0], counts[-1]))
            what = f"{band} training questions, {counts[0]} against {counts[-1]} answers"
        for m, counted in measures([*few.values(), *many.values()], 1):
            pass1 = contrast([(1, few), (-1, many)], m)
            claims.append(claim(pass1, f"{what}: {m.name} at the end", "alike", MATCH, needs=needs, counts=counted))
        for against, name, wanted in (("step", "steps", "above"), ("flops", "FLOPs", "below")):
            ratios = {key: log_ratio(few[key], many[key], against) for key in sorted(set(few) & set(many))}
            text = f"{what}: {name} to 90% of the gain in validation pass@1, few / many"
            claims.append(claim(per_seed(ratios), text, wanted, unit="log", needs=needs))
            lost = [f"{seed}" for (_, seed), value in ratios.items() if np.isnan(value)]
            if lost and against == "step":
                notes.append(
                    f"{what}: seed {listed(lost)} gained nothing on validation with few or with many, so it has no ratio."
                )
    title = "Many rollouts a question need fewer steps, few need fewer FLOPs, both end alike"
    return Finding("8", title, claims, notes=notes, needs=needs)


def demonstrations(entries: list[Entry]) -> Finding:
    """RL on the most questions of the plan − SFT on each number of them with a solution; beside it both on the same number."""
    sides = {
        count: {recipe: models([e for e in group if e.recipe == recipe]) for recipe in ("rl", "sft")}
        for (count,), group in by_variant(entries, "solved").items()
    }
    title = "RL on questions without solutions is worth SFT on how many solutions? (pass@1)"
    needs = "plan demonstrations"
    if not sides:
        return Finding("solutions", title, [Claim("pass@1: RL − SFT", None, "above", needs=needs)], needs=needs)
    claims, most = [], max(sides)

    def compare(rl: int, sft: int, m: Questions, **more) -> None:
        c = contrast([(1, sides[rl]["rl"]), (-1, sides[sft]["sft"])], m)
        text = f"{m.name}: RL on {rl} questions − SFT on {sft} with a solution each"
        claims.append(claim(c, text, "above", needs=needs, **more))

    judged = measures([e for side in sides.values() for group in side.values() for e in group.values()], 1)
    for m, counts in judged:
        for count in sides:
            compare(most, count, m, counts=counts)
    for count in sides:  # beside it, both on the same questions
        if count != most:
            compare(count, count, judged[0][0], counts=False)
    return Finding("solutions", title, claims, needs=needs)


def demonstrations_answer(f: Finding) -> str:
    """What the intervals say, in a sentence."""
    words = []
    for verdict, word in (("shown", "above"), ("contradicted", "below"), ("unclear", "not told apart from")):
        claims = [c for c in f.primary if c.verdict == verdict]
        counts = [c.text.split("SFT on ")[1].split(" ")[0] for c in claims]
        one_run = ONE_RUN * (verdict != "unclear" and any(c.of_one_seed for c in claims))
        words += [f"{word} SFT on {listed(counts)} solutions{one_run}"] if counts else []
    return f"RL is {listed(words)}." if words else "Not run: plan demonstrations."


def all_findings(entries: list[Entry]) -> list[Finding]:
    """The paper's eight findings in their order."""
    alike = judged_alike(entries)
    return [*grid_findings(entries), hard_finding(alike), seeds_finding(alike), rollouts_finding(alike)]


def questions(entries: list[Entry]) -> list[tuple[Finding, str]]:
    """Beyond the paper's findings: (contrasts, the answer in words)."""
    sharpening, solutions = Sharpening(entries).finding(), demonstrations(judged_alike(entries))
    return [(sharpening, answer(sharpening)), (solutions, demonstrations_answer(solutions))]
