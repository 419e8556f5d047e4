"""The loop over cells."""

import random
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from probe.rows import repair
from probe.sweep.cell import Cell, Shard, cell_ids, check_shard, share
from probe.sweep.journal import (
    RESULTS,
    finished,
    join,
    journal_of,
    prepare,
    read_records,
    writable,
    write_arrays,
    write_record,
)
from probe.sweep.lock import only_writer
from probe.sweep.outcome import outcome_of
from probe.sweep.progress import Shown
from probe.sweep.stopping import Wish, stoppable


def sweep(
    run: Callable[..., Mapping[str, Any]],
    cells: Sequence[Cell],
    out: str | Path,
    *,
    identity: Mapping[str, Any],
    progress: bool = True,
    shard: Shard | None = None,
    inputs: Callable[[Cell], Mapping[str, Any]] | None = None,
    code: str = "",
) -> Path:
    """``run(**cell)`` for every cell that is not finished yet.

    A cell that raises is recorded as failed and the sweep goes on; failed cells are tried again the next time. A number
    that is NaN or infinite is written as null, and its cell says ``"nonfinite"``. Before each cell the global random
    generators of Python, and of numpy and torch where they are imported, are seeded from the cell's id, so that what a
    cell gives does not depend on which ones ran before it.

    Args:
        run: gives a flat mapping of names to numbers, strings, None or arrays for one cell. Arrays go to
            ``arrays/ID.safetensors``.
        cells: what ``grid`` gives, or any mappings of JSON values.
        out: folder of the sweep.
        identity: what else decides the results: hashes of weights and data, settings, the version of the code.
        progress: say on standard error which cell runs, how many are finished and how long the rest may take: a bar in
            a terminal or notebook, elsewhere a line a cell; and the traceback of every cell that fails.
        shard: (i, n) runs the i-th of n shares of the cells. Shares may run at once, on as many machines as see the
            folder; whichever ends last writes ``results.jsonl``.
        inputs: what decides the results of one cell besides its values: hashes of the files that it names, say.
        code: hash of the code; if it has changed since the sweep began, this is warned about.

    Returns:
        the path of ``results.jsonl``, which is there when all cells of all shares are finished.

    Raises:
        ValueError: no cells, two alike, a folder that cannot be written, or one that holds another sweep (the
            differences are listed).
        BlockingIOError: another process is writing here; the message says which and since when.
        OSError: the disk is full; the cells already journalled are safe.
        KeyboardInterrupt: Ctrl-C, once the cell under way is finished; a second one, at once.
        SystemExit: SIGTERM, with code 143, as Slurm sends it; nothing that was finished is lost.

    >>> def run(beta, seed):
    ...     return {"forgetting": beta + seed}
    >>> cells = probe.grid(beta=[0.1, 0.5], seed=[0])
    >>> path = probe.sweep(run, cells, "results", identity={"study": "mine"}, progress=False)
    >>> from probe.sweep import load
    >>> [record["forgetting"] for record in load("results")]
    [0.1, 0.5]
    """
    folder = Path(out)
    if shard is not None:
        check_shard(shard)
    ids = cell_ids(cells, identity, inputs)
    with writable(folder):
        folder.mkdir(parents=True, exist_ok=True)
    with only_writer(folder, shard), stoppable() as wish:
        prepare(folder, identity, ids, shard, code)
        journal = journal_of(folder, shard)
        repair(journal)
        own = share(ids, shard)
        done = finished(folder, read_records(folder))
        left = [(key, cell) for key, cell in zip(ids, cells, strict=True) if key in own and key not in done]
        if left:
            # What is there is of a smaller grid, or lacks a cell that is tried again.
            (folder / RESULTS).unlink(missing_ok=True)
        _run_left(run, left, journal, wish, total=len(own), progress=progress)
        join(folder, ids, shard)
    return folder / RESULTS


def _run_left(
    run: Callable[..., Mapping[str, Any]],
    left: Sequence[tuple[str, Cell]],
    journal: Path,
    wish: Wish,
    *,
    total: int,
    progress: bool,
) -> None:
    with Shown(total, total - len(left), progress) as shown:
        for key, cell in left:
            wish.obeyed()
            shown.begins(cell)
            _seed(key)
            found = outcome_of(run, cell)
            if found.arrays is not None:
                write_arrays(journal.parent, key, found.arrays)
            write_record(journal, {"id": key, "cell": dict(cell), **found.record})
            shown.ended(cell, found)


def _seed(key: str) -> None:
    number = int(key[:8], 16)
    random.seed(number)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(number)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(number)
