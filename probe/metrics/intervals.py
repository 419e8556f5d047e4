"""Intervals of shares and of correlations."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.metrics.arrays import numbers, same_rows


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), which stays within [0, 1].

    Raises:
        ValueError: no trials, more successes than trials, or a level outside (0, 1).
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no share")
    _check_level(level)
    low, high = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


@dataclass(frozen=True)
class Correlation:
    """Pearson's r of n pairs, with two intervals.

    Args:
        r: NaN where one side does not vary at all.
        n: number of pairs.
        fisher: from Fisher's z = artanh r, standard error 1/sqrt(n - 3); (-1, 1) for n of 3.
        bootstrap: percentiles of r over resampled pairs; resamples without variance are drawn again.
        level: confidence of both.
    """

    r: float
    n: int
    fisher: tuple[float, float]
    bootstrap: tuple[float, float]
    level: float


def correlation(first: Any, second: Any, *, seed: int, level: float = 0.95, resamples: int = 2000) -> Correlation:
    """Pearson's correlation with Fisher's interval and a percentile bootstrap.

    Args:
        first, second: values of the same models, one each.
        seed: of the bootstrap.
        level: confidence.
        resamples: of the bootstrap.

    Raises:
        ValueError: different numbers of values, fewer than three, NaN, or a level outside (0, 1).
    """
    from scipy.stats import norm

    one_N, two_N = numbers(first, "first"), numbers(second, "second")
    same_rows(one_N, two_N, ("first", "second"))
    _check_level(level)
    n = len(one_N)
    if n < 3:
        raise ValueError(f"{n} pairs; a correlation with an interval needs at least 3 models")
    if len(set(one_N)) == 1 or len(set(two_N)) == 1:
        return Correlation(math.nan, n, (math.nan, math.nan), (math.nan, math.nan), level)
    r = float(np.clip(np.corrcoef(one_N, two_N)[0, 1], -1, 1))
    if n == 3:
        fisher = (-1.0, 1.0)
    elif abs(r) == 1:
        fisher = (r, r)
    else:
        half = norm.ppf(0.5 + level / 2) / math.sqrt(n - 3)
        fisher = (math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half))
    generator = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < resamples:
        rows = generator.integers(n, size=n)
        if len(set(one_N[rows])) > 1 and len(set(two_N[rows])) > 1:
            found.append(float(np.corrcoef(one_N[rows], two_N[rows])[0, 1]))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(r, n, fisher, (float(low), float(high)), level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is a confidence between 0 and 1, such as 0.95; got {level}")
