"""Task arithmetic: learn the forget rows even better, then take away what that changed.

>>> unlearned = study.unlearn("task_vector", scale=1, lr=3e-4, steps=2, batch_size=4)
"""

import copy
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.objectives.token import nll
from probe.train import History, Term, minimise
from probe.weights import negate


@method(
    "no gradient",
    "theta - scale (theta_forget - theta), theta_forget trained on the forget rows",
    "Ilharco et al., arXiv 2212.04089",
    published={"muse": Published("MUSE, Shi et al., arXiv 2407.06460 (News and Books, 7B models)", {"scale": 1.0})},
)
def task_vector(model: nn.Module, split: Split, *, scale: float, **training: Any) -> History:
    """theta <- theta - scale * (theta_forget - theta), theta_forget being the model trained on the forget rows.

    Ilharco et al., arXiv 2212.04089, who choose the scale on held-out rows in steps of 0.05. To try several scales
    train ``theta_forget`` once and use ``probe.weights.negated``.

    Args:
        model: changed in place.
        split: its forget rows are learnt; retain rows are not used.
        scale: 0 changes nothing.
        training: how theta_forget is trained; see ``probe.train.minimise``.

    Raises:
        ValueError: a scale that is negative or not finite, or what ``minimise`` raises.
    """
    if not scale >= 0:
        raise ValueError(f"scale must be at least 0, got {scale}; the vector is subtracted already")
    tuned = copy.deepcopy(model)
    history = minimise(tuned, [Term(1.0, nll, split.forget, "forget")], **training)
    negate(model, tuned, scale)
    return history
