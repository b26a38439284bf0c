"""One source on disk: a sub-folder of the data folder. Written here for data/prepare.py, read here for data/loader.py.

    train_00000.npy …, val_00000.npy …     token ids, uint16 or uint32; each document ends in eos
    meta.json                              counts, tokenizer, digests of the shards, what it was made from; written last
    progress.json                          meta.json of a run that is not finished, with the records that are done

A run that was killed goes on from progress.json: what was written after it is written again, to the same bytes.
"""

import errno
import json
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cli import UserError
from data.tokenizer import check_tokenizer, tokenizer_digest
from files import MALFORMED, crc32, json_digest, remove_stale, replacing, write_text

META_FORMAT = 1
DTYPES = {"uint16": np.dtype(np.uint16), "uint32": np.dtype(np.uint32)}


class Document(NamedTuple):
    tokens: np.ndarray
    """of the dtype of the shards; eos after each segment"""
    n_bytes: int
    """of its text in UTF-8"""
    draw: float
    """uniform in [0, 1), by a hash of the seed and the text (of a question: without its solutions); chooses what is held out"""


def shard_dtype(tokenizer) -> np.dtype:
    return np.dtype(np.uint16 if tokenizer.vocab_size < 65536 else np.uint32)


# ---------------------------------------------------------------------------------------------------------------------
# Writing
# ---------------------------------------------------------------------------------------------------------------------


def new_meta(name: str, tokenizer, made_from: dict) -> dict:
    """The meta.json of a source that has nothing yet. made_from: all that decides what it will hold."""
    return {
        "format": META_FORMAT,
        "source": name,
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


def begin_or_resume(folder: Path, fresh: dict) -> dict | None:
    """The meta to go on from: `fresh`, or that of a killed run with the same flags. None if the source is finished.

    UserError if the folder was made with other flags (made_from), is damaged, or holds anything else."""
    remove_stale(folder)
    finished, begun = folder / "meta.json", folder / "progress.json"
    if not finished.exists() and not begun.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UserError(f"{folder}: is not empty and was not made here; choose another --out or --source")
        folder.mkdir(parents=True, exist_ok=True)
        _write_json(begun, fresh)
        return fresh

    path = finished if finished.exists() else begun
    try:
        meta = json.loads(path.read_text(encoding="utf-8"))
        theirs, digest = dict(meta["made_from"]), json_digest(meta)
        if meta.get("digest", digest if path == finished else "") != digest:  # an older meta.json has none
            raise ValueError
    except MALFORMED:
        raise UserError(f"{path}: is damaged; delete {folder} and prepare it again") from None
    ours = fresh["made_from"]
    other = sorted(key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key))
    if other:
        raise UserError(
            f"{folder}: was made with other settings ({', '.join(other)}); choose another --out or --source, or delete it"
        )
    if path == finished:
        begun.unlink(missing_ok=True)  # where a kill came between the two
        print(f"{folder}: already prepared")
        return None
    print(f"{folder}: going on after {meta['records']:,} records")
    return meta


class Shards:
    """Writes the documents of one source to shards, and counts in its `meta`."""

    def __init__(self, folder: Path, meta: dict):
        self.folder, self.meta = folder, meta
        self.waiting: dict[str, list[np.ndarray]] = {"train": [], "val": []}  # documents for the next shard
        self.n_waiting = 0  # their tokens

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
                _write_shard(self.folder / name, np.concatenate(arrays))
                self.meta.setdefault("digests", {})[name] = crc32(self.folder / name)
                self.meta[split]["shards"].append(name)
        self.waiting, self.n_waiting = {"train": [], "val": []}, 0

    def save_progress(self) -> None:
        self.flush()
        _write_json(self.folder / "progress.json", self.meta)

    def finish(self) -> None:
        """What waits becomes a shard, progress.json becomes meta.json."""
        self.flush()
        self.meta.pop("records", None)
        _write_json(self.folder / "meta.json", self.meta)
        (self.folder / "progress.json").unlink(missing_ok=True)

    def discard(self) -> None:
        """Remove the folder and what was written there."""
        for name in ("progress.json", *self.meta["train"]["shards"], *self.meta["val"]["shards"]):
            (self.folder / name).unlink()
        self.folder.rmdir()


def summary(folder: Path, meta: dict) -> str:
    """The counts of a finished source in one line."""
    train, val = meta["train"], meta["val"]
    return (
        f"{folder}: {train['tokens']:,} train tokens in {train['documents']:,} documents, {val['tokens']:,} held out in "
        f"{val['documents']:,}; {train['bytes'] / max(1, train['tokens']):.2f} bytes a token"
    )


def _write_shard(path: Path, tokens: np.ndarray) -> None:
    """The file that np.save makes. np.save leaves the last 4 KB to C's buffer and does not notice when a full disk
    takes no more of them."""
    with replacing(path) as file:
        np.lib.format.write_array_header_1_0(file, np.lib.format.header_data_from_array_1_0(tokens))
        file.write(tokens.data)


def _write_json(path: Path, content: dict) -> None:
    content = content | {"digest": json_digest(content)}
    write_text(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


# ---------------------------------------------------------------------------------------------------------------------
# Reading
# ---------------------------------------------------------------------------------------------------------------------


class Source:
    """A source as its meta.json describes it: `name`, `tokenizer`, `vocab_size`, and the tokens `train` and `val`.
    UserError for anything that does not fit. splits: ("val",) leaves `train` closed (None)."""

    def __init__(self, folder: Path, splits: tuple[str, ...] = ("train", "val")):
        path = folder / "meta.json"
        try:
            meta = json.loads(path.read_text(encoding="utf-8"))
            if "digest" in meta and meta["digest"] != json_digest(meta):  # an older one has none
                raise UserError(f"{path}: damaged or changed since it was written (digest); prepare it again")
            if meta["format"] != META_FORMAT:
                raise UserError(f"{path}: format {meta['format']!r}, this code reads {META_FORMAT}; prepare it again")
            self.name, self.tokenizer, self.vocab_size = folder.name, meta["tokenizer"], int(meta["vocab_size"])
            if "tokenizer_digest" in meta:
                check_tokenizer(str(path), self.tokenizer, meta["tokenizer_digest"])
            dtype, digests = DTYPES[meta["dtype"]], dict(meta.get("digests", {}))
            opened = {s: Tokens(folder, meta[s]["shards"], dtype, meta[s]["tokens"], digests) for s in splits}
            self.train, self.val = opened.get("train"), opened["val"]
        except MALFORMED as error:
            raise UserError(f"{path}: cannot be used ({type(error).__name__}: {error}); prepare it again") from None


class Tokens:
    """The shards of one split of a source: memory-mapped, one stream of `size` tokens. `digests`: file → its digest."""

    def __init__(self, folder: Path, shards: list[str], dtype: np.dtype, expected: int, digests: dict[str, str]):
        self.folder = folder
        self.digests = {folder / name: digests[name] for name in shards if name in digests}  # older ones have none
        self.arrays = [_open_shard(folder / name, dtype) for name in shards]
        self.ends = np.cumsum([len(array) for array in self.arrays], dtype=np.int64)  # exclusive end of each shard
        self.size = int(self.ends[-1]) if shards else 0
        if self.size != expected:
            raise UserError(
                f"{folder}: the shards hold {self.size:,} tokens, meta.json says {expected:,}; prepare it again"
            )

    def windows(self, seq_len: int) -> int:
        """Number of windows of seq_len + 1 tokens in the stream; neighbours share one token."""
        return max(0, (self.size - 1) // seq_len)

    def read(self, start: int, length: int) -> np.ndarray:
        """tokens[start : start + length] as int64, across shard boundaries."""
        out, done = np.empty(length, np.int64), 0
        shard = int(np.searchsorted(self.ends, start, side="right"))
        while done < length:
            array = self.arrays[shard]
            offset = start + done - (int(self.ends[shard]) - len(array))
            part = array[offset : offset + length - done]
            out[done : done + len(part)] = part
            done += len(part)
            shard += 1
        return out


def _open_shard(path: Path, dtype: np.dtype) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: named in meta.json but missing; prepare it again") from None
    except Exception as error:  # numpy lets the errors of Python's tokenizer and parser through
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        if isinstance(error, OSError) and error.errno in (errno.EMFILE, errno.ENFILE):
            raise UserError(f"{path}: {reason}: each shard is one; allow more, as `ulimit -n 8192` does") from None
        raise UserError(f"{path}: not a whole .npy file ({reason}); prepare it again") from None
    if array.ndim != 1 or array.dtype != dtype:
        raise UserError(
            f"{path}: holds {array.dtype} of shape {array.shape}, meta.json says one row of {dtype}; prepare it again"
        )
    if array.offset + array.nbytes != path.stat().st_size:  # a damaged header may ask for less than there is
        raise UserError(f"{path}: not a whole .npy file ({array.size} tokens and further bytes); prepare it again")
    return array
