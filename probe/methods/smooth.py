"""NPO made to last: steps that look around the present weights before they are taken, and invariance.

The steps are values of ``probe.train``, which any method takes as ``stepping=``; here are the published pairings. The
NPO is the one of Fan et al., arXiv 2502.05374: one token mean a batch, whose beta is not that of ``baselines.npo``.

>>> unlearned = study.unlearn("npo_sam", beta=0.1, rho=0.01, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any

from torch import nn

from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import Loss, check_original, forget_loss
from probe.objectives.invariance import irm_penalty
from probe.objectives.original import OriginalAnswers
from probe.objectives.sequence import BatchNPO
from probe.objectives.token import nll
from probe.train import SAM, SWA, CurvaturePenalty, GradientPenalty, History, Smoothing, Term, minimise

_FORGET = ("forget",)
_SMOOTH = "Fan et al., arXiv 2502.05374, WMDP, Zephyr-7B"
_SIZES = {"steps": 125, "batch_size": 4}


@forget_loss(
    "divergence",
    "NPO (one mean a batch) at theta + rho g/|g| + w NLL(retain)",
    "Fan et al., arXiv 2502.05374",
    published={
        "zephyr-7b": Published(_SMOOTH, {"rho": 0.01, "beta": 0.015, "retain_weight": 2.25, "lr": 5e-6, **_SIZES})
    },
)
def npo_sam(original: nn.Module | OriginalAnswers, beta: float, rho: float) -> Loss:
    """NPO whose forget gradient is taken where it is worst within rho (Fan et al., arXiv 2502.05374)."""
    return Loss(BatchNPO(original, beta), loop={"stepping": SAM(rho, _FORGET)})


@forget_loss(
    "divergence",
    "mean of NPO (one mean a batch) at theta + sigma noise + w NLL(retain)",
    "Fan et al., arXiv 2502.05374",
    published={
        "zephyr-7b": Published(
            _SMOOTH, {"sigma": 1e-4, "samples": 3, "beta": 0.0125, "retain_weight": 2.0, "lr": 1e-5, **_SIZES}
        )
    },
)
def npo_smoothing(original: nn.Module | OriginalAnswers, beta: float, sigma: float, samples: int) -> Loss:
    """NPO whose forget gradient is a mean over noisy weights (randomised smoothing; Fan et al., arXiv 2502.05374)."""
    return Loss(BatchNPO(original, beta), loop={"stepping": Smoothing(sigma, samples, _FORGET)})


@forget_loss(
    "divergence",
    "NPO (one mean a batch) + rho |g| + w NLL(retain)",
    "Fan et al., arXiv 2502.05374",
    published={
        "zephyr-7b": Published(
            f"{_SMOOTH}; the penalty of the code has no gradient",
            {"rho": 10.0, "beta": 0.04, "retain_weight": 1.0, "lr": 7.5e-6, **_SIZES},
        )
    },
)
def npo_gradient_penalty(original: nn.Module | OriginalAnswers, beta: float, rho: float) -> Loss:
    """NPO with a penalty on the length of its forget gradient (Fan et al., arXiv 2502.05374)."""
    return Loss(BatchNPO(original, beta), loop={"stepping": GradientPenalty(rho, _FORGET)})


@forget_loss(
    "divergence",
    "NPO (one mean a batch) + rho |g(theta + d) - g(theta)| + w NLL(retain)",
    "Fan et al., arXiv 2502.05374",
    published={
        "zephyr-7b": Published(
            f"{_SMOOTH}; the penalty of the code has no gradient",
            {"rho": 10.0, "beta": 0.035, "retain_weight": 1.0, "lr": 8.5e-6, **_SIZES},
        )
    },
)
def npo_curvature(original: nn.Module | OriginalAnswers, beta: float, rho: float, radius: float) -> Loss:
    """NPO with a penalty on how its forget gradient changes nearby (Fan et al., arXiv 2502.05374)."""
    return Loss(BatchNPO(original, beta), loop={"stepping": CurvaturePenalty(rho, radius, _FORGET)})


@forget_loss(
    "divergence",
    "NPO (one mean a batch) + w NLL(retain), weights averaged along the way",
    "Fan et al., arXiv 2502.05374",
    published={
        "zephyr-7b": Published(
            _SMOOTH, {"start": 100, "interval": 5, "beta": 0.05, "retain_weight": 2.0, "lr": 5.5e-6, **_SIZES}
        )
    },
)
def npo_averaging(original: nn.Module | OriginalAnswers, beta: float, start: int, interval: int) -> Loss:
    """NPO that ends with the mean of the weights along its way (Fan et al., arXiv 2502.05374)."""
    return Loss(BatchNPO(original, beta), loop={"averaging": SWA(start, interval)})


@method(
    "divergence", "NPO (one mean a batch) + w NLL(retain) + v (d NLL(environment) / d scale)^2", "ILU, arXiv 2506.01339"
)
def npo_irm(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    environment: Batch,
    beta: float,
    retain_weight: float,
    irm_weight: float,
    **training: Any,
) -> History:
    """NPO that stays invariant on an unrelated task, so that fine-tuning on it does not bring the answers back (ILU).

    Arxiv 2506.01339: NPO + retain_weight * NLL + irm_weight * the penalty of invariant risk minimisation.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        environment: rows of the unrelated task; GSM8K as published.
        beta: inverse temperature of NPO.
        retain_weight, irm_weight: weights of the two other terms; the comparison arXiv 2510.07626 tries irm_weight
            in [0.1, 2].
        training: keyword arguments of ``minimise``.
    """
    check_original(model, original)
    terms = [
        Term(1.0, BatchNPO(original, beta), split.forget, "forget"),
        Term(retain_weight, nll, split.retain, "retain"),
        Term(irm_weight, irm_penalty, environment, "invariance"),
    ]
    return minimise(model, terms, **training)
