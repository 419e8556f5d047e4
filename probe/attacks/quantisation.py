"""Quantisation: weights rounded to few levels, which may round a small unlearning update away.

Weights are rounded and kept in their dtype, so any model can be attacked on any machine. What is rounded is what the
libraries round at load: the linear maps inside the blocks, not embeddings, norms or the head.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from probe.attacks.facts import Facts, Studied, prepared
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.attacks.restoring import weights_restored
from probe.quantised import quantised
from probe.sites import blocks

Scheme = Literal["round-to-nearest", "nf4", "bitsandbytes-nf4", "bitsandbytes-int8", "torchao-int8"]

# The 16 levels of NormalFloat4 (QLoRA, arXiv 2305.14314, appendix E): quantiles of a normal, scaled to [-1, 1].
_NF4 = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


def quantise(
    model: nn.Module,
    study: Facts | Studied,
    *,
    bits: int = 4,
    scheme: Scheme = "round-to-nearest",
    group: int = 64,
    retrained: nn.Module | None = None,
) -> Recovery:
    """Score the held-out rows with quantised weights (Zhang et al., arXiv 2410.16454).

    Args:
        model: restored bit for bit, after an exception as well.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; the held-out rows are scored, nothing is fitted.
        bits: as in ``rounded_weights``.
        scheme: as in ``rounded_weights``; the libraries' are there if the libraries are.
        group: as in ``rounded_weights``.
        retrained: a model that never knew the facts.

    Raises:
        ValueError: as ``rounded_weights``.
        ImportError: a library's scheme without the library.

    >>> found = probe.quantise(s.original, s, bits=8)
    >>> abs(found.gain().mean) < 0.05
    True
    """

    facts, never = prepared(study, retrained)

    def act(one: nn.Module) -> AttackOutcome:
        before = facts.score(one, facts.held, facts.template)
        with rounded_weights(one, bits=bits, scheme=scheme, group=group):
            return AttackOutcome(before, facts.score(one, facts.held, facts.template))

    settings = {"bits": bits, "scheme": scheme, "group": group}
    return compared("quantisation", settings, act, facts, model, never)


@contextmanager
def rounded_weights(
    model: nn.Module, *, bits: int, scheme: Scheme = "round-to-nearest", group: int = 64
) -> Iterator[tuple[str, ...]]:
    """Run with the blocks' linear weights rounded; restored bit for bit on leaving.

    Args:
        model: any Hugging Face decoder that is not quantised already.
        bits: 2 to 16 for ``"round-to-nearest"``; 4 for NF4, 8 for int8.
        scheme: ``"round-to-nearest"`` is the named fallback: symmetric, each group of consecutive weights scaled by
            its largest magnitude. ``"nf4"`` gives the weights of bitsandbytes' 4-bit format without double
            quantisation, computed here. The others are made by the library named; of bitsandbytes' int8 the weights
            only (it rounds activations too).
        group: weights that share a scale, counted along the input (NF4: along memory, from row to row); int8 libraries
            take whole rows.

    Yields:
        the names of the modules whose weights are rounded.

    Raises:
        ValueError: bits that the scheme does not have, a group below 1, an unknown scheme, or a quantised model.
        ImportError: the library is not installed.

    >>> with probe.rounded_weights(s.original, bits=4) as names:
    ...     len(names)
    56
    """
    if quantised(model):
        raise ValueError("the model is quantised already; load it without a quantization_config")
    change = _rounding(bits, scheme, group)
    stack = blocks(model)
    linear = {name: module for name, module in stack.named_modules() if _is_linear(module)}
    if not linear:
        raise ValueError(f"no linear map found in the blocks of {type(model).__name__}; there is nothing to round")
    with weights_restored(model):
        with torch.no_grad():
            for module in linear.values():
                weight: Tensor = module.weight  # type: ignore[assignment]
                # Conv1D of GPT-2 keeps (in, out).
                turned = isinstance(module, nn.Linear)
                rounded_OI = change(weight.detach() if turned else weight.detach().T)
                weight.copy_(rounded_OI if turned else rounded_OI.T)
        yield tuple(linear)


def absmax(weight_OI: Tensor, bits: int, group: int) -> Tensor:
    """s round(w / s) with s = max |w| / (2^(bits-1) - 1), one s for each group of ``group`` inputs of a row.

    >>> probe.absmax(torch.tensor([[1.0, 0.26, -0.5]]), bits=4, group=3)
    tensor([[ 1.0000,  0.2857, -0.5714]])
    """
    levels = 2 ** (bits - 1) - 1
    return _by_group(weight_OI, group, lambda unit: torch.round(unit * levels) / levels)


def nf4(weight_OI: Tensor, group: int) -> Tensor:
    """max |w| times the nearest of NF4's levels, one scale for each ``group`` weights in the order of memory.

    As in bitsandbytes, whose groups run on from one row into the next where the width is no multiple of them.

    >>> tuple(probe.nf4(torch.randn(4, 64), group=64).shape)
    (4, 64)
    """
    level_K = torch.tensor(_NF4, device=weight_OI.device)
    middle_K = (level_K[1:] + level_K[:-1]) / 2
    flat_1N = weight_OI.reshape(1, -1)
    snapped = _by_group(flat_1N, group, lambda unit: level_K[torch.bucketize(unit.contiguous(), middle_K)])
    return snapped.reshape(weight_OI.shape)


def _by_group(weight_OI: Tensor, group: int, snap: Callable[[Tensor], Tensor]) -> Tensor:
    rows, columns = weight_OI.shape
    # In float64 many bits round to less than float32 can tell.
    wide_OI = weight_OI.double()
    short = -columns % group
    padded = nn.functional.pad(wide_OI, (0, short)).reshape(rows, -1, group)
    scale = padded.abs().amax(-1, keepdim=True)
    unit = padded / torch.where(scale > 0, scale, torch.ones_like(scale))
    return (snap(unit) * scale).reshape(rows, -1)[:, :columns].to(weight_OI.dtype)


def _rounding(bits: int, scheme: str, group: int) -> Callable[[Tensor], Tensor]:
    known = {
        "round-to-nearest": range(2, 17),
        "nf4": (4,),
        "bitsandbytes-nf4": (4,),
        "bitsandbytes-int8": (8,),
        "torchao-int8": (8,),
    }
    if scheme not in known:
        raise ValueError(f"scheme {scheme!r} is unknown; choose one of {', '.join(known)}")
    if bits not in known[scheme] or group < 1:
        span = known[scheme]
        allowed = f"{span[0]} to {span[-1]}" if len(span) > 1 else str(span[0])
        raise ValueError(f"{scheme} has {allowed} bits and groups of at least 1 weight, got {bits} bits and {group}")
    if scheme == "round-to-nearest":
        return lambda weight_OI: absmax(weight_OI, bits, group)
    if scheme == "nf4":
        return lambda weight_OI: nf4(weight_OI, group)
    return _library(scheme, group)


def _library(scheme: str, group: int) -> Callable[[Tensor], Tensor]:
    package = scheme.split("-")[0]
    try:
        if package == "bitsandbytes":
            import bitsandbytes.functional as bnb
        else:
            from torchao.quantization import Int8WeightOnlyConfig, quantize_
    except ImportError as error:
        raise ImportError(
            f"{scheme} needs {package}, which is not installed (pip install {package}); 'nf4' and 'round-to-nearest' "
            "need nothing"
        ) from error
    if scheme == "bitsandbytes-nf4":

        def by_nf4(weight_OI: Tensor) -> Tensor:
            # As one row: for some widths bitsandbytes 0.50 on a CPU gives back wrong numbers (16 and 96 columns did).
            flat_1N = weight_OI.contiguous().reshape(1, -1)
            codes, state = bnb.quantize_4bit(flat_1N, blocksize=group, quant_type="nf4")
            return bnb.dequantize_4bit(codes, state).reshape(weight_OI.shape)

        return by_nf4
    if scheme == "bitsandbytes-int8":

        def by_int8(weight_OI: Tensor) -> Tensor:
            codes, scale_O, *_ = bnb.int8_vectorwise_quant(weight_OI.half().contiguous())
            return codes.to(weight_OI) * (scale_O.to(weight_OI)[:, None] / 127)

        return by_int8

    def by_torchao(weight_OI: Tensor) -> Tensor:
        carrier = nn.Linear(weight_OI.shape[1], weight_OI.shape[0], bias=False).to(weight_OI)
        carrier.weight.data.copy_(weight_OI)
        quantize_(carrier, Int8WeightOnlyConfig())
        coded: Any = carrier.weight
        return coded.dequantize().to(weight_OI)

    return by_torchao


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
