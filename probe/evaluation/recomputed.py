"""Every aggregate of an evaluation log, computed anew from its samples."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from probe.evaluation.log import SETS, EvaluationLog
from probe.metrics.attacks import reference_score
from probe.metrics.privacy import auc, privleak
from probe.metrics.tofu import (
    forget_quality,
    model_utility,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_known,
    truth_ratio_retain,
)

MUSE_ROUGE = ("forget_knowmem_ROUGE", "retain_knowmem_ROUGE", "forget_verbmem_ROUGE")


def truth_ratios(log: EvaluationLog, on: str = "forget") -> np.ndarray:
    """R of each sample of a set: from losses where the log has them, else from the ``score`` it holds.

    Scores p / (p + p_wrong), which OpenUnlearning's aggregator prob_mean leaves, are brought back to R = p_wrong / p.

    Raises:
        ValueError: the log holds neither, or losses of right and wrong answers for different samples.
    """
    if _has_ratio_losses(log, on):
        right_N, wrong_NK = log.paired(_right(log, on), f"{on}_Q_A_PERT_Prob", "avg_loss")
        return truth_ratio(right_N, wrong_NK, eps=log.eps)
    name = _ratio_name(log, on)
    if name is None:
        raise ValueError(
            f"{log.where} holds no truth ratios of {on} ({_right(log, on)} with {on}_Q_A_PERT_Prob, or "
            f"{on}_truth_ratio); it has {', '.join(sorted(log.results))[:200]}"
        )
    score_N = _scores(log, name)
    if not _is_share(log, on):
        return score_N
    with np.errstate(divide="ignore"):
        return 1 / score_N - 1


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
    """
    try:
        return _recomputed(log, retrained)
    except ValueError as error:
        places = [one.where for one in (log, retrained) if one is not None]
        if str(error).startswith(tuple(places)):
            raise
        raise ValueError(f"{' or '.join(places)}: {error}; mend or remove the samples") from None


def _recomputed(log: EvaluationLog, retrained: EvaluationLog | None) -> dict[str, float]:
    found: dict[str, float] = {}
    for on in SETS:
        found |= _set_values(log, on)
    # Answers of one token have no score, and the published mean goes over the others.
    found |= {n: log.mean(n, "score") for n in ("extraction_strength", "exact_memorization") if log.has(n, "score")}
    found |= {name: log.mean(name, "rougeL_f1") for name in MUSE_ROUGE if log.has(name, "rougeL_f1")}
    parts = utility_parts(found)
    if len(parts) == 9:
        found["model_utility"] = model_utility(parts).value
    attacks = [name for name in log.results if name.startswith("mia_") and "holdout" in log.results[name]]
    for name in attacks:
        found[name] = auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    if retrained is not None and (_ratio_name(log, "forget") or _has_ratio_losses(log, "forget")):
        found["forget_quality"] = forget_quality(truth_ratios(log), truth_ratios(retrained)).p
    theirs = 0.5 if retrained is None else attack_auc(retrained, "mia_min_k")
    # At an AUC of 1 privleak would divide by 0.
    if "mia_min_k" in found and theirs not in (None, 1):
        found["privleak"] = privleak(found["mia_min_k"], theirs)
    return found


def utility_parts(found: Mapping[str, float]) -> dict[str, float]:
    """The nine parts of model utility by this package's names, as far as they are there."""
    theirs = {"probability": "Q_A_Prob", "rouge": "Q_A_ROUGE", "truth_ratio": "Truth_Ratio"}
    parts = {}
    for on in SETS[1:]:
        for ours, name in theirs.items():
            key = f"{on}_{name}" + ("_normalised" if ours == "probability" and on != "retain" else "")
            if key in found:
                parts[f"{on}_{ours}"] = found[key]
    return parts


def reference_attack(log: EvaluationLog, retrained: EvaluationLog) -> dict[str, Any]:
    """``mia_reference`` of a log: its loss scores minus the retrained model's on the same rows; {} where one has none.

    Raises:
        ValueError: scores of different rows.
    """
    sides: dict[str, Any] = {}
    for side in ("forget", "holdout"):
        if not all(one.results.get("mia_loss", {}).get(side) for one in (log, retrained)):
            return {}
        ours, theirs = (one.measured("mia_loss", "score", side) for one in (log, retrained))
        if set(ours) != set(theirs):
            raise ValueError(
                f"{retrained.where} scores {len(theirs)} {side} rows and {log.where} {len(ours)}, not the same ones; "
                "take the log of the same split and holdout"
            )
        score_N = reference_score(list(ours.values()), [theirs[number] for number in ours])
        by_index = {str(number): {"score": score} for number, score in zip(ours, score_N.tolist(), strict=True)}
        sides[side] = {"agg_value": float(score_N.mean()), "value_by_index": by_index}
    return {"mia_reference": sides}


def attack_auc(log: EvaluationLog, name: str) -> float | None:
    """AUC of an attack: from its scores where the log has them, else as it states it; None where it does neither."""
    result = log.results.get(name, {})
    if result.get("forget") and result.get("holdout"):
        return auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    return log.value(name)


def _set_values(log: EvaluationLog, on: str) -> dict[str, float]:
    found: dict[str, float] = {}
    plain, wrong, rouge = f"{on}_Q_A_Prob", f"{on}_Q_A_PERT_Prob", f"{on}_Q_A_ROUGE"
    for name in (plain, f"{on}_Q_A_PARA_Prob", wrong):
        if log.has(name):
            found[name] = _mean_probability(log, name)
    if log.has(rouge):
        found[rouge] = log.mean(rouge, "rougeL_recall")
    if on in ("ra", "wf") and log.has(plain) and log.has(wrong):
        found[f"{plain}_normalised"] = float(_normalised(log, plain, wrong).mean())
    if _has_ratio_losses(log, on) or _ratio_name(log, on):
        aggregate = truth_ratio_forget if on == "forget" else truth_ratio_retain
        if _is_share(log, on):
            aggregate = truth_ratio_known
        found["forget_truth_ratio" if on == "forget" else f"{on}_Truth_Ratio"] = aggregate(truth_ratios(log, on))
    return found


def _right(log: EvaluationLog, on: str) -> str:
    """The answer that R divides by: paraphrased; real authors and world facts have none but in TOFU's first code."""
    paraphrased = f"{on}_Q_A_PARA_Prob"
    return f"{on}_Q_A_Prob" if on in ("ra", "wf") and not log.has(paraphrased) else paraphrased


def _has_ratio_losses(log: EvaluationLog, on: str) -> bool:
    return log.has(_right(log, on), "avg_loss") and log.has(f"{on}_Q_A_PERT_Prob", "avg_loss")


def _ratio_name(log: EvaluationLog, on: str) -> str | None:
    return next((n for n in (f"{on}_truth_ratio", f"{on}_Truth_Ratio") if log.has(n, "score")), None)


def _scores(log: EvaluationLog, name: str) -> np.ndarray:
    return np.asarray(list(log.measured(name, "score").values()), dtype=np.float64)


def _is_share(log: EvaluationLog, on: str) -> bool:
    """Whether the log's scores are p / (p + p_wrong): as its losses say, else as its own aggregate does."""
    name = _ratio_name(log, on)
    if name is None:
        return False
    score_N = _scores(log, name)
    if _has_ratio_losses(log, on):
        ratio_N = truth_ratio(*log.paired(_right(log, on), f"{on}_Q_A_PERT_Prob", "avg_loss"), eps=log.eps)
        if len(ratio_N) != len(score_N):
            return False
        return bool(np.abs(1 / (1 + ratio_N) - score_N).sum() < np.abs(ratio_N - score_N).sum())
    stated = log.value(name)
    usual = truth_ratio_forget if on == "forget" else truth_ratio_retain
    return stated is not None and bool(abs(score_N.mean() - stated) < 1e-9 < abs(usual(score_N) - stated))


def _mean_probability(log: EvaluationLog, name: str) -> float:
    if log.has(name, "prob"):
        return log.mean(name, "prob")
    losses = list(log.measured(name, "avg_loss").values())
    flat = [loss for row in losses for loss in (row if isinstance(row, list) else [row])]
    return float(probability(flat).mean())


def _normalised(log: EvaluationLog, plain: str, wrong: str) -> np.ndarray:
    if not log.has(plain, "prob"):
        return normalised_probability(*log.paired(plain, wrong, "avg_loss"), eps=log.eps)
    right_N, wrong_NK = log.paired(plain, wrong, "prob")
    return right_N / (right_N + wrong_NK.sum(1) + log.eps)
