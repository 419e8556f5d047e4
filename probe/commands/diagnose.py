"""`probe diagnose`: one diagnostic on a model."""

from dataclasses import dataclass
from inspect import signature
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from probe.commands.command import Measurement
from probe.options import Original, Retrained, Seeded, SetOptions, Unlearned

# What a diagnostic may take of a study.
_STUDY = (
    "model",
    "original",
    "unlearned",
    "retrained",
    "source",
    "codes_from",
    "split",
    "batch",
    "on",
    "rows",
    "prompts",
    "tokenizer",
    "template",
)


@dataclass(frozen=True, kw_only=True)
class Diagnose(SetOptions, Original, Unlearned, Retrained, Seeded, Measurement):
    """Run one diagnostic on a model: the unlearned one, the original where none is named, or both.

    Diagnostics: separability, ridge_probes, content_probe, clusters, logit_collapse, logit_lens, fit_tuned_lens,
    similarity, spread, representation_pca, layer_map, replacement_map, screened, weight_change, localisation,
    depth_score, token_effects, replaced_texts, spurious_unlearning; the reference says what each measures and takes.
    Without --original and rows the testbed is looked at. Writes rows.jsonl, table.txt and manifest.json.

    Example: probe diagnose separability --unlearned by-npo
    """

    diagnostic: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DIAGNOSTIC")]
    """Name of the diagnostic."""
    side: Literal["forget", "retain"] = "forget"
    """Which rows a diagnostic of one side looks at."""

    def folder(self, name: str = "") -> Path:
        """Where results go."""
        return super().folder(f"diagnose/{self.diagnostic}")

    def run(self) -> str:
        """The diagnostic's numbers."""
        import probe.diagnostics
        from probe.commands.arguments.calling import call_arguments, called, function_named

        self.check()
        function = function_named(self.diagnostic, called(probe.diagnostics, _STUDY), "diagnostic")
        takes = signature(function).parameters
        if self.retrained is not None and "retrained" not in takes:
            raise ValueError(f"{self.diagnostic} takes no --retrained; leave it out")
        if self.side != "forget" and not {"batch", "rows", "prompts"} & set(takes):
            raise ValueError(f"{self.diagnostic} looks at both sides; leave --side out")
        with self.writing("") as (run, study):
            name, model = next(iter(study.unlearned.items()), ("original", study.original))
            split, forget = study.split, self.side == "forget"
            batch = split.forget if forget else split.retain
            rows = split.forget_rows if forget else split.retain_rows
            given: dict[str, Any] = {
                "model": model,
                "original": study.original,
                "unlearned": next(iter(study.unlearned.values()), None),
                "retrained": study.retrained,
                "source": study.original,
                "codes_from": study.original,
                "split": split,
                "batch": batch,
                "on": split,
                "rows": rows,
                "prompts": [split.template.asked(row.question) for row in rows],
                "tokenizer": study.tokenizer,
                "template": split.template,
            }
            options = {"seed": self.seed or None, "batch_size": self.batch_size}
            found = function(**call_arguments(function, given, options, self.set))
            table = self.write(run, study.notes, found.rows(name), str(found))
        return f"{table}\n{self.folder()}"
