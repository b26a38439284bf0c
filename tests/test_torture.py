"""The short form of `make torture`: a sample of every part (torture.py says what each one shows)."""

import json
import subprocess
import sys

import pytest
from conftest import ROOT
from torture import PARTS


@pytest.fixture(scope="module")
def rows(tmp_path_factory) -> list[dict]:
    """The rows of its table. A process of its own, since it forks."""
    report = tmp_path_factory.mktemp("torture") / "rows.json"
    command = [sys.executable, ROOT / "tests/torture.py", "--short", "--report", report]
    said = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert report.exists(), f"exit {said.returncode}: {said.stdout[-2000:]} {said.stderr}"
    print(said.stdout)
    return json.loads(report.read_text())


@pytest.mark.parametrize("part", [part for part in PARTS if part not in ("excursion", "exits")])  # these take minutes
def test_torture(rows, part):
    """Nothing that is done to the commands makes a traceback, a dead end, another result or a file too many."""
    mine = [row for row in rows if row["part"] == part]
    assert sum(row["injected"] for row in mine) > 0
    assert not [row for row in mine if row["dead_ends"] or row["tracebacks"] or row["other"]]
