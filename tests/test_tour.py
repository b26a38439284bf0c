"""What newcomers start with: the notebook runs, the Dockerfile says what it needs."""

import re
import shutil
import subprocess

import pytest
from conftest import ROOT


def test_tour(tmp_path):
    """Every cell of tour.ipynb runs, in a copy of the checkout, and shows the figures."""
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\n"):
        if name and (ROOT / name).exists() and not name.startswith(("results/", "tests/")):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, tmp_path / name)
    notebook = nbformat.read(tmp_path / "tour.ipynb", as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 2
    assert not any(output.output_type == "error" for output in outputs)


def test_notebook_is_committed_without_outputs():
    """tour.ipynb holds no output: those are made by running it."""
    nbformat = pytest.importorskip("nbformat")
    for cell in nbformat.read(ROOT / "tour.ipynb", as_version=4).cells:
        assert not cell.get("outputs") and not cell.get("execution_count")


def test_dockerfile():
    """Only instructions of Docker; both builds, for a CPU and for CUDA, are one argument away; what it copies exists."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    assert {word for word, _ in lines} <= {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "CMD"}
    assert ["FROM", "${BASE}"] in lines and any(line[0] == "ARG" and line[1].startswith("INDEX=") for line in lines)
    for word, rest in lines:
        if word == "COPY":
            assert all((ROOT / source).exists() for source in rest.split()[:-1])
