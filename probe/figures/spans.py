"""What spans of blocks bring about when another model lends them: heat maps over spans, lines by part and by size."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.figures.labels import end_labels, note_dropped, small_text
from probe.figures.style import FORGET, GREY, INK, RETAIN, number, plain_text
from probe.rows import Row, quantity_of

SIDES = ("forget", "retain")
_WAYS = {"original": "unlearned blocks in the original", "unlearned": "original blocks in the unlearned"}
_MARKS = {"original": "o", "unlearned": "X"}
_PARTS: dict[str, dict[str, Any]] = {
    "block": {"color": INK, "marker": "o", "linestyle": "-"},
    "attention": {"color": RETAIN, "marker": "s", "linestyle": (0, (4, 1.5))},
    "mlp": {"color": FORGET, "marker": "^", "linestyle": (0, (1, 1.2))},
}
_GROWTH: dict[str, dict[str, Any]] = {
    "from the embeddings up": {"color": RETAIN, "marker": "^", "linestyle": "-"},
    "from the head down": {"color": FORGET, "marker": "v", "linestyle": (0, (4, 1.5))},
}


def span_map(
    rows: Sequence[Row], figure: Figure, *, metric: str, label: str, into: Sequence[str] = ("original",)
) -> dict[str, Any]:
    """Every span i..j of one method: first block downwards, last block to the right; forget left, retain right.

    Each side has its own sequential scale, for a utility that hardly moves would show nothing on that of forgetting;
    on its bar the two models as they are stand marked. With few layers the numbers are written into the fields.

    Args:
        rows: "layer_map" rows of one method, as ``span_row`` makes them.
        figure: empty.
        metric: which number.
        label: what it is, with its unit.
        into: the models that were lent to, one row of panels each.

    Returns:
        ``{into: {"forget" | "retain": L lists of L, None where there is no such span}, "whole": {...}}``.

    Raises:
        ValueError: no such rows, or rows of several methods.
    """
    found = _of(rows, [quantity_of(metric, "block", way) for way in into])
    _one_method(found)
    depth = 1 + max(row.item or 0 for row in found)
    maps = {
        (way, on): _matrix([r for r in found if r.on == on and r.quantity == quantity_of(metric, "block", way)], depth)
        for way in into
        for on in SIDES
    }
    whole = _whole(rows, metric)
    axes = figure.subplots(len(into), 2, squeeze=False, sharex=True, sharey=True)
    for place, on in enumerate(SIDES):
        values = [v for way in into for v in maps[way, on].ravel().tolist()] + list(whole.get(on, {}).values())
        finite = [v for v in values if math.isfinite(v)]
        if not finite:
            raise ValueError(f"no finite value of {metric!r} on {on} rows in the layer map")
        image = [_panel(axes[i, place], maps[way, on], (min(finite), max(finite))) for i, way in enumerate(into)][-1]
        axes[0, place].set_title(f"{on} rows", pad=2)
        axes[-1, place].set_xlabel("last block")
        _bar(figure, image, axes[:, place], label, whole.get(on, {}))
    for ax, way in zip(axes[:, 0], into, strict=True):
        ax.set_ylabel("first block" if len(into) == 1 else f"{_WAYS[way]}\nfirst block")
    if whole:
        marks = [
            axes[0, 0].plot([], [], marker=mark, color=INK, linestyle="none", markersize=4, label=f"{model} as it is")[
                0
            ]
            for model, mark in _MARKS.items()
        ]
        figure.legend(handles=marks, loc="outside lower center", ncols=2)
    return {way: {on: maps[way, on].tolist() for on in SIDES} for way in into} | {"whole": whole}


def part_lines(rows: Sequence[Row], figure: Figure, *, metric: str, label: str) -> dict[str, Any]:
    """Single blocks, and attention or mlp of them alone, put into the original: forget above, retain below.

    Args:
        rows: "layer_map" rows; one column a method. Bands are the rows' intervals.
        figure: empty.
        metric: which number.
        label: what it is, with its unit.

    Returns:
        ``{method: {"forget" | "retain": {part: one value a layer}}}``.

    Raises:
        ValueError: no such rows.
    """
    named = {part: quantity_of(metric, part) for part in _PARTS}
    found = [row for row in _of(rows, list(named.values())) if row.layer == row.item]

    def lines(name: str, on: str) -> dict[str, list[Row]]:
        own = [r for r in found if (r.intervention, r.on) == (name, on)]
        by_part = {part: [r for r in own if r.quantity == quantity] for part, quantity in named.items()}
        return {part: sorted(line, key=lambda r: r.layer or 0) for part, line in by_part.items() if line}

    return _small_multiples(found, rows, figure, metric, label, lines, _PARTS, "block replaced", lambda r: r.layer or 0)


def growing_spans(rows: Sequence[Row], figure: Figure, *, metric: str, label: str) -> dict[str, Any]:
    """Spans that grow from either end, put into the original: forget above, retain below, one column a method.

    Args, Raises: as ``part_lines``.

    Returns:
        ``{method: {"forget" | "retain": {direction: value after 1, 2, ... blocks}}}``.
    """
    found = _of(rows, [quantity_of(metric, "block")])
    depth = 1 + max(row.item or 0 for row in found)

    def size(row: Row) -> int:
        return (row.item or 0) - (row.layer or 0) + 1

    def lines(name: str, on: str) -> dict[str, list[Row]]:
        own = [r for r in found if (r.intervention, r.on) == (name, on)]
        ends = ([r for r in own if r.layer == 0], [r for r in own if r.item == depth - 1])
        return {way: sorted(line, key=size) for way, line in zip(_GROWTH, ends, strict=True) if line}

    return _small_multiples(found, rows, figure, metric, label, lines, _GROWTH, "blocks replaced", size)


def _small_multiples(
    found: Sequence[Row],
    rows: Sequence[Row],
    figure: Figure,
    metric: str,
    label: str,
    lines: Any,
    styles: dict[str, dict[str, Any]],
    xlabel: str,
    place: Any,
) -> dict[str, Any]:
    methods = list(dict.fromkeys(row.intervention for row in found))
    axes = figure.subplots(2, len(methods), sharex=True, sharey="row", squeeze=False)
    data: dict[str, Any] = {name: {} for name in methods}
    for i, on in enumerate(SIDES):
        for ax, name in zip(axes[i], methods, strict=True):
            ends, colours = {}, {}
            lost = 0
            for what, line in lines(name, on).items():
                x = [place(row) for row in line]
                y, low, high = ([number(getattr(row, key)) for row in line] for key in ("value", "low", "high"))
                ax.plot(x, y, markeredgecolor="white", **styles[what])
                ax.fill_between(x, low, high, color=styles[what]["color"], alpha=0.15, linewidth=0, zorder=1)
                data[name].setdefault(on, {})[what] = y
                lost += sum(v != v for v in y)
                ends[what], colours[what] = (float(x[-1]), y[-1]), styles[what]["color"]
            for model, value in _whole([r for r in rows if r.intervention == name], metric).get(on, {}).items():
                ax.axhline(value, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
                ends[model], colours[model] = (ax.get_xlim()[1], value), GREY
            ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
            note_dropped(ax, lost, inside=True)
            data[name][f"_{on}"] = (ax, ends, colours)
        axes[i][0].set_ylabel(f"{on} rows:\n{label}")
    for ax, name in zip(axes[0], methods, strict=True):
        ax.set_title(plain_text(name))
    for ax in axes[-1]:
        ax.set_xlabel(xlabel)
    for name in methods:
        for on in SIDES:
            ax, ends, colours = data[name].pop(f"_{on}")
            if name == methods[-1]:  # the others mean the same
                end_labels(ax, ends, colours=colours)
    return data


def _of(rows: Sequence[Row], quantities: Sequence[str]) -> list[Row]:
    found = [
        r
        for r in rows
        if r.diagnostic == "layer_map" and r.quantity in quantities and r.layer is not None and r.item is not None
    ]
    if not found:
        raise ValueError(f"no layer-map rows of {' or '.join(map(repr, quantities))}")
    return found


def _one_method(rows: Sequence[Row]) -> None:
    names = sorted({row.intervention for row in rows})
    if len(names) > 1:
        raise ValueError(f"a map over spans shows one method, got rows of {', '.join(names)}; choose one")


def _whole(rows: Sequence[Row], metric: str) -> dict[str, dict[str, float]]:
    """on -> model -> value of either model as it is."""
    quantity = {quantity_of(metric, "none", way): way for way in _WAYS}
    found: dict[str, dict[str, float]] = {}
    for row in rows:
        if row.diagnostic == "layer_map" and row.quantity in quantity and row.layer is None:
            found.setdefault(row.on, {})[quantity[row.quantity]] = number(row.value)
    return found


def _matrix(rows: Sequence[Row], depth: int) -> np.ndarray:
    value_LL = np.full((depth, depth), np.nan)
    for row in rows:
        assert row.layer is not None
        assert row.item is not None
        value_LL[row.layer, row.item] = number(row.value)
    return value_LL


def _panel(ax: Axes, value_LL: np.ndarray, limits: tuple[float, float]) -> Any:
    depth, width = len(value_LL), limits[1] - limits[0]
    shown = np.ma.masked_invalid(value_LL)
    image = ax.imshow(shown, cmap="viridis", vmin=limits[0], vmax=limits[1], aspect="equal", interpolation="nearest")
    for side in ("left", "bottom"):
        ax.spines[side].set_visible(False)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    note_dropped(ax, int((~np.isfinite(value_LL[np.triu_indices(depth)])).sum()), inside=True)
    # As many decimals as tell a twentieth of the range.
    decimals = min(4, max(1, math.ceil(-math.log10(width / 20)))) if width else 2
    style: dict[str, Any] = {
        "ha": "center",
        "va": "center",
        "fontsize": min(small_text() - 1.5, 60 / depth / decimals**0.5),
    }
    for i, j in zip(*np.triu_indices(depth), strict=True) if depth <= 10 else ():
        if np.isfinite(value_LL[i, j]):
            dark = (value_LL[i, j] - limits[0]) < 0.6 * width
            text = f"{value_LL[i, j]:.{decimals}f}"
            ax.text(
                float(j), float(i), text[1:] if text.startswith("0.") else text, color="white" if dark else INK, **style
            )
    return image


def _bar(figure: Figure, image: Any, axes: Any, label: str, ends: dict[str, float]) -> None:
    bar = figure.colorbar(image, ax=list(axes), orientation="horizontal", shrink=0.9, aspect=25, pad=0.02)
    bar.outline.set_visible(False)  # type: ignore[operator]
    bar.set_label(plain_text(label))
    bar.ax.xaxis.set_major_locator(MaxNLocator(nbins=5))
    for model, value in ends.items():
        if math.isfinite(value):
            bar.ax.plot(
                [value], [0.5], marker=_MARKS[model], markersize=5, color=INK, markeredgecolor="white", clip_on=False
            )
