"""Flags: each acts or is refused, in every spelling, through torchrun, beside a preset, on a resume."""

import contextlib
import dataclasses
import gzip
import hashlib
import io
import json
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from torch.distributed.run import get_args_parser

import average
import cli
import eval
import pretrain
import rl
import runtime
import sft
from conftest import tiny_gpt
from model import GPT

STAGES = {"pretrain": pretrain, "sft": sft, "rl": rl, "average": average, "eval": eval}


def flags_of(stage: str) -> list[str]:
    return [field.name for field in dataclasses.fields(STAGES[stage].Config)]


def parse(stage: str, *words: str):
    """The config that the main() of a stage gets of a command line."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [f"{stage}.py", *words])
        cli.cli(lambda config: seen.append(config), STAGES[stage].Config, getattr(STAGES[stage], "PRESETS", None))
    return seen[0]


# ---------------------------------------------------------------------------------------------------------------------
# Spellings, presets, ranges
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", STAGES)
def test_torchrun_passes_every_flag(stage):
    """torchrun's own parser gives every flag of a stage to the stage, in all spellings: none is short for one of its own."""
    for flag in [f"--{name}" for name in flags_of(stage)]:
        for words in ([flag, "1"], [f"{flag}=1"], [flag.replace("_", "-"), "1"]):
            parsed = get_args_parser().parse_args(["--nproc_per_node=2", f"{stage}.py", *words])
            assert (parsed.training_script, parsed.training_script_args) == (f"{stage}.py", words)


@pytest.mark.parametrize("preset", (["--preset", "paper"], ["--preset=paper"]))
@pytest.mark.parametrize("flag", (["--prompts", "7"], ["--prompts=7"]))
def test_flags_beside_a_preset_win_in_every_spelling(preset, flag):
    """The preset sets what was not given; a flag given before or after it stays, even if it is the flag's default."""
    for words in ([*preset, *flag], [*flag, *preset]):
        config = parse("rl", *words)
        assert (config.prompts, config.rollouts, config.minibatch) == (7, 32, 128)
    assert parse("rl", *preset, "--minibatch", "0").minibatch == 0  # the default, given
    assert parse("rl", *preset, "--max-new-tokens=0").max_new_tokens == 0


def test_steps_clear_epochs():
    """--steps beside a preset of epochs makes so many steps; both given are refused."""
    assert parse("rl", "--preset", "paper").epochs == 10
    config = parse("rl", "--preset", "paper", "--steps", "2")
    assert (config.steps, config.epochs) == (2, 0)
    with pytest.raises(SystemExit):
        parse("rl", "--steps", "2", "--epochs", "1")


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_have_ranges(stage, capsys):
    """nan, infinity and what lies outside a flag's range end in one line that names flag, value and range."""
    for field in dataclasses.fields(STAGES[stage].Config):
        kind = type(cli.default_of(field))
        if kind not in (int, float):
            continue
        for value in ("nan", "inf", "1e999", "-2") if kind is float else (str(10**12), "-2"):
            with pytest.raises(SystemExit) as exit_:
                parse(stage, f"--{field.name}={value}")
            error = capsys.readouterr().err.strip()
            assert exit_.value.code == 2 and error.startswith(f"error: --{field.name} ") and " must lie in " in error
            assert "\n" not in error


@pytest.mark.parametrize(
    ("number", "text", "inside"),
    [(0, "(0, 1]", False), (1, "(0, 1]", True), (1, "[0, 1)", False), (0, "0 or [2, 3]", True), (1, "0 or [2, 3]", False),
     (float("nan"), "[0, 1]", False), (float("inf"), "[0, 1e30]", False), (10**400, "[0, 1e30]", False)],
)  # fmt: skip
def test_in_range(number, text, inside):
    assert cli.in_range(number, text) == inside


def test_patterns_are_expanded(tmp_path):
    """A pattern that no shell expanded names its files in order; one that matches nothing is refused."""
    for name in ("step_2.pt", "step_1.pt", "odd[1].pt"):
        (tmp_path / name).touch()
    assert cli.expand("--checkpoint", (f"{tmp_path}/step_*.pt",)) == tuple(f"{tmp_path}/step_{i}.pt" for i in (1, 2))
    assert cli.expand("--checkpoint", (f"{tmp_path}/odd[1].pt",)) == (f"{tmp_path}/odd[1].pt",)  # a file of that name
    with pytest.raises(cli.UserError, match="matches no file"):
        cli.expand("--checkpoint", (f"{tmp_path}/*.none",))


# ---------------------------------------------------------------------------------------------------------------------
# Every flag acts or is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(world, tokenizer, tmp_path_factory) -> Path:
    """A folder with checkpoints of a tiny model (a.pt, b.pt), a second world, and files that flags name."""
    folder = tmp_path_factory.mktemp("flags")
    for seed, name in enumerate(("a", "b")):
        model = tiny_gpt(seed, 0.3, tokenizer.padded_vocab_size, context=112)
        lineage = [{"stage": "pretrain", "step": 1, "args": {"seq_len": 112}}]
        runtime.save_checkpoint(folder / f"{name}.pt", {
            "format": 1, "stage": "pretrain", "config": dataclasses.asdict(model.config), "tokenizer": "world",
            "model": model.state_dict(), "step": 1, "tokens": 100, "flops": 1.0, "lineage": lineage, "args": {}, "metrics": {},
        })  # fmt: skip
    shutil.copytree(world, folder / "data2")
    rows = (world / "questions/train.jsonl").read_text().splitlines()
    (folder / "data2/questions/train.jsonl").write_text("\n".join(rows[40:80]) + "\n")
    (folder / "data2/general/meta.json").unlink()
    (folder / "questions.jsonl").write_text("\n".join(rows[80:100]) + "\n")
    rate = {"set": {"questions": [{"id": json.loads(row)["id"], "n": 4, "c": i % 5} for i, row in enumerate(rows[:12])]}}
    (folder / "rates.json").write_text(json.dumps({"questions": rate}))
    return folder


def outcome(stage: str, flags: dict, out: Path) -> dict:
    """What a user can tell two runs apart by: files and their content, messages, weights, and the work that was done."""
    calls, printed = [], io.StringIO()
    forward, cached = GPT.forward, torch.Tensor.backward
    with pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
        patch.setattr(GPT, "forward", lambda self, *a, **k: calls.append(tuple(a[0].shape)) or forward(self, *a, **k))
        patch.setattr(rl, "reward_of", _reward)
        patch.setattr(runtime, "end_process", lambda: None)
        argv = [f"{stage}.py"]
        for name, value in flags.items():
            if isinstance(value, bool):
                argv += [f"--{name}"] if value else []
            else:
                argv += [f"--{name}", *map(str, value if isinstance(value, tuple) else (value,))]
        patch.setattr(sys, "argv", argv)
        try:
            cli.cli(STAGES[stage].main, STAGES[stage].Config, getattr(STAGES[stage], "PRESETS", None))
        except SystemExit as exit_:
            return {"refused": printed.getvalue().strip().splitlines()[-1], "code": exit_.code}
    del cached
    result = {"calls": calls, "text": re.sub(r"[\d.]+(s|it/s|step/s|row/s|item/s)\b|\d\d:\d\d", "", printed.getvalue())}
    result["text"] = "\n".join(x for x in result["text"].splitlines() if "\r" not in x and "|" not in x).replace(str(out), "OUT")
    for path in sorted(p for p in out.parent.rglob("*") if p.is_file()) if out.parent.exists() else ():
        name = str(path.relative_to(out.parent))
        if path.suffix == ".pt":
            checkpoint = runtime.load_checkpoint(path)
            tensors = {**checkpoint["model"]}
            result[name] = hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors.values())).hexdigest()
        elif path.name == "metrics.jsonl":
            rows = [json.loads(line) for line in path.read_text().splitlines()]
            result[name] = [{k: v for k, v in r.items() if not k.endswith(("_s", "seconds"))} for r in rows]
        elif path.suffix == ".gz":
            result[name] = gzip.decompress(path.read_bytes())
        elif path.suffix == ".json":
            record = json.loads(path.read_text())
            result[name] = {k: v for k, v in record.items() if k not in ("settings", "checkpoint")}
        else:
            result[name] = path.stat().st_size
    return result


def _reward(text: str, *_):
    """Rewards that vary: a tiny model gets no question right."""
    return float(len(text) % 3 == 0), len(text) % 3 == 0
