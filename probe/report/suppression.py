"""The report's SAE section: an edit chosen on half of the entities, judged on the other half, beside its controls."""

from probe.attacks.score import AnswerScorer
from probe.features.rules import MeanDifference
from probe.questions import groups_of
from probe.report.measure import Sample
from probe.report.settings import Settings
from probe.rows import Row
from probe.sae.candidates import Source, Strength, candidates
from probe.sae.dose_response import dose_response
from probe.sae.halves import halves
from probe.sae.tables import dose_choice_rows
from probe.study.study import Study

_STRENGTHS = (Strength("zero"), Strength("scale", 3.0), Strength("push", 0.3))
# The dear ones (one more dictionary each way) are left to `probe sae suppress`.
_CONTROLS: tuple[Source, ...] = ("random features", "random dictionary", "difference of means")


def suppression_rows(study: Study, sample: Sample, settings: Settings) -> list[Row]:
    """What each source would choose, what that is worth elsewhere, and what it did to the answers.

    Empty where there is no SAE, or rows are about one entity, so that none is left to report on.
    """
    split = sample.split
    entities = [len(set(groups_of(rows))) for rows in (split.forget_rows, split.retain_rows)]
    if study.sae is None or study.sae_site is None or min(entities) < 2:
        return []
    seed, size = settings.seed, settings.rows_per_pass
    parts = halves(
        study.tokenizer, split.forget_rows, split.retain_rows, seed=seed, template=split.template,
        max_length=split.max_length,
    )  # fmt: skip
    special_ids = study.tokenizer.all_special_ids
    tried = candidates(
        study.original,
        study.sae,
        study.sae_site,
        parts.select,
        rules=[MeanDifference()],
        counts=settings.sae_features[1:],
        strengths=_STRENGTHS,
        controls=_CONTROLS,
        special_ids=special_ids,
        seed=seed,
        batch_size=size,
    )
    full, quick = (AnswerScorer(study.tokenizer, size, split.max_length, choices=choices) for choices in (True, False))
    found = dose_response(
        study.original, parts, tried, score=quick, words_by=full, budget=settings.sae_budget,
        special_ids=special_ids, retrained=study.retrained,
    )  # fmt: skip
    return dose_choice_rows(found)
