"""Rules by name: from words of the command line to values."""

import math
from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from probe.features.attribution import ByEffect
from probe.features.rules import (
    Auroc,
    Crisp,
    CrispRaw,
    Frequency,
    MeanDifference,
    MeanSquareRatio,
    Saeuron,
    SquaredMeanRatio,
)

# A rule and whether it takes a number.
_RULES: dict[str, tuple[Callable[..., Any], bool]] = {
    "frequency": (Frequency, True),
    "mean-square-ratio": (MeanSquareRatio, True),
    "squared-mean-ratio": (SquaredMeanRatio, True),
    "crisp": (lambda n: Crisp(_whole(n)), True),
    "crisp-released": (lambda n: CrispRaw(_whole(n)), True),
    "saeuron": (Saeuron, True),
    "mean-difference": (MeanDifference, False),
    "auroc": (lambda: Auroc("row"), False),
    "attribution": (lambda: ByEffect(against="retain"), False),
    "attribution-ratio": (lambda: ByEffect(against="ratio"), False),
}
NAMES = tuple(_RULES)


def read_rule(text: str) -> Any:
    """The rule that ``text`` names.

    Args:
        text: a name, with its number after a colon where it takes one: "frequency:0.01".

    Raises:
        ValueError: an unknown name, a number too many or missing, or one that the rule refuses.
    """
    name, _, given = text.partition(":")
    if name not in _RULES:
        near = get_close_matches(name, NAMES, n=1)
        raise ValueError(f"no rule {name!r}; {f'did you mean {near[0]!r}? ' if near else ''}known: {', '.join(NAMES)}")
    make, takes = _RULES[name]
    if bool(given) != takes:
        raise ValueError(f"rule {name} takes {'a number after a colon' if takes else 'no number'}, got {text!r}")
    if not takes:
        return make()
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise ValueError(f"{given!r} in {text!r} is not a number")
    return make(value)


def read_rules(texts: tuple[str, ...], flag: str = "--rules") -> list[Any]:
    """Several rules.

    Raises:
        ValueError: none, one twice, or as ``read_rule``.
    """
    if not texts or len(set(texts)) < len(texts):
        raise ValueError(f"{flag} takes at least one rule, each once; got {' '.join(texts) or 'none'}")
    return [read_rule(text) for text in texts]


def _whole(number: float) -> int:
    if number != int(number):
        raise ValueError(f"a number of features is whole, got {number:g}")
    return int(number)
