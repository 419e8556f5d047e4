"""The rows that an evaluation asks about, read and checked before a model is loaded."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from probe.data import QA
from probe.datasets import read_rows, rows_hash
from probe.questions import check_apart, repeated, warn_repeated
from probe.readers import Choice, read_choices, read_tofu
from probe.testbed.bed import rows_alone


@dataclass(frozen=True)
class RowSets:
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


def read_sets(
    *,
    tofu: str | None = None,
    split: str = "forget10",
    forget: Path | None = None,
    retain: Path | None = None,
    holdout: Path | None = None,
    mcq: Path | None = None,
    limit: int | None = None,
) -> RowSets:
    """Read the rows of an evaluation; without any named, the testbed's.

    Args:
        tofu: folder with TOFU's files, or its name on the hub.
        split: which of TOFU's splits was to be forgotten.
        forget, retain: files of other data.
        holdout: rows that no model was trained on.
        mcq: multiple-choice questions.
        limit: only the first so many rows of each set.

    Raises:
        FileNotFoundError: a missing file or folder.
        ValueError: an unknown split, malformed rows, rows without an answer, or forget rows among those held out.
    """
    sets: dict[str, tuple[QA, ...]] = {}
    held: tuple[QA, ...] = ()
    name = ""
    if tofu is not None:
        found = read_tofu(tofu, split)
        sets = {"forget": found.forget, "retain": found.retain, "ra": found.real_authors, "wf": found.world_facts}
        held, name = found.holdout, f"TOFU {split}"
    elif forget is not None and retain is not None:
        sets = {"forget": tuple(read_rows(forget)), "retain": tuple(read_rows(retain))}
        name = f"{Path(forget).name} and {Path(retain).name}"
    elif mcq is None:
        own = rows_alone()
        sets, name = {"forget": own.forget, "retain": own.retain}, "the testbed's rows"
    if holdout is not None:
        held = tuple(read_rows(holdout))
    choices = read_choices(mcq) if mcq is not None else ()
    for part, rows in {**sets, "holdout": held}.items():
        _check(part, rows)
    for part, rows in (("retain", sets.get("retain", ())), ("held-out", held)):
        check_apart(sets.get("forget", ()), rows, part)
    whole = {part: len(rows) for part, rows in sets.items()} | {"holdout": len(held), "choices": len(choices)}
    cut = slice(limit)
    sets = {part: rows[cut] for part, rows in sets.items()}
    return RowSets(sets, held[cut], choices[cut], whole, name or Path(str(mcq)).name)


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
