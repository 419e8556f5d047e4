"""Model utility and forget quality: the trade-off of TOFU, and what replacing single layers does to both."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped, point_labels, small_text
from probe.figures.layers import u_panel
from probe.figures.style import GREY, Venue, is_reference, look, new_figure, number, ordered, picked
from probe.figures.tradeoff import pareto
from probe.rows import Row

LOG10_P = "forget_quality_log10_p"
_UTILITY = "model_utility"
_LIMIT = math.log10(0.05)
_FLOOR = "floor"


def with_log10(rows: Sequence[Row]) -> list[Row]:
    """Forget quality in decimal logarithms, whichever form the rows have; a value measured twice counts once."""

    def turned(row: Row) -> Row:
        if row.quantity != "forget_quality_ln_p":
            return row
        value, low, high = (None if x is None else x / math.log(10) for x in (row.value, row.low, row.high))
        return replace(row, quantity=LOG10_P, value=value, low=low, high=high)

    kept = {(r.intervention, r.diagnostic, r.layer, r.item) for r in rows if r.quantity == LOG10_P}
    return [
        turned(row)
        for row in rows
        if row.quantity != "forget_quality_ln_p" or (row.intervention, row.diagnostic, row.layer, row.item) not in kept
    ]


def utility_against_quality(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """x: model utility; y: log10 of the p of forget quality. A path joins a method's checkpoints, stairs the best.

    Args:
        rows: "evaluation" (or "performance") rows of "model_utility" and of "forget_quality_log10_p" (or "..._ln_p");
            "checkpoint" rows of both with ``item`` the step. Status "floor" is drawn hollow: p says no more than that.
        ax: where to draw.

    Returns:
        ``{"points": {name: [x, y]}, "paths": {name: [[step, x, y], ...]}, "front": [...], "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    rows = with_log10(rows)
    whole = {
        q: {
            r.intervention: r
            for d in ("performance", "evaluation")
            for r in rows
            if (r.diagnostic, r.quantity) == (d, q)
        }
        for q in (_UTILITY, LOG10_P)
    }
    for quantity, found in whole.items():
        if not found:
            raise ValueError(f"no rows of 'evaluation' or 'performance' with {quantity!r}")
    points, lost, hollow = {}, 0, []
    for name in ordered([*whole[_UTILITY], *whole[LOG10_P]]):
        pair = [whole[q].get(name) for q in (_UTILITY, LOG10_P)]
        xy = [math.nan if row is None else number(row.value) for row in pair]
        if not all(map(math.isfinite, xy)):
            lost += 1
            continue
        points[name] = (xy[0], xy[1])
        floor = pair[1] is not None and pair[1].status == _FLOOR
        hollow += [name] if floor else []
        for row, flat in zip(pair, (True, False), strict=True):
            if row is not None and row.low is not None and row.high is not None:
                across = ([row.low, row.high], [xy[1]] * 2) if flat else ([xy[0]] * 2, [row.low, row.high])
                ax.plot(*across, color=look(name).colour, linewidth=0.7, alpha=0.55, zorder=3)
        size = 9 if name == "retrained" else 5
        face = "white" if floor else look(name).colour
        ax.plot(*xy, marker=look(name).marker, color=look(name).colour, markersize=size, markerfacecolor=face, zorder=4)
    paths = _paths(rows, ax, points)
    front = pareto({n: xy for n, xy in points.items() if not is_reference(n)})
    ax.plot([points[n][0] for n in front], [points[n][1] for n in front], color=GREY, linewidth=0.6, zorder=1)
    ax.axhline(_LIMIT, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
    ax.annotate("p = 0.05", (0.99, _LIMIT), (0, -1.5), xycoords=("axes fraction", "data"), textcoords="offset points",
                ha="right", va="top", fontsize=small_text() - 1, color=GREY)  # fmt: skip
    ax.margins(0.09)
    ax.set_xlabel("model utility →")
    ax.set_ylabel("forget quality (log$_{10}$ p) →")
    note_dropped(ax, lost)
    point_labels(ax, points, avoid=[((0.0, _LIMIT), (1.0, _LIMIT))])
    return {"points": points, "floor": hollow, "paths": paths, "front": front, "not_finite": lost}


def _paths(rows: Sequence[Row], ax: Axes, points: dict[str, tuple[float, float]]) -> dict[str, list[list[float]]]:
    own = [r for r in rows if r.diagnostic == "checkpoint" and r.quantity in (_UTILITY, LOG10_P)]
    at = {(r.intervention, r.item, r.quantity): number(r.value) for r in own}
    paths: dict[str, list[list[float]]] = {}
    for name in ordered(r.intervention for r in own):
        steps = sorted({r.item or 0 for r in own if r.intervention == name})
        path = [[float(s), at.get((name, s, _UTILITY), math.nan), at.get((name, s, LOG10_P), math.nan)] for s in steps]
        paths[name] = path
        xs, ys = [p[1] for p in path], [p[2] for p in path]
        if name in points:
            xs, ys = [*xs, points[name][0]], [*ys, points[name][1]]
        ax.plot(xs, ys, color=look(name).colour, linewidth=0.7, marker=".", markersize=3, alpha=0.7, zorder=2)
    return paths


def u_shape_quality(rows: Sequence[Row], axes: Sequence[Axes] | np.ndarray) -> dict[str, Any]:
    """Forget quality (left) and utility (right) with one layer replaced; two panels, never two scales on one.

    The dashed lines are the original and the retrained model, the dotted one the smallest p that the test can give.

    Args:
        rows: "fragility" rows of "forget_quality_log10_p" (or "..._ln_p") on "forget", and of "model_utility", or of
            "probability" on "retain"; the floor is "forget_quality_floor" (a p) of any intervention.
        axes: two axes.

    Returns:
        as ``probe.figures.layers.u_shape``, by "quality" and "utility", with "floor".

    Raises:
        ValueError: no such rows.
    """
    rows = with_log10(rows)
    quality = picked(rows, "fragility", [LOG10_P])
    utility = [r for r in rows if (r.diagnostic, r.quantity) == ("fragility", _UTILITY)]
    word = "Model utility ↑" if utility else "Utility (probability on retain data) ↑"
    utility = utility or picked(rows, "fragility", ["probability"], ["retain"])
    floor = [r.value for r in rows if (r.diagnostic, r.quantity) == ("fragility", "forget_quality_floor") and r.value]
    if floor:
        level = math.log10(floor[0])
        axes[0].axhline(level, color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
        axes[0].annotate("smallest p", (0.02, level), (0, 1.5), xycoords=("axes fraction", "data"),
                         textcoords="offset points", fontsize=small_text() - 1, color=GREY)  # fmt: skip
    drawn: dict[str, Any] = {"floor": floor[:1]}
    for ax, key, found, title in (
        (axes[0], "quality", quality, "Forget quality (log$_{10}$ p) ↑"),
        (axes[1], "utility", utility, word),
    ):
        drawn[key], ends = u_panel(ax, found, flipped=False)
        ax.set_title(title)
        ax.set_xlabel("layer replaced")
        end_labels(ax, ends)
    return drawn


def _draw_tradeoff(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.narrow, 2.7)
    return figure, utility_against_quality(rows, figure.subplots())


def _draw_u(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.0)
    return figure, u_shape_quality(rows, figure.subplots(1, 2))


QUALITY = Entry(
    "utility_quality",
    "6",
    "Model utility against forget quality",
    ("evaluation", "performance", "checkpoint"),
    _draw_tradeoff,
    """Model utility against forget quality (the p of a test against the retrained model; TOFU). Dots on a line: a
    method's checkpoints; grey line: methods that no other beats on both; dashed: p = 0.05; hollow: the smallest p
    that the test can give.""",
)
U_SHAPE_QUALITY = Entry(
    "u_shape_quality",
    "5",
    "One layer at a time: forget quality and utility",
    ("fragility",),
    _draw_u,
    """Replacing one layer of the original model by that of the unlearned one: forget quality and utility. Hollow marks
    at "all" are the fully unlearned models, dashed lines the original and the retrained model, dotted: the smallest p
    that the test can give.""",
)
