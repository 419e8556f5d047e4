"""Names written beside lines and points, moved until they do not overlap; and a word on what is not drawn."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox, BboxBase

from probe.figures.style import look, plain_text

Segment = tuple[tuple[float, float], tuple[float, float]]


def small_text() -> float:
    """Text size of labels inside a figure, in points."""
    return float(matplotlib.rcParams["legend.fontsize"])


def _spread_out(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions at least ``gap`` apart and nearest to the wanted ones in squares, kept inside [low, high].

    With wanted values sorted and i*gap taken off, this is isotonic regression, solved by pooling neighbours.
    If all cannot fit, they are spaced evenly over the range.
    """
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    if len(order) > 1 and gap * (len(order) - 1) > high - low:
        gap = (high - low) / (len(order) - 1)
    pools: list[tuple[float, int]] = []
    for rank, i in enumerate(order):
        pools.append((wanted[i] - rank * gap, 1))
        while len(pools) > 1 and pools[-2][0] > pools[-1][0]:
            (mean, n), (other, m) = pools[-2:]
            pools[-2:] = [((mean * n + other * m) / (n + m), n + m)]
    flat = [mean for mean, n in pools for _ in range(n)]
    top = high - gap * max(len(order) - 1, 0)
    placed = [0.0] * len(order)
    for rank, i in enumerate(order):
        placed[i] = min(max(flat[rank], low), top) + rank * gap
    return placed


def end_labels(
    ax: Axes, ends: Mapping[str, tuple[float, float]], *, colours: Mapping[str, str] | None = None, x: float = 1.04
) -> None:
    """Write each line's name to the right of the axes, joined to its end by a hairline.

    Call it when everything else is drawn and the limits are final.

    Args:
        ax: where the lines are.
        ends: name -> last point of the line, in data units.
        colours: name -> colour, where it is not the look of that name.
        x: where the names begin, in axes widths.
    """
    names = [name for name, (_, y) in ends.items() if math.isfinite(y)]
    if not names:
        return
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    height = ax.get_window_extent().height / ax.figure.dpi * 72
    to_axes = ax.transData + ax.transAxes.inverted()
    wanted = [float(to_axes.transform(ends[name])[1]) for name in names]
    half = 0.5 * small_text() / height
    for name, y in zip(names, _spread_out(wanted, 1.12 * small_text() / height, half, 1 - half), strict=True):
        colour = (colours or {}).get(name) or look(name).colour
        ax.annotate(
            plain_text(name),
            ends[name],
            (x, y),
            textcoords="axes fraction",
            annotation_clip=False,
            fontsize=small_text(),
            color=colour,
            va="center_baseline",
            arrowprops={
                "arrowstyle": "-",
                "color": colour,
                "linewidth": 0.4,
                "alpha": 0.6,
                "shrinkA": 1,
                "shrinkB": 2,
                "relpos": (0, 0.5),
            },
        )


def point_labels(ax: Axes, points: Mapping[str, tuple[float, float]], *, avoid: Sequence[Segment] = ()) -> None:
    """Write each point's name near it, off the other points and names and inside the axes.

    Crowded points choose first; each takes the cheapest of 16 directions x 5 distances.

    Args:
        ax: where the points are.
        points: name -> point, in data units.
        avoid: horizontal or vertical lines that names had better not cross, in data units.
    """
    points = {name: xy for name, xy in points.items() if all(map(math.isfinite, xy))}
    if not points:
        return
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    unit = ax.figure.dpi / 72
    frame = ax.get_window_extent()
    centre = {name: ax.transData.transform(xy) for name, xy in points.items()}
    taken = [Bbox.from_extents(*(xy - 3.0 * unit), *(xy + 3.0 * unit)) for xy in centre.values()]
    for segment in avoid:
        (x0, y0), (x1, y1) = ax.transData.transform(np.array(segment))
        low, high = (min(x0, x1), min(y0, y1)), (max(x0, x1), max(y0, y1))
        taken.append(Bbox.from_extents(*(np.array(low) - 0.6 * unit), *(np.array(high) + 0.6 * unit)))
    drawn = {
        name: ax.annotate(
            plain_text(name),
            xy,
            (0, 0),
            textcoords="offset points",
            fontsize=small_text(),
            color=look(name).colour,
            ha="center",
            va="center",
        )
        for name, xy in points.items()
    }
    size = {name: text.get_window_extent() for name, text in drawn.items()}

    def crowding(name: str) -> float:
        return sum((1 / (unit + math.dist(centre[name], xy)) for other, xy in centre.items() if other != name), 0.0)

    for name in sorted(points, key=lambda name: (-crowding(name), name)):
        width, height = size[name].width, size[name].height
        others = [xy for other, xy in centre.items() if other != name]
        boxes = _candidates(centre[name], width, height, unit)
        costs = [
            cost + _cost(box, taken, frame) / (height * unit) + _crossed(centre[name], box, others, unit)
            for box, cost in boxes
        ]
        best = boxes[costs.index(min(costs))][0]
        taken.append(best)
        middle = np.array([(best.x0 + best.x1) / 2, (best.y0 + best.y1) / 2])
        offset = (middle - centre[name]) / unit
        drawn[name].set_position((float(offset[0]), float(offset[1])))
        _leader(ax, centre[name], best, look(name).colour, unit)


def note_dropped(ax: Axes, count: int, *, inside: bool = False) -> None:
    """Say above the axes (or inside, in a narrow panel) how many points could not be drawn.

    Matplotlib itself stays silent about them.
    """
    if not count:
        return
    text = f"{count} {'point' if count == 1 else 'points'} not finite"
    style: dict[str, Any] = {"fontsize": matplotlib.rcParams["xtick.labelsize"] - 0.5, "color": "#B00020"}
    if inside:
        ground = {"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 0.5}
        ax.text(0.02, 0.03, text, transform=ax.transAxes, va="bottom", zorder=6, bbox=ground, **style)
    else:
        ax.set_title(text, loc="right", **style)


def _candidates(xy: np.ndarray, width: float, height: float, unit: float) -> list[tuple[Bbox, float]]:
    found = []
    for distance in (4.5, 9.0, 15.0, 23.0, 33.0):
        for step in range(16):
            angle = math.pi * step / 8
            # The box's near edge, not its middle, is kept at the distance.
            x = xy[0] + math.cos(angle) * (distance * unit + width / 2)
            y = xy[1] + math.sin(angle) * (distance * unit + height / 2)
            box = Bbox.from_extents(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
            found.append((box, 0.15 * distance + 0.02 * step))
    return found


def _cost(box: Bbox, taken: Sequence[Bbox], frame: BboxBase) -> float:
    overlap = 0.0
    for other in taken:
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        overlap += max(wide, 0.0) * max(high, 0.0)
    inside = max(min(box.x1, frame.x1) - max(box.x0, frame.x0), 0.0)
    inside *= max(min(box.y1, frame.y1) - max(box.y0, frame.y0), 0.0)
    return 10 * overlap + 10 * (box.width * box.height - inside)


def _nearest(xy: np.ndarray, box: Bbox) -> np.ndarray:
    return np.array([min(max(xy[0], box.x0), box.x1), min(max(xy[1], box.y0), box.y1)])


def _crossed(xy: np.ndarray, box: Bbox, others: Sequence[np.ndarray], unit: float) -> float:
    """How many other points the line from a point to its name would run through, weighted."""
    way = _nearest(xy, box) - xy
    length = float(way @ way) or 1.0
    feet = [xy + way * min(max(float((other - xy) @ way) / length, 0.0), 1.0) for other in others]
    return 8.0 * sum(math.dist(foot, other) < 3.5 * unit for foot, other in zip(feet, others, strict=True))


def _leader(ax: Axes, xy: np.ndarray, box: Bbox, colour: str, unit: float) -> None:
    near = _nearest(xy, box)
    if math.dist(xy, near) > 7 * unit:
        back = ax.transData.inverted()
        ends = back.transform(np.array([xy, near]))
        ax.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.4, alpha=0.7, zorder=1, scalex=False, scaley=False)
