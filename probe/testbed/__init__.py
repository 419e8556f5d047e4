"""A model organism: facts that one model knows and its twin never saw, and an SAE to look inside."""

from probe.testbed.bed import Bed, load

__all__ = ["Bed", "load"]
