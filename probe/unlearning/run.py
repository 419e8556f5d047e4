"""Load, unlearn, save: the folder of an unlearned model, or of answers, appears complete or not at all."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from probe.checkpoints import file_hash, weights_hash
from probe.commands.folder import results
from probe.commands.memory import training_memory, untold
from probe.datasets import rows_hash
from probe.dictionaries.autoencoder import Autoencoder, dictionary_hash
from probe.methods.catalogue import method_named
from probe.methods.method import Method
from probe.questions import repeated
from probe.unlearning.answering import answer
from probe.unlearning.arguments import resolved
from probe.unlearning.job import Job
from probe.unlearning.material import Material, material, supplied
from probe.unlearning.mixing import mix
from probe.unlearning.needs import FLAGS, read_files
from probe.unlearning.training import train

_WAYS = {"model": train, "mixture": mix, "wrapper": answer, "prompt": answer, "edit": answer}


def run_job(name: str, job: Job, *, tell: Callable[[str], None] = untold) -> Path:
    """Unlearn with one method; save the model with its tokenizer, or answers where none is made, and a manifest.

    Args:
        name: of a method; see ``probe.methods.catalogue``.
        job: model, data, hyper-parameters and where to.
        tell: takes a line that may be shown before the work: how much memory training needs.

    Returns:
        the folder: ``manifest.json`` and the model, or ``answers.jsonl`` (each row with the probability of its answer
        with and without the method, and what is written with it).

    Raises:
        ValueError: an unknown method or key, missing hyper-parameters, data or a model that cannot be used.
        FloatingPointError: a loss or weight became NaN or infinite.
        OSError: the disk is full.
    """
    job.check()
    method = method_named(name)
    arguments = resolved(method, job)
    files = read_files(method, job)
    with results(job.out, job) as run:
        part, manifest = run.folder, run.manifest
        at = material(job)
        given = supplied(method, job, at, files)
        manifest |= _described(method, arguments, job, at)
        if method.makes == "model":
            tell(training_memory(at.model, others=sum(isinstance(one, nn.Module) for one in given.values())))
        weights: dict[str, Any] = {"original": weights_hash(at.model)}
        others = {key: hashed for key, value in given.items() if key != "original" and (hashed := _hash(value))}
        manifest |= _WAYS[method.makes](method, job, at, {**arguments, **given}, part)
        manifest["weights"] = {**weights, **manifest["weights"], **({"given": others} if others else {})}
    return job.out


def _hash(value: Any) -> Any:
    """The hash of a second model, of an SAE, or of SAEs by site; nothing for other values."""
    if isinstance(value, nn.Module):
        return weights_hash(value)
    if isinstance(value, Autoencoder):
        return dictionary_hash(value)
    if isinstance(value, Mapping):
        return {repr(key): hashed for key, one in value.items() if (hashed := _hash(one))}
    return None


def _described(method: Method, arguments: dict[str, Any], job: Job, at: Material) -> dict[str, Any]:
    named = {name: getattr(job, name) for name in ("forget", "retain", *FLAGS)}
    sides = {"forget": at.split.forget_rows, "retain": at.split.retain_rows}
    return {
        "method": {
            "name": method.name,
            "family": method.family,
            "formula": method.formula,
            "source": method.source,
            "run": f"{method.run.__module__}.{method.run.__qualname__}",
        },
        "arguments": arguments,
        "setting_source": method.published[job.setting].source if job.setting else None,
        "template": at.template.described(),
        "data": {
            on: {"rows": len(rows), "sha256": rows_hash(rows), "repeated": repeated(rows)} for on, rows in sides.items()
        },
        "files": {name: file_hash(path) for name, path in named.items() if isinstance(path, Path) and path.is_file()},
    }
