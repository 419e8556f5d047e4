"""What objectives do as training goes on: G-effects over steps, the weights they give, and those they could give."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.labels import end_labels, note_dropped, point_labels, small
from probe.figures.layers import symlog_axis
from probe.figures.style import FORGET, GREY, INK, RETAIN, look, number, picked
from probe.rows import Row

_SIDES = {
    "forget": ("unlearn G-effect", "forgets", "reinforces", 1),
    "retain": ("retain G-effect", "harms", "helps", -1),
}


def over_steps(rows: Sequence[Row], figure: Figure, panels: Sequence[Sequence[str]]) -> dict[str, Any]:
    """G-effects over training: unlearn effect above, retain effect below, one column a group of methods.

    Figures 1 and 4 of Wang et al. (arXiv 2502.19301). Unwanted sides are shaded; bands are the rows' intervals.

    Args:
        rows: "g_effect" rows, quantity "effect over steps", ``item`` the step, ``on`` "forget" or "retain".
        figure: empty.
        panels: names of the methods of each column; all share the axes.

    Returns:
        ``{"forget" | "retain": {name: {"step", "value", "low", "high"}}}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "g_effect", ["effect over steps"])
    axes = figure.subplots(2, len(panels), sharex="col", sharey="row", squeeze=False)
    data: dict[str, Any] = {"forget": {}, "retain": {}}
    for place, (on, (title, low_word, high_word, unwanted)) in enumerate(_SIDES.items()):
        shown = [number(row.value) for row in found if row.on == on and any(row.intervention in p for p in panels)]
        for ax, names in zip(axes[place], panels, strict=True):
            ends = {}
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            for name in names:
                line = sorted((r for r in found if (r.on, r.intervention) == (on, name)), key=lambda r: r.item or 0)
                if not line:
                    continue
                ends[name] = _band(ax, line, name)
                data[on][name] = {
                    "step": [row.item for row in line],
                    **{key: [getattr(row, key) for row in line] for key in ("value", "low", "high")},
                }
            symlog_axis(ax, np.array(shown))
            data[on].setdefault("_ends", []).append(ends)
        for ax in axes[place]:
            low, high = ax.get_ylim()
            shade = (0, max(high, 0)) if unwanted > 0 else (min(low, 0), 0)
            ax.axhspan(*shade, color="#F3F3F3", zorder=0, linewidth=0)
            ax.set_ylim(low, high)
        axes[place][0].set_ylabel(f"{title}\n← {low_word}   {high_word} →")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for place, on in enumerate(_SIDES):
        for ax, ends in zip(axes[place], data[on].pop("_ends"), strict=True):
            end_labels(ax, ends)
    return data


def _band(ax: Axes, line: Sequence[Row], name: str, **style: Any) -> tuple[float, float]:
    """One line with its interval; its last point."""
    x = [float(row.item or 0) for row in line]
    value, low, high = ([number(getattr(row, key)) for row in line] for key in ("value", "low", "high"))
    drawn = {**look(name).line(), **style}
    ax.fill_between(x, low, high, color=drawn["color"], alpha=0.15, linewidth=0, zorder=1)
    ax.plot(x, value, **drawn)
    note_dropped(ax, sum(v != v for v in value))
    return x[-1], value[-1]


def weights_by_quarter(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """NPO's weights: over steps (left), and what unlearning an answer does by the weight it gets (right).

    Figure 3 of Wang et al. (arXiv 2502.19301).

    Args:
        rows: "npo_weight" rows: quantity "weight over steps" with ``item`` the step, and quantity "rise" on "forget"
            and "retain" with ``item`` the quarter of answers by weight, 0 the lightest.
        figure: empty.

    Returns:
        the numbers drawn.

    Raises:
        ValueError: no such rows.
    """
    left, right = figure.subplots(1, 2, width_ratios=[1, 1.25])
    data: dict[str, Any] = {"over steps": {}, "by quarter": {}}
    ends = {}
    for name in dict.fromkeys(r.intervention for r in picked(rows, "npo_weight", ["weight over steps"])):
        line = [r for r in rows if (r.quantity, r.intervention) == ("weight over steps", name)]
        line.sort(key=lambda r: r.item or 0)
        ends[name] = _band(left, line, name)
        data["over steps"][name] = [[r.item, r.value, r.low, r.high] for r in line]
    left.set_ylim(0, 1.05)
    left.set_xlabel("step")
    left.set_ylabel("mean weight of an answer")
    found = picked(rows, "npo_weight", ["rise"], ["forget", "retain"])
    for shift, (on, colour, marker) in zip(
        (-0.08, 0.08), (("forget", FORGET, "v"), ("retain", RETAIN, "s")), strict=True
    ):
        line = sorted((r for r in found if r.on == on), key=lambda r: r.item or 0)
        x = [(r.item or 0) + shift for r in line]
        value = [number(r.value) for r in line]
        arms = [
            [v - number(r.low) for v, r in zip(value, line, strict=True)],
            [number(r.high) - v for v, r in zip(value, line, strict=True)],
        ]
        right.errorbar(
            x,
            value,
            yerr=arms,
            color=colour,
            marker=marker,
            linestyle="none",
            elinewidth=0.8,
            markersize=4.5,
            label=f"{on} loss",
        )
        data["by quarter"][on] = [[r.item, r.value, r.low, r.high] for r in line]
    right.axhline(0, color=GREY, linewidth=0.6)
    right.set_xticks(range(4), ["lightest", "2nd", "3rd", "heaviest"])
    right.set_xlabel("quarter of answers, by NPO's weight")
    right.set_ylabel("rise of the loss per step\nif the answer is unlearned")
    symlog_axis(right, np.array([number(r.value) for r in found]))
    right.margins(y=0.08)
    right.legend(fontsize=small())
    end_labels(left, ends)
    return data


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
            "best weights", curve[len(curve) // 2], (4, -9), textcoords="offset points", fontsize=small(), color=INK
        )
    ax.set_xlabel("rise of the retain loss per step and weight (harm →)")
    ax.set_ylabel("rise of the forget loss (forgetting →)")
    point_labels(ax, labels)
    return {"lines": lines, "curve": [list(point) for point in curve], "bound": [list(point) for point in bound]}
