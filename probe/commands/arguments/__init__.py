"""From key=value words and options to the keyword arguments of a method, an attack or a diagnostic."""
