"""Names written beside lines and points, moved until they do not overlap."""

import math
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from probe.figures.style import look, plain


def small() -> float:
    """Text size of labels inside a figure, in points."""
    return float(matplotlib.rcParams["legend.fontsize"])


def spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
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
    half = 0.5 * small() / height
    for name, y in zip(names, spread(wanted, 1.12 * small() / height, half, 1 - half), strict=True):
        colour = (colours or {}).get(name) or look(name).colour
        ax.annotate(
            plain(name),
            ends[name],
            (x, y),
            textcoords="axes fraction",
            annotation_clip=False,
            fontsize=small(),
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


def point_labels(ax: Axes, points: Mapping[str, tuple[float, float]]) -> None:
    """Write each point's name near it, off the other points and names and inside the axes.

    Crowded points choose first; each takes the cheapest of 16 directions x 5 distances.
    """
    points = {name: xy for name, xy in points.items() if all(map(math.isfinite, xy))}
    if not points:
        return
    ax.figure.draw_without_rendering()  # type: ignore[union-attr]
    unit = ax.figure.dpi / 72
    frame = ax.get_window_extent()
    centre = {name: ax.transData.transform(xy) for name, xy in points.items()}
    taken = [Bbox.from_extents(*(xy - 3.0 * unit), *(xy + 3.0 * unit)) for xy in centre.values()]
    drawn = {
        name: ax.annotate(
            plain(name),
            xy,
            (0, 0),
            textcoords="offset points",
            fontsize=small(),
            color=look(name).colour,
            ha="center",
            va="center",
        )
        for name, xy in points.items()
    }
    size = {name: text.get_window_extent() for name, text in drawn.items()}

    def crowding(name: str) -> float:
        return sum(1 / (unit + math.dist(centre[name], xy)) for other, xy in centre.items() if other != name)

    for name in sorted(points, key=lambda name: (-crowding(name), name)):
        width, height = size[name].width, size[name].height
        best = min(
            _candidates(centre[name], width, height, unit),
            key=lambda box_cost: box_cost[1] + _cost(box_cost[0], taken, frame) / (height * unit),
        )[0]
        taken.append(best)
        middle = np.array([(best.x0 + best.x1) / 2, (best.y0 + best.y1) / 2])
        offset = (middle - centre[name]) / unit
        drawn[name].set_position((float(offset[0]), float(offset[1])))
        _leader(ax, centre[name], best, look(name).colour, unit)


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


def _cost(box: Bbox, taken: Sequence[Bbox], frame: Bbox) -> float:
    overlap = 0.0
    for other in taken:
        wide = min(box.x1, other.x1) - max(box.x0, other.x0)
        high = min(box.y1, other.y1) - max(box.y0, other.y0)
        overlap += max(wide, 0.0) * max(high, 0.0)
    inside = max(min(box.x1, frame.x1) - max(box.x0, frame.x0), 0.0)
    inside *= max(min(box.y1, frame.y1) - max(box.y0, frame.y0), 0.0)
    return 10 * overlap + 10 * (box.width * box.height - inside)


def _leader(ax: Axes, xy: np.ndarray, box: Bbox, colour: str, unit: float) -> None:
    near = np.array([min(max(xy[0], box.x0), box.x1), min(max(xy[1], box.y0), box.y1)])
    if math.dist(xy, near) > 7 * unit:
        back = ax.transData.inverted()
        ends = back.transform(np.array([xy, near]))
        ax.plot(ends[:, 0], ends[:, 1], color=colour, linewidth=0.4, alpha=0.7, zorder=1, scalex=False, scaley=False)
