"""OLMo2 weights of Hugging Face's transformers as a checkpoint of this project, for sft.py, rl.py and eval.py.

    hf download allenai/OLMo-2-0425-1B --local-dir olmo2-1b        # by huggingface_hub; nothing is downloaded here
    python -m tools.olmo2 --weights olmo2-1b --out out/olmo2-1b.pt

Only OLMo2's own architecture is taken: config.json must say so. transformers itself is not needed for this.
"""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from checkpoint import DTYPES, FORMAT, check_config, check_weights, save_checkpoint
from cli import UserError, cli
from data.tokenizer import PUBLISHED, load_tokenizer, tokenizer_digest
from files import MALFORMED
from model import GPT, GPTConfig


@dataclass
class Config:
    """Conversion: from which file to which"""

    weights: str = ""  # folder with config.json and *.safetensors, or one .safetensors file beside its config.json
    out: str = ""  # the checkpoint to write, such as out/olmo2-1b.pt
    tokenizer: str = "cl100k"  # the ids that the model was trained on; cl100k is OLMo2's
    tokens: int = 0  # pretraining tokens behind the weights: a label in records and tables


# Our names → transformers'. A block's are blocks.LAYER.OURS.weight and model.layers.LAYER.THEIRS.weight.
BLOCK_NAMES = {
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
OTHER_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}


def name_pairs(n_layers: int) -> list[tuple[str, str]]:
    """(our name, transformers' name) of every tensor of a model."""
    pairs = [(f"{ours}.weight", f"{theirs}.weight") for ours, theirs in OTHER_NAMES.items()]
    for layer in range(n_layers):
        for ours, theirs in BLOCK_NAMES.items():
            pairs.append((f"blocks.{layer}.{ours}.weight", f"model.layers.{layer}.{theirs}.weight"))
    return pairs


def to_olmo2(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The state_dict of a GPT under the names of Olmo2ForCausalLM."""
    return {theirs: state[ours] for ours, theirs in name_pairs(config.n_layers)}


def from_olmo2(state: dict[str, Tensor], config: GPTConfig) -> dict[str, Tensor]:
    """The state_dict of an Olmo2ForCausalLM under the names of GPT. UserError for missing and foreign tensors, and for
    shapes that are not those of `config`."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    pairs = name_pairs(config.n_layers)
    expected = {theirs for _, theirs in pairs}
    for problem, names in (("lack", expected - state.keys()), ("have the unknown", state.keys() - expected)):
        if names:
            more = f" and {len(names) - 1} more" if len(names) > 1 else ""
            raise UserError(f"the weights {problem} {min(names)}{more}: not an OLMo2 model of {config.n_layers} layers")
    for ours, theirs in pairs:
        if state[theirs].shape != shapes[ours]:
            raise UserError(f"{theirs} is {tuple(state[theirs].shape)}, config.json wants {tuple(shapes[ours])}")
        if state[theirs].dtype not in DTYPES:
            raise UserError(
                f"{theirs} is of {state[theirs].dtype}: only {', '.join(map(str, DTYPES))} can be converted"
            )
    return {ours: state[theirs] for ours, theirs in pairs}


def olmo2_config(config: GPTConfig):
    """The transformers.Olmo2Config of a GPTConfig (needs transformers)."""
    from transformers import Olmo2Config

    return Olmo2Config(
        vocab_size=config.vocab_size,
        hidden_size=config.d_model,
        intermediate_size=config.d_ff,
        num_hidden_layers=config.n_layers,
        num_attention_heads=config.n_heads,
        num_key_value_heads=config.n_kv_heads,
        max_position_embeddings=config.context,
        rms_norm_eps=config.norm_eps,
        rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        pad_token_id=None,
        eos_token_id=None,
    )


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a transformers config.json. UserError unless it is an OLMo2 that model.py can be."""
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
        rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta")}  # before version 5 a field of its own
        fixed = {  # (what it says, what model.py does)
            "model_type": (c.get("model_type"), "olmo2"),
            "hidden_act": (c.get("hidden_act", "silu"), "silu"),
            "attention_bias": (c.get("attention_bias", False), False),
            "tie_word_embeddings": (c.get("tie_word_embeddings", False), False),
            "rope_type": (rope.get("rope_type", "default"), "default"),
            "rope_scaling": (c.get("rope_scaling"), None),
        }
        for name, (value, wanted) in fixed.items():
            if value != wanted:
                raise UserError(f"{path}: {name} is {value!r}, only {wanted!r} can be converted")
        values = {
            "vocab_size": c["vocab_size"],
            "d_model": c["hidden_size"],
            "n_layers": c["num_hidden_layers"],
            "n_heads": c["num_attention_heads"],
            "d_ff": c["intermediate_size"],
            "context": c["max_position_embeddings"],
            "n_kv_heads": c.get("num_key_value_heads") or 0,
            "rope_theta": float(rope["rope_theta"]),
            "norm_eps": c["rms_norm_eps"],
        }
        return check_config(values)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; --weights needs the model's config.json") from None
    except MALFORMED as error:
        raise UserError(f"{path}: not a config.json of transformers ({type(error).__name__}: {error})") from None


def read_weights(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and transformers state_dict of a folder, or of one .safetensors file beside its config.json. UserError."""
    if not path.exists():
        raise UserError(f"--weights {path}: no such folder or file (nothing is downloaded)")
    files = sorted(path.glob("*.safetensors")) if path.is_dir() else [path]
    config = read_config((path if path.is_dir() else path.parent) / "config.json")
    if not files:
        raise UserError(f"--weights {path}: there is no .safetensors file in it")
    state = {}
    for file in files:
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read as safetensors ({error})") from None
    return config, state


def main(flags: Config) -> None:
    if not flags.weights or not flags.out:
        raise UserError("--weights and --out: name the model's folder and the checkpoint to write")
    out = Path(flags.out)
    if out.exists():
        raise UserError(f"--out {out} exists: name another file")
    config, theirs = read_weights(Path(flags.weights))
    # a published tokenizer's size is known without its ranks, which may have to be downloaded
    known = PUBLISHED.get(flags.tokenizer)
    vocab_size = known[-1] if known else load_tokenizer(flags.tokenizer).vocab_size
    if vocab_size > config.vocab_size:
        raise UserError(
            f"--tokenizer {flags.tokenizer} has {vocab_size} ids, the model's table {config.vocab_size}: "
            "name the tokenizer that the model was trained with"
        )
    weights = {name: tensor.float() for name, tensor in from_olmo2(theirs, config).items()}
    try:
        check_weights(weights, config)
    except ValueError as error:
        raise UserError(f"--weights {flags.weights}: {error}") from None
    args = asdict(flags)
    save_checkpoint(
        out,
        {
            "format": FORMAT,
            "stage": "pretrain",
            "config": asdict(config),
            "tokenizer": flags.tokenizer,
            "tokenizer_digest": tokenizer_digest(flags.tokenizer),
            "model": weights,
            "step": 0,
            "tokens": flags.tokens,
            "flops": None,  # unknown, and so it stays in all that comes of it
            "lineage": [{"stage": "pretrain", "step": 0, "flops": None, "args": args}],
            "args": args,
            "metrics": {},
        },
    )
    print(f"wrote {out}; next: python eval.py --checkpoint {out}")


if __name__ == "__main__":
    cli(main, Config)
