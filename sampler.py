"""The batch sampler: n continuations of each prompt, for GRPO and for evaluation.

    while rows are left:                     a row is one continuation
        prefill    the next prompts: once each, their n rows share its keys and values
        admit      rows that wait into the free places
        decode     one token for every row; with pages (paged.py) sixteen
        retire     rows that are done
        share      what rows have in common: those that have drawn the same tokens of the same prompt are computed once

- Prompts are taken in order of length, the longest first, so that a batch of prefills is hardly padded.
- The random number for token t of row r is a hash of (seed, r, t). So the tokens do not depend, but for rounding, on which
  rows decode side by side, or on when a row got its place.

Letters for shapes are those of model.py. R live rows stand in the places 0 .. R-1. The cache has entries for prompts,
and slots for what rows generate: the rows use the slots 0 .. B-1, and B < R where some share one (four rows of a prompt
that have drawn the same tokens: four places, one slot, one entry). G query heads read one key head, and S = prompt and
own tokens that a row may see.
"""

import math
import os
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

import kernels
from cli import UserError
from model import GPT, Attend, GPTConfig
from paged import PAGE, PagedCache, decode_step, follows_model, upload

PAGED = {"cuda"}  # kinds of devices with a kernel that reads keys and values in pages
SLOTS, PAGED_SLOTS = 1024, 512  # places, and slots, if kv_gib has room; with pages each row has a slot of its own
PREFILL_TOKENS = 4096  # prompts are prefilled in batches of about so many tokens
BLOCK = 128  # words of the vocabulary in a block of the two-level search for a token (_invert)
NUCLEUS_FIRST = 8  # most probable tokens that top-p looks at before it sorts the vocabulary


@dataclass
class SamplerConfig:
    """Sampling: changes memory and time, not the answers"""

    kv_gib: float = 4.0  # memory for keys and values in sampling, in GiB; 0: what is free, less a margin


@dataclass
class Continuation:
    """One sampled answer to a prompt."""

    tokens: list[int]  # the stop token, if it was sampled, is the last one
    text_tokens: list[int]  # without the stop token: what is decoded and judged
    log_probs: np.ndarray  # (len(tokens),) fp32, log p at the sampling temperature (before top-p)
    finished: bool  # ended by the stop token; False: cut at max_new_tokens


@torch.no_grad()
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
    kv_gib: float = SamplerConfig.kv_gib,
    numbers: list[int] | None = None,
    progress: Callable[[int], object] | None = None,
    stopping: Callable[[], bool] = lambda: False,
) -> list[list[Continuation]]:
    """Sample n continuations of each prompt.

    Args:
        stop: the token that ends a row. temperature: 0 is greedy. top_p: 1 samples from the whole distribution.
        kv_gib: memory for keys and values, in GiB (0: `free_gib`). It bounds the rows that decode together, which are
            at most SLOTS (with pages PAGED_SLOTS).
        numbers: (P,) number of each prompt, on which its random numbers depend; default 0, 1, ... A batch that is
            sampled in parts, or after another, numbers its prompts throughout.
        progress: called with the number of rows that finished.
        stopping: asked every few tokens; once it says True, sampling ends without a result.

    Returns:
        The n continuations of each prompt; [] if `stopping` said True.

    Raises:
        UserError: a prompt is empty or leaves no room for max_new_tokens in the model's context; kv_gib holds no row;
            the model's logits are not finite.
    """
    if not prompts or not n:
        return [[] for _ in prompts]
    longest = max(map(len, prompts))
    if min(map(len, prompts)) == 0:
        raise UserError("an empty prompt cannot be continued: give it at least one token")
    if longest + max_new_tokens > model.config.context:
        raise UserError(
            f"a prompt of {longest} tokens and {max_new_tokens} new ones exceed the model's context of "
            f"{model.config.context}: use shorter prompts (fewer --shots) or fewer new tokens"
        )
    numbers = np.arange(len(prompts)) if numbers is None else np.asarray(numbers)
    row_ids = (numbers[:, None] * n + np.arange(n)).ravel()  # (P·n,) never the same one twice in a run
    slots = Slots(model, prompts, n, stop, max_new_tokens, kv_gib)
    while slots.unfinished:
        if stopping():
            return []
        slots.prefill()
        slots.admit()
        slots.decode(row_ids, seed, temperature, top_p)
        retired = slots.retire()
        slots.share()
        if retired and progress:
            progress(retired)
    return [slots.answers[i : i + n] for i in range(0, len(slots.answers), n)]


def free_gib(device: torch.device, weights: int) -> float:
    """GiB for keys and values where kv_gib is 0. On a GPU: what is free, less the weights once more (autocast keeps
    them in its type, `weights` bytes), 2 GiB for activations and logits, and a tenth for what does not fit together.
    Elsewhere a quarter of the machine's memory, divided among its ranks."""
    if device.type == "cuda":
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)  # PyTorch keeps it for later
        free = 0.9 * (torch.cuda.mem_get_info(device)[0] + unused) - weights - 2 * 2**30
    else:
        ranks = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 4 / ranks
    return max(0.0, free / 2**30)


# A row that decodes or waits
ROW = np.dtype([
    ("row", np.int64),  # its number r, of all rows of this call
    ("entry", np.int64),  # where its prompt stands in the cache
    ("prompt", np.int64),  # tokens of the prompt
    ("new", np.int64),  # tokens generated so far
    ("token", np.int64),  # the last of them
    # its slot, which has keys and values of its tokens but the last; rows with the same tokens have one. Not used with pages
    ("slot", np.int64),
])  # fmt: skip


class Slots:
    """The rows that decode together. Row r of all continues prompt r // n.

    Their slots are the first B, so that a decoding step reads these as views and copies nothing. Rows share a slot
    until they draw different tokens (with pages each has its own). There are as many slots as places, so that none
    lacks one then.
    """

    def __init__(self, model: GPT, prompts: list[list[int]], n: int, stop: int, max_new_tokens: int, kv_gib: float):
        self.model, self.prompts, self.n, self.stop, self.max_new_tokens = model, prompts, n, stop, max_new_tokens
        weight, c, longest = model.head.weight, model.config, max(map(len, prompts))
        self.device, dtype = weight.device, weight.dtype
        if torch.is_autocast_enabled(self.device.type):
            dtype = torch.get_autocast_dtype(self.device.type)
        self.head = weight.to(dtype)  # once, not at every token
        kv_gib = kv_gib or free_gib(self.device, model.n_params * dtype.itemsize)

        # As many places and slots as fit in kv_gib, with room for the prompts of the live rows, and for as many again
        # that wait or have only a straggler left. A row takes pages as it grows: a quarter of the longest answer for
        # each will do
        self.paged = self.device.type in PAGED and kernels.on_triton(self.head) and c.head_dim <= 128
        slots = np.arange(1, min(SLOTS, PAGED_SLOTS if self.paged else SLOTS, len(prompts) * n) + 1)
        entries = 2 * np.ceil(slots / n).astype(int) + 8
        own, prompt = slots * max_new_tokens, longest
        if self.paged:
            own, prompt = np.maximum(slots // 4, 1) * (max_new_tokens + 2 * PAGE), longest + PAGE
        per_token = 2 * c.n_layers * c.n_kv_heads * c.head_dim * dtype.itemsize  # bytes
        gib = per_token * (own + entries * prompt) / 2**30
        if gib[0] > kv_gib:
            raise UserError(
                f"--kv_gib {kv_gib:g}: one row of {longest} + {max_new_tokens} tokens needs {gib[0]:.2f} GiB; raise it"
            )
        fit = np.flatnonzero(gib <= kv_gib)[-1]
        self.slots, self.entries = int(slots[fit]), int(entries[fit])
        sizes = (c, self.entries, longest, self.slots, max_new_tokens, self.head)
        self.cache = PagedCache(*sizes, int(kv_gib * 2**30 / per_token) // PAGE) if self.paged else KVCache(*sizes)
        self.look = self.cache.look if self.paged else 1  # tokens drawn before the host looks which rows are done

        self.prefill_batch = max(1, PREFILL_TOKENS // longest)
        self.first_logits = torch.empty(self.entries, c.vocab_size, device=self.device)  # after each prompt
        self.tokens = np.zeros((self.slots, max_new_tokens), np.int64)  # of the live rows, in their order
        self.log_probs = np.zeros((self.slots, max_new_tokens), np.float32)

        self.order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))  # prompts to prefill, the last first
        self.waiting = np.zeros(0, ROW)  # rows whose prompt is prefilled, without a place
        self.live = np.zeros(0, ROW)  # rows that decode
        self.first = np.zeros(0, np.int64)  # (B,) the place of one row of each slot, in the order of slots
        self.answers: list[Continuation | None] = [None] * (len(prompts) * n)
        self.unfinished = len(self.answers)

    def prefill(self) -> None:
        """Compute the next prompts once for their n rows, which then wait. Does nothing while rows wait or no place is
        free: so few prompts stand in the cache."""
        if not self.order or len(self.waiting) or len(self.live) == self.slots:
            return
        free = np.setdiff1d(np.arange(self.entries), self.live["entry"])
        entry = free[: min(self.prefill_batch, len(self.order))]
        if not len(entry):  # every entry holds the prompt of a live row
            return
        # The longest first: what is left at the end, when few rows decode side by side, is short
        taken = [self.order.pop() for _ in entry]
        length = np.array([len(self.prompts[i]) for i in taken])
        padded = np.zeros((len(taken), length.max()), dtype=np.int64)
        for i, index in enumerate(taken):
            padded[i, : length[i]] = self.prompts[index]
        target = torch.from_numpy(entry).to(self.device)
        hidden = self.model(torch.from_numpy(padded).to(self.device), attend=self.cache.prefill(target))
        last = hidden[torch.arange(len(taken)), torch.from_numpy(length - 1)]  # (P, C) at each prompt's last token
        self.first_logits[target] = kernels.logits(last, self.head)
        # The n rows of each of these prompts
        self.waiting = np.zeros((len(taken), self.n), ROW)
        self.waiting["row"] = np.array(taken)[:, None] * self.n + np.arange(self.n)
        self.waiting["entry"], self.waiting["prompt"] = entry[:, None], length[:, None]
        self.waiting = self.waiting.ravel()

    def admit(self) -> None:
        """Give the free places, behind the live rows, to waiting rows. Their slots come after their first token (`share`)."""
        free = self.slots - len(self.live)
        if free and len(self.waiting):
            self.live = np.concatenate([self.live, self.waiting[:free]])
            self.waiting = self.waiting[free:]
        if self.paged:
            # The last rows wait if pages run out, and begin again later: their random numbers, and so their tokens, are
            # the same then
            left = self.cache.reserve(self.live)
            again, self.live = self.live[left:].copy(), self.live[:left]
            again["new"] = 0
            self.waiting = np.concatenate([again, self.waiting])

    def decode(self, row_ids: np.ndarray, seed: int, temperature: float, top_p: float) -> None:
        """Draw the next tokens of every live row: from its prompt's logits if it was just admitted, else by a decoding step.

        `look` tokens are drawn before the host sees them. What a row draws behind its end is left out.
        """
        live, look, context = self.live, self.look, self.model.config.context
        old = np.count_nonzero(live["new"])  # rows that have a token already: they stand before those just admitted
        # What all steps need goes to the device at once
        ahead = np.arange(look)[:, None]
        position = np.minimum(live["prompt"] + live["new"] - 1 + ahead, context - 1)  # (look, R), of the token before
        u = uniform(seed, row_ids[live["row"]], live["new"] + ahead)  # (look, R)
        arrays = (position, u, live["token"], live["entry"])
        position, u, token, entry = (
            upload(x, self.device) if self.paged else torch.from_numpy(x).to(self.device) for x in arrays
        )
        drawn = []
        for step in range(look):
            # The last token of rows that have one goes through the model, at its position
            begun = len(live) if step else old
            logits = []
            if begun:
                one = slice(begun) if self.paged else self.first  # a row of each slot stands for all of it
                rows = live[one]
                attend = self.cache.decode(rows["entry"], rows["prompt"], rows["new"] - 1 + step)
                arguments = token[one, None], position[step, one, None], attend
                # tests have pages without these kernels
                fused = self.paged and kernels.on_triton(self.head) and follows_model()
                hidden = decode_step(self.model, *arguments) if fused else self.model(*arguments)
                of_slots = kernels.logits(hidden[:, 0], self.head)  # (B, V)
                logits.append(of_slots if self.paged else of_slots[live["slot"][:begun]])  # of rows
            if begun < len(live):
                logits.append(self.first_logits[entry[begun:]])
            # One token for each
            token, log_prob = choose(torch.cat(logits) if len(logits) > 1 else logits[0], u[step], temperature, top_p)
            drawn.append((token, log_prob))
        tokens, log_probs = (torch.stack(x).cpu().numpy() for x in zip(*drawn, strict=True))  # here the host waits

        # Tokens up to a row's end, (R,) of them, are stored
        stopped = tokens == self.stop
        count = np.where(stopped.any(0), stopped.argmax(0) + 1, look)
        count = np.minimum(count, self.max_new_tokens - live["new"])
        step, row = np.nonzero(ahead < count)
        at = row, live["new"][row] + step
        self.tokens[at], self.log_probs[at] = tokens[step, row], log_probs[step, row]
        live["token"] = tokens[count - 1, np.arange(len(live))]
        live["new"] += count

    def retire(self) -> int:
        """Take the answers of rows that are done, and move rows from the end to their places. Returns how many were done."""
        live = self.live
        done = (live["token"] == self.stop) | (live["new"] == self.max_new_tokens)
        if not done.any():
            return 0
        for i in np.flatnonzero(done):
            row, length = live[i], live["new"][i]
            tokens, log_probs = self.tokens[i, :length].tolist(), self.log_probs[i, :length].copy()
            if not np.isfinite(log_probs).all():  # a logit that is not finite makes its row's log-prob NaN
                raise UserError("the model's logits are not finite: training diverged, or the checkpoint is not sound")
            finished = bool(row["token"] == self.stop)
            self.answers[row["row"]] = Continuation(tokens, tokens[:-1] if finished else tokens, log_probs, finished)
        # The first `left` places stay; rows that live behind them move into the gaps
        left = len(live) - np.count_nonzero(done)
        holes, movers = np.flatnonzero(done[:left]), left + np.flatnonzero(~done[left:])
        if self.paged:
            self.cache.move(movers, holes, left)
        for x in (live, self.tokens, self.log_probs):
            x[holes] = x[movers]
        self.live = live[:left]
        self.unfinished -= len(done) - left
        return len(done) - left

    def share(self) -> None:
        """Regroup the rows after a token. Rows stay together if they shared a slot (or, at their first token, a prompt)
        and drew the same token. Each of the B groups gets one of the slots 0 .. B-1: the first group of a slot keeps
        it, the others take free ones and copy its keys and values. Where rows 0 1 2 3 of a prompt draw 7 7 9 7 first,
        their slots are 0 0 1 0; where row 1 then draws a larger token than 0 and 3, they are 0 2 1 0.
        """
        if self.paged:
            return
        live, no_slot = self.live, self.slots
        # The groups, and the slot that each comes from; behind all slots a number for each prompt, where it has none yet
        source = np.where(live["new"] == 1, no_slot + live["entry"], live["slot"])
        key = source * self.model.config.vocab_size + live["token"]
        _, first, group = np.unique(key, return_index=True, return_inverse=True)
        source, b = source[first], len(first)  # (B,)
        # The first group of a slot below B keeps it; the other groups get the slots below B that no group comes from
        used, heir = np.unique(source, return_index=True)
        slot, kept = np.full(b, -1), used < b
        slot[heir[kept]] = used[kept]
        moved = np.flatnonzero(slot < 0)
        slot[moved] = np.setdiff1d(np.arange(b), used[kept])
        # They copy keys and values of all tokens but the one just drawn. Read are slots that groups come from, written others
        moved = moved[source[moved] < no_slot]
        if len(moved):
            read, write = (torch.from_numpy(x[moved]).to(self.device) for x in (source, slot))
            length = int(live["new"][first[moved]].max()) - 1
            for x in (self.cache.own_k, self.cache.own_v):
                x[:, write, :length] = x[:, read, :length]
        live["slot"], self.first = slot[group], first[np.argsort(slot)]


class KVCache:
    """Keys and values for decoding many rows at once, each row at a position of its own.

    Two parts: `prompt` entries are computed once and attended by all rows that continue that prompt; `own` slots hold
    what rows have generated. Both are allocated once.

        prompt_k, prompt_v: (L, entries, H_kv, prompt_len, D)        own_k, own_v: (L, slots, new_tokens, H_kv, D)
    """

    def __init__(self, c: GPTConfig, entries: int, prompt_len: int, slots: int, new_tokens: int, like: Tensor):
        shape = (c.n_layers, entries, c.n_kv_heads, prompt_len, c.head_dim)
        self.prompt_k, self.prompt_v = like.new_zeros(shape), like.new_zeros(shape)
        shape = (c.n_layers, slots, new_tokens, c.n_kv_heads, c.head_dim)
        self.own_k, self.own_v = like.new_empty(shape), like.new_empty(shape)
        self.group = c.n_heads // c.n_kv_heads  # G
        self.grouped = np.zeros(0, dtype=np.int64)  # entries of the rows for which `decode` last laid out groups

    def prefill(self, entries: Tensor) -> Attend:
        """Attend causally within right-padded prompts (P, T) and store them as prompt `entries` (P,)."""

        def attend(layer, q, k, v):
            # under autocast the norms and the rotation leave q and k in fp32
            self.prompt_k[layer, entries, :, : k.shape[1]] = k.transpose(1, 2).to(self.prompt_k.dtype)
            self.prompt_v[layer, entries, :, : v.shape[1]] = v.transpose(1, 2).to(self.prompt_v.dtype)
            return kernels.attention(q, k, v)

        return attend

    def decode(self, entry: np.ndarray, prompt_length: np.ndarray, own_length: np.ndarray) -> Attend:
        """Attend of one new token per row (T = 1), which is stored as the row's own token number `own_length`. Row i is
        that of slot i, here and below.

        Args:
            entry: (B,) where the prompt of each row stands. prompt_length: (B,) its tokens.
            own_length: (B,) own tokens stored before this one.
        """
        _, _, new_tokens, h_kv, d = self.own_k.shape
        b, g, device = len(entry), self.group, self.own_k.device

        # The keys of a prompt are read once for all its rows. For that the rows of one prompt are laid side by side, M
        # seats for each of P entries (all up to the last that is used), M being the largest number of rows that a
        # prompt has:
        #     seat (B,)         where each row stands in this layout; rows of entries 1, 0, 1 with M = 2: 2, 0, 3
        #     members (P·M,)    the row in each seat; an empty seat repeats the last row, and its result is not used
        # The layout stays until slots are taken or given back.
        if not np.array_equal(entry, self.grouped):
            self.grouped, count = entry.copy(), np.bincount(entry)  # count (P,): rows of each entry
            self.groups = p, m = len(count), int(count.max())  # P, M
            # The rows in the order of their entries; where in that order each entry's rows begin
            order, first = np.argsort(entry, kind="stable"), np.cumsum(count) - count
            seat, members = np.empty_like(entry), np.full(p * m, b - 1)
            seat[order] = entry[order] * m + np.arange(b) - np.repeat(first, count)
            members[seat] = np.arange(b)
            # The same of the heads of rows: from the order (B, H_kv, G) to (P, H_kv, M, G), and back
            to_prompts = np.arange(b * h_kv * g).reshape(b, h_kv, g)[members].reshape(p, m, h_kv, g).swapaxes(1, 2)
            to_rows = np.arange(p * h_kv * m * g).reshape(p, h_kv, m, g).swapaxes(1, 2).reshape(p * m, h_kv, g)[seat]
            self.to_prompts, self.to_rows = (torch.from_numpy(x.ravel()).to(device) for x in (to_prompts, to_rows))
        p, m = self.groups

        # What a row sees: its prompt, and its own tokens up to the new one
        own_len, prompt_len = int(own_length.max()) + 1, int(prompt_length.max())
        own_length, prompt_length = (torch.from_numpy(x).to(device)[:, None] for x in (own_length, prompt_length))
        masked_prompt = torch.arange(prompt_len, device=device) >= prompt_length  # (B, prompt_len)
        own = torch.arange(own_len, device=device)
        masked = torch.cat([masked_prompt, own > own_length], 1)[:, None, None]  # (B, 1, 1, S)
        # Where a row's new token goes among the slots · new_tokens of a layer, and where the values that each head sees
        # are among its vectors of D numbers. Memory behind the new token may hold nan, and 0 · nan is nan: the new one
        # stands for it
        begin = torch.arange(b, device=device)[:, None] * new_tokens
        write, seen = (begin + own_length).flatten(), begin + torch.minimum(own, own_length)  # (B,), (B, own_len)
        head = torch.arange(h_kv, device=device).repeat_interleave(g)[:, None]
        values = (seen[:, None] * h_kv + head).flatten(0, 1).int()  # (B·H, own_len)
        eye = torch.eye(h_kv, device=device)[:, None, :, None]  # (H_kv, 1, H_kv, 1)

        def times_prompts(x, matrix):  # (B, H_kv, G, X) times the matrix of each row's prompt, (P, H_kv, X, Y)
            x = x.flatten(0, 2).index_select(0, self.to_prompts).view(p, h_kv, m * g, -1) @ matrix
            return x.flatten(0, 2).index_select(0, self.to_rows).view(b, h_kv, g, -1)

        def attend(layer, q, k, v):
            prompt_k, prompt_v = (x[layer, :p, :, :prompt_len] for x in (self.prompt_k, self.prompt_v))
            # (slots · new_tokens, H_kv, D)
            own_k, own_v = (cache[layer].flatten(0, 1) for cache in (self.own_k, self.own_v))
            own_k.index_copy_(0, write, k[:, 0].to(own_k.dtype))
            own_v.index_copy_(0, write, v[:, 0].to(own_v.dtype))
            q = (q[:, 0] * d**-0.5).view(b, h_kv, g, d)
            # One product with all heads' keys of a row takes less time than one for each head: a head's query is 0 at
            # the keys of others
            wide_q = (q[:, :, :, None] * eye).view(b, h_kv * g, h_kv * d)
            score = wide_q @ self.own_k[layer, :b, :own_len].flatten(2).mT  # (B, H, own_len)
            score = torch.cat([times_prompts(q, prompt_k.mT), score.view(b, h_kv, g, own_len)], -1)
            weight = score.float().masked_fill_(masked, -math.inf).softmax(-1).to(v.dtype)  # (B, H_kv, G, S)
            # A bag is a weighted sum of vectors, read where they are
            own_weight = weight[..., prompt_len:].reshape(-1, own_len)
            out = F.embedding_bag(values, own_v.view(-1, d), per_sample_weights=own_weight, mode="sum")  # (B·H, D)
            return (out.view(q.shape) + times_prompts(weight[..., :prompt_len], prompt_v)).view(b, 1, -1, d)

        return attend


def choose(logits: Tensor, u: Tensor, temperature: float, top_p: float) -> tuple[Tensor, Tensor]:
    """One token per row by inverting the cumulative distribution at u.

    Args:
        logits: (R, V) fp32. u: (R,) in [0, 1).

    Returns:
        tokens (R,) and their log-probs (R,) at `temperature`, over the whole vocabulary (top_p does not renormalise).
        Greedy tokens (temperature 0) have the log-probs of temperature 1.
    """
    if temperature not in (0.0, 1.0):
        logits = logits / temperature
    weight = (logits - logits.amax(-1, keepdim=True)).exp_()  # (R, V), proportional to the probabilities
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
    """(R, 1) a token per row, drawn at u from the fewest most probable ones whose `weight` (R, V) reaches goal (R, 1)
    (the nucleus, arXiv 1904.09751)."""

    def draw(sorted_weight, index, u, goal):  # index: the token of each weight
        before = sorted_weight.cumsum(-1) - sorted_weight
        return index.gather(1, _invert(sorted_weight * (before < goal), u)[0])

    # Nearly always the nucleus is among a row's first few, and to find those is a tenth of the work of sorting all
    index = weight.topk(min(NUCLEUS_FIRST, weight.shape[1]), sorted=False).indices.sort(-1).values
    # Equally probable ones of them stand in the order of their ids
    first, order = weight.gather(1, index).sort(dim=-1, descending=True, stable=True)
    index = index.gather(1, order)
    token = draw(first, index, u, goal)
    larger = (first.cumsum(-1)[:, -1:] < goal).squeeze(1).nonzero().squeeze(1)  # rows whose nucleus is larger: sort all
    if len(larger):
        token[larger] = draw(*weight[larger].sort(dim=-1, descending=True, stable=True), u[larger], goal[larger])
    return token


def _invert(weight: Tensor, u: Tensor) -> tuple[Tensor, Tensor]:
    """(R, 1) the first index at which the cumulative sum of `weight` (R, V) exceeds u of its total, and the totals.

    In two levels, blocks and then words in the block: a running sum over 100,000 words is slow and less exact.
    """
    width = weight.shape[1]
    if width % BLOCK:
        weight = F.pad(weight, (0, -width % BLOCK))
    blocks = weight.view(len(weight), -1, BLOCK)
    sums = blocks.sum(-1)  # (R, V / BLOCK)
    cumulative = sums.cumsum(-1)
    total = cumulative[:, -1:]
    goal = u[:, None] * total  # below the total: for u ≤ 1 - 2⁻²⁴ no fp32 product rounds up to it
    block = torch.searchsorted(cumulative, goal, right=True).clamp(max=blocks.shape[1] - 1)
    before = (cumulative - sums).gather(1, block)
    goal = (goal - before).clamp(min=0)  # rounding may put it before the block: take the first word with any weight
    inner = blocks.gather(1, block[..., None].expand(-1, -1, BLOCK)).squeeze(1)  # (R, BLOCK)
    place = torch.searchsorted(inner.cumsum(-1), goal, right=True)
    # rounding may put the goal at or behind the block's end: take the last word of it that has any weight
    last = BLOCK - 1 - (inner > 0).flip(-1).to(torch.uint8).argmax(-1, keepdim=True)
    index = block * BLOCK + torch.minimum(place, last)
    return index.clamp(max=width - 1), total  # of a row of NaN there is no right index; `sample` finds it at the end


def uniform(seed: int, row: np.ndarray, t: np.ndarray) -> np.ndarray:
    """Random numbers in [0, 1), fp32, one per (seed, row, t): three rounds of the splitmix64 finaliser."""

    golden = np.uint64(0x9E3779B97F4A7C15)
    x = np.uint64(seed & (2**64 - 1))
    with np.errstate(over="ignore"):
        for combine, value in ((np.add, np.uint64(1)), (np.bitwise_xor, row), (np.add, t)):
            x = combine(x, value.astype(np.uint64) * golden)
            x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            x = x ^ (x >> np.uint64(31))
    return ((x >> np.uint64(40)).astype(np.float64) / 2**24).astype(np.float32)
