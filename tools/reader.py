"""A page to read the answers of an evaluation, or of two side by side: filter, search, sort, tokens shaded by probability.

    python -m tools.reader out/rl/eval/last.json                                     # → out/rl/eval/last.html
    python -m tools.reader out/base/eval/last.json out/rl/eval/last.json --out both.html

The answers are those of eval.py, beside the record in CHECKPOINT.jsonl.gz; equal ones stand once, with their number.
The page is one file and loads nothing; what models wrote gets onto the screen as text, never as HTML. The first few
answers to each question have probabilities (SHADED in eval.py); in records of older versions none has.
"""

import gzip
import html
import json
import re
import zlib
from dataclasses import dataclass
from pathlib import Path

from tyro.conf import Positional

from cli import UserError, cli
from curves import short_names
from files import MALFORMED, read_json, write_text
from verifier import GRADERS

TEMPLATE = Path(__file__).with_name("reader.html")
Key = tuple[str, str]  # set and id of a question


@dataclass
class Config:
    """Reader: of which records, and where to"""

    records: Positional[tuple[str, ...]] = ()  # one or two records of eval.py
    out: str = ""  # the page; empty: beside the first record, with .html for .json
    answers: int = 0  # the first so many answers to each question; 0: all. Fewer make a smaller page


def main(config: Config) -> None:
    if not 1 <= len(config.records) <= 2:
        raise UserError(f"{len(config.records)} records: name one or two, such as out/rl/eval/last.json")
    paths = [Path(record) for record in config.records]
    out = Path(config.out) if config.out else paths[0].with_suffix(".html")
    if out.suffix != ".html":
        raise UserError(f"--out {out}: a name that ends in .html")
    write_text(out, page(paths, config.answers))
    print(f"wrote {out}")


def page(paths: list[Path], limit: int) -> str:
    """The whole page. UserError for what is no record, has no answers beside it, or shares no question with the other."""
    read = [read_answers(path, limit) for path in paths]
    try:
        return page_of(paths, [record for record, _ in read], [of for _, of in read])
    except MALFORMED as error:  # a field is absent, or of another kind
        raise UserError(f"{' or '.join(map(str, paths))}: no record of eval.py ({error!r})") from None


def page_of(paths: list[Path], records: list[dict], answers: list[dict[Key, dict]]) -> str:
    """The page of records and their answers. UserError if they share no question; other errors where a record is none."""
    keys = dict.fromkeys(key for of in answers for key in of)
    if len(answers) > 1 and not answers[0].keys() & answers[1].keys():
        raise UserError(f"{paths[0]} and {paths[1]} have no question in common")
    questions = []
    for key in keys:
        row = next(of[key] for of in answers if key in of)
        about = {"set": key[0], "id": key[1], "question": row["question"], "answer": row["answer"]}
        questions.append(about | {"of": [of[key]["shown"] if key in of else None for of in answers]})
    names = short_names([path.with_suffix("") for path in paths])
    columns, rows = table(records, names)
    data = {
        "columns": columns,
        "records": [{"name": name, "cells": row} for name, row in zip(names, rows, strict=True)],
        "questions": questions,
        "shaded": any("p" in a for q in questions for of in q["of"] if of for a in of["answers"]),
    }
    # In JSON "<" can be written so that no text ends the script element or begins a comment
    embedded = json.dumps(data).replace("<", "\\u003c")
    title = html.escape("Answers of " + " and ".join(names))
    parts = {"__TITLE__": title, "__DATA__": embedded}
    page = re.sub("__TITLE__|__DATA__", lambda mark: parts[mark[0]], TEMPLATE.read_text(encoding="utf-8"))
    return page.encode("utf-8", "replace").decode("utf-8")  # a file's name need not be UTF-8


def read_answers(path: Path, limit: int) -> tuple[dict, dict[Key, dict]]:
    """A record of eval.py and its questions with what the page shows of their answers. UserError."""
    record, beside = read_json(path), path.with_suffix(".jsonl.gz")
    try:
        counts = {(name, q["id"]): q for name, of_set in record["questions"].items() for q in of_set["questions"]}
        grader = record["settings"].get("grader", "strict")
        with gzip.open(beside, "rt", encoding="utf-8") as file:
            rows = {(row["set"], row["id"]): row for row in map(json.loads, file)}
        for key, row in rows.items():
            row["shown"] = {"right": counts[key]["c"], "n": counts[key]["n"], "answers": grouped(row, grader, limit)}
    except FileNotFoundError:
        raise UserError(f"{beside}: no such file; the answers of a record lie beside it") from None
    except (EOFError, zlib.error, *MALFORMED) as error:
        raise UserError(f"{path}: no record of eval.py, or not with its answers ({error!r})") from None
    return record, rows


def grouped(row: dict, grader: str, limit: int) -> list[dict]:
    """The answers to a question, equal ones once, the most frequent first.

    kind: right, wrong, or none, where the grader finds no answer in the text. said: what it finds.
    """
    groups: dict[tuple, dict] = {}
    for sample in row["samples"][: limit or None]:
        key = sample["text"], sample["right"], sample.get("cut", False)
        if key not in groups:
            said = GRADERS[grader](sample["text"], row["answer"]).answer
            kind = "right" if sample["right"] else "none" if said is None else "wrong"
            kept = {name: sample[name] for name in ("text", "process", "cut", "p", "ends") if name in sample}
            groups[key] = {"kind": kind, "said": said, "times": 0, **kept}
        groups[key]["times"] += 1
    return sorted(groups.values(), key=lambda group: -group["times"])


def table(records: list[dict], names: list[str]) -> tuple[list[str], list[list[str]]]:
    """Heads of columns, and a row for each record: what it is, and pass@k of its sets at the least and the largest k."""
    rows = []
    for record, name in zip(records, names, strict=True):
        tokens = f"{record['tokens'] / 1e6:.2f}"
        row = {"record": name, "stage": record["stage"], "step": str(record["step"]), "M tokens": tokens}
        for set_name, of_set in record["questions"].items():
            row["T"] = f"{of_set['temperature']:g}"
            ks = list(of_set["strict"])  # "pass@1", "pass@8", ...
            for k in dict.fromkeys((ks[0], ks[-1])):
                row[f"{set_name} {k} %"] = f"{100 * of_set['strict'][k]['mean']:.1f}"
        rows.append(row)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    return columns, [[row.get(column, "–") for column in columns] for row in rows]


if __name__ == "__main__":
    cli(main, Config)
