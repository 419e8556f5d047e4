"""What the rows say, in sentences a reader can act on. Thresholds are stated where they are used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from probe.report.lens import what_the_lens_reads
from probe.rows import Row

# A method "forgot" below this answer probability on forget rows, and "kept" above this one on retain rows.
FORGOT, KEPT = 0.2, 0.9
# Above this share of forget questions with the right answer ranked first of six (chance is 1/6), it is hidden.
STILL_RANKED = 0.5
REFERENCES = ("original", "retrained")


@dataclass(frozen=True)
class TableRow:
    """One line of the page's table."""

    cells: tuple[str, ...]
    reference: bool


@dataclass(frozen=True)
class Table:
    """The page's table."""

    head: tuple[str, ...]
    body: tuple[TableRow, ...]
    note: str


def value(rows: Sequence[Row], name: str, diagnostic: str, quantity: str, on: str = "") -> float | None:
    """The one number so named, or None."""
    for row in rows:
        sought = (row.intervention, row.diagnostic, row.quantity, row.on) == (name, diagnostic, quantity, on)
        if sought and row.layer is None and row.item is None:
            return row.value
    return None


def names(rows: Sequence[Row], diagnostic: str = "performance") -> list[str]:
    """Interventions in the order they were measured."""
    return list(dict.fromkeys(row.intervention for row in rows if row.diagnostic == diagnostic))


def word(rows: Sequence[Row], name: str) -> str:
    """One word for what an intervention did, by answer probability, ranking and collapse.

    Broken: retain answers were lost or logits collapsed on retain text. Kept: forget answers are still given.
    Hidden: forget answers are no longer given but the right one still ranks first in more than half the choices.
    Suppressed: none of these; whether it is removed, attacks would have to tell. The retrained model is the gold
    standard and judged by nothing.
    """
    if name == "retrained":
        return "never knew"
    forget = value(rows, name, "performance", "probability", "forget")
    retain = value(rows, name, "performance", "probability", "retain")
    choice = value(rows, name, "performance", "choice_accuracy", "forget")
    if forget is None or retain is None:
        return "not measured"
    if value(rows, name, "logit_collapse", "collapsed", "retain") == 1.0 or retain < 0.5:
        return "broken"
    if forget >= FORGOT:
        return "knows" if forget >= 0.5 else "weakened"
    if choice is not None and choice > STILL_RANKED:
        return "hidden"
    return "suppressed" if retain >= KEPT else "suppressed, at a cost"


def headline(rows: Sequence[Row]) -> list[str]:
    """The page's first lines: one per intervention."""
    lines = []
    for name in names(rows):
        forget = value(rows, name, "performance", "probability", "forget")
        retain = value(rows, name, "performance", "probability", "retain")
        if forget is None or retain is None:
            continue
        text = f"{name}: {word(rows, name)}. Forget answers have probability {forget:.2f}, retain answers {retain:.2f}"
        choice = value(rows, name, "performance", "choice_accuracy", "forget")
        if choice is not None:
            text += f"; the right forget answer ranks first among six in {choice:.0%} of questions (chance 17%)"
        lines.append(text + ".")
    return lines


def table(rows: Sequence[Row]) -> Table:
    """Performance by intervention."""
    columns: tuple[tuple[str, str, str, str], ...] = (
        ("Forget p ↓", "performance", "probability", "forget"),
        ("Forget ROUGE-L ↓", "performance", "rouge", "forget"),
        ("Forget ES ↓", "performance", "extraction_strength", "forget"),
        ("Forget 1 of 6", "performance", "choice_accuracy", "forget"),
        ("ln FQ ↑", "performance", "forget_quality_ln_p", "forget"),
        ("Retain p ↑", "performance", "probability", "retain"),
        ("Retain ROUGE-L ↑", "performance", "rouge", "retain"),
        ("Retain paraphrased p ↑", "performance", "paraphrased_probability", "retain"),
        ("World p ↑", "performance", "probability", "world"),
    )
    used = [c for c in columns if any(value(rows, n, c[1], c[2], c[3]) is not None for n in names(rows))]
    body = []
    for name in names(rows):
        numbers = [value(rows, name, *column[1:]) for column in used]
        cells = ["–" if x is None else _rounded(x) for x in numbers]
        body.append(TableRow((name, *cells, word(rows, name)), name in REFERENCES))
    note = (
        f"p is the answer's probability per token, ES extraction strength, FQ the exact KS p-value of truth ratios "
        f"against the retrained model. Read as: broken where retain p < 0.5 or logits collapse on retain text; knows "
        f"where forget p ≥ 0.5, weakened where ≥ {FORGOT}; hidden where the right answer still ranks first in more "
        f"than {STILL_RANKED:.0%} of choices; otherwise suppressed, at a cost where retain p < {KEPT}. "
        "“Suppressed” does not mean removed: that takes attacks."
    )
    return Table(("", *(c[0] for c in used), "read as"), tuple(body), note)


def _rounded(x: float) -> str:
    x = round(x, 2 if abs(x) < 10 else 1) or 0.0  # no minus before a zero
    return (f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}").replace("-", "−")


def findings(rows: Sequence[Row], diagnostic: str) -> list[str]:
    """What one diagnostic says."""
    return SAYS[diagnostic]([row for row in rows if row.diagnostic == diagnostic])


def _performance(rows: Sequence[Row]) -> list[str]:
    lines = []
    scored = [(n, value(rows, n, "performance", "probability", "forget")) for n in names(rows) if n not in REFERENCES]
    kept = [
        (n, forget)
        for n, forget in scored
        if forget is not None and (value(rows, n, "performance", "probability", "retain") or 0) >= KEPT
    ]
    if kept:
        best, forget = min(kept, key=lambda pair: pair[1])
        lines.append(f"Of those that keep retain answers at {KEPT} or more, {best} forgets most ({forget:.2f}).")
    else:
        lines.append(f"No intervention keeps retain answers at {KEPT} or more.")
    gold = value(rows, "retrained", "performance", "probability", "forget")
    below = [n for n, forget in scored if gold is not None and forget is not None and forget < 0.5 * gold]
    if gold is not None:
        lines.append(f"A model that never saw the forget data gives its answers probability {gold:.2f}.")
    if below:
        lines.append(f"Well below it, which never-trained models are not, lie {', '.join(below)}: over-unlearned.")
    return lines


def _g_effect(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "g_effect"):
        if name in REFERENCES:
            continue
        own = [r for r in rows if r.intervention == name and r.layer is not None and r.value is not None]
        parts = []
        for on in ("forget", "retain"):
            by_layer = {r.layer: abs(r.value or 0.0) for r in own if r.on == on}
            total = value(rows, name, "g_effect", "total", on)
            if not by_layer or total is None:
                continue
            top = max(by_layer, key=lambda layer: by_layer[layer])
            share = by_layer[top] / (sum(by_layer.values()) or 1.0)
            direction = "raises" if total < 0 else "lowers"
            parts.append(
                f"a further step {direction} the {on} loss (e = {total:.2g}), most at layer {top} ({share:.0%})"
            )
        if parts:
            lines.append(f"{name}: {'; '.join(parts)}.")
    return lines


def _separability(rows: Sequence[Row]) -> list[str]:
    best = {}
    for name in names(rows, "separability"):
        found = [(r.value or 0.0, r.layer) for r in rows if r.intervention == name and r.quantity == "auc"]
        if found:
            best[name] = max(found)
    lines = [
        f"{n}: a linear probe separates best at layer {layer} (AUROC {auc:.2f})." for n, (auc, layer) in best.items()
    ]
    gold = best.get("retrained")
    if gold is not None:
        above = [n for n, (auc, _) in best.items() if n not in REFERENCES and auc > gold[0] + 0.05]
        if above:
            lines.append(
                f"More separable than in the retrained model by over 0.05: {', '.join(above)}. "
                "These models recognise the forget data rather than no longer knowing it."
            )
    return lines


def _fragility(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "fragility"):
        for on, what in (("forget", "forgetting"), ("retain", "utility")):
            found = [
                (r.value, r.layer)
                for r in rows
                if r.intervention == name and r.on == on and r.layer is not None and r.value is not None
            ]
            if found and name != "original":
                low, layer = min(found)
                lines.append(f"Of {name}'s layers, {layer} alone moves {what} most: {on} probability {low:.2f}.")
    return lines


def _logit_collapse(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "logit_collapse"):
        where = [on for on in ("forget", "retain") if value(rows, name, "logit_collapse", "collapsed", on) == 1.0]
        share = value(rows, name, "logit_collapse", "entropy_share", "forget")
        if where:
            lines.append(
                f"{name}: logits collapsed on {' and '.join(where)} text (entropy {share or 0:.0%} of uniform)."
            )
    return lines or ["No intervention collapsed the logits by the stated thresholds."]


def _pca(rows: Sequence[Row]) -> list[str]:
    return ["Axes are fitted to the original model and reused, so that movement is movement of the states."]


def _dose(rows: Sequence[Row]) -> list[str]:
    lines = []
    for name in names(rows, "dose"):
        responses: dict[tuple[float, int | None], dict[str, float]] = {}
        for row in rows:
            if row.intervention == name and row.value is not None and row.dose is not None:
                responses.setdefault((row.dose, row.item), {})[row.on] = row.value
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
        text = f"{name}: on new people the loss rises by {_spread(forget)} on forget and {_spread(retain)} on retain"
        if seen is not None and name == "SAE":
            text += f" ({_rounded(seen.value or 0.0)} where it was chosen)"
        lines.append(f"{text}; read as {words[name]}." if name in words else f"{text}.")
        gap = by.get((name, "gap", "forget"))
        if gap is not None and not (gap.low is not None and gap.low > 0):
            lines.append(f"The SAE does not beat {name}: it raises the forget loss by {_spread(gap)} more.")
    lines.append("One rule (mean difference), this report's rows; `probe sae suppress` tries more rules on more rows.")
    return lines


def _spread(row: Row) -> str:
    """A value with its interval."""
    value = _rounded(row.value or 0.0)
    return value if row.low is None or row.high is None else f"{value} [{_rounded(row.low)}, {_rounded(row.high)}]"


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
