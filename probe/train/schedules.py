"""How the learning rate moves over a run: warm-up, then constant, linear or half a cosine, as Hugging Face has them."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from probe.train.terms import Schedule, constant

Decay = Literal["constant", "linear", "cosine"]


@dataclass(frozen=True)
class WarmUp:
    """Factor of the learning rate at step k of T, counted from 0: k / W below W; from there on 1 (``"constant"``),
    (T - k) / (T - W) (``"linear"``) or (1 + cos(pi (k - W) / (T - W))) / 2 (``"cosine"``).

    What transformers' ``get_scheduler`` gives under these names: with a warm-up the first step moves nothing.

    Args:
        decay: what follows the warm-up.
        steps: T.
        warmup: W, at most T; a number below 1 is a share of the steps, rounded down.

    Raises:
        ValueError: an unknown decay, or a warm-up that is negative, not whole, or longer than the run.

    >>> half, last = probe.WarmUp("linear", steps=10, warmup=4), 0.9
    >>> round(half(0.2), 2)
    0.25
    """

    decay: Decay
    steps: int
    warmup: float | int = 0

    def __post_init__(self) -> None:
        if self.decay not in get_args(Decay):
            raise ValueError(f"schedule must be one of {', '.join(get_args(Decay))}, or a function, got {self.decay!r}")
        if not 0 <= self.warmup <= self.steps or (self.warmup > 1 and self.warmup % 1):
            raise ValueError(
                f"warmup must be a whole number of steps, at most the run's {self.steps}, or a share of them below 1, "
                f"got {self.warmup}"
            )

    @property
    def rising(self) -> int:
        """W in steps."""
        return int(round(self.warmup * self.steps, 6)) if self.warmup < 1 else int(self.warmup)

    def __call__(self, progress: float) -> float:
        # The loop counts the step that is being taken.
        k = round(progress * self.steps) - 1
        if k < self.rising:
            return k / self.rising
        done = (k - self.rising) / max(1, self.steps - self.rising)
        if self.decay == "linear":
            return 1 - done
        return (1 + math.cos(math.pi * done)) / 2 if self.decay == "cosine" else 1.0


def scheduled(schedule: Schedule | Decay, steps: int, warmup: float | int) -> Schedule:
    """The schedule by its name, or the function that was given.

    Raises:
        ValueError: as ``WarmUp``, or a warm-up for a function, which has its own.
    """
    if isinstance(schedule, str):
        return WarmUp(schedule, steps, warmup)
    if schedule is constant and warmup:
        return WarmUp("constant", steps, warmup)
    if warmup:
        raise ValueError(
            f"warmup {warmup} goes with a schedule by name (constant, linear, cosine), not with a function"
        )
    return schedule
