"""TOFU's metrics (Maini et al., arXiv 2401.06121) as pure functions over per-example mean cross-entropies."""

import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from probe.metrics.arrays import ArrayN, losses, numbers, same_rows
from probe.metrics.means import Aggregate, harmonic

# The sets and metrics whose nine means make up model utility: real authors are ra, world facts wf.
UTILITY_PARTS = tuple(
    f"{where}_{metric}" for where in ("retain", "ra", "wf") for metric in ("probability", "rouge", "truth_ratio")
)


@dataclass(frozen=True)
class ForgetQuality:
    """Two-sample Kolmogorov-Smirnov test between two sets of truth ratios.

    Args:
        p: exact two-sided p-value; papers report p, ln p or log10 p under one name.
        ln_p: natural logarithm of p.
        statistic: the largest distance D between the two distribution functions.
        n, m: number of truth ratios of the unlearned and of the retrained model.
        floor: the smallest p these sizes allow, 2 / C(n + m, n), reached at D = 1 whatever the gap.
        identical: whether both sets hold the same numbers; then one model was most likely measured twice.
    """

    p: float
    ln_p: float
    statistic: float
    n: int
    m: int
    floor: float
    identical: bool = False

    @property
    def at_floor(self) -> bool:
        """Whether the two sets do not overlap: p says no more than that, and cannot get smaller."""
        return self.statistic == 1


def probability(loss_N: Any) -> ArrayN:
    """P(a|q)^(1/n) = exp(-loss): the probability of the answer, normalised for its length.

    Args:
        loss_N: mean cross-entropy per answer token, eos included (nats).

    Returns:
        one number in [0, 1] per example.

    Raises:
        ValueError: NaN, infinite or negative losses.

    >>> probe.probability([0.0, 0.6931])
    array([1.        , 0.50002359])
    """
    return np.exp(-losses(loss_N, "loss_N"))


def normalised_probability(loss_N: Any, wrong_loss_NK: Any, *, eps: float = 0.0) -> ArrayN:
    """p / (p + sum_k p_k + eps): the right answer's share among the options (real authors, world facts).

    Args:
        loss_N: mean cross-entropy of the right answer (nats per token).
        wrong_loss_NK: the same for its K wrong options.
        eps: added to the denominator; OpenUnlearning uses 1e-10, TOFU nothing.

    Returns:
        one number in [0, 1] per example.

    Raises:
        ValueError: NaN, infinite or negative losses, or different numbers of examples.
    """
    loss_N, wrong_loss_NK = _pair(loss_N, wrong_loss_NK, "loss_N")
    # ln of (p + sum_k p_k + eps), so that no probability underflows.
    total_N = np.logaddexp(-loss_N, np.logaddexp.reduce(-wrong_loss_NK, axis=1))
    return np.exp(-loss_N - (np.logaddexp(total_N, math.log(eps)) if eps else total_N))


def truth_ratio(paraphrased_loss_N: Any, wrong_loss_NK: Any, *, eps: float = 0.0) -> ArrayN:
    """R = exp(-mean_k wrong_loss_k) / (exp(-paraphrased_loss) + eps): the geometric truth ratio.

    Published numbers use this form (TOFU's aggregation script, OpenUnlearning); the paper's formula averages
    probabilities, see ``truth_ratio_arithmetic``. R below 1: the model prefers the right answer.

    Args:
        paraphrased_loss_N: mean cross-entropy of the paraphrased right answer (nats per token).
        wrong_loss_NK: the same for its K wrong (perturbed) answers.
        eps: added to the denominator; OpenUnlearning uses 1e-10, TOFU nothing.

    Returns:
        one number, at least 0, per example.

    Raises:
        ValueError: NaN, infinite or negative losses, or different numbers of examples.

    >>> probe.truth_ratio([1.0], [[1.0, 1.0]])
    array([1.])
    """
    right_N, wrong_loss_NK = _pair(paraphrased_loss_N, wrong_loss_NK, "paraphrased_loss_N")
    return _ratio(-wrong_loss_NK.mean(1), right_N, eps)


def truth_ratio_arithmetic(paraphrased_loss_N: Any, wrong_loss_NK: Any, *, eps: float = 0.0) -> ArrayN:
    """R = mean_k exp(-wrong_loss_k) / (exp(-paraphrased_loss) + eps): the paper's formula, never below the geometric.

    Args, Returns, Raises: as ``truth_ratio``. Model utility shifts by 0.03 to 0.04 between the two.
    """
    right_N, wrong_loss_NK = _pair(paraphrased_loss_N, wrong_loss_NK, "paraphrased_loss_N")
    return _ratio(np.logaddexp.reduce(-wrong_loss_NK, axis=1) - math.log(wrong_loss_NK.shape[1]), right_N, eps)


def truth_ratio_terms(ratio_N: Any, on: str) -> ArrayN:
    """What TOFU's aggregates of a set average: min(R, 1/R) on ``"forget"``, max(0, 1 - R) on any other.

    Raises:
        ValueError: NaN or negative ratios.
    """
    ratio_N = _ratios(ratio_N, "ratio_N")
    if on != "forget":
        return np.maximum(0, 1 - ratio_N)
    with np.errstate(divide="ignore"):
        return np.minimum(ratio_N, 1 / ratio_N)


def truth_ratio_forget(ratio_N: Any) -> float:
    """mean_i min(R_i, 1/R_i): 1 where right and wrong answers are equally likely; a collapsed model tends to 0.

    Raises:
        ValueError: NaN or negative ratios.
    """
    return float(truth_ratio_terms(ratio_N, "forget").mean())


def truth_ratio_retain(ratio_N: Any) -> float:
    """mean_i max(0, 1 - R_i): 1 where the model knows the right answer (retain, real authors, world facts).

    Raises:
        ValueError: NaN or negative ratios.
    """
    return float(truth_ratio_terms(ratio_N, "retain").mean())


def truth_ratio_known(ratio_N: Any) -> float:
    """mean_i p / (p + p_wrong) = mean_i 1 / (1 + R_i): how far the right answer is preferred (prob_mean).

    The form of the truth ratio in OpenUnlearning's Mem: 1 knows, 0.5 does not tell right from wrong.

    Raises:
        ValueError: NaN or negative ratios.
    """
    return float((1 / (1 + _ratios(ratio_N, "ratio_N"))).mean())


def forget_quality(ratio_unlearned: Any, ratio_retrained: Any) -> ForgetQuality:
    """p of the exact two-sample KS test between the truth ratios of the unlearned and the retrained model.

    A p at ``floor`` means only that the two sets do not overlap. Unchanged under R -> 1/R. Compare values only
    at equal n and m: published tables use 40, 200, 300 and 400, and one 40 against 200.

    Args:
        ratio_unlearned, ratio_retrained: truth ratios of the forget set under each model.

    Returns:
        p with its logarithm, the statistic, the sizes and the floor.

    Raises:
        ValueError: NaN or negative ratios, or sizes for which no exact p can be computed.

    >>> probe.forget_quality([0.5, 0.6, 0.7, 0.8], [0.5, 0.6, 0.7, 0.8]).p
    1.0
    """
    first_N, second_M = _ratios(ratio_unlearned, "ratio_unlearned"), _ratios(ratio_retrained, "ratio_retrained")
    n, m = len(first_N), len(second_M)
    both = np.concatenate([first_N, second_M])
    below_first = np.searchsorted(np.sort(first_N), both, side="right")
    below_second = np.searchsorted(np.sort(second_M), both, side="right")
    # In whole numbers, so that D = k / lcm(n, m) is exact.
    distance = int(np.abs(below_first * m - below_second * n).max())
    ln_floor = math.log(2) - math.log(math.comb(n + m, n))
    if n == m:
        ln_p = _ln_p_equal_sizes(n, distance // n)
    else:
        ln_p = ln_floor if distance == n * m else _ln_p_unequal_sizes(first_N, second_M)
    identical = n == m and bool((np.sort(first_N) == np.sort(second_M)).all())
    return ForgetQuality(math.exp(ln_p), ln_p, distance / (n * m), n, m, math.exp(ln_floor), identical)


def model_utility(parts: Mapping[str, float]) -> Aggregate:
    """Harmonic mean of the nine numbers named in ``UTILITY_PARTS``: 9 / sum_i (1 / part_i); 0 if a part is 0.

    Args:
        parts: mean probability (normalised for ra and wf), ROUGE-L recall and ``truth_ratio_retain`` of each set.

    Returns:
        the value together with the parts.

    Raises:
        ValueError: a part is missing, unknown, NaN or outside [0, 1]; the message names it.

    >>> from probe.metrics.tofu import UTILITY_PARTS
    >>> probe.model_utility(dict.fromkeys(UTILITY_PARTS, 0.5)).value
    0.5
    """
    odd = sorted(set(parts) ^ set(UTILITY_PARTS))
    if odd:
        raise ValueError(
            f"model utility has the parts {', '.join(UTILITY_PARTS)}; missing or unknown: {', '.join(odd)}"
        )
    return harmonic({name: parts[name] for name in UTILITY_PARTS})


def _pair(right: Any, wrong: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    right_N, wrong_NK = losses(right, name), losses(wrong, "wrong_loss_NK", ndim=2)
    same_rows(right_N, wrong_NK, (name, "wrong_loss_NK"))
    return right_N, wrong_NK


def _ratio(ln_wrong_N: np.ndarray, right_loss_N: np.ndarray, eps: float) -> np.ndarray:
    ln_right_N = np.logaddexp(-right_loss_N, math.log(eps)) if eps else -right_loss_N
    with np.errstate(over="ignore"):
        return np.exp(ln_wrong_N - ln_right_N)


def _ratios(values: Any, name: str) -> np.ndarray:
    ratio_N = numbers(values, name, infinite=True)
    negative = int((ratio_N < 0).sum())
    if negative:
        raise ValueError(f"{negative} of {len(ratio_N)} entries of {name} are negative; truth ratios are at least 0")
    return ratio_N


def _ln_p_equal_sizes(n: int, k: int) -> float:
    """ln P(D >= k/n) = ln [2 sum_{i>=1} (-1)^(i-1) C(2n, n - ik) / C(2n, n)] (Gnedenko and Korolyuk 1951).

    In integers: scipy's floats underflow at large n, and where p is 1 they may give 1 + 1e-16, which scipy takes for
    a failure and answers with the asymptotic p.
    """
    if k == 0:
        return 0.0
    total = 0
    for i in range(1, n // k + 1):
        term = math.comb(2 * n, n - i * k)
        if term * 10**20 < total:
            break
        total += term if i % 2 else -term
    return min(0.0, math.log(2) + math.log(total) - math.log(math.comb(2 * n, n)))


def _ln_p_unequal_sizes(first_N: np.ndarray, second_M: np.ndarray) -> float:
    from scipy.stats import ks_2samp

    with warnings.catch_warnings():
        # scipy falls back to the asymptotic p with a warning; that p is 0 where the exact one is 1e-239.
        warnings.simplefilter("error", RuntimeWarning)
        try:
            p = float(ks_2samp(first_N, second_M, method="exact").pvalue)
        except RuntimeWarning as warning:
            why = str(warning)
        else:
            if p > 0:
                return math.log(p)
            why = "p is below the smallest float"
    raise ValueError(
        f"no exact KS p-value for {len(first_N)} and {len(second_M)} truth ratios ({why}); use equally many, or fewer"
    )
