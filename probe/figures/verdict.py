"""How far a verdict can be trusted: each diagnostic's ROC, what is mistaken for what, and what a probability means."""

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure

from probe.figures.labels import small_text
from probe.figures.style import FORGET, GREY, INK, RETAIN, plain_text
from probe.metrics.intervals import wilson

# (AUROC, false positive rates, true positive rates).
Curve = tuple[float, Sequence[float], Sequence[float]]
_GROUP_LOOKS = {
    "outputs": ("#7B61B5", "-"),
    "relearning": (FORGET, "-"),
    "other attacks": ("#E69F00", "-"),
    "states": (RETAIN, "-"),
    "weights": (INK, "-"),
}


def roc_figure(
    questions: Mapping[str, Mapping[str, Curve]], groups: Mapping[str, str], figure: Figure
) -> dict[str, Any]:
    """One panel a question, one curve a diagnostic, coloured by kind; the best of each kind is bold and named.

    A diagnostic whose low values speak for the positives is drawn turned over.

    Args:
        questions: by title, curves by diagnostic.
        groups: kind of each diagnostic.
        figure: empty.

    Returns:
        ``{question: {diagnostic: auroc}}``.

    Raises:
        ValueError: no questions.
    """
    if not questions:
        raise ValueError("no ROC curves to draw (0 questions)")
    axes, notes = figure.subplots(2, len(questions), squeeze=False, height_ratios=(3, 1.2))
    for ax, note, (title, curves) in zip(axes, notes, questions.items(), strict=True):
        note.set_axis_off()
        ax.plot([0, 1], [0, 1], color=GREY, linewidth=0.6)
        best = _best(curves, groups)
        for name in sorted(curves, key=lambda one: one in best.values()):
            auroc, false, true = curves[name]
            colour, dash = _GROUP_LOOKS.get(groups[name], (GREY, "-"))
            # The curve of the negated value: both rates of the complement.
            x, y = (false, true) if auroc >= 0.5 else ([1 - f for f in false], [1 - t for t in true])
            bold = name in best.values()
            ax.plot(x, y, color=colour, linestyle=dash, linewidth=1.4 if bold else 0.5, alpha=1 if bold else 0.3)
        for line, (group, name) in enumerate(best.items()):
            words, colour = f"{_strength(curves[name]):.2f}  {name}", _GROUP_LOOKS.get(group, (GREY, "-"))[0]
            note.text(0, 1 - 0.2 * line, plain_text(words), color=colour, fontsize=small_text(), va="top")
        ax.set_title(plain_text(title))
        ax.set_xlabel("false positives")
        ax.set_aspect("equal")
    axes[0].set_ylabel("true positives")
    used = [group for group in _GROUP_LOOKS if group in groups.values()]
    handles = [axes[0].plot([], [], color=_GROUP_LOOKS[g][0], label=g)[0] for g in used]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(used), fontsize=small_text())
    return {title: {name: curve[0] for name, curve in curves.items()} for title, curves in questions.items()}


def _strength(curve: Curve) -> float:
    return max(curve[0], 1 - curve[0])


def _best(curves: Mapping[str, Curve], groups: Mapping[str, str]) -> dict[str, str]:
    """The best diagnostic of each kind, best kind first."""
    order = sorted(curves, key=lambda name: -_strength(curves[name]))
    best: dict[str, str] = {}
    for name in order:
        best.setdefault(groups[name], name)
    return best


def confusion_figure(confusion: Mapping[str, Mapping[str, int]], figure: Figure) -> dict[str, Any]:
    """Counts by truth (rows) and verdict (columns), shaded by share of the row.

    Args:
        confusion: by truth, then by verdict.
        figure: empty.

    Raises:
        ValueError: nothing was counted.
    """
    names = [name for name, row in confusion.items() if sum(row.values())]
    if not names:
        raise ValueError("no verdicts to count; every row of the confusion matrix is empty")
    said = list(next(iter(confusion.values())))
    shares = [[confusion[true][one] / sum(confusion[true].values()) for one in said] for true in names]
    ax = figure.subplots()
    ax.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for i, true in enumerate(names):
        for k, one in enumerate(said):
            ink = "white" if shares[i][k] > 0.6 else INK
            ax.text(k, i, str(confusion[true][one]), ha="center", va="center", color=ink)
    ax.set_xticks(range(len(said)), said)
    ax.set_yticks(range(len(names)), names)
    ax.set_xlabel("verdict")
    ax.set_ylabel("truth")
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    return {true: dict(confusion[true]) for true in names}


def calibration_figure(bins: Mapping[str, Sequence[tuple[float, float, int]]], figure: Figure) -> dict[str, Any]:
    """Share of right verdicts against the probability given to them, with Wilson's 95 % interval; the line is what it
    should be.

    Args:
        bins: by name of the cross-validation, (mean probability, share right, models) a bin.
        figure: empty.

    Raises:
        ValueError: no bins.
    """
    if not any(bins.values()):
        raise ValueError("no calibration bins to draw")
    ax = figure.subplots()
    ax.plot([0.25, 1], [0.25, 1], color=GREY, linewidth=0.6)
    for (name, found), (colour, marker) in zip(bins.items(), ((FORGET, "o"), (RETAIN, "s"), (INK, "^")), strict=False):
        x, y, n = zip(*found, strict=True)
        ends = [wilson(round(share * count), count) for share, count in zip(y, n, strict=True)]
        whiskers = [[share - low for share, (low, _) in zip(y, ends, strict=True)]]
        whiskers.append([high - share for share, (_, high) in zip(y, ends, strict=True)])
        ax.errorbar(
            x, y, yerr=whiskers, color=colour, marker=marker, linestyle="", elinewidth=0.8, label=plain_text(name)
        )
        words: dict[str, Any] = {"fontsize": small_text(), "color": colour, "textcoords": "offset points"}
        # The first series' counts stand left of its marks, the others' right: full marks often coincide.
        words |= {"xytext": (-4, 3), "ha": "right"} if colour == FORGET else {"xytext": (4, 3), "ha": "left"}
        for a, b, count in zip(x, y, n, strict=True):
            ax.annotate(str(count), (a, b), **words)
    ax.set_xlim(0.22, 1.02)
    ax.set_ylim(0, 1.05)
    ax.set_xlabel("probability of the verdict")
    ax.set_ylabel("share of right verdicts")
    ax.legend(fontsize=small_text(), loc="lower right")
    return {name: [list(one) for one in found] for name, found in bins.items()}
