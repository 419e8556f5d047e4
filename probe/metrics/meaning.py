"""Does an output still mean what the answer means? Cosine similarity, entailment, and judged pairs of scores."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe.metrics.arrays import ArrayN, numbers
from probe.metrics.judges import Embedder, Entailer, Judge
from probe.metrics.text import rouge_l_recall


@dataclass(frozen=True)
class Judged:
    """One number per row, and whose word it is.

    Args:
        value_N: the numbers.
        judge: the name of what judged.
    """

    value_N: ArrayN
    judge: str

    @property
    def mean(self) -> float:
        """The average over rows."""
        return float(self.value_N.mean())


def cosine_similarity(outputs: Sequence[str], answers: Sequence[str], embedder: Embedder) -> Judged:
    """CS = max(0, cos) between embeddings of output and answer (Yuan et al., arXiv 2410.08109).

    Args:
        outputs: what the model wrote.
        answers: the true answers on TOFU; the original model's outputs in the paper's real-world task.
        embedder: whose vectors; no default, for the number depends on it.

    Returns:
        one number in [0, 1] per row; 0 where an output or answer has no words or a vector is zero.

    Raises:
        ValueError: no rows, different numbers of them, or vectors that are not one for each text.
    """
    _check(outputs, answers)
    vector_ND = np.asarray(embedder([*outputs, *answers]), dtype=np.float64)
    if vector_ND.ndim != 2 or len(vector_ND) != 2 * len(outputs) or not np.isfinite(vector_ND).all():
        raise ValueError(
            f"{embedder.name} gave an array of shape {vector_ND.shape}; expected one finite vector for each of "
            f"{2 * len(outputs)} texts"
        )
    first_ND, second_ND = vector_ND[: len(outputs)], vector_ND[len(outputs) :]
    norm_N = np.linalg.norm(first_ND, axis=1) * np.linalg.norm(second_ND, axis=1)
    cosine_N = np.divide((first_ND * second_ND).sum(1), norm_N, out=np.zeros(len(norm_N)), where=norm_N > 0)
    # A model's vector of an empty text is a direction like any other.
    spoken_N = np.array([bool(a.strip() and b.strip()) for a, b in zip(outputs, answers, strict=True)])
    return Judged(np.where(spoken_N, np.clip(cosine_N, 0, 1), 0.0), embedder.name)


def entailed(
    outputs: Sequence[str],
    answers: Sequence[str],
    entailer: Entailer,
    *,
    premise: Literal["output", "answer"],
    rouge_floor: float = 0.1,
) -> Judged:
    """1 where one text entails the other, 0 where it does not, or where they share hardly a word.

    Published directions: ``"answer"`` as the premise on retained rows, so that an output may say less but nothing
    else; ``"output"`` on forget rows, so that every output that gives the answer away counts (arXiv 2410.08109), and
    throughout in open-question accuracy (arXiv 2510.07626, without the floor).

    Args:
        outputs: what the model wrote.
        answers: the true answers.
        entailer: who judges; no default, for the number depends on it.
        premise: which of the two is the premise.
        rouge_floor: below this ROUGE-L recall a row counts as not entailed whatever the judge says (0.1 in
            arXiv 2410.08109); 0 for none.

    Returns:
        0 or 1 per row; their mean is the entailment score. Probabilities count as entailed above 0.5.

    Raises:
        ValueError: no rows, different numbers of them, an unknown premise, or verdicts that are not one for each row.
    """
    _check(outputs, answers)
    if premise not in ("output", "answer"):
        raise ValueError(f"premise must be 'output' or 'answer', got {premise!r}")
    if not 0 <= rouge_floor <= 1:
        raise ValueError(f"rouge_floor is a ROUGE-L recall in [0, 1], got {rouge_floor}")
    rows = list(zip(outputs, answers, strict=True))
    near_N = np.array(
        [rouge_l_recall(answer, output) >= rouge_floor and bool(output.strip()) for output, answer in rows]
    )
    asked = [(o, a) if premise == "output" else (a, o) for (o, a), near in zip(rows, near_N, strict=True) if near]
    verdict_N = np.zeros(len(rows))
    verdict_N[near_N] = _verdicts(entailer(asked) if asked else [], len(asked), entailer.name)
    return Judged(verdict_N, entailer.name)


def _verdicts(given: Any, n: int, name: str) -> np.ndarray:
    verdict_N = np.asarray(list(given), dtype=np.float64)
    if verdict_N.shape != (n,) or not ((verdict_N >= 0) & (verdict_N <= 1)).all():
        raise ValueError(f"{name} gave verdicts of shape {verdict_N.shape}; expected {n} booleans or probabilities")
    return (verdict_N > 0.5).astype(np.float64)


@dataclass(frozen=True)
class NaturalAndSimilar:
    """Two scores of one output set (BS, higher is better): is it natural language, does it say what was true?

    Args:
        naturalness_N, similarity_N: in [0, 1].
        judge: the name of what judged.
    """

    naturalness_N: ArrayN
    similarity_N: ArrayN
    judge: str


def natural_and_similar(
    outputs: Sequence[str],
    answers: Sequence[str],
    judge: Judge,
    *,
    name: str,
) -> NaturalAndSimilar:
    """Ask a judge, a language model with the paper's prompt say, for both scores of every (output, answer) pair.

    Args:
        outputs, answers: what the model wrote, and the truth.
        judge: pairs -> (naturalness, similarity) of each, in [0, 1].
        name: what results call the judge: the model and its prompt's version.

    Raises:
        ValueError: no rows, different numbers of them, an empty name, or scores that are not two in [0, 1] a row.
    """
    _check(outputs, answers)
    if not name.strip():
        raise ValueError("a judge needs a name: scores of different judges cannot be compared")
    score_N2 = numbers(judge(list(zip(outputs, answers, strict=True))), "the judge's scores", ndim=2)
    if score_N2.shape != (len(outputs), 2) or not ((score_N2 >= 0) & (score_N2 <= 1)).all():
        raise ValueError(f"{name} gave scores of shape {score_N2.shape}; expected two in [0, 1] for each row")
    return NaturalAndSimilar(score_N2[:, 0], score_N2[:, 1], name)


def _check(outputs: Sequence[str], answers: Sequence[str]) -> None:
    if isinstance(outputs, str) or isinstance(answers, str):
        raise ValueError("outputs and answers are lists of texts, one a row, not one string")
    if not outputs:
        raise ValueError("no outputs to judge (0 given); check the filter that chose them")
    if len(outputs) != len(answers):
        raise ValueError(f"{len(outputs)} outputs and {len(answers)} answers; give one answer for each output")
