"""GRPO from any checkpoint: sample, verify, advantages, minibatched updates. No trainer framework.

    python rl.py --init out/pretrain/step_0004883.pt --out out/rl                 # minutes on a CPU
    python rl.py --init M.pt --data out/paper --preset paper                      # the paper's settings (docs/paper.md)
    torchrun --nproc_per_node=8 rl.py --init M.pt --data out/paper --preset paper
    python rl.py --resume --out out/rl                                            # go on after a kill: the same bits

One step, as the loop in main() has it:

    rollouts   = n answers to each of `prompts` questions, sampled from the current weights at temperature 1
    reward     = 1 if the last closed \\boxed{} is right, else 0  (+ format_score for a box that is wrong)
    advantage  = (reward - mean) / std within the n answers of a question
    loss       = -Σ w min(ρ A, clip(ρ, 1 - low, 1 + high) A)  + kl Σ w k3 - entropy Σ w H,   ρ = p / p_old

p_old is p itself where a step makes one update, else what a forward pass gives before the first of them (the sampler's
log-probs are rounded differently). log ρ is held to ± 20, as in the authors' code; --dual_clip 3 is its bound for A < 0.
The loss has weights w that sum to 1 over the whole minibatch of all ranks (--aggregation), so that neither micro-batches
nor ranks change the gradient. GRPO is arXiv 2402.03300; the settings are those of arXiv 2606.04272.

Departures from the authors' code: --format_score has an effect; the token mean is over the minibatch, not the
micro-batch; the n answers of a question share its prompt in the update too (computed once, attended by all: exact).
"""

import contextlib
import gzip
import json
import math
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from cli import UserError, cli
from data.prompt import fitting, left_out
from data.questions import find_questions
from data.tokenizer import Tokenizer, default_new_tokens
from eval import HeldOut, held_out
from files import MALFORMED, named, write_jsonl
from model import GPT, sequence_flops
from packing import packed_batches
from runtime import (
    Clock,
    Cursor,
    PostConfig,
    Process,
    Run,
    begin,
    load_checkpoint,
    load_model,
    make_optimizer,
    optimizer_step,
)
from sampler import Continuation, SamplerConfig, sample_over_ranks
from verifier import judge

BETAS = (0.9, 0.999)  # of AdamW
WRITTEN = 4  # groups of each step that go to rollouts.jsonl.gz
SHOW_EVERY = 16  # steps between answers that are printed


@dataclass
class GRPOConfig(SamplerConfig):
    """Flags of the RL objective, shared with average.py."""

    prompts: int = 16  # questions per step
    rollouts: int = 16  # answers sampled per question
    minibatch: int = 0  # questions per optimizer step; 0: all of a step's (exactly on-policy)
    inner_epochs: int = 1  # passes over a step's rollouts
    clip_low: float = 0.2  # the ratio is clipped at 1 - this
    clip_high: float = 0.2  # and at 1 + this
    # where A < 0, the loss of a token is at most this many times -A (arXiv 1912.09729; the authors' code: 3); 0: no bound
    dual_clip: float = 0.0
    advantage: Literal["std", "mean"] = "std"  # (r - mean) / std, or r - mean (arXiv 2503.20783)
    # mean over all tokens; mean of each answer's mean;
    # or sum over tokens divided by answers × max_new_tokens
    aggregation: Literal["token", "sequence", "constant"] = "token"
    kl: float = 0.0  # coefficient of the k3 KL to the starting model; 0: no reference model is kept
    entropy: float = 0.0  # coefficient of the entropy bonus
    temperature: float = 1.0  # of sampling, applied in the loss too
    max_new_tokens: int = 0  # longest answer; 0: 64 with the world's tokenizer, else 512
    # who judges: strict (the last closed box), lenient (what a reader would take for the answer), or
    # gsm8k (the authors' evaluation of GSM8K: first ####, else last box, else last number)
    grader: Literal["strict", "lenient", "gsm8k"] = "strict"
    format_score: float = 0.0  # reward of a wrong answer in the form that the grader looks for (strict: a closed box)
    resample: int = 0  # sample up to so many further batches until --prompts groups carry signal (arXiv 2503.14476)
    # answers cut at the longest length, without a stop token: reward 0, left out, or scored like others (the authors')
    truncated: Literal["wrong", "mask", "score"] = "wrong"
    difficulty: str = ""  # a file of `eval.py --difficulty`: train on questions whose pass rate there is in --band
    band: str = "easy"  # easy (at least 25%), hard (at most 12.5%), hardest (at most 3.1%), or LOW:HIGH in fractions

    def idle(self) -> dict[str, str]:
        """Flag → why it has no effect (see cli.refuse_idle)."""
        idle = {}
        if self.inner_epochs == 1 and self.minibatch in (0, self.prompts):
            why = "where a step makes one update, so that its ratio is 1 (--minibatch, --inner_epochs)"
            idle |= dict.fromkeys(("clip_low", "clip_high", "dual_clip"), why)
        if not self.difficulty:
            idle["band"] = "without --difficulty"
        return idle | super().idle()


@dataclass
class Config(PostConfig, GRPOConfig, HeldOut):
    """Flags of rl.py."""

    lr: float = 1e-4  # learning rate (the paper's 1B model: 1e-6)
    weight_decay: float = 0.01  # decoupled; see --decay
    # the paper's settings; paper_after_sft: those of the authors' runs from SFT checkpoints; flags beside it win
    preset: Literal["", "paper", "paper_after_sft"] = ""


PAPER = dict(
    prompts=512, rollouts=32, minibatch=128, inner_epochs=1, epochs=10.0, lr=1e-6, schedule="constant", warmup=0, clip=1.0,
    weight_decay=0.01, decay="all", clip_low=0.2, clip_high=0.2, dual_clip=3.0, advantage="std",
    aggregation="token", kl=0.001, entropy=0.0, temperature=1.0, max_new_tokens=2048, truncated="score",
)  # fmt: skip
PRESETS = {
    "paper": PAPER,
    # forty times the rate of direct RL, on-policy, without KL, short answers (docs/paper.md)
    "paper_after_sft": PAPER | dict(lr=4e-5, minibatch=0, kl=0.0, max_new_tokens=512),
}


# ---------------------------------------------------------------------------------------------------------------------
# The algorithm's pieces, as pure functions
# ---------------------------------------------------------------------------------------------------------------------


def advantages(rewards: Tensor, valid: Tensor, kind: str = "std") -> Tensor:
    """Group-relative advantages; 0 for invalid answers and for whole groups whose rewards are equal.

    Args:
        rewards: (P, n). valid: (P, n) bool, answers that count.
        kind: "std": (r - mean) / std with the n - 1 denominator, so that two answers get ± 0.7071; "mean": r - mean.
    """
    rewards = rewards.double()
    count = valid.sum(1, keepdim=True)
    mean = torch.where(valid, rewards, 0).sum(1, keepdim=True) / count.clamp(min=1)
    centred = torch.where(valid, rewards - mean, 0)
    std = (centred.square().sum(1, keepdim=True) / (count - 1).clamp(min=1)).sqrt()
    scaled = centred / std.clamp(min=1e-12) if kind == "std" else centred
    # equal rewards differ by rounding when they are sums of parts; that must not become an advantage of ± 1
    return torch.where(std > 1e-6, scaled, 0).float()


class PolicyLoss(NamedTuple):
    loss: Tensor  # scalar
    stats: dict[str, float]  # weighted sums over tokens, to be added over micro-batches and ranks


def policy_loss(
    log_prob: Tensor,
    old_log_prob: Tensor,
    advantage: Tensor,
    weight: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float = 0.0,
) -> PolicyLoss:
    """The clipped surrogate, -Σ w min(ρ A, clip(ρ) A), over tokens. Tensors are (N,).

    `weight` carries the aggregation and sums to 1 over the minibatch of all ranks. Where A > 0 only ρ > 1 + high is
    clipped, where A < 0 only ρ < 1 - low. That leaves ρ without an upper bound where A < 0: log ρ is held to ± 20 (the
    authors' code; a token beyond has no gradient), and with dual_clip = c > 1 the surrogate is held to c A there, so
    that ρ > c has no gradient (arXiv 1912.09729; the authors' code: c = 3).
    """
    ratio = (log_prob - old_log_prob).clamp(-20, 20).exp()
    clipped = ratio.clamp(1 - clip_low, 1 + clip_high)
    surrogate = torch.minimum(ratio * advantage, clipped * advantage)
    if dual_clip:
        surrogate = torch.where(advantage < 0, torch.maximum(surrogate, dual_clip * advantage), surrogate)
    loss = -(weight * surrogate).sum()
    with torch.no_grad():
        active = surrogate != ratio * advantage
        stats = {"clip_fraction": (weight * active).sum().item(), "ratio": (weight * ratio).sum().item()}
    return PolicyLoss(loss, stats)


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """(N,) the estimator r - 1 - log r of KL(policy ‖ reference), r = p_ref / p (http://joschu.net/blog/kl-approx.html).

    Never negative, 0 at equal weights. The log-ratio is held to ± 20, beyond which exp overflows what AdamW can take.
    """
    log_ratio = (reference - log_prob).clamp(-20, 20)
    return torch.expm1(log_ratio) - log_ratio


def token_weights(lengths: Tensor, valid: Tensor, kind: str, max_new_tokens: int) -> Tensor:
    """(R,) weight of each token of each answer, from all answers of a minibatch, (R,) each."""
    counted = lengths * valid
    if kind == "token":
        weight = torch.ones(len(lengths)) / counted.sum().clamp(min=1)
    elif kind == "sequence":
        weight = 1.0 / (lengths.clamp(min=1) * valid.sum().clamp(min=1))
    else:
        weight = torch.ones(len(lengths)) / (max_new_tokens * valid.sum().clamp(min=1))
    return weight * valid


# ---------------------------------------------------------------------------------------------------------------------
# Rollouts and their gradient
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Group:
    """The n answers to one question, with what the update needs of them."""

    question: dict
    prompt: list[int]
    answers: list[list[int]]  # token ids, the stop token included if it was sampled
    old_log_prob: list[np.ndarray]  # of each answer's tokens, as sampled (see GRPO.recompute)
    rewards: list[float]
    valid: list[bool]  # answers that count (see --truncated)
    finished: list[bool]
    right: list[bool]
    advantage: np.ndarray  # (n,)

    @property
    def signal(self) -> bool:
        return bool(np.any(self.advantage))

    @property
    def n_tokens(self) -> int:
        return len(self.prompt) + sum(map(len, self.answers))


def reward_of(text: str, answer: str, finished: bool, config: GRPOConfig) -> tuple[float, bool]:
    """(reward, right) of one answer, judged by --grader and --truncated, as evaluation does."""
    given, right = judge(text, answer, finished, config.grader, config.truncated)
    return (1.0 if right else config.format_score if given is not None else 0.0), right


class GRPO:
    """Questions, sampling and the gradient of the RL objective; average.py uses it as rl.py does.

    `order.position` (an integer) is the only state.
    """

    def __init__(
        self,
        config: GRPOConfig,
        questions: list[dict],
        tokenizer: Tokenizer,
        process: Process,
        seed: int,
        context: int,
        reference: GPT | None = None,
    ):
        if config.temperature <= 0:
            raise UserError(f"--temperature {config.temperature}: GRPO needs random answers, a value above 0")
        self.config, self.tokenizer, self.process, self.seed = config, tokenizer, process, seed
        self.reference = reference  # on the CPU, moved to the device while it is used
        self.max_new_tokens = config.max_new_tokens or default_new_tokens(tokenizer)
        self.questions, long = fitting(questions, tokenizer, context, self.max_new_tokens)  # with their prompts
        if long and process.main:
            print(left_out(long, len(questions), context, self.max_new_tokens), file=sys.stderr)
        self.order = Cursor(len(self.questions), seed)

    def rollouts(self, model: GPT) -> tuple[list[Group], dict]:
        """Sample and judge --prompts groups (with --resample: until so many carry signal). Every rank gets all of them."""
        c, groups, stats = self.config, [], {"sampled_tokens": 0, "flops": 0.0, "groups_sampled": 0}
        clock = Clock()
        for _ in range(1 + c.resample):
            first = self.order.position
            drawn = [self.questions[i] for i in self.order.draw(c.prompts)]
            batch = self._sample(model, drawn, first)
            stats["groups_sampled"] += len(batch)
            stats["sampled_tokens"] += sum(len(a) for g in batch for a in g.answers)
            stats["flops"] += sum(self._forward_flops(model, g, range(c.rollouts)) for g in batch)
            groups += batch
            if not c.resample or sum(g.signal for g in groups) >= c.prompts:
                break
        stats["sample_s"] = clock.lap()
        rewards = np.array([g.rewards for g in groups])
        stats |= {
            "reward": float(rewards.mean()),
            "pass_at_1": float(np.mean([g.right for g in groups])),
            "pass_at_n": float(np.mean([any(g.right) for g in groups])),
            "signal": float(np.mean([g.signal for g in groups])),
            "length": float(np.mean([len(a) for g in groups for a in g.answers])),
            "truncated": 1.0 - float(np.mean([g.finished for g in groups])),
            "entropy": -float(np.mean(np.concatenate([lp for g in groups for lp in g.old_log_prob]))),
        }
        if c.resample:  # the groups with signal, and others only to make up the number
            groups = sorted(groups, key=lambda g: not g.signal)[: c.prompts]
        return groups, stats

    def _sample(self, model: GPT, drawn: list[tuple[dict, list[int]]], first: int) -> list[Group]:
        c = self.config

        def judged(i: int, answers: list[Continuation]) -> Group:
            question, prompt = drawn[i]
            texts = [self.tokenizer.decode(a.text_tokens) for a in answers]
            verdicts = [reward_of(t, question["answer"], a.finished, c) for t, a in zip(texts, answers, strict=True)]
            rewards, valid = [r for r, _ in verdicts], [a.finished or c.truncated != "mask" for a in answers]
            return Group(
                question=question,
                prompt=prompt,
                answers=[a.tokens for a in answers],
                old_log_prob=[a.log_probs for a in answers],
                rewards=rewards,
                valid=valid,
                finished=[a.finished for a in answers],
                right=[right for _, right in verdicts],
                advantage=advantages(torch.tensor([rewards]), torch.tensor([valid]), c.advantage)[0].numpy(),
            )

        return sample_over_ranks(
            model,
            [prompt for _, prompt in drawn],
            c.rollouts,
            self.process,
            judged,
            first=first,
            stop=self.tokenizer.eos,
            max_new_tokens=self.max_new_tokens,
            temperature=c.temperature,
            seed=self.seed,
            kv_gib=c.kv_gib,
        )

    def _forward_flops(self, model: GPT, g: Group, rows) -> float:
        """One forward pass over a prompt and some of its answers, in sampling as in training."""
        mean_length = sum(len(g.answers[r]) for r in rows) / len(rows)
        return sequence_flops(model.config, len(g.prompt), mean_length, len(rows))

    def minibatches(self, groups: list[Group]):
        """The groups of each optimizer step. A group is never divided between two."""
        size = self.config.minibatch or len(groups)
        for _ in range(self.config.inner_epochs):
            for start in range(0, len(groups), size):
                yield groups[start : start + size]

    def used(self, groups: list[Group]) -> list[Group]:
        """The groups of a minibatch that have anything to learn from: those with signal, and all where a KL or entropy
        term acts. The others add nothing to the gradient (the denominator counts them)."""
        every = self.config.kl > 0 or self.config.entropy != 0
        return [g for g in groups if g.signal or every]

    def batches(self, model: GPT, groups: list[Group]):
        """This rank's part of the groups: (packed, [(group, row) of each of its answers], FLOPs of a forward pass).

        The same groups always make the same batches, whose matrix products have the same shapes and roundings.
        """
        mine = [groups[i] for i in self.process.share([g.n_tokens for g in groups])]
        items = [(g.prompt, g.answers) for g in mine]
        batches = packed_batches(items, self.process.micro_tokens, self.process.device)
        for packed, parts in self.process.unless_stopping(batches):
            flops = sum(self._forward_flops(model, mine[i], rows) for i, rows in parts)
            yield packed, [(mine[i], r) for i, rows in parts for r in rows], flops

    @torch.no_grad()
    def recompute(self, model: GPT, minibatch: list[Group]) -> float:
        """Set old_log_prob, of the answers that this rank trains on, to the log-probs of the training forward; returns
        the FLOPs of that. Where a step makes several updates the later ones divide by p_old, and the sampler's differs
        from p with no update made: in bf16, whose decoding rounds elsewhere, by up to 40%."""
        total = 0.0
        for packed, answers, flops in self.batches(model, self.used(minibatch)):
            with self.process.autocast():
                log_prob = packed.log_probs(model, self.config.temperature).log_prob.cpu().numpy()
            ends = np.cumsum([len(g.answers[r]) for g, r in answers])[:-1]
            for (g, r), values in zip(answers, np.split(log_prob, ends), strict=True):
                g.old_log_prob[r] = values
            total += flops
        return total

    def backward(self, model: GPT, groups: list[Group], first: bool, scale: float = 1.0) -> dict | None:
        """Add this rank's part of the minibatch's gradient to .grad; None if no group of it has anything to learn from.

        first: no update has been made since these groups were sampled. Then p_old is p itself and the ratio exactly 1.

        scale: factor of the gradient (average.py's combined loss).

        Returns stats that are sums over the tokens of this rank; the caller adds them over ranks.
        """
        c = self.config
        n = len(groups[0].answers)
        lengths = torch.tensor([[len(a) for a in g.answers] for g in groups])
        valid = torch.tensor([g.valid for g in groups])
        weight = token_weights(lengths.flatten(), valid.flatten(), c.aggregation, self.max_new_tokens).view(-1, n)
        used = self.used(groups)
        if not used:
            return None
        row_weight = {id(g): w for g, w in zip(groups, weight, strict=True)}
        stats = dict.fromkeys(("loss", "weight", "clip_fraction", "ratio", "kl", "trained_tokens", "flops"), 0.0)
        if self.reference is not None:
            self.reference.to(self.process.device)
        for packed, answers, flops in self.batches(model, used):
            with self.process.autocast():
                out = packed.log_probs(model, c.temperature, entropy=c.entropy != 0)

            def per_token(values: list) -> Tensor:  # of each answer -> (ΣA,)
                return torch.tensor(values, device=self.process.device)[packed.answer]  # noqa: B023

            def recorded(values: list[np.ndarray]) -> Tensor:
                return torch.from_numpy(np.concatenate(values)).to(self.process.device)

            token_weight = per_token([float(row_weight[id(g)][r]) for g, r in answers])
            old = out.log_prob.detach() if first else recorded([g.old_log_prob[r] for g, r in answers])
            advantage = per_token([float(g.advantage[r]) for g, r in answers])
            loss, sums = policy_loss(out.log_prob, old, advantage, token_weight, c.clip_low, c.clip_high, c.dual_clip)
            if self.reference is not None:
                with torch.no_grad(), self.process.autocast():
                    reference = packed.log_probs(self.reference, c.temperature).log_prob
                divergence = (token_weight * k3(out.log_prob, reference)).sum()
                loss = loss + c.kl * divergence
                stats["kl"] += divergence.item()
            if c.entropy:
                loss = loss - c.entropy * (token_weight * out.entropy).sum()
            (scale * loss).backward()
            stats["loss"] += loss.item()
            for key, value in sums.items():
                stats[key] += value
            stats["weight"] += token_weight.sum().item()
            stats["trained_tokens"] += packed.tokens.numel()
            stats["flops"] += (3 if self.reference is None else 4) * flops
        if self.reference is not None:
            self.reference.to("cpu")
        return stats


# ---------------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------------


def total_over_ranks(process: Process, stats: dict | None) -> dict | None:
    """Sums of a minibatch's stats over ranks, as means per unit of weight where they are weighted. (None is the same on
    every rank: all know all rewards.)"""
    if stats is None:
        return None
    total = process.sum_dict(stats)
    weight = max(total.pop("weight"), 1e-12)
    return total | {key: total[key] / weight for key in ("clip_fraction", "ratio", "kl")}


def update(grpo: GRPO, model: GPT, optimizer, groups: list[Group], run: Run, lr: float) -> dict:
    """All minibatch updates on one step's rollouts; returns means over them."""
    clock, first, results, flops = Clock(), True, [], 0.0
    minibatches = list(grpo.minibatches(groups))
    if len(minibatches) > 1:
        for minibatch in minibatches[: len(minibatches) // grpo.config.inner_epochs]:  # of one epoch: all groups
            flops += grpo.recompute(model, minibatch)
    for minibatch in minibatches:
        stats = total_over_ranks(run.process, grpo.backward(model, minibatch, first))
        if stats is None:
            continue  # equal rewards everywhere: no gradient, so no step (and no decay, no momentum)
        stats["grad_norm"] = optimizer_step(model, optimizer, run.process, lr, run.config.clip)
        if not math.isfinite(stats["loss"] + stats["grad_norm"]):
            run.skip("loss or gradient")
        results.append(stats)
        first = False
    if not results:
        return {"updates": 0, "flops": 0.0}
    mean = {key: float(np.mean([r[key] for r in results])) for key in results[0]}
    mean |= {key: float(np.sum([r[key] for r in results])) for key in ("trained_tokens", "flops")}
    mean["flops"] += sum(run.process.sum([flops]))
    return mean | {"updates": len(results), "train_s": clock.lap()}


def merge(sampled: dict, trained: dict) -> dict:
    """The metrics of one step."""
    values = {**sampled, **trained, "flops": sampled["flops"] + trained["flops"]}
    values["sample_tokens_per_s"] = sampled["sampled_tokens"] / sampled["sample_s"]
    if trained["updates"]:
        values["train_tokens_per_s"] = trained["trained_tokens"] / trained["train_s"]
    return values


class RolloutLog:
    """Some rollouts with their rewards to OUT/rollouts.jsonl.gz, one now and then to the terminal, and a word to the
    user when no group carries signal."""

    def __init__(self, run: Run):
        self.path, self.tokenizer = run.out / "rollouts.jsonl.gz", run.tokenizer
        self.progress, self.main, self.silent = run.progress, run.process.main, 0
        self.written_before = self.progress.step if run.config.resume else -1  # lines up to this step stay

    def __call__(self, groups: list[Group], learned: bool) -> None:
        step = self.progress.step + 1
        self.silent = 0 if learned else self.silent + 1
        if not self.main:
            return
        if self.written_before is not None and self.path.exists():
            self._drop_after(self.written_before)
        self.written_before = None
        if self.silent and self.silent & (self.silent - 1) == 0:  # the 1st, 2nd, 4th, 8th ... time in a row
            tqdm.write(f"step {step}: no group carries signal (the rewards of each question are all equal): nothing was "
                       f"learned; {self.silent} such steps in a row")  # fmt: skip
        with named(self.path), gzip.open(self.path, "at") as file:
            file.writelines(json.dumps(self._row(step, g)) + "\n" for g in groups[:WRITTEN])
        if step % SHOW_EVERY == 1:
            g = groups[0]
            text = self.tokenizer.decode(g.prompt) + self._text(g, 0)
            tqdm.write(f"step {step}  reward {g.rewards[0]:g}  (right: {g.question['answer']})\n"
                       "  | " + text.replace("\n", "\n  | "))  # fmt: skip

    def _text(self, g: Group, row: int) -> str:
        return self.tokenizer.decode(g.answers[row][: len(g.answers[row]) - g.finished[row]])

    def _row(self, step: int, g: Group) -> dict:
        row = {"step": step, "id": g.question["id"], "question": g.question["question"]}
        row |= {"answer": g.question["answer"], "rewards": g.rewards, "finished": g.finished}
        return row | {"samples": [self._text(g, r) for r in range(len(g.answers))]}

    def _drop_after(self, step: int) -> None:
        """On resume: forget the rollouts of steps that will be made again, and a line that a kill cut, with what
        stands after it."""
        kept = []
        broken = (EOFError, OSError, zlib.error, ValueError, KeyError, TypeError)
        with contextlib.suppress(*broken), gzip.open(self.path, "rb") as file:
            for line in file:
                if (row := json.loads(line))["step"] <= step:
                    kept.append(row)
        write_jsonl(self.path, kept)


BANDS = {"easy": (0.25, 1.0), "hard": (0.0, 0.125), "hardest": (0.0, 0.031)}  # the paper's, and its released code's


def in_band(questions: list[dict], path: str, band: str) -> list[dict]:
    """The questions whose strict pass rate in an evaluation record lies in a band (inclusive). UserError if none does."""
    low, high = BANDS.get(band, (-1.0, -1.0))
    if band.count(":") == 1:
        with contextlib.suppress(ValueError):
            low, high = map(float, band.split(":"))
    if not 0 <= low <= high <= 1:
        raise UserError(f"--band {band}: {', '.join(BANDS)} or LOW:HIGH with 0 ≤ LOW ≤ HIGH ≤ 1, such as 0.1:0.5")
    try:
        sets = json.loads(Path(path).read_text())["questions"].values()
        rate = {q["id"]: q["c"] / q["n"] for s in sets for q in s["questions"]}
    except MALFORMED as error:
        raise UserError(
            f"--difficulty {path}: no evaluation record ({error}); make one: eval.py --difficulty"
        ) from None
    kept = [q for q in questions if low <= rate.get(q["id"], -1.0) <= high]
    if not kept:
        raise UserError(f"--band {band}: none of {len(questions)} questions has a pass rate in it in {path}")
    return kept


def make_grpo(run: Run) -> GRPO:
    """The GRPO side of a stage, from its flags (PostConfig and GRPOConfig)."""
    config = run.config
    questions = find_questions(config.data, config.questions, "train", config.limit)
    if config.difficulty:
        questions = in_band(questions, config.difficulty, config.band)
    questions = [q | {"solutions": []} for q in questions]  # RL never reads these texts, a GB at the paper's scale
    return GRPO(
        config,
        questions,
        run.tokenizer,
        run.process,
        config.seed,
        run.model.config.context,
        reference=load_model(load_checkpoint(config.init)).eval().requires_grad_(False) if config.kl > 0 else None,
    )


def main(config: Config) -> None:
    run = begin(config, "rl")
    model, tokenizer, process = run.model, run.tokenizer, run.process
    grpo = make_grpo(run)
    steps = math.ceil(config.epochs * len(grpo.questions) / config.prompts) if config.epochs else config.steps
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS, config.decay)
    run.restore(optimizer=optimizer, grpo=grpo.order)
    evaluate = held_out(config, config.data, model, tokenizer, process)
    log = RolloutLog(run)
    if process.main:
        print(f"{config.init}: {model.n_params / 1e6:.2f} M parameters; {len(grpo.questions)} questions, "
              f"{steps} steps of {config.prompts} x {config.rollouts} answers; writes {run.out}")  # fmt: skip
    for step in run.steps(steps, evaluate, shown=("reward", "signal", "length", "val_pass@1")):
        groups, sampled = grpo.rollouts(model)
        trained = update(grpo, model, optimizer, groups, run, step.lr)
        log(groups, trained["updates"] > 0)
        step.log(**merge(sampled, trained))


if __name__ == "__main__":
    cli(main, Config, PRESETS)
