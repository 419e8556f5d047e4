"""Methods by family: as they are, and at matched retention."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from probe.figures.labels import small_text
from probe.figures.style import GREY, is_reference, look, number, picked, plain_text
from probe.rows import Row

# Colour and marker a family, apart in grey as well.
FAMILY_LOOKS = {
    "divergence": ("#D55E00", "^"),
    "representation": ("#0072B2", "s"),
    "rejection": ("#9C8F00", "D"),
    "other": ("#7B61B5", "P"),
    "variant": ("#5B636E", "o"),
}


def family_figure(rows: Sequence[Row], figure: Figure, families: Mapping[str, str]) -> dict[str, Any]:
    """Left: utility against forgetting as trained. Right: forgetting at matched retention, best above.

    Args:
        rows: "family" rows; quantities "forget" and "retain" (answer probabilities), ``on`` "raw" or "calibrated".
        figure: empty.
        families: family of each method.

    Returns:
        ``{"raw" | "calibrated": {name: {"forget": [value, low, high], "retain": [...]}}}``.

    Raises:
        ValueError: no such rows.
    """
    found = picked(rows, "family", ["forget", "retain"])
    data: dict[str, dict[str, dict[str, list[float]]]] = {"raw": {}, "calibrated": {}}
    for row in found:
        numbers = [number(row.value), number(row.low), number(row.high)]
        data[row.on].setdefault(row.intervention, {})[row.quantity] = numbers
    left, right = figure.subplots(1, 2, width_ratios=[1.15, 1])
    for name, point in data["raw"].items():
        (x, *ends_x), (y, *ends_y) = point["forget"], point["retain"]
        colour, marker = _look(name, families)
        left.errorbar(
            1 - x, y, xerr=_arms(x, ends_x), yerr=_arms(y, ends_y), color=colour, elinewidth=0.6, linestyle="none"
        )
        left.plot(1 - x, y, color=colour, marker=marker, markersize=8 if is_reference(name) else 4.5, linestyle="none")
    left.set_xlabel("forgetting: 1 − probability on forget data →")
    left.set_ylabel("utility: probability on retain data →")
    left.set_title("as trained")
    calibrated = data["calibrated"]
    order = sorted((n for n in calibrated if not is_reference(n)), key=lambda n: calibrated[n]["forget"][0])
    for place, name in enumerate(order):
        value, *ends = calibrated[name]["forget"]
        colour, marker = _look(name, families)
        right.errorbar(1 - value, place, xerr=_arms(value, ends), color=colour, elinewidth=0.8, linestyle="none")
        right.plot(1 - value, place, color=colour, marker=marker, markersize=4.5, linestyle="none")
    for name in ("original", "retrained"):
        if name in calibrated:
            right.axvline(
                1 - calibrated[name]["forget"][0], color=look(name).colour, linewidth=0.8, linestyle=(0, (4, 2))
            )
            right.annotate(
                name,
                (1 - calibrated[name]["forget"][0], 1),
                xycoords=("data", "axes fraction"),
                xytext=(0, 2),
                textcoords="offset points",
                ha="center",
                color=look(name).colour,
                fontsize=small_text(),
            )
    right.set_yticks(range(len(order)), [plain_text(name) for name in order], fontsize=small_text())
    right.set_ylim(len(order) - 0.4, -0.6)
    right.set_xlabel("forgetting at matched retention →")
    used = [f for f in FAMILY_LOOKS if f in {families.get(n) for n in order}]
    handles = [Line2D([], [], color=c, marker=m, linestyle="none", label=f) for f in used for c, m in [FAMILY_LOOKS[f]]]
    left.legend(handles=handles, loc="lower left", fontsize=small_text())
    return data


def _look(name: str, families: Mapping[str, str]) -> tuple[str, str]:
    if is_reference(name):
        return look(name).colour, look(name).marker
    return FAMILY_LOOKS.get(families.get(name, "other"), (GREY, "o"))


def _arms(value: float, ends: Sequence[float]) -> list[list[float]] | None:
    low, high = ends
    # x runs the other way (forgetting is 1 - probability), and intervals are symmetric about the mean.
    return [[max(high - value, 0.0)], [max(value - low, 0.0)]] if low == low and high == high else None
