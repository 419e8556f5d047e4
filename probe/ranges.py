"""In which range a number that a user gives must lie: stated where the number is declared, refused in one place."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, fields, is_dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints


@dataclass(frozen=True)
class Range:
    """From where to where a number may be.

    Args:
        low: smallest value.
        high: largest value.
        above: whether ``low`` itself is excluded.
        note: what the message adds to the range.
    """

    low: int | float = -math.inf
    high: int | float = math.inf
    above: bool = False
    note: str = ""

    def holds(self, value: int | float) -> bool:
        """Whether a number is finite and lies in the range."""
        finite = isinstance(value, int) or math.isfinite(value)  # an integer may be too large for a float
        return finite and (self.low < value if self.above else self.low <= value) and value <= self.high

    def __str__(self) -> str:
        if math.isfinite(self.low) and math.isfinite(self.high) and not self.above:
            text = f"from {self.low} to {self.high}"
        else:
            ends = [f"{'above' if self.above else 'at least'} {self.low}"] if math.isfinite(self.low) else ["finite"]
            text = " and ".join([*ends, *([f"at most {self.high}"] if math.isfinite(self.high) else [])])
        return text + self.note


Count = Annotated[int, Range(1, 2**31 - 1)]
"""How many of something."""
Length = Annotated[int, Range(2, 2**31 - 1)]
"""Tokens of a text: one to read and one to predict, at least."""
CountOrNone = Annotated[int, Range(0, 2**31 - 1)]
"""How many, where 0 leaves the thing out."""
Place = Annotated[int, Range(0, 2**31 - 1)]
"""A layer, feature or other thing that is counted from 0."""
Seed = Annotated[int, Range(0, 2**32 - 1)]
"""What numpy, scikit-learn and torch all take."""
Threads = Annotated[int, Range(1, os.cpu_count() or 1, note=", the cores of this machine")]
"""CPU threads."""
Positive = Annotated[float, Range(0, above=True)]
"""A learning rate, say."""
Weight = Annotated[float, Range(0)]
"""A weight, a dose, a price: at least 0."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole."""

WEIGHTS = "weights"
ModelName = Annotated[str, WEIGHTS]
"""The folder (safetensors) of a model, or its name on the hub; a sweep's cells depend on the weights behind it."""


def check_ranges(asked: Any, within: str = "") -> None:
    """Refuse a number outside of the range that its field states, and a choice that is none of those stated.

    Fields that are dataclasses are looked into.

    Args:
        asked: a dataclass whose numbers are annotated with a ``Range``; numbers without one may be anything.
        within: what the flags begin with.

    Raises:
        ValueError: with the flag, what was given, and the range or the choices.
    """
    hints = get_type_hints(type(asked), include_extras=True)
    for one in fields(asked):
        value = getattr(asked, one.name)
        if is_dataclass(value):
            check_ranges(value, f"{within}{one.name}.")
            continue
        values = value if isinstance(value, (tuple, list)) else (value,)
        flag = f"--{within}{one.name}".replace("_", "-")
        choices = _choices_in(hints[one.name])
        odd = [item for item in values if choices and item is not None and item not in choices]
        if odd:
            raise ValueError(f"{flag} must be one of {', '.join(map(str, choices))}; got {odd[0]!r}")
        for kind, limits in ranges_in(hints[one.name]):
            for number in values:
                if limits is None or number is None:
                    continue
                if not isinstance(number, (int, float)) or not limits.holds(number):
                    whole = "a whole number " if kind is int else ""
                    raise ValueError(f"{flag} must be {whole}{limits}, got {shortened(number)}")


def shortened(number: int | float) -> str:
    """A number for a message: how many digits there are, where they would fill the line."""
    if not isinstance(number, int) or abs(number) < 10**20:
        return str(number)
    digits = round(abs(number).bit_length() * math.log10(2))
    return f"a number of about {digits} digits"


def _choices_in(hint: Any) -> tuple[Any, ...]:
    """What a type such as ``Literal["a", "b"] | None`` names."""
    if get_origin(hint) is Literal:
        return get_args(hint)
    return tuple(one for inner in get_args(hint) for one in _choices_in(inner))


def ranges_in(hint: Any) -> Iterator[tuple[type, Range | None]]:
    """int or float, and its range or None, for every number in a type such as ``Count | None``."""
    if hint in (int, float):
        yield hint, None
    metadata = getattr(hint, "__metadata__", ())
    limits = next((one for one in metadata if isinstance(one, Range)), None)
    for inner in get_args(hint)[:1] if metadata else get_args(hint):
        for kind, own in ranges_in(inner):
            yield kind, own or limits
