"""What --input of data.prepare names: local files and folders, or a data set of the hub. Each `Input` becomes a source,
a sub-folder of the data folder."""

import itertools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cli import UserError
from data.loader import parse_mix
from data.questions import HUB_QUESTIONS, question_records
from data.readers import SUFFIXES, Record, hub_files, read_records, stream_hub

# name → (repository, configurations). Each configuration becomes a source of its own; add a data set of text here, and
# one of questions in HUB_QUESTIONS of data/questions.py. (DOLMino's `default` is all of its configurations one after
# the other, 89% DCLM.)
HUB_TEXT = {
    "dolmino": ("allenai/dolmino-mix-1124", tuple(parse_mix("dolmino50"))),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", ("sample-100BT",)),
}


@dataclass
class Input:
    """The records of one source."""

    records: Callable[[int], Iterator[Record]]
    """records(skip): all of them in order, but for the first `skip`"""
    identity: list
    """tells these records from others; kept in meta.json"""
    size: int = 0
    """bytes on disk, in which a record's `position` counts; 0: unknown"""


def hub_name(names: tuple[str, ...]) -> str:
    """The hub data set that --input names; "" for local files. UserError for a hub name beside others."""
    hub = next((name for name in names if name in HUB_QUESTIONS or name in HUB_TEXT or name[:3] == "hf:"), "")
    if not names or (hub and len(names) > 1):
        raise UserError(f"--input {' '.join(names)}: give one hub name, or one or more local files and folders")
    return hub


def find_inputs(config) -> dict[str, Input]:
    """Sub-folder → input, from the flags of data/prepare.py. Most are one; DOLMino is six. UserError: flags that do not
    go together, files that are not there."""
    # Flags that do not go together
    names, hub = config.input, hub_name(config.input)
    if len(names) > 1 and not config.source:
        raise UserError(f"--input names {len(names)} files or folders: choose a name for their source with --source")
    if config.local and not hub:
        raise UserError(f"--local {config.local}: goes with a hub name; local files are named in --input")
    if config.subset and (not hub or HUB_QUESTIONS.get(hub, ("", ()))[1] == ("default",)):
        raise UserError(f"--subset {config.subset}: {hub or 'local files'} have none to choose")
    if config.split != "train" and (not hub or (config.local and hub in HUB_TEXT)):
        raise UserError(f"--split {config.split}: goes with a data set of the hub; of local files, name those wanted")
    if config.text_field != "text" and hub in HUB_QUESTIONS:
        raise UserError(f"--text_field {config.text_field}: {hub} holds questions, whose fields are known")

    # Each source with its records
    if hub in HUB_TEXT and len(HUB_TEXT[hub][1]) > 1:
        parts = (config.subset,) if config.subset else HUB_TEXT[hub][1]
        if config.source and len(parts) > 1:
            raise UserError(f"--source {config.source}: {hub} is {len(parts)} sources, which have their own names")
        inputs = {config.source or part: _hub_text(config, hub, part) for part in parts}
    else:
        name = config.source or names[0].rstrip("/").split("/")[-1].split(".")[0]
        if hub in HUB_QUESTIONS:
            inputs = {name: _hub_questions(config, hub)}
        elif hub:
            inputs = {name: _hub_text(config, hub, config.subset)}
        else:
            files = [file for path in names for file in _local_files(Path(path))]
            inputs = {name: _from_files(files, config.text_field)}

    for name in inputs:
        if not re.fullmatch(r"[^\W_][\w .+-]{0,99}", name) or name in ("questions", "tasks"):
            raise UserError(
                f"--source {name!r}: choose another name, of at most 100 letters, digits and . + - _, for it becomes a "
                f"sub-folder of {config.out} and a name in --mix"
            )
    return inputs


def _hub_questions(config, hub: str) -> Input:
    def records(skip: int) -> Iterator[Record]:
        return itertools.islice(question_records(hub, config.split, config.local, config.subset), skip, None)

    return Input(records, [hub, config.subset, config.split])


def _hub_text(config, hub: str, part: str) -> Input:
    """Text comes in shuffled order, so that the first --max_tokens are of all the kinds that a part holds."""
    repository, parts = HUB_TEXT.get(hub, (hub[3:], ("default",)))
    if config.local:
        # The data sets of HUB_TEXT have no split but train, and folders of many names
        files = hub_files(Path(config.local), part or parts[0], "" if hub in HUB_TEXT else config.split)
        order = np.random.default_rng(config.seed).permutation(len(files))
        return _from_files([files[i] for i in order], config.text_field)

    def records(skip: int) -> Iterator[Record]:
        rows = stream_hub(repository, part or parts[0], config.split, config.seed, skip)
        return (Record(f"{repository}:{row}", content, 0) for row, content in enumerate(rows, start=skip + 1))

    return Input(records, [hub, part, config.split] + _other_field(config.text_field))


def _from_files(files: list[Path], text_field: str) -> Input:
    sizes = [file.stat().st_size for file in files]

    def in_order() -> Iterator[Record]:
        before = 0  # bytes of the files that have been read
        for file in files:
            for record in read_records(file, text_field):
                yield record._replace(position=before + record.position)
            before += file.stat().st_size

    identity = [[file.name, size] for file, size in zip(files, sizes, strict=True)] + _other_field(text_field)
    return Input(lambda skip: itertools.islice(in_order(), skip, None), identity, sum(sizes))


def _other_field(text_field: str) -> list[str]:
    return [text_field] if text_field != "text" else []


def _local_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        known = ", ".join(["world", *HUB_QUESTIONS, *HUB_TEXT, "hf:OWNER/NAME"])
        raise UserError(f"--input {path}: no such file or folder, nor one of {known}")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"--input {path}: the folder holds no file that ends in {', '.join(SUFFIXES)}")
    return files
