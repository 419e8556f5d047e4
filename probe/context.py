"""How long a text a model can read."""

from typing import TYPE_CHECKING, Any

from torch import nn

from probe.sites import unwrapped

if TYPE_CHECKING:
    from probe.data import Batch


def check_context(model: nn.Module, n_tokens: int) -> None:
    """Refuse sequences longer than the model's context, where rotary models fail without a word.

    Raises:
        ValueError: more tokens than the config has positions.
    """
    config: Any = getattr(unwrapped(model), "config", None)
    limit = getattr(config.get_text_config(), "max_position_embeddings", None) if config is not None else None
    if limit is not None and n_tokens > limit:
        raise ValueError(
            f"{n_tokens} tokens are needed and the model has {limit} positions; "
            "shorten the texts, or lower max_length or max_new_tokens"
        )


def check_rows(model: nn.Module, *batches: "Batch") -> None:
    """``check_context`` for the longest row of batches.

    Raises:
        ValueError: a row longer than the model's context.
    """
    for batch in batches:
        check_context(model, batch.tokens_BT.shape[1])
