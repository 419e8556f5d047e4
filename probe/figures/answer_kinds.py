"""What models say when they no longer give the answer, and which other responses gained while it fell."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers, end
from probe.figures.labels import end_labels, note_dropped
from probe.figures.style import FORGET, GREY, INK, RETAIN, number, ordered, picked, plain_text
from probe.rows import Row

# From what is still told to what is no language; hatches carry it in grey print.
_KINDS: dict[str, tuple[str, str]] = {
    "right": (FORGET, ""),
    "rephrased": ("#F0A05A", "////"),
    "wrong": ("#DADADA", ""),
    "refusal": ("#B9CFE4", "...."),
    "gibberish": ("#5B636E", "xxxx"),
    "empty": ("#222222", ""),
}
_COLOURS = (INK, RETAIN, "#7B61B5", FORGET)
_DASHES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.3, 1, 1.3)))


def answer_kinds(rows: Sequence[Row], figure: Figure, panels: Mapping[str, str]) -> dict[str, Any]:
    """Shares of greedy answers by kind (``probe.diagnostics.spurious_unlearning``), a bar a method, a panel a state.

    Args:
        rows: "answers" rows, quantities "right", "rephrased", "wrong", "refusal", "gibberish", "empty" (shares), ``on``
            the state.
        figure: empty.
        panels: states and their titles, from left to right.

    Returns:
        ``{state: {method: {kind: share}}}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "answers", _KINDS, panels)
    data: dict[str, Any] = {}
    axes = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    names = ordered(row.intervention for row in found)
    present = [kind for kind in _KINDS if any(r.quantity == kind and number(r.value) > 0 for r in found)]
    for ax, (state, title) in zip(axes, panels.items(), strict=True):
        share = {(r.intervention, r.quantity): number(r.value) for r in found if r.on == state}
        data[state] = {name: {kind: share[name, kind] for kind in _KINDS} for name in names if (name, "right") in share}
        for place, name in enumerate(names):
            if name in data[state]:
                _bar(ax, place, {kind: data[state][name][kind] for kind in present})
        ax.set_title(plain_text(title))
        ax.set_xlim(0, 1)
        ax.set_xlabel("share of answers")
    axes[0].set_yticks(range(len(names)), [plain_text(name) for name in names])
    axes[0].invert_yaxis()
    handles, labels = axes[0].get_legend_handles_labels()
    chosen = dict(zip(labels, handles, strict=True))
    figure.legend(list(chosen.values()), list(chosen), loc="outside lower center", ncols=len(chosen))
    return data


def _bar(ax: Axes, place: int, shares: Mapping[str, float]) -> None:
    left = 0.0
    for kind, share in shares.items():
        colour, hatch = _KINDS[kind]
        style: dict[str, Any] = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
        ax.barh(place, share, left=left, height=0.72, label=kind, **style)
        left += share


def gains_over_steps(rows: Sequence[Row], figure: Figure, responses: Mapping[str, str]) -> dict[str, Any]:
    """Change of log-probability of chosen responses since before the run, one panel a method.

    Args:
        rows: "gain" rows, one quantity a response (nats), ``item`` the step.
        figure: empty.
        responses: quantities and what they are called, at most four.

    Returns:
        ``{method: {quantity: {"x", "value", "low", "high", "n"}}}``.

    Raises:
        ValueError: no such rows, or more than four responses.
    """
    if len(responses) > len(_COLOURS):
        raise ValueError(f"at most {len(_COLOURS)} responses can be told apart, got {len(responses)}")
    found = picked(rows, "gain", responses)
    names = ordered(row.intervention for row in found)
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    data: dict[str, Any] = {}
    colours = dict(zip(responses.values(), _COLOURS, strict=False))
    for ax, name in zip(axes, names, strict=True):
        data[name], ends, lost = {}, {}, 0
        ax.axhline(0, color=GREY, linewidth=0.6, zorder=1)
        for (quantity, called), colour, dash in zip(responses.items(), _COLOURS, _DASHES, strict=False):
            line = [r for r in found if (r.intervention, r.quantity) == (name, quantity)]
            line.sort(key=lambda r: r.item or 0)
            x = [float(r.item or 0) for r in line]
            lost += banded(ax, x, line, color=colour, linestyle=dash, marker="o", markersize=2.5)
            data[name][quantity] = banded_numbers([r.item for r in line], line)
            ends[called] = end(x, line)
        note_dropped(ax, lost, inside=True)
        ax.set_title(plain_text(name))
        ax.set_xlabel("step")
    # A rise of one nat early in a run is to be seen beside a fall of fifty at its end.
    axes[0].set_yscale("symlog", linthresh=1)
    axes[0].set_ylabel("change of log p (nats)")
    end_labels(axes[-1], ends, colours=colours)
    return data
