"""findings.py and plan_findings.py: verdicts on records made by hand, trajectories, and the report made of them."""

import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import recompute
from synthetic import STEPS, World, make_entry, save, study

from cli import UserError
from excursion import figures, report
from excursion.cells import record_name
from excursion.claims import Claim, Finding, claim
from excursion.config import Config, resolve
from excursion.contrasts import Contrast, Grid, at_equal_pass1, contrast, mean_of, runs
from excursion.findings import ADVANTAGE, Contrasts
from excursion.plan import make_plan
from excursion.plan_findings import all_findings, demonstrations, demonstrations_answer, questions
from excursion.recipes import RECIPES
from excursion.records import Entry, Questions, general_bits, load, task_items
from excursion.sharpening import Sharpening, answer
from excursion.stats import Estimate, estimate
from files import read_json, write_jsonl

PAPER = {  # recipe → right of 32 on the solved and how many tenths of the unsolved half of the questions, bits, share of items
    "base": ((2, 0), 1.0, 0.9),
    "rl": ((20, 4), 1.0, 0.9),
    "sft": ((10, 6), 1.02, 0.8),
    "sft_converged": ((9, 0), 1.1, 0.7),
    "sft_rl": ((22, 0), 1.1, 0.7),
    "gold": ((30, 9), 1.1, 0.7),
    "parallel": ((9, 9), 1.0, 0.9),
    "sft_dose": ((9, 5), 1.0, 0.9),
}
FULL = {"prompts": 16, "rollouts": 32, "limit": 256}  # × 160 steps: the paper's 320 answers per question


def as_in_the_paper(seeds: int, args=FULL, **changes) -> list:
    """Records of a world in which the paper's findings hold: 200 questions, two checkpoints, the paper's dose."""
    rng, entries = np.random.default_rng(0), []
    noise = rng.integers(0, 2, (seeds, 200))  # a seed's own, alike for its recipes
    for recipe, ((easy, hard), bits, share) in (PAPER | changes).items():
        for tokens in (1_000_000, 2_000_000):
            for seed in range(seeds):
                right = np.where(np.arange(200) < 100, easy, 0)
                right = right + np.where((np.arange(200) >= 100) & (np.arange(200) < 100 + 10 * hard), 1, 0)
                right[:100] = np.clip(right[:100] + noise[seed, :100], 0, 32)
                items = np.arange(400) < 400 * share
                more = dict(items=items, bits=bits + 0.001 * seed, step=160, args=args)
                entries.append(make_entry(recipe, tokens, seed, right, **more))
    return entries


def verdicts(entries) -> dict[str, str]:
    return {f.number: f.verdict for f in all_findings(entries)}


def finding(entries, number: str) -> Finding:
    return next(f for f in all_findings(entries) if f.number == number)


@pytest.mark.parametrize("seeds", [1, 3])
def test_findings_that_hold(seeds):
    """Shown where the records show them; by bits per byte only with several seeds, since one number has no interval.
    What needs trajectories or another plan says so."""
    found = verdicts(as_in_the_paper(seeds))
    assert [found[n] for n in ("1", "3a", "3b", "4", "5")] == ["shown"] * 5
    assert found["4 by text"] == ("shown" if seeds == 3 else "unclear")
    assert [found[n] for n in ("3c", "6", "7", "8")] == ["not run"] * 4


def test_findings_that_do_not_hold():
    """Contradicted, not merely unshown: RL that lowers pass@1, averaging below SFT, SFT that costs nothing."""
    found = verdicts(as_in_the_paper(3, rl=((0, 0), 1.2, 0.5), sft_converged=((9, 0), 0.9, 0.95)))
    assert [found[n] for n in ("1", "3a", "4", "4 by text")] == ["contradicted"] * 4
    assert verdicts(as_in_the_paper(3, parallel=((9, 0), 1.0, 0.9)))["5"] == "contradicted"


def test_alike_with_its_control_contradicts_averaging():
    """Averaging that is above all recipes and alike with SFT alone at its dose: finding 5 is contradicted."""
    same = ((9, 9), 1.0, 0.9)
    f = finding(as_in_the_paper(3, sft_dose=same, parallel=same), "5")
    assert f.verdict == "contradicted" and [c.verdict for c in f.primary] == ["shown"] * 3 + ["contradicted"]


def test_sharpening_is_contradicted_only_at_the_papers_rate_and_dose():
    """RL after SFT that raises pass@32 at our rate: unclear until the paper's own rate is run too."""
    up = dict(sft_rl=((22, 9), 1.1, 0.7))
    assert finding(as_in_the_paper(3, **up), "3b").verdict == "unclear"
    hot = [e for e in as_in_the_paper(3, **up) if e.recipe == "sft_rl"]
    for e in hot:
        e.meta |= {"variant": {"rate": 40.0}, "paper": True}
    assert finding(as_in_the_paper(3, **up) + hot, "3b").verdict == "contradicted"


def test_below_the_papers_dose_nothing_that_names_it_is_contradicted():
    """At a tenth of the paper's answers per question RL × 2 does not contradict × 4; a note gives both doses."""
    weak = dict(rl=((6, 0), 1.0, 0.9))
    assert finding(as_in_the_paper(3, **weak), "1").verdict == "contradicted"
    f = finding(as_in_the_paper(3, args=FULL | {"limit": 2560}, **weak), "1")
    assert f.verdict == "unclear" and "32 sampled answers" in f.notes[0] and "320" in f.notes[0]


def test_without_records_every_finding_says_what_it_needs():
    """None of the eight crashes or vanishes, whatever is missing: each names the plan that makes its records."""
    everything = study(tokens=(3_500_000, 5_600_000), seeds=(1,), n=30)
    wanted = {"1", "2", "3a", "3b", "3c", "4", "4 by text", "5", "6", "7", "8"}
    recipes = sorted({e.recipe for e in everything})
    for gone in [[], *([r] for r in recipes), recipes, ["base", "base_0shot"]]:
        found = all_findings([e for e in everything if e.recipe not in gone])
        assert {f.number for f in found} == wanted
        for f in found:
            assert f.verdict != "not run" or "plan" in f.needs
            assert all(c.x is not None or c.needs for c in f.primary)
    assert all(answer for _, answer in questions([e for e in everything if e.recipe == "base"]))


def test_holm_over_the_contrasts_of_a_finding():
    """A contrast with p = 4% is shown alone and unclear among three."""
    x = Estimate(2.05, 1.0, 1000.0, 3, 500, 500)
    null = Estimate(0.0, 1.0, 1000.0, 3, 500, 500)
    assert Finding("x", "", [Claim("a", x, "above")]).verdict == "shown"
    three = Finding("x", "", [Claim("a", x, "above"), Claim("b", null, "above"), Claim("c", null, "above")])
    assert three.claims[0].verdict == "unclear" and three.claims[0].p_shown == pytest.approx(3 * 0.0406, rel=0.02)
    beside = Finding("x", "", [Claim("a", x, "above"), Claim("b", null, "above", counts=False)])
    assert beside.verdict == "shown"
    # what was not run counts too: else the records that come later would weaken the correction
    missing = Finding("x", "", [Claim("a", x, "above"), Claim("b", None, "above"), Claim("c", None, "above")])
    assert missing.claims[0].p_shown == three.claims[0].p_shown


def test_cost_by_tasks_and_by_text_is_one_finding():
    """Holm's correction of finding 4 is over its four contrasts, although the report shows them under two headings."""
    entries = as_in_the_paper(3, sft_converged=((9, 0), 1.0, 0.7))  # its text costs nothing
    four, text = (finding(entries, n) for n in ("4", "4 by text"))
    tasks, bits = four.primary[0], text.primary[0]
    assert 0 < tasks.tests[0] < bits.tests[0]  # RL's two have p = 0: two of four are left, of which this is the smaller
    assert tasks.p_shown == pytest.approx(2 * tasks.tests[0], abs=0)


def test_a_verdict_of_one_seed_says_so():
    """An interval over questions alone holds for one run: in the verdict, the heading, the summary and the answer."""
    x = Estimate(3.0, 1.0, 1000.0, 1, 500, 500)
    f = Finding("1", "", [Claim("a", x, "above")])
    assert f.verdict == "shown" and f.said == f.claims[0].said == "shown in one run"
    assert Finding("1", "", [Claim("a", x, "above", across_runs=True)]).said == "unclear"
    assert Finding("1", "", [Claim("a", replace(x, seeds=2), "above")]).said == "shown"
    for sign, any_of, said in (  # one contrast of one seed and one of two: do both decide, or does one alone?
        (1, False, "shown in one run"),
        (1, True, "shown"),
        (-1, False, "contradicted"),
        (-1, True, "contradicted in one run"),
    ):
        y = replace(x, mean=sign * x.mean)
        both = [Claim("a", y, "above"), Claim("b", replace(y, seeds=2), "above")]
        assert Finding("1", "", both, any_of=any_of).said == said
    entries = as_in_the_paper(1)
    assert "expansion by RL (in one run)" in " ".join(
        report.summary(entries, all_findings(entries), questions(entries))
    )


def test_process_right_decides_and_plain_stands_beside():
    """RL that is right more often by luck alone does not beat SFT: finding 2 counts what is right with every equation true."""
    right, entries = np.arange(1, 25), []
    for seed in (1, 2, 3):
        for recipe, plain, process in (("rl", 8, 0), ("sft", 0, 4), ("sft_rl", 8, 0), ("gold", 8, 8)):
            made = make_entry(recipe, 1, seed, right + plain, np.maximum(0, right - 4 + process))
            entries.append(made)
    f = finding(entries, "2")
    first, plain = (
        next(c for c in f.claims if c.text.startswith(f"{m}: RL from base − SFT"))
        for m in ("process-right pass@1", "pass@1")
    )
    assert first.counts and first.verdict == "contradicted" and not plain.counts and plain.verdict == "shown"
    assert f.verdict == "contradicted"


def test_verdict_rule():
    """Above and below a margin, alike within it, and an advantage that is certainly too small."""

    def of(mean, wanted, margin=0.0, se=0.01, **more):
        return Finding("x", "", [Claim("a", Estimate(mean, se, 1000.0, 3, 500, 500), wanted, margin, **more)]).verdict

    assert of(0.1, "above") == "shown" and of(0.1, "below") == "contradicted" and of(0.01, "above") == "unclear"
    assert (
        of(-0.1, "below") == "shown" and of(0.1, "above", 0.05) == "shown" and of(0.0, "above", 0.05) == "contradicted"
    )
    assert (
        of(0.0, "alike", 0.05) == "shown"
        and of(0.04, "alike", 0.05) == "unclear"
        and of(0.1, "alike", 0.05) == "contradicted"
    )
    assert of(0.0, "above", se=0.005, small=ADVANTAGE) == "contradicted" and of(0.0, "above", small=0.01) == "unclear"
    assert of(0.0, "above", se=0.005) == "unclear" and of(-0.1, "above", settles=False) == "unclear"
    assert Finding("x", "", [Claim("a", None, "above")]).verdict == "not run"


# ---------------------------------------------------------------------------------------------------------------------
# Records
# ---------------------------------------------------------------------------------------------------------------------


def test_contrasts_are_paired_by_question_seed_and_id():
    """The interval of a difference that is the same for every question has no width, however different questions are;
    of records with other questions the shared ones are compared, in whatever order they stand."""
    right = np.arange(1, 21)
    g = Grid([make_entry("base", 1, 0, right), make_entry("rl", 1, 0, right + 8), make_entry("rl", 1, 1, right)])
    d = contrast([(1, g.models("rl", 1)), (-1, g.models("base", 1))], Questions(1))
    assert d.values.shape == (1, 20) and d.estimate().low == d.estimate().high == 0.25
    turned = make_entry("rl", 1, 0, right[::-1] + 8)
    rows = turned.sets["test"]["questions"]
    for row, id_ in zip(rows, range(19, -1, -1), strict=True):
        row["id"] = str(id_)
    del rows[:5]
    e = contrast([(1, {(1, 0): turned}), (-1, g.models("base", 1))], Questions(1)).values
    assert e.shape == (1, 15) and np.allclose(e, 0.25)


def test_one_base_record_stands_for_all_its_seeds():
    """A contrast of three seeds of RL against one shared evaluation of their base has three rows."""
    right = np.arange(1, 21)
    shared = make_entry("base", 1, 0, right, seeds=[0, 1, 2])
    g = Grid([shared, *(make_entry("rl", 1, seed, right + 4 * seed) for seed in range(3))])
    d = contrast([(1, g.models("rl", 1)), (-1, g.models("base", 1))], Questions(1)).values
    assert d.shape == (3, 20) and np.allclose(d.mean(1), [0, 0.125, 0.25])


def test_replicates_of_other_pretraining_runs_do_not_replace_each_other():
    """The same seed after two pretraining runs is two replicates; a mean over checkpoints is over those that have both."""
    right = np.arange(1, 21)
    entries = [make_entry(r, t, 1, right, pretrained=p) for r in ("rl", "base") for t, p in ((1, 1), (1, 2), (2, 1))]
    g = Grid(entries)
    found = {t: contrast([(1, g.models("rl", t)), (-1, g.models("base", t))], Questions(1)) for t in (1, 2)}
    assert [len(c.values) for c in found.values()] == [2, 1] and mean_of(found).keys == ((1, 1), (2, 1))
    assert mean_of(found).places == (1,)


def test_checkpoints_with_and_without_pretraining_runs_of_their_own_are_averaged_by_seed():
    """Three seeds after three pretraining runs at one checkpoint, after one shared run at another: the mean has three
    rows; and the checkpoint with runs of their own is the early one of finding 1."""
    right = np.arange(1, 21)
    entries = [make_entry(r, 2, s, right + s, pretrained=s) for r in ("rl", "base") for s in (1, 2, 3)]
    entries += [make_entry("rl", t, s, right + s, pretrained=1) for t in (1, 3) for s in (1, 2, 3)]
    entries += [make_entry("base", t, 1, right, pretrained=1, seeds=[1, 2, 3]) for t in (1, 3)]
    g = Grid(entries)
    c = mean_of({t: contrast([(1, g.models("rl", t)), (-1, g.models("base", t))], Questions(1)) for t in (1, 2, 3)})
    assert np.allclose(c.values.mean(1) * 32, [2 / 3, 4 / 3, 2]) and [seed for _, seed in c.keys] == [1, 2, 3]
    assert Contrasts(g, entries).early() == 2
    made = claim(c, "RL − base", "above")
    assert c.places == (1, 2, 3) and c.one_run == (1, 3)
    assert made.n == "3 × 20, mean of 1e-06 M, 2e-06 M and 3e-06 M, one pretraining run at 1e-06 M and 3e-06 M"
    alone = claim(contrast([(1, g.models("rl", 1))], Questions(1)), "RL", "above", at=1)
    assert alone.n == "3 × 20, one pretraining run"


def test_more_checkpoints_cost_no_seeds():
    """Three seeds at one checkpoint, one of them at another: the mean is over the first, with its three; and the early
    checkpoint of finding 1 stays the first with pretraining runs of its own, where a seed of it is missing."""
    right = np.arange(1, 21)
    entries = [make_entry(r, 2, s, right + s, pretrained=s) for r in ("rl", "base") for s in (1, 2, 3)]
    entries += [make_entry(r, t, 1, right + 9 * (r == "rl")) for r in ("rl", "base") for t in (1, 4)]
    entries += [make_entry("rl", 3, s, right, pretrained=s) for s in (1, 2, 3)]
    parts = Contrasts(Grid(entries), entries)
    c = parts.of("rl", "base", Questions(1))
    assert c.places == (2,) and len(c.values) == 3 and np.allclose(c.values, 0)
    gone = [e for e in entries if (e.recipe, e.tokens, e.meta["seed"]) != ("rl", 2, 3)]
    assert Contrasts(Grid(gone), gone).early() == 2


def test_what_old_records_lack_is_absent_not_zero():
    """No process, floor, entropy, step: None; and no contrast of them."""
    old = make_entry("rl", 1, 0, [1, 2])
    assert Questions(1, "c_process")(old) is None and old.floor(32) is None and Questions(key="h_paths")(old) is None
    assert (
        Questions(1)(old).values.tolist() == [1 / 32, 2 / 32]
        and np.isnan(old.dose)
        and Contrasts(Grid([old]), [old]).best == Questions(32)
    )
    assert contrast([(1, {(1, 0): old})], Questions(1, "c_process")) is None
    assert task_items(old).values.tolist() == [1, 0] and general_bits(old).values.tolist() == [1.0]


def test_questions_that_share_a_fact_are_one_cluster():
    facts = [["a crate of plums"], ["a crate of plums"], [], []]
    c = contrast([(1, {(1, 0): make_entry("rl", 1, 0, [1, 2, 3, 4], facts=facts)})], Questions(1))
    assert c.clusters[0] == c.clusters[1] and len(set(c.clusters)) == 3 and c.estimate().clusters == 3
    only = contrast([(1, {(1, 0): make_entry("rl", 1, 0, [1, 2, 3, 4], facts=facts)})], Questions(1, only="fact"))
    assert only.values.tolist() == [[1 / 32, 2 / 32]]


# ---------------------------------------------------------------------------------------------------------------------
# Trajectories
# ---------------------------------------------------------------------------------------------------------------------


def trajectories(direct: float, after: float, n: int = 300) -> Grid:
    """RL from base and RL after SFT over the same abilities, at the given sharpness."""
    w, entries = World(n), []
    for seed in (1, 2, 3):
        entries += [w.entry("base_0shot", 1, seed, -2, direct), w.entry("sft", 1, seed, -1.2, after)]
        entries += w.run("rl", 1, seed, np.linspace(-1.5, 0.5, 5), np.full(5, direct))
        entries += w.run("sft_rl", 1, seed, np.linspace(-0.9, 0.6, 5), np.full(5, after))
    return Grid(entries)


def at_equal(g: Grid, m: Questions):
    return at_equal_pass1(runs(g, "rl", 1), runs(g, "sft_rl", 1), m)


def test_the_order_is_judged_at_equal_pass1():
    """A sharper model has less pass@32 at the same pass@1, and is found to; two alike are not told apart, although one
    of the trajectories begins and ends higher."""
    m = Questions(32)
    sharp = at_equal(trajectories(0.8, 2.0), m).estimate()
    assert sharp.low > 0.05
    alike = at_equal(trajectories(1.0, 1.0), m).estimate()
    assert alike.low < 0 < alike.high and alike.half_width < 0.05
    few = Grid([e for e in trajectories(1, 1).entries if e.step in (0, 320) or e.recipe == "sft"])
    assert at_equal(few, m) is None  # two points are no trajectory


def test_a_seed_without_common_pass1_is_not_left_out_alone():
    """One seed's RL from base stays below where RL after SFT begins: the checkpoint is left out, not that seed, and the
    finding names it. It is unclear, not "not run": nothing is missing."""
    w, entries = World(300), trajectories(1.0, 1.0).entries
    entries = [e for e in entries if (e.recipe, e.meta["seed"]) != ("rl", 3)]
    entries += w.run("rl", 1, 3, np.full(5, -2.0), np.ones(5))
    assert at_equal(Grid(entries), Questions(32)) is None
    f = finding(entries, "3c")
    assert f.verdict == "unclear" and f.notes[0].startswith("Left out: 1e-06 M, where the two runs of some seed")
    assert finding([e for e in entries if e.recipe != "rl"], "3c").verdict == "not run"


def test_uncertainty_of_the_crossing_is_in_the_interval():
    """Where pass@k is a straight function of pass@1 and both runs have it, the difference at equal pass@1 is 0 for every
    question: noise of pass@1 does not pass for a difference."""
    rng, rows = np.random.default_rng(0), {}
    for recipe, shift in (("rl", 0), ("sft_rl", 2)):
        for step in (0, 10, 20):
            name = {"rl": "base_0shot", "sft_rl": "sft"}[recipe] if step == 0 else recipe
            rows[name, step] = make_entry(
                name, 1, 0, np.clip(rng.integers(2, 8, 60) + shift + step // 2, 0, 32), step=step
            )
    g = Grid(list(rows.values()))
    c = at_equal(g, Questions(1))
    assert np.allclose(c.values, 0)


def test_the_model_of_a_run_is_where_validation_stopped_it():
    """The step that is marked, without a mark the last; the end beside it; temperatures are kept apart."""
    w = World(40)
    entries = w.run("rl", 1, 1, np.zeros(5), np.ones(5)) + w.run("rl", 1, 1, np.zeros(5), np.ones(5), temperature=1.0)
    g, hot = Grid(entries), Grid(entries, 1.0)
    assert g.models("rl", 1)[(1, 1)].step == 320 and g.steps("rl", 1) == list(STEPS)
    assert hot.models("rl", 1)[(1, 1)].temperature == 1.0 and g.temperature == 0.6
    entries[2].meta["primary"] = True
    g = Grid(entries)
    assert g.models("rl", 1)[(1, 1)].step == STEPS[2] and g.models("rl", 1, "end")[(1, 1)].step == 320


# ---------------------------------------------------------------------------------------------------------------------
# Named plans
# ---------------------------------------------------------------------------------------------------------------------


def test_the_early_checkpoint_is_the_same_at_every_state_of_a_study():
    """The first primary one: with two of its seeds, when all seeds have both primary ones and nothing else is there
    (the main one once stood for it then), and with another checkpoint. With one seed, half done, a report is made (it
    once crashed)."""

    def rl(t: int, seed: int, start: float = 0.01) -> Entry:
        return make_entry(
            "rl", t, seed, np.arange(1, 21), pretrained=seed, curve={"val_pass@1": [[0, start], [320, 0.3]]}
        )

    found = [rl(3, 1), rl(3, 2), *(rl(4, seed, 0.07) for seed in (1, 2, 3))]
    for more in ([], [rl(3, 3)], [make_entry("base", 9, 1, np.arange(1, 21))]):
        found += more
        assert Contrasts(Grid(found), found).early() == 3, more
    half = [rl(4, 1), *(make_entry("base", t, 1, np.arange(1, 21)) for t in (3, 4))]
    assert Contrasts(Grid(half), half).early() in (3, 4)


@pytest.mark.parametrize("missing", [48, 320])
def test_a_run_counts_once_its_end_and_its_best_step_are_judged(missing):
    """Until then its seed has no result: another step would stand for it, and all seeds of finding 3a would move there."""
    meta = dict(args=FULL | {"limit": 512}, points=[24, 48, 320], best_step=48)
    entries = [make_entry(r, 1, seed, np.arange(1, 21), pretrained=seed) for seed in (1, 2, 3) for r in ("base", "sft")]
    entries += [make_entry(r, 1, seed, np.arange(1, 21) + up, pretrained=seed, step=step, primary=step == 48, **meta)
                for seed in (1, 2, 3) for r in ("rl", "parallel") for step, up in ((24, 0), (48, 3), (320, 9))]  # fmt: skip
    part = [e for e in entries if (e.recipe, e.step, e.meta["seed"]) != ("rl", missing, 3)]
    whole, rest = ({f.number: f for f in all_findings(found)} for found in (entries, part))
    for number in ("3a", "5"):
        (a, *_), (b, *_) = ([c.x for c in f[number].primary if "RL from base" in c.text] for f in (whole, rest))
        assert (a.seeds, b.seeds) == (3, 2) and a.mean == b.mean and whole[number].notes == rest[number].notes


def test_findings_of_the_other_plans():
    """7: spread over seeds falls; 8: alike at the end, more steps, fewer FLOPs; 6: mixture over size."""
    rng, entries = np.random.default_rng(1), []
    for seed in range(6):
        early, late = 1 + 4 * seed, 28 + seed % 2
        for tokens, level in ((1_000_000, early), (2_000_000, late)):
            right = np.full(100, level) + rng.integers(0, 2, 100)
            entries.append(make_entry("rl", tokens, 0, right, variant={"rlseed": seed}))
    for n, steps, per_step in ((5, 40, 1.0), (64, 10, 10.0)):
        flops = [[s, 1e3 + per_step * s] for s in range(1, steps + 1)]
        curve = {"val_pass@1": [[0, 0.1], [steps // 2, 0.3], [steps, 0.5]], "flops": flops}
        for seed in range(3):
            curve_of_seed = curve | {"val_pass@1": [*curve["val_pass@1"][:2], [steps, 0.5 + 0.001 * seed]]}
            extra = dict(variant={"band": "easy", "n": n}, curve=curve_of_seed)
            entries.append(make_entry("rl", 1_000_000, seed, np.full(100, 16), **extra))
    for seed in (0, 1):
        for variant, tokens, level in (
            ({"math": 0.4}, 9, 4),
            ({"math": 0.9}, 9, 20),
            ({"size": "smoke"}, 50, 5),
            ({"size": "micro"}, 9, 7),
        ):
            right = np.full(100, level) + rng.integers(0, 2, 100)
            entries.append(make_entry("rl", tokens, seed, right, variant=variant))
    found = verdicts(entries)
    assert [found[n] for n in ("6", "7", "8")] == ["shown"] * 3
    # one seed cannot tell a mixture from how pretraining runs differ
    assert finding([e for e in entries if e.meta["seed"] == 0], "6").verdict == "unclear"
    eight = finding(entries, "8")
    assert [round(c.x.mean, 2) for c in eight.claims] == [0.0, round(np.log(4), 2), round(np.log(40 / 100), 2)]
    flat = {"val_pass@1": [[0, 0.0], [10, 0.0]], "flops": [[1, 1.0], [10, 10.0]]}  # nothing learned: nothing to compare
    idle = [make_entry("rl", 1, 0, [0] * 9, variant={"band": "easy", "n": n}, curve=flat) for n in (5, 64)]
    assert [c.verdict for c in finding(idle, "8").claims] == ["shown", "not run", "not run"]
    # a seed that learned nothing has no ratio; the others keep theirs, and a note names it
    lost = [e for e in entries if "band" in e.variant and e.meta["seed"] > 0] + idle
    eight = finding(lost, "8")
    assert eight.claims[1].x.seeds == 2 and "seed 0 gained nothing" in eight.notes[0]


def test_demonstrations_are_answered_by_count():
    """RL above SFT on few solutions and below it on many: both are said."""
    entries = []
    for count, sft in ((64, 4), (256, 9), (1000, 20)):
        right = np.tile([0, 1], 50)
        entries += [make_entry("sft", 1, s, right + sft, variant={"solved": count}) for s in (0, 1)]
        entries += [make_entry("rl", 1, s, right + 12, variant={"solved": count}) for s in (0, 1)]
    f = demonstrations(entries)
    assert [c.verdict for c in f.primary] == ["shown", "shown", "contradicted"]
    assert demonstrations_answer(f) == "RL is above SFT on 64 and 256 solutions and below SFT on 1000 solutions."
    assert demonstrations_answer(demonstrations([])) == "Not run: plan demonstrations."
    once = demonstrations_answer(demonstrations([e for e in entries if e.meta["seed"] == 0]))
    assert once == "RL is above SFT on 64 and 256 solutions in one run and below SFT on 1000 solutions in one run."


def sharpening_world(by: str) -> list:
    """Where exactly one of order, rate and dose makes RL sharper; all gain the same pass@1. Validation liked the third step."""
    w, entries, flat = World(300), [], np.ones(5)
    for seed in (1, 2, 3):
        entries += [w.entry("base_0shot", 1, seed, -1, 1.0), w.entry("sft", 1, seed, -1, 1.0)]
        for rate in (1 / 3, 1.0, 3.0):
            for recipe in ("rl", "sft_rl"):
                sharp = {"order": flat * (3 if recipe == "sft_rl" else 1), "rate": flat * (3 if rate > 1 else 1),
                         "dose": np.array([1, 1.2, 1.4, 2.2, 3.0])}[by]  # fmt: skip
                run = w.run(
                    recipe, 1, seed, [-0.8, -0.4, 0.2, 0.25, 0.3], sharp, variant={} if rate == 1 else {"rate": rate}
                )
                run[2].meta["primary"] = True
                entries += run
    return entries


@pytest.mark.parametrize("by", ["order", "rate", "dose"])
def test_what_sharpens_is_told_apart(by):
    """Of order, rate and dose the one that sharpens is named, and no other."""
    f = Sharpening(sharpening_world(by)).finding()
    assert [c.text.split(":")[0] for c in f.primary if c.verdict == "shown"] == [by]
    assert answer(f).startswith(f"The {by} lowered pass@k")


def test_rates_are_compared_at_steps_that_both_have():
    """The grid's rate was run twice as long, and sharpens after that: the contrast of rates does not see it."""
    entries = sharpening_world("rate")
    w = World(300)
    entries += [w.entry(r, 1, seed, 0.3, 9.0, step=640) for seed in (1, 2, 3) for r in ("rl", "sft_rl")]
    s = Sharpening(entries)
    assert s.steps(("rl", 1.0))[-1] == 640 and s.steps(("rl", 1.0), ("rl", 3.0)) == list(STEPS)
    rate = next(c for c in s.finding().beside if c.text.startswith("rate: "))
    assert "step 320" in rate.text and rate.verdict == "shown"


def test_rates_are_drawn_over_the_seeds_that_all_have():
    """The grid's rate has three seeds, the others one: a panel's lines are of that seed, so that seeds do not part them."""
    entries = [e for e in sharpening_world("rate") if not e.variant or e.keys[0][1] == 2]
    drawn = figures.at_rates(Sharpening(entries), "rl")
    alone = figures.at_rates(Sharpening([e for e in entries if e.keys[0][1] == 2]), "rl")
    assert list(drawn) == [1 / 3, 1.0, 3.0] and list(drawn[1.0]) == [0, *STEPS]
    assert drawn == alone


def records_of_the_plans(tmp_path) -> list:
    """What an excursion would leave of the study's plans: their cells' own .cell.json, with answers made up here."""
    w, found = World(40), {}
    for plan in ("grid", "sharpening", "rollouts", "mixture", "scale", "seeds", "demonstrations"):
        config = Config(command="plan", plan=plan, scale="micro", budget="study", out=str(tmp_path / "out"))
        for cell in make_plan(resolve(config)):
            if not cell.meta or record_name(cell) in found:
                continue
            meta = dict(cell.meta)
            recipe, tokens, seed, points = meta.pop("recipe"), meta.pop("tokens"), meta.pop("seed"), meta["points"]
            meta["step"] = meta["step"] or (points[-1] if points else 0)
            meta["primary"] = RECIPES[recipe].judged != "points" or meta["step"] == (points or [0])[-2:][0]
            curve = {"val_pass@1": [[0, 0.02], *([s, 0.1 + 0.3 * s / max(points)] for s in points)],
                     "reward": [[s, 0.1 + 1e-4 * (s + seed)] for s in range(1, 400, 4)],
                     "flops": [[1, 1e10], [max(points or [2]), 1e13]]}  # fmt: skip
            args = {"prompts": 16, "rollouts": 32, "limit": 512}
            ability = -3.0 + (meta["step"] / 160 if recipe.endswith("rl") or recipe == "parallel" else 0.5)
            ability += 0.8 * recipe.startswith(("sft", "gold"))
            entry = w.entry(recipe, tokens, seed, ability, curve=curve if points else {}, args=args, **meta)
            found[record_name(cell)] = entry
    return list(found.values())


def test_the_plans_of_the_study_answer_every_finding(tmp_path):
    """The plans, rates, steps, seeds and marks that an excursion writes are those that the findings read: run as
    planned, no finding is "not run", no primary contrast lacks a record, and the dose is the paper's."""
    entries = records_of_the_plans(tmp_path)
    found = [*all_findings(entries), *(f for f, _ in questions(entries))]
    assert [(f.number, c.text) for f in found for c in f.primary if c.x is None] == []
    assert "not run" not in [f.verdict for f in found] and not any("Dose" in note for f in found for note in f.notes)
    n = {f.number: {c.x.seeds for c in f.primary} for f in found}
    assert n["5"] == n["3c"] == n["1"] == {3} and n["7"] == {10}
    s = Sharpening(entries)
    assert len(s.rates) == 4 and len(s.recipes) == 4 and s.grids[0.0].has("rl", "sft_rl")


# ---------------------------------------------------------------------------------------------------------------------
# The report
# ---------------------------------------------------------------------------------------------------------------------


@pytest.fixture
def small_pictures(monkeypatch):
    monkeypatch.setitem(figures.plt.rcParams, "savefig.dpi", 30)


def test_report_is_the_same_twice_and_reads_on_a_phone(tmp_path, small_pictures):
    """Byte-equal text and figures from the same records; a summary of five sentences at most; each finding with its
    mark; every picture with words instead; nothing wider than a phone but what scrolls."""
    save(study(seeds=(1, 2), tokens=(5_600_000,), n=60), tmp_path / "records")
    for name in ("a", "b"):
        report.write_report(tmp_path / "records", tmp_path / name)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert len(files) > 12
    for file in files:
        assert (tmp_path / "a" / file).read_bytes() == (tmp_path / "b" / file).read_bytes(), file
    text, page = (tmp_path / "a/report.md").read_text(), (tmp_path / "a/report.html").read_text()
    first = text.splitlines()[2]
    assert first.count(". ") <= 4 and first.endswith(".")
    for number in ("1", "2", "3a", "3b", "3c", "4", "4 by text", "5", "6", "7", "8"):
        assert any(f"### {mark} {number}. " in text for mark in "✓✗?–"), number
    assert "name=viewport" in page and "width=device-width" in page and page.count("<details>") > 8
    assert page.count("<img ") == len(files) - 2 == text.count("![") and 'alt=""' not in page and "![]" not in text
    assert "What lowers pass@32" in text and "guess floor" in text.lower() or "other questions score" in text


def test_report_of_any_part_of_a_study(tmp_path, small_pictures):
    """One recipe, one plan, one temperature: a report all the same."""
    everything = study(seeds=(1,), tokens=(3_500_000,), n=40)
    begun = dict(step=16, points=[16, 320], best_step=320)  # not judged at its end yet
    everything += [make_entry("rl", 1, s, [4, 9], [3, 9], variant={"rlseed": s}, **begun) for s in (1, 2)]
    everything += [make_entry("rl", 2, 1, [4, 9], [3, 9], **begun)]
    parts = {
        "base": lambda e: e.recipe == "base",
        "base_0shot": lambda e: e.recipe == "base_0shot",
        "ablation": lambda e: e.recipe in ("base_0shot", "rl") and not e.variant and e.temperature < 1 and e.tokens > 2,
        "variants": lambda e: e.variant and e.tokens > 2,
        "hot": lambda e: e.temperature == 1.0,
        "begun": lambda e: e.tokens == 2,
        "begun_seeds": lambda e: "rlseed" in e.variant,
    }
    for name, part in parts.items():
        save([e for e in everything if part(e)], tmp_path / name)
        report.write_report(tmp_path / name, tmp_path / f"{name}_out")
        assert "– 6. " in (tmp_path / f"{name}_out/report.md").read_text()
    ablation = (tmp_path / "ablation_out/report.md").read_text()
    assert re.search(
        r"!\[.*base 0-shot .*RL from base .*\]\(figures/pass1.png\)", ablation
    )  # both are in the first figure
    assert "None of the paper's findings was run." in ablation


def test_figures_of_older_records_and_of_sizes():
    """A record without a guess floor beside one with; of two sizes at equal FLOPs the smaller, with more tokens, comes first."""
    entries = [make_entry("base", 1, 1, [4, 9], floor=None), make_entry("base_0shot", 1, 1, [4, 9], floor=0.1)]
    figure, _ = figures.figure_lines(Grid(entries), ["base", "base_0shot"], Questions(1), "")
    assert 10 in [round(float(c.get_paths()[0].vertices[:, 1].max())) for c in figure.axes[0].collections]  # the grey
    sizes = [
        make_entry("rl", tokens, 1, [4, 9], variant={"size": size}) for size, tokens in (("micro", 1), ("smoke", 9))
    ]
    figure, _ = figures.figure_variants(sizes, "size", 1, "", "")
    assert [text.get_text() for text in figure.axes[0].get_xticklabels()] == ["smoke", "micro"]
    figures.plt.close("all")


def test_an_interval_beyond_all_values_hides_no_other():
    """Two pretraining runs that differ much have an interval of hundreds of points: the panel shows the others, in a
    range that pass@k can have, and where a contrast's interval goes on."""
    far = estimate(np.array([[0.0] * 40, [0.9] * 40]), [str(i) for i in range(40)])
    near = [estimate(np.random.default_rng(i).normal(0.1, 0.2, (3, 40)), [str(i) for i in range(40)]) for i in range(3)]
    assert far.high > 5 and max(x.high for x in near) < 0.3
    low, high = figures.span_of([*near, far], 0, 101)
    assert low == 0 and 45 < high < 80
    assert figures.span_of(near, -np.inf, np.inf)[1] > 100 * max(x.high for x in near)
    claims = [claim(None, f"pass@32: a − {i}", "above") for i in range(4)]
    for c, x in zip(claims, [*near, far], strict=True):
        c.x = x
    figure, _ = figures.figure_forest(claims, "", "")
    arrows = [line.get_marker() for line in figure.axes[0].lines if line.get_marker() in "<>"]
    left, right = figure.axes[0].get_xlim()
    assert arrows == ["<", ">"] and -80 < left < 0 < right < 120
    figures.plt.close(figure)


@pytest.mark.parametrize(
    "sets, said", [(("explore_easy", "explore_hard"), "explore"), (("test_easy", "test_hard"), "test")]
)
def test_a_trial_is_not_called_a_test(tmp_path, small_pictures, sets, said):
    """The report says which questions were asked; and explains the floor only where there is one."""
    for floor in (None, 0.0):
        entries = [make_entry("base", tokens, 1, [4, 9], floor=floor, sets=sets) for tokens in (3_500_000, 4_400_000)]
        save(entries, tmp_path / f"{floor}")
        report.write_report(tmp_path / f"{floor}", tmp_path / f"{floor}_out")
        text = (tmp_path / f"{floor}_out/report.md").read_text()
        assert f" 2 {said} questions " in text
        assert ("Grey: what answers to other questions" in text) == (floor is not None)


def test_two_models_of_one_base_checkpoint_are_named(tmp_path, small_pictures):
    """A plan that went on on another kind of machine pretrains its base again; records of other plans are of the old one."""
    entries = [make_entry("base", tokens, 1, [4, 9]) for tokens in (3_500_000, 4_400_000, 4_400_000)]
    for step, weights, e in zip((35, 44, 44), ("aa", "bb", "cc"), entries, strict=True):
        e.record["lineage"][0] |= {"step": step, "weights": weights, "args": {"out": "out/run"}}
    for some, said in ((entries[:2], False), (entries, True)):
        save(some, tmp_path / f"{said}")
        report.write_report(tmp_path / f"{said}", tmp_path / f"{said}_out")
        text = (tmp_path / f"{said}_out/report.md").read_text()
        assert ("Records are not of one base model (out/run, step 44: 1 of bb and 1 of cc)" in text) == said


def test_broken_records_are_one_line(tmp_path):
    with pytest.raises(UserError, match="no record"):
        load(tmp_path)
    (tmp_path / "a.cell.json").write_text('{"name": "a"}')
    with pytest.raises(UserError, match=r"a\.json\.gz: No such file"):
        load(tmp_path)
    write_jsonl(tmp_path / "a.json.gz", [{}])
    with pytest.raises(UserError, match=r"a\.cell\.json"):
        load(tmp_path)
    whole = (tmp_path / "a.json.gz").read_bytes()
    for damaged in (whole[:-4], whole[:12] + b"\xff" * 4 + whole[16:], b"{}"):
        (tmp_path / "a.json.gz").write_bytes(damaged)
        with pytest.raises(UserError, match=r"a\.json\.gz: "):
            load(tmp_path)


def test_claims_say_what_they_would_have_seen():
    """n, the smallest visible effect, and the bootstrap's interval stand in every claim that has an interval."""
    c = claim(
        Contrast(np.random.default_rng(0).normal(0.1, 0.2, (3, 100)), None, ((0, 0), (1, 1), (2, 2))), "a", "above"
    )
    assert c.n == "3 × 100" and float(c.visible) > 0 and c.bootstrap.startswith("[+") and "[" in c.numbers
    c.wanted = "alike"
    assert c.visible == f"± {100 * c.x.equal_within:.1f}"
    # of a factor it is beyond the factor that is claimed; what starts from one pretraining run says so
    found = {f.number: f for f in all_findings(study(seeds=(1, 2, 3), tokens=(3_500_000, 5_600_000), n=60))}
    assert float(found["1"].primary[0].visible.removeprefix("×")) > 4
    of_seeds = [make_entry("rl", t, s, np.arange(20) + s, variant={"rlseed": s}) for t in (1, 2) for s in (1, 2, 3)]
    seven = next(f for f in all_findings(of_seeds) if f.number == "7")
    assert seven.primary[0].n.endswith("one pretraining run")


# ---------------------------------------------------------------------------------------------------------------------
# The README
# ---------------------------------------------------------------------------------------------------------------------


def test_numbers_of_the_readme_come_out_of_the_records_again():
    """By other code than the report's: every sentence of tests/recompute.py stands in the README with the same digits."""
    found = recompute.main(recompute.ROOT / "README.md")
    assert len(found) >= 5 and [sentence for sentence, there in found if not there] == []


def test_the_two_computations_of_an_interval_agree():
    """stats.py and tests/recompute.py, on seeds × questions with clusters, on one seed, on one number a seed."""
    rng = np.random.default_rng(0)
    for shape, groups in (((3, 40), 12), ((1, 40), 40), ((3, 40), 40), ((3, 1), 1)):
        y, clusters = rng.normal(0, 1, shape), [str(i % groups) for i in range(shape[1])]
        x = estimate(y, clusters)
        assert (x.mean, x.low, x.high) == pytest.approx(recompute.interval(y.tolist(), clusters), rel=1e-5)


def test_an_altered_record_changes_a_quoted_number(tmp_path):
    """The recomputation reads the records: with one count changed, a sentence is no longer in the README."""
    folder = shutil.copytree(recompute.ROOT / "results/study3", tmp_path / "records")
    metas = [read_json(p) for p in folder.glob("*8.00M-parallel*.cell.json")]
    path = folder / next(f"{m['name']}.json.gz" for m in metas if m["primary"] and m["temperature"] == 0.6)
    content = read_json(path)
    for row in content["questions"]["test_hard"]["questions"]:
        row["c_process"] = 0
    write_jsonl(path, [content])
    assert not all(there for _, there in recompute.main(recompute.ROOT / "README.md", folder))
