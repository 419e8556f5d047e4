"""Representation misdirection for unlearning (RMU): steer forget activations to a random place, pin retain ones.

>>> unlearned = study.unlearn("rmu", layer=3, coefficient=5, alpha=10, lr=3e-4, steps=2, batch_size=4)
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from probe.axes import DirectionD
from probe.data import Batch, Split
from probe.interventions.activations import activations, content
from probe.methods.method import method
from probe.methods.published import OPEN_UNLEARNING, Published
from probe.methods.unlearn import check_original
from probe.methods.words import AVERAGES, TOKENS, Average, Tokens, meant
from probe.objectives.frozen import CachedOriginal, NearCached, above_frozen
from probe.objectives.objective import Objective
from probe.objectives.representation import NearOriginal, TokenChoice, TowardsTarget, hidden_at, real_tokens
from probe.objectives.token import Normalise, token_mean
from probe.sites import Site, layer_of, matching_parameters, n_layers
from probe.train import History, Term, minimise

MLP_OUTPUTS = "MLP output weights of blocks layer-2 to layer"
# Rows from which a usual norm is read.
_NORM_ROWS = 32

# The weight with which a block's MLP writes to the residual stream, by family:
# llama, mistral, gemma, qwen, phi-3 | phi, opt | gpt-neox, falcon, bloom | gpt-j | gpt-2, gpt-neo.
_MLP_OUTPUT = r"(?:\.down_proj|\.fc2|\.dense_4h_to_h|\.mlp\.fc_out|\.mlp\.c_proj)\.weight$"


@dataclass(frozen=True, eq=False)
class RMUResult:
    """Losses, and the vector that forget activations were drawn to."""

    history: History
    target_D: DirectionD = field(repr=False)


def _towards_random(
    original: nn.Module,
    split: Split,
    layer: int,
    coefficient: float,
    seed: int,
    tokens: TokenChoice | Tokens = real_tokens,
    normalise: Normalise | Average = token_mean,
    relative: bool = False,
) -> TowardsTarget:
    """RMU's forget term; the arguments are those of ``rmu``."""
    length = coefficient * retain_norm(original, split.retain, layer) if relative else coefficient
    target_D = random_target(original, length, seed)
    return TowardsTarget(
        Site(layer), target_D, meant("tokens", tokens, TOKENS), meant("normalise", normalise, AVERAGES)
    )


@method(
    "representation",
    "mean (h(forget) - u)^2 + alpha mean (h(retain) - h0)^2",
    "Li et al., arXiv 2403.03218",
    trains=MLP_OUTPUTS,
    loss=_towards_random,
    published={
        "zephyr-7b": Published(
            "WMDP code, Zephyr-7B (Li et al., arXiv 2403.03218)",
            {
                "layer": 7,
                "coefficient": 6.5,
                "alpha": 1200.0,
                "tokens": "all",
                "steps": 150,
                "lr": 5e-5,
                "batch_size": 4,
            },
        ),
        "open-unlearning-wmdp": Published(
            "OpenUnlearning, WMDP, Zephyr-7B; 16 pieces of a row there, each averaged by itself",
            {
                "layer": 7,
                "coefficient": 2.0,
                "alpha": 1.0,
                "tokens": "answers",
                "normalise": "rows",
                "steps": 80,
                "lr": 5e-5,
                "batch_size": 16,
                "replacement": True,
            },
        ),
        "open-unlearning": Published(
            "OpenUnlearning, TOFU; all weights; pieces of 4 or 8 rows there, within which rows are mixed",
            {
                "layer": 7,
                "coefficient": 2.0,
                "alpha": 1.0,
                "tokens": "answers",
                "normalise": "mixed-rows",
                "parameters": ".",
                "lr": 1e-5,
                "batch_size": 32,
                **OPEN_UNLEARNING,
            },
        ),
    },
)
def rmu(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    layer: int,
    coefficient: float,
    alpha: float,
    seed: int,
    parameters: str | None = None,
    whole_blocks: bool = False,
    tokens: TokenChoice | Tokens = real_tokens,
    normalise: Normalise | Average = token_mean,
    relative: bool = False,
    keep_states: bool = False,
    **training: Any,
) -> RMUResult:
    """L = mean (h(forget) - u)^2 + alpha * mean (h(retain) - h0(retain))^2, with h the output of block ``layer``.

    Li et al., arXiv 2403.03218, eqs. 1-3. u = coefficient * v / |v| with v uniform in [0, 1)^D, drawn once.

    Args:
        model: trained in place.
        split: forget and retain rows.
        original: the model before unlearning, frozen; gives h0.
        layer: the block at whose output both terms are read.
        coefficient: |u|; see ``adaptive_coefficient`` for a value that fits the model.
        alpha: weight of the retain term.
        seed: fixes u and the order of rows.
        parameters: regular expression over the names of what is trained; ``rmu_parameters(model, layer)`` unless
            given: the MLP output weights of blocks layer-2 to layer.
        whole_blocks: train every weight of these blocks instead, where MLP outputs have too little capacity, as in
            small models.
        tokens: which positions are averaged over: ``"real"``, ``"answers"`` (OpenUnlearning) or ``"all"`` (padding
            too; the published code), or a function.
        normalise: how they are averaged: over ``"tokens"``, first within ``"rows"``, or as OpenUnlearning's code does
            (``"mixed-rows"``, ``probe.objectives.token.mixed_rows``); or a function.
        relative: whether ``coefficient`` counts in median norms of retain states at the block (``retain_norm``); norms
            grow by an order of magnitude from the first block to the last, so that one number does not fit two blocks.
        keep_states: compute the frozen model's retain states, and what enters the first trained block, once for all
            rows instead of at every step (benchmarks/README.md); rows * length * width numbers for the forget rows
            and twice that for the retain rows.
        training: ``steps``, ``lr``, ``batch_size`` and the other keyword arguments of ``probe.train.minimise``.

    Raises:
        ValueError: a layer outside the model, a coefficient that is not positive, a negative alpha, an original
            that shares weights with the model, or what ``minimise`` raises.
    """
    check_original(model, original)
    if not coefficient > 0 or not alpha >= 0:
        raise ValueError(f"coefficient must be above 0 and alpha at least 0, got {coefficient} and {alpha}")
    if parameters is not None and whole_blocks:
        raise ValueError(
            f"whole_blocks chooses what is trained, and so does parameters={parameters!r}; give one of them"
        )
    pattern = parameters or (_whole_blocks(model, layer) if whole_blocks else rmu_parameters(model, layer))
    term = _towards_random(original, split, layer, coefficient, seed, tokens, normalise, relative)
    away: Objective = term
    near: Objective = NearOriginal(original, term.site, term.tokens, term.normalise)
    if keep_states:
        near = NearCached(CachedOriginal(original, split.retain, term.site), term.tokens, term.normalise)
        lowest = min(layer_of(model, name) or 0 for name in matching_parameters(model, pattern))
        if lowest > 0:
            away = above_frozen(model, away, split.forget, lowest)
            near = above_frozen(model, near, split.retain, lowest)
    terms = [Term(1.0, away, split.forget, "forget"), Term(alpha, near, split.retain, "retain")]
    return RMUResult(minimise(model, terms, seed=seed, parameters=pattern, **training), term.target_D)


def random_target(model: nn.Module, coefficient: float, seed: int) -> DirectionD:
    """u = coefficient * v / |v|, v uniform in [0, 1)^D: a direction in the first quadrant, as RMU draws it."""
    width = model.config.get_text_config().hidden_size  # type: ignore[union-attr,operator]
    v_D = torch.rand(width, generator=torch.Generator().manual_seed(seed))
    return coefficient * v_D / v_D.norm()


def retain_norm(model: nn.Module, batch: Batch, layer: int) -> float:
    """Median of |h| at the output of block ``layer``, over the real tokens of at most 32 rows but each row's first.

    The first token sees no context, and its norm may be hundreds of times larger.

    Raises:
        ValueError: a layer outside the model, or no row of more than one token.
    """
    site = Site(layer)
    rows = batch.select(range(min(_NORM_ROWS, len(batch))))
    return activations(model, rows, [site], tokens=content)[site].float().norm(dim=-1).median().item()


def adaptive_coefficient(
    model: nn.Module, batch: Batch, layer: int, *, scale: float, tokens: TokenChoice | Tokens = real_tokens
) -> float:
    """scale * mean |h(forget)| at the output of block ``layer`` (adaptive RMU, Huu-Tien et al., arXiv 2408.06223).

    Args:
        model: the model before unlearning.
        batch: the first forget batch; the value is measured once and then kept.
        layer: as for ``rmu``.
        scale: published runs use 5.
        tokens: which positions the mean runs over.
    """
    with torch.no_grad():
        hidden_BTD = hidden_at(model, batch, Site(layer))
    return scale * hidden_BTD[meant("tokens", tokens, TOKENS)(batch)].float().norm(dim=-1).mean().item()


def rmu_parameters(model: nn.Module, layer: int) -> str:
    """Pattern of what RMU trains: the MLP output weights of blocks layer-2 to layer (from block 0 on).

    By name: the published code takes the seventh parameter of each block, which is another weight in Qwen, phi and
    GPT-NeoX.
    """
    return mlp_output_parameters(model, range(max(0, layer - 2), layer + 1))


def _whole_blocks(model: nn.Module, layer: int) -> str:
    return block_parameters(model, range(max(0, layer - 2), layer + 1))


def mlp_output_parameters(model: nn.Module, layers: Sequence[int]) -> str:
    """Pattern that matches the MLP output weight of each of ``layers``.

    Raises:
        ValueError: a layer outside the model, or a family whose MLP output weight has an unknown name.
    """
    return _pattern(model, layers, _MLP_OUTPUT)


def block_parameters(model: nn.Module, layers: Sequence[int]) -> str:
    """Pattern that matches every parameter of the blocks ``layers``."""
    return _pattern(model, layers, "")


def _pattern(model: nn.Module, layers: Sequence[int], ending: str) -> str:
    outside = [layer for layer in layers if not 0 <= layer < n_layers(model)]
    if outside:
        raise ValueError(f"layer {outside[-1]} does not exist; the model has layers 0..{n_layers(model) - 1}")
    by_layer = {layer: [n for n, _ in model.named_parameters() if layer_of(model, n) == layer] for layer in layers}
    chosen: list[str] = []
    for layer, names in by_layer.items():
        matched = [name for name in names if re.search(ending, name)]
        if not matched:
            raise ValueError(f"no MLP output weight known in block {layer} ({', '.join(names)}); name it in parameters")
        chosen += matched
    return "^(?:" + "|".join(re.escape(name) for name in chosen) + ")$"
