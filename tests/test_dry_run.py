"""tools/dry_run.py: what it predicts, against real runs on a CPU."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import ROOT, run, tiny_gpt
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pretrain
import rl
import sampler
import sft
from cli import apply_preset
from model import GPT, GPTConfig, config_of
from optimizer import make_optimizer
from packing import Packed
from process import Process
from tools import dry_run

SHAPES = {  # model; rows or questions, answers of each, tokens of a prompt and of an answer (pretraining: of a row)
    "narrow": (GPTConfig(131, 32, 2, 4, 48, 128), (4, 3, 17, 30)),
    "deep, grouped queries": (GPTConfig(512, 64, 5, 4, 192, 256, n_kv_heads=2), (2, 8, 40, 21)),
    "wide, longer": (GPTConfig(1024, 128, 3, 4, 384, 512), (3, 4, 60, 90)),
}
CPU = Process(0, 1, torch.device("cpu"), torch.float32, micro_tokens=10**6)


def job(stage: str, c: GPTConfig, process: Process = CPU, **flags) -> dry_run.Job:
    """A dry run of a stage with these flags, on one rank."""
    return dry_run.Job(stage, dry_run.config_class(stage)(**flags), c, process)


def measured(model: GPT, backward) -> tuple[int, object]:
    """Bytes of the memory that autograd keeps until a real backward pass, the model's own aside; what backward() returns."""
    own = {x.data_ptr() for x in (*model.parameters(), *model.buffers())}
    kept = {}

    def pack(x):
        memory = x.untyped_storage()
        kept[memory.data_ptr()] = memory
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        result = backward()
    return sum(memory.nbytes() for place, memory in kept.items() if place not in own), result


@pytest.mark.parametrize("shape", SHAPES)
def test_activations_of_pretraining(shape):
    """Within 10% of what a real step saves. Equal bytes are expected: 10% leave room for another PyTorch's operations."""
    c, (rows, *_, length) = SHAPES[shape]
    dry = job("pretrain", c, seq_len=length)
    model, batch = GPT(c).init_weights(0), torch.randint(c.vocab_size, (rows, length + 1))
    real, _ = measured(model, lambda: pretrain.loss_and_backward(model, batch, 0, dry.config, CPU, rows * length))
    predicted = dry_run.activations(dry, rows, 1)
    assert predicted == pytest.approx(real, rel=0.1) and real > 4 * rows * length * c.d_model * c.n_layers


@pytest.mark.parametrize("flags", ({}, {"kl": 0.1, "entropy": 0.01}), ids=("plain", "KL, entropy"))
@pytest.mark.parametrize("shape", SHAPES)
def test_activations_of_a_packed_batch(shape, flags):
    """An RL update on real answers, of other words and of lengths that differ: within 10% of the prediction by the mean
    length. FLOPs of training are those that the update counts."""
    c, (questions, n, prompt, answer) = SHAPES[shape]
    dry = job("rl", c, prompts=questions, rollouts=n, prompt_tokens=prompt, answer_tokens=answer, **flags)
    model, rng = GPT(c).init_weights(0), np.random.default_rng(0)
    groups = []
    for _ in range(questions):
        lengths = [answer + (-1) ** j * (j < n - n % 2) for j in range(n)]  # their mean is `answer`
        answers = [rng.integers(c.vocab_size, size=length).tolist() for length in lengths]
        groups.append([
            rl.Answer({}, list(range(prompt)), a, "", np.zeros(len(a), np.float32), True, True, 0.0, False, float(rng.normal()))
            for a in answers
        ])  # fmt: skip
    side = object.__new__(rl.GRPO)
    side.config, side.process, side.max_new_tokens, side.every_group = dry.config, CPU, 2 * answer, False
    side.reference = GPT(c).init_weights(1) if dry.config.kl else None
    real, stats = measured(model, lambda: side.backward(model, groups, on_policy=True))
    assert dry_run.activations(dry, questions, n) == pytest.approx(real, rel=0.1)
    assert dry_run.work(dry, 1)["FLOPs"] == pytest.approx(stats["flops"], rel=0.01)


@pytest.mark.parametrize("minibatch, epochs", [(0, 1), (2, 1), (5, 1), (9, 1), (2, 2), (0, 2)])
def test_flops_of_several_updates(minibatch, epochs):
    """FLOPs of an RL step whose answers are trained on in minibatches are those that its passes count, with those for p_old."""
    c, (_, n, prompt, answer), questions = *SHAPES["narrow"], 5
    sizes = dict(prompts=questions, rollouts=n, prompt_tokens=prompt, answer_tokens=answer)
    dry = job("rl", c, minibatch=minibatch, inner_epochs=epochs, kl=0.1, **sizes)
    model, side = GPT(c).init_weights(0), object.__new__(rl.GRPO)
    vars(side).update(config=dry.config, process=CPU, max_new_tokens=answer, every_group=True, reference=model)
    old = np.zeros(answer, np.float32)
    groups = [
        [rl.Answer({}, [1] * prompt, [2] * answer, "", old, True, True, 0.0, False, 1.0) for _ in range(n)] for _ in range(questions)
    ]  # fmt: skip
    minibatches = side.minibatches(groups)
    flops = side.recompute(model, minibatches) if len(minibatches) > 1 else 0.0
    flops += sum(side.backward(model, minibatch, on_policy=False)["flops"] for minibatch in minibatches)
    assert dry_run.work(dry, 1)["FLOPs"] == pytest.approx(flops, rel=1e-6)


def test_kept_checkpoints_of_a_run_of_unknown_length():
    """--steps 10e without --items: the disk holds what --save_at names, and the end."""
    flags = dict(steps="10e", save_at="100,200", gpus=1)
    said = dry_run.run_lines(job("rl", config_of("micro", 512), **flags))
    assert "one step (--steps 10e: give --items)" in said[0] and ": 3 kept of" in said[-1]


def test_activations_of_sft():
    """As of RL, for rows of different questions."""
    c, (rows, _, prompt, answer) = SHAPES["narrow"]
    dry = job("sft", c, rows=rows, prompt_tokens=prompt, answer_tokens=answer)
    model, side = GPT(c).init_weights(0), object.__new__(sft.SFT)
    side.config, side.process = dry.config, CPU
    batch = [([i] * prompt, [7] * answer) for i in range(rows)]
    real, stats = measured(model, lambda: side.backward(model, batch))
    assert dry_run.activations(dry, rows, 1) == pytest.approx(real, rel=0.1)
    assert dry_run.work(dry, 1)["FLOPs"] == pytest.approx(stats["flops"], rel=0.01)


def test_weights_optimizer_and_rows():
    """Bytes of weights, gradients and AdamW are those of a real step; the rows that decode together are the sampler's."""
    model = tiny_gpt()
    optimizer = make_optimizer(model, 1e-3, 0.1, (0.9, 0.95))
    for p in model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    small = replace(CPU, micro_tokens=64)
    parts = dry_run.memory(job("sft", model.config, small, rows=2, prompt_tokens=5, answer_tokens=5))["SFT update"]
    state = sum(x.nbytes for values in optimizer.state.values() for x in values.values() if x.dim())
    assert (parts["weights"], parts["AdamW"]) == (sum(p.nbytes for p in model.parameters()), state)
    assert parts["gradients"] == parts["weights"]
    dry = job("rl", model.config, prompts=8, rollouts=4, max_new_tokens=16, gpus=1, prompt_tokens=9)
    for gib in (1e-4, 3e-4, 1.0):
        held = dry_run.sampling(dry, gib)
        slots = sampler.Slots(model, [[1] * 9] * 8, 4, 0, 16, gib)
        cache = slots.cache
        assert held.rows == slots.slots > 0
        assert held.kv == sum(x.nbytes for x in (cache.prompt_k, cache.prompt_v, cache.own_k, cache.own_v))


def test_shard_spreads_what_the_optimizer_needs():
    """--shard on 8 GPUs: an eighth of masters, AdamW and snapshot, weights whole in bf16 but for the tables, and no
    copies of the blocks' weights among the activations."""
    c, process = config_of("small", 512), Process(0, 1, torch.device("cpu"), torch.bfloat16, micro_tokens=64)
    flags = dict(rows=16, prompts=16, rollouts=4, max_new_tokens=8, gpus=8, prompt_tokens=5, answer_tokens=5)
    plain, spread = (
        dry_run.memory(job("average", c, process, shard=shard, **flags))["SFT update"] for shard in (False, True)
    )
    tables = 2 * c.vocab_size * c.d_model + c.d_model
    in_blocks = plain["weights"] / 4 - tables
    assert spread["weights"] == 4 * tables + 2 * in_blocks and spread["gradients"] == plain["gradients"]
    assert spread["masters"] == plain["weights"] / 8
    assert all(spread[part] == plain[part] / 8 for part in ("AdamW", "snapshot"))
    matrices = sum(p.numel() for p in GPT(c).blocks.parameters() if p.dim() > 1)
    assert plain["activations"] - spread["activations"] == pytest.approx(2 * matrices, rel=0.01)


def page(stage: str, **flags) -> str:
    """The report for a stage's flags."""
    config = dry_run.config_class(stage)(device="cpu", **flags)
    apply_preset(config, dry_run.presets_of(stage))
    return dry_run.report(stage, config)


def test_says_what_does_not_fit_and_the_flag_that_helps():
    """A flag that it names makes the run fit, by its own figures."""
    flags = dict(scale="small", gpus=1, gb=14.0)
    out = page("pretrain", micro_tokens=65536, **flags)
    flag = re.search(r"update does not fit, .*: --micro_tokens (\d+) fits", out)
    assert flag and "✗" in out, out
    again = page("pretrain", micro_tokens=int(flag[1]), **flags)
    assert "everything fits" in again and "✗" not in again


@pytest.mark.parametrize("stage", ("sft", "rl", "average"))
def test_every_stage_after_pretraining(stage):
    """With the paper's preset, and without a checkpoint; weights that no flag makes fit are called so."""
    short = {} if stage == "sft" else {"max_new_tokens": 64}
    out = page(stage, preset="paper", init_scale="micro", items=100, gb=2.05, micro_tokens=512, **short)
    assert "TFLOP/s" in out and "disk" in out, out
    assert "no flag helps" in page(stage, init_scale="small", gb=2.1, answer_tokens=20)


def test_the_command():
    """A stage's own command line behind the program's name, its preset included; for a GPU that is not there."""
    pytest.importorskip("triton")
    command = "-m tools.dry_run rl.py --preset paper --init_scale micro --prompts 16 --max_new_tokens 64".split()
    code, out, err = run(*command)
    assert code == 0 and "bfloat16" in out and "| reference |" in out, out + err
    code, _, err = run("-m", "tools.dry_run", "eval.py")
    assert code == 2 and "pretrain, sft, rl, average" in err


@pytest.mark.slow
def test_tables_of_the_page():
    """docs/gpu.md has what the program prints now: `python -m tools.dry_run tables` makes them again."""
    pytest.importorskip("triton")
    assert dry_run.tables().strip() in (ROOT / "docs" / "gpu.md").read_text()


@pytest.mark.parametrize("prompt, answers, n", [(120, 15, 64), (300, 40, 16), (30, 200, 8)])
def test_packed_rows_hold_a_prompt_once(prompt, answers, n):
    """On the Triton kernels answers that share their prompts need at most 1.1 times the activations of a row of as many
    tokens, prompts and answers: nothing is copied once per answer."""
    pytest.importorskip("triton")
    c, questions = GPTConfig(256, 64, 1, 2, 192, 4096, n_kv_heads=1), 3
    prompts, owner = [[1] * prompt] * questions, [i for i in range(questions) for _ in range(n)]
    with dry_run.fakes(gpu=True):
        model, saved = dry_run.fake_gpt(c), []
        packed = Packed(prompts, [[1] * answers] * len(owner), owner, CPU.device)
        row = torch.zeros(1, questions * (prompt + n * answers), dtype=torch.long)
        for args in ((packed.tokens, packed.positions, packed.attend), (row, row)):
            saved.append(dry_run.saved_bytes(model, lambda args=args: model(*args)))
    assert 0.8 < saved[0] / saved[1] <= 1.1


class Live(TorchDispatchMode):
    """The most bytes that tensors made under it take at one time."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor):
                storage = x.untyped_storage()
                self.live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.live = {place: held for place, held in self.live.items() if not held[0].expired()}
        self.most = max(self.most, sum(size for _, size in self.live.values()))
        return out


def test_what_recompute_spares():
    """--recompute block lowers the peak of a real step, forward and backward, by what the dry run says, within 10%."""
    c, rows, length = GPTConfig(64, 64, 6, 4, 192, 256), 4, 96
    peaks, predicted = {}, {}
    for recompute in ("none", "attention", "block"):
        dry = job("pretrain", c, seq_len=length, recompute=recompute)
        model, batch = GPT(c).init_weights(0), torch.randint(c.vocab_size, (rows, length + 1))
        for p in model.parameters():
            p.grad = torch.zeros_like(p)
        for block in model.blocks:
            block.recompute = recompute
        with Live() as live:
            pretrain.loss_and_backward(model, batch, 0, dry.config, CPU, rows * length)
        peaks[recompute] = live.most
        predicted[recompute] = dry_run.activations(dry, rows, 1)
    for recompute in ("attention", "block"):
        spared = peaks["none"] - peaks[recompute]
        assert predicted["none"] - predicted[recompute] == pytest.approx(spared, rel=0.1), (peaks, predicted)
    assert peaks["block"] < 0.6 * peaks["none"]
