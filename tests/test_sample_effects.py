"""Effects of every row and group of parameters, against a backward pass for each row."""

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import EVERY, family

from probe.checkpoints import weights_hash
from probe.data import paired
from probe.diagnostics.g_effect import g_effect
from probe.diagnostics.sample_effects import sample_effects
from probe.objectives.preference import DPO
from probe.objectives.representation import TowardsTarget
from probe.objectives.sequence import NPO, BatchNPO
from probe.objectives.token import ga, nll
from probe.sites import Site, blocks


def agrees(model, tolerance, objective=ga, *, rows=4, risks=("u", "r"), **more):
    on, over = random_batch(0, rows=rows), random_batch(1, rows=rows)
    behind = {"u": on, "r": over}
    found = sample_effects(model, objective, on, {risk: (nll, behind[risk]) for risk in risks}, **more)
    n = on.target_BT.sum().item()
    for risk in risks:
        rows = behind[risk]
        whole = g_effect(model, objective, on, over=rows)
        scale = max(abs(p.effect) for p in whole.group.values())
        assert found.total_B(risk).sum().item() == pytest.approx(whole.total, rel=1e-6)
        for i in range(len(on)):
            row = on.select([i])
            share = row.target_BT.sum().item() / n if objective is ga else 1 / len(on)
            alone = g_effect(model, objective, row, over=rows)
            for j, group in enumerate(found.groups):
                expected = share * alone.group[group].effect
                assert abs(found.effect_BG[risk][i, j].item() - expected) <= tolerance * scale, group
            torch.testing.assert_close(
                found.layer_BL(risk)[i], share * alone.layer_L, rtol=10 * tolerance, atol=tolerance * scale
            )


def test_rows_agree_with_a_backward_pass_each_tightly():
    agrees(tiny_gpt2(), 1e-12)
    agrees(tiny_gpt2(), 1e-12, NPO(tiny_gpt2(1), 0.3))


def test_pieces_agree_too():
    agrees(tiny_gpt2(), 1e-12, batch_size=3)
    agrees(tiny_gpt2(), 1e-12, NPO(tiny_gpt2(1), 0.3), batch_size=1)


@pytest.mark.parametrize("tied", [False, True])
def test_llama(tied):
    agrees(tiny_llama(dtype=torch.float64, tie_word_embeddings=tied), 1e-6)


@pytest.mark.parametrize("name", EVERY)
def test_every_family_is_exact_or_refused_by_name(name):
    if name == "mixtral":
        with pytest.raises(ValueError, match=r"6 parameters .*experts.* mixture of experts.*g_effect"):
            agrees(family(name), 1e-4)
    else:
        agrees(family(name, dtype=torch.float64), 2e-6, rows=2, risks=("r",))


def test_losses_that_couple_rows_or_end_early_sum_to_the_whole():
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    for objective in (BatchNPO(tiny_gpt2(1), 0.5), TowardsTarget(Site(1), torch.ones(16, dtype=torch.float64))):
        found = sample_effects(model, objective, on, {"r": (nll, over)})
        whole = g_effect(model, objective, on, over=over)
        torch.testing.assert_close(found.layer_BL("r").sum(0), whole.layer_L)
        assert found.total_B("r").sum().item() == pytest.approx(whole.total, rel=1e-10)


def test_pairs_are_rows():
    model, on, over = tiny_gpt2(), random_batch(0), random_batch(1)
    both = paired(random_batch(3, length=12), on, same_prompt=False)
    objective = DPO(tiny_gpt2(1), 0.2)
    for size in (2, 32):
        found = sample_effects(model, objective, both, {"r": (nll, over)}, batch_size=size)
        for i in range(len(both)):
            expected = g_effect(model, objective, both.select([i]), over=over).total / len(both)
            assert found.total_B("r")[i].item() == pytest.approx(expected, rel=1e-9)


def test_one_row_and_as_many_rows_as_positions():
    model, over = tiny_gpt2(), random_batch(1)
    for on in (random_batch(0, rows=1), random_batch(0, rows=10, length=10)):
        found = sample_effects(model, ga, on, {"r": (nll, over)})
        assert found.total_B("r").sum().item() == pytest.approx(g_effect(model, ga, on, over=over).total, rel=1e-10)
        n = on.target_BT.sum().item()
        row = on.select([0])
        expected = g_effect(model, ga, row, over=over).total * row.target_BT.sum().item() / n
        assert found.total_B("r")[0].item() == pytest.approx(expected, rel=1e-10)


def test_the_model_is_left_alone():
    model, on = tiny_gpt2(), random_batch()
    before = weights_hash(model)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    sample_effects(model, ga, on, {"u": (nll, on)})
    assert weights_hash(model) == before
    assert all(p.requires_grad and bool((p.grad == 1).all()) for p in model.parameters())


def test_bad_input():
    model, on = tiny_gpt2(), random_batch()
    with pytest.raises(ValueError, match="no risk"):
        sample_effects(model, ga, on, {})
    with pytest.raises(ValueError, match="carries no graph"):
        sample_effects(model, lambda m, b: nll(m, b).detach(), on, {"u": (nll, on)})
    zero = sample_effects(model, ga, on, {"u": (lambda m, b: 0 * nll(m, b), on)})
    assert not zero.effect_BG["u"].any()

    class Mixed(torch.nn.Linear):
        def forward(self, x):
            # A weight that rows are mixed by.
            return super().forward(x) + torch.einsum("oi,bti->o", self.weight, x)

    model = tiny_llama(dtype=torch.float64)
    odd = Mixed(16, 32, bias=False).double()
    blocks(model)[1].mlp.up_proj = odd
    with pytest.raises(ValueError, match=r"einsum uses model\.layers\.1\.mlp\.up_proj\.weight .* it mixes rows"):
        sample_effects(model, ga, on, {"u": (nll, on)})
    blocks(model)[1].requires_grad_(False)
    with pytest.raises(ValueError, match="are frozen"):
        sample_effects(model, ga, on, {"u": (nll, on)})


class Hidden(torch.autograd.Function):
    """A product that no operation shows."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight)
        return x @ weight.T

    @staticmethod
    def backward(ctx, delta):
        x, weight = ctx.saved_tensors
        return delta @ weight, delta.flatten(0, 1).T @ x.flatten(0, 1)


def test_custom_kernels_are_noticed():
    model, on = tiny_llama(dtype=torch.float64), random_batch()
    up = blocks(model)[1].mlp.up_proj
    up.forward = lambda x: Hidden.apply(x, up.weight)
    with pytest.raises(ValueError, match=r"1 parameters \(the first is model\.layers\.1\.mlp\.up_proj\.weight\)"):
        sample_effects(model, ga, on, {"u": (nll, on)})
