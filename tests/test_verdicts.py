"""Every verdict of the findings beside an independent computation (recompute_verdicts.py), on random studies."""

import numpy as np
import pytest
import recompute
import recompute_verdicts
from synthetic import random_study, save

from excursion.plan_findings import all_findings, questions
from excursion.records import load


@pytest.mark.parametrize("seed, effect, drop, spread, seeds", [
    (0, 1.0, 0.0, 0.25, (1, 2, 3)), (1, 2.0, 0.0, 0.02, (1, 2, 3)), (2, 0.3, 0.15, 0.1, (1, 2, 3)), (3, 1.0, 0.0, 0.1, (1,)),
])  # fmt: skip
def test_every_verdict_by_other_code(tmp_path, seed, effect, drop, spread, seeds):
    """Means, standard errors, degrees of freedom, intervals, p-values after Holm and verdicts of all primary contrasts:
    the same. Whole studies, one of which runs are missing, and one seed alone."""
    save([e for e in random_study(seed, effect, drop, spread=spread) if e.meta["seed"] in seeds], tmp_path)
    entries = load(tmp_path)
    found = [*all_findings(entries), *(f for f, _ in questions(entries))]
    again, known = recompute_verdicts.findings(recompute_verdicts.Study(tmp_path)), 0
    for mine, theirs in zip(again, found, strict=True):
        if mine.number == "1" and len(seeds) == 1:
            continue  # the early checkpoint of the protocol is known by its pretraining runs
        assert len(mine.claims) == len(theirs.primary), mine.number
        assert theirs.number not in NUMBERED or mine.verdict == theirs.verdict, mine.number
        for a, b in zip(mine.claims, theirs.primary, strict=True):
            assert (a.x is None) == (b.x is None) and a.verdict == b.said, (mine.number, a.text)
            if a.x is None or not np.isfinite(a.x.se):
                continue
            want = [a.x.mean, a.x.se, a.x.df, *a.x.interval(), *a.holm]
            got = [b.x.mean, b.x.se, b.x.df, b.x.low, b.x.high, b.p_shown, b.p_against]
            assert got == pytest.approx(want, rel=1e-5, abs=1e-9), (mine.number, a.text)
            if a.factor:
                assert recompute_verdicts.same(recompute_verdicts.shown(a), b.shown_as)
            known += 1
    assert known > (25 if len(seeds) > 1 and not drop else 10)


def test_rows_of_a_readme(tmp_path):
    """A table made from the report's own findings is right in every row; with one digit, one verdict
    or the order of two values changed it is not."""
    save(random_study(0), tmp_path)
    found = all_findings(load(tmp_path))
    lines = [f"| {f.number}. {f.title} | {'; '.join(c.numbers for c in f.primary)} | {f.said} |" for f in found]
    again, readme = recompute_verdicts.findings(recompute_verdicts.Study(tmp_path)), tmp_path / "README.md"

    def right(*lines) -> list[bool]:
        readme.write_text("\n".join(lines))
        return [*recompute_verdicts.rows_of_readme(readme, again).values()]

    assert right(*lines) == [True] * len(NUMBERED)
    number, text = found[2].number, found[2].primary[0].numbers
    assert number == "3a" and right(lines[2].replace(text, text.replace(".", "9.", 1))) == [False]
    values = "; ".join(c.numbers for c in found[2].primary)
    swapped = "; ".join(c.numbers for c in found[2].primary[::-1])
    assert right(lines[2].replace(values, swapped)) == [False]
    assert right(lines[2].replace(found[2].said, "not run")) == [False]
    assert right("| 3a. nothing | – | shown |") == [False]


def test_the_table_of_the_readme():
    """It has all findings, and each value, interval and verdict comes out of the committed records by the second program."""
    root = recompute.ROOT
    found = recompute_verdicts.findings(recompute_verdicts.Study(root / "results/study3"))
    rows = recompute_verdicts.rows_of_readme(root / "README.md", found)
    assert [row.split(".")[0].strip("| ") for row in rows] == [*NUMBERED]
    assert [row for row, right in rows.items() if not right] == []


NUMBERED = ("1", "2", "3a", "3b", "3c", "4", "4 by text", "5", "6", "7", "8")
