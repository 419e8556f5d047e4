"""PDU: flatten the forget logits under the constraint that the retain loss stays below a bound.

>>> unlearned = study.unlearn("pdu", multiplier=50, rate=1, bound=0.1, warm_up=1, lr=3e-4, steps=2, batch_size=4)
"""

from dataclasses import dataclass, field, replace
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import OPEN_UNLEARNING, Published
from probe.methods.words import Form, meant
from probe.objectives.distribution import LogitMargin
from probe.objectives.logprobs import before_targets
from probe.objectives.representation import answer_tokens
from probe.objectives.token import nll
from probe.train import History, Step, Term, minimise
from probe.train.step import Gradient, Losses


@dataclass(frozen=True)
class PDUResult:
    """Losses, and the multiplier that each step was taken with."""

    history: History
    multipliers: tuple[float, ...] = field(repr=False)


@dataclass(eq=False)
class _Ascent:
    """A way of stepping: the retain term is weighed by lambda, which then follows the constraint."""

    multiplier: float
    rate: float
    bound: float
    warm_up: int
    taken: list[float] = field(default_factory=list)

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        forget, retain = step.terms
        weighed = replace(retain, weight=self.multiplier)
        # The bound itself has no gradient.
        losses, gradient = replace(step, terms=[forget, weighed]).gradient()
        self.taken.append(self.multiplier)
        if len(self.taken) > self.warm_up:
            self.multiplier = max(0.0, self.multiplier + self.rate * (losses[1] - self.bound))
        return losses, gradient


@method(
    "divergence",
    "mean (max z - mean z)^2 + lambda (NLL(retain) - bound), lambda ascending",
    "Entesari et al., arXiv 2506.05314",
    published={
        "tofu": Published(
            "code of Entesari et al., arXiv 2506.05314, TOFU, Llama-3.2-1B and 3B; warm-up 5 of 10 epochs",
            {
                "multiplier": 100.0,
                "rate": 5.0,
                "bound": 0.3,
                "form": "released",
                "forget_weight": 1.0,
                "lr": 1e-5,
                **OPEN_UNLEARNING,
            },
        ),
        "muse-news": Published(
            "code of Entesari et al., arXiv 2506.05314, MUSE News",
            {"multiplier": 50.0, "rate": 1.0, "bound": 1.5, "form": "released"},
        ),
        "muse-books": Published(
            "code of Entesari et al., arXiv 2506.05314, MUSE Books",
            {"multiplier": 50.0, "rate": 1.0, "bound": 0.1, "form": "released"},
        ),
    },
)
def pdu(
    model: nn.Module,
    split: Split,
    *,
    multiplier: float,
    rate: float,
    bound: float,
    warm_up: int,
    form: Form = "paper",
    forget_weight: float = 1.0,
    **training: Any,
) -> PDUResult:
    """Minimise forget_weight * mean (max z - mean z)^2 + lambda (NLL_retain - bound), lambda following the constraint.

    Entesari et al., arXiv 2506.05314: lambda <- max(0, lambda + rate * (NLL_retain - bound)) after each step from
    ``warm_up`` on, by the NLL of the step's batch. The code moves lambda after every piece of a batch (with
    ``gradient_accumulation_steps`` A that is A times a step), by that piece's NLL; here a batch has one lambda.

    Args:
        model: trained in place.
        split: forget and retain rows.
        multiplier: lambda at the start.
        rate: step size of lambda.
        bound: largest retain NLL (nats per token); slightly above the original's.
        warm_up: steps before lambda first moves.
        form: flatten the logits that predict answer tokens (``"paper"``), or those one position later (``"released"``,
            whose labels are not shifted: the first answer token is left, what follows the end of the text is
            flattened).
        forget_weight: weight of the forget term.
        training: keyword arguments of ``minimise``; not ``checkpoint``, which would not keep lambda.

    Raises:
        ValueError: a negative number, a ``checkpoint``, or what ``minimise`` raises.
    """
    if not (multiplier >= 0 and rate >= 0 and bound >= 0 and warm_up >= 0):
        raise ValueError(
            f"multiplier, rate, bound and warm_up must be at least 0, got {multiplier}, {rate}, {bound} and {warm_up}"
        )
    if training.get("checkpoint") is not None:
        raise ValueError("pdu takes no checkpoint: its multiplier moves from step to step and would be lost")
    flattened = meant("form", form, {"paper": before_targets, "released": answer_tokens})
    ascent = _Ascent(multiplier, rate, bound, warm_up)
    terms = [
        Term(forget_weight, LogitMargin(flattened), split.forget, "forget"),
        Term(1.0, nll, split.retain, "retain"),
    ]
    return PDUResult(minimise(model, terms, stepping=ascent, **training), tuple(ascent.taken))
