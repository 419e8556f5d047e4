"""Distributions of what the model puts on its next token: collapse against reshaping."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import FORGET, GREY, RETAIN, Venue, look, new_figure, number, ordered, picked, plain_text
from probe.rows import Row

TITLES = {
    "max_logit": "largest logit",
    "entropy": "entropy of the next token (nats)",
    "top_probability": "largest probability",
}


def collapse(
    rows: Sequence[Row], figure: Figure, *, quantities: Sequence[str] = ("max_logit", "entropy"), bins: int = 40
) -> dict[str, Any]:
    """Small multiples: one line of panels an intervention, one column a quantity.

    Filled: positions of forget answers; outline: retain answers; thin grey: the original model on forget answers.
    Each outline has area 1 (see ``outline``) and each panel its own height, so that a collapsed one does not flatten
    the others.
    The line's name carries the verdict ("collapsed on forget").

    Args:
        rows: "logit_collapse" rows, one an answer position, and the "collapsed" verdict (0 or 1).
        figure: an empty figure.
        quantities: columns.
        bins: bins over the range of all interventions together.

    Returns:
        quantity -> ``{"edges": [...], "density": {name: {"forget": [...], "retain": [...]}}, "not_finite": count}``
        and ``"verdict": {name: {"forget": bool, "retain": bool}}``.

    Raises:
        ValueError: no such rows.
    """
    found = [row for row in picked(rows, "logit_collapse", quantities) if row.item is not None]
    names = ordered(row.intervention for row in found)
    if not names:
        raise ValueError("'logit_collapse' rows hold summaries only; a distribution needs one row a position (item)")
    verdict = _verdicts(rows, names)
    grid = figure.subplots(len(names), len(quantities), sharex="col", squeeze=False)
    drawn: dict[str, Any] = {"verdict": verdict}
    for column, quantity in enumerate(quantities):
        values = {name: _values(found, name, quantity) for name in names}
        edges, scale = _edges(values, bins)
        density: dict[str, dict[str, list[float]]] = {}
        lost = 0
        for place, name in enumerate(names):
            ax = grid[place, column]
            linear = scale is None
            density[name] = {on: outline(value_N, edges, linear=linear) for on, value_N in values[name].items()}
            missing = sum(int((~np.isfinite(value_N)).sum()) for value_N in values[name].values())
            _panel(ax, name, edges, density)
            note_dropped(ax, missing)
            lost += missing
            if scale is not None:
                ax.set_xscale("symlog", linthresh=scale)
        grid[-1, column].set_xlabel(TITLES.get(quantity, quantity.replace("_", " ")))
        drawn[quantity] = {"edges": edges.tolist(), "density": density, "not_finite": lost}
    for place, name in enumerate(names):
        _name(grid[place, 0], name, verdict[name])
    _legend(figure, grid[0, 0], "original" in names)
    return drawn


def _values(rows: Sequence[Row], name: str, quantity: str) -> dict[str, np.ndarray]:
    found: dict[str, list[float]] = {}
    for row in rows:
        if (row.intervention, row.quantity) == (name, quantity):
            found.setdefault(row.on, []).append(number(row.value))
    return {on: np.array(value) for on, value in sorted(found.items())}


def _verdicts(rows: Sequence[Row], names: Sequence[str]) -> dict[str, dict[str, bool]]:
    verdict: dict[str, dict[str, bool]] = {name: {} for name in names}
    for row in rows:
        if (row.diagnostic, row.quantity) == ("logit_collapse", "collapsed") and row.intervention in verdict:
            verdict[row.intervention][row.on] = bool(row.value)
    return verdict


def _edges(values: dict[str, dict[str, np.ndarray]], bins: int) -> tuple[np.ndarray, float | None]:
    """Shared bin edges; even in log units beyond ``scale`` where one intervention would flatten the others."""
    pooled = [side for sides in values.values() for side in sides.values()]
    value_N = np.concatenate(pooled)
    value_N = value_N[np.isfinite(value_N)]
    if value_N.size == 0:
        return np.linspace(0, 1, bins + 1), None
    low, high = float(value_N.min()), float(value_N.max())
    usual = float(np.median([np.quantile(np.abs(s[np.isfinite(s)]), 0.9) for s in pooled if np.isfinite(s).any()]))
    if usual > 0 and max(abs(low), abs(high)) > 8 * usual:

        def squashed(x: float) -> float:
            return math.copysign(min(abs(x) / usual, 1) + math.log10(max(abs(x) / usual, 1)), x)

        even = np.linspace(squashed(low), squashed(high), bins + 1)
        size = np.where(np.abs(even) <= 1, np.abs(even), 10 ** np.clip(np.abs(even) - 1, 0, None))
        return np.sign(even) * size * usual, usual
    return np.linspace(low, high if high > low else low + 1, bins + 1), None


def outline(value_N: np.ndarray, edges: np.ndarray, *, linear: bool = True) -> list[float]:
    """A histogram; what lies beyond the edges counts in the outer bins.

    Its area is 1 on a linear axis. On an axis that is logarithmic away from zero, where bins are as wide as they are
    drawn, it is the share of each bin: a density would make what lies far out invisible.
    """
    value_N = value_N[np.isfinite(value_N)]
    if value_N.size == 0:
        return [0.0] * (len(edges) - 1)
    # Rounding in the edges must not lose the extreme values.
    count = np.histogram(np.clip(value_N, edges[0], edges[-1]), edges)[0]
    share = count / count.sum()
    return list((share / np.diff(edges) if linear else share).tolist())


def _panel(ax: Axes, name: str, edges: np.ndarray, density: dict[str, dict[str, list[float]]]) -> None:
    shown = density[name]
    if name != "original" and "forget" in density.get("original", {}):
        reference = np.array(density["original"]["forget"])
        tallest = max((max(side) for side in shown.values()), default=0)
        # The reference is cut, not scaled, where it is taller than this panel.
        ax.stairs(np.minimum(reference, 1.2 * tallest), edges, color=GREY, linewidth=0.6, zorder=2)
    if "forget" in shown:
        ax.stairs(shown["forget"], edges, fill=True, color=FORGET, alpha=0.55, linewidth=0, zorder=1)
    if "retain" in shown:
        ax.stairs(shown["retain"], edges, color=RETAIN, linewidth=0.8, zorder=3)
    ax.set_yticks([])
    ax.spines["left"].set_visible(False)
    ax.set_ylim(bottom=0)
    ax.margins(x=0.01)


def _name(ax: Axes, name: str, verdict: dict[str, bool]) -> None:
    where = [on for on, yes in verdict.items() if yes]
    text = plain_text(name, width=16) + ("\ncollapsed:\n" + ", ".join(where) if where else "")
    ax.set_ylabel(
        text, rotation=0, ha="right", va="center", color=look(name).colour, fontsize=small_text(), linespacing=1.0
    )
    if where:
        ax.yaxis.label.set_fontweight("bold")


def _legend(figure: Figure, ax: Axes, with_original: bool) -> None:
    handles = [
        Patch(facecolor=FORGET, alpha=0.55, label="forget answers"),
        Line2D([], [], color=RETAIN, linewidth=0.8, label="retain answers"),
    ]
    if with_original:
        handles.append(Line2D([], [], color=GREY, linewidth=0.6, label="original, forget answers"))
    figure.legend(handles=handles, loc="outside upper right", ncols=len(handles))


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({row.intervention for row in rows if row.diagnostic == "logit_collapse"})
    figure = new_figure(sizes.page, 0.6 + 0.46 * max(n, 1))
    return figure, collapse(rows, figure)


LOGIT_COLLAPSE = Entry(
    "logit_collapse",
    "9",
    "What the logits look like",
    ("logit_collapse",),
    _draw,
    """Largest logit and entropy of the next token over answer positions. Each panel has its own height; the grey
    outline is the original model on forget answers, cut where it is taller.""",
)
