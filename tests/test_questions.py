"""data/questions.py, readers.py, prompt.py: questions of every form, splits that do not overlap, what a model is shown."""

import gzip
import json
import re
from datetime import datetime
from pathlib import Path

import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from cli import UserError
from data import questions, readers
from data.prompt import PROMPT_FORMS, encode_prompt, encode_solution, few_shot_prompt
from data.questions import (
    EXAMPLES,
    BannedQuestions,
    find_questions,
    load_examples,
    load_questions,
    normalise,
    parse_question,
    remove,
    split_validation,
)
from data.readers import hub_files, read_records
from data.tokenizer import load_tokenizer
from files import write_jsonl
from verifier import strict

REAL = Path(__file__).parent.parent.parent / "shared" / "realdata"
TOKENIZER = load_tokenizer("world")

GSM8K = {"question": " Ann has 3 bags of 4 nuts. How many? ", "answer": "She has 3*4=<<3*4=12>>12 nuts.\n#### 1,012"}
MATH = {"problem": "Half?", "solution": "It is $\\boxed{7}$, no, $\\boxed{\\frac{1}{2}}$.", "level": "Level 1"}
OMI2 = {
    "problem": "Two and two?",
    "generated_solution": "2+2=4, so \\boxed{4}.",
    "expected_answer": "4",
    "problem_source": "augmented_gsm8k",
}
OWN = {
    "id": "x1",
    "question": "One?",
    "answer": 1,
    "solutions": ["One.", "It is \\boxed{1}."],
    "source": "s",
    "level": "easy",
    "facts": ["sack of boots"],
}


def write(path, rows):
    lines = [row if isinstance(row, bytes) else json.dumps(row).encode() for row in rows]
    content = b"".join(line + b"\n" for line in lines)
    compress = {".gz": gzip.compress, ".zst": zstandard.compress}.get(path.suffix, bytes)
    path.write_bytes(compress(content))
    return path


def rows_of(*texts):
    return [parse_question({"question": text, "answer": "1", "solution": "\\boxed{1}"}, "t") for text in texts]


def test_forms():
    """GSM8K's, MATH's, OpenMathInstruct-2's and our own form become the same row; GSM8K's calculator marks and
    thousands separators go; a solution without a box gets a closing sentence with one. Other fields are kept of our own
    form alone."""
    row = parse_question(GSM8K, "gsm8k")
    assert row["question"] == "Ann has 3 bags of 4 nuts. How many?" and row["answer"] == "1012"
    assert row["solutions"] == ["She has 3*4=12 nuts.\nThe answer is \\boxed{1012}."]
    assert row["source"] == "gsm8k" and row["level"] is None
    assert parse_question(GSM8K | {"solutions": ["Twelve \\boxed{12}."]}, "t")["solutions"] == [
        *row["solutions"],
        "Twelve \\boxed{12}.",
    ]
    row = parse_question(MATH, "math")
    assert row["answer"] == "\\frac{1}{2}" and row["solutions"] == [MATH["solution"]] and row["level"] == "Level 1"
    row = parse_question(OMI2, "omi2")
    assert (row["answer"], row["solutions"], row["source"]) == ("4", [OMI2["generated_solution"]], "augmented_gsm8k")
    row = parse_question(OWN, "own")
    assert row == OWN | {"answer": "1", "solutions": ["One.\nThe answer is \\boxed{1}.", "It is \\boxed{1}."]}
    assert parse_question(row, "other") == row  # our own form is a fixed point
    assert parse_question({"problem": "p", "answer": "3"}, "t")["solutions"] == []
    assert {*parse_question(GSM8K | {"more": 1}, "t")} == {*parse_question(OMI2, "t")} == {*row} - {"facts"}
    ids = {parse_question(form, "t")["id"] for form in (GSM8K, MATH, OMI2, OWN)}
    assert len(ids) == 4 and parse_question(MATH, "t")["id"] in ids  # ids do not change from run to run


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".jsonl.zst", ".json", ".json.gz", ".json.zst", ".parquet"])
def test_many_solutions_are_one_row(tmp_path, suffix):
    """Rows of one problem string are one question with all their solutions, each once, the first one first."""
    path = tmp_path / f"omi2{suffix}"
    other = OMI2 | {"generated_solution": "Count: \\boxed{4}."}
    equal = OMI2 | {"generated_solution": "\\boxed{4.0}", "expected_answer": "4.0"}
    rows = [OMI2, OMI2 | {"problem": "Else?"}, other, OMI2, equal]
    if suffix == ".parquet":
        import pyarrow
        import pyarrow.parquet

        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        write(path, rows)
    first, second = load_questions(path)
    assert first["solutions"] == ["2+2=4, so \\boxed{4}.", "Count: \\boxed{4}.", "\\boxed{4.0}"]
    assert second["question"] == "Else?" and second["solutions"] == ["2+2=4, so \\boxed{4}."]
    write_jsonl(tmp_path / "saved.jsonl", [first, second])
    assert load_questions(tmp_path / "saved.jsonl") == [first, second]


def test_bad_rows_are_named_counted_and_skipped(tmp_path, capsys):
    """A row that cannot be used is named as file:line and skipped; the good ones around it are read."""
    bad = {
        2: (b"{", "Expecting property name"),
        3: (b'{"question": "\xff", "answer": "1"}', "can't decode byte 0xff"),
        5: (b"[1]", "a JSON object is wanted, not list"),
        6: ({"answer": "1"}, "no field 'question'"),
        7: ({"question": "Q?", "solution": "\\boxed{1"}, "no answer"),
        8: ({"question": "Q?", "answer": "1", "solutions": [1]}, "'solutions'"),
        9: (b'{"id": "a", "question": "Q?", "answer": "1", "solutions": ["\\ud800"]}', "surrogates"),
        10: (OWN | {"answer": "2"}, "answer '2', but an earlier row of this question has '1'"),
        11: (b"[" * 10**6, "nested too deep"),
        12: (b'{"question": "Q?", "answer": "1", "level": "\\ud83d"}', "surrogates"),
    }
    rows = [OWN, *(bad[i][0] if i in bad else MATH if i == 13 else b"" for i in range(2, 14))]
    path = write(tmp_path / "q.jsonl", rows)
    assert [row["question"] for row in load_questions(path)] == ["One?", "Half?"]
    told = capsys.readouterr().err
    for line, (_, why) in bad.items():
        assert f"{path}:{line}: " in told and why in told, line
    assert f"{len(bad)} rows skipped, 2 questions kept" in told
    for line, (row, _) in bad.items():
        path = write(tmp_path / "strict.jsonl", [OWN, row])
        with pytest.raises(UserError, match="strict.jsonl:2: .*--strict") as error:
            load_questions(path, strict=True)
        assert "\n" not in str(error.value), line


def test_a_set_that_is_not_there(tmp_path):
    """The line names the sets that the data folder has: one of a user's own questions has no test sets."""
    (tmp_path / "questions").mkdir()
    for name in ("validation", "train"):
        write(tmp_path / f"questions/{name}.jsonl", [OWN])
    with pytest.raises(UserError, match=f"'test_easy': neither .*; {tmp_path}/questions has train, validation$"):
        find_questions(str(tmp_path), "test_easy", "test")
    with pytest.raises(UserError, match="openmathinstruct2-full$"):
        find_questions(str(tmp_path / "nowhere"), "test_easy", "test")


def test_bad_files(tmp_path, monkeypatch):
    """A file that is missing, empty of questions, of another kind, or broken off is one line."""
    truncated = write(tmp_path / "t.jsonl.gz", [OWN | {"id": str(i)} for i in range(2000)])
    truncated.write_bytes(truncated.read_bytes()[:-20])
    zst = write(tmp_path / "t.json.zst", [OWN | {"id": str(i)} for i in range(2000)])
    zst.write_bytes(zst.read_bytes()[:-20])
    (tmp_path / "p.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "utf16.jsonl").write_text(json.dumps(OWN), encoding="utf-16")
    for path, match in {
        tmp_path / "none.jsonl": "no such file, nor one of the hub's gsm8k, math, openmathinstruct2",
        write(tmp_path / "e.jsonl", []): "holds no usable question",
        write(tmp_path / "x.csv", [OWN]): "unknown kind of file",
        truncated: "t.jsonl.gz: cannot be read .EOFError",
        zst: "t.json.zst: cannot be read .OSError: Truncated",
        tmp_path / "utf16.jsonl": "utf16.jsonl: is UTF-16; convert it",
        write(tmp_path / "list.json", [b"[", OWN]): "list.json: is one JSON list; write an object a line",
        write(tmp_path / "not.jsonl.gz", []).with_name("n.jsonl.gz"): "no such file",
        tmp_path / "p.parquet": "cannot be read as parquet",
    }.items():
        with pytest.raises(UserError, match=match):
            load_questions(path)

    def offline(*args, **kwargs):
        raise ConnectionError("no\nnetwork")

    monkeypatch.setattr("huggingface_hub.HfApi.dataset_info", offline)
    with pytest.raises(UserError, match="cannot stream openai/gsm8k .*ConnectionError: no; .*path of a local") as error:
        load_questions("gsm8k")
    assert "\n" not in str(error.value)


def test_hub_names(monkeypatch):
    """OpenMathInstruct-2 is filtered to the paper's problem sources; MATH is all its subjects; GSM8K is its split."""
    asked = []

    def stream(repository, config, split):
        asked.append((repository, config, split))
        sources = ["gsm8k", "math", "augmented_gsm8k", "augmented_math"]
        yield from (OMI2 | {"problem": f"{config} {source}?", "problem_source": source} for source in sources)

    monkeypatch.setattr(questions, "stream_hub", stream)
    kept = load_questions("openmathinstruct2")
    assert [row["source"] for row in kept] == ["gsm8k", "augmented_gsm8k"]
    assert len(load_questions("math", "test")) == 7 * 4
    assert asked[0] == ("nvidia/OpenMathInstruct-2", "default", "train") and asked[-1][2] == "test"


def test_limit_parses_no_more(tmp_path, monkeypatch):
    """`limit` gives the first questions of a whole reading. Of a file of our own form nothing behind them is read;
    where a question's solutions may follow row by row, rows of other questions are not parsed as questions."""
    own = write(tmp_path / "own.jsonl", [OWN | {"question": f"{i}?", "id": str(i)} for i in range(5000)])
    way = OMI2 | {"generated_solution": "Another way: \\boxed{4}."}
    rows = [r | {"problem": f"{i}?"} for r in (OMI2, way) for i in range(500)]
    omi2 = write(tmp_path / "omi2.jsonl", rows)
    whole = {path: load_questions(path) for path in (own, omi2)}
    parsed, parse = [], questions.parse_question
    monkeypatch.setattr(questions, "parse_question", lambda *args: parsed.append(1) or parse(*args))
    for path, count in ((own, 8), (omi2, 16)):
        parsed.clear()
        assert load_questions(path, limit=8) == whole[path][:8]
        assert len(parsed) == count
    read, parse_json = [], questions.parse_record
    monkeypatch.setattr(questions, "parse_record", lambda *args: read.append(1) or parse_json(*args))
    load_questions(own, limit=8)
    assert len(read) == 9


def test_byte_order_mark(tmp_path):
    """A UTF-8 byte order mark, which some editors write, is no part of the first record."""
    write(tmp_path / "b.jsonl", [b"\xef\xbb\xbf" + json.dumps(OWN).encode(), MATH])
    assert [row["question"] for row in load_questions(tmp_path / "b.jsonl", strict=True)] == ["One?", "Half?"]
    (tmp_path / "b.txt").write_bytes(b"\xef\xbb\xbfone\n")
    assert [r.content["text"] for r in read_records(tmp_path / "b.txt")] == [b"one\n"]


@pytest.mark.parametrize("suffix", [".jsonl", ".json.gz", ".json.zst"])
def test_overlong_lines(tmp_path, monkeypatch, capsys, suffix):
    """A line longer than MAX_RECORD is named, counted and skipped, in any compression, and no more than that is ever
    held of it; the lines around it are read, and one of just the limit too."""
    monkeypatch.setattr(readers, "MAX_RECORD", 1000)
    exact = json.dumps(OWN | {"question": "Exact?"}).encode()
    exact = exact[:-1] + b" " * (999 - len(exact)) + b"}"
    long = [json.dumps(OWN | {"question": "Long?" * n}).encode() for n in (200, 10_000)]
    path = write(tmp_path / f"q{suffix}", [OWN, *long, exact, MATH])
    assert [row["question"] for row in load_questions(path)] == ["One?", "Exact?", "Half?"]
    assert max(len(record.content) for record in read_records(path)) == 1001
    assert [record.where.rpartition(":")[2] for record in read_records(path)] == list("12345")
    told = capsys.readouterr().err
    assert f"{path}:2: longer than" in told and f"{path}:3: longer than" in told


def test_txt_of_one_line(tmp_path):
    """A text of one long line (as text8 is) is cut between words, and in characters of several bytes never within one."""
    for name, text in {
        "words": "word " * 20_000,
        "letters": "é" * 30_000 + "漢" * 30_000,
        "ascii": "x" * 45_000,
    }.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
        pieces = [record.content["text"] for record in read_records(tmp_path / f"{name}.txt")]
        assert "".join(piece.decode() for piece in pieces) == text and len(pieces) >= 2
        assert max(map(len, pieces)) <= 2 * readers.TXT_PIECE
    assert all(piece.endswith(b" ") for piece in [r.content["text"] for r in read_records(tmp_path / "words.txt")])


PARQUET = "train-00000-of-00001.parquet"
HUB_LAYOUTS = {  # name → (files of the copy, those of each configuration's train and test split)
    "gsm8k": (["README.md", f"main/{PARQUET}", "main/test-00000-of-00001.parquet", f"socratic/{PARQUET}"],
              {("main", "train"): [f"main/{PARQUET}"], ("main", "test"): ["main/test-00000-of-00001.parquet"]}),
    "math": ([f"algebra/{PARQUET}", "algebra/test-00000-of-00001.parquet", f"prealgebra/{PARQUET}"],
             {("algebra", "train"): [f"algebra/{PARQUET}"], ("algebra", "test"): ["algebra/test-00000-of-00001.parquet"]}),
    "omi2": ([f"data/{PARQUET}", "data/train_1M-00000-of-00001.parquet", "data/train_5M-00000-of-00001.parquet"],
             {("default", "train"): [f"data/{PARQUET}"], ("default", "train_1M"): ["data/train_1M-00000-of-00001.parquet"]}),
    "fineweb": (["data/CC-MAIN-2013-20/0.parquet", "sample/10BT/0.parquet", "sample/100BT/0.parquet"],
                {("sample-100BT", ""): ["sample/100BT/0.parquet"], ("default", ""): ["data/CC-MAIN-2013-20/0.parquet"],
                 ("CC-MAIN-2013-20", ""): ["data/CC-MAIN-2013-20/0.parquet"]}),
    "dolmino": (["data/dclm/0000/dclm-0000.json.zst", "data/math/gsm8k/v0_main_train/0.jsonl.zst", "data/math/tulu/train/1.jsonl"],
                {("dclm", ""): ["data/dclm/0000/dclm-0000.json.zst"],
                 ("math", ""): ["data/math/gsm8k/v0_main_train/0.jsonl.zst", "data/math/tulu/train/1.jsonl"]}),
}  # fmt: skip


@pytest.mark.parametrize("name", HUB_LAYOUTS)
def test_hub_layouts(tmp_path, name):
    """Of a local copy in the hub's layout, a configuration and split are the files that the hub's own configuration
    names, and nothing else; what is not there is one line."""
    files, wanted = HUB_LAYOUTS[name]
    for file in files:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    for (config, split), found in wanted.items():
        assert [path.relative_to(tmp_path).as_posix() for path in hub_files(tmp_path, config, split)] == found
    for config, split, match in [
        ("missing", "train", "no file in a folder missing"),
        ("default", "validation", "no file of the split"),
    ]:
        with pytest.raises(UserError, match=match):
            hub_files(tmp_path, config, split)
    with pytest.raises(UserError, match="no such folder"):
        hub_files(tmp_path / "none", "main")


def test_split_of_groups():
    """With groups, so many of each group's sources are held out, each by its own shuffle with seed 42, in turn; train
    is the rest in its order, other sources included."""
    rows = [row | {"source": source} for i in range(20) for source in "abc" for row in rows_of(f"{source} {i}?")]
    train, validation = split_validation(rows, n=5, groups=(("a",), ("b",)))
    assert [row["source"] for row in validation] == list("ab") * 5
    assert train == [row for row in rows if row not in validation]
    order = np.random.default_rng(42).permutation(20)[:5]
    assert [row["question"] for row in validation[::2]] == [f"a {i}?" for i in order]
    with pytest.raises(UserError, match="--validation_questions 20: there are 20 questions from a, "):
        split_validation(rows, n=20, groups=(("a",), ("b",)))


def test_txt(tmp_path):
    """A text file is cut at separator lines and, if long, at line ends; nothing but the separators is lost."""
    lines = [f"line {i} é\n" for i in range(5000)]
    text = "first\n<|endoftext|>\nsecond <|endoftext|> still\n" + "".join(lines)
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    records = list(read_records(tmp_path / "a.txt"))
    texts = [record.content["text"].decode() for record in records]
    assert texts[0] == "first\n" and texts[1].startswith("second <|endoftext|> still\nline 0")
    assert "".join(texts) == text.replace("\n<|endoftext|>\n", "\n", 1)
    assert 3 < len(texts) < 8 and max(map(len, texts)) < 21_000
    assert records[0].where.endswith("a.txt:1") and records[1].where.endswith("a.txt:3")
    assert [r.position for r in records] == sorted(r.position for r in records)
    assert records[-1].position == len(text.encode())


def test_split_validation():
    """Property 36: validation and train share no question, also not one that differs in white space or case; a
    question's solutions go with it. The split is that of a shuffle with seed 42 and does not change."""
    texts = [f"How many is {i} and {i}?" for i in range(60)]
    near = [f" how  many IS {i} and\n{i}?" for i in range(60)]
    rows = rows_of(*texts, *near)
    for row in rows:
        row["solutions"] = [f"{row['question']} {i}" for i in range(3)]
    train, validation = split_validation(rows, n=20)
    held_out = {normalise(row["question"]) for row in validation}
    assert len(validation) == 20
    assert not held_out & {normalise(row["question"]) for row in train}
    assert all(solution.startswith(row["question"]) for row in train + validation for solution in row["solutions"])
    assert {normalise(row["question"]) for row in train} | held_out == {normalise(text) for text in texts}
    assert [row["question"] for row in split_validation(rows, n=20)[1]] == [row["question"] for row in validation]
    order = np.random.default_rng(42).permutation(120)  # what datasets.Dataset.shuffle(seed=42) does
    assert validation == [rows[i] for i in order[:20]]
    with pytest.raises(UserError, match="--validation_questions 120: there are 120 questions"):
        split_validation(rows, n=120)


def test_remove():
    """Property 36: removal ignores white space and case, and nothing else."""
    rows = rows_of("What is 3+4?", "what  is 3 + 4 ?", "What is 3+5?")
    assert [row["question"] for row in remove(rows, ["WHAT IS 3+4?"])] == ["What is 3+5?"]


WORDS = st.sampled_from("what is the sum of 3 + 4 Tom has 12 nuts, é how many? x^2".split())
SPACES = st.sampled_from([" ", "  ", "\n", "\t "])


@given(st.lists(WORDS, min_size=1, max_size=9), st.lists(WORDS, max_size=9), st.lists(WORDS, max_size=9), st.data())
@settings(max_examples=200, deadline=None)
def test_banned_questions_are_found(question, before, after, data):
    """Property 36: a question is found in any text that holds it, however white space and case differ; the quick search
    agrees with the plain one on every text."""
    banned = BannedQuestions([" ".join(question), "some other question that is never asked?"])
    spell = data.draw(st.sampled_from([str.upper, str.lower, str]))
    text = "".join(word + data.draw(SPACES) for word in [*before, *map(spell, question), *after])
    assert banned.found_in(text)
    text = " ".join(before + after)
    whole = "\0" + "\0".join(before + after) + "\0"  # word by word, so that no piece of a word counts
    if "\0" + "\0".join(question) + "\0" in whole:
        assert banned.found_in(text)
    if normalise(" ".join(question)) not in normalise(text):
        assert not banned.found_in(text)


def test_banned_question_within_other_text():
    """Property 36: punctuation right before a question, as in `Q:question`, does not hide it; a changed number is no
    match."""
    banned = BannedQuestions(["Tom has 12 nuts. How many?", "3+4=?"])
    assert banned.found_in("Q:Tom has 12 nuts. How many?\nA: 12") and banned.found_in("so 3 + 4 = ? yes")
    assert not banned.found_in("Tom has 13 nuts. How many?") and not banned.found_in("3+5=?")


def test_demonstration_ends_in_one_stop_token():
    """Property 37: a solution ends in exactly one stop token, also if its text spells one; with a cut it is the first
    so many tokens of that."""
    solution = "Tom has 3<|endoftext|> pears. The answer is \\boxed{3}."
    tokens = encode_solution(solution, TOKENIZER)
    assert tokens.count(TOKENIZER.eos) == 1 and tokens[-1] == TOKENIZER.eos
    assert TOKENIZER.decode(tokens[:-1]) == solution
    assert encode_solution(solution, TOKENIZER, len(tokens)) == tokens
    assert encode_solution(solution, TOKENIZER, 3) == tokens[:3]


def test_few_shot_prompt_is_rows_and_a_prompt():
    """A few-shot prompt is the SFT rows of its examples followed by the zero-shot prompt: the same tokens that a model
    has been or will be trained on."""
    examples = rows_of("What is 3 and 4?", "What is 5?")
    expected = []
    for row in examples:
        expected += encode_prompt(row["question"], TOKENIZER) + encode_solution(row["solutions"][0], TOKENIZER)
    assert few_shot_prompt(examples, "And 6?", TOKENIZER) == expected + encode_prompt("And 6?", TOKENIZER)
    assert TOKENIZER.decode(encode_prompt("And 6?", TOKENIZER)) == (
        "And 6? Let's think step by step and output the final answer within \\boxed{}.\n"
    )


@pytest.mark.parametrize("name", ["gsm8k", "math"])
def test_worked_examples(name, tmp_path):
    """The shipped examples are 8 different ones whose every solution earns the reward; a file of questions does as
    well, its first 8 with solutions; too few are refused."""
    rows = load_examples(name)
    assert len({row["question"] for row in rows}) == 8
    assert all(strict(row["solutions"][0], row["answer"]).right for row in rows)
    write_jsonl(tmp_path / "e.jsonl", [rows[0] | {"id": "none", "question": "No solution?", "solutions": []}, *rows])
    assert load_examples(tmp_path / "e.jsonl") == rows
    with pytest.raises(UserError, match="9 worked examples are wanted, it has 8"):
        load_examples(name, 9)


def test_question_answer_prompts():
    """The authors' prompt: GSM8K's own rows with their marks, the instruction after the last Answer:, no stop token;
    for MATH the answers boxed. Without examples the prompt is plain."""
    examples = load_examples("gsm8k_train")
    texts = {form: TOKENIZER.decode(few_shot_prompt(examples, "Why?", TOKENIZER, form)) for form in PROMPT_FORMS}
    hashes, boxed = texts["question_answer"], texts["question_answer_boxed"]
    assert hashes.startswith("Question: In Professor Plum's biology class there are 40 students.")
    assert "40 * 0.8 = <<40*0.8=32>>32 who own puppies." in hashes and hashes.count("\n#### ") == 8
    assert hashes.endswith(
        "There are 100/4= <<100/4=25>>25 purple four leaf clovers\n#### 25\nQuestion: Why?\n"
        'Answer: Let\'s think step by step and output the final answer after "####".\n'
    )
    assert boxed.endswith(
        "There are 100/4= <<100/4=25>>25 purple four leaf clovers\n\\boxed{25}\nQuestion: Why?\n"
        "Answer: Let's think step by step and output the final answer within \\boxed{}.\n"
    )
    for form in PROMPT_FORMS:
        assert few_shot_prompt([], "Why?", TOKENIZER, form) == encode_prompt("Why?", TOKENIZER)
    own = TOKENIZER.decode(few_shot_prompt(load_examples("math", 1), "Why?", TOKENIZER, "question_answer"))
    assert own.startswith("Question: Solve $5x") and "$x = \\boxed{6}$.\n#### 6\nQuestion: Why?" in own


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/realdata")
def test_shipped_examples_are_gsm8k_s():
    """The shipped rows are rows of GSM8K's training set, character for character, and none of its test set."""
    shipped = (EXAMPLES / "gsm8k_train.jsonl").read_text(encoding="utf-8").splitlines()
    published = {json.loads(line)["question"]: json.loads(line) for line in gzip.open(REAL / "gsm8k_train.jsonl.gz")}
    assert all(published[json.loads(line)["question"]] == json.loads(line) for line in shipped) and len(shipped) == 8
    test = {normalise(row["question"]) for row in load_questions(REAL / "gsm8k_test.jsonl.gz")}
    assert not test & {normalise(json.loads(line)["question"]) for line in shipped}


def test_worked_equations_are_right():
    """Each "a op b op c = d" in the grade-school examples holds: wrong arithmetic would prompt for more of it."""
    apply = {"+": lambda a, b: a + b, "-": lambda a, b: a - b, "*": lambda a, b: a * b, "/": lambda a, b: a / b}
    number = r"\d+(?:\.\d+)?"
    text = "\n".join(row["solutions"][0] for row in load_examples("gsm8k"))
    equations = re.findall(rf"({number}(?: [-+*/] {number})+) = ({number})", text)
    for left, right in equations:
        first, *terms = left.split()
        value = float(first)  # from left to right: none of them mixes + and *
        for sign, term in zip(terms[::2], terms[1::2], strict=True):
            value = apply[sign](value, float(term))
        assert value == float(right), left
    assert len(equations) == 25


@pytest.mark.skipif(not REAL.exists(), reason="needs ../shared/realdata")
def test_real_files():
    """GSM8K, MATH and OpenMathInstruct-2 as published are read whole, and every reference solution is right by the
    strict verifier against its own answer."""
    counts = {
        "gsm8k_train.jsonl.gz": 7473,
        "gsm8k_test.jsonl.gz": 1319,
        "math_train.jsonl.gz": 7470,
        "math_test.jsonl.gz": 5000,
        "openmathinstruct2_sample.jsonl": 100,
    }
    for name, count in counts.items():
        rows = load_questions(REAL / name, strict=True)
        assert len(rows) == count and len({row["id"] for row in rows}) == count
        for row in rows[:500]:
            assert all(strict(solution, row["answer"]).right for solution in row["solutions"]), row
            assert not any("<<" in solution or "####" in solution for solution in row["solutions"])


def test_a_parquet_file_whose_text_is_damaged(tmp_path):
    """Text that is not UTF-8, which parquet itself does not notice, is one line that names the file."""
    import pyarrow.parquet

    path = tmp_path / "q.parquet"
    rows = pyarrow.Table.from_pylist([{"question": "Tom has pears.", "answer": "2"}])
    pyarrow.parquet.write_table(rows, path, compression="none")
    path.write_bytes(path.read_bytes().replace(b"Tom", b"\xffom"))
    with pytest.raises(UserError, match="q.parquet: cannot be read as parquet"):
        load_questions(path)


def test_what_a_users_file_may_hold(tmp_path):
    """Two files numbered from 1, one behind the other: every question keeps an id of its own. 0 is an id. true and NaN
    are no answers. Questions that differ in case alone leave nothing to train on, and this is said."""
    rows = [{"id": i, "question": f"What is {i} and {part}?", "answer": str(i)} for part in "ab" for i in range(3)]
    write_jsonl(tmp_path / "mine.jsonl", rows)
    found = load_questions(tmp_path / "mine.jsonl")
    assert len({row["id"] for row in found}) == 6 and [row["id"] for row in found[:3]] == ["0", "1", "2"]
    for value in (float("nan"), True, float("inf")):
        with pytest.raises(ValueError, match="no answer"):
            parse_question({"question": "How many?", "answer": value}, "mine")
    assert parse_question({"question": "How many?", "answer": 7.0}, "mine")["answer"] == "7.0"
    assert parse_question({"question": "How many?", "answer": 10**400}, "mine")["answer"] == str(10**400)
    with pytest.raises(ValueError, match="a field that JSON cannot hold .*datetime"):
        parse_question({"question": "Q?", "answer": "1", "solutions": ["a"], "when": datetime.now()}, "mine")
    with pytest.raises(UserError, match="--validation_questions 1: the other questions are these again"):
        split_validation([{"question": "How many?"}, {"question": "how  many?"}], 1)
    for name in ("a.json", "a.part.json"):
        (tmp_path / name).write_text("[1]")
        with pytest.raises(UserError, match="is one JSON list"):
            load_questions(tmp_path / name)
