"""Kahneman-Tversky optimisation on answers that are not wanted (KTO; Ethayarajh et al., arXiv 2402.01306)."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import nn
from torch.nn.functional import logsigmoid

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import target_logprobs
from probe.objectives.original import OriginalAnswers, original_logprobs
from probe.objectives.preference import preferred_of
from probe.objectives.sequence import ValueB
from probe.objectives.token import check_positive


@dataclass(frozen=True)
class KTO:
    """L = mean_b sigmoid(beta [r_b - z]), r = log pi(y|x) / pi0(y|x), z = sg max(0, mean_b r of the other answers).

    Ethayarajh et al., arXiv 2402.01306, eq. 8, with undesirable answers alone and lambda_U = 1; z estimates KL(pi ||
    pi0). Log-probabilities are sums over answers (SS). The data is ``paired(refusals, forget)``: z is taken from the
    refusals, as in the code of Zhang et al., arXiv 2404.05868. What that code calls KTO leaves z unclamped and outside
    beta: 1 - (2/beta) mean sigmoid(z - beta r) (``"npo-repo"``), or the same with log sigmoid (``"npo-repo-log"``,
    which is NPO + 1 at z = 0).

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it and from the paired batch.
        beta: inverse temperature, above 0.
        form: the paper's, or one of the two of that code.

    Raises:
        ValueError: beta is not positive, or the batch is not paired.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> batch = probe.paired(refusals, s.split.forget)
    >>> round(float(probe.KTO(s.original, beta=0.1)(s.original, batch)), 2)  # one half before the first step
    0.5
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float
    form: Literal["paper", "npo-repo", "npo-repo-log"] = "paper"

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        with torch.no_grad():
            z = self._logratio(model, preferred_of(batch)).mean().detach()
        reward_B = self._logratio(model, batch)
        if self.form == "paper":
            return torch.sigmoid(self.beta * (reward_B - z.clamp(min=0))).mean()
        squashed = torch.sigmoid if self.form == "npo-repo" else logsigmoid
        return 1 - (2 / self.beta) * squashed(z - self.beta * reward_B).mean()

    def _logratio(self, model: nn.Module, batch: Batch) -> ValueB:
        return target_logprobs(model, batch).sum(1) - original_logprobs(self.original, batch).sum(1)
