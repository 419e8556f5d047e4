"""Geometry of a weight change: changes of known norm, rank and direction."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

from probe.checkpoints import weights_hash
from probe.data import Split
from probe.diagnostics.weight_change import weight_change
from probe.objectives.token import nll
from probe.sites import layer_of


def split_of(seed=0):
    return Split(random_batch(seed), random_batch(seed + 1, rows=8))


def test_no_change_is_zero_and_has_no_direction():
    model = tiny_gpt2()
    found = weight_change(model, copy.deepcopy(model), split_of(), n_gradients=2, batch_size=4)
    assert found.whole.norm == found.whole.relative == 0
    for number in (found.whole.stable_rank, found.whole.forget_cosine, found.whole.retain_share):
        assert number != number
    assert len(found.layers) == 3


@pytest.mark.parametrize("make", [tiny_gpt2, tiny_llama])  # tied and untied head
def test_a_step_along_the_forget_gradient_has_cosine_one(make):
    model, split = make(), split_of()
    moved = copy.deepcopy(model)
    names = [n for n, _ in model.named_parameters()]
    grads = torch.autograd.grad(nll(model, split.forget), list(model.parameters()))
    with torch.no_grad():
        for parameter, grad in zip(moved.parameters(), grads, strict=True):
            parameter.add_(0.01 * grad)
    before = weights_hash(model)
    found = weight_change(model, moved, split, n_gradients=2, batch_size=3)
    assert weights_hash(model) == before
    assert all(p.grad is None for p in model.parameters())
    assert found.whole.forget_cosine == pytest.approx(1, abs=1e-3)
    assert all(one.forget_cosine == pytest.approx(1, abs=1e-3) for one in (*found.layers, found.rest))
    expected = sum(g.square().sum() for n, g in zip(names, grads, strict=True) if layer_of(model, n) == 1) ** 0.5
    assert found.layers[1].norm == pytest.approx(0.01 * float(expected), rel=1e-3)
    assert found.whole.norm**2 == pytest.approx(sum(g.norm**2 for g in (*found.layers, found.rest)))


def test_a_step_along_retain_gradients_lies_in_their_span_and_a_random_one_does_not():
    model, split = tiny_gpt2(), split_of()
    moved, noisy = copy.deepcopy(model), copy.deepcopy(model)
    for start, weight in ((0, 1.0), (4, -2.0)):
        grads = torch.autograd.grad(nll(model, split.retain.select(range(start, start + 4))), list(model.parameters()))
        with torch.no_grad():
            for parameter, grad in zip(moved.parameters(), grads, strict=True):
                parameter.add_(weight * grad)
    with torch.no_grad():
        for parameter in noisy.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)).double())
    settings = {"n_gradients": 2, "batch_size": 4}
    assert weight_change(model, moved, split, **settings).whole.retain_share == pytest.approx(1)
    random = weight_change(model, noisy, split, **settings).whole
    assert random.retain_share < 0.01
    assert random.retain_share_chance == pytest.approx(2 / sum(p.numel() for p in model.parameters()))


def test_rank_of_a_rank_one_change():
    model = tiny_llama()
    moved = copy.deepcopy(model)
    with torch.no_grad():
        weight = moved.model.layers[1].mlp.up_proj.weight
        weight.add_(torch.outer(torch.randn(weight.shape[0]), torch.randn(weight.shape[1])))
    found = weight_change(model, moved, split_of(), n_gradients=1, batch_size=4)
    assert found.layers[1].stable_rank == pytest.approx(1, rel=1e-4)
    assert found.layers[1].top_share == pytest.approx(1, rel=1e-4)
    assert found.layers[1].effective_rank == pytest.approx(1, abs=1e-2)
    assert found.layers[0].norm == 0
    judge = (moved.model.layers[1].mlp.up_proj.weight - model.model.layers[1].mlp.up_proj.weight).norm().item()
    assert found.whole.norm == pytest.approx(judge, rel=1e-5)


def flat(model, batch, names):
    grads = torch.autograd.grad(nll(model, batch), [model.get_parameter(name) for name in names])
    return torch.cat([grad.flatten() for grad in grads])


def test_f35_f40_numbers_are_those_of_whole_vectors_and_singular_values():
    """All parameters at once in float64, as memory does not allow for models of some size."""
    model, moved, split = tiny_gpt2(), tiny_gpt2(1), split_of()
    pieces = [split.retain.select(range(start, start + 2)) for start in (0, 2, 4)]
    found = weight_change(model, moved, split, n_gradients=3, batch_size=2)
    for group, layer in ((found.whole, None), (found.layers[1], 1)):
        names = [n for n, _ in model.named_parameters() if layer is None or layer_of(model, n) == layer]
        changes = [moved.get_parameter(n).detach() - model.get_parameter(n).detach() for n in names]
        change_P, forget_P = torch.cat([c.flatten() for c in changes]), flat(model, split.forget, names)
        left_PK = torch.linalg.qr(torch.stack([flat(model, piece, names) for piece in pieces], 1)).Q
        assert group.forget_cosine == pytest.approx(float(torch.cosine_similarity(change_P, forget_P, 0)), abs=1e-12)
        assert group.retain_share == pytest.approx(float((left_PK.T @ change_P).norm() / change_P.norm()) ** 2)
        spectra = [torch.linalg.svdvals(c) for c in changes if c.ndim == 2]
        square = sum(s.square().sum() for s in spectra)
        stable = sum(s.square().sum() ** 2 / s[0] ** 2 for s in spectra) / square
        shares = [s / s.sum() for s in spectra]
        effective = sum(
            s.square().sum() * torch.special.entr(p).sum().exp() for s, p in zip(spectra, shares, strict=True)
        )
        assert group.stable_rank == pytest.approx(float(stable))
        assert group.effective_rank == pytest.approx(float(effective / square))
        assert group.top_share == pytest.approx(float(sum(s[0] ** 2 for s in spectra) / square))


def test_f40_gradients_are_held_for_a_part_of_the_parameters(monkeypatch):
    model, asked, grad = tiny_llama(), [], torch.autograd.grad
    expected = weight_change(model, tiny_llama(1), split_of(), n_gradients=4, batch_size=2)

    def noted(loss, inputs, **how):
        asked.append(sum(p.numel() for p in inputs))
        return grad(loss, inputs, **how)

    monkeypatch.setattr("torch.autograd.grad", noted)
    found = weight_change(model, tiny_llama(1), split_of(), n_gradients=4, batch_size=2, rows_per_pass=1)
    assert 5 * max(asked) <= 2 * sum(p.numel() for p in model.parameters())
    assert found.whole.forget_cosine == pytest.approx(expected.whole.forget_cosine, rel=1e-4)
    assert found.whole.retain_share == pytest.approx(expected.whole.retain_share, rel=1e-4)


def test_bad_input():
    model = tiny_gpt2()
    with pytest.raises(ValueError, match="architecture"):
        weight_change(model, tiny_gpt2(n_layers=2), split_of(), n_gradients=1, batch_size=4)
    with pytest.raises(ValueError, match="repeat among 8 retain rows"):
        weight_change(model, tiny_gpt2(1), split_of(), n_gradients=3, batch_size=4)
    with pytest.raises(ValueError, match="9 retain gradients from 8 rows"):
        weight_change(model, tiny_gpt2(1), split_of(), n_gradients=9, batch_size=1)
    with pytest.raises(ValueError, match="at least 1"):
        weight_change(model, tiny_gpt2(1), split_of(), n_gradients=0, batch_size=4)
    with pytest.raises(ValueError, match="rows_per_pass must be at least 1, got 0"):
        weight_change(model, tiny_gpt2(1), split_of(), n_gradients=1, batch_size=4, rows_per_pass=0)
    model.lm_head.weight.requires_grad_(False)
    with pytest.raises(ValueError, match="frozen"):
        weight_change(model, tiny_gpt2(1), split_of(), n_gradients=1, batch_size=4)


def test_retraining_moves_more_than_anything(bed):
    small = Split(bed.split.forget.select(range(16)), bed.split.retain.select(range(32)))
    found = weight_change(bed.original, bed.retrained, small, n_gradients=2, batch_size=16)
    assert found.whole.relative > 0.5
    assert all(one.stable_rank > 5 for one in found.layers)
    assert 0 <= found.whole.retain_share < 0.05
