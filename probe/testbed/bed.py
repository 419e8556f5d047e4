"""Load what the recipe made."""

import json
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from probe.checkpoints import load_model, load_tokenizer
from probe.data import QA, Batch, Split, encode, make_split
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.folders import load_dictionary
from probe.sites import Site
from probe.testbed.recipe import TrainingRows, corpus, facts_hash

WEIGHTS = Path(__file__).parent / "weights"
_REMEDY = "make it anew with `python -m analyses.testbed`"


@dataclass(frozen=True, eq=False)
class Bed:
    """A small Llama that knows facts about fictional authors, and a twin that never saw some of them.

    Args:
        original: knows everything; float32, eval mode.
        retrained: same recipe and seed, trained without the forget authors: what perfect unlearning would give.
        tokenizer: of both.
        split: facts about the forget authors and about the others, in the order they were generated.
        world: plain facts about the world, known to both models.
        world_batch: the same, tokenised.
        sae_site: the block output that ``sae`` was trained on.
        card: measured numbers and the recipe, as in ``card.json``.
        folder: where it was loaded from.
    """

    original: Any = field(repr=False)
    retrained: Any = field(repr=False)
    tokenizer: Any = field(repr=False)
    split: Split = field(repr=False)
    world: tuple[QA, ...] = field(repr=False)
    world_batch: Batch = field(repr=False)
    sae_site: Site
    card: dict[str, Any] = field(repr=False)
    folder: Path

    @cached_property
    def sae(self) -> Autoencoder:
        """A TopK SAE on ``original`` at ``sae_site``, float32. Read at first use: sae-lens loads slowly."""
        return load_dictionary(self.folder / "sae")


def rows_alone() -> TrainingRows:
    """The testbed's rows; no model is loaded."""
    card = json.loads((WEIGHTS / "card.json").read_text(encoding="utf-8"))
    return corpus(card["recipe"]["seed"])


def load(folder: str | Path = WEIGHTS) -> Bed:
    """The testbed. Facts are generated anew and compared with those the weights were trained on.

    Args:
        folder: what ``analyses.testbed`` wrote; the shipped weights unless another is given.

    Raises:
        FileNotFoundError: the folder holds no testbed.
        ValueError: damaged weights, or weights that were trained on other facts.
    """
    folder = Path(folder)
    if not (folder / "card.json").is_file():
        raise FileNotFoundError(f"no testbed at {folder} (card.json is missing); {_REMEDY}")
    card = json.loads((folder / "card.json").read_text(encoding="utf-8"))
    rows = corpus(card["recipe"]["seed"])
    if facts_hash(rows) != card["facts_sha256"]:
        raise ValueError(
            f"the weights in {folder} were trained on other facts than this version of probe.testbed generates "
            f"(sha256 {card['facts_sha256'][:12]} and {facts_hash(rows)[:12]}); {_REMEDY}"
        )
    tokenizer = load_tokenizer(folder / "tokenizer")
    return Bed(
        original=load_model(folder / "original"),
        retrained=load_model(folder / "retrained"),
        tokenizer=tokenizer,
        split=make_split(tokenizer, rows.forget, rows.retain),
        world=rows.world,
        world_batch=encode(tokenizer, rows.world),
        sae_site=Site(card["recipe"]["sae_layer"]),
        card=card,
        folder=folder,
    )
