"""One layer of an unlearned model in the original: what it does to the answers, on rows that layers are chosen by."""

import math
from collections.abc import Iterator, Sequence
from typing import cast

import torch
from torch import nn

from probe.axes import PerLayerL
from probe.diagnostics.fragility import layer_map
from probe.methods.cru import changed_blocks
from probe.metrics.arrays import ArrayN
from probe.metrics.intervals import grouped
from probe.metrics.memorisation import answer_stats
from probe.questions import groups_of
from probe.report.conditions import Condition
from probe.report.measure import Sample
from probe.report.settings import Settings
from probe.rows import Row, over_layers
from probe.sites import n_layers
from probe.study.study import Study

_SIDES = ("forget", "retain")


def _probabilities(model: nn.Module, sample: Sample, settings: Settings) -> dict[str, ArrayN]:
    """Of each answer, on the rows that layers are chosen by."""
    sides = {on: getattr(sample.choosing, on) for on in _SIDES}
    return {
        on: answer_stats(model, batch, batch_size=settings.rows_per_pass).probability_N for on, batch in sides.items()
    }


def reference_fragility(study: Study, sample: Sample, settings: Settings) -> Iterator[Row]:
    """What single-layer scores are held against: the original and, if given, the retrained model."""
    for name, model in (("original", study.original), ("retrained", study.retrained)):
        if model is not None:
            for on, value_N in _probabilities(model, sample, settings).items():
                yield Row(name, "fragility", "probability", float(value_N.mean()), on)


def single_layer_rows(study: Study, sample: Sample, condition: Condition, settings: Settings) -> Iterator[Row]:
    """Which layers differ, answer probabilities with one of them in the original, and with the whole model.

    "change" rows are probabilities less the original's, row by row, with intervals over groups.
    """
    seen: list[dict[str, ArrayN]] = []

    def score(model: nn.Module) -> dict[str, float]:
        seen.append(_probabilities(model, sample, settings))
        return {on: float(value_N.mean()) for on, value_N in seen[-1].items()}

    with condition.applied() as model:
        changed = changed_blocks(study.original, model)
        found = layer_map(study.original, model, score=score)
    every = range(n_layers(study.original))
    yield from over_layers(condition.name, "fragility", "changed", every, [layer in changed for layer in every])
    score_L, whole = cast(dict[str, PerLayerL], found.score_L), cast(dict[str, float], found.unlearned)
    # The map asks the original and the unlearned model first, then every layer in turn.
    before, _, *mixed = seen
    for on, value_L in score_L.items():
        groups = groups_of(getattr(sample.choosing, f"{on}_rows"))
        for layer, value in enumerate(value_L.tolist()):
            yield Row(condition.name, "fragility", "probability", value, on, layer=layer)
            change = grouped(mixed[layer][on] - before[on], groups, within=(-1.0, 1.0))
            yield Row(condition.name, "fragility", "change", change.mean, on, layer, low=change.low, high=change.high)
        yield Row(condition.name, "fragility", "probability", whole[on], on)


def by_layer(rows: Sequence[Row]) -> tuple[dict[str, PerLayerL], tuple[int, ...]]:
    """What ``single_layer_rows`` gave: probabilities by side, and the layers that differ."""
    found: dict[str, list[float]] = {}
    for row in rows:
        if row.layer is not None and row.quantity == "probability":
            found.setdefault(row.on, []).append(math.nan if row.value is None else row.value)
    changed = tuple(row.layer for row in rows if row.layer is not None and row.quantity == "changed" and row.value)
    return {on: torch.tensor(value_L, dtype=torch.float64) for on, value_L in found.items()}, changed
