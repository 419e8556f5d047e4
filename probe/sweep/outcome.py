"""What one cell gave: numbers for the journal, arrays for a file, or why it failed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from probe.ranges import shortened
from probe.rows import FULL
from probe.sweep.cell import RESERVED, Cell
from probe.sweep.stopping import Terminated

_MAY_BE = "a cell gives a dict from names to numbers, texts, booleans, None, lists and dicts of these, or arrays"


class OddResultError(ValueError):
    """What a cell gave cannot be written; the message names the place and says what a result may be."""


@dataclass(frozen=True)
class Outcome:
    """One cell's result.

    Args:
        record: ``values``, ``status``, ``error`` and, where there are arrays, their names and the hash of their file.
        arrays: the bytes of the safetensors file, if any.
        cause: what was raised, if the cell failed.
    """

    record: dict[str, Any]
    arrays: bytes | None = None
    cause: BaseException | None = None


def outcome_of(run: Callable[..., Mapping[str, Any]], cell: Cell) -> Outcome:
    """Run one cell. One that ends the program by ``sys.exit`` has failed, too.

    Raises:
        OSError: the disk is full; that is no property of the cell.
        KeyboardInterrupt, SystemExit: Ctrl-C and SIGTERM.
    """
    try:
        return _sorted_out(run(**cell), cell)
    except (Exception, SystemExit) as error:
        if isinstance(error, Terminated):
            raise
        if isinstance(error, OSError) and error.errno in FULL:
            text = f"{error.strerror} while cell {json.dumps(dict(cell))} ran; the cells finished before are safe"
            raise OSError(error.errno, text) from error
        why = f"it called sys.exit({error.code!r})" if isinstance(error, SystemExit) else str(error)
        # What cannot be encoded cannot be written either.
        text = f"{type(error).__name__}: {why}".encode(errors="backslashreplace").decode()
        return Outcome({"values": {}, "status": "failed", "error": text}, cause=error)


def _sorted_out(given: Any, cell: Cell) -> Outcome:
    if not isinstance(given, Mapping):
        if hasattr(given, "close") and hasattr(given, "cr_await"):
            given.close()
        how = {"coroutine": "; call it with asyncio.run", "generator": "; collect what it yields"}
        kind = type(given).__name__
        raise OddResultError(f"the result is {'None' if given is None else f'a {kind}'}{how.get(kind, '')}: {_MAY_BE}")
    for name in given:
        if not isinstance(name, str):
            raise OddResultError(f"a result is called {name!r}, a {type(name).__name__}: {_MAY_BE}")
        _check_text(name, "the name of a result")
    taken = sorted(set(given) & {*RESERVED, *cell})
    if taken:
        raise OddResultError(
            f"the result {taken[0]!r} has the name of an axis or of a field of every record; rename it"
        )
    arrays = {name: _on_cpu(value) for name, value in given.items() if _is_array(value) and len(value.shape)}
    odd: list[str] = []
    values = {name: _plain(value, name, odd) for name, value in given.items() if name not in arrays}
    odd += [name for name, value in arrays.items() if not _finite(value, name)]
    record = {"values": values, "status": "nonfinite" if odd else "ok", "error": ", ".join(odd)}
    if not arrays:
        return Outcome(record)
    data = _packed(arrays)
    return Outcome({**record, "arrays": {"names": sorted(arrays), "sha256": sha256(data).hexdigest()}}, data)


def _is_array(value: Any) -> bool:
    return getattr(value, "shape", None) is not None and hasattr(value, "dtype")


def _plain(value: Any, where: str, odd: list[str], depth: int = 0) -> Any:
    """The value as JSON has it; NaN and infinity are None, and their places are noted in ``odd``."""
    if _is_array(value) and len(value.shape) == 0:
        # One number in numpy's or torch's clothes.
        value = value.item()
    if depth > 100:
        raise OddResultError(f"the result {where[:40]}... is nested more than 100 deep: {_MAY_BE}")
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        _check_text(value, where)
        return str(value)
    if isinstance(value, int):
        if value.bit_length() > 1024:
            raise OddResultError(f"the result {where} is {shortened(value)}, more than a float can hold; give its log")
        return int(value)
    if isinstance(value, float):
        if not math.isfinite(value):
            odd.append(where)
            return None
        return float(value)
    if isinstance(value, list | tuple):
        return [_plain(one, f"{where}[{i}]", odd, depth + 1) for i, one in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        for key in value:
            _check_text(key, where)
        return {str(key): _plain(one, f"{where}.{key}", odd, depth + 1) for key, one in value.items()}
    more = " (arrays stand under a name of their own, not inside lists)" if _is_array(value) else ""
    shown = "a dict with keys that are no texts" if isinstance(value, Mapping) else f"a {type(value).__name__}"
    raise OddResultError(f"the result {where} is {shown}{more}: {_MAY_BE}")


def _check_text(text: str, where: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise OddResultError(f"{where} holds half of a surrogate pair at character {error.start}; mend it") from None


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().contiguous() if hasattr(value, "detach") else value


def _finite(value: Any, name: str) -> bool:
    import numpy as np

    if hasattr(value, "detach"):
        return bool(value.isfinite().all())
    if value.dtype.kind not in "biuf":
        raise OddResultError(f"the array {name} is of dtype {value.dtype}: {_MAY_BE}")
    return value.dtype.kind != "f" or bool(np.isfinite(value).all())


def _packed(arrays: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file; torch is imported only where a tensor is among the arrays."""
    import numpy as np

    if any(hasattr(value, "detach") for value in arrays.values()):
        import torch
        from safetensors.torch import save

        return save({name: torch.as_tensor(value).clone() for name, value in arrays.items()})
    from safetensors.numpy import save as save_arrays

    return save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()})
