"""What every training process needs: devices and ranks, the optimizer step, checkpoints, metrics, signals.

Gradients of all ranks are summed by one all-reduce after the last micro-batch of a step, not by DistributedDataParallel:
a rank may then run any number of micro-batches (RL rollouts differ in length from rank to rank), losses may call the
model as often as they like, and the sum over ranks of losses that are each divided by the *global* token count is exact.
What is given up is overlap with backward, under 1% of a step at the paper's batch sizes.
"""

import contextlib
import ctypes
import json
import math
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.distributed as dist

# Its functions have the process group as a default argument. Imported by dynamo after init_process_group, as it is
# otherwise, they keep a group alive that has been destroyed, and a thread of that aborts the process at its exit.
import torch.distributed.nn.functional
from torch import Tensor, nn
from tqdm import tqdm

import kernels
from cli import UserError
from data.tokenizer import Tokenizer, load_tokenizer
from files import named, remove_stale, replacing_with_trailer, write_text
from model import GPT, GPTConfig

FORMAT = 1  # of a checkpoint


@dataclass
class RunConfig:
    """Flags that every training stage has."""

    out: str = ""  # folder of this run's files; empty: out/STAGE. It must be new or empty, unless --resume
    resume: bool = False  # go on from out/last.pt, exactly where it stopped
    seed: int = 0  # of initialisation, data order and sampling
    device: str = "auto"  # cpu, cuda, mps; auto: cuda where there is one, else cpu
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; weights are fp32. auto: bf16 on CUDA
    kernels: Literal["auto", "triton", "torch"] = "auto"  # for attention and log-prob; auto: triton on CUDA
    lr: float = 1e-3  # peak learning rate
    schedule: Literal["constant", "cosine", "linear"] = "constant"  # of the learning rate, after warm-up
    warmup: int = 0  # steps of linear warm-up
    final_lr: float = 0.1  # the schedule ends at this fraction of --lr
    weight_decay: float = 0.1  # decoupled
    # what decays: all but the embedding table (OLMo2); matrices, so neither it nor the gains; or every parameter
    decay: Literal["olmo2", "matrices", "all"] = "olmo2"
    beta1: float = 0.9  # of AdamW
    beta2: float = 0.95  # of AdamW
    clip: float = 1.0  # gradient norm is clipped to this; 0: not clipped
    max_skipped: int = 20  # stop after so many steps with a non-finite loss or gradient (each is skipped and counted)
    save_every: int = 0  # write last.pt every so many steps (0: at kept checkpoints and at the end)
    wandb: str = ""  # also log to this Weights & Biases project (pip install wandb)
    tensorboard: bool = False  # also log for TensorBoard into --out (pip install tensorboard)


@dataclass
class PostConfig(RunConfig):
    """Flags of the stages that start from a checkpoint: sft.py, rl.py, average.py."""

    init: str = ""  # the checkpoint to start from: base, SFT or RL
    data: str = "out/data"  # folder of data/prepare.py
    questions: str = "train"  # DATA/questions/NAME.jsonl, a file, or gsm8k, math, openmathinstruct2 (hub)
    limit: int = 0  # use the first so many questions; 0: all
    steps: int = 64  # how long to train
    decay: Literal["olmo2", "matrices", "all"] = (
        "matrices"  # what decays; the authors' code: all. See pretrain.py --help
    )
    epochs: float = 0.0  # or: passes over the questions (sft.py: over the rows)
    save_at: str = ""  # steps whose checkpoints are kept, such as 16,32; the last one always is
    show: int = 16  # print an example of what happens every so many steps; 0: never

    def check(self) -> None:
        """UserError for what no stage can do."""
        if not self.init and not self.resume:
            raise UserError("--init: name the checkpoint to start from, such as out/pretrain/last.pt")
        if self.steps < 1 or self.epochs < 0 or self.lr < 0:
            raise UserError(
                f"--steps {self.steps} must be at least 1, --epochs {self.epochs} and --lr {self.lr} not negative"
            )
        if not all(part.strip().isdigit() for part in self.save_at.split(",") if part):
            raise UserError(f"--save_at {self.save_at!r}: steps such as 16,32")


# ---------------------------------------------------------------------------------------------------------------------
# Processes and devices
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Process:
    """This process among those that torchrun started (rank 0 of 1 without torchrun)."""

    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype  # of matrix products

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

    def sum(self, values: list[float]) -> list[float]:
        """Sums over ranks, in fp64."""
        if self.world == 1:
            return values
        total = torch.tensor(values, dtype=torch.float64, device=self.device)
        dist.all_reduce(total)
        return total.tolist()

    def sum_dict(self, values: dict[str, float]) -> dict[str, float]:
        return dict(zip(values, self.sum(list(values.values())), strict=True))

    def gather(self, thing) -> list:
        """One picklable thing from each rank, in rank order, on every rank."""
        if self.world == 1:
            return [thing]
        things = [None] * self.world
        dist.all_gather_object(things, thing)
        return things

    def share(self, sizes: list[int]) -> list[int]:
        """This rank's part of things of these sizes: the largest first, each to the rank with the least so far."""
        load, mine = [0] * self.world, []
        for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
            rank = load.index(min(load))
            load[rank] += sizes[i]
            if rank == self.rank:
                mine.append(i)
        return mine

    def barrier(self) -> None:
        if self.world > 1:
            dist.barrier()


def start_process(device: str = "auto", dtype: str = "auto", seed: int = 0, choice: str = "auto") -> Process:
    """Join the process group if torchrun made one, choose device, precision and kernels, seed everything."""
    _keep_pages()
    world, rank, local = (int(os.environ.get(k, d)) for k, d in (("WORLD_SIZE", 1), ("RANK", 0), ("LOCAL_RANK", 0)))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise UserError(f"--device {device}: this PyTorch ({torch.__version__}) sees no CUDA device; use --device cpu")
    if device == "cuda":
        device = f"cuda:{local}"
        torch.cuda.set_device(local)
    kernels.use(choice, device)
    if world > 1 and not dist.is_initialized():
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 -- libraries below us may use the global state
    torch.manual_seed(seed)
    bf16 = dtype == "bf16" or (dtype == "auto" and device.startswith("cuda"))
    return Process(rank, world, torch.device(device), torch.bfloat16 if bf16 else torch.float32)


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


DECAYED = {  # --decay: which parameters, by name
    "olmo2": lambda name, p: not name.startswith("embed"),  # its decay_norm_and_bias: true, decay_embeddings: false
    "matrices": lambda name, p: p.dim() > 1 and not name.startswith("embed"),
    "all": lambda name, p: True,  # the authors' post-training
}


def make_optimizer(
    model: GPT, lr: float, weight_decay: float, betas: tuple[float, float], decay: str = "olmo2"
) -> torch.optim.AdamW:
    """AdamW over fp32 weights, with decoupled decay on the parameters of DECAYED[decay]."""
    named = list(model.named_parameters())
    decayed = [p for name, p in named if DECAYED[decay](name, p)]
    others = [p for name, p in named if not DECAYED[decay](name, p)]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups[: 2 if others else 1], lr=lr, betas=betas, eps=1e-8, fused=True)


def learning_rate(c: RunConfig, step: int, total: int) -> float:
    """The rate of step number `step` (from 0) of `total`."""
    if step < c.warmup:
        return c.lr * (step + 1) / c.warmup
    done = min(1.0, (step - c.warmup) / max(1, total - c.warmup))
    shape = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[c.schedule]
    return c.lr * shape if c.schedule == "constant" else c.lr * (c.final_lr + (1 - c.final_lr) * shape)


def reduce_gradients(model: nn.Module, process: Process) -> None:
    """Sum gradients over ranks in place. A rank that saw no data contributes zeros."""
    if process.world == 1:
        return
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
    flops: float = 0.0  # spent in total, all stages, training and sampling
    skipped: int = 0  # steps skipped for a non-finite loss or gradient


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint`: a kill or a full disk leaves the old file or the new one."""
    with replacing_with_trailer(path) as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: str | Path) -> dict:
    """Read a checkpoint of any stage (on the CPU, tensors only); UserError if it is missing, broken or no checkpoint."""
    path = Path(path)
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it, such as {path / 'last.pt'}")
    if not path.exists():
        raise UserError(f"{path}: no such checkpoint")
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises a dozen kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]  # an empty file's EOFError says nothing
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); use another one") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT or "model" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of this project (format {FORMAT}); data/hf.py converts OLMo2's")
    return checkpoint


def load_model(checkpoint: dict, device: torch.device | str = "cpu") -> GPT:
    """The model of a checkpoint, in fp32 on `device`."""
    model = GPT(GPTConfig(**checkpoint["config"]))
    try:
        model.load_state_dict(checkpoint["model"])
    except RuntimeError as error:
        raise UserError(f"checkpoint's weights do not fit its config: {str(error).splitlines()[-1].strip()}") from None
    return model.to(device)


@dataclass
class Start:
    """Where a post-training stage begins: at --init, or where last.pt stopped."""

    model: GPT
    tokenizer: Tokenizer
    progress: Progress
    lineage: list  # of the checkpoint behind this stage
    train: dict | None  # what --resume goes on from; None: a fresh run
    init: str  # path of the checkpoint behind this stage

    def initial_model(self) -> GPT:
        """The model at --init, on the CPU, without gradients: the KL reference. A resumed run reads it again."""
        return load_model(load_checkpoint(self.init)).eval().requires_grad_(False)


def open_checkpoint(run: "Run", init: str, process: Process) -> Start:
    """Load --init for a fresh run, RUN/last.pt with --resume (which must then agree with the flags in all but a few)."""
    if not run.config.resume:
        checkpoint = load_checkpoint(init)
        progress = Progress(tokens=checkpoint["tokens"], flops=checkpoint["flops"])
        lineage, train = checkpoint["lineage"], None
    else:
        checkpoint = load_checkpoint(run.out / "last.pt")
        if checkpoint["stage"] != run.stage:
            raise UserError(f"{run.out / 'last.pt'} is of stage {checkpoint['stage']}: resume it with that stage")
        free = (
            "device",
            "kernels",
            "wandb",
            "tensorboard",
            "save_every",
            "save_at",
            "show",
            "max_skipped",
            "out",
            "init",
        )
        now = asdict(run.config)
        changed = [k for k, v in checkpoint["args"].items() if k not in free and now.get(k) != v]
        if changed:
            raise UserError(
                f"--resume with another --{changed[0]} ({checkpoint['args'][changed[0]]!r} before): "
                "pass the flags of the first start, or begin a new run"
            )
        init = checkpoint["args"]["init"]
        train = checkpoint["train"]
        progress, lineage = Progress(**train["progress"]), checkpoint["lineage"][:-1]
    tokenizer = load_tokenizer(checkpoint["tokenizer"])
    return Start(load_model(checkpoint, process.device), tokenizer, progress, lineage, train, init)


class Run:
    """A run's folder: its kept checkpoints, last.pt, metrics.jsonl; only rank 0 writes.

    out/RUN/step_0000875.pt   kept checkpoints        out/RUN/last.pt   what --resume takes
    out/RUN/metrics.jsonl     a line a step and a line an evaluation        out/RUN/eval/     evaluation records
    """

    def __init__(self, config: RunConfig, stage: str, process: Process):
        self.config, self.stage, self.process = config, stage, process
        self.out = Path(config.out or f"out/{stage}")
        self.stop_signal = 0
        self.last_good: Path | None = None
        self.evaluated = False  # is there a line of an evaluation at the step that this run resumes from?
        self._metrics = self._wandb = self._tensorboard = None
        if config.resume:
            if not (self.out / "last.pt").exists():
                raise UserError(f"--resume: {self.out / 'last.pt'} does not exist; start without --resume")
        elif self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir())):
            raise UserError(f"--out {self.out} is not empty: pass --resume to go on, or another --out")
        process.barrier()  # every rank has looked before rank 0 writes

    def open(self, resume_step: int) -> None:
        """Create the folder and open the logs; lines after `resume_step`, of a run that was killed, are dropped."""
        for signum in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signum, self._on_signal)
        if not self.process.main:
            return
        self.out.mkdir(parents=True, exist_ok=True)
        remove_stale(self.out)
        path = self.out / "metrics.jsonl"
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                with contextlib.suppress(json.JSONDecodeError):  # a line cut by a kill
                    values = json.loads(line)
                    if values["step"] <= resume_step:
                        kept.append(line + "\n")
                        self.evaluated = values["step"] == resume_step and "lr" not in values and "flops" not in values
        write_text(path, "".join(kept))
        self._metrics = open(path, "a")
        if self.config.wandb:
            import wandb

            self._wandb = wandb.init(project=self.config.wandb, name=self.out.name, config=asdict(self.config))
        if self.config.tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._tensorboard = SummaryWriter(str(self.out))

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

    def save(self, model: GPT, tokenizer: str, progress: Progress, lineage: list, train: dict, keep: bool) -> Path:
        """Write last.pt, and the kept step_N.pt (without optimizer states) if `keep`. Returns the path of the last."""
        path = self.out / (f"step_{progress.step:07d}.pt" if keep else "last.pt")
        self.last_good = path
        if not self.process.main:
            return path
        args = asdict(self.config)
        args.pop("resume")  # a resumed run's checkpoints and records are those of an uninterrupted one
        checkpoint = {
            "format": FORMAT,
            "stage": self.stage,
            "config": asdict(model.config),
            "tokenizer": tokenizer,
            "model": model.state_dict(),
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "lineage": [*lineage, {"stage": self.stage, "step": progress.step, "args": args}],
            "args": args,
            "metrics": {"skipped": progress.skipped},
        }
        save_checkpoint(self.out / "last.pt", {**checkpoint, "train": {**train, "progress": asdict(progress)}})
        if keep:
            save_checkpoint(path, checkpoint)
        return path

    def skip(self, progress: Progress, what: str) -> None:
        """Count a step whose loss or gradient is not finite; stop the run after --max_skipped of them."""
        progress.skipped += 1
        if progress.skipped > self.config.max_skipped:
            good = f"last good checkpoint: {self.last_good}" if self.last_good else "no checkpoint was written yet"
            raise UserError(f"{what} not finite in {progress.skipped} steps (--max_skipped); {good}; try a lower --lr")

    def should_stop(self) -> bool:
        """Did any rank get SIGTERM or SIGINT? (A rank may not leave the others waiting in a collective.)"""
        self.stop_signal = max(self.process.gather(self.stop_signal))
        return bool(self.stop_signal)

    def close(self) -> None:
        """Close the logs; after a signal, exit with the code that a signal gives."""
        for log in (self._metrics, self._tensorboard):
            if log:
                log.close()
        if self._wandb:
            self._wandb.finish()
        end_process()
        if self.stop_signal:
            if self.process.main:
                print(f"stopped by a signal: saved {self.out / 'last.pt'}; go on with --resume", file=sys.stderr)
            sys.exit(128 + self.stop_signal)

    def _on_signal(self, signum, frame) -> None:
        if self.stop_signal:  # a second Ctrl-C means now
            raise KeyboardInterrupt
        self.stop_signal = signum


def train(
    run: Run,
    start: Start,
    steps: int,
    step: Callable[[float], dict],
    train_state: Callable[[], dict],
    evaluate: Callable[[], dict],
    eval_every: int,
    shown: tuple[str, ...],
) -> None:
    """The loop of the post-training stages: step, save, evaluate, log, until `steps` or a signal.

    Args:
        step: makes one step at a learning rate and returns metrics; "flops" among them is what it spent.
        train_state: optimizer states and data cursors, for exact resume.
        evaluate: held-out metrics of the model as it is.
        shown: the metrics on the progress bar.
    """
    config, process, progress = run.config, run.process, start.progress
    kept = {int(s) for s in config.save_at.split(",") if s} | {steps}

    def save(keep: bool) -> None:
        run.save(start.model, start.tokenizer.name, progress, start.lineage, train_state(), keep)

    def due() -> bool:
        if eval_every < 0:  # where a checkpoint is kept, and before the first step
            return progress.step in kept or progress.step == 0
        return bool(eval_every) and (progress.step % eval_every == 0 or progress.step == steps)

    # before the first step; and on resume, where a kill came between a checkpoint and its evaluation
    if due() and not max(process.gather(run.evaluated)):
        run.log(progress.step, **evaluate())
    bar = tqdm(total=steps, initial=progress.step, unit="step", disable=not process.main, dynamic_ncols=True)
    with bar:  # closed before an error is printed
        while progress.step < steps:
            clock, lr = Clock(), learning_rate(config, progress.step, steps)
            values = {"lr": lr, **step(lr)}
            values["seconds"] = clock.lap()
            progress.step += 1
            progress.flops += values["flops"]
            values |= {"flops": progress.flops, "skipped": progress.skipped}
            run.log(progress.step, **values)  # before saving: a killed run may lose a step, but never its line alone
            keep = progress.step in kept
            if keep or (config.save_every and progress.step % config.save_every == 0):
                save(keep)  # before evaluating: a crash there loses nothing
            if due():
                held_out_values = evaluate()
                run.log(progress.step, **held_out_values)
                values |= held_out_values
            bar.set_postfix({k: f"{values[k]:.3g}" for k in shown if k in values}, refresh=False)
            bar.update()
            if run.should_stop():
                save(keep)
                break
    if process.main and not run.stop_signal:
        print(f"wrote {run.last_good}; next: python eval.py --checkpoint {run.last_good}", file=sys.stderr)
    run.close()


class Cursor:
    """Items 0 .. n-1 without end, each epoch in the order of a permutation of (seed, epoch). `position` is the state."""

    def __init__(self, n: int, seed: int):
        self.n, self.seed, self.position = n, seed, 0
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def draw(self, count: int) -> list[int]:
        drawn = []
        for index in range(self.position, self.position + count):
            epoch, place = divmod(index, self.n)
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
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor
