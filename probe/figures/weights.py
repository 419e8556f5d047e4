"""Weights that objectives give to answers and tokens, and those they could give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped, point_labels, small_text
from probe.figures.layers import symlog_axis
from probe.figures.style import FORGET, GREY, INK, RETAIN, Venue, look, new_figure, number, picked
from probe.rows import Row


def weights_by_quarter(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """NPO's weights: over steps (left), and what unlearning an answer does by the weight it gets (right).

    Figure 3 of Wang et al. (arXiv 2502.19301).

    Args:
        rows: "npo_weight" rows: quantity "weight over steps" with ``item`` the step, and quantity "rise" on "forget"
            and "retain" with ``item`` the quarter of answers by weight, 0 the lightest: one row a quarter (a mean with
            its interval), or one an answer, which makes boxes.
        figure: empty.

    Returns:
        the numbers drawn.

    Raises:
        ValueError: no such rows.
    """
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    data: dict[str, Any] = {"over steps": {}, "by quarter": {}}
    ends, lost = {}, 0
    for name in dict.fromkeys(r.intervention for r in picked(rows, "npo_weight", ["weight over steps"])):
        line = [r for r in rows if (r.quantity, r.intervention) == ("weight over steps", name)]
        line.sort(key=lambda r: r.item or 0)
        x = [float(r.item or 0) for r in line]
        lost += banded(left, x, line, **look(name).line())
        ends[name] = end(x, line)
        data["over steps"][name] = [[r.item, r.value, r.low, r.high] for r in line]
    left.set_ylim(0, 1.05)
    left.set_xlabel("step")
    left.set_ylabel("mean weight of an answer")
    note_dropped(left, lost, inside=True)
    found = picked(rows, "npo_weight", ["rise"], ["forget", "retain"])
    missing, counts = 0, [""] * 4
    for shift, (on, colour, marker) in zip(
        (-0.16, 0.16), (("forget", FORGET, "v"), ("retain", RETAIN, "s")), strict=True
    ):
        own = [r for r in found if r.on == on]
        data["by quarter"][on] = [[r.item, r.value, r.low, r.high] for r in own]
        missing += sum(r.value is None for r in own)
        for quarter in range(4):
            here = [r for r in own if r.item == quarter]
            _quarter(right, quarter + shift, here, colour, marker)
            n = len(here) if len(here) > 1 else next((r.n for r in here), None)
            counts[quarter] = f"\nn = {n}" if n is not None else counts[quarter]
        right.plot([], [], color=colour, marker=marker, linestyle="none", markersize=4.5, label=f"{on} loss")
    right.axhline(0, color=GREY, linewidth=0.6)
    words = ("lightest", "2nd", "3rd", "heaviest")
    right.set_xticks(range(4), [word + count for word, count in zip(words, counts, strict=True)])
    right.set_xlabel("quarter of answers, by NPO's weight")
    right.set_ylabel("rise of the loss per step\nif the answer is unlearned")
    symlog_axis(right, np.array([number(r.value) for r in found]))
    right.margins(y=0.08)
    right.legend(fontsize=small_text())
    note_dropped(right, missing, inside=True)
    end_labels(left, ends)
    return data | {"not_finite": lost + missing}


def _quarter(ax: Axes, x: float, rows: Sequence[Row], colour: str, marker: str) -> None:
    """A box over the answers of a quarter, or one mean with its interval."""
    values = [r.value for r in rows if r.value is not None]
    if len(rows) > 1 and values:
        line = {"color": colour, "linewidth": 0.8}
        flier = {"marker": ".", "markersize": 2, "markerfacecolor": colour, "markeredgewidth": 0}
        ax.boxplot(
            values, positions=[x], widths=0.24, manage_ticks=False, boxprops=line, whiskerprops=line, capprops=line,
            medianprops={**line, "linewidth": 1.4}, flierprops=flier,
        )  # fmt: skip
        return
    for row in rows:
        ax.vlines([x], number(row.low), number(row.high), color=colour, linewidth=0.8)
        ax.plot([x], [number(row.value)], color=colour, marker=marker, linestyle="none", markersize=4.5)


def weightings(
    rows: Sequence[Row],
    ax: Axes,
    *,
    curve: Sequence[tuple[float, float]] = (),
    bound: Sequence[tuple[float, float]] = (),
) -> dict[str, Any]:
    """Every way of weighting tokens in the plane of retain harm and forgetting, at one checkpoint.

    Each line is one published objective over its hyper-parameter, scaled to the same total weight.

    Args:
        rows: "reweighting" rows, quantities "forgetting" and "harm"; ``on`` the family, ``dose`` its hyper-parameter.
        ax: where to draw.
        curve: (harm, forgetting) of the best weightings (``probe.diagnostics.reweighting``), by growing bound.
        bound: the same by the harm to the rows they were chosen by, which bounds what any weighting reaches there.

    Returns:
        ``{"lines": {family: [[dose, harm, forgetting], ...]}, "curve": [...], "bound": [...]}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "reweighting", ["forgetting", "harm"])
    at = {(row.on, row.dose, row.quantity): number(row.value) for row in found}
    lines = {
        family: [
            [dose, at[family, dose, "harm"], at[family, dose, "forgetting"]]
            for dose in sorted({row.dose for row in found if row.on == family and row.dose is not None})
        ]
        for family in dict.fromkeys(row.on for row in found)
    }
    lost = sum(not np.isfinite(p[1:]).all() for points in lines.values() for p in points)
    ax.axvline(0, color=GREY, linewidth=0.6, zorder=1)
    for best, dash, width in ((bound, (0, (3, 2)), 0.8), (curve, "-", 1.3)):
        ax.plot([p[0] for p in best], [p[1] for p in best], color=INK, linewidth=width, linestyle=dash, zorder=3)
    labels = {}
    for family, points in lines.items():
        style = look(family).line()
        x, y = [p[1] for p in points], [p[2] for p in points]
        ax.plot(x, y, **{**style, "markersize": 3.0 if len(points) > 1 else 6.0}, zorder=4)
        labels[family] = (x[-1], y[-1])
    if curve:
        ax.annotate(
            "best weights",
            curve[len(curve) // 2],
            (4, -9),
            textcoords="offset points",
            fontsize=small_text(),
            color=INK,
        )
    ax.set_xlabel("rise of the retain loss per step and weight (harm →)")
    ax.set_ylabel("rise of the forget loss (forgetting →)")
    note_dropped(ax, lost)
    point_labels(ax, labels)
    ways = {"curve": [list(point) for point in curve], "bound": [list(point) for point in bound]}
    return {"lines": lines, **ways, "not_finite": lost}


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.1)
    return figure, weights_by_quarter(rows, figure)


NPO_WEIGHTS = Entry(
    "npo_weights",
    "3",
    "Weights of NPO",
    ("npo_weight",),
    _draw,
    """Left: mean weight that NPO gives to an answer, over steps. Right: what unlearning an answer does to the loss of
    forget and of retain rows, by the weight it gets; n is the number behind each mean or box.""",
)
