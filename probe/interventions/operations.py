"""What every edit computes, as one function of tensors and numbers that imports nothing but torch.

An intervention is checked and named where it is written; here it is only arithmetic, so that the same lines run under
our hooks, from a saved plan, and on a remote machine that has never heard of this package.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

from torch import Tensor

_SLICES = {"shift": "D", "encoder": "DK", "bias": "K", "threshold": "K", "decoder": "KD"}
_WHOLE = {"shift": "D", "encoder": "DF", "bias": "F", "decoder": "KD"}

# What each operation is given: tensors with the letters of their axes (D is the width), and numbers.
OPERATIONS: dict[str, tuple[dict[str, str], tuple[str, ...]]] = {
    "add": ({"direction": "D"}, ("scale",)),
    "scale": ({}, ("factor",)),
    "replace": ({"activation": "...D"}, ()),
    "skip": ({}, ()),
    "noise": ({}, ("std", "seed")),
    "project": ({"direction": "D"}, ("strength",)),
    "cap": ({"direction": "D"}, ("low", "high")),
    "erase": ({"left": "DK", "right": "KD", "mean": "D"}, ()),
    "clamp_features": ({**_SLICES, "value": "K"}, ()),
    "scale_features": (_SLICES, ("factor",)),
    "clamp_all_features": ({**_SLICES, "value": "K"}, ()),
    "set_features": ({**_SLICES, "value": "K"}, ()),
    "clamp_top_features": ({**_WHOLE, "value": "K"}, ("k", "noise")),
    "clamp_all_top_features": ({**_WHOLE, "value": "K"}, ("k", "noise")),
    "set_top_features": ({**_WHOLE, "value": "K"}, ("k", "noise")),
    "scale_top_features": (_WHOLE, ("factor", "k", "noise")),
}


@dataclass(frozen=True)
class Operation:
    """An intervention as data: a name that ``operate`` knows, its tensors and its numbers."""

    name: str
    tensors: dict[str, Tensor] = field(default_factory=dict)
    numbers: dict[str, float | int] = field(default_factory=dict)

    @property
    def reads_input(self) -> bool:
        """Whether it needs what entered the module."""
        return self.name == "skip"

    def __call__(self, hidden: Tensor, entering: Tensor | None = None) -> Tensor:
        return operate(self.name, hidden, self.tensors, self.numbers, entering)


@runtime_checkable
class Compilable(Protocol):
    """An intervention that can be written down as an operation."""

    def operation(self) -> Operation:
        """The same edit as data."""
        ...


def operate(
    name: str,
    hidden: Tensor,
    tensors: dict[str, Tensor],
    numbers: dict[str, float | int],
    entering: Tensor | None = None,
) -> Tensor:
    """The edited hidden states; their dtype and device stay. An edit of strength zero returns its very input.

    Args:
        name: which operation.
        hidden: (batch, position, width).
        tensors: vectors and matrices, on any device.
        numbers: strengths.
        entering: what entered the module, for operations that need it.

    Raises:
        ValueError: an unknown name.
    """
    import torch

    given = {key: value.to(hidden.device) for key, value in tensors.items()}
    # Inner products in half precision would leave a hundredth of a component behind.
    exact = torch.promote_types(hidden.dtype, torch.float32)
    if name == "add":
        step = numbers["scale"] * given["direction"]
        return hidden if numbers["scale"] == 0 else hidden + step.to(hidden.dtype)
    if name == "scale":
        return hidden if numbers["factor"] == 1 else hidden * numbers["factor"]
    if name == "replace":
        return given["activation"].to(hidden.dtype).expand_as(hidden).clone()
    if name == "skip":
        assert entering is not None
        return entering
    if name == "noise":
        if numbers["std"] == 0:
            return hidden
        generator = torch.Generator().manual_seed(int(numbers["seed"]))
        drawn = torch.randn(hidden.shape, generator=generator)
        return hidden + (numbers["std"] * drawn).to(hidden)
    if name == "erase":
        # x - left right (x - mean): what a linear classifier could read is taken out, nothing else moves.
        wide, left, right = hidden.to(exact), given["left"].to(exact), given["right"].to(exact)
        return (wide - (wide - given["mean"].to(exact)) @ right.T @ left.T).to(hidden.dtype)
    if name in ("project", "cap"):
        if numbers.get("strength") == 0:
            return hidden
        wide, unit = hidden.to(exact), given["direction"].to(torch.promote_types(given["direction"].dtype, exact))
        # By the largest entry first: squares of 1e-25 or 1e19 are 0 or infinite in float32.
        unit = unit / unit.abs().max()
        unit = (unit / unit.norm()).to(exact)
        along = wide @ unit
        if name == "cap":
            change = along.clamp(numbers["low"], numbers["high"]) - along
            return torch.where((change != 0)[..., None], wide + change[..., None] * unit, wide).to(hidden.dtype)
        return (wide - numbers["strength"] * along[..., None] * unit).to(hidden.dtype)
    if name.endswith("features"):
        if numbers.get("factor") == 1:
            return hidden
        wide = hidden.to(given["encoder"].dtype) - given["shift"]
        before = wide @ given["encoder"] + given["bias"]
        if "threshold" in given:
            # Only the chosen features' encoder columns are needed where one feature does not depend on the others;
            # below a plain ReLU's threshold lies rounding noise as large as the terms of its inner product.
            noise = 1e-5 * wide.norm(dim=-1, keepdim=True) * given["encoder"].norm(dim=0)
            on = before > torch.where(given["threshold"] > 0, given["threshold"], noise)
        else:
            # The chosen features come first; the others are there to compete with them for the k places.
            strongest = before.topk(int(numbers["k"]), dim=-1).values
            before = before[..., : len(given["decoder"])]
            on = (before >= strongest[..., -1:]) & (before > numbers["noise"] * strongest[..., :1].clamp(min=0))
        feature = torch.where(on, before, torch.zeros_like(before))
        after = given["value"].expand_as(feature) if "value" in given else numbers["factor"] * feature
        changed = on.any(-1, keepdim=True) if name.startswith("clamp_all") else on | name.startswith("set")
        change = torch.where(changed, after - feature, torch.zeros_like(feature))
        moved = hidden + (change @ given["decoder"]).to(hidden.dtype)
        return torch.where((change != 0).any(-1, keepdim=True), moved, hidden)
    raise ValueError(f"operation {name!r} is unknown; this version of the function is too old or the plan is not one")
