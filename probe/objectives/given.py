"""A model of which nothing is known but the log-probabilities of some targets."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probe.axes import LogpBT
from probe.data import Batch


class NotAReweighting(ValueError):
    """The objective reads more of the model than its targets' log-probabilities."""


class LogprobsAlone(nn.Module):
    """Takes a model's place in an objective and answers one question only: log p of targets, at temperature 1.

    An objective that asks for logits, hidden states or weights is refused, so whatever value comes back is a function
    of the log-probabilities alone, and autograd gives dL / dlog p without the model. What an objective detaches
    stays detached.

    Args:
        batches: tokens and targets that are known: the rows, and their preferred answers where they have some.
        logprobs: ``(which batch) -> log p (batch, position)``, asked for when first needed.
    """

    def __init__(self, batches: Sequence[Batch], logprobs: Callable[[int], LogpBT]) -> None:
        super().__init__()
        self._batches, self._logprobs = tuple(batches), logprobs

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        raise NotAReweighting("the objective runs the model itself, not only for log-probabilities of targets")

    def __getattr__(self, name: str) -> Any:
        # Private names are torch's own; a missing one is an ordinary missing attribute.
        if name.startswith("_"):
            return super().__getattr__(name)
        raise NotAReweighting(f"the objective reads the model's {name}, not only log-probabilities of targets")

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        raise NotAReweighting("the objective reads the model's weights, not only log-probabilities of targets")

    def target_logprobs(self, batch: Batch, temperature: float) -> LogpBT:
        """As ``probe.objectives.logprobs.target_logprobs``; targets may be some of those that are known.

        Raises:
            NotAReweighting: another temperature than 1, or rows or targets that are not known.
        """
        if temperature != 1:
            raise NotAReweighting(f"log-probabilities at temperature {temperature} are no function of those at 1")
        for i, known in enumerate(self._batches):
            if batch.tokens_BT is known.tokens_BT or torch.equal(batch.tokens_BT, known.tokens_BT):
                wanted_BT, known_BT = _predicted(batch), _predicted(known)
                if not (wanted_BT & ~known_BT).any():
                    return self._logprobs(i).masked_fill(~wanted_BT, 0.0)
        raise NotAReweighting("the objective asks for rows or targets other than those of its batch")


def _predicted(batch: Batch) -> Tensor:
    return torch.cat([torch.zeros_like(batch.target_BT[:, :1]), batch.target_BT[:, 1:]], dim=1)
