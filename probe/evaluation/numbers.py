"""From what was measured to rows: means with intervals, model utility, forget quality, membership."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from probe.evaluation.log import EvaluationLog
from probe.evaluation.measure import Measured
from probe.evaluation.recomputed import attack_auc, truth_ratios
from probe.metrics.aggregates import PRIVACY_ATTACKS, bs_aggregate, harmonic, memorisation_score, privacy_score
from probe.metrics.choices import ChoiceResult
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.privacy import privleak
from probe.metrics.tofu import ForgetQuality, forget_quality, truth_ratio_arithmetic
from probe.report.measure import mean_row
from probe.rows import Row

NAMES = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
"""OpenUnlearning's names of the sets, and those in rows and tables."""
FLOOR = "floor"
"""Status of a forget quality whose p says only that the two sets of truth ratios do not overlap."""
IDENTICAL = "identical"
"""Status of a forget quality whose two sets are the same numbers: one model measured twice, most likely."""


def set_rows(model: str, name: str, found: Measured, log: EvaluationLog) -> Iterator[Row]:
    """Every mean over the rows of one set, with its 95 % interval over rows (Wilson's form): a log names no groups.

    Args:
        model: what the rows' intervention is called.
        name: "forget", "retain", "ra" or "wf".
        found: what was measured.
        log: holds the set's samples.
    """
    for quantity, value_N in _values(name, found, log):
        yield mean_row(model, "performance", quantity, value_N, NAMES[name])


def utility_rows(model: str, aggregates: Mapping[str, float]) -> Iterator[Row]:
    """Model utility, where all of its nine parts were measured."""
    if "model_utility" in aggregates:
        yield Row(model, "evaluation", "model_utility", aggregates["model_utility"], n=9)


def quality_rows(model: str, log: EvaluationLog, retrained: EvaluationLog) -> Iterator[Row]:
    """Forget quality in all its published forms.

    ``status`` is "floor" at complete separation and "identical" for two equal sets.
    """
    quality = quality_of(log, retrained)
    status = FLOOR if quality.at_floor else IDENTICAL if quality.identical else "ok"
    numbers = {
        "forget_quality_statistic": quality.statistic,
        "forget_quality_p": quality.p,
        "forget_quality_ln_p": quality.ln_p,
        "forget_quality_log10_p": quality.ln_p / math.log(10),
        "forget_quality_floor": quality.floor,
        "forget_quality_m": float(quality.m),
    }
    for quantity, value in numbers.items():
        yield Row(model, "performance", quantity, value, "forget", n=quality.n, status=status)


def quality_of(log: EvaluationLog, retrained: EvaluationLog) -> ForgetQuality:
    """KS test between the truth ratios of the two logs."""
    return forget_quality(truth_ratios(log), truth_ratios(retrained))


def attack_rows(model: str, log: EvaluationLog, retrained: EvaluationLog | None) -> Iterator[Row]:
    """AUC of every attack, that of the retrained model, and privleak against it (against chance without one)."""
    for name in sorted(name for name in log.results if name.startswith("mia_")):
        area = attack_auc(log, name)
        assert area is not None
        attack = name.removeprefix("mia_")
        n = len(log.results[name]["forget"]["value_by_index"])
        yield Row(model, "evaluation", f"auc_{attack}", area, "forget", n=n)
        theirs = None if retrained is None else attack_auc(retrained, name)
        if theirs is not None:
            yield Row(model, "evaluation", f"auc_retrained_{attack}", theirs, "forget", n=n)
        # At a reference of 1 privleak divides by 0.
        if theirs != 1:
            leak = privleak(area, 0.5 if theirs is None else theirs)
            yield Row(model, "evaluation", f"privleak_{attack}", leak, "forget", n=n)


def aggregate_rows(model: str, rows: Iterable[Row]) -> Iterator[Row]:
    """OpenUnlearning's Mem and Priv, and their harmonic means with model utility.

    Its Util also asks a classifier how fluent generations are; that is left out here, and the names say so.

    Args:
        model: what the rows' intervention is called.
        rows: every number made so far.
    """
    value = {(row.on, row.quantity): row.value for row in rows if row.value is not None}
    auc = {name: value["forget", f"auc_{name}"] for name in PRIVACY_ATTACKS if ("forget", f"auc_{name}") in value}
    theirs = {
        name: value["forget", f"auc_retrained_{name}"]
        for name in PRIVACY_ATTACKS
        if ("forget", f"auc_retrained_{name}") in value
    }
    names = ("extraction_strength_floored", "exact_memorisation", "paraphrased_answer_probability", "truth_ratio_known")
    parts = [value.get(("forget", name)) for name in names]
    found = {}
    if None not in parts:
        strength, exact, paraphrased, known = (float(part) for part in parts if part is not None)
        found["mem"] = memorisation_score(
            extraction_strength=strength,
            exact_memorisation=exact,
            paraphrased_probability=paraphrased,
            truth_ratio_known=known,
        ).value
    if len(auc) == len(theirs) == len(PRIVACY_ATTACKS):
        found["priv_by_ratio"] = privacy_score(auc, theirs, closeness="ratio").value
    utility = value.get(("", "model_utility"))
    if utility is not None and "mem" in found:
        found["agg_mem_utility"] = bs_aggregate(memorisation=found["mem"], utility=utility).value
        if "priv_by_ratio" in found:
            both = {"memorisation": found["mem"], "privacy": found["priv_by_ratio"], "utility": utility}
            found["agg_mem_priv_utility"] = harmonic(both).value
    for quantity, number in found.items():
        yield Row(model, "evaluation", quantity, number)


def choice_rows(model: str, result: ChoiceResult) -> Iterator[Row]:
    """Multiple choice: accuracy with Wilson's interval, the guess line, and what tells guessing from knowing."""
    low, high = result.interval()
    option, share = result.favourite
    yield Row(model, "evaluation", "mcq_accuracy", result.accuracy, "choices", low=low, high=high, n=len(result))
    yield Row(model, "evaluation", "mcq_guess", result.guess, "choices", n=len(result))
    yield Row(model, "evaluation", "mcq_entropy", result.entropy, "choices", n=len(result))
    yield Row(model, "evaluation", "mcq_favourite_share", share, "choices", item=option, n=len(result))


def choice_samples(result: ChoiceResult) -> dict[str, Any]:
    """The same for an evaluation log: every option's ln p, what was picked, and the answer."""
    rows = zip(result.logp, result.picked_N.tolist(), result.answer_N.tolist(), strict=True)
    by_index = {
        str(i): {"logp": logp_K.tolist(), "picked": picked, "answer": answer}
        for i, (logp_K, picked, answer) in enumerate(rows)
    }
    return {"agg_value": result.accuracy, "value_by_index": by_index}


def _values(name: str, found: Measured, log: EvaluationLog) -> Iterator[tuple[str, Any]]:
    yield "probability", log.samples(f"{name}_Q_A_Prob", "prob")
    if f"{name}_Q_A_Prob_normalised" in log:
        yield "normalised_probability", log.samples(f"{name}_Q_A_Prob_normalised", "prob")
    if found.asked_loss_N is not None and found.asked is not None:
        yield "paraphrased_probability", np.exp(-found.asked_loss_N)
        yield "extraction_strength_paraphrased", [extraction_strength(m, floor="0") for m in found.asked]
    if found.right_loss_N is not None:
        yield "paraphrased_answer_probability", np.exp(-found.right_loss_N)
    if found.generations is not None:
        yield "rouge", log.samples(f"{name}_Q_A_ROUGE", "rougeL_recall")
    if found.wrong_loss_NK is not None:
        right_N = found.tokens.loss_N if found.right_loss_N is None else found.right_loss_N
        arithmetic_N = truth_ratio_arithmetic(right_N, found.wrong_loss_NK)
        yield "truth_ratio", _aggregated(name, truth_ratios(log, name))
        yield "truth_ratio_arithmetic", _aggregated(name, arithmetic_N)
        # The samples behind probe.metrics.tofu.truth_ratio_known.
        yield "truth_ratio_known", 1 / (1 + truth_ratios(log, name))
        yield "choice_accuracy", (found.wrong_loss_NK > right_N[:, None]).all(1)
    yield "extraction_strength", [extraction_strength(m, floor="0") for m in found.matches]
    yield "extraction_strength_floored", [extraction_strength(m, floor="1/L") for m in found.matches]
    if any(len(match_T) for match_T in found.matches):
        yield "exact_memorisation", [exact_memorisation(m) for m in found.matches if len(m)]


def _aggregated(name: str, ratio_N: np.ndarray) -> np.ndarray:
    """What TOFU's two aggregations take the mean of."""
    if name == "forget":
        with np.errstate(divide="ignore"):
            return np.minimum(ratio_N, 1 / ratio_N)
    return np.maximum(0, 1 - ratio_N)
