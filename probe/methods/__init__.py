"""Published methods: each a function that composes objectives, interventions, weights and the one loop.

In examples ``study`` is the testbed: its models, rows, tokenizer and dictionary (``probe.testbed``).
"""

from probe.exports import export

export(__name__)
