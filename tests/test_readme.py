"""README's commands are run, in its order and in one folder, each made small by flags behind its own; hub data sets and
the files that it names are small stand-ins of the same form. What is not run is listed here with the reason."""

import gzip
import importlib
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from conftest import ROOT
from test_prepare import dolmino_copy, question_rows, texts

import pretrain
from cli import cli
from data import inputs as data_inputs
from data import prepare
from data import questions as data_questions

PAGES = (
    "README.md",
    "docs/data.md",
    "docs/paper.md",
    "docs/kernels.md",
    "docs/files.md",
    "docs/launch.md",
    "docs/huggingface.md",
    "docs/wishes.md",
)
HUB = "python -m tools.olmo2 import allenai/OLMo-2-0425-1B out/m10.pt --revision stage1-step10000-tokens21B"
NOT_RUN = {
    HUB: "the hub may be out of reach; test_hf.py runs the same with a stand-in",
    "python -m tools.olmo2 import olmo2-1b out/olmo2-1b.pt --tokens 4000000000000": "a model of 6 GB; test_hf.py has a small one",
    "make excursion": "half an hour; test_excursion.py runs the same program at the smoke scale",
    "make smoke": "installs, then runs commands that are run here",
    "make bench": "minutes: it measures",
    "pip install -e .": "installs; test_package.py compares its lists",
    "python -m tools.dry_run rl.py --preset paper --init_scale 190m --gpus 1 --gb 24 --tflops 165": "test_dry_run.py runs such lines",
    "python -m excursion report --records results/excursion --out out/grid": "as the line before it, other records",
}
EVALUATION = "--eval_limit 2"
ROLLOUTS = "--steps 1 --prompts 2 --rollouts 2 --max_new_tokens 4 --limit 8"
SMALL = {  # what is appended to a command of a program, so that it ends in a second
    "data.prepare": "--tokenizer world --workers 1 --validation_questions 4",
    "pretrain": "--scale smoke --batch 2 --seq_len 64 --eval_every 0 --val_tokens 200 --compile off",
    "sft": f"--steps 1 --rows 2 --limit 8 {EVALUATION}",
    "rl": f"{ROLLOUTS} --minibatch 0 {EVALUATION}",
    "average": f"{ROLLOUTS} --rows 2 {EVALUATION}",
    "eval": "--limit 2 --samples 2 --k 1 2 --max_new_tokens 4 --val_tokens 200",
    "excursion": "",
    "tools.plot": "",
    "tools.reader": "",
    "tools.olmo2": "",
}

PROGRAMS = {"excursion": "excursion.command"}  # where the flags and main() of a package are


def commands(markdown: str) -> list[str]:
    """The commands of a page's code blocks (indented or fenced) and tables, each once, without comments."""
    blocks = "".join(line + "\n" for line in re.findall(r"^ {4}(.*)$", markdown, re.M))
    blocks += "".join(re.findall(r"^```\w*\n(.*?)^```", markdown, re.M | re.S))
    blocks += "".join(
        f"{cell}\n" for row in re.findall(r"^\|.*", markdown, re.M) for cell in re.findall(r"`([^`]+)`", row)
    )
    found = []
    for line in blocks.splitlines():
        line = line.strip().removeprefix(".venv/bin/")
        if re.match(r"(python|torchrun|make|pip|hf|[A-Z_]+=\S+) ", line):
            found.append(shlex.join(shlex.split(line, comments=True)))
    return list(dict.fromkeys(found))


def parse(command: str) -> tuple[str, list[str]]:
    """(module, arguments) of a `python` or `torchrun` command, made small."""
    words = shlex.split(command)[1:]
    if ">" in words:
        words = words[: words.index(">")]
    while words[0].startswith("--"):  # torchrun's own
        words.pop(0)
    module = words.pop(0)
    module = words.pop(0) if module == "-m" else module.removesuffix(".py")
    small = SMALL[module]
    if "--resume" in words or "compare" in words or module == "data.prepare" and "--input" not in words:
        small = ""  # they have no size of their own
    elif "--ask" in words:
        small = "--max_new_tokens 4"
    elif module == "pretrain":  # of --steps and --tokens one may be given
        small += " --steps 4" if "--steps" in words else " --tokens 512"
    elif module == "excursion" and not {"report", "compare"} & set(words):  # hours; the plan has to make sense
        words = ["plan", *(word for word in words if word not in ("run", "plan"))]
    return module, words + small.split()


def stand_in(path: Path) -> None:
    """A checkpoint of a step, or a record of an evaluation, that the runs made small here did not leave."""
    if path.name.endswith(".pt") and "*" not in path.name and not path.exists():
        shutil.copy(path.parent / "last.pt", path)
    if path.parts[-2:] == ("eval", "last.json"):
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(next(Path("out/pretrain/eval").glob("*.json")), path)
        shutil.copy(next(Path("out/pretrain/eval").glob("*.jsonl.gz")), path.with_suffix(".jsonl.gz"))


def hub(repository: str, config: str, split: str, *_) -> list[dict]:
    """What stands for the hub: a few rows in the form of each data set."""
    if repository == "openai/gsm8k":
        rows = [json.loads(line) for line in (data_questions.EXAMPLES / "gsm8k_train.jsonl").read_text().splitlines()]
        return rows[2:] if split == "train" else rows[:2]
    if repository == "EleutherAI/hendrycks_math":
        return [{"problem": f"{config} {i}", "solution": "\\boxed{7}", "level": "Level 1"} for i in range(2)]
    if "OpenMathInstruct" in repository:
        of_math = [
            row | {"problem": f"In math: {row['problem']}", "problem_source": "math"} for row in question_rows(30)
        ]
        return question_rows(30) + of_math
    return [{"text": f"{config} {t}"} for t in texts(60)]


@pytest.fixture
def place(world, tmp_path, monkeypatch) -> Path:
    """A folder with what README's commands find in a user's: the world, files of their own, a copy of DOLMino, records."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "results").symlink_to(ROOT / "results")
    shutil.copytree(world, "out/data")
    monkeypatch.setattr(prepare, "WORLD_TOKENS", 40_000)
    monkeypatch.setattr(pretrain, "build_world", lambda out: prepare.build_world(out, tokens=40_000))
    monkeypatch.setattr(data_questions, "stream_hub", hub)
    monkeypatch.setattr(data_inputs, "stream_hub", hub)
    rows = [{"question": f"Ann has {i} bags of 4 nuts. How many nuts has she?", "answer": f"She has {i}*4=<<{i}*4={4 * i}>>{4 * i}.\n#### {4 * i}"} for i in range(50)]  # fmt: skip
    for name, part in {
        "gsm8k_train": rows[:40],
        "gsm8k_test": rows[40:],
        "notes": [{"text": t} for t in texts(60)],
    }.items():
        with gzip.open(f"{name}.jsonl.gz", "wt") as file:
            file.writelines(json.dumps(row) + "\n" for row in part)
    dolmino_copy(tmp_path / "dolmino-mix-1124")
    return tmp_path


def test_every_command_of_readme_and_docs(place, monkeypatch, capsys):
    """Each runs to its end in the order given, on what the ones before it left; the list of those not run is not stale."""
    pages = [(ROOT / name).read_text(encoding="utf-8") for name in PAGES]
    found = list(dict.fromkeys(command for page in pages for command in commands(page)))
    assert len(found) > 25 and NOT_RUN.keys() <= set(found)
    for command in found:
        if command in NOT_RUN:
            continue
        module, arguments = parse(command)
        for word in arguments:
            stand_in(Path(word))
        program = importlib.import_module(PROGRAMS.get(module, module))
        monkeypatch.setattr(sys, "argv", [f"{module}.py", *arguments])
        try:
            cli(program.main, program.Config, getattr(program, "PRESETS", None))
        except SystemExit as end:
            assert not end.code, f"{command}\nas {sys.argv}\n{capsys.readouterr().err}"
        capsys.readouterr()


def test_parser_of_the_readme():
    """Commands are those of indented and fenced blocks and of tables, without comments and repetitions; prose and
    listings are none."""
    page = "Run `python no.py`.\n\n    .venv/bin/python a.py --x 'b c'  # why\n    OUT/file   what\n\n```bash\ntorchrun b.py\npython a.py --x 'b c'\n```\n"
    assert commands(page) == ["python a.py --x 'b c'", "torchrun b.py"]
    assert commands("| a | `python c.py --x 1`, or `rl.py`; `make smoke` |\n`python no.py x`") == [
        "python c.py --x 1",
        "make smoke",
    ]
    assert parse("torchrun --nnodes=2 --nproc_per_node=8 rl.py --lr 1")[:1] == ("rl",)
    assert parse("python -m excursion plan --format list > a.txt") == ("excursion", ["plan", "--format", "list"])
    assert parse("python -m data.prepare --input x")[1][:2] == ["--input", "x"]


def test_named_checkpoints_of_the_default_run_exist():
    """The checkpoints of out/pretrain that README and docstrings name are kept by `pretrain.py` without flags."""
    config = pretrain.Config()
    config.check()
    kept = pretrain.parse_save_at(config.save_at, config.steps, config.batch * config.seq_len)
    texts = [(ROOT / name).read_text() for name in ("README.md", "sft.py", "rl.py", "average.py", "eval.py")]
    named = {int(step) for text in texts for step in re.findall(r"out/pretrain/step_(\d+)\.pt", text)}
    assert named and named <= set(kept)
