"""Objectives of other toolkits against their formulas: identities, and judges from outside."""

import math

import pytest
import torch
from conftest import random_batch, tiny_gpt2
from scipy.spatial.distance import jensenshannon
from test_objectives import ResultTable, gradient, pairs, same, sums
from torch import nn

from probe.objectives.bootstrap import BST, BSTW
from probe.objectives.generic import GenericLabels
from probe.objectives.hinge import InvertedHinge
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.kto import KTO
from probe.objectives.logprobs import before_targets
from probe.objectives.masked import TowardsMasked
from probe.objectives.representation import hidden_at
from probe.objectives.robust import HardestRows, OfRows, OfTokens, SoftWorst
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import SatImp, nll, sequence_mean, sequence_sum
from probe.sites import Site


@pytest.fixture(scope="module")
def original():
    return tiny_gpt2(1)


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(0, spread=3)


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
        table = ResultTable(torch.zeros(1, 10, 48, dtype=torch.float64))
        with torch.no_grad():
            table.logits_BTV[..., 5] = lift
        assert JensenShannonToText((5,))(table, batch).item() == pytest.approx(loss, abs=1e-12)
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


# --- BalDRO ---


def test_the_soft_worst_is_the_supremum_over_weights_of_rows():
    loss_B = torch.tensor([0.3, 2.0, 1.1, -0.4], dtype=torch.float64, requires_grad=True)
    for easiest, sign in ((False, 1.0), (True, -1.0)):
        found = SoftWorst(0.7, easiest)(loss_B)
        weight_B = torch.autograd.grad(found, loss_B)[0]
        torch.testing.assert_close(weight_B, torch.softmax(sign * loss_B.detach() / 0.7, 0))

        def penalised(q_B, sign=sign):
            return (q_B * loss_B.detach()).sum() - sign * 0.7 * (q_B * (4 * q_B).log()).sum()

        torch.testing.assert_close(penalised(weight_B), found.detach())
        others = torch.distributions.Dirichlet(torch.ones(4, dtype=torch.float64)).sample((50,))
        assert all(sign * penalised(q_B) <= sign * found for q_B in others)
    # Between the mean and the extremes.
    assert SoftWorst(1e6)(loss_B).item() == pytest.approx(0.75, abs=1e-5)
    assert SoftWorst(1e-3)(loss_B).item() == pytest.approx(2.0, abs=2e-3)
    assert SoftWorst(1e-3, easiest=True)(loss_B).item() == pytest.approx(-0.4, abs=2e-3)


def test_hot_weights_give_the_plain_losses(original, model):
    batch, hot = random_batch(), SoftWorst(1e9)
    for robust, plain in (
        (NPO(original, 0.5, hot), NPO(original, 0.5)),
        (SimNPO(2.5, over_rows=hot), SimNPO(2.5)),
        (SatImp(5.0, 1.0, OfRows(hot)), SatImp(5.0, 1.0, sequence_mean)),
        (SatImp(5.0, 1.0, OfTokens(hot)), SatImp(5.0, 1.0)),
    ):
        with torch.no_grad():
            torch.testing.assert_close(robust(model, batch), plain(model, batch), rtol=1e-6, atol=1e-6)


def test_the_hardest_rows_by_hand(original, model):
    batch, npo = random_batch(rows=5), NPO(original, 0.5)
    with torch.no_grad():
        loss = [npo(model, batch.select([b])).item() for b in range(5)]
        mean = [-nll(model, batch.select([b])).item() for b in range(5)]
    for by, hardness in (("loss", loss), ("likelihood", mean)):
        kept = sorted(sorted(range(5), key=lambda b, hardness=hardness: -hardness[b])[:2])
        found, expected = HardestRows(npo, 0.5, by), npo
        for a, b in zip(gradient(model, found, batch), gradient(model, expected, batch.select(kept)), strict=True):
            torch.testing.assert_close(a, b)
        with torch.no_grad():
            torch.testing.assert_close(found(model, batch), npo(model, batch.select(kept)))
            torch.testing.assert_close(HardestRows(npo, 1.0, by)(model, batch), npo(model, batch))
    # For SimNPO they are the same rows, since its loss rises with the mean log-probability.
    same(model, HardestRows(SimNPO(2.5), 0.5), HardestRows(SimNPO(2.5), 0.5, "likelihood"), batch)


# --- KTO ---


def test_kto_by_hand_and_beside_npo(original, model):
    batch, beta = pairs(), 0.1
    with torch.no_grad():
        z = (sums(model, batch.preferred) - sums(original, batch.preferred)).mean()
        r_B = sums(model, batch) - sums(original, batch)
        expected = torch.sigmoid(beta * (r_B - max(z.item(), 0))).mean()
        torch.testing.assert_close(KTO(original, beta)(model, batch), expected)
        expected = 1 - 20 * torch.sigmoid(z - beta * r_B).mean()
        torch.testing.assert_close(KTO(original, beta, "npo-repo")(model, batch), expected)
    # The baseline has no gradient, and at the original it is 0.
    same(original, KTO(original, beta, "npo-repo-log"), lambda m, b: 1 + NPO(original, beta)(m, b), batch)
    scaled = KTO(original, beta, "npo-repo")
    same(original, scaled, lambda m, b: 1 - 2 / beta * (1 - KTO(original, beta)(m, b)), batch)


# --- inverted hinge ---


def test_the_inverted_hinge_and_its_gradient_at_the_logits():
    batch, generator = random_batch(rows=1), torch.Generator().manual_seed(0)
    table = ResultTable(2 * torch.randn(1, 10, 48, generator=generator, dtype=torch.float64))
    at = before_targets(batch)[0].nonzero()[:, 0].tolist()
    p_TV, found_TV = table.logits_BTV.detach()[0].softmax(-1), gradient(table, InvertedHinge(), batch)[0][0]
    expected = []
    for t in at:
        y, p_V = int(batch.tokens_BT[0, t + 1]), p_TV[t]
        other = max((v for v in range(48) if v != y), key=lambda v, p_V=p_V: p_V[v])
        expected.append(float(1 + p_V[y] - p_V[other]))
        slope_V = p_V * (p_V[other] - p_V[y])
        slope_V[y] = p_V[y] * (1 - p_V[y] + p_V[other])
        slope_V[other] = p_V[other] * (p_V[other] - 1 - p_V[y])
        torch.testing.assert_close(found_TV[t] * len(at), slope_V)
    assert InvertedHinge()(table, batch).item() == pytest.approx(sum(expected) / len(expected))


# --- a mask on hidden states ---


def test_a_mask_draws_part_of_the_width_to_zero_and_leaves_the_rest(model):
    batch, kept_D = random_batch(), torch.arange(16) < 6

    def as_printed(model, batch):
        hidden_BTD = hidden_at(model, batch, Site(1))
        return (hidden_BTD - hidden_BTD.detach() * kept_D).square().mean(-1)[before_targets(batch)].mean()

    same(model, TowardsMasked(Site(1), kept_D, before_targets), as_printed, batch)


# --- generic predictions ---


def test_generic_labels_are_what_reinforcement_did_not_raise(original, model):
    batch, reinforced = random_batch(), tiny_gpt2(2)
    at_BT = before_targets(batch)
    with torch.no_grad():
        logits_NV, z_NV, raised_NV = (m(**batch.inputs).logits[at_BT] for m in (model, original, reinforced))
        for alpha in (0.0, 1.0, 5.0):
            generic_NV = torch.where(raised_NV > z_NV, (1 + alpha) * z_NV - alpha * raised_NV, z_NV)
            expected = nn.functional.cross_entropy(logits_NV, generic_NV.argmax(-1))
            torch.testing.assert_close(GenericLabels(original, reinforced, alpha)(model, batch), expected)
