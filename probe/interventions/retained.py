"""What features are like on retain tokens, and the values for ``Suppress`` that follow from it."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import HiddenND
from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.dictionaries.dictionary import Dictionary, check_hidden
from probe.harvest import harvest
from probe.interventions.activations import check_number
from probe.interventions.suppression import chosen_features
from probe.interventions.targets import Constant, PerFeatureK, Resample
from probe.positions import NotIds
from probe.sites import Site

# Features are many times wider than the stream: encode in pieces.
_PIECE = 4096


@dataclass(frozen=True, eq=False)
class Retained:
    """What chosen features, and the stream they are part of, are like on retain tokens; made by ``retained``.

    Args:
        f_NK: activations, 0 where off, of N tokens.
        norm: median |h| of these tokens.
        unit_K: median length of what one unit of each feature adds at these tokens.

    Raises:
        ValueError: no tokens.
    """

    f_NK: Float[Tensor, "N K"] = field(repr=False)
    norm: float
    unit_K: PerFeatureK = field(repr=False)

    def __post_init__(self) -> None:
        if len(self.f_NK) == 0:
            raise ValueError("no retain token is left, so nothing is known of retain activations; check the batch")

    def push(self, strength: float) -> Constant:
        """f'_j = -strength * median |h| / |what one unit of j adds|: the same push in every layer and model.

        Absolute values do not travel: -500 is 34 median residual norms in one model and 0.1 in another.

        Args:
            strength: in median residual norms of retain tokens; 0.1 to 3 is the usable range.

        Raises:
            ValueError: a strength that is not finite, or a feature that adds nothing.
        """
        check_number(strength, "strength")
        if not bool((self.unit_K > 0).all()):
            raise ValueError("a chosen feature adds nothing to the stream, so no value of it pushes; leave it out")
        return Constant(-strength * self.norm / self.unit_K)

    def mean(self) -> Constant:
        """f'_j = mean of f_j over retain tokens, on or off."""
        return Constant(self.f_NK.mean(0))

    def quantile(self, q: float) -> Constant:
        """f'_j = q-quantile of f_j over retain tokens, on or off: 0 for a feature that is on at few of them.

        Raises:
            ValueError: q outside [0, 1].
        """
        if not 0 <= q <= 1:
            raise ValueError(f"a quantile lies in [0, 1], got {q}")
        # One by one: torch.quantile takes sixteen million numbers at most.
        values = [torch.quantile(column_N, q) for column_N in self.f_NK.T]
        return Constant(torch.stack(values) if values else self.f_NK.new_zeros(0))

    def resample(self, seed: int) -> Resample:
        """f'_j = f_j of a retain token drawn at random, for each feature apart."""
        return Resample(self.f_NK, seed)


def retained(
    model: nn.Module,
    batch: Batch,
    site: Site,
    sae: Any,
    features: Sequence[int],
    *,
    special_ids: Sequence[int],
    batch_size: int = 32,
) -> Retained:
    """Measure what the values made of retain statistics need.

    Args:
        model: the model that will be edited; left as it was.
        batch: retain rows, in the format of the texts on which the edit will be judged.
        site: where it will be edited.
        sae: anything ``probe.dictionaries.adapters.dictionary`` takes.
        features: ids of the chosen features, in the order of the edit.
        special_ids: token ids left out, ``tokenizer.all_special_ids``, say: bos above all, whose norm may be hundreds
            of times larger. Padding is left out through the mask.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no token is left, unknown features, or a dictionary of another width than the model.

    >>> held = probe.retained(s.original, s.split.retain, s.sae_site, s.sae, (3, 5), special_ids=s.special_ids)
    >>> edit = probe.Suppress(s.sae, (3, 5), held.resample(seed=0))
    """
    kept = NotIds(tuple(special_ids))
    hidden_ND = harvest(model, batch.chunks(batch_size), [site], positions=kept)[site]
    return retained_in(sae, features, hidden_ND)


def retained_in(sae: Any, features: Sequence[int], hidden_ND: HiddenND) -> Retained:
    """``retained`` where the states of retain tokens are at hand.

    Raises:
        ValueError: no states, unknown features, or a dictionary of another width than the model.
    """
    found, ids = dictionary(sae), check_features(sae, features)
    index_K = torch.tensor(ids, dtype=torch.long, device=found.directions_FD.device)
    pieces = []
    with torch.no_grad():
        for piece_ND in hidden_ND.split(_PIECE):
            f_1NK, on_1NK = chosen_features(found, piece_ND[None], index_K)
            pieces.append((f_1NK * on_1NK)[0])
    return Retained(torch.cat(pieces), *units(found, hidden_ND, index_K))


def units(found: Dictionary, hidden_ND: HiddenND, index_K: Tensor) -> tuple[float, PerFeatureK]:
    """Median |h|, and the median length of what one unit of each feature adds."""
    check_hidden(found, hidden_ND)
    with torch.no_grad():
        scale = torch.cat([found.scale(piece_ND) for piece_ND in hidden_ND.split(_PIECE)]).median()
        return hidden_ND.float().norm(dim=1).median().item(), scale * found.directions_FD[index_K].norm(dim=1)
