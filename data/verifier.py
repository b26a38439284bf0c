r"""Is this answer right? The reward of GRPO and the judge of every evaluation.

    extract_answer("... so it is \\boxed{\\frac12}.")    # '\\frac12'
    is_correct("... so it is \\boxed{\\frac12}.", "0.5")  # True

Two answers are equal when their values are: each is read by a small recursive-descent parser into a tree, the tree is
evaluated (`Fraction` where the value is rational, 100-digit decimals where it is not; variables at fixed rational points,
so that `(x+1)^2` equals `x^2+2x+1`), and the values make a canonical string, `canonical`. What the parser does not know,
and what would grow past the limits below, is compared as a string. Conventions, where a choice had to be made:

- units, currency, degrees and words after a number are dropped: the question fixes the unit;
- `10\%` equals both `10` and `0.1` (data sets disagree), but `10` does not equal `0.1`;
- `x=5` equals `5`, but not `y=5`; `x>5` equals `(5,\infty)`; a chain `a=b=c` is worth its last side;
- `30^\circ` is 30, save inside a function of it: `\cos 60^\circ` equals `1/2`;
- lists without brackets, sets and unions have no order; (tuples), [intervals] and matrices have one;
- `1,234` is a number, `(1,234)` is a pair; `2\frac13` is 2+1/3; `3:1` is a ratio and equals `6:2` but not `3`.

Nothing here evaluates text as code, raises on any string, or takes more than a bounded time: no regular expression below
can backtrack more than linearly, parsing is bounded by MAX_CHARS and MAX_DEPTH, arithmetic by MAX_BITS and FUEL.
There is no state, so that threads can share it, and no `hash()`, so that two processes agree.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Sequence
from decimal import Context, Decimal, DivisionByZero, InvalidOperation, Overflow, Underflow, localcontext
from fractions import Fraction
from math import comb, factorial, gcd
from typing import NamedTuple

MAX_CHARS = 1000  # longer answers are compared as strings
MAX_DEPTH = 20  # of nested brackets; a level costs up to twelve of the interpreter's thousand frames
MAX_DIGITS = 600  # of a number literal: below the lowest limit that CPython lets int() be set to
MAX_BITS = 10000  # of an exact numerator or denominator
FUEL = 2000  # of one answer's evaluation, in units of about 5 microseconds
WINDOW = 1 << 15  # characters searched behind and before the last \boxed, or for a formula or number

# ---------------------------------------------------------------------------------------------------------------------
# Where the answer is
# ---------------------------------------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.S)
_NUMBER_IN_TEXT = re.compile(r"(?:(?<![0-9A-Za-z)}])[-−])?\$?[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?(?:/[0-9]+)?%?")
_DOLLARS = re.compile(r"(?<!\\)\$+")


def extract_answer(response: str, strict: bool = False) -> str | None:
    r"""The content of the last closed \boxed{}; unless `strict`, else what follows the last ####, else the last formula
    ($..$, \(..\), \[..\]) or number, whichever ends later. None where there is nothing."""
    box = _last_box(response)
    if box is not None or strict:
        return box
    marked = response.rpartition("####")
    if marked[1]:
        line = marked[2][:WINDOW].strip().partition("\n")[0].strip()
        if line:
            return line
    return _last_formula_or_number(response.rstrip()[-WINDOW:])


def _last_box(text: str) -> str | None:
    """One pass with a stack over the surroundings of the last box; the usual case, a closed last box, looks at it alone."""
    last = text.rfind("\\boxed")
    if last < 0:
        return None
    for start in (last, max(0, last - WINDOW)):
        opened: list[int] = []  # where each open brace's content begins, negative unless it is a box's
        found = None
        for brace in _BRACE.finditer(text, start, last + WINDOW):
            token = brace[0]
            if token == "{":
                opened.append(-1)
            elif token == "}":
                begin = opened.pop() if opened else -1
                if begin >= 0:
                    found = text[begin : brace.start()].strip()
                    if start == last:
                        return found
            elif token[-1] == "{" and len(token) > 2:
                opened.append(brace.end())
        if found is not None:
            return found
    return None


def _last_formula_or_number(tail: str) -> str | None:
    end, answer = 0, None
    for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
        right = tail.rfind(closing)
        left = tail.rfind(opening, 0, max(right, 0))
        if left >= 0 and right > end:
            end, answer = right, tail[left + 2 : right]
    dollars = list(_DOLLARS.finditer(tail))
    if len(dollars) >= 2:
        left, right = dollars[len(dollars) // 2 * 2 - 2 :][:2]  # an odd one out at the end is a currency sign
        if right.start() > end:
            end, answer = right.end(), tail[left.end() : right.start()]
    for number in _NUMBER_IN_TEXT.finditer(tail, end):
        answer = number[0]
    return answer.strip() if answer else None


# ---------------------------------------------------------------------------------------------------------------------
# Equality
# ---------------------------------------------------------------------------------------------------------------------


def is_correct(response: str, answer: str, strict: bool = False) -> bool:
    """Whether the answer that `extract_answer` finds in the response equals the reference answer."""
    found = extract_answer(response, strict)
    return found is not None and is_equal(found, answer)


def is_equal(candidate: str, gold: str) -> bool:
    """Whether two bare answers are equal. An empty answer equals nothing."""
    candidate, gold = candidate.strip(), gold.strip()
    if candidate == gold:
        return candidate != ""
    if not candidate or not gold:
        return False
    mine, theirs = _plain_number(candidate), _plain_number(gold)
    if mine is not None and theirs is not None:
        return mine == theirs
    if len(candidate) > MAX_CHARS or len(gold) > MAX_CHARS:
        return False
    if candidate.replace(", ", ",") == gold.replace(", ", ","):
        return True  # whether 12,144 is a number or a list
    return _same(_read(candidate), _read(gold))


def canonical(answer: str) -> str:
    r"""A normal form for grouping answers in a majority vote: equal numbers, expressions, tuples, sets and so on get the
    same string. It cannot express what is equal to two different things: `10\%` counts as `10`, `x=5` as `5`."""
    answer = answer.strip()
    plain = _plain_number(answer)
    if plain is not None:
        return plain
    return _read(answer).key if len(answer) <= MAX_CHARS else answer


_PLAIN = re.compile(r"(?:\\?\$ ?)?([+-]?)(?:\\?\$)?([0-9]{1,400}|[0-9]{1,3}(?:,[0-9]{3}){1,30})(?:\.([0-9]{0,100}))?")
_PLAIN_FRACTION = re.compile(
    r"([+-]?)(?:\\[dt]?frac ?(?:\{ ?([+-]?[0-9]{1,99}) ?\} ?\{ ?([0-9]{1,99}) ?\}|([0-9])([0-9]))"
    r"|([0-9]{1,99}) ?/ ?([0-9]{1,99}))"
)


def _plain_number(text: str) -> str | None:
    """The key of an integer, decimal or simple fraction, without the parser: nearly all answers to school mathematics."""
    if plain := _PLAIN.fullmatch(text):
        sign, whole, decimals = plain.groups("")
        top, bottom = int(whole.replace(",", "") + decimals), 10 ** len(decimals)
    elif plain := _PLAIN_FRACTION.fullmatch(text):
        sign = plain[1]
        top, bottom = int(plain[2] or plain[4] or plain[6]), int(plain[3] or plain[5] or plain[7])
    else:
        return None
    if not bottom:
        return None
    common = gcd(top, bottom)
    return _ratio_key((-top if sign == "-" else top) // common, bottom // common)


def _ratio_key(top: int, bottom: int) -> str:
    # Hexadecimal beyond a bound: str() of a huge int takes quadratic time, and CPython refuses it past a limit.
    if top.bit_length() > 1900 or bottom.bit_length() > 1900:
        return f"{top:#x}/{bottom:#x}"
    return str(top) if bottom == 1 else f"{top}/{bottom}"


class Value(NamedTuple):
    """What an answer is worth. `key` is its canonical string; the rest serves the cases that one string cannot express."""

    key: str
    kind: str = ""  # "list" without order, a pair of brackets or "matrix" with one, "" for everything else
    items: tuple[Value, ...] = ()
    relation: str | None = None  # of an equation or inequality: the key of the whole of it
    percent: str | None = None  # the key of this percentage as a fraction


def _same(a: Value, b: Value, outermost: bool = True) -> bool:
    """Equal keys, or what they cannot express: that x=5 is not y=5, that 10% is 10 and 0.1, both also item by item."""
    if a.relation and b.relation:
        return a.relation == b.relation
    if a.key == b.key:
        return True
    if (a.percent is None) != (b.percent is None):
        return a.percent == b.key or b.percent == a.key
    if a.kind != b.kind or len(a.items) != len(b.items) or not a.items:
        return False
    if a.kind != "list":
        return all(_same(x, y, False) for x, y in zip(a.items, b.items, strict=True))
    if not outermost or len(a.items) > 12:
        return False  # sets of sets that differ in more than order: not worth a quadratic search at each level
    left = list(b.items)
    for item in a.items:
        match = next((other for other in left if _same(item, other, False)), None)
        if match is None:
            return False
        left.remove(match)
    return True


def _read(text: str) -> Value:
    """An answer's value; that of a string that cannot be parsed or evaluated within the limits is the string, tidied."""
    if "\\boxed" in text:
        text = _last_box(text) or text
    text = _tidy(text)
    words = _ALL_WORDS.fullmatch(text)
    if words and not _PRODUCT.fullmatch(words[1]):
        return Value("text:" + re.sub(r"\s", "", words[1]).casefold())  # ACF is not CAF
    tokens = _tokens(text)
    try:
        with localcontext(_CONTEXT):
            return _Evaluator().value(_Parser(tokens).answer())
    except (_Unsupported, ArithmeticError):
        return Value("text:" + "".join(token.text for token in tokens))


# ---------------------------------------------------------------------------------------------------------------------
# Text to tokens
# ---------------------------------------------------------------------------------------------------------------------

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "π": "\\pi ", "∞": "\\infty ", "√": " sqrt ",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ", "±": "\\pm ",
        "∅": "\\emptyset ", "½": "\\frac12 ", "⅓": "\\frac13 ", "⅔": "\\frac23 ", "¼": "\\frac14 ", "¾": "\\frac34 ",
        "¹": "^1", "²": "^2", "³": "^3", "⁴": "^4", "θ": "\\theta ", "\u00a0": " ",
    }
)  # fmt: skip
_TRAILING = ".,;:\\ \n"
_HARD_SEPARATOR = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")
_ALL_WORDS = re.compile(r"(?:\\text[a-z]{0,6} ?\{ ?)?([A-Za-z][A-Za-z ]*[A-Za-z])\}?")
_PRODUCT = re.compile(r"(?!(?:yes|no|odd|one|two|six|ten|all)$)[a-z ]{1,3}|infinity")  # xy equals yx
_TOKEN = re.compile(
    r"""\\(?:text[a-z]{0,6}|[mh]box)\s*\{(?P<text>[^{}]*)\}
      |\\(?:math(?:rm|bf|it|sf)|operatorname)\s*\{(?P<font>[A-Za-z~\s]*)\}
      |(?P<skip>\s+|\\[!,;:>\ ()\[\]]|\\?\$|[~£€]|\\(?:left|right)(?![A-Za-z])\s*\.?
          |\\(?:[bB]igg?[lrm]?|q?quad|math(?:rm|bf|it|sf|bb)|operatorname|angle|triangle|rm|bf)(?![A-Za-z]))
      |(?P<degree>\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°)
      |(?P<environment>\\(?:begin|end)\s*\{[A-Za-z]{0,9}(?:matrix|array)\}(?:\s*\{[clr|]*\})?)
      |_\s*(?:\{(?P<group>[^{}]*)\}|(?P<index>[0-9A-Za-z]))
      |(?P<mixed>[0-9]{1,30}\s*\\[dtc]?frac\s*(?:\{\s*[0-9]{1,30}\s*\}\s*\{\s*[0-9]{1,30}\s*\}|[0-9]\s*[0-9])
          |[0-9]{1,30}\s+[0-9]{1,30}\s?/\s?[0-9]{1,30})
      |(?P<number>[0-9]*\.[0-9]*\\overline\{[0-9]+\}|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z]))?)
      |(?P<letters>[A-Za-z]+)
      |(?P<other>\\[A-Za-z]+|\\.|\*\*|[<>!=]=|.)""",
    re.X | re.S,
)
_DIGITS = re.compile("[0-9]+")
_THOUSANDS = re.compile(r"[0-9]{1,3}(?:(?:,[0-9]{3}){1,50}|(?: [0-9]{3}){1,50})(?![0-9]|,[0-9])(?:\.[0-9]+)?")
_SAME_OPERATOR = {
    "\\cdot": "*", "\\times": "*", "\\ast": "*", "\\div": "/", "**": "^", "\\%": "%", "\\colon": ":", ";": ",",
    "\\lt": "<", "\\gt": ">", "<=": "\\le", ">=": "\\ge", "==": "=", "!=": "\\ne", "\\neq": "\\ne", "\\leq": "\\le",
    "\\geq": "\\ge", "\\leqslant": "\\le", "\\geqslant": "\\ge", "\\equiv": "=", "\\sim": "=", "\\simeq": "\\approx",
    "\\lbrace": "\\{", "\\rbrace": "\\}", "\\lvert": "|", "\\rvert": "|", "\\vert": "|", "\\|": "|", "\\infinity": "\\infty",
    "\\dfrac": "\\frac", "\\tfrac": "\\frac", "\\cfrac": "\\frac", "\\dbinom": "\\binom", "\\tbinom": "\\binom",
    "\\varnothing": "\\emptyset",
}  # fmt: skip
_SPELLED = {
    "and": ",", "or": ",", "percent": "%", "percentage": "%", "pct": "%", "degrees": "°", "degree": "°", "pi": "\\pi",
    "infinity": "\\infty", "inf": "\\infty", "sqrt": "\\sqrt(",
}  # fmt: skip
_UNITS = frozenset(
    "cm mm km ft in kg mg lb lbs mi yd hr hrs min mins sec secs mph oz mL ml sq cu per day usd USD".split()
)
_FUNCTIONS = frozenset("sin cos tan cot sec csc arctan ln log exp abs".split())
_GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi "
    "psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
)


class _Token(NamedTuple):
    kind: str  # number, mixed, var, word, index, function, op
    text: str


def _tidy(text: str) -> str:
    text = text.translate(_UNICODE).replace("\\displaystyle", "").strip().rstrip(_TRAILING)
    text = text.removeprefix("=").removeprefix("\\approx")
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # escaped once too often; in a matrix it ends a row
    return _HARD_SEPARATOR.sub("", text.strip("$").strip().rstrip(_TRAILING))


def _tokens(text: str) -> list[_Token]:
    """Never fails: a character that means nothing becomes a token that the parser refuses."""
    tokens: list[_Token] = []
    depth = at = 0  # of brackets, inside which a comma separates items even before three digits
    while at < len(text):
        match = (not depth and _THOUSANDS.match(text, at)) or _TOKEN.match(text, at)
        kind = match.lastgroup or "number"
        if kind == "mixed" and not _is_mixed(match[0], tokens):
            match, kind = _DIGITS.match(text, at), "number"
        at, piece = match.end(), match[0]
        if kind in ("number", "mixed"):
            tokens.append(_Token(kind, piece if kind == "mixed" else re.sub("[, ]", "", piece)))
        elif kind == "text":
            tokens.extend(_text_tokens(match["text"].strip().rstrip("."), bool(tokens)))
        elif kind == "font":
            tokens.extend(_tokens(match["font"]))
        elif kind == "degree":
            tokens.append(_Token("op", "°"))
        elif kind == "environment":
            tokens.append(_Token("op", re.sub(r"\{[clr|]*\}$|\s", "", piece)))
        elif kind in ("group", "index"):
            tokens.append(_Token("index", re.sub(r"\s", "", match[kind])))
        elif kind == "letters":
            tokens.extend(_letter_tokens(piece, apart=match.start() == 0 or not text[match.start() - 1].isalnum()))
        elif kind == "other":
            piece = _SAME_OPERATOR.get(piece, piece)
            depth += (piece in ("(", "[", "\\{")) - (piece in (")", "]", "\\}"))
            kind = "function" if piece[1:] in _FUNCTIONS else "var" if piece[1:] in _GREEK else "op"
            tokens.append(_Token(kind, piece if kind == "op" else piece[1:]))
    return [t for i, t in enumerate(tokens) if not (t == _COMMA and tokens[i + 1 : i + 2] == [_COMMA])]


def _is_mixed(piece: str, before: list[_Token]) -> bool:
    r"""2\frac13 is 2+1/3, but 2\frac53 is a product, and in x^2\frac13 or \sqrt2\frac13 the 2 is not a summand."""
    top, bottom = _mixed_parts(piece)[1:]
    return 0 < top < bottom and (not before or before[-1].kind == "op" and before[-1].text not in _NO_MIXED_AFTER)


def _mixed_parts(piece: str) -> list[int]:
    numbers = _DIGITS.findall(piece)
    return [int(n) for n in (numbers if len(numbers) == 3 else [numbers[0], *numbers[1]])]  # \frac13


def _text_tokens(content: str, follows: bool) -> list[_Token]:
    r"""\text{...}: plain mathematics at the start of an answer or if it is not words alone, else a unit or a conjunction."""
    spelled = content.strip(" ,").casefold()
    if spelled in _SPELLED:
        return [_Token("op", _SPELLED[spelled])]
    if follows and any(c.isalpha() for c in content) and not _DIGITS.search(content):
        return [_Token("word", content.casefold() if len(content) > 1 else content)]
    return _tokens(content)


def _letter_tokens(run: str, apart: bool) -> list[_Token]:
    r"""Letters outside \text: a function, a spelled-out operator, a unit or word, or a product of variables."""
    if run in _FUNCTIONS:
        return [_Token("function", run)]
    if run.casefold() in _SPELLED:
        return [_Token("op", _SPELLED[run.casefold()])]
    if run in _GREEK:
        return [_Token("var", run)]
    if run in _UNITS or (apart and len(run) > 3):
        return [_Token("word", run.casefold())]
    return [_Token("var", letter) for letter in run]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens to a tree
# ---------------------------------------------------------------------------------------------------------------------


class _Unsupported(Exception):
    """The parser does not know this, or it would grow past a limit: compare as strings."""


Node = tuple  # (kind, operand, ...): ("num", Fraction), ("var", name), ("add", node, ...), ("seq", "(]", node, ...)

_NAMES, _COMMA, _END = ("var",), _Token("op", ","), _Token("end", "")
_NO_MIXED_AFTER = frozenset((")", "]", "}", "|", "^", "!", "°", "\\frac", "\\sqrt", "\\sqrt(", "\\pi"))
_CHAINS = (
    ("relation", ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in")),
    ("union", ("\\cup",)),
    ("ratio", (":",)),
)
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
_ATOMS = frozenset((*_CLOSING, "|", "\\frac", "\\sqrt", "\\sqrt(", "\\binom", "\\pi", "\\infty"))


class _Parser:
    r"""items: chain , chain ...;  chain: sum = sum < sum ..., and so on for the operators of _CHAINS, loosest first;
    sum: ± term + term - term %;  term: power * power / power power unit;  power: atom _index ! ° ^power."""

    def __init__(self, tokens: list[_Token]):
        self.tokens, self.at, self.depth = tokens, 0, 0
        self.in_bars = False  # inside |...|, where a bar closes
        self.degrees = False  # a degree sign was read: the function's argument is in degrees

    def peek(self, ahead: int = 0) -> _Token:
        return self.tokens[self.at + ahead] if self.at + ahead < len(self.tokens) else _END

    def take(self, *texts: str) -> str:
        kind, text = self.peek()
        if kind != "op" or text not in texts:
            return ""
        self.at += 1
        return text

    def expect(self, *texts: str) -> str:
        found = self.take(*texts)
        if not found:
            raise _Unsupported
        return found

    def answer(self) -> Node:
        items = self.items()
        if self.at < len(self.tokens):
            raise _Unsupported
        return items[0] if len(items) == 1 else ("list", *items)

    def items(self) -> list[Node]:
        items = [self.chain()]
        while self.take(","):
            items.append(self.chain())
        return items

    def chain(self, level: int = 0) -> Node:
        if level == len(_CHAINS):
            return self.sum()
        kind, operators = _CHAINS[level]
        found, parts = [], [self.chain(level + 1)]
        while operator := self.take(*operators):
            found.append(operator)
            parts.append(self.chain(level + 1))
        return (kind, tuple(found), *parts) if found else parts[0]

    def sum(self) -> Node:
        terms = []
        sign = self.take("+", "-", "\\pm", "\\mp")
        while sign or not terms:
            term = self.term()
            terms.append((_SIGNS[sign], term) if sign in _SIGNS else term)
            sign = self.take("+", "-", "\\pm", "\\mp")
        node = terms[0] if len(terms) == 1 else ("add", *terms)
        if self.take("%"):
            node = ("percent", node)
            self.skip_unit()
        return node

    def term(self) -> Node:
        factors = [self.signed()]
        while True:
            kind, text = self.peek()
            if self.take("*"):
                factors.append(self.signed())
            elif self.take("/"):
                factors.append(("inverse", self.signed()))
            elif kind == "word":
                self.skip_unit()
            elif self.continues(kind, text):
                factors.append(self.power())
            else:
                return factors[0] if len(factors) == 1 else ("mul", *factors)

    def continues(self, kind: str, text: str) -> bool:
        """Whether the next token is a factor without a sign of multiplication. Two numbers, or x2, make no product."""
        if kind in ("number", "mixed"):
            return self.tokens[self.at - 1].kind == "op"
        return kind in ("var", "function") or (kind == "op" and text in _ATOMS and not (text == "|" and self.in_bars))

    def skip_unit(self) -> None:
        """Words after a value: 5 cm^2, 10 miles per hour, 60 km/h."""
        while self.peek().kind == "word":
            self.at += 1
            if self.take("^"):
                self.argument()
            if self.peek().text == "/" and self.peek(1).kind in ("word", "var"):
                self.at += 2

    def signed(self) -> Node:
        negative = False
        while sign := self.take("+", "-"):
            negative ^= sign == "-"
        return ("neg", self.power()) if negative else self.power()

    def power(self) -> Node:
        node = self.nested(self.atom)
        while operator := self.take("!", "°"):
            if operator == "°":
                self.degrees = True
            elif node[0] == "factorial":
                raise _Unsupported
            else:
                node = ("factorial", node)
        return ("pow", node, self.exponent()) if self.take("^") else node

    def exponent(self) -> Node:
        return self.argument() if self.peek().text == "{" else self.nested(self.signed)

    def nested(self, parse: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise _Unsupported
        node = parse()
        self.depth -= 1
        return node

    def argument(self) -> Node:
        r"""What a command applies to: a group, or one token, which of a number is its first digit (\frac12)."""
        kind, text = self.peek()
        if kind == "number" and len(text) > 1 and text.isdigit():
            self.tokens[self.at] = _Token("number", text[1:])
            return ("num", Fraction(text[0]))
        return self.nested(self.atom)

    def atom(self) -> Node:
        kind, text = self.peek()
        self.at += 1
        if kind == "mixed":
            whole, top, bottom = _mixed_parts(text)
            return ("num", whole + Fraction(top, bottom))
        if kind in ("number", "var", "word"):
            if self.peek().kind == "index":  # a number in another base stays what is written: 101_2 is not 5
                self.at += 1
                return ("var", f"{text}_{self.tokens[self.at - 1].text}")
            if kind == "number":
                return ("num", _literal(text))
            return ("const", text) if text in ("i", "e") else ("var", text)
        if kind == "function":
            return self.function(text)
        if kind != "op":
            raise _Unsupported
        if text in _CLOSING:
            return self.bracket(text)
        if text == "|":
            outer, self.in_bars = self.in_bars, True
            node = ("function", "abs", self.sum())
            self.in_bars = outer
            self.expect("|")
            return node
        if text == "\\frac":
            return ("mul", self.argument(), ("inverse", self.argument()))
        if text == "\\binom":
            return ("binom", self.argument(), self.argument())
        if text == "\\sqrt(":  # spelled out: sqrt(2), sqrt 12
            return ("pow", self.nested(self.atom), _HALF)
        if text == "\\sqrt":
            degree = None
            if self.take("["):
                degree = self.sum()
                self.expect("]")
            return ("pow", self.argument(), ("inverse", degree) if degree else _HALF)
        if text in _CONSTANTS:
            return _CONSTANTS[text]
        if text.startswith("\\begin"):
            return self.matrix(text[6:])
        raise _Unsupported

    def bracket(self, opening: str) -> Node:
        outer, self.in_bars = self.in_bars, False
        items = [] if self.peek().text in _CLOSING[opening] else self.items()
        self.in_bars = outer
        closing = self.expect(*_CLOSING[opening])
        if len(items) == 1:
            return items[0]
        return ("list", *items) if closing in ("}", "\\}") else ("seq", opening + closing, *items)

    def function(self, name: str) -> Node:
        r"""\sin 2x, \sin^2 x, \log_2 8, \sin(x) y: without brackets, the argument goes up to a sign or a function."""
        base = None
        if self.peek().kind == "index":
            base = self.peek().text
            base = ("num", _literal(base)) if base.isascii() and base.isdigit() else ("var", base)
            self.at += 1
        exponent = self.exponent() if self.take("^") else None
        if exponent and exponent[0] == "neg":
            raise _Unsupported  # the inverse function or the reciprocal
        outer, self.degrees = self.degrees, False
        bracketed = self.peek().text in _CLOSING
        factors = [self.nested(self.atom) if bracketed else self.power()]
        if not bracketed:
            while self.peek().kind in ("number", "var") or self.peek().text in ("\\pi", "\\frac", "\\sqrt"):
                factors.append(self.power())
        if self.take("°") or self.degrees:
            factors += [("const", "pi"), ("num", Fraction(1, 180))]
        self.degrees = outer
        node = ("function", "ln" if name == "log" else name, ("mul", *factors))
        if name == "log":
            node = ("mul", node, ("inverse", ("function", "ln", base or ("num", Fraction(10)))))
        return ("pow", node, exponent) if exponent else node

    def matrix(self, environment: str) -> Node:
        r"""Rows of cells up to \end{...}; all brackets mean the same, save the bars of a determinant."""
        rows: list[list[Node]] = [[]]
        while not self.take("\\end" + environment):
            if self.take("\\\\"):
                rows.append([])
            elif not self.take("&"):
                rows[-1].append(self.sum())
        kind = "determinant" if environment == "{vmatrix}" else "matrix"
        return (kind, *(("row", *row) for row in rows if row))


_HALF = ("num", Fraction(1, 2))
_SIGNS = {"-": "neg", "\\pm": "pm", "\\mp": "mp"}
_CONSTANTS = {"\\pi": ("const", "pi"), "\\infty": ("var", "infinity"), "\\emptyset": ("list",)}


def _literal(text: str) -> Fraction:
    if len(text) > MAX_DIGITS:
        raise _Unsupported
    digits, mark, period = text.rstrip("}").partition("\\overline{")
    value = Fraction(digits + "0" if mark else digits)
    if mark:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits.partition(".")[2]))
    return value


# ---------------------------------------------------------------------------------------------------------------------
# Arithmetic: complex numbers as pairs (real, imaginary), each a Fraction while exact, else a Decimal
# ---------------------------------------------------------------------------------------------------------------------

Real = Fraction | Decimal
Number = tuple[Real, Real]

_CONTEXT = Context(prec=100, Emax=2000, Emin=-2000, traps=[InvalidOperation, DivisionByZero, Overflow, Underflow])
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


def _norm(a: Number) -> Real:
    return _plus(_times(a[0], a[0]), _times(a[1], a[1]))


def _inverse(a: Number) -> Number:
    scale = 1 / _norm(a)
    return _times(a[0], scale), -_times(a[1], scale)


def _arctan(x: Decimal) -> Decimal:
    for _ in range(4):  # halve the angle, so that the series gains two digits a term
        x = x / (1 + (1 + x * x).sqrt())
    power, total, n = x, x, 1
    while abs(power) > _EPSILON:
        power, n = -power * x * x, n + 2
        total += power / n
    return total * 16


with localcontext(_CONTEXT):
    _PI, _E = 4 * _arctan(Decimal(1)), Decimal(1).exp()


def _angle(a: Number) -> Real:
    """The argument of a complex number, in (-π, π]."""
    x, y = a
    if not x or not y:
        return (_ZERO if x > 0 else _PI) if not y else _PI / 2 if y > 0 else -_PI / 2
    angle = _arctan(_decimal(y) / _decimal(x))
    return angle if x > 0 else angle + _PI if y > 0 else angle - _PI


def _cosine_sine(angle: Real) -> tuple[Real, Real]:
    x = _decimal(angle)
    if abs(x) > 10**9:
        raise _Unsupported  # reducing it would use up the digits
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
    norm = _norm(a)
    return (_ZERO if norm == 1 else _decimal(norm).ln() / 2), _angle(a)


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
    if bits == 1 and not a[1] and isinstance(a[0], Fraction):  # 0, 1, -1: any exponent will do
        n = min(n, 2 + n % 2)
    if bits * n > MAX_BITS:
        raise _Unsupported
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
    if name == "exp":
        return _exp(a)
    if name == "ln":
        return _ln(a)
    if name == "abs":
        return _power((_norm(a), _ZERO), (_HALF[1], _ZERO))
    if a[1]:
        raise _Unsupported
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
    if isinstance(x, Decimal):
        if abs(x) < _TINY:
            return "0"
        near = Fraction(x).limit_denominator(10**12)
        if abs(_decimal(near) - x) > _RATIONAL * abs(x):
            return f"~{_KEY_CONTEXT.plus(x).normalize(_KEY_CONTEXT)}"
        x = near
    return _ratio_key(x.numerator, x.denominator)


def _number_key(a: Number) -> str:
    real, imaginary = _real_key(a[0]), _real_key(a[1])
    return real if imaginary == "0" else f"{real}+{imaginary}i"


# ---------------------------------------------------------------------------------------------------------------------
# A tree's value
# ---------------------------------------------------------------------------------------------------------------------


class _Evaluator:
    """Structures become a Value of Values, expressions a number at each of two points."""

    def __init__(self):
        self.fuel = FUEL
        self.point, self.sign = 0, 0  # at which of the points variables are; which of ± is read, 0 where none may be

    def spend(self, cost: int) -> None:
        self.fuel -= cost
        if self.fuel < 0:
            raise _Unsupported

    def bounded(self, a: Number) -> Number:
        bits = max(_bits(a[0]), _bits(a[1]))
        if bits > MAX_BITS:
            raise _Unsupported
        self.spend((1 + (bits >> 5)) * (4 if a[1] else 1))
        return a

    def value(self, node: Node) -> Value:
        kind, *parts = node
        if kind in ("list", "union"):
            return _list([self.value(part) for part in (parts if kind == "list" else parts[1:])])
        if kind in ("seq", "row", "matrix"):
            brackets = parts.pop(0) if kind == "seq" else kind
            items = tuple(self.value(part) for part in parts)
            return Value(f"{brackets}({','.join(item.key for item in items)})", brackets, items, _relations(items))
        if kind == "relation":
            return self.relation(parts[0], parts[1:])
        if kind == "ratio":
            return Value(":".join(self.key(("mul", part, ("inverse", parts[-1]))) for part in parts[1:]))
        if kind == "neg" and parts[0][0] == "percent":
            kind, parts = "percent", [("neg", parts[0][1])]
        if kind == "percent":
            return Value(self.key(parts[0]), percent=self.key(("mul", parts[0], ("num", Fraction(1, 100)))))
        if not _contains(node, ("pm", "mp")):
            return Value(self.key(node))
        both = []
        for self.sign in (1, -1):
            both.append(Value(self.key(node)))
        self.sign = 0
        return _list(both)

    def key(self, node: Node) -> str:
        keys = [_number_key(self.number_at(node, point)) for point in range(1 + _contains(node, _NAMES))]
        return keys[0] if len(set(keys)) == 1 else "|".join(keys)

    def number_at(self, node: Node, point: int) -> Number:
        self.spend(20)
        self.point = point
        return self.number(node)

    def number(self, node: Node) -> Number:
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
        if kind not in ("add", "mul", "inverse", "pow", "neg", "pm", "mp", "factorial", "binom"):
            raise _Unsupported
        operands = [self.number(operand) for operand in node[1:]]
        a, *others = operands
        if kind in ("add", "mul"):
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
            raise _Unsupported
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
            if not _contains(left, _NAMES):
                return self.value(right)
            relation = "=" + self.direction(left, right)
            value = self.value(right) if _is_name(left) else Value(relation)
            return value._replace(relation=relation)
        if set(operators) <= {">", "\\ge"}:
            operators = tuple("<" if operator == ">" else "\\le" for operator in reversed(operators))
            parts = parts[::-1]
        if not set(operators) <= {"<", "\\le"}:
            raise _Unsupported
        return self.inequality([operator == "<" for operator in operators], parts)

    def inequality(self, strict: list[bool], parts: list[Node]) -> Value:
        infinity = _CONSTANTS["\\infty"]
        if len(parts) == 3 and _is_name(parts[1]):
            (low, name, high), relation = parts, ""
        elif len(parts) == 2:
            (left, right), name = parts, ""
            relation = "<="[strict[0]] + self.direction(left, right, signed=True)
            if _is_name(left) and not _contains(right, _NAMES):
                low, high, strict = ("neg", infinity), right, [True, *strict]
            elif _is_name(right) and not _contains(left, _NAMES):
                low, high, strict = left, infinity, [*strict, True]
            else:
                return Value(relation, relation=relation)
        else:
            raise _Unsupported
        interval = self.value(("seq", "[("[strict[0]] + "])"[strict[1]], low, high))
        return interval._replace(relation=relation or f"{name}{interval.key}")

    def direction(self, left: Node, right: Node, signed: bool = False) -> str:
        """left - right up to a factor (a positive one if signed): its values at two points relative to that at a third.
        Where left and right are not numbers, (x,y)=(1,2) or x=1±2, what they are."""
        if _contains(left, ("seq", "ratio")) or _contains(right, ("pm", "seq", "list", "matrix")):
            return f"{left}={self.value(right).key}"
        difference = ("add", left, ("neg", right))
        first, *others = (self.number_at(difference, point) for point in range(3))
        if signed and first[1]:
            raise _Unsupported
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
    """Of equations: k=45, n=2 is not n=45, k=2."""
    relations = [item.relation for item in items if item.relation]
    return ";".join(sorted(relations)) if items and len(relations) == len(items) else None


def _coordinate(name: str, point: int) -> Fraction:
    """Where a variable is at evaluation point 0, 1, 2: between 1 and 3, at point 1 negative, so that |x| is not x."""
    x = 1 + Fraction(zlib.crc32(f"{point}{name}".encode("utf-8", "replace")) | 1, 1 << 31)
    return -x if point == 1 else x


def _small_integer(a: Number) -> int:
    if not _is_integer(a) or not 0 <= a[0] <= 500:
        raise _Unsupported
    return int(a[0])


def _contains(node: Node, kinds: tuple[str, ...]) -> bool:
    return node[0] in kinds or any(isinstance(child, tuple) and _contains(child, kinds) for child in node[1:])


def _is_name(node: Node) -> bool:
    """What an equation may define: x, f(x), AB, (p,q,r), A:B."""
    kind, *parts = node
    if kind in ("seq", "ratio"):
        return all(_is_name(part) for part in parts[1:])
    return kind == "var" or (kind == "mul" and parts[0][0] == "var" and all(_is_name(part) for part in parts))
