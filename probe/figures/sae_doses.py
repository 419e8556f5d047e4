"""SAE suppression: what is chosen on one half of the entities and what it is worth on the other, beside controls."""

import math
from collections.abc import Sequence
from textwrap import wrap
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers
from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import FORGET, GREY, RETAIN, Venue, new_figure, number, picked
from probe.rows import Row

CHOICE, RESPONSE, LAYERS = "sae_choice", "sae_response", "sae_layers"
_SIDES = {"forget": (FORGET, "o", "-"), "retain": (RETAIN, "s", (0, (4, 1.5)))}
_UNITS = {"scale": "scale c: f becomes −c f", "push": "push (median residual norms)"}


def choices(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """Rise of the loss under each source's choice: hollow where it was chosen, filled on other entities, with whiskers.

    Args:
        rows: "sae_choice" rows, quantities "rise" and "rise on the choosing half", on "forget" and "retain".
        ax: where to draw.

    Returns:
        ``{source: {on: {"report", "low", "high", "select"}}, "words": {source: word}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, CHOICE, ["rise", "rise on the choosing half"], _SIDES)
    sources = list(dict.fromkeys(row.intervention for row in found))
    words = {r.intervention: r.quantity.removeprefix("verdict ") for r in rows if r.quantity.startswith("verdict ")}
    by = {(row.intervention, row.on, row.quantity): row for row in found}
    data: dict[str, Any] = {"words": {s: words[s] for s in sources if s in words}}
    lost = 0
    for place, source in enumerate(sources):
        data[source] = {}
        for shift, (on, (colour, marker, _)) in zip((-0.16, 0.16), _SIDES.items(), strict=True):
            row = by.get((source, on, "rise"))
            if row is None:
                continue
            seen = by.get((source, on, "rise on the choosing half"))
            y, value = place + shift, number(row.value)
            lost += not math.isfinite(value)
            low, high = (value if end is None else number(end) for end in (row.low, row.high))
            ax.hlines(y, low, high, color=colour, linewidth=1.1)
            ax.plot([value], [y], marker=marker, color=colour, markersize=4.2, linestyle="none", zorder=3)
            start = math.nan if seen is None else number(seen.value)
            hollow: dict[str, Any] = {
                "markerfacecolor": "white",
                "markeredgecolor": colour,
                "markersize": 6.0,
                "linestyle": "none",
            }
            ax.plot([start], [y], marker=marker, **hollow, zorder=2)
            data[source][on] = {"report": row.value, "low": row.low, "high": row.high, "select": start}
    for on, (colour, marker, _) in _SIDES.items():
        ax.plot([], [], marker=marker, color=colour, linestyle="none", label=f"{on}, other entities")
    ax.plot([], [], marker="o", markerfacecolor="white", markeredgecolor=GREY, linestyle="none", label="where chosen")
    ax.axvline(0, color=GREY, linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
    ax.set_yticks(range(len(sources)), [_named(s, words.get(s)) for s in sources])
    ax.set_ylim(len(sources) - 0.5, -0.5)
    ax.set_xlabel("rise of the answers' loss (nats a token)")
    handles, labels = ax.get_legend_handles_labels()
    # Of the figure: an axes' own legend above it would be laid over long names.
    whole = ax.get_figure(root=True)
    assert whole is not None
    whole.legend(handles, labels, loc="outside upper center", ncols=3, fontsize=small_text() - 0.5)
    note_dropped(ax, lost, inside=True)
    return data | {"not_finite": lost}


def _named(source: str, word: str | None) -> str:
    # Longer lines would not fit beside the panel.
    return "\n".join(wrap(f"{source} ({word})" if word else source, 17))


def responses(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Loss on the report half against strength: a column for each unit of strength, a row for each side, lines by rule.

    The largest number of features of each rule is drawn; the dotted line is the model without an edit, which zeroing
    the features hardly leaves ("zero" is drawn at 0).

    Args:
        rows: "sae_response" rows whose interventions are named "SAE by RULE, KIND".
        figure: an empty figure.

    Returns:
        ``{kind: {on: {rule: {"x", "value", "low", "high", "n"}}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = [r for r in picked(rows, RESPONSE, ["report loss"], _SIDES) if r.intervention.startswith("SAE by ")]
    if not found:
        raise ValueError("no 'sae_response' rows of an SAE; run a dose-response study")
    named = [(*_rule_and_kind(r), r) for r in found]
    rules = list(dict.fromkeys(rule for rule, _, _ in named))
    kinds = [kind for kind in _UNITS if any(k == kind for _, k, _ in named)]
    plain = {r.on: number(r.value) for r in rows if (r.intervention, r.quantity) == ("no edit", "report loss")}
    grid = figure.subplots(2, len(kinds), sharex="col", sharey=True, squeeze=False)
    colours = matplotlib.colormaps["viridis"](np.linspace(0.05, 0.85, len(rules)))
    data: dict[str, Any] = {}
    lost = 0
    for column, kind in enumerate(kinds):
        data[kind] = {}
        for line, on in enumerate(_SIDES):
            ax, data[kind][on] = grid[line, column], {}
            for rule, colour, marker in zip(rules, colours, "osD^vPX", strict=False):
                own = [r for name, k, r in named if name == rule and r.on == on and k in (kind, "zero")]
                most = max((r.item or 0 for r in own), default=0)
                own = sorted((r for r in own if r.item == most), key=lambda r: r.dose or 0.0)
                x = [float(r.dose or 0.0) for r in own]
                style = {"color": colour, "marker": marker, "markersize": 3.2, "markeredgecolor": "white"}
                lost += banded(ax, x, own, **style, label=f"{_short(rule)} ({most})")
                data[kind][on][rule] = banded_numbers(x, own)
            if on in plain:
                ax.axhline(plain[on], color=GREY, linewidth=0.8, linestyle=(0, (1, 2)), zorder=0)
            doses = sorted({float(r.dose) for _, k, r in named if k == kind and r.dose})
            if len(doses) > 1 and doses[-1] / doses[0] > 5:
                ax.set_xscale("symlog", linthresh=doses[0], linscale=0.5)
            ax.set_xticks([0.0, *doses], ["0", *(f"{dose:g}" for dose in doses)])
            ax.minorticks_off()
        grid[1, column].set_xlabel(_UNITS[kind])
    for line, on in enumerate(_SIDES):
        grid[line, 0].set_ylabel(f"loss on {on}\nanswers (nats)")
    handles, labels = grid[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper center", ncols=min(len(labels), 4), fontsize=small_text() - 0.5,
        title="rule (features)", title_fontsize=small_text() - 0.5,
    )  # fmt: skip
    note_dropped(grid[0, 0], lost, inside=True)
    return data | {"not_finite": lost}


def features_by_layer(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """How well features detect the forget rows (left), and what suppressing the best ones does (right), by layer.

    Args:
        rows: "sae_layers" rows: "detection" (AUROC) and "removal" (rise of the loss on "forget" and "retain").
        figure: an empty figure.

    Returns:
        ``{"detection": {"x", "value", ...}, "removal": {on: {...}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = sorted(picked(rows, LAYERS, ["detection", "removal"], _SIDES), key=lambda r: r.layer or 0)
    left, right = figure.subplots(1, 2)
    own = [r for r in found if r.quantity == "detection"]
    x = [float(r.layer or 0) for r in own]
    lost = banded(left, x, own, color="black", marker="D", markersize=3.5)
    data: dict[str, Any] = {"detection": banded_numbers(x, own), "removal": {}}
    left.axhline(0.5, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    left.set_ylim(0.45, 1.03)
    left.set_ylabel("detection (AUROC of a row)")
    for on, (colour, marker, line) in _SIDES.items():
        own = [r for r in found if (r.quantity, r.on) == ("removal", on)]
        x = [float(r.layer or 0) for r in own]
        lost += banded(right, x, own, color=colour, marker=marker, linestyle=line, markersize=3.5, label=f"{on} rows")
        data["removal"][on] = banded_numbers(x, own)
    right.axhline(0, color=GREY, linewidth=0.8, linestyle=(0, (1, 2)))
    right.set_ylabel("removal (rise of the loss, nats)")
    right.legend(fontsize=small_text() - 0.5)
    for ax in (left, right):
        ax.set_xlabel("block whose output is edited")
        ax.set_xticks(sorted({r.layer for r in found if r.layer is not None}))
    note_dropped(right, lost, inside=True)
    return data | {"not_finite": lost}


def _rule_and_kind(row: Row) -> tuple[str, str]:
    rule, _, kind = row.intervention.removeprefix("SAE by ").rpartition(", ")
    return rule, kind


def _short(rule: str) -> str:
    """A rule's name without settings that take a line."""
    return rule if len(rule) <= 24 else rule.split("(")[0]


def _draw_choices(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({r.intervention for r in rows if r.diagnostic == CHOICE})
    figure = new_figure(sizes.page * 0.8, 0.8 + 0.36 * max(n, 2))
    return figure, choices(rows, figure.subplots())


def _draw_responses(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 3.3)
    return figure, responses(rows, figure)


SAE_CHOICES = Entry(
    "sae_choices",
    "",
    "SAE suppression and its controls",
    (CHOICE,),
    _draw_choices,
    """What each source of edits would choose within the retain budget on one half of the entities (hollow), and what
    that edit does on the other half (filled). In brackets: what the edit did to the forget answers.""",
)
SAE_RESPONSES = Entry(
    "sae_responses",
    "",
    "Dose and response of SAE suppression",
    (RESPONSE,),
    _draw_responses,
    """Loss of forget and retain answers on entities that nothing was chosen on, against the strength of the
    suppression, for the largest number of features of each rule. Dotted: no edit. Strength 0: features set to zero.""",
)


def _draw_layers(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    figure = new_figure(sizes.page, 1.9)
    return figure, features_by_layer(rows, figure)


SAE_LAYERS = Entry(
    "sae_layers",
    "",
    "Detecting and removing, by layer",
    (LAYERS,),
    _draw_layers,
    """Left: how well one feature of each block, the best on other people, tells forget from retain rows. Right:
    what the suppression there that was best on those people does to the answers of these.""",
)
