"""Methods under several scenarios, each beside the retrained model of that scenario."""

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probe.figures.labels import note_dropped
from probe.figures.style import FORGET, GREY, INK, is_reference, number, picked, plain_text
from probe.figures.tables import Table, csv_text, escaped, marks
from probe.rows import Row

DIAGNOSTIC = "tarf"
# Quantity -> heading; the last is a distance to the retrained model, so less is better.
COLUMNS = {"ua": "UA", "ra": "RA", "ta": "TA", "mia": "MIA", "gap": "Gap"}


def scenario_figure(rows: Sequence[Row], figure: Figure) -> dict[str, Any]:
    """One line of panels a scenario, one column a measure; methods below one another, a dot and its interval each.

    The dotted line is the retrained model with its interval as a band; the method the study is about has its own
    colour. The panels of a column share their axis.

    Args:
        rows: "tarf" rows in percent, ``on`` the scenario; methods and scenarios are drawn in the order of the rows.
        figure: empty.

    Returns:
        ``{scenario: {quantity: {name: [value, low, high]}}}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, DIAGNOSTIC, COLUMNS)
    cells = {(row.on, row.quantity, row.intervention): row for row in found}
    names: dict[str, list[str]] = {}
    for row in found:
        here = names.setdefault(row.on, [])
        if row.intervention not in here and not is_reference(row.intervention):
            here.append(row.intervention)
    ratios = [len(here) + 1 for here in names.values()]
    axes = figure.subplots(
        len(names), len(COLUMNS), sharex="col", sharey="row", squeeze=False, gridspec_kw={"height_ratios": ratios}
    )
    data: dict[str, Any] = {}
    for line, (scenario, here) in zip(axes, names.items(), strict=True):
        data[scenario] = {}
        for ax, quantity in zip(line, COLUMNS, strict=True):
            kept = {name: cells[scenario, quantity, name] for name in here if (scenario, quantity, name) in cells}
            reference = cells.get((scenario, quantity, "retrained"))
            data[scenario][quantity] = _panel(ax, here, kept, reference)
        line[0].set_title(plain_text(scenario), fontweight="bold")
        line[0].set_ylim(len(here) - 0.4, -0.6)
        line[0].set_yticks(range(len(here)), [plain_text(name) for name in here])
    for first, last, (quantity, head) in zip(axes[0], axes[-1], COLUMNS.items(), strict=True):
        first.set_title(head, loc="right", color=GREY)
        last.set_xlabel(f"{head} (points)" if quantity == "gap" else f"{head} (%)")
        last.margins(x=0.06)
    return data


def _panel(ax: Axes, names: Sequence[str], kept: dict[str, Row], reference: Row | None) -> dict[str, Any]:
    lost = 0
    shown = {}
    ax.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.3)
    if reference is not None and reference.value is not None:
        low, high = number(reference.low), number(reference.high)
        if math.isfinite(low) and math.isfinite(high):
            ax.axvspan(max(low, 0), min(high, 100), color=GREY, alpha=0.18, linewidth=0, zorder=0)
        ax.axvline(reference.value, color=GREY, linewidth=0.7, linestyle=(0, (1, 1.5)), zorder=1)
        shown["retrained"] = [reference.value, low, high]
    for place, name in enumerate(names):
        row = kept.get(name)
        if row is None or row.value is None:
            lost += row is not None
            continue
        colour = _colour(name)
        ends = [max(number(row.low), 0), min(number(row.high), 100)]
        if all(map(math.isfinite, ends)):
            ax.plot(ends, [place, place], color=colour, linewidth=0.8, alpha=0.7, zorder=2)
        # A variant of a method, named in brackets, is hollow.
        face = "white" if "(" in name else colour
        ax.plot([row.value], [place], "o", color=colour, markerfacecolor=face, markersize=3.2, zorder=3)
        shown[name] = [row.value, number(row.low), number(row.high)]
    ax.tick_params(axis="y", length=0)
    note_dropped(ax, lost, inside=True)
    return shown


def _colour(name: str) -> str:
    """The study's own method stands out; a second retraining is no method."""
    return FORGET if name.startswith("TARF") else GREY if _bound(name) else INK


def _bound(name: str) -> bool:
    return is_reference(name) or name.startswith("retrained")


def scenario_table(rows: Sequence[Row]) -> Table:
    """Methods by measures, one block a scenario; the smallest Gap of a block bold, the next underlined.

    Args:
        rows: as for ``scenario_figure``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, DIAGNOSTIC, COLUMNS)
    cells = {(row.on, row.intervention, row.quantity): row for row in found}
    blocks: dict[str, list[str]] = {}
    for row in found:
        blocks.setdefault(row.on, [])
        if row.intervention not in blocks[row.on]:
            blocks[row.on].append(row.intervention)
    head = ["scenario", "method", *(f"{q}{end}" for q in COLUMNS for end in ("", "_low", "_high")), "n"]
    lines: list[list[Any]] = [head]
    for scenario, names in blocks.items():
        for name in names:
            line = [cells.get((scenario, name, quantity)) for quantity in COLUMNS]
            numbers = [getattr(row, part, None) for row in line for part in ("value", "low", "high")]
            lines.append([scenario, name, *numbers, next((row.n for row in line if row is not None), None)])
    data = [{"on": r.on, "intervention": r.intervention, "quantity": r.quantity, "value": r.value} for r in found]
    return Table(csv_text(lines), _latex(cells, blocks), data)


def _latex(cells: dict[Any, Row], blocks: dict[str, list[str]]) -> str:
    lines = [
        r"% needs \usepackage{booktabs}; mean over seeds, plus or minus half the 95 % t-interval",
        rf"\begin{{tabular}}{{l{'r' * len(COLUMNS)}}}",
        r"\toprule",
        " & ".join(["", *COLUMNS.values()]) + r" \\",
    ]
    for scenario, names in blocks.items():
        lines += [r"\midrule", rf"\multicolumn{{{len(COLUMNS) + 1}}}{{l}}{{\emph{{{escaped(scenario)}}}}} \\"]
        gaps = [cells.get((scenario, name, "gap")) for name in names]
        ranked = [
            None if row is None or row.value is None or _bound(row.intervention) else f"{row.value:.1f}" for row in gaps
        ]
        for name, mark in zip(names, marks(ranked, -1), strict=True):
            shown = [_printed(cells.get((scenario, name, quantity))) for quantity in COLUMNS]
            if mark:
                shown[-1] = (r"\textbf{%s}" if mark == "best" else r"\underline{%s}") % shown[-1]
            lines.append(" & ".join([escaped(name), *shown]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _printed(row: Row | None) -> str:
    if row is None or row.value is None:
        return "--" if row is None else "n/f"
    # An end may be cut where percents end; the other then tells the half.
    half = max(number(row.high) - row.value, row.value - number(row.low))
    return f"{row.value:.1f}" + (f" $\\pm$ {half:.1f}" if half > 0 else "")
