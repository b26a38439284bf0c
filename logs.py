"""What a run writes while it goes: OUT/metrics.jsonl, OUT/rollouts.jsonl.gz, and --logger (Weights & Biases, TensorBoard).

    log = Log(out, "wandb:PROJECT")             # UserError if that cannot be
    log.open(step, resume, flags)               # on rank 0 alone: elsewhere what follows does nothing
    log.metrics(step + 1, loss=loss)            # a line a step and a line an evaluation
    log.rollouts(step + 1, rows)                # some answers of an RL step
    log.table(step + 1, "rollouts", rows)       # to --logger alone

A killed run may have written lines of steps that it makes again once it is resumed: `open` drops them.
"""

import contextlib
import gzip
import importlib.util
import json
import uuid
import zlib
from pathlib import Path

from cli import UserError
from files import MALFORMED, named, write_jsonl, write_text


class Log:
    """The files of a run's metrics and rollouts, and its --logger."""

    def __init__(self, out: Path, logger: str):
        self.out, self.file = out, None  # OUT/metrics.jsonl, once `open` was called
        self._wandb = self._tensorboard = None
        self.logger, _, self.project = logger.partition(":")
        if logger and not (self.logger == "wandb" and self.project or logger == "tensorboard"):
            raise UserError(f"--logger {logger}: wandb:PROJECT or tensorboard")
        package = importlib.util.find_spec(self.logger) if logger else None
        found = (
            package is not None and getattr(package, "origin", "") is not None
        )  # a mere folder, such as ./wandb, has none
        if logger and not found:
            raise UserError(
                f"--logger {logger}: {self.logger} is not installed: pip install {self.logger}, or leave the flag out"
            )

    def open(self, step: int, resume: bool, flags: dict) -> bool:
        """Go on after `step`: lines of later steps are dropped. Is there a line of an evaluation at `step`?"""
        path, lines, evaluated = self.out / "metrics.jsonl", [], False
        if path.exists() and resume:
            for line in path.read_text(errors="replace").splitlines():
                with contextlib.suppress(*MALFORMED):  # a line cut by a kill, or no line of ours
                    values = json.loads(line)
                    if values["step"] <= step:
                        lines.append(line + "\n")
                        evaluated = values["step"] == step and "lr" not in values and "flops" not in values
        write_text(path, "".join(lines))
        self.file = open(path, "a")
        if (path := self.out / "rollouts.jsonl.gz").exists():
            drop_after(path, step)
        try:
            if self.project:
                self._wandb = self._open_wandb(resume, flags)
            if self.logger == "tensorboard":
                from torch.utils.tensorboard import SummaryWriter

                self._tensorboard = SummaryWriter(str(self.out), purge_step=step + 1)
        except Exception as error:  # of many kinds: no key, no network, a broken installation
            raise UserError(
                f"--logger {self.logger}: {type(error).__name__}: {' '.join(str(error).split())}; or leave the flag out"
            ) from None
        return evaluated

    def _open_wandb(self, resume: bool, flags: dict):
        """A new Weights & Biases run, or with --resume the one whose id lies in OUT/wandb_id."""
        import wandb

        id_file = self.out / "wandb_id"
        if not (resume and id_file.exists()):
            write_text(id_file, uuid.uuid4().hex[:8])
        return wandb.init(
            project=self.project, name=self.out.name, id=id_file.read_text(), resume="allow", dir=str(self.out), config=flags
        )  # fmt: skip

    def metrics(self, step: int, **values) -> None:
        """One line in metrics.jsonl; to --logger too."""
        if self.file is None:
            return
        with named(self.out / "metrics.jsonl"):
            self.file.write(json.dumps({"step": step, **values}) + "\n")
            self.file.flush()
        if self._wandb:
            self._wandb.log(values, step=step)
        if self._tensorboard:
            for key, value in values.items():
                if isinstance(value, int | float):
                    with named(self.out):  # its own message names no file
                        self._tensorboard.add_scalar(key, value, step)

    def rollouts(self, step: int, rows: list[dict]) -> None:
        """A line for each row in rollouts.jsonl.gz."""
        path = self.out / "rollouts.jsonl.gz"
        if self.file is None or not rows:
            return
        with named(path), gzip.open(path, "at") as file:
            file.writelines(json.dumps({"step": step, **row}) + "\n" for row in rows)

    def table(self, step: int, name: str, rows: list[dict]) -> None:
        """Rows with the same keys: a table in wandb, text in TensorBoard."""
        if self._wandb:
            import wandb

            table = wandb.Table(columns=list(rows[0]), data=[list(row.values()) for row in rows])
            self._wandb.log({name: table}, step=step)
        if self._tensorboard:
            # In markdown an indented block is shown as it is, whatever a model has written
            texts = ["\n".join(f"{key}: {value}" for key, value in row.items()) for row in rows]
            block = "\n\n".join(texts).replace("\n", "\n    ")
            self._tensorboard.add_text(name, f"    {block}", step)

    def close(self) -> None:
        for log in (self.file, self._tensorboard):
            if log:
                log.close()
        if self._wandb:
            self._wandb.finish()


def drop_after(path: Path, step: int) -> None:
    """Delete the rollouts of steps after `step`, which a resumed run makes again. Where a kill has cut a line short,
    that line and what follows it go too."""
    kept = []
    with contextlib.suppress(EOFError, zlib.error, *MALFORMED), gzip.open(path, "rb") as file:
        for line in file:
            if (row := json.loads(line))["step"] <= step:
                kept.append(row)
    write_jsonl(path, kept)
