"""Objectives over whole answers: log-probabilities summed over a sequence, then averaged over the batch (SS)."""

from dataclasses import dataclass, field

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.token import target_logprobs


@dataclass(frozen=True)
class NPO:
    """L = (2/beta) mean_b log(1 + (pi(y|x) / pi0(y|x))^beta): negative preference optimisation.

    Zhang et al., arXiv 2404.05868, eq. 4; log pi is the sum over the answer's tokens. The gradient is that of
    sequence-sum gradient ascent times 2 pi^beta / (pi^beta + pi0^beta).

    Args:
        original: the model before unlearning, frozen.
        beta: inverse temperature, above 0; published runs use 0.1.

    Raises:
        ValueError: beta is not positive.
    """

    original: nn.Module = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_B = target_logprobs(model, batch).sum(1)
        with torch.no_grad():
            reference_B = target_logprobs(self.original, batch).sum(1)
        return -(2 / self.beta) * logsigmoid(-self.beta * (logp_B - reference_B)).mean()
