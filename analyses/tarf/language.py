"""TARF on the testbed: half of each forget author's facts are listed, all of them are to be forgotten."""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from analyses.shared import FAILS, paired, verdict
from analyses.tarf.claims import POINTS, Numbers, gap, rows_of
from probe.data import Batch, Split, make_split
from probe.methods.baselines import ga, grad_diff, npo
from probe.methods.classwise import fine_tune, scrub
from probe.methods.tarf import Annealing, Selection, TARFResult, TopGroups, TopShare, tarf
from probe.metrics.intervals import Interval
from probe.metrics.memorisation import answer_stats
from probe.metrics.privacy import auc
from probe.rows import append
from probe.testbed import load as load_testbed
from probe.testbed.bed import Bed

LISTED_PER_AUTHOR, STEPS, BATCH = 5, 30, 16
RETAIN_MEASURED = 4  # every fourth of the 900 retained facts
# Found on seed 100, which is not reported: two learning rates for the others, three settings for TARF.
LR, LR_TARF = 3e-4, 5e-4
ANNEALING = Annealing(k0=1.0, t1=5, t0=20)
PARTS = ("listed", "unlisted", "retain", "world")


@dataclass(frozen=True)
class Case:
    """What is given to a method, and which of the remaining rows belong to the concept."""

    split: Split = field(repr=False)
    truth_N: torch.Tensor = field(repr=False)
    seed: int


def case(bed: Bed, seed: int) -> Case:
    """Five facts of each forget author listed; the other five come first among the remaining rows."""
    generator = torch.Generator().manual_seed(seed)
    listed, unlisted = [], []
    for author in dict.fromkeys(row.group for row in bed.split.forget_rows):
        own = [row for row in bed.split.forget_rows if row.group == author]
        chosen = set(torch.randperm(len(own), generator=generator)[:LISTED_PER_AUTHOR].tolist())
        listed += [row for i, row in enumerate(own) if i in chosen]
        unlisted += [row for i, row in enumerate(own) if i not in chosen]
    split = make_split(bed.tokenizer, listed, [*unlisted, *bed.split.retain_rows])
    return Case(split, torch.arange(len(split.retain)) < len(unlisted), seed)


def measured(model: nn.Module, at: Case, bed: Bed) -> Numbers:
    """Percent of facts whose answer is recalled exactly, part by part."""

    def recall(batch: Batch) -> float:
        return 100 * float(np.mean([match_T.all() for match_T in answer_stats(model, batch).correct]))

    places = (~at.truth_N).nonzero()[:, 0][::RETAIN_MEASURED]
    parts = (at.split.forget, at.split.retain.select(at.truth_N.nonzero()[:, 0]), at.split.retain.select(places))
    return dict(zip(PARTS, map(recall, (*parts, bed.world_batch)), strict=True))


def methods(bed: Bed, at: Case) -> dict[str, Callable[[nn.Module], Any]]:
    """Every method with as many steps and rows, but GA, which has nothing to hold the rest: it stops with phase I."""
    common: dict[str, Any] = {"lr": LR, "batch_size": BATCH, "seed": at.seed}
    share = float(at.truth_N.float().mean())
    halves = {"rounds": 4, "leaving_rounds": 2, "leave_steps": 4, "stay_steps": STEPS // 4}

    def with_selection(select: Selection) -> Callable[[nn.Module], TARFResult]:
        settings = {**common, "lr": LR_TARF}
        return lambda model: tarf(model, at.split, annealing=ANNEALING, select=select, steps=STEPS, **settings)

    return {
        "FT": lambda model: fine_tune(model, at.split, steps=STEPS, **common),
        "GA": lambda model: ga(model, at.split, steps=ANNEALING.t1, **common),
        "GradDiff": lambda model: grad_diff(model, at.split, retain_weight=1.0, steps=STEPS, **common),
        "NPO": lambda model: npo(
            model, at.split, original=bed.original, beta=0.1, retain_weight=1.0, steps=STEPS, **common
        ),
        "SCRUB": lambda model: scrub(model, at.split, original=bed.original, alpha=0.1, gamma=1.0, **halves, **common),
        "TARF": with_selection(TopShare(share)),
        "TARF (told)": with_selection(lambda rise_N, group_N: at.truth_N),
        "TARF (all retained)": with_selection(TopShare(0.0)),
    }


def study(bed: Bed, seed: int) -> dict[str, Numbers]:
    """All methods on one draw of the listed facts."""
    at = case(bed, seed)
    goal = measured(bed.retrained, at, bed)
    runs = {"original": measured(bed.original, at, bed), "retrained": goal}
    for name, run in methods(bed, at).items():
        model = copy.deepcopy(bed.original)
        result = run(model)
        runs[name] = measured(model, at, bed)
        if isinstance(result, TARFResult):
            by_author_N = TopGroups(len({row.group for row in bed.split.forget_rows}))(
                result.rise_N, at.split.retain.group_B
            )
            runs[name] |= {
                "found": 100 * result.dropped_N[at.truth_N].float().mean().item(),
                "found_by_author": 100 * by_author_N[at.truth_N].float().mean().item(),
                "rise_auroc": auc(result.rise_N[~at.truth_N].numpy(), result.rise_N[at.truth_N].numpy()),
            }
    return {name: {**numbers, "gap": gap(numbers, goal, PARTS)} for name, numbers in runs.items()}


def table(studies: Sequence[dict[str, Numbers]]) -> str:
    """Means over seeds, one line a method."""
    heads = (*PARTS, "gap", "found", "rise_auroc")
    lines = [f"{'':22s}" + "".join(f"{head:>11s}" for head in heads)]
    for name, first in studies[0].items():
        means = [float(np.mean([s[name][h] for s in studies])) if h in first else None for h in heads]
        lines.append(f"{name:22s}" + "".join(f"{'' if mean is None else round(mean, 2):>11}" for mean in means))
    return "\n".join(lines)


def claims(studies: Sequence[dict[str, Numbers]]) -> str:
    """What the numbers say of T1, T2 and T3 where a part of each author's facts is listed."""

    def of(name: str, quantity: str) -> list[float]:
        return [study[name][quantity] for study in studies]

    conventional = [n for n in studies[0] if n not in ("original", "retrained") and not n.startswith("TARF")]
    best = min(conventional, key=lambda name: float(np.mean(of(name, "gap"))))
    spread = [f"{n} {np.mean(of(n, 'listed')):.0f} and {np.mean(of(n, 'unlisted')):.0f}" for n in conventional]
    left = paired(of(best, "unlisted"), of("retrained", "unlisted"), POINTS)
    rise = paired(of("TARF", "rise_auroc"), [0.5] * len(studies), (-0.5, 0.5))
    nearer = paired(of(best, "gap"), of("TARF", "gap"), POINTS)
    told = paired(of(best, "gap"), of("TARF (told)", "gap"), POINTS)
    share = 100 * LISTED_PER_AUTHOR * 10 / 950

    def judged(found: Interval) -> str:
        return FAILS if found.high <= 0 else verdict(found)

    return "\n".join(
        [
            f"Testbed, {len(studies)} draws of the listed facts, 95 % t-intervals over them; recall in percent.",
            "",
            table(studies),
            "",
            f"T1 conventional methods fail when only part of the concept is listed: {judged(left)}",
            f"  recall of listed and of unlisted facts: {'; '.join(spread)}. The nearest to retraining, {best}, "
            f"recalls {left:+.1f} points more unlisted facts than the retrained model.",
            f"T2 listed and unlisted facts of an author are entangled: {judged(rise)}",
            f"  ascent on listed facts raises the loss of an unlisted fact of the same authors more than that of "
            f"another author's fact with probability 0.5 {rise:+.2f}.",
            f"T3 TARF comes nearer to retraining than conventional methods: {judged(nearer)}",
            f"  Gap of {best} less Gap of TARF {nearer:+.1f}; less Gap of TARF told which rows to drop "
            f"{told:+.1f}. The selection finds {np.mean(of('TARF', 'found')):.0f} % of the unlisted facts (chance "
            f"{share:.0f} %), and {np.mean(of('TARF', 'found_by_author')):.0f} % if it picks whole authors (chance "
            "10 %).",
        ]
    ) + "\n"  # fmt: skip


def main(*, out: Path = Path("results/tarf_language"), seeds: tuple[int, ...] = (0, 1, 2)) -> None:
    """Run all of it.

    Args:
        out: folder of the run; rows of an earlier run are replaced.
        seeds: draw the listed facts and the order of rows; at least two.
    """
    if len(set(seeds)) < 2:
        raise SystemExit(f"expected two or more seeds, for intervals are over seeds; got {seeds}")
    out.mkdir(parents=True, exist_ok=True)
    (out / "rows.jsonl").unlink(missing_ok=True)
    bed = load_testbed()
    studies = [study(bed, seed) for seed in seeds]
    for name in studies[0]:
        append(out / "rows.jsonl", rows_of(name, [one[name] for one in studies], "tarf_language", "half listed"))
    text = claims(studies)
    (out / "claims.txt").write_text(text)
    print(text)
