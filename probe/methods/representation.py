"""Methods on hidden states besides RMU: its adaptive form, and representation rerouting (circuit breakers).

>>> unlearned = study.unlearn("rr", layers=[2, 4], alpha=10, lr=3e-4, steps=2, batch_size=4)
"""

from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from probe.data import Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.rmu import MLP_OUTPUTS, RMUResult, adaptive_coefficient, block_parameters, rmu
from probe.methods.unlearn import check_original
from probe.methods.words import TOKENS, Form, Tokens, meant
from probe.objectives.objective import Objective
from probe.objectives.representation import (
    DistanceFromOriginal,
    HiddenStatesFromOriginal,
    OrthogonalToOriginal,
    TokenChoice,
    real_tokens,
)
from probe.objectives.token import position_mean
from probe.sites import Site, n_layers
from probe.train import History, Step, Term, minimise
from probe.train.step import Gradient, Losses


@method(
    "representation",
    "RMU with |u| = scale mean |h0(forget)|",
    "Huu-Tien et al., arXiv 2408.06223",
    trains=MLP_OUTPUTS,
    published={
        "zephyr-7b": Published(
            "code of Huu-Tien et al., arXiv 2408.06223, WMDP, Zephyr-7B",
            {"layer": 7, "scale": 5.0, "alpha": 1200.0, "tokens": "all", "steps": 500, "lr": 5e-5, "batch_size": 4},
        )
    },
)
def adaptive_rmu(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    layer: int,
    scale: float,
    alpha: float,
    batch_size: int,
    seed: int,
    tokens: TokenChoice | Tokens = real_tokens,
    **training: Any,
) -> RMUResult:
    """RMU with coefficient = scale * mean |h(forget)| at block ``layer`` (Huu-Tien et al., arXiv 2408.06223).

    Measured once, on the first ``batch_size`` forget rows.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        layer: as for ``rmu``.
        scale: how many times the usual length.
        alpha: weight of the retain term.
        batch_size: rows a step, too.
        seed, tokens, training: as for ``rmu``.

    Raises:
        ValueError: a scale that is not positive, or what ``rmu`` raises.
    """
    if not scale > 0:
        raise ValueError(f"scale must be above 0, got {scale}")
    first = split.forget.select(range(min(batch_size, len(split.forget)))).to(next(original.parameters()).device)
    coefficient = adaptive_coefficient(original, first, layer, scale=scale, tokens=tokens)
    return rmu(
        model,
        split,
        original=original,
        layer=layer,
        coefficient=coefficient,
        alpha=alpha,
        batch_size=batch_size,
        seed=seed,
        tokens=tokens,
        **training,
    )


@dataclass(frozen=True)
class Rerouting:
    """A way of stepping: weights alpha (1 - t/2T) for the first term and alpha t/2T for the second at step t = 1..T.

    So both end at alpha / 2: the published code has the 2T written out as 300 for its 150 steps.

    Args:
        alpha: sum of the two weights.
        steps: T.
    """

    alpha: float
    steps: int

    def weights(self, t: int) -> tuple[float, float]:
        """Weights of the forget and the retain term at step t, counted from 1."""
        late = self.alpha * t / (2 * self.steps)
        return self.alpha - late, late

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        now = self.weights(step.number + 1)
        terms = [replace(term, weight=w * term.weight) for term, w in zip(step.terms, now, strict=True)]
        return replace(step, terms=terms).gradient()


@method(
    "representation",
    "c relu(cos(h, h0)) on forget + (alpha - c) |h - h0| on retain rows, c from alpha to alpha/2",
    "Zou et al., arXiv 2406.04313",
    trains="blocks 0 to max(layers)",
    published={
        "llama-3-8b": Published(
            "code of Zou et al., arXiv 2406.04313, Llama-3-8B: layers 10 and 20, which is what enters those blocks; "
            "adapters of rank 16 on blocks 0 to 20",
            {"layers": (9, 19), "form": "released", "alpha": 10.0, "steps": 150, "lr": 1e-4, "batch_size": 16},
        )
    },
)
def rr(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    layers: tuple[int, ...],
    alpha: float,
    steps: int,
    parameters: str | None = None,
    tokens: TokenChoice | Tokens = real_tokens,
    form: Form = "paper",
    **training: Any,
) -> History:
    """alpha (1 - t/2T) relu(cos(h(forget), h0)) + alpha t/2T |h(retain) - h0| at step t of T (circuit breakers).

    Zou et al., arXiv 2406.04313: forget activations at ``layers`` are turned away from where they were, retain
    activations held at every block. The published runs train adapters; see ``probe.train.lora``. Their code cuts the
    model behind block max(layers) + 1 and holds what is left: embeddings, blocks and the last one's normed output, with
    padding as 0 (``HiddenStatesFromOriginal``). It reads "layer 10" where block 10, counted from 0, is entered: the
    output of block 9.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning.
        layers: blocks whose outputs are turned.
        alpha: sum of the two weights, at every step.
        steps: T, the optimiser steps.
        parameters: what is trained; every weight of blocks 0 to max(layers) unless given, and of the next block too in
            the code's form.
        tokens: which positions count: ``"real"``, ``"answers"`` or ``"all"``, or a function.
        form: the ``"paper"``'s retain term, over all blocks, or that of the ``"released"`` code.
        training: the other keyword arguments of ``minimise``.

    Raises:
        ValueError: no layers, one outside the model, an alpha that is not positive, the code's form at the model's last
            block, or what ``minimise`` raises.
    """
    check_original(model, original)
    if not layers or not alpha > 0:
        raise ValueError(f"expected at least one layer and an alpha above 0, got {layers} and {alpha}")
    code = meant("form", form, {"paper": False, "released": True})
    depth = max(layers) + (2 if code else 1)
    pattern, counted = parameters or block_parameters(model, range(depth)), meant("tokens", tokens, TOKENS)
    turned = OrthogonalToOriginal(original, tuple(Site(layer) for layer in layers), counted)
    held: Objective = DistanceFromOriginal(original, tuple(Site(layer) for layer in range(n_layers(model))), counted)
    if code:
        held = HiddenStatesFromOriginal(original, depth, counted, position_mean)
    terms = [Term(1.0, turned, split.forget, "forget"), Term(1.0, held, split.retain, "retain")]
    way = Rerouting(alpha, steps)
    return minimise(model, terms, steps=steps, parameters=pattern, stepping=way, **training)
