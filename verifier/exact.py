"""A tree → what it is worth: the exact arithmetic of verifier/.

Numbers are complex, `Fraction` while they are rational and 100-digit decimals where they are not; variables stand at
fixed rational points, so that (x+1)^2 equals x^2+2x+1. Arithmetic is bounded by MAX_BITS and FUEL: beyond, Unsupported.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, Underflow, localcontext
from fractions import Fraction
from math import comb, factorial
from typing import NamedTuple

from verifier.latex import CONSTANTS, NAMES, Node, Unsupported

MAX_BITS = 10000  # of an exact numerator or denominator
FUEL = 2000  # of one answer's evaluation, in units of about 5 microseconds


class Value(NamedTuple):
    """What an answer is worth. `key` is its canonical string; the rest serves the cases that one string cannot express."""

    key: str
    kind: str = ""  # "list" without order, a pair of brackets or "matrix" with one, "" for everything else
    items: tuple[Value, ...] = ()
    relation: str | None = None  # of an equation or inequality: the key of the whole of it
    also: str | None = (
        None  # another key that it may be equal by: of 10% that of 0.1, of 3 million of 3, of 9 a.m. of 9
    )


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic: complex numbers as pairs (real, imaginary), each a Fraction while exact, else a Decimal. Division by zero
# and what exceeds the exponents of CONTEXT is an ArithmeticError.
# ---------------------------------------------------------------------------------------------------------------------

Real = Fraction | Decimal
Number = tuple[Real, Real]

CONTEXT = Context(prec=100, Emax=2000, Emin=-2000, traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
_KEY_CONTEXT = Context(prec=40)
_EPSILON = Decimal("1e-105")  # where a series ends
_TINY = Decimal("1e-80")  # a sum this small beside its terms is zero, as is a number this small by itself
_RATIONAL = Decimal("1e-60")  # this close, relatively, to a fraction of denominator below 10^12 is that fraction
_ZERO, _ONE = Fraction(0), Fraction(1)


def _decimal(x: Real) -> Decimal:
    return x if isinstance(x, Decimal) else Decimal(x.numerator) / Decimal(x.denominator)


def _bits(x: Real) -> int:
    return max(x.numerator.bit_length(), x.denominator.bit_length()) if isinstance(x, Fraction) else 1


def _plus(x: Real, y: Real) -> Real:
    """x + y. Where two decimals cancel but for their rounding, the sum is an exact zero."""
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x + y
    x, y = _decimal(x), _decimal(y)
    total = x + y
    return _ZERO if abs(total) <= _TINY * max(abs(x), abs(y)) else total


def _times(x: Real, y: Real) -> Real:
    if isinstance(x, Fraction) and isinstance(y, Fraction):
        return x * y
    return _decimal(x) * _decimal(y) if x and y else _ZERO


def _add(a: Number, b: Number) -> Number:
    return _plus(a[0], b[0]), _plus(a[1], b[1])


def _negative(a: Number) -> Number:
    return -a[0], -a[1]


def _multiply(a: Number, b: Number) -> Number:
    if not a[1] and not b[1]:
        return _times(a[0], b[0]), _ZERO
    real = _plus(_times(a[0], b[0]), -_times(a[1], b[1]))
    return real, _plus(_times(a[0], b[1]), _times(a[1], b[0]))


def _squared_modulus(a: Number) -> Real:
    """|a|², which is exact where a is."""
    return _plus(_times(a[0], a[0]), _times(a[1], a[1]))


def _inverse(a: Number) -> Number:
    scale = 1 / _squared_modulus(a)
    return _times(a[0], scale), -_times(a[1], scale)


def _arctan(x: Decimal) -> Decimal:
    for _ in range(4):  # halve the angle, so that the series gains two digits a term
        x = x / (1 + (1 + x * x).sqrt())
    power, total, n = x, x, 1
    while abs(power) > _EPSILON:
        power, n = -power * x * x, n + 2
        total += power / n
    return total * 16  # undoes the four halvings


with localcontext(CONTEXT):
    _PI, _E = 4 * _arctan(Decimal(1)), Decimal(1).exp()


def _angle(a: Number) -> Real:
    """The argument of a complex number, in (-π, π]."""
    x, y = a
    if not x or not y:
        return (_ZERO if x > 0 else _PI) if not y else _PI / 2 if y > 0 else -_PI / 2
    angle = _arctan(_decimal(y) / _decimal(x))
    return angle if x > 0 else angle + _PI if y > 0 else angle - _PI


def _cosine_sine(angle: Real) -> tuple[Real, Real]:
    """By the series of e^ix: its even powers are the cosine, its odd ones the sine."""
    x = _decimal(angle)
    if abs(x) > 10**9:
        raise Unsupported  # reducing it would use up the digits
    x -= 2 * _PI * (x / (2 * _PI)).to_integral_value()
    sums, term, n = [Decimal(1), Decimal(0)], Decimal(1), 0
    while n < 10 or abs(term) > _EPSILON:
        n += 1
        term = term * x / n
        sums[n % 2] += term if n % 4 < 2 else -term
    return tuple(_ZERO if abs(v) < _TINY else v for v in sums)


def _exp(a: Number) -> Number:
    size = _decimal(a[0]).exp() if a[0] else _ONE
    return _multiply((size, _ZERO), _cosine_sine(a[1])) if a[1] else (size, _ZERO)


def _ln(a: Number) -> Number:
    squared = _squared_modulus(a)  # ln |a| = ln |a|² / 2
    return (_ZERO if squared == 1 else _decimal(squared).ln() / 2), _angle(a)


def _root(x: Real, n: int) -> Real:
    """The n-th root of a positive number, exact where it is rational."""
    root = _decimal(x).sqrt() if n == 2 else (_decimal(x).ln() / n).exp()
    near = Fraction(root).limit_denominator(10**12) if isinstance(x, Fraction) else _ZERO
    return near if near**n == x else root


def _is_integer(a: Number) -> bool:
    return not a[1] and isinstance(a[0], Fraction) and a[0].denominator == 1


def _integer_power(a: Number, n: int) -> Number:
    if n < 0:
        a, n = _inverse(a), -n
    bits = max(_bits(a[0]), _bits(a[1]))
    if bits == 1 and not a[1] and isinstance(a[0], Fraction):  # 0, 1, -1: only whether n is 0, odd or even matters
        n = min(n, 2 + n % 2)
    if bits * n > MAX_BITS:
        raise Unsupported
    if isinstance(a[0], Fraction) and not a[1]:
        return a[0] ** n, _ZERO
    result = (_ONE, _ZERO)
    while n:
        if n & 1:
            result = _multiply(result, a)
        a, n = (_multiply(a, a) if n > 1 else a), n >> 1
    return result


def _power(a: Number, b: Number) -> Number:
    if _is_integer(b):
        return _integer_power(a, b[0].numerator)
    if isinstance(b[0], Fraction) and not b[1]:
        n = b[0].denominator
        if a == (_ZERO, _ZERO) and b[0] > 0:
            return a
        if not a[1] and n <= 100 and (a[0] > 0 or n % 2 or n == 2):
            root = _root(abs(a[0]), n)  # of a negative number the real one, \sqrt[3]{-8} = -2, or the imaginary one
            root = (root, _ZERO) if a[0] > 0 else (-root, _ZERO) if n % 2 else (_ZERO, root)
            return _integer_power(root, b[0].numerator)
    return _exp(_multiply(b, _ln(a)))


def _function(name: str, a: Number) -> Number:
    """Of a complex number exp, ln and abs; the trigonometric ones of a real number."""
    if name == "exp":
        return _exp(a)
    if name == "ln":
        return _ln(a)
    if name == "abs":
        return _power((_squared_modulus(a), _ZERO), (Fraction(1, 2), _ZERO))
    if a[1]:
        raise Unsupported
    if name == "arctan":
        return _angle((_ONE, a[0])), _ZERO
    cosine, sine = _cosine_sine(a[0])
    ratios = {
        "sin": (sine, _ONE), "cos": (cosine, _ONE), "tan": (sine, cosine),
        "csc": (_ONE, sine), "sec": (_ONE, cosine), "cot": (cosine, sine),
    }  # fmt: skip
    over, under = ratios[name]
    return _multiply((over, _ZERO), _inverse((under, _ZERO)))


def _real_key(x: Real) -> str:
    """ "2/3"; "~1.4142…" of 40 digits for a decimal that is no fraction of small numbers."""
    if isinstance(x, Decimal):
        if abs(x) < _TINY:
            return "0"
        near = Fraction(x).limit_denominator(10**12)
        if abs(_decimal(near) - x) > _RATIONAL * abs(x):
            return f"~{_KEY_CONTEXT.plus(x).normalize(_KEY_CONTEXT)}"
        x = near
    if _bits(x) > 1900:  # str() of a huge integer takes quadratic time, and CPython refuses it past a limit
        return f"{x.numerator:#x}/{x.denominator:#x}"
    return str(x)


def _number_key(a: Number) -> str:
    real, imaginary = _real_key(a[0]), _real_key(a[1])
    return real if imaginary == "0" else f"{real}+{imaginary}i"


# ---------------------------------------------------------------------------------------------------------------------
# A tree's value
# ---------------------------------------------------------------------------------------------------------------------


class Evaluator:
    """Structures (lists, tuples, relations) become a Value of Values. An expression becomes the key of its number; one
    with variables is computed at two points, and its key is both numbers. Unsupported: no value within the bounds."""

    def __init__(self):
        self.fuel = FUEL
        self.point = 0  # 0, 1 or 2: the evaluation point, which gives each variable its value now (`_coordinate`)
        self.sign = 0  # 1 or -1: how ± is read now; 0: no ± may stand here

    def spend(self, cost: int) -> None:
        """Take `cost` from the fuel; Unsupported when it is used up. Costs below are rough times of an operation."""
        self.fuel -= cost
        if self.fuel < 0:
            raise Unsupported

    def bounded(self, a: Number) -> Number:
        """`a`, if its size is within MAX_BITS; it costs fuel by its size."""
        bits = max(_bits(a[0]), _bits(a[1]))
        if bits > MAX_BITS:
            raise Unsupported
        self.spend((1 + (bits >> 5)) * (4 if a[1] else 1))
        return a

    def value(self, node: Node) -> Value:
        """The Value of an answer's tree: structures item by item, anything else by its key."""
        kind, *parts = node
        if kind in ("list", "union"):  # parts[0] of a union are its operators, as of a relation and a ratio
            return _list([self.value(part) for part in (parts if kind == "list" else parts[1:])])
        if kind in ("seq", "row", "matrix"):
            brackets = parts.pop(0) if kind == "seq" else kind
            items = tuple(self.value(part) for part in parts)
            return Value(f"{brackets}({','.join(item.key for item in items)})", brackets, items, _relations(items))
        if kind == "relation":
            return self.relation(parts[0], parts[1:])
        if kind == "ratio":
            return Value(":".join(self.key(("mul", part, ("inverse", parts[-1]))) for part in parts[1:]))
        if kind == "neg" and parts[0][0] == "percent":  # -5% is (-5)%
            kind, parts = "percent", [("neg", parts[0][1])]
        if kind == "scaled":
            return Value(self.key(node), also=self.key(parts[0]))
        if kind == "percent":
            return Value(self.key(parts[0]), also=self.key(("mul", parts[0], ("num", Fraction(1, 100)))))
        if not _contains(node, ("pm", "mp")):
            return Value(self.key(node))
        both = []
        for self.sign in (1, -1):
            both.append(Value(self.key(node)))
        self.sign = 0
        return _list(both)

    def key(self, node: Node) -> str:
        """The key of an expression: its number, or, where variables change it, its numbers at points 0 and 1."""
        keys = [_number_key(self.number_at(node, point)) for point in range(1 + _contains(node, NAMES))]
        return keys[0] if len(set(keys)) == 1 else "|".join(keys)

    def number_at(self, node: Node, point: int) -> Number:
        """The number of an expression at an evaluation point."""
        self.spend(20)
        self.point = point
        return self.number(node)

    def number(self, node: Node) -> Number:
        """The number of an expression at self.point, with ± read as self.sign."""
        kind = node[0]
        self.spend(1)
        if kind == "num":
            return node[1], _ZERO
        if kind == "var":
            return _coordinate(node[1], self.point), _ZERO
        if kind == "const":
            return (_ZERO, _ONE) if node[1] == "i" else (_PI if node[1] == "pi" else _E, _ZERO)
        if kind == "function":
            self.spend(150)
            return _function(node[1], self.number(node[2]))
        if kind == "percent":
            return self.number(node[1])
        if kind not in ("add", "mul", "scaled", "inverse", "pow", "neg", "pm", "mp", "factorial", "binom"):
            raise Unsupported
        operands = [self.number(operand) for operand in node[1:]]
        a, *others = operands
        if kind in ("add", "mul", "scaled"):
            for b in others:
                a = self.bounded(_add(a, b) if kind == "add" else _multiply(a, b))
            return a
        if kind == "inverse":
            return _inverse(a)
        if kind == "pow":
            self.spend(150 if not _is_integer(others[0]) else 40 if a[1] else 10)
            return self.bounded(_power(a, others[0]))
        if kind in ("factorial", "binom"):
            counts = [_small_integer(b) for b in operands]
            return self.bounded((Fraction(factorial(*counts) if kind == "factorial" else comb(*counts)), _ZERO))
        if kind == "neg":
            return _negative(a)
        if not self.sign:
            raise Unsupported
        return a if (kind == "pm") == (self.sign > 0) else _negative(a)

    def relation(self, operators: tuple[str, ...], parts: list[Node]) -> Value:
        """An equation is worth its last exact side if the first is a name or a constant; x < 5 and a < x < b are intervals."""
        if "\\approx" in operators:  # x ≈ 11 is 11, but x = 1/3 ≈ 0.33 is 1/3
            cut = operators.index("\\approx")
            if cut == 0 and _is_name(parts[0]):
                operators, parts = ("=",), parts[:2]
            else:
                operators, parts = operators[:cut], parts[: cut + 1]
        if not operators or operators == ("\\in",):
            return self.value(parts[-1])
        if operators == ("\\ne",):
            relation = "!" + self.direction(*parts)
            return Value(relation, relation=relation)
        if set(operators) == {"="}:
            left, right = parts[0], parts[-1]
            if _is_name(right) and not _is_name(left):
                left, right = right, left
            if not _contains(left, NAMES):
                return self.value(right)
            relation = "=" + self.direction(left, right)
            value = self.value(right) if _is_name(left) else Value(relation)
            return value._replace(relation=relation)
        if set(operators) <= {">", "\\ge"}:
            operators = tuple("<" if operator == ">" else "\\le" for operator in reversed(operators))
            parts = parts[::-1]
        if not set(operators) <= {"<", "\\le"}:
            raise Unsupported
        return self.inequality([operator == "<" for operator in operators], parts)

    def inequality(self, strict: list[bool], parts: list[Node]) -> Value:
        """x < 5 and a < x < b as intervals; other inequalities by `direction`. strict: for each sign, < and not ≤."""
        infinity = CONSTANTS["\\infty"]
        if len(parts) == 3 and _is_name(parts[1]):
            (low, name, high), relation = parts, ""
        elif len(parts) == 2:
            (left, right), name = parts, ""
            relation = "<="[strict[0]] + self.direction(left, right, signed=True)
            if _is_name(left) and not _contains(right, NAMES):
                low, high, strict = ("neg", infinity), right, [True, *strict]
            elif _is_name(right) and not _contains(left, NAMES):
                low, high, strict = left, infinity, [*strict, True]
            else:
                return Value(relation, relation=relation)
        else:
            raise Unsupported
        interval = self.value(("seq", "[("[strict[0]] + "])"[strict[1]], low, high))
        return interval._replace(relation=relation or f"{name}{interval.key}")

    def direction(self, left: Node, right: Node, signed: bool = False) -> str:
        """A key that equations of the same solutions share: 2x=4 and x=2, or with `signed` the inequalities 2x<4 and x<2.

        Such equations have the same left - right up to a factor (for inequalities a positive one). So the key is this
        difference at points 1 and 2, divided by the one at point 0. Where a side is not one number, as in (x,y)=(1,2)
        or x=1±2, the key is made of the two sides instead."""
        if _contains(left, ("seq", "ratio")) or _contains(right, ("pm", "seq", "list", "matrix")):
            return f"{left}={self.value(right).key}"
        difference = ("add", left, ("neg", right))
        first, *others = (self.number_at(difference, point) for point in range(3))
        if signed and first[1]:
            raise Unsupported
        scale = _inverse((abs(first[0]), _ZERO) if signed else first)
        keys = [_number_key(_multiply(other, scale)) for other in others]
        return ("-" if signed and first[0] < 0 else "") + "|".join(keys)


def _list(values: Sequence[Value]) -> Value:
    """Without order, nested ones joined; a point listed twice is one solution, but 1, 1, 2 is not 1, 2."""
    items = [item for value in values for item in (value.items if value.kind == "list" else (value,))]
    items.sort(key=lambda item: item.key)
    items = [item for i, item in enumerate(items) if not (item.items and i and items[i - 1].key == item.key)]
    if len(items) == 1:
        return items[0]
    return Value("{" + ";".join(item.key for item in items) + "}", "list", tuple(items), _relations(items))


def _relations(items: Sequence[Value]) -> str | None:
    """The relations of items that are all equations, in order of their text: k=45, n=2 is not n=45, k=2. Else None."""
    relations = [item.relation for item in items if item.relation]
    return ";".join(sorted(relations)) if items and len(relations) == len(items) else None


def _coordinate(name: str, point: int) -> Fraction:
    """Where a variable is at evaluation point 0, 1, 2: between 1 and 3, at point 1 negative, so that |x| is not x."""
    # A hash, so that two names differ; | 1 makes the denominator 2^31, so that the value is no simple fraction
    x = 1 + Fraction(zlib.crc32(f"{point}{name}".encode("utf-8", "replace")) | 1, 1 << 31)
    return -x if point == 1 else x


def _small_integer(a: Number) -> int:
    if not _is_integer(a) or not 0 <= a[0] <= 500:
        raise Unsupported
    return int(a[0])


def _contains(node: Node, kinds: tuple[str, ...]) -> bool:
    return node[0] in kinds or any(isinstance(child, tuple) and _contains(child, kinds) for child in node[1:])


def _is_name(node: Node) -> bool:
    """What an equation may define: x, f(x), AB, (p,q,r), A:B."""
    kind, *parts = node
    if kind in ("seq", "ratio"):
        return all(_is_name(part) for part in parts[1:])
    return kind == "var" or (kind == "mul" and parts[0][0] == "var" and all(_is_name(part) for part in parts))
