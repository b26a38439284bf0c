"""This process among those that torchrun started: its rank, its device, sums and gathers over ranks.

process = start_process("auto", "auto", seed=0)     # one of many under torchrun, else rank 0 of 1
total = process.sum({"loss": loss})                 # over ranks
with process.autocast():                            # matrix products in --dtype
    hidden = model(tokens.to(process.device))
"""

import contextlib
import ctypes
import datetime
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist

# Its functions have the process group as a default argument. Imported by dynamo after init_process_group, as it is
# otherwise, they keep a group alive that has been destroyed, and a thread of that aborts the process at its exit.
import torch.distributed.nn.functional

import kernels
from cli import UserError

try:
    import resource
except ImportError:  # Windows
    resource = None

# Seconds that ranks wait for each other: sampling and saving take less. The environment's RANK_TIMEOUT wins
RANK_TIMEOUT = 4 * 3600


class LostRank(UserError):
    """Another rank has died, or has not answered within RANK_TIMEOUT."""


@contextlib.contextmanager
def together() -> Iterator[None]:
    """Around collectives: LostRank, one line, for what gloo and NCCL raise. Errors of this rank's own GPU, which may be
    noticed here first, stay what they are."""
    try:
        yield
    except (torch.OutOfMemoryError, torch.AcceleratorError):
        raise
    except RuntimeError as error:
        what = (str(error).splitlines() or [""])[0][-120:]
        raise LostRank(f"another rank died or hangs ({what}): start again, a training run with --resume") from None


@dataclass
class Process:
    """This process among those that torchrun started (rank 0 of 1 without torchrun).

    A signal stops all ranks at the same place, though each looks for it when it likes. A rank that has got one ends its
    loops over batches (`stopping`, `unless_stopping`) and goes to the next `sum` or `gather`. That tells every rank,
    and on each of them it calls `stop`, which saves the run as it was when the step began, and does not come back: what
    the cut loops have left undone is never used. A step that has begun to change the weights (`updated`) is finished
    first.
    """

    rank: int
    world: int
    device: torch.device
    dtype: torch.dtype  # of matrix products
    stop: Callable[[], NoReturn] | None = None  # None: signals are not obeyed
    stop_signal: int = 0  # the one that this rank has got
    updated: bool = False  # optimizer_step sets it, the end of the step clears it
    micro_tokens: int = 2048  # tokens in one forward pass (--micro_tokens)
    idle: float = 0.0  # of the last `spread`: seconds that ranks waited for the slowest, mean over ranks
    sharded: bool = False  # --shard: what optimizers need is spread over the ranks (sharding.py)
    main: bool = field(init=False)  # rank 0, which alone writes files and prints

    def __post_init__(self) -> None:
        self.main = self.rank == 0

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

    def sum(self, values: dict[str, float]) -> dict[str, float]:
        """The sum over ranks of each value, in fp64. May stop the run."""
        stopping = self.stopping()
        if self.world > 1:
            # gloo sums on the CPU; there is no fp64 on an MPS device
            device = self.device if dist.get_backend() == "nccl" else "cpu"
            with together():
                total = torch.tensor([*values.values(), stopping], dtype=torch.float64, device=device)
                dist.all_reduce(total)
                *sums, stopping = total.tolist()
            values = dict(zip(values, sums, strict=True))
        if stopping:
            self.stop()
        return values

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
        """Things 0 .. n-1, made by all ranks together: each makes its share, and every rank gets all, in order. May
        stop the run.

        Args:
            make: make(indices) yields the things of a rank's share, under autocast; fewer once `stopping` says True.
        """
        mine, start = [] if self.stopping() else list(range(self.rank, n, self.world)), time.perf_counter()
        with self.autocast():
            made = list(zip(mine, self.unless_stopping(make(mine)), strict=False))
        shares = self.gather((made, time.perf_counter() - start))
        seconds = [taken for _, taken in shares]
        self.idle = max(seconds) - sum(seconds) / len(seconds)
        made = dict(pair for share, _ in shares for pair in share)
        return [made[i] for i in range(n)]

    def barrier(self) -> None:
        if self.world > 1:
            with together():
                dist.barrier()


def start_process(
    device: str = "auto", dtype: str = "auto", seed: int = 0, micro_tokens: int = 0, shard: bool = False
) -> Process:
    """Make the process group if torchrun started this process, choose device, precision and kernels, seed everything."""
    _keep_pages()
    _open_more_files()
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
    precision, micro_tokens = numbers(torch.device(device).type, dtype, micro_tokens)
    sharded = shard and world > 1  # a run that was sharded may go on in one process
    return Process(rank, world, torch.device(device), precision, micro_tokens=micro_tokens, sharded=sharded)


def numbers(kind: str, dtype: str, micro_tokens: int) -> tuple[torch.dtype, int]:
    """What --dtype and --micro_tokens mean on a kind of device: "auto" and 0 leave them to it."""
    bf16 = dtype == "bf16" or (dtype == "auto" and kind == "cuda")
    return torch.bfloat16 if bf16 else torch.float32, micro_tokens or (2048 if kind == "cpu" else 16384)


def end_process() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def stop_signals() -> list[signal.Signals]:
    """Those at which a run saves itself and ends: also that of a terminal which is closed, unless nohup has it ignored."""
    hangup = getattr(signal, "SIGHUP", None)
    closed = [] if hangup is None or signal.getsignal(hangup) == signal.SIG_IGN else [hangup]
    return [signal.SIGTERM, signal.SIGINT, *closed]


def _open_more_files() -> None:
    """As many open files as the system lets us have: a mapped shard is one, 50 B tokens are a thousand, and the usual
    limit is that."""
    if resource is not None:
        with contextlib.suppress(OSError, ValueError):
            most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def _keep_pages() -> None:
    """Tell glibc to keep freed memory, and Linux to back it with huge pages.

    By default glibc returns every large tensor's pages to the kernel and faults them in again at the next allocation,
    which costs a third of a training step at micro. Pages of 2 MiB instead of 4 KiB let the CPU find tensors by fewer
    addresses: a step of SFT at micro takes a sixth less.
    """
    try:
        libc = ctypes.CDLL(None)
        mallopt, madvise = libc.mallopt, libc.madvise
    except (OSError, AttributeError, TypeError):  # not glibc
        return
    two_gib = (1 << 31) - 1  # what an int holds
    mallopt(-3, two_gib)  # M_MMAP_THRESHOLD: blocks below it are on the heap
    mallopt(-1, two_gib)  # M_TRIM_THRESHOLD: so much free memory at the heap's top stays there
    # The heap's next 2 GiB, advised before any tensor is there. Freed untouched, they take no memory yet
    libc.malloc.restype, size = ctypes.c_void_p, two_gib - (1 << 20)
    if block := libc.malloc(ctypes.c_size_t(size)):
        page = os.sysconf("SC_PAGE_SIZE")
        madvise(ctypes.c_void_p(-(-block // page) * page), ctypes.c_size_t(size - page), 14)  # MADV_HUGEPAGE
        libc.free(ctypes.c_void_p(block))
