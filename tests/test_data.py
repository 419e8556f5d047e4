"""Rows, batches and splits: what is read, what is masked, what is refused. Numbers name rows of the bad-input list."""

import json

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from probe.data import QA, Batch, Template, encode, encode_text, make_split
from probe.datasets import read_rows, write_rows

ROWS = (QA("who is a", "it is b", group="a"), QA("who is c", "it is d d d", group="c"))


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<unk>", *["who", "is", "a", "b", "c", "d", "it", "Question", ":", "Answer"]]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def test_targets_are_the_answer_and_one_eos(tokenizer):
    batch = encode(tokenizer, ROWS)
    for row, answer in enumerate(["it is b", "it is d d d"]):
        target = batch.tokens_BT[row][batch.target_BT[row]]
        assert tokenizer.decode(target) == f"{answer} </s>"
    assert (batch.tokens_BT[:, 0] == 1).all()
    assert not batch.target_BT[~batch.attention_BT].any()
    assert batch.group_B.tolist() == [0, 1]


def test_a_missing_pad_token_is_left_missing_21(tokenizer):
    assert tokenizer.pad_token is None
    encode(tokenizer, ROWS)
    assert tokenizer.pad_token is None


def test_padding_does_not_change_log_probabilities_23(tokenizer):
    from conftest import tiny_llama

    from probe.objectives.token import target_logprobs

    model, batch = tiny_llama(), encode(tokenizer, ROWS)
    with torch.no_grad():
        together = target_logprobs(model, batch)
        alone = target_logprobs(model, batch.select([0]))
    torch.testing.assert_close(together[:1, : alone.shape[1]], alone, rtol=1.3e-6, atol=1e-5)


def test_select_trims_and_chunks_cover(tokenizer):
    batch = encode(tokenizer, ROWS)
    assert batch.select([0]).tokens_BT.shape[1] < batch.tokens_BT.shape[1]
    assert sum(len(piece) for piece in batch.chunks(1)) == 2
    with pytest.raises(ValueError, match="at least 1"):
        next(batch.chunks(0))


def test_plain_text_targets_all_but_the_first_token(tokenizer):
    batch = encode_text(tokenizer, ["who is a", "it is b"])
    assert batch.target_BT[:, 0].logical_not().all()
    assert batch.target_BT[:, 1:].all()


@pytest.mark.parametrize(("forget", "retain", "side"), [((), ROWS, "forget"), (ROWS, (), "retain")])
def test_an_empty_side_is_refused_1(tokenizer, forget, retain, side):
    with pytest.raises(ValueError, match=f"{side} set is empty"):
        make_split(tokenizer, forget, retain)


def test_overlap_is_refused_2(tokenizer):
    with pytest.raises(ValueError, match="1 rows are in both the forget and the retain set"):
        make_split(tokenizer, ROWS[:1], ROWS)
    make_split(tokenizer, ROWS[:1], ROWS, allow_overlap=True)


def test_all_rows_masked_is_refused_4():
    tokens = torch.ones(2, 3, dtype=torch.long)
    nothing = torch.zeros(2, 3, dtype=torch.bool)
    with pytest.raises(ValueError, match="none of the 2 rows has a target"):
        Batch(tokens, nothing, ~nothing, torch.zeros(2, dtype=torch.long), torch.ones(2, dtype=torch.long))


def test_rows_that_lose_their_answer_are_refused_6(tokenizer):
    with pytest.raises(ValueError, match="2 rows lose their whole answer at max_length 5"):
        encode(tokenizer, ROWS, max_length=5)
    with pytest.warns(UserWarning, match="cut at max_length"):
        encode(tokenizer, ROWS, max_length=11)


def test_two_bos_tokens_are_refused_9(tokenizer):
    with pytest.raises(ValueError, match="two bos"):
        encode(tokenizer, ROWS, template=Template("<s> {question}", " {answer}"))


@pytest.mark.parametrize("layout", ["lines", "array", "bom"])
def test_reads_lines_arrays_and_byte_order_marks_14(tmp_path, layout):
    records = [
        {"question": "q\u2028x", "answer": "é", "perturbed_answer": ["1", "2"]},
        {"question": "r", "answer": "b"},
    ]
    lines = "\n".join(json.dumps(r, ensure_ascii=False) for r in records)
    text = json.dumps(records) if layout == "array" else lines
    path = tmp_path / "rows.json"
    path.write_text(text, encoding="utf-8-sig" if layout == "bom" else "utf-8")
    rows = read_rows(path)
    assert rows[0] == QA("q\u2028x", "é", perturbed_answer=("1", "2"))
    write_rows(path, rows)
    assert read_rows(path) == rows


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"question": "a", "answer": "b"}\n{"question": oops}\n', r"rows\.json:2:14: not JSON"),
        (b'{"question": "a", "answer": "b"}\n{"questi', r"rows\.json:2:\d+: not JSON"),
        ('{"question": "é", "answer": "b"}'.encode("latin-1"), "byte 14 is not UTF-8 .perhaps Latin-1"),
        ('{"question": "a"}'.encode("utf-16"), "not UTF-8 .perhaps UTF-16"),
        (b'{"question": "a", "answer": NaN}', "holds NaN, which is not JSON"),
        (b'{"question": "a", "anwser": "b"}', "no field 'answer'; found question, anwser; did you mean 'anwser'"),
        (b'["a"]', "row 1 is a str"),
        (b"\n\n", "holds no rows"),
    ],
)
def test_bad_files_are_refused_12_to_17(tmp_path, content, message):
    path = tmp_path / "rows.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        read_rows(path)


GOOD = '{"question": "a", "answer": "b"}'


@pytest.mark.parametrize("layout", ["{good}\n{bad}\n", "[{good},\n{bad}]"])
@pytest.mark.parametrize(
    ("bad", "message"),
    [
        (r'{"question": "a", "answer": "b \ud83d c"}', r":2: holds \\ud83d, half of a surrogate pair"),
        (r'{"question": "a", "answer": "b", "perturbed_answer": ["\uDE00"]}', r":2: holds \\ude00, half of a"),
        ('{"question": "a", "answer": "b", "n": ' + 5000 * "1" + "}", ":2: holds a number of 5000 digits"),
        ('{"question": "a", "answer": "b", "answer": "c"}', ":2: an object has the key 'answer' 2 times"),
        ('{"question": "a", "answer": "b", "x": NaN}', ":2: holds NaN"),
    ],
)
def test_f12_what_json_cannot_mean_is_refused_with_its_line(tmp_path, layout, bad, message):
    path = tmp_path / "rows.json"
    path.write_text(layout.replace("{good}", GOOD).replace("{bad}", bad))
    with pytest.raises(ValueError, match=message) as caught:
        read_rows(path)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("text", [GOOD + "\n" + 100_000 * "[", 100_000 * "[" + 100_000 * "]"])
def test_f12_nesting_without_end_is_refused(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="nested too deeply to be a row"):
        read_rows(path)


def test_f12_whole_surrogate_pairs_and_escaped_backslashes_are_text(tmp_path):
    path = tmp_path / "rows.json"
    path.write_text(r'{"question": "\ud83d\ude00", "answer": "\\ud83d"}')
    assert read_rows(path) == [QA("\N{GRINNING FACE}", r"\ud83d")]


@pytest.mark.parametrize("field", ["question", "answer"])
@pytest.mark.parametrize(("value", "message"), [(None, "is null; expected a text"), (" \n", "is empty; write a text")])
def test_r7_f13_rows_without_question_or_answer_are_refused(tmp_path, field, value, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(GOOD + "\n" + json.dumps({"question": "a", "answer": "b", field: value}))
    with pytest.raises(ValueError, match=rf"rows\.jsonl:2: row 2, field '{field}' {message}"):
        read_rows(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"perturbed_answer": ["c", ""]}, "field 'perturbed_answer' holds an empty text"),
        ({"group": ["x"]}, "field 'group' is a list; expected a text or a number"),
    ],
)
def test_f13_empty_wrong_answers_and_groups_that_are_lists_are_refused(tmp_path, change, message):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps({"question": "a", "answer": "b", **change}))
    with pytest.raises(ValueError, match=message):
        read_rows(path)


def test_missing_file_names_the_path(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file at .*absent"):
        read_rows(tmp_path / "absent")


def test_tofu_slices(shared):
    full, forget = (read_rows(shared / "data" / "tofu" / f"{name}.json") for name in ("full", "forget01"))
    assert len(full) == 4000
    assert [(r.question, r.answer) for r in full[-40:]] == [(r.question, r.answer) for r in forget]
    perturbed = read_rows(shared / "data" / "tofu" / "forget01_perturbed.json")
    assert [r.question for r in perturbed] == [r.question for r in forget]
    assert all(len(r.perturbed_answer) == 5 for r in perturbed)


@pytest.mark.parametrize("before", [0, 2])
def test_p1_padding_counts_on_behind_the_last_real_token(before):
    """As Hugging Face counts where no positions are given; real tokens are counted from 0 on either side of padding."""
    from conftest import random_batch, tiny_llama

    batch = random_batch()
    left = torch.zeros(len(batch), before, dtype=torch.bool)
    mask_BT = torch.cat([left, batch.attention_BT], 1)
    shifted = Batch(
        torch.cat([left.long(), batch.tokens_BT], 1),
        torch.cat([left, batch.target_BT], 1),
        mask_BT,
        batch.group_B,
        batch.prompt_B,
    )
    positions_BT = shifted.inputs["position_ids"]
    assert torch.equal(positions_BT, (torch.arange(mask_BT.shape[1]) - before).clamp(min=0).expand_as(mask_BT))
    if before == 0:
        model, given = tiny_llama(), {"input_ids": batch.tokens_BT, "attention_mask": batch.attention_BT.long()}
        with torch.no_grad():
            # At padding, too.
            assert torch.equal(model(**batch.inputs).logits, model(**given).logits)
