"""Input that nobody should give: flipped bits, malicious files, odd flags. The parts bits, malicious and flags of torture.py."""

import copy
import json
import os
import pickle
import random
import shutil
import sys
import typing
import warnings
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import fields
from pathlib import Path

import torch
from forked import STAGES, Ended, Injury, differences, fork
from forked import copy as copy_tree
from torture_place import EVAL, GRPO, ONE, PRETRAIN, Torture, contents, judge, undisturbed, varied_rewards

# ---------------------------------------------------------------------------------------------------------------------
# bits
# ---------------------------------------------------------------------------------------------------------------------

FLIPS = {  # what: (files, of which one is hit; command), {B} a copy of the base's run, {W} a copy of the world {T}
    "checkpoint": ("B:last.pt", [("sft", f"--init {{B}}/last.pt --data {{W}} --limit 8 --rows 4 {ONE}"),
                                 ("eval", f"--checkpoint {{B}}/last.pt --data {{W}} {EVAL}")]),
    "last.pt to resume": ("B:last.pt", [("pretrain", f"{PRETRAIN} --data {{T}} --out run --resume")]),
    "shards": ("W:*/*.npy", [("pretrain", "--scale smoke --batch 4 --seq_len 64 --steps 4 --val_tokens 500 --data {W} --out new")]),
    "meta.json": ("W:*/meta.json", [("pretrain", "--scale smoke --batch 4 --seq_len 64 --steps 4 --val_tokens 500 --data {W} --out new")]),
    "questions of training": ("W:questions/train.jsonl", [("sft", f"--init {{B}}/last.pt --data {{W}} --rows 4 {ONE}")]),
    "questions of evaluation": ("W:questions/test_*.jsonl", [
        ("eval", f"--checkpoint {{B}}/last.pt --data {{W}} --questions test_easy test_hard {EVAL}"),
    ]),
    "tasks": ("W:tasks/*.jsonl", [("eval", f"--checkpoint {{B}}/last.pt --data {{W}} --questions {EVAL}")]),
}  # fmt: skip


def part_bits(t: Torture) -> None:
    world, run = copy_tree(t.world, t.work / "bits/world"), t.work / "bits/run"
    copy_tree(t.base.parent, run)
    (run / "step_0000008.pt").unlink()
    wholes = {}

    def command(stage: str, flags: str) -> tuple[Ended, Path]:
        folder = t.folder()
        if "--resume" in flags:
            copy_tree(run, folder / "run")
        return fork(stage, flags.format(B=run, W=world, T=t.world).split(), folder), folder

    for what, (pattern, commands) in FLIPS.items():
        row, rng = t.row("bits", what), t.random("bits", what)
        root, pattern = (run if pattern[0] == "B" else world), pattern[2:]
        files = sorted(root.glob(pattern))
        for i in range(1 if t.short else 30):
            file, (stage, flags) = rng.choice(files), rng.choice(commands)
            if (stage, flags) not in wholes:
                ended, folder = command(stage, flags)
                assert ended.code == 0, f"{ended}\n{ended.err}"
                wholes[stage, flags] = copy_tree(folder, t.work / f"bits/whole{len(wholes)}")
            content = bytearray(file.read_bytes())
            place = rng.randrange(len(content)) if i % 2 else rng.randrange(min(len(content), 4000))
            bit = 1 << rng.randrange(8)
            content[place] ^= bit
            file.write_bytes(content)
            ended, folder = command(stage, flags)
            content[place] ^= bit
            file.write_bytes(content)
            row.cases += 1
            row.injected += 1
            name = f"bit {bit} of byte {place} of {file.name}"
            if ended.refused:
                row.refused += 1
                if not any(part in ended.lines[-1] for part in (file.name, file.parent.name, file.stem)):
                    row.fail("other", f"{name}: the line names no file: {ended}")
            elif ended.code:
                row.fail("tracebacks" if ended.traceback else "other", f"{name}: {ended}")
            elif found := differences(wholes[stage, flags], folder):
                row.fail("other", f"{name}: accepted, {'; '.join(found[:3])}: {stage}")
            else:
                row.equal += 1


# ---------------------------------------------------------------------------------------------------------------------
# malicious
# ---------------------------------------------------------------------------------------------------------------------


class Shell:
    """Unpickled, it runs a command."""

    def __init__(self, command: str):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


ODD = [
    None,
    0,
    -1,
    3,
    10**7,
    10**12,
    10**30,
    0.5,
    float("nan"),
    float("inf"),
    "",
    "x",
    "../../etc",
    [],
    {},
    [1],
    {"a": 1},
    True,
    b"\0",
]


def checkpoints(t: Torture, canary: Path) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, write it to a path) of malicious checkpoints."""
    good = torch.load(t.base, weights_only=True)
    model = good["model"]
    first = next(iter(model))
    hit = f"touch {canary}"

    def saved(thing) -> Callable[[Path], None]:
        return lambda path: torch.save(thing, path)

    yield "pickle that runs a command", lambda path: path.write_bytes(pickle.dumps(Shell(hit)))
    yield "zip whose pickle runs a command", saved(Shell(hit))
    for key in good:
        yield f"{key} runs a command", saved(good | {key: Shell(hit)})
    yield "a weight runs a command", saved(good | {"model": model | {first: Shell(hit)}})

    def bomb(path: Path) -> None:
        torch.save(good, path)
        with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as file:
            file.writestr("archive/data/bomb", b"\0" * (64 << 20))

    yield "zip bomb", bomb

    def compressed(path: Path) -> None:
        torch.save(good, path)
        with zipfile.ZipFile(path) as file:
            parts = {name: file.read(name) for name in file.namelist()}
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
            for name, part in parts.items():
                file.writestr(name, part)

    yield "zip, compressed", compressed
    yield "zip of nothing", lambda path: zipfile.ZipFile(path, "w").close()
    yield "a folder's name", lambda path: path.mkdir()
    yield "a pipe", os.mkfifo
    yield "a link to itself", lambda path: path.symlink_to(path)
    yield "random bytes", lambda path: path.write_bytes(random.Random(0).randbytes(5000))
    deep = []
    for _ in range(200):
        deep = [deep]
    yield "nested deep", saved(good | {"metrics": deep})
    for thing in ODD + [torch.ones(2)]:
        yield f"is {str(thing)[:20]!r}", saved(thing)
    for key in good:
        yield f"lacks {key}", saved({k: v for k, v in good.items() if k != key})
        for value in ODD:
            yield f"{key} is {value!r}", saved(good | {key: value})
    config = good["config"]
    for key in config:
        yield f"config lacks {key}", saved(good | {"config": {k: v for k, v in config.items() if k != key}})
        for value in ODD:
            yield f"config's {key} is {value!r}", saved(good | {"config": config | {key: value}})
    yield "config has an unknown key", saved(good | {"config": config | {"x": 1}})
    weight = model[first]
    for name, value in {
        "NaN": weight * float("nan"),
        "infinite": weight * float("inf"),
        "huge": weight * 1e38,
        "complex": weight.to(torch.complex64),
        "half": weight.half(),
        "double": weight.double(),
        "integers": weight.long(),
        "bool": weight.bool(),
        "sparse": weight.to_sparse(),
        "quantized": torch.quantize_per_tensor(weight, 0.1, 0, torch.qint8),
        "meta": weight.to("meta"),
        "of no elements": weight[:0],
        "one value, expanded": torch.zeros(1).expand(weight.shape),
        "one value, expanded to 4 TB": torch.zeros(1).expand(10**6, 10**6),
        "a list": weight.tolist(),
        "a parameter": torch.nn.Parameter(weight),
        "nested": torch.nested.nested_tensor([weight[0], weight[1]]),
    }.items():
        yield f"a weight is {name}", saved(good | {"model": model | {first: value}})
    yield "all weights NaN", saved(good | {"model": {k: v * float("nan") for k, v in model.items()}})
    yield "all weights 0", saved(good | {"model": {k: v * 0 for k, v in model.items()}})
    yield "gains NaN", saved(good | {"model": {k: v * float("nan") if v.dim() == 1 else v for k, v in model.items()}})
    yield (
        "all weights one storage",
        saved(
            good
            | {
                "model": {
                    k: weight.flatten()[: v.numel()].view(v.shape) if v.numel() <= weight.numel() else v
                    for k, v in model.items()
                }
            }
        ),
    )
    yield "an unknown weight", saved(good | {"model": model | {"x": weight}})
    yield "weights under numbers", saved(good | {"model": dict(enumerate(model.values()))})
    for lineage in ([{}], [1], [{"stage": "pretrain"}], [{"stage": "pretrain", "step": 0, "args": {}}] * 1000, [[]]):
        yield f"lineage is {str(lineage)[:30]}", saved(good | {"lineage": lineage})


def states(t: Torture) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """last.pt files whose state of the run is not what was saved."""
    good = torch.load(t.work / "stopped/run/last.pt", weights_only=True)
    for group in ("train", "args"):
        for key in good[group]:
            for value in (None, -1, 10**12, float("nan"), "x", [], {}):
                yield f"{group}'s {key} is {value!r}", good | {group: good[group] | {key: value}}
            yield f"{group} lacks {key}", good | {group: {k: v for k, v in good[group].items() if k != key}}
    for key in good["train"]["progress"]:
        for value in (None, -1, 10**12, float("nan"), "x", []):
            progress = good["train"]["progress"] | {key: value}
            yield f"progress's {key} is {value!r}", good | {"train": good["train"] | {"progress": progress}}
    for value in (None, {}, {0: {}}, {"state": {}, "param_groups": []}):
        yield f"optimizer is {value!r}", good | {"train": good["train"] | {"optimizer": value}}
    optimizer = copy.deepcopy(good["train"]["optimizer"])
    optimizer["state"][0]["exp_avg"] = optimizer["state"][0]["exp_avg"][:1]
    yield "a moment of another shape", good | {"train": good["train"] | {"optimizer": optimizer}}
    optimizer = copy.deepcopy(good["train"]["optimizer"])
    optimizer["state"][0]["exp_avg_sq"] *= float("nan")
    yield "a moment NaN", good | {"train": good["train"] | {"optimizer": optimizer}}


def part_malicious(t: Torture) -> None:
    canary = t.work / "canary"
    _, ended = undisturbed(t, "rl")
    fork("rl", t.flags["rl"][1], t.work / "stopped", Injury("kill", ended.writes * 3 // 4), prepare=varied_rewards)
    stages = {
        "sft": f"--init {{P}} --data {t.world} --limit 8 --rows 2 {ONE}",
        "rl": f"--init {{P}} --data {t.world} {GRPO} {ONE}",
        "eval": f"--checkpoint {{P}} --data {t.world} {EVAL}",
        "average": f"--init {t.base} --other {{P}} --mode soup --out new",
    }
    rows = {stage: t.row("malicious", f"checkpoint, {stage}") for stage in stages}
    rng = t.random("malicious")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of kinds of tensors that are new or old
        malicious = list(checkpoints(t, canary))
    for name, write in t.some(malicious, 6, 1000, "malicious"):
        folder = t.folder()
        folder.mkdir()
        path = folder.parent / "malicious.pt"
        if path.is_dir():
            path.rmdir()
        path.unlink(missing_ok=True)
        write(path)
        for stage in [rng.choice(list(stages))]:
            shutil.rmtree(folder)
            ended = fork(stage, stages[stage].format(P=path).split(), folder)
            judge(
                rows[stage], ended, folder, f"a checkpoint that {name}" if name[:2] == "is" else f"a checkpoint: {name}"
            )
            if canary.exists():
                rows[stage].fail("other", f"{name}: its code ran in {stage}")
                canary.unlink()
    row, stopped = t.row("malicious", "last.pt to resume"), t.work / "stopped/run"
    for name, checkpoint in t.some(list(states(t)), 3, 150, "states"):
        folder = t.folder()
        copy_tree(stopped, folder / "run")
        torch.save(checkpoint, folder / "run/last.pt")
        before = contents(folder)
        ended = fork("rl", [*t.flags["rl"][1], "--resume"], folder, prepare=varied_rewards)
        judge(row, ended, folder, name, before)
    row = t.row("malicious", "Hugging Face folder")
    for name, write in t.some(list(hf_folders(t)), 4, 1000, "hf"):
        place = t.work / "hf"
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir()
        write(place)
        folder = t.folder()
        ended = fork("olmo2", f"--weights {place} --tokenizer world --out new.pt".split(), folder)
        judge(row, ended, folder, f"a Hugging Face folder: {name}")


def hf_folders(t: Torture) -> Iterator[tuple[str, Callable[[Path], None]]]:
    """(name, write it into a folder) of transformers' OLMo2 folders, all of them wrong in some way."""
    from safetensors.torch import save_file

    from model import GPTConfig
    from tools.olmo2 import to_olmo2

    good = torch.load(t.base, weights_only=True)
    c = GPTConfig(**good["config"])
    weights = to_olmo2(good["model"], c)
    config = {
        "model_type": "olmo2", "vocab_size": c.vocab_size, "hidden_size": c.d_model, "num_hidden_layers": c.n_layers,
        "num_attention_heads": c.n_heads, "num_key_value_heads": c.n_kv_heads, "intermediate_size": c.d_ff,
        "max_position_embeddings": c.context, "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps,
    }  # fmt: skip

    def folder(config, tensors=weights) -> Callable[[Path], None]:
        def write(place: Path) -> None:
            (place / "config.json").write_text(config if isinstance(config, str) else json.dumps(config))
            save_file(tensors, place / "model.safetensors")

        return write

    def raw(content: bytes) -> Callable[[Path], None]:
        def write(place: Path) -> None:
            (place / "config.json").write_text(json.dumps(config))
            (place / "model.safetensors").write_bytes(content)

        return write

    for text in ("", "[", "[]", "null", "1", "[" * 100_000, '{"a":' * 100_000, "\0", '"x"', "NaN"):
        yield f"config.json is {text[:20]!r}", folder(text)
    for key in config:
        yield f"config.json lacks {key}", folder({k: v for k, v in config.items() if k != key})
        for value in ODD:
            if not isinstance(value, bytes):
                yield f"config.json's {key} is {value!r}", folder(config | {key: value})
    for value in (1, "x", [], {"rope_type": "yarn"}, {"rope_theta": None}, {"rope_theta": "x"}, {"rope_theta": -1}):
        yield f"rope_parameters is {value}", folder(config | {"rope_parameters": value})
    first = next(iter(weights))
    for dtype in (torch.float16, torch.int64, torch.bool, torch.float8_e4m3fn, torch.complex64):
        yield f"a weight of {dtype}", folder(config, weights | {first: weights[first].to(dtype)})
    yield "a weight NaN", folder(config, weights | {first: weights[first] * float("nan")})
    yield "no tensors", folder(config, {})
    header = json.dumps({first: {"dtype": "F32", "shape": [10**9, 10**9], "data_offsets": [0, 4]}}).encode()
    yield "a tensor of 4 EB", raw(len(header).to_bytes(8, "little") + header + b"\0" * 4)
    yield "a header of 16 EB", raw((2**64 - 1).to_bytes(8, "little") + b"{}")
    yield "an empty file", raw(b"")
    yield "a cut file", raw(b"\x10\0\0")
    yield "a folder named config.json", lambda place: (place / "config.json").mkdir()
    yield "a folder named model.safetensors", lambda place: (
        folder(config)(place), (place / "model.safetensors").unlink(), (place / "model.safetensors").mkdir()
    )  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# flags
# ---------------------------------------------------------------------------------------------------------------------

TINY = "--steps 1 --eval_every 1 --eval_limit 2 --limit 8"
SOME = "--prompts 2 --rollouts 2 --max_new_tokens 4"
COMMANDS = {  # every stage, in each of its modes: flags beside the one that is tried
    "pretrain": "--scale smoke --data {W} --steps 1 --batch 2 --seq_len 32 --val_tokens 100 --compile off --out new",
    "sft": f"--init {{B}} --data {{W}} --rows 2 {TINY} --out new",
    "rl": f"--init {{B}} --data {{W}} {SOME} --kl 0.1 --entropy 0.01 {TINY} --out new",
    "average": f"--init {{B}} --data {{W}} {SOME} --rows 2 {TINY} --out new",
    "average --mode combined": f"--init {{B}} --data {{W}} {SOME} --rows 2 {TINY} --out new",
    "average --mode interleaved": f"--init {{B}} --data {{W}} {SOME} --rows 2 {TINY} --turns 0:1 --out new",
    "average --mode curriculum": f"--init {{B}} --data {{W}} {SOME} --rows 2 {TINY} --turns 0:1 --out new",
    "average --mode soup": "--init {B} --other {O} --out new",
    "eval": "--checkpoint {B} --data {W} --limit 2 --samples 2 --k 1 --max_new_tokens 4 --val_tokens 300 --out new",
    "eval --ask How?": "--checkpoint {B} --max_new_tokens 4",
    "prepare": "--input {T} --tokenizer world --workers 1 --out new",
    "prepare --questions also": "--input {Q} --tokenizer world --validation_questions 10 --workers 1 --out new",
    "prepare --input world": "--max_tokens 10000 --out new",
    "olmo2": "--weights {H} --tokenizer world --out new.pt",
    "excursion plan": "--scale smoke --data {W} --out new",
}
NUMBERS = [
    "0",
    "-1",
    "nan",
    "inf",
    "-inf",
    "1e999",
    "1e-320",
    "2147483648",
    "1000000000000",
    "100000000000000000000",
    "",
]
TEXTS = ["", "nonsense", "../..", "two\nlines", "é", "x" * 300]
REFUSED = ("nan", "inf", "-inf", "1e999")  # of every float


def numeric(kind) -> str:
    """ "int" or "float" of a flag's type, also of a tuple of them or of one that may be None; "" for others."""
    kinds = [kind, *typing.get_args(kind)]
    return "float" if float in kinds else "int" if int in kinds else "str" if str in kinds else ""


def part_flags(t: Torture) -> None:
    hf = t.work / "hf_good"
    hf.mkdir(exist_ok=True)
    next(write for name, write in hf_folders(t) if name == "config.json's rope_theta is 3")(hf)
    config = json.loads((hf / "config.json").read_text())
    (hf / "config.json").write_text(json.dumps(config | {"rope_theta": 500000.0}))
    for command, flags in COMMANDS.items():
        if t.short and "world" in command:
            continue  # --max_tokens 0 is all of the world, ten seconds
        stage, *mode = command.split()
        module = sys.modules[STAGES[stage]]
        kinds = typing.get_type_hints(module.Config)
        flags = flags.format(W=t.world, B=t.base, O=t.other, T=t.text, Q=t.asked, H=hf).split()
        cases = []
        for field in fields(module.Config):
            kind = numeric(kinds[field.name])
            for value in {"": [], "str": TEXTS}.get(kind, NUMBERS):
                cases.append((field.name, kind, value))
        row = t.row("flags", command)
        if not t.short:
            t.made(stage, " ".join([*mode, *flags]), t.folder())  # else all values would be refused for its sake
        many = 100 if stage == "average" and mode else 1000  # most flags do there what they do in parallel
        for name, kind, value in t.some(cases, 2, many, "flags", command):
            several = typing.get_origin(kinds[name]) is tuple
            given = [f"--{name}", value] if several else [f"--{name}={value}"]
            folder = t.folder()
            ended = fork(stage, [*mode, *flags, *given], folder)
            what = f"{command} --{name}={value[:40]!r}"
            bad = kind == "float" and value in REFUSED and ended.code == 0
            if bad:
                row.cases += 1
                row.injected += 1
                row.fail("other", f"{what}: accepted")
            else:
                judge(row, ended, folder, what)
