"""One hidden state per row and layer: what a probe or a projection is fitted on."""

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import HiddenBTD, HiddenND, MaskBT
from probe.data import Batch
from probe.harvest import visit
from probe.sites import Site, n_layers

HiddenBD = Float[Tensor, "B D"]
Position = Callable[[HiddenBTD, Batch], HiddenBD]


def last_prompt_token(hidden_BTD: HiddenBTD, batch: Batch) -> HiddenBD:
    """The position that predicts the answer's first token: the model has read the question, not the answer."""
    predicted_BT = batch.target_BT[:, 1:]
    _check(predicted_BT)
    row_B = torch.arange(len(batch), device=hidden_BTD.device)
    return hidden_BTD[row_B, predicted_BT.long().argmax(1)]


def mean_prompt(hidden_BTD: HiddenBTD, batch: Batch) -> HiddenBD:
    """The mean over the tokens before the answer."""
    _check(batch.target_BT)
    before_BT = batch.attention_BT.bool() & (batch.target_BT.long().cumsum(1) == 0)
    weight_BT1 = before_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1).clamp(min=1)


def mean_answer(hidden_BTD: HiddenBTD, batch: Batch) -> HiddenBD:
    """The mean over the answer's tokens."""
    _check(batch.target_BT)
    weight_BT1 = batch.target_BT[..., None].to(hidden_BTD.dtype)
    return (hidden_BTD * weight_BT1).sum(1) / weight_BT1.sum(1)


def pooled_states(
    model: nn.Module, batch: Batch, layers: Sequence[int], position: Position, batch_size: int
) -> dict[int, HiddenND]:
    """Block outputs, one vector a row, in float64 on the CPU; the forward passes end at the last layer asked for.

    Args:
        model: measured in eval mode, without gradients.
        batch: the rows.
        layers: block indices.
        position: makes one vector of a row's hidden states.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a layer outside the model, or hidden states with NaN or infinity.
    """
    kept: dict[int, list[Tensor]] = {layer: [] for layer in layers}
    sites = [Site(layer) for layer in kept]

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        for site in sites:
            kept[site.layer].append(position(states[site], piece).double().cpu())

    visit(model, batch.chunks(batch_size), sites, take)
    found = {layer: torch.cat(pieces) for layer, pieces in kept.items()}
    for layer, hidden_ND in found.items():
        broken = int((~torch.isfinite(hidden_ND)).any(1).sum())
        if broken:
            raise ValueError(f"layer {layer}: the states of {broken} of {len(batch)} rows hold NaN or infinity")
    return found


def stacked_states(
    model: nn.Module, batch: Batch, layers: Sequence[int] | None, position: Position, batch_size: int
) -> Float[Tensor, "L N D"]:
    """As ``pooled_states``, in one tensor; None reads all layers."""
    chosen = range(n_layers(model)) if layers is None else layers
    found = pooled_states(model, batch, chosen, position, batch_size)
    return torch.stack([found[layer] for layer in chosen])


def _check(target_BT: MaskBT) -> None:
    empty = (~target_BT.any(1)).nonzero()[:, 0].tolist()
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(target_BT)} rows have no target token (first: row {empty[0]} of the chunk), so the "
            "answer's place is unknown; drop them or raise max_length"
        )
