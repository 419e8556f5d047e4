"""Methods on whole answers: without a reference (SimNPO), or with other answers to prefer (refusals, alternatives).

L = forget_weight * L_forget + retain_weight * L_retain; ``training`` is as in ``probe.methods.unlearn``. Refusals and
alternatives are batches in the order of the rows they answer; ``probe.methods.answers`` makes them from texts. They are
drawn once; the published codes draw refusals anew each time a row is read.

>>> model = study.unlearn("idk_dpo", beta=0.1, retain_weight=1, refusals=["No idea."], lr=3e-4, steps=2, batch_size=4)
"""

from dataclasses import replace
from typing import Any

from torch import nn

from probe.data import Batch, Split, paired
from probe.methods.answers import beside, instead, preferred
from probe.methods.method import method
from probe.methods.published import ONE_TO_ONE, OPEN_UNLEARNING, Published
from probe.methods.unlearn import Loss, check_original, forget_loss
from probe.methods.words import READ, Read, meant
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.preference import DPO, AnswerPreservation
from probe.objectives.retain import ForwardKL
from probe.objectives.sequence import SimNPO
from probe.objectives.token import ga, nll
from probe.train import History, Term, minimise

_IDK = "arXiv 2410.08109 (code), TOFU, Llama-2-7B"


@forget_loss(
    "divergence",
    "-(2/beta) mean log sigmoid(-(beta/|y|) log pi - gamma) + w NLL(retain)",
    "Fan et al., arXiv 2410.07163",
    published={
        "tofu-forget05": Published(
            "Fan et al., arXiv 2410.07163, TOFU forget05, Llama-2-7B",
            {"beta": 2.5, "forget_weight": 0.1375, "retain_weight": 1.0, "lr": 1e-5, "batch_size": 32},
        ),
        "tofu-forget10": Published(
            "Fan et al., arXiv 2410.07163, TOFU forget10, Llama-2-7B",
            {"beta": 4.5, "forget_weight": 0.125, "retain_weight": 1.0, "lr": 1e-5, "batch_size": 32},
        ),
        "open-unlearning": Published(
            "OpenUnlearning, TOFU, Llama-3.2-1B",
            {**ONE_TO_ONE, "beta": 4.5, "delta": 0.0, "forget_weight": 0.125, **OPEN_UNLEARNING},
        ),
    },
)
def simnpo(beta: float, gamma: float = 0.0, delta: float = 0.0) -> Objective:
    """SimNPO with the retain NLL (Fan et al., arXiv 2410.07163); gamma and delta are two places for one margin."""
    return SimNPO(beta, gamma, delta)


@forget_loss(
    "rejection",
    "NLL(refusals) + w NLL(retain)",
    "TOFU, arXiv 2401.06121",
    published={"closer-look": Published(_IDK, {"retain_weight": 1.0, "lr": 1e-5, "batch_size": 32})},
)
def idk(refusals: Batch) -> Loss:
    """NLL of refusals to forget questions with the retain NLL (PO; TOFU, arXiv 2401.06121).

    TOFU's code takes one token mean over both sides; here each side has its own.
    """
    return Loss(nll, rows=instead(refusals))


@forget_loss(
    "rejection",
    "NLL(refusals) - (w/beta) mean log sigmoid(beta log pi(y)/pi(refusal)) on retain questions",
    "Yuan et al., arXiv 2410.08109",
    published={"closer-look": Published(_IDK, {"beta": 0.1, **ONE_TO_ONE})},
)
def idk_ap(refusals: Batch, retain_refusals: Batch, beta: float) -> Loss:
    """NLL of refusals to forget questions, and retain answers kept ahead of refusals (Yuan et al., arXiv 2410.08109).

    Args:
        refusals: to the forget questions.
        retain_refusals: to the retain questions, one each.
        beta: inverse temperature of answer preservation.
        retain_weight: weight of answer preservation.
    """

    def rows(split: Split) -> Split:
        return replace(instead(refusals)(split), retain=paired(split.retain, retain_refusals))

    return Loss(nll, AnswerPreservation(beta), rows=rows)


@forget_loss(
    "rejection",
    "-(2/beta) mean log sigmoid(beta [log-ratio of refusal - of answer]) + w NLL(retain)",
    "Zhang et al., arXiv 2404.05868",
    published={
        "npo-repo": Published(
            "code of Zhang et al., arXiv 2404.05868, TOFU, Llama-2-7B",
            {"beta": 0.1, **ONE_TO_ONE},
        ),
        "open-unlearning": Published(
            "OpenUnlearning, TOFU: DPO, experiment idk",
            {"beta": 0.1, **ONE_TO_ONE, **OPEN_UNLEARNING},
        ),
        "altpo-repo": Published(
            "tuned as a baseline by Mekala et al., arXiv 2409.13474, TOFU, Llama-2-7B",
            {"beta": 0.1, "retain_weight": 1.0, "lr": 2e-5, "batch_size": 35, "weight_decay": 0.01},
        ),
    },
)
def idk_dpo(original: nn.Module | OriginalAnswers, refusals: Batch, beta: float) -> Loss:
    """DPO that prefers refusals to forget answers, with the retain NLL (Zhang et al., arXiv 2404.05868)."""
    return Loss(DPO(original, beta), rows=preferred(refusals))


@forget_loss(
    "rejection",
    "-(2/beta) mean log sigmoid(beta [log-ratio of alternative - of answer]) + w NLL(retain)",
    "Mekala et al., arXiv 2409.13474",
    published={
        "altpo-repo": Published(
            "code of Mekala et al., arXiv 2409.13474, TOFU, Llama-2-7B; 5 alternatives a question",
            {"beta": 0.1, "retain_weight": 1.0, "lr": 5e-5, "batch_size": 35, "weight_decay": 0.01},
        )
    },
)
def alt_po(original: nn.Module | OriginalAnswers, alternatives: Batch, beta: float) -> Loss:
    """DPO that prefers other plausible answers, with the retain NLL (AltPO; Mekala et al., arXiv 2409.13474).

    Args:
        original: the model before unlearning.
        alternatives: the same number to each forget question, those to the first question first; the published ones
            are written by the original itself.
        beta: inverse temperature.
    """
    return Loss(DPO(original, beta), rows=preferred(alternatives))


@method(
    "divergence",
    "log p(forget) + v NLL(other answers) + w KL(original || model)",
    "Yao et al., arXiv 2310.10683",
    published={
        "closer-look": Published(
            _IDK,
            {"mismatch_weight": 1.0, "positions": "all", **ONE_TO_ONE},
        )
    },
)
def llmu(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    alternatives: Batch,
    mismatch_weight: float,
    retain_weight: float,
    forget_weight: float = 1.0,
    positions: Read = "answers",
    **training: Any,
) -> History:
    """Gradient ascent + NLL of other answers to forget questions + KL(original || model) on retain rows.

    LLMU (Yao et al., arXiv 2310.10683), whose other answers are those of random other questions. ``positions="all"``
    averages KL over prompts and padding too, as the published codes do.
    """
    check_original(model, original)
    beside(alternatives, split.forget)
    terms = [
        Term(forget_weight, ga, split.forget, "forget"),
        Term(mismatch_weight, nll, alternatives, "mismatch"),
        Term(retain_weight, ForwardKL(original, meant("positions", positions, READ)), split.retain, "retain"),
    ]
    return minimise(model, terms, **training)
