"""``python -m analyses.testbed``."""

import json
from pathlib import Path

from analyses.shared import command
from probe.testbed.bed import WEIGHTS
from probe.testbed.build import build
from probe.testbed.recipe import Recipe


def main(*, recipe: Recipe = Recipe(), out: Path = WEIGHTS) -> None:
    """Make the testbed.

    Args:
        recipe: what to make.
        out: folder that is written, and replaced if it exists.
    """
    card = build(out, recipe)
    print(json.dumps({name: card[name] for name in ("knowledge", "sae", "seconds", "bytes")}, indent=1))


if __name__ == "__main__":
    command(__package__, main)
