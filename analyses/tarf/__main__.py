"""``python -m analyses.tarf digits`` and ``python -m analyses.tarf language``."""

from analyses.shared import command
from analyses.tarf import digits, language

if __name__ == "__main__":
    command(__package__, digits.main, language.main)
