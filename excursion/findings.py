"""What became of the paper's findings 1 to 5: contrasts of records, their intervals, verdicts. (6 to 8: plan_findings.py.)

What a claim is, and when it is shown or contradicted: claims.py.

One *start* per comparison, named before the runs: the base with worked examples, as in the paper. The same against the
0-shot base, from which training begins, stands beside it. No test question chooses a start, a step or a checkpoint.
"""

from functools import partial

import numpy as np

from excursion.claims import Claim, Finding, claim, correct, listed
from excursion.contrasts import Contrast, Grid, at_equal_pass1, both_judged, contrast, mean_of, measures, runs
from excursion.recipes import STARTS, label
from excursion.records import Entry, Questions, general_bits, million, task_items
from excursion.stats import ratio

# Margins and rules, named before the runs

# Pass rates within this are alike: the paper calls up to 1.1 points at 20 B tokens and later a match, 10.7 at 10 B not
MATCH = 0.05
# An advantage over a control that is certainly smaller than this is none: the paper's is 5 to 10 points
ADVANTAGE = 0.02
UNCHANGED = 0.01  # accuracy on general tasks: the paper's RL moves it "by well under one point"
BITS = 0.01  # bits per byte of general text, about 3%: half of what SFT to its end costs at micro scale
# Finding 1 is judged at the first checkpoint whose 0-shot validation pass@1 is this (the paper's base: 2%)
EARLY = 0.02  # (EARLY in choose.py is another: the base with worked examples, by which checkpoints are chosen)
TIMES = 4.0  # finding 1: RL's pass@1 over the base's with examples (the paper: 8 at 6 to 10 B tokens, 3.7 at 44 B)
# Finding 3a: expansion is judged at the step where validation pass@1 has grown by this factor (the paper at 44 B: its least)
PAPER_GAIN = 3.65
PAPER_DOSE = 320  # sampled answers per training question: 32 in each of 10 epochs
BELOW = " Below that dose this finding can be shown, not contradicted."  # follows the notes of dose_note

# The findings in the summary of a report
NAMES = {
    "1": "RL works early",
    "2": "RL beats SFT late",
    "3a": "expansion by RL",
    "3b": "sharpening by RL after SFT",
    "3c": "the order decides",
    "4": "SFT costs general capability, by tasks",
    "4 by text": "the same cost by text",
    "5": "averaging is best",
    "6": "mixture over scale",
    "7": "early seeds are brittle",
    "8": "few or many rollouts",
}
OF_GRID = ("1", "2", "3a", "3b", "3c", "4", "4 by text", "5")


class Contrasts:
    """The claims about a grid, and the findings that they make: one() to five().

    minus() makes the claim about recipe a − recipe b; beside(), each() and by_fact() make such claims that do not count
    for the verdict. A contrast with a recipe of your own is one more self.minus(...) or self.beside(...) in a finding's
    list."""

    def __init__(self, g: Grid, entries: list[Entry]):
        self.g, self.entries = g, entries
        self.judged = measures(g.entries, g.k)  # the primary measure, and plain pass@k where that is another
        self.best = self.judged[0][0]

    def both(self, k: int = 0) -> list[tuple[Questions, bool]]:
        """The primary measure and what stands beside it, at k; 0: the largest."""
        return [(m.at(k or self.g.k), counts) for m, counts in self.judged]

    def of(self, a: str, b: str, measure, tokens: int | None = None, step: int | str | None = None) -> Contrast | None:
        """a − b at a checkpoint, or the mean over the checkpoints that have both (mean_of). Each model is that at which
        its run is stopped; step: a's at that step; "end": those at the ends of both runs."""
        if tokens is None:
            return mean_of({t: self.of(a, b, measure, t, step) for t in self.g.tokens})
        step_b = "end" if step == "end" else None
        return contrast([(1, self.g.models(a, tokens, step)), (-1, self.g.models(b, tokens, step_b))], measure)

    def minus(
        self, a: str, b: str, measure, wanted: str, margin: float = 0.0, what: str = "", at=None, step=None, **more
    ) -> Claim:
        """The claim that a − b is "above", "below" or "alike". what: names the measure; at: a checkpoint; more: of Claim."""
        text = f"{what or measure.name}: {label(a)} − {label(b)}" + ("" if at is None else f", {million(at)}")
        needs = f"{label(a)} and {label(b)} at one checkpoint with one seed"
        return claim(self.of(a, b, measure, at, step), text, wanted, margin, at=at, needs=needs, **more)

    def beside(self, *args, **more) -> Claim:
        """The same, beside the verdict."""
        return self.minus(*args, counts=False, **more)

    def each(self, a: str, b: str, measure, wanted: str) -> list[Claim]:
        """The same at each checkpoint, beside the verdict."""
        return [self.beside(a, b, measure, wanted, at=t) for t in self.g.tokens if len(self.g.tokens) > 1]

    def by_fact(self, a: str, b: str, wanted: str) -> list[Claim]:
        """The same for the questions that hinge on a fact, and for the others, beside the verdict."""
        fact, plain = (Questions(self.g.k, self.best.key, only=only) for only in ("fact", "plain"))
        if all(fact(e) is None for e in self.g.entries):
            return []
        return [c for c in (self.beside(a, b, m, wanted) for m in (fact, plain)) if c.x is not None]

    def dose_note(self, recipe: str, tokens: int | None = None, so: str = "") -> list[str]:
        """Says so where a recipe saw fewer sampled answers per training question than the paper's, at a checkpoint or
        at any. so: what follows from it."""
        places = self.g.tokens if tokens is None else [tokens]
        doses = [e.dose for t in places for e in self.g.models(recipe, t, "end").values()]
        dose = min((dose for dose in doses if not np.isnan(dose)), default=PAPER_DOSE)
        if dose >= 0.95 * PAPER_DOSE:
            return []
        return [
            f"Dose: {label(recipe)} saw {dose:.0f} sampled answers per training question, the paper {PAPER_DOSE}.{so}"
        ]

    def early(self) -> int:
        """The checkpoint of finding 1, chosen on validation. A study marks its primary checkpoints, the early one
        first, by pretraining runs of their own for each seed (--pretraining primary). Elsewhere: the first whose base
        answers EARLY of the validation questions, 0-shot, before RL begins."""
        runs = {t: len({pretrained for pretrained, _ in self.g.models("rl", t)}) for t in self.g.tokens}
        own = [t for t in self.g.tokens if runs[t] > 1]
        # of a study that is not finished, all that there is may be primary
        if own and (len(own) < len(self.g.tokens) or any(e.meta.get("budget") == "study" for e in self.g.entries)):
            return own[0]
        for t in self.g.tokens:
            curves = [e.validation for e in self.g.models("rl", t).values()]
            first = [curve[0][1] for curve in curves if curve and curve[0][0] == 0]
            if first and np.mean(first) >= EARLY:
                return t
        return self.g.tokens[0]

    def times(self, base: str, tokens: int, measure: Questions, counts: bool) -> Claim:
        """The claim that RL has TIMES the pass@1 of a base; shown is the factor itself."""
        rl, start = self.g.models("rl", tokens), self.g.models(base, tokens)
        c = contrast([(1, rl), (-TIMES, start)], measure)
        text = f"{measure.name}: {label('rl')} / {label(base)}, {million(tokens)}"
        made = claim(c, text, "above", 0.0, counts=counts, needs=f"{label('rl')} and {label(base)} at one checkpoint")
        if c is None:
            return made
        a, b = (contrast([(1, {key: m[key] for key in c.keys})], measure) for m in (rl, start))
        factor, low, high = ratio(a.values, b.values, c.clusters)
        made.shown_as = (
            f"×{factor:.2f} [{low:.2f}, {high:.2f}]".replace("inf", "∞") if np.isfinite(factor) else "base at 0"
        )
        made.wish = f"at least ×{TIMES:g}"
        made.boot, made.visible_as = None, f"×{TIMES + made.x.visible / max(b.values.mean(), 1e-9):.2f}"
        made.settles = not self.dose_note("rl", tokens)
        return made

    def one(self) -> Finding:
        at = self.early()
        pass1 = [m.at(1) for m, _ in self.both()]
        claims = [self.times("base", at, m, True) for m in pass1]
        claims += [self.times("base_0shot", at, m, False) for m in pass1]
        claims += [self.times("base", t, self.best.at(1), False) for t in self.g.tokens if t != at]
        notes = self.dose_note("rl", at, so=BELOW if claims[0].x is not None else "")
        title = f"RL works early: pass@1 at least ×{TIMES:g} at {million(at)} tokens"
        needs = "plan grid: base with examples and RL from base at an early checkpoint"
        return Finding("1", title, claims, notes=notes, needs=needs)

    def two(self) -> Finding:
        at, ks, pass1 = self.g.tokens[-1], sorted({min(8, self.g.k), self.g.k}), self.best.at(1)
        claims, notes = [], self.dose_note("rl", at)
        for m, counts in self.both(1):
            claims.append(self.minus("rl", "sft", m, "above", at=at, counts=counts))
            claims.append(self.minus("rl", "sft_rl", m, "alike", MATCH, at=at, counts=counts))
        claims += [self.minus("gold", "rl", m, "above", at=at, counts=counts) for k in ks for m, counts in self.both(k)]
        claims += [
            self.beside("rl", "sft_converged", pass1, "above", at=at),
            *self.each("rl", "sft", pass1, "above"),
            *self.each("gold", "rl", self.best, "above"),
        ]
        title = f"Late (at {million(at)} tokens) RL from base beats SFT and matches RL after SFT by pass@1"
        title += f"; Gold beats it by {' and '.join(f'pass@{k}' for k in ks)}"
        needs = "plan grid: RL from base, SFT, RL after SFT and SFT-Gold at the last checkpoint"
        # Gold has to pass its validation maximum (docs/PROTOCOL.md)
        gold = {t: self.g.models("gold", t).values() for t in self.g.tokens}
        short = [
            million(t)
            for t in self.g.tokens
            if any(e.meta.get("points") and e.meta.get("best_step") == max(e.meta["points"]) for e in gold[t])
        ]
        if short:
            notes.append(
                f"{label('gold')} was best on validation at its last named step at {listed(short)}: longer training may gain more."
            )
        return Finding("2", title, claims, notes=notes, needs=needs)

    def expansion_step(self, tokens: int) -> int | None:
        """The first judged step of RL from base at which validation pass@1 is PAPER_GAIN times that at step 0 (which is
        asked without examples: no other is known of the base); else the last."""
        steps = [s for s in self.g.steps("rl", tokens) if s > 0]
        curves = [np.array(e.validation) for e in self.g.models("rl", tokens).values()]
        curves = [curve for curve in curves if len(curve)]
        for step in steps:
            now = [np.interp(step, *c.T) for c in curves]
            if curves and np.mean(now) >= PAPER_GAIN * np.mean([c[0, 1] for c in curves]) > 0:
                return step
        return steps[-1] if steps else None

    def three_a(self) -> Finding:
        steps = {t: self.expansion_step(t) for t in self.g.tokens}
        places = [t for t in self.g.tokens if steps[t] is not None]

        def rise(base: str, m: Questions, counts: bool, at: int | None = None) -> Claim:
            c = (
                self.of("rl", base, m, at, steps[at])
                if at
                else mean_of({t: self.of("rl", base, m, t, steps[t]) for t in places})
            )
            where = f", {million(at)}, step {steps[at]}" if at else ""
            text = f"{m.name}: {label('rl')} − {label(base)}{where}"
            needs = f"{label('rl')} and {label(base)} at one checkpoint"
            return claim(c, text, "above", counts=counts, at=at, needs=needs)

        claims = [
            *(rise("base", m, counts) for m, counts in self.both()),
            *(rise("base", m, counts) for m, counts in self.both(1)),
            *(rise("base_0shot", m, False) for m, _ in self.both()),
            *(rise("base", self.best, False, t) for t in places if len(self.g.tokens) > 1),
            *self.by_fact("rl", "base", "above"),
        ]
        title = f"Expansion: RL from base raises pass@1 and pass@{self.g.k}"
        needs = "plan grid: base with examples and RL from base"
        rule = f"RL is judged at the named step where validation pass@1 has grown ×{PAPER_GAIN} since training began, without examples"
        notes = (
            [f"{rule}; else at the last one: {listed([f'step {steps[t]} at {million(t)}' for t in places])}."]
            if places
            else []
        )
        return Finding("3a", title, claims, notes=self.dose_note("rl") + notes, needs=needs)

    def paper_setting(self, measure) -> Contrast | None:
        """RL after SFT at the paper's relative rate, against the very model that it started from."""
        after = [e for e in self.entries if e.meta.get("paper") and e.recipe.endswith("_rl")]
        top = max((e.variant.get("rate", 1.0) for e in after), default=1.0)  # the highest that was ever run here
        marked = Grid([e for e in after if e.variant.get("rate", 1.0) == top], self.g.temperature)
        found = {}
        for recipe, tokens in marked.paths:
            start = self.g.models(STARTS.get(recipe, ""), tokens)
            if start:
                found[tokens] = contrast([(1, marked.models(recipe, tokens, "end")), (-1, start)], measure)
        return mean_of(found)

    def three_b(self) -> Finding:
        notes = self.dose_note("sft_rl", so=BELOW)
        pairs, claims = [("sft_rl", "sft"), ("sft_converged_rl", "sft_converged")], []
        for m, counts in self.both():
            what, settles = f"{m.name}, our rate, end of RL", not notes
            claims.append(self.minus(*pairs[0], m, "below", what=what, step="end", counts=counts, settles=settles))
            what = f"{m.name}, the paper's rate, end of RL: RL after SFT − its start"
            needs = "the cell of plan sharpening that is marked as the paper's"
            claims.append(claim(self.paper_setting(m), what, "below", counts=counts, needs=needs))
        claims += [
            self.beside(*pairs[0], self.best, "below", what=f"{self.best.name}, stopped on validation"),
            self.beside(*pairs[0], self.best.at(1), "above"),
            *(self.beside(*pairs[1], m, "below") for m, _ in self.both()),
            self.beside("gold_rl", "gold", self.best, "below"),
            *(c for pair in pairs for c in self.each(*pair, self.best, "below")),
            *self.by_fact(*pairs[0], "below"),
        ]
        title = f"Sharpening: RL after SFT lowers pass@{self.g.k}, at our rate and dose or at the paper's relative rate"
        needs = "plan grid: SFT and RL after SFT; plan sharpening"
        return Finding("3b", title, claims, any_of=True, notes=notes, needs=needs)

    def three_c(self) -> Finding:
        g, claims, notes = self.g, [], []
        needs = "trajectories of RL from base and RL after SFT (two or more judged steps each) whose ranges of pass@1 overlap"
        for m, counts in self.both():
            found = {t: at_equal_pass1(runs(g, "rl", t), runs(g, "sft_rl", t), m) for t in g.tokens}
            what, small = f"{m.name}: {label('rl')} − {label('sft_rl')} at equal {m.at(1).name}", ADVANTAGE
            apart = [
                million(t)
                for t, c in found.items()
                if c is None and both_judged(runs(g, "rl", t), runs(g, "sft_rl", t))
            ]
            mean = mean_of(found)
            more = dict(counts=counts, small=small, needs=needs, apart=mean is None and bool(apart))
            claims.append(claim(mean, what, "above", **more))
            if apart and counts:
                notes.append(
                    f"Left out: {listed(apart)}, where the two runs of some seed have no 2 points of {m.at(1).name} in common."
                )
            for t, c in found.items() if counts and len(g.tokens) > 1 else ():
                claims.append(claim(c, f"{what}, {million(t)}", "above", at=t, counts=False, small=small))
        title = f"Order: at equal pass@1, RL from base has the higher pass@{g.k} than RL after SFT"
        needs = "plan grid with judged steps (--points): RL from base and RL after SFT"
        return Finding("3c", title, claims, notes=notes, needs=needs)

    def four(self) -> list[Finding]:
        base = "base" if self.g.has("base") else "base_0shot"

        def cost(recipe: str, wanted: str, counts: bool = False, than: str = base, *, margin: float, **more) -> Claim:
            more |= dict(wanted=wanted, margin=margin if wanted == "alike" else 0.0, counts=counts)
            return self.minus(recipe, than, **more)

        bits = "bits per byte of general text (more is worse)"
        tasks = partial(cost, measure=task_items, margin=UNCHANGED, what="accuracy on general tasks")
        text = partial(cost, measure=general_bits, margin=BITS, what=bits, unit="bits")
        by_tasks = [tasks("sft_converged", "below", True), tasks("rl", "alike", True), tasks("sft", "below"), tasks("gold", "below"),
                    tasks("sft_rl", "below"), tasks("parallel", "alike")]  # fmt: skip
        by_text = [text("sft_converged", "above", True), text("rl", "alike", True), text("sft_converged", "above", than="rl"),
                   text("sft", "above"), text("parallel", "alike")]  # fmt: skip
        places = self.g.tokens if len(self.g.tokens) > 1 else []
        by_tasks += [
            tasks(r, wanted, at=t) for r, wanted in (("sft_converged", "below"), ("rl", "alike")) for t in places
        ]
        by_text += [
            text(r, wanted, at=t) for r, wanted in (("sft_converged", "above"), ("rl", "alike")) for t in places
        ]
        title = "SFT costs general capability and RL does not, by accuracy on general tasks"
        needs = "plan grid: base, RL from base and SFT to the end, with general tasks"
        found = [
            Finding("4", title, by_tasks, needs=needs),
            Finding("4 by text", "The same by bits per byte of general text", by_text, needs=f"{needs} and text"),
        ]
        correct([c for f in found for c in f.primary])  # they are one finding
        return found

    def five(self) -> Finding:
        g, claims, best = self.g, [], self.best
        notes = self.dose_note("parallel", so=BELOW)
        rivals, controls = ["sft", "rl", "sft_rl"], ["sft_dose", "rl_dose", "sft_dose_rl"]
        others = [r for r in ("sft_converged", "soup", "combined", "interleaved") if g.has(r)]
        for m, counts in self.both():
            more = dict(settles=not notes)
            claims += [self.minus("parallel", r, m, "above", counts=counts, **more) for r in rivals]
            # alike with SFT alone as long and as hot as inside averaging: then it is the dose, not the averaging
            more |= dict(what=f"{m.name}, control", small=ADVANTAGE)
            claims += [
                self.minus("parallel", r, m, "above", counts=counts and r == "sft_dose", **more) for r in controls
            ]
        claims += [
            *(self.beside("parallel", r, best, "above") for r in others),
            *(self.beside("parallel", r, best, "above", what=f"{best.name}, ends of both", step="end")
              for r in ("rl", "sft_rl", "sft_dose")),  # at the paper's dose exactly
            *(self.beside("parallel_paper", r, best, "above") for r in (*rivals, "parallel")),
            self.beside("parallel", "rl", best.at(1), "below", what=f"{best.at(1).name} (given up)"),
            *(c for r in (*rivals, *controls) for c in self.each("parallel", r, best, "above")),
        ]  # fmt: skip
        title = f"Averaging has the best pass@{g.k} of the recipes that see at most one solution a question"
        title += ", more than SFT alone at its dose"
        needs = "plan grid: averaging, SFT, RL from base, RL after SFT and the dose controls"
        return Finding("5", title, claims, notes=notes, needs=needs)

    def all(self) -> list[Finding]:
        return [self.one(), self.two(), self.three_a(), self.three_b(), self.three_c(), *self.four(), self.five()]


def grid_findings(entries: list[Entry]) -> list[Finding]:
    """Findings 1 to 5 of the paper, from the entries of the grid; without any, "not run"."""
    g = Grid([e for e in entries if not e.variant])
    if not g.tokens:
        return [Finding(number, NAMES[number], needs="plan grid") for number in OF_GRID]
    return Contrasts(g, entries).all()
