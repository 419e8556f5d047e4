"""Lines over depth: G-effect, and what replacing one layer does."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, SymmetricalLogLocator

from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped, small_text
from probe.figures.style import GREY, Venue, look, new_figure, number, ordered, paper_style, picked, plain_text
from probe.rows import Row


def lines(
    effect: Mapping[str, Any],
    *,
    ylabel: str,
    ax: Axes | None = None,
    layer: Sequence[int] | None = None,
    symlog: bool = False,
    ends: Mapping[str, tuple[Any, Any]] | None = None,
) -> dict[str, Any]:
    """One line over the layers for each name, labelled at its end.

    Args:
        effect: name -> one value a layer (tensor, array or list).
        ylabel: what the values are, with their unit.
        ax: where to draw; without it a new pyplot figure, which a notebook shows.
        layer: the layers that the values belong to; 0, 1, ... by default.
        symlog: logarithmic away from zero, for values that span orders of magnitude.
        ends: name -> lower and upper ends of the intervals, drawn as a band; NaN where there are none.

    Returns:
        ``{"layer": [...], "values": {name: [...]}, "ends": {name: [[...], [...]]}, "not_finite": count}``.

    Raises:
        ValueError: no lines, or values that are not one a layer.
    """
    if not effect:
        raise ValueError("no lines to draw: give at least one name with one value a layer")
    values = {name: np.asarray(value, dtype=float) for name, value in effect.items()}
    for name, value_L in values.items():
        if value_L.ndim != 1 or value_L.size == 0:
            raise ValueError(f"{name!r} has shape {value_L.shape}; one value a layer is needed, shape (n_layers,)")
    layer = list(range(max(value_L.size for value_L in values.values()))) if layer is None else list(layer)
    if ax is None:
        from matplotlib import pyplot

        with paper_style():
            ax = pyplot.figure(figsize=(4.4, 2.4)).add_subplot()
            return lines(effect, ylabel=ylabel, ax=ax, layer=layer, symlog=symlog, ends=ends)
    lost = 0
    for name in ordered(values):
        value_L = values[name]
        lost += int((~np.isfinite(value_L)).sum())
        if ends and name in ends:
            ax.fill_between(
                layer[: value_L.size], *ends[name], color=look(name).colour, alpha=0.15, linewidth=0, zorder=1
            )
        ax.plot(layer[: value_L.size], np.where(np.isfinite(value_L), value_L, np.nan), **look(name).line())
    if symlog:
        symlog_axis(ax, np.concatenate(list(values.values())))
    depth_axis(ax, max(layer) + 1)
    ax.set_ylabel(plain_text(ylabel))
    note_dropped(ax, lost)
    end_labels(ax, {name: last_finite(layer, value_L) for name, value_L in values.items()})
    return {
        "layer": layer,
        "values": {name: value_L.tolist() for name, value_L in values.items()},
        "ends": {name: [list(end) for end in pair] for name, pair in (ends or {}).items()},
        "not_finite": lost,
    }


def g_effects_by_layer(rows: Sequence[Row], axes: Sequence[Axes] | np.ndarray) -> dict[str, Any]:
    """G-effect by layer: what a step on the objective does to forget data (above) and to retain data (below).

    Wang et al. 2025 (arXiv:2502.19301). Below zero the step lowers performance on that data: wanted on forget
    data, unwanted on retain data (shaded).

    Args:
        rows: "g_effect" rows, quantity "effect" by layer; "total" goes into the returned numbers.
        axes: two axes, one above the other.

    Returns:
        ``{"forget": {"layer", "values", "total", "not_finite"}, "retain": {...}}``.

    Raises:
        ValueError: no such rows, or not two axes.
    """
    _two(axes)
    drawn: dict[str, Any] = {}
    sides = {
        "forget": ("Unlearn G-effect", "below 0 forgets (wanted), above 0 (shaded) reinforces", 1),
        "retain": ("Retain G-effect", "below 0 (shaded) harms retained knowledge", -1),
    }
    for ax, (on, (title, meaning, unwanted)) in zip(axes, sides.items(), strict=True):
        found = picked(rows, "g_effect", ["effect"], [on])
        layer, values = values_by_layer(found)
        low, high = values_by_layer(found, "low")[1], values_by_layer(found, "high")[1]
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        bands = {name: (low[name], high[name]) for name in values}
        drawn[on] = lines(values, ylabel="G-effect", ax=ax, layer=layer, symlog=True, ends=bands)
        drawn[on]["total"] = {
            row.intervention: row.value
            for row in rows
            if (row.diagnostic, row.quantity, row.on) == ("g_effect", "total", on)
        }
        bottom, top = ax.get_ylim()
        shade = (0, max(top, 0)) if unwanted > 0 else (min(bottom, 0), 0)
        ax.axhspan(*shade, color="#F3F3F3", zorder=0, linewidth=0)
        ax.set_ylim(bottom, top)
        ax.set_title(f"{title}: {meaning}", fontsize=small_text() + 0.5)
    axes[0].set_xlabel("")
    axes[0].tick_params(labelbottom=False)
    return drawn


def u_shape(rows: Sequence[Row], axes: Sequence[Axes] | np.ndarray, *, quantity: str = "probability") -> dict[str, Any]:
    """What one layer carries: forgetting (left) and utility (right) after replacing that layer alone.

    Layer l of the original model is replaced by layer l of the unlearned one. The column "all" is the fully
    unlearned model; dashed lines are the original and the retrained model. Two panels, never two scales on one.

    Args:
        rows: "fragility" rows; ``layer`` None is the whole model.
        axes: two axes.
        quantity: a score in [0, 1] measured on "forget" and on "retain"; forgetting is one minus it.

    Returns:
        ``{"forget": {"layer", "values", "all", "original", "retrained", "not_finite"}, "retain": {...}}``.

    Raises:
        ValueError: no such rows, or not two axes.
    """
    _two(axes)
    drawn: dict[str, Any] = {}
    word = quantity.replace("_", " ")
    titles = {"forget": f"Forgetting (1 − {word}) ↑", "retain": f"Utility ({word}) ↑"}
    for ax, (on, title) in zip(axes, titles.items(), strict=True):
        drawn[on], ends = u_panel(ax, picked(rows, "fragility", [quantity], [on]), flipped=on == "forget")
        ax.set_title(title)
        ax.set_xlabel("layer replaced")
        end_labels(ax, ends)
    return drawn


def u_panel(ax: Axes, found: Sequence[Row], *, flipped: bool) -> tuple[dict[str, Any], dict[str, tuple[float, float]]]:
    """One side of ``u_shape``: its numbers, and where each line ends (for labels, once everything is drawn).

    Args:
        ax: where to draw.
        found: rows by layer; without a layer they are of whole models.
        flipped: draw one minus the score.
    """

    def score(row: Row, field: str = "value") -> float:
        return 1 - number(getattr(row, field)) if flipped else number(getattr(row, field))

    layer, values = values_by_layer([row for row in found if row.layer is not None])
    bands = [values_by_layer([row for row in found if row.layer is not None], field)[1] for field in ("low", "high")]
    whole = {row.intervention: score(row) for row in found if row.layer is None}
    lost = sum(not math.isfinite(value) for value in whole.values())
    reference = {name: whole.pop(name, math.nan) for name in ("original", "retrained")}
    depth = max(layer, default=-1) + 1
    gap = max(1.0, depth / 12)
    ends = {}
    for name, value in reference.items():
        if math.isfinite(value):
            ax.axhline(value, color=look(name).colour, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
            ends[name] = (depth - 1 + 1.3 * gap, value)
    for name in ordered([*values, *whole]):
        low_L, high_L, value_L = (np.array(part.get(name, []), dtype=float) for part in (*bands, values))
        value_L, low_L, high_L = (1 - part if flipped else part for part in (value_L, low_L, high_L))
        values[name] = value_L.tolist()
        lost += int((~np.isfinite(value_L)).sum())
        at = np.array(layer[: value_L.size], dtype=float)
        ax.fill_between(at, low_L, high_L, color=look(name).colour, alpha=0.15, linewidth=0, zorder=1)
        ax.plot(at, value_L, **look(name).line())
        ends[name] = last_finite(at, value_L)
        if name in whole:
            # Side by side, so that whiskers can be told from one another.
            place = depth - 1 + gap * (1 + 0.13 * (list(whole).index(name) - (len(whole) - 1) / 2))
            one = next(row for row in found if row.layer is None and row.intervention == name)
            style: dict[str, Any] = {"color": look(name).colour, "clip_on": False}
            ax.vlines([place], score(one, "low"), score(one, "high"), linewidth=0.7, alpha=0.7, zorder=1, **style)
            ax.plot(
                [place], [whole[name]], marker=look(name).marker, linestyle="none", markerfacecolor="white", **style
            )
            if math.isfinite(whole[name]):
                ends[name] = (place, whole[name])
    depth_axis(ax, depth)
    ax.axvline(depth - 1 + gap / 2, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.set_xlim(-0.4, depth - 1 + 1.3 * gap)
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= depth - 1]
    ax.set_xticks([*ticks, depth - 1 + gap], [*(str(int(tick)) for tick in ticks), "all"])
    note_dropped(ax, lost)
    return {"layer": layer, "values": values, "all": whole, **reference, "not_finite": lost}, ends


def values_by_layer(rows: Sequence[Row], field: str = "value") -> tuple[list[int], dict[str, list[float]]]:
    """The layers of rows and, for each intervention, one number a layer; NaN where there is none."""
    layers = sorted({row.layer for row in rows if row.layer is not None})
    place = {layer: i for i, layer in enumerate(layers)}
    values: dict[str, list[float]] = {name: [math.nan] * len(layers) for name in ordered(r.intervention for r in rows)}
    for row in rows:
        if row.layer is not None:
            values[row.intervention][place[row.layer]] = number(getattr(row, field))
    return layers, values


def _two(axes: Sequence[Axes] | np.ndarray) -> None:
    if len(axes) != 2:
        raise ValueError(f"this figure has two panels, one for forget and one for retain data; got {len(axes)} axes")


def last_finite(x: Sequence[int] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The last point of a line that is finite."""
    finite = [(float(a), float(b)) for a, b in zip(x, y, strict=False) if math.isfinite(b)]
    return finite[-1] if finite else (math.nan, math.nan)


def depth_axis(ax: Axes, n_layers: int) -> None:
    """Layers from left to right, with whole numbers as ticks."""
    ax.set_xlabel("layer")
    ax.set_xlim(-0.4, max(n_layers - 0.6, 0.4))
    ax.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True, steps=[1, 2, 4, 5, 8, 10]))
    ax.xaxis.set_minor_locator(NullLocator())


def symlog_axis(ax: Axes, value_N: np.ndarray) -> None:
    """A logarithmic y axis that is linear around zero, with its border chosen by the values."""
    size_N = np.abs(value_N[np.isfinite(value_N) & (value_N != 0)])
    if size_N.size == 0:
        return
    # Linear up to the power of ten at the 10th percentile, at most four decades below the largest value.
    start = 10.0 ** math.floor(math.log10(max(float(np.quantile(size_N, 0.1)), float(size_N.max()) * 1e-4)))
    # Over many decades the part around zero would be too low for its three labels.
    ax.set_yscale("symlog", linthresh=start, linscale=0.6 if size_N.max() < 1e3 * start else 1.1)
    locator = SymmetricalLogLocator(base=10, linthresh=start)
    # In a low panel more labels would run into each other around zero.
    locator.set_params(numticks=6)
    ax.yaxis.set_major_locator(locator)
    ax.yaxis.set_minor_locator(NullLocator())


def _draw_g_effects(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 3.6)
    return figure, g_effects_by_layer(rows, figure.subplots(2, sharex=True))


def _draw_u_shape(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 1.9)
    return figure, u_shape(rows, figure.subplots(1, 2))


G_EFFECT = Entry(
    "g_effect",
    "2",
    "G-effect by layer",
    ("g_effect",),
    _draw_g_effects,
    """G-effect by layer: the inner product of the gradients of an unlearning objective and of the negative
    log-likelihood on forget data (above) and retain data (below). A step on the objective lowers performance
    where the value is negative. Linear near zero, logarithmic beyond.""",
)
U_SHAPE = Entry(
    "u_shape",
    "5",
    "One layer at a time",
    ("fragility",),
    _draw_u_shape,
    """Replacing one layer of the original model by that of the unlearned one. Hollow marks at "all" are the fully
    unlearned models, dashed lines are the original and the retrained model.""",
)
