"""How good a dictionary is on a model: what it explains, how sparse it is, what its reconstruction costs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import nn

from probe.axes import HiddenBTD, HiddenND
from probe.data import Batch
from probe.dictionaries.dictionary import Dictionary, check_hidden
from probe.dictionaries.fit import fvu
from probe.hooks import edited
from probe.interventions.activations import activations, content
from probe.metrics.tokens import token_stats
from probe.positions import At, Intervention, not_first
from probe.sites import Site, n_layers

# Activations in which dead features are looked for, spread over all that there are.
_LOOKED_AT = 100_000
_PIECE = 2048


@dataclass(frozen=True)
class Quality:
    """A dictionary's quality card; all but ``dead`` is measured on the judged rows without the first token of each.

    Args:
        explained_variance: 1 - FVU at the site.
        l0: active features a token.
        l0_target: what it was to be; None if unknown.
        dead: features that are active at none of ``looked_at`` activations.
        n_features: of the dictionary.
        looked_at: activations in which dead features were looked for.
        loss: mean cross-entropy of the next token (nats).
        loss_spliced: the same with the reconstruction in the activation's place.
        loss_mean: the same with the mean activation in its place; what a dictionary that knows nothing would cost.
        fvu_by_layer: fraction of variance unexplained at the site's block and its neighbours; an error of one block
            shows here and hardly in the losses.
        tokens: judged tokens.
    """

    explained_variance: float
    l0: float
    l0_target: float | None
    dead: int
    n_features: int
    looked_at: int
    loss: float
    loss_spliced: float
    loss_mean: float
    fvu_by_layer: Mapping[int, float]
    tokens: int

    @property
    def recovered(self) -> float:
        """(loss_mean - loss_spliced) / (loss_mean - loss): 1 where reconstruction costs nothing."""
        return (self.loss_mean - self.loss_spliced) / (self.loss_mean - self.loss)

    def as_json(self) -> dict[str, Any]:
        """Plain values, ready to be written."""
        return {**asdict(self), "fvu_by_layer": {str(k): v for k, v in self.fvu_by_layer.items()}}


@dataclass(frozen=True, eq=False)
class _Splice:
    """h becomes decode(encode(h)): the whole reconstruction, its error included."""

    dictionary: Dictionary = field(repr=False)

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        wide_BTD = hidden_BTD.to(self.dictionary.directions_FD)
        return self.dictionary.decode(self.dictionary.encode(wide_BTD), wide_BTD).to(hidden_BTD)


@dataclass(frozen=True, eq=False)
class _ConstantState:
    """h becomes one vector."""

    mean_D: torch.Tensor = field(repr=False)

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self.mean_D.to(hidden_BTD).expand_as(hidden_BTD)


def quality(
    model: nn.Module,
    dictionary: Dictionary,
    site: Site,
    judged: Batch,
    seen_ND: HiddenND | None = None,
    *,
    l0_target: float | None = None,
    batch_size: int = 32,
) -> Quality:
    """Measure a dictionary that reads and writes the hidden states at one site.

    Args:
        model: any Hugging Face decoder, unchanged.
        dictionary: in inference form; on the model's device.
        site: where it belongs.
        judged: rows that it was not trained on.
        seen_ND: activations in which dead features are looked for; those of the judged rows without it.
        l0_target: active features a token that it was to have.
        batch_size: rows a pass.

    Raises:
        ValueError: a dictionary of another width, one that writes elsewhere (a transcoder), or rows without tokens.

    >>> probe.quality(s.original, probe.dictionary(s.sae), s.sae_site, s.split.retain).l0 > 0
    True
    """
    if dictionary.width != dictionary.out_width:
        raise ValueError(
            f"the dictionary reads width {dictionary.width} and writes {dictionary.out_width}: a transcoder is judged "
            "by what it writes, not by what it reads"
        )
    near = [layer for layer in range(site.layer - 1, site.layer + 2) if 0 <= layer < n_layers(model)]
    sites = {layer: replace(site, layer=layer) for layer in (near if site.part not in ("embedding", "norm") else [0])}
    found = activations(model, judged, list(sites.values()), tokens=content, batch_size=batch_size)
    hidden_ND = found[site]
    check_hidden(dictionary, hidden_ND)
    fvu_by_layer = {layer: fvu(dictionary, found[there]) for layer, there in sites.items()}
    l0, _ = _activity(dictionary, hidden_ND)
    looked_ND = hidden_ND if seen_ND is None else seen_ND[:: -(-len(seen_ND) // _LOOKED_AT)]
    _, on_F = _activity(dictionary, looked_ND)
    every = replace(judged, target_BT=content(judged), warn=False)
    plain = _loss(model, every, {}, batch_size)
    spliced = _loss(model, every, {site: At(_Splice(dictionary), not_first)}, batch_size)
    mean = _loss(model, every, {site: At(_ConstantState(hidden_ND.mean(0)), not_first)}, batch_size)
    return Quality(
        1 - fvu_by_layer[site.layer],
        l0,
        l0_target,
        int((~on_F).sum()),
        dictionary.n_features,
        len(looked_ND),
        plain,
        spliced,
        mean,
        fvu_by_layer,
        len(hidden_ND),
    )


def _activity(dictionary: Dictionary, hidden_ND: HiddenND) -> tuple[float, torch.Tensor]:
    """Active features a token, and which features are ever active; encoded in pieces, for features are many."""
    rows_FD = dictionary.directions_FD
    count, on_F = 0, torch.zeros(dictionary.n_features, dtype=torch.bool, device=rows_FD.device)
    with torch.no_grad():
        for piece_ND in hidden_ND.split(_PIECE):
            active_NF = dictionary.active(dictionary.encode(piece_ND.to(rows_FD)))
            count, on_F = count + int(active_NF.sum()), on_F | active_NF.any(0)
    return count / len(hidden_ND), on_F


def _loss(model: nn.Module, batch: Batch, edits: Mapping[Site, Intervention], batch_size: int) -> float:
    with edited(model, edits):
        stats = token_stats(model, batch, batch_size=batch_size)
    logp = [value for row in stats.logp for value in row]
    return -float(sum(logp) / len(logp))
