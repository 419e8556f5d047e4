"""The figure of one result (``.plot()`` of a diagnostic's, an attack's or a run's): one table says which."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from probe.figures.layers import lines
from probe.figures.logits import LOGIT_COLLAPSE
from probe.figures.maps import SPANS, U_SHAPE_OF_MAPS
from probe.figures.relearning import RELEARNING
from probe.figures.sae_doses import SAE_CHOICES
from probe.figures.separability import SEPARABILITY
from probe.figures.squeezing import SQUEEZING
from probe.figures.states import HIDDEN_STATES
from probe.figures.style import Venue, new_figure, paper_style, plain_text, svg_text
from probe.rows import Row

__all__ = ["plotted", "svg_text"]

# Results that have a figure of the set, drawn from their rows alone.
_ENTRIES = {
    "Separability": SEPARABILITY,
    "LogitCollapse": LOGIT_COLLAPSE,
    "LayerMap": U_SHAPE_OF_MAPS,
    "ReplacementMap": SPANS,
    "Curves": RELEARNING,
    "Squeezing": SQUEEZING,
    "Projections": HIDDEN_STATES,
    "DoseResponse": SAE_CHOICES,
}
# The others: which quantities are lines over layers, steps or doses, and what the axis says.
_LINES: dict[str, tuple[tuple[str, ...], str]] = {
    "GEffect": (("effect",), "G-effect"),
    "RidgeProbes": (("auc",), "AUROC, forget against retain"),
    "ContentProbe": (("accuracy", "control"), "right answer first"),
    "DepthScore": (("erased",), "erased (1: as in the retrained model)"),
    "Clusters": (("relative",), "distance over spread"),
    "Similarity": (("debiased cka",), "debiased CKA"),
    "Spread": (("effective rank",), "effective rank"),
    "WeightChange": (("relative",), "|change| / |weights|"),
    "LogitLens": (("answer probability",), "probability of the answer"),
    "TunedLens": (("explained",), "variance explained"),
    "Screening": (("predicted rise", "exact rise"), "rise of the loss (nats a token)"),
    "Reweighting": (("effect",), "effect"),
    "Localisation": ((), "change of log p (nats a token)"),
    "Mixing": ((), "probability of held-out answers"),
    "History": ((), "loss"),
}
# BySide that a figure needs and a result of one batch does not know.
_ON = {"LogitCollapse": "forget"}


def plotted(result: Any, name: str) -> Figure:
    """Draw one result.

    Args:
        result: anything with ``rows(name)`` (``probe.display.Result``).
        name: what the figure calls the model.

    Raises:
        ValueError: no figure of such a result, or numbers that do not suffice for it.
    """
    kind = type(result).__name__
    if kind == "BySide":
        kind = type(next(iter(result.sides.values()))).__name__
        rows = result.rows(name)
    else:
        rows = result.rows(name, _ON[kind]) if kind in _ON else result.rows(name)
    with paper_style() as sizes:
        if kind in _ENTRIES:
            return _ENTRIES[kind].draw(rows, sizes)[0]
        if kind in _LINES:
            return _lines(rows, *_LINES[kind], sizes)
    raise ValueError(f"there is no figure of a {kind}; its numbers are in .rows(name), its table in .table()")


def _lines(rows: Sequence[Row], quantities: tuple[str, ...], ylabel: str, sizes: Venue) -> Figure:
    """One line a quantity and side, over the layers, steps or doses of the rows."""
    axis = next((key for key in ("layer", "item", "dose") if any(getattr(r, key) is not None for r in rows)), None)
    found = [r for r in rows if axis and getattr(r, axis) is not None and (not quantities or r.quantity in quantities)]
    if axis is None or not found:
        raise ValueError(f"no rows of {' or '.join(quantities) or 'anything'} over layers, steps or doses")
    if any(r.quantity.startswith("effect, ") for r in found):
        found = [r for r in found if r.quantity.startswith("effect, ")]
    several = len({r.intervention for r in found}) > 1
    drawn: dict[str, list[tuple[float, float]]] = {}
    for row in found:
        what = row.on if row.on and len(quantities) == 1 else f"{row.quantity} {row.on}".strip()
        label = row.intervention if several else what or row.quantity
        value = float("nan") if row.value is None else row.value
        drawn.setdefault(label, []).append((float(getattr(row, axis)), value))
    figure = new_figure(sizes.narrow, 2.3)
    ax = figure.add_subplot()
    places = sorted({x for line in drawn.values() for x, _ in line})
    values = {label: [dict(line).get(x, float("nan")) for x in places] for label, line in drawn.items()}
    if axis == "layer":
        lines(values, ylabel=ylabel, ax=ax, layer=[int(x) for x in places])
        return figure
    for label, value_N in values.items():
        ax.plot(places, value_N, marker="o" if len(places) < 30 else "", markersize=2.5, label=plain_text(label))
    ax.set(xlabel="step" if axis == "item" else "weight of the original", ylabel=ylabel)
    ax.legend(frameon=False)
    return figure
