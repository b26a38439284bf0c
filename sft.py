"""Supervised fine-tuning from any checkpoint: NLL on one solution per question, or on all of them (Gold).

    python sft.py --init out/pretrain/step_0004883.pt --solutions one --out out/sft      # minutes on a CPU
    python sft.py --init M.pt --solutions all --out out/gold
    torchrun --nproc_per_node=8 sft.py --init M.pt --data out/paper --preset paper       # the paper's settings
    python sft.py --resume --out out/sft                                                 # go on after a kill: the same bits

A row is a prompt, a solution and a stop token; the loss is on the solution and its stop token alone. Rows are packed
without padding, and no row attends to another (packing.Packed, which RL uses too; solutions of the same question in a
batch share its prompt). A row that is too long for the model is left out, counted and reported; none is cut (but see
--sft_cut).

The paper's §"SFT": batch 512, constant lr 4e-5, about 9.5k steps. Departures from the authors' code (--preset paper
does as it does; docs/paper.md): one solution is drawn with the seed, rows are shuffled, and the loss is the mean over
the tokens of the whole batch, not their sum. Adam's step is nearly the same under either loss, but not the clipping: a
summed gradient is thousands of times longer, so --clip 1 scales every step to length 1.
"""

import math
import sys
import time
from array import array
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from cli import UserError, cli
from config import MachineConfig, OptimizerConfig, PostConfig
from data.prompt import encode_prompt, encode_solution, listed
from data.questions import find_questions, questions_digest, what_to_expect
from data.tokenizer import Tokenizer
from eval import HeldOut, make_evaluate, say
from model import GPT, answers_flops
from optimizer import make_optimizer, optimizer_step
from packing import packed_batches
from process import Process
from runtime import Cursor, Run, begin

BETAS = (0.9, 0.999)  # of AdamW


@dataclass
class SFTConfig:
    """SFT: its rows and its loss"""

    # solutions of each question: one, drawn by the seed; all of them (Gold); or, as the authors, the first one, with
    # the rows in the order of the file and not shuffled
    solutions: Literal["one", "first", "all"] = "one"
    rows: int = 32  # rows per step, over all ranks
    sft_cut: int = 0  # cut solutions to so many tokens (the authors: 512); a cut one has no stop token. 0: no cut
    loss: Literal["token_mean", "token_sum"] = "token_mean"  # mean or sum over the solution tokens of a step


@dataclass
class Config(PostConfig, SFTConfig, HeldOut, OptimizerConfig, MachineConfig):
    """Recipe: many of the flags below at once"""  # the title of --preset in --help; what else is here are defaults

    steps: int | str = 400
    lr: float = 3e-4  # peak learning rate (the paper's 1B model: 4e-5)
    weight_decay: float = 0.01
    eval_every: int = 50
    preset: Literal["", "paper"] = ""  # the paper's settings; flags beside it win


PRESETS = {
    "paper": dict(
        rows=512, lr=4e-5, schedule="constant", steps=9500, clip=1.0, eval_every=500, loss="token_sum",
        solutions="first", sft_cut=512, weight_decay=0.01,
    )
}  # fmt: skip


class Rows:
    """A list of rows: row i is (prompt, solution with its stop token) in token ids.

    The tokens are held in arrays, those of a prompt once for all its solutions: Gold has 2 M rows of 150 tokens and
    more, which take 36 bytes a token in Python lists and 2 or 4 in arrays.
    """

    def __init__(self, vocab_size: int):
        kind = "H" if vocab_size <= 2**16 else "I"  # unsigned integers of 16 or of 32 bits
        self.prompts, self.solutions = array(kind), array(kind)  # all tokens, one prompt (solution) behind the other
        # Prompt i is prompts[prompt_ends[i] : prompt_ends[i + 1]]; so are solutions
        self.prompt_ends, self.solution_ends = array("q", [0]), array("q", [0])
        self.prompt_of = array("I")  # row → number of its prompt

    def __len__(self) -> int:
        return len(self.prompt_of)

    def __getitem__(self, row: int) -> tuple[list[int], list[int]]:
        prompt = self.prompt_of[row]
        return (
            self.prompts[self.prompt_ends[prompt] : self.prompt_ends[prompt + 1]].tolist(),
            self.solutions[self.solution_ends[row] : self.solution_ends[row + 1]].tolist(),
        )

    def add(self, prompt: list[int], solutions: list[list[int]]) -> None:
        """The rows of one question."""
        self.prompts.extend(prompt)
        number = len(self.prompt_ends) - 1  # of this prompt
        self.prompt_ends.append(len(self.prompts))
        for solution in solutions:
            self.prompt_of.append(number)
            self.solutions.extend(solution)
            self.solution_ends.append(len(self.solutions))


class SFT:
    """Rows, their order, and the gradient of the SFT objective; average.py uses it as sft.py does.

    Its only state, which --resume restores, is the integer `order.position`: how many rows have been drawn.
    """

    def __init__(
        self, config: SFTConfig, questions: list[dict], tokenizer: Tokenizer, process: Process, seed: int, context: int
    ):
        self.config, self.process, self.seed = config, process, seed
        rng = np.random.default_rng(seed)
        self.data = Rows(tokenizer.vocab_size)
        long, unsolved = [], []  # ids of questions: for each row that is too long; for each question without a solution
        for question in questions:
            solutions = question["solutions"]
            unsolved += [] if solutions else [question["id"]]
            # Drawn even if not used: so --solutions changes no later draw
            choice = int(rng.integers(len(solutions) or 1))
            choice = 0 if config.solutions == "first" else choice
            chosen = solutions if config.solutions == "all" else solutions[choice : choice + 1]
            prompt = encode_prompt(question["question"], tokenizer)
            encoded = [encode_solution(solution, tokenizer, config.sft_cut) for solution in chosen]
            # + 1: the last token of a row is predicted and is no input
            fitting = [tokens for tokens in encoded if len(prompt) + len(tokens) <= context + 1]
            long += [question["id"]] * (len(encoded) - len(fitting))
            if fitting:
                self.data.add(prompt, fitting)
        if process.main and (long or unsolved):
            of_long, of_unsolved = (f" ({listed(list(dict.fromkeys(ids)))})" if ids else "" for ids in (long, unsolved))
            print(f"left out: {len(long)} rows longer than the context of {context}{of_long}, "
                  f"{len(unsolved)} questions without a solution{of_unsolved}", file=sys.stderr)  # fmt: skip
        if not self.data:
            raise UserError(
                f"no row to train on: {len(long)} too long for {context} tokens (--sft_cut, or a model with a longer context), "
                f"{len(unsolved)} questions without a solution"
            )
        self.order = Cursor(len(self.data), seed, shuffled=config.solutions != "first")

    def draw(self) -> list[tuple[list[int], list[int]]]:
        """The rows of the next step."""
        return [self.data[i] for i in self.order.draw(self.config.rows)]

    def backward(self, model: GPT, rows: list[tuple[list[int], list[int]]], scale: float = 1.0) -> dict:
        """Add this rank's part of the rows' gradient to .grad. Returns the step's metrics over all ranks.

        Args:
            rows: (prompt, solution) of all ranks. scale: factor of the gradient (average.py's combined loss).
        """
        n_tokens = sum(len(solution) for _, solution in rows)
        denominator = n_tokens if self.config.loss == "token_mean" else 1

        # Solutions of one question share its prompt: (prompt, solutions) items, and this rank's share of them
        by_prompt: dict[tuple, list[list[int]]] = {}
        for prompt, solution in rows:
            by_prompt.setdefault(tuple(prompt), []).append(solution)
        items = [(list(prompt), solutions) for prompt, solutions in by_prompt.items()]
        mine = self.process.share([len(prompt) + sum(map(len, solutions)) for prompt, solutions in items])

        # The loss and its gradient, one micro-batch after the other
        sums = {"sft_loss": 0.0, "sft_tokens": 0.0, "flops": 0.0}
        batches = packed_batches([items[i] for i in mine], self.process.micro_tokens, self.process.device)
        for packed, _ in self.process.unless_stopping(batches):
            with self.process.autocast():
                nll = -packed.log_probs(model, temperature=1.0).log_prob.sum()
            (scale / denominator * nll).backward()
            sums["sft_loss"] += nll.item() / n_tokens
            sums["sft_tokens"] += packed.tokens.numel()  # of the row: a prompt too, once for all its solutions
            sums["flops"] += 3 * answers_flops(model.config, packed.lengths)  # backward costs two forward passes
        return self.process.sum(sums)


def make_sft(run: Run) -> SFT:
    """The SFT side of a stage, from its flags (PostConfig and SFTConfig)."""
    config = run.config
    questions = find_questions(config.data, config.questions, "train", config.limit)
    if run.stage == "sft":  # average.py has an RL side too, which says it
        say(what_to_expect(questions, run.progress.tokens), run.process)
    run.trains_on(questions_digest(questions))
    return SFT(config, questions, run.tokenizer, run.process, config.seed, run.model.config.context)


def sft_step(run: Run, sft: SFT, optimizer: torch.optim.Optimizer, lr: float) -> dict:
    """One step of SFT on run.model; returns its metrics."""
    start = time.perf_counter()
    stats = sft.backward(run.fast, sft.draw())
    stats["grad_norm"] = optimizer_step(run.model, optimizer, run.process, lr, run.config.clip)
    if not math.isfinite(stats["sft_loss"] + stats["grad_norm"]):
        run.skip("loss or gradient")
    return stats | {"train_tokens_per_s": stats["sft_tokens"] / (time.perf_counter() - start)}


def main(config: Config) -> None:
    # Open the run, with the model of --init or of last.pt; read the questions
    run = begin(config, "sft")
    model, process = run.model, run.process
    sft = make_sft(run)
    steps = config.total_steps(len(sft.data), config.rows)
    optimizer = make_optimizer(model, config.lr, config.weight_decay, BETAS)
    run.restore(optimizer=optimizer, sft=sft.order)
    run.compile(steps)
    evaluate = make_evaluate(run)
    if process.main:
        print(f"{config.init}: {model.n_params / 1e6:.2f} M parameters; {len(sft.data)} rows, {steps} steps of "
              f"{config.rows} ({steps * config.rows / len(sft.data):.1f} epochs); writes {run.out}")  # fmt: skip

    # `run.steps` evaluates, saves, and obeys signals between the steps
    for step in run.steps(steps, evaluate, shown=("sft_loss", "grad_norm", "val_pass@1")):
        step.metrics = sft_step(run, sft, optimizer, step.lr)


if __name__ == "__main__":
    cli(main, Config, PRESETS)
