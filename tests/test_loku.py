"""LoKU: where its adapters start, and what is left of them."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_llama
from torch import nn

from probe.checkpoints import weights_hash
from probe.data import Split
from probe.methods.loku import adapted, fila, fisher, loku
from probe.objectives.token import nll
from probe.train import target_token_count

HOW = {"rank": 2, "alpha": 4.0, "retain_weight": 1.0, "lr": 1e-2, "batch_size": 2, "seed": 0}


def split() -> Split:
    return Split(random_batch(0), random_batch(1, rows=6))


def test_fisher_is_the_mean_squared_gradient_by_targets():
    model, batch = tiny_llama(dtype=torch.float64), random_batch(rows=4)
    weights = {"model.layers.1.mlp.up_proj.weight": model.model.layers[1].mlp.up_proj.weight.requires_grad_(False)}
    found = fisher(model, weights, batch, 2)
    assert not next(iter(weights.values())).requires_grad
    expected = 0
    for rows in ((0, 1), (2, 3)):
        piece = batch.select(rows)
        weight = next(iter(weights.values())).requires_grad_()
        expected += torch.autograd.grad(nll(model, piece), weight)[0].square() * target_token_count(piece)
    torch.testing.assert_close(next(iter(found.values())), expected / target_token_count(batch))


def test_adapters_start_as_the_weighted_approximation_of_that_rank():
    generator = torch.Generator().manual_seed(0)
    weight_OI = torch.randn(12, 9, generator=generator, dtype=torch.float64)
    rho_O = torch.rand(12, generator=generator, dtype=torch.float64) + 0.5
    for rank in (3, 9):
        low = fila(weight_OI, rho_O, rank, 2.0, 0)
        product_OI = (low.scale * low.b_OR @ low.a_RI).detach()
        u, s, v = torch.linalg.svd(rho_O[:, None] * weight_OI, full_matrices=False)
        best_OI = (u[:, :rank] * s[:rank]) @ v[:rank]
        error = torch.linalg.norm((rho_O + 1e-5)[:, None] * product_OI - rho_O[:, None] * weight_OI)
        least = torch.linalg.norm(best_OI - rho_O[:, None] * weight_OI)
        assert error <= 1.05 * least + 1e-9
        # Both factors take an equal part of each direction.
        torch.testing.assert_close((low.a_RI**2).sum(1), ((rho_O + 1e-5)[:, None] * low.b_OR).square().sum(0))


def test_a_model_computes_the_same_until_its_adapters_are_trained():
    model, batch = tiny_llama(dtype=torch.float64), random_batch()
    maps = [module for module in model.model.layers.modules() if isinstance(module, nn.Linear)]
    names, before = list(model.state_dict()), nll(model, batch).item()
    started = {one: fila(one.weight.detach(), torch.ones(len(one.weight)), 2, 2.0, 0) for one in maps}
    with adapted(started):
        assert nll(model, batch).item() == pytest.approx(before, rel=1e-12)
    assert list(model.state_dict()) == names
    assert all(type(one) is nn.Linear for one in maps)
    assert nll(model, batch).item() == pytest.approx(before, rel=1e-12)


def test_the_change_of_each_weight_has_a_low_rank():
    before = tiny_llama(dtype=torch.float64)
    model = copy.deepcopy(before)
    history = loku(model, split(), steps=3, **HOW)
    assert history.names == ("forget", "retain")
    assert list(model.state_dict()) == list(before.state_dict())
    for (name, new), old in zip(model.named_parameters(), before.parameters(), strict=True):
        if ".self_attn." in name or ".mlp." in name:
            # Both factors move: at most twice the rank of either.
            size = torch.linalg.svdvals((new - old).detach())
            assert size[0] > 1e-4
            assert size[4] < 1e-10 * size[0]
        else:
            assert torch.equal(new, old)
    again = copy.deepcopy(before)
    loku(again, split(), steps=3, **HOW)
    assert weights_hash(again) == weights_hash(model)
