"""The hot operations, each by its plain PyTorch definition: attention, linear log-prob, RMSNorm, rotary embedding.

On a GPU the first two run as Triton kernels (triton_attention.py, triton_log_prob.py); use() chooses.

    python -m tools.kernel_report report      what Triton's compiler makes of them for sm_80, sm_90, sm_100: needs no GPU
    python -m tools.kernel_report tune        on a GPU: time candidates for their block sizes

Shapes are named as in model.py: B rows, T tokens, S keys, H heads, D head size, C model width, V vocabulary, N = B*T.

The plain paths are bounded in memory. `linear_log_prob` never holds the (N, V) matrix of logits, which at 8192 tokens
and 50304 words takes 1.6 GB a copy, and PyTorch's own route (linear, log_softmax, gather) holds three. `python -m tools.bench
log_prob` prints time and memory of both.
"""

import functools
import importlib.util
import os
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ROWS = 512  # rows whose logits linear_log_prob holds at a time; fewer make the matrix products slow
KEEP_ELEMENTS = 1 << 23  # up to so many logits (32 MB in fp32) are kept for backward instead of computed again

# ---------------------------------------------------------------------------------------------------------------------
# Which implementation
# ---------------------------------------------------------------------------------------------------------------------

_choice = "auto"


def use(choice: Literal["auto", "triton", "torch"], device: torch.device | str) -> None:
    """Choose what attention and linear_log_prob run on from now on. UserError if `device` cannot.

    torch: the definitions below. triton: the Triton kernels, on CUDA or, with TRITON_INTERPRET=1, in its interpreter.
    auto: triton for tensors on CUDA, where it is installed and the GPU is new enough, else torch.
    """
    global _choice
    device = torch.device(device)
    reason = ""
    if choice == "triton":
        if importlib.util.find_spec("triton") is None:
            reason = "triton is not installed (pip install triton; Linux only)"
        elif device.type == "cuda" and not _gpu_is_new_enough():
            reason = "needs an NVIDIA GPU of compute capability 8.0 (A100) or newer"
        elif device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reason = f"needs CUDA, not {device.type} (TRITON_INTERPRET=1 runs it there, for tests: very slow)"
    if reason:
        from cli import UserError

        raise UserError(f"--kernels triton: {reason}; use --kernels torch")
    _choice = choice


def on_triton(x: Tensor) -> bool:
    """Do the Triton kernels run on x?"""
    if _choice == "torch" or (_choice == "auto" and x.device.type != "cuda") or x.dtype == torch.float64:
        return False
    return _triton_can_run(x.device.type)


@functools.cache
def _triton_can_run(device: str) -> bool:
    return importlib.util.find_spec("triton") is not None and (device != "cuda" or _gpu_is_new_enough())


def _gpu_is_new_enough() -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, doc_start: Tensor | None = None) -> Tensor:
    """Causal attention, optionally within documents: query t sees the keys doc_start[t] .. t.

    Args:
        q: (B, T, H, D).
        k, v: (B, T, H_kv, D); H is a multiple of H_kv (grouped queries: head h reads key head h // (H / H_kv)).
        doc_start: (B, T) position in the row at which the document of each token starts; None: one document a row.

    Returns:
        (B, T, H, D): softmax(q kᵀ / √D) v over the visible keys.
    """
    if on_triton(q) and q.shape[-1] <= 128:  # the largest head that there is a kernel for
        from kernels import triton_attention

        return triton_attention.attention(q, k, v, doc_start)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    grouped = q.shape[1] != k.shape[1]
    if doc_start is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        key = torch.arange(k.shape[2], device=q.device)
        query = torch.arange(q.shape[2], device=q.device)
        visible = (key <= query[:, None]) & (key >= doc_start[:, :, None])  # (B, T, S)
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=grouped)
    return out.transpose(1, 2)


# ---------------------------------------------------------------------------------------------------------------------
# Linear log-prob: cross-entropy for pretraining and SFT, per-token log-prob and entropy for GRPO
# ---------------------------------------------------------------------------------------------------------------------


class LogProb(NamedTuple):
    """What linear_log_prob returns, each (N,) in fp32."""

    log_prob: Tensor  # log p(target)
    entropy: Tensor | None  # -Σ p log p in nats, if it was asked for
    logsumexp: Tensor  # log Σ exp(logit / temperature): the z-loss is its square


def logits(hidden: Tensor, weight: Tensor) -> Tensor:
    """hidden (..., C) times weight (V, C) transposed, (..., V), in fp32: the products of linear_log_prob, like those never
    rounded to bf16, where a logit of 20 comes in steps of 1/8. Under autocast without a gradient."""
    hidden = _operand(hidden)
    if hidden.dtype == torch.float32:
        return F.linear(hidden, weight)
    with torch.no_grad():
        out = torch.empty(*hidden.shape[:-1], weight.shape[0], device=hidden.device)
        _logits(hidden.flatten(0, -2), weight.to(hidden.dtype), 1.0, out=out.view(-1, weight.shape[0]))
    return out


def _operand(hidden: Tensor) -> Tensor:
    """What autocast would multiply."""
    if torch.is_autocast_enabled(hidden.device.type):
        return hidden.to(torch.get_autocast_dtype(hidden.device.type))
    return hidden


def linear_log_prob(
    hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float = 1.0, entropy: bool = False
) -> LogProb:
    """Log-probability of each target under softmax(hidden @ weight.T / temperature), differentiable in all outputs.

    Works through the rows in chunks whose logits fit one reused buffer. Backward computes a chunk's logits again, one
    more matrix product, unless the whole was small enough to be kept.

    Args:
        hidden: (N, C). weight: (V, C), the output head. targets: (N,) int64 in [0, V).
        temperature: logits are divided by it, as they are in sampling.
        entropy: also return the entropy of each row's distribution (a second buffer and pass).
    """
    hidden = _operand(hidden)
    if on_triton(hidden):
        from kernels import triton_log_prob

        out = triton_log_prob.linear_log_prob(hidden, weight, targets, temperature, entropy)
    else:
        out = _LinearLogProb.apply(hidden, weight, targets, temperature, entropy)
    log_prob, row_entropy, logsumexp = out
    return LogProb(log_prob, row_entropy if entropy else None, logsumexp)


class _LinearLogProb(torch.autograd.Function):
    """With z = h Wᵀ / τ, L = logsumexp(z), p = exp(z - L), H = -Σ p log p:

    d log p(y) / dz = 1{y} - p,     dH / dz = -p (log p + H),     dL / dz = p.
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, want_entropy):
        n, vocab = hidden.shape[0], weight.shape[0]
        new = {"device": hidden.device, "dtype": torch.float32}
        log_prob, entropy, logsumexp = (torch.empty(n, **new) for _ in range(3))
        compute_weight = weight.to(hidden.dtype)  # bf16 under autocast; the same tensor in fp32
        keep = n * vocab <= KEEP_ELEMENTS
        buffer = torch.empty(n if keep else min(n, CHUNK_ROWS), vocab, **new)
        for chunk, log_p in _chunks(n, buffer, keep):
            _logits(hidden[chunk], compute_weight, temperature, out=log_p)
            target = targets[chunk, None]
            target_logit = log_p.gather(1, target)
            torch.log_softmax(log_p, -1, out=log_p)
            target_log_prob = log_p.gather(1, target)
            log_prob[chunk] = target_log_prob.squeeze(1)
            logsumexp[chunk] = (target_logit - target_log_prob).squeeze(1)
            if want_entropy:
                entropy[chunk] = -torch.einsum("nv,nv->n", log_p.exp(), log_p)
        ctx.temperature, ctx.want_entropy = temperature, want_entropy
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy, buffer if keep else None)
        ctx.set_materialize_grads(False)
        return log_prob, entropy, logsumexp

    @staticmethod
    def backward(ctx, grad_log_prob, grad_entropy, grad_logsumexp):
        hidden, weight, targets, logsumexp, entropy, kept = ctx.saved_tensors
        n, vocab = hidden.shape[0], weight.shape[0]
        compute_weight = weight.to(hidden.dtype)
        zero = torch.zeros_like(logsumexp)
        grad_log_prob = zero if grad_log_prob is None else grad_log_prob
        p_factor = zero - grad_log_prob if grad_logsumexp is None else grad_logsumexp - grad_log_prob
        use_entropy = ctx.want_entropy and grad_entropy is not None
        if use_entropy:
            p_factor = p_factor - grad_entropy * entropy
        # dz = 1{y} g_lp + p (g_L - g_lp - g_H (log p + H)), divided by the temperature. Without g_H the factor of p is one
        # number a row: then it is left out of the large matrix and put on `scale`, which spares a pass through that.
        if use_entropy:
            scale, one_hot = torch.full_like(p_factor, 1 / ctx.temperature), grad_log_prob
        else:
            zero_factor = p_factor == 0
            scale = torch.where(zero_factor, 1.0, p_factor) / ctx.temperature
            one_hot = torch.where(zero_factor, grad_log_prob, grad_log_prob / p_factor)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, device=weight.device, dtype=torch.float32)
        buffer = torch.empty(min(n, CHUNK_ROWS), vocab, device=hidden.device)
        for chunk, p in _chunks(n, buffer, False):
            target, row_scale = targets[chunk, None], scale[chunk, None]
            if kept is not None:
                log_p = kept[chunk]
            else:
                log_p = _logits(hidden[chunk], compute_weight, ctx.temperature, out=p)
                if use_entropy:
                    log_p.sub_(logsumexp[chunk, None])
            if use_entropy:  # a second buffer: log p is still needed when p has taken its place
                factor = torch.addcmul(p_factor[chunk, None], log_p, grad_entropy[chunk, None], value=-1)
                torch.exp(log_p, out=p).mul_(factor)
            else:
                torch.softmax(log_p, -1, out=p)  # of logits as of log p, which differ by a number a row
                if zero_factor[chunk].any():
                    p.masked_fill_(zero_factor[chunk, None], 0.0)
            p.scatter_add_(1, target, one_hot[chunk, None])
            dz = p.to(hidden.dtype)
            torch.mm(dz, compute_weight, out=grad_hidden[chunk]).mul_(row_scale)
            if hidden.dtype == torch.float32:
                grad_weight.addmm_(dz.T, hidden[chunk] * row_scale)
            else:  # the sum over chunks stays in fp32
                grad_weight += dz.T @ (hidden[chunk] * row_scale).to(hidden.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def _chunks(n: int, buffer: Tensor, keep: bool):
    """Slices of CHUNK_ROWS of n rows, each with its part of `buffer`: its own rows if `keep`, else always the first."""
    for start in range(0, n, CHUNK_ROWS):
        chunk = slice(start, min(start + CHUNK_ROWS, n))
        yield chunk, buffer[chunk] if keep else buffer[: chunk.stop - start]


def _logits(hidden: Tensor, weight: Tensor, temperature: float, out: Tensor) -> Tensor:
    """hidden @ weight.T / temperature in fp32, written to `out`."""
    if hidden.dtype == torch.float32:
        torch.mm(hidden, weight.T, out=out)
    elif hidden.is_cuda:  # bf16 operands, fp32 sum and result
        out.copy_(torch.mm(hidden, weight.T, out_dtype=torch.float32))
    else:  # which have no such product: a product of bf16 numbers is exact in fp32
        torch.mm(hidden.float(), weight.float().T, out=out)
    return out.div_(temperature) if temperature != 1.0 else out


# ---------------------------------------------------------------------------------------------------------------------
# Elementwise operations. Autograd's own route through them makes many temporaries: at d_model 128 on a CPU they cost as
# much time as the matrix products. Each Function below is the formula and its derivative in as few passes as PyTorch has.
# ---------------------------------------------------------------------------------------------------------------------


def rms_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) * gain over the last dimension (arXiv 1910.07467)."""
    if x.device.type != "cpu" or torch.compiler.is_compiling():  # which have a fused kernel, or make one
        return F.rms_norm(x, gain.shape, gain.to(x.dtype), eps)
    return _RMSNorm.apply(x, gain, eps)


class _RMSNorm(torch.autograd.Function):
    """y = n·gain with n = x·r, r = (mean x² + eps)^-½:  dx = r (dy·gain - n mean(dy·gain·n)),  dgain = Σ dy·n."""

    @staticmethod
    def forward(ctx, x, gain, eps):
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True)  # one pass and no temporary of x's size
        r = norm.square_().div_(x.shape[-1]).add_(eps).rsqrt_()
        n = x * r
        ctx.save_for_backward(n, r, gain)
        return n * gain

    @staticmethod
    def backward(ctx, dy):
        n, r, gain = ctx.saved_tensors
        dy_n = dy * n
        mean = (dy_n @ gain).div_(-n.shape[-1])
        dx = torch.addcmul(dy * gain, n, mean.unsqueeze(-1)).mul_(r)
        return dx, dy_n.flatten(0, -2).sum(0), None


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary position embedding, rotate-half form (as OLMo2 and Llama): pairs are (i, i + D/2).

    Args:
        x: (B, T, H, D). cos, sin: (T, 1, D/2) or (B, T, 1, D/2) of position × frequency.
    """
    if torch.compiler.is_compiling():
        first, second = x.chunk(2, -1)
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return _Rotary.apply(x, cos, sin)


class _Rotary(torch.autograd.Function):
    """A rotation: its derivative is the rotation back."""

    @staticmethod
    def forward(ctx, x, cos, sin):
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx, dy):
        return _rotate(dy, *ctx.saved_tensors, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, sign: int) -> Tensor:
    first, second = x.chunk(2, -1)
    out = torch.empty_like(x, memory_format=torch.contiguous_format)
    out_first, out_second = out.chunk(2, -1)
    torch.mul(first, cos, out=out_first).addcmul_(second, sin, value=-sign)
    torch.mul(second, cos, out=out_second).addcmul_(first, sin, value=sign)
    return out
