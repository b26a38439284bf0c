"""Whole runs of the post-training stages: two ranks, streams, the reference, GSM8K's form, difficulty, resampling."""

import gzip
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import two_ranks
from conftest import ROOT, assert_same_run, run, same
from safetensors.torch import save_file
from test_prepare import parquet

import average
import eval as evaluation
import rl
import runtime
import sft
from checkpoint import load_checkpoint
from cli import UserError, apply_preset
from data.questions import (
    GSM8K_AFTER_RL,
    HUB_QUESTIONS,
    file_and_band,
    find_questions,
    in_band,
    load_questions,
    normalise,
    what_to_expect,
)  # fmt: skip
from logs import Log, drop_after
from model import GPTConfig
from optimizer import optimizer_step
from tools import olmo2

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"
TINY = dict(prompts=3, rollouts=4, max_new_tokens=8, limit=12, steps=3, save_every="1", eval_every=0)


def weights(folder: Path, name: str = "last.pt") -> dict:
    return runtime.load_checkpoint(folder / name)["model"]


def metrics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in open(folder / "metrics.jsonl")]


def vary(text, *_):
    """A reward that varies, since a new model gets no question right."""
    return float(len(text) % 3), False


# ---------------------------------------------------------------------------------------------------------------------
# Ranks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("ranks", "few"), [pytest.param(2, (), marks=pytest.mark.slow), (3, ("few",))])
def test_20_34_ranks_are_one_process_in_every_stage(base, world, tmp_path, ranks, few):
    """Properties 20, 34: rl.py, sft.py and average.py on several gloo ranks sample the same rollouts and make the same
    updates as in one process, up to the order of fp32 sums; and pretrain.py and the evaluations, where there are fewer
    rows, questions and items than ranks."""
    args = (base / "last.pt", world)
    code, _, err = run(
        "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={ranks}", ROOT / "tests/two_ranks.py", *args,
        tmp_path / "many", *few,
    )  # fmt: skip
    assert code == 0, err
    two_ranks.main(*map(str, args), str(tmp_path / "one"), *few)
    start = weights(base)
    for stage in ("pretrain", "rl", "sft", "average") if few else ("rl", "sft", "average"):
        one, many = (weights(tmp_path / where / stage) for where in ("one", "many"))
        moved = sum((one[k] - start[k]).square().sum() for k in one).sqrt()
        apart = sum((one[k] - many[k]).square().sum() for k in one).sqrt()
        assert moved > 1e-3 and apart < 1e-4 * moved, stage
        for a, b in zip(*(metrics(tmp_path / where / stage) for where in ("one", "many")), strict=True):
            assert a.keys() == b.keys() - {"idle_s"}  # which several ranks alone have
            compared = {"loss", "sft_loss", "grad_norm", "reward", "length", "kl", "ratio", "flops"}
            for key in a.keys() & compared | {k for k in a if k.startswith(("val_", "task_", "bpb_"))}:
                assert a[key] == pytest.approx(b[key], rel=1e-4, abs=1e-6), (stage, key)
    one, many = (gzip.open(tmp_path / where / "rl/rollouts.jsonl.gz").read() for where in ("one", "many"))
    assert one == many


# ---------------------------------------------------------------------------------------------------------------------
# The reference, the two streams
# ---------------------------------------------------------------------------------------------------------------------


def test_22_the_reference_never_changes(base, world, tmp_path, monkeypatch):
    """Property 22: after three updates the KL reference is still the model at --init, bit for bit and without a
    gradient; the KL is 0 before the first update and positive after it. A resumed run measures against the same."""
    kept = []
    make = rl.make_grpo
    monkeypatch.setattr(rl, "make_grpo", lambda *args: kept.append(make(*args)) or kept[-1])
    monkeypatch.setattr(rl, "reward_of", vary)
    flags = dict(init=str(base / "last.pt"), data=str(world), out=str(tmp_path / "run"), kl=0.1, lr=1e-3)
    rl.main(rl.Config(**TINY, **flags))
    assert not same(weights(base), weights(tmp_path / "run"))
    rl.main(rl.Config(**TINY, **flags, resume=True))
    for grpo in kept:
        assert same(dict(weights(base)), dict(grpo.reference.state_dict()))
        assert all(p.grad is None and not p.requires_grad for p in grpo.reference.parameters())
    kl = [line["kl"] for line in metrics(tmp_path / "run")]
    assert len(kept) == 2 and kl[0] == pytest.approx(0, abs=1e-9) and min(kl[1:]) > 1e-6


def test_29_both_gradients_are_taken_at_the_snapshot(base, world, tmp_path, monkeypatch):
    """Property 29: in average.py's own step, RL's and SFT's backward see the same weights, which the step then
    leaves."""
    seen = []

    def recording(backward):
        def wrapped(self, model, *args, **kwargs):
            seen.append([p.detach().clone() for p in model.parameters()])
            return backward(self, model, *args, **kwargs)

        return wrapped

    monkeypatch.setattr(rl, "reward_of", vary)
    monkeypatch.setattr(rl.GRPO, "backward", recording(rl.GRPO.backward))
    monkeypatch.setattr(sft.SFT, "backward", recording(sft.SFT.backward))
    flags = dict(init=str(base / "last.pt"), data=str(world), out=str(tmp_path / "run"), rows=4, lr=1e-3)
    average.main(average.Config(**TINY, **flags))
    assert len(seen) == 6 and all(same(seen[i], seen[i + 1]) for i in (0, 2, 4))
    assert not same(seen[1], seen[2]) and not same(seen[3], seen[4])


def spiked(base, world, out, monkeypatch, factor: float, **flags) -> tuple[dict, dict]:
    """Two steps of average.py, the SFT loss of the second one times `factor`: the update of that step, and the state of
    the RL optimizer after it. Everything is clipped, so that Adam's own scaling cannot stand in for it."""
    backward, calls = sft.SFT.backward, []

    def scaled(self, model, rows, scale=1.0):
        calls.append(scale)
        return backward(self, model, rows, scale * (factor if len(calls) == 2 else 1.0))

    with monkeypatch.context() as m:
        m.setattr(rl, "reward_of", vary)
        m.setattr(sft.SFT, "backward", scaled)
        flags = {**TINY, "steps": 2, "save_at": "1", "rows": 4, "clip": 0.01, **flags}
        average.main(average.Config(init=str(base / "last.pt"), data=str(world), out=str(out), **flags))
    last = runtime.load_checkpoint(out / "last.pt")
    before = weights(out, "step_0000001.pt")
    return {k: v - before[k] for k, v in last["model"].items()}, last["train"]["optimizer"]


def test_30_each_stream_is_clipped_by_itself(base, world, tmp_path, monkeypatch):
    """Property 30: an SFT loss 1e4 times as large leaves Δ_SFT as it was, and RL's gradient and moments bit for bit; in
    combined mode it drives RL's part out of the update."""

    def change(mode):
        (a, state_a), (b, state_b) = (
            spiked(base, world, tmp_path / f"{mode}{factor:g}", monkeypatch, factor, mode=mode) for factor in (1.0, 1e4)
        )
        size = sum(x.square().sum() for x in a.values()).sqrt()
        return (sum((a[k] - b[k]).square().sum() for k in a).sqrt() / size).item(), same(state_a, state_b)

    apart, untouched = change("parallel")
    assert apart < 1e-4 and untouched
    state = runtime.load_checkpoint(tmp_path / "parallel10000/last.pt")["train"]
    for name in ("optimizer", "sft_optimizer"):  # the first moments after two gradients, each of norm 0.01 at most
        moments = [x["exp_avg"].square().sum() for x in state[name]["state"].values()]
        assert sum(moments).sqrt() <= (0.09 + 0.1) * 0.01 * 1.0001
    assert min(x["grad_norm"] for x in metrics(tmp_path / "parallel10000")) > 0.02
    norms = [metrics(tmp_path / f"parallel{f}")[1]["sft_grad_norm"] for f in ("1", "10000")]
    assert norms[0] > 0.02 and norms[1] == pytest.approx(1e4 * norms[0], rel=1e-3)
    apart, untouched = change("combined")
    assert apart > 0.1 and not untouched


@pytest.mark.parametrize(("mode", "sides"), [("parallel", "RSRS"), ("interleaved", "SR"), ("combined", "RR")])
def test_rates_and_optimizers_of_the_modes(base, world, tmp_path, monkeypatch, mode, sides):
    """RL steps at lr and SFT steps at sft_lr, both along the schedule; each side of parallel has its own optimizer, a
    baseline one."""
    seen = []

    def record(model, optimizer, process, lr, clip):
        seen.append((optimizer, lr))
        return optimizer_step(model, optimizer, process, lr, clip)

    monkeypatch.setattr(rl, "reward_of", vary)
    for stage in (rl, sft, average):
        monkeypatch.setattr(stage, "optimizer_step", record)
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), rows=4, steps=2, mode=mode)
    flags |= dict(weight="signal") if mode == "parallel" else {}
    config = average.Config(out=str(tmp_path / "run"), schedule="linear", **flags)
    average.main(config)
    rates = [{"R": config.lr, "S": config.sft_lr}[side] for side in sides]
    left = [1.0, 0.55]  # of the rate, in the first step and in the second
    assert [lr for _, lr in seen] == pytest.approx([r * left[i * 2 // len(rates)] for i, r in enumerate(rates)])
    assert len({id(optimizer) for optimizer, _ in seen}) == (2 if mode == "parallel" else 1)
    if mode == "parallel":
        assert seen[0][0] is seen[2][0] is not seen[1][0]
        assert all(line["weight"] == line["signal"] > 0 for line in metrics(tmp_path / "run"))


def test_norms_are_weighed_alike_whatever_the_loss_sums(base, world, tmp_path, monkeypatch):
    """--weight norm: with --loss token_sum the SFT gradient is longer by the number of its tokens, and w the same. (It
    once left SFT a weight of 1e-3.)"""
    monkeypatch.setattr(rl, "reward_of", vary)
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), rows=4, steps=1, limit=12, weight="norm")
    for loss in ("token_mean", "token_sum"):
        average.main(average.Config(out=str(tmp_path / loss), loss=loss, **flags))
    mean, total = (metrics(tmp_path / loss)[0] for loss in ("token_mean", "token_sum"))
    assert total["sft_grad_norm"] > 20 * mean["sft_grad_norm"]
    assert total["weight"] == pytest.approx(mean["weight"], rel=1e-4) and 0.01 < mean["weight"] < 0.99


@pytest.mark.parametrize(("mode", "shared"), [("interleaved", False), ("curriculum", False), ("parallel", True)])
def test_turns_have_an_order_of_questions_each(base, world, tmp_path, monkeypatch, mode, shared):
    """RL is not asked what SFT has just been shown; the two sides of one step are of the same questions, as average.py says."""
    seen = {"rl": [], "sft": []}
    draw, sample = sft.SFT.draw, rl.GRPO.sample
    monkeypatch.setattr(rl, "reward_of", vary)
    monkeypatch.setattr(sft.SFT, "draw", lambda self: seen["sft"].append(draw(self)) or seen["sft"][-1])
    monkeypatch.setattr(rl.GRPO, "sample", lambda self, m: seen["rl"].append(sample(self, m)) or seen["rl"][-1])
    turns = {} if mode == "parallel" else {"turns": "1:1"}
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), prompts=4, rows=4, steps=2, mode=mode, limit=12)
    average.main(average.Config(out=str(tmp_path / "run"), **flags, **turns))
    asked = {tuple(group[0].prompt) for group in seen["rl"][0][0]}
    shown = {tuple(prompt) for prompt, _ in seen["sft"][0]}
    assert (asked == shown) == shared and len(asked) == len(shown) == 4


@pytest.mark.parametrize("weight", ["norm", "signal"])
def test_without_signal_the_sft_update_is_applied_whole(base, world, tmp_path, monkeypatch, weight):
    """Steps whose rewards are all equal under --weight norm or signal: w is 0, and the run is that of sft.py on the
    same rows, up to the rounding of θ̄ + Δ. (norm once multiplied the SFT update by 0, while its moments went on.)"""
    monkeypatch.setattr(rl, "reward_of", lambda *_: (0.0, False))
    flags = dict(init=str(base / "last.pt"), data=str(world), rows=4, steps=3, limit=12, eval_every=0)
    both = TINY | flags | dict(weight=weight, sft_lr=1e-3)
    average.main(average.Config(out=str(tmp_path / "both"), **both))
    sft.main(sft.Config(out=str(tmp_path / "sft"), lr=1e-3, **flags))
    assert [line["weight"] for line in metrics(tmp_path / "both")] == [0, 0, 0]
    start, a, b = weights(base), weights(tmp_path / "both"), weights(tmp_path / "sft")
    moved = sum((b[k] - start[k]).square().sum() for k in a).sqrt()
    assert moved > 0.01 and sum((a[k] - b[k]).square().sum() for k in a).sqrt() < 1e-4 * moved


@pytest.mark.parametrize(("side", "weight"), [(sft.SFT, 1), (rl.GRPO, 0)])
def test_a_gradient_that_is_not_finite_leaves_the_other_update_whole(base, world, tmp_path, monkeypatch, side, weight):
    """--weight norm with a gradient of nan on one side: the step is counted as skipped, w is that of the other side
    alone, and the weights stay finite and are moved by it."""
    monkeypatch.setattr(rl, "reward_of", vary)
    backward = side.backward
    monkeypatch.setattr(side, "backward", lambda *args, **more: backward(*args, **more, scale=float("nan")))
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), rows=4, weight="norm")
    average.main(average.Config(out=str(tmp_path / "run"), **flags))
    start, end = weights(base), weights(tmp_path / "run")
    assert [line["weight"] for line in metrics(tmp_path / "run")] == [weight] * 3
    assert all(x.isfinite().all() for x in end.values()) and not same(start, end)
    assert metrics(tmp_path / "run")[-1]["skipped"] == 3


def test_a_loss_that_is_not_finite_leaves_the_other_gradient_where_it_was(base, world, tmp_path, monkeypatch):
    """An RL loss of nan with a finite gradient: the SFT side is that of a step in which RL made no update, bit for bit."""
    backward = rl.GRPO.backward
    monkeypatch.setattr(rl, "reward_of", vary)
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), rows=4)
    for name, lost in (("nan", lambda *args, **more: backward(*args, **more) | {"loss": float("nan")}),
                       ("none", lambda *args, **more: None)):  # fmt: skip
        monkeypatch.setattr(rl.GRPO, "backward", lost)
        average.main(average.Config(out=str(tmp_path / name), **flags))
    assert same(weights(tmp_path / "nan"), weights(tmp_path / "none")) and not same(
        weights(base), weights(tmp_path / "nan")
    )
    assert [metrics(tmp_path / name)[-1]["skipped"] for name in ("nan", "none")] == [3, 0]


# ---------------------------------------------------------------------------------------------------------------------
# GSM8K's form
# ---------------------------------------------------------------------------------------------------------------------

GSM8K = [
    {"question": "Natalia sold 48 clips in April, and half as many in May. How many clips did she sell?",
     "answer": "Natalia sold 48/2 = <<48/2=24>>24 clips in May.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72"},
    {"question": "Weng earns $12 an hour. Yesterday she did 50 minutes. How much did she earn?",
     "answer": "She earns 12/60 = $<<12/60=0.2>>0.2 per minute.\nSo 0.2 x 50 = $<<0.2*50=10>>10.\n#### 10"},
    {"question": "A tank costs $1,200. How much do 2 cost?", "answer": "2 * 1,200 = <<2*1200=2400>>2,400\n#### 2,400"},
]  # fmt: skip


def assert_no_signal(base, out, code, said):
    assert code == 0 and "no group carries signal" in said and "these taught nothing" in said, said
    lines = metrics(out)
    assert [x["updates"] for x in lines] == [0] * len(lines) and all(x["signal"] == 0 for x in lines)
    assert same(weights(base), weights(out))


def test_gsm8k_form_as_rl_data(base, world, tmp_path):
    """Questions in GSM8K's own form, by the command: a new model gets none right, which is said; nothing is updated."""
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    assert [q["answer"] for q in find_questions("", str(file), "train")] == ["72", "10", "2400"]
    out = tmp_path / "run"
    flags = ["--prompts", "2", "--rollouts", "3", "--steps", "3", "--max_new_tokens", "12", "--eval_every", "0"]
    code, said, err = run(
        "rl.py", "--init", base / "last.pt", "--data", world, "--questions", file, "--out", out, *flags
    )
    assert_no_signal(base, out, code, said + err)
    rows = [json.loads(line) for line in gzip.open(out / "rollouts.jsonl.gz")]
    assert {r["answer"] for r in rows} <= {"72", "10", "2400"} and all(len(r["samples"]) == 3 for r in rows)


@pytest.mark.skipif(not REALDATA.exists(), reason="needs ../shared/realdata")
def test_gsm8k_itself_as_rl_and_sft_data(base, world, tmp_path, capsys):
    """The published file: RL says that nothing carries signal; SFT trains on its solutions; what is too long is
    told."""
    file = str(REALDATA / "gsm8k_train.jsonl.gz")
    common = dict(init=str(base / "last.pt"), data=str(world), questions=file, eval_every=0, steps=2, limit=60)
    rl.main(rl.Config(**common, out=str(tmp_path / "rl"), prompts=4, rollouts=3, max_new_tokens=12))
    said = "".join(capsys.readouterr())
    assert_no_signal(base, tmp_path / "rl", 0, said)
    assert "questions leave no room for 12 new tokens" in said
    sft.main(sft.Config(**common, out=str(tmp_path / "sft"), rows=4))
    assert "rows longer than the context" in capsys.readouterr().err
    assert not same(weights(base), weights(tmp_path / "sft"))


def test_what_to_expect_of_gsm8k(base, world, tmp_path, capsys):
    """Runs on GSM8K's questions, or on those made of them, say once where the paper's pass@1 leaves the floor and how
    many tokens are behind the model; later models are told the paper's number at no more tokens than theirs; other runs
    are told nothing."""
    assert what_to_expect([{"source": "world"}], 10) == what_to_expect([], 10) == []
    for source, tokens, said in [
        (
            "gsm8k",
            3_999_999_999,
            "floor between 2 and 4 B pretraining tokens (after RL 3.8%, then 15.6%); here: 4 B tokens",
        ),
        ("augmented_gsm8k", int(4e9), "is 15.6% after RL from 4 B"),
        ("gsm8k_test", int(13.9e9), "is 35.6% after RL from 12 B"),
        ("gsm8k", int(1e12), "is 54.8% after RL from 44 B"),
        ("gsm8k", 0, "then 15.6%); (docs/paper.md)"),
    ]:
        (line,) = what_to_expect([{"source": "world"}, {"source": source}], tokens)
        assert said in line, line
    file = tmp_path / "gsm8k.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in GSM8K))
    common = dict(init=str(base / "last.pt"), data=str(world), questions=str(file), eval_every=0, steps=1)
    answers = dict(prompts=2, rollouts=2, max_new_tokens=4)
    rl.main(rl.Config(**common, **answers, out=str(tmp_path / "rl")))
    sft.main(sft.Config(**common, rows=2, out=str(tmp_path / "sft")))
    average.main(average.Config(**common, **answers, rows=2, out=str(tmp_path / "average")))
    measured = dict(questions=(str(file),), tasks=("none",), samples=2, k=(1,), shots="0", max_new_tokens=4)
    evaluation.main(evaluation.Config(checkpoint=(str(base / "last.pt"),), out=str(tmp_path / "eval"), **measured))
    tokens = load_checkpoint(base / "last.pt")["tokens"]
    said = capsys.readouterr().err
    assert said.count("GSM8K: in the paper") == said.count(f"here: {tokens / 1e9:.3g} B tokens") == 4
    table = re.search(r"^\| B pretraining tokens .*?\n\n", (ROOT / "docs/paper.md").read_text(), re.M | re.S)[0]
    rows = [[cell.strip() for cell in line.split("|")[2:-1]] for line in table.splitlines()]
    assert {int(b): float(p) for b, p in zip(rows[0], rows[2], strict=True)} == GSM8K_AFTER_RL


def must(*command) -> str:
    code, out, err = run(*command)
    assert code == 0, err
    return out + err


MATH_ANSWERS = ["--prompts", "4", "--rollouts", "4", "--max_new_tokens", "24", "--eval_limit", "4"]


def test_math_from_the_hubs_layout_to_a_record(base, tmp_path):
    """MATH by the commands, from a local copy in the hub's layout: prepared, learned from its solutions, RL, evaluated
    on its test set. The answer of every question is a half, so that even this model learns it: rewards and pass@1 rise
    from 0."""
    for subject in HUB_QUESTIONS["math"][1]:
        for split, of_split in ("train", range(8)), ("test", range(8, 12)):
            rows = [
                {"problem": f"Let $x = {i}$. Find $y$ ({subject}).", "level": "Level 5", "type": subject, "solution": "$y = \\boxed{\\frac12}$."}
                for i in of_split
            ]  # fmt: skip
            parquet(tmp_path / "copy" / subject / f"{split}-00000-of-00001.parquet", rows)
    data = tmp_path / "math"
    prepare = ["-m", "data.prepare", "--input", "math", "--local", tmp_path / "copy", "--questions", "only"]
    said = must(*prepare, "--validation_questions", "8", "--out", data)
    assert "28 test, 48 train, 8 validation" in said
    must("sft.py", "--init", base / "last.pt", "--data", data, "--steps", "60", "--rows", "16", "--lr", "2e-3", "--eval_every", "0", "--out", tmp_path / "sft")  # fmt: skip
    must(
        "rl.py",
        "--init",
        tmp_path / "sft/last.pt",
        "--data",
        data,
        *MATH_ANSWERS,
        "--steps",
        "2",
        "--out",
        tmp_path / "rl",
    )
    assert max(line.get("reward", 0) for line in metrics(tmp_path / "rl")) > 0.2
    asked = ["--data", data, "--questions", "test", "--samples", "4", "--k", "1", "4", "--max_new_tokens", "24"]
    for name, place in ("base", base), ("rl", tmp_path / "rl"):
        must("eval.py", "--checkpoint", place / "last.pt", *asked, "--shots", "0", "--out", tmp_path / "eval" / name)
    pass_1 = {
        name: json.loads((tmp_path / "eval" / name / "last.json").read_text())["questions"]["test"]["strict"]["pass@1"]
        for name in ("base", "rl")
    }
    assert pass_1["base"]["mean"] == 0 and pass_1["rl"]["mean"] > 0.5


@pytest.mark.skipif(not REALDATA.exists(), reason="needs ../shared/realdata")
def test_math_itself_from_its_files_to_a_record(base, tmp_path):
    """The published MATH by the commands: its test problems are banned from training (two are in both of its own
    splits), RL samples answers to its problems and judges them against its answers, and its test set is evaluated with
    worked examples."""
    train, test, data = REALDATA / "math_train.jsonl.gz", REALDATA / "math_test.jsonl.gz", tmp_path / "math"
    prepare = ["-m", "data.prepare", "--input", train, "--source", "math", "--questions", "only", "--ban", test]
    said = must(*prepare, "--validation_questions", "500", "--out", data)
    assert "6968 train, 500 validation; 2 removed as banned" in said
    held_out = {normalise(row["question"]) for row in load_questions(test)}
    rows = {name: load_questions(data / f"questions/{name}.jsonl") for name in ("train", "validation")}
    assert not held_out & {normalise(row["question"]) for of_split in rows.values() for row in of_split}
    said = must("rl.py", "--init", base / "last.pt", "--data", data, "--limit", "200", *MATH_ANSWERS, "--steps", "2", "--out", tmp_path / "rl")  # fmt: skip
    assert "questions leave no room" in said
    answers = {row["question"]: row["answer"] for row in rows["train"]}
    with gzip.open(tmp_path / "rl/rollouts.jsonl.gz", "rt") as file:
        written = [json.loads(line) for line in file]
    assert len(written) == 8 and all(answers[row["question"]] == row["answer"] for row in written)
    asked = [
        "--questions",
        test,
        "--examples",
        "math",
        "--shots",
        "2",
        "--prompt",
        "question_answer_boxed",
        "--limit",
        "20",
    ]
    must("eval.py", "--checkpoint", tmp_path / "rl/last.pt", "--data", data, *asked, "--samples", "2", "--k", "1", "--max_new_tokens", "24")  # fmt: skip
    record = json.loads((tmp_path / "rl/eval/last.json").read_text())["questions"]["math_test"]
    assert len(record["questions"]) + len(record["left_out"]) == 20 and record["strict"]["pass@1"]["mean"] == 0


# ---------------------------------------------------------------------------------------------------------------------
# Difficulty and resampling
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def difficulty(base, world, tmp_path_factory) -> Path:
    """A record of `eval.py --preset difficulty` for 8 training questions, in which their pass rates are made to differ."""
    folder = tmp_path_factory.mktemp("difficulty")
    flags = dict(checkpoint=(str(base / "last.pt"),), data=str(world), out=str(folder), limit=8, max_new_tokens=4)
    config = evaluation.Config(preset="difficulty", shots="0", **flags)
    apply_preset(config, evaluation.PRESETS)
    evaluation.main(config)
    path = folder / "last.difficulty.json"
    record = json.loads(path.read_text())
    (rows,) = (part["questions"] for part in record["questions"].values())
    assert list(record["questions"]) == ["train"] and record["tasks"] == record["text"] == {}
    questions = find_questions(str(world), "train", "train", 8)
    assert [(r["id"], r["n"]) for r in rows] == [(q["id"], 64) for q in questions]
    for row, c in zip(rows, (0, 1, 2, 8, 9, 15, 16, 64), strict=True):
        row["c"] = c
    path.write_text(json.dumps(record))
    return path


@pytest.mark.parametrize(
    ("band", "kept"),
    [("easy", [6, 7]), ("hard", [0, 1, 2, 3]), ("hardest", [0, 1]), ("0.1:0.25", [3, 4, 5, 6]), ("0:0", [0])],
)
def test_difficulty_bands(base, world, tmp_path, monkeypatch, difficulty, band, kept):
    """easy is a pass rate of 25% and more, hard 12.5% and less, hardest 3.1% and less, LOW:HIGH inclusive; questions
    that the record does not have are in no band. rl.py trains on those and no other."""
    questions = find_questions(str(world), "train", "train", 12)
    want = [questions[i]["id"] for i in kept]
    assert [q["id"] for q in in_band(questions, str(difficulty), band)] == want
    flags = TINY | dict(difficulty=f"{difficulty}:{band}", prompts=4, steps=2)
    rl.main(rl.Config(init=str(base / "last.pt"), data=str(world), out=str(tmp_path / "run"), **flags))
    rows = [json.loads(line) for line in gzip.open(tmp_path / "run/rollouts.jsonl.gz")]
    assert len(rows) == 8 and {r["id"] for r in rows} == set(want)


def test_damaged_rollouts_do_not_stop_a_resume(tmp_path):
    """What stands before the damage and belongs to steps that are done is kept."""
    path = tmp_path / "rollouts.jsonl.gz"
    lines = b'{"step": 1}\n{"step": 2}\n'
    whole = gzip.compress(lines)
    for content, kept in [(gzip.compress(lines + end), [1]) for end in (b"null\n", b'{"step": "x"}\n', b"\xff\n", b"{}")] + [
        (whole[:20], []), (whole[:12] + b"\xff" + whole[13:], []), (b"no gzip", [])
    ]:  # fmt: skip
        path.write_bytes(content)
        drop_after(path, 1)
        assert [json.loads(line)["step"] for line in gzip.open(path)] == kept


@pytest.mark.parametrize("band", ["medium", "0.5", "0.5:0.1", "-1:1", "0:2", "a:b", "0.1:0.2:0.3", "nan:1", ""])
def test_bands_that_make_no_sense(difficulty, band):
    """One line that says what a band is."""
    with pytest.raises(UserError, match="LOW:HIGH"):
        in_band([{"id": "x"}], str(difficulty), band)


def test_file_and_band():
    """The band is the last word, or the last two if they are numbers; a path may have colons of its own."""
    assert file_and_band("a/b.json:hard") == ("a/b.json", "hard")
    assert file_and_band("C:/b.json:0.1:.5") == ("C:/b.json", "0.1:.5")
    for text in ("a/b.json", "hard", ":hard", "0.1:0.5"):
        with pytest.raises(UserError, match="name a file and a band"):
            file_and_band(text)


def test_difficulty_records_that_do_not_fit(tmp_path, difficulty):
    """A missing file, another kind of file, a band without questions: one line each."""
    with pytest.raises(UserError, match="no evaluation record"):
        in_band([{"id": "x"}], str(tmp_path / "none.json"), "easy")
    for content in ("", "[]", "{}", '{"questions": {"train": {}}}', '{"questions": 1}'):
        (tmp_path / "other.json").write_text(content)
        with pytest.raises(UserError, match="no evaluation record"):
            in_band([{"id": "x"}], str(tmp_path / "other.json"), "easy")
    with pytest.raises(UserError, match="none of 1 questions"):
        in_band([{"id": "x"}], str(difficulty), "easy")


def test_33_resampling_resumes_bitwise(base, world, tmp_path, monkeypatch):
    """Property 33 with --resample: steps draw different numbers of batches, and a killed run goes on with the batch
    that it would have drawn."""
    few = [q["answer"] for q in find_questions(str(world), "train", "train", 12)][::3]
    monkeypatch.setattr(rl, "reward_of", lambda text, answer, *_: (float(len(text) % 3) * (answer in few), False))
    flags = TINY | dict(init=str(base / "last.pt"), data=str(world), resample=3, prompts=2)
    rl.main(rl.Config(out=str(tmp_path / "whole"), **flags))
    log = Log.metrics

    def killed(self, step, **values):
        if step == 2:
            raise KeyboardInterrupt
        log(self, step, **values)

    with monkeypatch.context() as m, pytest.raises(KeyboardInterrupt):
        m.setattr(Log, "metrics", killed)
        rl.main(rl.Config(out=str(tmp_path / "killed"), **flags))
    rl.main(rl.Config(out=str(tmp_path / "killed"), resume=True, **flags))
    assert_same_run(tmp_path / "whole", tmp_path / "killed")
    drawn = [line["groups_sampled"] for line in metrics(tmp_path / "whole")]
    assert max(drawn) > 2 and max(drawn) <= 8 and all(n % 2 == 0 for n in drawn)
    assert runtime.load_checkpoint(tmp_path / "whole/last.pt")["train"]["grpo"] == sum(drawn)
    assert np.isfinite([line["reward"] for line in metrics(tmp_path / "whole")]).all()
    assert not torch.equal(weights(base)["head.weight"], weights(tmp_path / "whole")["head.weight"])


# ---------------------------------------------------------------------------------------------------------------------
# Soup
# ---------------------------------------------------------------------------------------------------------------------


def test_soup_is_the_weighted_mean_and_counts_pretraining_once(base, world, tmp_path):
    flags = dict(init=str(base / "last.pt"), data=str(world), steps=1, limit=12, eval_every=0)
    sft.main(sft.Config(out=str(tmp_path / "one"), rows=2, **flags))
    sft.main(sft.Config(out=str(tmp_path / "two"), rows=4, seed=1, **flags))
    one, two = (str(tmp_path / name / "last.pt") for name in ("one", "two"))
    average.main(average.Config(mode="soup", init=one, other=two, weight=0.25, out=str(tmp_path / "soup")))
    assert (tmp_path / "soup").resolve() not in runtime.Run._locks  # the folder is left, and the other ranks
    a, b, mean = (runtime.load_checkpoint(path) for path in (one, two, tmp_path / "soup" / "last.pt"))
    for key, value in mean["model"].items():
        assert torch.equal(value, 0.25 * a["model"][key] + 0.75 * b["model"][key])
    before = runtime.load_checkpoint(base / "last.pt")["flops"]
    assert mean["flops"] == pytest.approx(a["flops"] + b["flops"] - before) and a["flops"] > before
    # of a model and one that was trained on from it, the later one's FLOPs are those of both
    sft.main(sft.Config(**flags | dict(out=str(tmp_path / "three"), init=one, rows=2)))
    three = str(tmp_path / "three/last.pt")
    average.main(average.Config(mode="soup", init=three, other=one, out=str(tmp_path / "soup2")))
    mean, c = (runtime.load_checkpoint(path) for path in (tmp_path / "soup2/last.pt", three))
    assert mean["flops"] == c["flops"] > a["flops"] and mean["lineage"][-1]["flops"] == mean["flops"]


def test_unknown_flops_stay_unknown(base, world, tmp_path):
    """Weights from elsewhere have an unknown number of FLOPs behind them, and so has all that comes of them: stages,
    their logs, the soup of two of them or of one and a model of known FLOPs, evaluation records."""
    checkpoint = runtime.load_checkpoint(base / "last.pt")
    weights = tmp_path / "theirs"
    weights.mkdir()
    config = GPTConfig(**checkpoint["config"])
    save_file(olmo2.to_olmo2(checkpoint["model"], config), weights / "model.safetensors")
    (weights / "config.json").write_text(json.dumps({
        "model_type": "olmo2", "vocab_size": config.vocab_size, "hidden_size": config.d_model,
        "intermediate_size": config.d_ff, "num_hidden_layers": config.n_layers, "num_attention_heads": config.n_heads,
        "max_position_embeddings": config.context, "rope_theta": config.rope_theta, "rms_norm_eps": config.norm_eps,
    }))  # fmt: skip
    imported = str(tmp_path / "imported.pt")
    olmo2.main(olmo2.Config(weights=str(weights), out=imported, tokenizer="world"))
    flags = dict(data=str(world), steps=1, limit=12, eval_every=0)
    sft.main(sft.Config(init=imported, out=str(tmp_path / "sft"), rows=2, **flags))
    rl.main(rl.Config(**TINY | flags, init=str(tmp_path / "sft/last.pt"), out=str(tmp_path / "rl")))
    sft.main(sft.Config(init=str(base / "last.pt"), out=str(tmp_path / "known"), rows=2, **flags))
    for name, pair in {"same": ("rl", "sft"), "mixed": ("known", "sft"), "turned": ("sft", "known")}.items():
        one, other = (str(tmp_path / x / "last.pt") for x in pair)
        average.main(average.Config(mode="soup", init=one, other=other, out=str(tmp_path / name)))
    assert runtime.load_checkpoint(tmp_path / "known/last.pt")["flops"] > checkpoint["flops"] > 0
    for name in ("sft", "rl", "same", "mixed", "turned"):
        assert runtime.load_checkpoint(tmp_path / name / "last.pt")["flops"] is None, name
    assert metrics(tmp_path / "rl")[-1]["flops"] is None
    config = evaluation.Config(checkpoint=(str(tmp_path / "same/last.pt"),), data=str(world), limit=2, samples=2, k=(1,),
                               max_new_tokens=4, tasks=())  # fmt: skip
    evaluation.main(config)
    assert json.loads((tmp_path / "same/eval/last.json").read_text())["flops"] is None


def test_evaluations_at_kept_checkpoints(base, world, tmp_path):
    """--eval_every -1: one evaluation before the first step, one at each kept checkpoint and at the end, no other."""
    flags = dict(init=str(base / "last.pt"), data=str(world), limit=12, rows=4, steps=5, save_at="1,3", eval_every=-1)
    flags |= dict(eval_limit=2, eval_tasks=())
    sft.main(sft.Config(out=str(tmp_path / "run"), **flags))
    lines = map(json.loads, (tmp_path / "run/metrics.jsonl").read_text().splitlines())
    assert [line["step"] for line in lines if "val_process@1" in line] == [0, 1, 3, 5]
    assert {p.stem for p in (tmp_path / "run").glob("step_*.pt")} == {"step_0000001", "step_0000003", "step_0000005"}
