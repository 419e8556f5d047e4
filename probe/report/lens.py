"""One forget answer under the logit lens: its rows, and what they say."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from torch import nn

from probe.data import Batch
from probe.diagnostics.logit_lens import logit_lens
from probe.rows import Row, over_layers


def lens_rows(tokenizer: Any, forget: Batch, name: str, model: nn.Module) -> Iterator[Row]:
    """The logit lens on one forget answer: probability of each of its tokens at every layer."""
    row = forget.select(range(1))
    places = row.target_BT[0].nonzero()[:, 0].tolist()
    # One copy of the row for each token of its answer, with that token alone as the target.
    target_BT = torch.zeros(len(places), row.target_BT.shape[1], dtype=torch.bool, device=row.target_BT.device)
    target_BT[range(len(places)), places] = True
    found = logit_lens(model, replace(row.select([0] * len(places)), target_BT=target_BT))
    yield from over_layers(name, "logit_lens", "mute", found.layers, found.mute_L)
    for item, place in enumerate(places):
        # A single token loses its leading blank when it is decoded.
        piece = tokenizer.convert_ids_to_tokens(int(row.tokens_BT[0, place]))
        text = piece.replace("Ġ", " ").replace("▁", " ")
        for k, layer in enumerate(found.layers):
            value = float(found.logprob_LB[k, item].exp())
            yield Row(name, "logit_lens", "probability", value, text, layer=layer, item=item)


def what_the_lens_reads(rows: Sequence[Row]) -> list[str]:
    """Where each model stops reading half of what the original does, among layers where the lens reads the original."""
    mute = sorted({r.layer or 0 for r in rows if (r.intervention, r.quantity, r.value) == ("original", "mute", 1.0)})
    rows = [row for row in rows if row.quantity == "probability"]
    layers = sorted({row.layer for row in rows if row.layer is not None and row.layer not in mute})
    warned = [
        f"At layers {', '.join(map(str, mute))} the lens gives the original's own answer less than a uniform guess: it "
        "reads nothing there, of any model, and is not compared."
    ] * bool(mute)
    mean: dict[str, list[float]] = {}
    for name in dict.fromkeys(row.intervention for row in rows):
        own = [row for row in rows if row.intervention == name]
        mean[name] = [fmean(row.value or 0.0 for row in own if row.layer == layer) for layer in layers]
    before = mean.pop("original", None)
    if before is None or not layers:
        return warned
    lines, kept = warned, []
    for name, value_L in mean.items():
        lost = [value < whole / 2 for value, whole in zip(value_L, before, strict=True)]
        if not lost[-1]:
            kept.append(name)
            continue
        first = layers[len(lost) - next((i for i, one in enumerate(reversed(lost)) if not one), len(lost))]
        lines.append(
            f"{name}: from layer {first} on less than half of what the original reads ({value_L[-1]:.2f} at the end)."
        )
    if kept:
        lines.append(
            f"At more than half of the original's mean probability up to the end: {', '.join(kept)}. Most tokens of an "
            "answer are its form, which models know that never knew the fact."
        )
    return lines
