"""What validation questions choose: the checkpoint of a run, the learning rates, the checkpoints to start from.

    choose             a cell of every SFT run: OUT/.../best.pt
    write_rates        the end of --plan sweep: OUT/rates.json, which every later plan reads (chosen_rates)
    write_checkpoints  the end of --plan checkpoints: OUT/checkpoints.json (chosen_checkpoints)

Test questions choose nothing. Every run is kept at named steps and stopped by one rule, whatever the recipe: the named
step with the best validation pass@1, process-right where that can be told (the answer right and every equation true).
"""

import contextlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

import pretrain
from cli import UserError
from excursion.cells import grid_of, variant_name
from excursion.config import Config
from excursion.given import count_name
from excursion.recipes import RECIPES
from excursion.runner import Cell, read_state
from files import MALFORMED, read_json, replacing_path, write_text

# Validation pass@1 of the base with worked examples at which RL begins to be of interest (PROTOCOL.md). (EARLY in
# findings.py is another: of the base without examples, by which finding 1 chooses among the checkpoints of a grid)
EARLY = 0.03


def validation_scores(run: Path) -> dict[int, float]:
    """step → validation pass@1 of a run, process-right where that can be told; of the starting model at step 0.
    UserError for a run without a log."""
    log = run / "metrics.jsonl"
    try:
        lines = [json.loads(line) for line in log.read_text().splitlines()]
        key = "val_process@1" if any("val_process@1" in line for line in lines) else "val_pass@1"
        return {int(line["step"]): float(line[key]) for line in lines if key in line}
    except MALFORMED as error:
        raise UserError(f"{log}: no metrics of a run ({error})") from None


def best_step(scores: dict[int, float], among: Iterable[int]) -> int:
    """The step with the best score; of equals the earliest."""
    return max(among, key=lambda step: (scores[step], -step))


def choose(folder: Path) -> Path:
    """FOLDER/best.pt: the kept checkpoint of FOLDER/run that is best on validation."""
    scores = validation_scores(folder / "run")
    paths = {step: path for step in scores if (path := folder / f"run/step_{step:07d}.pt").exists()}
    if not paths:
        raise UserError(f"{folder / 'run'}: no kept checkpoint with a validation pass@1 (--save_at, --eval_every)")
    step = best_step(scores, paths)
    with replacing_path(folder / "best.pt") as part:
        try:
            os.link(paths[step], part)
        except OSError:  # a file system without links
            shutil.copyfile(paths[step], part)
    print(f"validation pass@1 by step {scores}; {folder / 'best.pt'} is step {step}")
    return paths[step]


def sweep_runs(cells: list[Cell]) -> list[Cell]:
    """The training runs that a sweep compares."""
    return [cell for cell in cells if cell.run and not cell.kind.startswith("pretrain")]


def swept(config: Config, cells: list[Cell]) -> dict[str, dict[int, float]]:
    """name → validation scores of the runs of a sweep that are finished, here or in --records.

    OUT/records/sweep.json notes each with its command, so that a sweep goes on elsewhere from its records alone."""
    notes: dict[str, dict] = {}
    for folder in filter(None, (config.records, Path(config.out) / "records")):
        with contextlib.suppress(UserError, *MALFORMED):
            notes |= read_json(Path(folder) / "sweep.json")
    scores = {}
    for cell in sweep_runs(cells):
        state = read_state(Path(config.out) / f"{cell.name}.json") or {}
        if state.get("rc") == 0:  # by its own command, which need not be that of this plan
            notes[cell.name] = {"command": state["command"], "scores": validation_scores(cell.run)}
        with contextlib.suppress(*MALFORMED):  # no note, or none of ours
            if notes[cell.name]["command"] == cell.command:
                scores[cell.name] = {int(step): float(x) for step, x in notes[cell.name]["scores"].items()}
    write_text(Path(config.out) / "records" / "sweep.json", json.dumps(notes, indent=1) + "\n")
    return scores


def write_rates(config: Config, found: dict[str, dict[int, float]]) -> None:
    """OUT/rates.json from a finished sweep: for each recipe the factor with the best validation pass@1 at any named
    step, which is where a run is stopped. SFT → RL is reported, but runs at RL's rate, or the order would change the
    rate."""
    scores: dict[str, dict[float, float]] = {}  # recipe → factor → score
    factors = {variant_name({"sweep": factor}): factor for factor in config.sweep}  # by the name of its folder
    for name, values in found.items():
        _, folder, *_, recipe, _ = name.split("/")  # seed0/sweep0.333333/4.00M/rl/train
        if folder in factors:  # else SFT at its own rate, from which SFT → RL starts
            best = max(value for step, value in values.items() if step)
            scores.setdefault(recipe, {})[factors[folder]] = best
    path, known = Path(config.out) / "rates.json", "validation pass@1 by factor"
    # recipe → its factor, its rates, the scores; those of earlier sweeps too
    table = read_json(path) if path.exists() else {}
    for recipe, by_factor in scores.items():
        by_factor = {float(factor): score for factor, score in table.get(recipe, {}).get(known, {}).items()} | by_factor
        factor = max(by_factor, key=lambda f: (by_factor[f], -abs(math.log(f))))  # of equals the one next to 1
        rates = config.rates[RECIPES[recipe].rates or recipe]
        if "sft_lr" in rates:  # of averaging the SFT side alone: the other side has twice RL's rate
            rates = {"sft_lr": rates["sft_lr"]}
        rates = {flag: rate * factor for flag, rate in rates.items()}
        table[recipe] = {"factor": factor, **rates, known: by_factor}
    write_text(path, json.dumps(table, indent=1) + "\n")
    print(f"wrote {path}: " + ", ".join(f"{r} x {e['factor']:g}" for r, e in table.items()))


def write_checkpoints(config: Config, cells: list[Cell]) -> None:
    """OUT/checkpoints.json from the validation records of --plan checkpoints. The early checkpoint is the first whose
    base with worked examples has a pass@1 of EARLY, process-right where that can be told; the main one is the next;
    with one before, one between main and the last, and the last they make the grid. UserError if none gets that far."""
    table: dict[int, dict] = {}  # tokens → recipe → its row
    for cell in cells:
        if cell.name.endswith("/validation"):
            record = json.loads(cell.result.read_text())
            asked = record["questions"]["validation"]
            row = {
                kind: {k: round(v["mean"], 4) for k, v in asked[kind].items()}
                for kind in ("strict", "process")
                if kind in asked
            }
            table.setdefault(record["tokens"], {})[cell.name.split("/")[-2]] = row | {"box": asked["box"]}
    tokens, reached = sorted(table), []  # reached: where the base is good enough
    for i, t in enumerate(tokens):
        print(f"{count_name(t)}  " + "  ".join(f"{recipe}: {row}" for recipe, row in table[t].items()))
        row = table[t]["base"]
        if row["process" if "process" in row else "strict"]["pass@1"] >= EARLY:
            reached.append(i)
    if not reached:
        what = f"no checkpoint has a validation pass@1 of {EARLY:.0%} with examples"
        raise UserError(f"{what}: pretrain for longer (--tokens)")
    counts = [pretrain.parse_count(part) for part in config.checkpoints.split(",")]  # as the plan asked for them
    places = grid_of(len(tokens), reached[0])
    chosen = {"checkpoints": [counts[i] for i in places], "primary": counts[reached[0] : reached[0] + 2]}
    write_text(Path(config.out) / "checkpoints.json", json.dumps({**chosen, "validation": table}, indent=1) + "\n")
    print(f"wrote {Path(config.out) / 'checkpoints.json'}: {chosen}")


def chosen(config: Config, name: str, plan: str, read: Callable[[dict], dict]) -> dict:
    """What an earlier plan wrote to NAME.json in OUT, or in --records; {} if it was not run. UserError for anything else."""
    places = [Path(folder) / f"{name}.json" for folder in (config.out, config.records) if folder]
    path = next((place for place in places if place.exists()), None)
    if path is None or config.plan == plan:
        return {}
    try:
        return read(json.loads(path.read_text()))
    except MALFORMED as error:
        why = f"not what --plan {plan} writes ({error!r}); delete it or run that plan again"
        raise UserError(f"{path}: {why}") from None


def positive(value) -> float:
    """ValueError for what is no positive number."""
    if not 0 < float(value) < 1e18:
        raise ValueError(f"{value} is not a positive number")
    return float(value)


def chosen_rates(config: Config) -> dict[str, float]:
    """recipe → factor of its learning rates."""
    return chosen(config, "rates", "sweep", lambda table: {r: positive(row["factor"]) for r, row in table.items()})


def chosen_checkpoints(config: Config) -> dict[str, list[float]]:
    """Token counts of the "checkpoints" to start from, and of the "primary" ones among them."""

    def read(table: dict) -> dict[str, list[float]]:
        at = {key: [positive(count) for count in table[key]] for key in ("checkpoints", "primary")}
        if not at["primary"] or not set(at["primary"]) <= set(at["checkpoints"]):
            raise ValueError("the primary ones are not among the checkpoints")
        return at

    return chosen(config, "checkpoints", "checkpoints", read)
