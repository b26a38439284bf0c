"""Evaluation: the statistics by brute force, the records by hand-made samples and log-probs, the real files."""

import contextlib
import itertools
import json
import math
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import average
import eval as evaluation
import likelihood
import rl
import sampler
import sft
from cli import UserError, cli
from data.prompt import PROMPT_FORMS, few_shot_prompt, format_prompt
from data.questions import find_questions, load_examples
from data.tasks import find_tasks, load_items, question_and_choice, task_pairs
from data.tokenizer import load_tokenizer
from eval import Config, build_prompts, evaluate_questions, find_examples, make_evaluate, print_records
from excursion.compare import compare
from likelihood import bits_per_byte, continuation_log_probs, evaluate_task
from measures import entropy, guess_floor, judge_answers, majority_vote, mean_interval, pass_at_k, summary
from model import GPT, config_of
from process import Process
from runtime import Progress
from sampler import Continuation
from verifier import normal_form

REALDATA = Path(__file__).parents[2] / "shared" / "realdata"
PROCESS = Process(0, 1, torch.device("cpu"), torch.float32)


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("world")


@pytest.fixture(scope="module")
def model(tokenizer) -> GPT:
    return GPT(config_of("smoke", tokenizer.padded_vocab_size)).init_weights(0, std=0.1).eval()


# ---------------------------------------------------------------------------------------------------------------------
# Statistics
# ---------------------------------------------------------------------------------------------------------------------


def test_35_pass_at_k_matches_brute_force():
    """Property 35: for every n ≤ 8, c and k, the share of k-subsets of the samples that hold a right one."""
    for n in range(1, 9):
        for c, k in itertools.product(range(n + 1), range(1, n + 1)):
            brute = np.mean([min(s) < c for s in itertools.combinations(range(n), k)])
            assert pass_at_k(n, np.array([c]), k)[0] == pytest.approx(brute), (n, c, k)


def test_35_pass_at_1_is_the_mean_and_counts_may_differ():
    """Property 35: k = 1 is c / n, also where questions have different n; large n stays in [0, 1]."""
    n, c = np.array([4, 8, 32]), np.array([1, 8, 5])
    assert pass_at_k(n, c, 1) == pytest.approx(c / n)
    large = pass_at_k(1000, np.arange(1001), 500)
    assert large[0] == 0 and large[-1] == 1 and (np.diff(large) >= 0).all() and (large <= 1).all()


@pytest.mark.parametrize(("n", "k"), [(8, 9), (np.array([32, 8]), 16), (8, 0), (8, -1)])
def test_35_pass_at_k_refuses_too_few_samples(n, k):
    """Property 35: k > n of any question, or k < 1, is refused."""
    with pytest.raises(ValueError, match=f"pass@{k}"):
        pass_at_k(n, np.array([1, 1]), k)


def vote(*answers: str | None) -> str | None:
    return majority_vote(list(answers), [a if a is None else normal_form(a, "strict") for a in answers])


def test_35_majority_vote_groups_equal_answers():
    """Property 35: 0.5 and \\frac12 vote together and beat two votes for 3; the first spelling is returned."""
    assert vote("3", "0.5", "3", "\\frac12", "\\dfrac{1}{2}") == "0.5"
    assert vote("1,000", "7", "1000") == "1,000"
    assert vote("2", None, None, None) == "2"
    assert vote(None, None) is None and vote() is None


def test_35_majority_vote_is_judged_by_its_commonest_spelling():
    """Property 35: 10\\% is both 10 and 0.1, and stands with 10. Two votes for 10 and one for 10% say 10, in any order."""
    for answers in itertools.permutations(["10", "10", "10%", "3"]):
        assert vote(*answers) == "10"


def test_35_majority_ties_are_broken_by_order():
    """Property 35: of answers with as many votes, the one that came first, whatever the answers are."""
    for answers in itertools.permutations(["8", "7", "x+1", "-3"]):
        assert vote(*answers, *reversed(answers)) == answers[0]


@pytest.mark.parametrize(
    ("grader", "said"),
    [
        ("strict", ["\\boxed{3}", "\\boxed{0.5}"]),
        ("gsm8k", ["#### It is 3 miles an hour", "#### He has 5 pears in all"]),
    ],
)
def test_votes_and_floor_are_by_the_grader(grader, said):
    """What a grader takes for right is right for the floor and the vote, too: of two models that give each question the
    other's answer, all is luck."""
    gold = ["3", "1/2" if grader == "strict" else "5"]
    questions = [{"id": str(i), "answer": answer} for i, answer in enumerate(gold)]
    given = [
        judge_answers(q, [text] * 2, [True] * 2, [3] * 2, grader, "wrong")
        for q, text in zip(questions, said[::-1], strict=True)
    ]
    assert summary(given, [1])["floor"]["pass@1"] == 1 and summary(given, [1])["strict"]["pass@1"]["mean"] == 0
    kept = [
        judge_answers(q, [text] * 2, [True] * 2, [3] * 2, grader, "wrong")
        for q, text in zip(questions, said, strict=True)
    ]
    assert summary(kept, [1])["floor"]["pass@1"] == 0 and summary(kept, [1])["majority"]["mean"] == 1


def test_bootstrap_interval_covers_the_true_mean():
    """In 300 experiments of 80 questions at 30%, 95% intervals hold the truth 272 to 297 times: with a coverage of 95%
    that fails with probability below 1e-3, with one of 85% or 99.9% it fails nearly always."""
    rng = np.random.default_rng(0)
    intervals = [mean_interval(rng.random(80) < 0.3, seed) for seed in range(300)]
    assert 272 <= sum(i["low"] <= 0.3 <= i["high"] for i in intervals) <= 297
    assert np.mean([i["high"] - i["low"] for i in intervals]) == pytest.approx(2 * 1.96 * (0.21 / 80) ** 0.5, rel=0.05)


def test_bootstrap_interval_is_a_function_of_values_and_seed():
    """The same seed gives the same interval, another one another; equal values give an interval without width."""
    values = np.random.default_rng(0).random(50)
    assert mean_interval(values, 3) == mean_interval(values, 3) != mean_interval(values, 4)
    assert mean_interval([0.25] * 9) == {"mean": 0.25, "low": 0.25, "high": 0.25}
    with pytest.raises(UserError, match="no question"):
        mean_interval([])


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------

EXAMPLES = [
    {"question": f"Tom has {i} pears. How many pears does Tom have?", "solutions": [f"\\boxed{{{i}}}"]}
    for i in range(8)
]


def test_examples_where_the_data_have_none(world, tmp_path):
    """DATA's own worked examples are shown, the world's for one; where there are none, the shipped ones of GSM8K's kind."""
    own = find_examples(Config(data=str(world)), 8)
    assert [row["id"] for row in own] == [row["id"] for row in load_examples(world / "questions/examples.jsonl")]
    shipped = find_examples(Config(data=str(tmp_path)), 8)
    assert shipped == load_examples("gsm8k") and len(shipped) == 8 and shipped != own
    assert find_examples(Config(data=str(tmp_path), examples="math"), 2) == load_examples("math", 2)


def test_build_prompts_drops_worked_examples_that_do_not_fit(tokenizer):
    """All prompts have the same number of examples: the most that fit the room for the longest question."""
    questions = [{"question": "What is 1 + 1?"}, {"question": "What is " + "1 + " * 10 + "1?"}]
    longest = [len(few_shot_prompt(EXAMPLES[:k], questions[1]["question"], tokenizer)) for k in range(9)]
    for k in range(9):
        for room in (longest[k], longest[k] + 1):
            prompts, shots = build_prompts(questions, tokenizer, EXAMPLES, room)
            assert shots == k
            assert prompts == [few_shot_prompt(EXAMPLES[:k], q["question"], tokenizer) for q in questions]
    with pytest.raises(UserError, match=f"{longest[0]} tokens and the model has room for {longest[0] - 1}"):
        build_prompts(questions, tokenizer, EXAMPLES, longest[0] - 1)


# Four answers to each of three questions, with the judgement of a person: is it right, strictly, and read leniently?
ANSWERS = {
    "a": ("1/2", ["\\boxed{0.5}", "so \\boxed{\\frac12}.", "the answer is 1/2", "\\boxed{3}"], "1100", "1110", 3, 1),
    "b": ("7", ["\\boxed{8}", "\\boxed{8}", "\\boxed{7}", "\\boxed{7} no, \\boxed{8}"], "0010", "0010", 4, 0),
    "c": ("7", ["7", "\\boxed{7", "it is 7.", "6"], "0000", "1110", 0, 0),
}


def judged_answers(monkeypatch, model, tokenizer, **flags):
    """evaluate_questions with ANSWERS in place of the model's; every second answer is cut before its stop token."""
    questions = [{"id": key, "question": f"What is {key}?", "answer": row[0]} for key, row in ANSWERS.items()]

    def sample(model, prompts, n, *, stop, max_new_tokens, numbers, **_):
        assert n == 4 and numbers == [0, 1, 2]
        assert prompts == [few_shot_prompt([], q["question"], tokenizer) for q in questions]
        ids = [tokenizer.encode(text) for row in ANSWERS.values() for text in row[1]]
        rows = [Continuation(i + [stop] * (r % 2 == 0), i, np.zeros(len(i)), r % 2 == 0) for r, i in enumerate(ids)]
        return [rows[i : i + 4] for i in (0, 4, 8)]

    monkeypatch.setattr(evaluation, "sample", sample)
    return evaluate_questions(
        model, tokenizer, questions, PROCESS, Config(samples=4, k=(1, 2, 4, 8), max_new_tokens=40, **flags)
    )


@pytest.fixture
def record(monkeypatch, model, tokenizer):
    return judged_answers(monkeypatch, model, tokenizer, truncated="score")


@pytest.mark.parametrize("truncated", ["wrong", "score"])
@pytest.mark.parametrize("grader", ["strict", "lenient", "gsm8k"])
def test_a_right_answer_is_one_thing_in_reward_and_evaluation(monkeypatch, model, tokenizer, grader, truncated):
    """Every sample is right in evaluation if and only if rl.py's reward says so, at each --grader and --truncated: an
    answer without its stop token once counted in one and not in the other. lenient@k counts it always."""
    record, samples = judged_answers(monkeypatch, model, tokenizer, grader=grader, truncated=truncated)
    for row, (_, (answer, texts, *_)) in zip(record["questions"], ANSWERS.items(), strict=True):
        config = rl.GRPOConfig(grader=grader, truncated=truncated)
        want = [rl.reward_of(text, answer, i % 2 == 0, config)[1] for i, text in enumerate(texts)]
        (got,) = [[s["right"] for s in sample["samples"]] for sample in samples if sample["id"] == row["id"]]
        assert got == want and row["c"] == sum(want)
        if truncated == "wrong":  # the cut ones are the second and the fourth
            assert not got[1] and not got[3] and row["box"] <= 2
    assert [row["c_lenient"] for row in record["questions"]] == [3, 1, 3]


def test_judged_as_a_person_would(record):
    """Counts of right answers, boxes and votes per question; means over questions; nothing behind a row's end is read."""
    record, samples = record
    for row, (key, (_, texts, strict, lenient, boxes, vote)) in zip(record["questions"], ANSWERS.items(), strict=True):
        assert (row["id"], row["n"], row["c"], row["c_lenient"]) == (key, 4, strict.count("1"), lenient.count("1"))
        assert (row["box"], row["majority"], row["finished"]) == (boxes, vote, 2)
        (sampled,) = [s for s in samples if s["id"] == key]
        assert [s["text"] for s in sampled["samples"]] == texts
        assert [s["right"] for s in sampled["samples"]] == [mark == "1" for mark in strict]
    assert record["questions"][0]["h_answers"] == entropy(["1/2", "1/2", None, "3"])  # 0.5 and \\frac12 are one answer
    assert record["box"] == pytest.approx(7 / 12) and record["finished"] == 0.5
    assert record["majority"]["mean"] == pytest.approx(1 / 3)


# Flags of eval.py that cannot work, and what the line says. {P} is a folder of wrong things
REFUSED = {
    "--tasks nothing": "neither",
    "--tasks {P}/two_forms.jsonl": "one file has items of one form",
    "--tasks {P}/long_choice.jsonl": "item 1 has an empty context or continuation, or one beyond",
    "--questions test_easy nothing": "'nothing'",
    "--questions test_easy {P}/test_easy.jsonl": "the same name",
    "--max_new_tokens 256": "no question fits a context of 256 with 256 new tokens",
    "--examples {P}/two_forms.jsonl": "two_forms",
    "--shots 9": "9 worked examples are wanted",
    "--checkpoint {G} {P}/broken.pt --out {P}/out": "broken.pt",
}


@pytest.fixture(scope="module")
def wrong(base, world, tmp_path_factory) -> Path:
    """A folder of wrong things, and in data/ the world with a source of 100 train and 100 held-out tokens."""
    folder = tmp_path_factory.mktemp("wrong")
    shutil.copytree(world, folder / "data")
    shutil.copytree(world / "math", folder / "data/short")
    meta = json.loads((folder / "data/short/meta.json").read_text())
    for split in ("train", "val"):
        shard = folder / "data/short" / meta[split]["shards"][0]
        np.save(shard, np.load(shard)[:100])
        meta[split] |= {"shards": meta[split]["shards"][:1], "tokens": 100}
    meta = {key: value for key, value in meta.items() if key not in ("digest", "digests")}
    (folder / "data/short/meta.json").write_text(json.dumps(meta))
    items = [{"context": "a", "continuation": "b"}, {"query": "a", "choices": ["b", "c"], "gold": 0}]
    (folder / "two_forms.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    items = [items[0], {"context": "a", "continuation": "one pear, " * 200}]
    (folder / "long_choice.jsonl").write_text("".join(json.dumps(item) + "\n" for item in items))
    shutil.copy(world / "questions/test_easy.jsonl", folder / "test_easy.jsonl")
    (folder / "broken.pt").write_bytes((base / "last.pt").read_bytes()[:-5000])
    return folder


@pytest.mark.parametrize("flags", REFUSED)
def test_everything_is_checked_before_the_first_sample(monkeypatch, capsys, base, wrong, tmp_path, flags):
    """Whatever cannot be evaluated, of any checkpoint, is refused before a token is sampled, and nothing is written."""

    def sample(*_, **__):
        raise AssertionError("sampled before all was checked")

    monkeypatch.setattr(evaluation, "sample", sample)
    monkeypatch.setattr(likelihood, "continuation_log_probs", sample)
    places = {"{P}": str(wrong), "{G}": str(base / "last.pt")}
    words = flags
    said = REFUSED[flags]
    for key, value in places.items():
        words, said = words.replace(key, value), said.replace(key, value)
    out = tmp_path / "records"
    start = ["eval.py", "--checkpoint", str(base / "last.pt"), "--data", str(wrong / "data"), "--out", str(out)]
    monkeypatch.setattr(sys, "argv", [*start, "--limit", "2", *words.split()])
    with pytest.raises(SystemExit) as stop:
        cli(evaluation.main, evaluation.Config, evaluation.PRESETS)
    assert stop.value.code == 2 and not out.exists() and not (wrong / "out").exists()
    assert said in capsys.readouterr().err


def test_what_is_too_long_or_too_short_is_left_out_and_named(base, world, wrong, tmp_path, capsys):
    """A question that does not fit is named and counted, in eval.py and its record, in the evaluation of a stage, in RL
    and in SFT; the others are evaluated. A source whose text fills no window is left out too, in eval.py and
    in a stage."""
    rows = [json.loads(line) for line in (world / "questions/test_easy.jsonl").read_text().splitlines()[:3]]
    rows[1] |= {"id": "giant", "question": "How many pears has Tom? " * 60}
    path = tmp_path / "some.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    told = "1 of 3 questions leave no room for 5 new tokens in a context of 256: left out: giant"
    common = dict(data=str(world), max_new_tokens=5)
    evaluation.main(evaluation.Config(checkpoint=(str(base / "last.pt"),), questions=(str(path),), samples=2, k=(1,), tasks=(),
                                      out=str(tmp_path / "records"), **common))  # fmt: skip
    assert capsys.readouterr().err.count(told) == 1
    (record,) = json.loads((tmp_path / "records/last.json").read_text())["questions"].values()
    assert record["left_out"] == ["giant"] and [q["id"] for q in record["questions"]] == [rows[0]["id"], rows[2]["id"]]
    evaluation.main(evaluation.Config(checkpoint=(str(base / "last.pt"),), data=str(wrong / "data"), questions=(), tasks=("text",),
                                      out=str(tmp_path / "text"), val_tokens=500))  # fmt: skip
    no_window = "held-out text of short fills no window of 257: left out"
    assert no_window in capsys.readouterr().err
    assert list(json.loads((tmp_path / "text/last.json").read_text())["text"]) == ["general", "math"]
    stage = dict(
        init=str(base / "last.pt"), questions=str(path), steps=1, data=str(wrong / "data"), eval_tasks=("text",)
    )
    rl.main(
        rl.Config(max_new_tokens=5, **stage, eval_questions=str(path), prompts=1, rollouts=2,
                  out=str(tmp_path / "rl"))
    )  # fmt: skip
    said = capsys.readouterr().err
    assert said.count(told) == 2  # as training question and as validation question
    assert said.count(no_window) == 1
    last = json.loads((tmp_path / "rl/metrics.jsonl").read_text().splitlines()[-1])
    assert [key for key in last if key.startswith("bpb")] == ["bpb_general", "bpb_math"]
    sft.main(sft.Config(**stage, eval_questions="", rows=2, out=str(tmp_path / "sft")))
    assert "1 rows longer than the context of 256 (giant)" in capsys.readouterr().err


@pytest.mark.parametrize("stage", ["sft", "rl", "average"])
def test_every_evaluation_of_a_stage_prints_a_line(base, world, tmp_path, capsys, stage):
    """Before the first step and every --eval_every steps: the step, pass@k, the tasks and bits per byte, as logged."""
    module = {"sft": sft, "rl": rl, "average": average}[stage]
    flags = dict(rows=2) if stage == "sft" else dict(prompts=1, rollouts=2, max_new_tokens=4)
    flags |= dict(eval_every=2, eval_limit=4, eval_tasks=("facts", "text"), steps=4, limit=8)
    module.main(module.Config(init=str(base / "last.pt"), data=str(world), out=str(tmp_path / "run"), **flags))
    lines = [line for line in capsys.readouterr().out.splitlines() if "val_pass@1" in line]
    logged = [json.loads(line) for line in open(tmp_path / "run/metrics.jsonl") if "val_pass@1" in line]
    names = ("val_pass@1", "val_pass@8", "task_facts", "bpb_general", "bpb_math")
    assert [values["step"] for values in logged] == [0, 2, 4]
    assert lines == [
        "  ".join([f"step {values['step']}", *(f"{name} {values[name]:.3f}" for name in names)]) for values in logged
    ]


def test_one_rank_prints_the_evaluation(monkeypatch, model, tokenizer, world, capsys):
    """Of several ranks the main one writes the line; all get the values."""
    config = sft.Config(data=str(world), eval_limit=2, eval_tasks=())
    mean = {"pass@1": {"mean": 0.5}}
    record = {"questions": {"x": {"strict": mean, "lenient": mean, "box": 1.0}}, "tasks": {}, "text": {}}
    monkeypatch.setattr(evaluation.Evaluation, "run", lambda *_: (record, []))
    for rank, out in ((0, "step 3  val_pass@1 0.500\n"), (1, "")):
        process = Process(rank, 2, torch.device("cpu"), torch.float32)
        run = SimpleNamespace(
            config=config, model=model, tokenizer=tokenizer, process=process, progress=Progress(step=3), lineage=[]
        )
        assert make_evaluate(run)() == {"val_pass@1": 0.5, "val_lenient@1": 0.5, "val_box": 1.0}
        assert capsys.readouterr().out == out


@pytest.mark.parametrize("stage", ["sft", "rl", "average"])
def test_eval_every_0_needs_no_validation_data(base, world, tmp_path, stage):
    """--eval_every 0: a folder with training questions alone is enough."""
    (tmp_path / "data/questions").mkdir(parents=True)
    shutil.copy(world / "questions/train.jsonl", tmp_path / "data/questions/train.jsonl")
    module = {"sft": sft, "rl": rl, "average": average}[stage]
    flags = dict(rows=2) if stage == "sft" else dict(prompts=1, rollouts=2, max_new_tokens=4)
    common = dict(init=str(base / "last.pt"), data=str(tmp_path / "data"), steps=1, limit=8)
    module.main(module.Config(**common, **flags, eval_every=0, out=str(tmp_path / "run")))
    assert (tmp_path / "run/last.pt").exists()
    with pytest.raises(UserError, match="validation"):
        module.main(module.Config(**common, **flags, eval_every=1, out=str(tmp_path / "other")))


def test_pass_at_k_can_be_computed_again_from_a_record(record):
    """Every pass@k of a record and its interval follow from its per-question counts, after a trip through JSON; k above
    n is left out."""
    saved = json.loads(json.dumps(record[0]))
    assert list(saved["strict"]) == list(saved["lenient"]) == ["pass@1", "pass@2", "pass@4"]
    n = np.array([q["n"] for q in saved["questions"]])
    for kind, count in (("strict", "c"), ("lenient", "c_lenient")):
        c = np.array([q[count] for q in saved["questions"]])
        for k in (1, 2, 4):
            assert saved[kind][f"pass@{k}"] == mean_interval(pass_at_k(n, c, k), 0)
    # by hand: 2 of 4, 1 of 4, none; two of four samples miss the one right one with probability 1/2
    assert saved["strict"]["pass@1"]["mean"] == pytest.approx((2 / 4 + 1 / 4 + 0) / 3)
    assert saved["strict"]["pass@2"]["mean"] == pytest.approx((5 / 6 + 1 / 2 + 0) / 3)


def test_questions_are_answered_by_the_model_itself(monkeypatch, model, tokenizer):
    """Without an answer replaced: the record has a row a question, and one seed gives one record, in any slots."""
    questions = [{"id": str(i), "question": f"What is {i} + 1?", "answer": str(i + 1)} for i in range(3)]
    flags = dict(config=Config(samples=2, k=(1,), max_new_tokens=6), examples=EXAMPLES[:2])
    a = evaluate_questions(model, tokenizer, questions, PROCESS, **flags)
    monkeypatch.setattr(sampler, "SLOTS", 2)
    b = evaluate_questions(model, tokenizer, questions, PROCESS, **flags)
    assert a == b and a[0]["shots"] == 2 and [q["id"] for q in a[0]["questions"]] == ["0", "1", "2"]


def test_checkpoints_share_the_text_they_are_measured_on(base, world, monkeypatch):
    """It is opened and checked once for all models of one tokenizer and context."""
    opened, open_text = [], evaluation.held_out_text
    monkeypatch.setattr(evaluation, "held_out_text", lambda *a: opened.append(1) or open_text(*a))
    config = Config(checkpoint=(str(base / "last.pt"),) * 3, data=str(world), questions=(), tasks=("text",))
    prepared = evaluation.prepare_all(config, PROCESS)
    assert len(prepared) == 3 and len(opened) == 1 and {id(e.text) for e in prepared} == {id(prepared[0].text)}


def floor_by_permutations(answers, gold, k: int) -> float:
    """Mean pass@k over all permutations of the questions that leave none in its place."""
    everyone = range(len(gold))
    moved = [p for p in itertools.permutations(everyone) if all(p[i] != i for i in everyone)]
    return np.mean(
        [[pass_at_k(len(a), np.array([a.count(gold[p[i]])]), k)[0] for i, a in enumerate(answers)] for p in moved]
    )


@pytest.mark.parametrize("k", [1, 2, 4])
def test_guess_floor_is_the_mean_over_permuted_questions(k):
    """For answers with repeats, without a box, and right answers that several questions share, the floor equals pass@k
    averaged over every derangement."""
    rng = np.random.default_rng(0)
    for _ in range(20):
        answers = [[None if rng.random() < 0.2 else str(rng.integers(4)) for _ in range(4)] for _ in range(5)]
        gold = [str(rng.integers(5)) for _ in range(5)]
        assert guess_floor(answers, gold, k).mean() == pytest.approx(floor_by_permutations(answers, gold, k), abs=1e-5)
    with pytest.raises(ValueError, match="two questions"):
        guess_floor([["1"]], ["1"], 1)


def test_guess_floor_tells_luck_from_skill():
    """A model that knows every answer of distinct questions has a floor of 0; one that answers alike everywhere is
    right by luck alone: its pass@k is its floor."""
    gold = [str(i) for i in range(10)]
    assert guess_floor([[g] * 8 for g in gold], gold, 8).max() == 0
    alike = [gold[:8]] * 10
    right = [sum(a == g for a in given) for given, g in zip(alike, gold, strict=True)]
    assert guess_floor(alike, gold, 1).mean() == pytest.approx(pass_at_k(8, np.array(right), 1).mean(), abs=1e-5)


def test_entropy_of_samples():
    """Nats of the shares: none for equal values, log n for n different ones; None is a value."""
    assert entropy(["3"] * 5) == 0 and entropy(list("abcd")) == pytest.approx(math.log(4), abs=1e-6)
    assert entropy([None, None, "1", "1"]) == pytest.approx(math.log(2), abs=1e-6)


def fake_samples(monkeypatch, tokenizer, answers: list[list[str]]) -> None:
    """These answers in place of the model's, each ended by a stop token."""

    def sample(model, prompts, n, *, stop, max_new_tokens, **_):
        return [[Continuation([*(ids := tokenizer.encode(text)), stop], ids, np.zeros(0), True) for text in row]
                for row in answers[: len(prompts)]]  # fmt: skip

    monkeypatch.setattr(evaluation, "sample", sample)


WAYS = {  # four answers to each of two of the world's questions: is it right, and by true equations?
    "12 + 5 = 17. Tom sells 3. How many?": ("14", [
        ("12 + 5 = 17. 17 - 3 = 14. The answer is \\boxed{14}.", 1, 1),
        ("First 12 + 5 = 17. Then 17 - 3 = 14. So \\boxed{14}.", 1, 1),  # another wording of the same path
        ("12 + 5 = 18. 18 - 3 = 14. The answer is \\boxed{14}.", 1, 0),
        ("The answer is \\boxed{14}.", 1, 0),
    ]),
    "Tom has 7 pears. He doubles his pears.": ("14", [
        ("7 * 2 = 14\nAnswer: \\boxed{14}", 1, 1),
        ("7 * 2 = 14. The answer is \\boxed{13}.", 0, 0),
        ("7 * 2 = 14. The answer is 14.", 0, 0),
        ("2 * 7 = 14. The answer is \\boxed{14}.", 1, 1),
    ]),
}  # fmt: skip


def test_process_right_needs_a_right_answer_and_true_equations(monkeypatch, model, tokenizer):
    """The world's questions: right answers without equations or with a false one are not process-right; paths do not
    depend on words; values go into the record with their means, and another set of questions has none of them."""
    questions = [
        {"id": str(i), "question": q, "answer": answer, "source": "world"}
        for i, (q, (answer, _)) in enumerate(WAYS.items())
    ]
    fake_samples(monkeypatch, tokenizer, [[text for text, _, _ in rows] for _, rows in WAYS.values()])
    call = dict(process=PROCESS, config=Config(samples=4, k=(1, 4), max_new_tokens=60))
    record, samples = evaluate_questions(model, tokenizer, questions, **call)
    rows = record["questions"]
    assert [(r["c"], r["c_process"]) for r in rows] == [(4, 2), (2, 2)]
    for sampled, (_, marks) in zip(samples, WAYS.values(), strict=True):
        assert [(s["right"], s["process"]) for s in sampled["samples"]] == [(bool(r), bool(p)) for _, r, p in marks]
    assert (
        record["process"]["pass@1"] == mean_interval(np.array([0.5, 0.5])) and record["process"]["pass@4"]["mean"] == 1
    )
    assert [r["h_answers"] for r in rows] == [0, entropy(["14", "14", None, "13"])]
    assert [r["h_paths"] for r in rows] == [entropy(list("aabc")), entropy(list("aaab"))]
    # both answers are 14, so each question's right answers are right for the other one too
    assert record["floor"] == {"pass@1": 0.75, "pass@4": 1.0} and rows[1]["floor"] == {"pass@1": 0.5, "pass@4": 1.0}
    for kind in ("answers", "paths"):
        assert record["entropy"][kind] == pytest.approx(np.mean([r[f"h_{kind}"] for r in rows]))
    other, samples = evaluate_questions(model, tokenizer, [q | {"source": "gsm8k"} for q in questions], **call)
    assert "process" not in other and set(other["entropy"]) == {"answers"} and other["floor"] == record["floor"]
    assert not any("c_process" in r or "h_paths" in r for r in other["questions"])
    assert not any("process" in s for row in samples for s in row["samples"])
    alone, _ = evaluate_questions(model, tokenizer, [questions[0] | {"facts": ["sack of boots"]}], **call)
    assert alone["questions"][0]["facts"] == ["sack of boots"] and "facts" not in rows[0]
    assert "floor" not in alone and "process" in alone


def test_stages_log_the_process_of_the_worlds_questions(monkeypatch, model, tokenizer, world):
    """The evaluation while a stage trains gives val_process@k and val_floor@k beside val_pass@k."""
    config = sft.Config(data=str(world), eval_limit=2, eval_tasks=())
    questions = find_questions(str(world), "validation", "test", 2)
    good = [q["solutions"][0] for q in questions]
    fake_samples(monkeypatch, tokenizer, [[text, "\\boxed{1}", f"\\boxed{{{q['answer']}}}", text] * 2
                                          for text, q in zip(good, questions, strict=True)])  # fmt: skip
    run = SimpleNamespace(
        config=config, model=model, tokenizer=tokenizer, process=PROCESS, progress=Progress(step=16), lineage=[]
    )
    values = make_evaluate(run)()
    assert (values["val_pass@1"], values["val_process@1"], values["val_floor@1"]) == (0.75, 0.5, 0)


def test_compare_pairs_by_question(tmp_path, record):
    """The change is taken question by question, averaged over the other records; other questions are refused."""
    first = {"questions": {"set": record[0]}}
    others = [json.loads(json.dumps(first)) for _ in range(2)]
    for other, counts in zip(others, ([4, 1, 0], [4, 3, 2]), strict=True):
        for row, c in zip(other["questions"]["set"]["questions"], counts, strict=True):
            row["c"] = c
    paths = [tmp_path / f"{i}.json" for i in range(3)]
    for path, content in zip(paths, (first, *others), strict=True):
        path.write_text(json.dumps(content))
    change = compare(tuple(map(str, paths)))["set"]
    assert change["pass@1"] == mean_interval(np.array([4 - 2, 2 - 1, 1 - 0]) / 4, 0)
    assert change["lenient@1"]["mean"] == 0 and "process@1" not in change
    others[0]["questions"]["set"]["questions"][0]["id"] = "z"
    paths[1].write_text(json.dumps(others[0]))
    with pytest.raises(UserError, match="different questions"):
        compare(tuple(map(str, paths)))
    for path in paths:  # records without a question
        path.write_text(json.dumps({"questions": {"set": record[0] | {"questions": []}}}))
    with pytest.raises(UserError, match="no question to take a mean over"):
        compare(tuple(map(str, paths)))


def test_flags_without_effect_beside_ask_are_refused():
    """They end in a line; so does --k without a number."""
    with pytest.raises(UserError, match="--samples has no effect beside --ask"):
        evaluation.main(evaluation.Config(checkpoint=("a.pt",), ask="What?", samples=4))
    with pytest.raises(UserError, match="--prompt has no effect beside --ask without worked examples"):
        evaluation.main(evaluation.Config(checkpoint=("a.pt",), ask="What?", prompt="question_answer"))
    with pytest.raises(UserError, match="^--k: name"):
        evaluation.main(evaluation.Config(checkpoint=("a.pt",), k=()))


def test_ask_with_the_papers_preset(monkeypatch, base, world, tokenizer, capsys):
    """--ask alone is greedy and 0-shot; --preset paper beside it asks as the authors do: their worked examples in their
    form (as many as fit), sampled, read by their judge; a flag beside both wins. Each checkpoint answers."""
    seen = []

    def answer(model, prompts, n, *, temperature, top_p, max_new_tokens, **_):
        seen.append((tokenizer.decode(prompts[0]), temperature, top_p, max_new_tokens))
        return [[Continuation(ids := tokenizer.encode("So \\boxed{7}\n#### 8"), ids, np.zeros(0), False)]]

    monkeypatch.setattr(evaluation, "sample", answer)

    def ask(*flags: str) -> str:
        words = ["eval.py", "--checkpoint", str(base / "last.pt"), "--ask", "What?", *flags]
        monkeypatch.setattr(sys, "argv", words)
        cli(evaluation.main, evaluation.Config, evaluation.PRESETS)
        return capsys.readouterr().out

    assert ask().endswith("\n\nanswer: 7 (cut at --max_new_tokens)\n")
    assert seen.pop() == (format_prompt("What?"), 0.0, 0.95, 64)
    examples = ["--examples", str(world / "questions/examples.jsonl")]
    said = ask("--preset", "paper", "--max_new_tokens", "16", "--shots", "1", *examples)
    prompt, *settings = seen.pop()
    assert "answer: 8 (cut" in said and settings == [0.6, 0.95, 16]
    assert "1 worked examples" in said and prompt.endswith(
        "Question: What?\nAnswer: " + PROMPT_FORMS["question_answer"][1] + "\n"
    )
    ask("--preset", "paper", "--max_new_tokens", "16", "--shots", "0", "--temperature", "0")
    assert seen.pop() == (format_prompt("What?"), 0.0, 0.95, 16)
    said = ask("--checkpoint", str(base / "last.pt"), str(base / "last.pt"))
    assert said.count("answer: 7") == said.count("last.pt, 0 worked examples:") == len(seen) == 2


def test_ask_continues_a_text(monkeypatch, base, tokenizer, capsys):
    """--ask TEXT --prompt none: the model goes on with exactly the tokens of the text, greedily or at a --temperature;
    text and continuation are printed, and no answer is looked for. What has no effect there is refused, and so is none
    without --ask."""
    seen = []

    def go_on(model, prompts, n, *, temperature, **_):
        seen.append((prompts, n, temperature))
        ended = [tokenizer.eos] if temperature else []
        return [[Continuation((ids := tokenizer.encode(" upon a time")) + ended, ids, np.zeros(0), bool(ended))]]

    monkeypatch.setattr(evaluation, "sample", go_on)

    def ask(*flags: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "argv", ["eval.py", "--checkpoint", str(base / "last.pt"), "--prompt", "none", *flags])
        with contextlib.suppress(SystemExit):
            cli(evaluation.main, evaluation.Config, evaluation.PRESETS)
        return tuple(capsys.readouterr())

    assert ask("--ask", "Once")[0] == "Once upon a time (cut at --max_new_tokens)\n"
    both = ask("--ask", "Once", "--temperature", "0.8", "--checkpoint", *[str(base / "last.pt")] * 2)[0]
    assert both == f"{base / 'last.pt'}:\nOnce upon a time\n" * 2
    assert seen == [([tokenizer.encode("Once")], 1, t) for t in (0.0, 0.8, 0.8)]
    for flags, refused in [
        (("--ask", "Once", "--shots", "2"), "--shots has no effect beside --prompt none"),
        (("--ask", "Once", "--grader", "gsm8k"), "--grader has no effect beside --prompt none"),
        (("--questions", "test_easy"), "--prompt none: goes with --ask TEXT"),
        (("--ask", "word " * 300, "--max_new_tokens", "8"), "the longest question has"),
    ]:
        assert refused in ask(*flags)[1]
    assert len(seen) == 3


def test_table_of_checkpoints_that_were_measured_on_different_things(capsys):
    """A model of a longer context may have no window of a source, or one of a shorter no second question: its place in
    the table is empty, and the others have theirs."""
    mean = {"mean": 0.5, "low": 0.0, "high": 1.0}
    one = {"n": 1, "shots": 0, "strict": {"pass@1": mean}, "lenient": {"pass@1": mean}, "majority": mean, "box": 1.0, "tokens": 2.0, "questions": []}  # fmt: skip
    more = one | {"process": {"pass@1": mean}, "floor": {"pass@1": 0.25}}
    records = [
        {"checkpoint": f"{name}.pt", "tokens": 1, "questions": {"set": asked}, "tasks": {}, "text": text}
        for name, asked, text in (
            ("a", more, {"short": {"bits_per_byte": 1.25}}),
            ("b", one, {"other": {"bits_per_byte": 2.5}}),
        )
    ]
    print_records(records)
    a, b = capsys.readouterr().out.splitlines()[-2:]
    assert a.split() == ["a", "0.00", "1.2500", "–"] and b.split() == ["b", "0.00", "–", "2.5000"]
    print_records([records[0] | {"checkpoint": f"out/{run}/last.pt"} for run in ("rl", "sft")])  # told apart
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].split()[:3] == ["checkpoint", "M", "tokens"] and len({len(line) for line in lines[2:5]}) == 1
    assert [line.split()[0] for line in lines[-2:]] == ["out/rl/last", "out/sft/last"]


# ---------------------------------------------------------------------------------------------------------------------
# Likelihood
# ---------------------------------------------------------------------------------------------------------------------


def one_by_one(model, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """One pair by a plain forward, from as much of the context's end as fits."""
    room = model.config.context + 1 - len(continuation)  # the last token is not an input
    tokens = torch.tensor(context[-room:] + continuation)
    log_p = model.logits(model(tokens[None, :-1]))[0].double().log_softmax(-1)[-len(continuation) :]
    target = tokens[-len(continuation) :]
    return log_p.gather(1, target[:, None]).sum().item(), bool((log_p.argmax(-1) == target).all())


@torch.no_grad()
def test_continuation_log_probs_equal_single_forwards(monkeypatch, model):
    """Ragged pairs in batches give the sums of plain forwards, in the order given; a context that does not fit is cut
    from the left; the greedy flag is set for what greedy decoding gives and for nothing else."""
    monkeypatch.setattr(likelihood, "BATCH_TOKENS", 600)  # so that there are several batches
    rng, vocab = np.random.default_rng(0), model.config.vocab_size
    sizes = [(3, 1), (256, 1), (255, 2), (200, 90), (300, 7), (700, 256), (1, 256), (1, 1), (20, 5), (256, 2)]
    pairs = [tuple(rng.integers(vocab, size=n).tolist() for n in size) for size in sizes]
    greedy = pairs[0][0]
    for _ in range(3):
        greedy = [*greedy, int(model.logits(model(torch.tensor([greedy])))[0, -1].argmax())]
    pairs.append((greedy[:3], greedy[3:]))
    got = continuation_log_probs(model, pairs, PROCESS)
    for (log_p, is_greedy), pair in zip(got, pairs, strict=True):
        want, want_greedy = one_by_one(model, *pair)
        assert log_p == pytest.approx(want, abs=1e-3) and is_greedy == want_greedy
    assert [is_greedy for _, is_greedy in got] == [False] * (len(pairs) - 1) + [True]
    # what was cut off does not matter, and the last token that was not cut does
    context, continuation = pairs[4]
    cut = len(context) + len(continuation) - (model.config.context + 1)
    changed = [(t + 1) % vocab for t in context]
    same, other = [*changed[:cut], *context[cut:]], [*changed[: cut + 1], *context[cut + 1 :]]
    a, b = continuation_log_probs(model, [(same, continuation), (other, continuation)], PROCESS)
    assert a[0] == pytest.approx(got[4][0], abs=1e-4) and b[0] != pytest.approx(got[4][0], abs=1e-4)


@pytest.mark.parametrize("pair", [([], [1]), ([1], []), ([1], [1] * 257)])
def test_pairs_without_a_likelihood_are_refused(model, pair):
    """An empty context or continuation, or a continuation beyond the context, is named."""
    with pytest.raises(UserError, match="item 1 has an empty context"):
        continuation_log_probs(model, [([1], [1]), pair], PROCESS)


def task(monkeypatch, tokenizer, items, results) -> tuple[dict, list]:
    """evaluate_task with `results` in place of the model's log-probs; and the texts that it asked for."""
    asked = []

    def fake(model, pairs, process, label):
        asked.extend((tokenizer.decode(a), tokenizer.decode(b)) for a, b in pairs)
        return results

    monkeypatch.setattr(likelihood, "continuation_log_probs", fake)
    return evaluate_task(None, tokenizer, items, PROCESS, "task"), asked


def test_plain_and_length_normalised_accuracy_differ_as_they_should(monkeypatch, tokenizer):
    """Multiple choice: "accuracy" takes the largest log-likelihood, "accuracy_norm" the largest per character of the
    choice without its space; "items" are those of the latter. Items may have different numbers of choices."""
    items = [
        {"query": "Question: What grows?", "choices": ["oak", "a very old oak tree"], "gold": 1},
        {"query": "The sky is", "choices": [" blue", "green", "red"], "gold": 0},
        {"query": "Say", "choices": ["éééé", "eeeeee"], "gold": 1},
    ]
    # characters: 3 and 19; 4, 5, 3; 4 and 6
    log_p = [-3.0, -9.5, -2.8, -4.0, -2.7, -4.4, -6.0]
    record, asked = task(monkeypatch, tokenizer, items, [(x, False) for x in log_p])
    assert asked[:3] == [
        ("Question: What grows?\nAnswer:", " oak"),
        ("Question: What grows?\nAnswer:", " a very old oak tree"),
        ("The sky is", " blue"),
    ]
    # plain: oak, red, éééé; per character: -1 < -.5; -.7 > -.8 > -.9; -1.1 < -1 (by bytes éééé would win, 8 to 6)
    assert record["items"] == [1, 1, 1]
    assert record["accuracy"]["mean"] == 0 and record["accuracy_norm"]["mean"] == 1


def harness_accuracies(items: list[dict], log_p: list[list[float]]) -> tuple[list[float], list[float]]:
    """acc and acc_norm of each item by lm-evaluation-harness's own code; the texts that it asks for must be ours."""
    datasets, harness = pytest.importorskip("datasets"), pytest.importorskip("lm_eval.api.task")
    texts = [question_and_choice(item["query"], choice) for item in items for choice in item["choices"]]
    docs = [{"gold": i["gold"], "context": question_and_choice(i["query"], "x")[0], "choices": [c.strip() for c in i["choices"]]}
            for i in items]  # fmt: skip
    data = datasets.Dataset.from_list(
        docs[:1]
    )  # it wants to see one; a choice of another number of choices is no matter
    task = harness.ConfigurableTask(config={
        "task": "test", "output_type": "multiple_choice", "custom_dataset": lambda **_: {"test": data}, "test_split": "test",
        "doc_to_text": "{{context}}", "doc_to_choice": "choices", "doc_to_target": "gold",
        "metric_list": [{"metric": "acc"}, {"metric": "acc_norm"}],
    })  # fmt: skip
    results = [task.process_results(doc, [(x, False) for x in row]) for doc, row in zip(docs, log_p, strict=True)]
    asked = [
        r.args for doc in docs for r in task.construct_requests(doc, ctx=task.doc_to_text(doc), metadata=(None, 0, 1))
    ]
    assert asked == texts
    return [r["acc"] for r in results], [r["acc_norm"] for r in results]


def random_log_probs(items: list[dict], seed: int = 0) -> list[list[float]]:
    """A log-likelihood a choice, about -1 a character."""
    rng = np.random.default_rng(seed)
    return [[float(-len(c) * rng.uniform(0.9, 1.1)) for c in item["choices"]] for item in items]


def assert_as_the_harness(monkeypatch, tokenizer, items) -> list[int]:
    log_p = random_log_probs(items)
    record, _ = task(monkeypatch, tokenizer, items, [(x, False) for row in log_p for x in row])
    plain, norm = harness_accuracies(items, log_p)
    assert record["items"] == norm and record["accuracy_norm"]["mean"] == pytest.approx(np.mean(norm))
    assert record["accuracy"]["mean"] == pytest.approx(np.mean(plain))
    return record["items"]


def test_accuracies_are_those_of_the_harness(monkeypatch, tokenizer):
    """On the same items and log-likelihoods, accuracy and accuracy_norm are lm-evaluation-harness's acc and acc_norm
    item by item, and the texts that are asked for are its own: choices of 1 to 30 characters, some of them beyond
    ASCII, with and without a space before them, 2 to 5 of them."""
    rng = np.random.default_rng(1)
    items = [
        {
            "query": rng.choice(["Question: How?", "Say", "It is "]),
            "choices": [
                rng.choice(["", " "]) + "".join(rng.choice(list("abcé"), rng.integers(1, 31)))
                for _ in range(rng.integers(2, 6))
            ],
            "gold": int(rng.integers(2)),
        }
        for _ in range(300)
    ]
    right = assert_as_the_harness(monkeypatch, tokenizer, items)
    assert 50 < sum(right) < 250


@pytest.mark.skipif(not REALDATA.exists(), reason="needs ../shared/realdata")
@pytest.mark.parametrize("file", ["arc_easy.jsonl.gz", "hellaswag_val_3000.jsonl.gz", "piqa.jsonl.gz"])
def test_accuracies_on_real_items_are_those_of_the_harness(monkeypatch, tokenizer, file):
    """The same on published items, 250 of each."""
    ((_, items),) = find_tasks("nowhere", (str(REALDATA / file),), 250).items()
    assert_as_the_harness(monkeypatch, tokenizer, items)


def test_cloze_accuracy_is_that_of_greedy_decoding(monkeypatch, tokenizer):
    """Cloze: the share of continuations that are greedy, and their mean log-prob; one space joins them to the context."""
    items = [{"context": "He ate a", "continuation": c} for c in ("pear", " plum", "fig")]
    record, asked = task(monkeypatch, tokenizer, items, [(-1.0, True), (-2.0, False), (-6.0, True)])
    assert [b for _, b in asked] == [" pear", " plum", " fig"]
    assert record["accuracy"]["mean"] == pytest.approx(2 / 3) and record["items"] == [1, 0, 1]
    assert record["log_prob"]["mean"] == pytest.approx(-3.0)


@torch.no_grad()
def test_bits_per_byte_by_hand(model, tokenizer):
    """Summed nats of all predicted tokens / log 2 / their bytes, where special tokens have no bytes; over batches."""
    texts = ["Tom has 12 pears. He buys 5 more.", "Ann has 3 figs. She eats 1 of them today."]
    rows = np.array([(tokenizer.encode(t) + [tokenizer.eos] * 20)[:16] for t in texts])
    batches = [rows[:1], rows[1:]]
    loader = SimpleNamespace(seq_len=15, val_batches=lambda source, rows, n_tokens: batches)
    got = bits_per_byte(model, tokenizer, loader, "world", 30, PROCESS)
    nats = -sum(one_by_one(model, row[:1], row[1:])[0] for row in rows.tolist())
    size = sum(len(tokenizer.decode([i for i in row[1:] if i != tokenizer.eos]).encode()) for row in rows.tolist())
    assert got["tokens"] == 30 and got["loss"] == pytest.approx(nats / 30, rel=1e-5)
    assert got["bits_per_byte"] == pytest.approx(nats / math.log(2) / size, rel=1e-5)


@torch.no_grad()
def test_text_is_measured_as_the_model_was_pretrained(model, tokenizer):
    """With --doc_mask a document of a window sees no other: each is as if it stood alone, behind the eos of the last."""
    texts = ["Tom has 12 pears. He buys 5 more.", "Ann has 3 figs."]
    documents = [tokenizer.encode(text) + [tokenizer.eos] for text in texts]
    row = np.array([documents[0] + documents[1]])
    loader = SimpleNamespace(seq_len=row.shape[1] - 1, val_batches=lambda *_: [row])
    apart = bits_per_byte(model, tokenizer, loader, "world", 30, PROCESS, doc_mask=True)
    # the first token of the second document is predicted by the eos of the first, which sees the first
    nats = one_by_one(model, documents[0][:1], documents[0][1:])[0]
    nats += one_by_one(model, documents[0], documents[1][:1])[0]
    nats += one_by_one(model, documents[1][:1], documents[1][1:])[0]
    assert apart["loss"] == pytest.approx(-nats / apart["tokens"], rel=1e-5)
    together = bits_per_byte(model, tokenizer, loader, "world", 30, PROCESS)
    assert abs(together["loss"] - apart["loss"]) > 1e-4
    seen = []
    evaluated = evaluation.Evaluation(Config(), {}, {}, [], SimpleNamespace(sources=["s"]), [])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluation, "bits_per_byte", lambda *a: seen.append(a[-1]))
        for args in ({}, {"doc_mask": False}, {"doc_mask": True}):
            evaluated.run(model, tokenizer, PROCESS, [{"args": args}, {"args": {}}])
    assert seen == [False, False, True]


def test_a_record_that_came_in_between_stays(base, world, tmp_path, monkeypatch):
    """Two evaluations into one --out: the second to end may not replace what the first has written."""
    run = evaluation.Evaluation.run

    def slow(*args):
        (tmp_path / "last.json").write_text("of another")
        return run(*args)

    monkeypatch.setattr(evaluation.Evaluation, "run", slow)
    flags = dict(checkpoint=(str(base / "last.pt"),), data=str(world), questions=(), tasks=("text",), out=str(tmp_path))
    with pytest.raises(UserError, match="last.json exists"):
        evaluation.main(Config(**flags))
    assert (tmp_path / "last.json").read_text() == "of another" and not (tmp_path / "last.jsonl.gz").exists()


# ---------------------------------------------------------------------------------------------------------------------
# Files
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "row",
    [
        {"query": "a", "choices": ["b", "c"], "gold": 2},
        {"query": "a", "choices": ["b", "c"], "gold": -1},
        {"query": "a", "choices": ["b", "c"], "gold": "1"},
        {"query": "a", "choices": ["b", ""], "gold": 0},
        {"query": "a", "choices": ["b", " "], "gold": 0},
        {"query": "a", "choices": ["b", 7], "gold": 0},
        {"query": "", "choices": ["b", "c"], "gold": 0},
        {"query": "a", "choices": ["b", "c"], "gold": 0.5},
        {"query": "a", "choices": ["b", "c"], "gold": True},
        {"query": "a", "choices": ["b"], "gold": 0},
        {"query": "a", "choices": "bc", "gold": 0},
        {"query": "a", "choices": {"text": ["b"], "label": ["A"]}, "gold": 0},
        {"query": 7, "choices": ["b", "c"], "gold": 0},
        {"choices": ["b", "c"], "gold": 0},
        {"context": "a", "continuation": ""},
        {"context": "a"},
        {"query": "a"},
        ["a"],
    ],
)
def test_items_of_another_form_are_refused_by_line(tmp_path, row):
    """A row that is no likelihood item is a UserError with file and line. The row before it is good and of its form."""
    path = tmp_path / "task.jsonl"
    good = (
        {"query": "a", "choices": ["b", "c"], "gold": 1} if "choices" in row else {"context": "a", "continuation": "b"}
    )
    path.write_text("\n".join(json.dumps(r) for r in (good, row)))
    with pytest.raises(UserError, match=f"{path}:2"):
        load_items(path)


def test_tasks_of_one_name_are_refused(tmp_path):
    """Two files that have one name up to the first dot would be one column of the record."""
    for name in ("arc.easy.jsonl", "arc.hard.jsonl"):
        (tmp_path / name).write_text('{"context": "He ate a", "continuation": "pear"}\n')
    with pytest.raises(UserError, match=r"two are called arc .* rename .*arc\.hard"):
        find_tasks("nowhere", tuple(str(tmp_path / name) for name in ("arc.easy.jsonl", "arc.hard.jsonl")))


def test_what_the_columns_say():
    """The lenient column names the k that it has; a box is one, whatever the grader takes for the answer."""
    rows = [judge_answers({"id": "a", "answer": "72"}, ["72", "\\boxed{72}", "\\boxed{72}", "no"], [True, True, False, True],
                          [1] * 4, "gsm8k", "wrong")]  # fmt: skip
    assert rows[0].counts["box"] == 1 and rows[0].counts["c"] == 2
    record = summary(rows, [4, 2])
    cells = evaluation.question_cells({**record, "shots": 0})
    assert cells["lenient@4"] == f"{100 * record['lenient']['pass@4']['mean']:.1f}" and "lenient@1" not in cells


def test_an_interval_of_many_questions_is_that_of_all_draws_at_once():
    """The draws are made in parts, so that 100,000 questions fit in memory: the same numbers."""
    values = np.random.default_rng(1).random(5000)
    draws = np.random.default_rng(3).integers(0, 5000, (2000, 5000))
    low, high = np.quantile(values[draws].mean(1), [0.025, 0.975])
    found = mean_interval(values, 3)
    assert (found["low"], found["high"]) == (low, high)


def test_a_field_without_a_value_is_none(tmp_path, tokenizer):
    """Rows of a table that has the columns of both forms are read by the fields that have a value."""
    cloze = {"context": "He ate a", "continuation": "pear"}
    choice = {"query": "Say", "choices": ["a", "b"], "gold": 1}
    for item, pairs in ((cloze, 1), (choice, 2)):
        path = tmp_path / f"{pairs}.jsonl"
        path.write_text(json.dumps(dict.fromkeys([*cloze, *choice]) | item) + "\n")
        assert load_items(path) == [item] and len(task_pairs(load_items(path), tokenizer)) == pairs


@pytest.mark.skipif(not REALDATA.exists(), reason="needs ../shared/realdata")
@pytest.mark.parametrize(
    ("file", "kind", "rows"),
    [
        ("hellaswag_val_3000.jsonl.gz", "choices", 3000),
        ("arc_easy.jsonl.gz", "choices", None),
        ("piqa.jsonl.gz", "choices", None),
        ("openbook_qa.jsonl", "choices", 500),
        ("lambada_openai.jsonl.gz", "continuation", 5153),
    ],
)
def test_real_tasks_load(file, kind, rows, tokenizer):
    """Published likelihood tasks are read whole, in one form, with texts that can be encoded."""
    ((name, items),) = find_tasks("nowhere", (str(REALDATA / file),)).items()
    assert name == file.split(".")[0]
    assert len(items) == rows if rows else len(items) > 500
    assert all(kind in item for item in items)
    if kind == "choices":
        golds = {item["gold"] for item in items}
        assert len(golds) == max(len(item["choices"]) for item in items)  # no choice is never right
    assert find_tasks("nowhere", (str(REALDATA / file),), limit=7)[name] == items[:7]


@pytest.mark.skipif(not REALDATA.exists(), reason="needs ../shared/realdata")
def test_real_questions_load():
    """GSM8K's test file as published: every row has an answer that its own solution gives."""
    questions = find_questions("nowhere", str(REALDATA / "gsm8k_test.jsonl.gz"), "test")
    assert len(questions) == 1319
    assert all(q["answer"].lstrip("-").replace(".", "").isdigit() and q["solutions"] for q in questions)
    assert find_questions("nowhere", str(REALDATA / "gsm8k_test.jsonl.gz"), "test", limit=3) == questions[:3]
    with pytest.raises(UserError, match="nothing_here"):
        find_questions("nowhere", "nothing_here", "test")
