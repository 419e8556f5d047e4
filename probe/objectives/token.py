"""Objectives that weigh target tokens one by one, and the four ways of averaging that every family chooses from.

The published ways differ, and one formula under two of them is two methods: ``token_mean`` (TM), ``sequence_sum`` (SS),
``sequence_mean`` (SM) and ``position_mean`` (ALL). A ``normalise`` argument takes any of them.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import nn

from probe.axes import LogpBT, MaskBT, Scalar
from probe.data import Batch
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers, original_logprobs

Normalise = Callable[[LogpBT, MaskBT], Scalar]


def token_mean(value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
    """TM: sum over the batch's chosen tokens / their number, whatever row they belong to; the loss of HF models."""
    return value_BT.sum() / chosen_BT.sum()


def sequence_sum(value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
    """SS: sum over each row, then the mean over rows; NPO and DPO sum so inside their sigmoid."""
    return value_BT.sum(1).mean()


def sequence_mean(value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
    """SM: mean over each row's chosen tokens, then the mean over rows that have some; SimNPO, BS-T."""
    n_B = chosen_BT.sum(1)
    return (value_BT.sum(1) / n_B.clamp(min=1)).sum() / (n_B > 0).sum()


def position_mean(value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
    """ALL: sum / (rows * padded length): prompts and padding count, so it shrinks as padding grows."""
    return value_BT.sum() / value_BT.numel()


def mixed_rows(value_BT: LogpBT, chosen_BT: MaskBT) -> Scalar:
    """mean_b S_b * mean_b 1/n_b, S_b a row's sum and n_b its chosen tokens: OpenUnlearning's RMU, by its broadcasting.

    ``sequence_mean`` where all rows have as many tokens; elsewhere every row is divided by every row's count.
    """
    n_B = chosen_BT.sum(1).to(value_BT)
    return value_BT.sum(1).mean() * (1 / n_B).mean()


def nll(model: nn.Module, batch: Batch) -> Scalar:
    """L = -(1/n) sum_i log p_i: the negative log-likelihood per target token (nats); HF's own loss.

    >>> round(float(probe.nll(s.original, s.split.forget)), 1), round(float(probe.nll(s.retrained, s.split.forget)), 1)
    (0.0, 1.2)
    """
    return -token_mean(target_logprobs(model, batch), predicted_targets(batch))


def ga(model: nn.Module, batch: Batch) -> Scalar:
    """L = (1/n) sum_i log p_i: gradient ascent on the NLL (Jang et al., arXiv 2210.01504; TOFU, arXiv 2401.06121).

    >>> bool(probe.ga(s.original, s.split.forget) == -probe.nll(s.original, s.split.forget))
    True
    >>> effect = probe.g_effect(s.retrained, probe.ga, s.split.forget, over=s.split.retain)
    """
    return -nll(model, batch)


@dataclass(frozen=True)
class GA:
    """L = (1/n) sum_i log softmax(z_i / T)_{y_i}: gradient ascent, with temperature and a choice of averaging.

    Temperature scaling is a trick of Wang et al. (UWC, arXiv 2406.09179). ``GA()`` is ``ga``.

    Args:
        temperature: T, above 0; 1 leaves the logits as they are.
        normalise: how tokens are averaged.

    Raises:
        ValueError: the temperature is not positive.

    >>> bool(probe.GA()(s.original, s.split.forget) == probe.ga(s.original, s.split.forget))
    True
    >>> from probe.objectives import sequence_mean
    >>> round(float(probe.GA(temperature=2.0, normalise=sequence_mean)(s.original, s.split.forget)), 1)
    -0.4
    """

    temperature: float = 1.0
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_positive("temperature", self.temperature)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return self.normalise(target_logprobs(model, batch, self.temperature), predicted_targets(batch))


@dataclass(frozen=True)
class WGA:
    """L = (1/n) sum_i sg[p_i^beta] log p_i: weighted gradient ascent (Wang et al., arXiv 2502.19301).

    The weight carries no gradient; left attached, its sign would flip for p < exp(-1/beta).

    Args:
        beta: 0 gives GA; the paper's code uses 5, OpenUnlearning 1.
        normalise: how tokens are averaged; the code takes the token mean, the tutorial's slide a sum over each answer.

    Raises:
        ValueError: beta is negative.

    >>> loss = probe.WGA(beta=1.0)  # log-likelihoods, of tokens that are still likely above all
    >>> bool(probe.ga(s.retrained, s.split.forget) < loss(s.retrained, s.split.forget) < 0)
    True
    """

    beta: float
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_not_negative("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_BT = target_logprobs(model, batch)
        return _weighted((self.beta * logp_BT).exp(), logp_BT, batch, self.normalise)


@dataclass(frozen=True)
class TNPO:
    """L = (1/n) sum_i sg[2 p_i^b / (p_i^b + p0_i^b + eps)] log p_i: token-wise NPO (Wang et al., arXiv 2502.19301).

    Computed in log space. The published code has eps = 1e-5, which silences tokens the reference finds unlikely (at
    pi = pi0 a weight of 0.03 instead of 1 at p = 0.02, beta = 4).

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it.
        beta: inverse temperature, above 0; the paper's code uses 4.
        epsilon: eps; 0 is the formula of the paper, 1e-5 its code.
        normalise: how tokens are averaged.

    Raises:
        ValueError: beta is not positive or epsilon is negative.

    >>> loss = probe.TNPO(s.original, beta=0.5)
    >>> bool(probe.ga(s.retrained, s.split.forget) < loss(s.retrained, s.split.forget) < 0)
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float
    epsilon: float = 0.0
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        check_not_negative("epsilon", self.epsilon)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return WTNPO(self.original, self.beta, 0.0, self.epsilon, self.normalise)(model, batch)


@dataclass(frozen=True)
class WTNPO:
    """L = (1/n) sum_i sg[2 p_i^(b+a) / (p_i^b + p0_i^b + eps)] log p_i: weighted TNPO (Wang et al., arXiv 2502.19301).

    TNPO's weight times WGA's; alpha = 0 is TNPO.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it.
        beta: inverse temperature b, above 0; the paper's code uses 4.
        alpha: exponent a of the extra weight, at least 0; the paper's code uses 1.5.
        epsilon: eps; 0, or 1e-5 as in the paper's code (see ``TNPO``).
        normalise: how tokens are averaged.

    Raises:
        ValueError: beta is not positive, or alpha or epsilon is negative.

    >>> loss = probe.WTNPO(s.original, beta=0.5, alpha=1.0)
    >>> bool(probe.ga(s.retrained, s.split.forget) < loss(s.retrained, s.split.forget) < 0)
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float
    alpha: float
    epsilon: float = 0.0
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_positive("beta", self.beta)
        check_not_negative("alpha", self.alpha)
        check_not_negative("epsilon", self.epsilon)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_BT = target_logprobs(model, batch)
        ours_BT, theirs_BT = self.beta * logp_BT, self.beta * original_logprobs(self.original, batch)
        if self.epsilon == 0:
            weight_BT = 2 * torch.sigmoid(ours_BT - theirs_BT)
        else:
            floor_BT = torch.full_like(ours_BT, math.log(self.epsilon))
            weight_BT = 2 * (ours_BT - torch.logaddexp(torch.logaddexp(ours_BT, theirs_BT), floor_BT)).exp()
        return _weighted(weight_BT * (self.alpha * logp_BT).exp(), logp_BT, batch, self.normalise)


@dataclass(frozen=True)
class SatImp:
    """L = (1/n) sum_i sg[p_i^b1 (1 - p_i)^b2] log p_i: saturation and importance (Yang et al., arXiv 2505.11953).

    The weight is largest at p = b1 / (b1 + b2). SimSat is ``sim_sat``, SimImp ``sim_imp``.

    Args:
        beta1: exponent of saturation, at least 0; published 5.
        beta2: exponent of importance, at least 0; the paper and OpenUnlearning take 1, the authors' code
            recommends 0.1. Weights of the forget and the retain term also differ: 1 and 0.1, and 0.1 and 1 in
            OpenUnlearning's configuration.
        normalise: how tokens are averaged.

    Raises:
        ValueError: an exponent is negative.

    >>> loss = probe.SatImp(beta1=5.0, beta2=1.0)
    >>> bool(probe.ga(s.retrained, s.split.forget) < loss(s.retrained, s.split.forget) < 0)
    True
    """

    beta1: float
    beta2: float
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_not_negative("beta1", self.beta1)
        check_not_negative("beta2", self.beta2)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_BT = target_logprobs(model, batch)
        weight_BT = (self.beta1 * logp_BT).exp() * (-torch.expm1(logp_BT)).pow(self.beta2)
        return _weighted(weight_BT, logp_BT, batch, self.normalise)


def sim_sat(beta: float) -> SatImp:
    """L = (1/n) sum_i sg[p_i^beta] log p_i: saturation alone (Yang et al., arXiv 2505.11953); the formula of WGA.

    >>> bool(probe.sim_sat(1.0)(s.original, s.split.forget) == probe.WGA(1.0)(s.original, s.split.forget))
    True
    """
    return SatImp(beta, 0.0)


def sim_imp(beta: float) -> SatImp:
    """L = (1/n) sum_i sg[(1 - p_i)^beta] log p_i: importance alone (Yang et al., arXiv 2505.11953).

    >>> round(float(probe.sim_imp(1.0)(s.retrained, s.split.forget)), 1)
    -1.1
    """
    return SatImp(0.0, beta)


@dataclass(frozen=True)
class SelectedTokens:
    """L = objective(targets kept), each row keeping the ones that are likeliest, or unlikeliest, under the model.

    A trick of Wang et al. (UWC, arXiv 2406.09179): the code keeps the share 0.8 of smallest loss ("likely"), the
    tutorial's slide speaks of largest loss ("unlikely"). The choice has no gradient and costs one more forward pass.

    Args:
        objective: what is minimised on the tokens that are left.
        keep: "likely" or "unlikely".
        share: part of each row's targets that is kept, rounded up; above 0, at most 1.
        count: how many of each row's targets are kept instead (all where a row has fewer); give one of the two.

    Raises:
        ValueError: not exactly one of share and count, or one out of range.

    >>> unlikely = probe.SelectedTokens(probe.nll, keep="unlikely", share=0.2)
    >>> bool(unlikely(s.retrained, s.split.forget) > probe.nll(s.retrained, s.split.forget))
    True
    """

    objective: Objective
    keep: Literal["likely", "unlikely"]
    share: float | None = None
    count: int | None = None

    def __post_init__(self) -> None:
        if self.keep not in ("likely", "unlikely"):
            raise ValueError(f"keep must be 'likely' or 'unlikely', got {self.keep!r}")
        if (self.share is None) == (self.count is None):
            raise ValueError(f"give either share or count, got share={self.share} and count={self.count}")
        if (self.share is not None and not 0 < self.share <= 1) or (self.count is not None and self.count < 1):
            raise ValueError(f"share lies in (0, 1] and count is at least 1, got {self.share} and {self.count}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return self.objective(model, replace(batch, target_BT=self.kept(model, batch), warn=False))

    def kept(self, model: nn.Module, batch: Batch) -> MaskBT:
        """The targets that are left; ties go to the earlier token."""
        mask_BT = predicted_targets(batch)
        with torch.no_grad():
            logp_BT = target_logprobs(model, batch)
        loss_BT = (-logp_BT if self.keep == "likely" else logp_BT).masked_fill(~mask_BT, torch.inf)
        rank_BT = loss_BT.argsort(dim=1, stable=True).argsort(dim=1)
        n_B = mask_BT.sum(1)
        # Less a hair: products that rounding lifts just above a whole number are that number.
        keep_B = (n_B.float() * self.share - 1e-3).ceil() if self.share is not None else n_B.clamp(max=self.count)
        return mask_BT & (rank_BT < keep_B[:, None])


def check_positive(name: str, value: float | int) -> None:
    """Refuse what must be above 0, NaN included."""
    if not value > 0:
        raise ValueError(f"{name} must be above 0, got {value}")


def check_not_negative(name: str, value: float | int) -> None:
    """Refuse what must be at least 0, NaN included."""
    if not value >= 0:
        raise ValueError(f"{name} must be at least 0, got {value}")


def _weighted(weight_BT: LogpBT, logp_BT: LogpBT, batch: Batch, normalise: Normalise) -> Scalar:
    return normalise(weight_BT.detach() * logp_BT, predicted_targets(batch))
