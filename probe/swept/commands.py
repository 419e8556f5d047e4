"""The commands that measure, each as a function that gives the numbers of one cell."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from probe.commands.data import Data
from probe.evaluation.job import EvaluationJob
from probe.lenses.job import GEffectJob, LayersJob
from probe.sweep.file import Work
from probe.swept.numbers import numbers_of
from probe.swept.unlearn import decides, hyperparameters, small, testbed_hash, unlearn
from probe.verdict.job import VerdictJob


def evaluate(model: str, job: EvaluationJob) -> dict[str, Any]:
    """`probe evaluate`: every mean and aggregate."""
    from probe.evaluation.run import run_evaluation

    return {**numbers_of(run_evaluation(model, job))}


def layers(job: LayersJob, data: Data) -> dict[str, Any]:
    """`probe layers`: every metric for every variant."""
    from probe.lenses.layers import run_layers

    return {**numbers_of(run_layers(job, data))}


def g_effect(job: GEffectJob, data: Data) -> dict[str, Any]:
    """`probe g-effect`: totals, cosines and the effect of every block."""
    from probe.lenses.effects import run_g_effect

    return {**numbers_of(run_g_effect(job, data))}


def verdict(model: str, job: VerdictJob) -> dict[str, Any]:
    """`probe verdict`: the verdict, each probability, its error rate, and every diagnostic's value."""
    from probe.verdict.run import run_verdict

    assert job.out is not None
    path = job.out / "verdict.json"
    run_verdict(model, replace(job, out=path))
    found = json.loads(path.read_text(encoding="utf-8"))
    numbers = {"verdict": found["verdict"], "error_rate": found["error"]}
    numbers |= {f"p_{name.replace(' ', '_')}": p for name, p in found["probabilities"].items()}
    return numbers | {one["name"].replace(" ", "_"): one["value"] for one in found["evidence"]}


def _evaluation_decides(model: str, job: EvaluationJob) -> Mapping[str, Any]:
    from probe.evaluation.data import material

    job.check()
    # TOFU's folder holds more files than are asked about, and may be one of the hub's.
    described = {} if job.tofu is None else material(job).described()
    return {f"{name} rows": one["sha256"] for name, one in described.items() if "sha256" in one}


def _layers_decides(job: LayersJob, data: Data) -> Mapping[str, Any]:
    job.check()
    data.check(job.models)
    return testbed_hash(job.original)


def _effect_decides(job: GEffectJob, data: Data) -> Mapping[str, Any]:
    job.check()
    data.check(job.models)
    return testbed_hash(job.model)


def _few_rows(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"rows": 4}


def _few_asked(values: Mapping[str, Any]) -> dict[str, Any]:
    return {"limit": 4}


JOBS: Mapping[str, Work] = {
    "unlearn": Work(
        unlearn,
        ("model", "unlearned", "retrained", "assistant", "assistant_before", "compare"),
        decides,
        small,
        hyperparameters,
    ),
    "evaluate": Work(evaluate, ("model", "retrained", "tokenizer"), _evaluation_decides, _few_asked),
    "layers": Work(layers, ("original", "unlearned"), _layers_decides, _few_rows),
    "g-effect": Work(g_effect, ("model", "original"), _effect_decides, _few_rows),
    "verdict": Work(verdict, ("model", "original", "retrained", "tokenizer")),
}
"""By the names of their commands."""
