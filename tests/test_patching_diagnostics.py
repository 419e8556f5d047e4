"""Depth score and localisation: patching everything is the other model, patching nothing is none."""

from dataclasses import replace

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

from probe.diagnostics.answer_values import value_batch
from probe.diagnostics.depth_score import depth_score, patched_loss, row_means
from probe.diagnostics.localisation import GROUPS, _after_prompt, _prompt_end, _question, localisation
from probe.hooks import captured, our_hooks
from probe.sites import Site
from probe.weights import blended


def test_p16_patching_the_last_block_gives_the_sources_states_through_our_head():
    model, source, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    with torch.no_grad(), blended(model, source, torch.ones(3), 1.0):
        theirs_B = row_means(model, batch)
    # Through a head of its own the source is itself: lend it to the target, which changes nothing but the head.
    with blended(model, source, torch.zeros(3), 1.0):
        with torch.no_grad():
            before_B = row_means(model, batch)
        loss_LB = patched_loss(model, source, batch, [0, 2])
    torch.testing.assert_close(before_B - loss_LB[1], theirs_B)


def test_scores_at_both_ends_and_the_formula_between():
    original, retrained, unlearned = tiny_gpt2(), tiny_gpt2(1), tiny_gpt2(2)
    batch = random_batch(rows=6)
    settings = {"threshold": 1e-4, "batch_size": 4}
    assert depth_score(original, original, batch, retrained=retrained, **settings).score == 0
    same = depth_score(original, retrained, batch, retrained=retrained, **settings)
    assert same.score == pytest.approx(1)
    found = depth_score(original, unlearned, batch, retrained=retrained, **settings)
    one, two = found.retrained_LB, found.unlearned_LB
    for i in range(6):
        kept = [k for k in range(3) if one[k, i] > 1e-4]
        if not kept:
            assert torch.isnan(found.score_B[i])
            continue
        top = sum(float(one[k, i] * (two[k, i] / one[k, i]).clamp(0, 1)) for k in kept)
        assert found.score_B[i].item() == pytest.approx(top / sum(float(one[k, i]) for k in kept))
    again = depth_score(original, unlearned, batch, retrained=retrained, retrained_LB=one, **settings)
    assert again.score == found.score
    assert our_hooks(original) == our_hooks(retrained) == []


def test_depth_refuses_models_without_a_gap():
    original, batch = tiny_gpt2(), random_batch()
    with pytest.raises(ValueError, match="or the retrained model does"):
        depth_score(original, tiny_gpt2(1), batch, retrained=original)
    with pytest.raises(ValueError, match="expected 3 layers and 4 rows"):
        depth_score(original, original, batch, retrained=original, retrained_LB=torch.zeros(2, 4))
    with pytest.raises(ValueError, match="architecture"):
        depth_score(original, tiny_gpt2(n_layers=2), batch, retrained=original)
    empty = replace(batch, target_BT=batch.target_BT & (torch.arange(4) > 0)[:, None], warn=False)
    with pytest.raises(ValueError, match="1 of 4 rows have no target"):
        depth_score(original, original, empty, retrained=original)


def test_groups_part_the_real_tokens():
    batch = random_batch()
    counted = sum(mask(batch).long() for mask in GROUPS.values())
    assert torch.equal(counted, batch.attention_BT.long())
    assert bool((_prompt_end(batch).sum(1) == 1).all())
    assert bool((_question(batch).sum(1) == batch.prompt_B - 1).all())


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])
def test_a_model_patched_with_itself_does_not_change(make):
    found = localisation(make(), make(), random_batch())
    assert bool((found.effect_LG == 0).all())
    assert bool((found.attributed_LG.abs() < 1e-6).all())
    assert found.rank_correlation != found.rank_correlation


def test_attribution_is_the_slope_of_patching():
    """Towards a source that differs little, estimate and effect agree, and they are finite differences' values."""
    model, source = tiny_gpt2(), tiny_gpt2()
    with torch.no_grad():
        for parameter in source.parameters():
            parameter.add_(1e-5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1)).double())
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    found = localisation(model, source, random_batch(), batch_size=3)
    torch.testing.assert_close(found.attributed_LG, found.effect_LG, rtol=2e-2, atol=1e-8)
    assert found.rank_correlation > 0.95
    assert all(p.grad is None for p in model.parameters())


def test_patching_all_tokens_of_the_last_block_is_the_other_trunk():
    model, source, batch = tiny_gpt2(), tiny_gpt2(1), random_batch()
    found = localisation(model, source, batch, groups={"all": lambda b: b.attention_BT})
    with torch.no_grad(), blended(model, source, torch.ones(3), 0.0), captured(model, [Site(2)]):
        pass
    loss_LB = patched_loss(model, source, batch, [2])
    assert found.effect_LG[2, 0].item() == pytest.approx(-loss_LB[0].mean().item())
    with pytest.raises(ValueError, match="0 token groups"):
        localisation(model, source, batch, groups={})


def test_depth_and_places_on_the_testbed(bed):
    batch = value_batch(bed.tokenizer, bed.split.forget_rows[:20])
    found = depth_score(bed.original, bed.original, batch, retrained=bed.retrained, layers=[0, 4, 7])
    assert found.score == 0
    assert found.n_scored >= 18
    other = depth_score(bed.original, bed.retrained, batch, layers=[0, 4, 7], retrained_LB=found.retrained_LB)
    assert other.score == pytest.approx(1)
    places = localisation(bed.original, bed.retrained, batch, layers=[0, 7])
    # At the last block only the tokens that predict the value matter, and they lie in the answer.
    assert places.effect_LG[1, 2] < -1
    assert places.effect_LG[1, 0] == pytest.approx(0, abs=1e-6)
    assert _after_prompt(batch).any()
