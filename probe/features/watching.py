"""An objective's gradient at hidden states of the plain model: no dictionary in the graph, no gradient for weights."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import MaskBT
from probe.data import Batch
from probe.features.activity import ordinary
from probe.hooks import edited
from probe.objectives.objective import Objective
from probe.positions import Tokens
from probe.sites import Site

Change = Callable[[dict[Site, Tensor], Site, MaskBT], Tensor]
"""From the states seen so far in this forward, by site, and the tokens that count: the state to go on with."""


@dataclass(frozen=True, eq=False)
class Watched:
    """What one forward of an objective was at the sites.

    Args:
        mask_BT: tokens that count: real, and no special id.
        hidden: hidden states by site, (batch, position, width), as the model had them.
        gradient: d objective / d hidden state, zero where it has no influence.
    """

    mask_BT: MaskBT = field(repr=False)
    hidden: dict[Site, Tensor] = field(repr=False)
    gradient: dict[Site, Tensor] = field(repr=False)


@dataclass(frozen=True, eq=False)
class _Tap:
    """Reads what passes, and makes it a place that gradients can be taken at."""

    site: Site
    forwards: list[tuple[Tensor, dict[Site, Tensor], dict[Site, Tensor]]] = field(repr=False)
    special_ids: tuple[int, ...]
    change: Change | None

    reads_tokens = True

    def following(self) -> Callable[[Tensor, Tokens], Tensor]:
        """The edit itself."""
        return self

    def __call__(self, hidden_BTD: Tensor, tokens: Tokens) -> Tensor:
        if not torch.is_grad_enabled():
            # A frozen forward within the objective: a reference, say.
            return hidden_BTD
        if not self.forwards or self.site in self.forwards[-1][1]:
            assert tokens.id_BT is not None
            special = torch.tensor(self.special_ids, dtype=torch.long, device=tokens.id_BT.device)
            self.forwards.append((tokens.real_BT & ~torch.isin(tokens.id_BT, special), {}, {}))
        mask_BT, hidden, taps = self.forwards[-1]
        hidden[self.site] = hidden_BTD.detach()
        if self.change is not None:
            hidden_BTD = self.change(hidden, self.site, mask_BT)
        # Below the first site nothing needs a gradient, so it is not computed.
        tap_BTD = hidden_BTD.view_as(hidden_BTD) if hidden_BTD.requires_grad else hidden_BTD.detach().requires_grad_()
        taps[self.site] = tap_BTD
        return tap_BTD


def watched(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    sites: Sequence[Site],
    *,
    special_ids: Sequence[int],
    change: Change | None = None,
) -> tuple[float, list[Watched]]:
    """The objective's value, and states and gradients at all sites, from one forward and backward.

    The caller sees to eval mode. Weights get no gradient and keep their flags; the backward stops at the first site.

    Args:
        model: any Hugging Face decoder.
        objective: ``(model, batch) -> scalar``.
        batch: rows on the model's device.
        sites: any number, in any order.
        special_ids: token ids that do not count.
        change: what the model goes on with at each site instead of its own state.

    Returns:
        value and one entry per forward with gradients that the objective ran (pairs of answers run two).

    Raises:
        ValueError: an objective that runs no forward with gradients, does not depend on the states, or runs other rows
            than those of its batch.
    """
    forwards: list[tuple[Tensor, dict[Site, Tensor], dict[Site, Tensor]]] = []
    edits = {site: _Tap(site, forwards, tuple(int(t) for t in special_ids), change) for site in sites}
    with _frozen(model), edited(model, edits), torch.enable_grad():  # type: ignore[arg-type]
        value = objective(model, batch)
    wrong = [len(mask_BT) for mask_BT, _, _ in forwards if len(mask_BT) != len(batch)]
    if wrong:
        raise ValueError(
            f"the objective ran {wrong[0]} rows for a batch of {len(batch)}; its effects have no rows here"
        )
    leaves = [tap for _, _, taps in forwards for tap in taps.values()]
    if not leaves or not value.requires_grad:
        raise ValueError("the objective does not depend on the hidden states at these sites; does it run this model?")
    found = iter(torch.autograd.grad(value, leaves, allow_unused=True))
    result = []
    for mask_BT, hidden, taps in forwards:
        gradient = {site: _or_zeros(next(found), tap) for site, tap in taps.items()}
        result.append(Watched(mask_BT, hidden, gradient))
    return float(value.detach()), result


def shares(batch: Batch, batch_size: int) -> Iterator[tuple[Batch, float]]:
    """Pieces of the batch, each with its share of the targets: the weight of its mean over tokens in the whole's."""
    total = int(batch.target_BT[:, 1:].sum())
    for piece in batch.chunks(batch_size):
        n = int(piece.target_BT[:, 1:].sum())
        if n:
            yield piece, n / total


def check_some(batch: Batch, special_ids: Sequence[int], side: str) -> int:
    """How many tokens count.

    Raises:
        ValueError: none.
    """
    n = int(ordinary(batch, special_ids).sum())
    if n == 0:
        raise ValueError(f"no token of the {len(batch)} {side} rows is left: all of them are special ids or padding")
    return n


def _or_zeros(gradient: Tensor | None, tap: Tensor) -> Tensor:
    return torch.zeros_like(tap) if gradient is None else gradient


@contextmanager
def _frozen(model: nn.Module) -> Iterator[None]:
    """No parameter asks for a gradient inside the block: a backward would allocate one for each."""
    asked: list[Any] = [p for p in model.parameters() if p.requires_grad]
    try:
        for p in asked:
            p.requires_grad_(False)
        yield
    finally:
        for p in asked:
            p.requires_grad_(True)
