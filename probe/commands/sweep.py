"""`probe sweep`: a command or a function over a grid."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from probe.commands.command import Command, Measurement, command_named, command_names
from probe.options import Out
from probe.sweep.file import Work


@dataclass(frozen=True, kw_only=True)
class Sweep(Command, Out):
    """Run a function or a command over a grid that a TOML file describes; a kill loses no finished cell.

    Running it again goes on where it was. Writes results.jsonl, one line a cell; see docs/sweeps.md.

    Example: probe sweep layers.toml --dry-run
    """

    file: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="FILE")]
    """TOML file: run, [fixed] fields, [grid] axes."""
    dry_run: tyro.conf.FlagCreatePairsOff[bool] = False
    """Show the cells and which are finished; with --slurm the script. Nothing is written."""
    smoke: tyro.conf.FlagCreatePairsOff[bool] = False
    """Run the first cell only, made small, and keep nothing."""
    shard: str | None = None
    """i/n: run the i-th of n shares of the cells; the last one to end puts all together."""
    slurm: tyro.conf.FlagCreatePairsOff[bool] = False
    """Submit the shares as one array job of a Slurm cluster."""

    def run(self) -> str:
        """Run, show, try out, share out or submit; ends the program with 1 if a cell failed."""
        from probe.sweep.command import run_file

        text, code = run_file(
            self.file,
            jobs(),
            out=self.out,
            dry_run=self.dry_run,
            smoke=self.smoke,
            shard=self.shard,
            slurm=self.slurm,
        )
        if code:
            print(text)
            raise SystemExit(code)
        return text


# What fields of sweep files were called before commands had one set of options.
_RENAMED = {
    "model": "original",
    "compare": "retrained",
    "edited": "unlearned",
    "generate": "measure_texts",
    "measure_batch_size": "batch_size",
    "rows": "limit",
}


def jobs() -> Mapping[str, Work]:
    """What a sweep file can name by a short name: every command that measures, as a function of its options."""
    kinds = {name: command_named(name) for name in command_names()}
    return {name: _work(kind) for name, kind in kinds.items() if issubclass(kind, Measurement)}


def _work(kind: type[Measurement]) -> Work:
    def run(**options: Any) -> dict[str, Any]:
        return kind(**options).numbers()

    def decides(**options: Any) -> Mapping[str, Any]:
        return kind(**options).determines()

    return Work(run, decides, kind.small, kind.further, kind, _RENAMED)
