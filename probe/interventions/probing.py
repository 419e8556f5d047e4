"""A linear probe: what can be read from activations, and the direction along which it is read."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import DirectionD, HiddenND
from probe.interventions.activations import OtherND, check_direction, check_number


@dataclass(frozen=True, eq=False)
class Probe:
    """logit = h . d + b, positive where the probe says "forget"; d serves ``Project`` and ``Steer``.

    Args:
        direction_D: d, in logits per activation unit.
        bias: b.
        train_accuracy: share of the activations it was fitted on that it calls right, classes weighted equally.

    Raises:
        ValueError: d is not one finite, non-zero vector.
    """

    direction_D: DirectionD = field(repr=False)
    bias: float
    train_accuracy: float

    def __post_init__(self) -> None:
        check_direction(self.direction_D, "the probe's direction")
        check_number(self.bias, "bias")

    def __call__(self, hidden_ND: HiddenND) -> Float[Tensor, " N"]:
        return hidden_ND @ self.direction_D.to(hidden_ND) + self.bias

    def score(self, forget_ND: HiddenND, retain_ND: OtherND) -> float:
        """Balanced accuracy: mean of the shares called right on either side.

        Raises:
            ValueError: a side is empty.
        """
        _check_counts(forget_ND, retain_ND)
        return _balanced_accuracy(self(forget_ND), self(retain_ND))


def fit_probe(forget_ND: HiddenND, retain_ND: OtherND) -> Probe:
    """Logistic regression (L2, C = 1) on standardised activations, classes weighted equally, folded to raw units.

    The fit has one optimum and needs no seed. Held-out numbers are the caller's: rows of one group must never lie
    on both sides of a split.

    Args:
        forget_ND: activations of the class "forget".
        retain_ND: activations of the other class.

    Raises:
        ValueError: a class has no activations, the widths differ, or NaN or infinity.

    >>> fitted = probe.fit_probe(torch.randn(20, 8) + 1, torch.randn(20, 8))
    >>> tuple(fitted.direction_D.shape)
    (8,)
    """
    _check_counts(forget_ND, retain_ND)
    if forget_ND.shape[1] != retain_ND.shape[1]:
        raise ValueError(f"forget activations have width {forget_ND.shape[1]}, retain {retain_ND.shape[1]}")
    from sklearn.linear_model import LogisticRegression
    from sklearn.preprocessing import StandardScaler

    both_ND = torch.cat([forget_ND, retain_ND]).detach().cpu().double()
    if not bool(torch.isfinite(both_ND).all()):
        raise ValueError("the activations hold NaN or infinity; check the model and the site")
    label_N = torch.cat([torch.ones(len(forget_ND)), torch.zeros(len(retain_ND))]).numpy()
    scaler: Any = StandardScaler()
    fitted: Any = LogisticRegression(class_weight="balanced", max_iter=1000)
    fitted.fit(scaler.fit_transform(both_ND.numpy()), label_N)
    raw_D = fitted.coef_[0] / scaler.scale_
    bias = float(fitted.intercept_[0] - raw_D @ scaler.mean_)
    logit_N = torch.from_numpy(both_ND.numpy() @ raw_D + bias)
    accuracy = _balanced_accuracy(logit_N[: len(forget_ND)], logit_N[len(forget_ND) :])
    return Probe(torch.from_numpy(raw_D).to(forget_ND), bias, accuracy)


def _balanced_accuracy(forget_N: Tensor, retain_M: Tensor) -> float:
    return ((forget_N > 0).double().mean() + (retain_M <= 0).double().mean()).item() / 2


def _check_counts(forget_ND: HiddenND, retain_ND: OtherND) -> None:
    if len(forget_ND) == 0 or len(retain_ND) == 0:
        raise ValueError(
            f"a probe needs activations of both classes, got {len(forget_ND)} forget and {len(retain_ND)} retain"
        )
