"""SAE suppression from choice to verdict: dose and response, controls, audits of what was baked into weights."""

from probe.exports import export

export(__name__)
