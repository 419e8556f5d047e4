"""What objectives do as training goes on: G-effects over steps, and pairs of objectives side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.layers import symlog_axis
from probe.figures.style import GREY, Venue, look, new_figure, number, ordered, picked
from probe.rows import Row

# Pairs of objectives that differ in one thing.
PAIRS = (("GA", "WGA"), ("NPO", "TNPO"), ("NLL retain", "KL retain"))
_RETAIN_TERM = " retain"
_SIDES = {
    "forget": ("unlearn G-effect", "forgets", "reinforces", 1),
    "retain": ("retain G-effect", "harms", "helps", -1),
}


def g_effects_over_steps(rows: Sequence[Row], figure: Figure, panels: Sequence[Sequence[str]]) -> dict[str, Any]:
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
    data: dict[str, Any] = {"forget": {}, "retain": {}, "not_finite": 0}
    ends: list[tuple[Axes, dict[str, tuple[float, float]]]] = []
    for line_of_axes, (on, (title, low_word, high_word, unwanted)) in zip(axes, _SIDES.items(), strict=True):
        shown = [number(row.value) for row in found if row.on == on and any(row.intervention in p for p in panels)]
        for ax, names in zip(line_of_axes, panels, strict=True):
            ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
            lost, last = 0, {}
            for name in names:
                line = sorted((r for r in found if (r.on, r.intervention) == (on, name)), key=lambda r: r.item or 0)
                if not line:
                    continue
                x = [float(row.item or 0) for row in line]
                lost += banded(ax, x, line, **look(name).line())
                last[name] = end(x, line)
                data[on][name] = {
                    "step": [row.item for row in line],
                    **{key: [getattr(row, key) for row in line] for key in ("value", "low", "high")},
                }
            note_dropped(ax, lost, inside=True)
            data["not_finite"] += lost
            symlog_axis(ax, np.array(shown))
            ends.append((ax, last))
        _shade(list(line_of_axes), unwanted)
        line_of_axes[0].set_ylabel(f"{title}\n← {low_word}   {high_word} →")
    for ax in axes[-1]:
        ax.set_xlabel("step")
    for ax, last in ends:
        end_labels(ax, last)
    return data


def _shade(axes: Sequence[Axes], unwanted: int) -> None:
    for ax in axes:
        low, high = ax.get_ylim()
        shade = (0, max(high, 0)) if unwanted > 0 else (min(low, 0), 0)
        ax.axhspan(*shade, color="#F3F3F3", zorder=0, linewidth=0)
        ax.set_ylim(low, high)


def _in_columns(names: Sequence[str], *, most: int = 4) -> list[list[str]]:
    """Names in columns of at most ``most``, as even as can be."""
    columns = -(-len(names) // most)
    size = -(-len(names) // max(columns, 1))
    return [list(names[i : i + size]) for i in range(0, len(names), size)]


def _pairs_of(names: Sequence[str]) -> list[tuple[str, str]]:
    """The pairs of ``PAIRS`` that were measured: first without a retain term, else with the same one."""
    found = []
    for first, second in PAIRS:
        if first.endswith(_RETAIN_TERM):
            tried = [(first, second)]
        else:
            tried = [(f"{first}{keep}", f"{second}{keep}") for keep in ("", " + NLL", " + KL")]
        found += [pair for pair in tried if set(pair) <= set(names)][:1]
    return found


def _draw_steps(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    names = ordered(r.intervention for r in picked(rows, "g_effect", ["effect over steps"]))
    # Retain terms are drawn beside each other, not among the objectives that forget.
    panels = _in_columns([name for name in names if not name.endswith(_RETAIN_TERM)] or names)
    figure = new_figure(sizes.narrow if len(panels) == 1 else sizes.page, 3.0)
    return figure, g_effects_over_steps(rows, figure, panels)


def _draw_pairs(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    names = ordered(r.intervention for r in picked(rows, "g_effect", ["effect over steps"]))
    panels = _pairs_of(names)
    if not panels:
        wanted = "; ".join(f"{a} and {b}" for a, b in PAIRS)
        raise ValueError(f"no pair of objectives among {', '.join(names)}; measure one of: {wanted}")
    figure = new_figure(sizes.narrow if len(panels) == 1 else sizes.page, 2.9)
    return figure, g_effects_over_steps(rows, figure, panels)


G_EFFECT_STEPS = Entry(
    "g_effect_steps",
    "1",
    "G-effect over training",
    ("g_effect",),
    _draw_steps,
    """G-effect over training steps on forget data (above) and retain data (below). Below zero a step on the objective
    lowers performance on that data: wanted above, unwanted below (the unwanted side is shaded). Linear near zero,
    logarithmic beyond.""",
)
G_EFFECT_PAIRS = Entry(
    "g_effect_pairs",
    "4",
    "Pairs of objectives",
    ("g_effect",),
    _draw_pairs,
    """G-effects of objectives that differ in one thing, over training steps: token weights (GA and WGA, NPO and TNPO)
    or the retain term (NLL and KL). Unwanted sides are shaded.""",
)
