"""Published claims about single layers, judged by the numbers of ``analyses.layer_maps``."""

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from analyses.shared import ANY, DIFFERENCE, FAILS, HOLDS, SHARE, UNKNOWN, Record, by_method, over_seeds
from probe.methods.cru import rank_sum
from probe.metrics.intervals import Interval

THIRDS = ("shallow", "middle", "deep")


def judged(runs: Sequence[Record], subject: str) -> list[str]:
    """One text a claim: whether it holds here, and the numbers that say so."""
    whole = [r for r in runs if len(changed(r)) == r["depth"]]
    part = {r["method"]: changed(r) for r in runs if len(changed(r)) < r["depth"]}
    head = [
        f"{subject}, {len({r['seed'] for r in runs})} seeds; 95 % t-intervals over seeds. Single blocks of the "
        "unlearned model put into the original; thirds of the depth are cut at L/3 and 2L/3, rounded."
    ]
    head += [
        f"{method} changes blocks {', '.join(map(str, layers))} alone, which settles where anything can happen: it is "
        "left out of the verdicts."
        for method, layers in part.items()
    ]
    if not whole:
        return [*head, "No method changes every block; nothing can be judged."]
    return [
        *head,
        *_texts(whole),
        *_u_shape(whole),
        *_shallow(whole),
        *_depths(whole),
        *_restored(whole),
        *_screening(runs),
        *_chosen(runs),
    ]


def changed(record: Record) -> list[int]:
    """The blocks that unlearning changed."""
    return [int(layer) for layer in record["changed"].split(",") if layer]


def thirds(depth: int) -> dict[str, range]:
    """The layers of each third."""
    cuts = (0, round(depth / 3), round(2 * depth / 3), depth)
    return {name: range(*cuts[i : i + 2]) for i, name in enumerate(THIRDS)}


def single(record: Record, on: str, metric: str, *, part: str = "block", into: str = "original") -> np.ndarray:
    """One number a layer."""
    return np.array([record[f"{into}/{part}/{i}-{i}/{on}/{metric}"] for i in range(record["depth"])], dtype=np.float64)


def in_thirds(value_L: np.ndarray) -> dict[str, float]:
    """The mean of each third."""
    return {name: float(value_L[list(layers)].mean()) for name, layers in thirds(len(value_L)).items()}


def less_others(values: Mapping[str, float], name: str) -> float:
    """One third less the mean of the two others."""
    return values[name] - float(np.mean([values[other] for other in THIRDS if other != name]))


def _per_method(
    runs: Sequence[Record], value: Callable[[Record], float], within: tuple[float, float] = DIFFERENCE
) -> dict[str, Interval]:
    return {name: over_seeds(map(value, own), within) for name, own in by_method(runs).items()}


def _verdict(found: Mapping[str, Interval], *, coarse: bool = False) -> str:
    # In a coarse measure, one word of a few texts, seeds that agree to the last digit tell nothing of their spread.
    told = [one for one in found.values() if one.low < one.high or not coarse]
    holds, contrary = (sum(one.side() == side for one in told) for side in (1, -1))
    if holds == len(found):
        return HOLDS
    if contrary == len(found):
        return FAILS
    if not holds and not contrary:
        return UNKNOWN
    return f"holds for {holds} of {len(found)} methods, the contrary for {contrary}"


def _listed(found: Mapping[str, Interval]) -> str:
    return "; ".join(f"{name} {one:.3g}" for name, one in found.items())


def _texts(runs: Sequence[Record]) -> list[str]:
    """L1 to L3: each third against the two others, by what the claim says of it."""

    def of(record: Record, name: str) -> dict[str, float]:
        found = {where: record[f"text/{where}/{name}"] for where in THIRDS}
        return {where: float("nan") if value is None else value for where, value in found.items()}

    def looped(record: Record) -> dict[str, float]:
        return {where: 1 - value for where, value in of(record, "distinct_2").items()}

    def altered(record: Record) -> dict[str, float]:
        return {where: 1 - value for where, value in of(record, "same_as_original").items()}

    claims = (
        ("L1 shallow layers change the spelling of words", "shallow", "misspelt words", lambda r: of(r, "misspelt")),
        ("L2 middle layers change the whole sentence", "middle", "1 - ROUGE-L with the original's text", altered),
        ("L3 deep layers give repeated tokens", "deep", "share of repeated token pairs", looped),
    )
    lines = []
    for claim, where, what, values in claims:
        more = _per_method(runs, lambda r, values=values, where=where: less_others(values(r), where))  # type: ignore[misc]
        means = {
            name: over_seeds(values(r)[name] for r in runs)  # type: ignore[no-untyped-call]
            for name in THIRDS
        }
        shown = ", ".join(f"{name} {means[name].mean:.3f}" for name in THIRDS)
        lines.append(
            f"{claim}: {_verdict(more, coarse=True)} ({what}, {where} third less the others: {_listed(more)}; "
            f"all: {shown})."
        )
    right = _per_method(runs, lambda r: -less_others(of(r, "misspelt"), "middle"))
    lines.insert(
        2,
        f"   and leave its words rightly spelt: {_verdict(right, coarse=True)} (misspelt words, other thirds less the "
        f"middle one: {_listed(right)}).",
    )
    for model in ("original", "unlearned"):
        kept = {
            name: float(np.nanmean([np.nan if (v := r[f"text/{model}/{name}"]) is None else v for r in runs]))
            for name in ("misspelt", "distinct_2", "repeated")
        }
        lines.append(
            f"   the {model} model itself: misspelt {kept['misspelt']:.3f}, repeated pairs "
            f"{1 - kept['distinct_2']:.3f}, a token right after itself {kept['repeated']:.3f}."
        )
    return lines


def _u_shape(runs: Sequence[Record]) -> list[str]:
    def ends_less_middle(record: Record) -> float:
        return -less_others(in_thirds(single(record, "retain", "probability")), "middle")

    found = _per_method(runs, ends_less_middle)
    fell = _per_method(runs, lambda r: r["whole/original/retain/probability"] - r["whole/unlearned/retain/probability"])
    return [
        f"L4 utility is U-shaped in depth, middle layers cost most: {_verdict(found)} (retain probability with one "
        f"block replaced, outer thirds less the middle one: {_listed(found)}; the whole model loses {_listed(fell)})."
    ]


def _shallow(runs: Sequence[Record]) -> list[str]:
    def gained(record: Record) -> float:
        pair = (single(record, "forget", "forget_quality"), single(record, "retain", "probability"))
        return less_others(in_thirds(rank_sum(*map(torch.as_tensor, pair)).numpy()), "shallow")

    def quality(record: Record) -> float:
        return less_others(in_thirds(single(record, "forget", "forget_quality")), "shallow")

    def utility(record: Record) -> float:
        return less_others(in_thirds(single(record, "retain", "probability")), "shallow")

    # Ranks and ln p have no such ends as probabilities.
    ranks, fq, kept = (_per_method(runs, *one) for one in ((gained, ANY), (quality, ANY), (utility,)))
    return [
        f"L4 shallow layers keep utility and forget, so they are the ones to take: {_verdict(ranks)} (rank-sum, "
        f"shallow third less the others: {_listed(ranks)}).",
        f"   forget quality (ln p) of the shallow third is higher: {_verdict(fq)} ({_listed(fq)}); its retain "
        f"probability is higher: {_verdict(kept)} ({_listed(kept)}).",
    ]


def _depths(runs: Sequence[Record]) -> list[str]:
    lines = []
    for method, own in by_method(runs).items():
        worst = [int(single(r, "retain", "probability").argmin()) for r in own]
        best = [int(single(r, "forget", "probability").argmin()) for r in own]
        lines.append(
            f"   {method}: the block that costs most utility is {_counted(worst)}, the one that forgets most "
            f"{_counted(best)}, of 0..{own[0]['depth'] - 1}."
        )
    return lines


def _restored(runs: Sequence[Record]) -> list[str]:
    """The other way round: what one block of the original gives back to the unlearned model."""
    lines = []
    for method, own in by_method(runs).items():
        gains = [
            single(r, "forget", "probability", into="unlearned") - r["whole/unlearned/forget/probability"] for r in own
        ]
        most = over_seeds((gain_L.max() for gain_L in gains), DIFFERENCE)
        lines.append(
            f"   {method}: of the original's blocks in the unlearned model, forgetting is undone most by "
            f"{_counted([int(gain_L.argmax()) for gain_L in gains])}, by {most:.3g} of probability."
        )
    return lines


def _counted(values: Sequence[int]) -> str:
    return ", ".join(f"{v} ({values.count(v)} of {len(values)} seeds)" for v in sorted(set(values)))


def _screening(runs: Sequence[Record]) -> list[str]:
    def rank(record: Record, on: str) -> float:
        value = record[f"screening/{on}/spearman"]
        return float("nan") if value is None else value

    lines = []
    for on in ("forget", "retain"):
        found = _per_method(runs, lambda r, on=on: rank(r, on))  # type: ignore[misc]
        lines.append(f"Screening from one gradient, rank correlation with the exact map, {on} rows: {_listed(found)}.")
    return lines


def _chosen(runs: Sequence[Record]) -> list[str]:
    """CRU on the rows that chose nothing."""
    lines = [
        "CRU, layers chosen on one half of the authors, scored on the other: ln p of forget quality and retain "
        "probability."
    ]
    keys = {"forget/forget_quality": (-math.inf, 0.0), "retain/probability": SHARE}
    for method, own in by_method(runs).items():
        for end in ("original", "unlearned"):
            scores = ", ".join(_over(own, f"cru/{end}/{key}", within) for key, within in keys.items())
            lines.append(f"   {method}, {end}: {scores}")
        names = dict.fromkeys(tuple(k.split("/")[1:3]) for r in own for k in r if k.endswith("/layers"))
        for rule, k in names:
            layers = " | ".join(r[f"cru/{rule}/{k}/layers"] for r in own)
            scores = ", ".join(_over(own, f"cru/{rule}/{k}/{key}", within) for key, within in keys.items())
            lines.append(f"   {method}, {k} by {rule.replace('_', '-')}: {scores} (layers {layers}).")
    return lines


def _over(runs: Sequence[Record], key: str, within: tuple[float, float]) -> str:
    return f"{over_seeds((r[key] for r in runs), within):.3g}"
