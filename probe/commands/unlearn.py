"""`probe unlearn`: one method on one model, saved with the manifest of what made it."""

import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from probe.commands.command import Measurement, testbed_hash
from probe.options import (
    Compute,
    DictionaryOptions,
    Generated,
    Original,
    Resumed,
    Retrained,
    Rows,
    Seeded,
    SetOptions,
    TrainingOptions,
    Unlearned,
)
from probe.ranges import Count, ModelName, Weight

if TYPE_CHECKING:
    from torch import nn

    from probe.commands.unlearning.files import Files
    from probe.methods.method import Method
    from probe.runs.folder import Run
    from probe.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Unlearn(
    SetOptions, Original, Unlearned, Retrained, DictionaryOptions, TrainingOptions, Seeded, Generated, Measurement
):
    """Unlearn with one method; write model, tokenizer and a manifest of what made them.

    Without --original, --forget and --retain the testbed that comes with the package is unlearned. Hyper-parameters
    have no default: take published ones with --setting, or name them with --set. A method that acts while a text is
    read or written leaves no model: it writes answers.jsonl, each row's answer with and without it, and the manifest.
    UWC and CRU mix --original with --unlearned; CRU also compares with --retrained.

    Example: probe unlearn npo --original my-model --forget forget.jsonl --retain retain.jsonl
    --set beta=0.1 retain_weight=10 --lr 3e-4 --batch-size 16 --steps 30 --out by-npo
    """

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD")]
    """Name of the method; `probe methods` lists them."""
    setting: str | None = None
    """Start from published settings, by name (`probe methods` lists them)."""
    schedule: Literal["constant", "linear", "cosine"] | None = None
    """How the learning rate goes on after the warm-up; constant unless given here or by --setting."""
    warmup: Weight | None = None
    """Steps over which the learning rate first rises, or a share of the steps below 1."""
    parameters: str | None = None
    """Regular expression over the names of the parameters to be trained; the method's own choice by default."""
    refusals: Path | None = None
    """Refusals, one a line, for methods that answer with them; 100 come with the testbed."""
    alternatives: Path | None = None
    """Rows that answer the forget questions otherwise (AltPO); without it their perturbed answers are used."""
    environment: Path | None = None
    """Rows of an unrelated task that shall stay as it is (NPO+IRM, R2MU); the testbed has its world facts."""
    traces: Path | None = None
    """Rows whose answers are reasoning about what is to be forgotten (R2MU)."""
    labels: Literal["answers", "vocabulary"] | None = None
    """Tokens that random labels are drawn from: those of all answers, or the whole vocabulary."""
    assistant: ModelName | None = None
    """Folder of the small model whose logits are added (after unlearning) or taken away (it knows the forget rows)."""
    assistant_before: ModelName | None = None
    """Folder of the assistant before unlearning; on the testbed the testbed's model unless given."""
    measure: tuple[Literal["evaluate", "layers", "verdict"], ...] = ()
    """Commands that the unlearned model is given to when it is saved; a sweep evaluates unless told otherwise."""
    measure_limit: Count | None = None
    """Only the first so many rows of each side are measured."""
    measure_texts: bool = True
    """Whether `evaluate` generates, which takes most of its time; without it there is no ROUGE."""
    keep: bool = False
    """In a sweep keep each cell's model; without it only its manifest and what was measured stay."""

    def check(self) -> None:
        """Refuse half a description, hyper-parameters that are missing or unknown, and measurements that cannot be."""
        from probe.commands.arguments.hyperparameters import hyperparameters
        from probe.methods.catalogue import method_named

        super().check()
        method = method_named(self.method)
        if (self.sae is None) != (self.sae_layer is None):
            raise ValueError("--sae and --sae-layer belong together: name the block that the SAE was trained on")
        if len(set(self.measure)) < len(self.measure):
            raise ValueError(f"measure names each command once, got {', '.join(self.measure)}")
        if method.makes not in ("model", "mixture") and self.measure not in ((), ("evaluate",)):
            raise ValueError(f"{self.method} leaves no model, so only its answers can be measured; leave --measure out")
        if self.dtype == "float16" and "layers" in self.measure:
            raise ValueError("layers are measured in float32 or bfloat16; choose another dtype")
        hyperparameters(method, self)

    def folder(self, name: str = "") -> Path:
        """Where results go."""
        return super().folder(f"unlearn/{self.method}")

    def run(self) -> str:
        """Load, unlearn, save, say what changed, and measure what was asked for."""
        import torch

        from probe.checkpoints import file_hash
        from probe.commands.arguments.hyperparameters import hyperparameters
        from probe.commands.unlearning.files import read_files
        from probe.commands.unlearning.summary import summary
        from probe.methods.catalogue import method_named
        from probe.modes import threads
        from probe.runs.folder import results

        self.check()
        method = method_named(self.method)
        values = hyperparameters(method, self)
        # Small files first: a mistake in them should not cost the loading of a large model.
        files = read_files(method, self)
        with results(self.folder(), self) as run, threads(self.threads or torch.get_num_threads()):
            study = self.study()
            run.manifest.update({**study.described(), **_described(method, values, self)})
            # What the testbed has besides is no part of this run.
            run.manifest["weights"].pop("retrained", None)
            named = {field.name: getattr(self, field.name) for field in fields(self)}
            paths = {name: path for name, path in named.items() if isinstance(path, Path) and path.is_file()}
            run.manifest["files"] = {name: file_hash(path) for name, path in paths.items()}
            self._unlearned(method, study, files, values, run)
        found = [self._measured(name) for name in self.measure if method.makes in ("model", "mixture")]
        return "\n".join([f"{summary(self.folder())}{self.folder()}", *found])

    def study(self, *, distinct: bool = True, **models: str | None) -> "Study":
        """The original and the rows; other models and the dictionary are loaded where the method takes them."""
        return replace(self, unlearned=(), retrained=None, sae=None, sae_layer=None)._plain()

    def _plain(self) -> "Study":
        from probe.study.loading import load_study, testbed

        if self.original is None:
            return testbed(device=self.device, dtype=self.dtype, limit=self.limit)
        return load_study({"original": self.original}, self, self)

    @property
    def _shown_tokens(self) -> int:
        return self.max_new_tokens or 40

    def _unlearned(self, method: "Method", study: "Study", files: "Files", values: dict[str, Any], run: "Run") -> None:
        from probe.checkpoints import weight_hashes
        from probe.commands.unlearning.files import hash_of, supplies
        from probe.commands.unlearning.summary import loss_ends, mixture_facts, preview, write_answers
        from probe.methods.running import run_method
        from probe.runs.memory import training_memory

        model, split = study.original, study.split
        given = supplies(method, self, study, files)
        hashes = {name: one for name, value in given.items() if (one := hash_of(value))}
        run.manifest["weights"] |= {"given": hashes} if hashes else {}
        how: dict[str, Any] = {"supplies": given, **values}
        if method.makes not in ("model", "mixture"):
            made = run_method(self.method, model, split, study.tokenizer, **how)
            run.manifest.update(
                write_answers(method.makes, made, study, self.rows_per_pass, self._shown_tokens, run.folder)
            )
            return
        if method.makes == "model":
            others = sum(hasattr(value, "parameters") for value in given.values()) + ("original" in method.needs)
            print(training_memory(model, others=others), file=sys.stderr)
            how["progress"] = method.name
        size = self.rows_per_pass
        before, scores = weight_hashes(model), {"before": preview(model, study, size, self._shown_tokens)}
        result = run_method(self.method, model, split, study.tokenizer, **how)
        run.manifest.update(
            mixture_facts(result, study) if method.makes == "mixture" else {"losses": loss_ends(result)}
        )
        run.manifest.update(_saved(model, study.tokenizer, run.folder, before, _REMEDIES[method.makes]))
        scores["after"] = preview(model, study, size, self._shown_tokens)
        run.manifest["scores"] = scores
        run.manifest["weights"] |= run.manifest.pop("unlearned weights")

    def _measured(self, name: str) -> str:
        """What a command says of the saved model."""
        from probe.commands.command import command_named

        out = self.folder() / name
        shared = {**self.shared(Rows, Compute, Resumed), "out": out, "limit": self.measure_limit or self.limit}
        if name == "evaluate":
            shared |= {"generate": self.measure_texts, **self.shared(Generated, Retrained)}
            command = command_named(name)(model=str(self.folder()), **shared)  # type: ignore[call-arg]
        elif name == "verdict":
            models = {**self.shared(Original, Retrained), "model": str(self.folder())}
            command = command_named(name)(**models, **shared)
        else:
            command = command_named(name)(original=self.original, unlearned=(str(self.folder()),), **shared)  # type: ignore[call-arg]
        return command.run()

    def determines(self) -> Mapping[str, Any]:
        """The hyper-parameters that settings and flags come to, and the testbed's hash."""
        from probe.commands.arguments.hyperparameters import hyperparameters
        from probe.methods.catalogue import method_named

        self.check()
        arguments = hyperparameters(method_named(self.method), self)
        return {"arguments": arguments, **({} if self.original is not None else testbed_hash())}

    def numbers(self) -> dict[str, Any]:
        """The evaluation's numbers under their own names, those of layers and verdict behind "layers_", "verdict_".

        A method that leaves no model gives the means of its answers.
        """
        from probe.commands.numbers import flat
        from probe.methods.catalogue import method_named
        from probe.rows import load, read_manifest

        measure: Sequence[str] = self.measure or ("evaluate",)
        replace(self, measure=tuple(measure)).run()  # type: ignore[arg-type]
        folder = self.folder()
        manifest = read_manifest(folder)
        if method_named(self.method).makes not in ("model", "mixture"):
            sides = manifest["answers"].items()
            return {f"{side}_{name}": value for side, means in sides for name, value in means.items()}
        found: dict[str, Any] = {}
        for name in measure:
            if name == "verdict":
                from probe.commands.verdict import read_numbers

                numbers = read_numbers(folder / name)
                found |= {key if key == "verdict" else f"verdict_{key}": value for key, value in numbers.items()}
            else:
                first = "" if name == "evaluate" else f"{name}_"
                found |= {f"{first}{key}": value for key, value in flat(load(folder / name / "rows.jsonl")).items()}
        if not self.keep:
            for path in folder.iterdir():
                if path.name not in (*measure, "manifest.json"):
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        return found

    @classmethod
    def further(cls) -> Mapping[str, str]:
        """Hyper-parameters of all methods, which ``set`` takes."""
        from probe.methods.catalogue import methods

        return {name: "set" for method in methods() for name in method.hyperparameters}

    @classmethod
    def small(cls, values: Mapping[str, Any]) -> Mapping[str, Any]:
        """Two steps, four rows a side measured."""
        from probe.methods.catalogue import method_named

        trained = "steps" in method_named(values["method"]).hyperparameters
        return {"measure_limit": 4, **({"steps": 2} if trained else {})}


# What to do if no weight changed.
_REMEDIES = {
    "model": "raise --steps, --lr or the method's strength",
    "mixture": "nothing is taken from the unlearned model; ask for less to be kept, or for more layers",
}


def _described(method: "Method", arguments: dict[str, Any], options: Unlearn) -> dict[str, Any]:
    return {
        "method": {
            "name": method.name,
            "family": method.family,
            "formula": method.formula,
            "source": method.source,
            "run": f"{method.run.__module__}.{method.run.__qualname__}",
        },
        "arguments": arguments,
        "setting_source": method.published[options.setting].source if options.setting else None,
    }


def _saved(model: "nn.Module", tokenizer: Any, folder: Path, before: Mapping[str, str], remedy: str) -> dict[str, Any]:
    """Save the unlearned model; which weights changed.

    Raises:
        ValueError: no weight changed, or one is NaN or infinite.
        OSError: the disk is full.
    """
    from probe.checkpoints import check_usable, save_model, weight_hashes, weights_hash

    changed = [name for name, digest in weight_hashes(model).items() if digest != before[name]]
    if not changed:
        raise ValueError(f"the method changed no weight; {remedy}")
    check_usable(model, tokenizer)
    save_model(model, folder, tokenizer=tokenizer)
    return {
        "changed": {"tensors": len(changed), "of": len(before), "names": changed},
        "unlearned weights": {"unlearned": weights_hash(model)},
    }
