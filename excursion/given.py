"""What a user gives in place of a plan's own: checkpoints to start from (--bases), flags of stages (--stage_flags).

read_bases(("a.pt", "b.pt"))                        [Given(path=a.pt, label="4.00M", tokens=4000000, ...), ...]
parse_stage_flags(("rl --kl 0.01 --lr 1e-5",))      {"rl": {"kl": ["--kl", "0.01"], "lr": ["--lr", "1e-5"]}}
check_commands(cells)                               UserError for a flag that its stage refuses, before hours are spent
"""

import contextlib
import io
import json
import math
import re
import shlex
from dataclasses import dataclass
from functools import lru_cache
from itertools import combinations, pairwise
from pathlib import Path

import tyro

import average
import cli
import eval as evaluation
import pretrain
import rl
import sft
from checkpoint import load_checkpoint, weights_digest
from cli import UserError
from excursion.runner import Cell
from files import read_json, write_text
from model import SCALES, GPTConfig, config_of, forward_flops

# Flag of stages, or of one stage, → the flag of the excursion that sets it; "": the plan itself does; None: nothing does
SET_BY = {
    "init": "--bases", "checkpoint": "", "other": "", "out": "--out", "resume": "", "data": "--data", "seed": "--seeds",
    "scale": "--scale", "tokens": "--tokens", "mix": "--mix", "save_at": "--points", "steps": "--points", "eval_every": "",
    "limit": "--pool or --limit", "prompts": "--prompts", "rollouts": "--rollouts", "rows": "--rows or --average_rows",
    "max_new_tokens": "--max_new_tokens", "eval_limit": "--val_limit", "samples": "--samples",
    "k": "--samples", "shots": "--recipes", "difficulty": "--plan", "mode": "--recipes", "tasks": "", "batch": "", "seq_len": "",
    "pretrain steps": "--tokens", "eval questions": "--questions", "eval val_tokens": "--val_tokens", "eval temperature": "--points_t1",
    "eval seed": None,
}  # fmt: skip
# Flags whose value is another in each cell, and of which a stage takes any value that the plan has
PER_CELL = {
    f"--{name}" for name in "init checkpoint other out seed steps save_at save_every lr sft_lr difficulty".split()
}
STAGES = {"pretrain": pretrain, "sft": sft, "rl": rl, "average": average, "eval": evaluation}


@dataclass(frozen=True)
class Given:
    """A checkpoint of --bases."""

    path: Path
    label: str  # of its folder: 4.00M; its file's name where the tokens are unknown, or two have as many
    tokens: int  # of pretraining; 0: unknown
    scale: str  # the one of SCALES that is nearest in FLOPs: its budget and the estimates of a plan are those of this
    context: int
    seed: int  # of its pretraining run; 0: unknown
    weights: str  # their digest


@lru_cache
def read_bases(paths: tuple[str, ...]) -> list[Given]:
    """The checkpoints, by their pretraining tokens. UserError for a missing or damaged one, for one that is named
    twice, and for models with different tokenizers."""
    found = []
    for path in map(Path, paths):
        checkpoint = load_checkpoint(path)
        lineage = checkpoint["lineage"] or [{}]
        known = (
            lineage[0].get("args", {}).get("seed", 0),
            lineage[-1].get("weights") or weights_digest(checkpoint["model"]),
        )
        found.append(
            (path, int(checkpoint["tokens"]), GPTConfig(**checkpoint["config"]), checkpoint["tokenizer"], known)
        )
    if len({path.resolve() for path, *_ in found}) < len(found):
        raise UserError(f"--bases {' '.join(paths)}: one of them is named twice")
    if len(kinds := sorted({tokenizer for *_, tokenizer, _ in found})) > 1:
        different = f"have different tokenizers ({', '.join(kinds)})"
        raise UserError(f"--bases: {different}: the same data cannot be for all of them")
    names = file_names([path for path, *_ in found])
    labels = [count_name(tokens) if tokens else name for (_, tokens, *_), name in zip(found, names, strict=True)]
    given = [
        Given(path, label if labels.count(label) == 1 else name, tokens, nearest_scale(config), config.context, *known)
        for (path, tokens, config, _, known), label, name in zip(found, labels, names, strict=True)
    ]
    for a, b in combinations(given, 2):
        if a.label == b.label:
            raise UserError(
                f"--bases {a.path} {b.path}: their names differ in signs alone that a folder may not have; rename one"
            )
    return sorted(given, key=lambda g: (g.tokens, g.label))


def refuse_other_weights(bases: list[Given], out: Path, note: bool = True) -> None:
    """UserError if OUT was begun from other weights under the same names: what is there would be taken for what these
    make. OUT/bases.json has the digests; with `note` they are written there."""
    file = out / "bases.json"
    before = read_json(file) if file.exists() else {}
    if not isinstance(before, dict):
        raise UserError(f"{file}: no JSON object; choose another --out")
    for g in bases:
        if before.get(str(g.path), g.weights) != g.weights:
            raise UserError(
                f"--bases {g.path}: is another model than the one that {out} was begun from; choose another --out"
            )
    if note:
        write_text(file, json.dumps(before | {str(g.path): g.weights for g in bases}, indent=1) + "\n")


def count_name(tokens: float) -> str:
    """3999744 → "4.00M", 28672 → "0.029M": steps of the smallest scale differ; two digits behind the point, so that
    nearby checkpoints differ."""
    return f"{tokens / 1e6:.{2 if tokens >= 1e6 else 3}f}M" if tokens < 1e9 else f"{tokens / 1e9:.2f}B"


def file_names(paths: list[Path]) -> list[str]:
    """For each path as much of its end as tells it from the others: a/last.pt, b/last.pt → a_last, b_last. Without what
    would mean something in a path or a makefile."""
    names = []
    for depth in range(1, 1 + max((len(path.resolve().parts) for path in paths), default=0)):
        names = ["_".join(path.resolve().with_suffix("").parts[-depth:]) for path in paths]
        # a dash would look like the next part of a record's name
        names = [re.sub(r"[^\w.]", "_", name) for name in names]
        if len(set(names)) == len(names):
            break
    return names


def nearest_scale(config: GPTConfig) -> str:
    def distance(scale: str) -> float:
        other = config_of(scale, config.vocab_size)
        return abs(math.log(forward_flops(config, 128) / forward_flops(other, 128)))

    return min(SCALES, key=distance)


def parse_stage_flags(values: tuple[str, ...]) -> dict[str, dict[str, list[str]]]:
    """Stage → flag → its words, of values such as "rl --kl 0.01". UserError for a stage or flag that there is not, and
    for what the plan, or another flag of the excursion, sets."""
    flags: dict[str, dict[str, list[str]]] = {}
    for value in values:
        form = "then its flags in quotes: rl '--kl 0.01'"
        try:
            stage, *words = shlex.split(value)
        except ValueError:
            raise UserError(f"--stage_flags {value}: name a stage, {form}") from None
        if stage not in STAGES or not words or not words[0].startswith("--"):
            raise UserError(f"--stage_flags {value}: one of {', '.join(STAGES)}, {form}")
        own = flags.setdefault(stage, {})
        for word in words:
            if word.startswith("--"):
                name = word[2:].split("=")[0].replace("-", "_")
                name = name if name in fields_of(stage) else name.removeprefix("no_")
                if name not in fields_of(stage):
                    raise UserError(f"--stage_flags {stage} {word}: {stage}.py has no such flag")
                setter = SET_BY.get(f"{stage} {name}", SET_BY.get(name))
                if setter is not None:
                    instead = f"pass {setter} instead" if setter else "leave it out"
                    raise UserError(f"--stage_flags {stage} --{name}: the plan sets it; {instead}")
                if name in own:
                    raise UserError(f"--stage_flags {stage} --{name}: given twice")
                own[name] = []
            own[name].append(word)
        if (asked := own.get("eval_questions")) and asked[-1].split("=")[-1] in ("none", ""):
            raise UserError(
                f"--stage_flags {stage} --eval_questions none: by them the step of each run is chosen that counts"
            )
    return flags


def fields_of(stage: str) -> dict:
    return STAGES[stage].Config.__dataclass_fields__


def kind_of(words: list[str]) -> list[str]:
    """A command without the values that differ from cell to cell (PER_CELL). Of two commands that are equal so, a stage
    refuses both or neither."""
    flags = [i for i, word in enumerate(words) if word.startswith("--")]
    return [word for i, j in pairwise([*flags, len(words)]) for word in words[i : i + 1 if words[i] in PER_CELL else j]]


def check_commands(cells: list[Cell], flags: dict[str, dict[str, list[str]]], launch: str) -> None:
    """UserError unless every stage takes the flags that it is given, and has a cell. A stage's own check does not see
    files, nor of how many processes `launch` starts it."""
    seen = {}  # stage and kind_of its flags → a command: a plan of thousands has a few
    for cell in cells:
        stage, words = Path(cell.command[0]).stem, cell.command[1:]
        if stage in flags and cell.kind != "soup":  # a mean, which flags of a training run do not reach
            seen.setdefault((stage, *kind_of(words)), words)
    for stage in flags.keys() - {stage for stage, *_ in seen}:
        raise UserError(f"--stage_flags {stage}: this plan has no cell of {stage}.py")
    for (stage, *_), words in seen.items():
        given = f"--stage_flags {stage} {' '.join(word for own in flags[stage].values() for word in own)}"
        printed, module = io.StringIO(), STAGES[stage]
        try:
            with contextlib.redirect_stderr(printed), contextlib.redirect_stdout(printed):
                config = tyro.cli(module.Config, args=words, use_underscores=True)
            config.given = cli.given_on(words, config) - ({"shard"} if launch != "python" else set())
            cli.check_ranges(config)
            cli.apply_preset(config, getattr(module, "PRESETS", {}))
            (module.Config.check if hasattr(module.Config, "check") else cli.refuse_idle)(config)
        except SystemExit:
            raise UserError(f"{given}: {stage}.py cannot read it (python {stage}.py --help)") from None
        except UserError as error:
            raise UserError(f"{given}: {error}") from None
