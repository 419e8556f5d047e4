"""How methods stand up to attacks, and whether standing up to one means standing up to another."""

import math
from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.entry import Entry
from probe.figures.labels import Segment, note_dropped, point_labels, small_text
from probe.figures.style import GREY, INK, Venue, is_reference, look, new_figure, number, ordered, picked, plain_text
from probe.metrics.intervals import fisher_z
from probe.rows import Row

DIAGNOSTIC = "robustness"
# Marker and colour of an attack, apart in grey print as well.
ATTACK_LOOKS = (("#D55E00", "o"), ("#0072B2", "s"), ("#7B61B5", "^"), ("#00684B", "D"), ("#9C8F00", "v"))


def _table(rows: Sequence[Row]) -> dict[str, dict[str, Row]]:
    """attack -> intervention -> row."""
    found = picked(rows, DIAGNOSTIC, {r.quantity for r in rows if r.diagnostic == DIAGNOSTIC})
    table: dict[str, dict[str, Row]] = {}
    for row in found:
        table.setdefault(row.quantity, {})[row.intervention] = row
    return table


def dots(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """One line a method, one mark an attack, most robust on average above. A dot plot, for a radar's area misleads.

    Args:
        rows: "robustness" rows in [0, 1], higher is better; ``quantity`` the attack.
        ax: where to draw.

    Returns:
        ``{attack: {name: [value, low, high]}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    table = _table(rows)

    def mean(name: str) -> float:
        own = [number(line[name].value) for line in table.values() if name in line]
        own = [v for v in own if math.isfinite(v)]
        return float(np.mean(own)) if own else -math.inf

    names = ordered(name for line in table.values() for name in line)
    names.sort(key=lambda n: (is_reference(n), -mean(n)))
    data: dict[str, Any] = {}
    lost = 0
    for k, (attack, line) in enumerate(table.items()):
        colour, marker = ATTACK_LOOKS[k % len(ATTACK_LOOKS)]
        data[attack] = {n: [r.value, r.low, r.high] for n, r in line.items()}
        for place, name in enumerate(names):
            if name not in line:
                continue
            row, y = line[name], place + 0.16 * (k - (len(table) - 1) / 2)
            if row.value is None:
                lost += 1
                continue
            if row.low is not None and row.high is not None:
                ax.plot([row.low, row.high], [y, y], color=colour, linewidth=0.7, alpha=0.6)
            ax.plot(row.value, y, marker=marker, color=colour, markersize=3.8, linestyle="none", markeredgecolor="none")
        ax.plot([], [], marker=marker, color=colour, linestyle="none", label=plain_text(attack), markersize=3.8)
    for place in range(1, len(names)):
        ax.axhline(place - 0.5, color=GREY, linewidth=0.3, alpha=0.5)
    ax.set_yticks(range(len(names)), [plain_text(name) for name in names], fontsize=small_text())
    ax.tick_params(axis="y", length=0)
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-0.04, 1.04)
    ax.set_xlabel("robustness →")
    ax.figure.legend(loc="outside lower center", ncols=len(table), fontsize=small_text())  # type: ignore[union-attr]
    note_dropped(ax, lost)
    return data | {"not_finite": lost}


def correlations(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Robustness to one attack against that to another, a point a method, with Pearson's r, Fisher's interval and n.

    Args:
        rows: as for ``dots``; references are drawn but not counted.
        figure: empty.

    Returns:
        ``{"A / B": {"points": {name: [x, y]}, "r", "low", "high", "n"}, "not_finite": count}``.

    Raises:
        ValueError: no such rows, or one attack only.
    """
    table = _table(rows)
    if len(table) < 2:
        raise ValueError(f"'robustness' rows of one attack only ({next(iter(table))}); a correlation needs two")
    pairs = list(combinations(table, 2))[:3]
    axes = figure.subplots(1, len(pairs), squeeze=False)[0]
    data: dict[str, Any] = {"not_finite": 0}
    for ax, (first, second) in zip(axes, pairs, strict=True):
        points, lost = {}, 0
        whiskers: list[Segment] = []
        for name in ordered(set(table[first]) & set(table[second])):
            xy = number(table[first][name].value), number(table[second][name].value)
            if not all(map(math.isfinite, xy)):
                lost += 1
                continue
            points[name] = xy
            whiskers += _point(ax, name, table[first][name], table[second][name])
        own = np.array([xy for name, xy in points.items() if not is_reference(name)]).reshape(-1, 2)
        r, low, high = _pearson(own)
        data[f"{first} / {second}"] = {"points": points, "r": r, "low": low, "high": high, "n": len(own)}
        data["not_finite"] += lost
        words = f"r = {r:.2f} [{low:.2f}, {high:.2f}], n = {len(own)}" if math.isfinite(r) else f"n = {len(own)}"
        ax.set_title(words.replace("-", "−"), fontsize=small_text(), color=INK)
        ax.set_xlim(-0.08, 1.08)
        ax.set_ylim(-0.08, 1.08)
        ax.set_xlabel(f"robust to {plain_text(first)} →")
        ax.set_ylabel(f"robust to {plain_text(second)} →")
        note_dropped(ax, lost, inside=True)
        point_labels(ax, points, avoid=whiskers)
    return data


def _point(ax: Axes, name: str, x: Row, y: Row) -> list[Segment]:
    """A point and its whiskers, which are given back."""
    style = look(name)
    drawn: list[Segment] = []
    for row, flat in ((x, True), (y, False)):
        if row.low is not None and row.high is not None:
            ends, other = [row.low, row.high], [number((y if flat else x).value)] * 2
            across, up = (ends, other) if flat else (other, ends)
            ax.plot(across, up, color=style.colour, linewidth=0.6, alpha=0.5, zorder=1)
            drawn.append(((across[0], up[0]), (across[1], up[1])))
    size = 8 if name == "retrained" else 4.5
    ax.plot(*(number(row.value) for row in (x, y)), marker=style.marker, color=style.colour, markersize=size, zorder=3)
    return drawn


def _pearson(point_N2: np.ndarray) -> tuple[float, float, float]:
    """Pearson's r with Fisher's 95 % interval; NaN where there are too few points or no spread."""
    n = len(point_N2)
    if n < 4 or (np.ptp(point_N2, axis=0) == 0).any():
        return math.nan, math.nan, math.nan
    r = float(np.clip(np.corrcoef(point_N2.T)[0, 1], -1, 1))
    return r, *fisher_z(r, n)


def _counts(rows: Sequence[Row]) -> Mapping[str, int]:
    own = [r for r in rows if r.diagnostic == DIAGNOSTIC]
    return {"methods": len({r.intervention for r in own}), "attacks": len({r.quantity for r in own})}


def _draw_dots(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.narrow, 0.8 + 0.24 * max(3, _counts(rows)["methods"]))
    return figure, dots(rows, figure.subplots())


def _draw_correlations(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    pairs = min(3, _counts(rows)["attacks"] * (_counts(rows)["attacks"] - 1) // 2)
    width = sizes.narrow if pairs <= 1 else sizes.page
    figure = new_figure(width, 0.5 + width / max(pairs, 1) * 0.95)
    return figure, correlations(rows, figure)


ROBUSTNESS = Entry(
    "robustness",
    "14",
    "Robustness to attacks",
    (DIAGNOSTIC,),
    _draw_dots,
    "Robustness of each method to each attack, most robust on average above; 1: the attack brings nothing back.",
)
ATTACK_CORRELATION = Entry(
    "attack_correlation",
    "14",
    "Does robustness carry over?",
    (DIAGNOSTIC,),
    _draw_correlations,
    """Robustness to one attack against robustness to another, one point a method. In brackets Fisher's 95 % interval
    of Pearson's r over methods; references are drawn and not counted.""",
)
