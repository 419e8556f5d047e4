"""UWC: mix a model before and after unlearning until it retains as much as was asked for, then compare the forgetting.

Wang et al., arXiv 2406.09179: theta_a = (1 - a) theta_original + a theta_unlearned over all weights.

>>> calibrated = study.unlearn("uwc", unlearned=study.retrained, share=0.9)
"""

import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass

from torch import nn

from probe.methods.method import method
from probe.methods.published import Published
from probe.sites import n_layers
from probe.weights import blended


@dataclass(frozen=True)
class Calibration:
    """The mixing weight that was found.

    Args:
        alpha: weight of the unlearned model; ``mixed(original, unlearned, alpha)`` is the calibrated model.
        score: retain score at ``alpha``, at least ``bar``.
        bar: share * the original's retain score.
        tried: every (alpha, score) in the order tried; the score at 0 comes first.
    """

    alpha: float
    score: float
    bar: float
    tried: tuple[tuple[float, float], ...]


def mixed(original: nn.Module, unlearned: nn.Module, alpha: float) -> AbstractContextManager[None]:
    """Run ``original`` with theta_a inside the block, embeddings, final norm and head included."""
    return blended(original, unlearned, [alpha] * n_layers(original), alpha)


@method(
    "no gradient",
    "(1-a) theta0 + a theta_unlearned, the largest a that keeps a share of the retain score",
    "Wang et al., arXiv 2406.09179",
    trains="mixes all parameters of two models",
    published={"tofu": Published("Wang et al., arXiv 2406.09179, TOFU (0.9 in hard cases)", {"share": 0.95})},
    makes="mixture",
)
def uwc(
    model: nn.Module,
    unlearned: nn.Module,
    score: Callable[[nn.Module], float],
    *,
    share: float,
    tolerance: float = 0.01,
) -> Calibration:
    """The largest a in [0, 1] with score(theta_a) >= share * score(theta_original), by bisection.

    Bisection supposes that the score falls as a grows; the paper's score, extraction strength on retain rows, nearly
    does. The a that is returned meets the bar in any case.

    Args:
        model: the original, before unlearning; mixed in place while scored, restored afterwards.
        unlearned: the model after.
        score: how much a model retains, higher is better, on other rows than are reported on.
        share: in (0, 1]; published runs use 0.95.
        tolerance: how close the end of the interval must come.

    Raises:
        ValueError: a share or tolerance out of range, a score that is not finite, or not positive at the start.

    >>> def score(model):
    ...     return float(probe.answer_stats(model, s.split.retain).probability_N.mean())
    >>> found = probe.uwc(s.original, s.retrained, score, share=0.95, tolerance=0.1)
    >>> 0 <= found.alpha <= 1
    True
    """
    if not 0 < share <= 1 or not 0 < tolerance < 1:
        raise ValueError(f"share must lie in (0, 1] and tolerance in (0, 1), got {share} and {tolerance}")
    tried: list[tuple[float, float]] = []

    def at(alpha: float) -> float:
        with mixed(model, unlearned, alpha):
            value = float(score(model))
        if not math.isfinite(value):
            raise ValueError(f"the retain score at alpha {alpha:g} is {value}; nothing can be compared with it")
        tried.append((alpha, value))
        return value

    start = at(0.0)
    if not start > 0:
        raise ValueError(f"the original's retain score is {start:g}; a share of it needs a score above 0")
    bar = share * start
    end = at(1.0)
    if end >= bar:
        return Calibration(1.0, end, bar, tuple(tried))
    low, kept, high = 0.0, start, 1.0
    while high - low > tolerance:
        middle = (low + high) / 2
        value = at(middle)
        if value >= bar:
            low, kept = middle, value
        else:
            high = middle
    return Calibration(low, kept, bar, tuple(tried))
