"""Relative differences, and worst cases over wordings."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probe.metrics import over_phrasings, privleak, rel_diff


@given(st.floats(0, 1), st.floats(0, 0.99))
def test_privleak_is_the_relative_difference_of_one_minus_auc(auc, reference):
    assert privleak(auc, reference) == rel_diff(1 - auc, 1 - reference)


def test_relative_differences_and_their_limits():
    assert rel_diff(0.6, 0.5) == pytest.approx(20)
    assert rel_diff(0.4, 0.5) == pytest.approx(-20)
    assert rel_diff(0.5, 0.5) == 0
    # OpenUnlearning's denominator.
    assert rel_diff(0.6, 0.5, eps=1e-10) == (0.6 - 0.5) / (0.5 + 1e-10) * 100
    assert rel_diff(0.5, 0.0, eps=1e-10) == pytest.approx(5e11)
    with pytest.raises(ValueError, match="the reference is 0"):
        rel_diff(0.5, 0.0)
    with pytest.raises(ValueError, match="must be finite, got nan"):
        rel_diff(float("nan"), 0.5)


def test_a_fact_is_known_if_one_wording_brings_it_back():
    right_NK = [[0, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]]
    found = over_phrasings(right_NK, known="high")
    assert found.worst == 3 / 4 == np.mean([any(row) for row in right_NK])
    assert found.mean == pytest.approx(5 / 12)
    assert found.which_N.tolist() == [2, 0, 0, 1]
    loss = over_phrasings([[3.0, 1.0], [2.0, 4.0]], known="low")
    assert loss.worst_N.tolist() == [1.0, 2.0]
    assert loss.worst == 1.5 < loss.mean == 2.5
    # One wording is its own worst case.
    alone = over_phrasings([[0.2], [0.7]], known="high")
    assert alone.worst == alone.mean
    with pytest.raises(ValueError, match="rows of equal length"):
        over_phrasings([[1.0], [1.0, 2.0]], known="high")
    with pytest.raises(ValueError, match="NaN"):
        over_phrasings([[1.0, np.nan]], known="high")
