"""The inverted hinge loss of LoKU (Cha et al., arXiv 2408.06621)."""

from dataclasses import dataclass

import torch
from torch import nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import before_targets, logits_at, next_tokens, scattered
from probe.objectives.token import Normalise, token_mean


@dataclass(frozen=True)
class InvertedHinge:
    """L = mean [1 + p(y) - max_{v != y} p(v)]: the answer's token down, the likeliest other one up (IHL).

    Cha et al., arXiv 2408.06621. Between 0 and 2; with v* the likeliest other token, dL/dz is p_y (1 - p_y + p_v*) at
    y, p_v* (p_v* - 1 - p_y) at v* and p_v (p_v* - p_y) elsewhere.

    Args:
        normalise: how tokens are averaged.

    >>> loss = probe.InvertedHinge()  # between 0 and 2
    >>> bool(loss(s.retrained, s.split.forget) < loss(s.original, s.split.forget))
    True
    """

    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = before_targets(batch)
        p_NV = torch.softmax(logits_at(model, batch, positions_BT), -1)
        y_N1 = next_tokens(batch, positions_BT)[:, None]
        value_N = 1 + p_NV.gather(1, y_N1)[:, 0] - p_NV.scatter(1, y_N1, -1.0).amax(1)
        return self.normalise(scattered(value_N, positions_BT), positions_BT)
