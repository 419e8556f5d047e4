"""Which features of a dictionary matter: what they do on forget and retain rows, and the rules that rank them."""

from probe.exports import export

export(__name__)
