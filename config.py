"""The flags that several stages have, as dataclasses, and what their values mean. cli.py makes flags of them.

A stage's Config is made of these classes and its own; what stands in none of them is the stage's alone.
"""

import math
import os
from dataclasses import dataclass
from typing import Literal

from cli import UserError, refuse_idle


@dataclass
class OptimizerConfig:
    """Optimizer: AdamW and its learning rate"""

    lr: float = 1e-3  # peak learning rate
    # shape of the learning rate over the run: constant, linear or cosine (these two end at a tenth); with warm-up:
    # cosine:100 rises linearly over the first 100 steps
    schedule: str = "constant"
    weight_decay: float = 0.1  # decoupled weight decay
    clip: float = 1.0  # longest gradient norm; a longer gradient is scaled to it; 0: no clipping


@dataclass
class MachineConfig:
    """Machine: where it computes, and with how much memory"""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: cuda or mps where there is one, else cpu
    # of matrix products (on CUDA fp32 is TF32); weights are fp32. auto: bf16 on CUDA
    dtype: Literal["auto", "fp32", "bf16"] = "auto"
    micro_tokens: int = 0  # tokens in one forward pass, which bounds memory; 0: 2048 on a CPU, 16384 on a GPU
    # activations that are computed again in backward instead of kept: none, those of attention (a step takes about a
    # tenth longer), or those of the whole block (a third longer); changes memory and time, not the gradient
    recompute: Literal["none", "attention", "block"] = "none"
    # torch.compile of training passes; auto: in runs of 1000 steps or more where it works, after pretraining on a GPU only
    compile: Literal["auto", "on", "off"] = "auto"
    # spread what only the optimizer needs over the ranks: half the memory for weights, gradients and AdamW on 8 ranks
    shard: bool = False

    def idle(self) -> dict[str, str]:
        return {} if int(os.environ.get("WORLD_SIZE", 1)) > 1 else {"shard": "on one process (torchrun starts several)"}


@dataclass
class RunConfig:
    """Run: its folder, its checkpoints, its log"""

    out: str = ""  # folder of this run's files; empty: out/STAGE. It must hold no checkpoint, unless --resume
    resume: bool = False  # go on from OUT/last.pt, exactly where it stopped; flags that are not given are as they were
    seed: int = 0  # of initialisation, data order and sampling
    # checkpoints that are kept (the last always is): steps 100,200; pretraining tokens 0.5M,1M; or log:8, eight of them
    # at equal ratios, from an eighth of the run to its end
    save_at: str = ""
    save_every: str = "30m"  # how often last.pt is written: 100 (steps) or 30m (minutes); 0: only when one is kept
    # also log to wandb:PROJECT or tensorboard (pip install wandb, tensorboard): metrics, and of RL some answers
    logger: str = ""

    def check(self) -> None:
        """UserError for flags that no run can have."""
        refuse_idle(self)
        parse_schedule(self.schedule)
        self.saves()

    def saves(self) -> tuple[int, float]:
        """--save_every as (steps, seconds), of which one is 0, and both are if only kept checkpoints are written."""
        number = self.save_every.removesuffix("m")
        if not is_whole(number):
            raise UserError(f"--save_every {self.save_every}: a number of steps such as 100, or of minutes such as 30m")
        return (int(number), 0.0) if number == self.save_every else (0, 60.0 * int(number))

    def kept(self, total: int) -> set[int]:
        """The steps whose checkpoints are kept, of a run of `total` steps."""
        return set(parse_save_at(self.save_at, total))

    def due(self, step: int, total: int, kept: set[int]) -> bool:
        """Is there an evaluation after so many steps of `total`, checkpoints being kept after `kept`?"""
        if self.eval_every < 0:
            return step == 0 or step in kept
        return bool(self.eval_every) and (step % self.eval_every == 0 or step == total)


@dataclass
class PostConfig(RunConfig):
    """After pretraining: what it starts from and trains on"""

    init: str = ""  # the checkpoint to start from: base, SFT or RL
    out: str = ""
    resume: bool = False
    data: str = "out/data"  # folder of data/prepare.py
    questions: str = "train"  # DATA/questions/NAME.jsonl, a file, or gsm8k, math, openmathinstruct2 (hub)
    limit: int = 0  # use the first so many questions; 0: all
    # how long to train: 64 steps, or 10e: so many passes over the questions (sft.py: the rows; average.py: as if each
    # step were one of RL)
    steps: int | str = 64

    def check(self) -> None:
        if not self.init:
            raise UserError("--init: name the checkpoint to start from, such as out/pretrain/last.pt")
        self.total_steps(1, 1)
        self.kept(1)
        super().check()

    def total_steps(self, items: int, per_step: int) -> int:
        """Steps of the whole run, where a step takes `per_step` of `items` questions or rows."""
        if isinstance(self.steps, int):
            return self.steps
        passes = parse_count(self.steps[:-1], "--steps") if self.steps.endswith("e") else 0
        if not 0 < passes <= 1e6:
            raise UserError(
                f"--steps {self.steps}: a number of steps such as 64, or of passes over the data such as 10e"
            )
        return math.ceil(passes * items / per_step)


def is_whole(text: str) -> bool:
    """Is it a whole number, of nine digits at most?"""
    return text.isdecimal() and len(text) < 10


def parse_count(text: str, flag: str = "") -> float:
    """ "4M" -> 4e6. UserError for anything that is not a positive number with an optional k, M, B or T."""
    scale = {"k": 1e3, "K": 1e3, "M": 1e6, "B": 1e9, "T": 1e12}.get(text[-1:], 1)
    try:
        count = float(text[:-1] if scale != 1 else text) * scale
    except ValueError:
        count = 0
    if not (count > 0 and math.isfinite(count)):
        raise UserError(f"{f'{flag} ' if flag else ''}{text!r} is not a count: write it as 4000000, 4M or 50B")
    return count


def parse_save_at(text: str, steps: int, tokens_per_step: int = 0) -> list[int]:
    """The steps after which a checkpoint is kept, in a run of `steps`; the last step is always among them.

    "100,200": steps. "0.5M,1M": tokens, rounded to the next step (`tokens_per_step` 0: refused). "log:8": 8
    checkpoints, log-spaced over the last factor 8 of the run, as the paper spaces them; "log:1": the end alone.
    """
    if text.startswith("log:") and is_whole(text[4:]) and int(text[4:]) > 0:
        n = min(int(text[4:]), 8 * steps)  # more would name the same steps
        at = [steps * 8 ** (i / (n - 1) - 1) for i in range(n)] if n > 1 else [steps]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not tokens_per_step and not all(part.isdecimal() for part in parts):
            raise UserError(f"--save_at {text!r}: steps such as 16,32, or log:8")
        if broken := [part for part in parts if part[-1].isdigit() and not parse_count(part, "--save_at").is_integer()]:
            raise UserError(f"--save_at {broken[0]}: a whole number of steps, or tokens such as 0.5M")
        at = [parse_count(part, "--save_at") / (1 if part[-1].isdigit() else tokens_per_step) for part in parts]
    return sorted({min(max(1, math.ceil(s - 1e-9)), steps) for s in at if s <= steps + 1} | {steps})


def parse_schedule(text: str) -> tuple[str, int]:
    """--schedule as (shape, steps of warm-up): "cosine:100" → ("cosine", 100)."""
    shape, colon, warmup = text.partition(":")
    if shape not in ("constant", "linear", "cosine") or (colon and not is_whole(warmup)):
        raise UserError(f"--schedule {text}: constant, linear or cosine, or with steps of warm-up such as cosine:100")
    return shape, int(warmup or 0)
