"""From the zoo's numbers to the fitted verdict and its error rates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from analyses.zoo.examine import PARTS, REFERENCE, truth
from analyses.zoo.models import MEMBERS
from analyses.zoo.validate import HeldOutVerdicts, Roc, fit_all, leave_groups_out, roc
from probe.sweep import load
from probe.verdict.features import Feature, features, verdict_features
from probe.verdict.judge import KINDS, Counts, Judge
from probe.verdict.logistic import CLASSES
from probe.verdict.rows import Protocol

ORIGINAL = "the original"


@dataclass(frozen=True, eq=False)
class Zoo:
    """All examined models of all seeds, the references left out.

    Args:
        records: what was measured, with "seed".
        labels: the truth.
        families, seeds: of each model.
        baselines: the original's and the reference's numbers, by seed.
        moved: models whose truth is not that of their construction, in words.
    """

    records: tuple[dict[str, Any], ...] = field(repr=False)
    labels: tuple[str, ...]
    families: tuple[str, ...]
    seeds: tuple[str, ...]
    baselines: dict[int, tuple[dict[str, Any], dict[str, Any]]] = field(repr=False)
    moved: tuple[str, ...]
    failed: tuple[str, ...]

    def table(self, which: Sequence[Feature], *, never: bool) -> np.ndarray:
        """Features, a row a model; with ``never`` the seed's reference is the floor."""
        rows = []
        for record in self.records:
            original, reference = self.baselines[record["seed"]]
            found = features(which, record, original, reference if never else None)
            rows.append([found[f.name] for f in which])
        table = np.array(rows)
        # As the verdict does: what says nothing takes the mean.
        return np.where(np.isnan(table), np.nanmean(table, axis=0), table)


def read_zoo(out: Path, seeds: int) -> Zoo:
    """Read the sweeps and settle what is true of each model.

    Raises:
        ValueError: an original or a reference is not there.
    """
    records, labels, baselines, moved, failed = [], [], {}, [], []
    by_name = {member.name: member for member in MEMBERS}
    for seed in range(seeds):
        read = [r for part in range(PARTS) for r in load(out / f"seed-{seed}-{part}")]
        found = {r["name"]: {**r, "seed": seed} for r in read if r["status"] == "ok"}
        if ORIGINAL not in found or REFERENCE.name not in found:
            again = "run `python -m analyses.zoo build` again"
            raise ValueError(f"seed {seed}: the original or the reference was not examined; {again}")
        original = found[ORIGINAL]
        baselines[seed] = (original, found[REFERENCE.name])
        for member in MEMBERS:
            if member.name not in found:
                failed.append(f"{member.name} (seed {seed})")
                continue
            record = found[member.name]
            told = record["forget_match"]
            kept = _scaled(record["retain_known"], original["retain_known"], original["retain_floor"])
            low = record.get("relearn_excess_low")
            label = truth(by_name[member.name].label, told, kept, low is not None and low > 0)
            if by_name[member.name].label not in (None, label):
                why = f"tells {told:.2f}, keeps {kept:.2f}, relearning excess {record.get('relearn_excess', 0):+.2f}"
                moved.append(f"{member.name} (seed {seed}): built as {by_name[member.name].label}, is {label} ({why})")
            records.append(record)
            labels.append(label)
    families = tuple(r["family"] for r in records)
    names = tuple(f"seed {r['seed']}" for r in records)
    return Zoo(tuple(records), tuple(labels), families, names, baselines, tuple(moved), tuple(failed))


def _scaled(value: float, top: float, floor: float) -> float:
    return (value - floor) / (top - floor)


@dataclass(frozen=True, eq=False)
class Findings:
    """Everything that validity.md tells.

    Args:
        zoo: the models.
        by_family, by_seed: cross-validations of the verdict without a retrained model.
        never, no_retain, no_relearning, outputs_only: the same by family with other features.
        rocs: by question, then diagnostic.
        dropped: change of accuracy and log loss by family when one diagnostic is left out.
        alone: accuracy and log loss of the family-wise verdict at one fixed penalty.
    """

    zoo: Zoo
    by_family: HeldOutVerdicts
    by_seed: HeldOutVerdicts
    variants: dict[str, HeldOutVerdicts]
    rocs: dict[str, dict[str, Roc]]
    dropped: dict[str, tuple[float, float]]
    grouped: dict[str, tuple[float, float]]


def find(zoo: Zoo) -> tuple[Findings, Judge]:
    """Cross-validate, fit, and try leaving diagnostics out."""
    all_of = verdict_features(retain=True)
    held, fits, errors = {}, {}, {}
    for (retain, never), kind in KINDS.items():
        which = verdict_features(retain=retain)
        table, names = zoo.table(which, never=never), [f.name for f in which]
        held[kind] = leave_groups_out(table, zoo.labels, zoo.families, names)
        fits[kind] = fit_all(table, zoo.labels, zoo.families, names)
        errors[kind] = error_counts(held[kind])
    main = held[KINDS[True, False]]
    variants = dict(held)
    for title, without in (
        ("without relearning", ("relearning",)),
        ("without any attack", ("relearning", "other attacks")),
        ("without weights", ("weights",)),
        ("outputs alone", ("relearning", "other attacks", "states", "weights")),
    ):
        which = verdict_features(retain=True, without=without)
        table = zoo.table(which, never=False)
        variants[title] = leave_groups_out(table, zoo.labels, zoo.families, [f.name for f in which])
    dropped, grouped = _drops(zoo, all_of, main.penalty)
    table = zoo.table(all_of, never=False)
    by_seed = leave_groups_out(table, zoo.labels, zoo.seeds, [f.name for f in all_of])
    identity = {
        "models": len(zoo.labels),
        "families": len(set(zoo.families)),
        "seeds": len(zoo.baselines),
        "labels": {one: zoo.labels.count(one) for one in CLASSES},
    }
    judge = Judge(Protocol(), identity, fits, errors)
    return Findings(zoo, main, by_seed, variants, rocs(zoo, all_of, table), dropped, grouped), judge


def error_counts(held: HeldOutVerdicts) -> dict[str, Counts]:
    """(wrong, given) over all verdicts that would be given, and among those of each class."""
    return {"all": held.wrong(), **{one: held.wrong(one) for one in CLASSES}}


def rocs(zoo: Zoo, which: Sequence[Feature], table: np.ndarray) -> dict[str, dict[str, Roc]]:
    """Each diagnostic alone, on three questions."""
    questions = {
        "hidden against removed": ("hidden", ("hidden", "removed")),
        "broken against the rest": ("broken", CLASSES),
        "untouched against the rest": ("untouched", CLASSES),
    }
    found: dict[str, dict[str, Roc]] = {}
    for title, (positive, among) in questions.items():
        rows = [i for i, label in enumerate(zoo.labels) if label in among]
        truths = [zoo.labels[i] == positive for i in rows]
        found[title] = {f.name: roc(table[rows, k].tolist(), truths) for k, f in enumerate(which)}
    return found


def _drops(
    zoo: Zoo, which: Sequence[Feature], penalty: float
) -> tuple[dict[str, tuple[float, float]], dict[str, tuple[float, float]]]:
    """Change of accuracy and of log loss without a diagnostic, and without a group of them."""

    def scores(kept: Sequence[Feature]) -> tuple[float, float]:
        held = leave_groups_out(
            zoo.table(kept, never=False),
            zoo.labels,
            zoo.families,
            [f.name for f in kept],
            penalties=[penalty],
            calibrate=False,
        )
        return held.accuracy, held.log_loss

    whole = scores(which)

    def change(kept: Sequence[Feature]) -> tuple[float, float]:
        accuracy, loss = scores(kept)
        return accuracy - whole[0], loss - whole[1]

    single = {f.name: change([g for g in which if g is not f]) for f in which}
    groups = {name: change([g for g in which if g.group != name]) for name in dict.fromkeys(f.group for f in which)}
    return single, groups
