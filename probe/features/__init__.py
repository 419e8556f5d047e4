"""Which features of a dictionary matter: what they do on forget and retain rows, rules that rank them, their effects."""
