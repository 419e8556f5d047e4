"""Objectives that weigh target tokens one by one, normalised by the token mean of the batch (TM)."""

from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import LogpBT, Scalar
from probe.data import Batch


def target_logprobs(model: nn.Module, batch: Batch) -> LogpBT:
    """log p(token | tokens before it) at target tokens, 0 elsewhere; natural logarithm.

    Position t holds the log-probability of ``tokens_BT[:, t]``, predicted at t-1.
    """
    logits_BTV = model(**batch.inputs, use_cache=False).logits
    predicted = batch.target_BT[:, 1:]
    # Only rows of the logits that predict a target go through the softmax; the vocabulary may be large.
    chosen_NV = logits_BTV[:, :-1][predicted]
    target_N = batch.tokens_BT[:, 1:][predicted]
    logp_N = torch.log_softmax(chosen_NV.float() if chosen_NV.dtype != torch.float64 else chosen_NV, -1)
    logp_N = logp_N.gather(-1, target_N[:, None])[:, 0]
    logp_BT = torch.zeros(batch.tokens_BT.shape, dtype=logp_N.dtype, device=logp_N.device)
    # Position 0 is never a target: nothing predicts it.
    mask_BT = torch.cat([torch.zeros_like(batch.target_BT[:, :1]), predicted], dim=1)
    return logp_BT.masked_scatter(mask_BT, logp_N)


def token_mean(value_BT: LogpBT, batch: Batch) -> Scalar:
    """Mean over all target tokens of the batch (TM), whatever row they belong to."""
    return value_BT.sum() / batch.target_BT[:, 1:].sum()


def nll(model: nn.Module, batch: Batch) -> Scalar:
    """L = -(1/n) sum_i log p_i: the negative log-likelihood per target token (nats); HF's own loss."""
    return -token_mean(target_logprobs(model, batch), batch)


def ga(model: nn.Module, batch: Batch) -> Scalar:
    """L = (1/n) sum_i log p_i: gradient ascent on the NLL (Jang et al., arXiv 2210.01504; TOFU, arXiv 2401.06121)."""
    return -nll(model, batch)


@dataclass(frozen=True)
class WGA:
    """L = (1/n) sum_i sg[p_i^beta] log p_i: weighted gradient ascent (Wang et al., arXiv 2502.19301).

    The weight carries no gradient; left attached, its sign would flip for p < exp(-1/beta).

    Args:
        beta: 0 gives GA; the paper's code uses 5, OpenUnlearning 1.

    Raises:
        ValueError: beta is negative.
    """

    beta: float

    def __post_init__(self) -> None:
        if self.beta < 0:
            raise ValueError(f"beta must be at least 0, got {self.beta}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_BT = target_logprobs(model, batch)
        weight_BT = (self.beta * logp_BT).exp().detach()
        return token_mean(weight_BT * logp_BT, batch)


@dataclass(frozen=True)
class TNPO:
    """L = (1/n) sum_i sg[2 p_i^b / (p_i^b + p0_i^b)] log p_i: token-wise NPO (Wang et al., arXiv 2502.19301).

    Computed in log space; the published code adds 1e-5 to the denominator, which silences tokens the reference
    finds unlikely (a weight of 0.03 instead of 1 at p = 0.02, beta = 4).

    Args:
        original: the model before unlearning, frozen.
        beta: inverse temperature, above 0; the paper's code uses 4.

    Raises:
        ValueError: beta is not positive.
    """

    original: nn.Module = field(repr=False)
    beta: float

    def __post_init__(self) -> None:
        if self.beta <= 0:
            raise ValueError(f"beta must be above 0, got {self.beta}")

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        logp_BT = target_logprobs(model, batch)
        with torch.no_grad():
            reference_BT = target_logprobs(self.original, batch)
        weight_BT = 2 * torch.sigmoid(self.beta * (logp_BT - reference_BT)).detach()
        return token_mean(weight_BT * logp_BT, batch)
