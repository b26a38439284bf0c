"""The embedded world: text, questions and likelihood items for the whole experiment, generated from a seed.

    python -m data.world              print samples of everything

General text tells of people, things, small events and of how many things a container holds; math text works through
word problems. What the text says can be probed (`tasks`), and the problems are asked in the paper's prompt
(`questions`). Everything is a pure function of the seed.

A problem tells of one or two people. What happens to the things of one of them is a *track*: a start ("Tom has 12
pears") and one or two operations ("He buys 5 more"). Problems of the same tracks are the same problem, whatever their
words and their order, and no problem that is asked appears in any text.

The parts that make the paper's effects possible, each with its reason:
- The answer is a pair, one number for each of two tracks, so that almost none is right by luck: the answer to another
  question is right in less than one case in a thousand, and the arithmetic is no harder for it.
- A problem has 5 or 10 right solutions (5 styles × 2 orders of an addition and a subtraction). Of the two orders one has
  a carry and a borrow and the other has neither; which one is the easy one depends on the numbers. So no path is best
  for all questions, and a model that has dropped a path has lost something.
- Half of the questions hinge on a fact that only the text tells ("a sack of boots"), frequent or rare (Zipf). The facts
  of the training questions, of the questions for trials, and of the test questions are disjoint: post-training cannot
  teach those that a test asks for, and an error can be tied to what the model knows. A solution states its fact.
- Math documents are worksheets in one consistent form, so that worked examples in a prompt tell the model something.
- A seventh of the worksheets has the very form of the prompt, so that post-training has more to teach than a format.
  Nearly all of these box the answer, and of the others, so that a box is not what it teaches.
- A tenth of the worksheets is wrong and some give answers only: pretraining imitates these too, and RL can leave them.
- A third of the math documents are drills, so that arithmetic is learned gradually and not in a jump.

The questions "explore_easy" and "explore_hard" are for trials, and "validation" for choices. "test_easy" and
"test_hard" are for a study whose protocol is written down: look at them once, at the end.
"""

import random
from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import accumulate, islice
from typing import NamedTuple

from data.prompt import INSTRUCTION, format_prompt
from data.words import (
    ATTRIBUTES,
    CATEGORIES,
    CATEGORY_PROBES,
    CATEGORY_TEXT,
    CONTAINERS,
    COUNTED,
    EVENTS,
    FACT_TEXT,
    GOODS,
    OPENINGS,
    PEOPLE,
    PLACES,
    QUESTIONS,
    STORIES,
    STORY_PROBES,
    SURNAMES,
    WEATHER,
    Person,
)

# ------------------------------------------------------------------------------------------------ facts with numbers


class Fact(NamedTuple):
    container: str
    things: str
    n: int

    @property
    def id(self) -> str:
        return f"{self.container} of {self.things}"


@lru_cache(maxsize=4)
def _facts(seed: int) -> list[Fact]:
    """How many things each container holds, the most frequent first: 288 facts of two digits."""
    rng = random.Random(f"{seed} holdings")
    facts = [Fact(container, things, rng.randint(20, 99)) for container in CONTAINERS for things in COUNTED]
    rng.shuffle(facts)
    return facts


def facts_of(seed: int, split: str) -> list[Fact]:
    """The 96 facts that the questions of a split hinge on. There are three disjoint sets: 0 for training and the worked
    examples, 1 for trials (validation, explore), 2 for test. In their order of frequency the facts go to the sets
    0 1 2 2 1 0 0 1 2 …, so that the text tells about equally often of each set."""
    group = 0 if split in ("train", "examples") else 2 if split.startswith("test") else 1
    return [fact for i, fact in enumerate(_facts(seed)) if i % 6 in (group, 5 - group)]


# ---------------------------------------------------------------------------------------------------- math problems

LOW, HIGH = 2, 200  # every value on the way to an answer, along every path
PATHS = (1, -1)  # a path: the steps of a track as told (1), or the last one first (-1); equally frequent


class Track(NamedTuple):
    start: int
    steps: tuple[tuple[str, int], ...]  # ("+", 7), ("*", 2)
    fact: Fact | None = None  # what the problem tells instead of the start

    @property
    def id(self) -> str:
        start = self.fact.id + " " if self.fact else str(self.start)
        return start + "".join(f"{sign}{n}" for sign, n in self.steps)

    @property
    def two_orders(self) -> bool:
        """Whether the steps can be taken in either order: an addition and a subtraction."""
        return {sign for sign, _ in self.steps} == {"+", "-"}

    def equations(self, path: int = 1, corrupt: Callable[[int], int] = lambda result: result) -> tuple[list[str], int]:
        """An equation a step, along one of the PATHS, and the last result; `corrupt` may change each result on the way."""
        lines, value = [], self.start
        for sign, n in self.steps[:: path if self.two_orders else 1]:  # path -1: the last step first
            result = corrupt(apply(value, sign, n))
            lines.append(f"{value} {sign} {n} = {result}")
            value = result
        return lines, value


class Problem(NamedTuple):
    """One or two tracks, each of one person's things. The answer is how many each has in the end, in this order."""

    tracks: tuple[Track, ...]

    @property
    def id(self) -> str:
        return " & ".join(sorted(track.id for track in self.tracks))  # either way round it is the same problem

    @property
    def answer(self) -> str:
        return answer_text([track.equations()[1] for track in self.tracks])


def answer_text(numbers: list[int]) -> str:
    """ "17" or "(17, 24)": a pair in brackets has an order."""
    return str(numbers[0]) if len(numbers) == 1 else f"({', '.join(map(str, numbers))})"


def apply(value: int, sign: str, n: int) -> int:
    """value (sign) n, for a sign of "+-*/"."""
    if sign == "+":
        return value + n
    if sign == "-":
        return value - n
    return value * n if sign == "*" else value // n


def carries(value: int, sign: str, n: int) -> bool:
    """Whether an addition carries from the ones to the tens, or a subtraction borrows."""
    return value % 10 + n % 10 > 9 if sign == "+" else value % 10 < n % 10


def draw_track(rng: random.Random, n_steps: int, fact: Fact | None = None) -> Track:
    """A track of 1 or 2 steps whose values all lie in [LOW, HIGH] along every path. After a fact there are additions
    and subtractions only.

    Two steps are never both additions or both subtractions (the carries would be the same in either order); of an
    addition and a subtraction, one order has a carry and a borrow, and the other has neither.
    """
    while True:
        # Draw a candidate
        signs = rng.choices("+-*/", (4, 4, 0, 0) if fact else (4, 4, 1.2, 0.8), k=n_steps)
        if signs in (["+", "+"], ["-", "-"]):
            continue
        start = fact.n if fact else rng.randint(5, 69)
        largest = {"+": 40, "-": 30}  # numbers added and taken away; else a half, the double or the triple
        steps = tuple(
            (s, rng.randint(3, largest[s]) if s in largest else 2 if s == "/" else rng.choice((2, 3))) for s in signs
        )
        track = Track(start, steps, fact)
        # Keep it if its values stay in bounds, and if its two orders, where it has two, differ in their effort
        effort = []  # carries and borrows of each order whose values stay in bounds
        for order in (steps, steps[::-1]) if track.two_orders else (steps,):
            value, hard = start, 0
            for sign, n in order:
                if sign == "/" and value % 2:
                    break
                hard += carries(value, sign, n)
                value = apply(value, sign, n)
                if not LOW <= value <= HIGH:
                    break
            else:
                effort.append(hard)
        if (len(effort) == 1 and not track.two_orders) or sorted(effort) == [0, 2]:
            return track


def draw_problem(rng: random.Random, n_steps: tuple[int, ...], fact: Fact | None = None) -> Problem:
    """A problem with a track for each number of steps; the fact, if there is one, is the start of any one of them."""
    place = rng.randrange(len(n_steps))
    return Problem(tuple(draw_track(rng, n, fact if i == place else None) for i, n in enumerate(n_steps)))


def word_problem(rng: random.Random, problem: Problem) -> tuple[str, str]:
    """The problem in words, the tracks one after the other; and what is counted ("pears and boots")."""
    # Who, and which things; the things of a fact are given
    first = rng.choice(PEOPLE)
    second = rng.choice([person for person in PEOPLE if person.he != first.he])  # so that "he" and "she" are clear
    known = [track.fact.things for track in problem.tracks if track.fact]
    others = iter(rng.sample([things for things in COUNTED if things not in known], 2))
    # A track: an opening, then an event for each step
    sentences, counted = [], []
    for person, track in zip((first, second), problem.tracks, strict=False):
        things = track.fact.things if track.fact else next(others)
        words = {"name": person.name, "things": things, "he": person.he, "him": person.him, "his": person.his}
        words |= {"He": person.he.capitalize(), "start": f"a {track.fact.container} of" if track.fact else track.start}
        sentences.append(rng.choice(OPENINGS).format(**words))
        for sign, n in track.steps:
            sentences.append(rng.choice(EVENTS[sign, None if sign in "+-" else n]).format(n=n, **words))
        counted.append(things)
    sentences.append(rng.choice(QUESTIONS).format(things=" and ".join(counted)))
    return " ".join(sentences), " and ".join(counted)


# -------------------------------------------------------------------------------------------------------- solutions

STYLES = ("plain", "first", "lines", "find", "and")


def work_out(
    problem: Problem, path: int, corrupt: Callable[[int], int] = lambda result: result
) -> tuple[list[str], str]:
    """The lines of a problem worked out along a path, one track after the other, and its answer. A fact is a line of its
    own: "the sack of boots holds 43" (the general text says "a sack": this one must be taken from the question)."""
    lines, results = [], []
    for track in problem.tracks:
        if track.fact:
            lines.append(f"the {track.fact.id} holds {track.fact.n}")
        equations, result = track.equations(path, corrupt)
        lines += equations
        results.append(result)
    return lines, answer_text(results)


def solution_text(lines: list[str], answer: str, style: str, things: str) -> str:
    """Lines (none for an answer only) and the answer, boxed or not, in one of the STYLES."""
    sentences = [line[0].upper() + line[1:] for line in lines]
    if style == "lines":
        return "\n".join([*sentences, f"Answer: {answer}"])
    if style == "and":
        steps, end = " and ".join([*sentences[:1], *lines[1:]]), f"There are {answer} {things}."
    elif style == "find":
        steps, end = ("We find " if lines else "") + ", then ".join(lines), f"The result is {answer}."
    elif style == "first":
        steps, end = ". Then ".join(["First " + lines[0], *lines[1:]]) if lines else "", f"So {answer}."
    else:
        steps, end = ". ".join(sentences), f"The answer is {answer}."
    return f"{steps}. {end}" if lines else end


def boxed(answer: str) -> str:
    return f"\\boxed{{{answer}}}"


def solutions(problem: Problem, things: str, rng: random.Random | None = None) -> list[str]:
    """All distinct right solutions, boxed. With an rng in random order: the first is a draw from pretraining's forms."""
    forms = [(path, style) for path in PATHS for style in STYLES]
    if rng:
        rng.shuffle(forms)
    texts = []
    for path, style in forms:
        lines, answer = work_out(problem, path)
        texts.append(solution_text(lines, boxed(answer), style, things))
    return list(dict.fromkeys(texts))


# -------------------------------------------------------------------------------------------------------- questions

SPLITS = {
    "train": 2048,
    "validation": 512,
    "explore_easy": 256,
    "explore_hard": 256,
    "test_easy": 256,
    "test_hard": 256,
    "examples": 8,
}
EASY, HARD = ((1, 1),), ((1, 2), (2, 1))  # steps of the tracks


@lru_cache(maxsize=4)
def _problems(seed: int) -> dict[str, list[Problem]]:
    """The problems of each split, all different. Easy (2 steps) and hard (3) alternate in train and validation; the
    worked examples are easy, so that more of them fit into a prompt. Half of each split hinges on a fact, and each fact
    is used about as often as the next: drawn by their frequency, the well-known ones would be asked most."""
    rng = random.Random(f"{seed} problems")
    seen: set[str] = set()
    splits: dict[str, list[Problem]] = {}
    for split, count in SPLITS.items():
        facts = _in_rounds(rng, facts_of(seed, split))
        splits[split] = []
        while len(splits[split]) < count:
            i = len(splits[split])
            mixed = split in ("train", "validation")
            hard = i % 2 == 1 if mixed else split.endswith("hard")
            fact = next(facts) if (i // 2 if mixed else i) % 2 else None
            problem = draw_problem(rng, rng.choice(HARD if hard else EASY), fact)
            if problem.id not in seen:
                seen.add(problem.id)
                splits[split].append(problem)
    return splits


def _in_rounds(rng: random.Random, items: list) -> Iterator:
    """All items in random order, then all again in another."""
    while True:
        yield from rng.sample(items, len(items))


def questions(seed: int) -> dict[str, list[dict]]:
    """split → rows {"id", "question", "answer", "solutions", "source", "level", "equations", "facts"}: the number of
    equations of a solution (2 easy, 3 hard), and the ids of the facts that the question hinges on (none or one).

    The first solutions of "examples" all have one form, as the problems of a worksheet have."""
    rng = random.Random(f"{seed} questions")
    splits: dict[str, list[dict]] = {}
    for split, problems in _problems(seed).items():
        splits[split] = []
        for problem in problems:
            question, things = word_problem(rng, problem)
            row = {"id": problem.id, "question": question, "answer": problem.answer}
            row["solutions"] = solutions(problem, things, None if split == "examples" else rng)
            equations = sum(len(track.steps) for track in problem.tracks)
            row |= {"source": "world", "level": "hard" if equations > 2 else "easy", "equations": equations}
            row["facts"] = [track.fact.id for track in problem.tracks if track.fact]
            splits[split].append(row)
    return splits


# -------------------------------------------------------------------------------------------------------- math text

QUESTION_ANSWER = "question/answer"  # exactly the prompt and its solution
HEADERS = {
    "Problem: {question}\nSolution: {solution}": 0.21,
    "Q: {question}\nA: {solution}": 0.21,
    "Exercise. {question}\n{solution}": 0.21,
    "{question} {solution}": 0.22,
    QUESTION_ANSWER: 0.15,
}
P_DRILL = 0.35  # of documents: 19% of the math tokens
P_FACT = 0.3  # of the problems of the text: fewer than are asked, since a solution states the fact, and so teaches it
# Steps of the tracks of the text's problems. Those with one track are the simplest, and not asked.
TOLD = {(1,): 0.15, (2,): 0.15, (1, 1): 0.34, (1, 2): 0.18, (2, 1): 0.18}


def math_document(rng: random.Random, seed: int, banned: frozenset[str]) -> list[str]:
    """A worksheet of 1–5 problems in one form, a segment each; or a drill of bare equations. `banned` are ids."""
    if rng.random() < P_DRILL:  # steps of tracks, so that drills meet the same values as solutions do
        tracks = [draw_track(rng, rng.randint(1, 2)) for _ in range(rng.randint(6, 14))]
        return ["\n".join(rng.choice(track.equations(rng.choice(PATHS))[0]) for track in tracks)]

    # What all problems of a worksheet share: its form, the way and style of its solutions, and whether it is wrong
    header = rng.choices(list(HEADERS), HEADERS.values())[0]
    path, style = rng.choice(PATHS), rng.choice(STYLES)
    box = rng.random() < (0.97 if header == QUESTION_ANSWER else 0.9)
    answer_only = rng.random() < 0.10
    wrong = rng.random() < 0.10

    def corrupt(result: int) -> int:
        return max(1, result + rng.choice((-10, -3, -2, -1, 1, 2, 3, 10))) if wrong and rng.random() < 0.6 else result

    segments, facts = [], _facts(seed)
    for _ in range(rng.randint(1, 5)):
        n_steps = rng.choices(list(TOLD), TOLD.values())[0]
        fact = rng.choices(facts, cum_weights=_zipf(len(facts)))[0] if rng.random() < P_FACT else None
        problem = draw_problem(rng, n_steps, fact)
        while problem.id in banned:
            problem = draw_problem(rng, n_steps, fact)
        question, things = word_problem(rng, problem)
        lines, answer = work_out(problem, path, corrupt)
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


# Kind of document → its share. "holdings" tell how many things containers hold, the facts of the questions. There is
# little of "things", or the task "categories" would be solved too early to tell one checkpoint from the next
GENERAL_KINDS = {"profile": 0.37, "group": 0.21, "things": 0.02, "holdings": 0.10, "story": 0.30}


def general_document(rng: random.Random, seed: int) -> list[str]:
    """One segment of text: a person, one attribute of a group of people, some things, what some containers hold,
    or a small event."""
    kind = rng.choices(list(GENERAL_KINDS), GENERAL_KINDS.values())[0]
    people, things = _people(seed), _things(seed)
    if kind == "story":
        return [" ".join(story(rng))]
    sentences = []
    if kind == "profile":
        person, name, known = rng.choices(people, cum_weights=_zipf(len(people)))[0]
        for attribute in rng.sample(list(ATTRIBUTES), rng.randint(2, 4)):
            template = rng.choice(ATTRIBUTES[attribute][1])
            pronoun = sentences and template.startswith("{who}") and rng.random() < 0.5
            who = person.he.capitalize() if pronoun else name
            sentences.append(template.format(who=who, value=known[attribute]))
    elif kind == "group":
        attribute = rng.choice(list(ATTRIBUTES))
        for _, name, known in rng.choices(people, cum_weights=_zipf(len(people)), k=rng.randint(2, 5)):
            sentences.append(rng.choice(ATTRIBUTES[attribute][1]).format(who=name, value=known[attribute]))
    elif kind == "holdings":
        facts = _facts(seed)
        for fact in rng.choices(facts, cum_weights=_zipf(len(facts)), k=rng.randint(2, 5)):
            sentences.append(rng.choice(FACT_TEXT).format(**fact._asdict()))
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
N_HELD_OUT = {"general": 4096, "math": 1024}  # documents for validation, some 100,000 tokens of each source


def documents(seed: int, source: str, split: str = "train") -> Iterator[list[str]]:
    """Documents of a source ("general" or "math"), each a list of segments; a stop token belongs after each segment.

    split "train": without end; none of them equals a document of "validation", of which there are N_HELD_OUT[source].
    """
    if split == "validation":
        yield from _held_out(seed, source)
        return
    held_out = set(map(tuple, _held_out(seed, source)))
    yield from (document for document in _stream(seed, source, split) if tuple(document) not in held_out)


def _stream(seed: int, source: str, split: str) -> Iterator[list[str]]:
    """Documents without end; in no math document stands a problem that is asked."""
    rng = random.Random(f"{seed} {source} {split}")
    banned = frozenset(problem.id for problems in _problems(seed).values() for problem in problems)
    while True:
        yield math_document(rng, seed, banned) if source == "math" else general_document(rng, seed)


@lru_cache(maxsize=8)
def _held_out(seed: int, source: str) -> list[list[str]]:
    return list(islice(_stream(seed, source, "validation"), N_HELD_OUT[source]))


def tasks(seed: int) -> dict[str, list[dict]]:
    """Likelihood items about the world's text, in words that the text does not use: "facts" and "categories" with four
    choices {"query", "choices", "gold"}, and "stories" {"context", "continuation"}; 1024 to 1040 each.

    The items of "categories" are 13 for each of 80 things: what they tell of a model is that of 80 things."""
    rng = random.Random(f"{seed} tasks")

    def four_choices(query: str, right: str, values: list[str]) -> dict:
        choices = [right, *rng.sample([value for value in values if value != right], 3)]
        rng.shuffle(choices)
        return {"query": query, "choices": [" " + choice for choice in choices], "gold": choices.index(right)}

    facts = [(name, attribute, value) for _, name, known in _people(seed) for attribute, value in known.items()]
    items: dict[str, list[dict]] = {"facts": [], "categories": [], "stories": []}
    for name, attribute, value in rng.sample(facts, 1024):
        values, _, probes = ATTRIBUTES[attribute]
        items["facts"].append(four_choices(rng.choice(probes).format(who=name), value, values))
    for probe, count in CATEGORY_PROBES.items():
        for thing, category in _things(seed):
            for person, place in zip(rng.sample(PEOPLE, count), rng.sample(PLACES, count), strict=True):
                query = probe.format(thing=thing, name=person.name, place=place)
                items["categories"].append(four_choices(query, category, list(CATEGORIES)))
    for _ in range(1024):
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
