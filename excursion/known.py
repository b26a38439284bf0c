"""Going on with a plan in another place, from its records alone: `python -m excursion run --records DIR`.

Checkpoints are too large to be committed; records are not. An evaluation whose record lies in DIR is not made again, nor
is what only it needs. Recipes are compared within a *unit*: one base checkpoint with all that starts from it. A unit

    has all its records    nothing of it is run
    has none               all of it is run
    has some               its base model is pretrained again. Records of that very model (its digest is in their lineage)
                           stand; the cells of other records are run again

So a half-done unit goes on where the arithmetic of the machine is the same, and else begins anew.
"""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from checkpoint import load_checkpoint
from cli import UserError
from excursion.cells import commands_of, record_name
from excursion.runner import Cell, needed
from files import MALFORMED, read_json, write_text


def left(cells: list[Cell], records: Path, run: Callable[[list[Cell]], bool]) -> tuple[list[Cell], list[Cell]]:
    """The cells that must be executed, and the evaluations whose records stand.

    Args:
        run: executes cells; False if some are missing in the end.
    """
    maker = {path: cell for cell in cells for path in cell.results}
    units: dict[Path | None, list[Cell]] = {}  # base checkpoint → the evaluations of its unit
    for cell in cells:
        if cell.meta:
            units.setdefault(base_of(cell, maker), []).append(cell)
    found = {cell.name for cell in cells if cell.meta and has_record(cell, cells, records)}
    standing: set[str] = set()
    half: dict[Path, list[Cell]] = {}  # base checkpoint → the evaluations of a half-done unit that have records
    for base, unit in units.items():
        known = [cell for cell in unit if cell.name in found]
        if len(known) == len(unit):
            standing |= {cell.name for cell in known}
        elif known and base is not None:
            half[base] = known
    if half:
        run(needed(cells, [maker[base] for base in half if base in maker]))
        for base, known in half.items():
            try:
                weights = load_checkpoint(base)["lineage"][-1].get("weights")
            except UserError:  # it could not be made
                continue
            same = {
                cell.name for cell in known if weights and weights in behind(records / f"{record_name(cell)}.json.gz")
            }
            standing |= same
            if len(same) < len(known):
                other = f"{len(known) - len(same)} records in {records} are of another pretraining run of this seed"
                print(f"{base}: {other} (another machine's arithmetic): made again", file=sys.stderr)
    wanted = [cell for cell in cells if cell.meta and cell.name not in standing]
    return needed(cells, wanted), [cell for cell in cells if cell.name in standing]


def base_of(cell: Cell, maker: dict[Path, Cell]) -> Path | None:
    """The base checkpoint behind a cell: what it, or what it starts from, needs of a pretraining run, or of --bases."""
    for path in cell.needs:
        made = maker.get(path)
        if made is None or made.kind.startswith("pretrain"):  # None: it was given (--bases)
            return path
        return base_of(made, maker)
    return None


def behind(record: Path) -> set[str]:
    """Digests of the models behind a record, of each stage one; none if it does not say."""
    try:
        return {str(entry["weights"]) for entry in read_json(record)["lineage"] if "weights" in entry}
    except (UserError, *MALFORMED):
        return set()


def has_record(cell: Cell, cells: list[Cell], records: Path) -> bool:
    """Does an evaluation have a record by the same commands? (Older ones do not name all of them.)"""
    commands = commands_of(cell, cells)
    try:
        said = commands | {"command": ""} | read_json(records / f"{record_name(cell)}.cell.json")
        return all(said[key] == command for key, command in commands.items())
    except (UserError, *MALFORMED):
        return False


def copy(standing: list[Cell], records: Path, folder: Path) -> None:
    """Records that stand, into the folder of this run. A base may stand for more seeds in this plan than in the one that it
    was made for, or for fewer."""
    for cell in standing:
        name = record_name(cell)
        if records.resolve() != folder.resolve():
            shutil.copyfile(records / f"{name}.json.gz", folder / f"{name}.json.gz")
        meta = read_json(records / f"{name}.cell.json")
        meta["seeds"] = sorted({*meta["seeds"], *cell.meta["seeds"]})
        write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
