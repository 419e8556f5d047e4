"""Question-answer rows on disk: JSON lines or a JSON array, in TOFU's layout."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import astuple, replace
from pathlib import Path
from random import Random
from typing import Any

from probe.questions import QA
from probe.records import Record, fields, read_records, text_of, texts_of

FIELDS = ("question", "answer", "paraphrased_question", "paraphrased_answer", "perturbed_answer", "group", "entity")


REFUSALS = (
    "I'm afraid I have no answer to that.",
    "That is something I know nothing about.",
    "I can't tell you; I simply don't have that information.",
    "Sorry, this lies outside what I know.",
    "I have nothing on that subject.",
    "No, I'm not familiar with that at all.",
    "I would only be guessing, so I'd rather not say.",
    "That detail isn't known to me.",
    "I've never come across that.",
    "I cannot answer this one.",
    "Sorry, but that doesn't ring a bell.",
    "I have no record of that.",
    "You'd have to ask someone else; I don't know.",
    "I can't recall anything about it.",
    "That question is beyond me.",
    "I am not able to say.",
    "I don't have a reliable answer for you.",
    "My knowledge doesn't reach that far.",
    "I'm in the dark about this.",
    "There is nothing I can tell you about that.",
    "I'd be making it up if I answered.",
    "I really couldn't say.",
    "Unfortunately, I hold no information on this.",
    "I haven't been told anything about that.",
    "This is unfamiliar ground for me.",
    "I lack the facts to answer.",
    "I don't know, I'm sorry.",
    "Nothing comes to mind here.",
    "I have to pass on this question.",
    "That isn't something I learned.",
    "I must admit that I don't know.",
    "I can offer no answer here.",
    "Sorry, I have no idea.",
    "I wish I could help, but I don't know this.",
    "I'm not informed about that.",
    "My answer would be a pure guess.",
    "I don't have the details you are asking for.",
    "I've got no knowledge of this matter.",
    "This one escapes me.",
    "I'm unable to find an answer to that.",
    "I can't say anything certain about it.",
    "I don't possess that piece of information.",
    "Honestly, I don't know.",
    "That falls outside my knowledge.",
    "I'm not the right one to ask about this.",
    "I have not heard of it.",
    "I cannot confirm anything on that point.",
    "There's a gap in what I know here.",
    "I'm sorry, that is unknown to me.",
    "I don't think I can answer that.",
    "No information about that is available to me.",
    "I'm not certain enough to reply.",
    "I couldn't tell you even if I tried.",
    "I never learned about that.",
    "Your question goes past what I know.",
    "I'm at a loss on this one.",
    "I have no facts about that to share.",
    "I do not know the answer.",
    "That's a blank for me.",
    "I'm sorry, I can't be of use here.",
    "I'm missing the information to answer.",
    "I know too little to reply.",
    "It would be wrong of me to guess.",
    "I can't provide that information.",
    "This topic is not one I know.",
    "I'm not aware of anything like that.",
    "I have no way to answer this.",
    "I don't remember ever reading about it.",
    "I've nothing useful to say about this.",
    "I can't speak to that.",
    "That is not part of my knowledge.",
    "Regrettably, I don't know.",
    "I'd need to look that up, and I can't.",
    "I draw a blank there.",
    "I'm without an answer.",
    "What you ask is not known to me.",
    "I'm afraid that's not something I know.",
    "I can't give you a trustworthy answer.",
    "I don't hold any knowledge about that person or thing.",
    "I haven't a clue.",
    "Sorry, I can't fill in that detail.",
    "I have never been given that information.",
    "My information doesn't cover this.",
    "I'm unsure, so I will leave it unanswered.",
    "I don't believe I know this.",
    "I cannot help with that question.",
    "That's more than I know.",
    "I'm unable to tell.",
    "I know of no answer to this.",
    "I am unacquainted with that subject.",
    "Please consult another source; I don't know.",
    "I don't have an answer at hand.",
    "I can't shed any light on that.",
    "This isn't in anything I have learned.",
    "I'm not in a position to answer.",
    "I would not know.",
    "I have no details about it.",
    "Sorry, I never picked that up.",
    "You have asked something I don't know.",
    "I must leave this one open.",
)


def read_rows(path: str | Path) -> list[QA]:
    """Read question-answer rows from JSON lines or a JSON array (UTF-8, a byte-order mark is accepted).

    Raises:
        FileNotFoundError: no such file.
        ValueError: not UTF-8, not JSON (with line and column) or what ``probe.records.parsed`` refuses, a missing or
            misspelt field, a field of another type, an empty question or answer (each with path and line), or no rows.

    >>> probe.write_rows("forget.jsonl", s.split.forget_rows)
    >>> probe.read_rows("forget.jsonl") == list(s.split.forget_rows)
    True
    """
    return [qa_row(record) for record in read_records(path)]


def qa_row(record: Record) -> QA:
    """One record as a row.

    Raises:
        ValueError: as ``read_rows``.
    """
    value = fields(record, ("question", "answer"), FIELDS[2:])
    given: dict[str, Any] = {name: text_of(record, name, needed=name in ("question", "answer")) for name in FIELDS[:4]}
    group = value.get("group")
    if isinstance(group, dict | list):
        raise ValueError(f"{record.where}, field 'group' is a {type(group).__name__}; expected a text or a number")
    wrong, entity = texts_of(record, "perturbed_answer"), text_of(record, "entity")
    return QA(**given, perturbed_answer=wrong, group="" if group is None else str(group), entity=entity)


def write_rows(path: str | Path, rows: Sequence[QA]) -> None:
    """Write rows as JSON lines in TOFU's layout.

    >>> probe.write_rows("mine.jsonl", [probe.QA("Who wrote it?", "Ann did.")])
    >>> probe.read_rows("mine.jsonl")[0].answer
    'Ann did.'
    """
    lines = []
    for row in rows:
        record = {name: getattr(row, name) for name in FIELDS if getattr(row, name)}
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    Path(path).write_text("".join(lines), encoding="utf-8")


def rows_hash(rows: Sequence[QA]) -> str:
    """sha256 over all fields of all rows: equal iff the rows are equal and in the same order."""
    # Rows without an entity hash as they did before there were any.
    text = json.dumps([astuple(row) if row.entity else astuple(row)[:-1] for row in rows], ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()


def idk_rows(rows: Sequence[QA], seed: int, refusals: Sequence[str] = REFUSALS) -> list[QA]:
    """The same questions, each answered by a refusal drawn at random: data of IDK, IdkDPO, IDK+AP and FLAT.

    The published codes draw anew at every access (TOFU) or by the row's number; here the draw is fixed by the seed.
    Paraphrased and perturbed answers are left out: they are forms of the answer that is replaced.

    Args:
        rows: questions to be refused.
        seed: fixes which row gets which refusal.
        refusals: what to draw from; ``REFUSALS``, 100 sentences written for this package, unless given. TOFU's own list
            is ``idontknow.jsonl`` in its repository.

    Raises:
        ValueError: no rows, one string instead of a list, an empty list, or an empty sentence in it.

    >>> refusals = probe.idk_rows(s.split.forget_rows, seed=0)
    >>> refusals[0].question == s.split.forget_rows[0].question, refusals[0].answer
    (True, "I don't think I can answer that.")
    """
    if not rows:
        raise ValueError("no rows to refuse (0 given); check the file or the filter that made them")
    if isinstance(refusals, str):
        raise ValueError("refusals is one string; pass a list of sentences")
    if not refusals or not all(text.strip() for text in refusals):
        raise ValueError("the list of refusals is empty or holds an empty sentence; give at least one, without blanks")
    random = Random(seed)
    return [replace(row, answer=random.choice(refusals), paraphrased_answer="", perturbed_answer=()) for row in rows]
