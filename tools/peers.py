"""What bench.py compares with: a step of other libraries at the same work, with the weights of GPT.init_weights(0).

Each function builds a step and is called in a process of its own.
"""

import contextlib
import os
import tempfile
import time
import warnings
from collections.abc import Callable

import numpy as np
import torch

from model import GPT, GPTConfig
from process import Process
from tools.olmo2 import olmo2_config, to_olmo2

Step = Callable[[], float | None]  # runs once; the seconds that it took, where they are not those of the call


def olmo2(config: GPTConfig, process: Process):
    """transformers' model with the weights of GPT(config).init_weights(0)."""
    from transformers import Olmo2ForCausalLM

    theirs = Olmo2ForCausalLM(olmo2_config(config))
    theirs.load_state_dict(to_olmo2(GPT(config).init_weights(0).state_dict(), config))
    return theirs.to(process.device)


def transformers_step(process: Process, config: GPTConfig, rows: int, length: int) -> Step:
    """A training step of transformers' model with its own loss and the same AdamW."""
    theirs = olmo2(config, process)
    optimizer = torch.optim.AdamW(theirs.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
    batch = torch.randint(config.vocab_size, (rows, length), device=process.device)

    def step() -> None:
        with process.autocast():
            loss = theirs(batch, labels=batch, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def generate_step(process: Process, config: GPTConfig, prompts: list[list[int]], n: int, new: int) -> Step:
    """transformers' generate, which prefills every row: that n rows have the same prompt is nothing to it."""
    theirs = olmo2(config, process).to(process.dtype)
    tokens = torch.tensor(prompts, device=process.device).repeat_interleave(n, 0)
    flags = {"do_sample": True, "top_k": 0, "max_new_tokens": new, "attention_mask": torch.ones_like(tokens)}

    def step() -> None:
        assert theirs.generate(tokens, **flags).shape[1] == len(prompts[0]) + new

    return step


def trl_step(process: Process, config: GPTConfig, prompts: list[list[int]], n: int, new: int) -> Step:
    """A step of TRL's GRPOTrainer: it returns the seconds from the step's begin to its end."""
    warnings.simplefilter("ignore")
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    from datasets import Dataset
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    words = Tokenizer(models.WordLevel({f"w{i}": i for i in range(config.vocab_size)}, unk_token="w1"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=words, pad_token="w0", eos_token="w2", unk_token="w1")
    rng = np.random.default_rng(0)
    texts = [" ".join(f"w{i}" for i in prompt) for prompt in prompts]

    class Timer(TrainerCallback):
        def on_step_begin(self, *args, **kwargs):
            self.start = time.perf_counter()

        def on_step_end(self, *args, **kwargs):
            if process.device.type == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self.start

    timer = Timer()
    micro_batch = 64 if process.device.type == "cpu" else 256  # answers in a backward pass
    flags = GRPOConfig(
        output_dir=tempfile.mkdtemp(), max_steps=1, per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=len(prompts) * n // micro_batch, num_generations=n, max_completion_length=new,
        generation_kwargs={"min_new_tokens": new}, top_k=0, temperature=1.0, beta=0.0, learning_rate=1e-6,
        gradient_checkpointing=False, bf16=process.dtype == torch.bfloat16, use_cpu=process.device.type == "cpu",
        logging_strategy="no", save_strategy="no", report_to="none", disable_tqdm=True,
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=olmo2(config, process),
        reward_funcs=lambda completions, **_: rng.integers(2, size=len(completions)).astype(float).tolist(),
        args=flags,
        train_dataset=Dataset.from_dict({"prompt": texts}),
        processing_class=tokenizer,
        callbacks=[timer],
    )

    def step() -> float:
        with contextlib.redirect_stdout(None):
            trainer.train()
        return timer.seconds

    return step
