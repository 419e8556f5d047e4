"""Everything that is asked about the answers to a list of questions, from two passes over the model."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Bool, Int
from torch import nn

from probe.data import QA, Template, encode
from probe.metrics.arrays import ArrayN, ArrayNK
from probe.metrics.generation import generate
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.text import rouge_l_recall
from probe.metrics.tofu import normalised_probability, truth_ratio, truth_ratio_forget, truth_ratio_retain
from probe.metrics.tokens import TokenStats, token_stats


@dataclass(frozen=True)
class SuiteResult:
    """One entry per row, in the order given; None where a quantity was not asked for or the rows do not allow it.

    Args:
        loss_N: mean cross-entropy of the answer (nats per token, eos included).
        probability_N: exp(-loss_N).
        paraphrased_probability_N: the same answer given the paraphrased question; NaN where a row has none.
        extraction_strength_N: teacher-forced, with floor "0", so that a wrong last token counts as nothing extracted;
            the other floor, and the perturbed form, are ``extraction``.
        exact_memorisation_N: share of answer tokens that are the argmax.
        right_loss_N: loss of the paraphrased answer, or of the answer where a row has none (as TOFU's real authors).
        wrong_loss_NK: losses of the wrong answers.
        rouge_N: ROUGE-L recall of the greedy generation against the answer.
        generations: the texts.
        tokens: what the pass told about every token of the answer; ``attack_scores`` takes it.
        paraphrased_tokens: the same for the answer given the paraphrased question; the very same where a row has none.
        paraphrased_N: whether a row has a paraphrased question.
    """

    loss_N: ArrayN
    probability_N: ArrayN
    paraphrased_probability_N: ArrayN
    extraction_strength_N: ArrayN
    exact_memorisation_N: ArrayN
    right_loss_N: ArrayN | None
    wrong_loss_NK: ArrayNK | None
    rouge_N: ArrayN | None
    generations: tuple[str, ...] | None
    tokens: TokenStats | None = None
    paraphrased_tokens: TokenStats | None = None
    paraphrased_N: Bool[np.ndarray, " N"] | None = None

    def __len__(self) -> int:
        return len(self.loss_N)

    @property
    def truth_ratio_N(self) -> ArrayN | None:
        """Geometric truth ratio of ``right_loss_N`` and ``wrong_loss_NK``."""
        return None if self.wrong_loss_NK is None else truth_ratio(self.right_loss_N, self.wrong_loss_NK)

    @property
    def rank_N(self) -> Int[np.ndarray, " N"] | None:
        """How many wrong answers are at least as probable as the right one; 0 is best.

        Ties count against the model, else one that gives every answer the same probability would always be right.
        """
        if self.wrong_loss_NK is None or self.right_loss_N is None:
            return None
        return (self.wrong_loss_NK <= self.right_loss_N[:, None]).sum(1)

    def extraction(self, floor: Literal["1/L", "0"], *, perturbed: bool = False) -> ArrayN:
        """Teacher-forced extraction strength of the answers, with either floor.

        Args:
            floor: as in ``extraction_strength``.
            perturbed: whether the question is the paraphrased one (ES-perturb); NaN where a row has none.

        Raises:
            ValueError: an unknown floor, or a result made without tokens.
        """
        tokens = self.paraphrased_tokens if perturbed else self.tokens
        if tokens is None or self.paraphrased_N is None:
            raise ValueError("this result keeps no tokens; take one that answer_suite made")
        found_N = np.array([extraction_strength(match_T, floor=floor) for match_T in tokens.without_eos().correct])
        return np.where(self.paraphrased_N, found_N, np.nan) if perturbed else found_N

    def means(self) -> dict[str, float]:
        """Aggregates by name; what was not measured on every row is left out.

        Truth ratios come in both published aggregations: ``truth_ratio_forget`` and ``truth_ratio_retain``.
        """
        found = {
            "probability": self.probability_N.mean(),
            "extraction_strength": self.extraction_strength_N.mean(),
            "exact_memorisation": self.exact_memorisation_N.mean(),
        }
        if not np.isnan(self.paraphrased_probability_N).any():
            found["paraphrased_probability"] = self.paraphrased_probability_N.mean()
        if self.wrong_loss_NK is not None:
            found["truth_ratio_forget"] = truth_ratio_forget(self.truth_ratio_N)
            found["truth_ratio_retain"] = truth_ratio_retain(self.truth_ratio_N)
            found["normalised_probability"] = normalised_probability(self.loss_N, self.wrong_loss_NK).mean()
            found["choice_accuracy"] = np.mean(self.rank_N == 0)
        if self.rouge_N is not None:
            found["rouge"] = self.rouge_N.mean()
        return {name: float(value) for name, value in found.items()}


def answer_suite(
    model: nn.Module,
    tokenizer: Any,
    rows: Sequence[QA],
    template: Template,
    *,
    batch_size: int = 64,
    max_new_tokens: int = 40,
    max_length: int = 256,
    with_generation: bool = True,
    with_wrong_answers: bool = True,
    with_moments: bool = False,
    targets_at_once: int = 512,
) -> SuiteResult:
    """Measure one model on rows: probability, memorisation, truth ratio, multiple choice, and ROUGE.

    All answers, right, paraphrased and wrong, go through one teacher-forced pass sorted by length; equal texts are
    run once. Edits and blends that are in force act here too.

    Args:
        model: any Hugging Face decoder; its train mode is restored.
        tokenizer: fast, not altered.
        rows: questions with answers; with ``perturbed_answer`` for truth ratio and multiple choice.
        template: how question and answer become one text.
        batch_size: rows per pass.
        max_new_tokens, max_length: longest generation, and longest text, in tokens.
        with_generation, with_wrong_answers: whether to run these; most of the time goes to generation.
        with_moments: whether ``tokens`` holds what Min-K%++ needs.
        targets_at_once: target tokens whose distributions over the vocabulary are held at once.

    Returns:
        arrays with one entry per row.

    Raises:
        ValueError: no rows, empty answers, or rows of which only some have wrong answers, or unequally many.
    """
    _check(rows, with_wrong_answers)
    texts, plain, asked, right, wrong = _texts(rows, with_wrong_answers)
    batch = encode(tokenizer, texts, template=template, max_length=max_length)
    stats = token_stats(model, batch, batch_size=batch_size, targets_at_once=targets_at_once, moments=with_moments)
    loss_N = stats.loss_N
    matches = stats.without_eos().correct
    bare = [i for i, where in enumerate(plain) if len(matches[where]) == 0]
    if bare:
        raise ValueError(
            f"{len(bare)} of {len(rows)} rows have no answer token besides the last (first: row {bare[0]}); raise "
            "max_length or drop them"
        )
    generations = rouge_N = None
    if with_generation:
        prompts = [template.asked(row.question) for row in rows]
        generations = tuple(
            generate(model, tokenizer, prompts, max_new_tokens=max_new_tokens, batch_size=batch_size, template=template)
        )
        rouge_N = np.array([rouge_l_recall(row.answer, text) for row, text in zip(rows, generations, strict=True)])
    given_N = np.array([bool(row.paraphrased_question) for row in rows])
    right_loss_N = None if right is None else loss_N[right]
    wrong_loss_NK = None if wrong is None else loss_N[wrong]
    return SuiteResult(
        loss_N[plain],
        np.exp(-loss_N[plain]),
        np.where(given_N, np.exp(-loss_N[asked]), np.nan),
        np.array([extraction_strength(matches[i], floor="0") for i in plain]),
        np.array([exact_memorisation(matches[i]) for i in plain]),
        right_loss_N,
        wrong_loss_NK,
        rouge_N,
        generations,
        stats.select(plain),
        stats.select(asked),
        given_N,
    )


def _texts(rows: Sequence[QA], with_wrong_answers: bool) -> tuple[list[QA], Any, Any, Any, Any]:
    """The distinct texts to run, and where each row's answer, paraphrase, right and wrong answers are among them."""
    texts: dict[tuple[str, str], int] = {}

    def entry(question: str, answer: str) -> int:
        return texts.setdefault((question, answer), len(texts))

    plain = [entry(row.question, row.answer) for row in rows]
    asked = [entry(row.paraphrased().question, row.answer) for row in rows]
    right = wrong = None
    if with_wrong_answers and rows[0].perturbed_answer:
        right = [entry(row.question, row.paraphrased_answer or row.answer) for row in rows]
        wrong = np.array([[entry(row.question, answer) for answer in row.perturbed_answer] for row in rows])
    return [QA(question, answer) for question, answer in texts], plain, asked, right, wrong


def _check(rows: Sequence[QA], with_wrong_answers: bool) -> None:
    if not rows:
        raise ValueError("no rows to measure (0 given); check the file or the filter that made them")
    empty = [i for i, row in enumerate(rows) if not row.answer.strip()]
    if empty:
        raise ValueError(f"{len(empty)} of {len(rows)} rows have an empty answer (first: row {empty[0]}); drop them")
    counts = sorted({len(row.perturbed_answer) for row in rows})
    if with_wrong_answers and len(counts) > 1:
        raise ValueError(
            f"rows have between {counts[0]} and {counts[-1]} perturbed answers; "
            "give every row equally many, or pass with_wrong_answers=False"
        )
