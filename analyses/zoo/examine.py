"""Models whose truth is known, every diagnostic on each, and a verdict with its error rate.

    python -m analyses.build_zoo

A finished model is never made again. Parts may be run side by side with --only; a last call without it fits the
verdict, draws the figures and writes docs/validity.md.
"""

import time
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import tyro

from analyses.zoo.claims import METHOD_FAMILIES, extras
from analyses.zoo.models import MEMBERS, Ground, Label, Member, Subject, ground
from probe.attacks.relearning import relearn
from probe.attacks.score import Score
from probe.datasets import rows_hash
from probe.metrics.intervals import grouped
from probe.sweep import sweep
from probe.testbed.facts import authors
from probe.verdict.material import Material, Protocol, material
from probe.verdict.measure import measure

REFERENCE = Member("the reference", "reference", "removed", lambda given: Subject(given.reference))
ALL = (REFERENCE, *MEMBERS)
BY_NAME = {member.name: member for member in ALL}
# A model that keeps less of what it should know is broken; one that tells more of what it should not is untouched.
BROKEN_BELOW, TOLD_ABOVE = 0.5, 0.5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Which models, and where everything goes."""

    seeds: int = 3
    """Worlds of facts, each with its own original."""
    only: tuple[str, ...] = ()
    """Make these parts (SEED-PART: 0-0 0-1 1-0 ...) and stop, so that several processes can share the work."""
    out: Path = Path("results/zoo")
    """Folder of the run."""
    cache: Path = Path("results/cache/zoo")
    """Folder of trained models."""
    docs: Path = Path("docs")
    """Where validity.md and its figures go."""


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


def part_of(arguments: Arguments, seed: int, part: int) -> Path:
    """Make and examine every model of one part of a seed."""
    folder = arguments.out / f"seed-{seed}-{part}"

    @cache
    def given() -> tuple[Ground, Material, Material]:
        base = ground(seed, arguments.cache)
        made = [
            material(
                base.tokenizer, base.original, base.corpus.forget, base.half.retain, protocol=Protocol(), swap=swap
            )
            for swap in (False, True)
        ]
        return base, made[0], made[1]

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
                back = relearned(subject.model, other)
                more = grouped(back.of("choice") - never().of("choice"), other.facts.held_groups)
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


def relearned(model: Any, other: Material) -> Score:
    """Held-out scores at the end of relearning, on rows that the verdict's own relearning only shows."""
    p = other.protocol
    settings = {"steps": p.late, "lr": p.lr, "batch_size": p.batch_size}
    return relearn(model, other.facts, seeds=(p.seed + 1,), **settings).model.held[0][-1]


def main() -> None:
    """Run all of it."""
    arguments = tyro.cli(Arguments, description=__doc__)
    every = [f"{seed}-{part}" for seed in range(arguments.seeds) for part in range(PARTS)]
    for name in arguments.only or every:
        if name not in every:
            raise SystemExit(f"no part {name!r}; there are {', '.join(every)}")
        seed, part = map(int, name.split("-"))
        print(part_of(arguments, seed, part))
    if not arguments.only:
        from analyses.zoo.findings import report

        print(report(arguments.out, arguments.seeds, arguments.docs))


if __name__ == "__main__":
    main()
