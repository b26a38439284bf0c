"""The reader of samples: all text of models is text; what a filter shows is what the record says."""

import gzip
import html.parser
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import tiny_gpt

import eval as evaluation
from cli import UserError, cli
from data.tokenizer import load_tokenizer
from excursion.collect import shown_samples
from process import Process
from sampler import Continuation
from tools import reader

EVIL = [
    "</script><script>document.title = 'broken'</script>",
    "<!-- <script> <img src=x onerror=\"document.title = 'broken'\"> \\boxed{<b>7</b>}",
    '"; alert(1) // \\ \u2028 é 🙂 \x00 &lt;b&gt; __DATA__ __TITLE__',
]
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def write_record(folder: Path, name: str, questions: dict[str, list[dict]], **settings) -> Path:
    """A record with these samples: id → samples, all of the set `test`. The right answer is 7."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"set": "test", "id": i, "question": f"{i}?", "answer": "7", "samples": s} for i, s in questions.items()]
    counts = [{"id": i, "n": len(s), "c": sum(x["right"] for x in s)} for i, s in questions.items()]
    of_set = {"temperature": 0.6, "strict": {"pass@1": {"mean": 0.25}, "pass@8": {"mean": 0.5}}, "questions": counts}
    record = {"checkpoint": f"out/{name}.pt", "stage": "rl", "step": 3, "tokens": 2e6, "settings": settings}
    (folder / f"{name}.json").write_text(json.dumps(record | {"questions": {"test": of_set}}))
    with gzip.open(folder / f"{name}.jsonl.gz", "wt") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    return folder / f"{name}.json"


def sample(text: str, right: bool = False, **more) -> dict:
    return {"text": text, "right": right, **more}


class Elements(html.parser.HTMLParser):
    """The elements of a page, and what stands in its script elements."""

    def __init__(self, page: str):
        super().__init__()
        self.tags, self.scripts, self.open, self.urls = [], [], False, []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.open = tag == "script"
        self.scripts += [""] if self.open else []
        self.urls += [value for name, value in attributes if name in ("src", "href")]

    def handle_data(self, text):
        if self.open:
            self.scripts[-1] += text

    def handle_endtag(self, tag):
        self.open = False


def data_of(page: str) -> dict:
    return json.loads(Elements(page).scripts[0])


@pytest.fixture
def evil(tmp_path) -> Path:
    """A record in which text, ids and questions are made to leave their place."""
    return write_record(tmp_path / "<b>evil", "last", {text: [sample(t) for t in EVIL] for text in EVIL})


def test_text_of_models_is_never_html(evil):
    """Whatever a model, a question or a name says, the page has the same elements as a harmless one, loads nothing, and
    its data are what the record says."""
    page, tame = reader.page([evil], 0), reader.page([write_record(evil.parent, "a", {"q": [sample("x")]})], 0)
    assert Elements(page).tags == Elements(tame).tags and Elements(page).tags.count("script") == 2
    assert not Elements(page).urls and "default-src 'none'" in page and not re.search(r"https?:", page)
    assert page.count("<script") == 2 and "<b>evil" not in page and page.count("<!--") == 0
    questions = data_of(page)["questions"]
    assert [q["id"] for q in questions] == EVIL
    assert [a["text"] for a in questions[0]["of"][0]["answers"]] == EVIL
    code = Elements(page).scripts[1]
    assert not re.search("innerHTML|outerHTML|insertAdjacent|document.write|eval", code)
    assert not re.search(
        r"\.(values|keys|entries)\(\)\.", code
    )  # Safari before 18.4 has no map of an iterator, and showed nothing


def opened(page: Path, state: str = "") -> str:
    """The page's elements as a browser has them after its scripts ran. state: of the filters."""
    command = [BROWSER, "--headless=new", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    url = page.resolve().as_uri() + state
    return subprocess.run([*command, url], capture_output=True, text=True, timeout=600).stdout


@pytest.mark.skipif(BROWSER is None, reason="needs chromium")
def test_in_a_browser(evil, tmp_path):
    """No text becomes an element or runs; filters, which stand in the address, show what they say; tokens are shaded."""
    (tmp_path / "evil.html").write_text(reader.page([evil], 0))
    shown = opened(tmp_path / "evil.html").split('<script type="application/json"')[0]
    assert "3 of 3 questions" in shown and "broken</title>" not in shown
    assert not re.search("<img|<script|<b>", shown) and shown.count("&lt;/script&gt;") >= 3
    right = sample("7 \\boxed{7}", True, p=[0.5, 0.01, 1.0], ends=[1, 2, 10])
    record = write_record(tmp_path, "r", {"one": [right, sample("\\boxed{8}")], "two": [sample("no idea 🙂")]})
    (tmp_path / "r.html").write_text(reader.page([record], 0))
    marks = {state: re.findall('class="mark">(.*?)<', opened(tmp_path / "r.html", state)) for state in (
        "", "#kind=right", "#kind=wrong", "#kind=none", "#q=BOXED{8", "#q=nothing", "#set=test&kind=nonsense")}  # fmt: skip
    all_of_them = ["✓ right: 7", "✗ wrong: 8", "– no answer found"]
    assert list(marks.values()) == [
        all_of_them,
        ["✓ right: 7"],
        ["✗ wrong: 8"],
        ["– no answer found"],
        all_of_them[:2],
        [],
        all_of_them,
    ]
    many = [[sample(f"no {n}") for n in range(9)] + [sample("\\boxed{7}", True)] * c for c in range(3)]
    first = write_record(tmp_path, "all", {"a": many[1], "b": many[1], "c": many[1]})
    second = write_record(tmp_path, "half", {"a": many[0], "c": many[2]})
    (tmp_path / "two.html").write_text(reader.page([first, second], 0))
    shown = opened(tmp_path / "two.html", "#order=largest gain first&q=no 8")
    # What was searched for is on the page, though the ninth of the answers; b, which one record lacks, is last
    assert re.findall(r"test, (\w)\)", shown) == ["c", "a", "b"] and shown.count("<mark>no 8</mark>") == 5
    shaded = opened(tmp_path / "r.html", "#shade=1&kind=right")
    tokens = re.findall(
        r'<span title="p = ([\d.]+)" style="background: rgba?\(230, 120, 0(?:, )?([\d.]*)\);">(.*?)</span>', shaded
    )
    assert tokens == [
        ("0.5", "0.15", "7"),
        ("0.01", "", " "),
        ("1", "0", "\\boxed{7"),
    ]  # without a fourth number: opaque


def test_equal_answers_stand_once(tmp_path):
    """The most frequent first, with their number; a cut answer is another one than a whole one with its text. What the
    grader finds tells wrong from no answer."""
    samples = [sample("no box"), sample("\\boxed{7}", True, process=False), sample("\\boxed{7}", True, process=False),
               sample("\\boxed{7}", True, cut=True), sample("#### 9"), sample("\\boxed{7}", cut=True)]  # fmt: skip

    def answers(limit=0, **settings):
        (question,) = data_of(reader.page([write_record(tmp_path, "r", {"q": samples}, **settings)], limit))[
            "questions"
        ]
        assert (question["of"][0]["right"], question["of"][0]["n"]) == (3, 6)
        return [(a["kind"], a["said"], a["times"], a.get("cut", False)) for a in question["of"][0]["answers"]]

    assert answers() == [("right", "7", 2, False), ("none", None, 1, False), ("right", "7", 1, True), ("none", None, 1, False),
                         ("wrong", "7", 1, True)]  # fmt: skip
    assert answers(grader="gsm8k")[-2] == ("wrong", "9", 1, False)
    assert answers(2) == [("none", None, 1, False), ("right", "7", 1, False)]


def test_two_records_side_by_side(tmp_path):
    """Questions meet by set and id, whatever their order; one that only one record has stands alone. Without a common
    question there is no page."""
    a = write_record(tmp_path / "a", "last", {"x": [sample("A")], "y": [sample("B")]})
    b = write_record(tmp_path / "b", "last", {"y": [sample("C", True)]})
    data = data_of(reader.page([a, b], 0))
    found = {q["id"]: [of and of["answers"][0]["text"] for of in q["of"]] for q in data["questions"]}
    assert found == {"x": ["A", None], "y": ["B", "C"]}
    assert [record["name"] for record in data["records"]] == ["a", "b"] and not data["shaded"]
    assert data["columns"][:1] == ["record"] and data["records"][0]["cells"][-2:] == ["25.0", "50.0"]
    for change in (
        lambda r: r.pop("stage"),
        lambda r: r.update(tokens="x"),
        lambda r: [s.pop("strict") for s in r["questions"].values()],
    ):
        content = json.loads(a.read_text())
        change(content)
        broken = write_record(tmp_path / "broken", "last", {"q": [sample("A")]})
        broken.write_text(json.dumps(content))
        with pytest.raises(UserError, match="broken/last.json: no record of eval.py"):
            reader.page([broken], 0)
    with pytest.raises(UserError, match="no question in common"):
        reader.page([a, write_record(tmp_path / "c", "last", {"z": [sample("D")]})], 0)


def test_command(tmp_path, monkeypatch, capsys):
    """Writes beside the record, or where --out says; bad input ends in one line that names the file, and writes nothing."""
    record = write_record(tmp_path / "eval", "last", {"q": [sample("A")]})
    lonely = write_record(tmp_path / "lonely", "last", {"q": [sample("A")]})
    lonely.with_suffix(".jsonl.gz").unlink()
    cut = write_record(tmp_path / "cut", "last", {"q": [sample("A" * 999)]}).with_suffix(".jsonl.gz")
    cut.write_bytes(cut.read_bytes()[:-12])
    (tmp_path / "no.json").write_text('{"loss": 1}')

    def call(*words) -> int:
        monkeypatch.setattr(sys, "argv", ["reader.py", *map(str, words)])
        try:
            cli(reader.main, reader.Config)
        except SystemExit as end:
            return end.code
        return 0

    assert call(record) == 0 and record.with_suffix(".html").exists()
    assert call(record, "--out", tmp_path / "new/x.html") == 0 and (tmp_path / "new/x.html").exists()
    capsys.readouterr()
    for words, said in (((), "0 records"), ((record,) * 3, "3 records"), ((tmp_path / "none.json",), "none.json"),
                        ((lonely,), "lonely/last.jsonl.gz"), ((cut.parent / "last.json",), "cut/last.json"),
                        ((tmp_path / "no.json",), "no.json"), ((record, "--out", record), "ends in .html")):  # fmt: skip
        before = sorted(tmp_path.rglob("*"))
        assert call(*words) == 2 and sorted(tmp_path.rglob("*")) == before
        assert said in (err := capsys.readouterr().err) and len(err.splitlines()) == 1, err


# ---------------------------------------------------------------------------------------------------------------------
# What eval.py writes for it
# ---------------------------------------------------------------------------------------------------------------------


def test_ends_of_tokens():
    """The ends cut the decoded text into the tokens' texts, for any ids: characters of several tokens, broken ones, ids
    of the padded table that stand for nothing."""
    tokenizer, rng = load_tokenizer("world"), np.random.default_rng(0)
    text = "Tom has 7 é 🙂 pears"
    ids = tokenizer.encode(text)
    cut = [text[a:b] for a, b in zip([0, *tokenizer.ends(ids)], tokenizer.ends(ids), strict=False)]
    whole = [(tokenizer.decode([i]), piece) for i, piece in zip(ids, cut, strict=True)]
    assert "".join(cut) == text and all(a == b for a, b in whole if "\ufffd" not in a) and ("\ufffd", "🙂") in whole
    for _ in range(200):
        ids = rng.integers(0, tokenizer.padded_vocab_size, rng.integers(1, 12)).tolist()
        if rng.random() < 0.5:
            ids = [i % 256 for i in ids]  # bytes
        ends = tokenizer.ends(ids)
        assert ends[-1] == len(tokenizer.decode(ids)) and ends == sorted(ends) and len(ends) == len(ids)


def test_probabilities_of_an_answer():
    """One for each token of the text and none for the stop token; three digits."""
    tokenizer = load_tokenizer("world")
    ids = tokenizer.encode("So it is 7")
    log_probs = np.log(np.linspace(0.1, 0.9, len(ids) + 1)).astype(np.float32)
    found = evaluation.probabilities(Continuation([*ids, tokenizer.eos], ids, log_probs, True), tokenizer)
    assert found["ends"] == tokenizer.ends(ids) and found["ends"][-1] == len("So it is 7")
    np.testing.assert_allclose(found["p"], np.linspace(0.1, 0.9, len(ids) + 1)[:-1], atol=5e-4)


def test_evaluation_writes_probabilities_of_the_first_answers():
    """SHADED of each question's answers have them, others not; what is cut says so. The measures do not change by it."""
    tokenizer = load_tokenizer("world")
    model = tiny_gpt(std=0.3, vocab_size=tokenizer.padded_vocab_size)
    questions = [{"id": "a", "question": "How many?", "answer": "7"}, {"id": "b", "question": "Who?", "answer": "8"}]
    config = evaluation.Config(samples=6, k=(1,), max_new_tokens=5)
    process = Process(0, 1, torch.device("cpu"), torch.float32)
    _, rows = evaluation.evaluate_questions(model, tokenizer, questions, process, config)
    for row in rows:
        assert ["p" in s for s in row["samples"]] == [True] * evaluation.SHADED + [False] * (6 - evaluation.SHADED)
        assert all(len(s["p"]) == len(s["ends"]) <= 5 for s in row["samples"][: evaluation.SHADED])
        assert any(s.get("cut") for s in row["samples"])


def test_committed_records_stay_small(tmp_path):
    """What the excursion keeps of the samples is what its report shows: without probabilities."""
    row = sample("7", True, process=True, cut=True, p=[0.5], ends=[1])
    record = write_record(tmp_path, "r", {"a": [row] * 6})
    (shown,) = shown_samples(record.with_suffix(".jsonl.gz"))
    assert shown["samples"] == [{"text": "7", "right": True, "process": True}] * 4
