"""Requests to forget that come one after another."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.figures.bands import banded, banded_numbers, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.style import Venue, look, new_figure, number, ordered, picked
from probe.rows import Row

DIAGNOSTIC = "continual"
_TITLES = {"utility": "Utility ↑", "forgetting": "Forgetting ↑"}


def over_tasks(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Utility (left) and forgetting (right) after each request; the retrained model is a band, the original a level.

    Args:
        rows: "continual" rows, quantities "utility" and "forgetting" in [0, 1], ``item`` the number of requests so
            far.
        figure: empty.

    Returns:
        ``{quantity: {name: {"x", "value", "low", "high", "n"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, DIAGNOSTIC, _TITLES)
    shown = [quantity for quantity in _TITLES if any(row.quantity == quantity for row in found)]
    axes = figure.subplots(1, len(shown), squeeze=False)[0]
    data: dict[str, Any] = {"not_finite": 0}
    for ax, quantity in zip(axes, shown, strict=True):
        data[quantity], lost, ends = {}, 0, {}
        for name in ordered(row.intervention for row in found):
            line = [r for r in found if (r.quantity, r.intervention) == (quantity, name)]
            line.sort(key=lambda r: r.item or 0)
            if not line:
                continue
            x = [float(r.item or 0) for r in line]
            data[quantity][name] = banded_numbers([r.item for r in line], line)
            lost += _retrained(ax, x, line) if name == "retrained" else banded(ax, x, line, **look(name).line())
            ends[name] = end(x, line)
        ax.set_title(_TITLES[quantity])
        ax.set_xlabel("requests so far")
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        note_dropped(ax, lost, inside=True)
        data["not_finite"] += lost
        end_labels(ax, ends)
    return data


def _retrained(ax: Axes, x: Sequence[float], line: Sequence[Row]) -> int:
    """The gold standard as a shaded band: its interval, or a hair's breadth where there is none."""
    value, low, high = ([number(getattr(r, key)) for r in line] for key in ("value", "low", "high"))
    colour = look("retrained").colour
    low = [v - 0.004 if math.isnan(e) else e for v, e in zip(value, low, strict=True)]
    high = [v + 0.004 if math.isnan(e) else e for v, e in zip(value, high, strict=True)]
    ax.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0, zorder=1)
    return sum(math.isnan(v) for v in value)


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.0)
    return figure, over_tasks(rows, figure)


CONTINUAL = Entry(
    "continual",
    "19",
    "Requests one after another",
    (DIAGNOSTIC,),
    _draw,
    """Utility and forgetting after each of several requests to forget. Shaded: the retrained model, which never saw
    what is to be forgotten.""",
)
