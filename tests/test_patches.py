"""README's "change ten lines": each patch in docs/patches applies to the files as they are, runs, and acts."""

import json
import os
import shutil
import subprocess
import sys

import pytest
from conftest import ROOT, SMALL, repository_files

# How a patched stage runs: rewards vary, as an untrained model's own do not; then the check
SCRIPT = """
import sys
from cli import cli
import {stage} as stage
import rl, torch
reward_of = rl.reward_of
rl.reward_of = lambda text, *_: (float(len(text) % 3), len(text) % 3 == 2)
cli(stage.main, stage.Config, getattr(stage, "PRESETS", None))
{check}
"""
ROLLOUTS = "--steps 2 --prompts 2 --rollouts 4 --max_new_tokens 8 --limit 8 --eval_every 0".split()
PATCHES = {  # name → (stage, further flags, what must hold then)
    "reward": ("rl", [], r"assert 0 < reward_of('7 ' * 100 + r'\boxed{4}', '4', True, rl.GRPOConfig())[0] < 1"),
    "advantage": (
        "rl",
        ["--advantage", "rloo"],
        "found = rl.advantages(torch.tensor([[1.0, 0, 0, 0]]), torch.ones(1, 4, dtype=torch.bool), 'rloo')[0].tolist()\n"
        "assert max(abs(a - b) for a, b in zip(found, [1, -1 / 3, -1 / 3, -1 / 3])) < 1e-6",
    ),
    "loss": (
        "rl",
        [],
        "from data.tokenizer import load_tokenizer\n"
        "asked = [{'id': 'a', 'question': 'How many?', 'answer': '2', 'solutions': []}]\n"
        "assert rl.GRPO(rl.GRPOConfig(), asked, load_tokenizer('world'), None, 0, 256).every_group",
    ),
    "optimizer": ("rl", [], ""),
    "weight_schedule": (
        "average",
        ["--weight", "cosine", "--rows", "2"],
        "found = [stage.weight_at(stage.Config(weight='cosine'), i, 3, 1, 1, 1) for i in range(3)]\n"
        "assert max(abs(a - b) for a, b in zip(found, [0, 0.5, 1])) < 1e-6",
    ),
    "model": (
        "pretrain",
        [*SMALL, "--eval_every", "0"],
        "import paged\nassert not paged.follows_model()",  # a GPU does not sample from the model as it was
    ),
}


def test_every_patch_is_tried():
    """docs/patches has the patches that are run here, and README names each."""
    assert {path.stem for path in (ROOT / "docs/patches").iterdir()} == set(PATCHES)
    readme = (ROOT / "README.md").read_text()
    assert all(f"docs/patches/{name}.patch" in readme for name in PATCHES)


def run(tree, out, base, world, stage, flags, check=""):
    """The stage in a tree of files, as a process of its own; its metrics by line, without times."""
    argv = ["--data", str(world), "--out", str(out)]
    argv += [] if stage == "pretrain" else ["--init", str(base / "last.pt"), *ROLLOUTS]
    argv += flags
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(tree)}
    script = SCRIPT.format(stage=stage, check=check)
    ended = subprocess.run([sys.executable, "-c", script, *argv], cwd=tree, env=env, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr[-2000:]
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "seconds"))} for line in lines]


@pytest.fixture(scope="module")
def unpatched(base, world, tmp_path_factory):
    return run(ROOT, tmp_path_factory.mktemp("unpatched") / "run", base, world, "rl", [])


@pytest.mark.parametrize("name", PATCHES)
def test_a_patch_applies_and_acts(name, base, world, unpatched, tmp_path):
    """On a copy of the repository. Loss and optimizer: the second step is not what it is without the patch."""
    stage, flags, check = PATCHES[name]
    tree = tmp_path / "tree"
    for path in repository_files():
        if path.startswith("data/") or path.endswith(".py") and not path.startswith("tests/"):
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / path, tree / path)
    patch = ROOT / "docs/patches" / f"{name}.patch"
    subprocess.run(
        ["git", "apply", str(patch)], cwd=tree, check=True, env={**os.environ, "GIT_DIR": str(tmp_path / "none")}
    )
    metrics = run(tree, tmp_path / "run", base, world, stage, flags, check)
    if name in ("loss", "optimizer"):
        assert metrics[-1] != unpatched[-1]
    if name == "optimizer":  # and such a run is gone on with
        metrics = run(tree, tmp_path / "run", base, world, stage, ["--resume", "--steps", "3"])
        assert [line["step"] for line in metrics] == [1, 2, 3]
