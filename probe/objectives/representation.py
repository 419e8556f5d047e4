"""Objectives on hidden states."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity

from probe.axes import DirectionD, HiddenBTD, MaskBT, Scalar
from probe.context import check_rows
from probe.data import Batch
from probe.hooks import captured
from probe.objectives.token import Normalise, token_mean
from probe.sites import Site, module_at, n_layers

TokenChoice = Callable[[Batch], MaskBT]


def all_positions(batch: Batch) -> MaskBT:
    """Every position, padding included: what the codes of RMU, R2MU and TAR average over (ALL)."""
    return torch.ones_like(batch.target_BT)


def real_tokens(batch: Batch) -> MaskBT:
    """Every token that is not padding."""
    return batch.attention_BT


def answer_tokens(batch: Batch) -> MaskBT:
    """Target tokens only, as OpenUnlearning's RMU."""
    return batch.target_BT


def hidden_at(model: nn.Module, batch: Batch, site: Site) -> HiddenBTD:
    """Hidden states at ``site``; the forward pass ends there."""
    return states_at(model, batch, (site,))[site]


def states_at(model: nn.Module, batch: Batch, sites: tuple[Site, ...]) -> dict[Site, Tensor]:
    """Hidden states at several sites from one forward pass, which ends at the last of them."""
    with captured(model, sites, stop=True) as states:
        check_rows(model, batch)
        model(**batch.inputs, use_cache=False)
    return states


def mean_square(difference_BTD: HiddenBTD, mask_BT: MaskBT, normalise: Normalise) -> Scalar:
    """Squares averaged over the width, then over the marked positions as ``normalise`` says."""
    return normalise(difference_BTD.square().mean(-1) * mask_BT, mask_BT)


@dataclass(frozen=True)
class TowardsTarget:
    """L = mean over chosen tokens and width of (h - u)^2: RMU's forget term (Li et al., arXiv 2403.03218, eq. 1).

    Args:
        site: where h is read.
        target_D: u, one fixed vector; RMU takes a random direction times a coefficient.
        tokens: which positions are averaged over: ``all_positions``, ``real_tokens`` or ``answer_tokens``.
        normalise: how they are averaged.

    >>> loss = probe.TowardsTarget(probe.Site(3), torch.zeros(128))
    >>> bool(loss(s.original, s.split.forget) > 0)
    True
    """

    site: Site
    target_D: DirectionD = field(repr=False)
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        hidden_BTD = hidden_at(model, batch, self.site)
        return mean_square(hidden_BTD - self.target_D.to(hidden_BTD), self.tokens(batch), self.normalise)


@dataclass(frozen=True)
class NearOriginal:
    """L = mean over chosen tokens and width of (h - h0)^2: RMU's retain term (Li et al., arXiv 2403.03218, eq. 2).

    Args:
        original: the model before unlearning.
        site: where both hidden states are read.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    >>> loss = probe.NearOriginal(s.original, probe.Site(3))
    >>> float(loss(s.original, s.split.retain)), bool(loss(s.retrained, s.split.retain) > 0)
    (0.0, True)
    """

    original: nn.Module = field(repr=False)
    site: Site
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        with torch.no_grad():
            before_BTD = hidden_at(self.original, batch, self.site)
        hidden_BTD = hidden_at(model, batch, self.site)
        return mean_square(hidden_BTD - before_BTD, self.tokens(batch), self.normalise)


@dataclass(frozen=True)
class OrthogonalToOriginal:
    """L = mean over sites and tokens of relu(cos(h, h0)): the forget term of circuit breakers (RR).

    Zou et al., arXiv 2406.04313. Published for Llama-3-8B: layers 10 and 20, which the code reads from Hugging Face's
    hidden states: what enters blocks 10 and 20, counted from 0, so ``Site(9)`` and ``Site(19)``. It is weighed with
    alpha (1 - t/2T) and the retain term, ``DistanceFromOriginal``, with alpha t/2T at step t of T.

    Args:
        original: the model before unlearning.
        sites: where both hidden states are read; every site counts alike.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    Raises:
        ValueError: no sites.

    >>> loss = probe.OrthogonalToOriginal(s.original, (probe.Site(3), probe.Site(5)))
    >>> round(float(loss(s.original, s.split.forget)), 3)  # cosine 1 where nothing has changed
    1.0
    """

    original: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        _check_sites(self.sites)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return _compared(
            model, self, batch, lambda after_BTD, before_BTD: cosine_similarity(after_BTD, before_BTD, dim=-1).relu()
        )


@dataclass(frozen=True)
class DistanceFromOriginal:
    """L = mean over sites and tokens of |h - h0|_2: the retain term of circuit breakers (RR).

    Zou et al., arXiv 2406.04313. The length of the difference, not its square as in ``NearOriginal``. Their code
    computes ``HiddenStatesFromOriginal``.

    Args:
        original: the model before unlearning.
        sites: where both hidden states are read; every site counts alike.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    Raises:
        ValueError: no sites.

    >>> loss = probe.DistanceFromOriginal(s.original, (probe.Site(3), probe.Site(5)))
    >>> float(loss(s.original, s.split.retain)), bool(loss(s.retrained, s.split.retain) > 0)
    (0.0, True)
    """

    original: nn.Module = field(repr=False)
    sites: tuple[Site, ...]
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        _check_sites(self.sites)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return _compared(
            model, self, batch, lambda after_BTD, before_BTD: torch.linalg.vector_norm(after_BTD - before_BTD, dim=-1)
        )


@dataclass(frozen=True)
class HiddenStatesFromOriginal:
    """L = mean of |h - h0|_2 over Hugging Face's hidden states: embeddings, blocks, and the last block's normed output.

    What the published codes of circuit breakers (arXiv 2406.04313) and TAR (arXiv 2408.00761) hold retain rows with.
    The first cuts the model behind the last block that it turns (``depth``) and lets padding count as 0
    (``tokens=real_tokens, normalise=position_mean``); the second takes the whole model and every position, padding
    too (``tokens=all_positions``).

    Args:
        original: the model before unlearning.
        depth: how many blocks are read; the final norm stands behind the last of them. All unless given.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    Raises:
        ValueError: a depth outside the model.

    >>> loss = probe.HiddenStatesFromOriginal(s.original)
    >>> float(loss(s.original, s.split.retain)), bool(loss(s.retrained, s.split.retain) > 0)
    (0.0, True)
    """

    original: nn.Module = field(repr=False)
    depth: int | None = None
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        if self.depth is not None and not 1 <= self.depth <= n_layers(self.original):
            raise ValueError(f"depth must lie in 1..{n_layers(self.original)}, got {self.depth}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        mask_BT = self.tokens(batch)
        with torch.no_grad():
            before = hidden_states(self.original, batch, self.depth)
        pairs = zip(hidden_states(model, batch, self.depth), before, strict=True)
        lengths = [torch.linalg.vector_norm(after_BTD - before_BTD, dim=-1) for after_BTD, before_BTD in pairs]
        return torch.stack([self.normalise(length_BT * mask_BT, mask_BT) for length_BT in lengths]).mean()


def hidden_states(model: nn.Module, batch: Batch, depth: int | None = None) -> list[HiddenBTD]:
    """Hugging Face's ``hidden_states`` of the model cut behind ``depth`` blocks: the last is behind the final norm."""
    depth = n_layers(model) if depth is None else depth
    first, outputs = Site(0, "block", "in"), tuple(map(Site, range(depth)))
    states = states_at(model, batch, (first, *outputs))
    last_BTD = module_at(model, Site(0, "norm"))(states[outputs[-1]])
    return [states[first], *(states[site] for site in outputs[:-1]), last_BTD]


def _check_sites(sites: tuple[Site, ...]) -> None:
    if not sites:
        raise ValueError("no sites given; name at least one, such as Site(10)")


def _compared(
    model: nn.Module,
    term: OrthogonalToOriginal | DistanceFromOriginal,
    batch: Batch,
    compare: Callable[[Tensor, Tensor], Tensor],
) -> Scalar:
    mask_BT = term.tokens(batch)
    with torch.no_grad():
        before = states_at(term.original, batch, term.sites)
    after = states_at(model, batch, term.sites)
    values = [term.normalise(compare(after[s], before[s]) * mask_BT, mask_BT) for s in term.sites]
    return torch.stack(values).mean()
