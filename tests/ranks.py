"""Commands of several ranks without torchrun, so that a test can stop or kill one of them; and the exits of many pairs.

python tests/ranks.py 100        # 100 two-rank runs each of pretrain, rl and average, on a busy machine
"""

import importlib
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

import torch

ROOT = Path(__file__).parent.parent


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


def start_ranks(world: int, *commands, **env) -> list[subprocess.Popen]:
    """Start `python COMMAND` as the ranks 0 .. world-1 of one group: one command for all, or one for each."""
    group = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "OMP_NUM_THREADS": 1, **env}
    processes = []
    for rank in range(world):
        command = [sys.executable, *map(str, commands[rank % len(commands)])]
        ranks = {k: str(v) for k, v in (group | {"RANK": rank, "LOCAL_RANK": rank}).items()}
        pipes = dict(text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        processes.append(subprocess.Popen(command, cwd=ROOT, env=os.environ | ranks, **pipes))
    return processes


def wait_ranks(processes: list[subprocess.Popen], timeout: float = 600) -> tuple[list[int], list[str]]:
    """Exit codes and stderr of each rank. None of them is left behind."""
    try:
        said = [process.communicate(timeout=timeout)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said


def fork_ranks(world: int, program: str, flags: list[str]) -> list[int]:
    """Exit codes of the ranks of one group. They are forks, so that they need not import torch again, and they end as
    any program does."""
    pids, port = [], free_port()
    for rank in range(world):
        pids.append(os.fork())
        if not pids[-1]:
            group = {"WORLD_SIZE": world, "RANK": rank, "LOCAL_RANK": rank, "MASTER_ADDR": "127.0.0.1"}
            os.environ.update({k: str(v) for k, v in (group | {"MASTER_PORT": port}).items()})
            sys.argv = [f"{program}.py", *flags]
            stage = sys.modules[program]
            stage.cli(stage.main, stage.Config)
            sys.exit()
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


def exits(runs: int) -> Counter:
    """(stage, exit codes of the two ranks) of `runs` runs each of pretrain.py, rl.py and average.py at their smallest,
    one pair after the other, beside a process that burns CPU if nothing else does."""
    idle = os.getloadavg()[0] < os.cpu_count()
    burner = subprocess.Popen([sys.executable, "-c", "while True: pass" if idle else ""])
    counts = Counter()
    folder = tempfile.mkdtemp()  # not a context: a fork that ends would remove it
    data, base, out = (f"{folder}/{name}" for name in ("data", "base", "out"))
    pretrain = "--scale smoke --batch 2 --seq_len 64 --steps 2 --eval_every 0".split() + ["--data", data]
    build = f"from data.prepare import build_world; build_world({data!r}, tokens=40_000)"
    subprocess.run([sys.executable, "-c", build], cwd=ROOT, check=True)
    subprocess.run([sys.executable, "pretrain.py", *pretrain, "--out", base], cwd=ROOT, check=True)
    post = ["--init", f"{base}/last.pt", "--data", data, *"--steps 2 --limit 8 --eval_every 0".split()]
    post += "--prompts 2 --rollouts 2 --max_new_tokens 4".split()
    stages = {"pretrain": pretrain, "rl": post, "average": [*post, "--rows", "2"]}
    for i in range(runs):
        for stage, flags in stages.items():
            counts[(stage, *fork_ranks(2, stage, [*flags, "--out", out]))] += 1
            shutil.rmtree(out, ignore_errors=True)
        if (i + 1) % 10 == 0:
            print(i + 1, dict(counts), flush=True)
    shutil.rmtree(folder)
    burner.kill()
    return counts


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    torch.set_num_threads(1)  # a fork inherits no threads
    for program in ("pretrain", "rl", "average"):
        importlib.import_module(program)
    counts = exits(int(sys.argv[1]))
    bad = sum(count for (_, *codes), count in counts.items() if any(codes))
    print(f"{sum(counts.values())} two-rank runs, {bad} with an exit code other than 0: {dict(counts)}")
    sys.exit(bad > 0)
