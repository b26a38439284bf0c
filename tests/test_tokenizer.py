"""data/tokenizer.py: any text round-trips, the world's words are single tokens, ranks are found or asked for in one line."""

import base64
import gzip
import hashlib
import json
import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import requests
import tiktoken.load
from hypothesis import given
from hypothesis import strategies as st

from cli import UserError
from data import tokenizer as module
from data import world
from data.prompt import INSTRUCTION, format_prompt
from data.tokenizer import PUBLISHED, RANKS_URL, WORLD_RANKS, load_tokenizer

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"
WORLD = load_tokenizer("world")


@pytest.fixture
def fresh_cache(monkeypatch, tmp_path):
    """An empty TIKTOKEN_CACHE_DIR, and no tokenizer remembered from before."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    load_tokenizer.cache_clear()
    yield tmp_path
    load_tokenizer.cache_clear()


def cache_name(name: str) -> str:
    return hashlib.sha1((RANKS_URL + PUBLISHED[name][0]).encode()).hexdigest()


class Response:
    def __init__(self, content: bytes):
        self.content = content

    def raise_for_status(self):
        pass


def small_ranks(monkeypatch) -> bytes:
    """Make the published gpt2 file a small one (all bytes), with its right hash; its content."""
    content = b"".join(base64.b64encode(bytes([b])) + b" %d\n" % b for b in range(256))
    file, _, *rest = PUBLISHED["gpt2"]
    monkeypatch.setitem(PUBLISHED, "gpt2", (file, hashlib.sha256(content).hexdigest(), *rest))
    return content


# ------------------------------------------------------------------------------------------------------- the world's


@given(st.text())
def test_any_text_round_trips(text):
    """decode(encode(text)) == text for any Unicode text, with ids in range and as many bytes as the text has."""
    ids = WORLD.encode(text)
    assert WORLD.decode(ids) == text
    assert all(0 <= i < WORLD.eos for i in ids)
    assert WORLD.token_bytes[ids].sum() == len(text.encode())


@pytest.mark.parametrize(
    "text", ["<|endoftext|>", "a <|pad|> b", "<|fim_prefix|>", " 12.5 \\boxed{3} \\boxed{x}", "Ünïcödé ½"]
)
def test_special_strings_are_plain_text(text):
    """Text that spells a special token is text: it round-trips and gives no special id."""
    ids = WORLD.encode(text)
    assert WORLD.decode(ids) == text
    assert not {WORLD.eos, WORLD.pad} & set(ids)


@pytest.mark.skipif(not REALDATA.exists(), reason="no ../shared/realdata")
def test_real_text_round_trips():
    """GSM8K questions and answers, which hold words, signs and quotes that the world lacks, round-trip."""
    with gzip.open(REALDATA / "gsm8k_test.jsonl.gz", "rt") as lines:
        texts = [value for line in islice(lines, 300) for value in json.loads(line).values()]
    assert [WORLD.decode(WORLD.encode(text)) for text in texts] == texts


def test_digits_are_single_tokens_most_significant_first():
    """Each digit is one token, whatever stands before it, so that arithmetic looks the same everywhere."""
    for text in ("407", " 407", "has 407 pears", "x=407", "2407"):
        digits = [WORLD.decode([i]) for i in WORLD.encode(text) if WORLD.decode([i]).strip().isdigit()]
        assert digits == [c for c in text if c.isdigit()]


def test_fixed_texts_are_one_token():
    """The instruction at the end of every prompt, the opening of a box, and signs with their spaces are one token each."""
    assert len(WORLD.encode(" " + INSTRUCTION)) == 1
    assert len(WORLD.encode("\\boxed{")) == 1
    assert [WORLD.decode([i]) for i in WORLD.encode("12 + 5 = 17. So \\boxed{17}")] == [
        *("1", "2", " + ", "5", " = ", "1", "7", ".", " So ", "\\boxed{", "1", "7", "}")
    ]


@pytest.mark.parametrize("seed", [0, 7])
def test_no_word_of_the_world_is_split(seed):
    """World text of any seed costs one token a piece: the shipped ranks know all its words."""
    texts = [
        segment
        for source in world.SOURCES
        for document in islice(world.documents(seed, source), 1500)
        for segment in document
    ]
    texts += [row["question"] for row in world.questions(seed)["train"]]
    texts += [item["query"] for item in world.tasks(seed)["facts"]] + [
        item["context"] for item in world.tasks(seed)["stories"]
    ]
    split = [text for text in texts if len(WORLD.encode(text)) != len(re.findall(module.WORLD_PATTERN, text))]
    assert not split, split[0]


def test_a_prompt_ends_at_a_token_boundary():
    """encode(prompt + solution) is encode(prompt) + encode(solution): the loss mask of SFT cuts between tokens."""
    for row in world.questions(3)["test_hard"][:64]:
        prompt, solution = format_prompt(row["question"]), row["solutions"][0]
        assert WORLD.encode(prompt + solution) == WORLD.encode(prompt) + WORLD.encode(solution)


def test_shipped_ranks_are_the_generated_ones():
    """data/world.tiktoken is what `python -m data.tokenizer` writes."""
    assert module.world_ranks() == WORLD_RANKS.read_bytes(), "run `python -m data.tokenizer`"


def test_ids_and_sizes():
    """Ids are dense, eos and pad the last ones, the model's tables a multiple of 128 and small."""
    assert (WORLD.eos, WORLD.pad) == (WORLD.vocab_size - 2, WORLD.vocab_size - 1)
    assert WORLD.padded_vocab_size % 128 == 0 and WORLD.vocab_size <= WORLD.padded_vocab_size <= 768
    assert WORLD.token_bytes.shape == (WORLD.padded_vocab_size,)
    assert not WORLD.token_bytes[WORLD.eos :].any() and WORLD.token_bytes[: WORLD.eos].all()


def test_decoding_never_raises():
    """A sampler may emit any id below the padded size: special ids show their names, ids without meaning nothing."""
    assert WORLD.decode(range(WORLD.eos - 1, WORLD.padded_vocab_size)).endswith("<|endoftext|><|pad|>")
    assert WORLD.decode([WORLD.vocab_size, 10**6, -1]) == ""
    assert WORLD.decode(np.array([0xE2, 65])) == "\ufffdA"  # half a character


# --------------------------------------------------------------------------------------------------- published ranks


def test_unknown_name_lists_the_names():
    """An unknown tokenizer is one line that lists the known ones."""
    with pytest.raises(UserError, match="'llama'.*cl100k, gpt2, world"):
        load_tokenizer("llama")


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("failure", [requests.ConnectionError("refused"), requests.Timeout("slow")])
def test_failing_download_is_one_clear_line(monkeypatch, fresh_cache, name, failure):
    """No internet: one line names the variable, the cached file and the URL; the request has a time limit."""
    limits = []

    def get(url, timeout):
        limits.append(timeout)
        raise failure

    monkeypatch.setattr(requests, "get", get)
    with pytest.raises(UserError) as error:
        load_tokenizer(name)
    message = str(error.value)
    assert "\n" not in message
    assert all(part in message for part in ("TIKTOKEN_CACHE_DIR", cache_name(name), RANKS_URL + PUBLISHED[name][0]))
    assert limits == [(10, 60)]
    assert list(fresh_cache.iterdir()) == []


def test_cache_is_tiktokens_own(monkeypatch, fresh_cache):
    """The cached file has the name and place that tiktoken itself uses, so that one copy serves both; both read it
    without the network."""

    def no_network(*args, **kwargs):
        raise requests.ConnectionError

    assert cache_name("cl100k") == "9b5ad71b2ce5302211f9c61530b329a4922fc6a4"
    (fresh_cache / cache_name("gpt2")).write_bytes(small_ranks(monkeypatch))
    monkeypatch.setattr(requests, "get", no_network)
    url, sha256 = RANKS_URL + PUBLISHED["gpt2"][0], PUBLISHED["gpt2"][1]
    assert len(tiktoken.load.load_tiktoken_bpe(url, sha256)) == 256
    assert load_tokenizer("gpt2").encode("ab") == [97, 98]


def test_download_is_kept_and_reused(monkeypatch, fresh_cache):
    """Ranks are downloaded once; a cached file with the right hash needs no network, one with a wrong hash is replaced."""
    content, calls = small_ranks(monkeypatch), []
    monkeypatch.setattr(requests, "get", lambda url, timeout: calls.append(url) or Response(content))
    (fresh_cache / cache_name("gpt2")).write_bytes(b"half a downl")
    tokenizer = load_tokenizer("gpt2")
    assert tokenizer.encode("ab") == [97, 98] and tokenizer.eos == tokenizer.pad == 50256
    assert [path.name for path in fresh_cache.iterdir()] == [cache_name("gpt2")]
    load_tokenizer.cache_clear()
    assert load_tokenizer("gpt2").decode([97, 50000, 98, 50256]) == "ab<|endoftext|>"
    assert len(calls) == 1


def test_a_wrong_download_is_refused(monkeypatch, fresh_cache):
    """A login page in place of the ranks is refused by its hash, and not kept."""
    monkeypatch.setattr(requests, "get", lambda url, timeout: Response(b"<html>log in</html>"))
    with pytest.raises(UserError, match="sha256.*TIKTOKEN_CACHE_DIR"):
        load_tokenizer("gpt2")
    assert list(fresh_cache.iterdir()) == []


@pytest.mark.parametrize(
    "name, eos, pad, vocab_size", [("cl100k", 100257, 100277, 100278), ("gpt2", 50256, 50256, 50257)]
)
def test_published_tokenizers(monkeypatch, name, eos, pad, vocab_size):
    """Where the ranks are cached: the layout of OLMo2 and GPT-2, and round trips."""

    def no_network(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", no_network)
    load_tokenizer.cache_clear()
    try:
        tokenizer = load_tokenizer(name)
    except UserError:
        pytest.skip("no cached ranks")
    assert (tokenizer.eos, tokenizer.pad, tokenizer.vocab_size) == (eos, pad, vocab_size)
    assert tokenizer.padded_vocab_size == {"cl100k": 100352, "gpt2": 50304}[name]
    text = "Tom has 12 pears; naïve café 漢字 <|endoftext|> <|fim_prefix|>\n\n  x = 1"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text and eos not in ids
    assert tokenizer.token_bytes[ids].sum() == len(text.encode()) and tokenizer.token_bytes[eos] == 0
    assert tokenizer.decode(range(vocab_size - 30, vocab_size + 50)).endswith(
        "<|pad|>" if pad != eos else "<|endoftext|>"
    )
