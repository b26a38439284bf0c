"""The report of an excursion: figures, tables and the fate of the paper's findings, from a folder of records alone.

    python excursion.py report --out out/excursion                                 # of what is there by now
    python excursion.py report --records results/excursion --out out/again         # of committed records

Out come report.md, report.html (one file, figures inside) and figures/*.png. What is claimed, and by which test, is in
findings.py; nothing here is written by hand after the fact.
"""

import base64
import html
import io
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402 -- after the choice of a backend that needs no screen
import numpy as np  # noqa: E402

from eval import main_accuracy  # noqa: E402
from files import write_text  # noqa: E402
from findings import STYLE, Entry, Finding, Grid, all_findings, by_variant, interval, label, load, million, stage_flops  # noqa: E402  # noqa: E402

CONTROLS = ("sft_dose", "rl_dose")

plt.rcParams.update({
    "figure.dpi": 110, "savefig.dpi": 150, "font.size": 9, "axes.grid": True, "grid.alpha": 0.3, "axes.axisbelow": True,
    "axes.spines.top": False, "axes.spines.right": False, "legend.frameon": False, "legend.fontsize": 8,
})  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# A document that is markdown and HTML at once
# ---------------------------------------------------------------------------------------------------------------------

CSS = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 2em auto; padding: 0 1em; color: #222 }
img { max-width: 100% } figcaption { color: #555; margin-bottom: 2em } figure { margin: 1em 0 }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 2px 7px; text-align: left; vertical-align: top }
th { background: #f3f3f3 } td { font-variant-numeric: tabular-nums }
details { margin: .6em 0 } summary { cursor: pointer; font-weight: 600 }
.right { border-left: 5px solid #009E73 } .wrong { border-left: 5px solid #ccc }
.right, .wrong { padding: 1px 7px; margin: 5px 0; white-space: pre-wrap; font: 12px/1.35 ui-monospace, monospace }
.reader { display: grid; grid-template-columns: repeat(auto-fill, minmax(240px, 1fr)); gap: 10px }
"""


class Document:
    """Collects parts; `markdown` and `page` are the same text twice."""

    def __init__(self, title: str, figures: Path):
        self.title, self.figures = title, figures
        self.markdown, self.page = [f"# {title}", ""], [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str) -> None:
        self.markdown += [f"## {text}", ""]
        self.page.append(f"<h2>{html.escape(text)}</h2>")

    def text(self, text: str) -> None:
        self.markdown += [text, ""]
        self.page.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: list[str], rows: list[list[str]]) -> None:
        clean = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
        self.markdown += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        self.markdown += [f"| {' | '.join(row)} |" for row in clean] + [""]

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{_bold(html.escape(str(c)))}</{tag}>" for c in cells) + "</tr>"

        self.page.append(f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>")

    def figure(self, name: str, figure, caption: str) -> None:
        """Write figures/NAME.png, show it in both, and close it."""
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight")
        plt.close(figure)
        self.figures.mkdir(parents=True, exist_ok=True)
        (self.figures / f"{name}.png").write_bytes(buffer.getvalue())
        self.markdown += [f"![{name}](figures/{name}.png)", "", f"*{caption}*", ""]
        inline = base64.b64encode(buffer.getvalue()).decode()
        self.page.append(f'<figure><img alt="{name}" src="data:image/png;base64,{inline}">'
                         f"<figcaption>{html.escape(caption)}</figcaption></figure>")  # fmt: skip

    def write(self, folder: Path) -> None:
        write_text(folder / "report.md", "\n".join(self.markdown))
        head = f"<!doctype html><meta charset=utf-8><title>{html.escape(self.title)}</title><style>{CSS}</style>"
        write_text(folder / "report.html", head + "\n".join(self.page) + "\n")


def _bold(text: str) -> str:
    return f"<b>{text[2:-2]}</b>" if text.startswith("**") and text.endswith("**") else text


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def unit_of(values: list[float]) -> tuple[float, str]:
    return (1e9, "B") if max(values) >= 1e9 else (1e6, "M")


def draw_line(axes, recipe: str, x, points: list[dict], scale: float = 100.0, **more) -> None:
    """Means with their intervals, in the recipe's colour, marker and line."""
    name, colour, marker, line, filled = STYLE[recipe]
    mean = np.array([p["mean"] for p in points]) * scale
    error = np.array([[p["mean"] - p["low"], p["high"] - p["mean"]] for p in points]).T * scale
    error = None if np.isinf(error).any() else np.clip(error, 0, None)
    axes.errorbar(
        x, mean, error, color=colour, marker=marker, ls=line, lw=1.4, ms=9 if marker == "*" else 5.5,
        mfc=colour if filled else "white", capsize=2, elinewidth=0.9, label=name, **more,
    )  # fmt: skip


def dodge(recipes: list[str], recipe: str, x: np.ndarray, width: float) -> np.ndarray:
    """Side by side, so that intervals at the same checkpoint can be told apart."""
    place = recipes.index(recipe) - (len(recipes) - 1) / 2
    return np.asarray(x, dtype=float) + width * place / max(1, len(recipes) - 1)


def shared_legend(figure, axes, columns: int = 5) -> None:
    """One legend for all panels, above them."""
    found = {}
    for ax in np.ravel(axes):
        for handle, name in zip(*ax.get_legend_handles_labels(), strict=True):
            found.setdefault(name, handle)
    figure.legend(found.values(), found.keys(), loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=columns)


def figure_pass_at_k(g: Grid, entries: list[Entry], recipes: list[str], flops: bool = False):
    """Pass@k over pretraining tokens (or over all FLOPs spent), a column for each k, a row for each test set."""
    sets = list(entries[0].sets)
    ks = [k for k in (1, 8, 32) if k <= g.k] or [g.k]
    figure, axes = plt.subplots(
        len(sets), len(ks), figsize=(4.1 * len(ks), 3.1 * len(sets)), squeeze=False, layout="tight"
    )
    scale, unit = unit_of(g.tokens)
    span = (max(g.tokens) - min(g.tokens)) / scale or 1.0
    for row, name in enumerate(sets):
        for column, k in enumerate(ks):
            ax = axes[row, column]
            for recipe in recipes:
                at = [t for t in g.tokens if (recipe, t) in g.at]
                points = [interval(np.array([e.pass_at(k, name) for e in g.at[recipe, t].values()])) for t in at]
                if flops:
                    x = [np.mean([e.record["flops"] for e in g.at[recipe, t].values()]) for t in at]
                else:
                    gaps = np.diff(np.array(g.tokens) / scale)
                    width = 0.5 * min(gaps) if len(gaps) else 0.3 * span
                    x = dodge(recipes, recipe, np.array(at) / scale, width)
                draw_line(ax, recipe, x, points)
            ax.set_title(f"{name}: pass@{k}")
            ax.set_xlabel("FLOPs, pretraining and everything after it" if flops else f"pretraining tokens ({unit})")
            ax.set_ylabel("% of questions")
            ax.set_ylim(bottom=0)
            if flops:
                ax.set_xscale("log")
            else:
                ax.set_xticks(np.array(g.tokens) / scale, [f"{t / scale:.3g}" for t in g.tokens])
    shared_legend(figure, axes)
    return figure


def figure_change(g: Grid):
    """What RL changes against the model that it started from: expansion or sharpening."""
    pairs = [("rl", "start", "direct RL − base (the better of 0-shot and worked examples)"),
             ("sft_rl", "sft", "SFT → RL − SFT"), ("sft_converged_rl", "sft_converged", "SFT to the end → RL − SFT to the end"),
             ("gold_rl", "gold", "SFT-Gold → RL − SFT-Gold")]  # fmt: skip
    pairs = [
        p
        for p in pairs
        if any(g.contrast({p[0]: 1, p[1]: -1}, t, lambda e: e.pass_at(1)) is not None for t in g.tokens)
    ]
    if not pairs:
        return None
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), sharey=False, layout="tight")
    names = [a for a, _, _ in pairs]
    for ax, k in zip(axes, (1, g.k), strict=True):
        for a, b, text in pairs:
            found = [(i, g.contrast({a: 1, b: -1}, t, lambda e, k=k: e.pass_at(k))) for i, t in enumerate(g.tokens)]
            found = [(i, interval(d)) for i, d in found if d is not None]
            x = dodge(names, a, np.array([i for i, _ in found]), 0.45)
            _, colour, marker, _, filled = STYLE[a]
            mean = np.array([p["mean"] for _, p in found]) * 100
            error = np.array([[p["mean"] - p["low"], p["high"] - p["mean"]] for _, p in found]).T * 100
            ax.bar(x, mean, 0.4 / len(pairs), color=colour, alpha=0.25)
            ax.errorbar(x, mean, np.clip(error, 0, None), color=colour, marker=marker, ls="none", capsize=3,
                        mfc=colour if filled else "white", label=text)  # fmt: skip
        ax.axhline(0, color="black", lw=1)
        ax.set_title(f"change of pass@{k}")
        ax.set_ylabel("points of %, all test questions")
        ax.set_xlabel("pretraining tokens")
        ax.set_xticks(range(len(g.tokens)), [million(t) for t in g.tokens])
        ax.set_xlim(-0.6, len(g.tokens) - 0.4)
    shared_legend(figure, axes, columns=2)
    return figure


def figure_dynamics(g: Grid):
    """Reward, validation pass@1, answer length and entropy over the steps of post-training."""
    rows = [("reward", "training reward"), ("val_pass@1", "validation pass@1"), ("length", "answer length (tokens)"),
            ("entropy", "entropy (nats a token)")]  # fmt: skip
    recipes = [r for r in g.recipes if not r.startswith("base") and r not in ("sft_converged", "soup")]
    recipes = [r for r in recipes if any(e.meta["curve"] for t in g.tokens for e in g.at.get((r, t), {}).values())]
    if not recipes:
        return None
    figure, axes = plt.subplots(
        len(rows), len(g.tokens), figsize=(3.7 * len(g.tokens), 9.5), sharey="row", squeeze=False, layout="tight"
    )
    for column, tokens in enumerate(g.tokens):
        for row, (key, title) in enumerate(rows):
            ax = axes[row, column]
            for recipe in recipes:
                name, colour, marker, line, filled = STYLE[recipe]
                curves = [e.meta["curve"].get(key) for e in g.at.get((recipe, tokens), {}).values()]
                for i, curve in enumerate(c for c in curves if c):  # a line for each seed
                    x, y = np.array(curve).T
                    few = len(x) < 15
                    ax.plot(x, y if few else smooth(y), color=colour, ls=line, lw=1.3, marker=marker if few else "",
                            markevery=1, ms=4, mfc=colour if filled else "white", label=name if i == 0 else None)  # fmt: skip
            ax.set_ylabel(title if column == 0 else "")
            ax.set_title(f"from {million(tokens)} tokens" if row == 0 else "")
            ax.set_xlabel("step" if row == len(rows) - 1 else "")
            ax.xaxis.get_major_locator().set_params(integer=True)
    shared_legend(figure, axes)
    return figure


def smooth(y: np.ndarray, width: int = 5) -> np.ndarray:
    """Centred moving mean, shorter at the ends."""
    half = width // 2
    return np.array([y[max(0, i - half) : i + half + 1].mean() for i in range(len(y))])


def figure_general(g: Grid):
    """Bits per byte of general text, and accuracy on general tasks."""
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.8), layout="tight")
    scale, unit = unit_of(g.tokens)
    gaps = np.diff(np.array(g.tokens) / scale)
    width = 0.5 * min(gaps) if len(gaps) else 0.3
    recipes = [r for r in g.recipes if r != "base_0shot"]  # likelihoods do not depend on worked examples
    for recipe in recipes:
        at = [t for t in g.tokens if (recipe, t) in g.at]
        x = dodge(recipes, recipe, np.array(at) / scale, width)
        groups = [list(g.at[recipe, t].values()) for t in at]
        draw_line(axes[0], recipe, x, [interval(np.array([[e.bits] for e in group])) for group in groups], scale=1)
        if all(e.tasks().size for group in groups for e in group):
            draw_line(axes[1], recipe, x, [interval(np.array([e.tasks() for e in group])) for group in groups])
    axes[0].set_ylabel("bits per byte (lower is better)")
    axes[0].set_title("held-out general text")
    axes[1].set_ylabel("accuracy, mean over tasks (%)")
    axes[1].set_title("general tasks")
    for ax in axes:
        ax.set_xlabel(f"pretraining tokens ({unit})")
        ax.set_xticks(np.array(g.tokens) / scale, [f"{t / scale:.3g}" for t in g.tokens])
    shared_legend(figure, axes)
    return figure


COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"]
MARKERS = "osD^v>P"


def figure_rollouts(entries: list[Entry]):
    """Validation pass@1 over steps and over FLOPs, for few and many answers a question."""
    groups = by_variant(entries, "band", "n")
    if not groups:
        return None
    bands, counts = list(dict.fromkeys(b for b, _ in groups)), sorted({n for _, n in groups})
    figure, axes = plt.subplots(len(bands), 2, figsize=(9.5, 3.2 * len(bands)), squeeze=False, layout="tight")
    for (band, n), group in groups.items():
        for i, e in enumerate(group):
            curve = e.meta["curve"].get("val_pass@1", [])
            if not curve:
                continue
            steps, y = np.array(curve).T
            flops = np.interp(steps, *zip(*stage_flops(e), strict=True))
            for ax, x in zip(axes[bands.index(band)], (steps, flops), strict=True):
                place = counts.index(n)
                ax.plot(x, 100 * y, color=COLOURS[place], marker=MARKERS[place], label=f"n = {n}" if i == 0 else None)
    for row, band in enumerate(bands):
        for ax, what in zip(axes[row], ("step", "FLOPs of this stage"), strict=True):
            ax.set(xlabel=what, ylabel="validation pass@1 (%)", title=f"trained on {band} questions")
            ax.legend()
    return figure


def figure_variants(entries: list[Entry], key: str, title: str):
    """Pass@1 and pass@k over one quantity of a named plan (how many questions are solved, the math share, the seed)."""
    groups = by_variant(entries, key)
    if len(groups) < 2:
        return None
    everything = [e for group in groups.values() for e in group]
    ks = (1, min(e.largest_k for e in everything))
    recipes = [r for r in STYLE if any(e.recipe == r for e in everything)]
    last = {str(v[0]): max(e.meta["tokens"] for e in group) for v, group in groups.items()}
    figure, axes = plt.subplots(1, 2, figsize=(9.5, 3.6), layout="tight")
    for ax, k in zip(axes, ks, strict=True):
        for recipe in recipes:
            at, points = [], []
            for i, (value, group) in enumerate(groups.items()):
                chosen = [e for e in group if e.recipe == recipe and e.meta["tokens"] == last[str(value[0])]]
                if chosen:
                    at.append(i)
                    points.append(interval(np.array([e.pass_at(k) for e in chosen])))
            draw_line(ax, recipe, dodge(recipes, recipe, np.array(at), 0.25), points)
        ax.set(xlabel=title, ylabel="% of test questions", title=f"pass@{k}")
        ax.set_xticks(range(len(groups)), [str(value[0]) for value in groups])
        ax.set_ylim(bottom=0)
    shared_legend(figure, axes)
    return figure


def figure_seeds(entries: list[Entry]):
    """Pass@1 of each seed of RL from the same checkpoints."""
    found = [e for group in by_variant(entries, "rlseed").values() for e in group]
    if not found:
        return None
    tokens = sorted({e.meta["tokens"] for e in found})
    scale, unit = unit_of(tokens)
    figure, ax = plt.subplots(figsize=(5.5, 3.6), layout="tight")
    for i, t in enumerate(tokens):
        y = [100 * e.pass_at(1).mean() for e in found if e.meta["tokens"] == t]
        ax.plot(np.full(len(y), i) + np.linspace(-0.1, 0.1, len(y)), y, "s", color=COLOURS[0], mfc="none")
        ax.plot([i - 0.2, i + 0.2], [np.mean(y)] * 2, color="black")
    ax.set_xticks(range(len(tokens)), [f"{t / scale:.3g}" for t in tokens])
    ax.set(
        xlabel=f"pretraining tokens ({unit})",
        ylabel="pass@1 after RL (%)",
        title="a square a seed; the bar is their mean",
    )
    ax.set_ylim(bottom=0)
    return figure


# ---------------------------------------------------------------------------------------------------------------------
# Tables and the reader
# ---------------------------------------------------------------------------------------------------------------------


def percent(x: dict) -> str:
    return f"{100 * x['mean']:.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"


def describe(e: Entry) -> str:
    """The model in words: recipe and what is special about it."""
    variant = ", ".join(
        f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in e.meta["variant"].items()
    )
    return label(e.recipe) + (f" ({variant})" if variant else "")


def short_flops(x: float) -> str:
    return "unknown" if np.isnan(x) else f"{x:.2e}"


def table_findings(doc: Document, findings: list[Finding]) -> None:
    doc.heading("The paper's findings here")
    rows = []
    for f in findings:
        claims = [c for c in f.claims if c.counts]
        numbers = "; ".join(f"{c.text} {c.numbers} (expected {c.expected}: {c.verdict})" for c in claims)
        rows.append([f.number, f.text, f"**{f.verdict}**", numbers])
    doc.table(["", "finding", "here", "by these numbers"], rows)
    doc.text("Differences of pass rates and accuracies are in points of %, with 95% intervals by bootstrap: paired by "
             "question, all test questions together, mean over checkpoints where none is named, seeds resampled too where "
             "there are several. A claim is shown if its whole interval is on the expected side, not shown if the whole "
             "interval is on the other, else unclear. Start: the better of the base model's two evaluations.")  # fmt: skip
    rows = [[f.number, c.text, c.numbers, c.expected, c.verdict] for f in findings for c in f.claims if not c.counts]
    if rows:
        doc.heading("Beside the findings: each checkpoint, controls")
        doc.table(["finding", "contrast", "value", "the paper's way", "verdict"], rows)


def table_entries(doc: Document, entries: list[Entry]) -> None:
    doc.heading("All models")
    sets = list(entries[0].sets)
    ks = sorted({key for e in entries for s in e.sets.values() for key in s["strict"]}, key=lambda key: int(key[5:]))
    header = [
        "tokens",
        "model",
        "seed",
        *(f"{s} {k} %" for s in sets for k in ks),
        *(f"{s} lenient@1 / box %" for s in sets),
    ]
    header += ["bits/byte", *(f"{t} %" for t in entries[0].record["tasks"]), "FLOPs", "of them after pretraining",
               "seconds: training + evaluation"]  # fmt: skip
    base = {(e.meta["tokens"], e.meta["scale"]): e.record["flops"] for e in entries if e.recipe.startswith("base")}
    order = list(STYLE)
    rows = []
    for e in sorted(
        entries,
        key=lambda e: (
            str(e.meta["variant"]),
            e.meta["tokens"],
            order.index(e.recipe) if e.recipe in order else 99,
            e.meta["seed"],
        ),
    ):
        seconds = e.meta["seconds"]
        start = base.get((e.meta["tokens"], e.meta["scale"]))
        row = [million(e.meta["tokens"]), describe(e), e.meta["seed"]]
        row += [
            percent(e.sets[s]["strict"][k]) if s in e.sets and k in e.sets[s]["strict"] else "–"
            for s in sets
            for k in ks
        ]
        row += [f"{100 * e.sets[s]['lenient'][min(ks, key=lambda k: int(k[5:]))]['mean']:.1f} / {100 * e.sets[s]['box']:.1f}"
                if s in e.sets and "pass@1" in e.sets[s]["lenient"] else "–" for s in sets]  # fmt: skip
        row += [f"{e.bits:.4f}", *(percent(main_accuracy(t)) for t in e.record["tasks"].values())]
        row += [short_flops(e.record["flops"]), "–" if start is None else short_flops(e.record["flops"] - start)]
        row.append(
            " + ".join("–" if seconds.get(k) is None else f"{seconds[k]:.0f}" for k in ("training", "evaluation"))
        )
        rows.append(row)
    doc.table(header, rows)


def reader(doc: Document, entries: list[Entry]) -> None:
    """Samples of each model side by side, in the HTML only."""
    doc.page.append(
        "<h2>Reader of samples</h2><p>A question, and of every model a few of its answers. Green: right.</p>"
    )
    shown = [e for e in entries if e.meta["samples"]]
    for tokens in sorted({e.meta["tokens"] for e in shown}):
        here = [e for e in shown if e.meta["tokens"] == tokens and e.meta["seed"] == shown[0].meta["seed"]]
        here = sorted(here, key=lambda e: list(STYLE).index(e.recipe) if e.recipe in STYLE else 99)
        questions = {row["id"]: row for e in here for row in e.meta["samples"]}
        doc.page.append(f"<h3>from {million(tokens)} pretraining tokens</h3>")
        for id_, question in questions.items():
            doc.page.append(f"<details><summary>{html.escape(question['set'])}: {html.escape(question['question'])} "
                            f"(right: {html.escape(str(question['answer']))})</summary><div class=reader>")  # fmt: skip
            for e in here:
                for row in [r for r in e.meta["samples"] if r["id"] == id_]:
                    counts = [q for s in e.sets.values() for q in s["questions"] if q["id"] == id_]
                    rate = f" {counts[0]['c']}/{counts[0]['n']} right" if counts else ""
                    doc.page.append(f"<div><b>{html.escape(describe(e))}</b>{rate}")
                    for s in row["samples"]:
                        kind = "right" if s["right"] else "wrong"
                        doc.page.append(f"<div class={kind}>{html.escape(s['text'].strip())}</div>")
                    doc.page.append("</div>")
            doc.page.append("</div></details>")


def write_report(records: Path, out: Path) -> Path:
    """Make report.md, report.html and figures/ in `out` from the records of a folder. UserError if there are none."""
    entries = load(records)
    doc = Document("RL excursions during pretraining: what came out", out / "figures")
    grid_entries = [e for e in entries if not e.meta["variant"]]
    g = Grid(grid_entries)
    seeds = sorted({seed for e in entries for seed in e.seeds})
    budgets = ", ".join(sorted({f"{e.meta['scale']} ({e.meta['budget']})" for e in entries}))
    sizes = ", ".join(f"{len(s['questions'])} of {name}" for name, s in entries[0].sets.items())
    settings = next(iter(entries[0].sets.values()))
    doc.text(f"{len(entries)} models; {budgets}; seeds {', '.join(map(str, seeds))}; test questions {sizes}, {settings['n']} "
             f"samples each at temperature {settings['temperature']:g}, top-p {settings['top_p']:g}. Intervals are 95%. This page "
             "was made by `excursion.py report` from the records alone.")  # fmt: skip
    table_findings(doc, all_findings(entries))
    if grid_entries:
        over = f"{len(seeds)} seed{'s' * (len(seeds) > 1)}; bars are 95% intervals over questions" + (
            " and seeds" if len(seeds) > 1 else ""
        )
        doc.heading("Pass@k over pretraining")
        main = [r for r in g.recipes if r not in CONTROLS]
        doc.figure("pass_at_k", figure_pass_at_k(g, grid_entries, main),
                   f"All recipes from every checkpoint ({over}). Points of one checkpoint stand side by side.")  # fmt: skip
        if any(np.isfinite(e.record["flops"]) for e in grid_entries):
            doc.figure("pass_at_k_flops", figure_pass_at_k(g, grid_entries, main, flops=True),
                       "The same over all FLOPs spent: pretraining, and training and sampling after it.")  # fmt: skip
        if any(r in g.recipes for r in CONTROLS):
            sides = [r for r in g.recipes if r in ("rl", "sft", "parallel", *CONTROLS)]
            doc.figure("doses", figure_pass_at_k(g, grid_entries, sides),
                       "Parallel averaging takes half of an RL step and half of an SFT step. Beside it each half alone, as many "
                       "steps at half the learning rate.")  # fmt: skip
        if change := figure_change(g):
            doc.heading("Expansion or sharpening")
            doc.figure(
                "change", change, "What RL changes against the very model that it started from, paired by question."
            )
        if dynamics := figure_dynamics(g):
            doc.heading("Training")
            doc.figure("dynamics", dynamics, "A line a seed; rewards and lengths are moving means over 5 points. Validation: "
                                             "0-shot, 8 answers a question.")  # fmt: skip
        doc.heading("General capability")
        alone = "" if len(seeds) > 1 else " (bits per byte have no interval with one seed)"
        doc.figure("general", figure_general(g), f"What post-training costs elsewhere{alone}.")
    others = [("rollouts", figure_rollouts(entries), "Few and many answers a question."),
              ("seeds", figure_seeds(entries), "RL from the same checkpoints with other seeds."),
              ("demonstrations", figure_variants(entries, "solved", "questions trained on, each with one solution for SFT"),
               "How many questions are there? RL needs no solutions, so its last point is what it gets from all."),
              ("mixture", figure_variants(entries, "math", "math share of pretraining"), "The mixture of pretraining."),
              ("scale", figure_variants(entries, "size", "size, at equal pretraining FLOPs"), "Size.")]  # fmt: skip
    for name, figure, caption in others:
        if figure:
            doc.heading(f"Plan: {name}")
            doc.figure(name, figure, caption)
    table_entries(doc, entries)
    reader(doc, grid_entries or entries)
    doc.write(out)
    print(f"wrote {out / 'report.md'} and {out / 'report.html'} ({len(entries)} models)")
    return out / "report.html"
