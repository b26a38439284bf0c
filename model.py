"""The GPT shared by all stages: OLMo2's architecture (arXiv 2501.00656 §2), in one file.

    x = embed(tokens)
    for each block:  x = x + norm(attention(x));  x = x + norm(swiglu(x))       norms on the outputs, not the inputs
    hidden = norm(x);  logits = hidden @ head.T

Query and key are RMS-normed over their whole width before the split into heads and before the rotary embedding. No
biases; embedding and head are separate tables.

Letters for shapes, here and in every other file: B rows, T tokens of a row, S keys, H query heads, H_kv heads of keys
and values, D head size, C model width (d_model), V vocabulary (padded), L layers, N = B*T tokens of all rows.

`forward` returns hidden states, not logits: the losses take `kernels.linear_log_prob(hidden, model.head.weight, ...)`,
which never holds the (N, V) logits. What a token may attend to is the `attend` argument: causal attention by default,
a cache in the sampler, a shared prompt in the RL update.
"""

import functools
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import kernels

# attend(layer, q, k, v) -> (B, T, H, D), from q (B, T, H, D) and k, v (B, T, H_kv, D) after norms and rotary embedding
Attend = Callable[[int, Tensor, Tensor, Tensor], Tensor]


@dataclass
class GPTConfig:
    vocab_size: int  # rows of the two tables (the tokenizer's padded size)
    d_model: int
    n_layers: int
    n_heads: int
    d_ff: int  # width of the SwiGLU
    context: int  # longest sequence, in tokens
    n_kv_heads: int = 0  # 0: as many as heads (multi-head, as OLMo2); fewer: grouped queries
    rope_theta: float = 500_000.0
    norm_eps: float = 1e-6

    def __post_init__(self):
        self.n_kv_heads = self.n_kv_heads or self.n_heads
        self.head_dim = self.d_model // self.n_heads  # D, even: rotary turns pairs


# The vocabulary is the tokenizer's. olmo2-1b is the paper's model. micro has 4 heads of 32: with 2 of 64 it learned
# arithmetic far later (EXPERIMENTS.md).
SCALES = {
    "smoke": dict(d_model=64, n_layers=2, n_heads=2, d_ff=192, context=256),
    "micro": dict(d_model=128, n_layers=4, n_heads=4, d_ff=384, context=256),
    "mini": dict(d_model=256, n_layers=6, n_heads=8, d_ff=768, context=512),
    "small": dict(d_model=512, n_layers=8, n_heads=8, d_ff=1536, context=1024),
    "190m": dict(d_model=768, n_layers=12, n_heads=12, d_ff=3072, context=4096),
    "olmo2-1b": dict(d_model=2048, n_layers=16, n_heads=16, d_ff=8192, context=4096),
    "4b": dict(d_model=3072, n_layers=28, n_heads=24, d_ff=10240, context=4096),
}


def config_of(scale: str, vocab_size: int, **changes) -> GPTConfig:
    """The configuration named `scale`, with a vocabulary and any field changed."""
    return GPTConfig(vocab_size=vocab_size, **{**SCALES[scale], **changes})


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (arXiv 1910.07467)."""

    def __init__(self, width: int, eps: float):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu" or torch.compiler.is_compiling():  # one fused kernel
            return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)
        # On a CPU this takes fewer passes than F.rms_norm, which makes a training step at micro 7% longer
        mean_square = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square() / x.shape[-1]
        return x * (mean_square + self.eps).rsqrt() * self.weight


def rotary(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn each pair (x_i, x_i+D/2) by an angle: (x_i cos - x_i+D/2 sin, x_i+D/2 cos + x_i sin), as OLMo2 and Llama do.

    Args:
        x: (B, T, H, D). cos, sin: rows of `rotary_tables`, which are (cos, cos) and (-sin, sin): (T, 1, D) or (B, T, 1, D).
    """
    half = x.shape[-1] // 2
    if torch.compiler.is_compiling():  # the compiler makes faster code of this form than of the one below
        first, second = x.chunk(2, -1)
        cos, sin = cos[..., :half], sin[..., half:]
        return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)
    return torch.addcmul(x * cos, x.roll(half, -1), sin).to(x.dtype)  # roll swaps the halves of the head


class Block(nn.Module):
    # What backward computes again instead of keeping it (arXiv 2205.05198): "none"; "attention", the first of the two
    # halves; "block", all but the block's input
    recompute = "none"

    def __init__(self, c: GPTConfig, layer: int):
        super().__init__()
        self.layer, self.head_dim = layer, c.head_dim
        kv_width = c.n_kv_heads * c.head_dim
        self.q = nn.Linear(c.d_model, c.d_model, bias=False)
        self.k = nn.Linear(c.d_model, kv_width, bias=False)
        self.v = nn.Linear(c.d_model, kv_width, bias=False)
        self.o = nn.Linear(c.d_model, c.d_model, bias=False)
        self.q_norm = RMSNorm(c.d_model, c.norm_eps)
        self.k_norm = RMSNorm(kv_width, c.norm_eps)
        self.attention_norm = RMSNorm(c.d_model, c.norm_eps)
        self.gate = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.up = nn.Linear(c.d_model, c.d_ff, bias=False)
        self.down = nn.Linear(c.d_ff, c.d_model, bias=False)
        self.mlp_norm = RMSNorm(c.d_model, c.norm_eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, attend: Attend) -> Tensor:
        """(B, T, C) → (B, T, C). cos, sin: of the tokens' positions, see `rotary`."""
        heads = (*x.shape[:2], -1, self.head_dim)

        def attention(x):
            # norm over the full width first, then heads, then rotation (arXiv 2501.00656 §2.2)
            q = rotary(self.q_norm(self.q(x)).view(heads), cos, sin)  # (B, T, H, D)
            k = rotary(self.k_norm(self.k(x)).view(heads), cos, sin)  # (B, T, H_kv, D)
            v = self.v(x).view(heads)  # (B, T, H_kv, D)
            return self.attention_norm(self.o(attend(self.layer, q, k, v).flatten(2)))

        if self.recompute == "attention" and torch.is_grad_enabled():
            x = x + checkpoint(attention, x, use_reentrant=False, preserve_rng_state=False)
        else:
            x = x + attention(x)
        return x + self.mlp_norm(self.down(F.silu(self.gate(x)) * self.up(x)))


def rotary_tables(c: GPTConfig) -> tuple[Tensor, Tensor]:
    """Cosines (cos, cos) and sines (-sin, sin) of the rotary embedding, (context, D) each."""
    # A model on the meta device needs shapes alone. arange there is Python and imports torch._dynamo, which takes a second
    if torch.get_default_device().type == "meta":
        return torch.empty(c.context, c.head_dim), torch.empty(c.context, c.head_dim)
    half = c.head_dim // 2
    frequency = c.rope_theta ** (-torch.arange(half, dtype=torch.float64) / half)
    angle = torch.arange(c.context, dtype=torch.float64)[:, None] * frequency  # (context, D/2)
    cos, sin = angle.cos().float(), angle.sin().float()
    return torch.cat([cos, cos], -1), torch.cat([-sin, sin], -1)


class GPT(nn.Module):
    def __init__(self, config: GPTConfig):
        super().__init__()
        self.config = config
        # init_weights draws all weights. On the meta device nn.Embedding's own draw would import torch._dynamo as well
        self.embed = nn.Embedding.from_pretrained(torch.zeros(config.vocab_size, config.d_model), freeze=False)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.n_layers))
        self.norm = RMSNorm(config.d_model, config.norm_eps)
        self.head = nn.Linear(config.d_model, config.vocab_size, bias=False)
        cos, sin = rotary_tables(config)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    @torch.no_grad()
    def init_weights(self, seed: int, std: float = 0.02) -> "GPT":
        """Truncated normal (± 3 std) for every matrix, ones for gains (the weights of RMSNorm): the same on every
        device and rank.

        Drawn on the CPU, a matrix at a time: another device's random numbers would be others.
        """
        generator = torch.Generator().manual_seed(seed)
        for p in self.parameters():
            if p.dim() == 1:
                p.fill_(1)
                continue
            x = p.detach() if p.device.type == "cpu" else torch.empty(p.shape)
            x.normal_(0, std, generator=generator)
            # Numbers outside are drawn again, with a whole new matrix: the draws of nn.init.trunc_normal_, in half its time
            flat, limit = x.view(-1), torch.tensor(3 * std)
            outside = (flat.abs() > limit).nonzero().squeeze(1)
            while len(outside):
                flat[outside] = torch.empty_like(x).normal_(0, std, generator=generator).view(-1)[outside]
                outside = outside[flat[outside].abs() > limit]
            if p.device.type != "cpu":
                p.copy_(x)
        return self

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        attend: Attend | None = None,
        doc_start: Tensor | None = None,
        run: Callable = Block.__call__,
    ) -> Tensor:
        """Final hidden states (B, T, C) of tokens (B, T).

        Args:
            positions: (T,) or (B, T), below `config.context`; default 0 .. T-1.
            attend: what a token sees; default causal attention.
            doc_start: (B, T) for the default attend: keep packed documents apart (kernels.attention).
            run: run(block, x, cos, sin, attend) calls a block (CompiledGPT has another one).
        """
        if positions is None:
            cos, sin = self.cos[: tokens.shape[1], None], self.sin[: tokens.shape[1], None]  # (T, 1, D)
        else:
            cos, sin = self.cos[positions].unsqueeze(-2), self.sin[positions].unsqueeze(-2)  # (T, 1, D) or (B, T, 1, D)
        if attend is None:

            def attend(_, q, k, v):
                return kernels.attention(q, k, v, doc_start)

        x = self.embed(tokens)  # (B, T, C)
        for block in self.blocks:
            if block.recompute == "block" and torch.is_grad_enabled():
                x = checkpoint(run, block, x, cos, sin, attend, use_reentrant=False, preserve_rng_state=False)
            else:
                x = run(block, x, cos, sin, attend)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., C) -> (..., V) in fp32: for sampling a few positions; losses use kernels.linear_log_prob."""
        return kernels.logits(hidden.flatten(0, -2), self.head.weight).unflatten(0, hidden.shape[:-1])

    @property
    def n_params(self) -> int:
        return sum(p.numel() for p in self.parameters())


def empty_gpt(config: GPTConfig, device: torch.device | str) -> GPT:
    """A GPT on `device` whose weights are still to be set: PyTorch's own initialisation would take longer than to read them."""
    with torch.device("meta"):
        model = GPT(config)
    # to_empty would do the same, and import sympy
    empty = {name: torch.empty(weight.shape, device=device) for name, weight in model.state_dict().items()}
    model.load_state_dict(empty, assign=True)
    model.cos, model.sin = (table.to(device) for table in rotary_tables(config))
    return model


class CompiledGPT:
    """A GPT as training passes call it, with its blocks compiled. The GPT itself stays as it is, for sampling and
    evaluation, whose shapes are others at each call.

    dynamic: shapes of training passes differ from call to call, too.
    """

    def __init__(self, model: GPT, dynamic: bool):
        # The weights are inputs of its one graph, and so it serves all blocks
        self.model, self.forward = model, torch.compile(Block.forward, dynamic=dynamic)

    def __call__(self, *args, **kwargs) -> Tensor:
        return self.model(*args, **kwargs, run=self.run)

    def run(self, block: Block, *args) -> Tensor:
        """The block with its compiled forward. FSDP2's hooks around it (sharding.py) do not compile."""
        # Without it, with --shard, dynamo takes head_dim and the like as inputs of the graph, not as constants. Set at
        # every call, for it holds for the calling thread: on a GPU backward has a thread of its own, in which
        # --recompute block calls this
        torch._dynamo.config.skip_fsdp_guards = False
        block.forward = functools.partial(self.forward, block)
        try:
            return block(*args)
        finally:
            del block.forward

    def __getattr__(self, name: str):  # head, config and all else
        return getattr(self.model, name)


def forward_flops(c: GPTConfig, keys: float) -> float:
    """FLOPs of one token's forward pass that attends to `keys` keys: 2·M + 4·L·C·keys.

    M are the parameters that multiply a token: blocks and head, without the embedding table and the gains. A causal
    sequence of T tokens has (T + 1) / 2 keys a token on average. Backward costs twice as much again.
    """
    kv_width = c.n_kv_heads * c.head_dim
    block = 2 * c.d_model * c.d_model + 2 * c.d_model * kv_width + 3 * c.d_model * c.d_ff  # q, o; k, v; gate, up, down
    multiplying = c.n_layers * block + c.vocab_size * c.d_model  # M
    return 2.0 * multiplying + 4.0 * c.n_layers * c.d_model * keys


def train_flops(c: GPTConfig, seq_len: int) -> float:
    """FLOPs per token of forward and backward over causal sequences of `seq_len`: 6·M and attention."""
    return 3 * forward_flops(c, (seq_len + 1) / 2)


def answers_flops(c: GPTConfig, lengths: list[tuple[int, list[int]]]) -> float:
    """FLOPs of the forward passes over prompts, each once, and over the answers to them: what it costs to sample them.

    lengths: (tokens of a prompt, tokens of each of its answers). Answers to one prompt count as if equally long. The
    head at a prompt's tokens and an answer's last token, which nothing follows, count too: 2 to 6% too many at micro.
    """
    flops = 0.0
    for prompt, answers in lengths:
        mean = sum(answers) / len(answers)
        of_answers = len(answers) * (mean * forward_flops(c, prompt + (mean + 1) / 2))
        flops += prompt * forward_flops(c, (prompt + 1) / 2) + of_answers
    return flops
