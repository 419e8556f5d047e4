"""How a result looks: one line, a small table as text or as HTML without scripts, and its figure in a notebook."""

import base64
import html
import importlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any

from probe.rows import Row

_CELL = "padding:0 .7em;text-align:right"
# Figures are drawn from rows by a room above all results, so it is found when a picture is asked for.
_FIGURES = "probe.figures.results"


@dataclass(frozen=True)
class ResultTable:
    """Columns side by side under their names.

    Args:
        columns: head -> cells: numbers (of Python, numpy or torch), texts, or None for an empty cell. Numbers show
            four significant digits; NaN shows as a dash.
        note: one line above, for what belongs to the whole.

    Raises:
        ValueError: columns of different lengths.
    """

    columns: Mapping[str, Iterable[Any]]
    note: str = ""

    def __post_init__(self) -> None:
        cells = {name: [_shown(value) for value in values] for name, values in self.columns.items()}
        lengths = {name: len(values) for name, values in cells.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"columns of a table are equally long; got {lengths}")
        object.__setattr__(self, "columns", cells)

    def html(self) -> str:
        """One ``<div>``; text is escaped."""
        head = _row("th", self.columns)
        body = "".join(_row("td", row) for row in zip(*self.columns.values(), strict=True))
        above = f"<p>{html.escape(self.note)}</p>" if self.note else ""
        return f"<div>{above}<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"

    def _repr_html_(self) -> str:
        return self.html()

    def __str__(self) -> str:
        rows = [tuple(self.columns), *zip(*self.columns.values(), strict=True)]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
        return "\n".join([self.note, *lines] if self.note else lines)


class Result:
    """What every result can do: ``repr`` in a line, ``print`` a small table, give rows, and draw its figure.

    A result says how it looks in ``table`` and gives its numbers in ``rows``; the rest is here.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        # A dataclass keeps a repr that its class already has.
        cls.__repr__ = cls.__dict__.get("__repr__", Result.__repr__)  # type: ignore[method-assign]

    def rows(self, name: str = "model") -> Sequence[Row]:
        """The numbers as rows, to stand beside those of other models in reports and figures.

        Args:
            name: what was done to the model ("original", "NPO", ...).
        """
        raise NotImplementedError

    def table(self) -> ResultTable:
        """The numbers that matter most."""
        raise NotImplementedError

    def plot(self, name: str = "model") -> Any:
        """Draw the result.

        Args:
            name: what the figure calls the model.

        Returns:
            a matplotlib figure, shown by notebooks; ``savefig`` writes it.

        Raises:
            ValueError: there is no figure of such a result, or its numbers do not suffice for one.
        """
        return importlib.import_module(_FIGURES).plotted(self, name)

    def __repr__(self) -> str:
        return short(self)

    def __str__(self) -> str:
        return str(self.table())

    def _repr_html_(self) -> str:
        try:
            svg = importlib.import_module(_FIGURES).svg_text(self.plot())
        except ValueError:
            # A number has no picture, and a table alone says what there is.
            return self.table().html()
        # As an image of its own, so that names inside of two pictures do not meet.
        data = base64.b64encode(svg.encode()).decode()
        return f'{self.table().html()}<img alt="{type(self).__name__}" src="data:image/svg+xml;base64,{data}">'


def short(value: Any) -> str:
    """A dataclass in a line: numbers as they are, of arrays and lists how much there is.

    >>> short(ResultTable({"layer": [0, 1]}, note="two layers"))
    "ResultTable(columns={'layer'}, note='two layers')"
    """
    parts = [f"{field.name}={_part(getattr(value, field.name))}" for field in fields(value) if field.name[0] != "_"]
    return f"{type(value).__name__}({', '.join(parts)})"


def _part(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}"
    if value is None or isinstance(value, (bool, int)):
        return str(value)
    if isinstance(value, str):
        return repr(value if len(value) <= 60 else value[:57] + "...")
    if hasattr(value, "shape"):
        one = tuple(value.shape) == ()
        return _shown(value) if one else f"[{' x '.join(map(str, value.shape))} numbers]"
    if isinstance(value, Mapping):
        names = [repr(str(key)) for key in list(value)[:4]]
        return "{" + ", ".join([*names, "..."] if len(value) > 4 else names) + "}"
    if isinstance(value, (tuple, list)):
        plain = len(value) <= 4 and all(isinstance(one, (int, float, str)) for one in value)
        return "(" + ", ".join(map(_part, value)) + ")" if plain else f"[{len(value)} entries]"
    return f"{type(value).__name__}(...)" if is_dataclass(value) or hasattr(value, "forward") else str(value)[:60]


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{html.escape(cell)}</{tag}>' for cell in cells) + "</tr>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return str(value)
