"""Take directions out of the residual stream, or bound what lies along them."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import DirectionD, HiddenBTD
from probe.interventions.activations import check_direction, check_number, check_width
from probe.interventions.operations import Operation


@dataclass(frozen=True, eq=False)
class Project:
    """h - strength * (h . d) d / |d|^2: directional ablation (Arditi et al., arXiv 2406.11717).

    Args:
        direction_D: d; its length does not matter.
        strength: 1 removes the component along d, 2 reflects it, 0 changes no bit.

    Raises:
        ValueError: d is not one finite, non-zero vector, or has another width than the hidden states.

    >>> d = probe.direction(s.original, s.split, probe.Site(4))
    >>> projected = probe.Project(d)(torch.randn(1, 2, 128))
    >>> bool((projected @ d).abs().max() < 1e-3)
    True
    """

    direction_D: DirectionD = field(repr=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_direction(self.direction_D, "the direction")
        check_number(self.strength, "strength")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, len(self.direction_D), "the direction")
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("project", {"direction": self.direction_D}, {"strength": self.strength})


@dataclass(frozen=True, eq=False)
class Cap:
    """h + (clip(h . u, low, high) - h . u) u with u = d / |d|: the component along d kept within bounds.

    Tokens within the bounds keep their bits.

    Args:
        direction_D: d; its length does not matter.
        low: least component along d, in activation units; may be minus infinity.
        high: largest component along d; may be infinity.

    Raises:
        ValueError: d is not one finite, non-zero vector, ``low`` above ``high``, or another width than the
            hidden states.

    >>> d = torch.eye(3)[0]
    >>> probe.Cap(d, low=-1.0, high=1.0)(torch.tensor([[[5.0, 2.0, 2.0]]]))
    tensor([[[1., 2., 2.]]])
    """

    direction_D: DirectionD = field(repr=False)
    low: float = -float("inf")
    high: float = float("inf")

    def __post_init__(self) -> None:
        check_direction(self.direction_D, "the direction")
        if not self.low <= self.high:
            raise ValueError(f"low must not be above high, got {self.low} and {self.high}")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, len(self.direction_D), "the direction")
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("cap", {"direction": self.direction_D}, {"low": self.low, "high": self.high})


@dataclass(frozen=True, eq=False)
class Erase:
    """h - left right (h - mean): an affine eraser of low rank, as LEACE makes them (Belrose et al., arXiv 2306.03819).

    Args:
        left_DK: (width, rank).
        right_KD: (rank, width).
        mean_D: the point that stays where it is.

    Raises:
        ValueError: shapes that do not belong together, NaN or infinity, or another width than the hidden states.

    >>> forget, retain = torch.randn(50, 8) + 1, torch.randn(50, 8)
    >>> labels = torch.arange(100) < 50
    >>> erase = probe.leace(torch.cat([forget, retain]), labels.long())
    >>> tuple(erase(torch.randn(2, 3, 8)).shape)
    (2, 3, 8)
    """

    left_DK: Float[Tensor, "D K"] = field(repr=False)
    right_KD: Float[Tensor, "K D"] = field(repr=False)
    mean_D: DirectionD = field(repr=False)

    def __post_init__(self) -> None:
        width, rank = self.left_DK.shape
        if self.right_KD.shape != (rank, width) or self.mean_D.shape != (width,):
            raise ValueError(
                f"left {tuple(self.left_DK.shape)}, right {tuple(self.right_KD.shape)} and mean "
                f"{tuple(self.mean_D.shape)} do not belong together; expected (D, K), (K, D) and (D,)"
            )
        if not all(bool(torch.isfinite(t).all()) for t in (self.left_DK, self.right_KD, self.mean_D)):
            raise ValueError("the eraser holds NaN or infinity; check the activations it was made from")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, len(self.mean_D), "the eraser")
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("erase", {"left": self.left_DK, "right": self.right_KD, "mean": self.mean_D})
