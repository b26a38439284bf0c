"""Several ranks, signals, locks: what ends a run, and what is left of it."""

import sys

from conftest import run

THREADS = """
import os, sys, torch
torch.set_num_threads(1)
import runtime
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
torch.distributed.all_reduce(torch.ones(1))
import torch._dynamo, torch.distributed.nn.functional
runtime.end_process()
print(threads() - before)
"""


def test_no_thread_of_a_process_group_outlives_it(tmp_path):
    """After end_process no thread of the group runs, even where dynamo was imported while the group was there: such a
    thread asks for the interpreter while that ends, and the process aborts after all its work is done."""
    if sys.platform == "linux":
        assert run("-c", THREADS, tmp_path / "store")[1] == "0\n"
