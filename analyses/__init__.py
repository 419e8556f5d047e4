"""One study a script, built on what the package offers: ``python -m analyses.NAME``."""
