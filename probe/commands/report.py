"""`probe report`: interventions with their diagnostics, and one page."""

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from probe.commands.command import Command
from probe.options import Compute, DictionaryOptions, Original, Resumed, Retrained, Rows, Unlearned
from probe.report.settings import TESTBED_METHODS, Settings

if TYPE_CHECKING:
    from probe.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Report(Command, Original, Unlearned, Retrained, DictionaryOptions, Rows, Compute, Resumed, Settings):
    """Run interventions and their diagnostics; write rows, figures, tables and one page.

    Without --original, --forget and --retain the testbed that comes with the package is studied. Without --unlearned
    and --methods it unlearns by GA, GradDiff, WGA, NPO and RMU with settings found on the testbed, which suit no other
    model. A report that was stopped goes on when the same command is given again.

    Example: probe report --original my-model --forget forget.jsonl --retain retain.jsonl --unlearned by-npo by-rmu
    """

    methods: tuple[str, ...] = ()
    """Methods that `probe methods` lists, settings after a colon: npo:beta=0.1,retain_weight=10,lr=3e-4,steps=30
    rmu:setting=zephyr-7b,layer=5. On the testbed its own settings hold where none are given."""

    def check(self) -> None:
        """Refuse half a description, and methods that cannot be run."""
        super().check()
        self.check_rows({"--original": self.original})
        self.check_dictionary()
        if self.original is None and (self.unlearned or self.retrained or self.sae):
            raise ValueError("--original missing: a report on your own models needs --original, --forget and --retain")
        self._methods()

    def run(self) -> str:
        """Measure, draw, and write the page."""
        from probe.report.run import run_report

        self.check()
        out = self.out or Path("results/report")
        return str(run_report(self._study, self, out, self._methods(), tell=lambda line: print(line, file=sys.stderr)))

    def _study(self) -> "Study":
        from probe.study.loading import load_study, named_by_folder, testbed

        if self.original is None:
            return testbed(limit=self.limit, device=self.device, dtype=self.dtype)
        retrained = {} if self.retrained is None else {"retrained": self.retrained}
        models = {"original": self.original, **retrained, **named_by_folder(self.unlearned)}
        return load_study(models, self, self, self)

    def _methods(self) -> Mapping[str, Mapping[str, Any]] | None:
        """Settings by method; None where none was named."""
        if not self.methods:
            return None
        from probe.commands.arguments.hyperparameters import read_method
        from probe.report.conditions import resolved_methods

        read = [read_method(text) for text in self.methods]
        if len(dict(read)) < len(read):
            raise ValueError(f"--methods takes each method once, got {' '.join(self.methods)}")
        known = TESTBED_METHODS if self.original is None else {}
        table = {name: values if "setting" in values else {**known.get(name, {}), **values} for name, values in read}
        return resolved_methods(table, self.seed)

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Few rows."""
        return {"limit": 20}
