"""Several seeds in one attack give the curves of one seed at a time, and a retrained model's curves can be kept."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from probe.attacks.curves import Training
from probe.attacks.facts import divided
from probe.attacks.finetuning import finetune
from probe.attacks.relearning import relearn
from probe.objectives.token import GA
from tests.conftest import tiny_llama

TRAINING = Training(steps=4, lr=1e-3, batch_size=4, at=(2,), seeds=(0, 1, 2))


@pytest.fixture(scope="module")
def facts(bed):
    return divided(bed.tokenizer, bed.split.forget_rows[:10], share=0.5, by="row", seed=0)


@pytest.fixture(scope="module")
def models():
    return tuple(tiny_llama(seed, vocab_size=1024) for seed in (0, 1))


@pytest.fixture(scope="module")
def curves(facts, models):
    return relearn(models[0], facts, retrained=models[1], **vars(TRAINING))


def test_seeds_together_give_the_curves_of_one_at_a_time(facts, models, curves):
    alone = [
        relearn(models[0], facts, retrained=models[1], **vars(replace(TRAINING, seeds=(k,)))) for k in TRAINING.seeds
    ]
    for of in ("model", "retrained"):
        for on in ("held", "shown"):
            expected_KS = np.concatenate(
                [one.curve(on=on, of=of) if on == "held" else _shown(one, of) for one in alone]
            )
            found_KS = curves.curve(on=on, of=of) if on == "held" else _shown(curves, of)
            np.testing.assert_allclose(found_KS, expected_KS, rtol=0, atol=1e-6)
    assert curves.curve().shape == (3, 3)
    assert len({tuple(seed) for seed in curves.curve()[:, 1:]}) == 3


def _shown(one, of):
    return one.curve("choice", on="shown", of=of)


def test_rows_are_scored_once_before_the_first_step(facts, models):
    calls = []

    def counted(model, rows, template):
        calls.append(len(rows))
        return facts.score(model, rows, template)

    relearn(models[0], replace(facts, score=counted), **vars(TRAINING))
    assert calls == [10] * (1 + 3 * 2)


def test_a_retrained_model_is_trained_once_for_many_models(facts, models, curves):
    again = relearn(models[0], facts, retrained=curves.retrained, **vars(TRAINING))
    np.testing.assert_array_equal(again.curve(of="retrained"), curves.curve(of="retrained"))
    assert again.excess() == curves.excess()
    # A model attacked by itself may be the reference of others.
    alone = relearn(models[1], facts, **vars(TRAINING)).model
    np.testing.assert_array_equal(
        relearn(models[0], facts, retrained=alone, **vars(TRAINING)).excess_at(4).mean, curves.excess_at(4).mean
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda facts, model, run: relearn(model, facts, retrained=run, **vars(replace(TRAINING, lr=2e-3))),
        lambda facts, model, run: relearn(model, facts, retrained=run, objective=GA(), **vars(TRAINING)),
        lambda facts, model, run: relearn(model, replace(facts, held=facts.held[1:]), retrained=run, **vars(TRAINING)),
        lambda facts, model, run: relearn(
            model, replace(facts, score=replace(facts.score, choices=False)), retrained=run, **vars(TRAINING)
        ),
    ],
    ids=["learning rate", "objective", "rows", "scoring"],
)
def test_curves_of_another_attack_are_refused(facts, models, curves, change):
    with pytest.raises(ValueError, match="the retrained model's curves were not made by this relearning"):
        change(facts, models[0], curves.retrained)


def test_fine_tuning_shares_too(bed, facts, models):
    found = finetune(models[0], facts, data=bed.world_batch, steps=2, lr=1e-3, batch_size=4, seeds=(0, 1))
    assert torch.equal(torch.tensor(found.curve()[0, 0]), torch.tensor(found.curve()[1, 0]))
    assert found.curve()[0, 1] != found.curve()[1, 1]
