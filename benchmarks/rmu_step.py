"""What one RMU step costs when nothing frozen is computed anew. Goals: 0.2 of a naive step at L=16, 0.12 at L=32.

Naive is two whole forwards of the model with ``output_hidden_states`` and one of the frozen model, every parameter
with a gradient, layer 7 read from the list. Ours trains the MLP outputs of blocks 5 to 7.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import models
from benchmarks.timing import alternating, peak_mib, show
from probe.data import Batch
from probe.methods.rmu import random_target, rmu_parameters
from probe.objectives.frozen import CachedOriginal, NearCached, above_frozen
from probe.objectives.objective import Objective
from probe.objectives.representation import NearOriginal, TowardsTarget
from probe.sites import Site, matching_parameters
from probe.train import Term
from probe.train.step import Gradient, Piece, Step, plain_gradient

LAYER, ALPHA = 7, 100.0


def deep(layers: int) -> torch.nn.Module:
    """The benchmarks' Llama with another number of layers."""
    from transformers import LlamaForCausalLM

    config = models.model().config
    config.num_hidden_layers = layers
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def naive(model: torch.nn.Module, frozen: torch.nn.Module, target_D: torch.Tensor, sides: tuple[Batch, Batch]) -> None:
    """Both terms and their backward pass into every parameter's ``.grad``."""
    forget, retain = sides

    def states(one: torch.nn.Module, batch: Batch) -> torch.Tensor:
        return one(**batch.inputs, use_cache=False, output_hidden_states=True).hidden_states[LAYER + 1]

    with torch.no_grad():
        before_BTD = states(frozen, retain)
    loss = (states(model, forget) - target_D).square().mean()
    loss = loss + ALPHA * (states(model, retain) - before_BTD).square().mean()
    loss.backward()


def ours(model: torch.nn.Module, terms: list[Term]) -> Callable[[], Gradient]:
    """One call computes losses and gradients as a step of ``minimise`` does."""
    trained = matching_parameters(model, rmu_parameters(model, LAYER))
    for name, p in model.named_parameters():
        p.requires_grad_(name in trained)
    step = Step(0, 0, model, trained, terms, ("forget", "retain"), [[Piece(term.data, 1.0)] for term in terms])
    return lambda: plain_gradient(step)[1]


def compare(layers: int, n_rows: int, length: int, repeats: int) -> None:
    """All sides at one depth."""
    sides = (models.batch(n_rows, length, seed=0), models.batch(n_rows, length, seed=1))
    forget, retain = sides
    whole, stopped, kept, skipping, frozen = (deep(layers) for _ in range(5))
    target_D, site, first = random_target(whole, 6.5, 0), Site(LAYER), LAYER - 2
    towards = TowardsTarget(site, target_D)

    def terms(forget_objective: Objective, retain_objective: Objective) -> list[Term]:
        return [Term(1.0, forget_objective, forget), Term(ALPHA, retain_objective, retain)]

    def filled() -> list[Term]:
        states = CachedOriginal(frozen, retain, site)
        above = above_frozen(skipping, towards, forget, first)
        return terms(above, above_frozen(skipping, NearCached(states), retain, first))

    def plain_step() -> None:
        whole.zero_grad(set_to_none=True)
        naive(whole, frozen, target_D, sides)

    measured: dict[str, Callable[[], Any]] = {
        "naive": plain_step,
        "forward stops at l": ours(stopped, terms(towards, NearOriginal(frozen, site))),
        "... frozen states kept": ours(kept, terms(towards, NearCached(CachedOriginal(frozen, retain, site)))),
        "... blocks below kept too": ours(skipping, filled()),
    }
    plain_step()
    expected = {name: p.grad for name, p in whole.named_parameters()}
    for name in list(measured)[1:]:
        for parameter, found in measured[name]().items():
            judge = expected[parameter]
            torch.testing.assert_close(found, judge, rtol=1e-4, atol=1e-5 * judge.abs().max().item())
    del expected
    measured["(once: keeping all of it)"] = filled
    timings = alternating(measured, repeats)
    peaks = {}
    for name, side in measured.items():
        whole.zero_grad(set_to_none=True)
        peaks[name] = peak_mib(side)
    show(f"rmu_step: {layers} layers, l={LAYER}, {n_rows} x {length}, no optimiser", timings, peaks)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--rows", type=int, default=4)
    parser.add_argument("--length", type=int, default=128)
    settings = parser.parse_args()
    for layers in (16, 32):
        compare(layers, settings.rows, settings.length, settings.repeats)


if __name__ == "__main__":
    main()
