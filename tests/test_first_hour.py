"""tools/first_hour.py: `make gpu` at toy size, and what it does with parts that fail or hang."""

import json
import re
import sys

import pytest
import torch
from conftest import run

from cli import UserError, cli
from tools import bench, first_hour
from tools.first_hour import Config, Part


@pytest.mark.parametrize("name, result", [
    ("versions", "Python .*, torch"), ("train", "tokens/s, .* of"), ("sample", "ms for a token of all"), ("grpo", "s for .* answers of"),
])  # fmt: skip
def test_speed_at_toy_size(tmp_path, capsys, name, result):
    """The code of the parts that measure speed, as on a GPU, in this process; in their own, and the others: -m slow."""
    part = first_hour.parts_of(Config(scale="smoke", out=str(tmp_path)))[name]
    python, flag, code = part.command
    assert (python, flag) == (sys.executable, "-c") and not part.needs
    exec(code)
    assert re.search(result, capsys.readouterr().out.splitlines()[-1])


@pytest.mark.slow
def test_all_parts_at_toy_size(tmp_path):
    """What can run without a GPU has a good result: among it that a resumed run has the same bits, two ranks the same loss."""
    code, out, err = run("-m", "tools.first_hour", "--scale", "smoke", "--out", str(tmp_path), timeout=600)
    assert code == 0, (out, err, *(f.read_text()[-500:] for f in tmp_path.glob("*.log")))
    rows = [line for line in out.splitlines() if "✓" in line]
    assert [row.split("|")[1].strip() for row in rows] == ["versions", "train", "sample", "grpo", "resume", "ranks"]
    assert (tmp_path / "report.md").read_text().strip() == "\n".join(
        line for line in out.splitlines() if line.startswith("|")
    )
    assert "pretraining the same bits, RL the same bits" in out


def test_what_fails_or_hangs_costs_one_line(tmp_path, monkeypatch, capsys):
    """Each part has a process and a limit of time; the same command goes on with what has no good result."""

    def part(code, seconds=60, needs=""):
        return Part([sys.executable, "-c", code], "an expectation", seconds, needs)

    seen = "import os; os.environ['TESTS_ON_GPU']; "  # without it the tests among the parts would see no GPU
    broken = {"a": part(seen + "print('one'); print('two | 2')"), "b": part("1 / 0"), "c": part("import time; time.sleep(60)", 1),
              "d": part("", needs="needs a GPU"), "e": part("print('last')")}  # fmt: skip
    monkeypatch.setattr(first_hour, "parts_of", lambda config: broken)
    with pytest.raises(SystemExit, match="1"):
        first_hour.main(Config(scale="smoke", out=str(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert {name: r["ok"] for name, r in results.items()} == {"a": True, "b": False, "c": False, "e": True}
    assert "ZeroDivisionError" in results["b"]["result"] and results["c"]["result"].startswith("stopped after 1 s")
    table = capsys.readouterr().out
    assert "| a | ✓ two / 2 | an expectation |" in table and "not run: needs a GPU" in table

    # mended: only what had failed runs again
    mended = broken | {name: part(f"print('{name} now')") for name in "bc"}
    monkeypatch.setattr(first_hour, "parts_of", lambda config: mended)
    first_hour.main(Config(scale="smoke", out=str(tmp_path)))
    results = json.loads((tmp_path / "results.json").read_text())
    assert [results[name]["result"] for name in "abce"] == ["two | 2", "b now", "c now", "last"]
    # another command under the same name, as at another scale: its result is not that of the first
    monkeypatch.setattr(first_hour, "parts_of", lambda config: mended | {"a": part("print('a now')")})
    first_hour.main(Config(scale="smoke", out=str(tmp_path)))
    assert json.loads((tmp_path / "results.json").read_text())["a"]["result"] == "a now"


def test_devices_of_bench(monkeypatch, capsys):
    """A device that is unknown, or whose work bench.py cannot wait for, is refused by the parser."""
    for device in ("gpu", "mps"):
        monkeypatch.setattr(sys, "argv", ["bench.py", "--device", device])
        with pytest.raises(SystemExit, match="2"):
            cli(bench.main, bench.Config)
        assert "--device" in capsys.readouterr().err


def test_one_line_for_what_cannot_be(tmp_path):
    code, _, err = run("-m", "tools.first_hour", "nothing", "--scale", "smoke", "--out", str(tmp_path / "x"))
    assert code == 2 and "nothing: no such part" in err and len(err.strip().splitlines()) == 1
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="needs a GPU"):
            first_hour.main(Config(out=str(tmp_path / "x")))
    assert not (tmp_path / "x").exists()
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(UserError, match=r"results.json: not a whole JSON file"):
        first_hour.main(Config(scale="smoke", out=str(tmp_path)))
