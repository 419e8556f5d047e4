"""Numbers per example and their aggregates: pure functions over arrays, and the passes that fill the arrays."""

from probe.exports import export

export(__name__)
