"""--shard on several gloo ranks: the gradients and losses of one process, checkpoints, resumes, signals."""

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import ROOT, assert_same_run

import config
import pretrain
import sharding
from checkpoint import load_checkpoint
from cli import UserError
from process import Process

ROLLOUTS = dict(prompts=3, rollouts=4, max_new_tokens=8)
PRETRAIN = ("pretrain", dict(scale="smoke", batch=3, seq_len=64, micro_tokens=64, lr=1e-3, schedule="constant"))
RL = ("rl", dict(**ROLLOUTS, micro_tokens=64))
# What 2 ranks share unevenly: 3 rows, 5 rows, 3 questions. 4 ranks have a rank without data
STAGES = {
    "pretrain": PRETRAIN,
    "sft": ("sft", dict(rows=5, micro_tokens=64)),
    "rl": RL,
    "updates": ("rl", dict(**ROLLOUTS, kl=0.1, entropy=0.01, minibatch=2, inner_epochs=2, micro_tokens=64)),
    "parallel": ("average", dict(**ROLLOUTS, rows=5)),
    "combined": ("average", dict(**ROLLOUTS, rows=5, mode="combined")),
}


@pytest.fixture(scope="module")
def runs(base, world):
    def make(out: Path, stages: dict, **flags) -> list:
        """Of a plan (sharded.py): these stages with these flags, each in a folder of its name."""
        made = []
        for name, (stage, own) in stages.items():
            first = {} if stage == "pretrain" else {"init": str(base / "last.pt"), "limit": 12}
            own = dict(eval_every=0, val_tokens=300) | own if stage == "pretrain" else dict(eval_every=0) | own
            made.append([stage, {"data": str(world), "out": str(out / name), **first, **own, **flags}])
        return made

    return make


def start(folder: Path, *groups: dict, timeout: float = 900) -> list[list[int]]:
    """Run the groups of a plan one after the other; exit codes of their ranks."""
    (folder / "plan.json").write_text(json.dumps(groups))
    # Seconds: four ranks that share two cores with other work may wait long for one of them
    command, env = [sys.executable, "tests/sharded.py", folder / "plan.json"], os.environ | {"RANK_TIMEOUT": "300"}
    ended = subprocess.run(command, cwd=ROOT, env=env, text=True, capture_output=True, timeout=timeout)
    assert ended.returncode == 0, ended.stderr
    codes = json.loads(ended.stdout.splitlines()[-1])
    assert all(code in (0, 143) for group in codes for code in group), f"{codes}\n{ended.stderr}"
    return codes


def lines(folder: Path) -> list[dict]:
    """The lines of steps in metrics.jsonl, without times."""
    rows = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    rows = [row for row in rows if "lr" in row]
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "seconds"))} for row in rows]


def assert_close_lines(one: Path, many: Path) -> None:
    """The same metrics of the same steps, to 1e-5."""
    assert len(lines(one)) == len(lines(many))
    for a, b in zip(lines(one), lines(many), strict=True):
        assert a == pytest.approx(b, rel=1e-5, abs=1e-6)


def assert_equal_to_one_process(one: Path, many: Path, ranks: int) -> None:
    """Every gradient and every metric to 1e-5; the same rollouts; a checkpoint with the same names, shapes and
    settings; and a rank keeps its part of masters, gradients and AdamW's state, no more."""
    a, b = (torch.load(folder / "seen.pt", weights_only=False) for folder in (one, many))
    apart = (a["gradients"] - b["gradients"]).norm(dim=1) / a["gradients"].norm(dim=1)
    assert apart.max() < 1e-5, apart
    assert_close_lines(one, many)
    if (one / "rollouts.jsonl.gz").exists():
        x, y = (gzip.open(folder / "rollouts.jsonl.gz").read() for folder in (one, many))
        assert x == y
    x, y = (load_checkpoint(folder / "last.pt") for folder in (one, many))
    assert form(x["model"]) == form(y["model"]) and form(x["train"]) == form(y["train"])
    assert {k for k in x["args"] if x["args"][k] != y["args"][k]} == {"shard", "out"}
    for name, whole in a["held"].items():
        assert whole / ranks <= b["held"][name] < 1.03 * whole / ranks, name


def form(x):
    """A checkpoint with only the shapes of its tensors."""
    if isinstance(x, torch.Tensor):
        return (tuple(x.shape), x.dtype, x.is_contiguous(), x.untyped_storage().nbytes() == x.nbytes)
    if isinstance(x, dict):
        return {k: form(v) for k, v in x.items()}
    return [form(v) for v in x] if isinstance(x, list) else x


def test_sharded_ranks_are_one_process(runs, tmp_path):
    """Properties 20, 34 with --shard: three steps of each stage on 2 ranks, and on 4 as if on two nodes."""
    groups = [{"ranks": 1, "runs": runs(tmp_path / "1", STAGES, steps=3)}]
    groups += [{"ranks": n, "node": 2, "runs": runs(tmp_path / f"{n}", STAGES, steps=3, shard=True)} for n in (2, 4)]
    start(tmp_path, *groups)
    for name in STAGES:
        for ranks in (2, 4):
            assert_equal_to_one_process(tmp_path / "1" / name, tmp_path / f"{ranks}" / name, 2)


def test_bf16(runs, tmp_path):
    """In bf16 the ranks read bf16 weights, with fp32 masters: the gradients of one process to what bf16 rounds (2⁻⁸),
    the same also where micro-batches of one row add up; and nothing of the trial pass of --compile is left in a
    gradient."""
    stages = {"pretrain": ("pretrain", PRETRAIN[1] | dict(compile="on")), "sft": STAGES["sft"]}
    groups = [{"ranks": 1, "runs": runs(tmp_path / "1", stages, steps=2, dtype="bf16")}]
    groups += [{"ranks": 2, "runs": runs(tmp_path / "2", stages, steps=2, dtype="bf16", shard=True)}]
    start(tmp_path, *groups)
    for name in stages:
        a, b = (torch.load(tmp_path / ranks / name / "seen.pt", weights_only=False) for ranks in ("1", "2"))
        assert (a["gradients"] - b["gradients"]).norm() < 0.02 * a["gradients"].norm()
        assert b["held"]["masters"] == a["held"]["masters"] / 2


@pytest.mark.slow
def test_twenty_steps_on_2_3_and_4_ranks(runs, tmp_path):
    """The same over 20 steps, with parts of unequal size (3 ranks) and of one row of nodes (4). All train on the
    answers that one process sampled. Their own are hardly ever others: a token that is drawn between two parts at the
    last bit of a sum."""
    groups = [{"ranks": 1, "runs": runs(tmp_path / "1", STAGES, steps=20)}]
    for n in (2, 3, 4):
        flags = dict(steps=20, shard=True)
        groups.append({"ranks": n, "given": str(tmp_path / "1"), "runs": runs(tmp_path / f"{n}", STAGES, **flags)})
    start(tmp_path, *groups, timeout=7200)
    for name in STAGES:
        for ranks in (2, 3, 4):
            one, many = tmp_path / "1" / name, tmp_path / f"{ranks}" / name
            assert_equal_to_one_process(one, many, ranks)
            whole, own = (torch.load(folder / "seen.pt", weights_only=False)["sampled"] for folder in (one, many))
            pairs = [(x["tokens"], y["tokens"]) for n in own for x, y in zip(own[n], whole[n], strict=True)]
            assert sum(x != y for x, y in pairs) <= 2 and bool(pairs) == (STAGES[name][0] in ("rl", "average"))


def test_resumed_on_any_number_of_ranks(runs, tmp_path):
    """1 → 2 → 4 → 1 ranks, sharded where there are several, from one resume to the next: the data order and the losses
    of one process; and the last one, which was given no --shard, goes on without."""
    stages = {"pretrain": PRETRAIN, "rl": RL}
    groups = [{"ranks": 1, "runs": runs(tmp_path / "one", stages, steps=4)}]
    for steps, ranks in enumerate((1, 2, 4, 1), 1):
        flags = dict(steps=steps, resume=steps > 1) | ({"shard": True} if ranks > 1 else {})
        groups.append({"ranks": ranks, "runs": runs(tmp_path / "many", stages, **flags)})
    start(tmp_path, *groups)
    for name in stages:
        assert_close_lines(tmp_path / "one" / name, tmp_path / "many" / name)
        assert load_checkpoint(tmp_path / "many" / name / "last.pt")["step"] == 4


def test_what_ranks_save_together(runs, tmp_path):
    """SIGTERM to rank 1 in the middle of the second step's sampling: both save the first step and exit with 143, and
    the resumed run ends in the bits of one that was not stopped. Saves by the clock of rank 0, and a kept checkpoint
    that a resumed run has to write again, change nothing."""
    stages = {"rl": ("rl", dict(**ROLLOUTS, kl=0.1, minibatch=1, steps=3, shard=True))}
    whole, stopped = (runs(tmp_path / name, stages, save_every="0") for name in ("whole", "stopped"))
    codes = start(
        tmp_path,
        {"ranks": 2, "runs": whole},
        {"ranks": 2, "runs": stopped, "signal": [1, 12]},
    )
    assert codes == [[0, 0], [143, 143]]
    assert load_checkpoint(tmp_path / "stopped/rl/last.pt")["step"] == 1
    (tmp_path / "whole/rl/step_0000003.pt").unlink()
    resumed = [[stage, flags | {"resume": True}] for stage, flags in (*whole, *stopped)]
    assert start(tmp_path, {"ranks": 2, "runs": resumed, "late": 0}) == [[0, 0]]
    assert_same_run(tmp_path / "whole/rl", tmp_path / "stopped/rl")
    assert lines(tmp_path / "whole/rl") == lines(tmp_path / "stopped/rl")
    assert (tmp_path / "whole/rl/step_0000003.pt").exists()


def test_the_flag_needs_several_ranks(monkeypatch):
    """--shard on one process is refused in one line, but not where a resumed run takes it from last.pt."""
    flags = dict(scale="smoke", shard=True)
    with pytest.raises(UserError, match="^--shard has no effect on one process .*: leave it out$"):
        pretrain.Config(**flags).check()
    resumed = pretrain.Config(**flags)
    resumed.given = frozenset()
    resumed.check()
    monkeypatch.setitem(os.environ, "WORLD_SIZE", "2")
    pretrain.Config(**flags).check()
    assert not config.MachineConfig().shard


def test_nodes_of_unequal_size_are_one_group(monkeypatch):
    """Two nodes of 8 ranks are a grid; of 8 and 4 ranks, no rank may take its own node's size for that of all."""
    monkeypatch.setattr("torch.distributed.device_mesh.init_device_mesh", lambda kind, shape, **names: shape)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    for sizes, shape in (([4] * 12, (3, 4)), ([8] * 8 + [4] * 4, (12,)), ([12] * 12, (12,))):
        monkeypatch.setattr(Process, "gather", lambda process, own, sizes=sizes: sizes)
        if len(set(sizes)) == 1:
            monkeypatch.setenv("LOCAL_WORLD_SIZE", str(sizes[0]))
        assert sharding._mesh(Process(0, 12, torch.device("cpu"), torch.float32)) == shape
