"""MUSE's memorisation (Shi et al., arXiv 2407.06460): continuing a passage, and answering questions about it."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import nn

from probe.data import QA, Template
from probe.metrics.arrays import ArrayN
from probe.metrics.generation import generate

Stemming = Literal["stemmed", "unstemmed"]
VERBATIM_TOKENS, KNOWLEDGE_TOKENS = 128, 32


@runtime_checkable
class Passage(Protocol):
    """The beginning of a passage of the forget corpus, and how it goes on."""

    @property
    def prompt(self) -> str: ...
    @property
    def continuation(self) -> str: ...


@dataclass(frozen=True)
class Overlap:
    """ROUGE-L F1 of each output with the truth.

    Args:
        f1_N: one number per row.
        outputs: what the model wrote, as it was scored.
        stemming: "stemmed" as OpenUnlearning, "unstemmed" as muse_bench; the two differ a little.
    """

    f1_N: ArrayN
    outputs: tuple[str, ...]
    stemming: Stemming

    @property
    def mean(self) -> float:
        """The published number, between 0 and 1; MUSE prints percent."""
        return float(self.f1_N.mean())


def rouge_l_f1(reference: str, output: str, stemming: Stemming) -> float:
    """ROUGE-L F1 by rouge-score, with the Porter stemmer or without.

    Raises:
        ValueError: an unknown name.
    """
    if stemming not in ("stemmed", "unstemmed"):
        raise ValueError(f"stemming must be 'stemmed' or 'unstemmed', got {stemming!r}")
    return float(_scorer(stemming == "stemmed").score(reference, output)["rougeL"].fmeasure)


@cache
def _scorer(stemmed: bool) -> Any:
    from rouge_score.rouge_scorer import RougeScorer

    return RougeScorer(["rougeL"], use_stemmer=stemmed)


def verbatim_memorisation(
    model: nn.Module,
    tokenizer: Any,
    passages: Sequence[Passage],
    *,
    stemming: Stemming,
    max_new_tokens: int = VERBATIM_TOKENS,
    batch_size: int = 32,
) -> Overlap:
    """VerbMem: greedy continuation of each passage's beginning against its true continuation.

    Args:
        model, tokenizer: as for ``generate``; edits and blends that are in force act here too.
        passages: anything with ``prompt`` and ``continuation``.
        stemming: which of the two published scorers.
        max_new_tokens: 128 in both published codes.
        batch_size: prompts per pass.

    Returns:
        the overlap, continuations kept.

    Raises:
        ValueError: no passages, or an empty continuation.
    """
    _check([passage.continuation for passage in passages])
    prompts = [passage.prompt for passage in passages]
    outputs = generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size)
    return _overlap(outputs, [passage.continuation for passage in passages], stemming)


def knowledge_memorisation(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    template: Template,
    *,
    stemming: Stemming,
    demonstrations: Sequence[QA] = (),
    max_new_tokens: int = KNOWLEDGE_TOKENS,
    batch_size: int = 32,
) -> Overlap:
    """KnowMem: the greedy answer to each question, up to the first newline, against the true answer.

    Args:
        model, tokenizer: as for ``generate``; edits and blends that are in force act here too.
        rows: questions with answers.
        template: how a question is asked; muse_bench writes "Question: {question}\\nAnswer: ".
        stemming: which of the two published scorers.
        demonstrations: answered questions put before each, two line ends between; muse_bench gives some, none here.
        max_new_tokens: 32 in both published codes.
        batch_size: prompts per pass.

    Raises:
        ValueError: no rows, or an empty answer.
    """
    _check([row.answer for row in rows])
    shown = template.led("".join(template.written(one.question, one.answer) + "\n\n" for one in demonstrations))
    prompts = [shown.asked(row.question) for row in rows]
    outputs = generate(
        model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, template=template
    )
    return _overlap([output.split("\n")[0] for output in outputs], [row.answer for row in rows], stemming)


def _overlap(outputs: list[str], truths: list[str], stemming: Stemming) -> Overlap:
    f1 = [rouge_l_f1(truth, output, stemming) for truth, output in zip(truths, outputs, strict=True)]
    return Overlap(np.array(f1), tuple(outputs), stemming)


def _check(truths: list[str]) -> None:
    if not truths:
        raise ValueError("no rows to measure (0 given); check the file or the filter that made them")
    empty = [i for i, truth in enumerate(truths) if not truth.strip()]
    if empty:
        raise ValueError(f"{len(empty)} of {len(truths)} rows have nothing to compare with (first: row {empty[0]})")
