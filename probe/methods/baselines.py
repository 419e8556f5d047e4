"""Methods that push the forget answers' likelihood down and, mostly, hold the retain answers' up.

L = forget_weight * L_forget + retain_weight * L_retain; they differ in L_forget. Every method trains ``model`` in
place. ``training`` stands for the keyword arguments of ``probe.train.minimise``: ``steps``, ``lr``, ``batch_size``
and ``seed``, which have no default, and ``parameters``, ``schedule``, ``clip``, ``progress``, ``every``, ``observe``
and the rest.
"""

from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import Method
from probe.methods.published import OPEN_UNLEARNING, Argument, Published
from probe.methods.words import READ, Read, meant
from probe.objectives import token as objectives
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import NPO
from probe.objectives.token import TNPO, WGA, nll
from probe.train import History, Term, minimise

_TOFU = "OpenUnlearning, TOFU, Llama-3.2-1B"
_ONE_TO_ONE: dict[str, Argument] = {
    "forget_weight": 1.0,
    "retain_weight": 1.0,
    "lr": 1e-5,
    "batch_size": 32,
    **OPEN_UNLEARNING,
}

# Steps are left to the caller: the sources count epochs of their own data.
PUBLISHED = {
    "ga": {"open-unlearning": Published(_TOFU, {"lr": 1e-5, "batch_size": 32, **OPEN_UNLEARNING})},
    "grad_diff": {"open-unlearning": Published(_TOFU, _ONE_TO_ONE)},
    "ga_kl": {
        "tofu": Published(
            "TOFU's code, arXiv 2401.06121, Llama-2-7B",
            {"positions": "all", "retain_weight": 1.0, "lr": 1e-5, "batch_size": 32, "weight_decay": 0.01},
        ),
        "open-unlearning": Published(
            f"{_TOFU}: GradDiff with retain_loss_type=KL", {"positions": "all", **_ONE_TO_ONE}
        ),
    },
    "npo": {
        "open-unlearning": Published(f"Zhang et al., arXiv 2404.05868 (beta); {_TOFU}", {"beta": 0.1, **_ONE_TO_ONE})
    },
    "wga": {
        "open-unlearning": Published(
            f"{_TOFU} (the code of arXiv 2502.19301 takes beta 5)", {"beta": 1.0, **_ONE_TO_ONE}
        )
    },
    "tnpo": {
        "g-effect": Published(
            "code of Wang et al., arXiv 2502.19301, TOFU, Llama-2-7B",
            {"beta": 4.0, "epsilon": 1e-5, "lr": 1e-5, "batch_size": 16},
        )
    },
}


def unlearn(
    model: nn.Module,
    split: Split,
    forget_objective: Objective,
    retain_objective: Objective = nll,
    *,
    retain_weight: float,
    forget_weight: float = 1.0,
    **training: Any,
) -> History:
    """Minimise forget_weight * L_forget + retain_weight * L_retain.

    Args:
        model: trained in place.
        split: forget and retain rows; each term draws its own batches.
        forget_objective: minimised on forget rows.
        retain_objective: minimised on retain rows; the plain NLL unless told otherwise.
        retain_weight: 0 leaves the retain rows out.
        forget_weight: factor of the forget term.
        training: see the module's text.

    Raises:
        ValueError: a negative weight, or what ``minimise`` raises.
    """
    for name, weight in (("forget_weight", forget_weight), ("retain_weight", retain_weight)):
        if not weight >= 0:
            raise ValueError(f"{name} must be at least 0, got {weight}; objectives already have the right sign")
    terms = [Term(forget_weight, forget_objective, split.forget, "forget")]
    if retain_weight > 0:
        terms.append(Term(retain_weight, retain_objective, split.retain, "retain"))
    return minimise(model, terms, **training)


def ga(model: nn.Module, split: Split, **training: Any) -> History:
    """Gradient ascent on the forget NLL, nothing to hold the rest (Jang et al., arXiv 2210.01504)."""
    return unlearn(model, split, objectives.ga, retain_weight=0.0, **training)


def grad_diff(model: nn.Module, split: Split, *, retain_weight: float, **training: Any) -> History:
    """Gradient ascent with the retain NLL (gradient difference; Liu et al., arXiv 2203.12817)."""
    return unlearn(model, split, objectives.ga, retain_weight=retain_weight, **training)


def ga_kl(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    retain_weight: float,
    positions: Read = "answers",
    **training: Any,
) -> History:
    """Gradient ascent with KL(original || model) on retain rows (TOFU, arXiv 2401.06121).

    ``positions="all"`` averages KL over prompts and padding too, as the codes of TOFU and OpenUnlearning do, so that
    its weight falls as padding grows.
    """
    check_apart(model, original)
    held = ForwardKL(original, meant("positions", positions, READ))
    return unlearn(model, split, objectives.ga, held, retain_weight=retain_weight, **training)


def npo(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    beta: float,
    retain_weight: float,
    **training: Any,
) -> History:
    """Negative preference optimisation with the retain NLL (Zhang et al., arXiv 2404.05868)."""
    check_apart(model, original)
    return unlearn(model, split, NPO(original, beta=beta), retain_weight=retain_weight, **training)


def wga(model: nn.Module, split: Split, *, beta: float, retain_weight: float, **training: Any) -> History:
    """Weighted gradient ascent with the retain NLL (Wang et al., arXiv 2502.19301)."""
    return unlearn(model, split, WGA(beta=beta), retain_weight=retain_weight, **training)


def tnpo(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    beta: float,
    retain_weight: float,
    epsilon: float = 0.0,
    **training: Any,
) -> History:
    """Token-wise NPO with the retain NLL (Wang et al., arXiv 2502.19301); the paper's code takes epsilon 1e-5.

    That silences tokens that the original finds unlikely, see ``probe.objectives.token.TNPO``.
    """
    check_apart(model, original)
    objective = TNPO(original, beta=beta, epsilon=epsilon)
    return unlearn(model, split, objective, retain_weight=retain_weight, **training)


def check_apart(model: nn.Module, original: nn.Module | OriginalAnswers) -> None:
    """Refuse a reference that would move with the model that is trained; one computed beforehand cannot.

    Raises:
        ValueError: the two share a parameter.
    """
    if isinstance(original, OriginalAnswers):
        return
    ours = {p.data_ptr() for p in model.parameters()}
    if any(p.data_ptr() in ours for p in original.parameters()):
        raise ValueError(
            "original shares weights with the model that is trained, so the reference would move with it; "
            "pass copy.deepcopy(model) taken before training"
        )


METHODS = (
    Method(
        "ga",
        "divergence",
        "log p of forget answers, token mean",
        "Jang et al., arXiv 2210.01504",
        "all parameters",
        ga,
        PUBLISHED["ga"],
    ),
    Method(
        "grad_diff",
        "divergence",
        "log p(forget) + w NLL(retain)",
        "Liu et al., arXiv 2203.12817",
        "all parameters",
        grad_diff,
        PUBLISHED["grad_diff"],
        unlearn,
    ),
    Method(
        "ga_kl",
        "divergence",
        "log p(forget) + w KL(original || model) on retain rows",
        "TOFU, arXiv 2401.06121",
        "all parameters",
        ga_kl,
        PUBLISHED["ga_kl"],
        unlearn,
    ),
    Method(
        "npo",
        "divergence",
        "(2/beta) mean log(1 + (pi/pi0)^beta) + w NLL(retain)",
        "Zhang et al., arXiv 2404.05868",
        "all parameters",
        npo,
        PUBLISHED["npo"],
        unlearn,
    ),
    Method(
        "wga",
        "divergence",
        "mean sg[p^beta] log p + w NLL(retain)",
        "Wang et al., arXiv 2502.19301",
        "all parameters",
        wga,
        PUBLISHED["wga"],
        unlearn,
    ),
    Method(
        "tnpo",
        "divergence",
        "mean sg[2 p^b / (p^b + p0^b)] log p + w NLL(retain)",
        "Wang et al., arXiv 2502.19301",
        "all parameters",
        tnpo,
        PUBLISHED["tnpo"],
        unlearn,
    ),
)
