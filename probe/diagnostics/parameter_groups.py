"""Which parameters belong together: the groups that gradients are split into."""

from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from torch import nn

from probe.sites import Site, layer_of, module_at, n_layers, unwrapped

_PARTS: tuple[Literal["attention", "mlp"], ...] = ("attention", "mlp")


@dataclass(frozen=True)
class Group:
    """Parameters that belong together.

    Args:
        part: within a layer "attention", "mlp", "norm" or "other"; outside of layers "embedding", "head",
            "embedding and head" (tied weights are one group), "final norm" or "other" (position embeddings, say).
        layer: decoder block, or None outside of blocks.
    """

    part: str
    layer: int | None = None

    def __str__(self) -> str:
        return self.part if self.layer is None else f"layer {self.layer} {self.part}"


def groups(model: nn.Module) -> dict[str, Group]:
    """The group of every parameter by name; norms inside attention (Qwen3, Gemma) count as attention."""
    part = _parts_of_whole(model)
    for layer in range(n_layers(model)):
        for name in _PARTS:
            # OPT has no module for its mlp, Mamba none for attention.
            with suppress(ValueError):
                part |= {id(p): name for p in module_at(model, Site(layer, name, "in")).parameters()}
    norms = {id(p) for m in model.modules() if "norm" in type(m).__name__.lower() for p in m.parameters(recurse=False)}
    return {
        name: Group(part.get(id(p), "norm" if id(p) in norms else "other"), layer_of(model, name))
        for name, p in model.named_parameters()
    }


def _parts_of_whole(model: nn.Module) -> dict[int, str]:
    part: dict[int, str] = {}
    with suppress(ValueError):  # a family without a final norm has no such group
        part |= {id(p): "final norm" for p in module_at(model, Site(0, "norm")).parameters()}
    head = unwrapped(model).get_output_embeddings()  # type: ignore[operator]
    part |= {id(p): "head" for p in head.parameters()} if head is not None else {}
    for p in module_at(model, Site(0, "embedding")).parameters():
        part[id(p)] = "embedding and head" if part.get(id(p)) == "head" else "embedding"
    return part
