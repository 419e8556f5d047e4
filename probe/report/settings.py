"""What a report is told: plain values, importable without torch so that ``probe --help`` stays quick."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from probe.options import Generated, Passes, Seeded
from probe.ranges import Count, Place, Weight

_RUN = {"steps": 60, "lr": 3e-4, "batch_size": 16}
# Found on the shipped testbed; the report shows what they do there. They are no advice for other models.
TESTBED_METHODS: Mapping[str, Mapping[str, Any]] = {
    # Nothing holds plain gradient ascent back.
    "ga": {**_RUN, "steps": 12},
    "grad_diff": {"retain_weight": 3.0, **_RUN},
    "wga": {"beta": 1.0, "retain_weight": 1.0, **_RUN},
    "npo": {"beta": 0.1, "retain_weight": 10.0, **_RUN},
    # With MLP output weights alone no setting tried here reached forget < 0.2 at retain > 0.9.
    "rmu": {"layer": 3, "coefficient": 20.0, "alpha": 5.0, "whole_blocks": True, **_RUN, "lr": 3e-3},
}


@dataclass(frozen=True, kw_only=True)
class Settings(Passes, Seeded, Generated):
    """Everything a report depends on besides models, data and the settings of methods."""

    sample: Count = 50
    """Rows per side that diagnostics see, drawn by the seed (all if there are fewer)."""
    generated: Count = 20
    """Rows per side for which text is generated."""
    cru_from: tuple[str, ...] = ("grad_diff",)
    """Methods whose models CRU takes layers from; models that were given are all used."""
    cru_layers: Count = 2
    """How many layers CRU takes from the unlearned model."""
    steer_layer: Place | None = None
    """Block at which the forget-minus-retain direction is subtracted or projected out; by default the middle one."""
    steer_doses: tuple[Weight, ...] = (0.0, 0.5, 1.0, 2.0)
    """Lengths of the subtracted vector, in units of the median residual norm at the block."""
    steer_dose: Weight = 1.0
    """The dose that is diagnosed in full."""
    sae_doses: tuple[Weight, ...] = (0.0, 0.1, 0.3, 1.0, 3.0)
    """Clamp values (negated), in units of the median residual norm at the site; 0 is zero ablation."""
    sae_features: tuple[Count, ...] = (5, 20, 50)
    """How many features are clamped."""
    sae_budget: Weight = 0.1
    """Largest rise of the retain loss (nats a token) that a chosen SAE edit may cost where it is chosen."""
    sae_dose: Weight = 1.0
    """The clamp that is diagnosed in full, with the middle number of features."""

    @property
    def longest_generation(self) -> int:
        """``max_new_tokens``, or a report's default."""
        return self.max_new_tokens or 20
