"""What fewer bits bring back: a slope for each method."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.style import Venue, is_reference, look, new_figure, ordered, picked
from probe.rows import Row

DIAGNOSTIC = "quantisation"


def slopes(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Score on forget (left) and retain data (right) at falling numbers of bits, the same scale on both.

    Args:
        rows: "quantisation" rows of one quantity, ``item`` the bits of a weight.
        figure: empty.

    Returns:
        ``{"forget" | "retain": {name: {"x", "value", "low", "high", "n"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows, or rows of several quantities.
    """
    found = picked(rows, DIAGNOSTIC, {r.quantity for r in rows if r.diagnostic == DIAGNOSTIC}, ["forget", "retain"])
    quantities = sorted({row.quantity for row in found})
    if len(quantities) > 1:
        raise ValueError(f"quantisation rows of {', '.join(quantities)}; choose one quantity for the figure")
    sides = [on for on in ("forget", "retain") if any(row.on == on for row in found)]
    bits = sorted({row.item or 0 for row in found}, reverse=True)
    place = {number: float(i) for i, number in enumerate(bits)}
    axes = figure.subplots(1, len(sides), sharey=True, squeeze=False)[0]
    data: dict[str, Any] = {"not_finite": 0}
    names = ordered(row.intervention for row in found)
    for ax, on in zip(axes, sides, strict=True):
        data[on], lost, ends = {}, 0, {}
        for k, name in enumerate(names):
            line = sorted((r for r in found if (r.on, r.intervention) == (on, name)), key=lambda r: -(r.item or 0))
            if not line:
                continue
            # A little apart, so that whiskers of equal methods can be told from one another.
            x = [place[r.item or 0] + 0.04 * (k - (len(names) - 1) / 2) for r in line]
            style = look(name).line() | ({"linestyle": (0, (4, 2)), "linewidth": 0.9} if is_reference(name) else {})
            lost += banded(ax, x, line, fill=False, **style)
            data[on][name] = banded_numbers([r.item for r in line], line)
            ends[name] = end(x, line)
        ax.set_xticks(range(len(bits)), [str(number) for number in bits])
        ax.set_xlim(-0.3, len(bits) - 0.7)
        ax.set_xlabel("bits a weight")
        ax.set_title(f"{on} data {'↓' if on == 'forget' else '↑'}")
        note_dropped(ax, lost, inside=True)
        data["not_finite"] += lost
        data[on]["_ends"] = ends
    axes[0].set_ylabel(quantities[0].replace("_", " "))
    for ax, on in zip(axes, sides, strict=True):
        end_labels(ax, data[on].pop("_ends"))
    return data


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.2)
    return figure, slopes(rows, figure)


QUANTISATION = Entry(
    "quantisation",
    "13",
    "Quantisation",
    (DIAGNOSTIC,),
    _draw,
    """Score with weights rounded to fewer bits. A rise on forget data is knowledge that rounding brought back; dashed
    are the original and the retrained model.""",
)
