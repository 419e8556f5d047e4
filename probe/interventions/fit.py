"""Whether a plan fits a model: whose weights it was made for, and how wide the hidden states are at its places."""

import hashlib
from typing import Any

import torch
from torch import Tensor, nn

from probe.interventions.operations import OPERATIONS, Operation
from probe.sites import Place, n_layers, unwrapped

MODEL_KEYS = ("class", "layers", "width", "dtype", "weights")


def fingerprint(model: nn.Module) -> dict[str, Any]:
    """Class, number of layers, width and dtype of a model, and a checksum of its weights.

    The checksum is exact integer arithmetic over the bits of every parameter, so that devices and thread counts agree;
    it is much cheaper than a hash of all bytes, and a change of any single weight changes it.
    """
    inner: Any = unwrapped(model)
    digest = hashlib.sha256()
    for name, parameter in sorted(inner.named_parameters()):
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}\n".encode())
        if not parameter.is_meta:
            digest.update(f"{_sum_of_bits(parameter)}\n".encode())
    loaded = not any(parameter.is_meta for parameter in inner.parameters())
    return {
        "class": type(inner).__name__,
        "layers": n_layers(model),
        "width": int(inner.config.get_text_config().hidden_size),
        "dtype": str(next(inner.parameters()).dtype).removeprefix("torch."),
        "weights": digest.hexdigest() if loaded else None,
    }


def _sum_of_bits(parameter: Tensor) -> tuple[int, int, list[int]]:
    byte = parameter.detach().contiguous().view(-1).view(torch.uint8)
    # Words of eight bytes lie at multiples of eight.
    byte = byte.clone() if byte.storage_offset() % 8 else byte
    end = len(byte) - len(byte) % 8
    word = byte[:end].view(torch.int64)
    # A plain sum would not see two weights change places; words spread over the tensor mostly do.
    some = word[:: max(1, len(word) // 256)]
    return int(word.sum().item()), int(byte[end:].sum().item()), some.tolist()


def check_same(planned: dict[str, Any], found: dict[str, Any]) -> None:
    """Refuse a model that a plan was not made for; both sides are fingerprints.

    Raises:
        ValueError: what differs.
    """
    if planned["weights"] is None:
        found = {**found, "weights": None}  # compiled for a model that was not loaded
    elif found["weights"] is None:
        raise ValueError(
            "the model's weights are not loaded, so they cannot be compared with those the plan was made for; pass "
            "allow_other_model=True to do without"
        )
    odd = [key for key in MODEL_KEYS if planned[key] != found[key]]
    if odd:
        shown = ", ".join(f"{k} {planned[k]} against {found[k]}" for k in odd if k != "weights") or "other weights"
        raise ValueError(
            f"the plan was made for another model ({shown}); pass allow_other_model=True if that is meant, for "
            "example to try it on an unlearned twin"
        )


def width_at(model: nn.Module, place: Place) -> int:
    """Width of the hidden states at a place, told without running the model."""
    if place.width is not None:
        return int(place.width.stop - place.width.start)
    module = place.module
    if isinstance(module, nn.Linear):
        return module.in_features if place.side == "in" else module.out_features
    weight = getattr(module, "weight", None)
    if isinstance(weight, Tensor):
        # GPT-2's Conv1D keeps (in, out), an embedding (token, width), a norm (width,).
        return int(weight.shape[0 if place.side == "in" else -1])
    config: Any = unwrapped(model).config
    return int(config.get_text_config().hidden_size)


def check_tensors(operation: Operation, where: str, width: int) -> None:
    """Refuse tensors that do not belong together or are not as wide as the hidden states.

    Raises:
        ValueError: both sizes.
    """
    sizes = {"D": width}
    for name, axes in OPERATIONS[operation.name][0].items():
        shape = operation.tensors[name].shape
        what = f"{name} of {operation.name!r} at {where}"
        if axes == "...D" and len(shape) in (1, 3):
            axes, shape = "D", shape[-1:]
        if len(axes) != len(shape):
            raise ValueError(f"{what} has shape {tuple(shape)}; expected the axes {axes}")
        for letter, size in zip(axes, shape, strict=True):
            expected = sizes.setdefault(letter, size)
            if size == expected:
                continue
            if letter == "D":
                raise ValueError(
                    f"{what} has width {size}, the hidden states there have width {width}; it was made for another "
                    "model or site"
                )
            raise ValueError(f"{what} has {size} entries along {letter}, the tensors beside it {expected}")
