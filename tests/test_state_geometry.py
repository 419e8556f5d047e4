"""Clusters and similarity of states: scikit-learn and scipy as judges, and invariances."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_ridge_probes import UNREAD, made_states

from probe.diagnostics.clusters import clusters
from probe.diagnostics.similarity import states_similarity, states_spread
from probe.diagnostics.split_states import split_states


def clusters_of(states):
    return clusters(*UNREAD, states=states)


def turned(width, seed=0):
    return torch.linalg.qr(torch.randn(width, width, generator=torch.Generator().manual_seed(seed)).double())[0]


def test_fisher_ratio_distance_and_silhouette_by_their_formulas():
    from sklearn.metrics import silhouette_score

    states = made_states(1.5)
    found = clusters_of(states)[("forget", "retain")]
    a, b = states.forget_LND[1].numpy(), states.retain_LND[1].numpy()
    gap = a.mean(0) - b.mean(0)
    assert found.distance_L[1].item() == pytest.approx(np.linalg.norm(gap))
    assert found.fisher_L[1].item() == pytest.approx(gap @ gap / (np.trace(np.cov(a.T)) + np.trace(np.cov(b.T))))
    label = [0] * len(a) + [1] * len(b)
    assert found.silhouette_L[1].item() == pytest.approx(silhouette_score(np.concatenate([a, b]), label))


def test_unseen_rows_make_three_pairs_and_scale_falls_out_of_ratios():
    states = replace(made_states(1.0), unseen_LND=made_states(0.0, seed=9).forget_LND)
    found = clusters_of(states)
    assert set(found.pairs) == {("forget", "retain"), ("forget", "unseen"), ("retain", "unseen")}
    larger = clusters_of(replace(states, **{f"{n}_LND": 10 * h for n, h in states.sides.items()}))
    for pair, one in found.pairs.items():
        torch.testing.assert_close(larger[pair].relative_L, one.relative_L)
        torch.testing.assert_close(larger[pair].distance_L, 10 * one.distance_L)


def test_a_side_of_one_row_has_no_spread():
    states = made_states()
    with pytest.raises(ValueError, match="'forget': 1"):
        clusters_of(replace(states, forget_LND=states.forget_LND[:, :1]))


def test_similarity_does_not_see_turns_shifts_and_scales():
    one = made_states().forget_LND
    same = states_similarity(one, one)
    torch.testing.assert_close(same.cka_L, torch.ones(3).double())
    torch.testing.assert_close(same.debiased_cka_L, torch.ones(3).double())
    torch.testing.assert_close(same.procrustes_L, torch.zeros(3).double(), atol=1e-9, rtol=0)
    moved = states_similarity(one, 3 * one @ turned(20) + 5)
    torch.testing.assert_close(moved.cka_L, torch.ones(3).double())
    torch.testing.assert_close(moved.procrustes_L, torch.zeros(3).double(), atol=1e-9, rtol=0)
    torch.testing.assert_close(moved.debiased_cka_L, torch.ones(3).double())
    torch.testing.assert_close(states_similarity(one, 2 * one).norm_ratio_L, torch.full((3,), 0.5).double())


def test_unrelated_states_are_unlike_once_the_bias_is_gone():
    one, other = made_states(width=100).forget_LND, made_states(width=70, seed=1).forget_LND
    found = states_similarity(one, other)
    assert bool((found.cka_L > 0.4).all())  # 60 rows in 100 dimensions
    assert bool((found.debiased_cka_L.abs() < 0.15).all())


def test_procrustes_is_scipys_and_cka_its_formula():
    from scipy.linalg import orthogonal_procrustes

    a, b = (made_states(seed=s).forget_LND for s in (0, 1))
    found = states_similarity(a, b)
    x, y = (h[2].numpy() - h[2].numpy().mean(0) for h in (a, b))
    x, y = x / np.linalg.norm(x), y / np.linalg.norm(y)
    turn, _ = orthogonal_procrustes(y, x)
    assert found.procrustes_L[2].item() == pytest.approx(np.linalg.norm(x - y @ turn) ** 2)
    cka = np.linalg.norm(x.T @ y) ** 2 / (np.linalg.norm(x.T @ x) * np.linalg.norm(y.T @ y))
    assert found.cka_L[2].item() == pytest.approx(cka)


def test_debiased_cka_by_the_sums_it_is_made_of():
    a, b = (made_states(seed=s, layers=1, groups=3, size=3).forget_LND[0].numpy() for s in (0, 1))
    n = len(a)

    def hsic(x, y):
        k, m = x @ x.T, y @ y.T
        np.fill_diagonal(k, 0)
        np.fill_diagonal(m, 0)
        one = np.ones(n)
        total = np.trace(k @ m) + one @ k @ one * (one @ m @ one) / ((n - 1) * (n - 2))
        return (total - 2 / (n - 2) * (one @ k @ m @ one)) / (n * (n - 3))

    expected = hsic(a, b) / np.sqrt(hsic(a, a) * hsic(b, b))
    found = states_similarity(torch.from_numpy(a)[None], torch.from_numpy(b)[None])
    assert found.debiased_cka_L[0].item() == pytest.approx(expected)


def test_ranks_of_known_spectra():
    generator = torch.Generator().manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(50, 4, generator=generator).double())
    left = left - left.mean(0)
    left, _ = torch.linalg.qr(left)
    flat = (left @ turned(12)[:4])[None]
    found = states_spread(flat)
    assert found.effective_rank_L[0].item() == pytest.approx(4, rel=1e-6)
    assert found.participation_L[0].item() == pytest.approx(4, rel=1e-6)
    assert states_spread(flat.repeat(2, 1, 1) * torch.tensor([1.0, 3.0]).double()[:, None, None]).growth_L.tolist() == (
        pytest.approx([1, 3])
    )
    still = states_spread(torch.ones(1, 5, 3).double())
    assert still.effective_rank_L[0] == 0
    assert torch.isnan(still.participation_L[0])


def test_bad_input():
    one = made_states().forget_LND
    with pytest.raises(ValueError, match="cannot be compared"):
        states_similarity(one, one[:, :-1].clone())
    with pytest.raises(ValueError, match="at least four rows, got 3"):
        states_similarity(one[:, :3], one[:, :3])
    with pytest.raises(ValueError, match="NaN"):
        states_similarity(one, one * float("nan"))
    with pytest.raises(ValueError, match="at least two rows"):
        states_spread(one[:, :1])


def test_real_states_of_the_testbed(bed):
    split = replace(bed.split, retain=bed.split.retain.select(range(60)), retain_rows=bed.split.retain_rows[:60])
    original, retrained = (split_states(model, split, layers=[0, 7]) for model in (bed.original, bed.retrained))
    found = states_similarity(original.forget_LND, retrained.forget_LND)
    assert bool((found.debiased_cka_L < found.cka_L).all())
    assert bool((found.procrustes_L > 0.1).all())
    assert bool(torch.isfinite(clusters_of(original)[("forget", "retain")].fisher_L).all())
