"""Hidden states on the two main axes of the original model."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import FORGET, GREY, RETAIN, Venue, look, new_figure, number, ordered, picked, plain_text
from probe.rows import Row

# Beyond this many times the original's spread a panel is zoomed out, or all others would shrink to dots.
ZOOM = 3.0
# Vector files of more points than this are slow to open; the points, not the text, become an image.
VECTOR_POINTS = 5000


def states_pca(
    rows: Sequence[Row], figure: Figure, *, only: Sequence[str] | None = None, layers: Sequence[int] | None = None
) -> dict[str, Any]:
    """PCA small multiples: a line of panels an intervention, a column a layer.

    The axes are those of the original model's states, so a panel shows movement and not a new fit. A column shares
    its limits; a panel whose points lie more than three times further out is zoomed out, says by how much, and
    shows the common limits as a dashed box.

    Args:
        rows: "pca" rows, quantities "pc1", "pc2" by layer and item, "explained1", "explained2" of the original.
        figure: an empty figure.
        only: interventions to draw, all by default.
        layers: layers to draw, all by default.

    Returns:
        ``{"layers": [...], "points": {name: {layer: {on: [[x, y], ...]}}}, "explained": {layer: [.., ..]},
        "zoom": {name: {layer: factor}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "pca", ["pc1", "pc2"])
    names = [n for n in ordered(row.intervention for row in found) if only is None or n in only]
    shown = sorted({row.layer for row in found if row.layer is not None and (layers is None or row.layer in layers)})
    if not names or not shown:
        raise ValueError(f"no 'pca' rows of interventions {only} at layers {layers}")
    points = _points(found, names, shown)
    share = {(r.layer, r.quantity): r.value for r in rows if r.diagnostic == "pca" and r.quantity.startswith("expl")}
    grid = figure.subplots(len(names), len(shown), squeeze=False)
    raster = sum(len(p) for by in points.values() for sides in by.values() for p in sides.values()) > VECTOR_POINTS
    zoom: dict[str, dict[int, float]] = {name: {} for name in names}
    lost = 0
    for column, layer in enumerate(shown):
        box = _limits({name: points[name][layer] for name in names})
        for line, name in enumerate(names):
            ax = grid[line, column]
            missing = _scatter(ax, points[name][layer], raster)
            lost += missing
            zoom[name][layer] = _frame(ax, points[name][layer], box)
            note_dropped(ax, missing, inside=True)
        grid[0, column].set_title(f"layer {layer}", loc="center")
        _shares(grid[-1, column], grid[:, column], share, layer)
    for line, name in enumerate(names):
        grid[line, 0].set_ylabel(plain_text(name, width=16), color=look(name).colour)
    _legend(figure)
    explained = {layer: [share.get((layer, f"explained{k}")) for k in (1, 2)] for layer in shown}
    plotted = {n: {layer: {on: p.tolist() for on, p in s.items()} for layer, s in points[n].items()} for n in names}
    return {"layers": shown, "points": plotted, "explained": explained, "zoom": zoom, "not_finite": lost}


def _points(
    rows: Sequence[Row], names: Sequence[str], layers: Sequence[int]
) -> dict[str, dict[int, dict[str, np.ndarray]]]:
    pairs: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        key = (row.intervention, row.layer, row.on, row.item)
        pairs.setdefault(key, [math.nan, math.nan])[row.quantity == "pc2"] = number(row.value)
    points: dict[str, dict[int, dict[str, Any]]] = {name: {layer: {} for layer in layers} for name in names}
    for (name, layer, on, _), pair in pairs.items():
        if name in points and layer in points[name]:
            points[name][layer].setdefault(on, []).append(pair)
    return {
        name: {layer: {on: np.array(p) for on, p in sides.items()} for layer, sides in by.items()}
        for name, by in points.items()
    }


def _finite(sides: dict[str, np.ndarray]) -> np.ndarray:
    point_N2 = np.concatenate([*sides.values(), np.empty((0, 2))])
    return point_N2[np.isfinite(point_N2).all(1)]


def _limits(panels: dict[str, dict[str, np.ndarray]]) -> np.ndarray:
    """Common limits of a column: [[x0, x1], [y0, y1]] over the panels that stay near the original's spread."""
    finite = {name: _finite(sides) for name, sides in panels.items()}
    finite = {name: point_N2 for name, point_N2 in finite.items() if len(point_N2)}
    if not finite:
        return np.array([[-1.0, 1.0], [-1.0, 1.0]])
    first = finite.get("original", next(iter(finite.values())))
    middle, half = _span(first)
    near = [p for p in finite.values() if (np.abs(p - middle) <= ZOOM * half).all()]
    pooled_N2 = np.concatenate([first, *near])
    middle, half = _span(pooled_N2)
    return np.stack([middle - 1.1 * half, middle + 1.1 * half], axis=1)


def _span(point_N2: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    low, high = point_N2.min(0), point_N2.max(0)
    return (low + high) / 2, np.maximum((high - low) / 2, 1e-9)


def _scatter(ax: Axes, sides: dict[str, np.ndarray], raster: bool) -> int:
    lost = 0
    for on, colour, marker in (("retain", RETAIN, "s"), ("forget", FORGET, "o")):
        if on in sides:
            point_N2 = sides[on]
            good_N = np.isfinite(point_N2).all(1)
            lost += int((~good_N).sum())
            x_N, y_N = point_N2[good_N].T
            ax.scatter(x_N, y_N, s=5, marker=marker, color=colour, alpha=0.55, linewidths=0, rasterized=raster)
    return lost


def _frame(ax: Axes, sides: dict[str, np.ndarray], box: np.ndarray) -> float:
    """Set the common limits, or zoom out; returns the factor (1 for the common limits)."""
    ax.set_xticks([])
    ax.set_yticks([])
    for spine in ax.spines.values():
        spine.set_visible(True)
    limits, factor = box, 1.0
    point_N2 = _finite(sides)
    if len(point_N2) and not ((point_N2 >= box[:, 0]) & (point_N2 <= box[:, 1])).all():
        middle, half = box.mean(1), (box[:, 1] - box[:, 0]) / 2
        factor = float((np.abs(point_N2 - middle) / half).max()) * 1.08
        limits = np.stack([middle - factor * half, middle + factor * half], axis=1)
        corner, size = box[:, 0], box[:, 1] - box[:, 0]
        ax.add_patch(
            Rectangle((corner[0], corner[1]), size[0], size[1], fill=False, edgecolor=GREY, linestyle=(0, (3, 2)))
        )
        ax.text(
            0.97,
            0.96,
            f"1/{factor:.2g}×",
            transform=ax.transAxes,
            ha="right",
            va="top",
            fontsize=small_text() - 1,
            color=GREY,
        )
    ax.set_xlim(*limits[0])
    ax.set_ylim(*limits[1])
    return factor


def _shares(bottom: Axes, column: np.ndarray, share: dict[Any, float | None], layer: int) -> None:
    first, second = share.get((layer, "explained1")), share.get((layer, "explained2"))
    words = [f"PC{k}" if s is None else f"PC{k} {100 * s:.0f} %" for k, s in ((1, first), (2, second))]
    bottom.set_xlabel(f"{words[0]} →\n{words[1]} ↑", fontsize=small_text())


def _legend(figure: Figure) -> None:
    handles = [
        Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=3, label=f"{on} data")
        for on, colour, marker in (("forget", FORGET, "o"), ("retain", RETAIN, "s"))
    ]
    figure.legend(handles=handles, loc="outside upper right", ncols=2)


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = max(len({row.intervention for row in rows if row.diagnostic == "pca"}), 1)
    figure = new_figure(sizes.page, 0.7 + n * min(0.95, 8.0 / n))
    return figure, states_pca(rows, figure)


HIDDEN_STATES = Entry(
    "hidden_states",
    "11",
    "Hidden states",
    ("pca",),
    _draw,
    """Hidden states on the first two principal axes of the original model. Each column shares its limits; a panel
    marked 1/k is zoomed out k times and shows those limits as a dashed box.""",
)
