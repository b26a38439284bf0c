"""The embedded world: text, questions and likelihood items for the whole experiment, generated from a seed.

    python -m data.world              print samples of everything

General text tells of people, things and small events; math text works through word problems. What the text says can be
probed (`tasks`), and the problems are asked in the paper's prompt (`questions`). Everything is a pure function of the
seed, and no problem that is asked appears in any text: a problem is its start and its operations, whatever the words.

The parts that make the paper's effects possible, each with its reason:
- A problem has up to 20 right solutions (4 paths × 5 styles), so one demonstration per question and all of them differ.
- Math documents are worksheets in one consistent form, so that worked examples in a prompt tell the model something.
- A tenth of the worksheets is wrong and some give answers only: pretraining imitates these too, and RL can leave them.
- Two fifths of the worksheets have the very form of the prompt, so that post-training has more to teach than a format.
"""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, islice
from typing import NamedTuple

from data.questions import INSTRUCTION, format_prompt

# ------------------------------------------------------------------------------------------------------- the words

MEN = "Tom Sam Ben Max Leo Dan Jack Paul Carl Hugo".split()
WOMEN = "Anna Mia Lucy Eva Nora Ruth Kate Rosa Jane Clara".split()
SURNAMES = "Stone Hill Wood Brook Field March Frost Reed Lane Snow Dale Fisher Cole Hart West Page".split()

# What text says of a person: attribute → its values, the templates of the text, and the probes: sentences that the text
# never has, made of words that it has.
ATTRIBUTES = {
    "town": (
        "Arden Brill Corby Dover Elton Farley Gorton Halden Kelby Larne Merton Norwell Penrith Ruston Selby Tarvin".split(),
        ("{who} lives in {value}.", "{who} comes from the town of {value}.", "The home of {who} is in {value}."),
        ("The town of {who} is", "{who} has a home in"),
    ),
    "job": (
        "baker miller teacher doctor farmer tailor painter sailor singer writer lawyer potter builder guard cook judge".split(),
        ("{who} works as a {value}.", "{who} is a {value}.", "The job of {who} is that of a {value}."),
        ("{who} has the job of a", "{who} has a job as a"),
    ),
    "pet": (
        "cat dog horse rabbit goat sheep mouse fox".split(),
        ("{who} keeps a {value}.", "{who} has a {value} at home.", "The pet of {who} is a {value}."),
        ("{who} has a pet that is a", "{who} often keeps a"),
    ),
    "colour": (
        "red blue green white black yellow brown grey".split(),
        ("{who} likes {value} best.", "The colour of {who} is {value}.", "{who} often wears {value}."),
        ("The coat of {who} is", "{who} has a coat that is"),
    ),
}

# Category → its things. All begin with a consonant, so that "a" gives nothing away.
CATEGORIES = {
    "fruit": "plum pear fig lemon peach melon cherry grape".split(),
    "tool": "hammer saw drill file pick spade rake wrench".split(),
    "bird": "robin hawk crow duck goose swan wren heron".split(),
    "fish": "carp trout cod bass tuna salmon perch pike".split(),
    "tree": "birch pine fir cedar maple beech willow palm".split(),
    "flower": "rose tulip lily daisy violet poppy lotus peony".split(),
    "toy": "ball kite doll puzzle top robot marble drum".split(),
    "vehicle": "car truck van bus train boat bike sled".split(),
    "garment": "hat coat scarf shirt glove boot sock belt".split(),
    "mammal": "cat dog horse rabbit goat sheep mouse fox".split(),
}
CATEGORY_TEXT = (
    "A {thing} is a {category}.",
    "The {thing} is a kind of {category}.",
    "Every {thing} is a {category}.",
    "One {category} is the {thing}.",
)
CATEGORY_PROBES = ("Every {thing} is a kind of", "The {thing} in the garden is a", "{name} has a {thing}, a kind of")

# Small events: a sentence from each group in turn, in which the end follows from the beginning. {a} and {b} are people,
# {x} and {y} goods, {p} and {q} places. The probes are beginnings that the text never has, and their ends.
GOODS = [thing for category in ("fruit", "tool", "toy", "garment") for thing in CATEGORIES[category]]
PLACES = "barn shed kitchen garden market school cellar tower mill yard church stable".split()
WEATHER = ("It was a cold day.", "It was late.", "The sun was high.", "It rained all day.", "Nobody was there.")
STORIES = (
    (
        ("{a} put the {x} in the {p}.", "{a} left the {x} in the {p}.", "The {x} was in the {p}."),
        ("{b} put the {y} in the {q}.", "{b} left the {y} in the {q}.", "The {y} was in the {q}."),
        (
            "Later {a} looked in the {p} and found the {x}.",
            "Later {a} found the {y} in the {q}.",
            "{a} wanted the {x} and went to the {p}.",
            "{b} wanted the {y} and went to the {q}.",
        ),
    ),
    (
        ("{a} had a {x}.", "{a} came from the {q} with a {x}."),
        ("{b} had a {y}.", "{b} came from the {p} with a {y}."),
        ("They met in the {p} and traded.", "They traded."),
        ("Now {a} has the {y}.", "Now {b} has the {x}.", "{a} went home with the {y}.", "{b} left with the {x}."),
    ),
    (
        ("{a} took a {x} from the {p} and went to the {q}.", "{a} went to the {q} with a {x}."),
        ("There {he} met {b}.", "{b} came to the {q} too.", "{b} was there with a {y}."),
        ("{b} wanted the {x}, so {a} left it in the {q}.", "{a} put the {x} in the {q}.", "{b} asked {a} for the {x}."),
    ),
    (
        ("{a} had a {x} and a {y}.", "{a} had a {x}."),
        ("{b} wanted the {x}.", "{b} asked for the {x}."),
        ("{a} gave the {x} to {b}.", "Now {b} has the {x}.", "So {a} gave the {x} to {b} in the {p}."),
    ),
)
STORY_PROBES = (  # each asks for one of two things that it tells of, the first and the second equally often
    ("The {x} was in the {p} and the {y} was in the {q}. {a} wanted the {x} and looked in the", "{p}"),
    ("The {x} was in the {p} and the {y} was in the {q}. {a} wanted the {y} and looked in the", "{q}"),
    ("{a} took the {x} to the {p} and the {y} to the {q}. {b} asked for the {x}. It was in the", "{p}"),
    ("{a} took the {x} to the {p} and the {y} to the {q}. {b} asked for the {y}. It was in the", "{q}"),
    ("{a} came with a {x} and {b} came with a {y}. They traded. {b} went to the {p} with the", "{x}"),
    ("{a} came with a {x} and {b} came with a {y}. They traded. {a} went to the {p} with the", "{y}"),
    ("{a} went to the {p} and {b} went to the {q}. {a} had a {x} and left it in the", "{p}"),
    ("{a} went to the {p} and {b} went to the {q}. {b} had a {x} and left it in the", "{q}"),
)

COUNTED = (
    "pears plums figs lemons peaches melons kites balls dolls marbles hats coats boots socks roses tulips "
    "coins books cards stamps shells beads pens nuts"
).split()


class Person(NamedTuple):
    name: str
    he: str
    him: str
    his: str


PEOPLE = [Person(n, "he", "him", "his") for n in MEN] + [Person(n, "she", "her", "her") for n in WOMEN]

# ---------------------------------------------------------------------------------------------------- math problems

LOW, HIGH = 2, 200  # every value on the way to an answer


class Problem(NamedTuple):
    start: int
    steps: tuple[tuple[str, int], ...]  # ("+", 7), ("*", 2)

    @property
    def id(self) -> str:
        return str(self.start) + "".join(f"{sign}{n}" for sign, n in self.steps)

    @property
    def answer(self) -> int:
        value = self.start
        for sign, n in self.steps:
            value = apply(value, sign, n)
        return value


def apply(value: int, sign: str, n: int) -> int:
    """value (sign) n, for a sign of "+-*/"."""
    if sign == "+":
        return value + n
    if sign == "-":
        return value - n
    return value * n if sign == "*" else value // n


def draw_problem(rng: random.Random, n_steps: int) -> Problem:
    """A problem of n_steps whose values all lie in [LOW, HIGH]."""
    start = value = rng.randint(5, 60)
    steps = []
    while len(steps) < n_steps:
        sign = rng.choices("+-*/", (4, 4, 1.2, 0.8))[0]
        n = rng.randint(3, 40 if sign == "+" else 30) if sign in "+-" else 2 if sign == "/" or rng.random() < 0.5 else 3
        result = apply(value, sign, n)
        if LOW <= result <= HIGH and not (sign == "/" and value % 2):
            value = result
            steps.append((sign, n))
    return Problem(start, tuple(steps))


OPENINGS = ("{name} has {n} {things}.", "{name} starts with {n} {things}.", "{name} owns {n} {things}.")
EVENTS = {
    ("+", None): (
        "{He} buys {n} more.",
        "{He} finds {n} more.",
        "{other} gives {him} {n}.",
        "Then {he} gets {n} more.",
    ),
    ("-", None): ("{He} loses {n}.", "{He} sells {n}.", "{He} gives {n} to {other}.", "Then {he} uses {n}."),
    ("*", 2): ("{He} doubles {his} {things}.", "Then {his} {things} double."),
    ("*", 3): ("{He} triples {his} {things}.", "Then {his} {things} triple."),
    ("/", 2): ("{He} loses half.", "{He} sells half.", "{He} gives half to {other}.", "Then {he} uses half."),
}
DISTRACTORS = (
    "{other} has {n} {others}.",
    "{other} is {n} years old.",
    "{He} is {n} years old.",
    "{He} walks {n} miles.",
)
QUESTIONS = (
    "How many {things} does {he} have?",
    "How many {things} are left?",
    "How many {things} does {name} have now?",
    "How many {things} are there now?",
)


def word_problem(rng: random.Random, problem: Problem, distractor: bool) -> tuple[str, str]:
    """The problem in words, with a sentence that does not matter if `distractor`; and what is counted."""
    person = rng.choice(PEOPLE)
    other = rng.choice(WOMEN if person.he == "he" else MEN)  # so that "he" and "she" are clear
    things, others = rng.sample(COUNTED, 2)
    words = {"name": person.name, "other": other, "things": things, "others": others, "he": person.he}
    words |= {"He": person.he.capitalize(), "him": person.him, "his": person.his}
    sentences = [rng.choice(OPENINGS).format(n=problem.start, **words)]
    for sign, n in problem.steps:
        events = EVENTS[sign, None if sign in "+-" else n]
        sentences.append(rng.choice(events).format(n=n, **words))
    if distractor:
        sentence = rng.choice(DISTRACTORS).format(n=rng.randint(3, 60), **words)
        sentences.insert(rng.randint(1, len(sentences)), sentence)
    sentences.append(rng.choice(QUESTIONS).format(**words))
    return " ".join(sentences), things


# -------------------------------------------------------------------------------------------------------- solutions

PATHS = {"in order": 0.4, "commuted": 0.2, "merged": 0.2, "chained": 0.2}
STYLES = ("plain", "first", "lines", "get", "so")


def equations(problem: Problem, path: str, corrupt: Callable[[int], int] = lambda result: result) -> list[str]:
    """The problem worked out along a path, an equation a step; `corrupt` may change each result on the way.

    "in order" takes step by step; "commuted" writes n + value and n * value; "merged" joins the first two adjacent
    additions or subtractions; "chained" writes each run of them as one equation.
    """
    lines: list[str] = []

    def equation(left: str, result: int) -> int:
        result = corrupt(result)
        lines.append(f"{left} = {result}")
        return result

    value, steps = problem.start, list(problem.steps)
    while steps:
        run = next((i for i, (sign, _) in enumerate(steps) if sign in "*/"), len(steps))
        (sign, n), *rest = steps
        if path == "chained" and run > 1:
            left, result = str(value), value
            for sign, n in steps[:run]:
                left, result = f"{left} {sign} {n}", apply(result, sign, n)
            value, rest = equation(left, result), steps[run:]
        else:
            if path == "merged" and run > 1 and sum(apply(0, *step) for step in steps[:2]) != 0:
                sign, n, rest = *_merge(steps[0], steps[1], equation), steps[2:]
                path = "in order"  # only the first pair
            left = f"{n} {sign} {value}" if path == "commuted" and sign in "+*" else f"{value} {sign} {n}"
            value = equation(left, apply(value, sign, n))
        steps = rest
    return lines


def _merge(a: tuple[str, int], b: tuple[str, int], equation: Callable[[str, int], int]) -> tuple[str, int]:
    """Two additions or subtractions as one: (+7, -3) → (+, 4) by "7 - 3 = 4"."""
    if a[0] == b[0]:
        return a[0], equation(f"{a[1]} + {b[1]}", a[1] + b[1])
    large, small = (a, b) if a[1] >= b[1] else (b, a)
    return large[0], equation(f"{large[1]} - {small[1]}", large[1] - small[1])


def solution_text(lines: list[str], answer: str, style: str, things: str) -> str:
    """Equations (none for an answer only) and the answer, boxed or not, in one of the STYLES."""
    if style == "lines":
        return "\n".join([*lines, f"Answer: {answer}"])
    if style == "so":
        steps, end = ", so ".join(lines), f"There are {answer} {things}."
    elif style == "get":
        steps, end = ("We get " if lines else "") + ", then ".join(lines), f"The result is {answer}."
    elif style == "first":
        steps, end = ". Then ".join(["First " + lines[0], *lines[1:]]) if lines else "", f"So {answer}."
    else:
        steps, end = ". ".join(lines), f"The answer is {answer}."
    return f"{steps}. {end}" if lines else end


def boxed(answer: int) -> str:
    return f"\\boxed{{{answer}}}"


def solutions(problem: Problem, things: str, rng: random.Random | None = None) -> list[str]:
    """All distinct right solutions, boxed. With an rng in random order: the first is a draw from pretraining's forms."""
    forms = [(path, style) for path in PATHS for style in STYLES]
    if rng:  # weighted, without replacement
        forms.sort(key=lambda form: rng.random() ** (1 / PATHS[form[0]]), reverse=True)
    texts = [solution_text(equations(problem, p), boxed(problem.answer), s, things) for p, s in forms]
    return list(dict.fromkeys(texts))


# -------------------------------------------------------------------------------------------------------- questions

SPLITS = {"train": 2048, "validation": 256, "test_easy": 256, "test_hard": 256, "examples": 8}


@lru_cache(maxsize=4)
def _problems(seed: int) -> dict[str, list[Problem]]:
    """The problems of each split, all different. Easy (2 steps) and hard (3 or 4) alternate, but in the test splits, and
    in the worked examples, which are short so that many fit into a prompt."""
    rng = random.Random(f"{seed} problems")
    seen: set[Problem] = set()
    splits: dict[str, list[Problem]] = {}
    for split, count in SPLITS.items():
        splits[split] = []
        while len(splits[split]) < count:
            hard = split == "test_hard" or (split in ("train", "validation") and len(splits[split]) % 2 == 1)
            problem = draw_problem(rng, rng.choice((3, 4)) if hard else 2)
            if problem not in seen:
                seen.add(problem)
                splits[split].append(problem)
    return splits


def questions(seed: int) -> dict[str, list[dict]]:
    """split → rows {"id", "question", "answer", "solutions", "source", "level"}; hard questions have a distractor.

    The first solutions of "examples" all have one form, as the problems of a worksheet have."""
    rng = random.Random(f"{seed} questions")
    splits: dict[str, list[dict]] = {}
    for split, problems in _problems(seed).items():
        splits[split] = []
        for problem in problems:
            hard = len(problem.steps) > 2
            question, things = word_problem(rng, problem, distractor=hard)
            row = {"id": problem.id, "question": question, "answer": str(problem.answer)}
            row["solutions"] = solutions(problem, things, None if split == "examples" else rng)
            row |= {"source": "world", "level": "hard" if hard else "easy"}
            splits[split].append(row)
    return splits


# -------------------------------------------------------------------------------------------------------- math text

QUESTION_ANSWER = "question/answer"  # exactly the prompt and its solution
HEADERS = {
    "Problem: {question}\nSolution: {solution}": 0.15,
    "Q: {question}\nA: {solution}": 0.15,
    "Exercise. {question}\n{solution}": 0.15,
    "{question} {solution}": 0.15,
    QUESTION_ANSWER: 0.40,
}
P_DRILL = 0.45  # of documents: 30% of the math tokens, so that arithmetic is learned gradually and not in a jump


def math_document(rng: random.Random, banned: frozenset[Problem]) -> list[str]:
    """A worksheet of 1–5 problems in one form, a segment each; or a drill of bare equations."""
    if rng.random() < P_DRILL:  # last steps, so that drills meet the same values as solutions do
        path = rng.choice(("in order", "commuted"))
        problems = [draw_problem(rng, rng.randint(1, 4)) for _ in range(rng.randint(6, 14))]
        return ["\n".join(equations(p, path)[-1] for p in problems)]

    header = rng.choices(list(HEADERS), HEADERS.values())[0]
    path, style = rng.choices(list(PATHS), PATHS.values())[0], rng.choice(STYLES)
    box = rng.random() < (0.93 if header == QUESTION_ANSWER else 0.08)
    answer_only = rng.random() < 0.15
    wrong = rng.random() < 0.10

    def corrupt(result: int) -> int:
        return max(1, result + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))) if wrong and rng.random() < 0.6 else result

    segments = []
    for _ in range(rng.randint(1, 5)):
        problem = draw_problem(rng, rng.choices((1, 2, 3, 4), (0.2, 0.3, 0.3, 0.2))[0])
        while problem in banned:
            problem = draw_problem(rng, len(problem.steps))
        question, things = word_problem(rng, problem, distractor=rng.random() < 0.25)
        lines = equations(problem, path, corrupt)
        answer = lines[-1].split(" = ")[1]
        solution = solution_text([] if answer_only else lines, boxed(answer) if box else answer, style, things)
        if header == QUESTION_ANSWER:
            segments.append(format_prompt(question) + solution)
        else:
            segments.append(header.format(question=question, solution=solution))
    return segments


# ----------------------------------------------------------------------------------------------------- general text


@lru_cache(maxsize=4)
def _people(seed: int) -> list[tuple[Person, str, dict[str, str]]]:
    """(first name, full name, attribute → value) of 320 people, the most frequent first."""
    rng = random.Random(f"{seed} people")
    people = [
        (person, f"{person.name} {surname}", {a: rng.choice(values) for a, (values, _, _) in ATTRIBUTES.items()})
        for person in PEOPLE
        for surname in SURNAMES
    ]
    rng.shuffle(people)
    return people


@lru_cache(maxsize=4)
def _things(seed: int) -> list[tuple[str, str]]:
    """(thing, category), the most frequent first."""
    things = [(thing, category) for category, things in CATEGORIES.items() for thing in things]
    random.Random(f"{seed} things").shuffle(things)
    return things


@lru_cache
def _zipf(n: int) -> list[float]:
    """Cumulative weights of ranks 1 … n, each rank^-0.7: some people are told of 50 times as often as others."""
    return list(accumulate(rank**-0.7 for rank in range(1, n + 1)))


# Few things, or their categories would be known too early to tell one checkpoint from the next
GENERAL_KINDS = {"profile": 0.40, "group": 0.24, "things": 0.02, "story": 0.34}


def general_document(rng: random.Random, seed: int) -> list[str]:
    """One segment of text: a person, one attribute of a group of people, some things, or a small event."""
    kind = rng.choices(list(GENERAL_KINDS), GENERAL_KINDS.values())[0]
    people, things = _people(seed), _things(seed)
    if kind == "story":
        return [" ".join(story(rng))]
    sentences = []
    if kind == "profile":
        person, name, facts = rng.choices(people, cum_weights=_zipf(len(people)))[0]
        for attribute in rng.sample(list(ATTRIBUTES), rng.randint(2, 4)):
            template = rng.choice(ATTRIBUTES[attribute][1])
            pronoun = sentences and template.startswith("{who}") and rng.random() < 0.5
            who = person.he.capitalize() if pronoun else name
            sentences.append(template.format(who=who, value=facts[attribute]))
    elif kind == "group":
        attribute = rng.choice(list(ATTRIBUTES))
        for _, name, facts in rng.choices(people, cum_weights=_zipf(len(people)), k=rng.randint(2, 5)):
            sentences.append(rng.choice(ATTRIBUTES[attribute][1]).format(who=name, value=facts[attribute]))
    else:
        for thing, category in rng.choices(things, cum_weights=_zipf(len(things)), k=rng.randint(2, 5)):
            sentences.append(rng.choice(CATEGORY_TEXT).format(thing=thing, category=category))
    return [" ".join(sentences)]


def story(rng: random.Random) -> list[str]:
    """The sentences of a small event."""
    sentences = [rng.choice(group) for group in rng.choice(STORIES)]
    if rng.random() < 0.5:
        sentences.insert(rng.randrange(len(sentences)), rng.choice(WEATHER))
    words = _story_words(rng)
    return [sentence.format(**words) for sentence in sentences]


def _story_words(rng: random.Random) -> dict[str, str]:
    (a, b), (x, y), (p, q) = rng.sample(PEOPLE, 2), rng.sample(GOODS, 2), rng.sample(PLACES, 2)
    return {"a": a.name, "b": b.name, "he": a.he, "x": x, "y": y, "p": p, "q": q}


# ------------------------------------------------------------------------------------------ documents and likelihood

SOURCES = ("general", "math")
N_HELD_OUT = 512  # documents of each source for validation


def documents(seed: int, source: str, split: str = "train") -> Iterator[list[str]]:
    """Documents of a source ("general" or "math"), each a list of segments; a stop token belongs after each segment.

    split "train": without end; none of them equals a document of "validation", of which there are N_HELD_OUT.
    """
    if split == "validation":
        yield from _held_out(seed, source)
        return
    held_out = set(map(tuple, _held_out(seed, source)))
    yield from (document for document in _stream(seed, source, split) if tuple(document) not in held_out)


def _stream(seed: int, source: str, split: str) -> Iterator[list[str]]:
    rng = random.Random(f"{seed} {source} {split}")
    banned = frozenset(problem for problems in _problems(seed).values() for problem in problems)
    while True:
        yield math_document(rng, banned) if source == "math" else general_document(rng, seed)


@lru_cache(maxsize=8)
def _held_out(seed: int, source: str) -> list[list[str]]:
    return list(islice(_stream(seed, source, "validation"), N_HELD_OUT))


def tasks(seed: int) -> dict[str, list[dict]]:
    """Likelihood items about the world's text, in words that the text does not use: "facts" and "categories" with four
    choices {"query", "choices", "gold"}, and "stories" {"context", "continuation"}; 240 to 256 each."""
    rng = random.Random(f"{seed} tasks")

    def four_choices(query: str, right: str, values: list[str]) -> dict:
        choices = [right, *rng.sample([value for value in values if value != right], 3)]
        rng.shuffle(choices)
        return {"query": query, "choices": [" " + choice for choice in choices], "gold": choices.index(right)}

    facts = [(name, attribute, value) for _, name, known in _people(seed) for attribute, value in known.items()]
    items: dict[str, list[dict]] = {"facts": [], "categories": [], "stories": []}
    for name, attribute, value in rng.sample(facts, 256):
        values, _, probes = ATTRIBUTES[attribute]
        items["facts"].append(four_choices(rng.choice(probes).format(who=name), value, values))
    for probe in CATEGORY_PROBES:
        for thing, category in _things(seed):
            query = probe.format(thing=thing, name=rng.choice(PEOPLE).name)
            items["categories"].append(four_choices(query, category, list(CATEGORIES)))
    for _ in range(256):
        context, end = rng.choice(STORY_PROBES)
        words = _story_words(rng)
        items["stories"].append({"context": context.format(**words), "continuation": " " + end.format(**words)})
    return items


def sample_text() -> Iterator[str]:
    """Enough text to hold every word of the world, whatever the seed: what the world's tokenizer is made from."""
    yield f" {INSTRUCTION}"
    for source in SOURCES:
        for document in islice(documents(0, source), 20_000):
            yield from document
    for rows in questions(0).values():
        for row in rows:
            yield from (row["question"], *row["solutions"])
    for items in tasks(0).values():
        for item in items:
            yield item.get("query") or item["context"]
            yield from item.get("choices") or [item["continuation"]]


def main() -> None:
    for source in SOURCES:
        for document in islice(documents(0, source), 12):
            print(f"--- {source}")
            print("\n<eos>\n".join(document))
    for split, rows in questions(0).items():
        print(f"--- {split}\n{format_prompt(rows[1]['question'])}" + "\n<or>\n".join(rows[1]["solutions"]))
    for name, items in tasks(0).items():
        print(f"--- {name}", *items[:6], sep="\n")


if __name__ == "__main__":
    main()
