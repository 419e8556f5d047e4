"""One word for what an intervention did, always against the original and, where there is one, the retrained model."""

from collections.abc import Sequence
from dataclasses import dataclass

from probe.diagnostics.logit_collapse import THRESHOLDS
from probe.rows import Row

# Shares of what the original gives: less is forgotten, more is kept, and below half of the retain answers is broken.
FORGOT, KEPT, BROKEN = 0.2, 0.9, 0.5
REFERENCES = ("original", "retrained")


@dataclass(frozen=True)
class Measure:
    """One number with its interval; without one it is taken as exact."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        ends = "" if self.low == self.high else f" [{rounded(self.low)}, {rounded(self.high)}]"
        return rounded(self.value) + ends


def found(rows: Sequence[Row], name: str, diagnostic: str, quantity: str, on: str = "") -> Measure | None:
    """The one number so named, with its interval, or None."""
    for row in rows:
        sought = (row.intervention, row.diagnostic, row.quantity, row.on) == (name, diagnostic, quantity, on)
        if sought and row.layer is None and row.item is None and row.value is not None:
            return measure_of(row)
    return None


def measure_of(row: Row) -> Measure:
    """The row's number with its interval."""
    value = row.value or 0.0
    return Measure(value, value if row.low is None else row.low, value if row.high is None else row.high)


def value(rows: Sequence[Row], name: str, diagnostic: str, quantity: str, on: str = "") -> float | None:
    """The one number so named, or None."""
    one = found(rows, name, diagnostic, quantity, on)
    return None if one is None else one.value


def names(rows: Sequence[Row], diagnostic: str = "performance") -> list[str]:
    """Interventions in the order they were measured."""
    return list(dict.fromkeys(row.intervention for row in rows if row.diagnostic == diagnostic))


def collapsed_on(rows: Sequence[Row], name: str) -> list[str]:
    """On which side logits cross a threshold that the original's do not: an untouched model is never collapsed."""
    return [
        on
        for on in ("forget", "retain")
        if any(
            value(rows, name, "logit_collapse", f"crossed {kind}", on) == 1.0
            and value(rows, "original", "logit_collapse", f"crossed {kind}", on) != 1.0
            for kind in THRESHOLDS
        )
    ]


def word(rows: Sequence[Row], name: str) -> str:
    """One word for what an intervention did; original and retrained model are what it is held against.

    Broken: less than half of the original's retain probability is left, or logits collapsed on retain text.
    No change shown: the forget probability is not told apart from the original's. Weakened: below it, and still above a
    fifth of it (above the retrained model's, where there is one). Hidden: forgotten so, but the right answer still
    ranks first more often than by chance (than in the retrained model). Suppressed: none of these; whether it is
    removed, attacks would have to tell. At a cost: the retain probability is below the original's. Numbers are told
    apart where their intervals do not meet.
    """
    if name in REFERENCES:
        return "never knew" if name == "retrained" else "reference"
    forget, retain = (found(rows, name, "performance", "probability", on) for on in ("forget", "retain"))
    before, kept = (found(rows, "original", "performance", "probability", on) for on in ("forget", "retain"))
    if forget is None or retain is None or before is None or kept is None:
        return "not measured"
    if retain.high < BROKEN * kept.value or "retain" in collapsed_on(rows, name):
        return "broken"
    never = found(rows, "retrained", "performance", "probability", "forget")
    forgotten = forget.value < FORGOT * before.value if never is None else forget.low <= never.high
    if forget.high >= before.low:
        return "no change shown"
    cost = ", at a cost" if retain.high < kept.low else ""
    if not forgotten:
        return "weakened" + cost
    return ("hidden" if _still_ranked(rows, name) else "suppressed") + cost


def _still_ranked(rows: Sequence[Row], name: str) -> bool:
    choice = found(rows, name, "performance", "choice_accuracy", "forget")
    floor = found(rows, "retrained", "performance", "choice_accuracy", "forget")
    floor = floor or found(rows, "original", "performance", "choice_chance", "forget")
    return choice is not None and floor is not None and choice.low > floor.high


def lowest(pairs: Sequence[tuple[str, Measure]]) -> list[str]:
    """Those that no interval sets apart from the smallest number."""
    least = min((one for _, one in pairs), key=lambda one: one.value)
    return [name for name, one in pairs if one.low <= least.high]


def rounded(x: float) -> str:
    """Two digits after the point below ten, one above."""
    x = round(x, 2 if abs(x) < 10 else 1) or 0.0  # no minus before a zero
    return (f"{x:.2f}" if abs(x) < 10 else f"{x:.1f}").replace("-", "−")
