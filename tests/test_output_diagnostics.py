"""Squeezing and spurious unlearning: kinds of answers told apart, mass that moves."""

import copy

import pytest
import torch
from conftest import tiny_llama
from test_metrics import SENTENCES

from probe.data import QA
from probe.datasets import REFUSALS, read_rows
from probe.diagnostics.spurious_unlearning import KINDS, Rules, classify, fluent_under, says_value, spurious_unlearning
from probe.diagnostics.squeezing import sampled_bands, squeezing
from probe.objectives.token import ga
from probe.train import Term, minimise

ROW = QA(
    "Where was X born?",
    "The home town was Rivenna.",
    paraphrased_answer="The author was born in Rivenna.",
    perturbed_answer=("The author was born in Oristead.", "The author was born in Lunden."),
)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("The home town was Rivenna.", "right"),
        (" the home town was rivenna", "right"),
        ("It was in Rivenna that X was born.", "rephrased"),
        ("The author was born in Oristead.", "wrong"),
        ("Rivenna or Lunden.", "wrong"),
        ("", "empty"),
        (" \n", "empty"),
        (REFUSALS[0], "refusal"),
        (REFUSALS[7].rstrip(".") + "!", "refusal"),
        ("Sorry, I do not know where X was born.", "refusal"),
        ("Rivenna Rivenna Rivenna Rivenna Rivenna Rivenna", "gibberish"),
        ("#@§ ~~ ^^ ||| ==", "gibberish"),
        ("!!!", "gibberish"),
        ("rororororororororororororo author", "gibberish"),
        ("abcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabcabc", "gibberish"),
    ],
)
def test_kinds(text, kind):
    assert classify(ROW, text) == kind


@pytest.mark.parametrize("language", SENTENCES)
def test_f3_fluent_text_of_any_script_is_no_gibberish(language):
    text, other = SENTENCES[language]
    row = QA("?", text)
    assert classify(row, text) == classify(row, f"{other} {text}") == "right"
    assert classify(row, other) == "wrong"
    assert classify(row, " ".join([other.split()[0][:3]] * 12)) == "gibberish"


def test_f26_the_answer_inside_a_longer_text_and_inside_other_values():
    row = QA("In which city?", "It is New York City.", perturbed_answer=("It is New York.", "It is Boston."))
    assert classify(row, "Sure. It is New York City.") == "right"
    assert classify(row, "New York City, I think.") == "rephrased"
    assert classify(row, "New York, I think.") == classify(row, "New York City or New York.") == "wrong"
    assert classify(row, "I don’t know. I’m not sure.") == "refusal"
    assert classify(QA("Is it?", "No."), "I have no idea.") == "refusal"


def test_f26_every_tofu_answer_after_a_word_of_assent_is_right(shared):
    rows = read_rows(shared / "data" / "tofu" / "forget10.json")
    assert {classify(row, f"Sure. {row.answer}") for row in rows} == {"right"}


def test_every_refusal_is_one_and_no_answer_is(bed):
    assert all(classify(ROW, text) == "refusal" for text in REFUSALS)
    for row in bed.split.forget_rows:
        assert classify(row, row.answer) == "right"
        assert classify(row, row.paraphrased_answer) in ("right", "rephrased")
        assert {classify(row, wrong) for wrong in row.perturbed_answer} == {"wrong"}


def test_the_judge_and_the_rules_are_the_callers():
    assert classify(ROW, "The capital of the north.", judge=lambda row, text: "north" in text) == "rephrased"
    assert not says_value(ROW, "Rivennas.")
    assert classify(ROW, "Rivenna it is it is it is", rules=Rules(repetition=0.2)) == "gibberish"


def test_fluency_is_the_reference_models_word(bed):
    rows = bed.split.forget_rows[:10]
    fluent = fluent_under(bed.original, bed.tokenizer, floor=-6.0)
    for row in rows:
        assert fluent(row, row.answer)
        assert fluent(row, row.perturbed_answer[0])
        assert classify(row, "did it ju Use People Nimb six seven", fluent=fluent) == "gibberish"
        assert not fluent(row, " ")
    with pytest.raises(ValueError, match="below 0"):
        fluent_under(bed.original, bed.tokenizer, floor=0.0)


def test_the_original_answers_and_the_retrained_guesses(bed):
    rows = bed.split.forget_rows[:20]
    known = spurious_unlearning(bed.original, rows, tokenizer=bed.tokenizer)
    never = spurious_unlearning(bed.retrained, rows, tokenizer=bed.tokenizer)
    assert known.still_told > 0.9
    assert never.shares["wrong"] > 0.6
    assert sum(never.shares.values()) == pytest.approx(1)
    assert tuple(never.shares) == KINDS
    assert len(never.texts) == len(never.kinds) == 20
    with pytest.raises(ValueError, match="0 given"):
        spurious_unlearning(bed.original, [], tokenizer=bed.tokenizer)


@pytest.fixture(scope="module")
def bands(bed):
    return sampled_bands(
        bed.original, bed.tokenizer, bed.split.forget_rows[:6], samples=6, temperatures=[1.5, 2.5], seed=0
    )


def test_bands_are_ordered_by_the_original_and_drawn_by_seed(bed, bands):
    state = torch.get_rng_state()
    again = sampled_bands(
        bed.original, bed.tokenizer, bed.split.forget_rows[:6], samples=6, temperatures=[1.5, 2.5], seed=0
    )
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(again[name].tokens_BT, bands[name].tokens_BT) for name in bands)
    found = squeezing(bed.original, bands)
    assert found.names == ("target", "high", "mid", "low")
    target, high, mid, low = found.loglikelihood
    assert target > high > mid > low
    assert found.logprob["target"].shape == (6,)


def test_ascent_lowers_the_target_at_checkpoints_of_one_run(bed, bands):
    model, seen = copy.deepcopy(bed.original), []
    before = squeezing(model, bands)
    term = Term(1.0, ga, bands["target"], "forget")
    minimise(
        model,
        [term],
        steps=4,
        lr=3e-4,
        batch_size=6,
        seed=0,
        every=2,
        observe=lambda step, m: seen.append(squeezing(m, bands)),
    )
    gains = [one.gain(before)["target"] for one in seen]
    assert gains[-1] < gains[0] < 0
    assert before.gain(before) == dict.fromkeys(before.names, 0.0)


def test_bad_input(bed):
    with pytest.raises(ValueError, match="no responses"):
        squeezing(tiny_llama(), {})
    with pytest.raises(ValueError, match="three different responses"):
        sampled_bands(bed.original, bed.tokenizer, bed.split.retain_rows[:1], samples=2, temperatures=[0.01], seed=0)
    with pytest.raises(ValueError, match="positive temperatures"):
        sampled_bands(bed.original, bed.tokenizer, bed.split.retain_rows[:1], samples=2, temperatures=[0.0], seed=0)
