"""Learning rates, the optimizer, the order of data, document masks, and what a crash in an evaluation leaves behind."""

import json
import math
import os
import platform
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, SMALL, assert_same_run, same

import average
import pretrain
import rl
import runtime
import sft
from config import RunConfig, parse_schedule
from model import GPT, config_of
from optimizer import learning_rate, make_optimizer, optimizer_step
from process import Process
from runtime import Cursor

CPU = Process(0, 1, torch.device("cpu"), torch.float32)


# ---------------------------------------------------------------------------------------------------------------------
# Learning rate
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("warmup", [0, 1, 5])
@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_learning_rate(schedule, warmup):
    """Linear warm-up that reaches the peak with its last step; then constant, or linear or a half cosine towards
    a tenth of the peak, at its middle half way between the two."""
    total = 45 + warmup
    assert parse_schedule(f"{schedule}:{warmup}") == (schedule, warmup) and parse_schedule(schedule) == (schedule, 0)
    rate = np.array([learning_rate(0.02, schedule, warmup, step, total) for step in range(total + 3)])
    assert rate[:warmup] == pytest.approx([0.02 * (i + 1) / warmup for i in range(warmup)])
    done = np.arange(45) / 45
    shape = {"constant": 1.0 + 0 * done, "linear": 1 - done, "cosine": (1 + np.cos(math.pi * done)) / 2}[schedule]
    end = 1.0 if schedule == "constant" else 0.1
    assert rate[warmup:total] == pytest.approx(0.02 * (end + (1 - end) * shape))
    assert rate[warmup] == pytest.approx(0.02) and rate.max() <= 0.02 * (1 + 1e-9)
    assert rate[total:] == pytest.approx(0.02 * end)  # a run that goes on does not turn up again
    with pytest.raises(KeyError):  # a fork's shape that only `parse_schedule` was told of
        learning_rate(0.02, "sqrt", warmup, warmup, total)


def test_the_scheduled_rate_is_the_one_that_acts(base):
    """pretrain.py's steps use and log the schedule: smoke warms up over 10 steps, then the cosine of 2 steps begins."""
    lines = [json.loads(line) for line in open(base / "metrics.jsonl")]
    assert [x["lr"] for x in lines if "lr" in x] == pytest.approx(
        [4e-4 * (i + 1) for i in range(10)] + [4e-3, 4e-3 * 0.55]
    )
    train = runtime.load_checkpoint(base / "last.pt")["train"]
    assert [g["lr"] for g in train["optimizer"]["param_groups"]] == pytest.approx([4e-3 * 0.55] * 2)


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer step
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("decay_gains", [False, True])
def test_what_decays(decay_gains):
    """With zero gradients, matrices and the head shrink by lr · decay, with decay_gains the gains too; the rest stays
    bit for bit. Every parameter is in exactly one group."""
    model = GPT(config_of("smoke", 128)).init_weights(0)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer = make_optimizer(model, 1e-2, 0.5, (0.9, 0.95), decay_gains)
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(map(id, model.parameters()))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer_step(model, optimizer, CPU, 1e-2, 1.0)
    kept = set()
    for name, p in model.state_dict().items():
        if torch.equal(p, before[name]):
            kept.add(name)
        else:
            torch.testing.assert_close(p, before[name] * (1 - 1e-2 * 0.5), atol=1e-8, rtol=1e-6)
    gains = {n for n, p in before.items() if p.dim() == 1}
    assert len(gains) > 8
    assert kept == {"embed.weight"} | (set() if decay_gains else gains)


def test_decay_of_the_stages(base, world, tmp_path, monkeypatch):
    """pretrain.py decays the gains as OLMo2 does, post-training the matrices only, with both optimizers of average.py;
    the moments' rates and eps are the paper's."""
    seen = []

    class Enough(Exception):
        pass

    def adamw(groups, **flags):
        (decayed,) = [sum(p.numel() for p in g["params"]) for g in groups if g["weight_decay"]]
        seen.append((decayed, flags["betas"], flags["eps"]))
        if len(seen) == wanted:
            raise Enough
        return make(groups, **flags)

    make = torch.optim.AdamW
    monkeypatch.setattr(torch.optim, "AdamW", adamw)
    model = runtime.load_model(runtime.load_checkpoint(base / "last.pt"))
    sizes = {"olmo2": model.n_params - model.embed.weight.numel()}
    sizes["matrices"] = sizes["olmo2"] - sum(p.numel() for p in model.parameters() if p.dim() == 1)
    flags = dict(data=str(world), out=str(tmp_path / "run"), steps=1)
    for stage, wanted, decayed, beta in (
        (pretrain, 1, "olmo2", 0.95), (sft, 1, "matrices", 0.999), (rl, 1, "matrices", 0.999), (average, 2, "matrices", 0.999),
    ):  # fmt: skip
        more = {"scale": "smoke"} if stage is pretrain else {"init": str(base / "last.pt"), "limit": 12}
        seen.clear()
        with pytest.raises(Enough):
            stage.main(stage.Config(**flags, **more))
        assert seen == [(sizes[decayed], (0.9, beta), 1e-8)] * wanted, stage


@pytest.mark.parametrize(("clip", "want"), [(0.0, 5.0), (10.0, 5.0), (1.0, 1.0)])
def test_clipping(clip, want):
    """The gradient's norm is cut to --clip and never raised to it; 0 is no clipping; the norm before is returned. Seen
    by steps of plain gradient descent at rate 1."""
    module = torch.nn.Linear(1, 2)
    before = [p.detach().clone() for p in module.parameters()]
    gradients = [torch.tensor([[3.0], [0.0]]), torch.tensor([0.0, 4.0])]
    for p, gradient in zip(module.parameters(), gradients, strict=True):
        p.grad = gradient.clone()
    descent = torch.optim.SGD(module.parameters(), lr=0.0)
    assert optimizer_step(module, descent, CPU, 1.0, clip) == pytest.approx(5.0)
    for p, was, gradient in zip(module.parameters(), before, gradients, strict=True):
        torch.testing.assert_close(was - p.detach(), gradient * want / 5, atol=1e-6, rtol=1e-5)
        assert p.grad is None  # the next step's gradient begins anew


def test_cursor_is_a_permutation_per_epoch():
    """Property 33: an epoch shows every item once, in another order than the one before; any position is gone on
    from."""
    a = Cursor(7, 3)
    first, second = a.draw(7), a.draw(7)
    assert sorted(first) == sorted(second) == list(range(7)) and first != second != Cursor(7, 4).draw(7) != first
    b = Cursor(7, 3)
    b.position = 5
    assert b.draw(4) == (first + second)[5:9]


# ---------------------------------------------------------------------------------------------------------------------
# Pretraining's loss
# ---------------------------------------------------------------------------------------------------------------------


def pretraining_gradient(model, rows, at_a_time=2, **flags) -> tuple[list, float]:
    """The gradient and the summed -log p of a batch of rows, through loss_and_backward."""
    model.zero_grad()
    length = len(rows[0]) - 1
    config = pretrain.Config(**{"seq_len": length, "z_loss": 0.0, **flags})
    process = Process(0, 1, torch.device("cpu"), torch.float32, micro_tokens=at_a_time * length)
    loss = pretrain.loss_and_backward(model, torch.tensor(rows), 0, config, process, 1)
    return [p.grad.clone() for p in model.parameters()], loss


def assert_close(got, want):
    (a, x), (b, y) = got, want
    assert x == pytest.approx(y, rel=1e-5)
    for g, h in zip(a, b, strict=True):
        assert (g - h).norm() <= 2e-5 * h.norm()


def test_doc_mask_is_separate_documents():
    """--doc_mask: loss and gradient are those of the row's documents, each in a row of its own (with its end token,
    which predicts the next document's first token); without the flag they are not."""
    model = GPT(config_of("smoke", 128)).init_weights(0, std=0.1)
    rng, rows, documents = np.random.default_rng(0), [], []
    for cuts in ([5, 1, 12, 6], [24], [0, 3, 0, 18]):  # sizes of documents without their end token 0
        row = [t for size in cuts for t in [*rng.integers(1, 128, size=size).tolist(), 0]][:24]
        row.append(int(rng.integers(1, 128)))  # the last target
        rows.append(row)
        ends = [i for i, t in enumerate(row[:-1]) if t == 0] + [23]
        start = 0
        for end in sorted(set(ends)):
            documents.append(row[start : end + 2])  # its inputs, and the target of the last one
            start = end + 1
    got = pretraining_gradient(model, rows, doc_mask=True)
    apart = [pretraining_gradient(model, [d]) for d in documents]
    want = [sum(g) for g in zip(*(a[0] for a in apart), strict=True)], sum(a[1] for a in apart)
    assert_close(got, want)
    plain = pretraining_gradient(model, rows)
    assert plain[1] != pytest.approx(want[1], rel=1e-3)


@pytest.mark.parametrize("doc_mask", [False, True])
def test_20_micro_batches_do_not_change_pretraining(doc_mask):
    """Property 20's denominator in pretraining: one, two or five rows at a time give the same gradient; the z-loss is
    the mean squared log-partition."""
    model = GPT(config_of("smoke", 128)).init_weights(0, std=0.1)
    rows = torch.randint(0, 12, (5, 17), generator=torch.Generator().manual_seed(0)).tolist()
    want = pretraining_gradient(model, rows, at_a_time=5, z_loss=0.01, doc_mask=doc_mask)
    for at_a_time in (1, 2):
        assert_close(pretraining_gradient(model, rows, at_a_time=at_a_time, z_loss=0.01, doc_mask=doc_mask), want)
    if not doc_mask:
        logits = torch.nn.functional.linear(model(torch.tensor(rows)[:, :-1]), model.head.weight)
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), torch.tensor(rows)[:, 1:].flatten(), reduction="sum"
        )
        loss = loss + 0.01 * logits.logsumexp(-1).square().sum()
        assert_close((torch.autograd.grad(loss, list(model.parameters())), want[1]), want)


# ---------------------------------------------------------------------------------------------------------------------
# A crash in an evaluation
# ---------------------------------------------------------------------------------------------------------------------


def crash(*_, **__):
    raise RuntimeError("evaluation crashed")


def test_a_crash_in_pretrainings_evaluation_loses_nothing(base, world, tmp_path, monkeypatch):
    """The step that is evaluated has been saved: its checkpoint is whole, and the resumed run ends in the same bits."""
    flags = dict(zip((f[2:] for f in SMALL[::2]), SMALL[1::2], strict=True))
    flags = {k: v if k == "scale" else int(v) for k, v in flags.items()} | {"save_every": "3", "save_at": "6"}

    def config(**changes):
        return pretrain.Config(**{**flags, "data": str(world), "out": str(tmp_path / "run"), **changes})

    monkeypatch.setattr(pretrain, "bits_per_byte", crash)
    with pytest.raises(RuntimeError, match="evaluation crashed"):
        pretrain.main(config(eval_every=6))
    for name in ("last.pt", "step_0000006.pt"):
        checkpoint = runtime.load_checkpoint(tmp_path / "run" / name)
        assert checkpoint["step"] == 6 and runtime.load_model(checkpoint).n_params > 0
    monkeypatch.undo()
    pretrain.main(config(resume=True))
    assert_same_run(base, tmp_path / "run")


def test_a_crash_in_a_stages_evaluation_loses_nothing(base, world, tmp_path, monkeypatch):
    """The same of the loop that sft.py, rl.py and average.py share."""
    flags = dict(init=str(base / "last.pt"), data=str(world), limit=12, rows=4, steps=4, eval_every=0, save_every="2")
    sft.main(sft.Config(out=str(tmp_path / "whole"), **flags))
    seen = []
    monkeypatch.setattr(sft, "make_evaluate", lambda *_: lambda: crash() if len(seen) else seen.append(1) or {})
    with pytest.raises(RuntimeError, match="evaluation crashed"):
        sft.main(sft.Config(out=str(tmp_path / "run"), **flags | {"eval_every": 2}))
    assert runtime.load_checkpoint(tmp_path / "run/last.pt")["step"] == 2
    monkeypatch.setattr(sft, "make_evaluate", lambda *_: lambda: {"val_pass@1": 0.0})
    sft.main(sft.Config(out=str(tmp_path / "run"), resume=True, **flags | {"eval_every": 2}))
    assert_same_run(tmp_path / "whole", tmp_path / "run")
    lines = [json.loads(line) for line in open(tmp_path / "run/metrics.jsonl")]
    assert [x["step"] for x in lines if "sft_loss" in x] == [1, 2, 3, 4]


def test_a_failing_log_does_not_outlive_its_step(tmp_path):
    """metrics.jsonl after a resume holds no line of a step that will be made again, nor one that a kill has cut, or
    that is none of ours."""
    run = runtime.Run(RunConfig(out=str(tmp_path / "run")), "sft", CPU)
    run.open()
    for step in range(1, 6):
        run.log.metrics(step, loss=float(step))
    run.log.file.write('null\n[]\n{"step": "2"}\n{"step": 6, "lo')
    run.log.file.close()
    (tmp_path / "run/last.pt").touch()
    again = runtime.Run(RunConfig(out=str(tmp_path / "run"), resume=True), "sft", CPU)
    again.progress.step = 3
    again.open()
    again.log.file.close()
    assert [json.loads(x)["step"] for x in open(tmp_path / "run/metrics.jsonl")] == [1, 2, 3]


def test_process_share_and_rows():
    """Property 34: every item has one rank, the loads differ by at most the largest item; rows are divided without
    gaps."""
    sizes = np.random.default_rng(0).integers(1, 50, size=33).tolist()
    for world in (1, 2, 3, 7):
        ranks = [SimpleNamespace(rank=r, world=world) for r in range(world)]
        shares = [Process.share(r, sizes) for r in ranks]
        assert sorted(i for s in shares for i in s) == list(range(33))
        loads = [sum(sizes[i] for i in s) for s in shares]
        assert max(loads) - min(loads) <= max(sizes)
        assert [i for r in ranks for i in range(33)[Process.rows(r, 33)]] == list(range(33))
    first, second = (Process.share(SimpleNamespace(rank=r, world=2), [1, 1, 1, 1, 4]) for r in (0, 1))
    assert (first, second) == ([4], [0, 1, 2, 3])  # the largest first: else 2 and 2 are done when the 4 comes


def test_same_can_tell():
    """The comparison that the resume tests rest on sees one changed bit, key or length."""
    a = {"x": torch.ones(2), "y": [1, {"z": torch.zeros(1)}]}
    assert same(a, {"x": torch.ones(2), "y": [1, {"z": torch.zeros(1)}]})
    assert not same(a, {"x": torch.tensor([1.0, 1 + 2**-23]), "y": a["y"]})
    assert not same(a, {"x": a["x"]}) and not same(a["y"], [1]) and not same(a["y"], [1, {"z": torch.ones(1)}])


# ---------------------------------------------------------------------------------------------------------------------
# The process
# ---------------------------------------------------------------------------------------------------------------------

FAULTS = """
import resource, torch
from process import start_process
start_process("cpu")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(3):
        held = [torch.ones(1 << 20) for _ in range(16)]  # 4 MB each, made and freed
        del held
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*(faults() for _ in range(6)))
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator that is told to keep memory is glibc's")
def test_freed_memory_stays_with_the_process():
    """Property: a large tensor that is made again takes no page from the kernel, which costs a tenth of a step."""
    done = subprocess.run([sys.executable, "-c", FAULTS], cwd=ROOT, capture_output=True, text=True)
    rounds = [int(x) for x in done.stdout.split()]
    assert max(rounds[-4:]) < 1000, (rounds, done.stderr)  # each asks for 48 tensors of 1,024 pages


ADVISED = """
import torch
from process import start_process
start_process("cpu")
tensor = torch.ones(1 << 22)
inside = False
for line in open("/proc/self/smaps"):
    words = line.split()
    if "-" in words[0]:  # a mapping begins: its first and last address
        first, last = (int(x, 16) for x in words[0].split("-"))
        inside = first <= tensor.data_ptr() < last
    elif inside and words[0] == "VmFlags:":
        print("hg" in words)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the allocator that is told to keep memory is glibc's")
@pytest.mark.skipif(not os.path.exists("/sys/kernel/mm/transparent_hugepage"), reason="no huge pages in this kernel")
def test_tensors_are_advised_to_be_on_huge_pages():
    """Property: a tensor's memory may be of huge pages, which makes a step of SFT a sixth shorter."""
    done = subprocess.run([sys.executable, "-c", ADVISED], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout.split() == ["True"], done.stderr
