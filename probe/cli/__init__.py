"""The shell's view of the library. Nothing heavy is imported before the arguments are read."""

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import is_dataclass
from functools import reduce
from operator import or_
from pathlib import Path
from typing import Annotated, Any, NoReturn

import tyro

from probe.cli.asked import (
    Doctor,
    Evaluate,
    Figures,
    GEffects,
    Layers,
    Methods,
    Report,
    Sae,
    SaeAudit,
    SaeRank,
    SaeSuppress,
    SaeTrain,
    Sweep,
    Unlearn,
    Verdict,
)
from probe.cli.stopping import heard
from probe.ranges import check_ranges
from probe.rows import FULL

# Of a message, in characters.
_LONGEST = 385


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``probe`` and ``python -m probe``: exit code 2 for a user's mistake, 74 for a full disk."""
    given = sys.argv[1:] if arguments is None else arguments
    _check_once(given)
    commands: dict[str, Any] = {
        "report": Report,
        "figures": Figures,
        "unlearn": Unlearn,
        "methods": Methods,
        "evaluate": Evaluate,
        "verdict": Verdict,
        "sae": Sae,
        "layers": Layers,
        "g-effect": GEffects,
        "sweep": Sweep,
        "doctor": Doctor,
    }
    # A union has no docstring of its own: Python's of unions would be shown.
    said = {"sae": "Train, rank, suppress and audit features of sparse autoencoders."}
    kinds: list[Any] = [
        Annotated[kind, tyro.conf.subcommand(name, description=said.get(name))] for name, kind in commands.items()
    ]
    command: Any = tyro.cli(
        reduce(or_, kinds),
        prog="probe",
        description="Find out what unlearning really does inside a language model.",
        args=given,
    )
    try:
        with heard():
            done = _run(command)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        _fail(error, 2)
    except OSError as error:
        if error.errno in FULL:
            _fail(error, 74, "; free some space and run again, or choose another folder")
        _fail(error, 2)
    except KeyboardInterrupt as stop:
        stop.args = ("stopped",)
        kept = "finished cells are kept; run again to go on" if isinstance(command, Sweep) else "nothing was written"
        _fail(stop, 130, "" if hasattr(stop, "__notes__") else f"; {kept}")
    except SystemExit as end:
        if hasattr(end, "__notes__"):
            end.args = ("stopped by SIGTERM",)
            _fail(end, int(end.code or 0))
        raise
    print(done)


def _run(command: Any) -> object:
    for part in vars(command).values():
        if is_dataclass(part):
            check_ranges(part)
    if isinstance(command, Doctor):
        _doctor(command)
    if isinstance(command, Sweep):
        _sweep(command)
    return _done(command)


def _check_once(given: Sequence[str]) -> None:
    """A flag that is given twice would keep its last values only, and nobody would know."""
    flags = [word.split("=")[0] for word in given if word.startswith("--") and len(word) > 2]
    twice = [flag for flag, count in Counter(flags).items() if count > 1]
    if twice:
        _fail(f"{twice[0]} is given {flags.count(twice[0])} times; give it once, with all its values after it", 2)


def _done(command: Report | Figures | Unlearn | Evaluate | Layers | GEffects | Verdict | Sae | Methods) -> object:
    if isinstance(command, Report):
        return _report(command)
    if isinstance(command, Figures):
        return _figures(command)
    if isinstance(command, Unlearn):
        from probe.unlearning.answering import summary
        from probe.unlearning.run import run_job

        folder = run_job(command.method, command.job, tell=_tell)
        return f"{summary(folder)}{folder}"
    if isinstance(command, Evaluate):
        from probe.evaluation.run import run_evaluation

        return _with_table(run_evaluation(command.model, command.job))
    if isinstance(command, Layers):
        from probe.lenses.layers import run_layers

        return _with_table(run_layers(command.job, command.data))
    if isinstance(command, GEffects):
        from probe.lenses.effects import run_g_effect

        return _with_table(run_g_effect(command.job, command.data))
    if isinstance(command, SaeTrain | SaeRank | SaeSuppress | SaeAudit):
        return _with_table(_sae(command))
    if isinstance(command, Verdict):
        from probe.verdict.run import run_verdict

        return run_verdict(command.model, command.job)
    from probe.methods.catalogue import details, overview
    from probe.unlearning.needs import shell_facts

    return details(command.names, shell_facts) if command.names else overview()


def _with_table(folder: Path) -> str:
    return f"{(folder / 'table.txt').read_text(encoding='utf-8')}\n{folder}"


def _sae(command: Sae) -> Path:
    if isinstance(command, SaeTrain | SaeAudit):
        from probe.sae.making import run_audit, run_train

        return (
            run_train(command.job, command.data)
            if isinstance(command, SaeTrain)
            else run_audit(command.job, command.data)
        )
    from probe.sae.studies import run_rank, run_suppress

    return (
        run_rank(command.job, command.data) if isinstance(command, SaeRank) else run_suppress(command.job, command.data)
    )


def _report(command: Report) -> Path:
    command.own.check()
    from probe.report.own import testbed_study, user_study
    from probe.report.run import run_report

    make = testbed_study if command.own.original is None else (lambda: user_study(command.own))
    return run_report(make, command.settings, command.out, tell=_tell)


def _figures(command: Figures) -> object:
    from probe.commands.manifest import is_report

    if not command.only and is_report(command.run):
        from probe.figures.folder import unfinished
        from probe.report.run import redraw

        return "\n".join([*unfinished(command.run), str(redraw(command.run, command.venue))])
    from probe.figures.folder import draw_folder, drawing_summary

    return drawing_summary(draw_folder(command.run, venue=command.venue, only=command.only))


def _doctor(command: Doctor) -> NoReturn:
    import torch

    from probe.checkpoints import check_device, load_model, load_tokenizer
    from probe.testing import check_model

    check_device(command.device)
    model = load_model(command.model, dtype=getattr(torch, command.dtype), device=command.device)
    folder = Path(command.model)
    # A folder of weights alone is a model too; a tokenizer that is there must load.
    alone = folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*"))
    report = check_model(model, None if alone else load_tokenizer(command.model), largest=command.largest)
    print(report.table())
    sys.exit(1 if report.failed else 0)


def _sweep(command: Sweep) -> NoReturn:
    from probe.sweep.command import run_file
    from probe.swept.commands import JOBS

    text, code = run_file(
        command.file,
        JOBS,
        out=command.out,
        dry_run=command.dry_run,
        smoke=command.smoke,
        shard=command.shard,
        slurm=command.slurm,
    )
    print(text)
    sys.exit(code)


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


def _fail(reason: object, code: int, remedy: str = "") -> None:
    # One readable line: a traceback would bury what the user has to do. Notes say what was kept.
    text = "; ".join([f"{reason}{remedy}", *getattr(reason, "__notes__", ())])
    text = " ".join(text.split())
    # A word of thousands of characters would bury it, too.
    text = text if len(text) <= _LONGEST else f"{text[: _LONGEST - 145]} ... {text[-140:]}"
    print(f"probe: {text}", file=sys.stderr)
    sys.exit(code)
