"""Rows of the gallery that come from studies: their records where they were run, else a small run of the same code."""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from analyses.calibrated import study as calibrated_study
from analyses.calibrated.measures import OPTIONS
from analyses.calibrated.numbers import ATTACKS, methods_of, seeds
from analyses.calibrated.pictures import reliability_rows, rows_of
from analyses.g_effects import study as g_effects
from analyses.layer_maps import study as layer_maps
from analyses.layer_maps.claims import single
from analyses.layer_maps.pictures import examples, map_rows, u_rows
from analyses.shared import Record, by_method, finished, seed_row
from analyses.subjects import Subject, Where, subject
from probe.rows import Row
from probe.sweep import load, sweep

# What a small run takes on, where the whole study was not run.
_FEW = ("ga", "grad_diff", "npo", "rmu")
_GRADIENTS = ("NPO", "GA + NLL", "GA + KL", "NPO + NLL", "WGA + NLL", "TNPO + NLL")


def runs(study: str, results: Path, own: Path) -> list[Record]:
    """Runs of a study on the testbed: the whole study's if it was run, else those of a small run in ``own``."""
    whole = results / f"{study}_testbed"
    if (whole / "results.jsonl").is_file():
        return finished(load(whole))
    chosen = subject("testbed")
    run, cells = _SMALL[study](chosen)
    sweep(run, cells, own, identity=chosen.identity() | {"study": study})
    return finished(load(own))


def _small_g_effects(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    run = g_effects.study(g_effects.Arguments(seeds=1, steps=20), chosen)
    whole = len(chosen.split.forget)
    return run, [{"method": m, "seed": 0, "n_forget": whole} for m in _GRADIENTS]


def _small_layer_maps(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    run = layer_maps.study(chosen, layer_maps.known_words(chosen, Where()))
    return run, [{"method": m, "seed": 0} for m in ("GradDiff", "RMU")]


def _small_calibrated(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    run = calibrated_study.study(calibrated_study.Arguments(seeds=1), chosen)
    known = calibrated_study.settings("testbed")
    cells = [{"method": name, "seed": 0, "settings": {}} for name in calibrated_study.REFERENCES]
    return run, cells + [{"method": name, "seed": 0, "settings": known[name]} for name in _FEW]


_SMALL = {
    "g_effects": _small_g_effects,
    "layer_maps": _small_layer_maps,
    "calibrated": _small_calibrated,
}


def maps(found: list[Record]) -> Iterator[Row]:
    """Layer maps of every method, forget quality with one layer replaced, and the texts of one method."""
    methods = by_method(found)
    for method, own in methods.items():
        yield from map_rows(method, own)
    yield from u_rows(found)
    yield from _qualities(found)
    shown = list(methods)[-1]
    first = methods[shown][0]
    for item, (question, texts) in enumerate(examples(first)):
        yield Row("question", "replaced_text", "text", None, question, item=item)
        for name, text in texts.items():
            layer = int(name.split()[1]) if name.startswith("layer ") else None
            who = "original" if name == "original" else shown
            yield Row(who, "replaced_text", "text", None, text, layer=layer, item=item)


def _qualities(found: list[Record]) -> Iterator[Row]:
    key = "forget_quality_ln_p"
    first = found[0]
    for model in ("original", "retrained"):
        yield Row(model, "fragility", key, first[f"whole/{model}/forget/forget_quality"], "forget")
    floor = first.get("whole/original/forget/floor")
    if floor is not None:
        yield Row("", "fragility", "forget_quality_floor", math.exp(floor), "forget")
    ln_p = (-math.inf, 0.0)
    for method, own in by_method(found).items():
        whole = [r["whole/unlearned/forget/forget_quality"] for r in own]
        yield seed_row(method, "fragility", key, whole, "forget", within=ln_p)
        by_layer = [single(r, "forget", "forget_quality") for r in own]
        for layer in range(own[0]["depth"]):
            one = [float(values[layer]) for values in by_layer]
            yield seed_row(method, "fragility", key, one, "forget", within=ln_p, layer=layer)


def calibrated(found: list[Record]) -> Iterator[Row]:
    """Scores as trained and calibrated, along the way, under attacks; which metric to trust."""
    plain = [r for r in found if "(" not in r["method"]]
    yield from rows_of(plain)
    yield Row("", "raw", "guess", 1 / OPTIONS)
    yield from reliability_rows(found, "raw")
    for name in [*methods_of(plain), "retrained"]:
        for attack in ATTACKS:
            values = 1 - seeds(plain, name, f"raw + {attack}/extraction_strength")
            if len(values):
                yield seed_row(name, "robustness", attack, values, "forget")
