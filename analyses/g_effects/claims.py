"""Published claims about gradients, judged by the numbers of ``analyses.g_effects``."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from analyses.tarf.claims import UNKNOWN
from probe.metrics import intervals

Record = Mapping[str, Any]


def interval(values: Iterable[float]) -> tuple[float, float, float]:
    """Mean over seeds with its 95 % t-interval; of no seeds at all, nobody knows."""
    known = list(values)
    return intervals.interval(known).ends if known else (float("nan"), float("-inf"), float("inf"))


def steps_of(record: Record) -> list[int]:
    """The steps at which a run was measured."""
    return sorted({int(key.split("/")[0]) for key in record if key.split("/")[0].isdigit()})


def judged(records: Sequence[Record], subject: str, whole: int) -> list[str]:
    """One text a claim: whether it holds here, and the numbers that say so."""
    runs = [r for r in records if r["status"] != "failed" and r["n_forget"] == whole]
    sized = [r for r in records if r["status"] != "failed"]
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


def _of(runs: Sequence[Record], method: str) -> list[Record]:
    return [r for r in runs if r["method"] == method]


def _over(runs: Sequence[Record], value: Callable[[Record], float]) -> tuple[float, float, float]:
    return interval(value(r) for r in runs)


def _text(found: tuple[float, float, float], form: str = ".3g") -> str:
    return f"{found[0]:{form}} [{found[1]:{form}}, {found[2]:{form}}]"


def _sign(found: tuple[float, float, float], claimed: int) -> str:
    if found[1] > 0 or found[2] < 0:
        return "holds here" if (found[1] > 0) == (claimed > 0) else "does not hold here"
    return UNKNOWN


def _last(record: Record, key: str) -> float:
    """At the last step where it was measured: tokens are asked about at two steps only."""
    return record[next(name for step in reversed(steps_of(record)) if (name := f"{step}/{key}") in record)]


def _mean(record: Record, key: str) -> float:
    values = [record.get(f"{step}/{key}") for step in steps_of(record)]
    return float(np.mean([v for v in values if v is not None]))


def _g1(runs: Sequence[Record]) -> list[str]:
    own = _of(runs, "GA")
    unlearn, retain = (_over(own, lambda r, on=on: _mean(r, f"GA/{on}/total")) for on in ("forget", "retain"))
    kept = _over(own, lambda r: _last(r, "probability/retain") - r["0/probability/retain"])
    verdict = "holds here" if unlearn[2] < 0 and retain[2] < 0 and kept[2] < 0 else UNKNOWN
    return [
        f"G1 GA unlearns strongly but cannot keep retention: {verdict} (unlearn effect {_text(unlearn)}, retain effect "
        f"{_text(retain)}, means over the run; retain probability changes by {_text(kept)})."
    ]


def _g2(runs: Sequence[Record]) -> list[str]:
    own = [r for r in _of(runs, "GA") if any(key.endswith("forgotten tokens/share") for key in r)]
    share, harm, size = (
        _over(own, lambda r, k=k: _last(r, f"forgotten tokens/{k}"))
        for k in ("share", "share of harm", "share of size")
    )
    excess = _over(own, lambda r: _last(r, "forgotten tokens/share of size") - _last(r, "forgotten tokens/share"))
    return [
        f"G2 GA's harm comes from tokens already forgotten: {_sign(excess, 1)} (at the end of GA, tokens with p < 0.1 "
        f"are {_text(share)} of all, and do {_text(harm)} of the net retain harm, {_text(size)} of its absolute size)."
    ]


def _g3(runs: Sequence[Record]) -> list[str]:
    lines, excesses = [], []
    for method in dict.fromkeys(r["method"] for r in runs):
        name = {"IDK + NLL": "IDK"}.get(method, method.split(" +")[0])

        def bottom(record: Record, name: str = name) -> float:
            depth = sum(key.startswith(f"0/{name}/forget/layer ") for key in record)
            shares = []
            for step in steps_of(record):
                size_L = np.abs([record[f"{step}/{name}/forget/layer {layer}"] for layer in range(depth)])
                shares.append(size_L[: -(-depth // 3)].sum() / size_L.sum() - -(-depth // 3) / depth)
            return float(np.mean(shares))

        found = _over(_of(runs, method), bottom)
        excesses.append(found)
        lines.append(f"{method} {_text(found)}")
    holds, not_so = (sum(test(e) for e in excesses) for test in (lambda e: e[1] > 0, lambda e: e[2] < 0))
    verdict = (
        "holds here"
        if holds == len(excesses)
        else "does not hold here"
        if not_so > len(excesses) / 2
        else (f"holds for {holds} of {len(excesses)} methods, the contrary for {not_so}")
    )
    return [
        f"G3 objectives act most on the bottom layers: {verdict} (share of the bottom third of blocks in the absolute "
        f"unlearn effect, less its share of blocks: {'; '.join(lines)})."
    ]


def _g4(runs: Sequence[Record]) -> list[str]:
    own = _of(runs, "GA")

    def gained(record: Record) -> float:
        # Harm per forgetting of both objectives at the very same weights, late in GA's run.
        step = [s for s in steps_of(record) if f"{s}/map/GA/0.0/harm" in record][-1]
        ga, npo = (record[f"{step}/map/{n}/harm"] / record[f"{step}/map/{n}/forgetting"] for n in ("GA/0.0", "NPO/0.1"))
        return ga - npo

    found = _over(own, gained)
    outcome = interval(
        [
            _last(n, "probability/retain") - _last(g, "probability/retain")
            for n in _of(runs, "NPO")
            for g in own
            if n["seed"] == g["seed"]
        ]
    )
    return [
        f"G4 NPO, which is GA reweighted, harms retention less: {_sign(found, 1)} (harm per forgetting at the same "
        f"weights, GA less NPO: {_text(found)}; retain probability after as many steps alone, NPO less GA: "
        f"{_text(outcome)})."
    ]


def _g5(runs: Sequence[Record]) -> list[str]:
    own = _of(runs, "NPO")
    keys = [step for step in steps_of(own[0]) if f"{step}/NPO weight/mean" in own[0]]
    weight = [_over(own, lambda r, s=s: r[f"{s}/NPO weight/mean"]) for s in keys]
    p = [_over(own, lambda r, s=s: r[f"{s}/NPO weight/p"]) for s in keys]
    fall = _over(own, lambda r: r[f"{keys[0]}/NPO weight/mean"] - r[f"{keys[-1]}/NPO weight/mean"])
    inside = _over(
        own, lambda r: r[f"{keys[-1]}/NPO weight/quarter 3/weight"] - r[f"{keys[-1]}/NPO weight/quarter 0/weight"]
    )
    verdict = (
        "holds here" if fall[1] > 0 and weight[-1][2] < 0.1 else ("holds in direction only" if fall[1] > 0 else UNKNOWN)
    )
    return [
        f"G5 NPO's weight stops early, going to 0 with p: {verdict} (mean weight {_text(weight[0])} then "
        f"{_text(weight[-1])} where the answers' probability is {_text(p[0])} then {_text(p[-1])}; highest less lowest "
        f"quarter of answers at the end {_text(inside)})."
    ]


def _g6(runs: Sequence[Record]) -> list[str]:
    own = _of(runs, "NPO")
    harm, forgetting = (
        _over(own, lambda r, on=on: _last(r, f"NPO weight/rank correlation/{on}")) for on in ("retain", "forget")
    )
    return [
        f"G6 NPO favours answers that harm retention less: {_sign(harm, -1)} (rank correlation of weight and retain "
        f"harm {_text(harm)}); these also contribute less to unlearning: {_sign(forgetting, -1)} ({_text(forgetting)})."
    ]


def _g7(runs: Sequence[Record]) -> list[str]:
    own = [*_of(runs, "GA + NLL"), *_of(runs, "GA + KL")]

    def per_seed(value: Callable[[Record], float]) -> tuple[float, float, float]:
        seeds = sorted({r["seed"] for r in own})
        return interval(float(np.mean([value(r) for r in own if r["seed"] == s])) for s in seeds)

    nll, kl = (per_seed(lambda r, n=n: _mean(r, f"{n}/retain/total")) for n in ("NLL", "KL"))
    more = per_seed(lambda r: _mean(r, "KL/retain/total") - _mean(r, "NLL/retain/total"))
    aside = per_seed(
        lambda r: max(abs(_mean(r, f"{n}/forget/total")) for n in ("NLL", "KL")) / abs(_mean(r, "GA/forget/total"))
    )
    helped = "holds here" if nll[1] > 0 and kl[1] > 0 else UNKNOWN
    little = "holds here" if aside[2] < 0.1 else "does not hold here" if aside[1] > 0.1 else UNKNOWN
    return [
        f"G7 both retain terms help: {helped} (retain effect of NLL {_text(nll)}, of KL {_text(kl)}); KL's is larger: "
        f"{_sign(more, 1)} (KL less NLL {_text(more)}); neither touches unlearning (less than a tenth of GA's effect): "
        f"{little} ({_text(aside)} of it)."
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
            n: [retained_at(r, 0.8) for r in _of(records, method) if r["n_forget"] == n]
            for n in sorted({r["n_forget"] for r in records})
        }
        known = {n: interval(v) for n, v in by_size.items() if v and np.isfinite(v).all()}
        shown = ", ".join(f"{n} rows {_text(v)}" for n, v in known.items())
        missing = [str(n) for n in by_size if n not in known]
        if len(known) > 1:
            small, large = min(known), max(known)
            less = interval(np.subtract(by_size[small], by_size[large]))
            verdict = _sign(less, 1)
        else:
            verdict = UNKNOWN
        lines.append(
            f"G8 bigger forget sets are harder ({method}): {verdict} (retain probability where forgetting reaches a "
            f"probability of 0.8: {shown or 'none'}{'; not reached with ' + ', '.join(missing) if missing else ''})."
        )
    return lines


def smaller_is_harder(large: Sequence[Record], small: Sequence[Record], whole: int) -> list[str]:
    """The other half of G8: what the same forgetting costs a model and a smaller one, trained alike."""
    lines = []
    for method in ("GA", "GA + NLL"):
        lost = []
        for records in (large, small):
            own = [r for r in _of(records, method) if r["status"] != "failed" and r["n_forget"] == whole]
            lost.append([r["0/probability/retain"] - retained_at(r, 0.8) for r in own])
        if any(not values or not np.isfinite(values).all() for values in lost):
            lines.append(f"G8 smaller models are harder ({method}): {UNKNOWN} (a run did not reach 0.8).")
            continue
        more = interval(np.subtract(lost[1], lost[0]))
        lines.append(
            f"G8 smaller models are harder ({method}): {_sign(more, 1)} (retain probability lost where forgetting "
            f"reaches 0.8: {_text(interval(lost[0]))}, in the smaller model {_text(interval(lost[1]))})."
        )
    return lines


def _g9(runs: Sequence[Record]) -> list[str]:
    own = _of(runs, "GA")

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
    ideal = interval(_last(r, "ideal without harm/forgetting") / last_map(r)["GA/0.0"][0] for r in without)
    held = interval(_last(r, "ideal without harm/harm") / last_map(r)["GA/0.0"][1] for r in without)
    return [
        f"G10 weighting tokens is promising: {_sign(more, 1)} by gradients late in GA's run (forgetting less harm per "
        f"weight, best published weighting less GA: {_text(more)}). The ideal weighting, with at most 5 times the "
        f"uniform weight on a token and no harm to the rows it was chosen by, forgets {_text(ideal)} times as fast as "
        f"GA and does {_text(held)} of its harm to other retain rows ({len(without)} of {len(own)} runs).",
        "G9 is judged by outcomes at equal retention: see analyses.method_families.",
    ]
