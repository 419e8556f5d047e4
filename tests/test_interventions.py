"""Identities of activation edits: what they remove, what they leave, and that strength zero changes no bit."""

from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_gpt2, tiny_llama
from jaxtyping import TypeCheckError
from torch import Tensor

from probe.data import Split
from probe.dictionaries.fit import fvu
from probe.hooks import captured, edited
from probe.interventions.activations import activations, answers, check_direction, content
from probe.interventions.attaching import check_site
from probe.interventions.features import Clamp, ScaleFeatures, norm_relative
from probe.interventions.probing import fit_probe
from probe.interventions.projection import Cap, Project
from probe.interventions.replacement import Noise, Replace, Scale
from probe.interventions.steering import Steer, difference_of_means, direction
from probe.objectives.token import nll
from probe.positions import At, Only
from probe.sites import Site

WIDTH = 16


@dataclass(frozen=True)
class Planted:
    """A dictionary that reconstructs exactly: both signs of an orthonormal basis, read through a ReLU."""

    W_dec: Tensor = field(repr=False)

    def encode(self, x: Tensor) -> Tensor:
        return (x @ self.W_dec.T).relu()

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec


def planted(seed: int = 0, dtype: torch.dtype = torch.float32) -> Planted:
    torch.manual_seed(seed)
    basis_DD = torch.linalg.qr(torch.randn(WIDTH, WIDTH, dtype=torch.float64)).Q
    return Planted(torch.cat([basis_DD, -basis_DD]).to(dtype))


def hidden(seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(3, 5, WIDTH, dtype=torch.float64).to(dtype)


def vector(seed: int = 1) -> Tensor:
    torch.manual_seed(seed)
    return torch.randn(WIDTH)


def logits(model, batch):
    with torch.no_grad():
        return model(**batch.inputs, use_cache=False).logits


# --- steering, projection, replacement ---


@pytest.mark.parametrize(
    "edit",
    [
        Steer(vector(), scale=0.0),
        Project(vector(), strength=0.0),
        Scale(1.0),
        Noise(0.0, seed=0),
        Clamp(planted(), (), 0.0),
        ScaleFeatures(planted(), (1, 2), 1.0),
    ],
)
def test_strength_zero_returns_the_very_tensor(edit):
    hidden_BTD = hidden()
    assert edit(hidden_BTD) is hidden_BTD


def test_steering_adds_the_scaled_vector_at_every_token_and_undoes_itself():
    hidden_BTD, direction_D = hidden(dtype=torch.float64), vector().double()
    there = Steer(direction_D, scale=2.5)(hidden_BTD)
    torch.testing.assert_close(there - hidden_BTD, (2.5 * direction_D).expand_as(hidden_BTD))
    torch.testing.assert_close(Steer(direction_D, scale=-2.5)(there), hidden_BTD)


def test_steering_the_last_block_shifts_the_normed_residual_as_numpy_says():
    model, batch, direction_D = tiny_gpt2(), random_batch(), vector().double()
    with captured(model, [Site(2)]) as states:
        logits(model, batch)
        before_BTD = states[Site(2)]
    steered_BTD = before_BTD.numpy() + 3 * direction_D.numpy()
    norm = model.transformer.ln_f
    mean, std = steered_BTD.mean(-1, keepdims=True), np.sqrt(steered_BTD.var(-1, keepdims=True) + norm.eps)
    weight, bias, head = (p.detach().numpy() for p in (norm.weight, norm.bias, model.lm_head.weight))
    expected = ((steered_BTD - mean) / std * weight + bias) @ head.T
    with edited(model, {Site(2): Steer(direction_D, scale=3.0)}):
        np.testing.assert_allclose(logits(model, batch).numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_projection_leaves_nothing_along_the_direction_and_is_idempotent(dtype):
    hidden_BTD, project = hidden(dtype=dtype), Project(7 * vector())
    once = project(hidden_BTD)
    tolerance = {torch.float64: 1e-6, torch.float32: 1e-5, torch.bfloat16: 2e-2}[dtype]
    assert (once.double() @ vector().double()).abs().max() < tolerance * vector().norm()
    torch.testing.assert_close(project(once), once, atol=tolerance, rtol=0)
    assert once.dtype == dtype


@pytest.mark.parametrize(("length", "dtype"), [(1e-25, torch.float32), (1e19, torch.float32), (1e-200, torch.float64)])
def test_r17_a_direction_may_be_of_any_length(length, dtype):
    hidden_BTD, d_D = torch.randn(2, 3, 8), torch.randn(8, dtype=torch.float64)
    given_D = (d_D * length).to(dtype)
    unit_D = given_D.double() / length
    unit_D = unit_D / unit_D.norm()
    along_BT = hidden_BTD.double() @ unit_D
    projected = hidden_BTD.double() - along_BT[..., None] * unit_D
    capped = hidden_BTD.double() + (along_BT.clamp(-0.1, 0.1) - along_BT)[..., None] * unit_D
    torch.testing.assert_close(Project(given_D)(hidden_BTD).double(), projected, atol=1e-5, rtol=0)
    torch.testing.assert_close(Cap(given_D, low=-0.1, high=0.1)(hidden_BTD).double(), capped, atol=1e-5, rtol=0)


def test_projection_of_strength_two_reflects():
    hidden_BTD, mirror = hidden(dtype=torch.float64), Project(vector().double(), strength=2.0)
    torch.testing.assert_close(mirror(mirror(hidden_BTD)), hidden_BTD)
    torch.testing.assert_close(mirror(hidden_BTD).norm(dim=-1), hidden_BTD.norm(dim=-1))


def test_patching_a_whole_block_output_gives_the_other_run_and_one_position_only_what_follows():
    model, batch = tiny_llama(), random_batch(0)
    other = random_batch(0)
    other.tokens_BT[:, 3] = 7
    with captured(model, [Site(1)]) as states:
        there_BTV = logits(model, other)
        patch_BTD = states[Site(1)]
    with edited(model, {Site(1): Replace(patch_BTD)}):
        assert torch.equal(logits(model, batch), there_BTV)
    before_BTV = logits(model, batch)
    with edited(model, {Site(1): At(Replace(patch_BTD), Only((3,)))}):
        after_BTV = logits(model, batch)
    assert torch.equal(after_BTV[:, :3], before_BTV[:, :3])
    assert not torch.equal(after_BTV[:, 3], before_BTV[:, 3])


def test_noise_is_fixed_by_its_seed_and_has_its_size():
    zeros_BTD = torch.zeros(64, 16, WIDTH)
    noise_BTD = Noise(0.5, seed=1)(zeros_BTD)
    assert torch.equal(noise_BTD, Noise(0.5, seed=1)(zeros_BTD))
    assert not torch.equal(noise_BTD, Noise(0.5, seed=2)(zeros_BTD))
    assert noise_BTD.std().item() == pytest.approx(0.5, rel=0.05)
    assert torch.equal(Scale(-2.0)(noise_BTD), -2 * noise_BTD)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_float32_vectors_and_saes_act_in_the_dtype_of_the_hidden_states_39_59(dtype):
    hidden_BTD = hidden(dtype=dtype)
    for edit in (Steer(vector(), scale=1.0), Project(vector()), Clamp(planted(), (0, 1), -1.0), Noise(1.0, 0)):
        assert edit(hidden_BTD).dtype == dtype
    model = tiny_llama(dtype=torch.bfloat16)
    with edited(model, {Site(1): Steer(vector(), scale=4.0)}):
        assert logits(model, random_batch()).dtype == torch.bfloat16


def test_a_vector_beyond_float16_is_refused():
    with pytest.raises(ValueError, match="float16"):
        Steer(vector(), scale=1e6)(hidden(dtype=torch.float16))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        (torch.ones(1), "shape"),
        (torch.ones(3, WIDTH), "shape"),
        (torch.zeros(WIDTH), "zero"),
        (torch.full((WIDTH,), float("nan")), "NaN"),
        (torch.full((WIDTH,), float("inf")), "infinity"),
        (torch.ones(WIDTH, dtype=torch.long), "floating"),
    ],
)
def test_bad_vectors_are_refused_when_the_edit_is_made_53_54_55(vector, message):
    with pytest.raises(ValueError, match=message):
        check_direction(vector, "the vector")
    for make in (lambda: Steer(vector, scale=1.0), lambda: Project(vector)):
        # Where tests check shapes at run time, the annotation may object before the message is made.
        with pytest.raises((ValueError, TypeCheckError)):
            make()


def test_widths_are_named_52():
    for edit in (Steer(torch.ones(9), scale=1.0), Project(torch.ones(9)), Replace(torch.ones(3, 5, 9))):
        with pytest.raises(ValueError, match=r"width 9, the hidden states here have width 16"):
            edit(hidden())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Steer(vector(), scale=float("nan")), "scale"),
        (lambda: Project(vector(), strength=float("inf")), "strength"),
        (lambda: Scale(float("nan")), "factor"),
        (lambda: Noise(-1.0, seed=0), "at least 0"),
        (lambda: Replace(torch.full((1, 2, 3), float("nan"))), "NaN"),
        (lambda: Only((-1,)), "must be different numbers from 0"),
        (lambda: Only((2, 2)), "must be different numbers from 0"),
        (lambda: Replace(hidden()[:, :1])(hidden()), "prompt positions only"),
    ],
)
def test_bad_numbers_positions_and_shapes_are_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# --- makers of directions ---


def test_difference_of_means_agrees_with_numpy_and_refuses_equal_means_55():
    forget_ND, retain_ND = hidden(0).flatten(0, 1), hidden(1).flatten(0, 1)[:7] + 2
    expected = forget_ND.numpy().mean(0) - retain_ND.numpy().mean(0)
    np.testing.assert_allclose(difference_of_means(forget_ND, retain_ND).numpy(), expected, atol=1e-6)
    with pytest.raises(ValueError, match="both classes have the same mean"):
        difference_of_means(forget_ND, forget_ND)
    with pytest.raises(ValueError, match="retain side has no"):
        difference_of_means(forget_ND, retain_ND[:0])


def test_direction_reads_answer_tokens_whatever_the_chunks():
    model, split = tiny_gpt2(), Split(random_batch(0, rows=5), random_batch(1, rows=3))
    found_D = direction(model, split, Site(1), batch_size=2)
    means = []
    for batch in (split.forget, split.retain):
        with torch.no_grad():
            states = model(**batch.inputs, output_hidden_states=True).hidden_states[2]
        means.append(states[batch.target_BT].mean(0))
    torch.testing.assert_close(found_D, means[0] - means[1])
    torch.testing.assert_close(direction(model, split, Site(1)), found_D)


def test_content_leaves_out_padding_and_the_first_token():
    batch = random_batch()
    assert (content(batch).sum(1) == batch.attention_BT.sum(1) - 1).all()
    assert not content(batch)[:, 0].any()
    with pytest.raises(ValueError, match="no token"):
        activations(tiny_llama(), batch, [Site(0)], tokens=lambda b: torch.zeros_like(b.target_BT))


def test_the_probe_is_sklearns_and_its_direction_carries_what_it_reads():
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    torch.manual_seed(0)
    spread_D = torch.logspace(-1, 2, WIDTH, dtype=torch.float64)
    forget_ND = (torch.randn(80, WIDTH, dtype=torch.float64) + 0.5) * spread_D
    retain_ND = torch.randn(120, WIDTH, dtype=torch.float64) * spread_D
    probe = fit_probe(forget_ND, retain_ND)
    both, labels = torch.cat([forget_ND, retain_ND]).numpy(), np.r_[np.ones(80), np.zeros(120)]
    judge = make_pipeline(StandardScaler(), LogisticRegression(class_weight="balanced", max_iter=1000))
    expected = judge.fit(both, labels).decision_function(both)
    np.testing.assert_allclose(probe(torch.from_numpy(both)).numpy(), expected, rtol=1e-6, atol=1e-8)
    assert probe.score(forget_ND, retain_ND) == pytest.approx(probe.train_accuracy)
    assert probe.train_accuracy > 0.8
    # Without its direction the probe sees the same number everywhere.
    blind_N = probe(Project(probe.direction_D)(forget_ND[None])[0])
    torch.testing.assert_close(blind_N, torch.full_like(blind_N, probe.bias))


def test_a_probe_needs_both_classes_and_finite_numbers_60():
    some_ND = hidden().flatten(0, 1)
    with pytest.raises(ValueError, match="15 forget and 0 retain"):
        fit_probe(some_ND, some_ND[:0])
    with pytest.raises(ValueError, match="NaN"):
        fit_probe(some_ND, some_ND * float("nan"))


# --- SAE features ---


def test_zero_ablation_removes_exactly_the_planted_component():
    sae, hidden_BTD = planted(dtype=torch.float64), hidden(dtype=torch.float64)
    both_signs = Clamp(sae, (3, 3 + WIDTH), 0.0)(hidden_BTD)
    torch.testing.assert_close(both_signs, Project(sae.W_dec[3])(hidden_BTD))
    one_sign = Clamp(sae, (3,), 0.0)(hidden_BTD)
    expected_BT = (hidden_BTD @ sae.W_dec[3]).clamp(max=0)
    torch.testing.assert_close(one_sign @ sae.W_dec[3], expected_BT)
    torch.testing.assert_close(ScaleFeatures(sae, (3,), 0.0)(hidden_BTD), one_sign)


def test_a_clamp_sets_active_features_and_touches_no_other_token():
    sae, hidden_BTD = planted(), hidden()
    active_BT = sae.encode(hidden_BTD)[..., 3] > 0
    after_BTD = Clamp(sae, (3,), -4.0)(hidden_BTD)
    torch.testing.assert_close((after_BTD @ sae.W_dec[3])[active_BT], torch.full((int(active_BT.sum()),), -4.0))
    assert torch.equal(after_BTD[~active_BT], hidden_BTD[~active_BT])
    assert active_BT.any()
    assert not active_BT.all()
    doubled_BTD = ScaleFeatures(sae, (3,), 2.0)(hidden_BTD)
    torch.testing.assert_close(
        (doubled_BTD - hidden_BTD)[active_BT], (hidden_BTD @ sae.W_dec[3])[active_BT, None] * sae.W_dec[3]
    )


def test_a_value_per_feature_follows_the_order_of_the_features():
    sae, hidden_BTD = planted(dtype=torch.float64), hidden(dtype=torch.float64)
    after_BTF = sae.encode(hidden_BTD) * 0 + Clamp(sae, (5, 2), torch.tensor([-1.0, -2.0]))(hidden_BTD) @ sae.W_dec.T
    f_BTF = sae.encode(hidden_BTD)
    for j, value in ((5, -1.0), (2, -2.0)):
        torch.testing.assert_close(
            after_BTF[..., j][f_BTF[..., j] > 0], torch.full_like(f_BTF[..., j][f_BTF[..., j] > 0], value)
        )


def test_rounding_noise_is_no_activity():
    sae = planted()
    hidden_BTD = (1e3 * sae.W_dec[0]).expand(2, 3, WIDTH).contiguous()
    noisy = [j for j in range(1, 2 * WIDTH) if (sae.encode(hidden_BTD)[..., j] > 0).any()]
    assert noisy
    assert torch.equal(Clamp(sae, noisy, -50.0)(hidden_BTD), hidden_BTD)


def test_clamping_nothing_or_features_that_never_fire_leaves_the_logits_bit_for_bit():
    model, batch = tiny_llama(), random_batch()
    before_BTV = logits(model, batch)
    dead = Planted(torch.cat([planted().W_dec, torch.zeros(2, WIDTH)]))
    for edit in (Clamp(planted(), (), -5.0), Clamp(dead, (2 * WIDTH, 2 * WIDTH + 1), -5.0)):
        with edited(model, {Site(1): edit}):
            assert torch.equal(logits(model, batch), before_BTV)
    with edited(model, {Site(1): Clamp(planted(), (0,), -5.0)}):
        assert not torch.equal(logits(model, batch), before_BTV)


def test_gradients_through_a_clamp_agree_with_finite_differences():
    model, batch, sae = tiny_gpt2(), random_batch(), planted(dtype=torch.float64)
    weight = model.transformer.h[0].mlp.c_proj.weight
    with edited(model, {Site(1): [Clamp(sae, (0, 7), -3.0), ScaleFeatures(sae, (4,), -1.5)]}):
        (gradient,) = torch.autograd.grad(nll(model, batch), [weight])
        torch.manual_seed(0)
        step, eps = torch.randn_like(weight), 1e-6
        with torch.no_grad():
            values = []
            for sign in (1, -2):
                weight += sign * eps * step
                values.append(nll(model, batch))
    torch.testing.assert_close((values[0] - values[1]) / (2 * eps), (gradient * step).sum(), rtol=1e-6, atol=1e-9)


def test_a_clamp_acts_alike_with_and_without_a_cache():
    model, sae = tiny_llama(), planted()
    prompt_BT = random_batch().tokens_BT[:1, :4]
    mask_BT = torch.ones_like(prompt_BT)
    texts = {}
    with edited(model, {Site(1): Clamp(sae, tuple(range(6)), -8.0)}), torch.no_grad():
        for cache in (True, False):
            texts[cache] = model.generate(
                prompt_BT, attention_mask=mask_BT, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache
            )
    assert torch.equal(texts[True], texts[False])
    plain = model.generate(prompt_BT, attention_mask=mask_BT, max_new_tokens=8, min_new_tokens=8, do_sample=False)
    assert not torch.equal(plain, texts[True])


@pytest.mark.parametrize(
    ("features", "value", "message"),
    [
        ((-1,), 0.0, r"feature -1 does not exist; the SAE has features 0\.\.31"),
        ((32,), 0.0, "feature 32 does not exist"),
        ((3, 4, 3), 0.0, "feature 3 is given 2 times"),
        ((3,), float("nan"), "value"),
        ((3, 4), torch.zeros(3), "one finite number per feature"),
    ],
)
def test_bad_features_and_values_are_refused_58(features, value, message):
    with pytest.raises(ValueError, match=message):
        Clamp(planted(), features, value)
    if not isinstance(value, torch.Tensor) and value == 0.0:
        with pytest.raises(ValueError, match=message):
            ScaleFeatures(planted(), features, 0.0)


def test_an_sae_of_another_width_is_named_56():
    with pytest.raises(ValueError, match="the SAE has width 9, the hidden states here have width 16"):
        Clamp(Planted(torch.eye(9)), (0,), 0.0)(hidden())


def test_fvu_of_an_exact_a_constant_and_a_pca_dictionary():
    from sklearn.decomposition import PCA

    hidden_ND = hidden(dtype=torch.float64).flatten(0, 1) * torch.arange(1, WIDTH + 1)
    hidden_ND = hidden_ND - hidden_ND.mean(0)
    assert fvu(planted(dtype=torch.float64), hidden_ND) < 1e-20
    assert fvu(Planted(torch.zeros(4, WIDTH, dtype=torch.float64)), hidden_ND) == pytest.approx(1.0)
    pca = PCA(3).fit(hidden_ND.numpy())
    rows_KD = torch.from_numpy(pca.components_)
    judged = 1 - pca.explained_variance_ratio_.sum()
    assert fvu(Planted(torch.cat([rows_KD, -rows_KD])), hidden_ND) == pytest.approx(judged, rel=1e-9)
    with pytest.raises(ValueError, match="at least two"):
        fvu(planted(), hidden()[0, :1])


@dataclass(frozen=True)
class Remembering:
    """Reconstructs the activations of one layer well, others badly: principal components about their mean."""

    W_dec: Tensor
    mean_D: Tensor

    def encode(self, x: Tensor) -> Tensor:
        return ((x - self.mean_D) @ self.W_dec.T).relu()

    def decode(self, feature_acts: Tensor) -> Tensor:
        return feature_acts @ self.W_dec + self.mean_D


def test_check_site_finds_the_layer_and_refuses_its_neighbours_57():
    model, batch = tiny_llama(initializer_range=0.4), random_batch(rows=32)
    found = activations(model, batch, [Site(1)], tokens=content)[Site(1)]
    mean_D = found.mean(0)
    rows_KD = torch.linalg.svd(found - mean_D).Vh[:8]
    sae = Remembering(torch.cat([rows_KD, -rows_KD]), mean_D)
    measured = check_site(model, sae, Site(1), batch)
    assert min(measured, key=measured.get) == Site(1)
    assert len(measured) == 3
    for layer in (0, 2):
        with pytest.raises(ValueError, match="at layer 1"):
            check_site(model, sae, Site(layer), batch)
    with pytest.raises(ValueError, match="worse than the mean"):
        check_site(model, Remembering(sae.W_dec, mean_D + 10), Site(1), batch)


def test_norm_relative_values_push_one_dose_whatever_the_length_of_the_decoder_row():
    model, batch = tiny_llama(), random_batch(rows=8)
    sae = Planted(planted().W_dec * torch.linspace(0.1, 3.0, 2 * WIDTH)[:, None])
    norms_N = activations(model, batch, [Site(1)], tokens=content)[Site(1)].norm(dim=1)
    value_K = norm_relative(model, batch, Site(1), sae, (1, 9), dose=0.3)
    push_K = value_K[:, None] * sae.W_dec[[1, 9]]
    torch.testing.assert_close(push_K.norm(dim=1), torch.full((2,), 0.3 * float(np.median(norms_N))), rtol=0.1, atol=0)
    assert (value_K < 0).all()
    assert not norm_relative(model, batch, Site(1), sae, (1, 9), dose=0.0).any()


@pytest.mark.parametrize("normalise", ["none", "layer_norm"])
def test_sae_lens_dictionaries_work_even_if_their_decode_forgets_its_statistics(normalise):
    from sae_lens import StandardSAE, StandardSAEConfig

    torch.manual_seed(0)
    sae = StandardSAE(StandardSAEConfig(d_in=WIDTH, d_sae=40, device="cpu", normalize_activations=normalise))
    sae.requires_grad_(False)
    with torch.no_grad():
        sae.W_enc.normal_()
        sae.W_dec.normal_()
    hidden_BTD = hidden()
    f_BTF = sae.encode(hidden_BTD)
    before_BTD = sae.decode(f_BTF)
    f_BTF = sae.encode(hidden_BTD)
    f_BTF[..., 5] = torch.where(f_BTF[..., 5] > 0, -2.0, f_BTF[..., 5])
    expected_BTD = hidden_BTD + sae.decode(f_BTF) - before_BTD
    torch.testing.assert_close(Clamp(sae, (5,), -2.0)(hidden_BTD), expected_BTD, rtol=1e-4, atol=1e-4)


def test_a_training_sae_is_refused():
    from sae_lens import BatchTopKTrainingSAE, BatchTopKTrainingSAEConfig

    sae = BatchTopKTrainingSAE(BatchTopKTrainingSAEConfig(d_in=WIDTH, d_sae=32, k=4, device="cpu"))
    with pytest.raises(ValueError, match="save_inference_model"):
        Clamp(sae, (0,), 0.0)


def test_answers_are_targets():
    batch = random_batch()
    assert answers(batch) is batch.target_BT
