"""The traps of GRPO and of parallel averaging, each a test that names its property (9, 10, 14 - 32).

The other properties' tests are beside what they test: test_sampler, test_kernels, test_eval, test_loader,
test_questions, test_verifier, test_world; those of whole runs (22, 29, 30, 33, 34) in test_runs and test_stages.
"""

import itertools
import math

import numpy as np
import pytest
import torch
from conftest import same
from hypothesis import given
from hypothesis import strategies as st

import average
import rl
import sampler
import sft
from data.prompt import encode_prompt
from data.tokenizer import load_tokenizer
from model import GPT, answers_flops, config_of
from optimizer import make_optimizer, optimizer_step
from process import Process
from runtime import Run
from verifier import GRADERS

CPU = Process(0, 1, torch.device("cpu"), torch.float32)


class Rank(Process):
    """One of several ranks, which all run here; the test adds up what they make."""

    def sum(self, values):
        return values


@pytest.fixture(scope="module")
def model():
    return GPT(config_of("smoke", 128)).init_weights(0, std=0.15)


def full_distributions(model, prompt, answer, temperature):
    """(len(answer), V) log-probs by one plain forward of the row, in float64 from the hidden states on."""
    tokens = torch.tensor([prompt + answer])
    hidden = model(tokens)[0, len(prompt) - 1 : -1].double()
    return (hidden @ model.head.weight.double().T / temperature).log_softmax(-1)


def full_log_probs(model, prompt, answer, temperature):
    """(len(answer),) of the answer's tokens."""
    return full_distributions(model, prompt, answer, temperature).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


# ---------------------------------------------------------------------------------------------------------------------
# GRPO
# ---------------------------------------------------------------------------------------------------------------------


def make_groups(rewards, seed=0, length=None, invalid=()):
    """A group of random answers per row of rewards; `invalid` are (group, answer) that do not count."""
    rng, groups = np.random.default_rng(seed), []
    for i, row in enumerate(rewards):
        lengths = [length] * len(row) if length else rng.integers(1, 12, size=len(row))
        answers = [rng.integers(6, 120, size=n).tolist() for n in lengths]
        valid = [(i, r) not in invalid for r in range(len(row))]
        prompt = rng.integers(6, 120, size=5 + i).tolist()
        scores = rl.advantages(torch.tensor([row]), torch.tensor([valid]))[0].tolist()
        groups.append(
            [
                rl.Answer({"id": i}, prompt, a, "", np.zeros(len(a), np.float32), v, v, r, r > 0, score)
                for a, v, r, score in zip(answers, valid, row, scores, strict=True)
            ]
        )
    return groups


QUESTIONS = [{"id": str(i), "question": f"Tom has {i} pears. How many?", "answer": str(i)} for i in range(5)]


def grpo(process=CPU, reference=None, **flags):
    config = rl.GRPOConfig(**{"prompts": 3, "rollouts": 4, "max_new_tokens": 16, **flags})
    return rl.GRPO(config, QUESTIONS, load_tokenizer("world"), process, 0, 256, reference)


def gradient(model, g, groups, on_policy=True):
    """The whole gradient as one vector, and the stats."""
    model.zero_grad()
    stats = g.backward(model, groups, on_policy)
    got = flat(torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters())
    model.zero_grad()
    return got, stats


def flat(grads):
    return torch.cat([x.flatten() for x in grads])


def for_the_world(stop_logit=0.0):
    """A small model with the world's vocabulary, whose answers differ; with a stop_logit of 9 many of them end
    early."""
    tokenizer = load_tokenizer("world")
    model = GPT(config_of("smoke", tokenizer.padded_vocab_size)).init_weights(0, std=0.15)
    with torch.no_grad():
        state = model(torch.arange(100)[None])[0].mean(0)
        model.head.weight[tokenizer.eos] = stop_logit * state / state.square().sum()
    return model


def step_of(model, g, optimizer, lr, folder, kept=None):
    """One step of rl.py; `kept` gets its groups."""
    run = Run(rl.Config(out=str(folder / "new")), "rl", g.process)
    run.use(model, g.tokenizer)
    groups, metrics = rl.grpo_step(run, g, optimizer, lr)
    if kept is not None:
        kept.extend(groups)
    return metrics


def by_parity(text, answer, finished, config):
    """A reward that varies: 1 for answers with an odd number of characters."""
    return float(len(text) % 2), False


REWARDS = [[1.0, 0.0, 0.0, 1.0], [0.0, 0.0, 0.0, 0.0], [0.0, 1.0, 0.0, 0.0]]


def test_10_rollouts_after_an_update_come_from_the_new_weights(tmp_path, monkeypatch):
    """Property 10: rl.py's second step samples with the weights that its first update left: the recorded log-probs are
    those of a full forward of the updated model and far from those of the old one."""
    monkeypatch.setattr(rl, "reward_of", by_parity)
    trained, g = for_the_world(), grpo(temperature=0.7)
    old = for_the_world()
    optimizer = make_optimizer(trained, 1e-2, 0.0, (0.9, 0.999))
    assert step_of(trained, g, optimizer, 1e-2, tmp_path)["updates"] == 1
    groups, _ = g.sample(trained)
    away = 0.0
    with torch.no_grad():
        for a in itertools.chain(*groups):
            recorded = torch.from_numpy(a.old_log_prob).double()
            torch.testing.assert_close(recorded, full_log_probs(trained, a.prompt, a.tokens, 0.7), atol=1e-4, rtol=0)
            away = max(away, (recorded - full_log_probs(old, a.prompt, a.tokens, 0.7)).abs().max().item())
    assert away > 0.1


BF16 = Process(0, 1, torch.device("cpu"), torch.bfloat16)


def test_22_the_reference_in_bf16_has_the_policys_bits():
    """Property 22 under autocast: the reference, whose matrices are kept in bf16, has the log-probs of an equal policy
    to the bit, so that the KL is exactly 0; it takes 2 bytes for each of their numbers, and fp32 leaves it as it
    was."""
    model, groups = for_the_world(), make_groups(REWARDS)
    reference = rl.kl_reference(for_the_world(), torch.bfloat16)
    with torch.no_grad(), BF16.autocast():
        for packed, _ in grpo(BF16).batches(groups):
            ours, theirs = (packed.log_probs(m, 0.7).log_prob for m in (model, reference))
            assert torch.equal(ours, theirs)
    assert grpo(BF16, reference, kl=0.1).backward(model, groups, True)["kl"] == 0
    matrices = sum(m.weight.numel() for m in model.modules() if isinstance(m, torch.nn.Linear))
    assert sum(p.nbytes for p in reference.parameters()) == 4 * model.n_params - 2 * matrices
    exact = rl.kl_reference(for_the_world(), torch.float32)
    assert all(map(torch.equal, exact.parameters(), model.parameters()))


@pytest.mark.parametrize("flags", [{"minibatch": 1}, {"inner_epochs": 2}, {"minibatch": 2, "inner_epochs": 2}])
@pytest.mark.parametrize("process", [CPU, BF16])
def test_15_before_any_update_every_ratio_is_1(tmp_path, monkeypatch, process, flags):
    """Property 15 where a step makes several updates, in fp32 and in bf16: with a learning rate of 0 the ratio of every
    token in every minibatch is 1 within 1e-3. p_old is that of the training forward; the sampler's differs in bf16."""
    monkeypatch.setattr(rl, "reward_of", by_parity)
    ratios, policy_loss = [], rl.policy_loss

    def recording(log_prob, old, *args):
        ratios.append((log_prob - old).detach().exp())
        return policy_loss(log_prob, old, *args)

    monkeypatch.setattr(rl, "policy_loss", recording)
    policy, g = for_the_world(), grpo(process, temperature=0.7, rollouts=8, **flags)
    sampled, groups, recompute = [], [], g.recompute

    def before(model, minibatches):
        sampled.extend((a, a.old_log_prob) for group in minibatches[-1] for a in group)
        return recompute(model, minibatches)

    monkeypatch.setattr(g, "recompute", before)
    optimizer = make_optimizer(policy, 0.0, 0.0, (0.9, 0.999))
    result = step_of(policy, g, optimizer, 0.0, tmp_path, groups)
    assert len(ratios) == result["updates"] == len(g.minibatches(groups))
    assert max((r - 1).abs().max().item() for r in ratios) < 1e-3
    apart = max(np.abs(s - a.old_log_prob).max() for a, s in sampled)
    assert apart > 3e-3 if process is BF16 else apart < 1e-4
    # forward and backward of every update cost 3 forward passes; the old log-probs of each answer one, but for those of
    # the first minibatch where it does not come again
    epoch, first = (rl.sampling_metrics(some, policy, 1.0)["flops"] for some in (groups, g.minibatches(groups)[0]))
    epochs = g.config.inner_epochs  # sampling has cost one epoch too
    row = sum(len(g[0].prompt) + sum(len(a.tokens) - 1 for a in g) for g in groups)  # the last token is no input
    assert result["trained_tokens"] == epochs * row
    assert result["flops"] == pytest.approx((3 * epochs + 2) * epoch - first * (epochs == 1))


def test_15_later_updates_divide_by_the_probabilities_before_the_first(tmp_path, monkeypatch):
    """Property 15: the second update over the same answers has the p_old of the first and a p of its own."""
    monkeypatch.setattr(rl, "reward_of", by_parity)
    seen, policy_loss = [], rl.policy_loss
    record = lambda new, old, *more: seen.append((new.detach(), old)) or policy_loss(new, old, *more)  # noqa: E731
    monkeypatch.setattr(rl, "policy_loss", record)
    policy = for_the_world()
    step_of(policy, grpo(inner_epochs=2), make_optimizer(policy, 1e-2, 0.0, (0.9, 0.999)), 1e-2, tmp_path)
    (first, first_old), (second, second_old) = seen
    assert torch.equal(first, first_old) and torch.equal(first, second_old) and (second - first).abs().max() > 0.1


def test_15_one_update_a_step_needs_no_old_log_probs(tmp_path, monkeypatch):
    """Property 15: with one update a step p_old is p itself: no forward pass is spent on it."""
    monkeypatch.setattr(rl, "reward_of", by_parity)
    monkeypatch.setattr(rl.GRPO, "recompute", None)
    policy, g = for_the_world(), grpo()
    optimizer = make_optimizer(policy, 1e-3, 0.0, (0.9, 0.999))
    assert step_of(policy, g, optimizer, 1e-3, tmp_path)["ratio"] == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.4])
def test_14_the_loss_applies_the_sampling_temperature(monkeypatch, temperature):
    """Property 14: with the recorded log-probs as p_old, the ratio of fresh rollouts is 1 at any temperature, since the
    sampler and the loss divide by the same."""
    monkeypatch.setattr(rl, "reward_of", by_parity)
    policy, g = for_the_world(), grpo(temperature=temperature, clip_low=1e-3, clip_high=1e-3)
    groups, _ = g.sample(policy)
    _, stats = gradient(policy, g, groups, on_policy=False)
    assert stats["ratio"] == pytest.approx(1, rel=1e-4) and stats["clip_fraction"] == 0


def test_14_15_16_first_update_is_reinforce(model):
    """Properties 14, 15, 16: at the sampling temperature, ratio exactly 1, nothing clipped, and the gradient of
    -Σ w A log p."""
    groups = make_groups(REWARDS)
    got, stats = gradient(model, grpo(temperature=0.7), groups)
    assert stats["ratio"] == pytest.approx(1, rel=1e-6) and stats["clip_fraction"] == 0
    answers = list(itertools.chain(*groups))
    total = sum(len(a.tokens) for a in answers)
    assert stats["loss"] == pytest.approx(-sum(a.advantage * len(a.tokens) for a in answers) / total, abs=1e-6)
    loss = sum(-a.advantage / total * full_log_probs(model, a.prompt, a.tokens, 0.7).sum() for a in answers)
    want = flat(torch.autograd.grad(loss, list(model.parameters())))
    assert (got - want).norm() < 1e-5 * want.norm()


def test_14_kl_and_entropy_are_those_of_the_formula(model):
    """Property 14 for the other terms of the loss: kl Σ w k3 - entropy Σ w H, both at the sampling temperature, in
    gradient and in the logged KL."""
    groups = make_groups([[0.0] * 3])
    other = GPT(config_of("smoke", 128)).init_weights(1, std=0.15).requires_grad_(False)
    got, stats = gradient(model, grpo(temperature=0.7, reference=other, kl=0.3, entropy=0.2), groups)
    kl = entropy = 0.0
    for a in groups[0]:
        p = full_distributions(model, a.prompt, a.tokens, 0.7)
        entropy = entropy - (p.exp() * p).sum()
        log_r = full_log_probs(other, a.prompt, a.tokens, 0.7) - p.gather(1, torch.tensor(a.tokens)[:, None]).squeeze(1)
        kl = kl + (log_r.exp() - 1 - log_r).sum()
    total = sum(len(a.tokens) for a in groups[0])
    assert stats["kl"] == pytest.approx(kl.item() / total, rel=1e-4)
    assert (
        stats["flops"] == 4 * rl.sampling_metrics(groups, model, 1.0)["flops"]
    )  # forward, backward; reference's forward
    want = flat(torch.autograd.grad((0.3 * kl - 0.2 * entropy) / total, list(model.parameters())))
    assert (got - want).norm() < 1e-4 * want.norm()


@pytest.mark.parametrize(("aggregation", "length"), [("token", 7), ("sequence", None), ("constant", 7)])
def test_15_the_first_loss_is_0_and_its_gradient_is_not(model, aggregation, length):
    """Property 15: where every answer weighs the same (equal lengths, or the mean over answers), the advantages' zero
    sum makes the loss 0."""
    g = grpo(aggregation=aggregation, max_new_tokens=0)  # 0: the tokenizer's default
    got, stats = gradient(model, g, make_groups(REWARDS, length=length))
    assert abs(stats["loss"]) < 1e-7 and got.norm() > 1e-3


def test_17_equal_rewards_give_no_gradient(model):
    """Property 17: also with float noise; the KL gradient stays where its coefficient is above 0."""
    noisy = [[0.3 + 3e-8, 0.3, 0.3, 0.3 + 3e-8]]  # in fp32, too
    for kind, dtype in itertools.product(("std", "mean"), (torch.float32, torch.float64)):
        rewards = torch.tensor(noisy, dtype=dtype)
        assert len(set(rewards[0].tolist())) == 2
        assert not rl.advantages(rewards, torch.ones(1, 4, dtype=torch.bool), kind).any()
    got, stats = gradient(model, grpo(), make_groups(noisy))
    assert stats is None and not got.any()
    got, stats = gradient(model, grpo(), make_groups([*noisy, REWARDS[0]]))
    alone, _ = gradient(model, grpo(), make_groups([*noisy, REWARDS[0]])[1:])
    assert stats is not None and torch.nn.functional.cosine_similarity(got, alone, dim=0) > 1 - 1e-6
    other = GPT(config_of("smoke", 128)).init_weights(1, std=0.15).requires_grad_(False)
    got, _ = gradient(model, grpo(reference=other, kl=0.1), make_groups(noisy))
    assert got.norm() > 0


def test_17_a_negative_entropy_coefficient_acts(model):
    """Property 17: with groups of equal rewards the entropy's gradient is all there is, and changes sign with it."""
    groups = make_groups([[0.0] * 4])
    up, _ = gradient(model, grpo(entropy=0.1), groups)
    down, _ = gradient(model, grpo(entropy=-0.1), groups)
    assert up.norm() > 0 and torch.equal(up, -down)


def test_17_a_step_without_signal_makes_no_update(tmp_path, model):
    """Property 17: neither weight decay nor momentum move the weights on groups of equal rewards."""
    trained = GPT(model.config)
    trained.load_state_dict(model.state_dict())
    g, optimizer = grpo(), make_optimizer(trained, 1e-2, 0.5, (0.9, 0.999))
    g.sample = lambda _: (make_groups(REWARDS), {"flops": 0.0})
    assert step_of(trained, g, optimizer, 1e-2, tmp_path)["updates"] == 1  # which leaves momentum
    before = {k: v.clone() for k, v in trained.state_dict().items()}
    assert not same(before, dict(model.state_dict()))
    g.sample = lambda _: (make_groups([[1.0] * 4, [0.0] * 4]), {"flops": 0.0})
    assert step_of(trained, g, optimizer, 1e-2, tmp_path)["updates"] == 0
    assert same(before, dict(trained.state_dict()))


def test_18_advantages():
    """Property 18: shift-invariant, zero sum, n - 1 in the std; answers that do not count have none and shift no
    other."""
    r = torch.rand(3, 6, generator=torch.Generator().manual_seed(0))
    valid = torch.ones_like(r, dtype=torch.bool)
    for kind in ("std", "mean"):
        a = rl.advantages(r, valid, kind)
        torch.testing.assert_close(a, rl.advantages(r + 7, valid, kind), atol=1e-4, rtol=0)
        assert a.sum(1).abs().max() < 1e-5 and a.any(1).all()
    torch.testing.assert_close(rl.advantages(r, valid, "mean"), r - r.mean(1, keepdim=True))
    torch.testing.assert_close(rl.advantages(r, valid), (r - r.mean(1, keepdim=True)) / r.std(1, keepdim=True))
    two = rl.advantages(torch.tensor([[1.0, 0.0]]), valid[:1, :2])
    torch.testing.assert_close(two, torch.tensor([[0.70711, -0.70711]]), atol=1e-4, rtol=0)
    valid[:, 4:] = False
    some = rl.advantages(r, valid)
    assert not some[:, 4:].any()
    torch.testing.assert_close(some[:, :4], rl.advantages(r[:, :4], valid[:, :4]))


def test_19_answers_stay_with_their_question(monkeypatch):
    """Property 19: through sampling in slots and on ranks each answer is judged and kept with its own question, and its
    log-probs continue that question's prompt; minibatches divide no group and hold each once an epoch."""
    seen = []

    def reward_of(text, answer, finished, config):
        seen.append((text, answer))
        return float(len(text) + int(answer)) % 3, False

    monkeypatch.setattr(rl, "reward_of", reward_of)
    monkeypatch.setattr(sampler, "SLOTS", 3)
    policy, g = for_the_world(), grpo(prompts=5, minibatch=2, inner_epochs=2)
    groups, _ = g.sample(policy)
    assert [len(group) for group in groups] == [4] * 5
    assert sorted(a.question["id"] for a in itertools.chain(*groups)) == [q["id"] for q in QUESTIONS for _ in range(4)]
    with torch.no_grad():
        for a in itertools.chain(*groups):
            assert g.tokenizer.decode(a.prompt).startswith(a.question["question"])
            text = g.tokenizer.decode(a.tokens[: len(a.tokens) - a.finished])
            assert a.text == text and (text, a.question["answer"]) in seen
            assert a.reward == float(len(text) + int(a.question["answer"])) % 3
            want = full_log_probs(policy, a.prompt, a.tokens, 1.0)
            torch.testing.assert_close(torch.from_numpy(a.old_log_prob).double(), want, atol=1e-4, rtol=0)
    batches = g.minibatches(groups)
    assert [len(b) for b in batches] == [2, 2, 1] * 2
    assert [id(x) for b in batches for x in b] == [id(x) for x in groups] * 2


def test_20_token_weights_by_hand():
    """Property 20: answers of 4, 2 and 6 tokens, of which the last does not count, with 8 tokens allowed: a token
    weighs 1/6 of all; 1/4 or 1/2 of its answer, an answer 1/2; 1/8, an answer 1/2."""
    lengths, valid = torch.tensor([4, 2, 6]), torch.tensor([True, True, False])
    for kind, want in (
        ("token", [1 / 6, 1 / 6, 0]),
        ("sequence", [1 / 8, 1 / 4, 0]),
        ("constant", [1 / 16, 1 / 16, 0]),
    ):
        torch.testing.assert_close(rl.token_weights(lengths, valid, kind, 8), torch.tensor(want))
        assert not rl.token_weights(lengths, valid & False, kind, 8).any()


@pytest.mark.parametrize("aggregation", ["token", "sequence", "constant"])
def test_19_20_gradient_is_independent_of_batching_order_and_ranks(model, aggregation):
    """Properties 19, 20: the global denominator makes micro-batches, row order and world size irrelevant, with KL and
    entropy, and answers that do not count, too."""
    other = GPT(config_of("smoke", 128)).init_weights(1, std=0.15).requires_grad_(False)
    for settings in ({}, {"reference": other, "kl": 0.1, "entropy": 0.01}):
        groups = make_groups(REWARDS, invalid=[(0, 2)])
        settings["aggregation"] = aggregation
        want, _ = gradient(model, grpo(**settings), groups)
        for micro_tokens, order in ((16, [0, 1, 2]), (60, [2, 0, 1])):
            process = Process(0, 1, torch.device("cpu"), torch.float32, micro_tokens=micro_tokens)
            got, _ = gradient(model, grpo(process, **settings), [groups[i] for i in order])
            assert (got - want).norm() < 1e-5 * want.norm()
        ranks = [Rank(r, 2, torch.device("cpu"), torch.float32) for r in (0, 1)]
        got = sum(gradient(model, grpo(process, **settings), groups)[0] for process in ranks)
        assert (got - want).norm() < 1e-5 * want.norm()


def test_21_clipping_is_one_sided():
    """Property 21: for A > 0 only a ratio above 1 + high loses its gradient, for A < 0 only one below 1 - low."""
    for advantage, ratio in itertools.product((1.0, -1.0), (0.5, 0.75, 1.0, 1.25, 1.5)):
        clipped = (advantage > 0 and ratio > 1.3) or (advantage < 0 and ratio < 0.8)
        lp = torch.tensor([math.log(ratio)], requires_grad=True)
        out = rl.policy_loss(lp, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2, 0.3)
        out.loss.backward()
        assert (lp.grad.item() == 0) == clipped and (out.stats["clip_fraction"] == 1) == clipped


def test_21_extreme_ratios_are_finite():
    """Property 21: the loss bounds log ρ at ± 20: at log-ratios of ± 30 and ± 500 loss and gradient are finite, at most
    e²⁰ in size, and a token beyond the bound has no gradient; --dual_clip holds what A < 0 costs to c."""
    for log_ratio, advantage in itertools.product((-500.0, -30.0, 30.0, 500.0), (-1.0, 1.0)):
        for dual_clip in (0.0, 3.0):
            lp = torch.tensor([log_ratio], requires_grad=True)
            out = rl.policy_loss(lp, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2, 0.2, dual_clip)
            out.loss.backward()
            assert abs(out.loss.item()) <= (3.0 if dual_clip else math.exp(20) * 1.001) and lp.grad.item() == 0


@given(st.floats(-19.9, 19.9), st.floats(-3, 3, width=32), st.sampled_from([0.0, 1.5, 3.0]))
def test_21_bounds_change_nothing_in_range(log_ratio, advantage, dual_clip):
    """Property 21: within ± 20 loss, gradient and statistics are those of the formula without a bound, bit for bit; and
    with --dual_clip c wherever A ≥ 0 or the ratio is at most c."""

    def plain(log_prob):
        ratio = log_prob.exp()
        return -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.3) * advantage).sum()

    results = []
    for dual in (False, True):
        lp = torch.tensor([log_ratio], requires_grad=True)
        if dual:
            out = rl.policy_loss(lp, torch.zeros(1), torch.tensor([advantage]), torch.ones(1), 0.2, 0.3, dual_clip)
            loss = out.loss
        else:
            loss = plain(lp)
        loss.backward()
        results.append((loss.item(), lp.grad.item()))
    ratio = torch.tensor(log_ratio).exp().item()
    if dual_clip and advantage < 0 and ratio > dual_clip:
        assert results[1] == (pytest.approx(-dual_clip * advantage), 0.0) and out.stats["clip_fraction"] == 1
    else:
        assert results[0] == results[1]


def test_dual_clip_reaches_the_gradient(model):
    """--dual_clip acts in GRPO.backward: old log-probs of -12 make every ratio large, and with c = 3 answers with A < 0
    have no gradient then."""
    groups = make_groups(REWARDS)
    for a in itertools.chain(*groups):
        a.old_log_prob = np.full(len(a.tokens), -12.0, np.float32)
    got, stats = gradient(model, grpo(), groups, on_policy=False)
    assert got.norm() > 1 and stats["loss"] > 100
    got, stats = gradient(model, grpo(dual_clip=3.0), groups, on_policy=False)
    assert not got.any() and stats["loss"] < 3 and stats["clip_fraction"] == pytest.approx(1)


def test_22_k3():
    """Property 22: k3 is never negative, exactly 0 at equal weights, finite at log-ratios of ±50 (and ±500), as its
    gradient is; its mean over samples of the policy is the KL divergence."""
    log_prob = torch.zeros(6, requires_grad=True)
    value = rl.k3(log_prob, torch.tensor([-500.0, -50.0, 0.0, 1e-4, 50.0, 500.0]))
    assert (value >= 0).all() and value[2] == 0 and value.isfinite().all()
    value.sum().backward()
    assert log_prob.grad.isfinite().all() and log_prob.grad[2] == 0
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.3, 0.5])
    torch.testing.assert_close((p * rl.k3(p.log(), q.log())).sum(), (p * (p / q).log()).sum())


def test_23_prompt_and_pad_positions_get_zero_gradient(model, monkeypatch):
    """Property 23: the loss reaches only the states that predict answer tokens: the prompt's last one and the answers'.
    Prompts of unequal and answers of unequal length are in one batch; answers that do not count get exactly zero,
    too."""
    groups, seen = make_groups([REWARDS[0], REWARDS[2]], invalid=[(0, 1)]), []
    packed_batches = rl.packed_batches

    def spy(*args):
        for packed, parts in packed_batches(*args):
            seen.append(parts)
            yield packed, parts

    monkeypatch.setattr(rl, "packed_batches", spy)
    states = []
    hook = model.register_forward_hook(lambda module, args, hidden: (hidden.retain_grad(), states.append(hidden))[0])
    gradient(model, grpo(entropy=0.01), groups)
    hook.remove()
    (parts,), (hidden,) = seen, states
    got = hidden.grad[0].abs().sum(-1) > 0  # (N,)
    want, place = torch.zeros(len(got), dtype=torch.bool), 0
    assert sorted((i, r) for i, rows in parts for r in rows) == [(i, r) for i in range(2) for r in range(4)]
    for i, _ in parts:
        place += len(groups[i][0].prompt)
        want[place - 1] = True
    for i, rows in parts:
        for r in rows:
            size = len(groups[i][r].tokens) - 1  # the last token is no input
            want[place : place + size] = groups[i][r].valid
            place += size
    assert place == len(got) and torch.equal(got, want)


@pytest.mark.parametrize("loss", ["token_mean", "token_sum"])
def test_23_sft_trains_on_solutions_only(loss):
    """Property 23 in SFT: two solutions of a question have the gradient of their mean (or summed) NLL in rows of their
    own; the logged loss is the mean. A loss on the prompt would give a gradient to other states than those."""
    texts = ["Two. \\boxed{2}", "\\boxed{2}"]
    question = {"id": "1", "question": "Tom has 2 pears. How many?", "solutions": texts, "answer": "2"}
    policy, tokenizer = for_the_world(), load_tokenizer("world")
    stage = sft.SFT(sft.SFTConfig(rows=2, solutions="all", loss=loss), [question], tokenizer, CPU, 0, 256)
    rows, states = stage.draw(), []
    prompt = encode_prompt(question["question"], tokenizer)
    hook = policy.register_forward_hook(lambda module, args, hidden: (hidden.retain_grad(), states.append(hidden))[0])
    metrics = stage.backward(policy, rows)
    hook.remove()
    got = states[0].grad[0].abs().sum(-1) > 0
    total = sum(len(solution) for _, solution in rows)
    # the prompt's last state, shared by both, and those of the solutions but for their last tokens, which are no inputs
    assert got.tolist() == [False] * (len(prompt) - 1) + [True] * (1 + total - 2)
    nll = -sum(full_log_probs(policy, prompt, solution, 1.0).sum() for _, solution in rows)
    assert metrics["sft_loss"] == pytest.approx(nll.item() / total, rel=1e-5)
    assert metrics["sft_tokens"] == len(got)
    assert metrics["flops"] == 3 * answers_flops(
        policy.config, [(len(prompt), [len(solution) for _, solution in rows])]
    )
    want = flat(torch.autograd.grad(nll / (total if loss == "token_mean" else 1), list(policy.parameters())))
    assert (flat(p.grad for p in policy.parameters()) - want).norm() < 1e-5 * want.norm()


def test_24_skipping_silent_groups_changes_nothing(model):
    """Property 24: the denominator counts the groups of equal rewards whether they are computed or not."""
    groups = make_groups(REWARDS)
    for aggregation in ("token", "sequence", "constant"):
        a, some = gradient(model, grpo(aggregation=aggregation), groups)
        every = grpo(aggregation=aggregation)
        every.every_group = True
        b, all_of_them = gradient(model, every, groups)
        assert all_of_them["trained_tokens"] > some["trained_tokens"]  # or nothing was skipped
        assert (a - b).norm() < 1e-6 * b.norm()


def test_25_format_score_reaches_the_reward(monkeypatch):
    """Property 25: a closed box with a wrong answer earns the format score, 0 by default; through rollouts it makes a
    group carry signal that otherwise has none."""
    config = rl.GRPOConfig(format_score=0.1)
    assert rl.reward_of("so \\boxed{3}", "4", True, config) == (0.1, False)
    assert rl.reward_of("so \\boxed{3}", "4", True, rl.GRPOConfig()) == (0.0, False)
    assert rl.reward_of("so 3", "4", True, config) == (0.0, False)
    assert rl.reward_of("so \\boxed{4}", "4", True, config) == (1.0, True)
    assert rl.reward_of("so \\boxed{4}", "4", False, config) == (0.0, False)
    lenient = rl.GRPOConfig(grader="gsm8k", format_score=0.1)
    assert rl.reward_of("so 4", "4", True, lenient) == (1.0, True)
    assert rl.reward_of("so 3", "4", True, lenient) == (0.1, False)
    policy = for_the_world(stop_logit=9.0)
    boxed = set()

    def no_answer_is_right(text, answer):
        return ("none" if len(text) % 2 or boxed.add(text) else None), False

    monkeypatch.setitem(GRADERS, "strict", no_answer_is_right)
    for score in (0.0, 0.1):
        groups, stats = grpo(format_score=score, rollouts=8).sample(policy)
        assert {a.reward for g in groups for a in g} == {0.0, score} and stats["pass_at_n"] == 0
        assert any(map(rl.has_signal, groups)) == (score > 0)


def test_truncated_answers_are_wrong_or_left_out_or_scored(monkeypatch):
    """--truncated wrong: an answer without a stop token has reward 0 and counts; mask: it has neither advantage nor
    gradient; score: it is judged like others."""
    monkeypatch.setitem(GRADERS, "strict", lambda text, answer: ("0", True))
    policy = for_the_world(stop_logit=9.0)
    for kind in ("wrong", "mask", "score"):
        groups, stats = grpo(truncated=kind, rollouts=8).sample(policy)
        finished = np.array([[a.finished for a in g] for g in groups])
        assert 0.1 < stats["truncated"] == 1 - finished.mean() < 0.9
        assert np.array_equal([[a.reward for a in g] for g in groups], (finished | (kind == "score")).astype(float))
        right = finished | (kind == "score")
        assert np.array_equal([[a.right for a in g] for g in groups], right)
        assert (stats["pass_at_1"], stats["pass_at_n"]) == pytest.approx((right.mean(), right.any(1).mean()))
        assert np.array_equal([[a.valid for a in g] for g in groups], finished | (kind != "mask"))
        assert all(
            rl.has_signal(g) == (kind == "wrong" and 0 < sum(f) < 8) for g, f in zip(groups, finished, strict=True)
        )


def test_resampling_draws_until_enough_groups_carry_signal(monkeypatch):
    """--resample: as many batches as are needed for --prompts groups with signal, at most 1 + resample; groups with
    signal come first; all that was drawn is counted and no question's random numbers come twice."""
    policy, drawn = for_the_world(), []

    def reward_of(text, answer, finished, config):
        drawn.append((answer, text))
        return (float(len(drawn) % 2) if answer in ("0", "1") else 0.0), False

    monkeypatch.setattr(rl, "reward_of", reward_of)
    g = grpo(prompts=5, rollouts=4, resample=9)
    for step in range(2):  # every batch is an epoch of the 5 questions, 2 of which carry signal: 3 batches for 5 groups
        groups, stats = g.sample(policy)
        assert len(groups) == 5 and all(map(rl.has_signal, groups))
        assert g.order.position == 15 * (step + 1) and stats["groups_sampled"] == 15
        assert stats["signal"] == pytest.approx(6 / 15) and stats["reward"] == pytest.approx(3 / 15)
    of_one = [text for answer, text in drawn if answer == "3"]
    assert len(of_one) == 24 and len(set(of_one)) > 20
    g = grpo(prompts=5, rollouts=4, resample=1)  # not enough: 4 with signal, and 1 to make up the number
    groups, stats = g.sample(policy)
    assert [rl.has_signal(x) for x in groups] == [True] * 4 + [False] and g.order.position == 10
    groups, stats = grpo(prompts=5, rollouts=4).sample(policy)
    assert sum(map(rl.has_signal, groups)) == 2 and stats["groups_sampled"] == 5


# ---------------------------------------------------------------------------------------------------------------------
# Parallel averaging
# ---------------------------------------------------------------------------------------------------------------------


def fresh():
    return GPT(config_of("smoke", 128)).init_weights(0)


@pytest.fixture(scope="module")
def weights():
    """The weights of fresh(), and two random gradients of their shapes."""
    generator = torch.Generator().manual_seed(0)
    start = [p.detach() for p in fresh().parameters()]
    a, b = ([torch.randn(p.shape, generator=generator) for p in start] for _ in range(2))
    return start, a, b


def ordinary(grads, rate, decay=0.0):
    """One step of AdamW alone."""
    m = fresh()
    optimizer = make_optimizer(m, rate, decay, (0.9, 0.999))
    for p, g in zip(m.parameters(), grads, strict=True):
        p.grad = g.clone()
    optimizer.step()
    return [p.detach() for p in m.parameters()], optimizer


def averaged(grads_rl, grads_sft, rates=(1e-3, 1e-3), decay=(0.0, 0.0), weight=0.5, swap=False):
    """One averaged step from given gradients, through the code that average.py uses."""
    m = fresh()
    optimizers = [make_optimizer(m, rate, d, (0.9, 0.999)) for rate, d in zip(rates, decay, strict=True)]
    at = [p.detach().clone() for p in m.parameters()]

    def step(i):
        for p, g in zip(m.parameters(), (grads_rl, grads_sft)[i], strict=True):
            p.grad = g.clone()
        optimizer_step(m, optimizers[i], CPU, rates[i], 0.0)

    first, second = (1, 0) if swap else (0, 1)
    step(first)
    delta = average.take_update(m, at)
    step(second)
    average.average_updates(m, at, delta, 1 - weight if swap else weight)
    return [p.detach().clone() for p in m.parameters()], optimizers


def test_26_a_rate_of_0_leaves_half_of_the_other_update(weights):
    """Property 26: lr_sft = 0 without decay gives θ̄ + ½ Δ_RL exactly, and the other way round; weights 1 and 0,
    too."""
    start, a, b = weights
    only_a, only_b = ordinary(a, 1e-3)[0], ordinary(b, 1e-3)[0]
    for rates, alone in (((1e-3, 0.0), only_a), ((0.0, 1e-3), only_b)):
        got, _ = averaged(a, b, rates=rates)
        assert all(torch.equal(x, s + 0.5 * (r - s)) for x, s, r in zip(got, start, alone, strict=True))
    for weight, alone in ((1.0, only_a), (0.0, only_b)):
        got, _ = averaged(a, b, weight=weight)
        assert all(torch.equal(x, s + (r - s)) for x, s, r in zip(got, start, alone, strict=True))


def test_27_equal_streams_are_one_ordinary_step(weights):
    """Property 27: the same gradient and state on both sides is one AdamW step, up to the rounding of θ̄ + Δ."""
    _, a, _ = weights
    got, _ = averaged(a, a, decay=(0.1, 0.1))
    assert all((x - r).abs().max() < 2e-7 for x, r in zip(got, ordinary(a, 1e-3, 0.1)[0], strict=True))


def test_28_29_streams_do_not_see_each_other(weights):
    """Properties 28, 29: RL's moments are bit for bit those of RL alone; which stream comes first changes nothing."""
    _, a, b = weights
    got, optimizers = averaged(a, b)
    for optimizer, grads in zip(optimizers, (a, b), strict=True):
        for mine, alone in zip(optimizer.state.values(), ordinary(grads, 1e-3)[1].state.values(), strict=True):
            assert same(mine, alone)
    swapped, _ = averaged(a, b, swap=True)
    assert all(torch.equal(x, y) for x, y in zip(got, swapped, strict=True))


def test_31_decay_acts_once_a_stream_and_is_halved(weights):
    """Property 31: without gradients a matrix shrinks by the mean of the two rates times their decays; embeddings and
    gains do not."""
    start, a, _ = weights
    zero = [torch.zeros_like(g) for g in a]
    got, _ = averaged(zero, zero, rates=(1e-2, 3e-2), decay=(0.1, 0.2))
    for (name, p), s, x in zip(fresh().named_parameters(), start, got, strict=True):
        factor = 1.0 if p.dim() == 1 or name.startswith("embed") else 1 - 0.5 * (1e-2 * 0.1 + 3e-2 * 0.2)
        torch.testing.assert_close(x, s * factor, atol=1e-8, rtol=1e-6, msg=name)


def test_32_small_steps_change_fp32_weights(weights):
    """Property 32: a step of 1e-6 arrives."""
    start, a, b = weights
    got, _ = averaged(a, b, rates=(1e-6, 1e-6))
    assert all(x.dtype == torch.float32 for x in got)
    assert all(not torch.equal(x, s) for x, s in zip(got, start, strict=True) if x.dim() > 1)


def test_curriculum_and_weights():
    """Curriculum rounds have one SFT step fewer and one RL step more each; w moves linearly to its end."""
    config = average.Config(mode="curriculum", turns="3:1", weight="0.5:0")
    kinds = "".join("R" if average.is_rl_step(config, s) else "S" for s in range(18))
    assert kinds == "SSSRSSRRSRRRRRRRRR"
    assert [average.weight_at(config, s, 3, 1, 1, 1) for s in range(3)] == [0.5, 0.25, 0.0]
    config = average.Config(mode="interleaved", turns="2:1")
    assert "".join("R" if average.is_rl_step(config, s) else "S" for s in range(6)) == "SSRSSR"
    for weight, want in (("norm", 0.25), ("signal", 0.6), (0.3, 0.3)):
        config = average.Config(weight=weight)
        assert average.weight_at(config, 0, 3, 3.0, 1.0, 0.6) == want
    config = average.Config(weight="norm")
    assert average.weight_at(config, 0, 3, 0.0, 1.0, 0.0) == 0 and average.weight_at(config, 0, 3, 1.0, 0.0, 1.0) == 1
