"""The excursion from given checkpoints and with a user's own flags of stages: --bases, --stage_flags."""

import dataclasses
import json
import random
import shutil
import signal
import subprocess
import time

import pytest
from conftest import start, tiny_gpt
from test_excursion import excursion_run, flag, make_config, records

from checkpoint import load_checkpoint, save_checkpoint, weights_digest
from cli import UserError, joined
from excursion import command, known
from excursion.cells import record_name
from excursion.config import Config
from excursion.given import kind_of, nearest_scale, parse_stage_flags, read_bases, refuse_other_weights
from excursion.plan import PLANS, make_plan
from excursion.recipes import RECIPES
from excursion.runner import Runner
from files import write_jsonl
from model import SCALES, config_of


@pytest.fixture(scope="module")
def bases(tokenizer, tmp_path_factory):
    """Checkpoints of two token counts, and two without one, whose files have one name."""
    folder = tmp_path_factory.mktemp("bases")
    for seed, (name, tokens) in enumerate(
        {"b.pt": 2_000_000, "a.pt": 4_000_000, "x/last.pt": 0, "y/last.pt": 0}.items()
    ):
        model = tiny_gpt(seed, 0.3, tokenizer.padded_vocab_size, context=256)
        lineage = [{"stage": "pretrain", "step": 9, "flops": 1.0, "args": {"seq_len": 256}}]
        save_checkpoint(folder / name, {
            "format": 1, "stage": "pretrain", "config": dataclasses.asdict(model.config), "tokenizer": "world",
            "model": model.state_dict(), "step": 9, "tokens": tokens, "flops": 1.0, "lineage": lineage, "args": {}, "metrics": {},
        })  # fmt: skip
    return folder


def plan(tmp_path, *paths, **flags):
    cells = make_plan(make_config(tmp_path, bases=tuple(map(str, paths)), budget="short", **flags))
    return {cell.name: cell for cell in cells}


# ---------------------------------------------------------------------------------------------------------------------
# Plans
# ---------------------------------------------------------------------------------------------------------------------


def test_a_plan_starts_from_what_is_given(bases, tmp_path):
    """No pretraining; every recipe from every checkpoint, labelled by its tokens, in their order whatever that of the
    flag is; all seeds from the same ones, whose own evaluation is one."""
    cells = plan(tmp_path, bases / "a.pt", bases / "b.pt", recipes=("base", "rl"), seeds=(1, 2))
    assert {cell.kind for cell in cells.values()} == {"rl", "eval"}
    for label, name, tokens in (("2.00M", "b.pt", 2_000_000), ("4.00M", "a.pt", 4_000_000)):
        for seed in (1, 2):
            assert flag(cells[f"seed{seed}/{label}/rl/train"], "init") == str(bases / name)
        metas = [c.meta for n, c in cells.items() if n.split("/")[1:3] == [label, "base"]]
        assert metas and all((m["seeds"], m["tokens"]) == ([1, 2], tokens) for m in metas)
    assert {c.meta["scale"] for c in cells.values() if c.meta} == {"smoke"}
    assert [c.meta["variant"] for c in cells.values() if c.meta] == [{}] * len([c for c in cells.values() if c.meta])


def test_names_where_tokens_do_not_tell(bases, tmp_path):
    """Checkpoints of unknown or equal tokens are told apart by their files, as variants; the records have names of their own."""
    shutil.copy(bases / "b.pt", tmp_path / "copy.pt")
    names = ["b.pt", "a.pt", "x/last.pt", "y/last.pt"]
    given = read_bases((*(str(bases / name) for name in names), str(tmp_path / "copy.pt")))
    assert [g.tokens for g in given] == [0, 0, 2_000_000, 2_000_000, 4_000_000]
    labels = [g.label for g in given]
    assert labels[0].endswith("x_last") and labels[1].endswith("y_last") and labels[-1] == "4.00M"
    assert labels[2].endswith("b") and labels[3].endswith("copy") and len(set(labels)) == 5
    assert all("/" not in label and "-" not in label for label in labels)
    cells = plan(tmp_path, *(bases / name for name in names), recipes=("base", "rl"))
    variants = {c.meta["variant"].get("base", "") for c in cells.values() if c.meta}
    assert variants == {"", "x_last", "y_last"}
    records_ = [record_name(c) for c in cells.values() if c.meta]
    assert len(set(records_)) == len(records_) and any("x_last-rl" in name for name in records_)


@pytest.mark.parametrize("name", sorted(PLANS.keys() - {"checkpoints", "mixture", "scale"}))
def test_every_plan_that_pretrains_nothing_itself(bases, tmp_path, capsys, name):
    """From given checkpoints too, with all recipes: nothing is pretrained, what a cell needs is made before it or
    given; as a list, a makefile, and a script of jobs."""
    paths = [bases / "a.pt", bases / "b.pt"]
    config = make_config(
        tmp_path, plan=name, bases=tuple(map(str, paths)), budget="study", seeds=(1, 2), recipes=tuple(RECIPES),
        stage_flags=("rl --entropy 0.001",),
    )  # fmt: skip
    cells, made = make_plan(config), set(paths)
    for cell in cells:
        assert made.issuperset(cell.needs) and cell.kind != "pretrain", cell.name
        made.update(cell.results)
        assert ("--entropy" in cell.command) == (cell.kind == "rl")
    assert cells and len({c.name for c in cells}) == len(cells)
    for form in ("list", "make", "slurm"):
        config.format = form
        command.print_plan(config, cells)
        text = capsys.readouterr().out
        if form == "list":
            assert sum(line.startswith("python ") for line in text.splitlines()) == len(cells)
        if form == "slurm":
            assert text.count("\nsubmit ") == len(cells)
            assert subprocess.run(["sh", "-n"], input=text, text=True).returncode == 0
        if form == "make" and shutil.which("make"):
            done = subprocess.run(["make", "-n", "-f", "-"], input=text, text=True, capture_output=True, cwd=tmp_path)
            assert done.returncode == 0 and done.stdout.count("OMP_NUM_THREADS") == len(cells), done.stderr


def test_flags_of_stages_reach_their_cells_alone(bases, tmp_path):
    """--stage_flags stand in the plan's place, in every cell of the stage and in no other; records say so, and at which rate."""
    own = ("rl --kl 0.01 --lr 3e-5", "eval --top_p 1", "rl --entropy 0.1")
    cells = plan(tmp_path, bases / "a.pt", recipes=("base", "rl", "sft", "sft_rl", "parallel", "soup"), stage_flags=own)
    plain = plan(tmp_path / "plain", bases / "a.pt", recipes=("base", "rl", "sft", "sft_rl", "parallel", "soup"))
    assert cells.keys() == plain.keys()
    for name, cell in cells.items():
        if cell.kind == "rl":
            assert (flag(cell, "kl"), flag(cell, "lr"), flag(cell, "entropy")) == ("0.01", "3e-5", "0.1")
            assert cell.command.count("--kl") == cell.command.count("--lr") == 1
        elif cell.kind == "eval":
            assert flag(cell, "top_p") == "1"
            assert cell.meta["stage_flags"] == ["rl --kl 0.01 --lr 3e-5 --entropy 0.1", "eval --top_p 1"]
            assert "stage_flags" not in plain[name].meta
        else:
            here = str(tmp_path / "plain/out"), str(tmp_path / "out")
            assert [word.replace(*here) for word in plain[name].command] == cell.command
    rates = {c.meta["recipe"]: c.meta["rates"] for c in cells.values() if c.meta}
    assert float(rates["rl"]["lr"]) == float(rates["sft_rl"]["lr"]) == 3e-5 and rates["sft"]["lr"] == 1e-4


def test_a_changed_flag_is_another_cell(bases, tmp_path):
    """What was made with other flags of a stage is refused in OUT by name, and is no record that stands for this plan."""
    cells = list(plan(tmp_path, bases / "a.pt", recipes=("base", "rl"), stage_flags=("rl --kl 0.01",)).values())
    trained = next(c for c in cells if c.kind == "rl")
    note = tmp_path / f"out/{trained.name}.json"
    note.parent.mkdir(parents=True)
    note.write_text(json.dumps({"command": trained.command, "rc": 0, "seconds": 1.0}))
    Runner(cells, tmp_path / "out")
    other = list(plan(tmp_path, bases / "a.pt", recipes=("base", "rl"), stage_flags=("rl --kl 0.02",)).values())
    with pytest.raises(UserError, match=f"{trained.name} .*another command"):
        Runner(other, tmp_path / "out")
    folder = tmp_path / "records"
    folder.mkdir()
    for cell in cells:
        if cell.meta:
            commands = known.commands_of(cell, cells)
            (folder / f"{record_name(cell)}.cell.json").write_text(json.dumps(commands))
    assert all(known.has_record(c, cells, folder) for c in cells if c.meta)
    stands = {c.meta["recipe"]: known.has_record(c, other, folder) for c in other if c.meta}
    assert stands == {"base": True, "rl": False}


@pytest.mark.parametrize("weights", ["same", "other"])
def test_records_of_given_checkpoints_stand(bases, tmp_path, weights, capsys):
    """--records: of a checkpoint that is half done, records of its very weights stand, those of others are made again."""
    content = load_checkpoint(bases / "a.pt")
    content["lineage"][0]["weights"] = "same"
    save_checkpoint(tmp_path / "m.pt", content)
    cells = list(plan(tmp_path, tmp_path / "m.pt", recipes=("base", "rl")).values())
    folder = tmp_path / "records"
    folder.mkdir()
    done = next(c for c in cells if c.meta and c.meta["recipe"] == "base")
    (folder / f"{record_name(done)}.cell.json").write_text(json.dumps(known.commands_of(done, cells)))
    write_jsonl(folder / f"{record_name(done)}.json.gz", [{"lineage": [{"weights": weights}]}])
    asked = []
    left, standing = known.left(cells, folder, lambda some: asked.append(some) or True)
    assert asked == [[]]  # nothing is pretrained for this
    assert [c.name for c in standing] == ([done.name] if weights == "same" else [])
    assert {c.name for c in left} == {c.name for c in cells} - {c.name for c in standing}


def test_whole_units_of_given_checkpoints_are_compared(bases, tmp_path):
    """--records: where all is there, of another model of that path, nothing stands, for a command says a path alone;
    and an --out whose evaluations are of another model than the path has now is refused, whoever made them."""
    content = load_checkpoint(bases / "a.pt")
    content["lineage"][0]["weights"] = "new"
    save_checkpoint(tmp_path / "m.pt", content)
    cells = list(plan(tmp_path, tmp_path / "m.pt", recipes=("base", "rl")).values())
    judged, folder = [c for c in cells if c.meta], tmp_path / "records"
    folder.mkdir()
    for weights, stand in (("old", []), ("new", [c.name for c in judged])):
        for cell in judged:
            (folder / f"{record_name(cell)}.cell.json").write_text(json.dumps(known.commands_of(cell, cells)))
            write_jsonl(folder / f"{record_name(cell)}.json.gz", [{"lineage": [{"weights": weights}]}])
        assert [c.name for c in known.left(cells, folder, lambda some: True)[1]] == stand
    known.refuse_others(cells)
    judged[0].result.parent.mkdir(parents=True)
    for lineage in ([{}], [{"weights": "new"}], [{"weights": "old"}]):
        judged[0].result.write_text(json.dumps({"lineage": lineage}))
        if lineage == [{"weights": "old"}]:
            with pytest.raises(UserError, match="is of another model than --bases .*m.pt is now"):
                known.refuse_others(cells)
        else:
            known.refuse_others(cells)


def test_a_checkpoint_that_was_made_anew_needs_another_out(bases, tmp_path):
    """Cells know commands, not weights: a run from a retrained a.pt would report what the old one had made."""
    given, out = tmp_path / "m.pt", tmp_path / "out"
    for name, refused in (("a.pt", False), ("a.pt", False), ("b.pt", True)):
        shutil.copyfile(bases / name, given)
        read_bases.cache_clear()
        found = read_bases((str(given),))
        if refused:
            with pytest.raises(UserError, match="m.pt: is another model than the one that .*out was begun from"):
                refuse_other_weights(found, out)
        refuse_other_weights(found, tmp_path / f"out_{name}")
        if not refused:
            refuse_other_weights(found, out)
    assert found[0].weights == weights_digest(load_checkpoint(given)["model"])  # of a file that does not say it


def test_what_cannot_be_given_is_one_line(bases, tmp_path):
    base = bases / "a.pt"
    for name in ("x-1", "x_1"):
        shutil.copytree(bases / "x", tmp_path / name)
    for flags, match in [
        (dict(scale="mini"), "--scale has no effect beside --bases"),
        (dict(checkpoints="2M"), "--checkpoints has no effect beside --bases"),
        (dict(tokens="3M"), "--tokens has no effect beside --bases"),
        (dict(pretraining="each"), "--pretraining has no effect"),
        (dict(plan="scale"), "--bases has no effect in the plan scale, which pretrains"),
        (dict(bases=(str(base), str(base))), "named twice"),
        (dict(bases=(str(tmp_path / "none.pt"),)), "no such checkpoint"),
        (dict(bases=(str(tmp_path / "*.none"),)), "--bases .* matches no file"),
        (dict(stage_flags=("rl",)), "--stage_flags rl: one of pretrain, sft, rl"),
        (dict(stage_flags=("grpo --kl 1",)), "--stage_flags grpo --kl 1: one of"),
        (dict(stage_flags=("rl '--kl",)), "--stage_flags rl '--kl: name a stage"),
        (dict(stage_flags=("rl 0.01",)), "then its flags in quotes"),
        (dict(stage_flags=("rl --kll 0.01",)), "rl.py has no such flag"),
        (dict(stage_flags=("rl --kl",)), "--stage_flags rl --kl: rl.py cannot read it"),
        (dict(stage_flags=("rl --kl much",)), "--stage_flags rl --kl much: rl.py cannot read it"),
        (dict(stage_flags=("rl --kl nan",)), "--stage_flags rl --kl nan: --kl nan: must lie in"),
        (dict(stage_flags=("rl --dual_clip 1",)), "--dual_clip 1"),
        (dict(stage_flags=("eval --examples gsm8k",)), "--examples gsm8k: --examples has no effect with --shots 0"),
        (dict(stage_flags=("rl --kl 1", "rl --kl 2")), "--stage_flags rl --kl: given twice"),
        (dict(stage_flags=("rl --steps 3",)), "--stage_flags rl --steps: the plan sets it; pass --points instead"),
        (dict(stage_flags=("rl --eval_questions none",)), "by them the step of each run is chosen"),
        (dict(stage_flags=("rl --eval_questions=none --kl 1",)), "by them the step of each run is chosen"),
        (dict(stage_flags=("pretrain --steps 3",)), "pass --tokens instead"),
        (dict(stage_flags=("eval --temperature 1",)), "pass --points_t1 instead"),
        (dict(bases=(str(tmp_path / "x-1/last.pt"), str(tmp_path / "x_1/last.pt"))), "differ in signs alone"),
        (dict(stage_flags=("rl --eval_every 3",)), "--stage_flags rl --eval_every: the plan sets it; leave it out"),
        (dict(stage_flags=("sft --solutions all",)), "--stage_flags sft --solutions: the recipe sft sets it"),
        (dict(plan="sharpening", stage_flags=("rl --lr 1",)), "--stage_flags rl --lr: the plan sharpening varies it"),
        (dict(stage_flags=("pretrain --lr 1",)), "--stage_flags pretrain: this plan has no cell of pretrain.py"),
    ]:
        with pytest.raises(UserError, match=match) as error:
            make_plan(make_config(tmp_path, **{"bases": (str(base),), "recipes": ("base", "sft", "rl")} | flags))
        assert "\n" not in str(error.value), flags


def test_a_flag_that_some_values_of_the_plan_refuse(bases, tmp_path):
    """Examples of one's own are for cells that show some: a plan of those alone takes them."""
    own = ("eval --examples gsm8k",)
    cells = plan(tmp_path, bases / "a.pt", recipes=("base",), stage_flags=own)
    assert {flag(c, "examples") for c in cells.values()} == {"gsm8k"}
    shard = dict(recipes=("rl",), stage_flags=("rl --shard",))
    assert plan(tmp_path, bases / "a.pt", **shard, launch="torchrun --nproc_per_node=8")
    with pytest.raises(UserError, match="--shard has no effect on one process"):
        plan(tmp_path, bases / "a.pt", **shard)
    words = ["--init", "a.pt", "--k", "1", "8", "--shots", "0", "--out", "x"]
    assert kind_of(words) == ["--init", "--k", "1", "8", "--shots", "0", "--out"]


def test_flags_of_one_stage_that_another_has_from_the_plan(bases, tmp_path):
    """No plan sets RL's temperature or training questions, nor an evaluation's seed."""
    own = ("rl --temperature 0.9 --questions mine", "eval --seed 3", "sft --eval_questions mine")
    cells = plan(tmp_path, bases / "a.pt", recipes=("base", "sft", "rl"), stage_flags=own)
    for kind, name, value in (
        ("rl", "temperature", "0.9"),
        ("rl", "questions", "mine"),
        ("eval", "seed", "3"),
        ("sft", "eval_questions", "mine"),
    ):
        assert {flag(c, name) for c in cells.values() if c.kind == kind} == {value}, (kind, name)


def test_flags_of_pretraining(tmp_path):
    """Without --bases the pretraining cells take flags too."""
    cells = make_plan(make_config(tmp_path, scale="micro", stage_flags=("pretrain --z_loss 0.001",)))
    assert [flag(c, "z_loss") for c in cells if c.kind.startswith("pretrain")] == ["0.001"]


def test_two_words_of_a_flag():
    """--stage_flags takes a stage and its flags in quotes, again and again; = and one word do as well."""
    pair = ["--stage_flags", "rl", "--kl 0.01"]
    assert joined([*pair, "--out", "x", *pair], Config) == [
        "--stage_flags=rl --kl 0.01",
        "--out",
        "x",
        "--stage_flags=rl --kl 0.01",
    ]
    assert joined(["--stage_flags", "rl --kl 1", "--out", "x"], Config) == ["--stage_flags=rl --kl 1", "--out", "x"]
    assert joined(["--stage_flags=rl", "--kl 1"], Config) == ["--stage_flags=rl --kl 1"]
    found = parse_stage_flags(("rl --kl 0.01", "sft --lr=1e-5", "pretrain --no-verify"))
    assert found == {
        "rl": {"kl": ["--kl", "0.01"]},
        "sft": {"lr": ["--lr=1e-5"]},
        "pretrain": {"verify": ["--no-verify"]},
    }


@pytest.mark.parametrize("scale", SCALES)
def test_the_nearest_scale(scale):
    """A model of a scale is of that scale, and so is one that is a little larger."""
    assert nearest_scale(config_of(scale, 640)) == scale
    assert nearest_scale(config_of(scale, 640, d_ff=SCALES[scale]["d_ff"] + 32)) == scale


# ---------------------------------------------------------------------------------------------------------------------
# By the command line
# ---------------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_an_ablation_over_checkpoints_killed_and_resumed(base, world, tmp_path):
    """One command, from two checkpoints of a run: killed and given again it has the records of a run that was not
    killed; the report names the flag; with another flag the same OUT is refused."""
    for i, tokens in enumerate((1000, 3000)):
        content = load_checkpoint(base / "last.pt") | {"tokens": tokens}
        content["model"] = {name: tensor * (1 + 0.01 * i) for name, tensor in content["model"].items()}
        save_checkpoint(tmp_path / f"m{i}.pt", content)
    flags = ["--recipes", "base_0shot", "rl", "--data", world, "--jobs", "1", "--budget", "smoke", "--points", "2"]
    flags += ["--limit", "4", "--stage_flags", "rl", "--kl 0.01", "--stage_flags", "eval", "--top_p 1.0"]
    two, one = ["--bases", tmp_path / "m1.pt", tmp_path / "m0.pt"], ["--bases", tmp_path / "m0.pt"]
    out, whole = tmp_path / "killed", tmp_path / "whole"
    process = start("-m", "excursion", "run", *two, *flags, "--out", out)
    time.sleep(random.uniform(6, 25))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    for bases, folder in ((two, out), (one, whole)):
        code, text, err = excursion_run("run", *bases, *flags, "--out", folder)
        assert code == 0 and "wrote" in text, err
    again = {name: text for name, text in records(out).items() if "0.003M" not in name}
    assert len(again) == 4 and again == records(whole)
    # which flags it was
    meta = json.loads((out / "records/seed0-0.003M-rl.cell.json").read_text())
    assert meta["stage_flags"] == ["rl --kl 0.01", "eval --top_p 1.0"] and "--kl 0.01" in meta["command"]
    assert load_checkpoint(out / "seed0/0.003M/rl/run/last.pt")["args"]["kl"] == 0.01
    report = (out / "report.md").read_text()
    assert "2 checkpoints" in report and "rl --kl 0.01" in report
    # another flag
    other = ["--kl 0.02" if word == "--kl 0.01" else word for word in flags]
    code, _, err = excursion_run("run", *two, *other, "--out", out)
    assert code == 2 and "another command" in err and len(err.splitlines()) == 1, err


def test_checkpoints_without_tokens_have_a_report(bases, tmp_path, world):
    """Of equal or unknown tokens: all is run, and the table tells the models apart."""
    flags = [
        "--bases",
        bases / "x/last.pt",
        bases / "y/last.pt",
        "--recipes",
        "base_0shot",
        "--data",
        world,
        "--budget",
        "smoke",
    ]
    code, _, err = excursion_run("run", *flags, "--out", tmp_path / "x")
    assert code == 0, err
    table = (tmp_path / "x/report.md").read_text()
    assert "base x_last" in table and "base y_last" in table and "from 2 checkpoints" in table
