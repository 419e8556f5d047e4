"""Where do forget and retain states lie on the original model's own axes?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import DirectionD, HiddenND
from probe.data import Split
from probe.diagnostics.states import Position, last_prompt_token, pooled_states

# Both sides meet in one value and need not have as many rows: the first axis is not bound.
PointsN2 = Float[Tensor, "_ 2"]


@dataclass(frozen=True, eq=False)
class Axes2:
    """Two principal axes of one layer.

    Args:
        mean_D: what is subtracted first.
        axis_2D: the axes, of length one.
        explained: share of the variance along each, on the rows they were fitted to.
        position: how a row became one vector.
    """

    mean_D: DirectionD = field(repr=False)
    axis_2D: Float[Tensor, "2 D"] = field(repr=False)
    explained: tuple[float, float]
    position: Position = field(repr=False)

    def __call__(self, hidden_ND: HiddenND) -> PointsN2:
        return (hidden_ND - self.mean_D) @ self.axis_2D.T


@dataclass(frozen=True, eq=False)
class Projected:
    """Coordinates of both sides on two axes, in activation units."""

    forget_N2: PointsN2 = field(repr=False)
    retain_N2: PointsN2 = field(repr=False)


def fit_axes(
    model: nn.Module,
    split: Split,
    layers: Sequence[int],
    *,
    position: Position = last_prompt_token,
    batch_size: int = 32,
) -> dict[int, Axes2]:
    """The first two principal axes of forget and retain states together, per layer (scikit-learn's PCA).

    Args:
        model: the original model. Axes fitted to each model anew would turn and could not be compared.
        split: both sides enter with the weight of their rows.
        layers: block indices.
        position: makes one vector of a row.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a layer outside the model, or hidden states that are not finite.
    """
    from sklearn.decomposition import PCA

    sides = [pooled_states(model, batch, layers, position, batch_size) for batch in (split.forget, split.retain)]
    found = {}
    for layer in layers:
        pca = PCA(n_components=2, svd_solver="full").fit(torch.cat([side[layer] for side in sides]).numpy())
        first, second = pca.explained_variance_ratio_.tolist()
        axis_2D = torch.from_numpy(pca.components_.copy())
        found[layer] = Axes2(torch.from_numpy(pca.mean_.copy()), axis_2D, (first, second), position)
    return found


def project(model: nn.Module, split: Split, axes: Mapping[int, Axes2], *, batch_size: int = 32) -> dict[int, Projected]:
    """States of any model of the same width on axes that ``fit_axes`` made.

    Args:
        model: measured in eval mode and left as it was.
        split: the rows to place.
        axes: by layer.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no axes, axes of different positions, or a layer outside the model.
    """
    positions = {one.position for one in axes.values()}
    if len(positions) != 1:
        raise ValueError(f"expected axes fitted at one position, got {len(positions)} positions; project them apart")
    (position,) = positions
    forget, retain = (
        pooled_states(model, batch, tuple(axes), position, batch_size) for batch in (split.forget, split.retain)
    )
    return {layer: Projected(one(forget[layer]), one(retain[layer])) for layer, one in axes.items()}
