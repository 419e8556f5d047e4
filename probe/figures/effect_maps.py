"""G-effects by layer as training goes on: a heat map layer by step, and shallow, middle and deep layers as lines."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.colors import SymLogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped, small_text
from probe.figures.layers import symlog_axis
from probe.figures.style import FORGET, GREY, INK, RETAIN, Venue, new_figure, number, ordered, picked, plain_text
from probe.rows import Row

QUANTITY = "effect by layer over steps"
_SIDES = {"forget": "unlearn", "retain": "retain"}
_THIRDS: dict[str, dict[str, Any]] = {
    "shallow": {"color": RETAIN, "marker": "v", "linestyle": (0, (1, 1.2))},
    "middle": {"color": INK, "marker": "s", "linestyle": (0, (4, 1.5))},
    "deep": {"color": FORGET, "marker": "^", "linestyle": "-"},
}


@dataclass(frozen=True, eq=False)
class _Run:
    """The steps at which a method was measured, and on each side its effect by layer and step."""

    steps: list[int]
    sides: dict[str, np.ndarray]


def _runs(rows: Sequence[Row], most: int) -> dict[str, _Run]:
    found = picked(rows, "g_effect", [QUANTITY], _SIDES)
    depth = 1 + max(row.layer or 0 for row in found)
    runs = {}
    for name in ordered(row.intervention for row in found)[:most]:
        own = [row for row in found if row.intervention == name and row.layer is not None]
        steps = sorted({row.item or 0 for row in own})
        runs[name] = _Run(steps, {on: np.full((depth, len(steps)), np.nan) for on in _SIDES})
        for row in own:
            runs[name].sides[row.on][row.layer, steps.index(row.item or 0)] = number(row.value)
    return runs


def g_effect_maps(rows: Sequence[Row], figure: Figure, *, most: int = 4) -> dict[str, Any]:
    """Layer by step for each method: unlearn effect above, retain effect below, one symmetric scale a line of panels.

    Args:
        rows: "g_effect" rows, quantity "effect by layer over steps", ``item`` the step.
        figure: empty.
        most: how many methods are drawn, in the order of the house.

    Returns:
        ``{"steps": {method: [...]}, "forget" | "retain": {method: L lists, one number a step}, "not_finite"}``.

    Raises:
        ValueError: no such rows.
    """
    runs = _runs(rows, most)
    axes = figure.subplots(2, len(runs), sharex="col", sharey=True, squeeze=False)
    data: dict[str, Any] = {"steps": {name: run.steps for name, run in runs.items()}, "not_finite": 0}
    for line, (on, title) in zip(axes, _SIDES.items(), strict=True):
        size = np.abs(np.concatenate([run.sides[on].ravel() for run in runs.values()]))
        size = size[np.isfinite(size) & (size > 0)]
        top = float(size.max()) if size.size else 1.0
        norm = SymLogNorm(
            linthresh=max(float(np.quantile(size, 0.3)), top * 1e-3) if size.size else 1, vmin=-top, vmax=top
        )
        data[on] = {}
        for ax, (name, run) in zip(line, runs.items(), strict=True):
            value_LS = run.sides[on]
            image = ax.imshow(
                np.ma.masked_invalid(value_LS), cmap="RdBu_r", norm=norm, aspect="auto", origin="lower",
                interpolation="nearest",
            )  # fmt: skip
            lost = int((~np.isfinite(value_LS)).sum())
            note_dropped(ax, lost, inside=True)
            data["not_finite"] += lost
            data[on][name] = value_LS.tolist()
            ax.tick_params(length=0)
            ax.spines[:].set_visible(False)
        bar = figure.colorbar(image, ax=list(line), aspect=12, pad=0.01)
        bar.set_label(f"{title} G-effect", fontsize=small_text())
        bar.ax.tick_params(labelsize=small_text() - 1)
        bar.ax.minorticks_off()
        bar.ax.yaxis.set_major_locator(_few(norm.linthresh, top))
        bar.outline.set_visible(False)  # type: ignore[operator]
        line[0].set_ylabel("layer")
        line[0].yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
    for top, bottom, (name, run) in zip(axes[0], axes[-1], runs.items(), strict=True):
        top.set_title(plain_text(name), fontsize=small_text() + 0.5)
        few = sorted({0, len(run.steps) // 2, len(run.steps) - 1})
        bottom.set_xticks(few, [str(run.steps[i]) for i in few])
        bottom.set_xlabel("step")
    return data


def _few(low: float, top: float) -> Any:
    """Ticks at 0 and at the powers of ten next to the ends."""
    from matplotlib.ticker import FixedLocator

    large = 10.0 ** np.floor(np.log10(top))
    marks = [large] if large / low < 30 else [large, 10.0 ** np.ceil(np.log10(low))]
    return FixedLocator([*(-mark for mark in marks), 0, *marks])


def thirds(rows: Sequence[Row], figure: Figure, *, most: int = 4) -> dict[str, Any]:
    """Sums over the shallow, middle and deep third of the layers, over steps; one column a method.

    Args, Raises: as for ``g_effect_maps``. Layers that a third does not divide go to the middle.

    Returns:
        ``{"steps": {method: [...]}, "forget" | "retain": {method: {"shallow" | "middle" | "deep": [...]}},
        "not_finite"}``.
    """
    runs = _runs(rows, most)
    depth = len(next(iter(runs.values())).sides["forget"])
    third = depth // 3
    cuts = {"shallow": slice(0, third), "middle": slice(third, depth - third), "deep": slice(depth - third, depth)}
    axes = figure.subplots(2, len(runs), sharex="col", sharey="row", squeeze=False)
    data: dict[str, Any] = {"steps": {name: run.steps for name, run in runs.items()}, "not_finite": 0}
    for line, (on, title) in zip(axes, _SIDES.items(), strict=True):
        data[on], shown = {}, []
        for ax, (name, run) in zip(line, runs.items(), strict=True):
            data[on][name] = {}
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            lost = 0
            for what, cut in cuts.items():
                value_S = run.sides[on][cut].sum(0)
                ax.plot(run.steps, value_S, markeredgecolor="white", **_THIRDS[what])
                lost += int((~np.isfinite(value_S)).sum())
                data[on][name][what] = value_S.tolist()
                shown += value_S.tolist()
            note_dropped(ax, lost, inside=True)
            data["not_finite"] += lost
        symlog_axis(line[0], np.array(shown))
        line[0].set_ylabel(f"{title} G-effect")
    for ax, name in zip(axes[0], runs, strict=True):
        ax.set_title(plain_text(name), fontsize=small_text() + 0.5)
    for ax in axes[-1]:
        ax.set_xlabel("step")
    name, run = list(runs.items())[-1]
    for ax, on in zip(axes[:, -1], _SIDES, strict=True):
        ends = {what: (float(run.steps[-1]), value[-1]) for what, value in data[on][name].items()}
        end_labels(ax, ends, colours={what: style["color"] for what, style in _THIRDS.items()})
    return data


def _draw_maps(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.7)
    return figure, g_effect_maps(rows, figure)


def _draw_thirds(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 2.7)
    return figure, thirds(rows, figure)


G_EFFECT_MAP = Entry(
    "g_effect_map",
    "2",
    "G-effect by layer and step",
    ("g_effect",),
    _draw_maps,
    """G-effect of each method by layer and training step, on forget data (above) and retain data (below); blue lowers
    performance on that data. Colours are logarithmic away from zero and symmetric about it, one scale a line of
    panels.""",
    intervals=False,
)
G_EFFECT_THIRDS = Entry(
    "g_effect_thirds",
    "2",
    "G-effect of shallow, middle and deep layers",
    ("g_effect",),
    _draw_thirds,
    """G-effect summed over the shallow, the middle and the deep third of the layers, by training step.""",
    intervals=False,
)
