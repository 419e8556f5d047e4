"""How well one feature alone tells forget from retain: area under the ROC curve, and chi-squared of a 2 x 2 table."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

PerFeatureF = Float[Tensor, " F"]
PerBlockG = Float[Tensor, " G"]
OtherBlockH = Float[Tensor, " H"]
Piece = tuple[Tensor, Tensor, Tensor]
"""Feature ids, activations and blocks of groups, one entry each per activation that is not 0."""


@dataclass(frozen=True, eq=False)
class Values:
    """Every activation of both corpora that is not 0, sorted by feature and then by value.

    Args:
        run_N: number of the run of equal feature and value that an entry belongs to.
        forget_N: whether it is of a forget token.
        block_N: its block of groups.
        feature_R: feature of each run.
        sign_R: sign of its value.
        n_features: F.
    """

    run_N: Int[Tensor, " N"] = field(repr=False)
    forget_N: Bool[Tensor, " N"] = field(repr=False)
    block_N: Int[Tensor, " N"] = field(repr=False)
    feature_R: Int[Tensor, " R"] = field(repr=False)
    sign_R: Float[Tensor, " R"] = field(repr=False)
    n_features: int

    @staticmethod
    def of(forget: Sequence[Piece], retain: Sequence[Piece], n_features: int) -> "Values":
        """Sort what was recorded of both corpora."""
        listed = [*forget, *retain]
        empty = (torch.empty(0, dtype=torch.int32), torch.empty(0), torch.empty(0, dtype=torch.int16))
        feature_N, value_N, block_N = (torch.cat(column) for column in zip(*(listed or [empty]), strict=True))
        forget_N = torch.zeros(len(value_N), dtype=torch.bool)
        forget_N[: sum(len(piece[1]) for piece in forget)] = True
        order = value_N.argsort()
        order = order[feature_N[order].argsort(stable=True)]
        feature_N, value_N = feature_N[order], value_N[order]
        new_N = torch.ones(len(value_N), dtype=torch.bool)
        new_N[1:] = (feature_N[1:] != feature_N[:-1]) | (value_N[1:] != value_N[:-1])
        return Values(
            new_N.cumsum(0) - 1,
            forget_N[order],
            block_N[order],
            feature_N[new_N].long(),
            value_N[new_N].sign(),
            n_features,
        )

    def auroc_F(
        self,
        forget_G: PerBlockG,
        retain_H: OtherBlockH,
        forget_weight_G: PerBlockG,
        retain_weight_H: OtherBlockH,
    ) -> PerFeatureF:
        """P(activation at a forget token > at a retain token), ties counted half (Mann and Whitney, 1947).

        Args:
            forget_G, retain_H: tokens (or rows) of each block, those where the feature is off included.
            forget_weight_G, retain_weight_H: how often each block counts.

        Returns:
            the area for every feature; 0.5 for one that is never on.
        """
        block_N = self.block_N.long()
        weight_N = torch.where(
            self.forget_N,
            forget_weight_G[block_N.clamp(max=len(forget_weight_G) - 1)],
            retain_weight_H[block_N.clamp(max=len(retain_weight_H) - 1)],
        ).double()
        n_runs = len(self.feature_R)
        ours_R = torch.bincount(self.run_N, weight_N * self.forget_N, n_runs)
        theirs_R = torch.bincount(self.run_N, weight_N * ~self.forget_N, n_runs)

        def summed(value_R: Tensor) -> Tensor:
            return torch.bincount(self.feature_R, value_R.double(), self.n_features)

        all_ours, all_theirs = float(forget_weight_G @ forget_G), float(retain_weight_H @ retain_H)
        zero_ours_F, zero_theirs_F = all_ours - summed(ours_R), all_theirs - summed(theirs_R)
        runs_F = torch.bincount(self.feature_R, minlength=self.n_features)
        first_F = (runs_F.cumsum(0) - runs_F).clamp(max=max(0, n_runs - 1))
        before_R = theirs_R.cumsum(0) - theirs_R
        below_R = before_R - before_R[first_F][self.feature_R] if n_runs else before_R
        below_R = below_R + theirs_R / 2 + zero_theirs_F[self.feature_R] * (self.sign_R > 0)
        negative_F = summed(theirs_R * (self.sign_R < 0))
        return (summed(ours_R * below_R) + zero_ours_F * (negative_F + zero_theirs_F / 2)) / (all_ours * all_theirs)


def chi_squared(forget_on_F: PerFeatureF, forget: float, retain_on_F: PerFeatureF, retain: float) -> PerFeatureF:
    """Pearson's chi-squared of on/off against forget/retain, without continuity correction: n (ad - bc)^2 / margins.

    Args:
        forget_on_F, retain_on_F: tokens (or rows) of each corpus at which a feature is on.
        forget, retain: how many there are.

    Returns:
        the statistic with one degree of freedom; 0 for a feature that is always or never on.
    """
    on_F = forget_on_F + retain_on_F
    n = forget + retain
    cross_F = forget_on_F * (retain - retain_on_F) - retain_on_F * (forget - forget_on_F)
    margins_F = on_F * (n - on_F) * forget * retain
    return torch.where(margins_F > 0, n * cross_F.square() / margins_F.clamp(min=1e-300), 0.0)
