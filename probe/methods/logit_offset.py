"""Unlearning by a second model: logits are shifted by what small assistants say, weights stay as they are.

>>> wrapped = study.unlearn("logit_offset", assistant=study.retrained, assistant_before=study.original, alpha=1)
>>> type(wrapped).__name__
'Offset'
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from probe.methods.method import method
from probe.sites import unwrapped


@dataclass(frozen=True)
class _Caches:
    """What the model and each assistant remember of a text, passed around as one."""

    model: Any
    assistants: tuple[Any, ...]


class Offset(nn.Module):
    """logits = logits_model + sum_k weight_k logits_assistant_k, with the forward signature of the model.

    The model and the assistants are run as they are and never changed. An assistant of weight 0 is not run, so the
    logits are then the model's own, bit for bit.

    Args:
        model: any Hugging Face decoder.
        assistants: (weight, decoder with the same vocabulary) pairs.

    Raises:
        ValueError: a weight that is not finite, or another vocabulary.
    """

    def __init__(self, model: nn.Module, assistants: Sequence[tuple[float, nn.Module]]) -> None:
        super().__init__()
        size = _vocabulary(model)
        for weight, assistant in assistants:
            if not math.isfinite(weight):
                raise ValueError(f"the weight of an assistant must be finite, got {weight}")
            if _vocabulary(assistant) != size:
                raise ValueError(
                    f"an assistant has {_vocabulary(assistant)} tokens and the model {size}; their logits do not mean "
                    "the same, take an assistant of the model's family"
                )
        used = [(weight, assistant) for weight, assistant in assistants if weight != 0]
        # Modules are made in train mode; this one is in the mode of what it wraps.
        self.training = model.training
        self.module = model
        self.weights = tuple(weight for weight, _ in used)
        self.assistants = nn.ModuleList(assistant for _, assistant in used)

    def forward(self, **inputs: Any) -> Any:
        """The model's own output with shifted logits; ``past_key_values`` carries a cache of each."""
        given = inputs.pop("past_key_values", None) or _Caches(None, (None,) * len(self.weights))
        output = self.module(past_key_values=given.model, **inputs)
        kept = []
        for weight, assistant, cache in zip(self.weights, self.assistants, given.assistants, strict=True):
            other = assistant(past_key_values=cache, **inputs)
            output.logits = self.shifted(output.logits, weight, other.logits.to(output.logits))
            kept.append(getattr(other, "past_key_values", None))
        if getattr(output, "past_key_values", None) is not None:
            output.past_key_values = _Caches(output.past_key_values, tuple(kept))
        return output

    def shifted(self, logits: Tensor, weight: float, other: Tensor) -> Tensor:
        """What one assistant makes of the logits."""
        return logits + weight * other


@method(
    "no gradient",
    "z + alpha (z_unlearned_assistant - z_original_assistant)",
    "Huang et al., arXiv 2404.11045",
    makes="wrapper",
)
def logit_offset(model: nn.Module, assistant: nn.Module, assistant_before: nn.Module, *, alpha: float) -> Offset:
    """logits + alpha * (logits_assistant - logits_assistant_before).

    Offset unlearning (Huang et al., arXiv 2404.11045): a small model shows the large one what unlearning changes.

    Args:
        model: the large model.
        assistant: the small model after unlearning.
        assistant_before: the same before.
        alpha: 0 gives the model's own logits, bit for bit.
    """
    return Offset(model, [(alpha, assistant), (-alpha, assistant_before)])


@method("no gradient", "z - alpha z_assistant", "Ji et al., arXiv 2406.08607", makes="wrapper")
def logit_difference(model: nn.Module, assistant: nn.Module, *, alpha: float) -> Offset:
    """logits - alpha * logits_assistant, the assistant trained to know the forget rows and nothing of the retain rows.

    Unlearning from logit difference (ULD; Ji et al., arXiv 2406.08607).

    Args:
        model: the model that knows both.
        assistant: what shall be taken away.
        alpha: how much of it.
    """
    return Offset(model, [(-alpha, assistant)])


def _vocabulary(model: nn.Module) -> int:
    return unwrapped(model).config.get_text_config().vocab_size  # type: ignore[union-attr,operator]
