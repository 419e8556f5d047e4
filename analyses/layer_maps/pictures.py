"""Figures and tables of ``analyses.layer_maps``, drawn from its records alone."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from analyses.layer_maps.claims import single
from analyses.shared import SHARE, Record, by_method, over_seeds, seed_row
from probe.figures.layers import lines, u_shape
from probe.figures.spans import growing_spans, part_lines, span_map
from probe.figures.style import new_figure, paper_style, save_figure
from probe.figures.texts import changed_texts
from probe.rows import Row, span_row

PROBABILITY = "probability"
LABEL = "probability of a token"


def draw(runs: Sequence[Record], out: Path, subject: str, venue: str = "neurips") -> None:
    """All figures and tables of the study."""
    rows = {method: map_rows(method, own) for method, own in by_method(runs).items()}
    together = [row for own in rows.values() for row in own]
    note = f"{subject}; means over {len({r['seed'] for r in runs})} seeds"
    banded = f"Bands: 95 % t-intervals over seeds. {note}"
    meta = {"study": "analyses.layer_maps", "subject": subject}
    folder = out / "figures"

    def saved(name: str, figure: Any, data: Any, caption: str) -> None:
        save_figure(figure, folder, name, data, metadata=meta, caption=caption)

    with paper_style(venue) as sizes:
        figure = new_figure(sizes.page, 1.9)
        data = u_shape(u_rows(runs), figure.subplots(1, 2))
        saved("u_shape", figure, data, f"One block of the unlearned model in the original. {note}.")
        figure = new_figure(sizes.page * 0.7, 2.0)
        data = lines(qualities(runs), ylabel="forget quality (ln p)", ax=figure.subplots())
        saved("forget_quality", figure, data, f"Forget quality with one block of the unlearned model. {note}.")
        for method, own in rows.items():
            figure = new_figure(sizes.page, 5.2)
            data = span_map(own, figure, metric=PROBABILITY, label=LABEL, into=("original", "unlearned"))
            saved(f"spans_{method}", figure, data, f"{method}: every span of blocks, both ways. {note}.")
        figure = new_figure(sizes.page, 2.9)
        data = part_lines(together, figure, metric=PROBABILITY, label=PROBABILITY)
        saved("parts", figure, data, f"Whole blocks, attention or mlp alone in the original. {banded}.")
        figure = new_figure(sizes.page, 2.9)
        data = growing_spans(together, figure, metric=PROBABILITY, label=PROBABILITY)
        saved("growing", figure, data, f"Spans of unlearned blocks that grow from either end. {banded}.")
    for method, (first, *_) in by_method(runs).items():
        changed_texts(examples(first), against="original").write(out / "tables", f"texts_{method}")


def map_rows(method: str, runs: Sequence[Record], metric: str = PROBABILITY) -> list[Row]:
    """The layer map of one method, means over seeds with their intervals."""
    rows = []
    for key in runs[0]:
        pieces = key.split("/")
        if pieces[-1] != metric:
            continue
        one = over_seeds((r[key] for r in runs), SHARE)
        # One seed has no interval.
        low, high = (one.low, one.high) if one.n > 1 else (None, None)
        if pieces[0] in ("original", "unlearned") and len(pieces) == 5:
            first, last = map(int, pieces[2].split("-"))
            where: dict[str, Any] = {"first": first, "last": last, "part": pieces[1], "into": pieces[0]}
            rows.append(span_row(method, metric, one.mean, pieces[3], **where, low=low, high=high, n=one.n))
        elif pieces[0] == "whole" and pieces[1] != "retrained":
            rows.append(span_row(method, metric, one.mean, pieces[2], into=pieces[1], low=low, high=high, n=one.n))
    return rows


def u_rows(runs: Sequence[Record]) -> list[Row]:
    """Single blocks of the unlearned model in the original, with the models as they are."""
    rows = []
    for method, own in by_method(runs).items():
        for on in ("forget", "retain"):
            whole = [r[f"whole/unlearned/{on}/{PROBABILITY}"] for r in own]
            rows.append(seed_row(method, "fragility", PROBABILITY, whole, on))
            for layer in range(own[0]["depth"]):
                alone = [single(r, on, PROBABILITY)[layer] for r in own]
                rows.append(seed_row(method, "fragility", PROBABILITY, alone, on, layer=layer))
    for model in ("original", "retrained"):
        for on in ("forget", "retain"):
            rows.append(Row(model, "fragility", PROBABILITY, runs[0][f"whole/{model}/{on}/{PROBABILITY}"], on))
    return rows


def qualities(runs: Sequence[Record]) -> dict[str, list[float]]:
    """ln p of forget quality by layer, mean over seeds; the original's as a flat line."""
    depth = runs[0]["depth"]
    found = {"original": [runs[0]["whole/original/forget/forget_quality"]] * depth}
    for method, own in by_method(runs).items():
        found[method] = list(np.mean([single(r, "forget", "forget_quality") for r in own], axis=0))
    return found


def examples(record: Record) -> list[tuple[str, dict[str, str]]]:
    """Question, and text of the models and of every layer replaced alone."""
    found = []
    place = 0
    while f"shown/{place}/question" in record:
        names = ["original", *(f"layer {layer}" for layer in range(record["depth"])), "unlearned"]
        found.append((record[f"shown/{place}/question"], {name: record[f"shown/{place}/{name}"] for name in names}))
        place += 1
    return found
