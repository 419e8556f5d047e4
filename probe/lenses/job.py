"""What is asked for: plain values, importable without torch so that ``probe --help`` stays quick."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class LayersJob:
    """Which layers are lent to which model."""

    original: str | None = None
    """Folder (safetensors) or hub name of the model before unlearning."""
    unlearned: str | None = None
    """The model after unlearning. Without models the testbed is unlearned here, by a few steps of GradDiff."""
    spans: Literal["single", "all", "cumulative"] = "single"
    """Every block alone, every span of neighbouring blocks, or spans that grow from either end."""
    parts: tuple[Literal["block", "attention", "mlp"], ...] = ("block",)
    """What is lent: whole blocks, or their attention or mlp alone."""
    into: tuple[Literal["original", "unlearned"], ...] = ("original",)
    """Which model the other's layers are put into."""
    screening: bool = False
    """Also guess each layer's effect from one gradient, with the rank correlation of guess and truth."""

    @property
    def models(self) -> dict[str, str | None]:
        """Flags of the models that belong to the rows, and what they were given."""
        return {"--original": self.original, "--unlearned": self.unlearned}

    def check(self) -> None:
        """Refuse an empty choice.

        Raises:
            ValueError: no part, or no model to put it into.
        """
        for name in ("parts", "into"):
            if not getattr(self, name):
                raise ValueError(f"--{name} needs at least one value")


@dataclass(frozen=True, kw_only=True)
class GEffectJob:
    """Whose gradients are multiplied with whose."""

    model: str | None = None
    """Folder (safetensors) or hub name of the model at which gradients are taken; without it the testbed's original."""
    original: str | None = None
    """The model before unlearning, which NPO, TNPO and KL compare with; the model itself by default."""
    objective: tuple[str, ...]
    """What a step would lower on forget rows, by name, settings after a colon: ga npo:beta=0.1 sat_imp:beta1=5,beta2=1
    """
    retain_objective: tuple[str, ...] = ()
    """The same on retain rows: nll, kl."""
    tokens: bool = False
    """Also the effect of every single forget token, as tokens.jsonl and coloured in tokens.html."""

    @property
    def models(self) -> dict[str, str | None]:
        """Flags of the models that belong to the rows, and what they were given."""
        return {"--model": self.model}

    def check(self) -> None:
        """Refuse what cannot be run.

        Raises:
            ValueError: an original alone, no objective, or one twice.
        """
        if self.original is not None and self.model is None:
            raise ValueError("--original belongs to --model: name the model at which gradients are taken, too")
        for flag, names in (("--objective", self.objective), ("--retain-objective", self.retain_objective)):
            if len(set(names)) < len(names):
                raise ValueError(f"{flag} takes each objective once; got {' '.join(names)}")
        if not self.objective:
            raise ValueError("--objective needs at least one name, such as ga or npo:beta=0.1")
