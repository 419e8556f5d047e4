"""Model mixing: move the weights back towards the original and watch the facts return."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from torch import nn
from tqdm.auto import tqdm

from probe.attacks.facts import Facts
from probe.attacks.recovery import Outcome, Recovery
from probe.attacks.score import Measure, Score
from probe.display import table
from probe.metrics.arrays import ArrayN
from probe.sites import n_layers
from probe.weights import blended


@dataclass(frozen=True, eq=False)
class Mixing:
    """Scores of the held-out rows along straight lines in weight space.

    Args:
        alphas: weight of the original, rising; 0 is the attacked model itself.
        scores: one an alpha, on the line from the model to the original.
        reference_scores: the same on the line from the reference to the original.
        groups: the group of each held-out row.
    """

    alphas: tuple[float, ...]
    scores: tuple[Score, ...] = field(repr=False)
    reference_scores: tuple[Score, ...] | None = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)

    def curve(self, measure: Measure = "probability") -> ArrayN:
        """Mean over rows at each alpha."""
        return np.array([score.of(measure).mean() for score in self.scores])

    def reference_curve(self, measure: Measure = "probability") -> ArrayN:
        """The same from the reference.

        Raises:
            ValueError: there is none.
        """
        if self.reference_scores is None:
            raise ValueError("mixing was run without a reference; pass a model that never knew the facts")
        return np.array([score.of(measure).mean() for score in self.reference_scores])

    def recovery(self, alpha: float) -> Recovery:
        """The unmixed model against the mixture at ``alpha``, in the shape that all attacks share.

        Raises:
            ValueError: an alpha that was not measured.
        """
        if alpha not in self.alphas:
            raise ValueError(f"alpha {alpha} was not measured; choose one of {self.alphas}")
        k, zero = self.alphas.index(alpha), self.alphas.index(0.0)
        theirs = self.reference_scores
        return Recovery(
            "mixing",
            {"alpha": alpha},
            Outcome(self.scores[zero], self.scores[k]),
            None if theirs is None else Outcome(theirs[zero], theirs[k]),
            self.groups,
        )

    def _repr_html_(self) -> str:
        columns = {"model": self.curve()}
        if self.reference_scores is not None:
            columns["never knew"] = self.reference_curve()
        return table({"weight of the original": self.alphas, **columns}, note="probability of held-out answers")


def mix_back(
    model: nn.Module,
    facts: Facts,
    original: nn.Module,
    alphas: Sequence[float],
    *,
    reference: nn.Module | None = None,
    progress: bool = False,
) -> Mixing:
    """Score theta = (1 - a) theta_model + a theta_original for each a, over all weights.

    At a = 1 every model is the original, so what tells models apart is how early the facts return: before the line
    from the reference, the model lies in a basin that still holds them.

    Args:
        model: mixed in place and restored, the very same tensors.
        facts: the held-out rows are scored; nothing is fitted.
        original: the model before unlearning; never changed.
        alphas: weights of the original in [0, 1]; 0 is added.
        reference: a model that never knew the facts.
        progress: show bars.

    Raises:
        ValueError: an alpha outside [0, 1], or models that do not fit together.
    """
    grid = tuple(sorted({0.0, *(float(a) for a in alphas)}))

    def line(one: nn.Module, name: str) -> tuple[Score, ...]:
        scores = []
        for a in tqdm(grid, desc=name, disable=not progress, leave=False):
            with blended(one, original, [a] * n_layers(one), a):
                scores.append(facts.score(one, facts.held, facts.template))
        return tuple(scores)

    theirs = None if reference is None else line(reference, "mixing (reference)")
    return Mixing(grid, line(model, "mixing"), theirs, facts.held_groups)
