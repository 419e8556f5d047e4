"""Every aggregate of an evaluation log, computed anew from its samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probe.metrics.arrays import ArrayN
from probe.metrics.attacks import reference_score
from probe.metrics.privacy import auc, privleak
from probe.metrics.tofu import (
    UTILITY_PARTS,
    forget_quality,
    model_utility,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_known,
    truth_ratio_terms,
)
from probe.open_unlearning.log import SETS, EvaluationLog
from probe.open_unlearning.samples import attack_samples

MUSE_ROUGE = ("forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE")
# Metric -> field of its samples that is averaged, where some sample has it: answers of one token have no score.
_MEANS = {"extraction_strength": "score", "exact_memorization": "score", **dict.fromkeys(MUSE_ROUGE, "rougeL_f1")}
# What a part of model utility is called in a log, after the name of its set.
_PARTS = {"probability": "Q_A_Prob", "rouge": "Q_A_ROUGE", "truth_ratio": "Truth_Ratio"}


def truth_ratios(log: EvaluationLog, on: str = "forget") -> ArrayN:
    """R of each sample of a set: from losses where the log has them, else from the ``score`` it holds.

    Scores p / (p + p_wrong), which OpenUnlearning's aggregator prob_mean leaves, are brought back to R = p_wrong / p.

    Args:
        log: of a model.
        on: "forget", "retain", "ra" (real authors) or "wf" (world facts).

    Raises:
        ValueError: the log holds neither, or losses of right and wrong answers for different samples.

    Example:
        >>> log = EvaluationLog({"forget_truth_ratio": {"value_by_index": {"0": {"score": 0.5}, "1": {"score": 2.0}}}})
        >>> truth_ratios(log)
        array([0.5, 2. ])
    """
    found = _truth(log, on)
    if found is None:
        raise ValueError(
            f"{log.where} holds no truth ratios of {on} ({_right(log, on)} with {on}_Q_A_PERT_Prob, or "
            f"{on}_truth_ratio); it has {', '.join(sorted(log.results))[:200]}"
        )
    return found[0]


def recomputed(log: EvaluationLog, retrained: EvaluationLog | None = None) -> dict[str, float]:
    """Every aggregate that the samples allow, by OpenUnlearning's names and definitions.

    Probabilities are means of ``prob`` (of exp(-avg_loss) where it is absent: published logs took the exponential in
    float32 on a GPU, so the two differ by up to 2e-8). Truth ratios are geometric, and their aggregate is the one that
    the log's own scores show: min(R, 1/R) and max(0, 1 - R), or p / (p + p_wrong). The log's ``eps`` stands in the
    denominators of R and of normalised probabilities; that of min(R, 1/R) and of privleak, to which OpenUnlearning adds
    1e-10 as well, carries none here (at most 3e-11 and 2e-8 of the value).

    Args:
        log: of the model.
        retrained: of the retrained model, for forget quality and privleak; without it privleak is against an AUC of
            0.5, as OpenUnlearning's.

    Returns:
        metric -> value; what samples are missing for is left out.

    Raises:
        ValueError: samples that are broken: negative losses, lists of unequal length, missing fields, or metrics that
            are compared sample by sample and hold different samples.

    Example:
        >>> samples = {"0": {"prob": 0.5}, "1": {"prob": 0.25}}
        >>> recomputed(EvaluationLog({"retain_Q_A_Prob": {"value_by_index": samples}}))
        {'retain_Q_A_Prob': 0.375}
    """
    try:
        return _recomputed(log, retrained)
    except ValueError as error:
        places = [one.where for one in (log, retrained) if one is not None]
        if str(error).startswith(tuple(places)):
            raise
        raise ValueError(f"{' or '.join(places)}: {error}; mend or remove the samples") from None


def _recomputed(log: EvaluationLog, retrained: EvaluationLog | None) -> dict[str, float]:
    found = {name: log.mean(name, field) for name, field in _MEANS.items() if log.has(name, field)}
    for on in SETS:
        plain, wrong, rouge = f"{on}_Q_A_Prob", f"{on}_Q_A_PERT_Prob", f"{on}_Q_A_ROUGE"
        for name in (plain, f"{on}_Q_A_PARA_Prob", wrong):
            if log.has(name):
                found[name] = _mean_probability(log, name)
        if log.has(rouge):
            found[rouge] = log.mean(rouge, "rougeL_recall")
        if on in ("ra", "wf") and log.has(plain) and log.has(wrong):
            found[f"{plain}_normalised"] = _mean_normalised(log, plain, wrong)
        truth = _truth(log, on)
        if truth is not None:
            ratio_N, is_share = truth
            mean = truth_ratio_known(ratio_N) if is_share else float(truth_ratio_terms(ratio_N, on).mean())
            found["forget_truth_ratio" if on == "forget" else f"{on}_Truth_Ratio"] = mean
            if on == "forget" and retrained is not None:
                found["forget_quality"] = forget_quality(ratio_N, truth_ratios(retrained)).p
    parts = {part: found.get(_part_name(part)) for part in UTILITY_PARTS}
    if None not in parts.values():
        found["model_utility"] = model_utility(parts).value  # type: ignore[arg-type]
    for name, result in log.results.items():
        if name.startswith("mia_") and "holdout" in result:
            found[name] = auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    theirs = 0.5 if retrained is None else attack_auc(retrained, "mia_min_k")
    # At an AUC of 1 privleak would divide by 0.
    if "mia_min_k" in found and theirs not in (None, 1):
        found["privleak"] = privleak(found["mia_min_k"], theirs)
    return found


def _part_name(part: str) -> str:
    on, _, quantity = part.partition("_")
    return f"{on}_{_PARTS[quantity]}" + ("_normalised" if quantity == "probability" and on != "retain" else "")


def with_aggregates(log: EvaluationLog, aggregates: Mapping[str, float]) -> EvaluationLog:
    """The log with ``agg_value`` of every metric set to what ``recomputed`` gave, null where it gave none."""
    results: dict[str, Any] = {}
    for name in sorted({*log.results, *aggregates}):
        area = {"auc": aggregates[name]} if name.startswith("mia_") else {}
        results[name] = {**log.results.get(name, {}), **area, "agg_value": aggregates.get(name)}
    return EvaluationLog(results, log.where)


def reference_attack(log: EvaluationLog, retrained: EvaluationLog) -> dict[str, Any]:
    """``mia_reference`` of a log: its loss scores minus the retrained model's on the same rows; {} where one has none.

    Raises:
        ValueError: scores of different rows.
    """
    scores, numbers = {}, {}
    for side in ("forget", "holdout"):
        if not all(one.results.get("mia_loss", {}).get(side) for one in (log, retrained)):
            return {}
        ours, theirs = (one.measured("mia_loss", "score", side) for one in (log, retrained))
        if set(ours) != set(theirs):
            raise ValueError(
                f"{retrained.where} scores {len(theirs)} {side} rows and {log.where} {len(ours)}, not the same ones; "
                "take the log of the same split and holdout"
            )
        scores[side] = {"reference": reference_score(list(ours.values()), [theirs[number] for number in ours])}
        numbers[side] = list(ours)
    return attack_samples(scores, numbers)


def attack_auc(log: EvaluationLog, name: str) -> float | None:
    """AUC of an attack: from its scores where the log has them, else as it states it; None where it does neither."""
    result = log.results.get(name, {})
    if result.get("forget") and result.get("holdout"):
        return auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    return log.value(name)


def _right(log: EvaluationLog, on: str) -> str:
    """The answer that R divides by: paraphrased; real authors and world facts have none but in TOFU's first code."""
    paraphrased = f"{on}_Q_A_PARA_Prob"
    return f"{on}_Q_A_Prob" if on in ("ra", "wf") and not log.has(paraphrased) else paraphrased


def _truth(log: EvaluationLog, on: str) -> tuple[ArrayN, bool] | None:
    """R of each sample, and whether the log's own scores are p / (p + p_wrong); None where it has no ratios.

    Losses tell which form the scores have; without any, the log's own aggregate does.
    """
    name = next((name for name in (f"{on}_truth_ratio", f"{on}_Truth_Ratio") if log.has(name, "score")), None)
    score_N = None if name is None else log.present(name, "score")
    right, wrong = _right(log, on), f"{on}_Q_A_PERT_Prob"
    if log.has(right, "avg_loss") and log.has(wrong, "avg_loss"):
        ratio_N = truth_ratio(*log.paired(right, wrong, "avg_loss"), eps=log.eps)
        if score_N is None or len(score_N) != len(ratio_N):
            return ratio_N, False
        return ratio_N, bool(np.abs(1 / (1 + ratio_N) - score_N).sum() < np.abs(ratio_N - score_N).sum())
    if name is None or score_N is None:
        return None
    stated = log.value(name)
    if stated is None or not abs(score_N.mean() - stated) < 1e-9 < abs(truth_ratio_terms(score_N, on).mean() - stated):
        return score_N, False
    with np.errstate(divide="ignore"):
        return 1 / score_N - 1, True


def _mean_probability(log: EvaluationLog, name: str) -> float:
    if log.has(name, "prob"):
        return log.mean(name, "prob")
    losses = list(log.measured(name, "avg_loss").values())
    flat = [loss for row in losses for loss in (row if isinstance(row, list) else [row])]
    return float(probability(flat).mean())


def _mean_normalised(log: EvaluationLog, plain: str, wrong: str) -> float:
    if not log.has(plain, "prob"):
        return float(normalised_probability(*log.paired(plain, wrong, "avg_loss"), eps=log.eps).mean())
    right_N, wrong_NK = log.paired(plain, wrong, "prob")
    return float((right_N / (right_N + wrong_NK.sum(1) + log.eps)).mean())
