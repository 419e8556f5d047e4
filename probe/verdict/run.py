"""From model folders and row files to a verdict."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn
from tqdm.auto import tqdm

from probe.checkpoints import check_device, check_tokenizer, file_hash, load_model, load_tokenizer, weights_hash
from probe.commands.folder import Keep, content_of, results, unkept, within
from probe.commands.templates import chosen
from probe.data import Template
from probe.datasets import read_rows
from probe.ranges import check_ranges
from probe.verdict.job import VerdictJob
from probe.verdict.judge import FITTED, Judge, Verdict, judged, load_judge
from probe.verdict.material import check_verdict_rows, verdict_rows
from probe.verdict.measure import PARTS, measure
from probe.weights import check_same_architecture


def run_verdict(model: str, job: VerdictJob) -> str:
    """Load everything, examine original, model and retrained model alike, and say what became of the facts.

    With ``job.out`` a verdict that was stopped is continued by the same call.

    Returns:
        the text for the shell.

    Raises:
        ValueError: an ``out`` that exists, files or models that cannot be read or do not belong together, or facts the
            original never knew.
        FileNotFoundError: a file that does not exist.
    """
    check_ranges(job)
    check_device(job.device)
    if job.out is None:
        return _judged(model, job, unkept)[0]
    with results(job.out, job, resumes=True, file="verdict.json") as run:
        named = {"model": model, "original": job.original, "retrained": job.retrained}
        paths = {"forget": job.forget, "retain": job.retain, "fitted": job.fitted or FITTED}
        run.about(
            model=model,
            contents={role: content_of(name) for role, name in named.items() if name is not None},
            files={name: file_hash(path) for name, path in paths.items() if path is not None and path.is_file()},
        )
        text, found = _judged(model, job, run.kept)
        content = json.dumps(asdict(found), indent=1, default=dict) + "\n"
        (run.folder / "verdict.json").write_text(content, encoding="utf-8")
    return text


def _judged(model: str, job: VerdictJob, keep: Keep) -> tuple[str, Verdict]:
    judge = load_judge(job.fitted or FITTED)
    # Rows are read first: a mistake in them should not cost the loading of models.
    forget = read_rows(job.forget)
    retain = [] if job.retain is None else read_rows(job.retain)
    check_verdict_rows(forget, retain)
    tokenizer = load_tokenizer(job.tokenizer or job.original)
    names = {"original": job.original, "model": model} | ({"retrained": job.retrained} if job.retrained else {})
    if job.tokenizer is None:
        for name in names.values():
            if any(Path(name).glob("tokenizer*")):
                check_tokenizer(tokenizer, load_tokenizer(name))
    models = {role: load_model(name, device=job.device) for role, name in names.items()}
    notes = check_models(models)
    template = chosen(job, tokenizer, [model, job.original, job.retrained])
    found = verdict_on(
        models, tokenizer, forget, retain, judge=judge, template=template.template, max_length=job.max_length,
        keep=keep, progress=True,
    )  # fmt: skip
    return "\n".join([*notes, f"note: {template.note}", found.text()]), found


def _moving(bar: Any, keep: Keep) -> Keep:
    """The same, and the bar says what is under way."""

    def kept(key: str, make: Callable[[], Any]) -> Any:
        bar.set_postfix_str(key)
        value = keep(key, make)
        bar.update()
        return value

    return kept


def check_models(models: dict[str, Any]) -> list[str]:
    """Refuse models that cannot be compared; say what is the same.

    Raises:
        ValueError: another architecture than the original's, or a retrained model that is one of the others.
    """
    for role in [role for role in models if role != "original"]:
        try:
            check_same_architecture(models["original"], models[role])
        except ValueError as error:
            raise ValueError(f"the {role} model cannot be compared with the original: {error}") from None
    hashes = {role: weights_hash(one) for role, one in models.items()}
    for other in ("original", "model"):
        if "retrained" in hashes and hashes["retrained"] == hashes[other]:
            raise ValueError(f"--retrained has the very weights of the {other}; pass a model that never saw the rows")
    if hashes["model"] == hashes["original"]:
        return ["note: the model has the very weights of the original; nothing was unlearned"]
    return []


def verdict_on(
    models: dict[str, nn.Module],
    tokenizer: Any,
    forget: Any,
    retain: Any,
    *,
    judge: Judge,
    template: Template = Template(),
    max_length: int = 256,
    keep: Keep = unkept,
    progress: bool = False,
) -> Verdict:
    """The verdict on loaded models.

    Args:
        models: "model", "original" and, where there is one, "retrained".
        tokenizer: of all.
        forget, retain: rows; there may be no retain rows.
        judge: from ``load_judge``.
        template: how question and answer become one text.
        max_length: longest text in tokens.
        keep: each part of what is measured is kept by it.
        progress: whether to show a bar.

    Raises:
        ValueError: as ``verdict_rows``, ``measure`` and ``judged``.
    """
    given = verdict_rows(
        tokenizer,
        models["original"],
        forget,
        retain,
        protocol=judge.protocol,
        template=template,
        max_length=max_length,
    )
    found = {}
    with tqdm(total=len(models) * len(PARTS), desc="verdict", unit="part", disable=not progress) as bar:
        for role, one in models.items():
            found[role] = measure(one, given, _moving(bar, within(keep, role)))
    return judged(judge, found["model"], found["original"], found.get("retrained"), retain=bool(retain))
