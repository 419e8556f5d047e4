"""Suppress what a model should not know by clamping SAE features: those that a rule ranks first, and the clamp.

>>> edits = study.unlearn("sae_suppression", rule="frequency", threshold=0.5, features=2, value=-1)
>>> list(edits) == [study.sae_site]
True
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import nn

from probe.data import Split
from probe.features.ranking import rank_features
from probe.features.rules import Frequency, MeanDifference, Rule, SquaredMeanRatio
from probe.interventions.attaching import check_site
from probe.interventions.features import Clamp, PerFeatureK
from probe.methods.method import method
from probe.sites import Site

# Rows on which an SAE is tried at its site.
_SITE_ROWS = 32


def suppress(sae: Any, features: Sequence[int], value: float | PerFeatureK) -> Clamp:
    """Clamp features to 0 or below wherever they are active (Farrell, Lau and Conmy, arXiv 2410.19278).

    Args:
        sae: the SAE.
        features: ``table.top(n)``, say.
        value: in activation units, or from ``probe.interventions.features.norm_relative``.

    Raises:
        ValueError: a positive value, which would amplify.
    """
    if bool((torch.as_tensor(value) > 0).any()):
        raise ValueError(f"a clamp suppresses at 0 or below, got {value}; use Clamp itself to amplify")
    return Clamp(sae, features, value)


@method(
    "no gradient",
    "SAE features of the forget rows clamped where active",
    "Farrell, Lau and Conmy, arXiv 2410.19278",
    name="sae_suppression",
    makes="edit",
)
def suppress_ranked(
    model: nn.Module,
    sae: Any,
    site: Site,
    split: Split,
    special_ids: Sequence[int],
    *,
    rule: Literal["frequency", "activation-ratio", "mean-difference"],
    features: int,
    value: float,
    threshold: float | None = None,
) -> dict[Site, Clamp]:
    """``suppress`` the features that ``probe.features.ranking.rank_features`` puts first, for ``probe.hooks.edited``.

    Args:
        model: the model that will be edited.
        sae, site: its SAE and where it belongs, which is measured.
        split: rows to choose on.
        special_ids: token ids left out.
        rule: ``Frequency``, ``SquaredMeanRatio`` or ``MeanDifference`` of ``probe.features.rules``.
        features: how many.
        value: what they are clamped to, 0 or below, in activation units.
        threshold: ``retain_threshold`` of frequency, ``percentile`` of activation-ratio; mean-difference takes none.

    Raises:
        ValueError: a threshold too few or too many, an SAE of another width, model or site, fewer features than asked
            for, or a positive value.
    """
    rules: dict[str, Callable[[float], Rule]] = {"frequency": Frequency, "activation-ratio": SquaredMeanRatio}
    if (rule in rules) != (threshold is not None):
        raise ValueError(f"rule {rule} {'needs a' if rule in rules else 'takes no'} threshold, got {threshold}")
    scored: Rule = rules[rule](threshold) if threshold is not None else MeanDifference()
    check_site(model, sae, site, split.retain.select(range(min(_SITE_ROWS, len(split.retain)))))
    table = rank_features(model, sae, site, split.forget, split.retain, rule=scored, special_ids=special_ids)
    return {site: suppress(sae, table.top(features), value)}
