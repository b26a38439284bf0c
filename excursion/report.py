"""The report of an excursion: summary, findings, figures, samples and tables, from a folder of records alone.

    python -m excursion report --out out/excursion                                 # of what is there by now
    python -m excursion report --records results/excursion --out out/again         # of committed records

Out come report.md, report.html (one file, figures inside) and figures/*.png. write_report, at the end of this file, is
their order. What is claimed, and by which test, is in findings.py and plan_findings.py: nothing here is written by hand
after the fact.
"""

import html
from collections.abc import Collection
from pathlib import Path

import numpy as np

from excursion import figures as draw
from excursion.claims import Claim, Finding, listed
from excursion.contrasts import Grid, by_variant, judged_alike, runs
from excursion.document import Document
from excursion.findings import NAMES, Contrasts
from excursion.plan_findings import all_findings, questions
from excursion.recipes import RECIPES, label
from excursion.records import Entry, Questions, load, million, mixed_bases
from excursion.sharpening import Sharpening
from likelihood import main_accuracy

# Recipes of the first figure; with what else the figures of each test set and over FLOPs have, at most six lines
HERO = ["base", "rl", "sft", "sft_rl"]
LINES = [*HERO, "gold", "parallel"]
MARK = {"shown": "✓", "contradicted": "✗", "unclear": "?", "not run": "–"}


# ---------------------------------------------------------------------------------------------------------------------
# Summary and findings
# ---------------------------------------------------------------------------------------------------------------------


Answers = list[tuple[Finding, str]]  # of questions beyond the paper: contrasts, and the answer in words


def which_questions(entries: list[Entry]) -> str:
    """Which questions were asked: "test questions", or those of a trial."""
    trial = all(name.startswith("explore_") for e in entries for name in e.sets)
    return "explore questions" if trial else "test questions"


def design(entries: list[Entry]) -> str:
    """What was run, in one sentence."""
    keys = {key for e in entries for key in e.keys}
    number = max(sum(len(s["questions"]) for s in e.sets.values()) for e in entries)
    samples = max(s["n"] for e in entries for s in e.sets.values())
    temperatures = listed([f"{t:g}" for t in sorted({e.temperature for e in entries})])

    def count(things: Collection, word: str) -> str:
        return f"{len(things)} {word}{'s' * (len(things) > 1)}"

    checkpoints = {e.tokens for e in entries if not e.variant} or {(e.tokens, e.variant.get("base")) for e in entries}
    own = sorted({flags for e in entries for flags in e.meta.get("stage_flags", ())})
    return (
        f"{count(entries, 'evaluation')} of models from {count(checkpoints, 'checkpoint')} of {count({p for p, _ in keys}, 'pretraining run')}, "
        f"{count({s for _, s in keys}, 'seed')}, on {number} {which_questions(entries)} × {samples} samples at temperature "
        f"{temperatures}." + (f" With flags beside the plan's: {'; '.join(own)}." if own else "")
    )


def summary(entries: list[Entry], found: list[Finding], answers: Answers) -> list[str]:
    """At most five sentences."""
    by = {
        v: [NAMES[f.number] + (" (in one run)" if f.said != v else "") for f in found if f.verdict == v] for v in MARK
    }
    sentences = [design(entries)]
    for verdict in ("shown", "contradicted", "unclear"):
        if by[verdict]:
            sentences.append(f"{verdict.capitalize()}: {listed(by[verdict])}.")
    if len(by["not run"]) == len(found):
        sentences.append("None of the paper's findings was run.")
    elif by["not run"]:
        sentences[-1] = f"{sentences[-1][:-1]}; not run: {listed(by['not run'])}."
    sharpening, answer = answers[0]
    if sharpening.verdict != "not run":
        sentences.append(f"What sharpens: {answer.split('. ')[0].rstrip('.')}.")
    return sentences


def show_finding(doc: Document, f: Finding, answer: str = "") -> None:
    """Verdict, notes and claims; of a question beyond the paper the answer in place of a verdict."""
    name = f.title if answer else f"{MARK[f.verdict]} {f.number}. {f.title}: {f.said}"
    doc.markdown += [f"### {name}", ""]
    doc.page.append(f'<h3 class="v-{"" if answer else f.verdict.split()[0]}">{html.escape(name)}</h3>')
    if answer:
        doc.text(answer)
    for note in f.notes + ([f"Needs {f.needs}."] if f.verdict == "not run" and f.needs else []):
        doc.text(note, note=True)

    def row(c: Claim) -> list[str]:
        # what a whole finding needs is said above; a claim whose sides lie apart needs nothing
        own = c.x is None and c.needs and not c.apart and f.verdict != "not run"
        text = f"{c.text} (needs {c.needs})" if own else c.text
        return [MARK[c.verdict], text, c.numbers, c.expected, c.visible, c.n, c.bootstrap, c.said]

    def card(c: Claim) -> str:
        mark, text, numbers, expected, visible, n, boot, verdict = (html.escape(cell) for cell in row(c))
        detail = f"expected {expected}; visible from {visible}; n {n}" if c.x is not None else ""
        detail += f"; bootstrap {boot}" if c.boot else ""
        return (f'<div class=claim><span class="mark v-{verdict.split()[0]}">{mark}</span>'
                f"<span>{text} <b>{numbers}</b> <small>{detail}</small></span></div>")  # fmt: skip

    header = ["", "contrast", "value [95%]", "expected", "visible", "seeds × questions", "bootstrap", "verdict"]
    doc.table(header, [row(c) for c in f.primary], page="\n".join(map(card, f.primary)))
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


def show_findings(doc: Document, entries: list[Entry], found: list[Finding], answers: Answers) -> None:
    doc.heading("The paper's findings here")
    doc.text("Differences are in points of %, paired by question and seed, mean over checkpoints where none is named. In brackets the "
             "95% small-sample interval, by which verdicts are (Holm's correction over the contrasts of a finding; tests within a margin are "
             "one-sided); beside it the crossed bootstrap's. Visible: the smallest true effect, or margin of equality, that four of five such "
             "studies would see. ✓ shown, ✗ contradicted, ? unclear, – not run." + guess_floor(entries))  # fmt: skip
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


def file_name(tokens: int) -> str:
    """3500000 → 3.5M"""
    return million(tokens).replace(" ", "")


def judged(g: Grid, recipes: list[str]) -> list[str]:
    """Those that were judged; the base 0-shot stands in for a base with examples that was not."""
    return [r for r in (recipes if g.has("base") else ["base_0shot", *recipes]) if g.has(r)]


def show_hero(doc: Document, g: Grid, c: Contrasts) -> bool:
    """Pass@k over pretraining, one line for each recipe of HERO. Returns whether process-right differs from plain
    pass@k by 2 points anywhere in it: then both are drawn, here and in the trajectories."""
    recipes, gap, more = judged(g, HERO), 0.0, ""  # gap: the largest such difference
    if not recipes:
        return False
    if len(c.judged) > 1:
        levels = [[g.level(r, t, m) for m, _ in c.judged] for r in recipes for t in g.tokens if g.models(r, t)]
        gap = max((abs(a.values.mean() - b.values.mean()) for a, b in levels), default=0.0)
        more = f" Process-right pass@{g.k} (every written equation true as well) is within {100 * gap:.1f} points of every point."
    if gap >= 0.02:
        more = " Dotted: process-right, every written equation true as well."
    panels = []
    for m in [Questions(k) for k in dict.fromkeys((1, g.k))]:
        title = f"All {which_questions(g.entries)}: {m.name}, %"
        panels.append((f"pass{m.k}", *draw.figure_lines(g, recipes, m, title, process=gap >= 0.02)))
    grey = " Grey: what answers to other questions score." if any(e.floor(g.k) is not None for e in g.entries) else ""
    doc.panels("Pass@k over pretraining", panels, "Each recipe from every checkpoint, mean over seeds, bars: 95% intervals over questions "
               f"and seeds.{grey}{more}")  # fmt: skip
    return gap >= 0.02


def show_trajectories(doc: Document, entries: list[Entry], c: Contrasts, both: bool) -> None:
    """Pass@k against pass@1 along training, and entropies; both: process-right and plain pass@k."""
    plain = [e for e in entries if not e.variant]
    grids = [Grid(plain, t) for t in sorted({e.temperature for e in plain})]
    paths, entropies = [], []
    for g in sorted(grids, key=lambda g: g.temperature != c.g.temperature):
        for t in longest(g):
            for m, primary in c.judged if both else c.judged[:1]:
                name = f"trajectory_{file_name(t)}_T{g.temperature:g}{'' if primary else '_plain'}"
                paths.append((name, *draw.figure_trajectory(g, t, m)))
            for kind in ("answers", "paths") if g.temperature == c.g.temperature else ():
                entropies.append((f"entropy_{kind}_{file_name(t)}", *draw.figure_entropy(g, t, kind)))
    doc.panels("Trajectories: expansion or sharpening", paths,
               "One line a recipe, from the model it started from (large hollow mark, 0-shot) through its judged steps, mean over seeds with the "
               "95% intervals of both, each seed thin behind it; the last step is named. Up and right is expansion; right and down is sharpening.")  # fmt: skip
    caption = "Entropy of a question's sampled answers, and of its solution paths, mean over questions and seeds."
    doc.panels("", entropies, caption)


def longest(g: Grid) -> list[int]:
    """Checkpoints of the trajectory figure: those with the most judged steps, at most three of them."""
    count = dict.fromkeys(g.tokens, 0)
    for recipe in ("rl", "sft_rl", "parallel"):
        for t in g.tokens:
            count[t] = max([count[t], *map(len, runs(g, recipe, t).values())])
    most = [t for t in g.tokens if count[t] == max(count.values()) > 1]
    return most if len(most) <= 3 else [most[0], most[len(most) // 2], most[-1]]


def show_sharpening(doc: Document, entries: list[Entry]) -> None:
    """RL from each start, at every rate."""
    s = Sharpening(entries)
    if not s.recipes or len(s.rates) < 2:
        return
    limits = draw.sharpening_limits(s)
    panels = [(f"sharpening_{r}", *draw.figure_sharpening(s, r, limits)) for r in s.recipes]
    doc.panels("Order × rate × dose", panels,
               "A panel a start, a line a rate (times the grid's), mean over the seeds that all its lines have; the last step is named, and "
               "all panels have the same range. Rings mark the paper's pair: RL from base, and RL after SFT at a far higher rate.")  # fmt: skip


def show_forests(doc: Document, found: list[Finding], c: Contrasts) -> None:
    """The contrasts of findings 3 to 5: mean and interval."""
    best, panels = c.best.name, []
    for name, numbers, title, measure, each_checkpoint in (
        ("change", ("3a", "3b", "3c"), f"What RL changes: {best}, points", best, True),
        ("averaging", ("5",), f"Averaging against each: {best}, points", best, False),
        ("general", ("4",), "Accuracy on general tasks: change, points", "accuracy", False),
        ("text", ("4 by text",), "Bits per byte of general text: change", "bits", False),
    ):
        claims = [x for f in found if f.number in numbers for x in (*f.primary, *f.beside)]
        claims = [x for x in claims if x.text.startswith(measure) and "questions" not in x.text]
        claims = [x for x in claims if each_checkpoint or x.at is None]
        panels.append((name, *draw.figure_forest(claims, title, "change")))
    doc.panels("Contrasts as pictures", panels,
               "95% small-sample intervals. Green: on the paper's side; orange: against it; grey: unclear. Thick: counts for the verdict. Arrow: goes on.")  # fmt: skip


def show_dynamics(doc: Document, g: Grid) -> None:
    """Training curves, from the middle one of the checkpoints that have some."""
    trained = [t for t in g.tokens if any(e.meta["curve"] for r in ("rl", "sft") for e in g.models(r, t).values())]
    if not trained:
        return
    tokens = trained[len(trained) // 2]
    panels = [(f"dynamics_{key.replace('@', '')}", *draw.figure_dynamics(g, tokens, key)) for key in draw.CURVES]
    doc.panels("Training", panels,
               "Mean over seeds, band from the lowest to the highest. Rewards, lengths and entropies are moving means over 5 points; validation "
               "is 0-shot, 8 answers a question.")  # fmt: skip


def show_sets(doc: Document, g: Grid) -> None:
    """Pass@k of each test set, where there are several, and over FLOPs, where they are known."""
    recipes, panels = judged(g, LINES), []
    sets = list(dict.fromkeys(name for e in g.entries for name in e.sets))
    for name in sets if len(sets) > 1 else ():
        for m in [Questions(k, set=name) for k in dict.fromkeys((1, g.k))]:
            title = f"{words(name)}: pass@{m.k}, %"
            panels.append((f"{name}_pass{m.k}", *draw.figure_lines(g, recipes, m, title)))
    known = [r for r in recipes if any(np.isfinite(draw.spent(g, r, t)) for t in g.tokens if g.models(r, t))]
    if known:
        title = f"All {which_questions(g.entries)}: pass@{g.k}, %"
        panels.append(("pass_at_k_flops", *draw.figure_lines(g, known, Questions(g.k), title, flops=True)))
    caption = "As above; the last one over all FLOPs: pretraining, and training and sampling after it."
    doc.panels("Each test set, and over FLOPs", panels, caption)


def show_plans(doc: Document, entries: list[Entry]) -> None:
    """Figures of the other plans, as far as they have records."""
    bands = dict.fromkeys(band for band, _ in by_variant(entries, "band", "n"))
    panels = [(f"rollouts_{band}_{against}", *draw.figure_rollouts(entries, band, against))
              for band in bands for against in ("step", "flops")]  # fmt: skip
    doc.panels("Plan: rollouts", panels, "Few and many answers a question, mean over seeds.")
    panels = [("seeds", *draw.figure_seeds(entries))]
    doc.panels("Plan: seeds", panels, "RL from the same checkpoints with other seeds.")
    for key, plan, text, caption in (
        ("solved", "demonstrations", "questions trained on, each with one solution for SFT",
         "How many questions are there? RL needs no solutions, so its last point is what it gets from all."),
        ("math", "mixture", "math share of pretraining", "The mixture of pretraining, its last checkpoint."),
        ("size", "scale", "size, at equal pretraining FLOPs", "Size, the last checkpoint."),
    ):  # fmt: skip
        largest = min((e.largest_k for e in entries if set(e.variant) == {key}), default=1)
        panels = [(f"{plan}_{k}", *draw.figure_variants(entries, key, k, f"All {which_questions(entries)}", text))
                  for k in dict.fromkeys((1, largest))]  # fmt: skip
        doc.panels(f"Plan: {plan}", panels, caption)


# ---------------------------------------------------------------------------------------------------------------------
# Tables and the reader
# ---------------------------------------------------------------------------------------------------------------------


def describe(e: Entry) -> str:
    """The model in words: recipe and what is special about it."""
    variant = ", ".join(f"{k} {v:g}" if isinstance(v, int | float) else f"{k} {v}" for k, v in e.variant.items())
    return label(e.recipe) + (f" ({variant})" if variant else "")


def percent(x: dict | float | None) -> str:
    """Of a mean with its interval, or of a number; "–" where there is none."""
    if isinstance(x, dict):
        return f"{100 * x['mean']:.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"
    return "–" if x is None else f"{100 * x:.1f}"


def place(e: Entry) -> int:
    """Of its recipe in tables."""
    return [*RECIPES, e.recipe].index(e.recipe)


def table_entries(doc: Document, entries: list[Entry]) -> None:
    """Every model with all that was measured of it."""
    asked = [s for e in entries for s in e.sets.values()]
    sets = list(dict.fromkeys(name for e in entries for name in e.sets))
    ks = sorted({k for s in asked for k in s["strict"]}, key=lambda k: int(k[5:]))
    kinds = {"strict": "", "process": " process", "floor": " floor"}
    kinds = {kind: word for kind, word in kinds.items() if any(kind in s for s in asked)}
    tasks = list(dict.fromkeys(name for e in entries for name in e.record["tasks"]))
    start = lambda e: (e.tokens, e.meta.get("scale"), e.variant.get("base"))  # noqa: E731
    base = {start(e): e.record["flops"] for e in entries if e.recipe in ("base", "base_0shot")}

    def cells(e: Entry) -> dict[str, str]:
        """column → what stands in it."""
        row = {"tokens": million(e.tokens), "model": describe(e), "seed": ", ".join(map(str, e.seeds)), "step": str(e.step),
               "T": f"{e.temperature:g}"}  # fmt: skip
        for name in sets:
            s = e.sets.get(name, {})
            for kind, word in kinds.items():
                row |= {f"{name}{word} {k} %": percent(s.get(kind, {}).get(k)) for k in ks}
            row[f"{name} lenient@1 %"] = percent(s.get("lenient", {}).get("pass@1"))
            row[f"{name} box %"] = percent(s.get("box"))
        row["bits/byte"] = "–" if np.isnan(e.bits) else f"{e.bits:.4f}"
        for name in tasks:
            task = e.record["tasks"].get(name)
            row[f"{name} %"] = percent(main_accuracy(task) if task else None)
        flops, seconds = e.record["flops"], [e.meta["seconds"].get(what) for what in ("training", "evaluation")]
        after = flops - base.get(start(e), np.nan)
        for column, x in {"FLOPs": flops, "of them after pretraining": after}.items():
            row[column] = "unknown" if np.isnan(x) else f"{x:.2e}"
        row["seconds: training + evaluation"] = " + ".join("–" if s is None else f"{s:.0f}" for s in seconds)
        return row

    order = sorted(entries, key=lambda e: (str(e.variant), e.tokens, place(e), e.meta["seed"], e.temperature, e.step))
    rows = [cells(e) for e in order]
    doc.heading("All evaluations")
    fold = f"{len(rows)} evaluations, intervals over questions"
    doc.table(list(rows[0]), [list(row.values()) for row in rows], fold)


def answers_of(e: Entry, id_: str) -> list[str]:
    """A model's answers to a question, as lines of the page; none where its record has no samples of it."""
    lines = []
    for row in [row for row in e.meta["samples"] if row["id"] == id_]:
        counts = [q for s in e.sets.values() for q in s["questions"] if q["id"] == id_]
        rate = f" {counts[0]['c']}/{counts[0]['n']} right" if counts else ""
        lines.append(f"<div><b>{html.escape(describe(e))}</b>{rate}")
        for s in row["samples"]:
            lines.append(f"<div class={'right' if s['right'] else 'wrong'}>{html.escape(s['text'].strip())}</div>")
        lines.append("</div>")
    return lines


def reader(doc: Document, entries: list[Entry]) -> None:
    """Samples of each model of one seed side by side, in the HTML only."""
    shown = [e for e in entries if e.meta["samples"]]
    if not shown:
        return
    temperature, seed = Grid(shown).temperature, shown[0].meta["seed"]
    shown = [e for e in shown if e.meta["seed"] == seed and e.temperature == temperature]
    ends = {(e.recipe, str(e.variant), e.tokens): e for e in sorted(shown, key=lambda e: e.step)}
    title = "<h2>Reader of samples</h2><p>A question, and of every model a few of its answers. Green: right.</p>"
    doc.page.append(title)
    for tokens in sorted({e.tokens for e in shown}):
        here = sorted((e for e in ends.values() if e.tokens == tokens), key=place)
        doc.page.append(f"<h3>from {million(tokens)} pretraining tokens</h3>")
        for id_, question in {row["id"]: row for e in here for row in e.meta["samples"]}.items():
            asked = f"{question['set']}: {question['question']} (right: {question['answer']})"
            doc.page.append(f"<details><summary>{html.escape(asked)}</summary><div class=reader>")
            doc.page += [line for e in here for line in answers_of(e, id_)]
            doc.page.append("</div></details>")


# ---------------------------------------------------------------------------------------------------------------------
# All of it, in order
# ---------------------------------------------------------------------------------------------------------------------


def write_report(records: Path, out: Path) -> Path:
    """Make report.md, report.html and figures/ in `out` from the records of a folder. UserError if there are none."""
    entries = load(records)
    plain = [e for e in entries if not e.variant]  # of the grid
    found, answers = all_findings(entries), questions(entries)
    doc = Document("RL excursions during pretraining: what came out", out / "figures")
    doc.text(" ".join(summary(entries, found, answers)))
    if mixed := mixed_bases(entries):
        doc.text(mixed)
    show_findings(doc, entries, found, answers)
    if plain:
        c = Contrasts(Grid(plain), entries)
        both = show_hero(doc, c.g, c)
        show_trajectories(doc, entries, c, both)
        show_sharpening(doc, entries)
        show_forests(doc, found, c)
        show_dynamics(doc, c.g)
        show_sets(doc, c.g)
    show_plans(doc, judged_alike(entries))
    reader(doc, plain or entries)
    table_entries(doc, entries)
    scales = ", ".join(sorted({f"{e.meta['scale']}, budget {e.meta['budget']}" for e in entries if "scale" in e.meta}))
    doc.text(f"Made by `python -m excursion report` from {len(entries)} records alone ({scales or 'no scale named'}).")
    doc.write(out)
    print(f"wrote {out / 'report.md'} and {out / 'report.html'} ({len(entries)} records)")
    return out / "report.html"
