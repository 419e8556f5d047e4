"""What a model says where an objective reads it: log-probabilities of targets, and whole distributions.

Two masks are used. A mask of targets marks the token that is predicted, at t; a mask of positions marks where it is
predicted from, at t-1.
"""

import inspect
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.axes import LogpBT, MaskBT
from probe.context import check_rows
from probe.data import Batch
from probe.objectives.given import LogprobsAlone

LogpN = Float[Tensor, " N"]
LogpNV = Float[Tensor, "N V"]
TokensN = Int[Tensor, " N"]


def predicted_targets(batch: Batch) -> MaskBT:
    """Targets that something predicts: not a first token."""
    return torch.cat([torch.zeros_like(batch.target_BT[:, :1]), batch.target_BT[:, 1:]], dim=1)


def before_targets(batch: Batch) -> MaskBT:
    """Positions whose next token is a target."""
    return torch.cat([batch.target_BT[:, 1:], torch.zeros_like(batch.target_BT[:, :1])], dim=1)


def all_but_last(batch: Batch) -> MaskBT:
    """Every position with a next token, prompts and padding included: "all positions" of codes that shift labels."""
    position_T = torch.arange(batch.tokens_BT.shape[1], device=batch.tokens_BT.device)
    return (position_T < batch.tokens_BT.shape[1] - 1).expand_as(batch.tokens_BT)


def scattered(value_N: LogpN, mask_BT: MaskBT) -> LogpBT:
    """The values, in the order of rows, where the mask is True; 0 elsewhere."""
    value_BT = torch.zeros(mask_BT.shape, dtype=value_N.dtype, device=value_N.device)
    return value_BT.masked_scatter(mask_BT, value_N)


def logits_at(model: nn.Module, batch: Batch, positions_BT: MaskBT) -> LogpNV:
    """Logits at the marked positions, in float32 at least.

    Where at most half of the positions are marked in some row, the head runs at those alone, if the model can be told
    so.
    """
    check_rows(model, batch)
    columns_K = positions_BT.any(0).nonzero()[:, 0]
    inputs = {**batch.inputs, "use_cache": False}
    # Less is not worth it: the shipped testbed was trained with the head at all positions, and rounding differs.
    if 2 * len(columns_K) <= positions_BT.shape[1] and _heeds_positions(model):
        logits_NV = model(**inputs, logits_to_keep=columns_K).logits[positions_BT[:, columns_K]]
    else:
        logits_NV = model(**inputs).logits[positions_BT]
    return logits_NV if logits_NV.dtype == torch.float64 else logits_NV.float()


def _heeds_positions(model: nn.Module) -> bool:
    """Whether ``logits_to_keep`` reaches the head: Hugging Face models, bare or in peft's wrapper."""
    inner: Any = model
    if hasattr(model, "get_base_model"):
        inner = inner.get_base_model()
    return "logits_to_keep" in inspect.signature(inner.forward).parameters


def logprobs_at(model: nn.Module, batch: Batch, positions_BT: MaskBT) -> LogpNV:
    """log p(. | tokens up to here) over the whole vocabulary at the marked positions; natural logarithm."""
    return torch.log_softmax(logits_at(model, batch, positions_BT), -1)


def next_tokens(batch: Batch, positions_BT: MaskBT) -> TokensN:
    """The token after each marked position.

    Raises:
        ValueError: the last position is marked.
    """
    if positions_BT[:, -1].any():
        raise ValueError("the last position has no next token to act on; choose before_targets or all_but_last")
    return batch.tokens_BT[:, 1:][positions_BT[:, :-1]]


def target_logprobs(model: nn.Module, batch: Batch, temperature: float = 1.0) -> LogpBT:
    """log p(token | tokens before it) at target tokens, 0 elsewhere; natural logarithm.

    Position t holds the log-probability of ``tokens_BT[:, t]``, predicted at t-1. Logits are divided by
    ``temperature`` first.
    """
    if isinstance(model, LogprobsAlone):
        return model.target_logprobs(batch, temperature)
    logits_NV = logits_at(model, batch, before_targets(batch))
    mask_BT = predicted_targets(batch)
    logp_NV = torch.log_softmax(logits_NV / temperature if temperature != 1 else logits_NV, -1)
    logp_N = logp_NV.gather(-1, batch.tokens_BT[mask_BT][:, None])[:, 0]
    return scattered(logp_N, mask_BT)
