"""What became of the paper's findings 1 to 5: contrasts of records, their intervals, verdicts. (6 to 8: plan_findings.py.)

A finding is a list of *primary* contrasts, each with a stated direction, and others that stand beside them. Intervals are 95%,
small-sample (stats.py), paired by question and seed. Holm's correction over the primary contrasts of a finding keeps the
chance of any wrong verdict in it at 5%. A contrast is

    shown          significantly on the paper's side
    contradicted   significantly on the other side; or, where the paper claims an advantage over a control, significantly
                   less than a named margin: alike is a contradiction there
    unclear        neither: its interval says how large the effect may be, and "visible" how large it had to be to be seen
                   in four of five such studies
    not run        records are missing; the line says which

"Alike" and "unchanged" are shown by two one-sided tests within a named margin, never by a difference that is not significant.

One *start* per comparison, named before the runs: the base with worked examples, as in the paper. The same against the
0-shot base, from which training begins, stands beside it. No test question chooses a start, a step or a checkpoint.
"""

import numpy as np

from excursion.claims import Claim, Finding, claim
from excursion.contrasts import Contrast, Grid, at_equal_pass1, contrast, mean_of, runs
from excursion.recipes import STARTS, label
from excursion.records import Entry, Questions, general_bits, million, task_items
from excursion.stats import ratio

# Margins and rules, named before the runs
MATCH = 0.05  # pass rates within this are alike: the paper calls up to 1.1 points at 20 B tokens and later a match, 10.7 at 10 B not
ADVANTAGE = (
    0.02  # an advantage over a control that is certainly smaller than this is none: the paper's is 5 to 10 points
)
UNCHANGED = 0.01  # accuracy on general tasks: the paper's RL moves it "by well under one point"
BITS = 0.01  # bits per byte of general text, about 3%: half of what SFT to its end costs at micro scale
EARLY = (
    0.02  # finding 1 is judged at the first checkpoint whose 0-shot validation pass@1 is this (the paper's base: 2%)
)
TIMES = 4.0  # finding 1: RL's pass@1 over the base's with examples (the paper: 8 at 6 to 10 B tokens, 3.7 at 44 B)
PAPER_GAIN = (
    3.65  # finding 3a: expansion is judged at the step where validation pass@1 has grown by this (44 B: the least)
)
PAPER_DOSE = 320  # sampled answers per training question: 32 in each of 10 epochs
BELOW = " Below that dose this finding can be shown, not contradicted."


class Contrasts:
    """Claims about a grid."""

    def __init__(self, g: Grid, entries: list[Entry]):
        self.g, self.entries = g, entries
        self.right = Questions(g.k)
        self.process = Questions(g.k, "c_process")
        self.judged = bool(g.entries) and all(
            self.process(e) is not None for e in g.entries
        )  # process-right everywhere
        self.best = self.process if self.judged else self.right  # the primary measure: free of luck where it can be

    def both(self) -> list[tuple[Questions, bool]]:
        """(measure, does it count): process-right where it can be judged, with plain pass@k beside."""
        return [(self.process, True), (self.right, False)] if self.judged else [(self.right, True)]

    def of(self, a: str, b: str, measure, tokens: int | None = None, step=None, step_b=None) -> Contrast | None:
        """a − b at a checkpoint, or the mean over all checkpoints that have both; each where its run is stopped, or at a step
        or the "end"."""
        if tokens is None:
            return mean_of([self.of(a, b, measure, t, step, step_b) for t in self.g.tokens])
        return contrast([(1, self.g.models(a, tokens, step)), (-1, self.g.models(b, tokens, step_b))], measure)

    def minus(
        self, a: str, b: str, measure, what: str, wanted: str, margin=0.0, at=None, step=None, step_b=None, **more
    ) -> Claim:
        place = "" if at is None else f", {million(at)}"
        needs = f"{label(a)} and {label(b)} at one checkpoint with one seed"
        c = self.of(a, b, measure, at, step, step_b)
        return claim(c, f"{what}: {label(a)} − {label(b)}{place}", wanted, margin, at=at, needs=needs, **more)

    def each(self, a: str, b: str, measure, what: str, wanted: str, margin: float = 0.0, **more) -> list[Claim]:
        """The same at each checkpoint, beside the verdict."""
        if len(self.g.tokens) < 2:
            return []
        return [self.minus(a, b, measure, what, wanted, margin, t, counts=False, **more) for t in self.g.tokens]

    def dose(self, recipe: str, tokens: int | None = None) -> float:
        """Smallest number of sampled answers per training question at the end of a run; nan if unknown."""
        places = self.g.tokens if tokens is None else [tokens]
        found = [e.dose for t in places for e in self.g.models(recipe, t, "end").values()]
        return float(np.nanmin(found)) if found and not np.isnan(found).all() else float("nan")

    def dose_note(self, recipe: str, tokens: int | None = None) -> list[str]:
        dose = self.dose(recipe, tokens)
        if np.isnan(dose) or dose >= 0.95 * PAPER_DOSE:
            return []
        return [f"Dose: {label(recipe)} saw {dose:.0f} sampled answers per training question, the paper {PAPER_DOSE}."]

    # -----------------------------------------------------------------------------------------------------------------

    def early(self) -> int:
        """The checkpoint of finding 1, chosen on validation. A study marks its primary checkpoints, the early one first, by
        pretraining runs of their own for each seed (--pretraining primary). Elsewhere: the first whose base answers EARLY of
        the validation questions, 0-shot, before RL begins."""
        runs = {t: len({e.keys[0][0] for e in self.g.models("rl", t).values()}) for t in self.g.tokens}
        if len(set(runs.values())) > 1:
            return next(t for t in self.g.tokens if runs[t] == max(runs.values()))
        for t in self.g.tokens:
            curves = [e.curve("val_process@1") or e.curve("val_pass@1") for e in self.g.models("rl", t).values()]
            first = [curve[0][1] for curve in curves if curve and curve[0][0] == 0]
            if first and np.mean(first) >= EARLY:
                return t
        return self.g.tokens[0]

    def times(self, base: str, tokens: int, measure: Questions, counts: bool) -> Claim:
        """RL against TIMES × a base, with the factor itself."""
        rl, start = self.g.models("rl", tokens), self.g.models(base, tokens)
        c = contrast([(1, rl), (-TIMES, start)], measure)
        text = f"{measure.name}: {label('rl')} / {label(base)}, {million(tokens)}"
        made = claim(c, text, "above", 0.0, counts=counts, needs=f"{label('rl')} and {label(base)} at one checkpoint")
        if c is None:
            return made
        a, b = (contrast([(1, {key: m[key] for key in c.keys})], measure) for m in (rl, start))
        factor, low, high = ratio(a.values, b.values, c.clusters)
        made.shown_as = f"×{factor:.2f} [{low:.2f}, {high:.2f}]" if np.isfinite(factor) else "base at 0"
        made.wish = f"at least ×{TIMES:g}"
        made.boot, made.visible_as = None, f"×{made.x.visible / max(b.values.mean(), 1e-9):.2f}"
        made.settles = not self.dose_note("rl", tokens)
        return made

    def one(self) -> Finding:
        at = self.early()
        pass1 = [(m.at(1), True) for m, _ in self.both()]
        claims = [self.times("base", at, m, True) for m, _ in pass1]
        claims += [self.times("base_0shot", at, m, False) for m, _ in pass1]
        claims += [self.times("base", t, self.best.at(1), False) for t in self.g.tokens if t != at]
        notes = self.dose_note("rl", at)
        if notes and claims[0].x is not None:
            notes[0] += BELOW
        return Finding("1", f"RL works early: pass@1 at least ×{TIMES:g} at {million(at)} tokens", claims, notes=notes,
                       needs="plan grid: base with examples and RL from base at an early checkpoint")  # fmt: skip

    def two(self) -> Finding:
        g, at, k8 = self.g, self.g.tokens[-1], min(8, self.g.k)
        claims = [
            self.minus("rl", "sft", Questions(1), "pass@1", "above", at=at),
            self.minus("rl", "sft_rl", Questions(1), "pass@1", "alike", MATCH, at=at),
            *(self.minus("gold", "rl", self.best.at(k), self.best.at(k).name, "above", at=at) for k in (k8, g.k)),
            self.minus("rl", "sft_converged", Questions(1), "pass@1", "above", at=at, counts=False),
        ]
        claims += self.each("rl", "sft", Questions(1), "pass@1", "above")
        claims += self.each("gold", "rl", self.best, self.best.name, "above")
        return Finding("2", f"Late (at {million(at)} tokens) RL from base beats SFT and matches RL after SFT by pass@1; Gold beats "
                            f"it by pass@{k8} and pass@{g.k}", claims, notes=self.dose_note("rl", at),
                       needs="plan grid: RL from base, SFT, RL after SFT and SFT-Gold at the last checkpoint")  # fmt: skip

    def expansion_step(self, tokens: int) -> int | None:
        """The first judged step of RL from base at which validation pass@1 has grown by PAPER_GAIN; else the last."""
        steps = [s for s in self.g.steps("rl", tokens) if s > 0]
        curves = [
            np.array(e.curve("val_pass@1")) for e in self.g.models("rl", tokens).values() if e.curve("val_pass@1")
        ]
        for step in steps:
            now = [np.interp(step, *c.T) for c in curves]
            if curves and np.mean(now) >= PAPER_GAIN * np.mean([c[0, 1] for c in curves]) > 0:
                return step
        return steps[-1] if steps else None

    def three_a(self) -> Finding:
        g, claims = self.g, []
        steps = {t: self.expansion_step(t) for t in g.tokens}

        def rise(base: str, m: Questions, counts: bool, at: int | None = None) -> Claim:
            places = [at] if at else [t for t in g.tokens if steps[t] is not None]
            c = mean_of([self.of("rl", base, m, t, steps[t]) for t in places])
            where = f", {million(at)}, step {steps[at]}" if at else ""
            return claim(c, f"{m.name}: {label('rl')} − {label(base)}{where}", "above", counts=counts, at=at,
                         needs=f"{label('rl')} and {label(base)} at one checkpoint")  # fmt: skip

        for m, counts in self.both():
            claims.append(rise("base", m, counts))
        claims.append(rise("base", self.best.at(1), True))
        claims += [rise("base_0shot", m, False) for m, _ in self.both()]
        if len(g.tokens) > 1:
            claims += [rise("base", self.best, False, t) for t in g.tokens if steps[t] is not None]
        claims += self.by_fact("rl", "base", "above")
        return Finding("3a", f"Expansion: RL from base raises pass@1 and pass@{g.k}", claims, notes=self.dose_note("rl"),
                       needs="plan grid: base with examples and RL from base")  # fmt: skip

    def by_fact(self, a: str, b: str, wanted: str) -> list[Claim]:
        found = [Questions(self.g.k, self.best.key, only=only) for only in ("fact", "plain")]
        if all(found[0](e) is None for e in self.g.entries):
            return []
        return [c for c in (self.minus(a, b, m, m.name, wanted, counts=False) for m in found) if c.x is not None]

    def paper_setting(self, measure) -> Contrast | None:
        """RL after SFT at the paper's relative rate, against the very model that it started from."""
        marked = Grid([e for e in self.entries if e.meta.get("paper")], self.g.temperature)
        found = []
        for (recipe, tokens), models in marked.end.items():
            start = self.g.models(STARTS.get(recipe, ""), tokens)
            if recipe.endswith("_rl") and start:
                found.append(contrast([(1, models), (-1, start)], measure))
        return mean_of(found)

    def three_b(self) -> Finding:
        g, claims = self.g, []
        notes = [note + BELOW for note in self.dose_note("sft_rl")]
        for m, counts in self.both():
            claims.append(self.minus("sft_rl", "sft", m, f"{m.name}, our rate, end of RL", "below", step="end", counts=counts,
                                     settles=not notes))  # fmt: skip
            claims.append(claim(self.paper_setting(m), f"{m.name}, the paper's rate, end of RL: RL after SFT − its start", "below",
                                counts=counts, needs="the cell of plan sharpening that is marked as the paper's"))  # fmt: skip
        claims.append(
            self.minus("sft_rl", "sft", self.best, f"{self.best.name}, stopped on validation", "below", counts=False)
        )
        claims.append(self.minus("sft_rl", "sft", self.best.at(1), self.best.at(1).name, "above", counts=False))
        claims += [
            self.minus("sft_converged_rl", "sft_converged", m, m.name, "below", counts=False) for m, _ in self.both()
        ]
        claims.append(self.minus("gold_rl", "gold", self.best, self.best.name, "below", counts=False))
        for a, b in (("sft_rl", "sft"), ("sft_converged_rl", "sft_converged")):
            claims += self.each(a, b, self.best, self.best.name, "below")
        claims += self.by_fact("sft_rl", "sft", "below")
        return Finding("3b", f"Sharpening: RL after SFT lowers pass@{g.k}, at our rate and dose or at the paper's relative rate",
                       claims, any_of=True, notes=notes, needs="plan grid: SFT and RL after SFT; plan sharpening")  # fmt: skip

    def three_c(self) -> Finding:
        g, claims = self.g, []
        for m, counts in self.both():
            found = {t: at_equal_pass1(runs(g, "rl", t), runs(g, "sft_rl", t), m) for t in g.tokens}
            what = f"{m.name}: {label('rl')} − {label('sft_rl')} at equal {m.at(1).name}"
            claims.append(claim(mean_of(list(found.values())), what, "above", counts=counts, small=ADVANTAGE,
                                needs="trajectories of RL from base and RL after SFT (two or more judged steps each) whose ranges "
                                      "of pass@1 overlap"))  # fmt: skip
            if counts and len(g.tokens) > 1:
                claims += [
                    claim(c, f"{what}, {million(t)}", "above", at=t, counts=False, small=ADVANTAGE)
                    for t, c in found.items()
                ]
        return Finding("3c", f"Order: at equal pass@1, RL from base has the higher pass@{g.k} than RL after SFT", claims,
                       needs="plan grid with judged steps (--points): RL from base and RL after SFT")  # fmt: skip

    def four(self) -> list[Finding]:
        base = "base" if self.g.has("base") else "base_0shot"
        what, found = "accuracy on general tasks", []
        claims = [
            self.minus("sft_converged", base, task_items, what, "below"),
            self.minus("rl", base, task_items, what, "alike", UNCHANGED),
            self.minus("sft", base, task_items, what, "below", counts=False),
            self.minus("gold", base, task_items, what, "below", counts=False),
            self.minus("sft_rl", base, task_items, what, "below", counts=False),
            self.minus("parallel", base, task_items, what, "alike", UNCHANGED, counts=False),
        ]
        needs = "plan grid: base, RL from base and SFT to the end, with general tasks"
        found.append(
            Finding(
                "4", "SFT costs general capability and RL does not, by accuracy on general tasks", claims, needs=needs
            )
        )
        what, bits = "bits per byte of general text (more is worse)", general_bits
        claims = [
            self.minus("sft_converged", base, bits, what, "above", unit="bits"),
            self.minus("rl", base, bits, what, "alike", BITS, unit="bits"),
            self.minus("sft_converged", "rl", bits, what, "above", unit="bits", counts=False),
            self.minus("sft", base, bits, what, "above", unit="bits", counts=False),
            self.minus("parallel", base, bits, what, "alike", BITS, unit="bits", counts=False),
        ]
        found.append(
            Finding("4 by text", "The same by bits per byte of general text", claims, needs=needs + " and text")
        )
        return found

    def five(self) -> Finding:
        g, claims, notes = self.g, [], [note + BELOW for note in self.dose_note("parallel")]
        settles = not notes
        rivals, controls = ["sft", "rl", "sft_rl"], ["sft_dose", "rl_dose", "sft_dose_rl"]
        for m, counts in self.both():
            claims += [self.minus("parallel", r, m, m.name, "above", counts=counts, settles=settles) for r in rivals]
            # alike with SFT alone as long and as hot as inside averaging: then it is the dose, not the averaging
            for control in controls:
                claims.append(self.minus("parallel", control, m, f"{m.name}, control", "above", small=ADVANTAGE,
                                         counts=counts and control == "sft_dose", settles=settles))  # fmt: skip
        claims += [self.minus("parallel", r, self.best, self.best.name, "above", counts=False)
                   for r in ("sft_converged", "soup", "combined", "interleaved") if g.has(r)]  # fmt: skip
        for r in ("rl", "sft_rl", "sft_dose"):  # at the paper's dose exactly
            claims.append(self.minus("parallel", r, self.best, f"{self.best.name}, ends of both", "above", counts=False, step="end",
                                     step_b="end"))  # fmt: skip
        claims += [
            self.minus("parallel_paper", r, self.best, self.best.name, "above", counts=False)
            for r in (*rivals, "parallel")
        ]
        claims.append(
            self.minus("parallel", "rl", self.best.at(1), f"{self.best.at(1).name} (given up)", "below", counts=False)
        )
        for rival in (*rivals, *controls):
            claims += self.each("parallel", rival, self.best, self.best.name, "above")
        return Finding("5", f"Averaging has the best pass@{g.k} of the recipes that see at most one solution a question, more than "
                            "SFT alone at its dose", claims, notes=notes,
                       needs="plan grid: averaging, SFT, RL from base, RL after SFT and the dose controls")  # fmt: skip

    def all(self) -> list[Finding]:
        return [self.one(), self.two(), self.three_a(), self.three_b(), self.three_c(), *self.four(), self.five()]


def grid_findings(entries: list[Entry]) -> list[Finding]:
    """Findings 1 to 5 of the paper, from the entries of the grid; without any, "not run"."""
    g = Grid([e for e in entries if not e.variant])
    if not g.tokens:
        titles = {
            "1": "RL works early",
            "2": "Late, RL from base beats SFT and matches RL after SFT; Gold beats RL",
            "3a": "Expansion: RL from base raises pass@1 and pass@32",
            "3b": "Sharpening: RL after SFT lowers pass@32",
            "3c": "Order: at equal pass@1, RL from base has the higher pass@32 than RL after SFT",
            "4": "SFT costs general capability and RL does not, by accuracy on general tasks",
            "4 by text": "The same by bits per byte of general text",
            "5": "Averaging has the best pass@32",
        }
        return [Finding(n, text, needs="plan grid") for n, text in titles.items()]
    return Contrasts(g, entries).all()
