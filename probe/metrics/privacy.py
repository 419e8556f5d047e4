"""Membership inference: can forgotten rows be told from rows the model never saw?"""

import math
from typing import Any

import numpy as np

from probe.metrics.arrays import numbers


def auc(score_member: Any, score_nonmember: Any) -> float:
    """P(score of a non-member > score of a member), ties counted half.

    Scores are larger for non-members, as losses are. 1: the forget rows are still recognised as members; 0.5:
    chance; below 0.5: the forget rows look less familiar than rows never seen (over-unlearned).

    Args:
        score_member: scores of the forget rows (mean loss, Min-K %, ...), 1 axis.
        score_nonmember: scores of rows the model never saw, 1 axis.

    Returns:
        the area under the ROC curve in [0, 1].

    Raises:
        ValueError: an empty side, or NaN.

    >>> probe.auc([1.0, 2.0], [3.0, 4.0])
    1.0
    """
    member_N = np.sort(numbers(score_member, "score_member", infinite=True))
    other_M = numbers(score_nonmember, "score_nonmember", infinite=True)
    below_M = np.searchsorted(member_N, other_M, side="left")
    not_above_M = np.searchsorted(member_N, other_M, side="right")
    return float((below_M + not_above_M).sum() / (2 * len(member_N) * len(other_M)))


def privleak(auc: float, auc_reference: float = 0.5) -> float:
    """PrivLeak = 100 ((1 - AUC) - (1 - AUC_ref)) / (1 - AUC_ref), in percent (MUSE, arXiv 2407.06460).

    AUC in the direction of ``auc`` above. -100: members are recognised perfectly; 0: as in the reference; positive:
    over-unlearned.

    Args:
        auc: of the unlearned model, in [0, 1].
        auc_reference: of the retrained model; 0.5 is chance.

    Returns:
        the percentage.

    Raises:
        ValueError: an AUC outside [0, 1], or a reference of 1, which leaves nothing to compare with.

    >>> probe.privleak(0.75, auc_reference=0.5)
    -50.0
    """
    for name, number in (("auc", auc), ("auc_reference", auc_reference)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")
    if auc_reference == 1:
        raise ValueError("auc_reference is 1: the retrained model itself separates members perfectly; check its data")
    return rel_diff(1 - auc, 1 - auc_reference)


def rel_diff(value: float, reference: float, *, eps: float = 0.0) -> float:
    """100 (value - reference) / reference, in percent: how far any number of a model is from the retrained one's.

    ``rel_diff`` of OpenUnlearning (arXiv 2506.12618), which takes it of AUCs; PrivLeak is that of 1 - AUC. Of an AUC,
    values above 0 say that forget rows are recognised better than by the retrained model.

    Args:
        value: of the unlearned model.
        reference: of the retrained model.
        eps: added to the denominator; OpenUnlearning adds 1e-10.

    Returns:
        the percentage.

    Raises:
        ValueError: a number that is not finite, or a denominator of 0.
    """
    if not (math.isfinite(value) and math.isfinite(reference) and math.isfinite(eps)):
        raise ValueError(f"value, reference and eps must be finite, got {value}, {reference} and {eps}")
    if reference + eps == 0:
        raise ValueError("the reference is 0, so that no difference is relative to it; give the plain difference")
    return 100 * (value - reference) / (reference + eps)
