"""The zoo, part by part; then the verdict that is fitted to it, its figures and docs/validity.md."""

import json
from dataclasses import dataclass
from pathlib import Path

from analyses.zoo.examine import PARTS, part_of
from analyses.zoo.findings import find, read_zoo
from analyses.zoo.pictures import drawn
from analyses.zoo.text import validity
from probe.verdict.judge import FITTED


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


def main(arguments: Arguments) -> None:
    """Make and examine what is missing; with every part, fit, draw and write."""
    every = [f"{seed}-{part}" for seed in range(arguments.seeds) for part in range(PARTS)]
    for name in arguments.only or every:
        if name not in every:
            raise SystemExit(f"no part {name!r}; there are {', '.join(every)}")
        seed, part = map(int, name.split("-"))
        print(part_of(arguments.out, arguments.cache, seed, part))
    if not arguments.only:
        print(report(arguments.out, arguments.seeds, arguments.docs))


def report(out: Path, seeds: int, docs: Path) -> str:
    """Fit the verdict, draw, and write; returns the accuracy in words."""
    zoo = read_zoo(out, seeds)
    findings, judge = find(zoo)
    text = json.dumps(judge.to_json(), allow_nan=False) + "\n"
    for path in (out / "fitted.json", FITTED):
        path.write_text(text, encoding="utf-8")
    drawn(findings, out / "figures", docs)
    (docs / "validity.md").write_text(validity(findings), encoding="utf-8")
    return f"{findings.by_family.accuracy:.3f} of verdicts on families left out are right; see {docs / 'validity.md'}"
