"""What Triton's compiler makes of the kernels, and which block sizes are fastest.

python -m tools.kernel_report report      for sm_80, sm_90, sm_100: registers, spills, memory; needs no GPU
python -m tools.kernel_report tune        on a GPU: time candidates for the block sizes
"""

import importlib.util
import os
import sys

import torch


def main(command: str) -> None:
    """report or tune, in triton_kernels.py. Exit code 2 and one line where it cannot run."""
    missing = ""
    if command not in ("report", "tune"):
        missing = "say `python -m tools.kernel_report report` or `python -m tools.kernel_report tune`"
    elif importlib.util.find_spec("triton") is None:
        missing = "triton is not installed (pip install triton; Linux only)"
    elif os.environ.get("TRITON_INTERPRET") == "1":
        missing = "unset TRITON_INTERPRET: interpreted kernels are not compiled"
    elif command == "tune" and not torch.cuda.is_available():
        missing = f"tune: this PyTorch ({torch.__version__}) sees no CUDA device to time on"
    if missing:
        print(f"error: {missing}", file=sys.stderr)
        sys.exit(2)
    from kernels import triton_kernels

    getattr(triton_kernels, command)()


if __name__ == "__main__":
    main(" ".join(sys.argv[1:]))
