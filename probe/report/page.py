"""The page: what was done, what each diagnostic says in a sentence, and the figures, in one self-contained file."""

import json
import os
from collections.abc import Sequence
from pathlib import Path

from probe.figures import Drawn
from probe.report.sentences import findings, headline, table
from probe.rows import Row

# Figure, its heading, and the diagnostic whose findings stand above it.
SECTIONS = (
    ("tradeoff", "Utility against forgetting", "performance"),
    ("g_effect", "G-effect by layer", "g_effect"),
    ("separability", "Can forget data still be told apart?", "separability"),
    ("u_shape", "One layer at a time", "fragility"),
    ("logit_collapse", "What the logits look like", "logit_collapse"),
    ("hidden_states", "Hidden states", "pca"),
    ("dose_response", "Dose and response", "dose"),
)


def write_page(out: Path, rows: Sequence[Row], drawn: Drawn) -> Path:
    """Write ``index.html``; every figure is embedded, nothing is fetched when it is viewed.

    Args:
        out: the run folder, holding ``manifest.json``.
        rows: all rows of the run.
        drawn: what was drawn; each figure's SVG lies beside its PDF.
    """
    from jinja2 import Environment, FileSystemLoader

    manifest = json.loads((out / "manifest.json").read_text(encoding="utf-8"))
    # autoescape: generations and names come from models and users, and may hold markup.
    environment = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True)
    sections = [
        {
            "id": name,
            "title": title,
            "svg": drawn.paths[name].with_suffix(".svg").read_text(encoding="utf-8"),
            "caption": drawn.captions[name],
            "says": findings(rows, diagnostic),
        }
        for name, title, diagnostic in SECTIONS
        if name in drawn.paths
    ]
    text = environment.get_template("page.html").render(
        manifest=manifest,
        headline=headline(rows),
        table=table(rows),
        sections=sections,
        missing=drawn.missing,
        manifest_text=json.dumps(manifest, indent=1),
    )
    temporary = out / "index.html.tmp"
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, out / "index.html")
    return out / "index.html"
