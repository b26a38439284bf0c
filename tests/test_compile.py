"""Compiled training passes: how many graphs they take, and that they change neither gradients nor checkpoints. Graphs
are counted by a backend that runs them as they are; what the real one makes of them is its own affair."""

import functools
import threading
from types import SimpleNamespace

import pytest
import torch
from conftest import tiny_gpt
from test_kernels import generator, relative
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import kernels
import runtime
import sharding
from cli import UserError
from model import GPT, CompiledGPT, config_of
from packing import Packed
from process import Process, start_process
from sampler import sample


@pytest.fixture
def graphs(monkeypatch) -> CompileCounterWithBackend:
    """What torch.compile hands to its backend from here on. (`frame_count` graphs, but with dynamic shapes some twice.)"""
    torch._dynamo.reset()
    counters.clear()
    counter = CompileCounterWithBackend("aot_eager")
    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=counter))
    yield counter
    torch._dynamo.reset()


def ragged(number: int) -> Packed:
    """A batch of 2 to 5 prompts, 3 to 9 answers, of lengths that differ."""
    g = generator(number)

    def numbers(n: int, low: int, high: int) -> list[int]:
        return torch.randint(low, high, (n,), generator=g).tolist()

    (p,), (r,) = numbers(1, 2, 6), numbers(1, 3, 10)
    prompts, answers = ([numbers(n, 1, 128) for n in numbers(k, low, 20)] for k, low in ((p, 2), (r, 3)))
    return Packed(prompts, answers, sorted(numbers(r, 0, p)), torch.device("cpu"))


def gradients(fast, batch: Packed) -> list[torch.Tensor]:
    loss = batch.log_probs(fast, 0.9).log_prob.square().sum()
    found = []
    # As on a GPU, backward has a thread of its own
    thread = threading.Thread(target=lambda: found.extend(torch.autograd.grad(loss, list(fast.parameters()))))
    thread.start()
    thread.join()
    return found


@pytest.fixture
def one_rank(tmp_path):
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    yield Process(0, 1, torch.device("cpu"), torch.float32)
    torch.distributed.destroy_process_group()


@pytest.mark.parametrize("how, recompute", [
    ("whole model", "none"), ("block by block", "none"), ("--shard", "block"),
    pytest.param("whole model", "block", marks=pytest.mark.slow), pytest.param("--shard", "attention", marks=pytest.mark.slow),
])  # fmt: skip
def test_ragged_batches_take_few_graphs(graphs, one_rank, how, recompute):
    """A model of 2 layers over 8 ragged batches: no graph breaks, at most two recompilations (there are 16 chances),
    and the gradients of the model as it is. The same with --shard, whose hooks stand around the blocks, and with
    --recompute."""
    model = GPT(config_of("smoke", 128, n_layers=2)).init_weights(0, std=0.05)
    for block in model.blocks:
        block.recompute = recompute
    if how == "--shard":
        sharding.shard(model, one_rank)
        sharding.gather_weights(model)
    fast = torch.compile(model, dynamic=True) if how == "whole model" else CompiledGPT(model, dynamic=True)
    for number in range(8):
        batch = ragged(number)
        pairs = zip(gradients(fast, batch), gradients(model, batch), strict=True)
        assert all(relative(a, b) < 1e-5 for a, b in pairs)
    assert not counters["graph_break"], counters["graph_break"]
    assert 1 <= counters["stats"]["unique_graphs"] <= 3


def test_pretraining_takes_one_graph_a_shape(graphs):
    """All blocks have one graph, which no number of a layer is part of; a last, smaller micro-batch has another.
    Sampling and evaluation compile nothing."""
    model = GPT(config_of("smoke", 128, n_layers=3)).init_weights(0)
    fast = CompiledGPT(model, dynamic=False)
    for rows in (4, 4, 1, 4, 1):
        tokens = torch.randint(128, (rows, 16), generator=generator(rows))
        hidden = fast(tokens, doc_start=torch.zeros_like(tokens)).flatten(0, 1)
        kernels.linear_log_prob(hidden, fast.head.weight, tokens.flatten()).log_prob.sum().backward()
    assert graphs.frame_count == 2 and not counters["graph_break"]
    sample(model, [[5, 6], [7]], 2, stop=0, max_new_tokens=3)
    with torch.no_grad():
        model(tokens)
    assert graphs.frame_count == 2


def test_checkpoints_have_the_names_of_the_plain_model(graphs):
    model = tiny_gpt()
    names = list(model.state_dict())
    fast = CompiledGPT(model, dynamic=False)
    fast(torch.zeros(2, 8, dtype=torch.long)).sum().backward()
    assert list(model.state_dict()) == list(fast.state_dict()) == names
    assert all(p.grad is not None for name, p in model.named_parameters() if name != "head.weight")


@pytest.mark.parametrize("choice, steps, dynamic, device, wanted", [
    ("off", 5000, False, "cpu", False), ("on", 1, True, "cpu", True), ("auto", 999, False, "cpu", False),
    ("auto", 1000, False, "cpu", True), ("auto", 1000, True, "cpu", False), ("auto", 1000, True, "cuda", True),
    ("auto", 999, True, "cuda", False),
])  # fmt: skip
def test_when_training_is_compiled(monkeypatch, choice, steps, dynamic, device, wanted):
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    model, process = tiny_gpt(), start_process("cpu")
    process.device = SimpleNamespace(type=device)

    def trial(fast):
        return fast(torch.zeros(1, 2, dtype=torch.long))

    called = []
    fast = runtime.compile_training(model, process, choice, steps, dynamic, lambda m: called.append(m) or trial(m))
    assert bool(called) == wanted and isinstance(fast, CompiledGPT) == (wanted and device == "cuda")
    assert not any(p.grad is not None for p in model.parameters())


def test_what_does_not_compile(monkeypatch, capsys):
    """Without a compiler: --compile auto says so and goes on, --compile on is refused; both in one line."""
    model, process = tiny_gpt(), start_process("cpu")

    def broken(*_, **__):
        raise RuntimeError("no C++ compiler\nhere")

    monkeypatch.setattr(torch, "compile", broken)
    assert runtime.compile_training(model, process, "auto", 5000, False, lambda m: m) is model
    assert "not compiled, which is slower: no C++ compiler\n" in capsys.readouterr().err
    with pytest.raises(UserError, match="^--compile on: no C[^\n]*$"):
        runtime.compile_training(model, process, "on", 1, False, lambda m: m)
