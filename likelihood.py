"""How probable a model finds given texts: likelihood tasks, and bits per byte of held-out text. Nothing is sampled.

    results = continuation_log_probs(model, pairs, process)     # log p of each continuation, and whether greedy decoding gives it
    record = evaluate_task(model, tokenizer, items, process, "facts")
    loader, short = held_out_text("out/data", 50_000, "M.pt", tokenizer, 256, process)
    record = bits_per_byte(model, tokenizer, loader, "math", 50_000, process)

data/tasks.py has the form of the items. Length-normalised accuracy divides a choice's log-likelihood by its characters,
the space before it not counted, as lm-evaluation-harness's acc_norm does.
"""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

import kernels
from cli import UserError
from data.loader import Loader
from data.tasks import check_pairs, task_pairs
from data.tokenizer import Tokenizer
from measures import mean_interval
from model import GPT
from process import Process

BATCH_TOKENS = 8192  # in one forward pass


# ---------------------------------------------------------------------------------------------------------------------
# Likelihood tasks
# ---------------------------------------------------------------------------------------------------------------------


def evaluate_task(
    model: GPT, tokenizer: Tokenizer, items: list[dict], process: Process, label: str, seed: int = 0
) -> dict:
    """The record of a likelihood task; each value is a `mean_interval` over its items.

    Multiple choice ({"query", "choices", "gold"}): "accuracy" by log-likelihood, "accuracy_norm" by log-likelihood per
    character. Cloze ({"context", "continuation"}): "accuracy", the share of continuations that greedy decoding gives,
    and "log_prob" of a continuation in nats. "items" has 0 or 1 for each item, by accuracy_norm or, of cloze, by
    accuracy.
    """
    results = continuation_log_probs(model, task_pairs(items, tokenizer), process, label)
    log_p = np.array([log_prob for log_prob, _ in results])
    if "choices" in items[0]:
        characters = np.array([len(choice.strip()) for item in items for choice in item["choices"]])
        # The scores of all items stand one behind the other; they are split where the next item's choices begin
        split_at = np.cumsum([len(item["choices"]) for item in items])[:-1]

        def hits(
            score: np.ndarray,
        ) -> np.ndarray:  # (choices of all items,) → (items,): 1 where the best choice is gold
            best = [scores.argmax() for scores in np.split(score, split_at)]
            return np.array([choice == item["gold"] for choice, item in zip(best, items, strict=True)], dtype=float)

        right = hits(log_p / characters)
        record = {"accuracy": mean_interval(hits(log_p), seed), "accuracy_norm": mean_interval(right, seed)}
    else:
        right = np.array([greedy for _, greedy in results], dtype=float)
        record = {"accuracy": mean_interval(right, seed), "log_prob": mean_interval(log_p, seed)}
    return {**record, "items": right.astype(int).tolist()}


def main_accuracy(task: dict) -> dict:
    """Of a task's record the accuracy that the paper reports: length-normalised where there are choices."""
    return task.get("accuracy_norm", task["accuracy"])


@torch.no_grad()
def continuation_log_probs(
    model: GPT, pairs: list[tuple[list[int], list[int]]], process: Process, label: str = "likelihood"
) -> list[tuple[float, bool]]:
    """For each (context, continuation) in token ids: log p(continuation | context) in nats, and whether every token of
    it is the most probable one. A context that does not fit the model's is cut from the left. Ranks share the pairs.

    UserError for a pair that has no likelihood (data.tasks.check_pairs). On a signal the run stops here.
    """
    window = model.config.context + 1  # the last token of a pair is predicted and no input
    check_pairs(pairs, model.config.context, label)
    # Longest first: the pairs of a batch are about equally long, so little of it is padding
    mine = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))[process.rank :: process.world]
    results: dict[int, tuple[float, bool]] = {}
    start = 0
    with tqdm(total=len(mine), desc=label, unit="item", disable=not process.main or None, leave=False) as bar:
        while start < len(mine) and not process.stopping():
            width = min(window, sum(map(len, pairs[mine[start]])))
            batch = mine[start : start + max(1, BATCH_TOKENS // width)]
            results |= zip(batch, _log_probs(model, [pairs[i] for i in batch], width, process), strict=True)
            start += len(batch)
            bar.update(len(batch))
    everything = {i: result for part in process.gather(results) for i, result in part.items()}
    return [everything[i] for i in range(len(pairs))]


def _log_probs(
    model: GPT, pairs: list[tuple[list[int], list[int]]], width: int, process: Process
) -> list[tuple[float, bool]]:
    """`continuation_log_probs` of one batch: the last `width` tokens of each pair."""
    tokens = np.zeros((len(pairs), width), dtype=np.int64)
    row, column = [], []  # where the tokens of all continuations stand
    for i, (context, continuation) in enumerate(pairs):
        both = (context + continuation)[-width:]
        tokens[i, : len(both)] = both
        row += [i] * len(continuation)
        column += range(len(both) - len(continuation), len(both))
    device = model.head.weight.device
    tokens, row, column = (torch.from_numpy(np.asarray(x)).to(device) for x in (tokens, row, column))
    targets = tokens[row, column]  # (N,), here the N tokens of all continuations
    with process.autocast():
        hidden = model(tokens[:, :-1])[row, column - 1]  # (N, C): a token is predicted at the place before it
        log_prob = _target_log_prob(model, hidden, targets)
        # 512 at a time: the logits of all of them would take more memory than the model
        greedy = torch.cat([model.logits(h).argmax(-1) for h in hidden.split(512)]) == targets
    sizes = [len(continuation) for _, continuation in pairs]
    return [(p.sum().item(), bool(g.all())) for p, g in zip(log_prob.split(sizes), greedy.split(sizes), strict=True)]


def _target_log_prob(model: GPT, hidden: Tensor, targets: Tensor) -> Tensor:
    """(N,) log p of each target from the hidden state (N, C) before it."""
    return kernels.linear_log_prob(hidden, model.head.weight, targets).log_prob


# ---------------------------------------------------------------------------------------------------------------------
# Bits per byte
# ---------------------------------------------------------------------------------------------------------------------


def document_starts(tokens: Tensor, eos: int) -> Tensor:
    """(B, T): where the document of each token starts in its row; a document begins after an eos."""
    position = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    begins = torch.zeros_like(position)  # its position, where a document begins; else 0
    begins[:, 1:] = torch.where(tokens[:, :-1] == eos, position[:, 1:], 0)
    return begins.cummax(1).values  # the latest beginning up to each token


@torch.no_grad()
def bits_per_byte(
    model: GPT,
    tokenizer: Tokenizer,
    loader: Loader,
    source: str,
    n_tokens: int,
    process: Process,
    doc_mask: bool = False,
) -> dict:
    """Held-out text of a source, about `n_tokens` of it: {"bits_per_byte", "loss" (nats a token), "tokens"}. Ranks
    share the batches. doc_mask: documents are kept apart, as the model was pretrained."""
    nats = tokens = n_bytes = 0.0
    token_bytes = torch.from_numpy(tokenizer.token_bytes)  # (V,) bytes of text that a token stands for
    rows = max(1, BATCH_TOKENS // loader.seq_len)
    for i, batch in process.unless_stopping(enumerate(loader.val_batches(source, rows, n_tokens))):
        if i % process.world != process.rank:
            continue
        batch = torch.from_numpy(batch)  # (B, T + 1)
        targets = batch[:, 1:].flatten()
        with process.autocast():
            inputs = batch[:, :-1].to(process.device)  # (B, T)
            doc_start = document_starts(inputs, tokenizer.eos) if doc_mask else None
            hidden = model(inputs, doc_start=doc_start).flatten(0, 1)  # (B·T, C)
            log_prob = _target_log_prob(model, hidden, targets.to(process.device))
        nats -= log_prob.cpu().double().sum().item()  # there is no fp64 on an MPS device
        tokens += targets.numel()
        n_bytes += token_bytes[targets].sum().item()
    total = process.sum({"nats": nats, "tokens": tokens, "bytes": n_bytes})
    loss = total["nats"] / total["tokens"]
    bits = total["nats"] / math.log(2) / total["bytes"]
    return {"bits_per_byte": bits, "loss": loss, "tokens": int(total["tokens"])}


def held_out_text(
    data: str, n_tokens: int, of: str, tokenizer: Tokenizer, seq_len: int, process: Process
) -> tuple[Loader | None, list[str]]:
    """A loader of the held-out text of a data folder (None if it has no text), its `sources` those to be measured; and
    the names of those that are left out because their text fills no window of seq_len + 1 tokens. All that will be
    measured is read once. UserError for a folder of another tokenizer, and for text that is damaged.

    Args:
        n_tokens: of each source. of: the model's name in messages. seq_len: tokens that a window predicts.
    """
    if not any(Path(data).glob("*/meta.json")):
        return None, []
    loader = Loader(data, {}, 1, seq_len, seed=0)  # no training text is wanted: {} is an empty mix, 1 the batch
    if loader.tokenizer != tokenizer.name:
        raise UserError(
            f"{data} is tokenized with {loader.tokenizer!r}, {of} with {tokenizer.name!r}: "
            "pass the --data of this model, or measure no text (--tasks none, --eval_tasks none)"
        )
    loader.verify(process, ("val",))
    short = [name for name, source in loader.sources.items() if not source.val.windows(seq_len)]
    loader.sources = {name: source for name, source in loader.sources.items() if name not in short}
    # Read it now: what is damaged stops the evaluation before its first sample, not after hours
    for source in loader.sources:
        for _ in loader.val_batches(source, 64, n_tokens):
            pass
    return loader, short
