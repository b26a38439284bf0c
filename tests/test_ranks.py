"""Several ranks, signals, locks: what ends a run, and what is left of it."""

import json
import os
import resource
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import assert_same_run, run
from ranks import start_ranks, wait_ranks

import average
import eval as evaluation
import files
import kernels
import likelihood
import pretrain
import rl
import runtime
import sampler
import sft
from cli import UserError
from config import RunConfig
from data.loader import Loader
from data.tokenizer import load_tokenizer
from model import GPT, config_of
from process import LostRank, Process, start_process, stop_signals, together

THREADS = """
import os, sys, torch
torch.set_num_threads(1)
import runtime
def threads(): return len(os.listdir("/proc/self/task"))
before = threads()
torch.distributed.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=0, world_size=1)
torch.distributed.all_reduce(torch.ones(1))
import torch._dynamo, torch.distributed.nn.functional
runtime.end_process()
print(threads() - before)
"""


def test_no_thread_of_a_process_group_outlives_it(tmp_path):
    """After end_process no thread of the group runs, even where dynamo was imported while the group was there: such a
    thread asks for the interpreter while that ends, and the process aborts after all its work is done."""
    if sys.platform == "linux":
        assert run("-c", THREADS, tmp_path / "store")[1] == "0\n"


# ---------------------------------------------------------------------------------------------------------------------
# More ranks than rows
# ---------------------------------------------------------------------------------------------------------------------


def test_a_rank_without_rows_contributes_nothing(world):
    """On 8 ranks, 2 rows of pretraining, 2 of SFT and 2 groups of RL have the gradient that one process gives them: the
    sum over ranks, of which most have no rows. (Whole runs of more ranks than rows: test_stages.py.)"""
    tokenizer = load_tokenizer("world")
    model = GPT(config_of("smoke", tokenizer.padded_vocab_size)).init_weights(0, std=0.1)
    loader = Loader(world, None, 2, 64, seed=0)
    question = {
        "id": "0",
        "question": "Tom has 2 pears. How many?",
        "answer": "2",
        "solutions": ["Two. \\boxed{2}", "\\boxed{2}"],
    }
    questions = [question, question | {"question": "Tom has 3 pears. How many?"}]
    answers, scores = [[9, 8, 7], [6, 5]], [0.7, -0.7]
    groups = [
        [
            rl.Answer({}, prompt, a, "", np.zeros(len(a)), True, True, 0.0, False, x)
            for a, x in zip(answers, scores, strict=True)
        ]
        for prompt in ([1, 2, 3], [4, 5])
    ]

    class Rank(Process):
        """One of several, whose sums are made below."""

        def sum(self, values):
            return values

    def pretraining(process):
        rows = torch.from_numpy(loader.batch(0, process.rows(2)))
        flags = pretrain.Config(seq_len=64)
        return pretrain.loss_and_backward(model, rows, tokenizer.eos, flags, process, 2 * 64)

    def supervised(process):
        stage = sft.SFT(sft.SFTConfig(rows=2), questions, tokenizer, process, 0, 256)
        return stage.backward(model, stage.draw())["sft_loss"]

    def reinforced(process):
        stage = rl.GRPO(rl.GRPOConfig(max_new_tokens=4), questions, tokenizer, process, 0, 256)
        return stage.backward(model, groups, on_policy=True)["trained_tokens"]

    for stage in (pretraining, supervised, reinforced):
        found = []
        for ranks in (1, 8):
            total = [torch.zeros_like(p) for p in model.parameters()]
            value = 0.0
            for rank in range(ranks):
                model.zero_grad()
                value += stage(Rank(rank, ranks, torch.device("cpu"), torch.float32, micro_tokens=64))
                for t, p in zip(total, model.parameters(), strict=True):
                    t += 0 if p.grad is None else p.grad
            found.append((value, torch.cat([t.flatten() for t in total])))
        (one, gradient), (many, summed) = found
        assert many == pytest.approx(one, rel=1e-5) and gradient.norm() > 0, stage
        assert (gradient - summed).norm() < 1e-5 * gradient.norm(), stage


# ---------------------------------------------------------------------------------------------------------------------
# A signal
# ---------------------------------------------------------------------------------------------------------------------

ROLLOUTS = dict(prompts=2, rollouts=4, max_new_tokens=8, limit=12, steps=3, micro_tokens=64)
EVALUATED = dict(eval_every=1, eval_limit=2, eval_tasks=("facts",))
UPDATES = {**ROLLOUTS, "minibatch": 1, "kl": 0.1, "micro_tokens": 2048}
STAGES = {
    "pretrain": (pretrain, dict(scale="smoke", batch=4, seq_len=64, steps=3, micro_tokens=1, eval_every=0)),
    "sft": (sft, dict(rows=4, limit=12, steps=3, micro_tokens=64, eval_every=0)),
    "rl": (rl, dict(**UPDATES, eval_every=0)),
    "rl evaluated": (rl, dict(**ROLLOUTS, **EVALUATED)),
    "parallel": (average, dict(**ROLLOUTS, rows=4, eval_every=0)),
    "combined": (average, dict(**ROLLOUTS, rows=4, eval_every=0, mode="combined")),
}
CASES = {  # stage, the function in whose nth call the signal comes, n, how often it is called in all, step that is saved
    "between micro-batches": ("pretrain", kernels, "linear_log_prob", 6, 6, 1),
    "between packed batches": ("sft", sft.SFT, "draw", 2, 2, 1),
    "between tokens": ("rl", sampler, "choose", 12, 12, 1),
    "between answers that are judged": ("rl", rl, "reward_of", 10, 12, 1),
    "before the first update": ("rl", rl, "policy_loss", 3, 3, 1),
    "after the first update, the rest of the step is made": ("rl", rl, "k3", 4, 4, 2),
    "in the evaluation before the first step": ("rl evaluated", evaluation, "judge_answers", 1, 1, 0),
    "in an evaluation": ("rl evaluated", likelihood, "continuation_log_probs", 2, 2, 1),
    "after RL's update, SFT's is made": ("parallel", sft.SFT, "backward", 2, 2, 2),
    "between RL's and SFT's gradient": ("combined", sft.SFT, "backward", 2, 2, 1),
}


@pytest.fixture(scope="module")
def whole(base, world, tmp_path_factory):
    """Runs of the stages that no signal stops."""
    made = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("whole") / "run"
            start(name, made[name], base, world)
        return made[name]

    return make


def start(name: str, out: Path, base: Path, world: Path, **more) -> None:
    stage, flags = STAGES[name]
    first = {} if stage is pretrain else {"init": str(base / "last.pt")}
    with pytest.MonkeyPatch.context() as m:
        m.setattr(rl, "reward_of", rl.reward_of if hasattr(rl.reward_of, "hit") else vary)
        stage.main(stage.Config(data=str(world), out=str(out), **first, **flags, **more))


def vary(text, *_):
    """A reward that varies, since a new model gets no question right."""
    return float(len(text) % 3), False


def logged(folder: Path) -> list[dict]:
    lines = [json.loads(line) for line in open(folder / "metrics.jsonl")]
    return [{k: v for k, v in line.items() if not k.endswith(("_s", "seconds"))} for line in lines]


# rl.py whose rank 1 sends itself the signal sys.argv[1] in the middle of the second step's sampling
SIGNALLED = """
import os, signal, sys
import rl, sampler
choose, calls, name = sampler.choose, [], sys.argv.pop(1)
def signalled(*args):
    calls.append(1)
    if len(calls) == 6 and os.environ["RANK"] == "1":
        os.kill(os.getpid(), getattr(signal, name))
    return choose(*args)
sampler.choose = signalled
rl.cli(rl.main, rl.Config, rl.PRESETS)
"""


@pytest.fixture(scope="module")
def started(base, world, tmp_path_factory):
    """signal → (folder, two ranks, the second of which gets it). All at once, and while other tests run: one pair waits
    for the timeout, which is long for ranks that start on a busy machine."""
    flags = ["--init", base / "last.pt", "--data", world, *"--eval_every 0 --steps 3 --prompts 4".split()]
    flags += "--rollouts 2 --max_new_tokens 4 --limit 12".split()
    started = {}
    for name in ("SIGTERM", "SIGKILL", "SIGSTOP"):
        out = tmp_path_factory.mktemp("pair") / "run"
        started[name] = out, start_ranks(2, ["-c", SIGNALLED, name, *flags, "--out", out], RANK_TIMEOUT=20)
    yield started
    for _, processes in started.values():
        for process in processes:
            process.kill()
            process.wait()


@pytest.mark.usefixtures("started")  # two ranks, below
@pytest.mark.parametrize("case", CASES)
def test_a_signal_stops_at_once_and_loses_nothing(base, world, tmp_path, monkeypatch, capfd, whole, case):
    """Wherever in a step SIGTERM comes, it is said at once, the batches that are left are not computed, the last whole
    step is saved (nothing else has been: no save is due), the exit code is 143; and the resumed run ends in the bits,
    and the lines, of one that was not stopped."""
    name, place, function, at, calls_in_all, saved = CASES[case]
    real, calls, said = vary if function == "reward_of" else getattr(place, function), [], []

    def hit(*args, **kwargs):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), signal.SIGTERM)
            said.append(capfd.readouterr().err)
        return real(*args, **kwargs)

    hit.hit = True
    monkeypatch.setattr(place, function, hit)
    with pytest.raises(SystemExit) as error:
        start(name, tmp_path / "run", base, world)
    monkeypatch.undo()
    assert error.value.code == 143 and len(calls) == calls_in_all
    assert "\nstopping: saves the step" in said[0] and "go on with --resume" in capfd.readouterr().err
    assert runtime.load_checkpoint(tmp_path / "run/last.pt")["step"] == saved
    start(name, tmp_path / "run", base, world, resume=True)
    assert_same_run(whole(name), tmp_path / "run")
    assert logged(whole(name)) == logged(tmp_path / "run")


def test_saves_by_time_change_nothing(base, world, tmp_path, monkeypatch, whole):
    """--save_every 1m: where more time than that has passed since the last save, the end of the step saves; the run is
    the same to the bit."""
    saved, save = [], runtime.Run.save
    monkeypatch.setattr(
        runtime.Run, "save", lambda self, *a, **k: saved.append(self.progress.step) or save(self, *a, **k)
    )
    with monkeypatch.context() as patch:
        patch.setattr(RunConfig, "saves", lambda self: (0, 1e-9))
        start("rl", tmp_path / "often", base, world)
    assert saved == [1, 2, 3]
    start("rl", tmp_path / "late", base, world, save_every="30m")
    assert saved == [1, 2, 3, 3]
    assert_same_run(whole("rl"), tmp_path / "often")


# ---------------------------------------------------------------------------------------------------------------------
# Two ranks
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pairs(started) -> dict:
    """signal → (folder, exit codes, stderr)."""
    codes = {name: wait_ranks(processes) for name, (_, processes) in started.items() if name != "SIGSTOP"}
    out, (first, second) = started["SIGSTOP"]
    err = first.communicate(timeout=600)[1]
    second.kill()
    codes["SIGSTOP"] = ([first.returncode, second.wait()], [err, ""])
    return {name: (started[name][0], *codes[name]) for name in started}


def test_no_rank_exits_before_the_run_is_saved(monkeypatch):
    """A rank that writes nothing waits for the one that does: torchrun kills the rest of a group that one has left."""
    order = []
    run = object.__new__(runtime.Run)
    run.process = Process(1, 2, torch.device("cpu"), torch.float32, stop_signal=signal.SIGTERM)
    monkeypatch.setattr(Process, "barrier", lambda process: order.append("barrier"))
    for step in ("save", "close"):
        monkeypatch.setattr(runtime.Run, step, lambda *args, step=step, **kwargs: order.append(step))
    run.progress, run._saved_step = runtime.Progress(step=3), 2
    with pytest.raises(SystemExit) as end:
        run._stop()
    assert order == ["save", "barrier", "close"] and end.value.code == 143
    run._saved_step = 3  # last.pt is this step already: at 1B, writing it takes a minute
    with pytest.raises(SystemExit):
        run._stop()
    assert order[3:] == ["barrier", "close"]


def test_a_closed_terminal_saves_too(base, world, tmp_path, monkeypatch):
    """SIGHUP, which torchrun passes on, is obeyed like SIGTERM; under nohup, where it is ignored, it stays so."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)  # it may be ignored here, too: `nohup make test`
    forward = rl.GRPO.backward
    monkeypatch.setattr(rl.GRPO, "backward", lambda *a, **k: os.kill(os.getpid(), signal.SIGHUP) or forward(*a, **k))
    with pytest.raises(SystemExit) as end:
        start("rl", tmp_path / "run", base, world)
    assert end.value.code == 128 + signal.SIGHUP and (tmp_path / "run/last.pt").exists()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    assert stop_signals() == [signal.SIGTERM, signal.SIGINT]


def test_an_error_of_this_gpu_is_not_another_ranks():
    """Waiting for a collective is where errors of a rank's own GPU are noticed: they keep their traceback."""
    for kind in (torch.OutOfMemoryError, torch.AcceleratorError):
        with pytest.raises(kind), together():
            raise kind("CUDA error: device-side assert triggered")
    with pytest.raises(LostRank, match="another rank died or hangs"), together():
        raise RuntimeError("Connection closed by peer")


def test_as_many_files_as_the_system_allows():
    """50 B tokens are a thousand shards, and each that is mapped is an open file: the usual soft limit."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, before[1]), before[1]))
    try:
        start_process("cpu", "fp32")
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (before[1], before[1])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_signal_to_one_rank_stops_all(pairs):
    """A rank that gets a signal leaves no other in a collective: both save the same whole step and exit with 143."""
    out, codes, (err, _) = pairs["SIGTERM"]
    assert codes == [143, 143] and "go on with --resume" in err and "Traceback" not in err
    assert runtime.load_checkpoint(out / "last.pt")["step"] == 1


@pytest.mark.parametrize("name", ["SIGKILL", "SIGSTOP"])
def test_a_lost_rank_is_told_in_one_line(pairs, name):
    """C2: a rank that was killed, or that answers no more (for RANK_TIMEOUT seconds), ends the others with one line."""
    _, codes, (err, _) = pairs[name]
    last = err.strip().splitlines()[-1]
    assert codes[0] == 2 and "Traceback" not in err
    assert last.startswith("error: another rank died or hangs") and "--resume" in last


# ---------------------------------------------------------------------------------------------------------------------
# Locks
# ---------------------------------------------------------------------------------------------------------------------


def test_two_commands_never_write_one_folder(base, world, tmp_path, whole):
    """A5: of two equal commands one makes the run, whole; the other says so in one line, exits with 2 and changes
    nothing."""
    flags = "--scale smoke --batch 4 --seq_len 64 --steps 3 --micro_tokens 1 --eval_every 0".split()
    commands = [["pretrain.py", *flags, "--data", world, "--out", tmp_path / "run"]] * 2
    processes = [start_ranks(1, command)[0] for command in commands]
    codes, said = wait_ranks(processes)
    assert sorted(codes) == [0, 2]
    (line,) = said[codes.index(2)].strip().splitlines()
    assert line.startswith("error: ") and "--out" in line
    assert_same_run(whole("pretrain"), tmp_path / "run")
    assert [x["step"] for x in logged(tmp_path / "run") if "loss" in x] == [1, 2, 3]


def test_a_folder_that_another_process_writes_to(base, world, tmp_path, whole):
    """A5: while another process holds a folder's lock, neither a new run, nor a resumed one, nor a soup writes there."""
    out = tmp_path / "run"
    out.mkdir()
    lock = files.take_lock(out)
    with pytest.raises(UserError, match="another process"):
        start("sft", out, base, world)
    with pytest.raises(UserError, match="another process"):
        pair = dict(init=str(base / "last.pt"), other=str(base / "last.pt"))
        average.main(average.Config(mode="soup", out=str(out), **pair))
    assert [p.name for p in out.iterdir()] == ["lock"]
    os.close(lock)
    start("sft", out, base, world)
    lock = files.take_lock(out)
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(UserError, match="another process"):
        start("sft", out, base, world, resume=True)
    assert (out / "metrics.jsonl").read_bytes() == before
    os.close(lock)
    one = Process(0, 1, torch.device("cpu"), torch.float32)
    new = runtime.Run(RunConfig(out=str(tmp_path / "other")), "sft", one)
    start("sft", tmp_path / "other", base, world)  # and has ended when the first one begins to write
    with pytest.raises(UserError, match="holds checkpoints"):
        new.claim()


def test_where_there_are_no_locks(tmp_path, monkeypatch):
    """On Windows, and on file systems without locks, runs go on without."""

    class Without:
        LOCK_EX = LOCK_NB = 0

        def flock(self, *_):
            raise OSError("no locks available")

    monkeypatch.setattr(files, "fcntl", Without())
    assert files.take_lock(tmp_path) is None
    monkeypatch.setattr(files, "fcntl", None)
    assert files.take_lock(tmp_path) is None
