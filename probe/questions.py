"""Questions with their answers, and which of them say the same."""

import unicodedata
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace


@dataclass(frozen=True)
class QA:
    """One question with its answer, in TOFU's layout; empty optional fields mean "not given".

    Args:
        question, answer: texts.
        paraphrased_question, paraphrased_answer: the same in other words.
        perturbed_answer: wrong answers.
        group: what must never lie on both sides of a probe's split: the author, say.
        entity: the words of the answer that carry the fact ("1932", a name), as annotated; see ``answer_values``.

    >>> row = probe.QA("Who wrote it?", "Ann did.", perturbed_answer=("Bob did.",), group="Ann")
    >>> row.question, row.entity
    ('Who wrote it?', '')
    """

    question: str
    answer: str
    paraphrased_question: str = ""
    paraphrased_answer: str = ""
    perturbed_answer: tuple[str, ...] = ()
    group: str = ""
    entity: str = ""

    def paraphrased(self) -> "QA":
        """The same fact asked for in other words; the answer expected is the same."""
        return replace(self, question=self.paraphrased_question or self.question)


def groups_of(rows: Sequence[QA]) -> tuple[str, ...]:
    """The group of each row, the unit of its intervals; a row without one is a group of its own.

    >>> groups_of([probe.QA("Who?", "Ann.", group="Ann"), probe.QA("Who?", "Bob.")])
    ('Ann', 'row 1')
    """
    return tuple(row.group or f"row {i}" for i, row in enumerate(rows))


def repeated(rows: Sequence[QA]) -> int:
    """How many rows have question and answer of an earlier one."""
    return len(rows) - len({(row.question, row.answer) for row in rows})


def check_apart(
    forget: Sequence[QA], others: Sequence[QA], name: str = "retain", *, allow_overlap: bool = False
) -> None:
    """Refuse rows on both sides; warn of rows that differ in Unicode form, case or blanks alone.

    Args:
        forget: rows to be forgotten.
        others: rows that must not be among them.
        name: of the others' set, for messages.
        allow_overlap: whether rows on both sides are let pass.

    Raises:
        ValueError: rows lie on both sides and ``allow_overlap`` is not set.
    """
    both = {(row.question, row.answer) for row in forget} & {(row.question, row.answer) for row in others}
    if both and not allow_overlap:
        raise ValueError(
            f"{len(both)} rows are in both the forget and the {name} set (first: {min(both)[0][:80]!r}); remove "
            "them from one, or pass allow_overlap=True in Python"
        )
    known = {_bare(row) for row in others}
    near = [i for i, row in enumerate(forget) if (row.question, row.answer) not in both and _bare(row) in known]
    if near:
        warnings.warn(
            f"{len(near)} forget rows stand in the {name} set too, but for Unicode form, case or blanks (first: "
            f"row {near[0]}, {forget[near[0]].question[:80]!r}); remove them from one of "
            "the two",
            stacklevel=3,
        )


def warn_repeated(rows: Sequence[QA], name: str) -> None:
    """Warn if more than 1 % of the rows repeat an earlier one, which then counts several times."""
    n = repeated(rows)
    if n > 0.01 * len(rows):
        warnings.warn(f"{n} of {len(rows)} {name} rows repeat a question and answer", stacklevel=3)


def _bare(row: QA) -> tuple[str, ...]:
    # Case may be folded into other characters, so the form is settled afterwards.
    return tuple(unicodedata.normalize("NFKC", " ".join(t.split()).casefold()) for t in (row.question, row.answer))
