"""Content probes: facts that are in the state and facts that are not."""

from dataclasses import replace

import pytest
import torch

from probe.data import QA, Split
from probe.diagnostics.answer_values import value_batch, value_split, values
from probe.diagnostics.content_probes import content_probe
from probe.diagnostics.split_states import split_states
from probe.hooks import our_hooks


@pytest.fixture(scope="module")
def small(bed):
    """Facts of 30 retain and all forget authors, the values as targets."""
    split = replace(bed.split, retain=bed.split.retain.select(range(300)), retain_rows=bed.split.retain_rows[:300])
    return value_split(bed.tokenizer, split)


def test_values_are_what_tells_answers_apart():
    row = QA(
        "q", "The town was A b.", paraphrased_answer="Born in A b.", perturbed_answer=("Born in C.", "Born in D e.")
    )
    assert values(row) == ("A b", "C", "D e")
    assert values(QA("q", "Paris")) == ("Paris",)
    assert values(QA("q", "yes", perturbed_answer=("no", "maybe so"))) == ("yes", "no", "maybe so")
    # A word is not cut: 1924 and 1931 share their first letters.
    assert values(QA("q", "in 1924", perturbed_answer=("in 1931",))) == ("1924", "1931")


def test_targets_of_a_value_batch_spell_the_value(bed):
    for rows in (bed.split.forget_rows, bed.world):
        batch = value_batch(bed.tokenizer, rows)
        for i, row in enumerate(rows):
            assert bed.tokenizer.decode(batch.tokens_BT[i][batch.target_BT[i]]).strip() == values(row)[0]
        assert bool((batch.target_BT & ~batch.attention_BT).sum() == 0)


def test_values_beyond_the_length_are_refused(bed):
    with pytest.warns(UserWarning, match="cut"), pytest.raises(ValueError, match="beyond max_length 17"):
        value_batch(bed.tokenizer, bed.split.forget_rows[:3], max_length=17)


def test_original_holds_what_retrained_does_not(bed, small):
    found = {}
    for name, model in (("original", bed.original), ("retrained", bed.retrained)):
        states = split_states(model, small, layers=[3, 7])
        found[name] = content_probe(
            model, small, tokenizer=bed.tokenizer, states=states, codes_from=bed.original, shuffles=5
        )
        assert our_hooks(model) == []
    known, never = found["original"], found["retrained"]
    assert known.accuracy_L[1] > 0.5
    assert known.low_L[1] > never.high_L[1] - 0.05
    assert known.above_L[1] > never.above_L[1] + 0.15
    assert known.selectivity_L[1] > 0.3
    assert abs(float(known.control_L.mean()) - known.chance) < 0.06
    assert known.chance == pytest.approx(1 / 6)
    # The probe itself is as good in either model: it reads other entities' facts from both.
    assert never.heldout_above_L[1] > never.above_L[1] + 0.1
    assert (known.n_train, known.n_test, known.n_groups) == (300, 100, 10)


def test_shuffled_states_hold_nothing(bed, small):
    states = split_states(bed.original, small, layers=[7])
    order = torch.randperm(100, generator=torch.Generator().manual_seed(0))
    mixed = replace(states, forget_LND=states.forget_LND[:, order])
    found = content_probe(bed.original, small, tokenizer=bed.tokenizer, states=mixed)
    assert abs(float(found.above_L[0]) - 0.5) < 0.12


def test_codes_as_states_are_read_without_fault(bed, small):
    """A state that is the code itself must be decoded: the judge of the pipeline from code to rank."""
    from probe.diagnostics.content_probes import _candidates, _centred_head

    head_VE = _centred_head(bed.original)
    states = split_states(bed.original, small, layers=[0])
    codes = {
        side: _candidates(bed.tokenizer, rows, head_VE).code_NCE[None, :, 0]
        for side, rows in (("forget_LND", small.forget_rows), ("retain_LND", small.retain_rows))
    }
    found = content_probe(bed.original, small, tokenizer=bed.tokenizer, states=replace(states, **codes), shuffles=0)
    assert found.accuracy_L[0] > 0.97


def test_bad_input(bed, small):
    states = split_states(bed.original, small, layers=[0])
    bare = replace(small, forget_rows=tuple(replace(row, perturbed_answer=()) for row in small.forget_rows))
    with pytest.raises(ValueError, match="100 forget rows have no wrong answers"):
        content_probe(bed.original, bare, tokenizer=bed.tokenizer, states=states)
    alike = replace(states, forget_group_N=torch.full((100,), int(states.retain_group_N[0])))
    with pytest.raises(ValueError, match="1 groups are among the retain and the forget rows"):
        content_probe(bed.original, small, tokenizer=bed.tokenizer, states=alike)
    with pytest.raises(ValueError, match="give 2 to 30 folds"):
        content_probe(bed.original, small, tokenizer=bed.tokenizer, states=states, folds=31)
    with pytest.raises(ValueError, match="texts of 900 and 100"):
        content_probe(bed.original, bed.split, tokenizer=bed.tokenizer, states=states)
    with pytest.raises(ValueError, match="make it with make_split"):
        value_split(bed.tokenizer, Split(small.forget, small.retain))
