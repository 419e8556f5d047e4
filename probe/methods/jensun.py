"""JensUn (Singh et al., arXiv 2509.02820): Jensen-Shannon divergence to a fixed text, and to the original on the rest.

``training`` is as in ``probe.methods.unlearn``.
"""

from dataclasses import replace
from typing import Any

from torch import nn

from probe.data import Batch, Split
from probe.methods.answers import beside
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import Loss, check_apart, forget_loss, unlearn
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.original import OriginalAnswers
from probe.train import History


@method(
    "rejection",
    "mean JS(refusal, model) + w mean JS(original, model) on retain answers",
    "Singh et al., arXiv 2509.02820",
    training=unlearn,
)
def jensun(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    refusals: Batch,
    retain_weight: float,
    **training: Any,
) -> History:
    """JS(refusal, model) on forget questions + w JS(original, model) on retain answers.

    The published refusal is one for all questions, "No idea": pass a file with that line. See ``jensun_released`` for
    what the code does instead.
    """
    check_apart(model, original)
    beside(refusals, split.forget)
    sides = replace(split, forget=refusals)
    return unlearn(
        model, sides, JensenShannonToText(), JensenShannon(original), retain_weight=retain_weight, **training
    )


@forget_loss(
    "rejection",
    "mean JS(text repeated along the forget answer, model) + w mean JS(original, model) on retain answers",
    "code of Singh et al., arXiv 2509.02820",
    published={
        "lkf": Published(
            "code of Singh et al., arXiv 2509.02820, LKF, Llama-3.2-3B-Instruct, whose tokens these are: ' No idea'",
            {"text_ids": (2822, 4623), "forget_weight": 1.0, "retain_weight": 1.0, "lr": 1e-5, "batch_size": 16},
        )
    },
)
def jensun_released(original: nn.Module | OriginalAnswers, text_ids: tuple[int, ...]) -> Loss:
    """JS(text, model) along the forget answers + w JS(original, model) on retain answers: JensUn's released code.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        text_ids: token ids of the text that is repeated along each forget answer.
        retain_weight: weight of the retain term.
        training: see the module's text.

    Raises:
        ValueError: no ids, an id outside the vocabulary, or what ``minimise`` raises.
    """
    if not text_ids:
        raise ValueError("text_ids is empty; give the token ids of the text that the model shall write instead")
    return Loss(JensenShannonToText(text_ids), JensenShannon(original))
