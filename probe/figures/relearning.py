"""Relearning: how fast fine-tuning brings the forgotten back."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.style import Venue, is_reference, look, new_figure, ordered, picked, plain_text
from probe.rows import Row

DIAGNOSTIC = "relearning"


def relearning_curves(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Recovered score of forget rows over fine-tuning steps; one panel a kind of fine-tuning data, dashed: references.

    Args:
        rows: "relearning" rows of one quantity; ``on`` the fine-tuning data ("in-domain", "out-of-domain"), ``item``
            the step. A reference measured at one step only is drawn as a level.
        figure: empty.

    Returns:
        ``{data: {name: {"x", "value", "low", "high", "n"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows, or rows of several quantities.
    """
    found = picked(rows, DIAGNOSTIC, {r.quantity for r in rows if r.diagnostic == DIAGNOSTIC})
    quantities = sorted({row.quantity for row in found})
    if len(quantities) > 1:
        raise ValueError(f"relearning rows of {', '.join(quantities)}; choose one quantity for the figure")
    kinds = sorted({row.on for row in found})
    axes = figure.subplots(1, len(kinds), sharey=True, squeeze=False)[0]
    data: dict[str, Any] = {"not_finite": 0}
    for ax, kind in zip(axes, kinds, strict=True):
        data[kind] = {}
        ends, lost = {}, 0
        own = [row for row in found if row.on == kind]
        for name in ordered(row.intervention for row in own):
            line = sorted((r for r in own if r.intervention == name), key=lambda r: r.item or 0)
            data[kind][name] = banded_numbers([r.item for r in line], line)
            lost += _line(ax, name, line)
            # A level has no end of its own.
            x = [float(r.item or 0) for r in line] if len(line) > 1 else [math.inf]
            ends[name] = end(x, line)
        ax.set_title(plain_text(kind) if kind else "")
        ax.set_xlabel("fine-tuning step")
        note_dropped(ax, lost, inside=True)
        data["not_finite"] += lost
        data[kind]["_ends"] = ends
    axes[0].set_ylabel(f"{quantities[0].replace('_', ' ')} on forget rows →")
    for ax, kind in zip(axes, kinds, strict=True):
        ends = data[kind].pop("_ends")
        right = ax.get_xlim()[1]
        end_labels(ax, {n: (min(x, right), y) for n, (x, y) in ends.items()})
    return data


def _line(ax: Axes, name: str, line: Sequence[Row]) -> int:
    x = [float(r.item or 0) for r in line]
    style = look(name).line()
    if is_reference(name):
        style |= {"linestyle": (0, (4, 2)), "marker": "", "linewidth": 0.9}
        if len(line) == 1:
            value = line[0].value
            if value is not None:
                ax.axhline(value, color=style["color"], linestyle=style["linestyle"], linewidth=0.9, zorder=1)
            return int(value is None)
    return banded(ax, x, line, **style)


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    kinds = {r.on for r in rows if r.diagnostic == DIAGNOSTIC}
    figure = new_figure(sizes.page if len(kinds) > 1 else sizes.narrow, 2.3)
    return figure, relearning_curves(rows, figure)


RELEARNING = Entry(
    "relearning",
    "12",
    "Relearning",
    (DIAGNOSTIC,),
    _draw,
    """Score of held-out forget rows while the unlearned models are fine-tuned. Dashed: the original model, and the
    model that never saw the forget rows under the same fine-tuning. Only what lies above the latter was still
    there.""",
)
