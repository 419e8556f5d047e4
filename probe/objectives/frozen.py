"""What frozen weights compute, kept instead of computed anew each step: states of rows, and all blocks below a layer.

Rows are looked up by their tokens, so that order, padding and device do not matter.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import InitVar, dataclass, field
from typing import Any

import torch
from torch import nn

from probe.axes import HiddenBTD, Scalar
from probe.data import Batch
from probe.hooks import edited
from probe.modes import evaluating
from probe.objectives.objective import Objective
from probe.objectives.original import row_keys
from probe.objectives.representation import TokenChoice, hidden_at, mean_square, real_tokens
from probe.objectives.token import Normalise, token_mean
from probe.outputs import first_given
from probe.sites import Site, blocks, layer_of


@dataclass(frozen=True, eq=False)
class CachedOriginal:
    """Hidden states of every row of ``batch`` at one site, computed once with the weights as they are now.

    Takes rows * length * width numbers in the model's dtype. Values differ from those of a fresh pass by rounding
    only; at padding too, as long as tokens of a row meet one another in attention alone.

    Args:
        model: run in eval mode, and not kept.
        batch: every row that will be asked for.
        site: where hidden states are read.
        batch_size: rows per pass.

    Raises:
        ValueError: weights that are not loaded, or a site outside the model.
    """

    model: InitVar[nn.Module]
    batch: InitVar[Batch]
    site: Site
    batch_size: InitVar[int] = 16
    states: HiddenBTD = field(init=False, repr=False)
    places: dict[bytes, int] = field(init=False, repr=False)

    def __post_init__(self, model: nn.Module, batch: Batch, batch_size: int) -> None:
        device = next(model.parameters()).device
        with evaluating(model), torch.no_grad():
            pieces = [
                hidden_at(model, _rows(batch, at, batch_size).to(device), self.site)
                for at in _starts(batch, batch_size)
            ]
        object.__setattr__(self, "states", torch.cat(pieces))
        object.__setattr__(self, "places", {key: i for i, key in enumerate(row_keys(batch))})

    def at(self, batch: Batch) -> HiddenBTD:
        """The states of these rows.

        Raises:
            ValueError: a row that was not computed, or one with more padding than any that was.
        """
        keys = row_keys(batch)
        unknown = [i for i, key in enumerate(keys) if key not in self.places]
        if unknown or batch.tokens_BT.shape[1] > self.states.shape[1]:
            raise ValueError(
                f"{len(unknown)} of {len(keys)} rows are not among the {len(self.places)} whose states at {self.site} "
                f"were computed (up to {self.states.shape[1]} tokens, asked for {batch.tokens_BT.shape[1]}); make the "
                "cache from the data of the term that uses it"
            )
        index = torch.tensor([self.places[key] for key in keys], device=self.states.device)
        return self.states[index, : batch.tokens_BT.shape[1]].to(batch.tokens_BT.device)


@dataclass(frozen=True)
class NearCached:
    """L = mean over chosen tokens and width of (h - h0)^2, h0 looked up: ``NearOriginal`` without its second model.

    RMU's retain term (Li et al., arXiv 2403.03218, eq. 2).

    Args:
        original: states of the model before unlearning, of every row of the term.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    >>> from probe.objectives import CachedOriginal
    >>> kept = CachedOriginal(s.original, s.split.retain, probe.Site(3))
    >>> abs(float(probe.NearCached(kept)(s.original, s.split.retain))) < 1e-6
    True
    """

    original: CachedOriginal
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        hidden_BTD = hidden_at(model, batch, self.original.site)
        return mean_square(hidden_BTD - self.original.at(batch), self.tokens(batch), self.normalise)


@dataclass(frozen=True)
class _ReplaceStates:
    """These hidden states in place of whatever comes."""

    hidden_BTD: HiddenBTD = field(repr=False)

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self.hidden_BTD.to(hidden_BTD.dtype)


@dataclass(frozen=True, eq=False)
class AboveFrozen:
    """``objective`` with the blocks below a layer skipped: what would enter the layer is looked up.

    Args:
        objective: runs each batch once, whole, and reads nothing below the layer.
        entering: states at the input of the layer's block.
        weights: name, address and version of each weight below; the states hold as long as these do.
        wrapped: whether blocks return a tuple.
    """

    objective: Objective
    entering: CachedOriginal
    # An address says nothing about what is computed: no part of a run's configuration.
    weights: tuple[tuple[str, int, int], ...] = field(repr=False, compare=False)
    wrapped: bool

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        now = dict(model.named_parameters())
        for name, address, version in self.weights:
            if now[name].requires_grad and torch.is_grad_enabled():
                raise ValueError(f"{name} is trained but lies below the layer whose input is kept; train others")
            if (now[name].data_ptr(), now[name]._version) != (address, version):
                raise ValueError(f"{name} has changed since the states above it were kept; compute them anew")
        with _above(model, self.entering, batch, self.wrapped):
            return self.objective(model, batch)


def above_frozen(
    model: nn.Module, objective: Objective, batch: Batch, layer: int, *, batch_size: int = 16
) -> AboveFrozen:
    """The same objective, but each call runs only the blocks from ``layer`` on.

    For training that leaves everything below ``layer`` as it is (RMU trains blocks l-2 to l): what enters the layer
    is then the same at every step, and is computed once for all rows.

    Args:
        model: the model to be trained, as it is now.
        objective: reads nothing below the layer; runs each batch once, whole.
        batch: every row of the term.
        layer: the first block that still runs; above 0.
        batch_size: rows per pass.

    Raises:
        ValueError: no block below the layer, or a family whose blocks cannot be skipped (compared on the first rows).
    """
    if layer < 1:
        raise ValueError(f"layer must be at least 1, got {layer}: nothing lies below it")
    entering = CachedOriginal(model, batch, Site(layer, "block", "in"), batch_size)
    first = _rows(batch, 0, batch_size).to(next(model.parameters()).device)
    returned: list[type] = []
    with evaluating(model), torch.no_grad():
        with _forwards_of([blocks(model)[0]], [_noting(blocks(model)[0], returned)]):
            expected_BTD = hidden_at(model, first, Site(layer))
        with _above(model, entering, first, wrapped=returned[0] is tuple):
            found_BTD = hidden_at(model, first, Site(layer))
    real = first.attention_BT
    if not torch.allclose(found_BTD[real], expected_BTD[real], rtol=1e-3, atol=1e-3 * expected_BTD.abs().max().item()):
        raise ValueError(
            f"{type(model).__name__} computes something else at layer {layer} when the blocks below are skipped; "
            "use the plain objective"
        )
    parameters = dict(model.named_parameters())
    ends = [i for i, name in enumerate(parameters) if (at := layer_of(model, name)) is not None and at >= layer]
    below = list(parameters.items())[: ends[0]]
    weights = tuple((name, p.data_ptr(), p._version) for name, p in below)
    return AboveFrozen(objective, entering, weights, returned[0] is tuple)


@contextmanager
def _above(model: nn.Module, entering: CachedOriginal, batch: Batch, wrapped: bool) -> Iterator[None]:
    """Inside, a forward of ``batch`` passes the blocks below by and takes the states that were kept.

    Args:
        model: the one whose states were kept.
        entering: states at the input of a block.
        batch: the only rows that a forward inside may be given.
        wrapped: whether blocks return a tuple.
    """

    def pass_on(*args: Any, **kwargs: Any) -> Any:
        hidden = first_given(args, kwargs)
        return (hidden,) if wrapped else hidden

    below = list(blocks(model))[: entering.site.layer]
    with (
        _forwards_of(below, [pass_on] * len(below)),
        edited(model, {entering.site: _ReplaceStates(entering.at(batch))}),
    ):
        yield


def _noting(block: nn.Module, returned: list[type]) -> Callable[..., Any]:
    forward = block.forward

    def noted(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        returned.append(type(output))
        return output

    return noted


@contextmanager
def _forwards_of(modules: Sequence[nn.Module], forwards: Sequence[Callable[..., Any]]) -> Iterator[None]:
    """Each module runs another forward inside; what a library had put in that place comes back."""
    before = [vars(module).get("forward") for module in modules]
    try:
        for module, forward in zip(modules, forwards, strict=True):
            vars(module)["forward"] = forward
        yield
    finally:
        for module, own in zip(modules, before, strict=True):
            vars(module).pop("forward", None)
            if own is not None:
                vars(module)["forward"] = own


def _starts(batch: Batch, batch_size: int) -> range:
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    return range(0, len(batch), batch_size)


def _rows(batch: Batch, start: int, size: int) -> Batch:
    """Consecutive rows at the batch's full width, so that all have states at as many positions."""
    rows = slice(start, start + size)
    return Batch(
        batch.tokens_BT[rows],
        batch.attention_BT[rows],
        batch.attention_BT[rows],
        batch.group_B[rows],
        batch.prompt_B[rows],
        warn=False,
        unseen_BT=None if batch.unseen_BT is None else batch.unseen_BT[rows],
    )
