"""Published claims about SAE suppression, judged by the numbers of the SAE studies."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from analyses.shared import Record

RowOf = Mapping[str, Any]
# Largest mean rise of the retain loss on the rows for choosing, in nats a token.
BUDGET = 0.1


def rows_in(record: Record) -> list[RowOf]:
    """The rows of a record as plain values."""
    return list(json.loads(record["rows"]))


def losses(rows: Sequence[RowOf], half: str, on: str) -> dict[tuple[str, int | None, float], float]:
    """(intervention, features, dose) -> mean loss."""
    return {
        (r["intervention"], r["item"], r["dose"]): r["value"]
        for r in rows
        if (r["diagnostic"], r["quantity"], r["on"]) == ("sae_response", f"{half} loss", on)
    }


def one(rows: Sequence[RowOf], source: str, quantity: str, on: str) -> RowOf | None:
    """The "sae_choice" row so named."""
    wanted = (source, "sae_choice", quantity, on)
    return next((r for r in rows if (r["intervention"], r["diagnostic"], r["quantity"], r["on"]) == wanted), None)


def spelt(row: RowOf | None) -> str:
    """A value with its interval."""
    if row is None:
        return "-"
    if row["low"] is None:
        return f"{row['value']:.3g}"
    return f"{row['value']:.3g} [{row['low']:.3g}, {row['high']:.3g}]"


def dose_claims(records: Sequence[Record], subject: str) -> list[str]:
    """Zero ablation, optimism of the choice, and what is left of the answers."""
    said = [f"{subject}, {len(records)} divisions of the people into halves; losses in nats a token."]
    for record in records:
        rows = rows_in(record)
        forget, retain = losses(rows, "report", "forget"), losses(rows, "report", "retain")
        base = {on: found["no edit", None, 0.0] for on, found in (("forget", forget), ("retain", retain))}
        cheap = {k: v - base["forget"] for k, v in forget.items() if k in retain and retain[k] - base["retain"] <= 0.5}
        zero = max((v for k, v in cheap.items() if k[0].endswith(", zero")), default=0.0)
        most = max(v for k, v in cheap.items() if not k[0].endswith(", zero"))
        verdict = "holds" if zero < 0.2 * most else "does not hold"
        said.append(
            f"Zero ablation is ineffective, values below zero are needed (arXiv 2410.19278): {verdict}; zeroing raises "
            f"the forget loss by {zero:.3f} at most, values below zero by {most:.3f}, at retain rises of 0.5 at most."
        )
        said += _optimism(rows, BUDGET)
        words = json.loads(record["words"])
        said += [f"What the chosen edit did: {word}." for word in words.values()]
    return said


def _optimism(rows: Sequence[RowOf], budget: float) -> list[str]:
    retain, chosen = one(rows, "SAE", "rise", "retain"), one(rows, "SAE", "rise on the choosing half", "retain")
    forget, there = one(rows, "SAE", "rise", "forget"), one(rows, "SAE", "rise on the choosing half", "forget")
    if retain is None:
        return ["No edit stays within the budget where it is chosen."]
    lines = [
        "Choosing and reporting on the same people is optimistic (the SAEBench protocol): where it was chosen the edit "
        f"raises forget by {spelt(there)} and retain by {spelt(chosen)}; on other people forget by {spelt(forget)} and "
        f"retain by {spelt(retain)}."
    ]
    score = one(rows, "SAE", "saebench", "forget")
    if score is not None:
        lines.append(f"SAEBench's score here: {score['value']:.3f}.")
    rises = {half: _rises(losses(rows, half, "retain")) for half in ("select", "report")}
    kept = [key for key, rise in rises["select"].items() if rise <= budget]
    broken = [rises["report"][key] for key in kept if rises["report"][key] > budget]
    worst = f", the worst by a rise of {max(broken):.3g}" if broken else ""
    lines.append(
        f"Of {len(rises['select'])} settings {len(kept)} keep the budget of {budget:g} where they may be chosen; of "
        f"these {len(broken)} break it on other people{worst}."
    )
    return lines


def _rises(found: Mapping[tuple[str, int | None, float], float]) -> dict[tuple[str, int | None, float], float]:
    """Each setting's loss less that of the model without an edit."""
    plain = found["no edit", None, 0.0]
    return {key: value - plain for key, value in found.items() if key[0] != "no edit"}


def control_claims(records: Sequence[Record], subject: str) -> list[str]:
    """What the SAE does beyond its controls, and whether detecting, or silence, is forgetting."""
    studies = [r for r in records if r["part"] == "controls"]
    said = [f"{subject}, {len(studies)} divisions of the people into halves, other random draws in each."]
    for record in studies:
        said += _beaten(rows_in(record))
        said += [f"{source}: {word}." for source, word in json.loads(record["words"]).items()]
    said += _layers([row for r in records if r["part"].startswith("layer") for row in rows_in(r)])
    return said + [line for r in records for line in json.loads(r.get("more", "[]"))]


def _beaten(rows: Sequence[RowOf]) -> list[str]:
    ours = one(rows, "SAE", "rise", "forget")
    said = [f"The SAE's choice raises the forget loss by {spelt(ours)} on people it was not chosen on."]
    for source in dict.fromkeys(r["intervention"] for r in rows if r["diagnostic"] == "sae_choice"):
        gap, rise = one(rows, source, "gap", "forget"), one(rows, source, "rise", "forget")
        if gap is not None:
            share = "" if rise is None or ours is None else f" ({rise['value'] / ours['value']:.0%} of the SAE's)"
            beats = "beats it" if gap["low"] is not None and gap["low"] > 0 else "does not beat it"
            said.append(f"{source}: {spelt(rise)}{share}; the SAE {beats}, by {spelt(gap)}.")
    return said


def _layers(rows: Sequence[RowOf]) -> list[str]:
    said = []
    for layer in sorted({r["layer"] for r in rows}):
        own = {(r["quantity"], r["on"]): r for r in rows if r["layer"] == layer}
        found = own["detection", "forget"]["value"]
        said.append(
            f"Layer {layer}: the best feature tells forget from retain rows with AUROC {found:.3f} on other people; "
            f"the best edit raises forget by {spelt(own.get(('removal', 'forget')))}, retain by "
            f"{spelt(own.get(('removal', 'retain')))}."
        )
    return said
