"""Speed and memory, as ratios to the machine's own limits and to other libraries, all measured in one run.

    python -m tools.bench                      everything, some minutes on a CPU
    python -m tools.bench train sample         only these parts: train, sample, log_prob, rl, average, kernels (on CUDA)
    pip install -r requirements-bench.txt      the peers: transformers and TRL; without them their columns stay empty

Machines are noisy, so nothing is compared with a number of another minute. A figure comes from several rounds. In each
round every contender runs once, in turn, and the rate of large matrix products is measured beside them. Shares and
ratios are taken within a round; their medians are printed. fp32 on a CPU, bf16 on CUDA.

Peers run in a process of their own, as their users run them: without our allocator settings (process._keep_pages),
which on a CPU would make them faster too.

    ours       what this project's code reaches: tokens per second, MiB or seconds
    of bound   train, sample, kernels: the share of the matrix-product rate, from the FLOPs in model.py
    peer       the same of the code that it is compared with
    ratio      how many times as long the peer takes, or how many times the memory
    aim        what "of bound" and "ratio" are meant to reach; nothing fails below it
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import multiprocessing
import resource
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
import tyro

import kernels
import pretrain
import rl
from checkpoint import save_checkpoint
from cli import cli
from data.prepare import build_world
from data.tokenizer import load_tokenizer
from model import GPT, GPTConfig, answers_flops, config_of, train_flops
from optimizer import make_optimizer, optimizer_step
from process import Process, start_process
from sampler import sample
from tools.peers import generate_step, transformers_step, trl_step

PROMPT, NEW = 48, 64  # tokens of a prompt and of its answer
LOG_PROB_SHAPE = (8192, 256, 50304)  # tokens, width, vocabulary

Run = Callable[[], object]  # a piece of work; a float that it returns is its time in seconds, by its own clock


@dataclass
class Config:
    """Bench: what is measured, and how often"""

    # what to measure: train, a pretraining step; sample; log_prob, its time and memory; rl, a GRPO step; average, a
    # step of average.py and its memory; kernels, the Triton kernels (on CUDA). Nothing: all
    parts: tyro.conf.Positional[tuple[Literal["train", "sample", "log_prob", "rl", "average", "kernels"], ...]] = ()
    repeats: int = 5  # rounds behind each figure (rl, average: at most 3)
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def seconds(run: Run, process: Process) -> float:
    """Wall time of one call, with what it left running on the GPU; or the float that the call returns."""
    wait = torch.cuda.synchronize if process.device.type == "cuda" else lambda: None
    wait()
    start = time.perf_counter()
    result = run()
    wait()
    return result if isinstance(result, float) else time.perf_counter() - start


def matmul_peak(process: Process) -> float:
    """FLOP/s of large square matrix products, the best of a few sizes."""
    rates = []
    for n in (1024, 1536, 2048) if process.device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=process.device, dtype=process.dtype)
        out = torch.empty_like(a)

        def product(a=a, out=out) -> None:
            torch.mm(a, a, out=out)

        rates += [2 * n**3 / seconds(product, process) for _ in range(3)]
    return max(rates)


@dataclass
class Rounds:
    """What was measured in each round, (repeats,) each."""

    seconds: dict[str, np.ndarray]
    peak: np.ndarray  # FLOP/s

    def time(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def ratio(self, slow: str, fast: str) -> float:
        return float(np.median(self.seconds[slow] / self.seconds[fast]))

    def against(self, peer: str, work: float = 0.0, digits: int = 2) -> tuple[str, str]:
        """The cells peer and ratio: its seconds, or work per second. Empty if it is not here."""
        if peer not in self.seconds:
            return "", ""
        value = f"{work / self.time(peer):,.0f}" if work else f"{self.time(peer):.2f}"
        return f"{peer} {value}", f"{self.ratio(peer, 'ours'):.{digits}f} x"

    def of_peak(self, name: str, flops: float) -> str:
        share = np.median(flops / self.seconds[name] / self.peak)
        return f"{100 * share:.0f}% of {np.median(self.peak) / 1e9:,.0f} GFLOP/s"


def measure(runs: dict[str, Run], process: Process, repeats: int, warm_up: bool = True) -> Rounds:
    """Time all `runs` in rounds, every other one in reverse order."""
    for run in runs.values() if warm_up else ():
        run()
    times, peak = {name: [] for name in runs}, []
    for i in range(repeats):
        peak.append(matmul_peak(process))
        for name in list(runs)[:: -1 if i % 2 else 1]:
            time.sleep(0.02)  # threads of the one before spin for some milliseconds
            times[name].append(seconds(runs[name], process))
    return Rounds({name: np.array(t) for name, t in times.items()}, np.array(peak))


def row(part: str, case: str, ours: str, bound: str = "", peer: str = "", ratio: str = "", aim: str = "") -> None:
    """One line of the table."""
    cells = (f"{part:<9}", f"{case:<32}", f"{ours:<18}", f"{bound:<24}", f"{peer:<26}", f"{ratio:<8}", aim)
    print("  ".join(cells).rstrip(), flush=True)


def resident(field: str) -> float:
    """MiB of memory of this process: VmRSS, now, or VmHWM, at most so far.

    Where there is no /proc both are getrusage's maximum. (On Linux that is of no use: it includes what the parent held
    when it started this process.)
    """
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        unit = 1 if sys.platform == "darwin" else 2**10
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**20
    return next(int(line.split()[1]) for line in lines if line.startswith(field)) / 2**10


# ---------------------------------------------------------------------------------------------------------------------
# Other processes: peers.py has the peers
# ---------------------------------------------------------------------------------------------------------------------


# A spawned process imports the modules again and shares no memory with this one
SPAWN = multiprocessing.get_context("spawn")


def in_new_process(function: Callable, *args):
    """function(*args), computed in a process of its own, whose memory is therefore its own."""
    with ProcessPoolExecutor(1, SPAWN) as pool:
        return pool.submit(function, *args).result()


@contextlib.contextmanager
def peer(build: Callable[..., Run], process: Process, *args) -> Iterator[Run]:
    """A contender in a process of its own: each call makes one step there, of the Run that build(process, *args) makes."""
    with ProcessPoolExecutor(1, SPAWN, _build_step, (build, process, *args)) as pool:
        yield lambda: pool.submit(_step).result()


def _build_step(build: Callable[..., Run], process: Process, *args) -> None:
    global _step_of_this_process
    run = build(process, *args)
    _step_of_this_process = lambda: seconds(run, process)  # noqa: E731


def _step() -> float:
    return _step_of_this_process()


def have(package: str) -> bool:
    """Is it installed?"""
    return importlib.util.find_spec(package) is not None


# ---------------------------------------------------------------------------------------------------------------------
# train, sample
# ---------------------------------------------------------------------------------------------------------------------


def training_step(model: GPT, rows: int, length: int, process: Process, compile: str = "auto") -> Run:
    """A step of pretrain.py on random tokens, in its micro-batches, compiled as a long run is (compile: --compile)."""
    optimizer = make_optimizer(model, 1e-4, 0.1, pretrain.BETAS, decay_gains=True)
    batch = torch.randint(model.config.vocab_size, (rows, length + 1), device=process.device)
    config = pretrain.Config(batch=rows, seq_len=length, steps=10_000, compile=compile)
    trained = pretrain.compiled(model, config, process)

    def step() -> None:
        pretrain.loss_and_backward(trained, batch, -1, config, process, rows * length)
        optimizer_step(model, optimizer, process, 1e-4, 1.0)

    return step


def bench_train(process: Process, repeats: int) -> None:
    """Forward, backward and optimizer. FLOPs as train_flops counts them: 6 a token for each parameter of a matrix
    product (embeddings are looked up, not multiplied), and attention."""
    vocab = load_tokenizer("world").padded_vocab_size
    wide = config_of("small", vocab, n_layers=2)
    cases = [
        ("micro", config_of("micro", vocab), 4, 256, "≥ 65%"),
        ("micro", config_of("micro", vocab), 32, 128, "≥ 70%, ≥ 1.4 x"),
        (f"d_model {wide.d_model}, {wide.n_layers} layers", wide, 4, 256, "≥ 85%"),
    ]
    for name, config, rows, length, aim in cases:
        model = GPT(config).init_weights(0).to(process.device)
        with contextlib.ExitStack() as stack:
            runs = {"ours": training_step(model, rows, length, process)}
            if have("transformers"):
                runs["transformers"] = stack.enter_context(peer(transformers_step, process, config, rows, length))
            rounds = measure(runs, process, repeats)
        tokens = rows * length
        ours = f"{tokens / rounds.time('ours'):,.0f} tokens/s"
        bound = rounds.of_peak("ours", tokens * train_flops(config, length))
        row("train", f"{name}, {rows} x {length}", ours, bound, *rounds.against("transformers", tokens), aim)


def random_prompts(config: GPTConfig, n_prompts: int) -> list[list[int]]:
    """Prompts of PROMPT token ids each; 0 to 2 are special ids of the peers' tokenizers, and left out."""
    return np.random.default_rng(0).integers(3, config.vocab_size, (n_prompts, PROMPT)).tolist()


def sampling_step(model: GPT, prompts: list[list[int]], n: int, process: Process, new: int = NEW) -> Run:
    """What rl.py and eval.py call, with no stop token: no row stops early."""

    def step() -> None:
        with process.autocast():
            sample(model, prompts, n, stop=-1, max_new_tokens=new)

    return step


def bench_sample(process: Process, repeats: int) -> None:
    """Sampling of 16 answers to each of 32 prompts, against transformers' generate."""
    config = config_of("micro", load_tokenizer("world").padded_vocab_size)
    model = GPT(config).init_weights(0).to(process.device)
    n_prompts, n = 32, 16
    prompts = random_prompts(config, n_prompts)
    with contextlib.ExitStack() as stack:
        runs = {"ours": sampling_step(model, prompts, n, process)}
        if have("transformers"):
            runs["generate"] = stack.enter_context(peer(generate_step, process, config, prompts, n, NEW))
        rounds = measure(runs, process, repeats)
    tokens = n_prompts * n * NEW
    bound = rounds.of_peak("ours", n_prompts * answers_flops(config, [(PROMPT, [NEW] * n)]))
    ours, case = f"{tokens / rounds.time('ours'):,.0f} tokens/s", f"micro, {n_prompts} x {n} rows, {PROMPT} + {NEW}"
    row("sample", case, ours, bound, *rounds.against("generate", tokens, digits=1), "≥ 40%, ≥ 3.5 x")


# ---------------------------------------------------------------------------------------------------------------------
# log_prob
# ---------------------------------------------------------------------------------------------------------------------


def log_prob_step(which: str, process: Process) -> Run:
    """Forward and backward of the log-probs of targets, from hidden states and the output head."""
    n, width, vocab = LOG_PROB_SHAPE
    hidden = torch.randn(n, width, device=process.device, requires_grad=True)
    # logits of a model's size: larger ones have probabilities below 1e-38, which some CPUs multiply a hundred times slower
    weight = torch.randn(vocab, width, device=process.device).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocab, (n,), device=process.device)

    def step() -> None:
        with process.autocast():
            if which == "ours":
                log_prob = kernels.linear_log_prob(hidden, weight, targets).log_prob
            else:
                log_prob = F.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])
        torch.autograd.grad(log_prob.sum(), (hidden, weight))

    return step


def log_prob_memory(which: str, device: str) -> float:
    """MiB that one step needs at its peak, beyond its inputs. For a process of its own."""
    process = start_process(device)
    step = log_prob_step(which, process)
    small = torch.ones(256, 256, device=process.device, dtype=process.dtype, requires_grad=True)
    torch.autograd.grad((small @ small).sum(), small)  # threads and libraries start before the count does
    if process.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    before = resident("VmRSS")
    step()
    return resident("VmHWM") - before


def bench_log_prob(process: Process, repeats: int) -> None:
    """kernels.linear_log_prob against logits, log_softmax, gather."""
    shape = " x ".join(map(str, LOG_PROB_SHAPE))
    ours, theirs = (in_new_process(log_prob_memory, which, process.device.type) for which in ("ours", "peer"))
    cells = f"{ours:,.0f} MiB", "", f"log_softmax {theirs:,.0f}", f"{theirs / ours:.0f} x", "≥ 20 x"
    row("log_prob", f"{shape}, memory", *cells)
    rounds = measure({which: log_prob_step(which, process) for which in ("ours", "peer")}, process, repeats)
    ours, theirs = (1e3 * rounds.time(which) for which in ("ours", "peer"))
    cells = f"{ours:,.1f} ms", "", f"log_softmax {theirs:,.1f}", f"{rounds.ratio('peer', 'ours'):.2f} x", "≥ 1.25 x"
    row("log_prob", f"{shape}, time", *cells)


# ---------------------------------------------------------------------------------------------------------------------
# rl, average
# ---------------------------------------------------------------------------------------------------------------------


def grpo_step(model: GPT, n_prompts: int, n: int, process: Process, new: int = NEW) -> Run:
    """A step of rl.py: sample, judge, one update. No answer stops early. A coin decides on each advantage, since a new
    model is never right: every answer is trained on."""
    tokenizer = dataclasses.replace(load_tokenizer("world"), eos=-1)
    rng = np.random.default_rng(0)
    digits = PROMPT - 2  # the instruction and a newline are the other two tokens
    questions = [
        {"id": str(i), "question": "".join(map(str, rng.integers(10, size=digits))), "answer": "1"}
        for i in range(n_prompts)
    ]
    flags = rl.GRPOConfig(prompts=n_prompts, rollouts=n, max_new_tokens=new)
    grpo = rl.GRPO(flags, questions, tokenizer, process, 0, model.config.context)
    assert {len(prompt) for _, prompt in grpo.questions} == {PROMPT}
    optimizer = make_optimizer(model, 1e-6, 0.01, rl.BETAS)

    def step() -> None:
        groups, _ = grpo.sample(model)
        for answer in (answer for group in groups for answer in group):
            answer.advantage = float(rng.choice((-1, 1)))
        for minibatch in grpo.minibatches(groups):
            assert grpo.backward(model, minibatch, on_policy=True)
            optimizer_step(model, optimizer, process, 1e-6, 1.0)

    return step


def bench_rl(process: Process, repeats: int) -> None:
    """A GRPO step against what its tokens cost in sampling and, in rows of their own with their prompts, in
    pretraining; and against TRL's GRPOTrainer. The same prompts, answers, lengths and one update for both."""
    model = GPT(config_of("micro", load_tokenizer("world").padded_vocab_size)).init_weights(0).to(process.device)
    n_prompts, n, rows, length = 64, 16, 8, 256
    prompts = random_prompts(model.config, n_prompts)
    with contextlib.ExitStack() as stack:
        runs = {
            "ours": grpo_step(model, n_prompts, n, process),
            "sampling": sampling_step(model, prompts, n, process),
            "training": training_step(model, rows, length, process),
        }
        if have("trl"):
            runs["TRL"] = stack.enter_context(peer(trl_step, process, model.config, prompts, n, NEW))
        rounds = measure(runs, process, min(repeats, 3))
    training_steps = n_prompts * n * (PROMPT + NEW) / (rows * length)
    rounds.seconds["sample + pretrain"] = rounds.seconds["sampling"] + training_steps * rounds.seconds["training"]
    case, ours = f"micro, {n_prompts} x {n} answers, {PROMPT} + {NEW}", f"{rounds.time('ours'):.2f} s a step"
    row("rl", case, ours, "", *rounds.against("sample + pretrain"), "≥ 0.77 x")
    if "TRL" in runs:
        row("rl", case, ours, "", *rounds.against("TRL", digits=1), "≥ 3.5 x")


def run_stage(stage: str, flags: dict) -> float:
    """One run of a stage with these flags; the most MiB that its process held. For a process of its own."""
    module = importlib.import_module(stage)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        module.main(module.Config(**flags))
    return torch.cuda.max_memory_allocated() / 2**20 if flags["device"] == "cuda" else resident("VmHWM")


def bench_average(process: Process, repeats: int) -> None:
    """average.py --mode parallel against rl.py and sft.py, each as a user runs it: memory at a model of 190m's shape,
    on small batches (SFT's has fewer tokens than RL's, so that its activations add nothing); time of a step at
    micro."""
    with tempfile.TemporaryDirectory() as name:
        folder, n_params = Path(name), {}
        build_world(folder / "data")
        for scale in ("190m", "micro"):
            model = GPT(config_of(scale, load_tokenizer("world").padded_vocab_size)).init_weights(0)
            n_params[scale] = model.n_params
            start = {"format": 1, "stage": "pretrain", "config": dataclasses.asdict(model.config), "tokenizer": "world"}
            start |= {"model": model.state_dict(), "step": 0, "tokens": 0, "flops": 0.0, "lineage": [], "args": {}}
            save_checkpoint(folder / f"{scale}.pt", start)
            del model

        def run(stage: str, scale: str, **flags) -> tuple[float, float]:
            """MiB at most, and seconds of a step (the median, without the first)."""
            out = folder / "run"
            flags |= {"init": str(folder / f"{scale}.pt"), "data": str(folder / "data"), "out": str(out)}
            flags |= {"device": process.device.type, "eval_every": 0}
            if stage != "sft":
                flags["entropy"] = 1e-9  # no reward differs, since a new model is never right: all are trained on
            mib = in_new_process(run_stage, stage, flags)
            steps = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
            shutil.rmtree(out)  # last.pt holds 12 or 20 bytes a parameter
            return mib, float(np.median(steps[1:]))

        small = {"steps": 2, "prompts": 2, "rollouts": 4, "max_new_tokens": 64}
        alone, both = run("rl", "190m", **small)[0], run("average", "190m", **small, rows=2)[0]
        case = f"190m, {n_params['190m'] / 1e6:.0f} M parameters, memory"
        extra = f"{(both - alone) * 2**20 / n_params['190m']:+.1f} B/p"
        row("average", case, f"{both:,.0f} MiB", "", f"rl.py {alone:,.0f}", extra, "≤ +16 bytes per parameter")
        stages = {"rl": "rl", "sft": "sft", "ours": "average"}
        runs = {name: lambda stage=stage: run(stage, "micro", steps=4)[1] for name, stage in stages.items()}
        rounds = measure(runs, process, min(repeats, 3), warm_up=False)
        rounds.seconds["rl.py + sft.py"] = rounds.seconds["rl"] + rounds.seconds["sft"]
        case, ours = "micro, 16 x 16 answers and 32 rows", f"{rounds.time('ours'):.2f} s a step"
        row("average", case, ours, "", *rounds.against("rl.py + sft.py"), "≥ 0.91 x")


# ---------------------------------------------------------------------------------------------------------------------
# kernels: the Triton kernels, at OLMo2-1B's shapes
# ---------------------------------------------------------------------------------------------------------------------


def attention_runs(process: Process) -> dict[str, Callable]:
    """Causal attention of q, k, v (B, T, H, D) by ours and by PyTorch's two."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    def causal(b, h, query, key):
        return query >= key

    mask = create_block_mask(causal, None, None, 4096, 4096, device=process.device)
    compiled = torch.compile(flex_attention)

    def heads_first(attend):
        return lambda *qkv: attend(*(x.transpose(1, 2) for x in qkv)).transpose(1, 2)

    return {
        "ours": kernels.attention,
        "SDPA": heads_first(lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=True)),
        "FlexAttention": heads_first(lambda q, k, v: compiled(q, k, v, block_mask=mask)),
    }


def log_prob_runs() -> dict[str, Callable]:
    """The summed negative log-prob of targets from hidden (N, C), weight (V, C). Ours takes weights in fp32, as they
    are in training; the others take what autocast would give them."""
    runs = {"ours": lambda h, w, y: -kernels.linear_log_prob(h, w, y).log_prob.sum()}
    if hasattr(F, "linear_cross_entropy"):
        runs["linear_cross_entropy"] = lambda h, w, y: F.linear_cross_entropy(h, w.to(h.dtype), y, reduction="sum")
    if have("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss(reduction="sum")
        runs["Liger"] = lambda h, w, y: liger(w.to(h.dtype), h, y)
    return runs


def bench_kernels(process: Process, repeats: int) -> None:
    """TFLOP/s against the rate of large matrix products; memory of the log-prob beyond its inputs and gradients."""
    if process.device.type != "cuda":
        print(
            "kernels    skipped: they are compared with SDPA, FlexAttention, linear_cross_entropy and Liger on CUDA only"
        )
        return
    new = {"device": process.device, "dtype": torch.bfloat16}

    def show(case: str, runs: dict[str, Run], flops: float, aim: str) -> None:
        rounds = measure(runs, process, repeats)
        rate = {name: flops / rounds.time(name) / 1e12 for name in runs}
        peers = {name: rate[name] for name in runs if name != "ours"}
        ratio = f"{rounds.ratio(max(peers, key=peers.get), 'ours'):.2f} x"
        others = ", ".join(f"{name} {value:,.0f}" for name, value in peers.items())
        row("kernels", case, f"{rate['ours']:,.0f} TFLOP/s", rounds.of_peak("ours", flops), others, ratio, aim)

    q, k, v = (torch.randn(4, 4096, 16, 128, **new).requires_grad_() for _ in range(3))
    flops = 2 * 4 * 16 * 4096**2 * 128  # q kᵀ and p v, 2 FLOPs a product of numbers, each over half of T x T
    attends = attention_runs(process)
    forward = {name: lambda f=f: f(q.detach(), k.detach(), v.detach()) for name, f in attends.items()}
    show("attention 4x4096x16x128, forward", forward, flops, "≥ 65%")
    outs = {name: attend(q, k, v) for name, attend in attends.items()}
    grad = torch.randn_like(outs["ours"])
    backward = {n: lambda o=o: torch.autograd.grad(o, (q, k, v), grad, retain_graph=True) for n, o in outs.items()}
    show("the same, backward", backward, 2.5 * flops, "≥ 45%")  # five products, where forward has two
    del outs, backward
    n, width, vocab = 16384, 2048, 100352
    hidden = torch.randn(n, width, **new).requires_grad_()
    weight = torch.randn(vocab, width, device=process.device).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocab, (n,), device=process.device)
    losses = log_prob_runs()
    steps = {
        m: lambda f=f: torch.autograd.grad(f(hidden, weight, targets), (hidden, weight)) for m, f in losses.items()
    }
    # Four matrix products: the logits, the logits again in backward, the gradients of hidden and of weight
    show(f"log-prob {n}x{width}x{vocab}", steps, 4 * 2.0 * n * width * vocab, "≥ 75%")
    memory = {}
    for name, step in steps.items():
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        gradients = sum(g.numel() * g.element_size() for g in step())
        memory[name] = (torch.cuda.max_memory_allocated() - before - gradients) / 1e9
    others = ", ".join(f"{name} {value:.2f}" for name, value in memory.items() if name != "ours")
    row("kernels", "its memory", f"{memory['ours']:.2f} GB", "", others, "", "≤ 0.5 GB")


PARTS = {
    "train": bench_train,
    "sample": bench_sample,
    "log_prob": bench_log_prob,
    "rl": bench_rl,
    "average": bench_average,
    "kernels": bench_kernels,
}


def main(config: Config) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    process = start_process(device if config.device == "auto" else config.device)
    print(f"torch {torch.__version__}, {process.device}, {process.dtype}, {torch.get_num_threads()} threads")
    missing = [package for package in ("transformers", "trl") if not have(package)]
    if missing:
        print(f"not installed, so not compared with: {', '.join(missing)} (pip install -r requirements-bench.txt)")
    row("part", "case", "ours", "of bound", "peer", "ratio", "aim")
    for name, part in PARTS.items():
        if name in config.parts or not config.parts:
            part(process, config.repeats)


if __name__ == "__main__":
    cli(main, Config)
