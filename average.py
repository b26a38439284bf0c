"""Parallel averaging of RL and SFT updates (the paper's §"Parallel averaging"), and the baselines beside it.

    python average.py --init out/pretrain/step_0004883.pt --out out/average                 # minutes on a CPU
    python average.py --init M.pt --data out/paper --preset paper                           # the paper's settings
    python average.py --init M.pt --mode interleaved --turns 4:1                            # a baseline
    python average.py --mode soup --init RL.pt --other SFT.pt --weight 0.5 --out out/soup   # average finished models

Every step of `parallel`, from a snapshot θ̄ of the weights:

    g_RL = ∇ L_RL(θ̄)      g_SFT = ∇ L_SFT(θ̄)          each clipped on its own
    Δ_RL, Δ_SFT = two AdamW steps, each with its own moments, learning rate and decay
    θ = θ̄ + w Δ_RL + (1 - w) Δ_SFT                      w = ½

Baselines, one optimizer each: `combined` minimises w L_RL + (1 - w) L_SFT; `interleaved` makes SFT steps and RL steps
in turns (--turns 4:1); `curriculum` begins with --turns 200:1, and each round has one SFT step fewer and one RL step
more. Losses, sampling and data are those of rl.py and sft.py. An RL step makes one update with all its answers, so that
its ratio is 1 and is not clipped.

Both sides of `parallel` and `combined` go through the questions in one order: with equal --prompts and --rows, and one
solution a question, a step's two sides learn from the same questions. Modes in turns have an order for each side, for
else RL would be asked what SFT has just been shown.

Beyond the paper, --weight 0.5:0.1 moves w linearly over the run, and two choices set w anew at every step.
--weight norm: w |g_RL| = (1 - w) |g_SFT|, with the norms before clipping; if one side has no gradient, w gives the
other side's update its full length. --weight signal: w is the share of questions whose answers differ in reward.
"""

import math
import time
from dataclasses import asdict, dataclass, fields
from typing import ClassVar, Literal

import torch
from torch import Tensor

from checkpoint import load_checkpoint
from cli import UserError, cli
from config import MachineConfig, OptimizerConfig, PostConfig
from eval import HeldOut, make_evaluate
from model import GPT
from optimizer import make_optimizer, optimizer_step
from rl import BETAS, GRPO, Group, GRPOConfig, RolloutLog, grpo_step, make_grpo, with_updates
from runtime import Run, begin
from sft import SFT, SFTConfig, make_sft, sft_step
from sharding import gather_weights, masters


@dataclass
class AverageConfig:
    """Averaging: how RL and SFT are combined"""

    # averaged updates (parallel), a baseline, or the average of two finished models (soup); see above
    mode: Literal["parallel", "combined", "interleaved", "curriculum", "soup"] = "parallel"
    # w, the share of the RL update (combined: of the RL loss; soup: of the model --init): a number; 0.5:0.1, moving
    # linearly over the run; or, in mode parallel, norm or signal, chosen at each step (see above)
    weight: float | str = 0.5
    sft_lr: float = 3e-4  # peak learning rate of the SFT side and of SFT steps
    turns: str = ""  # SFT:RL steps in a row. interleaved: 1:1 unless given; curriculum: of the first round, 200:1
    other: str = ""  # soup: the second checkpoint

    def idle(self) -> dict[str, str]:
        acting = {  # mode → those of its flags that not every mode has
            "parallel": {"weight", "sft_lr"},
            "combined": {"weight"},
            "interleaved": {"sft_lr", "turns"},
            "curriculum": {"sft_lr", "turns"},
            "soup": {"weight", "other"},
        }
        why = f"with --mode {self.mode}"
        if self.mode == "soup":
            return {f.name: why for f in fields(self) if f.name not in {"mode", "init", "out", *acting["soup"]}}
        return dict.fromkeys(set().union(*acting.values()) - acting[self.mode], why)


@dataclass
class Config(PostConfig, AverageConfig, GRPOConfig, SFTConfig, HeldOut, OptimizerConfig, MachineConfig):
    """Recipe: many of the flags below at once"""

    lr: float = 1e-4  # peak learning rate of the RL side and of RL steps
    weight_decay: float = 0.01
    # paper: the paper's settings; paper_combined: those of the authors' runs of --mode combined; flags beside it win
    preset: Literal["", "paper", "paper_combined"] = ""
    # an RL step makes one update, so these are no flags here
    minibatch: ClassVar[int] = 0
    inner_epochs: ClassVar[int] = 1
    clip_low: ClassVar[float] = 0.2
    clip_high: ClassVar[float] = 0.2
    dual_clip: ClassVar[float] = 0.0

    def check(self) -> None:
        super().check()
        self.weights()
        self.in_turn()
        if self.mode == "soup" and not self.other:
            raise UserError("--mode soup: name the second checkpoint with --other")

    def weights(self) -> tuple[float, float]:
        """w of the first step and of the last, where it is not chosen at each step."""
        if self.weight in ("norm", "signal") and self.mode == "parallel":
            return 0.5, 0.5
        first, _, last = str(self.weight).partition(":")
        try:
            first, last = float(first), float(last or first)
        except ValueError:
            first = last = -1
        if not (0 <= first <= 1 and 0 <= last <= 1) or (self.mode == "soup" and first != last):
            raise UserError(f"--weight {self.weight}: a number from 0 to 1; except in mode soup, two such as 0.5:0.1; in "
                            "mode parallel also norm or signal")  # fmt: skip
        return first, last

    def in_turn(self) -> tuple[int, int]:
        """SFT steps and RL steps in a row (curriculum: in its first round)."""
        sft_steps, _, rl_steps = (self.turns or ("200:1" if self.mode == "curriculum" else "1:1")).partition(":")
        if not (sft_steps.isdecimal() and rl_steps.isdecimal() and int(sft_steps) + int(rl_steps) > 0):
            raise UserError(f"--turns {self.turns}: SFT steps and RL steps in a row, not both 0, such as 4:1")
        return int(sft_steps), int(rl_steps)


PAPER = dict(
    prompts=512, rollouts=32, rows=512, lr=1e-6, sft_lr=1e-6, schedule="constant", kl=0.0, max_new_tokens=512,
    clip=1.0, truncated="score", weight_decay=0.01, loss="token_sum",
    solutions="first", sft_cut=512, steps=2200, save_at="1000,1800,2200",
)  # fmt: skip
PRESETS = {
    "paper": PAPER,
    # the authors' L_RL + L_SFT, clipped at 1, is twice ours, clipped at 0.5: AdamW makes the same step
    "paper_combined": PAPER | dict(mode="combined", weight=0.5, clip=0.5, lr=4e-5),
}


@torch.no_grad()
def take_update(model: GPT, snapshot: list[Tensor]) -> list[Tensor]:
    """Δ = θ - θ̄ of each parameter; puts the weights back to the snapshot θ̄."""
    delta = []
    for p, before in zip(masters(model), snapshot, strict=True):
        delta.append(p - before)
        p.copy_(before)
    gather_weights(model)
    return delta


@torch.no_grad()
def average_updates(model: GPT, snapshot: list[Tensor], delta: list[Tensor] | None, weight: float) -> None:
    """Set the weights to θ̄ + w Δ_RL + (1 - w) Δ_SFT, in fp32.

    Args:
        model: its weights are θ̄ + Δ_SFT: the SFT step was the last one, so Δ_SFT needs no buffer.
        delta: Δ_RL, which is overwritten; None: no RL update was made. weight: w.
    """
    for i, (p, before) in enumerate(zip(masters(model), snapshot, strict=True)):
        update = p.sub_(before).mul_(1 - weight)  # in place: `update` is p
        if delta is not None:
            update.add_(delta[i].mul_(weight))
        update.add_(before)
    gather_weights(model)


def weight_at(config: Config, step: int, steps: int, rl_norm: float, sft_norm: float, signal: float) -> float:
    """w of a step: constant, moving linearly, or chosen from this step's figures.

    Args:
        rl_norm, sft_norm: gradient norms before clipping; 0: that side makes no update.
        signal: share of questions whose answers differ in reward.
    """
    if config.weight == "norm":
        if rl_norm == 0 or sft_norm == 0:
            return float(sft_norm == 0)  # the only update there is gets weight 1: w is 1 if it is RL's, 0 if SFT's
        return sft_norm / (rl_norm + sft_norm)  # w |g_RL| = (1 - w) |g_SFT|
    if config.weight == "signal":
        return signal
    first, last = config.weights()
    return first + (last - first) * step / max(1, steps - 1)


def is_rl_step(config: Config, step: int) -> bool:
    """Interleaved and curriculum: is step number `step` (from 0) an RL step?"""
    sft_steps, rl_steps = config.in_turn()
    if config.mode == "interleaved":
        return step % (sft_steps + rl_steps) >= sft_steps
    assert config.mode == "curriculum", f"--mode {config.mode}: main has no step for it"
    while step >= sft_steps + rl_steps:  # go from round to round
        step -= sft_steps + rl_steps
        sft_steps, rl_steps = max(0, sft_steps - 1), rl_steps + 1
    return step >= sft_steps


def soup(config: Config, run: Run) -> None:
    """Write the weighted mean of two finished models of one shape: w of --init, 1 - w of --other."""
    other, progress = load_checkpoint(config.other), run.progress
    for key, mine in (("config", asdict(run.model.config)), ("tokenizer", run.tokenizer.name)):
        if mine != other[key]:
            raise UserError(
                f"--init and --other differ in {key}: {mine} and {other[key]}; only equal models can be averaged"
            )
    # FLOPs of both models; those up to the last stage that both have in common count once
    shared = 0.0
    for one, two in zip(run.lineage, other["lineage"], strict=False):
        if one != two:
            break
        shared = one.get("flops")  # of this stage and all before it
    known = None not in (progress.flops, other["flops"], shared)
    progress.flops = progress.flops + other["flops"] - shared if known else None
    # The weighted mean, written in the place of run.model
    w, _ = config.weights()
    for name, tensor in run.model.state_dict().items():
        tensor.mul_(w).add_((1 - w) * other["model"][name].to(tensor))
    run.claim()  # the folder: no other process writes there now
    run.save(keep=False)
    if run.process.main:
        print(f"wrote {run.last_good}; next: python eval.py --checkpoint {run.last_good}")
    run.close()


@dataclass
class Sides:
    """The two sides of a run of this stage: objectives, their optimizers, and what their steps need."""

    run: Run
    steps: int  # of the whole run
    grpo: GRPO
    sft: SFT
    optimizer: torch.optim.Optimizer  # of RL; of every step where a mode has one optimizer
    sft_optimizer: torch.optim.Optimizer


def sft_rate(config: Config, lr: float) -> float:
    """The learning rate of the SFT side, where the schedule has brought that of the RL side to `lr`. With --lr 0 there
    is no schedule to follow: it is constant."""
    return config.sft_lr * lr / config.lr if config.lr else config.sft_lr


def parallel_step(sides: Sides, number: int, lr: float) -> tuple[list[Group], dict]:
    """Two AdamW updates from the same weights, each with an optimizer of its own, and their weighted mean.

    number: of the step, from 0. lr: of the RL side. Returns the groups that RL trained on, and the step's metrics.
    """
    run, config, model, process = sides.run, sides.run.config, sides.run.model, sides.run.process
    snapshot = [p.detach().clone() for p in masters(model)]  # θ̄

    # The RL side: answers and their gradient at θ̄, an AdamW step, its Δ; then back to θ̄
    groups, sampled = sides.grpo.sample(model)
    start = time.perf_counter()
    rl = sides.grpo.backward(run.fast, groups, on_policy=True)
    values = with_updates(sampled, [] if rl is None else [rl], time.perf_counter() - start)
    rl_delta, rl_norm, finite = None, 0.0, True
    if rl is not None:
        rl_norm = optimizer_step(model, sides.optimizer, process, lr, config.clip)
        finite = math.isfinite(rl_norm + rl["loss"])
        delta = take_update(model, snapshot)
        rl_delta = delta if finite else None

    # The SFT side: its own AdamW step from θ̄
    rows = sides.sft.draw()
    sft = sides.sft.backward(run.fast, rows)
    sft_norm = optimizer_step(model, sides.sft_optimizer, process, sft_rate(config, lr), config.clip)
    finite = finite and math.isfinite(sft_norm + sft["sft_loss"])

    # The mean of both updates. A side that made none counts as a gradient of norm 0. Norms are of means over tokens
    unit = sum(len(solution) for _, solution in rows) if config.loss == "token_sum" else 1
    norms = (rl_norm if rl_delta is not None else 0.0, sft_norm / unit if math.isfinite(sft_norm) else 0.0)
    weight = weight_at(config, number, sides.steps, *norms, values["signal"])
    average_updates(model, snapshot, rl_delta, weight)
    if not finite:
        run.skip("loss or gradient")
    flops = values["flops"] + sft["flops"]
    return groups, values | sft | {"grad_norm": rl_norm, "sft_grad_norm": sft_norm, "weight": weight, "flops": flops}


def combined_step(sides: Sides, number: int, lr: float) -> tuple[list[Group], dict]:
    """One AdamW update on the weighted sum of both losses; takes and returns what `parallel_step` does."""
    run, config, model = sides.run, sides.run.config, sides.run.model
    weight = weight_at(config, number, sides.steps, 0.0, 0.0, 0.0)  # no figures: norm and signal are parallel's alone

    # Both gradients, scaled by w and 1 - w, add up in .grad
    groups, sampled = sides.grpo.sample(model)
    start = time.perf_counter()
    rl = sides.grpo.backward(run.fast, groups, on_policy=True, scale=weight)
    values = with_updates(sampled, [] if rl is None else [rl], time.perf_counter() - start)
    sft = sides.sft.backward(run.fast, sides.sft.draw(), scale=1 - weight)

    # One update with their sum
    grad_norm = optimizer_step(model, sides.optimizer, run.process, lr, config.clip)
    if not math.isfinite(grad_norm + sft["sft_loss"] + (rl["loss"] if rl else 0.0)):
        run.skip("loss or gradient")
    return groups, values | sft | {"grad_norm": grad_norm, "weight": weight, "flops": values["flops"] + sft["flops"]}


def main(config: Config) -> None:
    # Open the run, with the model of --init or of last.pt; averaging finished models trains nothing
    run = begin(config, "average")
    if config.mode == "soup":
        return soup(config, run)

    # Both sides: questions and rows, and an optimizer for each
    model, process = run.model, run.process
    grpo, sft = make_grpo(run), make_sft(run)
    steps = config.total_steps(len(grpo.questions), config.prompts)
    in_turns = config.mode in ("interleaved", "curriculum")
    if in_turns and not any(is_rl_step(config, step) for step in range(steps)):
        raise UserError(f"--mode {config.mode}: its first RL step comes after the {steps} steps of this run; raise --steps, or pass "
                        "--turns with fewer SFT steps, such as 4:1")  # fmt: skip
    sft.order.stream = int(in_turns)  # another order than RL's
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS)
    sft_optimizer = make_optimizer(model, config.sft_lr, config.weight_decay, BETAS)  # only mode parallel uses it
    run.restore(optimizer=optimizer, sft_optimizer=sft_optimizer, grpo=grpo.order, sft=sft.order)
    run.compile(steps)
    sides = Sides(run, steps, grpo, sft, optimizer, sft_optimizer)
    evaluate, log = make_evaluate(run), RolloutLog(run)
    if process.main:
        print(f"{config.mode} from {config.init}: {model.n_params / 1e6:.2f} M parameters; {len(grpo.questions)} questions, "
              f"{len(sft.data)} rows, {steps} steps; writes {run.out}")  # fmt: skip

    # `run.steps` evaluates, saves, and obeys signals between the steps
    for step in run.steps(steps, evaluate, shown=("reward", "signal", "sft_loss", "val_pass@1")):
        if config.mode == "parallel":
            groups, step.metrics = parallel_step(sides, step.number, step.lr)
        elif config.mode == "combined":
            groups, step.metrics = combined_step(sides, step.number, step.lr)
        elif is_rl_step(config, step.number):
            groups, step.metrics = grpo_step(run, grpo, optimizer, step.lr)
        else:
            groups, step.metrics = [], sft_step(run, sft, optimizer, sft_rate(config, step.lr))
        if groups:
            log(step, groups)


if __name__ == "__main__":
    cli(main, Config, PRESETS)
