"""Three published rules x two numbers of features x six strengths of suppressing SAE features."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from analyses.sae.claims import dose_claims
from analyses.sae.subjects import Given, Name, given
from analyses.shared import conclude, finished
from analyses.subjects import Options
from probe.features.attribution import ByEffect
from probe.features.rules import Frequency, SquaredMeanRatio
from probe.figures import draw_all
from probe.modes import threads
from probe.rows import Row
from probe.sae.candidates import Strength
from probe.sae.tables import DoseResponse
from probe.sweep import load, sweep

RULES = (Frequency(0.01), SquaredMeanRatio(), ByEffect(against="ratio"))
STRENGTHS = (
    Strength("zero"),
    Strength("scale", 3.0),
    Strength("scale", 10.0),
    Strength("push", 0.1),
    Strength("push", 0.3),
    Strength("push", 1.0),
)


@dataclass(frozen=True, kw_only=True)
class Arguments(Options):
    """What is run."""

    subject: Name = "testbed"
    """What is suppressed in."""
    seeds: int = 1
    """Divisions of the people into halves."""


def study(at: Given) -> Callable[..., dict[str, Any]]:
    """The function of one cell."""

    def run(seed: int) -> dict[str, Any]:
        how = {"score": at.scorer(choices=True), "retrained": at.subject.retrained, "progress": True}
        return as_record(at.responses(at.halves(seed), rules=RULES, strengths=STRENGTHS, seed=seed, **how))

    return run


def as_record(found: DoseResponse) -> dict[str, Any]:
    """Rows and text of a study, as a cell keeps them."""
    words = {source: word.sentence for source, word in found.words.items()}
    return {"rows": json.dumps([asdict(row) for row in found.rows()]), "text": str(found), "words": json.dumps(words)}


def rows_of(record: Mapping[str, Any]) -> list[Row]:
    """The rows that a record keeps."""
    return [Row(**row) for row in json.loads(record["rows"])]


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    out = arguments.folder("sae_dose_response")
    with threads(1):
        at = given(arguments.subject, arguments.where)
        cells = [{"seed": seed} for seed in range(arguments.seeds)]
        sweep(study(at), cells, out, identity=at.identity(RULES, STRENGTHS))
    report(out, arguments.subject, ("sae_responses",), dose_claims)


def report(
    out: Path, name: str, only: Sequence[str], judge: Callable[[Sequence[Mapping[str, Any]], str], list[str]]
) -> None:
    """Figures of the first seed, and the judgement of all, from what is on disk."""
    records = load(out)
    runs = finished(records)
    # One division of the people: intervals are over them.
    rows = [row for r in runs if r["seed"] == 0 for row in rows_of(r)]
    draw_all(rows, out / "figures", only=only, metadata={"study": out.name})
    texts = [part for r in runs if r["text"] for part in ("", *r["text"].splitlines())]
    conclude(out, [*judge(runs, name), *texts], records)
