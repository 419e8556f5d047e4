"""What each feature does to an objective: the first-order effect of removing it, all features of all sites at once.

a = -f scale <g, direction> at each token, with g the objective's gradient at the state of the plain model. It is the
derivative of the spliced model with its error held constant (Marks et al., arXiv 2403.19647), and what zeroing the
feature at that token changes, to first order. The objective should rise as knowledge goes: ``nll`` does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from probe.data import Batch
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import Dictionary, delta
from probe.features.activity import PerFeatureF, block_of, n_blocks, pieces_of
from probe.features.effects import Aggregate, Effects, Sums
from probe.features.rules import Role
from probe.features.watching import Change, Watched, check_some, shares, watched
from probe.modes import evaluating
from probe.objectives.objective import Objective
from probe.sites import Site


@dataclass(frozen=True, eq=False)
class Attribution:
    """Effects at one site on both corpora."""

    forget: Effects
    retain: Effects

    @property
    def fires_F(self) -> Bool[Tensor, " F"]:
        """Which features are on at any forget token."""
        return self.forget.active_GF.any(0)

    @property
    def shown(self) -> str:
        """What was looked at, for messages."""
        return f"{self.forget.tokens} forget tokens"

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks of groups each side has."""
        return len(self.forget.weight_G), len(self.retain.weight_G)

    def weighted(self, forget_G: Tensor, retain_G: Tensor) -> "Attribution":
        """These effects with every block weighted, as a bootstrap draws blocks."""
        sides = [replace(s, weight_G=w.double()) for s, w in ((self.forget, forget_G), (self.retain, retain_G))]
        return Attribution(*sides)


@dataclass(frozen=True)
class ByEffect:
    """Score = effect on forget, or that less the one on retain, or forget / (retain + its mean over features).

    For features with an effect on forget above 0 ("l2" and "absolute" are never below).

    Args:
        aggregate: how tokens are added up.
        against: "retain" subtracts, "ratio" divides, "nothing" leaves forget alone. The mean over features keeps the
            ratio finite for features that do nothing on retain rows.
    """

    aggregate: Aggregate = "positive"
    against: Literal["retain", "ratio", "nothing"] = "retain"
    role: ClassVar[Role] = "edit"

    def __call__(self, found: Attribution) -> PerFeatureF:
        forget_F, retain_F = found.forget.total(self.aggregate), found.retain.total(self.aggregate)
        score_F = forget_F
        if self.against == "retain":
            score_F = forget_F - retain_F
        elif self.against == "ratio":
            floor = float(retain_F.abs().mean())
            score_F = forget_F / (retain_F.abs() + (floor or 1.0))
        return torch.where((forget_F > 0) & (score_F > 0), score_F, -torch.inf)


def attribute(
    model: nn.Module,
    dictionaries: Mapping[Site, Any],
    forget: Batch,
    retain: Batch,
    *,
    objective: Objective,
    special_ids: Sequence[int],
    writes: Mapping[Site, Site] | None = None,
    error: bool = False,
    batch_size: int = 32,
) -> dict[Site, Attribution]:
    """Effects of every feature of every dictionary, from one forward and backward of the plain model for each batch.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        dictionaries: what reads each site.
        forget, retain: rows to choose on; report on others.
        objective: what removing a feature is to raise, ``probe.objectives.token.nll``, say. Beyond one batch it is
            the mean over batches, weighted by targets: the same for means over tokens.
        special_ids: token ids at which nothing counts. Padding is left out through the mask.
        writes: for a dictionary that writes to another site than it reads (a transcoder): that site.
        error: also what the reconstruction error does, at the price of decoding.
        batch_size: rows per pass.

    Raises:
        ValueError: no dictionary, one of another width, a transcoder without the site that it writes to, no token
            left, a value or gradient that is not finite, or an objective that does not depend on the states.

    >>> sides = (s.split.forget, s.split.retain)
    >>> found = probe.attribute(s.original, {s.sae_site: s.sae}, *sides, objective=probe.nll, special_ids=s.special_ids)
    >>> tuple(found[s.sae_site].fires_F.shape)
    (1024,)
    """
    found = checked(dictionaries, writes)
    with evaluating(model):
        sides = [
            _effects(model, found, batch, side, objective, special_ids, error, batch_size, None)
            for side, batch in (("forget", forget), ("retain", retain))
        ]
    return {site: Attribution(sides[0][site], sides[1][site]) for site in found}


def integrated(
    model: nn.Module,
    dictionaries: Mapping[Site, Any],
    forget: Batch,
    retain: Batch,
    *,
    objective: Objective,
    special_ids: Sequence[int],
    steps: int = 10,
    writes: Mapping[Site, Site] | None = None,
    batch_size: int = 32,
) -> dict[Site, Attribution]:
    """As ``attribute`` with gradients averaged while all features of a site go from 0 to their values.

    Integrated gradients (Sundararajan et al., arXiv 1703.01365) at midpoints, each site for itself, the error held
    constant; signed effects add up to the objective without any feature less the objective. ``steps`` passes a site
    (10 in Marks et al., arXiv 2403.19647). Scaling all features jointly tells less about single ones than the plain
    gradient's positive part does.

    Raises:
        ValueError: as ``attribute``, or no step.
    """
    if steps < 1:
        raise ValueError(f"integrated gradients need at least one step, got {steps}")
    result = {}
    with evaluating(model):
        for site, (sae, to) in checked(dictionaries, writes).items():
            sides = [
                _effects(model, {site: (sae, to)}, batch, side, objective, special_ids, False, batch_size, steps)[site]
                for side, batch in (("forget", forget), ("retain", retain))
            ]
            result[site] = Attribution(*sides)
    return result


def checked(
    dictionaries: Mapping[Site, Any], writes: Mapping[Site, Site] | None
) -> dict[Site, tuple[Dictionary, Site]]:
    """Each site's dictionary and the site that it writes to."""
    if not dictionaries:
        raise ValueError("no dictionary is given; pass at least one, {Site(0): sae}, say")
    found = {}
    for site, thing in dictionaries.items():
        sae = dictionary(thing)
        to = (writes or {}).get(site, site)
        if getattr(sae, "transcodes", False) and to == site:
            raise ValueError(f"the dictionary at {site} is a transcoder; say in writes which site it writes to")
        found[site] = (sae, to)
    return found


def _effects(
    model: nn.Module,
    found: Mapping[Site, tuple[Dictionary, Site]],
    batch: Batch,
    side: str,
    objective: Objective,
    special_ids: Sequence[int],
    error: bool,
    batch_size: int,
    steps: int | None,
) -> dict[Site, Effects]:
    tokens = check_some(batch, special_ids, side)
    device = next(model.parameters()).device
    sites = list(dict.fromkeys([*found, *(to for _, to in found.values())]))
    sums = {site: Sums(n_blocks(batch.group_B), sae.n_features, error) for site, (sae, _) in found.items()}
    targets_G = torch.zeros(n_blocks(batch.group_B), dtype=torch.float64)
    value = 0.0
    for piece, share in shares(batch, batch_size):
        block_B = block_of(piece.group_B.cpu(), batch.group_B.cpu())
        targets_G.index_add_(0, block_B, piece.target_BT[:, 1:].sum(1).double().cpu())
        loss, forwards = _averaged(model, objective, piece.to(device), found, sites, special_ids, steps)
        value += share * loss
        for one in forwards:
            row_N = one.mask_BT.nonzero()[:, 0].cpu()
            for site, (sae, to) in found.items():
                states = (one.hidden[site], one.hidden[to], share * one.gradient[to])
                hidden_ND, out_NE, g_NE = (x_BTD[one.mask_BT] for x_BTD in states)
                sums[site].add(sae, hidden_ND, out_NE, g_NE, block_B[row_N], f"{to} on {side} rows")
    return {site: sums[site].effects(targets_G, tokens, value) for site in found}


def _averaged(
    model: nn.Module,
    objective: Objective,
    piece: Batch,
    found: Mapping[Site, tuple[Dictionary, Site]],
    sites: Sequence[Site],
    special_ids: Sequence[int],
    steps: int | None,
) -> tuple[float, list[Watched]]:
    """Value and gradients, averaged along the path where there are steps."""
    if steps is None:
        return watched(model, objective, piece, sites, special_ids=special_ids)
    value, kept = 0.0, list[Watched]()
    for k in range(steps):
        change = _shrunk(found, (k + 0.5) / steps)
        loss, forwards = watched(model, objective, piece, sites, special_ids=special_ids, change=change)
        value += loss / steps
        for one in forwards:
            for gradient in one.gradient.values():
                gradient /= steps
        if not kept:
            kept = forwards
            continue
        for total, one in zip(kept, forwards, strict=True):
            for site, gradient in one.gradient.items():
                total.gradient[site] += gradient
    return value, kept


def _shrunk(found: Mapping[Site, tuple[Dictionary, Site]], alpha: float) -> Change:
    """All features of the site that is written to at ``alpha`` times their values."""
    reads = {to: (site, sae) for site, (sae, to) in found.items()}

    def change(hidden: dict[Site, Tensor], site: Site, mask_BT: Tensor) -> Tensor:
        if site not in reads:
            return hidden[site]
        source, sae = reads[site]
        h_ND = hidden[source][mask_BT]
        with torch.no_grad():
            removed_NE = torch.cat(
                [delta(sae, sae.encode(h_ND[piece]), h_ND[piece]) for piece in pieces_of(len(h_ND), sae.n_features)]
            )
        after_BTE = hidden[site].clone()
        after_BTE[mask_BT] -= (1 - alpha) * removed_NE.to(after_BTE)
        return after_BTE

    return change
