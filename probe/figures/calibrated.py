"""Comparisons at equal retention: what calibration moves, and choice beside open questions."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded
from probe.figures.entry import Entry
from probe.figures.labels import Segment, note_dropped, point_labels, small_text
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
)
from probe.rows import Row


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
    avoid = [segment for arrow in arrows.values() for segment in _whiskers(arrow)]
    point_labels(ax, points | {name: (xy[0], xy[1]) for name, xy in references.items()}, avoid=avoid)
    for drawn in ax.texts:
        # With its alpha the name is another one, which might have another colour.
        if drawn.get_text() in labels:
            drawn.set_color(look(labels[drawn.get_text()][0]).colour)
    return {"arrows": arrows, "references": references, "not_finite": lost}


def _whiskers(arrow: Mapping[str, Any]) -> list[Segment]:
    """The intervals of a calibrated method as lines that names had better not cross."""
    (x, y), (across, up) = arrow["calibrated"], arrow["intervals"]
    found: list[Segment] = [((across[0], y), (across[1], y)), ((x, up[0]), (x, up[1]))]
    return [segment for segment in found if all(math.isfinite(v) for point in segment for v in point)]


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
        data[name], lost = {"alpha": alphas.get(name, math.nan)}, 0
        for on, colour, dash in (("forget", FORGET, "-"), ("retain", RETAIN, (0, (4, 1.5)))):
            own = sorted((r for r in found if (r.intervention, r.on) == (name, on)), key=lambda r: number(r.dose))
            data[name][on] = [[number(r.dose), number(r.value)] for r in own]
            style: dict[str, Any] = {"color": colour, "linestyle": dash, "linewidth": 1.1, "label": on}
            lost += banded(ax, [number(r.dose) for r in own], own, **style)
        if math.isfinite(data[name]["alpha"]):
            ax.axvline(data[name]["alpha"], color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)))
        ax.set_title(plain_text(name), fontsize=small_text())
        ax.set_ylim(-0.05, 1.08)
        note_dropped(ax, lost, inside=True)
    for ax in panels.flat[len(names) :]:
        ax.set_visible(False)
    for ax in panels.flat[max(0, len(names) - columns) : len(names)]:
        ax.tick_params(labelbottom=True)
    panels.flat[0].legend(fontsize=small_text() - 1, loc="lower left")
    figure.supxlabel("α, the weight of the unlearned model", fontsize=small_text())
    figure.supylabel(found[0].quantity.replace("_", " "), fontsize=small_text())
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
                    fontsize=small_text() - 1, color=GREY)  # fmt: skip
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


def _draw_arrows(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 3.8)
    return figure, calibration_arrows(rows, figure.subplots())


def _draw_alpha(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({row.intervention for row in rows if row.diagnostic == "path"})
    figure = new_figure(sizes.page, 0.8 + 1.05 * -(-max(n, 1) // 5))
    return figure, strength_over_alpha(rows, figure)


def _draw_choice(rows: Sequence[Row], sizes: Venue, state: str) -> tuple[Figure, Any]:
    guess = picked(rows, "raw", ["guess"])[0].value
    figure = new_figure(sizes.page, 2.9)
    return figure, choice_against_open(rows, figure, state=state, guess=number(guess))


CALIBRATION = Entry(
    "calibration",
    "7",
    "Before and after calibration",
    ("raw", "calibrated"),
    _draw_arrows,
    """Extraction strength on forget and retain data, as trained (hollow) and mixed with the original until the stated
    share of the retain score is kept (full; in brackets: the unlearned model's weight alpha).""",
)
ALPHA = Entry(
    "alpha",
    "7",
    "Extraction strength over alpha",
    ("path",),
    _draw_alpha,
    "Score on either side as the unlearned model is mixed in; the dotted line is the calibrated alpha.",
)
CHOICE = Entry(
    "choice",
    "15",
    "Multiple choice and open questions",
    ("raw",),
    lambda rows, sizes: _draw_choice(rows, sizes, "raw"),
    """Accuracy of multiple choice against the share of open answers that are right. Hollow: an accuracy that most
    seeds share with blind guessing. Dashed: guessing.""",
)
CHOICE_CALIBRATED = Entry(
    "choice_calibrated",
    "15",
    "Multiple choice and open questions, calibrated",
    ("calibrated",),
    lambda rows, sizes: _draw_choice(rows, sizes, "calibrated"),
    "The same of the models mixed with the original until they keep a stated share of the retain score.",
)
