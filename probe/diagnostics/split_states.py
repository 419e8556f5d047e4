"""One capture pass whose states several diagnostics share: one vector a row and layer, for each side of a split."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.data import Batch, Split
from probe.diagnostics.separability import side_groups
from probe.diagnostics.states import Position, last_prompt_token, stacked_states
from probe.sites import n_layers

# BySide meet in one value and need not have as many rows: the axis of rows is not bound.
StatesLND = Float[Tensor, "L _ D"]
GroupsN = Int[Tensor, "_"]


@dataclass(frozen=True, eq=False)
class SplitStates:
    """Hidden states of one model, in float64 on the CPU.

    Args:
        layers: block indices, in the order of the first axis.
        forget_LND, retain_LND: one vector a row.
        unseen_LND: rows that the model never saw in training, if any were given.
        forget_group_N, retain_group_N: group of each row; an id means the same on both sides.
    """

    layers: tuple[int, ...]
    forget_LND: StatesLND = field(repr=False)
    retain_LND: StatesLND = field(repr=False)
    forget_group_N: GroupsN = field(repr=False)
    retain_group_N: GroupsN = field(repr=False)
    unseen_LND: StatesLND | None = field(default=None, repr=False)

    @property
    def sides(self) -> dict[str, StatesLND]:
        """The states by name of the side."""
        named = {"forget": self.forget_LND, "retain": self.retain_LND}
        return named if self.unseen_LND is None else {**named, "unseen": self.unseen_LND}


def split_states(
    model: nn.Module,
    split: Split,
    *,
    layers: Sequence[int] | None = None,
    position: Position = last_prompt_token,
    unseen: Batch | None = None,
    batch_size: int = 32,
) -> SplitStates:
    """Run forget, retain and unseen rows once and keep one vector a row at every layer.

    Args:
        model: measured in eval mode and left as it was; edits and blends that are in force act here too.
        split: both sides.
        layers: blocks to read; None reads all.
        position: makes one vector of a row.
        unseen: rows about things the model was never trained on.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a layer outside the model, rows without a target, or states with NaN or infinity.

    >>> states = probe.split_states(s.original, s.split, layers=[0, 4])
    >>> states.forget_LND.shape
    torch.Size([2, 20, 128])
    """
    chosen = tuple(range(n_layers(model))) if layers is None else tuple(layers)

    forget_N, retain_N = (torch.from_numpy(group_N) for group_N in side_groups(split))
    return SplitStates(
        chosen,
        stacked_states(model, split.forget, chosen, position, batch_size),
        stacked_states(model, split.retain, chosen, position, batch_size),
        forget_N,
        retain_N,
        None if unseen is None else stacked_states(model, unseen, chosen, position, batch_size),
    )
