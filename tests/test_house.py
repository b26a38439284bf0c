"""The house: imports run down only, and a step passes through few functions."""

import ast
import graphlib
import re
import sys

import pytest
from conftest import ROOT, repository_files, run

# From the ground up. Within a folder files may import each other, but never in a circle.
FLOORS = (
    ("cli",),
    ("files", "config"),
    ("kernels", "verifier"),
    ("data",),
    ("model",),
    ("checkpoint", "paged", "curves", "logs"),
    ("measures", "packing", "sampler", "process"),
    ("sharding",),
    ("optimizer",),
    ("likelihood", "runtime"),
    ("eval",),
    ("sft", "rl", "pretrain"),
    ("average",),
    ("excursion", "tools"),
)


def product_files() -> dict[str, ast.Module]:
    """module name → its syntax tree, of every Python file outside tests/."""
    paths = [path for path in repository_files() if path.endswith(".py") and not path.startswith("tests/")]
    return {
        path[:-3].replace("/", ".").removesuffix(".__init__"): ast.parse((ROOT / path).read_text()) for path in paths
    }


def imports(tree: ast.Module, modules: set[str]) -> set[str]:
    """The project's own modules that a file imports, at its top or anywhere in it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= (names & modules) or {node.module}
    return found & modules


@pytest.fixture(scope="module")
def graph() -> dict[str, set[str]]:
    trees = product_files()
    return {module: imports(tree, set(trees)) for module, tree in trees.items()}


def test_imports_run_down(graph):
    """A file imports files of lower floors, or of its own folder: no import runs back up."""
    floor = {name: i for i, names in enumerate(FLOORS) for name in names}
    unknown = {module.split(".")[0] for module in graph} - floor.keys()
    assert not unknown, "a new file or folder: give it a floor"
    for module, imported in graph.items():
        home = module.split(".")[0]
        for other in imported:
            above = other.split(".")[0]
            assert above == home or floor[above] < floor[home], f"{module} imports {other}, which is not below it"


def test_a_copy_without_git_has_its_files(monkeypatch):
    """What the tests take for the repository's files is there in a downloaded archive too."""
    known = {path for path in repository_files() if not path.startswith(".")}
    monkeypatch.setenv("GIT_DIR", "/nowhere")
    assert "tools/reader.html" in known and known <= set(repository_files())


def test_no_circles(graph):
    """No two files import each other, directly or through others."""
    list(graphlib.TopologicalSorter({m: i - {m} for m, i in graph.items()}).static_order())


# Command of a small run → the most functions and changes of file that its third step may pass through. The aim is 50
# and 16 for GRPO, 20 and 6 for pretraining; these are what is reached, so that a step becomes no longer
STEPS = {
    "rl.py --steps 3 --prompts 2 --rollouts 4 --max_new_tokens 8 --kl 0.1": (57, 21),
    "pretrain.py --scale smoke --batch 2 --seq_len 64 --steps 3": (19, 6),
}


@pytest.mark.skipif(sys.version_info < (3, 11), reason="the names of functions with their class: Python 3.11")
@pytest.mark.parametrize("command", STEPS)
def test_a_step_passes_through_few_functions(command, base, world, tmp_path):
    """Counted by count_step.py, which users have too."""
    stage, *flags = [*command.split(), "--data", str(world), "--out", str(tmp_path / "run"), "--eval_every", "0"]
    flags += ["--init", str(base / "last.pt")] if stage == "rl.py" else []
    code, out, err = run("tests/count_step.py", stage, *flags)
    assert code == 0, err
    functions, files, changes, _ = (int(x) for x in re.findall(r"\d+", out.splitlines()[-1]))
    assert functions <= STEPS[command][0] and changes <= STEPS[command][1], out
