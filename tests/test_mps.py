"""--device mps without one: what runs on the model's device is neither fp64, which MPS lacks, nor mixed with the CPU."""

import gc

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import average
import eval as evaluation
import pretrain
import rl
import sft
from cli import UserError
from data.loader import Loader
from data.questions import find_questions
from data.tasks import find_tasks
from data.tokenizer import load_tokenizer
from model import GPT, config_of
from optimizer import make_optimizer, optimizer_step
from process import Process, start_process

DEVICE = torch.device("meta")  # in the place of mps: a device of its own, whose tensors have no values
aten = torch.ops.aten


class Device(TorchDispatchMode):
    """Values that leave the device are 1 (zeros in whole tensors), so that what depends on them goes on. AssertionError
    for fp64 on the device, and for an operation on tensors of the device and of the CPU: only single numbers, indices
    and copies may cross."""

    CROSSES = (aten._to_copy.default, aten.copy_.default, aten.index.Tensor, aten.index_put_.default)

    def __init__(self):
        super().__init__()
        self.operations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        there = [x for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)]
        inside = [x for x in there if x.device == DEVICE]
        if inside:
            self.operations += 1
            outside = [x for x in there if x.device != DEVICE and x.dim()]
            assert not outside or func in self.CROSSES or "_fused" in str(func), f"{func} on the device and on the CPU"
        if inside and func is aten._local_scalar_dense.default:
            return 1.0 if args[0].is_floating_point() else True if args[0].dtype == torch.bool else 1
        if inside and func is aten._to_copy.default and kwargs.get("device", DEVICE) != DEVICE:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        if inside and func is aten.nonzero.default:
            return torch.zeros(0, args[0].dim(), dtype=torch.long, device=DEVICE)
        out = func(*args, **kwargs)
        for x in tree_leaves(out):
            if isinstance(x, torch.Tensor) and x.device == DEVICE:
                assert x.dtype != torch.float64, f"{func} makes fp64 on the device"
        return out


def test_no_fp64_on_the_models_device(world):
    """One step of every stage, sampling, judging, likelihoods, text and the optimizer run on a device without fp64, and
    all that meets there was brought there."""
    tokenizer = load_tokenizer("world")
    model, reference = (GPT(config_of("smoke", tokenizer.padded_vocab_size)) for _ in range(2))
    model, reference = model.to(DEVICE), reference.to(DEVICE)
    process = Process(0, 1, DEVICE, torch.float32, micro_tokens=64)
    questions = find_questions(str(world), "train", "train", 4)
    optimizers = [make_optimizer(model, 1e-3, 0.1, (0.9, 0.95)) for _ in range(2)]
    loader = Loader(world, None, 2, 64, seed=0)
    flags = rl.GRPOConfig(prompts=2, rollouts=2, max_new_tokens=4, kl=0.1, entropy=0.1,
                          temperature=0.9)  # fmt: skip
    grpo = rl.GRPO(flags, questions, tokenizer, process, 0, 256, reference)
    supervised = sft.SFT(sft.SFTConfig(rows=2), questions, tokenizer, process, 0, 256)

    def update() -> None:
        optimizer_step(model, optimizers[0], process, 1e-3, 1.0)

    with pytest.MonkeyPatch.context() as m, Device() as device:
        m.setattr(torch, "is_autocast_enabled", lambda *_: False)  # which does not know this device
        rows = pretrain.to_device(loader.batch(0), DEVICE)
        pretrain.loss_and_backward(model, rows, tokenizer.eos, pretrain.Config(doc_mask=True, seq_len=64), process, 128)
        update()
        supervised.backward(model, supervised.draw())
        update()
        groups, _ = grpo.sample(model)
        grpo.recompute(model, [groups])
        for on_policy in (True, False):
            grpo.backward(model, groups, on_policy)
            update()
        snapshot = [p.detach().clone() for p in model.parameters()]
        update()
        delta = average.take_update(model, snapshot)
        supervised.backward(model, supervised.draw())
        update()
        average.average_updates(model, snapshot, delta, 0.5)
        config = evaluation.Config(samples=2, k=(1,), max_new_tokens=4)
        evaluation.evaluate_questions(model, tokenizer, questions, process, config)
        items = find_tasks(str(world), ("all",), 2)
        for name, task in items.items():
            evaluation.evaluate_task(model, tokenizer, task, process, name)
        evaluation.bits_per_byte(model, tokenizer, loader, "math", 200, process)
    assert device.operations > 1000 and all(p.device == DEVICE for p in model.parameters())
    gc.collect()


def test_the_device_can_tell():
    """The mode that the test above rests on sees fp64 on the device and operations across."""
    x = torch.ones(3, device=DEVICE)
    for mistake in (
        lambda: x.double(),
        lambda: x + torch.ones(3),
        lambda: torch.zeros(2, dtype=torch.float64, device=DEVICE),
    ):
        with pytest.raises(AssertionError), Device():
            mistake()
    with Device():
        assert x.sum().item() == 1 and np.array_equal(x.cpu().numpy(), np.zeros(3))


def test_auto_takes_mps(monkeypatch):
    """--device auto is mps where there is one and no CUDA; --device mps without one, or on several ranks, is refused."""
    with pytest.raises(UserError, match="--device mps"):
        start_process("mps")
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert start_process("auto").device.type == "mps" == start_process("mps").device.type
    assert start_process("cpu").device.type == "cpu"
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="one process"):
        start_process("mps")
