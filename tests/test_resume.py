"""One resume rule for all stages: what goes on, what is refused, what a kill between two writes costs (nothing)."""

import gzip
import json
import shutil
import sys
import types
from dataclasses import asdict

import numpy as np
import pytest
from conftest import assert_same_run, same

import average
import logs
import pretrain
import rl
import runtime
import sft
from checkpoint import load_checkpoint, save_checkpoint
from cli import UserError
from files import crc32, json_digest

POST = dict(limit=8, steps=4, save_every="1", eval_every=0)
RL = dict(prompts=2, rollouts=3, max_new_tokens=6, kl=0.1)
STAGES = {
    "pretrain": (pretrain, dict(scale="smoke", batch=2, seq_len=32, steps=4, save_every="1", val_tokens=200, eval_every=2,
                                schedule="constant", save_at="2,4")),
    "sft": (sft, POST | dict(rows=2, save_at="2")),
    "rl": (rl, POST | RL | dict(save_at="2")),
    "average": (average, POST | RL | dict(rows=2, save_at="2")),
}  # fmt: skip
WHOLE: dict = {}  # stage → folder of an uninterrupted run


def config(name: str, out, base, world, **changes):
    stage, flags = STAGES[name]
    start = dict(data=str(world)) | ({} if name == "pretrain" else dict(init=str(base / "last.pt")))
    return stage.Config(out=str(out), **flags | start | changes)


@pytest.fixture
def whole(base, world, tmp_path_factory):
    """The folder of an uninterrupted run of a stage, made once."""

    def make(name: str):
        if name not in WHOLE:
            WHOLE[name] = tmp_path_factory.mktemp(name) / "run"
            STAGES[name][0].main(config(name, WHOLE[name], base, world))
        return WHOLE[name]

    return make


def lines(folder) -> list[dict]:
    """metrics.jsonl without what the clock says."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in row.items() if not k.endswith(("_s", "seconds"))} for row in rows]


def die(stage, flags, monkeypatch, place: str, at: int) -> None:
    """A run that dies as it enters Run.`place` after step `at` (`_take_state`: before its log)."""
    with monkeypatch.context() as patch:
        original = getattr(runtime.Run, place)

        def fatal(run, *args, **kwargs):
            if run.progress.step == at:
                raise RuntimeError("died")
            return original(run, *args, **kwargs)

        patch.setattr(runtime.Run, place, fatal)
        with pytest.raises(RuntimeError, match="died"):
            stage.main(flags)


@pytest.mark.parametrize("name", STAGES)
def test_resume_needs_nothing_but_out(name, whole, base, world, tmp_path, monkeypatch):
    """Property 33: --resume --out RUN, twice, is the uninterrupted run: bits, kept checkpoints, lines, recorded flags."""
    stage = STAGES[name][0]
    out = tmp_path / "run"
    die(stage, config(name, out, base, world), monkeypatch, "_take_state", 2)
    die(stage, stage.Config(out=str(out), resume=True), monkeypatch, "_take_state", 3)
    stage.main(stage.Config(out=str(out), resume=True))
    assert_same_run(whole(name), out)
    assert lines(whole(name)) == lines(out)
    assert sorted(p.name for p in out.glob("*.pt")) == sorted(p.name for p in whole(name).glob("*.pt"))
    one, two = (runtime.load_checkpoint(folder / "step_0000002.pt") for folder in (whole(name), out))
    assert same(one["model"], two["model"])
    one, two = (runtime.load_checkpoint(folder / "last.pt")["args"] for folder in (whole(name), out))
    assert {**one, "out": ""} == {**two, "out": ""}
    assert name == "pretrain" or two["init"] == str(base / "last.pt")


CHANGES = dict(lr=0.5, schedule="cosine", clip=0.5, weight_decay=0.5, seed=5, dtype="bf16")
OWN = dict(z_loss=1.0, mix="math=1", batch=1, seq_len=16, doc_mask=True, rows=3, solutions="all", prompts=3, rollouts=2, kl=0.2,
           temperature=0.5, weight=0.9, sft_lr=0.1, mode="combined", limit=3)  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
def test_flags_that_would_change_the_run_are_refused(name, whole):
    """Given with another value they end in one line that names the flag; with the same value they pass."""
    stage, folder = STAGES[name][0], whole(name)
    defaults = asdict(stage.Config())
    for flag, value in (CHANGES | OWN).items():
        if flag in defaults:
            changed = stage.Config(out=str(folder), resume=True, **{flag: value})
            changed.given = frozenset({"out", "resume", flag})
            with pytest.raises(UserError, match=f"--resume with another --{flag} "):
                runtime.flags_of_last(changed, name)
    flags = {k: v for k, v in STAGES[name][1].items() if k not in runtime.FREE}
    assert runtime.flags_of_last(stage.Config(out=str(folder), resume=True, **flags), name)
    taken = stage.Config(out=str(folder), resume=True, save_every="7")  # free ones
    assert runtime.flags_of_last(taken, name) and taken.save_every == "7"
    assert taken.steps == 4  # what was not given


def test_what_a_fork_adds_is_refused_too(whole, monkeypatch):
    """A flag that last.pt does not have yet had its default before; a word of --weight that is not known may be a schedule."""
    last = runtime.load_checkpoint(whole("average") / "last.pt")
    args = {name: value for name, value in last["args"].items() if name != "entropy"} | {"weight": "cosine"}
    monkeypatch.setattr(runtime, "load_checkpoint", lambda path: {**last, "args": args})
    for flag, value in {"entropy": 0.5, "steps": 8}.items():
        with pytest.raises(UserError, match=f"--resume with another --{flag} "):
            runtime.flags_of_last(average.Config(out=str(whole("average")), resume=True, **{flag: value}), "average")
    args["weight"] = 1e-05
    assert runtime.flags_of_last(average.Config(out=str(whole("average")), resume=True, steps=8), "average")


def test_every_flag_is_free_or_refused():
    """The free flags exist, and change nothing of what is learned."""
    known = set().union(*(asdict(stage.Config()) for stage, _ in STAGES.values()))
    assert known >= runtime.FREE and known >= runtime.LENGTH


def test_a_longer_run_at_a_constant_rate(whole, base, world, tmp_path, capsys):
    """--steps extends a run of constant rate to the bits of the longer run; a cosine's is refused; a shorter one too."""
    rl.main(config("rl", tmp_path / "run", base, world, steps=2, save_at=""))
    rl.main(rl.Config(out=str(tmp_path / "run"), resume=True, steps=4))
    assert_same_run(whole("rl"), tmp_path / "run")
    with pytest.raises(UserError, match="beyond the 1 steps"):
        rl.main(rl.Config(out=str(tmp_path / "run"), resume=True, steps=1))
    capsys.readouterr()
    rl.main(rl.Config(out=str(tmp_path / "run"), resume=True))
    said = capsys.readouterr().err
    assert "has made its 4 steps already" in said and "step_0000004.pt" in said and "None" not in said
    sft.main(config("sft", tmp_path / "cosine", base, world, steps=1, schedule="cosine"))
    with pytest.raises(UserError, match="is laid out over the run's length"):
        sft.main(sft.Config(out=str(tmp_path / "cosine"), resume=True, steps=4))


def test_a_kept_checkpoint_that_a_kill_has_cost_is_written(whole, base, world, tmp_path, monkeypatch):
    """A kill between last.pt and step_N.pt: the resumed run writes step_N.pt first, with the bits it would have had."""
    with monkeypatch.context() as patch:
        save = runtime.save_checkpoint

        def killed(path, checkpoint):
            if path.name == "step_0000002.pt":
                raise RuntimeError("died")
            save(path, checkpoint)

        patch.setattr(runtime, "save_checkpoint", killed)
        with pytest.raises(RuntimeError, match="died"):
            sft.main(config("sft", tmp_path / "run", base, world))
    assert not (tmp_path / "run/step_0000002.pt").exists()
    sft.main(sft.Config(out=str(tmp_path / "run"), resume=True))
    one, two = (runtime.load_checkpoint(folder / "step_0000002.pt") for folder in (whole("sft"), tmp_path / "run"))
    assert all(same(one[k], two[k]) for k in ("model", "step", "flops", "tokens")) and "train" not in two


def test_the_evaluation_that_a_kill_prevented_is_made(whole, base, world, tmp_path, monkeypatch):
    """Pretraining killed between a checkpoint and its evaluation: resumed, the same lines as without."""
    with monkeypatch.context() as patch:
        patch.setattr(pretrain, "bits_per_byte", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            pretrain.main(config("pretrain", tmp_path / "run", base, world))
    pretrain.main(pretrain.Config(out=str(tmp_path / "run"), resume=True))
    assert lines(whole("pretrain")) == lines(tmp_path / "run")


@pytest.mark.parametrize("name", ["pretrain", "rl"])  # the loop of sft and average is rl's
def test_a_folder_without_a_checkpoint_is_new(name, whole, base, world, tmp_path, monkeypatch):
    """Dead before its first checkpoint, a run starts again by the same command; nothing of the first start stays."""
    out = tmp_path / "run"
    die(STAGES[name][0], config(name, out, base, world), monkeypatch, "save", 1)
    assert (out / "metrics.jsonl").exists() and not (out / "last.pt").exists()
    with pytest.raises(UserError, match="does not exist; start without --resume"):
        STAGES[name][0].main(STAGES[name][0].Config(out=str(out), resume=True))
    STAGES[name][0].main(config(name, out, base, world))
    assert_same_run(whole(name), out)
    assert lines(whole(name)) == lines(out)


def test_flags_of_another_version_are_named(whole, tmp_path):
    """A last.pt with a flag that is gone is not resumed with whatever took its place."""
    last = runtime.load_checkpoint(whole("rl") / "last.pt")
    (tmp_path / "run").mkdir()
    runtime.save_checkpoint(tmp_path / "run/last.pt", {**last, "args": {**last["args"], "n": 4}})
    with pytest.raises(UserError, match="flag --n that rl does not know"):
        runtime.flags_of_last(rl.Config(out=str(tmp_path / "run"), resume=True), "rl")


@pytest.mark.parametrize("name", STAGES)
def test_data_that_have_changed_are_refused(name, base, world, tmp_path):
    """Shards or questions that were made anew would give a resumed run other batches; the lineage names what was
    trained on. A run of an older version, which does not know, goes on."""
    stage, data, out = STAGES[name][0], tmp_path / "world", tmp_path / "run"
    shutil.copytree(world, data)
    stage.main(config(name, out, base, data))
    assert len(load_checkpoint(out / "last.pt")["lineage"][-1]["data"]) == 1 + (name == "average")
    if name == "pretrain":
        meta = json.loads((data / "math/meta.json").read_text())
        shard = data / "math" / meta["train"]["shards"][0]
        tokens = np.load(shard)
        tokens[7] = tokens[8]
        np.save(shard, tokens)
        meta["digests"][shard.name] = crc32(shard)
        (data / "math/meta.json").write_text(json.dumps(meta | {"digest": json_digest(meta)}))
    else:
        questions = data / "questions/train.jsonl"
        questions.write_text(questions.read_text().replace('"question": "', '"question": "Now, ', 1))
        (data / "questions/digests").unlink()  # they are known to be ours
    longer = dict(out=str(out), resume=True, steps=5)
    with pytest.raises(UserError, match="data that this run trains on have changed"):
        stage.main(stage.Config(**longer))
    last = load_checkpoint(out / "last.pt")
    del last["lineage"][-1]["data"]
    save_checkpoint(tmp_path / "old.pt", last)  # its tensors are mapped from the file that it replaces
    (tmp_path / "old.pt").replace(out / "last.pt")
    stage.main(stage.Config(**longer))
    assert load_checkpoint(out / "last.pt")["step"] == 5


@pytest.mark.parametrize("logger", ["wandb:project", "tensorboard"])
def test_a_logger_that_is_not_installed(logger, base, world, tmp_path, monkeypatch):
    """It is looked for before anything is written."""
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="is not installed: pip install"):
        sft.main(config("sft", tmp_path / "run", base, world, logger=logger))
    assert not (tmp_path / "run").exists()


def test_rollouts_in_wandb_and_tensorboard(base, world, tmp_path, monkeypatch):
    """RL gives what it writes to rollouts.jsonl.gz at the first step and every 16th after it: the same answers and
    rewards, a row an answer, at the step of their metrics. In TensorBoard each line stands in a block that is shown as
    it is."""
    tables, texts = [], []
    log = types.SimpleNamespace(log=lambda values, step: tables.append((step, values)), finish=lambda: None)
    fake = types.SimpleNamespace(
        init=lambda **_: log, Table=lambda columns, data: [dict(zip(columns, row, strict=True)) for row in data]
    )
    monkeypatch.setitem(sys.modules, "wandb", fake)
    find = logs.importlib.util.find_spec
    installed = ("wandb", "tensorboard")
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name, *more: name in installed or find(name, *more))
    board = types.SimpleNamespace(
        add_scalar=lambda *_: None, add_text=lambda *words: texts.append(words), close=lambda: None
    )
    writer = types.SimpleNamespace(SummaryWriter=lambda *_, **__: board)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", writer)
    monkeypatch.setattr(rl, "SHOW_EVERY", 2)
    for logger in ("wandb:mine", "tensorboard"):
        rl.main(config("rl", tmp_path / logger, base, world, steps=4, logger=logger))
    logged = {step: values["rollouts"] for step, values in tables if "rollouts" in values}
    written = {1: [], 3: []}
    for row in map(json.loads, gzip.open(tmp_path / "wandb:mine/rollouts.jsonl.gz")):
        for answer in zip(row["samples"], row["rewards"], row["finished"], strict=True):
            if row["step"] in written:
                written[row["step"]].append((row["id"], row["question"], row["answer"], *answer))
    keys = ("id", "question", "right", "answer", "reward", "finished")
    assert {step: [tuple(row[key] for key in keys) for row in table] for step, table in logged.items()} == written
    assert [step for step, _ in tables] == [1, 1, 2, 3, 3, 4]
    assert [(name, step) for name, _, step in texts] == [("rollouts", 1), ("rollouts", 3)]
    assert all(line.startswith("    ") for _, text, _ in texts for line in text.split("\n"))
    assert all(text.count("    reward: ") == len(written[step]) for _, text, step in texts)


def test_interleaved_shows_answers(base, world, tmp_path, capsys):
    """Its RL steps have odd numbers, at 1:1; the first and every 16th of them is shown."""
    average.main(config("average", tmp_path / "run", base, world, kl=0.0, mode="interleaved", steps=3))
    assert capsys.readouterr().out.count("(right: ") == 1


def test_the_reference_of_the_kl_stays_the_model_that_a_run_began_with(base, world, tmp_path):
    """It is read from --init again at --resume, where another model may lie by then."""
    shutil.copy(base / "last.pt", tmp_path / "m.pt")
    rl.main(config("rl", tmp_path / "run", base, world, init=str(tmp_path / "m.pt"), steps=1))
    sft.main(config("sft", tmp_path / "other", base, world, steps=1))
    for start, refused in ((tmp_path / "other/last.pt", True), (base / "last.pt", False)):
        shutil.copy(start, tmp_path / "m.pt")
        resumed = rl.Config(out=str(tmp_path / "run"), resume=True, steps=2)
        if refused:
            with pytest.raises(UserError, match="is another model by now"):
                rl.main(resumed)
        else:
            rl.main(resumed)


def test_a_logger_that_fails_is_one_line(tmp_path, monkeypatch):
    """A folder ./wandb is no package; no key, no network, or a broken installation: one line, whatever was raised."""
    (tmp_path / "wandb").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    find = logs.importlib.util.find_spec
    folder = types.SimpleNamespace(origin=None)  # the spec of such a folder
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: folder if name == "wandb" else find(name))
    with pytest.raises(UserError, match="wandb is not installed"):
        logs.Log(tmp_path, "wandb:mine")

    def init(**_):
        raise RuntimeError("api_key not configured\ncall wandb.login")

    monkeypatch.setitem(sys.modules, "wandb", types.SimpleNamespace(init=init))
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: True)
    with pytest.raises(
        UserError, match="--logger wandb: RuntimeError: api_key not configured call wandb.login; or leave"
    ):
        logs.Log(tmp_path, "wandb:mine").open(0, False, {})


def test_a_folder_of_data_is_the_same_in_another_spelling(base, world, tmp_path):
    """--data out/data/ beside --resume is --data out/data."""
    sft.main(config("sft", tmp_path / "run", base, world, steps=2))
    again = sft.Config(out=str(tmp_path / "run"), resume=True, steps=3, data=f"{world}/./")
    again.given = {"resume", "steps", "data", "out"}
    sft.main(again)
    assert runtime.load_checkpoint(tmp_path / "run/last.pt")["args"]["data"] == str(world)


def test_a_resumed_run_goes_on_with_its_wandb_run(base, world, tmp_path, monkeypatch):
    """Both starts open the same run of the project, and each step is logged once."""
    opened, steps = [], []
    log = types.SimpleNamespace(log=lambda values, step: steps.append(step), finish=lambda: None)
    fake = types.SimpleNamespace(init=lambda **kwargs: opened.append(kwargs) or log)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.setattr(logs.importlib.util, "find_spec", lambda name: True)
    sft.main(config("sft", tmp_path / "run", base, world, steps=2, logger="wandb:mine"))
    sft.main(sft.Config(out=str(tmp_path / "run"), resume=True, steps=4))
    assert [x["project"] for x in opened] == ["mine", "mine"] and opened[0]["id"] == opened[1]["id"]
    assert steps == [1, 2, 3, 4]
