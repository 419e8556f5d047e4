"""Ridge probes: scikit-learn's fits and folds as judges, and labels that carry nothing."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import random_batch, tiny_llama

from probe.data import Batch, Split
from probe.diagnostics.answer_values import value_split
from probe.diagnostics.ridge_probes import _aurocs, ridge_minus_logistic, ridge_probes
from probe.diagnostics.ridge_solve import ridge_heldout, standardised
from probe.diagnostics.split_states import SplitStates, split_states
from probe.hooks import edited, our_hooks
from probe.sites import Site

# States are handed in, so nothing is read of these.
UNREAD = tiny_llama(), Split(random_batch(), random_batch())


def ridge_of(states, **options):
    return ridge_probes(*UNREAD, states=states, **options)


def minus_logistic_of(states):
    return ridge_minus_logistic(*UNREAD, states=states)


def made_states(shift=0.0, *, layers=3, groups=12, size=5, width=20, seed=0):
    generator = torch.Generator().manual_seed(seed)
    both = torch.randn(layers, 2 * groups * size, width, generator=generator, dtype=torch.float64)
    both[:, : groups * size, 0] += shift
    group_N = torch.arange(2 * groups).repeat_interleave(size)
    half = groups * size
    return SplitStates(tuple(range(layers)), both[:, :half], both[:, half:], group_N[:half], group_N[half:])


@pytest.mark.parametrize(("n", "width"), [(60, 10), (30, 50)])  # more rows than dimensions, and fewer
def test_leave_one_out_is_scikit_learns_77(n, width):
    from sklearn.linear_model import RidgeClassifierCV, RidgeCV

    generator = torch.Generator().manual_seed(0)
    hidden_LND = torch.randn(3, n, width, generator=generator, dtype=torch.float64) + 2
    label_NK = (torch.rand(n, 4, generator=generator) < 0.4).double() * 2 - 1
    penalties = [0.01, 1.0, 100.0]
    found = ridge_heldout(hidden_LND, label_NK, penalties=penalties)
    for layer in range(3):
        for k in range(4):
            x, y = hidden_LND[layer].numpy(), label_NK[:, k].numpy()
            judge = RidgeCV(alphas=penalties, store_cv_results=True).fit(x, y)
            np.testing.assert_allclose(found.error_LPK[layer, :, k], judge.cv_results_.mean(0), rtol=1e-8)
            assert found.penalty_LK[layer, k] == judge.alpha_
            assert RidgeClassifierCV(alphas=penalties).fit(x, y).alpha_ == found.penalty_LK[layer, k]


@pytest.mark.parametrize("width", [6, 80])
def test_held_out_folds_are_those_of_fits_to_the_other_rows(width):
    from sklearn.linear_model import Ridge

    generator = torch.Generator().manual_seed(1)
    hidden_LND = torch.randn(2, 40, width, generator=generator, dtype=torch.float64)
    target_NK = torch.randn(40, 3, generator=generator, dtype=torch.float64)
    fold_N = torch.arange(40) % 7
    found = ridge_heldout(hidden_LND, target_NK, penalties=[3.0], fold_N=fold_N)
    for layer in range(2):
        for fold in range(7):
            inside, outside = (fold_N != fold).numpy(), (fold_N == fold).numpy()
            x = hidden_LND[layer].numpy()
            judge = Ridge(alpha=3.0).fit(x[inside], target_NK.numpy()[inside])
            np.testing.assert_allclose(
                found.heldout_LNK[layer].numpy()[outside], judge.predict(x[outside]), rtol=1e-7, atol=1e-9
            )


def test_auroc_is_scikit_learns_ties_included():
    from sklearn.metrics import roc_auc_score

    generator = torch.Generator().manual_seed(2)
    score_LNK = torch.randint(0, 5, (2, 30, 3), generator=generator).double()
    label_NK = torch.randint(0, 2, (30, 3), generator=generator)
    found_LK = _aurocs(score_LNK, label_NK)
    for layer in range(2):
        for k in range(3):
            assert found_LK[layer, k].item() == pytest.approx(roc_auc_score(label_NK[:, k], score_LNK[layer, :, k]))
    with pytest.raises(ValueError, match="got 30 positive, 0 negative"):
        _aurocs(score_LNK, torch.ones_like(label_NK))


def test_a_signal_is_found_and_noise_is_not():
    signal = ridge_of(made_states(3.0), shuffles=50)
    assert bool((signal.auc_L > 0.85).all())
    assert signal.p_any == pytest.approx(1 / 51)
    noise = ridge_of(made_states(0.0, seed=3), shuffles=50)
    assert noise.p_any > 0.05
    assert abs(float(noise.null_SL.mean()) - 0.5) < 0.05
    assert (signal.n_forget, signal.n_groups, signal.folds, signal.width) == (60, 24, 5, 20)


def test_a_group_never_lies_on_both_sides_of_a_fold():
    # Each group has an offset of its own and no class does: a probe that knew groups would be right.
    states = made_states(0.0, groups=10, size=8, width=40, seed=4)
    generator = torch.Generator().manual_seed(5)
    offset = 8 * torch.randn(20, 40, generator=generator, dtype=torch.float64)
    states = replace(
        states,
        forget_LND=states.forget_LND + offset[states.forget_group_N],
        retain_LND=states.retain_LND + offset[states.retain_group_N],
    )
    assert float(ridge_of(states, shuffles=0).auc_L.mean()) < 0.75


def test_difference_to_logistic_regression_is_that_of_separability():
    apart_L = minus_logistic_of(made_states(0.7))
    assert bool((apart_L.abs() < 0.08).all())


def test_too_few_rows_for_the_width_are_said():
    found = ridge_of(made_states(1.0, groups=3, size=2, width=20), shuffles=3)
    assert found.underdetermined
    assert not ridge_of(made_states(1.0), shuffles=0).underdetermined


def test_bad_input():
    states = made_states()
    with pytest.raises(ValueError, match=r"12 groups of forget rows.* 1 of retain rows"):
        ridge_of(replace(states, retain_group_N=torch.full((60,), 99)))
    with pytest.raises(ValueError, match="got 0 forget and 60 retain"):
        ridge_of(replace(states, forget_LND=states.forget_LND[:, :0], forget_group_N=states.forget_group_N[:0]))
    broken = states.forget_LND.clone()
    broken[1, 3] = float("nan")
    with pytest.raises(ValueError, match="NaN"):
        ridge_of(replace(states, forget_LND=broken))
    with pytest.raises(ValueError, match="penalties must be positive"):
        ridge_heldout(states.forget_LND, torch.ones(60, 1), penalties=[0.0])
    with pytest.raises(ValueError, match="shuffles"):
        ridge_of(states, shuffles=-1)


def test_columns_that_do_not_vary_change_nothing():
    states = made_states(1.0)
    wider = replace(
        states,
        forget_LND=torch.cat([states.forget_LND, torch.ones(3, 60, 2).double()], 2),
        retain_LND=torch.cat([states.retain_LND, torch.ones(3, 60, 2).double()], 2),
    )
    torch.testing.assert_close(ridge_of(wider, shuffles=2).auc_L, ridge_of(states, shuffles=2).auc_L)
    assert bool(torch.isfinite(standardised(wider.forget_LND)).all())


def test_states_are_those_under_an_edit_and_hooks_are_gone():
    model = tiny_llama()
    batch = random_batch(rows=6)
    split = Split(batch, Batch(*(getattr(random_batch(1, rows=6), n) for n in FIELDS)))
    plain = split_states(model, split, unseen=random_batch(2))
    with edited(model, {Site(1): lambda h: 2 * h}):
        moved = split_states(model, split)
    torch.testing.assert_close(moved.forget_LND[1], 2 * plain.forget_LND[1])
    assert torch.equal(moved.forget_LND[0], plain.forget_LND[0])
    assert plain.unseen_LND is not None
    assert plain.unseen_LND.shape[1] == 4
    assert our_hooks(model) == []


FIELDS = ("tokens_BT", "target_BT", "attention_BT", "group_B", "prompt_B")


def test_real_states_of_the_testbed(bed):
    rows = range(200)
    split = value_split(
        bed.tokenizer,
        replace(bed.split, retain=bed.split.retain.select(rows), retain_rows=bed.split.retain_rows[:200]),
    )
    states = split_states(bed.original, split, layers=[0, 3, 7])
    found = ridge_of(states, shuffles=20)
    assert found.layers == (0, 3, 7)
    assert bool((found.low_L <= found.auc_L).all() & (found.auc_L <= found.high_L).all())
    assert bool((minus_logistic_of(states).abs() < 0.15).all())
