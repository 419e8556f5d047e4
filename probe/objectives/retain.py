"""Terms that hold on to what must stay. The plain one is ``probe.objectives.token.nll``."""

from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import Scalar
from probe.data import Batch


@dataclass(frozen=True)
class ForwardKL:
    """L = mean over target positions of KL(pi0 || pi) = sum_v pi0 (log pi0 - log pi), in nats.

    The direction of TOFU's and OpenUnlearning's code (arXiv 2401.06121), averaged here over the positions that
    predict a target; the published code divides by every position, padding included.

    Args:
        original: the model before unlearning, frozen.
    """

    original: nn.Module = field(repr=False)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        predicted = batch.target_BT[:, 1:]
        logp_NV = torch.log_softmax(model(**batch.inputs, use_cache=False).logits[:, :-1][predicted], -1)
        with torch.no_grad():
            before_NV = torch.log_softmax(self.original(**batch.inputs, use_cache=False).logits[:, :-1][predicted], -1)
        return (before_NV.exp() * (before_NV - logp_NV)).sum(-1).mean()
