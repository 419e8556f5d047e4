"""What `probe sae` is asked for: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from probe.ranges import Count, CountOrNone, Place, Positive, Seed, Share, Weight, check_ranges


@dataclass(frozen=True, kw_only=True)
class Attachment:
    """A model, its dictionary, and where the dictionary belongs."""

    model: str | None = None
    """Folder (safetensors) or hub name of the model; without it the testbed's original and its SAE are taken."""
    sae: str | None = None
    """Folder of a dictionary (sae-lens, sparsify, Gemma Scope or Llama Scope files), or a release with --sae-id."""
    sae_id: str | None = None
    """Which dictionary of a release of sae-lens."""
    layer: Place | None = None
    """Block whose output the dictionary reads; from its metadata by default. Measured before anything is done."""

    @property
    def models(self) -> dict[str, str | None]:
        """Flags of what belongs to the rows, and what they were given."""
        return {"--model": self.model, "--sae": self.sae}

    def check(self) -> None:
        """Refuse half a description.

        Raises:
            ValueError: an id without a release, a layer without a model, or a number outside of its range.
        """
        check_ranges(self)
        if self.sae is None and (self.sae_id is not None or self.layer is not None):
            raise ValueError("--sae-id and --layer belong to --sae: name the dictionary, its model and the rows")


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Which dictionary is trained. Its numbers have no default, for they depend on the model; the testbed has some."""

    model: str | None = None
    """Folder (safetensors) or hub name; without it a small dictionary of the testbed is trained."""
    text: Path | None = None
    """Corpus to train on, instead of --forget and --retain: a text file of pieces parted by blank lines, or JSON lines
    (texts, or objects with text). Every tenth piece is left out, to judge by. Take millions of tokens: published
    dictionaries saw 100 million and more; question rows are few."""
    layer: Place | None = None
    """Block whose output is read."""
    architecture: Literal["topk", "batchtopk", "jumprelu"] = "topk"
    """TopK; BatchTopK, which is saved as a JumpReLU; or a JumpReLU (see ``probe.features.architectures``)."""
    active: Count | None = None
    """Features that are on at a token; a JumpReLU's target. Published ones have 20 to 150, often 32 to 64."""
    features: Count | None = None
    """Features of the dictionary; published ones have 8 to 32 times the model's width."""
    steps: Count | None = None
    """Optimiser steps."""
    tokens_per_step: Count = 1024
    """Activations a step, drawn by chance."""
    lr: Positive | None = None
    """Learning rate. 1e-3 worked at widths of 64 and 128; for n features 2e-4 / sqrt(n / 16384) is usual (it follows
    figure 3 of arXiv 2406.04093)."""
    least_variance: Share | None = None
    """Share of variance to be explained on every tenth row, which is left out; below it nothing is saved. 0.7 to 0.9
    are usual."""
    seed: Seed = 0
    """Fixes initial weights and the order of activations."""

    @property
    def models(self) -> dict[str, str | None]:
        """Flags of the models that belong to the rows, and what they were given."""
        return {"--model": self.model}

    def check(self) -> None:
        """Refuse an own model without the numbers of its dictionary, and a corpus without a model.

        Raises:
            ValueError: some are missing, a corpus is given without --model, or a number is outside of its range.
        """
        check_ranges(self)
        needed = ("layer", "active", "features", "steps", "lr", "least_variance")
        missing = [f"--{name.replace('_', '-')}" for name in needed if getattr(self, name) is None]
        if self.model is not None and missing:
            raise ValueError(f"{', '.join(missing)} missing: they have no default that fits every model")
        if self.text is not None and self.model is None:
            raise ValueError("--text needs --model: the testbed's dictionary is trained on the testbed's own rows")


@dataclass(frozen=True, kw_only=True)
class RankJob(Attachment):
    """Which rules put features in order."""

    rules: tuple[str, ...] = ("frequency:0.01", "mean-square-ratio:95", "attribution-ratio")
    """By name, a setting after a colon: frequency:T, mean-square-ratio:P, crisp:N, saeuron:P, mean-difference, auroc,
    attribution, attribution-ratio; squared-mean-ratio:P and crisp-released:N are the released codes' forms."""
    top: Count = 20
    """How many features of each rule are listed, and compared under resampling."""
    view: CountOrNone = 8
    """How many features of the first rule are shown in features.html."""
    seed: Seed = 0
    """Fixes the resampling."""


@dataclass(frozen=True, kw_only=True)
class SuppressJob(Attachment):
    """What is tried, and what it may cost."""

    retrained: str | None = None
    """A model that never saw the forget rows: what its answers are compared with, instead of chance."""
    rules: tuple[str, ...] = ("frequency:0.01", "attribution-ratio")
    """As for `probe sae rank`."""
    counts: tuple[Count, ...] = (10, 50)
    """Numbers of features."""
    scales: tuple[Weight, ...] = (3.0, 10.0)
    """Multiples c: an active feature f becomes -c f."""
    pushes: tuple[Weight, ...] = (0.1, 0.3, 1.0)
    """An active feature is set to minus so many median residual norms."""
    gate: Literal["none", "dsg", "dsg-tokens", "rate"] = "none"
    """When features are edited: always; where their share of firing in the whole prompt is above the 95 % quantile of
    retain rows, over padded columns (dsg, as its code has it) or tokens that count; or by the running share."""
    budget: Weight = 0.1
    """Largest mean rise of the retain loss (nats a token) that a choice may cost where it is made."""
    most: Count = 150
    """Retain rows that are looked at, at most, taken in turn from every entity; every edit is run on all of them."""
    control_edits: bool = True
    """Also random features, a random dictionary, the neuron basis, the difference of means and LEACE."""
    seed: Seed = 0
    """Of the halves, of random features and of the random dictionary."""


@dataclass(frozen=True, kw_only=True)
class AuditJob(Attachment):
    """A model whose weights were edited against features of its original's dictionary."""

    edited: str | None = None
    """The model after the edit; --model is the one before. Without models the testbed is orthogonalised here."""
    retrained: str | None = None
    """A model that never saw the forget rows."""
    features: tuple[Place, ...] = ()
    """Ids of the features that were to fall silent."""
    steps: CountOrNone = 0
    """Steps of relearning on a fifth of the forget rows; 0 leaves that out."""
    lr: Positive | None = None
    """Learning rate of relearning."""
    seed: Seed = 0
    """Which forget rows are relearned."""

    @property
    def models(self) -> dict[str, str | None]:
        """Flags of what belongs to the rows, and what they were given."""
        return {**super().models, "--edited": self.edited}

    def check(self) -> None:
        """Refuse an audit that cannot be made.

        Raises:
            ValueError: as for ``Attachment``, no features for an own model, or steps without a learning rate.
        """
        super().check()
        if (self.model is None) != (not self.features):
            raise ValueError("--features names the features of --sae that --edited was to lose; give both, or neither")
        if (self.steps > 0) != (self.lr is not None):
            raise ValueError(f"--steps and --lr belong together, got {self.steps} and {self.lr}")
