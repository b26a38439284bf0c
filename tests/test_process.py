"""Equations in solutions: which there are, whether they hold, what makes a way right."""

import random
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data import world
from verifier.process import equations, holds, sound

operands = st.one_of(st.integers(0, 200).map(str), st.decimals(0, 99, places=2).map(str))
signs = st.sampled_from([("+", "+"), ("-", "-"), ("*", "*"), ("/", "/"), ("x", "*"), ("×", "*"), ("÷", "/"), ("−", "-"),
                         ("\\times", "*"), ("\\div", "/")])  # fmt: skip
chains = st.tuples(operands, st.lists(st.tuples(signs, operands), min_size=1, max_size=6))


def value(first: str, rest) -> Fraction | None:
    """Products first, then from left to right; None for a division by zero."""
    terms = [Fraction(first)]
    for (_, sign), number in rest:
        number = Fraction(number)
        if sign == "/" and not number:
            return None
        if sign in "+-":
            terms.append(number if sign == "+" else -number)
        else:
            terms[-1] = terms[-1] * number if sign == "*" else terms[-1] / number
    return sum(terms)


@settings(deadline=None)
@given(
    chains,
    st.integers(-3, 3),
    st.sampled_from(["{}.", "First {}. So it is.", "plums: {}\nAnswer: 3", "It has 4 {}, so"]),
)
def test_a_chain_holds_exactly_if_its_result_is_its_value(chain, off, frame):
    """Any chain of + - * / in any of their signs, decimals too, in running text: found once, and true for its value
    alone; a division by zero is never true."""
    first, rest = chain
    left = first + "".join(f" {sign} {number}" for (sign, _), number in rest)
    result = value(first, rest)
    right = Fraction(7) if result is None else result + off
    if right.denominator != 1:
        right_text = f"{right.numerator} / {right.denominator}"
    else:
        right_text = str(right.numerator)
    (found,) = equations(frame.format(f"{left} = {right_text}"))
    assert holds(found) == (result is not None and off == 0)


@settings(deadline=None)
@given(st.text(alphabet="0123456789+-*/=(). ,x\n\\timesdiv×", max_size=80))
def test_any_text_is_judged(text):
    """Nothing raises, and every equals sign belongs to exactly one equation."""
    found = equations(text)
    assert sum(e.count("=") for e in found) == text.count("=")
    assert sound(found) in (True, False)


@pytest.mark.parametrize("size", [300, 10**5])
def test_hostile_text_is_judged_false(size):
    """Deep brackets, long chains, huge numbers, of which some are true: false, without a deep recursion or a long wait."""
    for text in (
        "(" * size + "1 + 1" + ")" * size + " = 2",
        "-" * size + "1 + 1 = 2",
        "1" + "+1" * size + f" = {size + 1}",
        "9" * size + "*9" * size + " = 1",
    ):
        assert not sound(equations(text))


def test_which_equations_a_text_has():
    """One spelling for each, in order; what cannot be read beside an equals sign stays, and is false."""
    for text, found, true in [
        ("First 12 + 5 = 17. Then 17 * 2 = 34. So \\boxed{34}.", ["12+5=17", "17*2=34"], [1, 1]),
        ("12 + 5 - 3 = 14, so 14 / 2 = 8", ["12+5-3=14", "14/2=8"], [1, 0]),
        ("12 + 5 = 17\n- 17 * 2 = 34\n* 2 = 2", ["12+5=17", "17*2=34", "2=2"], [1, 1, 1]),
        ("plums: 35 + 40 = 75, pears: 2 x 3 = 6", ["35+40=75", "2*3=6"], [1, 1]),
        ("he has 3 12 + 5 = 17", ["12+5=17"], [1]),
        ("-3 + 5 = 2", ["-3+5=2"], [1]),
        ("Tom has 3 pears + 4 = 4. 2 + 2 = 4", ["?+4=4", "2+2=4"], [0, 1]),
        ("  - 2 + 3 = 5", ["2+3=5"], [1]),
        ("1,200 + 1 = 1,201, 7 - 1 = 6", ["1200+1=1201", "7-1=6"], [1, 1]),
        ("2 * (3 + 4) = 14 and (2 + 3 = 5", ["2*(3+4)=14", "(2+3=5"], [1, 0]),
        ("12 + 5 = 10 + 7 = 17 and 12 + 5 = 17 * 2 = 34", ["12+5=10+7=17", "12+5=17*2=34"], [1, 0]),
        ("2 + 3 = 4 = 5", ["2+3=4=5"], [0]),
        ("x = 5, 12 + = 17, = 3, 4 + 1 =", ["=5", "12+=17", "=3", "4+1="], [0, 0, 0, 0]),
        ("5 / 0 = 5 / 0", ["5/0=5/0"], [0]),
        ("The answer is \\boxed{34}.", [], []),
    ]:
        assert equations(text) == found and [holds(e) for e in found] == [bool(t) for t in true], text


def test_a_right_way_has_an_equation_and_none_that_is_false():
    """An answer alone, or an equation that computes nothing, is no process; one false equation spoils it, a true one
    more does not."""
    assert not sound([]) and not sound(["17=17"])
    assert sound(["12+5=17"]) and sound(["17=17", "17*2=34"])
    assert not sound(["12+5=17", "17*2=35"])


def test_the_worlds_solutions_are_right_on_the_way_and_a_changed_digit_is_not():
    """Every solution of the world's questions is process-right; with a number of an equation changed it is not."""
    rng = random.Random(0)
    for row in world.questions(0)["validation"][:64]:
        for solution in row["solutions"]:
            found = equations(solution)
            assert sound(found), solution
            at = rng.randrange(len(found))
            left, right = found[at].rsplit("=", 1)
            wrong = f"{left}={int(right) + rng.choice((-10, -1, 1, 10))}"
            assert not sound([*found[:at], wrong, *found[at + 1 :]])
