"""Kernels that forward-mode differentiation can run through."""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

from torch import nn

from probe.sites import unwrapped


@contextmanager
def forward_mode(model: nn.Module) -> Iterator[tuple[str, ...]]:
    """Put kernels without a forward-mode rule aside, and back; yields what was switched."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    inner: Any = unwrapped(model)
    attention = getattr(inner.config, "_attn_implementation", None)
    experts = getattr(inner.config, "_experts_implementation", None)
    switched = []
    try:
        if attention == "sdpa":
            switched.append("attention: sdpa, its math kernel")
        elif attention not in (None, "eager"):
            switched.append(f"attention: {attention} -> eager")
            inner.set_attn_implementation("eager")
        if experts not in (None, "eager"):
            switched.append(f"experts: {experts} -> eager")
            inner.set_experts_implementation("eager")
        with sdpa_kernel(SDPBackend.MATH) if attention == "sdpa" else nullcontext():
            yield tuple(switched)
    finally:
        if attention not in (None, "eager", "sdpa"):
            inner.set_attn_implementation(attention)
        if experts not in (None, "eager"):
            inner.set_experts_implementation(experts)
