"""SAE features: who activates them, and what scaling the selected ones does."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers
from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import FORGET, GREY, RETAIN, Venue, new_figure, number, picked
from probe.rows import Row

ACTIVITY, DOSE = "sae_activity", "sae_dose"
_SIDES: dict[str, dict[str, Any]] = {
    "forget": {"color": FORGET, "marker": "o", "linestyle": "-"},
    "retain": {"color": RETAIN, "marker": "s", "linestyle": (0, (4, 1.5))},
}


def _activity(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """Mean activation of each feature on forget and retain tokens, sorted by that on forget tokens; log-log axes.

    Features that a rule selected have a tick below and full marks. A mean of exactly 0 has no place on a log axis:
    features that neither side activates are left out, and a mark is drawn at the lower edge where one side is 0.

    Args:
        rows: "sae_activity" rows, quantity "mean_activation" on "forget" and "retain", ``item`` the feature; quantity
            "selected" (1) for those that were selected.
        ax: where to draw.

    Returns:
        ``{"feature": [...], "forget": [...], "retain": [...], "selected": [...], "silent": n, "not_finite": n}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, ACTIVITY, ["mean_activation"], _SIDES)
    mean = {(r.on, r.item): number(r.value) for r in found}
    features = sorted({r.item for r in found if r.item is not None})
    selected = {r.item for r in rows if (r.diagnostic, r.quantity) == (ACTIVITY, "selected") and r.value}
    lost = sum(not math.isfinite(v) for v in mean.values())
    alive = [f for f in features if any(mean.get((on, f), 0.0) > 0 for on in _SIDES)]
    alive.sort(key=lambda f: (-_finite(mean.get(("forget", f), 0.0)), -_finite(mean.get(("retain", f), 0.0)), f))
    positive = [v for v in mean.values() if math.isfinite(v) and v > 0]
    floor = min(positive, default=1.0) / 2
    rank = [float(i + 1) for i in range(len(alive))]
    data: dict[str, Any] = {"feature": alive, "selected": [f for f in alive if f in selected]}
    for on, style in (("retain", _SIDES["retain"]), ("forget", _SIDES["forget"])):
        value = [mean.get((on, f), math.nan) for f in alive]
        data[on] = value
        marks = {
            "marker": style["marker"],
            "linestyle": "none",
            "color": style["color"],
            "rasterized": len(alive) > 5000,
        }
        ax.plot(rank, [max(v, floor) for v in value], **marks, markersize=1.8, markeredgewidth=0, alpha=0.5)
        own = [(x, max(v, floor)) for x, v, f in zip(rank, value, alive, strict=True) if f in selected]
        ax.plot([p[0] for p in own], [p[1] for p in own], **marks, markersize=4.2, markeredgecolor="black", zorder=4)
        ax.plot([], [], **marks, markersize=4, label=f"{on} tokens")
    for x, feature in zip(rank, alive, strict=True):
        if feature in selected:
            ax.axvline(x, ymax=0.03, color="black", linewidth=0.6)
    ax.set_xscale("log")
    ax.set_yscale("log")
    ax.set_xlabel(f"features, sorted ({len(features) - len(alive)} silent ones left out)")
    ax.set_ylabel("mean activation")
    title = "outlined: selected" if data["selected"] else ""
    ax.legend(fontsize=small_text() - 0.5, loc="lower left", title=title or None, title_fontsize=small_text() - 0.5)
    note_dropped(ax, lost, inside=True)
    return data | {"silent": len(features) - len(alive), "not_finite": lost}


def _finite(value: float) -> float:
    return value if math.isfinite(value) else 0.0


def _dose_panel(rows: Sequence[Row], ax: Axes) -> dict[str, Any]:
    """Score on forget and retain data against the scale of the suppression; scale 0 is no edit, and a dotted level.

    Args:
        rows: "sae_dose" rows of one quantity, ``dose`` the scale; interventions named "... (random features)" are
            controls, drawn grey.
        ax: where to draw.

    Returns:
        ``{intervention: {on: {"x", "value", "low", "high", "n"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows, several quantities, or a row without a dose.
    """
    found = picked(rows, DOSE, {r.quantity for r in rows if r.diagnostic == DOSE}, _SIDES)
    quantities = sorted({r.quantity for r in found})
    if len(quantities) > 1 or any(r.dose is None for r in found):
        raise ValueError(f"'sae_dose' rows need one quantity and a dose each; got {', '.join(quantities)}")
    data: dict[str, Any] = {}
    lost, labelled = 0, set[str]()
    names = sorted({r.intervention for r in found}, key=lambda n: ("random" not in n, n))
    for name in names:
        data[name] = {}
        for on, style in _SIDES.items():
            line = sorted((r for r in found if (r.intervention, r.on) == (name, on)), key=lambda r: r.dose or 0.0)
            if not line:
                continue
            x = [float(r.dose or 0.0) for r in line]
            control: dict[str, Any] = {"color": GREY, "linewidth": 0.8, "markersize": 2.5} if "random" in name else {}
            word = {} if control or on in labelled else {"label": f"{on} data"}
            labelled |= set() if control else {on}
            lost += banded(ax, x, line, **{**style, "markeredgecolor": "white", **control, **word})
            data[name][on] = banded_numbers(x, line)
            start = next((r.value for r in line if r.dose == 0), None)
            if start is not None and not control:
                ax.axhline(start, color=style["color"], linewidth=0.6, linestyle=(0, (1, 2)), zorder=0)
    positive = sorted({abs(r.dose) for r in found if r.dose})
    if len(positive) > 1 and positive[-1] / positive[0] > 20:
        ax.set_xscale("symlog", linthresh=positive[0], linscale=0.5)
    ax.set_xlabel("scale of the suppression (0: no edit)")
    ax.set_ylabel(quantities[0].replace("_", " "))
    if any("random" in name for name in names):
        ax.plot([], [], color=GREY, linewidth=0.8, label="random features")
    ax.legend(fontsize=small_text() - 0.5, loc="best")
    note_dropped(ax, lost, inside=True)
    return data | {"not_finite": lost}


def features_figure(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """Activity (left) and dose response (right); one panel alone where only one was measured.

    Raises:
        ValueError: neither was measured.
    """
    parts = {ACTIVITY: _activity, DOSE: _dose_panel}
    there = [part for part in parts if any(r.diagnostic == part for r in rows)]
    if not there:
        picked(rows, ACTIVITY, ["mean_activation"])
    axes = figure.subplots(1, len(there), squeeze=False, width_ratios=[1.15, 1][: len(there)])[0]
    return {part: parts[part](rows, ax) for part, ax in zip(there, axes, strict=True)}


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    both = {ACTIVITY, DOSE} <= {r.diagnostic for r in rows}
    figure = new_figure(sizes.page if both else sizes.narrow, 2.2)
    return figure, features_figure(rows, figure)


SAE_FEATURES = Entry(
    "sae_features",
    "16",
    "SAE features",
    (ACTIVITY, DOSE),
    _draw,
    """Left: mean activation of SAE features on forget and retain tokens, sorted by forget; selected features are
    outlined, features at the lower edge are 0 on that side. Right: what suppressing the selected features does, by
    scale; dotted: no edit.""",
)
