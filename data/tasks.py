"""Likelihood tasks: items of multiple choice or cloze, and the pairs of texts whose likelihood a model is asked for.

One JSON object a line, in one of two forms:

    {"query": "Question: What is wet?", "choices": ["sand", "rain"], "gold": 1}      gold: index of the right choice
    {"context": "He ate a", "continuation": "pear"}
"""

from pathlib import Path

from cli import UserError
from data.readers import parse_record, read_records
from data.tokenizer import Tokenizer


def find_tasks(data: str, names: tuple[str, ...], limit: int = 0) -> dict[str, list[dict]]:
    """name → items of likelihood tasks; "all": every one in DATA/tasks; "none" and "text" (bits per byte) are none."""
    folder = Path(data) / "tasks"
    tasks = {}
    for name in names:
        if name in ("none", "text"):
            continue
        if name == "all":
            paths = sorted(folder.glob("*.jsonl"))
        else:
            paths = [p for p in (folder / f"{name}.jsonl", Path(name)) if p.is_file()][:1]
            if not paths:
                raise UserError(f"--tasks {name}: neither {folder / name}.jsonl nor a file")
        for path in paths:
            short = path.name.split(".")[0]
            if short in tasks:
                raise UserError(
                    f"--tasks: two are called {short} in the record (the name up to its first dot): rename {path}"
                )
            tasks[short] = load_items(path)[: limit or None]
    return tasks


def load_items(path: Path) -> list[dict]:
    """The items of a jsonl file, all of one form. UserError for anything else."""
    items = []
    for record in read_records(path):
        try:
            # a field without a value is none: tables have all columns in all rows
            item = {key: value for key, value in parse_record(record.content).items() if value is not None}
            check_item(item)
            if items and ("choices" in item) != ("choices" in items[0]):
                raise ValueError("one file has items of one form")
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            what = f"no field {error}" if isinstance(error, KeyError) else error
            raise UserError(f"{record.where}: no likelihood item ({what}): docs/data.md has the two forms") from None
        items.append(item)
    if not items:
        raise UserError(f"{path}: no likelihood item in it")
    return items


def check_item(item: dict) -> None:
    """ValueError, or what a missing field or one of another type raises, unless it has one of the two forms."""
    if "choices" not in item:
        if not (item["context"].strip() and item["continuation"].strip()):
            raise ValueError("context or continuation is empty")
        return
    choices, gold = item["choices"], item["gold"]
    if not isinstance(choices, list) or len(choices) < 2 or not all(choice.strip() for choice in choices):
        raise ValueError("choices is no list of two texts or more, or one is empty")
    if type(gold) is not int or not 0 <= gold < len(choices) or not item["query"].strip():
        raise ValueError("gold is no index of choices, counted from 0, or the query is empty")


def task_pairs(items: list[dict], tokenizer: Tokenizer) -> list[tuple[list[int], list[int]]]:
    """(context, continuation) of every choice of every item, or of every cloze item."""
    if "choices" in items[0]:
        texts = [question_and_choice(item["query"], choice) for item in items for choice in item["choices"]]
    else:
        texts = [(item["context"].rstrip(" "), " " + item["continuation"].lstrip()) for item in items]
    return [(tokenizer.encode(context), tokenizer.encode(continuation)) for context, continuation in texts]


def question_and_choice(query: str, choice: str) -> tuple[str, str]:
    """(context, continuation). The space belongs to the continuation, as in running text. A query "Question: …", as
    lm-evaluation-harness has for ARC and others, is followed by "Answer:"."""
    query = query.rstrip()
    return (f"{query}\nAnswer:" if query.startswith("Question:") else query), " " + choice.strip()


def check_pairs(pairs: list[tuple[list[int], list[int]]], limit: int, label: str) -> None:
    """UserError for a pair that has no likelihood in a context of `limit` tokens."""
    for i, (context, continuation) in enumerate(pairs):
        if not context or not continuation or len(continuation) > limit:
            raise UserError(f"{label}: item {i} has an empty context or continuation, or one beyond {limit} tokens")
