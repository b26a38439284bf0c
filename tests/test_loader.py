"""data/loader.py: which tokens a step sees, and what a user is told about folders that do not fit."""

import errno
import json
import threading
import time
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import UserError
from data.loader import Loader, integer_weights, locate, parse_mix

VOCAB = 60_000


def write_source(folder, name, train, val=(), shards=1, tokenizer="fake", dtype="uint16", vocab_size=VOCAB):
    """A source as data/prepare.py leaves it, its train tokens cut into `shards` files of unequal length."""
    (folder / name).mkdir(parents=True)
    cuts = [len(train) * i * i // shards**2 for i in range(shards + 1)]
    files = {f"train_{i:05d}.npy": train[cuts[i] : cuts[i + 1]] for i in range(shards)}
    files |= {"val_00000.npy": val} if len(val) else {}
    for file, tokens in files.items():
        np.save(folder / name / file, np.array(tokens, dtype))
    meta = {"format": 1, "source": name, "tokenizer": tokenizer, "vocab_size": vocab_size, "dtype": dtype}
    for split, tokens in (("train", train), ("val", val)):
        meta[split] = {"tokens": len(tokens), "shards": [file for file in files if file.startswith(split)]}
    (folder / name / "meta.json").write_text(json.dumps(meta))


@pytest.fixture
def folder(tmp_path):
    """Two sources whose tokens say where they are: general counts from 0, math from 30,000."""
    write_source(tmp_path, "general", np.arange(1000), np.arange(1000, 1205), shards=3)
    write_source(tmp_path, "math", np.arange(30_000, 30_500), shards=2)
    return tmp_path


def windows_of(loader, source, n_rows):
    """The first token of the first n_rows rows that come from `source`, in order."""
    low = 0 if source == "general" else 30_000
    rows = (row for step in range(10**6) for row in loader.batch(step))
    mine = (int(row[0]) for row in rows if low <= row[0] < low + 30_000)
    return [next(mine) for _ in range(n_rows)]


@given(
    weights=st.dictionaries(st.sampled_from("abcd"), st.integers(1, 10**6), min_size=1),
    start=st.integers(0, 10**12),
)
@settings(max_examples=200, deadline=None)
def test_locate_is_the_running_count(weights, start):
    """Property 34: the closed form gives each row one source, and each source its indices 0, 1, 2, … without gap or
    repeat, as a count over all rows would; it stays within one row a source of the exact share."""
    seen = Counter()
    for row in range(60):
        source, index = locate(row, weights)
        assert index == seen[source]
        seen[source] += 1
    last = {}
    for row in range(start, start + 60):  # far into a run, where counting from 0 is impossible
        source, index = locate(row, weights)
        assert index == last.get(source, index - 1) + 1
        last[source] = index
        assert abs(index - row * weights[source] / sum(weights.values())) <= len(weights)


def test_mix_shares_are_exact(folder):
    """A mixture of .6 and .4 gives exactly 3 and 2 rows of every 5, whatever the batch size."""
    loader = Loader(folder, {"math": 0.4, "general": 0.6}, batch_size=7, seq_len=10, seed=0)
    rows = np.concatenate([loader.batch(step) for step in range(50)])
    assert (rows[:, 0] < 30_000).reshape(-1, 5).sum(axis=1).tolist() == [3] * 70


def test_default_mix_is_by_train_tokens(folder):
    """Without a mixture, sources are drawn in proportion to their train tokens; one that has none is left out."""
    write_source(folder, "held_out", np.arange(0), np.arange(300))
    assert Loader(folder, None, 4, 10, 0).weights == {"general": 2, "math": 1}


def test_every_token_is_a_target_once_an_epoch(folder):
    """An epoch of a source shows each window once, windows are the stream cut every seq_len tokens (also across
    shards) with one token of overlap; the next epoch shows the same windows in another order."""
    loader = Loader(folder, {"general": 1}, batch_size=3, seq_len=9, seed=5)
    starts = list(range(0, 999, 9))  # 111 windows: (1000 - 1) // 9
    first, second = windows_of(loader, "general", 111), windows_of(loader, "general", 222)[111:]
    assert sorted(first) == starts and sorted(second) == starts
    assert first != starts and first != second
    for row in loader.batch(0):
        assert row.tolist() == list(range(row[0], row[0] + 10))
    write_source(folder, "another", np.arange(1000))  # of as many windows: in an order of its own
    assert windows_of(Loader(folder, {"another": 1}, batch_size=3, seq_len=9, seed=5), "general", 111) != first


def test_batch_depends_on_seed_and_step_alone(folder):
    """Properties 33, 34: any step can be read at any time, by any loader, in any order; another seed gives another
    order."""
    mix = {"general": 1, "math": 2}
    one = Loader(folder, mix, 8, 16, seed=1)
    batches = [one.batch(step) for step in range(40)]
    other = Loader(folder, dict(reversed(mix.items())), 8, 16, seed=1)
    for step in (39, 3, 20, 0):
        assert np.array_equal(other.batch(step), batches[step])
    assert batches[0].dtype == np.int64 and batches[0].shape == (8, 17)
    assert not np.array_equal(Loader(folder, mix, 8, 16, seed=2).batch(0), batches[0])


@pytest.mark.parametrize("world_size", [1, 2, 4])
def test_ranks_together_read_the_global_batch(folder, world_size):
    """Property 34: what the ranks read, side by side, is the batch of one rank, whatever their number."""
    whole = Loader(folder, None, 8, 16, seed=3)
    share = 8 // world_size
    for step in (0, 7, 31):
        parts = [
            Loader(folder, None, 8, 16, seed=3).batch(step, slice(rank * share, (rank + 1) * share))
            for rank in range(world_size)
        ]
        assert np.array_equal(np.concatenate(parts), whole.batch(step))


def test_many_epochs_in_one_batch(folder):
    """A source smaller than a batch is shown as often as the mixture says, each epoch complete."""
    write_source(folder, "tiny", np.arange(50_000, 50_041))
    loader = Loader(folder, {"tiny": 1}, batch_size=12, seq_len=10, seed=0)  # 4 windows: 3 epochs a batch
    assert Counter(loader.batch(5)[:, 0].tolist()) == {50_000 + 10 * i: 3 for i in range(4)}


def test_iterate_reads_ahead_in_order(folder, monkeypatch):
    """The next batch is read before it is asked for; steps come in order from the given one; leaving ends the
    thread."""
    loader = Loader(folder, None, 4, 16, seed=0)
    plain, read = loader.batch, []
    monkeypatch.setattr(loader, "batch", lambda step, rows=slice(None): read.append(step) or plain(step, rows))
    stream = loader.iterate(5, slice(1, 3))
    for expected in (5, 6, 7):
        step, batch = next(stream)
        assert step == expected and np.array_equal(batch, plain(step, slice(1, 3)))
        deadline = time.monotonic() + 10
        while expected + 1 not in read:  # without another next()
            assert time.monotonic() < deadline
            time.sleep(0.001)
    stream.close()
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_iterate_raises_what_its_thread_meets(tmp_path):
    """A token id that the tokenizer does not have, met while reading ahead, reaches the training loop."""
    write_source(tmp_path, "broken", [5] * 200 + [400] + [5] * 200, vocab_size=400)
    stream = Loader(tmp_path, None, 4, 10, 0).iterate(0)
    with pytest.raises(UserError, match=r"broken: token id 400 in window (19|20), .* has 400"):
        for _ in range(10):  # 40 rows: an epoch
            next(stream)
    assert not [thread for thread in threading.enumerate() if thread.name == "loader"]


def test_val_batches(folder):
    """Held-out windows do not overlap in targets, are spread over the whole held-out stream, and never change."""
    loader = Loader(folder, None, 4, seq_len=10, seed=0)
    every = np.concatenate(list(loader.val_batches("general", 8, 10**9)))
    assert every[:, 0].tolist() == list(range(1000, 1200, 10)) and every.shape == (20, 11)
    some = list(loader.val_batches("general", 3, 50))  # 5 windows of the 20
    assert [len(batch) for batch in some] == [3, 2]
    assert np.concatenate(some)[:, 0].tolist() == [1000, 1040, 1080, 1120, 1160]
    again = Loader(folder, {"math": 1}, 9, seq_len=10, seed=8).val_batches("general", 3, 50)
    assert all(np.array_equal(a, b) for a, b in zip(some, again, strict=True))
    with pytest.raises(UserError, match="math: 0 held-out tokens.*val_fraction"):
        next(loader.val_batches("math", 4, 100))
    with pytest.raises(UserError, match="no source 'mth'; it has general, math"):
        next(loader.val_batches("mth", 4, 100))


def test_parse_mix():
    """Weights are relative and exact in decimals; a source that is named twice, or a weight that is none, is
    refused."""
    assert parse_mix("general=0.6, math=0.4") == {"general": 0.6, "math": 0.4}
    assert parse_mix("") is None
    assert integer_weights({"math": 0.1, "general": 0.7, "c": 1}) == {"c": 10, "general": 7, "math": 1}
    for text in ("general", "general=", "=1", "a=1,a=2", "a=x", "a=1,,b=2"):
        with pytest.raises(UserError, match="--mix"):
            parse_mix(text)
    for weight in (0, -1, float("nan"), float("inf")):
        with pytest.raises(UserError, match="'a' is .*must be positive"):
            integer_weights({"a": weight, "b": 1})


def damage(path, change):
    meta = json.loads(path.read_text())
    change(meta)
    path.write_text(json.dumps(meta))


def truncate(path):
    path.write_bytes(path.read_bytes()[:-100])


BAD_FOLDERS = {
    "no such data folder": lambda f: [p.rename(f.with_name("elsewhere")) for p in [f]],
    "holds no prepared source": lambda f: [p.unlink() for p in f.glob("*/meta.json")],
    "meta.json: cannot be used": lambda f: (f / "math/meta.json").write_text("{"),
    "meta.json: cannot be used .KeyError": lambda f: damage(f / "math/meta.json", lambda m: m.pop("dtype")),
    "format 2, this code reads 1": lambda f: damage(f / "math/meta.json", lambda m: m.update(format=2)),
    "00001.npy: named in meta.json but missing": lambda f: (f / "math/train_00001.npy").unlink(),
    "00001.npy: not a whole .npy file": lambda f: truncate(f / "math/train_00001.npy"),
    "math: the shards hold 376 tokens, meta.json says 500": lambda f: np.save(
        f / "math/train_00000.npy", np.zeros(1, np.uint16)
    ),
    "holds uint32 of shape .375,., meta.json says one row of uint16": lambda f: np.save(
        f / "math/train_00001.npy", np.zeros(375, np.uint32)
    ),
    "holds object": lambda f: np.save(f / "math/train_00001.npy", np.array([{}]), allow_pickle=True),
    "different tokenizers .general: fake of 60000, math: gpt2 of 60000": lambda f: damage(
        f / "math/meta.json", lambda m: m.update(tokenizer="gpt2")
    ),
    "different tokenizers .general: fake of 60000, math: fake of 50": lambda f: damage(
        f / "math/meta.json", lambda m: m.update(vocab_size=50)
    ),
}


@pytest.mark.parametrize("message", BAD_FOLDERS)
def test_bad_folders(folder, message):
    """A folder that does not fit is refused when it is opened, in one line that names the file."""
    BAD_FOLDERS[message](folder)
    match = message if "object" not in message else "holds object|not a whole .npy file"
    with pytest.raises(UserError, match=match) as error:
        Loader(folder, None, 4, 16, 0)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_bad_arguments(folder):
    """Sources that are not there or too short, and empty batches, are refused with what would be right."""
    with pytest.raises(UserError, match="'maths', which is not in .*: it has general, math"):
        Loader(folder, {"maths": 1}, 4, 16, 0)
    with pytest.raises(UserError, match="math: 500 train tokens do not fill one window of 501"):
        Loader(folder, None, 4, 500, 0)
    assert Loader(folder, {"math": 1}, 4, 499, 0).batch(0).shape == (4, 500)
    with pytest.raises(UserError, match="batch size 0"):
        Loader(folder, None, 0, 16, 0)


def test_held_out_text_opens_no_training_shard(folder, monkeypatch):
    """Of 50 B tokens a thousand files would be open for each checkpoint that is evaluated. Too many are said to be so."""
    for source in Loader(folder, {}, 1, 8, 0).sources.values():
        assert source.train is None and bool(source.val.arrays) == (source.name == "general")

    def full(*_, **__):
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(np, "load", full)
    with pytest.raises(UserError, match="Too many open files.*ulimit -n") as error:
        Loader(folder, {}, 1, 8, 0)
    assert "prepare it again" not in str(error.value)
