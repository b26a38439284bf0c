"""GRPO from any checkpoint: sample, verify, advantages, minibatched updates. No trainer framework.

    python rl.py --init out/pretrain/step_0004883.pt --out out/rl                 # minutes on a CPU
    python rl.py --init M.pt --data out/paper --preset paper                      # the paper's settings (docs/paper.md)
    torchrun --nproc_per_node=8 rl.py --init M.pt --data out/paper --preset paper
    python rl.py --resume --out out/rl                                            # go on after a kill: the same bits

One step, as the loop in main() has it:

    rollouts   = n answers to each of `prompts` questions, sampled from the current weights at --temperature
    reward     = 1 if the last closed \\boxed{} is right, else 0  (+ format_score for a box that is wrong)
    advantage  = (reward - mean) / std within the n answers of a question
    loss       = -Σ w min(ρ A, clip(ρ, 1 - low, 1 + high) A)  + kl Σ w k3 - entropy Σ w H,   ρ = p / p_old

The sums Σ run over the tokens of all answers. A is the advantage of the token's answer; p and p_old are the
probabilities of the token now and before the step's first update; k3 estimates the KL to the starting model (`k3`
below); H is the entropy of the model's distribution at the token. w is the token's weight (--aggregation). The weights
are those of the minibatch of all ranks: they sum to 1 (constant: to mean length / max_new_tokens), and neither
micro-batches nor ranks change the gradient.

Where a step makes one update, p_old is p itself and ρ is 1. Where it makes several, a forward pass before the first of
them gives the others' p_old: the sampler's log-probs are rounded in another way. log ρ is held to ± 20, as in the
authors' code, and --dual_clip bounds the loss where A < 0. GRPO is arXiv 2402.03300; the settings are those of arXiv
2606.04272.

Departures from the authors' code: --format_score has an effect (there it has none); the token mean is over the
minibatch, not the micro-batch; the n answers of a question share its prompt in the update too (computed once, attended
by all: exact).
"""

import math
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import load_checkpoint, load_model
from cli import UserError, cli, printable
from config import MachineConfig, OptimizerConfig, PostConfig
from data.prompt import fitting, left_out
from data.questions import file_and_band, find_questions, in_band, questions_digest, what_to_expect
from data.tokenizer import Tokenizer, default_new_tokens
from eval import HeldOut, make_evaluate, say
from model import GPT, answers_flops
from optimizer import make_optimizer, optimizer_step
from packing import packed_batches
from process import Process
from runtime import Cursor, Run, Step, begin
from sampler import SamplerConfig, sample
from verifier import judge

BETAS = (0.9, 0.999)  # of AdamW
WRITTEN = 4  # groups (questions with their answers) of each step that go to rollouts.jsonl.gz
SHOW_EVERY = 16  # RL steps from one answer that is printed, and one table for --logger, to the next


@dataclass
class GRPOConfig(SamplerConfig):
    """GRPO: questions, answers, rewards, loss"""

    prompts: int = 16  # questions per step
    rollouts: int = 16  # answers sampled per question
    minibatch: int = 0  # questions per optimizer step; 0: all of a step's (exactly on-policy)
    inner_epochs: int = 1  # passes over a step's rollouts
    clip_low: float = 0.2  # the ratio is clipped below at 1 - clip_low
    clip_high: float = 0.2  # the ratio is clipped above at 1 + clip_high
    # bound where the advantage A is negative: a token's loss is at most dual_clip times -A (arXiv 1912.09729; the
    # authors' code: 3); 0: no bound
    dual_clip: float = 0.0
    advantage: Literal["std", "mean"] = "std"  # (r - mean) / std, or r - mean (arXiv 2503.20783)
    # how the losses of tokens are added up: mean over all tokens; mean over answers of each answer's mean; or their sum
    # divided by answers × max_new_tokens
    aggregation: Literal["token", "sequence", "constant"] = "token"
    kl: float = 0.0  # coefficient of the k3 KL to the starting model; 0: no reference model is kept
    entropy: float = 0.0  # coefficient of the entropy bonus
    temperature: float = 1.0  # temperature of sampling; the loss applies it too
    max_new_tokens: int = 0  # longest answer; 0: 64 with the world's tokenizer, else 512
    # how an answer is found in the text: strict (the last closed box), lenient (what a reader would take for the
    # answer), or gsm8k (as the authors evaluate GSM8K: first ####, else last box, else last number)
    grader: Literal["strict", "lenient", "gsm8k"] = "strict"
    format_score: float = 0.0  # reward of a wrong answer in the form that the grader looks for (strict: a closed box)
    resample: int = 0  # sample up to so many further batches until --prompts groups carry signal (arXiv 2503.14476)
    # answers that were cut at max_new_tokens: reward 0, left out, or scored like others (the authors' code)
    truncated: Literal["wrong", "mask", "score"] = "wrong"
    # train RL (of average.py that side alone) on questions of one band of pass rates: FILE:BAND, where FILE is a record
    # of `eval.py --preset difficulty` and BAND easy (at least 25%), hard (at most 12.5%), hardest (at most 3.1%), or
    # LOW:HIGH in fractions
    difficulty: str = ""

    def idle(self) -> dict[str, str]:
        if self.inner_epochs > 1 or 0 < self.minibatch < self.prompts:
            return {}
        why = "where a step makes one update, so that its ratio is 1 (--minibatch, --inner_epochs)"
        return dict.fromkeys(("clip_low", "clip_high", "dual_clip"), why)


@dataclass
class Config(PostConfig, GRPOConfig, HeldOut, OptimizerConfig, MachineConfig):
    """Recipe: many of the flags below at once"""

    lr: float = 1e-4  # peak learning rate (the paper's 1B model: 1e-6)
    weight_decay: float = 0.01
    # paper: the paper's settings; paper_after_sft: those of the authors' runs from SFT checkpoints; flags beside it win
    preset: Literal["", "paper", "paper_after_sft"] = ""


PAPER = dict(
    prompts=512, rollouts=32, minibatch=128, inner_epochs=1, steps="10e", lr=1e-6, schedule="constant", clip=1.0,
    weight_decay=0.01, clip_low=0.2, clip_high=0.2, dual_clip=3.0, advantage="std",
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
        rewards: (P, n), n answers to each of P questions. valid: (P, n) bool, False for answers that are left out
            (--truncated mask).
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
    """The clipped objective, -Σ w min(ρ A, clip(ρ) A). Tensors are (ΣA,): one value for each token of all answers.

    `weight` is w of `token_weights`, of the minibatch of all ranks. Where A > 0 only ρ > 1 + high is
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
        clipping = surrogate != ratio * advantage  # these tokens have no gradient
        stats = {"clip_fraction": (weight * clipping).sum().item(), "ratio": (weight * ratio).sum().item()}
    return PolicyLoss(loss, stats)


def k3(log_prob: Tensor, reference: Tensor) -> Tensor:
    """(ΣA,) the estimator r - 1 - log r of KL(policy ‖ reference), r = p_ref / p (http://joschu.net/blog/kl-approx.html).

    It is never negative, and 0 where both models are equal. log r is held to ± 20: AdamW squares gradients, and those
    of a larger exp overflow.
    """
    log_ratio = (reference - log_prob).clamp(-20, 20)
    return torch.expm1(log_ratio) - log_ratio


def token_weights(lengths: Tensor, valid: Tensor, kind: str, max_new_tokens: int) -> Tensor:
    """(R,) for each of the R answers of a minibatch, the weight w that every one of its tokens has in the loss.

    Args:
        lengths: (R,) tokens of each answer. valid: (R,) bool, answers that count; the others get weight 0.
        kind: "token": the loss is the mean over tokens; "sequence": the mean over answers of each answer's mean;
            "constant": the sum over tokens divided by answers × max_new_tokens.
    """
    counted = lengths * valid
    if kind == "token":
        weight = torch.ones(len(lengths)) / counted.sum().clamp(min=1)
    elif kind == "sequence":
        weight = 1.0 / (lengths.clamp(min=1) * valid.sum().clamp(min=1))
    else:
        weight = torch.ones(len(lengths)) / (max_new_tokens * valid.sum().clamp(min=1))
    return weight * valid


# ---------------------------------------------------------------------------------------------------------------------
# Answers: sampled, judged, and their gradient
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Answer:
    """One sampled answer, with what the update needs of it."""

    question: dict
    prompt: list[int]
    tokens: list[int]  # the stop token is the last one if it was sampled
    text: str  # without it
    old_log_prob: np.ndarray  # (len(tokens),) log p_old, as the sampler has it until GRPO.recompute
    finished: bool  # ended by the stop token, not cut at max_new_tokens
    valid: bool  # counts in advantages and loss (False: cut, with --truncated mask)
    reward: float
    right: bool
    advantage: float = 0.0
    weight: float = 0.0  # of each of its tokens in the loss of its minibatch


Group = list[Answer]  # the n answers to one question


def has_signal(group: Group) -> bool:
    """Is there anything to learn from the rewards of these answers, that is, do those that count differ?"""
    return any(answer.advantage for answer in group)


def reward_of(text: str, answer: str, finished: bool, config: GRPOConfig) -> tuple[float, bool]:
    """(reward, right) of a sampled text beside the right answer, judged by --grader and --truncated, as evaluation does."""
    given, right = judge(text, answer, finished, config.grader, config.truncated)
    return (1.0 if right else config.format_score if given is not None else 0.0), right


class GRPO:
    """Questions, sampling and the gradient of the RL objective; average.py uses it as rl.py does.

    Its only state, which --resume restores, is the integer `order.position`: how many questions have been drawn.
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
        self.reference = reference  # on the device
        # KL and entropy have a gradient at answers of equal rewards too. A further such term is to be named here
        self.every_group = config.kl > 0 or config.entropy != 0
        self.max_new_tokens = config.max_new_tokens or default_new_tokens(tokenizer)
        self.questions, long = fitting(questions, tokenizer, context, self.max_new_tokens)  # (question, prompt) pairs
        if long and process.main:
            print(left_out(long, len(questions), context, self.max_new_tokens), file=sys.stderr)
        self.order = Cursor(len(self.questions), seed)

    def sample(self, model: GPT) -> tuple[list[Group], dict]:
        """--prompts groups of judged answers, the same on every rank, and the metrics of all that were sampled.

        With --resample further batches are sampled, until so many groups have signal.
        """
        c, start, groups = self.config, time.perf_counter(), []
        idle = 0.0
        for _ in range(1 + c.resample):
            groups += self.rollouts(model)
            idle += self.process.idle
            if sum(map(has_signal, groups)) >= c.prompts:
                break
        metrics = sampling_metrics(groups, model, time.perf_counter() - start)
        if self.process.world > 1:
            metrics["idle_s"] = idle  # of sample_s, that ranks wait for the slowest
        if c.resample:  # the groups with signal, and others only to make up the number
            groups = sorted(groups, key=lambda group: not has_signal(group))[: c.prompts]
        return groups, metrics

    def rollouts(self, model: GPT) -> list[Group]:
        """The next --prompts questions, --rollouts answers to each with rewards and advantages; the same on every rank."""
        c, first = self.config, self.order.position  # number of the first question drawn; no other in the run has it
        drawn = [self.questions[i] for i in self.order.draw(c.prompts)]

        # Sample and judge. Ranks share the questions: `mine` are this rank's
        def groups_of(mine: list[int]) -> Iterator[Group]:
            sampled = sample(
                model, [drawn[i][1] for i in mine], c.rollouts, stop=self.tokenizer.eos, max_new_tokens=self.max_new_tokens,
                temperature=c.temperature, seed=self.seed, kv_gib=c.kv_gib, numbers=[first + i for i in mine],
                stopping=self.process.stopping,
            )  # fmt: skip
            for i, continuations in zip(mine, sampled, strict=False):  # on a signal `sampled` is empty
                (question, prompt), group = drawn[i], []
                for s in continuations:
                    text = self.tokenizer.decode(s.text_tokens)
                    reward, right = reward_of(text, question["answer"], s.finished, c)
                    valid = s.finished or c.truncated != "mask"
                    group += [Answer(question, prompt, s.tokens, text, s.log_probs, s.finished, valid, reward, right)]
                yield group

        groups = self.process.spread(len(drawn), groups_of)

        # Advantages, within each group
        rewards = torch.tensor([[answer.reward for answer in group] for group in groups])  # (P, n)
        valid = torch.tensor([[answer.valid for answer in group] for group in groups])
        for group, row in zip(groups, advantages(rewards, valid, c.advantage).tolist(), strict=True):
            for answer, advantage in zip(group, row, strict=True):
                answer.advantage = advantage
        return groups

    def minibatches(self, groups: list[Group]) -> list[list[Group]]:
        """The groups of each optimizer step, of all --inner_epochs. A group is never divided between two."""
        size = self.config.minibatch or len(groups)
        return [groups[i : i + size] for i in range(0, len(groups), size)] * self.config.inner_epochs

    def batches(self, minibatch: list[Group]):
        """This rank's part of a minibatch in micro-batches: pairs of a Packed batch and its answers.

        Groups without signal are left out where no term of the loss has a gradient there. The same groups always make
        the same batches: so `recompute` and `backward` round alike.
        """
        used = [group for group in minibatch if self.every_group or has_signal(group)]
        sizes = [len(group[0].prompt) + sum(len(a.tokens) for a in group) for group in used]
        mine = [used[i] for i in self.process.share(sizes)]
        items = [(group[0].prompt, [a.tokens for a in group]) for group in mine]
        batches = packed_batches(items, self.process.micro_tokens, self.process.device)
        for packed, parts in self.process.unless_stopping(batches):
            # parts: which answers (rows) of which group (i) are in this batch, in its order
            yield packed, [mine[i][row] for i, rows in parts for row in rows]

    @torch.no_grad()
    def recompute(self, model: GPT, minibatches: list[list[Group]]) -> float:
        """Set old_log_prob, of the answers that this rank trains on, to log p of the training's forward pass.

        From the second update of a step on, ρ divides by p_old. The sampler's p_old would not do: decoding rounds at
        other places than training, and in bf16 the two differ by up to 40% before any update. Returns the FLOPs, over
        all ranks.
        """
        flops, epochs = 0.0, self.config.inner_epochs
        # Every group once. With one epoch the first minibatch, whose p_old is p, never comes again
        first = 1 if epochs == 1 else 0
        for minibatch in minibatches[first : len(minibatches) // epochs]:
            for packed, answers in self.batches(minibatch):
                with self.process.autocast():
                    log_prob = packed.log_probs(model, self.config.temperature).log_prob.cpu().numpy()  # (ΣA,)
                ends = np.cumsum([len(a.tokens) for a in answers])[:-1]
                for answer, values in zip(answers, np.split(log_prob, ends), strict=True):
                    answer.old_log_prob = values
                flops += answers_flops(model.config, packed.lengths)
        return self.process.sum({"flops": flops})["flops"]

    def backward(self, model: GPT, minibatch: list[Group], on_policy: bool, scale: float = 1.0) -> dict | None:
        """Add this rank's part of the minibatch's gradient to .grad. Returns the minibatch's metrics over all ranks;
        None, on every rank, if no answer of it has anything to learn from.

        Args:
            on_policy: no update has been made since these answers were sampled. Then p_old is p itself and ρ is 1.
            scale: factor of the gradient (average.py's combined loss).
        """
        c, device = self.config, self.process.device
        if not (self.every_group or any(map(has_signal, minibatch))):
            return None

        # w of every token, from the answers of all ranks
        all_answers = [answer for group in minibatch for answer in group]
        lengths = torch.tensor([len(a.tokens) for a in all_answers])
        valid = torch.tensor([a.valid for a in all_answers])
        weights = token_weights(lengths, valid, c.aggregation, self.max_new_tokens).tolist()
        for answer, weight in zip(all_answers, weights, strict=True):
            answer.weight = weight

        # The loss and its gradient, one micro-batch after the other
        sums = dict.fromkeys(("loss", "weight", "clip_fraction", "ratio", "kl", "trained_tokens", "flops"), 0.0)
        for packed, answers in self.batches(minibatch):
            advantage = packed.per_token([a.advantage for a in answers])  # (ΣA,), as all that follows
            weight = packed.per_token([a.weight for a in answers])
            with self.process.autocast():
                new = packed.log_probs(model, c.temperature, entropy=c.entropy != 0)
            old = new.log_prob.detach()
            if not on_policy:
                old = torch.from_numpy(np.concatenate([a.old_log_prob for a in answers])).to(device)
            loss, stats = policy_loss(new.log_prob, old, advantage, weight, c.clip_low, c.clip_high, c.dual_clip)
            if self.reference is not None:
                with torch.no_grad(), self.process.autocast():
                    reference = packed.log_probs(self.reference, c.temperature).log_prob
                divergence = (weight * k3(new.log_prob, reference)).sum()
                loss = loss + c.kl * divergence
                stats["kl"] = divergence.item()
            if c.entropy:
                loss = loss - c.entropy * (weight * new.entropy).sum()
            (scale * loss).backward()
            trained = packed.tokens.numel()  # of the row: prompts too
            stats |= {"loss": loss.item(), "weight": weight.sum().item(), "trained_tokens": trained}
            passes = 3 if self.reference is None else 4  # forward, backward (counts twice); and the reference's forward
            stats["flops"] = passes * answers_flops(model.config, packed.lengths)
            for key, value in stats.items():
                sums[key] += value

        # Means over the tokens that were trained on: `batches` leaves groups out, so their weights need not sum to 1
        total = self.process.sum(sums)
        weight = max(total.pop("weight"), 1e-12)
        return total | {key: total[key] / weight for key in ("clip_fraction", "ratio", "kl")}


# ---------------------------------------------------------------------------------------------------------------------
# Metrics and the log of rollouts
# ---------------------------------------------------------------------------------------------------------------------


def sampling_metrics(groups: list[Group], model: GPT, seconds: float) -> dict:
    """What the sampled answers of one step were like."""
    answers = [answer for group in groups for answer in group]
    tokens = sum(len(a.tokens) for a in answers)
    lengths = [(len(group[0].prompt), [len(a.tokens) for a in group]) for group in groups]
    return {
        "reward": float(np.mean([a.reward for a in answers])),
        "pass_at_1": float(np.mean([a.right for a in answers])),
        "pass_at_n": float(np.mean([any(a.right for a in group) for group in groups])),
        "signal": float(np.mean([has_signal(group) for group in groups])),
        "length": float(np.mean([len(a.tokens) for a in answers])),
        "truncated": 1.0 - float(np.mean([a.finished for a in answers])),
        "entropy": -float(np.mean(np.concatenate([a.old_log_prob for a in answers]))),
        "groups_sampled": len(groups),
        "sampled_tokens": tokens,
        "sample_s": seconds,
        "sample_tokens_per_s": tokens / seconds,
        "flops": answers_flops(model.config, lengths),
    }


def with_updates(sampled: dict, updates: list[dict], seconds: float, extra_flops: float = 0.0) -> dict:
    """The metrics of one step: those of its answers (`sampling_metrics`), and means (of tokens and FLOPs: sums) over
    its updates, which took `seconds`. extra_flops: of `GRPO.recompute`."""
    if not updates:
        return sampled | {"updates": 0}
    values = {key: float(np.mean([u[key] for u in updates])) for key in updates[0]}
    values["trained_tokens"] = float(sum(u["trained_tokens"] for u in updates))
    values["flops"] = sampled["flops"] + (float(sum(u["flops"] for u in updates)) + extra_flops)
    rate = values["trained_tokens"] / seconds
    return sampled | values | {"updates": len(updates), "train_s": seconds, "train_tokens_per_s": rate}


class RolloutLog:
    """Gives a few groups of every step to OUT/rollouts.jsonl.gz; now and then prints an answer and gives those groups
    to --logger; warns where no group has signal."""

    def __init__(self, run: Run):
        self.run, self.steps_without_signal, self.calls = run, 0, 0

    def __call__(self, step: Step, groups: list[Group]) -> None:
        """To be called at the end of a step, with its groups."""
        n = 0 if step.metrics["signal"] else self.steps_without_signal + 1
        self.steps_without_signal, written = n, groups[:WRITTEN]
        for group in written:
            row = {key: group[0].question[key] for key in ("id", "question", "answer")}
            row |= {"rewards": [a.reward for a in group], "finished": [a.finished for a in group]}
            step.rollouts.append(row | {"samples": [a.text for a in group]})
        if not self.run.process.main:
            return
        number = step.number + 1
        if n and n & (n - 1) == 0:  # the 1st, 2nd, 4th, 8th ... time in a row
            tqdm.write(f"step {number}: no group carries signal (the rewards of each question are all equal): these taught "
                       f"nothing; {n} such steps in a row")  # fmt: skip
        # Not the step's number, of which the RL steps of mode interleaved may never have a multiple of 16
        self.calls += 1
        if self.calls % SHOW_EVERY == 1:
            self.run.log.table(number, "rollouts", [answer_row(a) for group in written for a in group])
            a = groups[0][0]
            text = printable(self.run.tokenizer.decode(a.prompt) + a.text)
            tqdm.write(f"step {number}  reward {a.reward:g}  (right: {a.question['answer']})\n"
                       "  | " + text.replace("\n", "\n  | "))  # fmt: skip


def answer_row(answer: Answer) -> dict:
    """An answer in the tables of --logger."""
    question = answer.question
    return {"id": question["id"], "question": question["question"], "right": question["answer"], "answer": answer.text,
            "reward": answer.reward, "advantage": answer.advantage, "finished": answer.finished}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# The stage
# ---------------------------------------------------------------------------------------------------------------------


def kl_reference(model: GPT, dtype: torch.dtype) -> GPT:
    """`model` as the reference of the KL: without gradients, and the matrices of its products in `dtype`, as autocast
    would multiply them. The rest stays fp32, as autocast leaves it. So its log-probs have the bits of the policy's at
    equal weights."""
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.weight = torch.nn.Parameter(module.weight.detach().to(dtype))
    return model.eval().requires_grad_(False)


def make_grpo(run: Run) -> GRPO:
    """The GRPO side of a stage, from its flags (PostConfig and GRPOConfig)."""
    config, process, reference = run.config, run.process, None
    questions = find_questions(config.data, config.questions, "train", config.limit)
    say(what_to_expect(questions, run.progress.tokens), run.process)
    if config.difficulty:
        questions = in_band(questions, *file_and_band(config.difficulty))
    questions = [q | {"solutions": []} for q in questions]  # RL never reads these texts, a GB at the paper's scale
    run.trains_on(questions_digest(questions))
    if config.kl > 0:
        start = load_checkpoint(config.init)
        # A resumed run has its own weights from last.pt, the reference from here
        if config.resume and start["lineage"] != run.lineage:
            raise UserError(f"--resume: {config.init} is another model by now than the one that this run began with; put that back, or "
                            "begin a new run")  # fmt: skip
        reference = kl_reference(load_model(start, process.device), process.dtype)
    return GRPO(config, questions, run.tokenizer, process, config.seed, run.model.config.context, reference)


def grpo_step(run: Run, grpo: GRPO, optimizer: torch.optim.Optimizer, lr: float) -> tuple[list[Group], dict]:
    """One step of GRPO on run.model; returns the groups that it trained on, and its metrics."""
    model, process = run.model, run.process

    # Sample n answers to each question, judge them, take advantages within each group
    groups, sampled = grpo.sample(model)

    # If there will be several updates: p_old from the training forward, before the first of them
    start, extra_flops = time.perf_counter(), 0.0
    minibatches = grpo.minibatches(groups)
    if len(minibatches) > 1:
        extra_flops = grpo.recompute(run.fast, minibatches)

    # An AdamW update for each minibatch that has a gradient: without one no decay and no momentum acts either
    updates = []
    for minibatch in minibatches:
        stats = grpo.backward(run.fast, minibatch, on_policy=not updates)
        if stats is not None:
            stats["grad_norm"] = optimizer_step(model, optimizer, process, lr, run.config.clip)
            if not math.isfinite(stats["loss"] + stats["grad_norm"]):
                run.skip("loss or gradient")
            updates.append(stats)
    return groups, with_updates(sampled, updates, time.perf_counter() - start, extra_flops)


def main(config: Config) -> None:
    # Open the run, with the model of --init or of last.pt; read the questions
    run = begin(config, "rl")
    model, process = run.model, run.process
    grpo = make_grpo(run)
    steps = config.total_steps(len(grpo.questions), config.prompts)
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS)
    run.restore(optimizer=optimizer, grpo=grpo.order)
    run.compile(steps)
    evaluate, log = make_evaluate(run), RolloutLog(run)
    if process.main:
        print(f"{config.init}: {model.n_params / 1e6:.2f} M parameters; {len(grpo.questions)} questions, "
              f"{steps} steps of {config.prompts} x {config.rollouts} answers; writes {run.out}")  # fmt: skip

    # `run.steps` evaluates, saves, and obeys signals between the steps
    for step in run.steps(steps, evaluate, shown=("reward", "signal", "length", "val_pass@1")):
        groups, step.metrics = grpo_step(run, grpo, optimizer, step.lr)
        log(step, groups)


if __name__ == "__main__":
    cli(main, Config, PRESETS)
