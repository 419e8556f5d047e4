"""Published claims about gradients, judged by the numbers of ``analyses.g_effects``."""

import math
from collections.abc import Callable, Sequence

import numpy as np

from analyses.shared import (
    ANY,
    DIFFERENCE,
    FAILS,
    HOLDS,
    SHARE,
    UNKNOWN,
    Record,
    methods_of,
    over_seeds,
    paired,
    runs_of,
    steps_of,
    verdict,
)
from probe.metrics.intervals import Interval

# NPO's weight 2 p^b / (p^b + p0^b) and differences of it.
_WEIGHT, _WEIGHTS = (0.0, 2.0), (-2.0, 2.0)


def judged(sized: Sequence[Record], subject: str, whole: int) -> list[str]:
    """One text a claim: whether it holds here, and the numbers that say so."""
    runs = [r for r in sized if r["n_forget"] == whole]
    n_seeds = len({r["seed"] for r in runs})
    head = f"{subject}, {n_seeds} seeds; 95 % t-intervals over seeds. e < 0: a step on the objective raises that loss."
    return [
        head,
        *_g1(runs),
        *_g2(runs),
        *_g3(runs),
        *_g4(runs),
        *_g5(runs),
        *_g6(runs),
        *_g7(runs),
        *_g8(sized, whole),
        *_g9(runs),
    ]


def _over(runs: Sequence[Record], value: Callable[[Record], float], within: tuple[float, float] = ANY) -> Interval:
    return over_seeds(map(value, runs), within)


def _last(record: Record, key: str) -> float:
    """At the last step where it was measured: tokens are asked about at two steps only."""
    return record[next(name for step in reversed(steps_of(record)) if (name := f"{step}/{key}") in record)]


def _mean(record: Record, key: str) -> float:
    values = [record.get(f"{step}/{key}") for step in steps_of(record)]
    return float(np.mean([v for v in values if v is not None]))


def _g1(runs: Sequence[Record]) -> list[str]:
    own = runs_of(runs, "GA")
    unlearn, retain = (_over(own, lambda r, on=on: _mean(r, f"GA/{on}/total")) for on in ("forget", "retain"))
    kept = _over(own, lambda r: _last(r, "probability/retain") - r["0/probability/retain"], DIFFERENCE)
    holds = unlearn.side() == retain.side() == kept.side() == -1
    return [
        f"G1 GA unlearns strongly but cannot keep retention: {HOLDS if holds else UNKNOWN} (unlearn effect "
        f"{unlearn:.3g}, retain effect {retain:.3g}, means over the run; retain probability changes by {kept:.3g})."
    ]


def _g2(runs: Sequence[Record]) -> list[str]:
    own = [r for r in runs_of(runs, "GA") if any(key.endswith("forgotten tokens/share") for key in r)]
    share, harm, size = (
        _over(own, lambda r, k=k: _last(r, f"forgotten tokens/{k}"), within)
        # The net harm has signs, so a part of it may be more than the whole.
        for k, within in (("share", SHARE), ("share of harm", ANY), ("share of size", SHARE))
    )
    sizes, shares = ([_last(r, f"forgotten tokens/{k}") for r in own] for k in ("share of size", "share"))
    excess = paired(sizes, shares)
    return [
        f"G2 GA's harm comes from tokens already forgotten: {verdict(excess)} (at the end of GA, tokens with p < 0.1 "
        f"are {share:.3g} of all, and do {harm:.3g} of the net retain harm, {size:.3g} of its absolute size)."
    ]


def _g3(runs: Sequence[Record]) -> list[str]:
    lines, excesses = [], []
    for method in methods_of(runs):
        name = {"IDK + NLL": "IDK"}.get(method, method.split(" +")[0])

        def bottom(record: Record, name: str = name) -> float:
            depth = sum(key.startswith(f"0/{name}/forget/layer ") for key in record)
            shares = []
            for step in steps_of(record):
                size_L = np.abs([record[f"{step}/{name}/forget/layer {layer}"] for layer in range(depth)])
                shares.append(size_L[: -(-depth // 3)].sum() / size_L.sum() - -(-depth // 3) / depth)
            return float(np.mean(shares))

        excesses.append(_over(runs_of(runs, method), bottom, DIFFERENCE))
        lines.append(f"{method} {excesses[-1]:.3g}")
    holds, not_so = (sum(e.side() == side for e in excesses) for side in (1, -1))
    told = (
        HOLDS
        if holds == len(excesses)
        else FAILS
        if not_so > len(excesses) / 2
        else (f"holds for {holds} of {len(excesses)} methods, the contrary for {not_so}")
    )
    return [
        f"G3 objectives act most on the bottom layers: {told} (share of the bottom third of blocks in the absolute "
        f"unlearn effect, less its share of blocks: {'; '.join(lines)})."
    ]


def _g4(runs: Sequence[Record]) -> list[str]:
    own = runs_of(runs, "GA")

    def gained(record: Record) -> float:
        # Harm per forgetting of both objectives at the very same weights, late in GA's run.
        step = [s for s in steps_of(record) if f"{s}/map/GA/0.0/harm" in record][-1]
        ga, npo = (record[f"{step}/map/{n}/harm"] / record[f"{step}/map/{n}/forgetting"] for n in ("GA/0.0", "NPO/0.1"))
        return ga - npo

    found = _over(own, gained)
    outcome = over_seeds(
        (
            _last(n, "probability/retain") - _last(g, "probability/retain")
            for n in runs_of(runs, "NPO")
            for g in own
            if n["seed"] == g["seed"]
        ),
        DIFFERENCE,
    )
    return [
        f"G4 NPO, which is GA reweighted, harms retention less: {verdict(found)} (harm per forgetting at the same "
        f"weights, GA less NPO: {found:.3g}; retain probability after as many steps alone, NPO less GA: "
        f"{outcome:.3g})."
    ]


def _g5(runs: Sequence[Record]) -> list[str]:
    own = runs_of(runs, "NPO")
    keys = [step for step in steps_of(own[0]) if f"{step}/NPO weight/mean" in own[0]]
    weight = [_over(own, lambda r, s=s: r[f"{s}/NPO weight/mean"], _WEIGHT) for s in keys]
    p = [_over(own, lambda r, s=s: r[f"{s}/NPO weight/p"], SHARE) for s in keys]
    first, end = (f"{step}/NPO weight" for step in (keys[0], keys[-1]))
    fall = _over(own, lambda r: r[f"{first}/mean"] - r[f"{end}/mean"], _WEIGHTS)
    inside = _over(own, lambda r: r[f"{end}/quarter 3/weight"] - r[f"{end}/quarter 0/weight"], _WEIGHTS)
    falls, ends = fall.side() > 0, weight[-1].side(0.1) < 0
    told = HOLDS if falls and ends else "holds in direction only" if falls else UNKNOWN
    return [
        f"G5 NPO's weight stops early, going to 0 with p: {told} (mean weight {weight[0]:.3g} then "
        f"{weight[-1]:.3g} where the answers' probability is {p[0]:.3g} then {p[-1]:.3g}; highest less lowest "
        f"quarter of answers at the end {inside:.3g})."
    ]


def _g6(runs: Sequence[Record]) -> list[str]:
    own = runs_of(runs, "NPO")
    harm, forgetting = (
        _over(own, lambda r, on=on: _last(r, f"NPO weight/rank correlation/{on}"), DIFFERENCE)
        for on in ("retain", "forget")
    )
    return [
        f"G6 NPO favours answers that harm retention less: {verdict(harm, -1)} (rank correlation of weight and retain "
        f"harm {harm:.3g}); these also contribute less to unlearning: {verdict(forgetting, -1)} ({forgetting:.3g})."
    ]


def _g7(runs: Sequence[Record]) -> list[str]:
    own = [*runs_of(runs, "GA + NLL"), *runs_of(runs, "GA + KL")]

    def per_seed(value: Callable[[Record], float], within: tuple[float, float] = ANY) -> Interval:
        seeds = sorted({r["seed"] for r in own})
        return over_seeds((float(np.mean([value(r) for r in own if r["seed"] == s])) for s in seeds), within)

    nll, kl = (per_seed(lambda r, n=n: _mean(r, f"{n}/retain/total")) for n in ("NLL", "KL"))
    more = per_seed(lambda r: _mean(r, "KL/retain/total") - _mean(r, "NLL/retain/total"))
    aside = per_seed(
        lambda r: max(abs(_mean(r, f"{n}/forget/total")) for n in ("NLL", "KL")) / abs(_mean(r, "GA/forget/total")),
        (0.0, math.inf),
    )
    helped = HOLDS if nll.side() == kl.side() == 1 else UNKNOWN
    little = verdict(aside, -1, 0.1)
    return [
        f"G7 both retain terms help: {helped} (retain effect of NLL {nll:.3g}, of KL {kl:.3g}); KL's is larger: "
        f"{verdict(more)} (KL less NLL {more:.3g}); neither touches unlearning (less than a tenth of GA's effect): "
        f"{little} ({aside:.3g} of it)."
    ]


def retained_at(record: Record, target: float) -> float:
    """Retain probability where the forget probability first passes below ``target``, between measured steps."""
    steps = steps_of(record)
    forget, retain = ([record[f"{s}/probability/{on}"] for s in steps] for on in ("forget", "retain"))
    for i in range(1, len(steps)):
        if forget[i] <= target < forget[i - 1]:
            share = (forget[i - 1] - target) / (forget[i - 1] - forget[i])
            return retain[i - 1] + share * (retain[i] - retain[i - 1])
    return float("nan")


def _g8(records: Sequence[Record], whole: int) -> list[str]:
    lines = []
    for method in ("GA", "GA + NLL"):
        by_size = {
            n: [retained_at(r, 0.8) for r in runs_of(records, method) if r["n_forget"] == n]
            for n in sorted({r["n_forget"] for r in records})
        }
        known = {n: over_seeds(v, SHARE) for n, v in by_size.items() if v and np.isfinite(v).all()}
        shown = ", ".join(f"{n} rows {v:.3g}" for n, v in known.items())
        missing = [str(n) for n in by_size if n not in known]
        if len(known) > 1:
            small, large = min(known), max(known)
            told = verdict(paired(by_size[small], by_size[large]))
        else:
            told = UNKNOWN
        lines.append(
            f"G8 bigger forget sets are harder ({method}): {told} (retain probability where forgetting reaches a "
            f"probability of 0.8: {shown or 'none'}{'; not reached with ' + ', '.join(missing) if missing else ''})."
        )
    return lines


def smaller_is_harder(large: Sequence[Record], small: Sequence[Record], whole: int) -> list[str]:
    """The other half of G8: what the same forgetting costs a model and a smaller one, trained alike."""
    lines = []
    for method in ("GA", "GA + NLL"):
        lost = []
        for records in (large, small):
            own = [r for r in runs_of(records, method) if r["n_forget"] == whole]
            lost.append([r["0/probability/retain"] - retained_at(r, 0.8) for r in own])
        if any(not values or not np.isfinite(values).all() for values in lost):
            lines.append(f"G8 smaller models are harder ({method}): {UNKNOWN} (a run did not reach 0.8).")
            continue
        more, (whole_one, half_one) = paired(lost[1], lost[0]), (over_seeds(v, DIFFERENCE) for v in lost)
        lines.append(
            f"G8 smaller models are harder ({method}): {verdict(more)} (retain probability lost where forgetting "
            f"reaches 0.8: {whole_one:.3g}, in the smaller model {half_one:.3g})."
        )
    return lines


def _g9(runs: Sequence[Record]) -> list[str]:
    own = runs_of(runs, "GA")

    def last_map(record: Record) -> dict[str, tuple[float, float]]:
        step = [s for s in steps_of(record) if f"{s}/map/GA/0.0/harm" in record][-1]
        names = {key.split("/map/")[1].rsplit("/", 1)[0] for key in record if key.startswith(f"{step}/map/")}
        return {n: (record[f"{step}/map/{n}/forgetting"], record[f"{step}/map/{n}/harm"]) for n in names}

    def best(record: Record, kinds: tuple[str, ...]) -> float:
        points = {n: f - h for n, (f, h) in last_map(record).items() if n.split("/")[0] in kinds}
        return max(points.values())

    kinds = ("WGA", "TNPO", "WTNPO", "SatImp")
    more = _over(own, lambda r: best(r, kinds) - best(r, ("GA",)))
    without = [r for r in own if any(key.endswith("/ideal without harm/harm") for key in r)]
    ideal = over_seeds(_last(r, "ideal without harm/forgetting") / last_map(r)["GA/0.0"][0] for r in without)
    held = over_seeds(_last(r, "ideal without harm/harm") / last_map(r)["GA/0.0"][1] for r in without)
    return [
        f"G10 weighting tokens is promising: {verdict(more)} by gradients late in GA's run (forgetting less harm per "
        f"weight, best published weighting less GA: {more:.3g}). The ideal weighting, with at most 5 times the "
        f"uniform weight on a token and no harm to the rows it was chosen by, forgets {ideal:.3g} times as fast as "
        f"GA and does {held:.3g} of its harm to other retain rows ({len(without)} of {len(own)} runs).",
        "G9 is judged by outcomes at equal retention: see analyses.method_families.",
    ]
