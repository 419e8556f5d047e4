"""CRU: put the few unlearned layers that forget most and cost least into the original model.

>>> import torch
>>> quality_L, utility_L = torch.arange(8.0), torch.zeros(8)  # as a layer map measures them
>>> cru(study.original, study.retrained, quality_L, utility_L, k=2).nonzero().flatten().tolist()
[6, 7]
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import nn

from probe.axes import PerLayerL
from probe.data import Batch, Split
from probe.methods.method import method
from probe.sites import blocks
from probe.weights import blended, check_same_architecture, layers

Rule = Literal["rank_sum", "pareto"]
Scores = Mapping[str, float]


LayerScores = Callable[[], tuple[PerLayerL, PerLayerL]]
"""Forget quality and utility of the original with each single block of the unlearned model."""


@dataclass(frozen=True, eq=False)
class Replacement:
    """Which layers were chosen, and by what.

    Args:
        alpha_L: 1 where the layer comes from the unlearned model, for ``blended``.
        forget_quality_L, utility_L: see ``rank_sum``.
    """

    alpha_L: PerLayerL
    forget_quality_L: PerLayerL
    utility_L: PerLayerL


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


def pareto_fronts(forget_quality_L: PerLayerL, utility_L: PerLayerL) -> tuple[tuple[int, ...], ...]:
    """Layers sorted into fronts: in the first those that no layer dominates, in the next those left then, and so on.

    A layer dominates another if it is at least as good in both scores and better in one; layers of equal scores
    share a front. Within a front the order is that of ``rank_sum``, of equal ones the shallower first.

    Raises:
        ValueError: as ``rank_sum``.
    """
    score_L = rank_sum(forget_quality_L, utility_L)
    both_L2 = torch.stack([forget_quality_L.detach().cpu().double(), utility_L.detach().cpu().double()], 1)
    no_worse_LL = (both_L2[:, None] >= both_L2[None]).all(-1)
    dominates_LL = no_worse_LL & ~no_worse_LL.T
    left = torch.ones(len(score_L), dtype=torch.bool)
    fronts = []
    while left.any():
        front = left & ~(dominates_LL & left[:, None]).any(0)
        fronts.append(tuple(sorted(front.nonzero().flatten().tolist(), key=lambda i: (-float(score_L[i]), i))))
        left &= ~front
    return tuple(fronts)


def changed_blocks(model: nn.Module, unlearned: nn.Module) -> tuple[int, ...]:
    """Blocks of which any weight differs; the others have nothing to bring.

    Raises:
        ValueError: architectures differ.
    """
    check_same_architecture(model, unlearned)
    pairs = zip(blocks(model), blocks(unlearned), strict=True)
    return tuple(layer for layer, (mine, theirs) in enumerate(pairs) if not _equal(mine, theirs))


def _equal(mine: nn.Module, theirs: nn.Module) -> bool:
    pairs = zip(mine.parameters(), theirs.parameters(), strict=True)
    return all(torch.equal(p.detach(), q.detach().to(p)) for p, q in pairs)


def best_layers(
    forget_quality_L: PerLayerL,
    utility_L: PerLayerL,
    k: int,
    *,
    rule: Rule = "rank_sum",
    among: Collection[int] | None = None,
) -> tuple[int, ...]:
    """The k best layers, best first; fewer where fewer may be chosen.

    Args:
        forget_quality_L, utility_L: see ``rank_sum``.
        k: how many.
        among: layers that may be chosen, ``changed_blocks`` say: a block that the method never changed forgets nothing
            and costs nothing, which a sum of ranks can put first. None allows all.
        rule: ``"rank_sum"``, as published, of equal ones the shallower; or ``"pareto"``: front by front
            (``pareto_fronts``), which no change of either score's scale or spacing alters.

    Raises:
        ValueError: k is negative or larger than the number of layers, or an unknown rule.
    """
    score_L = rank_sum(forget_quality_L, utility_L)
    if not 0 <= k <= len(score_L):
        raise ValueError(f"k must lie in 0..{len(score_L)} (the number of layers), got {k}")
    if rule not in get_args(Rule):
        raise ValueError(f"rule must be one of {', '.join(get_args(Rule))}, got {rule!r}")
    if rule == "pareto":
        order = [layer for front in pareto_fronts(forget_quality_L, utility_L) for layer in front]
    else:
        order = torch.sort(score_L, descending=True, stable=True).indices.tolist()
    return tuple(layer for layer in order if among is None or layer in among)[:k]


def cru(
    model: nn.Module,
    unlearned: nn.Module,
    forget_quality_L: PerLayerL,
    utility_L: PerLayerL,
    k: int,
    *,
    rule: Rule = "rank_sum",
) -> PerLayerL:
    """alpha_L that takes the k best of the changed layers from the unlearned model, the rest from the original.

    Use it as ``blended(model, unlearned, cru(...))``. k = 0 is the original; k = all layers is the unlearned
    model only together with ``alpha_rest=1``, for embeddings, final norm and head are no layers.

    Args:
        model: the original, before unlearning.
        unlearned: the model after.
        forget_quality_L, utility_L: see ``rank_sum``; choose on other rows than you report on.
        k: how many layers; where fewer were changed, those are all that there is to take.
        rule: see ``best_layers``.

    Raises:
        ValueError: architectures differ, no block was changed, scores of another length than the model, or k out of
            range.

    >>> probe.cru(s.original, s.retrained, torch.rand(8), torch.rand(8), k=2)
    tensor([0., 1., 0., 0., 0., 0., 0., 1.])
    """
    changed = changed_blocks(model, unlearned)
    depth = model.config.get_text_config().num_hidden_layers  # type: ignore[union-attr,operator]
    if len(forget_quality_L) != depth:
        raise ValueError(f"forget_quality_L has {len(forget_quality_L)} entries; the model has {depth} layers")
    if k and not changed:
        raise ValueError(
            "no block of the unlearned model differs from the original's, so replacing layers changes nothing; what "
            "it changed lies in embeddings, final norm or head"
        )
    return layers(best_layers(forget_quality_L, utility_L, k, rule=rule, among=changed), depth)


@dataclass(frozen=True, eq=False)
class HeldOut:
    """Layers chosen on some rows, and what they are worth on others.

    Args:
        layers: the k layers, best first; fewer where fewer were changed.
        forget_quality_L, utility_L: what they were chosen by, on the validation rows.
        original, unlearned, replaced: scores on the report rows of either model and of the original with ``layers``.
    """

    layers: tuple[int, ...]
    forget_quality_L: PerLayerL
    utility_L: PerLayerL
    original: Scores
    unlearned: Scores
    replaced: Scores


def held_out_cru(
    model: nn.Module,
    unlearned: nn.Module,
    validation: Split,
    report: Split,
    *,
    choose_by: Callable[[Split], tuple[PerLayerL, PerLayerL]],
    score: Callable[[nn.Module, Split], Scores],
    k: int,
    rule: Rule = "rank_sum",
) -> HeldOut:
    """Choose layers on the validation rows, and score the mixture on the report rows, which no choice has seen.

    Args:
        model: the original; changed while it is scored, bit-identical afterwards.
        unlearned: the model after unlearning.
        validation: rows that ``choose_by`` is given, and nothing else is.
        report: rows that ``score`` is given, and nothing else is.
        choose_by: rows -> (forget quality, utility) with each layer alone replaced; from a layer map, say.
        score: (model, rows) -> numbers by name.
        k, rule: see ``best_layers``.

    Raises:
        ValueError: a row, forget or retain, that lies in both, and what ``cru`` refuses.
    """
    _check_apart(validation, report)
    forget_quality_L, utility_L = choose_by(validation)
    alpha_L = cru(model, unlearned, forget_quality_L, utility_L, k, rule=rule)
    ends = score(model, report), score(unlearned, report)
    with blended(model, unlearned, alpha_L):
        replaced = score(model, report)
    among = changed_blocks(model, unlearned)
    chosen = best_layers(forget_quality_L, utility_L, k, rule=rule, among=among)
    return HeldOut(chosen, forget_quality_L, utility_L, *ends, replaced)


def _check_apart(validation: Split, report: Split) -> None:
    seen = _texts(validation.forget) | _texts(validation.retain)
    for name, batch in (("forget", report.forget), ("retain", report.retain)):
        shared = len(seen & _texts(batch))
        if shared:
            raise ValueError(
                f"{shared} of the report's {name} rows are among the validation rows, too; layers chosen on them would "
                "be reported on them. Divide the rows first and make a split of each half"
            )


def _texts(batch: Batch) -> set[tuple[int, ...]]:
    """Each row's tokens without padding."""
    rows = zip(batch.tokens_BT, batch.attention_BT, strict=True)
    return {tuple(tokens_T[real_T].tolist()) for tokens_T, real_T in rows}


@method(
    "no gradient",
    "the k layers of best rank(forget quality) + rank(utility) from the unlearned model",
    "CRU: layer replacement by fragility",
    name="cru",
    trains="replaces k blocks of the original",
    makes="mixture",
)
def cru_measured(model: nn.Module, unlearned: nn.Module, layer_scores: LayerScores, *, k: int) -> Replacement:
    """``cru`` on scores that are measured here, once it is known that k layers can be chosen.

    Args:
        model: the original, before unlearning.
        unlearned: the model after.
        layer_scores: measures all layers, which takes long.
        k: how many layers, at least 1.

    Raises:
        ValueError: as ``cru``, or no layers.
    """
    if k == 0:
        raise ValueError("k = 0 is the original itself; take at least one layer")
    any_L = torch.zeros(model.config.get_text_config().num_hidden_layers)  # type: ignore[union-attr,operator]
    cru(model, unlearned, any_L, any_L, k)
    forget_quality_L, utility_L = layer_scores()
    return Replacement(cru(model, unlearned, forget_quality_L, utility_L, k), forget_quality_L, utility_L)
