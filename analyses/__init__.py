"""A folder a study, built on what the package offers: ``python -m analyses.NAME``."""
