"""Directions and subspaces that stand for a concept; the difference of means is in ``steering``."""

import warnings

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from probe.axes import DirectionD, HiddenND
from probe.interventions.activations import OtherND
from probe.interventions.probing import fit_probe
from probe.interventions.projection import Erase

# M, not N: that there are as many labels as activations is checked, and said in words.
LabelsM = Int[Tensor, " M"] | Bool[Tensor, " M"]
OneHotMK = Int[Tensor, "M K"] | Bool[Tensor, "M K"] | Float[Tensor, "M K"]

# Correlations below this are rounding, not signal: the inputs are whitened in float64.
_NOISE = 1e-8


def principal_direction(difference_ND: HiddenND) -> DirectionD:
    """The unit v that maximises mean((h_with - h_without) . v)^2 over pairs of prompts.

    Representation reading (Zou et al., arXiv 2310.01405) takes the first principal component of such differences.
    Here they are not centred: all have the same order, so their mean belongs to the signal, and centring would
    remove just that. The sign is such that the mean difference projects positively.

    Args:
        difference_ND: h(with the concept) - h(without it), one row a pair, from one site.

    Returns:
        v, of length one, in the dtype of the differences (float32 for half precision).

    Raises:
        ValueError: no pair, NaN or infinity, differences that are all zero, two components equally large (no first
            one), or a mean difference orthogonal to v (no sign).

    >>> tuple(probe.principal_direction(torch.randn(20, 8)).shape)
    (8,)
    """
    if len(difference_ND) == 0:
        raise ValueError("there are no pairs; a direction needs at least one difference")
    wide_ND = _finite(difference_ND, "the differences")
    _, size_K, right_KD = torch.linalg.svd(wide_ND, full_matrices=False)
    if not float(size_K[0]) > 0:
        raise ValueError("all differences are zero: both prompts of every pair give the same activations")
    if len(size_K) > 1 and float(size_K[1]) > (1 - 1e-9) * float(size_K[0]):
        raise ValueError("two components of the differences are equally large, so there is no first one; add pairs")
    unit_D = right_KD[0]
    along = float(wide_ND.mean(0) @ unit_D)
    if abs(along) < _NOISE * float(size_K[0]) / len(wide_ND) ** 0.5:
        raise ValueError(
            "the mean difference has no part along the first component, so its sign is open; check that every "
            "difference is taken in the same order (with minus without)"
        )
    return (unit_D if along > 0 else -unit_D).to(_kept(difference_ND))


def probe_direction(forget_ND: HiddenND, retain_ND: OtherND) -> DirectionD:
    """The unit direction along which a logistic probe separates the classes, pointing to ``forget``.

    Args:
        forget_ND: activations of the class "forget".
        retain_ND: activations of the other class.

    Returns:
        d / |d| with d from ``probing.fit_probe``.

    Raises:
        ValueError: as ``fit_probe``.

    >>> tuple(probe.probe_direction(torch.randn(20, 8) + 1, torch.randn(20, 8)).shape)
    (8,)
    """
    direction_D = fit_probe(forget_ND, retain_ND).direction_D
    wide_D = direction_D.double()
    return (wide_D / wide_D.norm()).to(_kept(forget_ND))


def leace(hidden_ND: HiddenND, labels: LabelsM | OneHotMK, *, shrinkage: float = 0.0) -> Erase:
    """r(x) = x - W^+ P W (x - mu), after which no linear classifier can read the label (LEACE, arXiv 2306.03819).

    W = Sigma_xx^(-1/2) and P projects orthogonally onto the columns of W Sigma_xz, z being the one-hot label. Among
    all affine maps that give every class the same mean, this one moves the activations least in mean square, in
    every norm x^T M x. Its rank is the number of classes less one, or lower where class means lie in a plane.

    Args:
        hidden_ND: activations, one row a token.
        labels: the class of each row, numbers from 0 or one-hot rows.
        shrinkage: s in (1 - s) Sigma_xx + s tr(Sigma_xx) / D I. Class means coincide for every s; with s > 0 the
            map is no longer the least one for these rows but depends less on directions of little variance.

    Returns:
        the eraser, in the dtype of the activations (float32 for half precision).

    Raises:
        ValueError: labels that do not match the rows, fewer than two classes, a class without rows, NaN or
            infinity, class means that coincide already, or a shrinkage outside 0..1.

    >>> hidden, labels = torch.randn(100, 8), (torch.arange(100) < 50).long()
    >>> erase = probe.leace(hidden + labels[:, None], labels)
    >>> tuple(erase(torch.randn(2, 3, 8)).shape)
    (2, 3, 8)
    """
    if not 0 <= shrinkage <= 1:
        raise ValueError(f"shrinkage must lie between 0 and 1, got {shrinkage}")
    label_NK = _one_hot(labels, len(hidden_ND))
    wide_ND = _finite(hidden_ND, "the activations")
    n_rows, width = wide_ND.shape
    if n_rows <= width and shrinkage == 0:
        warnings.warn(
            f"{n_rows} activations of width {width} leave their covariance singular: the eraser fits these rows and "
            "not their distribution; give more rows than the width, or a shrinkage above 0",
            stacklevel=2,
        )
    mean_D = wide_ND.mean(0)
    centred_ND, z_NK = wide_ND - mean_D, label_NK - label_NK.mean(0)
    covariance_DD = centred_ND.T @ centred_ND / n_rows
    level = covariance_DD.diagonal().mean() * torch.eye(width, dtype=wide_ND.dtype, device=wide_ND.device)
    whiten_DD, colour_DD = _roots((1 - shrinkage) * covariance_DD + shrinkage * level)
    # With z of unit variance too, the singular values are correlations, so "nothing to read" has a scale.
    cross_DK = centred_ND.T @ (z_NK / z_NK.std(0, correction=0)) / n_rows
    basis_DK, size_K, _ = torch.linalg.svd(whiten_DD @ cross_DK, full_matrices=False)
    basis_DK = basis_DK[:, size_K > _NOISE]
    if basis_DK.shape[1] == 0:
        raise ValueError("all classes have the same mean already; there is nothing to erase")
    left_DK, right_KD = colour_DD @ basis_DK, basis_DK.T @ whiten_DD
    kept = _kept(hidden_ND)
    return Erase(left_DK.to(kept), right_KD.to(kept), mean_D.to(kept))


def _roots(covariance_DD: Tensor) -> tuple[Tensor, Tensor]:
    """(Sigma^(-1/2), Sigma^(1/2)), both zero where Sigma is zero but for rounding."""
    value_D, vector_DD = torch.linalg.eigh(covariance_DD)
    real_D = value_D > len(value_D) * torch.finfo(value_D.dtype).eps * value_D[-1]
    root_D = torch.where(real_D, value_D, torch.zeros_like(value_D)).sqrt()
    inverse_D = torch.where(real_D, 1 / root_D, torch.zeros_like(root_D))
    return vector_DD * inverse_D @ vector_DD.T, vector_DD * root_D @ vector_DD.T


def _one_hot(labels: Tensor, n_rows: int) -> Tensor:
    """One-hot labels in float64."""
    if len(labels) != n_rows:
        raise ValueError(f"{n_rows} activations and {len(labels)} labels; give one label a row")
    if n_rows == 0:
        raise ValueError("there are no activations; an eraser needs rows of at least two classes")
    if labels.ndim == 1:
        if int(labels.min()) < 0:
            raise ValueError(f"label {int(labels.min())} is negative; classes are numbered from 0")
        labels = torch.nn.functional.one_hot(labels.long())
    onehot_NK = labels.double()
    if not bool(((onehot_NK == 0) | (onehot_NK == 1)).all()) or not bool((onehot_NK.sum(1) == 1).all()):
        raise ValueError("two-dimensional labels must be one-hot: a single 1 in every row, 0 elsewhere")
    empty = (onehot_NK.sum(0) == 0).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"class {empty[0]} of 0..{onehot_NK.shape[1] - 1} has no activations; drop it or number anew")
    if onehot_NK.shape[1] < 2:
        raise ValueError("all activations have one label; an eraser needs at least two classes")
    return onehot_NK


def _finite(hidden_ND: HiddenND, name: str) -> Tensor:
    """The activations in float64."""
    wide_ND = hidden_ND.detach().double()
    broken = int((~torch.isfinite(wide_ND)).any(1).sum())
    if broken:
        raise ValueError(f"{broken} rows of {name} hold NaN or infinity; check the model and the site")
    return wide_ND


def _kept(hidden_ND: HiddenND) -> torch.dtype:
    return torch.promote_types(hidden_ND.dtype, torch.float32)
