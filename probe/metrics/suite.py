"""Everything that is measured on the answers to a list of questions: each text scored once, each question answered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
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
from probe.templates.coding import prompt_ids

# Batches of texts that are kept, and counted, together.
_STRIDE = 8
_Keep = Callable[[str, Callable[[], Any]], Any]


@dataclass(frozen=True, eq=False, repr=False)
class SuiteResult:
    """One entry per row, in the order given; None where a quantity was not asked for or the rows do not allow it.

    Args:
        rows: the questions with their answers.
        tokens: what the pass told about every token of the answers; ``attack_scores`` takes it.
        right_loss_N: loss (mean cross-entropy, nats per token) of the paraphrased answer, or of the answer where a row
            has none (as TOFU's real authors).
        wrong_loss_NK: losses of the wrong answers.
        paraphrased_tokens: of the answers given the paraphrased questions; those of ``tokens`` where a row has none.
        prompts, generations: what texts were continued, and how.
    """

    rows: tuple[QA, ...]
    tokens: TokenStats
    right_loss_N: ArrayN | None = None
    wrong_loss_NK: ArrayNK | None = None
    paraphrased_tokens: TokenStats | None = None
    prompts: tuple[str, ...] = ()
    generations: tuple[str, ...] | None = None

    def __len__(self) -> int:
        return len(self.tokens)

    def __repr__(self) -> str:
        means = ", ".join(f"{name} {value:.3g}" for name, value in self.means().items())
        return f"SuiteResult({len(self)} rows: {means})"

    @property
    def loss_N(self) -> ArrayN:
        """Mean cross-entropy of the answer (nats per token, eos included)."""
        return self.tokens.loss_N

    @property
    def probability_N(self) -> ArrayN:
        """exp(-loss_N), the probability of the answer normalised for its length."""
        return self.tokens.probability_N

    @property
    def paraphrased_N(self) -> Bool[np.ndarray, " N"]:
        """Whether a row has a paraphrased question."""
        return np.array([bool(row.paraphrased_question) for row in self.rows])

    @property
    def paraphrased_probability_N(self) -> ArrayN:
        """Probability of the answer given the paraphrased question; NaN where a row has none."""
        if self.paraphrased_tokens is None:
            return np.full(len(self), np.nan)
        return np.where(self.paraphrased_N, self.paraphrased_tokens.probability_N, np.nan)

    @property
    def extraction_strength_N(self) -> ArrayN:
        """Teacher-forced, with floor "0": a wrong last token counts as nothing extracted; see ``extraction``."""
        return self.extraction("0")

    @property
    def exact_memorisation_N(self) -> ArrayN:
        """Share of answer tokens that are the argmax; NaN for an answer of no token besides its end."""
        return np.array([exact_memorisation(match_T) if len(match_T) else np.nan for match_T in self.tokens.matches()])

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

    @cached_property
    def rouge_N(self) -> ArrayN | None:
        """ROUGE-L recall of the generations against the answers."""
        if self.generations is None:
            return None
        return np.array([rouge_l_recall(r.answer, text) for r, text in zip(self.rows, self.generations, strict=True)])

    def extraction(self, floor: Literal["1/L", "0"], *, perturbed: bool = False) -> ArrayN:
        """Teacher-forced extraction strength of the answers, with either floor.

        Args:
            floor: as in ``extraction_strength``.
            perturbed: whether the question is the paraphrased one (ES-perturb); NaN where a row has none.

        Raises:
            ValueError: an unknown floor, or a result made without paraphrases.
        """
        if not perturbed:
            return np.array([extraction_strength(match_T, floor=floor) for match_T in self.tokens.matches()])
        if self.paraphrased_tokens is None:
            raise ValueError("paraphrased questions were not measured; leave with_paraphrases at True")
        matches = self.paraphrased_tokens.matches()
        found_N = np.array([extraction_strength(match_T, floor=floor) for match_T in matches])
        return np.where(self.paraphrased_N, found_N, np.nan)

    def means(self) -> dict[str, float]:
        """Aggregates by name; what was not measured on every row is left out.

        Truth ratios come in both published aggregations: ``truth_ratio_forget`` and ``truth_ratio_retain``.
        """
        names = ("probability", "extraction_strength", "exact_memorisation", "paraphrased_probability")
        found = {name: getattr(self, f"{name}_N").mean() for name in names}
        if self.wrong_loss_NK is not None:
            found["truth_ratio_forget"] = truth_ratio_forget(self.truth_ratio_N)
            found["truth_ratio_retain"] = truth_ratio_retain(self.truth_ratio_N)
            found["normalised_probability"] = normalised_probability(self.loss_N, self.wrong_loss_NK).mean()
            found["choice_accuracy"] = np.mean(self.rank_N == 0)
        if self.rouge_N is not None:
            found["rouge"] = self.rouge_N.mean()
        return {name: float(value) for name, value in found.items() if not np.isnan(value)}


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
    with_paraphrases: bool = True,
    with_moments: bool = False,
    targets_at_once: int = 512,
    keep: _Keep | None = None,
    progress: Callable[[int], object] | None = None,
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
        with_generation, with_wrong_answers, with_paraphrases: whether to run generations, wrong (and paraphrased right)
            answers, and paraphrased questions; most of the time goes to generation.
        with_moments: whether ``tokens`` holds what Min-K%++ needs.
        targets_at_once: target tokens whose distributions over the vocabulary are held at once.
        keep: given a key and a function that makes a value of JSON, returns that value. It may write values down and
            read them back, so that a pass that was killed goes on; None makes each.
        progress: called with the number of texts that were just finished, ``n_texts`` in all.

    Returns:
        arrays with one entry per row.

    Raises:
        ValueError: no rows, empty answers, rows of which only some have wrong answers, or unequally many, or rows
            longer than the model's context.

    Example:
        >>> import probe
        >>> s = probe.testbed()
        >>> suite = answer_suite(s.original, s.tokenizer, s.split.forget_rows[:4], s.split.template)
        >>> suite.probability_N.shape, suite.means()["choice_accuracy"]
        ((4,), 1.0)
    """
    _check(rows, with_wrong_answers)
    texts, places = _texts(rows, with_wrong_answers, with_paraphrases)

    def scored(name: str, some: Sequence[QA], moments: bool) -> TokenStats:
        batch = encode(tokenizer, some, template=template, max_length=max_length)

        def columns(index: list[int]) -> list[Any]:
            options: dict[str, Any] = {"batch_size": batch_size, "targets_at_once": targets_at_once, "moments": moments}
            part = token_stats(model, batch.select(index), **options)
            kept = (part.logp, part.correct, part.mean, part.variance)
            return list(zip(*([values_T.tolist() for values_T in one] for one in kept if one is not None), strict=True))

        found = _by_length(batch.attention_BT.sum(1), batch_size * _STRIDE, columns, name, keep, progress)
        logp, correct, *more = (tuple(map(np.array, column)) for column in zip(*found, strict=True))
        mean, variance = more or (None, None)
        return TokenStats(logp, correct, mean, variance, None if batch.end_B is None else tuple(batch.end_B.tolist()))

    # Answers come first among the texts, and only they are asked for moments, which cost as much as all else.
    n = 1 + max(places["answer"]) if with_moments else len(texts)
    stats = answers = scored("answers", texts[:n], with_moments)
    if texts[n:]:
        stats = _joined(answers, scored("others", texts[n:], False))
    prompts, generations = tuple(template.asked(row.question) for row in rows), None
    if with_generation:

        def continued(index: list[int]) -> list[str]:
            options: dict[str, Any] = {"max_new_tokens": max_new_tokens, "batch_size": batch_size, "template": template}
            return generate(model, tokenizer, [prompts[i] for i in index], **options)

        length_N = [len(ids) for ids in prompt_ids(tokenizer, prompts, template)]
        generations = tuple(_by_length(length_N, batch_size, continued, "texts", keep, progress))
    loss_N = stats.loss_N
    return SuiteResult(
        tuple(rows),
        answers.select(places["answer"]),
        loss_N[places["right"]] if "right" in places else None,
        loss_N[places["wrong"]] if "wrong" in places else None,
        stats.select(places["paraphrased"]) if with_paraphrases else None,
        prompts,
        generations,
    )


def n_texts(rows: Sequence[QA], *, with_generation: bool) -> int:
    """How many texts ``answer_suite`` reports as finished: distinct ones to score, and one to generate for each row."""
    return len(_texts(rows, True, True)[0]) + (len(rows) if with_generation else 0)


def _by_length(
    length_N: Any,
    size: int,
    make: Callable[[list[int]], list[Any]],
    name: str,
    keep: _Keep | None,
    progress: Callable[[int], object] | None,
) -> list[Any]:
    """What ``make`` gives for each place, in the order of places; it is given ``size`` of similar lengths at a time."""
    order = sorted(range(len(length_N)), key=lambda i: int(length_N[i]))
    found: list[Any] = [None] * len(order)
    for start in range(0, len(order), size):
        index = order[start : start + size]
        made = make(index) if keep is None else keep(f"{name} {start}", partial(make, index))
        for i, one in zip(index, made, strict=True):
            found[i] = one
        if progress is not None:
            progress(len(index))
    return found


def _joined(first: TokenStats, second: TokenStats) -> TokenStats:
    ends = (first.ends or ()) + (second.ends or ())
    return TokenStats(first.logp + second.logp, first.correct + second.correct, ends=ends)


def _texts(rows: Sequence[QA], wrong: bool, paraphrases: bool) -> tuple[list[QA], dict[str, np.ndarray]]:
    """The distinct texts to run, answers first, and where each row's are among them."""
    texts: dict[tuple[str, str], int] = {}

    def entries(asked: Sequence[QA]) -> np.ndarray:
        return np.array([texts.setdefault((row.question, row.answer), len(texts)) for row in asked])

    places = {"answer": entries(rows)}
    if paraphrases:
        places["paraphrased"] = entries([row.paraphrased() for row in rows])
    if wrong and any(row.paraphrased_answer or row.perturbed_answer for row in rows):
        places["right"] = entries([QA(row.question, row.paraphrased_answer or row.answer) for row in rows])
    if wrong and rows[0].perturbed_answer:
        each = ([QA(row.question, answer) for answer in row.perturbed_answer] for row in rows)
        places["wrong"] = np.stack([entries(some) for some in each])
    return [QA(question, answer) for question, answer in texts], places


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
