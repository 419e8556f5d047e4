"""What determines a run, as JSON: two runs of one configuration take the same steps."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from types import BuiltinFunctionType, FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from probe.checkpoints import weights_hash


def identity_of(value: Any) -> Any:
    """A JSON value that is equal iff what it stands for computes the same.

    Models and tensors are their sha256, dataclasses their fields (those that count in comparisons), functions their
    names; a function made inside another is also its byte code and what it closes over.

    Raises:
        ValueError: a value of which this cannot be told.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, Tensor):
        held = value.detach().cpu().contiguous()
        digest = hashlib.sha256(held.reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        return {"tensor": digest, "shape": list(held.shape), "dtype": str(held.dtype)}
    if isinstance(value, nn.Module):
        return {"model": weights_hash(value)}
    if is_dataclass(value) and not isinstance(value, type):
        named = {field.name: identity_of(getattr(value, field.name)) for field in fields(value) if field.compare}
        return {"type": f"{type(value).__module__}.{type(value).__qualname__}", **named}
    if isinstance(value, Mapping) and not all(isinstance(key, str) for key in value):
        pairs = sorted(((repr(key), identity_of(one)) for key, one in value.items()), key=lambda pair: pair[0])
        return {"mapping": hashlib.sha256(json.dumps(pairs, sort_keys=True).encode()).hexdigest(), "size": len(pairs)}
    if isinstance(value, Mapping):
        return {key: identity_of(one) for key, one in value.items()}
    if isinstance(value, Sequence):
        return [identity_of(one) for one in value]
    if isinstance(value, (torch.dtype, torch.device)):
        return str(value)
    if isinstance(value, partial):
        return {
            "partial": identity_of(value.func),
            "args": identity_of(value.args),
            "keywords": identity_of(value.keywords),
        }
    if isinstance(value, (FunctionType, BuiltinFunctionType)):
        return _function(value)
    raise ValueError(
        f"a {type(value).__qualname__} cannot be described, so a run with it could not be told from another when it is "
        "resumed; make it a frozen dataclass or a function"
    )


def _function(value: Any) -> Any:
    name = f"{value.__module__}.{value.__qualname__}"
    if "<" not in name:
        return name
    cells = [identity_of(cell.cell_contents) for cell in value.__closure__ or ()]
    return {"function": name, "code": hashlib.sha256(value.__code__.co_code).hexdigest(), "closed over": cells}


def configuration_hash(configuration: Mapping[str, Any]) -> str:
    """sha256 of the configuration as JSON with sorted keys."""
    return hashlib.sha256(json.dumps(configuration, sort_keys=True).encode()).hexdigest()


def differences(before: Any, now: Any, path: str = "") -> list[str]:
    """One line for each place where two configurations differ."""
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        keys = dict.fromkeys([*before, *now])
        return [d for key in keys for d in differences(before.get(key), now.get(key), f"{path}.{key}".lstrip("."))]
    if isinstance(before, list) and isinstance(now, list) and len(before) == len(now):
        pairs = enumerate(zip(before, now, strict=True))
        return [d for i, (one, other) in pairs for d in differences(one, other, f"{path}[{i}]")]
    return [] if before == now else [f"{path}: {json.dumps(before)} there, {json.dumps(now)} now"]
