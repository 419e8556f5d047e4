"""Rows of the gallery that come from studies: their records where they were run, else a small run of the same code."""

from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from analyses import calibrated_comparison, g_effects, layer_maps
from analyses.calibrated.measures import OPTIONS
from analyses.calibrated.numbers import ATTACKS, methods_of, seeds
from analyses.calibrated.pictures import reliability_rows, rows_of
from analyses.g_effects.claims import interval
from analyses.g_effects.pictures import rows_of as g_effect_rows_of
from analyses.layer_maps.claims import single
from analyses.layer_maps.pictures import examples, map_rows, u_rows
from analyses.subjects import Subject, subject
from probe.rows import Row
from probe.sweep import load, sweep

Record = Mapping[str, Any]
# What a small run takes on, where the whole study was not run.
_FEW = ("ga", "grad_diff", "npo", "rmu")
_GRADIENTS = ("NPO", "GA + NLL", "GA + KL", "NPO + NLL", "WGA + NLL", "TNPO + NLL")


def records(study: str, results: Path, own: Path) -> list[Record]:
    """Records of a study on the testbed: the whole study's if it was run, else those of a small run in ``own``."""
    whole = results / f"{study}_testbed"
    if (whole / "results.jsonl").is_file():
        return [r for r in load(whole) if r["status"] != "failed"]
    chosen = subject("testbed")
    run, cells = _SMALL[study](chosen)
    sweep(run, cells, own, identity=chosen.identity() | {"study": study})
    return [r for r in load(own) if r["status"] != "failed"]


def _small_g_effects(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    run = g_effects.study(g_effects.Arguments(seeds=1, steps=20), chosen)
    whole = len(chosen.split.forget)
    return run, [{"method": m, "seed": 0, "n_forget": whole} for m in _GRADIENTS]


def _small_layer_maps(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    from analyses.subjects import Where

    run = layer_maps.study(chosen, layer_maps.known_words(chosen, Where()))
    return run, [{"method": m, "seed": 0} for m in ("GradDiff", "RMU")]


def _small_calibrated(chosen: Subject) -> tuple[Any, list[dict[str, Any]]]:
    run = calibrated_comparison.study(calibrated_comparison.Arguments(seeds=1), chosen)
    known = calibrated_comparison.settings("testbed")
    cells = [{"method": name, "seed": 0, "settings": {}} for name in calibrated_comparison.REFERENCES]
    return run, cells + [{"method": name, "seed": 0, "settings": known[name]} for name in _FEW]


_SMALL = {
    "g_effects": _small_g_effects,
    "layer_maps": _small_layer_maps,
    "calibrated_comparison": _small_calibrated,
}


def gradients(found: list[Record]) -> Iterator[Row]:
    """G-effects over steps, by layer, by layer and step; weights of NPO."""
    yield from g_effect_rows_of(found)


def maps(found: list[Record]) -> Iterator[Row]:
    """Layer maps of every method, forget quality with one layer replaced, and the texts of one method."""
    methods = list(dict.fromkeys(r["method"] for r in found))
    for method in methods:
        yield from map_rows(method, [r for r in found if r["method"] == method])
    yield from u_rows(found)
    yield from _qualities(found)
    shown = methods[-1]
    first = next(r for r in found if r["method"] == shown)
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
        from math import exp

        yield Row("", "fragility", "forget_quality_floor", exp(floor), "forget")
    for method in dict.fromkeys(r["method"] for r in found):
        own = [r for r in found if r["method"] == method]
        whole = interval([r["whole/unlearned/forget/forget_quality"] for r in own])
        yield _ends(Row(method, "fragility", key, whole[0], "forget", n=len(own)), whole)
        by_layer = [single(r, "forget", "forget_quality") for r in own]
        for layer in range(own[0]["depth"]):
            one = interval([float(values[layer]) for values in by_layer])
            yield _ends(Row(method, "fragility", key, one[0], "forget", layer=layer, n=len(own)), one)


def _ends(row: Row, found: tuple[float, float, float]) -> Row:
    # ln p cannot rise above 0.
    return replace(row, low=found[1], high=min(0.0, found[2])) if (row.n or 0) > 1 else row


def calibrated(found: list[Record]) -> Iterator[Row]:
    """Scores as trained and calibrated, along the way, under attacks; which metric to trust."""
    plain = [r for r in found if "(" not in r["method"]]
    yield from rows_of(plain)
    yield Row("", "raw", "guess", 1 / OPTIONS)
    yield from reliability_rows(found, "raw")
    for name in [*methods_of(plain), "retrained"]:
        for attack in ATTACKS:
            values = 1 - seeds(plain, name, f"raw + {attack}/extraction_strength")
            if not len(values):
                continue
            one = interval(values)
            row = Row(name, "robustness", attack, one[0], "forget", n=len(values))
            ends = {"low": max(0.0, one[1]), "high": min(1.0, one[2])}
            yield replace(row, **ends) if len(values) > 1 else row
