"""Everything that can go wrong, done on purpose: kills, full disks, flipped bits, dead ranks, malicious files, odd flags.

    make torture                                          # all parts, with a table at the end
    python tests/torture.py kill disk --seed 7            # these parts, other places
    python tests/torture.py --short                       # a sample of each part, in 40 seconds: what `make test` runs

What must hold, of every command:

    kill        SIGKILL at any moment, then the same command (with --resume once there is a checkpoint): the end has the
                same bits as without; no temporary files stay; nothing is a dead end, which no command goes on from
    excursion   the same of a whole experiment, killed again and again
    disk        a disk that is full, read-only or broken from some write on: one line, exit code 2; with the disk mended,
                the end has the same bits
    bits        one flipped bit in a checkpoint, a shard, meta.json or a question file: named in one line, exit code 2; or
                without any effect
    ranks       of two ranks one is killed or stopped: the other says so in one line and exits; resumed, the same bits
    exits       two ranks that nothing disturbs end with exit code 0, 300 times, on a busy machine
    malicious   checkpoints and Hugging Face folders that nobody wrote in good faith: no code of theirs runs; one line
    flags       every numeric flag of every stage (read from its Config) with 0, -1, nan, inf, huge values and nothing: it
                works and all results are finite, or one line, exit code 2 and no file
    readers     hypothesis on everything that reads a file or a text: no exception but UserError, of one line

Commands are forks of this process (forked.py). Exit code 1 if anything failed; each failure is printed when it happens.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from dataclasses import fields
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ["OMP_NUM_THREADS"] = "1"

from forked import load_stages  # noqa: E402 -- after the path
from torture_inputs import part_bits, part_flags, part_malicious  # noqa: E402
from torture_place import Row, Torture  # noqa: E402
from torture_readers import part_readers  # noqa: E402
from torture_stops import part_disk, part_excursion, part_exits, part_kill, part_ranks  # noqa: E402

PARTS = {
    "kill": part_kill,
    "excursion": part_excursion,
    "disk": part_disk,
    "bits": part_bits,
    "ranks": part_ranks,
    "exits": part_exits,
    "malicious": part_malicious,
    "flags": part_flags,
    "readers": part_readers,
}


def print_table(rows: list[Row], seconds: dict[str, float]) -> None:
    head = ("part", "what", "cases", "injected", "equal", "refused", "dead ends", "tracebacks", "other failures")
    print(f"\n| {' | '.join(head)} |\n|{'---|' * len(head)}")
    for row in rows:
        print(f"| {' | '.join(str(getattr(row, f.name)) for f in fields(row))} |")
    total = [sum(getattr(row, f.name) for row in rows) for f in fields(Row)[2:]]
    print(f"| all | | {' | '.join(map(str, total))} |")
    print("seconds: " + ", ".join(f"{part} {s:.0f}" for part, s in seconds.items()), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="part", help=f"of {', '.join(PARTS)}; none: all")
    parser.add_argument("--seed", type=int, default=0, help="of what is injected where")
    parser.add_argument("--short", action="store_true", help="a sample of each part")
    parser.add_argument("--report", help="write the rows to this file as JSON")
    flags = parser.parse_args()
    if unknown := set(flags.parts) - PARTS.keys():
        parser.error(f"no part {', '.join(unknown)}")
    load_stages()
    os.nice(5)
    memory = Path("/dev/shm")  # nothing to wait for, where there is one
    with tempfile.TemporaryDirectory(prefix="torture-", dir=memory if os.access(memory, os.W_OK) else None) as work:
        t, seconds = Torture(Path(work), flags.seed, flags.short), {}
        for part in flags.parts or PARTS:
            began = time.monotonic()
            PARTS[part](t)
            seconds[part] = time.monotonic() - began
    print_table(t.rows, seconds)
    if flags.report:
        Path(flags.report).write_text(json.dumps([vars(row) for row in t.rows]))
    sys.exit(any(row.dead_ends or row.tracebacks or row.other for row in t.rows))


if __name__ == "__main__":
    main()
