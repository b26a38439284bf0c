"""What surrounds the steps of every stage: resuming, compiling, checkpoints, metrics, signals."""

import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from checkpoint import FORMAT, load_checkpoint, load_model, save_checkpoint, weights_digest
from cli import UserError, check_ranges, default_of, given, has_kind_of, reason
from config import RunConfig, parse_schedule
from curves import FEWEST, draw_curves
from data.tokenizer import Tokenizer, load_tokenizer, tokenizer_digest
from files import remove_stale, take_lock
from logs import Log
from model import GPT, CompiledGPT
from optimizer import learning_rate, load_optimizer
from packing import Packed
from process import Process, end_process, start_process, stop_signals
from sharding import collect, gather_weights, shard

# A run stops after so many updates with a non-finite loss or gradient. Where the gradient is not finite, nothing is updated
MAX_SKIPPED = 20


# ---------------------------------------------------------------------------------------------------------------------
# How a run begins: resuming, compiling
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0  # of this stage
    tokens: int = 0  # pretraining tokens behind the base model
    flops: float | None = 0.0  # spent in total, all stages, training and sampling; None: unknown (imported weights)
    skipped: int = 0  # updates with a non-finite loss or gradient


# Flags that a resumed run may change: where and how it runs, what it logs, keeps and evaluates. (Not dtype, which
# changes the numbers)
FREE = {
    *"out resume device shard compile micro_tokens recompute kv_gib verify logger save_every save_at".split(),
    *"val_tokens eval_every eval_questions eval_limit eval_tasks".split(),
}
LENGTH = {"steps", "tokens"}  # and these, where no schedule depends on the length of the run


def plain(flag: str, value):
    """A flag's value in one spelling: out/data/ is out/data."""
    return os.path.normpath(value) if flag == "data" else value


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
        raise UserError(
            f"{path} is a kept checkpoint, without what --resume needs: SFT and RL start from it with --init"
        )
    args = last["args"]
    unknown = sorted(args.keys() - {f.name for f in fields(config)})
    if unknown:
        raise UserError(
            f"{path} has a flag --{unknown[0]} that {stage} does not know: resume it with the version that made it"
        )
    wrong = [f.name for f in fields(config) if f.name in args and not has_kind_of(f, args[f.name])]
    if wrong or "schedule" not in args:
        raise UserError(f"{path} has no --{[*wrong, 'schedule'][0]} that {stage} could have made; begin a new run")
    # A flag that a fork has added since had its default before
    before = {f.name: default_of(f) for f in fields(config)} | args
    changed = {name for name in asked if plain(name, getattr(config, name)) != plain(name, before[name])}
    # A word that is not known here may be a fork's schedule of --weight
    fixed = re.fullmatch(r"[\d.e-]+|norm|signal", str(args.get("weight", 1)))
    scheduled = args["schedule"].partition(":")[0] != "constant" or not fixed
    for name in sorted(changed - FREE):
        if name not in LENGTH:
            raise UserError(
                f"--resume with another --{name} ({before[name]!r} before): leave it out, or begin a new run"
            )
        if scheduled:
            raise UserError(f"--resume with another --{name} ({before[name]!r} before): --schedule {args['schedule']} (or --weight) is laid "
                            "out over the run's length; only a run in which both are constant can be made longer")  # fmt: skip
    stays = changed | {"out"} | (LENGTH if changed & LENGTH else set())
    for name in args.keys() - stays:
        setattr(config, name, args[name])
    check_ranges(config)
    return last


def begin(config: RunConfig, stage: str) -> "Run":
    """A run of a stage: its flags checked, its process, its folder, and the model of --init or, with --resume, of last.pt.

    pretrain.py has no --init: a new run of it begins without a model and gets one by `Run.use`.
    """
    checkpoint = flags_of_last(config, stage)
    config.check()
    run = Run(config, stage, start_process(config.device, config.dtype, config.seed, config.micro_tokens, config.shard))
    if checkpoint:  # --resume
        run.progress = Progress(**checkpoint["train"]["progress"])
        *run.lineage, entry = checkpoint["lineage"]  # without this stage, which every save adds as it then is
        run.data_before = entry.get("data")
        run.to_restore = checkpoint["train"]
    elif init := getattr(config, "init", ""):
        checkpoint = load_checkpoint(init)
        run.progress = Progress(tokens=checkpoint["tokens"], flops=checkpoint["flops"])
        run.lineage = checkpoint["lineage"]
    if checkpoint:
        run.use(load_model(checkpoint, run.process.device), load_tokenizer(checkpoint["tokenizer"]))
    return run


def compile_training(
    model: GPT, process: Process, choice: str, steps: int, dynamic: bool, trial: Callable[[GPT], Tensor]
) -> GPT | CompiledGPT:
    """The model as training passes call it: compiled, or as it is where that is not wanted or not possible.

    Fused elementwise passes save a fifth of a step on a CPU that has a C++ compiler. Compiling takes up to a minute,
    hence not for short runs.

    Args:
        choice: --compile. steps: of the whole run.
        dynamic: each pass has other shapes: batches of RL and SFT. One graph serves all but those with a size of 1.
            Which graph a shape gets depends on what came before, so a resumed run need not have the same bits: not on a
            CPU unless asked for.
        trial: a training pass of a model, for example on zeros; returns something with a gradient. Compiling fails
            there or never.
    """
    on_gpu = process.device.type == "cuda"
    if choice == "off" or (choice == "auto" and (steps < 1000 or (dynamic and not on_gpu))):
        return model
    if process.main:
        print("compiling the model, up to a minute (--compile off: without)", file=sys.stderr)
    try:
        # On a CPU one graph of the whole model is 5% faster at micro scale than that of a block, called for each; on a
        # GPU the whole of 28 blocks would compile for minutes, and the hooks of --shard would break it at each block
        whole = process.device.type == "cpu" and not process.sharded
        fast = torch.compile(model, dynamic=dynamic) if whole else CompiledGPT(model, dynamic)
        with process.autocast():
            total = trial(fast).sum()
        # Not backward(): with --shard a gradient that it leaves could not be cleared
        torch.autograd.grad(total, list(model.parameters()), allow_unused=True)
    except Exception as error:  # dozens of kinds: no C++ compiler, no OpenMP, an unknown device
        what = (str(error).splitlines() or [type(error).__name__])[0][:160]
        if choice == "on":
            raise UserError(f"--compile on: {what}; use --compile off") from None
        if process.main:
            print(f"not compiled, which is slower: {what}", file=sys.stderr)
        return model
    return fast


# ---------------------------------------------------------------------------------------------------------------------
# The run
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Step:
    """One step of a run, as its loop sees it."""

    number: int  # from 0
    lr: float
    # What the loop leaves here goes to OUT/metrics.jsonl and OUT/rollouts.jsonl.gz
    metrics: dict = field(default_factory=dict)  # "flops" among them is what the step has spent
    rollouts: list[dict] = field(default_factory=list)


class Run:
    """A run of a stage: its model, its folder, its loop. Only rank 0 writes.

        run = begin(config, "sft")                      # run.model, run.tokenizer, run.process, run.progress, run.out
        run.restore(optimizer=optimizer, sft=order)     # what last.pt holds beside the model
        for step in run.steps(total, evaluate):
            ...                                         # make the step at step.lr
            step.metrics = {"loss": loss, "flops": flops}

    out/RUN/step_0000875.pt   kept checkpoints        out/RUN/last.pt   what --resume takes
    out/RUN/metrics.jsonl     a line a step and a line an evaluation        out/RUN/eval/     evaluation records
    out/RUN/curves.png        drawn of them at the end          out/RUN/rollouts.jsonl.gz     some answers of each RL step
    """

    _locks: ClassVar[dict[Path, int | None]] = {}  # of folders that this process writes to

    def __init__(self, config: RunConfig, stage: str, process: Process):
        self.config, self.stage, self.process = config, stage, process
        self.out = Path(config.out or f"out/{stage}")
        self.model: GPT | None = None
        self.fast: GPT | CompiledGPT | None = None  # the model as training passes call it
        self.tokenizer: Tokenizer | None = None
        self.progress = Progress()
        self.lineage: list[dict] = []  # of the checkpoint behind this stage
        self.data: list[str] = []  # digests of what it trains on (`trains_on`)
        self.data_before: list[str] | None = None  # of a resumed run, when it began; None: not known
        self.to_restore: dict = {}  # name → state, of what last.pt holds beside the model, until `restore`
        self.last_good: Path | None = None  # the checkpoint that was written last
        self.evaluated = False  # is there a line of an evaluation at the step that this run resumes from?
        self._saved_things: dict[str, torch.optim.Optimizer | Cursor] = {}  # whose states last.pt holds
        self._whole_step: dict = {}  # these states after the last whole step, which a save writes
        self._saved_at, self._saved_step = time.monotonic(), -1
        self._check_folder()
        self.save_steps, self.save_seconds = config.saves()
        self.log = Log(self.out, config.logger)
        self.claim(make=False)

    def _check_folder(self) -> None:
        """UserError for a folder that a new run would overwrite."""
        if self.out.exists() and not self.out.is_dir():
            raise UserError(f"--out {self.out} is a file: name a folder")
        if not self.config.resume and any(self.out.glob("*.pt")):  # without a checkpoint there is nothing to lose
            raise UserError(f"--out {self.out} holds checkpoints of a run: pass --resume to go on, or another --out")

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
        """The model that this run trains and saves. Its optimizers are made between this and `restore`."""
        self.model, self.fast, self.tokenizer = model, model, tokenizer
        for block in model.blocks:
            block.recompute = self.config.recompute
        if self.process.sharded:
            shard(model, self.process)

    def compile(self, steps: int) -> None:
        """Compile the passes of a stage that trains on Packed batches, if --compile says so. steps: of the whole run."""

        def trial(model):  # all sizes differ, and none is 1: else the compiler takes them to be equal, or 1, always
            prompts, answers = [[0] * 5, [0] * 4], [[0] * 5, [0] * 4, [0] * 3]
            return Packed(prompts, answers, [0, 1, 1], self.process.device).log_probs(model, 1.0).log_prob

        self.fast = compile_training(self.model, self.process, self.config.compile, steps, dynamic=True, trial=trial)

    def trains_on(self, digest: str) -> None:
        """Note what the run trains on; averaging has two such, of its RL side and of its SFT side. It is part of the lineage."""
        self.data.append(digest)

    def restore(self, **things: "torch.optim.Optimizer | Cursor") -> None:
        """Optimizers and cursors, by their names in last.pt: a resumed run sets them to what it holds, and every save
        writes them. UserError if last.pt has something else, or if the data have changed."""
        self._saved_things = things
        if self.data_before not in (None, self.data):
            raise UserError(
                "--resume: the data that this run trains on have changed since it began (digest); put them back, or begin a new run"
            )
        for name, thing in things.items() if self.config.resume else ():
            if isinstance(thing, Cursor):
                thing.position = self.to_restore.get(name)
                if type(thing.position) is not int or not 0 <= thing.position < 2**63:
                    raise UserError(
                        f"last.pt: {name}, its position in the data, is {thing.position!r}; start a new run"
                    )
            else:
                load_optimizer(thing, self.to_restore.get(name))
        self.to_restore = {}  # the file is mapped, and would stay in use
        if self.process.sharded:
            gather_weights(self.model)

    def _take_state(self) -> None:
        """Of optimizers and cursors, once a step is whole: a signal in the next step saves these."""
        self._whole_step = {
            name: thing.position if isinstance(thing, Cursor) else thing.state_dict()
            for name, thing in self._saved_things.items()
        }

    def open(self) -> None:
        """Create the folder, obey signals from here on, open the logs."""
        self.claim()
        for signum in stop_signals():
            signal.signal(signum, self._on_signal)
        if not self.process.main:
            return
        remove_stale(self.out)
        self.evaluated = self.log.open(self.progress.step, self.config.resume, asdict(self.config))

    def save(self, keep: bool) -> Path:
        """Write last.pt, and the kept step_N.pt (without optimizer states) if `keep`. Returns the path of the last."""
        model, progress = self.model, self.progress
        path = self.out / (f"step_{progress.step:07d}.pt" if keep else "last.pt")
        self.last_good, self._saved_at, self._saved_step = path, time.monotonic(), progress.step
        if self.process.sharded:
            weights, states = collect(model, self._whole_step)
        else:
            weights, states = model.state_dict(), self._whole_step
        if not self.process.main:
            return path
        args = asdict(self.config)
        args.pop("resume")  # a resumed run's checkpoints and records are those of an uninterrupted one
        entry = {"stage": self.stage, "step": progress.step, "flops": progress.flops, "args": args}
        entry["weights"] = weights_digest(weights)  # says later from exactly which model another was made
        entry |= {"data": self.data} if self.data else {}
        checkpoint = {
            "format": FORMAT,
            "stage": self.stage,
            "config": asdict(model.config),
            "tokenizer": self.tokenizer.name,
            "tokenizer_digest": tokenizer_digest(self.tokenizer.name),
            "model": weights,
            "step": progress.step,
            "tokens": progress.tokens,
            "flops": progress.flops,
            "lineage": [*self.lineage, entry],
            "args": args,
            "metrics": {"skipped": progress.skipped},
        }
        save_checkpoint(self.out / "last.pt", {**checkpoint, "train": {**states, "progress": asdict(progress)}})
        if keep:
            save_checkpoint(path, checkpoint)
        return path

    def skip(self, what: str) -> None:
        """Count an update whose loss or gradient is not finite; stop the run after MAX_SKIPPED of them."""
        progress = self.progress
        progress.skipped += 1
        if progress.skipped > MAX_SKIPPED:
            good = f"last good checkpoint: {self.last_good}" if self.last_good else "no checkpoint was written yet"
            raise UserError(
                f"{what} not finite in {progress.skipped} updates; {good}; begin a new run, in another --out, with a lower --lr"
            )

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
            self.log.metrics(progress.step, **evaluate())
        bar = tqdm(
            total=total, initial=progress.step, unit="step", disable=not process.main, dynamic_ncols=True, mininterval=1
        )
        with bar:
            while progress.step < total:
                # The stage makes the step
                start = time.perf_counter()
                step = Step(progress.step, learning_rate(config.lr, shape, warmup, progress.step, total))
                yield step
                values = {"lr": step.lr, **step.metrics, "seconds": time.perf_counter() - start}

                # It is whole now: a signal from here on saves it
                progress.step += 1
                if progress.flops is not None:
                    progress.flops += values["flops"]
                self._take_state()
                process.updated = False
                values |= {"flops": progress.flops, "skipped": progress.skipped}

                # Log before saving: a killed run may lose a step, but never its line alone. Save before evaluating: a
                # crash there loses nothing
                self.log.metrics(progress.step, **values)
                self.log.rollouts(progress.step, step.rollouts)
                keep = progress.step in kept
                # Rank 0's clock alone counts: the other ranks write nothing, and with --shard they have to know
                late = self.save_seconds and time.monotonic() - self._saved_at >= self.save_seconds
                if process.sharded:
                    late = process.gather(late)[0]
                if keep or late or (self.save_steps and progress.step % self.save_steps == 0):
                    self.save(keep)
                if config.due(progress.step, total, kept):
                    evaluated = evaluate()
                    self.log.metrics(progress.step, **evaluated)
                    values |= evaluated
                texts = {
                    k: f"{values[k]:.3g}" if abs(values[k]) < 1000 else f"{values[k]:.0f}" for k in shown if k in values
                }
                bar.set_postfix(texts, refresh=False)
                bar.update()
        if process.main:
            self._draw(total)
            print(f"wrote {self.last_good}; next: python eval.py --checkpoint {self.last_good}", file=sys.stderr)
        self.close()

    def _draw(self, total: int) -> None:
        """Write OUT/curves.png. The run is whole without it: where it cannot be made, a line says why."""
        if total < FEWEST:
            return
        try:
            draw_curves([self.out], self.out / "curves.png")
        except Exception as error:  # of many kinds: no matplotlib, no font, a full disk
            print(f"{self.out} has no curves.png: {reason(error)}", file=sys.stderr)

    def _check_progress(self, total: int, kept: set[int]) -> None:
        """Of a resumed run: write the kept checkpoint that a kill after last.pt has cost; say so if there is nothing to do."""
        step = self.progress.step
        self.last_good = self.out / (f"step_{step:07d}.pt" if step in kept else "last.pt")
        if not self.process.gather(self.last_good.exists())[0]:
            self.save(keep=True)
        if step > total:
            raise UserError(f"{self.out / 'last.pt'} is at step {step}, beyond the {total} steps of this run (--steps)")
        if step == total and self.process.main:
            print(f"{self.out} has made its {total} steps already", file=sys.stderr)

    def close(self) -> None:
        """Close the logs, leave the folder and the other ranks."""
        self.process.stop = None
        self.log.close()
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
        if self._saved_step != self.progress.step:  # else last.pt is this very step
            self.save(keep=False)
        self.process.barrier()  # where one rank has exited, torchrun kills the others half a minute later
        self.close()
        if self.process.main:
            print(f"stopped by a signal: saved {self.out / 'last.pt'}; go on with --resume", file=sys.stderr)
        sys.exit(128 + (self.process.stop_signal or signal.SIGTERM))


class Cursor:
    """Items 0 .. n-1 without end, each epoch in the order of a permutation of (seed, epoch), or as they are. `position`
    is the state. Another `stream` has other permutations."""

    stream = 0

    def __init__(self, n: int, seed: int, shuffled: bool = True):
        self.n, self.seed, self.shuffled, self.position = n, seed, shuffled, 0
        self._epoch, self._order = -1, np.zeros(0, dtype=np.int64)

    def draw(self, count: int) -> list[int]:
        drawn = []
        for index in range(self.position, self.position + count):
            epoch, place = divmod(index, self.n)
            if self.shuffled and epoch != self._epoch:
                key = [self.seed, epoch, self.stream] if self.stream else [self.seed, epoch]
                self._epoch, self._order = epoch, np.random.default_rng(key).permutation(self.n)
            drawn.append(int(self._order[place]) if self.shuffled else place)
        self.position += count
        return drawn
