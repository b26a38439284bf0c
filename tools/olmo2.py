"""OLMo2 models of Hugging Face as checkpoints of this project, and checkpoints as folders that transformers, vLLM and
lm-evaluation-harness load.

    python -m tools.olmo2 import allenai/OLMo-2-0425-1B out/m10.pt --revision stage1-step10000-tokens21B    # from the hub
    python -m tools.olmo2 import olmo2-1b out/olmo2-1b.pt         # a folder: hf download allenai/OLMo-2-0425-1B --local-dir olmo2-1b
    python -m tools.olmo2 export out/rl/last.pt out/rl_hf         # config.json, *.safetensors, generation_config.json, the tokenizer

Only OLMo2's own architecture is taken: config.json must say so. transformers itself is not needed for this. Weights
pass through one by one: in memory there is at most one copy of them, in fp32 (of an export, one tensor).
"""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from tyro.conf import Positional

from checkpoint import DTYPES, FORMAT, check_config, check_weights, load_checkpoint, save_checkpoint, weights_digest
from cli import UserError, cli, refuse_idle
from data.tokenizer import PUBLISHED, load_tokenizer, tokenizer_digest
from files import MALFORMED, read_json, replacing, replacing_path, write_text
from model import GPT, GPTConfig
from tools.hf_tokenizer import tokenizer_files, tokenizer_of


@dataclass
class Config:
    """Conversion: from which model to which"""

    # import: theirs → a checkpoint; export: a checkpoint → theirs
    command: Positional[Literal["import", "export"]] = "import"
    # of `import`: a folder with config.json and *.safetensors, one .safetensors file beside its config.json, or a model
    # of the hub, OWNER/NAME; of `export`: a checkpoint
    source: Positional[str] = ""
    target: Positional[str] = ""  # of `import`: the checkpoint to write; of `export`: the folder to make
    revision: str = ""  # of a model of the hub: branch, tag or commit, such as stage1-step10000-tokens21B
    # of `import`: the ids that the model was trained on; empty: what the folder's tokenizer.json is, else cl100k, OLMo2's
    tokenizer: str = ""
    # of `import`: pretraining tokens behind the weights, a label in records and tables; 0: what --revision or the
    # folder's name says (tokens21B), or the config.json that `export` wrote
    tokens: int = 0
    shard_gib: float = 4.0  # of `export`: the largest .safetensors file
    weights: str = ""  # the same as SOURCE of `import`
    out: str = ""  # the same as TARGET of `import`

    def idle(self) -> dict[str, str]:
        """flag → why it has no effect; giving such a flag is an error (cli.refuse_idle)."""
        if self.command == "export":
            return dict.fromkeys(("revision", "tokenizer", "tokens", "weights", "out"), "outside of `import`")
        idle = {"shard_gib": "outside of `export`"}
        if self.source or self.target:
            idle |= dict.fromkeys(("weights", "out"), "beside SOURCE and TARGET")
        return idle


# Our names → transformers'. A block's are blocks.LAYER.OURS.weight and model.layers.LAYER.THEIRS.weight.
BLOCK_NAMES = {
    "q": "self_attn.q_proj", "k": "self_attn.k_proj", "v": "self_attn.v_proj", "o": "self_attn.o_proj",
    "q_norm": "self_attn.q_norm", "k_norm": "self_attn.k_norm", "attention_norm": "post_attention_layernorm",
    "gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj", "mlp_norm": "post_feedforward_layernorm",
}  # fmt: skip
OTHER_NAMES = {"embed": "model.embed_tokens", "norm": "model.norm", "head": "lm_head"}
# Our fields of a config → those of config.json
FIELDS = {
    "vocab_size": "vocab_size", "d_model": "hidden_size", "d_ff": "intermediate_size", "n_layers": "num_hidden_layers",
    "n_heads": "num_attention_heads", "n_kv_heads": "num_key_value_heads", "context": "max_position_embeddings",
    "norm_eps": "rms_norm_eps", "rope_theta": "rope_theta",
}  # fmt: skip
# What model.py does, whatever its config: config.json says it, or nothing
FIXED = {"hidden_act": "silu", "attention_bias": False, "tie_word_embeddings": False, "rope_scaling": None}


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
            known = ", ".join(map(str, DTYPES))
            raise UserError(f"{theirs} is of {state[theirs].dtype}: only {known} can be converted")
    return {ours: state[theirs] for ours, theirs in pairs}


def olmo2_config(config: GPTConfig):
    """The transformers.Olmo2Config of a GPTConfig (needs transformers)."""
    from transformers import Olmo2Config

    return Olmo2Config.from_dict(their_config(config, eos=None, pad=None))


def their_config(config: GPTConfig, eos: int | None, pad: int | None) -> dict:
    """config.json, in the form of AI2's own. transformers 4 and 5, vLLM and read_config read it."""
    return {
        "architectures": ["Olmo2ForCausalLM"], "model_type": "olmo2", "torch_dtype": "float32",
        **{theirs: getattr(config, ours) for ours, theirs in FIELDS.items()}, **FIXED,
        "attention_dropout": 0.0, "use_cache": True, "initializer_range": 0.02,
        "bos_token_id": None, "eos_token_id": eos, "pad_token_id": pad,
    }  # fmt: skip


def read_config(path: Path) -> GPTConfig:
    """The GPTConfig of a transformers config.json. UserError unless it is an OLMo2 that model.py can be."""
    try:
        c = json.loads(path.read_text(encoding="utf-8"))
        rope = c.get("rope_parameters") or {"rope_theta": c.get("rope_theta")}  # before version 5 a field of its own
        said = {"model_type": None, "rope_type": "default", "num_key_value_heads": None, **FIXED, **c, **rope}
        for name, wanted in {"model_type": "olmo2", "rope_type": "default", **FIXED}.items():
            if said[name] != wanted:
                raise UserError(f"{path}: {name} is {said[name]!r}, only {wanted!r} can be converted")
        values = {ours: said[theirs] for ours, theirs in FIELDS.items()}
        values |= {"n_kv_heads": values["n_kv_heads"] or 0, "rope_theta": float(values["rope_theta"])}
        return check_config(values)
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}; config.json must lie beside the weights") from None
    except MALFORMED as error:
        raise UserError(f"{path}: not a config.json of transformers ({type(error).__name__}: {error})") from None


def read_weights(path: Path) -> tuple[GPTConfig, dict[str, Tensor]]:
    """Config and transformers state_dict of a folder, or of one .safetensors file beside its config.json. The tensors
    are mapped: they take memory as they are read. UserError."""
    if not path.exists():
        raise UserError(f"{path}: no such folder or file")
    config = read_config((path if path.is_dir() else path.parent) / "config.json")
    state = {}
    for file in weight_files(path):
        try:
            state |= load_file(file)
        except (SafetensorError, OSError) as error:
            raise UserError(f"{file}: cannot be read as safetensors ({error})") from None
    return config, state


def weight_files(path: Path) -> list[Path]:
    """The .safetensors files of a folder: those that its index names, or all. UserError if there is none, or one is missing."""
    if not path.is_dir():
        return [path]
    files, index = sorted(path.glob("*.safetensors")), path / "model.safetensors.index.json"
    if index.exists():
        try:
            names = sorted(set(read_json(index)["weight_map"].values()))
            if any(Path(name).name != name for name in names):
                raise ValueError("a file of another folder")
        except MALFORMED as error:
            raise UserError(f"{index}: not an index of safetensors ({type(error).__name__}: {error})") from None
        files = [path / name for name in names]
        if missing := [file.name for file in files if not file.exists()]:
            part = f"{len(missing)} of {len(files)} files"
            raise UserError(f"{path}: {missing[0]} is missing: the download is not whole ({part})")
    if not files:
        raise UserError(f"{path}: there is no .safetensors file in it")
    return files


# ---------------------------------------------------------------------------------------------------------------------
# Import
# ---------------------------------------------------------------------------------------------------------------------


def download(name: str, revision: str) -> Path:
    """A model of the hub in the hub's own cache; its folder. UserError with the way without network if it cannot be had."""
    import huggingface_hub

    wanted = ["config.json", "*.safetensors", "model.safetensors.index.json", "tokenizer.json"]
    try:
        # asks once; a download tries for long
        huggingface_hub.HfApi().model_info(name, revision=revision or None, timeout=20)
        return Path(huggingface_hub.snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except Exception as error:  # network, HTTP, a missing or closed model, a wrong name, a full disk: dozens of kinds
        reason = (str(error).splitlines() or [""])[0][:200]
        at = f" --revision {revision}" if revision else ""
        raise UserError(
            f"{name} is no folder here, nor to be had from the hub: {type(error).__name__}: {reason}; where there is network, "
            f"hf download {name}{at} --local-dir DIR, then here import DIR"
        ) from None


def label_of(text: str) -> tuple[int, int]:
    """(step, tokens) that the name of a revision or folder says, as AI2 names them: stage1-step10000-tokens21B; 0: nothing."""
    found = re.search(r"step(\d{1,12})-tokens(\d{1,7})B", text)
    return (int(found[1]), int(found[2]) * 10**9) if found else (0, 0)


def exported_tokens(folder: Path) -> int:
    """The pretraining tokens that `export_model` wrote to config.json, where transformers keeps them; 0: none there."""
    tokens = read_json(folder / "config.json").get("pretraining_tokens")
    return tokens if type(tokens) is int and 0 < tokens < 2**63 else 0


def import_model(flags: Config, source: str, out: Path) -> None:
    if out.exists():
        raise UserError(f"{out} exists: name another file")
    # Where is it?
    path = Path(source)
    if path.exists() and flags.revision:
        raise UserError(f"--revision {flags.revision}: {source} is here, and has one revision; leave --revision out")
    if not path.exists():
        if not re.fullmatch(r"[\w.-]+/[\w.-]+", source) or path.suffix == ".safetensors":
            raise UserError(f"{source}: no such folder or file, nor OWNER/NAME of a model of the hub")
        path = download(source, flags.revision)
    # Read it, and see that it is what it says
    config, theirs = read_weights(path)
    folder = path if path.is_dir() else path.parent
    tokenizer = tokenizer_of(folder, flags.tokenizer)
    # a published tokenizer's size is known without its ranks, which may have to be downloaded
    known = PUBLISHED.get(tokenizer)
    vocab_size = known[-1] if known else load_tokenizer(tokenizer).vocab_size
    if vocab_size > config.vocab_size:
        what = f"--tokenizer {tokenizer} has {vocab_size} ids, the model's table {config.vocab_size}"
        raise UserError(f"{what}: name the tokenizer that the model was trained with")
    renamed = from_olmo2(theirs, config)
    theirs.clear()  # so that each tensor goes when its fp32 one is there
    weights = {name: renamed.pop(name).float() for name in list(renamed)}
    try:
        check_weights(weights, config)
    except ValueError as error:
        raise UserError(f"{source}: {error}") from None
    # Write it
    step, tokens = label_of(flags.revision or Path(source).name)
    tokens = flags.tokens or tokens or exported_tokens(folder)
    args = asdict(flags) | {"tokenizer": tokenizer}
    # FLOPs are unknown, and so they stay in all that comes of it
    save_checkpoint(out, {
        "format": FORMAT, "stage": "pretrain", "config": asdict(config), "tokenizer": tokenizer,
        "tokenizer_digest": tokenizer_digest(tokenizer), "model": weights, "step": step, "tokens": tokens, "flops": None,
        "lineage": [{"stage": "pretrain", "step": step, "flops": None, "args": args, "weights": weights_digest(weights)}], "args": args, "metrics": {},
    })  # fmt: skip
    said = f"{tokens:,} pretraining tokens" if tokens else "pretraining tokens unknown (--tokens)"
    print(f"wrote {out}: {tokenizer}, {said}; next: python eval.py --checkpoint {out}")


# ---------------------------------------------------------------------------------------------------------------------
# Export
# ---------------------------------------------------------------------------------------------------------------------


def shards(sizes: dict[str, int], largest: float) -> Iterator[list[str]]:
    """Names in their order, as many in a shard as fit into `largest` bytes; at least one."""
    shard, filled = [], 0
    for name, size in sizes.items():
        if shard and filled + size > largest:
            yield shard
            shard, filled = [], 0
        shard.append(name)
        filled += size
    yield shard


def write_safetensors(path: Path, tensors: dict[str, Tensor]) -> None:
    """A .safetensors file in fp32, written tensor by tensor: 8 bytes length of the header, the header in JSON, the
    numbers. (safetensors' own save_file copies all of them first.)"""
    header, end = {"__metadata__": {"format": "pt"}}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": list(tensor.shape), "data_offsets": [end, end + 4 * tensor.numel()]}
        end += 4 * tensor.numel()
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the numbers begin at a multiple of 8
    with replacing(path) as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.float().contiguous().view(-1).view(torch.uint8).numpy())


def export_model(flags: Config, source: str, folder: Path) -> None:
    """DIR, whole or not at all. The weights are those of the checkpoint, bit for bit."""
    if folder.exists():
        raise UserError(f"{folder} exists: name another folder")
    checkpoint = load_checkpoint(source)  # mapped
    config, tokenizer = GPTConfig(**checkpoint["config"]), load_tokenizer(checkpoint["tokenizer"])
    theirs = to_olmo2(checkpoint.pop("model"), config)
    about = {"pretraining_tokens": checkpoint["tokens"]}  # transformers keeps what it does not know
    files = {
        "config.json": their_config(config, tokenizer.eos, tokenizer.pad) | about,
        "generation_config.json": {"eos_token_id": tokenizer.eos, "pad_token_id": tokenizer.pad, "do_sample": False},
        **tokenizer_files(tokenizer, config.context),
    }
    split = list(shards({name: 4 * tensor.numel() for name, tensor in theirs.items()}, flags.shard_gib * 2**30))
    with replacing_path(folder) as part:
        part.mkdir()
        place = {}  # name → its file
        for i, names in enumerate(split):
            file = f"model-{i + 1:05d}-of-{len(split):05d}.safetensors" if len(split) > 1 else "model.safetensors"
            place |= dict.fromkeys(names, file)
            write_safetensors(part / file, {name: theirs[name] for name in names})
        if len(split) > 1:
            total = sum(4 * tensor.numel() for tensor in theirs.values())
            files["model.safetensors.index.json"] = {"metadata": {"total_size": total}, "weight_map": place}
        for name, content in files.items():
            write_text(part / name, json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    said = f"{len(split)} .safetensors, tokenizer {tokenizer.name}"
    print(f"wrote {folder}: {said}; next: lm_eval --model hf --model_args pretrained={folder}")


def main(flags: Config) -> None:
    refuse_idle(flags)
    source, target = flags.source or flags.weights, flags.target or flags.out
    if not source or not target:
        raise UserError(f"{flags.command} SOURCE TARGET: name the model to read and what to write")
    if flags.command == "export":
        export_model(flags, source, Path(target))
    else:
        import_model(flags, source, Path(target))


if __name__ == "__main__":
    cli(main, Config)
