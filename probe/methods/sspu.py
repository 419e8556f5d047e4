"""SSPU: RMU whose random target lies where features of other topics write, with updates drawn to the forgotten ones.

>>> model = study.unlearn("sspu", features=3, coefficient=5, alpha=9, outside_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from probe.axes import DirectionD
from probe.data import Split
from probe.dictionaries.adapters import dictionary
from probe.features.activity import observe
from probe.interventions.attaching import check_site
from probe.methods.method import method
from probe.methods.orthogonalised import BasisDR, check_block, spanned, writers
from probe.methods.rmu import MLP_OUTPUTS, random_target, rmu_parameters
from probe.methods.unlearn import check_original
from probe.objectives.features import UpdateOutside
from probe.objectives.representation import NearOriginal, TokenChoice, TowardsTarget, real_tokens
from probe.sites import Site, matching_parameters
from probe.train import History, Term, minimise

# Rows on which the dictionary is tried at its site.
_SITE_ROWS = 32


@dataclass(frozen=True, eq=False)
class SSPUResult:
    """Losses, and what was drawn where.

    Args:
        history: of the three terms.
        target_D: what forget activations were drawn to.
        relevant, irrelevant: features whose decoder rows span the two subspaces.
    """

    history: History
    target_D: DirectionD = field(repr=False)
    relevant: tuple[int, ...] = field(repr=False)
    irrelevant: tuple[int, ...] = field(repr=False)


@method(
    "representation",
    "mean (h(forget) - u)^2 + alpha mean (h(retain) - h0)^2 + w |(I - U U^T)(W - W0)|^2, u in irrelevant features",
    "Wang et al., arXiv 2505.24428",
    trains=MLP_OUTPUTS,
)
def sspu(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    sae: Any,
    site: Site,
    special_ids: Sequence[int],
    features: int,
    coefficient: float,
    alpha: float,
    outside_weight: float,
    seed: int,
    parameters: str | None = None,
    tokens: TokenChoice = real_tokens,
    **training: Any,
) -> SSPUResult:
    """L = mean (h(forget) - u)^2 + alpha mean (h(retain) - h0)^2 + outside_weight |(I - U U^T) (W - W0)|_F^2.

    SAE-guided subspace projection unlearning (Wang et al., arXiv 2505.24428). u = coefficient * P v / |P v| with v
    RMU's random vector and P the projection on the span of decoder rows of the features least tied to the forget rows;
    U spans those of the features most tied to them. Features are ordered by their mean activation on forget rows less
    that on retain rows; those that are never on are left out. The paper's full text was not at hand: the projections
    follow its abstract and a survey's account, and no setting is printed here for want of a source.

    Args:
        model: trained in place.
        split: forget and retain rows; features are chosen on both.
        original: the model before unlearning, frozen; gives h0.
        sae, site: a dictionary of a block's output and where it belongs, which is measured.
        special_ids: token ids left out when features are chosen.
        features: how many span each subspace.
        coefficient: |u|; see ``probe.methods.rmu.adaptive_coefficient``.
        alpha: weight of the retain term.
        outside_weight: weight of what the update writes outside U; 0 leaves it free.
        seed: fixes v and the order of rows.
        parameters: as for ``rmu``; the regulariser counts those that write to the residual stream.
        tokens: which positions are averaged over.
        training: as for ``rmu``.

    Raises:
        ValueError: a dictionary at the wrong site, too few features that are ever on, numbers out of range, an
            original that shares weights with the model, or what ``minimise`` raises.
    """
    check_original(model, original)
    if not coefficient > 0 or not alpha >= 0 or not outside_weight >= 0:
        raise ValueError(
            "coefficient must be above 0, alpha and outside_weight at least 0, got "
            f"{coefficient}, {alpha} and {outside_weight}"
        )
    found = dictionary(sae)
    check_block(model, found, site)
    check_site(model, found, site, split.retain.select(range(min(_SITE_ROWS, len(split.retain)))))
    seen = observe(model, {site: found}, split.forget, split.retain, special_ids=special_ids)[site]
    ever_F = (seen.forget.active_F + seen.retain.active_F) > 0
    score_F = torch.where(ever_F, seen.forget.mean_F - seen.retain.mean_F, torch.nan)
    sorted_F = score_F.argsort(descending=True, stable=True)
    order = sorted_F[ever_F[sorted_F]].tolist()
    if not 1 <= features <= len(order) // 2:
        raise ValueError(
            f"{features} features a subspace are asked for; {len(order)} are ever on, so 1..{len(order) // 2}"
        )
    relevant, irrelevant = tuple(order[:features]), tuple(order[-features:])
    target_D = _projected_target(model, spanned(found, irrelevant), coefficient, seed)
    pattern = parameters or rmu_parameters(model, site.layer)
    terms = [
        Term(1.0, TowardsTarget(site, target_D, tokens), split.forget, "forget"),
        Term(alpha, NearOriginal(original, site, tokens), split.retain, "retain"),
    ]
    axes = {name: axis for name, axis in writers(model).items() if name in matching_parameters(model, pattern)}
    if outside_weight > 0 and axes:
        named = dict(model.named_parameters())
        before = {name: named[name].detach().clone() for name in axes}
        outside = UpdateOutside(before, axes, spanned(found, relevant).to(next(iter(before.values()))))
        terms.append(Term(outside_weight, outside, split.forget, "outside"))
    return SSPUResult(minimise(model, terms, seed=seed, parameters=pattern, **training), target_D, relevant, irrelevant)


def _projected_target(model: nn.Module, basis_DR: BasisDR, coefficient: float, seed: int) -> DirectionD:
    """u = coefficient * P v / |P v|, v as RMU draws it.

    Raises:
        ValueError: v has no part in the span.
    """
    v_D = random_target(model, 1.0, seed).to(basis_DR)
    inside_D = basis_DR @ (basis_DR.T @ v_D)
    if not inside_D.norm() > 1e-6:
        raise ValueError("the random vector has no part in the span of the irrelevant features; take more, or a seed")
    return (coefficient * inside_D / inside_D.norm()).float()
