"""Weights that an attack changes for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from probe.weights import check_present


@contextmanager
def weights_restored(model: nn.Module) -> Iterator[None]:
    """Weights may be changed in place inside; afterwards they have their bits, in the same storage.

    Unlike a copy of the model this works inside ``edited`` and ``blended`` blocks, whose hooks and mixtures then are
    part of what is attacked. It holds a second set of the weights.

    Raises:
        ValueError: weights that are not loaded.
    """
    check_present(model)
    before = [(p, p.detach().clone()) for p in model.parameters()]
    flags = [p.requires_grad for p, _ in before]
    try:
        yield
    finally:
        with torch.no_grad():
            for (p, weight), flag in zip(before, flags, strict=True):
                p.copy_(weight)
                p.requires_grad_(flag)
