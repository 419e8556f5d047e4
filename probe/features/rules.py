"""The published rules that choose features by their activity: each a value, from ``Activity`` to a score per feature.

They all choose what fires on forget text and not on retain text, which makes a good gate (``role`` is ``detect``).
That is not the same as what the forgotten answers are made of: for this see ``attribution`` and ``ablation``.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from probe.features.activity import Activity
from probe.features.separation import chi_squared

PerFeatureF = Float[Tensor, " F"]
Role = Literal["detect", "edit"]
"""What the chosen features are good for: to tell that a text is about it, or to change what is said."""
Unit = Literal["token", "row"]


@runtime_checkable
class Rule(Protocol):
    """A score per feature, higher first; minus infinity leaves a feature out. Its ``repr`` names it in results."""

    role: ClassVar[Role]

    def __call__(self, evidence: Any, /) -> PerFeatureF:
        """Score every feature."""
        ...


@dataclass(frozen=True)
class Frequency:
    """Score = share of forget tokens, for features on at fewer than ``retain_threshold`` of retain tokens.

    SAEBench's rule (Karvonen et al., arXiv 2503.09532), which sweeps thresholds 0.001 and 0.01.

    Raises:
        ValueError: the threshold is not in (0, 1].
    """

    retain_threshold: float
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_share(self.retain_threshold, "retain_threshold")

    def __call__(self, activity: Activity) -> PerFeatureF:
        rate_F = activity.forget.rate_F
        return _where((activity.retain.rate_F < self.retain_threshold) & (rate_F > 0), rate_F)


@dataclass(frozen=True)
class FrequencyRatio:
    """Score = forget rate / retain rate, for features on at ``forget_threshold`` of forget tokens or more.

    A feature that is on at no retain token counts as if it were on at half of one, so that the score is finite.

    Raises:
        ValueError: the threshold is not in (0, 1].
    """

    forget_threshold: float
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_share(self.forget_threshold, "forget_threshold")

    def __call__(self, activity: Activity) -> PerFeatureF:
        rate_F = activity.forget.rate_F
        other_F = activity.retain.rate_F.clamp(min=0.5 / activity.retain.tokens)
        return _where(rate_F >= self.forget_threshold, rate_F / other_F)


@dataclass(frozen=True)
class MeanSquareRatio:
    """Score = mean f^2 on forget tokens, where its ratio to that on retain tokens is in the top 100 - ``percentile`` %.

    Dynamic SAE Guardrails as the paper has it (Muhamed et al., arXiv 2504.08192): the square of each token's
    activation, an estimate of Fisher information. Percentiles are taken over features that are on at some forget token;
    the weakest 5 % of those are dropped, too. ``SquaredMeanRatio`` is the released code's.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """

    percentile: float = 95.0
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_percentile(self.percentile)

    def __call__(self, activity: Activity) -> PerFeatureF:
        forget_F, retain_F = activity.forget.mean_square_F, activity.retain.mean_square_F
        return _top_ratio(forget_F, retain_F, activity.fires_F & (forget_F > 0), self.percentile)


@dataclass(frozen=True)
class SquaredMeanRatio:
    """Score = (mean f)^2 on forget tokens, where its ratio to that on retain is in the top 100 - ``percentile`` %.

    What the released code of Dynamic SAE Guardrails computes (arXiv 2504.08192, commit 7f30128). It differs from the
    paper's ``MeanSquareRatio`` twice: the square is applied to the mean, so that a feature that is strong at few tokens
    scores lower; and percentiles are taken over all features, those that never fire included, so that in a wide
    dictionary most of what fires is admitted.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """

    percentile: float = 95.0
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_percentile(self.percentile)

    def __call__(self, activity: Activity) -> PerFeatureF:
        forget_F, retain_F = activity.forget.mean_F.square(), activity.retain.mean_F.square()
        everything_F = torch.ones_like(activity.fires_F)
        score_F = _top_ratio(forget_F, retain_F, everything_F, self.percentile)
        return _where(activity.fires_F & (forget_F > 0), score_F)


@dataclass(frozen=True)
class Crisp:
    """Score = forget rate - retain rate; of the ``candidates`` best those with mean ratio A_f / (A_r + eps) >= tau.

    CRISP with its paper's normalised counts (Ashuach et al., arXiv 2508.13650), which takes 30 and 50 candidates and
    tau of 3. ``CrispRaw`` is the released code's.

    Args:
        candidates: how many features by difference are looked at.
        tau: smallest ratio of mean activations.
        epsilon: keeps the ratio finite, in activation units.

    Raises:
        ValueError: fewer than one candidate, or tau or epsilon not above 0.
    """

    candidates: int
    tau: float = 3.0
    epsilon: float = 1e-8
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_crisp(self.candidates, self.tau, self.epsilon)

    def __call__(self, activity: Activity) -> PerFeatureF:
        forget, retain = activity.forget, activity.retain
        ratio_F, more_F = forget.mean_F / (retain.mean_F + self.epsilon), forget.rate_F - retain.rate_F
        return _where(more_F > 0, _best_then_ratio(more_F, ratio_F, self.candidates, self.tau))


@dataclass(frozen=True)
class CrispRaw:
    """Score = forget count - retain count; of the 10 ``features`` best those with sum ratio S_f / (S_r + eps) >= tau.

    CRISP's released code (arXiv 2508.13650, commit f25b8df), which keeps the first ``features`` of what is left. It
    differs from the paper's ``Crisp``: nothing is divided by a corpus's size, so the larger corpus looks more active;
    ten times as many candidates are looked at as are kept; and one may fire less often on forget tokens.

    Args:
        features: how many are kept in the end (k there).
        tau: smallest ratio of summed activations.
        epsilon: added to the retain sum, in activation units.

    Raises:
        ValueError: as for ``Crisp``.
    """

    features: int
    tau: float = 3.0
    epsilon: float = 1.0
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_crisp(self.features, self.tau, self.epsilon)

    def __call__(self, activity: Activity) -> PerFeatureF:
        forget, retain = activity.forget, activity.retain
        ratio_F = forget.sum_F / (retain.sum_F + self.epsilon)
        return _best_then_ratio(forget.active_F - retain.active_F, ratio_F, 10 * self.features, self.tau)


@dataclass(frozen=True)
class Saeuron:
    """Score = mean_j(forget) / sum_i mean_i(forget) - the same on retain, above a percentile of all features.

    SAeUron (Cywinski and Deja, arXiv 2501.18052), made for diffusion models; percentiles there are 99.99 to 99.999.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """

    percentile: float
    role: ClassVar[Role] = "detect"

    def __post_init__(self) -> None:
        _check_percentile(self.percentile)

    def __call__(self, activity: Activity) -> PerFeatureF:
        share_F = [side.mean_F / side.mean_F.sum().clamp(min=1e-300) for side in (activity.forget, activity.retain)]
        score_F = share_F[0] - share_F[1]
        return _where((score_F > 0) & (score_F >= torch.quantile(score_F, self.percentile / 100)), score_F)


@dataclass(frozen=True)
class Auroc:
    """Score = area under the ROC curve of a feature's activation, forget against retain, for areas above 1/2.

    Args:
        unit: "token", or "row": a row's largest activation.
    """

    unit: Unit
    role: ClassVar[Role] = "detect"
    needs_values: ClassVar[bool] = True

    def __call__(self, activity: Activity) -> PerFeatureF:
        values = activity.by_token if self.unit == "token" else activity.by_row
        if values is None:
            raise ValueError("AUROC needs every activation; call observe with values=True")
        forget, retain = activity.forget, activity.retain
        counts = (forget.tokens_G, retain.tokens_G) if self.unit == "token" else (forget.rows_G, retain.rows_G)
        area_F = values.auroc_F(*counts, forget.weight_G, retain.weight_G)
        return _where((area_F > 0.5) & activity.fires_F, area_F)


@dataclass(frozen=True)
class ChiSquared:
    """Score = chi-squared of on/off against forget/retain, for features on at a larger share of forget.

    Args:
        unit: "token", or "row": on at any token of a row. Tokens of one row are not independent, so the statistic of
            tokens orders features but is no test.
    """

    unit: Unit
    role: ClassVar[Role] = "detect"

    def __call__(self, activity: Activity) -> PerFeatureF:
        forget, retain = activity.forget, activity.retain
        if self.unit == "token":
            on, n = (forget.active_F, retain.active_F), (forget.tokens, retain.tokens)
        else:
            on, n = (forget.active_rows_F, retain.active_rows_F), (forget.rows, retain.rows)
        return _where(on[0] / n[0] > on[1] / n[1], chi_squared(on[0], n[0], on[1], n[1]))


@dataclass(frozen=True)
class MeanDifference:
    """Score = forget mean - retain mean, for features stronger on forget tokens."""

    role: ClassVar[Role] = "detect"

    def __call__(self, activity: Activity) -> PerFeatureF:
        difference_F = activity.forget.mean_F - activity.retain.mean_F
        return _where(difference_F > 0, difference_F)


def _top_ratio(
    forget_F: PerFeatureF, retain_F: PerFeatureF, on_F: Bool[Tensor, " F"], percentile: float
) -> PerFeatureF:
    if not bool(on_F.any()):
        return _where(on_F, forget_F)
    # 1e-21 is the published code's.
    ratio_F = forget_F / (retain_F + 1e-21)
    weakest = torch.quantile(forget_F[on_F], 0.05)
    smallest = torch.quantile(ratio_F[on_F], percentile / 100)
    return _where(on_F & (forget_F >= weakest) & (ratio_F >= smallest), forget_F)


def _best_then_ratio(score_F: PerFeatureF, ratio_F: PerFeatureF, candidates: int, tau: float) -> PerFeatureF:
    best_F = torch.zeros_like(score_F, dtype=torch.bool)
    best_F[score_F.sort(descending=True, stable=True).indices[:candidates]] = True
    return _where(best_F & (ratio_F >= tau), score_F)


def _where(admitted_F: Bool[Tensor, " F"], score_F: PerFeatureF) -> PerFeatureF:
    return torch.where(admitted_F, score_F, -torch.inf)


def _check_share(threshold: float, name: str) -> None:
    if not 0 < threshold <= 1:
        raise ValueError(f"{name} is a share of tokens in (0, 1], got {threshold}")


def _check_percentile(percentile: float) -> None:
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must lie in [0, 100), got {percentile}")


def _check_crisp(candidates: int, tau: float, epsilon: float) -> None:
    if candidates < 1 or not tau > 0 or not epsilon > 0:
        raise ValueError(
            f"CRISP takes at least one candidate and a tau and an epsilon above 0, got {candidates}, {tau}, {epsilon}"
        )
