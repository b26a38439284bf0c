"""files.py: files are whole or absent, temporaries do not stay, a full disk or a forbidden place is one line."""

import contextlib
import gzip
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL

import files
import pretrain
import rl
from checkpoint import load_checkpoint, save_checkpoint
from cli import UserError, cli
from data import prepare, shards
from excursion import command as excursion
from files import remove_stale, replacing, replacing_path, write_bytes, write_jsonl

POST = "--limit 8 --steps 2 --prompts 2 --rollouts 2 --max_new_tokens 4 --eval_every 0"


@contextlib.contextmanager
def full_disk(n_bytes: int):
    """No file can grow beyond n_bytes, as on a disk that is full."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)


def dead_pid() -> int:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def command(module, *flags, presets=None) -> int:
    """The exit code of a command line, called in this process."""
    argv, sys.argv = sys.argv, [module.__name__, *map(str, flags)]
    try:
        cli(module.main, module.Config, presets)
        return 0
    except SystemExit as exit_:
        return exit_.code
    finally:
        sys.argv = argv


def parts(folder: Path) -> list[Path]:
    return list(folder.rglob("*.part"))


@pytest.mark.parametrize("write", [
    lambda path: write_bytes(path, b"x" * 5000),
    lambda path: write_jsonl(path, [{"x": "y" * 5000}]),
    lambda path: save_checkpoint(path, {"model": {"x": torch.ones(2000)}}),
    lambda path: shards._write_shard(path, np.ones(1500, np.uint16)),
], ids=["bytes", "jsonl", "checkpoint", "shard"])  # fmt: skip
def test_a_full_disk_leaves_the_old_file(write, tmp_path):
    """Whatever is written in one piece: an OSError that names the file; the old content and no temporary remain."""
    path = tmp_path / "file"
    path.write_bytes(b"old")
    with full_disk(1000), pytest.raises(OSError, match="File too large") as error:
        write(path)
    assert error.value.filename == str(path)
    assert path.read_bytes() == b"old" and os.listdir(tmp_path) == ["file"]


def test_content_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    """A machine that loses power after the renaming has the whole file: all of it is flushed and synced before."""
    done, fsync, replace = [], os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda file: done.append(os.fstat(file).st_size) or fsync(file))
    monkeypatch.setattr(os, "replace", lambda *names: done.append("named") or replace(*names))
    write_bytes(tmp_path / "a", b"x" * 50)
    assert done == [50, "named"]


def test_a_shard_is_what_numpy_writes(tmp_path):
    tokens = np.arange(5000, dtype=np.uint16)
    shards._write_shard(tmp_path / "a.npy", tokens)
    np.save(tmp_path / "b.npy", tokens)
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()


def test_an_error_within_leaves_nothing(tmp_path):
    """An exception of any kind, also Ctrl-C, while a file or a folder is made: neither it nor a temporary remains."""
    with pytest.raises(KeyboardInterrupt), replacing(tmp_path / "a") as file:
        file.write(b"half")
        raise KeyboardInterrupt
    with pytest.raises(ValueError, match="x"), replacing_path(tmp_path / "b") as part:
        part.mkdir()
        (part / "c").write_text("half")
        raise ValueError("x")
    assert os.listdir(tmp_path) == []


def test_stale_temporaries_go_and_others_stay(tmp_path, monkeypatch):
    """Removed: those of dead processes, files and folders. Kept: those of live ones, also of another user's, which we
    may not signal, and files that only look alike."""
    dead, alive = dead_pid(), os.getppid()
    (tmp_path / f"world.{dead}.part").mkdir()
    (tmp_path / f"world.{dead}.part/x").write_text("")
    kept = [f"a.{alive}.part", "thesis.part", "notes.v2.part", "b"]
    for name in (f"a.{dead}.part", f"b.{10**30}.part", *kept):
        (tmp_path / name).write_text("")
    remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    monkeypatch.setattr(os, "kill", lambda *_: (_ for _ in ()).throw(PermissionError))
    remove_stale(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)


def test_the_same_records_are_the_same_bytes(tmp_path):
    """A compressed file of records does not depend on its name or the time."""
    for name in ("a.jsonl.gz", "b.jsonl.gz"):
        write_jsonl(tmp_path / name, [{"x": "é"}])
    assert (tmp_path / "a.jsonl.gz").read_bytes() == (tmp_path / "b.jsonl.gz").read_bytes()


@pytest.mark.parametrize("n_bytes", [0, 300, 100_000])
def test_a_full_disk_stops_a_stage_with_one_line(n_bytes, world, base, tmp_path, capsys):
    """Pretraining, RL and prepare, wherever the disk is full: exit code 2, the last line names a file of --out and the
    reason, no temporary is left, and last.pt, if there is one, loads."""
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 20_000)
    runs = [
        (pretrain, *SMALL, "--data", world),
        (rl, "--init", base / "last.pt", "--data", world, *POST.split()),
        (prepare, "--input", text, "--tokenizer", "world", "--workers", 1, "--val_fraction", 0),
    ]
    for number, (module, *flags) in enumerate(runs):
        out = tmp_path / str(number)
        with full_disk(n_bytes):
            assert command(module, *flags, "--out", out) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith(f"error: {out}") and ("too large" in line or "written" in line)
        assert not parts(tmp_path)
        if (out / "last.pt").exists():
            load_checkpoint(out / "last.pt")


def test_a_forbidden_place_is_one_line(world, base, tmp_path, capsys):
    """--out below a file: one line, exit code 2, for every command that writes."""
    (tmp_path / "file").write_text("")
    out = tmp_path / "file/out"
    for module, *flags in [
        (pretrain, *SMALL, "--data", world),
        (rl, "--init", base / "last.pt", "--data", world, *POST.split()),
        (prepare, "--max_tokens", 1000),
        (excursion, "run"),
    ]:
        assert command(module, *flags, "--out", out) == 2
        line = capsys.readouterr().err.strip().splitlines()[-1]
        assert line.startswith("error: ") and str(tmp_path / "file") in line


def test_stale_temporaries_are_removed_where_a_run_or_prepare_starts(world, base, tmp_path):
    """What a killed process left in --out, or beside it while it built the world, is gone after the next start; and
    prepare starts in a folder that holds nothing else."""
    dead = dead_pid()
    text = tmp_path / "text.txt"
    text.write_text("some text\n" * 100)
    (tmp_path / "out/text").mkdir(parents=True)
    (tmp_path / f"out/text/progress.json.{dead}.part").write_text('{"for')
    flags = ["--input", text, "--val_fraction", 0, "--tokenizer", "world", "--workers", 1, "--out", tmp_path / "out"]
    assert command(prepare, *flags) == 0
    (tmp_path / f"new.{dead}.part/questions").mkdir(parents=True)
    assert command(prepare, "--max_tokens", 1000, "--out", tmp_path / "new") == 0
    assert not parts(tmp_path)


def test_a_small_file_that_unpacks_to_a_large_one_is_one_line(tmp_path, monkeypatch):
    """A few MB of zeros can be gigabytes of text: a JSON file is read up to a limit."""
    monkeypatch.setattr(files, "MAX_JSON", 1000)
    (tmp_path / "x.json.gz").write_bytes(gzip.compress(b" " * 100_000 + b"{}"))
    with pytest.raises(UserError, match="x.json.gz: longer than"):
        files.read_json(tmp_path / "x.json.gz")
