"""Lines over depth: G-effect, replacing one layer, separability."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator, SymmetricalLogLocator

from probe.figures.labels import end_labels, note_dropped, small
from probe.figures.style import GREY, INK, is_reference, look, number, ordered, paper_style, picked, plain
from probe.rows import Row


def lines(
    effect: Mapping[str, Any],
    *,
    ylabel: str,
    ax: Axes | None = None,
    layer: Sequence[int] | None = None,
    symlog: bool = False,
) -> dict[str, Any]:
    """One line over the layers for each name, labelled at its end.

    Args:
        effect: name -> one value a layer (tensor, array or list).
        ylabel: what the values are, with their unit.
        ax: where to draw; without it a new pyplot figure, which a notebook shows.
        layer: the layers that the values belong to; 0, 1, ... by default.
        symlog: logarithmic away from zero, for values that span orders of magnitude.

    Returns:
        ``{"layer": [...], "values": {name: [...]}, "not_finite": count}``.

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
            return lines(effect, ylabel=ylabel, ax=ax, layer=layer, symlog=symlog)
    lost = 0
    for name in ordered(values):
        value_L = values[name]
        lost += int((~np.isfinite(value_L)).sum())
        ax.plot(layer[: value_L.size], np.where(np.isfinite(value_L), value_L, np.nan), **look(name).line())
    if symlog:
        symlog_axis(ax, np.concatenate(list(values.values())))
    _depth(ax, max(layer) + 1)
    ax.set_ylabel(plain(ylabel))
    note_dropped(ax, lost)
    end_labels(ax, {name: _last(layer, value_L) for name, value_L in values.items()})
    return {
        "layer": layer,
        "values": {name: value_L.tolist() for name, value_L in values.items()},
        "not_finite": lost,
    }


def g_effects(rows: Sequence[Row], axes: Sequence[Axes] | np.ndarray) -> dict[str, Any]:
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
        layer, values = by_layer(found)
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        drawn[on] = lines(values, ylabel="G-effect", ax=ax, layer=layer, symlog=True)
        drawn[on]["total"] = {
            row.intervention: row.value
            for row in rows
            if (row.diagnostic, row.quantity, row.on) == ("g_effect", "total", on)
        }
        low, high = ax.get_ylim()
        ax.axhspan(*((0, max(high, 0)) if unwanted > 0 else (min(low, 0), 0)), color="#F3F3F3", zorder=0, linewidth=0)
        ax.set_ylim(low, high)
        ax.set_title(f"{title}: {meaning}", fontsize=small() + 0.5)
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
        found = picked(rows, "fragility", [quantity], [on])
        side = _one_side(ax, found, flipped=on == "forget")
        ax.set_title(title)
        ax.set_xlabel("layer replaced")
        drawn[on] = side
    return drawn


def _one_side(ax: Axes, found: Sequence[Row], *, flipped: bool) -> dict[str, Any]:
    def score(row: Row) -> float:
        return 1 - number(row.value) if flipped else number(row.value)

    layer, values = by_layer([row for row in found if row.layer is not None])
    whole = {row.intervention: score(row) for row in found if row.layer is None}
    reference = {name: whole.pop(name, math.nan) for name in ("original", "retrained")}
    depth = max(layer, default=-1) + 1
    gap = max(1.0, depth / 12)
    ends = {}
    for name, value in reference.items():
        if math.isfinite(value):
            ax.axhline(value, color=look(name).colour, linewidth=0.7, linestyle=(0, (4, 2)), zorder=1)
            ends[name] = (depth - 1 + 1.3 * gap, value)
    lost = sum(not math.isfinite(value) for value in whole.values())
    for name in ordered([*values, *whole]):
        value_L = np.array(values.get(name, []), dtype=float)
        value_L = 1 - value_L if flipped else value_L
        values[name] = value_L.tolist()
        lost += int((~np.isfinite(value_L)).sum())
        at = np.array(layer[: value_L.size], dtype=float)
        ax.plot(at, value_L, **look(name).line())
        ends[name] = _last(at, value_L)
        if name in whole:
            shape: dict[str, Any] = {"marker": look(name).marker, "color": look(name).colour, "linestyle": "none"}
            ax.plot([depth - 1 + gap], [whole[name]], markerfacecolor="white", clip_on=False, **shape)
            if math.isfinite(whole[name]):
                ends[name] = (depth - 1 + gap, whole[name])
    _depth(ax, depth)
    ax.axvline(depth - 1 + gap / 2, color="#DDDDDD", linewidth=0.6, zorder=0)
    ax.set_xlim(-0.4, depth - 1 + 1.3 * gap)
    ticks = [tick for tick in ax.get_xticks() if 0 <= tick <= depth - 1]
    ax.set_xticks([*ticks, depth - 1 + gap], [*(str(int(tick)) for tick in ticks), "all"])
    note_dropped(ax, lost)
    end_labels(ax, ends)
    return {"layer": layer, "values": values, "all": whole, **reference, "not_finite": lost}


def separability(rows: Sequence[Row], ax: Axes, *, only: Sequence[str] | None = None) -> dict[str, Any]:
    """AUROC of a linear probe for forget against retain states, by layer, with its interval over folds.

    Args:
        rows: "separability" rows, quantities "auc" and "control" (the probe on shuffled labels).
        ax: where to draw.
        only: interventions to draw; the original and retrained models stay as thin reference lines.

    Returns:
        ``{"layer", "auc": {name: ...}, "low", "high", "control", "not_finite"}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "separability", ["auc"])
    if only is not None:
        found = [row for row in found if row.intervention in only or is_reference(row.intervention)]
    layer, values = by_layer(found)
    low, high = by_layer(found, "low")[1], by_layer(found, "high")[1]
    ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=1)
    controls = [row for row in rows if (row.diagnostic, row.quantity) == ("separability", "control")]
    shown = set(values) if only is None else set(only)
    control = by_layer([row for row in controls if row.intervention in shown])[1]
    lost = 0
    for value in control.values():
        lost += sum(not math.isfinite(v) for v in value)
        ax.plot(layer[: len(value)], value, color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8, zorder=1)
    for name in ordered(values):
        style = look(name).line()
        if only is not None and name not in only:
            style |= {"marker": "", "linewidth": 0.8}
        else:
            ax.fill_between(layer, low[name], high[name], color=style["color"], alpha=0.15, linewidth=0, zorder=1)
        lost += sum(not math.isfinite(v) for v in values[name])
        ax.plot(layer, values[name], **style)
    _depth(ax, max(layer) + 1)
    ax.set_ylim(min(0.4, *(v for line in [*values.values(), *low.values()] for v in line if v == v), 0.4), 1.02)
    ax.set_ylabel("probe AUROC")
    note_dropped(ax, lost, inside=only is not None)
    if only is None:
        end_labels(ax, {name: _last(layer, value) for name, value in values.items()})
    return {"layer": layer, "auc": values, "low": low, "high": high, "control": control, "not_finite": lost}


def separability_panels(rows: Sequence[Row], figure: Figure, *, columns: int = 5) -> dict[str, Any]:
    """Separability as small multiples: each method against the original and retrained models.

    Returns:
        name -> what ``separability`` drew in its panel.

    Raises:
        ValueError: no such rows.
    """
    names = ordered(row.intervention for row in picked(rows, "separability", ["auc"]))
    methods = [name for name in names if not is_reference(name)] or names
    n = len(methods)
    columns = -(-n // -(-n // columns))
    grid = figure.subplots(-(-n // columns), columns, sharex=True, sharey=True, squeeze=False)
    drawn = {}
    for place, ax in enumerate(grid.flat):
        if place >= n:
            ax.set_visible(False)
            continue
        drawn[methods[place]] = separability(rows, ax, only=[methods[place]])
        ax.set_title(plain(methods[place], width=18), color=look(methods[place]).colour)
        ax.tick_params(labelbottom=place + columns >= n)
        ax.set(xlabel="", ylabel="")
    low = min(ax.get_ylim()[0] for ax in grid.flat[:n])
    grid[0, 0].set_ylim(low, 1.02)
    words_style: dict[str, Any] = {"fontsize": matplotlib.rcParams["axes.labelsize"], "color": INK}
    figure.supylabel("probe AUROC (forget vs retain)", **words_style)
    figure.supxlabel("layer", **words_style)
    handles = [grid[0, 0].plot([], [], **look(name).line() | {"marker": ""})[0] for name in names if is_reference(name)]
    words = [name for name in names if is_reference(name)]
    handles.append(grid[0, 0].plot([], [], color=GREY, linestyle=(0, (1, 1.5)), linewidth=0.8)[0])
    handles.append(grid[0, 0].plot([], [], color=GREY, linewidth=0.6)[0])
    figure.legend(handles, [*words, "shuffled labels", "chance"], loc="outside upper right", ncols=len(handles))
    return drawn


def by_layer(rows: Sequence[Row], field: str = "value") -> tuple[list[int], dict[str, list[float]]]:
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


def _last(x: Sequence[int] | np.ndarray, y: Sequence[float] | np.ndarray) -> tuple[float, float]:
    finite = [(float(a), float(b)) for a, b in zip(x, y, strict=False) if math.isfinite(b)]
    return finite[-1] if finite else (math.nan, math.nan)


def _depth(ax: Axes, n_layers: int) -> None:
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
    ax.set_yscale("symlog", linthresh=start, linscale=0.6)
    ax.yaxis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=start))
    ax.yaxis.set_minor_locator(NullLocator())
