"""`probe report`: interventions with their diagnostics, and one page."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.commands.command import Command
from probe.options import Compute, DictionaryOptions, Original, Resumed, Retrained, Rows, Unlearned
from probe.report.settings import TESTBED, Editing, Measuring, Settings, Training


@dataclass(frozen=True, kw_only=True)
class Report(Command, Original, Unlearned, Retrained, DictionaryOptions, Rows, Compute, Resumed):
    """Run interventions and their diagnostics; write rows, figures, tables and one page.

    Without --original, --forget and --retain the testbed that comes with the package is studied. Without
    --unlearned it unlearns by itself. A report that was
    stopped goes on when the same command is given again.

    Example: probe report --original my-model --forget forget.jsonl --retain retain.jsonl --unlearned by-npo by-rmu
    """

    training: Training = TESTBED.training
    editing: Editing = TESTBED.editing
    measuring: Measuring = TESTBED.measuring

    def check(self) -> None:
        """Refuse half a description."""
        super().check()
        self.check_rows({"--original": self.original})
        self.check_dictionary()
        if self.original is None and (self.unlearned or self.retrained or self.sae):
            raise ValueError("--original missing: a report on your own models needs --original, --forget and --retain")

    def run(self) -> str:
        """Measure, draw, and write the page."""
        from probe.report.run import run_report
        from probe.study.loading import load_study, named_by_folder, testbed

        self.check()

        def study() -> Any:
            if self.original is None:
                return testbed(limit=self.limit, device=self.device, dtype=self.dtype)
            retrained = {} if self.retrained is None else {"retrained": self.retrained}
            models = {"original": self.original, **retrained, **named_by_folder(self.unlearned)}
            return load_study(models, self, self, self)

        settings = Settings(
            training=self.training, editing=self.editing, measuring=self.measuring, threads=self.threads
        )
        out = self.out or Path("results/report")
        return str(run_report(study, settings, out, tell=lambda line: print(line, file=sys.stderr)))

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Few rows."""
        return {"limit": 20}
