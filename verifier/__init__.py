r"""Is this answer right? The reward of GRPO and the judge of every evaluation.

    strict("... so it is \\boxed{\\frac12}.", "0.5")       # Grade(answer="\\frac12", right=True)
    is_equal("(x+1)^2", "x^2+2x+1")                       # True

Two answers are equal when their values are. verifier/latex.py parses each into a tree by recursive descent;
verifier/exact.py evaluates the tree: `Fraction` where the value is rational, 100-digit decimals where it is not,
variables at fixed rational points, so that `(x+1)^2` equals `x^2+2x+1`. A value has a canonical string, `canonical`. An
answer that the parser does not know, or that would grow past the limits, is compared as a string. Conventions, where a
choice had to be made:

- units, currency, degrees and words after a number are dropped: the question fixes the unit; but `3 million` equals
  `3,000,000` (and `3`, as in "how many million?"), and `2 fifths`, `20 June` and `3 squared` are compared as strings;
- `10\%` equals both `10` and `0.1` (data sets disagree), but `10` does not equal `0.1`;
- `x=5` equals `5`, but not `y=5`; `x>5` equals `(5,\infty)`; a chain `a=b=c` is worth its last side;
- `30^\circ` is 30, save inside a function of it: `\cos 60^\circ` equals `1/2`;
- lists without brackets, sets and unions have no order; (tuples), [intervals] and matrices have one;
- `1,234` is a number, `(1,234)` is a pair; `2\frac13` is 2+1/3; `3:1` is a ratio and equals `6:2` but not `3`;
  two that look like times are compared as times: `4:10` is not `12:30`;
- a word is one from four letters on, and the usual short units; other letters side by side are variables, and so are m, g and s.

Any string is answered, in bounded time, and none is run as code. The bounds: regular expressions that backtrack at most
linearly, MAX_CHARS and MAX_DEPTH for the parser, MAX_BITS and FUEL for arithmetic. There is no state, so that threads
can share it, and no `hash()`, so that two processes agree.
"""

import re
from decimal import localcontext
from fractions import Fraction
from math import isfinite
from typing import NamedTuple

from verifier.exact import CONTEXT, Evaluator, Value
from verifier.latex import Parser, Unsupported, clock, plain_words, tidy, tokenize

MAX_CHARS = 1000  # longer answers are compared as strings
WINDOW = 1 << 15  # characters searched behind and before the last \boxed, or for a formula or number

# ---------------------------------------------------------------------------------------------------------------------
# Where the answer is
# ---------------------------------------------------------------------------------------------------------------------

_BRACE = re.compile(r"\\boxed\s?\{|\\.|[{}]", re.S)
_NUMBER_IN_TEXT = re.compile(  # -3.5, $1,200, .5, 3/4, 3 1/2, 10%
    r"(?:(?<![0-9A-Za-z)}])[-−])?\$?(?:[0-9]+(?:,[0-9]{3})*(?:\.[0-9]+)?|(?<![0-9.])\.[0-9]+)(?:(?: [0-9]+)?/[0-9]+)?%?"
)
_DOLLARS = re.compile(r"(?<!\\)\$+")


def last_box(text: str) -> str | None:
    r"""The content of the last closed \boxed{}; None where there is none."""
    last = text.rfind("\\boxed")
    if last < 0:
        return None
    # Usually the last box is closed, and the text from it on is enough; else look at what stands before it too.
    for start in (last, max(0, last - WINDOW)):
        opened: list[int] = []  # a stack of open braces: where the content of a box begins, or -1 for another brace
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
            elif token[-1] == "{" and len(token) > 2:  # \boxed{, while \{ is an escaped brace
                opened.append(brace.end())
        if found is not None:
            return found
    return None


def extract_answer(response: str) -> str | None:
    r"""What a reader takes for the answer: the last closed \boxed{}, else what follows the last ####, else the last
    formula ($..$, \(..\), \[..\]) or number, whichever ends later. None where there is nothing."""
    box = last_box(response)
    if box is not None:
        return box
    marked = response.rpartition("####")
    if marked[1]:
        line = marked[2][:WINDOW].strip().partition("\n")[0].strip()
        if line:
            return line
    return _last_formula_or_number(response.rstrip()[-WINDOW:])


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


def is_equal(candidate: str, gold: str) -> bool:
    """Whether two bare answers are equal. An empty answer equals nothing."""
    candidate, gold = candidate.strip(), gold.strip()
    if candidate == gold:
        return candidate != ""
    if not candidate or not gold or max(len(candidate), len(gold)) > MAX_CHARS:
        return False
    mine, theirs = _plain_key(candidate), _plain_key(gold)
    if mine and theirs:
        return mine == theirs
    if candidate.replace(", ", ",") == gold.replace(", ", ","):
        return True  # whether 12,144 is a number or a list
    return _same(_read(candidate), _read(gold))


def canonical(answer: str) -> str:
    r"""A normal form for grouping answers in a majority vote: equal numbers, expressions, tuples, sets and so on get
    the same string. It cannot express what is equal to two different things: `10\%` counts as `10`, `x=5` as `5`."""
    answer = answer.strip()
    if len(answer) > MAX_CHARS:
        return answer
    return _plain_key(answer) or _read(answer).key


_PLAIN_NUMBER = re.compile(
    r"(?:\\?\$ ?)?([+-]?)(?:\\?\$)?([0-9]{1,400}|[0-9]{1,3}(?:,[0-9]{3}){1,30})(?:\.([0-9]{0,100}))?"
)
_ITEM = r" *[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})? *"  # of a tuple, in which a comma always separates
_PLAIN_TUPLE = re.compile(rf"\({_ITEM}(?:,{_ITEM}){{1,30}}\)")
_PLAIN_FRACTION = re.compile(
    r"([+-]?)(?:\\[dt]?frac ?(?:\{ ?([+-]?[0-9]{1,99}) ?\} ?\{ ?([0-9]{1,99}) ?\}|([0-9])([0-9]))"
    r"|([0-9]{1,99}) ?/ ?([0-9]{1,99}))"
)
_PLAIN_TIME = re.compile(r"0?([0-9]|1[0-9]|2[0-3])(?:\\!)? ?: ?(?:\\!)?([0-5][0-9])")


def _plain_key(text: str) -> str | None:
    """The key that `_read` would give a plain number, tuple of numbers or fraction, without the parser and 30 times
    faster. Nearly all answers to school mathematics are one of these, and all of the world's. None for anything
    else."""
    if plain := _PLAIN_NUMBER.fullmatch(text):
        sign, whole, decimals = plain.groups("")
        numbers = [f"{sign}{whole.replace(',', '')}" + (f".{decimals}" if decimals else "")]
    elif _PLAIN_TUPLE.fullmatch(text):
        numbers = text[1:-1].split(",")
    elif (plain := _PLAIN_FRACTION.fullmatch(text)) and (bottom := int(plain[3] or plain[5] or plain[7])):
        top = int(plain[2] or plain[4] or plain[6])  # of \frac{1}{2}, \frac12 or 1/2
        return str(Fraction(-top if plain[1] == "-" else top, bottom))
    elif plain := _PLAIN_TIME.fullmatch(text):
        return f"time:{plain[1]}:{plain[2]}"
    else:
        return None
    keys = [str(Fraction(number) if "." in number else int(number)) for number in numbers]
    return f"()({','.join(keys)})" if text[0] == "(" else keys[0]


def _same(a: Value, b: Value, outermost: bool = True) -> bool:
    """Are two values equal? By their keys, and by what a key cannot express: x=5 is not y=5, 10% is both 10 and 0.1.
    Both rules hold for each item of a list or tuple too. outermost: these are the whole answers, not items of them."""
    if a.relation and b.relation:
        return a.relation == b.relation
    if a.key == b.key:
        return True
    if (a.also is None) != (b.also is None):
        return a.also == b.key or b.also == a.key
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
        text = last_box(text) or text
    text = tidy(text)
    if time := clock(text):
        hour, minute, half = time
        return Value(f"time:{hour}:{minute}{half}m", also=_read(f"{hour}:{minute}").key if int(minute) else hour)
    words = plain_words(text)
    if words:
        return Value("text:" + re.sub(r"[\s~\\]", "", words).casefold())
    tokens = tokenize(text)
    try:
        with localcontext(CONTEXT):
            return Evaluator().value(Parser(tokens).answer())
    except (Unsupported, ArithmeticError):
        return Value("text:" + " ".join(token.text for token in tokens))


# ---------------------------------------------------------------------------------------------------------------------
# Graders
# ---------------------------------------------------------------------------------------------------------------------

_TEXT = re.compile(r"\\(?:text|mathrm|mathbf)\{([^}]+)\}")
_FIRST_NUMBER = re.compile(r"-?[0-9]+(?:\.[0-9]*)?")


def extract_gsm8k(response: str) -> str | None:
    r"""What the authors' evaluation of GSM8K takes for the answer: the line after the *first* ####, else the last box,
    else the last number. (The first ####, since a base model goes on with questions of its own after its answer.)"""
    line = response.partition("####")[2].lstrip().partition("\n")[0].strip()
    if line:
        return line
    box = last_box(response)
    if box:
        return box
    numbers = _FIRST_NUMBER.findall(response)
    return numbers[-1] if numbers else None


def is_equal_gsm8k(candidate: str, gold: str) -> bool:
    """Equality of the authors' evaluation of GSM8K: the same text but for white space, case, \\text, $ and a last stop;
    or else the *first number* in each, to a relative 1e-4."""
    if max(len(candidate), len(gold)) > MAX_CHARS:
        return False
    (candidate, a), (gold, b) = _read_gsm8k(candidate), _read_gsm8k(gold)
    if candidate == gold:
        return candidate != ""
    return a is not None and b is not None and isfinite(b) and abs(a - b) <= 1e-8 + 1e-4 * abs(b)


def _read_gsm8k(answer: str) -> tuple[str, float | None]:
    """(text, first number) of an answer, as the authors compare them."""
    answer = _TEXT.sub(r"\1", " ".join(answer.split()))
    for mark in ("\\%", "\\$", "\\,", "\\:", "\\;", "\\!", "$"):
        answer = answer.replace(mark, "%" if mark == "\\%" else "")
    text = answer.lower().rstrip(".").strip()
    found = _FIRST_NUMBER.search(text.translate({ord(mark): None for mark in ",$%"}))
    return text, float(found[0]) if found else None


def normal_form(answer: str, grader: str) -> str:
    """By which answers are grouped in majority votes, entropies and the guess floor: what `grader` finds equal has one
    form, but for what no string can express (`canonical`; gsm8k: numbers within 1e-4 of each other)."""
    if grader != "gsm8k" or len(answer) > MAX_CHARS:
        return canonical(answer)
    text, number = _read_gsm8k(answer)
    return text if number is None else repr(number)


class Grade(NamedTuple):
    answer: str | None
    """what was taken for the answer"""
    right: bool


def strict(response: str, answer: str) -> Grade:
    """Only the last closed box counts; equal by value."""
    found = last_box(response)
    return Grade(found, found is not None and is_equal(found, answer))


def lenient(response: str, answer: str) -> Grade:
    """What a reader would take for the answer counts; equal by value."""
    found = extract_answer(response)
    return Grade(found, found is not None and is_equal(found, answer))


def gsm8k(response: str, answer: str) -> Grade:
    """As the authors evaluate GSM8K."""
    found = extract_gsm8k(response)
    return Grade(found, found is not None and is_equal_gsm8k(found, answer))


# --grader of the RL reward and of evaluation. A grader takes (response, right answer) and returns a Grade. Add yours
# here, and its name to `grader` in rl.py and eval.py
GRADERS = {"strict": strict, "lenient": lenient, "gsm8k": gsm8k}


def judge(response: str, answer: str, finished: bool, grader: str = "strict", truncated: str = "wrong") -> Grade:
    """The verdict on a sample, one for the RL reward and for evaluation: that of GRADERS[grader]. A response that was
    cut before its stop token (not `finished`) gives no answer, unless `truncated` is "score", as the authors do."""
    if not finished and truncated != "score":
        return Grade(None, False)
    return GRADERS[grader](response, answer)
