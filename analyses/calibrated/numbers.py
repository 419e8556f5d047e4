"""Numbers of the calibrated comparison's records: means over seeds, their intervals, and the reliability study."""

from collections.abc import Sequence

import numpy as np

from analyses import shared
from analyses.shared import DIFFERENCE, SHARE, Record, over_seeds, paired
from probe.metrics.intervals import Interval
from probe.metrics.reliability import Reliability, reliability

STATES = ("raw", "calibrated")
ATTACKS = ("relearning", "jailbreak", "token noise", "quantisation")
# Metrics of forgetting.
METRICS = (
    *("extraction_strength", "extraction_strength_floor", "perturbed_strength", "perturbed_strength_floor"),
    *("exact_memorisation", "log_perplexity", "probability", "paraphrased_probability", "truth_ratio"),
    *("choice_accuracy", "rouge", "token_entropy", "cosine_similarity", "entailment"),
)
# Differences below this are of no matter, whatever their interval.
MARGIN = 0.1
FORGET = "forget/extraction_strength"


def is_reference(method: str) -> bool:
    """Whether this is a bound to compare with, no method."""
    return method in ("original", "retrained")


def methods_of(runs: Sequence[Record]) -> list[str]:
    """Names of what was compared, references left out."""
    return [name for name in shared.methods_of(runs) if not is_reference(name)]


def seeds(runs: Sequence[Record], method: str, key: str) -> np.ndarray:
    """One number a seed, in the order of seeds; seeds without a number are left out."""
    return np.array([r[key] for r in shared.runs_of(runs, method) if r.get(key) is not None], dtype=float)


def mean(runs: Sequence[Record], method: str, key: str) -> float:
    """Mean over seeds; NaN without a number."""
    found = seeds(runs, method, key)
    return float(found.mean()) if len(found) else float("nan")


def scored(runs: Sequence[Record], method: str, key: str, *, less: float | None = None) -> Interval:
    """Mean over seeds of a score, which lies between 0 and 1, less a constant where there is one."""
    found = seeds(runs, method, key)
    return over_seeds(found, SHARE) if less is None else over_seeds(found - less, DIFFERENCE)


def less(runs: Sequence[Record], first: str, second: str, key: str) -> Interval:
    """First less second, seed by seed."""
    a, b = seeds(runs, first, key), seeds(runs, second, key)
    n = min(len(a), len(b))
    return paired(a[:n], b[:n])


def tables(runs: Sequence[Record], state: str) -> tuple[dict[str, np.ndarray], dict[str, dict[str, np.ndarray]]]:
    """Metric values before and after each attack: one entry a method, its mean over seeds.

    Seeds of a method are no independent models; as a sample they would only make intervals look narrow.
    """
    names = methods_of(runs)

    def column(prefix: str, metric: str) -> np.ndarray:
        return np.array([mean(runs, name, f"{prefix}/{metric}") for name in names])

    before = {metric: column(f"{state}/forget", metric) for metric in METRICS}
    after = {attack: {m: column(f"{state} + {attack}", m) for m in METRICS} for attack in ATTACKS}
    whole = np.all([np.isfinite(v) for v in (*before.values(), *(v for t in after.values() for v in t.values()))], 0)
    return (
        {metric: values[whole] for metric, values in before.items()},
        {attack: {metric: values[whole] for metric, values in table.items()} for attack, table in after.items()},
    )


def studied(runs: Sequence[Record], state: str) -> Reliability | None:
    """The reliability study in one state; None with fewer than four models."""
    before, after = tables(runs, state)
    return None if len(before[METRICS[0]]) < 4 else reliability(before, after, seed=0)


def bootstrap_means(runs: Sequence[Record], state: str, *, resamples: int = 2000) -> dict[str, np.ndarray]:
    """Each metric's r, averaged over attacks, in resamples of the models; the plain value comes first.

    A metric without variance in a resample has no r there (NaN).
    """
    before, after = tables(runs, state)
    n = len(before[METRICS[0]])
    generator = np.random.default_rng(0)
    rows_RN = np.vstack([np.arange(n), generator.integers(n, size=(resamples, n))])

    def r_of(x_RN: np.ndarray, y_RN: np.ndarray) -> np.ndarray:
        x_RN, y_RN = x_RN - x_RN.mean(1, keepdims=True), y_RN - y_RN.mean(1, keepdims=True)
        size_R = np.sqrt((x_RN**2).sum(1) * (y_RN**2).sum(1))
        return np.divide((x_RN * y_RN).sum(1), size_R, out=np.full(len(size_R), np.nan), where=size_R > 1e-12)

    return {m: np.mean([r_of(before[m][rows_RN], after[a][m][rows_RN]) for a in ATTACKS], axis=0) for m in METRICS}
