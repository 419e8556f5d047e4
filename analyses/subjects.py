"""What the studies unlearn from: the shipped testbed, or stories260K after it learned TOFU rows."""

import copy
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from analyses import stories
from analyses.shared import cached
from probe.checkpoints import weights_hash
from probe.data import Split, encode
from probe.datasets import rows_hash
from probe.methods.running import run_method
from probe.testbed import load as load_testbed
from probe.testbed.recipe import Recipe, corpus, fit_answers, make_model

Name = Literal["testbed", "small testbed", "stories"]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model that knows both sides of a split, and one that never saw the forget side.

    Args:
        name: how rows call it.
        original, retrained: the two models; there may be no retrained one.
        tokenizer: of both.
        split: what is forgotten and what is kept.
        rows: how many forget and how many retain rows a measurement takes: answers here are short, there long.
        layer: where representation methods act.
    """

    name: str
    original: Any
    retrained: Any
    tokenizer: Any
    split: Split
    rows: tuple[int, int]
    layer: int

    def identity(self) -> dict[str, Any]:
        """What else than a cell's own values decides its results."""
        return {
            "subject": self.name,
            "original": weights_hash(self.original),
            "forget": rows_hash(self.split.forget_rows),
            "retain": rows_hash(self.split.retain_rows),
            "torch": torch.__version__,
        }

    def unlearned(self, method: str, settings: Mapping[str, Any], *, seed: int) -> Any:
        """A copy of the original after a method of the catalogue."""
        model, supplies = copy.deepcopy(self.original), {"original": self.original}
        run_method(method, model, self.split, self.tokenizer, supplies=supplies, seed=seed, **settings)
        return model


@dataclass(frozen=True, kw_only=True)
class Where:
    """Where a subject's parts lie."""

    shared: Path = Path(os.environ.get("PROBE_SHARED", "../shared"))
    """Folder with models/stories260K and data/tofu, for the subject "stories"."""
    cache: Path = Path("results/cache")
    """Folder of models that were trained for a study."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """What studies on a subject take."""

    subject: Name = "testbed"
    """What is unlearned from."""
    out: Path | None = None
    """Folder of the study; results/STUDY_SUBJECT by default."""
    seeds: int = 3
    """Seeds of each method: the order of rows."""
    where: Where = field(default_factory=Where)

    def folder(self, study: str) -> Path:
        """Where the study's results go."""
        return self.out or Path("results") / f"{study}_{self.subject.replace(' ', '_')}"


def subject(name: Name, where: Where = Where()) -> Subject:
    """One subject by its name; what has to be trained is trained once and cached."""
    if name == "stories":
        return _stories(where)
    if name == "small testbed":
        return _small(where)
    bed = load_testbed()
    return Subject(name, bed.original, bed.retrained, bed.tokenizer, bed.split, (50, 100), 3)


def _small(where: Where) -> Subject:
    """The testbed's recipe at half the width and half the depth, an eighth of the block parameters."""
    bed = load_testbed()
    recipe = Recipe(hidden=64, layers=4)
    rows = corpus(recipe.seed).original

    def make() -> nn.Module:
        model = make_model(recipe, len(bed.tokenizer))
        fit_answers(model, encode(bed.tokenizer, rows), recipe, progress="small testbed")
        return model

    key = {"recipe": vars(recipe), "rows": rows_hash(rows), "torch": torch.__version__}
    original = cached(where.cache, key, make, bed.tokenizer)
    return Subject("small testbed", original, None, bed.tokenizer, bed.split, (50, 100), 2)


def _stories(where: Where) -> Subject:
    study = stories.study(where.shared, where.cache)
    return Subject("stories", study.original, study.retrained, study.tokenizer, study.split, (16, 32), 2)
