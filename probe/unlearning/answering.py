"""Methods that act while a text is read or written: no model to save, but answers with and without them."""

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import nn

from probe.commands.data import greedy_note
from probe.data import QA, Template
from probe.hooks import edited
from probe.methods.method import Makes, Method
from probe.metrics.suite import SuiteResult, answer_suite
from probe.rows import read_manifest
from probe.unlearning.before_after import shown
from probe.unlearning.job import Job
from probe.unlearning.material import Material


def answer(method: Method, job: Job, at: Material, arguments: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Make what the recipe makes, ask all questions, write ``answers.jsonl``; means of both sides.

    Raises:
        ValueError: what the recipe raises, or prompts that no longer fit.
        OSError: the disk is full.
    """
    made = _made(method, at, arguments)
    lines, means = [], {}
    for side, rows in (("forget", at.split.forget_rows), ("retain", at.split.retain_rows)):
        without = _suite(at.model, at, rows, at.split.template, job, generating=False)
        with acting(method.makes, made, at.model, at.split.template) as (model, template):
            acted = _suite(model, at, rows, template, job, generating=True)
        assert acted.generations is not None
        assert acted.rouge_N is not None
        columns = (without.probability_N.tolist(), acted.probability_N.tolist(), acted.rouge_N.tolist())
        for row, text, plain, p, rouge in zip(rows, acted.generations, *columns, strict=True):
            record = {"side": side, "question": row.question, "answer": row.answer}
            record |= {"probability_without": plain, "probability": p, "generated": text, "rouge": rouge}
            lines.append(json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n")
        means[side] = {
            "rows": len(rows),
            "probability_without": float(without.probability_N.mean()),
            "probability": float(acted.probability_N.mean()),
            "rouge": float(acted.rouge_N.mean()),
        }
    (folder / "answers.jsonl").write_text("".join(lines), encoding="utf-8")
    return {"made": _written(method.makes, made), "answers": means}


def summary(folder: Path) -> str:
    """What came of a run, for the shell: numbers before and after, and two answers of each side.

    Raises:
        FileNotFoundError: no manifest there.
    """
    manifest = read_manifest(folder)
    name, dtype = manifest["method"]["name"], manifest["settings"]["dtype"]
    if "scores" in manifest:
        return "\n".join(shown(name, manifest["scores"], dtype)) + "\n"
    lines = [f"{'':8}{'rows':>6}  answer's probability without {name} -> with it; ROUGE-L of what is then written"]
    for side, mean in manifest["answers"].items():
        probabilities = f"{mean['probability_without']:.3f} -> {mean['probability']:.3f}"
        lines.append(f"{side:8}{mean['rows']:>6}  {probabilities}; {mean['rouge']:.3f}")
    told = [json.loads(line) for line in (folder / "answers.jsonl").read_bytes().splitlines()]
    for side in manifest["answers"]:
        own = [one for one in told if one["side"] == side]
        lines += [f"{side}: {one['question']}\n  with it: {one['generated'].strip()}" for one in (own[0], own[-1])]
    lines += greedy_note(dtype)
    return "\n".join(lines) + "\n"


@contextmanager
def acting(makes: Makes, made: Any, model: nn.Module, template: Template) -> Iterator[tuple[nn.Module, Template]]:
    """Model and template to ask with while a prompt, a wrapper or an edit is in force."""
    if makes == "edit":
        with edited(model, made):
            yield model, template
    else:
        yield (model, made) if makes == "prompt" else (made, template)


def _made(method: Method, at: Material, arguments: dict[str, Any]) -> Any:
    own = {"model": at.model, "split": at.split}
    return method.run(**arguments, **{name: value for name, value in own.items() if name in method.takes})


def _suite(
    model: nn.Module, at: Material, rows: Sequence[QA], template: Template, job: Job, *, generating: bool
) -> SuiteResult:
    return answer_suite(
        model,
        at.tokenizer,
        rows,
        template,
        batch_size=job.batch_size or 64,
        max_new_tokens=job.max_new_tokens,
        max_length=max(job.max_length, at.split.max_length),
        with_generation=generating,
        with_paraphrases=False,
        with_wrong_answers=False,
    )


def _written(makes: Makes, made: Any) -> Any:
    """What can be written down of it; a wrapper is told by the arguments."""
    if makes == "prompt":
        return asdict(made)
    if makes == "edit":
        return {repr(site): {"features": list(clamp.features), "value": clamp.value} for site, clamp in made.items()}
    return None
