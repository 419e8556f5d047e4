"""The gate of Dynamic SAE Guardrails as published: one decision for a whole prompt."""

from dataclasses import dataclass

import torch

from probe.axes import MaskBT
from probe.interventions.gates import StatisticBT, check_share


@dataclass(frozen=True)
class PromptRate:
    """Share of the prompt's tokens at which a feature fired: open or not once for the whole row.

    The gate of Dynamic SAE Guardrails (Muhamed et al., arXiv 2504.08192). It looks ahead: the first tokens of a prompt
    are edited by what the last ones say. A plain forward is all prompt; in generation the prompt decides for the rest.

    Args:
        threshold: a share in [0, 1]; None until calibrated.
        columns: divide by all columns of the padded prompt, as the released code does (commit 7f30128), bos and padding
            among them, so that a row's share depends on the longest row of its batch; else by the tokens that count.

    Raises:
        ValueError: a threshold outside [0, 1].

    >>> gate = probe.PromptRate(threshold=0.1)
    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), gate, probe.not_first)
    """

    threshold: float | None = None
    columns: bool = False

    once = True

    def __post_init__(self) -> None:
        check_share(self.threshold)

    @property
    def hold(self) -> bool:
        """Of no effect."""
        return False

    @property
    def ceiling(self) -> float:
        """All tokens fire."""
        return 1.0

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT, prompt_BT: MaskBT | None = None) -> StatisticBT:
        """Fired in the prompt / counted in it, the same at every token; all tokens are the prompt's unless told."""
        prompt_BT = torch.ones_like(counted_BT) if prompt_BT is None else prompt_BT
        fires_B1 = (fired_BT & counted_BT & prompt_BT).sum(1, keepdim=True).double()
        n_B1 = (counted_BT & prompt_BT).sum(1, keepdim=True)
        if self.columns:
            n_B1 = torch.full_like(n_B1, int(prompt_BT.any(0).nonzero().max()) + 1 if prompt_BT.numel() else 0)
        return (fires_B1 / n_B1.clamp(min=1)).expand(fired_BT.shape)
