"""The training engine: ways of stepping against their formulas, resuming, stopping, sharing a batch."""

import copy
import errno
import json
import math
import os
import re
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from families import family
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import cross_entropy

from probe.checkpoints import weights_hash
from probe.data import Batch
from probe.hooks import captured, edited, our_hooks
from probe.objectives.frozen import CachedOriginal, NearCached, above_frozen
from probe.objectives.invariance import irm_penalty
from probe.objectives.original import OriginalAnswers
from probe.objectives.representation import NearOriginal, TowardsTarget, all_positions, hidden_at, real_tokens
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import ga, nll
from probe.sites import Site
from probe.train import (
    EMA,
    LAT,
    SAM,
    SWA,
    TAR,
    Checkpointing,
    CurvaturePenalty,
    FineTuning,
    GradientPenalty,
    Smoothing,
    Term,
    WarmUp,
    constant,
    lora,
    minimise,
    one_cycle,
    plain_gradient,
    rows,
    target_token_count,
)
from probe.train import real_token_count as count_real
from probe.train.adversary import Perturb
from probe.train.configuration import identity_of
from probe.train.step import Piece, Step, drawn_seed

PARAMETERS = r"h\.1\.mlp|h\.2\."
HOW = {"lr": 1e-2, "batch_size": 2, "seed": 3}


def terms(forget: Batch | None = None) -> list[Term]:
    return [Term(0.7, ga, forget or random_batch(0), "forget"), Term(1.3, nll, random_batch(1), "retain")]


def test_f42_the_bar_shows_the_losses_of_every_step(monkeypatch):
    shown = []

    class Bar(list):
        def __init__(self, steps, **_):
            super().__init__(steps)

        def set_postfix(self, losses, **_):
            shown.append(losses)

    monkeypatch.setattr("probe.train.loop.tqdm", Bar)
    history = minimise(tiny_gpt2(), terms(), steps=3, parameters=PARAMETERS, **HOW)
    assert shown == [{"forget": f"{a:.3g}", "retain": f"{b:.3g}"} for a, b in history.losses]


def step_of(model, listed=None, *, parameters=PARAMETERS, number=0) -> Step:
    """A step over whole batches, outside of any run."""
    listed = listed or terms()
    trained = {n: p for n, p in model.named_parameters() if re.search(parameters, n)}
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    pieces = [[Piece(term.data, 1.0)] for term in listed]
    return Step(number, 3, model, trained, listed, tuple(t.name for t in listed), pieces)


def gradient_of(step: Step, *weighted) -> dict[str, torch.Tensor]:
    """By autograd, of sum_k weight_k objective_k(batch_k)."""
    loss = sum(weight * objective(step.model, batch) for weight, objective, batch in weighted)
    return dict(zip(step.trained, torch.autograd.grad(loss, list(step.trained.values())), strict=True))


def close(found, expected, **how):
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], **how)


def bits(model) -> str:
    return weights_hash(model)


def shifted(model, by, scale):
    other = copy.deepcopy(model)
    with torch.no_grad():
        for name, p in other.named_parameters():
            if name in by:
                p += scale * by[name]
    return other


# --- ways of stepping, each against its formula ---


def test_plain_is_the_gradient_of_the_sum():
    step = step_of(tiny_gpt2())
    losses, found = plain_gradient(step)
    f, r = random_batch(0), random_batch(1)
    close(found, gradient_of(step, (0.7, ga, f), (1.3, nll, r)))
    assert losses == {0: pytest.approx(ga(step.model, f).item()), 1: pytest.approx(nll(step.model, r).item())}
    assert all(p.grad is None for p in step.model.parameters())


def test_sam_is_the_two_pass_step_written_by_hand():
    rho, f, r = 0.05, random_batch(0), random_batch(1)
    step = step_of(tiny_gpt2())
    before = bits(step.model)
    losses, found = SAM(rho, on=("forget",))(step)
    assert bits(step.model) == before
    g_f = gradient_of(step, (0.7, ga, f))
    length = torch.cat([g.flatten() for g in g_f.values()]).norm()
    there = step_of(shifted(step.model, g_f, rho / length))
    moved = torch.cat([(p - q).flatten() for p, q in zip(there.trained.values(), step.trained.values(), strict=True)])
    assert moved.norm().item() == pytest.approx(rho)
    expected, rest = gradient_of(there, (0.7, ga, f)), gradient_of(step, (1.3, nll, r))
    close(found, {name: expected[name] + rest[name] for name in rest})
    assert losses[0] == pytest.approx(ga(step.model, f).item())  # that of the weights, not of the perturbed ones


def test_smoothing_is_the_mean_over_its_draws():
    sigma, f, r = 0.03, random_batch(0), random_batch(1)
    step = step_of(tiny_gpt2(), number=5)
    before = bits(step.model)
    losses, found = Smoothing(sigma, 3, on=("forget",))(step)
    assert bits(step.model) == before
    expected = gradient_of(step, (1.3, nll, r))
    values = []
    for draw in range(3):
        there = step_of(shifted(step.model, step.noise(draw), sigma))
        values.append(ga(there.model, f).item())
        expected = {n: expected[n] + g / 3 for n, g in gradient_of(there, (0.7, ga, f)).items()}
    close(found, expected)
    assert losses[0] == pytest.approx(sum(values) / 3)
    noise = torch.cat([n.flatten() for n in step.noise(0).values()])
    assert noise.mean().abs() < 0.05
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    for other in (step.noise(1), step_of(step.model, number=6).noise(0)):
        again = torch.cat([n.flatten() for n in other.values()])
        assert torch.dot(noise, again).abs() / noise.numel() < 0.1


def test_the_gradient_penalty_has_the_gradient_of_finite_differences():
    f, rho = random_batch(0), 0.3
    model = tiny_gpt2(n_layers=2)
    step = step_of(model, [Term(0.7, ga, f, "forget")], parameters=r"h\.1\.")
    _, found = GradientPenalty(rho)(step)
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in step.trained.items()}

    def value(scale):
        with sdpa_kernel(SDPBackend.MATH):
            there = step_of(shifted(model, direction, scale), parameters=r"h\.1\.")
            g = gradient_of(there, (0.7, ga, f))
        return 0.7 * ga(there.model, f).item() + rho * torch.cat([v.flatten() for v in g.values()]).norm().item()

    eps = 1e-5
    slope = sum((found[n] * direction[n]).sum().item() for n in found)
    assert (value(eps) - value(-eps)) / (2 * eps) == pytest.approx(slope, rel=1e-6)
    without = sum((g * direction[n]).sum().item() for n, g in gradient_of(step, (0.7, ga, f)).items())
    assert abs(slope - without) > 1e-3  # the penalty does have a gradient


def test_the_curvature_penalty_has_the_gradient_of_finite_differences():
    f, rho, radius = random_batch(0), 0.3, 0.1
    model = tiny_gpt2(n_layers=2)
    step = step_of(model, [Term(0.7, ga, f, "forget")], parameters=r"h\.1\.")
    before = bits(model)
    _, found = CurvaturePenalty(rho, radius)(step)
    assert bits(model) == before
    with sdpa_kernel(SDPBackend.MATH):
        g = gradient_of(step, (0.7, ga, f))
    length = torch.cat([v.flatten() for v in g.values()]).norm()
    generator = torch.Generator().manual_seed(0)
    direction = {n: torch.randn(p.shape, generator=generator, dtype=p.dtype) for n, p in step.trained.items()}

    def value(scale):
        with sdpa_kernel(SDPBackend.MATH):
            here = step_of(shifted(model, direction, scale), parameters=r"h\.1\.")
            there = step_of(shifted(here.model, g, radius / length), parameters=r"h\.1\.")
            pairs = zip(
                gradient_of(here, (0.7, ga, f)).values(), gradient_of(there, (0.7, ga, f)).values(), strict=True
            )
            change = torch.cat([(b - a).flatten() for a, b in pairs]).norm().item()
        return 0.7 * ga(here.model, f).item() + rho * change

    eps = 1e-5
    slope = sum((found[n] * direction[n]).sum().item() for n in found)
    assert (value(eps) - value(-eps)) / (2 * eps) == pytest.approx(slope, rel=1e-6)


def test_the_irm_penalty_is_the_squared_derivative_by_a_scale_of_the_logits():
    model, batch = tiny_gpt2(), random_batch()
    w = torch.ones((), dtype=torch.float64, requires_grad=True)
    logits = model(**batch.inputs).logits[:, :-1][batch.target_BT[:, 1:]]
    loss = cross_entropy(w * logits, batch.tokens_BT[:, 1:][batch.target_BT[:, 1:]])
    (by_w,) = torch.autograd.grad(loss, w, create_graph=True)
    expected = torch.autograd.grad(by_w.square(), list(model.parameters()))
    found = irm_penalty(model, batch)
    torch.testing.assert_close(found, by_w.square().detach())
    torch.testing.assert_close(torch.autograd.grad(found, list(model.parameters())), expected)


def attack(epsilon=0.5, steps=6) -> LAT:
    return LAT(Site(0, "mlp"), nll, epsilon, steps, 0.2, on=("forget",))


def test_lat_perturbs_within_its_ball_and_steps_under_the_perturbation():
    f, r = random_batch(0), random_batch(1)
    step = step_of(tiny_gpt2())
    before = bits(step.model)
    losses, found = attack()(step)
    assert bits(step.model) == before
    assert our_hooks(step.model) == []
    delta_BTD = attack().perturbation(step, f)
    length_BT = delta_BTD.norm(dim=-1)
    assert length_BT.max() <= 0.5 * (1 + 1e-9)
    assert (length_BT[f.attention_BT] > 0).float().mean() > 0.5
    assert not length_BT[~f.attention_BT].any()
    with edited(step.model, {Site(0, "mlp"): Perturb(delta_BTD)}):
        attacked = nll(step.model, f)
        expected = gradient_of(step, (0.7, ga, f))
    assert attacked < nll(step.model, f) - 0.1  # the attacker got the answers back a little
    assert losses[0] == pytest.approx(-attacked.item())
    rest = gradient_of(step, (1.3, nll, r))
    close(found, {n: expected[n] + rest[n] for n in rest})


def test_one_lat_step_is_adamw_and_a_projection():
    f = random_batch(0)
    step = step_of(tiny_gpt2())
    delta_BTD = torch.zeros(*f.tokens_BT.shape, 16, dtype=torch.float64, requires_grad=True)
    with edited(step.model, {Site(0, "mlp"): Perturb(delta_BTD)}):
        (g,) = torch.autograd.grad(nll(step.model, f), delta_BTD)
    first = -0.2 * g / (g.abs() + 1e-8)  # Adam's first step
    expected = first * (0.5 / first.norm(dim=-1, keepdim=True)).clamp(max=1)
    expected[~f.attention_BT] = 0
    torch.testing.assert_close(attack(steps=1).perturbation(step, f), expected.nan_to_num())


def test_lat_says_when_its_site_has_no_effect():
    def early(model, batch):
        return hidden_at(model, batch, Site(0)).square().mean()

    step = step_of(tiny_gpt2(), parameters=".")
    with pytest.raises(ValueError, match=r"does not depend on activations at Site\(2\)"):
        LAT(Site(2), early, 1.0, 2, 0.1, on=("forget",))(step)


def tar(steps=4, every=2, growth=0.5) -> TAR:
    return TAR([FineTuning(nll, random_batch(0), 1e-2, 2)], steps, every, growth, on=("forget",))


def test_tar_applies_gradients_of_attacked_weights_to_the_original_ones():
    f, r = random_batch(0), random_batch(1)
    step = step_of(tiny_gpt2())
    before, storage = bits(step.model), [p.data_ptr() for p in step.model.parameters()]
    losses, found = tar()(step)
    assert bits(step.model) == before
    assert [p.data_ptr() for p in step.model.parameters()] == storage
    # The attack once more, by the loop itself: it draws the same rows from the same seed.
    seen = {}
    victim = copy.deepcopy(step.model)
    minimise(
        victim,
        [Term(1.0, nll, random_batch(0), "attack")],
        steps=4,
        lr=1e-2,
        batch_size=2,
        seed=drawn_seed(3, 0),
        parameters=PARAMETERS,
        clip=None,
        every=2,
        observe=lambda i, m: seen.update({i: copy.deepcopy(m)}),
    )
    expected = gradient_of(step, (1.3, nll, r))
    for i, m in seen.items():
        attacked = gradient_of(step_of(m), (0.7, ga, f))
        expected = {n: expected[n] + math.exp(0.5 * (i - 4)) * attacked[n] for n in expected}
    close(found, expected)
    assert losses[0] == pytest.approx(ga(seen[4], f).item())


def test_tar_restores_weights_when_the_attack_fails():
    step, count = step_of(tiny_gpt2()), iter(range(10))

    def failing(model, batch):
        if next(count) == 2:
            raise KeyboardInterrupt
        return nll(model, batch)

    before = bits(step.model)
    with pytest.raises(KeyboardInterrupt):
        TAR([FineTuning(failing, random_batch(0), 1e-2, 2)], 4, 2, 0.5, on=("forget",))(step)
    assert bits(step.model) == before


@pytest.mark.parametrize(
    "stepping",
    [SAM(0.0), Smoothing(0.0, 3), GradientPenalty(0.0), CurvaturePenalty(0.0, 0.1), attack(steps=0), tar(steps=0)],
    ids=lambda s: type(s).__name__,
)
def test_no_strength_is_the_plain_run_bit_for_bit(stepping):
    hashes = []
    for one in (plain_gradient, stepping):
        model = tiny_gpt2()
        history = minimise(model, terms(), steps=3, stepping=one, **HOW)
        hashes.append((bits(model), history))
    assert hashes[0] == hashes[1]


@pytest.mark.parametrize(
    "stepping",
    [SAM(0.05), Smoothing(0.01, 2), GradientPenalty(0.1), CurvaturePenalty(0.1, 0.1), attack(), tar()],
    ids=lambda s: type(s).__name__,
)
def test_every_way_is_deterministic_and_differs_from_the_plain_one(stepping):
    def run(one):
        model = tiny_llama()
        torch.rand(len(runs))  # whatever the global state is
        runs.append(minimise(model, terms(), steps=2, stepping=one, parameters="mlp|layers.2", **HOW))
        return bits(model)

    runs = []
    assert run(stepping) == run(stepping) != run(plain_gradient)


def test_penalties_run_through_every_attention_that_transformers_picks():
    model = tiny_llama()
    assert model.config._attn_implementation == "sdpa"
    minimise(model, terms(), steps=1, stepping=GradientPenalty(0.1), **HOW)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SAM(-1.0), "rho must be at least 0, got -1"),
        (lambda: Smoothing(0.1, 0), "samples must be at least 1"),
        (lambda: CurvaturePenalty(1.0, 0.0), "radius must be above 0"),
        (lambda: LAT(Site(0), nll, 1.0, 1, 0.0, on=("forget",)), "an lr above 0"),
        (lambda: LAT(Site(0), nll, 1.0, 1, 0.1, on=()), "names of the terms"),
        (lambda: TAR([], 4, 2, 0.0, on=("forget",)), "needs attacks"),
        (lambda: tar(steps=5), "every must divide steps, got 2 and 5"),
        (lambda: SWA(0, 1), "at least 1 step"),
        (lambda: EMA(1.0), r"decay must lie in \[0, 1\)"),
        (lambda: Checkpointing("x", 0), "every and keep"),
    ],
)
def test_numbers_without_meaning_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_term_that_is_not_there_is_named():
    with pytest.raises(ValueError, match="no term is called 'forgot'; the terms are forget, retain"):
        minimise(tiny_llama(), terms(), steps=1, stepping=SAM(0.1, on=("forgot",)), **HOW)


# --- averages ---


@pytest.mark.parametrize(("averaging", "start", "every"), [(SWA(2, 3), 2, 3), (EMA(0.8), 1, 1), (EMA(0.8, 4, 2), 4, 2)])
def test_the_run_ends_with_the_average(averaging, start, every):
    seen = {}
    model, other = tiny_gpt2(), tiny_gpt2()
    minimise(
        model,
        terms(),
        steps=9,
        averaging=averaging,
        every=1,
        observe=lambda i, m: seen.update({i: {n: p.detach().clone() for n, p in m.named_parameters()}}),
        **HOW,
    )
    minimise(other, terms(), steps=9, **HOW)
    for name, p in other.named_parameters():
        assert torch.equal(p, seen[9][name])  # observers see the plain run
    used = [seen[i] for i in range(start, 10, every)]
    for name, p in model.named_parameters():
        if isinstance(averaging, SWA):
            expected = torch.stack([w[name] for w in used]).mean(0)
        else:
            expected = used[0][name]
            for w in used[1:]:
                expected = 0.8 * expected + 0.2 * w[name]
        torch.testing.assert_close(p.detach(), expected, rtol=1e-12, atol=1e-14)


def test_an_average_that_would_never_begin_is_refused():
    with pytest.raises(ValueError, match="averaging starts after step 10, the run has 4"):
        minimise(tiny_llama(), terms(), steps=4, averaging=SWA(10, 1), **HOW)


# --- batches in pieces, mixed precision, subsets ---


@pytest.mark.parametrize(
    ("objective", "count"),
    [
        (lambda m: nll, target_token_count),
        (lambda m: ForwardKL(tiny_gpt2(1)), target_token_count),
        (lambda m: NPO(tiny_gpt2(1), 0.1), rows),
        (lambda m: TowardsTarget(Site(1), torch.ones(16), real_tokens), count_real),
    ],
    ids=["nll", "kl", "npo", "rmu"],
)
def test_pieces_give_the_gradient_of_the_whole_batch(objective, count):
    runs = []
    for n in (1, 2, 4):
        model = tiny_gpt2()
        listed = [Term(1.5, objective(model), random_batch(2), "a", count)]
        history = minimise(model, listed, steps=3, lr=1e-3, batch_size=4, seed=0, accumulate=n, clip=None)
        runs.append((history.losses, [p.detach().clone() for p in model.parameters()]))
    for losses, weights in runs[1:]:
        torch.testing.assert_close(torch.tensor(losses), torch.tensor(runs[0][0]), rtol=1e-9, atol=0)
        torch.testing.assert_close(weights, runs[0][1], rtol=1e-6, atol=1e-8)


def test_the_share_of_a_piece_is_its_share_of_the_tokens():
    batch = random_batch(2)
    counts = [target_token_count(batch.select([i])) for i in range(4)]
    assert len(set(counts)) > 1
    model = tiny_gpt2()
    whole = nll(model, batch).item()
    by_share = sum(c / sum(counts) * nll(model, batch.select([i])).item() for i, c in enumerate(counts))
    plain_mean = sum(nll(model, batch.select([i])).item() for i in range(4)) / 4
    assert by_share == pytest.approx(whole)
    assert plain_mean != pytest.approx(whole, rel=1e-5)


@pytest.mark.parametrize("stepping", [SAM(0.05), GradientPenalty(0.1)], ids=["SAM", "GP"])
def test_ways_of_stepping_see_the_whole_batch(stepping):
    runs = []
    for n in (1, 2):
        model = tiny_gpt2()
        listed = [Term(1.0, nll, random_batch(2), "a", target_token_count)]
        minimise(model, listed, steps=1, lr=1e-3, batch_size=4, seed=0, accumulate=n, stepping=stepping)
        runs.append([p.detach().clone() for p in model.parameters()])
    torch.testing.assert_close(runs[0], runs[1], rtol=1e-6, atol=1e-8)


def test_pieces_that_do_not_fit_are_refused():
    model, before = tiny_llama(), bits(tiny_llama())
    with pytest.raises(ValueError, match=r"accumulate=3 .* does not divide the 4 rows of a batch of forget"):
        minimise(model, terms(), steps=1, lr=1e-2, batch_size=4, seed=0, accumulate=3)
    with pytest.raises(ValueError, match=r'pass mean_over=\{"forget": target_tokens\}'):
        minimise(model, terms(), steps=1, accumulate=2, **HOW)
    with pytest.raises(ValueError, match="mean_over names 'forgot'"):
        minimise(model, terms(), steps=1, accumulate=2, mean_over={"forgot": rows}, **HOW)
    assert bits(model) == before
    counts = {"forget": target_token_count, "retain": target_token_count}
    minimise(model, terms(), steps=1, accumulate=2, mean_over=counts, **HOW)


def test_autocast_runs_forwards_in_bfloat16_and_keeps_weights_in_float32():
    seen = []

    def looked(model, batch):
        seen.append(model(**batch.inputs).logits.dtype)
        return nll(model, batch)

    model, exact = tiny_llama(), tiny_llama()
    half = minimise(model, [Term(1.0, looked, random_batch())], steps=4, autocast=torch.bfloat16, **HOW)
    whole = minimise(exact, [Term(1.0, nll, random_batch())], steps=4, **HOW)
    assert set(seen) == {torch.bfloat16}
    assert all(p.dtype == torch.float32 for p in model.parameters())
    torch.testing.assert_close(torch.tensor(half.losses), torch.tensor(whole.losses), rtol=1.6e-2, atol=1e-3)
    assert half.losses != whole.losses
    with pytest.raises(ValueError, match=r"use torch\.bfloat16"):
        minimise(model, terms(), steps=1, autocast=torch.float16, **HOW)


def test_tied_weights_are_trained_under_all_their_names_or_none():
    model = tiny_gpt2()
    for pattern, one, other in (("wte", "transformer.wte.weight", "lm_head.weight"), ("lm_head", "lm_head", "wte")):
        with pytest.raises(ValueError, match=f"matches .*{one}.* is tied to .*{other}"):
            minimise(model, terms(), steps=1, parameters=pattern, **HOW)
    before = model.lm_head.weight.detach().clone()
    minimise(model, terms(), steps=1, parameters="wte|lm_head", **HOW)
    assert model.lm_head.weight is model.transformer.wte.weight
    assert not torch.equal(model.lm_head.weight, before)
    with pytest.raises(ValueError, match="matches no parameter"):
        minimise(model, terms(), steps=1, parameters="nothing", **HOW)


def test_only_trained_parameters_have_optimiser_state(tmp_path):
    from safetensors.torch import load_file

    model = tiny_llama()
    checkpoint = Checkpointing(tmp_path, 1)
    minimise(model, terms(), steps=1, parameters="down_proj", checkpoint=checkpoint, **HOW)
    state = load_file(tmp_path / "step-00000001" / "optimiser.safetensors")
    assert {name.rpartition("/")[0] for name in state} == {f"model.layers.{i}.mlp.down_proj.weight" for i in range(3)}


# --- adapters ---


def test_without_peft_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    model, before = tiny_llama(), bits(tiny_llama())
    with pytest.raises(ImportError, match=r"pip install 'unlearn-probe\[lora\]'"):
        lora(model, rank=2, alpha=4.0, targets=["q_proj"], seed=0)
    assert bits(model) == before


def test_lora_trains_adapters_alone():
    pytest.importorskip("peft")
    base = tiny_llama()
    before = base(**random_batch().inputs).logits
    model = lora(tiny_llama(), rank=2, alpha=4.0, targets=["q_proj", "down_proj"], seed=0)
    torch.testing.assert_close(model(**random_batch().inputs).logits, before)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if "lora_" not in n}
    minimise(model, terms(), steps=3, parameters="lora_", **HOW)
    assert all(torch.equal(p, frozen[n]) for n, p in model.named_parameters() if n in frozen)
    trained = model(**random_batch().inputs).logits
    merged = model.merge_and_unload()
    torch.testing.assert_close(merged(**random_batch().inputs).logits, trained)
    assert [n for n, _ in merged.named_parameters()] == [n for n, _ in base.named_parameters()]


# --- checkpoints ---


class Killed(BaseException):
    pass


def killer(at: int):
    def observe(step, model):
        if step == at:
            raise Killed

    return observe


@pytest.mark.parametrize(
    "how",
    [
        {},
        {"averaging": EMA(0.9), "schedule": one_cycle, "weight_decay": 0.1},
        {"stepping": Smoothing(0.01, 2, on=("forget",)), "parameters": "mlp"},
        {"stepping": tar(), "averaging": SWA(2, 1)},
    ],
    ids=["plain", "ema", "smoothing", "tar"],
)
@pytest.mark.parametrize("at", [1, 5, 6])
def test_a_run_cut_off_goes_on_with_the_same_bits(how, at, tmp_path):
    def drawing(model, batch):  # objectives may draw at random
        return nll(model, batch) * torch.rand(())

    listed = [*terms(), Term(0.5, drawing, random_batch(4), "drawing")]
    whole, cut, again = tiny_llama(), tiny_llama(), tiny_llama()
    expected = minimise(whole, listed, steps=8, **HOW, **how)
    checkpoint = Checkpointing(tmp_path / "run", 2)
    with pytest.raises(Killed):
        minimise(cut, listed, steps=8, checkpoint=checkpoint, every=1, observe=killer(at), **HOW, **how)
    assert all(p.requires_grad and p.grad is None for p in cut.parameters())
    seen = []
    found = minimise(
        again, listed, steps=8, checkpoint=checkpoint, every=1, observe=lambda i, m: seen.append(i), **HOW, **how
    )
    assert bits(again) == bits(whole)
    assert found == expected
    assert seen == list(range((at - 1) // 2 * 2 + 1, 9))
    finished = tiny_llama()
    assert minimise(finished, listed, steps=8, checkpoint=checkpoint, **HOW, **how) == expected
    assert bits(finished) == bits(whole)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["step-00000008"]


def test_a_checkpoint_is_safetensors_and_json(tmp_path):
    minimise(tiny_llama(), terms(), steps=4, checkpoint=Checkpointing(tmp_path, 2, keep=2), averaging=EMA(0.5), **HOW)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-00000002", "step-00000004"]
    files = {p.name for p in (tmp_path / "step-00000004").iterdir()}
    assert files == {"weights.safetensors", "optimiser.safetensors", "average.safetensors", "state.json"}
    state = json.loads((tmp_path / "step-00000004" / "state.json").read_text())
    assert state["step"] == 4
    assert state["drawn"] == [8, 8]
    assert len(state["hash"]) == 64
    assert state["configuration"]["lr"] == 1e-2


def test_another_configuration_is_refused_and_the_differences_listed(tmp_path):
    checkpoint = Checkpointing(tmp_path, 2)
    minimise(tiny_llama(), terms(), steps=4, checkpoint=checkpoint, **HOW)
    other_rows = terms(random_batch(7))
    for model, listed, how, told in (
        (tiny_llama(), terms(), {"lr": 2e-2}, r"lr: 0\.01 there, 0\.02 now"),
        (tiny_llama(), terms(), {"seed": 4}, "seed: 3 there, 4 now"),
        (
            tiny_llama(),
            terms(),
            {"stepping": SAM(0.1)},
            r'stepping: "probe\.train\.step\.plain_gradient" there.*"rho": 0\.1',
        ),
        (tiny_llama(), terms(), {"schedule": one_cycle}, "schedule: .*constant.*one_cycle"),
        (tiny_llama(), other_rows, {}, r"terms\[0\]\.data\.tokens_BT\.tensor"),
        (tiny_llama(1), terms(), {}, "model before the run"),
        (tiny_llama(), terms()[::-1], {}, r"terms\[0\]\.weight: 0\.7 there, 1\.3 now"),
    ):
        before = bits(model)
        with pytest.raises(ValueError, match=rf"another configuration \(.*{told}.*take another folder"):
            minimise(model, listed, steps=4, checkpoint=checkpoint, **{**HOW, **how})
        assert bits(model) == before


def test_references_and_local_functions_belong_to_the_configuration():
    def scaled(factor):
        return lambda model, batch: factor * nll(model, batch)

    assert identity_of(scaled(1.0)) == identity_of(scaled(1.0)) != identity_of(scaled(2.0))
    one, same, other = (NPO(tiny_llama(seed), 0.1) for seed in (0, 0, 1))
    assert identity_of(one) == identity_of(same) != identity_of(other)
    cached = [identity_of(NPO(OriginalAnswers(tiny_llama(seed), random_batch()), 0.1)) for seed in (0, 0, 1)]
    assert cached[0] == cached[1] != cached[2]
    with pytest.raises(ValueError, match="cannot be described"):
        identity_of(object())


def test_a_damaged_checkpoint_is_refused(tmp_path):
    minimise(tiny_llama(), terms(), steps=2, checkpoint=Checkpointing(tmp_path, 2), **HOW)
    path = tmp_path / "step-00000002" / "weights.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"weights\.safetensors is missing or not what was written.*delete"):
        minimise(tiny_llama(), terms(), steps=2, checkpoint=Checkpointing(tmp_path, 2), **HOW)


def test_a_full_disk_leaves_the_last_good_checkpoint(tmp_path):
    checkpoint, model, limits = Checkpointing(tmp_path, 2), tiny_llama(), resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill(step, model):
        if step == 3:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))

    try:
        with pytest.raises(OSError, match=r"checkpoint of step 4 was not written .* last good one is .*step-00000002"):
            minimise(model, terms(), steps=8, checkpoint=checkpoint, every=1, observe=fill, **HOW)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [p.name for p in tmp_path.iterdir()] == ["step-00000002"]
    again, whole = tiny_llama(), tiny_llama()
    minimise(again, terms(), steps=8, checkpoint=checkpoint, **HOW)
    minimise(whole, terms(), steps=8, **HOW)
    assert bits(again) == bits(whole)


def test_a_checkpoint_half_written_is_not_taken(tmp_path):
    checkpoint = Checkpointing(tmp_path, 2)
    minimise(tiny_llama(), terms(), steps=2, checkpoint=checkpoint, **HOW)
    (tmp_path / "step-00000004.partial").mkdir()
    (tmp_path / "step-00000004.partial" / "state.json").write_text("{")
    minimise(tiny_llama(), terms(), steps=2, checkpoint=checkpoint, **HOW)


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="there is none before it") as caught:
        minimise(tiny_llama(), terms(), steps=1, checkpoint=Checkpointing(tmp_path / "file" / "run", 1), **HOW)
    assert caught.value.errno == errno.ENOTDIR


# --- the ends of a run ---


def test_stop_ends_the_run_and_is_recorded():
    asked = []

    def enough(step, losses):
        asked.append((step, set(losses)))
        return step == 3

    history = minimise(tiny_llama(), terms(), steps=9, stop=enough, **HOW)
    assert history.stopped == len(history.losses) == 3
    assert asked == [(i, {"forget", "retain"}) for i in (1, 2, 3)]
    assert minimise(tiny_llama(), terms(), steps=3, **HOW).stopped is None


def test_a_loss_that_is_not_finite_names_the_broken_weight():
    model = tiny_llama()
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"step 0: forget is nan \(.*not finite is in layer 1 \(model\.layers\.1\.mlp\.up_proj"
    ):
        minimise(model, terms(), steps=2, **HOW)


def test_a_gradient_that_is_not_finite_names_term_and_layer():
    def steep(model, batch):  # finite, but its slope at 0 is not
        hidden_BTD = hidden_at(model, batch, Site(1))
        return nll(model, batch) + (hidden_BTD - hidden_BTD.detach()).square().sum().sqrt()

    model, before = tiny_llama(), bits(tiny_llama())
    listed = [Term(1.0, nll, random_batch(), "retain"), Term(1.0, steep, random_batch(), "forget")]
    with pytest.raises(FloatingPointError, match=r"step 0: the gradient of forget is not finite, first in layer 0"):
        minimise(model, listed, steps=2, parameters="layers", **HOW)
    assert bits(model) == before


def test_an_update_that_overflows_is_not_returned_as_a_model():
    with pytest.raises(FloatingPointError, match="left a weight that is not finite, first in"):
        minimise(tiny_llama(), terms(), steps=1, lr=3e37, weight_decay=11.0, decay_all=True, batch_size=2, seed=0)


def test_modes_of_submodules_come_back():
    model = tiny_llama().train()
    model.model.layers[1].eval()
    minimise(model, terms(), steps=1, **HOW)
    assert model.training
    assert not model.model.layers[1].training


def test_the_global_random_numbers_are_left_alone():
    model = tiny_llama()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    minimise(model, terms(), steps=1, schedule=constant, **HOW)
    assert torch.equal(torch.rand(3), expected)


# --- what is frozen is not computed ---


@pytest.mark.parametrize("name", ["llama", "gpt2", "falcon", "gptj", "gemma2"])
def test_the_rmu_step_from_kept_states_has_the_gradients_of_the_whole_one(name):
    model, original = family(name), family(name)
    f, r = random_batch(0), random_batch(1)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if ".1." in n:
                p.add_(0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    pattern = r"\.1\..*mlp"
    whole = [
        Term(1.0, TowardsTarget(Site(2), torch.ones(32), all_positions), f, "forget"),
        Term(3.0, NearOriginal(original, Site(2)), r, "retain"),
    ]
    kept = CachedOriginal(original, r, Site(2))
    fast = [
        Term(1.0, above_frozen(model, whole[0].objective, f, 1), f, "forget"),
        Term(3.0, above_frozen(model, NearCached(kept), r, 1), r, "retain"),
    ]
    losses, expected = plain_gradient(step_of(model, whole, parameters=pattern))
    quick, found = plain_gradient(step_of(model, fast, parameters=pattern))
    assert quick == pytest.approx(losses, rel=1e-5)
    close(found, expected, rtol=1e-4, atol=1e-7)
    assert our_hooks(model) == []
    assert all("forward" not in vars(m) for m in model.modules())


def test_a_run_from_kept_states_can_be_resumed(tmp_path):
    def run(steps_seen, **how):
        model, batch = tiny_llama(), random_batch()
        fast = above_frozen(model, TowardsTarget(Site(2), torch.ones(16)), batch, 2)
        pattern = r"layers\.2\..*down_proj"
        minimise(
            model, [Term(1.0, fast, batch)], steps=4, parameters=pattern, every=1, observe=steps_seen, **HOW, **how
        )
        return bits(model)

    with pytest.raises(Killed):
        run(killer(3), checkpoint=Checkpointing(tmp_path, 2))
    assert run(lambda i, m: None, checkpoint=Checkpointing(tmp_path, 2)) == run(lambda i, m: None)


def test_backward_stops_where_training_begins():
    model, seen = tiny_llama(n_layers=4), {}

    def looked(model, batch):
        with captured(model, [Site(0), Site(1), Site(2), Site(3)]) as states:
            loss = nll(model, batch)
        seen.update({site.layer: states[site].requires_grad for site in states})
        return loss

    minimise(model, [Term(1.0, looked, random_batch())], steps=1, parameters=r"layers\.[23]\..*down_proj", **HOW)
    assert seen == {0: False, 1: False, 2: True, 3: True}


def test_kept_states_are_refused_where_they_would_be_wrong():
    model, batch = tiny_llama(), random_batch()
    objective = TowardsTarget(Site(2), torch.ones(16))
    fast = above_frozen(model, objective, batch, 2)
    with pytest.raises(ValueError, match=r"layers\.0\..* is trained but lies below"):
        minimise(model, [Term(1.0, fast, batch)], steps=1, parameters="layers", **HOW)
    minimise(model, [Term(1.0, fast, batch)], steps=2, parameters=r"layers\.2", **HOW)
    with pytest.raises(ValueError, match="rows are not among the 4 whose states"):
        fast(model.requires_grad_(False), random_batch(9))
    minimise(model, [Term(1.0, nll, batch)], steps=1, parameters=r"layers\.1", **HOW)
    with pytest.raises(ValueError, match=r"layers\.1\..* has changed since the states above it were kept"):
        fast(model.requires_grad_(False), batch)
    with pytest.raises(ValueError, match="nothing lies below"):
        above_frozen(model, objective, batch, 0)


# --- several processes ---

WORKER = """
import sys
from accelerate import Accelerator
sys.path[:0] = [{tests!r}]
import torch
torch.set_num_threads(1)
from conftest import random_batch, tiny_gpt2
from probe.checkpoints import weights_hash
from probe.objectives.sequence import NPO
from probe.objectives.token import nll
from probe.train import SAM, Term, minimise, rows, target_tokens

accelerator = Accelerator(cpu=True)
for stepping in ({{}}, {{"stepping": SAM(0.05)}}):
    model = tiny_gpt2()
    terms = [
        Term(1.0, NPO(tiny_gpt2(1), 0.1), random_batch(0), "forget", rows),
        Term(1.0, nll, random_batch(2), "retain", target_tokens),
    ]
    history = minimise(
        model, terms, steps=3, lr=1e-3, batch_size={batch_size}, seed=0, accelerator=accelerator, **stepping
    )
    hashes = accelerator.gather(torch.tensor([int(weights_hash(model)[:12], 16)]))
    assert len(set(hashes.tolist())) == 1 and len(hashes) == accelerator.num_processes
    if accelerator.is_main_process:
        print("PROCESSES", accelerator.num_processes, flush=True)
        print("LOSSES", [list(step) for step in history.losses], flush=True)
accelerator.end_training()
"""


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one_with_the_doubled_batch(tmp_path):
    found = {}
    root = Path(__file__).parents[1]
    for n, batch_size in ((1, 4), (2, 2)):
        script = tmp_path / f"worker{n}.py"
        script.write_text(WORKER.format(tests=str(root / "tests"), batch_size=batch_size))
        # `accelerate launch --cpu --num_processes 2` starts one process unless MPI is there; torchrun starts two.
        launch = ["torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
        launch = launch if n == 2 else ["accelerate.commands.launch", "--cpu", "--num_processes", "1"]
        command = [sys.executable, "-m", *launch, str(script)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
        done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment, cwd=root)
        assert done.returncode == 0, done.stderr[-3000:]
        assert f"PROCESSES {n}" in done.stdout
        found[n] = [json.loads(line.split(" ", 1)[1]) for line in done.stdout.splitlines() if line.startswith("LOSSES")]
    assert len(found[1]) == 2
    torch.testing.assert_close(torch.tensor(found[2]), torch.tensor(found[1]), rtol=1e-6, atol=1e-7)


def test_weights_that_are_split_over_processes_are_refused():
    class Split:
        num_processes = 1
        distributed_type = "DistributedType.FSDP"

        def unwrap_model(self, model):
            return model

    with pytest.raises(ValueError, match="FSDP splits weights over processes"):
        minimise(tiny_llama(), terms(), steps=1, accelerator=Split(), **HOW)


def test_rmu_with_kept_states_trains_the_same_weights():
    from probe.data import Split
    from probe.methods.rmu import block_parameters, rmu

    split = Split(random_batch(0), random_batch(1))
    trained = {}
    for keep in (False, True):
        original = tiny_llama(n_layers=5)
        model = copy.deepcopy(original)
        settings = {"layer": 3, "coefficient": 4.0, "alpha": 2.0, "seed": 0, "steps": 4, "lr": 1e-2, "batch_size": 2}
        pattern = block_parameters(model, range(1, 4))
        rmu(model, split, original=original, parameters=pattern, keep_states=keep, **settings)
        trained[keep] = dict(model.named_parameters())
    for name, parameter in trained[True].items():
        torch.testing.assert_close(parameter, trained[False][name], rtol=1e-3, atol=1e-4)
    assert not torch.equal(
        trained[True]["model.layers.2.mlp.down_proj.weight"], original.model.layers[2].mlp.down_proj.weight
    )


# --- as Hugging Face's trainer and OpenUnlearning do ---


@pytest.mark.parametrize(("name", "theirs"), [("constant", "constant_with_warmup"), ("linear", None), ("cosine", None)])
@pytest.mark.parametrize("warmup", [0, 3, 0.3, 12])
def test_h7_factors_of_the_learning_rate_are_those_of_transformers(name, theirs, warmup):
    from transformers import get_scheduler

    steps = 12
    optimiser = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    rising = warmup if warmup >= 1 else math.floor(warmup * steps)
    judge = get_scheduler(theirs or name, optimiser, num_warmup_steps=rising, num_training_steps=steps)
    ours = WarmUp(name, steps, warmup)
    for k in range(steps):
        assert ours((k + 1) / steps) == pytest.approx(judge.get_last_lr()[0], abs=1e-12)
        optimiser.step()
        judge.step()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"schedule": "linear", "warmup": 9}, "at most the run's 2"),
        ({"schedule": "linear", "warmup": 1.5}, "a whole number of steps"),
        ({"schedule": "linear", "warmup": -1}, "got -1"),
        ({"schedule": one_cycle, "warmup": 1}, "goes with a schedule by name"),
    ],
)
def test_h7_schedules_that_cannot_be_are_refused(changes, said):
    model = tiny_llama()
    before = weights_hash(model)
    with pytest.raises(ValueError, match=said):
        minimise(model, terms(), steps=2, **HOW, **changes)
    assert weights_hash(model) == before


def test_h7_a_warm_up_alone_goes_on_constantly():
    one, other = tiny_llama(), tiny_llama()
    minimise(one, terms(), steps=3, warmup=2, **HOW)
    minimise(other, terms(), steps=3, warmup=2, schedule="constant", **HOW)
    assert weights_hash(one) == weights_hash(other)
    plainly = tiny_llama()
    minimise(plainly, terms(), steps=3, **HOW)
    assert weights_hash(plainly) != weights_hash(one)


def test_h9_rows_of_every_term_but_the_first_may_be_drawn_with_replacement():
    """Counted over 60 draws of 2 among 4 rows: without replacement each row comes as often as the others."""

    def drawn(**changes):
        seen = {"forget": [], "retain": []}

        def noting(side):
            def objective(model, batch):
                seen[side].extend(tuple(row) for row in batch.tokens_BT[:, :5].tolist())
                return nll(model, batch)

            return objective

        listed = [Term(1.0, noting("forget"), random_batch(0), "forget")]
        listed.append(Term(1.0, noting("retain"), random_batch(1), "retain"))
        minimise(tiny_llama(n_layers=1), listed, steps=60, **HOW, **changes)
        return {side: sorted(rows.count(row) for row in set(rows)) for side, rows in seen.items()}

    assert drawn() == {"forget": [30] * 4, "retain": [30] * 4}
    counts = drawn(replacement=True)
    assert counts["forget"] == [30] * 4
    assert sum(counts["retain"]) == 120
    assert len(set(counts["retain"])) > 1
    assert counts == drawn(replacement=True)
