"""What removing a feature really does: exact ablation one by one, and greedy selection under a budget for the rest."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.data import Batch
from probe.features.rules import Role
from probe.features.trials import Trials, trials
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Zero
from probe.objectives.objective import Objective
from probe.positions import Intervention
from probe.sites import Site

PerFeatureF = Float[Tensor, " F"]
EditOf = Callable[[tuple[int, ...]], Intervention]
"""From feature ids to the edit that is tried."""


@dataclass(frozen=True, eq=False)
class Ablation:
    """What each candidate's edit changes, on both corpora.

    Args:
        features: the candidates.
        n_features: of the dictionary.
        forget_KP, retain_KQ: objective with the edit less without, for each piece of rows.
        share_P, share_Q: each piece's share of the targets.
        fires_K: which candidates are on at any forget token.
        plain: the objective without an edit, (forget, retain).
        why: why forwards were not resumed at the site; empty where they were.
        weight_P, weight_Q: how often each piece counts.
    """

    features: tuple[int, ...] = field(repr=False)
    n_features: int
    forget_KP: Float[Tensor, "K P"] = field(repr=False)
    retain_KQ: Float[Tensor, "K Q"] = field(repr=False)
    share_P: Float[Tensor, " P"] = field(repr=False)
    share_Q: Float[Tensor, " Q"] = field(repr=False)
    fires_K: Bool[Tensor, " K"] = field(repr=False)
    plain: tuple[float, float]
    why: str
    weight_P: Float[Tensor, " P"] = field(repr=False)
    weight_Q: Float[Tensor, " Q"] = field(repr=False)

    @property
    def forget_K(self) -> Float[Tensor, " K"]:
        """What each candidate changes on forget rows."""
        weight_P = self.share_P * self.weight_P
        return self.forget_KP @ weight_P / weight_P.sum()

    @property
    def retain_K(self) -> Float[Tensor, " K"]:
        """What each candidate changes on retain rows."""
        weight_Q = self.share_Q * self.weight_Q
        return self.retain_KQ @ weight_Q / weight_Q.sum()

    @property
    def fires_F(self) -> Bool[Tensor, " F"]:
        """Which features, of the candidates, are on at any forget token."""
        fires_F = torch.zeros(self.n_features, dtype=torch.bool)
        fires_F[list(self.features)] = self.fires_K
        return fires_F

    @property
    def shown(self) -> str:
        """What was looked at, for messages."""
        return f"the forget tokens of {len(self.share_P)} pieces of rows ({len(self.features)} candidates tried)"

    @property
    def blocks(self) -> tuple[int, int]:
        """How many pieces each side has."""
        return len(self.share_P), len(self.share_Q)

    def weighted(self, forget_G: Tensor, retain_G: Tensor) -> "Ablation":
        """This ablation with every piece counted as often as its weight says."""
        return replace(self, weight_P=forget_G.double(), weight_Q=retain_G.double())


@dataclass(frozen=True)
class ByAblation:
    """Score = what the edit of one feature changes on forget rows, less what it changes on retain rows.

    For candidates that change forget rows upwards and have a score above 0; all others are left out.

    Args:
        against: "retain" subtracts, "nothing" leaves forget alone.
    """

    against: Literal["retain", "nothing"] = "retain"
    role: ClassVar[Role] = "edit"

    def __call__(self, found: Ablation) -> PerFeatureF:
        forget_K = found.forget_K
        score_K = forget_K - found.retain_K if self.against == "retain" else forget_K
        score_F = torch.full((found.n_features,), -torch.inf, dtype=score_K.dtype)
        score_F[list(found.features)] = torch.where((forget_K > 0) & (score_K > 0), score_K, -torch.inf)
        return score_F


def exact_ablation(
    model: nn.Module,
    sae: Any,
    site: Site,
    forget: Batch,
    retain: Batch,
    features: Sequence[int],
    *,
    objective: Objective,
    special_ids: Sequence[int],
    edit_of: EditOf | None = None,
    batch_size: int = 8,
    progress: bool = False,
) -> Ablation:
    """Edit one feature at a time and measure the objective: the stage after attribution, for its best 100 to 200.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        sae: the dictionary at ``site``.
        site: where the edit acts.
        forget, retain: rows to choose on; report on others.
        features: candidates.
        objective: what the edit is to raise on forget rows, ``nll``, say.
        special_ids: token ids that are not edited.
        edit_of: the edit of some features; None sets them to zero where they are on.
        batch_size: rows per piece; pieces are what a bootstrap of the table draws.
        progress: show a bar.

    Raises:
        ValueError: as ``trials``.

    >>> sides = (s.split.forget, s.split.retain)
    >>> found = probe.exact_ablation(
    ...     s.original, s.sae, s.sae_site, *sides, (3, 5), objective=probe.nll, special_ids=s.special_ids
    ... )
    >>> found.features
    (3, 5)
    """
    made = edit_of or (lambda ids: Suppress(sae, ids, Zero()))
    sides = [
        trials(model, sae, site, batch, features, objective=objective, special_ids=special_ids, batch_size=batch_size)
        for batch in (forget, retain)
    ]
    changes: list[list[Tensor]] = [[], []]
    for j in tqdm(sides[0].features, desc="ablation", unit="feature", disable=not progress, leave=False):
        edit = made((j,))
        for side, change in zip(sides, changes, strict=True):
            change.append(side.value_P(edit) - side.plain_P)
    return _ablation(sides[0], sides[1], changes)


def _ablation(forget: Trials, retain: Trials, changes: list[list[Tensor]]) -> Ablation:
    stacked = [
        torch.stack(change) if change else torch.zeros(0, len(side.pieces), dtype=torch.float64)
        for side, change in zip((forget, retain), changes, strict=True)
    ]
    ones = [torch.ones_like(side.share_P) for side in (forget, retain)]
    return Ablation(
        forget.features,
        forget.n_features,
        stacked[0],
        stacked[1],
        forget.share_P,
        retain.share_P,
        forget.fires_K,
        (forget.plain, retain.plain),
        forget.why or retain.why,
        *ones,
    )


@dataclass(frozen=True)
class Selection:
    """Features chosen one after another.

    Args:
        features: in the order of choice.
        forget, retain: the objective with the first 1, 2, ... of them edited.
        plain: the objective without an edit, (forget, retain).
        budget: how far the objective on retain rows was allowed to rise.
        over_budget: candidates that would have gone beyond it when they were next.
        reason: why it ended.
    """

    features: tuple[int, ...]
    forget: tuple[float, ...]
    retain: tuple[float, ...]
    plain: tuple[float, float]
    budget: float
    over_budget: tuple[int, ...]
    reason: Literal["size reached", "nothing gains", "nothing fits the budget"]


def greedy_selection(
    forget: Trials,
    retain: Trials,
    *,
    edit_of: EditOf,
    size: int,
    budget: float,
    progress: bool = False,
) -> Selection:
    """Add the candidate that raises the objective on forget rows most, as long as that on retain rows stays in budget.

    A candidate that goes beyond the budget when its turn comes is not looked at again. ``size`` steps over K candidates
    take up to size * K forwards of the forget rows and a few of the retain rows.

    Args:
        forget, retain: made by ``trials`` with the same candidates.
        edit_of: the edit of some features: ``lambda ids: Suppress(sae, ids, Multiply(-2.0))``, say.
        size: at most so many features.
        budget: largest rise of the objective on retain rows, in its units.
        progress: show a bar.

    Raises:
        ValueError: a negative budget, a size below 1, or different candidates.

    >>> from probe.features import trials
    >>> forget, retain = (
    ...     trials(s.original, s.sae, s.sae_site, side, (3, 5), objective=probe.nll, special_ids=s.special_ids)
    ...     for side in (s.split.forget, s.split.retain)
    ... )
    >>> chosen = probe.greedy_selection(
    ...     forget, retain, edit_of=lambda ids: probe.Suppress(s.sae, ids, probe.Zero()), size=1, budget=1.0
    ... )
    """
    if size < 1 or not budget >= 0:
        raise ValueError(f"size must be 1 or more and budget 0 or more, got {size} and {budget}")
    if forget.features != retain.features:
        raise ValueError("the two sides were prepared for different candidates; pass the same features to both")
    chosen: tuple[int, ...] = ()
    left, over = list(forget.features), []
    values: list[tuple[float, float]] = []
    now = forget.plain
    reason: Literal["size reached", "nothing gains", "nothing fits the budget"] = "size reached"
    for _ in tqdm(range(size), desc="greedy", unit="feature", disable=not progress, leave=False):
        gains = sorted(((forget.value(edit_of((*chosen, j))), j) for j in left), key=lambda pair: (-pair[0], pair[1]))
        better = [(value, j) for value, j in gains if value > now]
        best = None
        for value, j in better:
            cost = retain.value(edit_of((*chosen, j)))
            if cost - retain.plain <= budget:
                best = (value, cost, j)
                break
            over.append(j)
            left.remove(j)
        if best is None:
            reason = "nothing fits the budget" if better else "nothing gains"
            break
        now, cost, added = best
        chosen = (*chosen, added)
        left.remove(added)
        values.append((now, cost))
    return Selection(
        chosen,
        tuple(value for value, _ in values),
        tuple(cost for _, cost in values),
        (forget.plain, retain.plain),
        budget,
        tuple(over),
        reason,
    )
