"""The shell's view of the library. Nothing heavy is imported before the arguments are read."""

import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import tyro

from probe.evaluation.job import EvaluationJob
from probe.lenses.job import Data, GEffectJob, LayersJob
from probe.report.manifest import FULL
from probe.report.settings import TESTBED, OwnModels, Settings
from probe.unlearning.job import Job
from probe.verdict.job import VerdictJob


@dataclass(frozen=True, kw_only=True)
class Report:
    """Run interventions and their diagnostics; write rows, figures, tables and one page.

    Without --original, --forget and --retain the testbed that comes with the package is studied.
    """

    own: Annotated[OwnModels, tyro.conf.arg(name="")] = field(default_factory=OwnModels)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = TESTBED
    out: Path = Path("results/report")
    """Folder of the run."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw figures, tables and page of a finished run again, from its rows alone."""

    run: tyro.conf.Positional[Path]
    """Folder of the run."""
    venue: str = "neurips"
    """Whose column width and text size to use."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check on a model what is promised of every model: sites, edits, generation, padding, restoring, refusals.

    Prints one line a check. The exit code is 1 if a check failed.
    """

    model: tyro.conf.Positional[str]
    """Folder of safetensors, or a hub name."""
    device: str = "cpu"
    """Where to run it: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are cast to."""


@dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Unlearn with one method; write model, tokenizer and a manifest of exactly what made them.

    Without --model, --forget and --retain the testbed that comes with the package is unlearned. Hyper-parameters
    have no default: take published ones with --setting, or name them with --set. A method that acts while a text is
    read or written leaves no model: it writes answers.jsonl, each row's answer with and without it, and the manifest.
    """

    method: tyro.conf.Positional[str]
    """What `probe methods` lists."""
    job: Annotated[Job, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Evaluate:
    """Measure a model on TOFU or on rows of your own; print the table and save it with every sample.

    Writes rows.jsonl, evaluation.json (OpenUnlearning's log format), table.txt, table.tex and manifest.json. Forget
    quality and privleak need --retrained, the model that never saw the forget rows, or its log.
    """

    model: tyro.conf.Positional[str]
    """Folder of safetensors, or a hub name."""
    job: Annotated[EvaluationJob, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Layers:
    """Put layers of an unlearned model into the original, or the other way round; say what each brings about.

    Without models and rows the testbed is unlearned by a few steps of GradDiff and looked at. Writes rows.jsonl,
    table.txt, figures and manifest.json.
    """

    job: Annotated[LayersJob, tyro.conf.arg(name="")] = field(default_factory=LayersJob)
    data: Annotated[Data, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class GEffects:
    """What a gradient step on an objective does to the loss of forget and of retain rows, by layer or by token.

    Without --model, --forget and --retain the testbed's original is looked at. Writes rows.jsonl, table.txt, figures
    and manifest.json; with --tokens also tokens.jsonl and tokens.html.
    """

    job: Annotated[GEffectJob, tyro.conf.arg(name="")]
    data: Annotated[Data, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Say whether a model forgot, hides the facts, is broken, or was left alone, and how often that is wrong.

    Prints the verdict with calibrated probabilities, its error rate on kinds of models that were left out when it was
    fitted, the evidence by diagnostic and layer, and what lies outside of that experience.
    """

    model: tyro.conf.Positional[str]
    """Folder of safetensors, or a hub name."""
    job: Annotated[VerdictJob, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List every method: formula, source, what it trains, and its published settings."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these."""


def main(arguments: list[str] | None = None) -> None:
    """Entry point of ``probe`` and ``python -m probe``: exit code 2 for a user's mistake, 74 for a full disk."""
    command = tyro.extras.subcommand_cli_from_dict(
        {
            "report": Report,
            "figures": Figures,
            "unlearn": Unlearn,
            "methods": Methods,
            "evaluate": Evaluate,
            "verdict": Verdict,
            "layers": Layers,
            "g-effect": GEffects,
            "doctor": Doctor,
        },
        prog="probe",
        description="Find out what unlearning really does inside a language model.",
        args=arguments,
    )
    try:
        if isinstance(command, Doctor):
            _doctor(command)
        done = _done(command)
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        _fail(error, 2)
    except OSError as error:
        if error.errno in FULL:
            _fail(f"{error}; free some space and run again, or choose another folder", 74)
        _fail(error, 2)
    except KeyboardInterrupt:
        kept = "rows measured so far are kept in rows.jsonl" if isinstance(command, Report) else "nothing was written"
        _fail(f"stopped; {kept}", 130)
    print(done)


def _done(command: Report | Figures | Unlearn | Evaluate | Layers | GEffects | Verdict | Methods) -> object:
    if isinstance(command, Report):
        return _report(command)
    if isinstance(command, Figures):
        return _figures(command)
    if isinstance(command, Unlearn):
        from probe.unlearning.answering import summary
        from probe.unlearning.run import run_job

        folder = run_job(command.method, command.job)
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
    if isinstance(command, Verdict):
        from probe.verdict.run import run_verdict

        return run_verdict(command.model, command.job)
    from probe.methods.catalogue import table
    from probe.unlearning.needs import shell_facts

    return table(command.names, shell_facts)


def _with_table(folder: Path) -> str:
    return f"{(folder / 'table.txt').read_text(encoding='utf-8')}\n{folder}"


def _report(command: Report) -> Path:
    command.own.check()
    from probe.report.own import testbed_study, user_study
    from probe.report.run import run_report

    make = testbed_study if command.own.original is None else (lambda: user_study(command.own))
    return run_report(make, command.settings, command.out)


def _figures(command: Figures) -> Path:
    from probe.report.run import redraw

    return redraw(command.run, command.venue)


def _doctor(command: Doctor) -> NoReturn:
    import torch

    from probe.checkpoints import check_device, load_model, load_tokenizer
    from probe.testing import check_model

    check_device(command.device)
    model = load_model(command.model, dtype=getattr(torch, command.dtype), device=command.device)
    folder = Path(command.model)
    # A folder of weights alone is a model too; a tokenizer that is there must load.
    alone = folder.is_dir() and not any(folder.glob("tokenizer*")) and not any(folder.glob("vocab*"))
    report = check_model(model, None if alone else load_tokenizer(command.model))
    print(report.table())
    sys.exit(1 if report.failed else 0)


def _fail(reason: object, code: int) -> None:
    # One readable line: a traceback would bury what the user has to do.
    print("probe: " + " ".join(str(reason).split()), file=sys.stderr)
    sys.exit(code)
