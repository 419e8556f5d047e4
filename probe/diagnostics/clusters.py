"""Do forget, retain and unseen rows lie apart, and how far?"""

from dataclasses import dataclass
from itertools import combinations

import torch
from torch import Tensor

from probe.axes import PerLayerL
from probe.diagnostics.split_states import SplitStates, StatesLND


@dataclass(frozen=True, eq=False)
class Clusters:
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


def clusters(states: SplitStates) -> dict[tuple[str, str], Clusters]:
    """Centroid distance, silhouette and Fisher ratio of each pair of sides, per layer.

    Suppressed forget rows would form a cluster of their own; forgotten ones would merge with unseen rows (claim of
    arXiv 2506.09227).

    Args:
        states: made by ``split_states``, with ``unseen`` rows for the pairs that need them.

    Returns:
        by the names of both sides: ("forget", "retain") and, with unseen rows, ("forget", "unseen") and
        ("retain", "unseen").

    Raises:
        ValueError: a side with fewer than two rows, with the counts.
    """
    counts = {name: side_LND.shape[1] for name, side_LND in states.sides.items()}
    if min(counts.values()) < 2:
        raise ValueError(f"every side needs at least two rows to have a spread, got {counts}")
    return {
        pair: _pair(states.layers, pair, states.sides[pair[0]], states.sides[pair[1]])
        for pair in combinations(states.sides, 2)
    }


def _pair(layers: tuple[int, ...], names: tuple[str, str], one_LND: StatesLND, other_LND: StatesLND) -> Clusters:
    distance_L = (one_LND.mean(1) - other_LND.mean(1)).norm(dim=1)
    spread_L = _spread(one_LND) + _spread(other_LND)
    within_L = (one_LND.var(1, correction=0).sum(1) + other_LND.var(1, correction=0).sum(1)) / 2
    # 0 / 0, where both sides are points in one place, stays NaN.
    return Clusters(
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
