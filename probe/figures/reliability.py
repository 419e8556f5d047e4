"""Which metric to trust: one that still ranks models the same after they are attacked."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.robustness import ATTACK_LOOKS
from probe.figures.style import GREY, INK, Venue, new_figure, number, picked, plain_text
from probe.rows import Row

# The forms of extraction strength, as they are told apart in print.
_NAMES = {
    "extraction_strength": "ES exact",
    "extraction_strength_floor": "ES exact, floor 1/L",
    "perturbed_strength": "ES perturbed",
    "perturbed_strength_floor": "ES perturbed, floor 1/L",
}


def metric_reliability(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """Each metric's correlation over models before and after attacks, the metric of the highest mean above.

    Args:
        rows: "reliability" rows; ``quantity`` the metric, ``on`` the attack, with intervals.
        ax: where to draw.

    Returns:
        ``{metric: {attack: [r, low, high]}}``, best first.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "reliability", {r.quantity for r in rows if r.diagnostic == "reliability"})
    attacks = list(dict.fromkeys(r.on for r in found))
    table: dict[str, dict[str, list[float]]] = {}
    for row in found:
        table.setdefault(row.quantity, {})[row.on] = [number(row.value), number(row.low), number(row.high)]
    means = {m: float(np.mean([v[0] for v in values.values()])) for m, values in table.items()}
    names = sorted(table, key=lambda m: (not math.isfinite(means[m]), -means[m] if math.isfinite(means[m]) else 0, m))
    lost, handles = 0, []
    for k, attack in enumerate(attacks):
        colour, marker = ATTACK_LOOKS[k % len(ATTACK_LOOKS)]
        handles.append(Line2D([], [], color=colour, marker=marker, linestyle="none", markersize=4, label=attack))
        for place, name in enumerate(names):
            r, low, high = table[name].get(attack, [math.nan] * 3)
            if not math.isfinite(r):
                lost += 1
                continue
            y = place + 0.15 * (k - (len(attacks) - 1) / 2)
            ax.plot([low, high], [y, y], color=colour, linewidth=0.7, alpha=0.6)
            ax.plot(r, y, color=colour, marker=marker, markersize=3.6, linestyle="none", markeredgecolor="none")
    for place, name in enumerate(names):
        ax.plot([means[name]] * 2, [place - 0.38, place + 0.38], color=INK, linewidth=1.2)
        if place:
            ax.axhline(place - 0.5, color=GREY, linewidth=0.3, alpha=0.5)
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)))
    ax.set_yticks(
        range(len(names)),
        [plain_text(_NAMES.get(name, name.replace("_", " "))) for name in names],
        fontsize=small_text(),
    )
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xlabel("correlation over models, before and after an attack →")
    ax.figure.legend(handles=handles, fontsize=small_text(), loc="outside lower center", ncols=len(handles))  # type: ignore[union-attr]
    note_dropped(ax, lost)
    return {name: table[name] for name in names}


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({row.quantity for row in rows if row.diagnostic == "reliability"})
    figure = new_figure(sizes.page, 0.8 + 0.245 * max(n, 3))
    return figure, metric_reliability(rows, figure.subplots())


RELIABILITY = Entry(
    "reliability",
    "18",
    "Which metric to trust",
    ("reliability",),
    _draw,
    """Correlation over models of each metric before and after attacks, the metric of the highest mean (black tick)
    above. A metric that attacks move at random cannot rank models.""",
)
