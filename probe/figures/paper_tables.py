"""Tables in blocks: the paper's main table, and aggregate scores by model size and split."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from probe.figures.entry import TableEntry
from probe.figures.quality import LOG10_P, with_log10
from probe.figures.style import is_reference, ordered, picked
from probe.figures.tables import Table, csv_text, escaped, main_table, marks
from probe.rows import Row

_ARROW = {1: r" $\uparrow$", -1: r" $\downarrow$", 0: ""}


@dataclass(frozen=True)
class Column:
    """One column: its heading, +1 where more is better and -1 where less is, whose numbers, and a heading above."""

    head: str
    better: int
    quantity: str
    on: str = ""
    decimals: int | None = None
    group: str = ""


@dataclass(frozen=True)
class Block:
    """Lines that are compared with each other: marks are given within a block."""

    title: str
    cells: Mapping[tuple[str, str, str], Row] = field(repr=False)

    @property
    def names(self) -> list[str]:
        """Interventions: original, methods, retrained."""
        return ordered(name for name, _, _ in self.cells)


def _blocked(blocks: Sequence[Block], columns: Sequence[Column], note: str) -> Table:
    r"""Booktabs: best bold and second underlined within each block as printed, ties alike, references apart and plain.

    Columns that no block has a finite number for are left out. "n/f" is a number that was not finite, a dash one that
    was not measured. Digits follow the intervals, 2 to 4, unless a column says how many.
    """
    used = [c for c in columns if any(r is not None and r.value is not None for r in _column(blocks, c))]
    width = len(used) + 1
    lines = [
        r"% needs \usepackage{booktabs}; " + note,
        rf"\begin{{tabular}}{{l{'r' * len(used)}}}",
        r"\toprule",
        *_groups(used),
        " & ".join(["Method", *(c.head + _ARROW[c.better] for c in used)]) + r" \\",
    ]
    digits = [_decimals(blocks, c) if c.decimals is None else c.decimals for c in used]
    for block in blocks:
        lines.append(r"\midrule")
        if block.title:
            lines.append(rf"\multicolumn{{{width}}}{{l}}{{\emph{{{escaped(block.title)}}}}} \\")
        names = block.names
        body = [_marked(block, names, c, d) for c, d in zip(used, digits, strict=True)]
        for place, name in enumerate(names):
            if place and is_reference(name) != is_reference(names[place - 1]):
                lines.append(rf"\cmidrule(lr){{1-{width}}}")
            lines.append(" & ".join([escaped(name), *(column[place] for column in body)]) + r" \\")
    data = [
        {"block": b.title} | {k: getattr(r, k) for k in ("intervention", "on", "quantity", "value", "low", "high", "n")}
        for b in blocks
        for r in b.cells.values()
    ]
    return Table(_csv(blocks, used), "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n", data)


def _groups(columns: Sequence[Column]) -> list[str]:
    """The upper line of headings with its rules, where columns have one."""
    if not any(column.group for column in columns):
        return []
    spans: list[list[Any]] = []
    for place, column in enumerate(columns, 2):
        if spans and spans[-1][0] == column.group:
            spans[-1][2] = place
        else:
            spans.append([column.group, place, place])
    heads = [rf"\multicolumn{{{last - first + 1}}}{{c}}{{{group}}}" for group, first, last in spans]
    rules = [rf"\cmidrule(lr){{{first}-{last}}}" for group, first, last in spans if group]
    return [" & ".join(["", *heads]) + r" \\", "".join(rules)]


def _cell(block: Block, name: str, column: Column) -> Row | None:
    return block.cells.get((name, column.on, column.quantity))


def _column(blocks: Sequence[Block], column: Column) -> list[Row | None]:
    return [_cell(block, name, column) for block in blocks for name in block.names]


def _decimals(blocks: Sequence[Block], column: Column) -> int:
    rows = [r for r in _column(blocks, column) if r is not None]
    widths = sorted((r.high - r.low) / 2 for r in rows if r.low is not None and r.high is not None and r.high > r.low)
    return min(4, max(2, math.ceil(-math.log10(widths[len(widths) // 2])))) if widths else 3


def _marked(block: Block, names: Sequence[str], column: Column, decimals: int) -> list[str]:
    rows = [_cell(block, name, column) for name in names]
    # Adding zero turns -0.00 into 0.00.
    shown = [None if r is None or r.value is None else f"{round(r.value, decimals) + 0.0:.{decimals}f}" for r in rows]
    ranked = [None if is_reference(name) else text for name, text in zip(names, shown, strict=True)]
    cells = []
    for row, text, mark in zip(rows, shown, marks(ranked, column.better), strict=True):
        cell = ("--" if row is None else "n/f") if text is None else text.replace("-", "$-$")
        wrap = {"best": r"\textbf{%s}", "second": r"\underline{%s}"}.get(mark, "%s")
        cells.append(wrap % cell)
    return cells


def _csv(blocks: Sequence[Block], columns: Sequence[Column]) -> str:
    names = ["_".join(filter(None, (c.on, c.quantity))) for c in columns]
    head = ["block", "intervention", *(f"{n}{end}" for n in names for end in ("", "_low", "_high", "_n"))]
    lines: list[list[Any]] = [head]
    for block in blocks:
        for name in block.names:
            cells = [_cell(block, name, c) for c in columns]
            numbers = (getattr(r, k, None) for r in cells for k in ("value", "low", "high", "n"))
            lines.append([block.title, name, *numbers])
    return csv_text(lines)


_MAIN = (
    Column("retain", 1, "extraction_strength", "retain", group="ES, exact"),
    Column("forget", -1, "extraction_strength", "forget", group="ES, exact"),
    Column("retain", 1, "perturbed_strength", "retain", group="ES, perturbed"),
    Column("forget", -1, "perturbed_strength", "forget", group="ES, perturbed"),
    Column("MU", 1, "model_utility"),
    Column(r"FQ ($\log_{10} p$)", 1, LOG10_P, "forget", 1),
)


def paper_table(rows: Sequence[Row]) -> Table:
    """Method by extraction strength (exact, perturbed), model utility and forget quality; a block a state.

    Args:
        rows: "performance" and "evaluation" rows (one block), or "raw" and "calibrated" rows (a block each).

    Raises:
        ValueError: no such rows.
    """
    rows = with_log10(rows)
    wanted = {(c.on, c.quantity) for c in _MAIN}
    states = {"": ("performance", "evaluation"), "as trained": ("raw",), "calibrated": ("calibrated",)}
    blocks = []
    for title, diagnostics in states.items():
        # An aggregate over sets ("") and a number of one set are told apart by ``on``.
        own = [r for r in rows if r.diagnostic in diagnostics and (r.on, r.quantity) in wanted]
        if own:
            blocks.append(Block(title, {(r.intervention, r.on, r.quantity): r for r in own}))
    if not blocks:
        picked(rows, "performance", ["extraction_strength"])
    if len(blocks) == 1:
        blocks = [Block("", blocks[0].cells)]
    return _blocked(blocks, _MAIN, "means; digits follow the intervals of the rows")


_SIZES = (
    Column("Agg.", 1, "aggregate"),
    Column("Mem.", 1, "memorisation"),
    Column("Util.", 1, "utility"),
)
# What `probe evaluate` calls them.
_EVALUATED = {"agg_mem_utility": "aggregate", "mem": "memorisation", "model_utility": "utility"}


def size_table(rows: Sequence[Row]) -> Table:
    """Aggregate, memorisation and utility, a block for each model size and split (Table 1 of arXiv 2510.19422).

    Args:
        rows: "aggregate" rows: quantities "aggregate", "memorisation", "utility"; ``item`` the model's parameters,
            ``on`` the split. Without any, "evaluation" rows of `probe evaluate` make one block.

    Raises:
        ValueError: no such rows.
    """
    own = [r for r in rows if r.diagnostic == "aggregate" and r.quantity in _EVALUATED.values()]
    if own:
        keys = sorted({(r.item or 0, r.on) for r in own})
        blocks = [
            Block(
                ", ".join(filter(None, (_size(size), split))),
                {(r.intervention, "", r.quantity): r for r in own if ((r.item or 0), r.on) == (size, split)},
            )
            for size, split in keys
        ]
    else:
        found = picked(rows, "evaluation", ["agg_mem_utility", "mem"])
        found += [r for r in rows if (r.diagnostic, r.quantity) == ("evaluation", "model_utility")]
        blocks = [Block("", {(r.intervention, "", _EVALUATED[r.quantity]): r for r in found})]
    return _blocked(blocks, _SIZES, "Agg. is the harmonic mean of Mem. and Util.")


def _size(parameters: int) -> str:
    for unit, name in ((10**9, "B"), (10**6, "M"), (10**3, "k")):
        if parameters >= unit:
            return f"{parameters / unit:.3g} {name} parameters"
    return f"{parameters} parameters" if parameters else ""


MAIN = TableEntry(
    "main", "", "Every metric", ("performance",), main_table, "Every metric of every intervention, on every set."
)
PAPER = TableEntry(
    "paper",
    "T1",
    "Main table",
    ("performance", "evaluation", "raw", "calibrated"),
    paper_table,
    """Extraction strength (exact and on perturbed prompts), model utility and forget quality. Best bold, second
    underlined within a block; original and retrained models are bounds and are not ranked.""",
)
SIZES = TableEntry(
    "sizes",
    "T2",
    "Aggregates by size and split",
    ("aggregate", "evaluation"),
    size_table,
    "Aggregate (harmonic mean of memorisation and utility), a block for each model size and split.",
)
