"""The project's commands as forks of this process, and what can be done to them while they write.

    ended = fork("rl", ["--init", "base.pt", ...], folder, injury=Injury("kill", at=7))

A fork starts in milliseconds, where a new interpreter with torch takes seconds, and is a process of its own all the
same: it can be killed, stopped, run out of memory or hang. It runs the command as a user would type it in `folder`,
through the stage's own command line. So that a fork inherits no threads, the process that forks computes nothing
itself.

What a run writes (files opened for writing, renamed, removed; folders made; fsync; a line of metrics) are its *writes*,
counted from 1. An Injury acts just before one of them.
"""

import contextlib
import errno
import gc
import gzip
import importlib
import json
import mmap
import os
import resource
import shutil
import signal
import struct
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

import cli
from logs import Log

ROOT = Path(__file__).parent.parent
STAGES = {  # command → module
    "pretrain": "pretrain",
    "sft": "sft",
    "rl": "rl",
    "average": "average",
    "eval": "eval",
    "prepare": "data.prepare",
    "olmo2": "tools.olmo2",
    "excursion": "excursion.command",
}
MEMORY = 6 << 30  # bytes that a fork may have more than this process: what asks for terabytes fails, not the machine
GRACE = 20  # seconds for a run that is stopped to save and exit


def load_stages() -> None:
    """Import what the forks run, once; and one thread, since a fork has one."""
    torch.set_num_threads(1)
    importlib.import_module("torch._dynamo")  # the first optimizer would, in each fork: a second
    for module in STAGES.values():
        importlib.import_module(module)
    gc.freeze()  # else each fork's garbage collector would visit, and so copy, all that was imported


@dataclass
class Injury:
    """What happens just before write number `at` (from 1).

    kill: SIGKILL. torn: the same, at the next fsync from there on, and half of that file is lost. Any other name is an
    errno (ENOSPC, EROFS, EIO): this write and all later ones fail with it; removing files does not.
    """

    kind: str
    at: int


@dataclass
class Ended:
    """How a command ended."""

    command: str
    code: int  # exit code; negative: the signal that killed it
    out: str
    err: str
    writes: int
    seconds: float
    hung: bool  # it had to be stopped at the time limit, and did not stop when asked

    @property
    def lines(self) -> list[str]:
        """stderr's lines, those of progress bars left out."""
        text = self.err.replace("\r", "\n").replace("\x1b[A", "")
        return [line for line in text.splitlines() if line.strip() and not ("|" in line and "%" in line)]

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err or self.code == 1 or "Fatal Python error" in self.err

    @property
    def refused(self) -> bool:
        """Exit code 2 with one line that begins with "error:", after which nothing comes; or tyro's box for a value
        that cannot be parsed."""
        if self.code != 2 or self.traceback:
            return False
        errors = [i for i, line in enumerate(self.lines) if line.startswith("error:")]
        return errors == [len(self.lines) - 1] or (not errors and bool(self.lines) and self.lines[-1].startswith("╰"))

    def __str__(self) -> str:
        how = "hangs" if self.hung else f"exit {self.code}"
        last = self.lines[-1][:200] if self.lines else ""
        if self.traceback:  # where: the last line of the project's own files
            where = [
                line.strip() for line in self.lines if line.strip().startswith("File ") and "site-packages" not in line
            ]
            last += f"  [{where[-1].split('/')[-1]}]" if where else ""
        command = self.command if len(self.command) < 100 else f"{self.command[:30]} … {self.command[-60:]}"
        return f"{command}: {how}: {last}"


def fork(
    stage: str,
    flags: list[str],
    folder: Path,
    injury: Injury | None = None,
    kill_after: float | None = None,
    limit: float = 60,
    prepare: Callable[[], None] | None = None,
    env: dict[str, str] | None = None,
) -> Ended:
    """Run `python STAGE.py FLAGS` in `folder` and wait for its end.

    kill_after: SIGKILL after so many seconds. limit: SIGTERM after so many, and SIGKILL GRACE later. prepare: called in
    the fork before the command.
    """
    return wait(start(stage, flags, folder, injury, prepare, env), kill_after, limit)


@dataclass
class Running:
    command: str
    pid: int
    folder: Path
    files: tuple[BinaryIO, BinaryIO]
    counter: mmap.mmap
    began: float


def start(
    stage: str,
    flags: list[str],
    folder: Path,
    injury: Injury | None = None,
    prepare: Callable[[], None] | None = None,
    env: dict[str, str] | None = None,
) -> Running:
    flags = [str(flag) for flag in flags]
    folder.mkdir(parents=True, exist_ok=True)
    files = tempfile.TemporaryFile(), tempfile.TemporaryFile()  # not in `folder`, whose disk may be full
    counter = mmap.mmap(-1, 8)
    sys.stdout.flush(), sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(" ".join([stage, *flags]), pid, folder, files, counter, time.monotonic())
    code = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in ((1, files[0]), (2, files[1])):
            os.dup2(file.fileno(), number)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(env or {})
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
        module = importlib.import_module(STAGES[stage])
        if prepare:
            prepare()
        sys.argv = [f"{stage}.py", *flags]
        _count_writes(folder.resolve(), counter, injury)
        cli.cli(module.main, module.Config, getattr(module, "PRESETS", None))
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(BaseException):
            sys.stdout.flush(), sys.stderr.flush()
        os._exit(code)


def wait(running: Running, kill_after: float | None = None, limit: float = 60) -> Ended:
    """The end of a command that `start` started."""
    hung = asked = False
    while True:
        pid, status = os.waitpid(running.pid, os.WNOHANG)
        if pid:
            break
        now = time.monotonic() - running.began
        if kill_after is not None and now > kill_after:
            os.kill(running.pid, signal.SIGKILL)
        elif now > limit + GRACE:
            hung = True
            os.kill(running.pid, signal.SIGKILL)
        elif now > limit and not asked:
            asked = True
            os.kill(running.pid, signal.SIGTERM)
        time.sleep(0.002)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(running.pid, signal.SIGKILL)  # the workers of data.prepare
    said = []
    for file in running.files:
        file.seek(0)
        said.append(file.read().decode(errors="replace"))
        file.close()
    (writes,) = struct.unpack("q", running.counter[:8])
    seconds = time.monotonic() - running.began
    return Ended(running.command, os.waitstatus_to_exitcode(status), *said, writes, seconds, hung)


def _count_writes(folder: Path, counter: mmap.mmap, injury: Injury | None) -> None:
    """In a fork: from here on count what is written below `folder`, and do what the injury says."""
    root, count, fsync, log = str(folder), 0, os.fsync, Log.metrics

    def here(path) -> bool:
        try:
            return os.path.abspath(os.fsdecode(path)).startswith(root)
        except (TypeError, ValueError):  # a file descriptor
            return False

    def write(what: str, file: int | None = None, path=None) -> None:
        nonlocal count
        count += 1
        counter[:8] = struct.pack("q", count)
        if injury is None or count < injury.at:
            return
        if injury.kind == "kill" or (injury.kind == "torn" and file is not None):
            if injury.kind == "torn":
                os.ftruncate(file, os.fstat(file).st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)
        elif injury.kind != "torn" and what != "remove":
            number = getattr(errno, injury.kind)
            raise OSError(number, os.strerror(number), path)

    def hook(event: str, args: tuple) -> None:
        if event == "open":
            path, _, flags = args
            if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) and here(path):
                write("open", path=path)
        elif event in ("os.rename", "os.link", "os.mkdir", "os.truncate") and here(args[0]):
            write(event, path=args[0])
        elif event in ("os.remove", "os.rmdir", "shutil.rmtree") and here(args[0]):
            write("remove")

    def counted_fsync(file) -> None:
        write("fsync", file if isinstance(file, int) else file.fileno())
        fsync(file)

    def counted_log(self, *args, **kwargs) -> None:
        write("log")
        log(self, *args, **kwargs)

    os.fsync, Log.metrics = counted_fsync, counted_log
    sys.addaudithook(hook)


# ---------------------------------------------------------------------------------------------------------------------
# Are two folders of results the same?
# ---------------------------------------------------------------------------------------------------------------------


def differences(a: Path, b: Path) -> list[str]:
    """What differs between two folders that one command made twice: names of files, or contents. Equal means: the same
    bits in every tensor, the same numbers in every line but times."""
    found = []
    files = [{p.relative_to(root) for p in root.rglob("*") if p.is_file()} for root in (a, b)]
    for path in sorted(files[0] | files[1]):
        if path not in files[0] or path not in files[1]:
            found.append(f"{path} is only in {(a if path in files[0] else b).name}")
        elif (a / path).read_bytes() != (b / path).read_bytes() and content(a / path) != content(b / path):
            found.append(f"{path} differs")
    return found


def content(path: Path):
    """What of a file must be equal, in a form that == compares."""
    if path.suffix == ".pt":
        return _plain(torch.load(path, map_location="cpu", weights_only=True))
    text = gzip.open(path).read() if path.suffix == ".gz" else path.read_bytes()
    if {".json", ".jsonl"} & set(path.suffixes):
        return [_plain(json.loads(line)) for line in (text.splitlines() if ".jsonl" in path.suffixes else [text])]
    return text


def _plain(thing):
    """Tensors as their bytes; times left out."""
    if isinstance(thing, torch.Tensor):
        return (
            str(thing.dtype),
            tuple(thing.shape),
            thing.numpy().tobytes(),
        )
    if isinstance(thing, dict):
        return {
            k: _plain(v) for k, v in thing.items() if not (isinstance(k, str) and (k == "seconds" or k.endswith("_s")))
        }
    if isinstance(thing, list | tuple):
        return [_plain(v) for v in thing]
    return thing


def copy(source: Path, target: Path) -> Path:
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(source, target)
    return target
