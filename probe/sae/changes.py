"""What an edit of weights did to the features of a dictionary, and where what they wrote has gone."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import HiddenND
from probe.data import Batch
from probe.dictionaries.dictionary import Dictionary, check_hidden
from probe.dictionaries.fit import fvu
from probe.interventions.activations import activations, content
from probe.sites import Site

PerFeatureF = Float[Tensor, " F"]

# Features are many times wider than hidden states: encode in pieces.
_PIECE = 2048


@dataclass(frozen=True, eq=False)
class Change:
    """One corpus at one site, the same tokens in both models.

    Args:
        before_F, after_F: mean over tokens of the length of what each feature writes, |f| |direction|.
        rate_before_F, rate_after_F: share of tokens at which it is on.
        by_others: of what the selected features no longer write, the share that other features now write in its place;
            below 0 where they take away more of it. NaN where the selected features write as before.
        by_error: the same for what lies outside the dictionary. 1 - by_others - by_error of it is gone from the stream.
        fvu_before, fvu_after: variance that the dictionary leaves unexplained.
        tokens: how many.
    """

    before_F: PerFeatureF = field(repr=False)
    after_F: PerFeatureF = field(repr=False)
    rate_before_F: PerFeatureF = field(repr=False)
    rate_after_F: PerFeatureF = field(repr=False)
    by_others: float
    by_error: float
    fvu_before: float
    fvu_after: float
    tokens: int

    def left(self, features: Sequence[int]) -> float:
        """What these features write, as a share of what they wrote."""
        index = list(features)
        return float(self.after_F[index].sum() / self.before_F[index].sum())

    def growth_F(self, features: Sequence[int]) -> PerFeatureF:
        """How much more every other feature writes, and 0 for these, as a share of what these lost.

        Sums over many features: all that moved is in it, so hold it against the retain rows' before reading much into
        it; ``by_others`` says what of it points the same way. NaN where these write more than before.
        """
        index = list(features)
        lost = (self.before_F[index] - self.after_F[index]).sum()
        growth_F = (self.after_F - self.before_F).clamp(min=0)
        growth_F[index] = 0
        return growth_F / (lost if lost > 0 else torch.nan)


def changed(
    original: nn.Module,
    edited: nn.Module,
    sae: Dictionary,
    site: Site,
    features: Sequence[int],
    batch: Batch,
    *,
    batch_size: int = 32,
) -> Change:
    """Run the same rows through both models and compare the features, token by token.

    Args:
        original, edited: two models of one architecture.
        sae: an SAE of ``site`` (not a transcoder).
        site: where it reads.
        features: those meant to be silenced.
        batch: the rows; the first token of each is left out.
        batch_size: rows per forward pass.

    Raises:
        ValueError: another width, or a dictionary that writes elsewhere.
    """
    if sae.width != sae.out_width:
        raise ValueError("a transcoder writes elsewhere than it reads, so what its features write is not in the states")
    before_ND, after_ND = (
        activations(model, batch, [site], tokens=content, batch_size=batch_size)[site] for model in (original, edited)
    )
    check_hidden(sae, before_ND)
    rows_FD = sae.directions_FD
    sums = [torch.zeros(sae.n_features, dtype=torch.float64) for _ in range(4)]
    overlaps = torch.zeros(3, dtype=torch.float64)
    with torch.no_grad():
        for pair in zip(before_ND.split(_PIECE), after_ND.split(_PIECE), strict=True):
            f = [sae.encode(h_ND) for h_ND in pair]
            scale = [sae.scale(h_ND) for h_ND in pair]
            for k in (0, 1):
                on_NF = sae.active(f[k])
                sums[k] = sums[k] + (f[k] * on_NF * scale[k]).abs().sum(0).double().cpu()
                sums[2 + k] = sums[2 + k] + on_NF.sum(0).double().cpu()
            overlaps += _overlaps(pair, f, scale, rows_FD, list(features)).cpu()
    length_F, n = rows_FD.norm(dim=1).double().cpu(), len(before_ND)
    inner_others, inner_error, squared = overlaps.tolist()
    return Change(
        sums[0] * length_F / n,
        sums[1] * length_F / n,
        sums[2] / n,
        sums[3] / n,
        inner_others / squared if squared > 0 else float("nan"),
        inner_error / squared if squared > 0 else float("nan"),
        fvu(sae, before_ND),
        fvu(sae, after_ND),
        n,
    )


def _overlaps(
    pair: tuple[HiddenND, HiddenND], f: list[Tensor], scale: list[Tensor], rows_FD: Tensor, features: list[int]
) -> Tensor:
    """<o, v>, <e, v> and |v|^2 over tokens: v what the selected features no longer write, o what others write more.

    The stream changes by o - v + e, where e is what lies outside the dictionary (its bias included).
    """
    selected = [scale[k] * (f[k][:, features] @ rows_FD[features]) for k in (0, 1)]
    everything = [scale[k] * (f[k] @ rows_FD) for k in (0, 1)]
    v_ND = selected[0] - selected[1]
    o_ND = (everything[1] - everything[0]) + v_ND
    e_ND = (pair[1] - pair[0]).to(v_ND) - (everything[1] - everything[0])
    return torch.stack([(o_ND * v_ND).sum(), (e_ND * v_ND).sum(), v_ND.square().sum()]).double()
