"""JensUn (Singh et al., arXiv 2509.02820): Jensen-Shannon divergence to a fixed text, and to the original on the rest.

``training`` is as in ``probe.methods.unlearn``.

>>> unlearned = study.unlearn("jensun", refusals=["No idea"], retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from torch import nn

from probe.data import Batch
from probe.methods.answers import instead
from probe.methods.published import Published
from probe.methods.unlearn import Loss, forget_loss
from probe.objectives.jensun import JensenShannon, JensenShannonToText
from probe.objectives.original import OriginalAnswers


@forget_loss(
    "rejection",
    "mean JS(refusal, model) + w mean JS(original, model) on retain answers",
    "Singh et al., arXiv 2509.02820",
)
def jensun(original: nn.Module | OriginalAnswers, refusals: Batch) -> Loss:
    """JS(refusal, model) on forget questions + w JS(original, model) on retain answers.

    The published refusal is one for all questions, "No idea": pass a file with that line. See ``jensun_released`` for
    what the code does instead.
    """
    return Loss(JensenShannonToText(), JensenShannon(original), rows=instead(refusals))


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
        original: the model before unlearning.
        text_ids: token ids of the text that is repeated along each forget answer.

    Raises:
        ValueError: no ids, an id outside the vocabulary, or what ``minimise`` raises.
    """
    if not text_ids:
        raise ValueError("text_ids is empty; give the token ids of the text that the model shall write instead")
    return Loss(JensenShannonToText(text_ids), JensenShannon(original))
