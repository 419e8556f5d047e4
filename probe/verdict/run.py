"""From model folders and row files to a verdict."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from probe.checkpoints import check_device, check_tokenizer, load_model, load_tokenizer, weights_hash
from probe.data import Template
from probe.datasets import read_rows
from probe.ranges import check_ranges
from probe.verdict.job import VerdictJob
from probe.verdict.judge import FITTED, Judge, Verdict, judged, load_judge
from probe.verdict.material import material
from probe.verdict.measure import measure
from probe.weights import check_same_architecture


def run_verdict(model: str, job: VerdictJob) -> str:
    """Load everything, examine original, model and retrained model alike, and say what became of the facts.

    Returns:
        the text for the shell.

    Raises:
        ValueError: files or models that cannot be read or do not belong together, or facts the original never knew.
        FileNotFoundError: a file that does not exist.
    """
    check_ranges(job)
    check_device(job.device)
    judge = load_judge(job.fitted or FITTED)
    # Rows are read first: a mistake in them should not cost the loading of models.
    forget = read_rows(job.forget)
    retain = [] if job.retain is None else read_rows(job.retain)
    tokenizer = load_tokenizer(job.tokenizer or job.original)
    names = {"original": job.original, "model": model} | ({"retrained": job.retrained} if job.retrained else {})
    if job.tokenizer is None:
        for name in names.values():
            if any(Path(name).glob("tokenizer*")):
                check_tokenizer(tokenizer, load_tokenizer(name))
    models = {role: load_model(name, device=job.device) for role, name in names.items()}
    notes = check_models(models)
    template = Template(job.prompt, job.answer)
    found = verdict_on(models, tokenizer, forget, retain, judge=judge, template=template, max_length=job.max_length)
    if job.out is not None:
        job.out.parent.mkdir(parents=True, exist_ok=True)
        job.out.write_text(json.dumps(asdict(found), indent=1, default=dict) + "\n", encoding="utf-8")
    return "\n".join([*notes, found.text()])


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
) -> Verdict:
    """The verdict on loaded models.

    Args:
        models: "model", "original" and, where there is one, "retrained".
        tokenizer: of all.
        forget, retain: rows; there may be no retain rows.
        judge: from ``load_judge``.
        template: how question and answer become one text.
        max_length: longest text in tokens.

    Raises:
        ValueError: as ``material``, ``measure`` and ``judged``.
    """
    given = material(
        tokenizer,
        models["original"],
        forget,
        retain,
        protocol=judge.protocol,
        template=template,
        max_length=max_length,
    )
    found = {role: measure(one, given) for role, one in models.items()}
    return judged(judge, found["model"], found["original"], found.get("retrained"), retain=bool(retain))
