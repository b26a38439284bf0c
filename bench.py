"""Speed and memory, as ratios measured side by side in one run.

    python bench.py                     everything
    python bench.py --part sample       train, sample, log_prob or rl

The bound of a figure is the machine's own rate for large matrix products, measured right beside it. On CUDA the same
commands run in bf16. Peers (transformers) are measured where they are installed: pip install -r requirements-bench.txt.
"""

import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F

import kernels
import pretrain
import rl
from data.errors import cli
from data.tokenizer import load_tokenizer
from model import GPT, config_of, sequence_flops, train_flops
from runtime import Process, Progress, make_optimizer, optimizer_step, start_process
from sampler import sample


@dataclass
class Config:
    """Flags of bench.py."""

    part: Literal["all", "train", "sample", "log_prob", "rl", "memory"] = "all"  # memory: log_prob's own subprocess
    repeats: int = 5  # of every timing; medians are printed
    which: str = ""  # memory: fused or plain


def peak(process: Process) -> float:
    """FLOP/s of large matrix products, the best of a few."""
    n = 2048 if process.device.type == "cpu" else 8192
    a = torch.randn(n, n, device=process.device, dtype=process.dtype)
    return 2 * n**3 / min(seconds(lambda: a @ a, process) for _ in range(6))


def seconds(run: Callable, process: Process) -> float:
    if process.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if process.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def interleaved(runs: dict[str, Callable], process: Process, repeats: int) -> tuple[dict[str, float], float]:
    """Median seconds of each, taken in turn so that noise hits all alike, and the median matmul peak between them."""
    times, peaks = {name: [] for name in runs}, []
    for run in runs.values():
        run()
    for _ in range(repeats):
        peaks.append(peak(process))
        for name, run in runs.items():
            times[name].append(seconds(run, process))
    return {name: float(np.median(t)) for name, t in times.items()}, float(np.median(peaks))


def olmo2(config, process: Process):
    """transformers' model of the same shape, or None."""
    try:
        from transformers import Olmo2Config, Olmo2ForCausalLM
    except ImportError:
        return None
    return Olmo2ForCausalLM(
        Olmo2Config(vocab_size=config.vocab_size, hidden_size=config.d_model, intermediate_size=config.d_ff,
                    num_hidden_layers=config.n_layers, num_attention_heads=config.n_heads, pad_token_id=0,
                    eos_token_id=None, max_position_embeddings=config.context)
    ).to(process.device)  # fmt: skip


def bench_train(process: Process, repeats: int) -> None:
    vocab = load_tokenizer("world").padded_vocab_size
    cases = [("micro", config_of("micro", vocab), 4, 256), ("micro", config_of("micro", vocab), 32, 128)]
    cases += [("d_model 512", config_of("small", vocab, n_layers=2), 4, 256)]
    for name, config, rows, length in cases:
        model = GPT(config).init_weights(0).to(process.device)
        optimizer = make_optimizer(model, 1e-4, 0.1, (0.9, 0.95))
        batch = torch.randint(vocab, (rows, length + 1), device=process.device)
        flags = SimpleNamespace(micro_batch=max(1, 2048 // length), doc_mask=False, z_loss=1e-5)

        def ours():
            pretrain.loss_and_backward(model, batch, -1, flags, process, rows * length)  # noqa: B023
            optimizer_step(model, optimizer, process, 1e-4, 1.0)  # noqa: B023

        runs = {"ours": ours}
        theirs = olmo2(config, process)
        if theirs is not None:
            peer = torch.optim.AdamW(theirs.parameters(), lr=1e-4)

            def transformers_step():
                with process.autocast():
                    loss = theirs(batch[:, :-1], labels=batch[:, :-1]).loss  # noqa: B023
                loss.backward()
                torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)  # noqa: B023
                peer.step()  # noqa: B023
                peer.zero_grad()  # noqa: B023

            runs["transformers"] = transformers_step
        times, top = interleaved(runs, process, repeats)
        tokens = rows * length
        share = tokens * train_flops(config, length) / times["ours"] / top
        line = f"train  {name} {rows} x {length}: {tokens / times['ours']:,.0f} tokens/s, {100 * share:.0f}% of {top / 1e9:.0f} GFLOP/s"
        if theirs is not None:
            line += f"; transformers {tokens / times['transformers']:,.0f}, ratio {times['transformers'] / times['ours']:.2f}"
        print(line)


def bench_sample(process: Process, repeats: int) -> None:
    config = config_of("micro", load_tokenizer("world").padded_vocab_size)
    model = GPT(config).init_weights(0).to(process.device)
    prompts = np.random.default_rng(0).integers(1, 600, (32, 48)).tolist()
    runs = {"ours": lambda: sample(model, prompts, 16, stop=-1, max_new_tokens=64)}
    theirs = olmo2(config, process)
    if theirs is not None:
        tokens = torch.tensor(prompts, device=process.device).repeat_interleave(16, 0)
        flags = dict(do_sample=True, max_new_tokens=64, min_new_tokens=64, top_k=0)
        runs["transformers"] = lambda: theirs.generate(tokens, attention_mask=torch.ones_like(tokens), **flags)
    times, top = interleaved(runs, process, min(repeats, 3))
    share = 32 * sequence_flops(config, 48, 64, 16) / times["ours"] / top
    line = f"sample micro 512 rows, 48 + 64: {512 * 64 / times['ours']:,.0f} tokens/s, {100 * share:.0f}% of {top / 1e9:.0f} GFLOP/s"
    if theirs is not None:
        line += f"; generate {512 * 64 / times['transformers']:,.0f}, ratio {times['transformers'] / times['ours']:.1f}"
    print(line)


def log_prob_step(which: str, process: Process) -> Callable:
    n, width, vocab = 8192, 256, 50304
    hidden, weight = (torch.randn(s, device=process.device, requires_grad=True) for s in ((n, width), (vocab, width)))
    targets = torch.randint(vocab, (n,), device=process.device)

    def step():
        if which == "fused":
            log_p = kernels.linear_log_prob(hidden, weight, targets).log_prob
        else:
            log_p = F.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])
        torch.autograd.grad(log_p.sum(), (hidden, weight))

    return step


def bench_memory(which: str, process: Process) -> None:
    """Extra peak memory of one forward and backward, in MiB, alone in this process."""
    step = log_prob_step(which, process)
    if process.device.type == "cuda":
        before = torch.cuda.memory_allocated()
        step()
        print((torch.cuda.max_memory_allocated() - before) / 2**20)
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        step()
        print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 2**10)


def bench_log_prob(process: Process, repeats: int) -> None:
    def memory(which: str) -> float:
        command = [sys.executable, __file__, "--part", "memory", "--which", which]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)

    mib = {which: memory(which) for which in ("fused", "plain")}
    times, _ = interleaved({w: log_prob_step(w, process) for w in mib}, process, min(repeats, 3))
    print(
        f"log_prob 8192 x 256 x 50304 forward and backward: {times['fused']:.2f} s against {times['plain']:.2f} "
        f"(ratio {times['fused'] / times['plain']:.2f}), extra memory {mib['fused']:.0f} MiB against {mib['plain']:.0f} "
        f"(1/{mib['plain'] / mib['fused']:.0f})"
    )


def bench_rl(process: Process, repeats: int) -> None:
    """One GRPO step against sampling and pretraining on as many tokens. Rewards are made up; answers never stop."""
    tokenizer = load_tokenizer("world")
    config = config_of("micro", tokenizer.padded_vocab_size)
    model = GPT(config).init_weights(0).to(process.device)
    optimizer = make_optimizer(model, 1e-6, 0.0, (0.9, 0.999))
    rng = np.random.default_rng(0)
    flags = rl.GRPOConfig(prompts=64, n=16, max_new_tokens=64)
    grpo = rl.GRPO(flags, [{"id": "0", "question": "1", "answer": "1"}], tokenizer, process, 0, config.context)
    grpo.questions = [({"id": str(i), "answer": "1"}, rng.integers(1, 600, 48).tolist()) for i in range(64)]
    grpo.order = rl.Cursor(64, 0)
    grpo.tokenizer = SimpleNamespace(eos=-1, decode=tokenizer.decode)
    rl.reward_of = lambda *_: (float(rng.integers(2)), False)
    run = SimpleNamespace(process=process, config=SimpleNamespace(clip=1.0), skip=lambda *_: None)
    batch = torch.randint(600, (8, 257), device=process.device)
    train_flags = SimpleNamespace(micro_batch=8, doc_mask=False, z_loss=0.0)
    prompts = [ids for _, ids in grpo.questions]

    def training():
        pretrain.loss_and_backward(model, batch, -1, train_flags, process, 2048)
        optimizer_step(model, optimizer, process, 1e-6, 1.0)

    runs = {
        "step": lambda: rl.update(grpo, model, optimizer, grpo.rollouts(model)[0], run, Progress(), 1e-6),
        "sampling": lambda: sample(model, prompts, 16, stop=-1, max_new_tokens=64),
        "training": training,
    }
    times, _ = interleaved(runs, process, min(repeats, 3))
    tokens = 64 * 16 * (48 + 64)  # what a trainer without shared prompts computes
    floor = times["sampling"] + times["training"] * tokens / 2048
    print(
        f"rl     micro 64 x 16 answers, 48 + 64: {times['step']:.2f} s a step; sampling {times['sampling']:.2f} s + "
        f"pretraining on {tokens} tokens {floor - times['sampling']:.2f} s, ratio {times['step'] / floor:.2f}"
    )


def main(config: Config) -> None:
    process = start_process()
    if config.part == "memory":
        return bench_memory(config.which, process)
    print(f"torch {torch.__version__}, {process.device}, {torch.get_num_threads()} threads, {process.dtype}")
    if olmo2(config_of("smoke", 128), process) is None:
        print("without transformers: pip install -r requirements-bench.txt for the ratios to it")
    for name in ("train", "sample", "log_prob", "rl"):
        if config.part in ("all", name):
            globals()[f"bench_{name}"](process, config.repeats)


if __name__ == "__main__":
    cli(main, Config)
