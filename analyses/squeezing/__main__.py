"""``python -m analyses.squeezing``."""

from analyses.shared import command
from analyses.squeezing.study import main

if __name__ == "__main__":
    command(__package__, main)
