"""Gradient ascent that weighs tokens one by one: by how likely they are, and by how much likelier they have been.

Weighted gradient ascent and token-wise NPO are in ``probe.methods.baselines``, whose text says what ``training`` is.
"""

from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.baselines import check_apart, unlearn
from probe.methods.method import Method
from probe.methods.published import OPEN_UNLEARNING, Published
from probe.objectives.original import OriginalAnswers
from probe.objectives.token import WTNPO, SatImp
from probe.objectives.token import sim_imp as sim_imp_objective
from probe.objectives.token import sim_sat as sim_sat_objective
from probe.train import History

PUBLISHED = {
    "wtnpo": {
        "g-effect": Published(
            "code of Wang et al., arXiv 2502.19301, TOFU, Llama-2-7B",
            {"beta": 4.0, "alpha": 1.5, "epsilon": 1e-5, "lr": 1e-5, "batch_size": 16},
        )
    },
    # The two disagree on which term weighs more; both are printed as the method's setting.
    "sat_imp": {
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
    "sim_sat": {"satimp": Published("code of Yang et al., arXiv 2505.11953, TOFU", {"lr": 1e-5, "batch_size": 16})},
    "sim_imp": {"satimp": Published("code of Yang et al., arXiv 2505.11953, TOFU", {"lr": 1e-5, "batch_size": 16})},
}


def wtnpo(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    beta: float,
    alpha: float,
    retain_weight: float,
    epsilon: float = 0.0,
    **training: Any,
) -> History:
    """Weighted token-wise NPO with the retain NLL (Wang et al., arXiv 2502.19301)."""
    check_apart(model, original)
    objective = WTNPO(original, beta=beta, alpha=alpha, epsilon=epsilon)
    return unlearn(model, split, objective, retain_weight=retain_weight, **training)


def sat_imp(
    model: nn.Module, split: Split, *, beta1: float, beta2: float, retain_weight: float, **training: Any
) -> History:
    """Weights by saturation and importance, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return unlearn(model, split, SatImp(beta1, beta2), retain_weight=retain_weight, **training)


def sim_sat(model: nn.Module, split: Split, *, beta: float, retain_weight: float, **training: Any) -> History:
    """Weights by saturation alone, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return unlearn(model, split, sim_sat_objective(beta), retain_weight=retain_weight, **training)


def sim_imp(model: nn.Module, split: Split, *, beta: float, retain_weight: float, **training: Any) -> History:
    """Weights by importance alone, with the retain NLL (Yang et al., arXiv 2505.11953)."""
    return unlearn(model, split, sim_imp_objective(beta), retain_weight=retain_weight, **training)


METHODS = (
    Method(
        "wtnpo",
        "divergence",
        "mean sg[2 p^(b+a) / (p^b + p0^b)] log p + w NLL(retain)",
        "Wang et al., arXiv 2502.19301",
        "all parameters",
        wtnpo,
        PUBLISHED["wtnpo"],
        unlearn,
    ),
    Method(
        "sat_imp",
        "divergence",
        "mean sg[p^b1 (1-p)^b2] log p + w NLL(retain)",
        "Yang et al., arXiv 2505.11953",
        "all parameters",
        sat_imp,
        PUBLISHED["sat_imp"],
        unlearn,
    ),
    Method(
        "sim_sat",
        "divergence",
        "mean sg[p^beta] log p + w NLL(retain)",
        "Yang et al., arXiv 2505.11953",
        "all parameters",
        sim_sat,
        PUBLISHED["sim_sat"],
        unlearn,
    ),
    Method(
        "sim_imp",
        "divergence",
        "mean sg[(1-p)^beta] log p + w NLL(retain)",
        "Yang et al., arXiv 2505.11953",
        "all parameters",
        sim_imp,
        PUBLISHED["sim_imp"],
        unlearn,
    ),
)
