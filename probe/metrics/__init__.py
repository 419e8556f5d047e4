"""Numbers per example and their aggregates: pure functions over arrays, and the passes that fill the arrays."""

from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.phrasings import over_phrasings
from probe.metrics.privacy import auc, privleak, rel_diff
from probe.metrics.text import compression_ratio, distinct, repetition, rouge_l_recall, token_entropy
from probe.metrics.tofu import (
    forget_quality,
    model_utility,
    normalised_probability,
    probability,
    truth_ratio,
    truth_ratio_arithmetic,
    truth_ratio_forget,
    truth_ratio_known,
    truth_ratio_retain,
)

__all__ = [
    "auc",
    "compression_ratio",
    "distinct",
    "exact_memorisation",
    "extraction_strength",
    "forget_quality",
    "model_utility",
    "normalised_probability",
    "over_phrasings",
    "privleak",
    "probability",
    "rel_diff",
    "repetition",
    "rouge_l_recall",
    "token_entropy",
    "truth_ratio",
    "truth_ratio_arithmetic",
    "truth_ratio_forget",
    "truth_ratio_known",
    "truth_ratio_retain",
]
