"""KTO on forget answers (Ethayarajh et al., arXiv 2402.01306), as a baseline of NPO; ``training`` is as there."""

from dataclasses import replace
from typing import Any, Literal

from torch import nn

from probe.data import Batch, Split
from probe.methods.answers import beside
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import check_apart, unlearn
from probe.objectives.kto import KTO
from probe.objectives.original import OriginalAnswers
from probe.train import History


@method(
    "divergence",
    "mean sigmoid(beta [log pi/pi0 (answer) - max(0, mean log pi/pi0 (refusals))]) + w NLL(retain)",
    "Ethayarajh et al., arXiv 2402.01306",
    published={
        "npo-repo": Published(
            "code of Zhang et al., arXiv 2404.05868, TOFU, Llama-2-7B",
            {
                "form": "npo-repo-log",
                "beta": 0.1,
                "forget_weight": 1.0,
                "retain_weight": 1.0,
                "lr": 1e-5,
                "batch_size": 32,
            },
        )
    },
    training=unlearn,
)
def kto(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module | OriginalAnswers,
    refusals: Batch,
    beta: float,
    retain_weight: float,
    form: Literal["paper", "npo-repo", "npo-repo-log"] = "paper",
    **training: Any,
) -> History:
    """Forget answers as undesirable ones, against a baseline taken from refusals, with the retain NLL.

    ``form`` is as for ``probe.objectives.kto.KTO``.
    """
    check_apart(model, original)
    sides = replace(split, forget=beside(refusals, split.forget))
    return unlearn(model, sides, KTO(original, beta, form), retain_weight=retain_weight, **training)
