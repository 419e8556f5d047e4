"""What a model can be run on when it is measured."""

import torch
from torch import nn


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lies."""
    return next(model.parameters()).device
