"""One number out of several, each kept beside the parts it was made from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from probe.metrics.means import Aggregate, checked_parts, harmonic
from probe.metrics.tofu import truth_ratio_forget

CLOSER_LOOK_METRICS = ("rouge", "probability", "truth_ratio", "token_entropy", "cosine_similarity", "entailment")
CLOSER_LOOK_SETS = ("retain", "ra", "wf")
FORGET_METRICS = ("rouge", "probability", "truth_ratio", "cosine_similarity", "entailment")
PRIVACY_ATTACKS = ("loss", "zlib", "min_k", "min_k_plus_plus")


def _named(parts: Mapping[str, float], names: tuple[str, ...], what: str) -> dict[str, float]:
    odd = sorted(set(parts) ^ set(names))
    if odd:
        raise ValueError(f"{what} has the parts {', '.join(names)}; missing or unknown: {', '.join(odd)}")
    return {name: float(parts[name]) for name in names}


# OpenUnlearning (arXiv 2506.12618)


def memorisation_score(
    *, extraction_strength: float, exact_memorisation: float, paraphrased_probability: float, truth_ratio_known: float
) -> Aggregate:
    """Mem = HM(1 - ES, 1 - EM, 1 - ParaProb, 1 - TR): 1 where nothing of the forget set is memorised.

    Args:
        extraction_strength: mean teacher-forced ES, floor "1/L" in the published numbers.
        exact_memorisation: mean EM.
        paraphrased_probability: mean length-normalised probability of the paraphrased answers.
        truth_ratio_known: ``truth_ratio_known`` of the forget set, not the mean of min(R, 1/R).

    Raises:
        ValueError: a part outside [0, 1].
    """
    given = {
        "extraction_strength": extraction_strength,
        "exact_memorisation": exact_memorisation,
        "paraphrased_probability": paraphrased_probability,
        "truth_ratio_known": truth_ratio_known,
    }
    return harmonic({f"1 - {name}": 1 - part for name, part in checked_parts(given, 1.0).items()})


def utility_score(*, model_utility: float, fluency: float, finetuned: float | None = None) -> Aggregate:
    """Util = HM(MU, fluency), divided by the same of the fine-tuned model if that is given, as in the paper.

    Args:
        model_utility: TOFU's.
        fluency: mean probability that a forget generation is "clean" by a classifier of gibberish; OpenUnlearning
            calls the field gibberish.
        finetuned: HM(MU, fluency) of the model before unlearning.

    Raises:
        ValueError: parts outside [0, 1], or a fine-tuned model of utility 0.
    """
    found = harmonic({"model_utility": model_utility, "fluency": fluency})
    if finetuned is None:
        return found
    if not 0 < finetuned <= 1:
        raise ValueError(f"finetuned is a utility in (0, 1], got {finetuned}; nothing can be divided by it")
    return Aggregate(found.value / finetuned, {**found.parts, "finetuned": finetuned})


Closeness = Callable[[float, float, float | None], float]


def _close_by_distance(auc: float, auc_retrained: float, auc_finetuned: float | None) -> float:
    """1 - |AUC - AUC_ret| / |AUC_full - AUC_ret|, at least 0: the way back from the fine-tuned model that was gone.

    Raises:
        ValueError: no fine-tuned AUC, or one that equals the retrained model's.
    """
    if auc_finetuned is None:
        raise ValueError("this closeness is a share of the fine-tuned model's distance; give its AUC too")
    whole = abs(auc_finetuned - auc_retrained)
    if whole == 0:
        raise ValueError("the fine-tuned and the retrained model have the same AUC; there is no distance to share")
    return max(0.0, 1 - abs(auc - auc_retrained) / whole)


def _close_by_ratio(auc: float, auc_retrained: float, auc_finetuned: float | None) -> float:
    """min(AUC, AUC_ret) / max(AUC, AUC_ret), 1 if both are 0; needs no fine-tuned model."""
    top = max(auc, auc_retrained)
    return 1.0 if top == 0 else min(auc, auc_retrained) / top


CLOSENESS: dict[Literal["distance", "ratio"], Closeness] = {"distance": _close_by_distance, "ratio": _close_by_ratio}


def privacy_score(
    auc: Mapping[str, float],
    auc_retrained: Mapping[str, float],
    auc_finetuned: Mapping[str, float] | None = None,
    *,
    closeness: Literal["distance", "ratio"] | Closeness,
) -> Aggregate:
    """Priv = HM over loss, zlib, Min-K and Min-K++ of how close each attack's AUC is to the retrained model's.

    The closeness is not in OpenUnlearning's public code; two candidates go by name, and any function will do.

    Args:
        auc, auc_retrained, auc_finetuned: by attack, as in ``Membership.auc``; other attacks are left out.
        closeness: "distance", "ratio", or (auc, auc_retrained, auc_finetuned or None) -> number in [0, 1].

    Raises:
        ValueError: an attack is missing, an unknown closeness, or an AUC outside [0, 1].
    """
    if isinstance(closeness, str):
        if closeness not in CLOSENESS:
            raise ValueError(f"closeness must be 'distance', 'ratio' or a function, got {closeness!r}")
        closeness = CLOSENESS[closeness]
    for name, given in (("auc", auc), ("auc_retrained", auc_retrained), ("auc_finetuned", auc_finetuned)):
        lacking = [attack for attack in PRIVACY_ATTACKS if given is not None and attack not in given]
        if lacking:
            raise ValueError(f"{name} lacks {', '.join(lacking)}; Priv is a mean over {', '.join(PRIVACY_ATTACKS)}")
        checked_parts({attack: given[attack] for attack in PRIVACY_ATTACKS} if given is not None else {"": 0.0}, 1.0)
    return harmonic(
        {
            attack: closeness(
                auc[attack], auc_retrained[attack], None if auc_finetuned is None else auc_finetuned[attack]
            )
            for attack in PRIVACY_ATTACKS
        }
    )


def openunlearning_aggregate(*, memorisation: float, privacy: float, utility: float) -> Aggregate:
    """Agg = HM(Mem, Priv, Util); a scaled utility may exceed 1."""
    return harmonic({"memorisation": memorisation, "privacy": privacy, "utility": utility}, most=None)


def bs_aggregate(*, memorisation: float, utility: float) -> Aggregate:
    """Agg = HM(Mem, Util) of the BS paper, which leaves privacy out and does not scale."""
    return harmonic({"memorisation": memorisation, "utility": utility})


# A closer look (arXiv 2410.08109)


def closer_look_utility(parts: Mapping[str, float]) -> Aggregate:
    """MU = harmonic mean of 18 means: six metrics on each of retain, real authors and world facts.

    Args:
        parts: named as in ``CLOSER_LOOK_SETS`` and ``CLOSER_LOOK_METRICS``: "retain_rouge", ..., "wf_entailment".

    Raises:
        ValueError: a part is missing, unknown or outside [0, 1].
    """
    names = tuple(f"{where}_{metric}" for where in CLOSER_LOOK_SETS for metric in CLOSER_LOOK_METRICS)
    return harmonic(_named(parts, names, "the utility of arXiv 2410.08109"))


def forget_efficacy(
    *, rouge: float, probability: float, ratio_N: Any, cosine_similarity: float, entailment: float
) -> Aggregate:
    """FE = 1 - mean(ROUGE, Prob, 1 - mean min(R, 1/R), CS, ES) on forget rows: an arithmetic mean.

    Args:
        rouge, probability, cosine_similarity, entailment: means over the forget rows, in [0, 1].
        ratio_N: truth ratios R of the forget rows.

    Raises:
        ValueError: a part outside [0, 1], or bad ratios.
    """
    given = (rouge, probability, 1 - truth_ratio_forget(ratio_N), cosine_similarity, entailment)
    parts = checked_parts(dict(zip(FORGET_METRICS, given, strict=True)), 1.0)
    return Aggregate(1 - sum(parts.values()) / len(parts), parts)


@dataclass(frozen=True)
class Muse:
    """MUSE's four (arXiv 2407.06460), not averaged: no verbatim memorisation, no knowledge, no leak, utility kept.

    Args:
        verbatim_forget, knowledge_forget: means of ROUGE-L F1 on the forget set: lower is better, down to the
            retrained model's.
        privleak: in percent; near 0 is better.
        knowledge_retain: the same as knowledge_forget on the retain set: higher is better.
    """

    verbatim_forget: float
    knowledge_forget: float
    privleak: float
    knowledge_retain: float

    def __post_init__(self) -> None:
        for name in ("verbatim_forget", "knowledge_forget", "knowledge_retain"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is a mean of ROUGE-L in [0, 1], not percent; got {getattr(self, name)}")
        if not np.isfinite(self.privleak):
            raise ValueError(f"privleak is a finite percentage, got {self.privleak}")
