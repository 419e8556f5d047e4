"""Claims U1, M2 and C3: what metrics of forgetting are worth, by the records of ``analyses.calibrated``."""

from collections.abc import Mapping, Sequence
from itertools import combinations

import numpy as np

from analyses.calibrated.numbers import (
    ATTACKS,
    MARGIN,
    METRICS,
    STATES,
    bootstrap_means,
    mean,
    methods_of,
    scored,
    seeds,
    tables,
)
from analyses.shared import DIFFERENCE, FAILS, HOLDS, UNKNOWN, Record, over_seeds, paired
from probe.metrics.intervals import Interval
from probe.metrics.judges import rouge_entailer, tfidf_embedder

OLD, NEW = ("rouge", "probability"), ("token_entropy", "cosine_similarity", "entailment")
# Correlations nearer than this are as good as equal.
R_MARGIN = 0.05


def u1(runs: Sequence[Record]) -> list[str]:
    """Is extraction strength moved least?"""
    lines = []
    for state in STATES:
        if len(methods_of(runs)) < 4:
            lines.append(f"U1 extraction strength is moved least by attacks ({state}): {UNKNOWN} (under four models).")
            continue
        mean_r = bootstrap_means(runs, state)
        ours = mean_r["extraction_strength"]
        ranked = sorted((m for m in METRICS if np.isfinite(mean_r[m][0])), key=lambda m: -mean_r[m][0])
        # Its other forms are the same metric under other names.
        rivals = [m for m in ranked if "strength" not in m]
        ends = {m: np.nanquantile(ours[1:] - mean_r[m][1:], [0.025, 0.975]) for m in rivals}
        gap = {m: ours[0] - mean_r[m][0] for m in rivals}
        beaten = [m for m in rivals if ends[m][0] > 0 and gap[m] > R_MARGIN]
        better = [m for m in rivals if ends[m][1] < 0 and -gap[m] > R_MARGIN]
        verdict = FAILS if better else HOLDS if len(beaten) == len(rivals) and rivals else UNKNOWN
        shown = ", ".join(f"{m} {mean_r[m][0]:.2f}" for m in ranked)
        lost = "".join(f"; {m} does not vary" for m in METRICS if m not in ranked)
        lines.append(
            f"U1 extraction strength is moved least by attacks ({state}): {verdict} (Pearson's r of values before and "
            f"after, mean over {len(ATTACKS)} attacks, {len(tables(runs, state)[0]['rouge'])} models, each a mean over "
            f"seeds: {shown}; by a paired bootstrap, and by more than {R_MARGIN:g}, ES is above "
            f"{', '.join(beaten) or 'none'}, below {', '.join(better) or 'none'}{lost})."
        )
    return lines


def m2(runs: Sequence[Record]) -> list[str]:
    """What multiple choice misses, on either side."""
    lines = []
    start = {k: mean(runs, "original", f"raw/retain/{k}") for k in ("choice_accuracy", "open_right")}
    floor = mean(runs, "retrained", "raw/forget/only_open")
    for state in STATES:
        lost = {
            n: over_seeds(
                start["open_right"]
                - seeds(runs, n, f"{state}/retain/open_right")
                - (start["choice_accuracy"] - seeds(runs, n, f"{state}/retain/choice_accuracy")),
                (-2.0, 2.0),
            )
            for n in methods_of(runs)
        }
        left = {n: scored(runs, n, f"{state}/forget/only_open", less=floor) for n in methods_of(runs)}
        for claim, found, what in (
            ("over-forgetting", lost, "right open answers lost on retain rows beyond choices lost"),
            ("knowledge that open questions bring out", left, "forget rows right in the open but not by choice, "
             "beyond the retrained model's"),
        ):  # fmt: skip
            seen = {n: v for n, v in found.items() if v.side() > 0 and v.mean > MARGIN}
            known = any(v.n > 1 for v in found.values())
            verdict = UNKNOWN if not known else HOLDS if seen else FAILS
            most = max(found, key=lambda n: found[n].mean, default="")
            shown = ", ".join(f"{n} {v}" for n, v in seen.items())
            shown = shown or (f"none of {len(found)} methods; most {most} {found[most]}" if most else "none")
            lines.append(f"M2 multiple choice misses {claim} ({state}): {verdict} ({what}: {shown}).")
        known_by_choice = {n: scored(runs, n, f"{state}/forget/only_choice") for n in methods_of(runs)}
        most = max(known_by_choice, key=lambda n: known_by_choice[n].mean, default="")
        if most:
            lines.append(
                f"M2, the other way round ({state}): forget rows right by choice alone, most {most} "
                f"{known_by_choice[most]}, retrained {mean(runs, 'retrained', 'raw/forget/only_choice'):.2f}."
            )
    return lines


def c3(runs: Sequence[Record]) -> list[str]:
    """Models that ROUGE and probability take for alike, and the closer-look metrics do not."""
    from scipy.stats import binomtest

    judges = f"judges: {tfidf_embedder().name} for cosine similarity, {rouge_entailer(share=1.0).name.split(' (')[0]}"
    lines = []
    for state in STATES:
        found = {n: {m: seeds(runs, n, f"{state}/forget/{m}") for m in (*OLD, *NEW)} for n in methods_of(runs)}
        found = {n: v for n, v in found.items() if all(len(x) > 1 for x in v.values())}
        target = {m: mean(runs, "retrained", f"raw/forget/{m}") for m in (*OLD, *NEW)}
        as_retrained = [
            (n, seen)
            for n, v in found.items()
            if all(_alike(over_seeds(v[m] - target[m], DIFFERENCE)) for m in OLD)
            and (seen := [m for m in NEW if _apart(over_seeds(v[m] - target[m], DIFFERENCE))])
        ]
        pairs = list(combinations(found, 2))
        alike, seen_apart = _pairs(found, pairs, OLD, NEW)
        alike_new, old_apart = _pairs(found, pairs, NEW, OLD)
        # Three intervals of 95 % exclude 0 by chance in one of seven pairs.
        often = alike > 0 and binomtest(seen_apart, alike, 1 / 7, alternative="greater").pvalue < 0.05
        verdict = UNKNOWN if not found else HOLDS if as_retrained or often else UNKNOWN if not alike else FAILS
        names = ", ".join(f"{n} ({', '.join(seen)})" for n, seen in as_retrained) or "none"
        lines.append(
            f"C3 token entropy, cosine similarity and entailment see what ROUGE and probability miss ({state}): "
            f"{verdict} (within {MARGIN:g} of the retrained model by both, told apart by these: {names}; of "
            f"{len(pairs)} pairs of methods {alike} are alike by both, {seen_apart} of them told apart (by chance one "
            f"in seven); the other way round {old_apart} of {alike_new}; {judges} for entailment, neither knows "
            "more than words)."
        )
    return lines


def _alike(found: Interval) -> bool:
    return (abs(found.mean) <= MARGIN and found.side() == 0) or max(abs(found.low), abs(found.high)) <= MARGIN


def _apart(found: Interval) -> bool:
    return abs(found.mean) > MARGIN and found.side() != 0


def _pairs(
    found: Mapping[str, Mapping[str, np.ndarray]],
    pairs: Sequence[tuple[str, str]],
    same: Sequence[str],
    other: Sequence[str],
) -> tuple[int, int]:
    """How many pairs are alike by all of ``same``, and how many of those differ by one of ``other``."""

    def less(a: str, b: str, m: str) -> Interval:
        n = min(len(found[a][m]), len(found[b][m]))
        return paired(found[a][m][:n], found[b][m][:n])

    alike = [(a, b) for a, b in pairs if all(_alike(less(a, b, m)) for m in same)]
    return len(alike), sum(any(_apart(less(a, b, m)) for m in other) for a, b in alike)
