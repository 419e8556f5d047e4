"""What this package promises, checked on a user's own model or intervention; ``probe doctor`` prints the same."""

from probe.exports import export

export(__name__)
