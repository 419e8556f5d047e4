"""Published claims on fair comparisons, judged by the numbers of ``analyses.calibrated``."""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from analyses.calibrated.methods import GA_TYPE, REJECTION, STEERED, TRICKED, TRICKS
from analyses.calibrated.metric_claims import c3, m2, u1
from analyses.calibrated.numbers import (
    ATTACKS,
    FORGET,
    STATES,
    is_reference,
    less,
    mean,
    methods_of,
    scored,
    seeds,
)
from analyses.shared import FAILS, HOLDS, UNKNOWN, Record, over_seeds

# What the retain score may lose on other rows than it was calibrated on.
SLACK = 0.02


def judged(runs: Sequence[Record], subject: str, *, share: float, note: str = "") -> list[str]:
    """One text a claim: whether it holds here, and the numbers that say so; ``note`` says how it was measured."""
    n_seeds = len({r["seed"] for r in runs if not is_reference(r["method"])})
    return [
        f"{subject}, {n_seeds} seeds; 95 % t-intervals over seeds. Calibrated: mixed with the original until {share:g} "
        "of its retain extraction strength (ES) is kept. Settings were not searched.",
        *([note] if note else []),
        *bar(runs, share),
        *u1(runs),
        *u2(runs),
        *u3(runs),
        *u4(runs),
        *u5(runs),
        *m2(runs),
        *c3(runs),
    ]


def bar(runs: Sequence[Record], share: float) -> list[str]:
    """Whether every calibrated model met the bar, on the rows that chose it and on the rows that are reported."""
    own = [r for r in runs if not is_reference(r["method"])]
    start = mean(runs, "original", "raw/retain/extraction_strength")
    chosen = [r for r in own if r["retain score"] < r["retain bar"] - 1e-9]
    missed = [r for r in own if r["calibrated/retain/extraction_strength"] < share * start - SLACK]
    nothing = [r for r in own if r["alpha"] == 0]
    least = min((r["calibrated/retain/extraction_strength"] for r in own), default=np.nan)

    def named(found: Iterable[Record]) -> str:
        return ", ".join(
            f"{r['method']} seed {r['seed']} ({r['calibrated/retain/extraction_strength']:.3f})" for r in found
        )

    lines = [
        f"Retention bar: {len(own) - len(chosen)} of {len(own)} models met it on the rows they were calibrated on"
        + (f"; not {named(chosen)}" if chosen else "")
        + f"; {len(own) - len(missed)} also on the reported rows (ES at least {share * start:.3f}, less {SLACK:g} for "
        f"other rows; smallest {least:.3f})" + (f"; not {named(missed)}" if missed else "") + "."
    ]
    if nothing:
        lines.append(f"Nothing could be mixed in without falling below the bar: {named(nothing)}; as the original.")
    return lines


def u2(runs: Sequence[Record]) -> list[str]:
    """At equal retention, are GA-type methods better than they look?"""
    names = methods_of(runs)
    best = _best(runs, GA_TYPE)
    rivals = [_best(runs, family) for family in (("npo",), REJECTION, STEERED)]
    if best is None or not any(rivals):
        return ["U2 GA-type methods are better than thought at equal retention: not measured."]
    plain = [n for n in names if "(" not in n]
    raw = sorted(plain, key=lambda n: -mean(runs, n, "raw/retain/extraction_strength"))
    fair = sorted(plain, key=lambda n: mean(runs, n, f"calibrated/{FORGET}"))
    against = {r: less(runs, r, best, f"calibrated/{FORGET}") for r in rivals if r is not None}
    sides = [found.side() for found in against.values()]
    verdict = FAILS if -1 in sides else HOLDS if 1 in sides else UNKNOWN
    places = ", ".join(
        f"{n} {raw.index(n) + 1} by retained ES as trained, {fair.index(n) + 1} by forgetting when calibrated"
        for n in GA_TYPE
        if n in plain
    )
    shown = ", ".join(f"{r} {found}" for r, found in against.items())
    return [
        f"U2 GA-type methods are better than thought at equal retention: {verdict} (places among {len(plain)} methods: "
        f"{places}; forget ES left beyond that of {best}, seed by seed: {shown}; holds where no family's best forgets "
        "more and one forgets less)."
    ]


def _best(runs: Sequence[Record], family: Sequence[str]) -> str | None:
    measured = [n for n in family if len(seeds(runs, n, f"calibrated/{FORGET}"))]
    return min(measured, key=lambda n: mean(runs, n, f"calibrated/{FORGET}")) if measured else None


def u3(runs: Sequence[Record]) -> list[str]:
    """NPO short of the retrained model, GA beyond it?"""
    lines = []
    target = mean(runs, "retrained", f"raw/{FORGET}")
    for state in STATES:
        for over, under in (("ga", "npo alone"), ("ga (long)", "npo alone (long)"), ("grad_diff", "npo")):
            a, b = (scored(runs, name, f"{state}/{FORGET}") for name in (over, under))
            if not np.isfinite([a.mean, b.mean, target]).all():
                continue
            found = (a.side(target), b.side(target))
            verdict = HOLDS if found == (-1, 1) else FAILS if found[0] == 1 or found[1] == -1 else UNKNOWN
            p = ", ".join(f"{n} {mean(runs, n, f'{state}/forget/probability'):.3f}" for n in (over, under))
            lines.append(
                f"U3 {under} under-unlearns, {over} over-unlearns ({state}): {verdict} (forget ES {under} {b}, "
                f"{over} {a}, retrained {target:.2f}; probability {p}, retrained "
                f"{mean(runs, 'retrained', 'raw/forget/probability'):.3f})."
            )
    return lines or ["U3 NPO under-unlearns, GA over-unlearns: not measured."]


def u4(runs: Sequence[Record]) -> list[str]:
    """Do preference for refusals and steered representations scatter over seeds, or come back under attack?"""
    lines = []
    for label, family in (("PO", REJECTION), ("RMU", STEERED)):
        found, bad, good = [], [], []
        for state in STATES:
            ours, theirs = (_spread(runs, group, f"{state}/{FORGET}") for group in (family, GA_TYPE))
            back = [over_seeds(_recovered(runs, group, state), (0.0, np.inf)) for group in (family, GA_TYPE)]
            if ours is None or theirs is None:
                continue
            wide, narrow = _variance_ratio(ours, theirs)
            # Not reliable: recovery or variance over seeds above that of GA-type methods, with intervals apart.
            bad.append(back[0].low > back[1].high or narrow > 1)
            good.append(back[0].high < back[1].low and narrow <= 1)
            found.append(
                f"{state}: s.d. over seeds {ours[0] ** 0.5:.3f}, GA-type {theirs[0] ** 0.5:.3f} (variances "
                f"{narrow:.2g} to {wide:.2g} times); share of the forgotten that the strongest attack brings back "
                f"{back[0]}, GA-type {back[1]}"
            )
        verdict = HOLDS if any(bad) else FAILS if good and all(good) else UNKNOWN
        lines.append(f"U4 {label} is not reliable: {verdict} (forget ES; {'; '.join(found) or 'not measured'}).")
    return lines


def _spread(runs: Sequence[Record], family: Sequence[str], key: str) -> tuple[float, int] | None:
    """Pooled variance over seeds and its degrees of freedom."""
    values = [seeds(runs, name, key) for name in family]
    values = [v for v in values if len(v) > 1]
    freedom = sum(len(v) - 1 for v in values)
    return (sum(((v - v.mean()) ** 2).sum() for v in values) / freedom, freedom) if freedom else None


def _variance_ratio(ours: tuple[float, int], theirs: tuple[float, int]) -> tuple[float, float]:
    """Upper and lower end of the 95 % interval of the ratio of two variances, of normal values."""
    from scipy.stats import f

    if theirs[0] == 0:
        return float("inf"), 0.0 if ours[0] == 0 else float("inf")
    ratio = ours[0] / theirs[0]
    return ratio / f.ppf(0.025, ours[1], theirs[1]), ratio / f.ppf(0.975, ours[1], theirs[1])


def _recovered(runs: Sequence[Record], family: Sequence[str], state: str) -> list[float]:
    """For each seed, what the strongest attack brings back of the forgotten ES, mean over the family.

    (after - b) / (original - b), with b the larger of the score before the attack and the retrained model's under it:
    the form of answers, which a model that never knew has too, is nothing forgotten. Where less than 0.05 was
    forgotten there is no share.
    """
    start = mean(runs, "original", f"raw/{FORGET}")
    shares = []
    for name in family:
        before = seeds(runs, name, f"{state}/{FORGET}")
        found = []
        for attack in ATTACKS:
            after = seeds(runs, name, f"{state} + {attack}/extraction_strength")
            if len(before) == 0 or len(after) != len(before):
                continue
            never = mean(runs, "retrained", f"raw + {attack}/extraction_strength")
            base = np.fmax(before, never)
            known = np.maximum(start - base, 0.05)
            found.append(np.where(start - base < 0.05, np.nan, np.maximum(after - base, 0) / known))
        if found:
            shares.append(np.max(found, axis=0))
    n = min(map(len, shares), default=0)
    by_seed = [[float(x[k]) for x in shares if np.isfinite(x[k])] for k in range(n)]
    return [float(np.mean(values)) for values in by_seed if values]


def u5(runs: Sequence[Record]) -> list[str]:
    """What each trick adds to GradDiff at equal retention."""
    key = f"calibrated/{FORGET}"
    gains = {trick: less(runs, TRICKED, f"{TRICKED} ({trick})", key) for trick in TRICKS}
    gains = {trick: gain for trick, gain in gains.items() if np.isfinite(gain.mean)}
    if not gains:
        return ["U5 which tricks help: not measured."]

    def line(claim: str, names: Sequence[str], verdict: Callable[[list[int]], str]) -> str:
        own = {n: gains[n] for n in names if n in gains}
        shown = ", ".join(f"{n} {gain}" for n, gain in own.items())
        return f"U5 {claim}: {verdict([g.side() for g in own.values()])} (ES forgotten beyond {TRICKED}: {shown})."

    warm = [n for n in gains if n.startswith("T ")]
    best = max(warm, key=lambda n: gains[n].mean, default=None)

    def helps(found: list[int]) -> str:
        return HOLDS if 1 in found else FAILS if found and all(x == -1 for x in found) else UNKNOWN

    def less_than_best(found: list[int]) -> str:
        others = [n for n in gains if "batch" in n or "steps" in n]
        if best is None or not others:
            return UNKNOWN
        apart = [less(runs, f"{TRICKED} ({n})", f"{TRICKED} ({best})", key).side() for n in others]
        return HOLDS if all(x == 1 for x in apart) else FAILS if -1 in apart else UNKNOWN

    def unreliable(found: list[int]) -> str:
        return HOLDS if -1 in found else FAILS if found and all(x == 1 for x in found) else UNKNOWN

    return [
        line("temperature scaling helps", warm, helps),
        line(
            f"smaller batches and early stopping help less than {best}",
            [n for n in gains if "batch" in n or "steps" in n],
            less_than_best,
        ),
        line("keeping only some tokens is not reliable", [n for n in gains if "likely" in n], unreliable),
    ]
