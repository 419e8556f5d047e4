"""Can a linear probe still tell forget from retain questions by their hidden states?"""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.data import QA, Batch, Split
from probe.diagnostics.states import Position, last_prompt_token, mean_prompt, pooled_states
from probe.display import Result, ResultTable
from probe.harvest import visit
from probe.metrics.intervals import LEVEL, Interval, over_folds
from probe.rows import Row, over_layers
from probe.sites import Site, n_layers

FOLDS = 5

# Both sides meet in one signature and need not have as many rows: the axis is not bound.
IdsN = Int[np.ndarray, "_"]


@dataclass(frozen=True, eq=False)
class Separability(Result):
    """AUROC of a linear probe, forget against retain, per layer.

    Args:
        layers: block indices, in the order of the arrays.
        auc_L: mean over repeats and folds; 0.5 is chance.
        low_L, high_L: 95 % t-interval over folds, corrected for the rows that they share (``intervals.over_folds``).
        control_L: the same protocol with labels permuted across groups. It should lie near 0.5; how far it strays
            shows what chance alone can do with so many rows.
        n: rows used.
        n_groups: groups used.
        folds: folds made, in every repeat.
        auc_LRK: of every layer, repeat and fold; the same rows and seed give the same folds for every model.
    """

    layers: tuple[int, ...]
    auc_L: PerLayerL
    low_L: PerLayerL
    high_L: PerLayerL
    control_L: PerLayerL
    n: int
    n_groups: int
    folds: int
    auc_LRK: Float[Tensor, "L R K"] = field(repr=False)

    def beyond(self, other: "Separability") -> tuple[Interval, ...]:
        """AUROC less that of another model, per layer: fold by fold, at a level that holds for all layers together.

        Some layer's interval lies above 0 in at most 5 % of cases where no layer differs (Bonferroni). One pair of
        models says nothing of how far models of one kind lie apart.

        Raises:
            ValueError: other rows, layers or folds.
        """
        same = self.layers == other.layers and self.auc_LRK.shape == other.auc_LRK.shape and self.n == other.n
        if not same:
            raise ValueError("the two were not measured on the same rows, layers and folds; use one split and one seed")
        level = 1 - (1 - LEVEL) / len(self.layers)
        apart_LRK = (self.auc_LRK - other.auc_LRK).numpy()
        return tuple(over_folds(apart_RK, within=(-1.0, 1.0), level=level) for apart_RK in apart_LRK)

    def rows(self, name: str = "model") -> list[Row]:
        at, n = (name, "separability"), self.n
        rows = over_layers(*at, "auc", self.layers, self.auc_L, low=self.low_L, high=self.high_L, n=n)
        return rows + over_layers(*at, "control", self.layers, self.control_L, n=n)

    def table(self) -> ResultTable:
        note = f"AUROC of forget against retain; {self.n} rows, {self.n_groups} groups, {self.folds} folds; chance 0.5"
        columns = {"AUROC": self.auc_L, "low": self.low_L, "high": self.high_L, "control": self.control_L}
        return ResultTable({"layer": self.layers, **columns}, note=note)


def separability(
    model: nn.Module,
    split: Split,
    *,
    layers: Sequence[int] | None = None,
    position: Position = last_prompt_token,
    max_groups: int | None = None,
    repeats: int = 3,
    seed: int = 0,
    batch_size: int = 32,
) -> Separability:
    """Cross-validated AUROC of a logistic regression (L2, C = 1, standardised inputs) on hidden states.

    Rows of one group (one author, say) never lie in both the training and the test part of a fold: scikit-learn's
    ``StratifiedGroupKFold`` with five folds, fewer if a class has fewer groups, drawn anew for each repeat. All rows
    count; in the fit both classes weigh alike, however many rows they have.

    The number alone says nothing of forgetting: topics, names and wording tell forget from retain rows in a model that
    never saw either. Hold it against a retrained model (``beyond``), or at least against the original and
    ``words_alone``.

    Args:
        model: measured in eval mode and left as it was.
        split: forget rows are the positive class. Groups of the two sides are distinct unless the rows name the same.
        layers: blocks to ask; None asks all.
        position: makes one vector of a row: ``last_prompt_token``, ``mean_answer`` or any ``(hidden, batch)``.
        max_groups: groups kept per side, drawn by ``seed``; None keeps all.
        repeats: times that folds are drawn; one draw alone moves the AUROC of 50 rows a side by some .05.
        seed: draws groups, folds and the control's labels.
        batch_size: rows per forward pass.

    Returns:
        AUROC, interval and control per layer.

    Raises:
        ValueError: a class with fewer than two groups (with the counts), a layer outside the model, or hidden
            states that are not finite.

    >>> found = probe.separability(s.original, s.split, layers=[4], repeats=1)
    >>> 0 <= float(found.auc_L[0]) <= 1
    True
    """
    chosen = tuple(range(n_layers(model))) if layers is None else tuple(layers)
    generator = np.random.default_rng(seed)
    forget_N, retain_N = side_groups(split)
    _check_groups(forget_N, retain_N, named=any(row.group for row in (*split.forget_rows, *split.retain_rows)))
    rows = [_drawn(group_N, max_groups, generator) for group_N in (forget_N, retain_N)]
    group_N = np.concatenate([forget_N[rows[0]], retain_N[rows[1]]])
    label_N = np.repeat([1, 0], [len(rows[0]), len(rows[1])])
    sides = [
        pooled_states(model, batch.select(torch.from_numpy(index)), chosen, position, batch_size)
        for batch, index in zip((split.forget, split.retain), rows, strict=True)
    ]
    control_N = _permuted(label_N, group_N, generator)
    auc_LRK, control_L = [], []
    for layer in chosen:
        hidden_ND = torch.cat([side[layer] for side in sides]).numpy()
        auc_LRK.append(_repeated(hidden_ND, label_N, group_N, seed, repeats))
        control_L.append(logistic_aucs(hidden_ND, control_N, group_N, seed).mean())
    ends = [over_folds(auc_RK).ends for auc_RK in auc_LRK]
    auc_L, low_L, high_L = torch.tensor(ends, dtype=torch.float64).T
    return Separability(
        chosen,
        auc_L,
        low_L,
        high_L,
        torch.tensor(control_L, dtype=torch.float64),
        n=len(label_N),
        n_groups=len(np.unique(group_N)),
        folds=auc_LRK[0].shape[1],
        auc_LRK=torch.from_numpy(np.stack(auc_LRK)),
    )


def words_alone(model: nn.Module, split: Split, *, repeats: int = 3, seed: int = 0, batch_size: int = 32) -> Interval:
    """AUROC of the same probe on the mean of the prompt's embeddings, which no block has touched.

    A floor for ``separability`` where there is no retrained model: what the words of the questions tell by themselves.

    Raises:
        ValueError: as ``separability``.

    >>> 0 <= probe.words_alone(s.original, s.split, repeats=1).mean <= 1
    True
    """
    forget_N, retain_N = side_groups(split)
    _check_groups(forget_N, retain_N, named=True)
    site, kept = Site(0, side="in"), []

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        kept.append(mean_prompt(states[site], piece).double().cpu())

    for side in (split.forget, split.retain):
        visit(model, side.chunks(batch_size), [site], take)
    label_N = np.repeat([1, 0], [len(forget_N), len(retain_N)])
    found_RK = _repeated(torch.cat(kept).numpy(), label_N, np.concatenate([forget_N, retain_N]), seed, repeats)
    return over_folds(found_RK)


def _repeated(
    hidden_ND: Float[np.ndarray, "N D"], label_N: IdsN, group_N: IdsN, seed: int, repeats: int
) -> Float[np.ndarray, "R K"]:
    # Far apart, so that seeds next to each other share no split.
    return np.stack([logistic_aucs(hidden_ND, label_N, group_N, seed + 1000 * r) for r in range(repeats)])


def side_groups(split: Split) -> tuple[IdsN, IdsN]:
    """Group ids of both sides; ids of the two batches mean different things, names of the rows do not."""
    forget_N, retain_N = split.forget.group_B.cpu().numpy(), split.retain.group_B.cpu().numpy()
    retain_N = retain_N + forget_N.max() - retain_N.min() + 1
    named = {id_: row.group for id_, row in zip(forget_N.tolist(), _rows(split.forget, split.forget_rows), strict=True)}
    same = {name: id_ for id_, name in named.items() if name}
    rows = _rows(split.retain, split.retain_rows)
    return forget_N, np.array([same.get(row.group, id_) for row, id_ in zip(rows, retain_N.tolist(), strict=True)])


def _rows(batch: Batch, rows: tuple[QA, ...]) -> Sequence[QA]:
    return rows if len(rows) == len(batch) else [QA("", "")] * len(batch)


def _check_groups(forget_N: IdsN, retain_N: IdsN, *, named: bool) -> None:
    counts = [len(np.unique(group_N)) for group_N in (forget_N, retain_N)]
    if min(counts) < 2:
        raise ValueError(
            f"a probe needs at least two groups per class; the forget side has {counts[0]} ({len(forget_N)} rows), "
            f"the retain side {counts[1]} ({len(retain_N)} rows)"
        )
    if not named and counts[0] == len(forget_N) and counts[1] == len(retain_N):
        warnings.warn(
            "every row is a group of its own (no group field?): near duplicates may lie on both sides of a fold and "
            "raise the AUROC",
            stacklevel=3,
        )


def _drawn(group_N: IdsN, most: int | None, generator: np.random.Generator) -> IdsN:
    if most is None:
        return np.arange(len(group_N))
    if most < 2:
        raise ValueError(f"max_groups must be at least 2, got {most}")
    chosen = generator.permutation(np.unique(group_N))[:most]
    return np.flatnonzero(np.isin(group_N, chosen))


def _permuted(label_N: IdsN, group_N: IdsN, generator: np.random.Generator) -> IdsN:
    """Labels shuffled between groups: rows of a group keep a common label, as the true ones have."""
    units, unit_N = np.unique(np.stack([group_N, label_N]), axis=1, return_inverse=True)
    return generator.permutation(units[1])[unit_N.reshape(-1)]


def logistic_aucs(
    hidden_ND: Float[np.ndarray, "N D"], label_N: IdsN, group_N: IdsN, seed: int
) -> Float[np.ndarray, " K"]:
    """AUROC of each held-out fold: standardised logistic regression, classes weighted alike.

    Args:
        hidden_ND: activations.
        label_N: 0 or 1.
        group_N: rows of one group stay on one side of a fold.
        seed: draws the folds.

    Raises:
        ValueError: too few groups for two folds, or a fold of one class.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import StratifiedGroupKFold, cross_val_score
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler
    from threadpoolctl import threadpool_limits

    folds = min(FOLDS, *(len(np.unique(group_N[label_N == k])) for k in (0, 1)))
    if folds < 2:
        raise ValueError(f"a class has {folds} group after permuting labels; the probe needs more groups")
    probe = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000, class_weight="balanced"))
    cut = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
    with threadpool_limits(1):  # matrices this small take six times as long on two threads as on one
        auc_K = cross_val_score(
            probe, hidden_ND, label_N, groups=group_N, cv=cut, scoring="roc_auc", error_score="raise"
        )
    if not np.isfinite(auc_K).all():
        raise ValueError(
            f"a fold holds one class only ({np.bincount(label_N).tolist()} rows of retain and forget in {folds} "
            "folds); group sizes are too uneven, use more groups or split the largest"
        )
    return auc_K
