"""What the tests share: one thread, a tiny prepared world, a tiny pretraining run, comparisons."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from checkpoint import load_checkpoint
from data.prepare import build_world
from data.tokenizer import load_tokenizer
from model import GPT, GPTConfig

ROOT = Path(__file__).parent.parent

# At the tests' shapes a second thread costs more than it brings; and so the commands that the tests start
# (they inherit the variable) add up in the same order as the functions that they call in this process.
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)

# Tests compute on the CPU, whatever the machine has: they compare bits with a CPU's, and start more ranks than it may
# have GPUs. The test marked gpu starts a process of its own, with TESTS_ON_GPU
if "TESTS_ON_GPU" not in os.environ:
    os.environ.setdefault("HIDDEN_GPUS", os.environ.get("CUDA_VISIBLE_DEVICES", "all"))
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

# A pretraining run of seconds
SMALL = "--scale smoke --batch 4 --seq_len 64 --steps 12 --eval_every 0 --save_every 2".split()


def repository_files() -> list[str]:
    """The files that git knows, as paths from the root. In a copy without .git, as Docker's image and a downloaded
    archive are: all but out/ and what is hidden or cached."""
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    found = (path.relative_to(ROOT) for path in ROOT.rglob("*") if path.is_file())
    others = (
        str(p) for p in found if p.parts[0] not in ("out", "wandb") and not re.search(r"(^|/)[.]|__pycache__", str(p))
    )
    return [path for path in listed if (ROOT / path).exists()] or list(others)


@pytest.fixture(autouse=True)
def keep_signal_handlers():
    """A training run that is called in this process must not leave its handlers behind."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)}
    yield
    for signum, handler in handlers.items():
        signal.signal(signum, handler)


@pytest.fixture(scope="session")
def world(tmp_path_factory) -> Path:
    """The embedded world with 40,000 tokens of training text, for reading only."""
    folder = tmp_path_factory.mktemp("world") / "data"
    build_world(folder, tokens=40_000)
    return folder


@pytest.fixture(scope="session")
def tokenizer():
    return load_tokenizer("world")


@pytest.fixture(scope="session")
def base(world, tmp_path_factory) -> Path:
    """A run of the smoke scale after 12 steps, by the command itself, for reading only."""
    out = tmp_path_factory.mktemp("base") / "run"
    code, _, err = run("pretrain.py", *SMALL, "--data", world, "--out", out)
    assert code == 0, err
    return out


def tiny_gpt(seed: int = 0, std: float = 0.02, vocab_size: int = 131, context: int = 96, n_kv_heads: int = 0) -> GPT:
    """2 layers, 4 heads of 8. With std = 0.3 its predictions are far from uniform and differ from token to token."""
    config = GPTConfig(vocab_size, d_model=32, n_layers=2, n_heads=4, d_ff=48, context=context, n_kv_heads=n_kv_heads)
    return GPT(config).init_weights(seed, std)


def start(*command, **kwargs) -> subprocess.Popen:
    """Start `python COMMAND` in the project's folder."""
    command = [sys.executable, *map(str, command)]
    return subprocess.Popen(command, cwd=ROOT, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **kwargs)


def run(*command, timeout: float = 600) -> tuple[int, str, str]:
    """Run `python COMMAND` in the project's folder: exit code, stdout, stderr."""
    process = start(*command)
    out, err = process.communicate(timeout=timeout)
    return process.returncode, out, err


def small_cell(folder: Path, name: str, code: str, needs=()):
    """A cell that runs `code`, whose PATH is its result, FOLDER/NAME.txt, and that needs the results of these others."""
    from excursion.runner import Cell

    path, needs = folder / f"{name}.txt", [folder / f"{n}.txt" for n in needs]
    return Cell(f"cells/{name}", "eval", ["-c", code.replace("PATH", repr(str(path)))], [path], needs, 1.0)


def same(a, b) -> bool:
    """Bitwise equality of nested checkpoints, whatever flags they record."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def assert_same_run(a: Path, b: Path) -> None:
    """Two runs' last checkpoints hold the same bits and lineage: weights, counters, optimizers, cursors; nothing of a resume."""
    x, y = (load_checkpoint(p / "last.pt") for p in (a, b))
    assert all(same(x[k], y[k]) for k in ("model", "step", "tokens", "flops", "train"))
    assert all("resume" not in stage["args"] for stage in (x, y, *x["lineage"], *y["lineage"]))
    one, two = ([{**stage, "args": None} for stage in z["lineage"]] for z in (x, y))  # out and save_every may differ
    assert one == two


# Files whose few tests take minutes. They begin first, so that no worker is left alone with one at the end
LONG = (
    "test_excursion.py",
    "test_triton.py",
    "test_torture.py",
    "test_sharding.py",
    "test_given.py",
    "test_launch.py",
)


def pytest_collection_modifyitems(items) -> None:
    items.sort(key=lambda item: LONG.index(item.path.name) if item.path.name in LONG else len(LONG))
