"""The page: what was done, what each diagnostic says in a sentence, and the figures, in one self-contained file."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path

from probe.figures import Drawn
from probe.report.sentences import findings, headline, performance_table
from probe.rows import Row, read_manifest

# Figure, its heading, and the diagnostic whose findings stand above it.
SECTIONS = (
    ("tradeoff", "Utility against forgetting", "performance"),
    ("g_effect", "G-effect by layer", "g_effect"),
    ("separability", "Can forget data still be told apart?", "separability"),
    ("u_shape", "One layer at a time", "fragility"),
    ("logit_collapse", "What the logits look like", "logit_collapse"),
    ("hidden_states", "Hidden states", "pca"),
    ("logit_lens", "One forget answer, read at every layer", "logit_lens"),
    ("dose_response", "Dose and response", "dose"),
    ("sae_choices", "SAE features: chosen on half of the people, judged on the other half", "sae_choice"),
)


# All figures are magnified alike, so that their text has one size on the page.
_MAGNIFICATION = 1.5


def _shown_width(svg: str) -> float:
    """Width on the page in CSS points."""
    found = re.search(r'<svg[^>]*\swidth="([\d.]+)pt"', svg)
    if found is None:
        raise ValueError("a figure's SVG states no width in points; draw the figures again")
    return _MAGNIFICATION * float(found.group(1))


def write_page(out: Path, rows: Sequence[Row], drawn: Drawn) -> Path:
    """Write ``index.html``; every figure is embedded, nothing is fetched when it is viewed.

    Args:
        out: the run folder, holding ``manifest.json``.
        rows: all rows of the run.
        drawn: what was drawn; each figure's SVG lies beside its PDF.

    Raises:
        ValueError: a manifest that is not a report's.
    """
    from jinja2 import Environment, FileSystemLoader, UndefinedError

    manifest = read_manifest(out)
    # autoescape: generations and names come from models and users, and may hold markup.
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    sections = []
    for name, title, diagnostic in SECTIONS:
        if name in drawn.paths:
            svg = drawn.paths[name].with_suffix(".svg").read_text(encoding="utf-8")
            sections.append(
                {
                    "id": name,
                    "title": title,
                    "svg": svg,
                    "width": _shown_width(svg),
                    "caption": drawn.captions[name],
                    "says": findings(rows, diagnostic),
                }
            )
    said = {"headline": headline(rows), "table": performance_table(rows)}
    missing = {name: drawn.missing[name] for name, *_ in SECTIONS if name in drawn.missing}
    try:
        text = environment.get_template("page.html").render(
            manifest=manifest, sections=sections, missing=missing, manifest_text=json.dumps(manifest, indent=1), **said
        )
    except (UndefinedError, TypeError, ValueError) as error:
        raise ValueError(
            f"{out / 'manifest.json'} is not what a report leaves ({error}); run `probe report` again"
        ) from None
    temporary = out / "index.html.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, out / "index.html")
    return out / "index.html"
