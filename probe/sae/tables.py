"""A dose-response study as rows for figures, and as text for the shell."""

from collections.abc import Sequence

import numpy as np

from probe.attacks.score import Measure, Score
from probe.metrics.intervals import Interval, grouped, grouped_share
from probe.rows import Row
from probe.sae.responses import HALVES, SIDES, DoseResponse, Half, On, loss_of

RESPONSE, CHOICE = "sae_response", "sae_choice"


def response_rows(found: DoseResponse) -> list[Row]:
    """All candidates on both halves, and the model without an edit.

    ``intervention`` says whose features, by which rule and what was done to them; ``item`` is their number, ``dose``
    the strength, ``layer`` the site's; the quantity begins with the half.
    """
    rows = [
        row
        for half in HALVES
        for on in SIDES
        for row in _scored(found, "no edit", half, on, getattr(found.plain[half], on), dose=0.0)
    ]
    for response in found.responses:
        c = response.candidate
        name = f"{c.source}{f' by {c.rule}' if c.rule else ''}, {c.strength.kind}"
        sides = {half: getattr(response, half) for half in HALVES}
        for half in HALVES:
            for on in SIDES:
                score = getattr(sides[half], on)
                rows += _scored(found, name, half, on, score, dose=c.strength.amount, item=c.n, layer=c.site.layer)
    return rows


def dose_choice_rows(found: DoseResponse) -> list[Row]:
    """What each source chooses: rises on the report half, on the select half, optimism, gap, verdict, SAEBench's score.

    The verdict is a row whose quantity is "verdict WORD"; "chosen FEATURES BY RULE, STRENGTH" names the choice.
    """
    rows: list[Row] = []
    for source in ("SAE", *found.controls):
        chosen = found.chosen(source)
        score = found.saebench(source)
        if score is not None:
            rows.append(Row(source, CHOICE, "saebench", score, "forget"))
        if chosen is None:
            continue
        one = chosen.response.candidate
        layer = one.site.layer
        for on in SIDES:
            rows.append(_interval(source, "rise", getattr(chosen, on), on, layer))
            seen = grouped(found.rise(chosen.response.select, "select", on), found.groups["select", on])
            rows.append(_interval(source, "rise on the choosing half", seen, on, layer))
            rows.append(Row(source, CHOICE, "optimism", chosen.optimism[on], on, layer=layer))
        what = one.name.removeprefix(source).strip(" :")
        rows.append(Row(source, CHOICE, f"chosen {what}", one.strength.amount, layer=layer, item=one.n))
        gap = None if source == "SAE" else found.gap(source)
        if gap is not None:
            rows.append(_interval(source, "gap", gap, "forget", layer))
        if source in found.words:
            word = found.words[source]
            rows.append(Row(source, CHOICE, f"verdict {word.word}", 1.0, layer=layer))
            rows.append(_interval(source, f"chosen beyond {word.against}", word.beyond, "forget", layer))
            rows.append(Row(source, CHOICE, "told", word.told, "forget", layer=layer))
            rows.append(Row(source, CHOICE, "kept", word.kept, "retain", layer=layer))
    return rows


def pareto_rows(found: DoseResponse) -> list[Row]:
    """The front of each source on the select half, at both halves: ``dose`` is the retain rise, the value the other."""
    rows = []
    for source in ("SAE", *found.controls):
        for place, one in enumerate(found.pareto(source)):
            for half in HALVES:
                cost, gain = (found.mean_rise(one, half, on) for on in ("retain", "forget"))
                rows.append(Row(source, "sae_pareto", f"{half} rise", gain, "forget", item=place, dose=cost))
    return rows


def text(found: DoseResponse) -> str:
    """The choices as a table, what each did in a sentence, and the warnings."""
    head = ("", "chosen on one half", "forget rise", "retain rise", "optimism", "SAE less this", "read as")
    lines = [head, *(found.line(source) for source in ("SAE", *found.controls))]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    said.append("")
    said.append(
        "Rises of the answers' loss (nats a token) on entities that nothing was chosen on, with 95 % t-intervals over "
        "entities. Optimism: how much lower the retain rise was on the entities it was chosen on."
    )
    scores = {source: found.saebench(source) for source in ("SAE", *found.controls)}
    listed = ", ".join(f"{source} {score:.3f}" for source, score in scores.items() if score is not None)
    if listed:
        said.append(f"SAEBench's score, chosen and reported on the same rows, hence optimistic: {listed}.")
    said += [f"{source}: {word.sentence}." for source, word in found.words.items()]
    said += [f"warning: {one}" for one in found.warnings]
    return "\n".join(said) + "\n"


def _interval(source: str, quantity: str, found: Interval, on: str, layer: int) -> Row:
    low, high = _finite(found.low), _finite(found.high)
    return Row(source, CHOICE, quantity, found.mean, on, layer=layer, low=low, high=high, n=found.n)


def _scored(
    found: DoseResponse,
    name: str,
    half: Half,
    on: On,
    one: Score,
    *,
    dose: float,
    item: int | None = None,
    layer: int | None = None,
) -> list[Row]:
    made = []
    quantities: Sequence[Measure | str] = ("loss", *one.measures)
    for quantity in quantities:
        groups = found.groups[half, on]
        # All measures but the loss lie between 0 and 1.
        at = grouped(loss_of(one), groups) if quantity == "loss" else grouped_share(one.of(quantity), groups)  # type: ignore[arg-type]
        low, high = _finite(at.low), _finite(at.high)
        made.append(
            Row(name, RESPONSE, f"{half} {quantity}", at.mean, on, layer, item, dose, low=low, high=high, n=at.n)
        )
    return made


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
