"""One model's evaluation as text and as LaTeX, from its rows alone."""

from collections.abc import Mapping, Sequence

from probe.evaluation.numbers import FLOOR, IDENTICAL, NAMES
from probe.figures.tables import escaped
from probe.rows import Row

# Quantity -> what the table calls it.
QUANTITIES = {
    "probability": "probability of the answer",
    "normalised_probability": "probability among the options",
    "paraphrased_answer_probability": "probability of the paraphrased answer",
    "paraphrased_probability": "probability, question paraphrased",
    "rouge": "ROUGE-L recall",
    "truth_ratio": "truth ratio, geometric",
    "truth_ratio_arithmetic": "truth ratio, arithmetic",
    "truth_ratio_known": "truth ratio as knowledge, p/(p + wrong)",
    "extraction_strength": "extraction strength, teacher-forced, floor 0",
    "extraction_strength_floored": "extraction strength, teacher-forced, floor 1/L",
    "extraction_strength_paraphrased": "extraction strength, floor 0, question paraphrased",
    "exact_memorisation": "exact memorisation",
    "choice_accuracy": "right answer beats every wrong one",
}
_LEGEND = (
    "means over rows, ± half their 95 % interval; truth ratios: mean min(R, 1/R) on forget, "
    "mean max(0, 1 - R) elsewhere"
)
# In the order of model utility's nine parts, with the set and what the part is there.
_PARTS = {"retain": "probability", "real_authors": "normalised_probability", "world_facts": "normalised_probability"}
_SINGLE = {
    "model_utility": "Model utility",
    "forget_quality_p": "Forget quality, $p$",
    "forget_quality_ln_p": r"Forget quality, $\ln p$",
    "forget_quality_log10_p": r"Forget quality, $\log_{10} p$",
    "forget_quality_statistic": "Forget quality, KS $D$",
    "privleak_min_k": r"PrivLeak, Min-K\% (\%)",
}
_AGGREGATES = {
    "mem": "Mem, HM(1 - ES floor 1/L, 1 - EM, 1 - paraphrased answer, 1 - knowledge)",
    "priv_by_ratio": "Priv, HM over four attacks of min/max of the two AUC",
    "agg_mem_utility": "HM(Mem, model utility)",
    "agg_mem_priv_utility": "HM(Mem, Priv, model utility)",
}
_Cells = Mapping[tuple[str, str], Row]


def text_table(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The whole evaluation in plain text, with what each number is and how many rows are behind it."""
    cells = {(row.on, row.quantity): row for row in rows}
    blocks = [[f"model: {', '.join(dict.fromkeys(row.intervention for row in rows))}"], _means(cells)]
    if any(row.on == "choices" for row in rows):
        blocks.append(_choices(cells))
    if any(row.on != "choices" for row in rows):
        blocks += [_utility(cells), _quality(cells), _attacks(cells), _aggregates(cells)]
    if notes:
        blocks.append([f"note: {note}" for note in notes])
    return "\n\n".join("\n".join(block) for block in blocks if block) + "\n"


def latex_table(rows: Sequence[Row]) -> str:
    """The means as a ``tabular`` for booktabs, half-widths of the 95 % intervals beside them, numbers below."""
    cells = {(row.on, row.quantity): row for row in rows}
    sides, lines = _grid(cells)
    shown = [
        r"% needs \usepackage{booktabs}; means over rows, with half the 95 % interval",
        rf"\begin{{tabular}}{{l{'r' * max(1, len(sides))}}}",
        r"\toprule",
        " & ".join(["", *(escaped(side.replace("_", " ").capitalize()) for side in sides)]) + r" \\",
        r"\midrule",
    ]
    for label, found in lines:
        shown.append(" & ".join([escaped(label[0].upper() + label[1:]), *map(_latex_cell, found)]) + r" \\")
    single = [row for row in rows if row.quantity in _SINGLE and row.value is not None]
    if single:
        shown.append(r"\midrule")
    for row in single:
        mark = {FLOOR: " (floor)", IDENTICAL: " (identical)"}.get(row.status, "")
        gap = " &" * max(0, len(sides) - 1)
        shown.append(rf"{_SINGLE[row.quantity]}{mark} & {_number(row).replace('-', '$-$')}{gap} \\")
    return "\n".join([*shown, r"\bottomrule", r"\end{tabular}"]) + "\n"


def _grid(cells: _Cells) -> tuple[list[str], list[tuple[str, list[Row | None]]]]:
    """The sets there are, and of each quantity that one of them has, its label and its row on every set."""
    sides = [side for side in NAMES.values() if any((side, quantity) in cells for quantity in QUANTITIES)]
    lines = [(label, [cells.get((side, quantity)) for side in sides]) for quantity, label in QUANTITIES.items()]
    return sides, [line for line in lines if any(line[1])]


def _means(cells: _Cells) -> list[str]:
    sides, lines = _grid(cells)
    if not sides:
        return []
    counts = [max(row.n or 0 for _, found in lines if (row := found[k]) is not None) for k in range(len(sides))]
    grid = [["", *(side.replace("_", " ") for side in sides)], ["rows", *map(str, counts)]]
    grid += [[label, *map(_cell, found)] for label, found in lines]
    first, *others = (max(map(len, column)) for column in zip(*grid, strict=True))
    shown = []
    for label, *places in grid:
        aligned = [text.rjust(width) for text, width in zip(places, others, strict=True)]
        shown.append("   ".join([label.ljust(first), *aligned]).rstrip())
    return [*shown, _LEGEND]


def _utility(cells: _Cells) -> list[str]:
    parts = {
        side: {quantity: cells.get((side, quantity)) for quantity in (first, "rouge", "truth_ratio")}
        for side, first in _PARTS.items()
    }
    every = {f"{side} {quantity}": row for side, found in parts.items() for quantity, row in found.items()}
    whole = cells.get(("", "model_utility"))
    if whole is None:
        absent = [name for name, row in every.items() if row is None]
        return [f"model utility: not measured ({len(absent)} of its 9 parts are missing: {', '.join(absent)})"]
    lines = [f"model utility   {_number(whole)}   (harmonic mean of nine parts)"]
    zero = [name for name, row in every.items() if row is not None and row.value == 0]
    if zero:
        lines.append(f"  zero because of {', '.join(zero)}")
    for side, found in parts.items():
        listed = [f"{quantity} {_number(row)}" for quantity, row in found.items() if row is not None]
        lines.append(f"  {side.replace('_', ' ')}: {', '.join(listed)}")
    return lines


def _quality(cells: _Cells) -> list[str]:
    if ("forget", "forget_quality_p") not in cells:
        return ["forget quality: not measured (needs perturbed answers and --retrained)"]
    names = ("p", "ln_p", "log10_p", "statistic", "m", "floor")
    p, ln_p, log10_p, statistic, m, floor = (cells["forget", f"forget_quality_{name}"] for name in names)
    lines = [
        f"forget quality   p {_number(p)}   ln p {_number(ln_p)}   log10 p {_number(log10_p)}",
        f"  two-sample KS, exact: D {_number(statistic)}, n {p.n}, m {_number(m)}; "
        f"smallest p at these sizes {_number(floor)}",
    ]
    if p.status == FLOOR:
        lines.append("  at the floor: the two sets of truth ratios do not overlap, and p says nothing of how far apart")
    if p.status == IDENTICAL:
        lines.append("  identical: both models give the very same truth ratios; is it one model under two names?")
    return lines


def _attacks(cells: _Cells) -> list[str]:
    found = {quantity: row for (_, quantity), row in cells.items()}
    attacks = [q.removeprefix("auc_") for q in found if q.startswith("auc_") and not q.startswith("auc_retrained_")]
    if not attacks:
        return ["membership: not measured (needs --holdout rows)"]
    lines = ["membership, AUC   (1: forget rows are recognised as members; 0.5: chance; below: over-unlearned)"]
    for attack in attacks:
        theirs, leak = found.get(f"auc_retrained_{attack}"), found.get(f"privleak_{attack}")
        against = f"retrained {_number(theirs)}" if theirs else "chance 0.5"
        told = f"privleak {_number(leak)} % against {against}" if leak else f"privleak undefined: {against}"
        lines.append(f"  {attack.replace('_', '-')}: {_number(found[f'auc_{attack}'])}   {told}")
    return lines


def _aggregates(cells: _Cells) -> list[str]:
    found = [(label, cells.get(("", quantity))) for quantity, label in _AGGREGATES.items()]
    lines = [f"  {label}   {_number(row)}" for label, row in found if row is not None]
    heading = "aggregates as in OpenUnlearning, but for its fluency classifier, which is not asked"
    return [heading, *lines] if lines else []


def _choices(cells: _Cells) -> list[str]:
    names = ("accuracy", "guess", "entropy", "favourite_share")
    accuracy, guess, entropy, favourite = (cells["choices", f"mcq_{name}"] for name in names)
    assert None not in (accuracy.low, accuracy.high, guess.value)
    lines = [
        f"multiple choice   accuracy {_number(accuracy)}   95 % [{accuracy.low:.4g}, {accuracy.high:.4g}]   "
        f"n {accuracy.n}   blind guess {_number(guess)}",
        f"  entropy of the options {_number(entropy)} of the largest possible; "
        f"option {favourite.item} (from 0) takes {_number(favourite)} of the picks",
    ]
    if accuracy.low <= guess.value <= accuracy.high:  # type: ignore[operator]
        lines.append("  the guess line is within the interval: no knowledge is shown, nor that there is none")
    return lines


def _number(row: Row) -> str:
    return "n/f" if row.value is None else f"{row.value:.4g}"


def _cell(row: Row | None) -> str:
    if row is None or row.value is None:
        return "-" if row is None else "n/f"
    half = "" if row.low is None or row.high is None else f" ± {(row.high - row.low) / 2:.4f}"
    return f"{row.value:.4f}{half}"


def _latex_cell(row: Row | None) -> str:
    if row is None:
        return "--"
    value, sign, half = _cell(row).partition(" ± ")
    return value + (rf" {{\scriptsize$\pm$ {half}}}" if sign else "")
