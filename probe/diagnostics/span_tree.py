"""Variants of a model that differ in a span of blocks, as a tree: what two of them share runs once."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.axes import HiddenBTD
from probe.data import Batch
from probe.metrics.forward import device_of
from probe.metrics.tokens import TokenStats, token_numbers
from probe.replay import Replay, replayable
from probe.sites import Site, n_layers, place_of
from probe.weights import with_weights_of

Span = tuple[int, int]
# Each layer's part in the model that borrows and in the one that lends; None where both have the same bits.
Loans = tuple[tuple[nn.Module, nn.Module] | None, ...]


def replaceable(model: nn.Module, other: nn.Module, part: Literal["block", "attention", "mlp"]) -> Loans:
    """What ``model`` can borrow from ``other`` in each layer: modules with another bit somewhere in their weights.

    Raises:
        ValueError: the family has no such part.
    """
    found: list[tuple[nn.Module, nn.Module] | None] = []
    for layer in range(n_layers(model)):
        # The input's module is the whole part; Bloom's output leaves its last linear map.
        site = Site(layer, part, "in")
        ours, theirs = place_of(model, site).module, place_of(other, site).module
        weights = dict(theirs.named_parameters())
        same = all(torch.equal(p.data, weights[n].data.to(p.device, p.dtype)) for n, p in ours.named_parameters())
        found.append(None if same else (ours, theirs))
    return tuple(found)


def measured_spans(
    models: Mapping[str, nn.Module],
    batch: Batch,
    lent: Mapping[Any, Loans],
    spans: Sequence[Span],
    moments: bool,
    batch_size: int,
    progress: bool,
) -> tuple[dict[Any, TokenStats], int]:
    """Run every variant on every row.

    Args:
        models: "original" and "unlearned", in eval mode.
        batch: rows, on any device.
        lent: (model that borrows, part) -> what it borrows.
        spans: which blocks.
        moments: whether tokens carry mean and variance over the vocabulary.
        batch_size: rows per pass.
        progress: show a progress bar.

    Returns:
        the tokens' numbers, by (model that borrows, part, span) and by the models' names for the models as they are;
        and how many blocks ran for a batch of rows.

    Raises:
        ValueError: a variant gives NaN.
    """
    order = torch.argsort(batch.attention_BT.sum(1), stable=True)
    kept: dict[Any, list[Any]] = {}
    most = 0
    total = -(-len(batch) // batch_size) * len(lent) * len(spans)
    with tqdm(total=total, desc="variants", disable=not progress, leave=False) as bar:
        for rows in order.split(batch_size):
            calls = 0
            bases: dict[str, tuple[Replay, list[Any]]] = {}
            for name, model in models.items():
                replay = replayable(model, batch.select(rows).to(device_of(model)))
                bases[name] = (replay, _rows_of(replay, replay.final_BTD, moments))
                calls += len(replay.calls)
                _keep(kept, name, rows, len(batch), bases[name][1])
            for (name, part), loan in lent.items():
                replay, unchanged = bases[name]
                for span, final_BTD, spent in _walk(replay, loan, spans):
                    found = unchanged if final_BTD is None else _rows_of(replay, final_BTD, moments)
                    _keep(kept, (name, part, span), rows, len(batch), found)
                    calls += spent
                    bar.update()
            most = max(most, calls)
    return {key: _stats(key, found, moments) for key, found in kept.items()}, most


def _walk(replay: Replay, lent: Loans, spans: Sequence[Span]) -> Iterator[tuple[Span, HiddenBTD | None, int]]:
    """What leaves the last block under each span, or None if no bit differs there, and block runs since the last."""
    depth, spent = len(lent), 0
    for first in sorted({i for i, _ in spans}):
        lasts = {j for i, j in spans if i == first}
        hidden_BTD, unchanged = replay.entering(first), True
        for layer in range(first, max(lasts) + 1):
            loan = lent[layer]
            if unchanged and loan is None:
                hidden_BTD = replay.entering(layer + 1)
            else:
                with nullcontext() if loan is None else with_weights_of(*loan):
                    hidden_BTD = replay.run(layer, hidden_BTD)
                unchanged, spent = False, spent + 1
            if layer in lasts:
                spent += 0 if unchanged else depth - 1 - layer
                yield (first, layer), None if unchanged else replay.onward(layer + 1, hidden_BTD), spent
                spent = 0


def _rows_of(replay: Replay, final_BTD: HiddenBTD, moments: bool) -> list[Any]:
    """For each row its target tokens' numbers."""
    logits_NV = replay.logits(final_BTD)
    numbers = token_numbers(logits_NV, replay.target_N.to(logits_NV.device), moments)
    ends = replay.positions_BT.sum(1).cumsum(0)[:-1].cpu().numpy()
    columns = [
        [None] * len(replay.positions_BT)
        if whole_N is None
        else np.split((whole_N if whole_N.dtype == torch.bool else whole_N.double()).cpu().numpy(), ends)
        for whole_N in numbers
    ]
    return list(zip(*columns, strict=True))


def _keep(kept: dict[Any, list[Any]], key: Any, rows: Tensor, n: int, found: list[Any]) -> None:
    whole = kept.setdefault(key, [None] * n)
    for i, row in zip(rows.tolist(), found, strict=True):
        whole[i] = row


def _stats(key: Any, rows: list[Any], moments: bool) -> TokenStats:
    broken = sum(bool(np.isnan(row[0]).any()) for row in rows)
    if broken:
        raise ValueError(f"{key} gives NaN for {broken} of {len(rows)} rows; weights or an edit are broken")
    logp, correct, mean, variance = (tuple(column) for column in zip(*rows, strict=True))
    return TokenStats(logp, correct, mean if moments else None, variance if moments else None)
