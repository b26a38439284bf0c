"""The Triton kernels against float64, on a GPU or in Triton's interpreter: test_triton.py starts this file in a process
of its own, because a process has the kernels in one flavour only.

    TRITON_INTERPRET=1 python -m pytest tests/triton_numerics.py

All memory that the kernels are to fill is poisoned with NaN first. The interpreter takes ten milliseconds for a tile
and has one block for all head sizes: there each layout meets one head size, and nothing is repeated to compare bits,
since its programs run one after the other. A GPU gets every pair, and repeats.
"""

import contextlib
import functools
import math
import os
from unittest import mock

import pytest
import torch
import torch.nn.functional as F
from conftest import tiny_gpt
from hypothesis import given, settings
from hypothesis import strategies as st
from test_kernels import dense_attention, double, generator, layout_of, prompt_layouts, reference, relative, sees
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch._dynamo.utils import counters

import kernels
import pretrain
import rl
import runtime
import sampler
from model import CompiledGPT, GPTConfig, RMSNorm, rotary, rotary_tables
from packing import Packed

if os.environ.get("TRITON_INTERPRET") != "1" and not torch.cuda.is_available():
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU", allow_module_level=True)

from kernels import triton_attention, triton_decode, triton_log_prob
from kernels.blocks import BLOCKS, INTERPRETED, Block, Launcher, architecture

DEVICE = torch.device("cpu" if INTERPRETED else "cuda")
ARCH = architecture(DEVICE)


def pairs(layouts: dict, heads: list[tuple[int, int, int]]) -> list[tuple]:
    """(layout, heads): on a GPU all pairs; in the interpreter each layout once, the heads in turns."""
    everything = [(name, shape) for name in layouts for shape in heads]
    return [(name, heads[i % len(heads)]) for i, name in enumerate(layouts)] if INTERPRETED else everything


@pytest.fixture(scope="module", autouse=True)
def exact():
    """fp32 products in fp32 (Triton's input_precision="ieee"), and bf16 as on a GPU."""
    with repaired_bf16():
        yield


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """fp32 products in fp32, in whole steps too, whose start_process allows tf32."""
    start = runtime.start_process

    def exact_process(*args):
        process = start(*args)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
        return process

    monkeypatch.setattr(runtime, "start_process", exact_process)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False


@contextlib.contextmanager
def repaired_bf16():
    """In the interpreter tl.dot multiplies the bit patterns of bf16, and fp32 -> bf16 cuts off instead of rounding to
    nearest even (triton #11584)."""
    if not INTERPRETED:
        yield
        return
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle

    dot, cast = InterpreterBuilder.create_dot, InterpreterBuilder.cast_impl

    def wide(self, x):
        return cast(self, x, tl.float32) if x.dtype.scalar == tl.bfloat16 else x

    def repaired_dot(self, a, b, *rest):
        return dot(self, wide(self, a), wide(self, b), *rest)

    def repaired_cast(self, x, to):
        if x.dtype.scalar != tl.float32 or to.scalar != tl.bfloat16:
            return cast(self, x, to)
        rounded = torch.from_numpy(np.array(x.data, dtype=np.float32)).bfloat16()
        return TensorHandle(rounded.view(torch.int16).numpy().view(np.uint16), to.scalar)

    with mock.patch.multiple(InterpreterBuilder, create_dot=repaired_dot, cast_impl=repaired_cast):
        yield


@contextlib.contextmanager
def poisoned():
    """torch.empty gives NaN."""
    empty, empty_like = torch.empty, torch.empty_like

    def fill(x):
        return x.fill_(torch.nan) if x.is_floating_point() else x

    with (
        mock.patch.object(torch, "empty", lambda *a, **k: fill(empty(*a, **k))),
        mock.patch.object(torch, "empty_like", lambda *a, **k: fill(empty_like(*a, **k))),
    ):
        yield


def test_flavour():
    """The interpreter where it is meant, the compiler elsewhere."""
    assert type(triton_attention.attention_forward).__name__ == (
        "InterpretedFunction" if INTERPRETED else "JITFunction"
    )


def test_poison_and_bf16_repair_act():
    """The two helpers above do what they say."""
    with poisoned():
        assert torch.empty(2).isnan().all() and torch.empty_like(torch.ones(2)).isnan().all()
    x = torch.tensor([1.0 + 2**-8, 1 + 3 * 2**-8, -2.7])  # two ties to even, up and down, and no tie
    assert x.bfloat16().tolist() == [1.0, 1 + 2**-6, -2.703125]


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def documents(*lengths: int) -> list[int]:
    """The document number of each token of a row."""
    return [number for number, length in enumerate(lengths) for _ in range(length)]


def run_attention(inputs: list[Tensor], layout: tuple, up: Tensor) -> list[Tensor]:
    """Output and gradients. layout: doc_start and prompt, or neither."""
    with poisoned():
        out = triton_attention.attention(*inputs, *layout)
        return [out, *torch.autograd.grad(out, inputs, up)]


def check_attention(rows, heads, kv_heads, D, dtype=torch.float32, limit=5e-6, seed=0, masked=True, twice=False):
    """rows: document of each token, of each row (test_kernels.sees). masked=False: the kernels are not told. twice: on
    a GPU a second run gives the same bits."""
    B, T, g = len(rows), len(rows[0]), generator(seed)
    shapes = [(B, T, heads, D), (B, T, kv_heads, D), (B, T, kv_heads, D), (B, T, heads, D)]
    *inputs, up = (torch.randn(shape, generator=g).to(DEVICE, dtype) for shape in shapes)
    inputs = [x.requires_grad_() for x in inputs]
    layout = ()
    if masked:
        layout = (
            layout_of(rows)
            if isinstance(rows[0][0], tuple)
            else [torch.tensor([[row.index(d) for d in row] for row in rows])]
        )
        layout = [x.to(DEVICE) for x in layout]
    got = run_attention(inputs, layout, up)
    inputs64 = double(*(x.cpu() for x in inputs))
    want = dense_attention(*inputs64, rows)
    want = [want, *torch.autograd.grad(want, inputs64, up.cpu().double())]
    for name, a, b in zip(("out", "dq", "dk", "dv"), got, want, strict=True):
        assert a.dtype == dtype
        error = (a.cpu().double() - b).norm()
        # a token that sees itself alone has dq = dk = 0 but for rounding, of the size of the other gradients
        assert error <= limit * max(b.norm(), 0.1 * up.cpu().double().norm()), (name, (error / b.norm()).item())
    if twice and not INTERPRETED:
        assert all(map(torch.equal, got, run_attention(inputs, layout, up)))


LAYOUTS = {
    "one": documents(200),
    "ten of one token": documents(*[1] * 10, 37, 60, 93),
    "on the tile's edge": documents(64, 64, 72),
    "off the tile's edge": documents(63, 66, 71),
}


@pytest.mark.parametrize("layout, heads", pairs(LAYOUTS, [(2, 1, 128), (4, 2, 32), (2, 1, 64), (2, 2, 96)]))
def test_attention_layouts(layout, heads):
    """Every layout, every head size, grouped and not: output, dq, dk, dv; two runs give the same bits."""
    check_attention([LAYOUTS[layout]], *heads, twice=layout == "ten of one token")


@pytest.mark.parametrize("T", [1, 129])
def test_attention_lengths(T):
    """One token; one token more than the tiles hold; no doc_start, and two rows of different documents."""
    check_attention([documents(T)] * 2, 2, 1, 64, masked=False, twice=True)
    if T > 1:
        check_attention([documents(T), documents(50, T - 50)], 2, 1, 32)


@pytest.mark.parametrize("dtype, limit", [(torch.bfloat16, 5e-3), (torch.float16, 1e-3)])
def test_attention_in_16_bits(dtype, limit):
    """The inputs are what they are in 16 bits; the error is that of p, ds and the outputs rounded to them."""
    check_attention([LAYOUTS["off the tile's edge"]], 2, 1, 64, dtype, limit, twice=True)


@pytest.mark.parametrize("sides", [(16, 64), (64, 16), (32, 32)])
def test_attention_tiles(sides):
    """Tiles of any sides give the same result: wide, high and square."""
    block = dict.fromkeys(("forward", "dq", "dkv"), Block(*sides))
    with mock.patch.dict(BLOCKS, {(ARCH, 32): block}):
        check_attention([documents(20, 1, 35, 25)], 2, 1, 32)
        check_attention([documents(81)], 2, 1, 32, masked=False)


@settings(max_examples=200, deadline=None)
@given(prompt_layouts(9, 40))
def test_a_key_is_seen_up_to_its_end(rows):
    """doc_ends, all that dkv knows of a layout: query i sees key j if and only if j ≤ i < end[j]."""
    end = triton_attention.doc_ends(*layout_of(rows))
    for row, ends in zip(rows, end.tolist(), strict=True):
        for i, query in enumerate(row):
            assert [j <= i < ends[j] for j in range(len(row))] == [
                j <= i and sees(query, key) for j, key in enumerate(row)
            ]


def pieces(*groups: list[int]) -> list[tuple[int, int]]:
    """A row of prompts with their answers, from the lengths of each group: [prompt, answer, answer, ...]."""
    return [(g, n) for g, lengths in enumerate(groups) for n, length in enumerate(lengths) for _ in range(length)]


PROMPTS = {
    "long answers": pieces([40, 70, 90]),
    "short answers": pieces([70, *[3] * 20], [1, 30, 40]),
    "on the tile's edge": pieces([64, 64, 32], [32, 8]),
    "off the tile's edge": pieces([63, 66, 2], [33, 30, 6]),
    "without a prompt": pieces([0, 90], [0, 20, 9], [81]),
}


@pytest.mark.parametrize("layout, heads", pairs(PROMPTS, [(2, 2, 128), (4, 2, 32)]))
def test_attention_shared_prompts(layout, heads):
    """Prompts that documents share: output, dq, dk, dv; two runs give the same bits."""
    check_attention([PROMPTS[layout]], *heads, twice=True)


@st.composite
def document_layouts(draw) -> list[list[int]]:
    """Rows of 20 to 50 tokens cut into documents: often short ones, often at multiples of 16."""
    T = draw(st.integers(20, 50))
    cut = st.one_of(st.integers(0, T), st.integers(0, T // 16).map(lambda i: 16 * i))
    rows = []
    for cuts in draw(st.lists(st.sets(cut, min_size=1, max_size=6), min_size=1, max_size=2)):
        edges = sorted(cuts | {0, T})
        rows.append(documents(*(b - a for a, b in zip(edges, edges[1:], strict=False))))
    return rows


@pytest.mark.parametrize("layouts", [document_layouts(), prompt_layouts(20, 50)], ids=["documents", "shared prompts"])
@settings(max_examples=7 if INTERPRETED else 25, deadline=None)
@given(
    st.data(), st.sampled_from([(2, 1), (2, 2)]), st.sampled_from([(16, 16), (16, 32), (32, 16)]), st.integers(0, 99)
)
def test_attention_random_layouts(layouts, data, heads, sides, seed):
    """Any layout against the dense mask, with tiles so small that documents begin and end everywhere in them."""
    block = dict.fromkeys(("forward", "dq", "dkv"), Block(*sides))
    with mock.patch.dict(BLOCKS, {(ARCH, 32): block}):
        check_attention(data.draw(layouts), *heads, 32, seed=seed)


def test_attention_large_scores_and_views():
    """Scores of ± 1e4 stay finite; strided inputs are as good as others."""
    q, k, v = (torch.randn(1, 2, 70, 32, generator=generator(i)).to(DEVICE).transpose(1, 2) for i in range(3))
    got = triton_attention.attention(q * 1e3, k * 10, v)
    want = dense_attention(*(x.cpu().double() for x in (q * 1e3, k * 10, v)), [documents(70)])
    assert relative(got.cpu(), want) < 1e-3  # fp32 scores of 1e4 are exact to 1e-3


# ---------------------------------------------------------------------------------------------------------------------
# Linear log-prob
# ---------------------------------------------------------------------------------------------------------------------


def log_prob_inputs(N: int, V: int, C: int, scale: float = 1.0) -> list[Tensor]:
    """hidden, weight, targets with the first and the last word; logits of about ± 3 · scale."""
    g = generator(N + V)
    hidden, weight = torch.randn(N, C, generator=g), torch.randn(V, C, generator=g) * (scale / C**0.5)
    targets = torch.randint(V, (N,), generator=g)
    targets[0], targets[-1] = 0, V - 1
    return [hidden.to(DEVICE).requires_grad_(), weight.to(DEVICE).requires_grad_(), targets.to(DEVICE)]


def run_log_prob(hidden, weight, targets, temperature, up, which=(0, 1, 2)) -> list[Tensor]:
    """The three outputs, and the gradients of the chosen ones, weighted by `up`."""
    with poisoned():
        out = triton_log_prob.linear_log_prob(hidden, weight, targets, temperature)
        loss = sum((out[i] * up[i]).sum() for i in which)
        return [*out, *torch.autograd.grad(loss, (hidden, weight))]


@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("N, V, C", [(1, 1003, 64), (130, 1003, 64), (130, 100, 72), (40, 2048, 128)])
def test_12_log_prob(N, V, C, temperature):
    """Property 12 for the kernels: outputs and gradients, each output alone and all together; a vocabulary of several
    chunks with a rest, one smaller than a tile, a width that no tile divides; two runs give the same bits."""
    hidden, weight, targets = log_prob_inputs(N, V, C)
    up = torch.randn(3, N, generator=generator(1)).to(DEVICE)
    inputs64 = double(hidden.cpu(), weight.cpu())
    want = reference(*inputs64, targets.cpu(), temperature)
    with mock.patch.object(triton_log_prob, "VOCAB_CHUNK", 512):
        for which in ([0], [1], [2], [0, 1, 2]) if N == 130 else ([0, 1, 2],):
            got = run_log_prob(hidden, weight, targets, temperature, up, which)
            loss = sum((want[i] * up[i].cpu()).sum() for i in which)
            grads = torch.autograd.grad(loss, inputs64, retain_graph=True)
            for a, b in zip(got[:3], want, strict=True):
                assert a.dtype == torch.float32
                torch.testing.assert_close(a.cpu().double(), b, atol=2e-5, rtol=0)
            for a, b in zip(got[3:], grads, strict=True):
                assert relative(a.cpu(), b) < 5e-6, which
        assert INTERPRETED or all(map(torch.equal, got, run_log_prob(hidden, weight, targets, temperature, up)))


def test_12_log_prob_in_bf16_with_fp32_weights():
    """As under autocast: hidden states in bf16, the head in fp32, which is rounded chunk by chunk."""
    hidden, weight, targets = log_prob_inputs(130, 1003, 64)
    hidden = hidden.detach().bfloat16().requires_grad_()
    up = torch.randn(3, 130, generator=generator(1)).to(DEVICE)
    inputs64 = double(hidden.cpu(), weight.detach().cpu().bfloat16())
    want = reference(*inputs64, targets.cpu(), 0.6)
    with mock.patch.object(triton_log_prob, "VOCAB_CHUNK", 512):
        got = run_log_prob(hidden, weight, targets, 0.6, up)
    assert got[3].dtype == torch.bfloat16 and got[4].dtype == torch.float32
    grads = torch.autograd.grad(sum((a * b.cpu()).sum() for a, b in zip(want, up, strict=True)), inputs64)
    for a, b in zip(got, [*want, *grads], strict=True):
        assert relative(a.cpu().double(), b) < 5e-3


def test_12_log_prob_of_masked_rows():
    """Rows that do not enter the loss have a gradient of exactly 0; with none left everything is 0."""
    hidden, weight, targets = log_prob_inputs(60, 300, 64)
    mask = (torch.arange(60) % 3 == 0).to(DEVICE)
    up = mask.float().expand(3, -1)
    *_, grad_hidden, grad_weight = run_log_prob(hidden, weight, targets, 0.6, up)
    assert not grad_hidden[~mask].any() and grad_hidden[mask].any(-1).all()
    kept = [hidden.detach()[mask].requires_grad_(), weight, targets[mask]]
    *_, alone_hidden, alone_weight = run_log_prob(*kept, 0.6, up[:, mask])
    torch.testing.assert_close(grad_hidden[mask], alone_hidden, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grad_weight, alone_weight, atol=1e-6, rtol=1e-5)
    assert not any(g.any() for g in run_log_prob(hidden, weight, targets, 0.6, 0 * up)[3:])


def test_log_prob_of_a_target_outside_the_vocabulary():
    """NaN in that row, so that the step is skipped and counted; nothing in the others."""
    hidden, weight, targets = log_prob_inputs(20, 300, 64)
    broken = targets.clone()
    broken[3], broken[7] = -100, 300
    good, bad = (kernels._LinearLogProb.apply(hidden, weight, targets, 1.0, False)[0],
                 triton_log_prob.linear_log_prob(hidden, weight, broken, 1.0)[0])  # fmt: skip
    assert bad.isnan().nonzero().flatten().tolist() == [3, 7]
    torch.testing.assert_close(bad[~bad.isnan()], good[~bad.isnan()], atol=2e-5, rtol=0)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_13_log_prob_of_huge_logits(temperature):
    """Property 13 for the kernels: logits of ± 1e4, ties at the top."""
    hidden = torch.tensor([[1e4], [1e4], [-1e4], [0.0]]).repeat(1, 16).div(16).to(DEVICE).requires_grad_()
    weight = torch.tensor([[1.0], [-1.0], [0.0], [1.0]]).repeat(1, 16).to(DEVICE).requires_grad_()
    targets = torch.arange(4, device=DEVICE)
    up = torch.ones(3, 4, device=DEVICE)
    got = run_log_prob(hidden, weight, targets, temperature, up)
    inputs64 = double(hidden.cpu(), weight.cpu())
    want = reference(*inputs64, targets.cpu(), temperature)
    grads = torch.autograd.grad(sum(x.sum() for x in want), inputs64)
    for a, b in zip(got[:3], want, strict=True):
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-6, atol=2e-6)
    for a, b in zip(got[3:], grads, strict=True):  # p = e^(z - L), and L = 1e4 has an error of 2e-4 (in 1 / 0.6 times)
        torch.testing.assert_close(a.cpu().double(), b, rtol=1e-3, atol=1e-3 * b.abs().max().item())


# ---------------------------------------------------------------------------------------------------------------------
# Operators, for torch.compile
# ---------------------------------------------------------------------------------------------------------------------


def test_attention_operators():
    """PyTorch's own checks: shapes and types without a launch are those of a launch, no input is changed or returned,
    and a traced forward and backward of changing shapes have the gradients of the eager one."""
    q, k, v = (torch.randn(1, 9, heads, 32, generator=generator(heads)).to(DEVICE) for heads in (2, 1, 1))
    v = v.transpose(1, 2).contiguous().transpose(1, 2)  # strides of its own
    inputs = [x.requires_grad_() for x in (q, k, v)]
    rows = [[(0, 0)] * 3 + [(0, 1)] * 2 + [(0, 2)] + [(1, 0)] * 3]
    doc_start, prompt = (x.to(DEVICE, torch.int32) for x in layout_of(rows))
    documents = (doc_start, triton_attention.doc_ends(doc_start, None), None, None)
    prompts = (doc_start, triton_attention.doc_ends(doc_start, prompt), *prompt)
    for layout in ((None,) * 4, documents, prompts):
        torch.library.opcheck(triton_attention.forward_op, (*inputs, *layout))
        detached = [x.detach() for x in inputs]
        saved = (*detached, *layout, *triton_attention.forward_op(*detached, *layout))
        torch.library.opcheck(triton_attention.backward_op, (torch.randn_like(q), *saved))


def test_log_prob_operators():
    """The same of the log-prob, whose gradient takes the outputs that are used."""
    inputs = log_prob_inputs(7, 40, 16)
    torch.library.opcheck(triton_log_prob.forward_op, (*inputs, 0.6))
    detached = [x.detach() for x in inputs]
    outs = triton_log_prob.forward_op(*detached, 0.6)
    for grads in ((outs[0], None, None), outs):
        torch.library.opcheck(triton_log_prob.backward_op, (*grads, *detached, *outs[1:], 0.6))


def test_compiled_blocks_take_the_operators():
    """Ragged packed batches through compiled blocks, whose attention is one operator of their one graph: no breaks, no
    recompilation, and the gradients of blocks that are not compiled. (The graphs run as they are.)"""
    torch._dynamo.reset()
    counters.clear()
    graphs, model = CompileCounterWithBackend("aot_eager"), tiny_gpt(std=0.3).to(DEVICE)
    with mock.patch.object(torch, "compile", functools.partial(torch.compile, backend=graphs)):
        fast = CompiledGPT(model, dynamic=True)
    kernels.use("triton", DEVICE)
    for prompts, answers in (
        ([[5, 6, 7, 8], [9, 10]], [[11, 12, 13], [14], [15, 16], [17, 18, 19, 20]]),
        ([[3, 4, 5]], [[11, 12, 13, 14, 15]]),
    ):
        batch = Packed(prompts, answers, sorted(i % len(prompts) for i in range(len(answers))), DEVICE)
        results = []
        for net in (model, fast):
            out = batch.log_probs(net, 0.9).log_prob
            results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
        for a, b in zip(*results, strict=True):
            assert relative(b, a) < 2e-5
    kernels.use("auto", DEVICE)
    assert counters["stats"]["unique_graphs"] == 1 and not counters["graph_break"]
    targets = [str(node.target) for node in graphs.graphs[-1].graph.nodes]
    assert sum("excursion.attention" in target for target in targets) == 1
    torch._dynamo.reset()


# ---------------------------------------------------------------------------------------------------------------------
# Whole steps
# ---------------------------------------------------------------------------------------------------------------------


def gradients(path) -> list[Tensor]:
    """AdamW's first moments after one step: a tenth of the clipped gradient of each parameter."""
    state = runtime.load_checkpoint(path / "last.pt")["train"]["optimizer"]["state"]
    return [s["exp_avg"] for s in state.values()]


ALL_KERNELS = {
    "attention_forward", "attention_dq", "attention_dkv", "log_prob_forward", "log_prob_backward",
    "decode_attention", "rms_norm_rows", "rotary_rows", "swiglu_rows",
}  # fmt: skip


@contextlib.contextmanager
def recorded_launches():
    """The names of the kernels that are launched."""
    launch, names = Launcher.__call__, []

    def recorded(self, kernel, *args, **constants):
        names.append(kernel.__name__)
        launch(self, kernel, *args, **constants)

    with mock.patch.object(Launcher, "__call__", recorded):
        yield names


def assert_same_step(stage, tmp_path, **flags):
    """stage.main with KERNELS=torch and KERNELS=triton: the same gradient of every parameter."""
    for choice in ("torch", "triton"):
        with recorded_launches() as names, mock.patch.dict(os.environ, KERNELS=choice):
            stage.main(stage.Config(out=str(tmp_path / choice), dtype="fp32", device=DEVICE.type, **flags))
        assert not torch.backends.cuda.matmul.allow_tf32
        assert set(names) == (ALL_KERNELS if choice == "triton" else set())
    kernels.use("auto", DEVICE)
    pairs = list(zip(gradients(tmp_path / "torch"), gradients(tmp_path / "triton"), strict=True))
    assert len(pairs) > 20 and all(relative(b, a) < 1e-5 for a, b in pairs)
    return tmp_path / "torch" / "last.pt"


def test_whole_steps(world, tmp_path, monkeypatch):
    """A pretraining step with documents kept apart, and from its checkpoint a GRPO step with KL and entropy, whole
    commands with KERNELS=triton: the gradients of the plain path. Rewards vary, since a new model gets none right."""
    monkeypatch.setattr(sampler, "PAGED", {DEVICE.type})  # keys and values lie in pages in the interpreter, too
    monkeypatch.setattr(pretrain, "default_new_tokens", lambda tokenizer: 3)  # of the answer that is shown
    flags = dict(scale="smoke", data=str(world), batch=2, seq_len=40, steps=1, val_tokens=40, doc_mask=True)
    base = assert_same_step(pretrain, tmp_path / "pretrain", **flags)
    monkeypatch.setattr(rl, "reward_of", lambda text, *_: (float(len(text) % 3), False))
    flags = dict(
        init=str(base), data=str(world), prompts=2, rollouts=2, max_new_tokens=4, limit=6, steps=1, eval_every=0
    )
    assert_same_step(rl, tmp_path / "rl", **flags, kl=0.1, entropy=0.01, temperature=0.9)


def test_packed_rows_share_their_prompts():
    """Training on answers that share their prompts (of one token, out of order, without answers): the same log-probs
    and gradients as by the plain path, twice the same bits; a prompt stands in the row once, but for its last token,
    and no hidden state predicts two tokens."""
    model = tiny_gpt(std=0.3).to(DEVICE)
    prompts, answers = [[5, 6, 7, 8], [9, 10], [3] * 20, [4]], [[11, 12, 13], [14], [15, 16], [17, 18, 19, 20], [21, 2]]
    results = []
    for choice in ("torch", "triton", *(() if INTERPRETED else ("triton",))):
        kernels.use(choice, DEVICE)
        packed = Packed(prompts, answers, [1, 0, 1, 0, 3], DEVICE)
        out = packed.log_probs(model, 0.9).log_prob
        results.append([out, *torch.autograd.grad(out.square().sum(), list(model.parameters()))])
    kernels.use("auto", DEVICE)
    for plain, first, *second in zip(*results, strict=True):
        assert relative(first, plain) < 2e-5 and all(torch.equal(first, again) for again in second)
    assert packed.tokens.shape[1] == sum(len(p) - 1 for p in prompts) + sum(map(len, answers))
    assert len(packed.predictor.unique()) == len(packed.targets)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding
# ---------------------------------------------------------------------------------------------------------------------


def check_decode(prompts, own, H, H_kv, D, page=16, dtype=torch.float32, limit=5e-6, seed=0):
    """Row i continues prompt i % len(prompts) with own[i] tokens before the new one. Pages lie anywhere in the pool,
    and what no row has stored is NaN; q and k come in fp32, as under autocast."""
    g, B = generator(seed), len(own)
    k, v = ([torch.randn(n, H_kv, D, generator=g).to(dtype) for n in [*prompts, *(n + 1 for n in own)]] for _ in "kv")
    q = torch.randn(B, H, D, generator=g).to(dtype)
    needed = [-(-n // page) for n in [*prompts, *(n + 1 for n in own)]]
    free = torch.randperm(sum(needed) + 3, generator=g).split([*needed, 3])
    pool_k, pool_v = torch.full((2, sum(needed) + 3, page, H_kv, D), math.nan, dtype=dtype)
    for i, ids in enumerate(free[:-1]):
        for pool, x in ((pool_k, k[i]), (pool_v, v[i])):
            stored = x if i < len(prompts) else x[:-1]  # the last one is the new token
            stored = F.pad(stored, (0, 0, 0, 0, 0, len(ids) * page - len(stored)), value=math.nan)
            pool[ids] = stored.view(-1, page, H_kv, D)
    owner = [i % len(prompts) for i in range(B)]
    rows = [torch.cat([free[owner[i]], free[len(prompts) + i]]) for i in range(B)]
    pages = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True).int()
    lengths = torch.tensor([prompts[i] for i in owner]).int(), torch.tensor(own).int()
    new_k, new_v = (torch.stack([x[len(prompts) + i][-1] for i in range(B)]) for x in (k, v))
    args = [q.float(), new_k.float(), new_v, pool_k, pool_v, pages, *lengths]
    for choice in ("torch", "triton"):
        pools = [x.clone().to(DEVICE) for x in (pool_k, pool_v)]
        kernels.use(choice, DEVICE)
        with poisoned():
            got = kernels.decode_attention(*(x.to(DEVICE) for x in args[:3]), *pools, *(x.to(DEVICE) for x in args[5:]))
        kernels.use("auto", DEVICE)
        assert got.dtype == dtype
        for i, ids in enumerate(rows):
            keys, values = (torch.cat([x[owner[i]], x[len(prompts) + i]]).double() for x in (k, v))
            keys, values = (x.repeat_interleave(H // H_kv, 1) for x in (keys, values))  # (S, H, D)
            weight = torch.einsum("hd,shd->hs", q[i].double(), keys).div(D**0.5).softmax(-1)
            want = torch.einsum("hs,shd->hd", weight, values)
            assert relative(got[i].cpu().double(), want) < limit, (choice, i)
            place = -(-prompts[owner[i]] // page) * page + own[i]
            for pool, new in zip(pools, (new_k, new_v), strict=True):
                assert torch.equal(pool[ids[place // page], place % page].cpu(), new[i])


@pytest.mark.parametrize("H, H_kv, D", [(2, 2, 32), (4, 2, 64), (4, 1, 96), (6, 1, 16), (2, 2, 128)])
def test_decode_attention(H, H_kv, D):
    """Prompts and own tokens that end on, before and behind a page's edge; a first own token; shared prompts."""
    check_decode([17, 16, 5, 33], [0, 40, 16, 15, 0, 7, 31, 1], H, H_kv, D)


@pytest.mark.parametrize("page", [1, 8, 64])
def test_decode_attention_pages(page):
    """Pages smaller and larger than a tile of keys."""
    check_decode([9, 1], [0, 12, 63, 64], 2, 1, 32, page)


def test_decode_attention_in_bf16():
    check_decode([17, 16, 5], [0, 40, 16, 15], 4, 2, 64, dtype=torch.bfloat16, limit=5e-3)


@torch.no_grad()
def test_decode_rows():
    """Norm, rotation and SwiGLU of one token per row against the model's in float64: widths that are no power of two,
    bf16, gains in fp32; one launch each."""
    g = generator(0)
    x, y = torch.randn(2, 5, 1, 6, 20, generator=g)
    norm = RMSNorm(120, 1e-6).double()
    norm.weight.copy_(torch.randn(120, generator=g))
    rounded = RMSNorm(120, 1e-6).double()
    rounded.weight.copy_(norm.weight.bfloat16())
    cos, sin = rotary_tables(GPTConfig(1, d_model=120, n_layers=1, n_heads=6, d_ff=1, context=9))
    cos, sin = (t[[8, 0, 3, 1, 2], None, None] for t in (cos, sin))  # (5, 1, 1, 20)
    gain = norm.weight.float().to(DEVICE)
    for dtype, limit in ((torch.float32, 1e-6), (torch.bfloat16, 5e-3)):
        a, b = x.to(dtype), y.to(dtype)
        for fused, plain, *args in (
            (lambda t: triton_decode.rms_norm(t, gain, 1e-6), norm, a.flatten(2)),
            # with --shard the gain is in bf16, too
            (lambda t: triton_decode.rms_norm(t, gain.bfloat16(), 1e-6), rounded, a.flatten(2)),
            (triton_decode.rotary, rotary, a, cos, sin),
            (triton_decode.swiglu, lambda gate, up: F.silu(gate) * up, a.flatten(2), b.flatten(2)),
        ):
            want = plain(*(t.double() for t in args))
            with recorded_launches() as names, poisoned():
                got = fused(*(t.to(DEVICE) for t in args))
            assert len(names) == 1 and relative(got.cpu().double(), want) < limit
            assert got.dtype == (torch.float32 if plain in (norm, rounded) else dtype)  # as under autocast
    kernels.use("auto", DEVICE)


@pytest.mark.parametrize("n_kv_heads", [4, 2])
def test_sampling_on_pages_gives_the_plain_rows(monkeypatch, n_kv_heads):
    """sample() with decode_step and its kernels, against sample() with the model's plain forward: the same tokens, and
    log-probs but for rounding."""
    model = tiny_gpt(std=0.3, n_kv_heads=n_kv_heads).to(DEVICE)
    flags = dict(n=2, stop=0, max_new_tokens=5, seed=1)
    kernels.use("torch", DEVICE)
    want = sampler.sample(model, [[5, 6, 7, 8], [9], [3, 4]], **flags)
    kernels.use("triton", DEVICE)
    monkeypatch.setattr(sampler, "PAGED", {torch.device(DEVICE).type})
    with recorded_launches() as names:
        got = sampler.sample(model, [[5, 6, 7, 8], [9], [3, 4]], **flags)
    kernels.use("auto", DEVICE)
    assert {"decode_attention", "rms_norm_rows", "rotary_rows", "swiglu_rows"} <= set(names)
    for a, b in zip(sum(got, []), sum(want, []), strict=True):
        assert a.tokens == b.tokens
        torch.testing.assert_close(torch.tensor(a.log_probs), torch.tensor(b.log_probs), atol=1e-4, rtol=0)
