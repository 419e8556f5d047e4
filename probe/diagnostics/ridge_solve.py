"""Ridge regression of all layers, all penalties and many label sets from one eigendecomposition a layer.

With the centred inputs X = U S V^T the fitted values at penalty a are H y with H = 1/n + U S^2 / (S^2 + a) U^T. What is
predicted for held-out rows B by the fit to the others follows without fitting again:
y_B - prediction_B = (I - H_BB)^-1 (y - H y)_B, with single rows the leave-one-out formula (e / (1 - h)). It is an
identity for the given inputs, the intercept included.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

StatesLND = Float[Tensor, "L N D"]
TargetsNK = Float[Tensor, "N K"]
FoldN = Int[Tensor, " N"]

PENALTIES = tuple(10.0**k for k in range(-2, 7))
# Share of the largest eigenvalue below which a direction is rounding.
_RANK = 1e-10
# Columns (penalties times targets) fitted in one product; with few, reading the vectors costs more than multiplying.
_TOGETHER = 128
# Numbers of several layers solved in one batch; more would leave the cache between one step and the next.
_CACHED = 2**20


@dataclass(frozen=True, eq=False)
class Ridge:
    """Held-out predictions of ridge regression, the penalty chosen for each layer and label set.

    Args:
        penalty_LK: the penalty with the smallest held-out squared error.
        heldout_LNK: prediction of each row by the fit to the rows outside its fold, at that penalty.
        error_LPK: mean held-out squared error at every penalty.
    """

    penalty_LK: Float[Tensor, "L K"]
    heldout_LNK: Float[Tensor, "L N K"] = field(repr=False)
    error_LPK: Float[Tensor, "L P K"] = field(repr=False)


def standardised(hidden_LND: StatesLND) -> StatesLND:
    """Mean 0 and variance 1 along the rows in float64; columns that do not vary become 0.

    Raises:
        ValueError: NaN or infinity.
    """
    wide_LND = hidden_LND.detach().double()
    if not bool(torch.isfinite(wide_LND).all()):
        raise ValueError("the activations hold NaN or infinity; check the model and the site")
    centred_LND = wide_LND - wide_LND.mean(1, keepdim=True)
    spread_L1D = centred_LND.square().mean(1, keepdim=True).sqrt()
    return centred_LND / torch.where(spread_L1D > 0, spread_L1D, torch.ones_like(spread_L1D))


def ridge_heldout(
    hidden_LND: StatesLND, target_NK: TargetsNK, *, penalties: Sequence[float] = PENALTIES, fold_N: FoldN | None = None
) -> Ridge:
    """Held-out predictions for every layer and target column, with the penalty of least held-out squared error.

    Args:
        hidden_LND: inputs of each layer; they are centred here, not scaled (``standardised`` does that).
        target_NK: what to predict, one column a label set.
        penalties: a in |y - Xw - b|^2 + a |w|^2.
        fold_N: the fold in which a row is held out; None holds out single rows (leave-one-out).

    Raises:
        ValueError: as ``heldout_by_penalty``.
    """
    together = max(1, _CACHED // max(1, hidden_LND[0].numel()))
    if together < len(hidden_LND):
        parts = [
            ridge_heldout(part, target_NK, penalties=penalties, fold_N=fold_N) for part in hidden_LND.split(together)
        ]
        columns = zip(*((one.penalty_LK, one.heldout_LNK, one.error_LPK) for one in parts), strict=True)
        return Ridge(*(torch.cat(column) for column in columns))
    wide_NK = target_NK.double()
    best: tuple[Tensor, Tensor, Tensor] | None = None
    errors = []
    paths = heldout_by_penalty(hidden_LND, target_NK, penalties=penalties, fold_N=fold_N)
    for penalty, heldout_LNK in zip(penalties, paths, strict=True):
        error_LK = (wide_NK - heldout_LNK).square().mean(1)
        errors.append(error_LK)
        if best is None:
            best = (error_LK, torch.full_like(error_LK, float(penalty)), heldout_LNK)
            continue
        better_LK = error_LK < best[0]
        best = (
            torch.where(better_LK, error_LK, best[0]),
            best[1].masked_fill(better_LK, float(penalty)),
            torch.where(better_LK[:, None], heldout_LNK, best[2]),
        )
    assert best is not None
    return Ridge(best[1], best[2], torch.stack(errors, 1))


def heldout_by_penalty(
    hidden_LND: StatesLND, target_NK: TargetsNK, *, penalties: Sequence[float], fold_N: FoldN | None = None
) -> Iterator[Float[Tensor, "L N K"]]:
    """The held-out predictions at one penalty after another; nothing but the decomposition is kept in between.

    Args: as ``ridge_heldout``.

    Raises:
        ValueError: NaN or infinity, no positive penalty, targets for another number of rows, or fewer than two folds.
    """
    if len(penalties) == 0 or not min(penalties) > 0:
        raise ValueError(f"penalties must be positive numbers, at least one, got {list(penalties)}")
    n_rows = hidden_LND.shape[1]
    if len(target_NK) != n_rows or (fold_N is not None and len(fold_N) != n_rows):
        raise ValueError(f"{n_rows} activations, {len(target_NK)} targets; give one target and one fold for each row")
    if fold_N is not None and len(fold_N.unique()) < 2:
        raise ValueError("all rows lie in one fold, so nothing is left to fit; give at least two folds")
    left_LNR, square_LR = _decomposed(hidden_LND)
    target_NK = target_NK.double()
    mean_K = target_NK.mean(0)
    along_LRK = left_LNR.mT @ (target_NK - mean_K)
    grid_P = torch.tensor([float(p) for p in penalties], dtype=torch.float64)
    shrink_LRP = square_LR[..., None] / (square_LR[..., None] + grid_P)
    # Leverages of all penalties at once: the squares are read from memory a single time.
    spare_LNP = 1 - 1 / n_rows - left_LNR.square() @ shrink_LRP if fold_N is None else None
    n_targets = target_NK.shape[1]
    together = max(1, _TOGETHER // n_targets)
    for start in range(0, len(grid_P), together):
        part_LRPK = shrink_LRP[..., start : start + together, None] * along_LRK[:, :, None]
        fitted = (left_LNR @ part_LRPK.flatten(2)).unflatten(2, (-1, n_targets))
        for i in range(fitted.shape[2]):
            residual_LNK = target_NK - mean_K - fitted[:, :, i]
            if spare_LNP is not None:
                yield target_NK - residual_LNK / spare_LNP[..., start + i, None]
            else:
                assert fold_N is not None
                yield target_NK - _held_out(residual_LNK, left_LNR, shrink_LRP[..., start + i], fold_N)


def _decomposed(hidden_LND: StatesLND) -> tuple[Tensor, Tensor]:
    """Left singular vectors of the centred inputs and squared singular values; columns of no variance are zero."""
    wide_LND = hidden_LND.detach().double()
    centred_LND = wide_LND - wide_LND.mean(1, keepdim=True)
    n_rows, width = centred_LND.shape[1:]
    wide = n_rows <= width
    # The smaller of the two Gram matrices has the same eigenvalues.
    gram = torch.stack([_gram(hidden_ND if wide else hidden_ND.T) for hidden_ND in centred_LND])
    if not bool(torch.isfinite(gram).all()):
        raise ValueError("the activations hold NaN or infinity; check the model and the site")
    square_LR, vector = torch.linalg.eigh(gram)
    real_LR = square_LR > _RANK * square_LR[:, -1:].clamp(min=torch.finfo(torch.float64).tiny)
    square_LR = torch.where(real_LR, square_LR, torch.zeros_like(square_LR))
    inverse_LR = torch.where(real_LR, square_LR, torch.ones_like(square_LR)).rsqrt() * real_LR
    left_LNR = vector * real_LR[:, None] if wide else centred_LND @ (vector * inverse_LR[:, None])
    return left_LNR, square_LR


def _gram(rows_NM: Tensor) -> Tensor:
    """The lower triangle of A A^T; BLAS's own routine for it, where one can be called, does half the work."""
    if rows_NM.device.type != "cpu":
        return rows_NM @ rows_NM.T
    from scipy.linalg.blas import dsyrk

    array_NM = rows_NM.numpy()
    transposed = array_NM.flags.c_contiguous
    # The routine reads columns first: what lies row by row is given to it transposed, without a copy.
    return torch.from_numpy(dsyrk(1.0, array_NM.T if transposed else array_NM, trans=int(transposed), lower=1))


def _held_out(residual_LNK: Tensor, left_LNR: Tensor, shrink_LR: Tensor, fold_N: Tensor) -> Tensor:
    """(I - H_BB)^-1 e_B for every fold B."""
    n_rows = residual_LNK.shape[1]
    outside_LNK = torch.empty_like(residual_LNK)
    for fold in fold_N.unique():
        rows = (fold_N == fold).nonzero()[:, 0]
        part_LBR = left_LNR[:, rows]
        kept_LBB = torch.eye(len(rows), dtype=part_LBR.dtype) - 1 / n_rows
        kept_LBB = kept_LBB - (part_LBR * shrink_LR[:, None]) @ part_LBR.mT
        outside_LNK[:, rows] = torch.linalg.solve(kept_LBB, residual_LNK[:, rows])
    return outside_LNK
