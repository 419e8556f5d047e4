"""RMU with a mask instead of a target: part of the width is drawn to zero, the rest is left where it is."""

from dataclasses import dataclass, field

from jaxtyping import Bool
from torch import Tensor, nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.representation import TokenChoice, hidden_at, mean_square, real_tokens
from probe.objectives.token import Normalise, token_mean
from probe.sites import Site


@dataclass(frozen=True)
class TowardsMasked:
    """L = mean over chosen tokens and width of (h - sg[h] m)^2, m in {0, 1}^D: ``rmu_mask`` of the G-effect code.

    Code of Wang et al., arXiv 2502.19301, where an earlier test catches the name, so that the branch is never run.
    Computed as mean (1 - m) h^2, which has the same value and gradient. The code averages over positions whose next
    token is a target (``before_targets``).

    Args:
        site: where h is read; the code's index x is the output of block x - 1.
        kept_D: m; True where h stays.
        tokens: which positions are averaged over.
        normalise: how they are averaged.

    >>> loss = probe.TowardsMasked(probe.Site(3), torch.arange(128) % 2 == 0)
    >>> bool(loss(s.original, s.split.forget) > 0)
    True
    """

    site: Site
    kept_D: Bool[Tensor, " D"] = field(repr=False)
    tokens: TokenChoice = real_tokens
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        hidden_BTD = hidden_at(model, batch, self.site)
        lost_BTD = hidden_BTD.masked_fill(self.kept_D.to(hidden_BTD.device), 0.0)
        return mean_square(lost_BTD, self.tokens(batch), self.normalise)
