"""The rows that a job asks about, read and checked before a model is loaded."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.data import QA, Template
from probe.datasets import read_rows, rows_hash
from probe.evaluation.job import TEMPLATES, EvaluationJob
from probe.readers import Choice, read_choices, read_tofu


@dataclass(frozen=True)
class Material:
    """What is asked.

    Args:
        sets: rows by the names that OpenUnlearning gives them: forget, retain, ra (real authors), wf (world facts).
        holdout: rows no model was trained on.
        choices: multiple-choice questions.
        whole: number of rows of each set before ``--limit``.
        name: of the data: "TOFU forget10", or the names of the files.
    """

    sets: Mapping[str, tuple[QA, ...]]
    holdout: tuple[QA, ...]
    choices: tuple[Choice, ...]
    whole: Mapping[str, int]
    name: str

    def described(self) -> dict[str, Any]:
        """For the manifest: rows, hash and repeated questions of each set."""
        sets = {**self.sets, "holdout": self.holdout} if self.holdout else dict(self.sets)
        found: dict[str, Any] = {
            name: {"rows": len(rows), "of": self.whole[name], "sha256": rows_hash(rows), "repeated": _repeated(rows)}
            for name, rows in sets.items()
        }
        if self.choices:
            found["choices"] = {"rows": len(self.choices), "of": self.whole["choices"]}
        return found


def material(job: EvaluationJob) -> Material:
    """Read what the job names.

    Raises:
        FileNotFoundError: a missing file or folder.
        ValueError: an unknown split, malformed rows, rows without an answer, or forget rows among those held out.
    """
    sets: dict[str, tuple[QA, ...]] = {}
    holdout: tuple[QA, ...] = ()
    name = ""
    if job.tofu is not None:
        tofu = read_tofu(job.tofu, job.split)
        sets = {"forget": tofu.forget, "retain": tofu.retain, "ra": tofu.real_authors, "wf": tofu.world_facts}
        holdout, name = tofu.holdout, f"TOFU {job.split}"
    elif job.forget is not None and job.retain is not None:
        sets = {"forget": tuple(read_rows(job.forget)), "retain": tuple(read_rows(job.retain))}
        name = f"{Path(job.forget).name} and {Path(job.retain).name}"
    if job.holdout is not None:
        holdout = tuple(read_rows(job.holdout))
    choices = read_choices(job.mcq) if job.mcq is not None else ()
    for part, rows in {**sets, "holdout": holdout}.items():
        _check(part, rows)
    for part, rows in (("retain", sets.get("retain", ())), ("held out", holdout)):
        _check_apart(sets.get("forget", ()), rows, part)
    whole = {part: len(rows) for part, rows in sets.items()} | {"holdout": len(holdout), "choices": len(choices)}
    cut = slice(job.limit)
    sets = {part: rows[cut] for part, rows in sets.items()}
    return Material(sets, holdout[cut], choices[cut], whole, name or Path(str(job.mcq)).name)


def template_of(job: EvaluationJob, tokenizer: Any) -> Template:
    """The job's template; that of the tokenizer's chat where the job asks for it.

    Raises:
        ValueError: no chat template, one that alters the question, or a prompt without ``{question}``.
    """
    prompt, answer = _chat(tokenizer) if job.template == "chat" else TEMPLATES[job.template]
    return Template(job.prompt or prompt, job.answer or answer)


def _chat(tokenizer: Any) -> tuple[str, str]:
    if not getattr(tokenizer, "chat_template", None):
        raise ValueError("--template chat: the tokenizer has no chat template; choose another, or pass --prompt")
    mark = "QUESTION-GOES-HERE"
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": mark}], tokenize=False, add_generation_prompt=True
    )
    if text.count(mark) != 1:
        raise ValueError("--template chat: the chat template shows the question more or less than once; pass --prompt")
    # bos is added when texts are encoded.
    text = text.removeprefix(tokenizer.bos_token or "")
    return text.replace("{", "{{").replace("}", "}}").replace(mark, "{question}"), "{answer}"


def _check(name: str, rows: tuple[QA, ...]) -> None:
    empty = [i for i, row in enumerate(rows, 1) if not row.answer.strip()]
    if empty:
        raise ValueError(
            f"{len(empty)} of {len(rows)} {name} rows have an empty answer (first: row {empty[0]}); drop them"
        )
    for field in ("perturbed_answer", "paraphrased_answer"):
        given = [i for i, row in enumerate(rows, 1) if getattr(row, field)]
        if given and len(given) < len(rows):
            first = min(set(range(1, len(rows) + 1)) - set(given))
            raise ValueError(
                f"{len(rows) - len(given)} of {len(rows)} {name} rows have no {field} (first: row {first}); give it to "
                "every row or to none"
            )
    counts = sorted({len(row.perturbed_answer) for row in rows})
    if len(counts) > 1:
        raise ValueError(f"{name} rows have between {counts[0]} and {counts[-1]} perturbed answers; give equally many")
    repeated = _repeated(rows)
    if repeated > 0.01 * len(rows):
        warnings.warn(f"{repeated} of {len(rows)} {name} rows repeat a question and answer", stacklevel=3)


def _check_apart(forget: tuple[QA, ...], others: tuple[QA, ...], name: str) -> None:
    both = sorted({(row.question, row.answer) for row in forget} & {(row.question, row.answer) for row in others})
    if both:
        raise ValueError(
            f"{len(both)} rows are both to be forgotten and {name} (first: {both[0][0]!r}); remove them from one side"
        )


def _repeated(rows: tuple[QA, ...]) -> int:
    return len(rows) - len({(row.question, row.answer) for row in rows})
