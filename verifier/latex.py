r"""Answers as text → a tree: the tokens and the recursive-descent parser of verifier/.

    Parser(tokenize(tidy(r"\frac12"))).answer()        # ("mul", ("num", 1), ("inverse", ("num", 2)))

No regular expression here can backtrack more than linearly; parsing is bounded by the length of the text and MAX_DEPTH.
"""

import re
from collections.abc import Callable
from fractions import Fraction
from typing import NamedTuple

MAX_DEPTH = 20  # of nested brackets; a level costs up to twelve of the interpreter's thousand frames
MAX_DIGITS = 600  # of a number literal: below the lowest limit that CPython lets int() be set to

# ---------------------------------------------------------------------------------------------------------------------
# Text to tokens
# ---------------------------------------------------------------------------------------------------------------------

_UNICODE = str.maketrans(
    {
        "−": "-", "–": "-", "×": "*", "·": "*", "⋅": "*", "÷": "/", "∕": "/", "π": "\\pi ", "∞": "\\infty ", "√": " sqrt ",
        "≤": "\\le ", "≥": "\\ge ", "≠": "\\ne ", "≈": "\\approx ", "∪": "\\cup ", "∈": "\\in ", "±": "\\pm ",
        "∅": "\\emptyset ", "½": "\\frac12 ", "⅓": "\\frac13 ", "⅔": "\\frac23 ", "¼": "\\frac14 ", "¾": "\\frac34 ",
        **{sign: f"^{i}" for i, sign in enumerate("¹²³⁴⁵⁶⁷⁸⁹", 1)}, "⁄": "/", "‐": "-", "‑": "-",
        **{sign: f"\\frac{value} " for sign, value in zip("⅕⅖⅗⅘⅙⅚⅛⅜⅝⅞", (15, 25, 35, 45, 16, 56, 18, 38, 58, 78), strict=True)},
        "\u200b": "", "\u202f": " ", "\u2009": " ", "θ": "\\theta ", "\u00a0": " ",
    }
)  # fmt: skip
_TRAILING = ".,;:\\ \n"
# The comma of a thousand in TeX: 1{,}234 and 1,\!234
_HARD_SEPARATOR = re.compile(r"(?<=[0-9])(?:,\\!|\{,\}|\\,)(?=[0-9]{3}(?![0-9]))")
_ROW_SPACE = re.compile(r"\\\\\s?\[[0-9.]{1,6}\s?(?:pt|mm|cm|em|ex)\]")  # of a matrix: \\[2mm]
_ALL_WORDS = re.compile(
    r"(?:\\(?:text[a-z]{0,6}|[mh]box|math(?:rm|bf|it|sf)|operatorname) ?\{ ?)?([A-Za-z](?:[A-Za-z ~]|\\ )*[A-Za-z])[. ]{0,2}\}?"
)
_TEX_SPACE = re.compile(r"\\(?:text[a-z]{0,6}|mathrm|mbox) ?\{|\\[!,; ]|[{}~]")
_TIME = re.compile(r" *0?([0-9]{1,2})(?: *: *([0-5][0-9]) *| +|(?=[AaPp]\.))([AaPp])\.? ?[Mm]\.? *")
_PRODUCT = re.compile(r"(?!(?:yes|no|odd|one|two|six|ten|all)$)[a-z ]{1,3}|infinity")  # no words: xy equals yx
_TOKEN = re.compile(
    r"""\\(?:text[a-z]{0,6}|[mh]box)\s*\{(?P<text>[^{}]*)\}
      |\\(?:math(?:rm|bf|it|sf)|operatorname)\s*\{(?P<font>[A-Za-z~\s]*)\}
      |(?P<skip>\s+|\\[!,;:>\ ()\[\]]|\\?\$|[~£€]|\\(?:left|right)(?![A-Za-z])\s*\.?
          |\\(?:[bB]igg?[lrm]?|q?quad|math(?:rm|bf|it|sf|bb)|operatorname|angle|triangle|rm|bf)(?![A-Za-z]))
      |(?P<degree>(?:\^\s*(?:\\circ(?![A-Za-z])|\{\s*\\circ\s*\})|\\degree(?![A-Za-z])|°)(?:\s*[CF](?![A-Za-z]))?)
      |(?P<environment>\\(?:begin|end)\s*\{[A-Za-z]{0,9}(?:matrix|array)\}(?:\s*\{[clr|]*\})?)
      |_\s*(?:\{(?P<group>[^{}]*)\}|(?P<index>[0-9A-Za-z]))
      |(?P<mixed>[0-9]{1,30}(?:[\s~]|\\[,;:!\ ])*\\[dtc]?frac\s*(?:\{\s*[0-9]{1,30}\s*\}\s*\{\s*[0-9]{1,30}\s*\}|[0-9]\s*[0-9])
          |[0-9]{1,30}(?:[\s~]|\\[,;:!\ ])+[0-9]{1,30}\s?/\s?[0-9]{1,30})
      |(?P<number>[0-9]*\.[0-9]*\\(?:overline|bar)\{[0-9]+\}|(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3}(?![0-9A-Za-z]))?)
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
    "cm mm km ft in kg mg lb lbs mi yd hr hrs min mins sec secs mph oz mL ml sq cu per day usd USD "
    "cup men gal yrs pts ton yen kWh Hz".split()
)
# Words after a number that are no units. The first multiply; with the second an answer is compared as a string
_MAGNITUDES = {"dozen": 12, "hundred": 100, "thousand": 1000, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_VALUES = frozenset(
    "halves thirds fourths fifths sixths sevenths eighths ninths tenths hundredths thousandths factorial squared cubed "
    "january february march april june july august september october november december".split()
)
_FUNCTIONS = frozenset("sin cos tan cot sec csc arctan ln log exp abs".split())
_GREEK = frozenset(
    "alpha beta gamma delta epsilon varepsilon zeta eta theta iota kappa lambda mu nu xi rho sigma tau phi varphi chi "
    "psi omega Gamma Delta Theta Lambda Xi Sigma Phi Psi Omega ell".split()
)


class _Token(NamedTuple):
    kind: str  # number, mixed (2\frac13), var, word (a unit), index (the 1 of a_1), function, op, end
    text: str


_COMMA, _END = _Token("op", ","), _Token("end", "")
# After one of these a number and a fraction are a product: (x)2\frac13
_NO_MIXED_AFTER = frozenset((")", "]", "}", "|", "^", "!", "°", "\\frac", "\\sqrt", "\\sqrt(", "\\pi"))


def plain_words(text: str) -> str | None:
    """The words, if the tidied text is nothing else: ACF is not CAF, but xy may be yx and is left to the parser."""
    words = _ALL_WORDS.fullmatch(text)
    return words[1] if words and not _PRODUCT.fullmatch(words[1]) else None


def clock(text: str) -> tuple[str, str, str] | None:
    r"""(hour, minute, "a" or "p") of a time of day: 4:30 p.m., 9\text{ AM}. None for anything else, such as 9 or 9am: 9·a·m."""
    found = _TIME.fullmatch(_TEX_SPACE.sub(" ", text))
    return (found[1], found[2] or "00", found[3].lower()) if found else None


def tidy(text: str) -> str:
    """The text without what means nothing: signs in Unicode become TeX, and full stops, dollars and a first "=" go."""
    text = text.translate(_UNICODE).replace("\\displaystyle", "").strip()
    more = "..." * text.endswith(("...", "…"))
    text = text.rstrip(_TRAILING + "…")
    text = text.removeprefix("=").removeprefix("\\approx")
    if "\\begin" not in text:
        text = text.replace("\\\\", "\\")  # escaped once too often; in a matrix it ends a row
    text = _ROW_SPACE.sub(r"\\\\", text)
    return _HARD_SEPARATOR.sub("", text.strip("$").strip().rstrip(_TRAILING)) + more


def tokenize(text: str) -> list[_Token]:
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
            tokens.extend(tokenize(match["font"]))
        elif kind == "degree":
            tokens.append(_Token("op", "°"))
        elif kind == "environment":
            tokens.append(_Token("op", re.sub(r"\{[clr|]*\}$|\s", "", piece)))
        elif kind in ("group", "index"):
            tokens.append(_Token("index", re.sub(r"\s", "", match[kind])))
        elif kind == "letters":
            apart = match.start() == 0 or not text[match.start() - 1].isalnum()
            tokens.extend(_letter_tokens(piece, apart, tokens))
        elif kind == "other":
            piece = _SAME_OPERATOR.get(piece, piece)
            depth += (piece in ("(", "[", "\\{")) - (piece in (")", "]", "\\}"))
            kind = "function" if piece[1:] in _FUNCTIONS else "var" if piece[1:] in _GREEK else "op"
            tokens.append(_Token(kind, piece if kind == "op" else piece[1:]))
    # "3, and 5" has one separator
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
        first, _, rest = content.casefold().partition(" ")  # million dollars
        if first in _MAGNITUDES and rest.strip():
            return [_Token("word", first), _Token("word", rest.strip())]
        return [_Token("word", content.casefold() if len(content) > 1 else content)]
    return tokenize(content)


def _letter_tokens(run: str, apart: bool, before: list[_Token]) -> list[_Token]:
    r"""Letters outside \text: a function, a spelled-out operator, a unit or word, or a product of variables."""
    words = 0  # how many words stand before it
    while words < len(before) and before[-1 - words].kind == "word":
        words += 1
    counted = words < len(before) and before[-1 - words].kind in ("number", "mixed")
    if run in _FUNCTIONS:
        return [_Token("function", run)]
    if run.casefold() in _SPELLED:
        return [_Token("op", _SPELLED[run.casefold()])]
    if run in _GREEK:
        return [_Token("var", run)]
    unit = run in _UNITS and (counted or run not in ("hr", "mg"))
    phrase = counted and apart and (run == "a" or run.islower() and len(run) > 1) and (words or run in ("of", "an"))
    if unit or phrase or (apart and len(run) > 3):  # phrase: 12 years old, 10 pages a day
        return [_Token("word", run.casefold())]
    return [_Token("var", letter) for letter in run]


# ---------------------------------------------------------------------------------------------------------------------
# Tokens to a tree
# ---------------------------------------------------------------------------------------------------------------------


class Unsupported(Exception):
    """The parser does not know this, or it would grow past a limit: compare as strings."""


# A tree is a tuple (kind, operand, ...). Expressions:
#     ("num", Fraction)  ("var", name)  ("const", "pi", "e" or "i")
#     ("add", x, ...)  ("mul", x, ...)  ("neg", x)  ("inverse", x)  ("pow", x, y)  ("pm", x)  ("mp", x): ± and ∓
#     ("percent", x)  ("scaled", x, million)  ("factorial", x)  ("binom", n, k)  ("function", name, x)
# Structures:
#     ("list", x, ...)  ("seq", "(]", x, ...)  ("matrix", ("row", x, ...), ...)  ("determinant", ...)
#     ("relation", operators, x, ...)  ("union", operators, x, ...)  ("ratio", operators, x, ...)
Node = tuple

NAMES = ("var",)  # the kinds of node whose value is not known
CONSTANTS = {"\\pi": ("const", "pi"), "\\infty": ("var", "infinity"), "\\emptyset": ("list",)}
_HALF = ("num", Fraction(1, 2))
_SIGNS = {"-": "neg", "\\pm": "pm", "\\mp": "mp"}
# Operators that join any number of sides (a = b = c), the loosest first
_CHAINS = (
    ("relation", ("=", "<", ">", "\\le", "\\ge", "\\ne", "\\approx", "\\in")),
    ("union", ("\\cup",)),
    ("ratio", (":",)),
)
# What may close a bracket: "(1, 2]" is an interval
_CLOSING = {"(": (")", "]"), "[": (")", "]"), "\\{": ("\\}",), "{": ("}",), "\\langle": ("\\rangle",)}
# What may begin a factor that no sign of multiplication precedes
_ATOMS = frozenset((*_CLOSING, "|", "\\frac", "\\sqrt", "\\sqrt(", "\\binom", "\\pi", "\\infty"))


class Parser:
    r"""Recursive descent, a method for each rule; Unsupported for text that fits none:

    items:  chain , chain ...
    chain:  sum = sum < sum ..., for the operators of _CHAINS, the loosest first
    sum:    ± term + term - term %
    term:   power * power / power power unit
    power:  atom ! ° ^power                       atom: a number, a name, a bracket, a command with its arguments"""

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
            raise Unsupported
        return found

    def answer(self) -> Node:
        items = self.items()
        if self.at < len(self.tokens):
            raise Unsupported
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
            elif kind == "word" and text in _MAGNITUDES:  # 3 million
                self.at += 1
                factors = [("scaled", ("mul", *factors), ("num", Fraction(_MAGNITUDES[text])))]
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
        """Words after a value: 5 cm^2, 10 miles per hour, 60 km/h. Unsupported if they are part of it: 2 fifths, 20 June."""
        if self.peek().text in _VALUES and self.at and self.tokens[self.at - 1].kind in ("number", "mixed"):
            raise Unsupported
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
                raise Unsupported
            else:
                node = ("factorial", node)
        return ("pow", node, self.exponent()) if self.take("^") else node

    def exponent(self) -> Node:
        return self.argument() if self.peek().text == "{" else self.nested(self.signed)

    def nested(self, parse: Callable[[], Node]) -> Node:
        self.depth += 1
        if self.depth > MAX_DEPTH:
            raise Unsupported
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
            raise Unsupported
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
        if text in CONSTANTS:
            return CONSTANTS[text]
        if text.startswith("\\begin"):
            return self.matrix(text[6:])
        raise Unsupported

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
            raise Unsupported  # the inverse function or the reciprocal
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


def _literal(text: str) -> Fraction:
    r"""The value of a number token: "12", "1.5e3", "0.1\overline{6}"."""
    if len(text) > MAX_DIGITS:
        raise Unsupported
    digits, mark, period = text.replace("\\bar{", "\\overline{").rstrip("}").partition("\\overline{")
    value = Fraction(digits + "0" if mark else digits)
    if mark:
        value += Fraction(int(period), (10 ** len(period) - 1) * 10 ** len(digits.partition(".")[2]))
    return value
