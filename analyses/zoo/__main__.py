"""``python -m analyses.zoo build`` and ``python -m analyses.zoo stories``."""

from analyses.shared import command
from analyses.zoo import build, stories

if __name__ == "__main__":
    command(__package__, build.main, stories.main)
