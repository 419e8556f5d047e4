"""What an attack got back: scores before and after, beside the same attack on a model that never knew."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probe.attacks.facts import Facts
from probe.attacks.score import Measure, Score
from probe.display import Result, ResultTable
from probe.metrics.arrays import ArrayN
from probe.metrics.intervals import Interval, grouped, grouped_share, wilson
from probe.rows import Row

NOTHING = 0.1
"""Less than this of the answers' probability, or of the rows, is called nothing."""


@dataclass(frozen=True, eq=False)
class AttackOutcome:
    """One attack on one model.

    Args:
        before, after: scores of the held-out rows without and under the attack.
        found: what the attack arrived at: the chosen layer, the losses, the tokens.
    """

    before: Score
    after: Score
    found: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Recovery(Result):
    """One attack on a model and, where given, on a retrained model that never knew the facts.

    Args:
        attack: its name.
        settings: what it was run with.
        model, retrained: what came of it.
        groups: the group of each held-out row.
    """

    attack: str
    settings: Mapping[str, Any]
    model: AttackOutcome
    retrained: AttackOutcome | None
    groups: tuple[str, ...] = field(repr=False)

    def gain(self, measure: Measure = "probability") -> Interval:
        """After less before, on the model."""
        return self._mean(self.model.after.of(measure) - self.model.before.of(measure), measure)

    def retrained_gain(self, measure: Measure = "probability") -> Interval:
        """After less before, on the retrained model.

        Raises:
            ValueError: there is none.
        """
        other = self._retrained()
        return self._mean(other.after.of(measure) - other.before.of(measure), measure)

    def excess(self, measure: Measure = "probability") -> Interval:
        """Under the attack: the model less the retrained one. Levels, not gains: a broken model regains form first.

        Raises:
            ValueError: there is no retrained model.
        """
        return self._mean(self.model.after.of(measure) - self._retrained().after.of(measure), measure)

    def extracts_unknown(self, measure: Measure = "probability") -> bool:
        """Whether the attack raises the score of the model that never knew.

        Raises:
            ValueError: there is no retrained model.
        """
        return self.retrained_gain(measure).above_zero

    def recovered(self, measure: Measure = "probability") -> bool | None:
        """Whether knowledge came back: more than before and, where there is a retrained model, more than that has.

        None where these rows cannot tell. An effect is there where its interval over groups lies above 0, and absent
        where all of the interval lies below ``NOTHING``; an interval with both in it allows either.
        """
        found = [self.gain(measure)] if self.retrained is None else [self.gain(measure), self.excess(measure)]
        if any(one.high < NOTHING and not one.above_zero for one in found):
            return False
        return True if all(one.above_zero for one in found) else None

    def finding(self, measure: Measure = "probability") -> str:
        """One line, by the rule of ``recovered``; what cannot be told comes with its interval."""
        gain, recovered = self.gain(measure), self.recovered(measure)
        if recovered is False and not gain.above_zero:
            return "nothing recovered" if gain.high < NOTHING else "no more than a model that never knew"
        if recovered is None and not gain.above_zero:
            return f"cannot tell whether anything is recovered: {_spelt(gain)}"
        if self.retrained is None:
            return "recovered; no retrained model to compare with"
        unknown = self.extracts_unknown(measure)
        if recovered:
            return "recovered, though part of it was never known" if unknown else "recovered"
        if unknown:
            return "extracts what was never known"
        if recovered is None:
            return f"cannot tell whether more than a model that never knew: {_spelt(self.excess(measure))}"
        return "no more than a model that never knew"

    def rows(self, name: str = "model") -> list[Row]:
        """Scores of the held-out rows before and after, what was gained, and the excess over the retrained model.

        ``diagnostic`` is the attack's name; the retrained model's rows are those of the intervention "retrained".
        """
        rows = []
        for measure in self.model.after.measures:
            outcomes = {name: self.model} | ({} if self.retrained is None else {"retrained": self.retrained})
            for who, one in outcomes.items():
                for when, score in (("before", one.before), ("after", one.after)):
                    found = grouped_share(score.of(measure), self.groups)
                    rows.append(self._row(who, f"{measure} {when}", found))
            rows.append(self._row(name, f"{measure} gain", self.gain(measure)))
            if self.retrained is not None:
                rows.append(self._row("retrained", f"{measure} gain", self.retrained_gain(measure)))
                rows.append(self._row(name, f"{measure} excess", self.excess(measure)))
        return rows

    def _row(self, who: str, quantity: str, found: Interval) -> Row:
        return Row(who, self.attack, quantity, found.mean, "held", low=found.low, high=found.high, n=found.n)

    def __str__(self) -> str:
        return f"{self.attack}: {self.finding()}\n{ResultTable(self.table().columns)}"

    def table(self) -> ResultTable:
        outcomes = {"model": self.model} | ({} if self.retrained is None else {"never knew": self.retrained})
        columns = {
            when: [getattr(one, when).of("probability").mean() for one in outcomes.values()]
            for when in ("before", "after")
        }
        return ResultTable({"probability": outcomes, **columns}, note=f"{self.attack}: {self.finding()}")

    def _mean(self, difference_N: ArrayN, measure: Measure) -> Interval:
        found = grouped(difference_N, self.groups, within=(-1.0, 1.0))
        if measure == "probability" or found.low < found.high:
            return found
        # Answers given or not, alike in all groups: as many groups could still hold one that differs.
        beyond = wilson(0, found.n)[1]
        return Interval(found.mean, max(found.low - beyond, -1.0), min(found.high + beyond, 1.0), found.n)

    def _retrained(self) -> AttackOutcome:
        if self.retrained is None:
            raise ValueError(
                f"{self.attack} was run without a retrained model; pass retrained=, one that never knew the facts"
            )
        return self.retrained


def _spelt(found: Interval) -> str:
    n = "one group" if found.n == 1 else f"{found.n} groups"
    return f"{found.mean:+.2f} [{found.low:+.2f}, {found.high:+.2f}] over {n}"


def compared(
    attack: str,
    settings: Mapping[str, Any],
    act: Callable[[nn.Module], AttackOutcome],
    facts: Facts,
    model: nn.Module,
    retrained: nn.Module | None,
) -> Recovery:
    """Run one attack on both models."""
    ours = act(model)
    theirs = None if retrained is None else act(retrained)
    return Recovery(attack, settings, ours, theirs, facts.held_groups)


def check_never_known(retrained: nn.Module, facts: Facts, *, limit: float) -> float:
    """How much of the facts a retrained model knows that should know none.

    With wrong answers: (accuracy - chance) / (1 - chance), where chance is one in the number of answers; without:
    the share of rows that greedy decoding gives back.

    Args:
        retrained: a model trained without the facts.
        facts: both sides are asked.
        limit: the largest share that is accepted.

    Returns:
        the share, below 0 where the retrained model is worse than chance.

    Raises:
        ValueError: more than ``limit`` is known, or a limit outside [0, 1).

    >>> facts = probe.attacks.facts_of(s)
    >>> probe.attacks.check_never_known(s.retrained, facts, limit=0.5) < 0.5
    True
    """
    if not 0 <= limit < 1:
        raise ValueError(f"limit must be at least 0 and below 1, got {limit}")
    score = facts.score(retrained, (*facts.shown, *facts.held), facts.template)
    if score.choice_N is None or score.n_choices is None:
        known, how = float(score.match_N.mean()), "given back by greedy decoding"
    else:
        chance = 1 / score.n_choices
        known, how = (float(score.choice_N.mean()) - chance) / (1 - chance), "chosen among wrong answers beyond chance"
    if known > limit:
        raise ValueError(
            f"the retrained model knows {known:.3g} of the facts ({how}), more than the {limit:g} allowed; it is no "
            "model that never saw them, and nothing measured against it would mean anything"
        )
    return known
