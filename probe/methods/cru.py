"""CRU: put the few unlearned layers that forget most and cost least into the original model."""

import torch
from torch import nn

from probe.axes import PerLayerL
from probe.weights import check_same_architecture, layers


def rank_sum(forget_quality_L: PerLayerL, utility_L: PerLayerL) -> PerLayerL:
    """s_l = rank(FQ_l) + rank(MU_l), both higher is better; ties share their mean rank.

    Args:
        forget_quality_L: forget quality of the original model with block l alone taken from the unlearned one.
        utility_L: model utility of the same.

    Raises:
        ValueError: different lengths, or NaN or infinity.
    """
    if forget_quality_L.shape != utility_L.shape:
        raise ValueError(
            f"forget_quality_L has {len(forget_quality_L)} layers, utility_L {len(utility_L)}; give one of each a layer"
        )
    for name, value_L in (("forget_quality_L", forget_quality_L), ("utility_L", utility_L)):
        if not bool(torch.isfinite(value_L).all()):
            raise ValueError(f"{name} holds NaN or infinity; such a layer has no rank")
    from scipy.stats import rankdata

    ranks = [rankdata(value_L.detach().cpu().double().numpy()) for value_L in (forget_quality_L, utility_L)]
    return torch.as_tensor(ranks[0] + ranks[1], dtype=torch.float64)


def best_layers(forget_quality_L: PerLayerL, utility_L: PerLayerL, k: int) -> tuple[int, ...]:
    """The k layers of highest ``rank_sum``, best first; of equal ones the shallower.

    Raises:
        ValueError: k is negative or larger than the number of layers.
    """
    score_L = rank_sum(forget_quality_L, utility_L)
    if not 0 <= k <= len(score_L):
        raise ValueError(f"k must lie in 0..{len(score_L)} (the number of layers), got {k}")
    order = torch.sort(score_L, descending=True, stable=True).indices
    return tuple(order[:k].tolist())


def cru(
    original: nn.Module, unlearned: nn.Module, forget_quality_L: PerLayerL, utility_L: PerLayerL, k: int
) -> PerLayerL:
    """alpha_L that takes the k best layers from the unlearned model, the rest from the original.

    Use it as ``blended(original, unlearned, cru(...))``. k = 0 is the original; k = all layers is the unlearned
    model only together with ``alpha_rest=1``, for embeddings, final norm and head are no layers.

    Args:
        original: the model before unlearning.
        unlearned: the model after.
        forget_quality_L, utility_L: see ``rank_sum``; choose on other rows than you report on.
        k: how many layers.

    Raises:
        ValueError: architectures differ, scores of another length than the model, or k out of range.
    """
    check_same_architecture(original, unlearned)
    depth = original.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    if len(forget_quality_L) != depth:
        raise ValueError(f"forget_quality_L has {len(forget_quality_L)} entries; the model has {depth} layers")
    return layers(best_layers(forget_quality_L, utility_L, k), depth)
