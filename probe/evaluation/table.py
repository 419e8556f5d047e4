"""One model's evaluation as text and as LaTeX, from its rows alone."""

from collections.abc import Sequence

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
# In the order of model utility's nine parts, with the set and what the part is there.
_PARTS = {"retain": "probability", "real_authors": "normalised_probability", "world_facts": "normalised_probability"}
_BETWEEN = "   "


def text_table(rows: Sequence[Row], notes: Sequence[str] = ()) -> str:
    """The whole evaluation in plain text, with what each number is and how many rows are behind it."""
    lines = [*_heading(rows), *_means(rows)]
    blocks = [_choices(rows)]
    if any(row.on != "choices" for row in rows):
        blocks += [_utility(rows), _quality(rows), _attacks(rows), _aggregates(rows)]
    for block in blocks:
        lines += ["", *block] if block else []
    if notes:
        lines += ["", *(f"note: {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def latex_table(rows: Sequence[Row]) -> str:
    """The means as a ``tabular`` for booktabs, half-widths of the 95 % intervals beside them, numbers below."""
    sides = _sides(rows)
    lines = [
        r"% needs \usepackage{booktabs}; means over rows, with half the 95 % interval",
        rf"\begin{{tabular}}{{l{'r' * max(1, len(sides))}}}",
        r"\toprule",
        " & ".join(["", *(escaped(side.replace("_", " ").capitalize()) for side in sides)]) + r" \\",
        r"\midrule",
    ]
    cells = _cells(rows)
    for quantity, words in QUANTITIES.items():
        found = [cells.get((side, quantity)) for side in sides]
        if any(found):
            lines.append(" & ".join([escaped(words[0].upper() + words[1:]), *map(_latex_cell, found)]) + r" \\")
    single = [row for row in rows if row.quantity in _SINGLE and row.value is not None]
    if single:
        lines.append(r"\midrule")
    for row in single:
        mark = {FLOOR: " (floor)", IDENTICAL: " (identical)"}.get(row.status, "")
        gap = " &" * max(0, len(sides) - 1)
        lines.append(rf"{_SINGLE[row.quantity]}{mark} & {_number(row).replace('-', '$-$')}{gap} \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"


_SINGLE = {
    "model_utility": "Model utility",
    "forget_quality_p": "Forget quality, $p$",
    "forget_quality_ln_p": r"Forget quality, $\ln p$",
    "forget_quality_log10_p": r"Forget quality, $\log_{10} p$",
    "forget_quality_statistic": "Forget quality, KS $D$",
    "privleak_min_k": r"PrivLeak, Min-K\% (\%)",
}


def _heading(rows: Sequence[Row]) -> list[str]:
    names = dict.fromkeys(row.intervention for row in rows)
    return [f"model: {', '.join(names)}", ""]


def _cells(rows: Sequence[Row]) -> dict[tuple[str, str], Row]:
    return {(row.on, row.quantity): row for row in rows if row.diagnostic == "performance"}


def _sides(rows: Sequence[Row]) -> list[str]:
    seen = {row.on for row in rows if row.quantity in QUANTITIES}
    return [side for side in NAMES.values() if side in seen]


def _means(rows: Sequence[Row]) -> list[str]:
    cells, sides = _cells(rows), _sides(rows)
    if not sides:
        return []
    counts = [max(row.n or 0 for (on, _), row in cells.items() if on == side) for side in sides]
    grid = [["", *(side.replace("_", " ") for side in sides)], ["rows", *map(str, counts)]]
    for quantity, words in QUANTITIES.items():
        found = [cells.get((side, quantity)) for side in sides]
        if any(found):
            grid.append([words, *map(_cell, found)])
    widths = [max(len(line[k]) for line in grid) for k in range(len(grid[0]))]
    shown = []
    for line in grid:
        first, *others = line
        places = [text.rjust(width) for text, width in zip(others, widths[1:], strict=True)]
        shown.append(_BETWEEN.join([first.ljust(widths[0]), *places]).rstrip())
    legend = (
        "means over rows, ± half their 95 % interval; truth ratios: mean min(R, 1/R) on forget, "
        "mean max(0, 1 - R) elsewhere"
    )
    return [*shown, legend]


def _utility(rows: Sequence[Row]) -> list[str]:
    cells = _cells(rows)
    whole = next((row for row in rows if row.quantity == "model_utility"), None)
    parts = [
        (side, quantity, cells.get((side, quantity)))
        for side, first in _PARTS.items()
        for quantity in (first, "rouge", "truth_ratio")
    ]
    if whole is None:
        absent = [f"{side} {quantity}" for side, quantity, row in parts if row is None]
        return [f"model utility: not measured ({len(absent)} of its 9 parts are missing: {', '.join(absent)})"]
    zero = [f"{side} {quantity}" for side, quantity, row in parts if row is not None and row.value == 0]
    lines = [f"model utility   {_number(whole)}   (harmonic mean of nine parts)"]
    if zero:
        lines.append(f"  zero because of {', '.join(zero)}")
    for side in _PARTS:
        listed = [f"{quantity} {_number(row)}" for on, quantity, row in parts if on == side and row is not None]
        lines.append(f"  {side.replace('_', ' ')}: {', '.join(listed)}")
    return lines


def _quality(rows: Sequence[Row]) -> list[str]:
    found = {
        row.quantity.removeprefix("forget_quality_"): row for row in rows if row.quantity.startswith("forget_quality_")
    }
    if "p" not in found:
        return ["forget quality: not measured (needs perturbed answers and --retrained)"]
    p, floor = found["p"], found["floor"]
    lines = [
        f"forget quality   p {_number(p)}   ln p {_number(found['ln_p'])}   log10 p {_number(found['log10_p'])}",
        f"  two-sample KS, exact: D {_number(found['statistic'])}, n {p.n}, m {_number(found['m'])}; "
        f"smallest p at these sizes {_number(floor)}",
    ]
    if p.status == FLOOR:
        lines.append("  at the floor: the two sets of truth ratios do not overlap, and p says nothing of how far apart")
    if p.status == IDENTICAL:
        lines.append("  identical: both models give the very same truth ratios; is it one model under two names?")
    return lines


def _attacks(rows: Sequence[Row]) -> list[str]:
    found = {row.quantity: row for row in rows if row.quantity.startswith(("auc_", "privleak_"))}
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


_AGGREGATES = {
    "mem": "Mem, HM(1 - ES floor 1/L, 1 - EM, 1 - paraphrased answer, 1 - knowledge)",
    "priv_by_ratio": "Priv, HM over four attacks of min/max of the two AUC",
    "agg_mem_utility": "HM(Mem, model utility)",
    "agg_mem_priv_utility": "HM(Mem, Priv, model utility)",
}


def _aggregates(rows: Sequence[Row]) -> list[str]:
    lines = [f"  {_AGGREGATES[row.quantity]}   {_number(row)}" for row in rows if row.quantity in _AGGREGATES]
    heading = "aggregates as in OpenUnlearning, but for its fluency classifier, which is not asked"
    return [heading, *lines] if lines else []


def _choices(rows: Sequence[Row]) -> list[str]:
    found = {row.quantity: row for row in rows if row.on == "choices"}
    if not found:
        return []
    accuracy, guess, favourite = (found[f"mcq_{q}"] for q in ("accuracy", "guess", "favourite_share"))
    assert None not in (accuracy.low, accuracy.high, accuracy.value, guess.value)
    lines = [
        f"multiple choice   accuracy {_number(accuracy)}   95 % [{accuracy.low:.4g}, {accuracy.high:.4g}]   "
        f"n {accuracy.n}   blind guess {_number(guess)}",
        f"  entropy of the options {_number(found['mcq_entropy'])} of the largest possible; "
        f"option {favourite.item} (from 0) takes {_number(favourite)} of the picks",
    ]
    if accuracy.low <= guess.value <= accuracy.high:  # type: ignore[operator]
        lines.append("  the guess line is within the interval: no knowledge is shown, nor that there is none")
    return lines


def _number(row: Row) -> str:
    return "n/f" if row.value is None else f"{row.value:.4g}"


def _cell(row: Row | None) -> str:
    if row is None:
        return "-"
    if row.value is None:
        return "n/f"
    wide = row.low is not None and row.high is not None
    return f"{row.value:.4f}" + (f" ± {(row.high - row.low) / 2:.4f}" if wide else "")  # type: ignore[operator]


def _latex_cell(row: Row | None) -> str:
    if row is None:
        return "--"
    value, sign, half = _cell(row).partition(" ± ")
    return value + (rf" {{\scriptsize$\pm$ {half}}}" if sign else "")
