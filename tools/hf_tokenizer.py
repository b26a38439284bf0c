"""A tokenizer as Hugging Face's tokenizer.json, and which of our tokenizers such a file is.

    files = tokenizer_files(load_tokenizer("world"), context=256)      # {"tokenizer.json": {...}, "tokenizer_config.json": {...}}
    name = recognise(Path("olmo2-1b/tokenizer.json"))                  # "cl100k"; its ranks are then in tiktoken's cache

The file that is written encodes as tiktoken does, for two reasons. A piece of the pattern that is a token is taken
whole (`ignore_merges`). Any other piece is merged from bytes, the pair with the lowest rank first: every way to split a
token into two tokens is a merge, in the order of the ranks of what they make. transformers itself is not needed here.
"""

import base64
import hashlib
import json
import re
from pathlib import Path

from cli import UserError
from data.tokenizer import NAMES, PUBLISHED, WORLD_RANKS, Tokenizer, keep_ranks, parse_ranks
from files import MALFORMED


def byte_letters() -> list[str]:
    """The letter that stands for each of the 256 bytes in a tokenizer.json (GPT-2's table): a printable byte is itself,
    the others are the letters from U+0100 on."""
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    others = iter(range(256, 512))
    return [chr(byte if byte in printable else next(others)) for byte in range(256)]


LETTERS = byte_letters()
BYTES = {letter: byte for byte, letter in enumerate(LETTERS)}


def spelled(token: bytes) -> str:
    return "".join(LETTERS[byte] for byte in token)


def merges_of(ranks: dict[bytes, int]) -> list[tuple[bytes, bytes]]:
    """All pairs of tokens that make a token, by the rank of what they make.

    Two pairs of one token may overlap in a text: p1 p2 p3 with p1 p2 = p2 p3. tiktoken merges the left one. There p2 is
    a start and an end of the token; the pair that begins with it comes later in this order."""
    merges = []
    for token in sorted(ranks, key=ranks.get):
        splits = [(token[:i], token[i:]) for i in range(1, len(token))]
        known = [(a, b) for a, b in splits if a in ranks and b in ranks]
        merges += sorted(known, key=lambda pair: token.endswith(pair[0]))
    return merges


def their_pattern(pattern: str) -> str:
    """A pattern of tiktoken's for Oniguruma, the regular expressions of tokenizers: `{1,3}+` repeats there, and `$` is
    the end of a line. Nothing that a possessive `++` keeps could be given back to any use in these patterns, so that a
    plain `+` is the same."""
    return re.sub(r"([+?*]|\{\d+,\d+\})\+", r"\1", pattern).replace("$", r"\z")


def tokenizer_files(tokenizer: Tokenizer, context: int) -> dict[str, dict]:
    """File name → content of what transformers, vLLM and tokenizers read. `context`: longest sequence of the model, in tokens."""
    encoding = tokenizer.encoding
    ranks = encoding._mergeable_ranks
    published = tokenizer.name in PUBLISHED
    names = {tokenizer.eos: "<|endoftext|>"}
    names.setdefault(tokenizer.pad, "<|pad|>")
    # Ids without a meaning get names too, or the ones behind them would move up
    gaps = set(range(tokenizer.vocab_size)) - set(ranks.values()) - names.keys()
    names |= {id_: f"<|extra_id_{i}|>" for i, id_ in enumerate(sorted(gaps))}
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    bytes_ = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    pattern = their_pattern(encoding._pat_str) if published else encoding._pat_str
    model = {
        "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None, "end_of_word_suffix": None,
        "fuse_unk": False, "byte_fallback": False, "ignore_merges": True,
        "vocab": {spelled(token): rank for token, rank in ranks.items()},
        "merges": [f"{spelled(a)} {spelled(b)}" for a, b in merges_of(ranks)],
    }  # fmt: skip
    pieces = {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False}
    special = {"eos_token": names[tokenizer.eos], "pad_token": names[tokenizer.pad]}
    return {
        "tokenizer.json": {
            "version": "1.0", "truncation": None, "padding": None,
            "added_tokens": [{"id": id_, "content": names[id_], **plain} for id_ in sorted(names)],
            "normalizer": None, "pre_tokenizer": {"type": "Sequence", "pretokenizers": [pieces, bytes_]},
            "post_processor": None, "decoder": bytes_, "model": model,
        },
        # split_special_tokens: text that spells a special token is text, as with us
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast", **special, "model_max_length": context,
            "clean_up_tokenization_spaces": False, "split_special_tokens": True,
        },
        "special_tokens_map.json": special,
    }  # fmt: skip


def read_ranks(path: Path) -> dict[bytes, int]:
    """{token: id} of a byte-level BPE's tokenizer.json, without its added tokens. UserError for anything else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        added = {token["content"] for token in content["added_tokens"]}
        vocab = {token: id_ for token, id_ in content["model"]["vocab"].items() if token not in added}
        if not all(type(id_) is int and 0 <= id_ < 2**31 for id_ in vocab.values()):
            raise ValueError("an id is no whole number")
        return {bytes(BYTES[letter] for letter in token): id_ for token, id_ in vocab.items()}
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}") from None
    except MALFORMED as error:
        raise UserError(f"{path}: not a byte-level BPE of tokenizers ({type(error).__name__}: {error!s:.80})") from None


def recognise(path: Path) -> str:
    """The name of our tokenizer that has the ids of a tokenizer.json; empty: none has. A published one is recognised by
    the digest of its rank file, which this makes again and keeps in tiktoken's cache: nothing has to be downloaded
    then."""
    ranks = read_ranks(path)
    if ranks == parse_ranks(WORLD_RANKS.read_bytes()):
        return "world"
    lines = [base64.b64encode(token) + b" %d\n" % ranks[token] for token in sorted(ranks, key=ranks.get)]
    for name, (_, sha256, *_) in PUBLISHED.items():
        # Some files count a special token that follows the ranks among the vocabulary
        for end in (len(lines), len(lines) - 1):
            content = b"".join(lines[:end])
            if hashlib.sha256(content).hexdigest() == sha256:
                keep_ranks(name, content)
                return name
    return ""


def tokenizer_of(folder: Path, wanted: str) -> str:
    """The tokenizer of a model in `folder`: `wanted` (empty: what its tokenizer.json is, else cl100k, OLMo2's).
    UserError if its tokenizer.json says otherwise."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        return wanted or "cl100k"
    found = recognise(path)
    if not found or wanted not in ("", found):
        what = f"the ids in it are those of {found}" if found else f"the ids in it are of none of {', '.join(NAMES)}"
        what += f" and not of {wanted}" if wanted else ""
        raise UserError(f"{path}: {what}; if they are wrong, take that file away")
    return found
