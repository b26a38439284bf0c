"""Keys and values in pages, for the decoding kernel on a GPU (kernels/triton_decode.py): it reads each row up to its length.

sampler.py has the other cache, with a slot of full length for each row. Letters for shapes are those of model.py; X
pages of a prompt, X' own pages of a row, B live rows.
"""

import functools
import inspect
import zlib

import numpy as np
import torch
from torch import Tensor

import kernels
from model import GPT, Attend, Block, GPTConfig, RMSNorm, rotary

PAGE = 16  # tokens of a page
LOOK = 16  # so many tokens are drawn before the host looks which rows are done
FOLLOWED = 2524050650  # digest of the lines of model.py that decode_step follows


def pages_of(tokens):
    """How many pages hold so many tokens, a number or an array of numbers."""
    return -(-tokens // PAGE)


def upload(array: np.ndarray, device: torch.device) -> Tensor:
    """A numpy array on `device`, without waiting for the copy on CUDA."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


class PagedCache:
    """Keys and values of prompts and of what rows generate, in pages of one pool.

        k, v: (L, pages, PAGE, H_kv, D)        table: (slots, X + X'), on the host

    The pages e·X .. e·X + X-1 are those of prompt entry e. All others are taken by rows as they grow. A slot's row in
    the table names the pages of its prompt, which it shares, and then its own; 0 behind them. A page is free if no row
    has it.

    There are fewer pages than long answers in all slots would take. Where they run out, rows begin again later.
    """

    def __init__(
        self, c: GPTConfig, entries: int, prompt_len: int, slots: int, new_tokens: int, like: Tensor, pages: int
    ):
        self.prompt_pages, self.look = pages_of(prompt_len), min(LOOK, new_tokens)
        own_pages = pages_of(new_tokens + self.look)  # a row may draw some tokens behind its end
        self.table = np.zeros((slots, self.prompt_pages + own_pages), np.int32)
        self.first_own = entries * self.prompt_pages
        pages = min(pages, self.first_own + slots * own_pages)
        assert pages >= self.first_own + own_pages, "not even one row fits"
        shape = (c.n_layers, pages, PAGE, c.n_kv_heads, c.head_dim)
        self.k, self.v = like.new_empty(shape), like.new_empty(shape)

    def free(self) -> np.ndarray:
        """The pages that no row has, without those of prompts."""
        used = np.zeros(self.k.shape[1], bool)
        used[: self.first_own] = used[self.table] = True
        return np.flatnonzero(~used).astype(np.int32)

    def prefill(self, entries: Tensor) -> Attend:
        """Attend causally within right-padded prompts (P, T) and store them as prompt `entries` (P,)."""
        place = None

        def attend(layer, q, k, v):
            nonlocal place
            if place is None:  # (P·T,) where the tokens go among those of the pool
                first = entries[:, None] * self.prompt_pages * PAGE
                place = (first + torch.arange(k.shape[1], device=k.device)).flatten()
            for pool, x in ((self.k, k), (self.v, v)):
                pool[layer].flatten(0, 1).index_copy_(0, place, x.flatten(0, 1).to(pool.dtype))
            return kernels.attention(q, k, v)

        return attend

    def reserve(self, live: np.ndarray) -> int:
        """Pages for the next `look` tokens of the live rows (B,) of ROW. Returns how many of them, the first ones, have got
        theirs: the others must wait, and have lost what they had."""
        # Rows that were just admitted share the pages of their prompts
        column, prompt = np.arange(self.table.shape[1]), pages_of(live["prompt"])[:, None]  # (X + X',), (B, 1)
        fresh = live["new"] == 0
        shared = np.where(column < prompt, live["entry"][:, None] * self.prompt_pages + column, 0)
        self.table[: len(live)][fresh] = shared[fresh]
        # So many rows from the first on have all the pages that they need, if the others give theirs back
        needed = pages_of(live["new"][:, None] - 1 + self.look)  # (B, 1) own pages
        left = int(np.count_nonzero(np.cumsum(needed) <= self.k.shape[1] - self.first_own))
        self.table[left:] = 0
        # New pages stand behind those that a row has
        table, prompt, needed = self.table[:left], prompt[:left], needed[:left]
        added = (table == 0) & (column >= prompt) & (column < prompt + needed)
        table[added] = self.free()[: np.count_nonzero(added)]
        # What `decode` needs: the table, lengths of prompts, and own tokens before each of the next ones, (look, B)
        self.stored = live["new"][:left] - 1
        own = np.maximum(self.stored + np.arange(self.look)[:, None], 0)
        arrays = (table, live["prompt"][:left].astype(np.int32), own.astype(np.int32))
        self.pages, self.prompt, self.own = (upload(array, self.k.device) for array in arrays)
        return left

    def decode(self, entry: np.ndarray, prompt_length: np.ndarray, own_length: np.ndarray) -> Attend:
        """Attend of one new token per row (T = 1), which is stored as the row's own token number `own_length`.

        Args:
            entry, prompt_length, own_length: (B,) of the first B rows that `reserve` has given pages. All of them have
                drawn equally many tokens since.
        """
        step = own_length[0] - self.stored[0]
        pages, prompt, own = (x[: len(entry)] for x in (self.pages, self.prompt, self.own[step]))

        def attend(layer, q, k, v):
            args = (q[:, 0], k[:, 0], v[:, 0], self.k[layer], self.v[layer], pages, prompt, own)
            return kernels.decode_attention(*args)[:, None]  # (B, 1, H, D)

        return attend

    def move(self, source: np.ndarray, target: np.ndarray, left: int) -> None:
        """Rows of slots `source` move to `target`; slots from `left` on are empty then."""
        self.table[target] = self.table[source]
        self.table[left:] = 0


@functools.lru_cache
def digest(*parts) -> int:
    """CRC-32 of the source of functions and classes."""
    return zlib.crc32("".join(map(inspect.getsource, parts)).encode())


def follows_model() -> bool:
    """Does decode_step compute what model.py does? Not in a fork that has edited a block or the forward pass there:
    then the model itself decodes, more slowly, until decode_step is edited alike and FOLLOWED is the new digest."""
    return digest(RMSNorm, rotary, Block.__init__, Block.forward, GPT.forward) == FOLLOWED


def decode_step(model: GPT, token: Tensor, positions: Tensor, attend: Attend) -> Tensor:
    """GPT.forward of one token per row, (B, 1) → (B, 1, C), without gradients: norm, rotation and SwiGLU are one launch
    each, and x is cast once for the products that share it. model.py has the plain definitions (`follows_model`)."""
    from kernels import triton_decode as fused

    def norm(module, x):
        return fused.rms_norm(x, module.weight, module.eps)

    cos, sin = model.cos[positions].unsqueeze(-2), model.sin[positions].unsqueeze(-2)  # (B, 1, 1, D)
    x = model.embed(token)
    heads = (len(x), 1, -1, model.config.head_dim)
    for layer, block in enumerate(model.blocks):
        h = kernels.in_autocast_type(x)
        q = fused.rotary(norm(block.q_norm, block.q(h)).view(heads), cos, sin)
        k = fused.rotary(norm(block.k_norm, block.k(h)).view(heads), cos, sin)
        attended = attend(layer, q, k, block.v(h).view(heads)).flatten(2)
        x = x + norm(block.attention_norm, block.o(attended))
        h = kernels.in_autocast_type(x)
        x = x + norm(block.mlp_norm, block.down(fused.swiglu(block.gate(h), block.up(h))))
    return norm(model.norm, x)
