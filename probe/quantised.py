"""Weights kept as something else than one float each: the one place that knows formats of quantisation."""

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import is_traceable_wrapper_subclass


def quantised(model: nn.Module) -> dict[str, int]:
    """Names of weights kept as whole numbers or as floats of one byte, and how many weights each stands for.

    They are parameters or saved buffers, tensors inside tensors (torchao), or packed (``torch.ao``). 4-bit and 8-bit
    formats keep them without gradient; two 4-bit weights share a byte, so the count comes from the layer's widths where
    it has them.
    """
    found: dict[str, int] = {}
    for prefix, module in model.named_modules():
        kept = {**module._parameters, **beside_parameters(module)}
        integer = {name: t for name, t in kept.items() if t is not None and is_coded(t)}
        if not integer:
            continue
        largest = max(integer, key=lambda name: integer[name].numel())
        rows, columns = getattr(module, "out_features", None), getattr(module, "in_features", None)
        size = rows * columns if isinstance(rows, int) and isinstance(columns, int) else integer[largest].numel()
        found[f"{prefix}.{largest}" if prefix else largest] = size
    return found


def beside_parameters(module: nn.Module) -> dict[str, Tensor]:
    """Quantised weights that a module keeps in saved buffers (GPTQ), or packed (``torch.ao``)."""
    found = {
        name: buffer
        for name, buffer in module._buffers.items()
        if buffer is not None and name not in module._non_persistent_buffers_set and is_coded(buffer)
    }
    if type(module).__module__.startswith("torch.ao.nn.") and callable(getattr(module, "weight", None)):
        found["weight"] = module.weight()  # type: ignore[operator]
    return found


def parts(value: Tensor) -> Iterator[Tensor]:
    """The plain tensors that a tensor is made of: itself, or what a quantised one holds inside."""
    if is_traceable_wrapper_subclass(value) and not isinstance(value, DTensor):
        for name in value.__tensor_flatten__()[0]:
            yield from parts(getattr(value, name))
    elif value.is_quantized:
        yield value.int_repr()
        each = value.qscheme() in (torch.per_channel_affine, torch.per_channel_affine_float_qparams)
        yield value.q_per_channel_scales() if each else torch.tensor(value.q_scale())
        yield value.q_per_channel_zero_points() if each else torch.tensor(value.q_zero_point())
    else:
        yield value


def is_coded(value: Tensor) -> bool:
    """Whether it is a matrix of whole numbers or of floats of one byte, which need a scale beside them."""
    return value.ndim > 1 and any(
        part.dtype != torch.bool and (not part.is_floating_point() or part.dtype.itemsize == 1) for part in parts(value)
    )
