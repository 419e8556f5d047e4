"""Can forget rows be told from retain rows, at every layer, and would shuffled labels do as well?"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.data import Split
from probe.diagnostics.ridge_solve import PENALTIES, heldout_by_penalty, standardised
from probe.diagnostics.separability import FOLDS, logistic_aucs
from probe.diagnostics.split_states import SplitStates, split_states
from probe.display import Result, ResultTable
from probe.metrics.intervals import over_folds
from probe.rows import Row, over_layers


@dataclass(frozen=True, eq=False)
class RidgeProbes(Result):
    """AUROC of ridge probes, forget against retain, per layer.

    Args:
        layers: block indices, in the order of the arrays.
        auc_L: mean over held-out folds; 0.5 is chance.
        low_L, high_L: 95 % t-interval over folds, corrected for the rows that they share (``intervals.over_folds``).
        null_SL: the same with labels shuffled between groups of a fold, once a row; penalties are chosen anew.
        p_L: (1 + shuffles at least as good) / (1 + shuffles).
        p_any: the same for the best layer against the best layer of each shuffle, so that looking at all is paid for.
        penalty_L: the penalty that most folds were read at (the median over folds).
        n_forget, n_retain: rows of each class.
        n_groups: groups used.
        folds: folds made.
        width: dimensions of a state. With fewer rows than dimensions only the penalty makes a fit unique.
    """

    layers: tuple[int, ...]
    auc_L: PerLayerL
    low_L: PerLayerL
    high_L: PerLayerL
    null_SL: Float[Tensor, "S L"] = field(repr=False)
    p_L: PerLayerL
    p_any: float
    penalty_L: PerLayerL
    n_forget: int
    n_retain: int
    n_groups: int
    folds: int
    width: int

    @property
    def underdetermined(self) -> bool:
        """Whether there are fewer rows than dimensions, so that the penalty alone makes a fit unique."""
        return self.n_forget + self.n_retain <= self.width

    def rows(self, name: str = "model") -> list[Row]:
        at, n = (name, "ridge_probes"), self.n_forget + self.n_retain
        rows = [Row(*at, "p of the best layer", self.p_any)]
        rows += over_layers(*at, "auc", self.layers, self.auc_L, low=self.low_L, high=self.high_L, n=n)
        return rows + over_layers(*at, "p", self.layers, self.p_L)

    def table(self) -> ResultTable:
        rows = f"{self.n_forget} forget and {self.n_retain} retain rows"
        note = f"AUROC of forget against retain; {rows}, {self.n_groups} groups; p of the best layer {self.p_any:.3g}"
        columns = {"AUROC": self.auc_L, "low": self.low_L, "high": self.high_L, "p": self.p_L}
        return ResultTable({"layer": self.layers, **columns}, note=note)


def ridge_probes(
    model: nn.Module,
    split: Split,
    *,
    states: SplitStates | None = None,
    penalties: Sequence[float] = PENALTIES,
    shuffles: int = 100,
    seed: int = 0,
    batch_size: int = 32,
) -> RidgeProbes:
    """Linear probes of all layers, all penalties and all shuffled label sets from one decomposition a layer.

    Labels are +1 and -1, inputs are standardised over all rows. Folds keep groups whole (scikit-learn's
    ``StratifiedGroupKFold``, the very folds of ``separability``'s first repeat for the same seed). A fold is read at
    the penalty that has the best mean AUROC over the other folds; where signal is weak and classes are of unequal
    size, the squared error would choose a penalty that shrinks it away.

    Args:
        model: measured in eval mode and left as it was.
        split: forget rows are the positive class.
        states: what ``split_states`` gave of these rows, where others need it too; read here unless given.
        penalties: ridge penalties to choose from.
        shuffles: label sets of the permutation null.
        seed: draws folds and shuffles.
        batch_size: rows per forward pass.

    Raises:
        ValueError: a class with fewer than two groups, with the counts, or a negative number of shuffles.

    >>> found = probe.ridge_probes(s.original, s.split, shuffles=9)
    >>> len(found.auc_L), 0 < found.p_any <= 1
    (8, True)
    """
    if shuffles < 0:
        raise ValueError(f"shuffles must be at least 0, got {shuffles}")
    states = split_states(model, split, batch_size=batch_size) if states is None else states
    hidden_LND, label_N, group_N = _both(states)
    fold_N = _grouped_folds(label_N, group_N, seed)
    generator = np.random.default_rng(seed)
    sets = [label_N, *(_shuffled(label_N, group_N, fold_N, generator) for _ in range(shuffles))]
    label_NK = torch.from_numpy(np.stack(sets, 1))
    folds = int(fold_N.max()) + 1
    paths = heldout_by_penalty(hidden_LND, 2.0 * label_NK - 1, penalties=penalties, fold_N=torch.from_numpy(fold_N))
    auc_PFLK = torch.stack(
        [
            torch.stack([_aurocs(heldout_LNK[:, fold_N == f], label_NK[fold_N == f]) for f in range(folds)])
            for heldout_LNK in paths
        ]
    )
    best_FLK = (auc_PFLK.sum(1, keepdim=True) - auc_PFLK).argmax(0)
    auc_FLK = auc_PFLK.gather(0, best_FLK[None])[0]
    ends = [over_folds(auc_K[None].numpy()).ends for auc_K in auc_FLK[:, :, 0].T]
    auc_L, low_L, high_L = torch.tensor(ends, dtype=torch.float64).T
    null_SL = auc_FLK[:, :, 1:].mean(0).T
    reached_L = (null_SL >= auc_L).sum(0)
    reached_any = int((null_SL.amax(1) >= auc_L.max()).sum()) if shuffles else 0
    return RidgeProbes(
        states.layers,
        auc_L,
        low_L,
        high_L,
        null_SL,
        p_L=(1.0 + reached_L.double()) / (1 + shuffles),
        p_any=(1 + reached_any) / (1 + shuffles),
        penalty_L=torch.tensor([float(p) for p in penalties]).double()[best_FLK[:, :, 0].median(0).values],
        n_forget=int(label_N.sum()),
        n_retain=int((1 - label_N).sum()),
        n_groups=len(np.unique(group_N)),
        folds=folds,
        width=hidden_LND.shape[2],
    )


def ridge_minus_logistic(
    model: nn.Module,
    split: Split,
    *,
    states: SplitStates | None = None,
    penalties: Sequence[float] = PENALTIES,
    seed: int = 0,
) -> PerLayerL:
    """AUROC of the ridge probe less that of standardised logistic regression on the same folds, per layer.

    Logistic regression is the reference for reported numbers; this states what ridge costs or gains on these states.

    Raises:
        ValueError: as ``ridge_probes``.
    """
    states = split_states(model, split) if states is None else states
    found = ridge_probes(model, split, states=states, penalties=penalties, shuffles=0, seed=seed)
    hidden_LND, label_N, group_N = _both(states, scaled=False)
    reference = [logistic_aucs(hidden_ND.numpy(), label_N, group_N, seed).mean() for hidden_ND in hidden_LND]
    return found.auc_L - torch.tensor(reference, dtype=torch.float64)


def _aurocs(score_LNK: Float[Tensor, "L N K"], label_NK: Tensor) -> Float[Tensor, "L K"]:
    """P(score of a positive > score of a negative), ties counting half, of every layer and label set.

    The Mann-Whitney statistic from mid-ranks.

    Raises:
        ValueError: a label set of one class, with the counts.
    """
    positive_K = label_NK.sum(0).double()
    negative_K = len(label_NK) - positive_K
    if bool((positive_K == 0).any()) or bool((negative_K == 0).any()):
        k = int(((positive_K == 0) | (negative_K == 0)).nonzero()[0])
        raise ValueError(f"AUROC needs both classes, got {int(positive_K[k])} positive, {int(negative_K[k])} negative")
    sorted_LKN = score_LNK.mT.contiguous().sort(-1).values
    own_LKN = score_LNK.mT.contiguous()
    below, upto = torch.searchsorted(sorted_LKN, own_LKN), torch.searchsorted(sorted_LKN, own_LKN, right=True)
    rank_LKN = (below + upto + 1).double() / 2
    total_LK = (rank_LKN * label_NK.T.double()).sum(-1)
    return (total_LK - positive_K * (positive_K + 1) / 2) / (positive_K * negative_K)


def _grouped_folds(label_N: np.ndarray, group_N: np.ndarray, seed: int) -> np.ndarray:
    """The fold in which each row is held out; groups stay whole and classes are spread evenly.

    Raises:
        ValueError: a class with fewer than two groups, with the counts.
    """
    from sklearn.model_selection import StratifiedGroupKFold

    counts = [len(np.unique(group_N[label_N == k])) for k in (1, 0)]
    if min(counts) < 2:
        raise ValueError(
            f"a probe needs at least two groups of both classes; there are {counts[0]} groups of forget rows "
            f"({int(label_N.sum())} rows) and {counts[1]} of retain rows ({int((1 - label_N).sum())} rows)"
        )
    cut = StratifiedGroupKFold(min(FOLDS, *counts), shuffle=True, random_state=seed)
    fold_N = np.zeros(len(label_N), dtype=np.int64)
    for fold, (_, rows) in enumerate(cut.split(np.zeros((len(label_N), 1)), label_N, group_N)):
        if len(np.unique(label_N[rows])) < 2:
            raise ValueError(f"fold {fold} holds one class only; group sizes are too uneven, use more groups")
        fold_N[rows] = fold
    return fold_N


def _both(states: SplitStates, *, scaled: bool = True) -> tuple[Tensor, np.ndarray, np.ndarray]:
    hidden_LND = torch.cat([states.forget_LND, states.retain_LND], 1)
    counts = states.forget_LND.shape[1], states.retain_LND.shape[1]
    if min(counts) == 0:
        raise ValueError(f"a probe needs rows of both classes, got {counts[0]} forget and {counts[1]} retain rows")
    label_N = np.repeat([1, 0], counts)
    group_N = torch.cat([states.forget_group_N, states.retain_group_N]).numpy()
    return standardised(hidden_LND) if scaled else hidden_LND, label_N, group_N


def _shuffled(
    label_N: np.ndarray, group_N: np.ndarray, fold_N: np.ndarray, generator: np.random.Generator
) -> np.ndarray:
    """Labels exchanged between groups of one fold: groups keep one label, and every fold keeps both classes."""
    new_N = label_N.copy()
    for fold in range(int(fold_N.max()) + 1):
        rows = np.flatnonzero(fold_N == fold)
        units, unit_N = np.unique(np.stack([group_N[rows], label_N[rows]]), axis=1, return_inverse=True)
        new_N[rows] = generator.permutation(units[1])[unit_N.reshape(-1)]
    return new_N
