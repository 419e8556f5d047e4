"""Averages of weights along a run; the run ends with the average in the model."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class SWA:
    """theta_mean <- theta_mean + (theta - theta_mean) / (n + 1): the mean of n + 1 weights.

    Izmailov et al., arXiv 1803.05407.

    Args:
        start: the first weights averaged are those after this many steps.
        every: then those after every so many more.

    Raises:
        ValueError: a number below 1.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> run = dict(steps=3, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(copy.deepcopy(s.original), [term], averaging=probe.SWA(start=1, every=1), **run)
    """

    start: int
    every: int

    def __post_init__(self) -> None:
        _check(self.start, self.every)

    def share(self, n: int) -> float:
        """What part of the average the newest of n + 1 weights makes up."""
        return 1 / (n + 1)


@dataclass(frozen=True)
class EMA:
    """theta_mean <- decay theta_mean + (1 - decay) theta, beginning with the first weights averaged.

    Args:
        decay: in [0, 1).
        start: the first weights averaged are those after this many steps.
        every: then those after every so many more.

    Raises:
        ValueError: a decay outside [0, 1), or a number of steps below 1.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> run = dict(steps=3, lr=3e-4, batch_size=4, seed=0)
    >>> _ = probe.minimise(copy.deepcopy(s.original), [term], averaging=probe.EMA(decay=0.9), **run)
    """

    decay: float
    start: int = 1
    every: int = 1

    def __post_init__(self) -> None:
        _check(self.start, self.every)
        if not 0 <= self.decay < 1:
            raise ValueError(f"decay must lie in [0, 1), got {self.decay}")

    def share(self, n: int) -> float:
        """What part of the average the newest of n + 1 weights makes up."""
        return 1.0 if n == 0 else 1 - self.decay


Averaging = SWA | EMA


def _counted(averaging: Averaging | None, step: int) -> int:
    """How many weights are in the average after ``step`` steps."""
    return 0 if averaging is None or step < averaging.start else 1 + (step - averaging.start) // averaging.every


def next_average(
    averaging: Averaging | None, average: dict[str, Tensor], trained: dict[str, nn.Parameter], step: int
) -> dict[str, Tensor]:
    """The average after ``step`` steps, from that after the step before; kept in float32 at least."""
    n = _counted(averaging, step)
    if averaging is None or n == _counted(averaging, step - 1):
        return average
    share = averaging.share(n - 1)
    with torch.no_grad():
        new = {name: p.detach().to(torch.promote_types(p.dtype, torch.float32)) for name, p in trained.items()}
        return {name: new[name].clone() if n == 1 else average[name].lerp_(new[name], share) for name in trained}


def _check(start: int, every: int) -> None:
    if start < 1 or every < 1:
        raise ValueError(f"start and every must be at least 1 step, got {start} and {every}")
