"""Speed and memory, as ratios to the machine's own limits and to other libraries, all measured in one run.

    python -m tools.bench                      everything, some minutes on a CPU
    python -m tools.bench train sample         only these parts: train, sample, log_prob, rl, average, kernels (on CUDA)
    pip install -r requirements-bench.txt          the peers: transformers and TRL; without them their columns stay empty

Machines are noisy, so nothing is compared with a number of another minute. A figure comes from several rounds. In each
round every contender runs once, in turn, and the rate of large matrix products is measured beside them. Shares and ratios
are taken within a round; their medians are printed. fp32 on a CPU, bf16 on CUDA.

Peers run in a process of their own, as their users run them: without our allocator settings (runtime._keep_pages), which
on a CPU would make them faster too.

    of bound   train, sample: the share of the matrix-product rate, from the FLOPs in model.py
    ratio      how many times as long the peer takes
"""

import contextlib
import dataclasses
import importlib
import importlib.util
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Literal
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
import tyro

import kernels
import pretrain
import rl
from cli import cli
from data.prepare import build_world
from data.tokenizer import Tokenizer, load_tokenizer
from model import GPT, GPTConfig, config_of, sequence_flops, train_flops
from runtime import Process, make_optimizer, optimizer_step, save_checkpoint, start_process
from sampler import sample
from tools.olmo2 import to_olmo2

PROMPT, NEW = 48, 64  # tokens of a prompt and of its answer
LOG_PROB_SHAPE = (8192, 256, 50304)  # tokens, width, vocabulary


@dataclass
class Config:
    """Flags of bench.py."""

    parts: tyro.conf.Positional[tuple[Literal["train", "sample", "log_prob", "rl", "average", "kernels"], ...]] = ()
    """what to measure; nothing: all"""
    repeats: int = 5
    """rounds behind each figure (rl, average: at most 3)"""
    device: str = "auto"
    """cpu, cuda; auto: cuda where there is one"""


# ---------------------------------------------------------------------------------------------------------------------
# Measuring
# ---------------------------------------------------------------------------------------------------------------------


def seconds(run: Callable[[], object], process: Process) -> float:
    """Wall time of one call, with what it left running on the GPU."""
    if process.device.type == "cuda":
        torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    if process.device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def matmul_peak(process: Process) -> float:
    """FLOP/s of large square matrix products, the best of a few sizes."""
    rates = []
    for n in (1024, 1536, 2048) if process.device.type == "cpu" else (4096, 8192):
        a = torch.randn(n, n, device=process.device, dtype=process.dtype)
        out = torch.empty_like(a)
        rates += [2 * n**3 / seconds(lambda: torch.mm(a, a, out=out), process) for _ in range(3)]  # noqa: B023
    return max(rates)


@dataclass
class Rounds:
    """What was measured in each round, (repeats,) each."""

    seconds: dict[str, np.ndarray]
    peak: np.ndarray  # FLOP/s

    def time(self, name: str) -> float:
        return float(np.median(self.seconds[name]))

    def share(self, name: str, flops: float) -> float:
        return float(np.median(flops / self.seconds[name] / self.peak))

    def ratio(self, slow: str, fast: str) -> float:
        return float(np.median(self.seconds[slow] / self.seconds[fast]))


def measure(runs: dict[str, Callable[[], object]], process: Process, repeats: int) -> Rounds:
    """Time all `runs` in rounds, every other one in reverse order, after a warm-up."""
    for run in runs.values():
        run()
    times, peak = {name: [] for name in runs}, []
    for i in range(repeats):
        peak.append(matmul_peak(process))
        for name in list(runs)[:: 1 - 2 * (i % 2)]:
            time.sleep(0.02)  # threads of the one before spin for some milliseconds
            times[name].append(seconds(runs[name], process))
    return Rounds({name: np.array(t) for name, t in times.items()}, np.array(peak))


def row(*cells: str) -> None:
    """One line of the table."""
    widths = (9, 32, 18, 24, 26, 8, 0)
    print("  ".join(f"{cell:<{width}}" for cell, width in zip(cells, widths, strict=True)).rstrip(), flush=True)


def of_peak(share: float, rounds: Rounds) -> str:
    return f"{100 * share:.0f}% of {np.median(rounds.peak) / 1e9:,.0f} GFLOP/s"


# ---------------------------------------------------------------------------------------------------------------------
# Peers
# ---------------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def peer(body: Callable, process: Process, *args):
    """Run body(connection, process, *args) in a process of its own; yields our end of the connection."""
    spawn = multiprocessing.get_context("spawn")
    ours, theirs = spawn.Pipe()
    child = spawn.Process(target=body, args=(theirs, process, *args), daemon=True)
    child.start()
    theirs.close()  # so that a child that dies ends a recv()
    try:
        yield ours
    finally:
        child.terminate()
        child.join()
        ours.close()


def have(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def served(connection) -> Callable[[], object]:
    """One step of a peer that is in serve()."""

    def run():
        connection.send(None)
        connection.recv()

    return run


def serve(connection, process: Process, build: Callable, *args) -> None:
    """Body of a peer: build a step, then make one whenever asked."""
    step = build(process, *args)
    while True:
        connection.recv()
        seconds(step, process)  # waits for the GPU
        connection.send(None)


def olmo2(config: GPTConfig, process: Process):
    """transformers' model with the weights of GPT(config).init_weights(0)."""
    from transformers import Olmo2Config, Olmo2ForCausalLM

    c = config
    theirs = Olmo2ForCausalLM(
        Olmo2Config(
            vocab_size=c.vocab_size, hidden_size=c.d_model, intermediate_size=c.d_ff, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, max_position_embeddings=c.context,
            rms_norm_eps=c.norm_eps, rope_parameters={"rope_type": "default", "rope_theta": c.rope_theta},
            bos_token_id=None, eos_token_id=None, pad_token_id=0,
        )
    )  # fmt: skip
    theirs.load_state_dict(to_olmo2(GPT(config).init_weights(0).state_dict(), config))
    return theirs.to(process.device)


# ---------------------------------------------------------------------------------------------------------------------
# The parts
# ---------------------------------------------------------------------------------------------------------------------


def training_step(model: GPT, rows: int, length: int, process: Process) -> Callable[[], object]:
    """A step of pretrain.py on random tokens, in its micro-batches, compiled as a long run is."""
    optimizer = make_optimizer(model, 1e-4, 0.1, (0.9, 0.95))
    batch = torch.randint(model.config.vocab_size, (rows, length + 1), device=process.device)
    flags = SimpleNamespace(batch=rows, seq_len=length)
    flags.compile, flags.steps, flags.doc_mask, flags.z_loss = "auto", 10_000, False, 1e-5
    trained = pretrain.compiled(model, flags, process)

    def step():
        pretrain.loss_and_backward(trained, batch, -1, flags, process, rows * length)
        optimizer_step(model, optimizer, process, 1e-4, 1.0)

    return step


def transformers_step(process: Process, config: GPTConfig, rows: int, length: int) -> Callable[[], object]:
    """The same by transformers' model and its own loss, with the same AdamW."""
    theirs = olmo2(config, process)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch = torch.randint(config.vocab_size, (rows, length), device=process.device)

    def step():
        with process.autocast():
            loss = theirs(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def bench_train(process: Process, repeats: int) -> None:
    """Forward, backward and optimizer; N in 6N counts the matrices that multiply every token."""
    vocab = load_tokenizer("world").padded_vocab_size
    wide = config_of("small", vocab, n_layers=2)
    cases = [
        ("micro", config_of("micro", vocab), 4, 256, "≥ 55%"),
        ("micro", config_of("micro", vocab), 32, 128, "≥ 55%, ≥ 1.4 x"),
        (f"d_model {wide.d_model}, {wide.n_layers} layers", wide, 4, 256, "≥ 75%"),
    ]
    for name, config, rows, length, aim in cases:
        model = GPT(config).init_weights(0).to(process.device)
        with contextlib.ExitStack() as stack:
            runs = {"ours": training_step(model, rows, length, process)}
            if have("transformers"):
                arguments = (transformers_step, config, rows, length)
                runs["peer"] = served(stack.enter_context(peer(serve, process, *arguments)))
            rounds = measure(runs, process, repeats)
        speed = {name: rows * length / rounds.time(name) for name in runs}
        row(
            "train",
            f"{name}, {rows} x {length}",
            f"{speed['ours']:,.0f} tokens/s",
            of_peak(rounds.share("ours", rows * length * train_flops(config, length)), rounds),
            f"transformers {speed['peer']:,.0f}" if "peer" in runs else "",
            f"{rounds.ratio('peer', 'ours'):.2f} x" if "peer" in runs else "",
            aim,
        )


def sampling_step(model: GPT, prompts: list[list[int]], n: int, process: Process) -> Callable[[], object]:
    """What rl.py and eval.py call, with no stop token."""

    def step():
        with process.autocast():
            sample(model, prompts, n, stop=-1, max_new_tokens=NEW)

    return step


def generate_step(process: Process, config: GPTConfig, prompts: list[list[int]], n: int) -> Callable[[], object]:
    """transformers' generate, which prefills every row: that n rows have the same prompt is nothing to it."""
    theirs = olmo2(config, process).to(process.dtype)
    tokens = torch.tensor(prompts, device=process.device).repeat_interleave(n, 0)
    flags = {"do_sample": True, "top_k": 0, "max_new_tokens": NEW, "attention_mask": torch.ones_like(tokens)}

    def step():
        assert theirs.generate(tokens, **flags).shape[1] == PROMPT + NEW

    return step


def bench_sample(process: Process, repeats: int) -> None:
    """No row stops early."""
    config = config_of("micro", load_tokenizer("world").padded_vocab_size)
    model = GPT(config).init_weights(0).to(process.device)
    n_prompts, n = 32, 16
    prompts = np.random.default_rng(0).integers(1, config.vocab_size, (n_prompts, PROMPT)).tolist()
    with contextlib.ExitStack() as stack:
        runs = {"ours": sampling_step(model, prompts, n, process)}
        if have("transformers"):
            runs["peer"] = served(stack.enter_context(peer(serve, process, generate_step, config, prompts, n)))
        rounds = measure(runs, process, repeats)
    speed = {name: n_prompts * n * NEW / rounds.time(name) for name in runs}
    row(
        "sample",
        f"micro, {n_prompts} x {n} rows, {PROMPT} + {NEW}",
        f"{speed['ours']:,.0f} tokens/s",
        of_peak(rounds.share("ours", n_prompts * sequence_flops(config, PROMPT, NEW, n)), rounds),
        f"generate {speed['peer']:,.0f}" if "peer" in runs else "",
        f"{rounds.ratio('peer', 'ours'):.1f} x" if "peer" in runs else "",
        "≥ 40%, ≥ 5 x",
    )


def log_prob_step(which: str, process: Process) -> Callable[[], object]:
    """Forward and backward of the log-probs of targets, from hidden states and the output head."""
    n, width, vocab = LOG_PROB_SHAPE
    hidden = torch.randn(n, width, device=process.device, requires_grad=True)
    # logits of a model's size: larger ones have probabilities below 1e-38, which some CPUs multiply a hundred times slower
    weight = torch.randn(vocab, width, device=process.device).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocab, (n,), device=process.device)

    def step():
        with process.autocast():
            if which == "ours":
                log_prob = kernels.linear_log_prob(hidden, weight, targets).log_prob
            else:
                log_prob = F.log_softmax(hidden @ weight.T, -1).gather(1, targets[:, None])
        torch.autograd.grad(log_prob.sum(), (hidden, weight))

    return step


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


def log_prob_memory(which: str, device: str) -> float:
    """MiB that one step needs at its peak, beyond its inputs. To be called in a process of its own."""
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

    def memory(which: str) -> float:
        call = f"import bench; print(bench.log_prob_memory({which!r}, {process.device.type!r}))"
        command = [sys.executable, "-c", call]
        result = subprocess.run(
            command, stdout=subprocess.PIPE, text=True, check=True, cwd=Path(__file__).parent.parent
        )
        return float(result.stdout)

    shape = " x ".join(map(str, LOG_PROB_SHAPE))
    mib = {which: memory(which) for which in ("ours", "peer")}
    row(
        "log_prob",
        f"{shape}, memory",
        f"{mib['ours']:,.0f} MiB",
        "",
        f"log_softmax {mib['peer']:,.0f}",
        f"{mib['peer'] / mib['ours']:.0f} x",
        "≥ 20 x",
    )
    rounds = measure({which: log_prob_step(which, process) for which in mib}, process, repeats)
    row(
        "log_prob",
        f"{shape}, time",
        f"{1e3 * rounds.time('ours'):,.1f} ms",
        "",
        f"log_softmax {1e3 * rounds.time('peer'):,.1f}",
        f"{rounds.ratio('peer', 'ours'):.2f} x",
        "≥ 1.25 x",
    )


def grpo_step(model: GPT, tokenizer: Tokenizer, n_prompts: int, n: int, process: Process) -> Callable[[], object]:
    """A step of rl.py: sample, verify, advantages, one update. No answer stops early, and a coin decides on its reward,
    since a new model is never right: every group carries signal and all tokens are trained on."""
    unstopped = dataclasses.replace(tokenizer, eos=-1)
    rng = np.random.default_rng(0)
    digits = PROMPT - 2  # the instruction and a newline are the other two tokens
    questions = [
        {"id": str(i), "question": "".join(map(str, rng.integers(10, size=digits))), "answer": "1"}
        for i in range(n_prompts)
    ]
    flags = rl.GRPOConfig(prompts=n_prompts, rollouts=n, max_new_tokens=NEW)
    grpo = rl.GRPO(flags, questions, unstopped, process, 0, model.config.context)
    assert {len(prompt) for _, prompt in grpo.questions} == {PROMPT}
    optimizer = make_optimizer(model, 1e-6, 0.01, (0.9, 0.999))
    run = SimpleNamespace(model=model, process=process, config=SimpleNamespace(clip=1.0), skip=lambda *_: None)
    verify = rl.reward_of

    def coin(*args):
        verify(*args)
        return float(rng.integers(2)), False

    def step():
        with mock.patch.object(rl, "reward_of", coin):
            rl.grpo_step(run, grpo, optimizer, lambda *_: None, 1e-6)

    return step


def bench_rl(process: Process, repeats: int) -> None:
    """A GRPO step against what its tokens cost in sampling and, in rows of their own with their prompts, in pretraining;
    and against TRL's GRPOTrainer. The same prompts, answers, lengths and one update for both."""
    repeats = min(repeats, 3)
    tokenizer = load_tokenizer("world")
    model = GPT(config_of("micro", tokenizer.padded_vocab_size)).init_weights(0).to(process.device)
    n_prompts, n = 64, 16
    prompts = np.random.default_rng(0).integers(1, model.config.vocab_size, (n_prompts, PROMPT)).tolist()
    ours = grpo_step(model, tokenizer, n_prompts, n, process)
    rows, length = 8, 256
    sampling, training = sampling_step(model, prompts, n, process), training_step(model, rows, length, process)
    rounds = measure({"ours": ours, "sampling": sampling, "training": training}, process, repeats)
    tokens = n_prompts * n * (PROMPT + NEW)
    rounds.seconds["parts"] = rounds.seconds["sampling"] + rounds.seconds["training"] * tokens / (rows * length)
    case = f"micro, {n_prompts} x {n} answers, {PROMPT} + {NEW}"
    row(
        "rl",
        case,
        f"{rounds.time('ours'):.2f} s a step",
        "",
        f"sample + pretrain {rounds.time('parts'):.2f}",
        f"{rounds.ratio('parts', 'ours'):.2f} x",
        "≥ 0.77 x",
    )
    if have("trl"):
        times = {"ours": [], "peer": []}
        with peer(trl_loop, process, model.config, n_prompts, n, repeats + 1) as connection:
            for _ in range(repeats + 1):
                connection.recv()  # TRL is about to begin a step
                times["ours"].append(seconds(ours, process))
                connection.send(None)
                times["peer"].append(connection.recv())
        rounds = Rounds({name: np.array(t[1:]) for name, t in times.items()}, rounds.peak)
        row(
            "rl",
            case,
            f"{rounds.time('ours'):.2f} s a step",
            "",
            f"TRL {rounds.time('peer'):.2f}",
            f"{rounds.ratio('peer', 'ours'):.1f} x",
            "≥ 2.5 x",
        )


def trl_loop(connection, process: Process, config: GPTConfig, n_prompts: int, n: int, steps: int) -> None:
    """Body of a peer: TRL's GRPOTrainer at the same work. Says when it is about to begin a step, waits for a word, makes
    the step, sends its seconds."""
    warnings.simplefilter("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from datasets import Dataset
    from tokenizers import Tokenizer as Words
    from tokenizers import models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = Words(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2", unk_token="w1")
    rng = np.random.default_rng(0)
    prompts = [" ".join(f"w{i}" for i in rng.integers(3, config.vocab_size, PROMPT)) for _ in range(n_prompts)]

    class Timer(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            connection.send(None)
            connection.recv()
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            if process.device.type == "cuda":
                torch.cuda.synchronize()
            connection.send(time.perf_counter() - self.start)

    micro_batch = 64 if process.device.type == "cpu" else 256  # answers in a backward pass
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(None):
        flags = GRPOConfig(
            output_dir=folder, max_steps=steps, per_device_train_batch_size=micro_batch,
            gradient_accumulation_steps=n_prompts * n // micro_batch, num_generations=n, max_completion_length=NEW,
            generation_kwargs={"min_new_tokens": NEW}, top_k=0, temperature=1.0, beta=0.0, learning_rate=1e-6,
            gradient_checkpointing=False, bf16=process.dtype == torch.bfloat16, use_cpu=process.device.type == "cpu",
            logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
        )  # fmt: skip
        GRPOTrainer(
            model=olmo2(config, process),
            reward_funcs=lambda completions, **_: rng.integers(2, size=len(completions)).astype(float).tolist(),
            args=flags,
            train_dataset=Dataset.from_dict({"prompt": prompts}),
            processing_class=tokenizer,
            callbacks=[Timer()],
        ).train()


def run_stage(stage: str, flags: dict) -> float:
    """One run of a stage with these flags; the most MiB that its process held. To be called in a process of its own."""
    module = importlib.import_module(stage)
    module.main(module.Config(**flags))
    cuda = flags["device"] == "cuda"
    return torch.cuda.max_memory_allocated() / 2**20 if cuda else resident("VmHWM")


def bench_average(process: Process, repeats: int) -> None:
    """average.py --mode parallel against rl.py and sft.py, each as a user runs it: memory at a model of 190m's shape, on
    small batches (SFT's has fewer tokens than RL's, so that its activations add nothing); time of a step at micro."""
    tokenizer = load_tokenizer("world")
    with tempfile.TemporaryDirectory() as folder:
        build_world(f"{folder}/data")

        def run(stage: str, scale: str, name: str, **flags) -> tuple[float, list[dict]]:
            flags |= {"init": f"{folder}/{scale}.pt", "data": f"{folder}/data", "out": f"{folder}/{name}"}
            flags |= {"device": process.device.type, "eval_every": 0, "show": 0}
            call = f"import bench; print(bench.run_stage({stage!r}, {flags!r}))"
            command = [sys.executable, "-c", call]
            result = subprocess.run(
                command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent.parent
            )
            metrics = (Path(flags["out"]) / "metrics.jsonl").read_text().splitlines()
            shutil.rmtree(flags["out"])  # last.pt holds 12 or 20 bytes a parameter
            return float(result.stdout.split()[-1]), [json.loads(line) for line in metrics]

        parameters = {}
        for scale in ("190m", "micro"):
            model = GPT(config_of(scale, tokenizer.padded_vocab_size)).init_weights(0)
            parameters[scale] = model.n_params
            start = {"format": 1, "stage": "pretrain", "config": dataclasses.asdict(model.config), "tokenizer": "world"}
            start |= {"model": model.state_dict(), "step": 0, "tokens": 0, "flops": 0.0, "lineage": [], "args": {}}
            save_checkpoint(Path(folder) / f"{scale}.pt", start)
            del model
        small = {
            "steps": 2,
            "prompts": 2,
            "n": 4,
            "max_new_tokens": 64,
            "kl": 0.0,
            "entropy": 1e-9,
        }
        held = {
            stage: run(stage, "190m", "memory", **small, **({"rows": 2} if stage == "average" else {}))[0]
            for stage in ("rl", "average")
        }
        extra = (held["average"] - held["rl"]) * 2**20 / parameters["190m"]
        row(
            "average",
            f"190m, {parameters['190m'] / 1e6:.0f} M parameters, memory",
            f"{held['average']:,.0f} MiB",
            "",
            f"rl.py {held['rl']:,.0f}",
            f"{extra:+.1f} B/p",
            "≤ +16 bytes per parameter",
        )
        work = {"rl": {"entropy": 1e-9}, "sft": {}}
        work["average"] = work["rl"]
        times = {stage: [] for stage in work}
        for _ in range(min(repeats, 3)):
            for stage, flags in work.items():
                lines = run(stage, "micro", "time", steps=4, **flags)[1]
                times[stage].append(np.median([line["seconds"] for line in lines[1:]]))
        time = {stage: float(np.median(t)) for stage, t in times.items()}
        row(
            "average",
            "micro, 16 x 16 answers and 32 rows",
            f"{time['average']:.2f} s a step",
            "",
            f"rl.py + sft.py {time['rl'] + time['sft']:.2f}",
            f"{(time['rl'] + time['sft']) / time['average']:.2f} x",
            "≥ 0.91 x",
        )


# ---------------------------------------------------------------------------------------------------------------------
# The Triton kernels, at OLMo2-1B's shapes
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
    """The summed negative log-prob of targets from hidden (N, C), weight (V, C). Ours takes weights in fp32, as they are
    in training; the others take what autocast would give them."""
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

    def show(case: str, runs: dict[str, Callable], flops: float, aim: str) -> None:
        rounds = measure(runs, process, repeats)
        rate = {name: flops / rounds.time(name) / 1e12 for name in runs}
        peers = {name: rate[name] for name in runs if name != "ours"}
        best = max(peers, key=peers.get)
        others = ", ".join(f"{name} {value:,.0f}" for name, value in peers.items())
        ours = f"{rate['ours']:,.0f} TFLOP/s"
        row("kernels", case, ours, of_peak(rounds.share("ours", flops), rounds), others,
            f"{rounds.ratio(best, 'ours'):.2f} x", aim)  # fmt: skip

    q, k, v = (torch.randn(4, 4096, 16, 128, **new).requires_grad_() for _ in range(3))
    flops = 2 * 4 * 16 * 4096**2 * 128  # of two products over half of T x T
    attends = attention_runs(process)
    show("attention 4x4096x16x128, forward", {n: lambda f=f: f(q.detach(), k.detach(), v.detach())
                                   for n, f in attends.items()}, flops, "≥ 65%")  # fmt: skip
    outs = {name: attend(q, k, v) for name, attend in attends.items()}
    up = torch.randn_like(outs["ours"])
    backward = {n: lambda o=o: torch.autograd.grad(o, (q, k, v), up, retain_graph=True) for n, o in outs.items()}
    show("the same, backward", backward, 2.5 * flops, "≥ 45%")
    del outs, backward
    n, width, vocab = 16384, 2048, 100352
    hidden = torch.randn(n, width, **new).requires_grad_()
    weight = torch.randn(vocab, width, device=process.device).mul_(width**-0.5).requires_grad_()
    targets = torch.randint(vocab, (n,), device=process.device)
    losses = log_prob_runs()
    steps = {
        m: lambda f=f: torch.autograd.grad(f(hidden, weight, targets), (hidden, weight)) for m, f in losses.items()
    }
    show(f"log-prob {n}x{width}x{vocab}", steps, 4 * 2.0 * n * width * vocab, "≥ 75%")  # with the logits twice
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
    process = start_process(config.device)
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
