"""Log-probability and entropy of a softmax over words as Triton kernels, without the (rows × words) matrix of logits;
kernels.linear_log_prob has the plain definition.

Logits z = h Wᵀ / τ exist one tile at a time, in registers. What is wanted of a row are

    L = log Σ_v e^z_v,    log p(y) = z_y - L,    H = -Σ_v p_v log p_v

The vocabulary is worked through in chunks: of fp32 weights only the chunk is copied to bf16, and in backward only its
part of dL/dz exists.

Names: N rows of hidden states, V words, C model width; `tile` a program's place; BLOCK_* the sides of a tile; EVEN: C
is a multiple of BLOCK_C, so that no load needs a mask. Inside a kernel `weight` is one chunk (V, C), V counts the words
of that chunk alone, and `word` 0 is word `first_word` of the vocabulary. blocks.py says what a Triton kernel is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from kernels.blocks import Block, Launcher, architecture, precision

VOCAB_CHUNK = 8192  # words at a time: bounds the copies of the head's weight and the gradient of the logits


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

        m = max z,    l = Σ e^(z - m),    s = Σ e^(z - m) (z - m)        to top, total and moment, (tiles of words, N) each,

    and the target's logit if the target is among these words. merge() puts the parts together.
    """
    row, word, z, tile_v = _logits_tile(
        hidden, weight, N, V, C, inv_temperature, BLOCK_N, BLOCK_V, BLOCK_C, EVEN, PRECISION
    )
    z = tl.where((word < V)[None, :], z, -1e38)  # not -inf: 0 · -inf is not a number
    m = tl.max(z, 1)
    shifted = z - m[:, None]
    p = tl.exp(shifted)
    at = tile_v.to(tl.int64) * N + row
    tl.store(top + at, m, mask=row < N)
    tl.store(total + at, tl.sum(p, 1), mask=row < N)
    tl.store(moment + at, tl.sum(p * shifted, 1), mask=row < N)
    target = tl.load(targets + row, mask=row < N, other=-1) - first_word
    chosen = tl.sum(tl.where(word[None, :] == target[:, None], z, 0.0), 1)
    here = (target >= tile_v * BLOCK_V) & (target < tl.minimum(tile_v * BLOCK_V + BLOCK_V, V))
    tl.store(target_logit + row, chosen, mask=here & (row < N))


def merge(top: Tensor, total: Tensor, moment: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """M, log l and H of each row, (N,) each, from m (top), l (total) and s (moment) of its tiles, (tiles, N) each,
    which are overwritten. With M = max m, and l and s on the left those of the whole row:

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
    """One program: a tile of dz = dLoss/d(h Wᵀ), from the same logits as in forward, computed again. With upstream
    gradients g_lp, g_H, g_L of the three outputs (g_log_prob, g_entropy; g_L is part of g_p):

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


def linear_log_prob(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float):
    """kernels.linear_log_prob: hidden (N, C), weight (V, C), targets (N,) -> log-prob, entropy, logsumexp, (N,) each. A
    target outside [0, V) gives NaN."""
    return forward_op(hidden, weight, targets, temperature)


def forward(
    launch: Launcher, hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Launch the kernel of the forward pass, chunk by chunk: log-prob, entropy, logsumexp."""
    hidden, targets = hidden.contiguous(), targets.contiguous()
    (N, _), V = hidden.shape, weight.shape[0]
    block, constants = _block(launch, "forward", hidden)
    parts = torch.empty(3, triton.cdiv(V, block.cols), N, device=hidden.device)
    target_logit = torch.full((N,), torch.nan, device=hidden.device)
    for first, words in _chunks(weight, hidden.dtype):
        here = parts[:, first // block.cols :]  # from this chunk's first tile on; VOCAB_CHUNK holds whole tiles
        tiles = triton.cdiv(N, block.rows) * triton.cdiv(len(words), block.cols)
        args = (hidden, words, targets, *here, target_logit, N, *words.shape, first, 1 / temperature)
        launch(log_prob_forward, (tiles,), args, block, **constants)
    largest, log_total, entropy = merge(*parts)
    return target_logit - largest - log_total, entropy, largest + log_total


def backward(
    launch: Launcher, grad_log_prob: Tensor | None, grad_entropy: Tensor | None, grad_logsumexp: Tensor | None,
    hidden: Tensor, weight: Tensor, targets: Tensor, entropy: Tensor, logsumexp: Tensor, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Launch the kernel of the backward pass, chunk by chunk, and multiply: dL/dhidden and dL/dweight from the
    gradients of the three outputs (None: not used) and what `forward` had and gave."""
    hidden, targets = hidden.contiguous(), targets.contiguous()
    N, V = hidden.shape[0], weight.shape[0]
    zero = torch.zeros_like(logsumexp)
    g_log_prob = zero if grad_log_prob is None else grad_log_prob.contiguous()
    g_p = (zero if grad_logsumexp is None else grad_logsumexp) - g_log_prob
    g_entropy = None if grad_entropy is None else grad_entropy.contiguous()
    if g_entropy is not None:
        g_p = g_p - g_entropy * entropy
    grad_hidden = torch.zeros(hidden.shape, device=hidden.device)  # summed over chunks: fp32
    grad_weight = torch.empty(weight.shape, device=weight.device)
    buffer = torch.empty(N * min(V, VOCAB_CHUNK), device=hidden.device, dtype=hidden.dtype)
    block, constants = _block(launch, "backward", hidden)
    for first, words in _chunks(weight, hidden.dtype):
        dz = buffer[: N * len(words)].view(N, len(words))
        tiles = triton.cdiv(N, block.rows) * triton.cdiv(len(words), block.cols)
        args = (hidden, words, targets, logsumexp, g_log_prob, g_p, g_entropy, dz)
        args += (N, *words.shape, first, 1 / temperature)
        launch(log_prob_backward, (tiles,), args, block, **constants)
        _product(dz.T, hidden, out=grad_weight[first : first + len(words)])
        _product(dz, words, out=grad_hidden, add=True)
    return grad_hidden.to(hidden.dtype), grad_weight.to(weight.dtype)


def _chunks(weight: Tensor, dtype: torch.dtype):
    """(first word, its VOCAB_CHUNK rows of the weight in `dtype`)."""
    for first in range(0, weight.shape[0], VOCAB_CHUNK):
        yield first, weight[first : first + VOCAB_CHUNK].to(dtype).contiguous()


def _block(launch: Launcher, kernel: str, hidden: Tensor) -> tuple[Block, dict]:
    block = launch.block(kernel, hidden)
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
# The same as operators of PyTorch: torch.compile takes an operator as one step, of which it needs only the outputs'
# shapes
# ---------------------------------------------------------------------------------------------------------------------


@torch.library.custom_op("excursion::log_prob", mutates_args=())
def forward_op(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    return forward(Launcher(architecture(hidden.device)), hidden, weight, targets, temperature)


@torch.library.custom_op("excursion::log_prob_backward", mutates_args=())
def backward_op(
    grad_log_prob: Tensor | None, grad_entropy: Tensor | None, grad_logsumexp: Tensor | None,
    hidden: Tensor, weight: Tensor, targets: Tensor, entropy: Tensor, logsumexp: Tensor, temperature: float,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    launch, grads = Launcher(architecture(hidden.device)), (grad_log_prob, grad_entropy, grad_logsumexp)
    return backward(launch, *grads, hidden, weight, targets, entropy, logsumexp, temperature)


@forward_op.register_fake
def _(hidden, weight, targets, temperature):
    return tuple(hidden.new_empty(hidden.shape[0], dtype=torch.float32) for _ in range(3))


@backward_op.register_fake
def _(grad_log_prob, grad_entropy, grad_logsumexp, hidden, weight, *_):
    return hidden.new_empty(hidden.shape), weight.new_empty(weight.shape)


def _save(ctx, inputs, output):
    *tensors, ctx.temperature = inputs
    _, entropy, logsumexp = output
    ctx.save_for_backward(*tensors, entropy, logsumexp)
    ctx.set_materialize_grads(False)  # None for an output that is not used


def _gradients(ctx, *grads):
    return *backward_op(*grads, *ctx.saved_tensors, ctx.temperature), None, None


forward_op.register_autograd(_gradients, setup_context=_save)
