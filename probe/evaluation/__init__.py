"""One model asked what TOFU and OpenUnlearning ask: numbers, a log that others can read, and a table."""

from probe.exports import export

export(__name__)
