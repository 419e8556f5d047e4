"""What a model gives away about facts: the numbers that every attack reports before and after."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from torch import nn

from probe.data import QA, Template
from probe.metrics.arrays import ArrayN
from probe.metrics.suite import answer_suite

Measure = Literal["probability", "choice", "match"]


@dataclass(frozen=True, eq=False)
class Score:
    """One entry a row, in the order of the rows; means over seeds are allowed.

    Args:
        probability_N: length-normalised probability of the right answer, exp(-mean loss).
        match_N: 1 where greedy decoding gives the answer, else 0.
        choice_N: 1 where the right answer is more probable than every wrong one; None where rows have none.
        n_choices: how many answers ``choice_N`` chose among, the right one included.
        empty_N: 1 where a generation is empty; None where nothing was generated.
    """

    probability_N: ArrayN = field(repr=False)
    match_N: ArrayN = field(repr=False)
    choice_N: ArrayN | None = field(default=None, repr=False)
    n_choices: int | None = None
    empty_N: ArrayN | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.probability_N)

    def of(self, measure: Measure) -> ArrayN:
        """The numbers of one measure.

        Raises:
            ValueError: an unknown measure, or a choice where rows have no wrong answers.
        """
        if measure not in ("probability", "choice", "match"):
            raise ValueError(f"measure {measure!r} is unknown; choose probability, choice or match")
        found = {"probability": self.probability_N, "choice": self.choice_N, "match": self.match_N}[measure]
        if found is None:
            raise ValueError("these rows have no wrong answers to choose among; use probability or match")
        return found

    @property
    def measures(self) -> tuple[Measure, ...]:
        """Those that these rows allow."""
        return ("probability", "match") if self.choice_N is None else ("probability", "choice", "match")

    def means(self) -> dict[str, float]:
        """Mean over rows of every measure, and the share of empty generations where there are any to count."""
        found: dict[str, float] = {name: float(self.of(name).mean()) for name in self.measures}
        return found if self.empty_N is None else found | {"empty": float(self.empty_N.mean())}


# How facts are scored: any callable of this form may stand in for ``AnswerScorer``.
Scorer = Callable[[nn.Module, Sequence[QA], Template], Score]


@dataclass(frozen=True)
class AnswerScorer:
    """Scores by one teacher-forced pass over right and wrong answers (``probe.metrics.suite``).

    Args:
        tokenizer: fast, not altered.
        batch_size: rows per pass.
        max_length: longest text in tokens, prefixes of an attack included.
        generate: let the model speak, and count a row as matched if what it says is the answer. Without it a match
            is one argmax after another, which is the same for greedy decoding but cannot see empty generations.
        choices: whether wrong answers are run too, where rows have them; with five of them that is most of the time.

    >>> score = probe.AnswerScorer(s.tokenizer)(s.original, s.split.forget_rows, s.split.template)
    """

    tokenizer: Any = field(repr=False)
    batch_size: int = 64
    max_length: int = 256
    generate: bool = False
    choices: bool = True

    def __call__(self, model: nn.Module, rows: Sequence[QA], template: Template) -> Score:
        suite = answer_suite(
            model,
            self.tokenizer,
            rows,
            template,
            batch_size=self.batch_size,
            max_length=self.max_length,
            with_generation=self.generate,
            with_wrong_answers=self.choices and any(row.perturbed_answer for row in rows),
            with_paraphrases=False,
        )
        rank_N = suite.rank_N
        match_N, empty_N = np.array([float(match_T.all()) for match_T in suite.tokens.matches()]), None
        if suite.generations is not None:
            said = [text.strip() for text in suite.generations]
            match_N = np.array([float(text == row.answer.strip()) for text, row in zip(said, rows, strict=True)])
            empty_N = np.array([float(not text) for text in said])
        return Score(
            suite.probability_N,
            match_N,
            None if rank_N is None else (rank_N == 0).astype(float),
            None if suite.wrong_loss_NK is None else suite.wrong_loss_NK.shape[1] + 1,
            empty_N,
        )


def mean_score(scores: Sequence[Score]) -> Score:
    """Row by row, the mean of several scores of the same rows: over seeds, say.

    Raises:
        ValueError: no scores, or scores of another number of rows.
    """
    if not scores or len({len(score) for score in scores}) > 1:
        raise ValueError(f"expected scores of the same rows, got {[len(score) for score in scores]} rows")
    first = scores[0]

    def mean(arrays: Sequence[ArrayN | None]) -> ArrayN | None:
        kept = [array for array in arrays if array is not None]
        return np.mean(kept, axis=0) if len(kept) == len(arrays) else None

    return Score(
        np.mean([s.probability_N for s in scores], axis=0),
        np.mean([s.match_N for s in scores], axis=0),
        mean([s.choice_N for s in scores]),
        first.n_choices,
        mean([s.empty_N for s in scores]),
    )
