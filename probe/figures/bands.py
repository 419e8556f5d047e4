"""A line with its uncertainty, and the numbers of it."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes

from probe.figures.style import number
from probe.rows import Row


def banded(ax: Axes, x: Sequence[float], rows: Sequence[Row], *, fill: bool = True, **style: Any) -> int:
    """One line through the rows' values, with a band (or whiskers) between the ends of their intervals.

    Args:
        ax: where to draw.
        x: one place a row.
        rows: in the order of ``x``.
        fill: a band; whiskers otherwise, for places that are few or have no order.
        style: arguments of ``Axes.plot``; holds "color".

    Returns:
        how many values were not finite.
    """
    value, low, high = ([number(getattr(row, key)) for row in rows] for key in ("value", "low", "high"))
    if fill:
        ax.fill_between(x, low, high, color=style["color"], alpha=0.15, linewidth=0, zorder=1)
    else:
        ax.vlines(x, low, high, color=style["color"], linewidth=0.8, alpha=0.7, zorder=2)
    ax.plot(x, value, **style)
    return sum(not math.isfinite(v) for v in value)


def banded_numbers(x: Sequence[Any], rows: Sequence[Row]) -> dict[str, list[Any]]:
    """What ``banded`` plots, for the JSON beside a figure."""
    return {"x": list(x)} | {key: [getattr(row, key) for row in rows] for key in ("value", "low", "high", "n")}


def end(x: Sequence[float], rows: Sequence[Row]) -> tuple[float, float]:
    """The last point of a line that is finite."""
    for place, row in zip(reversed(x), reversed(rows), strict=True):
        if row.value is not None:
            return float(place), float(row.value)
    return math.nan, math.nan
