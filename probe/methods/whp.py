"""Who's Harry Potter (Eldan and Russinovich, arXiv 2310.02238): away from what a reinforced model prefers.

The reinforced model is the original trained further on the forget rows: ``probe unlearn fine_tune`` with the files of
forget and retain rows exchanged makes one.

>>> unlearned = study.unlearn("whp", assistant=study.retrained, alpha=1, lr=3e-4, steps=2, batch_size=4)
"""

from torch import Tensor, nn

from probe.methods.logit_offset import Offset
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import forget_loss
from probe.objectives.generic import GenericLabels
from probe.objectives.objective import Objective
from probe.objectives.token import check_not_negative


class Lowered(Offset):
    """logits = z - weight relu(z_assistant - z): lowered where the assistant has larger ones; several act in turn."""

    def shifted(self, logits: Tensor, weight: float, other: Tensor) -> Tensor:
        """z - weight relu(other - z)."""
        return logits - weight * (other - logits).relu()


@forget_loss(
    "rejection",
    "-mean log p(y*), y* the likeliest by z0 - alpha relu(z_reinforced - z0), + w NLL(retain)",
    "Eldan and Russinovich, arXiv 2310.02238",
    retain_weight=0.0,
)
def whp(original: nn.Module, assistant: nn.Module, alpha: float) -> Objective:
    """Train on the generic prediction at every forget answer token, published without a retain term.

    Args:
        original: the model before unlearning, frozen.
        assistant: the reinforced model.
        alpha: strength; see ``probe.objectives.generic.GenericLabels``.
    """
    return GenericLabels(original, assistant, alpha)


@method(
    "no gradient",
    "z - alpha relu(z_reinforced - z)",
    "Eldan and Russinovich, arXiv 2310.02238; code of MUSE, arXiv 2407.06460",
    published={"muse": Published("default of MUSE's code, arXiv 2407.06460", {"alpha": 1.0})},
    makes="wrapper",
)
def whp_logits(model: nn.Module, assistant: nn.Module, *, alpha: float) -> Lowered:
    """logits - alpha relu(logits_assistant - logits): the generic prediction itself, as MUSE's code has the method.

    Args:
        model: the model before unlearning.
        assistant: the reinforced model.
        alpha: strength, at least 0; 0 gives the model's own logits, bit for bit.

    Raises:
        ValueError: alpha is negative, or another vocabulary.
    """
    check_not_negative("alpha", alpha)
    return Lowered(model, [(alpha, assistant)])
