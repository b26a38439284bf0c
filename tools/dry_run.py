"""What a training stage would take, before it runs: memory per GPU by part, what fits, FLOPs, days, disk. Nothing is allocated.

    python -m tools.dry_run pretrain.py --scale olmo2-1b --gpus 8
    python -m tools.dry_run rl.py --preset paper --init_scale olmo2-1b --gpus 8 --kv_gib 48
    python -m tools.dry_run average.py --preset paper --init_scale 4b
    python -m tools.dry_run tables               # those of docs/gpu.md

After the stage come the stage's own flags, and those of `Dry` below. No data and no checkpoint is read.

Activations are counted, not estimated: the stage's own `backward` runs one micro-batch on fake tensors, which have shapes
and no memory, and what autograd saves is added up (`saved_bytes`). It runs with one block and with two; all blocks are
equal. tests/test_dry_run.py holds the count against real runs on a CPU. Keys and values are those of the sampler's own Slots, on
fake tensors too. The log-prob workspace is computed from the code, temporaries of a backward pass are estimated. torch.compile is left out: it
saves less. GB are 10⁹ bytes. No figure of this program has been compared with a GPU yet.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple
from unittest import mock

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks

import kernels
import pretrain
import rl
import sampler
import sft
from average import is_rl_step
from cli import UserError, apply_preset, cli
from data.tokenizer import load_tokenizer
from model import GPT, SCALES, GPTConfig, RMSNorm, answers_flops, config_of, forward_flops, train_flops
from process import Process

GB = 1e9
CONTEXT = 2.0  # GB that the CUDA context, NCCL and what does not fit together are taken to need
CL100K = 100352  # padded size of the paper's vocabulary
STAGES = ("pretrain", "sft", "rl", "average")


@dataclass
class Dry:
    """Dry run: the machine, and what a checkpoint and data would say"""

    gpus: int = 8  # ranks, one for each GPU
    gb: float = 80.0  # memory of one, in 10⁹ bytes
    tflops: float = 989.0  # peak of one in bf16 (H100: 989, A100: 312, RTX 4090: 165)
    mfu: float = 0.4  # share of that peak that training reaches
    init_scale: str = "olmo2-1b"  # stages after pretraining: the scale of the model behind --init
    vocab: int = 0  # words, padded; 0: the world's tokenizer up to `small`, cl100k from 190m on
    prompt_tokens: int = 120  # mean length of a prompt
    answer_tokens: int = 300  # mean length of an answer or a solution
    items: int = 0  # questions (sft.py: rows) of the data, where --steps counts passes such as 10e
    RANGES: ClassVar = {
        **dict.fromkeys(("gpus", "prompt_tokens", "answer_tokens"), "[1, 1e6]"),
        **{"mfu": "[0.001, 1]", "tflops": "[0.001, 1e6]"},
    }


# ---------------------------------------------------------------------------------------------------------------------
# Activations, counted
# ---------------------------------------------------------------------------------------------------------------------


def saved_bytes(model: GPT, backward: Callable[[], object]) -> int:
    """Bytes that autograd saves for the backward pass while `backward` runs, beside the model's weights and tables."""
    own = {x.untyped_storage()._cdata for x in (*model.parameters(), *model.buffers())}
    storages = {}  # views share one. They are held here, so that no number is given twice

    def pack(x):
        storage = x.untyped_storage()
        storages[storage._cdata] = storage
        return x

    with saved_tensors_hooks(pack, lambda x: x):
        backward()
    return sum(storage.nbytes() for number, storage in storages.items() if number not in own)


class FusedNorm(torch.autograd.Function):
    """What PyTorch's fused CUDA kernel of F.rms_norm saves: x, the factor of each row, the gain. A CPU's operations save more."""

    @staticmethod
    def forward(ctx, x, gain):
        ctx.save_for_backward(x, x.new_empty(*x.shape[:-1], 1), gain)
        return torch.empty_like(x)


def norm_on_cuda(norm: RMSNorm, x: torch.Tensor) -> torch.Tensor:
    """RMSNorm.forward on CUDA, whose autocast norms in fp32: with bf16 it saves an fp32 copy of x."""
    gain = norm.weight.to(x.dtype)
    if torch.is_autocast_enabled("cpu"):
        x, gain = x.float(), gain.float()
    return FusedNorm.apply(x, gain)


@contextlib.contextmanager
def fakes(gpu: bool):
    """Tensors without memory. backward() does nothing.

    gpu: operations are those of a GPU, though the tensors say that they are on the CPU: of CUDA, even of fake tensors, autograd
    makes nothing in a PyTorch without CUDA. Triton's kernels are operators: of fake tensors they are not launched.
    """
    patches = [mock.patch.object(torch.Tensor, "backward", lambda *_: None)]
    patches += [mock.patch.object(torch.Tensor, "item", lambda _: 1.0)]
    if gpu:
        if importlib.util.find_spec("triton") is None:
            raise UserError("counting for a GPU needs triton, whose kernels say what they save: pip install triton")
        patches += [
            mock.patch.object(kernels, "on_triton", lambda _: True),
            mock.patch.object(RMSNorm, "forward", norm_on_cuda),
        ]
    with contextlib.ExitStack() as stack:
        for patch in (*patches, FakeTensorMode(allow_non_fake_inputs=True)):
            stack.enter_context(patch)
        yield


def fake_gpt(config: GPTConfig, blocks: torch.dtype = torch.float32) -> GPT:
    """A model of fake tensors, those of its blocks of type `blocks`; to be called under `fakes`."""
    with torch.device("meta"):
        model = GPT(config)
    in_blocks = set(model.blocks.modules())
    for module in model.modules():
        dtype = blocks if module in in_blocks else torch.float32
        for name, p in module._parameters.items():
            module._parameters[name] = p if p is None else torch.nn.Parameter(torch.empty(p.shape, dtype=dtype))
        for name, x in module._buffers.items():
            module._buffers[name] = torch.empty(x.shape)
    return model


def activations(
    stage: str, config, c: GPTConfig, process: Process, items: int, n: int, prompt: int, answer: int
) -> int:
    """Bytes that the backward pass of one micro-batch of a stage needs.

    Args:
        stage: pretrain (`items` rows of --seq_len), sft or rl (`items` questions with n answers each; `prompt`, `answer`:
            their lengths in tokens). config: the stage's flags.
    """
    flags = {f.name: getattr(config, f.name) for f in fields(config) if f.name not in Dry.__dataclass_fields__}
    asked = repr((stage, flags, c, process.device, process.dtype, items, n, prompt, answer))
    if asked not in _counted:
        _counted[asked] = count_activations(stage, config, c, process, items, n, prompt, answer)
    return _counted[asked]


_counted: dict[str, int] = {}  # what `activations` was asked → its answer, which takes seconds


def count_activations(
    stage: str, config, c: GPTConfig, process: Process, items: int, n: int, prompt: int, answer: int
) -> int:
    """`activations`, counted anew."""
    on_cpu = replace(process, device=torch.device("cpu"))

    def count(recompute: str) -> tuple[int, int]:  # bytes with one block, and of a further block
        counted = []
        for layers in (1, 2):
            with fakes(process.device.type == "cuda"):
                model = fake_gpt(replace(c, n_layers=layers), process.dtype if config.shard else torch.float32)
                for block in model.blocks:
                    block.recompute = recompute
                args = stage, config, model, on_cpu, items, n, prompt, answer
                counted.append(saved_bytes(model, lambda args=args: run_backward(*args)))
        return counted[0], counted[1] - counted[0]

    one, further = count(config.recompute)
    # What is computed again is there for one block at a time
    again = count("none")[1] - further if config.recompute != "none" else 0
    if config.recompute == "attention":
        again = max(0, again - further)  # when the other half of the block has been freed
    elif config.recompute == "block" and process.dtype != torch.float32:
        again = max(
            again, product_bytes(c, process, config.shard)
        )  # or, as forward ends, the copies of weights that autocast has made
    return one + (c.n_layers - 1) * further + again


def run_backward(
    stage: str, config, model: GPT, process: Process, items: int, n: int, prompt: int, answer: int
) -> None:
    """The stage's own loss and backward for a micro-batch of the given size, on whatever tensors the model has."""
    if stage == "pretrain":
        batch = torch.zeros(items, config.seq_len + 1, dtype=torch.long, device=process.device)
        pretrain.loss_and_backward(model, batch, 0, config, process, batch.numel())
    elif stage == "sft":
        side = object.__new__(sft.SFT)  # without data
        side.config, side.process = config, process
        # Prompts that differ, as those of different questions do
        rows = [([i + 1] * prompt, [1] * answer) for i in range(items) for _ in range(n)]
        side.backward(model, rows)
    else:
        side = object.__new__(rl.GRPO)
        side.config, side.process, side.max_new_tokens = config, process, answer
        side.reference = model if config.kl else None  # what it saves is nothing, so any model will do
        old = np.zeros(answer, np.float32)
        groups = [
            [rl.Answer({}, [1] * prompt, [1] * answer, "", old, True, True, 0.0, False, (-1.0) ** j) for j in range(n)]
            for _ in range(items)
        ]
        side.backward(model, groups, on_policy=len(side.minibatches(groups)) == 1)


def micro_batch(stage: str, config, dry: Dry, micro_tokens: int) -> tuple[int, int, int]:
    """(questions or rows, answers of each, tokens) of a rank's largest micro-batch, as the stage would make it."""
    if stage == "pretrain":
        rows = min(max(1, micro_tokens // config.seq_len), math.ceil(config.batch / dry.gpus))
        return rows, 1, rows * config.seq_len
    n, per_step = (config.rollouts, config.minibatch or config.prompts) if stage == "rl" else (1, config.rows)
    size = dry.prompt_tokens + n * dry.answer_tokens
    if size > micro_tokens:  # a question is divided
        n, items = max(1, (micro_tokens - dry.prompt_tokens) // dry.answer_tokens), 1
    else:
        items = min(micro_tokens // size, math.ceil(per_step / dry.gpus))
    return items, n, items * (dry.prompt_tokens + n * dry.answer_tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Memory by part
# ---------------------------------------------------------------------------------------------------------------------


def log_prob_bytes(c: GPTConfig, tokens: int, process: Process) -> int:
    """What kernels.linear_log_prob allocates in its backward pass: gradients of its inputs, and one chunk of logits."""
    gradients = 4 * c.vocab_size * c.d_model + 4 * tokens * c.d_model
    if process.device.type == "cuda":
        from kernels.triton_log_prob import VOCAB_CHUNK

        chunk = min(c.vocab_size, VOCAB_CHUNK)
        return gradients + process.dtype.itemsize * chunk * (tokens + c.d_model)
    return gradients + 4 * min(tokens, kernels.CHUNK_ROWS) * c.vocab_size


def update_bytes(stage: str, config, c: GPTConfig, process: Process, dry: Dry, micro_tokens: int) -> dict[str, float]:
    """Parts of the memory that one micro-batch needs beside weights and optimizer."""
    items, n, tokens = micro_batch(stage, config, dry, micro_tokens)
    own = replace(process, micro_tokens=max(micro_tokens, tokens))
    size = process.dtype.itemsize
    return {
        "activations": activations(stage, config, c, own, items, n, dry.prompt_tokens, dry.answer_tokens),
        "log-prob": log_prob_bytes(c, tokens, process),
        # of a block's backward pass: gradients of the three tensors of SwiGLU and of the residual stream
        "temporaries": 3 * size * tokens * c.d_ff + 8 * tokens * c.d_model,
    }


class Sampling(NamedTuple):
    """What the sampler holds while it decodes."""

    rows: int  # that decode together; 0: not even one fits
    kv: int  # bytes of keys and values
    logits: int  # bytes of the logits after prompts and of one step


def sampling(config, c: GPTConfig, process: Process, dry: Dry, gib: float) -> Sampling:
    """The sampler's own choice for `gib` GiB of keys and values: its Slots, made of fake tensors."""
    gpu, on_cpu = process.device.type == "cuda", replace(process, device=torch.device("cpu"))
    prompts = [[0] * dry.prompt_tokens] * math.ceil(config.prompts / dry.gpus)
    new = config.max_new_tokens
    with fakes(gpu), mock.patch.object(sampler, "PAGED", {"cpu"} if gpu else set()), on_cpu.autocast():
        model = fake_gpt(replace(c, n_layers=1))
        model.config = c
        try:
            slots = sampler.Slots(model, prompts, config.rollouts, 0, new, gib)
        except UserError:
            return Sampling(0, 0, 0)
        kv = sum(x.nbytes for x in vars(slots.cache).values() if isinstance(x, torch.Tensor))
        return Sampling(slots.slots, kv, slots.first_logits.nbytes + 2 * 4 * slots.slots * c.vocab_size)


def memory(
    stage: str, config, c: GPTConfig, process: Process, dry: Dry, micro_tokens: int
) -> dict[str, dict[str, float]]:
    """Phase of a step → part → bytes on one GPU.

    Weights are fp32 on every rank and are their own masters; their bf16 copies are activations in an update. With --shard
    masters and what else the optimizer needs are spread over the ranks (sharding.py).
    """
    n = 4 * parameters(c)  # bytes of the weights and of their gradients
    part = n / dry.gpus if config.shard else n  # of masters and of each moment of AdamW
    two = stage == "average" and config.mode == "parallel"  # optimizers, a snapshot and an update
    static = {"weights": n, "gradients": n, "AdamW": 4 * part if two else 2 * part}
    if config.shard:
        in_blocks = parameters(c) - 2 * c.vocab_size * c.d_model - c.d_model  # without embedding, head, last norm
        static |= {"weights": n - (4 - process.dtype.itemsize) * in_blocks, "masters": part}
    snapshot = {"snapshot": part} if two else {}
    phases = {}
    if stage in ("rl", "average"):
        copies = product_bytes(c, process, config.shard) if process.dtype != torch.float32 else 0
        reference = {"reference": reference_bytes(c, process)} if config.kl else {}
        parts = static | {"gradients": 0} | snapshot | {"copies": copies} | reference
        held = sampling(config, c, process, dry, config.kv_gib or 0.9 * max(1e-9, dry.gb - total(parts)) * GB / 2**30)
        phases["sampling"] = parts | {"KV": held.kv, "log-prob": held.logits}
        phases["RL update"] = static | snapshot | reference | update_bytes("rl", config, c, process, dry, micro_tokens)
    if stage in ("sft", "average"):
        delta = {"snapshot": 2 * part} if two else {}
        phases["SFT update"] = static | delta | update_bytes("sft", config, c, process, dry, micro_tokens)
    if stage == "pretrain":
        phases["update"] = static | update_bytes("pretrain", config, c, process, dry, micro_tokens)
    return phases


def parameters(c: GPTConfig) -> int:
    with torch.device("meta"):
        return GPT(c).n_params


def product_bytes(c: GPTConfig, process: Process, shard: bool) -> int:
    """Of the matrices that the model multiplies by, in the type of the products. Autocast casts these, and once; with --shard
    those of the blocks are of that type."""
    with torch.device("meta"):
        model = GPT(c)
        linear = [m for m in (model.head, *(() if shard else model.blocks.modules())) if isinstance(m, torch.nn.Linear)]
    return process.dtype.itemsize * sum(m.weight.numel() for m in linear)


def reference_bytes(c: GPTConfig, process: Process) -> int:
    """Of the model that --kl measures against, as rl.py keeps it."""
    with torch.device("meta"):
        return sum(p.nbytes for p in rl.kl_reference(GPT(c), process.dtype).parameters())


def total(parts: dict[str, float]) -> float:
    return sum(parts.values()) / GB + CONTEXT


GROWING = {"activations", "log-prob", "temporaries"}  # parts that --micro_tokens changes


def advice(stage: str, config, c: GPTConfig, process: Process, dry: Dry, phases: dict) -> list[str]:
    """A sentence for each phase that does not fit, with the flag that helps; and for sampling, what --kv_gib could be."""
    lines = []
    for name, parts in phases.items():
        over = total(parts) - dry.gb
        if name == "sampling":
            free = 0.9 * (dry.gb - total(parts) + parts["KV"] / GB) * GB / 2**30
            most = sampling(config, c, process, dry, max(free, 1e-9))
            shape = f"{dry.prompt_tokens} + up to {config.max_new_tokens} tokens"
            if not most.rows:
                helps = LARGER if config.shard or dry.gpus == 1 else "--shard makes room"
                lines.append(f"sampling does not fit, no room for a row of keys and values: {helps}")
            elif over > 0:
                lines.append(f"sampling does not fit: --kv_gib {free:.2g} does, {most.rows} rows of {shape}")
            else:
                held = sampling(config, c, process, dry, config.kv_gib or free)
                more = f"; --kv_gib {free:.0f} holds {most.rows}" if most.rows > held.rows else ""
                lines.append(f"sampling: --kv_gib {config.kv_gib:g} holds {held.rows} rows of {shape}{more}")
        elif over > 0:
            lines.append(
                f"{name} does not fit, {over:.1f} GB too much: " + smaller(stage, name, config, c, process, dry, parts)
            )
    return lines


LARGER = "no flag helps: a smaller scale or a larger GPU"


def smaller(stage: str, phase: str, config, c: GPTConfig, process: Process, dry: Dry, parts: dict) -> str:
    """The flag that makes a phase fit."""
    tokens = process.micro_tokens
    least = config.seq_len if stage == "pretrain" else 512
    while tokens > least:
        tokens //= 2
        fits = memory(stage, config, c, process, dry, tokens)[phase]
        if total(fits) <= dry.gb:
            return f"--micro_tokens {tokens} fits in {total(fits):.1f} GB"
    short = replace(config, recompute="block")
    for tokens in (process.micro_tokens, least):
        fits = memory(stage, short, c, process, dry, tokens)[phase]
        if config.recompute != "block" and total(fits) <= dry.gb:
            smaller = f" and --micro_tokens {tokens} fit" if tokens < process.micro_tokens else " fits"
            return f"--recompute block{smaller} in {total(fits):.1f} GB"
    fits = memory(stage, config, c, process, dry, least)[phase]
    if total(fits) - fits.get("reference", 0) / GB <= dry.gb:
        return f"--kl 0 and --micro_tokens {least} fit: no reference model"
    spared = fits["AdamW"] / 2 + fits.get("snapshot", 0)
    if stage == "average" and config.mode == "parallel" and total(fits) - spared / GB <= dry.gb:
        return f"--mode combined and --micro_tokens {least} fit: one optimizer, no snapshot"
    fixed = sum(value for part, value in parts.items() if part not in GROWING) / GB
    if stage == "pretrain" and config.seq_len > 512:
        short = memory(stage, replace(config, seq_len=512), c, process, dry, 512)[phase]
        if total(short) <= dry.gb:
            return f"--seq_len 512 and --micro_tokens 512 fit in {total(short):.1f} GB"
    why = f"{fixed:.1f} GB of it are weights, gradients and optimizer"
    if dry.gpus > 1 and not config.shard:
        spread = memory(stage, replace(config, shard=True), c, process, dry, least)[phase]
        if total(spread) <= dry.gb:
            return f"{why}: --shard and --micro_tokens {least} fit in {total(spread):.1f} GB"
    return f"{why}: {LARGER}"


# ---------------------------------------------------------------------------------------------------------------------
# Work and disk
# ---------------------------------------------------------------------------------------------------------------------


def work(stage: str, config, c: GPTConfig, dry: Dry, steps: int) -> dict[str, float]:
    """Of the whole run, over all ranks: "trained" and "sampled" tokens; FLOPs of training and of "sampling"."""
    if stage == "pretrain":
        tokens = steps * config.tokens_per_step
        return {"trained": tokens, "sampled": 0, "FLOPs": tokens * train_flops(c, config.seq_len), "sampling": 0}
    prompt, answer = dry.prompt_tokens, dry.answer_tokens
    rl_steps, sft_steps = (steps if stage != "sft" else 0), (steps if stage != "rl" else 0)
    if stage == "average" and config.mode in ("interleaved", "curriculum"):
        rl_steps = sum(is_rl_step(config, i) for i in range(steps))
        sft_steps = steps - rl_steps
    done = dict.fromkeys(("trained", "sampled", "FLOPs", "sampling"), 0.0)
    if rl_steps:
        once = config.prompts * answers_flops(c, [(prompt, [answer] * config.rollouts)])
        several = config.inner_epochs > 1 or config.minibatch not in (0, config.prompts)
        passes = config.inner_epochs * (3 + bool(config.kl)) + several  # several updates: a forward pass for p_old
        done["trained"] += rl_steps * config.inner_epochs * config.prompts * (prompt + config.rollouts * answer)
        done["sampled"] += rl_steps * config.prompts * config.rollouts * answer
        done["FLOPs"] += rl_steps * passes * once
        done["sampling"] += rl_steps * once
    if sft_steps:
        done["trained"] += sft_steps * config.rows * (prompt + answer)
        done["FLOPs"] += sft_steps * config.rows * 3 * (prompt + answer) * forward_flops(c, (prompt + answer + 1) / 2)
    return done


def steps_of(stage: str, config, dry: Dry) -> tuple[int, str]:
    """Steps of the run, and how to say so; one step, where --steps counts passes over data of unknown size."""
    if stage == "pretrain":
        return config.steps, f"{config.steps:,} steps"
    if not isinstance(config.steps, int) and not dry.items:
        return 1, f"one step (--steps {config.steps}: give --items)"
    steps = config.total_steps(dry.items, config.rows if stage == "sft" else config.prompts)
    return steps, f"{steps:,} steps"


def duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600)):
        if seconds > size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds:.3g} s"


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


def config_class(stage: str) -> type:
    """The flags of a stage and of `Dry` together."""

    @dataclass
    class Config(importlib.import_module(stage).Config, Dry):
        """A stage's flags, and those of a dry run"""

    return Config


def presets_of(stage: str) -> dict[str, dict]:
    return {} if stage == "pretrain" else importlib.import_module(stage).PRESETS


def checked(stage: str, config) -> tuple[str, GPTConfig, Process]:
    """The scale, its model, and what the process of a rank would be, from flags that are made complete. UserError for flags
    that the stage refuses."""
    if getattr(config, "mode", "") == "soup":
        raise UserError("--mode soup trains nothing")
    if stage != "pretrain":
        config.init = config.init or config.init_scale  # no checkpoint is read
    with mock.patch.dict(os.environ, WORLD_SIZE=str(config.gpus)):  # --shard asks whether there are several ranks
        config.check()
    scale = config.scale if stage == "pretrain" else config.init_scale
    if scale not in SCALES:
        raise UserError(f"--init_scale {scale}: {', '.join(SCALES)} are known")
    large = SCALES[scale]["d_model"] > SCALES["small"]["d_model"]
    c = config_of(scale, config.vocab or (CL100K if large else load_tokenizer("world").padded_vocab_size))
    if stage in ("rl", "average"):
        config.max_new_tokens = config.max_new_tokens or (512 if c.vocab_size == CL100K else 64)  # default_new_tokens
        if config.prompt_tokens + config.max_new_tokens > c.context:
            raise UserError(f"{scale} has a context of {c.context}: --prompt_tokens {config.prompt_tokens} and --max_new_tokens "
                            f"{config.max_new_tokens} exceed it")  # fmt: skip
    gpu = config.device != "cpu"
    dtype = torch.bfloat16 if config.dtype == "bf16" or (config.dtype == "auto" and gpu) else torch.float32
    micro_tokens = config.micro_tokens or (16384 if gpu else 2048)
    return scale, c, Process(0, 1, torch.device("cuda:0" if gpu else "cpu"), dtype, micro_tokens=micro_tokens)


def run_lines(stage: str, config, c: GPTConfig) -> list[str]:
    """Of the whole run: its tokens, its FLOPs and time, its disk."""
    steps, said = steps_of(stage, config, config)
    done = work(stage, config, c, config, steps)
    seconds = done["FLOPs"] / (config.gpus * config.tflops * 1e12 * config.mfu)
    again = {"none": "", "attention": " and a tenth for --recompute", "block": " and a third for --recompute"}[
        config.recompute
    ]
    sampled = f", {done['sampled'] / 1e6:,.1f} M sampled ({done['sampling']:.1e} FLOPs)" if done["sampled"] else ""
    n = 4 * parameters(c) / GB
    last = n + (4 if stage == "average" and config.mode == "parallel" else 2) * n
    kept = len(config.kept(steps))
    return [
        f"{said}: {done['trained'] / 1e6:,.1f} M tokens trained{sampled}",
        f"training {done['FLOPs']:.1e} FLOPs: {duration(seconds)} at {config.mfu:.0%} of {config.gpus} × {config.tflops:g} TFLOP/s{again}"
        + (", beside sampling" if sampled else ""),
        f"disk {kept * n + 2 * last:.0f} GB: {kept} kept of {n:.1f}, last.pt of {last:.1f} twice while it is written",
    ]


def memory_table(rows: list[tuple[str, dict[str, float]]], gb: float) -> list[str]:
    """Phases of one machine as a table; ✗: does not fit."""
    names = list(dict.fromkeys(part for _, parts in rows for part in parts))
    lines = ["| GB per GPU | " + " | ".join(names) + " | context | total |", "|---" * (len(names) + 3) + "|"]
    for name, parts in rows:
        cells = " | ".join(f"{parts[part] / GB:.1f}" if part in parts else "" for part in names)
        lines.append(f"| {name} | {cells} | {CONTEXT:.1f} | {total(parts):.1f}{'' if total(parts) <= gb else ' ✗'} |")
    return lines


def report(stage: str, config) -> str:
    """The page that the program prints, from the flags of a stage and of `Dry`."""
    scale, c, process = checked(stage, config)
    phases = memory(stage, config, c, process, config, process.micro_tokens)
    lines = [
        f"{stage}.py, {scale}: {parameters(c) / 1e6:,.0f} M parameters; {config.gpus} × {config.gb:g} GB, "
        f"{str(process.dtype).removeprefix('torch.')}, --micro_tokens {process.micro_tokens}",
        "",
        *memory_table(list(phases.items()), config.gb),
        "",
        *(advice(stage, config, c, process, config, phases) or ["everything fits"]),
    ]
    for of in {"average": ("rl", "sft")}.get(stage, (stage,)):
        items, n, tokens = micro_batch(of, config, config, process.micro_tokens)
        lines.append(f"a micro-batch of {of}: {items * n} {'answers' if of == 'rl' else 'rows'}, {tokens} tokens")
    return "\n".join(lines + run_lines(stage, config, c))


MACHINES = ((8, 80.0, 989.0, ("olmo2-1b", "4b")), (1, 24.0, 165.0, ("190m", "olmo2-1b")))  # of docs/gpu.md


def tables() -> str:
    """The tables of docs/gpu.md: every stage with the paper's settings on two machines."""
    lines = []
    for gpus, gb, tflops, scales in MACHINES:
        rows, notes = [], []
        for scale in scales:
            for stage in STAGES:
                flags = {"scale": scale} if stage == "pretrain" else {"init_scale": scale, "preset": "paper"}
                config = config_class(stage)(gpus=gpus, gb=gb, tflops=tflops, device="cuda", **flags)
                apply_preset(config, presets_of(stage))
                _, c, process = checked(stage, config)
                phases = memory(stage, config, c, process, config, process.micro_tokens)
                rows += [(f"{scale} {stage}: {name}", parts) for name, parts in phases.items()]
                said = advice(stage, config, c, process, config, phases)
                notes.append(f"- {scale} {stage}: " + "; ".join(said + run_lines(stage, config, c)))
        lines += [f"## {gpus} × {gb:g} GB", "", *memory_table(rows, gb), "", *notes, ""]
    return "\n".join(lines)


def main() -> None:
    stage = sys.argv[1].removesuffix(".py") if len(sys.argv) > 1 else ""
    if stage == "tables":
        return print(tables())
    if stage not in STAGES:
        print(
            f"usage: python -m tools.dry_run STAGE FLAGS, with STAGE one of {', '.join(STAGES)}; or tables",
            file=sys.stderr,
        )
        sys.exit(2)
    del sys.argv[1]

    def dry_run(config) -> None:
        print(report(stage, config))

    cli(dry_run, config_class(stage), presets_of(stage))


if __name__ == "__main__":
    main()
