"""Dose and response of activation edits."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullLocator

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import GREY, INK, Venue, look, new_figure, number, ordered, picked, plain_text
from probe.rows import Row

CONTROL = " (random features)"
UNIT = "dose (median residual norms)"


def dose_curves(rows: Sequence[Row], figure: Figure, *, quantity: str = "probability") -> dict[str, Any]:
    """Score on forget data (above) and on retain data (below) against the dose; a column of panels an edit.

    One line for each number of features, light to dark; dashed grey is the same edit on random features. The dose
    axis is linear up to the smallest dose and logarithmic beyond, so the unedited model (dose 0) stays on it; the
    dotted line continues its score, and the dashed line is the retrained model's, if it was measured.

    Args:
        rows: "dose" rows; ``dose`` in median residual norms, ``item`` the number of features.
        figure: an empty figure.
        quantity: what was scored.

    Returns:
        edit -> on -> list of ``{"edit", "features", "dose": [...], "value": [...]}``, "retrained" (on -> score) and
        "not_finite".

    Raises:
        ValueError: no such rows, or a row without a dose.
    """
    found = picked(rows, "dose", [quantity])
    without = [row for row in found if row.dose is None]
    if without:
        raise ValueError(f"{len(without)} 'dose' rows hold no dose, first {without[0]}; write the dose, 0 for no edit")
    edits = [name for name in ordered(row.intervention for row in found) if not name.endswith(CONTROL)]
    sides = [on for on in ("forget", "retain") if any(row.on == on for row in found)]
    grid = figure.subplots(len(sides), len(edits), sharex="col", sharey=True, squeeze=False)
    drawn: dict[str, Any] = {edit: {} for edit in edits}
    retrained = {
        row.on: number(row.value)
        for row in rows
        if (row.intervention, row.diagnostic, row.quantity) == ("retrained", "performance", quantity)
    }
    lost = 0
    for column, edit in enumerate(edits):
        own = [row for row in found if row.intervention in (edit, edit + CONTROL)]
        counts = sorted({row.item for row in own if row.item is not None})
        # Before the lines: their margins are laid in the units of the scale.
        _scale(grid[-1, column], [float(row.dose) for row in own if row.dose is not None])
        for line, on in enumerate(sides):
            ax = grid[line, column]
            drawn[edit][on], missing = _panel(ax, edit, [row for row in own if row.on == on], counts)
            note_dropped(ax, missing, inside=True)
            lost += missing
            _zero(ax, drawn[edit][on])
            _retrained(ax, retrained.get(on), named=column == 0)
        grid[0, column].set_title(plain_text(edit, width=22), color=look(edit).colour)
        if len(counts) > 1:
            grid[0, column].legend(
                title="features",
                title_fontsize=small_text() - 0.5,
                fontsize=small_text() - 0.5,
                loc="best",
                labelspacing=0.15,
                frameon=True,
                facecolor="white",
                edgecolor="none",
                framealpha=0.9,
            )
    for line, on in enumerate(sides):
        grid[line, 0].set_ylabel(f"{quantity.replace('_', ' ')}\non {on} data {'↓' if on == 'forget' else '↑'}")
    figure.supxlabel(UNIT, fontsize=matplotlib.rcParams["axes.labelsize"], color=INK)
    return drawn | {"not_finite": lost, "retrained": {on: retrained[on] for on in sides if on in retrained}}


def _panel(ax: Axes, edit: str, rows: Sequence[Row], counts: Sequence[int]) -> tuple[list[dict[str, Any]], int]:
    drawn: list[dict[str, Any]] = []
    lost = 0
    shades = matplotlib.colormaps["viridis_r"](np.linspace(0.15, 0.95, max(len(counts), 1)))
    for name in sorted({row.intervention for row in rows}, key=lambda name: (name == edit, name)):
        for count in sorted({row.item for row in rows if row.intervention == name}, key=lambda c: (c is not None, c)):
            own = [row for row in rows if (row.intervention, row.item) == (name, count)]
            points = sorted((float(row.dose or 0.0), number(row.value)) for row in own)
            dose, value = [p[0] for p in points], [p[1] for p in points]
            lost += sum(not math.isfinite(v) for v in value)
            style: dict[str, Any] = {
                "marker": look(edit).marker,
                "markeredgecolor": "white",
                "color": look(edit).colour,
            }
            if name != edit:
                style = {"color": GREY, "linestyle": (0, (3, 1.5)), "linewidth": 0.9, "marker": ".", "zorder": 1}
                style["label"] = "random"
            elif count is not None and len(counts) > 1:
                style |= {"color": shades[counts.index(count)], "label": str(count)}
            if any(line["edit"] == name for line in drawn) and name != edit:
                style.pop("label")
            ax.plot(dose, value, **style)
            drawn.append({"edit": name, "features": count, "dose": dose, "value": value})
    return drawn, lost


def _zero(ax: Axes, drawn: Sequence[dict[str, Any]]) -> None:
    """Continue the score of the unedited model over the panel."""
    start = [v for line in drawn for d, v in zip(line["dose"], line["value"], strict=True) if d == 0 and v == v]
    if start:
        ax.axhline(start[0], color=look("original").colour, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)


def _retrained(ax: Axes, value: float | None, *, named: bool) -> None:
    """The score of the model that never saw the forget data."""
    if value is None or not math.isfinite(value):
        return
    style = look("retrained")
    ax.axhline(value, color=style.colour, linewidth=0.8, linestyle=style.line()["linestyle"], zorder=1)
    if named:
        ax.annotate(
            "retrained",
            (0, value),
            xycoords=("axes fraction", "data"),
            xytext=(2, 1.5 if value < 0.9 else -1.5),
            textcoords="offset points",
            va="bottom" if value < 0.9 else "top",
            color=style.colour,
            fontsize=small_text() - 0.5,
        )


def _scale(ax: Axes, doses: Sequence[float]) -> None:
    sizes = sorted({abs(dose) for dose in doses if dose != 0})
    if not sizes:
        return
    if len(sizes) > 1 and sizes[-1] / sizes[0] > 5:
        ax.set_xscale("symlog", linthresh=sizes[0], linscale=0.5)
        ax.xaxis.set_minor_locator(NullLocator())
    # Ticks are doses that were given, thinned to seven.
    given = sorted(set(doses))
    nonzero = [dose for dose in given if dose != 0]
    keep = {nonzero[i] for i in np.linspace(0, len(nonzero) - 1, min(len(nonzero), 6)).round().astype(int)}
    ax.set_xticks([dose for dose in given if dose == 0 or dose in keep])
    ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}".replace("-", "−")))


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    edits = {r.intervention for r in rows if r.diagnostic == "dose" and not r.intervention.endswith(CONTROL)}
    figure = new_figure(sizes.page if len(edits) > 1 else sizes.narrow, 3.0)
    return figure, dose_curves(rows, figure)


DOSE_RESPONSE = Entry(
    "dose_response",
    "",
    "Dose and response",
    ("dose",),
    _draw,
    """Dose and response of activation edits. The dotted line continues the score of the unedited model (dose 0);
    dashed grey is the same edit on randomly chosen features.""",
)
