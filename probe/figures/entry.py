"""What a figure or table of the set is: its name, what it is drawn from, how, and its caption."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from probe.figures.style import Venue
from probe.figures.tables import Table
from probe.figures.texts import ChangedTexts
from probe.rows import Row


@dataclass(frozen=True)
class Entry:
    """One figure.

    Args:
        name: of its files, and what ``--only`` takes.
        number: its place in the paper's set ("1" to "20"); "" for figures beside the set.
        title: a few words for a heading.
        diagnostics: whose rows it is drawn from.
        draw: makes the figure at a venue's sizes; returns it with the plotted numbers.
        caption: what it shows. What its intervals are is added from the rows (``interval_note``).
        intervals: whether it draws any.
    """

    name: str
    number: str
    title: str
    diagnostics: tuple[str, ...]
    draw: Callable[[Sequence[Row], Venue], tuple[Figure, Any]] = field(repr=False)
    caption: str = field(repr=False)
    intervals: bool = True


@dataclass(frozen=True)
class TableEntry:
    """One table; arguments as for ``Entry``."""

    name: str
    number: str
    title: str
    diagnostics: tuple[str, ...]
    make: Callable[[Sequence[Row]], Table | ChangedTexts] = field(repr=False)
    caption: str = field(repr=False)


def interval_note(rows: Sequence[Row], diagnostics: Sequence[str]) -> str:
    """What a caption has to say of intervals: whether there are any, and over how many examples, folds or seeds."""
    own = [row for row in rows if row.diagnostic in diagnostics]
    if not any(row.low is not None and row.high is not None for row in own):
        return "The rows hold no intervals."
    sizes = sorted({row.n for row in own if row.low is not None and row.n is not None})
    if not sizes:
        return "Bands and whiskers are the rows' own intervals; the rows do not say over how many."
    of = f"n = {sizes[0]}" if len(sizes) == 1 else f"n = {sizes[0]} to {sizes[-1]}"
    return f"Bands and whiskers are the rows' own intervals ({of})."
