"""Point-wise effects for several risks and by layer, and what happens where forward mode has no rule."""

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import family

from probe.diagnostics.g_effect import g_effect, token_g_effects
from probe.diagnostics.token_effects import token_effects
from probe.objectives.logprobs import target_logprobs
from probe.objectives.token import ga, nll
from probe.sites import layer_of


def one_by_one(model, on, over):
    """A backward pass for every token: total and by layer."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    direction = torch.autograd.grad(nll(model, over), parameters)
    logp_BT = target_logprobs(model, on)
    total_BT = torch.zeros(on.tokens_BT.shape, dtype=logp_BT.dtype)
    layer_BTL = torch.zeros(*on.tokens_BT.shape, 3, dtype=logp_BT.dtype)
    for row, column in on.target_BT.nonzero().tolist():
        found = torch.autograd.grad(logp_BT[row, column], parameters, retain_graph=True)
        for name, ours, theirs in zip(names, found, direction, strict=True):
            product = (ours * theirs).sum()
            total_BT[row, column] += product
            if layer_of(model, name) is not None:
                layer_BTL[row, column, layer_of(model, name)] += product
    return total_BT, layer_BTL


@pytest.mark.parametrize(
    ("make", "tolerance"),
    [
        (tiny_gpt2, 1e-10),
        (lambda: tiny_llama(dtype=torch.float64), 1e-6),  # its norms and softmax run in float32
        (lambda: tiny_llama(dtype=torch.float64, tie_word_embeddings=True), 1e-6),
        (lambda: family("phi", dtype=torch.float64), 1e-10),  # a head with a bias
        (lambda: family("gemma2", dtype=torch.float64), 1e-5),  # capped logits: the head is no linear map
    ],
)
def test_several_risks_and_layers_agree_with_one_backward_pass_per_token(make, tolerance):
    model, on, over = make(), random_batch(0), random_batch(1)
    effects = token_effects(
        model, on, {"u": (nll, on), "r": (nll, over)}, by_layer=True, batch_size=3, targets_at_once=7
    )
    for risk, rows in (("u", on), ("r", over)):
        total_BT, layer_BTL = one_by_one(model, on, rows)
        scale = total_BT.abs().max().item()
        torch.testing.assert_close(effects.pg_BT[risk], total_BT, rtol=tolerance, atol=tolerance * scale)
        torch.testing.assert_close(effects.layer_BTL[risk], layer_BTL, rtol=tolerance, atol=tolerance * scale)
        alone_BT = token_g_effects(model, on, over=rows)
        torch.testing.assert_close(effects.pg_BT[risk], alone_BT, rtol=tolerance, atol=tolerance * scale)
    torch.testing.assert_close(effects.logp_BT, target_logprobs(model, on).detach())


@pytest.mark.parametrize("name", ["llama", "mixtral", "gpt_neo", "mamba"])
def test_kernels_without_a_rule_are_put_aside_and_back(name):
    model, on, over = family(name), random_batch(0), random_batch(1)
    before = (model.config._attn_implementation, model.config._experts_implementation)
    effects = token_effects(model, on, {"r": (nll, over)})
    whole = g_effect(model, ga, on, over=over).total
    assert (effects.pg_BT["r"].sum() / on.target_BT.sum()).item() == pytest.approx(whole, rel=1e-3)
    assert (model.config._attn_implementation, model.config._experts_implementation) == before
    assert ("attention: sdpa, its math kernel" in effects.kernels) == (before[0] == "sdpa")
    assert ("experts: grouped_mm -> eager" in effects.kernels) == (name == "mixtral")


def test_an_operation_without_a_rule_is_named_with_the_way_out():
    with pytest.raises(NotImplementedError, match=r"BloomForCausalLM has no forward-mode rule.*sample_effects"):
        token_effects(family("bloom"), random_batch(0), {"r": (nll, random_batch(1))})
    with pytest.raises(ValueError, match="no risk"):
        token_effects(tiny_gpt2(), random_batch(0), {})


def test_raising_one_token_moves_the_risk_by_its_effect():
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    pg_BT = token_g_effects(model, on, over=over)
    row, column = on.target_BT.nonzero()[3].tolist()
    step = torch.autograd.grad(target_logprobs(model, on)[row, column], list(model.parameters()))
    risks, eta = [], 1e-6
    with torch.no_grad():
        for shift in (eta, -2 * eta):
            for p, g in zip(model.parameters(), step, strict=True):
                p += shift * g
            risks.append(nll(model, over).item())
    assert (risks[0] - risks[1]) / (2 * eta) == pytest.approx(pg_BT[row, column].item(), rel=1e-6)
