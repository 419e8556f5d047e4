"""Effects of features, token by token, summed up as they come; inner products are taken where features are on."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.axes import HiddenND
from probe.dictionaries.dictionary import Dictionary, check_hidden
from probe.features.activity import PerBlockG, PerBlockGF, PerFeatureF, pieces_of

Aggregate = Literal["positive", "signed", "absolute", "l2"]
# Above this share of active features a matrix product is cheaper than one inner product for each.
_DENSE = 1 / 16
# Numbers gathered at once for those inner products.
_GATHERED = 2**22


@dataclass(frozen=True, eq=False)
class Effects:
    """First-order effects on one corpus, summed over tokens and kept by block of groups.

    Args:
        positive_GF: sum over tokens of max(0, a).
        signed_GF: sum of a.
        absolute_GF: sum of |a|.
        square_GF: sum of a^2.
        error_G3: the same first three for the reconstruction error as one node; None unless asked for.
        inside_G3: the same for all features of a token together.
        targets_G: target tokens of each block.
        active_GF: whether a feature is on at any token.
        tokens: how many tokens were looked at.
        value: the objective on the whole corpus; its mean along the path for integrated gradients.
        weight_G: how often each block counts.
    """

    positive_GF: PerBlockGF = field(repr=False)
    signed_GF: PerBlockGF = field(repr=False)
    absolute_GF: PerBlockGF = field(repr=False)
    square_GF: PerBlockGF = field(repr=False)
    inside_G3: Float[Tensor, "G 3"] = field(repr=False)
    error_G3: Float[Tensor, "G 3"] | None = field(repr=False)
    targets_G: PerBlockG = field(repr=False)
    active_GF: Bool[Tensor, "G F"] = field(repr=False)
    tokens: int
    value: float
    weight_G: PerBlockG = field(repr=False)

    def total(self, aggregate: Aggregate) -> PerFeatureF:
        """Each feature's effect on the objective's mean over targets, by one way of adding tokens up.

        "positive": what removing the feature would cost at the tokens where it costs, which follows exact ablation
        best at a memorised optimum, where signs cancel; "l2": root of the sum of squares.
        """
        kept = {"positive": self.positive_GF, "signed": self.signed_GF, "absolute": self.absolute_GF}
        sum_F = self.weight_G @ kept.get(aggregate, self.square_GF)
        total_F = sum_F.sqrt() if aggregate == "l2" else sum_F
        return total_F * float(self.targets_G.sum() / (self.weight_G @ self.targets_G))


class Sums:
    """Effects on one corpus at one site, on the CPU in float64, filled batch by batch."""

    def __init__(self, n_blocks: int, n_features: int, error: bool) -> None:
        # positive, signed, absolute, square
        self.kept = [torch.zeros(n_blocks, n_features, dtype=torch.float64) for _ in range(4)]
        self.active_GF = torch.zeros(n_blocks, n_features, dtype=torch.bool)
        self.inside_G3 = torch.zeros(n_blocks, 3, dtype=torch.float64)
        self.error_G3 = torch.zeros(n_blocks, 3, dtype=torch.float64) if error else None

    def add(
        self,
        sae: Dictionary,
        hidden_ND: HiddenND,
        out_NE: Float[Tensor, "N E"],
        g_NE: Float[Tensor, "N E"],
        block_N: Int[Tensor, " N"],
        where: str,
    ) -> None:
        """Tokens of one forward: what the dictionary read, what stood where it writes, the gradient there."""
        check_hidden(sae, hidden_ND)
        if out_NE.shape[1] != sae.out_width:
            raise ValueError(
                f"the dictionary writes width {sae.out_width}, the hidden states at {where} differ from it"
            )
        if not bool(torch.isfinite(hidden_ND).all() & torch.isfinite(g_NE).all()):
            raise ValueError(f"hidden states or gradients at {where} hold NaN or infinity; check model and objective")
        g_NE, out_NE = g_NE.to(sae.directions_FD), out_NE.to(sae.directions_FD)
        for piece in pieces_of(len(hidden_ND), sae.n_features):
            with torch.no_grad():
                f_NF = sae.encode(hidden_ND[piece])
                on_NF = sae.active(f_NF)
                size_NF = f_NF * sae.scale(hidden_ND[piece])
                few = int(on_NF.count_nonzero()) <= _DENSE * on_NF.numel()
                inside_N = (self._sparse if few else self._dense)(
                    size_NF, on_NF, g_NE[piece], sae.directions_FD, block_N[piece]
                )
                self.inside_G3.index_add_(0, block_N[piece], _three(inside_N))
                if self.error_G3 is not None:
                    error_NE = out_NE[piece] - sae.decode(f_NF, hidden_ND[piece])
                    self.error_G3.index_add_(0, block_N[piece], _three(-(g_NE[piece] * error_NE).sum(1)))

    def _sparse(self, size_NF: Tensor, on_NF: Tensor, g_NE: Tensor, rows_FE: Tensor, block_N: Tensor) -> Tensor:
        token_M, feature_M = on_NF.nonzero(as_tuple=True)
        step = max(1, _GATHERED // rows_FE.shape[1])
        a_M = torch.cat(
            [
                -(g_NE[token_M[at : at + step]] * rows_FE[feature_M[at : at + step]]).sum(1)
                for at in range(0, max(1, len(token_M)), step)
            ]
        )
        a_M = (a_M * size_NF[token_M, feature_M]).double().cpu()
        token_M, feature_M = token_M.cpu(), feature_M.cpu()
        at_M = block_N[token_M] * on_NF.shape[1] + feature_M
        for total_GF, added_M in zip(self.kept, _four(a_M), strict=True):
            total_GF.view(-1).index_add_(0, at_M, added_M)
        self.active_GF.view(-1)[at_M] = True
        return torch.zeros(len(g_NE), dtype=torch.float64).index_add_(0, token_M, a_M)

    def _dense(self, size_NF: Tensor, on_NF: Tensor, g_NE: Tensor, rows_FE: Tensor, block_N: Tensor) -> Tensor:
        a_NF = -(size_NF * on_NF) * (g_NE @ rows_FE.T)
        one_GN = torch.zeros(len(self.active_GF), len(block_N)).to(a_NF)
        one_GN[block_N.to(a_NF.device), torch.arange(len(block_N), device=a_NF.device)] = 1
        for total_GF, added_NF in zip(self.kept, _four(a_NF), strict=True):
            total_GF += (one_GN @ added_NF).double().cpu()
        self.active_GF |= (one_GN @ on_NF.to(a_NF) > 0).cpu()
        return a_NF.sum(1).double().cpu()

    def effects(self, targets_G: PerBlockG, tokens: int, value: float) -> Effects:
        """What was summed up."""
        positive_GF, signed_GF, absolute_GF, square_GF = self.kept
        return Effects(
            positive_GF,
            signed_GF,
            absolute_GF,
            square_GF,
            self.inside_G3,
            self.error_G3,
            targets_G,
            self.active_GF,
            tokens,
            value,
            torch.ones_like(targets_G),
        )


def _four(a: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return a.clamp(min=0), a, a.abs(), a.square()


def _three(a_N: Tensor) -> Tensor:
    wide_N = a_N.double().cpu()
    return torch.stack([wide_N.clamp(min=0), wide_N, wide_N.abs()], 1)
