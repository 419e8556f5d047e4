"""Is it gone, hidden, broken or untouched: many diagnostics, one verdict, and how often such verdicts are wrong."""

from probe.exports import export

export(__name__)
