"""``python -m analyses.gallery``."""

import re
import shutil
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from analyses.g_effects.pictures import rows_of as gradients
from analyses.gallery import rows, studies
from analyses.shared import command
from probe.figures.catalogue import EVERY
from probe.figures.entry import Entry, TableEntry
from probe.figures.folder import draw_folder
from probe.modes import threads

# Folder of rows -> names of the figures and tables that the gallery shows from it.
SHOWN = {
    "gradients": ("g_effect_steps", "g_effect", "g_effect_map", "g_effect_thirds", "npo_weights", "g_effect_pairs"),
    "layers": ("u_shape", "u_shape_quality", "spans", "parts", "growing", "texts"),
    "testbed": (
        *("tradeoff", "utility_quality", "squeezing", "logit_collapse", "separability", "hidden_states"),
        *("relearning", "quantisation", "sae_features", "logit_lens", "continual", "dashboard", "dose_response"),
        *("paper", "sizes", "main"),
    ),
    "calibrated": (
        *("calibration", "alpha", "robustness", "attack_correlation", "choice", "choice_calibrated", "reliability"),
    ),
}
_SOURCES = {
    "gradients": "`python -m analyses.g_effects` (eight methods; bands over seeds, lowest to highest)",
    "layers": "`python -m analyses.layer_maps` (four methods; 95 % t-intervals over seeds)",
    "testbed": "`python -m analyses.gallery` (the report's models and a few runs more; 95 % intervals over "
    "groups of rows, relearning over three seeds)",
    "calibrated": "`python -m analyses.calibrated` (95 % t-intervals over seeds)",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is run."""

    out: Path = Path("results/gallery")
    """Folder of the rows, a folder in it for each kind."""
    docs: Path = Path("docs")
    """Where gallery.md and the pictures go."""
    results: Path = Path("results")
    """Where studies that were run before left their records."""
    venue: str = "neurips"
    """Whose widths to draw at."""


def measure(arguments: Arguments) -> None:
    """Write the rows that are not there yet."""
    testbed = arguments.out / "testbed"
    parts = {
        "models": rows.models,
        **{f"squeezing-{name}": partial(rows.squeezed, name=name) for name in rows.SQUEEZED},
        **{f"continual-{name}": partial(rows.continual, name=name) for name in rows.IN_SEQUENCE},
        "sae": rows.sae,
    }
    if not all((testbed / name / "rows.jsonl").is_file() for name in parts):
        at = rows.bench()
        for name, make in parts.items():
            rows.part(testbed / name, partial(make, at))
    for folder, study, made in (
        ("gradients", "g_effects", gradients),
        ("layers", "layer_maps", studies.maps),
        ("calibrated", "calibrated", studies.calibrated),
    ):
        own = arguments.out / "runs" / study
        rows.part(
            arguments.out / folder,
            lambda study=study, made=made, own=own: made(studies.runs(study, arguments.results, own)),
        )


def main(arguments: Arguments) -> None:
    """Measure what is missing, draw, and write the page."""
    with threads(1):
        measure(arguments)
    pictures = arguments.docs / "gallery"
    pictures.mkdir(parents=True, exist_ok=True)
    captions = {}
    for folder, names in SHOWN.items():
        drawn = draw_folder(arguments.out / folder, venue=arguments.venue, only=names)
        if drawn.missing:
            raise SystemExit(f"not drawn from {folder}: {drawn.missing}")
        captions |= drawn.captions
        for name in names:
            path = drawn.paths[name]
            if path.suffix == ".tex":
                shutil.copy(path, pictures)
            else:
                small_png(path.with_suffix(".png"), pictures / f"{name}.png")
    (arguments.docs / "gallery.md").write_text(page(arguments, captions), encoding="utf-8")
    print(arguments.docs / "gallery.md")


def small_png(source: Path, target: Path) -> None:
    """Copy a picture with few colours, which is a third of its size; tried from many colours to few, up to 60 kB."""
    from PIL import Image

    picture = Image.open(source).convert("RGB")
    for colours in (256, 128, 64, 32):
        # Median cut would lose rare colours, the red end of a colour bar say.
        few = picture.quantize(colours, method=Image.Quantize.MAXCOVERAGE, kmeans=1, dither=Image.Dither.NONE)
        few.save(target, optimize=True)
        if target.stat().st_size <= 60_000:
            return


def page(arguments: Arguments, captions: dict[str, str]) -> str:
    """The gallery in Markdown."""
    home = {name: folder for folder, names in SHOWN.items() for name in names}
    lines = [
        "# Gallery",
        "",
        "Every figure and table that `probe figures` draws, on the testbed. `python -m analyses.gallery` measures the "
        "rows and writes this page; the command under each picture draws it from the rows alone, at a venue's width "
        "(`--venue icml`, `acl`, ...), as PDF, SVG and PNG with the plotted numbers and the caption in a JSON file "
        "beside them. The testbed is a model of 1.8 million parameters and settings were not searched: the pictures "
        "show what a figure looks like, not which method is best.",
        "",
        "Rows come from:",
        "",
        *(f"- `{arguments.out / folder}`: {source}" for folder, source in _SOURCES.items()),
        "",
    ]
    for entry in sorted(EVERY, key=_place):
        if entry.name in home:
            lines += _section(entry, arguments.out / home[entry.name], captions[entry.name])
    others = [entry for entry in EVERY if entry.name not in home]
    if others:
        lines += ["## Drawn by other commands", "", *(f"- `{entry.name}`: {entry.title}" for entry in others), ""]
    return "\n".join(lines)


def _place(entry: Entry | TableEntry) -> tuple[int, int]:
    """Figures by number, tables after them, what stands beside the set last."""
    if not entry.number:
        return 2, 0
    return (1, int(entry.number[1:])) if entry.number.startswith("T") else (0, int(entry.number))


def _section(entry: Entry | TableEntry, folder: Path, caption: str) -> list[str]:
    number = f"{entry.number}. " if entry.number else ""
    lines = [f"## {number}{entry.title}", ""]
    if isinstance(entry, Entry):
        lines += [f"![{entry.title}](gallery/{entry.name}.png)", ""]
    else:
        lines += [f"[{entry.name}.tex](gallery/{entry.name}.tex)", ""]
    text = re.sub(r"([*_])", r"\\\1", caption)
    return [*lines, f"*{text}*", "", "```", f"probe figures {folder} --only {entry.name}", "```", ""]


if __name__ == "__main__":
    command(__package__, main)
