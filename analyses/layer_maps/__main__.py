"""``python -m analyses.layer_maps``."""

from analyses.layer_maps.study import main
from analyses.shared import command

if __name__ == "__main__":
    command(__package__, main)
