"""How the Triton kernels are started: the size of their blocks on each GPU, warps, precision of fp32 products.

A Triton kernel is a program that runs once per tile of its output, all tiles at the same time; `tl.program_id` says
which. A program loads tiles of its inputs, multiplies them on the matrix units (`tl.dot`), keeps sums in registers, in
fp32, and stores its tile once. No program adds to what another one stores, so the same inputs give the same bits.

Imported only where triton is installed. With TRITON_INTERPRET=1 the kernels run on a CPU, slowly: the tests do that.
"""

import os
from typing import NamedTuple

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a·b + c in one rounding: triton 3.10 changes the default

import torch
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


class Block(NamedTuple):
    rows: int  # queries or tokens of a tile; decode: heads, of which a matrix unit takes no fewer than 16
    cols: int  # keys or words
    depth: int = 0  # log-prob: columns of the model's width per step of the product
    warps: int = 8
    stages: int = 2  # loads in flight: each costs shared memory


# (architecture, head size) → the block of each kernel. The head size is rounded up to a power of two; 0 stands for the
# log-prob kernels, which have no heads. Architecture 90 is compute capability 9.0 (sm_90), 0 the interpreter. sm_86, 89
# and 120 have 99 KB of shared memory for a program, which decides.
# `python -m tools.kernel_report report` holds them to two rules, with triton 3.7 (PyTorch 2.13's for CUDA) and 3.9: no
# spills, and no two warps that compute the same. Nobody has timed them yet: `python -m tools.kernel_report tune`.
SMALL = (86, 89, 120)
BLOCKS: dict[tuple[int, int], dict[str, Block]] = {
    (80, 0): {"forward": Block(128, 128, 64, 8, 4), "backward": Block(128, 128, 64, 8, 4)},
    (90, 0): {"forward": Block(128, 128, 64, 8, 3), "backward": Block(128, 128, 64, 8, 4)},
    (100, 0): {"forward": Block(128, 128, 64, 8, 3), "backward": Block(128, 256, 64, 8, 3)},
    (0, 0): {"forward": Block(128, 256, 64), "backward": Block(128, 256, 64)},
}
for _arch in SMALL:
    BLOCKS[_arch, 0] = {"forward": Block(128, 128, 32, 8, 3), "backward": Block(128, 128, 32, 8, 3)}
BLOCKS[120, 0]["forward"] = Block(128, 64, 64, 4, 3)  # the above spills with triton 3.7
for _head in (32, 64, 128):
    for _arch in (80, 90, 100):
        BLOCKS[_arch, _head] = {
            "forward": Block(128, 64, warps=4 if _arch == 90 and _head < 128 else 8, stages=3),
            "dq": Block(64, 64, warps=4, stages=2),
            "dkv": Block(64, 64, warps=4, stages=2),
            "decode": Block(16, 64, warps=4, stages=3),
        }
    for _arch in SMALL:
        BLOCKS[_arch, _head] = {
            "forward": Block(128, 32),
            "dq": Block(64, 32, warps=4),
            "dkv": Block(32, 64, warps=4),
            "decode": Block(16, 64, warps=4),
        }
    BLOCKS[80, _head]["dkv"] = Block(32, 64, warps=4)
    if _head > 32:  # with 32, the warps would compute each product twice
        BLOCKS[120, _head]["dkv"] = Block(64, 32, warps=4)
    BLOCKS[0, _head] = {"forward": Block(64, 32), "dq": Block(32, 64), "dkv": Block(32, 64), "decode": Block(16, 32)}
for _kernel in ("dq", "dkv"):  # tensor memory holds the sums; 4 warps spill
    BLOCKS[100, 128][_kernel] = Block(64, 64)


def architecture(device: torch.device) -> int:
    """The first part of the keys of BLOCKS."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    known = {(8, 0): 80, (8, 9): 89, (9, 0): 90, (10, 0): 100, (10, 3): 100, (12, 0): 120, (12, 1): 120}
    return known.get((major, minor), 86)


class Launcher:
    """Chooses a kernel's block for one architecture, and runs the kernel.

    The autograd Functions get it as an argument: tools/kernel_report.py passes one that compiles or times instead.
    """

    def __init__(self, architecture: int):
        self.architecture = architecture

    def block(self, kernel: str, like: Tensor, head: int = 0) -> Block:
        """The block of a kernel ("forward", ...) for inputs like this tensor. head: the second part of the keys of BLOCKS.

        An fp32 number takes twice the shared memory of a bf16 one. So on a GPU fp32 gets half the columns and half the
        depth, 16 columns at least (tl.dot takes no fewer), 64 rows at most, and two stages.
        """
        block = BLOCKS[self.architecture, head][kernel]
        if like.dtype == torch.float32 and self.architecture:
            cols = max(16, block.cols // 2)
            block = block._replace(rows=min(64, block.rows), cols=cols, depth=block.depth // 2, stages=2)
        return block

    def __call__(self, kernel, grid: tuple[int, ...], args: tuple, block: Block, **constants) -> None:
        """Run a kernel: as many programs as `grid` has places. args: its tensors and sizes; constants: its constexprs."""
        kernel[grid](*args, **constants, num_warps=block.warps, num_stages=block.stages)


def precision(x: Tensor) -> str:
    """How tl.dot multiplies fp32: as torch.mm does."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 and x.dtype == torch.float32 else "ieee"
