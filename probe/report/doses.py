"""Activation edits at one dose, and dose and response, with random features as the control."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from probe.axes import DirectionD
from probe.dictionaries.adapters import dictionary
from probe.features.ranking import matched_features, rank_features
from probe.features.rules import MeanDifference
from probe.hooks import Intervention, edited
from probe.interventions.activations import activations, content
from probe.interventions.attaching import check_site
from probe.interventions.features import norm_relative
from probe.interventions.projection import Project
from probe.interventions.steering import Steer, direction
from probe.methods.sae_suppression import suppress
from probe.metrics.mean_rows import mean_row
from probe.metrics.memorisation import answer_stats
from probe.questions import groups_of
from probe.report.conditions import Condition, with_edits
from probe.report.measure import Sample
from probe.report.settings import Settings
from probe.rows import Row
from probe.sites import Site, n_layers
from probe.study.study import Study

# Draws of random features, whose mean is the control.
_DRAWS = 3


@dataclass(frozen=True)
class Doses:
    """What activation edits are made of: a unit direction, the norm that doses are measured in, ranked features."""

    direction_D: DirectionD = field(repr=False)
    norm: float
    ranking: Any = None
    unit_F: Tensor | None = None

    def clamp_value(self, features: Sequence[int], dose: float) -> Tensor:
        """The clamp value per feature at a dose; it grows linearly, so one pass measured all of them."""
        assert self.unit_F is not None
        return dose * self.unit_F[list(features)]


def _steer_site(study: Study, settings: Settings) -> Site:
    """Where the direction is read and subtracted: the block that was named, or the middle one."""
    middle = n_layers(study.original) // 2
    return Site(middle if settings.steer_layer is None else settings.steer_layer)


def prepare_doses(study: Study, sample: Sample, settings: Settings) -> Doses:
    """Find the direction and rank the features, on the rows kept for choosing.

    Raises:
        ValueError: the SAE does not belong to its site, or no feature passes the rule.
    """
    model, choosing, site = study.original, sample.choosing, _steer_site(study, settings)
    direction_D = direction(model, choosing, site)
    norm = activations(model, choosing.retain, [site], tokens=content)[site].norm(dim=1).median().item()
    ranking = unit_F = None
    if study.sae is not None and study.sae_site is not None:
        check_site(model, study.sae, study.sae_site, choosing.retain)
        ranking = rank_features(
            model,
            study.sae,
            study.sae_site,
            choosing.forget,
            choosing.retain,
            rule=MeanDifference(),
            special_ids=study.tokenizer.all_special_ids,
        )
        every = range(dictionary(study.sae).n_features)
        unit_F = norm_relative(model, choosing.retain, study.sae_site, study.sae, every, dose=1.0)
    return Doses(direction_D / direction_D.norm(), norm, ranking, unit_F)


def activation_edits(study: Study, doses: Doses, settings: Settings) -> Iterator[Condition]:
    """Steering, projection and SAE suppression at the doses that are diagnosed in full."""
    site = _steer_site(study, settings)
    minus = Steer(doses.direction_D, scale=-settings.steer_dose * doses.norm)
    what = (
        f"the forget-minus-retain direction subtracted after layer {site.layer}, {settings.steer_dose:g} median "
        "residual norms at every token"
    )
    yield with_edits("Steer", study, lambda: {site: minus}, what)
    what = f"the same direction projected out after layer {site.layer}"
    yield with_edits("Project", study, lambda: {site: Project(doses.direction_D)}, what)
    where = study.sae_site
    if study.sae is not None and where is not None:
        count = settings.sae_features[len(settings.sae_features) // 2]
        features = doses.ranking.top(count)
        what = (
            f"{count} SAE features after layer {where.layer} clamped where active, to minus "
            f"{settings.sae_dose:g} median residual norms each, reconstruction error kept"
        )
        clamp = suppress(study.sae, features, doses.clamp_value(features, settings.sae_dose))
        yield with_edits("SAE clamp", study, lambda: {where: clamp}, what)


def dose_rows(study: Study, sample: Sample, doses: Doses, settings: Settings) -> Iterator[Row]:
    """Answer probability on both sides over dose: steering, and the SAE clamp over the number of features."""
    site = _steer_site(study, settings)
    for dose in settings.steer_doses:
        edit = Steer(doses.direction_D, scale=-dose * doses.norm)
        yield from _response(study, sample, "Steer", [{site: edit}], dose, None, settings)
    if study.sae is None or study.sae_site is None:
        return
    available = len(doses.ranking.order)
    for count in sorted({min(n, available) for n in settings.sae_features}):
        top, rate_F = doses.ranking.top(count), doses.ranking.rate_F
        seeds = range(settings.seed, settings.seed + _DRAWS)
        chosen = {"SAE clamp": [top]}
        if not set(rate_F.nonzero().flatten().tolist()) <= set(top):
            chosen["SAE clamp (random features)"] = [matched_features(rate_F, top, seed=seed) for seed in seeds]
        for name, draws in chosen.items():
            for dose in settings.sae_doses:
                clamps = [suppress(study.sae, one, doses.clamp_value(one, dose)) for one in draws]
                edits = [{study.sae_site: clamp} for clamp in clamps]
                yield from _response(study, sample, name, edits, dose, count, settings)


def _response(
    study: Study,
    sample: Sample,
    name: str,
    draws: Sequence[Mapping[Site, Intervention]],
    dose: float,
    count: int | None,
    settings: Settings,
) -> Iterator[Row]:
    """Each row's probability is the mean over the draws."""
    for on in ("forget", "retain"):
        batch, groups = getattr(sample.split, on), groups_of(getattr(sample.split, f"{on}_rows"))
        found = []
        for edits in draws:
            with torch.no_grad(), edited(study.original, edits):
                found.append(answer_stats(study.original, batch, batch_size=settings.rows_per_pass))
        probability_N = sum(stats.probability_N for stats in found) / len(found)
        yield mean_row(name, "dose", "probability", probability_N, on, groups, dose=dose, item=count)
