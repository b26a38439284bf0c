"""The first hour on a GPU machine: does everything work there, how fast is it, and what was expected?

    make gpu                                         sets up .venv, then this
    python -m tools.first_hour                       all parts, at most an hour; the same command goes on after a stop
    python -m tools.first_hour train_1b ranks        these parts, again
    python -m tools.first_hour --scale smoke         on a machine without a GPU, in a minute: what can run there, at toy size

Each part runs in a process of its own, with a limit of time, so that what fails or hangs costs one line of the table.
Its output is in OUT/PART.log, all results are in OUT/results.json, the table is in OUT/report.md.

What is expected was estimated without a GPU, for one H100 (docs/gpu.md): FLOPs and bytes of the code at published
rates. A part does not fail where it is slower.
"""

import contextlib
import importlib.util
import io
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
import tyro
from tqdm import tqdm

import pretrain
import rl
from checkpoint import load_checkpoint
from cli import UserError, cli
from data.tokenizer import load_tokenizer
from files import read_json, write_text
from model import GPT, config_of, train_flops
from process import Process, start_process
from tools import bench, dry_run

ROOT = Path(__file__).parent.parent
CUDA = torch.cuda.is_available()
VOCAB = dry_run.CL100K  # words of the paper's tokenizer, padded


@dataclass
class Config:
    """First hour: which parts, and at which size"""

    parts: tyro.conf.Positional[tuple[str, ...]] = ()  # names of parts; none: all that have no result yet
    scale: Literal["smoke", "olmo2-1b"] = "olmo2-1b"  # smoke: what runs without a GPU, at toy size
    out: str = "out/gpu"  # folder of the results
    tflops: float = 989.0  # peak of the GPU in bf16 (H100: 989, A100: 312, RTX 4090: 165)


@dataclass
class Part:
    """One line of the table."""

    command: list[str]
    expected: str
    seconds: int  # it is stopped then
    needs: str = ""  # why it cannot run here; empty: it can


# ---------------------------------------------------------------------------------------------------------------------
# What the parts measure, each called in a process of its own. The last line that it prints is its result
# ---------------------------------------------------------------------------------------------------------------------


def versions() -> None:
    """What is installed, and on what it runs."""
    gpu = "no GPU"
    if CUDA:
        its = torch.cuda.get_device_properties(0)
        gpu = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} × {its.name}"
        gpu += f" (sm_{its.major}{its.minor}, {its.total_memory / 1e9:.0f} GB)"
    peers = [name for name in ("triton", "transformers", "trl", "liger_kernel") if importlib.util.find_spec(name)]
    print(f"Python {platform.python_version()}, torch {torch.__version__}, {gpu}; {', '.join(peers)}")


def timed(step, process: Process, repeats: int) -> tuple[float, float]:
    """Seconds of a step, the median after a first one, and the most memory in GB that it took (0 on a CPU)."""
    step()
    if CUDA:
        torch.cuda.reset_peak_memory_stats()
    times = sorted(bench.seconds(step, process) for _ in range(repeats))
    return times[len(times) // 2], torch.cuda.max_memory_allocated() / 1e9 if CUDA else 0.0


def model_of(scale: str, process: Process) -> GPT:
    """An untrained model of the paper's vocabulary (smoke: of the world's)."""
    vocab = load_tokenizer("world").padded_vocab_size if scale == "smoke" else VOCAB
    return GPT(config_of(scale, vocab)).init_weights(0).to(process.device)


def train(scale: str, rows: int, length: int, tflops: float, compile: str) -> None:
    """A step of pretraining: tokens per second, share of the peak, memory."""
    process = start_process()
    model = model_of(scale, process)
    step = bench.training_step(model, rows, length, process, compile)
    seconds, gb = timed(step, process, 5)
    rate = rows * length / seconds
    mfu = rate * train_flops(model.config, length) / (tflops * 1e12)
    print(f"{rate:,.0f} tokens/s, {mfu:.0%} of {tflops:g} TFLOP/s, {gb:.1f} GB")


def sampling(scale: str, prompts: int, n: int, new: int) -> None:
    """Sampling of n answers of `new` tokens to each prompt, none of which stops early."""
    process = start_process()
    model = model_of(scale, process)
    step = bench.sampling_step(model, bench.random_prompts(model.config, prompts), n, process, new)
    seconds, gb = timed(step, process, 1)
    rows = prompts * n
    print(
        f"{rows * new / seconds:,.0f} tokens/s, {1e3 * seconds / new:.1f} ms for a token of all {rows} rows, {gb:.1f} GB"
    )


def grpo(scale: str, prompts: int, n: int, new: int) -> None:
    """A step of RL with the world's tokenizer: sample, judge, one update."""
    process = start_process()
    model = GPT(config_of(scale, load_tokenizer("world").padded_vocab_size)).init_weights(0).to(process.device)
    seconds, gb = timed(bench.grpo_step(model, prompts, n, process, new), process, 1)
    print(f"{seconds:.1f} s for {prompts} × {n} answers of {new} tokens, {gb:.1f} GB")


def stage(module, flags: list[str], steps: int, out: Path) -> None:
    """A stage's command line, in this process."""
    sys.argv = [module.__name__, *flags, "--steps", str(steps), "--out", str(out)]
    with contextlib.redirect_stderr(io.StringIO()):
        cli(module.main, module.Config)


def resume(folder: str) -> None:
    """Runs of 4 steps that are resumed to 8 have the weights of runs of 8 steps, bit for bit, in pretraining and RL."""
    out, said, all_same = Path(folder), [], True
    shutil.rmtree(out, ignore_errors=True)
    base, always = str(out / "pretrain/whole/last.pt"), "--schedule constant --eval_every 0 --seed 1".split()
    small = "--prompts 4 --rollouts 8 --max_new_tokens 16 --entropy 0.01".split()
    for name, module, flags in (
        ("pretraining", pretrain, "--scale smoke --batch 8 --seq_len 256".split()),
        ("RL", rl, ["--init", base, *small]),
    ):
        whole, parts = (out / module.__name__ / run for run in ("whole", "parts"))
        stage(module, [*flags, *always], 8, whole)
        stage(module, [*flags, *always], 4, parts)
        stage(module, ["--resume"], 8, parts)
        a, b = (load_checkpoint(run / "last.pt")["model"] for run in (whole, parts))
        same = all(torch.equal(x, b[key]) for key, x in a.items())
        said.append(f"{name} {'the same' if same else 'OTHER'} bits")
        all_same &= same
    print(", ".join(said))
    if not all_same:
        sys.exit(1)


def ranks(folder: str) -> None:
    """Two ranks under torchrun have the losses of one process, in pretraining."""
    out, losses = Path(folder), []
    shutil.rmtree(out, ignore_errors=True)
    flags = "--scale smoke --batch 8 --seq_len 256 --steps 6 --eval_every 0 --seed 1 --compile off".split()
    for n in (1, 2):
        launch = ["torch.distributed.run", f"--nproc_per_node={n}", "--standalone"]
        command = [sys.executable, "-m", *launch, "pretrain.py", *flags, "--out", str(out / f"{n}")]
        subprocess.run(command, cwd=ROOT, check=True)
        lines = (out / f"{n}" / "metrics.jsonl").read_text().splitlines()
        losses.append([row["loss"] for row in map(json.loads, lines) if "loss" in row])
    apart = max(abs(a - b) for a, b in zip(*losses, strict=True))
    print(f"losses of 6 steps differ by at most {apart:.1e}")
    if apart > 2e-2:
        sys.exit(1)


# ---------------------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------------------


def expected_memory(scale: str, rows: int, length: int) -> str:
    """GB that tools/dry_run.py gives for a step of pretraining."""
    flags = dict(scale=scale, batch=rows, seq_len=length, steps=10, device="cuda", vocab=VOCAB)
    parts = dry_run.memory(dry_run.checked("pretrain", dry_run.config_class("pretrain")(**flags)))["update"]
    return f"{dry_run.total(parts) - dry_run.CONTEXT:.1f} GB without torch.compile"


def parts_of(config: Config) -> dict[str, Part]:
    """Name → part, at the size of --scale."""
    out = Path(config.out).absolute()
    gpu = "" if CUDA else "needs a GPU"
    toy = "no toy size" if config.scale == "smoke" else ""

    def measure(call: str, expected: str, seconds: int, needs: str = "") -> Part:
        code = f"from tools import first_hour; first_hour.{call}"
        return Part([sys.executable, "-c", code], expected, seconds, needs)

    def tool(words: str) -> list[str]:
        return [sys.executable, "-m", *words.split()]

    numerics = tool("pytest -q -x tests/triton_numerics.py")
    small = [*numerics, "-k", "attention_in_16_bits or log_prob_in_bf16"]
    sanitizer = shutil.which("compute-sanitizer")
    peak = config.tflops
    if config.scale == "smoke":
        speed = {
            "train": measure(f"train('smoke', 4, 64, {peak}, 'off')", "", 120),
            "sample": measure("sampling('smoke', 4, 4, 8)", "", 120),
            "grpo": measure("grpo('smoke', 4, 4, 8)", "", 120),
        }
    else:
        gb = expected_memory("olmo2-1b", 4, 4096) if not gpu else ""
        gb_190m = expected_memory("190m", 4, 4096) if not gpu else ""
        speed = {
            "train_190m": measure(f"train('190m', 16, 4096, {peak}, 'auto')", gb_190m, 240, gpu),
            "train_1b_eager": measure(f"train('olmo2-1b', 4, 4096, {peak}, 'off')", f"42k tokens/s, 36%; {gb}", 180, gpu),
            "train_1b": measure(f"train('olmo2-1b', 16, 4096, {peak}, 'auto')", f"45k to 59k tokens/s, 39 to 50%; less than {gb}", 300, gpu),
            "sample": measure("sampling('olmo2-1b', 16, 32, 256)", "45k to 60k tokens/s, 6 ms for a token of 512 rows", 240, gpu),
            "grpo": measure("grpo('olmo2-1b', 16, 32, 256)", "", 300, gpu),
        }  # fmt: skip
    return {
        "versions": measure("versions()", "torch 2.13, triton 3.7 or newer", 60),
        "kernel_report": Part(tool("tools.kernel_report report"), "0 spills", 600, toy),
        "numerics": Part(numerics, "all pass", 600, gpu),
        "sanitizer": Part([str(sanitizer), *small], "0 errors", 300, gpu or ("" if sanitizer else "needs compute-sanitizer")),
        "kernels": Part(tool("tools.bench kernels"), "attention 300 TFLOP/s forward, 200 backward; log-prob 500", 300, gpu),
        **speed,
        "resume": measure(f"resume({str(out / 'runs')!r})", "the same bits", 240),
        "ranks": measure(f"ranks({str(out / 'ranks')!r})", "at most 2e-2", 180, "" if torch.cuda.device_count() > 1 or not CUDA else "needs two GPUs"),
    }  # fmt: skip


def run_part(name: str, part: Part, out: Path) -> dict:
    """Run it; {"ok", "result", "seconds", "command"}: the last line that it printed, or how it failed."""
    start, log = time.monotonic(), out / f"{name}.log"
    with open(log, "w") as file:
        env = os.environ | {"PYTHONUNBUFFERED": "1", "TESTS_ON_GPU": "1"}  # else tests/conftest.py hides the GPU
        process = dict(cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT, timeout=part.seconds)
        try:
            code = subprocess.run(part.command, **process).returncode
        except subprocess.TimeoutExpired:
            code = 124
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    said = lines[-1][-160:] if lines else "no output"
    if code:
        said = f"stopped after {part.seconds} s" if code == 124 else f"exit code {code}: {said}"
        said += f" ({log})"
    return {"ok": code == 0, "result": said, "seconds": round(time.monotonic() - start), "command": part.command}


def table(parts: dict[str, Part], results: dict) -> Iterator[str]:
    """The report, as Markdown."""
    yield "| part | result | expected | seconds |"
    yield "|---|---|---|---|"
    for name, part in parts.items():
        done = results.get(name)
        said = f"not run: {part.needs}" if part.needs else "not run yet" if done is None else done["result"]
        mark = "" if part.needs or done is None else "✓ " if done["ok"] else "✗ "
        cells = (name, mark + said, part.expected, str(done["seconds"]) if done else "")
        yield "| " + " | ".join(cell.replace("|", "/") for cell in cells) + " |"


def main(config: Config) -> None:
    parts, out = parts_of(config), Path(config.out)
    unknown = [name for name in config.parts if name not in parts]
    if unknown:
        raise UserError(f"{unknown[0]}: no such part; {', '.join(parts)} are known")
    if config.scale != "smoke" and not CUDA:
        raise UserError("--scale olmo2-1b needs a GPU, and this PyTorch sees none; --scale smoke runs without")
    out.mkdir(parents=True, exist_ok=True)
    file = out / "results.json"
    known = read_json(file) if file.exists() else {}
    # Those of these very commands: not of another scale
    results = {
        name: done for name, done in known.items() if name in parts and done.get("command") == parts[name].command
    }

    # Parts without a good result; a result is written as soon as it is there
    left = [name for name in config.parts or parts if not parts[name].needs]
    left = [name for name in left if config.parts or not results.get(name, {}).get("ok")]
    bar = tqdm(left, unit="part", dynamic_ncols=True)
    for name in bar:
        bar.set_description(name)
        results[name] = run_part(name, parts[name], out)
        write_text(file, json.dumps(results, indent=1))
        write_text(out / "report.md", "\n".join(table(parts, results)) + "\n")
    print("\n".join(table(parts, results)))
    print(f"written to {out / 'report.md'}", file=sys.stderr)
    if not all(results.get(name, {}).get("ok") for name in left):
        sys.exit(1)


if __name__ == "__main__":
    cli(main, Config)
