"""Kin of RMU: a mask instead of a target, and reasoning traces beside the forget rows.

``training`` stands for ``steps``, ``lr``, ``batch_size`` and the other keyword arguments of ``probe.train.minimise``.

>>> unlearned = study.unlearn("rmu_mask", layer=3, alpha=10, lr=3e-4, steps=2, batch_size=4)
"""

from typing import Any

import torch
from torch import nn

from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.rmu import MLP_OUTPUTS, RMUResult, random_target, rmu_parameters
from probe.methods.unlearn import check_original
from probe.methods.words import AVERAGES, READ, TOKENS, Average, Read, Tokens, meant
from probe.objectives.masked import TowardsMasked
from probe.objectives.representation import NearOriginal, TokenChoice, TowardsTarget, real_tokens
from probe.objectives.token import Normalise, check_not_negative, check_positive, token_mean
from probe.sites import Site
from probe.train import History, Term, minimise


@method(
    "representation",
    "mean (1 - m) h(forget)^2 + alpha mean (h(retain) - h0)^2, m a random half of the width",
    "code of Wang et al., arXiv 2502.19301",
    trains=MLP_OUTPUTS,
)
def rmu_mask(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    layer: int,
    alpha: float,
    seed: int,
    parameters: str | None = None,
    positions: TokenChoice | Read = "answers",
    **training: Any,
) -> History:
    """L = mean (h(forget) - sg[h(forget)] m)^2 + alpha mean (h(retain) - h0(retain))^2, m = 1[v > 1/2], v uniform.

    The forget term is that of the code of Wang et al., arXiv 2502.19301, which measures it alone; the retain term is
    RMU's.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning, frozen; gives h0.
        layer: the block at whose output both terms are read.
        alpha: weight of the retain term.
        seed: fixes m and the order of rows.
        parameters: as for ``rmu``.
        positions: of forget rows: ``"answers"`` (those before an answer token, as the code), ``"all"`` (padding too)
            or a function; of retain rows the real tokens count.
        training: see the module's text.

    Raises:
        ValueError: a layer outside the model, a negative alpha, an original that shares weights with the model, or what
            ``minimise`` raises.
    """
    check_original(model, original)
    check_not_negative("alpha", alpha)
    pattern = parameters or rmu_parameters(model, layer)
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    kept_D = torch.rand(width, generator=torch.Generator().manual_seed(seed)) > 0.5
    terms = [
        Term(1.0, TowardsMasked(Site(layer), kept_D, meant("positions", positions, READ)), split.forget, "forget"),
        Term(alpha, NearOriginal(original, Site(layer)), split.retain, "retain"),
    ]
    return minimise(model, terms, seed=seed, parameters=pattern, **training)


@method(
    "representation",
    "RMU + v mean (h(traces) - u)^2 + w mean (h(reasoning) - h0)^2",
    "Wang et al., arXiv 2506.12963",
    trains=MLP_OUTPUTS,
    published={
        "deepseek-r1-llama-8b": Published(
            "code of Wang et al., arXiv 2506.12963, WMDP-bio, DeepSeek-R1-Distill-Llama-8B",
            {
                "tokens": "all",
                "layer": 7,
                "coefficient": 6.5,
                "alpha": 1.7,
                "trace_weight": 1.0,
                "reasoning_weight": 1.0,
                "steps": 500,
                "lr": 7.5e-5,
                "batch_size": 4,
            },
        )
    },
)
def r2mu(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    traces: Batch,
    environment: Batch,
    layer: int,
    coefficient: float,
    alpha: float,
    reasoning_weight: float,
    seed: int,
    trace_weight: float = 1.0,
    parameters: str | None = None,
    tokens: TokenChoice | Tokens = real_tokens,
    normalise: Normalise | Average = token_mean,
    **training: Any,
) -> RMUResult:
    """RMU + v mean (h(traces) - u)^2 + w mean (h(reasoning) - h0(reasoning))^2: reasoning traces are misdirected too.

    Wang et al., R2MU, arXiv 2506.12963, for models that reason before they answer. Without such traces it is RMU.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning, frozen; gives h0.
        traces: rows whose answers are reasoning about what is to be forgotten, one u for them and the forget rows. The
            published ones are a phrase that opens the reasoning, and 100 tokens of what the model goes on to think.
        environment: rows of other tasks whose answers are reasoning that shall stay; published: LIMO.
        layer, coefficient, alpha: as for ``rmu``.
        reasoning_weight, trace_weight: w and v, at least 0; 1 as published.
        seed, parameters, tokens, normalise: as for ``rmu``.
        training: see the module's text.

    Raises:
        ValueError: what ``rmu`` raises, or a negative weight.
    """
    check_original(model, original)
    check_positive("coefficient", coefficient)
    for name, weight in (("alpha", alpha), ("reasoning_weight", reasoning_weight), ("trace_weight", trace_weight)):
        check_not_negative(name, weight)
    site, pattern = Site(layer), parameters or rmu_parameters(model, layer)
    target_D = random_target(model, coefficient, seed)
    counted, average = meant("tokens", tokens, TOKENS), meant("normalise", normalise, AVERAGES)
    away, near = TowardsTarget(site, target_D, counted, average), NearOriginal(original, site, counted, average)
    terms = [
        Term(1.0, away, split.forget, "forget"),
        Term(trace_weight, away, traces, "traces"),
        Term(alpha, near, split.retain, "retain"),
        Term(reasoning_weight, near, environment, "reasoning"),
    ]
    return RMUResult(minimise(model, terms, seed=seed, parameters=pattern, **training), target_D)
