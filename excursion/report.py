"""The report of an excursion: summary, findings, figures, samples and tables, from a folder of records alone.

    python -m excursion report --out out/excursion                                 # of what is there by now
    python -m excursion report --records results/excursion --out out/again         # of committed records

Out come report.md, report.html (one file, figures inside) and figures/*.png. What is claimed, and by which test, is in
findings.py and plan_findings.py; nothing here is written by hand after the fact.
"""

import base64
import html
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np

from eval import main_accuracy
from excursion import figures as draw
from excursion.claims import Finding, listed
from excursion.contrasts import Grid, by_variant, judged_alike, trajectory
from excursion.figures import plt
from excursion.findings import NAMES, Contrasts
from excursion.plan_findings import all_findings, questions
from excursion.recipes import RECIPES, label
from excursion.records import Entry, Questions, load, million
from excursion.sharpening import Sharpening
from files import write_text

HERO = ["base", "rl", "sft", "sft_rl", "gold", "parallel"]  # at most six lines
MARK = {"shown": "✓", "contradicted": "✗", "unclear": "?", "not run": "–"}
# ---------------------------------------------------------------------------------------------------------------------
# A document that is markdown and HTML at once
# ---------------------------------------------------------------------------------------------------------------------

CSS = """
body { font: 16px/1.5 system-ui, sans-serif; max-width: 1100px; margin: 1.5em auto; padding: 0 .9em; color: #222; overflow-wrap: break-word }
img { max-width: 100%; height: auto } figcaption { color: #555; font-size: 14px } figure { margin: 1em 0 2em }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 330px), 1fr)); gap: 10px; align-items: start }
table { border-collapse: collapse; font-size: 13px; margin: 1em 0; display: block; overflow-x: auto }
th, td { border: 1px solid #ccc; padding: 2px 7px; text-align: left; vertical-align: top }
th { background: #f3f3f3 } td { font-variant-numeric: tabular-nums }
details { margin: .6em 0 } summary { cursor: pointer; font-weight: 600 }
h3 { margin: 1.4em 0 .3em; font-size: 17px }
.claim { display: grid; grid-template-columns: 1.6em 1fr; padding: 3px 0; border-top: 1px solid #eee }
.claim b { font-variant-numeric: tabular-nums; white-space: nowrap } .claim small, .note { color: #666; font-size: 13px }
.v-shown { color: #00795a } .v-contradicted { color: #b84a00 } .v-unclear { color: #666 } .v-not { color: #999 }
.mark { font-weight: 700 }
.right { border-left: 5px solid #009E73 } .wrong { border-left: 5px solid #ccc }
.right, .wrong { padding: 1px 7px; margin: 5px 0; white-space: pre-wrap; font: 12px/1.35 ui-monospace, monospace }
.reader { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 240px), 1fr)); gap: 10px }
"""


class Document:
    """Collects parts; `markdown` and `page` are the same text twice."""

    def __init__(self, title: str, figures: Path):
        self.title, self.figures = title, figures
        self.markdown, self.page = [f"# {title}", ""], [f"<h1>{html.escape(title)}</h1>"]

    def heading(self, text: str, level: int = 2) -> None:
        self.markdown += [f"{'#' * level} {text}", ""]
        self.page.append(f"<h{level}>{html.escape(text)}</h{level}>")

    def text(self, text: str) -> None:
        self.markdown += [text, ""]
        self.page.append(f"<p>{html.escape(text)}</p>")

    def table(self, header: list[str], rows: list[list], fold: str = "") -> None:
        """fold: a summary under which the page hides it until it is asked for."""
        clean = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
        if fold:
            self.markdown += ["<details>", f"<summary>{fold}</summary>", ""]
            self.page.append(f"<details><summary>{html.escape(fold)}</summary>")
        self.markdown += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
        self.markdown += [f"| {' | '.join(row)} |" for row in clean] + [""]

        def line(tag: str, cells: list[str]) -> str:
            return "<tr>" + "".join(f"<{tag}>{html.escape(str(c))}</{tag}>" for c in cells) + "</tr>"

        self.page.append(f"<table>{line('th', header)}{''.join(line('td', row) for row in rows)}</table>")
        if fold:
            self.markdown += ["</details>", ""]
            self.page.append("</details>")

    def panels(self, found: list[tuple[str, "plt.Figure | None", str]], caption: str) -> None:
        """Figures (name, figure, alt text) side by side where there is room; those that are None are left out."""
        found = [(name, figure, alt) for name, figure, alt in found if figure is not None]
        if not found:
            return
        self.figures.mkdir(parents=True, exist_ok=True)
        self.page.append("<figure><div class=panels>")
        for name, figure, alt in found:
            buffer = io.BytesIO()
            figure.savefig(buffer, format="png", metadata={"Software": None}, bbox_inches="tight")
            plt.close(figure)
            (self.figures / f"{name}.png").write_bytes(buffer.getvalue())
            self.markdown += [f"![{alt}](figures/{name}.png)", ""]
            inline = base64.b64encode(buffer.getvalue()).decode()
            self.page.append(f'<img alt="{html.escape(alt, quote=True)}" src="data:image/png;base64,{inline}">')
        self.markdown += [f"*{caption}*", ""]
        self.page.append(f"</div><figcaption>{html.escape(caption)}</figcaption></figure>")

    def write(self, folder: Path) -> None:
        write_text(folder / "report.md", "\n".join(self.markdown))
        head = (
            '<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content="width=device-width, initial-scale=1">'
            f"<title>{html.escape(self.title)}</title><style>{CSS}</style>"
        )
        write_text(folder / "report.html", head + "\n".join(self.page) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Summary and findings
# ---------------------------------------------------------------------------------------------------------------------


def design(entries: list[Entry]) -> str:
    """What was run, in one sentence."""
    keys = {key for e in entries for key in e.keys}
    runs, seeds = {p for p, _ in keys}, {s for _, s in keys}
    sizes = [
        len(s["questions"])
        for s in max(entries, key=lambda e: sum(len(s["questions"]) for s in e.sets.values())).sets.values()
    ]
    temperatures = listed([f"{t:g}" for t in sorted({e.temperature for e in entries})])
    checkpoints = len({e.tokens for e in entries if not e.variant}) or len({e.tokens for e in entries})
    samples = max(s["n"] for e in entries for s in e.sets.values())
    return (
        f"{len(entries)} models from {checkpoints} checkpoint{'s' * (checkpoints > 1)} of {len(runs)} pretraining "
        f"run{'s' * (len(runs) > 1)}, {len(seeds)} seed{'s' * (len(seeds) > 1)}, were judged on {sum(sizes)} test questions × "
        f"{samples} samples at temperature {temperatures}."
    )


def summary(entries: list[Entry], found: list[Finding], answers: list[tuple[Finding, str]]) -> list[str]:
    """At most five sentences."""
    by = {v: [NAMES[f.number] for f in found if f.verdict == v] for v in MARK}
    sentences = [design(entries)]
    for verdict, text in (("shown", "Shown"), ("contradicted", "Contradicted"), ("unclear", "Unclear")):
        if by[verdict]:
            sentences.append(f"{text}: {listed(by[verdict])}.")
    if by["not run"]:
        sentences[-1] = f"{sentences[-1][:-1]}; not run: {listed(by['not run'])}."
    sharpening, answer = answers[0]
    if sharpening.verdict != "not run":
        sentences.append(f"What sharpens: {answer.split('. ')[0].rstrip('.')}.")
    return sentences


def show_finding(doc: Document, f: Finding, answer: str = "") -> None:
    name = f.title if answer else f"{MARK[f.verdict]} {f.number}. {f.title}: {f.verdict}"
    doc.markdown += [f"### {name}", ""]
    doc.page.append(f'<h3 class="v-{"" if answer else f.verdict.split()[0]}">{html.escape(name)}</h3>')
    if answer:
        doc.text(answer)
    for note in f.notes + ([f"Needs {f.needs}."] if f.verdict == "not run" and f.needs else []):
        doc.markdown += [note, ""]
        doc.page.append(f"<p class=note>{html.escape(note)}</p>")
    header = ["", "contrast", "value [95%]", "expected", "visible", "seeds × questions", "bootstrap", "verdict"]

    def row(c) -> list[str]:
        own = c.x is None and c.needs and f.verdict != "not run"  # else what the finding needs is said above
        text = f"{c.text} (needs {c.needs})" if own else c.text
        return [MARK[c.verdict], text, c.numbers, c.expected, c.visible, c.n, c.bootstrap, c.verdict]

    doc.markdown += [f"| {' | '.join(header)} |", "|" + "---|" * len(header)]
    doc.markdown += [f"| {' | '.join(row(c))} |" for c in f.primary] + [""]
    for c in f.primary:
        mark, text, numbers, expected, visible, n, boot, verdict = (html.escape(cell) for cell in row(c))
        detail = f"expected {expected}; visible from {visible}; n {n}" if c.x is not None else ""
        detail += f"; bootstrap {boot}" if c.boot else ""
        doc.page.append(f'<div class=claim><span class="mark v-{verdict.split()[0]}">{mark}</span>'
                        f"<span>{text} <b>{numbers}</b> <small>{detail}</small></span></div>")  # fmt: skip
    if f.beside:
        doc.table(header, [row(c) for c in f.beside], fold=f"beside {f.number}: {len(f.beside)} more contrasts")


def guess_floor(entries: list[Entry]) -> str:
    """The largest of all models, in a sentence; empty where records have none."""
    ks = (1, min(e.largest_k for e in entries))
    floors = {k: [f for f in (e.floor(k) for e in entries) if f is not None] for k in ks}
    if not all(floors.values()):
        return ""
    parts = [f"pass@{k} {100 * max(floors[k]):.1f}%" for k in floors]
    return f" Guess floor, what answers to other questions score, at most: {', '.join(parts)}."


def show_findings(
    doc: Document, entries: list[Entry], found: list[Finding], answers: list[tuple[Finding, str]]
) -> None:
    doc.heading("The paper's findings here")
    doc.text("Differences are in points of %, paired by question and seed, mean over checkpoints where none is named. In brackets the "
             "95% small-sample interval, by which verdicts are (Holm's correction over the contrasts of a finding); beside it the crossed "
             "bootstrap's. Visible: the smallest true effect that four of five such studies would see. ✓ shown, ✗ contradicted, ? unclear, "
             "– not run." + guess_floor(entries))  # fmt: skip
    for f in found:
        show_finding(doc, f)
    doc.heading("Beyond the paper")
    for f, answer in answers:
        show_finding(doc, f, answer)


# ---------------------------------------------------------------------------------------------------------------------
# Figures
# ---------------------------------------------------------------------------------------------------------------------


def words(name: str) -> str:
    """test_easy → Easy questions"""
    return f"{name.removeprefix('test_').replace('_', ' ').capitalize()} questions"


def show_hero(doc: Document, g: Grid, c: Contrasts) -> float:
    """Returns the largest difference of process-right from plain pass@k in it."""
    recipes = [r for r in HERO if g.has(r)]
    doc.heading("Pass@k over pretraining")
    far = 0.0
    if c.judged:
        levels = [
            (g.level(r, t, c.right), g.level(r, t, c.process)) for r in recipes for t in g.tokens if g.models(r, t)
        ]
        far = max(abs(a.values.mean() - b.values.mean()) for a, b in levels)
    more = ""
    if c.judged and far < 0.02:
        more = f" Process-right pass@{g.k} (every written equation true as well) is within {100 * far:.1f} points of every point."
    elif c.judged:
        more = " Dotted: process-right, every written equation true as well."
    found = [(f"pass{k}", draw.figure_lines(g, recipes, Questions(k), f"All test questions: pass@{k}, %", process=far >= 0.02),
              draw.describe_lines(g, recipes, Questions(k))) for k in dict.fromkeys((1, g.k))]  # fmt: skip
    doc.panels(found, "Each recipe from every checkpoint, mean over seeds, bars: 95% intervals over questions and seeds. Grey: what answers "
                      f"to other questions score.{more}")  # fmt: skip
    return far


def show_trajectories(doc: Document, entries: list[Entry], c: Contrasts, far: float) -> None:
    """far: how much process-right and plain pass@k differ; where they do, both are drawn."""
    plain = [e for e in entries if not e.variant]
    grids = [Grid(plain, t) for t in sorted({e.temperature for e in plain})]
    found, tall = [], []
    for g in sorted(grids, key=lambda g: g.temperature != c.g.temperature):
        for t in longest(g):
            for m in (c.best, c.right) if c.judged and far >= 0.02 else (c.best,):
                name = (
                    f"trajectory_{million(t).replace(' ', '')}_T{g.temperature:g}{'_plain' if m is not c.best else ''}"
                )
                found.append((name, draw.figure_trajectory(g, t, m), draw.describe_path(g, t, m)))
            for kind in ("answers", "paths") if g.temperature == c.g.temperature else ():
                tall.append((f"entropy_{kind}_{million(t).replace(' ', '')}", draw.figure_entropy(g, t, kind),
                             f"Entropy of {kind} over training steps from {million(t)} tokens"))  # fmt: skip
    if any(figure is not None for _, figure, _ in found):
        doc.heading("Trajectories: expansion or sharpening")
        doc.panels(found, "One line a recipe, from the model it started from (large hollow mark, 0-shot) through its judged steps, mean over "
                          "seeds with the 95% intervals of both; the last step is named. Up and right is expansion; right and down is sharpening.")  # fmt: skip
        doc.panels(
            tall, "Entropy of a question's sampled answers, and of its solution paths, mean over questions and seeds."
        )


def longest(g: Grid) -> list[int]:
    """Checkpoints of the trajectory figure: those with the most judged steps, at most three of them."""
    count = {t: max([len(trajectory(g, r, t, key)) for r in ("rl", "sft_rl", "parallel") for key in g.paths.get((r, t), {})] or [0])
             for t in g.tokens}  # fmt: skip
    most = [t for t in g.tokens if count[t] == max(count.values()) > 1]
    return most if len(most) <= 3 else [most[0], most[len(most) // 2], most[-1]]


def show_sharpening(doc: Document, entries: list[Entry]) -> None:
    s = Sharpening(entries)
    if not s.recipes or len(s.rates) < 2:
        return
    doc.heading("Order × rate × dose")
    limits = draw.sharpening_limits(s)
    found = [(f"sharpening_{r}", draw.figure_sharpening(s, r, limits),
              f"{s.measure.name} over {s.measure.at(1).name} of {label(r)} at rates {', '.join(f'{x:.2g}' for x in s.rates)}")
             for r in s.recipes]  # fmt: skip
    doc.panels(found, "A panel a start, a line a rate (times the grid's), the last step named; all panels have the same range. Rings mark "
                      "the paper's pair: RL from base, and RL after SFT at a far higher rate.")  # fmt: skip


def show_forests(doc: Document, found: list[Finding], c: Contrasts) -> None:
    by = {f.number: f for f in found}
    doc.heading("Contrasts as pictures")
    panels = []
    best = c.best.name
    for name, numbers, title, what, places in (
        ("change", ("3a", "3b", "3c"), f"What RL changes: {best}, points", best, True),
        ("averaging", ("5",), f"Averaging against each: {best}, points", best, False),
        ("general", ("4",), "Accuracy on general tasks: change, points", "accuracy", False),
        ("text", ("4 by text",), "Bits per byte of general text: change", "bits", False),
    ):
        claims = [x for n in numbers if n in by for x in (*by[n].primary, *by[n].beside)]
        claims = [
            x for x in claims if x.text.startswith(what) and "questions" not in x.text and (places or x.at is None)
        ]
        alt = f"{title}: " + "; ".join(f"{x.text} {x.numbers}" for x in claims[:8] if x.x is not None)
        panels.append((name, draw.figure_forest(claims, title, "change"), alt))
    doc.panels(
        panels,
        "95% small-sample intervals. Green: on the paper's side; orange: against it; grey: unclear. Thick: counts for the verdict.",
    )


def show_dynamics(doc: Document, g: Grid) -> None:
    trained = [t for t in g.tokens if any(e.meta["curve"] for r in ("rl", "sft") for e in g.models(r, t).values())]
    if not trained:
        return
    tokens = trained[len(trained) // 2]
    found = [(f"dynamics_{key.replace('@', '')}", draw.figure_dynamics(g, tokens, key),
              f"{title} over the share of the run from {million(tokens)} tokens") for key, title in draw.CURVES.items()]  # fmt: skip
    doc.heading("Training")
    doc.panels(found, "Mean over seeds, band from the lowest to the highest. Rewards, lengths and entropies are moving means over 5 points; "
                      "validation is 0-shot, 8 answers a question.")  # fmt: skip


def show_plans(doc: Document, entries: list[Entry]) -> None:
    """Figures of the named plans that have records."""
    bands = dict.fromkeys(band for band, _ in by_variant(entries, "band", "n"))
    plans = [
        ("rollouts", [(f"rollouts_{b}_{a}", draw.figure_rollouts(entries, b, a), f"Validation pass@1 over {a}, {b} questions")
                      for b in bands for a in ("step", "flops")], "Few and many answers a question, mean over seeds."),
        ("seeds", [("seeds", draw.figure_seeds(entries), "Pass@1 after RL of each seed")], "RL from the same checkpoints with other seeds."),
    ]  # fmt: skip
    for key, name, text, caption in (
        ("solved", "demonstrations", "questions trained on, each with one solution for SFT",
         "How many questions are there? RL needs no solutions, so its last point is what it gets from all."),
        ("math", "mixture", "math share of pretraining", "The mixture of pretraining, its last checkpoint."),
        ("size", "scale", "size, at equal pretraining FLOPs", "Size, the last checkpoint."),
    ):  # fmt: skip
        found = [e for e in entries if set(e.variant) == {key}]
        k = min((e.largest_k for e in found), default=1)
        plans.append((name, [(f"{name}_{i}", draw.figure_variants(entries, key, i, f"All test questions: pass@{i}, %", text),
                              f"Pass@{i} over {text}") for i in dict.fromkeys((1, k))], caption))  # fmt: skip
    for name, panels, caption in plans:
        if any(figure is not None for _, figure, _ in panels):
            doc.heading(f"Plan: {name}")
            doc.panels(panels, caption)


# ---------------------------------------------------------------------------------------------------------------------
# Tables and the reader
# ---------------------------------------------------------------------------------------------------------------------


def percent(x: dict) -> str:
    return f"{100 * x['mean']:.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"


def describe(e: Entry) -> str:
    """The model in words: recipe and what is special about it."""
    variant = ", ".join(f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in e.variant.items())
    return label(e.recipe) + (f" ({variant})" if variant else "")


def short_flops(x: float) -> str:
    return "unknown" if np.isnan(x) else f"{x:.2e}"


def place(e: Entry) -> int:
    return list(RECIPES).index(e.recipe) if e.recipe in RECIPES else len(RECIPES)


def table_entries(doc: Document, entries: list[Entry]) -> None:
    sets = list(dict.fromkeys(name for e in entries for name in e.sets))
    ks = sorted({key for e in entries for s in e.sets.values() for key in s["strict"]}, key=lambda key: int(key[5:]))
    kinds = [("strict", "")] + [(kind, f" {word}") for kind, word in (("process", "process"), ("floor", "floor"))
                                if any(kind in s for e in entries for s in e.sets.values())]  # fmt: skip
    tasks = list(dict.fromkeys(name for e in entries for name in e.record["tasks"]))

    def cell(e: Entry, name: str, kind: str, k: str) -> str:
        value = e.sets.get(name, {}).get(kind, {}).get(k)
        return "–" if value is None else f"{100 * value:.1f}" if isinstance(value, float) else percent(value)

    columns: list[tuple[str, Callable[[Entry], str]]] = [
        ("tokens", lambda e: million(e.tokens)), ("model", describe), ("seed", lambda e: ", ".join(map(str, e.seeds))),
        ("step", lambda e: str(e.step)), ("T", lambda e: f"{e.temperature:g}"),
    ]  # fmt: skip
    for name in sets:
        for kind, word in kinds:
            for k in ks:
                columns.append((f"{name}{word} {k} %", lambda e, n=name, kind=kind, k=k: cell(e, n, kind, k)))
        columns.append((f"{name} lenient@1 %", lambda e, n=name: cell(e, n, "lenient", "pass@1")))
        columns.append((f"{name} box %", lambda e, n=name: f"{100 * e.sets[n]['box']:.1f}" if n in e.sets else "–"))
    columns.append(("bits/byte", lambda e: "–" if np.isnan(e.bits) else f"{e.bits:.4f}"))
    for name in tasks:
        columns.append(
            (
                f"{name} %",
                lambda e, n=name: percent(main_accuracy(e.record["tasks"][n])) if n in e.record["tasks"] else "–",
            )
        )
    base = {(e.tokens, e.meta.get("scale")): e.record["flops"] for e in entries if e.recipe.startswith("base")}
    after = {id(e): e.record["flops"] - base.get((e.tokens, e.meta.get("scale")), np.nan) for e in entries}
    columns += [
        ("FLOPs", lambda e: short_flops(e.record["flops"])),
        ("of them after pretraining", lambda e: short_flops(after[id(e)])),
    ]
    columns.append(("seconds: training + evaluation", lambda e: " + ".join(
        "–" if e.meta["seconds"].get(k) is None else f"{e.meta['seconds'][k]:.0f}" for k in ("training", "evaluation"))))  # fmt: skip
    order = sorted(entries, key=lambda e: (str(e.variant), e.tokens, place(e), e.meta["seed"], e.temperature, e.step))
    doc.heading("All models")
    doc.table([name for name, _ in columns], [[value(e) for _, value in columns] for e in order],
              fold=f"{len(entries)} models, intervals over questions")  # fmt: skip


def reader(doc: Document, entries: list[Entry]) -> None:
    """Samples of each model side by side, in the HTML only."""
    shown = [e for e in entries if e.meta["samples"]]
    if not shown:
        return
    temperature = Grid(shown).temperature
    doc.page.append(
        "<h2>Reader of samples</h2><p>A question, and of every model a few of its answers. Green: right.</p>"
    )
    for tokens in sorted({e.tokens for e in shown}):
        here = [
            e
            for e in shown
            if e.tokens == tokens and e.meta["seed"] == shown[0].meta["seed"] and e.temperature == temperature
        ]
        here = [
            e
            for e in here
            if not any(o.recipe == e.recipe and o.variant == e.variant and o.step > e.step for o in here)
        ]
        rows = {row["id"]: row for e in here for row in e.meta["samples"]}
        if not rows:
            continue
        doc.page.append(f"<h3>from {million(tokens)} pretraining tokens</h3>")
        for id_, question in rows.items():
            doc.page.append(f"<details><summary>{html.escape(question['set'])}: {html.escape(question['question'])} "
                            f"(right: {html.escape(str(question['answer']))})</summary><div class=reader>")  # fmt: skip
            for e in sorted(here, key=place):
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
    plain = [e for e in entries if not e.variant]
    found, answers = all_findings(entries), questions(entries)
    doc.text(" ".join(summary(entries, found, answers)))
    show_findings(doc, entries, found, answers)
    if plain:
        c = Contrasts(Grid(plain), entries)
        far = show_hero(doc, c.g, c)
        show_trajectories(doc, entries, c, far)
        show_sharpening(doc, entries)
        show_forests(doc, found, c)
        show_dynamics(doc, c.g)
        sets = list(dict.fromkeys(name for e in plain for name in e.sets))
        recipes = [r for r in HERO if c.g.has(r)]
        doc.heading("Each test set, and over FLOPs")
        panels = [(f"{name}_pass{k}", draw.figure_lines(c.g, recipes, Questions(k, set=name), f"{words(name)}: pass@{k}, %"),
                   draw.describe_lines(c.g, recipes, Questions(k, set=name)))
                  for name in sets if len(sets) > 1 for k in dict.fromkeys((1, c.g.k))]  # fmt: skip
        known = [
            r
            for r in recipes
            for t in c.g.tokens
            if all(np.isfinite(e.record["flops"]) for e in c.g.models(r, t).values())
        ]
        known = [r for r in recipes if r in known]
        if known:
            title = f"All test questions: pass@{c.g.k}, %"
            panels.append(("pass_at_k_flops", draw.figure_lines(c.g, known, Questions(c.g.k), title, flops=True),
                           f"pass@{c.g.k} over all FLOPs spent"))  # fmt: skip
        doc.panels(panels, "As above; the last one over all FLOPs: pretraining, and training and sampling after it.")
    show_plans(doc, judged_alike(entries))
    reader(doc, plain or entries)
    table_entries(doc, entries)
    scales = ", ".join(sorted({f"{e.meta['scale']}, budget {e.meta['budget']}" for e in entries if "scale" in e.meta}))
    doc.text(f"Made by `python -m excursion report` from {len(entries)} records alone ({scales or 'no scale named'}).")
    doc.write(out)
    print(f"wrote {out / 'report.md'} and {out / 'report.html'} ({len(entries)} models)")
    return out / "report.html"
