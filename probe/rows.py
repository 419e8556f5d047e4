"""What a run leaves behind: one JSON object a line, written so that a kill loses nothing."""

import errno
import json
import math
import os
from collections.abc import Iterable
from dataclasses import MISSING, asdict, dataclass, fields
from pathlib import Path
from typing import Any, get_args, get_type_hints

# No space on the disk, a file too large for it or for a limit, a quota used up.
FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)


@dataclass(frozen=True)
class Row:
    """One number that a diagnostic gave under an intervention.

    Args:
        intervention: what was done to the model ("original", "RMU", ...).
        diagnostic: who measured ("g_effect", "separability", ...).
        quantity: what the number is ("auc", "probability", ...).
        value: the number; None where it was not finite (``status`` then says so).
        on: the data it was measured on ("forget", "retain", "world", ...).
        layer: decoder block, where there is one.
        item: index of the example, component or feature count, where there is one.
        dose: strength of the intervention, where it was varied.
        low, high: ends of the interval, if any.
        n: how many examples or folds the number is a mean over.

    >>> probe.Row("NPO", "separability", "auc", 0.91, layer=4, low=0.85, high=0.95, n=20).value
    0.91
    """

    intervention: str
    diagnostic: str
    quantity: str
    value: float | None
    on: str = ""
    layer: int | None = None
    item: int | None = None
    dose: float | None = None
    low: float | None = None
    high: float | None = None
    n: int | None = None
    status: str = "ok"

    def __post_init__(self) -> None:
        for name in ("value", "low", "high"):
            number = getattr(self, name)
            if number is not None and not math.isfinite(number):
                # NaN is not JSON, and a NaN that looks like a result is worse than none.
                object.__setattr__(self, name, None)
                object.__setattr__(self, "status", "nonfinite")


def over_layers(
    name: str,
    diagnostic: str,
    quantity: str,
    layers: Iterable[int],
    values: Iterable[Any],
    on: str = "",
    *,
    low: Any = None,
    high: Any = None,
    n: int | None = None,
) -> list[Row]:
    """One row a layer; ``values`` and the ends of their intervals may be of any type that ``float`` takes."""
    rows = []
    for k, (layer, value) in enumerate(zip(layers, values, strict=True)):
        ends = [None if end is None else float(end[k]) for end in (low, high)]
        rows.append(Row(name, diagnostic, quantity, float(value), on, layer=layer, low=ends[0], high=ends[1], n=n))
    return rows


def quantity_of(metric: str, part: str = "block", into: str = "original") -> str:
    """How a row of a layer map calls its number: the metric, what was lent, and to which model."""
    return f"{metric}, {part} into {into}"


def span_row(
    name: str,
    metric: str,
    value: float | None,
    on: str,
    *,
    first: int | None = None,
    last: int | None = None,
    part: str = "block",
    into: str = "original",
    **interval: Any,
) -> Row:
    """A number of a layer map: ``layer`` is the first block of the span, ``item`` the last; None for a whole model."""
    quantity = quantity_of(metric, "none" if first is None else part, into)
    return Row(name, "layer_map", quantity, value, on, layer=first, item=last, **interval)


def append(path: str | Path, rows: Iterable[Row]) -> None:
    """Append rows with one write and an fsync, so that a kill leaves whole lines or one torn tail.

    Raises:
        FileNotFoundError: the folder does not exist.
        OSError: the disk is full, say. The file then holds what it held before, and the message says how many rows.
    """
    append_lines(path, (json.dumps(asdict(row), ensure_ascii=False, allow_nan=False) for row in rows))


def append_lines(path: str | Path, lines: Iterable[str]) -> None:
    """As ``append``, for records of any layout, one text without line breaks each."""
    path = Path(path)
    text = "".join(line + "\n" for line in lines)
    repair(path)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    before = os.fstat(descriptor).st_size
    try:
        left = memoryview(text.encode())
        while left:
            # A disk that is nearly full takes a part without an error; only the next write fails.
            left = left[os.write(descriptor, left) :]
        os.fsync(descriptor)
    except OSError as error:
        os.ftruncate(descriptor, before)
        safe = path.read_bytes().count(b"\n")
        raise OSError(
            error.errno,
            f"cannot append to {path} ({error.strerror}); the {safe} rows already there are safe",
        ) from None
    finally:
        os.close(descriptor)


def load(path: str | Path) -> list[Row]:
    """Read rows; a torn last line (from a kill) is left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a line before the last is not a row; the message names path and line.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no rows at {path} (resolved to {path.resolve()}); run `probe report` first")
    # Split at newline bytes only: str.splitlines would also split at U+2028 inside a text.
    lines = path.read_bytes().split(b"\n")
    return [_row(f"{path}:{number}", line) for number, line in enumerate(lines[:-1], 1)]


_TYPES = get_type_hints(Row)
_NEEDED = [field.name for field in fields(Row) if field.default is MISSING]


def _row(where: str, line: bytes) -> Row:
    remedy = "remove the line, or run the command that wrote the file again"
    try:
        record = json.loads(line)
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a row: {line[:60]!r}; {remedy}")
    odd = sorted(set(record) - set(_TYPES))
    if odd:
        raise ValueError(f"{where}: unknown fields {str(odd)[:120]}; written by another version, or no row: {remedy}")
    missing = [name for name in _NEEDED if name not in record]
    if missing:
        raise ValueError(f"{where}: {', '.join(missing)} missing; {remedy}")
    for name, value in record.items():
        kinds = get_args(_TYPES[name]) or (_TYPES[name],)
        # A whole number is a float, too; True is no number.
        fits = isinstance(value, kinds) or (float in kinds and isinstance(value, int))
        if isinstance(value, bool) or not fits:
            wanted = " or ".join("null" if kind is type(None) else kind.__name__ for kind in kinds)
            raise ValueError(f"{where}: {name} is {str(value)[:60]!r}, expected {wanted}; {remedy}")
        if isinstance(value, int) and float in kinds:
            try:
                record[name] = float(value)
            except OverflowError:
                raise ValueError(f"{where}: {name} is too large for a float; {remedy}") from None
    return Row(**record)


def read_manifest(folder: str | Path) -> dict[str, Any]:
    """What made the results of a folder: its ``manifest.json``.

    Raises:
        FileNotFoundError: there is none.
        ValueError: it is not what a command writes.
    """
    path = Path(folder) / "manifest.json"
    if not path.is_file():
        raise FileNotFoundError(f"no manifest.json in {folder}; it is no folder that a command of probe wrote")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}); run the command that wrote it again") from None
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds a {type(found).__name__}, expected an object; run the command again")
    return found


def repair(path: str | Path) -> None:
    """Cut a torn last line off, so that the next append does not glue two records together."""
    path = Path(path)
    if not path.exists():
        return
    with path.open("rb+") as handle:
        data = handle.read()
        if data and not data.endswith(b"\n"):
            handle.truncate(data.rfind(b"\n") + 1)
