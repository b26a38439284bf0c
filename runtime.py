"""What every training process needs: devices and ranks, the optimizer step, checkpoints, metrics, signals.

Gradients of all ranks are summed by one all-reduce after the last micro-batch of a step, not by DistributedDataParallel:
a rank may then run any number of micro-batches (RL rollouts differ in length from rank to rank), losses may call the
model as often as they like, and the sum over ranks of losses that are each divided by the *global* token count is exact.
What is given up is overlap with backward, under 1% of a step at the paper's batch sizes.
"""

import contextlib
import copy
import ctypes
import datetime
import importlib.util
import json
import math
import os
import random
import signal
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, Literal, NoReturn

import numpy as np
import torch
import torch.distributed as dist

# Its functions have the process group as a default argument. Imported by dynamo after init_process_group, as it is
# otherwise, they keep a group alive that has been destroyed, and a thread of that aborts the process at its exit.
import torch.distributed.nn.functional
from torch import Tensor, nn
from tqdm import tqdm

import kernels
from checkpoint import FORMAT, load_checkpoint, load_model, save_checkpoint, weights_digest
from cli import UserError, check_ranges, given, has_kind_of, reason, refuse_idle
from data.tokenizer import Tokenizer, load_tokenizer, tokenizer_digest
from files import named, remove_stale, take_lock, write_text
from model import GPT

FINAL_LR = 0.1  # a cosine or linear schedule ends at this fraction of --lr
MAX_SKIPPED = 20  # a run stops after so many steps with a non-finite loss or gradient (each is skipped and counted)
# Seconds that ranks wait for each other: sampling and saving take less. The environment's RANK_TIMEOUT wins
RANK_TIMEOUT = 4 * 3600


@dataclass
class OptimizerConfig:
    """AdamW and its learning rate"""

    lr: float = 1e-3  # peak learning rate
    # shape of the learning rate over the run: constant, linear or cosine (these two end at a tenth); with warm-up:
    # cosine:100 rises linearly over the first 100 steps
    schedule: str = "constant"
    weight_decay: float = 0.1  # decoupled weight decay
    clip: float = 1.0  # longest gradient norm; a longer gradient is scaled to it; 0: no clipping


@dataclass
class MachineConfig:
    """Where it computes, and with how much memory"""

    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: cuda or mps where there is one, else cpu
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; weights are fp32. auto: bf16 on CUDA
    micro_tokens: int = 0  # tokens in one forward pass, which bounds memory; 0: 2048 on a CPU, 16384 on a GPU


@dataclass
class RunConfig:
    """The run: its folder, its checkpoints, its log"""

    out: str = ""  # folder of this run's files; empty: out/STAGE. It must be new or empty, unless --resume
    resume: bool = False  # go on from OUT/last.pt, exactly where it stopped; flags that are not given are as they were
    seed: int = 0  # of initialisation, data order and sampling
    # checkpoints that are kept (the last always is): steps 100,200; pretraining tokens 0.5M,1M; or log:8, eight of them
    # log-spaced over the last factor 8 of the run
    save_at: str = ""
    save_every: str = "30m"  # how often last.pt is written: 100 (steps) or 30m (minutes); 0: only when one is kept
    logger: str = ""  # also log to wandb:PROJECT or tensorboard (pip install wandb, tensorboard)

    def check(self) -> None:
        """UserError for flags that no run can have."""
        refuse_idle(self)
        parse_schedule(self.schedule)
        self.saves()

    def saves(self) -> tuple[int, float]:
        """--save_every as (steps, seconds), of which one is 0, and both are if only kept checkpoints are written."""
        number = self.save_every.removesuffix("m")
        if not number.isdecimal():
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
    """What it starts from and trains on"""

    init: str = ""  # the checkpoint to start from: base, SFT or RL
    out: str = ""
    resume: bool = False
    data: str = "out/data"  # folder of data/prepare.py
    questions: str = "train"  # DATA/questions/NAME.jsonl, a file, or gsm8k, math, openmathinstruct2 (hub)
    limit: int = 0  # use the first so many questions; 0: all
    steps: int | str = 64  # how long to train: 64 steps, or 10e: so many passes over the questions (sft.py: the rows)

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
    checkpoints, log-spaced over the last factor 8 of the run (where a curve over tokens has its points in the paper).
    """
    if text.startswith("log:") and text[4:].isdecimal() and int(text[4:]) > 0:
        n = int(text[4:])
        at = [steps * 8 ** (i / max(1, n - 1) - 1) for i in range(n)]
    else:
        parts = [part.strip() for part in text.split(",") if part.strip()]
        if not tokens_per_step and not all(part.isdecimal() for part in parts):
            raise UserError(f"--save_at {text!r}: steps such as 16,32, or log:8")
        at = [parse_count(part, "--save_at") / (1 if part[-1].isdigit() else tokens_per_step) for part in parts]
    return sorted({min(max(1, math.ceil(s - 1e-9)), steps) for s in at if s <= steps + 1} | {steps})


# ---------------------------------------------------------------------------------------------------------------------
# Processes and devices
# ---------------------------------------------------------------------------------------------------------------------


class LostRank(UserError):
    """Another rank has died, or has not answered within RANK_TIMEOUT."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around collectives: LostRank, one line, for what gloo and NCCL raise."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        what = (str(error).splitlines() or [""])[0][-120:]
        raise LostRank(f"another rank died or hangs ({what}): start again, a training run with --resume") from None


@dataclass
class Process:
    """This process among those that torchrun started (rank 0 of 1 without torchrun).

    A signal stops all ranks at the same place, though each looks for it when it likes. A rank that has got one ends its
    loops over batches (`stopping`, `unless_stopping`) and goes to the next `sum` or `gather`. That tells every rank, and
    on each of them it calls `stop`, which saves the run as it was when the step began, and does not come back: what the
    cut loops have left undone is never used. A step that has begun to change the weights (`updated`) is finished first.
    """

    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype  # of matrix products
    stop: Callable[[], NoReturn] | None = None  # None: signals are not obeyed
    stop_signal: int = 0  # the one that this rank has got
    updated: bool = False  # optimizer_step sets it, the end of the step clears it
    micro_tokens: int = 2048  # tokens in one forward pass (--micro_tokens)

    @property
    def main(self) -> bool:
        return self.rank == 0

    def autocast(self):
        if self.dtype == torch.float32:
            return contextlib.nullcontext()
        return torch.autocast(self.device.type, self.dtype)

    def rows(self, n: int) -> slice:
        """This rank's share of n rows of a global batch."""
        return slice(n * self.rank // self.world, n * (self.rank + 1) // self.world)

    def stopping(self) -> bool:
        """Is there a signal to obey? Then this rank's work up to the next `sum` or `gather` need not be done."""
        return bool(self.stop and self.stop_signal and not self.updated)

    def unless_stopping(self, batches: Iterable) -> Iterator:
        """The batches, as long as there is no signal to obey."""
        for batch in batches:
            if self.stopping():
                return
            yield batch

    def sum(self, values: list[float]) -> list[float]:
        """Sums over ranks, in fp64. May stop the run."""
        stopping = self.stopping()
        if self.world > 1:
            # gloo sums on the CPU; there is no fp64 on an MPS device
            device = self.device if dist.get_backend() == "nccl" else "cpu"
            with together():
                total = torch.tensor([*values, stopping], dtype=torch.float64, device=device)
                dist.all_reduce(total)
                *values, stopping = total.tolist()
        if stopping:
            self.stop()
        return values

    def sum_dict(self, values: dict[str, float]) -> dict[str, float]:
        return dict(zip(values, self.sum(list(values.values())), strict=True))

    def gather(self, thing) -> list:
        """One picklable thing from each rank, in rank order, on every rank. May stop the run."""
        things = [(thing, self.stopping())]
        if self.world > 1:
            things *= self.world
            with together():
                dist.all_gather_object(things, things[0])
        if any(stopping for _, stopping in things):
            self.stop()
        return [thing for thing, _ in things]

    def share(self, sizes: list[int]) -> list[int]:
        """This rank's part of things of these sizes: the largest first, each to the rank with the least so far."""
        load, mine = [0] * self.world, []
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            rank = load.index(min(load))
            load[rank] += sizes[i]
            if rank == self.rank:
                mine.append(i)
        return mine

    def spread(self, n: int, make: Callable[[list[int]], Iterable]) -> list:
        """Things 0 .. n-1, made by all ranks together: each makes its share, and every rank gets all, in order. May stop
        the run.

        Args:
            make: make(indices) yields the things of a rank's share, under autocast; fewer once `stopping` says True.
        """
        mine = [] if self.stopping() else self.share([1] * n)
        with self.autocast():
            made = list(zip(mine, self.unless_stopping(make(mine)), strict=False))
        made = dict(pair for share in self.gather(made) for pair in share)
        return [made[i] for i in range(n)]

    def barrier(self) -> None:
        if self.world > 1:
            with together():
                dist.barrier()


def start_process(device: str = "auto", dtype: str = "auto", seed: int = 0, micro_tokens: int = 0) -> Process:
    """Join the process group if torchrun made one, choose device, precision and kernels, seed everything."""
    _keep_pages()
    world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if device == "auto":
        mps = torch.backends.mps.is_available() and world == 1
        device = "cuda" if torch.cuda.is_available() else "mps" if mps else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device.startswith("mps") and (world > 1 or not torch.backends.mps.is_available()):
        why = "takes one process" if world > 1 else f"this PyTorch ({torch.__version__}) sees no such device"
        raise UserError(f"--device {device}: {why}; use --device cpu")
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    kernels.use(os.environ.get("KERNELS", "auto"), device)
    if world > 1 and not dist.is_initialized():
        timeout = datetime.timedelta(seconds=float(os.environ.get("RANK_TIMEOUT", RANK_TIMEOUT)))
        with together():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo", timeout=timeout)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- libraries below us may use the global state
    torch.manual_seed(seed)
    bf16 = dtype == "bf16" or (dtype == "auto" and device.startswith("cuda"))
    precision = torch.bfloat16 if bf16 else torch.float32
    micro_tokens = micro_tokens or (2048 if device == "cpu" else 16384)
    return Process(rank, world, torch.device(device), precision, micro_tokens=micro_tokens)


def end_process() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def _keep_pages() -> None:
    """Tell glibc to keep freed memory. By default it returns every large tensor's pages to the kernel and faults them
    in again at the next allocation, which costs a third of a training step at micro scale."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    mallopt(-3, 1 << 30)  # M_MMAP_THRESHOLD
    mallopt(-1, (1 << 31) - 1)  # M_TRIM_THRESHOLD


# ---------------------------------------------------------------------------------------------------------------------
# The optimizer step
# ---------------------------------------------------------------------------------------------------------------------


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


def load_optimizer(optimizer: torch.optim.Optimizer, state: dict) -> None:
    """The state of a checkpoint into an optimizer of the same parameters. UserError if it does not fit."""
    if optimizer.param_groups[0]["params"][0].device.type == "cpu":
        state = copy.deepcopy(state)  # or the file, which is mapped, would stay in use; other devices copy anyway
    try:
        # settings are those of the flags, but for the rate of the last step, so that what is saved again has the same bits
        pairs = zip(optimizer.state_dict()["param_groups"], state["param_groups"], strict=True)
        groups = [{**ours, "lr": float(theirs["lr"])} for ours, theirs in pairs]
        optimizer.load_state_dict({"state": state["state"], "param_groups": groups})
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        if optimizer.state and len(optimizer.state) < len(parameters):
            raise ValueError("a parameter has no state")
        for p, values in optimizer.state.items():
            for moment in (values["exp_avg"], values["exp_avg_sq"]):
                if moment.shape != p.shape or not moment.isfinite().all():
                    raise ValueError("a moment has another shape, or is not finite")
            if not values["step"] > 0:
                raise ValueError("its step is not positive")
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        reason = (str(error).splitlines() or [""])[0][:120]
        raise UserError(f"last.pt: its optimizer's state does not fit the model ({reason}); start a new run") from None


def parse_schedule(text: str) -> tuple[str, int]:
    """--schedule as (shape, steps of warm-up): "cosine:100" → ("cosine", 100)."""
    shape, colon, warmup = text.partition(":")
    if shape not in ("constant", "linear", "cosine") or (colon and not warmup.isdecimal()):
        raise UserError(f"--schedule {text}: constant, linear or cosine, or with steps of warm-up such as cosine:100")
    return shape, int(warmup or 0)


def learning_rate(lr: float, shape: str, warmup: int, step: int, total: int) -> float:
    """The rate of step number `step` (from 0) of `total`: up to `lr` in `warmup` steps, then constant or down to a tenth."""
    if step < warmup:
        return lr * (step + 1) / warmup
    if shape == "constant":
        return lr
    done = min(1.0, (step - warmup) / max(1, total - warmup))
    left = 1.0 - done if shape == "linear" else 0.5 * (1 + math.cos(math.pi * done))
    return lr * (FINAL_LR + (1 - FINAL_LR) * left)


def reduce_gradients(model: nn.Module, process: Process) -> None:
    """Sum gradients over ranks in place. A rank that saw no data contributes zeros."""
    if process.world == 1:
        return
    with together():
        work = []
        for p in model.parameters():
            if p.grad is None:
                p.grad = torch.zeros_like(p)
            work.append(dist.all_reduce(p.grad, async_op=True))
        for w in work:
            w.wait()


def clip_gradients(model: nn.Module, limit: float) -> float:
    """Scale gradients to norm `limit` if they are longer (0: never); returns the norm before. May be inf or nan."""
    return nn.utils.clip_grad_norm_(model.parameters(), limit or math.inf).item()


def optimizer_step(model: nn.Module, optimizer: torch.optim.Optimizer, process: Process, lr: float, clip: float):
    """Reduce, clip, update, and clear the gradients. Returns the gradient norm; if it is not finite nothing is updated."""
    reduce_gradients(model, process)
    process.updated = True
    norm = clip_gradients(model, clip)
    if math.isfinite(norm):
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad()
    return norm


# ---------------------------------------------------------------------------------------------------------------------
# Checkpoints
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # of this stage
    tokens: int = 0  # pretraining tokens behind the base model
    flops: float | None = 0.0  # spent in total, all stages, training and sampling; None: unknown (imported weights)
    skipped: int = 0  # steps skipped for a non-finite loss or gradient


# Flags that a resumed run may change: where and how it runs, what it logs, keeps and evaluates
FREE = {
    *"out resume device compile micro_tokens kv_gib verify logger save_every save_at".split(),
    *"val_tokens eval_every eval_questions eval_limit eval_tasks".split(),
}
LENGTH = {"steps", "tokens"}  # and these, where no schedule depends on the length of the run


def flags_of_last(config: RunConfig, stage: str) -> dict | None:
    """With --resume: read OUT/last.pt, and take every flag that was not given from it; None for a new run.

    UserError if there is nothing to resume, or if a flag that was given would make another run of it.
    """
    asked = given(config)
    if not config.resume:
        return None
    config.out = config.out or f"out/{stage}"
    path = Path(config.out) / "last.pt"
    if not path.exists():
        raise UserError(f"--resume: {path} does not exist; start without --resume")
    last = load_checkpoint(path)
    if last["stage"] != stage:
        raise UserError(f"{path} is of stage {last['stage']}, not of {stage}: resume it with that stage")
    if not last.get("train"):
        raise UserError(f"{path} is a kept checkpoint, without what --resume needs: start from it with --init")
    args = last["args"]
    unknown = sorted(args.keys() - {f.name for f in fields(config)})
    if unknown:
        raise UserError(
            f"{path} has a flag --{unknown[0]} that {stage} does not know: resume it with the version that made it"
        )
    wrong = [f.name for f in fields(config) if f.name in args and not has_kind_of(f, args[f.name])]
    if wrong or "schedule" not in args:
        raise UserError(f"{path} has no --{[*wrong, 'schedule'][0]} that {stage} could have made; begin a new run")
    changed = {name for name in asked & args.keys() if getattr(config, name) != args[name]}
    scheduled = not args["schedule"].startswith("constant") or ":" in str(args.get("weight", ""))
    for name in sorted(changed - FREE):
        if name not in LENGTH:
            raise UserError(f"--resume with another --{name} ({args[name]!r} before): leave it out, or begin a new run")
        if scheduled:
            raise UserError(f"--resume with another --{name} ({args[name]!r} before): this run's schedule depends on its length, "
                            "which only a run of constant --lr and --weight can change")  # fmt: skip
    stays = changed | {"out"} | (LENGTH if changed & LENGTH else set())
    for name in args.keys() - stays:
        setattr(config, name, args[name])
    check_ranges(config)
    return last


def begin(config: RunConfig, stage: str) -> "Run":
    """A run of a stage: its flags checked, its process, its folder, and the model of --init or, with --resume, of last.pt.

    pretrain.py has no --init: a new run of it begins without a model and gets one by `Run.use`.
    """
    last = flags_of_last(config, stage)
    config.check()
    run = Run(config, stage, start_process(config.device, config.dtype, config.seed, config.micro_tokens))
    if last:
        run.progress, run.lineage, run.saved = (
            Progress(**last["train"]["progress"]),
            last["lineage"][:-1],
            last["train"],
        )
    elif init := getattr(config, "init", ""):
        last = load_checkpoint(init)
        run.progress, run.lineage = Progress(tokens=last["tokens"], flops=last["flops"]), last["lineage"]
    if last:
        run.use(load_model(last, run.process.device), load_tokenizer(last["tokenizer"]))
    return run


@dataclass
class Step:
    """One step of a run, as its loop sees it."""

    number: int  # from 0
    lr: float
    values: dict = field(default_factory=dict)

    def log(self, **values) -> None:
        """Metrics of this step; "flops" among them is what it spent."""
        self.values |= values


class Run:
    """A run of a stage: its model, its folder, its loop. Only rank 0 writes.

        run = begin(config, "sft")                      # run.model, run.tokenizer, run.process, run.progress, run.out
        run.restore(optimizer=optimizer, sft=order)     # what last.pt holds beside the model
        for step in run.steps(total, evaluate):
            ...                                         # make the step at step.lr
            step.log(loss=loss, flops=flops)

    out/RUN/step_0000875.pt   kept checkpoints        out/RUN/last.pt   what --resume takes
    out/RUN/metrics.jsonl     a line a step and a line an evaluation        out/RUN/eval/     evaluation records
    """

    _locks: ClassVar[dict[Path, int | None]] = {}  # of folders that this process writes to

    def __init__(self, config: RunConfig, stage: str, process: Process):
        self.config, self.stage, self.process = config, stage, process
        self.out = Path(config.out or f"out/{stage}")
        self.model: GPT | None = None
        self.tokenizer: Tokenizer | None = None
        self.progress = Progress()
        self.lineage: list[dict] = []  # of the checkpoint behind this stage
        self.saved: dict = {}  # what last.pt holds beside the model, until it is restored
        self.last_good: Path | None = None
        self.evaluated = False  # is there a line of an evaluation at the step that this run resumes from?
        self._metrics = self._wandb = self._tensorboard = None
        self._restored: dict[str, torch.optim.Optimizer | Cursor] = {}
        self._state: dict = {}  # optimizer states and cursors after the last whole step
        self._saved_at = time.monotonic()
        self._check_folder()
        self.save_steps, self.save_seconds = config.saves()
        logger, _, self._project = config.logger.partition(":")
        if config.logger and not (logger == "wandb" and self._project or config.logger == "tensorboard"):
            raise UserError(f"--logger {config.logger}: wandb:PROJECT or tensorboard")
        if config.logger and importlib.util.find_spec(logger) is None:
            raise UserError(
                f"--logger {config.logger}: {logger} is not installed: pip install {logger}, or leave the flag out"
            )
        self.claim(make=False)

    def _check_folder(self) -> None:
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file: name a folder")
        if not self.config.resume and any(self.out.glob("*.pt")):  # without a checkpoint there is nothing to lose
            raise UserError(f"--out {self.out} is not empty: pass --resume to go on, or another --out")

    def claim(self, make: bool = True) -> None:
        """Rank 0 takes the lock of the folder (`make`: and makes the folder), so that no two processes write to it.
        UserError on every rank if another process has it, or has made a run there meanwhile."""
        problem, folder = "", self.out.resolve()
        if self.process.main and folder not in self._locks and (make or self.out.is_dir()):
            try:
                self.out.mkdir(parents=True, exist_ok=True)
                self._locks[folder] = take_lock(self.out)
                self._check_folder()
            except (UserError, OSError) as error:
                problem = reason(error)
        problem = self.process.gather(problem)[0]
        if problem:
            raise UserError(problem)

    def use(self, model: GPT, tokenizer: Tokenizer) -> None:
        """The model that this run trains and saves."""
        self.model, self.tokenizer = model, tokenizer

    def restore(self, **things: "torch.optim.Optimizer | Cursor") -> None:
        """Optimizers and cursors, by their names in last.pt: a resumed run sets them to what it holds, and every save writes
        them. UserError if last.pt has something else."""
        self._restored = things
        if not self.config.resume:
            return
        for name, thing in things.items():
            if isinstance(thing, Cursor):
                thing.position = self.saved.get(name)
                if type(thing.position) is not int or not 0 <= thing.position < 2**63:
                    raise UserError(
                        f"last.pt: {name}, its position in the data, is {thing.position!r}; start a new run"
                    )
            else:
                load_optimizer(thing, self.saved.get(name))
        self.saved = {}  # the file is mapped, and would stay in use

    def _take_state(self) -> None:
        self._state = {
            name: thing.position if isinstance(thing, Cursor) else thing.state_dict()
            for name, thing in self._restored.items()
        }

    def open(self) -> None:
        """Create the folder and open the logs. Lines after the step that a resumed run goes on from are dropped."""
        resume_step = self.progress.step
        self.claim()
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        if not self.process.main:
            return
        remove_stale(self.out)
        path = self.out / "metrics.jsonl"
        kept = []
        if path.exists() and self.config.resume:
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(ValueError, KeyError, TypeError):  # a line cut by a kill, or no line of ours
                    values = json.loads(line)
                    if values["step"] <= resume_step:
                        kept.append(line + "\n")
                        self.evaluated = values["step"] == resume_step and "lr" not in values and "flops" not in values
        write_text(path, "".join(kept))
        self._metrics = open(path, "a")
        if self._project:
            self._wandb = self._open_wandb()
        if self.config.logger == "tensorboard":
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.out), purge_step=resume_step + 1)

    def _open_wandb(self):
        """A new Weights & Biases run, or with --resume the one whose id lies in OUT/wandb_id."""
        import wandb

        id_file = self.out / "wandb_id"
        if not (self.config.resume and id_file.exists()):
            write_text(id_file, uuid.uuid4().hex[:8])
        return wandb.init(
            project=self._project, name=self.out.name, id=id_file.read_text(), resume="allow", dir=str(self.out),
            config=asdict(self.config),
        )  # fmt: skip

    def log(self, step: int, **values) -> None:
        """One line in metrics.jsonl (and wandb, TensorBoard)."""
        if self._metrics is None:
            return
        with named(self.out / "metrics.jsonl"):
            self._metrics.write(json.dumps({"step": step, **values}) + "\n")
            self._metrics.flush()
        if self._wandb:
            self._wandb.log(values, step=step)
        if self._tensorboard:
            for key, value in values.items():
                if isinstance(value, int | float):
                    self._tensorboard.add_scalar(key, value, step)

    def save(self, keep: bool) -> Path:
        """Write last.pt, and the kept step_N.pt (without optimizer states) if `keep`. Returns the path of the last."""
        model, progress = self.model, self.progress
        path = self.out / (f"step_{progress.step:07d}.pt" if keep else "last.pt")
        self.last_good, self._saved_at = path, time.monotonic()
        if not self.process.main:
            return path
        args = asdict(self.config)
        args.pop("resume")  # a resumed run's checkpoints and records are those of an uninterrupted one
        entry = {"stage": self.stage, "step": progress.step, "flops": progress.flops, "args": args}
        entry["weights"] = weights_digest(model)  # says later from exactly which model another was made
        checkpoint = {
            "format": FORMAT,
            "stage": self.stage,
            "config": asdict(model.config),
            "tokenizer": self.tokenizer.name,
            "tokenizer_digest": tokenizer_digest(self.tokenizer.name),
            "model": model.state_dict(),
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "lineage": [*self.lineage, entry],
            "args": args,
            "metrics": {"skipped": progress.skipped},
        }
        save_checkpoint(self.out / "last.pt", {**checkpoint, "train": {**self._state, "progress": asdict(progress)}})
        if keep:
            save_checkpoint(path, checkpoint)
        return path

    def skip(self, what: str) -> None:
        """Count a step whose loss or gradient is not finite; stop the run after MAX_SKIPPED of them."""
        progress = self.progress
        progress.skipped += 1
        if progress.skipped > MAX_SKIPPED:
            good = f"last good checkpoint: {self.last_good}" if self.last_good else "no checkpoint was written yet"
            raise UserError(f"{what} not finite in {progress.skipped} steps; {good}; try a lower --lr")

    def steps(self, total: int, evaluate: Callable[[], dict], shown: tuple[str, ...] = ()) -> Iterator[Step]:
        """The steps that are left of `total`. Around each: log, save, evaluate, progress bar, signals; then close the run.

        Args:
            evaluate: held-out metrics of the model as it is; called as --eval_every says.
            shown: the metrics on the progress bar.
        """
        config, process, progress = self.config, self.process, self.progress
        kept = config.kept(total)
        shape, warmup = parse_schedule(config.schedule)
        self.open()
        self._take_state()
        process.stop = self._stop
        if config.resume:
            self._check_progress(total, kept)
        # before the first step; and on resume, where a kill came between a checkpoint and its evaluation
        if config.due(progress.step, total, kept) and not max(process.gather(self.evaluated)):
            self.log(progress.step, **evaluate())
        bar = tqdm(
            total=total, initial=progress.step, unit="step", disable=not process.main, dynamic_ncols=True, mininterval=1
        )
        with bar:
            while progress.step < total:
                clock = Clock()
                step = Step(progress.step, learning_rate(config.lr, shape, warmup, progress.step, total))
                yield step
                values = {"lr": step.lr, **step.values, "seconds": clock.lap()}
                progress.step += 1
                if progress.flops is not None:
                    progress.flops += values["flops"]
                self._take_state()
                process.updated = False
                values |= {"flops": progress.flops, "skipped": progress.skipped}
                self.log(
                    progress.step, **values
                )  # before saving: a killed run may lose a step, but never its line alone
                keep = progress.step in kept
                # rank 0's clock alone counts: the other ranks write nothing
                late = self.save_seconds and time.monotonic() - self._saved_at >= self.save_seconds
                if keep or late or (self.save_steps and progress.step % self.save_steps == 0):
                    self.save(keep)  # before evaluating: a crash there loses nothing
                if config.due(progress.step, total, kept):
                    evaluated = evaluate()
                    self.log(progress.step, **evaluated)
                    values |= evaluated
                texts = {
                    k: f"{values[k]:.3g}" if abs(values[k]) < 1000 else f"{values[k]:.0f}" for k in shown if k in values
                }
                bar.set_postfix(texts, refresh=False)
                bar.update()
        if process.main:
            print(f"wrote {self.last_good}; next: python eval.py --checkpoint {self.last_good}", file=sys.stderr)
        self.close()

    def _check_progress(self, total: int, kept: set[int]) -> None:
        """Of a resumed run: write the kept checkpoint that a kill after last.pt has cost; say so if there is nothing to do."""
        step = self.progress.step
        self.last_good = self.out / (f"step_{step:07d}.pt" if step in kept else "last.pt")
        if not self.last_good.exists():
            self.save(keep=True)
        if step > total:
            raise UserError(f"{self.out / 'last.pt'} is at step {step}, beyond the {total} steps of this run (--steps)")
        if step == total and self.process.main:
            print(f"{self.out} has made its {total} steps already", file=sys.stderr)

    def close(self) -> None:
        """Close the logs, leave the folder and the other ranks."""
        self.process.stop = None
        for log in (self._metrics, self._tensorboard):
            if log:
                log.close()
        if self._wandb:
            self._wandb.finish()
        lock = self._locks.pop(self.out.resolve(), None)
        if lock is not None:
            os.close(lock)
        end_process()

    def _on_signal(self, signum, frame) -> None:
        if self.process.stop_signal and signum == signal.SIGINT:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.process.stop_signal = signum
        if self.process.main:  # not by print, in the middle of which the signal may have come
            when = "once its updates are made" if self.process.updated else "as it began"
            os.write(2, f"\nstopping: saves the step {when} (Ctrl-C again: stops at once, without)\n".encode())

    def _stop(self) -> NoReturn:
        """On every rank: save the last whole step, to which nothing of the model or the optimizer has been added, and
        exit with the code that a signal gives."""
        self.save(keep=False)
        self.process.barrier()  # where one rank has exited, torchrun kills the others half a minute later
        self.close()
        if self.process.main:
            print(f"stopped by a signal: saved {self.out / 'last.pt'}; go on with --resume", file=sys.stderr)
        sys.exit(128 + (self.process.stop_signal or signal.SIGTERM))


class Cursor:
    """Items 0 .. n-1 without end, each epoch in the order of a permutation of (seed, epoch), or as they are. `position`
    is the state."""

    def __init__(self, n: int, seed: int, shuffled: bool = True):
        self.n, self.seed, self.shuffled, self.position = n, seed, shuffled, 0
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def draw(self, count: int) -> list[int]:
        drawn = []
        for index in range(self.position, self.position + count):
            epoch, place = divmod(index, self.n)
            if not self.shuffled:
                drawn.append(place)
                continue
            if epoch != self._epoch:
                self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.n)
            drawn.append(int(self._order[place]))
        self.position += count
        return drawn


@dataclass
class Clock:
    """Seconds between laps."""

    last: float = field(default_factory=time.perf_counter)

    def lap(self) -> float:
        now = time.perf_counter()
        seconds, self.last = now - self.last, now
        return seconds


def to_device(array: np.ndarray, device: torch.device) -> Tensor:
    """A numpy array on `device`, without waiting for the copy on CUDA."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
