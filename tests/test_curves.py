"""Pictures of runs: the panels are what metrics.jsonl says, every run leaves one, and none fails for want of it."""

import io
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import run

import curves
import runtime
import sft
from cli import UserError, cli
from tools import plot


def write_run(folder: Path, **metrics) -> Path:
    """A run whose metrics.jsonl has a line a step with these values."""
    folder.mkdir(parents=True)
    rows = zip(*metrics.values(), strict=True)
    lines = [json.dumps({"step": i + 1, **dict(zip(metrics, row, strict=True))}) for i, row in enumerate(rows)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    return folder


def test_reads_what_is_whole(tmp_path):
    """Steps and values as they were logged; no NaN, no text, no line that a kill has cut. Without a log: one line that
    names it."""
    folder = write_run(tmp_path / "run", lr=[1.0, math.nan, 0.5], entropy=[3, 2, 1])
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"step": 3, "val_pass@1": 0.25, "name": "x", "flops": null}\nnull\n{"step": 4, "lr": 0.')
    found = curves.read_curves(folder)
    assert {key: list(zip(*curve, strict=True)) for key, curve in found.items()} == {
        "lr": [(1, 1.0), (3, 0.5)],
        "entropy": [(1, 3), (2, 2), (3, 1)],
        "val_pass@1": [(3, 0.25)],
    }
    with pytest.raises(UserError, match=r"nowhere/metrics.jsonl: .*name the folder of a run"):
        curves.read_curves(tmp_path / "nowhere")


def test_panels_that_no_run_has_are_left_out(tmp_path):
    """A run without a metric has no line in its panel. RL's loss and a KL that was not measured are no panels; every
    source of text has one; percentages are percentages."""
    rl = write_run(tmp_path / "rl", reward=[0.1, 0.2], loss=[5.0, 5.0], kl=[0.0, 0.0], **{"val_pass@1": [0.25, 0.5]})
    pre = write_run(tmp_path / "pre", loss=[3.0, 2.0], bpb_math=[1.0, 0.5], bpb_general=[2.0, 1.0])
    found = {title: lines for title, lines in curves.panels([curves.read_curves(f) for f in (rl, pre)])}
    assert list(found) == [
        "Training loss, nats a token", "Reward", "Validation pass@1, %", "Bits per byte, math", "Bits per byte, general",
    ]  # fmt: skip
    has = {title: [line is not None for line in lines] for title, lines in found.items()}
    assert has["Reward"] == [True, False] and has["Training loss, nats a token"] == [False, True]
    assert found["Validation pass@1, %"][0][1].tolist() == [25, 50]


def test_smooth():
    """Of a straight line it is that line but for the end; it begins at the first value; it is the mean of a window; it
    has few points however long the run."""
    x = np.arange(5000.0)
    places, values = curves.smooth(x, 2 * x)
    assert len(places) == 400 and places[0] == 0 and places[-1] == 4999
    np.testing.assert_allclose(values[places < 4900], 2 * places[places < 4900])
    y = np.random.default_rng(0).normal(size=300)
    places, values = curves.smooth(x[:300], y)
    assert values[0] == y[0] and values[150] == pytest.approx(y[147:154].mean())
    assert values[299] == pytest.approx(y[296:].mean())


def test_names_without_what_all_have_in_common():
    folders = [Path("out/a/rl/run"), Path("out/a/sft/run"), Path("out/b/rl/run")]
    assert curves.short_names(folders) == ["a/rl", "a/sft", "b/rl"]
    assert curves.short_names([Path("out/rl")]) == ["out/rl"]
    assert curves.short_names([Path("out/rl")] * 2) == ["rl", "rl"]
    assert curves.short_names([Path(".")]) == ["."] and curves.short_names([Path("."), Path("rl")]) == [".", "rl"]
    long = curves.short_names([Path("a" * 50 + "b"), Path("c")])
    assert long == ["…" + "a" * 38 + "b", "c"]


def test_figure():
    """All panels have the same steps; runs look different, their lines have the legend's colour; raw and smoothed
    values of a long run, one line with marks of a short one; what cannot be negative has no axis below 0."""
    x = np.arange(1.0, 41)
    found = [("Reward", [(x, np.zeros(40)), (x[:5], x[:5])]), ("Gradient norm", [(x[:20], x[:20]), None])]
    figure = curves.figure_of(found, ["long", "short"])
    reward, norm = figure.axes
    assert reward.get_xlim() == norm.get_xlim() and reward.get_xlim()[1] > 40
    assert [len(line.get_xdata()) for line in reward.lines] == [40, 40, 5] and len(norm.lines) == 2
    assert norm.get_yscale() == "log" and reward.get_ylim()[0] == 0
    legend = [line.get_color() for line in figure.artists]
    assert legend == [reward.lines[1].get_color(), reward.lines[2].get_color()] and len(set(legend)) == 2
    assert [text.get_text() for text in figure.texts] == ["long", "short"]
    odd = curves.figure_of(found, ["lr$x_$", r"$\bad$"])
    odd.savefig(io.BytesIO())  # a dollar in a folder's name is no mathematics
    for lowest, scale in ((0.0, "linear"), (0.1, "log"), (0.9, "linear")):
        (ax,) = curves.figure_of([("Gradient norm", [(x[:2], np.array([lowest, 1.0]))])], ["a"]).axes
        assert ax.get_yscale() == scale
    (ax,) = curves.figure_of(
        [("Reward", [(x[:1] - 1, x[:1])])], ["begun"]
    ).axes  # evaluated once, before the first step
    assert ax.get_xlim() == (-0.02, 1.02)
    many = curves.figure_of([("Reward", [(x, x)] * 12)], [str(i) for i in range(12)])
    assert len({(line.get_color(), line.get_linestyle()) for line in many.artists}) == 12


def small(base: Path, world: Path, out: Path, **flags) -> sft.Config:
    return sft.Config(init=str(base / "last.pt"), data=str(world), out=str(out), rows=2, limit=8, eval_every=0, **flags)


def test_a_run_leaves_its_curves(base, world, tmp_path, monkeypatch):
    """A picture at the end; none of a run of a few steps, which would become longer by it."""
    sft.main(small(base, world, tmp_path / "long", steps=curves.FEWEST))
    content = (tmp_path / "long/curves.png").read_bytes()
    assert content.startswith(b"\x89PNG") and len(content) > 10_000
    sft.main(small(base, world, tmp_path / "short", steps=curves.FEWEST - 1))
    assert not (tmp_path / "short/curves.png").exists()


@pytest.mark.parametrize("trouble", ["no matplotlib", "full disk"])
def test_no_run_fails_for_want_of_a_picture(base, world, tmp_path, monkeypatch, capsys, trouble):
    """One line says why there is none; the run is whole."""
    monkeypatch.setattr(runtime, "FEWEST", 1)
    if trouble == "no matplotlib":
        monkeypatch.setitem(sys.modules, "matplotlib", None)
    else:
        monkeypatch.setattr(curves, "write_bytes", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left")))
    sft.main(small(base, world, tmp_path / "run", steps=1))
    said = capsys.readouterr().err
    assert "has no curves.png: " in said and ("matplotlib" if trouble == "no matplotlib" else "No space left") in said
    assert (tmp_path / "run/last.pt").exists() and not (tmp_path / "run/curves.png").exists()


def test_stages_load_only_what_they_need(base):
    """matplotlib takes half a second, which only a picture is worth; torch._dynamo one and a half, which only training is."""
    code = f"""if True:
        import average, checkpoint, eval, pretrain, sys, tools.plot
        checkpoint.load_model(checkpoint.load_checkpoint({str(base / "last.pt")!r}))
        print([name for name in ("matplotlib", "requests", "sympy", "torch._dynamo") if name in sys.modules])
    """
    code, out, err = run("-c", code)
    assert (code, out) == (0, "[]\n"), err


def test_command(tmp_path, monkeypatch, capsys):
    """Runs side by side into one PNG; patterns are expanded; bad input ends in one line and writes nothing."""
    for name in ("rl", "average"):
        write_run(tmp_path / "out" / name, reward=[0.1, 0.2])
    (tmp_path / "out/empty").mkdir()
    (tmp_path / "out/empty/metrics.jsonl").write_text("")
    monkeypatch.chdir(tmp_path)

    def call(*words) -> int:
        monkeypatch.setattr(sys, "argv", ["plot.py", *words])
        try:
            cli(plot.main, plot.Config)
        except SystemExit as end:
            return end.code
        return 0

    assert call("out/rl", "out/average") == 0 and (tmp_path / "out/curves.png").stat().st_size > 1000
    assert call("out/[ra]*", "--out", "b.png") == 0 and (tmp_path / "b.png").exists()
    capsys.readouterr()
    for words, said in (((), "name one or more"), (("out/no",), "out/no/metrics.jsonl"), (("out/rl", "--out", "c.jpg"), "ends in .png"),
                        (("out/empty", "--out", "c.png"), "nothing to draw"), (("x*",), "matches no file")):  # fmt: skip
        assert call(*words) == 2
        assert said in (err := capsys.readouterr().err) and len(err.splitlines()) == 1, err
    assert {p.name for p in tmp_path.iterdir()} == {"out", "b.png"}
