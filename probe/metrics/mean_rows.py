"""Means over examples as rows of results."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from probe.metrics.intervals import grouped_share
from probe.rows import Row


def mean_row(
    name: str, diagnostic: str, quantity: str, value_N: Any, on: str, groups: Sequence[str] | None = None, **more: Any
) -> Row:
    """A mean over examples of numbers in [0, 1], with its 95 % interval over groups (Wilson's form, ``grouped_share``).

    Args:
        name, diagnostic, quantity, on, more: of the row.
        value_N: one an example.
        groups: of the examples, which are not independent within one; None counts each as its own.
    """
    value_N = np.asarray(value_N, dtype=float)
    low = high = None
    if len(value_N) > 1 and np.isfinite(value_N).all():
        _, low, high = grouped_share(value_N, tuple(map(str, range(len(value_N)))) if groups is None else groups).ends
    return Row(name, diagnostic, quantity, float(value_N.mean()), on, low=low, high=high, n=len(value_N), **more)
