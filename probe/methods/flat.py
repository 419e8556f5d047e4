"""FLAT: refusals up and forget answers down by an f-divergence, with forget data alone.

>>> unlearned = study.unlearn("flat", setting="flat", steps=2, batch_size=4)
"""

from dataclasses import replace
from typing import Any

from torch import nn

from probe.data import Batch, Split
from probe.methods.answers import beside
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import unlearn
from probe.methods.words import Form, meant
from probe.objectives.preference import FLAT, BatchFLAT, Divergence
from probe.train import History


@method(
    "rejection",
    "-g*(p(refusals)) + f*(g*(p(forget)))",
    "Wang et al., arXiv 2410.11143",
    published={
        "flat": Published(
            "code of Wang et al., arXiv 2410.11143, TOFU",
            {"divergence": "total-variation", "form": "released", "lr": 1e-5, "weight_decay": 0.01},
        )
    },
)
def flat(
    model: nn.Module, split: Split, *, refusals: Batch, divergence: Divergence, form: Form = "paper", **training: Any
) -> History:
    """Refusals up and forget answers down by an f-divergence, nothing to hold the rest (Wang et al., arXiv 2410.11143).

    Args:
        model: trained in place.
        split: forget rows; retain rows are not read.
        refusals: to the forget questions, in the order of the rows.
        divergence: which f; see ``probe.objectives.preference.FLAT``.
        form: compare answer by answer the mean probability of their tokens (``"paper"``), or one mean a batch and side,
            over prompts and padding too (``"released"``, ``probe.objectives.preference.BatchFLAT``).
        training: see ``probe.methods.unlearn``.

    Raises:
        ValueError: an unknown divergence or form, refusals to other questions, or what ``minimise`` raises.
    """
    sides = replace(split, forget=beside(refusals, split.forget))
    objective = meant("form", form, {"paper": FLAT, "released": BatchFLAT})(divergence)
    return unlearn(model, sides, objective, retain_weight=0.0, **training)
