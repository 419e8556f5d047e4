"""Published methods: each a function that composes objectives, interventions, weights and the one loop."""

from probe.exports import export

export(__name__)
