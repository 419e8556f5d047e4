"""Figures of layer maps as ``probe layers`` writes them: which metric, and which of several methods."""

from collections.abc import Callable, Sequence
from typing import Any

from matplotlib.figure import Figure

from probe.figures.entry import Entry
from probe.figures.layers import U_SHAPE
from probe.figures.spans import growing_spans, part_lines, span_map
from probe.figures.style import Venue, new_figure, picked
from probe.rows import Row, quantity_of

_METRIC = "probability"
_LABEL = "probability of a token"


def _span(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    quantities = {way: quantity_of(_METRIC, "block", way) for way in ("original", "unlearned")}
    found = picked(rows, "layer_map", quantities.values())
    into = [way for way, quantity in quantities.items() if any(r.quantity == quantity for r in found)]
    first = found[0].intervention
    figure = new_figure(sizes.page, 2.5 * len(into) + 0.4)
    own = [row for row in rows if row.intervention == first]
    return figure, span_map(own, figure, metric=_METRIC, label=_LABEL, into=into) | {"method": first}


def _lines(draw: Callable[..., dict[str, Any]]) -> Callable[[Sequence[Row], Venue], tuple[Figure, Any]]:
    def drawn(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
        methods = {row.intervention for row in rows if row.diagnostic == "layer_map"}
        figure = new_figure(sizes.narrow if len(methods) <= 1 else sizes.page, 2.9)
        return figure, draw(rows, figure, metric=_METRIC, label=_METRIC)

    return drawn


def _with_single_layers(rows: Sequence[Row]) -> list[Row]:
    """Rows with those of single layers in a layer map said as "fragility" rows too, where there are none yet."""
    if any(row.diagnostic == "fragility" for row in rows):
        return list(rows)
    made = []
    for row in rows:
        interval: dict[str, Any] = {"low": row.low, "high": row.high, "n": row.n}
        if row.diagnostic != "layer_map":
            continue
        if row.quantity == quantity_of(_METRIC) and row.layer == row.item is not None:
            made.append(Row(row.intervention, "fragility", _METRIC, row.value, row.on, layer=row.layer, **interval))
        elif row.quantity == quantity_of(_METRIC, "none", "unlearned"):
            made.append(Row(row.intervention, "fragility", _METRIC, row.value, row.on, **interval))
        elif row.quantity == quantity_of(_METRIC, "none", "original"):
            made.append(Row("original", "fragility", _METRIC, row.value, row.on, **interval))
    return [*rows, *made]


def _u_shape(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    return U_SHAPE.draw(_with_single_layers(rows), sizes)


U_SHAPE_OF_MAPS = Entry(
    U_SHAPE.name, U_SHAPE.number, U_SHAPE.title, ("fragility", "layer_map"), _u_shape, U_SHAPE.caption
)
SPANS = Entry(
    "spans",
    "",
    "Every span of layers",
    ("layer_map",),
    _span,
    """Every span of layers of the first method of the rows, lent to the other model: first block downwards, last block
    to the right. The marks on the bars are the two models as they are.""",
)
PARTS = Entry(
    "parts",
    "",
    "Blocks, attention or mlp alone",
    ("layer_map",),
    _lines(part_lines),
    "Single blocks of the unlearned model in the original, whole or attention or mlp alone.",
)
GROWING = Entry(
    "growing",
    "",
    "Spans that grow from either end",
    ("layer_map",),
    _lines(growing_spans),
    "Spans of blocks of the unlearned model in the original that grow from the embeddings up or from the head down.",
)
