"""The harmonic mean that benchmarks make one number with, beside the parts it was made from."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Aggregate:
    """A value with the parts it was made from."""

    value: float
    parts: dict[str, float]

    @property
    def zero_parts(self) -> tuple[str, ...]:
        """The parts that pull a harmonic mean to 0."""
        return tuple(name for name, part in self.parts.items() if part == 0)


def harmonic(parts: Mapping[str, float], *, most: float | None = 1.0) -> Aggregate:
    """n / sum_i (1 / part_i); 0 if a part is 0.

    Args:
        parts: numbers by name.
        most: largest number accepted; None for no bound.

    Raises:
        ValueError: no parts, or one that is NaN, infinite, negative or above ``most``; the message names it.

    Example:
        >>> harmonic({"rouge": 0.5, "probability": 1.0})
        Aggregate(value=0.6666666666666666, parts={'rouge': 0.5, 'probability': 1.0})
    """
    given = checked_parts(parts, most)
    value = 0.0 if 0 in given.values() else len(given) / sum(1 / part for part in given.values())
    return Aggregate(value, given)


def checked_parts(parts: Mapping[str, float], most: float | None) -> dict[str, float]:
    """The parts as floats.

    Raises:
        ValueError: as ``harmonic``.
    """
    given = {name: float(part) for name, part in parts.items()}
    top = np.inf if most is None else most
    bad = [f"{name} = {part}" for name, part in given.items() if not (0 <= part <= top and np.isfinite(part))]
    if bad or not given:
        limits = "at least 0" if most is None else f"in [0, {most:g}]"
        raise ValueError(f"parts of a mean must be numbers {limits}; got {', '.join(bad) or 'none at all'}")
    return given
