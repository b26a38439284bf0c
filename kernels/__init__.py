"""The hot operations by their plain PyTorch definitions: attention, attention of a decoding step, log-prob.

On a GPU they run as Triton kernels (triton_attention.py, triton_log_prob.py, triton_decode.py); use() chooses.

    python -m tools.kernel_report report      what Triton's compiler makes of them for each architecture: needs no GPU
    python -m tools.kernel_report tune        on a GPU: time candidates for their block sizes

Shapes are named as in model.py: B rows, T tokens, S keys, H heads, D head size, C model width, V vocabulary, N = B*T.

To add a kernel: write its plain definition here, with a branch that asks on_triton(x); the Triton version in a file of
its own; its block sizes in blocks.py; a launch of it in tools/kernel_report.py (`launches`). tests/test_kernels.py
compares the plain definition with float64, tests/triton_numerics.py the Triton kernel.

The plain paths are bounded in memory. `linear_log_prob` never holds the (N, V) matrix of logits, which at 8192 tokens
and 50304 words takes 1.6 GB a copy, and PyTorch's own route (linear, log_softmax, gather) holds three.
`python -m tools.bench log_prob` prints time and memory of both.
"""

import importlib.util
import os
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

# What PyTorch's attention may run on, in this order
SDPA = [SDPBackend.CUDNN_ATTENTION, SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
CHUNK_ROWS = 512  # rows whose logits linear_log_prob holds at a time; fewer make the matrix products slow
KEEP_ELEMENTS = 1 << 23  # up to so many logits (32 MB in fp32) are kept for backward instead of computed again

# ---------------------------------------------------------------------------------------------------------------------
# Which implementation
# ---------------------------------------------------------------------------------------------------------------------

_choice = "auto"
# Type of device → can Triton's kernels run there? use() asks; torch.compile, which goes through on_triton, only looks it up
_can_run: dict[str, bool] = {}


def use(choice: str, device: torch.device | str) -> None:
    """Choose what attention and linear_log_prob run on from now on (the environment's KERNELS). UserError if `device`
    cannot.

    torch: the definitions below. triton: the Triton kernels, on CUDA or, with TRITON_INTERPRET=1, in its interpreter.
    auto: triton for tensors on CUDA, where it is installed and the GPU is new enough, else torch; attention of whole
    rows, without documents, is PyTorch's there too.
    """
    global _choice
    device = torch.device(device)
    reason = "" if choice in ("auto", "triton", "torch") else "auto, triton and torch are known"
    if choice == "triton":
        if importlib.util.find_spec("triton") is None:
            reason = "triton is not installed (pip install triton; Linux only)"
        elif device.type == "cuda" and not _gpu_is_new_enough():
            reason = "needs an NVIDIA GPU of compute capability 8.0 (A100) or newer"
        elif device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
            reason = f"needs CUDA, not {device.type} (TRITON_INTERPRET=1 runs it there, for tests: very slow)"
    if reason:
        from cli import UserError

        raise UserError(f"KERNELS={choice}: {reason}; set KERNELS=torch in the environment")
    _choice = choice
    _triton_can_run(device.type)


def on_triton(x: Tensor) -> bool:
    """Do the Triton kernels run on x?"""
    if _choice == "torch" or (_choice == "auto" and x.device.type != "cuda") or x.dtype == torch.float64:
        return False
    return _triton_can_run(x.device.type)


def _triton_can_run(device: str) -> bool:
    if device not in _can_run:
        _can_run[device] = importlib.util.find_spec("triton") is not None and (device != "cuda" or _gpu_is_new_enough())
    return _can_run[device]


def _gpu_is_new_enough() -> bool:
    return torch.version.cuda is not None and torch.cuda.get_device_capability() >= (8, 0)


# ---------------------------------------------------------------------------------------------------------------------
# Attention
# ---------------------------------------------------------------------------------------------------------------------


def attention(q: Tensor, k: Tensor, v: Tensor, doc_start: Tensor | None = None, prompt: Tensor | None = None) -> Tensor:
    """Causal attention, optionally within documents: query t sees the keys doc_start[t] .. t, and those of its prompt.

    Documents that share a prompt, say the answers to it, stand behind it in the row: prompt | answer | answer | ...

    Args:
        q: (B, T, H, D).
        k, v: (B, T, H_kv, D); H is a multiple of H_kv (grouped queries: head h reads key head h // (H / H_kv)).
        doc_start: (B, T) position in the row at which the document of each token starts; None: one document a row.
        prompt: (2, B, T) where the prompt of each token starts, and the position behind its last token; a prompt is
            that of its own tokens, too. None: no prompts. Needs doc_start.

    Returns:
        (B, T, H, D): softmax(q kᵀ / √D) v over the visible keys.
    """
    # The Triton kernel is for documents; for whole rows the libraries behind PyTorch's attention are faster
    wanted = doc_start is not None or _choice == "triton"
    if on_triton(q) and wanted and q.shape[-1] <= 128:  # the largest head that there is a kernel for
        from kernels import triton_attention

        return triton_attention.attention(q, k, v, doc_start, prompt)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))  # (B, H, T, D)
    grouped = q.shape[1] != k.shape[1]
    if doc_start is None and q.device.type == "cuda":
        # cuDNN is the fastest where it can, but plans each shape that it has not seen: in training shapes come again
        first = 0 if torch.is_grad_enabled() else 1
        with sdpa_kernel(SDPA[first:], set_priority=True):
            out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    elif doc_start is None:
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=grouped)
    else:
        key = torch.arange(k.shape[2], device=q.device)
        query = torch.arange(q.shape[2], device=q.device)
        visible = key >= doc_start[:, :, None]  # (B, T, S)
        if prompt is not None:
            visible |= (key >= prompt[0, :, :, None]) & (key < prompt[1, :, :, None])
        visible &= key <= query[:, None]
        out = F.scaled_dot_product_attention(q, k, v, attn_mask=visible[:, None], enable_gqa=grouped)
    return out.transpose(1, 2)


def decode_attention(
    q: Tensor, k: Tensor, v: Tensor, pool_k: Tensor, pool_v: Tensor, pages: Tensor, prompt: Tensor, own: Tensor
) -> Tensor:
    """Attention of one new token per row, over keys and values that lie in pages. The new ones are stored there.

    A row's first pages are its prompt's, the last of them perhaps not full; those of its own tokens follow. Rows may
    share pages, but not the one that the new token goes to.

    Args:
        q: (B, H, D). k, v: (B, H_kv, D) of the new token.
        pool_k, pool_v: (pages, PAGE, H_kv, D): what other rows or nobody has there does not matter.
        pages: (B, X) int32, the pages of each row in order; what follows them does not matter, but must be pages.
        prompt, own: (B,) int32: tokens of each row's prompt, and own tokens before the new one, which are stored.

    Returns:
        (B, H, D) in the pool's type: softmax(q kᵀ / √D) v over the prompt, the own tokens and the new one.
    """
    if on_triton(q):
        from kernels import triton_decode

        return triton_decode.attention(q, k, v, pool_k, pool_v, pages, prompt, own)
    page, kind, row = pool_k.shape[1], pool_k.dtype, torch.arange(len(q), device=q.device)
    padded = (prompt + page - 1) // page * page  # places of a row's tokens are numbered through its pages
    here = padded + own
    pool_k[pages[row, here // page], here % page] = k.to(kind)
    pool_v[pages[row, here // page], here % page] = v.to(kind)
    place = torch.arange(pages.shape[1] * page, device=q.device)
    seen = (place < prompt[:, None]) | ((place >= padded[:, None]) & (place <= here[:, None]))  # (B, X * PAGE)
    # What is not seen must be finite, too: 0 · nan is nan
    k, v = (x[pages].flatten(1, 2).masked_fill(~seen[:, :, None, None], 0).transpose(1, 2) for x in (pool_k, pool_v))
    q = q[:, :, None].to(kind)  # (B, H, 1, D), and k, v (B, H_kv, X * PAGE, D)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen[:, None, None], enable_gqa=True).squeeze(2)


# ---------------------------------------------------------------------------------------------------------------------
# Linear log-prob: cross-entropy for pretraining and SFT, per-token log-prob and entropy for GRPO
# ---------------------------------------------------------------------------------------------------------------------


class LogProb(NamedTuple):
    """What linear_log_prob returns, each (N,) in fp32."""

    log_prob: Tensor  # log p(target)
    entropy: Tensor | None  # -Σ p log p in nats, if it was asked for
    logsumexp: Tensor  # log Σ exp(logit / temperature): the z-loss is its square


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
    hidden = in_autocast_type(hidden)
    if on_triton(hidden):
        from kernels import triton_log_prob

        out = triton_log_prob.linear_log_prob(hidden, weight, targets, temperature)
    else:
        out = _LinearLogProb.apply(hidden, weight, targets, temperature, entropy)
    log_prob, row_entropy, logsumexp = out
    return LogProb(log_prob, row_entropy if entropy else None, logsumexp)


class _LinearLogProb(torch.autograd.Function):
    """Of one row: h (C,) its hidden state, W (V, C) the output head, τ the temperature, y the target, 1{y} (V,) one at
    the target and zero elsewhere. With z = h Wᵀ / τ, L = logsumexp(z), p = exp(z - L), H = -Σ p log p:

        d log p(y) / dz = 1{y} - p,     dH / dz = -p (log p + H),     dL / dz = p
    """

    @staticmethod
    def forward(ctx, hidden, weight, targets, temperature, want_entropy):
        n, vocab = len(hidden), len(weight)
        log_prob, entropy, logsumexp = torch.empty(3, n, device=hidden.device)
        weight_cast = weight.to(hidden.dtype)  # bf16 under autocast; the same tensor in fp32
        keep = n * vocab <= KEEP_ELEMENTS
        buffer = torch.empty(n if keep else min(n, CHUNK_ROWS), vocab, device=hidden.device)
        for start in range(0, n, CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, n))
            z = buffer[rows] if keep else buffer[: rows.stop - start]  # (rows of the chunk, V)
            logits(hidden[rows], weight_cast, temperature, out=z)
            target = targets[rows, None]  # (rows of the chunk, 1)
            target_logit = z.gather(1, target)
            log_p = torch.log_softmax(z, -1, out=z)  # in z's place
            target_log_p = log_p.gather(1, target)
            log_prob[rows] = target_log_p.squeeze(1)
            logsumexp[rows] = (target_logit - target_log_p).squeeze(1)
            if want_entropy:
                entropy[rows] = -torch.einsum("nv,nv->n", log_p.exp(), log_p)
        ctx.temperature, ctx.want_entropy = temperature, want_entropy
        ctx.save_for_backward(hidden, weight, targets, logsumexp, entropy, buffer if keep else None)
        ctx.set_materialize_grads(False)
        return log_prob, entropy, logsumexp

    @staticmethod
    def backward(ctx, g_log_prob, g_entropy, g_logsumexp):
        """With u = h Wᵀ, so that z = u / τ, and the gradients g_lp, g_H, g_L (N,) that arrive at the three outputs:

            du = (1{y} g_lp + p f) / τ,     f = g_L - g_lp - g_H (log p + H),     dh = du W,     dW = duᵀ h

        The code makes a matrix `part` (N, V) and a factor `scale` (N,) with du = scale · part, and multiplies the small
        dh and h by `scale`. With g_H, f is (N, V) and scale = 1 / τ. Without g_H, f is one number a row, so scale = f /
        τ and part = 1{y} g_lp / f + p: this spares a pass over the large matrix.
        """
        hidden, weight, targets, logsumexp, entropy, kept = ctx.saved_tensors
        n, vocab = len(hidden), len(weight)
        weight_cast = weight.to(hidden.dtype)
        zero = torch.zeros_like(logsumexp)
        g_log_prob = zero if g_log_prob is None else g_log_prob
        f = (zero if g_logsumexp is None else g_logsumexp) - g_log_prob
        use_entropy = ctx.want_entropy and g_entropy is not None
        if use_entropy:
            f = f - g_entropy * entropy
            scale, at_target = torch.full_like(f, 1 / ctx.temperature), g_log_prob
        else:
            f_is_zero = f == 0  # in a masked row, for example: nothing can be divided by f, so p is set to 0 below
            scale = torch.where(f_is_zero, 1.0, f) / ctx.temperature
            at_target = torch.where(f_is_zero, g_log_prob, g_log_prob / f)
        grad_hidden = torch.empty_like(hidden)
        grad_weight = torch.zeros(weight.shape, device=weight.device, dtype=torch.float32)
        buffer = torch.empty(min(n, CHUNK_ROWS), vocab, device=hidden.device)
        for start in range(0, n, CHUNK_ROWS):
            rows = slice(start, min(start + CHUNK_ROWS, n))
            p = buffer[: rows.stop - start]
            if kept is not None:
                scores = kept[rows]  # log p
            else:
                scores = logits(hidden[rows], weight_cast, ctx.temperature, out=p)
                if use_entropy:
                    scores.sub_(logsumexp[rows, None])  # now log p
            if use_entropy:  # f is a second matrix, made before p overwrites log p in the buffer
                f_matrix = torch.addcmul(f[rows, None], scores, g_entropy[rows, None], value=-1)
                torch.exp(scores, out=p).mul_(f_matrix)
            else:
                # Logits and log p differ by a constant in each row: softmax gives the same p
                torch.softmax(scores, -1, out=p)
                if f_is_zero[rows].any():
                    p.masked_fill_(f_is_zero[rows, None], 0.0)
            part = p.scatter_add_(1, targets[rows, None], at_target[rows, None]).to(hidden.dtype)
            torch.mm(part, weight_cast, out=grad_hidden[rows]).mul_(scale[rows, None])
            if hidden.dtype == torch.float32:
                grad_weight.addmm_(part.T, hidden[rows] * scale[rows, None])
            else:  # the sum over chunks stays in fp32
                grad_weight += part.T @ (hidden[rows] * scale[rows, None]).to(hidden.dtype)
        return grad_hidden, grad_weight.to(weight.dtype), None, None, None


def logits(hidden: Tensor, weight: Tensor, temperature: float = 1.0, out: Tensor | None = None) -> Tensor:
    """hidden (N, C) @ weight.T (C, V) / temperature: (N, V) in fp32, in `out` if given, without a gradient.

    Under autocast the operands are rounded to bf16. The result is not: near 20, bf16 has steps of 1/8.
    """
    hidden = in_autocast_type(hidden)
    weight = weight.to(hidden.dtype)
    if out is None:
        out = torch.empty(len(hidden), len(weight), device=hidden.device)
    with torch.no_grad():  # autocast leaves products with an `out` alone
        if hidden.dtype == torch.float32:
            torch.mm(hidden, weight.T, out=out)
        elif hidden.is_cuda:  # bf16 operands, fp32 sum and result
            out.copy_(torch.mm(hidden, weight.T, out_dtype=torch.float32))
        else:  # a CPU has no such product; fp32 gives the same, since it holds every product of two bf16 numbers exactly
            torch.mm(hidden.float(), weight.float().T, out=out)
        return out.div_(temperature) if temperature != 1.0 else out


def in_autocast_type(x: Tensor) -> Tensor:
    """x as autocast would multiply it."""
    if torch.is_autocast_enabled(x.device.type):
        return x.to(torch.get_autocast_dtype(x.device.type))
    return x
