"""Activations of many rows at once, as the makers of directions and the choosers of features need them."""

import warnings
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import DirectionD, HiddenBTD, HiddenND, MaskBT
from probe.data import Batch
from probe.harvest import visit
from probe.sites import Site

OtherND = Float[Tensor, "M D"]
"""Activations of a second set of tokens: as wide as the first, but as many as there are."""


def answers(batch: Batch) -> MaskBT:
    """Target tokens."""
    return batch.target_BT


def content(batch: Batch) -> MaskBT:
    """Real tokens but the first of each row: that one sees no context, and its norm may be hundreds of times larger."""
    return batch.attention_BT & (batch.attention_BT.cumsum(1) > 1)


def activations(
    model: nn.Module,
    batch: Batch,
    sites: Sequence[Site],
    *,
    tokens: Callable[[Batch], MaskBT],
    batch_size: int = 32,
) -> dict[Site, HiddenND]:
    """Hidden states at ``sites`` at the chosen tokens of every row, in order; no gradients.

    They are made without a graph but not in inference mode, so they may take part in one later.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        batch: the rows.
        sites: where to read; the forward passes end at the last of them.
        tokens: which tokens, ``answers`` or ``content``, say.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no token is chosen.

    >>> from probe.interventions import answers
    >>> hidden = probe.activations(s.original, s.split.forget, [probe.Site(4)], tokens=answers)
    >>> hidden[probe.Site(4)].shape[1]
    128
    """
    kept: dict[Site, list[Tensor]] = {site: [] for site in sites}

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        mask_BT = tokens(piece)
        for site in kept:
            kept[site].append(states[site][mask_BT])

    visit(model, batch.chunks(batch_size), sites, take)
    found = {site: torch.cat(pieces) for site, pieces in kept.items()}
    if any(len(hidden_ND) == 0 for hidden_ND in found.values()):
        raise ValueError(f"no token of the {len(batch)} rows is chosen; check the batch and the choice of tokens")
    return found


def check_direction(direction_D: Tensor, name: str) -> None:
    """Refuse a vector that would broadcast, spread NaN, or do nothing.

    Raises:
        ValueError: not one-dimensional, NaN or infinity, or all zero.
    """
    if direction_D.ndim != 1 or direction_D.numel() < 2:
        raise ValueError(f"{name} must be one vector of the model's width, got shape {tuple(direction_D.shape)}")
    if not direction_D.is_floating_point():
        raise ValueError(f"{name} must hold floating-point numbers, got {direction_D.dtype}")
    if not bool(torch.isfinite(direction_D).all()):
        raise ValueError(f"{name} holds NaN or infinity; check the activations it was made from")
    if not bool(direction_D.any()):
        raise ValueError(f"{name} is zero everywhere; it points nowhere")


def check_width(hidden_BTD: HiddenBTD, width: int, name: str) -> None:
    """Refuse a vector made for a model of another width.

    Raises:
        ValueError: both widths.
    """
    if hidden_BTD.shape[-1] != width:
        raise ValueError(
            f"{name} has width {width}, the hidden states here have width {hidden_BTD.shape[-1]}; "
            "it was made for another model or site"
        )


def check_number(number: float, name: str) -> None:
    """Refuse NaN and infinity.

    Raises:
        ValueError: not finite.
    """
    if not abs(number) < float("inf"):
        raise ValueError(f"{name} must be a finite number, got {number}")


def cast(direction_D: DirectionD, hidden_BTD: HiddenBTD) -> DirectionD:
    """The vector in the dtype and on the device of the hidden states.

    Raises:
        ValueError: the vector overflows the narrower dtype. A norm that changes by more than 1 % is warned about:
            rounding alone changes it by 0.4 % at most, even in bfloat16, so numbers were lost at the lower end.
    """
    result_D = direction_D.to(hidden_BTD)
    # Where the range is the same nothing can be lost at its ends, and looking would cost a synchronisation.
    if torch.finfo(hidden_BTD.dtype).tiny <= torch.finfo(direction_D.dtype).tiny:
        return result_D
    name = str(hidden_BTD.dtype).removeprefix("torch.")
    if not bool(torch.isfinite(result_D).all()):
        raise ValueError(
            f"the vector reaches {direction_D.abs().max().item():.3g}, beyond {name}, the dtype of the hidden states; "
            f"run in {'bfloat16' if name == 'float16' else 'float64'} or scale the vector down"
        )
    before, after = direction_D.double().norm().item(), result_D.double().norm().item()
    if abs(after - before) > 0.01 * before:
        warnings.warn(
            f"the vector's norm is {before:.3g} in {str(direction_D.dtype).removeprefix('torch.')} and {after:.3g} in "
            f"{name}, the dtype of the hidden states: its entries are too small for {name}; scale it up or run in a "
            "wider dtype",
            stacklevel=3,
        )
    return result_D
