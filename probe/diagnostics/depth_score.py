"""How deep was the knowledge erased? States of other models are patched into the original, layer by layer."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.context import check_rows
from probe.data import Batch, Split
from probe.display import Result, ResultTable
from probe.hooks import captured, edited
from probe.interventions.replacement import Replace
from probe.modes import evaluating
from probe.objectives.logprobs import before_targets, predicted_targets, target_logprobs
from probe.positions import At, Mask
from probe.rows import Row, over_layers
from probe.sites import Site, n_layers
from probe.weights import check_same_architecture

LossLB = Float[Tensor, "L B"]

# The paper's threshold, in nats per token.
THRESHOLD = 0.05


@dataclass(frozen=True, eq=False)
class DepthScore(Result):
    """Unlearning depth score: 0 where the knowledge is intact, 1 where it is as absent as in the retrained model.

    Args:
        layers: block indices, in the order of the arrays.
        score: mean over the rows that have a knowledge gap.
        score_B: per row; NaN where no layer has a gap.
        retrained_LB: loss of log-probability per target token (nats) by the retrained model's states.
        unlearned_LB: the same by the unlearned model's states.
        gap_LB: layers at which ``retrained_LB`` exceeds the threshold.
        n_scored: rows with a gap; the others are skipped, for the original knows no more of them than the retrained.
    """

    layers: tuple[int, ...]
    score: float
    score_B: Float[Tensor, " B"] = field(repr=False)
    retrained_LB: LossLB = field(repr=False)
    unlearned_LB: LossLB = field(repr=False)
    gap_LB: Bool[Tensor, "L B"] = field(repr=False)
    n_scored: int

    @property
    def erased_L(self) -> PerLayerL:
        """Mean over rows with a gap at the layer of clip(unlearned loss / retrained loss, 0, 1); NaN without rows."""
        ratio_LB = (self.unlearned_LB / self.retrained_LB).clamp(0, 1)
        return torch.where(self.gap_LB, ratio_LB, torch.zeros_like(ratio_LB)).sum(1) / self.gap_LB.sum(1)

    def rows(self, name: str = "model") -> list[Row]:
        rows = [Row(name, "depth_score", "score", self.score, "forget", n=self.n_scored)]
        return rows + over_layers(name, "depth_score", "erased", self.layers, self.erased_L, "forget")

    def table(self) -> ResultTable:
        note = f"depth score {self.score:.3f} over {self.n_scored} rows; 1: as absent as in the retrained model"
        return ResultTable({"layer": self.layers, "erased": self.erased_L}, note=note)


def depth_score(
    original: nn.Module,
    unlearned: nn.Module,
    on: Split | Batch,
    *,
    retrained: nn.Module | None = None,
    layers: Sequence[int] | None = None,
    threshold: float = THRESHOLD,
    retrained_LB: LossLB | None = None,
    batch_size: int = 32,
) -> DepthScore:
    """sum_l d1_l clip(d2_l / d1_l, 0, 1) / sum_l d1_l over layers with d1_l > threshold, per row; mean over rows.

    Lee, Kim and Jo, arXiv 2605.24614, as their paper and code describe it: d1_l is the mean loss of log-probability of
    the target tokens when the original's block output l is replaced by the retrained model's at the positions that
    predict those tokens, all models reading the same true text; d2_l is the same with the unlearned model's. Targets
    there are the words that carry the fact: pass ``answer_values.value_batch``.

    States are a block's own output at every layer. The released code takes them from Hugging Face's hidden states, of
    which the last is behind the final norm, and puts it in before that norm, which is then applied twice: up to 0.094
    nats at the last layer, 0.58031 against 0.58039 in the score of one model.

    Args:
        original: what is patched; it must know the facts.
        unlearned, retrained: whose states are put in. The retrained model must not know the facts; one that does
            leaves no gap.
        on: forget rows, or a split with them.
        layers: blocks to patch; None patches each.
        threshold: least d1 that counts as a gap, nats per token.
        retrained_LB: from an earlier result on the same rows, so that d1 is computed once for many unlearned models.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no retrained model and no losses of one, other architectures, rows without a target, no row with a
            gap, or NaN.

    >>> few = s.split.forget.select(range(4))
    >>> probe.depth_score(s.original, s.original, few, retrained=s.retrained, layers=[4, 7]).score
    0.0
    """
    chosen = tuple(range(n_layers(original))) if layers is None else tuple(layers)
    batch = on.forget if isinstance(on, Split) else on
    if retrained_LB is None:
        if retrained is None:
            raise ValueError("a depth is measured against a model that never knew; pass retrained= or retrained_LB=")
        retrained_LB = patched_loss(original, retrained, batch, chosen, batch_size=batch_size)
    if retrained_LB.shape != (len(chosen), len(batch)):
        raise ValueError(
            f"retrained_LB has shape {tuple(retrained_LB.shape)}; expected {len(chosen)} layers and {len(batch)} rows"
        )
    unlearned_LB = patched_loss(original, unlearned, batch, chosen, batch_size=batch_size)
    gap_LB = retrained_LB > threshold
    weight_LB = retrained_LB * gap_LB
    ratio_LB = torch.where(gap_LB, unlearned_LB / retrained_LB, torch.zeros_like(unlearned_LB)).clamp(0, 1)
    score_B = (weight_LB * ratio_LB).sum(0) / weight_LB.sum(0)
    n_scored = int(gap_LB.any(0).sum())
    if n_scored == 0:
        raise ValueError(
            f"no row has a layer where the retrained model's states cost more than {threshold} nats a token: either "
            "the original does not know these facts, or the retrained model does"
        )
    return DepthScore(
        chosen, float(score_B.nanmean()), score_B, retrained_LB, unlearned_LB, gap_LB=gap_LB, n_scored=n_scored
    )


def patched_loss(
    target: nn.Module, source: nn.Module, batch: Batch, layers: Sequence[int], *, batch_size: int = 32
) -> LossLB:
    """Mean loss of log-probability per target token when a block output is the source's where targets are predicted.

    Args:
        target: what is patched and measured; left as it was.
        source: whose states are put in.
        batch: rows that both read.
        layers: blocks, patched one at a time.
        batch_size: rows per forward pass.

    Raises:
        ValueError: other architectures, rows without a target, or NaN.
    """
    check_same_architecture(target, source)
    empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} of {len(batch)} rows have no target token (first: row {empty[0]}); drop them")
    sites = [Site(layer) for layer in layers]
    device = next(target.parameters()).device
    pieces = []
    with evaluating(target), evaluating(source), torch.no_grad():
        for chunk in batch.chunks(batch_size):
            check_rows(target, chunk)
            piece = chunk.to(device)
            with captured(source, sites, stop=True) as states:
                source(**piece.to(next(source.parameters()).device).inputs, use_cache=False)
            before_B = row_means(target, piece)
            where = Mask(before_targets(piece))
            lost = []
            for site in sites:
                with edited(target, {site: At(Replace(states[site].to(device)), where)}):
                    lost.append(before_B - row_means(target, piece))
            pieces.append(torch.stack(lost).double().cpu())
    loss_LB = torch.cat(pieces, 1)
    if not bool(torch.isfinite(loss_LB).all()):
        raise ValueError("patched log-probabilities hold NaN or infinity; check both models")
    return loss_LB


def row_means(model: nn.Module, batch: Batch) -> Float[Tensor, " B"]:
    """Mean log-probability of each row's target tokens; NaN for a row without any."""
    return target_logprobs(model, batch).sum(1) / predicted_targets(batch).sum(1)
