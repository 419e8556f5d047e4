"""Dictionaries of features: what one is, adapters for every kind users have, loading, and made ones. No model runs."""

from probe.exports import export

export(__name__)
