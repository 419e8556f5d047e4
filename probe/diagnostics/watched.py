"""What each use of a parameter contributes to an inner product of gradients, row by row, without weight gradients.

If out = f(x, theta) and the loss gives delta = dL / dout, then this use of theta contributes delta . (df/dtheta G) to
<grad L, G>: for a linear map the activation/gradient outer product <sum_t delta_t x_t', G> = sum_t delta_t . (G x_t).
Rows stay apart because delta does. Nothing depends on module types: what is watched are the operations.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten, tree_unflatten

from probe.diagnostics.parameter_groups import Group

# Linear in all of their parameters together, given one activation; others are differentiated in forward mode.
_LINEAR = {F.linear, F.embedding, F.rms_norm, torch.addmm, torch.matmul, torch.mul}
_LINEAR |= {getattr(Tensor, name) for name in ("matmul", "__matmul__", "mul", "__mul__", "__rmul__")}


class Watch(TorchFunctionMode):
    """Inside, every operation that mixes a parameter with activations is noted; backward then fills ``effect``.

    Args:
        directions: by id of each (detached) parameter its name, group and directions G (risk, *shape).
        n_rows: rows of the batch.
        widths: how many columns a forward may have.
        n_risks: how many directions there are.
    """

    def __init__(
        self, directions: dict[int, tuple[str, Group, Tensor]], n_rows: int, widths: set[int], n_risks: int
    ) -> None:
        super().__init__()
        self.n_rows, self.widths, self.n_risks = n_rows, widths, n_risks
        self.paths = {key: {group: G} for key, (_, group, G) in directions.items()}
        self.names = {key: {name} for key, (name, _, _) in directions.items()}
        self.kept: list[Tensor] = []
        self.leaves: list[Tensor] = []
        self.used: set[str] = set()
        self.effect: dict[Group, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            return out
        flat, spec = tree_flatten((args, kwargs))
        at = [i for i, x in enumerate(flat) if id(x) in self.paths]
        if not at:
            return out
        groups = {group for i in at for group in self.paths[id(flat[i])]}
        names = {name for i in at for name in self.names[id(flat[i])]}
        others = [x for i, x in enumerate(flat) if isinstance(x, Tensor) and i not in at]

        def moved(group: Group, k: int) -> Tensor:
            """What ``out`` does along one direction of one group."""
            given = [self.paths[id(flat[i])].get(group) for i in at]
            steps = [torch.zeros_like(flat[i]) if G is None else G[k] for i, G in zip(at, given, strict=True)]
            linear = len(others) == 1 and all(G is not None for G in given)
            if linear and (func in _LINEAR or (func is F.layer_norm and len(at) == 2)):
                return _call(func, flat, spec, at, steps)
            primals = tuple(flat[i] for i in at)
            return torch.func.jvp(lambda *now: _call(func, flat, spec, at, now), primals, tuple(steps))[1]

        if not others or not self._has_rows(out):
            if any(x.requires_grad for x in others):
                raise ValueError(_unknown(func, names, f"it mixes rows, in a result of shape {tuple(out.shape)}"))
            self._derive(out, moved, groups, names)
            return out
        if not torch.is_grad_enabled():
            return out  # of no consequence for the loss, or inside a custom kernel whose backward is its own
        self.used |= names
        if not out.requires_grad:
            out = out.detach().requires_grad_()
            self.leaves.append(out)
        out.register_hook(lambda delta: self._collect(delta, moved, groups))
        return out

    def _has_rows(self, out: Tensor) -> bool:
        n = out.shape[0] if out.ndim else 0
        return (out.ndim > 2 and n == self.n_rows) or (out.ndim > 1 and n in {self.n_rows * t for t in self.widths})

    def _derive(self, out: Tensor, moved: Callable[[Group, int], Tensor], groups: set[Group], names: set[str]) -> None:
        """A tensor made of parameters alone (transposed, cast, 1 + w) is watched as they are."""
        with torch.no_grad():
            self.paths[id(out)] = {
                group: torch.stack([moved(group, k) for k in range(self.n_risks)]) for group in groups
            }
        self.names[id(out)] = names
        self.kept.append(out)  # ids are reused once a tensor is gone

    def _collect(self, delta: Tensor, moved: Callable[[Group, int], Tensor], groups: set[Group]) -> None:
        wide = torch.promote_types(delta.dtype, torch.float32)
        with torch.no_grad():
            for group in groups:
                rows_KB = torch.stack(
                    [
                        (delta.to(wide) * moved(group, k).to(wide)).reshape(self.n_rows, -1).sum(1)
                        for k in range(self.n_risks)
                    ]
                ).cpu()
                before = self.effect.get(group)
                self.effect[group] = rows_KB.double() if before is None else before + rows_KB


def _call(func: Any, flat: list[Any], spec: Any, at: list[int], values: Any) -> Tensor:
    given = list(flat)
    for i, value in zip(at, values, strict=True):
        given[i] = value
    args, kwargs = tree_unflatten(given, spec)
    return func(*args, **kwargs)


def _unknown(func: Any, names: set[str], why: str) -> str:
    return (
        f"{getattr(func, '__name__', func)} uses {', '.join(sorted(names))} in a way that cannot be split by row: "
        f"{why}; compute effects row by row with g_effect instead"
    )
