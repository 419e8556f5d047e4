"""Suppression of features: what it adds, what it leaves to the bit, and that every way of running it is the same."""

from dataclasses import replace

import beartype  # noqa: F401  nnsight gives every object a `save`, which beartype survives only if it came first
import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_llama
from scipy import stats

from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import GatedCoding, JumpRelu, Linear, Relu, TopKCoding
from probe.hooks import captured, edited
from probe.interventions.features import Clamp, ScaleFeatures
from probe.interventions.plan import compile_plan, load_plan
from probe.interventions.reach import reach
from probe.interventions.retained import Retained, retained
from probe.interventions.suppression import Suppress, chosen_features
from probe.interventions.targets import Always, Constant, Multiply, Resample, Together, Zero
from probe.positions import At, Counter, NotIds
from probe.remote import generate_under, traced
from probe.sites import Site
from probe.testing.intervention import check_intervention

WIDTH, SIZE, SITE = 16, 24, Site(1)
CHOSEN = (2, 20, 7)


def drawn(seed: int, *shape: int, dtype=torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def made(kind: str = "relu", *, dtype=torch.float64, normaliser="none", width: int = WIDTH, **changes) -> Autoencoder:
    bias_F = drawn(1, SIZE)
    activation = {
        "relu": Relu(bias_F),
        "jumprelu": JumpRelu(bias_F, drawn(2, SIZE).abs()),
        "gated": GatedCoding(drawn(2, SIZE), drawn(3, SIZE).exp(), bias_F),
        "topk": TopKCoding(bias_F, 5),
    }[kind]
    encoder = Linear(drawn(4, width, SIZE), drawn(5, width), activation)
    found = Autoencoder(encoder, drawn(6, SIZE, width) / 4, drawn(7, width), normaliser, metadata=changes)
    return found.to(dtype=dtype)


def states(seed: int = 0, dtype=torch.float64, *, rows: int = 3, length: int = 7) -> torch.Tensor:
    return drawn(10 + seed, rows, length, WIDTH, dtype=dtype)


def logits(model, batch, edits=None):
    with torch.no_grad(), edited(model, edits or {}):
        return model(**batch.inputs, use_cache=False).logits


# What is added


MODES = {
    "zero": (Zero(), lambda f, on, any_on: torch.where(on, 0.0, f)),
    "scale": (Multiply(-2.0), lambda f, on, any_on: torch.where(on, -2 * f, f)),
    "constant": (Constant(-3.0), lambda f, on, any_on: torch.where(on, -3.0, f)),
    "one each": (
        Constant(torch.tensor([-1.0, 2.0, -3.0], dtype=torch.float64)),
        lambda f, on, any_on: torch.where(on, torch.tensor([-1.0, 2.0, -3.0], dtype=torch.float64), f),
    ),
    "together": (Together(-3.0), lambda f, on, any_on: torch.where(any_on, -3.0, f)),
    "always": (Always(1.5), lambda f, on, any_on: torch.full_like(f, 1.5)),
}


@pytest.mark.parametrize("normaliser", ["none", "layer_norm", "constant_norm"])
@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated", "topk"])
@pytest.mark.parametrize("name", MODES)
def test_the_change_is_that_of_the_reconstruction(name, kind, normaliser):
    found, hidden_BTD, (mode, formula) = made(kind, normaliser=normaliser), states(), MODES[name]
    f_BTF = found.encode(hidden_BTD)
    on_BTF = found.active(f_BTF)
    any_on_BT1 = on_BTF[..., CHOSEN].any(-1, keepdim=True)
    changed_BTF = f_BTF.clone()
    changed_BTF[..., CHOSEN] = formula(f_BTF[..., CHOSEN], on_BTF[..., CHOSEN], any_on_BT1)
    expected_BTD = hidden_BTD + found.decode(changed_BTF, hidden_BTD) - found.decode(f_BTF, hidden_BTD)
    after_BTD = Suppress(found, CHOSEN, mode)(hidden_BTD)
    torch.testing.assert_close(after_BTD, expected_BTD, rtol=0, atol=1e-12)
    if name != "always":
        assert torch.equal(after_BTD[~any_on_BT1[..., 0]], hidden_BTD[~any_on_BT1[..., 0]])
    assert (after_BTD != hidden_BTD).any()


def test_the_older_names_are_the_same_edits():
    found, hidden_BTD = made("jumprelu"), states()
    for old, new in (
        (Clamp(found, CHOSEN, -2.0), Suppress(found, CHOSEN, Constant(-2.0))),
        (Clamp(found, CHOSEN, 0.0), Suppress(found, CHOSEN, Zero())),
        (ScaleFeatures(found, CHOSEN, -2.0), Suppress(found, CHOSEN, Multiply(-2.0))),
    ):
        assert torch.equal(old(hidden_BTD), new(hidden_BTD))


@pytest.mark.parametrize(
    "activation",
    [TopKCoding(drawn(1, SIZE), 5), TopKCoding(drawn(1, SIZE) - 4, 8), TopKCoding(drawn(1, SIZE), 5, True)],
)
def test_competing_features_are_those_of_the_encoder(activation):
    found = replace(made("topk"), encoder=replace(made("topk").encoder, activation=activation))
    hidden_BTD, index_K = states(rows=20), torch.tensor([3, 0, 17, 9])
    f_BTK, on_BTK = chosen_features(found, hidden_BTD, index_K)
    f_BTF = found.encode(hidden_BTD)
    torch.testing.assert_close(f_BTK, f_BTF[..., index_K], rtol=0, atol=1e-13)
    assert torch.equal(on_BTK, found.active(f_BTF)[..., index_K])
    assert on_BTK.any()
    assert not on_BTK.all()


# What is left, to the bit


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.view(torch.int32)


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "gated", "topk"])
def test_no_features_and_silent_features_change_no_bit(kind):
    found = made(kind, dtype=torch.float32)
    hidden_BTD = states(dtype=torch.float32, rows=40)
    hidden_BTD[..., 0] = -0.0
    for mode in (Zero(), Multiply(5.0), Constant(-500.0), Together(-500.0)):
        assert Suppress(found, (), mode)(hidden_BTD) is hidden_BTD
    silent_BT = ~found.active(found.encode(hidden_BTD))[..., CHOSEN].any(-1)
    assert silent_BT.any()
    for mode in (Zero(), Multiply(5.0), Constant(-500.0), Together(-500.0)):
        after_BTD = Suppress(found, CHOSEN, mode)(hidden_BTD)
        assert torch.equal(bits(after_BTD)[silent_BT], bits(hidden_BTD)[silent_BT])
    assert Suppress(found, CHOSEN, Multiply(1.0))(hidden_BTD) is hidden_BTD
    dead = torch.full((SIZE,), 1e9)
    never = Autoencoder(Linear(found.encoder.encoder_DF, found.encoder.shift_D, JumpRelu(-dead, dead)), *rows_of(found))
    model, batch = tiny_llama(), random_batch()
    for edit in (Suppress(found, (), Zero()), Suppress(never, CHOSEN, Together(-500.0))):
        assert torch.equal(bits(logits(model, batch, {SITE: edit})), bits(logits(model, batch)))


def rows_of(found: Autoencoder) -> tuple[torch.Tensor, torch.Tensor]:
    return found.directions_FD, found.bias_E


def test_rounding_noise_of_a_plain_relu_is_no_feature():
    rows_FD = torch.linalg.qr(drawn(0, WIDTH, WIDTH)).Q.float()
    found = Autoencoder(Linear(rows_FD.T, torch.zeros(WIDTH), Relu(torch.zeros(WIDTH))), rows_FD, torch.zeros(WIDTH))
    hidden_BTD = (1e3 * rows_FD[0]).expand(2, 3, WIDTH).contiguous()
    noisy = tuple(j for j in range(1, WIDTH) if bool((hidden_BTD @ rows_FD[j] > 0).any()))
    assert noisy
    edit = Suppress(found, noisy, Constant(-500.0))
    assert torch.equal(edit(hidden_BTD), hidden_BTD)
    assert torch.equal(edit.operation()(hidden_BTD), hidden_BTD)
    assert not torch.equal(Suppress(found, (0,), Constant(-500.0))(hidden_BTD), hidden_BTD)


# Every way of running it


@pytest.mark.parametrize("kind", ["relu", "jumprelu", "topk"])
@pytest.mark.parametrize("name", MODES)
def test_plans_and_nnsight_do_what_hooks_do(name, kind, tmp_path):
    model, batch = tiny_llama(dtype=torch.float64), random_batch()
    edit = Suppress(made(kind), CHOSEN, MODES[name][0])
    hidden_BTD = states()
    torch.testing.assert_close(edit.operation()(hidden_BTD), edit(hidden_BTD), rtol=0, atol=1e-11)
    edits = {SITE: At(edit, NotIds((1, 2)))}
    plan = compile_plan(model, edits)
    plan.save(tmp_path / "plan")
    loaded = load_plan(tmp_path / "plan", model)
    under = logits(model, batch, loaded.edits(model))
    torch.testing.assert_close(under, logits(model, batch, edits), rtol=0, atol=1e-6)
    inputs = {name: batch.inputs[name] for name in ("input_ids", "attention_mask")}
    with torch.no_grad(), edited(model, loaded.edits(model)):
        ours = model(**inputs, use_cache=False).logits
    assert torch.equal(traced(model, loaded, inputs), ours)


def test_nnsight_generates_what_hooks_generate():
    model = tiny_llama()
    inputs = {"input_ids": torch.randint(3, 48, (3, 6), generator=torch.Generator().manual_seed(0))}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    edits = {SITE: At(Suppress(made("jumprelu", dtype=torch.float32), CHOSEN, Together(-8.0)), NotIds((1,)))}
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False}
    with torch.no_grad(), edited(model, edits):
        ours = model.generate(**inputs, **settings)
    theirs = generate_under(model, compile_plan(model, edits), inputs, **settings)
    assert torch.equal(theirs, ours)
    with torch.no_grad():
        assert not torch.equal(model.generate(**inputs, **settings), ours)


def test_what_no_operation_knows_is_refused_as_a_plan():
    model = tiny_llama()
    for kind, changes, message in (
        ("gated", {"architecture": "gated"}, r"\(gated\) cannot be written down as a plan"),
        ("relu", {"normaliser": "layer_norm"}, "normalises by layer_norm"),
    ):
        with pytest.raises(ValueError, match=message):
            compile_plan(model, {SITE: Suppress(made(kind, dtype=torch.float32, **changes), CHOSEN, Zero())})
    drawing = Suppress(made(dtype=torch.float32), CHOSEN, Resample(torch.zeros(3, 3), 0))
    with pytest.raises(ValueError, match="Resample draws by the place of a token"):
        compile_plan(model, {SITE: drawing})
    with pytest.raises(TypeError, match=r"probe\.hooks\.edited"):
        drawing(states(dtype=torch.float32))


def test_it_is_an_intervention_like_others():
    for mode in (Zero(), Together(-2.0)):
        report = check_intervention(
            lambda width, mode=mode: Suppress(made("jumprelu", dtype=torch.float32, width=width), CHOSEN, mode),
            tiny_llama(),
        )
        report.raise_for_failure()


# Where tokens stand


def padded(ids: list[list[int]], side: str) -> dict[str, torch.Tensor]:
    longest = max(map(len, ids))
    fill = [[0] * (longest - len(row)) for row in ids]
    rows = [row + pad if side == "right" else pad + row for row, pad in zip(ids, fill, strict=True)]
    real = [
        [1] * len(row) + pad if side == "right" else pad + [1] * len(row) for row, pad in zip(ids, fill, strict=True)
    ]
    mask_BT = torch.tensor(real)
    positions_BT = (mask_BT.cumsum(1) - 1).clamp(min=0)
    return {"input_ids": torch.tensor(rows), "attention_mask": mask_BT, "position_ids": positions_BT}


IDS = [[1, 5, 9, 30, 17], [1, 40, 8], [1, 22, 41, 6, 7, 12, 33]]


def resampled(dtype=torch.float64) -> Suppress:
    return Suppress(made(dtype=dtype), CHOSEN, Resample(drawn(9, 50, 3, dtype=dtype).abs() * 9, 3))


@pytest.mark.parametrize("name", [*MODES, "resample"])
def test_padding_on_either_side_and_a_cache_change_nothing(name):
    model = tiny_llama(dtype=torch.float64)
    edit = resampled() if name == "resample" else Suppress(made("jumprelu"), CHOSEN, MODES[name][0])
    edits = {SITE: At(edit, NotIds((1,)))}
    with torch.no_grad(), edited(model, edits):
        sides = {side: padded(IDS, side) for side in ("left", "right")}
        left, right = (model(**given, use_cache=False).logits for given in sides.values())
        for row, ids in enumerate(IDS):
            alone = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0]
            for found in (left[row, -len(ids) :], right[row, : len(ids)]):
                torch.testing.assert_close(found, alone, rtol=0, atol=1e-5)
        given = {name: sides["left"][name] for name in ("input_ids", "attention_mask")}
        with_cache, without = (
            model.generate(**given, max_new_tokens=8, min_new_tokens=8, do_sample=False, use_cache=cache)
            for cache in (True, False)
        )
    assert torch.equal(with_cache, without)


def test_draws_are_uniform_and_belong_to_seed_feature_token_and_place():
    found = made(dtype=torch.float32)
    sample_MK = torch.arange(10.0)[:, None].expand(10, 3).contiguous()
    ids_BT = torch.randint(3, 48, (64, 40), generator=torch.Generator().manual_seed(0))
    model = tiny_llama()

    def draws(seed: int, rows_BT: torch.Tensor) -> torch.Tensor:
        counter = Counter()
        counter.see({"input_ids": rows_BT})
        f_BTK = torch.zeros(*rows_BT.shape, 3)
        return Resample(sample_MK, seed)(f_BTK, torch.ones_like(f_BTK, dtype=torch.bool), counter.tokens)

    first = draws(0, ids_BT)
    assert torch.equal(first, draws(0, ids_BT))
    assert torch.equal(first.flip(0), draws(0, ids_BT.flip(0)))
    for other in (draws(1, ids_BT), first.roll(1, -1), first.roll(1, 1)):
        assert (first == other).float().mean().item() == pytest.approx(0.1, abs=0.02)
    counts = torch.bincount(first.flatten().long(), minlength=10)
    # Rows repeat tokens at a place by chance, so counts vary a little more than those of independent draws.
    assert stats.chisquare(counts.numpy()).pvalue > 1e-4
    edit = Suppress(found, CHOSEN, Resample(sample_MK, 0))
    with torch.no_grad(), captured(model, [SITE]) as plain:
        model(input_ids=ids_BT, use_cache=False)
    with torch.no_grad(), edited(model, {SITE: edit}), captured(model, [SITE]) as after:
        model(input_ids=ids_BT, use_cache=False)
    f_BTK, new_BTK = found.encode(plain[SITE])[..., CHOSEN], first
    on_BTK = f_BTK > 0
    expected = plain[SITE] + torch.where(on_BTK, new_BTK - f_BTK, 0.0) @ found.directions_FD[list(CHOSEN)]
    torch.testing.assert_close(after[SITE], expected, rtol=1e-4, atol=1e-4)


# Values from retain texts


def seen(model, batch, found=None, *, special_ids=(1, 2), features=CHOSEN) -> Retained:
    found = found or made("jumprelu", dtype=torch.float32)
    return retained(model, batch, SITE, found, features, special_ids=special_ids, batch_size=3)


def test_retain_values_are_statistics_of_retain_tokens():
    model, batch, found = tiny_llama(), random_batch(rows=10), made("jumprelu", dtype=torch.float32)
    batch.tokens_BT[:, 0] = 1
    measured = seen(model, batch, found)
    with torch.no_grad(), captured(model, [SITE]) as there:
        model(**batch.inputs, use_cache=False)
    hidden_ND = there[SITE][batch.attention_BT & (batch.tokens_BT > 2)]
    f_NK = found.encode(hidden_ND)[:, list(CHOSEN)].numpy()
    np.testing.assert_allclose(measured.f_NK.numpy(), f_NK, rtol=1e-4, atol=1e-5)
    assert measured.norm == pytest.approx(float(hidden_ND.norm(dim=1).median()), rel=1e-5)
    np.testing.assert_allclose(measured.mean().value.numpy(), f_NK.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(
        measured.quantile(0.9).value.numpy(), np.quantile(f_NK, 0.9, axis=0), rtol=1e-4, atol=1e-5
    )
    assert torch.equal(measured.resample(4).sample_MK, measured.f_NK)
    push_KD = measured.push(0.3).value[:, None] * found.directions_FD[list(CHOSEN)]
    torch.testing.assert_close(push_KD.norm(dim=1), torch.full((3,), 0.3 * measured.norm))
    assert bool((measured.push(0.3).value < 0).all())
    # One unit of a normalising dictionary adds as much as the token is long.
    wide = seen(model, batch, made(dtype=torch.float32, normaliser="constant_norm"))
    rows_K = found.directions_FD[list(CHOSEN)].norm(dim=1)
    torch.testing.assert_close(wide.unit_K, rows_K * wide.norm / WIDTH**0.5)


def test_scaling_the_stream_leaves_the_effect_of_a_push():
    model, larger, batch = tiny_llama(rms_norm_eps=1e-12), tiny_llama(rms_norm_eps=1e-12), random_batch(rows=8)
    found, factor = made(dtype=torch.float32), 8.0
    with torch.no_grad():
        larger.model.embed_tokens.weight *= factor
        for layer in larger.model.layers:
            layer.self_attn.o_proj.weight *= factor
            layer.mlp.down_proj.weight *= factor
    torch.testing.assert_close(logits(larger, batch), logits(model, batch), rtol=1e-5, atol=1e-5)
    # The dictionary of the larger stream: thresholds and biases grow with it, rows and encoder stay.
    encoder = found.encoder
    grown = Autoencoder(
        Linear(encoder.encoder_DF, factor * encoder.shift_D, Relu(factor * encoder.activation.bias_F)), *rows_of(found)
    )
    before = logits(model, batch)
    for strength in (0.3, 1.0):
        small, large = (
            Suppress(one, CHOSEN, seen(where, batch, one).push(strength))
            for one, where in ((found, model), (grown, larger))
        )
        effect = logits(model, batch, {SITE: small}) - before
        assert effect.abs().max() > 0.01
        real_BT = batch.attention_BT
        torch.testing.assert_close(
            (logits(larger, batch, {SITE: large}) - before)[real_BT], effect[real_BT], rtol=1e-3, atol=1e-4
        )
    absolute = Suppress(found, CHOSEN, Constant(-1.0))
    assert not torch.allclose(
        logits(larger, batch, {SITE: absolute}) - before, logits(model, batch, {SITE: absolute}) - before
    )


def test_reach_is_measured_where_the_edit_acts():
    model, batch, found = tiny_llama(), random_batch(rows=10), made("jumprelu", dtype=torch.float32)
    edit = Suppress(found, (2,), Constant(-4.0))
    kept = NotIds((1, 2, 30))
    with torch.no_grad(), captured(model, [SITE]) as there:
        model(**batch.inputs, use_cache=False)
    hidden_ND = there[SITE][batch.attention_BT & (batch.tokens_BT != 30)]
    f_N = found.encode(hidden_ND)[:, 2]
    moved_N = ((f_N + 4) * found.directions_FD[2].norm() / hidden_ND.norm(dim=1))[f_N > 0]
    measured = reach(model, batch, SITE, At(edit, kept), positions=kept, batch_size=3)
    assert measured.n_tokens == len(f_N)
    assert measured.touched == pytest.approx((f_N > 0).float().mean().item())
    assert 0 < measured.touched < 1
    assert measured.relative == pytest.approx(moved_N.median().item(), rel=1e-4)
    nothing = reach(model, batch, SITE, Suppress(found, (), Zero()), positions=kept)
    assert nothing.touched == 0
    assert np.isnan(nothing.relative)
    with pytest.raises(ValueError, match="no token of the 10 rows"):
        reach(model, batch, SITE, edit, positions=NotIds(tuple(range(48))))


# Bad input


@pytest.mark.parametrize(
    ("features", "mode", "message"),
    [
        ((-1,), Zero(), r"feature -1 does not exist; the SAE has features 0\.\.23"),
        ((24,), Zero(), "feature 24 does not exist"),
        ((3, 5, 3), Zero(), "feature 3 is given 2 times"),
        ((True,), Zero(), "whole number"),
        ((1, 2), Constant(torch.tensor([1.0])), "one finite number per feature"),
        ((1,), Together(torch.tensor([torch.nan])), "one finite number per feature"),
        ((1,), Always(float("inf")), "finite"),
        ((1, 2), Resample(torch.zeros(4, 3), 0), "of 3 features, 2 are edited"),
    ],
)
def test_what_does_not_fit_is_refused(features, mode, message):
    with pytest.raises(ValueError, match=message):
        Suppress(made(), features, mode)


def test_dictionaries_of_other_places_are_refused():
    found = made()
    with pytest.raises(ValueError, match="width 16, the hidden states here have width 9"):
        Suppress(found, (1,), Zero())(torch.zeros(1, 2, 9))
    writes_elsewhere = Autoencoder(found.encoder, *rows_of(found), transcodes=True)
    with pytest.raises(ValueError, match="transcoder"):
        Suppress(writes_elsewhere, (1,), Zero())
    with pytest.raises(ValueError, match="no dictionary of features"):
        Suppress(torch.eye(3), (1,), Zero())


def test_statistics_of_nothing_are_refused():
    with pytest.raises(ValueError, match="no token"):
        seen(tiny_llama(), random_batch(), special_ids=range(48))
    with pytest.raises(ValueError, match="no retain token"):
        Retained(torch.zeros(0, 3), 1.0, torch.ones(3))
    with pytest.raises(ValueError, match="at least one finite"):
        Resample(torch.zeros(0, 3), 0)
    some = Retained(torch.zeros(4, 2), 1.0, torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="adds nothing"):
        some.push(1.0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        some.quantile(95.0)
    with pytest.raises(ValueError, match="finite"):
        some.push(float("nan"))
    with pytest.raises(ValueError, match="finite"):
        Multiply(float("nan"))
