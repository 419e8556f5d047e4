"""What the stream already says at each depth: logit-lens maps over tokens and layers, before, after, difference."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probe.figures.entry import Entry
from probe.figures.labels import note_dropped, small_text
from probe.figures.style import Venue, is_reference, new_figure, number, ordered, picked, plain_text
from probe.rows import Row

DIAGNOSTIC = "logit_lens"
_TITLE = "p of the answer's token"


def _visible(token: str) -> str:
    """A token with its blanks and line breaks shown."""
    return plain_text(token.replace("\n", "↵").replace("\t", "→").replace(" ", "␣")) or "∅"


def lens_map(rows: Sequence[Row], name: str) -> tuple[list[str], list[int], np.ndarray]:
    """Tokens, layers, and probability by token and layer of one intervention; NaN where there is none.

    Args:
        rows: "logit_lens" rows, quantity "probability"; ``item`` the token's place, ``on`` its text, ``layer``.
        name: the intervention.

    Raises:
        ValueError: no such rows.
    """
    found = [r for r in picked(rows, DIAGNOSTIC, ["probability"]) if r.layer is not None and r.item is not None]
    text = {int(r.item): r.on for r in found if r.item is not None}
    places, layers = sorted(text), sorted({int(r.layer) for r in found if r.layer is not None})
    value_TL = np.full((len(places), len(layers)), np.nan)
    for row in found:
        if row.intervention == name:
            value_TL[places.index(int(row.item or 0)), layers.index(int(row.layer or 0))] = number(row.value)
    return [_visible(text[p]) for p in places], layers, value_TL


def _chosen_after(rows: Sequence[Row]) -> str:
    """The method that lowers the answer's probability most at the last layer; the retrained model if there is none."""
    names = ordered(r.intervention for r in picked(rows, DIAGNOSTIC, ["probability"]))
    methods = [name for name in names if not is_reference(name)]
    rest = [name for name in names if name != "original"]
    if not rest or "original" not in names:
        raise ValueError(f"'logit_lens' rows of {', '.join(names)}; the original and one other model are needed")

    def left(name: str) -> float:
        last_T = lens_map(rows, name)[2][:, -1]
        finite_T = last_T[np.isfinite(last_T)]
        return float(finite_T.mean()) if finite_T.size else math.inf

    return min(methods or rest, key=left)


def lens_maps(rows: Sequence[Row], figure: Figure, *, after: str | None = None) -> dict[str, Any]:
    """Three maps: original, ``after``, and their difference (blue: lost).

    Args:
        rows: as for ``lens_map``.
        figure: empty.
        after: an intervention; the method that lowers the answer most if None.

    Returns:
        ``{"tokens", "layers", "after", "original": [[...]], "changed": [[...]], "not_finite"}``.

    Raises:
        ValueError: no such rows, or none of the original.
    """
    after = after or _chosen_after(rows)
    tokens, layers, before_TL = lens_map(rows, "original")
    after_TL = lens_map(rows, after)[2]
    axes = figure.subplots(1, 3, sharey=True)
    lost = 0
    for ax, title, value_TL in zip(axes, ("original", after), (before_TL, after_TL), strict=False):
        image = map_panel(ax, value_TL, layers, diverging=False)
        lost += _count(ax, value_TL)
        ax.set_title(plain_text(title, width=22))
    bar = figure.colorbar(image, ax=list(axes[:2]), orientation="horizontal", shrink=0.6, aspect=30, pad=0.03)
    bar.set_label(_TITLE)
    difference = map_panel(axes[2], after_TL - before_TL, layers, diverging=True)
    axes[2].set_title("difference")
    other = figure.colorbar(difference, ax=axes[2], orientation="horizontal", shrink=0.9, aspect=18, pad=0.03)
    other.set_label("change")
    for one in (bar, other):
        one.outline.set_visible(False)  # type: ignore[operator]
    token_ticks(axes[0], tokens)
    return {
        "tokens": tokens,
        "layers": layers,
        "after": after,
        "original": before_TL.tolist(),
        "changed": after_TL.tolist(),
        "not_finite": lost,
    }


def map_panel(ax: Axes, value_TL: np.ndarray, layers: Sequence[int], *, diverging: bool) -> Any:
    """One map, tokens downwards and layers to the right."""
    scale: dict[str, Any] = {"cmap": "RdBu_r", "vmin": -1, "vmax": 1} if diverging else {"vmin": 0, "vmax": 1}
    shown = np.ma.masked_invalid(value_TL)
    image = ax.imshow(shown, aspect="auto", interpolation="nearest", **{"cmap": "viridis", **scale})
    ax.xaxis.set_major_locator(MaxNLocator(nbins=6, integer=True))
    if layers != list(range(len(layers))):
        ax.set_xticks(range(len(layers)), [str(layer) for layer in layers])
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_xlabel("layer")
    return image


def token_ticks(ax: Axes, tokens: Sequence[str]) -> None:
    """Each token's text beside its line."""
    ax.set_yticks(range(len(tokens)), tokens, fontsize=small_text())


def _count(ax: Axes, value_TL: np.ndarray) -> int:
    lost = int((~np.isfinite(value_TL)).sum())
    note_dropped(ax, lost, inside=True)
    return lost


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    tokens = len({r.item for r in rows if r.diagnostic == DIAGNOSTIC})
    figure = new_figure(sizes.page, 0.95 + math.ceil(max(tokens, 4)) * 0.145)
    return figure, lens_maps(rows, figure)


LOGIT_LENS = Entry(
    "logit_lens",
    "17",
    "Logit lens",
    (DIAGNOSTIC,),
    _draw,
    """Probability of each token of the right answer, read from each layer through the model's own head (logit lens),
    at the position that predicts it: original, changed model, difference. ␣ is a blank.""",
)
