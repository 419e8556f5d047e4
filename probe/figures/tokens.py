"""Tokens coloured by a number each, as a small page of HTML that needs no network."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.colors import to_hex


@dataclass(frozen=True)
class TokenHeatMap:
    """Lines of coloured tokens; a notebook shows it, ``str`` is the HTML.

    Args:
        html: one ``<div>``, without scripts or links.
        limit: the number that the strongest colour stands for.
    """

    html: str
    limit: float

    def _repr_html_(self) -> str:
        return self.html

    def __str__(self) -> str:
        return self.html


def token_heat_map(
    tokens: Sequence[str] | Sequence[Sequence[str]],
    values: Any,
    *,
    label: str = "",
    names: Sequence[str] = (),
    limit: float | None = None,
) -> TokenHeatMap:
    """Colour each token by its number: blue below 0, red above, grey text where there is none.

    Colours run to the largest absolute number, so that two maps compare only with the same ``limit``. The number
    itself shows when the pointer rests on a token, and in text readers as a title.

    Args:
        tokens: of one text, or of several, one list each; blanks and line breaks are made visible.
        values: a number for each token (a list, an array or a tensor of the same layout); None or NaN for none.
        label: what the numbers are, with their unit; written above.
        names: what stands before each text.
        limit: the number of the strongest colour; the largest absolute number by default.

    Raises:
        ValueError: no tokens, not one number a token, another number of names, or a limit that is not positive.
    """
    many = bool(tokens) and not isinstance(tokens[0], str)
    texts: Any = tokens if many else [tokens]
    given: Any = values if many else [values]
    rows = [[_number(value) for value in row] for row in given]
    if not tokens or [len(t) for t in texts] != [len(row) for row in rows]:
        raise ValueError(
            f"{len(texts)} texts of {[len(t) for t in texts][:5]} tokens and numbers for {[len(r) for r in rows][:5]}; "
            "give one number for each token"
        )
    if names and len(names) != len(texts):
        raise ValueError(f"{len(names)} names for {len(texts)} texts; give one each, or none")
    largest = max((abs(v) for row in rows for v in row if math.isfinite(v)), default=0.0)
    top = largest or 1.0 if limit is None else limit
    if not top > 0 or math.isinf(top):
        raise ValueError(f"limit must be positive and finite, got {limit}")
    lines = []
    for place, (text, row) in enumerate(zip(texts, rows, strict=True)):
        spans = "".join(_span(token, value, top) for token, value in zip(text, row, strict=True))
        name = f'<span style="color:#8C8C8C">{html.escape(names[place])} </span>' if names else ""
        lines.append(f'<div style="margin:2px 0">{name}{spans}</div>')
    head = f'<div style="margin-bottom:4px">{html.escape(label)} {_legend(top)}</div>'
    style = "font-family:monospace;font-size:13px;line-height:1.7;color:#222222;background:#FFFFFF;padding:4px"
    return TokenHeatMap(f'<div style="{style}">{head}{"".join(lines)}</div>', float(top))


def token_texts(tokenizer: Any, ids: Any) -> list[str]:
    """Each token as text, with the blank before a word, which decoding a single token may drop.

    Args:
        tokenizer: a Hugging Face tokenizer.
        ids: token ids (a list or a tensor).
    """
    numbers = [int(i) for i in ids]
    texts = [tokenizer.decode([i]) for i in numbers]
    pieces = tokenizer.convert_ids_to_tokens(numbers)
    return [
        f" {text}" if piece[:1] in ("▁", "Ġ") and not text.startswith(" ") else text
        for text, piece in zip(texts, pieces, strict=True)
    ]


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _span(token: str, value: float, top: float) -> str:
    # A blank at an edge would be lost between boxes.
    shown = html.escape(token.replace("\n", "↵").replace("\t", "→")).replace(" ", "&nbsp;") or "&nbsp;"
    if not math.isfinite(value):
        return f'<span style="color:#8C8C8C">{shown}</span>'
    ground, ink = _colours(value / top)
    style = f"background:{ground};color:{ink};padding:1px 0;border-radius:2px"
    return f'<span title="{value:.4g}" style="{style}">{shown}</span>'


def _colours(share: float) -> tuple[str, str]:
    share = min(max(share, -1.0), 1.0)
    red, green, blue, _ = matplotlib.colormaps["RdBu_r"](0.5 + share / 2)
    # Relative luminance decides which ink can be read.
    dark = 0.2126 * red + 0.7152 * green + 0.0722 * blue < 0.45
    return to_hex((red, green, blue)), "#FFFFFF" if dark else "#222222"


def _legend(top: float) -> str:
    boxes = []
    for share in (-1.0, -0.5, 0.0, 0.5, 1.0):
        ground, ink = _colours(share)
        boxes.append(f'<span style="background:{ground};color:{ink};padding:1px 4px">{share * top:.3g}</span>')
    return "".join(boxes)
