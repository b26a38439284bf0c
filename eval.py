"""Evaluation: pass@k and majority vote on questions, likelihood tasks, bits per byte; or ask a checkpoint something.

    python eval.py --checkpoint out/pretrain/step_*.pt                     # the world's questions, tasks and text
    python eval.py --checkpoint out/pretrain/last.pt --ask "Tom has 12 pears. He buys 5 more. How many pears are there?"
    python eval.py --checkpoint M.pt --questions gsm8k_test.jsonl --examples gsm8k --tasks hellaswag.jsonl lambada.jsonl
    torchrun --nproc_per_node=8 eval.py --checkpoint M.pt --questions gsm8k --preset paper     # as the authors evaluate

Questions are answered n times each at temperature 0.6, top-p 0.95 (--samples 32, as in the paper) and judged twice: *strict*
counts only the last closed \\boxed{}, as the RL reward does (--grader gsm8k: the authors' lenient judge of GSM8K instead);
*lenient* also takes what a reader would take for the answer. The share of samples with a box stands beside them, so that a
gain in format is not taken for one in reasoning. Two measures tell skill from luck: *process*, a right answer with every
written equation true (the world's questions alone: verifier/process.py), and the *guess floor*, pass@k of the same answers judged
against the right answers of other questions. Base models are shown worked examples (--shots auto), others none. Every mean
has a bootstrap 95% interval over questions.

For each checkpoint a record is written to RUN/eval/CHECKPOINT.json (per question: n, and how many were right, so that
every pass@k and interval can be computed again) and the samples to RUN/eval/CHECKPOINT.jsonl.gz.

Sources: pass@k is the unbiased estimator of arXiv 2107.03374 §2.1; length-normalised accuracy divides a choice's
log-likelihood by its characters, the space before it not counted, as lm-evaluation-harness's acc_norm does.
"""

import json
import math
import sys
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from tqdm import tqdm

import kernels
from cli import UserError, cli, expand, given, refuse_idle
from data.loader import Loader
from data.prompt import few_shot_prompt, fitting, left_out
from data.questions import HUB_QUESTIONS, find_questions, load_examples
from data.tasks import check_pairs, find_tasks, task_pairs
from data.tokenizer import Tokenizer, default_new_tokens, load_tokenizer
from files import write_jsonl, write_text
from measures import entropy, guess_floor, majority_vote, mean_interval, pass_at_k
from model import GPT
from runtime import Process, end_process, load_checkpoint, load_model, start_process
from sampler import Continuation, SamplerConfig, sample, sample_over_ranks
from verifier import GRADERS, canonical, extract_answer, judge
from verifier.process import equations, sound

BATCH_TOKENS = 8192  # in one forward pass of a likelihood task


@dataclass
class Config(SamplerConfig):
    """Flags of eval.py."""

    checkpoint: tuple[str, ...] = ()  # one or more .pt files
    data: str = "out/data"  # folder of data/prepare.py: names below are looked up in it
    questions: tuple[str, ...] = ("test_easy", "test_hard")  # DATA/questions/NAME.jsonl, files, or gsm8k, math (hub)
    split: str = "test"  # of a hub data set
    tasks: tuple[str, ...] = ("all",)  # likelihood tasks: DATA/tasks/NAME.jsonl or files; all: every one of DATA
    text: tuple[str, ...] = ("all",)  # sources of DATA for bits per byte on held-out text; all: every one
    samples: int = 32  # samples per question
    k: tuple[int, ...] = (1, 8, 32)  # pass@k; those above --samples are left out
    shots: str = "auto"  # worked examples in the prompt: a number, or auto: 8 for a base model, 0 after SFT or RL
    # worked examples: a file, or shipped ones: gsm8k, math, gsm8k_train (the authors', from GSM8K's training set);
    # empty: DATA/questions/examples.jsonl
    examples: str = ""
    # of a prompt with worked examples: the prompt that is trained on; or Question: ..., Answer: ... as the authors', in
    # GSM8K's form (answers after ####) or boxed (their MATH)
    prompt: Literal["plain", "question_answer", "question_answer_boxed"] = "plain"
    # who judges `strict`: the last closed box; what a reader would take for the answer; or as the authors judge GSM8K
    # (first ####, else last box, else last number)
    grader: Literal["strict", "lenient", "gsm8k"] = "strict"
    # answers cut at the longest length, without a stop token: wrong, as in the RL reward, or scored like others (the
    # authors'); "lenient" scores them always
    truncated: Literal["wrong", "score"] = "wrong"
    temperature: float = 0.6  # of sampling; 0 is greedy
    top_p: float = 0.95  # of sampling
    max_new_tokens: int = 0  # longest response; 0: 64 with the world's tokenizer, else 512
    limit: int = 0  # use the first so many questions and items of each set; 0: all
    val_tokens: int = 50_000  # held-out tokens per source for bits per byte
    seq_len: int = 0  # window for bits per byte; 0: the model's context
    seed: int = 0  # of sampling and of the bootstrap
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"  # auto: cuda or mps where there is one, else cpu
    dtype: Literal["auto", "fp32", "bf16"] = "auto"  # of matrix products; auto: bf16 on CUDA
    kernels: Literal["auto", "triton", "torch"] = "auto"  # for attention and log-prob; auto: triton on CUDA
    out: str = ""  # where records go; empty: the folder eval/ beside the checkpoint
    overwrite: bool = False  # replace a record that is there; else a checkpoint that has one is refused
    # only the pass rate of each training question over 64 samples, to NAME.difficulty.json
    # (rl.py --difficulty takes it); --questions, --tasks, --text, --samples and --k are set for that
    difficulty: bool = False
    ask: str = ""  # answer this one question (greedily unless --temperature is given) and stop
    preset: Literal["", "paper"] = ""  # the authors' evaluation of GSM8K (docs/paper.md); flags beside it win


PRESETS = {
    "paper": dict(
        samples=32, k=(1, 8, 32), temperature=0.6, top_p=0.95, max_new_tokens=1024, shots="auto", examples="gsm8k_train",
        prompt="question_answer", grader="gsm8k", truncated="score",
    )
}  # fmt: skip


# ---------------------------------------------------------------------------------------------------------------------
# Questions
# ---------------------------------------------------------------------------------------------------------------------


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


def evaluate_questions(
    model: GPT,
    tokenizer: Tokenizer,
    questions: list[dict],
    process: Process,
    *,
    n: int,
    ks: tuple[int, ...],
    max_new_tokens: int,
    temperature: float = 0.6,
    top_p: float = 0.95,
    examples: list[dict] | None = None,
    prompt: str = "plain",
    grader: str = "strict",
    truncated: str = "wrong",
    seed: int = 0,
    kv_gib: float = 4.0,
    label: str = "questions",
) -> tuple[dict, list[dict]]:
    """Sample n answers to each question and judge them. Ranks share the questions.

    Returns:
        The record {"n", "shots", "left_out" (ids of questions too long for the model), "strict": {"pass@1": {"mean",
        "low", "high"}, ...}, "lenient": {...}, "process": {...},
        "floor": {"pass@1": mean, ...}, "entropy": {"answers", "paths"}, "majority", "box", "finished", "tokens" (mean
        response length), "questions": [{"id", "n", "c", "c_lenient", "c_process", "floor", "h_answers", "h_paths", ...}]},
        and one row per question with its samples. Means are over questions.

        "process" (right, and every written equation true) and the entropy of solution paths (the equations, whatever the
        words) are there only if every question is the world's; "floor" (`guess_floor`, of the strict answers) if there
        are two questions. Entropies are in nats over a question's n samples; to have no answer is one more answer.
    """
    room = model.config.context - max_new_tokens
    kept, long = fitting(questions, tokenizer, model.config.context, max_new_tokens)
    questions = [question for question, _ in kept]
    prompts, shots = build_prompts(questions, tokenizer, examples or [], room, prompt)
    rows = sample_over_ranks(
        model,
        prompts,
        n,
        process,
        lambda i, answers: _judge(questions[i], answers, tokenizer, grader, truncated),
        label=label,
        stop=tokenizer.eos,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_p=top_p,
        seed=seed,
        kv_gib=kv_gib,
    )
    c = {"strict": np.array([r["c"] for r in rows]), "lenient": np.array([r["c_lenient"] for r in rows])}
    record = {
        "n": n,
        "shots": shots,
        "left_out": long,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
    }
    for kind, right in c.items():
        record[kind] = {f"pass@{k}": mean_interval(pass_at_k(n, right, k), seed) for k in ks if k <= n}
    if all("c_process" in r for r in rows):
        right = np.array([r["c_process"] for r in rows])
        record["process"] = {k: mean_interval(pass_at_k(n, right, int(k[5:])), seed) for k in record["strict"]}
    answers = [r.pop("answers") for r in rows]
    if len(rows) > 1:
        gold = [canonical(q["answer"]) for q in questions]
        floors = {k: guess_floor(answers, gold, int(k[5:])) for k in record["strict"]}
        record["floor"] = {k: float(values.mean()) for k, values in floors.items()}
        for i, r in enumerate(rows):
            r["floor"] = {k: float(values[i]) for k, values in floors.items()}
    record["entropy"] = {
        kind: float(np.mean([r[f"h_{kind}"] for r in rows]))
        for kind in ("answers", "paths")
        if all(f"h_{kind}" in r for r in rows)
    }
    record["majority"] = mean_interval(np.array([r["majority"] for r in rows]), seed)
    for share in ("box", "finished", "tokens"):
        record[share] = float(np.mean([r[share] for r in rows]) / n)
    record["questions"] = [{key: value for key, value in r.items() if key != "samples"} for r in rows]
    return record, [{"id": r["id"], "question": q["question"], "answer": q["answer"], "samples": r["samples"]}
                    for r, q in zip(rows, questions, strict=True)]  # fmt: skip


def _judge(question: dict, answers: list[Continuation], tokenizer: Tokenizer, grader: str, truncated: str) -> dict:
    """Counts over the n sampled answers to one question."""
    n, texts = len(answers), [tokenizer.decode(a.text_tokens) for a in answers]
    finished = [a.finished for a in answers]
    verdicts = [judge(t, question["answer"], f, grader, truncated) for t, f in zip(texts, finished, strict=True)]
    strict, marks = zip(*verdicts, strict=True)
    vote = majority_vote(strict)
    values = [a if a is None else canonical(a) for a in strict]
    process, judged = {}, [{"text": text, "right": ok} for text, ok in zip(texts, marks, strict=True)]
    if question.get("source") == "world":  # whose solutions have their arithmetic written out
        paths = [equations(text) for text in texts]
        for sample_, path in zip(judged, paths, strict=True):
            sample_["process"] = sample_["right"] and sound(path)
        process = {"c_process": sum(s["process"] for s in judged), "h_paths": entropy([" ".join(p) for p in paths])}
    return {
        "id": question["id"],
        **{key: question[key] for key in ("facts",) if key in question},
        "n": n,
        "c": sum(marks),
        "c_lenient": sum(GRADERS["lenient"](text, question["answer"]).right for text in texts),
        **process,
        "h_answers": entropy(values),
        "box": sum(a is not None for a in strict),
        "majority": float(vote is not None and marks[strict.index(vote)]),
        "finished": sum(finished),
        "tokens": sum(len(a.tokens) for a in answers),
        "answers": values,
        "samples": judged,
    }


# ---------------------------------------------------------------------------------------------------------------------
# Likelihood: multiple choice, cloze, held-out text
# ---------------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def continuation_log_probs(
    model: GPT, pairs: list[tuple[list[int], list[int]]], process: Process, label: str = "likelihood"
) -> list[tuple[float, bool]]:
    """For each (context, continuation) in token ids: log p(continuation | context) in nats, and whether every token of
    it is the most probable one. A context that does not fit the model's is cut from the left. Ranks share the pairs."""
    limit, device = model.config.context, model.head.weight.device
    check_pairs(pairs, limit, label)
    order = sorted(range(len(pairs)), key=lambda i: -sum(map(len, pairs[i])))[process.rank :: process.world]
    results: dict[int, tuple[float, bool]] = {}
    bar = tqdm(total=len(order), desc=label, unit="item", disable=not process.main or None, leave=False)
    start = 0
    while start < len(order) and not process.stopping():
        width = min(limit + 1, sum(map(len, pairs[order[start]])))
        batch = order[start : start + max(1, BATCH_TOKENS // width)]
        start += len(batch)
        tokens = np.zeros((len(batch), width), dtype=np.int64)
        row, column, last = [], [], []  # of the hidden states that predict continuation tokens
        for b, i in enumerate(batch):
            context, continuation = pairs[i]
            both = (context + continuation)[-(limit + 1) :]
            tokens[b, : len(both)] = both
            columns = range(len(both) - len(continuation) - 1, len(both) - 1)
            row += [b] * len(columns)
            column += columns
            last.append(len(row))
        tokens, row, column = (torch.from_numpy(np.asarray(x)).to(device) for x in (tokens, row, column))
        with process.autocast():
            hidden = model(tokens[:, :-1])[row, column]
            targets = tokens[row, column + 1]
            log_p = kernels.linear_log_prob(hidden, model.head.weight, targets).log_prob
            greedy = torch.cat([model.logits(h).argmax(-1) for h in hidden.split(512)]) == targets
        for i, a, b in zip(batch, [0, *last], last, strict=False):
            results[i] = (log_p[a:b].sum().item(), bool(greedy[a:b].all()))
        bar.update(len(batch))
    bar.close()
    merged = {i: r for share in process.gather(results) for i, r in share.items()}
    return [merged[i] for i in range(len(pairs))]


def evaluate_task(model: GPT, tokenizer: Tokenizer, items: list[dict], process: Process, label: str, seed=0) -> dict:
    """A likelihood task, each value with its interval.

    Multiple choice ({"query", "choices", "gold"}): "accuracy" by log-likelihood and "accuracy_norm" by log-likelihood
    per character. Cloze ({"context", "continuation"}): "accuracy" that the continuation is what greedy decoding gives, and
    "log_prob" in nats. "items" has one 0/1 per item, of accuracy_norm or accuracy.
    """
    results = continuation_log_probs(model, task_pairs(items, tokenizer), process, label)
    if "choices" in items[0]:
        log_p = np.array([r[0] for r in results])
        size = np.array([len(choice.strip()) for item in items for choice in item["choices"]])
        ends = np.cumsum([len(item["choices"]) for item in items])[:-1]
        gold = [item["gold"] for item in items]
        plain, norm = (
            np.array([s.argmax() == g for s, g in zip(np.split(score, ends), gold, strict=True)], dtype=float)
            for score in (log_p, log_p / size)
        )
        record = {"accuracy": mean_interval(plain, seed), "accuracy_norm": mean_interval(norm, seed)}
        return {**record, "items": norm.astype(int).tolist()}
    right = np.array([r[1] for r in results], dtype=float)
    record = {"accuracy": mean_interval(right, seed), "log_prob": mean_interval([r[0] for r in results], seed)}
    return {**record, "items": right.astype(int).tolist()}


@torch.no_grad()
def bits_per_byte(
    model: GPT, tokenizer: Tokenizer, loader: Loader, source: str, n_tokens: int, process: Process
) -> dict:
    """Held-out text of a source: {"bits_per_byte", "loss" (nats a token), "tokens"}. Ranks share the batches."""
    nats = tokens = size = 0.0
    token_bytes = torch.from_numpy(tokenizer.token_bytes)
    rows = max(1, BATCH_TOKENS // loader.seq_len)
    for i, batch in process.unless_stopping(enumerate(loader.val_batches(source, rows, n_tokens))):
        if i % process.world != process.rank:
            continue
        batch = torch.from_numpy(batch)
        targets = batch[:, 1:].flatten()
        with process.autocast():
            hidden = model(batch[:, :-1].to(process.device)).flatten(0, 1)
            log_p = kernels.linear_log_prob(hidden, model.head.weight, targets.to(process.device)).log_prob
        nats -= log_p.cpu().double().sum().item()  # there is no fp64 on an MPS device
        tokens += targets.numel()
        size += token_bytes[targets].sum().item()
    nats, tokens, size = process.sum([nats, tokens, size])
    return {"bits_per_byte": nats / math.log(2) / size, "loss": nats / tokens, "tokens": int(tokens)}


# ---------------------------------------------------------------------------------------------------------------------
# What an evaluation reads
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class Material:
    """All that an evaluation reads apart from models: read, and checked against a model, before anything is sampled."""

    questions: dict[str, list[dict]]  # label → questions
    tasks: dict[str, list[dict]]  # name → likelihood items
    data: str  # the folder whose held-out text is measured; empty: none
    sources: tuple[str, ...] = ("all",)  # of it
    said: set[str] = field(default_factory=set)

    def check(
        self,
        of: str,
        tokenizer: Tokenizer,
        context: int,
        new_tokens: int,
        val_tokens: int,
        process: Process,
        seq_len: int = 0,
    ) -> Loader | None:
        """UserError for what a model of this tokenizer and context cannot be evaluated on; questions that are too long
        are named, since they will be left out. Returns the loader of the text, its `sources` those to be measured.

        Args:
            of: the model's name in messages. seq_len: window of the text; 0: `context`.
        """
        for label, questions in self.questions.items():
            _, long = fitting(questions, tokenizer, context, new_tokens)
            if long:
                self.say(process, f"{label}: {left_out(long, len(questions), context, new_tokens)}")
        for name, items in self.tasks.items():
            check_pairs(task_pairs(items, tokenizer), context, name)
        everything = "all" in self.sources
        if not self.data or not self.sources or (everything and not any(Path(self.data).glob("*/meta.json"))):
            return None
        if seq_len > context:
            raise UserError(f"--seq_len {seq_len} exceeds the context of {of}, {context}")
        loader = Loader(self.data, None, 1, seq_len or context, seed=0)
        if loader.tokenizer != tokenizer.name:
            raise UserError(
                f"{self.data} is tokenized with {loader.tokenizer!r}, {of} with {tokenizer.name!r}: "
                "pass the --data of this model, or measure no text (--text or --eval_tokens 0)"
            )
        loader.verify(process, ("val",))
        short = [name for name, source in loader.sources.items() if not source.val.windows(loader.seq_len)]
        if everything and short:
            self.say(process, f"held-out text of {', '.join(short)} fills no window of {loader.seq_len + 1}: left out")
        for source in [s for s in loader.sources if s not in short] if everything else self.sources:
            for _ in loader.val_batches(source, 64, val_tokens):  # reads what will be measured
                pass
        chosen = set(loader.sources) - set(short) if everything else self.sources
        loader.sources = {name: source for name, source in loader.sources.items() if name in chosen}
        return loader

    def say(self, process: Process, text: str) -> None:
        """To the user, once."""
        if process.main and text not in self.said:
            print(text, file=sys.stderr)
        self.said.add(text)


# ---------------------------------------------------------------------------------------------------------------------
# While a stage trains
# ---------------------------------------------------------------------------------------------------------------------


@dataclass
class HeldOut(SamplerConfig):
    """Flags of the evaluation that sft.py, rl.py and average.py make at intervals: 0-shot, strict, on validation data."""

    # steps between evaluations; 0: none; -1: at the start and wherever a checkpoint is kept (--save_at)
    eval_every: int = 16
    eval_questions: str = "validation"  # DATA/questions/NAME.jsonl, or a file; empty: none
    eval_limit: int = 128  # use the first so many of these questions; 0: all
    eval_samples: int = 8  # samples per question
    eval_tasks: tuple[str, ...] = ("all",)  # likelihood tasks (general capability): names, files, or all of DATA
    eval_items: int = 128  # use the first so many items of each
    eval_tokens: int = 10_000  # held-out tokens of each of DATA's sources for bits per byte; 0: none

    def idle(self) -> dict[str, str]:
        """Flag → why it has no effect (see cli.refuse_idle)."""
        idle = {}
        if not self.eval_every:
            names = ("questions", "limit", "samples", "tasks", "items", "tokens")
            idle |= {f"eval_{name}": "without evaluations (--eval_every 0)" for name in names}
        if not self.eval_questions:
            idle |= dict.fromkeys(("eval_limit", "eval_samples"), "without questions (--eval_questions)")
        if not self.eval_tasks:
            idle["eval_items"] = "without tasks (--eval_tasks)"
        return idle


def held_out(config: HeldOut, data: str, model: GPT, tokenizer: Tokenizer, process: Process):
    """A function without arguments that evaluates `model` as it is and returns metrics: val_pass@k, val_process@k (the
    world's questions), val_floor@k, val_lenient@1, val_box, task_NAME, bpb_NAME. What it needs is read here, once, so that a
    wrong flag fails before training; with --eval_every 0 it needs nothing."""
    if not config.eval_every:
        return dict
    name = config.eval_questions
    material = Material(
        {"held out": find_questions(data, name, "test", config.eval_limit)} if name else {},
        find_tasks(data, config.eval_tasks, config.eval_items) if Path(data, "tasks").is_dir() else {},
        data if config.eval_tokens else "",
    )
    new = getattr(config, "max_new_tokens", 0) or default_new_tokens(tokenizer)
    loader = material.check("the checkpoint", tokenizer, model.config.context, new, config.eval_tokens, process)

    def evaluate() -> dict[str, float]:
        values = {}
        for questions in material.questions.values():
            record, _ = evaluate_questions(
                model,
                tokenizer,
                questions,
                process,
                n=config.eval_samples,
                ks=(1, 8, 32),
                kv_gib=config.kv_gib,
                max_new_tokens=new,
                grader=getattr(config, "grader", "strict"),
                truncated=getattr(config, "truncated", "wrong"),
                label="held out",
            )
            values = {f"val_{k}": v["mean"] for k, v in record["strict"].items()}
            values |= {f"val_process{k[4:]}": v["mean"] for k, v in record.get("process", {}).items()}
            values |= {f"val_floor{k[4:]}": v for k, v in record.get("floor", {}).items()}
            values |= {"val_lenient@1": record["lenient"]["pass@1"]["mean"], "val_box": record["box"]}
        for name, items in material.tasks.items():
            values[f"task_{name}"] = main_accuracy(evaluate_task(model, tokenizer, items, process, name))["mean"]
        for name in loader.sources if loader else ():
            result = bits_per_byte(model, tokenizer, loader, name, config.eval_tokens, process)
            values[f"bpb_{name}"] = result["bits_per_byte"]
        return values

    return evaluate


# ---------------------------------------------------------------------------------------------------------------------
# The command
# ---------------------------------------------------------------------------------------------------------------------


def is_base(checkpoint: dict) -> bool:
    """Has the model only been pretrained?"""
    return all(entry["stage"] == "pretrain" for entry in checkpoint["lineage"])


@dataclass
class Job:
    """A checkpoint to evaluate, checked against what is read for all of them."""

    path: str
    shots: int
    new_tokens: int
    loader: Loader | None


def prepare(config: Config, process: Process) -> tuple[Material, list[dict], list[Job]]:
    """Read and check everything that the evaluation of all checkpoints needs: (material, worked examples, jobs)."""
    heads = []
    for path in config.checkpoint:
        checkpoint = load_checkpoint(path)
        shots = 8 if config.shots == "auto" and is_base(checkpoint) else int(config.shots.replace("auto", "0"))
        heads.append((path, load_tokenizer(checkpoint["tokenizer"]), checkpoint["config"]["context"], shots))
    most, examples = max(shots for *_, shots in heads), []
    if most and config.questions:
        examples = load_examples(config.examples or Path(config.data) / "questions" / "examples.jsonl", most)
    labels = [Path(name).name.split(".")[0] for name in config.questions]
    if len(set(labels)) < len(labels):
        raise UserError(f"--questions {' '.join(config.questions)}: two of them have the same name in the record")
    questions = (find_questions(config.data, name, config.split, config.limit) for name in config.questions)
    material = Material(
        dict(zip(labels, questions, strict=True)),
        find_tasks(config.data, config.tasks, config.limit),
        config.data,
        config.text,
    )
    jobs = []
    for path, tokenizer, context, shots in heads:
        new = config.max_new_tokens or default_new_tokens(tokenizer)
        loader = material.check(path, tokenizer, context, new, config.val_tokens, process, config.seq_len)
        jobs.append(Job(path, shots, new, loader))
    return material, examples, jobs


def evaluate_checkpoint(
    config: Config, job: Job, material: Material, examples: list[dict], process: Process
) -> tuple[dict, list[dict]]:
    """The whole record of one checkpoint, and its samples."""
    path = job.path
    checkpoint = load_checkpoint(path)
    tokenizer = load_tokenizer(checkpoint["tokenizer"])
    model = load_model(checkpoint, process.device).eval()
    record = {
        "checkpoint": str(path),
        **{key: checkpoint[key] for key in ("stage", "step", "tokens", "flops", "lineage", "tokenizer")},
        "settings": asdict(config),
        "questions": {},
        "tasks": {},
        "text": {},
    }
    samples = []
    for label, questions in material.questions.items():
        record["questions"][label], rows = evaluate_questions(
            model,
            tokenizer,
            questions,
            process,
            n=config.samples,
            ks=config.k,
            max_new_tokens=job.new_tokens,
            temperature=config.temperature,
            top_p=config.top_p,
            examples=examples[: job.shots],
            prompt=config.prompt,
            grader=config.grader,
            truncated=config.truncated,
            seed=config.seed,
            kv_gib=config.kv_gib,
            label=label,
        )
        samples += [{"set": label, **row} for row in rows]
    for name, items in material.tasks.items():
        record["tasks"][name] = evaluate_task(model, tokenizer, items, process, name, config.seed)
    for source in job.loader.sources if job.loader else ():
        record["text"][source] = bits_per_byte(model, tokenizer, job.loader, source, config.val_tokens, process)
    return record, samples


def save_record(record: dict, samples: list[dict], folder: Path, name: str) -> Path:
    """Write FOLDER/NAME.json and FOLDER/NAME.jsonl.gz."""
    write_jsonl(folder / f"{name}.jsonl.gz", samples)
    write_text(folder / f"{name}.json", json.dumps(record) + "\n")
    return folder / f"{name}.json"


def print_table(records: list[dict]) -> None:
    """One line per checkpoint and set of questions, then likelihood tasks and text."""

    def percent(x):
        return f"{100 * x['mean']:5.1f} [{100 * x['low']:.1f}, {100 * x['high']:.1f}]"

    for name in records[0]["questions"]:
        rows = [(r, r["questions"][name]) for r in records]
        ks = list(rows[0][1]["strict"])
        print(f"\n{name}: {len(rows[0][1]['questions'])} questions x {rows[0][1]['n']}, % [95% interval]")
        print(f"{'checkpoint':<24}{'M tokens':>9}{'shots':>6}", *(f"{k:>20}" for k in ks), f"{'majority':>20}", end="")
        more = ["process"] * ("process" in rows[0][1]) + ["floor"] * ("floor" in rows[0][1])
        luck = [(kind, k) for kind in more for k in dict.fromkeys((ks[0], ks[-1]))]  # "process@32", "floor@32"
        print(*(f"{kind + k[4:]:>11}" for kind, k in luck), f"{'lenient@1':>10}{'box':>7}{'length':>8}")
        for r, q in rows:
            print(f"{Path(r['checkpoint']).stem:<24}{r['tokens'] / 1e6:>9.2f}{q['shots']:>6}", end=" ")
            print(*(f"{percent(q['strict'][k]):>20}" for k in ks), f"{percent(q['majority']):>20}", end="")
            shares = {"process": {k: v["mean"] for k, v in q.get("process", {}).items()}, "floor": q.get("floor", {})}
            values = (shares[kind].get(k, math.nan) for kind, k in luck)  # fewer questions may fit a shorter context
            print(*(f"{100 * value:>11.1f}" for value in values), end=" ")
            print(f"{100 * q['lenient'][ks[0]]['mean']:>10.1f}{100 * q['box']:>7.1f}{q['tokens']:>8.1f}")
    columns = [(f"{t} %", "tasks", t) for t in records[0]["tasks"]]
    sources = dict.fromkeys(s for r in records for s in r["text"])  # a long context may leave out a short one
    columns += [(f"{s} bits/byte", "text", s) for s in sources]
    if columns:
        print(f"\n{'checkpoint':<24}{'M tokens':>9}", *(f"{title:>24}" for title, _, _ in columns))
    for r in records if columns else ():
        print(f"{Path(r['checkpoint']).stem:<24}{r['tokens'] / 1e6:>9.2f}", end=" ")
        cells = []
        for _, kind, name in columns:
            value = r[kind].get(name)
            if value is None:
                cells.append("–")
            else:
                cells.append(f"{value['bits_per_byte']:.4f}" if kind == "text" else percent(main_accuracy(value)))
        print(*(f"{cell:>24}" for cell in cells))


def main_accuracy(task: dict) -> dict:
    """The accuracy that the paper reports of a task: length-normalised where there are choices."""
    return task.get("accuracy_norm", task["accuracy"])


def ask(config: Config, process: Process) -> None:
    """Answer one question and print what a person would want to see."""
    checkpoint = load_checkpoint(config.checkpoint[0])
    tokenizer = load_tokenizer(checkpoint["tokenizer"])
    model = load_model(checkpoint, process.device).eval()
    new = config.max_new_tokens or default_new_tokens(tokenizer)
    prompts, _ = build_prompts([{"question": config.ask}], tokenizer, [], model.config.context - new)
    temperature = config.temperature if "temperature" in given(config) else 0.0
    with process.autocast():
        ((answer,),) = sample(
            model, prompts, 1, stop=tokenizer.eos, max_new_tokens=new, temperature=temperature, top_p=config.top_p,
            seed=config.seed,
        )  # fmt: skip
    text = tokenizer.decode(answer.text_tokens)
    print(f"{text}\n\nanswer: {extract_answer(text)}" + ("" if answer.finished else " (cut at --max_new_tokens)"))


def idle(config: Config) -> dict[str, str]:
    """Flag → why it has no effect beside the others (see cli.refuse_idle)."""
    names = {f.name for f in fields(config)}
    if config.ask:
        acting = {"ask", "checkpoint", "temperature", "top_p", "max_new_tokens", "seed", "device", "dtype", "kernels"}
        return dict.fromkeys(names - acting, "beside --ask")
    idle = {}
    if config.difficulty:
        idle |= dict.fromkeys(
            ("questions", "tasks", "text", "samples", "k", "val_tokens", "seq_len"), "beside --difficulty"
        )
    if not config.text:
        idle |= dict.fromkeys(("val_tokens", "seq_len"), "without --text")
    if config.shots == "0":
        idle |= dict.fromkeys(("examples", "prompt"), "with --shots 0")
    if config.temperature == 0:
        idle["top_p"] = "at --temperature 0"
    if not HUB_QUESTIONS.keys() & set(config.questions):
        idle["split"] = "without questions of a hub data set"
    return idle


def main(config: Config) -> None:
    config.checkpoint = expand("--checkpoint", config.checkpoint)
    refuse_idle(config, idle(config))
    if not config.checkpoint:
        raise UserError("--checkpoint: name one or more .pt files")
    if config.shots != "auto" and not config.shots.isdecimal():
        raise UserError(f"--shots {config.shots}: a number, or auto")
    if not config.k:
        raise UserError("--k: name one or more, such as 1 8 32")
    if not config.ask and config.samples < min(config.k):
        raise UserError(f"--samples {config.samples}: no pass@k of --k {config.k} can be computed from so few samples")
    if config.difficulty:
        config = replace(config, questions=("train",), tasks=(), text=(), samples=64, k=(1, 8, 32))
    places = []  # (checkpoint, folder and name of its record)
    for path in config.checkpoint:
        if not Path(path).exists():  # all of them before the first is evaluated
            raise UserError(f"{path}: no such checkpoint")
        folder = Path(config.out) if config.out else Path(path).parent / "eval"
        name = Path(path).stem + (".difficulty" if config.difficulty else "")
        places.append((path, folder, name))
        if (folder / f"{name}.json").exists() and not (config.overwrite or config.ask):
            raise UserError(f"{folder / name}.json exists: pass --overwrite, or another --out")
    if len({place[1:] for place in places}) < len(places):
        raise UserError("two checkpoints would write the same record: evaluate them into different --out folders")
    process = start_process(config.device, config.dtype, config.seed, config.kernels)
    if config.ask:
        if process.main:
            ask(config, process)
        return end_process()
    records = []
    material, examples, jobs = prepare(config, process)
    for _, folder, _ in places:
        folder.mkdir(parents=True, exist_ok=True)
    for job, (_, folder, name) in zip(jobs, places, strict=True):
        record, samples = evaluate_checkpoint(config, job, material, examples, process)
        records.append(record)
        if process.main:
            print(f"wrote {save_record(record, samples, folder, name)}")
    if process.main:
        print_table(records)
    end_process()


if __name__ == "__main__":
    cli(main, Config, PRESETS)
