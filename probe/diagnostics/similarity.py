"""How alike are the hidden states of two models on the same rows, turned, shifted and scaled as they may be?"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import PerLayerL

# Widths may differ between models; that rows do not is checked, and said in words.
OneLND = Float[Tensor, "L N D"]
OtherLND = Float[Tensor, "K M E"]


@dataclass(frozen=True, eq=False)
class Similarity:
    """Two models' states on the same rows, per layer.

    Args:
        cka_L: linear CKA (Kornblith et al., arXiv 1905.00414), in [0, 1]; biased towards 1 with few rows.
        debiased_cka_L: with the unbiased HSIC estimate (Song et al., JMLR 2012); may lie below 0.
        procrustes_L: orthogonal Procrustes distance min_R |A - B R|_F^2 = 2 - 2 |A^T B|_* of centred states of
            Frobenius norm 1 (Ding et al., arXiv 2108.01661), in [0, 2].
        norm_ratio_L: mean norm of the first model's states over the second's.
        n: rows. With no more rows than dimensions, plain CKA and Procrustes can be near 1 and 0 for unrelated states.
    """

    cka_L: PerLayerL
    debiased_cka_L: PerLayerL
    procrustes_L: PerLayerL
    norm_ratio_L: PerLayerL
    n: int


@dataclass(frozen=True, eq=False)
class Spread:
    """How many directions one model's states use, per layer, from the singular values s of the centred states.

    Args:
        effective_rank_L: exp(entropy of s / sum s) (Roy and Vetterli, 2007).
        participation_L: participation ratio (sum s^2)^2 / sum s^4.
        norm_L: mean norm of the states, not centred.
        growth_L: norm over that of the layer before; 1 for the first.
        n: rows; no rank exceeds n - 1.
    """

    effective_rank_L: PerLayerL
    participation_L: PerLayerL
    norm_L: PerLayerL
    growth_L: PerLayerL
    n: int


def similarity(one_LND: OneLND, other_LND: OtherLND) -> Similarity:
    """CKA, Procrustes distance and ratio of norms, layer by layer.

    Args:
        one_LND: states of one model, a side of ``split_states``.
        other_LND: states of the other (the original, or the retrained one) on the same rows in the same order.

    Returns:
        NaN where a side's rows all coincide.

    Raises:
        ValueError: other rows or layers, or fewer than four rows (the unbiased estimate divides by n - 3).
    """
    if one_LND.shape[:2] != other_LND.shape[:2]:
        raise ValueError(
            f"states of {tuple(one_LND.shape[:2])} and {tuple(other_LND.shape[:2])} layers and rows cannot be "
            "compared; read both models on the same rows at the same layers"
        )
    n = one_LND.shape[1]
    if n < 4:
        raise ValueError(f"debiased CKA needs at least four rows, got {n}")
    a_LND, b_LND = _centred(one_LND), _centred(other_LND)
    gram_a, gram_b = a_LND @ a_LND.mT, b_LND @ b_LND.mT
    cka_L = (gram_a * gram_b).sum((1, 2)) / (_frobenius(gram_a) * _frobenius(gram_b))
    raw_a, raw_b = (_zero_diagonal(h_LND @ h_LND.mT) for h_LND in (a_LND, b_LND))
    debiased_L = _hsic(raw_a, raw_b) / (_hsic(raw_a, raw_a) * _hsic(raw_b, raw_b)).sqrt()
    nuclear_L = torch.linalg.svdvals(a_LND.mT @ b_LND).sum(1) / (_frobenius(a_LND) * _frobenius(b_LND))
    ratio_L = one_LND.norm(dim=2).mean(1) / other_LND.norm(dim=2).mean(1)
    return Similarity(cka_L, debiased_L, 2 - 2 * nuclear_L, ratio_L, n)


def spread(hidden_LND: OneLND) -> Spread:
    """Effective rank, participation ratio and norms of one model's states.

    Args:
        hidden_LND: states of a side of ``split_states``, all layers in order.

    Returns:
        rank 0 and participation NaN where all rows coincide.

    Raises:
        ValueError: fewer than two rows.
    """
    n = hidden_LND.shape[1]
    if n < 2:
        raise ValueError(f"a spread needs at least two rows, got {n}")
    size_LK = torch.linalg.svdvals(_centred(hidden_LND))
    share_LK = size_LK / size_LK.sum(1, keepdim=True).clamp(min=torch.finfo(size_LK.dtype).tiny)
    rank_L = torch.special.entr(share_LK).sum(1).exp() * (size_LK[:, 0] > 0)
    square_LK = size_LK.square()
    norm_L = hidden_LND.norm(dim=2).mean(1)
    growth_L = torch.cat([torch.ones_like(norm_L[:1]), norm_L[1:] / norm_L[:-1]])
    return Spread(rank_L, square_LK.sum(1).square() / square_LK.square().sum(1), norm_L, growth_L, n)


def _centred(hidden_LND: Tensor) -> Tensor:
    wide_LND = hidden_LND.double()
    if not bool(torch.isfinite(wide_LND).all()):
        raise ValueError("the activations hold NaN or infinity; check the model and the site")
    return wide_LND - wide_LND.mean(1, keepdim=True)


def _frobenius(matrix: Tensor) -> Tensor:
    return matrix.square().sum((1, 2)).sqrt()


def _zero_diagonal(gram_LNN: Tensor) -> Tensor:
    return gram_LNN - torch.diag_embed(gram_LNN.diagonal(dim1=1, dim2=2))


def _hsic(k_LNN: Tensor, l_LNN: Tensor) -> Tensor:
    """The unbiased estimate; both diagonals are zero."""
    n = k_LNN.shape[1]
    trace_L = (k_LNN * l_LNN.mT).sum((1, 2))
    sums_L = k_LNN.sum((1, 2)) * l_LNN.sum((1, 2)) / ((n - 1) * (n - 2))
    cross_L = 2 * (k_LNN.sum(1) * l_LNN.sum(2)).sum(1) / (n - 2)
    return (trace_L + sums_L - cross_L) / (n * (n - 3))
