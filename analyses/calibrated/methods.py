"""The methods of the calibrated comparison, the tricks it tries on one of them, and their settings.

Settings were not searched: the testbed's are those of ``analyses.method_families``, those on stories260K follow the
NPO and RMU runs of ``analyses.stories``.
"""

import copy
from typing import Any

from torch import nn

from analyses.method_families.study import SETTINGS, VARIANTS
from analyses.subjects import Subject
from probe.methods.unlearn import unlearn
from probe.objectives.token import GA, SelectedTokens, ga

NAMES = (
    *("ga", "grad_diff", "ga_kl", "wga", "tnpo", "npo", "simnpo", "max_entropy", "undial"),
    *("rmu", "adaptive_rmu", "idk", "idk_ap", "idk_dpo"),
)
# A family stands for a claim: plain gradient ascent, preference for a refusal, steered representations.
GA_TYPE = ("ga", "grad_diff", "ga_kl")
REJECTION = ("idk", "idk_ap", "idk_dpo")
STEERED = ("rmu", "adaptive_rmu")

_RETAIN = {"retain_weight": 3.0}
_DIVERGENCE = {"lr": 1e-3, "steps": 30, **_RETAIN}
_RMU = {"lr": 1e-3, "steps": 30, "layer": 2, "alpha": 10.0, "parameters": r"^model\.layers\.[012]\."}
STORIES: dict[str, dict[str, Any]] = {
    "ga": {"lr": 1e-3, "steps": 6},
    "grad_diff": _DIVERGENCE,
    "ga_kl": _DIVERGENCE,
    "wga": {**_DIVERGENCE, "beta": 1.0},
    "tnpo": {**_DIVERGENCE, "beta": 4.0},
    "npo": {**_DIVERGENCE, "beta": 0.1},
    "simnpo": {**_DIVERGENCE, "beta": 2.5},
    "max_entropy": {**_DIVERGENCE, "direction": "to-uniform", "positions": "answers"},
    "undial": {**_DIVERGENCE, "beta": 10.0},
    "rmu": {**_RMU, "coefficient": 10.0},
    "adaptive_rmu": {**_RMU, "scale": 2.0},
    "idk": _DIVERGENCE,
    "idk_ap": {**_DIVERGENCE, "beta": 0.1},
    "idk_dpo": {**_DIVERGENCE, "beta": 0.1},
    "npo alone": {"lr": 1e-3, "steps": 6, "beta": 0.1, "retain_weight": 0.0},
}

# What changes in GradDiff; sizes in parts of its own. UWC (arXiv 2406.09179) tried these four kinds.
TRICKS: dict[str, dict[str, Any]] = {
    "T 2": {"temperature": 2.0},
    "T 5": {"temperature": 5.0},
    "batch / 4": {"batch_size": 0.25},
    "steps / 3": {"steps": 1 / 3},
    "2 steps / 3": {"steps": 2 / 3},
    "likely half": {"keep": "likely", "share": 0.5},
    "likely 80 %": {"keep": "likely", "share": 0.8},
    "unlikely half": {"keep": "unlikely", "share": 0.5},
}
TRICKED = "grad_diff"


def settings(subject_name: str) -> dict[str, dict[str, Any]]:
    """Every method and trick by the name it goes by in results, with all it is called with."""
    stories = subject_name == "stories"
    known = STORIES if stories else {**SETTINGS, **VARIANTS}
    batch_size = 8 if stories else 16
    found = {name: {**known[name], "batch_size": batch_size} for name in (*NAMES, "npo alone")}
    # Without a retain term few steps are the usual choice; these run on, for what the objectives do by themselves.
    for name in ("ga", "npo alone"):
        found[f"{name} (long)"] = {**found[name], "steps": 15 if stories else 30}
    base = found[TRICKED]
    for trick, changes in TRICKS.items():
        sized = {k: max(1, round(base[k] * v)) for k, v in changes.items() if k in ("batch_size", "steps")}
        found[f"{TRICKED} ({trick})"] = {**base, **changes, **sized}
    return found


def unlearned(chosen: Subject, method: str, seed: int, given: dict[str, Any]) -> nn.Module:
    """A copy of the original model after a method or trick.

    Args:
        chosen: model and split.
        method: a name of ``settings``.
        seed: of the method.
        given: its settings.
    """
    if not method.startswith(f"{TRICKED} ("):
        return chosen.unlearned(method.split()[0], given, seed=seed)
    model, common = copy.deepcopy(chosen.original), dict(given)
    away: Any = ga
    if "temperature" in common:
        away = GA(temperature=common.pop("temperature"))
    if "keep" in common:
        away = SelectedTokens(ga, keep=common.pop("keep"), share=common.pop("share"))
    unlearn(model, chosen.split, away, **common, seed=seed)
    return model
