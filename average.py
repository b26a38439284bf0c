"""Parallel averaging of RL and SFT updates (the paper's §"Parallel averaging"), and the baselines beside it.

    python average.py --init out/pretrain/step_0004883.pt --out out/average                 # minutes on a CPU
    python average.py --init M.pt --data out/paper --preset paper                           # the paper's settings
    python average.py --init M.pt --mode interleaved --sft_steps 4 --rl_steps 1             # a baseline
    python average.py --mode soup --init RL.pt --other SFT.pt --weight 0.5 --out out/soup   # average finished models

Every step of `parallel`, from a snapshot θ̄ of the weights:

    g_RL = ∇ L_RL(θ̄)      g_SFT = ∇ L_SFT(θ̄)          each clipped on its own
    Δ_RL, Δ_SFT = two AdamW steps, each with its own moments, learning rate and decay
    θ = θ̄ + w Δ_RL + (1 - w) Δ_SFT                      w = ½

Baselines, one optimizer each: `combined` minimises w L_RL + (1 - w) L_SFT (or --sft_weight); `interleaved` makes
--sft_steps SFT steps, then --rl_steps RL steps, and so on; `curriculum` begins with --sft_steps SFT steps to 1 RL step,
and each round has one SFT step fewer and one RL step more. Losses, sampling and data are those of rl.py and sft.py.

Beyond the paper: --weight_end moves w linearly over the run; --adapt norm sets w so that both gradients (before
clipping) get equal say (a step with one gradient takes its update whole); --adapt signal sets w to the share of questions
whose answers carry signal.
"""

import math
from dataclasses import asdict, dataclass, fields
from typing import Literal

import torch
from torch import Tensor

from cli import UserError, cli, refuse_idle
from eval import HeldOut, held_out
from model import GPT
from rl import BETAS, GRPOConfig, RolloutLog, make_grpo, merge, total_over_ranks, update
from runtime import (
    Clock,
    PostConfig,
    Run,
    begin,
    clip_gradients,
    load_checkpoint,
    make_optimizer,
    optimizer_step,
    reduce_gradients,
)
from sft import SFTConfig, make_sft, sft_update


@dataclass
class Config(PostConfig, GRPOConfig, SFTConfig, HeldOut):
    """Flags of average.py. --lr is that of the RL side."""

    mode: Literal["parallel", "combined", "interleaved", "curriculum", "soup"] = "parallel"  # see above
    weight: float = 0.5  # w, the share of the RL update (loss, or model)
    weight_end: float = -1.0  # w moves linearly to this over the run; -1: constant
    sft_weight: float = -1.0  # combined: weight of the SFT loss (the authors: 1, beside --weight 1); -1: 1 - w
    adapt: Literal["", "norm", "signal"] = ""  # choose w at each step; see above
    lr: float = 1e-4  # of the RL side, and of RL steps
    sft_lr: float = 3e-4  # of the SFT side, and of SFT steps
    weight_decay: float = 0.01  # decoupled; see --decay
    sft_steps: int = -1  # interleaved: SFT steps in a row (-1: 1); curriculum: those of the first round (-1: 200)
    rl_steps: int = 1  # interleaved: RL steps in a row
    other: str = ""  # soup: the second checkpoint
    # the paper's settings; paper_combined: those of the authors' runs of --mode combined; flags beside it win
    preset: Literal["", "paper", "paper_combined"] = ""

    def check(self) -> None:
        """UserError for flags that no run can have."""
        refuse_idle(self, idle_in(self.mode))
        super().check()
        if self.sft_steps < 0:
            self.sft_steps = 200 if self.mode == "curriculum" else 1
        if self.sft_steps + self.rl_steps < 1:
            raise UserError("--sft_steps and --rl_steps must not both be 0")
        if self.mode == "soup" and not self.other:
            raise UserError("--mode soup: name the second checkpoint with --other")


PAPER = dict(
    prompts=512, rollouts=32, rows=512, lr=1e-6, sft_lr=1e-6, schedule="constant", warmup=0, kl=0.0, max_new_tokens=512,
    clip=1.0, dual_clip=3.0, truncated="score", weight_decay=0.01, decay="all", loss="token_sum",
    solutions="first", sft_cut=512, steps=2200, save_at="1000,1800,2200",
)  # fmt: skip
PRESETS = {
    "paper": PAPER,
    "paper_combined": PAPER | dict(mode="combined", weight=1.0, sft_weight=1.0, lr=4e-5),
}


class TwoStreams:
    """The averaged step: two optimizers that never see each other's gradient."""

    def __init__(self, model: GPT, rl: torch.optim.Optimizer, sft: torch.optim.Optimizer):
        self.model, self.rl, self.sft = model, rl, sft
        self.parameters = list(model.parameters())

    @torch.no_grad()
    def snapshot(self) -> list[Tensor]:
        return [p.detach().clone() for p in self.parameters]

    @torch.no_grad()
    def take_update(self, optimizer: torch.optim.Optimizer, lr: float, snapshot: list[Tensor]) -> list[Tensor]:
        """Δ of an AdamW step on the current .grad; puts the weights back to the snapshot and clears .grad."""
        self.step(optimizer, lr)
        delta = []
        for p, at in zip(self.parameters, snapshot, strict=True):
            delta.append(p - at)
            p.copy_(at)
        return delta

    def step(self, optimizer: torch.optim.Optimizer, lr: float) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad()

    @torch.no_grad()
    def average(self, snapshot: list[Tensor], delta: list[Tensor] | None, weight: float) -> None:
        """θ = θ̄ + w Δ + (1 - w) (θ - θ̄), in fp32: the weights stand at θ̄ plus the other stream's update, which
        therefore needs no buffer. delta None is a zero update."""
        for i, (p, at) in enumerate(zip(self.parameters, snapshot, strict=True)):
            update = p.sub_(at).mul_(1 - weight)
            if delta is not None:
                update.add_(delta[i].mul_(weight))
            update.add_(at)


def weight_at(config: Config, step: int, steps: int, rl_norm: float, sft_norm: float, signal: float) -> float:
    """w of a step: constant, moving linearly, or adapted. A norm of 0 says that its side makes no update."""
    if config.adapt == "norm":
        if rl_norm == 0 or sft_norm == 0:
            return float(sft_norm == 0)  # the update of the other side is applied whole, not multiplied by 0
        return sft_norm / (rl_norm + sft_norm)  # w |g_RL| = (1 - w) |g_SFT|
    if config.adapt == "signal":
        return signal
    if config.weight_end < 0:
        return config.weight
    return config.weight + (config.weight_end - config.weight) * step / max(1, steps - 1)


def is_rl_step(config: Config, step: int) -> bool:
    """Interleaved and curriculum: is step number `step` (from 0) an RL step?"""
    if config.mode == "interleaved":
        return step % (config.sft_steps + config.rl_steps) >= config.sft_steps
    sft_steps, rl_steps = config.sft_steps, 1
    while step >= sft_steps + rl_steps:
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
    shared = 0.0  # FLOPs of the stages that both have behind them
    for one, two in zip(run.lineage, other["lineage"], strict=False):
        if one != two:
            break
        shared = one.get("flops")
    known = None not in (progress.flops, other["flops"], shared)
    progress.flops = progress.flops + other["flops"] - shared if known else None
    for name, weight in run.model.state_dict().items():
        weight.mul_(config.weight).add_((1 - config.weight) * other["model"][name].to(weight))
    run.claim()
    run.save(keep=False)
    if run.process.main:
        print(f"wrote {run.last_good}; next: python eval.py --checkpoint {run.last_good}")
    run.close()


def idle_in(mode: str) -> dict[str, str]:
    """Flag → why it has no effect in this mode (see cli.refuse_idle)."""
    acting = {  # of the flags that not every mode has
        "parallel": {"weight", "weight_end", "adapt", "sft_lr"},
        "combined": {"weight", "weight_end", "sft_weight"},
        "interleaved": {"sft_lr", "sft_steps", "rl_steps", "minibatch", "inner_epochs"},
        "curriculum": {"sft_lr", "sft_steps", "minibatch", "inner_epochs"},
        "soup": {"weight", "other"},
    }
    why = f"with --mode {mode}"
    if mode == "soup":
        return {f.name: why for f in fields(Config) if f.name not in {"mode", "init", "out", *acting[mode]}}
    return dict.fromkeys(set().union(*acting.values()) - acting[mode], why)


def main(config: Config) -> None:
    run = begin(config, "average")
    if config.mode == "soup":
        return soup(config, run)
    model, tokenizer, process, progress = run.model, run.tokenizer, run.process, run.progress
    grpo, sft = make_grpo(run), make_sft(run)
    steps = math.ceil(config.epochs * len(grpo.questions) / config.prompts) if config.epochs else config.steps
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS, config.decay)
    second = make_optimizer(model, config.sft_lr, config.weight_decay, BETAS, config.decay)  # parallel alone uses it
    streams = TwoStreams(model, optimizer, second)
    run.restore(optimizer=optimizer, sft_optimizer=second, grpo=grpo.order, sft=sft.order)
    evaluate = held_out(config, config.data, model, tokenizer, process)
    log = RolloutLog(run)
    if process.main:
        print(f"{config.mode} from {config.init}: {model.n_params / 1e6:.2f} M parameters; {len(grpo.questions)} questions, "
              f"{len(sft.data)} rows, {steps} steps; writes {run.out}")  # fmt: skip

    def rl_gradient(scale: float) -> tuple[dict, bool]:
        groups, sampled = grpo.rollouts(model)
        clock = Clock()
        stats = total_over_ranks(process, grpo.backward(model, groups, first=True, scale=scale))
        log(groups, stats is not None)
        trained = {"updates": 0, "flops": 0.0} if stats is None else {**stats, "updates": 1, "train_s": clock.lap()}
        return merge(sampled, trained), stats is not None

    def sft_rate(lr: float) -> float:  # the schedule moves both rates
        return config.sft_lr * lr / config.lr if config.lr else config.sft_lr

    def parallel(lr: float) -> dict:
        values, learned = rl_gradient(1.0)
        snapshot, delta_rl, rl_norm = streams.snapshot(), None, 0.0
        if learned:
            reduce_gradients(model, process)
            rl_norm = clip_gradients(model, config.clip)
        finite = math.isfinite(rl_norm + values.get("loss", 0.0))
        if learned and finite:
            process.updated = True
            delta_rl = streams.take_update(optimizer, lr, snapshot)
        optimizer.zero_grad()
        stats = process.sum_dict(sft.backward(model, sft.draw()))  # at the snapshot: take_update has put it back
        reduce_gradients(model, process)
        sft_norm = clip_gradients(model, config.clip)
        sft_finite = math.isfinite(sft_norm + stats["sft_loss"])
        if sft_finite:
            streams.step(second, sft_rate(lr))
        finite = finite and sft_finite
        second.zero_grad()
        norms = (0.0 if delta_rl is None else rl_norm, sft_norm if sft_finite else 0.0)  # of the updates made
        weight = weight_at(config, progress.step, steps, *norms, values["signal"])
        streams.average(snapshot, delta_rl, weight)
        if not finite:
            run.skip("loss or gradient")
        values["flops"] += stats.pop("flops")
        return values | stats | {"grad_norm": rl_norm, "sft_grad_norm": sft_norm, "weight": weight}

    def combined(lr: float) -> dict:
        weight = weight_at(config, progress.step, steps, 0.0, 0.0, 0.0)
        values, _ = rl_gradient(weight)
        sft_weight = 1 - weight if config.sft_weight < 0 else config.sft_weight
        stats = process.sum_dict(sft.backward(model, sft.draw(), scale=sft_weight))
        norm = optimizer_step(model, optimizer, process, lr, config.clip)
        if not math.isfinite(norm + stats["sft_loss"]):
            run.skip("loss or gradient")
        values["flops"] += stats.pop("flops")
        return values | stats | {"grad_norm": norm, "weight": weight}

    def alternate(lr: float) -> dict:
        if not is_rl_step(config, progress.step):
            return sft_update(sft, model, optimizer, run, sft_rate(lr))
        groups, sampled = grpo.rollouts(model)
        trained = update(grpo, model, optimizer, groups, run, lr)
        log(groups, trained["updates"] > 0)
        return merge(sampled, trained)

    make = {"parallel": parallel, "combined": combined}.get(config.mode, alternate)
    shown = ("reward", "signal", "sft_loss", "val_pass@1")
    for step in run.steps(steps, evaluate, shown):
        step.log(**make(step.lr))


if __name__ == "__main__":
    cli(main, Config, PRESETS)
