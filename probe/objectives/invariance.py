"""Invariance to a change of scale of the logits, which makes an unlearned model hard to fine-tune back (ILU)."""

from torch import nn

from probe.axes import Scalar
from probe.data import Batch
from probe.objectives.logprobs import before_targets, logits_at, predicted_targets


def irm_penalty(model: nn.Module, batch: Batch) -> Scalar:
    """P = (d/dw NLL(w z) at w = 1)^2 = (mean over target tokens of sum_v p_v z_v - z_y)^2, z the logits.

    The penalty of invariant risk minimisation with one scalar head (IRMv1; Arjovsky et al., arXiv 1907.02893, eq. 4).
    Invariant LLM unlearning (ILU, arXiv 2506.01339) adds it to NPO on rows of an unrelated fine-tuning task: give
    those as the term's data, and one term for each environment. ILU's w stands before the model as a whole and its
    code is not released; here w is IRMv1's scalar on the logits. The derivative is written out, so that training needs
    no second backward pass.

    Args:
        model: trained, through the logits.
        batch: rows of one environment; the square is of the mean over all of its target tokens, so a batch in pieces
            gives another value.

    >>> bool(probe.irm_penalty(s.original, s.split.retain) >= 0)
    True
    """
    logits_NV = logits_at(model, batch, before_targets(batch))
    targets_N = batch.tokens_BT[predicted_targets(batch)]
    expected_N = (logits_NV.softmax(-1) * logits_NV).sum(-1)
    return (expected_N - logits_NV.gather(-1, targets_N[:, None])[:, 0]).mean().square()
