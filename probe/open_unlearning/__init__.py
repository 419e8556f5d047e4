"""OpenUnlearning's evaluation log: read, written, and every aggregate computed anew from its samples."""

from probe.exports import export

export(__name__)
