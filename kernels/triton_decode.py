"""What a decoding step runs on, as Triton kernels: one new token per row, no gradients.

Most of a step's time goes into reading keys, and into starting some thousand small operations. So attention reads the
pages of each row up to its own length and no padding, stores the new key and value itself, and takes q, k and v in
whatever type they come; norm, rotation and SwiGLU are one launch each. kernels/__init__.py and model.py have the plain
definitions, blocks.py says what a Triton kernel is.

Names: b row, h key head, g query head within its group of GROUP, col column of a head; PAGE tokens of a page; MAX_PAGES
pages of a row (X in kernels/__init__.py); scale = log2(e) / √D, for the hardware's exponential is 2^x; `at` offsets
into a tensor.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks import Block, Launcher, architecture, precision

LOG2_E = 1.4426950408889634
ROW_BLOCK = Block(1, 0, warps=4, stages=1)  # of the kernels that take a row at a time


@triton.jit
def decode_attention(
    q, k, v, pool_k, pool_v, pages, prompt, own, out, MAX_PAGES, H_KV, scale,
    GROUP: tl.constexpr, D: tl.constexpr, PAGE: tl.constexpr,
    BLOCK_D: tl.constexpr, BLOCK_G: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the GROUP query heads of one key head of one row, over tiles of BLOCK_K keys.

    The softmax is that of attention_forward, with the new token as its first tile: m = its score, l = 1, o = its value.
    Places of a row's keys are numbered through its pages; the prompt's last page may be half full:

        0 .. prompt-1    hole    padded .. padded+own-1    here
        its prompt               its own tokens            the new one goes here
    """
    b, h = tl.program_id(0).to(tl.int64), tl.program_id(1)
    col, g = tl.arange(0, BLOCK_D), tl.arange(0, BLOCK_G)
    kind = pool_k.dtype.element_ty
    n_prompt, n_own = tl.load(prompt + b), tl.load(own + b)
    padded = tl.cdiv(n_prompt, PAGE) * PAGE
    here = padded + n_own
    pages += b * MAX_PAGES

    # The new token: store it, and begin the softmax with it
    at = (b * H_KV + h) * D + col
    new_k = tl.load(k + at, mask=col < D, other=0.0).to(kind)
    new_v = tl.load(v + at, mask=col < D, other=0.0).to(kind)
    in_pool = tl.load(pages + here // PAGE).to(tl.int64) * PAGE + here % PAGE  # counted in tokens
    tl.store(pool_k + (in_pool * H_KV + h) * D + col, new_k, mask=col < D)
    tl.store(pool_v + (in_pool * H_KV + h) * D + col, new_v, mask=col < D)
    at_q = ((b * H_KV + h) * GROUP + g[:, None]) * D + col[None, :]
    heads = (g < GROUP)[:, None] & (col < D)[None, :]
    query = tl.load(q + at_q, mask=heads, other=0.0).to(kind)  # (BLOCK_G, BLOCK_D): rows from GROUP on are 0
    m = tl.sum(query.to(tl.float32) * new_k.to(tl.float32)[None, :], 1) * scale
    l = tl.zeros([BLOCK_G], tl.float32) + 1.0
    o = tl.zeros([BLOCK_G, BLOCK_D], tl.float32) + new_v.to(tl.float32)[None, :]

    for first in range(0, here, BLOCK_K):
        key = first + tl.arange(0, BLOCK_K)
        seen = (key < n_prompt) | ((key >= padded) & (key < here))
        places = tl.load(pages + key // PAGE, mask=seen, other=0).to(tl.int64) * PAGE + key % PAGE
        at_keys = ((places * H_KV + h) * D)[:, None] + col[None, :]
        filled = seen[:, None] & (col < D)[None, :]
        keys = tl.load(pool_k + at_keys, mask=filled, other=0.0)
        values = tl.load(pool_v + at_keys, mask=filled, other=0.0)
        s = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale  # (BLOCK_G, BLOCK_K)
        s = tl.where(seen[None, :], s, float("-inf"))
        new_m = tl.maximum(m, tl.max(s, 1))
        p = tl.math.exp2(s - new_m[:, None])
        rescale = tl.math.exp2(m - new_m)
        l = l * rescale + tl.sum(p, 1)
        o = tl.dot(p.to(kind), values, o * rescale[:, None], input_precision=PRECISION)
        m = new_m
    tl.store(out + at_q, (o / l[:, None]).to(out.dtype.element_ty), mask=heads)


@triton.jit
def rms_norm_rows(x, gain, out, WIDTH, eps, BLOCK: tl.constexpr):
    """One program: one row x of WIDTH numbers, to gain · x / √(mean x² + eps); in fp32 whatever the type of x."""
    col = tl.arange(0, BLOCK)
    row = tl.program_id(0).to(tl.int64) * WIDTH
    tile = tl.load(x + row + col, mask=col < WIDTH, other=0.0).to(tl.float32)
    tile *= tl.rsqrt(tl.sum(tile * tile, 0) / WIDTH + eps)
    tile *= (
        tl.load(gain + col, mask=col < WIDTH, other=0.0).to(x.dtype.element_ty).to(tl.float32)
    )  # as training rounds it
    tl.store(out + row + col, tile.to(out.dtype.element_ty), mask=col < WIDTH)


@triton.jit
def rotary_rows(x, cos, sin, out, H, HALF, BLOCK_H: tl.constexpr, BLOCK_D: tl.constexpr):
    """One program: all heads of one token, (H, 2·HALF), from halves (x1, x2) to (x1 cos - x2 sin, x2 cos + x1 sin). A
    row of `cos` holds the HALF cosines twice, a row of `sin` the sines negated and then as they are: the second half is
    read.
    """
    h, col = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_D)[None, :]
    n = tl.program_id(0).to(tl.int64)
    inside = (h < H) & (col < HALF)
    at = (n * H + h) * 2 * HALF + col
    first = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(x + at + HALF, mask=inside, other=0.0).to(tl.float32)
    c = tl.load(cos + n * 2 * HALF + col, mask=col < HALF, other=0.0)
    s = tl.load(sin + n * 2 * HALF + HALF + col, mask=col < HALF, other=0.0)
    tl.store(out + at, (first * c - second * s).to(out.dtype.element_ty), mask=inside)
    tl.store(out + at + HALF, (second * c + first * s).to(out.dtype.element_ty), mask=inside)


@triton.jit
def swiglu_rows(gate, up, out, N, BLOCK: tl.constexpr):
    """One program: BLOCK numbers of silu(gate) · up, where silu(x) = x sigmoid(x)."""
    i = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(gate + i, mask=i < N, other=0.0).to(tl.float32)
    y = tl.load(up + i, mask=i < N, other=0.0).to(tl.float32)
    tl.store(out + i, (x * tl.sigmoid(x) * y).to(out.dtype.element_ty), mask=i < N)


def attention(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, pages: Tensor, prompt: Tensor, own: Tensor,
    launch: Launcher | None = None,
) -> Tensor:  # fmt: skip
    """kernels.decode_attention: q (B, H, D), k and v (B, H_kv, D), pools (pages, PAGE, H_kv, D), pages (B, X) -> (B, H, D)."""
    launch = launch or Launcher(architecture(q.device))
    q, k, v, pages, prompt, own = (x.contiguous() for x in (q, k, v, pages, prompt, own))
    (B, H, D), (_, page, H_KV, _) = q.shape, pool_k.shape
    head, group = max(32, triton.next_power_of_2(D)), H // H_KV
    block = launch.block("decode", pool_k, head)
    out = torch.empty_like(q, dtype=pool_k.dtype)
    args = (q, k, v, pool_k, pool_v, pages, prompt, own, out, pages.shape[1], H_KV, LOG2_E / D**0.5)
    launch(
        decode_attention, (B, H_KV), args, block, GROUP=group, D=D, PAGE=page, BLOCK_D=head,
        BLOCK_G=max(16, triton.next_power_of_2(group)), BLOCK_K=block.cols, PRECISION=precision(pool_k),
    )  # fmt: skip
    return out


def rms_norm(x: Tensor, gain: Tensor, eps: float, launch: Launcher | None = None) -> Tensor:
    """model.RMSNorm as training has it under autocast: the gain is rounded to x's type, and all else, the result too, is fp32."""
    launch, x, width = launch or Launcher(architecture(x.device)), x.contiguous(), x.shape[-1]
    out = torch.empty_like(x, dtype=torch.float32)
    args = (x, gain, out, width, eps)
    launch(rms_norm_rows, (x.numel() // width,), args, ROW_BLOCK, BLOCK=triton.next_power_of_2(width))
    return out


def rotary(x: Tensor, cos: Tensor, sin: Tensor, launch: Launcher | None = None) -> Tensor:
    """model.rotary."""
    launch, x, cos, sin = launch or Launcher(architecture(x.device)), x.contiguous(), cos.contiguous(), sin.contiguous()
    (*_, H, D), out = x.shape, torch.empty_like(x)
    sides = dict(BLOCK_H=triton.next_power_of_2(H), BLOCK_D=triton.next_power_of_2(D // 2))
    launch(rotary_rows, (x.numel() // (H * D),), (x, cos, sin, out, H, D // 2), ROW_BLOCK, **sides)
    return out


def swiglu(gate: Tensor, up: Tensor, launch: Launcher | None = None) -> Tensor:
    """silu(gate) · up (arXiv 2002.05202)."""
    launch, gate, up = launch or Launcher(architecture(gate.device)), gate.contiguous(), up.contiguous()
    out = torch.empty_like(gate)
    launch(swiglu_rows, (triton.cdiv(gate.numel(), 1024),), (gate, up, out, gate.numel()), ROW_BLOCK, BLOCK=1024)
    return out
