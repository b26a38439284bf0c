"""The command line: flags from a dataclass, presets, ranges; and what a user sees when their input is wrong.

Bad input ends in one line and exit code 2, not in a traceback.
"""

import dataclasses
import glob
import inspect
import os
import re
import sys
import types
import unicodedata
from collections.abc import Callable
from typing import Annotated, Literal, get_args, get_origin

import tyro
from tqdm import tqdm

# The values that a number flag may have, by its name in whichever program has it; "[" includes the end, "(" does not. A
# flag's default is always allowed ("the scale's own" and the like). Floats that are not here must not be negative,
# integers lie between 0 and 2³¹ - 1. A config class may change entries for itself: RANGES: ClassVar = {...}.
RANGES = {
    "batch": "[1, 1e6]",
    "dual_clip": "0 or (1, 1e6]",
    "entropy": "[-100, 100]",
    "eval_every": "[-1, 2147483647]",
    "format_score": "[-1, 1]",
    "inner_epochs": "[1, 1000]",
    "k": "[1, 65536]",
    "jobs": "[0, 1024]",
    "kv_gib": "[0, 1e6]",
    "lr": "[0, 100]",
    "max_tokens": "[0, 1e18]",
    "prompts": "[1, 1e6]",
    "repeats": "[1, 1000]",
    "resample": "[0, 1000]",
    "rollouts": "[2, 65536]",
    "rows": "[1, 1e6]",
    "samples": "[1, 65536]",
    "seq_len": "[1, 1e7]",
    "sft_lr": "[0, 100]",
    "shard_tokens": "[1, 1e12]",
    "steps": "[1, 1e9]",
    "temperature": "0 or [0.01, 100]",
    "tokens": "[0, 1e18]",
    "top_p": "(0, 1]",
    "val_fraction": "[0, 0.5]",
    "weight": "[0, 1]",
    "weight_decay": "[0, 100]",
    "workers": "[0, 1024]",
}


class UserError(Exception):
    """Bad input: a flag, a file, a checkpoint, a data row. The message says what, where and how to fix it."""


def cli(main: Callable, config_class: type, presets: dict[str, dict] | None = None):
    """Parse flags into `config_class` (tyro) and run `main(config)`; a UserError or OSError exits with 2.

    --preset NAME sets the flags of presets[NAME] that were not given themselves.
    """
    spec = sys.modules["__main__"].__spec__  # of `python -m data.prepare`; None for `python rl.py`
    prog = f"python -m {spec.name.removesuffix('.__main__')}" if spec else None
    arguments = joined(sys.argv[1:], config_class)
    groups = tyro.cli(
        grouped(config_class), args=arguments, prog=prog, description=sys.modules[main.__module__].__doc__, use_underscores=True,
        config=(tyro.conf.OmitArgPrefixes,),
    )  # fmt: skip
    config = config_class(**{name: value for group in vars(groups).values() for name, value in vars(group).items()})
    config.given = given_on(arguments, config)
    start(main, config, presets or {})


def joined(arguments: list[str], config_class: type) -> list[str]:
    """["--sbatch", "--gres=gpu:8"] → ["--sbatch=--gres=gpu:8"], for the flags that config_class.DASHED names: the
    parser would take such a value for a flag. Those of config_class.PAIRED take two words:
    --stage_flags rl "--kl 0.01"."""
    paired = {f"--{name}" for name in getattr(config_class, "PAIRED", ())}
    dashed, words = {f"--{name}" for name in getattr(config_class, "DASHED", ())} | paired, []
    for word in arguments:
        last = words[-1].partition("=") if words else ("", "", "")
        flag = "--" + last[0][2:].replace("-", "_")  # --stage-flags is the same
        if flag in dashed and not last[1]:
            words[-1] += f"={word}"
        elif flag in paired and " " not in last[2]:
            words[-1] += f" {word}"
        else:
            words.append(word)
    return words


def grouped(config_class: type) -> type:
    """A dataclass of dataclasses: the flags of `config_class` in the groups that --help shows.

    A group is a class that config_class is made of, in their order; its docstring is "Title: what it holds". A flag
    stands in the first of them that declares it; config_class itself may change defaults and sentences of its bases'
    flags.
    """
    classes = [c for c in config_class.__mro__ if dataclasses.is_dataclass(c)]

    # Sentence and type of each flag: of the most derived class that has them
    sentences = {}
    for c in reversed(classes):
        sentences |= comments(c)
    hints = {name: hint for c in reversed(classes) for name, hint in vars(c).get("__annotations__", {}).items()}

    # Each flag goes to a group
    groups: dict[type, list] = {c: [] for c in classes}
    for field in dataclasses.fields(config_class):
        declaring = [c for c in classes if field.name in vars(c).get("__annotations__", {})]
        flag = Annotated[hints[field.name], tyro.conf.arg(help=sentences.get(field.name, ""))]
        default = dataclasses.field(default=field.default, default_factory=field.default_factory)
        group = next((c for c in declaring if c is not config_class), config_class)
        groups[group].append((field.name, flag, default))

    # Each group becomes a dataclass, its flags in the order of the source
    parts = []
    for c, flags in groups.items():
        if flags:
            flags.sort(key=lambda flag: list(vars(c)["__annotations__"]).index(flag[0]))
            title, _, text = c.__doc__.partition(": ")
            group = dataclasses.make_dataclass(c.__name__, flags)
            group.__doc__ = text
            titled = Annotated[group, tyro.conf.arg(name=title)]
            parts.append((c.__name__, titled, dataclasses.field(default_factory=group)))
    return dataclasses.make_dataclass(config_class.__name__, parts)


def comments(config_class: type) -> dict[str, str]:
    """Field → the comment beside it, or else above it, in the source of a dataclass."""
    found, above = {}, []
    for line in inspect.getsource(config_class).splitlines():
        name = re.match(r"    (\w+): ", line)
        if line.startswith("    #"):
            above.append(line.partition("# ")[2])
        elif name:
            _, mark, beside = line.partition("  # ")
            if sentence := beside if mark else " ".join(above):
                found[name[1]] = sentence
            above = []
    return found


def start(main: Callable, config, presets: dict[str, dict]) -> None:
    """Run `main` on a config whose flags are known (`config.given`)."""
    try:
        check_ranges(config)
        apply_preset(config, presets)
        return main(config)
    except (UserError, OSError) as error:
        for bar in list(getattr(tqdm, "_instances", ())):
            bar.close()  # so that the error has a line of its own
        print(f"error: {reason(error)}", file=sys.stderr)
        sys.exit(2)


def reason(error: Exception) -> str:
    """One line: of an OSError (a full disk, a folder that may not be written) the file and what the system says."""
    text = str(error) or type(error).__name__
    if isinstance(error, OSError) and error.strerror:
        text = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return " ".join(text.splitlines())  # a library's text, or a flag with a line end in it


def printable(text: str) -> str:
    """A text that others wrote, such as a model, for a terminal: control characters, which it would obey, as \\x1b and
    the like."""
    return "".join(c if c in "\n\t" or unicodedata.category(c) != "Cc" else repr(c)[1:-1] for c in text)


def given_on(arguments: list[str], config) -> frozenset[str]:
    """Names of the flags on a command line, in any spelling: --save_every 5, --save-every=5, --no-resume."""
    words = {a[2:].split("=")[0].replace("-", "_") for a in arguments if a.startswith("--")}
    words |= {word.removeprefix("no_") for word in words}
    return frozenset(f.name for f in dataclasses.fields(config) if f.name in words)


def given(config) -> frozenset[str]:
    """The flags that the user gave: on the command line, or, where Python made the config, those that are not default."""
    if not hasattr(config, "given"):
        fields = dataclasses.fields(config)
        config.given = frozenset(f.name for f in fields if getattr(config, f.name) != default_of(f))
    return config.given


def default_of(field: dataclasses.Field):
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def has_kind_of(field: dataclasses.Field, value) -> bool:
    """Is a value, such as one from a file, of the kind that this flag can have?"""
    if get_origin(field.type) is Literal:
        return value in get_args(field.type)
    kinds = get_args(field.type) if isinstance(field.type, types.UnionType) else (type(default_of(field)),)
    return type(value) in kinds or (float in kinds and type(value) is int)


def apply_preset(config, presets: dict[str, dict]) -> None:
    """Set the flags of --preset that were not given themselves."""
    for name, value in presets.get(getattr(config, "preset", ""), {}).items():
        if name not in given(config):
            setattr(config, name, value)


def check_ranges(config) -> None:
    """UserError for a number that no program can mean (RANGES); nan and infinity are never allowed."""
    ranges = {**RANGES, **getattr(config, "RANGES", {})}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, bool) or not isinstance(number, int | float) or value == default_of(field):
                continue
            text = ranges.get(field.name, "[0, 2147483647]" if isinstance(number, int) else "[0, 1e30]")
            if not in_range(number, text):
                raise UserError(f"--{field.name} {number}: must lie in {text}")


def refuse_idle(config) -> None:
    """UserError for a flag that was given, is not its default, and has no effect beside the others.

    Each class that a config is made of may have a method `idle` that says which: flag → why it has no effect."""
    idle = {}
    for c in reversed(type(config).__mro__):
        idle |= c.idle(config) if "idle" in vars(c) else {}
    defaults = {field.name: default_of(field) for field in dataclasses.fields(config)}
    for name in sorted(given(config) & idle.keys()):
        if getattr(config, name) != defaults[name]:
            raise UserError(f"--{name} has no effect {idle[name]}: leave it out")


def in_range(number: float, text: str) -> bool:
    """in_range(1, "0 or [1, 2)") → True."""
    for part in text.split(" or "):
        interval = re.fullmatch(r"([\[(])(.+), (.+)([\])])", part)
        if interval is None:
            if number == float(part):
                return True
            continue
        opens, low, high, closes = interval.groups()
        above = number >= float(low) if opens == "[" else number > float(low)
        below = number <= float(high) if closes == "]" else number < float(high)
        if above and below:  # nan is in no interval
            return True
    return False


def expand(flag: str, patterns: tuple[str, ...]) -> tuple[str, ...]:
    """Files named or matched: a pattern that no shell has expanded (quoted, or on Windows) is expanded here, sorted. A
    file of that very name is meant itself: run[1].pt."""
    paths = []
    for pattern in patterns:
        named = not glob.has_magic(pattern) or os.path.lexists(pattern)
        matched = [pattern] if named else sorted(glob.glob(pattern))
        if not matched:
            raise UserError(f"{flag} {pattern}: matches no file")
        paths += matched
    return tuple(paths)
