"""What a training stage would take, before it runs: memory per GPU by part, what fits, FLOPs, days, disk. Nothing is allocated.

    python -m tools.dry_run pretrain.py --scale olmo2-1b --gpus 8
    python -m tools.dry_run rl.py --preset paper --init_scale olmo2-1b --gpus 8 --kv_gib 48
    python -m tools.dry_run average.py --preset paper --init_scale 4b
    python -m tools.dry_run tables               # those of docs/gpu.md

After the stage come the stage's own flags, and those of `Dry` below. No data and no checkpoint is read.

Activations are counted, not estimated: the stage's own `backward` runs one micro-batch on fake tensors, which have
shapes and no memory, and what autograd saves is added up (`saved_bytes`). It runs with one block and with two; all
blocks are equal. tests/test_dry_run.py holds the count against real runs on a CPU. Keys and values are those of the
sampler's own Slots, on fake tensors too. The log-prob workspace is computed from the code, temporaries of a backward
pass are estimated. torch.compile is left out: it saves less. GB are 10⁹ bytes. No figure of this program has been
compared with a GPU yet.
"""

import contextlib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
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
from model import GPT, SCALES, GPTConfig, RMSNorm, answers_flops, config_of, train_flops
from process import Process, numbers

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


@dataclass(frozen=True)
class Job:
    """What one rank would do: what all estimates are made of."""

    stage: str  # one of STAGES
    config: object  # the stage's flags, and those of Dry (config_class)
    c: GPTConfig
    process: Process  # whose micro_tokens stand for --micro_tokens

    def but(self, micro_tokens: int = 0, **flags) -> "Job":
        """The same with other flags."""
        process = replace(self.process, micro_tokens=micro_tokens or self.process.micro_tokens)
        return replace(self, config=replace(self.config, **flags), process=process)


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

    gpu: operations are those of a GPU, though the tensors say that they are on the CPU: of CUDA, even of fake tensors,
    autograd makes nothing in a PyTorch without CUDA. Triton's kernels are operators: of fake tensors they are not
    launched.
    """
    patches = [(torch.Tensor, "backward", lambda *_: None), (torch.Tensor, "item", lambda _: 1.0)]
    if gpu:
        if importlib.util.find_spec("triton") is None:
            raise UserError(
                "counting for a GPU needs triton, whose kernels say what they save: pip install triton (Linux only), or count for --device cpu"
            )
        patches += [(kernels, "on_triton", lambda _: True), (RMSNorm, "forward", norm_on_cuda)]
    with contextlib.ExitStack() as stack:
        for patch in patches:
            stack.enter_context(mock.patch.object(*patch))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
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


_counted: dict[str, int] = {}  # what `activations` was asked → its answer, which takes seconds


def activations(job: Job, items: int, n: int) -> int:
    """Bytes that the backward pass of one micro-batch needs: `items` rows of --seq_len in pretraining, `items` rows in
    SFT, `items` questions with n answers each in RL."""
    config, c, gpu = job.config, job.c, job.process.device.type == "cuda"
    process = replace(job.process, device=torch.device("cpu"), micro_tokens=10**9)  # all of it at once
    job = replace(job, process=process)
    asked = repr((job, gpu, items, n))
    if asked in _counted:
        return _counted[asked]

    def count(recompute: str) -> tuple[int, int]:  # bytes with one block, and of a further block
        counted = []
        for layers in (1, 2):
            with fakes(gpu):
                model = fake_gpt(replace(c, n_layers=layers), process.dtype if config.shard else torch.float32)
                for block in model.blocks:
                    block.recompute = recompute
                counted.append(saved_bytes(model, lambda model=model: run_backward(job, model, items, n)))
        return counted[0], counted[1] - counted[0]

    one, further = count(config.recompute)
    # What is computed again is there for one block at a time
    again = count("none")[1] - further if config.recompute != "none" else 0
    if config.recompute == "attention":
        again = max(0, again - further)  # when the other half of the block has been freed
    elif config.recompute == "block" and process.dtype != torch.float32:
        again = max(again, product_bytes(job))  # or, as forward ends, the copies of weights that autocast has made
    _counted[asked] = one + (c.n_layers - 1) * further + again
    return _counted[asked]


def run_backward(job: Job, model: GPT, items: int, n: int) -> None:
    """The stage's own loss and backward for a micro-batch of the given size, on whatever tensors the model has."""
    config, process = job.config, job.process
    if job.stage == "pretrain":
        batch = torch.zeros(items, config.seq_len + 1, dtype=torch.long, device=process.device)
        pretrain.loss_and_backward(model, batch, 0, config, process, batch.numel())
        return
    prompt, answer = config.prompt_tokens, config.answer_tokens
    side = object.__new__(sft.SFT if job.stage == "sft" else rl.GRPO)  # without data
    side.config, side.process = config, process
    if job.stage == "sft":
        # Prompts that differ, as those of different questions do
        side.backward(model, [([i + 1] * prompt, [1] * answer) for i in range(items) for _ in range(n)])
    else:
        side.max_new_tokens, side.every_group = answer, False
        side.reference = model if config.kl else None  # what it saves is nothing, so any model will do
        old = np.zeros(answer, np.float32)
        groups = [
            [rl.Answer({}, [1] * prompt, [1] * answer, "", old, True, True, 0.0, False, (-1.0) ** j) for j in range(n)]
            for _ in range(items)
        ]
        side.backward(model, groups, on_policy=len(side.minibatches(groups)) == 1)


def micro_batch(job: Job) -> tuple[int, int, int]:
    """(questions or rows, answers of each, tokens) of a rank's largest micro-batch, as the stage would make it."""
    config, most = job.config, job.process.micro_tokens
    if job.stage == "pretrain":
        rows = min(max(1, most // config.seq_len), math.ceil(config.batch / config.gpus))
        return rows, 1, rows * config.seq_len
    n, per_step = (config.rollouts, config.minibatch or config.prompts) if job.stage == "rl" else (1, config.rows)
    size = config.prompt_tokens + n * config.answer_tokens
    if size > most:  # a question is divided
        n, items = max(1, (most - config.prompt_tokens) // config.answer_tokens), 1
    else:
        items = min(most // size, math.ceil(per_step / config.gpus))
    return items, n, items * (config.prompt_tokens + n * config.answer_tokens)


# ---------------------------------------------------------------------------------------------------------------------
# Memory by part
# ---------------------------------------------------------------------------------------------------------------------


def log_prob_bytes(job: Job, tokens: int) -> int:
    """What kernels.linear_log_prob allocates in its backward pass: gradients of its inputs, and one chunk of logits."""
    c, process = job.c, job.process
    gradients = 4 * c.vocab_size * c.d_model + 4 * tokens * c.d_model
    if process.device.type == "cuda":
        from kernels.triton_log_prob import VOCAB_CHUNK

        chunk = min(c.vocab_size, VOCAB_CHUNK)
        return gradients + process.dtype.itemsize * chunk * (tokens + c.d_model)
    return gradients + 4 * min(tokens, kernels.CHUNK_ROWS) * c.vocab_size


def update_bytes(job: Job) -> dict[str, float]:
    """Parts of the memory that one micro-batch needs beside weights and optimizer."""
    items, n, tokens = micro_batch(job)
    return {
        "activations": activations(job, items, n),
        "log-prob": log_prob_bytes(job, tokens),
        # of a block's backward pass: gradients of the three tensors of SwiGLU and of the residual stream
        "temporaries": 3 * job.process.dtype.itemsize * tokens * job.c.d_ff + 8 * tokens * job.c.d_model,
    }


class Sampling(NamedTuple):
    """What the sampler holds while it decodes."""

    rows: int  # that decode together; 0: not even one fits
    kv: int  # bytes of keys and values
    logits: int  # bytes of the logits after prompts and of one step


def sampling(job: Job, gib: float) -> Sampling:
    """The sampler's own choice for `gib` GiB of keys and values: its Slots, made of fake tensors."""
    config, c, gpu = job.config, job.c, job.process.device.type == "cuda"
    prompts = [[0] * config.prompt_tokens] * math.ceil(config.prompts / config.gpus)
    on_cpu = replace(job.process, device=torch.device("cpu"))
    with fakes(gpu), mock.patch.object(sampler, "PAGED", {"cpu"} if gpu else set()), on_cpu.autocast():
        model = fake_gpt(replace(c, n_layers=1))
        model.config = c
        try:
            slots = sampler.Slots(model, prompts, config.rollouts, 0, config.max_new_tokens, gib)
        except UserError:
            return Sampling(0, 0, 0)
        kv = sum(x.nbytes for x in vars(slots.cache).values() if isinstance(x, torch.Tensor))
        return Sampling(slots.slots, kv, slots.first_logits.nbytes + 2 * 4 * slots.slots * c.vocab_size)


def memory(job: Job) -> dict[str, dict[str, float]]:
    """Phase of a step → part → bytes on one GPU.

    Weights are fp32 on every rank and are their own masters; their bf16 copies are activations in an update. With
    --shard masters and what else the optimizer needs are spread over the ranks (sharding.py).
    """
    stage, config, c, dtype = job.stage, job.config, job.c, job.process.dtype
    n = 4 * parameters(c)  # bytes of the weights and of their gradients
    part = n / config.gpus if config.shard else n  # of masters and of each moment of AdamW
    two = parallel(job)  # optimizers, a snapshot and an update
    static = {"weights": n, "gradients": n, "AdamW": 4 * part if two else 2 * part}
    if config.shard:
        in_blocks = parameters(c) - 2 * c.vocab_size * c.d_model - c.d_model  # without embedding, head, last norm
        static |= {"weights": n - (4 - dtype.itemsize) * in_blocks, "masters": part}
    snapshot = {"snapshot": part} if two else {}
    phases = {}
    if stage in ("rl", "average"):
        copies = product_bytes(job) if dtype != torch.float32 else 0
        reference = {}
        if config.kl:
            with torch.device("meta"):
                kept = rl.kl_reference(GPT(c), dtype)
            reference = {"reference": sum(p.nbytes for p in kept.parameters())}
        parts = static | {"gradients": 0} | snapshot | {"copies": copies} | reference
        held = sampling(job, config.kv_gib or room(config, parts))
        phases["sampling"] = parts | {"KV": held.kv, "log-prob": held.logits}
        phases["RL update"] = static | snapshot | reference | update_bytes(replace(job, stage="rl"))
    if stage in ("sft", "average"):
        delta = {"snapshot": 2 * part} if two else {}
        phases["SFT update"] = static | delta | update_bytes(replace(job, stage="sft"))
    if stage == "pretrain":
        phases["update"] = static | update_bytes(job)
    return phases


def parallel(job: Job) -> bool:
    """Are there two optimizers?"""
    return job.stage == "average" and job.config.mode == "parallel"


def parameters(c: GPTConfig) -> int:
    with torch.device("meta"):
        return GPT(c).n_params


def product_bytes(job: Job) -> int:
    """Of the matrices that the model multiplies by, in the type of the products. Autocast casts these, and once; with
    --shard those of the blocks are of that type."""
    with torch.device("meta"):
        model = GPT(job.c)
    cast = (model.head, *(() if job.config.shard else model.blocks.modules()))
    return job.process.dtype.itemsize * sum(m.weight.numel() for m in cast if isinstance(m, torch.nn.Linear))


def total(parts: dict[str, float]) -> float:
    return sum(parts.values()) / GB + CONTEXT


def room(config, parts: dict[str, float]) -> float:
    """GiB for keys and values beside these parts, with a margin."""
    return max(1e-9, 0.9 * (config.gb - total(parts)) * GB / 2**30)


def advice(job: Job, phases: dict) -> list[str]:
    """A sentence for each phase that does not fit, with the flag that helps; and for sampling, what --kv_gib could be."""
    config, lines = job.config, []
    for name, parts in phases.items():
        over = total(parts) - config.gb
        if name == "sampling":
            free = room(config, parts | {"KV": 0})
            most = sampling(job, free)
            shape = f"{config.prompt_tokens} + up to {config.max_new_tokens} tokens"
            if not most.rows:
                helps = LARGER if config.shard or config.gpus == 1 else "--shard makes room"
                lines.append(f"sampling does not fit, no room for a row of keys and values: {helps}")
            elif over > 0:
                lines.append(f"sampling does not fit: --kv_gib {free:.2g} does, {most.rows} rows of {shape}")
            else:
                held = sampling(job, config.kv_gib or free)
                more = f"; --kv_gib {free:.0f} holds {most.rows}" if most.rows > held.rows else ""
                lines.append(f"sampling: --kv_gib {config.kv_gib:g} holds {held.rows} rows of {shape}{more}")
        elif over > 0:
            lines.append(f"{name} does not fit, {over:.1f} GB too much: {smaller(job, name, parts)}")
    return lines


LARGER = "no flag helps: a smaller scale or a larger GPU"


def smaller(job: Job, phase: str, parts: dict) -> str:
    """The first of these changes that makes a phase fit, in words."""
    config, tokens = job.config, job.process.micro_tokens
    least = config.seq_len if job.stage == "pretrain" else 512
    last = f"--micro_tokens {least}"
    fixed = sum(value for part, value in parts.items() if part not in GROWING) / GB
    why = f"{fixed:.1f} GB of it are weights, gradients and optimizer"
    changes = []  # is it a change? the flags; how to say so, {} being the GB then
    while tokens > least:
        tokens //= 2
        changes.append((True, dict(micro_tokens=tokens), f"--micro_tokens {tokens} fits in {{:.1f}} GB"))
    changes += [
        (config.recompute != "block", dict(recompute="block"), "--recompute block fits in {:.1f} GB"),
        (config.recompute != "block", dict(recompute="block", micro_tokens=least), f"--recompute block and {last} fit in {{:.1f}} GB"),
        (getattr(config, "kl", 0), dict(kl=0, micro_tokens=least), f"--kl 0 and {last} fit: no reference model"),
        (parallel(job), dict(mode="combined", micro_tokens=least), f"--mode combined and {last} fit: one optimizer, no snapshot"),
        (least > 512, dict(seq_len=512, micro_tokens=512), "--seq_len 512 and --micro_tokens 512 fit in {:.1f} GB"),
        (config.gpus > 1 and not config.shard, dict(shard=True, micro_tokens=least), f"{why}: --shard and {last} fit in {{:.1f}} GB"),
    ]  # fmt: skip
    for applies, flags, said in changes:
        if applies and (gb := total(memory(job.but(**flags))[phase])) <= config.gb:
            return said.format(gb)
    return f"{why}: {LARGER}"


GROWING = {"activations", "log-prob", "temporaries"}  # parts that --micro_tokens changes


# ---------------------------------------------------------------------------------------------------------------------
# Work and disk
# ---------------------------------------------------------------------------------------------------------------------


def work(job: Job, steps: int) -> dict[str, float]:
    """Of the whole run, over all ranks: "trained" and "sampled" tokens; FLOPs of training and of "sampling"."""
    stage, config, c = job.stage, job.config, job.c
    if stage == "pretrain":
        tokens = steps * config.tokens_per_step
        return {"trained": tokens, "sampled": 0, "FLOPs": tokens * train_flops(c, config.seq_len), "sampling": 0}
    prompt, answer = config.prompt_tokens, config.answer_tokens
    rl_steps, sft_steps = (steps if stage != "sft" else 0), (steps if stage != "rl" else 0)
    if stage == "average" and config.mode in ("interleaved", "curriculum"):
        rl_steps = sum(is_rl_step(config, i) for i in range(steps))
        sft_steps = steps - rl_steps
    done = dict.fromkeys(("trained", "sampled", "FLOPs", "sampling"), 0.0)
    if rl_steps:
        once = config.prompts * answers_flops(c, [(prompt, [answer] * config.rollouts)])
        # A forward pass for p_old where a step makes several updates (GRPO.recompute); with one epoch not of the first's answers
        first = min(config.minibatch or config.prompts, config.prompts) / config.prompts
        passes = config.inner_epochs * (3 + bool(config.kl)) + (1 - first if config.inner_epochs == 1 else 1)
        done["trained"] += rl_steps * config.inner_epochs * config.prompts * (prompt + config.rollouts * answer)
        done["sampled"] += rl_steps * config.prompts * config.rollouts * answer
        done["FLOPs"] += rl_steps * passes * once
        done["sampling"] += rl_steps * once
    if sft_steps:
        done["trained"] += sft_steps * config.rows * (prompt + answer)
        done["FLOPs"] += sft_steps * config.rows * 3 * answers_flops(c, [(prompt, [answer])])
    return done


def steps_of(stage: str, config) -> tuple[int, str]:
    """Steps of the run, and how to say so; 0, where --steps counts passes over data of unknown size."""
    if stage != "pretrain" and not isinstance(config.steps, int) and not config.items:
        return 0, f"one step (--steps {config.steps}: give --items)"
    per_step = getattr(config, "rows" if stage == "sft" else "prompts", 0)
    steps = config.steps if stage == "pretrain" else config.total_steps(config.items, per_step)
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


def scale_of(stage: str, config) -> str:
    return config.scale if stage == "pretrain" else config.init_scale


def checked(stage: str, config) -> Job:
    """The job of flags that are made complete. UserError for flags that the stage refuses."""
    if getattr(config, "mode", "") == "soup":
        raise UserError("--mode soup trains nothing")
    if stage != "pretrain":
        config.init = config.init or config.init_scale  # no checkpoint is read
    with mock.patch.dict(os.environ, WORLD_SIZE=str(config.gpus)):  # --shard asks whether there are several ranks
        config.check()
    scale = scale_of(stage, config)
    if scale not in SCALES:
        raise UserError(f"--init_scale {scale}: {', '.join(SCALES)} are known")
    large = SCALES[scale]["d_model"] > SCALES["small"]["d_model"]
    c = config_of(scale, config.vocab or (CL100K if large else load_tokenizer("world").padded_vocab_size))
    if stage in ("rl", "average"):
        config.max_new_tokens = config.max_new_tokens or (512 if c.vocab_size == CL100K else 64)  # default_new_tokens
        if config.prompt_tokens + config.max_new_tokens > c.context:
            raise UserError(f"{scale} has a context of {c.context}: --prompt_tokens {config.prompt_tokens} and --max_new_tokens "
                            f"{config.max_new_tokens} exceed it")  # fmt: skip
    kind = "cuda" if config.device == "auto" else config.device
    dtype, micro_tokens = numbers(kind, config.dtype, config.micro_tokens)
    process = Process(0, 1, torch.device(kind), dtype, micro_tokens=micro_tokens)
    return Job(stage, config, c, process)


def run_lines(job: Job) -> list[str]:
    """Of the whole run: its tokens, its FLOPs and time, its disk."""
    config = job.config
    steps, said = steps_of(job.stage, config)
    done = work(job, steps or 1)
    seconds = done["FLOPs"] / (config.gpus * config.tflops * 1e12 * config.mfu)
    again = {"none": "", "attention": " and a tenth for --recompute", "block": " and a third for --recompute"}
    sampled = f", {done['sampled'] / 1e6:,.1f} M sampled ({done['sampling']:.1e} FLOPs)" if done["sampled"] else ""
    n = 4 * parameters(job.c) / GB
    last = n + (4 if parallel(job) else 2) * n
    kept = len(config.kept(steps or 10**9))
    return [
        f"{said}: {done['trained'] / 1e6:,.1f} M tokens trained{sampled}",
        f"training {done['FLOPs']:.1e} FLOPs: {duration(seconds)} at {config.mfu:.0%} of {config.gpus} × {config.tflops:g} TFLOP/s"
        + again[config.recompute]
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
    job = checked(stage, config)
    phases = memory(job)
    lines = [
        f"{stage}.py, {scale_of(stage, config)}: {parameters(job.c) / 1e6:,.0f} M parameters; {config.gpus} × {config.gb:g} GB, "
        f"{str(job.process.dtype).removeprefix('torch.')}, --micro_tokens {job.process.micro_tokens}",
        "",
        *memory_table(list(phases.items()), config.gb),
        "",
        *(advice(job, phases) or ["everything fits"]),
    ]
    for of in ("rl", "sft") if stage == "average" else (stage,):
        items, n, tokens = micro_batch(replace(job, stage=of))
        lines.append(f"a micro-batch of {of}: {items * n} {'answers' if of == 'rl' else 'rows'}, {tokens} tokens")
    return "\n".join(lines + run_lines(job))


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
                job = checked(stage, config)
                phases = memory(job)
                rows += [(f"{scale} {stage}: {name}", parts) for name, parts in phases.items()]
                notes.append(f"- {scale} {stage}: " + "; ".join(advice(job, phases) + run_lines(job)))
        lines += [f"## {gpus} × {gb:g} GB", "", *memory_table(rows, gb), "", *notes, ""]
    return "\n".join(lines)


def main() -> None:
    stage = sys.argv.pop(1).removesuffix(".py") if len(sys.argv) > 1 else ""
    if stage == "tables":
        print(tables())
    elif stage in STAGES:
        cli(lambda config: print(report(stage, config)), config_class(stage), presets_of(stage))
    else:
        usage = f"python -m tools.dry_run STAGE FLAGS, with STAGE one of {', '.join(STAGES)}; or tables"
        print(f"usage: {usage}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
