"""AdamW, its learning rate and its step over all ranks; its state in a checkpoint.

    optimizer = make_optimizer(model, lr, weight_decay, betas)
    loss.backward()                                                # as often as a rank likes
    norm = optimizer_step(model, optimizer, process, lr, clip)     # the sum over ranks, clipping, the update

Gradients of all ranks are summed by an all-reduce of each parameter after the last micro-batch of a step, not by
DistributedDataParallel: a rank may then run any number of micro-batches (RL rollouts differ in length from rank to
rank), losses may call the model as often as they like, and the sum over ranks of losses that are each divided by the
*global* token count is exact.
What is given up is overlap with backward, under 1% of a step at the paper's batch sizes.
"""

import copy
import math

import torch
import torch.distributed as dist
from torch import nn

from cli import UserError
from model import GPT
from process import Process, together
from sharding import gather_weights, parts, sum_gradients

FINAL_LR = 0.1  # a cosine or linear schedule ends at this fraction of --lr


def make_optimizer(
    model: GPT, lr: float, weight_decay: float, betas: tuple[float, float], decay_gains: bool = False
) -> torch.optim.AdamW:
    """AdamW over fp32 weights, with decoupled decay on all matrices but the embedding table (`decay_gains`: and on the
    gains of RMSNorm, as OLMo2's pretraining)."""
    named = list(model.named_parameters())
    decays = {name: not name.startswith("embed") and (decay_gains or p.dim() > 1) for name, p in named}
    groups = [
        {"params": [p for name, p in named if decays[name]], "weight_decay": weight_decay},
        {"params": [p for name, p in named if not decays[name]], "weight_decay": 0.0},
    ]
    fused = named[0][1].device.type in ("cpu", "cuda", "mps")
    return torch.optim.AdamW(groups, lr=lr, betas=betas, eps=1e-8, fused=fused)


def learning_rate(lr: float, shape: str, warmup: int, step: int, total: int) -> float:
    """The rate of step number `step` (from 0) of `total`: up to `lr` in `warmup` steps, then constant or down to a
    tenth. A further shape also needs its name in `parse_schedule` (config.py)."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if shape == "constant":
        return lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = {"linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[shape]
    return lr * (FINAL_LR + (1 - FINAL_LR) * left)


def optimizer_step(
    model: nn.Module, optimizer: torch.optim.Optimizer, process: Process, lr: float, clip: float
) -> float:
    """Update the weights with the gradients of all ranks, summed; then clear them.

    A gradient longer than `clip` is scaled to that norm (0: never). Returns the norm before; if it is not finite,
    nothing is updated.
    """
    # Sum over ranks. One that saw no data contributes zeros
    if process.sharded:
        sum_gradients(model, process)
    elif process.world > 1:
        with together():
            for p in model.parameters():
                p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            for work in [dist.all_reduce(p.grad, async_op=True) for p in model.parameters()]:
                work.wait()

    # Clip and update. From here on a signal waits until the step is whole
    process.updated = True
    norm = nn.utils.clip_grad_norm_(model.parameters(), clip or math.inf)
    norm = (norm.full_tensor() if process.sharded else norm).item()
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad()
    if process.sharded:
        gather_weights(model)
    return norm


def first_state(optimizer: torch.optim.Optimizer) -> dict:
    """Name → value of what an optimizer keeps for a parameter, found by a step on a small trial parameter. AdamW keeps
    "step", "exp_avg", "exp_avg_sq"; a fork's optimizer something else. The model's parameters must not have gradients
    yet."""
    like = optimizer.param_groups[0]["params"][0].detach()
    like = like.to_local() if hasattr(like, "to_local") else like  # --shard
    trial = torch.zeros_like(like[:1]).requires_grad_()
    trial.grad = torch.zeros_like(trial)
    optimizer.add_param_group({"params": [trial]})
    optimizer.step()
    optimizer.param_groups.pop()
    return optimizer.state.pop(trial, {})


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The state of a checkpoint into an optimizer of the same kind and parameters. UserError if it does not fit: each
    tensor must be finite, and have the shape of its parameter or, such as a count of steps, none."""
    wanted = first_state(optimizer)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    try:
        if hasattr(parameters[0], "to_local"):  # --shard
            state = {**state, "state": parts(state["state"], parameters)}
        elif parameters[0].device.type == "cpu":
            state = copy.deepcopy(state)  # or the file, which is mapped, would stay in use; other devices copy anyway
        # settings are those of the flags, but for the rate of the last step, so that what is saved again has the same bits
        pairs = zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
        groups = [{**ours, "lr": float(theirs["lr"])} for ours, theirs in pairs]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        if optimizer.state and len(optimizer.state) < len(parameters):
            raise ValueError("a parameter has no state")
        for p, values in optimizer.state.items():
            if values.keys() != wanted.keys():
                raise ValueError(f"{', '.join(map(str, sorted(values.keys() ^ wanted.keys())))}: missing or unknown")
            for name, value in wanted.items():
                if not isinstance(value, torch.Tensor):
                    continue
                shape = p.shape if value.dim() else value.shape
                own = values[name].to_local() if hasattr(values[name], "to_local") else values[name]
                if values[name].shape != shape or not own.isfinite().all():
                    raise ValueError(f"{name} has another shape, or is not finite")
            if not values.get("step", 1) > 0:
                raise ValueError("its step is not positive")
    except (torch.OutOfMemoryError, torch.AcceleratorError):  # which are RuntimeErrors, and no fault of the file
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"last.pt: its optimizer's state does not fit the model ({reason}); start a new run") from None
