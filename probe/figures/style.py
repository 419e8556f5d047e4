"""The house style: sizes of venues, one look an intervention, and files of the same bytes from the same numbers."""

import io
import json
import math
import re
import textwrap
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import fontManager
from matplotlib.layout_engine import ConstrainedLayoutEngine

from probe.rows import Row

INK = "#222222"
GREY = "#8C8C8C"
FORGET = "#D55E00"
RETAIN = "#0072B2"
_STYLE = Path(__file__).with_name("paper.mplstyle")
# Names in these scripts would be boxes in the house font; used where they are installed.
_WIDE_FONTS = ("Noto Serif CJK SC", "Noto Sans CJK SC", "Source Han Serif SC", "Noto Naskh Arabic", "Noto Sans Arabic")


@dataclass(frozen=True)
class Venue:
    """Text widths of a venue in inches, and its body text in points."""

    column: float
    page: float
    size: int

    @property
    def narrow(self) -> float:
        """Width of a figure of one panel: a column, or two thirds of a page without columns."""
        return self.column if self.column < self.page else round(self.page * 2 / 3, 2)


# tueplots 0.2.5 (github.com/pnkraemer/tueplots); ACL from acl.sty: A4 less 2 x 2.5 cm, columns 0.6 cm apart.
VENUES = {
    "neurips": Venue(5.5, 5.5, 9),
    "iclr": Venue(5.5, 5.5, 9),
    "colm": Venue(5.5, 5.5, 9),
    "tmlr": Venue(6.5, 6.5, 9),
    "jmlr": Venue(6.0, 6.0, 10),
    "icml": Venue(3.25, 6.75, 8),
    "aaai": Venue(3.3, 6.97, 9),
    "acl": Venue(3.03, 6.30, 9),
    "aistats": Venue(3.25, 6.75, 9),
    "uai": Venue(3.25, 6.75, 9),
    "cvpr": Venue(3.25, 6.88, 8),
    "eccv": Venue(4.8, 4.8, 8),
}


def _venue_of(name: str) -> Venue:
    """Sizes of a venue.

    Raises:
        ValueError: a venue that is not in the table.
    """
    if name not in VENUES:
        raise ValueError(f"no venue {name!r}; known: {', '.join(VENUES)}; or add its text widths to VENUES")
    return VENUES[name]


@contextmanager
def paper_style(venue: str = "neurips") -> Iterator[Venue]:
    """Matplotlib's defaults plus the house style while the block runs, whatever the user's own settings are.

    Args:
        venue: a name in ``VENUES``; it sets the text size.
    """
    sizes = _venue_of(venue)
    kept = ("backend", "interactive", "figure.hooks", "toolbar")
    base: dict[Any, Any] = {key: value for key, value in matplotlib.rcParamsDefault.items() if not key.startswith(kept)}
    base.update(matplotlib.rc_params_from_file(_STYLE, use_default_template=False))
    installed = set(fontManager.get_font_names())
    base["font.family"] = [*base["font.family"], *(font for font in _WIDE_FONTS if font in installed)]
    base.update(
        {
            "font.size": sizes.size - 1,
            "axes.titlesize": sizes.size - 1,
            "axes.labelsize": sizes.size - 1,
            "xtick.labelsize": sizes.size - 2,
            "ytick.labelsize": sizes.size - 2,
            "legend.fontsize": sizes.size - 2,
        }
    )
    with matplotlib.rc_context(base):
        yield sizes


def new_figure(width: float | int, height: float | int) -> Figure:
    """An empty figure (inches) that no global state knows of."""
    figure = _Drawing(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


@dataclass(frozen=True)
class Look:
    """How an intervention is drawn, in every figure."""

    colour: str
    marker: str
    dash: Any = "-"

    def line(self) -> dict[str, Any]:
        """Arguments of ``Axes.plot``."""
        # A white edge parts crowded marks, but would eat a cross.
        edge = self.colour if self.marker in "PX" else "white"
        return {"color": self.colour, "marker": self.marker, "linestyle": self.dash, "markeredgecolor": edge}


_DASHED, _DOTTED, _DASHDOT = (0, (4, 1.5)), (0, (1, 1.2)), (0, (5, 1.3, 1, 1.3))
# Hues of Okabe and Ito (2008), safe for colour-blind readers: reds diverge, blues move representations,
# purples edit activations, yellows prefer another answer. Marker and dash carry the rest in grey print.
LOOKS = {
    "original": Look("#000000", "o"),
    "GA": Look("#D55E00", "v"),
    "GradDiff": Look("#E69F00", "^", _DASHED),
    "WGA": Look("#7A3B00", "<", _DASHDOT),
    "NPO": Look("#C1121F", ">", _DOTTED),
    "TNPO": Look("#E5686F", "v", _DOTTED),
    "WTNPO": Look("#8B1E2D", "^", _DASHDOT),
    "SimNPO": Look("#FF6F4F", "<", _DASHED),
    "SatImp": Look("#C98A4B", ">"),
    "KL": Look("#B8860B", "^", _DOTTED),
    "DPO": Look("#9C8F00", "d"),
    "IDK": Look("#C9BC1F", "D", _DASHED),
    "BS-T": Look("#6E6A00", "d", _DASHDOT),
    "BS-S": Look("#B3A400", "D", _DOTTED),
    "RMU": Look("#0072B2", "s"),
    "CRU": Look("#56B4E9", "D", _DASHED),
    "CRU (GA)": Look("#2F8FCB", "v", _DASHED),
    "CRU (GradDiff)": Look("#3D6FD1", "^", _DASHDOT),
    "CRU (WGA)": Look("#5A9BB8", "<", _DASHED),
    "CRU (NPO)": Look("#17A2C6", ">", _DOTTED),
    "UWC": Look("#1F4E9C", "s", _DASHDOT),
    "LayerReplacement": Look("#3FA7A0", "D", _DOTTED),
    "Steer": Look("#CC79A7", "P"),
    "Project": Look("#8A3B75", "X", _DASHED),
    "SAE clamp": Look("#7B61B5", "h", _DASHDOT),
    "SAE clamp (random features)": Look(GREY, "h", _DOTTED),
    "retrained": Look("#00684B", "*", _DASHED),
}
_SPARE_COLOURS = ("#5F8A00", "#A0522D", "#4F7F8C", "#B0407A", "#6B6BAA")
_SPARE_MARKERS = ("p", "H", "8", "<", ">", "d")
_SPARE_DASHES: tuple[Any, ...] = ("-", _DASHED, _DASHDOT, _DOTTED)


def _key(name: str) -> str:
    return re.sub(r"[\s_\-]+", "", name.casefold())


def _method(name: str) -> str:
    return re.split(r"[(+]", name)[0]


_BY_KEY = {_key(name): look for name, look in LOOKS.items()}
_PLACE = {key: place for place, key in enumerate(_BY_KEY)}


def look(name: str) -> Look:
    """The look of an intervention: from the table, else from a checksum of its name, never from its place in a list.

    A variant, "RMU (layer 5)" or "GA + KL", keeps the colour of its method.
    """
    key = _key(name)
    if key in _BY_KEY:
        return _BY_KEY[key]
    number = zlib.crc32(key.encode())
    method = _BY_KEY.get(_key(_method(name)))
    colour, rest = method.colour if method else _SPARE_COLOURS[number % 5], number // 5
    markers = [m for m in _SPARE_MARKERS if method is None or m != method.marker]
    return Look(colour, markers[rest % len(markers)], _SPARE_DASHES[rest // 6 % 4])


def ordered(names: Iterable[str]) -> list[str]:
    """Each name once: original, methods by family, unknown ones by alphabet, retrained."""
    last = len(_PLACE) - 1.5
    place = {name: _PLACE.get(_key(name), _PLACE.get(_key(_method(name)), last)) for name in names}
    return sorted(place, key=lambda name: (name == "retrained", place[name], name))


def is_reference(name: str) -> bool:
    """Whether this is a bound to compare with, not a method."""
    return name in ("original", "retrained")


def plain_text(text: str, *, width: int | None = None) -> str:
    """Text in which a dollar sign is a dollar sign, not mathematics; broken into lines of ``width`` characters."""
    text = text if width is None else "\n".join(textwrap.wrap(text, width))
    return text.replace("$", r"\$")


def picked(
    rows: Sequence[Row], diagnostic: str, quantities: Iterable[str], on: Iterable[str] | None = None
) -> list[Row]:
    """The rows of a figure.

    Raises:
        ValueError: there is none.
    """
    quantities, sides = set(quantities), None if on is None else set(on)
    found = [
        row
        for row in rows
        if row.diagnostic == diagnostic and row.quantity in quantities and (sides is None or row.on in sides)
    ]
    if not found:
        where = "" if sides is None else f" on {'/'.join(sorted(sides))}"
        raise ValueError(f"no rows of {diagnostic!r} with {'/'.join(sorted(quantities))}{where}")
    return found


def number(value: float | None) -> float:
    """A row's value for drawing; NaN, which matplotlib leaves out, where it was not finite."""
    return math.nan if value is None else float(value)


def _plain_data(data: Any) -> Any:
    """The same numbers as JSON holds them: None for what is not finite."""
    if isinstance(data, Mapping):
        return {str(key): _plain_data(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain_data(value) for value in data]
    if isinstance(data, float):
        return data if math.isfinite(data) else None
    return data


def svg_text(figure: Figure) -> str:
    """The figure as one <svg> element for an HTML page, the same text every time."""
    buffer = io.StringIO()
    _settle(figure)
    with _saving():
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


class _Drawing(Figure):
    _repr_svg_ = svg_text  # notebooks show it without pyplot


def save_figure(
    figure: Figure, folder: str | Path, name: str, data: Any, *, metadata: Mapping[str, str], caption: str = ""
) -> Path:
    """Write ``name``.pdf, .png (200 dpi), .svg and .json (the plotted numbers), without dates.

    Args:
        figure: what to write; its size in inches is kept.
        folder: made if missing.
        name: file name without ending.
        data: the plotted numbers, as the drawing function returned them.
        metadata: where the figure is from ("run", "commit", ...); written into each file.
        caption: what the figure shows, with what its intervals are; written into the JSON.

    Returns:
        The path of the PDF; the others lie beside it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    origin = "; ".join(f"{key}={value}" for key, value in sorted(metadata.items()))
    path = folder / f"{name}.pdf"
    _settle(figure)
    with _saving():
        figure.savefig(path, metadata={"CreationDate": None, "Title": name, "Keywords": origin})
        figure.savefig(path.with_suffix(".png"), metadata={"Title": name, "Comment": origin})
    path.with_suffix(".svg").write_text(svg_text(figure), encoding="utf-8")
    record = {"figure": name, "caption": caption, "metadata": dict(metadata), "data": _plain_data(data)}
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False)
    path.with_suffix(".json").write_text(text + "\n", encoding="utf-8")
    return path


def _settle(figure: Figure) -> None:
    """Lay the figure out a last time: each layout moves the axes a little, so that two files would differ."""
    if isinstance(figure.get_layout_engine(), ConstrainedLayoutEngine):
        figure.draw_without_rendering()
        figure.set_layout_engine("none")


@contextmanager
def _saving() -> Iterator[None]:
    # savefig reads these when it writes, not when the figure was drawn.
    keys = ("pdf.fonttype", "ps.fonttype", "svg.fonttype", "svg.hashsalt", "savefig.bbox", "savefig.dpi")
    house: dict[Any, Any] = dict(matplotlib.rc_params_from_file(_STYLE, use_default_template=False))
    settings: dict[Any, Any] = {key: house[key] for key in keys}
    with matplotlib.rc_context(settings):
        yield
