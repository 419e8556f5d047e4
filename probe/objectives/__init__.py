"""What to minimise: each objective is a callable ``(model, batch) -> scalar``."""

from probe.exports import export

export(__name__)
