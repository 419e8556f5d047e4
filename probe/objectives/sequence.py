"""Objectives over whole answers, and the three different losses that codes call NPO.

NPO as printed sums log-probabilities over an answer and compares answer by answer (SS): ``NPO``. The code of MUSE and
what derives from it compares raw logits entry by entry: ``LogitNPO``. The code used for WMDP compares one token mean a
batch: ``BatchNPO``. Rows without a target enter the means over rows with a log-probability of 0.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.original import OriginalAnswers, check_vocabulary, original_logprobs
from probe.objectives.token import check_not_negative, check_positive, nll, token_mean

ValueB = Float[Tensor, " B"]
OverRows = Callable[[ValueB], Scalar]


def row_mean(value_B: ValueB) -> Scalar:
    """The mean over rows, as published; ``probe.objectives.robust`` has others."""
    return value_B.mean()


@dataclass(frozen=True)
class NPO:
    """L = (2/beta) mean_b log(1 + (pi(y|x) / pi0(y|x))^beta): negative preference optimisation.

    Zhang et al., arXiv 2404.05868, eq. 4; log pi is the sum over the answer's tokens. The gradient is that of
    sequence-sum gradient ascent times 2 pi^beta / (pi^beta + pi0^beta).

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it.
        beta: inverse temperature, above 0; published runs use 0.1.
        over_rows: how losses of rows are put together.

    Raises:
        ValueError: beta is not positive.

    >>> loss = probe.NPO(s.original, beta=0.1)
    >>> round(float(loss(s.original, s.split.forget)), 2)  # (2 / beta) log 2 before the first step
    13.86
    >>> bool(loss(s.retrained, s.split.forget) < loss(s.original, s.split.forget))
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float
    over_rows: OverRows = row_mean

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_B = target_logprobs(model, batch).sum(1)
        reference_B = original_logprobs(self.original, batch).sum(1)
        return self.over_rows(-(2 / self.beta) * logsigmoid(-self.beta * (logp_B - reference_B)))


@dataclass(frozen=True)
class BatchNPO:
    """L = -(2/beta) log sigmoid(-beta d), d = the token mean of log p - log p0 over the whole batch (TM).

    What the WMDP code of SimNPO's and NPO+SAM's authors calls NPO; for one row it is NPO with beta / |y|, times
    1 / |y|. Its beta is not comparable with ``NPO``'s; published: 0.0225 (WMDP, Zephyr-7B).

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it.
        beta: inverse temperature, above 0.

    Raises:
        ValueError: beta is not positive.

    >>> loss = probe.BatchNPO(s.original, beta=0.1)
    >>> bool(loss(s.retrained, s.split.forget) < loss(s.original, s.split.forget))
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        difference_BT = target_logprobs(model, batch) - original_logprobs(self.original, batch)
        return -(2 / self.beta) * logsigmoid(-self.beta * token_mean(difference_BT, predicted_targets(batch)))


@dataclass(frozen=True)
class LogitNPO:
    """L = -(2/beta) mean_btv log sigmoid(beta (z0_btv - z_btv)): what MUSE's code (arXiv 2407.06460) calls NPO.

    Raw logits z, at every position and token of the vocabulary, padding included (ALL). Not a function of the
    model's distribution: a constant added to all logits changes it.

    Args:
        original: the model before unlearning, frozen.
        beta: inverse temperature, above 0.

    Raises:
        ValueError: beta is not positive, or the vocabularies differ.

    >>> loss = probe.LogitNPO(s.original, beta=0.1)
    >>> round(float(loss(s.original, s.split.forget)), 2)  # (2 / beta) log 2 where nothing has changed
    13.86
    """

    original: nn.Module = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logits_BTV = model(**batch.inputs, use_cache=False).logits
        with torch.no_grad():
            before_BTV = self.original(**batch.inputs, use_cache=False).logits
        check_vocabulary(before_BTV, logits_BTV)
        return -(2 / self.beta) * logsigmoid(self.beta * (before_BTV - logits_BTV)).mean()


@dataclass(frozen=True)
class SimNPO:
    """L = -(2/beta) mean_b log sigmoid(-(beta/|y|) log pi(y|x) - gamma - beta delta): NPO without a reference.

    Fan et al., arXiv 2410.07163; log pi / |y| is the mean over the answer's tokens (SM). The paper's margin gamma
    stands outside beta; the code has a margin delta inside it. Published TOFU runs have neither, with beta 2.5
    (forget05) and 4.5 (forget10) and a weight of 0.1375 and 0.125 on this term.

    Args:
        beta: inverse temperature, above 0.
        gamma: margin as in the paper, at least 0.
        delta: margin as in the code, at least 0; give one of the two.
        over_rows: how losses of rows are put together.

    Raises:
        ValueError: beta is not positive, a margin is negative, or both are given.

    >>> loss = probe.SimNPO(beta=2.5, gamma=0.0)
    >>> bool(loss(s.retrained, s.split.forget) < loss(s.original, s.split.forget))
    True
    """

    beta: float
    gamma: float = 0.0
    delta: float = 0.0
    over_rows: OverRows = row_mean

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        check_not_negative("gamma", self.gamma)
        check_not_negative("delta", self.delta)
        if self.gamma and self.delta:
            raise ValueError(f"gamma ({self.gamma}) and delta ({self.delta}) are two names of one margin; give one")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        n_B = predicted_targets(batch).sum(1).clamp(min=1)
        mean_B = target_logprobs(model, batch).sum(1) / n_B
        margin = self.gamma + self.beta * self.delta
        return self.over_rows(-(2 / self.beta) * logsigmoid(-self.beta * mean_B - margin))


@dataclass(frozen=True)
class BatchSimNPO:
    """L = -(2/beta) log sigmoid(beta NLL), NLL the token mean over the whole batch (TM): SimNPO, from its WMDP code.

    Args:
        beta: inverse temperature, above 0; published 0.1 (the authors' configuration) and 5.5 (their model card).

    Raises:
        ValueError: beta is not positive.

    >>> loss = probe.BatchSimNPO(beta=2.5)
    >>> bool(loss(s.retrained, s.split.forget) < loss(s.original, s.split.forget))
    True
    """

    beta: float

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return -(2 / self.beta) * logsigmoid(self.beta * nll(model, batch))
