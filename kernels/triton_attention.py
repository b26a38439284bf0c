"""Causal attention within documents as Triton kernels, forward and backward; kernels.attention has the plain definition.

    s_ij = q_i·k_j log2(e) / √D for the keys j that query i sees (j ≤ i < doc_end_j),
    p_ij = 2^s_ij / Σ_j 2^s_ij,
    o_i  = Σ_j p_ij v_j

Base 2, because the hardware's exponential is 2^x. Most tiles of the (queries × keys) plane are seen whole or not at
all. With the keys of a tile of queries in order,

    prompt                        first
    | n_prompt tiles: mask | ...  | n_first tiles: mask | n_full tiles: no mask | n_last tiles: mask (the diagonal) |
      their prompt, if any          from the document of the first query on

other tiles are never visited, and few pay for a mask. Between the two ranges lie other answers to the same prompt. Seen
from a key they are one: it is seen by the queries from itself to the end of its document, and a key of a prompt by
those to the end of the last answer. So doc_end says all about what is visible. The tiles with a mask are visited in one
loop and those without in another; a loop for each range would need more registers than there are.

Shapes: q, out and their gradients (B, T, H, D), k, v and theirs (B, T, H_kv, D), lse and delta (B, H, T) in fp32,
doc_start, doc_end, prompt_start and prompt_end (B, T). Names: row = query; `tile` a program's place; BLOCK_* the sides
of a tile; GROUP = H / H_kv, the query heads of one key head; scale = log2(e) / √D; `at` the first key (or query) of the
tile that is loaded now; `full` the loop over the tiles without a mask. blocks.py says what a Triton kernel is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks import Block, Launcher, architecture, precision

LOG2_E = tl.constexpr(1.4426950408889634)


@triton.jit
def _load(x, row, STRIDE, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """(rows, BLOCK_D) of x, whose rows are STRIDE apart. Columns from D on are 0."""
    col = tl.arange(0, BLOCK_D)
    at = x + row[:, None] * STRIDE + col[None, :]
    return tl.load(at) if D == BLOCK_D else tl.load(at, mask=(col < D)[None, :], other=0.0)


@triton.jit
def _store(x, tile, row, T, STRIDE, D: tl.constexpr, BLOCK_D: tl.constexpr):
    """Write a tile (rows, BLOCK_D) to x, but for rows behind the last and columns from D on."""
    col = tl.arange(0, BLOCK_D)
    at = x + row[:, None] * STRIDE + col[None, :]
    tl.store(at, tile.to(x.dtype.element_ty), mask=(row < T)[:, None] & (col < D)[None, :])


@triton.jit
def _masked(i, n_first, n_full):
    """The place of the i-th tile that has a mask, where after n_first of them n_full tiles have none."""
    return i + tl.where(i < n_first, 0, n_full)


@triton.jit
def _keys_of(doc_start, prompt_start, prompt_end, b, tile, T, BLOCK_Q: tl.constexpr, BLOCK_K: tl.constexpr):
    """The keys that a tile of queries visits, as above: prompt, n_prompt, first, n_first, n_full, n_last.

    Neither documents nor prompts fall along a row: what the first query sees begins first, and what the last query sees
    of its own document is seen by all of them, up to the diagonal.
    """
    top = tile * BLOCK_Q
    end = tl.minimum(top + BLOCK_Q, T)
    full_to = (top + 1) // BLOCK_K * BLOCK_K  # tiles up to here lie below the diagonal for the first query
    first, prompt = tile * 0, tile * 0
    full_from, n_prompt = first, prompt
    if doc_start is not None:
        first = tl.load(doc_start + b * T + top) // BLOCK_K * BLOCK_K
        full_from = tl.minimum(tl.cdiv(tl.load(doc_start + b * T + end - 1), BLOCK_K) * BLOCK_K, full_to)
    if prompt_start is not None:
        prompt = tl.load(prompt_start + b * T + top) // BLOCK_K * BLOCK_K
        prompt_to = tl.minimum(tl.load(prompt_end + b * T + top), first)
        n_prompt = tl.cdiv(tl.maximum(prompt_to - prompt, 0), BLOCK_K)
    n_first, n_full, n_last = full_from - first, full_to - full_from, end - full_to
    return prompt, n_prompt, first, n_first // BLOCK_K, n_full // BLOCK_K, tl.cdiv(n_last, BLOCK_K)


@triton.jit
def _visible(key, row, doc_end, b, T):
    """Whether query `row` sees `key`. The two have a dimension of 1 each, so that this is a tile."""
    visible = key <= row
    if doc_end is not None:
        visible &= row < tl.load(doc_end + b * T + tl.minimum(key, T - 1))
    return visible


@triton.jit
def attention_forward(
    q, k, v, doc_start, doc_end, prompt_start, prompt_end, out, lse, T, H, GROUP, scale,
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
    prompt, n_prompt, first, n_first, n_full, n_last = _keys_of(
        doc_start, prompt_start, prompt_end, b, tile, T, BLOCK_Q, BLOCK_K
    )

    own = tl.minimum(row, T - 1)  # rows behind the last read it once more
    query = _load(q, own, H * D, D, BLOCK_D)
    m = tl.full([BLOCK_Q], float("-inf"), tl.float32)
    l = tl.zeros([BLOCK_Q], tl.float32)
    o = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for full in tl.static_range(2):
        for i in range(n_full if full else n_prompt + n_first + n_last):
            at = first + BLOCK_K * (n_first + i if full else _masked(i - n_prompt, n_first, n_full))
            if not full:
                at = tl.where(i < n_prompt, prompt + BLOCK_K * i, at)
            key = at + tl.arange(0, BLOCK_K)
            inside = key if full else tl.minimum(key, T - 1)
            keys = _load(k, inside, H_KV * D, D, BLOCK_D)
            s = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
            if not full:
                s = tl.where(_visible(key[None, :], row[:, None], doc_end, b, T), s, float("-inf"))
            new_m = tl.maximum(m, tl.max(s, 1))
            safe_m = tl.where(new_m == float("-inf"), 0.0, new_m)  # no key seen yet: -inf - -inf is not a number
            p = tl.math.exp2(s - safe_m[:, None])
            rescale = tl.math.exp2(m - safe_m)
            l = l * rescale + tl.sum(p, 1)
            values = _load(v, inside, H_KV * D, D, BLOCK_D)
            o = tl.dot(p.to(values.dtype), values, o * rescale[:, None], input_precision=PRECISION)
            m = new_m
    seen = l > 0
    l = tl.where(l == 0, 1.0, l)  # `l == 0` and not `~seen`, which would hide a NaN: NaN > 0 is false
    tl.store(lse + bh * T + row, tl.where(seen, m, 0.0) + tl.math.log2(l), mask=row < T)
    _store(out, o / l[:, None], row, T, H * D, D, BLOCK_D)


@triton.jit
def attention_dq(
    q, k, v, doc_start, doc_end, prompt_start, prompt_end, out, grad, lse, delta, dq, T, H, GROUP, scale,
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
    prompt, n_prompt, first, n_first, n_full, n_last = _keys_of(
        doc_start, prompt_start, prompt_end, b, tile, T, BLOCK_Q, BLOCK_K
    )

    own = tl.minimum(row, T - 1)
    do = _load(grad + at_head, own, H * D, D, BLOCK_D)
    o = _load(out + at_head, own, H * D, D, BLOCK_D)
    row_delta = tl.sum(o.to(tl.float32) * do.to(tl.float32), 1)
    tl.store(delta + bh * T + row, row_delta, mask=row < T)
    row_lse = tl.load(lse + bh * T + own)
    query = _load(q + at_head, own, H * D, D, BLOCK_D)
    acc = tl.zeros([BLOCK_Q, BLOCK_D], tl.float32)
    for full in tl.static_range(2):
        for i in range(n_full if full else n_prompt + n_first + n_last):
            at = first + BLOCK_K * (n_first + i if full else _masked(i - n_prompt, n_first, n_full))
            if not full:
                at = tl.where(i < n_prompt, prompt + BLOCK_K * i, at)
            key = at + tl.arange(0, BLOCK_K)
            inside = key if full else tl.minimum(key, T - 1)
            keys = _load(k, inside, H_KV * D, D, BLOCK_D)
            values = _load(v, inside, H_KV * D, D, BLOCK_D)
            s = tl.dot(query, tl.trans(keys), input_precision=PRECISION) * scale
            p = tl.math.exp2(s - row_lse[:, None])
            if not full:
                p = tl.where(_visible(key[None, :], row[:, None], doc_end, b, T), p, 0.0)
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
    own = tl.minimum(key, T - 1)
    keys = _load(k + at_kv_head, own, H_KV * D, D, BLOCK_D)
    values = _load(v + at_kv_head, own, H_KV * D, D, BLOCK_D)
    first = tile * BLOCK_K // BLOCK_Q * BLOCK_Q
    full_from = tl.cdiv(tile * BLOCK_K + BLOCK_K - 1, BLOCK_Q) * BLOCK_Q  # from here on behind the last key
    if doc_end is None:
        doc_stop = tl.zeros_like(key) + T
        end = T
        full_to = T // BLOCK_Q * BLOCK_Q
    else:
        doc_stop = tl.load(doc_end + b * T + own)
        end = tl.max(doc_stop, 0)
        full_to = tl.min(doc_stop, 0) // BLOCK_Q * BLOCK_Q
    full_to = tl.maximum(full_to, full_from)
    n_first, n_full = tl.cdiv(tl.minimum(full_from, end) - first, BLOCK_Q), (full_to - full_from) // BLOCK_Q
    n_last = tl.cdiv(tl.maximum(end - full_to, 0), BLOCK_Q)

    acc_k = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    acc_v = tl.zeros([BLOCK_K, BLOCK_D], tl.float32)
    for g in range(GROUP):
        h = h_kv * GROUP + g
        at_head = b.to(tl.int64) * T * H * D + h * D
        at_row = (b * H + h) * T
        for full in tl.static_range(2):
            for i in range(n_full if full else n_first + n_last):
                at = first + BLOCK_Q * (n_first + i if full else _masked(i, n_first, n_full))
                row = at + tl.arange(0, BLOCK_Q)
                inside = row if full else tl.minimum(row, T - 1)
                query = _load(q + at_head, inside, H * D, D, BLOCK_D)
                do = _load(grad + at_head, inside, H * D, D, BLOCK_D)
                row_lse = tl.load(lse + at_row + inside)
                s = tl.dot(keys, tl.trans(query), input_precision=PRECISION) * scale  # (keys, queries)
                p = tl.math.exp2(s - row_lse[None, :])
                if not full:
                    visible = (row[None, :] >= key[:, None]) & (row[None, :] < doc_stop[:, None])
                    p = tl.where(visible, p, 0.0)
                acc_v = tl.dot(p.to(do.dtype), do, acc_v, input_precision=PRECISION)
                dp = tl.dot(values, tl.trans(do), input_precision=PRECISION)
                ds = p * (dp - tl.load(delta + at_row + inside)[None, :])  # loaded late: registers are full here
                acc_k = tl.dot(ds.to(query.dtype), query, acc_k, input_precision=PRECISION)
    _store(dk + at_kv_head, acc_k * (scale / LOG2_E), key, T, H_KV * D, D, BLOCK_D)
    _store(dv + at_kv_head, acc_v, key, T, H_KV * D, D, BLOCK_D)


def attention(q: Tensor, k: Tensor, v: Tensor, doc_start: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
    """kernels.attention: q (B, T, H, D), k and v (B, T, H_kv, D), doc_start (B, T), prompt (2, B, T) -> (B, T, H, D).
    Documents must be whole, and a prompt stand before its answers: doc_start and prompt[0] do not fall along a row."""
    if torch.is_autocast_enabled(q.device.type):  # as scaled_dot_product_attention does
        q, k, v = (x.to(torch.get_autocast_dtype(x.device.type)) for x in (q, k, v))
    layout = (None,) * 4
    if doc_start is not None:
        doc_start = doc_start.to(torch.int32).contiguous()
        prompt = None if prompt is None else prompt.to(torch.int32).contiguous()
        layout = (doc_start, doc_ends(doc_start, prompt), *((None, None) if prompt is None else prompt))
    return forward_op(q, k, v, *layout)[0]


def doc_ends(doc_start: Tensor, prompt: Tensor | None) -> Tensor:
    """(B, T) int32: key j is seen by the queries j .. doc_end[j] - 1. Arguments as of kernels.attention."""
    # Neither falls along a row, so a document ends at the first token with a larger one, and so do the answers to a prompt
    end = torch.searchsorted(doc_start, doc_start, right=True, out_int32=True)
    if prompt is None:
        return end
    starts, ends = prompt
    key = torch.arange(doc_start.shape[1], device=doc_start.device)
    return torch.where(key < ends, torch.searchsorted(starts, starts, right=True, out_int32=True), end)


def forward(launch: Launcher, q: Tensor, k: Tensor, v: Tensor, *layout: Tensor | None) -> tuple[Tensor, Tensor]:
    """Launch the kernel of the forward pass: out, lse. layout: doc_start, doc_end, prompt_start, prompt_end."""
    q, k, v = (x.contiguous() for x in (q, k, v))
    B, T, H, _ = q.shape
    out, lse = torch.empty_like(q), torch.empty(B, H, T, device=q.device)
    block, constants = _block(launch, "forward", q)
    args = (q, k, v, *layout, out, lse, *_sizes(q, k))
    launch(attention_forward, (B * H, triton.cdiv(T, block.rows)), args, block, **constants)
    return out, lse


def backward(
    launch: Launcher, grad: Tensor, q: Tensor, k: Tensor, v: Tensor, *layout_out_lse: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the two kernels of the backward pass: dq, dk, dv from dL/dout (`grad`) and what `forward` had and gave."""
    grad, q, k, v = (x.contiguous() for x in (grad, q, k, v))
    *layout, out, lse = layout_out_lse
    (B, T, H, _), H_kv = q.shape, k.shape[2]
    delta = torch.empty_like(lse)
    dq, dk, dv = (torch.empty_like(x) for x in (q, k, v))
    block, constants = _block(launch, "dq", q)
    args = (q, k, v, *layout, out, grad, lse, delta, dq, *_sizes(q, k))
    launch(attention_dq, (B * H, triton.cdiv(T, block.rows)), args, block, **constants)
    block, constants = _block(launch, "dkv", q)
    args = (q, k, v, layout[1], grad, lse, delta, dk, dv, *_sizes(q, k))  # layout[1]: doc_end
    launch(attention_dkv, (B * H_kv, triton.cdiv(T, block.cols)), args, block, **constants)
    return dq, dk, dv


def _sizes(q: Tensor, k: Tensor) -> tuple[int, int, int, float]:
    """T, H, GROUP and scale of the kernels."""
    _, T, H, D = q.shape
    return T, H, H // k.shape[2], LOG2_E.value / D**0.5


def _block(launch: Launcher, kernel: str, q: Tensor) -> tuple[Block, dict]:
    """The block of a kernel for q, and the constants that the kernel is compiled with."""
    D = q.shape[-1]
    head = max(32, triton.next_power_of_2(D))
    block = launch.block(kernel, q, head)
    return block, dict(D=D, BLOCK_D=head, BLOCK_Q=block.rows, BLOCK_K=block.cols, PRECISION=precision(q))


# ---------------------------------------------------------------------------------------------------------------------
# The same as operators of PyTorch: torch.compile takes an operator as one step, of which it needs only the outputs'
# shapes
# ---------------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("excursion::attention", mutates_args=())
def forward_op(
    q: Tensor, k: Tensor, v: Tensor,
    doc_start: Tensor | None, doc_end: Tensor | None, prompt_start: Tensor | None, prompt_end: Tensor | None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    launch = Launcher(architecture(q.device))
    return forward(launch, q, k, v, doc_start, doc_end, prompt_start, prompt_end)


@torch.library.custom_op("excursion::attention_backward", mutates_args=())
def backward_op(
    grad: Tensor, q: Tensor, k: Tensor, v: Tensor,
    doc_start: Tensor | None, doc_end: Tensor | None, prompt_start: Tensor | None, prompt_end: Tensor | None,
    out: Tensor, lse: Tensor,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    launch = Launcher(architecture(q.device))
    return backward(launch, grad, q, k, v, doc_start, doc_end, prompt_start, prompt_end, out, lse)


@forward_op.register_fake
def _(q, k, v, *layout):
    B, T, H, _ = q.shape
    return q.new_empty(q.shape), q.new_empty(B, H, T, dtype=torch.float32)


@backward_op.register_fake
def _(grad, q, k, v, *layout_out_lse):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs, *output)
    ctx.set_materialize_grads(False)  # lse has no gradient


def _gradients(ctx, grad, _):
    return *backward_op(grad, *ctx.saved_tensors), None, None, None, None


forward_op.register_autograd(_gradients, setup_context=_save)
