"""The main table, as CSV and as LaTeX (booktabs)."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.figures.style import is_reference, ordered, picked
from probe.rows import Row

# Quantity -> (heading, better on forget data, better elsewhere): +1 up, -1 down, 0 neither.
COLUMNS = {
    "probability": ("Prob.", -1, 1),
    "paraphrased_probability": ("Para.", -1, 1),
    "rouge": ("ROUGE", -1, 1),
    "extraction_strength": ("ES", -1, 1),
    "exact_memorisation": ("EM", -1, 1),
    # Near 1 is good on forget data, but a collapsed model goes to 0, so no direction is marked there.
    "truth_ratio": ("TR", 0, 1),
    "choice_accuracy": ("Acc.", -1, 1),
    "forget_quality_ln_p": (r"FQ ($\ln p$)", 1, 0),
}
SIDES = ("forget", "retain", "world")
# How a cell begins that spreadsheets take for a formula (OWASP, CSV injection).
_FORMULA = ("=", "+", "-", "@", "\t", "\r")
_ARROW = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}
_ESCAPES = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    "−": "$-$",
    "β": r"$\beta$",
    "α": r"$\alpha$",
} | {mark: "\\" + mark for mark in "&%$#_{}"}


@dataclass(frozen=True)
class Table:
    """The table as text.

    Args:
        csv: one line an intervention, full precision, with intervals.
        latex: a ``tabular`` for booktabs.
        data: the numbers, as ``{"intervention", "on", "quantity", "value", "low", "high", "n"}``.
    """

    csv: str
    latex: str
    data: list[dict[str, Any]]

    def write(self, folder: str | Path, name: str = "main") -> dict[str, Path]:
        """Write ``name``.csv and ``name``.tex into a folder, made if missing."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        paths = {"csv": folder / f"{name}.csv", "tex": folder / f"{name}.tex"}
        # newline="": the csv module ends its own lines.
        with paths["csv"].open("w", encoding="utf-8", newline="") as handle:
            handle.write(self.csv)
        paths["tex"].write_text(self.latex, encoding="utf-8")
        return paths


def main_table(rows: Sequence[Row]) -> Table:
    r"""Interventions by metrics; original above, methods in the middle, retrained below.

    Bold is best and underlined second best among the methods, per column and as printed, so that ties share the
    mark; after a tie for best the next value is second. Original and retrained models are bounds, never marked.
    Digits follow the intervals: as many decimals as their median half-width resolves, 2 to 4. "n/f" is a number
    that was not finite, a dash one that was not measured.

    Args:
        rows: "performance" rows.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "performance", COLUMNS)
    cells = {(row.intervention, row.on, row.quantity): row for row in found}
    names = ordered(row.intervention for row in found)
    columns = [(on, q) for on in _sides(found) for q in COLUMNS if any((name, on, q) in cells for name in names)]
    columns = [(on, q) for on, q in columns if any(_value(cells.get((name, on, q))) is not None for name in names)]
    data = [
        {key: getattr(row, key) for key in ("intervention", "on", "quantity", "value", "low", "high", "n")}
        for row in found
    ]
    return Table(_csv(cells, names, columns), _latex(cells, names, columns), data)


def escaped(text: str) -> str:
    """Text with the characters that LaTeX reads as commands made literal."""
    return "".join(_ESCAPES.get(mark, mark) for mark in text)


def _better(on: str, quantity: str) -> int:
    """+1 where more is better, -1 where less is, 0 where neither."""
    _, on_forget, elsewhere = COLUMNS[quantity]
    return on_forget if on == "forget" else elsewhere


def marks(shown: Sequence[str | None], direction: int) -> list[str]:
    """For each printed number "best", "second" or ""; None (nothing to rank) gets ""."""
    values = sorted({direction * float(text) for text in shown if text is not None}, reverse=True)
    if direction == 0 or len(values) < 2:
        return [""] * len(shown)
    word = {values[0]: "best", values[1]: "second"}
    return ["" if text is None else word.get(direction * float(text), "") for text in shown]


def _sides(rows: Sequence[Row]) -> list[str]:
    seen = {row.on for row in rows}
    return [on for on in SIDES if on in seen] + sorted(seen - set(SIDES))


def _value(row: Row | None) -> float | None:
    return None if row is None else row.value


def csv_text(lines: Iterable[Sequence[Any]]) -> str:
    """Lines as CSV, numbers in full. A text that a spreadsheet would run as a formula gets an apostrophe before it."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    for line in lines:
        writer.writerow([f"'{cell}" if isinstance(cell, str) and cell.startswith(_FORMULA) else cell for cell in line])
    return buffer.getvalue()


def _csv(cells: dict[Any, Row], names: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    parts = ("value", "low", "high", "n")
    heads = [f"{on}_{quantity}" + ("" if part == "value" else f"_{part}") for on, quantity in columns for part in parts]
    lines: list[list[Any]] = [["intervention", *heads]]
    for name in names:
        line: list[Any] = [name]
        for on, quantity in columns:
            row = cells.get((name, on, quantity))
            line += [None if row is None else getattr(row, part) for part in parts]
        lines.append(line)
    return csv_text(lines)


def _decimals(rows: Sequence[Row], quantity: str) -> int:
    if quantity == "forget_quality_ln_p":
        return 1
    widths = sorted((r.high - r.low) / 2 for r in rows if r.low is not None and r.high is not None and r.high > r.low)
    if not widths:
        return 3
    return min(4, max(2, math.ceil(-math.log10(widths[len(widths) // 2]))))


def _printed(row: Row | None, decimals: int) -> str | None:
    value = _value(row)
    # Adding zero turns -0.00 into 0.00.
    return None if value is None else f"{round(value, decimals) + 0.0:.{decimals}f}"


def _column(cells: dict[Any, Row], names: Sequence[str], on: str, quantity: str) -> list[str]:
    rows = [cells.get((name, on, quantity)) for name in names]
    decimals = _decimals([row for row in rows if row is not None], quantity)
    shown = [_printed(row, decimals) for row in rows]
    ranked = [None if is_reference(name) else text for name, text in zip(names, shown, strict=True)]
    column = []
    for row, text, mark in zip(rows, shown, marks(ranked, _better(on, quantity)), strict=True):
        cell = ("--" if row is None else "n/f") if text is None else text.replace("-", "$-$")
        if mark:
            cell = (r"\textbf{%s}" if mark == "best" else r"\underline{%s}") % cell
        column.append(cell)
    return column


def _latex(cells: dict[Any, Row], names: Sequence[str], columns: Sequence[tuple[str, str]]) -> str:
    body = [_column(cells, names, on, quantity) for on, quantity in columns]
    groups: list[list[Any]] = []
    for on, _ in columns:
        if groups and groups[-1][0] == on:
            groups[-1][1] += 1
        else:
            groups.append([on, 1])
    first, rules, start = [""], [], 2
    for on, width in groups:
        first.append(rf"\multicolumn{{{width}}}{{c}}{{{escaped(on.capitalize())}}}")
        rules.append(rf"\cmidrule(lr){{{start}-{start + width - 1}}}")
        start += width
    heads = [COLUMNS[quantity][0] + _ARROW[_better(on, quantity)] for on, quantity in columns]
    lines = [
        r"% needs \usepackage{booktabs}",
        rf"\begin{{tabular}}{{l{'r' * len(columns)}}}",
        r"\toprule",
        " & ".join(first) + r" \\",
        "".join(rules),
        " & ".join(["Method", *heads]) + r" \\",
        r"\midrule",
    ]
    for place, name in enumerate(names):
        if place and is_reference(name) != is_reference(names[place - 1]):
            lines.append(r"\midrule")
        lines.append(" & ".join([escaped(name), *(column[place] for column in body)]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"
