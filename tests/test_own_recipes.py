"""A recipe of one's own: what a row of RECIPES may be, and what is refused before hours are spent."""

import dataclasses

import pytest
from synthetic import make_entry
from test_excursion import flag, plan_of

from cli import UserError
from excursion.contrasts import Grid
from excursion.recipes import RECIPES, Recipe

LOOK = ("#56B4E9", "s", "--", True)


@pytest.fixture
def own(monkeypatch):
    """Adds a row."""

    def add(name: str, stage: str = "rl", **fields) -> None:
        monkeypatch.setitem(RECIPES, name, Recipe(name, LOOK, stage, **fields))

    return add


def test_a_name_that_begins_like_a_base_is_no_base(own):
    """Its steps are its own: "baseline" once had step 0 at all of them."""
    own("baseline", rates="rl")
    entries = [
        make_entry("baseline", 1, 0, [s], step=s, points=[1, 2], best_step=2, primary=s == 2, curve={}) for s in (1, 2)
    ]
    assert [e.step for e in entries] == [1, 2] and Grid(entries).models("baseline", 1)


def test_golds_end_is_golds(own, tmp_path):
    """A recipe that judges Gold's run at its end names Gold's last step, not SFT's."""
    own("gold_end", "sft", run="gold", judged="last")
    cells = plan_of(tmp_path, recipes=("gold", "gold_end"), budget="study")
    trained = next(c for c in cells.values() if c.name.endswith("/gold/train"))
    judged = {c.result.stem for c in cells.values() if c.meta and c.meta["recipe"] == "gold_end"}
    assert judged == {f"step_{int(flag(trained, 'steps')):07d}"} == {"step_0001920"}


@pytest.mark.parametrize("fields, said", [
    (dict(run="rl", judged="last"), "--recipes mine: it is judged at a model at which rl is, too"),
    (dict(rates="rl", flags=dict(kl=0.01)), "--recipes mine: its kl=0.01 is overwritten by the plan's 0"),
    (dict(rates="rl", flags=dict(lr=5e-4)), "--recipes mine: its lr=0.0005 is overwritten"),
    (dict(), "--recipes mine: no rates of mine in RATES"),
    (dict(rates="rl", after="sftt"), "--recipes mine: there is no recipe sftt"),
])  # fmt: skip
def test_what_no_recipe_can_be_is_one_line(own, tmp_path, fields, said):
    own("mine", **fields)
    with pytest.raises(UserError, match=said) as error:
        plan_of(tmp_path, recipes=("base", "rl", "mine"))
    assert "\n" not in str(error.value)


def test_the_highest_rate_alone_is_the_papers(tmp_path):
    """The paper's RL after SFT has a far higher rate than direct RL: factors up to 1 mark none."""
    for factors, marked in (((0.5, 1.0), set()), ((1.0, 2.0, 3.0), {3.0})):
        cells = plan_of(tmp_path, plan="sharpening", budget="study", factors=factors, seeds=(1,))
        asked = [c.meta for c in cells.values() if c.meta and c.meta["recipe"] == "sft_rl"]
        assert {meta["rate"] for meta in asked if meta["paper"]} == marked and len(asked) > 9


def test_every_field_of_a_recipe_is_used_by_one():
    """No field of Recipe without a row that has another value than its default."""
    for field in dataclasses.fields(Recipe):
        if field.default is not dataclasses.MISSING:
            assert any(getattr(r, field.name) != field.default for r in RECIPES.values()), field.name
