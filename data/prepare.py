"""Make a data folder: token shards for pretraining; questions for SFT, RL and evaluation.

    python -m data.prepare                                                       # the embedded world → out/data
    python -m data.prepare --input books/ notes.jsonl.gz --source books --out out/mine --tokenizer gpt2
    python -m data.prepare --input openmathinstruct2 --questions only --ban gsm8k --out out/paper    # questions first
    python -m data.prepare --input dolmino --max_tokens 50e9 --ban gsm8k --workers 32 --out out/paper
    python -m data.prepare --input dolmino --local downloads/dolmino-mix-1124 --out out/paper       # without the hub

What --input may name:

    world                                               the embedded world (data/world.py): text, questions, tasks
    gsm8k, math, openmathinstruct2 (GSM8K's sources of it), openmathinstruct2-full       questions, from the hub
    dolmino, fineweb-edu, hf:OWNER/NAME                 text, from the hub
    files and folders                                   .jsonl, .json (an object a line; both also .gz, .zst), .parquet, .txt

A record {"text": …} is a document. A question with solutions, in any form that data/questions.py reads, becomes one
too: its prompt with each solution. `dolmino` becomes six sources (dclm, flan, pes2o, wiki, stackexchange, math) for
`pretrain.py --mix dolmino50`, and each gets its share of --max_tokens by that mixture.

What it leaves:

    OUT/SOURCE/train_00000.npy …, val_00000.npy …       token ids, uint16 or uint32; each document ends in eos
    OUT/SOURCE/meta.json                                tokenizer, counts, what was skipped, what it was made from
    OUT/questions/train.jsonl, validation.jsonl, …      data/questions.py has their form
    OUT/tasks/NAME.jsonl                                likelihood items (of the world)

A document that contains a held-out question is left out and counted. Held out are the questions of --ban and those of
OUT/questions but for train.jsonl. So prepare the questions of a folder before its text.

A killed run goes on after its last complete shard when the same command is given again, and leaves the same files as a
run that was never killed.
"""

import hashlib
import itertools
import json
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tqdm import tqdm

from cli import UserError, cli, given
from data import world
from data.encoder import Encoder, encode_records
from data.inputs import Input, find_inputs, hub_name
from data.loader import parse_mix
from data.questions import (
    HUB_QUESTIONS,
    VALIDATION_GROUPS,
    load_questions,
    merge_questions,
    normalise,
    remove,
    split_validation,
)
from data.readers import Skipped
from data.shards import Shards, begin_or_resume, new_meta, summary
from data.tokenizer import WORLD_RANKS, load_tokenizer
from files import MALFORMED, replacing_path, take_lock, write_jsonl

WORLD_TOKENS = 10_500_000
WORLD_MATH_SHARE = 0.65  # of these tokens, the source math


@dataclass
class Config:
    """Data: what is read, and what is made of it"""

    # --- what is read

    # world, a name of the hub, or local files and folders: see above
    input: tuple[str, ...] = ("world",)
    local: str = ""  # a copy of the hub data set on this machine, in the hub's layout, to be read instead of the hub

    # configuration of a hub data set, where it is not the usual one (fineweb-edu: sample-10BT; dolmino: math alone;
    # gsm8k: socratic; math: algebra alone)
    subset: str = ""
    split: str = "train"  # split of a hub data set (openmathinstruct2: train_1M, a million of its rows)
    text_field: str = "text"  # field of a record that holds its text

    # stop after so many train tokens (50e9 is fine), of all sources together; 0: all there are (the world: 10.5 million)
    max_tokens: float = 0
    strict: bool = False  # stop at a record that cannot be read, instead of naming, counting and skipping it

    # --- what is written

    out: str = "out/data"  # the data folder; each source is a sub-folder of it
    source: str = ""  # name of the source; empty: the name of the input
    tokenizer: str = ""  # cl100k (OLMo2's), gpt2 or world; empty: cl100k, for the world its own

    # from an input of questions write OUT/questions, beside the token shards (also) or instead of them (only)
    questions: Literal["no", "also", "only"] = "no"

    # train tokens of a shard; a killed run loses at most the shard that it was working on
    shard_tokens: float = 100_000_000

    # --- what is held out

    # questions that must be in no text and in no question file: files, or names of hub data sets (their test split)
    ban: tuple[str, ...] = ()

    # questions held out: the first so many of a shuffle with seed 42, as in the paper (openmathinstruct2-full: so many
    # of GSM8K's sources and so many of MATH's)
    validation_questions: int = 1000

    # share of the documents held out for bits per byte; chosen by a hash of the text, so that copies stay together
    val_fraction: float = 0.01
    seed: int = 0  # of the world, of the order of hub text, and of the choice of held-out documents

    workers: int = 0  # processes that tokenise; 0: one per core. Changes nothing but the time


def main(config: Config) -> None:
    """Prepare what the flags ask for. UserError for bad input, before anything is written."""
    if not 0 <= config.val_fraction <= 1:  # the command line: up to 0.5
        raise UserError(f"--val_fraction {config.val_fraction}: must be between 0 and 1")
    if config.shard_tokens < 1 or config.max_tokens < 0 or config.workers < 0:
        raise UserError("--shard_tokens must be at least 1, --max_tokens and --workers at least 0")
    out = Path(config.out)
    if config.input == ("world",):
        idle = given(config) - {"input", "out", "tokenizer", "max_tokens", "seed", "workers", "strict"}
        if idle:
            raise UserError(f"--{min(idle)}: the world takes no such flag; leave it out")
        build_world(out, config.seed, int(config.max_tokens) or WORLD_TOKENS, config.tokenizer or "world")
        return

    # Everything that can be wrong is found before anything is written
    hub, inputs = hub_name(config.input), find_inputs(config)
    if config.questions != "no" and hub and hub not in HUB_QUESTIONS:
        raise UserError(f"--questions {config.questions}: {hub} is text; questions are {', '.join(HUB_QUESTIONS)}")
    if config.questions != "only":
        load_tokenizer(config.tokenizer or "cl100k")
    banned = [row["question"] for name in config.ban for row in load_questions(name, "test", config.strict)]
    questions = split_questions(config, inputs, hub, banned) if config.questions != "no" else None

    out.mkdir(parents=True, exist_ok=True)
    lock = take_lock(out)
    try:
        if questions:
            write_questions(out / "questions", *questions)
        if config.questions != "only":
            # After the questions: those held out, by this call or by an earlier one, must be in no text
            held_out = [path for path in sorted((out / "questions").glob("*.jsonl")) if path.name != "train.jsonl"]
            banned += [row["question"] for path in held_out for row in load_questions(path)]
            mix = parse_mix("dolmino50") if hub == "dolmino" and not config.subset else {}
            for name, source in inputs.items():
                share = mix[name] / sum(mix.values()) if mix else 1
                max_tokens = max(1, int(config.max_tokens * share)) if config.max_tokens else 0
                prepare_text(config, source, out / name, banned, max_tokens)
    finally:
        if lock is not None:
            os.close(lock)


# ---------------------------------------------------------------------------------------------------------------------
# Questions and text
# ---------------------------------------------------------------------------------------------------------------------


def split_questions(
    config: Config, inputs: dict[str, Input], hub: str, banned: list[str]
) -> tuple[dict[str, list[dict]], int]:
    """({split: rows}, number of rows removed as banned): train, validation, and test where the hub data set has one.
    UserError.

    They share no question with each other or with `banned`, white space and case aside."""
    splits = {}
    if hub in ("gsm8k", "math"):
        splits["test"] = load_questions(hub, "test", config.strict, folder=config.local, subset=config.subset)
        banned = banned + [row["question"] for row in splits["test"]]
    ((name, source),) = inputs.items()
    rows = merge_questions(source.records(0), name, config.strict)
    kept = remove(rows, banned)
    groups = VALIDATION_GROUPS.get(hub, ())
    splits["train"], splits["validation"] = split_validation(kept, config.validation_questions, groups=groups)
    return splits, len(rows) - len(kept)


def write_questions(folder: Path, splits: dict[str, list[dict]], n_banned: int) -> None:
    """Write FOLDER/SPLIT.jsonl. UserError if one of these files holds other questions: they are never replaced."""
    for name, rows in splits.items():
        path = folder / f"{name}.jsonl"
        if path.exists() and (not rows or load_questions(path) != rows):
            raise UserError(f"{path}: holds other questions; choose another --out, or delete {folder}")
    for name, rows in splits.items():
        if rows:  # an empty file could not be read
            write_jsonl(folder / f"{name}.jsonl", rows, digest=True)
    print(
        f"{folder}: {', '.join(f'{len(rows)} {name}' for name, rows in splits.items())}; {n_banned} removed as banned"
    )


def prepare_text(config: Config, source: Input, folder: Path, banned: list[str], max_tokens: int) -> None:
    """Write the shards and meta.json of one source, or go on where a killed run with the same flags stopped. UserError.

    banned: questions that must be in no text. max_tokens: of train; 0: all there are."""
    tokenizer = load_tokenizer(config.tokenizer or "cl100k")
    # Whatever decides what the folder will hold: a run goes on only in a folder that was begun with the same
    made_from = {
        "input": source.identity,
        "tokenizer": tokenizer.name,
        "seed": config.seed,
        "val_fraction": config.val_fraction,
        "max_tokens": max_tokens,
        "shard_tokens": int(config.shard_tokens),
        "banned": _digest(sorted(set(map(normalise, banned)))),
    }
    meta = begin_or_resume(folder, new_meta(folder.name, tokenizer, made_from) | {"records": 0})
    if meta is None:
        return
    shards, train, val = Shards(folder, meta), meta["train"], meta["val"]
    skipped = Skipped(config.strict)
    skipped.count, skipped.named = meta["skipped"]["unreadable"], meta["skipped"]["named"]
    encoder_args = (tokenizer.name, banned, config.seed, config.text_field)
    encoded = encode_records(source.records(meta["records"]), encoder_args, config.workers or os.cpu_count() or 1)
    # The bar is shown on a terminal only. Its total is what is asked for, or a guess from the part of the input that is read
    bar = tqdm(total=max_tokens or None, initial=train["tokens"], unit="tok", unit_scale=True, disable=None)
    bar.set_description(str(folder))
    for record, document in encoded:  # in their order, whatever the number of workers
        meta["records"] += 1
        if isinstance(document, str):
            skipped.add(record.where, document)
            meta["skipped"] |= {"unreadable": skipped.count, "named": skipped.named}
        elif document is None:
            meta["skipped"]["banned"] += 1
        else:
            # Always hold out the first document, and its copies, so that a small input has something held out too
            first = meta.setdefault("first_draw", document.draw)
            held_out = config.val_fraction > 0 and (document.draw < config.val_fraction or document.draw == first)
            shards.add("val" if held_out else "train", document)
            bar.update(len(document.tokens))
            if source.size and not max_tokens:
                bar.total = int(bar.n * source.size / max(1, record.position))
        if 0 < max_tokens <= train["tokens"]:
            break
        if shards.n_waiting >= config.shard_tokens:
            shards.save_progress()
    bar.close()
    encoded.close()  # ends the workers
    shards.flush()
    counts = f"{skipped.count} unreadable, {meta['skipped']['banned']} with a held-out question"
    if not train["tokens"] and config.val_fraction < 1:
        shards.discard()
        raise UserError(
            f"{' '.join(config.input)}: nothing to train on: {val['documents']} documents held out, {counts}"
        )
    shards.finish()
    print(f"{summary(folder, meta)}; {counts}")


# ---------------------------------------------------------------------------------------------------------------------
# The world
# ---------------------------------------------------------------------------------------------------------------------


def build_world(out: str | Path, seed: int = 0, tokens: int = WORLD_TOKENS, tokenizer_name: str = "world") -> None:
    """Write the embedded world: sources general and math, of about `tokens` train tokens together, questions, tasks.

    Returns at once if it is there already. It is built in a temporary folder that then takes the name `out`, so `out`
    is whole or absent, and processes that build it at the same time do no harm. UserError if `out` holds anything else,
    also a world of an older data/world.py."""
    out, tokenizer = Path(out), load_tokenizer(tokenizer_name)
    if not out.name:
        raise UserError(f"--out {out}: name a folder that can be made, such as out/data")
    questions, tasks = world.questions(seed), world.tasks(seed)
    # Part of made_from is a digest of what this version of the code makes, so that an older world is not taken for this one
    content = [questions, tasks, WORLD_RANKS.read_bytes().hex()]
    content += [list(itertools.islice(world.documents(seed, source), 50)) for source in world.SOURCES]
    made_from = {
        "input": "world",
        "tokenizer": tokenizer.name,
        "seed": seed,
        "max_tokens": tokens,
        "content": _digest(content),
    }
    if out.exists() and any(out.iterdir()):
        if _same_world(out, made_from):
            return
        raise UserError(
            f"{out}: holds other data (or this world of other settings or another version); choose another folder or delete it"
        )
    try:
        with replacing_path(out) as part:
            for split, rows in questions.items():
                write_jsonl(part / "questions" / f"{split}.jsonl", rows, digest=True)
            for name, items in tasks.items():
                write_jsonl(part / "tasks" / f"{name}.jsonl", items, digest=True)
            for source, share in {"general": 1 - WORLD_MATH_SHARE, "math": WORLD_MATH_SHARE}.items():
                _write_world_text(part / source, source, seed, share * tokens, new_meta(source, tokenizer, made_from))
    except OSError:  # another process was faster
        if not _same_world(out, made_from):
            raise
    for source in world.SOURCES:
        meta = json.loads((out / source / "meta.json").read_text(encoding="utf-8"))
        print(summary(out / source, meta))


def _write_world_text(folder: Path, source: str, seed: int, tokens: float, meta: dict) -> None:
    """One source of the world: its held-out documents, and documents of at least `tokens` train tokens."""
    folder.mkdir()
    shards, encoder = Shards(folder, meta), Encoder(meta["tokenizer"], [], seed)
    for segments in world.documents(seed, source, "validation"):
        shards.add("val", encoder.document(segments))
    bar = tqdm(total=int(tokens), desc=f"world: {source}", unit="tok", unit_scale=True, disable=None)
    for segments in world.documents(seed, source):
        document = encoder.document(segments)
        shards.add("train", document)
        bar.update(len(document.tokens))
        if meta["train"]["tokens"] >= tokens:
            break
    bar.close()
    shards.finish()


def _same_world(out: Path, made_from: dict) -> bool:
    try:
        metas = [json.loads((out / source / "meta.json").read_text(encoding="utf-8")) for source in world.SOURCES]
        return all(meta.get("made_from") == made_from for meta in metas)
    except MALFORMED:
        return False


def _digest(content) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


if __name__ == "__main__":
    cli(main, Config)
