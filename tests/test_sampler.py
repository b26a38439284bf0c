"""The sampler's properties, each a test."""

import contextlib
import dataclasses
import itertools
import math
import time
from collections import Counter
from dataclasses import dataclass
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import kernels
import paged
import rl
import sampler
from cli import UserError
from model import GPT, Block, config_of
from paged import PagedCache
from process import Process
from sampler import Continuation, KVCache, choose, sample, uniform

STOP = 5
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def model() -> GPT:
    """Answers of this model end after 1 to some 50 tokens at temperature 0.8: the stop token is made likely."""
    model = GPT(config_of("smoke", 128)).init_weights(0, std=0.1)
    with torch.no_grad():
        model.head.weight[STOP] *= 3
    return model


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    """Ragged; some hold the stop token and token 0, which prefills are padded with."""
    rng = np.random.default_rng(0)
    return [[STOP, 0], *(rng.integers(128, size=n).tolist() for n in (17, 9, 30, 1, 12)), [0, 0, STOP]]


@dataclass
class Rows:
    """Continuations as padded tensors: row r continues prompt r // n. Padding is garbage, which `mask` leaves out."""

    continuations: list[Continuation]
    width: int

    def __post_init__(self):
        self.lengths = torch.tensor([len(c.tokens) for c in self.continuations], dtype=torch.long)
        self.finished = torch.tensor([c.finished for c in self.continuations], dtype=torch.bool)
        self.tokens = torch.full((len(self.lengths), self.width), 77)
        self.log_probs = torch.full((len(self.lengths), self.width), 7.7)
        for row, c in enumerate(self.continuations):
            assert len(c.tokens) == len(c.log_probs) and c.log_probs.dtype == np.float32
            self.tokens[row, : len(c.tokens)] = torch.tensor(c.tokens)
            self.log_probs[row, : len(c.tokens)] = torch.from_numpy(c.log_probs)
        self.mask = torch.arange(self.width) < self.lengths[:, None]


def draw(model, prompts, n=4, slots=sampler.SLOTS, **changes) -> Rows:
    flags = dict(stop=STOP, max_new_tokens=24, temperature=0.8, seed=1) | changes
    with mock.patch.object(sampler, "SLOTS", slots):
        drawn = sample(model, prompts, n, **flags)
    assert [len(rows) for rows in drawn] == [n] * len(prompts)
    return Rows([c for rows in drawn for c in rows], flags["max_new_tokens"])


def answers(rows: Rows) -> list[list[int]]:
    """The generated tokens of each row, its stop token included."""
    return [c.tokens for c in rows.continuations]


def full_log_probs(model, prompt: list[int], answer: list[int], temperature: float) -> Tensor:
    """(len(answer),) by one forward of the whole row, in float64 from the logits on."""
    hidden = model(torch.tensor([prompt + answer]))[0, len(prompt) - 1 : -1]
    logits = model.logits(hidden).double() / (temperature or 1.0)
    return logits.log_softmax(-1).gather(1, torch.tensor(answer)[:, None]).squeeze(1)


def chi_square_limit(df: int, sigmas: float = 3.719) -> float:
    """What a chi-square variable exceeds with probability 1e-4 (Wilson-Hilferty, exact to 1% from 5 degrees on)."""
    return df * (1 - 2 / (9 * df) + sigmas * math.sqrt(2 / (9 * df))) ** 3


def chi_square(tokens: Tensor, p: Tensor) -> tuple[float, int]:
    """Statistic and degrees of freedom of drawn tokens against probabilities; rare tokens are one bin."""
    expected = p.double() * len(tokens)
    count = torch.bincount(tokens, minlength=len(p)).double()
    common = expected >= 5
    expected, count = (torch.cat([x[common], x[~common].sum()[None]]) for x in (expected, count))
    keep = expected > 0
    return ((count - expected)[keep].square() / expected[keep]).sum().item(), int(keep.sum()) - 1


# ---------------------------------------------------------------------------------------------------------------------
# 1 - 4: the same row whatever stands beside it
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8, 1.0])
@torch.no_grad()
def test_1_recorded_log_probs_equal_a_full_forward(model, prompts, temperature):
    """Property 1, fp32 to 1e-4; greedy rows carry the log-probs of temperature 1. Slots are reused."""
    s = draw(model, prompts, temperature=temperature, slots=5)
    for row, answer in enumerate(answers(s)):
        want = full_log_probs(model, prompts[row // 4], answer, temperature)
        torch.testing.assert_close(s.log_probs[row, : len(answer)].double(), want, atol=1e-4, rtol=0)


@torch.no_grad()
def test_1_recorded_log_probs_equal_a_full_forward_in_bf16(model, prompts):
    """Property 1 under bf16 autocast: 8 bits of mantissa over 2 layers give errors of about 0.02; an off-by-one in
    position or token would give errors of 1 and more. The cache is bf16, too."""
    with torch.autocast("cpu", torch.bfloat16):
        s = draw(model, prompts[1:3], n=2, max_new_tokens=8, stop=-1)
        errors = [
            (s.log_probs[row].double() - full_log_probs(model, prompts[1 + row // 2], answer, 0.8)).abs()
            for row, answer in enumerate(answers(s))
        ]
    assert torch.cat(errors).mean() < 0.03 and torch.cat(errors).max() < 0.15


class Casts(TorchDispatchMode):
    """Counts the casts of a model's parameters, by name."""

    def __init__(self, model: GPT):
        super().__init__()
        self.names = {p.data_ptr(): name for name, p in model.named_parameters()}
        self.counts = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].data_ptr() in self.names:
            self.counts[self.names[args[0].data_ptr()]] += 1
        return func(*args, **(kwargs or {}))


def test_weights_are_cast_once(model, prompts):
    """While answers are sampled in bf16, by 30 forward passes and more, each matrix of the products is cast once:
    autocast keeps the copies as long as its context is open, and `sample` casts the head itself."""
    with Casts(model) as casts, torch.autocast("cpu", torch.bfloat16):
        sample(model, prompts, 2, stop=-1, max_new_tokens=30, seed=1)
    matrices = {f"{name}.weight" for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    assert casts.counts == dict.fromkeys(matrices, 1)


@torch.no_grad()
def test_1_logits_are_not_rounded_to_bf16(model, prompts):
    """Property 1 under bf16 autocast: the operands of the head are in bf16, logits and log-probs in fp32. The first
    token's log-prob is that of the products in float64 to 1e-5, where logits in bf16 would be off by 1e-3 and more; the
    loss has the same ones."""
    prompt = prompts[3]
    with torch.autocast("cpu", torch.bfloat16):
        s = draw(model, [prompt], n=64, max_new_tokens=1, stop=-1, temperature=1.0)
        hidden = model(torch.tensor([prompt]))[0, -1:]
        trained = kernels.linear_log_prob(hidden.expand(64, -1), model.head.weight, s.tokens[:, 0]).log_prob
    logits = hidden.bfloat16().double() @ model.head.weight.bfloat16().double().T
    assert (logits.bfloat16().double() - logits).abs().max() > 1e-3
    want = logits.log_softmax(-1)[0, s.tokens[:, 0]]
    torch.testing.assert_close(s.log_probs[:, 0].double(), want, atol=1e-5, rtol=0)
    torch.testing.assert_close(trained.double(), want, atol=1e-5, rtol=0)


def test_2_greedy_output_does_not_depend_on_the_batch(model, prompts):
    """Property 2: alone, in a ragged batch, under other row orders, and in slots that others used before."""
    alone = [answers(draw(model, [p], n=1, temperature=0.0))[0] for p in prompts]
    assert len({tuple(a) for a in alone}) > 3  # else the test could not tell rows apart
    for slots, order in itertools.product((1, 2, 100), ([0, 1, 2, 3, 4, 5, 6], [6, 3, 0, 5, 1, 4, 2])):
        s = draw(model, [prompts[i] for i in order], n=1, temperature=0.0, slots=slots)
        assert answers(s) == [alone[i] for i in order]


def test_3_one_prefill_for_n_rows_equals_n_prefills(model, prompts):
    """Property 3: the rows of one shared prompt are those of n equal prompts, log-probs included."""
    shared, separate = draw(model, prompts[1:3], n=5), draw(model, [prompts[1]] * 5 + [prompts[2]] * 5, n=1)
    assert answers(shared) == answers(separate)
    torch.testing.assert_close(shared.log_probs * shared.mask, separate.log_probs * separate.mask, atol=1e-5, rtol=0)


def test_4_rows_differ_and_repeat_with_the_seed(model, prompts):
    """Property 4: the n rows of a prompt differ; a seed gives the same tokens for any slot count, another seed others."""
    want = answers(draw(model, prompts, n=6))
    for i in range(len(prompts)):
        assert len({tuple(a) for a in want[6 * i : 6 * i + 6]}) >= 4
    for slots in (1, 7, 41):
        assert answers(draw(model, prompts, n=6, slots=slots)) == want
    other = answers(draw(model, prompts, n=6, seed=2))
    assert sum(a == b for a, b in zip(want, other, strict=True)) < len(want) // 4


def test_4_ranks_together_draw_the_rows_of_one_process(model, prompts):
    """Process.spread: one, two, or more ranks than prompts draw the same rows, and every rank gets what was made of
    them in the order of the prompts; a batch that begins at another number draws other rows."""

    class Rank(Process):
        made = None

        def gather(self, thing):  # first each rank makes its share, then all get all
            self.made = thing
            return [rank.made or ([], 0.0) for rank in ranks]

    def run(process, first=0):
        def make(mine):
            flags = dict(stop=STOP, max_new_tokens=24, temperature=0.8, seed=1, numbers=[first + i for i in mine])
            drawn = sample(model, [prompts[i] for i in mine], 3, **flags)
            return [(i, [c.tokens for c in rows]) for i, rows in zip(mine, drawn, strict=True)]

        return process.spread(len(prompts), make)

    drawn = answers(draw(model, prompts, n=3))
    want = [(i, drawn[3 * i : 3 * i + 3]) for i in range(len(prompts))]
    assert run(Process(0, 1, CPU, torch.float32)) == want
    assert run(Process(0, 1, CPU, torch.float32), first=7) != want
    for world in (2, len(prompts) + 2):
        ranks = [Rank(r, world, CPU, torch.float32) for r in range(world)]
        for rank in ranks[1:]:
            with contextlib.suppress(KeyError):  # the shares of later ranks are not there yet
                run(rank)
        assert run(ranks[0]) == want and [run(rank) for rank in ranks] == [want] * world


def test_idle_is_the_time_that_ranks_wait():
    """Process.spread on three ranks of which one has nothing to do, and one half as much as the slowest."""

    class Rank(Process):
        def gather(self, thing):
            return [thing, ([], thing[1] / 2), ([], 0.0)]

    rank = Rank(0, 3, CPU, torch.float32)
    assert rank.spread(1, lambda mine: [time.sleep(0.01) for _ in mine]) == [None]
    assert 0.005 < rank.idle < 1  # half of what the slowest took


# ---------------------------------------------------------------------------------------------------------------------
# 5: the distribution
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vocab", [6, 128, 301])  # below, equal to, and beyond a block of the two-level search, odd
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_5_frequencies_match_the_softmax(vocab, temperature):
    """Property 5: chi-square of 50,000 draws against softmax(logits / T); false alarm 1e-4."""
    g, n = torch.Generator().manual_seed(vocab), 50_000
    logits = torch.randn(vocab, generator=g) * 1.5
    u = torch.from_numpy(uniform(3, np.arange(n), np.zeros(n, dtype=np.int64)))
    token, log_prob = choose(logits.expand(n, -1), u, temperature, 1.0)
    p = (logits.double() / temperature).softmax(-1)
    statistic, df = chi_square(token, p)
    assert df >= 4 and statistic < chi_square_limit(df)
    torch.testing.assert_close(log_prob.double(), p.log()[token], atol=1e-5, rtol=0)


@torch.no_grad()
def test_5_frequencies_of_whole_samples_match_the_model(model, prompts):
    """Property 5 through sample(): 6,000 rows of one prompt; first tokens, and second tokens given the most frequent
    first one, against the model's softmax; false alarm 1e-4 each."""
    s = draw(model, [prompts[1]], n=6000, max_new_tokens=2, temperature=0.7, stop=-1)
    first = s.tokens[:, 0]
    p = (model.logits(model(torch.tensor([prompts[1]])))[0, -1].double() / 0.7).softmax(-1)
    statistic, df = chi_square(first, p)
    assert df > 5 and statistic < chi_square_limit(df)
    most = int(first.bincount().argmax())
    p = (model.logits(model(torch.tensor([[*prompts[1], most]])))[0, -1].double() / 0.7).softmax(-1)
    statistic, df = chi_square(s.tokens[first == most, 1], p)
    assert df > 3 and statistic < chi_square_limit(df)


def test_5_random_numbers_are_uniform_and_independent():
    """Property 5's source: 32 x 32 cells of the pairs (u, its neighbour in row, step or seed) are equally full
    (chi-square, false alarm 1e-4 each); all values are in [0, 1)."""
    row, t = np.divmod(np.arange(100_000), 50)
    u = uniform(0, row, t)
    assert u.dtype == np.float32 and u.min() >= 0 and u.max() < 1
    for neighbour in (uniform(0, row + 1, t), uniform(0, row, t + 1), uniform(1, row, t), uniform(0, t, row)):
        cell = torch.from_numpy((u * 32).astype(int) * 32 + (neighbour * 32).astype(int))
        statistic, df = chi_square(cell, torch.full((1024,), 1 / 1024))
        assert statistic < chi_square_limit(df)


def nucleus(p: Tensor, top_p: float) -> set[int]:
    """By the definition: the most probable tokens, taken until they reach top_p."""
    kept, total = set(), 0.0
    for token in p.argsort(descending=True, stable=True).tolist():
        if total >= top_p:
            break
        kept.add(token)
        total += p[token].item()
    return kept


@pytest.mark.parametrize("top_p", [0.05, 0.5, 0.9, 0.99])
@pytest.mark.parametrize("vocab", [7, 301])
def test_5_top_p_keeps_exactly_the_nucleus(vocab, top_p):
    """Property 5: all tokens of the smallest set that reaches top_p are drawn and no other, in proportion to their
    probabilities (u on a grid: to one draw); the log-probs are those of the whole distribution."""
    g, n = torch.Generator().manual_seed(vocab), 20_000
    logits = torch.randn(vocab, generator=g) * 1.5
    p = (logits.double() / 0.8).softmax(-1)
    u = (torch.arange(n) + 0.5) / n  # a grid: no token of some weight is missed
    token, log_prob = choose(logits.expand(n, -1), u, 0.8, top_p)
    kept = nucleus(p, top_p)
    assert set(token.tolist()) == kept and (len(kept) > 1 or top_p <= 0.5)
    share = torch.zeros(vocab, dtype=torch.double)
    share[list(kept)] = p[list(kept)] / p[list(kept)].sum()
    assert (token.bincount(minlength=vocab) / n - share).abs().max() < 2 / n + 1e-5
    torch.testing.assert_close(log_prob.double(), p.log()[token], atol=1e-5, rtol=0)


@pytest.mark.parametrize(("top_p", "kept"), [(0.5, {2}), (0.51, {2, 0}), (0.75, {2, 0}), (0.76, {0, 1, 2})])
def test_5_top_p_at_the_edge_of_a_token(top_p, kept):
    """Property 5: a token that exactly completes top_p is the last; of equal tokens the first comes first."""
    logits = torch.tensor([0.25, 0.25, 0.5]).log()
    token, _ = choose(logits.expand(1000, -1), torch.arange(1000) / 1000, 1.0, top_p)
    assert set(token.tolist()) == kept


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_5_nucleus_of_any_size(spread):
    """Property 5: whether it has one token or most of the vocabulary, the nucleus is the shortest prefix of the sorted
    tokens that reaches top_p (here in float64), and u walks through it in that order."""
    logits = spread * torch.randn(400, 300, generator=torch.Generator().manual_seed(0))
    u = torch.rand(400, generator=torch.Generator().manual_seed(1))
    token, _ = choose(logits, u, 1.0, 0.9)
    p, index = logits.double().softmax(-1).sort(descending=True)
    size = (p.cumsum(-1) < 0.9).sum(-1) + 1
    assert (size <= sampler.NUCLEUS_FIRST).any() if spread == 4 else (size > sampler.NUCLEUS_FIRST).all()
    rows = torch.arange(400)
    goal = u.double() * p.cumsum(-1)[rows, size - 1]
    wanted = index[rows, (p.cumsum(-1) <= goal[:, None]).sum(-1)]
    assert (token == wanted).float().mean() > 0.99  # fp32 rounds a few u to the neighbour


def test_5_temperature_0_is_greedy(model, prompts):
    """Property 5: temperature 0 takes the most probable token, the first of equal ones, whatever u and top-p are; it is
    what a temperature towards 0 tends to."""
    logits = torch.tensor([[0.0, 3.0, 3.0, -1.0], [2.0, 1.0, 0.0, 0.0]]).repeat(50, 1)
    u = torch.rand(100, generator=torch.Generator().manual_seed(0))
    token, log_prob = choose(logits, u, 0.0, 0.9)
    assert token.tolist() == [1, 0] * 50
    torch.testing.assert_close(log_prob, logits.log_softmax(-1).gather(1, token[:, None]).squeeze(1))
    greedy, cold = (draw(model, prompts, n=2, temperature=t) for t in (0.0, 1e-5))
    assert answers(greedy) == answers(cold) and answers(greedy)[0::2] == answers(greedy)[1::2]


def test_2_memory_that_held_nan_changes_nothing(model, prompts, monkeypatch):
    """Property 2: the cache's memory is not cleared as a whole; whatever stood in it (here NaN), the tokens are the same."""
    clean, plain = draw(model, prompts, max_new_tokens=40, slots=5), KVCache.__init__

    def poisoned(self, *args):
        plain(self, *args)
        self.own_k.fill_(math.nan)
        self.own_v.fill_(math.nan)

    monkeypatch.setattr(KVCache, "__init__", poisoned)
    again = draw(model, prompts, max_new_tokens=40, slots=5)
    assert answers(again) == answers(clean) and torch.equal(again.log_probs[again.mask], clean.log_probs[clean.mask])


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("possible", [[17, 250], [150, 290]])  # in the first block of the search, or none there
def test_5_extreme_logits_and_random_numbers(top_p, possible):
    """Impossible tokens are never drawn, at either end of u; logits of ±1e4 give finite log-probs."""
    logits = torch.full((4, 300), -1e4)
    logits[:, possible] = 1e4
    u = torch.tensor([0.0, 0.4999, 0.5001, 1 - 2**-24])
    token, log_prob = choose(logits, u, 1.0, top_p)
    assert token.tolist() == [possible[0]] * 2 + [possible[1]] * 2
    torch.testing.assert_close(log_prob, torch.full((4,), -math.log(2)))


def test_5_rounding_at_block_ends_never_draws_an_impossible_token():
    """The two-level search sums in another order inside a block than over blocks: random numbers within a few units of
    the last place of each block's end still give possible tokens. First and last words of all blocks are impossible,
    and so is the whole last block."""
    logits = torch.randn(300, 4 * sampler.BLOCK, generator=torch.Generator().manual_seed(0))
    logits[:, :: sampler.BLOCK] = logits[:, sampler.BLOCK - 1 :: sampler.BLOCK] = -torch.inf
    logits[:, 3 * sampler.BLOCK :] = -torch.inf
    ends = logits.softmax(-1).view(300, 4, -1).sum(-1).cumsum(-1)
    for block, ulps in itertools.product(range(3), range(-4, 5)):
        u = (ends[:, block] + ulps * 2**-24).clamp(0, 1 - 2**-24)
        token, log_prob = choose(logits, u, 1.0, 1.0)
        assert log_prob.isfinite().all()
        assert ((token // sampler.BLOCK - block).abs() <= 1).all()


# ---------------------------------------------------------------------------------------------------------------------
# 6 - 8: ends and masks
# ---------------------------------------------------------------------------------------------------------------------


def test_6_stopping_changes_nothing_but_the_end(model, prompts):
    """Property 6: rows are those that never stop, cut behind their first stop token: what a row would go on to say, and
    that it leaves its slot, changes no other row."""
    stopped, endless = draw(model, prompts, slots=6), draw(model, prompts, slots=28, stop=-1)
    assert stopped.finished.any() and not stopped.finished.all()
    for got, whole in zip(answers(stopped), answers(endless), strict=True):
        assert len(whole) == 24
        assert got == (whole[: whole.index(STOP) + 1] if STOP in whole else whole)


def test_6_what_earlier_rows_left_in_a_slot_is_not_read(model, prompts, monkeypatch):
    """Property 6: with garbage in the buffers of tokens and log-probs, behind the ends of rows, the answers are the
    same: they hold nothing behind their ends."""
    want, plain = draw(model, prompts, slots=5), sampler.Slots.__init__

    def filled(self, *args):
        plain(self, *args)
        self.tokens.fill(STOP)
        self.log_probs.fill(math.nan)

    monkeypatch.setattr(sampler.Slots, "__init__", filled)
    got = draw(model, prompts, slots=5)
    assert answers(got) == answers(want) and torch.equal(got.log_probs, want.log_probs)
    assert torch.equal(got.finished, want.finished)


def test_7_the_mask_holds_the_stop_token_and_truncated_rows_have_none(model, prompts):
    """Property 7: a finished row's last masked token is its only stop token; a cut one has max_new_tokens, no stop
    token, finished = False. Responses are without it."""
    s = draw(model, prompts, n=8)
    assert s.finished.any() and not s.finished.all()
    for row, answer in enumerate(answers(s)):
        assert s.tokens[row][s.mask[row]].tolist() == answer
        if s.finished[row]:
            assert answer[-1] == STOP and STOP not in answer[:-1] and s.continuations[row].text_tokens == answer[:-1]
        else:
            assert STOP not in answer and len(answer) == 24 and s.continuations[row].text_tokens == answer


@torch.no_grad()
def test_7_a_stop_token_as_the_last_token_allowed_is_finished(model, prompts):
    """Property 7 at the edge: with max_new_tokens = 1, a row whose one token is the stop token is finished."""
    s = draw(model, [prompts[1]], n=400, max_new_tokens=1)
    assert torch.equal(s.finished, s.tokens[:, 0] == STOP) and s.finished.any() and not s.finished.all()
    assert (s.lengths == 1).all()


def test_8_masks_come_from_lengths(model, prompts):
    """Property 8: token 0 pads the prefills. With 0 as the stop token, and in prompts, everything is as with any other:
    rows are the endless ones cut behind the first 0, with the same log-probs."""
    with torch.no_grad():
        likely = GPT(model.config)
        likely.load_state_dict(model.state_dict())
        likely.head.weight[0] = model.head.weight[STOP]  # so that rows do end
    s, endless = (draw(likely, prompts, stop=stop, slots=9) for stop in (0, -1))
    assert s.finished.any() and not s.finished.all()
    for got, whole in zip(answers(s), answers(endless), strict=True):
        assert got == (whole[: whole.index(0) + 1] if 0 in whole else whole)
    torch.testing.assert_close(s.log_probs * s.mask, endless.log_probs * s.mask, atol=1e-5, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# 9, 10: with training
# ---------------------------------------------------------------------------------------------------------------------


def test_9_grpo_has_no_top_p():
    """Property 9: RL samples the whole distribution (there is no flag for top-p or top-k), since the loss is not
    renormalised to a nucleus."""
    assert not {"top_p", "top_k"} & {field.name for field in dataclasses.fields(rl.Config)}


@torch.no_grad()
def test_10_the_sampler_uses_the_new_weights(model, prompts):
    """Property 10: after the weights change in place, as by an optimizer step, the log-probs are those of the new ones."""
    trained = GPT(model.config)
    trained.load_state_dict(model.state_dict())
    before = draw(trained, prompts[1:3])
    generator = torch.Generator().manual_seed(0)
    for p in trained.parameters():
        p.add_(0.02 * torch.randn(p.shape, generator=generator))
    after = draw(trained, prompts[1:3])
    assert answers(after) != answers(before)
    for row, answer in enumerate(answers(after)):
        want = full_log_probs(trained, prompts[1 + row // 4], answer, 0.8)
        torch.testing.assert_close(after.log_probs[row, : len(answer)].double(), want, atol=1e-4, rtol=0)


# ---------------------------------------------------------------------------------------------------------------------
# Memory, slots, refusals
# ---------------------------------------------------------------------------------------------------------------------


def spy(monkeypatch) -> dict:
    """Counts of decoding steps and bytes of the cache that a sample() makes."""
    seen = {"steps": 0}

    class Spy(KVCache):
        def __init__(self, *args):
            super().__init__(*args)
            caches = (self.prompt_k, self.prompt_v, self.own_k, self.own_v)
            seen["bytes"], seen["slots"] = sum(x.nbytes for x in caches), self.own_k.shape[1]

        def decode(self, *args):
            seen["steps"] += 1
            return super().decode(*args)

    monkeypatch.setattr(sampler, "KVCache", Spy)
    return seen


@pytest.mark.parametrize("temperature", [0.0, 0.3, 0.8])
def test_rows_that_have_said_the_same_are_computed_once(monkeypatch, model, prompts, temperature):
    """A token goes through the model once for each distinct beginning of the answers to a prompt, when all its rows
    decode together; in a few slots the rows are the same."""
    computed = []

    class Spy(KVCache):
        def decode(self, entry, *lengths):
            computed.append(len(entry))
            return super().decode(entry, *lengths)

    monkeypatch.setattr(sampler, "KVCache", Spy)
    rows = draw(model, prompts, n=16, temperature=temperature)
    said = {(r // 16, *tokens[:i]) for r, tokens in enumerate(answers(rows)) for i in range(1, len(tokens))}
    assert sum(computed) == len(said) < rows.lengths.sum() - len(rows.lengths)
    few = draw(model, prompts, n=16, temperature=temperature, slots=5)
    assert answers(few) == answers(rows)
    torch.testing.assert_close(few.log_probs * few.mask, rows.log_probs * rows.mask, atol=1e-5, rtol=0)


def test_kv_gib_bounds_the_slots(monkeypatch, model, prompts):
    """The cache takes at most kv_gib, and with another slot it would take more; the samples are the same."""
    want, seen = answers(draw(model, prompts, n=8)), spy(monkeypatch)
    assert answers(draw(model, prompts, n=8, slots=40, kv_gib=1.0)) == want
    assert seen["slots"] == 40
    limit = seen["bytes"] * 0.6
    assert answers(draw(model, prompts, n=8, slots=40, kv_gib=limit / 2**30)) == want
    fitted = seen["slots"]
    assert 1 <= fitted < 40 and seen["bytes"] <= limit
    draw(model, prompts, n=8, slots=fitted + 1, kv_gib=1.0)
    assert seen["bytes"] > limit


def test_kv_gib_0_takes_what_is_free(monkeypatch, model, prompts):
    """kv_gib 0: the slots that fit in the free memory, with the same samples. On a GPU that is what the driver and
    PyTorch have free, less a tenth, the weights in autocast's type and 2 GiB; where less is free, the message asks for
    more."""
    want, seen = answers(draw(model, prompts, n=8)), spy(monkeypatch)
    assert answers(draw(model, prompts, n=8, slots=40, kv_gib=0)) == want and seen["slots"] == 40
    gib = seen["bytes"] * 0.6 / 2**30
    monkeypatch.setattr(sampler, "free_gib", lambda device, weights: gib)
    assert answers(draw(model, prompts, n=8, slots=40, kv_gib=0)) == want and seen["bytes"] <= gib * 2**30
    monkeypatch.undo()
    cuda = torch.device("cuda")
    for driver, gib in ((80, 0.9 * (80 + 7) - 3 - 2), (1, 0.0)):
        with (
            mock.patch("torch.cuda.mem_get_info", lambda device, driver=driver: (driver * 2**30, 80 * 2**30)),
            mock.patch("torch.cuda.memory_reserved", lambda device, driver=driver: (8 if driver > 1 else 1) * 2**30),
            mock.patch("torch.cuda.memory_allocated", lambda device: 2**30),
        ):
            assert math.isclose(sampler.free_gib(cuda, 3 * 2**30), gib)


def test_stragglers_do_not_starve_others(monkeypatch, model, prompts):
    """7 prompts x 8 rows of 1 to 60 tokens in 3 slots: every row comes out whole, in no more steps than list scheduling
    needs (work / slots + the longest row), so that no slot stays empty while a row waits. Two prompts are prefilled at
    a time: the next ones leave alone those that a straggler still reads."""
    want, seen, done = draw(model, prompts, n=8, max_new_tokens=60), spy(monkeypatch), []
    monkeypatch.setattr(sampler, "PREFILL_TOKENS", 2 * max(map(len, prompts)))
    s = draw(model, prompts, n=8, max_new_tokens=60, slots=3, progress=done.append)
    assert answers(s) == answers(want) and sum(done) == len(s.lengths) == 56
    assert s.lengths.min() <= 3 and s.lengths.max() >= 40
    work = int(s.lengths.sum())
    assert seen["steps"] <= work / 3 + int(s.lengths.max())


@pytest.mark.parametrize("small", [False, True])
@pytest.mark.parametrize("slots", [3, 41, 100])
def test_pages_give_the_same_rows(monkeypatch, model, prompts, slots, small):
    """Keys and values in pages: the rows that slots give, whatever the pool's memory held, and though a row's end is
    seen late. With a pool for hardly more than one answer, rows give their pages back and begin again, and none is
    lost."""
    flags = dict(n=8, max_new_tokens=60, slots=slots)
    want, waited, caches = draw(model, prompts, **flags), [], []

    class Poisoned(PagedCache):
        def __init__(self, *args):
            *sizes, pages = args
            super().__init__(*sizes, sizes[1] * 2 + 6 if small else pages)
            self.k.fill_(math.nan)
            self.v.fill_(math.nan)
            caches.append(self)

        def reserve(self, live):
            left = super().reserve(live)
            waited.append(len(live) - left)
            return left

    class Slots(sampler.Slots):
        def __init__(self, *args):
            with mock.patch.object(kernels, "on_triton", lambda x: True):
                super().__init__(*args)

    monkeypatch.setattr(sampler, "PAGED", {"cpu"})
    monkeypatch.setattr(sampler, "PagedCache", Poisoned)
    monkeypatch.setattr(sampler, "Slots", Slots)
    got = draw(model, prompts, **flags)
    assert answers(got) == answers(want) and torch.equal(got.finished, want.finished)
    torch.testing.assert_close(got.log_probs * got.mask, want.log_probs * want.mask, atol=1e-5, rtol=0)
    (cache,) = caches
    assert any(waited) == small
    assert len(cache.free()) == cache.k.shape[1] - cache.first_own and not cache.table.any()
    # The pool takes at most kv_gib, and nearly all of it
    limit = 0.3 * (cache.k.nbytes + cache.v.nbytes)
    if slots == 100 and not small:
        assert answers(draw(model, prompts, **flags, kv_gib=limit / 2**30)) == answers(want)
        assert caches[1].k.nbytes + caches[1].v.nbytes <= limit
        with pytest.raises(UserError, match="--kv_gib 1e-09: one row of 30 \\+ 60 tokens needs .* GiB; raise it"):
            draw(model, prompts, **flags, kv_gib=1e-9)


def test_an_edited_model_decodes_by_its_own_forward(monkeypatch, model, prompts):
    """On a GPU paged.decode_step decodes, which computes what model.py does; where a fork has edited the forward pass
    there, the model itself does."""
    assert paged.follows_model(), (
        "model.py has changed: change decode_step alike, then FOLLOWED, to what `digest` gives"
    )
    steps, forward = [], Block.forward
    monkeypatch.setattr(sampler, "PAGED", {"cpu"})
    monkeypatch.setattr(kernels, "on_triton", lambda x: x is model.head.weight)
    monkeypatch.setattr(sampler, "decode_step", lambda model, *args: steps.append(1) or model(*args))
    draw(model, prompts)
    assert steps
    steps.clear()
    monkeypatch.setattr(Block, "forward", lambda self, *args: forward(self, *args))
    draw(model, prompts)
    assert not steps


def test_what_cannot_be_sampled_is_a_user_error(model):
    """A prompt too long for the context beside the new tokens (256 in all), an empty one, a kv_gib that holds no row."""
    assert draw(model, [[7] * 232], n=1).lengths[0] >= 1
    with pytest.raises(UserError, match="233 tokens and 24 new ones exceed the model's context of 256"):
        draw(model, [[7], [7] * 233])
    with pytest.raises(UserError, match="empty prompt"):
        draw(model, [[7], []])
    with pytest.raises(UserError, match="--kv_gib"):
        draw(model, [[7] * 9], kv_gib=1e-9)


def test_nothing_to_sample_gives_no_rows(model, prompts):
    """No prompts (a rank without a share) or n = 0: no continuations, no error."""
    flags = dict(stop=STOP, max_new_tokens=24)
    assert sample(model, [], 4, **flags) == [] and sample(model, prompts, 0, **flags) == [[]] * len(prompts)
