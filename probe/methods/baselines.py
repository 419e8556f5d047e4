"""Methods that push the forget answers' likelihood down and, mostly, hold the retain answers' up.

L = forget_weight * L_forget + retain_weight * L_retain, see ``probe.methods.unlearn``; they differ in L_forget.

>>> unlearned = study.unlearn("npo", beta=0.1, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import ONE_TO_ONE, OPEN_UNLEARNING, Argument, Published
from probe.methods.unlearn import Loss, forget_loss, unlearn
from probe.methods.words import READ, Read, meant
from probe.objectives import token as objectives
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA
from probe.train import History

_TOFU = "OpenUnlearning, TOFU, Llama-3.2-1B"
# Steps are left to the caller: the sources count epochs of their own data.
_TOFU_RUN: dict[str, Argument] = {**ONE_TO_ONE, **OPEN_UNLEARNING}


@method(
    "divergence",
    "log p of forget answers, token mean",
    "Jang et al., arXiv 2210.01504",
    published={"open-unlearning": Published(_TOFU, {"lr": 1e-5, "batch_size": 32, **OPEN_UNLEARNING})},
)
def ga(model: nn.Module, split: Split, **training: Any) -> History:
    """Gradient ascent on the forget NLL, nothing to hold the rest (Jang et al., arXiv 2210.01504)."""
    return unlearn(model, split, objectives.ga, retain_weight=0.0, **training)


@forget_loss(
    "divergence",
    "log p(forget) + w NLL(retain)",
    "Liu et al., arXiv 2203.12817",
    published={"open-unlearning": Published(_TOFU, _TOFU_RUN)},
)
def grad_diff() -> Objective:
    """Gradient ascent with the retain NLL (gradient difference; Liu et al., arXiv 2203.12817)."""
    return objectives.ga


@forget_loss(
    "divergence",
    "log p(forget) + w KL(original || model) on retain rows",
    "TOFU, arXiv 2401.06121",
    published={
        "tofu": Published(
            "TOFU's code, arXiv 2401.06121, Llama-2-7B",
            {"positions": "all", "retain_weight": 1.0, "lr": 1e-5, "batch_size": 32, "weight_decay": 0.01},
        ),
        "open-unlearning": Published(f"{_TOFU}: GradDiff with retain_loss_type=KL", {"positions": "all", **_TOFU_RUN}),
    },
)
def ga_kl(original: nn.Module | OriginalAnswers, positions: Read = "answers") -> Loss:
    """Gradient ascent with KL(original || model) on retain rows (TOFU, arXiv 2401.06121).

    ``positions="all"`` averages KL over prompts and padding too, as the codes of TOFU and OpenUnlearning do, so that
    its weight falls as padding grows.
    """
    return Loss(objectives.ga, ForwardKL(original, meant("positions", positions, READ)))


@forget_loss(
    "divergence",
    "(2/beta) mean log(1 + (pi/pi0)^beta) + w NLL(retain)",
    "Zhang et al., arXiv 2404.05868",
    published={
        "open-unlearning": Published(f"Zhang et al., arXiv 2404.05868 (beta); {_TOFU}", {"beta": 0.1, **_TOFU_RUN})
    },
)
def npo(original: nn.Module | OriginalAnswers, beta: float) -> Objective:
    """Negative preference optimisation with the retain NLL (Zhang et al., arXiv 2404.05868)."""
    return NPO(original, beta)


@forget_loss(
    "divergence",
    "mean sg[p^beta] log p + w NLL(retain)",
    "Wang et al., arXiv 2502.19301",
    published={
        "open-unlearning": Published(f"{_TOFU} (the code of arXiv 2502.19301 takes beta 5)", {"beta": 1.0, **_TOFU_RUN})
    },
)
def wga(beta: float) -> Objective:
    """Weighted gradient ascent with the retain NLL (Wang et al., arXiv 2502.19301)."""
    return WGA(beta)


@forget_loss(
    "divergence",
    "mean sg[2 p^b / (p^b + p0^b)] log p + w NLL(retain)",
    "Wang et al., arXiv 2502.19301",
    published={
        "g-effect": Published(
            "code of Wang et al., arXiv 2502.19301, TOFU, Llama-2-7B",
            {"beta": 4.0, "epsilon": 1e-5, "lr": 1e-5, "batch_size": 16},
        )
    },
)
def tnpo(original: nn.Module | OriginalAnswers, beta: float, epsilon: float = 0.0) -> Objective:
    """Token-wise NPO with the retain NLL (Wang et al., arXiv 2502.19301); the paper's code takes epsilon 1e-5.

    That silences tokens that the original finds unlikely, see ``probe.objectives.token.TNPO``.
    """
    return TNPO(original, beta, epsilon)
