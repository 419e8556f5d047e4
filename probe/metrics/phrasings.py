"""Worst cases: a fact is forgotten only if no wording of its question brings it back."""

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from jaxtyping import Int

from probe.metrics.arrays import ArrayN, numbers


@dataclass(frozen=True)
class Phrasings:
    """One number per fact, over the wordings it was asked for in.

    Args:
        worst_N: the value that gives most away.
        mean_N: the mean.
        which_N: which wording gives most away; the first of equal ones.
    """

    worst_N: ArrayN = field(repr=False)
    mean_N: ArrayN = field(repr=False)
    which_N: Int[np.ndarray, " N"] = field(repr=False)

    @property
    def worst(self) -> float:
        """Mean of the worst cases: for what is to be forgotten."""
        return float(self.worst_N.mean())

    @property
    def mean(self) -> float:
        """Mean of the means: for what is to be kept."""
        return float(self.mean_N.mean())


def over_phrasings(value_NK: Any, *, known: Literal["high", "low"]) -> Phrasings:
    """Worst and mean case of each of N facts over K wordings of its question (Singh et al., arXiv 2509.02820).

    With 1 for an answer that a judge calls right and 0 for others, ``worst`` is their worst-case accuracy: the share of
    forget facts that at least one wording brings back, paraphrases and prompts with retain rows in front alike. They
    report ``mean`` for retain facts. More wordings can only raise the worst case, so compare equal K.

    Args:
        value_NK: any number per fact and wording: right or not, probability, ROUGE, loss.
        known: whether high or low values give the fact away ("low" for a loss).

    Raises:
        ValueError: no facts or wordings, rows of unequal length, or NaN.
    """
    array_NK = numbers(value_NK, "value_NK", ndim=2)
    which_N = (array_NK if known == "high" else -array_NK).argmax(1)
    return Phrasings(array_NK[np.arange(len(array_NK)), which_N], array_NK.mean(1), which_N)
