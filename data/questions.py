"""Questions with verifiable answers: their form, where they come from, how they are split.

One form everywhere, one JSON object a line:

    {"id": "…", "question": "…", "answer": "72", "solutions": ["… \\boxed{72}.", …], "source": "gsm8k", "level": null}

`load_questions` reads a file of this form, or of the forms of GSM8K, MATH and OpenMathInstruct-2, or a data set of the
hub (HUB_QUESTIONS). data/prompt.py makes of a question what a model is shown.
"""

import contextlib
import hashlib
import json
import math
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np

from cli import UserError
from data.readers import Record, Skipped, hub_files, parse_record, read_records, stream_hub
from files import MALFORMED
from verifier import is_equal, last_box

# name → (repository on the hub, its configurations, the problem_source values to keep (the paper's filter) or None:
# all). To add a data set of questions, add a row; parse_question below must know the names of its fields.
HUB_QUESTIONS = {
    "gsm8k": ("openai/gsm8k", ("main",), None),
    "math": (
        "EleutherAI/hendrycks_math",
        (
            "algebra",
            "counting_and_probability",
            "geometry",
            "intermediate_algebra",
            "number_theory",
            "prealgebra",
            "precalculus",
        ),
        None,
    ),
    "openmathinstruct2": ("nvidia/OpenMathInstruct-2", ("default",), ("gsm8k", "augmented_gsm8k")),
    "openmathinstruct2-full": ("nvidia/OpenMathInstruct-2", ("default",), None),
}
# name → groups of problem_source values of which so many questions each are held out (the authors' split for the MATH runs)
VALIDATION_GROUPS = {"openmathinstruct2-full": (("gsm8k", "augmented_gsm8k"), ("math", "augmented_math"))}

# GSM8K over pretraining tokens in the paper: billions of tokens → pass@1 in % after RL, 1.5 B parameters (docs/paper.md)
GSM8K_AFTER_RL = {2: 3.8, 4: 15.6, 6: 19.9, 10: 29.8, 12: 35.6, 14: 38.3, 20: 47.4, 28: 51.9, 44: 54.8}

# Worked examples for base models, which do not know the format: NAME.jsonl; NOTICE beside them has sources and
# licences. (The world has its own, in questions/examples.jsonl of its data folder.)
EXAMPLES = Path(__file__).with_name("examples")


# ---------------------------------------------------------------------------------------------------------------------
# One row
# ---------------------------------------------------------------------------------------------------------------------


def parse_question(record: dict, source: str) -> dict:
    """One row, from a record of any of the four forms. ValueError for one without question or answer.

    A solution without a box gets a closing sentence with one: the reward asks for a box, so what is learned from has
    one. GSM8K's calculator marks (<<48/2=24>>) are dropped: they are for a tool that is not used here. Other fields are
    kept of our own form alone (the world's "facts")."""
    question = _text(record, "question", "problem")
    answer = _text(record, "expected_answer", "answer", required=False)
    solutions = record.get("solutions") or [_text(record, "generated_solution", "solution", required=False)]
    if not isinstance(solutions, list) or not all(isinstance(solution, str) for solution in solutions):
        raise ValueError("'solutions' is not a list of strings")
    if "####" in answer:  # GSM8K: the reasoning and the answer in one field
        reasoning, _, answer = answer.rpartition("####")
        solutions = [re.sub(r"<<[^<>]*>>", "", reasoning), *solutions]
        answer = re.sub(r"(?<=\d),(?=\d{3})", "", answer).strip()
    if not answer:
        answer = next((box for solution in solutions if (box := last_box(solution))), "")
    if not answer:
        raise ValueError("no answer: neither a field 'answer' or 'expected_answer', nor a \\boxed{} in the solution")
    solutions = [solution.strip() for solution in solutions if solution.strip()]
    closing = f"The answer is \\boxed{{{answer}}}."
    row = {
        "id": f"{source}-{digest(question)}" if record.get("id") in (None, "") else str(record["id"]),
        "question": question,
        "answer": answer,
        "solutions": [s if last_box(s) else f"{s}\n{closing}" for s in solutions],
        "source": record.get("problem_source") or record.get("source") or source,
        "level": record.get("level", record.get("difficulty")),
    }
    row |= {key: value for key, value in record.items() if key not in row and "solutions" in record}
    try:  # half a surrogate pair, which JSON can spell, is a UnicodeError, and so a ValueError
        json.dumps(row, ensure_ascii=False).encode("utf-8")
    except TypeError as error:
        raise ValueError(f"a field that JSON cannot hold ({error})") from None
    return row


def digest(question: str) -> str:
    return hashlib.sha1(question.encode()).hexdigest()[:12]


def _text(record: dict, *names: str, required: bool = True) -> str:
    """The first of the fields that the record has, stripped. A number counts as its text."""
    for name in names:
        value = record.get(name)
        number = type(value) is int or isinstance(value, float) and math.isfinite(value)
        if number or isinstance(value, str) and value.strip():
            return str(value).strip()
    if required:
        raise ValueError(f"no field {' or '.join(map(repr, names))}")
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Loading
# ---------------------------------------------------------------------------------------------------------------------


def find_questions(data: str, name: str, split: str, limit: int = 0) -> list[dict]:
    """Questions named DATA/questions/NAME.jsonl, or of a file, or of the hub (`split`, or NAME:SPLIT); the first
    `limit` of them."""
    hub, _, named_split = name.partition(":")
    if named_split and hub in HUB_QUESTIONS:
        name, split = hub, named_split
    in_data = Path(data) / "questions" / f"{name}.jsonl"
    if not in_data.exists() and not Path(name).exists() and name not in HUB_QUESTIONS:
        there = ", ".join(sorted(path.stem for path in in_data.parent.glob("*.jsonl")))
        there = f"; {in_data.parent} has {there}" if there else ""
        hubs = ", ".join(HUB_QUESTIONS)
        raise UserError(f"questions {name!r}: neither {in_data} nor a file, nor one of {hubs}{there}")
    return load_questions(in_data if in_data.exists() else name, split, limit=limit)


def load_questions(
    name: str | Path, split: str = "train", strict: bool = False, limit: int = 0, folder: str = "", subset: str = ""
) -> list[dict]:
    """The questions of a local file or of a name in HUB_QUESTIONS, one row a question (`merge_questions`). UserError.

    split, subset: of a hub data set. folder: a local copy of that data set, to be read instead."""
    source = str(name) if str(name) in HUB_QUESTIONS else Path(name).name.split(".")[0]
    return merge_questions(question_records(name, split, folder, subset), source, strict, limit)


def questions_digest(questions: list[dict]) -> str:
    """A digest of what training reads of them, in their order."""
    digest = 0
    for q in questions:
        digest = zlib.crc32(json.dumps([q["question"], q["answer"], q["solutions"]]).encode(), digest)
    return f"{digest:08x}"


def load_examples(name: str | Path, n: int = 8) -> list[dict]:
    """The first n worked examples of "gsm8k", "math" or "gsm8k_train", which are shipped in data/examples, or of a file
    of questions with solutions. UserError if there are fewer.

    A row's "worked" is its first solution in GSM8K's form, which ends in "#### answer" (gsm8k_train: as published)."""
    if str(name) == "gsm8k_train":
        published = [json.loads(line) for line in (EXAMPLES / "gsm8k_train.jsonl").read_text("utf-8").splitlines()]
        rows = [parse_question(row, "gsm8k") | {"worked": row["answer"]} for row in published]
    else:
        shipped = EXAMPLES / f"{name}.jsonl"
        rows = load_questions(shipped if str(name) in ("gsm8k", "math") else name)
        rows = [row for row in rows if row["solutions"]]
    if len(rows) < n:
        raise UserError(f"{name}: {n} worked examples are wanted, it has {len(rows)} questions with a solution")
    return [{"worked": f"{row['solutions'][0]}\n#### {row['answer']}", **row} for row in rows[:n]]


def question_records(name: str | Path, split: str, folder: str = "", subset: str = "") -> Iterator[Record]:
    """The records of a name in HUB_QUESTIONS, filtered by problem_source, or of a local file. UserError.

    folder: a local copy of the hub data set, to be read instead. subset: this configuration instead of the usual ones."""
    if str(name) not in HUB_QUESTIONS:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name}: no such file, nor one of the hub's {', '.join(HUB_QUESTIONS)}")
        yield from read_records(path)
        return
    repository, configs, keep = HUB_QUESTIONS[str(name)]
    for config in (subset,) if subset else configs:
        if folder:
            records = (record for file in hub_files(Path(folder), config, split) for record in read_records(file))
        else:
            rows = enumerate(stream_hub(repository, config, split), start=1)
            records = (Record(f"{repository}/{config}/{split}:{row}", content, 0) for row, content in rows)
        for record in records:
            if keep is None or _problem_source(record) in keep:
                yield record


def _problem_source(record: Record) -> str | None:
    try:
        return parse_record(record.content).get("problem_source")
    except ValueError:
        return None


def merge_questions(records: Iterable[Record], source: str, strict: bool = False, limit: int = 0) -> list[dict]:
    """One row per question string, in order of first appearance; the first `limit` of them (0: all). UserError if none.

    Ids differ: of two questions with one id, the second gets a digest behind it.

    A row's `solutions` are those of all records with its question, each once: `solutions[:1]` is the paper's
    de-duplicated set, all of them its duplicated (Gold) set. A record that cannot be used, or whose answer is not that
    of its question's first record, is counted, named and skipped (`strict`: raised).

    With a limit, once there are so many questions, records of others are no longer parsed; and a file of our own form,
    whose rows have all solutions, is not read further."""
    rows: dict[str, dict] = {}
    skipped = Skipped(strict)
    for record in records:
        try:
            content = parse_record(record.content)
            if limit and len(rows) == limit:
                if "solutions" in content:
                    break
                if _text(content, "question", "problem", required=False) not in rows:
                    continue
            row = parse_question(content, source)
            first = rows.setdefault(row["question"], row)  # `row` itself, or the earlier row of the same question
            if first is not row and not is_equal(row["answer"], first["answer"]):
                raise ValueError(
                    f"answer {row['answer']!r}, but an earlier row of this question has {first['answer']!r}"
                )
        except ValueError as error:
            skipped.add(record.where, error)
            continue
        if first is not row:
            first["solutions"] += row["solutions"]
    seen: set[str] = set()
    for row in rows.values():
        row["solutions"] = list(dict.fromkeys(row["solutions"]))
        if row["id"] in seen:  # files that were numbered each from 1, one behind the other
            row["id"] = f"{row['id']}-{digest(row['question'])}"
        seen.add(row["id"])
    if skipped.count:
        print(f"{source}: {skipped.count} rows skipped, {len(rows)} questions kept", file=sys.stderr)
    if not rows:
        raise UserError(f"{source}: holds no usable question ({skipped.count} rows skipped)")
    return list(rows.values())


def what_to_expect(questions: list[dict], tokens: int) -> list[str]:
    """Where GSM8K's questions (or those made of them) are among these: one line that says what the paper's model gets
    after as many pretraining tokens, or from how many on it gets any. tokens: behind the model; 0: unknown."""
    if not any("gsm8k" in str(question.get("source")) for question in questions):
        return []
    billions = tokens / 1e9
    first, second = list(GSM8K_AFTER_RL.items())[:2]
    here = f"here: {billions:.3g} B tokens (docs/paper.md)" if tokens else "(docs/paper.md)"
    if billions < second[0]:
        found = f"leaves the floor between {first[0]} and {second[0]} B pretraining tokens (after RL {first[1]}%, then {second[1]}%)"
    else:
        at = max(b for b in GSM8K_AFTER_RL if b <= billions)
        found = f"is {GSM8K_AFTER_RL[at]}% after RL from {at} B pretraining tokens"
    return [f"GSM8K: in the paper, pass@1 of 1.5 B parameters {found}; {here}"]


# ---------------------------------------------------------------------------------------------------------------------
# Questions of one difficulty
# ---------------------------------------------------------------------------------------------------------------------

# name → (lowest, highest) pass rate of the base model: the paper's bands, and "hardest" of its released code
BANDS = {"easy": (0.25, 1.0), "hard": (0.0, 0.125), "hardest": (0.0, 0.031)}


def file_and_band(text: str) -> tuple[str, str]:
    """--difficulty FILE:BAND → (FILE, BAND). UserError if either is missing."""
    file, _, band = text.rpartition(":")
    if band.replace(".", "").isdigit():  # FILE:LOW:HIGH
        file, _, low = file.rpartition(":")
        band = f"{low}:{band}"
    if not file:
        raise UserError(f"--difficulty {text}: name a file and a band, such as last.difficulty.json:hard")
    return file, band


def in_band(questions: list[dict], path: str, band: str) -> list[dict]:
    """The questions whose strict pass rate in an evaluation record (`eval.py --preset difficulty`) lies in a band: a
    name in BANDS or "LOW:HIGH", ends included. UserError if none does."""
    low, high = BANDS.get(band, (-1.0, -1.0))
    if band.count(":") == 1:
        with contextlib.suppress(ValueError):
            low, high = map(float, band.split(":"))
    if not 0 <= low <= high <= 1:
        known = f"{', '.join(BANDS)} or LOW:HIGH with 0 ≤ LOW ≤ HIGH ≤ 1, such as 0.1:0.5"
        raise UserError(f"--difficulty {path}:{band}: a band is {known}")
    try:
        sets = json.loads(Path(path).read_text())["questions"].values()
        rate = {q["id"]: q["c"] / q["n"] for s in sets for q in s["questions"]}
    except MALFORMED as error:
        raise UserError(
            f"--difficulty {path}: no evaluation record ({error}); make one: eval.py --preset difficulty"
        ) from None
    kept = [q for q in questions if low <= rate.get(q["id"], -1.0) <= high]
    if not kept:
        raise UserError(f"--difficulty {path}:{band}: none of {len(questions)} questions has a pass rate in this band")
    return kept


# ---------------------------------------------------------------------------------------------------------------------
# Splits that share no question
# ---------------------------------------------------------------------------------------------------------------------


def normalise(text: str) -> str:
    """Equal for texts that differ only in white space or case."""
    return "".join(text.casefold().split())


def remove(rows: list[dict], banned: Iterable[str]) -> list[dict]:
    """The rows whose question is none of the `banned` questions, white space and case aside."""
    banned = {normalise(question) for question in banned}
    return [row for row in rows if normalise(row["question"]) not in banned]


def split_validation(
    rows: list[dict], n: int = 1000, seed: int = 42, groups: tuple[tuple[str, ...], ...] = ()
) -> tuple[list[dict], list[dict]]:
    """(train, validation): the authors' split. UserError if no row would be left to train on.

    The rows are shuffled with `seed`, as `datasets` shuffles; the first n are validation. Rows whose question differs
    from one of these in white space or case only are in neither. A row holds all solutions of its question, so this
    splits the duplicated set too.

    groups: of each group of `source` values, n rows are validation instead, in turn one of each group; train keeps its
    order (the authors' split of the whole of OpenMathInstruct-2)."""
    shuffled = []  # for each group: the indices of its rows
    for group in groups or (None,):
        members = [i for i, row in enumerate(rows) if group is None or row["source"] in group]
        if not 0 <= n < len(members):
            what = f" from {' or '.join(group)}" if group else ""
            raise UserError(
                f"--validation_questions {n}: there are {len(members)} questions{what}, and one must be left to train on"
            )
        order = np.random.default_rng(seed).permutation(len(members))
        shuffled.append([members[i] for i in order])
    held_out = [i for one_of_each in zip(*(order[:n] for order in shuffled), strict=True) for i in one_of_each]
    validation, left_out = [rows[i] for i in held_out], set(held_out)
    train = [rows[i] for i in (range(len(rows)) if groups else shuffled[0]) if i not in left_out]
    train = remove(train, (row["question"] for row in validation))
    if not train:
        raise UserError(f"--validation_questions {n}: the other questions are these again (white space and case aside)")
    return train, validation


class BannedQuestions:
    """Does a text contain one of these questions? White space and case aside.

    Gigabytes of text are searched for thousands of questions. So only a text that has the first four words of a
    question is compared with it; that rules out nearly all text at about the cost of splitting it into words."""

    WORDS = 4

    def __init__(self, questions: Iterable[str]):
        self.by_start: dict[tuple[str, ...], list[str]] = {}  # first four words → normalised questions
        self.short: list[str] = []  # questions of fewer words: always compared
        for question in questions:
            words = self._words(question)
            if len(words) < self.WORDS:
                self.short.append(normalise(question))
            else:
                self.by_start.setdefault(tuple(words[: self.WORDS]), []).append(normalise(question))

    @staticmethod
    def _words(text: str) -> list[str]:
        # letters and digits only: "3+4" and "3 + 4" are the same words
        return re.findall(r"\w+", text.casefold())

    def found_in(self, text: str) -> bool:
        words = self._words(text)
        starts = zip(*(words[i:] for i in range(self.WORDS)), strict=False)
        candidates = self.short + [
            question for start in starts if start in self.by_start for question in self.by_start[start]
        ]
        if not candidates:
            return False
        text = normalise(text)
        return any(question in text for question in candidates)
