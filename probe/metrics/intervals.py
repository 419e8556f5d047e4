"""Intervals of means, shares, correlations and AUROCs; rows of one group are never counted as independent."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from probe.metrics.arrays import ArrayN, numbers, same_rows

LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A mean over units with its interval; of one unit the interval is everything it could be.

    >>> found = Interval(0.5, 0.25, 0.75, 3)
    >>> f"{found:.1f}", found.above_zero, found.side(0.8)
    ('0.5 [0.2, 0.8]', True, -1)
    """

    mean: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Whether chance alone is an unlikely reason for a mean this far above 0."""
        return self.low > 0

    @property
    def ends(self) -> tuple[float, float, float]:
        """Mean, low, high."""
        return self.mean, self.low, self.high

    def side(self, of: float = 0.0) -> int:
        """1 where the whole interval lies above ``of``, -1 where it lies below, 0 where neither can be told."""
        return int(self.low > of) - int(self.high < of)

    def __format__(self, form: str) -> str:
        # One format for the three numbers: f"{found:.3g}".
        return f"{self.mean:{form or '.2f'}} [{self.low:{form or '.2f'}}, {self.high:{form or '.2f'}}]"

    def __str__(self) -> str:
        return format(self)


def interval(
    values: Sequence[float] | ArrayN, *, within: tuple[float, float] = (-math.inf, math.inf), level: float = LEVEL
) -> Interval:
    """Mean and t-interval of independent units: mean ± t sd / sqrt(n), t Student's quantile at n - 1.

    >>> print(interval([0.8, 0.9, 1.0], within=(0.0, 1.0)))
    0.90 [0.65, 1.00]

    Args:
        values: one a unit.
        within: what the mean can be, (-1, 1) for a difference of shares; the interval is cut there, which costs no
            coverage.
        level: confidence.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values, so they have no mean")
    mean, n = float(array.mean()), len(array)
    half = _t(n, level) * float(array.std(ddof=1)) / n**0.5 if n > 1 else math.inf
    return Interval(mean, max(mean - half, within[0]), min(mean + half, within[1]), n)


def grouped(
    values_N: ArrayN,
    groups: Sequence[str],
    *,
    within: tuple[float, float] = (-math.inf, math.inf),
    level: float = LEVEL,
) -> Interval:
    """The mean over rows; its t-interval counts groups, for rows of one group are not independent.

    >>> print(grouped(np.array([0.1, 0.3, 0.2, 0.4]), ["Ann", "Ann", "Tim", "Tim"]))
    0.25 [-0.39, 0.89]

    Args:
        values_N: one a row.
        groups: of each row.
        within, level: as in ``interval``.

    Raises:
        ValueError: as many groups as rows are expected.
    """
    found = interval(_by_group(values_N, groups), level=level)
    # Groups of unequal size: the mean stays that of the rows.
    shift = float(values_N.mean()) - found.mean
    low, high = max(found.low + shift, within[0]), min(found.high + shift, within[1])
    return Interval(found.mean + shift, low, high, found.n)


def grouped_share(values_N: ArrayN, groups: Sequence[str], *, level: float = LEVEL) -> Interval:
    """A mean of values in [0, 1], a share or a probability, and an interval that counts groups and stays in [0, 1].

    Wilson's interval at the effective number of rows, m (1 - m) / SE^2, where SE is the standard error over groups and
    the quantile is Student's for that many groups (the idea of Korn and Graubard 1998). Where no group differs from
    another at 0 or 1, groups are the number of trials: none of 5 is not nothing.

    >>> print(grouped_share(np.array([1.0, 1.0, 0.0, 1.0]), ["Ann", "Ann", "Tim", "Tim"]))
    0.75 [0.01, 1.00]

    Raises:
        ValueError: values outside [0, 1], or as ``grouped``.
    """
    values_N = np.asarray(values_N, dtype=float)
    if values_N.size and not (values_N.min() >= -1e-9 and values_N.max() <= 1 + 1e-9):
        raise ValueError(f"shares lie in [0, 1], got {values_N.min():g} to {values_N.max():g}")
    by_group_K = _by_group(values_N, groups)
    n, mean = len(by_group_K), float(np.clip(values_N.mean(), 0, 1))
    if n == 1:
        return Interval(mean, 0.0, 1.0, 1)
    squared = float(by_group_K.var(ddof=1)) / n
    if squared == 0 and 0 < mean < 1:
        return Interval(mean, mean, mean, n)
    effective = mean * (1 - mean) / squared if squared else float(n)
    return Interval(mean, *_score_ends(mean, effective, _t(n, level)), n)


def over_folds(
    values_RK: Float[np.ndarray, "R K"], *, within: tuple[float, float] = (0.0, 1.0), level: float = LEVEL
) -> Interval:
    """The mean of a cross-validated number over R repeats of K folds, corrected for the rows that fits share.

    Fits to overlapping rows err together, so Student's interval over folds is too narrow: at chance it covers .80 to
    .85. Nadeau and Bengio (2003) take the variance of one number (1 / RK + test share / training share) times;
    repeats bring no independent rows, so the quantile is that of K folds. Covers .89 to .98 at chance with 2 to 20
    groups a class, five repeats; .90 to .94 with one.

    >>> print(over_folds(np.array([[0.6, 0.7, 0.8]])))
    0.70 [0.31, 1.00]

    Args:
        values_RK: one number a fold, (-1, 1) for differences of paired folds.
        within, level: as in ``interval``.
    """
    values_RK = np.asarray(values_RK, dtype=float)
    folds, n = values_RK.shape[1], values_RK.size
    spread = float(values_RK.std(ddof=1)) * math.sqrt(1 / n + 1 / (folds - 1))
    mean, half = float(values_RK.mean()), _t(folds, level) * spread
    return Interval(mean, max(mean - half, within[0]), min(mean + half, within[1]), folds)


def _by_group(values_N: ArrayN, groups: Sequence[str]) -> Float[np.ndarray, " K"]:
    if len(values_N) != len(groups):
        raise ValueError(f"{len(values_N)} values and {len(groups)} groups; give one a row")
    _, of_row = np.unique(np.asarray(groups, dtype=str), return_inverse=True)
    return np.bincount(of_row, weights=values_N) / np.bincount(of_row)


def _score_ends(share: float, n: float, quantile: float) -> tuple[float, float]:
    """Wilson's ends: the shares p with (share - p)^2 = quantile^2 p (1 - p) / n."""
    q = quantile**2 / n
    middle, half = (share + q / 2) / (1 + q), math.sqrt(q * share * (1 - share) + q * q / 4) / (1 + q)
    return max(0.0, middle - half), min(1.0, middle + half)


def _t(n: int, level: float) -> float:
    from scipy.stats import t

    _check_level(level)
    return float(t.ppf(0.5 + level / 2, n - 1))


def wilson(successes: int, n: int, level: float = 0.95) -> tuple[float, float]:
    """Wilson's score interval of a share (Wilson 1927), which stays within [0, 1].

    >>> [round(end, 2) for end in wilson(0, 10)]
    [0.0, 0.28]

    Raises:
        ValueError: no trials, more successes than trials, or a level outside (0, 1).
    """
    from scipy.stats import binomtest

    if n < 1 or not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n} trials is no share")
    _check_level(level)
    low, high = binomtest(successes, n).proportion_ci(level, method="wilson")
    return float(low), float(high)


def fisher_z(r: float, n: int, *, ranks: bool = False, level: float = LEVEL) -> tuple[float, float]:
    """Fisher's interval of a correlation, which stays within [-1, 1]: tanh(artanh r ± quantile SE).

    SE is 1 / sqrt(n - 3); of rank correlations sqrt((1 + r^2 / 2) / (n - 3)) (Bonett and Wright 2000).

    >>> [round(end, 3) for end in fisher_z(0.5, 28)]
    [0.156, 0.736]

    Args:
        r: Pearson's correlation, or Spearman's with ``ranks``; of NaN the ends are NaN.
        n: pairs it was computed from; of three or fewer nothing is known.
        ranks: whether it is Spearman's.
        level: confidence.

    Raises:
        ValueError: r outside [-1, 1] or a level outside (0, 1).
    """
    from scipy.stats import norm

    _check_level(level)
    if math.isnan(r):
        return math.nan, math.nan
    if not -1 <= r <= 1:
        raise ValueError(f"a correlation lies in [-1, 1], got {r:g}")
    if n <= 3:
        return -1.0, 1.0
    if abs(r) == 1:
        return r, r
    half = norm.ppf(0.5 + level / 2) * math.sqrt((1 + ranks * r**2 / 2) / (n - 3))
    return math.tanh(math.atanh(r) - half), math.tanh(math.atanh(r) + half)


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

    >>> found = correlation([1, 2, 3, 4], [1, 2, 4, 3], seed=0)
    >>> round(found.r, 2), [round(end, 2) for end in found.fisher]
    (0.8, [-0.7, 1.0])

    Args:
        first, second: values of the same models, one each.
        seed: of the bootstrap.
        level: confidence.
        resamples: of the bootstrap.

    Raises:
        ValueError: different numbers of values, fewer than three, NaN, or a level outside (0, 1).
    """
    one_N, two_N = numbers(first, "first"), numbers(second, "second")
    same_rows(one_N, two_N, ("first", "second"))
    _check_level(level)
    n = len(one_N)
    if n < 3:
        raise ValueError(f"{n} pairs; a correlation with an interval needs at least 3 models")
    if len(set(one_N)) == 1 or len(set(two_N)) == 1:
        return Correlation(math.nan, n, (math.nan, math.nan), (math.nan, math.nan), level)
    r = float(np.clip(np.corrcoef(one_N, two_N)[0, 1], -1, 1))
    generator = np.random.default_rng(seed)
    found: list[float] = []
    while len(found) < resamples:
        rows = generator.integers(n, size=n)
        if len(set(one_N[rows])) > 1 and len(set(two_N[rows])) > 1:
            found.append(float(np.corrcoef(one_N[rows], two_N[rows])[0, 1]))
    low, high = np.quantile(found, [(1 - level) / 2, (1 + level) / 2])
    return Correlation(r, n, fisher_z(r, n, level=level), (float(low), float(high)), level)


def _check_level(level: float) -> None:
    if not 0 < level < 1:
        raise ValueError(f"level is a confidence between 0 and 1, such as 0.95; got {level}")
