"""Do forget, retain and unseen rows lie apart, and how far?"""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.data import Batch, Split
from probe.diagnostics.split_states import SplitStates, StatesLND, split_states
from probe.display import Result, ResultTable
from probe.rows import Row, over_layers


@dataclass(frozen=True, eq=False)
class Pair:
    """How two sides lie to each other, per layer.

    Args:
        layers: block indices, in the order of the arrays.
        sides: names of the two sides.
        distance_L: |mean_a - mean_b|, in activation units.
        relative_L: the same over the root mean square distance of rows from their own mean, both sides weighted
            alike; a layer's scale falls out. NaN where all rows of each side coincide.
        silhouette_L: scikit-learn's silhouette score (Euclidean), in [-1, 1]; below 0 rows lie nearer to the other
            side than to their own.
        fisher_L: Fisher ratio |mean_a - mean_b|^2 / (tr Sigma_a + tr Sigma_b), the covariances over N - 1.
    """

    layers: tuple[int, ...]
    sides: tuple[str, str]
    distance_L: PerLayerL
    relative_L: PerLayerL
    silhouette_L: PerLayerL
    fisher_L: PerLayerL


@dataclass(frozen=True, eq=False)
class Clusters(Result):
    """How each two sides lie to each other.

    Args:
        pairs: by the names of both sides: ("forget", "retain") and, with unseen rows, ("forget", "unseen") and
            ("retain", "unseen").
    """

    pairs: Mapping[tuple[str, str], Pair]

    def __getitem__(self, sides: tuple[str, str]) -> Pair:
        return self.pairs[sides]

    def rows(self, name: str = "model") -> list[Row]:
        """Every measure of every pair at every layer; ``on`` names the pair."""
        rows = []
        for sides, pair in self.pairs.items():
            for quantity in ("distance", "relative", "silhouette", "fisher"):
                value_L = getattr(pair, f"{quantity}_L")
                rows += over_layers(name, "clusters", quantity, pair.layers, value_L, " and ".join(sides))
        return rows

    def table(self) -> ResultTable:
        columns: dict[str, Any] = {"layer": next(iter(self.pairs.values())).layers}
        for sides, pair in self.pairs.items():
            columns |= {
                f"{' and '.join(sides)}: {one}": getattr(pair, f"{one}_L") for one in ("relative", "silhouette")
            }
        return ResultTable(columns)


def clusters(
    model: nn.Module,
    split: Split,
    *,
    unseen: Batch | None = None,
    states: SplitStates | None = None,
    batch_size: int = 32,
) -> Clusters:
    """Centroid distance, silhouette and Fisher ratio of each pair of sides, per layer.

    Suppressed forget rows would form a cluster of their own; forgotten ones would merge with unseen rows (claim of
    arXiv 2506.09227).

    Args:
        model: measured in eval mode and left as it was.
        split: both sides.
        unseen: rows about things the model was never trained on, for the pairs that need them.
        states: what ``split_states`` gave of these rows, where others need it too; read here unless given.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a side with fewer than two rows, with the counts.

    >>> found = probe.clusters(s.original, s.split)
    >>> found["forget", "retain"].silhouette_L.shape
    torch.Size([8])
    """
    states = split_states(model, split, unseen=unseen, batch_size=batch_size) if states is None else states
    counts = {name: side_LND.shape[1] for name, side_LND in states.sides.items()}
    if min(counts.values()) < 2:
        raise ValueError(f"every side needs at least two rows to have a spread, got {counts}")
    return Clusters(
        {
            pair: _pair(states.layers, pair, states.sides[pair[0]], states.sides[pair[1]])
            for pair in combinations(states.sides, 2)
        }
    )


def _pair(layers: tuple[int, ...], names: tuple[str, str], one_LND: StatesLND, other_LND: StatesLND) -> Pair:
    distance_L = (one_LND.mean(1) - other_LND.mean(1)).norm(dim=1)
    spread_L = _spread(one_LND) + _spread(other_LND)
    within_L = (one_LND.var(1, correction=0).sum(1) + other_LND.var(1, correction=0).sum(1)) / 2
    # 0 / 0, where both sides are points in one place, stays NaN.
    return Pair(
        layers,
        names,
        distance_L,
        distance_L / within_L.sqrt(),
        _silhouette(one_LND, other_LND),
        distance_L.square() / spread_L,
    )


def _spread(side_LND: StatesLND) -> Tensor:
    return side_LND.var(1).sum(1)


def _silhouette(one_LND: StatesLND, other_LND: StatesLND) -> PerLayerL:
    from sklearn.metrics import silhouette_score

    label_N = torch.cat([torch.zeros(one_LND.shape[1]), torch.ones(other_LND.shape[1])]).numpy()
    both_LND = torch.cat([one_LND, other_LND], 1).numpy()
    return torch.tensor([float(silhouette_score(h_ND, label_N)) for h_ND in both_LND], dtype=torch.float64)
