"""What lies outside the dictionary: no edit of features can reach the reconstruction error, however many it takes."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import Batch
from probe.dictionaries.dictionary import Dictionary, delta
from probe.features.activity import pieces_of
from probe.features.attribution import attribute, checked
from probe.features.effects import Effects
from probe.features.watching import shares
from probe.hooks import edited
from probe.modes import evaluating
from probe.objectives.objective import Objective
from probe.positions import At, Intervention, NotIds
from probe.sites import Site


@dataclass(frozen=True)
class Share:
    """Part of an effect that lies outside the dictionary, with percentiles over resampled groups of rows."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Outside:
    """One corpus, accounted for.

    Args:
        outside: error / (error + sum over features), each the sum over tokens of the positive part of its first-order
            effect on the objective: 0 for a dictionary that explains everything.
        lumped: the same with all features of a token as one node, whose parts may cancel. Where only the final norm
            follows the whole state has no first-order effect, and this share says little.
        plain: the objective of the model as it is.
        reconstruction_only: with the error taken out: what the dictionary alone keeps.
        error_only: with every feature at 0: what no edit that removes features can be blamed or credited for.
    """

    outside: Share
    lumped: Share
    plain: float
    reconstruction_only: float
    error_only: float


@dataclass(frozen=True)
class Account:
    """What a dictionary can and cannot reach at one site.

    Args:
        site: where it reads.
        forget, retain: both corpora.
    """

    site: Site
    forget: Outside
    retain: Outside

    @property
    def ceiling(self) -> float:
        """Largest share of the first-order forget effect that removing features can reach: 1 - outside."""
        return 1 - self.forget.outside.value

    @property
    def most(self) -> float:
        """What removing every feature at once does to the objective on forget rows."""
        return self.forget.error_only - self.forget.plain


def account(
    model: nn.Module,
    sae: Any,
    site: Site,
    forget: Batch,
    retain: Batch,
    *,
    objective: Objective,
    special_ids: Sequence[int],
    writes: Site | None = None,
    batch_size: int = 32,
    resamples: int = 200,
    seed: int = 0,
    level: float = 0.95,
) -> Account:
    """How much of the attribution lies in the reconstruction error, and what is left of the model with one part alone.

    The error term is the node <g, e> of sparse feature circuits (Marks et al., arXiv 2403.19647).

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        sae: the dictionary that reads ``site``.
        site: where.
        forget, retain: rows.
        objective: what removing features is to raise, ``nll``, say.
        special_ids: token ids at which nothing counts and nothing is changed; padding likewise.
        writes: the site that a transcoder writes to.
        batch_size: rows per pass.
        resamples, seed, level: of the bootstrap over groups; 0 resamples give intervals of NaN.

    Raises:
        ValueError: as ``attribute``.
    """
    elsewhere = {} if writes is None else {site: writes}
    found, to = checked({site: sae}, elsewhere)[site]
    given = attribute(
        model,
        {site: found},
        forget,
        retain,
        objective=objective,
        special_ids=special_ids,
        writes=elsewhere,
        error=True,
        batch_size=batch_size,
    )[site]
    sides = []
    for effects, batch in ((given.forget, forget), (given.retain, retain)):
        values = [
            _value(model, objective, batch, batch_size, partial(_only, model, found, site, to, special_ids, keep))
            for keep in ("reconstruction", "error")
        ]
        outside, lumped = (_share(effects, as_one, resamples, seed, level) for as_one in (False, True))
        sides.append(Outside(outside, lumped, effects.value, *values))
    return Account(site, *sides)


def _share(effects: Effects, as_one: bool, resamples: int, seed: int, level: float) -> Share:
    assert effects.error_G3 is not None
    error_G = effects.error_G3[:, 0]
    inside_G = effects.inside_G3[:, 0] if as_one else effects.positive_GF.sum(1)

    def share(weight_G: Tensor) -> float:
        error, inside = float(weight_G @ error_G), float(weight_G @ inside_G)
        return error / (error + inside) if error + inside > 0 else 0.0

    value, n = share(torch.ones_like(error_G)), len(error_G)
    if not resamples or n < 2:
        return Share(value, float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    drawn = [
        share(torch.bincount(torch.randint(n, (n,), generator=generator), minlength=n).double())
        for _ in range(resamples)
    ]
    tail = (1 - level) / 2
    low, high = torch.quantile(torch.tensor(drawn).double(), torch.tensor([tail, 1 - tail]).double()).tolist()
    return Share(value, low, high)


def _only(
    model: nn.Module, sae: Dictionary, site: Site, to: Site, special_ids: Sequence[int], keep: str
) -> AbstractContextManager[None]:
    """The model with nothing but the reconstruction, or nothing but the error and the bias, where the sae writes."""
    seen: dict[Site, Tensor] = {}

    def read(hidden_BTD: Tensor) -> Tensor:
        seen[site] = hidden_BTD
        return hidden_BTD

    def write(out_BTE: Tensor) -> Tensor:
        hidden_ND = seen.get(site, out_BTE).flatten(0, 1) if site != to else out_BTE.flatten(0, 1)
        parts = []
        for piece in pieces_of(len(hidden_ND), sae.n_features):
            f_NF = sae.encode(hidden_ND[piece])
            if keep == "reconstruction":
                parts.append(sae.decode(f_NF, hidden_ND[piece]).to(out_BTE))
            else:
                parts.append(out_BTE.flatten(0, 1)[piece] - delta(sae, f_NF, hidden_ND[piece]).to(out_BTE))
        return torch.cat(parts).view_as(out_BTE)

    where = NotIds(tuple(int(t) for t in special_ids))
    edits: dict[Site, Intervention] = {to: At(write, where)} if site == to else {site: read, to: At(write, where)}
    return edited(model, edits)


def _value(
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    batch_size: int,
    inside: Callable[[], AbstractContextManager[None]],
) -> float:
    device = next(model.parameters()).device
    with evaluating(model), torch.no_grad(), inside():
        return sum(share * float(objective(model, piece.to(device))) for piece, share in shares(batch, batch_size))
