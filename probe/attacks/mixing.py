"""Model mixing: move the weights back towards the original and watch the facts return."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from probe.attacks.facts import Facts, Studied, original_of, prepared
from probe.attacks.recovery import AttackOutcome, Recovery
from probe.attacks.score import Measure, Score
from probe.display import Result, ResultTable
from probe.metrics.arrays import ArrayN
from probe.metrics.intervals import grouped_share
from probe.rows import Row
from probe.sites import n_layers
from probe.weights import blended


@dataclass(frozen=True, eq=False)
class Mixing(Result):
    """Scores of the held-out rows along straight lines in weight space.

    Args:
        alphas: weight of the original, rising; 0 is the attacked model itself.
        scores: one an alpha, on the line from the model to the original.
        retrained_scores: the same on the line from the retrained model to the original.
        groups: the group of each held-out row.
    """

    alphas: tuple[float, ...]
    scores: tuple[Score, ...] = field(repr=False)
    retrained_scores: tuple[Score, ...] | None = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)

    def curve(self, measure: Measure = "probability") -> ArrayN:
        """Mean over rows at each alpha."""
        return np.array([score.of(measure).mean() for score in self.scores])

    def retrained_curve(self, measure: Measure = "probability") -> ArrayN:
        """The same from the retrained model.

        Raises:
            ValueError: there is none.
        """
        if self.retrained_scores is None:
            raise ValueError("mixing was run without a retrained model; pass retrained=, one that never knew the facts")
        return np.array([score.of(measure).mean() for score in self.retrained_scores])

    def recovery(self, alpha: float) -> Recovery:
        """The unmixed model against the mixture at ``alpha``, in the shape that all attacks share.

        Raises:
            ValueError: an alpha that was not measured.
        """
        if alpha not in self.alphas:
            raise ValueError(f"alpha {alpha} was not measured; choose one of {self.alphas}")
        k, zero = self.alphas.index(alpha), self.alphas.index(0.0)
        theirs = self.retrained_scores
        return Recovery(
            "mixing",
            {"alpha": alpha},
            AttackOutcome(self.scores[zero], self.scores[k]),
            None if theirs is None else AttackOutcome(theirs[zero], theirs[k]),
            self.groups,
        )

    def rows(self, name: str = "model", measure: Measure = "probability") -> list[Row]:
        """Mean score of the held-out rows at each weight of the original (``dose``), with its interval over groups."""
        lines = {name: self.scores} | ({} if self.retrained_scores is None else {"retrained": self.retrained_scores})
        rows = []
        for who, scores in lines.items():
            for alpha, score in zip(self.alphas, scores, strict=True):
                found = grouped_share(score.of(measure), self.groups)
                at = (who, "mixing", measure, found.mean, "held")
                rows.append(Row(*at, dose=alpha, low=found.low, high=found.high, n=found.n))
        return rows

    def table(self) -> ResultTable:
        columns = {"model": self.curve()}
        if self.retrained_scores is not None:
            columns["never knew"] = self.retrained_curve()
        return ResultTable({"weight of the original": self.alphas, **columns}, note="probability of held-out answers")


def mix_back(
    model: nn.Module,
    study: Facts | Studied,
    *,
    alphas: Sequence[float] = (0.1, 0.2, 0.3, 0.5),
    original: nn.Module | None = None,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> Mixing:
    """Score theta = (1 - a) theta_model + a theta_original for each a, over all weights.

    At a = 1 every model is the original, so what tells models apart is how early the facts return: before the line
    from the retrained model, the model lies in a basin that still holds them.

    Args:
        model: mixed in place and restored, the very same tensors.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; the held-out rows are scored, nothing is fitted.
        alphas: weights of the original in [0, 1]; 0 is added.
        original: the model before unlearning, never changed; the study's unless given.
        retrained: a model that never knew the facts.
        progress: show bars.

    Raises:
        ValueError: no original, an alpha outside [0, 1], or models that do not fit together.

    >>> line = probe.mix_back(s.retrained, s, alphas=[0.5, 1.0])
    >>> line.alphas, bool(line.curve()[-1] > line.curve()[0])
    ((0.0, 0.5, 1.0), True)
    """
    facts, never = prepared(study, retrained)
    target = original_of(study, original)
    grid = tuple(sorted({0.0, *(float(a) for a in alphas)}))

    def line(one: nn.Module, name: str) -> tuple[Score, ...]:
        scores = []
        for a in tqdm(grid, desc=name, disable=not progress, leave=False):
            with blended(one, target, [a] * n_layers(one), a):
                scores.append(facts.score(one, facts.held, facts.template))
        return tuple(scores)

    theirs = None if never is None else line(never, "mixing (retrained)")
    return Mixing(grid, line(model, "mixing"), theirs, facts.held_groups)
