"""Load, ask, compare, write: the folder of an evaluation appears complete or not at all."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from probe.checkpoints import (
    check_device,
    check_tokenizer,
    check_usable,
    file_hash,
    load_model,
    load_tokenizer,
    weights_hash,
)
from probe.commands.data import greedy_note
from probe.commands.folder import Run, content_of, results, within
from probe.commands.templates import Chosen, check_log, chosen
from probe.evaluation.ask import Evaluation, EvaluationSettings, evaluate, reference_log
from probe.evaluation.data import Material, material
from probe.evaluation.job import EvaluationJob
from probe.evaluation.table import latex_table
from probe.metrics.choices import Form
from probe.metrics.generation import penalties
from probe.open_unlearning.log import EvaluationLog, read_log, write_log
from probe.open_unlearning.recomputed import truth_ratios
from probe.rows import append
from probe.sweep.inputs import content_hash

_FORMS: dict[str, Form] = {"letter": "letter", "text-sum": "text sum", "text-mean": "text mean"}


def run_evaluation(model: str, job: EvaluationJob) -> Path:
    """Evaluate a model; write rows.jsonl, evaluation.json, table.txt, table.tex and manifest.json.

    An evaluation that was stopped is continued by the same call, which gives the same numbers.

    Args:
        model: folder of safetensors, or a hub name.
        job: data, comparison, template, sizes, and where to.

    Returns:
        the folder.

    Raises:
        FileNotFoundError: data that is not there.
        ValueError: data, a log or a model that cannot be used, or a retrained model that is the model itself.
        OSError: the disk is full.
    """
    job.check()
    out = job.folder(model)
    # A mistake in a file should not cost the loading of a model.
    asked = material(job)
    theirs = _retrained_log(model, job, asked)
    tokenizer = load_tokenizer(job.tokenizer or model)
    template = chosen(job, tokenizer, [model, job.retrained])
    if theirs is not None:
        check_log(Path(str(job.retrained)), template, tokenizer)
    with results(out, job, resumes=True) as run:
        part, models = run.folder, {"model": model, **({"retrained": job.retrained} if job.retrained else {})}
        run.about(
            model=model,
            template=template.described(),
            data={"name": asked.name, **asked.described()},
            files=_files(job),
            contents={name: content_of(one) for name, one in models.items() if not one.endswith(".json")},
        )
        result, weights = _evaluated(model, job, asked, theirs, run, tokenizer, template)
        run.manifest.update(weights=weights, notes=result.notes)
        append(part / "rows.jsonl", result.rows)
        write_log(part / "evaluation.json", result.log)
        (part / "table.txt").write_text(result.table, encoding="utf-8")
        (part / "table.tex").write_text(latex_table(result.rows), encoding="utf-8")
    return out


def _evaluated(
    model: str,
    job: EvaluationJob,
    asked: Material,
    theirs: EvaluationLog | None,
    run: Run,
    tokenizer: Any,
    template: Chosen,
) -> tuple[Evaluation, dict[str, str]]:
    check_device(job.device)
    weights = {}
    asking = EvaluationSettings(
        template.template,
        job.batch_size,
        job.max_length,
        job.max_new_tokens,
        job.generate,
        choices=_FORMS[job.mcq_form],
        gradnorm=job.gradnorm,
    )
    if job.retrained is not None and theirs is None:
        other = load_model(job.retrained, dtype=getattr(torch, job.dtype), device=job.device)
        if _has_tokenizer(job.retrained):
            check_tokenizer(tokenizer, load_tokenizer(job.retrained))
        check_usable(other, tokenizer)
        weights["retrained"] = weights_hash(other)
        theirs = reference_log(other, tokenizer, asked, asking, progress=True, keep=within(run.kept, "retrained"))
        # Two models at once may not fit.
        del other
    ours = load_model(model, dtype=getattr(torch, job.dtype), device=job.device)
    check_usable(ours, tokenizer)
    weights["model"] = weights_hash(ours)
    if weights.get("retrained") == weights["model"]:
        raise ValueError(_same_model(model, str(job.retrained)))
    name = model.rstrip("/").split("/")[-1]
    keep = within(run.kept, "model")
    result = evaluate(ours, tokenizer, asked, asking, name=name, retrained=theirs, progress=True, keep=keep)
    return replace(result, notes=tuple(_notes(job, result, penalties(ours), template))), weights


def _retrained_log(model: str, job: EvaluationJob, asked: Material) -> EvaluationLog | None:
    """The retrained model's log where a log was named, cut to the rows that are asked about."""
    if job.retrained is None:
        return None
    path = Path(job.retrained)
    if path.exists() and (path.resolve() == Path(model).resolve() or _weights_of(path) == _weights_of(Path(model))):
        raise ValueError(_same_model(model, job.retrained))
    if path.suffix != ".json":
        return None
    log = read_log(path)
    n, whole = len(truth_ratios(log)), asked.whole["forget"]
    if n != whole:
        raise ValueError(
            f"{path} holds {n} truth ratios and {asked.name} has {whole} forget rows; they belong to different splits, "
            "and forget quality compares equal sizes only: take the log of the same split"
        )
    return log if job.limit is None else _cut(log, len(asked.sets["forget"]))


def _weights_of(folder: Path) -> str:
    """The hash of the files of weights; the path where there are none."""
    files = ("*.safetensors",)
    return content_hash(folder.resolve(), files) if folder.is_dir() and any(folder.glob(files[0])) else str(folder)


def _cut(log: EvaluationLog, n: int) -> EvaluationLog:
    """The log's first samples of the forget set; attacks are left out, for they compare sets of rows."""
    results = {
        name: {**result, "value_by_index": {k: v for k, v in result["value_by_index"].items() if int(float(k)) < n}}
        for name, result in log.results.items()
        if name.startswith("forget") and result.get("value_by_index")
    }
    return EvaluationLog(results, log.where)


def _notes(job: EvaluationJob, result: Evaluation, unapplied: Mapping[str, Any], template: Chosen) -> list[str]:
    notes = []
    if job.limit is not None:
        notes.append(f"a trial run: only the first {job.limit} rows of each set (--limit); no result to report")
    notes.append(template.note)
    short = sum(
        s["score"] is None for s in result.log.results.get("exact_memorization", {}).get("value_by_index", {}).values()
    )
    if short:
        notes.append(f"{short} forget answers have no token besides eos; exact memorisation is over the others")
    notes.append("probabilities and truth ratios as OpenUnlearning computes them, with 1e-10 in denominators")
    if job.generate and unapplied:
        asked = ", ".join(f"{name}={value}"[:60] for name, value in unapplied.items())
        notes.append(f"texts are greedy; the model's generation_config asks for {asked}, which is not applied here")
    if job.generate:
        notes += greedy_note(job.dtype)
    else:
        notes.append("nothing was generated (--no-generate), so there is no ROUGE and no model utility")
    return notes


def _files(job: EvaluationJob) -> dict[str, str]:
    named = {name: getattr(job, name) for name in ("forget", "retain", "holdout", "mcq", "retrained")}
    return {name: file_hash(path) for name, path in named.items() if path is not None and Path(path).is_file()}


def _has_tokenizer(folder: str) -> bool:
    path = Path(folder)
    return not path.is_dir() or any(path.glob("tokenizer*")) or any(path.glob("vocab*"))


def _same_model(model: str, retrained: str) -> str:
    return (
        f"the model {model} and the retrained model {retrained} are identical; forget quality would be perfect by "
        "itself. Check that the paths differ and that the model was saved after unlearning"
    )
