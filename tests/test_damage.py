"""Damage to prepared data is found where it is read, and no reader fails but by a UserError, whatever a file holds."""

import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_files import command

import pretrain
from checkpoint import load_checkpoint
from cli import UserError
from data import prepare, shards
from data import tokenizer as tokenizers
from data.loader import Loader
from data.questions import in_band, load_questions
from data.shards import Source
from excursion.compare import compare
from files import DIGESTS, check_digest, read_json, write_jsonl
from process import Process
from tools import olmo2

ALONE = Process(0, 1, torch.device("cpu"), torch.float32)


@pytest.fixture
def data(world, tmp_path) -> Path:
    return Path(shutil.copytree(world, tmp_path / "data"))


def flip(path: Path, place: int, bit: int) -> bytes:
    """Flip a bit of a file; returns what it held before."""
    whole = path.read_bytes()
    path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    return whole


@pytest.mark.parametrize("name", ["math/train_00000.npy", "general/val_00000.npy"])
def test_a_flipped_bit_of_a_shard_is_found(data, name):
    """Everywhere in the header, and at random in the tokens: the loader, or its verify, names the file."""
    path, rng = data / name, random.Random(0)
    Loader(data, None, 4, 16, 0).verify(ALONE)
    for place in [*range(0, 128, 4), *(rng.randrange(path.stat().st_size) for _ in range(20))]:
        whole = flip(path, place, rng.randrange(8))
        with pytest.raises(UserError, match=path.name) as error:
            Loader(data, None, 4, 16, 0).verify(ALONE)
        assert "\n" not in str(error.value)
        path.write_bytes(whole)


def test_a_flipped_bit_of_meta_is_found_or_harmless(data):
    """200 flips at random: refused, or every field that the loader reads is as before."""
    path, rng = data / "math/meta.json", random.Random(1)
    before, found = json.loads(path.read_text()), 0
    for _ in range(200):
        whole = flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
        try:
            Source(path.parent)
            after = json.loads(path.read_text())
            assert all(after[key] == value for key, value in before.items() if key != "digest")
        except UserError as error:
            assert str(path) in str(error)
            found += 1
        path.write_bytes(whole)
    assert found > 150  # the others are in white space, or in the name of the digest itself


@pytest.mark.parametrize("name", ["questions/train.jsonl", "tasks/facts.jsonl"])
def test_a_flipped_bit_of_questions_and_tasks_is_found(data, name):
    """30 flips at random: the reader names the file. Without `digests`, which whoever edits them deletes, it reads."""
    path, rng = data / name, random.Random(2)
    for _ in range(30):
        whole = flip(path, rng.randrange(path.stat().st_size), rng.randrange(8))
        with pytest.raises(UserError, match=f"{path.name}: damaged or changed"):
            check_digest(path)
        path.write_bytes(whole)
    path = data / "questions/train.jsonl"
    rows = load_questions(path)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(UserError, match="train.jsonl: damaged or changed"):
        load_questions(path)
    (path.parent / DIGESTS).unlink()
    assert load_questions(path) == rows


def test_a_kill_between_file_and_digest_is_no_dead_end(tmp_path, monkeypatch):
    """write_jsonl killed at any of its three writes: the file that is there is read, and can be written again."""
    path, rows = tmp_path / "a.jsonl", [{"question": "2+2?", "answer": "4"}]
    write_jsonl(path, rows, digest=True)
    import files

    whole = files.replacing_path
    for last in range(3):
        count = iter(range(10))

        def killed(path, last=last, count=count):
            if next(count) >= last:
                raise KeyboardInterrupt
            return whole(path)

        monkeypatch.setattr(files, "replacing_path", killed)
        with pytest.raises(KeyboardInterrupt):
            write_jsonl(path, rows * 2, digest=True)
        monkeypatch.setattr(files, "replacing_path", whole)
        check_digest(path)
        write_jsonl(path, rows, digest=True)
        check_digest(path)


def test_pretraining_verifies_and_no_verify_does_not(data, tmp_path, capsys):
    """pretrain.py with a flipped token: exit code 2, the shard named, nothing written; with --no_verify it trains."""
    flip(data / "math/train_00000.npy", 1001, 0)
    flags = [*SMALL, "--steps", 1, "--data", data, "--out", tmp_path / "run"]
    assert command(pretrain, *flags) == 2
    assert "math/train_00000.npy: damaged" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
    assert command(pretrain, *flags, "--no_verify") == 0


def test_ranks_share_the_shards_and_all_refuse(data):
    """Each shard is read by one rank; what one finds stops all of them."""
    flip(data / "math/train_00000.npy", 2001, 0)
    seen = []

    class Rank(Process):
        def gather(self, thing):
            seen.append(thing)
            return [thing, ["elsewhere.npy"]]

    loader = Loader(data, None, 4, 16, 0)
    for rank in range(2):
        with pytest.raises(UserError, match="and 1 more|elsewhere.npy: damaged"):
            loader.verify(Rank(rank, 2, torch.device("cpu"), torch.float32))
    assert sorted(map(len, seen)) == [0, 1]


def test_shards_of_other_ranks_are_refused(data, tmp_path, monkeypatch):
    """When world.tiktoken changes, shards made with its older form are refused; those without a digest are read."""
    ranks = tmp_path / "world.tiktoken"
    ranks.write_bytes(tokenizers.WORLD_RANKS.read_bytes() + b"eHl6enk= 640\n")
    monkeypatch.setattr(tokenizers, "WORLD_RANKS", ranks)
    with pytest.raises(UserError, match="meta.json: was made with another version of the tokenizer 'world'"):
        Loader(data, None, 4, 16, 0)
    for path in data.glob("*/meta.json"):
        meta = json.loads(path.read_text())
        path.write_text(json.dumps({key: value for key, value in meta.items() if "digest" not in key}))
    Loader(data, None, 4, 16, 0).verify(ALONE)


@pytest.mark.parametrize("source", ["..", ".", "", "a/b", "a\\b", "a\nb", "a\n", "-a", ".git", "a=1", "a,b", "a\0b"])
def test_a_source_is_a_plain_name(source, tmp_path):
    """--source names one folder below --out, and can stand in --mix."""
    (tmp_path / "t.txt").write_text("text\n" * 100)
    config = prepare.Config(input=(str(tmp_path / "t.txt"),), source=source or " ", out=str(tmp_path / "out"))
    with pytest.raises(UserError, match="--source"):
        prepare.main(config)
    assert not (tmp_path / "out").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Readers of whatever there is
# ---------------------------------------------------------------------------------------------------------------------

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(SCALARS, lambda x: st.lists(x, max_size=3) | st.dictionaries(st.text(max_size=8), x, max_size=3))
QUICK = settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))


def changed(good: dict):
    """A JSON object with some of its entries, at any depth, replaced by anything or removed."""

    def change(draw):
        content = json.loads(json.dumps(good))
        for _ in range(draw(st.integers(1, 3))):
            inner = content
            while True:
                key = draw(st.sampled_from(sorted(inner)))
                if isinstance(inner[key], dict) and inner[key] and draw(st.booleans()):
                    inner = inner[key]
                    continue
                if draw(st.booleans()):
                    inner[key] = draw(JSON)
                elif len(inner) > 1:
                    del inner[key]
                break
        return content

    return st.composite(change)()


def only_user_errors(read, *args) -> None:
    try:
        read(*args)
    except UserError as error:
        assert str(error)


DEEP = "[" * 100_000


HF = {
    "model_type": "olmo2", "vocab_size": 640, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "intermediate_size": 192, "max_position_embeddings": 256, "num_key_value_heads": 2, "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_theta": 500000.0, "rope_type": "default"}, "hidden_act": "silu",
}  # fmt: skip
META = {
    "format": 1, "tokenizer": "world", "tokenizer_digest": "0", "vocab_size": 642, "dtype": "uint16", "digests": {"a": "b"},
    "train": {"tokens": 0, "shards": []}, "val": {"tokens": 0, "shards": []}, "digest": "00000000", "made_from": {"seed": 0},
}  # fmt: skip
ITEM = {"id": "a", "n": 4, "c": 1, "c_lenient": 1}
RECORD = {"questions": {"train": {"n": 4, "strict": {"pass@1": {}}, "questions": [ITEM, ITEM | {"id": "b"}]}}}


def read_meta(path: Path) -> None:
    source = Source(path.parent)
    assert isinstance(source.vocab_size, int)


READERS = {
    "config.json": (HF, olmo2.read_config),
    "meta.json": (META, read_meta),
    "record.json": (RECORD, lambda path: in_band([{"id": "a"}], str(path), "0:1")),
    "compared.json": (RECORD, lambda path: compare((str(path), str(path)))),
    "digests": ({"x.jsonl": "00000000"}, lambda path: check_digest(path.parent / "x.jsonl")),
    "progress.json": ({"made_from": {"seed": 0}, "records": 1, "digest": "0"}, lambda path: shards.begin_or_resume(
        path.parent, {"made_from": {"seed": 0}})),
}  # fmt: skip


@pytest.mark.parametrize("name", READERS)
def test_readers_of_json(name, tmp_path_factory):
    """Any JSON object near to what is expected, any JSON, any bytes, nesting of 100,000: read, or a UserError."""
    good, read = READERS[name]
    folder = tmp_path_factory.mktemp("json")
    (folder / "x.jsonl").write_text("{}\n")
    path = folder / name

    @QUICK
    @given(
        changed(good).map(lambda x: json.dumps(x).encode())
        | JSON.map(lambda x: json.dumps(x).encode())
        | st.binary(max_size=30)
    )
    def every(content):
        path.write_bytes(content)
        only_user_errors(read, path)

    every()
    for content in (DEEP, '{"made_from": ' + DEEP, '{"vocab_size": 1' + "0" * 5000 + "}", '{"rope_theta": 1e999}'):
        path.write_text(content)
        only_user_errors(read, path)


@QUICK
@given(
    st.lists(changed({"question": "2+2?", "answer": "4", "solutions": ["2+2=4"], "id": "a", "level": 1}), max_size=3),
    st.binary(max_size=30),
)
def test_reader_of_questions(tmp_path_factory, rows, noise):
    """Rows near to questions, and bytes between them: read, or a UserError."""
    path = tmp_path_factory.getbasetemp() / "questions.jsonl"
    path.write_bytes(b"\n".join([*(json.dumps(row).encode() for row in rows), noise, DEEP.encode()]))
    only_user_errors(load_questions, path)


@settings(QUICK, max_examples=60)
@given(st.binary(max_size=200), st.integers(0, 1000), st.integers(0, 2**31))
def test_reader_of_checkpoints(base, tmp_path_factory, noise, cut, place):
    """Any bytes, and a good checkpoint without its digest with bytes changed or cut: read, or a UserError."""
    path = tmp_path_factory.getbasetemp() / "x.pt"
    path.write_bytes(noise)
    only_user_errors(load_checkpoint, path)
    whole = bytearray((base / "last.pt").read_bytes()[:-16])
    # most of the file is numbers: half of the changes go to the metadata at its start, half to the zip's directory
    start = place % 8000 if place % 2 else len(whole) - 1 - place % 8000
    whole[start : start + len(noise)] = noise
    path.write_bytes(whole[: len(whole) - cut * (place % 3 == 0)])
    only_user_errors(load_checkpoint, path)


def test_reader_of_shards(data):
    """Any header of a .npy file: the loader gives a UserError and nothing else."""
    path, rng = data / "math/train_00000.npy", random.Random(3)
    whole = path.read_bytes()
    for _ in range(200):
        header = bytearray(whole[:128])
        for _ in range(rng.randrange(1, 4)):
            header[rng.randrange(128)] = rng.randrange(256)
        path.write_bytes(bytes(header) + whole[128:])
        only_user_errors(Loader, data, None, 4, 16, 0)
    np.save(path, np.zeros((2, 2)))
    only_user_errors(Loader, data, None, 4, 16, 0)
    with pytest.raises(UserError):
        read_json(path)
