"""Every objective against its formula: identities, finite differences in float64, and judges from outside."""

import copy
import json
import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from scipy.optimize import minimize_scalar
from torch import nn
from torch.nn.functional import cosine_similarity, cross_entropy, kl_div, mse_loss, softplus

from probe.data import QA, Batch, paired
from probe.datasets import REFUSALS, idk_rows
from probe.modes import evaluating
from probe.objectives.bootstrap import BSS, BST, BSTW, Sampled
from probe.objectives.distribution import CEU, UNDIAL, ELMErase, KLFromUniform, KLToUniform, LogitMargin
from probe.objectives.generic import GenericLabels
from probe.objectives.hinge import InvertedHinge
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.kto import KTO
from probe.objectives.logprobs import all_but_last, before_targets, predicted_targets, target_logprobs
from probe.objectives.masked import TowardsMasked
from probe.objectives.original import OriginalAnswers, original_logprobs
from probe.objectives.preference import DPO, FLAT, AnswerPreservation, BatchFLAT, idk, idk_with_retain
from probe.objectives.representation import (
    DistanceFromOriginal,
    HiddenStatesFromOriginal,
    NearOriginal,
    OrthogonalToOriginal,
    TowardsTarget,
    all_positions,
    answer_tokens,
    hidden_at,
    real_tokens,
)
from probe.objectives.retain import ForwardKL, ReverseKL
from probe.objectives.robust import HardestRows, OfRows, OfTokens, SoftWorst, summed_nll
from probe.objectives.sequence import NPO, BatchNPO, BatchSimNPO, LogitNPO, SimNPO
from probe.objectives.token import (
    GA,
    TNPO,
    WGA,
    WTNPO,
    SatImp,
    SelectedTokens,
    ga,
    mixed_rows,
    nll,
    position_mean,
    sequence_mean,
    sequence_sum,
    sim_imp,
    sim_sat,
    token_mean,
)
from probe.sites import Site
from probe.train import Term, minimise


def other_answers(batch: Batch, seed: int) -> Batch:
    """The same prompts with other answers, of other lengths."""
    other = random_batch(seed, rows=len(batch), length=12)
    length = int(batch.prompt_B[0])
    other.tokens_BT[:, :length] = batch.tokens_BT[:, :length]
    other.target_BT[:, length:] = other.attention_BT[:, length:]
    return replace(other, prompt_B=batch.prompt_B)


def pairs(seed: int = 0) -> Batch:
    batch = random_batch(seed)
    return paired(other_answers(batch, seed + 7), batch)


def longer(batch: Batch, by: int = 5) -> Batch:
    """The same rows with more padding, on both sides of a pair."""
    extra = torch.zeros(len(batch), by, dtype=torch.bool)
    return replace(
        batch,
        tokens_BT=torch.cat([batch.tokens_BT, extra.long()], 1),
        target_BT=torch.cat([batch.target_BT, extra], 1),
        attention_BT=torch.cat([batch.attention_BT, extra], 1),
        warn=False,
        preferred=batch.preferred and longer(batch.preferred, by),
    )


class ResultTable(nn.Module):
    """A model whose logits are its parameter: every derivative with respect to them can be read off."""

    def __init__(self, logits_BTV):
        super().__init__()
        self.logits_BTV = nn.Parameter(logits_BTV)

    def forward(self, **given):
        return SimpleNamespace(logits=self.logits_BTV)


class Shifted(nn.Module):
    """The same distributions from logits that are all larger by five."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, **given):
        return SimpleNamespace(logits=self.model(**given).logits + 5)


def gradient(model, objective, batch):
    return torch.autograd.grad(objective(model, batch), list(model.parameters()), allow_unused=True)


def same(model, one, other, batch, *, value=True):
    """Both objectives have the same value, and the same gradient."""
    if value:
        torch.testing.assert_close(one(model, batch), other(model, batch))
    for a, b in zip(gradient(model, one, batch), gradient(model, other, batch), strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-12)


def sums(model, batch):
    return target_logprobs(model, batch).sum(1)


@pytest.fixture(scope="module")
def original():
    return tiny_gpt2(1)


@pytest.fixture(scope="module")
def model():
    return tiny_gpt2(0, spread=3)


SITES = (Site(0), Site(1))

# Functions of the model's distribution alone.
OF_DISTRIBUTIONS = {
    "nll": lambda o: nll,
    "GA": lambda o: GA(temperature=2.0),
    "GA SM": lambda o: GA(normalise=sequence_mean),
    "WGA": lambda o: WGA(2.0),
    "WGA SS": lambda o: WGA(2.0, sequence_sum),
    "TNPO": lambda o: TNPO(o, 4.0),
    "TNPO epsilon": lambda o: TNPO(o, 4.0, epsilon=1e-5),
    "WTNPO": lambda o: WTNPO(o, 4.0, 1.5),
    "SatImp": lambda o: SatImp(5.0, 1.0),
    "SimImp": lambda o: sim_imp(2.0),
    "selected share": lambda o: SelectedTokens(ga, "likely", share=0.6),
    "selected count": lambda o: SelectedTokens(NPO(o, 0.5), "unlikely", count=2),
    "NPO": lambda o: NPO(o, 0.5),
    "NPO soft worst": lambda o: NPO(o, 0.5, SoftWorst(2.0)),
    "SimNPO easiest": lambda o: SimNPO(2.5, over_rows=SoftWorst(0.5, easiest=True)),
    "SatImp rows": lambda o: SatImp(5.0, 1.0, OfRows(SoftWorst(0.5))),
    "SatImp tokens": lambda o: SatImp(5.0, 1.0, OfTokens(SoftWorst(0.5, easiest=True))),
    "hardest by loss": lambda o: HardestRows(NPO(o, 0.5), 0.5),
    "hardest by likelihood": lambda o: HardestRows(ga, 0.5, "likelihood"),
    "summed nll": lambda o: summed_nll,
    "BatchNPO": lambda o: BatchNPO(o, 0.5),
    "SimNPO": lambda o: SimNPO(2.5, gamma=0.3),
    "BatchSimNPO": lambda o: BatchSimNPO(0.3),
    "idk": lambda o: idk,
    "idk_with_retain": lambda o: idk_with_retain,
    "DPO": lambda o: DPO(o, 0.1),
    "KTO": lambda o: KTO(o, 0.5),
    "KTO code": lambda o: KTO(o, 0.5, "npo-repo"),
    "KTO code log": lambda o: KTO(o, 0.5, "npo-repo-log"),
    "IHL": lambda o: InvertedHinge(),
    "WHP": lambda o: GenericLabels(o, tiny_gpt2(2), 1.0),
    "AP": lambda o: AnswerPreservation(0.1),
    "FLAT TV": lambda o: FLAT("total-variation"),
    "FLAT KL": lambda o: FLAT("kl"),
    "FLAT Pearson": lambda o: FLAT("pearson"),
    "FLAT JS": lambda o: FLAT("jensen-shannon"),
    "FLAT reverse KL": lambda o: FLAT("reverse-kl"),
    "FLAT Jeffreys": lambda o: FLAT("jeffreys"),
    "FLAT Hellinger": lambda o: FLAT("squared-hellinger"),
    "FLAT Neyman": lambda o: FLAT("neyman"),
    "KLToUniform": lambda o: KLToUniform(),
    "KLFromUniform": lambda o: KLFromUniform(positions=real_tokens),
    "UNDIAL": lambda o: UNDIAL(o, 10.0),
    "CEU": lambda o: CEU(),
    "LogitMargin": lambda o: LogitMargin(),
    "LogitMargin unshifted": lambda o: LogitMargin(answer_tokens),
    "ELMErase": lambda o: ELMErase(o, (5, 6, 7), (8,), 2.0, 1),
    "BST": lambda o: BST(0.2, 20),
    "BST attached": lambda o: BST(0.2, 20, detach=False),
    "BSTW": lambda o: BSTW(o, 0.2, 20, 0.5),
    "BSTW attached": lambda o: BSTW(o, 0.2, 20, 0.5, detach=False),
    "JS to targets": lambda o: JensenShannonToText(),
    "JS to text": lambda o: JensenShannonToText((5, 6, 7)),
    "JS to the original": lambda o: JensenShannon(o),
    "BSS": lambda o: BSS(BST(0.5, 5), 0.5, lambda m, b: other_answers(random_batch(), 3)),
    "ForwardKL": lambda o: ForwardKL(o),
    "ReverseKL": lambda o: ReverseKL(o, real_tokens, sequence_mean),
}
OF_PADDING_TOO = {
    "WGA ALL": lambda o: WGA(2.0, position_mean),
    "BatchFLAT": lambda o: BatchFLAT("kl"),
    "BatchFLAT Neyman": lambda o: BatchFLAT("neyman"),
    "UNDIAL everywhere": lambda o: UNDIAL(o, 5.0, all_but_last),
    "ME everywhere": lambda o: KLFromUniform(all_but_last),
    "ForwardKL everywhere": lambda o: ForwardKL(o, all_positions),
}
OF_STATES = {
    "OrthogonalToOriginal": lambda o: OrthogonalToOriginal(o, SITES),
    "DistanceFromOriginal": lambda o: DistanceFromOriginal(o, SITES),
    "HiddenStatesFromOriginal": lambda o: HiddenStatesFromOriginal(o, 2),
    "NearOriginal mixed": lambda o: NearOriginal(o, SITES[1], answer_tokens, mixed_rows),
    "EMBED_DIFF": lambda o: NearOriginal(o, SITES[1], answer_tokens, sequence_mean),
    "TowardsMasked": lambda o: TowardsMasked(SITES[1], torch.arange(16) % 2 == 0, before_targets),
    "NearOriginal": lambda o: NearOriginal(o, SITES[1]),
    "TowardsTarget": lambda o: TowardsTarget(SITES[1], torch.ones(16, dtype=torch.float64)),
}
RAW = {"LogitNPO": lambda o: LogitNPO(o, 0.5)}


# --- every objective ---


@pytest.mark.parametrize("name", [*OF_DISTRIBUTIONS, *OF_PADDING_TOO, *OF_STATES, *RAW])
def test_gradients_agree_with_finite_differences(name, original, model, monkeypatch):
    """Central differences along one random direction; what the formula stops the gradient of is held at its value."""
    objective = {**OF_DISTRIBUTIONS, **OF_PADDING_TOO, **OF_STATES, **RAW}[name](original)
    model, batch = copy.deepcopy(model), pairs()
    parameters = list(model.parameters())
    held, detach = [], torch.Tensor.detach
    with monkeypatch.context() as patch:
        patch.setattr(torch.Tensor, "detach", lambda x: held.append(detach(x)) or held[-1])
        loss = objective(model, batch)
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    generator = torch.Generator().manual_seed(0)
    direction = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
    slope = sum((g * d).sum() for g, d in zip(gradients, direction, strict=True) if g is not None)
    assert slope.abs() > 1e-6
    eps, values = 1e-6, []
    for sign in (1, -2, 1):
        with torch.no_grad():
            for p, d in zip(parameters, direction, strict=True):
                p += sign * eps * d
        left = iter(held)
        with monkeypatch.context() as patch:
            patch.setattr(torch.Tensor, "detach", lambda x, left=left: next(left))
            values.append(objective(model, batch))
        assert next(left, None) is None
    torch.testing.assert_close((values[0] - values[1]).detach() / (2 * eps), slope, rtol=2e-6, atol=1e-8)


@pytest.mark.parametrize("name", [*OF_DISTRIBUTIONS, *RAW])
def test_a_constant_added_to_all_logits_changes_only_the_loss_on_raw_logits(name, original, model):
    objective = {**OF_DISTRIBUTIONS, **RAW}[name](original)
    with torch.no_grad():
        plain, shifted = objective(model, pairs()), objective(Shifted(model), pairs())
    assert torch.allclose(plain, shifted, rtol=1e-10) == (name in OF_DISTRIBUTIONS)


@pytest.mark.parametrize("name", [*OF_DISTRIBUTIONS, *OF_PADDING_TOO, *OF_STATES, *RAW])
def test_padding_changes_the_losses_over_all_positions_and_no_other(name, original, model):
    objective = {**OF_DISTRIBUTIONS, **OF_PADDING_TOO, **OF_STATES, **RAW}[name](original)
    with torch.no_grad():
        short, padded = objective(model, pairs()), objective(model, longer(pairs()))
    assert torch.allclose(short, padded, rtol=1e-10) == (name not in OF_PADDING_TOO and name not in RAW)


@pytest.mark.parametrize("name", [*OF_DISTRIBUTIONS, *OF_PADDING_TOO, *RAW])
def test_nothing_but_the_model_is_asked_for_a_gradient(name, model):
    frozen = tiny_gpt2(1)
    {**OF_DISTRIBUTIONS, **OF_PADDING_TOO, **RAW}[name](frozen)(model, pairs()).backward()
    assert all(p.grad is None for p in frozen.parameters())
    model.zero_grad(set_to_none=True)


# --- averages ---


def test_the_four_averages_by_hand():
    value_BT = torch.tensor([[0.0, 1.0, 2.0, 3.0], [0.0, 0.0, 8.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    chosen_BT = torch.tensor([[False, True, True, True], [False, False, True, False], [False] * 4])
    assert token_mean(value_BT, chosen_BT).item() == pytest.approx(14 / 4)
    assert sequence_sum(value_BT, chosen_BT).item() == pytest.approx(14 / 3)
    # The row without a token counts in no mean over tokens.
    assert sequence_mean(value_BT, chosen_BT).item() == pytest.approx((2 + 8) / 2)
    assert position_mean(value_BT, chosen_BT).item() == pytest.approx(14 / 12)


def test_averages_against_the_cross_entropy_of_torch(model):
    batch = random_batch()
    labels_BT = batch.tokens_BT.masked_fill(~batch.target_BT, -100)[:, 1:]
    logits_BTV = model(**batch.inputs).logits[:, :-1]
    loss_BT = cross_entropy(logits_BTV.transpose(1, 2), labels_BT, reduction="none")
    n_B = (labels_BT != -100).sum(1)
    expected = {
        token_mean: cross_entropy(logits_BTV.transpose(1, 2), labels_BT),
        sequence_sum: loss_BT.sum(1).mean(),
        sequence_mean: (loss_BT.sum(1) / n_B).mean(),
        position_mean: loss_BT.sum() / batch.tokens_BT.numel(),
    }
    for normalise, value in expected.items():
        torch.testing.assert_close(-GA(normalise=normalise)(model, batch), value)
    heated = cross_entropy(logits_BTV.transpose(1, 2) / 3, labels_BT)
    torch.testing.assert_close(-GA(temperature=3.0)(model, batch), heated)


# --- weighted tokens ---


def test_special_cases_of_weighted_objectives(original, model):
    batch = random_batch()
    same(model, WGA(0.0), ga, batch)
    same(model, SatImp(3.0, 0.0), WGA(3.0), batch)
    same(model, sim_sat(3.0), WGA(3.0), batch)
    same(model, sim_imp(0.0), ga, batch)
    same(model, WTNPO(original, 4.0, 0.0), TNPO(original, 4.0), batch)
    same(model, WTNPO(original, 4.0, 0.0, 1e-5), TNPO(original, 4.0, 1e-5), batch)
    same(model, TNPO(original, 4.0, 1e-300), TNPO(original, 4.0), batch)
    same(model, GA(), ga, batch)
    # At the reference WTNPO's weight is WGA's.
    same(model, WTNPO(model, 4.0, 1.5), WGA(1.5), batch)


def test_weights_carry_no_gradient(original, model):
    """So each gradient is that of a potential: of p^beta / beta for WGA, whose derivative by p is p^(beta - 1)."""
    batch, mask_BT = random_batch(), predicted_targets(random_batch())

    def wga_potential(model, batch):
        return token_mean((2.5 * target_logprobs(model, batch)).exp() * mask_BT / 2.5, mask_BT)

    def tnpo_potential(model, batch):
        ratio_BT = target_logprobs(model, batch) - original_logprobs(original, batch)
        return token_mean(2 / 4.0 * softplus(4.0 * ratio_BT) * mask_BT, mask_BT)

    def importance_potential(model, batch):
        # d/dp of log p - 2 p + p^2 / 2 is (1 - p)^2 / p.
        logp_BT = target_logprobs(model, batch)
        p_BT = logp_BT.exp()
        return token_mean((logp_BT - 2 * p_BT + p_BT**2 / 2) * mask_BT, mask_BT)

    same(model, WGA(2.5), wga_potential, batch, value=False)
    same(model, TNPO(original, 4.0), tnpo_potential, batch, value=False)
    same(model, sim_imp(2.0), importance_potential, batch, value=False)


def one_token(p: float) -> tuple[ResultTable, Batch]:
    """One row whose one target has probability p."""
    logits_BTV = torch.tensor([[[p, 1 - p], [0.5, 0.5]]], dtype=torch.float64).log()
    no, yes = torch.tensor([[False, True]]), torch.tensor([[True, True]])
    return ResultTable(logits_BTV), Batch(
        torch.zeros(1, 2, dtype=torch.long), no, yes, torch.zeros(1).long(), torch.ones(1).long()
    )


@pytest.mark.parametrize(("p", "weight"), [(0.02, 0.031), (0.05, 0.556), (0.1, 0.952), (0.3, 0.999)])
def test_the_published_epsilon_silences_unlikely_tokens(p, weight):
    model, batch = one_token(p)
    for epsilon, expected in ((0.0, 1.0), (1e-5, weight)):
        value = TNPO(model, 4.0, epsilon)(model, batch).item() / math.log(p)
        assert value == pytest.approx(expected, abs=5e-4)


@pytest.mark.parametrize(("beta2", "peak"), [(1.0, 5 / 6), (0.1, 50 / 51)])
def test_saturation_and_importance_weigh_most_where_the_formula_says(beta2, peak):
    def weight(p):
        model, batch = one_token(p)
        return SatImp(5.0, beta2)(model, batch).item() / math.log(p)

    found = minimize_scalar(lambda p: -weight(p), bounds=(0.5, 0.999), method="bounded", options={"xatol": 1e-6}).x
    assert found == pytest.approx(peak, abs=1e-4)
    assert weight(0.7) == pytest.approx(0.7**5 * 0.3**beta2)


def test_selected_tokens_by_hand(model):
    batch = random_batch()
    logp_BT = target_logprobs(model, batch)
    for keep, sign in (("likely", -1), ("unlikely", 1)):
        share = SelectedTokens(ga, keep, share=0.6).kept(model, batch)
        count = SelectedTokens(ga, keep, count=2).kept(model, batch)
        for i in range(len(batch)):
            targets = predicted_targets(batch)[i].nonzero().flatten().tolist()
            order = sorted(targets, key=lambda t, i=i, sign=sign: sign * logp_BT[i, t].item())
            n = math.ceil(0.6 * len(targets) - 1e-6)
            assert sorted(order[:n]) == share[i].nonzero().flatten().tolist()
            assert sorted(order[:2]) == count[i].nonzero().flatten().tolist()
    same(model, SelectedTokens(ga, "likely", share=1.0), ga, batch)
    kept_BT = SelectedTokens(ga, "likely", count=1).kept(model, batch)
    torch.testing.assert_close(SelectedTokens(ga, "likely", count=1)(model, batch), logp_BT[kept_BT].mean())


# --- whole answers ---


def test_npo_weighs_each_answer_and_becomes_ascent_as_beta_vanishes(original, model):
    batch, beta = random_batch(), 0.7
    with torch.no_grad():
        ratio_B = sums(model, batch) - sums(original, batch)
        weight_B = 2 * (beta * sums(model, batch)).exp()
        weight_B = weight_B / ((beta * sums(model, batch)).exp() + (beta * sums(original, batch)).exp())
    same(model, NPO(original, beta), lambda m, b: (weight_B * sums(m, b)).mean(), batch, value=False)
    small = NPO(original, 1e-6)(model, batch) - 2e6 * math.log(2)
    assert small.item() == pytest.approx(ratio_B.mean().item(), rel=1e-3)
    assert (weight_B - 1).abs().max() > 0.1


def test_npo_one_batch_at_a_time_is_another_loss_except_for_one_row(original, model):
    batch, beta = random_batch(), 2.0
    one = batch.select([1])
    n = int(predicted_targets(one).sum())
    same(model, BatchNPO(original, beta), lambda m, b: NPO(original, beta / n)(m, b) / n, one)
    assert not torch.allclose(BatchNPO(original, beta)(model, batch), NPO(original, beta)(model, batch), rtol=1e-2)
    same(model, BatchSimNPO(0.3), SimNPO(0.3), one)
    assert not torch.allclose(BatchSimNPO(0.3)(model, batch), SimNPO(0.3)(model, batch), rtol=1e-6)


def test_npo_on_raw_logits_by_hand():
    batch = random_batch()
    before, after = torch.randn(2, 4, 10, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (2 / 0.5 * torch.log1p((0.5 * (after - before)).exp())).mean()
    torch.testing.assert_close(LogitNPO(ResultTable(before), 0.5)(ResultTable(after), batch), expected)


def test_simnpo_gradient_and_margins(model):
    batch, beta = random_batch(), 0.5
    n_B = predicted_targets(batch).sum(1).double()
    with torch.no_grad():
        pbar_B = (beta * sums(model, batch) / n_B).exp()
        weight_B = 2 / n_B * pbar_B / (1 + pbar_B)
    same(model, SimNPO(beta), lambda m, b: (weight_B * sums(m, b)).mean(), batch, value=False)
    # The code's margin inside beta and the paper's outside it are one where gamma = beta * delta.
    same(model, SimNPO(beta, delta=0.2), SimNPO(beta, gamma=0.2 * beta), batch)
    assert SimNPO(beta, delta=0.2)(model, batch) != SimNPO(beta, gamma=0.2)(model, batch)
    assert SimNPO(beta, gamma=0.1)(model, batch) > SimNPO(beta)(model, batch)


# --- pairs ---


def test_dpo_gradient_value_at_the_reference_and_what_is_left_without_the_preferred_answer(original, model):
    batch, beta = pairs(), 0.3
    assert DPO(model, beta)(model, batch).item() == pytest.approx(2 / beta * math.log(2))
    with torch.no_grad():
        margin_B = sums(model, batch.preferred) - sums(original, batch.preferred)
        margin_B = margin_B - sums(model, batch) + sums(original, batch)
        weight_B = 2 * torch.sigmoid(-beta * margin_B)

    def weighted(m, b):
        return (weight_B * (sums(m, b) - sums(m, b.preferred))).mean()

    same(model, DPO(original, beta), weighted, batch, value=False)
    # A row whose preferred answer has no target brings its NPO; the other keeps its DPO.
    two = pairs().select([0, 1])
    two.preferred.target_BT[1] = False

    def parts(m, b):
        return (
            DPO(original, beta)(m, b.select([0])) + NPO(original, beta)(m, replace(b, preferred=None).select([1]))
        ) / 2

    same(model, DPO(original, beta), parts, two)
    # Another preferred answer is another method (AltPO), the same formula.
    other = paired(other_answers(random_batch(), 11), random_batch())
    assert not torch.allclose(DPO(original, beta)(model, other), DPO(original, beta)(model, batch))


def test_answer_preservation_gradient(model):
    refusals, retain = other_answers(random_batch(), 7), random_batch()
    batch, beta = paired(retain, refusals), 0.1
    with torch.no_grad():
        weight_B = torch.sigmoid(beta * (sums(model, refusals) - sums(model, retain)))

    def weighted(m, b):
        return (weight_B * (sums(m, refusals) - sums(m, retain))).mean()

    same(model, AnswerPreservation(beta), weighted, batch, value=False)
    # A factor of one over beta, where DPO has two.
    equal = AnswerPreservation(beta)(model, paired(retain, retain)).item()
    assert equal == pytest.approx(math.log(2) / beta)


def test_refusals_are_learned_from_the_preferred_side_alone(model):
    batch = pairs()
    same(model, idk, lambda m, b: nll(m, b.preferred), batch)
    retain = random_batch(5, rows=4)
    joint = paired(batch.preferred, retain, same_prompt=False)
    together = Batch(
        torch.cat([longer(retain, 2).tokens_BT, batch.preferred.tokens_BT]),
        torch.cat([longer(retain, 2).target_BT, batch.preferred.target_BT]),
        torch.cat([longer(retain, 2).attention_BT, batch.preferred.attention_BT]),
        torch.arange(8),
        torch.full((8,), 5),
    )
    torch.testing.assert_close(idk_with_retain(model, joint), nll(model, together))


F_OF_T = {
    "total-variation": (lambda t: abs(t - 1) / 2, lambda v: math.tanh(v) / 2),
    "kl": (lambda t: t * math.log(t), lambda v: v),
    "reverse-kl": (lambda t: -math.log(t), lambda v: -math.exp(v)),
    "jeffreys": (lambda t: (t - 1) * math.log(t), lambda v: v),
    "squared-hellinger": (lambda t: (math.sqrt(t) - 1) ** 2, lambda v: 1 - math.exp(v)),
    "pearson": (lambda t: (t - 1) ** 2, lambda v: v),
    "neyman": (lambda t: (1 - t) ** 2 / t, lambda v: 1 - math.exp(v)),
    "jensen-shannon": (
        lambda t: t * math.log(t) - (t + 1) * math.log((t + 1) / 2),
        lambda v: math.log(2) - math.log1p(math.exp(-v)),
    ),
}


def conjugate(divergence, u):
    """f*(u) = sup_t (u t - f(t)) found numerically, from f alone."""
    f = F_OF_T[divergence][0]
    return -minimize_scalar(lambda t: f(t) - u * t, bounds=(1e-9, 50), method="bounded", options={"xatol": 1e-10}).fun


@pytest.mark.parametrize("divergence", list(F_OF_T))
def test_p8_flat_is_the_variational_form_of_its_divergence(divergence, model):
    activation, batch = F_OF_T[divergence][1], pairs()

    def means(side):
        rows = zip(target_logprobs(model, side).exp(), predicted_targets(side), strict=True)
        return [p_T[mask_T].mean().item() for p_T, mask_T in rows]

    goods, bads = means(batch.preferred), means(batch)
    losses = [conjugate(divergence, activation(b)) - activation(g) for g, b in zip(goods, bads, strict=True)]
    # Jeffreys' conjugate is the series to its third order.
    near = {"rel": 1e-6, "abs": 1e-8} if divergence != "jeffreys" else {"abs": max(bads) ** 4 / 10}
    assert FLAT(divergence)(model, batch).item() == pytest.approx(sum(losses) / len(losses), **near)


@pytest.mark.parametrize("divergence", list(F_OF_T))
def test_p8_flat_as_its_code_computes_it(divergence, model):
    """Labels shifted, ignored positions at 0, one mean a side over B (T - 1) positions."""
    activation, batch = F_OF_T[divergence][1], pairs()

    def mean(side):
        p_BTV = model(**side.inputs).logits[:, :-1].softmax(-1)
        p_BT = p_BTV.gather(-1, side.tokens_BT[:, 1:, None])[..., 0]
        return (p_BT * side.target_BT[:, 1:]).mean().item()

    good, bad = mean(batch.preferred), mean(batch)
    # The code gives Neyman's conjugate the probability itself.
    penalty = conjugate(divergence, bad if divergence == "neyman" else activation(bad))
    near = {"rel": 1e-6, "abs": 1e-8} if divergence != "jeffreys" else {"abs": bad**4 / 10}
    assert BatchFLAT(divergence)(model, batch).item() == pytest.approx(penalty - activation(good), **near)
    wrong = conjugate("neyman", F_OF_T["neyman"][1](bad))
    assert abs(wrong - conjugate("neyman", bad)) > 1e-3


# --- distributions ---


def test_divergences_from_the_original_against_torch(original, model):
    batch, at_BT = random_batch(), before_targets(random_batch())
    for objective in (ForwardKL(original), ReverseKL(original)):
        here = type(objective)(model)
        assert here(model, batch).item() == pytest.approx(0, abs=1e-12)
        assert all(g is None or g.abs().max() < 1e-12 for g in gradient(model, here, batch))
    with torch.no_grad():
        ours = torch.log_softmax(model(**batch.inputs).logits, -1)
        theirs = torch.log_softmax(original(**batch.inputs).logits, -1)
        forward = kl_div(ours[at_BT], theirs[at_BT], reduction="batchmean", log_target=True)
        reverse = kl_div(theirs[at_BT], ours[at_BT], reduction="batchmean", log_target=True)
        torch.testing.assert_close(ForwardKL(original)(model, batch), forward)
        torch.testing.assert_close(ReverseKL(original)(model, batch), reverse)
        # As published: every position of the padded batch.
        flat = kl_div(ours.flatten(0, 1), theirs.flatten(0, 1), reduction="batchmean", log_target=True)
        torch.testing.assert_close(ForwardKL(original, all_positions)(model, batch), flat)


def test_maximum_entropy_has_two_directions_that_meet_at_uniform(model):
    batch, at_BT = random_batch(), before_targets(random_batch())
    uniform = ResultTable(torch.full((4, 10, 48), 1.7, dtype=torch.float64))
    for objective in (KLToUniform(), KLFromUniform(), KLFromUniform(all_but_last)):
        assert objective(uniform, batch).item() == pytest.approx(0, abs=1e-12)
        assert gradient(uniform, objective, batch)[0].abs().max() < 1e-12
    logp_NV = torch.log_softmax(model(**batch.inputs).logits[at_BT], -1)
    entropy = torch.distributions.Categorical(logits=logp_NV).entropy().mean()
    torch.testing.assert_close(KLToUniform()(model, batch), math.log(48) - entropy)
    flat_NV = torch.full_like(logp_NV, 1 / 48)
    torch.testing.assert_close(KLFromUniform()(model, batch), kl_div(logp_NV, flat_NV, reduction="batchmean"))
    assert int(all_but_last(batch).sum()) == 4 * 9


def test_undial_distils_from_lowered_logits(original, model):
    batch, at_BT = random_batch(), before_targets(random_batch())
    assert all(g is None or g.abs().max() < 1e-12 for g in gradient(model, UNDIAL(model, 0.0), batch))
    same(model, UNDIAL(original, 0.0), ForwardKL(original), batch, value=False)
    with torch.no_grad():
        y_N = batch.tokens_BT[:, 1:][batch.target_BT[:, 1:]]
        lowered_NV = original(**batch.inputs).logits[at_BT]
        lowered_NV[range(len(y_N)), y_N] -= 10
        expected = cross_entropy(model(**batch.inputs).logits[at_BT], lowered_NV.softmax(-1))
        torch.testing.assert_close(UNDIAL(original, 10.0)(model, batch), expected)
        # The authors' own choice: all positions, whatever comes next is the label.
        lowered_BTV = original(**batch.inputs).logits[:, :-1].flatten(0, 1)
        lowered_BTV[range(36), batch.tokens_BT[:, 1:].flatten()] -= 5
        expected = cross_entropy(model(**batch.inputs).logits[:, :-1].flatten(0, 1), lowered_BTV.softmax(-1))
        torch.testing.assert_close(UNDIAL(original, 5.0, all_but_last)(model, batch), expected)


def test_ce_u_gradient_at_the_logits():
    batch = random_batch()
    table = ResultTable(torch.randn(4, 10, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    p_BTV = table.logits_BTV.detach().softmax(-1)
    for skip in (0, 1):
        chosen_BT = before_targets(batch)
        if skip:
            chosen_BT[:, 4] = False
        found_BTV = gradient(table, CEU(skip), batch)[0]
        assert (found_BTV[~chosen_BT] == 0).all()
        for i, t in chosen_BT.nonzero().tolist():
            y = int(batch.tokens_BT[i, t + 1])
            expected = -p_BTV[i, t] * p_BTV[i, t, y] / (1 - p_BTV[i, t, y])
            expected[y] = p_BTV[i, t, y]
            torch.testing.assert_close(found_BTV[i, t] * chosen_BT.sum(), expected)


def test_logit_margin_by_hand(model):
    batch = random_batch()
    logits_BTV = model(**batch.inputs).logits
    margin_BT = (logits_BTV.max(-1).values - logits_BTV.mean(-1)) ** 2
    torch.testing.assert_close(LogitMargin()(model, batch), margin_BT[:, :-1][batch.target_BT[:, 1:]].mean())
    torch.testing.assert_close(LogitMargin(answer_tokens)(model, batch), margin_BT[batch.target_BT].mean())
    flat = ResultTable(torch.full((4, 10, 48), 3.0, dtype=torch.float64))
    assert LogitMargin()(flat, batch).item() == 0


def before_real_tokens(batch: Batch):
    return before_targets(replace(batch, target_BT=batch.attention_BT))


@pytest.mark.parametrize("positions", [before_targets, before_real_tokens])
def test_elm_erases_along_the_difference_of_prefaces(positions, original, model):
    batch, expert, novice = random_batch(), (5, 6, 7), (8,)
    losses = []
    with torch.no_grad():
        for i in range(len(batch)):
            row = batch.tokens_BT[i][batch.attention_BT[i]]
            n = len(row)
            plain = torch.log_softmax(original(row[None]).logits[0], -1)
            with_expert, with_novice = (
                torch.log_softmax(original(torch.cat([row[:1], torch.tensor(ids), row[1:]])[None]).logits[0], -1)
                for ids in (expert, novice)
            )
            ours = torch.log_softmax(model(row[None]).logits[0], -1)
            eta_T = torch.linspace(1, 30, n, dtype=torch.float64)
            for t in positions(batch)[i].nonzero().flatten().tolist():
                guided = plain[t] - eta_T[t] * (with_expert[t + 3] - with_novice[t + 1])
                losses.append(-(guided.softmax(-1) * ours[t]).sum())
    objective = ELMErase(original, expert, novice, 30.0, 1, positions)
    torch.testing.assert_close(objective(model, batch), torch.stack(losses).mean())
    # Where expert and novice say the same nothing is erased: what is left is the method's retain term.
    same(model, ELMErase(original, expert, expert, 30.0, 0), ForwardKL(original), batch, value=False)


# --- beliefs ---


def test_bootstrapped_tokens_between_ascent_and_negative_entropy(model):
    batch, at_BT = random_batch(), before_targets(random_batch())
    same(model, BST(0.0, 20), GA(normalise=sequence_mean), batch)
    entropy = torch.distributions.Categorical(logits=model(**batch.inputs).logits[at_BT]).entropy().mean()
    torch.testing.assert_close(BST(1.0, 48, token_mean)(model, batch), -entropy)
    # Beliefs carry no gradient: with all of them the expected score is left, which is 0.
    assert all(g is None or g.abs().max() < 1e-12 for g in gradient(model, BST(1.0, 48), batch))
    with torch.no_grad():
        logits_NV, y_N = model(**batch.inputs).logits[at_BT], batch.tokens_BT[:, 1:][batch.target_BT[:, 1:]]
        cut_NV = logits_NV.masked_fill(logits_NV < logits_NV.topk(5).values[:, -1:], -torch.inf).softmax(-1)
        soft_NV = 0.8 * nn.functional.one_hot(y_N, 48) + 0.2 * cut_NV
        torch.testing.assert_close(BST(0.2, 5, token_mean)(model, batch), -cross_entropy(logits_NV, soft_NV))


def test_bootstrapped_sequences_mix_given_and_drawn_answers(model):
    batch, drawn = random_batch(), other_answers(random_batch(), 3)
    calls = []

    def draw(m, b):
        calls.append(len(b))
        return drawn

    same(model, BSS(BST(0.3, 5), 0.0, draw), BST(0.3, 5), batch)
    assert not calls
    torch.testing.assert_close(BSS(ga, 0.25, draw)(model, batch), 0.75 * ga(model, batch) + 0.25 * ga(model, drawn))
    assert calls == [4]


def test_samples_follow_the_model(model):
    batch = random_batch(rows=2)
    prompt = batch.tokens_BT[:1, :5]
    with torch.no_grad():
        p_V = (model(prompt).logits[0, -1] / 2).softmax(-1)
    draw = Sampled(3000, 1, 2, torch.Generator().manual_seed(0), 2.0)
    drawn = draw(model, batch.select([0]))
    count_V = torch.bincount(drawn.tokens_BT[:, 5], minlength=48)
    z_V = (count_V - 3000 * p_V) / (3000 * p_V * (1 - p_V)).sqrt()
    assert z_V.abs().max() < 4.5
    assert p_V.max() > 3 * p_V.min()
    # Nearly cold, a sample is the greedy continuation, found here without a cache or padding.
    mixed = Batch(batch.tokens_BT, batch.target_BT, batch.attention_BT, batch.group_B, torch.tensor([5, 3]))
    cold = Sampled(2, 6, 2, torch.Generator().manual_seed(0), 1e-5)(model, mixed)
    for row in range(4):
        n = int(mixed.prompt_B[row // 2])
        ids = batch.tokens_BT[row // 2, :n].tolist()
        while len(ids) < n + 6 and ids[-1] != 2:
            with torch.no_grad():
                ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        assert cold.tokens_BT[row][cold.attention_BT[row]].tolist() == ids
        assert cold.target_BT[row].nonzero().flatten().tolist() == list(range(n, len(ids)))
    assert cold.group_B.tolist() == [0, 0, 1, 1]


def test_samples_end_with_eos_differ_from_call_to_call_and_repeat_with_their_generator(model):
    batch = random_batch()
    for eos in (2, int(model(batch.tokens_BT[:1, :5]).logits[0, -1].argmax())):
        drawn = Sampled(8, 12, eos, torch.Generator().manual_seed(0))(model, batch)
        for tokens_T, target_T, real_T in zip(drawn.tokens_BT, drawn.target_BT, drawn.attention_BT, strict=True):
            answer = tokens_T[target_T].tolist()
            assert eos not in answer[:-1]
            assert len(answer) == 12 or answer[-1] == eos
            assert torch.equal(real_T, torch.arange(len(real_T)) < 5 + len(answer))
    draws = [Sampled(1, 6, 2, torch.Generator().manual_seed(s)) for s in (0, 0)]
    first, again = draws[0](model, batch), draws[1](model, batch)
    assert torch.equal(first.tokens_BT, again.tokens_BT)
    second = draws[0](model, batch)
    assert first.tokens_BT.shape != second.tokens_BT.shape or not torch.equal(first.tokens_BT, second.tokens_BT)
    with pytest.raises(ValueError, match="exceed the model's 64 positions"):
        Sampled(1, 60, 2, torch.Generator())(model, batch)


# --- states ---


def test_circuit_breakers_by_hand(original, model):
    batch = random_batch()
    with torch.no_grad():
        ours, theirs = (m(**batch.inputs, output_hidden_states=True).hidden_states[1:3] for m in (model, original))
    real = batch.attention_BT
    cosine = torch.stack([cosine_similarity(a, b, dim=-1)[real] for a, b in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(OrthogonalToOriginal(original, SITES)(model, batch), cosine.clamp(min=0).mean())
    away = torch.stack([(a - b).norm(dim=-1) for a, b in zip(ours, theirs, strict=True)])
    torch.testing.assert_close(DistanceFromOriginal(original, SITES)(model, batch), away[:, real].mean())
    counted = (away * real).mean()
    torch.testing.assert_close(DistanceFromOriginal(original, SITES, real_tokens, position_mean)(model, batch), counted)
    assert OrthogonalToOriginal(model, SITES)(model, batch).item() == pytest.approx(1)
    distance = DistanceFromOriginal(model, SITES)
    assert distance(model, batch).item() == 0
    # At step 0, where the length of the difference has a corner, the gradient is 0 and not NaN.
    assert all(g is None or (g == 0).all() for g in gradient(model, distance, batch))
    with pytest.raises(ValueError, match="no sites"):
        OrthogonalToOriginal(model, ())


def test_embedding_difference_counts_answers_alike(original, model):
    batch, site = random_batch(), Site(1)
    with torch.no_grad():
        ours, theirs = hidden_at(model, batch, site), hidden_at(original, batch, site)
        rows = [mse_loss(a[t], b[t]) for a, b, t in zip(ours, theirs, batch.target_BT, strict=True)]
        every = mse_loss(ours[batch.target_BT], theirs[batch.target_BT])
        torch.testing.assert_close(NearOriginal(original, site, answer_tokens)(model, batch), every)
        by_row = NearOriginal(original, site, answer_tokens, sequence_mean)(model, batch)
    torch.testing.assert_close(by_row, torch.stack(rows).mean())
    assert not torch.isclose(by_row, every, rtol=1e-6)


# --- a reference that is looked up ---


def remembered(original, batch, **how):
    return OriginalAnswers(original, batch, batch_size=3, **how)


@pytest.mark.parametrize("rows", [[0, 1, 2, 3], [2], [3, 1, 3]])
def test_a_reference_that_is_looked_up_gives_what_the_model_gives(rows, original, model):
    whole = pairs()
    lookup, full = remembered(original, whole), remembered(original, whole, full=True)
    for make in (
        lambda o: NPO(o, 0.5),
        lambda o: TNPO(o, 4.0),
        lambda o: DPO(o, 0.1),
        lambda o: BatchNPO(o, 0.5),
        lambda o: SelectedTokens(NPO(o, 0.5), "unlikely", share=0.5),
    ):
        same(model, make(lookup), make(original), whole.select(rows))
        same(model, make(lookup), make(original), longer(whole.select(rows)))
    for make in (ForwardKL, ReverseKL, lambda o: UNDIAL(o, 10.0)):
        same(model, make(full), make(original), longer(whole.select(rows)))
        some = replace(
            whole.select(rows), target_BT=SelectedTokens(ga, "likely", count=1).kept(model, whole.select(rows))
        )
        same(model, make(full), make(original), some)


def test_a_reference_refuses_what_it_has_not_seen(original, model):
    whole = random_batch()
    lookup, full = remembered(original, whole.select([0, 1])), remembered(original, whole, full=True)
    with pytest.raises(ValueError, match=r"2 of 4 rows are not among the 2 .*row 2"):
        NPO(lookup, 0.5)(model, whole)
    changed = whole.select([0])
    changed.tokens_BT[0, 1] += 1
    with pytest.raises(ValueError, match="not among"):
        NPO(lookup, 0.5)(model, changed)
    with pytest.raises(ValueError, match="full=True"):
        ForwardKL(lookup)(model, whole.select([0]))
    with pytest.raises(ValueError, match="precede no target"):
        ForwardKL(full, real_tokens)(model, whole)
    with pytest.raises(ValueError, match=r"GiB, more than limit_gib 1e-09"):
        OriginalAnswers(original, whole, full=True, limit_gib=1e-9)
    paired_batch = pairs()
    with pytest.raises(ValueError, match="not among"):
        DPO(remembered(original, replace(paired_batch, preferred=None)), 0.1)(model, paired_batch)


def test_training_with_a_looked_up_reference_is_training_with_the_model():
    before, batch = tiny_gpt2(), pairs()
    minimise(before, [Term(1.0, nll, batch)], steps=10, lr=1e-2, batch_size=4, seed=0)
    trained = []
    for reference in (copy.deepcopy(before), remembered(before, batch)):
        model = copy.deepcopy(before)
        minimise(model, [Term(1.0, DPO(reference, 0.5), batch)], steps=6, lr=1e-3, batch_size=2, seed=1)
        trained.append(model)
    for one, other in zip(trained[0].parameters(), trained[1].parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
    with torch.no_grad(), evaluating(before):
        moved = sums(trained[0], batch) - sums(before, batch)
        other = sums(trained[0], batch.preferred) - sums(before, batch.preferred)
    assert (other - moved).mean() > 1


# --- data ---


def test_pairs_are_selected_cut_and_moved_together():
    whole = pairs()
    part = whole.select([2, 0])
    assert torch.equal(part.preferred.group_B, whole.preferred.group_B[[2, 0]])
    for i, k in enumerate((2, 0)):
        n = int(whole.preferred.attention_BT[k].sum())
        assert torch.equal(part.preferred.tokens_BT[i, :n], whole.preferred.tokens_BT[k, :n])
    assert [len(piece.preferred) for piece in whole.chunks(3)] == [3, 1]
    assert whole.to("cpu").preferred is not None
    assert random_batch().select([0]).preferred is None


def test_pairs_that_do_not_fit_are_refused(model):
    batch, other = random_batch(), other_answers(random_batch(), 7)
    with pytest.raises(ValueError, match="3 preferred answers for 4 rows"):
        paired(other.select([0, 1, 2]), batch)
    with pytest.raises(ValueError, match="row 0 has another prompt"):
        paired(other.select([1, 0, 2, 3]), batch)
    with pytest.raises(ValueError, match="paired already"):
        paired(pairs(), batch)
    for objective in (DPO(model, 0.1), AnswerPreservation(0.1), FLAT("kl"), idk, idk_with_retain):
        with pytest.raises(ValueError, match=r"paired\(preferred, dispreferred\)"):
            objective(model, batch)


def test_refusals_are_fixed_by_their_seed_and_replace_every_form_of_the_answer():
    rows = [QA(f"Q{i}?", f"A{i}", f"P{i}?", f"B{i}", ("x", "y"), f"g{i}") for i in range(50)]
    refused = idk_rows(rows, 0)
    assert refused == idk_rows(rows, 0)
    assert refused != idk_rows(rows, 1)
    assert [(r.question, r.paraphrased_question, r.group) for r in refused] == [
        (r.question, r.paraphrased_question, r.group) for r in rows
    ]
    assert {r.answer for r in refused} <= set(REFUSALS)
    assert len({r.answer for r in refused}) > 20
    assert all(not r.paraphrased_answer and not r.perturbed_answer for r in refused)
    assert len(set(REFUSALS)) == len(REFUSALS) == 100
    assert {r.answer for r in idk_rows(rows, 0, ["No."])} == {"No."}
    for bad in ([], (), ["", "No."]):
        with pytest.raises(ValueError, match="empty"):
            idk_rows(rows, 0, bad)
    with pytest.raises(ValueError, match="one string"):
        idk_rows(rows, 0, "No.")
    with pytest.raises(ValueError, match="no rows"):
        idk_rows([], 0)


def test_our_refusals_are_not_those_of_tofu(shared):
    theirs = (shared / "data" / "tofu" / "idontknow.jsonl").read_text(encoding="utf-8").splitlines()
    texts = {json.loads(line) if line.startswith('"') else line for line in theirs}
    assert len(texts) == 100
    assert not texts & set(REFUSALS)


# --- user mistakes ---


@pytest.mark.parametrize(
    ("make", "message"),
    [
        *[
            (lambda cls=cls, beta=beta: cls(tiny_gpt2(), beta), "beta must be above 0")
            for cls in (NPO, BatchNPO, LogitNPO, TNPO, DPO)
            for beta in (0.0, -1.0, math.nan)
        ],
        *[(lambda cls=cls: cls(0.0), "beta must be above 0") for cls in (SimNPO, BatchSimNPO, AnswerPreservation)],
        (lambda: WTNPO(tiny_gpt2(), 0.0, 1.0), "beta must be above 0"),
        (lambda: WTNPO(tiny_gpt2(), 1.0, -1.0), "alpha must be at least 0"),
        (lambda: TNPO(tiny_gpt2(), 1.0, epsilon=-1.0), "epsilon must be at least 0"),
        (lambda: WGA(-1.0), "beta must be at least 0"),
        (lambda: SatImp(1.0, -1.0), "beta2 must be at least 0"),
        (lambda: sim_sat(-1.0), "beta1 must be at least 0"),
        (lambda: GA(temperature=0.0), "temperature must be above 0"),
        (lambda: SimNPO(1.0, gamma=1.0, delta=1.0), "two names of one margin"),
        (lambda: SimNPO(1.0, gamma=-1.0), "gamma must be at least 0"),
        (lambda: UNDIAL(tiny_gpt2(), -1.0), "beta must be at least 0"),
        (lambda: CEU(-1), "skip must be at least 0"),
        (lambda: CEU(100)(tiny_gpt2(), random_batch()), "lower skip"),
        (lambda: ELMErase(tiny_gpt2(), (1,), (2,), 0.0, 1), "eta must be above 0"),
        (lambda: BST(1.5, 5), r"weight must lie in \[0, 1\]"),
        (lambda: BST(0.5, 0), "k must be at least 1"),
        (lambda: BST(0.5, 49)(tiny_gpt2(), random_batch()), "the vocabulary has 48 tokens"),
        (lambda: BSS(ga, -0.1, lambda m, b: b), r"weight must lie in \[0, 1\]"),
        (lambda: Sampled(0, 5, 2, torch.Generator()), "at least 1"),
        (lambda: Sampled(1, 5, 2, torch.Generator(), 0.0), "temperature must be above 0"),
        (lambda: SelectedTokens(ga, "likely"), "either share or count"),
        (lambda: SelectedTokens(ga, "likely", share=0.5, count=2), "either share or count"),
        (lambda: SelectedTokens(ga, "likely", share=1.5), "share lies in"),
        (lambda: UNDIAL(tiny_gpt2(), 1.0, all_positions)(tiny_gpt2(), random_batch()), "no next token"),
    ],
)
def test_settings_out_of_range_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_an_original_of_another_vocabulary_is_refused():
    model, other = tiny_llama(), tiny_llama(vocab_size=64)
    objectives = (ForwardKL(other), ReverseKL(other), UNDIAL(other, 1.0), LogitNPO(other, 1.0), JensenShannon(other))
    generic = (GenericLabels(other, other, 1.0), GenericLabels(model, other, 1.0))
    for objective in (*objectives, *generic, ELMErase(other, (5,), (6,), 1.0, 1)):
        with pytest.raises(ValueError, match="vocabulary of 64 tokens and the model one of 48"):
            objective(model, random_batch())
