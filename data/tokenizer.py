"""The tokenizers: `cl100k` as OLMo2 uses it, `gpt2`, and the small one of the embedded world.

    python -m data.tokenizer          write data/world.tiktoken anew, after the texts of data/world.py have changed

All three are byte-level tiktoken encodings: any text round-trips. Text never becomes a special id, whatever it spells.
The ranks of cl100k and gpt2 are downloaded once into tiktoken's own cache ($TIKTOKEN_CACHE_DIR); those of the world are
shipped.
"""

import base64
import codecs
import hashlib
import os
import re
import tempfile
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np
import tiktoken

from cli import UserError
from data.prompt import INSTRUCTION
from files import write_bytes

RANKS_URL = "https://openaipublic.blob.core.windows.net/encodings/"
WORLD_RANKS = Path(__file__).with_name("world.tiktoken")

# name → (file under RANKS_URL, its sha256, pattern, eos, pad, vocab_size). The ids of cl100k are those of OLMo2
# (allenai/dolma2-tokenizer): eos at 100257, pad the last id; the ids between the ranks and pad are never produced here.
PUBLISHED = {
    "cl100k": (
        "cl100k_base.tiktoken",
        "223921b76ee99bde995b7ff738513eef100fb51d18c93597a113bcffe865b2a7",
        r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}++|\p{N}{1,3}+| ?[^\s\p{L}\p{N}]++[\r\n]*+|\s++$|\s*[\r\n]"
        r"|\s+(?!\S)|\s",
        100257,
        100277,
        100278,
    ),
    "gpt2": (
        "r50k_base.tiktoken",
        "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930",
        r"'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s",
        50256,
        50256,
        50257,
    ),
}
NAMES = (*PUBLISHED, "world")

# The world's pieces, first match first. A piece that is in the rank file is one token; any other is split into bytes.
# - The paper's instruction is fixed text at the end of every prompt: one token saves a fifth of the compute at `micro`.
# - Digits are tokens of their own, most significant first, so that arithmetic is the same everywhere. The space before
#   a number therefore belongs to the piece before it ("has |1|2| pears"), and costs no token.
WORLD_PATTERN = "|".join(
    [
        re.escape(" " + INSTRUCTION),
        r"\\boxed\{",
        r"[0-9]",
        r" [-+*/=] (?=[0-9])",
        r"'s",
        r" ?[A-Za-z]+(?: (?=[0-9\\]))?",
        r"[.,:] (?=[0-9\\])",
        r"[^A-Za-z0-9]",
    ]
)


@dataclass(frozen=True)
class Tokenizer:
    """A tiktoken encoding with what a language model needs to know about it."""

    name: str
    encoding: tiktoken.Encoding
    vocab_size: int
    """ids are 0 … vocab_size - 1, the special ones included"""
    eos: int
    pad: int

    @property
    def padded_vocab_size(self) -> int:
        """Rows of the model's embedding and head: the next multiple of 128, for the speed of the matrix products."""
        return -(-self.vocab_size // 128) * 128

    def encode(self, text: str) -> list[int]:
        """Token ids of `text`; "<|endoftext|>" in it is plain text and never the special id. ValueError for a text that
        tiktoken cannot split: a run of a million letters or spaces."""
        try:
            return self.encoding.encode_ordinary(text)
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of Rust: no Exception, has no module to import it from
                raise
        raise ValueError("tiktoken cannot split it: too long without a break")

    def decode(self, ids) -> str:
        """Text of token ids. Broken UTF-8 becomes U+FFFD, eos and pad their names, ids that stand for nothing vanish."""
        known = (int(i) for i in ids if 0 <= i < self.vocab_size)
        return b"".join(self._pieces[i] for i in known).decode("utf-8", errors="replace")

    def ends(self, ids) -> list[int]:
        """Where the text of each token ends in `decode(ids)`, in characters; one of several tokens belongs to the last
        of them."""
        decoder, at, ends = codecs.getincrementaldecoder("utf-8")("replace"), 0, []
        for number, i in enumerate(ids, 1):
            piece = self._pieces[i] if i < self.vocab_size else b""
            at += len(decoder.decode(piece, final=number == len(ids)))
            ends.append(at)
        return ends

    @cached_property
    def token_bytes(self) -> np.ndarray:
        """(padded_vocab_size,) int64: UTF-8 bytes of each id, 0 for special and padding ids; for bits per byte."""
        lengths = np.zeros(self.padded_vocab_size, dtype=np.int64)
        lengths[: self.vocab_size] = [len(piece) for piece in self._pieces]
        lengths[[self.eos, self.pad]] = 0
        return lengths

    @cached_property
    def _pieces(self) -> list[bytes]:
        def piece(i: int) -> bytes:
            try:
                return self.encoding.decode_single_token_bytes(i)
            except KeyError:  # cl100k has gaps between its ranks and its pad id
                return b""

        return [piece(i) for i in range(self.vocab_size)]


@lru_cache
def load_tokenizer(name: str) -> Tokenizer:
    """The tokenizer `name`: "cl100k", "gpt2" or "world". UserError: unknown name, or ranks that cannot be had."""
    if name == "world":
        ranks = parse_ranks(WORLD_RANKS.read_bytes())
        pattern, eos, pad, vocab_size = WORLD_PATTERN, len(ranks), len(ranks) + 1, len(ranks) + 2
    elif name in PUBLISHED:
        *_, pattern, eos, pad, vocab_size = PUBLISHED[name]
        ranks = parse_ranks(_published_ranks(name))
    else:
        raise UserError(f"unknown tokenizer {name!r}: use one of {', '.join(NAMES)}")
    special = {"<|endoftext|>": eos} | ({"<|pad|>": pad} if pad != eos else {})
    encoding = tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=ranks, special_tokens=special)
    return Tokenizer(name, encoding, vocab_size, eos, pad)


def default_new_tokens(tokenizer: Tokenizer) -> int:
    """Longest response: the world's solutions have at most 64 tokens, the paper's evaluation is cut at 512 and more."""
    return 64 if tokenizer.name == "world" else 512


def tokenizer_digest(name: str) -> str:
    """What the ids of a tokenizer mean: a digest of its ranks (which need not be there) and its pattern."""
    if name == "world":
        ranks, pattern = hashlib.sha256(WORLD_RANKS.read_bytes()).hexdigest(), WORLD_PATTERN
    else:
        _, ranks, pattern, *_ = PUBLISHED[name]
    return hashlib.sha256(f"{ranks} {pattern}".encode()).hexdigest()[:16]


def check_tokenizer(where: str, name: str, digest: str | None, vocab_size: int | None = None) -> None:
    """UserError if a file was made with other ids than the tokenizer `name` has now: the world's change with its texts.
    A file of an older version has no digest: then at least its `vocab_size` must hold all ids."""
    if name not in NAMES:
        raise UserError(f"{where}: unknown tokenizer {name!r:.40}: use one of {', '.join(NAMES)}")
    if digest not in (None, tokenizer_digest(name)):
        raise UserError(
            f"{where}: was made with another version of the tokenizer {name!r}: its ids mean other words; make it again, "
            "or use the code that made it"
        )
    if vocab_size is None:
        return
    known = PUBLISHED[name][-1] if name in PUBLISHED else load_tokenizer(name).vocab_size
    if vocab_size < known:
        raise UserError(f"{where}: has {vocab_size} ids, the tokenizer {name!r} has {known}; make it again")


def parse_ranks(content: bytes) -> dict[bytes, int]:
    """tiktoken's rank file (a line: token in base64, space, rank) → {token: rank}."""
    lines = (line.split() for line in content.splitlines() if line)
    return {base64.b64decode(token): int(rank) for token, rank in lines}


def ranks_path(name: str) -> Path:
    """Where tiktoken keeps the rank file of a published tokenizer: $TIKTOKEN_CACHE_DIR, or a folder of its own."""
    default = Path(tempfile.gettempdir()) / "data-gym-cache"
    folder = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or os.environ.get("DATA_GYM_CACHE_DIR") or default)
    return folder / hashlib.sha1((RANKS_URL + PUBLISHED[name][0]).encode()).hexdigest()


def keep_ranks(name: str, content: bytes) -> None:
    """Put a rank file that came from elsewhere (tools/hf_tokenizer.py) where it is looked for. Its digest must be right."""
    path = ranks_path(name)
    assert hashlib.sha256(content).hexdigest() == PUBLISHED[name][1], name
    if not path.exists() or path.read_bytes() != content:
        write_bytes(path, content)


def _published_ranks(name: str) -> bytes:
    """A published rank file from tiktoken's cache, or downloaded into it.

    tiktoken would do this by itself, but waits without limit where a firewall drops packets.
    """
    url, sha256, path = RANKS_URL + PUBLISHED[name][0], PUBLISHED[name][1], ranks_path(name)
    by_hand = (
        f"save it as {path.name} in a folder and set TIKTOKEN_CACHE_DIR to that folder, or use the world tokenizer"
    )

    def right(content: bytes) -> bool:
        return hashlib.sha256(content).hexdigest() == sha256

    if path.exists() and right(content := path.read_bytes()):
        return content
    import requests  # here, since only a download is worth a quarter of a second of every command's start

    try:
        response = requests.get(url, timeout=(10, 60))  # seconds: to connect, between two reads
        response.raise_for_status()
        content = response.content
    except requests.RequestException as error:
        reason = type(error).__name__
        raise UserError(f"tokenizer {name}: cannot download {url} ({reason}); {by_hand}") from error
    if not right(content):
        raise UserError(f"tokenizer {name}: what {url} returned is not the published file (sha256); {by_hand}")
    write_bytes(path, content)
    return content


def world_ranks() -> bytes:
    """The content of world.tiktoken: 256 bytes, then every piece of more than one byte that the world's text holds."""
    from data.world import sample_text  # here, since only this one command needs it

    pieces = {piece.encode() for text in sample_text() for piece in re.findall(WORLD_PATTERN, text)}
    tokens = [bytes([b]) for b in range(256)] + sorted(piece for piece in pieces if len(piece) > 1)
    return b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))


if __name__ == "__main__":
    write_bytes(WORLD_RANKS, world_ranks())
    tokenizer = load_tokenizer("world")
    print(f"{WORLD_RANKS}: {tokenizer.vocab_size} tokens, {tokenizer.padded_vocab_size} with padding")
