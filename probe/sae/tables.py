"""A dose-response study: what each source of edits chooses, as rows for figures and as text for the shell."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from probe.attacks.score import Measure, Score
from probe.display import Result, ResultTable
from probe.metrics.arrays import ArrayN
from probe.metrics.intervals import Interval, grouped, grouped_share
from probe.rows import Row
from probe.sae.candidates import Source
from probe.sae.outcome import EditOutcome
from probe.sae.responses import HALVES, SAEBENCH_KEEPS, SIDES, ChosenDose, Half, On, Response, Sides, loss_of

RESPONSE, CHOICE = "sae_response", "sae_choice"


@dataclass(frozen=True, eq=False)
class DoseResponse(Result):
    """Every candidate on both halves; made by ``dose_response``.

    Args:
        plain: the model without an edit, by half.
        responses: in the order of the candidates.
        groups: what intervals count, by half and side: the entity of each row, or the row.
        budget: largest mean rise of the retain loss that a choice may cost, in nats.
        words: what each source's choice did to the answers, on the report half; none where rows have no wrong answers.
        notes: what a reader has to know of the data.
    """

    plain: Mapping[Half, Sides] = field(repr=False)
    responses: tuple[Response, ...] = field(repr=False)
    groups: Mapping[tuple[Half, On], tuple[str, ...]] = field(repr=False)
    budget: float
    words: Mapping[Source, EditOutcome] = field(default_factory=dict, repr=False)
    notes: tuple[str, ...] = ()

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

    def chosen(self, source: Source) -> ChosenDose | None:
        """What is chosen on the select half, judged on the report half; None if nothing stays within the budget."""
        best = self.best(self.of(source), "select")
        if best is None:
            return None
        forget, retain = (grouped(self.rise(best.report, "report", on), self.groups["report", on]) for on in SIDES)
        optimism = {
            on: sign * (self.mean_rise(best, "select", on) - self.mean_rise(best, "report", on))
            for on, sign in zip(SIDES, (1, -1), strict=True)
        }
        return ChosenDose(best, forget, retain, optimism)

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
        """Forget rise of the SAE's choice less that of a control's, on the report half; None if the SAE chose nothing.

        A control of which nothing is within the budget leaves the model as it is: its rise is 0.
        """
        ours, theirs = self.chosen("SAE"), self.chosen(control)
        if ours is None:
            return None
        rise_N = self.rise(ours.response.report, "report", "forget")
        if theirs is not None:
            rise_N = rise_N - self.rise(theirs.response.report, "report", "forget")
        return grouped(rise_N, self.groups["report", "forget"])

    @property
    def controls(self) -> tuple[Source, ...]:
        """The controls that were tried."""
        return tuple(dict.fromkeys(r.candidate.source for r in self.responses if r.candidate.source != "SAE"))

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader has to know before believing the SAE."""
        said = list(self.notes)
        ours = self.chosen("SAE")
        if not self.controls:
            said.append("no control was run: nothing here is known to be the SAE's doing")
        if ours is None:
            return (*said, f"no SAE edit keeps the retain loss within {self.budget:g} nats on the rows for choosing")
        if ours.retain.mean > self.budget:
            said.append(
                f"the choice breaks its budget on new entities: retain loss rises by {_spelt(ours.retain)} nats, "
                f"{self.budget:g} were allowed"
            )
        for control in self.controls:
            gap = self.gap(control)
            if gap is not None and not gap.above_zero:
                said.append(f"the SAE does not beat {control}: its forget loss rises by {_spelt(gap)} nats more")
        return tuple(said)

    def saebench(self, source: Source, half: Half = "report") -> float | None:
        """1 - the least forget accuracy of any configuration that keeps 99 % of retain answers, on one half.

        The score of SAEBench's unlearning evaluation (Karvonen et al., arXiv 2503.09532): questions are those the
        unedited model answers rightly, and the configuration is picked on the very questions it is reported on, so it
        is an optimistic number. None where wrong answers were not asked about, or no question is answered rightly.
        """
        plain = self.plain[half]
        every = [plain, *(getattr(one, half) for one in self.of(source))]
        if any(score.choice_N is None for sides in every for score in (sides.forget, sides.retain)):
            return None
        forget_N, retain_N = plain.forget.of("choice") > 0, plain.retain.of("choice") > 0
        if not forget_N.any() or not retain_N.any():
            return None
        least = 1.0
        for sides in every[1:]:
            if sides.retain.of("choice")[retain_N].mean() >= SAEBENCH_KEEPS:
                least = min(least, float(sides.forget.of("choice")[forget_N].mean()))
        return 1 - least

    def rows(self, name: str = "SAE") -> list[Row]:
        """Every response, what each source chooses, and the fronts; ``name`` stands for the SAE's own choice."""
        rows = [*response_rows(self), *dose_choice_rows(self), *pareto_rows(self)]
        return [replace(row, intervention=name) if row.intervention == "SAE" else row for row in rows]

    def __str__(self) -> str:
        return text(self)

    def table(self) -> ResultTable:
        """What each source chooses, what that does on the report half, and how it reads."""
        names = ("", "chosen", "forget rise", "retain rise", "optimism (retain)", "SAE less this", "read as")
        columns: dict[str, list[str]] = {name: [] for name in names}
        for source in ("SAE", *self.controls):
            for name, cell in zip(names, self.line(source), strict=True):
                columns[name].append(cell)
        return ResultTable(columns, note="; ".join(self.warnings))

    def line(self, source: Source) -> tuple[str, ...]:
        """One line of the table: the source, its choice, rises on the report half, optimism, gap, word."""
        found = self.chosen(source)
        if found is None:
            return (source, "nothing within the budget", "", "", "", "", "")
        gap = None if source == "SAE" else self.gap(source)
        return (
            source,
            found.response.candidate.name.removeprefix(source).strip(" :"),
            _spelt(found.forget),
            _spelt(found.retain),
            f"{found.optimism['retain']:+.3f}",
            "" if gap is None else _spelt(gap),
            self.words[source].word if source in self.words else "",
        )


def response_rows(found: DoseResponse) -> list[Row]:
    """All candidates on both halves, and the model without an edit.

    ``intervention`` says whose features, by which rule and what was done to them; ``item`` is their number, ``dose``
    the strength, ``layer`` the site's; the quantity begins with the half.
    """
    rows = [
        row
        for half in HALVES
        for on in SIDES
        for row in _scored(found, "no edit", half, on, getattr(found.plain[half], on), dose=0.0)
    ]
    for response in found.responses:
        c = response.candidate
        name = f"{c.source}{f' by {c.rule}' if c.rule else ''}, {c.strength.kind}"
        sides = {half: getattr(response, half) for half in HALVES}
        for half in HALVES:
            for on in SIDES:
                score = getattr(sides[half], on)
                rows += _scored(found, name, half, on, score, dose=c.strength.amount, item=c.n, layer=c.site.layer)
    return rows


def dose_choice_rows(found: DoseResponse) -> list[Row]:
    """What each source chooses: rises on the report half, on the select half, optimism, gap, verdict, SAEBench's score.

    The verdict is a row whose quantity is "verdict WORD"; "chosen FEATURES BY RULE, STRENGTH" names the choice.
    """
    rows: list[Row] = []
    for source in ("SAE", *found.controls):
        chosen = found.chosen(source)
        score = found.saebench(source)
        if score is not None:
            rows.append(Row(source, CHOICE, "saebench", score, "forget"))
        if chosen is None:
            continue
        one = chosen.response.candidate
        layer = one.site.layer
        for on in SIDES:
            rows.append(_interval(source, "rise", getattr(chosen, on), on, layer))
            seen = grouped(found.rise(chosen.response.select, "select", on), found.groups["select", on])
            rows.append(_interval(source, "rise on the choosing half", seen, on, layer))
            rows.append(Row(source, CHOICE, "optimism", chosen.optimism[on], on, layer=layer))
        what = one.name.removeprefix(source).strip(" :")
        rows.append(Row(source, CHOICE, f"chosen {what}", one.strength.amount, layer=layer, item=one.n))
        gap = None if source == "SAE" else found.gap(source)
        if gap is not None:
            rows.append(_interval(source, "gap", gap, "forget", layer))
        if source in found.words:
            word = found.words[source]
            rows.append(Row(source, CHOICE, f"verdict {word.word}", 1.0, layer=layer))
            rows.append(_interval(source, f"chosen beyond {word.against}", word.beyond, "forget", layer))
            rows.append(Row(source, CHOICE, "told", word.told, "forget", layer=layer))
            rows.append(Row(source, CHOICE, "kept", word.kept, "retain", layer=layer))
    return rows


def pareto_rows(found: DoseResponse) -> list[Row]:
    """The front of each source on the select half, at both halves: ``dose`` is the retain rise, the value the other."""
    rows = []
    for source in ("SAE", *found.controls):
        for place, one in enumerate(found.pareto(source)):
            for half in HALVES:
                cost, gain = (found.mean_rise(one, half, on) for on in ("retain", "forget"))
                rows.append(Row(source, "sae_pareto", f"{half} rise", gain, "forget", item=place, dose=cost))
    return rows


def text(found: DoseResponse) -> str:
    """The choices as a table, what each did in a sentence, and the warnings."""
    head = ("", "chosen on one half", "forget rise", "retain rise", "optimism", "SAE less this", "read as")
    lines = [head, *(found.line(source) for source in ("SAE", *found.controls))]
    widths = [max(len(line[k]) for line in lines) for k in range(len(head))]
    said = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip() for line in lines]
    said.append("")
    said.append(
        "Rises of the answers' loss (nats a token) on entities that nothing was chosen on, with 95 % t-intervals over "
        "entities. Optimism: how much lower the retain rise was on the entities it was chosen on."
    )
    scores = {source: found.saebench(source) for source in ("SAE", *found.controls)}
    listed = ", ".join(f"{source} {score:.3f}" for source, score in scores.items() if score is not None)
    if listed:
        said.append(f"SAEBench's score, chosen and reported on the same rows, hence optimistic: {listed}.")
    said += [f"{source}: {word.sentence}." for source, word in found.words.items()]
    said += [f"warning: {one}" for one in found.warnings]
    return "\n".join(said) + "\n"


def _interval(source: str, quantity: str, found: Interval, on: str, layer: int) -> Row:
    low, high = _finite(found.low), _finite(found.high)
    return Row(source, CHOICE, quantity, found.mean, on, layer=layer, low=low, high=high, n=found.n)


def _scored(
    found: DoseResponse,
    name: str,
    half: Half,
    on: On,
    one: Score,
    *,
    dose: float,
    item: int | None = None,
    layer: int | None = None,
) -> list[Row]:
    made = []
    quantities: Sequence[Measure | str] = ("loss", *one.measures)
    for quantity in quantities:
        groups = found.groups[half, on]
        # All measures but the loss lie between 0 and 1.
        at = grouped(loss_of(one), groups) if quantity == "loss" else grouped_share(one.of(quantity), groups)  # type: ignore[arg-type]
        low, high = _finite(at.low), _finite(at.high)
        made.append(
            Row(name, RESPONSE, f"{half} {quantity}", at.mean, on, layer, item, dose, low=low, high=high, n=at.n)
        )
    return made


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def _spelt(found: Interval) -> str:
    """A mean with its interval."""
    return f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]"
