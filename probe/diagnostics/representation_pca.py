"""Where do forget and retain states lie on the original model's own axes?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import DirectionD, HiddenND
from probe.data import Split
from probe.diagnostics.states import Position, last_prompt_token, pooled_states
from probe.display import Result, ResultTable
from probe.rows import Row
from probe.sites import n_layers

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
    layers: Sequence[int] | None = None,
    *,
    position: Position = last_prompt_token,
    batch_size: int = 32,
) -> dict[int, Axes2]:
    """The first two principal axes of forget and retain states together, per layer (scikit-learn's PCA).

    Args:
        model: the original model. Axes fitted to each model anew would turn and could not be compared.
        split: both sides enter with the weight of their rows.
        layers: block indices; all unless given.
        position: makes one vector of a row.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a layer outside the model, or hidden states that are not finite.

    >>> axes = probe.fit_axes(s.original, s.split, [4])
    >>> axes[4].axis_2D.shape
    torch.Size([2, 128])
    """
    from sklearn.decomposition import PCA

    layers = range(n_layers(model)) if layers is None else layers
    sides = [pooled_states(model, batch, layers, position, batch_size) for batch in (split.forget, split.retain)]
    found = {}
    for layer in layers:
        pca = PCA(n_components=2, svd_solver="full").fit(torch.cat([side[layer] for side in sides]).numpy())
        first, second = pca.explained_variance_ratio_.tolist()
        axis_2D = torch.from_numpy(pca.components_.copy())
        found[layer] = Axes2(torch.from_numpy(pca.mean_.copy()), axis_2D, (first, second), position)
    return found


@dataclass(frozen=True, eq=False)
class Projections(Result):
    """Where the states of one model lie.

    Args:
        axes: by layer.
        points: by layer; ``found[layer]`` is one of them.
    """

    axes: Mapping[int, Axes2]
    points: Mapping[int, Projected]

    def __getitem__(self, layer: int) -> Projected:
        return self.points[layer]

    def rows(self, name: str = "model") -> list[Row]:
        """Both coordinates of every row (``item``) of either side, and what share of the variance the axes explain."""
        rows = []
        for layer, axes in self.axes.items():
            rows += [Row(name, "pca", f"explained{k}", share, layer=layer) for k, share in enumerate(axes.explained, 1)]
        for layer, both in self.points.items():
            for on, point_N2 in (("forget", both.forget_N2), ("retain", both.retain_N2)):
                for item, point in enumerate(point_N2.tolist()):
                    rows += [Row(name, "pca", f"pc{k}", x, on, layer=layer, item=item) for k, x in enumerate(point, 1)]
        return rows

    def table(self) -> ResultTable:
        """How far apart the sides' means lie along both axes."""
        gaps = [(both.forget_N2.mean(0) - both.retain_N2.mean(0)).tolist() for both in self.points.values()]
        columns = {f"{side} axis": [gap[k] for gap in gaps] for k, side in enumerate(("first", "second"))}
        return ResultTable({"layer": self.points, **columns}, note="mean of forget less mean of retain states")


def representation_pca(
    model: nn.Module,
    split: Split,
    *,
    axes: Mapping[int, Axes2] | None = None,
    layers: Sequence[int] | None = None,
    batch_size: int = 32,
) -> Projections:
    """States of a model of either side on two principal axes a layer.

    Args:
        model: measured in eval mode and left as it was.
        split: the rows to place.
        axes: by layer, of any model of the same width: fit them on the original (``fit_axes``) to compare models;
            the model's own unless given.
        layers: where axes are fitted; all unless given.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no axes, axes of different positions, or a layer outside the model.

    >>> axes = probe.fit_axes(s.original, s.split, [4])
    >>> probe.representation_pca(s.retrained, s.split, axes=axes)[4].forget_N2.shape
    torch.Size([20, 2])
    """
    if axes is None:
        axes = fit_axes(model, split, layers, batch_size=batch_size)
    positions = {one.position for one in axes.values()}
    if len(positions) != 1:
        raise ValueError(f"expected axes fitted at one position, got {len(positions)} positions; project them apart")
    (position,) = positions
    forget, retain = (
        pooled_states(model, batch, tuple(axes), position, batch_size) for batch in (split.forget, split.retain)
    )
    return Projections(axes, {layer: Projected(one(forget[layer]), one(retain[layer])) for layer, one in axes.items()})
