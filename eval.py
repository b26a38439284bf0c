"""Evaluation: pass@k and majority vote on questions, likelihood tasks, bits per byte; or ask a checkpoint something.

    python eval.py --checkpoint out/pretrain/step_*.pt                     # the world's questions, tasks and text
    python eval.py --checkpoint out/pretrain/last.pt --ask "Tom has 12 pears. He buys 5 more. How many pears are there?"
    python eval.py --checkpoint out/pretrain/last.pt --ask "Tom has" --prompt none      # continues a text
    python eval.py --checkpoint M.pt --questions gsm8k_test.jsonl --examples gsm8k --tasks hellaswag.jsonl lambada.jsonl
    torchrun --nproc_per_node=8 eval.py --checkpoint M.pt --questions gsm8k --preset paper     # as the authors evaluate

Questions are answered n times each at temperature 0.6, top-p 0.95 (--samples 32, as in the paper) and judged twice:
*strict* counts only the last closed \\boxed{}, as the RL reward does (--grader gsm8k: the authors' lenient judge of
GSM8K instead); *lenient* also takes what a reader would take for the answer. The share of samples with a box stands
beside them, so that a gain in format is not taken for one in reasoning. Two measures tell skill from luck: *process*, a
right answer with every written equation true (the world's questions alone: verifier/process.py), and the *guess floor*,
pass@k of the same answers judged against the right answers of other questions. Base models are shown worked examples
(--shots auto), others none. Pass@k, majority vote and task accuracies have a bootstrap 95% interval over questions or
items. measures.py has the formulas, likelihood.py the tasks and the bits per byte.

For each checkpoint a record is written to RUN/eval/CHECKPOINT.json (per question: n, and how many were right, so that
every pass@k and interval can be computed again) and the samples to RUN/eval/CHECKPOINT.jsonl.gz, of which
`python -m tools.reader RECORD.json` makes a page to read them.
"""

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from checkpoint import load_checkpoint, load_model
from cli import UserError, cli, expand, given, printable, refuse_idle
from data.loader import Loader
from data.prompt import few_shot_prompt, fitting, left_out
from data.questions import find_questions, load_examples, what_to_expect
from data.tasks import check_pairs, find_tasks, task_pairs
from data.tokenizer import Tokenizer, default_new_tokens, load_tokenizer
from files import write_jsonl, write_text
from likelihood import bits_per_byte, evaluate_task, held_out_text, main_accuracy
from measures import Judged, judge_answers, summary
from model import GPT
from process import Process, end_process, start_process
from runtime import Run
from sampler import Continuation, SamplerConfig, sample
from verifier import GRADERS

SHADED = 4  # answers to each question that are written with the probabilities of their tokens
HELD_OUT_SAMPLES = 8  # answers to each question in an evaluation while training
HELD_OUT_TOKENS = 10_000  # of each source, for bits per byte there


@dataclass
class Config(SamplerConfig):
    """Evaluation: of what, and how"""

    checkpoint: tuple[str, ...] = ()  # one or more .pt files
    out: str = ""  # folder of records; empty: the folder eval/ beside the checkpoint
    data: str = "out/data"  # folder of data/prepare.py: names below are looked up in it
    # DATA/questions/NAME.jsonl, files, or the test sets of gsm8k and math on the hub (gsm8k:train: another split)
    questions: tuple[str, ...] = ("test_easy", "test_hard")
    # general capability: likelihood tasks (DATA/tasks/NAME.jsonl or files), and text: bits per byte of DATA's held-out
    # text; all: all of DATA; none
    tasks: tuple[str, ...] = ("all",)
    samples: int = 32  # samples per question
    k: tuple[int, ...] = (1, 8, 32)  # pass@k: any of --samples answers right in k; values above --samples are left out
    shots: str = "auto"  # worked examples in the prompt: a number, or auto: 8 for a base model, 0 after SFT or RL
    # worked examples: a file, or shipped ones: gsm8k, math, gsm8k_train (the authors', from GSM8K's training set);
    # empty: DATA/questions/examples.jsonl where it is there (the world has one), else gsm8k
    examples: str = ""
    # of a prompt with worked examples: the prompt that is trained on; or Question: ..., Answer: ... as the authors', in
    # GSM8K's form (answers after ####) or boxed (their MATH); none, beside --ask: its text as it is, to be continued
    prompt: Literal["plain", "question_answer", "question_answer_boxed", "none"] = "plain"
    # how the column `strict` finds an answer in the text: the last closed box; what a reader would take for the answer;
    # or as the authors judge GSM8K (first ####, else last box, else last number)
    grader: Literal["strict", "lenient", "gsm8k"] = "strict"
    # answers that were cut at max_new_tokens: wrong, as in the RL reward, or scored like others (the authors' code);
    # the column `lenient` always scores them
    truncated: Literal["wrong", "score"] = "wrong"
    temperature: float = 0.6  # temperature of sampling; 0: greedy
    top_p: float = 0.95  # sample from the most probable tokens whose probabilities add up to this
    max_new_tokens: int = 0  # longest response; 0: 64 with the world's tokenizer, else 512
    limit: int = 0  # use the first so many questions and items of each set; 0: all
    val_tokens: int = 50_000  # held-out tokens of each source for bits per byte
    seed: int = 0  # of sampling and of the bootstrap
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: cuda or mps where there is one, else cpu
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; auto: bf16 on CUDA
    overwrite: bool = False  # replace a record that is there; else a checkpoint that has one is refused
    # answer this one question, greedily unless --temperature is given, and stop; with --prompt none: continue this text
    ask: str = ""
    # paper: the authors' evaluation of GSM8K (docs/paper.md). difficulty: the pass rate of each training question over
    # 64 samples, to NAME.difficulty.json, which rl.py --difficulty takes. Flags beside it win
    preset: Literal["", "paper", "difficulty"] = ""

    def idle(self) -> dict[str, str]:
        if self.ask:
            acting = {"ask", "checkpoint", "preset", "shots", "grader", "temperature", "top_p", "max_new_tokens", "seed", "device",
                      "dtype"}  # fmt: skip
            of_examples = {"examples", "prompt", "data"}
            why = dict.fromkeys({f.name for f in fields(self)} - acting - of_examples, "beside --ask")
            if self.prompt == "none":
                return why | dict.fromkeys(("shots", "grader", "examples", "data"), "beside --prompt none")
            shown = self.preset or self.shots not in ("0", "auto")
            return (
                why if shown else why | dict.fromkeys(of_examples, "beside --ask without worked examples (--shots 8)")
            )
        idle = {}
        if not self.text:
            idle["val_tokens"] = "without text (--tasks)"
        if self.shots == "0":
            idle |= dict.fromkeys(("examples", "prompt"), "with --shots 0")
        if self.temperature == 0:
            idle["top_p"] = "at --temperature 0"
        return idle

    @property
    def text(self) -> bool:
        """Is bits per byte among --tasks?"""
        return bool({"text", "all"} & set(self.tasks))


PRESETS = {
    "paper": dict(
        samples=32, k=(1, 8, 32), temperature=0.6, top_p=0.95, max_new_tokens=1024, shots="auto", examples="gsm8k_train",
        prompt="question_answer", grader="gsm8k", truncated="score",
    ),
    "difficulty": dict(questions=("train",), tasks=("none",), samples=64, k=(1, 8, 32)),
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


def evaluate_questions(
    model: GPT,
    tokenizer: Tokenizer,
    questions: list[dict],
    process: Process,
    config: Config,
    examples: list[dict] | None = None,
    label: str = "questions",
) -> tuple[dict, list[dict]]:
    """Sample --samples answers to each question and judge them. Ranks share the questions.

    Args:
        config: how to sample and judge; its max_new_tokens is not 0. examples: worked examples; as many as fit are shown.

    Returns:
        The record {"n", "shots", "left_out" (ids of questions too long for the model), "temperature", "top_p",
        "max_new_tokens", and what `measures.summary` adds}, and one row per question with its samples.
    """
    context, n = model.config.context, config.samples
    kept, long = fitting(questions, tokenizer, context, config.max_new_tokens)
    questions = [question for question, _ in kept]
    room = context - config.max_new_tokens
    prompts, shots = build_prompts(questions, tokenizer, examples or [], room, config.prompt)

    def judged_answers(mine: list[int]) -> Iterator[Judged]:  # this rank's share of the questions
        no_bar = not process.main or None  # None: tqdm shows a bar only on a terminal
        with tqdm(total=len(mine) * n, desc=label, unit="row", disable=no_bar, leave=False, dynamic_ncols=True) as bar:
            sampled = sample(
                model, [prompts[i] for i in mine], n, stop=tokenizer.eos, max_new_tokens=config.max_new_tokens,
                temperature=config.temperature, top_p=config.top_p, seed=config.seed, kv_gib=config.kv_gib, numbers=mine,
                progress=bar.update, stopping=process.stopping,
            )  # fmt: skip
        for i, answers in zip(mine, sampled, strict=False):  # on a signal `sampled` is empty
            texts, finished = [tokenizer.decode(a.text_tokens) for a in answers], [a.finished for a in answers]
            lengths = [len(a.tokens) for a in answers]
            of_one = judge_answers(questions[i], texts, finished, lengths, config.grader, config.truncated)
            for answer, row in zip(answers[:SHADED], of_one.samples, strict=False):
                row |= probabilities(answer, tokenizer)
            yield of_one

    judged = process.spread(len(prompts), judged_answers)
    settings = {key: getattr(config, key) for key in ("temperature", "top_p", "max_new_tokens")}
    means = summary(judged, [k for k in config.k if k <= n], config.seed)
    rows = [
        {"id": q["id"], "question": q["question"], "answer": q["answer"], "samples": j.samples}
        for q, j in zip(questions, judged, strict=True)
    ]
    return {"n": n, "shots": shots, "left_out": long, **settings, **means}, rows


def probabilities(answer: Continuation, tokenizer: Tokenizer) -> dict[str, list]:
    """What tools/reader.py shades an answer by: p of each token at the sampling temperature, before top-p, to three
    digits, and where it ends in the text, in characters. Without the stop token."""
    tokens = answer.text_tokens
    p = np.exp(answer.log_probs[: len(tokens)].astype(np.float64))
    return {"p": p.round(3).tolist(), "ends": tokenizer.ends(tokens)}


def build_prompts(
    questions: list[dict], tokenizer: Tokenizer, examples: list[dict], room: int, form: str = "plain"
) -> tuple[list[list[int]], int]:
    """Prompts with as many of the worked examples as fit `room` tokens for every question; and how many those are."""
    for shots in range(len(examples), -1, -1):
        prompts = [few_shot_prompt(examples[:shots], q["question"], tokenizer, form) for q in questions]
        longest = max(map(len, prompts))
        if longest <= room:
            return prompts, shots
    raise UserError(
        f"the longest question has {longest} tokens and the model has room for {room} before the response: "
        "lower --max_new_tokens or use a model with a longer context"
    )


# ---------------------------------------------------------------------------------------------------------------------
# All that a model is evaluated on
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Evaluation:
    """What a model will be evaluated on, and how: read, and checked against the model, before anything is sampled."""

    config: Config  # with the longest response of this model
    questions: dict[str, list[dict]]  # name in the record → questions
    tasks: dict[str, list[dict]]  # name → likelihood items
    examples: list[dict]  # worked examples
    text: Loader | None  # held-out text in windows of this model
    notes: list[str]  # lines that say what will be left out

    def run(self, model: GPT, tokenizer: Tokenizer, process: Process, lineage: list[dict]) -> tuple[dict, list[dict]]:
        """The measured part of a record, {"questions": {name: ...}, "tasks": {name: ...}, "text": {source: ...}}, and
        all samples. lineage: of the model."""
        config, record, samples = self.config, {"questions": {}, "tasks": {}, "text": {}}, []
        for name, questions in self.questions.items():
            record["questions"][name], rows = evaluate_questions(
                model, tokenizer, questions, process, config, self.examples, name
            )
            samples += [{"set": name, **row} for row in rows]
        for name, items in self.tasks.items():
            record["tasks"][name] = evaluate_task(model, tokenizer, items, process, name, config.seed)
        apart = any(entry.get("args", {}).get("doc_mask") for entry in lineage)
        for source in self.text.sources if self.text else ():
            record["text"][source] = bits_per_byte(
                model, tokenizer, self.text, source, config.val_tokens, process, apart
            )
        return record, samples


def prepare(
    config: Config,
    questions: dict,
    tasks: dict,
    examples: list,
    of: str,
    tokenizer: Tokenizer,
    context: int,
    process: Process,
    texts: dict | None = None,
) -> Evaluation:
    """The evaluation of a model with this tokenizer and context. UserError for what it cannot be evaluated on.

    Args:
        questions, tasks: name in the record → questions, items. examples: worked examples, at most so many are shown.
        of: the model's name in messages. context: of the model, in tokens.
        texts: held-out text that was opened for other models, which then is not opened again.
    """
    new, notes = config.max_new_tokens or default_new_tokens(tokenizer), []
    for name, of_set in questions.items():
        _, long = fitting(of_set, tokenizer, context, new)
        if long:
            notes.append(f"{name}: {left_out(long, len(of_set), context, new)}")
    for name, items in tasks.items():
        check_pairs(task_pairs(items, tokenizer), context, name)
    text, short = None, []
    if config.text:
        texts, kind = {} if texts is None else texts, (tokenizer.name, context)
        if kind not in texts:
            texts[kind] = held_out_text(config.data, config.val_tokens, of, tokenizer, context, process)
        text, short = texts[kind]
    if short:
        notes.append(f"held-out text of {', '.join(short)} fills no window of {context + 1}: left out")
    return Evaluation(replace(config, max_new_tokens=new), questions, tasks, examples, text, notes)


def find_sets(config: Config) -> dict[str, list[dict]]:
    """Name in the record → questions, of --questions."""
    return {set_name(name): find_questions(config.data, name, "test", config.limit) for name in config.questions}


def set_name(questions: str) -> str:
    """gsm8k_test.jsonl.gz → gsm8k_test."""
    return Path(questions).name.split(".")[0]


def say(notes: list[str], process: Process) -> None:
    """To the user, each line once."""
    for note in dict.fromkeys(notes) if process.main else ():
        print(note, file=sys.stderr)


# ---------------------------------------------------------------------------------------------------------------------
# While a stage trains
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class HeldOut(SamplerConfig):
    """Evaluation while training: 0-shot, 8 answers to each held-out question"""

    # steps between evaluations; 0: none; -1: at the start and wherever a checkpoint is kept (--save_at)
    eval_every: int = 16
    eval_questions: str = "validation"  # held-out questions: DATA/questions/NAME.jsonl, or a file; none: none
    # general capability: likelihood tasks (names or files), and text: bits per byte of DATA's held-out text; all; none
    eval_tasks: tuple[str, ...] = ("all",)
    eval_limit: int = 128  # use the first so many questions, and items of each task; 0: all

    def idle(self) -> dict[str, str]:
        names = ("eval_questions", "eval_limit", "eval_tasks")
        return {} if self.eval_every else dict.fromkeys(names, "without evaluations (--eval_every 0)")


def make_evaluate(run: Run) -> Callable[[], dict[str, float]]:
    """A function that evaluates the model of a run as it is, prints a line and returns metrics (see `metrics`).

    What it needs is read here, once, so that a wrong flag fails before training; with --eval_every 0 it needs nothing.
    """
    stage, model, tokenizer, process = run.config, run.model, run.tokenizer, run.process
    if not stage.eval_every:
        return dict  # a function that returns {}: no metrics
    config = Config(
        data=stage.data,
        questions=() if stage.eval_questions in ("", "none") else (stage.eval_questions,),
        tasks=stage.eval_tasks,
        limit=stage.eval_limit,
        val_tokens=HELD_OUT_TOKENS,
        samples=HELD_OUT_SAMPLES,
        max_new_tokens=getattr(stage, "max_new_tokens", 0),
        grader=getattr(stage, "grader", "strict"),
        truncated=getattr(stage, "truncated", "wrong"),
        kv_gib=stage.kv_gib,
    )
    tasks = find_tasks(stage.data, stage.eval_tasks, stage.eval_limit)
    evaluation = prepare(
        config, find_sets(config), tasks, [], "the checkpoint", tokenizer, model.config.context, process
    )
    say(evaluation.notes, process)

    def evaluate_now() -> dict[str, float]:
        values = metrics(evaluation.run(model, tokenizer, process, run.lineage)[0])
        if process.main:
            shown = (
                f"{key} {value:.3f}" for key, value in values.items() if key.startswith(("val_pass", "task", "bpb"))
            )
            tqdm.write("  ".join([f"step {run.progress.step}", *shown]))
        return values

    return evaluate_now


def metrics(record: dict) -> dict[str, float]:
    """What a stage logs of an evaluation: val_pass@k, val_process@k (the world's questions), val_floor@k,
    val_lenient@1, val_box, task_NAME, bpb_SOURCE."""
    values = {}
    for of_set in record["questions"].values():  # k: "pass@1", "pass@8", ...; k[4:] is "@1", "@8"
        values |= {f"val_{k}": v["mean"] for k, v in of_set["strict"].items()}
        values |= {f"val_process{k[4:]}": v["mean"] for k, v in of_set.get("process", {}).items()}
        values |= {f"val_floor{k[4:]}": v for k, v in of_set.get("floor", {}).items()}
        values |= {"val_lenient@1": of_set["lenient"]["pass@1"]["mean"], "val_box": of_set["box"]}
    values |= {f"task_{name}": main_accuracy(task)["mean"] for name, task in record["tasks"].items()}
    return values | {f"bpb_{source}": text["bits_per_byte"] for source, text in record["text"].items()}


# ---------------------------------------------------------------------------------------------------------------------
# Tables
# ---------------------------------------------------------------------------------------------------------------------


def print_records(records: list[dict]) -> None:
    """A table for each set of questions and one for tasks and text, with a line per checkpoint."""
    paths = [Path(record["checkpoint"]) for record in records]
    same = len({path.stem for path in paths}) < len(paths)  # such as last.pt of several runs
    titles = [
        {"checkpoint": str(path.parent / path.stem) if same else path.stem, "M tokens": f"{record['tokens'] / 1e6:.2f}"}
        for path, record in zip(paths, records, strict=True)
    ]
    for name, first in records[0]["questions"].items():
        print(f"\n{name}: {len(first['questions'])} questions x {first['n']}, % [95% interval]")
        print_table(titles, [question_cells(record["questions"][name]) for record in records])
    general = [
        {f"{name} %": percent(main_accuracy(task)) for name, task in record["tasks"].items()}
        | {f"{source} bits/byte": f"{text['bits_per_byte']:.4f}" for source, text in record["text"].items()}
        for record in records
    ]
    if any(general):
        print()
        print_table(titles, general)


def question_cells(record: dict) -> dict[str, str]:
    """Column → cell, of one set of questions; process and floor at the least and at the largest k."""
    ks = list(record["strict"])  # "pass@1", "pass@8", ...
    ends = dict.fromkeys((ks[0], ks[-1]))
    cells = {"shots": str(record["shots"])} | {k: percent(record["strict"][k]) for k in ks}
    cells |= {"majority": percent(record["majority"])}
    if "process" in record:
        cells |= {f"process{k[4:]}": f"{100 * record['process'][k]['mean']:.1f}" for k in ends}
    if "floor" in record:
        cells |= {f"floor{k[4:]}": f"{100 * record['floor'][k]:.1f}" for k in ends}
    cells |= {f"lenient{ks[0][4:]}": f"{100 * record['lenient'][ks[0]]['mean']:.1f}"}
    return cells | {"box": f"{100 * record['box']:.1f}", "length": f"{record['tokens']:.1f}"}


def percent(x: dict) -> str:
    """A `mean_interval` as "12.5 [3.1, 25.0]"."""
    return f"{100 * x['mean']:.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"


def print_table(titles: list[dict[str, str]], values: list[dict[str, str]]) -> None:
    """A line of {column: cell} for each of `titles` with its `values`; "–" where one has no value. A column is as wide
    as its longest cell."""
    rows = [title | cells for title, cells in zip(titles, values, strict=True)]
    columns = list(dict.fromkeys(column for row in rows for column in row))
    lines = [columns, *([row.get(column, "–") for column in columns] for row in rows)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    for first, *cells in lines:
        print(first.ljust(widths[0]), *(c.rjust(width) for c, width in zip(cells, widths[1:], strict=True)), sep="  ")


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def main(config: Config) -> None:
    config.checkpoint = expand("--checkpoint", config.checkpoint)
    check(config)
    places = [] if config.ask else record_places(config)
    process = start_process(config.device, config.dtype, config.seed)
    if config.ask:
        if process.main:
            ask(config, process)
        return end_process()
    # Everything is read and checked, of all checkpoints, before anything is sampled
    evaluations = prepare_all(config, process)
    for folder, _ in places:
        folder.mkdir(parents=True, exist_ok=True)
    # One checkpoint after the other; its record is written before the next begins
    records = []
    for path, evaluation, (folder, name) in zip(config.checkpoint, evaluations, places, strict=True):
        checkpoint = load_checkpoint(path)
        model, tokenizer = load_model(checkpoint, process.device).eval(), load_tokenizer(checkpoint["tokenizer"])
        measured, samples = evaluation.run(model, tokenizer, process, checkpoint["lineage"])
        about = {key: checkpoint[key] for key in ("stage", "step", "tokens", "flops", "lineage", "tokenizer")}
        records.append({"checkpoint": path, **about, "settings": asdict(config), **measured})
        if process.main:
            refuse_overwriting(config, folder, name)  # again: another evaluation may have come in between
            write_jsonl(folder / f"{name}.jsonl.gz", samples)
            write_text(folder / f"{name}.json", json.dumps(records[-1]) + "\n")
            print(f"wrote {folder / name}.json")
    if process.main:
        print_records(records)
    end_process()


def check(config: Config) -> None:
    """UserError for flags that cannot work, whatever the checkpoints are."""
    refuse_idle(config)
    if not config.checkpoint:
        raise UserError("--checkpoint: name one or more .pt files")
    if config.prompt == "none" and not config.ask:
        raise UserError("--prompt none: goes with --ask TEXT, which the model then continues")
    if config.shots != "auto" and not config.shots.isdecimal():
        raise UserError(f"--shots {config.shots}: a number, or auto")
    if not config.k:
        raise UserError("--k: name one or more, such as 1 8 32")
    if not config.ask and config.samples < min(config.k):
        raise UserError(f"--samples {config.samples}: no pass@k of --k {config.k} can be computed from so few samples")
    names = [set_name(name) for name in config.questions]
    if len(set(names)) < len(names):
        raise UserError(f"--questions {' '.join(config.questions)}: two of them have the same name in the record")
    for path in config.checkpoint:
        if not Path(path).exists():
            raise UserError(f"{path}: no such checkpoint")


def record_places(config: Config) -> list[tuple[Path, str]]:
    """(folder, name) of each checkpoint's record. UserError if one is there already, or two would be the same."""
    places = []
    for path in map(Path, config.checkpoint):
        folder = Path(config.out) if config.out else path.parent / "eval"
        places.append((folder, path.stem + (".difficulty" if config.preset == "difficulty" else "")))
    for folder, name in places:
        refuse_overwriting(config, folder, name)
    if len(set(places)) < len(places):
        raise UserError("two checkpoints would write the same record: evaluate them into different --out folders")
    return places


def refuse_overwriting(config: Config, folder: Path, name: str) -> None:
    if (folder / f"{name}.json").exists() and not config.overwrite:
        raise UserError(f"{folder / name}.json exists: pass --overwrite, or another --out")


def prepare_all(config: Config, process: Process) -> list[Evaluation]:
    """Read all that the checkpoints are evaluated on, and check each of them against it."""
    # Of each checkpoint: tokenizer, context, number of worked examples
    known, tokens = [], []
    for path in config.checkpoint:
        checkpoint = load_checkpoint(path)
        shots = shots_for(config, checkpoint)
        known.append((path, load_tokenizer(checkpoint["tokenizer"]), checkpoint["config"]["context"], shots))
        tokens.append(checkpoint["tokens"])

    # The files are read once, for all checkpoints
    examples = find_examples(config, max(shots for *_, shots in known)) if config.questions else []
    questions, tasks = find_sets(config), find_tasks(config.data, config.tasks, config.limit)
    texts = {}
    evaluations = [
        prepare(config, questions, tasks, examples[:shots], path, tokenizer, context, process, texts)
        for path, tokenizer, context, shots in known
    ]
    expected = [line for of_set in questions.values() for line in what_to_expect(of_set, max(tokens))]
    no_text = config.text and all(e.text is None for e in evaluations)
    if no_text and "text" in config.tasks:
        raise UserError(
            f"--tasks text: {config.data} has no prepared text (SOURCE/meta.json, by python -m data.prepare)"
        )
    absent = ["likelihood tasks"] * ("all" in config.tasks and not tasks) + ["text"] * no_text
    if absent:
        expected.append(f"{config.data} has no {' and no '.join(absent)}: not measured")
    say([*expected, *(note for e in evaluations for note in e.notes)], process)
    return evaluations


def shots_for(config: Config, checkpoint: dict) -> int:
    """--shots of a checkpoint; auto: 8 if it has only been pretrained."""
    if config.shots != "auto":
        return int(config.shots)
    return 8 if all(entry["stage"] == "pretrain" for entry in checkpoint["lineage"]) else 0


def find_examples(config: Config, n: int) -> list[dict]:
    """The first n worked examples of --examples; where it is empty, DATA's own, or else the shipped ones of GSM8K's kind."""
    own = Path(config.data) / "questions" / "examples.jsonl"
    return load_examples(config.examples or (own if own.exists() else "gsm8k"), n) if n else []


def ask(config: Config, process: Process) -> None:
    """Print what each checkpoint answers to one question, or how it continues a text (--prompt none): greedily and
    without worked examples, unless a flag or --preset says otherwise."""
    chosen = given(config) | PRESETS.get(config.preset, {}).keys()  # flags that the user set
    for path in config.checkpoint:
        checkpoint = load_checkpoint(path)
        tokenizer = load_tokenizer(checkpoint["tokenizer"])
        model = load_model(checkpoint, process.device).eval()
        new = config.max_new_tokens or default_new_tokens(tokenizer)
        shown = "shots" in chosen and config.prompt != "none"
        examples = find_examples(config, shots_for(config, checkpoint) if shown else 0)
        room = model.config.context - new
        prompts, shots = build_prompts([{"question": config.ask}], tokenizer, examples, room, config.prompt)
        with process.autocast():
            ((answer,),) = sample(
                model, prompts, 1, stop=tokenizer.eos, max_new_tokens=new, seed=config.seed, top_p=config.top_p,
                temperature=config.temperature if "temperature" in chosen else 0.0,
            )  # fmt: skip
        text = printable(tokenizer.decode(answer.text_tokens))
        cut = "" if answer.finished else " (cut at --max_new_tokens)"
        if config.prompt == "none":
            print(f"{path}:\n" * (len(config.checkpoint) > 1) + f"{config.ask}{text}{cut}")
            continue
        # What a grader finds in the text; the right answer ("") is not known here
        said = GRADERS[config.grader if "grader" in chosen else "lenient"](text, "").answer
        title = f"{path}, {shots} worked examples:\n" if examples or len(config.checkpoint) > 1 else ""
        print(f"{title}{text}\n\nanswer: {said}{cut}")


if __name__ == "__main__":
    cli(main, Config, PRESETS)
