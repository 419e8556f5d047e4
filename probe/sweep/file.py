"""A sweep as a TOML file: which function, which fields are fixed, which are axes."""

import hashlib
import importlib
import inspect
import sys
import tomllib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

from probe.sweep.cell import Cell, clipped, grid, shown
from probe.sweep.fields import OUT, Field, arguments, fields_of, further, value_of
from probe.sweep.inputs import hashes
from probe.sweep.slurm import Slurm

_KEYS = ("run", "out", "version", "fixed", "grid", "smoke", "slurm")


def _nothing(**arguments: Any) -> Mapping[str, Any]:
    return {}


def _as_it_is(values: Mapping[str, Any]) -> Mapping[str, Any]:
    return {}


@dataclass(frozen=True)
class Work:
    """A function that a sweep file can name, and what is known of it.

    Args:
        run: gives the numbers of one cell.
        decides: takes what ``run`` takes; refuses what cannot be run, and gives what else determines the cell.
        small: takes the values of a cell; gives those to replace for a quick trial.
        further: gives names that a file may use as fields, too, each with the field that takes it as "name=value".
        renamed: old names of fields, each with the new one, with which it is answered.
        options: the dataclass whose fields are those of ``run``, where ``run`` itself does not name them.
    """

    run: Callable[..., Mapping[str, Any]]
    decides: Callable[..., Mapping[str, Any]] = _nothing
    small: Callable[[Mapping[str, Any]], Mapping[str, Any]] = _as_it_is
    further: Callable[[], Mapping[str, str]] = dict
    options: Callable[..., Any] | None = None
    renamed: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SweepFile:
    """A sweep file that has been read and checked.

    Args:
        path: of the file.
        name: of the function.
        work: the function.
        known: its fields.
        fixed: JSON values that all cells share, defaults included.
        cells: JSON values of the axes, one mapping a cell.
        out: folder of the sweep.
        version: what the user counts up when the function means something else.
        smoke: values for a quick trial.
        slurm: resources, if any are named.
    """

    path: Path
    name: str
    work: Work = field(repr=False)
    known: Mapping[str, Field] = field(repr=False)
    fixed: Mapping[str, Any]
    cells: tuple[Cell, ...]
    out: Path
    version: int | str | None
    smoke: Mapping[str, Any]
    slurm: Slurm | None

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of the fields that differ from cell to cell."""
        return tuple(self.cells[0])

    def arguments(self, cell: Cell, out: Path) -> dict[str, Any]:
        """What the function is called with for one cell."""
        return arguments(self.known, {**self.fixed, **cell}, out)

    def identity(self) -> dict[str, Any]:
        """What determines the results of all cells.

        Raises:
            ValueError: a file or model that is not there.
        """
        packages = ("unlearn-probe", "torch", "transformers")
        try:
            inputs = hashes(self.known, self.fixed)
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{self.path}, [fixed]: {error}") from None
        return {
            "run": self.name,
            **({} if self.version is None else {"version": self.version}),
            "fixed": dict(self.fixed),
            "inputs": inputs,
            "packages": {name: version(name) for name in packages},
        }

    def inputs(self, cell: Cell) -> dict[str, Any]:
        """What determines the results of one cell besides.

        Raises:
            ValueError: what the function says of these values, or a file or model that is not there.
        """
        try:
            decided = self.work.decides(**self.arguments(cell, self.out / "cells" / "none"))
            return {"inputs": hashes(self.known, cell), **decided}
        except (ValueError, FileNotFoundError) as error:
            raise ValueError(f"{self.path}, cell {clipped(shown(cell))}: {error}") from None

    def code(self) -> str:
        """Hash of the file that holds the function; empty where it is this package's own, which has a version."""
        if self.work.run.__module__.split(".")[0] == "probe":
            return ""
        source = inspect.getsourcefile(self.work.run)
        return hashlib.sha256(Path(source).read_bytes()).hexdigest() if source else ""


def read_sweep(path: Path, jobs: Mapping[str, Work], out: Path | None = None) -> SweepFile:
    """Read a sweep file. Nothing of it is executed but the import of the module that it names.

    Args:
        path: of the file.
        jobs: functions with a short name.
        out: another folder than the file says.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no TOML, an unknown key or field, a value of another type, an axis without values, a function that
            cannot be imported; the message names the file.
    """
    given = _parsed(path)
    odd = [key for key in given if key not in _KEYS]
    if odd:
        raise ValueError(f"{path}: unknown key {clipped(odd[0], 40)!r}; known: {', '.join(_KEYS)}")
    name = given.get("run")
    if not isinstance(name, str):
        raise ValueError(f'{path}: run is missing: one of {", ".join(jobs)}, or "package.module:function"')
    work = jobs[name] if name in jobs else Work(_imported(path, name, jobs))
    try:
        known = fields_of(work.options or work.run, name)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    fixed = _table(path, given, "fixed")
    blocks = _blocks(path, given)
    axes = list(dict.fromkeys(axis for block in blocks for axis in block))
    both = [axis for axis in axes if axis in fixed]
    if both:
        raise ValueError(f"{path}: {both[0]} is both in [fixed] and in [grid]; leave one out")
    smoke = _table(path, given, "smoke")
    others = {key: through for key, through in work.further().items() if key not in known}
    named = dict.fromkeys((*fixed, *axes, *smoke))
    old = [key for key in named if key not in {*known, *others} and work.renamed.get(key) in known]
    if old:
        raise ValueError(f"{path}: {old[0]} is now called {work.renamed[old[0]]}; write that")
    known |= further({key: through for key, through in others.items() if key in {*fixed, *axes, *smoke}})
    values = {key: value_of(known, key, value, f"{path}, [fixed]", others) for key, value in fixed.items()}
    values = {key: one.default for key, one in known.items() if key != OUT and one.default is not MISSING} | values
    cells = _cells(path, known, blocks, axes, values, others)
    version = given.get("version")
    if not isinstance(version, int | str | None):
        raise ValueError(f"{path}: version is a number or a word, got {clipped(repr(version))}")
    return SweepFile(
        path,
        name,
        work,
        known,
        {key: value for key, value in values.items() if key not in axes and (key in fixed or not known[key].through)},
        cells,
        out or _out(path, given),
        version,
        {key: value_of(known, key, value, f"{path}, [smoke]", others) for key, value in smoke.items()},
        _slurm(path, given),
    )


def _parsed(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise FileNotFoundError(f"no sweep file at {path} (resolved to {path.resolve()})")
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is no TOML: {error}; mend that line, docs/sweeps.md has examples") from None


def _table(path: Path, given: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = given.get(key, {})
    if not isinstance(table, dict):
        raise ValueError(f"{path}: [{key}] is a table of fields, got {clipped(repr(table))}")
    return table


def _blocks(path: Path, given: Mapping[str, Any]) -> list[dict[str, list[Any]]]:
    """[grid], or several of them as [[grid]]."""
    blocks = given.get("grid")
    blocks = [blocks] if isinstance(blocks, dict) else blocks
    if not isinstance(blocks, list) or not blocks or not all(isinstance(block, dict) and block for block in blocks):
        raise ValueError(f"{path}: [grid] is missing: a table of axes, each a list of values, such as seed = [0, 1, 2]")
    for block in blocks:
        for axis, values in block.items():
            if not isinstance(values, list) or not values:
                got = clipped(repr(values))
                raise ValueError(f"{path}, [grid]: {clipped(axis, 40)} needs a list of at least one value, got {got}")
    return blocks


def _cells(
    path: Path,
    known: Mapping[str, Field],
    blocks: Sequence[Mapping[str, list[Any]]],
    axes: Sequence[str],
    values: Mapping[str, Any],
    others: Collection[str],
) -> tuple[Cell, ...]:
    where = f"{path}, [grid]"
    cells: list[Cell] = []
    for block in blocks:
        typed = {axis: [value_of(known, axis, value, where, others) for value in block[axis]] for axis in block}
        try:
            found = grid(**typed)
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from None
        for cell in found:
            absent = [one for one in known if one not in cell and one not in values and one != OUT]
            if absent:
                raise ValueError(f"{path}: {', '.join(absent)} missing: give a value in [fixed] or an axis in [grid]")
            # An axis of another [[grid]] has its default here, so that every record has the same columns.
            cells.append({axis: cell[axis] if axis in cell else values[axis] for axis in axes})
    twice = [cell for i, cell in enumerate(cells) if cell in cells[:i]] if len(blocks) > 1 else []
    if twice:
        raise ValueError(f"{where}: {clipped(shown(twice[0]))} comes twice")
    return tuple(cells)


def _out(path: Path, given: Mapping[str, Any]) -> Path:
    out = given.get("out", f"results/sweeps/{path.stem}")
    if not isinstance(out, str) or not out:
        raise ValueError(f"{path}: out is a folder, got {clipped(repr(out))}")
    return Path(out)


def _slurm(path: Path, given: Mapping[str, Any]) -> Slurm | None:
    if "slurm" not in given:
        return None
    where = f"{path}, [slurm]"
    known = fields_of(Slurm, "slurm")
    values = {key: value_of(known, key, value, where) for key, value in _table(path, given, "slurm").items()}
    absent = [key for key, one in known.items() if key not in values and one.default is MISSING]
    if absent:
        raise ValueError(f"{where}: {', '.join(absent)} missing; clusters differ, so there is no default")
    try:
        return Slurm(**arguments(known, values, Path(OUT)))
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _imported(path: Path, name: str, jobs: Mapping[str, Work]) -> Callable[..., Any]:
    module, colon, function = name.partition(":")
    if not colon or not module or not function.isidentifier():
        listed = ", ".join(jobs)
        raise ValueError(
            f'{path}: run = {clipped(name, 80)!r} is none of {listed}, nor "package.module:function"; choose one'
        )
    folder = str(path.resolve().parent)
    # As Python does for a script: what lies beside the file can be imported.
    if folder not in sys.path:
        sys.path.insert(0, folder)
    try:
        found = getattr(importlib.import_module(module), function)
    except (Exception, SystemExit) as error:
        why = f"{type(error).__name__}: {error}" if isinstance(error, Exception) else "it calls sys.exit"
        raise ValueError(
            f"{path}: {name} cannot be imported ({why}); mend it, or install it where this runs"
        ) from error
    if not callable(found):
        raise ValueError(f"{path}: {name} is no function")
    call: Callable[..., Any] = found
    return call
