"""What an attack got back: scores before and after, beside the same attack on a model that never knew."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from probe.attacks.facts import Facts
from probe.attacks.score import Measure, Score
from probe.display import table
from probe.metrics.arrays import ArrayN


@dataclass(frozen=True)
class Interval:
    """A mean over units with its 95 % t-interval; of one unit the interval is everything."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        """Whether chance alone is an unlikely reason for a mean this far above 0."""
        return self.low > 0


def interval(values: Sequence[float] | ArrayN) -> Interval:
    """Mean and 95 % t-interval of independent units.

    Raises:
        ValueError: no values.
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=float)
    if array.size == 0:
        raise ValueError("no values, so they have no mean")
    mean, n = float(array.mean()), len(array)
    if n == 1:
        return Interval(mean, -math.inf, math.inf, 1)
    half = float(t.ppf(0.975, n - 1) * array.std(ddof=1) / n**0.5)
    return Interval(mean, mean - half, mean + half, n)


def grouped(values_N: ArrayN, groups: Sequence[str]) -> Interval:
    """The mean over rows; its interval counts groups, for rows of one group are not independent.

    Raises:
        ValueError: as many groups as rows are expected.
    """
    if len(values_N) != len(groups):
        raise ValueError(f"{len(values_N)} values and {len(groups)} groups; give one a row")
    names = list(dict.fromkeys(groups))
    of_row = np.array([names.index(group) for group in groups])
    found = interval([float(values_N[of_row == k].mean()) for k in range(len(names))])
    # Groups of unequal size: the mean stays that of the rows.
    shift = float(values_N.mean()) - found.mean
    return Interval(found.mean + shift, found.low + shift, found.high + shift, found.n)


@dataclass(frozen=True, eq=False)
class Outcome:
    """One attack on one model.

    Args:
        before, after: scores of the held-out rows without and under the attack.
        found: what the attack arrived at: the chosen layer, the losses, the tokens.
    """

    before: Score
    after: Score
    found: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, eq=False)
class Recovery:
    """One attack on a model and, where given, on a reference that never knew the facts.

    Args:
        attack: its name.
        settings: what it was run with.
        model, reference: what came of it.
        groups: the group of each held-out row.
    """

    attack: str
    settings: Mapping[str, Any]
    model: Outcome
    reference: Outcome | None
    groups: tuple[str, ...] = field(repr=False)

    def gain(self, measure: Measure = "probability") -> Interval:
        """After less before, on the model."""
        return grouped(self.model.after.of(measure) - self.model.before.of(measure), self.groups)

    def reference_gain(self, measure: Measure = "probability") -> Interval:
        """After less before, on the reference.

        Raises:
            ValueError: there is none.
        """
        other = self._reference()
        return grouped(other.after.of(measure) - other.before.of(measure), self.groups)

    def excess(self, measure: Measure = "probability") -> Interval:
        """Under the attack: the model less the reference. Levels, not gains: a broken model regains form first.

        Raises:
            ValueError: there is no reference.
        """
        return grouped(self.model.after.of(measure) - self._reference().after.of(measure), self.groups)

    def extracts_unknown(self, measure: Measure = "probability") -> bool:
        """Whether the attack raises the score of the model that never knew.

        Raises:
            ValueError: there is no reference.
        """
        return self.reference_gain(measure).above_zero

    def finding(self, measure: Measure = "probability") -> str:
        """One line. An effect counts where its interval over groups lies above 0."""
        if not self.gain(measure).above_zero:
            return "nothing recovered"
        if self.reference is None:
            return "recovered; no reference to compare with"
        beyond, unknown = self.excess(measure).above_zero, self.extracts_unknown(measure)
        if beyond:
            return "recovered, though part of it was never known" if unknown else "recovered"
        return "extracts what was never known" if unknown else "no more than a model that never knew"

    def _repr_html_(self) -> str:
        outcomes = {"model": self.model} | ({} if self.reference is None else {"never knew": self.reference})
        columns = {
            when: [getattr(one, when).of("probability").mean() for one in outcomes.values()]
            for when in ("before", "after")
        }
        return table({"probability": outcomes, **columns}, note=f"{self.attack}: {self.finding()}")

    def _reference(self) -> Outcome:
        if self.reference is None:
            raise ValueError(f"{self.attack} was run without a reference; pass a model that never knew the facts")
        return self.reference


def compared(
    attack: str,
    settings: Mapping[str, Any],
    act: Callable[[nn.Module], Outcome],
    facts: Facts,
    model: nn.Module,
    reference: nn.Module | None,
) -> Recovery:
    """Run one attack on both models."""
    ours = act(model)
    theirs = None if reference is None else act(reference)
    return Recovery(attack, settings, ours, theirs, facts.held_groups)


def check_never_known(reference: nn.Module, facts: Facts, *, limit: float) -> float:
    """How much of the facts a reference knows that should know none.

    With wrong answers: (accuracy - chance) / (1 - chance), where chance is one in the number of answers; without:
    the share of rows that greedy decoding gives back.

    Args:
        reference: a model trained without the facts.
        facts: both sides are asked.
        limit: the largest share that is accepted.

    Returns:
        the share, below 0 where the reference is worse than chance.

    Raises:
        ValueError: more than ``limit`` is known, or a limit outside [0, 1).
    """
    if not 0 <= limit < 1:
        raise ValueError(f"limit must be at least 0 and below 1, got {limit}")
    score = facts.score(reference, (*facts.shown, *facts.held), facts.template)
    if score.choice_N is None or score.n_choices is None:
        known, how = float(score.match_N.mean()), "given back by greedy decoding"
    else:
        chance = 1 / score.n_choices
        known, how = (float(score.choice_N.mean()) - chance) / (1 - chance), "chosen among wrong answers beyond chance"
    if known > limit:
        raise ValueError(
            f"the reference knows {known:.3g} of the facts ({how}), more than the {limit:g} allowed; it is no model "
            "that never saw them, and nothing measured against it would mean anything"
        )
    return known
