"""Methods on the whole next-token distribution: flatten it, or distil it from one without the answer.

L = forget_weight * L_forget + retain_weight * L_retain; ``training`` is as in ``probe.methods.unlearn``.

>>> unlearned = study.unlearn("undial", beta=10, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any, Literal

from torch import nn

from probe.methods.published import OPEN_UNLEARNING, Argument, Published
from probe.methods.unlearn import forget_loss
from probe.methods.words import meant
from probe.objectives.distribution import CEU, UNDIAL, KLFromUniform, KLToUniform
from probe.objectives.logprobs import all_but_last, before_targets
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers

_CLOSER_LOOK: dict[str, Argument] = {
    "direction": "from-uniform",
    "positions": "all",
    "retain_weight": 1.0,
    "lr": 1e-5,
    "batch_size": 32,
}


Positions = Literal["answers", "all"]
_POSITIONS = {"answers": before_targets, "all": all_but_last}


@forget_loss(
    "divergence",
    "mean KL(model || uniform), or KL(uniform || model), + w NLL(retain)",
    "Yuan et al., arXiv 2410.08109",
    published={
        "tofu": Published(
            "code of Yuan et al., arXiv 2410.08109, TOFU, Llama-2-7B", {**_CLOSER_LOOK, "forget_weight": 0.1}
        ),
        "continual": Published(
            "code of Yuan et al., arXiv 2410.08109, TOFU in tasks, Llama-2-7B", {**_CLOSER_LOOK, "forget_weight": 1.0}
        ),
    },
)
def max_entropy(direction: Literal["to-uniform", "from-uniform"], positions: Positions) -> Objective:
    """Entropy of forget rows up, with the retain NLL (ME+GD; Yuan et al., arXiv 2410.08109).

    Args:
        direction: ``"to-uniform"`` minimises KL(model || uniform), as the paper; ``"from-uniform"`` KL(uniform ||
            model), as its code.
        positions: ``"answers"``, or ``"all"``: questions and padding too, as the code's runs label them.

    Raises:
        ValueError: an unknown direction or positions, or what ``minimise`` raises.
    """
    kinds: dict[str, Any] = {"to-uniform": KLToUniform, "from-uniform": KLFromUniform}
    if direction not in kinds:
        raise ValueError(f"direction must be to-uniform or from-uniform, got {direction!r}")
    objective: Objective = kinds[direction](meant("positions", positions, _POSITIONS))
    return objective


@forget_loss(
    "divergence",
    "mean CE(softmax(z0 - beta e_y), model) + w NLL(retain)",
    "Dong et al., arXiv 2402.10052",
    published={
        "open-unlearning": Published(
            "OpenUnlearning, TOFU, Llama-3.2-1B; its experiment file takes lr 1e-5",
            {
                "beta": 10.0,
                "positions": "open-unlearning",
                "forget_weight": 1.0,
                "retain_weight": 0.0,
                "lr": 1e-4,
                "batch_size": 32,
                **OPEN_UNLEARNING,
            },
        ),
        "undial": Published(
            "code of Dong et al., arXiv 2402.10052 (strength 3 to 5; LoRA of rank 8)",
            {"beta": 5.0, "positions": "all", "retain_weight": 0.0},
        ),
    },
)
def undial(
    original: nn.Module | OriginalAnswers,
    beta: float,
    positions: Literal["answers", "all", "open-unlearning"] = "answers",
) -> Objective:
    """Distil the original with the answers' logits lowered by beta (UNDIAL; Dong et al., arXiv 2402.10052).

    ``positions="all"`` lowers every next token of the forget rows, as the authors' code does; ``"open-unlearning"``
    averages over all positions too but lowers answer tokens, and elsewhere token V - 100, as OpenUnlearning's code.
    """
    where = meant("positions", positions, {**_POSITIONS, "open-unlearning": all_but_last})
    return UNDIAL(original, beta, where, elsewhere=-100 if positions == "open-unlearning" else None)


@forget_loss(
    "divergence",
    "mean CE(sg softmax(z without y), model) + w NLL(retain)",
    "Yang, arXiv 2503.01224",
    published={
        "open-unlearning": Published(
            "OpenUnlearning, TOFU", {"skip": 1, "lr": 1e-5, "batch_size": 32, **OPEN_UNLEARNING}
        )
    },
    retain_weight=0.0,
)
def ce_u(skip: int = 1) -> Objective:
    """Distil the model from itself without the answer's token (CE-U; Yang, arXiv 2503.01224); published without retain.

    The first ``skip`` tokens of each answer are left out.
    """
    return CEU(skip)
