"""`probe sweep FILE`: run, show, try out, share out, or submit."""

import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Mapping
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

from probe.sweep.cell import Cell, Shard, canonical, cell_ids, read_shard, share, shown
from probe.sweep.fields import OUT
from probe.sweep.file import SweepFile, Work, read_sweep
from probe.sweep.journal import RESULTS, check_identity, finished, read_records
from probe.sweep.outcome import outcome_of
from probe.sweep.quiet import NoBars
from probe.sweep.running import sweep
from probe.sweep.slurm import script, submit


def run_file(
    path: Path,
    jobs: Mapping[str, Work],
    *,
    out: Path | None = None,
    dry_run: bool = False,
    smoke: bool = False,
    shard: str | None = None,
    slurm: bool = False,
) -> tuple[str, int]:
    """Do what `probe sweep` was asked for.

    Args:
        path: of the sweep file.
        jobs: functions with a short name.
        out: another folder than the file says.
        dry_run: only show cells and their states, or the script of ``slurm``; nothing is written.
        smoke: only the first cell, made small; nothing is kept.
        shard: "i/n", to run one of n shares.
        slurm: submit the shares that have cells left.

    Returns:
        what to print, and the exit code: 1 if a cell failed.

    Raises:
        FileNotFoundError, ValueError, OSError: as ``read_sweep`` and ``sweep``.
    """
    if smoke and (dry_run or shard or slurm):
        raise ValueError("--smoke runs one cell here and now; leave --dry-run, --shard and --slurm out")
    if slurm and shard:
        raise ValueError("--slurm submits all shards; leave --shard out")
    asked = read_sweep(path, jobs, out)
    part = None if shard is None else read_shard(shard)
    if smoke:
        return _smoke(asked)
    identity = asked.identity()
    ids = cell_ids(asked.cells, identity, asked.inputs)
    check_identity(asked.out, identity)
    if slurm:
        return _slurm(asked, ids, dry_run), 0
    if dry_run:
        return _listed(asked, ids, part), 0
    id_of = dict(zip(map(canonical, asked.cells), ids, strict=True))
    sweep(
        lambda **cell: _called(asked, cell, asked.out / "cells" / id_of[canonical(cell)]),
        asked.cells,
        asked.out,
        identity=identity,
        shard=part,
        inputs=asked.inputs,
        code=asked.code(),
    )
    return _summary(asked, ids, part)


def _called(asked: SweepFile, cell: Cell, out: Path) -> Any:
    if OUT in asked.known:
        # What a kill left of an earlier try.
        shutil.rmtree(out, ignore_errors=True)
        out.parent.mkdir(parents=True, exist_ok=True)
    # The sweep has a bar of its own.
    with redirect_stderr(NoBars(sys.stderr)):  # type: ignore[type-var]
        return asked.work.run(**asked.arguments(cell, out))


def _smoke(asked: SweepFile) -> tuple[str, int]:
    asked.identity()
    cell = asked.cells[0]
    asked.inputs(cell)
    changed = {**asked.work.small({**asked.fixed, **cell}), **asked.smoke}
    how = f" with {shown(changed)}" if changed else " as it is (a [smoke] table would make it smaller)"
    what = f"the first cell, {shown(cell)},{how}"
    started = time.monotonic()
    given: list[Any] = []

    def run(**values: Any) -> Any:
        given.append(asked.work.run(**asked.arguments(values, Path(folder) / "cell")))
        return given[0]

    with tempfile.TemporaryDirectory() as folder:
        found = outcome_of(run, {**cell, **changed})
    if found.cause is not None:
        traceback.print_exception(found.cause)
        return f"{what}, failed: {found.record['error']}", 1
    lines = [f"{name} = {tuple(getattr(value, 'shape', ())) or value}" for name, value in given[0].items()]
    return "\n".join([*lines, f"{what}: {time.monotonic() - started:.1f} s; nothing was kept"]), 0


def _states(asked: SweepFile, ids: tuple[str, ...]) -> dict[str, str]:
    found = read_records(asked.out)
    done = finished(asked.out, found)
    return {key: found[key]["status"] if key in done else "failed" if key in found else "left" for key in ids}


def _listed(asked: SweepFile, ids: tuple[str, ...], part: Shard | None) -> str:
    states, own = _states(asked, ids), share(ids, part)
    fixed = shown({name: value for name, value in asked.fixed.items() if value is not None})
    lines = [f"run: {asked.name}", f"out: {asked.out}", f"fixed: {fixed or 'nothing'}", ""]
    lines += [f"{key}  {states[key]:9} {shown(cell)}" for key, cell in zip(ids, asked.cells, strict=True) if key in own]
    count = Counter(states[key] for key in own)
    again = count["left"] + count["failed"]
    kinds = ", ".join(f"{number} {state}" for state, number in sorted(count.items()))
    return "\n".join([*lines, "", f"{_cells(len(own))}: {kinds or 'none'}; {again} would be run"])


def _slurm(asked: SweepFile, ids: tuple[str, ...], dry_run: bool) -> str:
    if asked.slurm is None:
        raise ValueError(f"{asked.path}: --slurm needs a [slurm] table with at least shards, memory and time")
    states, every = _states(asked, ids), asked.slurm.shards
    waiting = {key for key, state in states.items() if state in ("left", "failed")}
    elements = [i for i in range(1, every + 1) if waiting & share(ids, (i, every))]
    if not elements:
        return f"nothing to submit: all {len(ids)} cells are finished"
    text = script(asked.slurm, asked.path, asked.out, elements)
    if dry_run:
        return text.rstrip()
    return f"job {submit(text, asked.out)}: {_cells(len(waiting))} in {len(elements)} shards; logs in {asked.out}/slurm"


def _cells(number: int) -> str:
    return f"{number} cell{'' if number == 1 else 's'}"


def _summary(asked: SweepFile, ids: tuple[str, ...], part: Shard | None) -> tuple[str, int]:
    states, found, own = _states(asked, ids), read_records(asked.out), share(ids, part)
    lines = [
        f"failed: {shown(cell)}: {found[key]['error']}"
        for key, cell in zip(ids, asked.cells, strict=True)
        if key in own and states[key] == "failed"
    ]
    failed, odd = len(lines), sum(states[key] == "nonfinite" for key in own)
    text = f"{_cells(len(own))}: {len(own) - failed} finished" + (
        f", {odd} of them with NaN or infinity" if odd else ""
    )
    lines.append(text + (f", {failed} failed; run again to try these again" if failed else ""))
    left = sum(state == "left" for state in states.values())
    whole = asked.out / RESULTS
    lines.append(
        str(whole) if whole.is_file() else f"{left} cells are left to other shards, so there is no {whole} yet"
    )
    return "\n".join(lines), 1 if failed else 0
