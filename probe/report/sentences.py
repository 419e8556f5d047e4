"""What the rows say, in sentences a reader can act on. Thresholds and intervals stand beside the values."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from probe.report.lens import what_the_lens_reads
from probe.report.words import (
    BROKEN,
    FORGOT,
    KEPT,
    REFERENCES,
    Measure,
    collapsed_on,
    found,
    lowest,
    measure_of,
    names,
    rounded,
    value,
    word,
)
from probe.rows import Row


class TableRow(NamedTuple):
    """One line of the page's table."""

    cells: tuple[str, ...]
    reference: bool


class PageTable(NamedTuple):
    """The page's table."""

    head: tuple[str, ...]
    body: tuple[TableRow, ...]
    note: str


def headline(rows: Sequence[Row]) -> list[str]:
    """The page's first lines: one per intervention."""
    lines = []
    chance = value(rows, "original", "performance", "choice_chance", "forget")
    for name in names(rows):
        forget, retain = (found(rows, name, "performance", "probability", on) for on in ("forget", "retain"))
        if forget is None or retain is None:
            continue
        text = f"{name}: {word(rows, name)}. Forget answers have probability {forget}, retain answers {retain}"
        choice = found(rows, name, "performance", "choice_accuracy", "forget")
        if choice is not None:
            text += f"; the right forget answer ranks first in {choice} of questions"
            text += "" if chance is None else f" (chance {rounded(chance)})"
        lines.append(text + ".")
    return lines


def performance_table(rows: Sequence[Row]) -> PageTable:
    """Performance by intervention."""
    columns = {
        "Forget p ↓": ("probability", "forget"),
        "Forget ROUGE-L ↓": ("rouge", "forget"),
        "Forget ES ↓": ("extraction_strength", "forget"),
        "Forget choice": ("choice_accuracy", "forget"),
        "ln FQ ↑": ("forget_quality_ln_p", "forget"),
        "Retain p ↑": ("probability", "retain"),
        "Retain ROUGE-L ↑": ("rouge", "retain"),
        "Retain paraphrased p ↑": ("paraphrased_probability", "retain"),
        "World p ↑": ("probability", "world"),
    }
    cells = {head: [value(rows, name, "performance", *what) for name in names(rows)] for head, what in columns.items()}
    cells = {head: numbers for head, numbers in cells.items() if any(x is not None for x in numbers)}
    body = []
    for k, name in enumerate(names(rows)):
        shown = ("–" if x is None else rounded(x) for x in (numbers[k] for numbers in cells.values()))
        body.append(TableRow((name, *shown, word(rows, name)), name in REFERENCES))
    never = value(rows, "retrained", "performance", "probability", "forget") is not None
    forgot = "told apart from the retrained model’s" if never else f"at least {FORGOT} of the original’s"
    floor = "in the retrained model" if never else "by chance"
    note = (
        "p is the answer's probability per token, ES extraction strength, choice how often the right answer is more "
        "probable than every wrong one, FQ the exact KS p-value of truth ratios against the retrained model. Read "
        f"against the original: broken where less than {BROKEN} of its retain p is left or logits collapse on retain "
        "text as its own do not; no change shown where forget p is not told apart from its own; weakened where it is "
        f"lower and still {forgot}; hidden where the right answer still ranks first more often than {floor}; otherwise "
        "suppressed; at a cost where retain p is lower. Numbers are told apart where their 95 % intervals over groups "
        "(Wilson's form) do not meet. “Suppressed” does not mean removed: that takes attacks."
    )
    return PageTable(("", *cells, "read as"), tuple(body), note)


def findings(rows: Sequence[Row], diagnostic: str) -> list[str]:
    """What one diagnostic says."""
    return SAYS[diagnostic]([row for row in rows if row.diagnostic == diagnostic])


def _performance(rows: Sequence[Row]) -> list[str]:
    own = [n for n in names(rows) if n not in REFERENCES]
    pairs = [(n, found(rows, n, "performance", "probability", "forget")) for n in own]
    scored = [(n, forget) for n, forget in pairs if forget is not None]
    return [*_forgets_most(rows, scored), *_against_never(rows, scored)]


def _forgets_most(rows: Sequence[Row], scored: Sequence[tuple[str, Measure]]) -> list[str]:
    kept = value(rows, "original", "performance", "probability", "retain")
    before = found(rows, "original", "performance", "probability", "forget")
    if kept is None or before is None:
        return []
    least = KEPT * kept
    share = f"{KEPT} of the original's retain probability ({rounded(least)})"
    retain = {n: value(rows, n, "performance", "probability", "retain") or 0.0 for n, _ in scored}
    keeping = [(n, forget) for n, forget in scored if retain[n] >= least]
    if not keeping:
        return [f"No intervention keeps {share}."]
    keeping = [(n, forget) for n, forget in keeping if forget.high < before.low]
    if not keeping:
        return [f"Of those that keep {share}, none is shown to forget: their intervals meet the original's ({before})."]
    first = lowest(keeping)
    said = ", ".join(f"{n} ({forget})" for n, forget in keeping if n in first)
    if len(first) == 1:
        return [f"Of those that keep {share}, {said} forgets most."]
    return [f"Of those that keep {share}, these forget most, and their intervals do not tell them apart: {said}."]


def _against_never(rows: Sequence[Row], scored: Sequence[tuple[str, Measure]]) -> list[str]:
    gold = found(rows, "retrained", "performance", "probability", "forget")
    if gold is None:
        return []
    lines = [f"A model that never saw the forget data gives its answers probability {gold}."]
    below = [f"{n} ({forget})" for n, forget in scored if forget.high < gold.low]
    if below:
        lines.append(f"Below it, which a model that never knew is not, lie {', '.join(below)}: over-unlearned.")
    return lines


def _g_effect(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "g_effect"):
        if name in REFERENCES:
            continue
        own = [r for r in rows if r.intervention == name]
        parts = [part for on in ("forget", "retain") if (part := _step(own, name, on))]
        called = [r.quantity.removeprefix("objective ") for r in own if r.quantity.startswith("objective ")]
        of = f" of {called[0]}" if called else ""
        if parts:
            lines.append(f"{name}: a further step{of} {'; it '.join(parts)}.")
    return lines


def _step(own: Sequence[Row], name: str, on: str) -> str:
    """What a step does to one loss, and which block has the largest part in that direction."""
    by_layer = {r.layer: r.value for r in own if r.on == on and r.layer is not None and r.value is not None}
    total = value(own, name, "g_effect", "total", on)
    if not by_layer or total is None:
        return ""
    text = f"{'raises' if total < 0 else 'lowers'} the {on} loss (e = {total:.2g})"
    along = {layer: e for layer, e in by_layer.items() if e * total > 0}
    if not along:
        return f"{text}, by no block's part: it lies in embeddings, final norm and head"
    top = max(along, key=lambda layer: abs(along[layer]))
    return (
        f"{text}; of the blocks, {top} has the largest part that way ({along[top]:.2g}, {along[top] / total:.0%} of e)"
    )


def _separability(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "separability"):
        aucs = [(measure_of(r), r.layer) for r in rows if r.intervention == name and r.quantity == "auc"]
        if aucs:
            low, (high, layer) = min(a.value for a, _ in aucs), max(aucs, key=lambda pair: pair[0].value)
            lines.append(f"{name}: AUROC {rounded(low)} to {high} over layers, the largest at layer {layer}.")
    words = found(rows, "original", "separability", "words alone")
    if words is not None:
        lines.append(f"The words of the questions alone, before any block: {words}.")
    if "retrained" not in names(rows, "separability"):
        return [
            *lines,
            "There is no retrained model to compare with, and nothing can be read from these numbers alone: topics, "
            "names and wording tell forget from retain rows in a model that never saw either.",
        ]
    beyond = [r for r in rows if r.quantity == "beyond retrained" and r.low is not None and r.low > 0]
    for name in dict.fromkeys(r.intervention for r in beyond):
        top = max((r for r in beyond if r.intervention == name), key=lambda r: r.low or 0.0)
        lines.append(
            f"{name} tells forget from retain rows better than the retrained model does (layer {top.layer}: by "
            f"{measure_of(top)}): it may recognise the forget data rather than no longer know it. One retrained model "
            "says nothing of how far such models differ among themselves."
        )
    return lines if beyond else [*lines, "No intervention is told apart from the retrained model by these rows."]


def _fragility(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in (n for n in names(rows, "fragility") if n not in REFERENCES):
        for on in ("forget", "retain"):
            changes = [
                (str(r.layer), measure_of(r))
                for r in rows
                if (r.intervention, r.on, r.quantity) == (name, on, "change") and r.layer is not None
            ]
            sized = [(layer, m) for layer, m in changes if m.low > 0 or m.high < 0]
            if not changes:
                continue
            if not sized:
                lines.append(f"None of {name}'s layers, alone in the original, moves the {on} probability for sure.")
                continue
            # Sizes turned round, so that the least is the largest change.
            turned = [(layer, Measure(-abs(m.value), -max(abs(m.low), abs(m.high)), -min(abs(m.low), abs(m.high))))
                      for layer, m in sized]  # fmt: skip
            first = lowest(turned)
            said = ", ".join(f"{layer} ({m})" for layer, m in sized if layer in first)
            most = "most" if len(first) == 1 else "most, not told apart by their intervals"
            lines.append(f"Of {name}'s layers, alone in the original, these move the {on} probability {most}: {said}.")
    if lines:
        lines.append("Measured on the rows that layers are chosen by, which are not those of the table.")
    return lines


def _logit_collapse(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in (n for n in names(rows, "logit_collapse") if n not in REFERENCES):
        where = collapsed_on(rows, name)
        share = value(rows, name, "logit_collapse", "entropy_share", "forget")
        if where:
            lines.append(
                f"{name}: logits collapsed on {' and '.join(where)} text (entropy {share or 0:.0%} of uniform)."
            )
    return lines or ["No intervention crosses a threshold of collapse that the original does not cross."]


def _pca(rows: Sequence[Row]) -> list[str]:
    return ["Axes are fitted to the original model and reused, so that movement is movement of the states."]


def _dose(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "dose"):
        responses: dict[tuple[float, int | None], dict[str, float]] = {}
        for row in rows:
            if row.intervention == name and row.value is not None and row.dose is not None:
                responses.setdefault((row.dose, row.item), {})[row.on] = row.value
        # Of an unfinished file one side may be there alone.
        responses = {key: found for key, found in responses.items() if {"forget", "retain"} <= found.keys()}
        zero = [found["forget"] for (dose, _), found in responses.items() if dose == 0]
        if zero:
            lines.append(f"{name}: at dose 0 the forget probability is {min(zero):.2f}.")
        good = [(found["forget"], key) for key, found in responses.items() if found["retain"] >= KEPT]
        if good:
            forget, (dose, count) = min(good, key=lambda pair: pair[0])
            if dose == 0:
                lines.append(f"{name}: no dose lowers it while retain answers stay at {KEPT} or more.")
                continue
            of = f", {count} features" if count is not None else ""
            lines.append(
                f"{name}: with retain at {KEPT} or more, forget falls to {forget:.2f} at best (dose {dose:g}{of})."
            )
    return lines


def _sae_choice(rows: Sequence[Row]) -> list[str]:
    lines = []
    by = {(row.intervention, row.quantity, row.on): row for row in rows}
    words = {r.intervention: r.quantity.removeprefix("verdict ") for r in rows if r.quantity.startswith("verdict ")}
    for name in dict.fromkeys(row.intervention for row in rows):
        forget, retain = by.get((name, "rise", "forget")), by.get((name, "rise", "retain"))
        if forget is None or retain is None:
            continue
        seen = by.get((name, "rise on the choosing half", "retain"))
        text = (
            f"{name}: on new people the loss rises by {measure_of(forget)} on forget and {measure_of(retain)} on retain"
        )
        if seen is not None and name == "SAE":
            text += f" ({rounded(seen.value or 0.0)} where it was chosen)"
        lines.append(f"{text}; read as {words[name]}." if name in words else f"{text}.")
        gap = by.get((name, "gap", "forget"))
        if gap is not None and not (gap.low is not None and gap.low > 0):
            lines.append(f"The SAE does not beat {name}: it raises the forget loss by {measure_of(gap)} more.")
    lines.append("One rule (mean difference), this report's rows; `probe sae suppress` tries more rules on more rows.")
    return lines


SAYS: dict[str, Callable[[Sequence[Row]], list[str]]] = {
    "performance": _performance,
    "g_effect": _g_effect,
    "separability": _separability,
    "fragility": _fragility,
    "logit_collapse": _logit_collapse,
    "pca": _pca,
    "logit_lens": what_the_lens_reads,
    "dose": _dose,
    "sae_choice": _sae_choice,
}
