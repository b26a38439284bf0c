"""Bad input, by the stages' own command lines: one line that names what is wrong, exit code 2, and nothing is written."""

import gzip
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import average
import eval as evaluation
import pretrain
import rl
import runtime
import sft
from cli import UserError, cli, reason
from excursion import __main__ as command

STAGES = {"pretrain": pretrain, "sft": sft, "rl": rl, "average": average, "eval": evaluation, "excursion": command}


@pytest.fixture(scope="module")
def place(base, world, tmp_path_factory) -> Path:
    """A folder of things that are wrong, each in its own way, beside a checkpoint and a data folder that are right."""
    folder = tmp_path_factory.mktemp("bad")
    (folder / "run").mkdir()
    good = base / "last.pt"
    shutil.copy(good, folder / "run/last.pt")
    whole = good.read_bytes()
    (folder / "cut.pt").write_bytes(whole[: len(whole) // 2])
    (folder / "empty.pt").write_bytes(b"")
    (folder / "text.pt").write_text("not a checkpoint\n")
    os.mkfifo(folder / "pipe.pt")
    torch.save({"model": {}}, folder / "other.pt")
    checkpoint = runtime.load_checkpoint(good)
    torch.save(checkpoint | {"tokenizer": "cl50k"}, folder / "unknown_tokenizer.pt")
    torch.save(checkpoint | {"model": dict(list(checkpoint["model"].items())[:-1])}, folder / "lacks_a_weight.pt")
    larger = checkpoint["config"] | {"d_ff": checkpoint["config"]["d_ff"] + 16}
    torch.save(checkpoint | {"config": larger}, folder / "other_shape.pt")
    torch.save(checkpoint | {"config": checkpoint["config"] | {"context": 128}}, folder / "other_context.pt")

    for name in ("gpt2", "uint32", "cut_shard", "no_questions"):
        shutil.copytree(world, folder / name)
    for meta in (folder / "gpt2").glob("*/meta.json"):
        content = json.loads(meta.read_text())
        content = {k: v for k, v in content.items() if "digest" not in k}
        meta.write_text(json.dumps(content | {"tokenizer": "gpt2", "vocab_size": 50257}))
    shard = "math/val_00000.npy"  # what every stage reads
    np.save(folder / "uint32" / shard, np.load(world / shard).astype(np.uint32))
    (folder / "cut_shard" / shard).write_bytes((world / shard).read_bytes()[:5000])
    shutil.rmtree(folder / "no_questions/questions")
    (folder / "nothing").mkdir()
    (folder / "no_rows.jsonl").write_text("")
    nothing = {"n": 4, "strict": {"pass@1": {}}, "questions": []}
    (folder / "no_question.json").write_text(json.dumps({"questions": {"set": nothing}}))
    (folder / "bad_rows.jsonl").write_text('{"prompt": 1}\nnot json\n')
    (folder / "unsolved.jsonl").write_text('{"question": "How many?", "answer": "2"}\n')
    (folder / "long.jsonl").write_text(json.dumps({"question": "How " * 400, "answer": "2", "solutions": ["2 " * 400]}))
    gzip.open(folder / "cut.jsonl.gz", "wt").write('{"question": "How many?", "answer": "2"}\n' * 2000)
    (folder / "cut.jsonl.gz").write_bytes((folder / "cut.jsonl.gz").read_bytes()[:-20])
    return folder


# Stage, its flags (beside those of FLAGS), and what the line must say. {P} is the folder of wrong things, {W} the
# world, {G} a good checkpoint.
FLAGS = {
    "pretrain": "--scale smoke --data {W} --steps 2 --batch 2 --seq_len 64",
    "sft": "--init {G} --data {W} --limit 8 --steps 1 --rows 2",
    "rl": "--init {G} --data {W} --limit 8 --steps 1 --prompts 2 --rollouts 2 --max_new_tokens 4",
    "average": "--init {G} --data {W} --limit 8 --steps 1 --prompts 2 --rollouts 2 --max_new_tokens 4 --rows 2",
    "eval": "--checkpoint {G} --data {W} --limit 2 --samples 2 --k 1 --max_new_tokens 4",
    "excursion": "",
}
ALONE = {"--mode soup": "--init {G}", "--ask": "--checkpoint {G}"}  # instead, beside these
POST = ("sft", "rl", "average")
CASES = [
    # checkpoints
    *[(s, "--init {P}/none.pt", "no such checkpoint") for s in POST],
    ("sft", "--init {P}/pipe.pt", "no such checkpoint"),
    *[(s, "--init {P}/cut.pt", "truncated") for s in POST],
    ("sft", "--init {P}/empty.pt", "truncated"),
    ("sft", "--init {P}/text.pt", "truncated or not a checkpoint"),
    ("sft", "--init {P}/other.pt", "not a checkpoint of this project"),
    ("sft", "--init {P}", "is a folder"),
    ("sft", "--init {P}/unknown_tokenizer.pt", "unknown tokenizer"),
    ("rl", "--init {P}/lacks_a_weight.pt", "do not fit"),
    ("rl", "--init {P}/other_shape.pt", "do not fit"),
    *[("eval", f"--checkpoint {{P}}/{name}.pt", "") for name in ("none", "cut", "empty", "text", "other")],
    ("eval", "--checkpoint {P}/unknown_tokenizer.pt", "unknown tokenizer"),
    # data
    *[(s, "--data {P}/none", "none") for s in ("sft", "rl", "pretrain", "eval")],
    *[(s, "--data {P}/nothing", "nothing") for s in ("sft", "rl", "pretrain", "eval")],
    *[(s, "--data {P}/gpt2", "tokenized with 'gpt2'") for s in (*POST, "eval")],
    *[(s, "--data {P}/uint32", "holds uint32") for s in ("sft", "rl", "pretrain", "eval")],
    *[(s, "--data {P}/cut_shard", "not a whole .npy") for s in ("sft", "rl", "pretrain", "eval")],
    *[(s, "--data {P}/no_questions", "'train'") for s in POST],
    *[(s, "--questions none", "'none'") for s in ("sft", "rl", "eval")],
    *[(s, "--questions {P}/no_rows.jsonl", "no_rows: holds no usable") for s in ("sft", "rl", "eval")],
    *[(s, "--questions {P}/bad_rows.jsonl", "bad_rows: holds no usable") for s in ("sft", "rl", "eval")],
    *[(s, "--questions {P}/cut.jsonl.gz", "cut.jsonl.gz") for s in ("sft", "rl", "eval")],
    ("sft", "--questions {P}/unsolved.jsonl", "no row to train on"),
    ("average", "--questions {P}/unsolved.jsonl", "no row to train on"),
    ("sft", "--questions {P}/long.jsonl", "too long"),
    ("rl", "--questions {P}/long.jsonl", "no question fits"),
    ("eval", "--questions {P}/long.jsonl", "no question fits"),
    *[(s, "--eval_questions missing", "'missing'") for s in POST],
    *[(s, "--eval_tasks missing", "--tasks missing") for s in POST],
    ("eval", "--tasks missing", "--tasks missing"),
    ("pretrain", "--mix math=1,nothing=1", "'nothing'"),
    ("pretrain", "--mix math", "mix"),
    ("pretrain", "--mix math=-1", "positive"),
    # flags that make no sense, alone or together
    *[(s, "--out {P}/run", "holds checkpoints of a run") for s in (*POST, "pretrain")],
    *[(s, "--out {P}/text.pt", "is a file") for s in (*POST, "pretrain")],
    *[(s, "--resume", "does not exist") for s in (*POST, "pretrain")],
    *[(s, "--resume --out {P}/run", "of stage pretrain") for s in POST],
    ("pretrain", "--resume --out {P}/run --seed 5", "another --"),
    *[(s, "--device cuda", "sees no CUDA") for s in (*POST, "pretrain", "eval") if not torch.cuda.is_available()],
    *[(s, "--init=", "name the checkpoint") for s in POST],
    *[(s, "--steps 0", "--steps 0: must lie in [1, ") for s in POST],
    *[(s, "--steps 0e", "--steps") for s in POST],
    *[(s, "--steps ten", "--steps ten: a number of steps") for s in POST],
    *[(s, f"--schedule {x}", f"--schedule {x}") for s in (*POST, "pretrain") for x in ("x", "linear:", "cosine:4²")],
    *[(s, "--lr -1", "--lr -1.0: must lie in [0, ") for s in POST],
    *[(s, "--save_at soon", "--save_at") for s in POST],
    ("sft", "--save_at 4²", "--save_at"),
    *[("pretrain", f"--save_at {at}", "not a count") for at in ("soon", "log:2²")],
    ("pretrain", "--tokens 1M", "pass one of them"),
    *[(s, f"--save_every {every}", "--save_every") for s in (*POST, "pretrain") for every in ("often", "-1", "4²")],
    *[("sft", f"--logger {log}", "--logger") for log in ("wandb", "wandb:", "tensorboard:x", "mlflow")],
    ("pretrain", "--steps 0 --tokens many", "--tokens 'many' is not a count"),
    ("pretrain", "--save_at 0.5", "--save_at 0.5: a whole number of steps, or tokens such as 0.5M"),
    ("pretrain", "--seq_len 512", "exceeds the context"),
    ("pretrain", "--batch -1", "--batch -1: must lie in [1, "),
    ("pretrain", "--lr -1", "--lr -1.0: must lie in [0, "),
    *[(s, "--rows 0", "--rows 0") for s in ("sft", "average")],
    *[(s, "--rollouts 1", "must lie in [2, ") for s in ("rl", "average")],
    *[(s, "--prompts 0", "--prompts 0") for s in ("rl", "average")],
    *[(s, "--temperature 0", "above 0") for s in ("rl", "average")],
    ("rl", "--clip_low -1", "must lie in [0, "),
    ("rl", "--prompts 4 --minibatch 8 --clip_low 0.1", "--clip_low has no effect where a step makes one update"),
    *[(s, "--max_new_tokens 256", "no question fits") for s in ("rl", "average")],
    ("eval", "--kv_gib -1", "--kv_gib"),
    *[(s, "--difficulty {P}/none.json:hard", "no evaluation record") for s in ("rl", "average")],
    ("rl", "--difficulty {P}/text.pt:hard", "no evaluation record"),
    ("rl", "--difficulty hard", "name a file and a band"),
    ("average", "--weight 2", "must lie in [0, 1]"),
    ("average", "--mode parallel --turns 1:1", "--turns has no effect with --mode parallel"),
    ("average", "--mode combined --sft_lr 0.1", "--sft_lr has no effect"),
    ("average", "--mode combined --weight norm", "--weight norm: a number"),
    *[("average", f"--mode interleaved --turns {turns}", "--turns") for turns in ("0:0", "1", "1:2:3", ":1", "4²:1")],
    ("average", "--mode curriculum", "its first RL step comes after the 1 steps"),
    ("average", "--mode interleaved --limit 8 --steps 3 --turns 3:1", "its first RL step comes after the 3 steps"),
    ("average", "--mode soup", "--other"),
    ("average", "--mode soup --other {P}/none.pt", "no such checkpoint"),
    ("average", "--mode soup --other {P}/other_context.pt", "differ in config"),
    ("average", "--mode soup --other {P}/unknown_tokenizer.pt", "unknown tokenizer"),
    ("eval", "--checkpoint", "--checkpoint"),
    ("eval", "--samples 2 --k 4", "so few samples"),
    *[("eval", f"--shots {shots}", f"--shots {shots}") for shots in ("some", "2²")],
    ("eval", "--shots 2 --examples none", "none"),
    ("eval", "--temperature -1", "--temperature"),
    ("eval", "--top_p 0", "--top_p"),
    ("eval", "--max_new_tokens 256", "context"),
    ("excursion", "compare {P}/text.pt", "two or more"),
    ("excursion", "compare {P}/text.pt {P}/none.json", "text.pt: not a whole JSON file"),
    ("excursion", "compare {W}/math/meta.json {W}/math/meta.json", "not evaluation records"),
    ("excursion", "compare {P}/no_question.json {P}/no_question.json", "no question to take a mean over"),
    ("excursion", "report {P}/text.pt", "takes no files"),
    ("eval", "--checkpoint {G} {P}/run/last.pt --out {OUT}", "same record"),
    ("eval", "--ask " + "How" * 300, "longest question"),
]


def test_an_error_is_one_line():
    """Also where a flag, a file's name or a library's text has a line end in it."""
    assert reason(UserError("--data two\nlines: no such folder")) == "--data two lines: no such folder"
    assert reason(OSError(28, "No space\nleft", "a\nb")) == "a b: No space left"
    assert reason(OSError("thrift\nbroken\n")) == "thrift broken" and reason(EOFError()) == "EOFError"


def test_the_table_covers_every_stage():
    assert {stage for stage, _, _ in CASES} == set(STAGES)


@pytest.mark.parametrize(("stage", "flags", "says"), CASES, ids=[f"{s} {f}" for s, f, _ in CASES])
def test_one_line_and_exit_code_2(stage, flags, says, base, world, place, tmp_path, monkeypatch, capsys):
    """Every stage, by its command line: `error: ...` in one line at the end of stderr, exit code 2, no new file."""
    names = {"P": place, "W": world, "G": base / "last.pt", "OUT": tmp_path / "new"}
    beside = next((ALONE[start] for start in ALONE if flags.startswith(start)), FLAGS[stage])
    given = [] if flags in ("--checkpoint",) else beside.format(**names).split()
    flags = [] if flags == "--checkpoint" else flags.format(**names).split()
    out = [] if {"--out", "--ask", "compare"} & set(flags) else ["--out", str(tmp_path / "new")]
    before = sorted(place.rglob("*"))
    monkeypatch.setattr(sys, "argv", [f"{stage}.py", *given, *out, *flags])
    with pytest.raises(SystemExit) as exit_:
        cli(STAGES[stage].main, STAGES[stage].Config, getattr(STAGES[stage], "PRESETS", None))
    err = capsys.readouterr().err.strip().splitlines()
    assert exit_.value.code == 2, err
    assert err[-1].startswith("error: ") and says in err[-1]
    assert all("left out" in line or "skipped" in line or ".jsonl" in line for line in err[:-1]), err
    assert not (tmp_path / "new").exists() and sorted(place.rglob("*")) == before
