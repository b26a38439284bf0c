"""What lowers pass@k: that RL comes after SFT (the order), its rate, or its dose? From --plan sharpening.

RL from several starts (the base, SFT at its best and at its end, Gold) at several rates, judged at the same steps of training.
Three contrasts are primary, named before the runs (docs/PROTOCOL.md); Holm's correction is over these three:

    order   at equal pass@1: RL after SFT - RL from base, both at the grid's rate
    rate    at equal pass@1: RL after SFT at the highest rate - at the grid's rate
    dose    last step - the step that is best on validation, mean of RL from base and RL after SFT, at the grid's rate

Each is in pass@k, process-right where that can be judged; below 0 is sharpening. Beside them stand every start and rate; the
gains over each start; the paper's own comparison, which changes order and rate together; and RL on those questions alone that
the start seldom answers (is it the dose per solved question?).
"""

import numpy as np

from excursion.claims import Claim, Finding, claim, listed
from excursion.contrasts import Contrast, Grid, at_equal_pass1, contrast, main_temperature, runs
from excursion.recipes import STARTS, label
from excursion.records import Entry, Key, Questions

RL_RECIPES = ("rl", "sft_rl", "sft_converged_rl", "gold_rl")  # RL from each start, in the order of panels and claims
Terms = list[tuple[float, dict[Key, Entry]]]  # (weight, replicate → model) each: what contrasts.contrast adds up


class Sharpening:
    """Rates are factors of the grid's rate of RL, whose runs are those of the grid."""

    def __init__(self, entries: list[Entry]):
        rl = [e for e in entries if e.recipe in RL_RECIPES]
        varied = [e for e in rl if set(e.variant) == {"rate"}]
        seldom = [e for e in rl if set(e.variant) == {"band"}]
        self.tokens = max((e.tokens for e in varied), default=0)
        self.rates = sorted({float(e.variant["rate"]) for e in varied} | ({1.0} if varied else set()))
        here = [e for e in entries if not e.variant and e.tokens == self.tokens]
        starts = [e for e in here if e.recipe in {"base", *STARTS.values()}]
        temperature = main_temperature(varied)
        self.grids: dict[float, Grid] = {}  # rate → its models; 0 stands for RL on seldom solved questions alone
        for rate in (*self.rates, 0.0):
            of_rate = seldom if rate == 0 else [e for e in varied if float(e.variant["rate"]) == rate]
            if rate == 1:
                of_rate += [e for e in here if e.recipe in RL_RECIPES]
            self.grids[rate] = Grid([e for e in of_rate if e.tokens == self.tokens] + starts, temperature)
        everything = [e for g in self.grids.values() for e in g.entries]
        self.k = min((e.largest_k for e in everything), default=32)
        self.measure = Questions(self.k, "c_process")
        if any(self.measure(e) is None for e in everything):
            self.measure = Questions(self.k)
        self.recipes = [r for r in RL_RECIPES if any(g.has(r) for g in self.grids.values())]

    def steps(self, *runs: tuple[str, float]) -> list[int]:
        """Steps at which all of these (recipe, rate) were judged."""
        found = [set(self.grids[rate].steps(r, self.tokens)) - {0} if rate in self.grids else set() for r, rate in runs]
        return sorted(set.intersection(*found))

    def at(self, recipe: str, rate: float, step: int | None) -> dict[Key, Entry]:
        """The models of a recipe at a rate and a step; none where nothing was judged."""
        return self.grids[rate].models(recipe, self.tokens, step) if rate in self.grids and step else {}

    def gain(self, recipe: str, rate: float, step: int | None, sign: float = 1.0) -> Terms:
        """A model minus the one that it started from."""
        grid = self.grids.get(rate)
        start = grid.models(STARTS[recipe], self.tokens) if grid else {}
        return [(sign, self.at(recipe, rate, step)), (-sign, start)]

    def order(self, measure, rate: float = 1.0) -> Contrast | None:
        """What RL after SFT at a rate adds to its start, minus what RL from base at the grid's rate adds to its own, at the last
        step that both have."""
        last = max(self.steps(("sft_rl", 1.0), ("rl", 1.0), ("sft_rl", rate)), default=None)
        return contrast(self.gain("sft_rl", rate, last) + self.gain("rl", 1.0, last, -1.0), measure)

    def rate(self, recipe: str, rate: float, measure) -> Contrast | None:
        """A rate − the grid's rate, of one recipe, at the last step that both have."""
        last = max(self.steps((recipe, rate), (recipe, 1.0)), default=None)
        return contrast([(1.0, self.at(recipe, rate, last)), (-1.0, self.at(recipe, 1.0, last))], measure)

    def dose(self, recipes: tuple[str, ...], rate: float, measure) -> Contrast | None:
        """Last step − the one that is best on validation (where none is marked, the first judged one)."""
        g, terms = self.grids.get(rate), []
        for r in recipes:
            last = max(self.steps((r, rate)), default=None)
            best = {}
            for key, path in g.paths.get((r, self.tokens), {}).items() if g else ():
                marked = [step for step, e in path.items() if e.meta.get("primary")]
                best[key] = path[max(marked) if marked else min(path)]
            terms += [(1 / len(recipes), self.at(r, rate, last)), (-1 / len(recipes), best)]
        return contrast(terms, measure)

    def equal(self, a: tuple[str, float], b: tuple[str, float], measure) -> Contrast | None:
        """a − b, each (recipe, rate), at equal pass@1."""
        sides = [runs(self.grids[rate], recipe, self.tokens) if rate in self.grids else {} for recipe, rate in (a, b)]
        return at_equal_pass1(*sides, measure)

    def primary(self, top: float) -> list[Claim]:
        """One claim each about order, rate and dose. top: the highest rate."""
        m, after = self.measure, ("sft_rl", 1.0)
        needs = "plan sharpening: RL from base and after SFT at several rates, judged at two steps or more that share some pass@1"
        equal = f"{m.name} at equal {m.at(1).name}"
        order = self.equal(after, ("rl", 1.0), m)
        rate = self.equal(("sft_rl", top), after, m) if top > 1 else None
        dose = self.dose(("rl", "sft_rl"), 1.0, m)
        what = f"dose: {m.name}, last step − best on validation, mean of RL from base and after SFT, rate ×1"
        return [
            claim(order, f"order: {equal}, RL after SFT − from base, rate ×1", "below", needs=needs),
            claim(rate, f"rate: {equal}, RL after SFT, ×{top:g} − ×1", "below", needs=needs),
            claim(dose, what, "below", needs=needs),
        ]

    def at_equal_steps(self, top: float) -> list[Claim]:
        """The same at the last step that both sides have, where pass@1 may differ."""
        m, after, direct = self.measure, ("sft_rl", 1.0), ("rl", 1.0)
        last = max(self.steps(after, direct), default=None)
        text = f"order: gain in {m.name} over its start, after SFT − from base, rate ×1, step {last}"
        claims = [claim(self.order(m), text, "below", counts=False)]
        if top > 1:
            last = max(self.steps(("sft_rl", top), after), default=None)
            text = f"rate: {m.name} after SFT, ×{top:g} − ×1, step {last}"
            claims.append(claim(self.rate("sft_rl", top, m), text, "below", counts=False))
            text = (
                f"the paper's comparison, order and rate together: gain in {m.name}, after SFT ×{top:g} − from base ×1"
            )
            claims.append(claim(self.order(m, top), text, "below", counts=False))
        return claims

    def each(self, recipe: str) -> list[Claim]:
        """RL from one start at every rate: its gain, its dose, its rate; and on seldom solved questions alone."""
        m, pass1, claims = self.measure, self.measure.at(1), []

        def add(c: Contrast | None, text: str, wanted: str) -> None:
            claims.append(claim(c, text, wanted, counts=False))

        for rate in self.rates:
            last = max(self.steps((recipe, rate)), default=None)
            what = f"{label(recipe)}, rate ×{rate:.2g}"
            for measure, wanted in ((m, "below"), (pass1, "above")):
                c = contrast(self.gain(recipe, rate, last), measure)
                add(c, f"{measure.name}: {what}, step {last} − its start", wanted)
            add(self.dose((recipe,), rate, m), f"{m.name}: {what}, last step − best on validation", "below")
            if rate != 1:
                add(self.rate(recipe, rate, m), f"{m.name}: {what} − ×1", "below")
        for measure in (m, pass1):
            text = f"{measure.name}: {label(recipe)}, on seldom solved questions alone − on all, last common step"
            add(self.rate(recipe, 0.0, measure), text, "above")
        return claims

    def finding(self) -> Finding:
        top, notes = max(self.rates, default=3.0), []
        claims = self.primary(top)
        if self.tokens:
            claims += self.at_equal_steps(top)
            if top > 1:
                notes.append(
                    f"The paper's own setting is RL after SFT at ×{top:g} beside RL from base at ×1: it changes order and rate "
                    "together. (There the ratio is 40; here the highest that does not break a model of this size.)"
                )
        claims += [c for recipe in self.recipes for c in self.each(recipe)]
        title = f"What lowers pass@{self.k}: the order, the rate or the dose of RL?"
        return Finding("sharpening", title, claims, any_of=True, notes=notes, needs=claims[0].needs)


def answer(f: Finding) -> str:
    """One paragraph that says no more than the intervals."""
    if all(c.x is None for c in f.primary):
        return f"Not run: {f.needs}."
    by: dict[str, list[str]] = {"shown": [], "contradicted": [], "unclear": [], "not run": []}
    for c in f.primary:
        by[c.verdict].append(f"the {c.text.split(':')[0]}")
    said = [f"{listed(by['shown'])} lowered pass@k" if by["shown"] else "none of the three is shown to lower pass@k"]
    if by["contradicted"]:
        said.append(f"{listed(by['contradicted'])} raised it")
    if by["unclear"]:
        said.append(f"for {listed(by['unclear'])} it is unclear")
    if by["not run"]:
        said.append(f"{listed(by['not run'])}: not run")
    words = [f"{c.text[0].upper()}{c.text[1:]}: {c.numbers} points, {c.verdict}; {c.visible} would have been seen."
             for c in f.primary if c.x is not None and np.isfinite(c.x.se)]  # fmt: skip
    first = "; ".join(said)
    return f"{first[0].upper()}{first[1:]}. {' '.join(words)}"
