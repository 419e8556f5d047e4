"""Objectives of other toolkits against their formulas: identities, and judges from outside."""

import math

import pytest
import torch
from conftest import random_batch, tiny_gpt2
from scipy.spatial.distance import jensenshannon
from test_objectives import gradient, same
from torch import nn

from probe.objectives.bootstrap import BST, BSTW
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.logprobs import before_targets
from probe.objectives.sequence import NPO
from probe.objectives.token import sequence_sum


@pytest.fixture(scope="module")
def original():
    return tiny_gpt2(1)


@pytest.fixture(scope="module")
def model():
    built = tiny_gpt2(0)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)
    return built


def probabilities(model, batch):
    """Before each target, as an array."""
    with torch.no_grad():
        return model(**batch.inputs).logits.softmax(-1)[before_targets(batch)].numpy()


# --- JensUn ---


def test_jensen_shannon_against_scipy(original, model):
    batch = random_batch()
    p_NV, q_NV = probabilities(model, batch), probabilities(original, batch)
    with torch.no_grad():
        found = JensenShannon(original)(model, batch).item()
        assert found == pytest.approx((jensenshannon(p_NV, q_NV, axis=1) ** 2).mean(), rel=1e-10)
        assert JensenShannon(model)(model, batch).item() == pytest.approx(0, abs=1e-12)
        y_N = batch.tokens_BT[:, 1:][batch.target_BT[:, 1:]]
        expected = (jensenshannon(p_NV, nn.functional.one_hot(y_N, 48).numpy(), axis=1) ** 2).mean()
        assert JensenShannonToText()(model, batch).item() == pytest.approx(expected, rel=1e-10)
        # The text begins anew with each row.
        text_N = torch.cat([torch.arange(n) % 3 + 5 for n in batch.target_BT.sum(1).tolist()])
        expected = (jensenshannon(p_NV, nn.functional.one_hot(text_N, 48).numpy(), axis=1) ** 2).mean()
        assert JensenShannonToText((5, 6, 7))(model, batch).item() == pytest.approx(expected, rel=1e-10)


def test_jensen_shannon_to_a_text_is_bounded_and_flat_where_the_text_is_impossible():
    batch = random_batch(rows=1)
    for lift, loss in ((-60.0, math.log(2)), (60.0, 0.0)):
        logits_BTV = torch.zeros(1, 10, 48, dtype=torch.float64)
        logits_BTV[..., 5] = lift
        table = nn.Module()
        table.logits_BTV = nn.Parameter(logits_BTV)
        table.forward = lambda table=table, **given: type("Output", (), {"logits": table.logits_BTV})
        found = JensenShannonToText((5,))(table, batch)
        assert found.item() == pytest.approx(loss, abs=1e-12)
        assert gradient(table, JensenShannonToText((5,)), batch)[0].abs().max() < 1e-12


def test_a_text_outside_the_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="text_ids holds 48, but the model's token ids run from 0 to 47"):
        JensenShannonToText((5, 48))(model, random_batch())


# --- bootstrapping ---


def test_weighed_beliefs_have_the_gradient_of_npo_and_of_plain_beliefs(original, model):
    same(model, BSTW(original, 0.0, 20, 0.5), NPO(original, 0.5), random_batch(), value=False)
    same(original, BSTW(original, 0.3, 20, 0.5), BST(0.3, 20, sequence_sum), random_batch())


def test_beliefs_that_carry_a_gradient_have_the_gradient_of_the_entropy(model):
    batch = random_batch()

    def negative_entropy(model, batch):
        logits_NV = model(**batch.inputs).logits[before_targets(batch)]
        return -torch.distributions.Categorical(logits=logits_NV).entropy().sum() / len(batch)

    same(model, BST(1.0, 48, sequence_sum, detach=False), negative_entropy, batch)
