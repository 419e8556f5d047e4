"""Finished cells on disk: journals that only grow, and the canonical file once all cells are there."""

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from probe.rows import FULL, append_lines
from probe.sweep.cell import Shard, canonical, clipped, named, shown

RESULTS = "results.jsonl"
ARRAYS = "arrays"

# What every line of a journal says.
_KINDS = {"id": str, "cell": dict, "values": dict, "status": str, "error": str}
_STATES = ("ok", "nonfinite", "failed")

Record = dict[str, Any]


def load(out: str | Path) -> list[dict[str, Any]]:
    """One flat record a finished cell: its values, what it gave, its ``status`` and ``error``.

    Unfinished sweeps can be read too, while they run and over all machines' journals. A cell that gave arrays has the
    path of their safetensors file as ``arrays``.

    Raises:
        FileNotFoundError: no sweep there.
        ValueError: a damaged line, or a result with the name of an axis.
    """
    folder = Path(out)
    # The canonical file is taken away while cells are left to run, so where it is it is not stale.
    whole = folder / RESULTS
    if not whole.is_file() and not _journals(folder) and not (folder / "cells.json").is_file():
        raise FileNotFoundError(f"no sweep in {folder} (resolved to {folder.resolve()})")
    if whole.is_file():
        found = _merged([whole])
    else:
        every = _merged(_journals(folder))
        found = {key: every[key] for key in _planned(folder, every) if key in every}
    flat = []
    for record in found.values():
        twice = set(record["cell"]) & set(record["values"])
        if twice:
            raise ValueError(f"{', '.join(sorted(twice))} is both an axis and a result in {folder}; rename the result")
        flat.append({**record["cell"], **record["values"], "status": record["status"], "error": record["error"]})
        if "arrays" in record:
            flat[-1]["arrays"] = str(_arrays_path(folder, record["id"]))
    return flat


def read_records(folder: Path) -> dict[str, Record]:
    """The newest record of every cell that some machine has journalled; what succeeded counts before what failed."""
    return _merged(_journals(folder))


def labels(folder: Path) -> dict[str, str]:
    """What tells the cells of a sweep apart, by id: the values of the axes that vary; empty if no sweep is there.

    Raises:
        ValueError: a damaged journal.
    """
    cells = {key: record["cell"] for key, record in read_records(folder).items()}
    axes = list(dict.fromkeys(axis for cell in cells.values() for axis in cell))
    vary = [axis for axis in axes if len({canonical(cell.get(axis)) for cell in cells.values()}) > 1]
    return {key: shown({axis: cell[axis] for axis in vary if axis in cell}) for key, cell in cells.items()}


def finished(folder: Path, records: Mapping[str, Record]) -> dict[str, Record]:
    """Records that need not be made again: not failed, and with their arrays in place."""
    return {
        key: record
        for key, record in records.items()
        if record["status"] != "failed" and ("arrays" not in record or _arrays_path(folder, key).is_file())
    }


def _journals(folder: Path) -> list[Path]:
    """The journals of all machines."""
    return [path for path in (folder / "journal.jsonl", *sorted(folder.glob("journal-*-of-*.jsonl"))) if path.is_file()]


def journal_of(folder: Path, shard: Shard | None) -> Path:
    """The journal that one machine writes."""
    return folder / named("journal", shard, ".jsonl")


def _arrays_path(folder: Path, key: str) -> Path:
    """Where the arrays of one cell are."""
    return folder / ARRAYS / f"{key}.safetensors"


def write_record(path: Path, record: Record) -> None:
    """Append one cell, durably.

    Raises:
        OSError: the disk is full; the cells already there are safe.
    """
    append_lines(path, [canonical(record)])


def write_arrays(folder: Path, key: str, data: bytes) -> None:
    """Put the arrays of one cell in place, before its record names them.

    Raises:
        OSError: the disk is full; the cells finished before are safe.
    """
    path = _arrays_path(folder, key)
    try:
        path.parent.mkdir(exist_ok=True)
        replace(path, data)
    except OSError as error:
        text = f"cannot write {path} ({error.strerror}); the cells finished before are safe"
        raise OSError(error.errno, text) from None


def prepare(folder: Path, identity: Mapping[str, Any], ids: Sequence[str], shard: Shard | None, code: str) -> None:
    """Compare with what the folder is a sweep of, or say so in a new one; note the order of the grid.

    Args:
        folder: of the sweep.
        identity: what determines the results of all cells.
        ids: of the cells, in the order of the grid.
        shard: this machine.
        code: hash of the function's source; another one than before is warned about.

    Raises:
        ValueError: the folder holds another sweep (the differences are listed), or cannot be written.
        OSError: the disk is full.
    """
    check_identity(folder, identity)
    with writable(folder):
        for name, value in (("identity.json", identity), ("code.json", {"sha256": code} if code else None)):
            if value is not None and not (folder / name).is_file():
                replace(folder / name, json.dumps(value, indent=1, sort_keys=True, allow_nan=False) + "\n", shard)
        replace(folder / "cells.json", json.dumps(list(ids)) + "\n", shard)
    if code and _stored(folder / "code.json", dict).get("sha256") != code:
        warnings.warn(
            f"the code of the function has changed since the sweep in {folder} began; finished cells are kept as they "
            "are. If the change alters results, choose another folder, or raise the version in the sweep file",
            stacklevel=4,
        )


def check_identity(folder: Path, identity: Mapping[str, Any]) -> None:
    """Refuse a folder that holds a sweep of something else; nothing is written.

    Raises:
        ValueError: the differences are listed.
    """
    path = folder / "identity.json"
    if not path.is_file():
        return
    before, now = _stored(path, dict), json.loads(canonical(identity))
    changed = list(changes(before, now))
    if changed:
        more = f"; and {len(changed) - 2} more" if len(changed) > 2 else ""
        listed = "; ".join(changed[:2]) + more
        raise ValueError(f"{folder} holds a sweep of something else ({listed}); choose another folder")


def changes(before: Any, now: Any, name: str = "") -> Iterator[str]:
    """What differs between two descriptions, field by field."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from changes(before.get(key), now.get(key), f"{name}.{key}" if name else key)
    elif before != now:
        then, here = (repr(clipped(v, 30)) if isinstance(v, str) else clipped(repr(v), 60) for v in (before, now))
        yield f"{name}: {then} then, {here} now"


def join(folder: Path, ids: Sequence[str], shard: Shard | None) -> bool:
    """Write the canonical file if every cell has a record; whether it was written.

    Each machine does so when it has finished, so the last one finds all. Two at once write the same bytes.
    """
    found = _merged(_journals(folder))
    if not all(key in found for key in ids):
        return False
    replace(folder / RESULTS, "".join(canonical(found[key]) + "\n" for key in ids), shard)
    return True


def replace(path: Path, content: str | bytes, shard: Shard | None = None) -> None:
    """Write a file whole or not at all, durably.

    Raises:
        OSError: the disk is full, say; what was there is kept.
    """
    # Machines that write the same file at once must not share the temporary one.
    temporary = path.with_name(f"{path.name}{named('', shard)}.tmp")
    try:
        with temporary.open("wb") as handle:
            handle.write(content.encode() if isinstance(content, str) else content)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say of a folder that cannot be written what to do.

    Raises:
        ValueError: it is read-only, or below a file.
        OSError: the disk is full, or another process writes there.
    """
    try:
        yield
    except OSError as error:
        if error.errno in FULL or isinstance(error, BlockingIOError):
            raise
        raise ValueError(f"cannot write to {folder} ({error.strerror}); choose another folder") from None


def _planned(folder: Path, records: Mapping[str, Record]) -> Iterable[str]:
    """The order of the grid; of a folder from before it was noted, that of the journal."""
    path = folder / "cells.json"
    if not path.is_file():
        return list(records)
    planned: list[str] = _stored(path, list)
    if not all(isinstance(key, str) for key in planned):
        raise ValueError(_no_state(path))
    return planned


def _stored(path: Path, kind: type) -> Any:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, kind):
        raise ValueError(_no_state(path))
    return found


def _no_state(path: Path) -> str:
    return f"{path}: not the state of a sweep, though its name says so; move it away, or choose another folder"


def _merged(paths: Iterable[Path]) -> dict[str, Record]:
    found: dict[str, Record] = {}
    for path in paths:
        for record in _lines(path):
            known = found.get(record["id"])
            if known is None or known["status"] == "failed" or record["status"] != "failed":
                found[record["id"]] = record
    return found


def _lines(path: Path) -> Iterator[Record]:
    """Whole lines; a torn last one, from a kill or from a write under way, is left out."""
    # Lines end at newline bytes only: str.splitlines would also split at U+2028 inside a text.
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1):
        try:
            record: Record = json.loads(line)
            complete = all(isinstance(record[name], kind) for name, kind in _KINDS.items())
            complete &= record["status"] in _STATES and isinstance(record.get("arrays", {}), dict)
        except (ValueError, KeyError, TypeError, RecursionError):
            complete = False
        if not complete:
            way = "mend or remove the line, or choose another folder"
            raise ValueError(f"{path}:{number}: not a cell of a sweep: {line[:60]!r}; {way}")
        yield record
