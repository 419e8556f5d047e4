"""Put other activations in the place of the model's own."""

from dataclasses import dataclass, field

import torch

from probe.axes import HiddenBTD
from probe.interventions.activations import check_number, check_width


@dataclass(frozen=True, eq=False)
class Replace:
    """h becomes an activation captured elsewhere: activation patching (Meng et al., arXiv 2202.05262).

    Args:
        activation_BTD: what is put in, of the batch and length that the model will see.
        positions: token positions that are replaced; None replaces all. An empty tuple changes no bit.

    Raises:
        ValueError: NaN or infinity, a negative or repeated position, a position beyond the activation, or hidden
            states of another shape (in generation with a cache each step sees one token only).
    """

    activation_BTD: HiddenBTD = field(repr=False)
    positions: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        if not bool(torch.isfinite(self.activation_BTD).all()):
            raise ValueError("the activation holds NaN or infinity; check where it was captured")
        if self.positions is None:
            return
        length = self.activation_BTD.shape[1]
        odd = [t for t in self.positions if not 0 <= t < length]
        if odd or len(set(self.positions)) != len(self.positions):
            raise ValueError(f"positions {self.positions} must be different numbers in 0..{length - 1}")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, self.activation_BTD.shape[-1], "the activation")
        if self.activation_BTD.shape != hidden_BTD.shape:
            raise ValueError(
                f"the activation has shape {tuple(self.activation_BTD.shape)}, the hidden states "
                f"{tuple(hidden_BTD.shape)}; capture it with the same rows and length, and without a cache"
            )
        if self.positions == ():
            return hidden_BTD
        given_BTD = self.activation_BTD.to(hidden_BTD)
        if self.positions is None:
            return given_BTD.clone()
        changed_BTD = hidden_BTD.clone()
        changed_BTD[:, list(self.positions)] = given_BTD[:, list(self.positions)]
        return changed_BTD


@dataclass(frozen=True)
class Scale:
    """factor * h at every token; 0 silences the part, 1 changes no bit.

    Raises:
        ValueError: the factor is not finite.
    """

    factor: float

    def __post_init__(self) -> None:
        check_number(self.factor, "factor")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return hidden_BTD if self.factor == 1 else hidden_BTD * self.factor


@dataclass(frozen=True)
class Noise:
    """h + std * e, e standard normal, the same draw in every forward pass of the same shape.

    Args:
        std: in activation units; 0 changes no bit.
        seed: fixes e, on every device alike.

    Raises:
        ValueError: std is negative or not finite.
    """

    std: float
    seed: int

    def __post_init__(self) -> None:
        check_number(self.std, "std")
        if self.std < 0:
            raise ValueError(f"std must be at least 0, got {self.std}")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        if self.std == 0:
            return hidden_BTD
        generator = torch.Generator().manual_seed(self.seed)
        noise_BTD = torch.randn(hidden_BTD.shape, generator=generator)
        return hidden_BTD + (self.std * noise_BTD).to(hidden_BTD)
