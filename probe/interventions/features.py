"""The two edits of features that the literature began with, under their own names; ``suppression`` has the others."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from probe.axes import HiddenBTD
from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.interventions.activations import activations, check_number, content
from probe.interventions.operations import Operation
from probe.interventions.retained import units
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Constant, Multiply, PerFeatureK
from probe.sites import Site


@dataclass(frozen=True, eq=False)
class Clamp:
    """f'_j = value where f_j is active, for the chosen j (Farrell, Lau and Conmy, arXiv 2410.19278).

    ``Suppress`` with ``Constant``.

    Args:
        sae: anything ``probe.dictionaries.adapters.dictionary`` takes; calculates in its own dtype.
        features: ids of the chosen features; none changes no bit.
        value: in feature activation units, one number or one per feature. 0 is zero ablation; suppression in the
            literature takes negative values, since zero alone has little effect.

    Raises:
        ValueError: an id that is negative, repeated or too large; a value that is not finite; an SAE of another
            width than the hidden states, or a training object of sae-lens.

    >>> with probe.edited(s.original, {s.sae_site: probe.Clamp(s.sae, (3, 5), value=-20.0)}):
    ...     clamped = probe.nll(s.original, s.split.forget)
    """

    sae: Any = field(repr=False)
    features: Sequence[int]
    value: float | PerFeatureK
    _edit: Suppress = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _settle(self, Suppress(self.sae, self.features, Constant(self.value)))

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self._edit(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data, equal to rounding; see ``Suppress.operation``."""
        return self._edit.operation()


@dataclass(frozen=True, eq=False)
class ScaleFeatures:
    """f'_j = factor * f_j where f_j is active, for the chosen j: ``Suppress`` with ``Multiply``.

    Args:
        sae: as for ``Clamp``.
        features: ids of the chosen features; none changes no bit.
        factor: 1 changes no bit, 0 is zero ablation, negative values reverse the feature.

    Raises:
        ValueError: as for ``Clamp``.

    >>> with probe.edited(s.original, {s.sae_site: probe.ScaleFeatures(s.sae, (3, 5), factor=0.0)}):
    ...     silenced = probe.nll(s.original, s.split.forget)
    """

    sae: Any = field(repr=False)
    features: Sequence[int]
    factor: float
    _edit: Suppress = field(init=False, repr=False)

    def __post_init__(self) -> None:
        _settle(self, Suppress(self.sae, self.features, Multiply(self.factor)))

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self._edit(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data, equal to rounding; see ``Suppress.operation``."""
        return self._edit.operation()


def _settle(edit: Clamp | ScaleFeatures, made: Suppress) -> None:
    for name, value in (("_edit", made), ("sae", made.dictionary), ("features", made.features)):
        object.__setattr__(edit, name, value)


def norm_relative(
    model: nn.Module, batch: Batch, site: Site, sae: Any, features: Sequence[int], *, dose: float
) -> PerFeatureK:
    """value_j = -dose * median |h| / |row_j|: a clamp value that pushes each feature as far in every layer and model.

    The median runs over the tokens of ``batch`` but the first of each row. Clamp values in absolute units are
    0.1 to 30 residual norms from one model to the next. ``Retained.push`` is the same with special tokens left out.

    Args:
        model: the model that will be edited.
        batch: rows that stand for its usual input; the retain side, say.
        site: where it will be edited.
        sae: whose decoder rows set the scale.
        features: ids of the features to clamp.
        dose: size of the push in units of the median norm; 0.1 to 3 is the usable range.

    Returns:
        one value per feature, for ``Clamp``.

    Raises:
        ValueError: unknown features, or a dose that is not finite.

    >>> value = probe.norm_relative(s.original, s.split.forget, s.sae_site, s.sae, (3, 5), dose=1.0)
    >>> edit = probe.Clamp(s.sae, (3, 5), value)
    >>> tuple(value.shape)
    (2,)
    """
    check_number(dose, "dose")
    found = dictionary(sae)
    index_K = torch.tensor(check_features(found, features), dtype=torch.long, device=found.directions_FD.device)
    norm, unit_K = units(found, activations(model, batch, [site], tokens=content)[site], index_K)
    return -dose * norm / unit_K
