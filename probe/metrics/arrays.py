"""What a metric accepts: arrays without NaN, of the right number of axes, in float64."""

from typing import Any

import numpy as np
from jaxtyping import Float

ArrayN = Float[np.ndarray, " N"]
ArrayNK = Float[np.ndarray, "N K"]


def numbers(values: Any, name: str, *, ndim: int = 1, infinite: bool = False) -> np.ndarray:
    """The values as a float64 array.

    Args:
        values: anything numpy turns into an array of numbers.
        name: what error messages call it.
        ndim: number of axes expected.
        infinite: whether infinities are accepted (NaN never is).

    Raises:
        ValueError: empty, ragged, another number of axes, or NaN (the message says how many).
    """
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise ValueError(f"{name} is not an array of numbers with {ndim} axes; are its rows of equal length?") from None
    if array.ndim != ndim:
        raise ValueError(f"{name} must have {ndim} axes, got shape {array.shape}")
    if array.size == 0:
        raise ValueError(f"{name} is empty (shape {array.shape}); nothing can be averaged over it")
    bad = int(np.isnan(array).sum()) if infinite else int((~np.isfinite(array)).sum())
    if bad:
        what = "NaN" if infinite else "NaN or infinite"
        raise ValueError(f"{bad} of {array.size} entries of {name} are {what}; find out why before averaging them")
    return array


def losses(values: Any, name: str, *, ndim: int = 1) -> np.ndarray:
    """Mean cross-entropies (nats per token): like ``numbers``, and none below 0.

    Raises:
        ValueError: as ``numbers``, or negative entries, as log-probabilities would have.
    """
    array = numbers(values, name, ndim=ndim)
    negative = int((array < 0).sum())
    if negative:
        raise ValueError(
            f"{negative} of {array.size} entries of {name} are negative; "
            "pass mean cross-entropies, not log-probabilities"
        )
    return array


def same_rows(first: np.ndarray, second: np.ndarray, names: tuple[str, str]) -> None:
    """Refuse two arrays with different numbers of examples.

    Raises:
        ValueError: the first axes differ.
    """
    if len(first) != len(second):
        raise ValueError(f"{names[0]} has {len(first)} examples and {names[1]} {len(second)}; they must be the same")
