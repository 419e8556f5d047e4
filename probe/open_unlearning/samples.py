"""What was measured, as samples of an evaluation log."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probe.metrics.choices import ChoiceResult
from probe.metrics.suite import SuiteResult
from probe.metrics.text import rouge
from probe.metrics.tofu import normalised_probability, truth_ratio
from probe.open_unlearning.log import EPS


def _indexed(numbers: Any = None, **columns: Any) -> dict[str, Any]:
    """``value_by_index`` of a result: sample number -> fields, from one column a field.

    Args:
        numbers: of the samples; None counts from 0.
        columns: one entry a sample, each of a field.
    """
    plain = {field: column.tolist() if isinstance(column, np.ndarray) else column for field, column in columns.items()}
    rows = [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]
    keys = range(len(rows)) if numbers is None else numbers
    return {"value_by_index": {str(key): row for key, row in zip(keys, rows, strict=True)}}


def set_samples(on: str, suite: SuiteResult) -> dict[str, dict[str, Any]]:
    """One set's part of an evaluation log, without aggregates.

    Args:
        on: "forget", "retain", "ra" (real authors) or "wf" (world facts).
        suite: what ``answer_suite`` measured on the set.

    Returns:
        metric -> ``value_by_index``; metrics that the rows do not allow are left out.
    """
    log = {f"{on}_Q_A_Prob": _indexed(prob=suite.probability_N, avg_loss=suite.loss_N)}
    right_N, wrong_NK = suite.right_loss_N, suite.wrong_loss_NK
    if right_N is not None and all(row.paraphrased_answer for row in suite.rows):
        log[f"{on}_Q_A_PARA_Prob"] = _indexed(prob=np.exp(-right_N), avg_loss=right_N)
    if wrong_NK is not None:
        log[f"{on}_Q_A_PERT_Prob"] = _indexed(prob=np.exp(-wrong_NK), avg_loss=wrong_NK)
        if on in ("ra", "wf"):
            share_N = normalised_probability(suite.loss_N, wrong_NK, eps=EPS)
            log[f"{on}_Q_A_Prob_normalised"] = _indexed(prob=share_N)
        ratio = "forget_truth_ratio" if on == "forget" else f"{on}_Truth_Ratio"
        log[ratio] = _indexed(score=truth_ratio(right_N, wrong_NK, eps=EPS))
    if suite.generations is not None:
        scores = [rouge(row.answer, text) for row, text in zip(suite.rows, suite.generations, strict=True)]
        log[f"{on}_Q_A_ROUGE"] = _indexed(
            rouge1_recall=[score.rouge1_recall for score in scores],
            rougeL_f1=[score.rouge_l_f1 for score in scores],
            rougeL_recall=[score.rouge_l_recall for score in scores],
            input=suite.prompts,
            ground_truth=[row.answer for row in suite.rows],
            generation=suite.generations,
        )
    if on == "forget":
        log["extraction_strength"] = _indexed(score=suite.extraction("1/L"))
        # An answer of one token has nothing besides eos that could be memorised.
        exact = [None if np.isnan(score) else score for score in suite.exact_memorisation_N.tolist()]
        log["exact_memorization"] = _indexed(score=exact)
    return log


def attack_samples(scores: Mapping[str, Mapping[str, Any]], numbers: Any = None) -> dict[str, dict[str, Any]]:
    """The attacks' part of an evaluation log, without aggregates over both sides.

    Args:
        scores: "forget" and "holdout" -> attack -> one score a row.
        numbers: of the samples, by side; None counts from 0.
    """
    numbers = numbers or {}
    return {
        f"mia_{attack}": {
            side: {
                "agg_value": float(np.mean(scores[side][attack])),
                **_indexed(numbers.get(side), score=np.asarray(scores[side][attack])),
            }
            for side in scores
        }
        for attack in scores["forget"]
    }


def choice_samples(result: ChoiceResult) -> dict[str, Any]:
    """``mcq_accuracy``, which is this package's own: every option's ln p, what was picked, and the answer."""
    logp = [logp_K.tolist() for logp_K in result.logp]
    return {"agg_value": result.accuracy, **_indexed(logp=logp, picked=result.picked_N, answer=result.answer_N)}
