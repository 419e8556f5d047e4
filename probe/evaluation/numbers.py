"""From what was measured to rows: means with intervals, forget quality, membership, aggregates, multiple choice."""

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from probe.metrics.aggregates import PRIVACY_ATTACKS, memorisation_score, privacy_score
from probe.metrics.choices import ChoiceResult
from probe.metrics.mean_rows import mean_row
from probe.metrics.means import harmonic
from probe.metrics.privacy import privleak
from probe.metrics.suite import SuiteResult
from probe.metrics.tofu import (
    forget_quality,
    normalised_probability,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_terms,
)
from probe.open_unlearning.log import EPS, EvaluationLog
from probe.open_unlearning.recomputed import attack_auc, truth_ratios
from probe.rows import Row

NAMES = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
"""OpenUnlearning's names of the sets, and those in rows and tables."""
FLOOR = "floor"
"""Status of a forget quality whose p says only that the two sets of truth ratios do not overlap."""
IDENTICAL = "identical"
"""Status of a forget quality whose two sets are the same numbers: one model measured twice, most likely."""


def set_rows(model: str, on: str, suite: SuiteResult) -> Iterator[Row]:
    """Every mean over the rows of one set, with its 95 % interval over rows (Wilson's form): a log names no groups.

    Args:
        model: what the rows' intervention is called.
        on: "forget", "retain", "ra" or "wf".
        suite: what was measured.
    """
    for quantity, values in _values(on, suite).items():
        value_N = np.asarray(values, dtype=float)
        # An answer of one token has nothing that could be memorised, and counts in no mean.
        value_N = value_N[~np.isnan(value_N)]
        if len(value_N):
            yield mean_row(model, "performance", quantity, value_N, NAMES[on])


def _values(on: str, suite: SuiteResult) -> dict[str, Any]:
    right_N, wrong_NK = suite.right_loss_N, suite.wrong_loss_NK
    found: dict[str, Any] = {
        "probability": suite.probability_N,
        "extraction_strength": suite.extraction("0"),
        "extraction_strength_floored": suite.extraction("1/L"),
        "exact_memorisation": suite.exact_memorisation_N,
    }
    if suite.paraphrased_N.all():
        found["paraphrased_probability"] = suite.paraphrased_probability_N
        found["extraction_strength_paraphrased"] = suite.extraction("0", perturbed=True)
    if right_N is not None and all(row.paraphrased_answer for row in suite.rows):
        found["paraphrased_answer_probability"] = np.exp(-right_N)
    if suite.rouge_N is not None:
        found["rouge"] = suite.rouge_N
    if wrong_NK is not None:
        ratio_N = truth_ratio(right_N, wrong_NK, eps=EPS)
        found["truth_ratio"] = truth_ratio_terms(ratio_N, on)
        found["truth_ratio_arithmetic"] = truth_ratio_terms(truth_ratio_arithmetic(right_N, wrong_NK), on)
        # The samples behind probe.metrics.tofu.truth_ratio_known.
        found["truth_ratio_known"] = 1 / (1 + ratio_N)
        found["choice_accuracy"] = suite.rank_N == 0
    if wrong_NK is not None and on in ("ra", "wf"):
        found["normalised_probability"] = normalised_probability(suite.loss_N, wrong_NK, eps=EPS)
    return found


def quality_rows(model: str, log: EvaluationLog, retrained: EvaluationLog) -> Iterator[Row]:
    """Forget quality, the KS test between the truth ratios of the two logs, in all its published forms.

    ``status`` is "floor" at complete separation and "identical" for two equal sets.
    """
    quality = forget_quality(truth_ratios(log), truth_ratios(retrained))
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


def attack_rows(model: str, log: EvaluationLog, retrained: EvaluationLog | None) -> Iterator[Row]:
    """AUC of every attack, that of the retrained model, and privleak against it (against chance without one)."""
    for name in sorted(name for name in log.results if name.startswith("mia_")):
        area, theirs = attack_auc(log, name), None if retrained is None else attack_auc(retrained, name)
        assert area is not None
        found = {"auc": area}
        if theirs is not None:
            found["auc_retrained"] = theirs
        # At a reference of 1 privleak divides by 0.
        if theirs != 1:
            found["privleak"] = privleak(area, 0.5 if theirs is None else theirs)
        n = len(log.results[name]["forget"]["value_by_index"])
        for quantity, value in found.items():
            yield Row(model, "evaluation", f"{quantity}_{name.removeprefix('mia_')}", value, "forget", n=n)


def aggregate_rows(model: str, rows: Iterable[Row]) -> Iterator[Row]:
    """OpenUnlearning's Mem and Priv, and their harmonic means with model utility.

    Its Util also asks a classifier how fluent generations are; that is left out here, and the names say so.

    Args:
        model: what the rows' intervention is called.
        rows: every number made so far.
    """
    value = {(row.on, row.quantity): row.value for row in rows if row.value is not None}

    def named(names: Mapping[str, str]) -> dict[str, float]:
        """Numbers of the forget set by what a formula calls them; {} where one is missing."""
        found = {name: value["forget", q] for name, q in names.items() if ("forget", q) in value}
        return found if len(found) == len(names) else {}

    memorised = named(
        {
            "extraction_strength": "extraction_strength_floored",
            "exact_memorisation": "exact_memorisation",
            "paraphrased_probability": "paraphrased_answer_probability",
            "truth_ratio_known": "truth_ratio_known",
        }
    )
    areas, theirs = (named({name: f"{auc}_{name}" for name in PRIVACY_ATTACKS}) for auc in ("auc", "auc_retrained"))
    found, parts = {}, {}
    if memorised:
        found["mem"] = parts["memorisation"] = memorisation_score(**memorised).value
    if areas and theirs:
        found["priv_by_ratio"] = parts["privacy"] = privacy_score(areas, theirs, closeness="ratio").value
    if memorised and ("", "model_utility") in value:
        parts["utility"] = value["", "model_utility"]
        found["agg_mem_utility"] = harmonic({name: parts[name] for name in ("memorisation", "utility")}).value
        if len(parts) == 3:
            found["agg_mem_priv_utility"] = harmonic(parts).value
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
