"""Where probability goes while a target is unlearned: the target and other responses over steps."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure

from probe.figures.bands import banded, banded_numbers, end
from probe.figures.entry import Entry
from probe.figures.labels import end_labels, note_dropped
from probe.figures.style import FORGET, INK, RETAIN, Venue, new_figure, ordered, picked, plain_text
from probe.rows import Row

DIAGNOSTIC = "squeezing"
_LOOKS: dict[str, dict[str, Any]] = {
    "target": {"color": FORGET, "marker": "o", "linestyle": "-"},
    "high": {"color": INK, "marker": "^", "linestyle": (0, (4, 1.5))},
    "mid": {"color": "#7B61B5", "marker": "s", "linestyle": (0, (5, 1.3, 1, 1.3))},
    "low": {"color": RETAIN, "marker": "v", "linestyle": (0, (1, 1.2))},
}
_WORDS = {"target": "target", "high": "likely others", "mid": "middling others", "low": "unlikely others"}


def responses_over_steps(rows: Sequence[Row], figure: Figure, *, columns: int = 3) -> dict[str, Any]:
    """Log-probability of the target and of likely, middling and unlikely other responses; one panel a method.

    Squeezing (arXiv 2510.19422) is a target that falls while likely responses of its meaning rise.

    Args:
        rows: "squeezing" rows, quantities "target", "high", "mid", "low" (mean log p, nats), ``item`` the step.
        figure: empty.
        columns: panels side by side; all share their axes.

    Returns:
        ``{method: {quantity: {"x", "value", "low", "high", "n"}}, "not_finite": count}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, DIAGNOSTIC, _LOOKS)
    names = ordered(row.intervention for row in found)
    columns = -(-len(names) // -(-len(names) // columns))
    grid = figure.subplots(-(-len(names) // columns), columns, sharex=True, sharey=True, squeeze=False)
    data: dict[str, Any] = {"not_finite": 0}
    last = {}
    for name, ax in zip(names, grid.flat, strict=False):
        data[name], lost, ends = {}, 0, {}
        for quantity, style in _LOOKS.items():
            line = [r for r in found if (r.intervention, r.quantity) == (name, quantity)]
            line.sort(key=lambda r: r.item or 0)
            if line:
                x = [float(r.item or 0) for r in line]
                lost += banded(ax, x, line, markeredgecolor="white", **style)
                data[name][quantity] = banded_numbers([r.item for r in line], line)
                ends[_WORDS[quantity]] = end(x, line)
        ax.set_title(plain_text(name))
        note_dropped(ax, lost, inside=True)
        data["not_finite"] += lost
        last[name] = (ax, ends)
    for ax in grid.flat[len(names) :]:
        ax.set_visible(False)
    for ax in grid[:, 0]:
        ax.set_ylabel("log p of the response (nats)")
    for ax in grid.flat[max(0, len(names) - columns) : len(names)]:
        ax.set_xlabel("step")
        ax.tick_params(labelbottom=True)
    colours = {_WORDS[q]: style["color"] for q, style in _LOOKS.items()}
    for place, (ax, ends) in enumerate(last.values()):
        # Only the last panel of a line has room to its right; the others mean the same.
        if place % columns == columns - 1 or place == len(names) - 1:
            end_labels(ax, ends, colours=colours)
    return data


def _draw(rows: Sequence[Row], sizes: Venue) -> tuple[Figure, Any]:
    n = len({r.intervention for r in rows if r.diagnostic == DIAGNOSTIC})
    figure = new_figure(sizes.page, 0.3 + 1.75 * max(1, -(-n // 3)))
    return figure, responses_over_steps(rows, figure)


SQUEEZING = Entry(
    "squeezing",
    "8",
    "Where the probability goes",
    (DIAGNOSTIC,),
    _draw,
    """Mean log-probability of the target answer and of other responses while a method unlearns the target. The other
    responses were sampled from the original and cut into thirds by its own likelihood. Squeezing: the target falls and
    likely responses rise.""",
)
