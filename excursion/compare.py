"""The change from one evaluation record to others: python -m excursion compare BASE.json SEED0.json SEED1.json ...

The other records, say three seeds of one recipe, are averaged. The change is taken question by question, so that how
hard a question is cancels out; its bootstrap 95% interval is over questions.
"""

from pathlib import Path

import numpy as np

from cli import UserError, expand
from files import MALFORMED, read_json
from measures import mean_interval, pass_at_k


def compare(paths: tuple[str, ...]) -> dict[str, dict[str, dict]]:
    """set → {"pass@k", "lenient@1", "process@k" (where all records have it) → mean_interval of the change from the
    first record to the mean of the others}. UserError unless all are records of the same questions."""
    try:
        base, *others = [read_json(Path(path))["questions"] for path in paths]
        return {name: compare_set(name, base[name], [other[name] for other in others]) for name in base}
    except MALFORMED as error:
        raise UserError(f"compare: these are not evaluation records of the same sets ({error!r})") from None


def compare_set(name: str, base: dict, others: list[dict]) -> dict[str, dict]:
    """`compare` of one set of questions."""
    ids = [q["id"] for q in base["questions"]]
    if any([q["id"] for q in other["questions"]] != ids for other in others):
        raise UserError(f"compare: the records hold different questions in {name}; evaluate them alike")

    def values(record: dict, count: str, k: int) -> np.ndarray:
        rows = record["questions"]
        return pass_at_k(np.array([q["n"] for q in rows]), np.array([q[count] for q in rows]), k)

    columns = {column: ("c", int(column[5:])) for column in base["strict"]} | {"lenient@1": ("c_lenient", 1)}
    if all("process" in record for record in (base, *others)):
        columns |= {f"process{column[4:]}": ("c_process", int(column[5:])) for column in base["process"]}
    return {
        column: mean_interval(np.mean([values(o, *which) for o in others], 0) - values(base, *which))
        for column, which in columns.items()
    }


def print_changes(paths: tuple[str, ...]) -> None:
    """The verb: one line per set of questions. UserError for fewer than two records."""
    paths = expand("compare", paths)
    if len(paths) < 2:
        raise UserError("compare: name two or more evaluation records")
    table = compare(paths)
    print(f"change from {paths[0]}, points of % [95% interval, paired by question]")
    for name, row in table.items():
        cells = (f"{k} {100 * v['mean']:+.1f} [{100 * v['low']:+.1f}, {100 * v['high']:+.1f}]" for k, v in row.items())
        print(f"{name:<16}", "   ".join(cells))
