"""What a notebook shows of a result: a small HTML table, without scripts, links or pictures."""

import html
import math
from collections.abc import Iterable, Mapping
from typing import Any

_CELL = "padding:0 .7em;text-align:right"


def html_table(columns: Mapping[str, Iterable[Any]], *, note: str = "") -> str:
    """Columns side by side under their names, as HTML.

    Args:
        columns: head -> cells: numbers (of Python, numpy or torch), texts, or None for an empty cell. Numbers show
            four significant digits; NaN shows as a dash.
        note: one line above, for what belongs to the whole.

    Returns:
        one ``<div>``; text is escaped.

    Raises:
        ValueError: columns of different lengths.
    """
    cells = {name: [_shown(value) for value in values] for name, values in columns.items()}
    lengths = {name: len(values) for name, values in cells.items()}
    if len(set(lengths.values())) > 1:
        raise ValueError(f"columns of a table are equally long; got {lengths}")
    head = _row("th", [html.escape(name) for name in cells])
    body = "".join(_row("td", row) for row in zip(*cells.values(), strict=True))
    above = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<div>{above}<table><thead>{head}</thead><tbody>{body}</tbody></table></div>"


def _row(tag: str, cells: Iterable[str]) -> str:
    return "<tr>" + "".join(f'<{tag} style="{_CELL}">{cell}</{tag}>' for cell in cells) + "</tr>"


def _shown(value: Any) -> str:
    if value is None:
        return ""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float):
        return "–" if math.isnan(value) else f"{value:.4g}"
    return html.escape(str(value))
