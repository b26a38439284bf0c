"""Hugging Face's Olmo2 weights ↔ ours: the same tensors, other names."""

import re

from torch import Tensor

from data.errors import UserError

# ours → theirs; in a block behind "blocks.N." and "model.layers.N."
TOP = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
BLOCK = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm",
    "k_norm": "self_attn.k_norm",
    "attention_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj",
    "up": "mlp.up_proj",
    "down": "mlp.down_proj",
    "mlp_norm": "post_feedforward_layernorm",
}


def to_olmo2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Our state dict under the names of transformers' Olmo2ForCausalLM (no tensor is copied)."""
    return _renamed(state, r"(?:(blocks)\.(\d+)\.)?(\w+)\.weight", "model.layers", TOP, BLOCK)


def from_olmo2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The inverse of to_olmo2. UserError names a tensor that an Olmo2ForCausalLM does not have."""
    top, block = ({theirs: ours for ours, theirs in names.items()} for names in (TOP, BLOCK))
    return _renamed(state, r"(?:(model\.layers)\.(\d+)\.)?([\w.]+)\.weight", "blocks", top, block)


def _renamed(state: dict[str, Tensor], pattern: str, prefix: str, top: dict[str, str], block: dict[str, str]) -> dict:
    renamed = {}
    for name, value in state.items():
        match = re.fullmatch(pattern, name)
        in_block, layer, part = match.groups() if match else (None, None, None)
        new = (block if in_block else top).get(part)
        if new is None:
            raise UserError(f"weights: {name!r} is no tensor of an OLMo2 model; convert only such models")
        renamed[f"{prefix}.{layer}.{new}.weight" if in_block else f"{new}.weight"] = value
    return renamed
