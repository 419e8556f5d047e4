"""Gradient ascent that weighs tokens one by one: by how likely they are, and by how much likelier they have been.

Weighted gradient ascent and token-wise NPO are in ``probe.methods.unlearn``, whose text says what ``training`` is.

>>> unlearned = study.unlearn("sat_imp", beta1=5, beta2=1, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from torch import nn

from probe.methods.published import OPEN_UNLEARNING, Published
from probe.methods.unlearn import forget_loss
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.token import WTNPO, SatImp
from probe.objectives.token import sim_imp as sim_imp_objective
from probe.objectives.token import sim_sat as sim_sat_objective


@forget_loss(
    "divergence",
    "mean sg[2 p^(b+a) / (p^b + p0^b)] log p + w NLL(retain)",
    "Wang et al., arXiv 2502.19301",
    published={
        "g-effect": Published(
            "code of Wang et al., arXiv 2502.19301, TOFU, Llama-2-7B",
            {"beta": 4.0, "alpha": 1.5, "epsilon": 1e-5, "lr": 1e-5, "batch_size": 16},
        )
    },
)
def wtnpo(original: nn.Module | OriginalAnswers, beta: float, alpha: float, epsilon: float = 0.0) -> Objective:
    """Weighted token-wise NPO with the retain NLL (Wang et al., arXiv 2502.19301)."""
    return WTNPO(original, beta, alpha, epsilon)


@forget_loss(
    "divergence",
    "mean sg[p^b1 (1-p)^b2] log p + w NLL(retain)",
    "Yang et al., arXiv 2505.11953",
    published={
        "satimp": Published(
            "code of Yang et al., arXiv 2505.11953, TOFU, Llama-2-7B",
            {"beta1": 5.0, "beta2": 0.1, "forget_weight": 1.0, "retain_weight": 0.1, "lr": 1e-5, "batch_size": 16},
        ),
        "open-unlearning": Published(
            "OpenUnlearning's configuration file, TOFU, Llama-3.2-1B (its class has the two weights the other way)",
            {
                "beta1": 5.0,
                "beta2": 1.0,
                "forget_weight": 0.1,
                "retain_weight": 1.0,
                "lr": 1e-5,
                "batch_size": 32,
                **OPEN_UNLEARNING,
            },
        ),
    },
)
def sat_imp(beta1: float, beta2: float) -> Objective:
    """Weights by saturation and importance, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return SatImp(beta1, beta2)


@forget_loss(
    "divergence",
    "mean sg[p^beta] log p + w NLL(retain)",
    "Yang et al., arXiv 2505.11953",
    published={"satimp": Published("code of Yang et al., arXiv 2505.11953, TOFU", {"lr": 1e-5, "batch_size": 16})},
)
def sim_sat(beta: float) -> Objective:
    """Weights by saturation alone, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return sim_sat_objective(beta)


@forget_loss(
    "divergence",
    "mean sg[(1-p)^beta] log p + w NLL(retain)",
    "Yang et al., arXiv 2505.11953",
    published={"satimp": Published("code of Yang et al., arXiv 2505.11953, TOFU", {"lr": 1e-5, "batch_size": 16})},
)
def sim_imp(beta: float) -> Objective:
    """Weights by importance alone, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return sim_imp_objective(beta)
