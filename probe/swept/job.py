"""What is asked of each unlearned model of a sweep: plain values, importable without torch."""

from dataclasses import dataclass
from typing import Literal

from probe.ranges import Count


@dataclass(frozen=True, kw_only=True)
class Then:
    """What is measured once a model is unlearned, and whether it is kept."""

    measure: tuple[Literal["evaluate", "layers", "verdict"], ...] = ("evaluate",)
    """Commands that the unlearned model is given to."""
    compare: str | None = None
    """A model trained without the forget rows, for forget quality and the verdict; the testbed has its own."""
    generate: bool = True
    """Whether ROUGE is measured; most of the time of an evaluation goes to it."""
    limit: Count | None = None
    """Only the first so many rows of each side are measured: a trial run."""
    measure_batch_size: Count = 32
    """Rows a pass where something is measured."""
    keep: bool = False
    """Keep each cell's model; without it only its manifest and what was measured stay."""
