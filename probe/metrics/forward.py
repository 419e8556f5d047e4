"""What a model can be run on when it is measured."""

from typing import Any

import torch
from torch import nn

from probe.sites import unwrapped


def check_context(model: nn.Module, n_tokens: int) -> None:
    """Refuse sequences longer than the model's context, where rotary models fail without a word.

    Raises:
        ValueError: more tokens than the config has positions.
    """
    config: Any = unwrapped(model).config
    limit = getattr(config.get_text_config(), "max_position_embeddings", None)
    if limit is not None and n_tokens > limit:
        raise ValueError(
            f"{n_tokens} tokens are needed and the model has {limit} positions; "
            "shorten the texts, or lower max_length or max_new_tokens"
        )


def device_of(model: nn.Module) -> torch.device:
    """Where the first parameter lies."""
    return next(model.parameters()).device
