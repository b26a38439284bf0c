"""The curves of runs, from their metrics.jsonl: a panel a quantity, a line a run. Every run of FEWEST steps or more
leaves OUT/curves.png at its end; `python -m tools.plot out/rl out/average` draws any runs side by side.

matplotlib is loaded only where something is drawn.
"""

import contextlib
import io
import json
from pathlib import Path

import numpy as np

from cli import UserError
from files import MALFORMED, write_bytes

FEWEST = 16  # a run of fewer steps leaves no picture: it would show next to nothing, and take as long as the run
# Panels in their order: title, the metrics that may stand there (the first that a run has), factor
PANELS = (
    ("Training loss, nats a token", ("sft_loss", "loss"), 1),
    ("Reward", ("reward",), 1),
    ("Validation pass@1, %", ("val_pass@1",), 100),
    ("Validation pass@8, %", ("val_pass@8",), 100),
    ("Entropy, nats a token", ("entropy",), 1),
    ("Answer length, tokens", ("length",), 1),
    ("KL to the starting model, nats a token", ("kl",), 1),
    ("Gradient norm", ("grad_norm",), 1),
    ("Tokens per second, training", ("train_tokens_per_s", "tokens_per_s"), 1),
    ("Tokens per second, sampling", ("sample_tokens_per_s",), 1),
)
COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
LINES = ["-", "--", ":", "-."]  # of the first seven runs, of the next seven, ...
MANY = 15  # points from which a curve is smoothed; fewer are marked one by one
# Inches. Two columns: three could not be read on a telephone
WIDTH, HEIGHT, TITLE, BETWEEN, BELOW, ROW = 7.4, 1.45, 0.42, 0.15, 0.45, 0.24

Curve = tuple[np.ndarray, np.ndarray]  # steps, values


def read_curves(folder: Path) -> dict[str, Curve]:
    """metric → its curve, of a run's metrics.jsonl; values that are not finite and lines that are not whole are left
    out. UserError if there is none."""
    path = folder / "metrics.jsonl"
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}: name the folder of a run") from None
    points: dict[str, list] = {}
    for line in lines:
        with contextlib.suppress(*MALFORMED):  # cut by a kill, or no line of ours
            values = json.loads(line)
            step = float(values.pop("step"))
            for key, value in values.items():
                if isinstance(value, int | float) and np.isfinite(value):
                    points.setdefault(key, []).append((step, value))
    found = {key: tuple(np.array(pairs, dtype=float).T) for key, pairs in points.items()}
    if "reward" in found:
        found.pop("loss", None)  # of RL it is no measure of anything: advantages have mean 0
    if "kl" in found and not found["kl"][1].any():
        del found["kl"]  # without a reference model it is not measured
    return found


def panels(runs: list[dict[str, Curve]]) -> list[tuple[str, list[Curve | None]]]:
    """(title, the curve of each run or None) of all that some run has. The bits per byte of each source of text follow
    the pass rates."""
    sources = dict.fromkeys(key for run in runs for key in run if key.startswith("bpb_"))
    of_text = [(f"Bits per byte, {key[4:]}", (key,), 1) for key in sources]
    found = []
    for title, names, factor in (*PANELS[:4], *of_text, *PANELS[4:]):
        curves = [next((run[name] for name in names if name in run), None) for run in runs]
        if any(curve is not None for curve in curves):
            found.append((title, [curve and (curve[0], factor * curve[1]) for curve in curves]))
    return found


def smooth(x: np.ndarray, y: np.ndarray, at_most: int = 400) -> Curve:
    """The centred moving mean of a curve over a fiftieth of the run, five points at least, at up to so many places. The
    window is narrower at the beginning, where curves are steep, and at the end it has what there is."""
    half = max(2, len(y) // 100)
    places = np.unique(np.linspace(0, len(y) - 1, at_most).round().astype(int))
    return x[places], np.array([y[i - min(half, i) : i + min(half, i) + 1].mean() for i in places])


def short_names(folders: list[Path]) -> list[str]:
    """Folders without the parts that all of them begin with, or end in: a/rl/run, a/sft/run → rl, sft. Of a name that
    is longer than its place in the legend, the end."""
    parts = [list(folder.parts) for folder in folders]
    for end in (0, -1):
        while len(folders) > 1 and min(map(len, parts)) > 1 and len({p[end] for p in parts}) == 1:
            for p in parts:
                p.pop(end)
    room = 40 if len(folders) > 1 else 85
    return [name if len(name) <= room else "…" + name[1 - room :] for name in (str(Path(*p)) for p in parts)]


def draw_curves(folders: list[Path], out: Path) -> None:
    """Write a PNG of the curves of runs. UserError if a folder has no metrics, or none that has a panel."""
    found = panels([read_curves(folder) for folder in folders])
    if not found:
        raise UserError(f"{', '.join(map(str, folders))}: nothing to draw in metrics.jsonl")
    from matplotlib import rc_context

    style = {"font.size": 9.5, "axes.titlesize": 10, "axes.titlelocation": "left", "axes.grid": True, "grid.alpha": 0.3,
             "axes.spines.top": False, "axes.spines.right": False, "axes.axisbelow": True}  # fmt: skip
    buffer = io.BytesIO()
    with rc_context(style):
        figure_of(found, short_names(folders)).savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    write_bytes(out, buffer.getvalue())


def figure_of(found: list[tuple[str, list[Curve | None]]], names: list[str]):
    """The figure of `panels`, with one legend at its top."""
    from matplotlib.figure import Figure  # not pyplot, which keeps figures and looks for a screen
    from matplotlib.lines import Line2D

    looks = [dict(color=COLOURS[i % 7], ls=LINES[i // 7 % 4]) for i in range(len(names))]
    longest = max(1, *(curve[0][-1] for _, curves in found for curve in curves if curve is not None))
    rows = -(-len(found) // 2)
    top = ROW * -(-len(names) // 2) + 0.05
    height = top + rows * (TITLE + HEIGHT) + (rows - 1) * BETWEEN + BELOW
    figure = Figure(figsize=(WIDTH, height))

    # The legend: a piece of each run's line and its name
    for i, (name, look) in enumerate(zip(names, looks, strict=True)):
        x, y = 0.085 + 0.5 * (i % 2), 1 - (0.2 + ROW * (i // 2)) / height
        figure.add_artist(Line2D([x, x + 0.05], [y, y], lw=2, transform=figure.transFigure, **look))
        figure.text(x + 0.06, y, name, va="center", fontsize=10.5, parse_math=False)

    # The panels, all with the same steps
    for i, (title, curves) in enumerate(found):
        row, column = divmod(i, 2)
        bottom = height - top - (row + 1) * (TITLE + HEIGHT) - row * BETWEEN
        ax = figure.add_axes((0.085 + 0.5 * column, bottom / height, 0.395, HEIGHT / height), title=title)
        for curve, look in zip(curves, looks, strict=True):
            if curve is not None:
                draw_curve(ax, *curve, look)
        ax.set_xlim(-0.02 * longest, 1.02 * longest)
        ax.locator_params(axis="x", nbins=5, integer=True)
        values = np.concatenate([curve[1] for curve in curves if curve is not None])
        if title == "Gradient norm" and values.max() > 5 * values.min() > 0:
            ax.set_yscale("log")  # a spike is many times the rest
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter(lambda x, _: f"{x:g}" if f"{x:e}"[0] in "25" else "")
        elif ax.get_ylim()[0] < 0 <= values.min():
            ax.set_ylim(bottom=0)
        if i + 2 >= len(found):
            ax.set_xlabel("step")
    return figure


def draw_curve(ax, x: np.ndarray, y: np.ndarray, look: dict) -> None:
    """Smoothed, with the raw values faint behind; a few points as they are."""
    if len(y) < MANY:
        ax.plot(x, y, lw=1.5, marker="o", ms=3.5, **look)
        return
    ax.plot(x, y, lw=0.7, alpha=0.3, color=look["color"])
    ax.plot(*smooth(x, y), lw=1.7, **look)
