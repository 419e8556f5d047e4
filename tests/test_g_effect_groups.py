"""G-effects of many objectives and risks from shared passes, split over groups of parameters."""

import math
import re

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import FAMILIES, family

from probe.checkpoints import weights_hash
from probe.data import paired
from probe.diagnostics.g_effect import Group, g_effect, g_effects
from probe.diagnostics.parameter_groups import groups
from probe.objectives.distribution import KLToUniform
from probe.objectives.preference import DPO
from probe.objectives.representation import TowardsTarget
from probe.objectives.sequence import NPO, SimNPO
from probe.objectives.token import GA, WGA, SatImp, SelectedTokens, ga, nll
from probe.sites import Site


def gradient_of(model, loss, batch):
    names = [name for name, _ in model.named_parameters()]
    found = torch.autograd.grad(loss(model, batch), list(model.parameters()), allow_unused=True)
    return {name: g for name, g in zip(names, found, strict=True) if g is not None}


def product(ours, theirs):
    return sum((ours[name] * theirs[name]).sum().item() for name in ours.keys() & theirs.keys())


def many(original):
    return {
        "GA": ga,
        "WGA": WGA(2.0),
        "NPO": NPO(original, 0.3),
        "SimNPO": SimNPO(2.5),
        "SatImp": SatImp(5.0, 1.0),
        "likely": SelectedTokens(ga, "likely", share=0.5),
        "hot": GA(temperature=2.0),  # not a function of log p: directly
        "ME": KLToUniform(),
        "RMU": TowardsTarget(Site(1), torch.ones(16, dtype=torch.float64)),
    }


@pytest.mark.parametrize("size", [2, 32])
def test_objectives_and_risks_from_shared_passes_equal_each_by_itself(size):
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    objectives = many(tiny_gpt2(1))
    if size == 2:  # losses that are neither means over target tokens nor functions of log p are not exact in pieces
        del objectives["RMU"]
    found = g_effects(model, objectives, on, {"u": (nll, on), "r": (nll, over)}, batch_size=size)
    risks = {"u": gradient_of(model, nll, on), "r": gradient_of(model, nll, over)}
    for name, objective in objectives.items():
        ours = gradient_of(model, objective, on)
        for risk, theirs in risks.items():
            effect = found[name][risk]
            assert effect.total == pytest.approx(product(ours, theirs), rel=1e-10), name
            assert effect.gradient_norm == pytest.approx(math.sqrt(product(ours, ours)), rel=1e-10)
            assert effect.risk_norm == pytest.approx(math.sqrt(product(theirs, theirs)), rel=1e-10)
            assert sum(p.effect for p in effect.group.values()) == pytest.approx(effect.total, rel=1e-12)
            assert -1 <= effect.cosine <= 1


def test_each_group_holds_its_own_parameters():
    model, on, over = tiny_llama(), random_batch(0), random_batch(1)
    effect = g_effect(model, ga, on, over=over)
    ours, theirs = gradient_of(model, ga, on), gradient_of(model, nll, over)
    expected = {
        Group("embedding"): "embed_tokens",
        Group("attention", 1): "layers.1.self_attn.",
        Group("mlp", 2): "layers.2.mlp.",
        Group("norm", 0): "layers.0.*norm",
        Group("final norm"): "model.norm",
        Group("head"): "lm_head",
    }
    for group, pattern in expected.items():
        mine = {n: g for n, g in ours.items() if re.search(pattern.replace(".", r"\.").replace(r"\.*", ".*"), n)}
        assert mine
        assert effect.group[group].effect == pytest.approx(product(mine, theirs), rel=1e-5, abs=1e-9), group
    assert len(effect.group) == 3 + 3 * 3
    parts = effect.part_L("attention") + effect.part_L("mlp") + effect.part_L("norm")
    torch.testing.assert_close(parts, effect.layer_L)
    with pytest.raises(ValueError, match=r"'heads'.*attention, mlp, norm"):
        effect.part_L("heads")


def test_tied_weights_are_one_group_named_so():
    parts = {group.part for group in groups(tiny_gpt2()).values() if group.layer is None}
    assert parts == {"embedding and head", "final norm", "other"}  # the last: position embeddings
    assert "embedding and head" in {str(g) for g in groups(tiny_llama(tie_word_embeddings=True)).values()}


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_has_groups_for_all_parameters(name):
    model = family(name)
    found = groups(model)
    assert found.keys() == dict(model.named_parameters()).keys()
    assert {group.layer for group in found.values()} == {None, 0, 1, 2}
    assert sum(group.part == "head" for group in found.values()) + sum(
        group.part == "embedding and head" for group in found.values()
    ), name


def test_a_stream_of_batches_is_one_set_of_rows():
    model, on, over = tiny_gpt2(), random_batch(0, rows=6), random_batch(1)
    whole = g_effects(model, {"GA": ga, "WGA": WGA(1.0)}, on, {"r": (nll, over)})
    risks = {"r": (nll, iter(over.chunks(2)))}
    streamed = g_effects(model, {"GA": ga, "WGA": WGA(1.0)}, iter(on.chunks(2)), risks)
    for name in whole:
        assert streamed[name]["r"].total == pytest.approx(whole[name]["r"].total, rel=1e-12)
        assert streamed[name]["r"].gradient_norm == pytest.approx(whole[name]["r"].gradient_norm, rel=1e-12)
    with pytest.raises(ValueError, match="given no batch"):
        g_effect(model, ga, on, over=iter(()))


def test_pairs_of_answers():
    model, original = tiny_gpt2(), tiny_gpt2(1)
    on, over = random_batch(0), random_batch(1)
    both = paired(random_batch(3), on, same_prompt=False)
    objective = DPO(original, 0.2)
    expected = product(gradient_of(model, objective, both), gradient_of(model, nll, over))
    for size in (32, 3):
        assert g_effect(model, objective, both, over=over, batch_size=size).total == pytest.approx(expected, rel=1e-10)


def test_shared_passes_run_the_model_once_for_rows_that_objectives_share():
    model, on, over, calls = tiny_gpt2(), random_batch(0), random_batch(1), []
    forward = model.forward
    model.forward = lambda *args, **kwargs: calls.append(1) or forward(*args, **kwargs)
    five = {beta: WGA(beta) for beta in (0.0, 1.0, 2.0, 3.0, 4.0)}
    g_effects(model, {str(b): o for b, o in five.items()}, on, {"u": (nll, on), "r": (nll, over)})
    assert len(calls) == 2


def test_a_loss_that_reads_weights_beside_log_probabilities_is_computed_directly():
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    weight = model.transformer.h[0].mlp.c_fc.weight

    def sly(m, batch):
        return nll(m, batch) + weight.square().sum()

    expected = product(gradient_of(model, sly, on), gradient_of(model, nll, over))
    assert g_effect(model, sly, on, over=over).total == pytest.approx(expected, rel=1e-10)


def test_half_precision_weights_accumulate_in_single_precision():
    model, on, over = tiny_llama(dtype=torch.bfloat16), random_batch(0, rows=8), random_batch(1, rows=8)
    effect = g_effect(model, ga, on, over=over, batch_size=1)
    judge = g_effect(tiny_llama(), ga, on, over=over)
    assert effect.total == pytest.approx(judge.total, rel=0.1)


def test_a_risk_without_gradient_gives_zero_and_no_angle():
    model, on = tiny_gpt2(), random_batch()
    effect = g_effect(model, ga, on, over=on, risk=lambda m, b: 0 * nll(m, b))
    assert effect.total == 0
    assert effect.risk_norm == 0
    assert math.isnan(effect.cosine)


def test_nothing_is_left_behind():
    model, on = tiny_gpt2(), random_batch()
    before = weights_hash(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    g_effects(model, many(tiny_gpt2(1)), on, {"u": (nll, on)})
    assert all(bool((p.grad == 1).all()) and p.requires_grad for p in model.parameters())
    assert weights_hash(model) == before
    with pytest.raises(ValueError, match="0 objectives"):
        g_effects(model, {}, on, {"u": (nll, on)})
