"""``python -m analyses.method_families``."""

from analyses.method_families.study import main
from analyses.shared import command

if __name__ == "__main__":
    command(__package__, main)
