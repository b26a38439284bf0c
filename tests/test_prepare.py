"""data/prepare.py: documents become shards unchanged, held-out questions stay out, a killed run loses nothing."""

import collections
import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import zstandard

from cli import UserError
from data import encoder, shards, world
from data import inputs as data_inputs
from data.loader import Loader, locate, parse_mix
from data.prepare import WORLD_TOKENS, Config, build_world, main
from data.prompt import format_prompt
from data.questions import HUB_QUESTIONS, BannedQuestions, load_questions, normalise
from data.readers import Record, stream_hub
from data.shards import shard_dtype
from data.tokenizer import load_tokenizer
from files import take_lock
from verifier import strict

ROOT = Path(__file__).parent.parent
REAL = ROOT.parent / "shared" / "realdata"
TOKENIZER = load_tokenizer("world")


def run(tmp_path, *inputs, **flags):
    """prepare.main in this process, into tmp_path/out; returns that folder."""
    flags = {"tokenizer": "world", "workers": 1, "out": str(tmp_path / "out")} | flags
    main(Config(input=tuple(map(str, inputs)), **flags))
    return Path(flags["out"])


def write(path, rows):
    path.write_bytes(b"".join((r if isinstance(r, bytes) else json.dumps(r).encode()) + b"\n" for r in rows))
    return path


def segments(folder, split):
    """What the shards of a source hold, as text: one string per eos, and nothing after the last."""
    meta = json.loads((folder / "meta.json").read_text())[split]
    tokens = np.concatenate([np.empty(0, int), *(np.load(folder / name) for name in meta["shards"])])
    assert len(tokens) == meta["tokens"] and (len(tokens) == 0 or tokens[-1] == TOKENIZER.eos)
    pieces = np.split(tokens, np.flatnonzero(tokens == TOKENIZER.eos) + 1)[:-1]
    return [TOKENIZER.decode(piece[:-1]) for piece in pieces]


def files_of(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


def texts(n, seed=0):
    rng = random.Random(seed)
    return [f"Text {i}: " + " ".join(rng.choices("the cat saw 12 dogs, né?".split(), k=20)) + "\n" for i in range(n)]


def parquet(path, rows):
    import pyarrow
    import pyarrow.parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)


# ------------------------------------------------------------------------------------------------------------ the world


@pytest.fixture(scope="module")
def small_world(tmp_path_factory):
    out = tmp_path_factory.mktemp("world") / "data"
    build_world(out, seed=3, tokens=100_000)
    return out


def test_world_layout(small_world):
    """The world folder holds what the stages look for, and about the tokens that were asked for, 65% of them math."""
    assert {path.name for path in (small_world / "questions").iterdir()} - {"digests"} == {
        f"{split}.jsonl" for split in world.SPLITS
    }
    for split, rows in world.questions(3).items():
        assert load_questions(small_world / "questions" / f"{split}.jsonl", strict=True) == rows
    for name, items in world.tasks(3).items():
        lines = (small_world / "tasks" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == items
    loader = Loader(small_world, None, 8, 128, 0)
    sizes = {name: source.train.size for name, source in loader.sources.items()}
    assert abs(sum(sizes.values()) - 100_000) < 1000 and abs(sizes["math"] / 100_000 - 0.65) < 0.01
    assert all(next(loader.val_batches(name, 2, 500)).shape == (2, 129) for name in ("general", "math"))
    assert list(small_world.parent.iterdir()) == [small_world]  # nothing temporary is left


def test_world_text_holds_no_asked_question(small_world):
    """Property 36: no question of any split, the training questions included, is in the world's text, train or held
    out; nor is a text that is held out for bits per byte in the train text's first documents."""
    asked = [row["question"] for rows in world.questions(3).values() for row in rows]
    banned = BannedQuestions(asked)
    text = {split: segments(small_world / "math", split) for split in ("train", "val")}
    assert text["train"][0].strip() and len(text["train"]) > 700
    assert not any(banned.found_in(segment) for split in text for segment in text[split])
    assert banned.found_in(format_prompt(asked[7]))  # the search itself works on these questions


def test_world_is_a_function_of_its_seed(small_world, tmp_path, capsys):
    """The same seed gives the same files; a folder that holds the world asked for is left as it is, one that holds
    anything else is refused and left as it is."""
    build_world(tmp_path / "again", seed=3, tokens=100_000)
    assert files_of(tmp_path / "again") == files_of(small_world)
    before = {path: path.stat().st_mtime_ns for path in small_world.rglob("*")}
    build_world(small_world, seed=3, tokens=100_000)
    for flags in ({"seed": 4, "tokens": 100_000}, {"seed": 3, "tokens": 50_000}):
        with pytest.raises(UserError, match="holds other data"):
            build_world(small_world, **flags)
    assert {path: path.stat().st_mtime_ns for path in small_world.rglob("*")} == before


def test_world_is_whole_or_absent(tmp_path, monkeypatch):
    """A build that fails, or that loses the race against another process, leaves no half-made folder."""
    out = tmp_path / "data"
    monkeypatch.setattr(shards, "_write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        build_world(out, tokens=1000)
    assert list(tmp_path.iterdir()) == []
    monkeypatch.undo()
    build_world(out, tokens=1000)  # the other process
    files = files_of(out)
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: path != out and exists(path))  # it came after this one looked
    build_world(out, tokens=1000)
    assert files_of(out) == files and list(tmp_path.iterdir()) == [out]


# -------------------------------------------------------------------------------------------------------- text → shards


def test_every_kind_of_input(tmp_path):
    """Texts, GSM8K's and our own question rows, txt files and parquet give their text unchanged, one eos after each
    document or solution, in the order of the files' names."""
    import pyarrow
    import pyarrow.parquet

    folder = tmp_path / "in"
    folder.mkdir()
    gsm8k = {"question": "Ann has 3*4 nuts?", "answer": "3*4=<<3*4=12>>12\n#### 12"}
    own = {"question": "One?", "answer": "1", "solutions": ["\\boxed{1}", "It is \\boxed{1}."]}
    write(folder / "a.jsonl", [{"text": " héllo <|endoftext|>\n", "id": 1}, gsm8k, own])
    (folder / "b.txt").write_text("first\n<|endoftext|>\nsecond\n")
    pyarrow.parquet.write_table(pyarrow.table({"text": ["from", "parquet"], "n": [1, 2]}), folder / "c.parquet")
    (folder / "README.md").write_text("not data")
    out = run(tmp_path, folder, source="mine", val_fraction=0)
    assert segments(out / "mine", "train") == [
        " héllo <|endoftext|>\n",
        format_prompt("Ann has 3*4 nuts?") + "3*4=12\nThe answer is \\boxed{12}.",
        format_prompt("One?") + "\\boxed{1}",
        format_prompt("One?") + "It is \\boxed{1}.",
        "first\n",
        "second\n",
        "from",
        "parquet",
    ]
    meta = json.loads((out / "mine/meta.json").read_text())
    assert meta["train"]["documents"] == 7 and meta["val"]["documents"] == 0
    assert meta["train"]["bytes"] == sum(len(text.encode()) for text in segments(out / "mine", "train"))
    assert (meta["tokenizer"], meta["dtype"], meta["vocab_size"]) == ("world", "uint16", TOKENIZER.vocab_size)


KINDS = {  # a configuration of DOLMino → files as the hub has them
    "dclm": ["0000/dclm-0000.json.zst", "0001/dclm-0001.json.zst"],
    "flan": ["flan-0000.json.gz", "flan-0001.json.gz"],
    "pes2o": ["pes2o-0000.json.gz"],
    "wiki": ["wiki-0000.json.gz"],
    "stackexchange": ["stackexchange-0000.json.gz"],
    "math": ["gsm8k/v0_main_train/0.jsonl.zst", "tulu_math/1.jsonl", "metamath-owmfilter/2.jsonl.gz"],
}


def dolmino_copy(folder):
    """DOLMino in the hub's layout, 60 documents a file."""
    for config, files in KINDS.items():
        for number, name in enumerate(files):
            path = folder / "data" / config / name
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = [
                {"id": str(i), "text": f"{config} {number} {text}", "metadata": {}} for i, text in enumerate(texts(60))
            ]
            content = b"".join(json.dumps(row).encode() + b"\n" for row in rows)
            compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
            # in two frames, as parallel compressors write them
            path.write_bytes(compress(content[:999]) + compress(content[999:]))
    (folder / "README.md").write_text("dataset card")
    return folder


def test_dolmino(tmp_path, monkeypatch):
    """`--input dolmino` makes one source of each of the six configurations, from a local copy as from the hub; all of
    them without --max_tokens, each its share of it otherwise; and `--mix dolmino50` trains on them in the paper's
    shares."""
    copy = str(dolmino_copy(tmp_path / "copy"))
    out = run(tmp_path, "dolmino", local=copy)
    assert {path.name for path in out.iterdir() if path.is_dir()} == set(KINDS)
    for config, files in KINDS.items():
        held = segments(out / config, "train") + segments(out / config, "val")
        assert sorted(held) == sorted(f"{config} {i} {text}" for i in range(len(files)) for text in texts(60))
    mix = parse_mix("dolmino50")
    assert mix == {
        "dclm": 47.2,
        "flan": 16.6,
        "pes2o": 5.85,
        "wiki": 7.11,
        "stackexchange": 2.45,
        "math": 20.8,
    }  # the paper's
    loader = Loader(out, mix, 10_000, 16, 0)
    rows = collections.Counter(locate(row, loader.weights)[0] for row in range(10_000))
    assert rows.keys() == mix.keys() == KINDS.keys()
    assert all(abs(rows[name] / 10_000 - weight / sum(mix.values())) < 1e-3 for name, weight in mix.items())

    limited = run(tmp_path, "dolmino", local=copy, max_tokens=1000.0, out=str(tmp_path / "limited"), val_fraction=0)
    for name in KINDS:
        tokens = json.loads((limited / name / "meta.json").read_text())["train"]["tokens"]
        share = 1000 * mix[name] / sum(mix.values())
        assert int(share) <= tokens < share + 120, name  # the run stops with the document that reaches the limit
    least = run(tmp_path, "dolmino", local=copy, max_tokens=3.0, out=str(tmp_path / "least"), val_fraction=0)
    counts = [json.loads((least / name / "meta.json").read_text())["train"]["documents"] for name in KINDS]
    assert counts == [1] * 6  # a share below a token is not "all"
    asked = []
    monkeypatch.setattr(
        data_inputs, "stream_hub", lambda *args: asked.append(args) or iter([{"text": t} for t in texts(20)])
    )
    hub = run(tmp_path, "dolmino", out=str(tmp_path / "hub"))
    assert {path.name for path in hub.iterdir() if path.is_dir()} == set(KINDS)
    assert [args[:2] for args in asked] == [("allenai/dolmino-mix-1124", name) for name in KINDS]
    with pytest.raises(UserError, match="dolmino is 6 sources"):
        run(tmp_path, "dolmino", source="mine")
    with pytest.raises(UserError, match="--local .*: goes with a hub name"):
        run(tmp_path, copy, local=copy)
    with pytest.raises(UserError, match="--questions only: dolmino is text"):
        run(tmp_path, "dolmino", questions="only")


@pytest.mark.parametrize("part", ["dclm", "math"])
def test_streaming_itself(tmp_path, monkeypatch, part):
    """`datasets` streams a configuration of DOLMino's layout (folder with a dataset card, .json.zst, .jsonl and .gz
    files) through stream_hub: every row, in an order of the seed, from any row on. The network alone is left out."""
    copy, seen = dolmino_copy(tmp_path / "copy"), []
    card = "".join(f"- config_name: {k}\n  data_files:\n  - split: train\n    path: data/{k}/**/*\n" for k in KINDS)
    (copy / "README.md").write_text(f"---\nconfigs:\n{card}---\n")
    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", lambda *args, **kwargs: seen.append(args))
    rows = list(stream_hub(str(copy), part, "train", 5))
    wanted = [f"{part} {i} {text}" for i in range(len(KINDS[part])) for text in texts(60)]
    assert sorted(row["text"] for row in rows) == sorted(wanted) and [row["text"] for row in rows] != wanted
    assert list(stream_hub(str(copy), part, "train", 5, 50)) == rows[50:] and len(seen) == 2


def test_without_the_hub(tmp_path, monkeypatch):
    """Where the hub cannot be reached, one line says what to download and how to pass it."""

    def offline(*args, **kwargs):
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(UserError, match="hf download allenai/dolmino-mix-1124 .* data.prepare --local DIR") as error:
        run(tmp_path, "dolmino")
    assert "\n" not in str(error.value)


def test_local_copies_of_question_sets(tmp_path):
    """GSM8K and OpenMathInstruct-2 from copies in the hub's layout: parquet of the right split, the test split banned
    and written, the GSM8K sources alone; openmathinstruct2-full takes all, with validation questions of both."""
    rows = [{"question": f"Q {i}, how many nuts?", "answer": f"It is {i}.\n#### {i}"} for i in range(30)]
    parquet(tmp_path / "gsm8k/main/train-00000-of-00001.parquet", rows)
    parquet(tmp_path / "gsm8k/main/test-00000-of-00001.parquet", rows[25:])
    socratic = [row | {"answer": f"How many? ** {row['answer']}"} for row in rows]
    parquet(tmp_path / "gsm8k/socratic/train-00000-of-00001.parquet", socratic)
    parquet(tmp_path / "gsm8k/socratic/test-00000-of-00001.parquet", socratic[25:])
    flags = {"questions": "only", "validation_questions": 5}
    out = run(tmp_path, "gsm8k", local=str(tmp_path / "gsm8k"), **flags)
    sizes = {path.stem: len(load_questions(path)) for path in (out / "questions").glob("*.jsonl")}
    assert sizes == {"train": 20, "validation": 5, "test": 5}
    other = run(tmp_path, "gsm8k", local=str(tmp_path / "gsm8k"), subset="socratic", out=str(tmp_path / "s"), **flags)
    for folder, first in (out, "It is"), (other, "How many? ** It is"):
        rows_of = [row for path in (folder / "questions").glob("*.jsonl") for row in load_questions(path)]
        assert len(rows_of) == 30 and all(row["solutions"][0].startswith(first) for row in rows_of)

    sources = ("gsm8k", "math", "augmented_gsm8k", "augmented_math")
    omi2 = [
        row | {"problem": f"{source} {row['problem']}", "problem_source": source}
        for source in sources
        for row in question_rows(20)
    ]
    parquet(tmp_path / "omi2/data/train-00000-of-00002.parquet", omi2[:50])
    parquet(tmp_path / "omi2/data/train-00001-of-00002.parquet", omi2[50:])
    parquet(tmp_path / "omi2/data/train_1M-00000-of-00001.parquet", omi2[:12])
    for name, train, validation in [
        ("openmathinstruct2", 35, ["gsm8k"]),
        ("openmathinstruct2-full", 70, ["gsm8k", "math"]),
    ]:
        out = run(tmp_path, name, local=str(tmp_path / "omi2"), out=str(tmp_path / name), **flags)
        held_out = load_questions(out / "questions/validation.jsonl")
        assert len(load_questions(out / "questions/train.jsonl")) == train
        assert [row["source"].removeprefix("augmented_") for row in held_out] == validation * 5
    out = run(
        tmp_path, "openmathinstruct2", local=str(tmp_path / "omi2"), split="train_1M", out=str(tmp_path / "m"), **flags
    )
    assert sum(len(load_questions(path)) for path in (out / "questions").glob("*.jsonl")) == 12
    with pytest.raises(UserError, match="--subset main: openmathinstruct2 have none to choose"):
        run(tmp_path, "openmathinstruct2", local=str(tmp_path / "omi2"), subset="main", **flags)


def test_local_copy_of_math(tmp_path):
    """MATH in the hub's layout, a folder for each subject: all seven, their levels kept, the answer taken from the box;
    one subject by --subset."""
    for number, subject in enumerate(HUB_QUESTIONS["math"][1]):
        for split, first in ("train", 0), ("test", 6):
            rows = [
                {
                    "problem": f"{subject} {i}: find $x$.",
                    "level": f"Level {1 + number % 5}",
                    "type": subject.replace("_", " ").title(),
                    "solution": f"So $x = \\boxed{{\\frac{{{i}}}{{7}}}}$.",
                }
                for i in range(first, first + 6)
            ]
            parquet(tmp_path / "copy" / subject / f"{split}-00000-of-00001.parquet", rows)
    flags = {"local": str(tmp_path / "copy"), "questions": "only", "validation_questions": 4}
    out = run(tmp_path, "math", **flags)
    rows = {path.stem: load_questions(path) for path in (out / "questions").glob("*.jsonl")}
    assert {name: len(of_split) for name, of_split in rows.items()} == {"train": 38, "validation": 4, "test": 42}
    row = next(row for row in rows["test"] if row["question"].startswith("geometry 6"))
    assert (row["answer"], row["level"], row["source"]) == ("\\frac{6}{7}", "Level 3", "math")
    out = run(tmp_path, "math", subset="algebra", out=str(tmp_path / "algebra"), **flags)
    rows = [row for path in (out / "questions").glob("*.jsonl") for row in load_questions(path)]
    assert len(rows) == 12 and all(row["question"].startswith("algebra") for row in rows)


def real(name):
    with (gzip.open if name.endswith(".gz") else open)(REAL / name, "rt", encoding="utf-8") as file:
        return [json.loads(line) for line in file]


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/realdata")
def test_published_rows_in_the_hubs_layouts(tmp_path):
    """The published GSM8K, MATH (its test problems, the 500 of MATH-500 as the test split) and a sample of
    OpenMathInstruct-2 in the hub's layouts: every row becomes a question whose first solution earns the reward, and no
    test question is trained on."""
    parquet(tmp_path / "gsm8k/main/train-00000-of-00001.parquet", real("gsm8k_train.jsonl.gz"))
    parquet(tmp_path / "gsm8k/main/test-00000-of-00001.parquet", real("gsm8k_test.jsonl.gz"))
    rows = real("math_test.jsonl.gz")
    for subject in {row["subject"] for row in rows}:
        folder = tmp_path / "math" / subject.lower().replace(" & ", "_and_").replace(" ", "_")
        for split, asked in ("train", False), ("test", True):
            of_split = [row for row in rows if row["subject"] == subject and row["in_math500"] == asked]
            columns = [{"problem": r["problem"], "level": r["level"], "type": subject, "solution": r["solution"]} for r in of_split]  # fmt: skip
            parquet(folder / f"{split}-00000-of-00001.parquet", columns)
    sample = real("openmathinstruct2_sample.jsonl")
    for shard in range(2):
        parquet(tmp_path / f"openmathinstruct2-full/data/train-0000{shard}-of-00002.parquet", sample[shard::2])
    for name, held_out, sizes in [
        ("gsm8k", 1000, {"train": 6473, "validation": 1000, "test": 1319}),
        ("math", 1000, {"train": 3500, "validation": 1000, "test": 500}),
        ("openmathinstruct2-full", 1, {"train": 98, "validation": 2}),
    ]:
        flags = {
            "local": str(tmp_path / name),
            "questions": "only",
            "out": str(tmp_path / f"out_{name}"),
            "strict": True,
        }
        out = run(tmp_path, name, validation_questions=held_out, **flags)
        found = {path.stem: load_questions(path) for path in (out / "questions").glob("*.jsonl")}
        assert {split: len(rows) for split, rows in found.items()} == sizes, name
        asked = [normalise(row["question"]) for rows in found.values() for row in rows]
        assert len(set(asked)) == len(asked)
        for row in [row for rows in found.values() for row in rows[:300]]:
            assert strict(row["solutions"][0], row["answer"]).right, row


def test_local_copy_of_fineweb_edu(tmp_path):
    """FineWeb-Edu in the hub's layout: a sample is its own files, the whole is data/ without the samples beside it."""

    def rows(of):
        about = {
            "id": "<urn:uuid:1>",
            "dump": "CC-MAIN-2013-20",
            "url": "http://x.y",
            "language_score": 0.9,
            "int_score": 3,
        }
        return [{"text": f"{of} {text}"} | about for text in texts(20)]

    for file, of in {
        "data/CC-MAIN-2013-20/train-00000-of-00002.parquet": "all 0",
        "data/CC-MAIN-2013-20/train-00001-of-00002.parquet": "all 1",
        "sample/10BT/000_00000.parquet": "10BT",
        "sample/100BT/000_00000.parquet": "100BT",
    }.items():
        parquet(tmp_path / "copy" / file, rows(of))
    for subset, of in {"": ["100BT"], "sample-10BT": ["10BT"], "default": ["all 0", "all 1"]}.items():
        out = run(
            tmp_path, "fineweb-edu", local=str(tmp_path / "copy"), subset=subset, out=str(tmp_path / f"out{subset}")
        )
        held = segments(out / "fineweb-edu", "train") + segments(out / "fineweb-edu", "val")
        assert sorted(held) == sorted(row["text"] for name in of for row in rows(name))


def test_local_copy_of_any_text(tmp_path):
    """A data set without a name of its own, as hf:OWNER/NAME, whose text is in another column of its parquet files."""
    parquet(tmp_path / "copy/data/train-00000-of-00001.parquet", [{"content": text, "text": "no"} for text in texts(9)])
    flags = {"local": str(tmp_path / "copy"), "val_fraction": 0}
    out = run(tmp_path, "hf:bigcode/tiny-stack", text_field="content", **flags)
    assert segments(out / "tiny-stack", "train") == texts(9)
    for split in ("test", "validation"):
        parquet(tmp_path / f"copy/data/{split}-00000-of-00001.parquet", [{"content": f"of {split}"}])
    out = run(tmp_path, "hf:bigcode/tiny-stack", text_field="content", source="again", **flags)
    assert segments(out / "again", "train") == texts(9)
    out = run(tmp_path, "hf:bigcode/tiny-stack", text_field="content", source="test", split="test", **flags)
    assert segments(out / "test", "train") == ["of test"]


def test_text_field(tmp_path, capsys):
    """--text_field names the column of the text, in jsonl and parquet; .txt files need none. Where it is missing, the
    line names the flag and what there is; another field makes another source."""
    path = write(tmp_path / "t.jsonl", [{"content": text, "text": "no"} for text in texts(5)] + [{"body": "x"}])
    (tmp_path / "a.txt").write_text("plain\n")
    out = run(tmp_path, path, tmp_path / "a.txt", source="t", text_field="content", val_fraction=0)
    assert segments(out / "t", "train") == [*texts(5), "plain\n"]
    assert "t.jsonl:6: no field 'content' (--text_field) and no question; it has: body" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"other settings \(input\)"):
        run(tmp_path, path, tmp_path / "a.txt", source="t", val_fraction=0)


def test_shard_dtype():
    """cl100k's ids need 32 bits, gpt2's 16."""
    assert [shard_dtype(SimpleNamespace(vocab_size=n)) for n in (50257, 65535, 65536, 100278)] == [
        np.uint16,
        np.uint16,
        np.uint32,
        np.uint32,
    ]


def test_workers_change_nothing(tmp_path):
    """Tokenising in three processes gives the same files as in one."""
    path = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(1000)] + [b"{"] * 3)
    one = run(tmp_path, path, out=str(tmp_path / "one"), shard_tokens=9000)
    three = run(tmp_path, path, out=str(tmp_path / "three"), shard_tokens=9000, workers=3)
    assert files_of(one) == files_of(three) and len(files_of(one)) > 5


def test_chunks_are_bounded(monkeypatch):
    """The chunks that workers are sent hold 64 records, or fewer where those are long, in either form; nothing is lost."""
    monkeypatch.setattr(encoder, "MAX_RECORD", 1000)
    for content in (lambda n: b"x" * n, lambda n: {"text": "x" * n, "n": 1}):
        records = [Record(str(i), content(n), 0) for i, n in enumerate([1] * 100 + [400] * 10 + [2000, 1])]
        chunks = list(encoder._chunks(iter(records)))
        assert [record for chunk in chunks for record in chunk] == records
        assert [len(chunk) for chunk in chunks] == [64, 39, 3, 3, 2, 1]


def test_held_out_documents(tmp_path):
    """About the share that was asked for is held out; no text is on both sides, copies included; every document is on
    one; another seed chooses others; a small input has something held out too."""
    path = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(2000) + texts(2000)])
    out = run(tmp_path, path, val_fraction=0.1)
    train, val = segments(out / "t", "train"), segments(out / "t", "val")
    # a binomial of 2000 at .1 has a standard deviation of 13: 5 of them
    assert abs(len(set(val)) - 200) < 67 and not set(train) & set(val)
    assert sorted(train + val) == sorted(texts(2000) * 2)
    other = segments(run(tmp_path, path, val_fraction=0.1, seed=1, out=str(tmp_path / "o")) / "t", "val")
    assert len(set(other) & set(val)) < 67
    small = run(tmp_path, write(tmp_path / "s.jsonl", [{"text": text} for text in texts(3)]), val_fraction=0.001)
    assert segments(small / "s", "val") == texts(3)[:1] and segments(small / "s", "train") == texts(3)[1:]
    rows = [{"question": q, "answer": "1", "solution": f"{s}: \\boxed{{1}}"} for q in ("One?", "Else?") for s in "ab"]
    small = run(tmp_path, write(tmp_path / "q.jsonl", rows), val_fraction=0.001)
    assert [len(segments(small / "q", split)) for split in ("train", "val")] == [2, 2]
    all_of_it = run(tmp_path, tmp_path / "s.jsonl", source="all", val_fraction=1.0)
    assert segments(all_of_it / "all", "val") == texts(3)


def test_max_tokens(tmp_path):
    """The run stops with the document that reaches the limit."""
    path = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(500)])
    out = run(tmp_path, path, max_tokens=1000.0, val_fraction=0)
    meta = json.loads((out / "t/meta.json").read_text())
    assert 1000 <= meta["train"]["tokens"] < 1100
    assert segments(out / "t", "train") == texts(500)[: meta["train"]["documents"]]


BAD = [b"{", b'{"text": "\xff"}', b'{"text": "\\ud800"}', b"3", b'{"txt": "a"}', b'{"text": ""}', b'{"text": 5}', b'{"question": "Q?", "answer": "1"}',
       b'{"text": "' + b"a" * 3_000_000 + b'"}']  # fmt: skip


def test_bad_documents(tmp_path, capsys):
    """A document that cannot be read is named as file:line, counted, and changes nothing else; --strict stops at the
    first, and what it leaves is gone on from without --strict."""
    rows = [{"text": text} for text in texts(len(BAD) + 1)]
    mixed = [row for pair in zip(rows, [*BAD, None], strict=True) for row in pair if row is not None]
    path = write(tmp_path / "t.jsonl", mixed)
    out = run(tmp_path, path, val_fraction=0)
    assert segments(out / "t", "train") == texts(len(BAD) + 1)
    skipped = json.loads((out / "t/meta.json").read_text())["skipped"]
    assert skipped["unreadable"] == len(BAD)
    assert [line.split(": ")[0] for line in skipped["named"]] == [
        f"{path}:{line}" for line in range(2, 2 * len(BAD) + 1, 2)
    ]
    printed = capsys.readouterr()
    assert f"{len(BAD)} unreadable" in printed.out and all(line in printed.err for line in skipped["named"])
    for bad in BAD:
        with pytest.raises(UserError, match="s.jsonl:2: ") as error:
            run(
                tmp_path, write(tmp_path / "s.jsonl", [rows[0], bad, rows[1]]), strict=True, source=f"s{BAD.index(bad)}"
            )
        assert "\n" not in str(error.value)
    out = run(tmp_path, tmp_path / "s.jsonl", source=f"s{len(BAD) - 1}", val_fraction=0.01)
    assert segments(out / f"s{len(BAD) - 1}", "train") == texts(9)[1:2]


def test_nothing_to_train_on(tmp_path):
    """An input of which nothing is left is an error, and no folder stays behind."""
    for rows in ([], [b"{"], [{"text": "just one"}]):
        with pytest.raises(UserError, match="nothing to train on: .* held out, .* unreadable"):
            run(tmp_path, write(tmp_path / "t.jsonl", rows))
        assert not (tmp_path / "out/t").exists()


def test_bad_inputs(tmp_path):
    """Inputs and names that make no sense are refused before anything is written."""
    (tmp_path / "empty").mkdir()
    path = write(tmp_path / "t.jsonl", [{"text": "a"}])
    for inputs, flags, match in [
        ((tmp_path / "none.jsonl",), {}, "no such file or folder, nor one of world, gsm8k"),
        ((tmp_path / "empty",), {}, "holds no file that ends in .jsonl"),
        ((path, path), {}, "choose a name for their source with --source"),
        (("dolmino", path), {"source": "x"}, "give one hub name, or one or more local files"),
        ((path,), {"source": "questions"}, "choose another name"),
        ((path,), {"source": "a/b"}, "choose another name"),
        ((path,), {"val_fraction": 1.5}, "between 0 and 1"),
        ((path,), {"subset": "math"}, "--subset math: local files have none"),
        ((path,), {"split": "test"}, "--split test: goes with"),
        (("gsm8k",), {"text_field": "content"}, "--text_field content: gsm8k holds questions"),
        (("world",), {"source": "x"}, "--source: the world takes no such flag"),
        (("world",), {"local": "x"}, "--local: the world takes no such flag"),
        ((path,), {"tokenizer": "bert"}, "unknown tokenizer 'bert'"),
        ((path,), {"ban": ("nowhere.jsonl",)}, "nowhere.jsonl: no such file"),
    ]:
        with pytest.raises(UserError, match=match):
            run(tmp_path, *inputs, **flags)
        assert not (tmp_path / "out").exists()


# ------------------------------------------------------------------------------------------------------------ questions


def question_rows(n):
    """n questions with two solutions each, as OpenMathInstruct-2 has them: a row per solution."""
    row = {"problem_source": "gsm8k", "expected_answer": "7"}
    return [
        row | {"problem": f"Tom has {i} red nuts. How many?", "generated_solution": f"Way {way} of {i}: \\boxed{{7}}."}
        for way in range(2)
        for i in range(n)
    ]


def test_questions_and_text_do_not_overlap(tmp_path, capsys):
    """Property 36: validation questions are neither in the train questions nor in any text of the folder, with any
    solution, prepared in the same call or later; nor are banned ones; near duplicates (white space, case) are gone as
    well."""
    near = [row | {"problem": row["problem"].upper().replace(" ", "  ")} for row in question_rows(50)]
    path = write(tmp_path / "q.jsonl", question_rows(50) + near)
    ban = write(tmp_path / "test.jsonl", [{"question": "tom has 3 RED nuts.  How many?", "answer": "7"}])
    out = run(tmp_path, path, questions="also", validation_questions=20, ban=(str(ban),), val_fraction=0.05)
    train, validation = (load_questions(out / "questions" / f"{name}.jsonl") for name in ("train", "validation"))
    keys = [{normalise(row["question"]) for row in rows} for rows in (train, validation)]
    assert len(validation) == 20 and not keys[0] & keys[1]
    assert not any("tomhas3red" in key for key in keys[0] | keys[1]) and len(keys[0] | keys[1]) == 49
    assert all(len(row["solutions"]) == 2 for row in train + validation)
    text = segments(out / "q", "train") + segments(out / "q", "val")
    held_out = BannedQuestions([row["question"] for row in validation] + ["Tom has 3 red nuts. How many?"])
    assert not any(held_out.found_in(segment) for segment in text)
    assert len(text) == 2 * len(train)
    assert f"{2 * (len(near) // 2 + 50) - len(text)} with a held-out question" in capsys.readouterr().out

    web = [{"text": f"I asked: {row['question'].lower()} And then?"} for row in train[:5] + validation[:5]]
    out = run(tmp_path, write(tmp_path / "web.jsonl", web), val_fraction=0)  # later, and without a word about questions
    assert len(segments(out / "web", "train")) == 5
    assert json.loads((out / "web/meta.json").read_text())["skipped"]["banned"] == 5


def test_questions_only_and_never_replaced(tmp_path):
    """`only` writes no shards; the same call again changes nothing; other questions are refused."""
    path = write(tmp_path / "q.jsonl", question_rows(50))
    out = run(tmp_path, path, questions="only", validation_questions=10)
    assert {path.name for path in out.iterdir()} == {"questions", "lock"}
    before = files_of(out)
    run(tmp_path, path, questions="only", validation_questions=10)
    with pytest.raises(UserError, match="holds other questions"):
        run(tmp_path, path, questions="only", validation_questions=11)
    assert files_of(out) == before


def test_hub_questions_bring_their_test_split(tmp_path, monkeypatch):
    """Property 36: with GSM8K from the hub, its test split becomes a question file, and its questions leave the train
    split."""
    rows = [{"question": f"Q {i}, how many nuts?", "answer": f"It is {i}.\n#### {i}"} for i in range(30)]
    monkeypatch.setattr(
        "data.questions.stream_hub", lambda repo, config, split: iter(rows[25:] if split == "test" else rows)
    )
    out = run(tmp_path, "gsm8k", questions="also", validation_questions=5, val_fraction=0)
    sizes = {name: len(load_questions(out / f"questions/{name}.jsonl")) for name in ("train", "validation", "test")}
    assert sizes == {"train": 20, "validation": 5, "test": 5}
    assert len(segments(out / "gsm8k", "train")) == 20


# -------------------------------------------------------------------------------------------------------------- restart


def test_interrupted_stream_goes_on(tmp_path, monkeypatch):
    """A hub stream that breaks off is gone on from after the last complete shard: those records are not asked for
    again, and the files are those of an unbroken run."""
    rows = [{"text": text} if i % 7 else {"no": 1} for i, text in enumerate(texts(600))]
    asked = []

    def stream(repository, config, split, seed, skip, breaks_at=None):
        asked.append((repository, config, split, seed, skip))
        for i, row in enumerate(rows[skip:], start=skip):
            if i == breaks_at:
                raise UserError("network gone")
            yield row

    flags = {"shard_tokens": 3000, "subset": "math", "seed": 5, "val_fraction": 0.05}
    monkeypatch.setattr(data_inputs, "stream_hub", stream)
    whole = run(tmp_path, "dolmino", out=str(tmp_path / "whole"), **flags)
    for breaks_at in (200, 201, 470):
        monkeypatch.setattr(data_inputs, "stream_hub", lambda *args, at=breaks_at: stream(*args, breaks_at=at))
        with pytest.raises(UserError, match="network gone"):
            run(tmp_path, "dolmino", **flags)
    monkeypatch.setattr(data_inputs, "stream_hub", stream)
    out = run(tmp_path, "dolmino", **flags)
    assert files_of(out) == files_of(whole) and len(files_of(out)) > 6
    skips = [skip for *_, skip in asked[1:]]
    assert skips == sorted(skips) and 300 < skips[-1] <= 470
    assert set(args[:4] for args in asked) == {("allenai/dolmino-mix-1124", "math", "train", 5)}
    assert {path.name for path in out.iterdir()} == {"math", "lock"}


def test_other_settings_are_refused(tmp_path, capsys):
    """A prepared folder is left as it is by the same flags, and refused to others, which are named; so is a folder that
    something else made."""
    path = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(50)])
    out = run(tmp_path, path)
    before = files_of(out)
    run(tmp_path, path, workers=2, strict=True)  # these do not change what is made
    assert "already prepared" in capsys.readouterr().out
    for flags, named in [
        ({"seed": 1}, "seed"),
        ({"val_fraction": 0.5, "max_tokens": 10}, "max_tokens, val_fraction"),
        ({"ban": (str(write(tmp_path / "b.jsonl", [{"question": "Why?", "answer": "1"}])),)}, "banned"),
    ]:
        with pytest.raises(UserError, match=rf"made with other settings \({named}\)"):
            run(tmp_path, path, **flags)
    write(path, [{"text": "changed"}])
    with pytest.raises(UserError, match=r"other settings \(input\)"):
        run(tmp_path, path)
    assert files_of(out) == before
    (tmp_path / "out/mine").mkdir()
    (tmp_path / "out/mine/thesis.tex").write_text("precious")
    with pytest.raises(UserError, match="is not empty and was not made here"):
        run(tmp_path, path, source="mine")


@pytest.mark.skipif(not Path("/proc").exists(), reason="finds the worker processes in /proc")
def test_killed_run_goes_on(tmp_path):
    """kill -9 between any two shards: what is there is not mistaken for a finished source, the workers end by
    themselves, and the same command again leaves the files of a run that was never killed."""
    path = write(tmp_path / "t.jsonl", [{"text": text * 10} for text in texts(1500)] + [b"{"])
    flags = {"shard_tokens": 10_000, "val_fraction": 0.05}
    whole = run(tmp_path, path, out=str(tmp_path / "whole"), **flags)
    out = tmp_path / "out"
    command = [sys.executable, "-m", "data.prepare", "--input", str(path), "--out", str(out), "--tokenizer", "world"]
    command += ["--workers", "2", *(str(x) for name, value in flags.items() for x in (f"--{name}", value))]
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.DEVNULL)
    shard = out / "t" / f"train_{random.randrange(2, 12):05d}.npy"
    while not shard.exists():
        assert process.poll() is None, "finished before it could be killed"
        time.sleep(0.001)
    workers = [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if _parent(stat) == process.pid]
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(workers) >= 2
    assert not (out / "t/meta.json").exists()
    with pytest.raises(UserError, match="holds no prepared source"):
        Loader(out, None, 4, 16, 0)
    kept = {name: (out / "t" / name).stat().st_mtime_ns for name in ("train_00000.npy", "train_00001.npy")}
    deadline = time.monotonic() + 10
    while any(_alive(pid) for pid in workers):
        assert time.monotonic() < deadline, "orphaned workers"
        time.sleep(0.01)
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    assert files_of(out) == files_of(whole)
    assert kept == {name: (out / "t" / name).stat().st_mtime_ns for name in kept}  # not made again


def _parent(stat: Path) -> int:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has just ended
        return -1


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_command_line(tmp_path):
    """A user's mistake is one line and exit code 2; --help explains every flag."""
    command = [sys.executable, "-m", "data.prepare"]
    bad = subprocess.run([*command, "--input", "nowhere.txt"], cwd=ROOT, capture_output=True, text=True)
    assert bad.returncode == 2 and bad.stdout == ""
    assert bad.stderr.startswith("error: --input nowhere.txt: no such file") and bad.stderr.count("\n") == 1
    shown = subprocess.run(
        [*command, "--help"], cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "200"}
    )
    assert shown.returncode == 0 and "goes on after its last complete shard" in shown.stdout
    assert all(f"--{name.replace('_', '-')}" in shown.stdout or f"--{name}" in shown.stdout for name in vars(Config()))
    assert not re.search(r"(?:FLOAT|STR|INT|[]}]|no_\w+)[\s│]*\(default", shown.stdout), "a flag without a sentence"
    assert f"the world: {WORLD_TOKENS / 1e6:g} million" in shown.stdout


def test_an_unknown_tokenizer_is_refused_before_questions_are_written(tmp_path):
    source = write(
        tmp_path / "q.jsonl", [{"question": f"{i} pears?", "answer": f"{i}", "solutions": ["x"]} for i in range(9)]
    )
    with pytest.raises(UserError, match="unknown tokenizer"):
        run(tmp_path, source, questions="also", validation_questions=2, tokenizer="none")
    assert not (tmp_path / "out").exists()


def test_no_validation_questions(tmp_path):
    """--validation_questions 0 writes train.jsonl alone, again and again; another number beside it is refused."""
    source = write(
        tmp_path / "q.jsonl", [{"question": f"{i} pears?", "answer": f"{i}", "solutions": ["x"]} for i in range(9)]
    )
    for _ in range(2):
        out = run(tmp_path, source, questions="only", validation_questions=0)
        assert [path.name for path in out.glob("questions/*.jsonl")] == ["train.jsonl"]
    with pytest.raises(UserError, match="holds other questions"):
        run(tmp_path, source, questions="only", validation_questions=2)
    out = run(tmp_path, source, questions="only", validation_questions=2, out=str(tmp_path / "other"))
    with pytest.raises(UserError, match="holds other questions"):
        run(tmp_path, source, questions="only", validation_questions=0, out=str(out))
    with pytest.raises(UserError, match="--source"):
        run(tmp_path, source, source="x" * 300)


def test_two_into_one_folder(tmp_path):
    """A folder that another prepare is at work in is refused in one line and left as it is; when that one has ended, it
    is free. What is wrong with the flags is found before there is a folder."""
    source = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(9)])
    (tmp_path / "out").mkdir()
    lock = take_lock(tmp_path / "out")  # the other process: a second descriptor is as good as a second process
    with pytest.raises(UserError, match="out: another process is at work there") as error:
        run(tmp_path, source)
    assert "\n" not in str(error.value) and [path.name for path in (tmp_path / "out").iterdir()] == ["lock"]
    os.close(lock)
    for _ in range(2):  # the lock is given back at the end
        assert (run(tmp_path, source) / "t/meta.json").exists()
    with pytest.raises(UserError, match="--validation_questions 99"):
        rows = write(tmp_path / "q.jsonl", question_rows(9))
        run(tmp_path, rows, questions="only", validation_questions=99, out=str(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_kill_after_the_last_file_leaves_nothing(tmp_path):
    """Killed between meta.json and the removal of progress.json: started again, it removes that one."""
    source = write(tmp_path / "t.jsonl", [{"text": text} for text in texts(9)])
    out = run(tmp_path, source)
    (out / "t/progress.json").write_text((out / "t/meta.json").read_text())
    run(tmp_path, source)
    assert not (out / "t/progress.json").exists()


@pytest.mark.parametrize("out", ["", ".", "/"])
def test_the_world_needs_a_folder_of_its_own(out):
    with pytest.raises(UserError, match="--out .*: name a folder"):
        main(Config(out=out))
