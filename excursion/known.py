"""Going on with a plan in another place, from its records alone: `python -m excursion run --records DIR`.

Checkpoints are too large to be committed; records are not. An evaluation whose record lies in DIR is not made again,
nor is what only it needs. Recipes are compared within a *unit*: one base checkpoint with all that starts from it.
A unit

    has all its records    nothing of it is run
    has none               all of it is run
    has some               its base model is pretrained again. Records of that very model (its digest is in their lineage)
                           stand; the cells of other records are run again

So a half-done unit goes on where the arithmetic of the machine is the same, and else begins anew. A base that was given
(--bases) is there, and always compared: its commands name a path alone.
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
    unsure: dict[Path, list[Cell]] = {}  # base checkpoint → evaluations that have records, perhaps of another model
    for base, unit in units.items():
        known = [cell for cell in unit if cell.name in found]
        if len(known) == len(unit) and (base is None or base in maker):
            standing |= {cell.name for cell in known}
        elif known and base is not None:
            unsure[base] = known
    if unsure:
        run(needed(cells, [maker[base] for base in unsure if base in maker]))
        for base, known in unsure.items():
            try:
                weights = weights_of(base)
            except UserError:  # it could not be made
                continue
            same = {
                cell.name for cell in known if weights and weights in behind(records / f"{record_name(cell)}.json.gz")
            }
            standing |= same
            if len(same) < len(known):
                other = "another pretraining run of this seed (another machine's arithmetic)"
                others = f"{len(known) - len(same)} records in {records} are of {other if base in maker else 'other weights'}"
                print(f"{base}: {others}: made again", file=sys.stderr)
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


def refuse_others(cells: list[Cell]) -> None:
    """UserError if an evaluation that is there is of other weights than its base (--bases) has now: a makefile's jobs
    do not look."""
    maker = {path: cell for cell in cells for path in cell.results}
    there = [(cell.result, base_of(cell, maker)) for cell in cells if cell.meta and cell.result.exists()]
    weights = {base: weights_of(base) for base in {base for _, base in there} if base and base not in maker}
    for result, base in there:
        digests = behind(result)  # older records and bases do not say
        if digests and weights.get(base) and weights[base] not in digests:
            raise UserError(f"{result}: is of another model than --bases {base} is now; choose another --out")


def weights_of(checkpoint: Path) -> str | None:
    """The digest of its weights; None of an older one. UserError if it cannot be read."""
    return (load_checkpoint(checkpoint)["lineage"] or [{}])[-1].get("weights")


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
    """Records that stand, into the folder of this run. A base may stand for more seeds in this plan than in the one
    that it was made for, or for fewer."""
    for cell in standing:
        name = record_name(cell)
        if records.resolve() != folder.resolve():
            shutil.copyfile(records / f"{name}.json.gz", folder / f"{name}.json.gz")
        meta = read_json(records / f"{name}.cell.json")
        meta["seeds"] = sorted({*meta["seeds"], *cell.meta["seeds"]})
        write_text(folder / f"{name}.cell.json", json.dumps(meta) + "\n")
