"""Every candidate's dose and response, a choice made on one half of the entities, and what it is worth on the other."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch
from torch import nn
from tqdm.auto import tqdm

from probe.attacks.recovery import Interval, grouped
from probe.attacks.score import Score, Scorer
from probe.data import Split
from probe.display import table
from probe.hooks import edited
from probe.metrics.arrays import ArrayN
from probe.positions import At, NotIds
from probe.rows import Row
from probe.sae.candidates import Candidate, Source
from probe.sae.halves import Halves, groups_of

Half = Literal["select", "report"]
On = Literal["forget", "retain"]
_SIDES: tuple[On, On] = ("forget", "retain")
Quantity = Literal["loss", "probability", "choice", "match"]
# SAEBench's bar: a configuration counts if the side effects leave 99 % of answers right.
SAEBENCH_KEEPS = 0.99


@dataclass(frozen=True, eq=False)
class Sides:
    """Scores of one half's forget and retain rows."""

    forget: Score = field(repr=False)
    retain: Score = field(repr=False)


@dataclass(frozen=True, eq=False)
class Response:
    """What one candidate does on both halves."""

    candidate: Candidate
    select: Sides = field(repr=False)
    report: Sides = field(repr=False)


@dataclass(frozen=True, eq=False)
class Chosen:
    """The candidate a source would choose, and the price of having chosen.

    Args:
        response: the choice.
        forget, retain: rise of the loss on the report half, with its interval over entities.
        optimism: how much better select says it is than report: the forget rise less, the retain rise more.
    """

    response: Response
    forget: Interval
    retain: Interval
    optimism: Mapping[str, float]


@dataclass(frozen=True, eq=False)
class DoseResponse:
    """Every candidate on both halves; made by ``dose_response``.

    Args:
        plain: the model without an edit, by half.
        responses: in the order of the candidates.
        groups: the entity of each row, by half and side.
        budget: largest mean rise of the retain loss that a choice may cost, in nats.
    """

    plain: Mapping[Half, Sides] = field(repr=False)
    responses: tuple[Response, ...] = field(repr=False)
    groups: Mapping[tuple[Half, str], tuple[str, ...]] = field(repr=False)
    budget: float

    def rise(self, sides: Sides, half: Half, on: On) -> ArrayN:
        """Loss under the edit less the loss without it, a row each."""
        return loss_of(getattr(sides, on)) - loss_of(getattr(self.plain[half], on))

    def mean_rise(self, response: Response, half: Half, on: On) -> float:
        """The mean of ``rise`` over rows."""
        return float(self.rise(getattr(response, half), half, on).mean())

    def of(self, source: Source) -> tuple[Response, ...]:
        """The responses of one source."""
        return tuple(one for one in self.responses if one.candidate.source == source)

    def best(self, responses: Sequence[Response], half: Half) -> Response | None:
        """The largest forget rise among those within the budget on ``half``; None if none is."""
        within = [one for one in responses if self.mean_rise(one, half, "retain") <= self.budget]
        return max(within, key=lambda one: self.mean_rise(one, half, "forget"), default=None)

    def chosen(self, source: Source) -> Chosen | None:
        """What is chosen on the select half, judged on the report half; None if nothing stays within the budget."""
        best = self.best(self.of(source), "select")
        if best is None:
            return None
        forget, retain = (grouped(self.rise(best.report, "report", on), self.groups["report", on]) for on in _SIDES)
        optimism = {
            on: sign * (self.mean_rise(best, "select", on) - self.mean_rise(best, "report", on))
            for on, sign in zip(_SIDES, (1, -1), strict=True)
        }
        return Chosen(best, forget, retain, optimism)

    def pareto(self, source: Source, half: Half = "select") -> tuple[Response, ...]:
        """Those that no other response of the source beats on both sides of ``half``, cheapest first."""
        points = [(self.mean_rise(r, half, "retain"), self.mean_rise(r, half, "forget"), r) for r in self.of(source)]
        front: list[Response] = []
        most = -np.inf
        for _, forget, response in sorted(points, key=lambda point: (point[0], -point[1])):
            if forget > most:
                front.append(response)
                most = forget
        return tuple(front)

    def gap(self, control: Source) -> Interval | None:
        """Forget rise of the SAE's choice less that of a control's, on the report half; None if one chose nothing."""
        ours, theirs = self.chosen("SAE"), self.chosen(control)
        if ours is None or theirs is None:
            return None
        rises = [self.rise(one.response.report, "report", "forget") for one in (ours, theirs)]
        return grouped(rises[0] - rises[1], self.groups["report", "forget"])

    @property
    def controls(self) -> tuple[Source, ...]:
        """The controls that were tried."""
        return tuple(dict.fromkeys(r.candidate.source for r in self.responses if r.candidate.source != "SAE"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know before believing the SAE."""
        said = []
        ours = self.chosen("SAE")
        if not self.controls:
            said.append("no control was run: nothing here is known to be the SAE's doing")
        if ours is None:
            return (*said, f"no SAE edit keeps the retain loss within {self.budget:g} nats on the rows for choosing")
        if ours.retain.mean > self.budget:
            said.append(
                f"the choice breaks its budget on new entities: retain loss rises by {ours.retain.mean:.3g} nats "
                f"[{ours.retain.low:.3g}, {ours.retain.high:.3g}], {self.budget:g} were allowed"
            )
        for control in self.controls:
            gap = self.gap(control)
            if gap is not None and not gap.above_zero:
                said.append(
                    f"the SAE does not beat {control}: its forget loss rises by {gap.mean:+.3g} nats more "
                    f"[{gap.low:+.3g}, {gap.high:+.3g}]"
                )
        return tuple(said)

    def saebench(self, source: Source, half: Half = "report") -> float | None:
        """1 - the least forget accuracy of any configuration that keeps 99 % of retain answers, on one half.

        The score of SAEBench's unlearning evaluation (Karvonen et al., arXiv 2503.09532): questions are those the
        unedited model answers rightly, and the configuration is picked on the very questions it is reported on, so it
        is an optimistic number. None where rows have no wrong answers, or no question is answered rightly.
        """
        plain = self.plain[half]
        if plain.forget.choice_N is None or plain.retain.choice_N is None:
            return None
        forget_N, retain_N = plain.forget.choice_N > 0, plain.retain.choice_N > 0
        if not forget_N.any() or not retain_N.any():
            return None
        least = 1.0
        for one in self.of(source):
            sides: Sides = getattr(one, half)
            assert sides.forget.choice_N is not None
            assert sides.retain.choice_N is not None
            if sides.retain.choice_N[retain_N].mean() >= SAEBENCH_KEEPS:
                least = min(least, float(sides.forget.choice_N[forget_N].mean()))
        return 1 - least

    def rows(self) -> list[Row]:
        """All candidates on both halves, and the choices; for figures and tables."""
        found: list[Row] = []
        for half, plain in self.plain.items():
            for on in ("forget", "retain"):
                found += self._scored("no edit", half, on, getattr(plain, on), None, 0.0)
        for response in self.responses:
            c = response.candidate
            name = f"{c.source}{f' by {c.rule}' if c.rule else ''}, {c.strength.kind}"
            for half in ("select", "report"):
                for on in ("forget", "retain"):
                    score = getattr(getattr(response, half), on)
                    found += self._scored(name, half, on, score, c.n, c.strength.amount)
        return found

    def _scored(self, name: str, half: str, on: str, score: Score, n: int | None, dose: float) -> list[Row]:
        groups = self.groups[half, on]  # type: ignore[index]
        made = []
        for quantity in ("loss", *score.measures):
            value_N = loss_of(score) if quantity == "loss" else score.of(quantity)  # type: ignore[arg-type]
            at = grouped(value_N, groups)
            made.append(
                Row(
                    name,
                    "sae_response",
                    f"{half}_{quantity}",
                    at.mean,
                    on,
                    item=n,
                    dose=dose,
                    low=_finite(at.low),
                    high=_finite(at.high),
                    n=at.n,
                )
            )
        return made

    def _repr_html_(self) -> str:
        columns: dict[str, list[str]] = {"": [], "chosen": [], "forget rise": [], "retain rise": [], "optimism": []}
        for source in ("SAE", *self.controls):
            found = self.chosen(source)
            columns[""].append(source)
            columns["chosen"].append("nothing within the budget" if found is None else found.response.candidate.name)
            for key, side in (("forget rise", "forget"), ("retain rise", "retain")):
                columns[key].append("" if found is None else spelt(getattr(found, side)))
            columns["optimism"].append("" if found is None else f"{found.optimism['retain']:+.3f}")
        return table(columns, note="; ".join(self.warnings))


def dose_response(
    model: nn.Module,
    halves: Halves,
    candidates: Sequence[Candidate],
    *,
    score: Scorer,
    budget: float,
    special_ids: Sequence[int],
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
        progress: show a bar.

    Raises:
        ValueError: no candidates, or a budget below 0.
    """
    if not candidates or not budget >= 0:
        raise ValueError(f"give candidates and a budget of at least 0, got {len(candidates)} and {budget}")
    parts: dict[Half, Split] = {"select": halves.select, "report": halves.report}

    def scored(candidate: Candidate | None) -> dict[Half, Sides]:
        kept = NotIds(tuple(special_ids))
        opened = nullcontext() if candidate is None else edited(model, {candidate.site: At(candidate.edit, kept)})
        with torch.no_grad(), opened:
            return {
                half: Sides(*(score(model, rows, split.template) for rows in (split.forget_rows, split.retain_rows)))
                for half, split in parts.items()
            }

    plain = scored(None)
    responses = []
    for candidate in tqdm(candidates, desc="dose response", unit="edit", disable=not progress):
        found = scored(candidate)
        responses.append(Response(candidate, found["select"], found["report"]))
    groups = {
        (half, on): groups_of(getattr(split, f"{on}_rows"))
        for half, split in parts.items()
        for on in ("forget", "retain")
    }
    return DoseResponse(plain, tuple(responses), groups, budget)


def loss_of(score: Score) -> ArrayN:
    """Mean negative log-likelihood a token of the right answer, in nats; bounded where a probability underflows."""
    return -np.log(np.maximum(score.probability_N, np.finfo(float).tiny))


def spelt(found: Interval) -> str:
    """A mean with its interval."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None
