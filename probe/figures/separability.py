"""Separability over depth: AUROC of linear probes for forget against retain states, in small multiples."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.layers import depth_axis, last_finite, values_by_layer
from probe.figures.style import GREY, INK, Venue, is_reference, look, new_figure, ordered, picked, plain_text
from probe.rows import Row


def separability_by_layer(rows: Sequence[Row], ax: Axes, *, only: Sequence[str] | None = None) -> dict[str, Any]:
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
    layer, values = values_by_layer(found)
    low, high = values_by_layer(found, "low")[1], values_by_layer(found, "high")[1]
    ax.axhline(0.5, color=GREY, linewidth=0.6, zorder=1)
    controls = [row for row in rows if (row.diagnostic, row.quantity) == ("separability", "control")]
    shown = set(values) if only is None else set(only)
    control = values_by_layer([row for row in controls if row.intervention in shown])[1]
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
    depth_axis(ax, max(layer) + 1)
    ax.set_ylim(min(0.4, *(v for line in [*values.values(), *low.values()] for v in line if v == v), 0.4), 1.02)
    ax.set_ylabel("probe AUROC")
    note_dropped(ax, lost, inside=only is not None)
    if only is None:
        end_labels(ax, {name: last_finite(layer, value) for name, value in values.items()})
    return {"layer": layer, "auc": values, "low": low, "high": high, "control": control, "not_finite": lost}


def separability_panels(rows: Sequence[Row], figure: Figure, *, columns: int = 5) -> dict[str, Any]:
    """Separability as small multiples: each method against the original and retrained models.

    Returns:
        name -> what ``separability_by_layer`` drew in its panel.

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
        drawn[methods[place]] = separability_by_layer(rows, ax, only=[methods[place]])
        ax.set_title(plain_text(methods[place], width=18), color=look(methods[place]).colour)
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


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({r.intervention for r in rows if r.diagnostic == "separability" and not is_reference(r.intervention)})
    figure = new_figure(sizes.page, 0.65 + 1.05 * -(-max(n, 1) // 5))
    return figure, separability_panels(rows, figure)


SEPARABILITY = Entry(
    "separability",
    "10",
    "Can forget data still be told apart?",
    ("separability",),
    _draw,
    """How well a linear probe tells forget from retain states at each layer; bands are the rows' intervals over
    folds, corrected for the rows that folds share. Each panel shows one method beside the original and retrained
    models; dotted: the same probe on shuffled labels.""",
)
