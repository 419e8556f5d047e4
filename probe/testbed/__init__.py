"""A model organism: facts that one model knows and its twin never saw, and an SAE to look inside."""

from probe.exports import export

export(__name__)
