"""Which features of a dictionary matter: what they do on forget and retain rows, and the rules that rank them."""
