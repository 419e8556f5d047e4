"""Terms that hold on to what must stay. The plain one is ``probe.objectives.token.nll``.

Others: ``probe.objectives.representation.NearOriginal`` (RMU; with ``answer_tokens`` and ``sequence_mean`` it is
OpenUnlearning's EMBED_DIFF, each answer averaged by itself, with ``mixed_rows`` as its code runs),
``DistanceFromOriginal`` there (circuit breakers), and ``probe.objectives.preference.AnswerPreservation`` (IDK+AP).
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import LogpN, LogpNV, before_targets, logprobs_at, scattered
from probe.objectives.original import OriginalAnswers, check_vocabulary, original_distributions
from probe.objectives.representation import TokenChoice
from probe.objectives.token import Normalise, token_mean


@dataclass(frozen=True)
class ForwardKL:
    """L = mean over positions of KL(pi0 || pi) = sum_v pi0 (log pi0 - log pi), in nats.

    The direction of TOFU's and OpenUnlearning's code (arXiv 2401.06121), averaged here over the positions that
    predict a target; the published code takes every position, padding included: ``positions=all_positions``.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it with full=True or
            states=True.
        positions: where; ``probe.objectives.representation.all_positions`` is the published code's choice.
        normalise: how positions are averaged.

    Raises:
        ValueError: the vocabularies differ.

    >>> loss = probe.ForwardKL(s.original)
    >>> abs(float(loss(s.original, s.split.retain))) < 1e-6, bool(loss(s.retrained, s.split.forget) > 0.1)
    (True, True)
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return divergence(self, model, batch, _kl)


@dataclass(frozen=True)
class ReverseKL:
    """L = mean over positions of KL(pi || pi0) = sum_v pi (log pi - log pi0), in nats.

    The direction that texts on unlearning often print where the code computes ``ForwardKL``.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it with full=True or
            states=True.
        positions: where.
        normalise: how positions are averaged.

    Raises:
        ValueError: the vocabularies differ.

    >>> loss = probe.ReverseKL(s.original)
    >>> abs(float(loss(s.original, s.split.retain))) < 1e-6, bool(loss(s.retrained, s.split.forget) > 0.1)
    (True, True)
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return divergence(self, model, batch, lambda before_NV, after_NV: _kl(after_NV, before_NV))


def divergence(term: Any, model: nn.Module, batch: Batch, between: Callable[[LogpNV, LogpNV], LogpN]) -> Scalar:
    """``between`` (log pi0, log pi) at the positions of a term, averaged as it says.

    Args:
        term: holds ``original``, ``positions`` and ``normalise``.
        model: whose distributions carry a gradient.
        batch: rows.
        between: one number a position.

    Raises:
        ValueError: the vocabularies differ.
    """
    positions_BT = term.positions(batch)
    logp_NV = logprobs_at(model, batch, positions_BT)
    before_NV = original_distributions(term.original, batch, positions_BT)
    check_vocabulary(before_NV, logp_NV)
    return term.normalise(scattered(between(before_NV, logp_NV), positions_BT), positions_BT)


def _kl(from_NV: LogpNV, to_NV: LogpNV) -> LogpN:
    return (from_NV.exp() * (from_NV - to_NV)).sum(-1)
