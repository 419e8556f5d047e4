"""KTO on forget answers (Ethayarajh et al., arXiv 2402.01306), as a baseline of NPO; ``training`` is as there.

>>> unlearned = study.unlearn("kto", beta=0.1, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Literal

from torch import nn

from probe.data import Batch
from probe.methods.answers import preferred
from probe.methods.published import ONE_TO_ONE, Published
from probe.methods.unlearn import Loss, forget_loss
from probe.objectives.kto import KTO
from probe.objectives.original import OriginalAnswers


@forget_loss(
    "divergence",
    "mean sigmoid(beta [log pi/pi0 (answer) - max(0, mean log pi/pi0 (refusals))]) + w NLL(retain)",
    "Ethayarajh et al., arXiv 2402.01306",
    published={
        "npo-repo": Published(
            "code of Zhang et al., arXiv 2404.05868, TOFU, Llama-2-7B",
            {"form": "npo-repo-log", "beta": 0.1, **ONE_TO_ONE},
        )
    },
)
def kto(
    original: nn.Module | OriginalAnswers,
    refusals: Batch,
    beta: float,
    form: Literal["paper", "npo-repo", "npo-repo-log"] = "paper",
) -> Loss:
    """Forget answers as undesirable ones, against a baseline taken from refusals, with the retain NLL.

    ``form`` is as for ``probe.objectives.kto.KTO``.
    """
    return Loss(KTO(original, beta, form), rows=preferred(refusals))
