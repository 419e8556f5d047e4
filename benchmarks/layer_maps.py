"""What layer maps cost against a whole forward a variant. Goals: single layers 1.65 and 1.8, all spans 2.5 and 2.7
times at 16 and 32 layers; with the whole teacher-forced suite 12 times a copy a layer and a pass a metric.
"""

import argparse
import copy
import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn

from benchmarks import models
from benchmarks.timing import Timing, alternating, peak_mib, show
from probe.data import Batch
from probe.diagnostics.layer_maps import every_span, replacement_map, single_layers
from probe.metrics.attacks import min_k, min_k_plus_plus, zlib_score
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.teacher_forced import TeacherForced, loss_and_probability
from probe.metrics.tokens import TokenStats, token_numbers
from probe.objectives.logprobs import before_targets, logits_at, next_tokens
from probe.objectives.token import nll
from probe.sites import blocks
from probe.weights import with_weights_of

TEXTS = tuple(f"the answer to question {i} is number {7 * i}" for i in range(16))
SUITE = TeacherForced(floor="0", k=0.2, texts=TEXTS)
Span = tuple[int, int]


def pair(depth: int, vocabulary: int) -> tuple[Any, Any]:
    """Two models of ``depth`` layers with other weights in every block."""
    found = []
    for seed in (0, 1):
        models.LAYERS, models.VOCABULARY = depth, vocabulary
        model = models.model().requires_grad_(False)
        generator = torch.Generator().manual_seed(seed)
        for p in model.model.layers.parameters():
            p.add_(torch.randn(p.shape, generator=generator), alpha=0.02 * seed)
        found.append(model)
    return found[0], found[1]


def rows(n: int, length: int) -> Batch:
    """Rows whose second half is the answer."""
    batch = models.batch(n, length)
    target_BT = batch.target_BT.clone()
    target_BT[:, : length // 2] = False
    return Batch(batch.tokens_BT, target_BT, batch.attention_BT, batch.group_B, batch.prompt_B)


def by_reference(original: nn.Module, unlearned: nn.Module, batch: Batch, spans: list[Span]) -> list[float]:
    """A whole forward a span, weights exchanged by reference; and one for each model as it is."""
    found = []
    with torch.no_grad():
        for first, last in spans:
            loans = [(blocks(original)[i], blocks(unlearned)[i]) for i in range(first, last + 1)]
            held = [with_weights_of(*loan) for loan in loans]
            for one in held:
                one.__enter__()
            found.append(float(nll(original, batch)))
            for one in held:
                one.__exit__(None, None, None)
        for model in (original, unlearned):
            nll(model, batch)
    return found


def a_copy_each(original: nn.Module, unlearned: nn.Module, batch: Batch, layers: list[int]) -> list[dict[str, float]]:
    """A copy of the model a layer, and a forward of all logits a metric; and those of both models as they are."""

    def tokens(model: nn.Module, moments: bool = False) -> TokenStats:
        with torch.no_grad():
            logits_NV = logits_at(model, batch, before_targets(batch))
            numbers = token_numbers(logits_NV, next_tokens(batch, before_targets(batch)), moments)
        cuts = before_targets(batch).sum(1).cumsum(0)[:-1].numpy()
        split = [None if x is None else tuple(np.split(x.numpy(), cuts)) for x in numbers]
        logp, correct, mean, variance = split
        assert logp is not None
        assert correct is not None
        logp = tuple(x.astype(np.float64) for x in logp)
        return TokenStats(logp, correct, mean, variance)

    metrics: dict[str, Callable[[nn.Module], float]] = {
        "loss": lambda m: float(tokens(m).loss_N.mean()),
        "probability": lambda m: float(tokens(m).probability_N.mean()),
        "extraction_strength": lambda m: float(
            np.mean([extraction_strength(x, floor="0") for x in tokens(m).matches()])
        ),
        "exact_memorisation": lambda m: float(np.mean([exact_memorisation(x) for x in tokens(m).matches()])),
        "zlib": lambda m: float(zlib_score(tokens(m).loss_N, TEXTS).mean()),
        "min_k": lambda m: float(min_k(tokens(m), 0.2).mean()),
        "min_k_plus_plus": lambda m: float(min_k_plus_plus(tokens(m, True), 0.2).mean()),
    }
    found = []
    for layer in layers:
        mixed = copy.deepcopy(original)
        blocks(mixed)[layer].load_state_dict(blocks(unlearned)[layer].state_dict())
        found.append({name: metric(mixed) for name, metric in metrics.items()})
    for model in (original, unlearned):
        found.append({name: metric(model) for name, metric in metrics.items()})
    return found


def compare(title: str, depth: int, n: int, length: int, spans: list[Span], timed: list[Span], repeats: int) -> None:
    """Print the map's time by that of whole forwards, which are timed on ``timed`` and scaled up."""
    original, unlearned = pair(depth, 512)
    batch = rows(n, length)
    found = replacement_map(original, unlearned, batch, loss_and_probability, spans=spans)
    loss_LL = found.score_LL("", "loss")
    for span, expected in zip(timed, by_reference(original, unlearned, batch, timed), strict=True):
        assert abs(loss_LL[span].item() - expected) < 1e-5, span
    sides = {
        "whole forwards, by reference": lambda: by_reference(original, unlearned, batch, timed),
        "replacement_map": lambda: replacement_map(original, unlearned, batch, loss_and_probability, spans=spans),
    }
    timings = alternating(sides, repeats)
    # At 32 layers three more runs of each side would take longer than the rest.
    show(title, timings, {name: peak_mib(side) for name, side in sides.items()} if depth < 32 else None)
    share = (len(timed) + 2) / (len(spans) + 2)
    if share < 1:
        print(f"  whole forwards were timed on {len(timed)} of {len(spans)} spans and both models")
    _gain(timings["replacement_map"], share)
    units = found.whole_calls / found.block_calls
    print(f"  block runs: {found.block_calls} for {found.whole_calls}, {units:.2f} times fewer")
    if depth < 32:
        print(f"  a batch gradient's peak: {peak_mib(lambda: _gradient(original, batch)):.1f} MiB", flush=True)


def _gain(timing: Timing, share: float) -> None:
    low, middle, high = (1 / (x * share) for x in (timing.high, timing.ratio, timing.low))
    print(f"  gain {middle:.2f} [{low:.2f}, {high:.2f}]")


def _gradient(model: nn.Module, batch: Batch) -> None:
    for p in model.parameters():
        p.requires_grad_(True)
    torch.autograd.grad(nll(model, batch), list(model.parameters()))
    for p in model.parameters():
        p.requires_grad_(False)


def suite(repeats: int) -> None:
    """Print the map with every metric against a copy a layer and a pass a metric."""
    depth, timed = 16, [0, 5, 10, 15]
    original, unlearned = pair(depth, 1024)
    batch = rows(len(TEXTS), 64)

    def ours() -> Any:
        return replacement_map(original, unlearned, batch, SUITE, moments=True)

    found, by_hand = ours(), a_copy_each(original, unlearned, batch, timed)
    for layer, expected in zip(timed, by_hand, strict=False):
        for name, value in expected.items():
            assert abs(found.score_L("", name)[layer].item() - value) < 1e-4, (name, layer)
    sides = {"a copy a layer, a pass a metric": lambda: a_copy_each(original, unlearned, batch, timed), "map": ours}
    timings = alternating(sides, repeats)
    show(f"suite: {depth} layers, {len(TEXTS)} x 64, {len(by_hand[0])} metrics", timings, {"map": peak_mib(ours)})
    print(f"  copies were timed on {len(timed)} of {depth} layers, and both models as they are")
    _gain(timings["map"], (len(timed) + 2) / (depth + 2))
    calls = depth * (depth + 2) * len(by_hand[0])
    print(f"  block runs: {found.block_calls} for {calls}, {calls / found.block_calls:.2f} times fewer", flush=True)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", choices=("single", "spans", "suite"), default=None)
    settings = parser.parse_args()
    if settings.only in (None, "single"):
        for depth, n in ((16, 8), (32, 4)):
            spans = list(single_layers(depth))
            title = f"single layers: {depth} layers, {n} x 64"
            compare(title, depth, n, 64, spans, spans, settings.repeats)
            gc.collect()
    if settings.only in (None, "spans"):
        for depth, n, every in ((16, 4, 8), (32, 2, 32)):
            spans = list(every_span(depth))
            title = f"all spans: {depth} layers, {n} x 48"
            compare(title, depth, n, 48, spans, spans[::every], settings.repeats)
            gc.collect()
    if settings.only in (None, "suite"):
        suite(settings.repeats)


if __name__ == "__main__":
    main()
