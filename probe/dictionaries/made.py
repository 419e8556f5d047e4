"""Dictionaries that nobody trained: what an SAE has to beat (random, principal components, neurons), and oracles."""

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import DirectionD, HiddenND
from probe.dictionaries.autoencoder import Autoencoder
from probe.dictionaries.coding import Linear, Relu, TopKCoding

RowsFD = Float[Tensor, "F D"]


def rows_dictionary(rows_FD: RowsFD, *, active: int, mean_D: DirectionD | None = None) -> Autoencoder:
    """Given rows as a dictionary of matched sparsity: f = the ``active`` largest of (h - mean) @ unit rows, if above 0.

    One unit of a feature adds its unit row, and f is the component of h along it, so setting one feature to 0 takes
    that component out. Rows overlap: several of them together explain some variance twice, which ``fvu`` shows.

    Args:
        rows_FD: one row a feature, of any length: ``down_proj.weight.T`` for the neurons of an MLP, say.
        active: features that may be on at a token; that of the SAE it is held against.
        mean_D: subtracted before encoding, added after; the mean of the states, say.

    Raises:
        ValueError: a row without length or with NaN, or more active features than rows.
    """
    length_F = rows_FD.norm(dim=1)
    if not bool((torch.isfinite(length_F) & (length_F > 0)).all()):
        raise ValueError(f"row {int((~(length_F > 0)).nonzero()[0])} has no length or is not finite; leave it out")
    if not 1 <= active <= len(rows_FD):
        raise ValueError(f"active must lie in 1..{len(rows_FD)}, the number of rows; got {active}")
    unit_FD = rows_FD.detach() / length_F.detach()[:, None]
    mean_D = _mean(unit_FD, mean_D)
    code = Linear(unit_FD.T.contiguous(), mean_D, TopKCoding(unit_FD.new_zeros(len(unit_FD)), active))
    return Autoencoder(code, unit_FD, mean_D, metadata={"architecture": "topk", "made": "rows"})


def random_dictionary(
    width: int, n_features: int, *, active: int, seed: int, mean_D: DirectionD | None = None
) -> Autoencoder:
    """Unit rows drawn evenly from the sphere, with the sparsity of the SAE it is the control of.

    Such dictionaries match trained SAEs in several published uses (arXiv 2602.14111); what they achieve is not the
    SAE's doing.

    Args:
        width: of the hidden states.
        n_features: that of the SAE.
        active: features on at a token; ``probe.dictionaries.fit.mean_active`` of the SAE, rounded.
        seed: of the draw.
        mean_D: as for ``rows_dictionary``.

    >>> tuple(probe.random_dictionary(128, 256, active=16, seed=0).directions_FD.shape)
    (256, 128)
    """
    if width < 1 or n_features < 1:
        raise ValueError(f"width and n_features must be positive, got {width} and {n_features}")
    rows_FD = torch.randn(n_features, width, generator=torch.Generator().manual_seed(seed))
    made = rows_dictionary(rows_FD.to(mean_D) if mean_D is not None else rows_FD, active=active, mean_D=mean_D)
    return _called(made, "random")


def pca_dictionary(hidden_ND: HiddenND, n_components: int) -> Autoencoder:
    """Principal components of some states about their mean, each in both directions: feature j + n is minus feature j.

    Raises:
        ValueError: more components than the states have.

    >>> tuple(probe.pca_dictionary(torch.randn(50, 8), n_components=4).directions_FD.shape)
    (8, 8)
    """
    mean_D = hidden_ND.mean(0)
    most = min(len(hidden_ND) - 1, hidden_ND.shape[1])
    if not 1 <= n_components <= most:
        raise ValueError(f"{len(hidden_ND)} states of width {hidden_ND.shape[1]} have 1..{most} principal components")
    rows_KD = torch.linalg.svd((hidden_ND - mean_D).detach(), full_matrices=False).Vh[:n_components]
    return _called(_signed(rows_KD, rows_KD.T, mean_D), "principal components")


def neuron_dictionary(width: int, *, mean_D: DirectionD | None = None) -> Autoencoder:
    """The axes of the states themselves, each in both directions: feature j + width is minus feature j.

    For the neurons inside an MLP, which are more than the states are wide, see ``rows_dictionary``.

    >>> tuple(probe.neuron_dictionary(128).directions_FD.shape)
    (256, 128)
    """
    if width < 1:
        raise ValueError(f"width must be positive, got {width}")
    axes_DD = torch.eye(width) if mean_D is None else torch.eye(width).to(mean_D)
    return _called(_signed(axes_DD, axes_DD, _mean(axes_DD, mean_D)), "neurons")


def oracle_dictionary(
    directions_KD: Float[Tensor, "K D"], *, complete: bool, mean_D: DirectionD | None = None
) -> Autoencoder:
    """Directions known to matter, each in both signs: feature j is direction j, feature j + n its opposite.

    f is the coordinate of h - mean in the basis that the unit directions and, with ``complete``, an orthonormal
    complement of them form: h is reconstructed then, and without it what lies in the directions' span.

    Args:
        directions_KD: linearly independent, of any length.
        complete: whether to add the complement, so that n = width and nothing is left unexplained.
        mean_D: subtracted before encoding, added after.

    Raises:
        ValueError: directions that depend on each other, or are not finite.

    >>> d = probe.direction(s.original, s.split, probe.Site(4))
    >>> tuple(probe.oracle_dictionary(d[None], complete=False).directions_FD.shape)
    (2, 128)
    """
    given_KD = directions_KD.detach()
    unit_KD = given_KD / given_KD.norm(dim=1, keepdim=True)
    if not bool(torch.isfinite(unit_KD).all()):
        raise ValueError("a direction has no length or is not finite")
    _, size_K, basis_DD = torch.linalg.svd(unit_KD)
    if len(unit_KD) > unit_KD.shape[1] or bool(size_K[-1] < 1e-4 * size_K[0]):
        raise ValueError(f"the {len(unit_KD)} directions are not linearly independent; leave out those that repeat")
    rows_ND = torch.cat([unit_KD, basis_DD[len(unit_KD) :]]) if complete else unit_KD
    return _called(_signed(rows_ND, torch.linalg.pinv(rows_ND), _mean(rows_ND, mean_D)), "oracle")


def _signed(rows_KD: Tensor, encoder_DK: Tensor, mean_D: Tensor) -> Autoencoder:
    rows_FD = torch.cat([rows_KD, -rows_KD])
    code = Linear(torch.cat([encoder_DK, -encoder_DK], dim=1), mean_D, Relu(rows_FD.new_zeros(len(rows_FD))))
    return Autoencoder(code, rows_FD, mean_D, metadata={"architecture": "standard"})


def _mean(rows_FD: Tensor, mean_D: Tensor | None) -> Tensor:
    if mean_D is None:
        return rows_FD.new_zeros(rows_FD.shape[1])
    if mean_D.shape != (rows_FD.shape[1],) or not bool(torch.isfinite(mean_D).all()):
        raise ValueError(f"mean_D must be {rows_FD.shape[1]} finite numbers, got shape {tuple(mean_D.shape)}")
    return mean_D.detach().to(rows_FD)


def _called(made: Autoencoder, name: str) -> Autoencoder:
    return Autoencoder(made.encoder, made.directions_FD, made.bias_E, metadata={**made.metadata, "made": name})
