"""What lowers pass@k: that RL comes after SFT (the order), its rate, or its dose? From --plan sharpening.

RL from several starts (the base, SFT at its best and at its end, Gold) at several rates, judged at the same steps of
training. Three contrasts are primary, named before the runs (docs/PROTOCOL.md); Holm's correction is over these three:

    order   at equal pass@1: RL after SFT - RL from base, both at the grid's rate
    rate    at equal pass@1: RL after SFT at the highest rate - at the grid's rate
    dose    last step - the step that is best on validation, mean of RL from base and RL after SFT, at the grid's rate

Each is in pass@k, process-right where that can be judged; below 0 is sharpening. Beside them stand every start and
rate; the gains over each start; the paper's own comparison, which changes order and rate together; and RL on those
questions alone that the start seldom answers (is it the dose per solved question?).
"""

import numpy as np

from excursion.claims import Claim, Finding, claim, listed
from excursion.contrasts import (
    Contrast,
    Grid,
    Terms,
    at_equal_pass1,
    best_measure,
    both_judged,
    contrast,
    main_temperature,
    runs,
)
from excursion.recipes import STARTS, label
from excursion.records import Entry, Key

RL_RECIPES = ("rl", "sft_rl", "sft_converged_rl", "gold_rl")  # RL from each start, in the order of panels and claims
Run = tuple[str, float]  # recipe, and its rate as a factor of the grid's, whose runs are those of factor 1
DIRECT, AFTER = ("rl", 1.0), ("sft_rl", 1.0)


class Sharpening:
    """The claims about RL from several starts at several rates; finding() has all of them.

    grids: rate → its models; 0 stands for RL on seldom solved questions alone. rates: those that have records. A
    contrast of what was not run is None.
    """

    def __init__(self, entries: list[Entry]):
        rl = [e for e in entries if e.recipe in RL_RECIPES]
        varied = [e for e in rl if set(e.variant) == {"rate"}]
        seldom = [e for e in rl if set(e.variant) == {"band"}]
        self.tokens = max((e.tokens for e in varied), default=0)
        self.rates = sorted({float(e.variant["rate"]) for e in varied} | ({1.0} if varied else set()))
        self.top = max(self.rates, default=3.0)
        plain = [e for e in entries if not e.variant]
        starts = [e for e in plain if e.recipe in {"base", *STARTS.values()}]
        temperature = main_temperature(varied)
        self.grids: dict[float, Grid] = {}
        for rate in (*self.rates, 1.0, self.top, 0.0):
            of_rate = seldom if rate == 0 else [e for e in varied if float(e.variant["rate"]) == rate]
            if rate == 1:
                of_rate += [e for e in plain if e.recipe in RL_RECIPES]
            self.grids[rate] = Grid([e for e in of_rate + starts if e.tokens == self.tokens], temperature)
        everything = [e for g in self.grids.values() for e in g.entries]
        self.k = min((e.largest_k for e in everything), default=32)
        self.measure = best_measure(everything, self.k)
        self.recipes = [r for r in RL_RECIPES if any(g.has(r) for g in self.grids.values())]

    def steps(self, *runs: Run) -> list[int]:
        """Steps at which all of these were judged."""
        return sorted(set.intersection(*(set(self.grids[rate].steps(r, self.tokens)) - {0} for r, rate in runs)))

    def last(self, *runs: Run) -> int | None:
        return max(self.steps(*runs), default=None)

    def at(self, run: Run, step: int | None) -> dict[Key, Entry]:
        """The models of a run at a step."""
        return self.grids[run[1]].models(run[0], self.tokens, step) if step else {}

    def gain(self, run: Run, step: int | None, sign: float = 1.0) -> Terms:
        """A model minus the one that it started from."""
        start = self.grids[run[1]].models(STARTS[run[0]], self.tokens)
        return [(sign, self.at(run, step)), (-sign, start)]

    def order(self, measure, rate: float = 1.0) -> Contrast | None:
        """What RL after SFT at a rate adds to its start, minus what RL from base at the grid's rate adds to its own, at
        the last step that both have."""
        last = self.last(AFTER, DIRECT, ("sft_rl", rate))
        return contrast(self.gain(("sft_rl", rate), last) + self.gain(DIRECT, last, -1.0), measure)

    def rate(self, recipe: str, rate: float, measure) -> Contrast | None:
        """A rate − the grid's rate, of one recipe, at the last step that both have."""
        last = self.last((recipe, rate), (recipe, 1.0))
        return contrast([(1.0, self.at((recipe, rate), last)), (-1.0, self.at((recipe, 1.0), last))], measure)

    def dose(self, runs: tuple[Run, ...], measure) -> Contrast | None:
        """Last step − the one that is best on validation (where none is marked, the first judged one); the mean of these runs."""
        terms = []
        for recipe, rate in runs:
            best = {}
            for key, path in self.grids[rate].paths.get((recipe, self.tokens), {}).items():
                marked = [step for step, e in path.items() if e.meta.get("primary")]
                best[key] = path[max(marked) if marked else min(path)]
            last = self.at((recipe, rate), self.last((recipe, rate)))
            terms += [(1 / len(runs), last), (-1 / len(runs), best)]
        return contrast(terms, measure)

    def pair(self, a: Run, b: Run) -> list[dict[Key, list[Entry]]]:
        """Their trajectories."""
        return [runs(self.grids[rate], recipe, self.tokens) for recipe, rate in (a, b)]

    def primary(self) -> list[Claim]:
        """One claim each about order, rate and dose."""
        m, top = self.measure, self.top
        needs = "plan sharpening: RL from base and after SFT at several rates, judged at two steps or more that share some pass@1"
        equal = f"{m.name} at equal {m.at(1).name}"
        dose = f"dose: {m.name}, last step − best on validation, mean of RL from base and after SFT, rate ×1"
        order = at_equal_pass1(*self.pair(AFTER, DIRECT), m)
        rate = at_equal_pass1(*self.pair(("sft_rl", top), AFTER), m) if top > 1 else None
        return [
            claim(order, f"order: {equal}, RL after SFT − from base, rate ×1", "below", needs=needs),
            claim(rate, f"rate: {equal}, RL after SFT, ×{top:g} − ×1", "below", needs=needs),
            claim(self.dose((DIRECT, AFTER), m), dose, "below", needs=needs),
        ]

    def at_equal_steps(self) -> list[Claim]:
        """The same at the last step that both sides have, where pass@1 may differ."""
        m, top = self.measure, self.top
        text = (
            f"order: gain in {m.name} over its start, after SFT − from base, rate ×1, step {self.last(AFTER, DIRECT)}"
        )
        found = [(self.order(m), text)]
        if top > 1:
            text = f"rate: {m.name} after SFT, ×{top:g} − ×1, step {self.last(('sft_rl', top), AFTER)}"
            both = f"order and rate together: gain in {m.name}, after SFT ×{top:g} − from base ×1"
            found += [(self.rate("sft_rl", top, m), text), (self.order(m, top), f"the paper's comparison, {both}")]
        return [claim(c, text, "below", counts=False) for c, text in found]

    def each(self, recipe: str) -> list[Claim]:
        """RL from one start at every rate: its gain, its dose, its rate; and on seldom solved questions alone."""
        m, pass1, found = self.measure, self.measure.at(1), []
        for rate in self.rates:
            run, what = (recipe, rate), f"{label(recipe)}, rate ×{rate:.2g}"
            last = self.last(run)
            for measure, wanted in ((m, "below"), (pass1, "above")):
                text = f"{measure.name}: {what}, step {last} − its start"
                found.append((contrast(self.gain(run, last), measure), text, wanted))
            found.append((self.dose((run,), m), f"{m.name}: {what}, last step − best on validation", "below"))
            if rate != 1:
                found.append((self.rate(recipe, rate, m), f"{m.name}: {what} − ×1", "below"))
        for measure in (m, pass1):
            text = f"{measure.name}: {label(recipe)}, on seldom solved questions alone − on all, last common step"
            found.append((self.rate(recipe, 0.0, measure), text, "above"))
        return [claim(*of, counts=False) for of in found]

    def finding(self) -> Finding:
        claims, notes = self.primary(), []
        needs = claims[0].needs
        if self.tokens:
            for what, pair, made in zip(
                ("order", "rate"), ((AFTER, DIRECT), (("sft_rl", self.top), AFTER)), claims, strict=False
            ):
                made.apart = made.x is None and both_judged(*self.pair(*pair))
                if made.apart:
                    ones = self.measure.at(1).name
                    notes.append(f"No {what} contrast: the two runs of some seed have no 2 points of {ones} in common.")
            claims += self.at_equal_steps()
            if self.top > 1:
                notes.append(
                    f"The paper's own setting is RL after SFT at ×{self.top:g} beside RL from base at ×1: it changes order and rate "
                    "together." + (" (There the ratio is 40; here the highest that was run.)" if self.top < 40 else "")
                )
        claims += [c for recipe in self.recipes for c in self.each(recipe)]
        title = f"What lowers pass@{self.k}: the order, the rate or the dose of RL?"
        return Finding("sharpening", title, claims, any_of=True, notes=notes, needs=needs)


def answer(f: Finding) -> str:
    """One paragraph that says no more than the intervals."""
    if all(c.x is None for c in f.primary):
        return f"Not run: {f.needs}."
    by: dict[str, list[str]] = {}  # verdict → what has it
    for c in f.primary:
        by.setdefault(c.verdict, []).append(f"the {c.text.split(':')[0]}{c.said.removeprefix(c.verdict)}")
    said = [] if "shown" in by else ["none of the three is shown to lower pass@k"]
    for verdict, text in {"shown": "{} lowered pass@k", "contradicted": "{} raised it", "unclear": "for {} it is unclear",
                          "not run": "{}: not run"}.items():  # fmt: skip
        said += [text.format(listed(by[verdict]))] if verdict in by else []
    words = [f"{c.text[0].upper()}{c.text[1:]}: {c.numbers} points, {c.said}; {c.visible} would have been seen."
             for c in f.primary if c.x is not None and np.isfinite(c.x.se)]  # fmt: skip
    first = "; ".join(said)
    return f"{first[0].upper()}{first[1:]}. {' '.join(words)}"
