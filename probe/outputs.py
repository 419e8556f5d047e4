"""What a module is given and what it returns: the one place that knows that families differ in it."""

from typing import Any

import torch
from torch import Tensor


def first_given(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
    """The hidden states that a part is called with; None if it is given something else first."""
    given = args[0] if args else kwargs.get("hidden_states")
    return given if isinstance(given, Tensor) else None


def hidden_in(output: Any) -> Tensor:
    """Blocks return a Tensor in most families and a tuple in others; ``output[0]`` alone would take a row.

    Raises:
        ValueError: neither.
    """
    if isinstance(output, Tensor):
        return output
    if isinstance(output, tuple) and output and isinstance(output[0], Tensor):
        return output[0]
    raise ValueError(f"expected a module output that is a Tensor or a tuple led by one, got {type(output).__name__}")


def check_axes(hidden: Tensor, name: str, side: str) -> None:
    """Refuse hidden states that are not (batch, position, width): with further or joined axes rows and tokens mix.

    Raises:
        ValueError: another number of axes.
    """
    if hidden.ndim != 3:
        raise ValueError(
            f"the {side}put of {name} has shape {tuple(hidden.shape)}; only hidden states of three axes, (batch, "
            "position, width), can be read or edited, since elsewhere a token's place is not known. Choose another site"
        )


def with_hidden(output: Any, hidden_BTD: Tensor) -> Any:
    """The same kind of output with other hidden states."""
    return hidden_BTD if isinstance(output, Tensor) else (hidden_BTD, *output[1:])


def kept_in(cache: Any) -> Tensor | None:
    """What a cache's last layer keeps about each row's tokens: keys, or the state of a recurrence."""
    for layer in reversed(getattr(cache, "layers", None) or ()):
        states = [
            s for name in ("recurrent_states", "conv_states") for s in (getattr(layer, name, None) or {}).values()
        ]
        for held in (getattr(layer, "keys", None), *states):
            if isinstance(held, Tensor) and held.numel():
                return held
    return None


def rows_before(now: Tensor | None, before: Tensor | None, n_rows: int) -> Tensor | None:
    """Which row of ``before`` each of ``n_rows`` rows of ``now`` is: beam search puts them in another order.

    None where it cannot be told.
    """
    if now is None or before is None or len(now) != n_rows or now.shape[1:] != before.shape[1:]:
        return None
    if now is before:
        return torch.arange(n_rows, device=now.device)
    same_BB = torch.stack([(row == before).flatten(1).all(1) for row in now])
    return same_BB.long().argmax(1) if bool(same_BB.any(1).all()) else None
