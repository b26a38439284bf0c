"""The recipes that are compared: how each makes a model from a base checkpoint, and how the report shows it.

The comparison is controlled: same questions, prompts x rollouts a step, response length, no KL, one RL budget and one
RL rate, also after SFT. Parallel averaging has twice RL's rate on its RL side. Halved by the average it is direct RL,
which therefore is its control of the RL dose; `sft_dose` is that of its SFT side (as many steps and rows, half the
rate).

A further recipe is a row of RECIPES: `--recipes NAME` runs it, and the report has it in its tables. For example, RL
whose advantages are not divided by their standard deviation, at RL's own learning rate:

    "rl_mean": Recipe("RL without std", ("#56B4E9", "s", "--", True), "rl", rates="rl", flags=dict(advantage="mean")),

`flags` are those of the stage's command. Some flags are the same for every recipe and cannot be set here: lr and sft_lr
(`rates` and `dose` set them), prompts, rollouts, kl and rows, the answer length, the evaluations and saves
(Builder.training_flags in cells.py). Without `rates`, the recipe needs a row of its own in RATES (config.py; with
--budget paper in PAPER_RATES). A contrast with it belongs into findings.py, its line into HERO or LINES (report.py) and,
along training, into ALONG (figures.py).
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Recipe:
    """One row of RECIPES."""

    name: str  # in the report
    look: tuple[str, str, str, bool]  # of its line in a figure: colour, marker, line style, are markers filled?
    stage: str = ""  # the stage that trains it: sft, rl or average; empty: the base model itself
    after: str = ""  # training starts from this recipe's model; empty: from the base
    flags: dict = field(default_factory=dict)  # of the stage's command; of a base model: `shots` of its evaluation
    rates: str = ""  # whose learning rates it has (RATES in config.py); empty: its own; "paper": at the paper's ratio
    dose: float = 1.0  # these rates are multiplied by it
    # which models have records. points: every named step (the best on validation is marked); best: that one; last: the end
    judged: str = "points"
    run: str = (
        ""  # no training of its own: it judges the run of this recipe, at another of its models than that recipe does
    )
    averaged: bool = False  # has the rows of averaging and, if it is SFT, the steps
    hot: bool = False  # is judged at temperature 1 too (--points_t1)

    @property
    def mode(self) -> str:
        """Of average.py; empty for other stages."""
        return self.flags.get("mode", "")

    @property
    def start(self) -> str:
        """The recipe whose model its training began from. A base is meant without examples, as training asks it. Empty
        where nothing is trained."""
        trained = self.stage and not self.run and self.mode != "soup"
        return (self.after or "base_0shot") if trained else ""


def averaging(mode: str) -> dict[str, str]:
    """Flags of average.py in one of its modes, with one solution a question on its SFT side."""
    return dict(mode=mode, solutions="one")


# In the order of tables and legends. Colours are the palette of Okabe and Ito; no two recipes differ in colour alone
RECIPES = {
    "base": Recipe("base with examples", ("#000000", "o", "--", True), flags=dict(shots=8), hot=True),
    "base_0shot": Recipe("base 0-shot", ("#000000", "o", ":", False), flags=dict(shots=0), hot=True),
    "rl": Recipe("RL from base", ("#0072B2", "s", "-", True), "rl", hot=True),
    "rl_dose": Recipe("RL alone, averaging's dose", ("#0072B2", "s", ":", False), "rl", rates="parallel", dose=0.5),
    "sft": Recipe("SFT, best", ("#E69F00", "^", "-", True), "sft", judged="best", flags=dict(solutions="one"), hot=True),
    "sft_converged": Recipe("SFT to the end", ("#E69F00", "^", "--", False), "sft", run="sft", judged="last"),
    "sft_dose": Recipe("SFT alone, averaging's dose", ("#E69F00", "<", ":", False), "sft", rates="parallel", dose=0.5,
                       averaged=True, flags=dict(solutions="one")),
    "sft_rl": Recipe("RL after SFT", ("#D55E00", "D", "-", True), "rl", after="sft", rates="rl", hot=True),
    "sft_converged_rl": Recipe("RL after SFT to the end", ("#D55E00", "D", "--", False), "rl", after="sft_converged", rates="rl"),
    "gold": Recipe("SFT-Gold", ("#009E73", "v", "-", True), "sft", judged="best", flags=dict(solutions="all")),
    "gold_rl": Recipe("RL after Gold", ("#56B4E9", ">", "-", True), "rl", after="gold", rates="rl"),
    "parallel": Recipe("averaging", ("#CC79A7", "*", "-", True), "average", averaged=True, flags=averaging("parallel"), hot=True),
    "combined": Recipe("combined loss", ("#7F7F7F", "P", "-", True), "average", rates="parallel", averaged=True,
                       flags=averaging("combined")),
    "interleaved": Recipe("interleaved", ("#7F7F7F", "X", "--", True), "average", rates="parallel", averaged=True,
                          flags=averaging("interleaved")),
    # both doses of averaging, one after the other
    "sft_dose_rl": Recipe("RL after SFT, averaging's doses", ("#D55E00", "d", ":", False), "rl", after="sft_dose", rates="rl"),
    "parallel_paper": Recipe("averaging, the paper's ratio of rates", ("#CC79A7", "*", "--", False), "average", rates="paper",
                             flags=averaging("parallel")),
    # of RL's end and of SFT's best
    "soup": Recipe("soup of RL and SFT", ("#7F7F7F", "h", ":", True), "average", after="rl", judged="last", flags=dict(mode="soup")),
}  # fmt: skip

STARTS = {name: recipe.start for name, recipe in RECIPES.items() if recipe.start}


def label(recipe: str) -> str:
    """Its name in the report; of a recipe that is not in the table (of other records) the word itself."""
    return RECIPES[recipe].name if recipe in RECIPES else recipe
