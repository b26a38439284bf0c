"""Runs that are stopped, and go on: kills, full disks, dead ranks. The parts kill, excursion, disk and ranks of torture.py."""

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from forked import ROOT, Ended, Injury, differences, fork, start, wait
from torture_place import Row, Torture, again, undisturbed, varied_rewards


def endure(
    t: Torture, row: Row, what: str, whole: Path, injuries: list[Callable[[list[str], Path], Ended]], allowed: str
) -> None:
    """Run a command under one injury after the other, then in peace, and compare with the undisturbed run `whole`.

    injuries: start the command with flags in a folder. allowed: what an injured run may do: "killed", or "refused"."""
    stage, flags = t.flags[what]
    folder, now = t.folder(), flags
    row.cases += 1
    ended = None

    def finished() -> bool:
        return "soup" in flags and (folder / "run/last.pt").exists()  # it writes this one file

    for injury in injuries:
        ended = injury(now, folder)
        if ended.code == 0:
            break
        row.injected += 1
        if allowed == "refused" and ended.code != -signal.SIGKILL:
            if ended.refused:
                row.refused += 1
            else:
                row.fail("tracebacks" if ended.traceback else "other", str(ended))
        elif ended.code != -signal.SIGKILL:
            row.fail("dead_ends" if ended.code == 2 else "tracebacks", str(ended))
            return
        if finished():
            break
        now = again(stage, flags, folder)
    if not finished() and (ended is None or ended.code != 0):
        ended = fork(stage, now, folder, prepare=varied_rewards)
        if ended.code != 0:
            other = flags if "--resume" in now else [*flags, "--resume"]  # is there any command that goes on?
            second = fork(stage, other, folder, prepare=varied_rewards) if stage != "prepare" else ended
            if second.code != 0:
                row.fail("dead_ends", str(ended))
            else:
                row.fail("other", f"goes on only {'with' if '--resume' in other else 'without'} --resume: {ended}")
            return
    found = differences(whole, folder)
    if found:
        how = [getattr(injury, "name", "") for injury in injuries]
        row.fail("other", f"{'; '.join(found[:4])} after {how}")
    else:
        row.equal += 1


def injured(stage: str, name: str, injury: Injury | None = None, kill_after: float | None = None):
    def run(flags: list[str], folder: Path) -> Ended:
        return fork(stage, flags, folder, injury, kill_after, prepare=varied_rewards)

    run.name = name
    return run


def half(t: Torture, which: int) -> list[str]:
    """Commands: all of them; in the short form, of two halves one."""
    everything = t.some(list(t.flags), 99, 99, "half")
    return everything[which::2] if t.short else everything


# ---------------------------------------------------------------------------------------------------------------------
# kill, excursion
# ---------------------------------------------------------------------------------------------------------------------


def part_kill(t: Torture) -> None:
    for what in half(t, 0):
        stage, row, rng = t.flags[what][0], t.row("kill", what), t.random("kill", what)
        whole, ended = undisturbed(t, what)
        cases = []
        for at in t.some(range(1, ended.writes + 1), 1, 20, "kill at", what):  # before each write
            cases.append([injured(stage, f"kill at write {at}", Injury("kill", at))])
        for at in t.some(range(1, ended.writes + 1), 0, 5, "torn", what):
            cases.append([injured(stage, f"torn from write {at}", Injury("torn", at))])
        for _ in range(1 if t.short else 10):  # at moments, up to three times
            moments = [rng.uniform(0.01, ended.seconds) for _ in range(rng.randint(1, 3))]
            cases.append([injured(stage, f"kill after {m:.2f} s", kill_after=m) for m in moments])
        for case in cases:
            endure(t, row, what, whole, case, "killed")
    row = t.row("kill", "two at once")
    for what in t.some(["pretrain", "sft", "rl", "average", "prepare text"], 1, 5, "two"):
        two_at_once(t, row, what)


def two_at_once(t: Torture, row: Row, what: str) -> None:
    """Two equal commands at the same time: one of them makes the run, the other is refused (or finds it made)."""
    stage, flags = t.flags[what]
    whole, _ = undisturbed(t, what)
    folder = t.folder()
    both = [start(stage, flags, folder, prepare=varied_rewards) for _ in range(2)]
    ends = [wait(running) for running in both]
    row.cases += 1
    row.injected += 1
    refused = [ended for ended in ends if ended.code != 0]
    if any(ended.traceback for ended in ends):
        row.fail("tracebacks", str(next(ended for ended in ends if ended.traceback)))
    elif len(refused) > 1 or any(not ended.refused for ended in refused):
        row.fail("other", f"both at once: {ends[0]} and {ends[1]}")
    elif found := differences(whole, folder):
        row.fail("other", f"two at once: {'; '.join(found[:4])}: {ends[0].command}")
    else:
        row.equal += 1
        row.refused += len(refused)


def part_excursion(t: Torture) -> None:
    """A smoke excursion, killed again and again; its cells are processes of their own."""
    if t.short:
        return
    row, rng = t.row("excursion", "smoke, 2 jobs"), t.random("excursion")
    flags = (
        f"run --scale smoke --data {t.world} --recipes base rl sft parallel --checkpoints 20k,40k --jobs 2 --out run"
    )

    def excursion(folder: Path, kill_after: float | None) -> tuple[int, str, float]:
        folder.mkdir(exist_ok=True)
        began = time.monotonic()
        with open(folder.parent / "excursion.err", "w+") as err:
            process = subprocess.Popen([sys.executable, "-m", "excursion", *flags.split()], cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)},
                                       stdout=subprocess.DEVNULL, stderr=err)  # fmt: skip
            try:
                process.wait(kill_after or 900)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            err.seek(0)
            return process.returncode, err.read(), time.monotonic() - began

    code, err, seconds = excursion(t.work / "excursion", None)
    assert code == 0, err
    folder = t.work / "excursion_killed"
    for _ in range(40):
        code, err, _ = excursion(folder, rng.uniform(2, 0.4 * seconds) if row.injected < 12 else None)
        row.cases += 1
        if code != -signal.SIGKILL:
            break
        row.injected += 1
    if code != 0:
        row.fail("dead_ends", f"exit {code}: {err[-300:]}")
        return

    def results(root: Path) -> None:
        """What must be equal: not the runner's notes of time."""
        for path in [
            *root.rglob("*.log"),
            *root.rglob("lock"),
            *root.glob("run/seed*/**/train.json"),
            *root.glob("run/seed*/**/eval_*.json"),
            *root.glob("run/report.*"),
        ]:
            path.unlink()

    results(t.work / "excursion"), results(folder)
    found = differences(t.work / "excursion", folder)
    if found:
        row.fail("other", "; ".join(found[:6]))
    else:
        row.equal += 1


# ---------------------------------------------------------------------------------------------------------------------
# disk
# ---------------------------------------------------------------------------------------------------------------------


def part_disk(t: Torture) -> None:
    kinds = ["ENOSPC", "EROFS", "EIO"]
    for what in half(t, 1):
        stage, row, rng = t.flags[what][0], t.row("disk", what), t.random("disk", what)
        whole, ended = undisturbed(t, what)
        for at in t.some(range(1, ended.writes + 1), 1, 12, "disk", what):
            kind = rng.choice(kinds)
            endure(t, row, what, whole, [injured(stage, f"{kind} from write {at}", Injury(kind, at))], "refused")
        for _ in range(0 if t.short else 4):  # no file may be larger than this
            size = rng.choice([2_000, 20_000, 500_000, 1_500_000])

            def limited(flags, folder, stage=stage, size=size):
                def limit():
                    varied_rewards()
                    resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

                return fork(stage, flags, folder, prepare=limit)

            limited.name = f"files of at most {size} bytes"
            endure(t, row, what, whole, [limited], "refused")
    part_mounted(t)
    part_places(t)


def part_mounted(t: Torture) -> None:
    """A small file system that fills up, is made larger, and the run goes on; then a read-only one."""
    row, rng = t.row("disk", "mounted"), t.random("mounted")
    place = t.work / "mounted"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o"]
    if subprocess.run([*mount, "size=4k", "none", place], capture_output=True).returncode:
        print("disk, mounted: mounting is not allowed here; left out", flush=True)
        return
    subprocess.run(["umount", place], check=True)
    for what in t.some(list(t.flags), 2, 99, "mounted"):
        stage, flags = t.flags[what]
        whole, _ = undisturbed(t, what)
        total = sum(path.stat().st_size for path in whole.rglob("*") if path.is_file())
        for _ in range(1 if t.short else 2):
            size = int(rng.uniform(0.05, 0.95) * total) // 4096 + 1
            subprocess.run([*mount, f"size={size * 4}k", "none", place], check=True)
            try:
                folder = place / "case"
                ended = fork(stage, flags, folder, prepare=varied_rewards)
                row.cases += 1
                if ended.code:
                    row.injected += 1
                    if ended.refused:
                        row.refused += 1
                    else:
                        row.fail("tracebacks" if ended.traceback else "other", f"disk of {size * 4} KiB: {ended}")
                    subprocess.run(["mount", "-o", "remount,size=1g", place], check=True)
                    ended = fork(stage, again(stage, flags, folder), folder, prepare=varied_rewards)
                found = differences(whole, folder) if ended.code == 0 else []
                if ended.code:
                    row.fail("dead_ends", str(ended))
                elif found:
                    row.fail("other", f"{'; '.join(found[:4])} after a disk of {size * 4} KiB: {ended.command}")
                else:
                    row.equal += 1
            finally:
                subprocess.run(["umount", "-l", place], check=True)
    subprocess.run([*mount, "ro", "none", place], check=True)
    try:
        for what in t.some(list(t.flags), 1, 99, "read-only"):
            refused(t, row, what, str(place / "new"))
    finally:
        subprocess.run(["umount", "-l", place], check=True)


def refused(t: Torture, row: Row, what: str, out: str) -> None:
    """`out` as --out is refused, and nothing is written anywhere."""
    stage, flags = t.flags[what]
    folder = t.folder()
    ended = fork(stage, [*flags[:-1], out] if flags[-2] == "--out" else [*flags, "--out", out], folder)
    row.cases += 1
    row.injected += 1
    if not ended.refused:
        row.fail("tracebacks" if ended.traceback else "other", str(ended))
    elif any(folder.iterdir()):
        row.fail("other", f"left {sorted(p.name for p in folder.iterdir())}: {ended}")
    else:
        row.refused += 1


def part_places(t: Torture) -> None:
    """--out where nothing can be written."""
    row = t.row("disk", "impossible --out")
    file = t.work / "a_file"
    file.write_text("in the way")
    places = [str(file), str(file / "below"), "/proc/nowhere/run", "x" * 300, "/dev/null", "/sys/run"]
    cases = [(what, place) for what in t.flags for place in places]
    for what, place in t.some(cases, 3, 99, "places"):
        refused(t, row, what, place)
        if file.read_text() != "in the way":
            row.fail("other", f"{what} wrote over {file}")
            file.write_text("in the way")


# ---------------------------------------------------------------------------------------------------------------------
# ranks
# ---------------------------------------------------------------------------------------------------------------------


def part_ranks(t: Torture) -> None:
    """Two gloo ranks; one is killed or stopped in the middle, the other must end, and both go on with --resume."""
    rng = t.random("ranks")
    cases = [(what, signum) for what in ("pretrain", "rl", "average") for signum in (signal.SIGKILL, signal.SIGSTOP)]
    wholes = {}

    def ranks(what: str, flags: list[str], folder: Path) -> list:
        port = str(20000 + rng.randrange(20000))
        env = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GLOO_SOCKET_IFNAME": "lo"}
        env["RANK_TIMEOUT"] = "20"  # seconds, for the one that is stopped
        more = [{"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(2)]
        return [start(t.flags[what][0], flags, folder, prepare=varied_rewards, env=env | m) for m in more]

    rows = {
        s: t.row("ranks", f"one of two {name}") for s, name in ((signal.SIGKILL, "killed"), (signal.SIGSTOP, "stopped"))
    }
    for what, signum in t.some(cases, 1, 99, "ranks"):
        row, flags = rows[signum], t.flags[what][1]
        if what not in wholes:
            wholes[what] = t.work / f"ranks_{what}"
            ends = [wait(running) for running in ranks(what, flags, wholes[what])]
            assert all(ended.code == 0 for ended in ends), f"{ends[0]}\n{ends[0].err}\n{ends[1].err}"
        for victim in (0, 1):
            folder = t.folder()
            both = ranks(what, flags, folder)
            while not (folder / "run/metrics.jsonl").exists() and time.monotonic() - both[0].began < 30:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2))
            os.kill(both[victim].pid, signum)
            row.cases += 1
            row.injected += 1
            survivor = wait(both[1 - victim], limit=60)
            with contextlib.suppress(ProcessLookupError):
                os.kill(both[victim].pid, signal.SIGKILL)
            wait(both[victim])
            if survivor.code == 0:
                print(f"ranks: {what} had ended before the signal", flush=True)
                continue
            if survivor.hung or survivor.seconds > 60:
                row.fail("other", f"rank {1 - victim} waits for a {signal.strsignal(signum)} one: {survivor}")
            elif survivor.traceback or survivor.code == -signal.SIGABRT:
                row.fail("tracebacks", str(survivor))
            else:
                row.refused += 1
            now = again(t.flags[what][0], flags, folder)
            ends = [wait(running) for running in ranks(what, now, folder)]
            if any(ended.code for ended in ends):
                row.fail("dead_ends", str(next(ended for ended in ends if ended.code)))
            elif found := differences(wholes[what], folder):
                row.fail("other", f"{'; '.join(found[:3])}: {ends[0].command}")
            else:
                row.equal += 1


# ---------------------------------------------------------------------------------------------------------------------
# exits
# ---------------------------------------------------------------------------------------------------------------------


def part_exits(t: Torture) -> None:
    """300 pairs of ranks that nothing disturbs must end with exit code 0 (ranks.py). None in the short form."""
    row = t.row("exits", "two ranks end")
    if t.short:
        return
    row.cases = 300
    ended = subprocess.run([sys.executable, "tests/ranks.py", "100"], cwd=ROOT, text=True, stdout=subprocess.PIPE)
    last = ended.stdout.strip().splitlines()[-1]
    if ended.returncode:
        row.fail("other", last)
    else:
        row.equal = 300
