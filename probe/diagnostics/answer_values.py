"""Which part of an answer carries the fact: the words that tell it from the wrong answers."""

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch

from probe.data import QA, Batch, Split, Template, encode
from probe.templates.coding import coded

_PUNCTUATION = ".,;:!?\"'"


def values(row: QA) -> tuple[str, ...]:
    """The right value and the wrong ones: what is left of answers of one form once shared words at both ends go.

    Wrong answers have the form of the paraphrased answer where a row has one (as in TOFU), else that of the answer.

    Returns:
        the right value first; the whole answer where nothing is shared, or where there is no wrong answer.
    """
    texts = (row.paraphrased_answer or row.answer, *row.perturbed_answer)
    if len(texts) == 1:
        return (row.answer,)
    split = [text.split() for text in texts]
    shortest = min(map(len, split))
    start = next((i for i in range(shortest) if len({words[i] for words in split}) > 1), shortest)
    end = next((i for i in range(shortest - start) if len({words[-1 - i] for words in split}) > 1), shortest - start)
    kept = [" ".join(words[start : len(words) - end]).strip(_PUNCTUATION) for words in split]
    return tuple(kept) if all(kept) else texts


def value_batch(tokenizer: Any, rows: Sequence[QA], *, template: Template = Template(), max_length: int = 256) -> Batch:
    """Rows whose targets are the tokens of the value alone, the words before it given.

    The value is the row's ``entity`` where one is given, as the depth score's authors annotate it; else what tells the
    answer from the wrong ones (``values``), which is less sure. The text is the row's answer if the value stands in it
    literally, else the answer in the wrong answers' form.
    ``last_prompt_token`` of such a batch is the state from which the value's first token is predicted.

    Args:
        tokenizer: fast, not altered.
        rows: questions with answers, and wrong answers to tell the value by.
        template: how question and answer become one text.
        max_length: longest text in tokens.

    Raises:
        ValueError: no rows, an entity that does not stand in its answer, or a value beyond ``max_length``.

    >>> batch = probe.value_batch(s.tokenizer, s.split.forget_rows)
    >>> s.tokenizer.decode(batch.tokens_BT[0][batch.target_BT[0]])
    ' Rivenna'
    """
    shown, found = [], []
    for i, row in enumerate(rows):
        text, start, end = _value_in(row, i)
        # Where the text is written without the blanks around it, places count from its first letter.
        before = len(text) - len(text.lstrip()) if template.stripped else 0
        shown.append(replace(row, answer=text))
        found.append((start - before, end - before))
    batch = encode(tokenizer, shown, template=template, max_length=max_length)
    target_BT = torch.zeros_like(batch.target_BT)
    texts = coded(tokenizer, [(row.question, row.answer) for row in shown], template)
    for i, (known, (start, end)) in enumerate(zip(texts, found, strict=True)):
        first = known.answer[0]
        for t, (a, b) in enumerate(known.spans):
            # Offsets may or may not count a leading space: what overlaps the value belongs to it.
            if t < target_BT.shape[1] and max(a, first + start) < min(b, first + end):
                target_BT[i, t] = True
    lost = (~target_BT.any(1)).nonzero().flatten().tolist()
    if lost:
        raise ValueError(f"{len(lost)} rows have their value beyond max_length {max_length} (first: row {lost[0]})")
    return replace(batch, target_BT=target_BT, end_B=torch.zeros_like(batch.prompt_B), warn=False)


def _value_in(row: QA, i: int) -> tuple[str, int, int]:
    """The answer's text, and where the value begins and ends in it."""
    if row.entity:
        match = _word(row.entity, row.answer)
        start = match.start() if match else row.answer.find(row.entity)
        if start < 0:
            raise ValueError(
                f"the entity {row.entity[:60]!r} of row {i} does not stand in its answer; copy it from there"
            )
        return row.answer, start, start + len(row.entity)
    value = values(row)[0]
    hits = [(text, m) for text in (row.answer, row.paraphrased_answer or row.answer) if (m := _word(value, text))]
    return (hits[0][0], hits[0][1].start(), hits[0][1].end()) if hits else (row.answer, 0, len(row.answer))


def value_split(tokenizer: Any, split: Split) -> Split:
    """The same rows with the values alone as targets (``value_batch``), for diagnostics that take a split.

    Raises:
        ValueError: a split without texts, or a value beyond ``max_length``.

    >>> values = probe.value_split(s.tokenizer, s.split)
    >>> bool(values.forget.target_BT.sum() < s.split.forget.target_BT.sum())
    True
    """
    for batch, rows, side in ((split.forget, split.forget_rows, "forget"), (split.retain, split.retain_rows, "retain")):
        if len(rows) != len(batch):
            raise ValueError(
                f"the split has {len(batch)} {side} rows and the texts of {len(rows)}; make it with make_split"
            )
    forget, retain = (
        value_batch(tokenizer, rows, template=split.template, max_length=split.max_length)
        for rows in (split.forget_rows, split.retain_rows)
    )
    return replace(split, forget=forget, retain=retain)


def _word(value: str, text: str) -> re.Match[str] | None:
    return re.search(rf"(?<!\w){re.escape(value)}(?!\w)", text)
