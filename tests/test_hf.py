"""Models of Hugging Face, both ways: transformers and lm-evaluation-harness load what `tools.olmo2 export` writes, and
see the same model; `import` brings it back bit for bit."""

import base64
import dataclasses
import hashlib
import json
import os
import shutil
import subprocess
import sys
from functools import cache
from itertools import islice
from pathlib import Path

import pytest
import requests
import torch
from conftest import ROOT, run, start
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint import FORMAT, load_checkpoint, load_model, save_checkpoint
from cli import UserError
from data import tokenizer as tokenizer_module
from data import world as world_module
from data.tokenizer import PUBLISHED, load_tokenizer, tokenizer_digest
from model import GPT, GPTConfig
from sampler import sample
from tools import olmo2
from tools.hf_tokenizer import merges_of, recognise, tokenizer_files

# Grouped queries, a vocabulary that is padded beyond the tokenizer's, and nothing that is transformers' own default
CONFIG = GPTConfig(768, 64, 2, 4, 160, 128, n_kv_heads=2, rope_theta=10_000.0, norm_eps=1e-4)


def write_checkpoint(path: Path, config: GPTConfig = CONFIG, tokenizer: str = "world", seed: int = 0) -> Path:
    """A model whose predictions differ from token to token."""
    model = GPT(config).init_weights(seed, std=0.2)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() == 1:  # a gain of 1 would hide a norm that was lost
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(name))))
    lineage = [{"stage": "pretrain", "step": 3, "flops": None, "args": {}}]
    save_checkpoint(path, {
        "format": FORMAT, "stage": "pretrain", "config": dataclasses.asdict(config), "tokenizer": tokenizer,
        "tokenizer_digest": tokenizer_digest(tokenizer), "model": model.state_dict(), "step": 3, "tokens": 7, "flops": None,
        "lineage": lineage, "args": {}, "metrics": {},
    })  # fmt: skip
    return path


def convert(command: str, source, target, **flags) -> None:
    olmo2.main(olmo2.Config(command, str(source), str(target), **flags))


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> tuple[Path, Path]:
    """A checkpoint, and its folder of several shards, by the command line."""
    folder = tmp_path_factory.mktemp("hf")
    checkpoint = write_checkpoint(folder / "m.pt")
    code, out, err = run("-m", "tools.olmo2", "export", checkpoint, folder / "hf", "--shard_gib", "0.0002")
    assert code == 0 and "world" in out, err
    return checkpoint, folder / "hf"


# ---------------------------------------------------------------------------------------------------------------------
# Weights
# ---------------------------------------------------------------------------------------------------------------------


def test_the_round_trip_is_bitwise(exported, tmp_path):
    """Exported in shards and imported again, by the command line: the same weights bit for bit, configuration, tokenizer
    and pretraining tokens."""
    checkpoint, folder = exported
    code, _, err = run("-m", "tools.olmo2", "import", folder, tmp_path / "back.pt")
    assert code == 0, err
    before, after = load_checkpoint(checkpoint), load_checkpoint(tmp_path / "back.pt")
    assert before["model"].keys() == after["model"].keys() and len(list(folder.glob("*.safetensors"))) > 2
    for name, tensor in before["model"].items():
        assert torch.equal(tensor.view(torch.int32), after["model"][name].view(torch.int32)), name
    for key in ("config", "tokenizer", "tokenizer_digest", "tokens"):
        assert before[key] == after[key], key


def test_transformers_loads_it(exported, tmp_path):
    """AutoModelForCausalLM, without a script, gives our logits in fp32 to 1e-5; config and generation config have our
    end of text."""
    transformers = pytest.importorskip("transformers")
    checkpoint, folder = exported
    theirs, ours = transformers.AutoModelForCausalLM.from_pretrained(folder), load_model(load_checkpoint(checkpoint))
    assert type(theirs).__name__ == "Olmo2ForCausalLM" and theirs.dtype == torch.float32
    tokens = torch.randint(CONFIG.vocab_size, (3, 100), generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        a, b = ours.logits(ours(tokens)), theirs(tokens).logits
    assert a.std() > 0.3  # else anything would be near
    torch.testing.assert_close(a, b, atol=1e-5, rtol=1e-5)
    world = load_tokenizer("world")
    for config in (theirs.config, theirs.generation_config):
        assert (config.eos_token_id, config.pad_token_id) == (world.eos, world.pad)
    # What it trains and saves is still known by its pretraining tokens; whatever stands there, it is a number
    theirs.save_pretrained(tmp_path)
    assert olmo2.exported_tokens(tmp_path) == 7
    config = json.loads((tmp_path / "config.json").read_text())
    for odd in (-1, 7.0, True, "7", [7], 2**70, None):
        (tmp_path / "config.json").write_text(json.dumps(config | {"pretraining_tokens": odd}))
        assert olmo2.exported_tokens(tmp_path) == 0


def test_greedy_text_is_the_same(exported):
    """transformers' generate with its own tokenizer writes what our sampler writes at temperature 0, stop token included."""
    transformers = pytest.importorskip("transformers")
    checkpoint, folder = exported
    theirs, reader = (
        kind.from_pretrained(folder) for kind in (transformers.AutoModelForCausalLM, transformers.AutoTokenizer)
    )
    ours, world = load_model(load_checkpoint(checkpoint)), load_tokenizer("world")
    rows = world_module.questions(0)["test_easy"][:24]
    ends = 0
    for i, row in enumerate(rows):
        prompt = world.encode(row["question"])
        if i == 0:  # the stop token shall come instead of a token that does: else no text would end
            ((answer,),) = sample(ours, [prompt], 1, stop=world.eos, max_new_tokens=8, temperature=0.0)
            with torch.no_grad():
                for head in (ours.head.weight, theirs.lm_head.weight):
                    head[world.eos] = 1.2 * head[answer.tokens[7]]
        ((answer,),) = sample(ours, [prompt], 1, stop=world.eos, max_new_tokens=24, temperature=0.0)
        inputs = reader(row["question"], return_tensors="pt", return_token_type_ids=False)
        text = theirs.generate(**inputs, max_new_tokens=24)[0, len(prompt) :]
        assert inputs["input_ids"][0].tolist() == prompt
        assert text.tolist() == answer.tokens
        assert reader.decode(text) == world.decode(answer.tokens)
        ends += int(text[-1] == world.eos)
    assert 0 < ends < 24


MEMORY = """
import re, sys, threading
from pathlib import Path
import torch
from tools import olmo2

def most() -> float:  # MiB
    return int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1]) / 1024

def peak(*arguments) -> float:
    open("/proc/self/clear_refs", "w").write("5")  # the peak is what there is now
    before = most()
    olmo2.main(olmo2.Config(*map(str, arguments)))
    return most() - before

folder = Path(sys.argv[1])
peak("export", folder / "small.pt", folder / "small")  # what is loaded once
peak("import", folder / "small", folder / "small2.pt")
print(peak("export", folder / "large.pt", folder / "large"), peak("import", folder / "large", folder / "large2.pt"),
      peak("import", folder / "half", folder / "half2.pt"))
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="peak memory as Linux tells it")
def test_never_two_copies_in_memory(tmp_path):
    """A model of 70 MiB: export and import take its size beside what was there, all of it mapped from files; import of
    bf16 weights their fp32 copy, and pages of the files."""
    from safetensors.torch import save_file

    write_checkpoint(tmp_path / "small.pt")
    large = GPTConfig(1280, 512, 5, 4, 1536, 128)
    write_checkpoint(tmp_path / "large.pt", large)
    weights = olmo2.to_olmo2(load_checkpoint(tmp_path / "large.pt")["model"], large)
    size = sum(4 * tensor.numel() for tensor in weights.values()) / 2**20
    (tmp_path / "half").mkdir()
    (tmp_path / "half/config.json").write_text(json.dumps(olmo2.their_config(large, 631, 632)))
    halves = list(weights)
    for i in range(4):  # as large models come: in several files
        save_file({name: weights[name].bfloat16() for name in halves[i::4]}, tmp_path / f"half/model-{i}.safetensors")
    (tmp_path / "half/tokenizer.json").write_text(
        json.dumps(tokenizer_files(load_tokenizer("world"), 128)["tokenizer.json"])
    )
    done = subprocess.run([sys.executable, "-c", MEMORY, tmp_path], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peaks = list(map(float, done.stdout.splitlines()[-1].split()))
    assert size > 60 and max(peaks[:2]) < 1.1 * size and peaks[2] < 1.5 * size, (size, peaks)


# ---------------------------------------------------------------------------------------------------------------------
# Tokenizers
# ---------------------------------------------------------------------------------------------------------------------


def small_published(monkeypatch, cache: Path, name: str = "cl100k") -> bytes:
    """Make the published cl100k a small one with its own pattern and gaps between its ranks and its special ids; its
    rank file, which nobody has: the net is out of reach and the cache empty."""
    texts = [segment for document in islice(world_module.documents(3, "general"), 60) for segment in document]
    pieces = {
        piece for text in texts for word in text.split() for piece in (f" {word}", word, word[:2], f" {word[:1]}")
    }
    tokens = [bytes([b]) for b in range(256)] + sorted(
        {p.encode() for p in pieces if len(p) > 1}, key=lambda p: (len(p), p)
    )
    content = b"".join(base64.b64encode(token) + b" %d\n" % rank for rank, token in enumerate(tokens))
    file, _, pattern, *_ = PUBLISHED[name]
    digest, n = hashlib.sha256(content).hexdigest(), len(tokens)
    monkeypatch.setitem(PUBLISHED, name, (file, digest, pattern, n + 1, n + 21, n + 22))
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(cache))

    def no_network(*args, **kwargs):
        raise requests.ConnectionError

    monkeypatch.setattr(requests, "get", no_network)
    load_tokenizer.cache_clear()
    return content


@pytest.fixture
def published(monkeypatch, tmp_path):
    """The small cl100k's rank file, in a cache that has it."""
    content = small_published(monkeypatch, tmp_path / "cache")
    tokenizer_module.keep_ranks("cl100k", content)
    yield content
    load_tokenizer.cache_clear()


def fast(name: str):
    """The tokenizers.Tokenizer of what is exported."""
    tokenizers = pytest.importorskip("tokenizers")
    made = tokenizers.Tokenizer.from_str(json.dumps(tokenizer_files(load_tokenizer(name), 128)["tokenizer.json"]))
    made.encode_special_tokens = True  # what split_special_tokens sets in transformers
    return made


ODD = [
    "",
    "  \n\n \n  ",
    "a  b \n\n c  ",
    "TOM'S 1234567 can't 'LL ſ 'ſ",
    "<|endoftext|> a<|pad|>",
    "Ünï 漢字 ½ \u2028\u00a0\x85 x",
    "𝄞\x00\u0301",
]
ODD += [c * n for c in (" ", "a", "\n", "=", "- ", "0") for n in (2, 3, 4, 7, 31)]


@settings(max_examples=300, deadline=None)
@given(st.text(st.sampled_from("abeinorst AB01259 \n\t.,:'+-*/=\\{}()ßé漢") | st.characters(exclude_categories=["Cs"])))
def test_the_worlds_tokenizer_is_exported(text):
    """Any text has the same ids, and decodes to itself."""
    theirs = fast_world()
    assert theirs.encode(text).ids == load_tokenizer("world").encode(text)
    assert theirs.decode(theirs.encode(text).ids) == text


@cache
def fast_world():
    return fast("world")


def test_the_worlds_own_texts_have_the_same_ids():
    theirs, ours = fast_world(), load_tokenizer("world")
    texts = ODD + [row["question"] + row["solutions"][0] for row in world_module.questions(1)["train"][:300]]
    texts += [segment for document in islice(world_module.documents(1, "math"), 200) for segment in document]
    assert [theirs.encode(text).ids for text in texts] == [ours.encode(text) for text in texts]


def check_published(name: str) -> None:
    theirs, ours = fast(name), load_tokenizer(name)
    texts = ODD + [segment for document in islice(world_module.documents(2, "general"), 200) for segment in document]
    texts += [path.read_text(encoding="utf-8") for path in ROOT.glob("*.md")]
    for text in texts:
        assert theirs.encode(text).ids == ours.encode(text), text[:200]
        assert theirs.decode(theirs.encode(text).ids) == text
    assert theirs.get_vocab_size() == ours.vocab_size
    assert theirs.token_to_id("<|endoftext|>") == ours.eos and theirs.id_to_token(ours.pad) in (
        "<|pad|>",
        "<|endoftext|>",
    )


def test_a_published_tokenizer_is_exported(published):
    """With cl100k's own pattern: the same ids for texts of all kinds; the special ids stay where they are, behind gaps."""
    check_published("cl100k")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_published_ones_themselves(monkeypatch, name):
    """The same with the real ranks, where they are cached."""
    monkeypatch.setattr(requests, "get", lambda *_, **__: (_ for _ in ()).throw(requests.ConnectionError()))
    load_tokenizer.cache_clear()
    try:
        load_tokenizer(name)
    except UserError:
        pytest.skip("no cached ranks")
    check_published(name)


def test_merges_take_the_left_one():
    """Of two pairs that make one token and overlap in a text, the left one comes first, as in tiktoken."""
    ranks = {token: i for i, token in enumerate((b"x", b"y", b"xy", b"yx", b"xyx"))}
    assert merges_of(ranks)[-2:] == [(b"xy", b"x"), (b"x", b"yx")]


def test_transformers_reads_the_tokenizer(exported):
    """AutoTokenizer has the right special ids, and takes text that spells one for text."""
    transformers = pytest.importorskip("transformers")
    reader, world = transformers.AutoTokenizer.from_pretrained(exported[1]), load_tokenizer("world")
    assert (reader.eos_token_id, reader.pad_token_id, reader.bos_token_id) == (world.eos, world.pad, None)
    assert len(reader) == world.vocab_size and reader.model_max_length == CONFIG.context
    for text in ODD:
        assert reader.encode(text) == world.encode(text), text


def test_ranks_come_from_the_folder(monkeypatch, tmp_path, capsys):
    """Without net and cache, import finds the ranks in the model's own tokenizer.json, knows them by their digest, and
    keeps them where all stages look; a tokenizer.json of other ids is refused, and so is a damaged one."""
    content = small_published(monkeypatch, tmp_path / "cache")
    tokenizer_module.keep_ranks("cl100k", content)
    wide = dataclasses.replace(CONFIG, vocab_size=load_tokenizer("cl100k").padded_vocab_size)
    write_checkpoint(tmp_path / "m.pt", wide, "cl100k")
    convert("export", tmp_path / "m.pt", tmp_path / "hf")
    shutil.rmtree(tmp_path / "cache")
    load_tokenizer.cache_clear()
    with pytest.raises(UserError, match="cannot download"):
        load_tokenizer("cl100k")
    convert("import", tmp_path / "hf", tmp_path / "back.pt")
    assert load_checkpoint(tmp_path / "back.pt")["tokenizer"] == "cl100k"
    assert [path.read_bytes() for path in (tmp_path / "cache").iterdir()] == [content]
    assert load_tokenizer("cl100k").eos == json.loads((tmp_path / "hf/config.json").read_text())["eos_token_id"]
    path = tmp_path / "hf/tokenizer.json"
    with pytest.raises(UserError, match="tokenizer.json: the ids in it are those of cl100k and not of gpt2"):
        convert("import", tmp_path / "hf", tmp_path / "x.pt", tokenizer="gpt2")
    # a special token that is counted among the ranks, as in some files, is no matter
    good = json.loads(path.read_text())
    good["model"]["vocab"]["<|extra|>"] = len(good["model"]["vocab"])
    path.write_text(json.dumps(good))
    assert recognise(path) == "cl100k"
    good["model"]["vocab"]["!"] = 5
    for text in (
        json.dumps(good),
        "{",
        '{"added_tokens": 3}',
        '{"added_tokens": [], "model": {"vocab": {"漢": 1}}}',
        "[" * 10**5,
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=r"tokenizer\.json: [^\n]*$"):
            convert("import", tmp_path / "hf", tmp_path / "x.pt")
    assert not list(tmp_path.glob("x.pt*"))
    load_tokenizer.cache_clear()


# ---------------------------------------------------------------------------------------------------------------------
# The hub, and what users do wrong
# ---------------------------------------------------------------------------------------------------------------------


def test_from_the_hub(exported, tmp_path, monkeypatch, capsys):
    """OWNER/NAME is asked of the hub, at its revision, whose name says step and tokens."""
    import huggingface_hub

    asked = []

    def snapshot(name, revision, allow_patterns):
        asked.append((name, revision))
        return str(exported[1])

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: None)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    revision = "stage1-step10000-tokens21B"
    convert("import", "allenai/OLMo-2-0425-1B", tmp_path / "m.pt", revision=revision)
    checkpoint = load_checkpoint(tmp_path / "m.pt")
    assert asked == [("allenai/OLMo-2-0425-1B", revision)]
    assert (checkpoint["step"], checkpoint["tokens"], checkpoint["args"]["revision"]) == (10_000, 21 * 10**9, revision)
    shutil.copytree(exported[1], tmp_path / revision)  # a folder of that name says the same
    convert("import", tmp_path / revision, tmp_path / "n.pt")
    assert load_checkpoint(tmp_path / "n.pt")["tokens"] == 21 * 10**9


def test_a_hub_out_of_reach_is_one_line(tmp_path):
    """Exit code 2, and the way without network."""
    env = os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "hf")}
    command = ["-m", "tools.olmo2", "import", "allenai/OLMo-2-0425-1B", tmp_path / "m.pt", "--revision", "r"]
    process = start(*command, env=env)
    code, err = process.wait(), process.stderr.read()
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "hf download allenai/OLMo-2-0425-1B --revision r --local-dir DIR" in err and not (tmp_path / "m.pt").exists()


def test_what_cannot_be_converted(exported, tmp_path):
    """One line each: no names, names that are taken, flags without effect, a download that is not whole, an index of
    other files."""
    checkpoint, folder = exported
    for command, source, target, flags, match in [
        ("import", "", "", {}, "import SOURCE TARGET"),
        ("export", checkpoint, folder, {}, "exists"),
        ("export", checkpoint, tmp_path / "y", {"tokens": 3}, "--tokens has no effect outside of `import`"),
        ("import", folder, tmp_path / "x.pt", {"shard_gib": 1.0}, "--shard_gib has no effect"),
        ("import", folder, tmp_path / "x.pt", {"revision": "main"}, "--revision main"),
        ("import", folder, tmp_path / "x.pt", {"weights": str(folder)}, "--weights has no effect beside SOURCE"),
        ("import", "no/such/folder", tmp_path / "x.pt", {}, "no such folder or file, nor OWNER/NAME"),
        ("export", tmp_path / "none.pt", tmp_path / "y", {}, "no such checkpoint"),
    ]:
        with pytest.raises(UserError, match=match) as error:
            convert(command, source, target, **flags)
        assert "\n" not in str(error.value)
    shutil.copytree(folder, tmp_path / "cut")
    next((tmp_path / "cut").glob("*.safetensors")).unlink()
    with pytest.raises(UserError, match="is missing: the download is not whole"):
        convert("import", tmp_path / "cut", tmp_path / "x.pt")
    for index in (
        "{}",
        "[]",
        '{"weight_map": {"a": "../b.safetensors"}}',
        '{"weight_map": {"a": 3}}',
        '{"weight_map": {}}',
    ):
        (tmp_path / "cut/model.safetensors.index.json").write_text(index)
        with pytest.raises(UserError, match=r"^[^\n]*(not an index|no \.safetensors)[^\n]*$"):
            convert("import", tmp_path / "cut", tmp_path / "x.pt")
    assert not list(tmp_path.glob("*.p*t*"))


# ---------------------------------------------------------------------------------------------------------------------
# lm-evaluation-harness
# ---------------------------------------------------------------------------------------------------------------------


def test_the_harness_finds_our_accuracies(world, tmp_path, monkeypatch):
    """lm-evaluation-harness on an exported model and a task in local files: acc and acc_norm are those of eval.py, item
    by item."""
    harness = pytest.importorskip("lm_eval")
    pytest.importorskip("transformers")
    from lm_eval.tasks import TaskManager

    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    checkpoint = write_checkpoint(tmp_path / "last.pt", dataclasses.replace(CONFIG, context=256))
    convert("export", checkpoint, tmp_path / "hf")
    n = 400
    code, _, err = run("eval.py", "--checkpoint", checkpoint, "--data", world, "--questions", "validation", "--tasks", "facts",
                       "--limit", str(n), "--samples", "1", "--k", "1", "--max_new_tokens", "2", "--out", tmp_path / "eval")  # fmt: skip
    assert code == 0, err
    ours = json.loads((tmp_path / "eval/last.json").read_text())["tasks"]["facts"]
    task = {
        "task": "facts", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": str(world / "tasks/facts.jsonl")}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{query}}", "doc_to_choice": "{{choices | map('trim') | list}}",
        "doc_to_target": "gold", "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    }  # fmt: skip
    found = harness.simple_evaluate(
        model="hf", model_args={"pretrained": str(tmp_path / "hf"), "dtype": "float32"}, tasks=[task], limit=n,
        task_manager=TaskManager(include_defaults=False), device="cpu", batch_size=8, bootstrap_iters=0, log_samples=True,
    )  # fmt: skip
    samples = sorted(found["samples"]["facts"], key=lambda s: s["doc_id"])
    assert [int(s["acc_norm"]) for s in samples] == ours["items"] and len(samples) == n
    assert 0 < sum(ours["items"]) < n
    results = found["results"]["facts"]
    assert results["acc,none"] == pytest.approx(ours["accuracy"]["mean"])
    assert results["acc_norm,none"] == pytest.approx(ours["accuracy_norm"]["mean"])
