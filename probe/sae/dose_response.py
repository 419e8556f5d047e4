"""Score every candidate on both halves of the entities; what is chosen on one is judged on the other."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import nn
from tqdm.auto import tqdm

from probe.attacks.score import Score, Scorer
from probe.data import Split
from probe.hooks import edited
from probe.positions import At, NotIds
from probe.sae.candidates import Candidate, Source
from probe.sae.halves import Halves, units_of
from probe.sae.outcome import EditOutcome, edit_outcome
from probe.sae.responses import HALVES, SIDES, Half, Response, Sides
from probe.sae.tables import DoseResponse


def dose_response(
    model: nn.Module,
    halves: Halves,
    candidates: Sequence[Candidate],
    *,
    score: Scorer,
    budget: float,
    special_ids: Sequence[int],
    controls: Scorer | None = None,
    words_by: Scorer | None = None,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> DoseResponse:
    """Score every candidate on both halves.

    Nothing is chosen here: the report half is scored for every candidate so that the price of choosing can be told.

    Args:
        model: left as it was.
        halves: what candidates were made on (``select``), and what the choice is judged on.
        candidates: edits to try.
        score: how rows are scored (``probe.attacks.score.AnswerScorer``).
        budget: largest mean rise of the retain loss, in nats.
        special_ids: tokens that are not edited.
        controls: how controls are scored, if wrong answers would take too long there.
        words_by: how the choices are scored once more for their verdict, which needs wrong answers; ``score`` by
            default.
        retrained: a model that never knew the forget rows: what answers are compared with, instead of chance.
        progress: show a bar.

    Raises:
        ValueError: no candidates, or a budget below 0.

    >>> from probe.features import MeanDifference
    >>> from probe.sae import Strength
    >>> both = probe.halves(s.tokenizer, s.split.forget_rows, s.split.retain_rows, seed=0)
    >>> edits = probe.candidates(
    ...     s.original, s.sae, s.sae_site, both.select, rules=[MeanDifference()], counts=[4],
    ...     strengths=[Strength("zero")], controls=(), special_ids=s.special_ids,
    ... )
    >>> found = probe.dose_response(
    ...     s.original, both, edits, score=probe.AnswerScorer(s.tokenizer), budget=0.1, special_ids=s.special_ids
    ... )
    """
    if not candidates or not budget >= 0:
        raise ValueError(f"give candidates and a budget of at least 0, got {len(candidates)} and {budget}")
    parts: dict[Half, Split] = {"select": halves.select, "report": halves.report}
    kept = NotIds(tuple(special_ids))

    def scored(candidate: Candidate | None, by: Scorer, half: Half) -> Sides:
        opened = nullcontext() if candidate is None else edited(model, {candidate.site: At(candidate.edit, kept)})
        split = parts[half]
        with torch.no_grad(), opened:
            return Sides(*(by(model, rows, split.template) for rows in (split.forget_rows, split.retain_rows)))

    plain = {half: scored(None, score, half) for half in HALVES}
    responses = []
    for candidate in tqdm(candidates, desc="dose response", unit="edit", disable=not progress):
        by = score if controls is None or candidate.source == "SAE" else controls
        responses.append(Response(candidate, *(scored(candidate, by, half) for half in HALVES)))
    rows = {(half, on): getattr(split, f"{on}_rows") for half, split in parts.items() for on in SIDES}
    units = {key: units_of(own) for key, own in rows.items()}
    found = DoseResponse(plain, tuple(responses), {key: groups for key, (groups, _) in units.items()}, budget)
    notes = tuple(
        dict.fromkeys(f"{on} rows of the {half} half: {note}" for (half, on), (_, note) in units.items() if note)
    )
    by = words_by or score
    before = plain["report"] if words_by is None else scored(None, by, "report")
    if before.forget.choice_N is None:
        told = "forget rows have no wrong answers, so hidden answers cannot be told from forgotten ones: no verdict"
        return replace(found, notes=(*notes, told))
    score_retrained = None
    if retrained is not None:
        with torch.no_grad():
            score_retrained = by(retrained, halves.report.forget_rows, halves.report.template)

    def full(candidate: Candidate) -> Sides:
        return scored(candidate, by, "report")

    return replace(found, notes=notes, words=_words(found, before, full, score_retrained))


def _words(
    found: DoseResponse, before: Sides, full: Callable[[Candidate], Sides], score_retrained: Score | None
) -> Mapping[Source, EditOutcome]:
    words: dict[Source, EditOutcome] = {}
    for source in dict.fromkeys(one.candidate.source for one in found.responses):
        best = found.chosen(source)
        if best is None:
            continue
        after = best.response.report
        if after.forget.choice_N is None:
            after = full(best.response.candidate)
        words[source] = edit_outcome(
            (before.forget, before.retain),
            (after.forget, after.retain),
            found.groups["report", "forget"],
            retrained=score_retrained,
        )
    return words
