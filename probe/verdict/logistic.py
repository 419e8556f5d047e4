"""A multinomial logistic regression over features, small enough to be read, kept as JSON."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float

CLASSES = ("removed", "hidden", "broken", "untouched")
TableNF = Float[np.ndarray, "N F"]
REACHED = 0.9
ScoresNC = Float[np.ndarray, "N C"]


@dataclass(frozen=True)
class LogisticFit:
    """softmax((w z + b) / T) of standardised features z = (x - mean) / scale.

    Args:
        features: names, in the order of the numbers below.
        classes: names, in the order of the rows below.
        mean, scale: of the training table.
        weight: a row a class, a column a feature.
        bias: one a class.
        temperature: T; above 1 makes probabilities more modest.
        low, high: smallest and largest value of each feature in the training table.
        seen: the standardised training table, to three decimals.
        reach: how far the nearest row of ``seen`` may lie; a row further away is none that the fit can speak of.
    """

    features: tuple[str, ...]
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    scale: tuple[float, ...]
    weight: tuple[tuple[float, ...], ...]
    bias: tuple[float, ...]
    temperature: float
    low: tuple[float, ...]
    high: tuple[float, ...]
    seen: tuple[tuple[float, ...], ...] = field(repr=False)
    reach: float

    def logits(self, table_NF: TableNF) -> ScoresNC:
        """w z + b, not divided by the temperature."""
        z_NF = (table_NF - np.array(self.mean)) / np.array(self.scale)
        return z_NF @ np.array(self.weight).T + np.array(self.bias)

    def probabilities(self, table_NF: TableNF) -> ScoresNC:
        """Of each class, by row."""
        return softmax(self.logits(table_NF) / self.temperature)

    def outside(self, row: Mapping[str, float]) -> tuple[str, ...]:
        """Features whose value lies further outside the training table's range than a tenth of that range."""
        return tuple(
            name
            for name, low, high in zip(self.features, self.low, self.high, strict=True)
            if not low - 0.1 * (high - low) - 1e-9 <= row[name] <= high + 0.1 * (high - low) + 1e-9
        )

    def distance(self, row: Mapping[str, float], without: Collection[str] = ()) -> float:
        """Distance to the nearest training row, in standard deviations, over all features but some.

        The joint position counts: a row may lie inside every single range and far from every model that was seen.
        Features left out are made up for by a factor sqrt(all / used).
        """
        used = [i for i, name in enumerate(self.features) if name not in without]
        row_F = np.array([row[name] for name in self.features])
        z_F = ((row_F - np.array(self.mean)) / np.array(self.scale))[used]
        nearest = np.linalg.norm(np.array(self.seen)[:, used] - z_F, axis=1).min()
        return float(nearest * np.sqrt(len(self.features) / len(used)))

    def contributions(self, row: Mapping[str, float]) -> dict[str, dict[str, float]]:
        """What each feature adds to each class's logit, less its mean over classes, by class and feature."""
        z_F = (np.array([row[name] for name in self.features]) - np.array(self.mean)) / np.array(self.scale)
        part_CF = np.array(self.weight) * z_F
        part_CF = part_CF - part_CF.mean(0)
        return {
            one: dict(zip(self.features, map(float, part_F), strict=True))
            for one, part_F in zip(self.classes, part_CF, strict=True)
        }

    def to_json(self) -> dict[str, Any]:
        """Plain values, six significant digits."""
        return {name: _rounded(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, given: Mapping[str, Any]) -> "LogisticFit":
        """What ``to_json`` wrote."""
        return cls(**{name: _tuples(value) for name, value in given.items()})


def fit_logistic(
    table_NF: TableNF,
    labels: Sequence[str],
    features: Sequence[str],
    *,
    penalty: float,
    temperature: float = 1.0,
    groups: Sequence[str] | None = None,
) -> LogisticFit:
    """Minimise mean cross-entropy, classes weighted alike, + penalty / (2 N) |w|^2 over standardised features.

    scikit-learn's ``LogisticRegression`` with C = 1 / penalty. Classes without a row are left out. ``reach`` is what
    ``REACHED`` of the rows need to the nearest row of another group; without groups every row is its own.

    Raises:
        ValueError: rows of one class only, or numbers that do not fit together.
    """
    from sklearn.linear_model import LogisticRegression

    if table_NF.shape != (len(labels), len(features)):
        raise ValueError(f"a table of {table_NF.shape} for {len(labels)} labels and {len(features)} features")
    found = [one for one in CLASSES if one in set(labels)]
    unknown = set(labels) - set(CLASSES)
    if len(found) < 2 or unknown:
        raise ValueError(f"labels must be at least two of {', '.join(CLASSES)}, got {sorted(set(labels))}")
    mean_F, scale_F = table_NF.mean(0), table_NF.std(0)
    scale_F = np.where(scale_F > 1e-9, scale_F, 1.0)
    number_N = np.array([found.index(one) for one in labels])
    model = LogisticRegression(C=1 / penalty, class_weight="balanced", max_iter=2000)
    model.fit((table_NF - mean_F) / scale_F, number_N)
    weight_CF, bias_C = model.coef_, model.intercept_
    if len(found) == 2:
        # Two classes have one row; softmax over (-w, w) / 2 is the same sigmoid.
        weight_CF, bias_C = np.concatenate([-weight_CF, weight_CF]) / 2, np.concatenate([-bias_C, bias_C]) / 2
    z_NF = np.round((table_NF - mean_F) / scale_F, 3)
    return LogisticFit(
        tuple(features),
        tuple(found),
        tuple(map(float, mean_F)),
        tuple(map(float, scale_F)),
        tuple(tuple(map(float, row)) for row in weight_CF),
        tuple(map(float, bias_C)),
        temperature,
        tuple(map(float, table_NF.min(0))),
        tuple(map(float, table_NF.max(0))),
        tuple(tuple(map(float, row)) for row in z_NF),
        _reach_of(z_NF, groups),
    )


def _reach_of(z_NF: TableNF, groups: Sequence[str] | None = None) -> float:
    """The distance within which ``REACHED`` of the rows have their nearest row of another group."""
    group_N = np.arange(len(z_NF)) if groups is None else np.unique(list(groups), return_inverse=True)[1]
    apart_NN = np.linalg.norm(z_NF[:, None] - z_NF[None], axis=2)
    apart_NN[group_N[:, None] == group_N[None]] = np.inf
    nearest_N = apart_NN.min(1)
    return float(np.quantile(nearest_N, REACHED)) if np.isfinite(nearest_N).all() else math.inf


def softmax(logits_NC: ScoresNC) -> ScoresNC:
    """Along the last axis."""
    shifted_NC = np.exp(logits_NC - logits_NC.max(-1, keepdims=True))
    return shifted_NC / shifted_NC.sum(-1, keepdims=True)


def _rounded(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_rounded(one) for one in value]
    return float(f"{value:.6g}") if isinstance(value, float) else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(one) for one in value) if isinstance(value, list) else value
