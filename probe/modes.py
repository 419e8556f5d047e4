"""Put a model into evaluation mode for a while."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off inside the block and give every submodule its own mode back afterwards.

    Args:
        model: warned about if it is in train mode, for what is measured is then not what training sees.
    """
    modes = [(module, module.training) for module in model.modules()]
    if model.training:
        warnings.warn("the model is in train mode; it is measured in eval mode and put back", stacklevel=4)
    try:
        model.eval()
        yield
    finally:
        for module, training in modes:
            module.training = training
