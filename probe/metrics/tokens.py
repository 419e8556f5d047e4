"""What one teacher-forced pass tells about every target token, without logits where nothing is asked."""

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.axes import HiddenND
from probe.context import check_context
from probe.data import Batch
from probe.hooks import captured
from probe.metrics.arrays import ArrayN
from probe.metrics.forward import device_of
from probe.modes import evaluating
from probe.sites import Site, check_hookable, place_of, unwrapped

# Rows differ in length, so the axis is not named to the shape checker.
MatchT = Bool[np.ndarray, "_"]
NumberT = Float[np.ndarray, "_"]

_NORM = Site(0, "norm")
_Head = Callable[[Tensor], Tensor]
_PerToken = tuple[Tensor, Tensor, Tensor | None, Tensor | None]


@dataclass(frozen=True)
class TokenStats:
    """One entry per row, in the order of the batch; within a row one number per target token, eos last.

    Args:
        logp: ln p of each target token given the true tokens before it.
        correct: whether each target token is the argmax.
        mean: mu = sum_v p_v ln p_v over the vocabulary, where the token is predicted; None if not asked for.
        variance: sum_v p_v (ln p_v - mu)^2; None if not asked for.
        ends: how many of each row's last tokens end the answer (eos, or a chat's end of turn); None: one each.
    """

    logp: tuple[NumberT, ...]
    correct: tuple[MatchT, ...]
    mean: tuple[NumberT, ...] | None = None
    variance: tuple[NumberT, ...] | None = None
    ends: tuple[int, ...] | None = None

    def __len__(self) -> int:
        return len(self.logp)

    @cached_property
    def loss_N(self) -> ArrayN:
        """Mean cross-entropy of each row's target tokens, eos included (nats)."""
        return np.array([-logp_T.mean() for logp_T in self.logp])

    @property
    def probability_N(self) -> ArrayN:
        """exp(-loss_N), the probability of each row's answer normalised for its length."""
        return np.exp(-self.loss_N)

    @property
    def n_tokens_N(self) -> Int[np.ndarray, " N"]:
        """Number of target tokens of each row, eos included."""
        return np.array([len(logp_T) for logp_T in self.logp])

    def select(self, rows: Any) -> "TokenStats":
        """The given rows, in the order given; a row may be given twice."""

        def chosen(kept: Any) -> Any:
            return None if kept is None else tuple(kept[int(i)] for i in rows)

        columns = (self.logp, self.correct, self.mean, self.variance, self.ends)
        return TokenStats(*(chosen(column) for column in columns))

    def matches(self) -> tuple[MatchT, ...]:
        """``correct`` without what ends each row's answer, its eos: what memorisation is measured on."""
        return self.without_eos().correct

    def without_eos(self) -> "TokenStats":
        """Each row without what ends its answer, one eos as a rule; a row may be empty then."""
        ends = self.ends or (1,) * len(self)

        def cut(kept: Any) -> Any:
            if kept is None:
                return None
            return tuple(values_T[: len(values_T) - n] for values_T, n in zip(kept, ends, strict=True))

        nothing = (0,) * len(self)
        return TokenStats(cut(self.logp), cut(self.correct), cut(self.mean), cut(self.variance), nothing)


def token_stats(
    model: nn.Module, batch: Batch, *, batch_size: int = 64, targets_at_once: int = 512, moments: bool = False
) -> TokenStats:
    """ln p of each row's target tokens, with what memorisation and membership attacks read, from one forward pass.

    Final hidden states are gathered where targets are predicted, and only those meet the head, ``targets_at_once`` at a
    time: at most four arrays of that many x vocabulary exist at once, whatever the number of rows. A model whose logits
    are more than its head of the final norm (soft caps, scaled logits), or that cannot be hooked, gives them itself;
    then fewer rows go together, so that its logits stay within those arrays or those of one row.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        batch: rows in any order; they are run sorted by length, which changes nothing but the time taken.
        batch_size: rows per pass.
        targets_at_once: target tokens whose distributions are held at once.
        moments: whether mean and variance of ln p over the vocabulary are computed, for Min-K%++.

    Returns:
        the statistics, one entry per row of the batch, in float64 (computed in float32 at least).

    Raises:
        ValueError: rows without a target token, rows longer than the model's context, sizes below 1, or a model that
            gives NaN.

    >>> stats = probe.token_stats(s.original, s.split.forget)
    >>> len(stats.logp) == len(s.split.forget)
    True
    """
    empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} of {len(batch)} rows have no target token (first: row {empty[0]}); drop them")
    if batch_size < 1 or targets_at_once < 1:
        sizes = f"batch_size {batch_size} and targets_at_once {targets_at_once}"
        raise ValueError(f"batch_size and targets_at_once must be at least 1, got {sizes}")
    length_B = batch.attention_BT.sum(1)
    check_context(model, int(length_B.max()))
    order = torch.argsort(length_B, stable=True)
    kept: list[Any] = [None] * len(batch)
    with evaluating(model), torch.no_grad(), _reading(model, targets_at_once) as read:
        for rows in order.split(batch_size):
            part = batch.select(rows).to(device_of(model))
            found = [_joined(values) for values in zip(*read(part, moments), strict=True)]
            ends = part.target_BT[:, 1:].sum(1).cumsum(0)[:-1].cpu().numpy()
            pieces = [[None] * len(rows) if whole is None else np.split(whole, ends) for whole in found]
            for i, *row in zip(rows.tolist(), *pieces, strict=True):
                kept[i] = row
    broken = sum(bool(np.isnan(row[0]).any()) for row in kept)
    if broken:
        raise ValueError(f"the model gives NaN for {broken} of {len(batch)} rows; its weights or an edit are broken")
    logp, correct, mean, variance = (tuple(column) for column in zip(*kept, strict=True))
    n_end = None if batch.end_B is None else tuple(batch.end_B.tolist())
    return TokenStats(logp, correct, mean if moments else None, variance if moments else None, n_end)


def _joined(values: Any) -> np.ndarray | None:
    if values[0] is None:
        return None
    whole_N = torch.cat(values)
    return (whole_N if whole_N.dtype == torch.bool else whole_N.double()).cpu().numpy()


@contextmanager
def _reading(model: nn.Module, targets_at_once: int) -> Iterator[Callable[[Batch, bool], Iterator[_PerToken]]]:
    """How to get from a batch to its target tokens' numbers, in pieces."""
    inner: Any = unwrapped(model)
    takes = inspect.signature(inner.forward).parameters
    head: _Head | None = inner.get_output_embeddings() if hasattr(inner, "get_output_embeddings") else None
    if head is None or "logits_to_keep" not in takes or not _has_norm(model):
        yield lambda part, moments: _from_logits(model, part, targets_at_once, moments, "logits_to_keep" in takes)
        return
    found = head
    with captured(model, [_NORM]) as states:

        def read(part: Batch, moments: bool) -> Iterator[_PerToken]:
            last_B1V = model(**part.inputs, use_cache=False, logits_to_keep=1).logits
            hidden_BTD = states.pop(_NORM)
            # The model's own logits, had for little, say whether the head is all that follows the norm.
            if not _same(found, hidden_BTD[:, -1:], last_B1V):
                return _from_logits(model, part, targets_at_once, moments, True)
            predicted_BT = part.target_BT[:, 1:]
            return _from_hidden(
                hidden_BTD[:, :-1][predicted_BT], part.tokens_BT[:, 1:][predicted_BT], found, targets_at_once, moments
            )

        yield read


def _has_norm(model: nn.Module) -> bool:
    try:
        check_hookable(model)
        place_of(model, _NORM)
    except ValueError:
        return False
    return True


def _same(head: _Head, hidden_B1D: Tensor, logits_B1V: Tensor) -> bool:
    try:
        return torch.equal(head(hidden_B1D), logits_B1V)
    except RuntimeError:  # another width: something lies between the norm and the head
        return False


def _from_hidden(
    hidden_ND: HiddenND, target_N: Tensor, head: _Head, targets_at_once: int, moments: bool
) -> Iterator[_PerToken]:
    for hidden_CD, target_C in zip(hidden_ND.split(targets_at_once), target_N.split(targets_at_once), strict=True):
        yield token_numbers(head(hidden_CD), target_C, moments)


def _from_logits(
    model: nn.Module, part: Batch, targets_at_once: int, moments: bool, selects: bool
) -> Iterator[_PerToken]:
    widest = int(part.target_BT[:, 1:].any(0).sum()) if selects else part.tokens_BT.shape[1]
    for rows in part.chunks(max(1, targets_at_once // widest)):
        predicted_BT = rows.target_BT[:, 1:]
        # Only positions that some row needs.
        union_T = predicted_BT.any(0).nonzero().flatten() if selects else slice(predicted_BT.shape[1])
        keep = {"logits_to_keep": union_T} if selects else {}
        logits_BTV = model(**rows.inputs, use_cache=False, **keep).logits
        logits_NV = (logits_BTV if selects else logits_BTV[:, union_T])[predicted_BT[:, union_T]]
        for logits_CV, target_C in zip(
            logits_NV.split(targets_at_once), rows.tokens_BT[:, 1:][predicted_BT].split(targets_at_once), strict=True
        ):
            yield token_numbers(logits_CV, target_C, moments)


def token_numbers(logits_NV: Tensor, target_N: Tensor, moments: bool) -> _PerToken:
    """ln p of each target, whether it is the argmax, and mean and variance of ln p over the vocabulary, or None."""
    correct_N = logits_NV.argmax(-1) == target_N
    logits_NV = logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()
    logp_NV = torch.log_softmax(logits_NV, -1)
    logp_N = logp_NV.gather(-1, target_N[:, None])[:, 0]
    if not moments:
        return logp_N, correct_N, None, None
    p_NV = logp_NV.exp()
    mean_N = torch.einsum("nv,nv->n", p_NV, logp_NV)
    if not mean_N.isfinite().all():
        # Words that cannot occur: p ln p is 0 there, and -1e4 has p = 0 in every precision.
        logp_NV.clamp_(min=-1e4)
        mean_N = torch.einsum("nv,nv->n", p_NV, logp_NV)
    # Around the mean, for the difference of two large moments would lose digits.
    variance_N = torch.einsum("nv,nv->n", p_NV, logp_NV.sub_(mean_N[:, None]).square_())
    return logp_N, correct_N, mean_N, variance_N
