"""Every reweighting's G-effect from one point-wise pass, and the best one."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from scipy.optimize import minimize

from probe.data import paired
from probe.diagnostics.g_effect import g_effect
from probe.diagnostics.reweighting import best_weighting, best_weightings, reweighting_map, weighting_of
from probe.diagnostics.token_effects import token_effects
from probe.objectives.bootstrap import BST
from probe.objectives.distribution import KLToUniform
from probe.objectives.original import OriginalAnswers
from probe.objectives.preference import DPO, FLAT, AnswerPreservation, idk
from probe.objectives.representation import TowardsTarget
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO, BatchNPO, BatchSimNPO, LogitNPO, SimNPO
from probe.objectives.token import (
    GA,
    TNPO,
    WGA,
    WTNPO,
    SatImp,
    SelectedTokens,
    ga,
    nll,
    position_mean,
    sequence_mean,
    sequence_sum,
    sim_imp,
)
from probe.sites import Site


@pytest.fixture(scope="module")
def measured():
    model, on, over = tiny_gpt2(), random_batch(0, rows=6), random_batch(1)
    return model, on, over, token_effects(model, on, {"u": (nll, on), "r": (nll, over)}, batch_size=4, by_layer=True)


ORIGINAL = tiny_gpt2(1)
REWEIGHTINGS = {
    "nll": nll,
    "GA": ga,
    "GA, sums": GA(normalise=sequence_sum),
    "GA, means of rows: target part of BS-T": GA(normalise=sequence_mean),
    "GA, all positions": GA(normalise=position_mean),
    "WGA": WGA(5.0),
    "TNPO": TNPO(ORIGINAL, 4.0),
    "TNPO, epsilon": TNPO(ORIGINAL, 4.0, 1e-5),
    "WTNPO": WTNPO(ORIGINAL, 4.0, 1.5),
    "SatImp": SatImp(5.0, 1.0),
    "SimImp": sim_imp(0.1),
    "likely": SelectedTokens(ga, "likely", share=0.8),
    "unlikely, weighted": SelectedTokens(WGA(1.0), "unlikely", count=2),
    "NPO": NPO(ORIGINAL, 0.1),
    "BatchNPO": BatchNPO(ORIGINAL, 0.5),
    "SimNPO": SimNPO(2.5),
    "BatchSimNPO": BatchSimNPO(0.1),
    # p log p, its weight left attached: not WGA.
    "attached": lambda m, b: (lambda logp: (logp.exp() * logp).sum())(target(m, b)),
}


def target(model, batch):
    from probe.objectives.logprobs import target_logprobs

    return target_logprobs(model, batch)


@pytest.mark.parametrize("name", REWEIGHTINGS)
def test_basis_equals_direct(measured, name):
    model, on, over, effects = measured
    found = reweighting_map(effects, {name: REWEIGHTINGS[name]})[name]
    for risk, rows in (("u", on), ("r", over)):
        direct = g_effect(model, REWEIGHTINGS[name], on, over=rows)
        assert found.effect[risk] == pytest.approx(direct.total, rel=1e-9)
        assert found.layer[risk] == pytest.approx(direct.layer_L.tolist(), rel=1e-8)


def test_detached_and_attached_weights_differ(measured):
    _, on, _, effects = measured
    attached = reweighting_map(effects, {"x": REWEIGHTINGS["attached"]})["x"].weight_BT
    detached = reweighting_map(effects, {"x": WGA(1.0, normalise=sequence_sum)})["x"].weight_BT * len(on)
    mask_BT, p_BT = on.target_BT, effects.logp_BT.exp()
    torch.testing.assert_close(detached[mask_BT], p_BT[mask_BT])
    torch.testing.assert_close(attached[mask_BT], (p_BT * (1 + effects.logp_BT))[mask_BT])


def test_pairs_of_answers(measured):
    model, on, over, _ = measured
    both = paired(random_batch(5, rows=6, length=12), on, same_prompt=False)
    effects = token_effects(model, both, {"r": (nll, over)})
    objectives = {
        "DPO": DPO(OriginalAnswers(ORIGINAL, both), 0.2),
        "FLAT": FLAT("kl"),
        "idk": idk,
        "AP": AnswerPreservation(0.1),
        "NPO": NPO(ORIGINAL, 0.1),
    }
    for name, found in reweighting_map(effects, objectives).items():
        direct = g_effect(model, objectives[name], both, over=over)
        assert found.effect["r"] == pytest.approx(direct.total, rel=1e-9), name
    assert reweighting_map(effects, {"idk": idk})["idk"].weight_BT.abs().sum() == 0
    with pytest.raises(ValueError, match="answers to be forgotten"):
        best_weighting(effects, unlearn="r", retain="r", peak=2.0)


def test_llama_agrees_to_the_floor_of_its_single_precision_norms():
    model, on, over = tiny_llama(dtype=torch.float64), random_batch(0), random_batch(1)
    effects = token_effects(model, on, {"r": (nll, over)})
    found = reweighting_map(effects, {b: WGA(b) for b in (0.5, 5.0)})
    for beta, one in found.items():
        assert one.effect["r"] == pytest.approx(g_effect(model, WGA(beta), on, over=over).total, rel=1e-5)


@pytest.mark.parametrize(
    "objective",
    [
        KLToUniform(),
        ForwardKL(ORIGINAL),
        BST(0.2, 5),
        TowardsTarget(Site(1), torch.ones(16, dtype=torch.float64)),
        LogitNPO(ORIGINAL, 0.1),
        GA(temperature=2.0),
        lambda m, b: nll(m, b) + sum(p.square().sum() for p in m.parameters()),
        lambda m, b: nll(m, b) * m.config.n_embd,
        lambda m, b: nll(m, replace(b, target_BT=b.attention_BT, warn=False)),
        lambda m, b: nll(m, random_batch(9)),
    ],
)
def test_what_is_no_reweighting_is_refused_with_the_way_out(measured, objective):
    with pytest.raises(ValueError, match=r"odd is no reweighting of log-probabilities.*g_effect\.g_effect"):
        reweighting_map(measured[3], {"GA": ga, "odd": objective})


def test_objectives_without_gradient_are_refused(measured):
    with pytest.raises(ValueError, match="objective odd does not depend on any parameter"):
        reweighting_map(measured[3], {"odd": lambda m, b: nll(m, b).detach()})


def test_no_pass_of_the_model_is_needed(measured):
    model, _, _, effects = measured
    forward, model.forward = model.forward, None
    try:
        kept = OriginalAnswers(ORIGINAL, effects.batch)
        assert len(reweighting_map(effects, {b: NPO(kept, b) for b in (0.05, 0.1, 0.5)})) == 3
    finally:
        model.forward = forward


# --- the best weighting ---------------------------------------------------------------------------------------


def plane(effects, weight_BT):
    return [-(weight_BT * effects.pg_BT[risk].double()).sum().item() for risk in ("u", "r")]


def test_best_weighting_is_feasible_and_beats_random_and_published_ones(measured):
    _, on, _, effects = measured
    n, peak = int(on.target_BT.sum()), 3.0
    names = {"unlearn": "u", "retain": "r"}
    for bound in (0.5, 2.0):
        best = best_weighting(effects, **names, peak=peak, most_harm=bound)
        assert best.weight_BT.sum().item() == pytest.approx(1)
        assert best.weight_BT.min() >= 0
        assert best.peak <= peak * (1 + 1e-9)
        assert (best.weight_BT[~on.target_BT] == 0).all()
        assert best.harm <= bound + 1e-6
        assert plane(effects, best.weight_BT) == pytest.approx([best.forgetting, best.harm])
        generator = torch.Generator().manual_seed(0)
        for _ in range(200):
            w_BT = torch.rand(on.target_BT.shape, generator=generator, dtype=torch.float64) * on.target_BT
            forgetting, harm = plane(effects, w_BT / w_BT.sum())
            if harm <= bound and (w_BT / w_BT.sum()).max() * n <= peak:
                assert forgetting <= best.forgetting + 1e-9
    curve = best_weightings(effects, **names, peak=peak, n_points=9)
    harms, gains = [p.harm for p in curve], [p.forgetting for p in curve]
    slopes = [(gains[i + 1] - gains[i]) / (harms[i + 1] - harms[i]) for i in range(8)]
    assert all(a >= b - 1e-6 for a, b in pairwise(slopes))  # concave
    assert slopes[-1] >= -1e-6
    for one in reweighting_map(effects, {"GA": ga, "WGA": WGA(0.2)}).values():
        point = weighting_of(effects, one, **names)
        assert plane(effects, point.weight_BT) == pytest.approx([point.forgetting, point.harm])
        assert point.weight_BT.abs().sum().item() == pytest.approx(1)
        if point.peak <= peak and point.harm >= harms[0]:
            at = best_weighting(effects, **names, peak=peak, most_harm=point.harm)
            assert at.forgetting >= point.forgetting - 1e-9
    assert weighting_of(effects, reweighting_map(effects, {0: ga})[0], **names).peak == pytest.approx(1)


def test_the_programme_agrees_with_another_solver(measured):
    _, on, _, effects = measured
    n = int(on.target_BT.sum())
    u_N, r_N = (-effects.pg_BT[k][on.target_BT].numpy() for k in "ur")
    best = best_weighting(effects, unlearn="u", retain="r", peak=2.0, most_harm=1.0)
    judge = minimize(
        lambda w: -(u_N @ w) / n,
        torch.ones(n).double().numpy(),
        jac=lambda w: -u_N / n,
        bounds=[(0, 2)] * n,
        constraints=[
            {"type": "eq", "fun": lambda w: w.sum() - n, "jac": lambda w: torch.ones(n).double().numpy()},
            {"type": "ineq", "fun": lambda w: 1.0 - r_N @ w / n, "jac": lambda w: -r_N / n},
        ],
        method="SLSQP",
    )
    assert judge.success
    assert best.forgetting == pytest.approx(-judge.fun, rel=1e-5)


def test_bad_input_to_the_programme(measured):
    model, on, over, effects = measured
    names = {"unlearn": "u", "retain": "r"}
    with pytest.raises(ValueError, match="peak must be at least 1"):
        best_weighting(effects, **names, peak=0.5)
    with pytest.raises(ValueError, match="the least is"):
        best_weighting(effects, **names, peak=2.0, most_harm=-1e6)
    with pytest.raises(ValueError, match=r"'q'; there are those on u, r"):
        best_weighting(effects, unlearn="q", retain="r", peak=2.0)
    with pytest.raises(ValueError, match="at least 2 points"):
        best_weightings(effects, **names, peak=2.0, n_points=1)
    flat = token_effects(model, on, {"u": (nll, on), "r": (lambda m, b: 0 * nll(m, b), over)})
    assert not flat.pg_BT["r"].any()
    with pytest.raises(ValueError, match="risk r has no gradient"):
        best_weighting(flat, **names, peak=2.0)
    nothing = reweighting_map(effects, {"0": lambda m, b: 0 * nll(m, b)})["0"]
    with pytest.raises(ValueError, match="weight of exactly 0"):
        weighting_of(effects, nothing, **names)
