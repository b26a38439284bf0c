"""Going on with a plan in another place, from its records alone: `python -m excursion run --records DIR`.

Checkpoints are too large to be committed; records are not. Cells whose records lie in DIR are not made again, nor is what
only they need. Recipes are compared within a *unit*, one base checkpoint. Where a unit is half done its base model is
pretrained again: records made from that very model (its digest is in their lineage) are used, others are not, and their
cells are made again. So a half-done unit goes on where the arithmetic of the machine is the same, and else begins anew.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from checkpoint import load_checkpoint
from cli import UserError
from excursion.runner import Cell
from files import MALFORMED, read_json, write_text


def base_of(cell: Cell, maker: dict[Path, Cell]) -> Path | None:
    """The base checkpoint behind a cell: what it, or what it starts from, needs of a pretraining run."""
    for path in cell.needs:
        made = maker.get(path)
        if made is not None:
            return path if made.kind.startswith("pretrain") else base_of(made, maker)
    return None


def weights_of(record: Path) -> str:
    """Digest of the base model behind a record; empty if it does not say."""
    try:
        return str(read_json(record)["lineage"][0].get("weights", ""))
    except (UserError, *MALFORMED):
        return ""


def needed(cells: list[Cell], wanted: list[Cell], maker: dict[Path, Cell]) -> list[Cell]:
    """The wanted cells and all that they need, in the order of the plan."""
    names, waiting = set(), list(wanted)
    while waiting:
        cell = waiting.pop()
        if cell.name not in names:
            names.add(cell.name)
            waiting += [maker[path] for path in cell.needs if path in maker]
    return [cell for cell in cells if cell.name in names]


def left(cells: list[Cell], name: Callable, commands: Callable, records: Path, run: Callable) -> tuple[list[Cell], set]:
    """The cells that must be made, and the names of the cells whose records stand.

    Args:
        name: cell → name of its record. run: executes cells; False if some are missing in the end.
        commands: cell → {"command": what made its model, "evaluation": what judged it}.
    """
    maker = {path: cell for cell in cells for path in cell.results}
    units: dict[Path | None, list[Cell]] = {}
    for cell in cells:
        if cell.meta:
            units.setdefault(base_of(cell, maker), []).append(cell)
    stand: set[str] = set()
    half: dict[Path, list[Cell]] = {}
    for base, judged in units.items():
        found = [cell for cell in judged if made_by(records / f"{name(cell)}.cell.json", commands(cell))]
        if len(found) == len(judged):
            stand |= {cell.name for cell in found}
        elif found and base is not None:
            half[base] = found
    if half and run(needed(cells, [maker[base] for base in half], maker)):
        for base, found in half.items():
            weights = load_checkpoint(base)["lineage"][-1].get("weights")
            same = {cell.name for cell in found if weights_of(records / f"{name(cell)}.json") == weights}
            stand |= same
            if len(same) < len(found):
                print(f"{base}: {len(found) - len(same)} records in {records} are of another pretraining run of this seed "
                      "(another machine's arithmetic): made again", file=sys.stderr)  # fmt: skip
    return needed(cells, [cell for cell in cells if cell.meta and cell.name not in stand], maker), stand


def made_by(path: Path, commands: dict[str, str]) -> bool:
    """Does a record's .cell.json name these commands? (Older ones do not name the evaluation's.)"""
    try:
        said = {"evaluation": commands["evaluation"]} | read_json(path)
        return all(said[key] == command for key, command in commands.items())
    except (UserError, *MALFORMED):
        return False


def copy(records: Path, folder: Path, seeds: dict[str, list[int]]) -> None:
    """Records that stand, into the folder of this run. seeds: name → seeds that it stands for in this plan, which may
    have more of them than the plan that it was made for."""
    for name, stands_for in seeds.items():
        if (records / f"{name}.json").resolve() != (folder / f"{name}.json").resolve():
            shutil.copyfile(records / f"{name}.json", folder / f"{name}.json")
        meta = read_json(records / f"{name}.cell.json") | {"seeds": stands_for}
        write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
