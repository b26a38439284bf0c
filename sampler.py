"""The batch sampler: prompts × n continuations, used by GRPO and by evaluation.

- A prompt is prefilled once; its n rows share the keys and values of that prefill.
- A fixed number of slots decode together. A row that finishes gives its slot to the next waiting row at once; when
  nothing waits any more, the last row moves into the hole, so that the live rows are always the first ones.
- Prompts are taken in order of length, so that a batch of prefills is hardly padded.
- The random number for token t of row r is a hash of (seed, r, t). So the tokens do not depend on the number of slots,
  on which rows decode side by side, or on when a row got its slot.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

import kernels
from cli import UserError
from model import GPT, KVCache

BLOCK = 128  # words in a block of the two-level search for a token
NUCLEUS_FIRST = 8  # most probable tokens that top-p looks at before it sorts the vocabulary
PREFILL_TOKENS = 4096  # prompts are prefilled in batches of about so many tokens


@dataclass
class SamplerConfig:
    """Flags of whatever samples. They change memory and time, not the answers."""

    slots: int = 512  # answers sampled side by side on a rank
    kv_gib: float = 4.0  # memory for keys and values in sampling, in GiB; bounds --slots


@dataclass
class Samples:
    """R = len(prompts) · n rows, row r continuing prompt r // n. All on the CPU.

    What lies behind a row's length is undefined: use `mask`, never token ids, to tell.
    """

    tokens: Tensor  # (R, max_new_tokens) int64; the stop token, if sampled, is the last of the length
    log_probs: Tensor  # (R, max_new_tokens) fp32, log p at the sampling temperature (before top-p)
    lengths: Tensor  # (R,) int64 generated tokens, the stop token included
    finished: Tensor  # (R,) bool: ended by the stop token; False: cut at max_new_tokens
    prompt_index: Tensor  # (R,) int64

    @property
    def mask(self) -> Tensor:
        """(R, max_new_tokens) bool: the generated tokens, the sampled stop token among them."""
        return torch.arange(self.tokens.shape[1]) < self.lengths[:, None]

    def response(self, row: int) -> list[int]:
        """The generated tokens of a row without its stop token."""
        return self.tokens[row, : int(self.lengths[row]) - int(self.finished[row])].tolist()


@torch.no_grad()  # not inference_mode: samples are trained on
def sample(
    model: GPT,
    prompts: list[list[int]],
    n: int,
    *,
    stop: int,
    max_new_tokens: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    seed: int = 0,
    slots: int = 512,
    kv_gib: float = 2.0,
    row_ids: np.ndarray | None = None,
    progress: Callable[[int], None] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> Samples:
    """Sample n continuations of each prompt.

    Args:
        stop: the token that ends a row. temperature: 0 is greedy. top_p: 1 samples from the whole distribution.
        slots: rows that decode together; fewer if their keys and values would take more than `kv_gib` GiB.
        row_ids: (R,) numbers that replace r in the random numbers, for a rank that samples some rows of a larger batch.
        progress: called with the number of rows that finished.
        stopping: asked before every token; once it says True, the rest is not sampled and the result is not whole.

    Raises:
        UserError: a prompt is empty or leaves no room for max_new_tokens in the model's context; kv_gib holds no row.
    """
    rows_total = len(prompts) * n
    out = Samples(
        tokens=torch.full((rows_total, max_new_tokens), stop),
        log_probs=torch.zeros(rows_total, max_new_tokens),
        lengths=torch.zeros(rows_total, dtype=torch.long),
        finished=torch.zeros(rows_total, dtype=torch.bool),
        prompt_index=torch.arange(len(prompts)).repeat_interleave(n),
    )
    if rows_total == 0:
        return out
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise UserError("an empty prompt cannot be continued: give it at least one token")
    if longest + max_new_tokens > model.config.context:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{model.config.context}: use shorter prompts (fewer --shots) or fewer new tokens"
        )
    device, dtype = model.head.weight.device, model.head.weight.dtype
    if torch.is_autocast_enabled(device.type):
        dtype = torch.get_autocast_dtype(device.type)
    head = model.head.weight.to(dtype)  # once, not at every token
    slots = _slots_in_memory(model, rows_total, n, longest, max_new_tokens, slots, kv_gib, dtype.itemsize)
    entries = _entries(slots, n)
    like = torch.empty(0, device=device, dtype=dtype)
    cache = KVCache(model.config, entries, longest, slots, max_new_tokens, like)

    row_ids = np.arange(rows_total) if row_ids is None else np.asarray(row_ids)
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts waiting for their prefill
    prompt_length = np.zeros(entries, dtype=np.int64)  # of the prompt in each cache entry
    unfinished = np.zeros(entries, dtype=np.int64)  # rows of each entry that have not finished; 0: free
    first_logits = torch.empty(entries, model.config.vocab_size, device=device)
    waiting: list[tuple[int, int]] = []  # (row, entry) prefilled, without a slot; taken from the end
    # The live rows, each array in slot order. `new` is the number of tokens a row has generated.
    row, entry, new, token = (np.zeros(0, dtype=np.int64) for _ in range(4))
    # Tokens are kept on the device in (slot, step) form and copied out when a row finishes
    tokens = torch.zeros(slots, max_new_tokens, dtype=torch.long, device=device)
    log_probs = torch.zeros(slots, max_new_tokens, device=device)

    def draw(logits: Tensor) -> np.ndarray:
        """Choose the next token of every live row, record it, and return the tokens."""
        u = torch.from_numpy(uniform(seed, row_ids[row], new)).to(device)
        chosen, log_prob = choose(logits, u, temperature, top_p)
        place = torch.arange(len(row), device=device), torch.from_numpy(new).to(device)
        tokens[place], log_probs[place] = chosen, log_prob
        return chosen.cpu().numpy()

    members = None
    while (order or waiting or len(row)) and not stopping():
        # 1. No row waits for a free slot: prefill as many prompts as there are entries for, up to a batch
        free = np.flatnonzero(unfinished == 0)
        batch = min(max(1, PREFILL_TOKENS // longest), len(free), len(order))
        if batch and not waiting and len(row) < slots:
            taken = [order.pop() for _ in range(batch)]  # the longest first: the last ones to wait for are short
            where = free[: len(taken)]
            length = np.array([len(prompts[i]) for i in taken])
            padded = np.zeros((len(taken), length.max()), dtype=np.int64)
            for i, index in enumerate(taken):
                padded[i, : length[i]] = prompts[index]
            target = torch.from_numpy(where).to(device)
            hidden = model(torch.from_numpy(padded).to(device), attend=cache.prefill(target))
            last = hidden[torch.arange(len(taken)), torch.from_numpy(length - 1)]
            first_logits[target] = kernels.logits(last, head)
            prompt_length[where], unfinished[where] = length, n
            waiting = [(index * n + j, e) for index, e in zip(taken, where, strict=True) for j in range(n)][::-1]
        # 2. Waiting rows take the free slots; their first token comes from the prefill
        admitted = min(slots - len(row), len(waiting))
        if admitted:
            new_row, new_entry = np.array([waiting.pop() for _ in range(admitted)]).T
            row, entry = np.append(row, new_row), np.append(entry, new_entry)
            new, token = np.append(new, np.zeros(admitted, np.int64)), np.append(token, np.zeros(admitted, np.int64))
            members = None
        # 3. One token for every live row: one decoding step, except for rows that were just admitted
        fresh = new == 0
        logits = []
        old = len(row) - int(fresh.sum())  # fresh rows stand behind the others
        if old:
            if members is None:
                members = torch.from_numpy(_members(entry[:old])).to(device)
            position = torch.from_numpy(prompt_length[entry[:old]] + new[:old] - 1).to(device)
            attend = cache.decode(
                torch.from_numpy(new[:old] - 1).to(device),
                torch.from_numpy(prompt_length[entry[:old]]).to(device),
                members,
            )
            hidden = model(torch.from_numpy(token[:old, None]).to(device), position[:, None], attend)
            logits.append(kernels.logits(hidden[:, 0], head))
        if fresh.any():
            logits.append(first_logits[torch.from_numpy(entry[old:]).to(device)])
            members = None
        token = draw(torch.cat(logits) if len(logits) > 1 else logits[0])
        new += 1
        # 4. Rows that are done are copied out, and the rows behind close the gaps
        done = (token == stop) | (new == max_new_tokens)
        if done.any():
            slot = torch.from_numpy(np.flatnonzero(done))
            target = torch.from_numpy(row[done])
            out.tokens[target], out.log_probs[target] = tokens[slot].cpu(), log_probs[slot].cpu()
            out.lengths[target] = torch.from_numpy(new[done])
            out.finished[target] = torch.from_numpy(token[done] == stop)
            np.subtract.at(unfinished, entry[done], 1)
            live = len(row) - int(done.sum())
            holes = np.flatnonzero(done[:live])
            movers = live + np.flatnonzero(~done[live:])
            if len(holes):
                source, hole = torch.from_numpy(movers).to(device), torch.from_numpy(holes).to(device)
                cache.move(source, hole, int(new[movers].max()))
                tokens[hole], log_probs[hole] = tokens[source], log_probs[source]
                for array in (row, entry, new, token):
                    array[holes] = array[movers]
            row, entry, new, token = row[:live], entry[:live], new[:live], token[:live]
            members = None
            if progress:
                progress(int(done.sum()))
    if not out.log_probs.isfinite().all():  # once for all: a logit that is not finite makes its row's log-prob NaN
        raise UserError("the model's logits are not finite: training diverged, or the checkpoint is not sound")
    return out


@dataclass
class Continuation:
    """One sampled answer to a prompt."""

    tokens: list[int]  # the stop token, if it was sampled, is the last one
    log_probs: np.ndarray  # (len(tokens),) fp32, log p at the sampling temperature (before top-p)
    finished: bool  # ended by the stop token; False: cut at max_new_tokens

    @property
    def text_tokens(self) -> list[int]:
        """The tokens without the stop token: what is decoded and judged."""
        return self.tokens[: len(self.tokens) - self.finished]


def sample_over_ranks(
    model: GPT,
    prompts: list[list[int]],
    n: int,
    process,
    make: Callable[[int, list[Continuation]], object],
    *,
    first: int = 0,
    label: str = "",
    **sampling,
) -> list:
    """Sample n continuations of each prompt, shared out over the ranks: rank r takes prompts r, r + world, ...

    Args:
        process: runtime.Process. May stop the run.
        make: make(i, answers) makes what is wanted of the n answers to prompts[i]; it is called on one rank.
        first: number of prompts[0] in the run. The random numbers depend on it, not on the number of ranks.
        label: title of a progress bar; "": none. sampling: as for `sample`.

    Returns:
        What `make` returned for each prompt, in their order, on every rank.
    """
    mine = np.arange(len(prompts))[process.rank :: process.world]
    hidden = not (label and process.main) or None  # None: hidden where there is no terminal
    with (
        tqdm(total=len(mine) * n, desc=label, unit="row", disable=hidden, leave=False, dynamic_ncols=True) as bar,
        process.autocast(),
    ):
        samples = sample(
            model,
            [prompts[i] for i in mine],
            n,
            row_ids=((first + mine[:, None]) * n + np.arange(n)).ravel(),  # never the same numbers twice in a run
            progress=bar.update,
            stopping=process.stopping,
            **sampling,
        )
    made = []
    for j, i in process.unless_stopping(enumerate(mine)):
        answers = [
            Continuation(samples.tokens[r, :m].tolist(), samples.log_probs[r, :m].numpy().copy(), finished)
            for r, m, finished in (
                (r, int(samples.lengths[r]), bool(samples.finished[r])) for r in range(j * n, (j + 1) * n)
            )
        ]
        made.append(make(int(i), answers))
    shares = process.gather(made)
    return [shares[i % process.world][i // process.world] for i in range(len(prompts))]


def choose(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at u.

    Args:
        logits: (B, V) fp32. u: (B,) in [0, 1).

    Returns:
        tokens (B,) and their log-probs (B,) at `temperature`, over the whole vocabulary (top_p does not renormalise).
        Greedy tokens (temperature 0) have the log-probs of temperature 1.
    """
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()  # (B, V), proportional to the probabilities
    if temperature == 0.0:
        token, total = logits.argmax(-1, keepdim=True), weight.sum(-1, keepdim=True)
    elif top_p < 1.0:
        total = weight.sum(-1, keepdim=True)
        token = _nucleus(weight, u, top_p * total)
    else:
        token, total = _invert(weight, u)
    log_prob = weight.gather(1, token).log() - total.log()  # no token of weight 0 is ever chosen
    return token.squeeze(1), log_prob.squeeze(1)


def _nucleus(weight: Tensor, u: Tensor, goal: Tensor) -> Tensor:
    """(B, 1) a token per row, drawn at u from the fewest most probable ones whose `weight` (B, V) reaches goal (B, 1)
    (the nucleus, arXiv 1904.09751)."""

    def draw(sorted_weight, index, u, goal):
        before = sorted_weight.cumsum(-1) - sorted_weight
        return index.gather(1, _invert(sorted_weight * (before < goal), u)[0])

    # Nearly always the nucleus is among a row's first few, and to find those is a tenth of the work of sorting all
    index = weight.topk(min(NUCLEUS_FIRST, weight.shape[1]), sorted=False).indices.sort(-1).values
    first, order = weight.gather(1, index).sort(dim=-1, descending=True, stable=True)  # of equal tokens the first first
    index = index.gather(1, order)
    token = draw(first, index, u, goal)
    larger = (first.cumsum(-1)[:, -1:] < goal).squeeze(1).nonzero().squeeze(1)
    if len(larger):
        token[larger] = draw(*weight[larger].sort(dim=-1, descending=True, stable=True), u[larger], goal[larger])
    return token


def _invert(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 1) the first index at which the cumulative sum of `weight` (B, V) exceeds u of its total, and the totals.

    In two levels, blocks and then words in the block: a running sum over 100,000 words is slow and less exact.
    """
    width = weight.shape[1]
    if width % BLOCK:
        weight = F.pad(weight, (0, -width % BLOCK))
    blocks = weight.view(len(weight), -1, BLOCK)
    cumulative = blocks.sum(-1).cumsum(-1)  # (B, V / BLOCK)
    total = cumulative[:, -1:]
    goal = u[:, None] * total  # below the total: for u ≤ 1 - 2⁻²⁴ no fp32 product rounds up to it
    block = torch.searchsorted(cumulative, goal, right=True).clamp(max=blocks.shape[1] - 1)
    before = cumulative.gather(1, block) - blocks.sum(-1).gather(1, block)
    goal = (goal - before).clamp(min=0)  # rounding may put it before the block: take the first word with any weight
    inner = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1)  # (B, BLOCK)
    place = torch.searchsorted(inner.cumsum(-1), goal, right=True)
    # rounding may put the goal at or behind the block's end: take the last word of it that has any weight
    last = BLOCK - 1 - (inner > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    index = block * BLOCK + torch.minimum(place, last)
    return index.clamp(max=width - 1), total  # of a row of NaN there is no right index; `sample` finds it at the end


def uniform(seed: int, row: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1), fp32, one per (seed, row, t): three rounds of the splitmix64 finaliser."""

    def mix(x):
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return x ^ (x >> np.uint64(31))

    with np.errstate(over="ignore"):
        golden = np.uint64(0x9E3779B97F4A7C15)
        x = mix(np.uint64(seed & (2**64 - 1)) + golden)
        x = mix(x ^ (row.astype(np.uint64) * golden))
        x = mix(x + t.astype(np.uint64) * golden)
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)


def _members(entry: np.ndarray) -> np.ndarray:
    """(P, M): the rows of each cache entry 0 .. max(entry), padded with len(entry)."""
    order = np.argsort(entry, kind="stable")
    count = np.bincount(entry)
    members = np.full((len(count), count.max()), len(entry))
    column = np.arange(len(entry)) - np.repeat(np.cumsum(count) - count, count)
    members[entry[order], column] = order
    return members


def _entries(slots: int, n: int) -> int:
    """Prompts held at once: those of the live rows, and as many again that wait or have only a straggler left."""
    return 2 * math.ceil(slots / n) + 8


def _slots_in_memory(model, rows: int, n: int, prompt: int, new: int, slots: int, gib: float, itemsize: int) -> int:
    """The most slots, up to `slots`, whose rows and prompts fit in `gib` GiB of keys and values."""
    per_token = KVCache.bytes_per_token(model.config, itemsize)

    def size(s):
        return per_token * (s * new + _entries(s, n) * prompt)

    slots = min(slots, rows)
    if size(1) > gib * 2**30:
        raise UserError(f"--kv_gib {gib}: one row of {prompt} + {new} tokens needs {size(1) / 2**30:.2f} GiB; raise it")
    low, high = 1, slots  # size() grows with s
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if size(middle) <= gib * 2**30 else (low, middle - 1)
    return low
