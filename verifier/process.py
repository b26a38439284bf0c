r"""Is the way to an answer right, and which way is it? For solutions whose arithmetic is written out, as the world's is.

    equations("First 12 + 5 = 17. Then 17 * 2 = 34. So \\boxed{34}.")   # ["12+5=17", "17*2=34"]
    holds("12+5-3=14")                                                   # True

A right answer can be luck: early in pretraining most right answers follow from false equations. An answer is
*process-right* if it is right, every equation written in its text is true, and at least one of them computes something:
an answer alone, or "17 = 17", shows no process. What stands beside an equals sign and cannot be read as arithmetic
makes its equation false, for a measure against luck must not count what it cannot check.

Read are integers and decimals, + - * / and their other signs (x × · ÷ \times \cdot \div), parentheses, chains on either
side (12 + 5 - 3 = 14) and of equals signs (12 + 5 = 10 + 7 = 17: all sides must be equal). Values are exact fractions.
"""

import re
from fractions import Fraction
from functools import lru_cache

_SIGNS = {"x": "*", "×": "*", "·": "*", "\\times": "*", "\\cdot": "*", "÷": "/", "\\div": "/", "−": "-"}
_TOKEN = re.compile(
    r"(?P<number>[0-9]+(?:,[0-9]{3}(?![0-9]))*(?:\.[0-9]+)?)|(?P<sign>[-+*/×·÷−]|\\times|\\cdot|\\div|(?<![a-z])x(?![a-z]))"
    r"|(?P<bracket>[()])|(?P<equals>=)|(?P<space> +)|(?P<other>.)",
    re.S,
)
MAX_TOKENS = 100  # of one side; a longer one makes its equation false


def equations(text: str) -> list[str]:
    """Every equation of a text, in order, in one spelling: no spaces, signs of "+-*/", "12 + 5 = 17" as "12+5=17"."""
    found, run = [], []  # run: the tokens since the last word, which may become an equation

    def end() -> None:
        if "=" in run:
            found.append("".join(run))
        run.clear()

    begins = True  # nothing but spaces so far in this line
    for match in _TOKEN.finditer(text):
        kind, token = match.lastgroup, match[0]
        if kind == "other":
            end()  # a word, a full stop or the end of a line
        elif kind != "space":
            operand = kind == "number" or token == "("
            if operand and run and (run[-1][-1].isdigit() or run[-1] == ")"):
                end()  # "he has 3 12 + 5 = 17": two numbers side by side are not one term
            if not run and kind == "sign" and text[match.end() : match.end() + 1] == " " and not begins:
                run.append("?")  # "3 pears + 4 = 4": what the sign joins cannot be read
            if run or kind != "sign" or match.end() < len(text) and text[match.end()] != " ":  # else a bullet
                run.append(_SIGNS.get(token, token.replace(",", "")))
        begins = token == "\n" or begins and token.isspace()
    end()
    return found


@lru_cache(maxsize=1 << 16)  # samples of one question write the same ones again and again
def holds(equation: str) -> bool:
    """Is an equation, in the spelling of `equations`, true? False for what is no arithmetic, such as "12+=17"."""
    sides = equation.split("=")
    try:
        values = [_value(side) for side in sides]
    except (ValueError, ZeroDivisionError):
        return False
    return len(values) > 1 and len(set(values)) == 1


def sound(found: list[str]) -> bool:
    """Are all equations of a text true, and does one of them compute something?"""
    return any(re.search(r"[0-9)][-+*/]", equation) for equation in found) and all(map(holds, found))


def _value(side: str) -> Fraction:
    """The exact value of arithmetic. ValueError for anything else, ZeroDivisionError."""
    tokens = re.findall(r"[0-9.]+|.", side)
    if len(tokens) > MAX_TOKENS or len(side) > 10 * MAX_TOKENS:
        raise ValueError("too long")
    tokens.append("")  # the end
    at = 0

    def factor() -> Fraction:
        nonlocal at
        token, at = tokens[at], at + 1
        if token == "-":
            return -factor()
        if token == "+":
            return factor()
        if token == "(":
            value = total()
            if tokens[at] != ")":
                raise ValueError("a bracket is not closed")
            at += 1
            return value
        return Fraction(token)  # a ValueError for anything but a number

    def product() -> Fraction:
        nonlocal at
        value = factor()
        while (sign := tokens[at]) in ("*", "/"):
            at += 1
            value = value * factor() if sign == "*" else value / factor()
        return value

    def total() -> Fraction:
        nonlocal at
        value = product()
        while (sign := tokens[at]) in ("+", "-"):
            at += 1
            value = value + product() if sign == "+" else value - product()
        return value

    value = total()
    if tokens[at]:
        raise ValueError("more than one term")
    return value
