"""Started by test_sharding.py: runs of stages on one or several ranks, which are forks of this process.

python tests/sharded.py PLAN.json

The plan is a list of groups, run one after the other: {"ranks": n, "node": ranks on a node, "runs": [[stage, flags],
...], "signal": [rank, n], "late": rank, "given": folder}: that rank sends itself SIGTERM in the nth call of
sampler.choose; on that rank alone it is time to save after each step; training goes on with the answers that the runs
there have sampled. Beside each run that ends, seen.pt has the gradient of every optimizer step, over all ranks, the
bytes that rank 0 kept, and the answers that it sampled. Rewards are made to vary, since a new model gets no question
right.
"""

import gc
import importlib
import json
import os
import signal
import sys
import traceback
from pathlib import Path

import torch
from torch.optim.optimizer import register_optimizer_step_post_hook

sys.path.insert(0, str(Path(__file__).parent.parent))

from ranks import free_port

import rl
import runtime
import sampler
from config import RunConfig

STAGES = ("pretrain", "sft", "rl", "average")


def local(x: torch.Tensor) -> torch.Tensor:
    return x.to_local() if hasattr(x, "to_local") else x


def record() -> tuple[list[torch.Tensor], dict[str, int]]:
    """A list to which every optimizer step adds its gradient, whole and flat, before it is clipped; and what this rank
    has of the masters, their gradient and the optimizer's state in a step, in bytes."""
    gradients, held, clip = [], {}, torch.nn.utils.clip_grad_norm_

    def clip_grad_norm_(parameters, norm):
        parameters = list(parameters)
        held.update(
            masters=sum(local(p).nbytes for p in parameters), gradient=sum(local(p.grad).nbytes for p in parameters)
        )
        whole = [p.grad.full_tensor() if hasattr(p.grad, "full_tensor") else p.grad for p in parameters]
        gradients.append(torch.cat([g.flatten() for g in whole]))
        return clip(parameters, norm)

    def stepped(optimizer, *_):
        held["optimizer"] = sum(
            local(x).nbytes for values in optimizer.state.values() for x in values.values() if x.dim()
        )

    torch.nn.utils.clip_grad_norm_ = clip_grad_norm_
    register_optimizer_step_post_hook(stepped)
    return gradients, held


def signal_at(n: int) -> None:
    choose, calls = sampler.choose, []

    def signalled(*args):
        calls.append(1)
        if len(calls) == n:
            os.kill(os.getpid(), signal.SIGTERM)
        return choose(*args)

    sampler.choose = signalled


def record_or_give(sample, given: dict) -> tuple:
    """Another `sample`, and what it samples, {number of a question: its answers}. Where `given` has the question, it
    returns the answers from there: sums in another order part last bits, and some day a token that is drawn between
    two."""
    sampled = {}

    def sample_or_take(*args, numbers, **flags):
        own = sample(*args, numbers=numbers, **flags)
        for number, continuations in zip(numbers, own, strict=False):  # on a signal there are none
            sampled[number] = [vars(c) for c in continuations]
        return [[sampler.Continuation(**fields) for fields in given.get(n, sampled[n])] for n in numbers if own]

    return sample_or_take, sampled


def be_rank(rank: int, group: dict) -> None:
    """What one rank of a group does, up to its exit."""
    end_process, runtime.end_process = runtime.end_process, lambda: None  # one process group for all runs
    rl.reward_of = lambda text, *_: (float(len(text) % 3), False)
    if group.get("signal", [None])[0] == rank:
        signal_at(group["signal"][1])
    if "late" in group:
        RunConfig.saves = lambda _: (0, 1e-9 if group["late"] == rank else 1e9)
    torch.compile = lambda model, **_: (
        model
    )  # --compile on makes its trial pass, without the minute that compiling takes
    (gradients, held), sample = record(), rl.sample
    for stage, flags in group["runs"]:
        gradients.clear()
        given = group.get("given") and torch.load(
            Path(group["given"]) / Path(flags["out"]).name / "seen.pt", weights_only=False
        )
        rl.sample, sampled = record_or_give(sample, given["sampled"] if given else {})
        stage = importlib.import_module(stage)
        stage.main(stage.Config(**{k: tuple(v) if isinstance(v, list) else v for k, v in flags.items()}))
        if rank == 0 and gradients:
            seen = {"gradients": torch.stack(gradients), "held": held, "sampled": sampled}
            torch.save(seen, Path(flags["out"]) / "seen.pt")
    end_process()


def fork_group(group: dict) -> list[int]:
    """Exit codes of the ranks of one group."""
    pids, world, port = [], group["ranks"], free_port()
    for rank in range(world):
        pids.append(os.fork())
        if not pids[-1]:
            names = {
                "WORLD_SIZE": world,
                "RANK": rank,
                "LOCAL_RANK": rank,
                "LOCAL_WORLD_SIZE": group.get("node", world),
            }
            os.environ.update(
                {k: str(v) for k, v in names.items()} | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
            )
            try:
                be_rank(rank, group)
            except SystemExit as end:
                os._exit(end.code)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
            os._exit(0)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]


if __name__ == "__main__":
    torch.set_num_threads(1)  # a fork inherits no threads
    for name in (*STAGES, "torch._dynamo", "torch.distributed.fsdp"):
        importlib.import_module(name)
    gc.freeze()  # else each fork's garbage collector would visit, and so copy, all that was imported
    print(json.dumps([fork_group(group) for group in json.loads(Path(sys.argv[1]).read_text())]))
