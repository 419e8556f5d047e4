"""The commands and their arguments. Nothing heavy is imported here: ``probe --help`` stays quick."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import tyro

from probe.commands.data import Data
from probe.evaluation.job import EvaluationJob
from probe.lenses.job import GEffectJob, LayersJob
from probe.ranges import Count
from probe.report.settings import TESTBED, OwnModels, Settings
from probe.sae.job import AuditJob, RankJob, SuppressJob, TrainJob
from probe.unlearning.job import Job
from probe.verdict.job import VerdictJob


@dataclass(frozen=True, kw_only=True)
class Report:
    """Run interventions and their diagnostics; write rows, figures, tables and one page.

    Without --original, --forget and --retain the testbed that comes with the package is studied. A report that was
    stopped goes on when the same command is given again.
    """

    own: Annotated[OwnModels, tyro.conf.arg(name="")] = field(default_factory=OwnModels)
    settings: Annotated[Settings, tyro.conf.arg(name="")] = TESTBED
    out: Path = Path("results/report")
    """Folder of the run; it must not exist, or be empty."""


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Draw every figure and table that rows allow, and list what is missing; no model is loaded.

    Takes the folder of a report (its page is written again), of any command that writes rows.jsonl, or of several.
    """

    run: tyro.conf.Positional[Path]
    """Folder of the rows."""
    venue: str = "neurips"
    """Whose column width and text size to use: neurips, icml, iclr, acl, aaai, cvpr, ..."""
    only: tuple[str, ...] = ()
    """Names of figures and tables, as figures/index.html lists them; all by default."""


@dataclass(frozen=True, kw_only=True)
class Doctor:
    """Check on a model what is promised of every model: sites, edits, generation, padding, restoring, refusals.

    Prints one line a check, then special tokens, whether there is a chat template, and the median norm of what leaves
    each block. The exit code is 1 if a check failed.
    """

    model: tyro.conf.Positional[str]
    """Folder of safetensors, or a hub name."""
    device: str = "cpu"
    """Where to run it: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """What weights are cast to."""
    largest: Count = 5_000_000
    """Gradients are checked on a copy in float64 of models of no more parameters than this."""


@dataclass(frozen=True, kw_only=True)
class Unlearn:
    """Unlearn with one method; write model, tokenizer and a manifest of what made them.

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
    quality and privleak need --retrained, the model that never saw the forget rows, or its log. An evaluation that was
    stopped goes on when the same command is given again.
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
class SaeTrain:
    """Train a sparse dictionary on a block's output, offline; save it only if it is what was asked for.

    Without --model, --forget and --retain a small one of the testbed. Writes sae/ (as sae-lens does, with card.json),
    rows.jsonl, table.txt and manifest.json.
    """

    job: Annotated[TrainJob, tyro.conf.arg(name="")] = field(default_factory=TrainJob)
    data: Annotated[Data, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SaeRank:
    """Put features in order by published rules, with the stability of the order; show what the first ones are.

    Without --model, --sae, --forget and --retain the testbed's. Writes rows.jsonl, features.json, features.html,
    table.txt, figures and manifest.json.
    """

    job: Annotated[RankJob, tyro.conf.arg(name="")] = field(default_factory=RankJob)
    data: Annotated[Data, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SaeSuppress:
    """Suppress features at many strengths; choose on half of the entities, judge on the other, beside controls.

    Without --model, --sae, --forget and --retain the testbed's. Writes rows.jsonl, chosen.json, table.txt, figures and
    manifest.json.
    """

    job: Annotated[SuppressJob, tyro.conf.arg(name="")] = field(default_factory=SuppressJob)
    data: Annotated[Data, tyro.conf.arg(name="")]


@dataclass(frozen=True, kw_only=True)
class SaeAudit:
    """Say what an edit of weights did to features that were to fall silent: silent, rerouted, or only unseen.

    Without models and rows the testbed's weights are orthogonalised against 30 features and looked at. Writes
    rows.jsonl, table.txt, features.json and manifest.json.
    """

    job: Annotated[AuditJob, tyro.conf.arg(name="")] = field(default_factory=AuditJob)
    data: Annotated[Data, tyro.conf.arg(name="")]


Sae = (
    Annotated[SaeTrain, tyro.conf.subcommand("train")]
    | Annotated[SaeRank, tyro.conf.subcommand("rank")]
    | Annotated[SaeSuppress, tyro.conf.subcommand("suppress")]
    | Annotated[SaeAudit, tyro.conf.subcommand("audit")]
)


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """Run a function or a command over a grid that a TOML file describes; a kill loses no finished cell.

    Running it again goes on where it was. Writes results.jsonl, one line a cell; see docs/sweeps.md.
    """

    file: tyro.conf.Positional[Path]
    """TOML file: run, [fixed] fields, [grid] axes."""
    out: Path | None = None
    """Folder of the sweep, instead of the one that the file names."""
    dry_run: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Show the cells and which are finished; with --slurm the script. Nothing is written."""
    smoke: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Run the first cell only, made small, and keep nothing."""
    shard: str | None = None
    """i/n: run the i-th of n shares of the cells; the last one to end puts all together."""
    slurm: Annotated[bool, tyro.conf.FlagCreatePairsOff] = False
    """Submit the shares as one array job of a Slurm cluster."""


@dataclass(frozen=True, kw_only=True)
class Methods:
    """List every method: formula, source, what it trains, and its published settings."""

    names: tyro.conf.Positional[tuple[str, ...]] = ()
    """Only these."""
