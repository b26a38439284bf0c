"""The Triton kernels: numbers (triton_numerics.py, in its own process), compiled code, the choice between them."""

import ast
import importlib.util
import os
import pkgutil
import re
import subprocess
import sys
import types

import pytest
import torch
from conftest import ROOT, run

import kernels
from cli import UserError

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="triton is not installed (it exists for Linux only)"
)


def with_gpus() -> dict[str, str]:
    """The environment of a process that sees the GPUs that conftest.py hides."""
    hidden = os.environ["HIDDEN_GPUS"]
    env = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "CUDA_VISIBLE_DEVICES")}
    return env | {"TESTS_ON_GPU": "1"} | ({} if hidden == "all" else {"CUDA_VISIBLE_DEVICES": hidden})


def there_is_a_gpu() -> bool:
    command = [sys.executable, "-c", "import sys, torch; sys.exit(not torch.cuda.is_available())"]
    return torch.version.cuda is not None and subprocess.run(command, env=with_gpus()).returncode == 0


def numerics(interpret: bool) -> str:
    """Run triton_numerics.py; returns what pytest printed."""
    env = os.environ | {"TRITON_INTERPRET": "1"} if interpret else with_gpus()
    command = [sys.executable, "-m", "pytest", "-q", "--durations=5", "tests/triton_numerics.py"]
    done = subprocess.run(command, cwd=ROOT, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    passed = re.search(r"(\d+) passed", done.stdout)
    assert done.returncode == 0 and passed and int(passed[1]) > 35 and "skipped" not in done.stdout, done.stdout
    return done.stdout


@needs_triton
def test_numbers_in_the_interpreter():
    """Every kernel and whole steps on them against float64, in Triton's interpreter."""
    print(numerics(interpret=True))


@needs_triton
@pytest.mark.gpu
def test_numbers_on_the_gpu():
    """The same on the GPU."""
    if not there_is_a_gpu():
        pytest.skip("needs a GPU: the numbers were checked in the interpreter")
    print(numerics(interpret=False))


@needs_triton
@pytest.mark.parametrize("arch, unit", [
    (80, "mma.sync"), (90, "wgmma"), (100, "tcgen05.mma"), (120, "mma.sync"),
    pytest.param(86, "mma.sync", marks=pytest.mark.slow), pytest.param(89, "mma.sync", marks=pytest.mark.slow),
])  # fmt: skip
def test_compiled_code(arch, unit, monkeypatch):
    """At OLMo2-1B's shapes every kernel compiles for the GPU, keeps its registers, feeds its warps, fits its shared
    memory and, where it multiplies, uses the matrix units (for the 16 rows of decoding the oldest kind). Needs no
    GPU."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: interpreted kernels are not compiled")
    from kernels.triton_attention import attention_forward
    from tools import kernel_report

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    assert type(attention_forward).__name__ == "JITFunction"
    made = [kernel_report.compile_for(arch, *launch) for launch in kernel_report.launches(arch)]
    assert [c.kernel for c in made] == [
        "attention_forward", "attention_dq", "attention_dkv", "log_prob_forward", "log_prob_backward",
        "decode_attention", "rms_norm_rows", "rotary_rows", "swiglu_rows",
    ]  # fmt: skip
    units = dict.fromkeys(("rms_norm_rows", "rotary_rows", "swiglu_rows"), None) | {"decode_attention": "mma.sync"}
    for c in made:
        assert not c.fault() and c.spilled == 0 and c.programs >= 1, c
        needed = units.get(c.kernel, unit)
        assert needed is None or needed in c.instructions, c


@needs_triton
@pytest.mark.slow
@pytest.mark.parametrize("head", [64, 32])
def test_compiled_code_of_small_heads(head, monkeypatch):
    """The attention kernels with shared prompts at the heads of 190m and micro, on all six architectures."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: interpreted kernels are not compiled")
    from tools import kernel_report

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    for arch in kernel_report.SMS:
        launches = [x for x in kernel_report.launches(arch, head=head) if "attention" in x[0].__name__]
        made = [kernel_report.compile_for(arch, *launch) for launch in launches]
        assert len(made) == 4 and not any(c.fault() for c in made), made


@needs_triton
def test_report_refuses_warps_without_rows(monkeypatch, capsys):
    """8 warps on tiles of 64 queries: on sm_90 two of them compute each row of S and dP. The report says so and fails."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: interpreted kernels are not compiled")
    from kernels.blocks import BLOCKS, Block
    from tools import kernel_report

    monkeypatch.setenv("TRITON_DEFAULT_FP_FUSION", "1")
    monkeypatch.setitem(BLOCKS[90, 128], "dq", Block(64, 64, warps=8))
    (dq,) = [launch for launch in kernel_report.launches(90) if launch[0].__name__ == "attention_dq"]
    monkeypatch.setattr(kernel_report, "launches", lambda arch, head: [dq] if head == 128 else [])
    monkeypatch.setattr(kernel_report, "SMS", {90: kernel_report.SMS[90]})
    with pytest.raises(SystemExit) as exit:
        kernel_report.report()
    out, err = capsys.readouterr()
    assert exit.value.code == 1 and "| 64x64, 8, 2 | 8 |" in out
    assert err == "error: attention_dq on sm_90: 8 warps exceed its rows (8 a warp): each product is computed 2 times\n"


def test_warps_that_compute_the_same_are_counted():
    """From the layouts in Triton's code: 8 warps across 32 columns, of which an instruction takes 8, and 4 warps down 64 rows."""
    from tools.kernel_report import warp_shares

    code = """
#mma = #ttg.nvidia_mma<{versionMajor = 2, versionMinor = 0, warpsPerCTA = [1, 8], instrShape = [16, 8]}>
#mma1 = #ttg.nvidia_mma<{versionMajor = 3, versionMinor = 0, warpsPerCTA = [4, 1], instrShape = [16, 64, 16]}>
  %1 = ttng.warp_group_dot %a, %b, %c : !ttg.memdesc<64x128xbf16> -> tensor<64x64xf32, #mma1> loc(#1)
"""
    assert warp_shares(code) == (16, 1) and warp_shares("") == (None, 1)
    assert warp_shares(code + "  %2 = tt.dot %a, %b, %c : tensor<64x16xbf16> -> tensor<64x32xf32, #mma> loc(#2)") == (
        16,
        2,
    )


@needs_triton
@pytest.mark.parametrize("arch", [86, 90])
def test_small_tiles_of_fp32_compile(arch, monkeypatch):
    """The smallest tiles of triton_numerics.py, which on a GPU runs them in fp32, compile: tl.dot takes no side below 16."""
    if os.environ.get("TRITON_INTERPRET") == "1":
        pytest.skip("TRITON_INTERPRET=1: interpreted kernels are not compiled")
    from kernels.blocks import BLOCKS, Block
    from tools import kernel_report

    monkeypatch.setitem(BLOCKS, (arch, 32), dict.fromkeys(("forward", "dq", "dkv", "decode"), Block(16, 16)))
    launches = kernel_report.launches(arch, dtype=torch.float32, head=32, group=2)
    for launch in launches:
        if "attention" in launch[0].__name__:
            assert kernel_report.compile_for(arch, *launch).block[:2] == (16, 16)


def test_every_stage_on_fake_cuda_tensors():
    """fake_cuda.py, where PyTorch is built for CUDA. Elsewhere: it imports, and every name that it takes from another
    file is there."""
    if torch.version.cuda is not None:
        done = subprocess.run([sys.executable, "tests/fake_cuda.py"], cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return
    fake_cuda = pytest.importorskip("fake_cuda")
    names = 0
    for node in ast.walk(ast.parse((ROOT / "tests/fake_cuda.py").read_text())):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):  # rl.GRPO
            owner, name = getattr(fake_cuda, node.value.id, None), node.attr
        elif (
            isinstance(node, ast.Call) and ast.unparse(node.func) == "mock.patch.object"
        ):  # mock.patch.object(rl, "GRPO", ..)
            owner, name = pkgutil.resolve_name(f"fake_cuda:{ast.unparse(node.args[0])}"), ast.literal_eval(node.args[1])
        elif isinstance(node, ast.Call) and ast.unparse(node.func) == "mock.patch":  # mock.patch("rl.GRPO", ..)
            name = ast.literal_eval(node.args[0])
            assert pkgutil.resolve_name(name) is not None
            continue
        else:
            continue
        if isinstance(owner, types.ModuleType | type):
            assert hasattr(owner, name), f"{ast.unparse(node)}: there is no {name}"
            names += 1
    assert names > 50


def test_choice_of_kernels(monkeypatch):
    """auto on a CPU is the plain path; triton there needs the interpreter, and says so in one line."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert not kernels.on_triton(torch.ones(1))
    for have, match in ((True, "needs CUDA, not cpu"), (False, "not installed")):
        monkeypatch.setattr(importlib.util, "find_spec", lambda name: object() if have else None)  # noqa: B023
        with pytest.raises(UserError, match=match) as error:
            kernels.use("triton", "cpu")
        assert "\n" not in str(error.value) and kernels._choice == "auto"
    monkeypatch.setenv("KERNELS", "triton")
    code, _, err = run("eval.py", "--checkpoint", __file__)
    assert code == 2 and err.startswith("error: KERNELS=triton") and len(err.splitlines()) == 1


def test_without_triton():
    """Everything imports and runs where triton is not installed; commands that need it say so in one line."""
    code, out, err = run(
        "-c",
        "import sys; sys.modules['triton'] = None; import pretrain, rl, average; from tools import kernel_report; kernel_report.main('report')",
    )
    assert code == 2 and err.startswith("error: triton is not installed") and len(err.splitlines()) == 1, err


@needs_triton
def test_tune_without_a_gpu():
    code, _, err = run("-m", "tools.kernel_report", "tune")
    assert code == 2 and "no CUDA device" in err and len(err.splitlines()) == 1
    code, _, err = run("-m", "tools.kernel_report", "tuna")
    assert code == 2 and "report" in err and len(err.splitlines()) == 1
