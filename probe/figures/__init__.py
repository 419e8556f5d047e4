"""Draw rows: one kind of picture a file. Nothing here runs a model; matplotlib is imported nowhere else."""

from probe.exports import export

export(__name__)
