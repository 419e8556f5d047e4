"""The zoo's pictures: how well the verdict does, and six published claims."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from analyses.zoo.claims import MEANT_TO_REMOVE, MEANT_TO_SUPPRESS, METHOD_FAMILIES, examined, recovering, working
from analyses.zoo.findings import Findings, Zoo
from probe.figures.labels import small_text
from probe.figures.style import GREY, new_figure, paper_style, save_figure
from probe.figures.verdict import calibration_figure, confusion_figure, roc_figure
from probe.verdict.features import FEATURES

# One colour and one mark a family; grey print keeps the marks.
_LOOKS = {
    "as it was": ("#000000", "o"),
    "branched before": ("#00684B", "*"),
    "head": ("#8C8C8C", "s"),
    "last block": ("#8C8C8C", "D"),
    "refusals": ("#9C8F00", "P"),
    "RMU": ("#0072B2", "s"),
    "NPO": ("#C1121F", ">"),
    "GradDiff": ("#E69F00", "^"),
    "ascent": ("#D55E00", "v"),
    "CE-U": ("#7A3B00", "<"),
}


def drawn(findings: Findings, folder: Path, docs: Path) -> None:
    """ROC curves, confusion matrix, calibration and claims, as figures of the run and as pictures of the text."""
    groups = {f.name: f.group for f in FEATURES}
    metadata = {"run": f"zoo of {len(findings.zoo.labels)} models"}
    with paper_style() as venue:
        pictures = {}
        figure = new_figure(venue.page, venue.page * 0.56)
        curves = {
            title: {name: (one.auroc, one.false_K, one.true_K) for name, one in found.items()}
            for title, found in findings.rocs.items()
        }
        pictures["validity_roc"] = (figure, roc_figure(curves, groups, figure))
        figure = new_figure(venue.page * 0.5, venue.page * 0.42)
        pictures["validity_confusion"] = (figure, confusion_figure(findings.by_family.confusion, figure))
        figure = new_figure(venue.page * 0.5, venue.page * 0.42)
        bins = {"family left out": findings.by_family.calibration, "seed left out": findings.by_seed.calibration}
        pictures["validity_calibration"] = (figure, calibration_figure(bins, figure))
        figure = new_figure(venue.page, venue.page * 0.78)
        pictures["validity_claims"] = (figure, claims_figure(findings.zoo, figure))
        for name, (figure, data) in pictures.items():
            path = save_figure(figure, folder, name, data, metadata=metadata)
            shutil.copy(path.with_suffix(".png"), docs / f"{name}.png")


def claims_figure(zoo: Zoo, figure: Figure) -> dict[str, Any]:
    """One panel a claim, one mark a model of the zoo, coloured by family."""
    axes = figure.subplots(2, 3).flat
    every = examined(zoo)
    data = {
        "M1": _scatter(
            axes[0],
            every,
            ("option_level_change", "option_order"),
            ("change of log p, all options", "order of options kept (ρ)"),
            "M1: collapse or reordering",
        ),
        "M4": _scatter(
            axes[1],
            working(zoo),
            ("jailbreak_probability", "relearn_late_choice"),
            ("p(answer), best jailbreak", "choice after relearning"),
            "M4: jailbreak and relearning",
        ),
        "M5": _scatter(
            axes[2],
            working(zoo),
            ("relearn_late_choice", "retain_known"),
            ("choice after relearning", "retain choice"),
            "M5: robust at a cost?",
        ),
        "S1": _scatter(
            axes[3],
            every,
            ("distance_retain", "distance_unseen"),
            ("distance, forget to retain", "distance, forget to unseen"),
            "S1: a cluster of its own?",
        ),
        "S2": _undone(axes[4], zoo, every),
        "S5": _intentions(axes[5], recovering(zoo)),
    }
    axes[3].set(xscale="log", yscale="log")
    for axis, ticks in ((axes[3].xaxis, (0.2, 1, 5)), (axes[3].yaxis, (0.2, 0.5, 1, 2, 4))):
        axis.set_ticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.set_ticks([], minor=True)
    handles = [
        axes[0].plot([], [], color=colour, marker=marker, linestyle="", markersize=4, label=name)[0]
        for name, (colour, marker) in _LOOKS.items()
        if any(r["family"] == name for r in every)
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=5, fontsize=small_text())
    return data


def _scatter(
    ax: Axes,
    records: Sequence[Mapping[str, Any]],
    keys: tuple[str, str],
    labels: tuple[str, str],
    title: str,
) -> dict[str, list[list[float]]]:
    points: dict[str, list[list[float]]] = {}
    for family in _LOOKS:
        xy = [[float(r[key]) for key in keys] for r in records if r["family"] == family]
        if xy:
            points[family] = xy
            _marks(ax, [x for x, _ in xy], [y for _, y in xy], family)
    ax.set_xlabel(labels[0], fontsize=small_text())
    ax.set_ylabel(labels[1], fontsize=small_text())
    ax.set_title(title)
    return points


def _undone(ax: Axes, zoo: Zoo, records: Sequence[Mapping[str, Any]]) -> dict[str, list[list[float]]]:
    """Choice of every RMU model that hides, as it is and after three attacks; the line is a model that never knew."""
    stages = {
        "as it is": "forget_choice",
        "4 bits": "quantised_choice",
        "other data": "other_choice",
        "relearning": "relearn_late_choice",
    }
    rows = [r for r in records if r["family"] == "RMU" and r["forget_choice"] < 0.6]
    values = [[float(r[key]) for key in stages.values()] for r in rows]
    for line in values:
        ax.plot(range(len(stages)), line, color=_LOOKS["RMU"][0], linewidth=0.6, alpha=0.6)
        _marks(ax, range(len(stages)), line, "RMU")
    never = float(np.mean([reference["relearn_late_choice"] for _, reference in zoo.baselines.values()]))
    ax.axhline(never, color=GREY, linewidth=0.8, linestyle=(0, (4, 2)))
    ax.text(
        0.98,
        never - 0.02,
        "never knew, relearned",
        ha="right",
        va="top",
        fontsize=small_text(),
        color=GREY,
        transform=ax.get_yaxis_transform(),
    )
    ax.set_xticks(range(len(stages)), ["as it\nis", "4\nbits", "other\ndata", "re-\nlearned"], fontsize=small_text())
    ax.set_ylabel("forget choice", fontsize=small_text())
    ax.set_ylim(0, 1.03)
    ax.set_title("S2: what undoes RMU")
    return dict(zip(stages, map(list, zip(*values, strict=True)), strict=True)) if values else {}


def _intentions(ax: Axes, records: Sequence[Mapping[str, Any]]) -> dict[str, list[float]]:
    """What relearning brings back, by what a method is meant to do; the sideways shift only keeps marks apart."""
    data: dict[str, list[float]] = {}
    for place, families in enumerate((MEANT_TO_REMOVE, MEANT_TO_SUPPRESS)):
        rows = sorted((r for r in records if r["family"] in families), key=lambda r: float(r["relearn_late_choice"]))
        for k, r in enumerate(rows):
            _marks(ax, [place + 0.5 * (k + 0.5) / len(rows) - 0.25], [float(r["relearn_late_choice"])], r["family"])
            data.setdefault(r["family"], []).append(float(r["relearn_late_choice"]))
    ax.set_xticks([0, 1], ["meant to\nremove", "meant to\nsuppress"], fontsize=small_text())
    ax.set_xlim(-0.5, 1.5)
    ax.set_ylim(0, 1.03)
    ax.set_ylabel("choice after relearning", fontsize=small_text())
    ax.set_title("S5: recovery tells intention")
    return data


def _marks(ax: Axes, x: Any, y: Any, family: str) -> None:
    colour, marker = _LOOKS[family]
    size = 6 if marker == "*" else 4
    ax.plot(x, y, color=colour, marker=marker, linestyle="", markersize=size, markeredgecolor="white", alpha=0.9)


assert {*_LOOKS} <= {*METHOD_FAMILIES}
