"""The checkpoint that all stages write and read: one .pt file of torch.save, its digest in the last 16 bytes.

    format                          FORMAT
    stage, step, args, metrics      of the run that made it: its stage, steps done, flags; updates that were not finite
    tokens, flops                   tokens of pretraining; FLOPs of all stages so far (None: unknown)
    lineage                         stage, step, FLOPs, flags, digests of weights and of data of every stage so far, this one last
    config, model                   fields of GPTConfig; state_dict of GPT
    tokenizer, tokenizer_digest     its name; a digest of what its ids mean
    train                           in last.pt alone, for --resume: progress, optimizer states, data cursors

A checkpoint may come from anywhere: it is read without running code, and what is read is checked here, once.
"""

import json
import math
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cli import UserError
from data.tokenizer import check_tokenizer
from files import check_trailer, replacing_with_trailer
from model import GPT, GPTConfig, empty_gpt

FORMAT = 1
MAX_FLAGS = 100_000  # values in the flags of a checkpoint
LARGEST = {  # whole numbers of a configuration, far beyond any model of this code
    "vocab_size": 2**22,
    "d_model": 2**16,
    "n_layers": 2**10,
    "n_heads": 2**12,
    "d_ff": 2**20,
    "context": 2**22,
    "n_kv_heads": 2**12,
}
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)  # of weights; GPT's are fp32
STAGES = ("pretrain", "sft", "rl", "average")


def save_checkpoint(path: Path, checkpoint: dict) -> None:
    """Write `checkpoint`: a kill or a full disk leaves the old file or the new one."""
    with replacing_with_trailer(path) as file:
        torch.save(checkpoint, file)


def load_checkpoint(path: str | Path) -> dict:
    """Read and check a checkpoint of any stage. Its tensors are on the CPU and mapped: they take memory as they are
    used, and give it back when they are dropped. UserError if the file is missing, damaged or no checkpoint."""
    path = Path(path)
    if (path / "config.json").is_file():
        raise UserError(f"{path} is a model of Hugging Face: first python -m tools.olmo2 import {path} {path}.pt")
    if path.is_dir():
        raise UserError(f"{path} is a folder: name a checkpoint in it, such as {path / 'last.pt'}")
    if not path.is_file():  # a pipe would be waited for
        raise UserError(f"{path}: no such checkpoint")
    check_trailer(path)
    try:
        with zipfile.ZipFile(path) as members:  # torch.save compresses nothing; what unpacks to terabytes is not ours
            if any(member.compress_type for member in members.infolist()):
                raise ValueError("compressed")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # torch raises a dozen kinds for a broken file
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]  # an empty file's EOFError says nothing
        raise UserError(f"{path}: truncated or not a checkpoint ({reason}); use another one") from None
    if not isinstance(checkpoint, dict) or checkpoint.get("format") != FORMAT or "model" not in checkpoint:
        raise UserError(f"{path}: not a checkpoint of this project (format {FORMAT}); tools/olmo2.py converts OLMo2's")
    checkpoint.setdefault("flops", None)  # unknown
    for key, (holds, wanted) in KEYS.items():  # at the end of this file
        if key not in checkpoint and key in OPTIONAL:
            continue
        if key not in checkpoint or not holds(checkpoint[key]):
            raise UserError(f"{path}: {key} is missing or not {wanted}; use another checkpoint")
    try:
        check_weights(checkpoint["model"], check_config(checkpoint["config"]), path.stat().st_size)
    except (ValueError, TypeError) as error:  # TypeError: config lacks a field, or has one too many
        raise UserError(
            f"{path}: {str(error).replace('GPTConfig.__init__()', 'config')}; use another checkpoint"
        ) from None
    check_tokenizer(
        str(path), checkpoint["tokenizer"], checkpoint.get("tokenizer_digest"), checkpoint["config"]["vocab_size"]
    )
    return checkpoint


def check_config(values: dict[str, Any]) -> GPTConfig:
    """The configuration that a file names. ValueError for sizes that no model can have or no machine can hold,
    TypeError for a field that is missing or unknown."""
    for name, largest in LARGEST.items():
        value, least = values.get(name, 1), 0 if name == "n_kv_heads" else 1
        if type(value) is not int or not least <= value <= largest:
            raise ValueError(f"{name} is {value!r:.40}: a whole number from 1 to {largest:,} is wanted")
    for name in ("rope_theta", "norm_eps"):
        value = values.get(name, 1)
        if type(value) not in (int, float) or not 0 < value < 1e18:  # a larger int does not fit int64
            raise ValueError(f"{name} is {value!r:.40}: a positive number is wanted")
    c = GPTConfig(**values)
    if c.d_model % c.n_heads or c.n_heads % c.n_kv_heads:
        raise ValueError(f"n_heads {c.n_heads} must divide d_model {c.d_model} and n_kv_heads must divide it")
    if c.head_dim % 2 or c.context * c.head_dim > 2**27:
        raise ValueError(f"a head of {c.head_dim} at {c.context} positions: rotary needs an even size, 2^27 in all")
    return c


def check_weights(weights: dict[str, Tensor], config: GPTConfig, size: float = math.inf) -> None:
    """ValueError unless these are the finite weights of a GPT of this config. Allocates nothing of its size.

    size: bytes of the file, which must hold them all: tensors may share their memory there, but not in a model."""
    with torch.device("meta"):
        shapes = {name: tensor.shape for name, tensor in GPT(config).state_dict().items()}
    if weights.keys() != shapes.keys():
        name = min(weights.keys() ^ shapes.keys(), key=str)
        raise ValueError(
            f"the weights do not fit the config, as model.py has it now: {name} is {'missing' if name in shapes else 'unknown'}"
        )
    for name, shape in shapes.items():
        tensor = weights[name]
        plain = tensor.device.type == "cpu" and not tensor.is_nested and tensor.layout == torch.strided
        if not plain or tensor.dtype not in DTYPES or not tensor.is_contiguous():
            raise ValueError(f"{name} is not a plain tensor of floating-point numbers")
        if tensor.shape != shape:
            raise ValueError(
                f"the weights do not fit the config, as model.py has it now: {name} is {tuple(tensor.shape)} and not {tuple(shape)}"
            )
        if not all(map(math.isfinite, torch.stack(tensor.aminmax()).tolist())):
            raise ValueError(f"{name} holds infinite numbers or NaN")
    if sum(tensor.nbytes for tensor in weights.values()) > size:
        raise ValueError("the weights are larger than the file")


def weights_digest(weights: dict[str, Tensor]) -> str:
    """CRC-32 of all weights of a state_dict, in hexadecimal: two models of one digest are one model."""
    digest = 0
    for tensor in weights.values():
        digest = zlib.crc32(tensor.detach().cpu().contiguous().view(torch.uint8).numpy(), digest)
    return f"{digest:08x}"


def load_model(checkpoint: dict, device: torch.device | str = "cpu") -> GPT:
    """The model of a checkpoint, in fp32 on `device`."""
    model = empty_gpt(GPTConfig(**checkpoint["config"]), device)
    model.load_state_dict(checkpoint["model"])
    return model


# ---------------------------------------------------------------------------------------------------------------------
# What the keys must hold
# ---------------------------------------------------------------------------------------------------------------------


def _count(x: Any) -> bool:
    return type(x) is int and 0 <= x < 2**63


def _flops(x: Any) -> bool:
    return x is None or (type(x) in (int, float) and 0 <= x < math.inf)


def _is_small(x: Any) -> bool:
    """Has it at most MAX_FLAGS values? A list may hold another many times, and that one a third: written out, without end."""
    waiting, seen = [x], 0
    while waiting and seen < MAX_FLAGS:
        thing, seen = waiting.pop(), seen + 1
        if isinstance(thing, dict):
            waiting += [*thing, *thing.values()]
        elif isinstance(thing, list | tuple):
            waiting += thing
    return not waiting


def _flags(x: Any) -> bool:
    if not _is_small(x):
        return False
    try:
        json.dumps(x)  # records hold them
    except (TypeError, ValueError, RecursionError):
        return False
    return isinstance(x, dict) and all(isinstance(key, str) for key in x)


def _lineage(x: Any) -> bool:
    stages = x if isinstance(x, list) else [None]
    return all(
        isinstance(s, dict)
        and s.get("stage") in STAGES
        and _count(s.get("step"))
        and _flops(s.get("flops"))
        and _flags(s.get("args"))
        for s in stages
    )


def _train(x: Any) -> bool:
    progress = x.get("progress") if isinstance(x, dict) else None
    wanted: dict[str, Callable] = {"step": _count, "tokens": _count, "flops": _flops, "skipped": _count}
    return (
        isinstance(progress, dict) and progress.keys() == wanted.keys() and all(wanted[k](progress[k]) for k in wanted)
    )


def _weights(x: Any) -> bool:
    return isinstance(x, dict) and all(isinstance(k, str) and type(v) is Tensor for k, v in x.items())


KEYS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "stage": (lambda x: x in STAGES, f"one of {', '.join(STAGES)}"),
    "step": (_count, "a count"),
    "tokens": (_count, "a count"),
    "flops": (_flops, "a number of at least 0, or None: unknown"),
    "config": (lambda x: isinstance(x, dict), "a dictionary"),
    "tokenizer": (lambda x: isinstance(x, str), "a name"),
    "tokenizer_digest": (lambda x: isinstance(x, str), "a digest"),
    "model": (_weights, "a dictionary of tensors"),
    "args": (_flags, "a dictionary of flags"),
    "lineage": (_lineage, "a list of stages"),
    "metrics": (_flags, "a dictionary"),
    "train": (_train, "what --resume needs"),
}
OPTIONAL = ("tokenizer_digest", "metrics", "train")  # older checkpoints have no digest, kept ones no `train`
