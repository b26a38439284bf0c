"""What newcomers start with: the notebook (test_excursion.py runs it), the Dockerfile."""

import functools
import re

import pytest
import torch
from conftest import ROOT

import pretrain
from data.prepare import build_world
from process import Process


def test_pretraining_builds_the_world_if_absent(tmp_path, monkeypatch):
    """What the notebook's first stage does in a new checkout, where no data are named and none are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pretrain, "build_world", functools.partial(build_world, tokens=20_000))
    process = Process(0, 1, torch.device("cpu"), torch.float32)
    loader, tokenizer = pretrain.open_data(pretrain.Config(scale="smoke", batch=4, seq_len=64), process)
    assert (tmp_path / pretrain.WORLD / "questions/train.jsonl").exists()
    assert loader.vocab_size == tokenizer.vocab_size


def test_notebook_is_committed_without_outputs():
    """tour.ipynb holds no output: those are made by running it."""
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(ROOT / "tour.ipynb", as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_dockerfile():
    """Only instructions of Docker; both builds, for a CPU and for CUDA, are one argument away; what it copies exists."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {word for word, _ in lines} <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    assert ["FROM", "${BASE}"] in lines and any(line[0] == "ARG" and line[1].startswith("INDEX=") for line in lines)
    for word, rest in lines:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
