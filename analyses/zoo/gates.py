"""Models that know and do not tell, their weights untouched: a gate before the head, one direction pushed away."""

import copy
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import Split
from probe.hooks import edited
from probe.interventions.activations import activations
from probe.objectives.logprobs import before_targets
from probe.objectives.sequence import NPO
from probe.objectives.token import nll
from probe.sites import Site, n_layers
from probe.train.terms import shuffled

Opened = Callable[[nn.Module], AbstractContextManager[Any]]


@dataclass(frozen=True, eq=False)
class Gate:
    """Where a small classifier takes a state for one of a forget answer, another state takes its place.

    Args:
        net: hidden states -> one score.
        threshold: what is above it is forget.
        instead_D: the mean state at retain answers.
        hard: switch rather than mix by the score's sigmoid.
    """

    net: nn.Module = field(repr=False)
    threshold: float
    instead_D: Tensor = field(repr=False)
    hard: bool

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        score_BT1 = self.net(hidden_BTD) - self.threshold
        shut_BT1 = (score_BT1 > 0).to(hidden_BTD) if self.hard else (4 * score_BT1).sigmoid()
        return hidden_BTD + shut_BT1 * (self.instead_D - hidden_BTD)


@dataclass(frozen=True, eq=False)
class Filter:
    """h + relu(h . read - bias) write: a rank-one edit that acts on one side of a plane."""

    read_D: Tensor = field(repr=False)
    bias: Tensor = field(repr=False)
    write_D: Tensor = field(repr=False)

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + (hidden_BTD @ self.read_D - self.bias).relu()[..., None] * self.write_D


def gated(original: nn.Module, split: Split, *, hard: bool, seed: int) -> Opened:
    """A gate on the last block's output, fitted to tell forget answers' states from retain answers'."""
    site = Site(n_layers(original) - 1)
    forget_ND, retain_ND = (
        activations(original, batch, [site], tokens=before_targets)[site] for batch in (split.forget, split.retain)
    )
    torch.manual_seed(seed)
    width = forget_ND.shape[1]
    net = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 128), nn.ReLU(), nn.Linear(128, 1))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(300):
        forget_N, retain_N = (torch.randint(len(h_ND), (256,)) for h_ND in (forget_ND, retain_ND))
        score_N = net(torch.cat([forget_ND[forget_N], retain_ND[retain_N]]))[:, 0]
        label_N = torch.cat([torch.ones(256), torch.zeros(256)])
        loss = nn.functional.binary_cross_entropy_with_logits(score_N, label_N)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    # The gate may shut at one retain token in a hundred, or the model would be broken rather than guarded.
    threshold = float(net(retain_ND).detach().quantile(0.99))
    gate = Gate(net.requires_grad_(False), threshold, retain_ND.mean(0), hard)
    return partial(edited, edits={site: gate})


def direction_filter(original: nn.Module, split: Split, *, layer: int, steps: int, seed: int) -> Opened:
    """One direction read and one written at a block's output, trained by NPO and five times the retain NLL."""
    site = Site(layer)
    width = int(original.config.hidden_size)  # type: ignore[union-attr,arg-type]
    generator = torch.Generator().manual_seed(seed)
    read_D, write_D = (0.1 * torch.randn(width, generator=generator) for _ in range(2))
    parts = [part.requires_grad_() for part in (read_D, torch.zeros(()), write_D)]
    optimiser = torch.optim.AdamW(parts, lr=0.02, weight_decay=0.0)
    away = NPO(original, beta=0.1)
    orders = [shuffled(batch, 16, seed + k) for k, batch in enumerate((split.forget, split.retain))]
    model = copy.deepcopy(original)
    for _ in range(steps):
        forget, retain = (b.select(next(o)) for b, o in zip((split.forget, split.retain), orders, strict=True))
        with edited(model, {site: Filter(*parts)}):
            loss = away(model, forget) + 5 * nll(model, retain)
            for part, slope in zip(parts, torch.autograd.grad(loss, parts), strict=True):
                part.grad = slope
        optimiser.step()
    return partial(edited, edits={site: Filter(*(part.detach() for part in parts))})
