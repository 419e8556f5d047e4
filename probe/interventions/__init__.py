"""Changes of activations: each is a frozen callable ``hidden_BTD -> hidden_BTD`` for ``probe.hooks.edited``.

Strength zero returns the very tensor that came in, so an edit that does nothing changes no bit.
"""

from probe.exports import export

export(__name__)
