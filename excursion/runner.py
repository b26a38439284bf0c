"""Executes the cells of a plan: commands that make files from files, several at a time, whatever kills them.

    missing = Runner(cells, out="out/excursion", jobs=2)()

A cell starts when what it needs is there, the first of the list first. Of a finished one OUT/NAME.json says command,
exit code and seconds, OUT/NAME.log what it printed. A training run that was killed goes on with --resume, or begins
again, with an empty metrics.jsonl, if it had no checkpoint yet. It is noted from its start, without an exit code, so
that no other command goes on with it: --resume would take from the checkpoint the flags that the other does not give. A
cell that fails is left alone until `retry`. The estimate of the time left is by the seconds of finished cells of the
same kind.
"""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

from tqdm import tqdm

from cli import UserError
from files import take_lock, write_text
from process import stop_signals


@dataclass
class Cell:
    """One command of one stage."""

    name: str  # seed0/4.00M/sft/train: OUT/NAME.log and OUT/NAME.json are the runner's files
    kind: str  # pretrain SCALE, sft, rl, average, eval, choose, soup: cells of a kind take alike long for alike costs
    command: list[str]  # after the interpreter
    results: list[Path]  # what it makes; there is the last one when it is done
    needs: list[Path]  # what it starts from
    cost: float  # estimated seconds on one idle core
    run: Path | None = None  # folder of a training run, which --resume goes on with
    meta: dict = field(default_factory=dict)  # of an evaluation: what .cell.json says of it
    part: str = ""  # of the plan

    @property
    def result(self) -> Path:
        return self.results[-1]


class Runner:
    """Call it to run all cells to their end. UserError if a cell that is there already was made by another command.

    Args:
        out: the folder below which every cell's log and note lie. jobs: how many cells run at once.
        threads: of each (OMP_NUM_THREADS). retry: run cells again that have failed before.
    """

    def __init__(self, cells: list[Cell], out: str | Path, jobs: int = 1, threads: int = 1, retry: bool = False):
        self.cells, self.out, self.jobs, self.threads, self.retry = cells, Path(out), jobs, threads, retry
        self.maker = {path: cell for cell in cells for path in cell.results}  # file → the cell that makes it
        self.running: dict[str, tuple[Cell, subprocess.Popen, float]] = {}  # name → cell, process, when it began
        self.stop_signal = 0  # the signal that was received; 0: none
        self.state: dict[str, dict] = {}  # name → what is noted of a cell (read_state); {}: nothing
        self.read_notes()

    def read_notes(self) -> None:
        for cell in self.cells:
            self.state[cell.name] = read_state(self.out / f"{cell.name}.json") or {}
            # A failed cell that made nothing may get another command with --retry
            if not (self.retry and self.failed(cell)) or has_begun(cell):
                refuse_other(cell, self.state[cell.name], self.out)

    def done(self, cell: Cell) -> bool:
        """A training run writes its last checkpoint before its last evaluation: there the exit code counts too."""
        if cell.run and self.state[cell.name].get("rc") != 0:
            return False
        return cell.result.exists()

    def failed(self, cell: Cell) -> bool:
        return bool(self.state[cell.name].get("rc"))

    def ready(self, cell: Cell) -> bool:
        """Is there all that it needs? Checkpoints of a pretraining run count as soon as they are there."""
        makers = [self.maker[path] for path in cell.needs if path in self.maker]
        finished = all(self.done(m) or m.kind.startswith("pretrain") for m in makers)
        return finished and all(path.exists() for path in cell.needs)

    def start(self, cell: Cell) -> None:
        """Begin a cell, or go on with its run."""
        command = [sys.executable, *cell.command]
        if has_begun(cell):
            command.append("--resume")
        log = self.out / f"{cell.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        if cell.run:
            self.note(cell, None, 0.0)
        with open(log, "a") as file:
            file.write(f"$ {shlex.join(command)}\n")
            file.flush()
            env = os.environ | {"OMP_NUM_THREADS": str(self.threads)}
            process = subprocess.Popen(
                command, stdout=file, stderr=file, env=env, start_new_session=True, preexec_fn=_die_with_parent,
                pass_fds=() if self.lock is None else (self.lock,),
            )  # fmt: skip
        self.running[cell.name] = cell, process, time.time()

    def reap(self) -> None:
        """Note the cells that have ended."""
        for name, (cell, process, began) in list(self.running.items()):
            if process.poll() is None:
                continue
            del self.running[name]
            rc = process.returncode or (0 if cell.result.exists() else 1)
            if rc and self.stop_signal:
                continue  # stopped by us: it goes on at the next start
            self.note(cell, rc, round(time.time() - began, 1))
            if rc:
                log = self.out / f"{name}.log"
                lines = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
                tqdm.write(f"failed ({rc}): {name}: {lines[-1][:160]} (all of it: {log})", file=sys.stderr)

    def note(self, cell: Cell, rc: int | None, seconds: float) -> None:
        self.state[cell.name] = {"command": cell.command, "rc": rc, "seconds": seconds}
        write_text(self.out / f"{cell.name}.json", json.dumps(self.state[cell.name]) + "\n")

    def seconds_left(self) -> float:
        """By the seconds of finished cells, per unit of cost of their kind (of all kinds, where none is finished yet)."""
        spent: dict[str, list[float]] = {}
        for cell in self.cells:
            if self.state[cell.name].get("rc") == 0:
                for kind in (cell.kind, ""):
                    total = spent.setdefault(kind, [0.0, 0.0])
                    total[0] += self.state[cell.name]["seconds"]
                    total[1] += cell.cost
        if not spent:
            return math.nan
        left = []
        for cell in self.cells:
            if not self.done(cell) and not self.failed(cell):
                seconds, cost = spent.get(cell.kind, spent[""])
                _, _, began = self.running.get(cell.name, (0, 0, time.time()))
                left.append(max(1.0, cell.cost * seconds / cost - (time.time() - began)))
        return max([sum(left) / self.jobs, *left])

    def __call__(self) -> int:
        """Run to the end; the number of cells that failed or could not start."""
        self.out.mkdir(parents=True, exist_ok=True)
        # the cells inherit it: while one lives, nobody else may run this plan. Those of a runner that was just killed
        # take a moment to die
        self.lock = take_lock(self.out, wait_s=10)
        try:
            self.read_notes()  # again: another runner, which was being stopped, may have saved a run of other flags
        except UserError:
            if self.lock is not None:
                os.close(self.lock)
            raise
        for cell in filter(self.failed, self.cells if self.retry else []):
            if has_begun(cell):
                self.note(cell, None, 0.0)
            else:
                (self.out / f"{cell.name}.json").unlink()
                self.state[cell.name] = {}
        before = {signum: signal.signal(signum, self._on_signal) for signum in stop_signals()}
        form = "{desc}|{bar}| {n_fmt}/{total_fmt} cells, {elapsed}{postfix}"
        every = 1 if sys.stderr.isatty() else 60  # seconds between lines
        bar = tqdm(total=len(self.cells), dynamic_ncols=True, bar_format=form, mininterval=every, miniters=0)
        while True:
            self.reap()
            if not self.stop_signal:
                for cell in self.cells:
                    if len(self.running) >= self.jobs:
                        break
                    waiting = cell.name not in self.running and not self.done(cell) and not self.failed(cell)
                    if waiting and self.ready(cell):
                        self.start(cell)
            began = time.monotonic()
            bar.n = sum(map(self.done, self.cells))
            bar.set_description_str(", ".join(self.running)[:70] or "excursion", refresh=False)
            left = self.seconds_left()
            bar.set_postfix_str("" if math.isnan(left) else f"about {tqdm.format_interval(left)} left", refresh=False)
            bar.update(0)
            if not self.running:
                break
            # A large plan has many files to look at: that may take a hundredth of the time, up to a look a second
            time.sleep(min(1.0, max(0.05, 99 * (time.monotonic() - began))))
        bar.refresh()
        bar.close()
        for signum, handler in before.items():
            signal.signal(signum, handler)
        if self.lock is not None:
            os.close(self.lock)
        if self.stop_signal:
            print("stopped by a signal: the same command goes on", file=sys.stderr)
            sys.exit(128 + self.stop_signal)
        missing = [cell for cell in self.cells if not self.done(cell)]
        failed = [cell.name for cell in missing if self.failed(cell)]
        if missing:
            print(f"{len(failed)} cells failed ({', '.join(failed)}); {len(missing) - len(failed)} wait for their files. "
                  "--retry runs them again", file=sys.stderr)  # fmt: skip
        return len(missing)

    def _on_signal(self, signum, frame) -> None:
        """Pass it on: the stages save and exit; at a second Ctrl-C without saving."""
        again, self.stop_signal = self.stop_signal and signum == signal.SIGINT, signum
        for _, process, _ in self.running.values():
            process.send_signal(signal.SIGINT if again else signal.SIGTERM)
        if not again:  # not by print, in the middle of which the signal may have come
            os.write(2, b"\nstopping: what runs saves itself (Ctrl-C again: stops at once, without)\n")


def _die_with_parent() -> None:
    """In a child, on Linux: be killed when the runner is (PR_SET_PDEATHSIG), so that no two processes make one cell."""
    import ctypes

    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def refuse_other(cell: Cell, state: dict | None, out: Path) -> None:
    """UserError if what is noted of a cell is of another command, which has made something or failed."""
    begun = has_begun(cell)
    if state and state["command"] != cell.command and (begun or state["rc"] is not None):
        failed = state["rc"] and not begun
        what, way = ("failed there by", "--retry runs this one") if failed else ("was made by", "pass the same flags")
        raise UserError(f"{cell.name} in {out} {what} another command (its .json beside its .log says which; a rates.json that came "
                        f"since changes flags, too): {way}, or another --out")  # fmt: skip


def has_begun(cell: Cell) -> bool:
    """Has it a training run with a checkpoint, from which --resume goes on?"""
    return cell.run is not None and (cell.run / "last.pt").exists()


def needed(cells: list[Cell], wanted: list[Cell]) -> list[Cell]:
    """The wanted cells and all that they need, in the order of the plan."""
    maker = {path: cell for cell in cells for path in cell.results}
    names, waiting = set(), list(wanted)  # names of what is needed; cells whose own needs are not looked at yet
    while waiting:
        cell = waiting.pop()
        if cell.name not in names:
            names.add(cell.name)
            waiting += [maker[path] for path in cell.needs if path in maker]
    return [cell for cell in cells if cell.name in names]


def read_state(path: Path) -> dict | None:
    """What is noted of a cell: command, rc (None of a training run that has not ended), seconds. None if there is
    nothing whole."""
    try:
        state = json.loads(path.read_text())
    except (OSError, ValueError, RecursionError):
        return None
    kinds = {"command": list, "rc": int | None, "seconds": int | float}
    return state if isinstance(state, dict) and all(isinstance(state.get(k, ""), kinds[k]) for k in kinds) else None
