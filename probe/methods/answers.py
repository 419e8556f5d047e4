"""Other answers to the same questions: refusals and alternatives, tokenised row by row as the split is."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from probe.data import QA, Batch, Split, encode, paired
from probe.datasets import REFUSALS, idk_rows


def read_refusals(path: str | Path) -> tuple[str, ...]:
    """Refusals from a text file in UTF-8, one a line; empty lines are left out.

    Raises:
        FileNotFoundError: no such file.
        ValueError: no refusals, JSON, or not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no file at {path} (resolved to {path.resolve()})")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: byte {error.start} is not UTF-8; convert the file to UTF-8") from None
    texts = tuple(line.strip() for line in lines if line.strip())
    if not texts:
        raise ValueError(f"{path} holds no refusals; write one a line")
    if texts[0].startswith(("{", "[", '"')):
        raise ValueError(f"{path} begins with {texts[0][:20]!r}; write refusals as plain text, one a line, not as JSON")
    return texts


def drawn_refusals(
    tokenizer: Any, split: Split, side: Literal["forget", "retain"], refusals: Sequence[str] = REFUSALS, *, seed: int
) -> Batch:
    """One refusal to each question of a side (``probe.datasets.idk_rows``); row i refuses row i.

    Args:
        tokenizer: of the model.
        split: made by ``make_split``, so that it holds the questions' texts.
        side: whose questions.
        refusals: texts to draw from.
        seed: fixes the draw.

    Raises:
        ValueError: no refusals, or a split without texts.
    """
    return _encoded(tokenizer, split, idk_rows(_rows(split, side), seed, refusals))


def needed_answers(
    needs: Sequence[str],
    tokenizer: Any,
    split: Split,
    refusals: Sequence[str] = REFUSALS,
    alternatives: Sequence[QA] | None = None,
    *,
    seed: int,
) -> dict[str, Batch]:
    """The other answers among a method's ``needs``, by name; without ``alternatives`` the perturbed answers serve."""
    made: dict[str, Batch] = {}
    if "refusals" in needs:
        made["refusals"] = drawn_refusals(tokenizer, split, "forget", refusals, seed=seed)
    if "retain_refusals" in needs:
        made["retain_refusals"] = drawn_refusals(tokenizer, split, "retain", refusals, seed=seed)
    if "alternatives" in needs:
        made["alternatives"] = (
            perturbed(tokenizer, split) if alternatives is None else alternative_answers(tokenizer, split, alternatives)
        )
    return made


def perturbed(tokenizer: Any, split: Split) -> Batch:
    """The perturbed answers of the forget rows as alternatives, all those of row 0 first.

    Raises:
        ValueError: rows without any, or with unequally many.
    """
    rows = _rows(split, "forget")
    counts = sorted({len(row.perturbed_answer) for row in rows})
    if len(counts) > 1 or counts[0] == 0:
        raise ValueError(
            f"forget rows have between {counts[0]} and {counts[-1]} perturbed answers; give each row equally many, at "
            "least 1, or pass alternatives"
        )
    return _encoded(tokenizer, split, [replace(row, answer=text) for row in rows for text in row.perturbed_answer])


def alternative_answers(tokenizer: Any, split: Split, alternatives: Sequence[QA]) -> Batch:
    """Rows that answer the forget questions otherwise, in the order of the forget rows.

    Args:
        tokenizer: of the model.
        split: made by ``make_split``.
        alternatives: rows in any order; each forget question the same number of times.

    Raises:
        ValueError: a forget question without alternative, or unequally many.
    """
    rows = _rows(split, "forget")
    found = {row.question: [a for a in alternatives if a.question == row.question] for row in rows}
    counts = sorted({len(others) for others in found.values()})
    if len(counts) > 1 or counts[0] == 0:
        lacking = min(found, key=lambda question: len(found[question]))
        raise ValueError(
            f"forget questions have between {counts[0]} and {counts[-1]} alternatives (fewest: {lacking!r}); give each "
            "equally many, at least 1, with the question spelt as in the forget rows"
        )
    return _encoded(tokenizer, split, [other for row in rows for other in found[row.question]])


def beside(preferred: Batch, dispreferred: Batch) -> Batch:
    """``paired``, each dispreferred row repeated for as many alternatives as there are.

    Raises:
        ValueError: the numbers of rows do not divide, or the questions differ.
    """
    times, rest = divmod(len(preferred), len(dispreferred))
    if rest or not times:
        raise ValueError(
            f"{len(preferred)} other answers for {len(dispreferred)} rows; give every row the same number of them, at "
            "least 1, in the order of the rows"
        )
    repeated = torch.arange(len(dispreferred)).repeat_interleave(times)
    return paired(preferred, dispreferred if times == 1 else dispreferred.select(repeated))


def instead(others: Batch) -> Callable[[Split], Split]:
    """Other answers to the forget questions in place of theirs; each must answer the row at its place (``beside``)."""

    def rows(split: Split) -> Split:
        beside(others, split.forget)
        return replace(split, forget=others)

    return rows


def preferred(others: Batch) -> Callable[[Split], Split]:
    """Other answers paired with the forget rows they answer, for objectives that prefer one to the other."""
    return lambda split: replace(split, forget=beside(others, split.forget))


def _rows(split: Split, side: str) -> tuple[QA, ...]:
    rows: tuple[QA, ...] = getattr(split, f"{side}_rows")
    if not rows:
        raise ValueError(f"the split holds no {side} texts; make it with probe.data.make_split")
    return rows


def _encoded(tokenizer: Any, split: Split, rows: Sequence[QA]) -> Batch:
    return encode(tokenizer, rows, template=split.template, max_length=split.max_length)
