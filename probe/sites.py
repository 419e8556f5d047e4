"""Where in a decoder something happens: the one place that knows module names of model families."""

import inspect
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor, nn

Part = Literal["embedding", "block", "attention", "mlp", "heads", "norm"]
Side = Literal["in", "out"]

# Attribute names by which families call a block's parts; tried in order.
_PART_NAMES: dict[str, tuple[str, ...]] = {
    "attention": ("self_attn", "attn", "attention", "self_attention"),
    "mlp": ("mlp", "block_sparse_moe", "feed_forward", "ffn"),
}
# The linear map inside attention that mixes the heads; its input is the heads side by side.
_MIXERS = ("o_proj", "out_proj", "c_proj", "dense")
_FINAL_NORMS = ("norm", "ln_f", "final_layernorm", "final_layer_norm", "norm_f")
_WRAPPERS = ("module", "base_model", "model", "_orig_mod", "_fsdp_wrapped_module")
_WHOLE = ("embedding", "norm")


@dataclass(frozen=True, repr=False)
class Site:
    """One place in a decoder where hidden states (batch, position, width) can be read and changed.

    Args:
        layer: block index, 0 for the block next to the embeddings; 0 for the parts that belong to no block.
        part: ``"block"`` (the residual stream), ``"attention"``, ``"mlp"``, ``"heads"`` (what attention's output
            projection is given: the heads side by side), ``"embedding"`` (token embeddings, before position
            embeddings where a model adds those) or ``"norm"`` (the final norm).
        side: ``"out"`` (what the part returns) or ``"in"`` (what it is given).
        head: with ``"heads"``, one head's slice; None is all of them.

    Raises:
        ValueError: a negative layer (indices never wrap around), an unknown part, or a side or head that the part
            does not have.

    >>> probe.Site(4), probe.Site(4, "attention", "in"), probe.Site(2, "heads", head=1)
    (Site(4), Site(4, 'attention', side='in'), Site(2, 'heads', head=1))
    """

    layer: int
    part: Part = "block"
    side: Side = "out"
    head: int | None = None

    def __post_init__(self) -> None:
        for name, number in (("layer", self.layer), ("head", 0 if self.head is None else self.head)):
            if isinstance(number, bool) or not isinstance(number, int):
                raise ValueError(f"{name} must be an int, got {number!r}")
            if number < 0:
                raise ValueError(f"{name} {number} is negative; count from 0 (the block next to the embeddings)")
        if self.part not in ("block", "heads", *_PART_NAMES, *_WHOLE):
            raise ValueError(f"part {self.part!r} is unknown; choose embedding, block, attention, mlp, heads or norm")
        if self.side not in ("in", "out"):
            raise ValueError(f"side {self.side!r} is unknown; choose in or out")
        if self.part in _WHOLE and self.layer != 0:
            raise ValueError(f"the model has one {self.part}; write Site(0, {self.part!r})")
        if self.part == "embedding" and self.side == "in":
            raise ValueError("the input of the embedding is token ids, not hidden states; use its output")
        if self.part == "heads" and self.side == "in":
            raise ValueError("heads are the input of attention's output projection already; leave side out")
        if self.head is not None and self.part != "heads":
            raise ValueError(f"only the heads part has single heads; {self.part!r} was given head {self.head}")

    def __repr__(self) -> str:
        head = "" if self.head is None else f", head={self.head}"
        side = "" if self.side == "out" else f", side={self.side!r}"
        part = "" if self.part == "block" else f", {self.part!r}"
        return f"Site({self.layer}{part}{side}{head})"


@dataclass(frozen=True)
class Place:
    """Where a hook goes: a module, which side of it, and which slice of the last axis (None: all of it)."""

    name: str
    module: nn.Module
    side: Side
    width: slice | None = None


def unwrapped(model: nn.Module) -> nn.Module:
    """The Hugging Face model inside DDP, FSDP, torch.compile and PEFT wrappers; the model itself if there is none."""
    # `base_model` of a plain HF model is its own trunk, so what is a model is told by its class.
    from transformers import PreTrainedModel

    inner = model
    while not isinstance(inner, PreTrainedModel):
        held = next((inner._modules[name] for name in _WRAPPERS if inner._modules.get(name) is not None), None)
        if held is None:
            return model
        inner = held
    return inner


def is_compiled(model: nn.Module) -> bool:
    """Whether ``torch.compile(m)``, ``m.compile()`` or ``m.forward = torch.compile(m.forward)`` acts on any module."""
    return any(
        "_orig_mod" in m._modules
        or getattr(m, "_compiled_call_impl", None) is not None
        or hasattr(vars(m).get("forward"), "_torchdynamo_orig_callable")
        for m in model.modules()
    )


def check_hookable(model: nn.Module) -> None:
    """Refuse models that would pass hooks by.

    Raises:
        ValueError: torch.compile, several devices under nn.DataParallel, or no decoder blocks.
    """
    if is_compiled(model):
        raise ValueError(
            "the model is compiled with torch.compile, which ignores hooks added later; pass the uncompiled model"
        )
    if isinstance(model, nn.DataParallel) and len(model.device_ids) > 1:
        raise ValueError(
            f"nn.DataParallel runs copies of the model on {len(model.device_ids)} devices at once; pass model.module, "
            "or use DistributedDataParallel, one process a device"
        )
    blocks(model)


def blocks(model: nn.Module) -> nn.ModuleList:
    """The decoder blocks of a Hugging Face decoder, found by structure.

    The list sought is the only ``ModuleList`` of as many entries as the text config has layers, in the part it is for.

    Raises:
        ValueError: no such list, or more than one.
    """
    return _blocks_with_name(model)[1]


def n_layers(model: nn.Module) -> int:
    """How many decoder blocks the model has.

    >>> probe.n_layers(s.original)
    8
    """
    return len(blocks(model))


def trunk(model: nn.Module) -> nn.Module:
    """The module that runs the decoder blocks one after another."""
    return unwrapped(model).get_submodule(_blocks_with_name(model)[0].rpartition(".")[0])


def _blocks_with_name(model: nn.Module) -> tuple[str, nn.ModuleList]:
    inner = unwrapped(model)
    config = getattr(inner, "config", None)
    if config is None:
        raise ValueError(f"{type(inner).__name__} has no config; pass a Hugging Face causal language model")
    text = config.get_text_config()
    depth = text.num_hidden_layers
    listed = [found for found in _outer_lists(inner, text, "", False) if len(found[1]) == depth]
    found = [(name, stack) for name, stack, within in listed if within or not any(f[2] for f in listed)]
    # A list that two attributes share is one list, under its first name.
    found = [(name, stack) for i, (name, stack) in enumerate(found) if all(stack is not s for _, s in found[:i])]
    if len(found) != 1:
        names = [name for name, _ in found]
        raise ValueError(
            f"expected one ModuleList of {depth} decoder blocks in {type(inner).__name__}, found {names or 'none'}"
        )
    return found[0]


def _outer_lists(module: nn.Module, text: Any, path: str, within: bool) -> Iterator[tuple[str, nn.ModuleList, bool]]:
    """Lists of modules, not those inside numbered blocks, which cost time; whether ``text`` configures their part."""
    within = within or vars(module).get("config") is text
    for name, child in module._modules.items():
        if isinstance(child, nn.ModuleList) and not name.isdigit():
            yield path + name, child, within
        elif child is not None and not name.isdigit():
            yield from _outer_lists(child, text, f"{path}{name}.", within)


def inside_blocks(model: nn.Module, sites: Iterable[Site]) -> dict[Site, nn.Module]:
    """The sites that lie within what gradient checkpointing runs again during backward, each with its block."""
    layers = blocks(model)
    # Newer transformers checkpoint a block's forward; where __call__ is overridden the block's hooks run again too.
    wide = any(type(block).__call__ is not nn.Module.__call__ for block in layers)
    parts = ("attention", "mlp", "heads", *(("block",) if wide else ()))
    return {site: layers[site.layer] for site in sites if site.part in parts}


def module_at(model: nn.Module, site: Site) -> nn.Module:
    """The module that ``site`` belongs to.

    Raises:
        ValueError: the layer lies outside the model, or the family has no such part.
    """
    return place_of(model, site).module


def place_of(model: nn.Module, site: Site) -> Place:
    """The module, side and slice that ``site`` means in this model; the name is that inside the unwrapped model.

    Raises:
        ValueError: the layer or head lies outside the model, or the family has no such part.
    """
    inner = unwrapped(model)
    stack_name, stack = _blocks_with_name(model)
    if site.part in _WHOLE:
        module = inner.get_input_embeddings() if site.part == "embedding" else _final_norm(trunk(model))  # type: ignore[operator]
        return Place(_name_of(inner, module), module, site.side)
    if site.layer >= len(stack):
        raise ValueError(f"layer {site.layer} does not exist; the model has layers 0..{len(stack) - 1}")
    block, name = stack[site.layer], f"{stack_name}.{site.layer}"
    if site.part == "block":
        return Place(name, block, site.side)
    part = "attention" if site.part == "heads" else site.part
    found = next((n for n in _PART_NAMES[part] if n in block._modules), None)
    if found is None:
        raise ValueError(f"{type(block).__name__} has no {site.part}; its parts are {', '.join(block._modules)}")
    module, path = getattr(block, found), f"{name}.{found}"
    if site.part == "heads":
        return _heads(inner, module, path, site)
    # Bloom and MPT add the residual stream inside a part; what the part contributes leaves its last linear map.
    if site.side == "out" and "residual" in inspect.signature(module.forward).parameters:
        last = [piece for piece, m in module.named_modules() if isinstance(m, nn.Linear)][-1]
        module, path = module.get_submodule(last), f"{path}.{last}"
    return Place(path, module, site.side)


def _heads(model: nn.Module, attention: nn.Module, name: str, site: Site) -> Place:
    # gpt_neo nests its attention once more; the mixer is the only linear map of that name either way.
    mixers = [(n, m) for n, m in attention.named_modules() if n.split(".")[-1] in _MIXERS]
    if len(mixers) != 1:
        raise ValueError(
            f"{type(attention).__name__} has no single output projection (looked for {', '.join(_MIXERS)}); "
            "use the attention part"
        )
    n_heads = model.config.get_text_config().num_attention_heads  # type: ignore[operator,union-attr]
    piece, mixer = mixers[0]
    # A DTensor weight split along its inputs (tensor parallelism) is given some of the heads only.
    if any(getattr(split, "dim", None) == 1 for split in getattr(getattr(mixer, "weight", None), "placements", ())):
        raise ValueError(
            f"{name}.{piece} is split over devices, each of which sees some of the heads only; use the attention part"
        )
    if site.head is None:
        return Place(f"{name}.{piece}", mixer, "in")
    if site.head >= n_heads:
        raise ValueError(f"head {site.head} does not exist; the model has heads 0..{n_heads - 1}")
    # Linear keeps (out, in), GPT-2's Conv1D (in, out); both are square in the models that use Conv1D.
    width = getattr(mixer, "in_features", None) or mixer.weight.shape[0]  # type: ignore[union-attr,index]
    size = int(width) // n_heads  # type: ignore[arg-type]
    return Place(f"{name}.{piece}", mixer, "in", slice(site.head * size, (site.head + 1) * size))


def _final_norm(stem: nn.Module) -> nn.Module:
    for name in _FINAL_NORMS:
        if stem._modules.get(name) is not None:
            return getattr(stem, name)
    raise ValueError(f"{type(stem).__name__} has no final norm; its parts are {', '.join(stem._modules)}")


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(name for name, found in model.named_modules() if found is module)


def layer_of(model: nn.Module, parameter_name: str) -> int | None:
    """The block a parameter belongs to; None for embeddings, final norm and head."""
    name, _ = _blocks_with_name(model)
    match = re.match(rf"(?:.*\.)?{re.escape(name)}\.(\d+)\.", parameter_name)
    return int(match.group(1)) if match else None


def compiled(pattern: str) -> re.Pattern[str]:
    """A regular expression over names of parameters.

    Raises:
        ValueError: it is none; the message says where.
    """
    try:
        return re.compile(pattern)
    except (re.error, RecursionError, OverflowError) as error:
        shown = repr(pattern if len(pattern) <= 80 else pattern[:80] + "...")
        raise ValueError(
            f"pattern {shown} is no regular expression ({error}); write one over names of parameters, such as mlp or "
            r"layers\.[34]\., with a backslash before a character that is meant as it stands"
        ) from None


def matching_parameters(model: nn.Module, pattern: str) -> dict[str, nn.Parameter]:
    """Parameters whose name matches the regular expression ``pattern`` (by name, never by index).

    Raises:
        ValueError: no regular expression, or nothing matched.
    """
    wanted = compiled(pattern)
    chosen = {name: p for name, p in model.named_parameters() if wanted.search(name)}
    if not chosen:
        some = ", ".join(name for name, _ in list(model.named_parameters())[:4])
        raise ValueError(f"pattern {pattern!r} matches no parameter; names look like {some}")
    return chosen


def parameters_by_layer(model: nn.Module) -> Iterator[tuple[int | None, str, Tensor]]:
    """(layer or None, name, tensor) of every parameter; tied weights come once.

    >>> [name for layer, name, _ in probe.parameters_by_layer(s.original) if layer is None]
    ['model.embed_tokens.weight', 'model.norm.weight', 'lm_head.weight']
    """
    for name, parameter in model.named_parameters():
        yield layer_of(model, name), name, parameter
