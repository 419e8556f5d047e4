"""``python -m analyses.calibrated``."""

from analyses.calibrated.study import main
from analyses.shared import command

if __name__ == "__main__":
    command(__package__, main)
