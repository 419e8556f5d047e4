"""Dose and response of activation edits, with random features as the control."""

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
from probe.interventions.steering import Steer, direction
from probe.methods.sae_suppression import suppress
from probe.metrics.memorisation import answer_stats
from probe.report.measure import Sample, groups_of, mean_row
from probe.report.settings import Settings
from probe.rows import Row
from probe.sites import Site
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


def prepare_doses(study: Study, sample: Sample, settings: Settings) -> Doses:
    """Find the direction and rank the features, on the rows kept for choosing.

    Raises:
        ValueError: the SAE does not belong to its site, or no feature passes the rule.
    """
    model, choosing, site = study.original, sample.choosing, Site(settings.editing.layer)
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


def dose_rows(study: Study, sample: Sample, doses: Doses, settings: Settings) -> Iterator[Row]:
    """Answer probability on both sides over dose: steering, and the SAE clamp over the number of features."""
    editing = settings.editing
    site = Site(editing.layer)
    for dose in editing.steer_doses:
        edit = Steer(doses.direction_D, scale=-dose * doses.norm)
        yield from _response(study, sample, "Steer", [{site: edit}], dose, None, settings)
    if study.sae is None or study.sae_site is None:
        return
    available = len(doses.ranking.order)
    for count in sorted({min(n, available) for n in editing.sae_features}):
        top, rate_F = doses.ranking.top(count), doses.ranking.rate_F
        seeds = range(settings.training.seed, settings.training.seed + _DRAWS)
        chosen = {"SAE clamp": [top]}
        if not set(rate_F.nonzero().flatten().tolist()) <= set(top):
            chosen["SAE clamp (random features)"] = [matched_features(rate_F, top, seed=seed) for seed in seeds]
        for name, draws in chosen.items():
            for dose in editing.sae_doses:
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
                found.append(answer_stats(study.original, batch, batch_size=settings.measuring.batch_size))
        probability_N = sum(stats.probability_N for stats in found) / len(found)
        yield mean_row(name, "dose", "probability", probability_N, on, groups, dose=dose, item=count)
