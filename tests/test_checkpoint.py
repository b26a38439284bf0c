"""checkpoint.py: a damaged or hostile file is one line, runs no code and takes no memory; a good one is read exactly."""

import collections
import copy
import math
import os
import pickle
import random
import re
import shutil
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import same
from test_files import command

import pretrain
import runtime
import sft
from checkpoint import load_checkpoint, load_model, save_checkpoint, weights_digest
from cli import UserError
from config import RunConfig
from data import tokenizer as tokenizers
from files import TRAILER, check_trailer
from optimizer import load_optimizer, make_optimizer
from process import Process
from sampler import sample

HUGE = 10**7


class Touch:
    """Unpickled without care, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch {self.path}",)


@pytest.fixture(scope="module")
def good(base) -> dict:
    return load_checkpoint(base / "last.pt")


def changed(part: str, **values):
    """The checkpoint with entries of one of its dictionaries changed; None removes one."""

    def change(c: dict) -> dict:
        inner = (c[part] if part else c) | values
        inner = {k: v for k, v in inner.items() if v is not None}
        return c | {part: inner} if part else inner

    return change


def weight(change):
    """The checkpoint with its head changed."""
    return lambda c: c | {"model": c["model"] | {"head.weight": change(c["model"]["head.weight"].clone())}}


def first(value: float):
    def change(w):
        w.view(-1)[0] = value
        return w

    return weight(change)


HOSTILE = {
    **{f"without {k}": changed("", **{k: None}) for k in ("format", "stage", "config", "tokenizer", "model", "step")},
    **{f"without {k}": changed("", **{k: None}) for k in ("tokens", "lineage", "args")},
    "format 2": changed("", format=2),
    "a list": lambda c: [c],
    "a tensor": lambda c: c["model"]["head.weight"],
    "stage unknown": changed("", stage="attack"),
    "stage a list": changed("", stage=["pretrain"]),
    "step a word": changed("", step="12"),
    "step negative": changed("", step=-1),
    "step a tensor": changed("", step=torch.ones(3)),
    "tokens nan": changed("", tokens=float("nan")),
    "flops nan": changed("", flops=float("nan")),
    "flops infinite": changed("", flops=float("inf")),
    "lineage a dict": changed("", lineage={}),
    "lineage of words": changed("", lineage=["pretrain"]),
    "args of tensors": changed("", args={"lr": torch.ones(2)}),
    "args with number keys": changed("", args={1: 2}),
    "metrics a word": changed("", metrics="good"),
    "tokenizer a number": changed("", tokenizer=3),
    "tokenizer unknown": changed("", tokenizer="../../etc/passwd"),
    "tokenizer larger": changed("", tokenizer="gpt2", tokenizer_digest=tokenizers.tokenizer_digest("gpt2")),
    "tokenizer of other ranks": changed("", tokenizer_digest="0123456789abcdef"),
    "train a word": changed("", train="x"),
    "progress negative": changed("train", progress={"step": -1, "tokens": 0, "flops": 0.0, "skipped": 0}),
    "progress lacks": changed("train", progress={"step": 1}),
    "config a list": changed("", config=[1]),
    "config unknown key": changed("config", experts=8),
    "config lacks d_ff": changed("config", d_ff=None),
    "config words": changed("config", d_model="64"),
    "config truth": changed("config", n_layers=True),
    "0 heads": changed("config", n_heads=0),
    "3 heads": changed("config", n_heads=3),
    "negative width": changed("config", d_model=-64),
    "fractional width": changed("config", d_model=64.0),
    "huge layers": changed("config", n_layers=HUGE),
    "many layers": changed("config", n_layers=1000),
    "huge vocabulary": changed("config", vocab_size=10**12),
    "huge context": changed("config", context=10**12),
    "large context": changed("config", context=2**22, n_heads=1, n_kv_heads=1),
    "huge number": changed("config", d_ff=10**5000),
    "rope_theta 0": changed("config", rope_theta=0.0),
    "rope_theta that no tensor holds": changed("config", rope_theta=10**30),
    "norm_eps that no tensor holds": changed("config", norm_eps=10**19),
    "rope_theta nan": changed("config", rope_theta=float("nan")),
    "norm_eps negative": changed("config", norm_eps=-1.0),
    "norm_eps infinite": changed("config", norm_eps=float("inf")),
    "model a list": changed("", model=[1]),
    "weights of words": changed("model", **{"head.weight": "x"}),
    "a weight missing": changed("model", **{"head.weight": None}),
    "a weight too many": changed("model", router=torch.ones(2)),
    "a weight of another shape": weight(lambda w: w[:-1].clone()),
    "nan": first(float("nan")),
    "infinite": first(float("-inf")),
    "complex": weight(lambda w: w.to(torch.complex64)),
    "integers": weight(lambda w: w.to(torch.int32)),
    "truths": weight(lambda w: w > 0),
    "sparse": weight(lambda w: w.to_sparse()),
    "nested": weight(lambda w: torch.nested.nested_tensor([w[0], w[1]])),
    "without data": weight(lambda w: w.to("meta")),
    "one number for all": weight(lambda w: torch.ones(1).expand(w.shape)),
    "float8": weight(lambda w: w.to(torch.float8_e4m3fn)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_checkpoint_is_one_line(name, good, tmp_path):
    """Keys, types, ranges, sizes and weights that no stage writes: a UserError of one line that names the file, at once
    and without allocating what the file claims."""
    path = tmp_path / "x.pt"
    save_checkpoint(path, HOSTILE[name](good))
    with pytest.raises(UserError) as error:
        load_checkpoint(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_no_code_of_a_checkpoint_runs(good, tmp_path):
    """Pickled calls, as torch.save writes them, as a bare pickle, and as torch's old format: refused, not executed."""
    path, made = tmp_path / "x.pt", tmp_path / "made"
    writers = [
        lambda: torch.save(good | {"args": Touch(made)}, path),
        lambda: torch.save(good | {"args": Touch(made)}, path, _use_new_zipfile_serialization=False),
        lambda: path.write_bytes(pickle.dumps(Touch(made))),
        lambda: torch.save(good | {"args": collections.Counter("aab")}, path, _use_new_zipfile_serialization=False),
        lambda: torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path),
    ]
    for write in writers:
        write()
        with pytest.raises(UserError, match=re.escape(str(path))):
            load_checkpoint(path)
    assert not made.exists()


def test_flags_nested_too_deep(good, tmp_path):
    """100,000 lists in each other, which no writer makes but a few bytes of a pickle do."""
    save_checkpoint(tmp_path / "x.pt", good | {"args": {"x": "MARK"}})
    text, deep = b"X\x04\x00\x00\x00MARK", b"]" * 100_000 + b"a" * 99_999
    with zipfile.ZipFile(tmp_path / "x.pt") as source, zipfile.ZipFile(tmp_path / "y.pt", "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member).replace(text, deep))
    with pytest.raises(UserError, match="y.pt: args is missing or not a dictionary of flags"):
        load_checkpoint(tmp_path / "y.pt")


def test_flags_that_are_large_only_when_written_out(good, tmp_path):
    """A list that holds another twice, and that one a third: 40 of them are a few bytes, and 2^40 values as text."""
    shared = [1]
    for _ in range(40):
        shared = [shared, shared]
    for key in ("args", "metrics"):
        save_checkpoint(tmp_path / "x.pt", good | {key: {"x": shared}})
        with pytest.raises(UserError, match=f"{key} is missing or not a dictionary"):
            load_checkpoint(tmp_path / "x.pt")


def test_weights_that_share_their_memory(good, tmp_path):
    """Views of one small tensor are a small file; as a model they would fill the memory."""
    shapes = {name: tensor.shape for name, tensor in good["model"].items()}
    one = torch.zeros(max(shape.numel() for shape in shapes.values()))
    content = good | {"model": {name: one[: shape.numel()].view(shape) for name, shape in shapes.items()}}
    content.pop("train", None)
    save_checkpoint(tmp_path / "x.pt", content)
    with pytest.raises(UserError, match="the weights are larger than the file"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_packed_checkpoint_is_refused(base, tmp_path):
    """A compressed member could unpack to any size: torch.save writes none."""
    with zipfile.ZipFile(base / "last.pt") as source, zipfile.ZipFile(tmp_path / "x.pt", "w") as target:
        for member in source.infolist():
            target.writestr(member.filename, source.read(member), zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="compressed"):
        load_checkpoint(tmp_path / "x.pt")


def test_a_flipped_bit_is_found_or_harmless(base, good, tmp_path):
    """One bit anywhere in the file (weights, pickled metadata, zip headers, the trailer) is refused with the file's
    name, or leaves the content as it was: 60 at random, 20 in the first kilobyte, 20 in the zip's directory, all of the
    trailer."""
    whole, path = (base / "last.pt").read_bytes(), tmp_path / "x.pt"
    rng = random.Random(0)
    size = len(whole)
    places = [rng.randrange(size) for _ in range(60)] + [rng.randrange(1024) for _ in range(20)]
    places += [size - 17 - rng.randrange(4000) for _ in range(20)] + list(range(size - 16, size))
    found = 0
    for place in places:
        flipped = bytearray(whole)
        flipped[place] ^= 1 << rng.randrange(8)
        path.write_bytes(flipped)
        try:
            assert same(load_checkpoint(path), good), place
        except UserError as error:
            assert str(error).startswith(f"{path}: damaged")
            found += 1
    assert found == 100 + 8 + 1  # of the trailer, its digits and the last byte; its name makes it a file without one


def test_every_cut_is_found(base, tmp_path):
    """A file cut anywhere, also within the trailer, does not load as another content."""
    whole, path = (base / "last.pt").read_bytes(), tmp_path / "x.pt"
    for left in (0, 1, 100, len(whole) // 2, len(whole) - 1000, len(whole) - 17):
        path.write_bytes(whole[:left])
        with pytest.raises(UserError, match="truncated or not a checkpoint"):
            load_checkpoint(path)


def test_a_checkpoint_without_digest_still_loads(base, good, tmp_path):
    """Files of before there were digests, and of plain torch.save."""
    old = {k: v for k, v in good.items() if k != "tokenizer_digest"}
    torch.save(old, tmp_path / "x.pt")
    assert not (tmp_path / "x.pt").read_bytes()[-16:].startswith(TRAILER)
    check_trailer(tmp_path / "x.pt")
    assert same(load_checkpoint(tmp_path / "x.pt"), old)
    assert (base / "last.pt").read_bytes()[-16:].startswith(TRAILER)


def test_a_checkpoint_of_other_ranks_is_refused(base, tmp_path, monkeypatch):
    """When world.tiktoken changes, checkpoints trained on its older form are refused and not read with other words."""
    ranks = tmp_path / "world.tiktoken"
    lines = tokenizers.WORLD_RANKS.read_bytes().splitlines(keepends=True)
    ranks.write_bytes(
        b"".join(lines[:-2])
        + lines[-1].split()[0]
        + b" %d\n" % (len(lines) - 2)
        + lines[-2].split()[0]
        + b" %d\n" % (len(lines) - 1)
    )
    monkeypatch.setattr(tokenizers, "WORLD_RANKS", ranks)
    with pytest.raises(UserError, match=r"last.pt: was made with another version of the tokenizer 'world'"):
        load_checkpoint(base / "last.pt")


def test_loading_gives_what_was_saved(base, good):
    """The model has the checkpoint's bits and the rotary tables of its config, in fp32, on memory of its own."""
    model = load_model(good)
    assert same(dict(model.state_dict()), good["model"])
    assert all(p.dtype == torch.float32 and p.requires_grad for p in model.parameters())
    fresh = type(model)(model.config)
    assert torch.equal(model.cos, fresh.cos) and torch.equal(model.sin, fresh.sin)
    mapped = {t.untyped_storage().data_ptr() for t in good["model"].values()}
    assert not mapped & {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers()]}


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="looks into /proc")
def test_a_loaded_checkpoint_is_dropped(base, tmp_path):
    """Model and optimizer keep nothing of the file: when the checkpoint is dropped, it is no longer mapped."""
    path = tmp_path / "dropped.pt"
    shutil.copy(base / "last.pt", path)
    checkpoint = load_checkpoint(path)
    model = load_model(checkpoint)
    optimizer = make_optimizer(model, 1e-3, 0.1, (0.9, 0.95), decay_gains=True)
    load_optimizer(optimizer, checkpoint["train"]["optimizer"])
    assert "dropped.pt" in Path("/proc/self/maps").read_text()
    del checkpoint
    assert "dropped.pt" not in Path("/proc/self/maps").read_text()


def test_a_loaded_state_is_saved_with_the_same_bits(good):
    """A resume that only writes the kept checkpoint again, which a kill has cost, changes nothing: no rate, no moment."""
    optimizer = make_optimizer(load_model(good), 1.0, 0.1, (0.9, 0.95), decay_gains=True)
    load_optimizer(optimizer, good["train"]["optimizer"])
    assert same(optimizer.state_dict(), good["train"]["optimizer"])


def test_no_memory_for_an_optimizer_is_no_fault_of_its_state(good, monkeypatch):
    """A sharded run that goes on with fewer GPUs may meet its end here: "start a new run" would be the wrong advice."""
    optimizer = make_optimizer(load_model(good), 1.0, 0.1, (0.9, 0.95), decay_gains=True)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(optimizer, "load_state_dict", full)
    with pytest.raises(torch.OutOfMemoryError):
        load_optimizer(optimizer, good["train"]["optimizer"])


def test_optimizer_states_that_do_not_fit(good):
    """Of other shapes, with a part missing, or no state at all: one line."""
    optimizer = make_optimizer(load_model(good), 1e-3, 0.1, (0.9, 0.95), decay_gains=True)
    state = good["train"]["optimizer"]
    broken = [
        {},
        [],
        state | {"param_groups": []},
        state | {"state": {0: state["state"][0]}},
        state
        | {"state": state["state"] | {0: state["state"][0] | {"exp_avg": state["state"][0]["exp_avg"] * math.nan}}},
        state | {"state": {0: {"step": torch.ones(())}}},
        state | {"state": {i: {"step": torch.ones(())} for i in state["state"]}},
        state | {"state": {i: values | {"mu_product": torch.ones(())} for i, values in state["state"].items()}},
        state | {"state": state["state"] | {0: state["state"][0] | {"exp_avg": torch.ones(())}}},
        state | {"state": state["state"] | {0: state["state"][0] | {"step": torch.zeros(())}}},
        state | {"state": {0: state["state"][0] | {"exp_avg": torch.ones(3)}}},
    ]
    for wrong in broken:
        with pytest.raises(UserError, match="optimizer's state does not fit"):
            load_optimizer(optimizer, wrong)


@pytest.mark.parametrize("kind", ["AdamW", "NAdam", "SGD", "RMSprop"])
def test_an_optimizer_of_another_kind_goes_on(kind):
    """Saved after two steps and loaded into a new one: the third step has the bits of a run that was not interrupted.
    The state of AdamW does not fit an optimizer that keeps something else."""

    def step(model, optimizer, seed):
        for p in model.parameters():
            p.grad = torch.randn(p.shape, generator=torch.Generator().manual_seed(seed))
        optimizer.step()
        optimizer.zero_grad()

    def make(kind=kind):
        model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4))
        with torch.no_grad():
            for p in model.parameters():
                p.copy_(torch.linspace(-1, 1, p.numel()).view(p.shape))
        return model, getattr(torch.optim, kind)(model.parameters(), lr=0.1)

    whole, optimizer = make()
    step(whole, optimizer, 0)
    step(whole, optimizer, 1)
    again, resumed = make()
    again.load_state_dict(copy.deepcopy(whole.state_dict()))
    weights = copy.deepcopy(again.state_dict())
    load_optimizer(resumed, copy.deepcopy(optimizer.state_dict()))
    assert same(again.state_dict(), weights)  # loading changes no weight
    assert len(resumed.param_groups) == 1 and len(resumed.state) == len(optimizer.state)
    step(whole, optimizer, 2)
    step(again, resumed, 2)
    assert same(whole.state_dict(), again.state_dict())
    if kind != "AdamW":
        model, adamw = make("AdamW")
        step(model, adamw, 0)
        with pytest.raises(UserError, match="optimizer's state does not fit"):
            load_optimizer(make()[1], adamw.state_dict())


@pytest.mark.parametrize("args", [
    {"lr": "fast"}, {"lr": float("inf")}, {"lr": -1.0}, {"steps": "x"}, {"seed": 1.5}, {"schedule": "x"}, {"resume": 1},
    {"save_at": 3}, {"mix": None}, {"scale": "huge"}, {"attack": 1}, {"schedule": None},
], ids=str)  # fmt: skip
def test_flags_that_no_run_could_have_had(args, good, world, tmp_path, capsys):
    """--resume takes its flags from last.pt: those of another kind, or out of range, are one line and exit code 2."""
    flags = {k: v for k, v in (good["args"] | args).items() if v is not None or k == "mix"}
    (tmp_path / "run").mkdir()
    save_checkpoint(tmp_path / "run/last.pt", good | {"args": flags})
    assert command(pretrain, "--resume", "--out", tmp_path / "run") == 2
    assert capsys.readouterr().err.count("error: ") == 1


@pytest.mark.parametrize("position", [None, -1, 0.5, "1", True, 10**30])
def test_positions_in_the_data_that_are_none(good, tmp_path, position):
    """A cursor is a count: anything else is one line."""
    one = Process(0, 1, torch.device("cpu"), torch.float32)
    run = runtime.Run(RunConfig(out=str(tmp_path), resume=True), "sft", one)
    run.to_restore = good["train"] | {"sft": position}
    with pytest.raises(UserError, match="sft, its position in the data"):
        run.restore(sft=runtime.Cursor(5, 0))


def test_logits_that_are_not_finite_end_in_one_line(good):
    """Weights that are finite but far too large give NaN: greedy and drawn samples of them are refused."""
    model = load_model(good).eval()
    with torch.no_grad():
        model.head.weight.fill_(3e38)
        for temperature, top_p in ((0.0, 1.0), (1.0, 1.0), (1.0, 0.9)):
            with pytest.raises(UserError, match="logits are not finite"):
                sample(model, [[1, 2, 3]], 2, stop=0, max_new_tokens=3, temperature=temperature, top_p=top_p)


def test_lineage_names_the_weights(base, world, tmp_path):
    """The digest in a lineage is that of the weights, and a run that starts from them carries it on."""
    checkpoint = load_checkpoint(base / "last.pt")
    model = load_model(checkpoint)
    digest = checkpoint["lineage"][-1]["weights"]
    assert digest == weights_digest(model.state_dict())
    with torch.no_grad():
        model.head.weight[0, 0] += 2**-20
    assert weights_digest(model.state_dict()) != digest
    flags = dict(data=str(world), init=str(base / "last.pt"), steps=1, rows=2, limit=4, eval_every=0)
    sft.main(sft.Config(out=str(tmp_path / "run"), **flags))
    lineage = load_checkpoint(tmp_path / "run/last.pt")["lineage"]
    assert [x["stage"] for x in lineage] == ["pretrain", "sft"] and lineage[0]["weights"] == digest != lineage[1][
        "weights"
    ]


def test_a_folder_of_hugging_face_is_known(tmp_path):
    """A stage that is given one names the command that makes a checkpoint of it."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=f"olmo2 import {tmp_path} {tmp_path}.pt"):
        load_checkpoint(tmp_path)
