"""How a step of a plan looks in JSON, and the strict way back."""

import difflib
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from probe.interventions.operations import OPERATIONS, Operation
from probe.positions import Before, From, Mask, NotIds, Only, Positions, everywhere, generated, last, not_first, prompt

_NAMED: dict[str, Positions] = {
    "everywhere": everywhere,
    "not_first": not_first,
    "prompt": prompt,
    "generated": generated,
    "last": last,
}
_COUNTED: dict[str, tuple[Any, str]] = {
    "before": (Before, "length"),
    "from": (From, "start"),
    "only": (Only, "indices"),
    "not_ids": (NotIds, "ids"),
}
_STEP_KEYS = ("module", "side", "columns", "operation", "numbers", "positions")
# JSON has no infinity, and only these numbers may be one.
_BOUNDS = ("low", "high")
_INFINITE = {"inf": math.inf, "-inf": -math.inf}


def positions_as_json(positions: Positions | None) -> dict[str, Any] | None:
    """Positions in words and numbers; the tensor of a ``Mask`` is kept beside.

    Raises:
        ValueError: positions that are not one of the choices in ``probe.positions``.
    """
    if positions is None:
        return None
    for name, chosen in _NAMED.items():
        if positions is chosen:
            return {"kind": name}
    for name, (kind, key) in _COUNTED.items():
        if type(positions) is kind:
            value = getattr(positions, key)
            return {"kind": name, key: list(value) if isinstance(value, tuple) else value}
    if isinstance(positions, Mask):
        return {"kind": "mask"}
    raise ValueError(
        f"positions {getattr(positions, '__qualname__', type(positions).__name__)!r} cannot be written down; a plan "
        "takes everywhere, not_first, prompt, generated, last, Before, From, Only, NotIds and Mask"
    )


def step_as_json(
    module: str, side: str, columns: tuple[int, int] | None, operation: Operation, positions: Positions | None
) -> dict[str, Any]:
    """A step without its tensors, ready for JSON."""
    numbers = {name: str(n) if isinstance(n, float) and math.isinf(n) else n for name, n in operation.numbers.items()}
    return {
        "module": module,
        "side": side,
        "columns": None if columns is None else list(columns),
        "operation": operation.name,
        "numbers": numbers,
        "positions": positions_as_json(positions),
    }


def read_step(index: int, entry: Any, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The arguments of a step; its tensors are taken out of ``tensors``.

    Raises:
        ValueError: an unknown or missing key, operation, kind of positions or tensor, or a value of another type.
    """
    where = f"step {index}"
    check_keys(entry, _STEP_KEYS, where)
    name, columns, numbers = entry["operation"], entry["columns"], entry["numbers"]
    if not isinstance(name, str) or name not in OPERATIONS:
        raise ValueError(f"{where} has the operation {name!r}, which is unknown; {_nearest(name, OPERATIONS)}")
    if not isinstance(entry["module"], str) or entry["side"] not in ("in", "out"):
        raise ValueError(f"{where} must have a module path and a side, in or out")
    if columns is not None and not (_is_whole(columns, 2) and 0 <= columns[0] < columns[1]):
        raise ValueError(f"{where} has the columns {columns!r}; expected null or two whole numbers, first below last")
    check_keys(numbers, OPERATIONS[name][1], f"the numbers of {where}")
    numbers = {k: _INFINITE.get(n, n) if k in _BOUNDS and isinstance(n, str) else n for k, n in numbers.items()}
    _check_numbers(numbers, OPERATIONS[name][1], where)
    taken = {}
    for key in OPERATIONS[name][0]:
        if f"{index}.{key}" not in tensors:
            raise ValueError(f"the tensor {key!r} of {where} ({name}) is missing")
        taken[key] = tensors.pop(f"{index}.{key}")
    return {
        "module": entry["module"],
        "side": entry["side"],
        "operation": Operation(name, taken, numbers),
        "columns": None if columns is None else tuple(columns),
        "positions": _restored(entry["positions"], tensors, index),
    }


def check_operation(operation: Operation, where: str) -> None:
    """Refuse an operation that ``operate`` could not run, or that could only give nonsense.

    Raises:
        ValueError: an unknown name, tensors or numbers that it does not take, NaN or infinity, a zero direction.
    """
    if operation.name not in OPERATIONS:
        raise ValueError(f"{where} is {operation.name!r}, which is unknown; {_nearest(operation.name, OPERATIONS)}")
    axes, names = OPERATIONS[operation.name]
    check_keys(operation.tensors, tuple(axes), f"the tensors of {where}")
    _check_numbers(operation.numbers, names, where)
    for name, tensor in operation.tensors.items():
        if not tensor.is_floating_point() or not bool(torch.isfinite(tensor).all()):
            raise ValueError(f"{name} of {where} must hold finite floating-point numbers, got {tensor.dtype}")
        if name == "direction" and not bool(tensor.any()):
            raise ValueError(f"{name} of {where} is zero everywhere; it points nowhere")


def read_json(path: Path) -> Any:
    """JSON in which no key comes twice.

    Raises:
        ValueError: no JSON, NaN, or a repeated key.
    """

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise ValueError(f"{path} has the key {twice!r} twice in one place")
        return dict(pairs)

    def never(constant: str) -> Any:
        raise ValueError(f"{path} holds {constant}, which is not JSON")

    try:
        return json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=once, parse_constant=never)
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not JSON ({error}); copy it again") from error


def check_keys(found: Any, expected: Sequence[str], where: str) -> None:
    """Refuse unknown and missing keys.

    Raises:
        ValueError: with the nearest known key.
    """
    if not isinstance(found, dict):
        raise ValueError(f"{where} must be an object with {', '.join(expected) or 'no key'}, got {found!r}")
    odd = [key for key in found if key not in expected]
    if odd:
        raise ValueError(f"{where} has the key {odd[0]!r}, which is unknown; {_nearest(odd[0], expected)}")
    missing = [key for key in expected if key not in found]
    if missing:
        raise ValueError(f"{where} lacks {', '.join(missing)}")


def _restored(entry: Any, tensors: dict[str, Tensor], index: int) -> Positions | None:
    if entry is None:
        return None
    where = f"the positions of step {index}"
    kind = entry.get("kind") if isinstance(entry, dict) else None
    if not isinstance(kind, str):
        raise ValueError(f"{where} must be null or an object with a kind, got {entry!r}")
    if kind == "mask":
        check_keys(entry, ("kind",), where)
        mask_BT = tensors.pop(f"{index}.mask", None)
        if mask_BT is None or mask_BT.dtype != torch.bool or mask_BT.ndim != 2:
            raise ValueError(f"{where} need the tensor 'mask', of booleans (row, column)")
        return Mask(mask_BT)
    if kind in _NAMED:
        check_keys(entry, ("kind",), where)
        return _NAMED[kind]
    if kind not in _COUNTED:
        raise ValueError(f"{where} are {kind!r}, which is unknown; {_nearest(kind, [*_NAMED, *_COUNTED])}")
    made, key = _COUNTED[kind]
    check_keys(entry, ("kind", key), where)
    value = entry[key]
    if _is_whole(value):
        return made(tuple(value))
    if kind in ("only", "not_ids") or isinstance(value, bool) or not isinstance(value, int):
        raise ValueError(f"{where} have {key} {value!r}; expected whole numbers")
    return made(value)


def _check_numbers(numbers: Any, names: Sequence[str], where: str) -> None:
    check_keys(numbers, names, f"the numbers of {where}")
    for name, number in numbers.items():
        if isinstance(number, bool) or not isinstance(number, int | float) or math.isnan(number):
            raise ValueError(f"{name} of {where} must be a number, got {number!r}")
        if math.isinf(number) and name not in _BOUNDS:
            raise ValueError(f"{name} of {where} must be finite, got {number}")
    if numbers.get("std", 0) < 0:
        raise ValueError(f"std of {where} must be at least 0, got {numbers['std']}")
    if numbers.get("low", -math.inf) > numbers.get("high", math.inf):
        raise ValueError(f"low of {where} must not be above high, got {numbers['low']} and {numbers['high']}")
    for name in ("seed", "k"):
        if not isinstance(numbers.get(name, 1), int) or (name == "k" and numbers.get(name, 1) < 1):
            raise ValueError(f"{name} of {where} must be a whole number, got {numbers[name]}")


def _is_whole(value: Any, length: int | None = None) -> bool:
    """Whether it is a list of whole numbers."""
    return (
        isinstance(value, list)
        and (length is None or len(value) == length)
        and all(isinstance(n, int) and not isinstance(n, bool) for n in value)
    )


def _nearest(name: Any, known: Any) -> str:
    close = difflib.get_close_matches(str(name), list(known), n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(known)}"
