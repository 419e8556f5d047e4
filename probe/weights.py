"""Mix the weights of two models, in place and for a while: the only file that swaps weights.

Layer replacement, CRU and UWC model mixing are this one operation.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from probe.axes import PerLayerL
from probe.nesting import nested
from probe.quantised import quantised
from probe.sites import layer_of, n_layers, unwrapped

# Config fields that change what weights mean without changing their shape.
_SHAPE_NEUTRAL = (
    "num_attention_heads",
    "num_key_value_heads",
    "rms_norm_eps",
    "layer_norm_eps",
    "layer_norm_epsilon",
    "hidden_act",
    "activation_function",
    "rope_theta",
    "rope_parameters",
    "rope_scaling",
    "tie_word_embeddings",
    "model_type",
)


@contextmanager
def blended(
    model: nn.Module, other: nn.Module, alpha_L: PerLayerL | Sequence[float], alpha_rest: float = 0.0
) -> Iterator[None]:
    """Run ``model`` with weights ``(1 - a) theta_model + a theta_other``, one ``a`` per decoder block.

    UWC model mixing (Wang et al., arXiv 2406.09179) is a constant ``alpha_L`` with the same ``alpha_rest``;
    replacing layers (CRU) is an ``alpha_L`` of zeros and ones.

    Args:
        model: changed in place, restored bit for bit (the very same tensors) on leaving.
        other: never changed; only blocks with ``a != 0`` are copied.
        alpha_L: weight of ``other`` per block, one number in [0, 1] a layer.
        alpha_rest: the same for embeddings, final norm and head.

    Raises:
        ValueError: architectures differ, ``alpha_L`` has another length than the model, a number outside [0, 1], or
            weights that are quantised, offloaded or not loaded; or what ``swapped`` raises.

    >>> alpha_L = probe.layers([0, 1], probe.n_layers(s.original))
    >>> with probe.blended(s.original, s.retrained, alpha_L):
    ...     mixed = probe.nll(s.original, s.split.forget)
    >>> bool(mixed > probe.nll(s.original, s.split.forget))
    True
    """
    model, other = unwrapped(model), unwrapped(other)
    check_exchangeable(model, other)
    alphas = [float(a) for a in alpha_L]
    if len(alphas) != n_layers(model):
        raise ValueError(f"alpha_L has {len(alphas)} entries; the model has {n_layers(model)} layers")
    for a in (*alphas, alpha_rest):
        if not 0.0 <= a <= 1.0:
            raise ValueError(f"a mixing weight must lie in [0, 1], got {a}")
    theirs = dict(other.named_parameters())

    def mixed(name: str, weight: Tensor) -> Tensor | None:
        layer = layer_of(model, name)
        a = alpha_rest if layer is None else alphas[layer]
        return None if a == 0.0 else _mix(weight, theirs[name].data, a)

    with swapped(model, mixed, "blended"):
        yield


@contextmanager
def swapped(model: nn.Module, new: Callable[[str, Tensor], Tensor | None], name: str = "swapped") -> Iterator[None]:
    """Other tensors in the parameters for which ``new`` gives one, and the very same ones again on leaving.

    A ``model.half()`` or ``model.to(device)`` inside the block is undone, too: of all parameters and buffers.

    Raises:
        ValueError: another thread has a block open on this model; or, on leaving, one that was entered inside this one
            is still open: the weights are put back when that is left.
    """
    saved = [(parameter, parameter.data) for parameter in model.parameters()]
    buffers = [(m, key, b) for m in model.modules() for key, b in m._buffers.items() if b is not None]
    with nested(unwrapped(model), name, lambda: _restore(saved, buffers)):
        for parameter_name, parameter in model.named_parameters():
            found = new(parameter_name, parameter.data)
            if found is not None:
                parameter.data = found
        yield


@contextmanager
def with_weights_of(module: nn.Module, other: nn.Module) -> Iterator[None]:
    """Run ``module`` with the weights of ``other`` by reference: nothing is copied, so do not train in here.

    Args:
        module: changed in place, restored bit for bit (the very same tensors) on leaving.
        other: the same part of another model of the same architecture (``check_exchangeable``); never changed.
    """
    theirs = dict(other.named_parameters())

    def found(name: str, weight: Tensor) -> Tensor:
        return theirs[name].data.to(device=weight.device, dtype=weight.dtype)

    with swapped(module, found):
        yield


def _restore(saved: list[tuple[nn.Parameter, Tensor]], buffers: list[tuple[nn.Module, str, Tensor]]) -> None:
    for parameter, original in saved:
        parameter.data = original
    for module, name, buffer in buffers:
        now = module._buffers.get(name)
        # One that a forward has set anew (rotary frequencies, say) stays: other attributes go with it.
        if now is not None and (now.dtype, now.device) != (buffer.dtype, buffer.device):
            module._buffers[name] = buffer


@contextmanager
def negated(model: nn.Module, tuned: nn.Module, scale: float) -> Iterator[None]:
    """Run ``model`` with weights ``theta - scale (theta_tuned - theta)``: a task vector taken away.

    Ilharco et al., arXiv 2212.04089. Weights that both models share keep their bits.

    Args:
        model: changed in place, restored bit for bit (the very same tensors) on leaving.
        tuned: the same model after further training on what shall be forgotten; never changed.
        scale: 0 changes nothing; a negative number would add the vector instead.

    Raises:
        ValueError: architectures differ, a scale that is negative or not finite, or weights that are quantised,
            offloaded or not loaded.

    >>> tuned = copy.deepcopy(s.original)
    >>> term = probe.Term(1.0, probe.nll, s.split.forget, "forget")
    >>> _ = probe.minimise(tuned, [term], steps=2, lr=1e-4, batch_size=8, seed=0)
    >>> with probe.negated(s.original, tuned, scale=5.0):
    ...     away = probe.nll(s.original, s.split.forget)
    """
    model = unwrapped(model)
    theirs = _vector_parts(model, tuned, scale)
    with swapped(model, lambda name, weight: _away(weight, theirs[name].data, scale) if scale else None, "negated"):
        yield


def negate(model: nn.Module, tuned: nn.Module, scale: float) -> None:
    """What ``negated`` does for a while, for good.

    Raises:
        ValueError: as ``negated``.
    """
    model = unwrapped(model)
    theirs = _vector_parts(model, tuned, scale)
    with torch.no_grad():
        for name, parameter in model.named_parameters() if scale else ():
            parameter.copy_(_away(parameter.data, theirs[name].data, scale))


def _vector_parts(model: nn.Module, tuned: nn.Module, scale: float) -> dict[str, nn.Parameter]:
    if not (scale >= 0 and math.isfinite(scale)):
        raise ValueError(f"scale must be a number of at least 0, got {scale}; the vector is subtracted already")
    for one, name in ((model, "model"), (tuned, "tuned model")):
        _check_mixable(one, name)
    check_same_architecture(model, tuned)
    return dict(unwrapped(tuned).named_parameters())


def _away(ours: Tensor, theirs: Tensor, scale: float) -> Tensor:
    # In this form equal weights stay as they are to the last bit; (1 + scale) ours - scale theirs would round.
    return ours - scale * (theirs.to(device=ours.device, dtype=ours.dtype) - ours)


def one_layer(layer: int, depth: int) -> PerLayerL:
    """``alpha_L`` that takes one block from the other model.

    >>> probe.one_layer(2, 4)
    tensor([0., 0., 1., 0.])
    """
    return layers((layer,), depth)


def layers(chosen: Sequence[int], depth: int) -> PerLayerL:
    """``alpha_L`` that takes the ``chosen`` blocks from the other model.

    Raises:
        ValueError: a layer outside 0..depth-1.

    >>> probe.layers([1, 3], 4)
    tensor([0., 1., 0., 1.])
    """
    alpha_L = torch.zeros(depth)
    for layer in chosen:
        if not 0 <= layer < depth:
            raise ValueError(f"layer {layer} does not exist; the model has layers 0..{depth - 1}")
        alpha_L[layer] = 1.0
    return alpha_L


def check_exchangeable(model: nn.Module, other: nn.Module) -> None:
    """Refuse two models whose weights cannot take each other's place.

    Raises:
        ValueError: another architecture, or weights that are quantised, offloaded or not loaded.
    """
    for one, name in ((model, "model"), (other, "other model")):
        _check_mixable(one, name)
    check_same_architecture(model, other)


def _check_mixable(model: nn.Module, name: str) -> None:
    coded = quantised(model)
    if coded:
        raise ValueError(
            f"the {name} holds {len(coded)} quantised weights (the first is {next(iter(coded))}), which stand for "
            "other numbers in each model and cannot be mixed or replaced; dequantise both (model.dequantize()) or "
            "load both without a quantization_config"
        )
    check_present(model, name)


def check_present(model: nn.Module, name: str = "model") -> None:
    """Refuse to change weights that are not where the model says they are.

    Raises:
        ValueError: weights on the meta device, because they were not loaded or are offloaded.
    """
    absent = [n for n, p in model.named_parameters() if p.is_meta]
    if absent:
        raise ValueError(
            f"{len(absent)} weights of the {name} lie on the meta device (the first is {absent[0]}): not loaded, or "
            "offloaded to disk or CPU, so they cannot be changed in place; load it whole, without a device_map"
        )


def check_same_architecture(model: nn.Module, other: nn.Module) -> None:
    """Refuse two models whose weights do not mean the same, even where every shape agrees.

    Raises:
        ValueError: a list of the differing config fields, or of the first parameters that differ in name or shape.
    """
    model, other = unwrapped(model), unwrapped(other)
    ours, theirs = model.config.get_text_config(), other.config.get_text_config()  # type: ignore[union-attr,operator]
    differing = [
        f"{field}: {getattr(ours, field, None)} and {getattr(theirs, field, None)}"
        for field in (*_SHAPE_NEUTRAL, "vocab_size", "num_hidden_layers", "hidden_size")
        if getattr(ours, field, None) != getattr(theirs, field, None)
    ]
    if differing:
        raise ValueError(f"the models are of different architecture ({'; '.join(differing)}); their layers do not fit")
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    other_shapes = {name: tuple(p.shape) for name, p in other.named_parameters()}
    if shapes != other_shapes:
        odd = sorted(set(shapes.items()) ^ set(other_shapes.items()))[:4]
        raise ValueError(f"the models' parameters differ in name or shape, for example {odd}")


def _mix(ours: Tensor, theirs: Tensor, a: float) -> Tensor:
    theirs = theirs.to(device=ours.device, dtype=ours.dtype)
    # At a = 1 the product form would turn an infinity on the unused side into NaN.
    return theirs.clone() if a == 1.0 else (1.0 - a) * ours + a * theirs
