"""How much memory a run needs at least, said before it begins: what can be counted, and what cannot."""

from torch import nn


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters; tied ones count once."""
    return sum(p.numel() * p.element_size() for p in model.parameters())


def training_memory(model: nn.Module, others: int = 0) -> str:
    """What weights, gradients and AdamW's two moments take if every weight is trained.

    Args:
        model: what is trained.
        others: further models of its size that are loaded meanwhile.
    """
    size = weight_bytes(model)
    loaded, training = size * (1 + others), 3 * size
    models = f"{1 + others} model{'s' * (others > 0)}"
    return (
        f"memory: {shown_size(loaded)} for the weights of {models}, and up to {shown_size(training)} for gradients and "
        "moments while training; activations, which grow with rows and their length, come on top"
    )


def shown_size(size: int) -> str:
    """Bytes as MB or GB, two digits."""
    return f"{size / 1e9:.2g} GB" if size >= 1e8 else f"{size / 1e6:.2g} MB"


def untold(line: str) -> None:
    """Where nobody is to be told."""
