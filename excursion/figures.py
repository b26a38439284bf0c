"""Figures of the report. One panel a figure, so that a page can put them side by side or below each other.

A function draws one figure from records. It returns the figure, None where there is nothing to draw, and its alt text:
what is to be seen, in words. report.py says where each stands.
Bars are the 95% small-sample intervals of stats.py. Lines are named at their ends.
"""

import os

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 -- after the choice of a backend that needs no screen
import numpy as np  # noqa: E402

from curves import MANY, smooth  # noqa: E402
from excursion.claims import Claim  # noqa: E402
from excursion.contrasts import Grid, best_measure, by_variant, contrast, models, trajectory  # noqa: E402
from excursion.plan_findings import at_the_end, of_seeds, stage_flops  # noqa: E402
from excursion.recipes import RECIPES, label  # noqa: E402
from excursion.records import Entry, Questions, million  # noqa: E402
from excursion.sharpening import Sharpening  # noqa: E402
from excursion.stats import Estimate  # noqa: E402

plt.rcParams.update({
    "savefig.dpi": 160, "font.size": 10.5, "axes.grid": True, "grid.alpha": 0.25, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 11, "axes.titlelocation": "left",
    "legend.frameon": False, "legend.fontsize": 9,
})  # fmt: skip
SIZE = (4.6, 3.5)  # inches; small, so that letters stay large where a page is narrow
MARKS = {"shown": "#009E73", "contradicted": "#D55E00", "unclear": "#777777", "not run": "#bbbbbb"}
RAMP = ["#9ecae1", "#4292c6", "#08519c", "#08306b", "#000000"]  # rates, from low to high
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^v>P"
ALONG = ("rl", "sft_rl", "parallel", "sft_converged_rl", "gold_rl")  # recipes whose steps are drawn, at most five lines


def panel(title: str, xlabel: str, size=SIZE):
    """A new figure of one panel, and its axes."""
    figure, ax = plt.subplots(figsize=size)
    ax.set(title=title, xlabel=xlabel)
    return figure, ax


End = tuple[str, str, float]  # of a line: its name, its colour, its last value


def recipe_line(ax, recipe: str, x: list[float], points: list[Estimate], scale: float = 100.0) -> End:
    """A recipe's line in its own look, with bars."""
    colour, marker, line, filled = RECIPES[recipe].look
    y = [scale * p.mean for p in points]
    ax.errorbar(x, y, bars(points, scale), color=colour, marker=marker, ls=line, lw=1.7, ms=marker_size(marker),
                mfc=colour if filled else "white", capsize=2.5, elinewidth=1)  # fmt: skip
    return label(recipe), colour, y[-1]


def named(figure, ax, ends: list[End]):
    """The figure with its lines named; None, and it is closed, where it has no line."""
    if not ends:
        plt.close(figure)
        return None
    end_labels(ax, ends)
    return figure


def unit_of(values: list[float]) -> tuple[float, str]:
    """(tokens of a unit, its letter) for an axis: billions or millions."""
    return (1e9, "B") if max(values) >= 1e9 else (1e6, "M")


def bars(points: list[Estimate], scale: float = 100.0) -> np.ndarray:
    """(2, N) lengths of the intervals' arms; none where there is no interval."""
    arms = np.array([p.half_width for p in points]) * scale
    return np.array([np.where(np.isfinite(arms), arms, 0.0)] * 2)


def marker_size(marker: str) -> float:
    return 10 if marker == "*" else 6


def apart(wanted: list[float], gap: float, low: float, high: float) -> list[float]:
    """Positions as near to the wanted ones as a gap between neighbours allows, inside [low, high]."""
    order = np.argsort(wanted, kind="stable")
    at = np.clip(np.array(wanted, dtype=float)[order], low, high)
    for _ in range(200):
        for i in range(len(at) - 1):
            if at[i + 1] - at[i] < gap:
                middle = (at[i] + at[i + 1]) / 2
                at[i], at[i + 1] = middle - gap / 2, middle + gap / 2
        at = np.clip(at, low, high)
    result = np.empty(len(at))
    result[order] = at
    return result.tolist()


def end_labels(ax, ends: list[End]) -> None:
    """Names at the right of the panel, each beside its line's last value."""
    low, high = ax.get_ylim()
    places = apart([y for _, _, y in ends], 0.07 * (high - low), low + 0.02 * (high - low), high - 0.02 * (high - low))
    for (name, colour, y), place in zip(ends, places, strict=True):
        ax.annotate(name, xy=(1.0, y), xycoords=("axes fraction", "data"), xytext=(1.06, place),
                    textcoords=("axes fraction", "data"), color=colour, va="center", fontsize=9.5, annotation_clip=False,
                    arrowprops=dict(arrowstyle="-", color=colour, lw=0.6, shrinkA=0, shrinkB=0, relpos=(0, 0.5)))  # fmt: skip


def token_axis(ax, tokens: list[int], scale: float) -> None:
    """Log axis with the checkpoints as its ticks; of ticks that would touch, the later one is named."""
    values = np.array(tokens) / scale
    ax.set_xscale("log")
    span = np.log(values[-1] / values[0]) or 1.0
    names, last = [], np.inf
    for v in values[::-1]:
        named = np.log(last / v) > 0.08 * span
        names.append(f"{v:.3g}" if named else "")
        last = v if named else last
    ax.set_xticks(values, names[::-1])
    ax.set_xticks([], minor=True)
    ax.set_xlim(values[0] / 1.05, values[-1] * 1.04)


def span_of(points: list[Estimate], low: float, high: float, scale: float = 100.0) -> tuple[float, float]:
    """An axis' range: the means and their intervals, within [low, high]. Of an interval that is more than thrice as
    long as most are, a part: two runs that differ much make it longer than all the others together."""
    means, arms = scale * np.array([p.mean for p in points]), bars(points, scale)[0]
    arms = np.minimum(arms, 3 * np.median(arms[arms > 0])) if arms.any() else arms
    bottom, top = (means - arms).min(), (means + arms).max()
    pad = 0.06 * max(top - bottom, 0.02 * scale)
    return max(low, bottom - pad), min(high, top + pad)


def spent(g: Grid, recipe: str, tokens: int) -> float:
    """Mean FLOPs of a recipe's models, pretraining included; nan if any is unknown (of imported weights)."""
    return float(np.mean([e.record["flops"] for e in g.models(recipe, tokens).values()]))


def figure_lines(g: Grid, recipes: list[str], measure: Questions, title: str, flops=False, process=False):
    """A measure over pretraining tokens (or all FLOPs), one line a recipe, with the guess floor shaded. process: the
    same with every equation true, as a thin dotted line."""
    scale, unit = unit_of(g.tokens)
    figure, ax = panel(title, "FLOPs, pretraining and everything after it" if flops else f"pretraining tokens, {unit}")
    drawn, ends, floors, said = [], [], {}, []
    for recipe in recipes:
        levels = {t: c for t in g.tokens if (c := g.level(recipe, t, measure)) is not None}
        x = {t: spent(g, recipe, t) if flops else t / scale for t in levels}
        x = {t: at for t, at in x.items() if np.isfinite(at)}
        if not x:
            continue
        said.append(f"{label(recipe)} {', '.join(f'{100 * levels[t].values.mean():.0f}' for t in x)}")
        points = [levels[t].estimate() for t in x]
        drawn += points
        ends.append(recipe_line(ax, recipe, list(x.values()), points))
        if process:
            right = [100 * g.level(recipe, t, Questions(measure.k, "c_process")).values.mean() for t in x]
            ax.plot(list(x.values()), right, color=RECIPES[recipe].look[0], ls=(0, (1, 1.5)), lw=1.1)
        for t in x:
            known = [f for f in (e.floor(measure.k) for e in g.models(recipe, t).values()) if f is not None]
            floors[t] = max([floors.get(t) or 0.0, *known]) if known else floors.get(t)
    if drawn:
        bottom, top = span_of(drawn, 0, 101)
        ax.set_ylim(0 if measure.k == 1 else bottom, top)
    if flops:
        ax.set_xscale("log")
    else:
        token_axis(ax, g.tokens, scale)
        shade_floor(ax, {t / scale: 100 * f for t, f in floors.items() if f is not None})
    ax.set_ylabel("%")
    alt = f"{measure.name} in % at {', '.join(map(million, g.tokens))} pretraining tokens. {'; '.join(said)}."
    return named(figure, ax, ends), f"pass@{measure.k} over all FLOPs spent" if flops else alt


def shade_floor(ax, floors: dict[float, float]) -> None:
    """What answers to other questions score; a sentence where it lies below the panel's range."""
    if not floors:
        return
    x, y = np.array(sorted(floors.items())).T
    (low, high), (left, right) = ax.get_ylim(), ax.get_xlim()
    place, text = 0.015, f"guess floor: {y.max():.1f}% at most{', below this range' if y.max() < low else ''}"
    if y.max() > low:
        ax.fill_between(np.r_[left, x, right], low, np.r_[y[0], y, y[-1]], color="#999999", alpha=0.35, lw=0, zorder=0)
        place, text = min(0.9, (y[0] - low) / (high - low) + 0.012), "guess floor"
    # at the right, where lines are high
    ax.text(0.985, place, text, transform=ax.transAxes, fontsize=8.5, color="#555555", ha="right")
    ax.set_ylim(low, high)


# ---------------------------------------------------------------------------------------------------------------------
# Trajectories
# ---------------------------------------------------------------------------------------------------------------------


def along(
    g: Grid, recipe: str, tokens: int, *measures: Questions, keys: set | None = None
) -> dict[int, list[Estimate]]:
    """step → each measure over the replicates (of `keys`) that were judged there, beginning with the start at 0; steps
    that lack a measure are left out."""
    keys = keys or g.paths.get((recipe, tokens), {})
    paths = {key: trajectory(g, recipe, tokens, key) for key in keys}
    found = {}
    for step in sorted(set().union(*paths.values())):
        here = {key: path[step] for key, path in paths.items() if step in path}
        contrasts = [contrast([(1.0, here)], m) for m in measures]
        if None not in contrasts:
            found[step] = [c.estimate() for c in contrasts]
    return found


def draw_replicates(ax, g: Grid, recipe: str, tokens: int, measure: Questions) -> None:
    """A thin line for each replicate: whether they all go the same way, wherever each of them starts."""
    for key in g.paths.get((recipe, tokens), {}):
        rows = [(measure.at(1)(e), measure(e)) for e in trajectory(g, recipe, tokens, key).values()]
        x, y = ([100 * row[i].values.mean() for row in rows if None not in row] for i in (0, 1))
        ax.plot(x, y, color=RECIPES[recipe].look[0], lw=0.7, alpha=0.5, zorder=1)


def draw_path(ax, points: dict, colour: str, marker: str, name: str, line: str = "-", filled: bool = True) -> None:
    """A line through the means of pass@1 and pass@k (`points`, of `along`) in the order of steps, an arrow on each
    part, intervals of both."""
    steps = list(points)
    x, y = (np.array([100 * points[s][i].mean for s in steps]) for i in (0, 1))
    ex, ey = (bars([points[s][i] for s in steps]) for i in (0, 1))
    ax.errorbar(x, y, ey, ex, fmt="none", ecolor=colour, elinewidth=0.9, alpha=0.45)
    ax.plot(x, y, color=colour, lw=1.7, ls=line)
    ax.plot([], [], color=colour, lw=1.7, ls=line, marker=marker, mfc=colour if filled else "white", label=name)
    for i in range(len(x) - 1):
        ax.annotate("", xy=((x[i] + 2 * x[i + 1]) / 3, (y[i] + 2 * y[i + 1]) / 3), xytext=(x[i], y[i]),
                    arrowprops=dict(arrowstyle="-|>", color=colour, lw=0, mutation_scale=13))  # fmt: skip
    for i, s in enumerate(steps):
        size, face = marker_size(marker) + 1.5 * (s == 0), colour if filled and s else "white"
        ax.plot(x[i], y[i], marker, color=colour, ms=size, mfc=face)
    if len(steps) > 2:
        ax.annotate(str(s), (x[i], y[i]), xytext=(5, -11), textcoords="offset points", fontsize=8, color=colour)


def figure_trajectory(g: Grid, tokens: int, measure: Questions):
    """Pass@k against pass@1 over the steps of each recipe."""
    paths = {r: along(g, r, tokens, measure.at(1), measure) for r in ALONG}
    paths = {r: p for r, p in paths.items() if len(p) > 1}
    if not paths:
        return None, ""
    figure, ax = panel(f"From {million(tokens)} tokens, T = {g.temperature:g}", f"{measure.at(1).name}, %", (4.9, 4.1))
    said = []
    for recipe, points in paths.items():
        colour, marker, line, filled = RECIPES[recipe].look
        draw_path(ax, points, colour, marker, label(recipe), line, filled)
        draw_replicates(ax, g, recipe, tokens, measure)
        values = (f"{100 * one.mean:.0f}/{100 * top.mean:.0f}" for one, top in points.values())
        said.append(f"{label(recipe)} {' to '.join(values)}")
    drawn = [pair for points in paths.values() for pair in points.values()]
    base = [g.level("base", tokens, m) for m in (measure.at(1), measure)]
    if None not in base:
        drawn.append([level.estimate() for level in base])
        ax.plot(*(100 * p.mean for p in drawn[-1]), "x", color="black", ms=8, mew=2, label="base with examples")
    ax.set_ylabel(f"{measure.name}, %")
    ones, tops = zip(*drawn, strict=True)
    ax.set_xlim(span_of(ones, -1, 101))
    ax.set_ylim(span_of(tops, -1, 101))
    ax.legend(loc="best")
    return figure, f"{measure.at(1).name} / {measure.name} in % over training steps. {'; '.join(said)}."


def figure_entropy(g: Grid, tokens: int, kind: str):
    """Entropy of a question's answers, or of the solution paths, over the steps of RL."""
    figure, ax = panel(f"From {million(tokens)} tokens: entropy of {kind}, nats", "training step")
    ends, ticks, drawn = [], {0}, []
    for recipe in ALONG:
        found = along(g, recipe, tokens, Questions(key=f"h_{kind}"))
        if len(found) > 1:
            points = [point for (point,) in found.values()]
            ends.append(recipe_line(ax, recipe, list(found), points, scale=1))
            ticks |= set(found)
            drawn += points
    ax.set_xticks(sorted(ticks))
    if drawn:
        ax.set_ylim(0, span_of(drawn, 0, np.inf, scale=1)[1])
    return named(figure, ax, ends), f"Entropy of {kind} over training steps from {million(tokens)} tokens"


def at_rates(s: Sharpening, recipe: str) -> dict[float, dict[int, list[Estimate]]]:
    """rate → `along`; 0 for seldom solved questions alone. Over the replicates that all rates have, so that lines do
    not differ by where their pretraining runs are; over all of each, if none is shared."""
    place = (recipe, s.tokens)
    replicates = {rate: set(g.paths[place]) for rate, g in s.grids.items() if g.paths.get(place)}
    keys = set.intersection(*replicates.values()) if replicates else None
    m, rates = s.measure, sorted(replicates, key=lambda rate: (rate == 0, rate))
    paths = {rate: along(s.grids[rate], recipe, s.tokens, m.at(1), m, keys=keys) for rate in rates}
    return {rate: points for rate, points in paths.items() if len(points) > 1}


def figure_sharpening(s: Sharpening, recipe: str, limits: tuple):
    """RL from one start at several rates; the paper's own setting ringed."""
    m, paths = s.measure, at_rates(s, recipe)
    if not paths:
        return None, ""
    figure, ax = panel(f"{label(recipe)}, from {million(s.tokens)} tokens", f"{m.at(1).name}, %", (4.6, 4.2))
    for rate, points in paths.items():
        if rate == 0:
            draw_path(ax, points, "#E69F00", "P", "seldom solved alone", ":", False)
            continue
        i = s.rates.index(rate)
        draw_path(ax, points, RAMP[min(i, len(RAMP) - 1)], MARKERS[i % len(MARKERS)], f"rate × {rate:.2g}")
        if any(e.meta.get("paper") for e in s.grids[rate].models(recipe, s.tokens).values()):
            one, top = points[max(points)]
            ax.plot(100 * one.mean, 100 * top.mean, "o", ms=18, mfc="none", mec="#D55E00", mew=2)
            ax.plot([], [], "o", ms=9, mfc="none", mec="#D55E00", mew=2, label="the paper's pair")
    ax.set_ylabel(f"{m.name}, %")
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    ax.legend(loc="best")
    return figure, f"{m.name} over {m.at(1).name} of {label(recipe)} at rates {', '.join(f'{x:.2g}' for x in s.rates)}"


def sharpening_limits(s: Sharpening) -> tuple:
    """One range for all starts."""
    paths = [points for r in s.recipes for points in at_rates(s, r).values()]
    limits = []
    for i in (0, 1):
        values = [100 * points[i].mean for path in paths for points in path.values()] or [0.0]
        pad = 0.1 * (max(values) - min(values)) + 1
        limits.append((min(values) - pad, max(values) + pad))
    return tuple(limits)


# ---------------------------------------------------------------------------------------------------------------------
# Contrasts, training, other plans
# ---------------------------------------------------------------------------------------------------------------------


def figure_forest(claims: list[Claim], title: str, xlabel: str):
    """A line a contrast, its name above: mean, interval, coloured by verdict."""
    alt = f"{title}: " + "; ".join(f"{c.text} {c.numbers}" for c in claims[:8] if c.x is not None)
    claims = [c for c in claims if c.x is not None and np.isfinite(c.x.se)]
    if not claims:
        return None, ""
    scale = 100 if claims[0].unit == "points" else 1
    figure, ax = panel(title, xlabel, (5.4, 1.0 + 0.44 * len(claims)))
    low, high = span_of([c.x for c in claims], -np.inf, np.inf, scale)
    ax.set_xlim(min(low, -0.05 * high), max(high, -0.05 * low))  # 0 is always seen
    low, high = ax.get_xlim()
    for i, c in enumerate(claims):
        colour = MARKS[c.verdict]
        ax.plot([scale * c.x.low, scale * c.x.high], [i, i], color=colour, lw=2.2 if c.counts else 1.2)
        for at, mark, cut in ((low, "<", scale * c.x.low < low), (high, ">", scale * c.x.high > high)):
            if cut:  # the interval goes on beyond the panel
                ax.plot(at, i, mark, color=colour, ms=6, clip_on=False)
        ax.plot(scale * c.x.mean, i, "o", color=colour, ms=7 if c.counts else 5, mfc=colour if c.counts else "white")
    ax.axvline(0, color="black", lw=1)
    names = [c.text.split(": ", 1)[-1] for c in claims]
    common = os.path.commonprefix(names)
    names = [n[len(common) :] for n in names] if common.endswith("− ") else names  # averaging − each of its rivals
    kinds = [c.text.split(": ", 1)[0].partition(", ")[2] for c in claims]  # "ends of both"
    names = [f"{n} ({kind})" if kind else n for n, kind in zip(names, kinds, strict=True)]
    on_white = dict(va="bottom", fontsize=9.5, backgroundcolor="white")  # no line crosses a name
    for i, name in enumerate(names):
        ax.text(0, i - 0.3, name, transform=ax.get_yaxis_transform(), **on_white)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_ylim(len(claims) - 0.6, -0.9)
    ax.grid(axis="y", visible=False)
    ax.xaxis.set_major_locator(plt.MaxNLocator(5))
    return figure, alt


CURVES = {"reward": "Training reward", "val_pass@1": "Validation pass@1, %", "length": "Answer length, tokens",
          "entropy": "Entropy, nats a token"}  # fmt: skip


def figure_dynamics(g: Grid, tokens: int, key: str):
    """A curve over the share of the run: mean over seeds, with a band from the lowest to the highest."""
    figure, ax = panel(f"{CURVES[key]}, from {million(tokens)} tokens", "share of the run, %", (4.6, 3.0))
    ends, scale, share = [], 100 if key == "val_pass@1" else 1, np.linspace(0, 1, 101)
    for recipe in [r for r in g.recipes if r in ("rl", "sft", "sft_rl", "gold", "gold_rl", "parallel")]:
        curves = [
            np.array(e.validation if key == "val_pass@1" else e.curve(key), dtype=float).T
            for e in g.models(recipe, tokens).values()
        ]
        curves = [curve for curve in curves if curve.shape[-1] > 1]
        if not curves:
            continue
        colour, _, line, _ = RECIPES[recipe].look
        curves = [curve if len(curve[0]) < MANY else smooth(*curve) for curve in curves]
        rows = np.array([np.interp(share, x / x[-1], y) for x, y in curves]) * scale
        known = share >= max(x[0] / x[-1] for x, _ in curves)  # from where all of them have begun
        x, rows = 100 * share[known], rows[:, known]
        ax.plot(x, rows.mean(0), color=colour, ls=line, lw=1.6)
        if len(rows) > 1:
            ax.fill_between(x, rows.min(0), rows.max(0), color=colour, alpha=0.15, lw=0)
        ends.append((label(recipe), colour, rows[:, -1].mean()))
    ax.set_xlim(0, 100)
    return named(figure, ax, ends), f"{CURVES[key]} over the share of the run from {million(tokens)} tokens"


def figure_rollouts(entries: list[Entry], band: str, against: str):
    """Validation pass@1 over steps or FLOPs, for few and many answers a question: mean over seeds."""
    xlabel = "training step" if against == "step" else "FLOPs of this stage"
    figure, ax = panel(f"Trained on {band} questions: validation pass@1, %", xlabel, (4.6, 3.2))
    groups = {n: models(group, end=True) for (b, n), group in by_variant(entries, "band", "n").items() if b == band}
    ends = []
    for i, (n, group) in enumerate(sorted(groups.items())):
        runs = [e for e in group.values() if e.validation]
        if not runs:
            continue
        curves = [np.array(e.validation).T for e in runs]
        x = steps = curves[0][0]
        if against == "flops":
            x = np.mean([np.interp(steps, *zip(*stage_flops(e), strict=True)) for e in runs], axis=0)
        y = 100 * np.mean([np.interp(steps, *c) for c in curves], axis=0)
        ax.plot(x, y, color=COLOURS[i], marker=MARKERS[i])
        ends.append((f"{n} answers", COLOURS[i], y[-1]))
    ax.set_ylim(bottom=0)
    return named(figure, ax, ends), f"Validation pass@1 over {against}, {band} questions"


def figure_variants(entries: list[Entry], key: str, k: int, asked: str, xlabel: str):
    """Pass@k, process-right where that is known, over one quantity of a plan (questions with solutions, the math share,
    the size), of which there are two values or more."""
    groups = at_the_end(entries, key)
    if key == "size":  # at equal FLOPs the larger model has seen fewer tokens
        groups = dict(sorted(groups.items(), key=lambda item: -item[1][0].tokens))
    if len(groups) < 2:
        return None, ""
    measure = best_measure([e for group in groups.values() for e in group], k)
    figure, ax = panel(f"{asked}: {measure.name}, %", xlabel, (4.6, 3.4))
    ends = []
    for recipe in RECIPES:
        sides = [models([e for e in group if e.recipe == recipe]) for group in groups.values()]
        found = {i: contrast([(1.0, side)], measure) for i, side in enumerate(sides)}
        points = {i: c.estimate() for i, c in found.items() if c is not None}
        if points:
            ends.append(recipe_line(ax, recipe, list(points), list(points.values())))
    ax.set_xticks(range(len(groups)), [str(value) for value in groups])
    ax.set_ylim(bottom=0)
    return named(figure, ax, ends), f"Pass@{k} over {xlabel}"


def figure_seeds(entries: list[Entry]):
    """Pass@1 of each seed of RL from the same checkpoints, process-right where that is known."""
    at = of_seeds(entries, end=False)
    if not at:
        return None, ""
    scale, unit = unit_of(list(at))
    measure = best_measure([e for seeds in at.values() for e in seeds], 1)
    figure, ax = panel(
        f"{measure.name[0].upper()}{measure.name[1:]}, %: a ring a seed, a bar their mean",
        f"pretraining tokens, {unit}",
        (4.6, 3.4),
    )
    for t, seeds in at.items():
        y = [100 * measure(e).values.mean() for e in seeds]
        ax.plot(np.full(len(y), t / scale), y, "o", color=COLOURS[0], mfc="none", ms=8)
        ax.plot([t / scale], [np.mean(y)], "_", color="black", ms=22, mew=2)
    token_axis(ax, list(at), scale)
    ax.set_ylim(0, 1.1 * ax.dataLim.ymax or 1)  # rings at the top stay whole
    return figure, "Pass@1 after RL of each seed"
