"""The traps of samplers, log-probs, GRPO and parallel averaging, each a test that names its property."""

import itertools
import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import average
import kernels
import rl
from data.errors import UserError
from data.hf import to_olmo2
from data.tokenizer import load_tokenizer
from eval import majority_vote, mean_interval, pass_at_k
from model import GPT, Packed, config_of, packed_batches
from runtime import Cursor, Process, make_optimizer
from sampler import choose, sample

CPU = Process(0, 1, torch.device("cpu"), torch.float32)
STOP = 5


@pytest.fixture(scope="module")
def model():
    torch.set_num_threads(1)
    return GPT(config_of("smoke", 128)).init_weights(0, std=0.15)


@pytest.fixture(scope="module")
def prompts():
    rng = np.random.default_rng(0)
    return [rng.integers(6, 120, size=n).tolist() for n in (3, 17, 9, 30, 1, 12)]


def draw(model, prompts, n=4, **changes):
    settings = dict(stop=STOP, max_new_tokens=24, temperature=0.8, seed=1)
    return sample(model, prompts, n, **{**settings, **changes})


def full_log_probs(model, prompt, answer, temperature):
    tokens = torch.tensor([prompt + answer])
    hidden = model(tokens)[0, len(prompt) - 1 : -1].double()
    logits = hidden @ model.head.weight.double().T / temperature
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


# ------------------------------------------------------------------------------------------------------------- sampler


def test_1_recorded_log_probs_equal_a_full_forward(model, prompts):
    s = draw(model, prompts)
    for row in range(0, 24, 5):
        answer = s.tokens[row, : s.lengths[row]].tolist()
        expected = full_log_probs(model, prompts[row // 4], answer, 0.8)
        torch.testing.assert_close(s.log_probs[row, : len(answer)].double(), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("slots", [1, 3, 7, 100])
def test_2_4_tokens_do_not_depend_on_slots_order_or_neighbours(model, prompts, slots):
    """Properties 2, 4: greedy and sampled rows are the same for any slot count; reused slots leave nothing behind."""
    for temperature in (0.0, 1.0):
        a, b = (draw(model, prompts, temperature=temperature, slots=k) for k in (24, slots))
        assert torch.equal(a.tokens * a.mask, b.tokens * b.mask) and torch.equal(a.lengths, b.lengths)
    alone = draw(model, [prompts[3]], n=1, temperature=0.0)
    among = draw(model, prompts[::-1], n=1, temperature=0.0, slots=slots)
    length = int(alone.lengths[0])
    assert among.tokens[2, :length].tolist() == alone.tokens[0, :length].tolist()


def test_3_4_shared_prefill_and_different_rows(model, prompts):
    """Properties 3, 4: rows of one shared prefill equal rows of separate prefills, and differ among each other."""
    shared = draw(model, [prompts[1]], n=6)
    separate = draw(model, [prompts[1]] * 6, n=1)
    assert torch.equal(shared.tokens * shared.mask, separate.tokens * separate.mask)
    assert len({tuple(t) for t in shared.tokens.tolist()}) > 1


def test_5_frequencies_match_softmax_and_top_p_keeps_the_nucleus():
    """Property 5: chi-square over 20,000 draws (false alarm 1e-4); top-p draws exactly the smallest set reaching p."""
    logits = torch.tensor([[2.0, 1.0, 0.5, 0.0, -1.0, -3.0]])
    n, rng = 20_000, np.random.default_rng(0)
    u = torch.from_numpy(rng.random(n, dtype=np.float32))
    p = (logits[0].double() / 0.7).softmax(-1)
    count = torch.bincount(choose(logits.expand(n, -1), u, 0.7, 1.0)[0], minlength=6).double()
    assert ((count - n * p).square() / (n * p)).sum() < 25.7  # chi-square, 5 degrees of freedom, 1e-4
    nucleus = set(choose(logits.expand(n, -1), u, 0.7, 0.9)[0].tolist())
    size = int((p.cumsum(0) - p < 0.9).sum())
    assert nucleus == set(range(size)) and size < 6


def test_6_7_8_stop_token_and_masks(model, prompts):
    """Properties 6-8: a finished row ends in its stop token, which the mask holds; a cut row has none; a pad id equal
    to the stop id changes nothing, since masks come from lengths."""
    s = draw(model, prompts, n=8, temperature=1.5, max_new_tokens=40)
    assert s.finished.any() and not s.finished.all()
    for row in range(len(s.lengths)):
        answer = s.tokens[row, : s.lengths[row]].tolist()
        assert (answer[-1] == STOP) == bool(s.finished[row]) and STOP not in answer[:-1]
        assert int(s.mask[row].sum()) == len(answer)
        assert bool(s.finished[row]) or len(answer) == 40


def test_sampler_refuses_what_cannot_fit(model):
    with pytest.raises(UserError, match="context"):
        draw(model, [[7] * 250])
    with pytest.raises(UserError, match="kv_gib"):
        draw(model, [[7] * 9], kv_gib=1e-9)


# ----------------------------------------------------------------------------------------------------------- log-probs


def test_11_log_prob_of_token_t_comes_from_the_state_before():
    """Property 11: with one-hot states and a known table, log p is that of the table's row t-1."""
    weight = torch.randn(5, 5, generator=torch.Generator().manual_seed(0))
    out = kernels.linear_log_prob(torch.eye(5)[:3], weight, torch.tensor([4, 0, 2]))
    expected = [weight[:, t].log_softmax(0)[y] for t, y in enumerate((4, 0, 2))]
    torch.testing.assert_close(out.log_prob, torch.stack(expected))


@pytest.mark.parametrize(
    ("n", "temperature", "keep"), [(1, 1.0, 1 << 23), (600, 0.6, 0), (600, 0.6, 1 << 23), (130, 1.3, 0)]
)
def test_12_fused_log_prob_against_float64(monkeypatch, n, temperature, keep):
    """Property 12: values and gradients, odd vocabulary, chunked and kept."""
    monkeypatch.setattr(kernels, "KEEP_ELEMENTS", keep)
    g = torch.Generator().manual_seed(n)
    hidden, weight = (torch.randn(s, generator=g, requires_grad=True) for s in ((n, 24), (1003, 24)))
    targets = torch.randint(1003, (n,), generator=g)
    targets[0] = 1002
    weights = torch.randn(3, n, generator=g)
    weights[:, n // 2] *= n == 1
    out = kernels.linear_log_prob(hidden, weight, targets, temperature, entropy=True)
    grads = torch.autograd.grad((torch.stack(out) * weights).sum(), (hidden, weight))
    h64, w64 = (x.detach().double().requires_grad_() for x in (hidden, weight))
    logits = h64 @ w64.T / temperature
    log_p = logits.log_softmax(-1)
    expected = [log_p.gather(1, targets[:, None])[:, 0], -(log_p.exp() * log_p).sum(-1), logits.logsumexp(-1)]
    ref = torch.autograd.grad((torch.stack(expected) * weights).sum(), (h64, w64))
    for a, b in zip(out, expected, strict=True):
        torch.testing.assert_close(a.double(), b, atol=2e-5, rtol=1e-5)
    for a, b in zip(grads, ref, strict=True):
        assert (a - b).norm() / b.norm() < 5e-6
    assert n == 1 or not grads[0][n // 2].any()


def test_13_huge_logits_stay_finite():
    hidden, weight = (
        torch.tensor([[1e4], [-1e4]], requires_grad=True),
        torch.tensor([[1.0], [-1.0], [0.0]], requires_grad=True),
    )
    out = kernels.linear_log_prob(hidden, weight, torch.tensor([1, 2]), entropy=True)
    grads = torch.autograd.grad(sum(x.sum() for x in out), (hidden, weight))
    assert all(x.isfinite().all() for x in (*out, *grads))


def test_elementwise_functions_against_float64():
    x = torch.randn(3, 5, 2, 8, requires_grad=True)
    gain, angle = torch.randn(8, requires_grad=True), torch.randn(5, 1, 4)
    out = kernels.rotary(kernels.rms_norm(x, gain, 1e-6), angle.cos(), angle.sin())
    up = torch.randn_like(out)
    grads = torch.autograd.grad(out, (x, gain), up)
    x64, g64, a64 = x.detach().double().requires_grad_(), gain.detach().double().requires_grad_(), angle.double()
    y = x64 / (x64.square().mean(-1, keepdim=True) + 1e-6).sqrt() * g64
    a, b = y.chunk(2, -1)
    ref = torch.cat([a * a64.cos() - b * a64.sin(), b * a64.cos() + a * a64.sin()], -1)
    for got, want in zip(grads, torch.autograd.grad(ref, (x64, g64), up.double()), strict=True):
        assert (got - want).norm() / want.norm() < 1e-6
    assert (out - ref).norm() / ref.norm() < 1e-6


def test_olmo2_logits_equal_transformers():
    """The architecture is OLMo2's: logits equal Olmo2ForCausalLM's with the same weights, also with grouped queries."""
    transformers = pytest.importorskip("transformers")
    for kv in (2, 1):
        c = config_of("smoke", 128, n_kv_heads=kv)
        ours = GPT(c).init_weights(0, std=0.1)
        with torch.no_grad():
            for p in ours.parameters():
                if p.dim() == 1:
                    p.uniform_(0.5, 1.5, generator=torch.Generator().manual_seed(len(p)))
        theirs = transformers.Olmo2ForCausalLM(
            transformers.Olmo2Config(
                vocab_size=128, hidden_size=64, intermediate_size=192, num_hidden_layers=2, num_attention_heads=2,
                num_key_value_heads=kv, max_position_embeddings=256, rms_norm_eps=1e-6, pad_token_id=0,
                rope_parameters={"rope_type": "default", "rope_theta": 500000.0},
            )
        ).eval()  # fmt: skip
        theirs.load_state_dict(to_olmo2(ours.state_dict(), c))
        tokens = torch.randint(128, (2, 50))
        torch.testing.assert_close(ours.logits(ours(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)


def test_parameter_count_of_the_paper():
    with torch.device("meta"):
        assert round(GPT(config_of("olmo2-1b", 100352)).n_params / 1e9, 3) == 1.485


def test_packed_answers_equal_separate_rows(model, prompts):
    """Answers that share a prompt have the log-probs and gradients of separate full rows."""
    rng = np.random.default_rng(1)
    owner = [0, 0, 1, 1, 1, 3]
    answers = [rng.integers(6, 120, size=n).tolist() for n in (1, 7, 20, 2, 13, 5)]
    got = Packed(prompts, answers, owner, torch.device("cpu")).log_probs(model, 0.7).log_prob
    want = torch.cat([full_log_probs(model, prompts[o], a, 0.7) for o, a in zip(owner, answers, strict=True)])
    torch.testing.assert_close(got.double(), want, atol=1e-5, rtol=0)
    weight = torch.randn(len(got))
    parameters = list(model.parameters())
    for a, b in zip(
        torch.autograd.grad((got * weight).sum(), parameters),
        torch.autograd.grad((want * weight).sum(), parameters),
        strict=True,
    ):
        assert (a - b).norm() <= 1e-5 * b.norm()


def test_packed_batches_cover_every_answer_once():
    items = [([1] * 10, [[2] * k for k in (5, 50, 7, 30)]), ([1] * 4, [[3] * 4]), ([1] * 90, [[3] * 60, [3] * 70])]
    seen = []
    for packed, parts in packed_batches(items, 100, torch.device("cpu")):
        assert packed.tokens.numel() <= 100 or sum(len(rows) for _, rows in parts) == 1
        seen += [(i, r) for i, rows in parts for r in rows]
    assert sorted(seen) == [(0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (2, 0), (2, 1)]


# ---------------------------------------------------------------------------------------------------------------- GRPO


def make_groups(rewards, seed=0, old_shift=0.0):
    rng, groups = np.random.default_rng(seed), []
    for i, row in enumerate(rewards):
        answers = [rng.integers(6, 120, size=n).tolist() for n in rng.integers(1, 12, size=len(row))]
        tensor = torch.tensor([row])
        groups.append(
            rl.Group({"id": i}, rng.integers(6, 120, size=5 + i).tolist(), answers,
                     [np.full(len(a), old_shift, np.float32) for a in answers], list(row), [True] * len(row),
                     [True] * len(row), [r > 0 for r in row],
                     rl.advantages(tensor, torch.ones_like(tensor, dtype=torch.bool))[0].numpy())
        )  # fmt: skip
    return groups


def grpo(process=CPU, reference=None, **flags):
    config = rl.GRPOConfig(**{"prompts": 3, "n": 4, "max_new_tokens": 16, **flags})
    question = {"id": "0", "question": "Tom has 2 pears.", "answer": "2"}
    return rl.GRPO(config, [question], load_tokenizer("world"), process, 0, 256, reference)


def gradient(model, g, groups, first=True):
    model.zero_grad()
    stats = g.backward(model, groups, first)
    grads = [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in model.parameters()]
    model.zero_grad()
    return torch.cat([x.flatten() for x in grads]), stats


REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_9_grpo_refuses_top_p():
    with pytest.raises(UserError, match="top_p"):
        grpo(top_p=0.9)


def test_15_16_first_update_is_reinforce(model):
    """Properties 14-16: ratio exactly 1, nothing clipped, and the gradient of -Σ w A log p at the sampling temperature."""
    groups = make_groups(REWARDS)
    got, stats = gradient(model, grpo(temperature=0.7), groups)
    assert stats["ratio"] == pytest.approx(stats["weight"], rel=1e-6) and stats["clip_fraction"] == 0
    assert got.norm() > 0
    total = sum(len(a) for g in groups for a in g.answers)
    loss = sum(
        -float(adv) / total * full_log_probs(model, g.prompt, a, 0.7).sum()
        for g in groups for a, adv in zip(g.answers, g.advantage, strict=True)
    )  # fmt: skip
    assert (
        abs(
            stats["loss"]
            + sum(float(v) * len(a) for g in groups for a, v in zip(g.answers, g.advantage, strict=True)) / total
        )
        < 1e-6
    )
    loss.backward()
    want = torch.cat([p.grad.flatten() for p in model.parameters()])
    model.zero_grad()
    assert (got - want).norm() < 1e-5 * want.norm()


def test_17_equal_rewards_give_no_gradient(model):
    """Property 17: also with float noise; the KL gradient stays where its coefficient is above 0."""
    noisy = [[0.1 + 0.2, 0.3, 0.3, 0.1 + 0.2]]
    assert not rl.advantages(torch.tensor(noisy), torch.ones(1, 4, dtype=torch.bool)).any()
    got, stats = gradient(model, grpo(), make_groups(noisy))
    assert stats is None and not got.any()
    other = GPT(config_of("smoke", 128)).init_weights(1, std=0.15).requires_grad_(False)
    got, _ = gradient(model, grpo(reference=other, kl=0.1, zero_variance="keep"), make_groups(noisy))
    assert got.norm() > 0


def test_18_advantages():
    """Property 18: shift-invariant, zero sum, n - 1 in the std."""
    r = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(r, dtype=torch.bool)
    a = rl.advantages(r, valid)
    torch.testing.assert_close(a, rl.advantages(r + 7, valid), atol=1e-4, rtol=0)
    assert a.sum(1).abs().max() < 1e-5
    two = rl.advantages(torch.tensor([[1.0, 0.0]]), torch.ones(1, 2, dtype=torch.bool))
    torch.testing.assert_close(two, torch.tensor([[0.70711, -0.70711]]), atol=1e-4, rtol=0)


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_19_20_gradient_is_independent_of_batching_order_and_ranks(model, aggregation):
    """Properties 19, 20: the global denominator makes micro-batches, row order and world size irrelevant."""
    groups = make_groups(REWARDS)
    want, _ = gradient(model, grpo(aggregation=aggregation), groups)
    for flags, order in (({"micro_tokens": 16}, [0, 1, 2]), ({"micro_tokens": 60}, [2, 0, 1])):
        got, _ = gradient(model, grpo(aggregation=aggregation, **flags), [groups[i] for i in order])
        assert (got - want).norm() < 1e-5 * want.norm()
    ranks = [Process(r, 2, torch.device("cpu"), torch.float32) for r in (0, 1)]
    got = sum(gradient(model, grpo(process, aggregation=aggregation), groups)[0] for process in ranks)
    assert (got - want).norm() < 1e-5 * want.norm()


def test_21_clipping_is_one_sided():
    """Property 21: for A > 0 only a ratio above 1 + high loses its gradient, for A < 0 only one below 1 - low."""
    for advantage, ratio, clipped in itertools.product((1.0, -1.0), (0.5, 1.0, 1.5), (None,)):
        clipped = (advantage > 0 and ratio > 1.2) or (advantage < 0 and ratio < 0.8)
        lp = torch.tensor([math.log(ratio)], requires_grad=True)
        out = rl.policy_loss(lp, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2, 0.2)
        out.loss.backward()
        assert (lp.grad.item() == 0) == clipped and (out.stats["clip_fraction"] == 1) == clipped


def test_22_k3():
    x = torch.tensor([-50.0, -1.0, 0.0, 1e-4, 1.0, 50.0])
    value = rl.k3(torch.zeros(6), x)
    assert (value >= 0).all() and value[2] == 0 and value.isfinite().all()


def test_24_skipping_silent_groups_changes_nothing(model):
    groups = make_groups(REWARDS)
    a, _ = gradient(model, grpo(zero_variance="skip"), groups)
    b, _ = gradient(model, grpo(zero_variance="keep"), groups)
    assert (a - b).norm() < 1e-6 * b.norm()


def test_25_format_score_reaches_the_reward():
    config = rl.GRPOConfig(format_score=0.1)
    assert rl.reward_of("so \\boxed{3}", "4", True, config) == (0.1, False)
    assert rl.reward_of("so \\boxed{3}", "4", True, rl.GRPOConfig()) == (0.0, False)
    assert rl.reward_of("so \\boxed{4}", "4", True, config) == (1.0, True)
    assert rl.reward_of("so \\boxed{4}", "4", False, config) == (0.0, False)


# -------------------------------------------------------------------------------------------------- parallel averaging


def parallel_step(model, grads_rl, grads_sft, rates=(1e-3, 1e-3), decay=0.0, weight=0.5, swap=False):
    """One averaged step from given gradients, through the code that average.py uses."""
    optimizers = [make_optimizer(model, rate, decay, (0.9, 0.999)) for rate in rates]
    streams = average.TwoStreams(model, *optimizers)
    at = streams.snapshot()

    def take(i):
        for p, g in zip(model.parameters(), (grads_rl, grads_sft)[i], strict=True):
            p.grad = g.clone()

    first, second = (1, 0) if swap else (0, 1)
    take(first)
    delta = streams.take_update(optimizers[first], rates[first], at)
    take(second)
    streams.step(optimizers[second], rates[second])
    streams.average(at, delta, 1 - weight if swap else weight)
    return [p.detach().clone() for p in model.parameters()], optimizers


def test_26_to_32_parallel_averaging():
    """Properties 26-29, 31, 32, on the real optimizer code."""

    def fresh():
        return GPT(config_of("smoke", 128)).init_weights(0)

    gen = torch.Generator().manual_seed(0)
    a, b = ([torch.randn(p.shape, generator=gen) for p in fresh().parameters()] for _ in range(2))
    start = [p.detach().clone() for p in fresh().parameters()]

    def ordinary(grads, rate, decay=0.0):
        m = fresh()
        optimizer = make_optimizer(m, rate, decay, (0.9, 0.999))
        for p, g in zip(m.parameters(), grads, strict=True):
            p.grad = g.clone()
        optimizer.step()
        return [p.detach() for p in m.parameters()], optimizer

    rl_only, rl_state = ordinary(a, 1e-3)
    got, _ = parallel_step(fresh(), a, b, rates=(1e-3, 0.0))  # 26
    assert all(torch.equal(x, s + 0.5 * (r - s)) for x, s, r in zip(got, start, rl_only, strict=True))
    got, _ = parallel_step(fresh(), a, a)  # 27, up to the rounding of θ̄ + Δ
    assert all((x - r).abs().max() < 2e-7 for x, r in zip(got, rl_only, strict=True))
    got, optimizers = parallel_step(fresh(), a, b)  # 28
    for mine, alone in zip(optimizers[0].state.values(), rl_state.state.values(), strict=True):
        assert all(torch.equal(mine[k], alone[k]) for k in alone)
    swapped, _ = parallel_step(fresh(), a, b, swap=True)  # 29
    assert all(torch.equal(x, y) for x, y in zip(got, swapped, strict=True))
    zero = [torch.zeros_like(g) for g in a]  # 31: decay acts once per stream, each at its own rate, then averaged
    got, _ = parallel_step(fresh(), zero, zero, rates=(1e-2, 3e-2), decay=0.1)
    head = len(got) - 1
    torch.testing.assert_close(got[head], start[head] * (1 - 0.5 * (1e-3 + 3e-3)), atol=1e-8, rtol=1e-6)
    got, _ = parallel_step(fresh(), a, b, rates=(1e-6, 1e-6))  # 32
    assert all(not torch.equal(x, s) for x, s in zip(got, start, strict=True) if x.dim() > 1)


def test_curriculum_and_weights():
    config = SimpleNamespace(mode="curriculum", curriculum=3, weight=0.5, weight_end=0.0, adapt="")
    kinds = "".join("R" if average.is_rl_step(config, s) else "S" for s in range(12))
    assert kinds == "SSSRSSRRSRRR"
    assert [average.weight_at(config, s, 3, 1, 1, 1) for s in range(3)] == [0.5, 0.25, 0.0]


# ---------------------------------------------------------------------------------------------------------- evaluation


def test_35_pass_at_k_and_majority_vote():
    """Property 35: brute force; k = 1 is the mean; k > n refused; equal answers share a vote, the first wins a tie."""
    for n, c, k in [(5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 3, 1)]:
        right = [True] * c + [False] * (n - c)
        brute = np.mean([any(s) for s in itertools.combinations(right, k)])
        assert pass_at_k(n, np.array([c]), k)[0] == pytest.approx(brute)
    assert pass_at_k(8, np.array([1, 4]), 1).tolist() == [1 / 8, 4 / 8]
    with pytest.raises(ValueError, match="pass@9"):
        pass_at_k(8, np.array([1]), 9)
    assert majority_vote(["3", "0.5", "\\frac12", None]) == "0.5"
    assert majority_vote(["7", "8"]) == "7" and majority_vote([None]) is None


def test_bootstrap_interval_covers():
    """A 95% interval over 60 questions covers the true mean in 85 to 100 of 100 repetitions (binomial, 1e-3)."""
    rng = np.random.default_rng(0)
    hits = sum(i["low"] <= 0.3 <= i["high"] for i in (mean_interval(rng.random(60) < 0.3, s) for s in range(100)))
    assert 85 <= hits <= 100


def test_cursor_is_a_permutation_per_epoch():
    a = Cursor(7, 3)
    first, second = a.draw(7), a.draw(7)
    assert sorted(first) == sorted(second) == list(range(7)) and first != second
    b = Cursor(7, 3)
    b.position = 5
    assert b.draw(4) == (first + second)[5:9]
