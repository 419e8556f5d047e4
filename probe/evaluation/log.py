"""OpenUnlearning's evaluation log, read and written, and every aggregate computed anew from its samples.

The format (locuslab/open-unlearning, ``TOFU_EVAL.json``) is one JSON object, metric -> result. A result holds
``agg_value`` and, for most metrics, ``value_by_index``: sample number -> fields. Fields that are understood:

========================================================  ===========================================================
metric                                                    fields of a sample
========================================================  ===========================================================
``{forget,retain,ra,wf}_Q_A_Prob``, ``*_Q_A_PARA_Prob``   ``prob``, ``avg_loss`` (mean cross-entropy, nats per token)
``*_Q_A_PERT_Prob``                                       the same two, lists with one entry a wrong answer
``{ra,wf}_Q_A_Prob_normalised``                           ``prob``
``*_Q_A_ROUGE``                                           ``rouge1_recall``, ``rougeL_f1``, ``rougeL_recall`` (texts
                                                          ``input``, ``ground_truth``, ``generation`` are kept)
``forget_truth_ratio``, ``*_Truth_Ratio``                 ``score``: R, before it is aggregated
``extraction_strength``, ``exact_memorization``           ``score``
``mia_*``                                                 ``forget`` and ``holdout``, each with ``value_by_index`` of
                                                          ``score``; ``auc``
``forget_quality``, ``model_utility``, ``privleak``       none: ``agg_value`` alone
========================================================  ===========================================================

Other metrics are kept as they are and written back unchanged.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from probe.metrics.privacy import auc, privleak
from probe.metrics.tofu import (
    forget_quality,
    model_utility,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_forget,
    truth_ratio_retain,
)
from probe.records import parsed, read_text

SETS = ("forget", "retain", "ra", "wf")
EPS = 1e-10
"""What OpenUnlearning adds to denominators."""
_KEYS = {"agg_value", "value_by_index", "forget", "holdout", "auc"}


@dataclass(frozen=True)
class EvaluationLog:
    """The log as it lies on disk.

    Args:
        results: metric -> result.
        where: what error messages call it.
    """

    results: Mapping[str, Mapping[str, Any]]
    where: str = "the log"

    def __contains__(self, name: str) -> bool:
        return name in self.results

    def value(self, name: str) -> float | None:
        """``agg_value`` of a metric; None where it is null or the metric absent."""
        value = self.results.get(name, {}).get("agg_value")
        return None if value is None else float(value)

    def samples(self, name: str, field: str, part: str | None = None) -> np.ndarray:
        """One field of all samples of a metric in the order of their numbers, lists as a second axis.

        Args:
            name: of the metric.
            field: "avg_loss", say.
            part: "forget" or "holdout" of an attack.

        Raises:
            ValueError: no such metric or field, samples without a value, or lists of unequal length.
        """
        values = [sample.get(field) for _, sample in self._ordered(name, part)]
        absent = sum(value is None for value in values)
        if absent:
            known = sorted({key for _, sample in self._ordered(name, part) for key in sample})
            raise ValueError(
                f"{self.where}: {absent} of {len(values)} samples of {name} have no {field}; fields found: "
                f"{', '.join(known)}"
            )
        try:
            return np.asarray(values, dtype=np.float64)
        except ValueError:
            raise ValueError(f"{self.where}: {field} of {name} is no number, or lists of unequal length") from None

    def _ordered(self, name: str, part: str | None) -> list[tuple[int, Mapping[str, Any]]]:
        result = self.results.get(name, {})
        samples = (result.get(part) or {} if part else result).get("value_by_index")
        if not samples:
            raise ValueError(f"{self.where} holds no samples of {name}{f' ({part})' if part else ''}")
        return sorted((int(number), sample) for number, sample in samples.items())


def read_log(path: str | Path) -> EvaluationLog:
    """Read a log that OpenUnlearning or ``probe evaluate`` wrote.

    Raises:
        FileNotFoundError: no such file.
        ValueError: not JSON, or JSON of another layout; TOFU's older logs and summaries are named as such.
    """
    path = Path(path)
    results = parsed(path, read_text(path))
    expected = "expected metric -> {agg_value, value_by_index}, as in OpenUnlearning's TOFU_EVAL.json"
    if not isinstance(results, dict) or not results:
        raise ValueError(f"{path} is no evaluation log (a {type(results).__name__}); {expected}")
    if any(name.startswith("eval_log") or name == "avg_gt_loss" for name in results):
        raise ValueError(f"{path} is a log of TOFU's first code (eval_log...), which has other fields; {expected}")
    if all(value is None or isinstance(value, int | float) for value in results.values()):
        raise ValueError(f"{path} is a summary without samples; take the EVAL file beside it ({expected})")
    for name, result in results.items():
        if not isinstance(result, dict) or not _KEYS & set(result):
            found = ", ".join(result) if isinstance(result, dict) else f"a {type(result).__name__}"
            raise ValueError(f"{path} is no evaluation log: {name} holds {found or 'nothing'}; {expected}")
        for part in (result, result.get("forget"), result.get("holdout")):
            _check_samples(path, name, part)
    return EvaluationLog(results, str(path))


def write_log(path: str | Path, log: EvaluationLog) -> None:
    """Write a log in OpenUnlearning's layout: sorted by metric, four spaces.

    Raises:
        ValueError: a NaN or infinity, which is not JSON.
    """
    try:
        text = json.dumps(dict(sorted(log.results.items())), indent=4, allow_nan=False)
    except ValueError:
        raise ValueError("the log holds NaN or infinity, which is not JSON; write null") from None
    Path(path).write_text(text, encoding="utf-8")


def truth_ratios(log: EvaluationLog, on: str = "forget") -> np.ndarray:
    """R of each sample of a set: from losses where the log has them, else the ``score`` it holds.

    Raises:
        ValueError: the log holds neither.
    """
    right = f"{on}_Q_A_Prob" if on in ("ra", "wf") else f"{on}_Q_A_PARA_Prob"
    if right in log and f"{on}_Q_A_PERT_Prob" in log:
        return truth_ratio(log.samples(right, "avg_loss"), log.samples(f"{on}_Q_A_PERT_Prob", "avg_loss"), eps=EPS)
    names = (f"{on}_truth_ratio", f"{on}_Truth_Ratio")
    found = next((name for name in names if name in log), None)
    if found is None:
        raise ValueError(
            f"{log.where} holds no truth ratios of {on} ({right} with {on}_Q_A_PERT_Prob, or {names[0]}); it has "
            f"{', '.join(sorted(log.results))}"
        )
    return log.samples(found, "score")


def recomputed(log: EvaluationLog, retrained: EvaluationLog | None = None) -> dict[str, float]:
    """Every aggregate that the samples allow, by OpenUnlearning's names and definitions.

    Probabilities are means of ``prob`` (of exp(-avg_loss) where it is absent: published logs took the exponential in
    float32 on a GPU, so the two differ by up to 2e-8). Truth ratios are geometric. Denominators carry ``EPS``.

    Args:
        log: of the model.
        retrained: of the retrained model, for forget quality and privleak.

    Returns:
        metric -> value; what samples are missing for is left out.

    Raises:
        ValueError: samples that are broken: negative losses, lists of unequal length, missing fields.
    """
    found: dict[str, float] = {}
    for on in SETS:
        found |= _set_values(log, on)
    for name in ("extraction_strength", "exact_memorization"):
        if _has(log, name):
            # Answers of one token have no score, and the published mean goes over the others.
            scores = [s.get("score") for s in log.results[name]["value_by_index"].values()]
            given = [score for score in scores if score is not None]
            found |= {name: float(np.mean(given))} if given else {}
    parts = utility_parts(found)
    if len(parts) == 9:
        found["model_utility"] = model_utility(parts).value
    attacks = [name for name in log.results if name.startswith("mia_") and "holdout" in log.results[name]]
    for name in attacks:
        found[name] = auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    if retrained is not None:
        found |= _against(log, retrained, found)
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


def _set_values(log: EvaluationLog, on: str) -> dict[str, float]:
    found: dict[str, float] = {}
    plain, wrong, rouge = f"{on}_Q_A_Prob", f"{on}_Q_A_PERT_Prob", f"{on}_Q_A_ROUGE"
    for name in (plain, f"{on}_Q_A_PARA_Prob", wrong):
        if _has(log, name):
            found[name] = float(_probabilities(log, name).mean())
    if _has(log, rouge):
        found[rouge] = float(log.samples(rouge, "rougeL_recall").mean())
    if on in ("ra", "wf") and _has(log, plain) and _has(log, wrong):
        found[f"{plain}_normalised"] = float(_normalised(log, plain, wrong).mean())
    right = plain if on in ("ra", "wf") else f"{on}_Q_A_PARA_Prob"
    ratio = "forget_truth_ratio" if on == "forget" else f"{on}_Truth_Ratio"
    if (_has(log, right) and _has(log, wrong)) or _has(log, ratio):
        aggregate = truth_ratio_forget if on == "forget" else truth_ratio_retain
        found[ratio] = aggregate(truth_ratios(log, on))
    return found


def _against(log: EvaluationLog, retrained: EvaluationLog, found: Mapping[str, float]) -> dict[str, float]:
    added = {}
    if _has(log, "forget_truth_ratio") or _has(log, "forget_Q_A_PARA_Prob"):
        added["forget_quality"] = forget_quality(truth_ratios(log), truth_ratios(retrained)).p
    theirs = attack_auc(retrained, "mia_min_k")
    # At an AUC of 1 privleak would divide by 0.
    if "mia_min_k" in found and theirs not in (None, 1):
        added["privleak"] = privleak(found["mia_min_k"], theirs)
    return added


def attack_auc(log: EvaluationLog, name: str) -> float | None:
    """AUC of an attack: from its scores where the log has them, else as it states it; None where it does neither."""
    result = log.results.get(name, {})
    if result.get("forget") and result.get("holdout"):
        return auc(log.samples(name, "score", "forget"), log.samples(name, "score", "holdout"))
    return log.value(name)


def _has(log: EvaluationLog, name: str) -> bool:
    return bool(log.results.get(name, {}).get("value_by_index"))


def _probabilities(log: EvaluationLog, name: str) -> np.ndarray:
    first = next(iter(log.results[name]["value_by_index"].values()))
    if first.get("prob") is not None:
        return log.samples(name, "prob")
    losses = log.samples(name, "avg_loss")
    return probability(losses) if losses.ndim == 1 else np.exp(-losses)


def _normalised(log: EvaluationLog, plain: str, wrong: str) -> np.ndarray:
    first = next(iter(log.results[plain]["value_by_index"].values()))
    if first.get("prob") is None:
        return normalised_probability(log.samples(plain, "avg_loss"), log.samples(wrong, "avg_loss"), eps=EPS)
    right_N, wrong_NK = _probabilities(log, plain), _probabilities(log, wrong)
    return right_N / (right_N + wrong_NK.sum(1) + EPS)


def _check_samples(path: Path, name: str, part: Any) -> None:
    samples = part.get("value_by_index") if isinstance(part, dict) else None
    if samples is None:
        return
    if not isinstance(samples, dict):
        raise ValueError(f"{path}: value_by_index of {name} is a {type(samples).__name__}; expected number -> fields")
    for number, sample in samples.items():
        if not re.fullmatch(r"\d+", number) or not isinstance(sample, dict):
            raise ValueError(f"{path}: sample {number!r} of {name} is {str(sample)[:40]!r}; expected number -> fields")
