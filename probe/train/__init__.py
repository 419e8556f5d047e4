"""The one training loop: unlearning, relearning and fitting the testbed all go through ``minimise``."""

from probe.exports import export

export(__name__)
