"""Attacks that try to get forgotten facts back: one a file, one function, one frozen result."""
