"""Pretraining: next-token prediction on token shards; keeps checkpoints M_t, after t steps, from which all other stages start.

    torchrun pretrain.py                                             # the micro scale on the embedded world, minutes on a CPU
    torchrun pretrain.py --scale smoke --out out/smoke               # seconds
    python pretrain.py --data out/mine --scale mini --steps 300      # your own text, made by data/prepare.py
    torchrun --nproc_per_node=8 pretrain.py --scale olmo2-1b --data out/paper    # the paper's model
    python pretrain.py --resume                                      # go on after a kill: the same bits

The paper's §"Pretraining": AdamW (0.9, 0.95), weight decay 0.1, clip 1.0, z-loss 1e-5, cosine to a tenth, 512 × 4096
tokens a step at lr 4e-4; `--scale olmo2-1b` sets these. Departures: none at that scale; the small scales have batches,
rates and token counts of their own (PRESETS).

The loss is -mean log p(next token) + z_loss · mean (log Σ exp logits)²; the second term keeps the logits small.
The metric `loss` is the first term alone.
"""

import contextlib
import math
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import kernels
from cli import UserError, cli, given, printable
from config import MachineConfig, OptimizerConfig, RunConfig, parse_count, parse_save_at
from data.loader import Loader, parse_mix
from data.prepare import build_world
from data.prompt import encode_prompt
from data.questions import load_questions
from data.tokenizer import Tokenizer, default_new_tokens, load_tokenizer
from likelihood import bits_per_byte, document_starts
from model import GPT, SCALES, CompiledGPT, config_of, empty_gpt, train_flops
from optimizer import make_optimizer, optimizer_step
from process import Process
from runtime import Run, begin, compile_training
from sampler import sample

BETAS = (0.9, 0.95)  # of AdamW
WORLD = "out/data"  # where the embedded world is built if no --data is given
WORLD_MIX = "general=0.35,math=0.65"  # arithmetic is what micro learns last

# What a scale trains with unless flags say otherwise. The paper's checkpoints are at 1k, 2k, ... steps of 2.1 M tokens.
PAPER_STEPS = "1000,2000,3000,5000,6000,7000,10000,14000,22000"
MICRO_AT = "3M,3.5M,4M,4.5M,5M,5.5M,6M,7M,8M"  # earlier checkpoints answer next to no question right
PRESETS = {
    "smoke": dict(batch=4, seq_len=256, tokens="100k", lr=4e-3, schedule="cosine:10", save_at="50k,100k"),
    "micro": dict(batch=4, seq_len=256, tokens="8M", lr=2e-3, schedule="cosine:100", save_at=MICRO_AT),
    "mini": dict(batch=16, seq_len=512, tokens="40M", lr=1e-3, schedule="cosine:100", save_at="log:8"),
    "small": dict(batch=64, seq_len=1024, tokens="1B", lr=6e-4, schedule="cosine:200", save_at="log:8"),
    "190m": dict(batch=256, seq_len=4096, tokens="10B", lr=6e-4, schedule="cosine:500", save_at="log:10"),
    "olmo2-1b": dict(batch=512, seq_len=4096, tokens="50B", lr=4e-4, schedule="cosine:2000", save_at=PAPER_STEPS),
    "4b": dict(batch=512, seq_len=4096, tokens="50B", lr=3e-4, schedule="cosine:2000", save_at=PAPER_STEPS),
}


@dataclass
class Config(RunConfig, OptimizerConfig, MachineConfig):
    """Pretraining: what and how long. Zero or empty is the scale's own value (PRESETS in pretrain.py)"""

    scale: Literal[tuple(SCALES)] = "micro"  # size of the model (SCALES in model.py)
    data: str = WORLD  # folder of token shards (data/prepare.py); the default is the embedded world, built if absent
    # weights per source, such as general=0.6,math=0.4, or dolmino50, the paper's mixture;
    # empty: by their sizes (the world: WORLD_MIX)
    mix: str = ""
    tokens: str = ""  # how long to train: 4M, 50B, ...
    steps: int = 0  # or: how many steps to train
    batch: int = 0  # sequences per step, over all ranks
    seq_len: int = 0  # tokens per sequence
    lr: float = 0.0  # peak learning rate; 0: the scale's own
    schedule: str = ""  # constant, linear or cosine, with steps of warm-up such as cosine:100; empty: the scale's own
    z_loss: float = 1e-5  # weight of the squared log-partition
    # keep packed documents apart in attention (OLMo2 does not); worked examples are such documents: ask it without (--shots 0)
    doc_mask: bool = False
    # steps between evaluations of held-out text and samples; 0: only at the end; -1: wherever a checkpoint is kept
    eval_every: int = 500
    val_tokens: int = 20_000  # held-out tokens per source in these evaluations
    verify: bool = True  # read all shards at the start, and refuse those that are not what was written

    def check(self) -> None:
        """Fill in what was left to the scale. UserError for flags that cannot be combined."""
        preset = PRESETS[self.scale]
        if {"tokens", "steps"} <= given(self) and self.tokens and self.steps:
            raise UserError("--tokens and --steps both say how long to train: pass one of them")
        for name in ("batch", "seq_len", "lr", "schedule", "save_at"):
            setattr(self, name, getattr(self, name) or preset[name])
        if not self.steps:
            self.tokens = self.tokens or preset["tokens"]
            self.steps = max(1, round(parse_count(self.tokens, "--tokens") / self.tokens_per_step))
        self.data = os.path.normpath(self.data)  # out/data/ is out/data
        if self.data == WORLD and not self.mix:
            self.mix = WORLD_MIX
        context = SCALES[self.scale]["context"]
        if self.seq_len > context:
            raise UserError(f"--seq_len {self.seq_len} exceeds the context of --scale {self.scale}, {context}")
        self.kept(self.steps)  # UserError for a --save_at that is none
        super().check()

    @property
    def tokens_per_step(self) -> int:
        return self.batch * self.seq_len

    def kept(self, total: int) -> set[int]:
        return set(parse_save_at(self.save_at, total, self.tokens_per_step))

    def due(self, step: int, total: int, kept: set[int]) -> bool:
        """An evaluation at the end in any case, and none of the untrained model."""
        if self.eval_every < 0:
            return step in kept  # the last step is
        return step == total or bool(step and self.eval_every and step % self.eval_every == 0)


def to_device(array: np.ndarray, device: torch.device) -> torch.Tensor:
    """A numpy array on `device`, without waiting for the copy on CUDA."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


def loss_and_backward(model: GPT, batch: torch.Tensor, eos: int, config: Config, process: Process, n_tokens: int):
    """Add the gradient of this rank's rows of a step to .grad; returns their summed -log p (a float).

    Every micro-batch is divided by `n_tokens`, the token count of the whole step over all ranks, so that neither the
    micro-batch size nor the number of ranks changes the gradient.

    Args:
        batch: (rows, T + 1) int64 on this rank's device.
    """
    log_probs = []  # one sum for each micro-batch; added up as Python's floats, which are fp64: an MPS device has none
    # A rank without rows has no micro-batch (`split` would make one of no rows)
    micro_batches = batch.split(max(1, process.micro_tokens // config.seq_len)) if len(batch) else ()
    for rows in process.unless_stopping(micro_batches):
        inputs, targets = rows[:, :-1], rows[:, 1:]  # (B, T) each
        doc_start = document_starts(inputs, eos) if config.doc_mask else None
        with process.autocast():
            hidden = model(inputs, doc_start=doc_start).flatten(0, 1)  # (N, C)
            log_prob, _, logsumexp = kernels.linear_log_prob(hidden, model.head.weight, targets.flatten())
        loss = -log_prob.sum() + config.z_loss * logsumexp.square().sum()
        (loss / n_tokens).backward()
        log_probs.append(log_prob.detach().sum())
    return -sum(x.item() for x in log_probs)


def compiled(model: GPT, config: Config, process: Process) -> GPT | CompiledGPT:
    """The model as training calls it, tried with a micro-batch of zeros."""
    share = process.rows(config.batch)
    rows = min(max(1, process.micro_tokens // config.seq_len), share.stop - share.start)
    if not rows:  # more ranks than rows
        return model

    def trial(model):
        tokens = torch.zeros(rows, config.seq_len, dtype=torch.long, device=process.device)
        return model(tokens, doc_start=tokens if config.doc_mask else None)

    return compile_training(model, process, config.compile, config.steps, dynamic=False, trial=trial)


def show_sample(model: GPT, tokenizer: Tokenizer, questions: list[dict], index: int, process: Process) -> str:
    """A greedy answer to a validation question, or text from nothing if there are no questions, for the terminal.

    index: which question; "" if the model's context leaves no room for an answer."""
    prompt, answer = [tokenizer.eos], ""
    if questions:
        question = questions[index % len(questions)]
        prompt, answer = encode_prompt(question["question"], tokenizer), f"  (right: {question['answer']})"
    new = min(default_new_tokens(tokenizer), model.config.context - len(prompt))
    if new < 1:
        return ""
    with process.autocast():
        ((sampled,),) = sample(model, [prompt], 1, stop=tokenizer.eos, max_new_tokens=min(new, 128), temperature=0.0)
    text = printable(tokenizer.decode(prompt) + tokenizer.decode(sampled.text_tokens))
    return "  | " + text.replace("\n", "\n  | ") + answer


def open_data(config: Config, process: Process) -> tuple[Loader, Tokenizer]:
    """The token shards of --data (the embedded world is built if it is absent) and the tokenizer that made them."""
    if config.data == WORLD and process.main:
        build_world(WORLD)
    process.barrier()
    loader = Loader(config.data, parse_mix(config.mix), config.batch, config.seq_len, config.seed)
    tokenizer = load_tokenizer(loader.tokenizer)
    if loader.vocab_size != tokenizer.vocab_size:
        raise UserError(
            f"--data {config.data}: was made with another version of the tokenizer {tokenizer.name!r}; make it again"
        )
    if config.verify:
        loader.verify(process)
    return loader, tokenizer


def evaluation(config: Config, run: Run, loader: Loader):
    """A function that measures run.model on held-out text, and prints that with a sampled answer."""
    validation = Path(config.data) / "questions" / "validation.jsonl"
    questions = load_questions(validation) if validation.exists() else []
    # Sources whose held-out text fills a window of seq_len
    sources = [name for name, source in loader.sources.items() if source.val.windows(config.seq_len)]
    model, tokenizer, process, progress = run.model, run.tokenizer, run.process, run.progress

    def evaluate() -> dict:
        values = {}
        for source in sources:
            measured = bits_per_byte(model, tokenizer, loader, source, config.val_tokens, process, config.doc_mask)
            values[f"bpb_{source}"] = round(measured["bits_per_byte"], 5)
        if process.main:
            numbers = "  ".join(f"{name} {value:.3f}" for name, value in values.items())
            shown = show_sample(model, tokenizer, questions, progress.step // max(1, config.eval_every), process)
            tqdm.write(f"step {progress.step}  {progress.tokens / 1e6:.2f} M tokens  {numbers}\n{shown}")
        return values

    return evaluate


def main(config: Config) -> None:
    # Open the run and its data; make the model, or take that of last.pt
    run = begin(config, "pretrain")
    process, progress, tokens_per_step = run.process, run.progress, config.tokens_per_step
    loader, tokenizer = open_data(config, process)
    if not config.resume:
        model = empty_gpt(config_of(config.scale, tokenizer.padded_vocab_size), process.device)
        run.use(model.init_weights(config.seed), tokenizer)
    elif run.tokenizer.name != tokenizer.name:
        raise UserError(f"{run.out / 'last.pt'} has the tokenizer {run.tokenizer.name!r}, --data {tokenizer.name!r}: pass "
                        "the data that the run began with, or begin a new run in another --out")  # fmt: skip
    model = run.model
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS, decay_gains=True)
    run.trains_on(loader.digest)
    run.restore(optimizer=optimizer)
    fast_model = compiled(model, config, process)  # shares its parameters with `model`
    flops_per_step = tokens_per_step * train_flops(model.config, config.seq_len)
    if process.main:
        print(
            f"{config.scale}: {model.n_params / 1e6:.2f} M parameters, {config.steps} steps of {tokens_per_step} tokens"
        )
        print(f"data {config.data} ({', '.join(loader.sources)}), writes {run.out}")
        if config.seq_len < model.config.context:
            print(f"note: rows of {config.seq_len} tokens; the model's context is {model.config.context}, of which later stages and "
                  "evaluations use positions that were not trained")  # fmt: skip

    with contextlib.closing(loader.iterate(progress.step, process.rows(config.batch))) as batches:
        for step in run.steps(config.steps, evaluation(config, run, loader), shown=("loss", "lr", "tokens_per_s")):
            # This rank's rows of the step, forward and backward
            start = time.perf_counter()
            _, rows = next(batches)  # (rows, T + 1)
            batch = to_device(rows, process.device)
            loss = loss_and_backward(fast_model, batch, tokenizer.eos, config, process, tokens_per_step)

            # The AdamW update, with the gradients of all ranks
            loss = process.sum({"loss": loss / tokens_per_step})["loss"]
            grad_norm = optimizer_step(model, optimizer, process, step.lr, config.clip)
            if not (math.isfinite(loss) and math.isfinite(grad_norm)):
                run.skip("loss or gradient")
            progress.tokens += tokens_per_step
            rate = tokens_per_step / (time.perf_counter() - start)
            step.metrics = dict(
                tokens=progress.tokens, loss=loss, grad_norm=grad_norm, tokens_per_s=rate, flops=flops_per_step
            )


if __name__ == "__main__":
    cli(main, Config)
