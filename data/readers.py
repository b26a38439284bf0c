"""Read data files, and data sets of the Hugging Face hub: one record at a time, in order.

    for record in read_records(Path("books.jsonl.gz")):
        content = parse_record(record.content)                # {"text": "…", …}

A file that cannot be read as a whole is a UserError of `read_records`. A bad line is a ValueError of `parse_record`:
the caller counts it, names it and goes on (`Skipped`). This module only reads; files.py at the root writes, locks and
checks.
"""

import codecs
import gzip
import io
import json
import re
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from cli import UserError, printable
from files import check_digest

SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet", ".txt")
TXT_SEPARATOR = "<|endoftext|>"
TXT_PIECE = 20_000  # bytes
# The longest record that is read, in bytes. The longest documents of the hub's corpora are books of a few MB. A longer
# "line" is a file of another kind, and some chunks of such records for each worker would fill the memory.
MAX_RECORD = 16 << 20


class Record(NamedTuple):
    where: str
    """file:line (parquet: file:row)"""
    content: bytes | dict
    """an undecoded line of JSON (cut at MAX_RECORD + 1 bytes), or a row that is already an object"""
    position: int
    """bytes of the file on disk that have been read so far"""


def read_records(path: Path, text_field: str = "text") -> Iterator[Record]:
    """The records of a file, in order. UserError where the file as a whole cannot be read.

    .jsonl, .json: an object a line. .parquet: a row each.
    .txt: cut at lines that hold only <|endoftext|>, and after every 20,000 bytes: at the end of that line, or, where it
    is far, between two words. So any length fits in memory and a part can be held out. A piece is {text_field:
    bytes}."""
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
            if ".json" in path.suffixes[-2:] and file.peek(1)[:1] == b"[":
                raise UserError(f"{path}: is one JSON list; write an object a line: jq -c '.[]' {path.name}")
            yield from _read_txt(path, raw, file, text_field) if path.suffix == ".txt" else _read_lines(path, raw, file)
    except (OSError, EOFError, zlib.error) as error:  # a truncated .gz is an EOFError
        raise UserError(f"{path}: cannot be read ({type(error).__name__}: {error})") from None


def _decompressed(path: Path, raw: io.BufferedReader) -> io.BufferedReader | gzip.GzipFile:
    if path.suffix == ".gz":
        return gzip.open(raw)
    if path.suffix == ".zst":
        import pyarrow  # it notices a file that was cut off; the package zstandard does not

        return io.BufferedReader(pyarrow.CompressedInputStream(raw, "zstd"))
    return raw


def _read_lines(path: Path, raw: io.BufferedReader, file: io.BufferedReader) -> Iterator[Record]:
    number = 0
    while line := file.readline(MAX_RECORD + 1):
        number += 1
        rest = line
        while len(rest) == MAX_RECORD + 1 and not rest.endswith(b"\n"):  # pass over the rest of a line that is too long
            rest = file.readline(MAX_RECORD + 1)
        if line.strip():
            yield Record(f"{path}:{number}", line, raw.tell())


def _read_txt(path: Path, raw: io.BufferedReader, file: io.BufferedReader, text_field: str) -> Iterator[Record]:
    piece, size, blank = [], 0, True  # lines of the piece, their bytes, whether they are all white space
    first = number = 1  # numbers of the piece's first line and of the line that is read now

    def record():
        return Record(f"{path}:{first}", {text_field: b"".join(piece)}, raw.tell())  # parse_record decodes the bytes

    rest = b""  # what a cut left of a line
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
    """Where the last character of UTF-8 begins; the end, if nothing would be left before it."""
    start = len(text) - 1
    while start > 0 and text[start] & 0xC0 == 0x80:
        start -= 1
    return start or len(text)


def _read_parquet(path: Path) -> Iterator[Record]:
    import pyarrow
    import pyarrow.parquet  # here: it takes a second to load, and most runs read no parquet

    try:
        file = pyarrow.parquet.ParquetFile(path)
        row, total, size = 0, max(1, file.metadata.num_rows), path.stat().st_size
        for batch in file.iter_batches(batch_size=256):
            for content in batch.to_pylist():
                row += 1
                yield Record(f"{path}:{row}", content, size * row // total)
    except (pyarrow.ArrowException, UnicodeDecodeError, MemoryError) as error:  # a small file may unpack to gigabytes
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"{path}: cannot be read as parquet ({why})") from None


def parse_record(content: bytes | dict, text_field: str = "text") -> dict:
    """The JSON object of a record. ValueError: bad UTF-8, bad JSON, no object, too long."""
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
    """Records that cannot be used. Counts them and names the first ten on stderr. `strict`: the first one is a UserError."""

    NAMED = 10

    def __init__(self, strict: bool = False):
        self.strict, self.count, self.named = strict, 0, []

    def add(self, where: str, why: Exception | str) -> None:
        line = printable(f"{where}: {' '.join(str(why).split())[:200]}")
        if self.strict:
            raise UserError(f"{line} (leave out --strict to skip such rows)")
        self.count += 1
        if self.count <= self.NAMED:
            self.named.append(line)
            print(f"skipped {line}", file=sys.stderr)
        elif self.count == self.NAMED + 1:
            print("skipped more, which are counted but no longer named", file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# Data sets of the hub: from a copy on this machine, or streamed
# ---------------------------------------------------------------------------------------------------------------------


def hub_files(folder: Path, config: str, split: str = "") -> list[Path]:
    """The files of one configuration in a local copy of a hub data set, sorted. UserError where there are none.

    config "default": those in data/, or all where there is no such folder (FineWeb-Edu has samples of data/ beside it);
    else those in a folder of that name, where "-" may stand for "/": sample-100BT, sample/100BT. split: only files that
    are named after it (train-00000-of-00005.parquet, train_1M-00000-of-00003.parquet, test/0.jsonl); where no file is
    named after any split, all files are train."""
    if not folder.is_dir():
        raise UserError(
            f"--local {folder}: no such folder; it is to hold a copy of the hub data set, in the hub's layout"
        )
    files = sorted(file for file in folder.rglob("*") if file.name.endswith(SUFFIXES))
    places = {file: file.relative_to(folder).as_posix() for file in files}
    if config == "default":
        files = [file for file in files if places[file].startswith("data/")] or files
    else:
        names = (f"/{config}/", f"/{config.replace('-', '/')}/")
        files = [file for file in files if any(name in "/" + places[file] for name in names)]
        if not files:
            raise UserError(f"--local {folder}: no file in a folder {config}; download that configuration too")
    if split:
        splits = r"(?:^|/)((?:train|test|validation)(?:_\d+M)?)(?=[-./])"  # train_1M: of OpenMathInstruct-2
        named = {file: re.findall(splits, places[file]) for file in files}
        if any(named.values()) or split != "train":
            files = [file for file in files if split in named[file]]
        if not files:
            raise UserError(f"--local {folder}: no file of the split {split} (configuration {config})")
    return files


def stream_hub(
    repository: str, config: str, split: str, shuffle_seed: int | None = None, skip: int = 0
) -> Iterator[dict]:
    """The rows of a hub data set, streamed, from row `skip` on. UserError, also when offline.

    With a seed the files come in shuffled order and the rows are shuffled within a buffer: some data sets are stored
    part by part, and their first rows would be of one part alone."""
    import datasets  # here: it takes seconds to load, and only this needs it
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
