"""Questions with verifiable answers: where they come from, how they are split, what a model is shown of them.

One form everywhere, one JSON object a line:

    {"id": "…", "question": "…", "answer": "72", "solutions": ["… \\boxed{72}.", …], "source": "gsm8k", "level": null}

`load_questions` takes a file of this form, or of GSM8K's, MATH's or OpenMathInstruct-2's own (jsonl or parquet, as in
SUFFIXES), or one of the names in HUB_QUESTIONS. A model sees a question through `format_prompt` alone: in pretraining text, in SFT
rows, in worked examples, when it is sampled.
"""

import codecs
import gzip
import hashlib
import io
import json
import re
import sys
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli import UserError
from files import check_digest
from verifier import extract_answer, is_equal

INSTRUCTION = "Let's think step by step and output the final answer within \\boxed{}."


def format_prompt(question: str) -> str:
    """The prompt of `question`; a solution follows directly after it."""
    return f"{question} {INSTRUCTION}\n"


# ---------------------------------------------------------------------------------------------------------------------
# What a model is shown. Prompt and solution are encoded apart from each other, always: a model that is sampled from
# continues exactly these prompt tokens, so no token may span the seam in training either.


def encode_prompt(question: str, tokenizer) -> list[int]:
    """Token ids of the zero-shot prompt."""
    return tokenizer.encode(format_prompt(question))


def fitting(
    questions: list[dict], tokenizer, context: int, new_tokens: int
) -> tuple[list[tuple[dict, list[int]]], list[str]]:
    """(question, zero-shot prompt) of the questions that leave room for `new_tokens` in `context` tokens, and the ids of
    the others. UserError if none does."""
    pairs = [(q, encode_prompt(q["question"], tokenizer)) for q in questions]
    kept = [(q, prompt) for q, prompt in pairs if len(prompt) + new_tokens <= context]
    if not kept:
        raise UserError(
            f"no question fits a context of {context} with {new_tokens} new tokens (the shortest prompt has "
            f"{min((len(prompt) for _, prompt in pairs), default=0)}): lower --max_new_tokens or use a longer context"
        )
    return kept, [q["id"] for q, prompt in pairs if len(prompt) + new_tokens > context]


def some(ids: list[str]) -> str:
    """ "a, b, c": the first 8, and how many more there are."""
    return ", ".join(map(str, ids[:8])) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")


def left_out(ids: list[str], total: int, context: int, new_tokens: int) -> str:
    """What a user is told of questions that do not fit."""
    return (
        f"{len(ids)} of {total} questions leave no room for {new_tokens} new tokens in a context of {context}: left out: "
        f"{some(ids)}"
    )


# The authors' forms of a prompt with worked examples: what stands for the last line of an example, and the instruction,
# which follows the last "Answer:". GSM8K's own form, and the one for MATH and OpenMathInstruct-2.
QUESTION_ANSWER = {
    "question_answer": ("#### {}", 'Let\'s think step by step and output the final answer after "####".'),
    "question_answer_boxed": ("\\boxed{{{}}}", INSTRUCTION),
}


def few_shot_prompt(examples: list[dict], question: str, tokenizer, form: str = "plain") -> list[int]:
    """Token ids of worked examples followed by the prompt of `question`. Plain: prompt, first solution and eos of each
    example. Else a form of QUESTION_ANSWER, as plain text without eos (without examples the prompt is plain always)."""
    if form != "plain" and examples:
        last_line, instruction = QUESTION_ANSWER[form]
        text = ""
        for example in examples:
            reasoning, _, answer = example["worked"].rpartition("#### ")
            text += f"Question: {example['question']}\nAnswer: {reasoning}{last_line.format(answer)}\n"
        return tokenizer.encode(f"{text}Question: {question}\nAnswer: {instruction}\n")
    ids = []
    for example in examples:
        ids += encode_prompt(example["question"], tokenizer) + encode_solution(example["solutions"][0], tokenizer)
    return ids + encode_prompt(question, tokenizer)


def encode_solution(solution: str, tokenizer, cut: int = 0) -> list[int]:
    """Token ids of a demonstration, to follow its prompt: the solution and exactly one eos. With `cut` only the first so
    many of these tokens, so that a longer one has no eos."""
    return [*tokenizer.encode(solution), tokenizer.eos][: cut or None]


# ---------------------------------------------------------------------------------------------------------------------
# Reading files, one record at a time. data/prepare.py reads its documents through the same functions.

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet", ".txt")
TXT_SEPARATOR = "<|endoftext|>"
TXT_PIECE = 20_000  # bytes
# The longest record that is read. The longest documents of the hub's corpora are books of a few MB; a longer "line" is
# a file of another kind, and 4 chunks per worker of such records would fill the memory. Such records are skipped.
MAX_RECORD = 16 << 20  # bytes


class Record(NamedTuple):
    where: str
    """file:line (parquet: file:row)"""
    content: bytes | dict
    """an undecoded line of JSON (cut at MAX_RECORD + 1 bytes), or a row that is already an object"""
    position: int
    """bytes of the file on disk read so far"""


def read_records(path: Path, text_field: str = "text") -> Iterator[Record]:
    """The records of a file, in order. Raises UserError where the file as a whole cannot be read; a bad line is not
    noticed here but by `parse_record`.

    .jsonl and .json hold an object a line. A .txt file is cut at lines that hold only <|endoftext|> and, so that any
    length can be held in memory and a part can be held out, after every 20,000 bytes (at the end of the line, or where
    that is far, between two words); each piece is a record {text_field: …}."""
    if not path.name.endswith(SUFFIXES):
        raise UserError(f"{path}: unknown kind of file; it must end in {', '.join(SUFFIXES)}")
    try:
        check_digest(path)
        if path.suffix == ".parquet":
            yield from _read_parquet(path)
            return
        with open(path, "rb") as raw, _decompressed(path, raw) as file:
            if file.peek(3)[:3] == codecs.BOM_UTF8:
                file.read(3)
            elif file.peek(2)[:2] in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
                raise UserError(f"{path}: is UTF-16; convert it: iconv -f UTF-16 -t UTF-8 {path.name}")
            elif path.suffixes[:1] == [".json"] and file.peek(1)[:1] == b"[":
                raise UserError(f"{path}: is one JSON list; write an object a line: jq -c '.[]' {path.name}")
            yield from _read_txt(path, raw, file, text_field) if path.suffix == ".txt" else _read_lines(path, raw, file)
    except (OSError, EOFError, zlib.error) as error:  # a truncated .gz is an EOFError
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        import pyarrow  # it notices a file that was cut off, which the package zstandard does not

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def _read_lines(path: Path, raw: io.BufferedReader, file: io.BufferedReader) -> Iterator[Record]:
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        rest = line
        while len(rest) == MAX_RECORD + 1 and not rest.endswith(b"\n"):
            rest = file.readline(MAX_RECORD + 1)
        if line.strip():
            yield Record(f"{path}:{number}", line, raw.tell())


def _read_txt(path: Path, raw: io.BufferedReader, file: io.BufferedReader, text_field: str) -> Iterator[Record]:
    piece, size, blank, first, number = [], 0, True, 1, 1

    def record():
        return Record(f"{path}:{first}", {text_field: b"".join(piece)}, raw.tell())  # parse_record decodes the bytes

    rest = b""
    while line := rest + file.readline(TXT_PIECE - len(rest)):
        rest = b""
        if len(line) >= TXT_PIECE and not line.endswith(b"\n"):  # a longer line: cut it between two words
            cut = line.rfind(b" ") + 1 or _last_character(line)
            line, rest = line[:cut], line[cut:]
        separator = line.strip() == TXT_SEPARATOR.encode()
        if not separator:
            piece.append(line)
            size += len(line)
            blank = blank and not line.strip()
        number += line.endswith(b"\n")
        if (separator or size >= TXT_PIECE) and not blank:
            yield record()
            piece, size, blank, first = [], 0, True, number
    if not blank:
        yield record()


def _last_character(text: bytes) -> int:
    """Where the last character of UTF-8 begins; the end, if it would leave nothing."""
    start = len(text) - 1
    while start > 0 and text[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(text)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet  # here: it takes a second to load and most runs read no parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        row, total, size = 0, max(1, file.metadata.num_rows), path.stat().st_size
        for batch in file.iter_batches(batch_size=256):
            for content in batch.to_pylist():
                row += 1
                yield Record(f"{path}:{row}", content, size * row // total)
    except (pyarrow.ArrowException, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read as parquet ({str(error).splitlines()[0]})") from None


def parse_record(content: bytes | dict, text_field: str = "text") -> dict:
    """The JSON object of a record. Raises ValueError: bad UTF-8, bad JSON, not an object, too long."""
    if isinstance(content, bytes):
        if len(content) > MAX_RECORD:
            raise ValueError(f"longer than {MAX_RECORD >> 20} MiB")
        try:
            content = json.loads(content.decode("utf-8"))
        except RecursionError:
            raise ValueError("JSON nested too deep") from None
    if not isinstance(content, dict):
        raise ValueError(f"a JSON object is wanted, not {type(content).__name__}")
    text = content.get(text_field)
    if isinstance(text, str | bytes) and len(text) > MAX_RECORD:
        raise ValueError(f"longer than {MAX_RECORD >> 20} MiB")
    return content | {text_field: text.decode("utf-8")} if isinstance(text, bytes) else content


class Skipped:
    """Rows that could not be used: counted, the first ones named on stderr. With `strict` the first one is a UserError."""

    NAMED = 10

    def __init__(self, strict: bool = False):
        self.strict, self.count, self.named = strict, 0, []

    def add(self, where: str, why: Exception | str) -> None:
        line = f"{where}: {' '.join(str(why).split())[:200]}"
        if self.strict:
            raise UserError(f"{line} (leave out --strict to skip such rows)")
        self.count += 1
        if self.count <= self.NAMED:
            self.named.append(line)
            print(f"skipped {line}", file=sys.stderr)
        elif self.count == self.NAMED + 1:
            print("skipped more, which are counted but no longer named", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# The forms of a row.


def parse_question(record: dict, source: str) -> dict:
    """One row from any of the four forms. Raises ValueError for a row without question or answer.

    A solution that does not box its answer gets a closing sentence that does, so that what is learned from is what the
    reward asks for. GSM8K's calculator marks (<<48/2=24>>) are dropped: they are for a tool that is not used here. What
    else a row of the general form holds is kept (the world's "facts"), of the other forms it is not."""
    question = _text(record, "question", "problem")
    answer = _text(record, "expected_answer", "answer", required=False)
    solutions = record.get("solutions") or [_text(record, "generated_solution", "solution", required=False)]
    if not isinstance(solutions, list) or not all(isinstance(solution, str) for solution in solutions):
        raise ValueError("'solutions' is not a list of strings")
    if "####" in answer:  # GSM8K: the reasoning and the answer in one field
        reasoning, _, answer = answer.rpartition("####")
        solutions = [re.sub(r"<<[^<>]*>>", "", reasoning)]
        answer = re.sub(r"(?<=\d),(?=\d{3})", "", answer).strip()
    if not answer:
        answer = next((box for solution in solutions if (box := extract_answer(solution, strict=True))), "")
    if not answer:
        raise ValueError("no answer: neither a field 'answer' or 'expected_answer', nor a \\boxed{} in the solution")
    solutions = [solution.strip() for solution in solutions if solution.strip()]
    "".join([question, answer, *solutions]).encode("utf-8")  # a ValueError: JSON can spell half a surrogate pair
    closing = f"The answer is \\boxed{{{answer}}}."
    row = {
        "id": str(record.get("id") or f"{source}-{hashlib.sha1(question.encode()).hexdigest()[:12]}"),
        "question": question,
        "answer": answer,
        "solutions": [s if extract_answer(s, strict=True) else f"{s}\n{closing}" for s in solutions],
        "source": record.get("problem_source") or record.get("source") or source,
        "level": record.get("level", record.get("difficulty")),
    }
    return row | {key: value for key, value in record.items() if key not in row and "solutions" in record}


def _text(record: dict, *names: str, required: bool = True) -> str:
    """The first of the fields that the record has, stripped. A number counts as its text."""
    for name in names:
        value = record.get(name)
        if isinstance(value, str | int | float) and str(value).strip():
            return str(value).strip()
    if required:
        raise ValueError(f"no field {' or '.join(map(repr, names))}")
    return ""


# ---------------------------------------------------------------------------------------------------------------------
# Loading.

# name → (repository on the hub, its configurations, the problem_source values to keep (the paper's filter) or None)
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
# Input → problem_source values of which so many questions each are held out: the authors' split for the MATH runs
VALIDATION_GROUPS = {"openmathinstruct2-full": (("gsm8k", "augmented_gsm8k"), ("math", "augmented_math"))}


def hub_files(folder: Path, config: str, split: str = "") -> list[Path]:
    """The files of a configuration in a local copy of a hub data set, sorted: those in a folder of its name (its "-" may
    be folders: sample-100BT → sample/100BT), or all for `default`. With `split` only those that are named after it, as
    in train-00000-of-00005.parquet or test/0.jsonl; where no file is named after a split, all are train. UserError."""
    if not folder.is_dir():
        raise UserError(
            f"--local {folder}: no such folder; it is to hold a copy of the hub data set, in the hub's layout"
        )
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(SUFFIXES))
    places = {file: file.relative_to(folder).as_posix() for file in files}
    if config != "default":
        names = (f"/{config}/", f"/{config.replace('-', '/')}/")
        files = [file for file in files if any(name in "/" + places[file] for name in names)]
        if not files:
            raise UserError(f"--local {folder}: no file in a folder {config}; download that configuration too")
    if split:
        named = {file: re.findall(r"(?:^|/)(train|test|validation)(?=[-./])", places[file]) for file in files}
        if any(named.values()) or split != "train":
            files = [file for file in files if split in named[file]]
        if not files:
            raise UserError(f"--local {folder}: no file of the split {split} (configuration {config})")
    return files


def stream_hub(
    repository: str, config: str, split: str, shuffle_seed: int | None = None, skip: int = 0
) -> Iterator[dict]:
    """The rows of a hub data set, streamed. With a seed, its files are read in shuffled order and rows are shuffled
    within a buffer (a mixture stored part by part is useless in order). Raises UserError, also when offline."""
    import datasets  # here: seconds to load, and only this needs it
    import huggingface_hub

    try:
        # `datasets` retries for half a minute where there is no network; this asks once
        huggingface_hub.HfApi().dataset_info(repository, timeout=20)
        stream = datasets.load_dataset(repository, config, split=split, streaming=True)
        if shuffle_seed is not None:
            stream = stream.shuffle(seed=shuffle_seed, buffer_size=10_000)
        yield from stream.skip(skip)
    except Exception as error:  # the libraries below raise dozens of kinds: network, HTTP, missing split, zstd, arrow
        reason = (str(error).splitlines() or [""])[0][:200]
        raise UserError(
            f"cannot stream {repository} ({config}, {split}) from the hub: {type(error).__name__}: {reason}; "
            "without network, or where its files do not fit one schema, download it elsewhere "
            f"(hf download {repository} --repo-type dataset --local-dir DIR) and give the path of a local file of it, or to "
            "data.prepare --local DIR"
        ) from None


def question_records(name: str | Path, split: str, folder: str = "") -> Iterator[Record]:
    """The records behind a hub name (its problem_source filter applied; `folder`: a local copy of it) or a local file."""
    if str(name) not in HUB_QUESTIONS:
        path = Path(name)
        if not path.exists():
            raise UserError(f"{name}: no such file, nor one of the hub's {', '.join(HUB_QUESTIONS)}")
        yield from read_records(path)
        return
    repository, configs, keep = HUB_QUESTIONS[str(name)]
    for config in configs:
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


def load_questions(
    name: str | Path, split: str = "train", strict: bool = False, limit: int = 0, folder: str = ""
) -> list[dict]:
    """Questions of a local file or of a name in HUB_QUESTIONS (`split` is the hub's, `folder` a local copy of it), as
    `merge_questions` gives them."""
    source = str(name) if str(name) in HUB_QUESTIONS else Path(name).name.split(".")[0]
    return merge_questions(question_records(name, split, folder), source, strict, limit)


def merge_questions(records: Iterable[Record], source: str, strict: bool = False, limit: int = 0) -> list[dict]:
    """One row per question string, in order of first appearance; the first `limit` of them (0: all).

    With a limit, rows of other questions are no longer looked at once there are so many, and a file of our own form,
    which has all solutions of a question in its row, is not read further.

    Its `solutions` are those of all rows with that question, each once: `solutions[:1]` is the paper's de-duplicated
    set, all of them its duplicated (Gold) set. A row that cannot be used, or that gives a question another answer than
    the question's first row, is counted, named and skipped, or with `strict` raises. Raises UserError, also if no
    question is left."""
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
            first = rows.setdefault(row["question"], row)
            if first is not row and not is_equal(row["answer"], first["answer"]):
                raise ValueError(
                    f"answer {row['answer']!r}, but an earlier row of this question has {first['answer']!r}"
                )
        except ValueError as error:
            skipped.add(record.where, error)
            continue
        if first is not row:
            first["solutions"] += row["solutions"]
    for row in rows.values():
        row["solutions"] = list(dict.fromkeys(row["solutions"]))
    if skipped.count:
        print(f"{source}: {skipped.count} rows skipped, {len(rows)} questions kept", file=sys.stderr)
    if not rows:
        raise UserError(f"{source}: holds no usable question ({skipped.count} rows skipped)")
    return list(rows.values())


# ---------------------------------------------------------------------------------------------------------------------
# Splits and overlap.


def normalise(text: str) -> str:
    """Equal for texts that differ in white space or case alone."""
    return "".join(text.casefold().split())


def remove(rows: list[dict], banned: Iterable[str]) -> list[dict]:
    """The rows whose question is none of the `banned` questions, white space and case aside."""
    banned = {normalise(question) for question in banned}
    return [row for row in rows if normalise(row["question"]) not in banned]


def split_validation(
    rows: list[dict], n: int = 1000, seed: int = 42, groups: tuple[tuple[str, ...], ...] = ()
) -> tuple[list[dict], list[dict]]:
    """(train, validation): the paper's split. The rows are shuffled with `seed` and the first n are validation; near
    duplicates of those are in neither. Rows hold all solutions of their question, so this splits the duplicated set
    too. The shuffle is that of `datasets`, so the same rows in the same order give the authors' split. UserError.

    groups: n of each group of `source` values are validation instead, in turn one of each group; train keeps its order
    (the authors' split of the whole of OpenMathInstruct-2)."""
    chosen = []
    for group in groups or (None,):
        members = [i for i, row in enumerate(rows) if group is None or row["source"] in group]
        if not 0 <= n < len(members):
            what = f" from {' or '.join(group)}" if group else ""
            raise UserError(
                f"--validation_questions {n}: there are {len(members)} questions{what}, and one must be left to train on"
            )
        order = np.random.default_rng(seed).permutation(len(members))
        chosen.append([members[i] for i in order])
    held_out = [i for one_of_each in zip(*(order[:n] for order in chosen), strict=True) for i in one_of_each]
    validation, at = [rows[i] for i in held_out], set(held_out)
    train = [rows[i] for i in (range(len(rows)) if groups else chosen[0]) if i not in at]
    return remove(train, (row["question"] for row in validation)), validation


class BannedQuestions:
    """Does a text contain one of these questions? White space and case aside.

    Text by the gigabyte is searched for thousands of questions: sets of four-word sequences rule out nearly all of it
    at about the cost of splitting it into words; only a text that has the first four words of a question is compared."""

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


# ---------------------------------------------------------------------------------------------------------------------
# Worked examples for base models, which do not know the format. (The world has its own: questions/examples.jsonl.)

# The 8 rows of GSM8K's training set that the authors' evaluation shows, in its order (data/NOTICE has their licence)
GSM8K_TRAIN_8 = Path(__file__).with_name("gsm8k_train_8.jsonl")

EXAMPLES = {
    "gsm8k": [
        (
            "A bakery sells 24 rolls in the morning and twice as many in the afternoon. How many rolls does it sell that day?",
            "In the afternoon it sells 2 * 24 = 48 rolls.\n"
            "Over the day it sells 24 + 48 = 72 rolls.\n"
            "The answer is \\boxed{72}.",
        ),
        (
            "Rosa has $50. She buys 3 notebooks at $4 each and a pen for $2.50. How many dollars does she have left?",
            "The notebooks cost 3 * 4 = 12 dollars.\n"
            "Together with the pen she spends 12 + 2.5 = 14.5 dollars.\n"
            "She has 50 - 14.5 = 35.5 dollars left.\n"
            "The answer is \\boxed{35.5}.",
        ),
        (
            "A tank holds 180 liters and is two thirds full. A gardener takes out 9 cans of 8 liters each. "
            "How many liters are left in the tank?",
            "The tank holds 180 * 2 / 3 = 120 liters.\n"
            "The gardener takes out 9 * 8 = 72 liters.\n"
            "There are 120 - 72 = 48 liters left.\n"
            "The answer is \\boxed{48}.",
        ),
        (
            "Ivan walks 3 km to work and back again on 5 days a week. On Saturday he walks 11 km. "
            "How many kilometers does he walk in 4 such weeks?",
            "On a working day he walks 3 + 3 = 6 km, so 5 * 6 = 30 km on working days.\n"
            "With Saturday that is 30 + 11 = 41 km a week.\n"
            "In 4 weeks he walks 4 * 41 = 164 km.\n"
            "The answer is \\boxed{164}.",
        ),
        (
            "Of the 60 children in a choir, 40% are new this year. A quarter of the new ones are under 8. "
            "How many new children are 8 or older?",
            "There are 60 * 40 / 100 = 24 new children.\n"
            "Under 8 are 24 / 4 = 6 of them.\n"
            "So 24 - 6 = 18 new children are 8 or older.\n"
            "The answer is \\boxed{18}.",
        ),
        (
            "Mei is 4 years older than Tom. In 6 years their ages will add up to 40. How old is Tom now?",
            "In 6 years each is 6 years older, so now their ages add up to 40 - 12 = 28.\n"
            "Without the 4 years that Mei is ahead, twice Tom's age is 28 - 4 = 24.\n"
            "Tom is 24 / 2 = 12 years old.\n"
            "The answer is \\boxed{12}.",
        ),
        (
            "A printer makes 15 pages a minute. After 20 minutes it stops for 5 minutes, then it runs for another 12 minutes. "
            "A report has 32 pages. How many whole reports has it printed?",
            "The printer runs for 20 + 12 = 32 minutes.\n"
            "It prints 32 * 15 = 480 pages.\n"
            "That is 480 / 32 = 15 reports.\n"
            "The answer is \\boxed{15}.",
        ),
        (
            "A farmer fills 7 boxes with 36 eggs each. 18 eggs break and the rest is sold by the dozen at $3 a dozen. "
            "How many dollars does the farmer get?",
            "There are 7 * 36 = 252 eggs.\n"
            "After 18 break, 252 - 18 = 234 are left.\n"
            "That is 234 / 12 = 19.5 dozen, of which 19 are whole.\n"
            "The farmer gets 19 * 3 = 57 dollars.\n"
            "The answer is \\boxed{57}.",
        ),
    ],
    "math": [
        (
            "Solve $5x - 7 = 2x + 11$ for $x$.",
            "Subtracting $2x$ and adding $7$ gives $3x = 18$, so $x = \\boxed{6}$.",
        ),
        (
            "What is the sum of the positive divisors of $28$?",
            "The divisors of $28$ are $1, 2, 4, 7, 14, 28$. Their sum is $1+2+4+7+14+28 = \\boxed{56}$.",
        ),
        (
            "Two fair six-sided dice are rolled. What is the probability that the product of the two numbers is odd? "
            "Express your answer as a common fraction.",
            "The product is odd only if both numbers are odd. Each is odd with probability $\\frac{1}{2}$, "
            "so the probability is $\\frac{1}{2} \\cdot \\frac{1}{2} = \\boxed{\\frac{1}{4}}$.",
        ),
        (
            "The legs of a right triangle are $6$ and $10$. How long is its hypotenuse, in simplest radical form?",
            "By the Pythagorean theorem it is $\\sqrt{6^2 + 10^2} = \\sqrt{136} = \\sqrt{4 \\cdot 34} = \\boxed{2\\sqrt{34}}$.",
        ),
        (
            "Find all real solutions of $x^2 - 3x - 10 = 0$, separated by commas.",
            "Factoring, $x^2 - 3x - 10 = (x - 5)(x + 2)$. So the solutions are $\\boxed{-2, 5}$.",
        ),
        (
            "What is the remainder when $7^{50}$ is divided by $5$?",
            "Modulo $5$, $7 \\equiv 2$, and the powers of $2$ repeat $2, 4, 3, 1$ with period $4$. "
            "Since $50 = 4 \\cdot 12 + 2$, we have $7^{50} \\equiv 2^2 = 4$. The remainder is $\\boxed{4}$.",
        ),
        (
            "Let $f(x) = 2x + 3$ and $g(x) = x^2 - 1$. Compute $g(f(2))$.",
            "First, $f(2) = 2 \\cdot 2 + 3 = 7$. Then $g(7) = 7^2 - 1 = \\boxed{48}$.",
        ),
        (
            "In how many ways can a president and a treasurer be chosen from a club of $9$ members if nobody may hold both offices?",
            "There are $9$ choices for president and then $8$ for treasurer, which makes $9 \\cdot 8 = \\boxed{72}$ ways.",
        ),
    ],
}


def load_examples(name: str | Path, n: int = 8) -> list[dict]:
    """The first n worked examples of EXAMPLES["gsm8k" or "math"], of GSM8K_TRAIN_8 ("gsm8k_train"), or of a file of
    questions with solutions. A row's "worked" is its first solution in GSM8K's form, ending in "#### answer". UserError."""
    if str(name) in EXAMPLES:
        rows = [parse_question({"question": q, "solution": s}, str(name)) for q, s in EXAMPLES[str(name)]]
    elif str(name) == "gsm8k_train":
        published = [json.loads(line) for line in GSM8K_TRAIN_8.read_text(encoding="utf-8").splitlines()]
        rows = [parse_question(row, "gsm8k") | {"worked": row["answer"]} for row in published]
    else:
        rows = [row for row in load_questions(name) if row["solutions"]]
    if len(rows) < n:
        raise UserError(f"{name}: {n} worked examples are wanted, it has {len(rows)} questions with a solution")
    return [{"worked": f"{row['solutions'][0]}\n#### {row['answer']}", **row} for row in rows[:n]]
