"""The model against transformers, by hand counts, and its two cheaper forms (cache, packed answers) against itself."""

import contextlib
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from model import (
    GPT,
    GPTConfig,
    answers_flops,
    config_of,
    empty_gpt,
    forward_flops,
    train_flops,
)
from packing import Packed, packed_batches
from paged import PagedCache
from sampler import ROW, KVCache
from tools.olmo2 import to_olmo2

CPU = torch.device("cpu")


def tiny(**changes) -> GPT:
    """Weights larger than usual and gains that differ, so that a mistake anywhere shows in the output."""
    model = GPT(config_of("smoke", 128, **changes)).init_weights(0, std=0.1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for p in model.parameters():
            if p.dim() == 1:
                p.uniform_(0.5, 1.5, generator=generator)
    return model


def random_ids(rng: np.random.Generator, lengths) -> list[list[int]]:
    return [rng.integers(128, size=n).tolist() for n in lengths]


def full_log_probs(model: GPT, prompt: list[int], answer: list[int], temperature: float) -> torch.Tensor:
    """(len(answer),) by one plain forward of prompt + answer and PyTorch's own log_softmax."""
    hidden = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    logits = (hidden.double() @ model.head.weight.double().T) / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# The architecture
# ---------------------------------------------------------------------------------------------------------------------


def test_parameter_count_of_the_paper():
    """olmo2-1b with cl100k's padded vocabulary has 1.485 B parameters, as the paper's base model."""
    with torch.device("meta"):
        assert round(GPT(config_of("olmo2-1b", 100_352)).n_params / 1e9, 3) == 1.485


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_logits_equal_transformers(kv_heads):
    """The architecture is OLMo2's: logits equal Olmo2ForCausalLM's to 1e-5 in fp32, also with grouped queries."""
    transformers = pytest.importorskip("transformers")
    ours = tiny(n_kv_heads=kv_heads)
    theirs = transformers.Olmo2ForCausalLM(
        transformers.Olmo2Config(
            vocab_size=128, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
            num_key_value_heads=kv_heads, max_position_embeddings=256, rms_norm_eps=1e-6, pad_token_id=None,
            eos_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 500_000.0},
        )
    ).eval()  # fmt: skip
    theirs.load_state_dict(to_olmo2(ours.state_dict(), ours.config))
    tokens = torch.randint(128, (3, 200), generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_weights_are_truncated_normal_and_depend_on_the_seed_alone():
    """Matrices: within 3 std and of a normal's spread; gains 1. The global random state neither matters nor changes."""
    torch.manual_seed(1)
    a = GPT(config_of("smoke", 128))
    before = torch.get_rng_state()
    a.init_weights(7, std=0.05)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    b, c = (GPT(config_of("smoke", 128)).init_weights(seed, std=0.05) for seed in (7, 8))
    for (name, p), q, r in zip(a.state_dict().items(), b.parameters(), c.parameters(), strict=True):
        assert torch.equal(p, q), name
        if p.dim() == 1:
            assert (p == 1).all(), name
            continue
        assert not torch.equal(p, r), name
        assert p.abs().max() <= 3 * 0.05, name
        # a normal cut at 3 std has a std of 0.9866; 4096 draws and more estimate it to 1.1% (one sigma)
        assert p.std().item() == pytest.approx(0.9866 * 0.05, rel=0.05), name
        assert abs(p.mean()) < 4 * 0.05 / math.sqrt(p.numel()), name


def test_documents_kept_apart_are_as_if_alone():
    """doc_start: a document packed behind another has the hidden states of a row of its own (positions are relative)."""
    model, rng = tiny(), np.random.default_rng(0)
    documents = random_ids(rng, (5, 17, 1, 9))
    starts = np.cumsum([0, *map(len, documents)])[:-1]
    doc_start = torch.tensor([[s for s, d in zip(starts, documents, strict=True) for _ in d]])
    packed = model(torch.tensor([sum(documents, [])]), doc_start=doc_start)[0]
    for start, document in zip(starts, documents, strict=True):
        alone = model(torch.tensor([document]))[0]
        torch.testing.assert_close(packed[start : start + len(document)], alone, atol=2e-5, rtol=0)


@pytest.mark.parametrize("std", [0.02, 0.3])
def test_initial_weights_are_those_of_pytorch(std):
    """init_weights draws what nn.init.trunc_normal_ draws, to the bit, whatever the memory held before; gains are ones."""
    model = empty_gpt(config_of("micro", 512), "cpu")
    with torch.no_grad():
        for p in model.parameters():
            p.fill_(math.nan)
    model.init_weights(5, std)
    generator = torch.Generator().manual_seed(5)
    for p in model.parameters():
        want = torch.ones(p.shape)
        if p.dim() > 1:
            torch.nn.init.trunc_normal_(want, std=std, a=-3 * std, b=3 * std, generator=generator)
        assert torch.equal(p, want) and p.requires_grad
    whole = GPT(config_of("micro", 512))
    assert torch.equal(model.cos, whole.cos) and torch.equal(model.sin, whole.sin)


# ---------------------------------------------------------------------------------------------------------------------
# Activations that are computed again
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("packed", [False, True], ids=["rows", "packed answers"])
def test_what_is_computed_again_changes_no_bit(packed, dtype):
    """--recompute attention and block: the gradients of --recompute none to the bit; each keeps less for backward than
    the one before; block computes the blocks' forward pass twice. A pass without gradients is as it was."""
    model, rng = tiny(n_layers=3, n_kv_heads=1), np.random.default_rng(0)
    ids = torch.from_numpy(rng.integers(128, size=(3, 40)))
    batch = Packed(random_ids(rng, [5, 9]), random_ids(rng, [30, 20, 1]), [0, 0, 1], CPU)
    cast = contextlib.nullcontext() if dtype == torch.float32 else torch.autocast("cpu", dtype)
    found = {}
    for recompute in ("none", "attention", "block"):
        for block in model.blocks:
            block.recompute = recompute
        model.zero_grad()
        kept = {}  # bytes of what autograd keeps, by its place

        def keep(x, kept=kept):
            kept[x.data_ptr()] = x.nbytes
            return x

        with FlopCounterMode(display=False) as flops:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x), cast:
                if packed:
                    loss = batch.log_probs(model, 0.9, entropy=True).log_prob.sum()
                else:
                    loss = model(ids, doc_start=torch.zeros_like(ids)).square().sum()
            loss.backward()
        with torch.no_grad(), cast, FlopCounterMode(display=False) as forward:
            hidden = model(ids)
        grads = [p.grad.clone() for p in model.parameters() if p.grad is not None]
        found[recompute] = grads, hidden, sum(kept.values()), flops.get_total_flops(), forward.get_total_flops()
    grads, hidden, most, flops, forward = found["none"]
    for recompute in ("attention", "block"):
        again, same_hidden, less, more_flops, same_forward = found[recompute]
        assert torch.equal(hidden, same_hidden) and len(grads) > 30 and all(map(torch.equal, grads, again))
        assert less < 0.85 * most and more_flops > flops and same_forward == forward
        most = less
    assert found["block"][3] == pytest.approx(flops * 4 / 3, rel=0.1)


# ---------------------------------------------------------------------------------------------------------------------
# FLOPs
# ---------------------------------------------------------------------------------------------------------------------

SMALL = GPTConfig(vocab_size=32, d_model=8, n_layers=3, n_heads=2, d_ff=16, context=64, n_kv_heads=1)


def test_flops_against_a_hand_count():
    """2 per parameter of the matrices and head, 4·L·C per key; backward twice that; sums over a sequence are exact."""
    # a layer: q 8x8, k 8x4, v 8x4, o 8x8, three of 8x16; the head 32x8
    assert forward_flops(SMALL, 0) == 2 * (3 * (64 + 32 + 32 + 64 + 3 * 128) + 256) == 2 * 1984
    # a key costs a layer 2 heads x (2·4 for the score + 2·4 for the value)
    assert forward_flops(SMALL, 5) == 2 * 1984 + 3 * 5 * 2 * (8 + 8)
    steps = [forward_flops(SMALL, i + 1) for i in range(10)]
    assert train_flops(SMALL, 10) == pytest.approx(3 * sum(steps) / 10)
    assert answers_flops(SMALL, [(4, [6] * 7)]) == pytest.approx(sum(steps[:4]) + 7 * sum(steps[4:]))
    assert answers_flops(SMALL, [(4, [6]), (4, [5, 7])]) == pytest.approx(2 * sum(steps[:4]) + 3 * sum(steps[4:]))


def test_flops_against_pytorchs_counter():
    """forward_flops counts every matrix product of a forward pass: PyTorch's own counter finds the same number."""
    model, t = GPT(SMALL).init_weights(0), 6

    def attend(_, q, k, v):  # plain products with t keys for every query: the counter does not know the fused kernel's
        k, v = (x.repeat_interleave(2, dim=2) for x in (k, v))
        weight = torch.einsum("bthd,bshd->bhts", q, k).softmax(-1)
        return torch.einsum("bhts,bshd->bthd", weight, v)

    with FlopCounterMode(display=False) as counter:
        model.logits(model(torch.zeros(2, t, dtype=torch.long), attend=attend))
    assert counter.get_total_flops() == 2 * t * forward_flops(SMALL, t)


# ---------------------------------------------------------------------------------------------------------------------
# Decoding with a cache
# ---------------------------------------------------------------------------------------------------------------------


def rows_of(entry, prompt, new) -> np.ndarray:
    """Live rows: the entry and length of each one's prompt, and how many tokens it has generated."""
    rows = np.zeros(len(entry), ROW)
    rows["entry"], rows["prompt"], rows["new"] = entry, prompt, new
    return rows


@pytest.mark.parametrize("kv_heads", [2, 1])
@pytest.mark.parametrize("kind", [KVCache, PagedCache])
@torch.no_grad()
def test_cached_decoding_at_ragged_positions_equals_the_full_forward(kind, kv_heads):
    """Rows that continue shared prompts of different lengths (one fills its page), and joined at different times, have
    the hidden states of a full forward in float64, also after a row was moved to another slot, whatever the cache's
    memory held. Pages: no page is lost, and the last rows have to wait where there are none."""
    model, exact, rng = tiny(n_kv_heads=kv_heads), tiny(n_kv_heads=kv_heads).double(), np.random.default_rng(0)
    prompts = random_ids(rng, (7, 1, 32))
    owner, joins = np.array([2, 0, 1, 0, 2]), np.array([0, 0, 1, 3, 3])
    answers = random_ids(rng, [22] * 5)
    sizes = dict(entries=4, prompt_len=32, slots=5, new_tokens=22, like=torch.empty(0))
    paged = kind is PagedCache
    cache = kind(model.config, **sizes, pages=4 * 2 + 12) if paged else kind(model.config, **sizes)
    for x in (cache.k, cache.v) if paged else (cache.own_k, cache.own_v):
        x.fill_(math.nan)
    length = np.array([len(p) for p in prompts])
    padded = torch.tensor([p + [0] * (32 - len(p)) for p in prompts])
    entries = np.array([2, 0, 3])  # where each prompt is kept: in another order and with a hole
    hidden = model(padded, attend=cache.prefill(torch.from_numpy(entries)))
    for i, prompt in enumerate(prompts):
        torch.testing.assert_close(hidden[i, : len(prompt)], model(torch.tensor([prompt]))[0], atol=1e-5, rtol=0)

    def step(numbers, own):
        """Feed token number own[i] of row numbers[i]; its hidden state must be that of the full forward."""
        prompt, own = length[owner[numbers]], np.array(own)
        tokens = torch.tensor([[answers[r][i]] for r, i in zip(numbers, own, strict=True)])
        entry = entries[owner[numbers]]
        assert not paged or cache.reserve(rows_of(entry, prompt, own + 1)) == len(numbers)
        attend = cache.decode(entry, prompt, own)
        got = model(tokens, torch.from_numpy(prompt + own)[:, None], attend)[:, 0]
        for i, r in enumerate(numbers):
            want = exact(torch.tensor([prompts[owner[r]] + answers[r][: own[i] + 1]]))[0, -1]
            torch.testing.assert_close(got[i].double(), want, atol=1e-5, rtol=0)

    for t in range(18):
        live = [r for r in range(5) if joins[r] <= t]
        if paged:  # a row's first token comes from its prompt: it has none to feed when it joins
            cache.reserve(rows_of(entries[owner[live]], length[owner[live]], [t - joins[r] for r in live]))
        step(live, [t - joins[r] for r in live])
    # row 1 is done: the last row takes its slot
    if paged:
        assert len(cache.free()) == 12 - (3 + 3 + 2 + 2 + 2)  # of 16 tokens to come, too
        cache.move(np.array([4]), np.array([1]), 4)
        assert len(cache.free()) == 3
    else:
        for x in (cache.own_k, cache.own_v):
            x[:, 1] = x[:, 4]
    left = np.array([0, 4, 2, 3])
    step(left, [18, 15, 17, 15])
    if paged:
        rows = rows_of(entries[owner[left]], length[owner[left]], 22)
        assert cache.reserve(rows) == 4 and not len(cache.free())
        cache.reserve(rows[:2])
        assert cache.reserve(np.tile(rows, 2)[:5]) == 4 and not len(cache.free())


# ---------------------------------------------------------------------------------------------------------------------
# Packed answers
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kv_heads", [2, 1])
def test_packed_answers_and_gradients_equal_separate_rows(kv_heads):
    """Answers that share a prompt (ragged, of one token, a prompt of one token, a prompt without answers, answers out
    of order) have the log-probs and parameter gradients of full rows of their own."""
    model, rng = tiny(n_kv_heads=kv_heads), np.random.default_rng(1)
    prompts = random_ids(rng, (3, 17, 9, 1))
    owner = [1, 0, 0, 3, 1, 3]
    answers = random_ids(rng, (20, 1, 7, 2, 1, 13))
    packed = Packed(prompts, answers, owner, CPU)
    assert packed.tokens.numel() == 3 + 17 + 9 + 1 + sum(len(a) - 1 for a in answers)
    assert packed.targets.tolist() == sum(answers, [])
    assert packed.answer.tolist() == [i for i, a in enumerate(answers) for _ in a]
    got = packed.log_probs(model, 0.7).log_prob
    want = torch.cat([full_log_probs(model, prompts[o], a, 0.7) for o, a in zip(owner, answers, strict=True)])
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    weight = torch.from_numpy(rng.normal(size=len(want)))
    parameters = dict(model.named_parameters())
    got_grads = torch.autograd.grad((got * weight).sum(), parameters.values())
    want_grads = torch.autograd.grad((want * weight).sum(), parameters.values())
    for name, a, b in zip(parameters, got_grads, want_grads, strict=True):
        assert (a - b).norm() <= 1e-5 * b.norm(), name


def test_packed_answers_all_of_one_token():
    """With nothing but one-token answers no answer token is an input at all."""
    model, rng = tiny(), np.random.default_rng(2)
    prompts, answers = random_ids(rng, (4, 6)), random_ids(rng, (1, 1, 1))
    got = Packed(prompts, answers, [0, 1, 1], CPU).log_probs(model, 1.0).log_prob
    want = [full_log_probs(model, prompts[o], a, 1.0) for o, a in zip((0, 1, 1), answers, strict=True)]
    torch.testing.assert_close(got.double(), torch.cat(want), atol=1e-5, rtol=0)


sizes = st.integers(1, 30)
item_sizes = st.tuples(sizes, st.lists(sizes, min_size=1, max_size=6))  # of a prompt, of its answers


@settings(max_examples=100, deadline=None)
@given(st.lists(item_sizes, min_size=1, max_size=6), st.integers(20, 120))
def test_packed_batches_hold_every_answer_once_within_the_limit(shape, limit):
    """Each answer is in exactly one batch, with its prompt; a batch has at most `limit` tokens unless it is one answer
    alone; an item that fits a batch is not divided."""
    items = [
        ([i] * prompt, [[50 + i] * (size - 1) + [r] for r, size in enumerate(answers)])
        for i, (prompt, answers) in enumerate(shape)
    ]
    seen = []
    for packed, parts in packed_batches(items, limit, CPU):
        answers = [items[i][1][r] for i, rows in parts for r in rows]
        prompts = [token for i, _ in parts for token in items[i][0]]
        assert packed.targets.tolist() == sum(answers, [])
        assert packed.tokens[0, : len(prompts)].tolist() == prompts
        assert len(prompts) + sum(map(len, answers)) <= limit or len(answers) == 1
        for i, rows in parts:
            whole = len(items[i][0]) + sum(map(len, items[i][1]))
            assert whole > limit or len(rows) == len(items[i][1])
            seen += [(i, r) for r in rows]
    assert sorted(seen) == [(i, r) for i, (_, answers) in enumerate(shape) for r in range(len(answers))]
