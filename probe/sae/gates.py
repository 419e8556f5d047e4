"""Gates by name, and features that are edited only where their gate is open."""

import warnings
from collections.abc import Callable, Sequence

import torch
from torch import nn

from probe.data import Split
from probe.dictionaries.dictionary import Dictionary
from probe.interventions.calibration import Calibratable, by_quantile, firing
from probe.interventions.gates import Gated, Rate
from probe.interventions.prompt_rate import PromptRate
from probe.interventions.suppression import Suppress
from probe.positions import Positions
from probe.sites import Site

# "dsg" is the gate of Dynamic SAE Guardrails as its code has it, "dsg-tokens" the same over tokens that count.
GATES: dict[str, Calibratable] = {"dsg": PromptRate(columns=True), "dsg-tokens": PromptRate(), "rate": Rate()}
_LEVEL = 0.95


def gated(
    model: nn.Module,
    site: Site,
    split: Split,
    found: Dictionary,
    features: Sequence[int],
    gate: Calibratable | None,
    *,
    positions: Positions,
    batch_size: int,
) -> Callable[[Suppress], Suppress | Gated] | None:
    """What puts an edit of ``features`` behind a gate; its threshold is the 95 % quantile of the retain rows.

    Args:
        model: the model that is edited, without the edit.
        site: where the dictionary belongs.
        split: rows to choose on; the threshold comes from their retain side.
        found: the dictionary.
        features: whose firing opens the gate.
        gate: of ``GATES``; None leaves edits as they are.
        positions: tokens that count.
        batch_size: rows per forward pass.

    Returns:
        a function of the edit; None, with a warning, where the gate would never open.
    """
    if gate is None:
        return lambda edit: edit
    retain, forget = (
        firing(model, rows, site, found, features, positions=positions, batch_size=batch_size)
        for rows in (split.retain, split.forget)
    )
    if float(torch.quantile(retain.scores(gate), _LEVEL)) >= gate.ceiling:
        warnings.warn(
            f"{len(features)} features are left out: one of them fires at every token of more than {1 - _LEVEL:.0%} of "
            "the retain rows, so that their gate would never open",
            stacklevel=2,
        )
        return None
    ready = by_quantile(gate, retain, forget=forget, level=_LEVEL).gate
    return lambda edit: Gated(edit, ready, positions)
