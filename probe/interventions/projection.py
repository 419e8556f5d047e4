"""Take a direction out of the residual stream."""

from dataclasses import dataclass, field

import torch

from probe.axes import DirectionD, HiddenBTD
from probe.interventions.activations import check_direction, check_number, check_width


@dataclass(frozen=True, eq=False)
class Project:
    """h - strength * (h . d) d / |d|^2: directional ablation (Arditi et al., arXiv 2406.11717).

    Args:
        direction_D: d; its length does not matter.
        strength: 1 removes the component along d, 2 reflects it, 0 changes no bit.

    Raises:
        ValueError: d is not one finite, non-zero vector, or has another width than the hidden states.
    """

    direction_D: DirectionD = field(repr=False)
    strength: float = 1.0

    def __post_init__(self) -> None:
        check_direction(self.direction_D, "the direction")
        check_number(self.strength, "strength")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, len(self.direction_D), "the direction")
        if self.strength == 0:
            return hidden_BTD
        # In half precision the inner product alone would leave a hundredth of the component behind.
        wide_BTD = hidden_BTD.to(torch.promote_types(hidden_BTD.dtype, torch.float32))
        direction_D = self.direction_D.to(wide_BTD)
        unit_D = direction_D / direction_D.norm()
        return (wide_BTD - self.strength * (wide_BTD @ unit_D)[..., None] * unit_D).to(hidden_BTD.dtype)
