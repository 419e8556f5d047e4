"""Objectives on two answers to one question. Their data is ``probe.data.paired(preferred, dispreferred)``.

| method | preferred | dispreferred | objective |
|---|---|---|---|
| IDK, PO | refusals | forget answers | ``idk`` |
| IdkDPO | refusals | forget answers | ``DPO`` |
| AltPO | other plausible answers | forget answers | ``DPO`` |
| FLAT | refusals | forget answers | ``FLAT``, ``BatchFLAT`` |
| IDK+AP | refusals; and retain answers | forget answers; and refusals | ``idk`` and ``AnswerPreservation`` |

Refusals are made by ``probe.datasets.idk_rows`` and fixed by its seed; TOFU's code draws them anew at each access.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import logsigmoid, softplus

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.original import OriginalAnswers, original_logprobs
from probe.objectives.token import check_positive, nll


def preferred_of(batch: Batch) -> Batch:
    """The preferred answers beside the batch.

    Raises:
        ValueError: the batch is not paired.
    """
    if batch.preferred is None:
        raise ValueError(
            "this objective compares two answers and the batch holds one; make it with "
            "probe.data.paired(preferred, dispreferred)"
        )
    return batch.preferred


def idk(model: nn.Module, batch: Batch) -> Scalar:
    """L = -(1/n) sum_i log p_i over the preferred answers alone (TM): preference optimisation, PO or IDK.

    TOFU, arXiv 2401.06121, where preferred answers are refusals; the dispreferred ones are not read.

    >>> idk_rows = probe.idk_rows(s.split.forget_rows, seed=0)
    >>> batch = probe.paired(probe.encode(s.tokenizer, idk_rows), s.split.forget)
    >>> bool(probe.idk(s.original, batch) == probe.nll(s.original, batch.preferred))
    True
    """
    return nll(model, preferred_of(batch))


def idk_with_retain(model: nn.Module, batch: Batch) -> Scalar:
    """L = -(sum_i log p_i + sum_j log p_j) / (n + m), i over refusals and j over retain answers: PO in TOFU's code.

    One token mean over both (arXiv 2401.06121), so that longer retain answers weigh more; two ``Term``s weigh each
    side alike. Data: ``paired(refusals, retain, same_prompt=False)``.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> batch = probe.paired(refusals, s.split.retain, same_prompt=False)
    >>> round(float(probe.idk_with_retain(s.original, batch)), 1)
    6.7
    """
    sides = (preferred_of(batch), batch)
    n = sum(predicted_targets(side).sum() for side in sides)
    total = torch.stack([target_logprobs(model, side).sum() for side in sides]).sum()
    return -total / n


@dataclass(frozen=True)
class DPO:
    """L = -(2/beta) mean_b log sigmoid(beta [log pi(y+)/pi0(y+) - log pi(y-)/pi0(y-)]): preference optimisation.

    Rafailov et al., arXiv 2305.18290, eq. 7, times 2/beta as in OpenUnlearning's code; TOFU's has no such
    factor. log pi is the sum over the answer's tokens (SS). With refusals as y+ it is IdkDPO, with alternative
    answers AltPO (Mekala et al., arXiv 2409.13474); without the y+ term it is NPO.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it and from the paired batch.
        beta: inverse temperature, above 0; published runs use 0.1.

    Raises:
        ValueError: beta is not positive, or the batch is not paired.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> batch = probe.paired(refusals, s.split.forget)
    >>> round(float(probe.DPO(s.original, beta=0.1)(s.original, batch)), 2)  # (2 / beta) log 2 before the first step
    13.86
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        margin_B = self._logratio(model, preferred_of(batch)) - self._logratio(model, batch)
        return -(2 / self.beta) * logsigmoid(self.beta * margin_B).mean()

    def _logratio(self, model: nn.Module, batch: Batch) -> Tensor:
        return target_logprobs(model, batch).sum(1) - original_logprobs(self.original, batch).sum(1)


@dataclass(frozen=True)
class AnswerPreservation:
    """L = -(1/beta) mean_b log sigmoid(beta [log pi(y|x) - log pi(refusal|x)]): retain answers ahead of refusals.

    Yuan et al., arXiv 2410.08109 (AP, the retain term of IDK+AP); log pi is a sum over tokens (SS), there is no
    reference, and the factor is 1/beta where DPO has 2/beta. The gradient is w (grad log pi(refusal) - grad log
    pi(y)) with w = pi(refusal)^beta / (pi(refusal)^beta + pi(y)^beta). Data: ``paired(retain, refusals)``.

    Args:
        beta: inverse temperature, above 0; published 0.1.

    Raises:
        ValueError: beta is not positive, or the batch is not paired.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.retain_rows, seed=0))
    >>> batch = probe.paired(s.split.retain, refusals)
    >>> bool(probe.AnswerPreservation(beta=0.1)(s.original, batch) >= 0)
    True
    """

    beta: float

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        answer_B = target_logprobs(model, preferred_of(batch)).sum(1)
        refusal_B = target_logprobs(model, batch).sum(1)
        return -(1 / self.beta) * logsigmoid(self.beta * (answer_B - refusal_B)).mean()


# Per divergence: g*(v) and f*(g*(v)). Jeffreys' f* is the third-order series that the code has.
_DIVERGENCES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "total-variation": (lambda v: v.tanh() / 2, lambda v: v.tanh() / 2),
    "kl": (lambda v: v, lambda v: (v - 1).exp()),
    "reverse-kl": (lambda v: -v.exp(), lambda v: -1 - v),
    "jeffreys": (lambda v: v, lambda v: v + v.square() / 4 + v.pow(3) / 16),
    "squared-hellinger": (lambda v: 1 - v.exp(), lambda v: (-v).exp() - 1),
    "pearson": (lambda v: v, lambda v: v.square() / 4 + v),
    "neyman": (lambda v: 1 - v.exp(), lambda v: 2 - 2 * (v / 2).exp()),
    "jensen-shannon": (
        lambda v: math.log(2) - softplus(-v),
        lambda v: v + softplus(-v) - math.log(2),
    ),
}
Divergence = Literal[
    "total-variation", "kl", "reverse-kl", "jeffreys", "squared-hellinger", "pearson", "neyman", "jensen-shannon"
]


@dataclass(frozen=True)
class FLAT:
    """L = mean_b [-g*(P_b+) + f*(g*(P_b-))], P_b the mean probability of an answer's tokens: forget data alone.

    Wang et al., arXiv 2410.11143: raises the variational bound on the f-divergence between preferred (template) and
    forget answers. No reference, no retain term. The paper prints total variation, KL, Pearson and Jensen-Shannon; its
    code has the others too. ``BatchFLAT`` is what the code computes.

    Args:
        divergence: which f: "total-variation" (the code's default), "kl", "reverse-kl", "jeffreys",
            "squared-hellinger", "pearson", "neyman" or "jensen-shannon".

    Raises:
        ValueError: an unknown divergence, or the batch is not paired.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> loss = probe.FLAT("kl")(s.original, probe.paired(refusals, s.split.forget))
    >>> tuple(loss.shape)
    ()
    """

    divergence: Divergence

    def __post_init__(self) -> None:
        _check_divergence(self.divergence)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        reward, penalty = _DIVERGENCES[self.divergence]
        dispreferred_B, preferred_B = (_mean_probability(model, side) for side in (batch, preferred_of(batch)))
        return (penalty(dispreferred_B) - reward(preferred_B)).mean()


@dataclass(frozen=True)
class BatchFLAT:
    """L = -g*(P+) + f*(g*(P-)), P = sum of the answers' token probabilities / (B (T - 1)): FLAT in its code.

    Code of Wang et al., arXiv 2410.11143: one P a batch and side, where prompts and padding count as 0, so that P
    shrinks as padding grows. For "neyman" the code takes f*(P-) with f*(u) = 2 - 2 sqrt(1 - u), without g*.

    Args:
        divergence: as for ``FLAT``.

    Raises:
        ValueError: an unknown divergence, or the batch is not paired.

    >>> refusals = probe.encode(s.tokenizer, probe.idk_rows(s.split.forget_rows, seed=0))
    >>> loss = probe.BatchFLAT("total-variation")(s.original, probe.paired(refusals, s.split.forget))
    >>> tuple(loss.shape)
    ()
    """

    divergence: Divergence

    def __post_init__(self) -> None:
        _check_divergence(self.divergence)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        reward, penalty = _DIVERGENCES[self.divergence]
        if self.divergence == "neyman":
            penalty = _neyman_conjugate
        return penalty(_padded_probability(model, batch)) - reward(_padded_probability(model, preferred_of(batch)))


def _check_divergence(divergence: str) -> None:
    if divergence not in _DIVERGENCES:
        raise ValueError(f"divergence must be one of {', '.join(_DIVERGENCES)}, got {divergence!r}")


def _neyman_conjugate(u: Tensor) -> Tensor:
    return 2 - 2 * (1 - u).sqrt()


def _mean_probability(model: nn.Module, batch: Batch) -> Tensor:
    mask_BT = predicted_targets(batch)
    return (target_logprobs(model, batch).exp() * mask_BT).sum(1) / mask_BT.sum(1).clamp(min=1)


def _padded_probability(model: nn.Module, batch: Batch) -> Scalar:
    mask_BT = predicted_targets(batch)
    # No position predicts a first token.
    return (target_logprobs(model, batch).exp() * mask_BT)[:, 1:].mean()
