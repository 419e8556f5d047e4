"""What to minimise: each objective is a callable ``(model, batch) -> scalar``."""

from collections.abc import Callable

from torch import nn

from probe.axes import Scalar
from probe.data import Batch

Objective = Callable[[nn.Module, Batch], Scalar]
