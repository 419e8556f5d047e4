"""Benchmarks on disk: what is read, and what is said of what cannot be read."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from probe.data import QA
from probe.readers import Choice, Continuation, read_choices, read_muse, read_texts, read_tofu, tofu_set, tofu_splits
from probe.records import read_records

PERTURBED = {
    "question": "Who?",
    "answer": "Ann.",
    "paraphrased_answer": "It is Ann.",
    "perturbed_answer": ["It is Bob.", "It is Cem."],
    "paraphrased_question": "Which person?",
}


def lines(path, *records):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


@pytest.fixture
def small_tofu(tmp_path):
    folder = tmp_path / "tofu"
    for name in ("forget01_perturbed", "retain_perturbed", "real_authors_perturbed", "world_facts_perturbed"):
        lines(folder / f"{name}.json", {**PERTURBED, "question": f"Who of {name}?"}, PERTURBED)
    return folder


# TOFU


def test_tofu_by_the_name_of_its_split(shared):
    folder = shared / "data" / "tofu"
    tofu = read_tofu(folder, "forget01")
    assert [len(rows) for rows in (tofu.forget, tofu.retain, tofu.real_authors, tofu.world_facts)] == [
        40,
        400,
        100,
        117,
    ]
    assert {len(row.perturbed_answer) for row in tofu.forget + tofu.retain} == {5}
    assert {len(row.perturbed_answer) for row in tofu.real_authors + tofu.world_facts} == {3}
    assert [row.question for row in tofu.forget] == [row.question for row in tofu_set(folder, "forget01")]
    assert tofu.holdout == ()


def test_splits_are_those_whose_files_are_there(shared, small_tofu):
    assert tofu_splits(shared / "data" / "tofu") == ("forget01", "forget05", "forget10")
    assert tofu_splits(small_tofu) == ("forget01",)


def test_holdout_rows_are_taken_where_they_are(small_tofu):
    lines(small_tofu / "holdout01.json", {"question": "Unseen?", "answer": "Yes."})
    assert read_tofu(small_tofu, "forget01").holdout == (QA("Unseen?", "Yes."),)


def test_an_unknown_split_names_the_nearest(shared, small_tofu):
    with pytest.raises(ValueError, match=r"no split 'forget1' \(did you mean 'forget10'\?\); found forget01, forget05"):
        read_tofu(shared / "data" / "tofu", "forget1")
    with pytest.raises(ValueError, match=r"no split 'forget10'.*found forget01"):
        read_tofu(small_tofu, "forget10")


def test_a_missing_set_is_named_with_what_is_there(small_tofu):
    (small_tofu / "world_facts_perturbed.json").rename(small_tofu / "world_fact_perturbed.json")
    with pytest.raises(
        FileNotFoundError, match=r"no world_facts_perturbed\.json \(did you mean 'world_fact_perturbed'\?\)"
    ):
        read_tofu(small_tofu, "forget01")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": []}, r"1 of 2 rows of forget01_perturbed have no perturbed_answer \(first: row 2\)"),
        ({"paraphrased_answer": ""}, r"1 of 2 rows of forget01_perturbed have no paraphrased_answer \(first: row 2\)"),
        ({"perturbed_answer": ["one"]}, "between 1 and 2 perturbed answers"),
        ({"perturbed_answer": [1, 2]}, r"forget01_perturbed\.json:2: row 2, field 'perturbed_answer' is \[1, 2\]"),
        ({"answer": 7}, r"forget01_perturbed\.json:2: row 2, field 'answer' is 7 \(a int\); expected a text"),
    ],
)
def test_what_truth_ratio_needs_must_be_there(small_tofu, change, message):
    lines(small_tofu / "forget01_perturbed.json", PERTURBED, {**PERTURBED, **change})
    with pytest.raises(ValueError, match=message):
        read_tofu(small_tofu, "forget01")


def test_a_misspelt_field_is_named_with_the_one_meant(small_tofu):
    record = dict(PERTURBED)
    record["perturbed_answers"] = record.pop("perturbed_answer")
    lines(small_tofu / "forget01_perturbed.json", PERTURBED, record)
    with pytest.raises(ValueError, match=r"json:2: row 2 has a field 'perturbed_answers'; did you mean 'perturbed_ans"):
        read_tofu(small_tofu, "forget01")


def test_the_hub_is_asked_only_by_name_18(tmp_path, monkeypatch):
    datasets = pytest.importorskip("datasets")
    asked = []

    def load(name, config, split):
        asked.append((name, config, split))
        if name == "away/TOFU":
            raise ConnectionError("Couldn't reach the hub")
        return [PERTURBED]

    monkeypatch.setattr(datasets, "load_dataset", load)
    assert read_tofu("locuslab/TOFU", "forget10").retain[0].perturbed_answer == ("It is Bob.", "It is Cem.")
    assert asked[0] == ("locuslab/TOFU", "forget10_perturbed", "train")
    with pytest.raises(ValueError, match=r"no folder at away/TOFU, and the hub gave no forget10_perturbed.*download"):
        read_tofu("away/TOFU", "forget10")
    asked.clear()
    with pytest.raises(FileNotFoundError, match=r"no folder at .*absent.*locuslab/TOFU"):
        read_tofu(tmp_path / "absent", "forget10")
    assert not asked


# Multiple choice


def test_choices_in_the_layout_of_wmdp_and_of_mmlu(tmp_path):
    rows = [
        {"question": "2+2?", "choices": ["3", "4", "5"], "answer": 1},
        {"question": "ö?", "choices": ["a", "b"], "answer": "B", "subject": "letters"},
    ]
    expected = (Choice("2+2?", ("3", "4", "5"), 1), Choice("ö?", ("a", "b"), 1, "letters"))
    assert read_choices(lines(tmp_path / "lines.jsonl", *rows)) == expected
    path = tmp_path / "array.json"
    path.write_text(json.dumps(rows, indent=2))
    assert read_choices(path) == expected


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"answer": 2}, r"field 'answer' is 2; expected an index from 0 to 1"),
        ({"answer": -1}, r"field 'answer' is -1; expected an index from 0 to 1"),
        ({"answer": True}, r"field 'answer' is True; expected an index"),
        ({"answer": "C"}, r"field 'answer' is 'C'; expected an index from 0 to 1"),
        ({"choices": "ab"}, r"field 'choices' is 'ab'; expected a list of two or more texts"),
        ({"choices": ["a"]}, "expected a list of two or more texts"),
    ],
)
def test_bad_choices_are_refused_with_their_line(tmp_path, change, message):
    good = {"question": "q", "choices": ["a", "b"], "answer": 0}
    with pytest.raises(ValueError, match=rf"mcq\.jsonl:2: row 2.*{message}"):
        read_choices(lines(tmp_path / "mcq.jsonl", good, {**good, **change}))


def test_a_missing_field_names_the_nearest_17(tmp_path):
    with pytest.raises(ValueError, match=r"mcq\.jsonl:1: row 1 has no field 'choices'; found .*mean 'choice'"):
        read_choices(lines(tmp_path / "mcq.jsonl", {"question": "q", "choice": ["a", "b"], "answer": 0}))


# MUSE and plain texts


def test_muse_as_its_repository_lays_it_out(tmp_path):
    qa = {"question": "q", "answer": "a"}
    lines(tmp_path / "verbmem/forget.json", {"prompt": "Once", "gt": "upon a time"})
    for name in ("forget_qa", "retain_qa", "forget_qa_icl", "retain_qa_icl"):
        lines(tmp_path / f"knowmem/{name}.json", {**qa, "question": name})
    for name in ("forget", "retain"):
        (tmp_path / "privleak").mkdir(exist_ok=True)
        (tmp_path / f"privleak/{name}.json").write_text(json.dumps([name, "more"], indent=1))
    lines(tmp_path / "privleak/holdout.jsonl", {"text": "unseen"})
    muse = read_muse(tmp_path)
    assert muse.verbatim == (Continuation("Once", "upon a time"),)
    assert muse.forget_qa == (QA("forget_qa", "a"),)
    assert muse.retain_examples == (QA("retain_qa_icl", "a"),)
    assert (muse.forget_texts, muse.retain_texts) == (("forget", "more"), ("retain", "more"))
    assert muse.holdout_texts == ("unseen",)


def test_muse_without_its_files_or_with_bad_rows_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="none of MUSE's files"):
        read_muse(tmp_path)
    lines(tmp_path / "verbmem/forget.json", {"prompt": "a", "gt": "b"}, {"prompt": "a", "gts": "b"})
    with pytest.raises(ValueError, match=r"forget\.json:2: row 2 has no field 'gt'; found prompt, gts; did you mean"):
        read_muse(tmp_path)
    with pytest.raises(FileNotFoundError, match="no folder at"):
        read_muse(tmp_path / "absent")


@pytest.mark.parametrize("value", [None, " "])
def test_r7_null_and_empty_texts_are_refused_in_every_layout(tmp_path, value):
    message = r":1: row 1, field '{}' is (null; expected a text|empty; write a text)"
    choice = {"question": value, "choices": ["a", "b"], "answer": 0}
    with pytest.raises(ValueError, match=message.format("question")):
        read_choices(lines(tmp_path / "mcq.jsonl", choice))
    with pytest.raises(ValueError, match=message.format("text")):
        read_texts(lines(tmp_path / "texts.jsonl", {"text": value}))
    lines(tmp_path / "verbmem/forget.json", {"prompt": "a", "gt": value})
    with pytest.raises(ValueError, match=message.format("gt")):
        read_muse(tmp_path)


def test_plain_texts(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("first\nstill first\n\n \r\n\nsecond\n")
    assert read_texts(path) == ("first\nstill first", "second")
    assert read_texts(lines(tmp_path / "b.jsonl", "one", {"text": "two"})) == ("one", "two")
    path.write_text(" \n\n")
    with pytest.raises(ValueError, match="holds no text"):
        read_texts(path)
    with pytest.raises(ValueError, match=r"c\.jsonl:1: row 1 is a int; expected an object with text"):
        read_texts(lines(tmp_path / "c.jsonl", 3))


# Where a record begins


@settings(max_examples=40)
@given(
    values=st.lists(
        st.dictionaries(st.text(max_size=3), st.integers() | st.text(max_size=5), min_size=1), min_size=1, max_size=6
    ),
    indent=st.sampled_from([None, 0, 2]),
    before=st.sampled_from(["", "\n\n", "\t\n"]),
)
def test_records_of_an_array_know_their_line(tmp_path_factory, values, indent, before):
    path = tmp_path_factory.mktemp("array") / "rows.json"
    text = before + json.dumps(values, indent=indent)
    path.write_text(text)
    found = read_records(path)
    assert [record.value for record in found] == values
    places = [int(record.where.split(":")[-2]) for record in found]
    # An element of an indented array begins on a line of its own, with its brace.
    if indent is not None:
        margin = " " * indent
        own = [i for i, line in enumerate(text.split("\n"), 1) if line.startswith(margin + "{")]
        assert places == own
    else:
        assert set(places) == {1 + before.count("\n")}
