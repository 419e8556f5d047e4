"""At which depth does the stream already say the answer, read through the final norm and head?"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.context import check_rows
from probe.data import Batch
from probe.diagnostics.sides import of_model
from probe.diagnostics.tuned_lens import TunedLens
from probe.display import Result, ResultTable
from probe.hooks import captured
from probe.modes import evaluating
from probe.objectives.head import through_head
from probe.objectives.logprobs import before_targets, next_tokens
from probe.rows import Row, over_layers
from probe.sites import Site, n_layers

PerRowLB = Float[Tensor, "L B"]
# Share of the logits' range by which the last block's reading may differ from the model's own output.
_APART = 0.05
# Lower than any logit that means something: families mask tokens with the least number of the dtype.
_MASKED = -1e4


@dataclass(frozen=True, eq=False)
class LogitLens(Result):
    """What each layer would say where targets are predicted.

    Args:
        layers: block indices, in the order of the arrays.
        logprob_LB: mean log-probability of a row's target tokens (nats).
        first_logprob_LB: of its first target token alone.
        rank_LB: how many tokens are at least as probable as the first target; 0 is best, ties count against it.
        model_logprob_B: mean log-probability by the model's own output.
        entropy_L: mean entropy of the distribution read (nats).
        tuned: whether a translator was applied.
        vocabulary: how many tokens it is read over.
    """

    layers: tuple[int, ...]
    logprob_LB: PerRowLB = field(repr=False)
    first_logprob_LB: PerRowLB = field(repr=False)
    rank_LB: Int[Tensor, "L B"] = field(repr=False)
    model_logprob_B: Float[Tensor, " B"] = field(repr=False)
    entropy_L: PerLayerL
    tuned: bool
    vocabulary: int

    @property
    def mute_L(self) -> Bool[Tensor, " L"]:
        """Where targets get less than a uniform guess gives them, in mean log-probability.

        Where that is so of the original model, the lens cannot read there what a model knows, and nothing follows from
        its silence in another one: a tuned lens may read more.
        """
        return self.logprob_LB.mean(1) < -math.log(self.vocabulary)

    @property
    def probability_L(self) -> PerLayerL:
        """Length-normalised probability exp(mean log-probability), mean over rows."""
        return self.logprob_LB.exp().mean(1)

    @property
    def first_share_L(self) -> PerLayerL:
        """Share of rows whose first target comes first."""
        return (self.rank_LB == 0).double().mean(1)

    @property
    def hidden_from_output(self) -> float:
        """Largest mean probability of an earlier layer less that of the last: above 0, later layers take it back."""
        return float(self.probability_L.max() - self.probability_L[-1])

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Means over answers at each layer, and where the lens is mute; ``on`` says whose answers these are."""
        columns = {
            "answer probability": self.probability_L,
            "first token first": self.first_share_L,
            "entropy": self.entropy_L,
            "mute": self.mute_L,
        }
        n, rows = self.logprob_LB.shape[1], []
        for quantity, value_L in columns.items():
            rows += over_layers(name, "logit_lens", quantity, self.layers, value_L, on, n=n)
        return rows

    def table(self) -> ResultTable:
        columns = {
            "probability": self.probability_L,
            "first token first": self.first_share_L,
            "entropy": self.entropy_L,
        }
        what = "tuned lens" if self.tuned else "logit lens"
        return ResultTable({"layer": self.layers, **columns}, note=f"{what}; {self.logprob_LB.shape[1]} answers")


@of_model
def logit_lens(
    model: nn.Module,
    batch: Batch,
    *,
    layers: Sequence[int] | None = None,
    lens: TunedLens | None = None,
    batch_size: int = 32,
) -> LogitLens:
    """softmax(head(norm(h_l))) at the positions that predict targets (logit lens; nostalgebraist, 2020).

    With ``lens`` the translated state h_l + A_l h_l + b_l is read instead (tuned lens, arXiv 2303.08112). Projections,
    logit scales and soft caps are applied (``objectives.head``), and what the last block gives is compared with the
    model's own output. Read the original model, too: see ``LogitLens.mute_L``.

    Args:
        model: measured in eval mode and left as it was; edits and blends that are in force act here too.
        batch: targets are the whole answer, or the value alone (``answer_values.value_batch``).
            A split gives a result for each side.
        layers: blocks to read; None reads all.
        lens: translators of all blocks read, fitted by ``fit_tuned_lens``.
        batch_size: rows per forward pass.

    Raises:
        ValueError: rows without a target, a lens without a layer asked for, a layer outside the model, NaN, or a model
            whose output is not head(norm(last block)).

    >>> found = probe.logit_lens(s.original, s.split.forget)
    >>> bool(found.probability_L[-1] > found.probability_L[0])
    True
    """
    chosen = tuple(range(n_layers(model))) if layers is None else tuple(layers)
    if lens is not None and not set(chosen) <= set(lens.layers):
        raise ValueError(f"the lens was fitted for layers {lens.layers}, not for all of {chosen}")
    empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} of {len(batch)} rows have no target token (first: row {empty[0]}); drop them")
    sites = [Site(layer) for layer in dict.fromkeys((*chosen, n_layers(model) - 1))]
    device = next(model.parameters()).device
    pieces: list[tuple[Tensor, ...]] = []
    vocabulary = 0
    with evaluating(model), torch.no_grad():
        for chunk in batch.chunks(batch_size):
            check_rows(model, chunk)
            piece = chunk.to(device)
            with captured(model, sites) as states:
                logits_BTV = model(**piece.inputs, use_cache=False).logits
            pieces.append(_read(model, piece, states, logits_BTV, chosen, lens))
            vocabulary = logits_BTV.shape[-1]
    logprob, first, rank, own, entropy = (torch.cat(column, -1).cpu() for column in zip(*pieces, strict=True))
    if not bool(torch.isfinite(logprob).all()):
        raise ValueError("the lens gives NaN or infinity; check the model and the lens")
    return LogitLens(chosen, logprob, first, rank, own, entropy.mean(1), lens is not None, vocabulary)


def _read(
    model: nn.Module,
    batch: Batch,
    states: dict[Site, Tensor],
    logits_BTV: Tensor,
    layers: tuple[int, ...],
    lens: TunedLens | None,
) -> tuple[Tensor, ...]:
    where_BT = before_targets(batch)
    token_N = next_tokens(batch, where_BT)
    row_N = where_BT.nonzero()[:, 0]
    count_B = where_BT.sum(1)
    first_B = count_B.cumsum(0) - count_B
    last, given_NV = Site(n_layers(model) - 1), logits_BTV[where_BT]
    _check_output(through_head(model, states[last][where_BT]), given_NV, torch.finfo(given_NV.dtype).eps)
    own_NV = _wide(given_NV).log_softmax(-1)

    def mean(value_N: Tensor) -> Tensor:
        return (
            torch.zeros(len(batch), dtype=value_N.dtype, device=value_N.device).index_add(0, row_N, value_N) / count_B
        )

    logprobs, firsts, ranks, entropies = [], [], [], []
    for layer in layers:
        hidden_ND = states[Site(layer)][where_BT]
        if lens is not None:
            hidden_ND = lens.translate(hidden_ND, layer)
        logp_NV = _wide(through_head(model, hidden_ND)).log_softmax(-1)
        right_N = logp_NV.gather(1, token_N[:, None])[:, 0]
        logprobs.append(mean(right_N))
        firsts.append(right_N[first_B])
        ranks.append((logp_NV[first_B] >= right_N[first_B, None]).sum(1) - 1)
        entropies.append(torch.special.entr(logp_NV.exp()).sum(1))
    own_B = mean(own_NV.gather(1, token_N[:, None])[:, 0])
    return torch.stack(logprobs), torch.stack(firsts), torch.stack(ranks), own_B, torch.stack(entropies)


def _wide(logits: Tensor) -> Tensor:
    return logits if logits.dtype == torch.float64 else logits.float()


def _check_output(ours_NV: Tensor, own_NV: Tensor, rounding: float) -> None:
    """Refuse another way to the logits; logits count up to a constant, in units of their own range."""
    # Tokens that a family masks out would be the whole range.
    ours, own = (
        (logits - logits.amax(-1, keepdim=True)).clamp(min=_MASKED) for logits in (_wide(ours_NV), _wide(own_NV))
    )
    apart, size = (ours - own).abs().max().item(), own.abs().max().item()
    # Half precision rounds by the size of the logits themselves, which may lie far from 0.
    if not apart <= _APART * size + 2 * rounding * _wide(own_NV).abs().clamp(max=-_MASKED).max().item():
        raise ValueError(
            f"reading the last block through norm and head gives logits that differ by up to {apart:.2g} from the "
            f"model's own, whose range is {size:.2g}; this family computes logits in another way (or an edit acts on "
            "its norm or head), so the lens would not read what the model says"
        )
