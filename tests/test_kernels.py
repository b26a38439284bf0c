"""Every operation of kernels/, and the norm and the rotation of model.py, against the plain formula in float64."""

import sys
from types import SimpleNamespace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend

import kernels
from kernels import CHUNK_ROWS
from model import GPT, RMSNorm, config_of, rotary

WIDTH, VOCAB = 16, 131  # a prime: no tile or block fits it


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def double(*tensors: Tensor) -> list[Tensor]:
    """Leaves of the same values in float64."""
    return [x.detach().double().requires_grad_() for x in tensors]


def relative(got: Tensor, want: Tensor) -> float:
    return ((got - want).norm() / want.norm()).item()


# ---------------------------------------------------------------------------------------------------------------------
# Linear log-prob
# ---------------------------------------------------------------------------------------------------------------------


def reference(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> list[Tensor]:
    """Log-prob, entropy and logsumexp by their definitions."""
    logits = hidden @ weight.T / temperature
    log_p = logits.log_softmax(-1)
    return [log_p.gather(1, targets[:, None]).squeeze(1), -(log_p.exp() * log_p).sum(-1), logits.logsumexp(-1)]


def inputs(n: int, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    """hidden (n, WIDTH), weight (VOCAB, WIDTH), targets (n,) with the first and last word among them."""
    g = generator(n)
    hidden = torch.randn(n, WIDTH, generator=g).mul_(scale).requires_grad_()
    weight = torch.randn(VOCAB, WIDTH, generator=g).requires_grad_()
    targets = torch.randint(VOCAB, (n,), generator=g)
    targets[0], targets[-1] = 0, VOCAB - 1
    return hidden, weight, targets


@pytest.mark.parametrize("keep", [True, False], ids=["kept", "recomputed"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
@pytest.mark.parametrize("n", [1, 2, CHUNK_ROWS - 1, CHUNK_ROWS, CHUNK_ROWS + 1, 2 * CHUNK_ROWS + 77])
def test_12_linear_log_prob_against_float64(monkeypatch, n, temperature, keep):
    """Property 12: all three outputs and their gradients to hidden states and head weight, each with a random weight a
    row, for one row, whole and partial chunks, kept and recomputed logits."""
    monkeypatch.setattr(kernels, "KEEP_ELEMENTS", n * VOCAB - (not keep))
    hidden, weight, targets = inputs(n)
    out = kernels.linear_log_prob(hidden, weight, targets, temperature, entropy=True)
    hidden64, weight64 = double(hidden, weight)
    want = reference(hidden64, weight64, targets, temperature)
    up = torch.randn(3, n, generator=generator(1))
    for got, expected in zip(out, want, strict=True):
        assert got.dtype == torch.float32
        torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-5)  # fp32 logits of up to about 25
    for which in ([0], [1], [2], [0, 1, 2]):  # each output alone, since grads of unused ones are None, and all
        got = torch.autograd.grad(sum((out[i] * up[i]).sum() for i in which), (hidden, weight), retain_graph=True)
        expected = torch.autograd.grad(
            sum((want[i] * up[i]).sum() for i in which), (hidden64, weight64), retain_graph=True
        )
        for a, b in zip(got, expected, strict=True):
            assert relative(a, b) < 1e-5, which


def test_outputs_without_entropy_are_the_same():
    """Entropy is left out where it was not asked for, which changes nothing else."""
    hidden, weight, targets = inputs(40)
    plain, full = (kernels.linear_log_prob(hidden, weight, targets, 0.8, entropy) for entropy in (False, True))
    assert plain.entropy is None and full.entropy is not None
    assert torch.equal(plain.log_prob, full.log_prob) and torch.equal(plain.logsumexp, full.logsumexp)


@pytest.mark.parametrize("keep", [0, 1 << 23], ids=["recomputed", "kept"])
def test_12_masked_rows_get_zero_gradient(monkeypatch, keep):
    """Property 12: rows whose outputs do not enter the loss have a gradient of exactly zero and add nothing to the
    weight's; with all rows masked everything is zero."""
    monkeypatch.setattr(kernels, "KEEP_ELEMENTS", keep)
    hidden, weight, targets = inputs(60)
    mask = torch.arange(60) % 3 == 0

    def gradients(hidden, targets, mask):
        out = kernels.linear_log_prob(hidden, weight, targets, 0.6, entropy=True)
        return torch.autograd.grad(sum((x * mask).sum() for x in out), (hidden, weight))

    grad_hidden, grad_weight = gradients(hidden, targets, mask)
    assert not grad_hidden[~mask].any() and grad_hidden[mask].any(-1).all()
    alone = gradients(hidden[mask], targets[mask], mask[mask])
    torch.testing.assert_close(grad_hidden[mask], alone[0], atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(grad_weight, alone[1], atol=1e-5, rtol=1e-5)
    assert not any(g.any() for g in gradients(hidden, targets, torch.zeros(60)))


@pytest.mark.parametrize("keep", [0, 1 << 23], ids=["recomputed", "kept"])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_13_huge_logits_give_finite_values_and_gradients(monkeypatch, temperature, keep):
    """Property 13: logits of ±1e4, a target at either end, ties at the top."""
    monkeypatch.setattr(kernels, "KEEP_ELEMENTS", keep)
    hidden = torch.tensor([[1e4], [1e4], [-1e4], [0.0]], requires_grad=True)
    weight = torch.tensor([[1.0], [-1.0], [0.0], [1.0]], requires_grad=True)
    targets = torch.tensor([0, 1, 2, 3])
    out = kernels.linear_log_prob(hidden, weight, targets, temperature, entropy=True)
    want = reference(*double(hidden, weight), targets, temperature)
    for got, expected in zip(out, want, strict=True):
        torch.testing.assert_close(got.double(), expected.nan_to_num(), atol=1e-5, rtol=1e-6)
    for grad in torch.autograd.grad(sum(x.sum() for x in out), (hidden, weight)):
        assert grad.isfinite().all()


def test_11_log_prob_of_token_t_comes_from_the_state_before_it():
    """Property 11: a table of next-word probabilities written by hand. State i is the i-th unit vector, so row i of the
    table is what state i predicts; the sequence 2 0 1 must cost log p(0|2) and log p(1|0), and nothing else."""
    table = torch.tensor([[0.1, 0.7, 0.2], [0.3, 0.3, 0.4], [0.6, 0.1, 0.3]])
    sequence = torch.tensor([2, 0, 1])
    states = torch.eye(3)[sequence[:-1]]  # the hidden states of tokens 0 .. T-2
    out = kernels.linear_log_prob(states, table.log().T.contiguous(), sequence[1:], entropy=True)
    torch.testing.assert_close(out.log_prob, torch.tensor([0.6, 0.7]).log())
    torch.testing.assert_close(out.logsumexp, torch.zeros(2), atol=1e-6, rtol=0)
    bits = -(table[2] * table[2].log()).sum()
    torch.testing.assert_close(out.entropy[0], bits)


def test_11_the_model_cannot_see_the_token_it_predicts():
    """Property 11: log p of token t does not change with token t or what follows, save through the target itself."""
    model = GPT(config_of("smoke", 128)).init_weights(0, std=0.1)
    tokens = torch.randint(128, (1, 12), generator=generator(0))
    with torch.no_grad():
        before = model.logits(model(tokens[:, :-1]))[0].log_softmax(-1)
        for t in range(1, 11):
            changed = tokens.clone()
            changed[0, t:] = (changed[0, t:] + 1) % 128
            after = model.logits(model(changed[:, :-1]))[0].log_softmax(-1)
            # rows 0 .. t-1 predict tokens 1 .. t from tokens 0 .. t-1
            torch.testing.assert_close(after[:t], before[:t], atol=1e-6, rtol=0)
            assert (after[t] - before[t]).abs().max() > 1e-3


def test_12_bf16_autocast_agrees_loosely():
    """Under autocast the products are in bf16 (8 bits of mantissa) and everything else in fp32: log-probs of 5 nats
    agree to 0.1, gradients to 2% of their norm, and the gradients keep their own types."""
    hidden, weight, targets = inputs(7, scale=0.3)
    with torch.autocast("cpu", torch.bfloat16):
        out = kernels.linear_log_prob(hidden, weight, targets, 0.6, entropy=True)
    assert all(x.dtype == torch.float32 for x in out)
    grads = torch.autograd.grad(sum(x.sum() for x in out), (hidden, weight))
    hidden64, weight64 = double(hidden, weight)
    want = reference(hidden64, weight64, targets, 0.6)
    want_grads = torch.autograd.grad(sum(x.sum() for x in want), (hidden64, weight64))
    for got, expected in zip(out, want, strict=True):
        torch.testing.assert_close(got.double(), expected, atol=0.1, rtol=0)
        assert not torch.equal(got.double(), expected)
    for got, expected in zip(grads, want_grads, strict=True):
        assert got.dtype == torch.float32 and relative(got, expected) < 0.02


def test_a_whole_model_under_bf16_autocast_agrees_loosely():
    """Every operation takes autocast's mixed types, forward and backward."""
    model = GPT(config_of("smoke", 128)).init_weights(0, std=0.05)
    tokens = torch.randint(128, (1, 9), generator=generator(0))

    def step():
        hidden = model(tokens[:, :-1])[0]
        out = kernels.linear_log_prob(hidden, model.head.weight, tokens[0, 1:])
        return out.log_prob.detach(), torch.autograd.grad(out.log_prob.sum(), list(model.parameters()))

    want, want_grads = step()
    with torch.autocast("cpu", torch.bfloat16):
        got, got_grads = step()
    torch.testing.assert_close(got, want, atol=0.05, rtol=0)
    for (name, _), a, b in zip(model.named_parameters(), got_grads, want_grads, strict=True):
        assert a.dtype == torch.float32 and relative(a, b) < 0.1, name


# ---------------------------------------------------------------------------------------------------------------------
# Norm and rotation
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 24), (5, 24), (2, 3, 24)])
@pytest.mark.parametrize("scale", [1.0, 1e-4, 1e4])  # at 1e-4 eps weighs as much as the values do
def test_rms_norm_against_float64(shape, scale):
    """x / sqrt(mean(x²) + eps) · gain and its gradients to x and gain."""
    g, eps = generator(len(shape)), 1e-8
    x = torch.randn(shape, generator=g).mul_(scale).requires_grad_()
    norm = RMSNorm(24, eps)
    norm.weight.data.normal_(generator=g)
    gain = norm.weight
    up = torch.randn(shape, generator=g)
    out = norm(x)
    x64, gain64 = double(x, gain)
    want = x64 / (x64.square().mean(-1, keepdim=True) + eps).sqrt() * gain64
    torch.testing.assert_close(out.double(), want, atol=1e-6, rtol=1e-6)
    for got, expected in zip(
        torch.autograd.grad(out, (x, gain), up), torch.autograd.grad(want, (x64, gain64), up.double()), strict=True
    ):
        assert relative(got, expected) < 1e-6


def test_rms_norm_of_zeros_is_zero_and_has_a_finite_gradient():
    x = torch.zeros(2, 8, requires_grad=True)
    out = RMSNorm(8, 1e-6)(x)
    (grad,) = torch.autograd.grad(out.sum(), x)
    assert not out.any() and grad.isfinite().all()


@pytest.mark.parametrize("per_row", [False, True], ids=["positions of columns", "positions of rows"])
def test_rotary_against_float64_complex_numbers(per_row):
    """Pairs (i, i + D/2) turned by the angle, as complex numbers: values and gradient, for both shapes of the tables;
    the input may be a view."""
    g = generator(0)
    base = torch.randn(2, 3, 5, 8, generator=g).requires_grad_()
    x = base.transpose(1, 2)  # (B, T, H, D), not contiguous
    angle = torch.randn(*((2,) if per_row else ()), 5, 1, 4, generator=g)
    cos, sin = torch.cat([angle.cos()] * 2, -1), torch.cat([-angle.sin(), angle.sin()], -1)
    out = rotary(x, cos, sin)
    (base64,) = double(base)
    first, second = base64.transpose(1, 2).chunk(2, -1)
    turned = torch.complex(first, second) * torch.polar(torch.ones_like(angle, dtype=torch.double), angle.double())
    want = torch.cat([turned.real, turned.imag], -1)
    torch.testing.assert_close(out.double(), want, atol=1e-6, rtol=1e-6)
    up = torch.randn(out.shape, generator=g)
    (got,) = torch.autograd.grad(out, base, up)
    (expected,) = torch.autograd.grad(want, base64, up.double())
    assert relative(got, expected) < 1e-6


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def sees(query, key) -> bool:
    """Whether tokens of one document see those of another that stand before them. A document is a number or, where it
    shares a prompt, a pair (number of the prompt, own number); a prompt is (its number, 0)."""
    return query == key or (isinstance(key, tuple) and key == (query[0], 0))


def dense_attention(q: Tensor, k: Tensor, v: Tensor, document: list[list]) -> Tensor:
    """Softmax attention with a mask made pair by pair: a query sees itself and earlier keys of its own document and prompt."""
    b, t, h, d = q.shape
    k, v = (x.repeat_interleave(h // x.shape[2], dim=2) for x in (k, v))
    score = torch.einsum("bthd,bshd->bhts", q, k) / d**0.5
    visible = [[[s <= t_ and sees(row[t_], row[s]) for s in range(t)] for t_ in range(t)] for row in document]
    score = score.masked_fill(~torch.tensor(visible)[:, None], -torch.inf)
    return torch.einsum("bhts,bshd->bthd", score.softmax(-1), v)


@st.composite
def layouts(draw) -> list[list[int]]:
    """(B, T) the document number of each token."""
    t = draw(st.integers(1, 12))
    cuts = st.lists(st.booleans(), min_size=t, max_size=t)
    rows = draw(st.lists(cuts, min_size=1, max_size=3))
    return [[sum(row[1 : i + 1]) for i in range(t)] for row in rows]


@settings(max_examples=60, deadline=None)
@given(layouts(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31 - 1))
def test_attention_within_documents_against_a_dense_float64_mask(document, kv_heads, seed):
    """Any layout of documents in the rows, multi-head, grouped and multi-query: output and gradients."""
    b, t, g = len(document), len(document[0]), generator(seed)
    q = torch.randn(b, t, 4, 8, generator=g).requires_grad_()
    k, v = (torch.randn(b, t, kv_heads, 8, generator=g).requires_grad_() for _ in range(2))
    doc_start = torch.tensor([[row.index(d) for d in row] for row in document])
    up = torch.randn(q.shape, generator=g)
    out = kernels.attention(q, k, v, doc_start)
    inputs64 = double(q, k, v)
    want = dense_attention(*inputs64, document)
    torch.testing.assert_close(out.double(), want, atol=1e-5, rtol=1e-5)
    grads = torch.autograd.grad(out, (q, k, v), up)
    for got, expected in zip(grads, torch.autograd.grad(want, inputs64, up.double()), strict=True):
        torch.testing.assert_close(got.double(), expected, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("kv_heads", [1, 2, 4])
def test_causal_attention_against_a_dense_float64_mask(kv_heads):
    """Without doc_start a row is one document."""
    g = generator(3)
    q = torch.randn(2, 33, 4, 8, generator=g)
    k, v = (torch.randn(2, 33, kv_heads, 8, generator=g) for _ in range(2))
    want = dense_attention(*(x.double() for x in (q, k, v)), [[0] * 33] * 2)
    torch.testing.assert_close(kernels.attention(q, k, v).double(), want, atol=1e-5, rtol=1e-5)


@st.composite
def prompt_layouts(draw, longest: int = 6, tokens: int = 16) -> list[list[tuple[int, int]]]:
    """(B, T) the document (prompt, answer) of each token: prompt | answer | answer | ... | prompt | ..., prompts of no
    token and without answers among them, pieces of up to `longest` tokens. The end of the row cuts off what does not
    fit."""
    T, rows = draw(st.integers(1, tokens)), []
    for _ in range(draw(st.integers(1, 2))):
        row = []
        while len(row) < T:
            group = row[-1][0] + 1 if row else 0
            lengths = draw(st.lists(st.integers(1, longest), max_size=4))
            lengths.insert(0, draw(st.integers(0 if lengths else 1, longest)))
            row += [(group, number) for number, length in enumerate(lengths) for _ in range(length)]
        rows.append(row[:T])
    return rows


def layout_of(rows: list[list[tuple[int, int]]]) -> tuple[Tensor, Tensor]:
    """doc_start and prompt, the arguments of kernels.attention, of rows as prompt_layouts draws them."""
    groups = [[group for group, _ in row] for row in rows]
    doc_start = [[row.index(document) for document in row] for row in rows]
    starts = [[group.index(g) for g in group] for group in groups]
    ends = [
        [s + row.count((g, 0)) for s, (g, _) in zip(start, row, strict=True)]
        for start, row in zip(starts, rows, strict=True)
    ]
    return torch.tensor(doc_start), torch.tensor([starts, ends])


@settings(max_examples=60, deadline=None)
@given(prompt_layouts(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31 - 1))
def test_attention_with_shared_prompts_equals_rows_of_their_own(rows, kv_heads, seed):
    """In float64: each answer behind a prompt that it shares has the output of a row that holds its prompt and itself,
    and the gradients of a prompt are the sum of those of its copies."""
    b, t, g = len(rows), len(rows[0]), generator(seed)
    q, up = torch.randn(2, b, t, 4, 8, dtype=torch.float64, generator=g)
    k, v = torch.randn(2, b, t, kv_heads, 8, dtype=torch.float64, generator=g)
    inputs = [x.requires_grad_() for x in (q, k, v)]
    out = kernels.attention(*inputs, *layout_of(rows))
    want = torch.zeros_like(out)
    for i, row in enumerate(rows):
        for document in dict.fromkeys(row):
            own = [s for s in range(t) if row[s] == document]
            prompt = [s for s in range(t) if row[s] == (document[0], 0) != document]
            alone = kernels.attention(*(x[i : i + 1, prompt + own] for x in inputs))
            want[i, own] = alone[0, len(prompt) :]
    torch.testing.assert_close(out, want, atol=1e-12, rtol=1e-12)
    for got, expected in zip(*(torch.autograd.grad(x, inputs, up) for x in (out, want)), strict=True):
        torch.testing.assert_close(got, expected, atol=1e-12, rtol=1e-12)


def test_which_attention_runs_on_a_gpu(monkeypatch):
    """Whole rows: PyTorch's, cuDNN first in passes with gradients and left out in others. Documents: the Triton kernel,
    and with KERNELS=triton for both. On tensors that only say that they are on a GPU."""
    ran = []

    def sdpa(q, k, v, **_):
        ran.append(torch._C._get_sdp_priority_order())
        assert torch.backends.cuda.cudnn_sdp_enabled() == torch.is_grad_enabled()
        return q

    stub = SimpleNamespace(attention=lambda q, *_: ran.append("triton"))
    monkeypatch.setitem(sys.modules, "kernels.triton_attention", stub)
    monkeypatch.setattr(kernels, "triton_attention", stub, raising=False)
    monkeypatch.setattr(kernels, "_triton_can_run", lambda device: True)
    monkeypatch.setattr(kernels.F, "scaled_dot_product_attention", sdpa)
    cudnn, flash, *_ = order = [int(backend) for backend in kernels.SDPA]
    assert cudnn == int(SDPBackend.CUDNN_ATTENTION) and flash == int(SDPBackend.FLASH_ATTENTION)
    for choice, wanted in (("auto", [order, order[1:], "triton"]), ("triton", ["triton"] * 3)):
        ran.clear()
        monkeypatch.setattr(kernels, "_choice", choice)
        with FakeTensorMode():
            q = torch.empty(1, 8, 2, 16, device="cuda")
            start = torch.zeros(1, 8, dtype=torch.long, device="cuda")
            kernels.attention(q, q, q)
            with torch.no_grad():
                kernels.attention(q, q, q)
            kernels.attention(q, q, q, start)
        assert [x[: len(w)] if isinstance(w, list) else x for x, w in zip(ran, wanted, strict=True)] == wanted, choice
