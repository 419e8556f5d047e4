"""Comparisons at equal retention: what calibration moves, choice beside open questions, and which metric to trust."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.figures.labels import note_dropped, point_labels, small
from probe.figures.style import FORGET, GREY, RETAIN, is_reference, look, number, ordered, picked, plain
from probe.rows import Row

# Marker and colour of an attack, apart in grey print as well.
_ATTACK_LOOKS = (("#D55E00", "o"), ("#0072B2", "s"), ("#7B61B5", "^"), ("#00684B", "D"), ("#9C8F00", "v"))
# The forms of extraction strength, as they are told apart in print.
_NAMES = {
    "extraction_strength": "ES exact",
    "extraction_strength_floor": "ES exact, floor 1/L",
    "perturbed_strength": "ES perturbed",
    "perturbed_strength_floor": "ES perturbed, floor 1/L",
}


def calibration_arrows(rows: Sequence[Row], ax: Axes, *, quantity: str = "extraction_strength") -> dict[str, Any]:
    """x: score on forget data; y: score on retain data; an arrow leads from each method as trained to its mixture.

    Hollow marks are methods as trained, full ones are calibrated, with the unlearned model's share alpha in brackets;
    whiskers on the full ones are the rows' intervals.

    Args:
        rows: "raw" and "calibrated" rows of ``quantity`` on "forget" and "retain"; "calibrated" rows of "alpha".
        ax: where to draw.
        quantity: a score in [0, 1], higher where more is known.

    Returns:
        ``{"arrows": {name: {"raw": [x, y], "calibrated": [x, y], "intervals", "alpha"}}, "references", "not_finite"}``.

    Raises:
        ValueError: no such rows.
    """
    found = {(r.intervention, r.diagnostic, r.on): number(r.value) for d in ("raw", "calibrated")
             for r in picked(rows, d, [quantity], ["forget", "retain"])}  # fmt: skip
    ends = {(r.intervention, r.on): (number(r.low), number(r.high))
            for r in picked(rows, "calibrated", [quantity], ["forget", "retain"])}  # fmt: skip
    alphas = {r.intervention: number(r.value) for r in rows if r.diagnostic == "calibrated" and r.quantity == "alpha"}
    arrows: dict[str, Any] = {}
    references: dict[str, list[float]] = {}
    lost = 0
    for name in ordered(key[0] for key in found):
        raw, mixed = (
            [found.get((name, d, on), math.nan) for on in ("forget", "retain")] for d in ("raw", "calibrated")
        )
        if is_reference(name) and all(map(math.isfinite, raw)):
            references[name] = raw
            ax.plot(*raw, **{**look(name).line(), "linestyle": "none"}, markersize=9 if name == "retrained" else 5.5)
        elif all(map(math.isfinite, [*raw, *mixed])):
            whiskers = [ends[name, on] for on in ("forget", "retain")]
            alpha = alphas.get(name, math.nan)
            arrows[name] = {"raw": raw, "calibrated": mixed, "intervals": whiskers, "alpha": alpha}
            _arrow(ax, name, raw, mixed)
            colour = look(name).colour
            ax.plot(whiskers[0], [mixed[1]] * 2, color=colour, linewidth=0.6, zorder=1)
            ax.plot([mixed[0]] * 2, whiskers[1], color=colour, linewidth=0.6, zorder=1)
        else:
            lost += 1
    ax.set_xlim(-0.05, 1.08)
    # Where all retain much, the range from 0 would hide the differences.
    lowest = min([xy[1] for arrow in arrows.values() for xy in (arrow["raw"], arrow["calibrated"])], default=0.0)
    ax.set_ylim(max(0.0, math.floor(10 * lowest) / 10) - 0.05, 1.05)
    word = quantity.replace("_", " ")
    ax.set_xlabel(f"← {word} on forget data")
    ax.set_ylabel(f"{word} on retain data →")
    note_dropped(ax, lost)
    labels = {f"{name} ({arrow['alpha']:.2g})": (name, arrow["calibrated"]) for name, arrow in arrows.items()}
    points = {text: (xy[0], xy[1]) for text, (_, xy) in labels.items()}
    point_labels(ax, points | {name: (xy[0], xy[1]) for name, xy in references.items()})
    for drawn in ax.texts:
        # With its alpha the name is another one, which might have another colour.
        if drawn.get_text() in labels:
            drawn.set_color(look(labels[drawn.get_text()][0]).colour)
    return {"arrows": arrows, "references": references, "not_finite": lost}


def _arrow(ax: Axes, name: str, raw: Sequence[float], mixed: Sequence[float]) -> None:
    style = look(name)
    marks: dict[str, Any] = {"marker": style.marker, "color": style.colour, "linestyle": "none", "markersize": 4.5}
    ax.plot(*raw, **marks, fillstyle="none", zorder=3)
    ax.plot(*mixed, **marks, zorder=4)
    # Arrows of length zero would draw a head that points nowhere.
    if math.dist(raw, mixed) > 0.02:
        arrow = {"arrowstyle": "-|>", "color": style.colour, "alpha": 0.55, "linewidth": 0.7, "mutation_scale": 7}
        ax.annotate("", (mixed[0], mixed[1]), (raw[0], raw[1]), arrowprops={**arrow, "shrinkA": 3, "shrinkB": 3})


def strength_over_alpha(rows: Sequence[Row], figure: Figure, *, columns: int = 5) -> dict[str, Any]:
    """One panel a method: the score on either side as more and more of the unlearned model is mixed in.

    Args:
        rows: "path" rows on "forget" and "retain", ``dose`` the mixing weight; "calibrated" rows of "alpha".
        figure: empty.
        columns: panels side by side.

    Returns:
        ``{name: {"forget" | "retain": [[alpha, value], ...], "alpha"}}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "path", {r.quantity for r in rows if r.diagnostic == "path"})
    names = ordered(row.intervention for row in found)
    alphas = {r.intervention: number(r.value) for r in rows if r.diagnostic == "calibrated" and r.quantity == "alpha"}
    data: dict[str, Any] = {}
    columns = min(columns, len(names))
    panels = figure.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for name, ax in zip(names, panels.flat, strict=False):
        data[name] = {"alpha": alphas.get(name, math.nan)}
        for on, colour, dash in (("forget", FORGET, "-"), ("retain", RETAIN, (0, (4, 1.5)))):
            own = sorted((number(r.dose), number(r.value)) for r in found if (r.intervention, r.on) == (name, on))
            data[name][on] = [list(point) for point in own]
            ax.plot(*np.array(own).reshape(-1, 2).T, color=colour, linestyle=dash, linewidth=1.1, label=on)
        if math.isfinite(data[name]["alpha"]):
            ax.axvline(data[name]["alpha"], color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)))
        ax.set_title(plain(name), fontsize=small())
        ax.set_ylim(-0.05, 1.08)
    for ax in panels.flat[len(names) :]:
        ax.set_visible(False)
    panels.flat[0].legend(fontsize=small() - 1, loc="lower left")
    figure.supxlabel("α, the weight of the unlearned model", fontsize=small())
    figure.supylabel(found[0].quantity.replace("_", " "), fontsize=small())
    return data


def choice_against_open(rows: Sequence[Row], figure: Figure, *, state: str, guess: float) -> dict[str, Any]:
    """Accuracy of multiple choice (x) and of open answers (y), on forget and on retain data.

    Above the guess line is knowledge that both forms show. Hollow: the accuracy of most seeds cannot be told from
    blind guessing.

    Args:
        rows: ``state`` rows of "choice_accuracy", "open_right" and "at_chance" on "forget" and "retain".
        figure: empty.
        state: "raw" or "calibrated"; references are always taken from "raw".
        guess: the accuracy of blind guessing.

    Returns:
        ``{"forget" | "retain": {name: {"choice", "open", "hollow"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    quantities = ("choice_accuracy", "open_right", "at_chance")
    own = picked(rows, state, quantities, ["forget", "retain"])
    references = [
        r for r in rows if r.diagnostic == "raw" and is_reference(r.intervention) and r.quantity in quantities
    ]
    table = {(r.on, r.intervention, r.quantity): number(r.value) for r in (*own, *references)}
    names = ordered(name for _, name, _ in table)
    data: dict[str, Any] = {"not_finite": 0}
    for on, ax in zip(("forget", "retain"), figure.subplots(1, 2, sharex=True, sharey=True), strict=True):
        data[on], lost = {}, 0
        for name in names:
            choice, right, chance = (table.get((on, name, q), math.nan) for q in quantities)
            if not math.isfinite(choice + right):
                lost += 1
                continue
            data[on][name] = {"choice": choice, "open": right, "hollow": chance > 0.5}
            style, size = look(name), 9 if name == "retrained" else 5
            fill = "none" if chance > 0.5 else "full"
            ax.plot(choice, right, marker=style.marker, color=style.colour, fillstyle=fill, markersize=size, zorder=3)
        ax.axvline(guess, color=GREY, linewidth=0.7, linestyle=(0, (4, 2)))
        ax.annotate("guess", (guess, 0.6), (-2, 0), textcoords="offset points", rotation=90, ha="right", va="center",
                    fontsize=small() - 1, color=GREY)  # fmt: skip
        ax.set_xlim(-0.05, 1.08)
        ax.set_ylim(-0.08, 1.08)
        ax.set_title(f"{on} data", loc="left")
        ax.set_xlabel("accuracy of multiple choice")
        note_dropped(ax, lost, inside=True)
        data["not_finite"] += lost
        if on == "forget":
            ax.set_ylabel("open answers right")
        point_labels(ax, {name: (p["choice"], p["open"]) for name, p in data[on].items()})
    return data


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
        colour, marker = _ATTACK_LOOKS[k % len(_ATTACK_LOOKS)]
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
        ax.plot([means[name]] * 2, [place - 0.38, place + 0.38], color="#222222", linewidth=1.2)
        if place:
            ax.axhline(place - 0.5, color=GREY, linewidth=0.3, alpha=0.5)
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=(0, (4, 2)))
    ax.set_yticks(
        range(len(names)), [plain(_NAMES.get(name, name.replace("_", " "))) for name in names], fontsize=small()
    )
    ax.set_ylim(len(names) - 0.4, -0.6)
    ax.set_xlim(-1.05, 1.05)
    ax.set_xlabel("correlation over models, before and after an attack →")
    ax.figure.legend(handles=handles, fontsize=small(), loc="outside lower center", ncols=len(handles))  # type: ignore[union-attr]
    note_dropped(ax, lost)
    return {name: table[name] for name in names}
