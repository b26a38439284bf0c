"""What Triton's compiler makes of the kernels, and which block sizes are fastest.

    python -m tools.kernel_report report      registers, spills, memory, warps on each architecture; needs no GPU
    python -m tools.kernel_report tune        on a GPU: time candidates, print the fastest as lines of kernels/blocks.py

Both call the functions that launch the kernels at OLMo2-1B's shapes with a Launcher (kernels/blocks.py) of their own:
in `report` it only keeps what would be launched, in `tune` it launches and times. A new kernel is called in `launches`
and in `tune`.
"""

import importlib.util
import inspect
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

import torch


class SM(NamedTuple):
    """What a streaming multiprocessor has for all programs that run on it at a time (CUDA C++ Programming Guide, table
    of compute capabilities). All have 65536 registers."""

    shared_kb: int  # 1 KB of it goes to the system for each program, so a program may have one less
    warps: int
    programs: int


SMS = {80: SM(164, 64, 32), 86: SM(100, 48, 16), 89: SM(100, 48, 24), 90: SM(228, 64, 32), 100: SM(228, 64, 32),
       120: SM(100, 48, 24)}  # fmt: skip
# The matrix units of sm_80 (86, 89, 120), 90 and 100, and loads that run beside them
INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05.mma", "cp.async")
HEADS = {128: 16, 64: 12, 32: 4}  # head size → heads: of OLMo2-1B, of 190m, of micro


# ---------------------------------------------------------------------------------------------------------------------
# report
# ---------------------------------------------------------------------------------------------------------------------


class Compiled(NamedTuple):
    kernel: str
    block: tuple
    registers: int  # per thread; at most 255
    spilled: int  # bytes of them that went to memory: the kernel would be many times slower
    shared_kb: float
    instructions: list[str]
    rows_per_warp: int | None  # rows of a tile's products for each warp that takes rows; None: not multiplied by warps
    repeats: int  # how many warps compute the same element of a product; more than one is work for nothing
    programs: int  # that run on a streaming multiprocessor at a time

    def fault(self) -> str:
        """What is wrong with the block, or nothing."""
        if self.spilled:
            return f"spills {self.spilled} bytes"
        if self.repeats > 1:
            rows = f"{self.block.warps} warps exceed its rows ({self.rows_per_warp} a warp)"
            return f"{rows}: each product is computed {self.repeats} times"
        return ""


def launches(arch: int, layout: str = "prompts", dtype=torch.bfloat16, head: int = 128, group: int = 1) -> list[tuple]:
    """What one forward and backward, and a decoding step of 512 rows, launch at OLMo2-1B's shapes: (kernel, args,
    block, constants), each kernel once.

    arch: as in BLOCKS (80: sm_80). layout: of attention, "causal", "documents" (doc_start) or "prompts" (prompt, too).
    head: the head size, as in HEADS. group: query heads to one key head.
    On the meta device: all shapes, no data.
    """
    from kernels import triton_attention, triton_decode, triton_log_prob
    from kernels.blocks import Launcher

    made = {}

    class Recorder(Launcher):
        def __call__(self, kernel, grid, args, block, **constants):
            made.setdefault(kernel.__name__, (kernel, args, block, constants))

    def new(*shape, **kwargs):
        return torch.empty(*shape, device="meta", **{"dtype": dtype, **kwargs})

    launch, fp32, ints = Recorder(arch), dict(dtype=torch.float32), dict(dtype=torch.int32)

    heads, kv_heads = HEADS[head], HEADS[head] // group
    q, k, v = (new(4, 4096, n, head) for n in (heads, kv_heads, kv_heads))
    given = {"causal": 0, "documents": 2, "prompts": 4}[layout]  # of doc_start, doc_end, prompt_start, prompt_end
    layout = [new(4, 4096, **ints)] * given + [None] * (4 - given)
    out, lse = triton_attention.forward(launch, q, k, v, *layout)
    triton_attention.backward(launch, out, q, k, v, *layout, out, lse)
    hidden, weight, targets = new(16384, 2048), new(100352, 2048, **fp32), new(16384, dtype=torch.int64)
    log_prob, entropy, logsumexp = triton_log_prob.forward(launch, hidden, weight, targets, 0.6)
    grads = (log_prob, entropy, logsumexp)
    triton_log_prob.backward(launch, *grads, hidden, weight, targets, entropy, logsumexp, 0.6)

    x = new(512, 1, 2048)
    q, k, v = new(512, heads, head, **fp32), new(512, kv_heads, head, **fp32), new(512, kv_heads, head)
    pool, pages = new(8000, 16, kv_heads, head), new(512, 64, **ints)
    length = pages[:, 0]
    triton_decode.attention(q, k, v, pool, pool, pages, length, length, launch)
    triton_decode.rms_norm(x, new(2048, **fp32), 1e-6, launch)
    triton_decode.rotary(q[:, None], *new(2, 512, 1, 1, head, **fp32), launch)
    triton_decode.swiglu(new(512, 1, 8192), new(512, 1, 8192), launch)
    return list(made.values())


def compile_for(arch: int, kernel, args: tuple, block, constants: dict) -> Compiled:
    """Compile a launch as Triton would on that GPU, and read the result. (Private API of triton 3.6 to 3.9.)"""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = dict(constants, num_warps=block.warps, num_stages=block.stages)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, _ = bind(*args, **options)
    parsed, signature, constexprs, attributes = kernel._pack_args(backend, options, bound, specialization, None)
    source = ASTSource(kernel, signature, constexprs, attributes)
    compiled = triton.compile(source, target=target, options=parsed.__dict__)
    tool = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    resource = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    found = [name for name in INSTRUCTIONS if name in compiled.asm["ptx"]]
    spilled, shared_kb = resource["STACK"] + resource["LOCAL"], compiled.metadata.shared / 1024
    # How many programs fit: by shared memory, registers (given to warps in units of 8 a thread), warps, tensor memory
    sm, columns = SMS[arch], getattr(compiled.metadata, "tmem_size", 0)
    registers = -(-resource["REG"] // 8) * 8 * 32 * block.warps
    limits = [sm.programs, sm.shared_kb // (shared_kb + 1), 65536 // registers, sm.warps // block.warps]
    limits += [512 // columns] if columns else []
    shares = warp_shares(compiled.asm["ttgir"])
    return Compiled(kernel.__name__, block, resource["REG"], spilled, shared_kb, found, *shares, int(min(limits)))


def warp_shares(ttgir: str) -> tuple[int | None, int]:
    """Compiled.rows_per_warp and repeats, from Triton's intermediate code.

    A layout there says how many warps share the rows and the columns of a tile (`warpsPerCTA = [8, 1]`), and how many
    of each a warp's instruction takes (`instrShape = [16, 64, 16]`). Warps for which a product has too few do what
    others do. Products that are not a warp's (of sm_100's tensor memory, of fp32 without tf32) do not count.
    """
    layout = r"^(#\w+) = #ttg.nvidia_mma<.*warpsPerCTA = \[(\d+), (\d+)\].*instrShape = \[(\d+), (\d+)"
    layouts = {name: [int(n) for n in sides] for name, *sides in re.findall(layout, ttgir, re.MULTILINE)}
    rows_per_warp, repeats = None, 1
    for rows, cols, name in re.findall(r"(?:tt.dot|warp_group_dot) .*-> tensor<(\d+)x(\d+)x\w+, (#\w+)>", ttgir):
        if name in layouts:
            warps_down, warps_across, height, width = layouts[name]
            rows_per_warp = min(int(rows) // warps_down, rows_per_warp or int(rows))
            repeats = max(repeats, warps_down * height // int(rows), warps_across * width // int(cols))
    return rows_per_warp, repeats


def report() -> None:
    """Print a table: each kernel on each architecture. Exit code 1 and one line if a block is wrong."""
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    columns = ("kernel", "sm", "block, warps, stages", "rows per warp", "registers", "spilled bytes", "shared KB",
               "programs per SM", "instructions")  # fmt: skip
    print(f"| {' | '.join(columns)} |\n{'|---' * len(columns)}|")
    faults = []
    for arch, sm in SMS.items():
        for head, launch in ((size, launch) for size in HEADS for launch in launches(arch, head=size)):
            if head != 128 and "attention" not in launch[0].__name__:  # the others have no heads
                continue
            c = compile_for(arch, *launch)
            name, sides = c.kernel, "x".join(str(side) for side in c.block[:3] if side)
            if head != 128:
                name += f", head size {head}"
            print(f"| {name} | {arch} | {sides}, {c.block.warps}, {c.block.stages} | {c.rows_per_warp or ''} | {c.registers} | "
                  f"{c.spilled} | {c.shared_kb:.0f} of {sm.shared_kb - 1} | {c.programs} | {', '.join(c.instructions)} |", flush=True)  # fmt: skip
            if c.fault():
                faults.append(f"{name} on sm_{arch}: {c.fault()}")
    if faults:
        print(f"error: {'; '.join(faults)}", file=sys.stderr)
        sys.exit(1)


# ---------------------------------------------------------------------------------------------------------------------
# tune
# ---------------------------------------------------------------------------------------------------------------------

# Rows, columns, depth, warps, stages of the log-prob kernels
LOG_PROB_CANDIDATES = (
    (128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (128, 256, 32, 8, 4), (256, 128, 64, 8, 3),
    (128, 256, 64, 16, 3), (128, 128, 32, 4, 4),
)  # fmt: skip
# Rows and columns of the attention kernels, each tried with 4 and 8 warps, 2 and 3 stages
ATTENTION_CANDIDATES = {
    "forward": ((128, 64), (128, 128), (64, 64), (128, 32)),
    "dq": ((64, 64), (128, 64), (128, 32), (64, 32)),
    "dkv": ((64, 64), (64, 128), (32, 128), (32, 64)),
}


def tune(heads: tuple[int, ...] = (0, 64, 128)) -> None:
    """Print the fastest block of each kernel at OLMo2-1B's shapes, as lines of BLOCKS. Head 0: the log-prob kernels."""
    from triton.runtime.errors import OutOfResources
    from triton.testing import do_bench

    from kernels import triton_attention, triton_log_prob
    from kernels.blocks import Block, Launcher, architecture
    from kernels.triton_log_prob import VOCAB_CHUNK

    device = torch.device("cuda")
    arch = architecture(device)

    class Timer(Launcher):
        """Gives the kernel `name` the block `candidate` and times it; the other kernels run with theirs."""

        def __init__(self, name: str, candidate: Block):
            super().__init__(arch)
            self.name, self.candidate = name, candidate

        def block(self, kernel, like, head=0):
            self.is_timed = kernel == self.name
            return self.candidate if self.is_timed else super().block(kernel, like, head)

        def __call__(self, *args, **constants):
            super().__call__(*args, **constants)
            if self.is_timed:
                again = super().__call__
                self.milliseconds = do_bench(lambda: again(*args, **constants), return_mode="median")

    def new(*shape):
        return torch.randn(*shape, device=device, dtype=torch.bfloat16)

    for head in heads:
        if head:
            q, k, v = (new(4, 4096, 2048 // head, head) for _ in range(3))
            candidates = {
                name: [Block(*sides, warps=warps, stages=stages) for sides in all_sides for warps in (4, 8) for stages in (2, 3)]
                for name, all_sides in ATTENTION_CANDIDATES.items()
            }  # fmt: skip
        else:
            hidden, weight = new(16384, 2048), new(VOCAB_CHUNK, 2048)
            targets = torch.randint(VOCAB_CHUNK, (16384,), device=device)
            candidates = dict.fromkeys(("forward", "backward"), [Block(*c) for c in LOG_PROB_CANDIDATES])
        best = {}  # kernel → its fastest block
        for name, blocks in candidates.items():
            times = {}
            for block in blocks:
                timer = Timer(name, block)
                try:
                    if head:
                        layout = (None,) * 4
                        out, lse = triton_attention.forward(timer, q, k, v, *layout)
                        triton_attention.backward(timer, out, q, k, v, *layout, out, lse)
                    else:
                        outs = triton_log_prob.forward(timer, hidden, weight, targets, 1.0)
                        saved = (hidden, weight, targets, *outs[1:])
                        triton_log_prob.backward(timer, outs[0], None, None, *saved, 1.0)
                except OutOfResources:
                    continue
                times[block] = timer.milliseconds
                print(f"# sm_{arch} head {head} {name} {tuple(block)}: {timer.milliseconds:.3f} ms", flush=True)
            best[name] = min(times, key=times.get)
        print(f"    ({arch}, {head}): {best},", flush=True)


def main(command: str) -> None:
    """report or tune. Exit code 2 and one line where it cannot run."""
    commands = {"report": report, "tune": tune}
    wrong = ""
    if command not in commands:
        wrong = "say `python -m tools.kernel_report report` or `python -m tools.kernel_report tune`"
    elif importlib.util.find_spec("triton") is None:
        wrong = "triton is not installed (pip install triton; Linux only)"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        wrong = "unset TRITON_INTERPRET: interpreted kernels are not compiled"
    elif command == "tune" and not torch.cuda.is_available():
        wrong = f"tune: this PyTorch ({torch.__version__}) sees no CUDA device to time on"
    if wrong:
        print(f"error: {wrong}", file=sys.stderr)
        sys.exit(2)
    commands[command]()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
