"""From a folder of rows to its figures, tables and a page that lists what was drawn and what is missing."""

import hashlib
import html
from collections.abc import Sequence, Set
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from probe.figures import Drawn, draw_all, write_tables
from probe.figures.catalogue import EVERY, FIGURES, NAMES
from probe.figures.style import is_reference
from probe.rows import Row, load, read_manifest
from probe.sweep.journal import labels as cell_labels

ROWS = "rows.jsonl"


def rows_of(folder: str | Path) -> list[Row]:
    """Every row below a folder, file by file in the order of their paths; a row that stands twice counts once.

    In the folder of a sweep each cell's rows are named by what the cell is: the values of the axes that vary.

    Args:
        folder: of a report, of any command that writes rows, or of several such folders.

    Raises:
        FileNotFoundError: no folder, or no rows in it.
        ValueError: a file of rows that is damaged.
    """
    folder = Path(folder)
    if not folder.is_dir():
        part = folder.with_name(f".{folder.name}.part")
        begun = f"; an unfinished run lies in {part}" if folder.name and part.is_dir() else ""
        raise FileNotFoundError(f"no rows at {folder} (resolved to {folder.resolve()}): there is no such folder{begun}")
    files = _row_files(folder)
    if not files:
        sweeps = "; it holds a sweep, whose study draws it" if any(folder.rglob("journal.jsonl")) else ""
        raise FileNotFoundError(f"no rows at {folder}: no {ROWS} there or below{sweeps}; figures are drawn from rows")
    found = {path: load(path) for path in files}
    labels = _labels(folder, files)
    # What every cell says alike of a reference is said once, under its own name.
    said: dict[str, set[frozenset[Row]]] = {}
    for path in labels:
        for name in filter(is_reference, {row.intervention for row in found[path]}):
            said.setdefault(name, set()).add(frozenset(row for row in found[path] if row.intervention == name))
    alike = {name for name, versions in said.items() if len(versions) == 1}
    rows = (row for path in files for row in _named(found[path], labels.get(path, ""), alike))
    return list(dict.fromkeys(rows))


def _labels(folder: Path, files: Sequence[Path]) -> dict[Path, str]:
    """What the cell is that a file belongs to, for files of sweeps with several cells."""
    sweeps: dict[Path, dict[str, str]] = {}
    labels = {}
    for path in files:
        for cells in (one for one in path.parents if one.name == "cells" and one.is_relative_to(folder)):
            known = sweeps.setdefault(cells.parent, cell_labels(cells.parent))
            key = path.relative_to(cells).parts[0]
            if known.get(key):
                labels[path] = known[key]
    return labels


def _named(rows: Sequence[Row], label: str, alike: Set[str]) -> list[Row]:
    own = {row.intervention for row in rows if not is_reference(row.intervention)}

    def name(row: Row) -> str:
        if not label or row.intervention in alike:
            return row.intervention
        # The name of the only model says nothing that the cell does not.
        return label if own == {row.intervention} else f"{row.intervention} ({label})"

    return [replace(row, intervention=name(row)) for row in rows]


def unfinished(folder: str | Path) -> list[str]:
    """What must be said of runs below a folder that were stopped or are still under way.

    Raises:
        ValueError: a damaged manifest.
    """
    folder = Path(folder)
    told = []
    for path in _row_files(folder):
        if (path.parent / "manifest.json").is_file() and read_manifest(path.parent).get("status") != "complete":
            told.append(f"{path.parent} is not finished: what it shows is a part")
    hidden = [one for one in sorted(folder.rglob(".*.part")) if one.is_dir()]
    return told + [f"{one} is left out: it is not finished" for one in hidden]


def _row_files(folder: Path) -> list[Path]:
    """Files of rows below a folder; unfinished folders, whose names begin with a dot, are left out."""
    found = (path for path in sorted(folder.rglob(ROWS)))
    return [path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts)]


def origin(folder: str | Path) -> dict[str, str]:
    """What is written into each file: a hash of the rows, the version that draws, and the commit where it is known."""
    folder = Path(folder)
    digest = hashlib.sha256()
    for path in _row_files(folder):
        digest.update(path.read_bytes())
    found = {"run": digest.hexdigest()[:12], "probe": version("unlearn-probe")}
    manifest = folder / "manifest.json"
    commit = read_manifest(folder).get("commit") if manifest.is_file() else None
    return found | ({"commit": str(commit)} if commit else {})


def draw_folder(folder: str | Path, *, venue: str = "neurips", only: Sequence[str] = ()) -> Drawn:
    """Draw what the rows of a folder allow into ``figures`` and ``tables`` below it, and list the rest.

    Args:
        folder: as for ``rows_of``.
        venue: a name in ``VENUES``.
        only: names of figures and tables; all by default.

    Returns:
        What was drawn, figures and tables together. ``figures/index.html`` says the same, unless ``only`` is given.

    Raises:
        FileNotFoundError: no folder, or no rows in it.
        ValueError: an unknown name or venue, or a damaged file.

    >>> from probe.rows import append
    >>> from pathlib import Path
    >>> Path("run").mkdir()
    >>> append("run/rows.jsonl", [probe.Row("NPO", "separability", "auc", 0.9, layer=l) for l in range(3)])
    >>> sorted(probe.draw_folder("run", only=["separability"]).paths)
    ['separability']
    """
    folder = Path(folder)
    rows = rows_of(folder)
    pictures = {entry.name for entry in FIGURES}
    drawn = Drawn()
    if not only or set(only) & pictures or set(only) - set(NAMES):
        drawn = draw_all(rows, folder / "figures", venue=venue, only=only, metadata=origin(folder))
    tables = Drawn()
    if not only or set(only) - pictures:
        tables = write_tables(rows, folder / "tables", only=only)
    # Names of the other kind are no mistake here: ``only`` may mix figures and tables.
    both = Drawn(
        drawn.paths | tables.paths,
        drawn.captions | tables.captions,
        drawn.missing | tables.missing,
        tuple(unfinished(folder)),
    )
    if not only:
        (folder / "figures").mkdir(exist_ok=True)
        (folder / "figures" / "index.html").write_text(_contents(both), encoding="utf-8")
    return both


def _contents(drawn: Drawn) -> str:
    """A page of HTML with each figure and its caption, each table, and why the others are missing."""
    parts = []
    for entry in EVERY:
        number = f" (#{entry.number})" if entry.number else ""
        head = f"<h2>{html.escape(entry.title)} <small>{entry.name}{number}</small></h2>"
        if entry.name not in drawn.paths:
            continue
        path = drawn.paths[entry.name]
        if path.suffix == ".tex":
            shown = f'<p><a href="../tables/{path.name}">{path.name}</a></p><pre>{_table(path)}</pre>'
        else:
            links = ", ".join(f'<a href="{path.stem}.{end}">{end}</a>' for end in ("pdf", "svg", "png", "json"))
            shown = f'<p><img src="{path.stem}.svg" alt="{html.escape(entry.title)}"></p><p>{links}</p>'
        parts.append(f"{head}{shown}<p>{html.escape(drawn.captions[entry.name])}</p>")
    numbers = {entry.name: f" (#{entry.number})" if entry.number else "" for entry in EVERY}
    missing = "".join(
        f"<li><b>{name}</b>{numbers[name]}: {html.escape(why)}</li>" for name, why in drawn.missing.items()
    )
    notes = "".join(f"<p><b>{html.escape(note)}</b></p>" for note in drawn.notes)
    style = "body{font-family:serif;max-width:60em;margin:2em auto}img{max-width:100%}small{color:#777}"
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>Figures</title><style>{style}</style>'
        f"<h1>Figures and tables</h1>{notes}{''.join(parts)}<h2>Missing</h2><ul>{missing}</ul></html>\n"
    )


def _table(path: Path) -> str:
    return html.escape(path.read_text(encoding="utf-8"))


def drawing_summary(drawn: Drawn) -> str:
    """What was drawn and what is missing, as text for a shell."""
    lines = [*drawn.notes, *(f"{name}: {path}" for name, path in drawn.paths.items())]
    return "\n".join([*lines, *(f"not drawn: {name} ({why})" for name, why in drawn.missing.items())])
