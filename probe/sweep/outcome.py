"""What one cell gave: numbers for the journal, arrays for a file, or why it failed."""

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from probe.rows import FULL
from probe.sweep.cell import RESERVED, Cell, canonical


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
    cause: Exception | None = None


def outcome_of(run: Callable[..., Mapping[str, Any]], cell: Cell) -> Outcome:
    """Run one cell.

    Raises:
        OSError: the disk is full; that is no property of the cell.
    """
    try:
        return _sorted_out(dict(run(**cell)), cell)
    except Exception as error:
        if isinstance(error, OSError) and error.errno in FULL:
            text = f"{error.strerror} while cell {json.dumps(dict(cell))} ran; the cells finished before are safe"
            raise OSError(error.errno, text) from error
        record = {"values": {}, "status": "failed", "error": f"{type(error).__name__}: {error}"}
        return Outcome(record, cause=error)


def _sorted_out(given: dict[str, Any], cell: Cell) -> Outcome:
    taken = sorted(set(given) & {*RESERVED, *cell})
    if taken:
        raise ValueError(f"the result {taken[0]!r} has the name of an axis or of a field of every record; rename it")
    values, arrays = {}, {}
    for name, value in given.items():
        if getattr(value, "shape", None) is None or not hasattr(value, "dtype"):
            values[name] = value
        elif len(value.shape) == 0:
            # One number in numpy's or torch's clothes.
            values[name] = value.item()
        else:
            arrays[name] = _on_cpu(value)
    odd = [name for name, value in values.items() if isinstance(value, float) and not math.isfinite(value)]
    odd += [name for name, value in arrays.items() if not _finite(value)]
    values |= {name: None for name in odd if name in values}
    canonical(values)  # what is no JSON is this cell's mistake, not the journal's
    record = {"values": values, "status": "nonfinite" if odd else "ok", "error": ", ".join(odd)}
    if not arrays:
        return Outcome(record)
    data = _packed(arrays)
    return Outcome({**record, "arrays": {"names": sorted(arrays), "sha256": sha256(data).hexdigest()}}, data)


def _on_cpu(value: Any) -> Any:
    return value.detach().cpu().contiguous() if hasattr(value, "detach") else value


def _finite(value: Any) -> bool:
    import numpy as np

    if hasattr(value, "detach"):
        return bool(value.isfinite().all())
    return value.dtype.kind not in "fc" or bool(np.isfinite(value).all())


def _packed(arrays: Mapping[str, Any]) -> bytes:
    """The bytes of a safetensors file; torch is imported only where a tensor is among the arrays."""
    import numpy as np

    if any(hasattr(value, "detach") for value in arrays.values()):
        import torch
        from safetensors.torch import save

        return save({name: torch.as_tensor(value).clone() for name, value in arrays.items()})
    from safetensors.numpy import save as save_arrays

    return save_arrays({name: np.ascontiguousarray(value) for name, value in arrays.items()})
