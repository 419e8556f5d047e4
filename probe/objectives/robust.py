"""Rows put together by how hard they are to forget, not by their plain mean: BalDRO (Shao et al., arXiv 2601.09172).

``SoftWorst`` is for the ``over_rows`` of ``NPO`` and ``SimNPO``; ``OfRows`` and ``OfTokens`` make it a ``normalise`` of
losses over tokens, such as ``SatImp``. ``HardestRows`` takes any objective.
"""

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import nn

from probe.axes import LogpBT, MaskBT, Scalar
from probe.data import Batch
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.sequence import OverRows, ValueB
from probe.objectives.token import check_positive, sequence_sum


@dataclass(frozen=True)
class SoftWorst:
    """L = tau log mean_b exp(l_b / tau): rows weigh in as softmax(l / tau), between the mean and the maximum.

    The supremum over weights q of sum_b q_b l_b - tau KL(q || uniform) (Donsker and Varadhan), as the min-sup of
    BalDRO-DV asks for: what is hard to forget has a large l. The published code computes -tau log mean_b
    exp(-l_b / tau), the infimum of sum_b q_b l_b + tau KL(q || uniform), in which rows that are forgotten already weigh
    most: ``easiest``.

    Args:
        temperature: tau, above 0; large ones approach the mean. The code's configurations have 1, its runs 0.5 to 10.
        easiest: the published code's sign.

    Raises:
        ValueError: the temperature is not positive.
    """

    temperature: float
    easiest: bool = False

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def __call__(self, value_B: ValueB) -> Scalar:
        tau = -self.temperature if self.easiest else self.temperature
        return tau * (torch.logsumexp(value_B / tau, 0) - math.log(len(value_B)))


@dataclass(frozen=True)
class OfRows:
    """A ``normalise``: the mean over each row's chosen tokens, then ``over_rows`` of the rows that have some."""

    over_rows: OverRows

    def __call__(self, value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
        n_B = chosen_BT.sum(1)
        return self.over_rows((value_BT.sum(1) / n_B.clamp(min=1))[n_B > 0])


@dataclass(frozen=True)
class OfTokens:
    """A ``normalise``: ``over`` of the batch's chosen tokens, whatever row they belong to."""

    over: OverRows

    def __call__(self, value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
        return self.over(value_BT[chosen_BT])


@dataclass(frozen=True)
class HardestRows:
    """L = objective(the share of rows that is hardest to forget): BalDRO-G.

    Args:
        objective: what is minimised on the rows that are left.
        share: part of the batch that is kept, rounded down, one row at least; above 0, at most 1. The code's
            configurations have 0.5.
        by: "loss", of each row alone, which takes a pass over single rows; or "likelihood", the mean log-probability
            of a row's targets, as the published code. For SimNPO the two agree. The choice has no gradient; ties go to
            the earlier row.

    Raises:
        ValueError: a share out of range, or an unknown way to choose.

    >>> hard = probe.HardestRows(probe.nll, share=0.5)
    >>> bool(hard(s.retrained, s.split.forget) > 0)
    True
    """

    objective: Objective
    share: float
    by: Literal["loss", "likelihood"] = "loss"

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise ValueError(f"share must lie above 0 and at most at 1, got {self.share}")
        if self.by not in ("loss", "likelihood"):
            raise ValueError(f"by must be 'loss' or 'likelihood', got {self.by!r}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        n = max(1, int(len(batch) * self.share))
        rows = self._hardness(model, batch).argsort(descending=True, stable=True)[:n]
        return self.objective(model, batch.select(rows.sort().values))

    def _hardness(self, model: nn.Module, batch: Batch) -> ValueB:
        with torch.no_grad():
            if self.by == "loss":
                return torch.stack([self.objective(model, batch.select([b])) for b in range(len(batch))])
            n_B = predicted_targets(batch).sum(1)
            return target_logprobs(model, batch).sum(1) / n_B.clamp(min=1)


def summed_nll(model: nn.Module, batch: Batch) -> Scalar:
    """L = -mean_b sum_i log p_i (SS): the retain loss of DrNPO and DrSatImp in BalDRO's code; others average."""
    return -sequence_sum(target_logprobs(model, batch), predicted_targets(batch))
