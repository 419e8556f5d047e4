"""Utility against forgetting, one point an intervention."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.entry import Entry
from probe.figures.labels import Segment, note_dropped, point_labels
from probe.figures.style import GREY, Venue, is_reference, look, new_figure, number, ordered, picked
from probe.rows import Row

SIDES = ("forget", "retain")


def utility_against_forgetting(rows: Sequence[Row], ax: Axes, *, quantity: str = "probability") -> dict[str, Any]:
    """x: 1 - score on forget data; y: score on retain data; up and right is better.

    The original is a large circle, the retrained model a star; dotted lines through both bound what unlearning can
    reach. Whiskers are the rows' intervals. The thin stairs join the methods that no other method beats on both.

    Args:
        rows: "performance" rows of ``quantity`` on "forget" and on "retain".
        ax: where to draw.
        quantity: a score in [0, 1], higher where more is known.

    Returns:
        ``{"points": {name: {"x", "y", "x_interval", "y_interval"}}, "front": [names], "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    side = {on: {r.intervention: r for r in picked(rows, "performance", [quantity], [on])} for on in SIDES}
    points: dict[str, dict[str, Any]] = {}
    lost = 0
    for name in ordered([*side["forget"], *side["retain"]]):
        if name not in side["forget"] or name not in side["retain"]:
            lost += 1
            continue
        forget, retain = side["forget"][name], side["retain"][name]
        x, y = 1 - number(forget.value), number(retain.value)
        if not (math.isfinite(x) and math.isfinite(y)):
            lost += 1
            continue
        points[name] = {
            "x": x,
            "y": y,
            "x_interval": [1 - number(forget.high), 1 - number(forget.low)],
            "y_interval": [number(retain.low), number(retain.high)],
        }
        _point(ax, name, points[name])
    avoid = [*_whiskers(ax, points), *_guides(ax, points)]
    front = pareto({name: (p["x"], p["y"]) for name, p in points.items() if not is_reference(name)})
    avoid += _stairs(ax, [(points[name]["x"], points[name]["y"]) for name in front])
    word = quantity.replace("_", " ")
    ax.set_xlabel(f"forgetting: 1 − {word} on forget data →")
    ax.set_ylabel(f"utility: {word} on retain data →")
    ax.set_xlim(*_padded([v for p in points.values() for v in (p["x"], *p["x_interval"])]))
    ax.set_ylim(*_padded([v for p in points.values() for v in (p["y"], *p["y_interval"])]))
    note_dropped(ax, lost)
    point_labels(ax, {name: (p["x"], p["y"]) for name, p in points.items()}, avoid=avoid)
    return {"points": points, "front": front, "not_finite": lost}


def pareto(points: Mapping[str, tuple[float, float]]) -> list[str]:
    """Names that no other point beats on both coordinates (at least as good on both, better on one), by x."""
    front = [
        name
        for name, (x, y) in points.items()
        if not any(a >= x and b >= y and (a > x or b > y) for a, b in points.values())
    ]
    return sorted(front, key=lambda name: (points[name][0], -points[name][1], name))


def _point(ax: Axes, name: str, point: Mapping[str, Any]) -> None:
    style = look(name)
    size = {"original": 5.5, "retrained": 9.0}.get(name, 5.0)
    ax.plot(
        [point["x"]],
        [point["y"]],
        marker=style.marker,
        color=style.colour,
        markersize=size,
        markeredgecolor="white",
        linestyle="none",
        zorder=4,
    )


def _whiskers(ax: Axes, points: Mapping[str, Mapping[str, Any]]) -> list[Segment]:
    drawn = []
    for name, point in points.items():
        for interval, vertical in ((point["x_interval"], False), (point["y_interval"], True)):
            if all(map(math.isfinite, interval)):
                xs = [point["x"]] * 2 if vertical else interval
                ys = interval if vertical else [point["y"]] * 2
                ax.plot(xs, ys, color=look(name).colour, linewidth=0.7, alpha=0.55, zorder=3)
                drawn.append(((xs[0], ys[0]), (xs[1], ys[1])))
    return drawn


def _guides(ax: Axes, points: Mapping[str, Mapping[str, Any]]) -> list[Segment]:
    drawn: list[Segment] = []
    style: dict[str, Any] = {"color": GREY, "linewidth": 0.5, "linestyle": (0, (1, 2)), "zorder": 1}
    if "original" in points:
        y = points["original"]["y"]
        ax.axhline(y, **style)
        drawn.append(((-1.0, y), (2.0, y)))
    if "retrained" in points:
        x = points["retrained"]["x"]
        ax.axvline(x, **style)
        drawn.append(((x, -1.0), (x, 2.0)))
    return drawn


def _stairs(ax: Axes, corners: Sequence[tuple[float, float]]) -> list[Segment]:
    drawn: list[Segment] = []
    for (x0, y0), (x1, y1) in pairwise(corners):
        ax.plot([x0, x0, x1], [y0, y1, y1], color=GREY, linewidth=0.6, zorder=2)
        drawn += [((x0, y0), (x0, y1)), ((x0, y1), (x1, y1))]
    return drawn


def _padded(values: Sequence[float]) -> tuple[float, float]:
    values = [value for value in values if math.isfinite(value)]
    if not values:
        return 0.0, 1.0
    low, high = min(values), max(values)
    pad = 0.09 * max(high - low, 0.1)
    return low - pad, high + pad


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.narrow, 2.7)
    return figure, utility_against_forgetting(rows, figure.subplots())


TRADEOFF = Entry(
    "tradeoff",
    "6",
    "Utility against forgetting",
    ("performance",),
    _draw,
    """Utility against forgetting. Each point is an intervention, whiskers its interval over examples (the rows'
    own), the star the model trained without the forget data. Dotted lines: the original's utility and the
    retrained model's forgetting. Stairs: methods that no other method beats on both.""",
)
