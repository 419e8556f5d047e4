"""From a rule and what was measured to one table: features in order, how many there are, how stable the first are."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.data import Batch
from probe.features.activity import observe
from probe.features.rules import Role, Rule
from probe.sites import Site

PerFeatureF = Float[Tensor, " F"]
# How many features of nearly one rate a control is drawn from.
_NEAREST = 4


@runtime_checkable
class Evidence(Protocol):
    """What rules read, in blocks of groups that can be resampled: ``Activity``, ``Attribution`` or ``Ablation``."""

    @property
    def fires_F(self) -> Bool[Tensor, " F"]:
        """Which features are on at any forget token."""
        ...

    @property
    def shown(self) -> str:
        """What was looked at, for messages."""
        ...

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks each side has."""
        ...

    def weighted(self, forget_G: Tensor, retain_G: Tensor) -> Any:
        """This evidence with blocks weighted, as a bootstrap draws them."""
        ...


@dataclass(frozen=True)
class Stability:
    """How much of the first n features stays when groups of rows are drawn anew.

    Args:
        n: features compared; fewer than asked for where the rule admits fewer.
        overlap: mean over resamples of the share of the n that are among the resample's first n.
        low, high: percentiles of that share.
        level: confidence of the interval.
        resamples: how many.
        blocks: blocks of groups drawn from, (forget, retain).
    """

    n: int
    overlap: float
    low: float
    high: float
    level: float
    resamples: int
    blocks: tuple[int, int]


@dataclass(frozen=True, eq=False)
class FeatureTable:
    """Features that a rule admits, best first; the same for every rule.

    Args:
        rule: the rule, as it would be written.
        role: "detect" (a gate's features) or "edit" (features that the answers are made of).
        site: where the dictionary belongs.
        order: feature ids, best first; features left out by the rule are not in it.
        score_F: the rule's score of every feature, minus infinity where left out.
        fires_F: which features are on at any forget token.
        rate_F: at which share of forget tokens each is on, where the evidence counts them.
        stability: one entry per number of features asked about.
    """

    rule: str
    role: Role
    site: Site
    order: tuple[int, ...] = field(repr=False)
    score_F: PerFeatureF = field(repr=False)
    fires_F: Bool[Tensor, " F"] = field(repr=False)
    stability: tuple[Stability, ...] = ()
    rate_F: PerFeatureF | None = field(default=None, repr=False)

    @property
    def available(self) -> int:
        """How many features the rule admits."""
        return len(self.order)

    def top(self, n: int) -> tuple[int, ...]:
        """The n best features.

        Raises:
            ValueError: the rule admits fewer.
        """
        if not 0 <= n <= len(self.order):
            raise ValueError(f"asked for {n} features; the rule admits {len(self.order)}; loosen it or ask for fewer")
        return self.order[:n]


def rank(
    rule: Rule,
    evidence: Evidence,
    site: Site,
    *,
    candidates: Sequence[int] | None = None,
    stable_at: Sequence[int] = (),
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> FeatureTable:
    """Score every feature by the rule and put them in order.

    Args:
        rule: one of ``rules``, ``attribution`` or ``ablation``, or any function of the evidence with a ``role``.
        evidence: what it reads.
        site: where the dictionary belongs.
        candidates: features that may be chosen; None: all.
        stable_at: numbers of features whose stability is measured: blocks of groups of both sides are drawn with
            replacement, and the rule is applied anew.
        resamples, seed, level: of that bootstrap.

    Raises:
        ValueError: no candidate is on at any forget token, or a side with one block, which cannot be resampled.

    >>> from probe.features import MeanDifference
    >>> seen = probe.observe(s.original, {s.sae_site: s.sae}, s.split.forget, s.split.retain, special_ids=s.special_ids)
    >>> table = probe.rank(MeanDifference(), seen[s.sae_site], s.sae_site)
    >>> len(table.top(5))
    5
    """
    fires_F = evidence.fires_F
    allowed_F = torch.ones_like(fires_F)
    if candidates is not None:
        allowed_F = torch.zeros_like(fires_F)
        allowed_F[list(candidates)] = True
    if not bool((fires_F & allowed_F).any()):
        what = "features" if candidates is None else "candidate features"
        raise ValueError(
            f"none of the {int(allowed_F.sum())} {what} is on at any of {evidence.shown} at {site}, so nothing could "
            "be suppressed; check that the SAE belongs to the model and the site, or choose other rows or candidates"
        )
    score_F = torch.where(allowed_F, rule(evidence), -torch.inf)
    order = _order(score_F)
    found = tuple(
        _stability(rule, evidence, order, allowed_F, n, resamples=resamples, seed=seed, level=level) for n in stable_at
    )
    return FeatureTable(repr(rule), rule.role, site, order, score_F, fires_F, found, getattr(evidence, "rate_F", None))


def _order(score_F: PerFeatureF) -> tuple[int, ...]:
    order = torch.sort(score_F, descending=True, stable=True).indices
    return tuple(order[score_F[order] > -torch.inf].tolist())


def _stability(
    rule: Rule,
    evidence: Evidence,
    order: tuple[int, ...],
    allowed_F: Tensor,
    n: int,
    *,
    resamples: int,
    seed: int,
    level: float,
) -> Stability:
    if n < 1 or resamples < 1 or not 0 < level < 1:
        raise ValueError(
            f"stability needs n and resamples above 0 and a level in (0, 1), got {n}, {resamples}, {level}"
        )
    if min(evidence.blocks) < 2:
        raise ValueError(
            f"stability draws groups of rows anew, and one side has a single group ({evidence.blocks[0]} forget, "
            f"{evidence.blocks[1]} retain); use rows of several groups, or leave stable_at out"
        )
    n = min(n, len(order))
    if n == 0:
        return Stability(0, 1.0, 1.0, 1.0, level, resamples, evidence.blocks)
    generator = torch.Generator().manual_seed(seed)
    chosen = set(order[:n])
    shares = []
    for _ in range(resamples):
        weights = [
            torch.bincount(torch.randint(k, (k,), generator=generator), minlength=k).double() for k in evidence.blocks
        ]
        again_F = torch.where(allowed_F, rule(evidence.weighted(*weights)), -torch.inf)
        shares.append(len(chosen & set(_order(again_F)[:n])) / n)
    share_S = torch.tensor(shares, dtype=torch.float64)
    tail = (1 - level) / 2
    low, high = torch.quantile(share_S, torch.tensor([tail, 1 - tail], dtype=torch.float64)).tolist()
    return Stability(n, float(share_S.mean()), low, high, level, resamples, evidence.blocks)


def rank_features(
    model: nn.Module,
    sae: Any,
    site: Site,
    forget: Batch,
    retain: Batch,
    *,
    rule: Rule,
    special_ids: Sequence[int],
    batch_size: int = 32,
    stable_at: Sequence[int] = (),
    seed: int = 0,
) -> FeatureTable:
    """Rank features by their activity on forget and retain tokens: ``observe`` and ``rank`` in one call.

    Args:
        model: the model that will be edited.
        sae: its SAE at ``site``; see ``probe.interventions.attaching``.
        site: where both live.
        forget, retain: rows to choose on; report on others.
        rule: one of ``probe.features.rules``.
        special_ids: token ids left out, ``tokenizer.all_special_ids``, say.
        batch_size: rows per forward pass.
        stable_at, seed: see ``rank``.

    Raises:
        ValueError: no token is left on a side, no feature is on, or the SAE has another width than the model.

    >>> from probe.features import MeanDifference
    >>> sides, special = (s.split.forget, s.split.retain), s.special_ids
    >>> table = probe.rank_features(s.original, s.sae, s.sae_site, *sides, rule=MeanDifference(), special_ids=special)
    >>> edit = probe.Clamp(s.sae, table.top(8), value=-20.0)
    """
    values = getattr(rule, "needs_values", False)
    found = observe(model, {site: sae}, forget, retain, special_ids=special_ids, values=values, batch_size=batch_size)[
        site
    ]
    return rank(rule, found, site, stable_at=stable_at, seed=seed)


def matched_features(rate_F: PerFeatureF, chosen: Sequence[int], *, seed: int) -> tuple[int, ...]:
    """The control: for each chosen feature another that fires about as often, drawn among the four nearest by ratio.

    A feature that fires half as often changes half as many tokens: drawn without regard to rates, the control would be
    the weaker edit. Several seeds give several draws; one draw says little. Where the chosen ones are the most frequent
    of all, no others fire as often.

    Args:
        rate_F: share of forget tokens at which each feature is on (``Side.rate_F``).
        chosen: features that are controlled for; none of them is drawn.
        seed: of the draw.

    Returns:
        features, each once, in the order of ``chosen``; only for the first of them where others are too few.

    Raises:
        ValueError: no other feature is on at any forget token.
    """
    generator = torch.Generator().manual_seed(seed)
    log_F = rate_F.double().cpu().clamp(min=1e-12).log()
    free = set(rate_F.nonzero().flatten().tolist()) - set(chosen)
    if not free:
        raise ValueError(
            f"no feature but the {len(chosen)} chosen ones is ever active on the forget tokens, so none can be drawn "
            "as a control; choose fewer, or a wider dictionary"
        )
    chosen = chosen[: len(free)]
    drawn: dict[int, int] = {}
    # The order in which they take their match is random, too: the last ones find fewer.
    for place in torch.randperm(len(chosen), generator=generator).tolist():
        rest = torch.tensor(sorted(free))
        apart = (log_F[rest] - log_F[chosen[place]]).abs()
        nearest = apart.argsort(stable=True)[:_NEAREST]
        one = int(rest[nearest[torch.randint(len(nearest), (1,), generator=generator)]])
        drawn[place] = one
        free.remove(one)
    return tuple(drawn[place] for place in range(len(chosen)))
