"""Attacks that try to get forgotten facts back: one a file, one function, one frozen result."""

from probe.exports import export

export(__name__)
