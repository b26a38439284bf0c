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
import zlib
from pathlib import Path

import pytest
import torch
from conftest import tiny_gpt
from torch.distributed.run import get_args_parser

import average
import cli
import config
import eval
import logs
import pretrain
import rl
import runtime
import sft
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


def test_presets():
    """--steps beside a preset of passes over the data makes so many steps. eval.py has its presets too."""
    config = parse("eval", "--preset", "paper", "--samples", "4")
    assert (config.samples, config.max_new_tokens, config.grader) == (4, 1024, "gsm8k")
    assert parse("rl", "--preset", "paper").steps == "10e"
    assert parse("rl", "--preset", "paper", "--steps", "2").steps == 2
    config = parse("eval", "--preset", "difficulty", "--limit", "4")
    assert (config.questions, config.samples, config.tasks, config.limit) == (("train",), 64, ("none",), 4)


@pytest.mark.parametrize(("steps", "total"), [(5, 5), ("1e", 4), ("2e", 7), ("0.5e", 2), ("10e", 34)])
def test_steps_or_passes(steps, total):
    """--steps 5 are steps; 2e are as many as two passes over 10 questions take at 3 a step, rounded up."""
    assert rl.Config(steps=steps).total_steps(10, 3) == total


@pytest.mark.parametrize("steps", ["e", "0e", "-1e", "1e9e", "infe", "nane", "ten", "2 e 3"])
def test_passes_that_make_no_sense(steps):
    with pytest.raises(cli.UserError, match="^[^\n]*--steps"):
        rl.Config(steps=steps).total_steps(10, 3)


@pytest.mark.parametrize("stage", STAGES)
def test_help(stage, capsys, monkeypatch):
    """--help shows each flag once, with a sentence, in groups: the stage's own first. Where a run starts from a
    checkpoint, --init, --out and --resume are among the first five."""
    monkeypatch.setenv("COLUMNS", "100")  # a wide terminal gets two columns
    with pytest.raises(SystemExit):
        parse(stage, "--help")
    _, *parts = re.split(r"^. --(?=\w)", capsys.readouterr().out, flags=re.M)
    shown = [re.match(r"\w+", part)[0] for part in parts]
    assert sorted(shown) == sorted(flags_of(stage))
    for name, part in zip(shown, parts, strict=True):
        words = re.sub(r"\(default:.*", "", part, flags=re.S).split("}")[-1].split()
        assert len(words) > 4, f"--{name} has no sentence: {part}"
    first = shown[:5]
    if stage in ("sft", "rl", "average"):
        assert {"init", "out", "resume"} <= set(first)
    else:
        assert first[0] == {"pretrain": "scale", "eval": "checkpoint"}[stage]
    budget = {"pretrain": 30, "sft": 32, "rl": 45, "average": 52, "eval": 24}[stage]
    assert len(shown) <= budget, "a new flag: can another one go?"


@pytest.mark.parametrize("stage", STAGES)
def test_numbers_have_ranges(stage):
    """nan, infinity and what lies outside a flag's range are refused in one line that names flag, value and range."""
    for field in dataclasses.fields(STAGES[stage].Config):
        kind = type(cli.default_of(field))
        if kind not in (int, float):
            continue
        for value in (float("nan"), float("inf"), 1e300, -200.0) if kind is float else (10**12, 10**400, -2):
            with pytest.raises(cli.UserError, match=f"^--{field.name} [^\n]* must lie in [^\n]*$"):
                cli.check_ranges(STAGES[stage].Config(**{field.name: value}))


@pytest.mark.parametrize(
    ("number", "text", "inside"),
    [(0, "(0, 1]", False), (1, "(0, 1]", True), (1, "[0, 1)", False), (0, "0 or [2, 3]", True), (1, "0 or [2, 3]", False),
     (float("nan"), "[0, 1]", False), (float("inf"), "[0, 1e30]", False), (10**400, "[0, 1e30]", False)],
)  # fmt: skip
def test_in_range(number, text, inside):
    assert cli.in_range(number, text) == inside


@pytest.mark.parametrize("stage", STAGES)
def test_dtype_is_one_of_the_known(stage, capsys):
    """A number format by another name is refused: it would be taken for fp32."""
    with pytest.raises(SystemExit):
        parse(stage, "--dtype", "bfloat16")
    assert "bf16" in capsys.readouterr().err
    assert parse(stage, "--dtype", "bf16").dtype == "bf16"


def test_patterns_are_expanded(tmp_path):
    """A pattern that no shell expanded names its files in order; one that matches nothing is refused."""
    for name in ("step_2.pt", "step_1.pt", "odd[1].pt", "odd1.pt"):
        (tmp_path / name).touch()
    assert cli.expand("--checkpoint", (f"{tmp_path}/step_*.pt",)) == tuple(f"{tmp_path}/step_{i}.pt" for i in (1, 2))
    assert cli.expand("--checkpoint", (f"{tmp_path}/odd[1].pt",)) == (f"{tmp_path}/odd[1].pt",)  # a file of that name
    with pytest.raises(cli.UserError, match="matches no file"):
        cli.expand("--checkpoint", (f"{tmp_path}/*.none",))


def test_what_models_write_is_text_to_a_terminal():
    """Escape sequences would set its title, clear it, or write to the clipboard."""
    assert cli.printable("\x1b]0;H\x07 2 + 2 = 4\n\té \x9b2J\r") == "\\x1b]0;H\\x07 2 + 2 = 4\n\té \\x9b2J\\r"


def test_numbers_without_end_are_refused():
    """log:3000000000 once made a list of so many steps; a number of 5000 digits cannot be read."""
    for text in ("log:30000000000", f"log:{'1' * 5000}"):
        with pytest.raises(cli.UserError, match="--save_at"):
            config.parse_save_at(text, 100)
    assert config.parse_save_at("log:999999999", 100) == list(range(13, 101))
    with pytest.raises(cli.UserError, match="--schedule"):
        config.parse_schedule(f"cosine:{'1' * 5000}")
    with pytest.raises(cli.UserError, match="--save_every"):
        config.RunConfig(save_every="1" * 5000).saves()


# ---------------------------------------------------------------------------------------------------------------------
# Every flag acts or is refused
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def place(world, tokenizer, tmp_path_factory) -> Path:
    """A folder with checkpoints of a tiny model (a.pt, b.pt), a second world, and files that flags name."""
    folder = tmp_path_factory.mktemp("flags")
    for seed, name in enumerate(("a", "b")):
        model = tiny_gpt(seed, 0.3, tokenizer.padded_vocab_size, context=256)
        model.head.weight.data[tokenizer.eos] *= 3  # so that some answers end
        lineage = [{"stage": "pretrain", "step": 1, "args": {"seq_len": 256}}]
        runtime.save_checkpoint(folder / f"{name}.pt", {
            "format": 1, "stage": "pretrain", "config": dataclasses.asdict(model.config), "tokenizer": "world",
            "model": model.state_dict(), "step": 1, "tokens": 100, "flops": 1.0, "lineage": lineage, "args": {}, "metrics": {},
        })  # fmt: skip
    shutil.copytree(world, folder / "data2")
    rows = (world / "questions/train.jsonl").read_text().splitlines()
    (folder / "data2/questions/train.jsonl").write_text("\n".join(rows[40:80]) + "\n")
    (folder / "data2/general/meta.json").unlink()
    (folder / "questions.jsonl").write_text("\n".join(rows[80:100]) + "\n")
    rate = {
        "set": {"questions": [{"id": json.loads(row)["id"], "n": 4, "c": i % 5} for i, row in enumerate(rows[:12])]}
    }
    (folder / "rates.json").write_text(json.dumps({"questions": rate}))
    return folder


def outcome(stage: str, flags: dict, out: Path) -> dict:
    """What two runs can be told apart by: files and what is in them, messages, and the work that was done."""
    work, printed = [], io.StringIO()
    forward, save, reward_of = GPT.forward, runtime.save_checkpoint, rl.reward_of

    def count(model, tokens, *args, **kwargs):
        work.append(tuple(tokens.shape))
        return forward(model, tokens, *args, **kwargs)

    def reward(text, answer, finished, config):  # a tiny model gets no question right, and writes no box
        box, plain, cut = (zlib.crc32(f"{i} {text}".encode()) % 2 for i in range(3))
        value = answer if box else "0"
        shown = f" #### {value}" if plain else f" \\boxed{{{value}}}"
        return reward_of(text + shown, answer, finished or not cut, config)

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(GPT, "forward", count)
        patch.setattr(runtime, "save_checkpoint", lambda path, *a: work.append(path.name) or save(path, *a))
        patch.setattr(rl, "reward_of", reward)
        patch.setattr(torch, "compile", lambda model, **_: model)
        patch.setattr(logs.importlib.util, "find_spec", lambda name: None)  # as where no logger is installed
        config = STAGES[stage].Config(**flags | {"out": str(out)})
        config.given = frozenset(flags) | {"out"}
        try:
            cli.start(STAGES[stage].main, config, getattr(STAGES[stage], "PRESETS", {}))
        except SystemExit as exit_:
            assert exit_.code == 2, printed.getvalue()
            return {"refused": printed.getvalue().strip().splitlines()[-1]}
    lines = [
        line for line in printed.getvalue().replace("\r", "\n").splitlines() if "%|" not in line and "it/s" not in line
    ]
    result = {"work": work, "text": "\n".join(lines).replace(str(out.parent), "")}
    for path in sorted(p for p in out.parent.rglob("*") if p.is_file()):
        result[str(path.relative_to(out.parent))] = content(path)
    return result


def content(path: Path):
    """What is in a run's file, without paths, flags and seconds."""
    if path.suffix == ".pt":
        tensors = runtime.load_checkpoint(path)["model"].values()
        return hashlib.sha256(b"".join(t.numpy().tobytes() for t in tensors)).hexdigest()
    if path.name == "metrics.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        return [{k: v for k, v in row.items() if not k.endswith(("_s", "seconds"))} for row in rows]
    if path.suffix == ".json":
        return {k: v for k, v in json.loads(path.read_text()).items() if k not in ("settings", "checkpoint", "lineage")}
    return gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()


POST = dict(
    init="{P}/a.pt",
    data="{W}",
    limit=6,
    steps=2,
    eval_every=2,
    eval_limit=2,
)
RL = dict(prompts=2, rollouts=3, max_new_tokens=8)
BASE = {
    "pretrain": dict(scale="smoke", data="{W}", batch=4, seq_len=32, steps=2, val_tokens=300, schedule="cosine", eval_every=2),
    "sft": POST | dict(rows=2),
    "rl": POST | RL,
    "average": POST | RL | dict(rows=2),
    "eval": dict(checkpoint=("{P}/a.pt",), data="{W}", limit=2, samples=2, k=(1,), max_new_tokens=8, shots="0", val_tokens=300,
                 questions=("test_easy",)),
}  # fmt: skip
SHOWN_ELSEWHERE = {
    "recompute": "test_model.py::test_what_is_computed_again_changes_no_bit",
    "overwrite": "test_runs.py::test_evaluation_record",
    "verify": "test_damage.py::test_pretraining_verifies_and_no_verify_does_not",
    ("eval", "grader"): "test_runs.py, test_eval.py::test_a_right_answer_is_one_thing_in_reward_and_evaluation",
    ("eval", "preset"): "test_presets",
    ("eval", "truncated"): "test_eval.py::test_a_right_answer_is_one_thing_in_reward_and_evaluation",
}

FEW = dict(prompts=5, rollouts=2)  # some groups carry no signal
# flag → a value that must make a difference; where it needs others beside it: (value, {others})
CHANGES = dict(
    out="{OUT}/other", resume=True, seed=1, device="cuda", dtype="bf16", shard=True, lr=1e-2, schedule="linear:3",
    weight_decay=0.5, clip=1e-3,
    save_every="1", logger="wandb:x",
    init="{P}/b.pt", data="{P}/data2", questions="{P}/questions.jsonl", limit=3, steps="3e",
    save_at="1",
    eval_every=1, eval_questions="test_easy", eval_limit=1, eval_tasks=("facts",),
    prompts=3, rollouts=4, minibatch=1, inner_epochs=2, clip_low=(0.0, dict(inner_epochs=2, lr=0.1, prompts=3, rollouts=6)),
    clip_high=(0.0, dict(inner_epochs=2, lr=0.1, prompts=3, rollouts=6)), dual_clip=(1.01, dict(inner_epochs=3, lr=0.1, prompts=3, rollouts=6)), advantage="mean",
    aggregation=("sequence", dict(prompts=4, rollouts=4, max_new_tokens=16)), kl=0.1, entropy=0.1, temperature=0.7, max_new_tokens=6, format_score=0.5,
    resample=(1, FEW), truncated="mask", difficulty="{P}/rates.json:0.1:0.9", micro_tokens=16, kv_gib=1e-5,
    solutions="all", rows=3, loss="token_sum", sft_cut=3, grader=("gsm8k", dict(prompts=4, rollouts=4)),
    prompt="question_answer",
    mode="combined", weight="0.5:0.9", sft_lr=1e-2, turns=("1:2", dict(mode="interleaved", steps=3)),
    scale="micro", mix="math=1", tokens=("384", dict(steps=None, tokens="256")), batch=2, seq_len=16, compile="on", z_loss=1.0,
    doc_mask=True, val_tokens=900,
    checkpoint=("{P}/b.pt",), tasks=("facts",),
    samples=3, k=(2,), shots="1", examples=("gsm8k", dict(shots="1")), 
    ask="What?",
)  # fmt: skip
OTHERWISE = {  # where a stage needs another change than the rest
    ("rl", "preset"): ("paper", dict(prompts=2, rollouts=2, minibatch=2, max_new_tokens=8, lr=1e-4)),
    ("sft", "preset"): ("paper", dict(rows=2, lr=1e-4)),
    ("average", "preset"): ("paper", dict(prompts=2, rollouts=2, rows=None, max_new_tokens=8, lr=1e-4, sft_lr=1e-4)),
    ("average", "other"): ("{P}/b.pt", "soup"),
    ("eval", "questions"): ("test_hard",),
    ("eval", "top_p"): 0.5,
    ("pretrain", "schedule"): "constant",
    ("pretrain", "steps"): 3,
}
ONE_BASE: dict = {}  # outcomes of flags that several cases compare with


CASES = [(s, f) for s in STAGES for f in flags_of(s) if not {f, (s, f)} & SHOWN_ELSEWHERE.keys()]


@pytest.mark.parametrize(("stage", "flag"), CASES)
def test_every_flag_acts_or_is_refused(stage, flag, place, world, tmp_path):
    """Another value of a flag changes files, messages or the work that is done, or is refused in one line."""
    change = OTHERWISE.get((stage, flag), CHANGES.get(flag))
    assert change is not None, f"--{flag} of {stage}.py is new: give it a line in CHANGES, with a value that must act"
    value, others = (
        change
        if isinstance(change, tuple) and len(change) == 2 and (isinstance(change[1], dict) or change[1] == "soup")
        else (change, {})
    )

    def filled(flags: dict, out: Path) -> dict:
        def fill(x):
            return x.format(P=place, W=world, OUT=out) if isinstance(x, str) else x

        return {k: tuple(map(fill, v)) if isinstance(v, tuple) else fill(v) for k, v in flags.items() if v is not None}

    start = dict(mode="soup", init="{P}/a.pt", other="{P}/a.pt") if others == "soup" else BASE[stage] | others
    key = json.dumps([stage, start])
    if key not in ONE_BASE:
        ONE_BASE[key] = outcome(stage, filled(start, tmp_path / "one"), tmp_path / "one/run")
        assert "refused" not in ONE_BASE[key], ONE_BASE[key]
    out = tmp_path / ("two/other" if flag == "out" else "two/run")
    changed = outcome(stage, filled(start | ({} if flag == "out" else {flag: value}), tmp_path), out)
    assert changed != ONE_BASE[key], f"--{flag} {value} changes nothing"
