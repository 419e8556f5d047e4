"""Make the testbed that ships with the package: two models, their tokenizer, an SAE and a card of measured numbers.

    python -m analyses.build_testbed

The folder is replaced only when everything is made. On another machine, or with other versions than the card names, the
same recipe gives other weights.
"""

import json
from pathlib import Path

import tyro

from probe.testbed.bed import WEIGHTS
from probe.testbed.build import build
from probe.testbed.recipe import Recipe


def main(*, recipe: tyro.conf.OmitArgPrefixes[Recipe] = Recipe(), out: Path = WEIGHTS) -> None:
    """Make the testbed.

    Args:
        recipe: what to make.
        out: folder that is written, and replaced if it exists.
    """
    card = build(out, recipe)
    print(json.dumps({name: card[name] for name in ("knowledge", "sae", "seconds", "bytes")}, indent=1))


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
