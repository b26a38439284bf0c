"""Records → token ids, in worker processes: parse, search for held-out questions, tokenise.

The main process reads the records and gets the documents back in their order, so the number of workers changes nothing
but the time.
"""

import collections
import hashlib
import itertools
import multiprocessing
import os
import threading
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

import numpy as np

from cli import UserError
from data.prompt import format_prompt
from data.questions import BannedQuestions, normalise, parse_question
from data.readers import MAX_RECORD, Record, parse_record
from data.shards import Document, shard_dtype
from data.tokenizer import load_tokenizer


class Encoder:
    """Called with the contents of some records, it returns one thing for each: a Document; None if the record holds a
    banned question; or a str that says why it cannot be read."""

    def __init__(self, tokenizer_name: str, banned: list[str], seed: int, text_field: str = "text"):
        self.tokenizer, self.banned, self.seed = load_tokenizer(tokenizer_name), BannedQuestions(banned), seed
        self.text_field = text_field

    def __call__(self, contents: list[bytes | dict]) -> list[Document | None | str]:
        return [self._encode(content) for content in contents]

    def _encode(self, content: bytes | dict) -> Document | None | str:
        try:
            segments, key = self._segments(parse_record(content, self.text_field))
            return None if self.banned.found_in("\n".join(segments)) else self.document(segments, key)
        except ValueError as error:  # UnicodeError too: half a surrogate pair
            return str(error)

    def _segments(self, record: dict) -> tuple[list[str], str]:
        """The texts of a document, and the key whose hash is Document.draw. A question has one text per solution: its
        prompt with that solution. Its key leaves the solutions out, so that all documents of one question are held out
        or none. ValueError for a record that holds no text."""
        if self.text_field in record:
            text = record[self.text_field]
            if not isinstance(text, str) or not text.strip():
                raise ValueError(f"its field {self.text_field!r} holds no text")
            return [text], text
        if not {"question", "problem"} & record.keys():
            fields = ", ".join(map(str, record))[:100] or "nothing"
            raise ValueError(f"no field {self.text_field!r} (--text_field) and no question; it has: {fields}")
        row = parse_question(record, "")
        if not row["solutions"]:
            raise ValueError("a question without a solution is no text")
        prompt = format_prompt(row["question"])
        return [prompt + solution for solution in row["solutions"]], normalise(row["question"])

    def document(self, segments: list[str], key: str = "") -> Document:
        """The segments as one document: an eos after each, and 48 bits of the hash of seed and key as its draw."""
        tokens = [token for text in segments for token in (*self.tokenizer.encode(text), self.tokenizer.eos)]
        draw = int.from_bytes(hashlib.blake2b(f"{self.seed} {key}".encode(), digest_size=6).digest(), "big") / 2**48
        n_bytes = sum(len(text.encode("utf-8")) for text in segments)
        return Document(np.array(tokens, shard_dtype(self.tokenizer)), n_bytes, draw)


# ---------------------------------------------------------------------------------------------------------------------
# Workers
# ---------------------------------------------------------------------------------------------------------------------


def encode_records(
    records: Iterator[Record], encoder_args: tuple, workers: int
) -> Iterator[tuple[Record, Document | None | str]]:
    """Each record with what Encoder(*encoder_args) makes of it, in order. UserError if a worker dies.

    At most four chunks of records a worker are under way at any time."""
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
        # After the last chunk come Nones: nothing more is submitted, and what is under way is taken out
        for chunk in itertools.chain(chunks, itertools.repeat(None, 4 * workers)):
            if chunk:
                under_way.append((chunk, pool.submit(_encode_chunk, [record.content for record in chunk])))
            if under_way and (chunk is None or len(under_way) > 4 * workers - 1):
                done, future = under_way.popleft()
                yield from zip(done, future.result(), strict=True)
    except BrokenProcessPool:
        raise UserError("a worker process died, perhaps for lack of memory; start again with fewer --workers") from None
    finally:
        pool.shutdown(cancel_futures=True)


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


_encoder: Encoder | None = None  # set in a worker process only, once, by _start_worker


def _start_worker(*encoder_args) -> None:
    global _encoder
    _encoder = Encoder(*encoder_args)

    def end_with_parent():  # a killed parent closes no queue: its workers would wait for ever
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=end_with_parent, daemon=True).start()


def _encode_chunk(contents: list[bytes | dict]) -> list[Document | None | str]:
    return _encoder(contents)
