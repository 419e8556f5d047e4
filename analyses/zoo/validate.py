"""How often is the verdict wrong on families of models that it never saw?"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from probe.verdict.logistic import CLASSES, LogisticFit, ScoresNC, TableNF, fit_logistic, softmax

PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)
_INNER = 5
_TEMPERATURES = tuple(float(t) for t in np.geomspace(0.25, 4.0, 33))


@dataclass(frozen=True, eq=False)
class HeldOutVerdicts:
    """Verdicts on models by fits that saw nothing of their group.

    Args:
        labels: the truth.
        groups: what was left out together.
        probability_NC: of each class, in the order of ``CLASSES``.
        penalty: the one chosen most often by the inner folds.
        beyond_N: whether the model lies beyond the reach of the fit to the others, so that no verdict is given.
    """

    labels: tuple[str, ...] = field(repr=False)
    groups: tuple[str, ...] = field(repr=False)
    probability_NC: ScoresNC = field(repr=False)
    penalty: float
    beyond_N: np.ndarray = field(repr=False)

    @property
    def verdicts(self) -> tuple[str, ...]:
        """The most probable class of each model."""
        return tuple(CLASSES[k] for k in self.probability_NC.argmax(1))

    def wrong(self, verdict: str | None = None) -> tuple[int, int]:
        """How many verdicts that would be given, of one class or of all, are wrong, and how many are given."""
        rows = zip(self.labels, self.verdicts, self.beyond_N.tolist(), strict=True)
        given = [true != said for true, said, beyond in rows if not beyond and verdict in (None, said)]
        return sum(given), len(given)

    @property
    def accuracy(self) -> float:
        """Share of models whose verdict is the truth."""
        return float(np.mean([a == b for a, b in zip(self.labels, self.verdicts, strict=True)]))

    @property
    def log_loss(self) -> float:
        """Mean -ln of the probability given to the truth."""
        true_N = self.probability_NC[np.arange(len(self.labels)), [CLASSES.index(one) for one in self.labels]]
        return float(-np.log(np.clip(true_N, 1e-12, 1)).mean())

    @property
    def confusion(self) -> dict[str, dict[str, int]]:
        """Counts by truth, then by verdict."""
        pairs = list(zip(self.labels, self.verdicts, strict=True))
        return {true: {said: pairs.count((true, said)) for said in CLASSES} for true in CLASSES}

    @property
    def calibration_error(self) -> float:
        """Expected calibration error: mean over models of |share right - mean confidence| of their bin."""
        return float(sum(n * abs(right - sure) for sure, right, n in self.calibration) / len(self.labels))

    @property
    def calibration(self) -> tuple[tuple[float, float, int], ...]:
        """(mean confidence, share right, models) by fifth of the range from 0.25, where there are models."""
        sure_N = self.probability_NC.max(1)
        right_N = np.array([a == b for a, b in zip(self.labels, self.verdicts, strict=True)])
        bin_N = np.clip(((sure_N - 0.25) / 0.15).astype(int), 0, 4)
        return tuple(
            (float(sure_N[bin_N == k].mean()), float(right_N[bin_N == k].mean()), int((bin_N == k).sum()))
            for k in range(5)
            if (bin_N == k).any()
        )


def leave_groups_out(
    table_NF: TableNF,
    labels: Sequence[str],
    groups: Sequence[str],
    features: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
    calibrate: bool = True,
) -> HeldOutVerdicts:
    """Judge each group by a fit to the others.

    Penalty and temperature of each fit are chosen by log loss on folds of its own groups, so that a group left out
    has no part in either.

    Args:
        table_NF: features, a row a model.
        labels: the truth.
        groups: family of each model, or its seed.
        features: names of the columns.
        penalties: to choose from; one is taken as it is.
        calibrate: whether to choose temperatures.

    Raises:
        ValueError: fewer than two groups, or as ``fit_logistic``.
    """
    names = sorted(set(groups))
    if len(names) < 2:
        raise ValueError(f"at least two groups are needed to leave one out, got {names}")
    group_N = np.array([names.index(g) for g in groups])
    logit_NC = np.zeros((len(labels), len(CLASSES)))
    beyond_N = np.zeros(len(labels), dtype=bool)
    taken = []
    for k in range(len(names)):
        in_N, out_N = np.flatnonzero(group_N != k).tolist(), np.flatnonzero(group_N == k).tolist()
        mine, theirs = [labels[i] for i in in_N], [groups[i] for i in in_N]
        penalty, temperature = penalties[0], 1.0
        if calibrate or len(penalties) > 1:
            penalty, temperature = tuned(table_NF[in_N], mine, theirs, features, penalties)
        taken.append(penalty)
        found = fit_logistic(table_NF[in_N], mine, features, penalty=penalty, groups=theirs)
        logits = _placed(found, table_NF[out_N])
        logit_NC[out_N] = logits / temperature if calibrate else logits
        rows = [dict(zip(features, row_F, strict=True)) for row_F in table_NF[out_N].tolist()]
        beyond_N[out_N] = [found.distance(row) > found.reach for row in rows]
    values, counts = np.unique(taken, return_counts=True)
    return HeldOutVerdicts(tuple(labels), tuple(groups), softmax(logit_NC), float(values[counts.argmax()]), beyond_N)


def tuned(
    table_NF: TableNF, labels: Sequence[str], groups: Sequence[str], features: Sequence[str], penalties: Sequence[float]
) -> tuple[float, float]:
    """The penalty of least log loss on folds that keep groups whole, the largest of equals, and its temperature."""
    names = sorted(set(groups))
    # Every fold takes each n-th group, so that neighbours in the alphabet are parted.
    fold_N = np.array([names.index(g) % min(_INNER, len(names)) for g in groups])
    by_penalty = {}
    for penalty in penalties:
        logit_NC = np.zeros((len(labels), len(CLASSES)))
        for fold in np.unique(fold_N):
            in_N, out_N = np.flatnonzero(fold_N != fold).tolist(), np.flatnonzero(fold_N == fold).tolist()
            mine = [labels[i] for i in in_N]
            if len(set(mine)) > 1:
                logit_NC[out_N] = _placed(
                    fit_logistic(table_NF[in_N], mine, features, penalty=penalty), table_NF[out_N]
                )
        by_penalty[penalty] = logit_NC
    best = min(sorted(by_penalty, reverse=True), key=lambda p: round(_log_loss(by_penalty[p], labels), 9))
    return best, best_temperature(by_penalty[best], labels)


def _placed(found: LogisticFit, table_NF: TableNF) -> ScoresNC:
    """Logits in the order of ``CLASSES``; a class that the fit never saw gets none of the probability."""
    logit_NC = np.full((len(table_NF), len(CLASSES)), -1e3)
    logit_NC[:, [CLASSES.index(one) for one in found.classes]] = found.logits(table_NF)
    return logit_NC


def _log_loss(logits_NC: ScoresNC, labels: Sequence[str]) -> float:
    true_N = softmax(logits_NC)[np.arange(len(labels)), [CLASSES.index(one) for one in labels]]
    return float(-np.log(np.clip(true_N, 1e-6, 1)).mean())


def best_temperature(logits_NC: ScoresNC, labels: Sequence[str]) -> float:
    """The T of least log loss of softmax(logits / T)."""
    return min(_TEMPERATURES, key=lambda t: _log_loss(logits_NC / t, labels))


def fit_all(
    table_NF: TableNF,
    labels: Sequence[str],
    groups: Sequence[str],
    features: Sequence[str],
    *,
    penalties: Sequence[float] = PENALTIES,
) -> LogisticFit:
    """The fit that is shipped: to every model, with penalty and temperature chosen by leaving groups out."""
    penalty, temperature = tuned(table_NF, labels, groups, features, penalties)
    return fit_logistic(table_NF, labels, features, penalty=penalty, temperature=temperature, groups=groups)


@dataclass(frozen=True, eq=False)
class Roc:
    """One number as a classifier.

    Args:
        auroc: P(value of a positive > value of a negative), ties half; below 0.5 low values speak for the positives.
        false_K, true_K: the curve, thresholds falling.
    """

    auroc: float
    false_K: tuple[float, ...] = field(repr=False)
    true_K: tuple[float, ...] = field(repr=False)


def roc(values: Sequence[float], positive: Sequence[bool]) -> Roc:
    """The curve of one diagnostic.

    Raises:
        ValueError: one class only.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    if len(set(map(bool, positive))) < 2:
        raise ValueError(f"a ROC curve needs both classes, got {sum(map(bool, positive))} of {len(positive)} positive")
    false_K, true_K, _ = roc_curve(list(positive), list(values), drop_intermediate=True)
    return Roc(
        float(roc_auc_score(list(positive), list(values))), tuple(map(float, false_K)), tuple(map(float, true_K))
    )
