"""Whole runs: kill and resume, two ranks, bad input, evaluation records."""

import dataclasses
import gzip
import json
import os
import time

import numpy as np
import pytest
import torch
from conftest import SMALL, assert_same_run, run, same, start

import average
import eval as evaluation
import pretrain
import rl
import runtime
import sft
from cli import UserError, apply_preset, check_ranges
from config import RunConfig
from data.questions import find_questions
from data.tokenizer import load_tokenizer
from optimizer import make_optimizer, optimizer_step
from process import Process


def test_33_pretraining_resumes_bitwise(base, world, tmp_path):
    """Property 33: killed at a random moment and resumed, the same bits as without. (Other stages: test_resume.py;
    signals that a run obeys: test_ranks.py.)"""
    process = start("pretrain.py", *SMALL, "--data", world, "--out", tmp_path / "run")
    while not (tmp_path / "run/last.pt").exists():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    time.sleep(np.random.default_rng().random() * 0.3)
    process.kill()
    process.communicate()
    assert process.returncode in (-9, 0)  # 0: it had finished
    code, _, err = run("pretrain.py", *SMALL, "--data", world, "--out", tmp_path / "run", "--resume")
    assert code == 0, err
    assert_same_run(base, tmp_path / "run")
    lines = map(json.loads, open(tmp_path / "run/metrics.jsonl"))
    assert [x["step"] for x in lines if "loss" in x] == list(range(1, 13))


POST = dict(prompts=2, rollouts=4, max_new_tokens=8, limit=12, steps=4, save_every="1", eval_every=0)


def test_33_interleaved_steps_resume_bitwise(base, world, tmp_path, monkeypatch):
    """Property 33: a run that stopped after an SFT step goes on with the RL step that is due. (Other modes:
    test_resume.py, test_ranks.py.)"""
    monkeypatch.setattr(rl, "reward_of", lambda text, *_: (float(len(text) % 3), False))
    flags = POST | dict(init=str(base / "last.pt"), data=str(world), rows=4, mode="interleaved")
    average.main(average.Config(out=str(tmp_path / "whole"), **flags | dict(steps=4)))
    average.main(average.Config(out=str(tmp_path / "run"), **flags | dict(steps=3)))
    average.main(average.Config(out=str(tmp_path / "run"), resume=True, steps=4))
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize("kl", [0.0, 0.1])
def test_rl_on_nothing_says_so(base, world, tmp_path, capsys, kl):
    """Rewards that are all 0 are reported, also where another term of the loss makes updates; else no weight is changed."""
    config = rl.Config(out=str(tmp_path / "run"), init=str(base / "last.pt"), data=str(world), **POST, kl=kl)
    rl.main(config)
    assert "no group carries signal" in "".join(capsys.readouterr())
    before, after = (runtime.load_checkpoint(p)["model"] for p in (base / "last.pt", tmp_path / "run/last.pt"))
    assert same(before, after) == (kl == 0)


def test_36_37_sft_rows(world, capsys):
    """Properties 36, 37: no validation question in the Gold set; one stop token, at the end; long rows are reported."""
    tokenizer = load_tokenizer("world")
    questions = find_questions(str(world), "train", "train", 40)
    one = Process(0, 1, torch.device("cpu"), torch.float32)
    rows = sft.SFT(sft.SFTConfig(solutions="all"), questions, tokenizer, one, 0, 256).data
    assert len(rows) > 40 and all(s.count(tokenizer.eos) == 1 and s[-1] == tokenizer.eos for _, s in rows)
    held_out = {q["question"] for q in find_questions(str(world), "validation", "test")}
    assert not held_out & {tokenizer.decode(p).rsplit(" Let's", 1)[0] for p, _ in rows}
    longest = max(len(p) + len(s) for p, s in rows)  # its last token is no input: a context of one less holds it
    for context, wanted in (
        (longest - 1, rows),
        (longest - 2, [row for row in rows if len(row[0]) + len(row[1]) < longest]),
    ):
        fitting = sft.SFT(sft.SFTConfig(solutions="all"), questions, tokenizer, one, 0, context).data
        assert list(fitting) == list(wanted) and len(fitting) > 0
    assert f"left out: {len(rows) - len(fitting)} rows longer" in capsys.readouterr().err


def test_rows_in_little_memory():
    """Rows give back what was put in, row by row in order, whatever ids; a token takes 2 bytes where the vocabulary
    allows it, else 4, and each prompt is held once, however many solutions it has."""
    rng = np.random.default_rng(0)
    for vocab_size, size in ((50257, 2), (2**16, 2), (100278, 4)):
        rows, expected = sft.Rows(vocab_size), []
        for n in (1, 3, 200, 2):
            prompt, *solutions = (rng.integers(0, vocab_size, rng.integers(1, 99)).tolist() for _ in range(n + 1))
            solutions[0][0] = vocab_size - 1
            rows.add(prompt, solutions)
            expected += [(prompt, solution) for solution in solutions]
        assert len(rows) == 206 and [rows[i] for i in range(206)] == expected == list(rows)
        assert all(type(token) is int for token in rows[5][0])
        assert rows.prompts.itemsize == rows.solutions.itemsize == size
        assert len(rows.prompts) == sum(len(expected[i][0]) for i in (0, 1, 4, 204))


def test_choice_of_rows(world):
    """One solution a question drawn by the seed, the first one, or all; in the file's order or each epoch shuffled; cut
    after so many tokens, in which case there is no stop token."""
    tokenizer, one = load_tokenizer("world"), Process(0, 1, torch.device("cpu"), torch.float32)
    words = ["It is", "So it is", "We see that it is", "Clearly it is"]
    questions = [
        {
            "id": str(i),
            "question": f"{i} pears?",
            "answer": f"{i}",
            "solutions": [f"{w} \\boxed{{{i}}}." for w in words],
        }
        for i in range(30)
    ]

    def stage(**flags):
        return sft.SFT(sft.SFTConfig(rows=30, **flags), questions, tokenizer, one, 0, 256)

    def texts(rows):
        return [tokenizer.decode(solution).removesuffix("<|endoftext|>") for _, solution in rows]

    everything = [solution for q in questions for solution in q["solutions"]]
    assert texts(stage(solutions="all").data) == everything
    rng = np.random.default_rng(0)  # the draw that all earlier runs made
    assert texts(stage().data) == [q["solutions"][int(rng.integers(4))] for q in questions]
    first = stage(solutions="first")
    assert texts(first.draw()) == texts(first.draw()) == everything[::4]
    shuffled = stage()
    epochs = [texts(shuffled.draw()) for _ in range(2)]
    assert epochs[0] != epochs[1] and sorted(epochs[0]) == sorted(epochs[1]) == sorted(texts(stage().data))
    for (prompt, cut), (whole_prompt, whole) in zip(stage(sft_cut=5).data, stage().data, strict=True):
        assert prompt == whole_prompt and cut == whole[:5]


def test_combined_weights(base, world, tmp_path, monkeypatch):
    """--mode combined minimises w L_RL + (1 - w) L_SFT: w = 1 has the gradient of rl.py, w = 0 that of sft.py."""
    monkeypatch.setattr(rl, "reward_of", lambda text, *_: (float(len(text) % 3), False))
    common = dict(POST, init=str(base / "last.pt"), data=str(world), rows=4, steps=1, save_every="0")
    norms = {}
    for name, stage, flags in (
        ("half", average, dict(mode="combined")),
        ("one", average, dict(mode="combined", weight=1.0)),
        ("none", average, dict(mode="combined", weight=0.0)),
        ("rl", rl, {}),
        ("sft", sft, {}),
    ):
        known = {f.name for f in dataclasses.fields(stage.Config)}
        flags |= {key: value for key, value in common.items() if key in known}
        stage.main(stage.Config(out=str(tmp_path / name), **flags))
        (line,) = [json.loads(x) for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        norms[name] = line["grad_norm"]
    assert norms["one"] == pytest.approx(norms["rl"], rel=1e-5) and norms["none"] == pytest.approx(
        norms["sft"], rel=1e-5
    )
    assert len({round(norms[name], 4) for name in ("half", "one", "none")}) == 3


@pytest.mark.parametrize("flags", [
    dict(weight="signal", mode="combined"), dict(weight="norm", mode="soup"), dict(weight="0.5:0.1", mode="soup"),
    dict(weight="0.5:2"), dict(weight="half"), dict(weight="0.1:0.2:0.3"), dict(weight="nan:1"), dict(weight=""),
], ids=str)  # fmt: skip
def test_weights_that_make_no_sense(flags, base):
    config = average.Config(init=str(base / "last.pt"), **flags)
    config.other = "x" if config.mode == "soup" else ""
    refused(r"--weight .*: a number from 0 to 1", average.main, config)


def test_evaluation_in_the_authors_form(base, world, tmp_path):
    """--prompt and --grader reach the evaluation: another prompt gives other samples, another judge the same samples
    and its own judgement; the record says which."""
    common = dict(checkpoint=(str(base / "last.pt"),), data=str(world), questions=("test_easy",), tasks=(), samples=2)
    common |= dict(k=(1,), limit=4, max_new_tokens=8, shots="1")
    texts, records = {}, {}
    for name, flags in {"plain": {}, "form": dict(prompt="question_answer"), "graded": dict(grader="lenient")}.items():
        evaluation.main(evaluation.Config(out=str(tmp_path / name), **common, **flags))
        records[name] = json.loads((tmp_path / name / "last.json").read_text())
        assert all(records[name]["settings"][key] == value for key, value in flags.items())
        assert records[name]["questions"]["test_easy"]["shots"] == 1
        with gzip.open(tmp_path / name / "last.jsonl.gz", "rt") as file:
            texts[name] = [[sample["text"] for sample in json.loads(line)["samples"]] for line in file]
    assert texts["plain"] == texts["graded"] != texts["form"]
    assert all(row["c"] == row["c_lenient"] for row in records["graded"]["questions"]["test_easy"]["questions"])


def test_paper_presets():
    """What docs/paper.md says of the presets is what they set."""
    assert {key: rl.PRESETS["paper_after_sft"][key] for key in ("lr", "kl", "minibatch", "max_new_tokens")} == dict(
        lr=4e-5, kl=0.0, minibatch=0, max_new_tokens=512
    )
    assert {key: rl.PRESETS["paper"][key] for key in ("lr", "kl", "minibatch", "max_new_tokens")} == dict(
        lr=1e-6, kl=0.001, minibatch=128, max_new_tokens=2048
    )
    rows = dict(solutions="first", sft_cut=512, loss="token_sum", rows=512)
    for presets in (sft.PRESETS, average.PRESETS):
        assert rows.items() <= presets["paper"].items()
    for presets in (rl.PRESETS, sft.PRESETS, average.PRESETS):
        for preset in presets.values():
            assert preset["weight_decay"] == 0.01
    assert average.PRESETS["paper"]["save_at"] == "1000,1800,2200" and average.PRESETS["paper"]["steps"] == 2200
    assert evaluation.PRESETS["paper"]["max_new_tokens"] == 1024
    for stage in (rl, sft, average, evaluation):
        for name, preset in stage.PRESETS.items():
            config = stage.Config(preset=name)
            apply_preset(config, stage.PRESETS)
            check_ranges(config)
            assert {key: getattr(config, key) for key in preset} == preset


def test_evaluation_record(base, world, tmp_path):
    """A record holds what pass@k can be computed from again; a second evaluation into it is refused."""
    flags = ["--checkpoint", base / "last.pt", "--data", world, "--out", tmp_path, "--samples", "4", "--k", "1", "4"]
    flags += ["--limit", "6", "--max_new_tokens", "8", "--val_tokens", "500"]
    code, out, err = run("eval.py", *flags)
    assert code == 0 and "test_easy: 6 questions x 4" in out, err
    record = json.loads((tmp_path / "last.json").read_text())
    rows = record["questions"]["test_hard"]["questions"]
    assert record["questions"]["test_hard"]["strict"]["pass@1"]["mean"] == np.mean([q["c"] / q["n"] for q in rows])
    assert set(record["text"]) == {"general", "math"} and set(record["tasks"]) == {"facts", "categories", "stories"}
    code, _, err = run("eval.py", *flags)
    assert code == 2 and "--overwrite" in err and len(err.splitlines()) == 1


def refused(match, function, *args, **kwargs):
    with pytest.raises(UserError, match=match) as error:
        function(*args, **kwargs)
    assert "\n" not in str(error.value)


def test_save_at():
    """Kept steps from steps, tokens and log spacing."""
    assert pretrain.parse_save_at("3,5", 10, 100) == [3, 5, 10]
    assert pretrain.parse_save_at("0.2k,1k", 10, 100) == [2, 10]
    assert pretrain.parse_save_at("log:4", 80, 100) == [10, 20, 40, 80]
    assert pretrain.parse_save_at("log:1", 80, 100) == [80]
    due = [s for s in range(11) if pretrain.Config(eval_every=-1).due(s, 10, {3, 5, 10})]
    assert due == [3, 5, 10]  # --eval_every -1: wherever a checkpoint is kept


def test_non_finite_steps_are_counted_and_stop_the_run(tmp_path, base, monkeypatch):
    """A gradient that is not finite changes no weight; after MAX_SKIPPED steps the last good checkpoint is named."""
    model = runtime.load_model(runtime.load_checkpoint(base / "last.pt"))
    one = Process(0, 1, torch.device("cpu"), torch.float32)
    optimizer = make_optimizer(model, 1e-3, 0.1, (0.9, 0.95))
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for p in model.parameters():
        p.grad = torch.full_like(p, float("nan"))
    assert not np.isfinite(optimizer_step(model, optimizer, one, 1e-3, 1.0))
    assert same(before, dict(model.state_dict()))
    monkeypatch.setattr(runtime, "MAX_SKIPPED", 1)
    run_ = runtime.Run(RunConfig(out=str(tmp_path / "r")), "pretrain", one)
    run_.last_good = tmp_path / "good.pt"
    run_.skip("loss")
    refused("good.pt", run_.skip, "loss")
    assert run_.progress.skipped == 2 and os.path.basename(run_.last_good) == "good.pt"
