"""``python -m analyses.sae dose-response`` and ``python -m analyses.sae controls``."""

from analyses.sae import controls, dose_response
from analyses.shared import command

if __name__ == "__main__":
    command(__package__, dose_response.main, controls.main)
