"""``python -m analyses.g_effects``."""

from analyses.g_effects.study import main
from analyses.shared import command

if __name__ == "__main__":
    command(__package__, main)
