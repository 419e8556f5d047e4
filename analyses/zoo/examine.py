"""Every model of the zoo made, measured and relearned; what is true of each."""

import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from analyses.zoo.claims import METHOD_FAMILIES, extras
from analyses.zoo.models import MEMBERS, Ground, Label, Member, Subject, ground
from probe.attacks.facts import Facts
from probe.attacks.relearning import relearn
from probe.attacks.score import Measure, Score
from probe.data import QA
from probe.datasets import rows_hash
from probe.metrics.intervals import Interval, grouped
from probe.sweep import sweep
from probe.testbed.facts import authors
from probe.verdict.measure import measure
from probe.verdict.rows import Protocol, VerdictRows, verdict_rows

REFERENCE = Member("the reference", "reference", "removed", lambda given: Subject(given.reference))
ALL = (REFERENCE, *MEMBERS)
BY_NAME = {member.name: member for member in ALL}
# A model that keeps less of what it should know is broken; one that tells more of what it should not is untouched.
BROKEN_BELOW, TOLD_ABOVE = 0.5, 0.5


def truth(label: Label | None, told: float, kept: float, comes_back: bool) -> Label:
    """What is true of a model, from how it was made and from what it does.

    Args:
        label: by construction; None where relearning decides.
        told: share of forget answers given back word by word.
        kept: retain choice, 0 at chance and 1 as the original.
        comes_back: whether relearning brings more back than in a model that never knew.
    """
    if label in ("removed", "untouched"):
        return label
    if kept < BROKEN_BELOW:
        return "broken"
    if told > TOLD_ABOVE:
        return "untouched"
    if label == "hidden":
        return label
    return "hidden" if comes_back else "removed"


PARTS = 2


def both_ways(
    tokenizer: Any, original: Any, forget: Sequence[QA], retain: Sequence[QA], protocol: Protocol, **how: Any
) -> tuple[VerdictRows, VerdictRows]:
    """What the verdict asks, and the same with shown and held-out rows exchanged."""
    asked, other = (
        verdict_rows(tokenizer, original, forget, retain, protocol=protocol, swap=swap, **how) for swap in (False, True)
    )
    return asked, other


def beyond(score: Score, never: Score, facts: Facts, quantity: Measure) -> Interval:
    """How much more than a model that never knew: a mean over rows, its interval over their groups."""
    return grouped(score.of(quantity) - never.of(quantity), facts.held_groups, within=(-1.0, 1.0))


def part_of(out: Path, models: Path, seed: int, part: int) -> Path:
    """Make and examine every model of one part of a seed."""
    folder = out / f"seed-{seed}-{part}"

    @cache
    def given() -> tuple[Ground, VerdictRows, VerdictRows]:
        base = ground(seed, models)
        rows = base.corpus.forget, base.half.retain
        return base, *both_ways(base.tokenizer, base.original, *rows, Protocol())

    @cache
    def never() -> Score:
        base, _, other = given()
        return relearned(base.reference, other)

    def run(name: str) -> dict[str, Any]:
        base, asked, other = given()
        member, began = BY_NAME[name], time.process_time()
        subject = member.make(base)
        made = time.process_time()
        with subject.opened(subject.model):
            numbers: dict[str, Any] = dict(measure(subject.model, asked).numbers)
            examined = time.process_time()
            if member.label in (None, "hidden", "broken"):
                more = beyond(relearned(subject.model, other), never(), other.facts, "choice")
                numbers |= {"relearn_excess": more.mean, "relearn_excess_low": more.low}
            if member.family in METHOD_FAMILIES:
                numbers |= extras(subject.model, base, asked)
        return numbers | {
            "family": member.family,
            "construction": member.label or "by relearning",
            "seconds_made": made - began,
            "seconds_examined": examined - made,
            "seconds": time.process_time() - began,
        }

    identity = {
        "protocol": asdict(Protocol()),
        "facts": rows_hash(authors(seed)),
        "torch": torch.__version__,
        "version": 1,
    }
    cells = [{"name": member.name} for member in ALL[part::PARTS]]
    return sweep(run, cells, folder, identity=identity)


def relearned(model: Any, other: VerdictRows) -> Score:
    """Held-out scores at the end of relearning, on rows that the verdict's own relearning only shows."""
    p = other.protocol
    settings: dict[str, Any] = {"steps": p.late, "lr": p.lr, "batch_size": p.batch_size}
    return relearn(model, other.facts, seeds=(p.seed + 1,), **settings).model.held[0][-1]
