"""What a cell is: its values, the id that all that determines it gives, and which machine's turn it is."""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

Cell = Mapping[str, Any]
Shard = tuple[int, int]
"""Which of how many machines, counted from 1."""

RESERVED = ("id", "status", "error", "arrays")
"""What ``load`` says of a cell besides its values and results."""


def grid(**axes: Sequence[Any]) -> tuple[dict[str, Any], ...]:
    """Every combination of the axes' values, the last axis fastest.

    Raises:
        ValueError: an axis without values, or the same value twice on one axis.

    >>> probe.grid(beta=[0.1, 0.5], seed=[0])
    ({'beta': 0.1, 'seed': 0}, {'beta': 0.5, 'seed': 0})
    """
    for name, values in axes.items():
        written = [canonical(value) for value in values]
        if not written or len(set(written)) != len(written):
            raise ValueError(f"axis {name} needs at least one value and each once, got {clipped(str(list(values)))}")
    return tuple(dict(zip(axes, combination, strict=True)) for combination in product(*axes.values()))


def canonical(value: Any) -> str:
    """The one way in which a value is written as JSON: sorted keys, no spaces.

    Raises:
        ValueError: NaN or infinity.
        TypeError: what is no JSON.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def shown(cell: Cell) -> str:
    """A cell's values on one line."""
    plain = {name: isinstance(value, str) and value.isprintable() and " " not in value for name, value in cell.items()}
    return " ".join(f"{name}={value if plain[name] else canonical(value)}" for name, value in cell.items())


def clipped(text: str, most: int = 120) -> str:
    """The beginning of a text that would fill a message."""
    return text if len(text) <= most else f"{text[:most]}..."


def cell_ids(
    cells: Sequence[Cell], identity: Mapping[str, Any], inputs: Callable[[Cell], Mapping[str, Any]] | None = None
) -> tuple[str, ...]:
    """The id of every cell: the first 16 hex digits of a sha256 over its values and all else that determines it.

    Args:
        cells: values of each cell.
        identity: what determines the results of all cells.
        inputs: what else determines those of one.

    Raises:
        ValueError: no cells, two alike, or one with a reserved name.
    """
    taken = sorted({name for cell in cells for name in cell if name in RESERVED})
    if taken:
        raise ValueError(f"{', '.join(taken)} cannot be an axis: results carry fields of that name; rename it")
    ids = tuple(
        hashlib.sha256(canonical([cell, identity, *([inputs(cell)] if inputs else [])]).encode()).hexdigest()[:16]
        for cell in cells
    )
    if not ids or len(set(ids)) != len(ids):
        raise ValueError(f"a sweep needs cells, each once; got {len(ids)} with {len(set(ids))} different ones")
    return ids


def read_shard(text: str) -> Shard:
    """``"2/4"`` as (2, 4).

    Raises:
        ValueError: anything else, or a number out of range.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    shard = (int(found[1]), int(found[2])) if found else (0, 0)
    check_shard(shard, text)
    return shard


def check_shard(shard: Shard, text: object = None) -> None:
    """Refuse a shard that is none of its number.

    Raises:
        ValueError: the first number is below 1 or above the second.
    """
    if not 1 <= shard[0] <= shard[1]:
        raise ValueError(f"a shard is i/n with i from 1 to n, such as 2/4; got {text or shard}")


def share(ids: Sequence[str], shard: Shard | None) -> frozenset[str]:
    """The cells that one machine runs.

    They are dealt out in the order of their ids, which is as good as random: along the grid, one machine would often
    get all cells of the axis' slow value.
    """
    if shard is None:
        return frozenset(ids)
    first, every = shard
    return frozenset(sorted(ids)[first - 1 :: every])


def named(name: str, shard: Shard | None, suffix: str = "") -> str:
    """The name of a machine's own file: "journal.jsonl" or "journal-2-of-4.jsonl"."""
    return f"{name}{suffix}" if shard is None else f"{name}-{shard[0]}-of-{shard[1]}{suffix}"
