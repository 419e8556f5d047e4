"""How alike are the hidden states of two models on the same rows, turned, shifted and scaled as they may be?"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.data import Batch
from probe.diagnostics.sides import of_model, of_pair
from probe.diagnostics.states import Position, last_prompt_token, stacked_states
from probe.display import Result, ResultTable
from probe.rows import Row, over_layers

# Widths may differ between models; that rows do not is checked, and said in words.
OneLND = Float[Tensor, "L N D"]
OtherLND = Float[Tensor, "K M E"]


@dataclass(frozen=True, eq=False)
class Similarity(Result):
    """Two models' states on the same rows, per layer.

    Args:
        layers: block indices, in the order of the arrays.
        cka_L: linear CKA (Kornblith et al., arXiv 1905.00414), in [0, 1]; biased towards 1 with few rows.
        debiased_cka_L: with the unbiased HSIC estimate (Song et al., JMLR 2012); may lie below 0.
        procrustes_L: orthogonal Procrustes distance min_R |A - B R|_F^2 = 2 - 2 |A^T B|_* of centred states of
            Frobenius norm 1 (Ding et al., arXiv 2108.01661), in [0, 2].
        norm_ratio_L: mean norm of the first (unlearned) model's states over the second's (original).
        n: rows. With no more rows than dimensions, plain CKA and Procrustes can be near 1 and 0 for unrelated states.
    """

    layers: tuple[int, ...]
    cka_L: PerLayerL
    debiased_cka_L: PerLayerL
    procrustes_L: PerLayerL
    norm_ratio_L: PerLayerL
    n: int

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Every measure at every layer; ``on`` says on whose rows."""
        return _rows(self, name, "similarity", on)

    def table(self) -> ResultTable:
        return _table(self, f"likeness of two models' states on {self.n} rows")


@dataclass(frozen=True, eq=False)
class Spread(Result):
    """How many directions one model's states use, per layer, from the singular values s of the centred states.

    Args:
        layers: block indices, in the order of the arrays.
        effective_rank_L: exp(entropy of s / sum s) (Roy and Vetterli, 2007).
        participation_L: participation ratio (sum s^2)^2 / sum s^4.
        norm_L: mean norm of the states, not centred.
        growth_L: norm over that of the layer before; 1 for the first.
        n: rows; no rank exceeds n - 1.
    """

    layers: tuple[int, ...]
    effective_rank_L: PerLayerL
    participation_L: PerLayerL
    norm_L: PerLayerL
    growth_L: PerLayerL
    n: int

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Every measure at every layer; ``on`` says on whose rows."""
        return _rows(self, name, "spread", on)

    def table(self) -> ResultTable:
        return _table(self, f"directions that the states of {self.n} rows use")


@of_pair
def similarity(
    original: nn.Module,
    unlearned: nn.Module,
    batch: Batch,
    *,
    layers: Sequence[int] | None = None,
    position: Position = last_prompt_token,
    batch_size: int = 32,
) -> Similarity:
    """CKA, Procrustes distance and ratio of norms of two models' states on the same rows, layer by layer.

    Args:
        original, unlearned: measured in eval mode and left as they were; a retrained model may stand for either.
        batch: the rows; a split gives a result for each side.
        layers: blocks to read; None reads all.
        position: makes one vector of a row.
        batch_size: rows per forward pass.

    Returns:
        the unlearned model's states against the original's; NaN where all rows of a model coincide.

    Raises:
        ValueError: another depth, fewer than four rows, a layer outside the models, or NaN.

    >>> found = probe.similarity(s.original, s.retrained, s.split)
    >>> bool(found["retain"].cka_L[0] > 0.5)
    True
    """
    both = [stacked_states(model, batch, layers, position, batch_size) for model in (unlearned, original)]
    return states_similarity(both[0], both[1], layers)


@of_model
def spread(
    model: nn.Module,
    batch: Batch,
    *,
    layers: Sequence[int] | None = None,
    position: Position = last_prompt_token,
    batch_size: int = 32,
) -> Spread:
    """Effective rank, participation ratio and norms of a model's states, layer by layer.

    Args:
        model: measured in eval mode and left as it was.
        batch, layers, position, batch_size: as in ``similarity``.

    Raises:
        ValueError: fewer than two rows, a layer outside the model, or NaN.

    >>> probe.spread(s.original, s.split.forget).effective_rank_L.shape
    torch.Size([8])
    """
    return states_spread(stacked_states(model, batch, layers, position, batch_size), layers)


def states_similarity(one_LND: OneLND, other_LND: OtherLND, layers: Sequence[int] | None = None) -> Similarity:
    """CKA, Procrustes distance and ratio of norms, layer by layer.

    Args:
        one_LND: states of one model, a side of ``split_states``.
        other_LND: states of the other (the original, or the retrained one) on the same rows in the same order.
        layers: which they are; 0, 1, ... unless given.

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
    return Similarity(_numbered(layers, one_LND), cka_L, debiased_L, 2 - 2 * nuclear_L, ratio_L, n)


def states_spread(hidden_LND: OneLND, layers: Sequence[int] | None = None) -> Spread:
    """Effective rank, participation ratio and norms of one model's states.

    Args:
        hidden_LND: states of a side of ``split_states``, all layers in order.
        layers: which they are; 0, 1, ... unless given.

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
    return Spread(
        _numbered(layers, hidden_LND),
        rank_L,
        square_LK.sum(1).square() / square_LK.square().sum(1),
        norm_L,
        growth_L,
        n,
    )


def _numbered(layers: Sequence[int] | None, hidden_LND: Tensor) -> tuple[int, ...]:
    return tuple(range(len(hidden_LND)) if layers is None else layers)


def _columns(found: Any) -> dict[str, PerLayerL]:
    """The arrays of a result, by what they are called in words."""
    named = {field.name: getattr(found, field.name) for field in fields(found) if field.name.endswith("_L")}
    return {name.removesuffix("_L").replace("_", " "): value_L for name, value_L in named.items()}


def _rows(found: Any, name: str, diagnostic: str, on: str) -> list[Row]:
    rows = []
    for quantity, value_L in _columns(found).items():
        rows += over_layers(name, diagnostic, quantity, found.layers, value_L, on, n=found.n)
    return rows


def _table(found: Any, note: str) -> ResultTable:
    return ResultTable({"layer": found.layers, **_columns(found)}, note=note)


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
