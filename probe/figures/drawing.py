"""Draw every figure and write every table that some rows allow."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from probe.figures.catalogue import FIGURES, NAMES, TABLES
from probe.figures.entry import Entry, interval_note
from probe.figures.style import paper_style, save_figure
from probe.rows import Row


@dataclass(frozen=True)
class Drawn:
    """What was drawn and what was not.

    Args:
        paths: figure -> its PDF; .png, .svg and .json (numbers, caption) lie beside it. Table -> its .tex.
        captions: figure or table -> caption.
        missing: figure or table -> why it was not drawn.
        notes: what must be said beside all of them.
    """

    paths: dict[str, Path] = field(default_factory=dict)
    captions: dict[str, str] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()


def draw_all(
    rows: Sequence[Row],
    folder: str | Path,
    *,
    venue: str = "neurips",
    only: Sequence[str] = (),
    metadata: Mapping[str, str] | None = None,
) -> Drawn:
    """Draw every figure that the rows allow, at the widths of a venue.

    Args:
        rows: results of a run; nothing else is read.
        folder: where the files go; made if missing.
        venue: a name in ``VENUES``.
        only: names in ``NAMES``; all figures by default.
        metadata: where the rows are from ("run", "commit"), written into each file.

    Returns:
        Paths, captions, and the figures that are missing with the reason.

    Raises:
        ValueError: an unknown venue, or a name that no figure has.

    >>> rows = [probe.Row(name, "separability", "auc", 0.9, layer=l) for name in ("original", "NPO") for l in range(3)]
    >>> drawn = probe.draw_all(rows, "pictures", only=["separability"])
    >>> sorted(drawn.paths)
    ['separability']
    """
    _check_names(only)
    drawn = Drawn()
    with paper_style(venue) as sizes:
        for entry in FIGURES:
            if only and entry.name not in only:
                continue
            try:
                figure, data = entry.draw(rows, sizes)
            except ValueError as reason:
                # Rows of one diagnostic may be absent from a run; the caller gets the reason.
                drawn.missing[entry.name] = str(reason)
                continue
            caption = drawn.captions[entry.name] = _captioned(entry, rows)
            path = save_figure(figure, folder, entry.name, data, metadata=metadata or {}, caption=caption)
            drawn.paths[entry.name] = path
    return drawn


def write_tables(rows: Sequence[Row], folder: str | Path, *, only: Sequence[str] = ()) -> Drawn:
    """Write every table that the rows allow: LaTeX for booktabs, and CSV or text.

    Raises:
        ValueError: a name that no table has.
    """
    _check_names(only)
    drawn = Drawn()
    for entry in TABLES:
        if only and entry.name not in only:
            continue
        try:
            table = entry.make(rows)
        except ValueError as reason:
            drawn.missing[entry.name] = str(reason)
            continue
        drawn.captions[entry.name] = " ".join(entry.caption.split())
        drawn.paths[entry.name] = table.write(folder, entry.name)["tex"]
    return drawn


def _captioned(entry: Entry, rows: Sequence[Row]) -> str:
    """The caption with what the rows say of intervals."""
    note = interval_note(rows, entry.diagnostics) if entry.intervals else "Drawn without intervals."
    return f"{' '.join(entry.caption.split())} {note}"


def _check_names(only: Sequence[str]) -> None:
    unknown = [name for name in only if name not in NAMES]
    if unknown:
        raise ValueError(f"no figure or table {', '.join(map(repr, unknown))}; known: {', '.join(NAMES)}")
