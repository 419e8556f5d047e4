"""The token a model would take that does not know the text: Who's Harry Potter (Eldan and Russinovich, 2310.02238)."""

from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import before_targets, logits_at, scattered
from probe.objectives.original import check_vocabulary
from probe.objectives.representation import TokenChoice
from probe.objectives.token import Normalise, check_not_negative, token_mean


@dataclass(frozen=True)
class GenericLabels:
    """L = -mean log pi(y*), y* = argmax_v [z0_v - alpha relu(z+_v - z0_v)]: towards the generic prediction.

    Eldan and Russinovich, Who's Harry Potter, arXiv 2310.02238. z0 are the raw logits of the original and z+ those of a
    reinforced model, the original trained further on what is to be forgotten: where reinforcement raises a logit, the
    token belongs to that text. alpha = 0 keeps the original's own choices. The paper also has the names of the text
    replaced by generic ones before z0 is taken, by a dictionary that another model writes; that is left out.

    Args:
        original: the model before unlearning, frozen.
        reinforced: the same trained further on the forget rows, frozen.
        alpha: strength, at least 0.
        positions: where.
        normalise: how positions are averaged.

    Raises:
        ValueError: alpha is negative, or the vocabularies differ.

    >>> loss = probe.GenericLabels(s.original, reinforced=s.retrained, alpha=5.0)
    >>> tuple(loss(s.original, s.split.forget).shape)
    ()
    """

    original: nn.Module = field(repr=False)
    reinforced: nn.Module = field(repr=False)
    alpha: float
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_not_negative("alpha", self.alpha)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logp_NV = torch.log_softmax(logits_at(model, batch, positions_BT), -1)
        with torch.no_grad():
            before_NV, raised_NV = (logits_at(m, batch, positions_BT) for m in (self.original, self.reinforced))
        for other_NV in (before_NV, raised_NV):
            check_vocabulary(other_NV, logp_NV)
        y_N = (before_NV - self.alpha * (raised_NV - before_NV).relu()).argmax(-1)
        value_N = -logp_NV.gather(-1, y_N[:, None])[:, 0]
        return self.normalise(scattered(value_N, positions_BT), positions_BT)
