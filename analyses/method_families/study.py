"""Every method unlearns the testbed and is mixed with the original to equal retention."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from analyses.method_families.claims import judged, of_methods
from analyses.shared import Record, by_method, conclude, probability, seed_row
from analyses.subjects import subject
from probe.checkpoints import weights_hash
from probe.data import Split
from probe.datasets import rows_hash
from probe.figures.families import family_figure
from probe.figures.style import new_figure, paper_style, save_figure
from probe.methods.catalogue import method_named
from probe.methods.running import run_method
from probe.methods.sequential import requests, sequential
from probe.methods.unlearn import unlearn
from probe.methods.uwc import mixed, uwc
from probe.metrics.suite import answer_suite
from probe.modes import threads
from probe.objectives.token import SelectedTokens, ga
from probe.rows import Row
from probe.sweep import load, sweep

_RETAIN = {"retain_weight": 3.0}
_DIVERGENCE = {"lr": 3e-4, "steps": 60, **_RETAIN}
_REJECTION = {"lr": 1e-3, "steps": 60}
# The published choice, MLP outputs alone, has too little capacity in a model this small.
_RMU = {"lr": 3e-3, "steps": 60, "layer": 3, "alpha": 5.0, "parameters": r"^model\.layers\.[123]\."}
SETTINGS: dict[str, dict[str, Any]] = {
    "ga": {"lr": 3e-4, "steps": 12},
    "grad_diff": _DIVERGENCE,
    "ga_kl": _DIVERGENCE,
    "npo": {**_DIVERGENCE, "beta": 0.1},
    "simnpo": {**_DIVERGENCE, "beta": 2.5},
    "wga": {**_DIVERGENCE, "beta": 1.0},
    "tnpo": {**_DIVERGENCE, "beta": 4.0},
    "wtnpo": {**_DIVERGENCE, "beta": 4.0, "alpha": 1.5},
    "sat_imp": {**_DIVERGENCE, "beta1": 5.0, "beta2": 1.0},
    "max_entropy": {**_DIVERGENCE, "direction": "to-uniform", "positions": "answers"},
    "undial": {**_DIVERGENCE, "beta": 10.0},
    "ce_u": {"lr": 3e-4, "steps": 60},
    "rmu": {**_RMU, "coefficient": 20.0},
    "adaptive_rmu": {**_RMU, "scale": 2.0},
    "rr": {"lr": 3e-3, "steps": 60, "layers": [3], "alpha": 5.0},
    "idk": {**_REJECTION, **_RETAIN},
    "idk_ap": {**_REJECTION, **_RETAIN, "beta": 0.1},
    "idk_dpo": {**_REJECTION, **_RETAIN, "beta": 0.1},
    "alt_po": {**_REJECTION, **_RETAIN, "beta": 0.1},
}


# Not methods of their own, but what single claims are about.
VARIANTS: dict[str, dict[str, Any]] = {
    "npo alone": {"lr": 3e-4, "steps": 12, "beta": 0.1, "retain_weight": 0.0},
    "ga, likely half": {"lr": 3e-4, "steps": 12, "keep": "likely", "share": 0.5},
    "ga, unlikely half": {"lr": 3e-4, "steps": 12, "keep": "unlikely", "share": 0.5},
    "grad_diff in sequence": {"lr": 3e-4, "steps": 40, **_RETAIN},
    "idk in sequence": {"lr": 1e-3, "steps": 40, **_RETAIN},
}
REQUESTS = 5


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What is run."""

    out: Path = Path("results/method_families")
    """Folder of the study."""
    seeds: int = 3
    """Seeds of each method."""
    share: float = 0.95
    """Share of the original's retain score that a calibrated model keeps."""
    batch_size: int = 16
    """Rows of each term a step."""


def study(arguments: Arguments) -> Any:
    """The function of one cell: unlearn, measure as it is and calibrated."""
    bed = subject("testbed")
    retain = bed.split.retain
    # Rows to calibrate on and rows to report on are different authors' rows.
    choosing, reported = retain.select(range(100)), retain.select(range(400, 500))
    rows = bed.split.forget_rows[:50]

    def measured(model: Any, label: str) -> dict[str, float]:
        suite = answer_suite(
            model, bed.tokenizer, rows, bed.split.template, max_length=bed.split.max_length, with_generation=False
        )
        return {
            f"{label}_forget": float(suite.probability_N.mean()),
            f"{label}_extraction": float(suite.extraction_strength_N.mean()),
            f"{label}_choice": float((np.asarray(suite.rank_N) == 0).mean()),
            f"{label}_retain": probability(model, reported),
        }

    def in_sequence(name: str, common: dict[str, Any]) -> dict[str, float]:
        forget = bed.split.forget_rows
        size = len(forget) // REQUESTS
        tasks = [forget[i * size : (i + 1) * size] for i in range(REQUESTS)]
        splits = requests(bed.tokenizer, tasks, bed.split.retain_rows, max_length=bed.split.max_length)

        def recipe(model: Any, split: Split, original: Any) -> Any:
            return run_method(name, model, split, bed.tokenizer, supplies={"original": original}, **common)

        model = copy.deepcopy(bed.original)
        stages = sequential(model, splits, recipe, lambda m: probability(m, reported), reference="updated")
        return {f"lost after {s.request}": s.lost for s in stages} | measured(model, "raw")

    def run(method: str, seed: int, settings: dict[str, Any]) -> dict[str, float]:
        if method in ("original", "retrained"):
            model = bed.original if method == "original" else bed.retrained
            return {**measured(model, "raw"), **measured(model, "calibrated"), "alpha": 1.0}
        common = {**settings, "batch_size": arguments.batch_size}
        if method.endswith(" in sequence"):
            return in_sequence(method.removesuffix(" in sequence"), {**common, "seed": seed})
        if method.startswith("ga, "):
            unlearned = copy.deepcopy(bed.original)
            chosen_tokens = SelectedTokens(ga, keep=common.pop("keep"), share=common.pop("share"))
            unlearn(unlearned, bed.split, chosen_tokens, retain_weight=0.0, **common, seed=seed)
        else:
            unlearned = bed.unlearned(method.split()[0], common, seed=seed)
        found = uwc(bed.original, unlearned, lambda m: probability(m, choosing), share=arguments.share, tolerance=0.02)
        raw = measured(unlearned, "raw")
        with mixed(bed.original, unlearned, found.alpha):
            return {**raw, **measured(bed.original, "calibrated"), "alpha": found.alpha}

    identity = {
        "original": weights_hash(bed.original),
        "retrained": weights_hash(bed.retrained),
        "forget": rows_hash(bed.split.forget_rows),
        "share": arguments.share,
        "batch_size": arguments.batch_size,
        "torch": torch.__version__,
    }
    return run, identity


def as_rows(runs: list[Record]) -> list[Row]:
    """Mean over seeds with the 95 % t-interval of the mean."""
    return [
        seed_row(name, "family", quantity, values, label)
        for name, own in by_method(runs).items()
        for label in ("raw", "calibrated")
        for quantity in ("forget", "extraction", "choice", "retain")
        if (values := [r[f"{label}_{quantity}"] for r in own if f"{label}_{quantity}" in r])
    ]


def main(arguments: Arguments) -> None:
    """Run what is missing, then draw and judge."""
    seeds = range(arguments.seeds)
    cells = [{"method": name, "seed": 0, "settings": {}} for name in ("original", "retrained")]
    cells += [{"method": n, "seed": k, "settings": c} for k in seeds for n, c in {**SETTINGS, **VARIANTS}.items()]
    with threads(1):
        run, identity = study(arguments)
        sweep(run, cells, arguments.out, identity=identity)
    report(arguments.out)


def report(out: Path) -> None:
    """Figure, table and judgement from what is on disk."""
    records = load(out)
    runs = [r for r in records if r["status"] == "ok"]
    rows = as_rows(runs)
    families: dict[str, str] = {name: method_named(name).family for name in SETTINGS} | dict.fromkeys(
        VARIANTS, "variant"
    )
    with paper_style("neurips") as venue:
        figure = new_figure(venue.page, 3.4)
        drawn = family_figure(rows, figure, families)
        save_figure(
            figure,
            out / "figures",
            "method_families",
            drawn,
            metadata={"study": "analyses.method_families"},
            caption="Left: every method as it is. Right: forgetting once each keeps the stated share of the retain "
            "score. Means over seeds with 95 % t-intervals.",
        )
    (out / "methods.md").write_text(of_methods(rows), encoding="utf-8")
    (out / "table.csv").write_text(_csv(rows, families), encoding="utf-8")
    conclude(out, judged(rows, runs, REQUESTS), records)


def _csv(rows: list[Row], families: Mapping[str, str]) -> str:
    quantities = ("forget", "retain", "extraction", "choice")
    head = ["method", "family", *(f"{on} {quantity}" for on in ("raw", "calibrated") for quantity in quantities)]
    lines = [",".join(head)]
    for name in dict.fromkeys(row.intervention for row in rows):
        found = {f"{r.on} {r.quantity}": r.value for r in rows if r.intervention == name}
        numbers = ["" if found.get(column) is None else f"{found[column]:.3f}" for column in head[2:]]
        lines.append(",".join([name, families.get(name, "reference"), *numbers]))
    return "\n".join(lines) + "\n"
