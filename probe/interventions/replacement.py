"""Put other activations in the place of the model's own."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from probe.axes import HiddenBTD
from probe.interventions.activations import check_number, check_width
from probe.interventions.operations import Operation


@dataclass(frozen=True, eq=False)
class Replace:
    """h becomes an activation captured elsewhere: activation patching (Meng et al., arXiv 2202.05262).

    Args:
        activation: one vector (D,) that is put at every token, or hidden states (B, T, D) of the batch and length that
            the model will see. ``At`` chooses the tokens.

    Raises:
        ValueError: NaN or infinity, another number of axes, or hidden states of another shape (in generation with a
            cache each step sees one token only: use ``At(..., prompt)``).

    >>> with torch.no_grad(), probe.captured(s.retrained, [probe.Site(4)]) as hidden:
    ...     _ = s.retrained(**s.split.forget.inputs)
    >>> with probe.edited(s.original, {probe.Site(4): probe.Replace(hidden[probe.Site(4)])}):
    ...     patched = probe.nll(s.original, s.split.forget)
    >>> bool(patched > probe.nll(s.original, s.split.forget))
    True
    """

    activation: Tensor = field(repr=False)

    def __post_init__(self) -> None:
        if self.activation.ndim not in (1, 3):
            raise ValueError(f"expected one vector (D,) or hidden states (B, T, D), got {tuple(self.activation.shape)}")
        if not bool(torch.isfinite(self.activation).all()):
            raise ValueError("the activation holds NaN or infinity; check where it was captured")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, self.activation.shape[-1], "the activation")
        if self.activation.ndim == 3 and self.activation.shape != hidden_BTD.shape:
            raise ValueError(
                f"the activation has shape {tuple(self.activation.shape)}, the hidden states "
                f"{tuple(hidden_BTD.shape)}; capture it with the same rows and length, and in generation replace at "
                "prompt positions only"
            )
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("replace", {"activation": self.activation})


@dataclass(frozen=True)
class Skip:
    """A block's output becomes its input: the layer is left out of the residual stream.

    The block still runs, so the key-value cache keeps its layout. For attention or an mlp use ``Scale(0.0)``.

    >>> with probe.edited(s.original, {probe.Site(4): probe.Skip()}):
    ...     skipped = probe.nll(s.original, s.split.retain)
    >>> bool(skipped > probe.nll(s.original, s.split.retain))
    True
    """

    reads_input = True

    def __call__(self, hidden_BTD: HiddenBTD, entering_BTD: HiddenBTD) -> HiddenBTD:
        return self.operation()(hidden_BTD, entering_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("skip")


@dataclass(frozen=True)
class Scale:
    """factor * h at every token; 0 silences the part, 1 changes no bit.

    Raises:
        ValueError: the factor is not finite.

    >>> with probe.edited(s.original, {probe.Site(4, "mlp"): probe.Scale(0.0)}):
    ...     silenced = probe.nll(s.original, s.split.retain)
    >>> bool(silenced > probe.nll(s.original, s.split.retain))
    True
    """

    factor: float

    def __post_init__(self) -> None:
        check_number(self.factor, "factor")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("scale", {}, {"factor": self.factor})


@dataclass(frozen=True)
class Noise:
    """h + std * e, e standard normal, the same draw in every forward pass of the same shape.

    Args:
        std: in activation units; 0 changes no bit.
        seed: fixes e, on every device alike.

    Raises:
        ValueError: std is negative or not finite.

    >>> with probe.edited(s.original, {probe.Site(4): probe.Noise(std=1.0, seed=0)}):
    ...     noisy = probe.nll(s.original, s.split.retain)
    >>> bool(noisy > probe.nll(s.original, s.split.retain))
    True
    """

    std: float
    seed: int

    def __post_init__(self) -> None:
        check_number(self.std, "std")
        if self.std < 0:
            raise ValueError(f"std must be at least 0, got {self.std}")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("noise", {}, {"std": self.std, "seed": self.seed})
