"""Terms that hold on to what must stay. The plain one is ``probe.objectives.token.nll``.

Others: ``probe.objectives.representation.NearFrozen`` (RMU) and ``DistanceFromFrozen`` (circuit breakers),
``probe.objectives.preference.AnswerPreservation`` (IDK+AP).
"""

from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import LogpN, before_targets, logprobs_at, scattered
from probe.objectives.reference import Reference, check_vocabulary, reference_distributions
from probe.objectives.representation import TokenChoice, answer_tokens, hidden_at
from probe.objectives.token import Normalise, sequence_mean, token_mean
from probe.sites import Site


@dataclass(frozen=True)
class ForwardKL:
    """L = mean over positions of KL(pi0 || pi) = sum_v pi0 (log pi0 - log pi), in nats.

    The direction of TOFU's and OpenUnlearning's code (arXiv 2401.06121), averaged here over the positions that
    predict a target; the published code takes every position, padding included: ``positions=all_positions``.

    Args:
        original: the model before unlearning, frozen, or a ``Reference`` made from it with full=True or
            states=True.
        positions: where; ``probe.objectives.representation.all_positions`` is the published code's choice.
        normalise: how positions are averaged.

    Raises:
        ValueError: the vocabularies differ.
    """

    original: nn.Module | Reference = field(repr=False)
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return _divergence(self, model, batch, forward=True)


@dataclass(frozen=True)
class ReverseKL:
    """L = mean over positions of KL(pi || pi0) = sum_v pi (log pi - log pi0), in nats.

    The direction that texts on unlearning often print where the code computes ``ForwardKL``.

    Args:
        original: the model before unlearning, frozen, or a ``Reference`` made from it with full=True or
            states=True.
        positions: where.
        normalise: how positions are averaged.

    Raises:
        ValueError: the vocabularies differ.
    """

    original: nn.Module | Reference = field(repr=False)
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return _divergence(self, model, batch, forward=False)


@dataclass(frozen=True)
class EmbeddingDifference:
    """L = mean over answers of the mean over tokens and width of (h - h0)^2: OpenUnlearning's EMBED_DIFF (SM).

    What its RMU holds retain rows with; the published run divides each row by other rows' token counts too when
    lengths differ, which is not reproduced. With ``normalise=token_mean`` it is ``NearFrozen``.

    Args:
        frozen: the model before unlearning.
        site: where both hidden states are read.
        tokens: which positions are averaged over.
        normalise: how they are averaged.
    """

    frozen: nn.Module = field(repr=False)
    site: Site
    tokens: TokenChoice = answer_tokens
    normalise: Normalise = sequence_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        mask_BT = self.tokens(batch)
        with torch.no_grad():
            before_BTD = hidden_at(self.frozen, batch, self.site)
        square_BT = (hidden_at(model, batch, self.site) - before_BTD).square().mean(-1)
        return self.normalise(square_BT * mask_BT, mask_BT)


def _divergence(term: ForwardKL | ReverseKL, model: nn.Module, batch: Batch, *, forward: bool) -> Scalar:
    positions_BT = term.positions(batch)
    logp_NV = logprobs_at(model, batch, positions_BT)
    before_NV = reference_distributions(term.original, batch, positions_BT)
    check_vocabulary(before_NV, logp_NV)
    from_NV, to_NV = (before_NV, logp_NV) if forward else (logp_NV, before_NV)
    value_N: LogpN = (from_NV.exp() * (from_NV - to_NV)).sum(-1)
    return term.normalise(scattered(value_N, positions_BT), positions_BT)
