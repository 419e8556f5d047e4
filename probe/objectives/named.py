"""Objectives by name, settings after a colon: "ga", "npo:beta=0.1"."""

import math
from collections.abc import Callable, Mapping
from dataclasses import MISSING, dataclass, fields
from difflib import get_close_matches
from typing import Any

from torch import nn

from probe.data import Batch
from probe.objectives.distribution import KLFromUniform, KLToUniform
from probe.objectives.objective import Objective
from probe.objectives.original import OriginalAnswers
from probe.objectives.retain import ForwardKL, ReverseKL
from probe.objectives.sequence import NPO, BatchNPO, BatchSimNPO, SimNPO
from probe.objectives.token import TNPO, WGA, WTNPO, SatImp, ga, nll

_PLAIN: dict[str, Objective] = {"ga": ga, "nll": nll}
# Those with settings; the second entry says whether they compare with the model before unlearning.
_MADE: dict[str, tuple[Callable[..., Any], bool]] = {
    "wga": (WGA, False),
    "tnpo": (TNPO, True),
    "wtnpo": (WTNPO, True),
    "sat_imp": (SatImp, False),
    "npo": (NPO, True),
    "batch_npo": (BatchNPO, True),
    "simnpo": (SimNPO, False),
    "batch_simnpo": (BatchSimNPO, False),
    "kl": (ForwardKL, True),
    "reverse_kl": (ReverseKL, True),
    "kl_to_uniform": (KLToUniform, False),
    "kl_from_uniform": (KLFromUniform, False),
}
_WHOLE = ("kl", "reverse_kl")
NAMES = (*_PLAIN, *_MADE)
# What the objectives' docstrings give as published.
_PUBLISHED = {
    ("wga", "beta"): "5, OpenUnlearning 1",
    ("tnpo", "beta"): "4",
    ("wtnpo", "beta"): "4",
    ("wtnpo", "alpha"): "1.5",
    ("sat_imp", "beta1"): "5",
    ("sat_imp", "beta2"): "1 and 0.1",
    ("npo", "beta"): "0.1",
    ("batch_npo", "beta"): "0.0225",
    ("simnpo", "beta"): "2.5 and 4.5",
    ("batch_simnpo", "beta"): "0.1 and 5.5",
}


@dataclass(frozen=True)
class Named:
    """An objective as it was typed, its settings read but nothing computed.

    Args:
        text: as typed, "npo:beta=0.1"; what results are called by.
        name: of the objective.
        settings: key -> number.
    """

    text: str
    name: str
    settings: Mapping[str, float]

    @property
    def compares(self) -> bool:
        """Whether it needs the model before unlearning."""
        return self.name in _MADE and _MADE[self.name][1]

    @property
    def whole(self) -> bool:
        """Whether it compares whole distributions, whose divergence is zero where nothing has changed."""
        return self.name in _WHOLE

    def made(self, reference: OriginalAnswers | None) -> Objective:
        """The objective.

        Raises:
            ValueError: a setting out of range, or no reference where one is needed.
        """
        if self.name in _PLAIN:
            return _PLAIN[self.name]
        make, compares = _MADE[self.name]
        if compares and reference is None:
            raise ValueError(f"{self.name} compares with the model before unlearning; give its reference")
        return make(*([reference] if compares else []), **self.settings)  # type: ignore[no-any-return]


def read_objective(text: str) -> Named:
    """One objective from ``name`` or ``name:key=value,key=value``.

    Raises:
        ValueError: an unknown name or key, a value that is no finite number, or settings without a value.
    """
    name, colon, rest = text.partition(":")
    if name not in NAMES:
        near = get_close_matches(name, NAMES, n=1, cutoff=0.5)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"no objective {name!r}{hint}; known: {', '.join(NAMES)}")
    known = _settings_of(name)
    settings: dict[str, float] = {}
    for piece in rest.split(",") if colon else ():
        key, equals, value = piece.partition("=")
        if not equals or key not in known:
            has = f"it has {', '.join(known)}" if known else "it has none"
            raise ValueError(f"{piece!r} in {text!r} is no key=value of {name}; {has}")
        settings[key] = _read(text, value)
    absent = [key for key, needed in known.items() if needed and key not in settings]
    if absent:
        parts = [f"{key} (published: {_PUBLISHED.get((name, key), 'none')})" for key in absent]
        example = f"{name}:" + ",".join(f"{key}=NUMBER" for key in absent)
        raise ValueError(f"{name} needs {' and '.join(parts)}; write {example}")
    return Named(text, name, settings)


def reference_for(named: list[Named], model: nn.Module, batch: Batch) -> OriginalAnswers | None:
    """The original's answers to all rows, computed once; None where no objective compares with it.

    Args:
        named: what will ask.
        model: before unlearning.
        batch: rows that will be asked for.
    """
    if not any(one.compares for one in named):
        return None
    return OriginalAnswers(model, batch, states=any(one.whole for one in named))


def _settings_of(name: str) -> dict[str, bool]:
    """Settings that are numbers, and whether each must be given."""
    if name in _PLAIN:
        return {}
    return {
        field.name: field.default is MISSING
        for field in fields(_MADE[name][0])  # type: ignore[arg-type]
        if field.type in (float, "float")
    }


def _read(text: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"{value!r} in {text!r} cannot be read; expected a finite number")
    return number
