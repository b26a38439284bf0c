"""Text → token shards that data/loader.py reads, and question files that SFT, RL and evaluation read.

    python -m data.prepare                                                       # the embedded world → out/data
    python -m data.prepare --input books/ notes.jsonl.gz --source books --out out/mine --tokenizer gpt2
    python -m data.prepare --input openmathinstruct2 --questions only --ban gsm8k --out out/paper    # questions first
    python -m data.prepare --input dolmino --max_tokens 50e9 --ban gsm8k --workers 32 --out out/paper
    python -m data.prepare --input dolmino --local downloads/dolmino-mix-1124 --out out/paper       # without the hub

What it leaves:

    OUT/SOURCE/train_00000.npy …, val_00000.npy …   token ids, uint16 or uint32; each document ends in eos
    OUT/SOURCE/meta.json                            tokenizer, counts, what was skipped, what it was made from
    OUT/questions/train.jsonl, validation.jsonl, …  data/questions.py has their form
    OUT/tasks/NAME.jsonl                            likelihood items (the world's)

Inputs: `world`; gsm8k, math, openmathinstruct2, dolmino, fineweb-edu or hf:OWNER/NAME from the hub, streamed, or from a
copy of it (--local); local .jsonl, .json (an object a line; each also .gz or .zst), .parquet, .txt, or folders of these. A
record {"text": …} is a document (another field: --text_field); a question with solutions, in any form that
data/questions.py reads, becomes its prompt and each solution.

`dolmino` is six sources, OUT/dclm, flan, pes2o, wiki, stackexchange and math, for `pretrain.py --mix dolmino50`; of
--max_tokens each gets its share of that mixture.

A document that contains a held-out question is left out of the text and counted: those in --ban, and whatever
OUT/questions holds besides train.jsonl. So prepare the questions of an output folder before its text.

A killed run goes on after its last complete shard when it is started again with the same flags, and leaves the same
files as a run that was never killed.
"""

import collections
import hashlib
import itertools
import json
import multiprocessing
import os
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
from tqdm import tqdm

from cli import UserError, cli, given
from data import world
from data.loader import META_FORMAT, parse_mix
from data.prompt import format_prompt
from data.questions import (
    HUB_QUESTIONS,
    VALIDATION_GROUPS,
    BannedQuestions,
    load_questions,
    merge_questions,
    normalise,
    parse_question,
    question_records,
    remove,
    split_validation,
)
from data.readers import MAX_RECORD, SUFFIXES, Record, Skipped, hub_files, parse_record, read_records, stream_hub
from data.tokenizer import WORLD_RANKS, load_tokenizer, tokenizer_digest
from files import MALFORMED, crc32, json_digest, remove_stale, replacing, replacing_path, write_jsonl, write_text

WORLD_TOKENS = 10_500_000
WORLD_MATH_SHARE = 0.65  # of tokens

# name → (repository, configurations); their documents come in a shuffled order. Where there are several, each becomes a
# source of its own. (DOLMino's `default` is all of them one after the other, 89% DCLM.)
HUB_TEXT = {
    "dolmino": ("allenai/dolmino-mix-1124", tuple(parse_mix("dolmino50"))),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", ("sample-100BT",)),
}


@dataclass
class Config:
    """Flags of `python -m data.prepare`."""

    input: tuple[str, ...] = ("world",)
    """world; or one of gsm8k, math, openmathinstruct2 (its GSM8K sources), openmathinstruct2-full (all of it, the paper's
    MATH runs), dolmino, fineweb-edu, hf:OWNER/NAME; or local files and folders"""
    out: str = "out/data"
    """the data folder; each input becomes a sub-folder of it, so that sources can be mixed in training"""
    source: str = ""
    """name of that sub-folder; by default the name of the input"""
    subset: str = ""
    """configuration of a hub text data set, where it is not the usual one (fineweb-edu: sample-10BT; dolmino: math alone)"""
    local: str = ""
    """a copy of the hub data set on this machine, in the hub's layout, to be read instead of the hub"""
    text_field: str = "text"
    """field of a record that holds its text"""
    split: str = "train"
    """split of a hub data set"""
    tokenizer: str = ""
    """cl100k (OLMo2's; the default), gpt2, or world (the default for the world)"""
    questions: Literal["no", "also", "only"] = "no"
    """write OUT/questions from an input of questions, beside the token shards (also) or instead of them (only)"""
    validation_questions: int = 1000
    """held out of the questions: the first so many of a shuffle with seed 42, as in the paper (openmathinstruct2-full: so
    many of GSM8K's sources and so many of MATH's)"""
    ban: tuple[str, ...] = ()
    """files or hub names (their test split) of questions that must be in no text and in no question file"""
    val_fraction: float = 0.01
    """share of the documents held out for bits per byte, chosen by a hash of the text, so that copies stay together"""
    max_tokens: float = 0
    """stop after so many train tokens (50e9 is fine), of all sources together; 0: all there is (the world: 8 million)"""
    shard_tokens: float = 100_000_000
    """train tokens of a shard; a killed run loses at most the shard that it was working on"""
    seed: int = 0
    """of the world, of the order of hub text, and of the choice of held-out documents"""
    workers: int = 0
    """processes that tokenise; 0: one per core. Changes nothing but the time"""
    strict: bool = False
    """stop at a document that cannot be read instead of naming, counting and skipping it"""


class Inputs:
    """What --input names: hub data set or local files.

    `sources` maps the sub-folder of each source to its Source; most inputs are one source."""

    def __init__(self, config: Config):
        names = config.input
        self.hub = next(
            (name for name in names if name in HUB_QUESTIONS or name in HUB_TEXT or name[:3] == "hf:"), None
        )
        if not names or (self.hub and len(names) > 1):
            raise UserError(f"--input {' '.join(names)}: give one hub name, or one or more local files and folders")
        if len(names) > 1 and not config.source:
            raise UserError(
                f"--input names {len(names)} files or folders: choose a name for their source with --source"
            )
        if config.local and not self.hub:
            raise UserError(f"--local {config.local}: goes with a hub name; local files are named in --input")
        if config.subset and (not self.hub or self.hub in HUB_QUESTIONS):
            raise UserError(f"--subset {config.subset}: {self.hub or 'local files'} have none to choose")
        if config.split != "train" and (not self.hub or (config.local and self.hub not in HUB_QUESTIONS)):
            raise UserError(
                f"--split {config.split}: goes with a data set of the hub; of local files, name those wanted"
            )
        if config.text_field != "text" and self.hub in HUB_QUESTIONS:
            raise UserError(f"--text_field {config.text_field}: {self.hub} holds questions, whose fields are known")
        name = config.source or names[0].rstrip("/").split("/")[-1].split(".")[0]
        if self.hub in HUB_TEXT and len(HUB_TEXT[self.hub][1]) > 1:
            parts = (config.subset,) if config.subset else HUB_TEXT[self.hub][1]
            if config.source and len(parts) > 1:
                raise UserError(
                    f"--source {config.source}: {self.hub} is {len(parts)} sources, which have their own names"
                )
            self.sources = {config.source or part: Source(config, self.hub, part) for part in parts}
        else:
            self.sources = {name: Source(config, self.hub, config.subset)}
        for source in self.sources:
            if not re.fullmatch(r"[^\W_][\w .+-]{0,99}", source) or source in ("questions", "tasks"):
                raise UserError(
                    f"--source {source!r}: choose another name, of at most 100 letters, digits and . + - _, for it becomes a sub-folder of "
                    f"{config.out} and a name in --mix"
                )


class Source:
    """The records of one sub-folder. `identity` tells them from others; `size` is in bytes, 0 if unknown."""

    def __init__(self, config: Config, hub: str | None, subset: str):
        self.config, self.hub, self.size = config, hub, 0
        if hub in HUB_QUESTIONS:
            self.files = None  # read through question_records, which knows their configurations
        elif hub:
            repository, parts = HUB_TEXT.get(hub, (hub[3:], ("default",)))
            self.repository, self.part = repository, subset or parts[0]
            self.files = hub_files(Path(config.local), self.part) if config.local else None
            if self.files:  # in shuffled order, for the first --max_tokens of a part are to be of all its kinds
                order = np.random.default_rng(config.seed).permutation(len(self.files))
                self.files = [self.files[i] for i in order]
        else:
            self.files = [file for name in config.input for file in _local_files(Path(name))]
        if self.files is None:
            self.identity = [hub, subset, config.split]
        else:
            sizes = [file.stat().st_size for file in self.files]
            self.size = sum(sizes)
            self.identity = [[file.name, size] for file, size in zip(self.files, sizes, strict=True)]
        if config.text_field != "text":
            self.identity.append(config.text_field)

    def records(self, skip: int = 0) -> Iterator[Record]:
        """All records in order but the first `skip`; `position` counts over all files."""
        if self.hub and self.files is None and self.hub not in HUB_QUESTIONS:
            rows = stream_hub(self.repository, self.part, self.config.split, self.config.seed, skip)
            for row, content in enumerate(rows, start=skip + 1):
                yield Record(f"{self.repository}:{row}", content, 0)
        else:
            yield from itertools.islice(self._in_order(), skip, None)

    def _in_order(self) -> Iterator[Record]:
        if self.files is None:
            yield from question_records(self.hub, self.config.split, self.config.local)
            return
        before = 0
        for file in self.files:
            for record in read_records(file, self.config.text_field):
                yield record._replace(position=before + record.position)
            before += file.stat().st_size


def _local_files(path: Path) -> list[Path]:
    if path.is_file():
        return [path]
    if not path.is_dir():
        hub = ", ".join(["world", *HUB_QUESTIONS, *HUB_TEXT, "hf:OWNER/NAME"])
        raise UserError(f"--input {path}: no such file or folder, nor one of {hub}")
    files = sorted(file for file in path.rglob("*") if file.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"--input {path}: the folder holds no file that ends in {', '.join(SUFFIXES)}")
    return files


# ---------------------------------------------------------------------------------------------------------------------
# Questions


def prepare_questions(config: Config, inputs: Inputs, out: Path, banned: list[str]) -> None:
    """Writes OUT/questions: train.jsonl and validation.jsonl, and test.jsonl where the hub data set has a test split.

    The three share no question, nor any with `banned`, white space and case aside."""
    splits = {}
    if inputs.hub in ("gsm8k", "math"):
        splits["test"] = load_questions(inputs.hub, "test", config.strict, folder=config.local)
        banned = banned + [row["question"] for row in splits["test"]]
    ((name, source),) = inputs.sources.items()
    rows = merge_questions(source.records(), name, config.strict)
    kept = remove(rows, banned)
    groups = VALIDATION_GROUPS.get(inputs.hub, ())
    splits["train"], splits["validation"] = split_validation(kept, config.validation_questions, groups=groups)
    folder = out / "questions"
    for name, rows_of_split in splits.items():
        path = folder / f"{name}.jsonl"
        if path.exists() and (not rows_of_split or load_questions(path) != rows_of_split):
            raise UserError(f"{path}: holds other questions; choose another --out, or delete {folder}")
    for name, rows_of_split in splits.items():
        if rows_of_split:  # an empty file could not be read
            write_jsonl(folder / f"{name}.jsonl", rows_of_split, digest=True)
    counts = ", ".join(f"{len(splits[name])} {name}" for name in splits)
    print(f"{folder}: {counts}; {len(rows) - len(kept)} removed as banned")


# ---------------------------------------------------------------------------------------------------------------------
# Text → tokens. The main process reads and writes, in order; the workers parse, search and tokenise.


class Document(NamedTuple):
    tokens: np.ndarray
    """of the dtype of the shards; eos after each segment"""
    n_bytes: int
    """of UTF-8 text"""
    draw: float
    """a hash of the seed and the text (of a question: of the question alone), uniform in [0, 1): chooses held-out documents"""


class Encoder:
    """Records → Document, or None where a banned question is in it, or a str: why it cannot be read."""

    def __init__(self, tokenizer_name: str, banned: list[str], seed: int, text_field: str = "text"):
        self.tokenizer, self.banned, self.seed = load_tokenizer(tokenizer_name), BannedQuestions(banned), seed
        self.text_field = text_field

    def __call__(self, contents: list[bytes | dict]) -> list[Document | None | str]:
        return [self._record(content) for content in contents]

    def _record(self, content: bytes | dict) -> Document | None | str:
        try:
            record = parse_record(content, self.text_field)
            if self.text_field in record:
                text = record[self.text_field]
                if not isinstance(text, str) or not text.strip():
                    raise ValueError(f"its field {self.text_field!r} holds no text")
                segments, key = [text], text
            elif not {"question", "problem"} & record.keys():
                fields = ", ".join(map(str, record))[:100]
                raise ValueError(
                    f"no field {self.text_field!r} (--text_field) and no question; it has: {fields or 'nothing'}"
                )
            else:
                row = parse_question(record, "")
                segments = [format_prompt(row["question"]) + solution for solution in row["solutions"]]
                key = normalise(row["question"])
                if not segments:
                    raise ValueError("a question without a solution is no text")
            if self.banned.found_in("\n".join(segments)):
                return None
            return self.document(segments, key)
        except ValueError as error:  # UnicodeError too: half a surrogate pair
            return str(error)

    def document(self, segments: list[str], key: str = "") -> Document:
        tokens = [token for text in segments for token in (*self.tokenizer.encode(text), self.tokenizer.eos)]
        draw = int.from_bytes(hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=6).digest(), "big") / 2**48
        n_bytes = sum(len(text.encode("utf-8")) for text in segments)
        return Document(np.array(tokens, shard_dtype(self.tokenizer)), n_bytes, draw)


def shard_dtype(tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size < 65536 else np.uint32)


_encoder: Encoder | None = None  # of a worker process


def _start_worker(*args) -> None:
    global _encoder
    _encoder = Encoder(*args)

    def end_with_parent():  # a killed parent closes no queue: its workers would wait for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode(contents: list[bytes | dict]) -> list[Document | None | str]:
    return _encoder(contents)


def _chunks(records: Iterator[Record]) -> Iterator[list[Record]]:
    """64 records at a time, fewer where they are long: chunks of every worker are in memory at once."""
    chunk, size = [], 0
    for record in records:
        chunk.append(record)
        parts = record.content.values() if isinstance(record.content, dict) else (record.content,)
        size += sum(len(part) for part in parts if isinstance(part, str | bytes))
        if len(chunk) == 64 or size >= MAX_RECORD:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def encode_records(
    records: Iterator[Record], encoder_args: tuple, workers: int
) -> Iterator[tuple[Record, Document | None | str]]:
    """Each record with what Encoder makes of it, in order; a few chunks of records are under way at any time."""
    chunks = _chunks(records)
    if workers == 1:
        encoder = Encoder(*encoder_args)
        for chunk in chunks:
            yield from zip(chunk, encoder([record.content for record in chunk]), strict=True)
        return
    context = multiprocessing.get_context("spawn")  # fork is unsafe with threads, and the progress bar has one
    pool = ProcessPoolExecutor(workers, context, _start_worker, encoder_args)
    try:
        under_way = collections.deque()
        for chunk in itertools.chain(chunks, itertools.repeat(None, 4 * workers)):  # at the end: only take out
            if chunk:
                under_way.append((chunk, pool.submit(_encode, [record.content for record in chunk])))
            if under_way and (chunk is None or len(under_way) > 4 * workers - 1):
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for lack of memory; start again with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


def write_shard(path: Path, tokens: np.ndarray) -> None:
    """The file that np.save makes. np.save itself leaves the last 4 KB to C's buffer, and does not notice when a full disk
    takes no more of them."""
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(tokens))
        file.write(tokens.data)


class Shards:
    """Writes documents to the shards of one source and keeps count in its meta.json's dictionary, `meta`."""

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.meta = folder, meta
        self.waiting: dict[str, list[np.ndarray]] = {"train": [], "val": []}
        self.n_waiting = 0  # tokens

    def add(self, split: str, document: Document) -> None:
        self.waiting[split].append(document.tokens)
        self.n_waiting += len(document.tokens)
        counts = self.meta[split]
        counts["documents"] += 1
        counts["tokens"] += len(document.tokens)
        counts["bytes"] += document.n_bytes

    def flush(self) -> None:
        """Everything that waits becomes a shard of its split."""
        for split, arrays in self.waiting.items():
            if arrays:
                name = f"{split}_{len(self.meta[split]['shards']):05d}.npy"
                write_shard(self.folder / name, np.concatenate(arrays))
                self.meta.setdefault("digests", {})[name] = crc32(self.folder / name)
                self.meta[split]["shards"].append(name)
        self.waiting, self.n_waiting = {"train": [], "val": []}, 0


def new_meta(source: str, tokenizer, made_from: dict) -> dict:
    """The meta.json of a source that has nothing yet."""
    return {
        "format": META_FORMAT,
        "source": source,
        "tokenizer": tokenizer.name,
        "tokenizer_digest": tokenizer_digest(tokenizer.name),
        "vocab_size": tokenizer.vocab_size,
        "dtype": str(shard_dtype(tokenizer)),
        "seed": made_from["seed"],
        "train": {"tokens": 0, "bytes": 0, "documents": 0, "shards": []},
        "val": {"tokens": 0, "bytes": 0, "documents": 0, "shards": []},
        "digests": {},
        "skipped": {"unreadable": 0, "banned": 0, "named": []},
        "made_from": made_from,
    }


def prepare_tokens(config: Config, source: Source, folder: Path, banned: list[str], max_tokens: int) -> None:
    """Writes the shards and meta.json of one source, or goes on where a killed run with the same flags stopped."""
    tokenizer = load_tokenizer(config.tokenizer or "cl100k")
    made_from = {
        "input": source.identity,
        "tokenizer": tokenizer.name,
        "seed": config.seed,
        "val_fraction": config.val_fraction,
        "max_tokens": max_tokens,
        "shard_tokens": int(config.shard_tokens),
        "banned": _digest(sorted(set(map(normalise, banned)))),
    }
    meta = _begin_or_resume(folder, new_meta(folder.name, tokenizer, made_from) | {"records": 0})
    if meta is None:
        return
    shards, train, val = Shards(folder, meta), meta["train"], meta["val"]
    skipped = Skipped(config.strict)
    skipped.count, skipped.named = meta["skipped"]["unreadable"], meta["skipped"]["named"]
    encoder_args = (tokenizer.name, banned, config.seed, config.text_field)
    encoded = encode_records(source.records(meta["records"]), encoder_args, config.workers or os.cpu_count() or 1)
    # on a terminal only; the total is what is asked for, or else a guess from the part of the input that has been read
    bar = tqdm(total=max_tokens or None, initial=train["tokens"], unit="tok", unit_scale=True, disable=None)
    bar.set_description(str(folder))
    for record, document in encoded:
        meta["records"] += 1
        if isinstance(document, str):
            skipped.add(record.where, document)
            meta["skipped"] |= {"unreadable": skipped.count, "named": skipped.named}
        elif document is None:
            meta["skipped"]["banned"] += 1
        else:
            # the first one, so that a small input has something held out too
            first = config.val_fraction > 0 and not val["documents"] + train["documents"]
            shards.add("val" if first or document.draw < config.val_fraction else "train", document)
            bar.update(len(document.tokens))
            if source.size and not max_tokens:
                bar.total = int(bar.n * source.size / max(1, record.position))
        if 0 < max_tokens <= train["tokens"]:
            break
        if shards.n_waiting >= config.shard_tokens:
            shards.flush()
            _write_json(folder / "progress.json", meta)
    bar.close()
    encoded.close()
    shards.flush()
    counts = f"{skipped.count} unreadable, {meta['skipped']['banned']} with a held-out question"
    if not train["tokens"] and config.val_fraction < 1:
        (folder / "progress.json").unlink()
        for name in val["shards"]:
            (folder / name).unlink()
        folder.rmdir()
        raise UserError(
            f"{' '.join(config.input)}: nothing to train on: {val['documents']} documents held out, {counts}"
        )
    del meta["records"]
    _write_json(folder / "meta.json", meta)
    (folder / "progress.json").unlink()
    _report(folder, meta, counts)


def _begin_or_resume(folder: Path, fresh: dict) -> dict | None:
    """The meta to go on from: `fresh`, or that of a killed run with the same flags; None if there is nothing to do."""
    remove_stale(folder)
    for name in ("meta.json", "progress.json"):
        path = folder / name
        if path.exists():
            try:
                meta = json.loads(path.read_text(encoding="utf-8"))
                theirs = dict(meta["made_from"])
                mine = json_digest(meta)
                if meta.get("digest", mine if name == "meta.json" else "") != mine:  # older ones have none
                    raise ValueError
            except MALFORMED:
                raise UserError(f"{path}: is damaged; delete {folder} and prepare it again") from None
            ours = fresh["made_from"]
            other = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
            if other:
                raise UserError(
                    f"{folder}: was made with other settings ({', '.join(other)}); choose another --out or --source, or delete it"
                )
            if name == "meta.json":
                (folder / "progress.json").unlink(missing_ok=True)  # where a kill came between the two
                print(f"{folder}: already prepared")
                return None
            print(f"{folder}: going on after {meta['records']:,} records")
            return meta
    if folder.exists() and any(folder.iterdir()):
        raise UserError(f"{folder}: is not empty and was not made here; choose another --out or --source")
    folder.mkdir(parents=True, exist_ok=True)
    _write_json(folder / "progress.json", fresh)
    return fresh


# ---------------------------------------------------------------------------------------------------------------------
# The world


def build_world(out: str | Path, seed: int = 0, tokens: int = WORLD_TOKENS, tokenizer_name: str = "world") -> None:
    """The embedded world in a data folder: sources general and math of about `tokens` train tokens together, questions,
    tasks. Returns at once if it is there already; builds in a temporary folder, so `out` is whole or absent.

    Raises UserError if `out` holds anything else, also a world that an older data/world.py made."""
    out, tokenizer = Path(out), load_tokenizer(tokenizer_name)
    if not out.name:
        raise UserError(f"--out {out}: name a folder that can be made, such as out/data")
    questions, tasks = world.questions(seed), world.tasks(seed)
    content = [questions, tasks, WORLD_RANKS.read_bytes().hex()]
    content += [list(itertools.islice(world.documents(seed, source), 50)) for source in world.SOURCES]
    made_from = {
        "input": "world",
        "tokenizer": tokenizer.name,
        "seed": seed,
        "max_tokens": tokens,
        "content": _digest(content),
    }
    if out.exists() and any(out.iterdir()):
        if _same_world(out, made_from):
            return
        raise UserError(
            f"{out}: holds other data (or this world of other settings or another version); choose another folder or delete it"
        )

    try:
        with replacing_path(out) as part:
            for split, rows in questions.items():
                write_jsonl(part / "questions" / f"{split}.jsonl", rows, digest=True)
            for name, items in tasks.items():
                write_jsonl(part / "tasks" / f"{name}.jsonl", items, digest=True)
            encoder = Encoder(tokenizer.name, [], seed)
            for source, share in zip(("general", "math"), (1 - WORLD_MATH_SHARE, WORLD_MATH_SHARE), strict=True):
                folder, meta = part / source, new_meta(source, tokenizer, made_from)
                folder.mkdir()
                shards = Shards(folder, meta)
                for segments in world.documents(seed, source, "validation"):
                    shards.add("val", encoder.document(segments))
                bar = tqdm(
                    total=int(share * tokens), desc=f"world: {source}", unit="tok", unit_scale=True, disable=None
                )
                for segments in world.documents(seed, source):
                    document = encoder.document(segments)
                    shards.add("train", document)
                    bar.update(len(document.tokens))
                    if meta["train"]["tokens"] >= share * tokens:
                        break
                bar.close()
                shards.flush()
                _write_json(folder / "meta.json", meta)
    except OSError:  # another process was faster
        if not _same_world(out, made_from):
            raise
    for source in world.SOURCES:
        _report(out / source, json.loads((out / source / "meta.json").read_text(encoding="utf-8")), "")


def _same_world(out: Path, made_from: dict) -> bool:
    try:
        metas = [json.loads((out / source / "meta.json").read_text(encoding="utf-8")) for source in world.SOURCES]
        return all(meta.get("made_from") == made_from for meta in metas)
    except MALFORMED:
        return False


# ---------------------------------------------------------------------------------------------------------------------
# Small things


def _write_json(path: Path, content: dict) -> None:
    content = content | {"digest": json_digest(content)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _report(folder: Path, meta: dict, note: str) -> None:
    train, val = meta["train"], meta["val"]
    print(
        f"{folder}: {train['tokens']:,} train tokens in {train['documents']:,} documents, {val['tokens']:,} held out in "
        f"{val['documents']:,}; {train['bytes'] / max(1, train['tokens']):.2f} bytes a token"
        + (f"; {note}" if note else "")
    )


def main(config: Config) -> None:
    """Prepares what the flags ask for. Raises UserError."""
    if not 0 <= config.val_fraction <= 1:
        raise UserError(f"--val_fraction {config.val_fraction}: must be between 0 and 1")
    if config.shard_tokens < 1 or config.max_tokens < 0 or config.workers < 0:
        raise UserError("--shard_tokens must be at least 1, --max_tokens and --workers at least 0")
    out = Path(config.out)
    if config.input == ("world",):
        idle = given(config) - {"input", "out", "tokenizer", "max_tokens", "seed", "workers", "strict"}
        if idle:
            raise UserError(f"--{min(idle)}: the world takes no such flag; leave it out")
        build_world(out, config.seed, int(config.max_tokens) or WORLD_TOKENS, config.tokenizer or "world")
        return
    inputs = Inputs(config)
    if config.questions != "only":
        load_tokenizer(config.tokenizer or "cl100k")  # a wrong name must stop this before the questions are written
    banned = [row["question"] for name in config.ban for row in load_questions(name, "test", config.strict)]
    if config.questions != "no":
        if inputs.hub and inputs.hub not in HUB_QUESTIONS:
            raise UserError(
                f"--questions {config.questions}: {inputs.hub} is text; questions are {', '.join(HUB_QUESTIONS)}"
            )
        prepare_questions(config, inputs, out, banned)
    if config.questions != "only":
        held_out = [path for path in sorted((out / "questions").glob("*.jsonl")) if path.name != "train.jsonl"]
        banned += [row["question"] for path in held_out for row in load_questions(path)]
        mix = parse_mix("dolmino50") if inputs.hub == "dolmino" and not config.subset else {}
        for name, source in inputs.sources.items():
            share = mix[name] / sum(mix.values()) if mix else 1
            max_tokens = max(1, int(config.max_tokens * share)) if config.max_tokens else 0
            prepare_tokens(config, source, out / name, banned, max_tokens)


if __name__ == "__main__":
    cli(main, Config)
