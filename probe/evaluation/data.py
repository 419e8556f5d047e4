"""The rows that a job asks about, read and checked before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.data import QA
from probe.datasets import read_rows, rows_hash
from probe.evaluation.job import EvaluationJob
from probe.questions import check_apart, repeated, warn_repeated
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
            name: {"rows": len(rows), "of": self.whole[name], "sha256": rows_hash(rows), "repeated": repeated(rows)}
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
    for part, rows in (("retain", sets.get("retain", ())), ("held-out", holdout)):
        check_apart(sets.get("forget", ()), rows, part)
    whole = {part: len(rows) for part, rows in sets.items()} | {"holdout": len(holdout), "choices": len(choices)}
    cut = slice(job.limit)
    sets = {part: rows[cut] for part, rows in sets.items()}
    return Material(sets, holdout[cut], choices[cut], whole, name or Path(str(job.mcq)).name)


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
    warn_repeated(rows, name)
