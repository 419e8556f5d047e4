"""probe: find out what LLM unlearning really does inside a model."""

from probe.exports import export

export(__name__)
