"""hypothesis on everything that reads a file or a text. The part readers of torture.py."""

import contextlib
import copy
import gzip
import json
import os
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from forked import ROOT, Injury, fork
from forked import copy as copy_tree
from torture_inputs import hf_folders
from torture_place import Torture

from cli import UserError
from data.questions import in_band
from data.readers import SUFFIXES
from logs import drop_after


def part_readers(t: Torture) -> None:
    """Each reader in a fork of its own, hypothesis within: a hang or a crash is one reader's."""
    import hypothesis
    from hypothesis import strategies as st

    hypothesis.given(st.text())(lambda text: None)()  # what it prepares before its first example, the forks then have
    for name in READERS:
        row = t.row("readers", name)
        folder = t.folder()
        folder.mkdir()
        limit = 300
        ended = fork_reader(t, name, folder, limit)
        report = json.loads((folder / "report.json").read_text()) if (folder / "report.json").exists() else {}
        row.cases, row.injected = 1, report.get("examples", 0)
        row.equal, row.refused = report.get("read", 0), report.get("refused", 0)
        for failure in report.get("failures", []):
            row.fail("tracebacks", failure)
        if not report:
            row.fail("other", f"no report: exit {ended}")


def fork_reader(t: Torture, name: str, folder: Path, limit: float) -> int:
    sys.stdout.flush()
    pid = os.fork()
    if not pid:
        try:
            os.chdir(folder)
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, 1), os.dup2(null, 2)
            try_reader(t, name, folder)
            os._exit(0)
        except BaseException as error:
            (folder / "report.json").write_text(json.dumps({"failures": [f"{type(error).__name__}: {error}"[:2000]]}))
        finally:
            os._exit(1)
    until = time.monotonic() + limit
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def try_reader(t: Torture, name: str, folder: Path) -> None:
    """In a fork: examples for one reader. Writes folder/report.json."""
    import hypothesis
    from hypothesis import strategies as st

    seeds, read, mutations = READERS[name](t, st)
    report = {"examples": 0, "read": 0, "refused": 0, "failures": []}

    def hang(*_):
        raise TimeoutError("no answer within 5 seconds")

    signal.signal(signal.SIGALRM, hang)

    @hypothesis.seed(t.seed)
    @hypothesis.settings(max_examples=8 if t.short else 200, deadline=None, database=None, derandomize=False,
                         suppress_health_check=list(hypothesis.HealthCheck), report_multiple_bugs=True,
                         phases=[hypothesis.Phase.generate] + ([] if t.short else [hypothesis.Phase.shrink]))  # fmt: skip
    @hypothesis.given(st.sampled_from(seeds).flatmap(lambda seed: mutations(seed) | st.just(seed)))
    def example(content):
        report["examples"] += 1
        signal.alarm(5)
        try:
            read(content)
            report["read"] += 1
        except UserError:
            report["refused"] += 1
        finally:
            signal.alarm(0)

    try:
        example()
    except BaseException as error:
        errors = getattr(error, "exceptions", [error])  # a group, of several defects
        for one in errors:
            trace, where = one.__traceback__, ""
            while trace:
                file = trace.tb_frame.f_code.co_filename
                if file.startswith(str(ROOT)) and "site-packages" not in file and not file.endswith("torture.py"):
                    where = f"{Path(file).name}:{trace.tb_lineno}"
                trace = trace.tb_next
            notes = " ".join(getattr(one, "__notes__", []))[:400]
            text = " ".join(str(one).split())[:200]
            report["failures"].append(f"{name}: {type(one).__name__}: {text} [{where}] {notes}")
    (folder / "report.json").write_text(json.dumps(report))


def changed_bytes(st):
    """A file with bytes flipped, inserted, removed, repeated, or its end cut."""

    def mutations(content: bytes):
        n = len(content)
        place = st.integers(0, max(0, n - 1))
        flip = st.tuples(place, st.integers(0, 255)).map(
            lambda a: content[: a[0]] + bytes([a[1]]) + content[a[0] + 1 :]
        )
        insert = st.tuples(place, st.binary(max_size=20)).map(lambda a: content[: a[0]] + a[1] + content[a[0] :])
        cut = place.map(lambda a: content[:a])
        remove = st.tuples(place, st.integers(1, 50)).map(lambda a: content[: a[0]] + content[a[0] + a[1] :])
        return st.one_of(flip, insert, cut, remove, st.binary(max_size=100))

    return mutations


def json_values(st):
    scalars = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.sampled_from(["1/0", "../x"])
    )
    return st.recursive(
        scalars, lambda s: st.lists(s, max_size=3) | st.dictionaries(st.text(max_size=4), s, max_size=3), max_leaves=5
    )


def changed_json(st):
    """Lines of JSON with one value, anywhere inside, replaced or removed; or bytes changed."""

    def paths(thing, path=()):
        yield path
        items = thing.items() if isinstance(thing, dict) else enumerate(thing) if isinstance(thing, list) else ()
        for key, value in items:
            yield from paths(value, (*path, key))

    def replaced(thing, path, value, remove):
        if not path:
            return value
        thing = copy.copy(thing)
        if remove and len(path) == 1:
            del thing[path[0]]
        else:
            thing[path[0]] = replaced(thing[path[0]], path[1:], value, remove)
        return thing

    def mutations(content: bytes):
        lines = content.splitlines() or [b"null"]
        try:
            parsed = [json.loads(line) for line in lines]
        except ValueError:
            lines = [content]
            parsed = [json.loads(content)]

        def one(i):
            places = list(paths(parsed[i]))
            return st.tuples(st.sampled_from(places), json_values(st), st.booleans()).map(
                lambda a: b"\n".join(
                    [*lines[:i], json.dumps(replaced(parsed[i], *a)).encode("utf-8", "surrogatepass"), *lines[i + 1 :]]
                )
            )

        return st.integers(0, len(parsed) - 1).flatmap(one) | changed_bytes(st)(content)

    return mutations


def file_reader(name: str, read: Callable[[Path], object]) -> Callable[[bytes], object]:
    def reader(content: bytes):
        path = Path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return read(path)

    return reader


def reader_checkpoint(t, st):
    from checkpoint import load_checkpoint, load_model, save_checkpoint
    from model import GPT, GPTConfig

    good = torch.load(t.base, weights_only=True)
    model = GPT(GPTConfig(good["config"]["vocab_size"], d_model=2, n_layers=1, n_heads=1, d_ff=2, context=8))
    content = good | {"config": asdict(model.config), "model": model.state_dict()}
    save_checkpoint(Path("small.pt"), content)
    read = file_reader("x.pt", lambda path: load_model(load_checkpoint(path)))
    return [Path("small.pt").read_bytes()], read, changed_bytes(st)


def read_shards(path: Path) -> None:
    from data.loader import Loader

    loader = Loader("w", None, 2, 16, 0)
    loader.batch(0)
    list(loader.val_batches("math", 2, 64))


def reader_shards(t, st):
    copy_tree(t.world / "math", Path("w/math"))

    content = (t.world / "math/train_00000.npy").read_bytes()
    return [content[:4000], content], file_reader("w/math/train_00000.npy", read_shards), changed_bytes(st)


def reader_meta(t, st):
    copy_tree(t.world / "math", Path("w/math"))
    meta = json.dumps(json.loads((t.world / "math/meta.json").read_text())).encode()
    return [meta], file_reader("w/math/meta.json", read_shards), changed_json(st)


FORMS = [
    {"question": "What is 1 + 1?", "answer": "2", "solutions": ["It is \\boxed{2}."], "source": "x", "level": None},
    {"question": "Tom has 3 pears.", "answer": "He has <<1+2=3>>3.\n#### 3"},
    {"problem": "Find $x$.", "solution": "$x = \\boxed{\\frac{1}{2}}$", "level": "Level 1", "type": "Algebra"},
    {"problem": "P", "generated_solution": "\\boxed{4}", "expected_answer": "4", "problem_source": "gsm8k"},
]


def questions_in(suffix: str):
    """Questions in a file of one of the kinds that data/readers.py reads."""

    def reader(t, st):
        from data.questions import load_questions

        lines = "\n".join(map(json.dumps, FORMS)).encode()
        if suffix == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(FORMS[:1] * 3), "x.parquet")
            lines = Path("x.parquet").read_bytes()
        elif suffix.endswith(".gz"):
            lines = gzip.compress(lines)
        elif suffix.endswith(".zst"):
            import pyarrow

            lines = pyarrow.compress(lines, "zstd", asbytes=True)
        changed = changed_json if suffix in (".json", ".jsonl") else changed_bytes
        return [lines], file_reader(f"q{suffix}", load_questions), changed(st)

    return reader


def reader_text(t, st):
    from data.readers import parse_record, read_records

    def read(path):
        for record in read_records(path):
            with contextlib.suppress(ValueError):  # what data/prepare.py counts as unreadable
                parse_record(record.content)

    return [b"eins\n<|endoftext|>\nzwei\n"], file_reader("t.txt", read), changed_bytes(st)


def reader_prepare(t, st):
    """Documents through data.prepare's encoder."""
    from data.encoder import Encoder

    encoder = Encoder("world", ["What is 1 + 1, if you please, my dear old friend of mine?"], 0)
    lines = "\n".join(map(json.dumps, [*FORMS, {"text": "Rain."}])).encode()
    return [lines], lambda content: encoder(content.splitlines()), changed_json(st)


def reader_tasks(t, st):
    from data.tasks import load_items

    paths = sorted((t.world / "tasks").glob("*.jsonl"))
    seeds = [b"\n".join(path.read_bytes().splitlines()[:3]) for path in paths]
    return seeds, file_reader("t.jsonl", load_items), changed_json(st)


def reader_examples(t, st):
    from data.questions import load_examples

    lines = b"\n".join((t.world / "questions/examples.jsonl").read_bytes().splitlines()[:3])
    return [lines], file_reader("e.jsonl", lambda p: load_examples(p, 2)), changed_json(st)


def record_of(t) -> dict:
    flags = f"--checkpoint {t.base} --data {t.world} --limit 2 --samples 2 --k 1 --max_new_tokens 4 --val_tokens 300 --out rec"
    ended = fork("eval", flags.split(), Path.cwd() / "made")
    assert ended.code == 0, ended.err
    record = json.loads(Path("made/rec/last.json").read_text())
    for group in record["questions"].values():
        for question in group["questions"]:
            question.pop("samples", None)
    return record


def reader_records(t, st):
    from excursion.compare import compare

    record = json.dumps(record_of(t)).encode()
    Path("good.json").write_bytes(record)
    return [record], file_reader("bad.json", lambda p: compare(("good.json", str(p)))), changed_json(st)


def reader_difficulty(t, st):
    record = record_of(t)
    questions = [{"id": q["id"]} for s in record["questions"].values() for q in s["questions"]]
    return (
        [json.dumps(record).encode()],
        file_reader("d.json", lambda p: in_band(questions, str(p), "0:1")),
        changed_json(st),
    )


def reader_report(t, st):
    """Records and their .cell.json through the report's reader."""
    from excursion import records

    folder = ROOT / "results/excursion"
    name = sorted(folder.glob("*.cell.json"))[0].name.removesuffix(".cell.json")
    for suffix in (".json.gz", ".cell.json"):
        shutil.copy(folder / (name + suffix), f"{name}{suffix}")
    Path("records").mkdir(exist_ok=True)
    cell = Path(f"{name}.cell.json").read_bytes()

    def read(path):
        shutil.copy(f"{name}.json.gz", f"records/{name}.json.gz")
        return records.load(Path("records"))

    return [cell], file_reader(f"records/{name}.cell.json", read), changed_json(st)


def reader_rates(t, st):
    from excursion.config import Config, resolve
    from excursion.plan import make_plan

    rates = json.dumps({"rl": {"factor": 1.0}, "sft": {"factor": 3.0}}).encode()

    def read(path):
        return make_plan(resolve(Config(command="plan", scale="smoke", out="r", data=str(t.world))))

    return [rates], file_reader("r/rates.json", read), changed_json(st)


def reader_choose(t, st):
    from excursion.choose import choose

    Path("c/run").mkdir(parents=True)
    Path("c/run/step_0000001.pt").write_bytes(b"x")
    lines = b'{"step": 1, "loss": 2.0}\n{"step": 1, "val_pass@1": 0.5}\n'
    return [lines], file_reader("c/run/metrics.jsonl", lambda p: choose(Path("c"))), changed_json(st)


def reader_cells(t, st):
    """The runner's notes of what has been done."""
    from excursion.runner import Cell, Runner

    cell = Cell("a/train", "rl", ["rl.py", "--steps", "1"], [Path("n/x.pt")], [], 1.0, Path("n/run"))
    state = json.dumps({"command": cell.command, "rc": 0, "seconds": 1.5}).encode()

    def read(path):
        runner = Runner([cell], "n")
        runner.done(cell), runner.failed(cell), runner.seconds_left()

    return [state], file_reader("n/a/train.json", read), changed_json(st)


def reader_progress(t, st):
    """progress.json of a data.prepare that was killed."""
    from data import prepare

    (Path("p")).mkdir()
    flags = f"--input {t.text} --tokenizer world --workers 1 --shard_tokens 2000 --out p".split()
    fork("prepare", flags, Path.cwd(), Injury("kill", 9))
    path = next(Path("p").glob("*/progress.json"))
    content = json.dumps(json.loads(path.read_text())).encode()
    config = prepare.Config(input=(str(t.text),), tokenizer="world", workers=1, shard_tokens=2000, out="p")
    kept = copy_tree(Path("p"), Path("kept"))

    def read(changed):
        copy_tree(kept, Path("p"))
        path.write_bytes(changed)
        prepare.main(config)

    return [content], read, changed_json(st)


def reader_hf(t, st):
    from tools.olmo2 import read_config

    folder = Path("hf")
    folder.mkdir()
    next(write for name, write in hf_folders(t) if name.startswith("config.json's rope_theta is 3"))(folder)
    return [(folder / "config.json").read_bytes()], file_reader("config.json", read_config), changed_json(st)


def reader_safetensors(t, st):
    from tools.olmo2 import from_olmo2, read_weights

    folder = Path("hf")
    folder.mkdir()
    next(write for name, write in hf_folders(t) if name.startswith("config.json's rope_theta is 3"))(folder)

    def read(path):
        config, weights = read_weights(folder)
        from_olmo2(weights, config)

    content = (folder / "model.safetensors").read_bytes()
    return [content[:3000], content], file_reader("hf/model.safetensors", read), changed_bytes(st)


def reader_metrics(t, st):
    """metrics.jsonl of a run that goes on."""
    from config import RunConfig
    from process import Process
    from runtime import Run

    one = Process(0, 1, torch.device("cpu"), torch.float32)
    Path("m").mkdir()
    shutil.copy(t.base, "m/last.pt")

    def read(path):
        run = Run(RunConfig(out="m", resume=True), "pretrain", one)
        run.progress.step = 4
        run.open()
        run.close()

    return [(t.base.parent / "metrics.jsonl").read_bytes()], file_reader("m/metrics.jsonl", read), changed_json(st)


def reader_rollouts(t, st):
    """rollouts.jsonl.gz of a run that goes on."""
    path = Path("r.jsonl.gz")
    lines = b'{"step": 1, "id": "a"}\n{"step": 2, "id": "b"}\n'

    def read(content):
        for form in (content, gzip.compress(content)):
            path.write_bytes(form)
            drop_after(path, 1)

    return [lines, gzip.compress(lines)], read, changed_bytes(st)


def texts(parse: Callable[[str], object], *seeds: str):
    """A parser of a flag's text, or of an answer."""

    def reader(t, st):
        def mutations(seed: str):
            return (
                st.text(max_size=30)
                | changed_bytes(st)(seed.encode()).map(lambda b: b.decode("utf-8", "replace"))
                | st.just(seed)
            )

        return list(seeds), parse, mutations

    return reader


def judged(text: str) -> None:
    from verifier import canonical, extract_answer, is_equal, last_box

    last_box(text), extract_answer(text)
    canonical(text), is_equal(text, "\\frac{1}{2}"), is_equal("3", text), is_equal(text, text)


def tokenized(text: str) -> None:
    from data.tokenizer import load_tokenizer

    tokenizer = load_tokenizer("world")
    try:
        text.encode()
    except UnicodeEncodeError:
        return
    assert tokenizer.decode(tokenizer.encode(text)) == text


def mixed(text: str) -> None:
    from data.loader import integer_weights, parse_mix

    mix = parse_mix(text)
    if mix:
        integer_weights(mix)


def counted(text: str) -> None:
    import pretrain

    pretrain.parse_count(text)


def kept_steps(text: str) -> None:
    import pretrain

    pretrain.parse_save_at(text, 100, 256)


READERS = {
    "checkpoint": reader_checkpoint,
    "shards": reader_shards,
    "meta.json": reader_meta,
    **{f"questions {suffix}": questions_in(suffix) for suffix in SUFFIXES},
    "text": reader_text,
    "documents": reader_prepare,
    "tasks": reader_tasks,
    "worked examples": reader_examples,
    "records": reader_records,
    "difficulty": reader_difficulty,
    "report": reader_report,
    "rates.json": reader_rates,
    "choose": reader_choose,
    "cells": reader_cells,
    "progress.json": reader_progress,
    "config.json": reader_hf,
    "safetensors": reader_safetensors,
    "metrics.jsonl": reader_metrics,
    "rollouts": reader_rollouts,
    "--mix": texts(mixed, "general=0.35,math=0.65", "a=1e300,b=1e-300"),
    "--tokens": texts(counted, "4M", "1e3k"),
    "--save_at": texts(kept_steps, "100,200", "0.5M,1M", "log:8"),
    "verifier": texts(
        judged, "The answer is \\boxed{\\frac{3}{4}}.", "x = 1,234.5\\%", "#### 12", "(1, 2]", "2^{10^{10}}"
    ),
    "tokenizer": texts(tokenized, "Tom has 12 pears.\nLet's think", "<|endoftext|>"),
}
