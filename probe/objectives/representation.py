"""Objectives on hidden states."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import DirectionD, HiddenBTD, MaskBT, Scalar
from probe.data import Batch
from probe.hooks import captured
from probe.sites import Site

TokenChoice = Callable[[Batch], MaskBT]


def all_positions(batch: Batch) -> MaskBT:
    """Every position, padding included: what the published RMU code averages over (ALL)."""
    return torch.ones_like(batch.target_BT)


def real_tokens(batch: Batch) -> MaskBT:
    """Every token that is not padding."""
    return batch.attention_BT


def answer_tokens(batch: Batch) -> MaskBT:
    """Target tokens only, as OpenUnlearning's RMU."""
    return batch.target_BT


def hidden_at(model: nn.Module, batch: Batch, site: Site) -> HiddenBTD:
    """Hidden states at ``site``; the forward pass ends there."""
    with captured(model, [site], stop=True) as states:
        model(**batch.inputs, use_cache=False)
    return states[site]


@dataclass(frozen=True)
class TowardsTarget:
    """L = mean over chosen tokens and width of (h - u)^2: RMU's forget term (Li et al., arXiv 2403.03218, eq. 1).

    Args:
        site: where h is read.
        target_D: u, one fixed vector; RMU takes a random direction times a coefficient.
        tokens: which positions are averaged over: ``all_positions``, ``real_tokens`` or ``answer_tokens``.
    """

    site: Site
    target_D: DirectionD = field(repr=False)
    tokens: TokenChoice = real_tokens

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        hidden_BTD = hidden_at(model, batch, self.site)
        target_D = self.target_D.to(hidden_BTD)
        return (hidden_BTD - target_D).square()[self.tokens(batch)].mean()


@dataclass(frozen=True)
class NearFrozen:
    """L = mean over chosen tokens and width of (h - h0)^2: RMU's retain term (Li et al., arXiv 2403.03218, eq. 2).

    Args:
        frozen: the model before unlearning.
        site: where both hidden states are read.
        tokens: which positions are averaged over.
    """

    frozen: nn.Module = field(repr=False)
    site: Site
    tokens: TokenChoice = real_tokens

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        with torch.no_grad():
            before_BTD = hidden_at(self.frozen, batch, self.site)
        hidden_BTD = hidden_at(model, batch, self.site)
        return (hidden_BTD - before_BTD).square()[self.tokens(batch)].mean()
