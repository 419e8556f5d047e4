"""GRU (Wang et al., arXiv 2503.09117): the forget gradient without the part that would undo what is to be kept.

``Rectified`` is a way of stepping that any method takes as ``stepping=``; here are pairings of the paper. ``training``
is as in ``probe.methods.unlearn``.

>>> unlearned = study.unlearn("npo_gru", beta=0.1, smoothing=0.8, lr=3e-4, steps=2, batch_size=4)
"""

from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import check_original
from probe.objectives import token as objectives
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.sequence import NPO
from probe.objectives.token import nll
from probe.train import History, Step, Term, minimise
from probe.train.step import Gradient, Losses, added, norm

_PORT = "configuration of the port to OpenUnlearning in the code of Li et al., arXiv 2510.19422"


@dataclass(eq=False)
class Rectified:
    """A way of stepping: g - min(0, <g, m>) m / |m|^2 + w r, g of all other terms, r and m of the retain term.

    Wang et al., arXiv 2503.09117: the gradient nearest to g under which the retain loss does not rise, to first order.
    m <- gamma r + (1 - gamma) m is a moving average over steps that starts at 0, and <., .> runs over all trained
    weights together. The released code can also bound what is taken away: <g, m> counts as at least c |g| |m|.

    Args:
        smoothing: gamma in (0, 1]; 1 takes each step's own retain gradient. With less, m is not in a checkpoint: a run
            that resumes from one starts it anew.
        retain_weight: w, at least 0. 0 is GRU; above 0 the retain loss is descended too, as variants in the code do.
        least_cosine: c in [-1, 0); -1 bounds nothing, the code's option has -0.5. Above -1 a gradient that opposes m
            more than so still does afterwards.
        retain: name of the retain term.

    Raises:
        ValueError: a number out of range; when called, a term that is not there or no other one.
    """

    smoothing: float
    retain_weight: float = 0.0
    least_cosine: float = -1.0
    retain: str = "retain"
    mean: Gradient = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not 0 < self.smoothing <= 1:
            raise ValueError(f"smoothing must lie above 0 and at most at 1, got {self.smoothing}")
        if not self.retain_weight >= 0:
            raise ValueError(f"retain_weight must be at least 0, got {self.retain_weight}")
        if not -1 <= self.least_cosine < 0:
            raise ValueError(f"least_cosine must lie between -1 and 0, got {self.least_cosine}")

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        kept, others = step.chosen((self.retain,))
        losses, gradient = step.gradient(others)
        found, retain = step.gradient(kept)
        old = {name: (1 - self.smoothing) * value for name, value in self.mean.items()}
        self.mean = added(old, retain, self.smoothing)
        along = _product(gradient, self.mean)
        if along < 0:
            along = max(along, self.least_cosine * norm(gradient) * norm(self.mean))
            gradient = added(gradient, self.mean, -along / _product(self.mean, self.mean))
        return losses | found, added(gradient, retain, self.retain_weight) if self.retain_weight else gradient


@method(
    "divergence",
    "log p(forget), its gradient without what would raise NLL(retain)",
    "Wang et al., arXiv 2503.09117",
    published={"open-unlearning-port": Published(_PORT, {"smoothing": 0.8, "batch_size": 32})},
)
def ga_gru(
    model: nn.Module,
    split: Split,
    *,
    smoothing: float,
    retain_weight: float = 0.0,
    least_cosine: float = -1.0,
    **training: Any,
) -> History:
    """Gradient ascent, rectified."""
    return _rectified(model, split, objectives.ga, Rectified(smoothing, retain_weight, least_cosine), training)


@method(
    "divergence",
    "NPO, its gradient without what would raise NLL(retain)",
    "Wang et al., arXiv 2503.09117",
    published={"open-unlearning-port": Published(_PORT, {"smoothing": 0.8, "beta": 0.1, "batch_size": 32})},
)
def npo_gru(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    beta: float,
    smoothing: float,
    retain_weight: float = 0.0,
    least_cosine: float = -1.0,
    **training: Any,
) -> History:
    """Negative preference optimisation, rectified."""
    check_original(model, original)
    way = Rectified(smoothing, retain_weight, least_cosine)
    return _rectified(model, split, NPO(original, beta), way, training)


def _rectified(
    model: nn.Module, split: Split, objective: Objective, way: Rectified, training: dict[str, Any]
) -> History:
    if training.get("checkpoint") is not None and way.smoothing < 1:
        raise ValueError(
            "the mean of retain gradients would be lost at a checkpoint; leave it out, or take smoothing=1"
        )
    terms = [Term(1.0, objective, split.forget, "forget"), Term(1.0, nll, split.retain, way.retain)]
    return minimise(model, terms, stepping=way, **training)


def _product(one: Gradient, other: Gradient) -> float:
    return sum(float((value * other[name]).sum()) for name, value in one.items() if name in other)
