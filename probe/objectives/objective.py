"""The type of everything that is minimised."""

from collections.abc import Callable

from torch import nn

from probe.axes import Scalar
from probe.data import Batch

Objective = Callable[[nn.Module, Batch], Scalar]
