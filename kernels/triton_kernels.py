"""Triton kernels of kernels/__init__.py's two hot operations, forward and backward: attention within documents, linear log-prob.

kernels/__init__.py holds the plain definitions, chooses between them and these, and says which shapes mean what. This file is
imported only where triton is; with TRITON_INTERPRET=1 the kernels run on a CPU, slowly (the tests do that).

    python -m tools.kernel_report report      compile every kernel for sm_80, sm_90, sm_100 (no GPU needed): registers, spills, memory
    python -m tools.kernel_report tune        on a GPU: time candidates for BLOCKS and print the winners

A kernel is a program that runs once per tile of its output, all tiles at the same time; `tl.program_id` says which. A
program loads tiles of its inputs, multiplies them on the matrix units (`tl.dot`), keeps sums in registers, in fp32, and
stores its tile once. No program adds to what another one stores, so the same inputs give the same bits.

Names: row = query or token, key, word = of the vocabulary; `tile` a program's place; BLOCK_* the sides of a tile.
"""

import inspect
import os
import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple
from unittest import mock

os.environ.setdefault("TRITON_DEFAULT_FP_FUSION", "1")  # a·b + c in one rounding: triton 3.10 changes the default

import torch
import triton
import triton.language as tl
from torch import Tensor

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
LOG2_E = tl.constexpr(1.4426950408889634)
VOCAB_CHUNK = 8192  # words at a time: bounds the copies of the head's weight and the gradient of the logits


# ---------------------------------------------------------------------------------------------------------------------
# Block sizes
# ---------------------------------------------------------------------------------------------------------------------


class Block(NamedTuple):
    rows: int  # queries or tokens of a tile
    cols: int  # keys or words
    depth: int = 0  # log-prob: columns of the model's width per step of the product
    warps: int = 8
    stages: int = 2  # loads in flight: each costs shared memory


# (architecture, head size, rounded up to a power of two) -> blocks of the attention kernels; head size 0: of the
# log-prob kernels. 86 stands for all with 99 KB of shared memory (sm_86, 89, 120), 0 for the interpreter.
# From `python -m tools.kernel_report report` (no spills); nobody has timed them yet: `python -m tools.kernel_report tune`.
BLOCKS: dict[tuple[int, int], dict[str, Block]] = {
    (80, 0): {"forward": Block(128, 128, 64, 8, 4), "backward": Block(128, 128, 64, 8, 4)},
    (90, 0): {"forward": Block(128, 128, 64, 8, 4), "backward": Block(128, 128, 64, 8, 4)},
    (100, 0): {"forward": Block(128, 128, 64, 8, 4), "backward": Block(128, 256, 64, 8, 3)},
    (86, 0): {"forward": Block(128, 128, 32, 8, 3), "backward": Block(128, 128, 32, 8, 3)},
    (0, 0): {"forward": Block(128, 256, 64), "backward": Block(128, 256, 64)},
}
for _arch in (80, 90, 100):
    BLOCKS[_arch, 32] = BLOCKS[_arch, 64] = {
        "forward": Block(128, 64, warps=4, stages=3),
        "dq": Block(64, 64, warps=4, stages=2),
        "dkv": Block(64, 64, warps=4, stages=2),
    }
    BLOCKS[_arch, 128] = {
        "forward": Block(128, 64, warps=8, stages=3),
        "dq": Block(64, 64, warps=8, stages=2),
        "dkv": Block(64, 64, warps=8, stages=2),
    }
BLOCKS[80, 64]["dkv"] = Block(64, 64, warps=8, stages=2)
for _head in (32, 64, 128):
    BLOCKS[86, _head] = {"forward": Block(64, 64), "dq": Block(64, 32), "dkv": Block(32, 64)}
    BLOCKS[0, _head] = {"forward": Block(64, 32), "dq": Block(32, 64), "dkv": Block(32, 64)}


def architecture(device: torch.device) -> int:
    """The first part of the keys of BLOCKS."""
    if device.type != "cuda":
        return 0
    major, minor = torch.cuda.get_device_capability(device)
    return {(8, 0): 80, (9, 0): 90, (10, 0): 100, (10, 3): 100}.get((major, minor), 86)


def blocks(kernel: str, like: Tensor, head: int = 0) -> Block:
    """The block of a kernel for inputs like this tensor. Numbers of 4 bytes get a tile of half the size, unpipelined."""
    block = BLOCKS[architecture(like.device), head][kernel]
    if like.dtype == torch.float32 and like.device.type != "cpu":
        block = block._replace(rows=min(64, block.rows), cols=block.cols // 2, depth=block.depth // 2, stages=2)
    return block


def precision(x: Tensor) -> str:
    """How tl.dot multiplies fp32: as torch.mm does."""
    return "tf32" if torch.backends.cuda.matmul.allow_tf32 and x.dtype == torch.float32 else "ieee"


def launch(kernel, grid: tuple[int, ...], args: tuple, block: Block, **constants) -> None:
    """Run `grid` programs. (`report` puts a compiler in this place, tests/fake_cuda.py nothing.)"""
    kernel[grid](*args, **constants, num_warps=block.warps, num_stages=block.stages)


# ---------------------------------------------------------------------------------------------------------------------
# Attention
#
# s_ij = q_i·k_j log2(e) / √D for the keys j that query i sees (doc_start_i ≤ j ≤ i), p_ij = 2^s_ij / Σ_j 2^s_ij,
# o_i = Σ_j p_ij v_j. Base 2, because the hardware's exponential is 2^x.
#
# Most tiles of the (queries × keys) plane are seen whole or not at all. With the keys of a tile of queries in order,
#
#     first ......... full_from ............... full_to ......... end
#      edge: mask      no mask                   edge: mask (the diagonal)
#
# tiles before `first` and after `end` are never visited, and only those at the edges pay for a mask.
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _load(x, row, T, STRIDE, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of x, whose rows are STRIDE apart. Behind the last row it is repeated; columns from D on are 0."""
    col = tl.arange(0, BLOCK_D)
    at = x + tl.minimum(row, T - 1)[:, None] * STRIDE + col[None, :]
    return tl.load(at) if D == BLOCK_D else tl.load(at, mask=(col < D)[None, :], other=0.0)


@triton.jit
def _store(x, tile, row, T, STRIDE, D: tl.constexpr, BLOCK_D: tl.constexpr):
    col = tl.arange(0, BLOCK_D)
    at = x + row[:, None] * STRIDE + col[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=(row < T)[:, None] & (col < D)[None, :])


@triton.jit
def _keys_of(doc_start, b, tile, T, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """For a tile of queries: (rows,) where their documents start, and first, full_from, full_to, end of the keys."""
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    end = tl.minimum(tile * BLOCK_Q + BLOCK_Q, T)
    full_to = (tile * BLOCK_Q + 1) // BLOCK_K * BLOCK_K  # tiles up to here lie below the diagonal for the first query
    if doc_start is None:
        start = tl.zeros_like(row)
        first = tile * 0
        full_from = first
    else:
        start = tl.load(doc_start + b * T + tl.minimum(row, T - 1))  # rows behind the last repeat it
        first = tl.min(start, 0) // BLOCK_K * BLOCK_K
        full_to = tl.maximum(full_to, first)
        full_from = tl.minimum(tl.cdiv(tl.max(start, 0), BLOCK_K) * BLOCK_K, full_to)
    return start, first, full_from, full_to, end


@triton.jit
def attention_forward(
    q, k, v, doc_start, out, lse, T, H, GROUP, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q queries of one head, over tiles of BLOCK_K keys (FlashAttention-2, arXiv 2307.08691).

    A row's softmax needs the maximum of all its scores, but the keys come tile by tile. So the program keeps the
    maximum m so far, the sum l of 2^(s - m) and the weighted sum o of values, and rescales both when m grows:

        m' = max(m, max_j s_j),   p_j = 2^(s_j - m'),   l' = l 2^(m - m') + Σ p_j,   o' = o 2^(m - m') + Σ p_j v_j

    At the end the output is o / l, and LSE = m + log2 l is kept: backward gets every p = 2^(s - LSE) from it.
    """
    bh = tl.program_id(0)
    b, h = bh // H, bh % H
    tile = tl.num_programs(1) - 1 - tl.program_id(1)  # late queries see the most keys: they start first
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    q += b.to(tl.int64) * T * H * D + h * D
    out += b.to(tl.int64) * T * H * D + h * D
    H_KV = H // GROUP
    k += b.to(tl.int64) * T * H_KV * D + h // GROUP * D
    v += b.to(tl.int64) * T * H_KV * D + h // GROUP * D
    start, first, full_from, full_to, end = _keys_of(doc_start, b, tile, T, BLOCK_Q, BLOCK_K)

    query = _load(q, row, T, H * D, D, BLOCK_D)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for stage in tl.static_range(3):  # edge, full, edge
        begin = first if stage == 0 else (full_from if stage == 1 else full_to)
        stop = full_from if stage == 0 else (full_to if stage == 1 else end)
        for at in range(begin, stop, BLOCK_K):
            key = at + tl.arange(0, BLOCK_K)
            keys = _load(k, key, T, H_KV * D, D, BLOCK_D)
            s = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
            if stage != 1:
                visible = (key[None, :] <= row[:, None]) & (key[None, :] >= start[:, None])
                s = tl.where(visible, s, float("-inf"))
            new_m = tl.maximum(m, tl.max(s, 1))
            safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)  # no key seen yet: -inf - -inf is not a number
            p = tl.math.exp2(s - safe_m[:, None])
            rescale = tl.math.exp2(m - safe_m)
            l = l * rescale + tl.sum(p, 1)
            values = _load(v, key, T, H_KV * D, D, BLOCK_D)
            o = tl.dot(p.to(values.dtype), values, o * rescale[:, None], input_precision=PRECISION)
            m = new_m
    seen = l > 0
    l = tl.where(l == 0, 1.0, l)  # not `seen`: a NaN stays one
    tl.store(lse + bh * T + row, tl.where(seen, m, 0.0) + tl.math.log2(l), mask=row < T)
    _store(out, o / l[:, None], row, T, H * D, D, BLOCK_D)


@triton.jit
def attention_dq(
    q, k, v, doc_start, out, grad, lse, delta, dq, T, H, GROUP, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_Q queries of one head, over their keys as in attention_forward. With do = dL/do:

        dp_ij = do_i·v_j,   δ_i = Σ_j p_ij dp_ij = o_i·do_i,   ds_ij = p_ij (dp_ij - δ_i),   dq_i = Σ_j ds_ij k_j / √D

    The scores are computed again and p = 2^(s - LSE) needs no running maximum. δ is stored for attention_dkv.
    """
    bh = tl.program_id(0)
    b, h = bh // H, bh % H
    tile = tl.num_programs(1) - 1 - tl.program_id(1)
    row = tile * BLOCK_Q + tl.arange(0, BLOCK_Q)
    at_head = b.to(tl.int64) * T * H * D + h * D
    H_KV = H // GROUP
    k += b.to(tl.int64) * T * H_KV * D + h // GROUP * D
    v += b.to(tl.int64) * T * H_KV * D + h // GROUP * D
    start, first, full_from, full_to, end = _keys_of(doc_start, b, tile, T, BLOCK_Q, BLOCK_K)

    do = _load(grad + at_head, row, T, H * D, D, BLOCK_D)
    o = _load(out + at_head, row, T, H * D, D, BLOCK_D)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + bh * T + row, row_delta, mask=row < T)
    row_lse = tl.load(lse + bh * T + tl.minimum(row, T - 1))
    query = _load(q + at_head, row, T, H * D, D, BLOCK_D)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for stage in tl.static_range(3):
        begin = first if stage == 0 else (full_from if stage == 1 else full_to)
        stop = full_from if stage == 0 else (full_to if stage == 1 else end)
        for at in range(begin, stop, BLOCK_K):
            key = at + tl.arange(0, BLOCK_K)
            keys = _load(k, key, T, H_KV * D, D, BLOCK_D)
            values = _load(v, key, T, H_KV * D, D, BLOCK_D)
            s = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
            p = tl.math.exp2(s - row_lse[:, None])
            if stage != 1:
                visible = (key[None, :] <= row[:, None]) & (key[None, :] >= start[:, None])
                p = tl.where(visible, p, 0.0)
            dp = tl.dot(do, tl.trans(values), input_precision=PRECISION)
            ds = p * (dp - row_delta[:, None])
            acc = tl.dot(ds.to(keys.dtype), keys, acc, input_precision=PRECISION)
    _store(dq + at_head, acc * (scale / LOG2_E), row, T, H * D, D, BLOCK_D)


@triton.jit
def attention_dkv(
    q, k, v, doc_end, grad, lse, delta, dk, dv, T, H, GROUP, scale,
    D: tl.constexpr, BLOCK_D: tl.constexpr, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_K keys of one key head, over the queries i ≥ j of all heads of its group:

        dv_j = Σ_i p_ij do_i,   dk_j = Σ_i ds_ij q_i / √D

    A key is seen by queries j .. doc_end_j - 1. Scores are laid out (keys, queries), so that no product needs a
    transposed p. That a program takes its whole group is why grouped queries need no atomic additions.
    """
    H_KV = H // GROUP
    b, h_kv = tl.program_id(0) // H_KV, tl.program_id(0) % H_KV
    tile = tl.program_id(1)  # early keys are seen by the most queries, and start first
    key = tile * BLOCK_K + tl.arange(0, BLOCK_K)
    at_kv_head = b.to(tl.int64) * T * H_KV * D + h_kv * D
    keys = _load(k + at_kv_head, key, T, H_KV * D, D, BLOCK_D)
    values = _load(v + at_kv_head, key, T, H_KV * D, D, BLOCK_D)
    first = tile * BLOCK_K // BLOCK_Q * BLOCK_Q
    full_from = tl.cdiv(tile * BLOCK_K + BLOCK_K - 1, BLOCK_Q) * BLOCK_Q  # from here on behind the last key
    if doc_end is None:
        doc_stop = tl.zeros_like(key) + T
        end = T
        full_to = T // BLOCK_Q * BLOCK_Q
    else:
        doc_stop = tl.load(doc_end + b * T + tl.minimum(key, T - 1))
        end = tl.max(doc_stop, 0)
        full_to = tl.min(doc_stop, 0) // BLOCK_Q * BLOCK_Q
    full_to = tl.maximum(full_to, full_from)

    acc_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for g in range(GROUP):
        h = h_kv * GROUP + g
        at_head = b.to(tl.int64) * T * H * D + h * D
        at_row = (b * H + h) * T
        for stage in tl.static_range(3):
            begin = first if stage == 0 else (full_from if stage == 1 else full_to)
            stop = tl.minimum(full_from, end) if stage == 0 else (full_to if stage == 1 else end)
            for at in range(begin, stop, BLOCK_Q):
                row = at + tl.arange(0, BLOCK_Q)
                query = _load(q + at_head, row, T, H * D, D, BLOCK_D)
                do = _load(grad + at_head, row, T, H * D, D, BLOCK_D)
                at_rows = at_row + tl.minimum(row, T - 1)
                row_lse, row_delta = tl.load(lse + at_rows), tl.load(delta + at_rows)
                s = tl.dot(keys, tl.trans(query), input_precision=PRECISION) * scale  # (keys, queries)
                p = tl.math.exp2(s - row_lse[None, :])
                if stage != 1:
                    visible = (row[None, :] >= key[:, None]) & (row[None, :] < doc_stop[:, None])
                    p = tl.where(visible, p, 0.0)
                acc_v = tl.dot(p.to(do.dtype), do, acc_v, input_precision=PRECISION)
                dp = tl.dot(values, tl.trans(do), input_precision=PRECISION)
                ds = p * (dp - row_delta[None, :])
                acc_k = tl.dot(ds.to(query.dtype), query, acc_k, input_precision=PRECISION)
    _store(dk + at_kv_head, acc_k * (scale / LOG2_E), key, T, H_KV * D, D, BLOCK_D)
    _store(dv + at_kv_head, acc_v, key, T, H_KV * D, D, BLOCK_D)


def supports(q: Tensor) -> bool:
    """Is there an attention kernel for this head size?"""
    return q.shape[-1] <= 128


@torch.compiler.disable  # an opaque step in a compiled model
def attention(q: Tensor, k: Tensor, v: Tensor, doc_start: Tensor | None = None) -> Tensor:
    """kernels.attention: q (B, T, H, D), k and v (B, T, H_kv, D), doc_start (B, T) or None -> (B, T, H, D)."""
    if torch.is_autocast_enabled(q.device.type):  # as scaled_dot_product_attention does
        q, k, v = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (q, k, v))
    return Attention.apply(q, k, v, doc_start)


class Attention(torch.autograd.Function):
    """Documents must be whole: doc_start does not fall along a row."""

    @staticmethod
    def forward(ctx, q, k, v, doc_start):
        q, k, v = (x.contiguous() for x in (q, k, v))
        (B, T, H, D), doc_end = q.shape, None
        if doc_start is not None:
            doc_start = doc_start.to(torch.int32).contiguous()
            doc_end = torch.searchsorted(doc_start, doc_start, right=True, out_int32=True)
        out, lse = torch.empty_like(q), torch.empty(B, H, T, device=q.device)
        shape = (T, H, H // k.shape[2], LOG2_E.value / D**0.5)
        block, constants = _attention_block("forward", q)
        grid = (B * H, triton.cdiv(T, block.rows))
        launch(attention_forward, grid, (q, k, v, doc_start, out, lse, *shape), block, **constants)
        ctx.save_for_backward(q, k, v, doc_start, doc_end, out, lse)
        ctx.shape = shape
        return out

    @staticmethod
    def backward(ctx, grad):
        q, k, v, doc_start, doc_end, out, lse = ctx.saved_tensors
        (B, T, H, _), H_kv = q.shape, k.shape[2]
        grad, delta = grad.contiguous(), torch.empty_like(lse)
        dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
        block, constants = _attention_block("dq", q)
        args = (q, k, v, doc_start, out, grad, lse, delta, dq, *ctx.shape)
        launch(attention_dq, (B * H, triton.cdiv(T, block.rows)), args, block, **constants)
        block, constants = _attention_block("dkv", q)
        args = (q, k, v, doc_end, grad, lse, delta, dk, dv, *ctx.shape)
        launch(attention_dkv, (B * H_kv, triton.cdiv(T, block.cols)), args, block, **constants)
        return dq, dk, dv, None


def _attention_block(kernel: str, q: Tensor) -> tuple[Block, dict]:
    D = q.shape[-1]
    head = max(32, triton.next_power_of_2(D))
    block = blocks(kernel, q, head)
    return block, dict(D=D, BLOCK_D=head, BLOCK_Q=block.rows, BLOCK_K=block.cols, PRECISION=precision(q))


# ---------------------------------------------------------------------------------------------------------------------
# Linear log-prob
#
# Logits z = h Wᵀ / τ, of which only a tile exists at a time, in registers. What is wanted of a row are
#
#     L = log Σ_v e^z_v,    log p(y) = z_y - L,    H = -Σ_v p_v log p_v
#
# The vocabulary is worked through in chunks: of fp32 weights only the chunk is copied to bf16, and in backward only its
# part of dL/dz exists.
# ---------------------------------------------------------------------------------------------------------------------


@triton.jit
def _logits_tile(
    hidden, weight, N, V, C, inv_temperature,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """This program's rows (BLOCK_N,), words (BLOCK_V,), logits (BLOCK_N, BLOCK_V) and place among the tiles of words.

    Programs run in bands of 8 tiles of rows, down a band before the next tile of words: those that run at the same time
    share rows and words in the L2 cache. Rows and words behind the last are copies of it, for the caller to leave out.
    """
    tiles_n, tiles_v = tl.cdiv(N, BLOCK_N), tl.cdiv(V, BLOCK_V)
    band = tl.program_id(0) // (8 * tiles_v)
    height = tl.minimum(tiles_n - band * 8, 8)
    tile_n = band * 8 + tl.program_id(0) % (8 * tiles_v) % height
    tile_v = tl.program_id(0) % (8 * tiles_v) // height
    row = tile_n * BLOCK_N + tl.arange(0, BLOCK_N)
    word = tile_v * BLOCK_V + tl.arange(0, BLOCK_V)
    col = tl.arange(0, BLOCK_C)
    hidden += (tile_n * BLOCK_N).to(tl.int64) * C
    at_h = tl.minimum(row, N - 1) - tile_n * BLOCK_N
    at_h = at_h[:, None] * C + col[None, :]  # (BLOCK_N, BLOCK_C)
    at_w = tl.minimum(word, V - 1)[None, :] * C + col[:, None]  # (BLOCK_C, BLOCK_V)
    z = tl.zeros([BLOCK_N, BLOCK_V], tl.float32)
    for c in range(0, C, BLOCK_C):
        if EVEN:
            h, w = tl.load(hidden + at_h + c), tl.load(weight + at_w + c)
        else:
            h = tl.load(hidden + at_h + c, mask=(col < C - c)[None, :], other=0.0)
            w = tl.load(weight + at_w + c, mask=(col < C - c)[:, None], other=0.0)
        z = tl.dot(h, w, z, input_precision=PRECISION)
    return row, word, z * inv_temperature, tile_v


@triton.jit
def log_prob_forward(
    hidden, weight, targets, top, total, moment, target_logit, N, V, C, first_word, inv_temperature,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: the logits of BLOCK_N rows and BLOCK_V words. Of each row it stores, as the tile's part,

        m = max z,    l = Σ e^(z - m),    s = Σ e^(z - m) (z - m)        to (tiles of words, N) each,

    and the target's logit if the target is among these words. merge() puts the parts together.
    """
    row, word, z, tile_v = _logits_tile(
        hidden, weight, N, V, C, inv_temperature, BLOCK_N, BLOCK_V, BLOCK_C, EVEN, PRECISION
    )
    inside = (word < V)[None, :]
    z = tl.where(inside, z, float("-inf"))
    m = tl.max(z, 1)
    p = tl.exp(z - m[:, None])
    shifted = tl.where(inside, z - m[:, None], 0.0)  # 0 · -inf is not a number
    at = tile_v.to(tl.int64) * N + row
    tl.store(top + at, m, mask=row < N)
    tl.store(total + at, tl.sum(p, 1), mask=row < N)
    tl.store(moment + at, tl.sum(p * shifted, 1), mask=row < N)
    target = tl.load(targets + row, mask=row < N, other=-1) - first_word
    chosen = tl.sum(tl.where(word[None, :] == target[:, None], z, 0.0), 1)
    here = (target >= tile_v * BLOCK_V) & (target < tl.minimum(tile_v * BLOCK_V + BLOCK_V, V))
    tl.store(target_logit + row, chosen, mask=here & (row < N))


def merge(top: Tensor, total: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M, log l and H of each row from the parts of its tiles, (tiles, N) each, which are overwritten. With M = max m:

        l = Σ_tiles l e^(m - M),   s = Σ_tiles (s + l (m - M)) e^(m - M),   L = M + log l,   H = log l - s / l

    M and log l are not added up yet: log p(y) = (z_y - M) - log l is exact where L is large, z_y - L is not.
    """
    m = top.amax(0)
    shift = top.sub_(m)
    moment.addcmul_(total, shift)
    weight = shift.exp_()
    s, l = moment.mul_(weight).sum(0), total.mul_(weight).sum(0)
    log_l = l.log()
    return m, log_l, log_l - s / l


@triton.jit
def log_prob_backward(
    hidden, weight, targets, lse, g_log_prob, g_p, g_entropy, dz, N, V, C, first_word, inv_temperature,
    BLOCK_N: tl.constexpr, BLOCK_V: tl.constexpr, BLOCK_C: tl.constexpr, EVEN: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: a tile of dLoss/d(h Wᵀ), from the same logits as in forward, computed again. With upstream gradients
    g_lp, g_H, g_L of the three outputs:

        dz_v = (1{v = y} g_lp + p_v (g_p - g_H log p_v)) / τ,    g_p = g_L - g_lp - g_H H,    log p = z - L
    """
    row, word, z, tile_v = _logits_tile(
        hidden, weight, N, V, C, inv_temperature, BLOCK_N, BLOCK_V, BLOCK_C, EVEN, PRECISION
    )
    log_p = z - tl.load(lse + row, mask=row < N, other=0.0)[:, None]
    factor = tl.load(g_p + row, mask=row < N, other=0.0)[:, None]
    if g_entropy is not None:
        factor = factor - tl.load(g_entropy + row, mask=row < N, other=0.0)[:, None] * log_p
    target = tl.load(targets + row, mask=row < N, other=-1) - first_word
    g_target = tl.load(g_log_prob + row, mask=row < N, other=0.0)[:, None]
    grad = tl.exp(log_p) * factor + tl.where(word[None, :] == target[:, None], g_target, 0.0)
    at = dz + row.to(tl.int64)[:, None] * V + word[None, :]
    tl.store(at, (grad * inv_temperature).to(dz.dtype.element_ty), mask=(row < N)[:, None] & (word < V)[None, :])


class LinearLogProb(torch.autograd.Function):
    """As kernels._LinearLogProb. A target outside [0, V) gives NaN."""

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, want_entropy):
        hidden, targets = hidden.contiguous(), targets.contiguous()
        (N, _), V = hidden.shape, weight.shape[0]
        block, constants = _log_prob_block("forward", hidden)
        parts = torch.empty(3, triton.cdiv(V, block.cols), N, device=hidden.device)
        target_logit = torch.full((N,), torch.nan, device=hidden.device)
        for first, words in _chunks(weight, hidden.dtype):
            here = parts[:, first // block.cols :]
            tiles = triton.cdiv(N, block.rows) * triton.cdiv(len(words), block.cols)
            args = (hidden, words, targets, *here, target_logit, N, *words.shape, first, 1 / temperature)
            launch(log_prob_forward, (tiles,), args, block, **constants)
        largest, log_total, entropy = merge(*parts)
        logsumexp = largest + log_total
        ctx.temperature, ctx.want_entropy = temperature, want_entropy
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy)
        ctx.set_materialize_grads(False)
        return target_logit - largest - log_total, entropy, logsumexp

    @staticmethod
    def backward(ctx, grad_log_prob, grad_entropy, grad_logsumexp):
        hidden, weight, targets, logsumexp, entropy = ctx.saved_tensors
        N, V = hidden.shape[0], weight.shape[0]
        zero = torch.zeros_like(logsumexp)
        g_log_prob = zero if grad_log_prob is None else grad_log_prob.contiguous()
        g_p = (zero if grad_logsumexp is None else grad_logsumexp) - g_log_prob
        g_entropy = grad_entropy.contiguous() if ctx.want_entropy and grad_entropy is not None else None
        if g_entropy is not None:
            g_p = g_p - g_entropy * entropy
        grad_hidden = torch.zeros(hidden.shape, device=hidden.device)  # summed over chunks: fp32
        grad_weight = torch.empty(weight.shape, device=weight.device)
        buffer = torch.empty(N * min(V, VOCAB_CHUNK), device=hidden.device, dtype=hidden.dtype)
        block, constants = _log_prob_block("backward", hidden)
        for first, words in _chunks(weight, hidden.dtype):
            dz = buffer[: N * len(words)].view(N, len(words))
            tiles = triton.cdiv(N, block.rows) * triton.cdiv(len(words), block.cols)
            args = (hidden, words, targets, logsumexp, g_log_prob, g_p, g_entropy, dz)
            args += (N, *words.shape, first, 1 / ctx.temperature)
            launch(log_prob_backward, (tiles,), args, block, **constants)
            _product(dz.T, hidden, out=grad_weight[first : first + len(words)])
            _product(dz, words, out=grad_hidden, add=True)
        return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype), None, None, None


def _chunks(weight: Tensor, dtype: torch.dtype):
    """(first word, its VOCAB_CHUNK rows of the weight in `dtype`)."""
    for first in range(0, weight.shape[0], VOCAB_CHUNK):
        yield first, weight[first : first + VOCAB_CHUNK].to(dtype).contiguous()


def _log_prob_block(kernel: str, hidden: Tensor) -> tuple[Block, dict]:
    block = blocks(kernel, hidden)
    sides = dict(BLOCK_N=block.rows, BLOCK_V=block.cols, BLOCK_C=block.depth, EVEN=hidden.shape[1] % block.depth == 0)
    return block, dict(**sides, PRECISION=precision(hidden))


def _product(a: Tensor, b: Tensor, out: Tensor, add: bool = False) -> None:
    """out = a @ b, or out += a @ b, with fp32 `out`, by the vendor's library."""
    if a.dtype == torch.float32 or a.device.type != "cuda":
        torch.addmm(out, a.float(), b.float(), beta=int(add), out=out)
    elif add:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        torch.mm(a, b, out_dtype=torch.float32, out=out)


# ---------------------------------------------------------------------------------------------------------------------
# python -m tools.kernel_report report: what the compiler makes of the kernels, on any machine
# ---------------------------------------------------------------------------------------------------------------------

SHARED_KB = {80: 163, 86: 99, 90: 227, 100: 227}  # that a program may have
# The matrix units of sm_80, 90 and 100, and loads that run beside them
INSTRUCTIONS = ("mma.sync", "wgmma", "tcgen05.mma", "cp.async")


class Compiled(NamedTuple):
    kernel: str
    arch: int
    block: Block
    registers: int  # per thread; at most 255
    spilled: int  # bytes of them that went to memory: the kernel would be many times slower
    shared_kb: float
    instructions: list[str]


def launches(arch: int, documents=True, dtype=torch.bfloat16, head: int = 128, group: int = 1) -> list[tuple]:
    """What one forward and backward at OLMo2-1B's shapes launches: (kernel, args, block, constants), each kernel once.

    On the meta device: all shapes, no data.
    """
    made = {}

    def record(kernel, grid, args, block, **constants):
        made.setdefault(kernel.__name__, (kernel, args, block, constants))

    def new(*shape, **kwargs):
        return torch.empty(*shape, device="meta", **{"dtype": dtype, "requires_grad": True, **kwargs})

    with mock.patch.multiple(__name__, launch=record, architecture=lambda device: arch):
        q, k, v = (new(4, 4096, heads, head) for heads in (16, 16 // group, 16 // group))
        doc_start = new(4, 4096, dtype=torch.int64, requires_grad=False) if documents else None
        Attention.apply(q, k, v, doc_start).sum().backward()
        hidden, weight = new(16384, 2048), new(100352, 2048, dtype=torch.float32)
        targets = new(16384, dtype=torch.int64, requires_grad=False)
        sum(x.sum() for x in LinearLogProb.apply(hidden, weight, targets, 0.6, True)).backward()
    return list(made.values())


def compile_for(arch: int, kernel, args: tuple, block: Block, constants: dict) -> Compiled:
    """Compile a launch as Triton would on that GPU, and read the result. (Private API of triton 3.6 to 3.9.)"""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", arch, 32)
    backend = make_backend(target)
    options = dict(constants, num_warps=block.warps, num_stages=block.stages)
    bound, specialization, _ = create_function_from_signature(kernel.signature, kernel.params, backend)(
        *args, **options
    )
    parsed, signature, constexprs, attributes = kernel._pack_args(backend, options, bound, specialization, None)
    source = ASTSource(kernel, signature, constexprs, attributes)
    compiled = triton.compile(source, target=target, options=parsed.__dict__)
    tool = Path(inspect.getfile(triton)).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = subprocess.run([tool, "--dump-resource-usage", file.name], capture_output=True, text=True, check=True)
    resource = {name: int(value) for name, value in re.findall(r"(REG|STACK|LOCAL):(\d+)", usage.stdout)}
    found = [name for name in INSTRUCTIONS if name in compiled.asm["ptx"]]
    spilled = resource["STACK"] + resource["LOCAL"]
    return Compiled(kernel.__name__, arch, block, resource["REG"], spilled, compiled.metadata.shared / 1024, found)


def report(archs: tuple[int, ...] = (80, 90, 100)) -> None:
    os.environ["TRITON_DEFAULT_FP_FUSION"] = "1"
    print("| kernel | sm | block, warps, stages | registers | spilled bytes | shared KB | instructions |")
    print("|---|---|---|---|---|---|---|")
    for arch in archs:
        for made in launches(arch):
            c = compile_for(arch, *made)
            sides = "x".join(str(side) for side in c.block[:3] if side)
            cells = (
                f"{c.registers} | {c.spilled} | {c.shared_kb:.0f} of {SHARED_KB[arch]} | {', '.join(c.instructions)}"
            )
            print(f"| {c.kernel} | {arch} | {sides}, {c.block.warps}, {c.block.stages} | {cells} |", flush=True)


# ---------------------------------------------------------------------------------------------------------------------
# python -m tools.kernel_report tune: time candidates on this GPU
# ---------------------------------------------------------------------------------------------------------------------


def candidates(kernel: str, head: int) -> list[Block]:
    if head == 0:
        sides = [(128, 128, 64, 8, 3), (128, 128, 64, 8, 4), (128, 256, 64, 8, 3), (128, 256, 32, 8, 4)]
        sides += [(256, 128, 64, 8, 3), (128, 256, 64, 16, 3), (128, 128, 32, 4, 4)]
        return [Block(*s) for s in sides]
    sides = {"forward": [(128, 64), (128, 128), (64, 64)], "dq": [(64, 64), (128, 64), (128, 32)]}
    sides["dkv"] = [(64, 64), (64, 128), (32, 128)]
    return [Block(*s, warps=w, stages=n) for s in sides[kernel] for w in (4, 8) for n in (2, 3)]


def tune(heads: tuple[int, ...] = (0, 64, 128)) -> None:
    """Print the fastest block of each kernel at OLMo2-1B's shapes, as lines of BLOCKS."""
    from triton.testing import do_bench

    device = torch.device("cuda")
    arch, milliseconds = architecture(device), 0.0

    def timed(wanted, launch=launch):
        def run(kernel, grid, args, block, **constants):
            nonlocal milliseconds
            launch(kernel, grid, args, block, **constants)
            if kernel is wanted:
                milliseconds = do_bench(lambda: launch(kernel, grid, args, block, **constants), return_mode="median")

        return run

    def new(*shape, dtype=torch.bfloat16):
        return torch.randn(*shape, device=device, dtype=dtype).requires_grad_()

    for head in heads:
        best = {}
        if head:
            q, k, v = (new(4, 4096, 2048 // head, head) for _ in range(3))
            kernels = {"forward": attention_forward, "dq": attention_dq, "dkv": attention_dkv}
        else:
            hidden, weight = new(16384, 2048), new(VOCAB_CHUNK, 2048)
            targets = torch.randint(VOCAB_CHUNK, (16384,), device=device)
            kernels = {"forward": log_prob_forward, "backward": log_prob_backward}
        for name, kernel in kernels.items():
            times = {}
            for block in candidates(name, head):
                table = {(arch, head): {**BLOCKS[arch, head], name: block}}
                try:
                    with mock.patch.dict(BLOCKS, table), mock.patch(f"{__name__}.launch", timed(kernel)):
                        if head:
                            Attention.apply(q, k, v, None).sum().backward()
                        else:
                            LinearLogProb.apply(hidden, weight, targets, 1.0, False)[0].sum().backward()
                    times[block] = milliseconds
                except triton.runtime.errors.OutOfResources:
                    continue
                print(f"# sm_{arch} head {head} {name} {tuple(block)}: {milliseconds:.3f} ms", flush=True)
            best[name] = min(times, key=times.get)
        print(f"    ({arch}, {head}): {best},", flush=True)
