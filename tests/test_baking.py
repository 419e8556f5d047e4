"""Suppression baked into weights: the losses by finite differences, the subspaces by identities, the right block."""

import copy

import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama

from probe.checkpoints import weights_hash
from probe.data import Split
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import GatedCoding, JumpRelu, Linear, Relu, TopKCoding
from probe.dictionaries.made import pca_dictionary
from probe.hooks import captured, our_hooks
from probe.interventions.activations import activations, content
from probe.methods.crisp import crisp, crisp_released
from probe.methods.orthogonalised import orthogonalise, orthogonalised, spanned, writers
from probe.methods.rmu import random_target
from probe.methods.sspu import sspu
from probe.objectives.features import (
    FeatureActivity,
    LiftedActivity,
    StatesHeld,
    UpdateOutside,
    WatchedFeatures,
    context_tokens,
)
from probe.sites import Site

SITE = Site(1)
NUMBERS = {"lr": 1e-2, "batch_size": 4, "seed": 0}


def made(activation: str = "relu", width: int = 16, n_features: int = 24) -> Autoencoder:
    """A random dictionary in float64 of an architecture."""
    g = torch.Generator().manual_seed(0)
    draw = {"generator": g, "dtype": torch.float64}
    encoder_DF, rows_FD = torch.randn(width, n_features, **draw), torch.randn(n_features, width, **draw)
    bias_F, shift_D = 0.1 * torch.randn(n_features, **draw), 0.1 * torch.randn(width, **draw)
    how = {
        "relu": Relu(bias_F),
        "jumprelu": JumpRelu(bias_F, torch.full_like(bias_F, 0.05)),
        "topk": TopKCoding(bias_F, 6),
        "gated": GatedCoding(bias_F, torch.ones_like(bias_F), bias_F),
    }[activation]
    return Autoencoder(Linear(encoder_DF, shift_D, how), rows_FD, shift_D)


def hidden(model, batch, site=SITE):
    with captured(model, [site]) as states:
        model(**batch.inputs)
    return states[site][context_tokens(batch)]


@pytest.fixture
def original():
    return tiny_gpt2()


@pytest.fixture
def model(original):
    other = copy.deepcopy(original)
    with torch.no_grad():
        generator = torch.Generator().manual_seed(3)
        for p in other.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return other


# --- the losses ---


def objectives(original):
    watched = {kind: (WatchedFeatures(SITE, made(kind), (0, 3, 7, 11)),) for kind in ("relu", "jumprelu", "topk")}
    two = (*watched["relu"], WatchedFeatures(Site(2), made("topk"), (1, 2)))
    named = dict(original.named_parameters())
    axes = {"transformer.h.0.mlp.c_proj.weight": 1, "transformer.h.1.mlp.c_proj.weight": 1}
    basis = spanned(made(), (0, 1, 2))
    before = {name: named[name].detach().clone() for name in axes}
    return {
        **{f"activity {kind}": FeatureActivity(watched[kind], 2.0) for kind in watched},
        "activity, chosen alone": FeatureActivity(watched["jumprelu"], 0.0),
        "activity at two sites": FeatureActivity(two, 0.5),
        **{f"lifted {kind}": LiftedActivity(watched[kind], original, 5.0) for kind in watched},
        "held vectors": StatesHeld(original, (SITE, Site(2)), "vectors"),
        "held entries": StatesHeld(original, (Site(0, "norm"),), "entries"),
        "outside": UpdateOutside(before, axes, basis),
    }


@pytest.mark.parametrize("name", list(objectives(tiny_gpt2())))
def test_gradients_agree_with_finite_differences(name, original, model):
    objective, batch, step = objectives(original)[name], random_batch(), 1e-6
    loss = objective(model, batch)
    assert loss.shape == ()
    assert loss.item() > 0
    loss.backward()
    generator = torch.Generator().manual_seed(1)
    direction = {
        n: torch.randn(p.shape, generator=generator, dtype=p.dtype)
        for n, p in model.named_parameters()
        if p.grad is not None
    }
    slope = sum((p.grad * direction[n]).sum().item() for n, p in model.named_parameters() if n in direction)
    ends = []
    for sign in (1, -1):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for n, p in moved.named_parameters():
                if n in direction:
                    p.add_(sign * step * direction[n])
            ends.append(objective(moved, batch).item())
    assert (ends[0] - ends[1]) / (2 * step) == pytest.approx(slope, rel=2e-5, abs=1e-9)
    assert not our_hooks(model)


def test_activity_is_the_paper_s_formula(model):
    batch, sae, chosen = random_batch(), made("topk"), [2, 5]
    f_NF = sae.encode(hidden(model, batch))
    expected = f_NF[:, chosen].mean(1).mean() + 3.0 * f_NF.mean(1).mean()
    found = FeatureActivity((WatchedFeatures(SITE, sae, tuple(chosen)),), 3.0)(model, batch)
    torch.testing.assert_close(found, expected)


def test_lifted_activity_gives_a_gradient_to_features_below_their_threshold(original, model):
    batch, chosen = random_batch(), (4, 9, 13)
    sae = made("jumprelu")
    before_NF, h_ND = sae.encode(hidden(original, batch)), hidden(model, batch)
    raw_NF = (h_ND - sae.encoder.shift_D) @ sae.encoder.encoder_DF
    pre_NF = raw_NF + sae.encoder.activation.bias_F
    values = []
    for n in range(len(h_ND)):
        lift = abs(5.0 * pre_NF[n].mean())
        for j in chosen:
            value = pre_NF[n, j] + (lift if before_NF[n, j] > 0 else 0)
            if value > 0.05:
                values.append(value)
    found = LiftedActivity((WatchedFeatures(SITE, sae, chosen),), original, 5.0)(model, batch)
    torch.testing.assert_close(found, torch.stack(values).mean())
    # Without a lift it is the mean of what is on, and nothing on gives 0 rather than NaN.
    plain = LiftedActivity((WatchedFeatures(SITE, sae, chosen),), original, 0.0)(model, batch)
    f_NK = sae.encode(h_ND)[:, list(chosen)]
    torch.testing.assert_close(plain, f_NK[f_NK > 0].mean())
    high = Autoencoder(
        Linear(
            sae.encoder.encoder_DF,
            sae.encoder.shift_D,
            JumpRelu(torch.zeros(24).double(), torch.full((24,), 1e9).double()),
        ),
        sae.directions_FD,
        sae.bias_E,
    )
    silent = LiftedActivity((WatchedFeatures(SITE, high, chosen),), original, 5.0)(model, batch)
    silent.backward()
    assert silent.item() == 0


def test_states_held_is_zero_at_the_original_and_differs_by_the_width(original, model):
    batch = random_batch()
    assert StatesHeld(original, (SITE,), "vectors")(copy.deepcopy(original), batch).item() == 0
    vectors, entries = (StatesHeld(original, (SITE,), over)(model, batch) for over in ("vectors", "entries"))
    torch.testing.assert_close(vectors, 16 * entries)


def test_updates_within_the_subspace_cost_nothing(original):
    basis_DR = spanned(made(), (0, 1, 2))
    name = "transformer.h.1.mlp.c_proj.weight"
    model = copy.deepcopy(original)
    weight = dict(model.named_parameters())[name]
    objective = UpdateOutside({name: weight.detach().clone()}, {name: 1}, basis_DR)
    inside = torch.randn(weight.shape[0], 3, dtype=torch.float64) @ basis_DR.T
    outside = torch.randn(weight.shape, dtype=torch.float64)
    with torch.no_grad():
        weight += inside
        assert objective(model, random_batch()).item() < 1e-20
        weight += outside
    expected = (outside - outside @ basis_DR @ basis_DR.T).square().sum()
    torch.testing.assert_close(objective(model, random_batch()), expected)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (lambda m: WatchedFeatures(SITE, made(), (99,)), "features in 0..23"),
        (lambda m: WatchedFeatures(SITE, made(), ()), "at least one"),
        (lambda m: FeatureActivity((), 1.0), "one or more different sites"),
        (lambda m: FeatureActivity((WatchedFeatures(SITE, made(), (1,)),) * 2, 1.0), "different sites"),
        (lambda m: FeatureActivity((WatchedFeatures(SITE, made(), (1,)),), -1.0), "spread must be"),
        (lambda m: LiftedActivity((WatchedFeatures(SITE, made("gated"), (1,)),), m, 1.0), "needs pre-activations"),
        (lambda m: StatesHeld(m, (), "vectors"), "no sites"),
        (lambda m: UpdateOutside({}, {}, torch.eye(4)), "at least one weight"),
        (lambda m: UpdateOutside({"w": torch.ones(3, 4)}, {"w": 0}, torch.eye(4)), "writes 3 numbers"),
        (lambda m: UpdateOutside({"w": torch.ones(4, 4)}, {"w": 0}, torch.ones(4, 2)), "not orthonormal"),
    ],
)
def test_objectives_that_mean_nothing(make, said, original):
    with pytest.raises(ValueError, match=said):
        make(original)


# --- the methods ---


@pytest.fixture(scope="module")
def ground():
    """A Llama, rows, and components that belong to its block 1."""
    model, data = tiny_llama(), Split(random_batch(0), random_batch(1))
    return model, data, pca_dictionary(activations(model, data.retain, [SITE], tokens=content)[SITE], 8)


def silenced(ground, run, **given):
    start, data, sae = ground
    model = copy.deepcopy(start)
    result = run(model, data, original=start, saes={SITE: sae}, special_ids=(0, 1, 2), **NUMBERS, **given)
    return model, result, sae


CRISP = {
    "features": 4,
    "ratio": 1.0,
    "spread": 0.0,
    "forget_weight": 1.0,
    "retain_weight": 0.01,
    "coherence_weight": 0.0,
}


@pytest.mark.parametrize(
    ("run", "given"),
    [
        (crisp, CRISP),
        (crisp_released, {"features": 4, "ratio": 1e-3, "lift": 5.0, "beta": 0.01, "gamma": 0.0}),
    ],
)
def test_chosen_features_fall_silent(ground, run, given):
    model, result, sae = silenced(ground, run, steps=25, **given)
    chosen = list(result.features[SITE])
    means = []
    for one in (ground[0], model):
        hidden_ND = activations(one, ground[1].forget, [SITE], tokens=content)[SITE]
        means.append(sae.encode(hidden_ND)[:, chosen].mean().item())
    assert means[1] < 0.5 * means[0]
    assert result.history.names == ("forget", "retain")


def test_low_rank_adapters_are_merged_into_the_model_s_own_weights(ground):
    pytest.importorskip("peft")
    names = [n for n, _ in ground[0].named_parameters()]
    model, _, _ = silenced(ground, crisp, steps=2, rank=2, **CRISP)
    old = dict(ground[0].named_parameters())
    now = dict(model.named_parameters())
    assert list(now) == names
    changed = {n for n in names if not torch.equal(now[n], old[n])}
    assert changed == {n for n in names if "layers.0." in n or "layers.1." in n} - {n for n in names if "norm" in n}
    for n in changed:
        assert torch.linalg.matrix_rank((now[n] - old[n]).double(), rtol=1e-4).item() <= 2
    # A run that fails leaves no adapter behind either.
    broken = copy.deepcopy(ground[0])
    with pytest.raises(FloatingPointError):
        crisp(
            broken, ground[1], original=ground[0], saes={SITE: ground[2]}, special_ids=(0, 1, 2), steps=3, rank=2,
            **{**CRISP, **NUMBERS, "lr": float("inf")},
        )  # fmt: skip
    assert [n for n, _ in broken.named_parameters()] == names


def test_a_dictionary_of_another_block_is_refused(bed):
    few = Split(bed.split.forget.select(range(8)), bed.split.retain.select(range(40)))
    model, special = copy.deepcopy(bed.original), tuple(bed.tokenizer.all_special_ids)
    common = {"special_ids": special, "features": 3}
    for off in (3, 5):
        with pytest.raises(ValueError, match="layer 4"):
            crisp(
                model, few, original=bed.original, saes={Site(off): bed.sae}, **common, **NUMBERS, steps=1,
                **{k: v for k, v in CRISP.items() if k != "features"},
            )  # fmt: skip
        with pytest.raises(ValueError, match="layer 4"):
            orthogonalised(model, few, sae=bed.sae, site=Site(off), ratio=1.0, **common)
    assert weights_hash(model) == weights_hash(bed.original)


def test_a_projected_target_lies_in_the_span_of_other_features(ground):
    start, data, sae = ground
    model = copy.deepcopy(start)
    given = {"features": 2, "coefficient": 3.0, "alpha": 1.0, "steps": 2, "special_ids": (0, 1, 2)}
    result = sspu(model, data, original=start, sae=sae, site=SITE, outside_weight=1.0, **given, **NUMBERS)
    basis_DR = spanned(sae, result.irrelevant).float()
    target_D = result.target_D
    torch.testing.assert_close(basis_DR @ (basis_DR.T @ target_D), target_D)
    assert target_D.norm().item() == pytest.approx(3.0)
    drawn_D = random_target(model, 3.0, 0)
    assert torch.nn.functional.cosine_similarity(target_D, drawn_D, dim=0) > 0
    assert not set(result.relevant) & set(result.irrelevant)
    assert result.history.names == ("forget", "retain", "outside")
    assert result.history.losses[0][2] == 0 < result.history.losses[1][2]
    # A price keeps the update where relevant features write.
    keep_DR = spanned(sae, result.relevant).float()
    outside = {}
    for weight in (0.0, 1e4):
        model = copy.deepcopy(start)
        sspu(
            model, data, original=start, sae=sae, site=SITE, outside_weight=weight, **{**given, "steps": 12}, **NUMBERS
        )
        name = "model.layers.1.mlp.down_proj.weight"
        change_DM = dict(model.named_parameters())[name] - dict(start.named_parameters())[name]
        outside[weight] = (change_DM - keep_DR @ (keep_DR.T @ change_DM)).square().sum().item()
    assert outside[1e4] < 0.1 * outside[0.0]


@pytest.mark.parametrize("make", [tiny_llama, tiny_gpt2], ids=["llama", "gpt2"])
def test_nothing_is_written_along_directions_that_were_taken_out(make):
    model, batch = make(), random_batch()
    sae = made()
    basis_DR = spanned(sae, (0, 1, 2)).to(next(model.parameters()).dtype)
    sites = [Site(layer) for layer in range(3)]
    orthogonalise(model, basis_DR)
    with captured(model, sites) as states, torch.no_grad():
        model(**batch.inputs)
    for site in sites:
        along = (states[site] @ basis_DR).norm() / states[site].norm()
        assert along < (1e-12 if states[site].dtype == torch.float64 else 1e-6)
    before = weights_hash(model)
    orthogonalise(model, basis_DR)
    after = {n: p.clone() for n, p in model.named_parameters()}
    assert weights_hash(model) == before or all(
        torch.allclose(p, after[n], atol=1e-7) for n, p in model.named_parameters()
    )
    if make is tiny_gpt2:
        found = writers(model)
        assert {"transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0.mlp.c_proj.bias"} <= set(found)
        assert found["transformer.h.2.attn.c_proj.weight"] == 1


def test_a_family_that_writes_otherwise_is_refused_and_left_alone():
    from transformers import Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(0)
    model = Gemma2ForCausalLM(
        Gemma2Config(
            vocab_size=48, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
            num_key_value_heads=1, head_dim=8, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        )
    ).eval()  # fmt: skip
    with torch.no_grad():
        for block in model.model.layers:
            # As trained models have it: the norm behind the MLP scales every channel otherwise.
            block.post_feedforward_layernorm.weight.uniform_(-0.5, 2.0)
    data = Split(random_batch(0), random_batch(1))
    sae = pca_dictionary(activations(model, data.retain, [SITE], tokens=content)[SITE], 8)
    before = weights_hash(model)
    with pytest.raises(ValueError, match="ways not known here"):
        orthogonalised(model, data, sae=sae, site=SITE, special_ids=(0, 1, 2), features=2, ratio=1e-3)
    assert weights_hash(model) == before


def test_orthogonalised_says_what_it_took(ground):
    start, data, sae = ground
    model = copy.deepcopy(start)
    found = orthogonalised(model, data, sae=sae, site=SITE, special_ids=(0, 1, 2), features=3, ratio=1e-3)
    assert found.share_after < 1e-10 < found.share_before
    assert 1 <= len(found.features) <= 3
    part = copy.deepcopy(start)
    some = orthogonalised(
        part, data, sae=sae, site=SITE, special_ids=(0, 1, 2), features=3, ratio=1e-3, parameters=r"layers\.0\."
    )
    assert set(some.names) == {"model.layers.0.self_attn.o_proj.weight", "model.layers.0.mlp.down_proj.weight"}
    with pytest.raises(ValueError, match="matches none of the weights"):
        orthogonalise(part, spanned(sae, (0,)), parameters="q_proj")
    with pytest.raises(ValueError, match="span 16 of 16"):
        spanned(made().to(dtype=torch.float32), range(24))
