"""Membership inference: can forgotten rows be told from rows the model never saw?"""

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
    """
    for name, number in (("auc", auc), ("auc_reference", auc_reference)):
        if not 0 <= number <= 1:
            raise ValueError(f"{name} must lie in [0, 1], got {number}")
    if auc_reference == 1:
        raise ValueError("auc_reference is 1: the retrained model itself separates members perfectly; check its data")
    return 100 * ((1 - auc) - (1 - auc_reference)) / (1 - auc_reference)
