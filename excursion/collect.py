"""What is kept of a finished evaluation: a record that is small enough to be committed, and what the plan knows of it.

OUT/records/NAME.json.gz is eval.py's own record; NAME.cell.json beside it says recipe, seed, step, curve, samples, seconds.
"""

import gzip
import json
import math
import zlib
from pathlib import Path

from cli import UserError
from excursion.cells import commands_of, record_name
from excursion.choose import best_step, validation_scores
from excursion.config import Config
from excursion.recipes import RECIPES
from excursion.runner import Cell, read_state
from files import MALFORMED, read_json, write_jsonl, write_text

CURVE = ("reward", "length", "entropy", "val_pass@1", "val_pass@8", "val_process@1", "sft_loss", "flops")
SHOWN = 3  # questions of each test set whose samples go into the record, 4 samples each
# What is kept of each question: pass@k, process, entropies and their intervals are computed from these. All else is kept as means
PER_QUESTION = ("id", "facts", "n", "c", "c_lenient", "c_process", "h_answers", "h_paths")


def thin_curve(log: Path, points: int = 50) -> dict[str, list]:
    """{metric: [[step, value], ...]} of a metrics.jsonl: at most so many points of each, the last one always. {}
    without a log."""
    curve: dict[str, list] = {}
    for line in map(json.loads, log.read_text().splitlines() if log.exists() else ()):
        for key in CURVE:
            if line.get(key) is not None:  # FLOPs may be unknown
                curve.setdefault(key, []).append([line["step"], float(f"{line[key]:.6g}")])
    for key, values in curve.items():
        every = math.ceil(len(values) / points)
        curve[key] = values[:1] + values[1:][::-every][::-1]
    return curve


def seconds_of(log: Path, step: int) -> float | None:
    """Seconds of a run's training steps up to this one, of all its starts; None without a log."""
    if not log.exists():
        return None
    lines = map(json.loads, log.read_text().splitlines())
    return round(sum(line.get("seconds", 0) for line in lines if line["step"] <= step), 1)


def shown_samples(path: Path) -> list[dict]:
    """A few answers of an evaluation, for the report's reader: the first questions of each test set."""
    with gzip.open(path, "rt") as file:
        rows = [json.loads(line) for line in file]
    shown = []
    for name in dict.fromkeys(row["set"] for row in rows):
        for row in [row for row in rows if row["set"] == name][:SHOWN]:
            samples = [{key: s[key] for key in ("text", "right", "process") if key in s} for s in row["samples"][:4]]
            shown.append({**row, "samples": samples})
    return shown


def stop_of(cell: Cell, step: int, run: Path) -> dict:
    """Which step of its run an evaluated model is, which step is the best on validation, and is the run stopped there?"""
    points = cell.meta["points"]
    if not (run / "metrics.jsonl").exists():
        return {"step": step if points else 0, "primary": True}
    scores = validation_scores(run)
    best = best_step(scores, [p for p in points if p in scores])
    judged_along = RECIPES[cell.meta["recipe"]].judged == "points"  # else one model stands for the run
    return {"step": step, "primary": step == best or not judged_along, "best_step": best}


def seeds_of(note: Path) -> list[int]:
    """The seeds for which an earlier plan let this record stand; none without one."""
    try:
        return read_json(note)["seeds"]
    except (UserError, *MALFORMED):
        return []


def collect(config: Config, cells: list[Cell]) -> Path:
    """Copy what the report needs of every evaluated cell to OUT/records; that folder."""
    folder = Path(config.out) / "records"
    folder.mkdir(parents=True, exist_ok=True)
    for cell in cells:
        if cell.meta and cell.result.exists():
            try:
                collect_one(config, cell, cells, folder)
            except (EOFError, zlib.error, *MALFORMED) as error:
                if isinstance(error, OSError) and error.errno:  # a full disk
                    raise
                home = cell.result.parent.parent
                raise UserError(
                    f"{cell.result}, the .jsonl.gz beside it or {home / 'run/metrics.jsonl'}: damaged ({error!r:.80}); delete the "
                    f"evaluation, or the whole of {home}, and run again"
                ) from None
    return folder


def collect_one(config: Config, cell: Cell, cells: list[Cell], folder: Path) -> None:
    """NAME.json.gz and NAME.cell.json of a finished evaluation."""
    name, home, record = record_name(cell), cell.result.parent.parent, json.loads(cell.result.read_text())
    evaluation, log = read_state(Path(config.out) / f"{cell.name}.json"), home / "run/metrics.jsonl"
    meta = {
        "name": name,
        **cell.meta,
        "seeds": sorted({*cell.meta["seeds"], *seeds_of(folder / f"{name}.cell.json")}),
        **stop_of(cell, record["step"], home / "run"),
        **commands_of(cell, cells),
        "curve": thin_curve(log),
        "samples": shown_samples(cell.result.with_suffix(".jsonl.gz")),
        "seconds": {"evaluation": (evaluation or {}).get("seconds"), "training": seconds_of(log, record["step"])},
    }
    for asked in record["questions"].values():
        asked["questions"] = [{key: q[key] for key in PER_QUESTION if key in q} for q in asked["questions"]]
    write_jsonl(folder / f"{name}.json.gz", [record])  # compressed: a seventh of its size
    write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
