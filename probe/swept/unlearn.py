"""One method on one model, and what is said of the result."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from probe.swept.job import Then
from probe.swept.numbers import numbers_of
from probe.unlearning.job import Job


@dataclass(frozen=True)
class _Subject:
    """Folders and files that measurements are told of."""

    original: str
    forget: Path
    retain: Path
    retrained: str | None
    tokenizer: str
    max_length: int


def unlearn(method: str, job: Job, then: Then) -> dict[str, Any]:
    """`probe unlearn`, then the commands that ``then.measure`` names, on what it saved.

    Args:
        method: what `probe methods` lists.
        job: as the command takes it; ``out`` is the cell's folder.
        then: what is measured.

    Returns:
        the evaluation's numbers under their own names, those of layers and verdict behind "layers_" and "verdict_".
        A method that leaves no model gives the means of its answers.

    Raises:
        ValueError, FloatingPointError, OSError: as the commands.
    """
    from probe.unlearning.run import run_job

    out = job.out
    folder = run_job(method, replace(job, out=out / "model"))
    manifest = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))
    if "answers" in manifest:
        return {f"{side}_{name}": value for side, means in manifest["answers"].items() for name, value in means.items()}
    subject = _subject(job, then, out)
    found: dict[str, Any] = {}
    for name in then.measure:
        found |= _MEASURES[name](str(folder), subject, job, then, out / name)
    if not then.keep:
        (folder / "manifest.json").replace(out / "manifest.json")
        shutil.rmtree(folder)
    return found


def decides(method: str, job: Job, then: Then) -> Mapping[str, Any]:
    """Refuse a cell that cannot be run; the hyper-parameters that settings and flags come to, and the testbed's hash.

    Raises:
        ValueError: an unknown method or key, missing hyper-parameters, half a description, or measurements that the
            method or the testbed does not allow.
    """
    from probe.methods.catalogue import method_named
    from probe.unlearning.arguments import resolved

    job.check()
    chosen = method_named(method)
    if len(set(then.measure)) < len(then.measure):
        raise ValueError(f"measure names each command once, got {', '.join(then.measure)}")
    if chosen.makes not in ("model", "mixture") and then.measure != ("evaluate",):
        raise ValueError(f'{method} leaves no model, so only its answers can be measured; measure = ["evaluate"]')
    if job.model is None and then.compare is not None:
        raise ValueError("the testbed has its own model to compare with; leave compare out")
    if job.dtype == "float16" and "layers" in then.measure:
        raise ValueError("layers are measured in float32 or bfloat16; choose another dtype")
    return {"arguments": resolved(chosen, job), **testbed_hash(job.model)}


def hyperparameters() -> dict[str, str]:
    """Hyper-parameters of all methods, which ``set`` takes."""
    from probe.methods.catalogue import methods

    return {name: "set" for method in methods() for name in method.hyperparameters}


def small(values: Mapping[str, Any]) -> dict[str, Any]:
    """Two steps, four rows a side."""
    from probe.methods.catalogue import method_named

    trained = "steps" in method_named(values["method"]).hyperparameters
    return {"limit": 4, **({"steps": 2} if trained else {})}


def testbed_hash(model: str | None) -> dict[str, str]:
    """The hash of the shipped weights, where no model is named."""
    if model is not None:
        return {}
    from probe.sweep.inputs import content_hash
    from probe.testbed.bed import WEIGHTS

    return {"testbed": content_hash(WEIGHTS)}


def _subject(job: Job, then: Then, out: Path) -> _Subject:
    if job.model is not None:
        assert job.forget is not None
        assert job.retain is not None
        return _Subject(job.model, job.forget, job.retain, then.compare, job.model, job.max_length)
    from probe import testbed
    from probe.datasets import write_rows

    bed = testbed.load()
    forget, retain = out / "forget.jsonl", out / "retain.jsonl"
    write_rows(forget, bed.split.forget_rows)
    write_rows(retain, bed.split.retain_rows)
    original, retrained, tokenizer = (str(bed.folder / name) for name in ("original", "retrained", "tokenizer"))
    return _Subject(original, forget, retain, retrained, tokenizer, bed.split.max_length)


def _evaluated(model: str, at: _Subject, job: Job, then: Then, out: Path) -> dict[str, Any]:
    from probe.evaluation.job import EvaluationJob
    from probe.evaluation.run import run_evaluation

    asked = EvaluationJob(
        forget=at.forget,
        retain=at.retain,
        retrained=at.retrained,
        tokenizer=at.tokenizer,
        out=out,
        limit=then.limit,
        **job.prompting(),
        generate=then.generate,
        batch_size=then.measure_batch_size,
        max_length=at.max_length,
        max_new_tokens=job.max_new_tokens,
        device=job.device,
        dtype=job.dtype,
    )
    return {**numbers_of(run_evaluation(model, asked))}


def _layers(model: str, at: _Subject, job: Job, then: Then, out: Path) -> dict[str, Any]:
    from probe.commands.data import Data
    from probe.lenses.job import LayersJob
    from probe.lenses.layers import run_layers

    data = Data(
        forget=at.forget,
        retain=at.retain,
        out=out,
        rows=then.limit,
        **job.prompting(),
        max_length=at.max_length,
        batch_size=then.measure_batch_size,
        device=job.device,
        dtype="bfloat16" if job.dtype == "bfloat16" else "float32",
    )
    folder = run_layers(LayersJob(original=at.original, unlearned=model), data)
    return {f"layers_{name}": value for name, value in numbers_of(folder).items()}


def _judged(model: str, at: _Subject, job: Job, then: Then, out: Path) -> dict[str, Any]:
    from probe.swept.commands import verdict
    from probe.verdict.job import VerdictJob

    asked = VerdictJob(
        original=at.original,
        forget=at.forget,
        retain=at.retain,
        retrained=at.retrained,
        tokenizer=at.tokenizer,
        **job.prompting(),
        max_length=at.max_length,
        device=job.device,
        out=out,
    )
    return {f"verdict_{name}" if name != "verdict" else name: value for name, value in verdict(model, asked).items()}


_MEASURES = {"evaluate": _evaluated, "layers": _layers, "verdict": _judged}
