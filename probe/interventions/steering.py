"""Add a direction to the residual stream."""

from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import DirectionD, HiddenBTD, HiddenND
from probe.data import Batch, Split
from probe.interventions.activations import (
    OtherND,
    activations,
    answers,
    cast,
    check_direction,
    check_number,
    check_width,
)
from probe.interventions.operations import Operation
from probe.sites import Site


@dataclass(frozen=True, eq=False)
class Steer:
    """h + scale * d at every token: activation addition (Turner et al., arXiv 2308.10248).

    Args:
        direction_D: d, in activation units; not normalised here.
        scale: how many times d is added; 0 changes no bit, negative values push the other way.

    Raises:
        ValueError: d is not one finite, non-zero vector, or has another width than the hidden states.

    >>> d = probe.direction(s.original, s.split, probe.Site(4))
    >>> with probe.edited(s.original, {probe.Site(4): probe.Steer(d, scale=-2.0)}):
    ...     harmed = probe.nll(s.original, s.split.forget)
    >>> bool(harmed > probe.nll(s.original, s.split.forget))
    True
    """

    direction_D: DirectionD = field(repr=False)
    scale: float = field(kw_only=True)

    def __post_init__(self) -> None:
        check_direction(self.direction_D, "the steering vector")
        check_number(self.scale, "scale")

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        check_width(hidden_BTD, len(self.direction_D), "the steering vector")
        if hidden_BTD.dtype != self.direction_D.dtype:
            cast(self.scale * self.direction_D, hidden_BTD)  # refuses a vector that the dtype cannot hold
        return self.operation()(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data."""
        return Operation("add", {"direction": self.direction_D}, {"scale": self.scale})


def difference_of_means(forget_hidden_ND: HiddenND, retain_hidden_ND: OtherND) -> DirectionD:
    """d = mean(forget) - mean(retain), in activation units (Marks and Tegmark, arXiv 2310.06824).

    Raises:
        ValueError: a side is empty or of another width, or both sides have the same mean.

    >>> site = probe.Site(4)
    >>> forget, retain = (probe.harvest(s.original, [side], [site])[site] for side in (s.split.forget, s.split.retain))
    >>> tuple(probe.difference_of_means(forget, retain).shape)
    (128,)
    """
    for name, hidden_ND in (("forget", forget_hidden_ND), ("retain", retain_hidden_ND)):
        if len(hidden_ND) == 0:
            raise ValueError(f"the {name} side has no activations")
    if forget_hidden_ND.shape[1] != retain_hidden_ND.shape[1]:
        raise ValueError(
            f"forget activations have width {forget_hidden_ND.shape[1]}, retain {retain_hidden_ND.shape[1]}; "
            "capture both from the same model and site"
        )
    # Means over many tokens lose digits in half precision.
    wide = torch.promote_types(forget_hidden_ND.dtype, torch.float32)
    direction_D = forget_hidden_ND.mean(0, dtype=wide) - retain_hidden_ND.mean(0, dtype=wide)
    if not bool(direction_D.any()):
        raise ValueError("both classes have the same mean; the difference is zero and points nowhere")
    check_direction(direction_D, "the difference of means")
    return direction_D


def direction(model: nn.Module, split: Split, site: Site, *, batch_size: int = 32) -> DirectionD:
    """``difference_of_means`` of the activations at ``site`` over the answer tokens of forget and retain rows.

    Args:
        model: any Hugging Face decoder.
        split: both sides.
        site: where to read; steer at the same place.
        batch_size: rows per forward pass.

    >>> d = probe.direction(s.original, s.split, probe.Site(4))
    >>> with probe.edited(s.original, {probe.Site(4): probe.Project(d)}):
    ...     without = probe.nll(s.original, s.split.forget)
    >>> tuple(d.shape)
    (128,)
    """

    def side(batch: Batch) -> HiddenND:
        return activations(model, batch, [site], tokens=answers, batch_size=batch_size)[site]

    return difference_of_means(side(split.forget), side(split.retain))
