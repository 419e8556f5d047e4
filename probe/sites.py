"""Where in a decoder something happens: the one place that knows module names of model families."""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from torch import Tensor, nn

Part = Literal["block", "attention", "mlp"]

# Attribute names by which families call a block's parts; tried in order.
_PART_NAMES: dict[str, tuple[str, ...]] = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "block_sparse_moe", "feed_forward", "ffn"),
}
_WRAPPERS = ("module", "_orig_mod", "base_model")


@dataclass(frozen=True, order=True)
class Site:
    """The output of one part of one decoder block.

    Args:
        layer: block index, 0 for the block next to the embeddings.
        part: ``"block"`` (the residual stream after the block), ``"attention"`` or ``"mlp"``.

    Raises:
        ValueError: a negative layer (indices never wrap around) or an unknown part.
    """

    layer: int
    part: Part = "block"

    def __post_init__(self) -> None:
        if isinstance(self.layer, bool) or not isinstance(self.layer, int):
            raise ValueError(f"layer must be an int, got {self.layer!r}")
        if self.layer < 0:
            raise ValueError(f"layer {self.layer} is negative; count from 0 (the block next to the embeddings)")
        if self.part not in ("block", *_PART_NAMES):
            raise ValueError(f"part {self.part!r} is unknown; choose block, attention or mlp")


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP and PEFT wrappers; a compiled model is refused, its hooks would be ignored."""
    if hasattr(model, "_orig_mod"):
        raise ValueError(
            "the model is compiled with torch.compile, which ignores hooks added later; "
            "pass the uncompiled model and compile inside the context"
        )
    for name in _WRAPPERS:
        # `base_model` of a plain HF model is its trunk, which is smaller than the model itself: not a wrapper.
        inner = model._modules.get(name)
        if inner is not None and len(model._modules) == 1:
            return unwrapped(inner)
    return model


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a Hugging Face decoder, found by structure.

    The list sought is the only ``ModuleList`` with as many entries as the config has layers.

    Raises:
        ValueError: no such list, or more than one.
    """
    return _blocks_with_name(model)[1]


def n_layers(model: nn.Module) -> int:
    """How many decoder blocks the model has."""
    return len(blocks(model))


def _blocks_with_name(model: nn.Module) -> tuple[str, nn.ModuleList]:
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    if config is None:
        raise ValueError(f"{type(inner).__name__} has no config; pass a Hugging Face causal language model")
    depth = config.get_text_config().num_hidden_layers
    found = [
        (name, module)
        for name, module in inner.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth and _is_outermost(name)
    ]
    if len(found) != 1:
        names = [name for name, _ in found]
        raise ValueError(
            f"expected one ModuleList of {depth} decoder blocks in {type(inner).__name__}, found {names or 'none'}"
        )
    return found[0]


def _is_outermost(name: str) -> bool:
    """Lists inside a numbered block (experts, say) are not the block list."""
    return not any(piece.isdigit() for piece in name.split("."))


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The module whose output is ``site``.

    Raises:
        ValueError: the layer lies outside the model, or the family has no such part.
    """
    stack = blocks(model)
    if site.layer >= len(stack):
        raise ValueError(f"layer {site.layer} does not exist; the model has layers 0..{len(stack) - 1}")
    block = stack[site.layer]
    if site.part == "block":
        return block
    for name in _PART_NAMES[site.part]:
        if name in block._modules:
            return getattr(block, name)
    raise ValueError(f"{type(block).__name__} has no {site.part}; its parts are {', '.join(block._modules)}")


def layer_of(model: nn.Module, parameter_name: str) -> int | None:
    """The block a parameter belongs to; None for embeddings, final norm and head."""
    name, _ = _blocks_with_name(model)
    match = re.match(rf"(?:.*\.)?{re.escape(name)}\.(\d+)\.", parameter_name)
    return int(match.group(1)) if match else None


def matching_parameters(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Parameters whose name matches the regular expression ``pattern`` (by name, never by index).

    Raises:
        ValueError: nothing matched.
    """
    chosen = {name: p for name, p in model.named_parameters() if re.search(pattern, name)}
    if not chosen:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:4])
        raise ValueError(f"pattern {pattern!r} matches no parameter; names look like {some}")
    return chosen


def parameters_by_layer(model: nn.Module) -> Iterator[tuple[int | None, str, Tensor]]:
    """(layer or None, name, tensor) of every parameter; tied weights come once."""
    for name, parameter in model.named_parameters():
        yield layer_of(model, name), name, parameter
