"""One model in six panels: gradients, layers, trade-off, logits, probes and lens."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, NullLocator

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, point_labels, small_text
from probe.figures.layers import symlog_axis, values_by_layer
from probe.figures.lens import lens_map, map_panel, token_ticks
from probe.figures.logits import outline
from probe.figures.style import (
    FORGET,
    GREY,
    RETAIN,
    Venue,
    is_reference,
    look,
    new_figure,
    number,
    ordered,
    picked,
    plain_text,
)  # fmt: skip
from probe.figures.tradeoff import SIDES
from probe.rows import Row

_COLOURS = {"forget": (FORGET, "o", "-"), "retain": (RETAIN, "s", (0, (4, 1.5)))}
Panel = Callable[[Sequence[Row], str, Axes], Any]


def _shown_model(rows: Sequence[Row]) -> str:
    """The method that most panels can be drawn of; of equals the one that forgets and keeps most, then by the house.

    Raises:
        ValueError: rows of references only.
    """
    names = [name for name in ordered(row.intervention for row in rows) if name and not is_reference(name)]
    wanted = ("g_effect", "fragility", "performance", "logit_collapse", "separability", "logit_lens")
    # References and controls do not count: a panel is about one method.
    there = {(row.intervention, row.diagnostic) for row in rows}
    if not any((name, diagnostic) in there for name in names for diagnostic in wanted):
        raise ValueError(f"no rows of a method with one of {', '.join(wanted)}")
    score = {(r.intervention, r.on): number(r.value) for r in rows
             if (r.diagnostic, r.quantity) == ("performance", "probability")}  # fmt: skip

    def rank(name: str) -> tuple[int, float]:
        both = score.get((name, "retain"), math.nan) - score.get((name, "forget"), math.nan)
        return -sum((name, diagnostic) in there for diagnostic in wanted), -both if math.isfinite(both) else 0.0

    return min(names, key=rank)


def dashboard(rows: Sequence[Row], figure: Figure, *, model: str | None = None) -> dict[str, Any]:
    """Six panels about one model; a panel without rows says so.

    Args:
        rows: of a report, with "logit_lens" rows for the last panel.
        figure: empty.
        model: an intervention; the method that most panels can be drawn of if None.

    Returns:
        ``{"model", panel: numbers}``; None for a panel that was not drawn.

    Raises:
        ValueError: no rows of any method.
    """
    model = model or _shown_model(rows)
    axes = figure.subplots(2, 3)
    data: dict[str, Any] = {"model": model}
    for ax, (title, panel) in zip(axes.flat, _PANELS.items(), strict=True):
        try:
            data[title] = panel(rows, model, ax)
        except ValueError:
            data[title] = None
            ax.set_xticks([])
            ax.set_yticks([])
            ax.spines[:].set_visible(False)
            ax.text(0.5, 0.5, "not measured", transform=ax.transAxes, ha="center", va="center", color=GREY)
        ax.set_title(title, fontsize=small_text() + 0.5)
    figure.suptitle(plain_text(model), fontsize=small_text() + 2, color=look(model).colour, x=0.01, ha="left")
    return data


def _lines(ax: Axes, rows: Sequence[Row], *, flipped: bool = False) -> dict[str, Any]:
    """Forget and retain over the layers, with bands."""
    data: dict[str, Any] = {}
    lost = 0
    for on, (colour, marker, dash) in _COLOURS.items():
        own = [r for r in rows if r.on == on and r.layer is not None]
        if not own:
            continue
        layer, values = values_by_layer(own)
        name = next(iter(values))
        value, low, high = (values_by_layer(own, field)[1][name] for field in ("value", "low", "high"))
        ax.fill_between(layer, low, high, color=colour, alpha=0.15, linewidth=0)
        ax.plot(layer, value, color=colour, marker=marker, linestyle=dash, markeredgecolor="white", label=f"{on} data")
        lost += sum(not math.isfinite(v) for v in value)
        data[on] = {"layer": layer, "value": value}
    ax.set_xlabel("layer")
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    note_dropped(ax, lost, inside=True)
    return data


def _of(rows: Sequence[Row], model: str, diagnostic: str, quantities: Sequence[str]) -> list[Row]:
    found = [r for r in picked(rows, diagnostic, quantities) if r.intervention == model]
    if not found:
        raise ValueError(f"no rows of {diagnostic!r} for {model}")
    return found


def _g_effect(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    found = _of(rows, model, "g_effect", ["effect"])
    ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
    data = _lines(ax, found)
    symlog_axis(ax, np.array([number(r.value) for r in found]))
    ax.set_ylabel("← lowers   raises →", fontsize=small_text())
    ax.legend(fontsize=small_text() - 1)
    return data


def _u_shape(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    found = _of(rows, model, "fragility", ["probability"])
    data = _lines(ax, found)
    for row in rows:
        if (row.diagnostic, row.quantity, row.intervention) == ("fragility", "probability", "original"):
            colour = _COLOURS.get(row.on, (GREY,))[0]
            ax.axhline(number(row.value), color=colour, linewidth=0.6, linestyle=(0, (1, 2)), zorder=1)
    ax.set_xlabel("layer replaced")
    ax.set_ylabel("probability", fontsize=small_text())
    return data


def _tradeoff(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    side = {on: {r.intervention: r for r in picked(rows, "performance", ["probability"], [on])} for on in SIDES}
    points, lost = {}, 0
    for name in ordered(set(side["forget"]) & set(side["retain"])):
        x, y = 1 - number(side["forget"][name].value), number(side["retain"][name].value)
        if not math.isfinite(x + y):
            lost += 1
            continue
        points[name] = (x, y)
        mine = name == model or is_reference(name)
        style: dict[str, Any] = {"color": look(name).colour if mine else "#C8C8C8", "markersize": 5.5 if mine else 3}
        ax.plot(x, y, marker=look(name).marker, linestyle="none", zorder=3 if mine else 1, **style)
    if model not in points:
        raise ValueError(f"no rows of 'performance' for {model}")
    ax.margins(0.12)
    ax.set_xlabel("forgetting →")
    ax.set_ylabel("utility →", fontsize=small_text())
    note_dropped(ax, lost, inside=True)
    point_labels(ax, {name: xy for name, xy in points.items() if name == model or is_reference(name)})
    return {"points": {name: list(xy) for name, xy in points.items()}}


def _logits(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    found = [r for r in _of(rows, model, "logit_collapse", ["entropy"]) if r.item is not None]
    before = [r for r in rows if (r.diagnostic, r.quantity, r.intervention, r.on) ==
              ("logit_collapse", "entropy", "original", "forget") and r.item is not None]  # fmt: skip
    if not found:
        raise ValueError("summaries only")
    values = {on: np.array([number(r.value) for r in found if r.on == on]) for on in SIDES}
    values["original"] = np.array([number(r.value) for r in before])
    finite = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    top = float(finite.max()) if finite.size else 1.0
    edges = np.linspace(0.0, top or 1.0, 25)
    drawn = {on: outline(value_N, edges) for on, value_N in values.items() if value_N.size}
    if "forget" in drawn:
        ax.stairs(drawn["forget"], edges, fill=True, color=FORGET, alpha=0.55, linewidth=0)
    if "retain" in drawn:
        ax.stairs(drawn["retain"], edges, color=RETAIN, linewidth=0.9)
    if "original" in drawn:
        ax.stairs(drawn["original"], edges, color=GREY, linewidth=0.7, label="original, forget")
        ax.legend(fontsize=small_text() - 1)
    tallest = max(max(drawn[on]) for on in drawn if on != "original")
    ax.set_ylim(0, 1.15 * tallest)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_xlabel("entropy of the next token (nats)")
    note_dropped(ax, sum(int((~np.isfinite(v)).sum()) for v in values.values()), inside=True)
    return {"edges": edges.tolist(), "density": drawn}


def _separability(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    _of(rows, model, "separability", ["auc"])
    data: dict[str, list[float]] = {}
    lost = 0
    ax.axhline(0.5, color=GREY, linewidth=0.6)
    for name in ("original", "retrained", model):
        own = [r for r in rows if (r.diagnostic, r.quantity, r.intervention) == ("separability", "auc", name)]
        if not own:
            continue
        layer, values = values_by_layer(own)
        low, high = values_by_layer(own, "low")[1][name], values_by_layer(own, "high")[1][name]
        style = look(name).line() | ({} if name == model else {"marker": "", "linewidth": 0.8})
        ax.fill_between(layer, low, high, color=style["color"], alpha=0.12, linewidth=0)
        ax.plot(layer, values[name], label=plain_text(name), **style)
        lost += sum(not math.isfinite(v) for v in values[name])
        data[name] = values[name]
    shown = [value for line in data.values() for value in line if math.isfinite(value)]
    ax.set_ylim(min(0.4, *shown, 0.4) - 0.02, 1.03)
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    ax.set_xlabel("layer")
    ax.set_ylabel("probe AUROC", fontsize=small_text())
    ax.legend(fontsize=small_text() - 1)
    note_dropped(ax, lost, inside=True)
    return data


def _lens(rows: Sequence[Row], model: str, ax: Axes) -> Any:
    _of(rows, model, "logit_lens", ["probability"])
    tokens, layers, after_TL = lens_map(rows, model)
    before_TL = lens_map(rows, "original")[2]
    image = map_panel(ax, after_TL - before_TL, layers, diverging=True)
    token_ticks(ax, tokens)
    bar = ax.figure.colorbar(image, ax=ax, pad=0.02, aspect=14)
    bar.set_ticks([-1, 0, 1])
    bar.ax.yaxis.set_minor_locator(NullLocator())
    bar.outline.set_visible(False)  # type: ignore[operator]
    note_dropped(ax, int((~np.isfinite(after_TL - before_TL)).sum()), inside=True)
    return {"tokens": tokens, "layers": layers, "change": (after_TL - before_TL).tolist()}


_PANELS: dict[str, Panel] = {
    "G-effect by layer": _g_effect,
    "One layer replaced": _u_shape,
    "Utility, forgetting": _tradeoff,
    "Entropy on answers": _logits,
    "Told apart by a probe": _separability,
    "Logit lens: change of p": _lens,
}


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 0.62 * sizes.page + 0.2)
    return figure, dashboard(rows, figure)


DASHBOARD = Entry(
    "dashboard",
    "20",
    "One model",
    ("g_effect", "fragility", "performance", "logit_collapse", "separability", "logit_lens"),
    _draw,
    """One model in six panels: G-effect by layer; one layer of it in the original (dotted: the original); utility
    against forgetting among all methods (grey); entropy of the next token on forget (filled) and retain answers; how
    well a probe tells forget from retain states; change of the logit lens's probability of an answer.""",
)
