"""Push down what the model believes instead of the answer too: BS-T, BSTW and BS-S (Li et al., arXiv 2510.19422).

>>> unlearned = study.unlearn("bs_t", weight=0.2, k=20, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any

import torch
from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import forget_loss, unlearn
from probe.objectives.bootstrap import BSS, BST, BSTW, Sampled
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.token import ga
from probe.sites import unwrapped
from probe.train import History


@forget_loss(
    "divergence",
    "mean sum_v t_v log pi_v, t = (1-w) e_y + w softmax(top k), + NLL(retain)",
    "Li et al., arXiv 2510.19422",
    published={"tofu": Published("code of Li et al., arXiv 2510.19422, TOFU", {"weight": 0.2, "k": 20})},
)
def bs_t(weight: float, k: int, detach: bool = True) -> Objective:
    """Ascent on a mix of the answer and the model's k likeliest tokens, with the retain NLL.

    ``detach=False`` lets the weights of those tokens carry a gradient too, as the code can.
    """
    return BST(weight, k, detach=detach)


@forget_loss(
    "divergence",
    "mean sg[2 sigmoid(beta log pi/pi0)] sum sum_v t_v log pi_v, t as in bs_t, + w NLL(retain)",
    "code of Li et al., arXiv 2510.19422",
    published={
        "tofu": Published(
            "configuration in the code of Li et al., arXiv 2510.19422",
            {"weight": 0.2, "k": 20, "beta": 0.1, "forget_weight": 1.0, "retain_weight": 1.0},
        )
    },
)
def bstw(original: nn.Module | OriginalAnswers, weight: float, k: int, beta: float, detach: bool = True) -> Objective:
    """BS-T with the weight that NPO gives each answer, and the retain NLL (the authors' code alone has it)."""
    return BSTW(original, weight, k, beta, detach)


@method(
    "divergence",
    "(1-w) L(forget) + w L(the model's own answers) + NLL(retain)",
    "Li et al., arXiv 2510.19422",
    published={
        "tofu": Published(
            "code of Li et al., arXiv 2510.19422, TOFU; drawn anew every 2 epochs there, at every step here",
            {"weight": 0.5, "samples": 3, "max_new_tokens": 200, "temperature": 1.0},
        )
    },
    training=unlearn,
)
def bs_s(
    model: nn.Module,
    split: Split,
    *,
    weight: float,
    samples: int,
    max_new_tokens: int,
    retain_weight: float,
    seed: int,
    temperature: float = 1.0,
    eos_id: int | None = None,
    objective: Objective = ga,
    **training: Any,
) -> History:
    """Ascent on answers and on what the model itself answers at each step, with the retain NLL.

    Args:
        model: trained in place.
        split: forget and retain rows.
        weight: share of the model's own answers, in [0, 1].
        samples: own answers a question.
        max_new_tokens: longest own answer.
        retain_weight: weight of the retain NLL.
        seed: fixes the order of rows and the samples.
        temperature: of sampling.
        eos_id: the token that ends an answer; the one of the model's config unless given.
        objective: what is minimised on both; the code takes gradient ascent, the paper's tutorial BS-T.
        training: see ``probe.methods.unlearn``.

    Raises:
        ValueError: a config without one eos token, or what the objective and ``minimise`` raise.
    """
    listed = unwrapped(model).config.get_text_config().eos_token_id  # type: ignore[union-attr,operator]
    chosen = listed if eos_id is None else eos_id
    if not isinstance(chosen, int):
        raise ValueError(f"the model's config lists {listed} as eos tokens; pass eos_id, the one that ends answers")
    draw = Sampled(samples, max_new_tokens, chosen, torch.Generator().manual_seed(seed), temperature)
    mixed = BSS(objective, weight, draw)
    return unlearn(model, split, mixed, retain_weight=retain_weight, seed=seed, **training)
