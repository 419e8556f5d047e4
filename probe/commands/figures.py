"""`probe figures`: draw what rows on disk allow."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from probe.commands.command import Command


@dataclass(frozen=True, kw_only=True)
class Figures(Command):
    """Draw every figure and table that rows allow, and list what is missing; no model is loaded.

    Takes the folder of a report (its page is written again), of any command that writes rows.jsonl, or of several.

    Example: probe figures results/report --venue icml --only tradeoff u_shape
    """

    folder: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FOLDER")]
    """Folder of the rows."""
    venue: str = "neurips"
    """Whose column width and text size to use: neurips, icml, iclr, acl, aaai, cvpr, ..."""
    only: tuple[str, ...] = ()
    """Names of figures and tables, as figures/index.html lists them; all by default."""

    def run(self) -> str:
        """Draw, and say what was drawn and what is missing."""
        from probe.figures.folder import draw_folder, drawing_summary, unfinished
        from probe.runs.manifest import is_report

        if not self.only and is_report(self.folder):
            from probe.report.run import redraw

            return "\n".join([*unfinished(self.folder), str(redraw(self.folder, self.venue))])
        return drawing_summary(draw_folder(self.folder, venue=self.venue, only=self.only))
