"""Where does the difference between two models act? Each layer and group of tokens patched, and estimated."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import MaskBT
from probe.context import check_rows
from probe.data import Batch
from probe.diagnostics.depth_score import row_means
from probe.diagnostics.sides import of_pair
from probe.display import Result, ResultTable
from probe.hooks import captured, edited
from probe.interventions.replacement import Replace
from probe.modes import evaluating
from probe.positions import At, Mask
from probe.rows import Row
from probe.sites import Part, Site, n_layers
from probe.weights import check_same_architecture

PerGroupLG = Float[Tensor, "L G"]


def _question(batch: Batch) -> MaskBT:
    """The prompt without its last token."""
    index_BT = batch.attention_BT.long().cumsum(1) - 1
    return batch.attention_BT & (index_BT < batch.prompt_B[:, None] - 1)


def _prompt_end(batch: Batch) -> MaskBT:
    """The prompt's last token."""
    index_BT = batch.attention_BT.long().cumsum(1) - 1
    return batch.attention_BT & (index_BT == batch.prompt_B[:, None] - 1)


def _after_prompt(batch: Batch) -> MaskBT:
    """Every token after the prompt."""
    index_BT = batch.attention_BT.long().cumsum(1) - 1
    return batch.attention_BT & (index_BT >= batch.prompt_B[:, None])


GROUPS: Mapping[str, Callable[[Batch], MaskBT]] = MappingProxyType(
    {"question": _question, "prompt end": _prompt_end, "answer": _after_prompt}
)


@dataclass(frozen=True, eq=False)
class Localisation(Result):
    """What the source's states change in the target model's log-probability of the answer, by layer and token group.

    Args:
        layers: block indices, in the order of the first axis.
        groups: names of token groups, in the order of the second.
        effect_LG: mean log-probability per target token after patching less before (nats), mean over rows.
        attributed_LG: first-order estimate of the same, sum of (h_source - h) . d logp / dh (attribution patching).
        rank_correlation: Spearman's between the two over all cells; NaN if a side does not vary.
        before: mean log-probability per target token of the unpatched model.
    """

    layers: tuple[int, ...]
    groups: tuple[str, ...]
    effect_LG: PerGroupLG
    attributed_LG: PerGroupLG = field(repr=False)
    rank_correlation: float
    before: float

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Every cell, measured and estimated; ``on`` says whose rows these are."""
        rows = [Row(name, "localisation", "before", self.before, on)]
        rows.append(Row(name, "localisation", "rank correlation", self.rank_correlation, on))
        for what, value_LG in (("effect", self.effect_LG), ("attributed", self.attributed_LG)):
            for layer, value_G in zip(self.layers, value_LG.tolist(), strict=True):
                for group, value in zip(self.groups, value_G, strict=True):
                    rows.append(Row(name, "localisation", f"{what}, {group}", value, on, layer=layer))
        return rows

    def table(self) -> ResultTable:
        note = f"change of the answer's mean log-probability (nats a token), {self.before:.3f} before"
        return ResultTable({"layer": self.layers, **dict(zip(self.groups, self.effect_LG.T, strict=True))}, note=note)


@of_pair
def localisation(
    model: nn.Module,
    source: nn.Module,
    batch: Batch,
    *,
    layers: Sequence[int] | None = None,
    part: Part = "block",
    groups: Mapping[str, Callable[[Batch], MaskBT]] = GROUPS,
    batch_size: int = 32,
) -> Localisation:
    """Activation patching between models on the same text, beside its gradient approximation.

    Activation patching: Meng et al., arXiv 2202.05262. Attribution patching (Nanda, 2023; Syed et al., arXiv
    2310.10348) needs one forward and one backward pass for all cells; it is an estimate, and poor where states differ
    much, which is why the agreement is stated. Where ``model`` is certain its gradients vanish and the estimate with
    them: patch the original's states into the unlearned model then, which asks what would bring the answer back.

    Args:
        model: what is patched and measured, the original say; left as it was, gradients included.
        source: whose states are put in: unlearned or retrained.
        batch: rows that both read; the log-probability is that of their targets. A split gives a result for each side.
        layers: blocks; None takes all.
        part: which states of a block.
        groups: masks of tokens by name.
        batch_size: rows per pass.

    Raises:
        ValueError: other architectures, rows without a target, no groups, or NaN.

    >>> few = s.split.forget.select(range(4))
    >>> probe.localisation(s.original, s.retrained, few, layers=[0, 7]).effect_LG.shape
    torch.Size([2, 3])
    """
    check_same_architecture(model, source)
    empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
    if empty or not groups:
        raise ValueError(
            f"{len(empty)} of {len(batch)} rows have no target token, {len(groups)} token groups are given"
        )
    chosen = tuple(range(n_layers(model))) if layers is None else tuple(layers)
    sites = [Site(layer, part) for layer in chosen]
    device = next(model.parameters()).device
    effect_LG = torch.zeros(len(chosen), len(groups), dtype=torch.float64)
    attributed_LG, total = torch.zeros_like(effect_LG), 0.0
    with evaluating(model), evaluating(source):
        for chunk in batch.chunks(batch_size):
            check_rows(model, chunk)
            piece = chunk.to(device)
            masks = [group(piece) for group in groups.values()]
            with torch.no_grad(), captured(source, sites, stop=True) as theirs:
                source(**piece.to(next(source.parameters()).device).inputs, use_cache=False)
            theirs = {site: states.to(device) for site, states in theirs.items()}
            with torch.no_grad():
                before = row_means(model, piece).sum()
                for i, site in enumerate(sites):
                    for j, mask_BT in enumerate(masks):
                        with edited(model, {site: At(Replace(theirs[site]), Mask(mask_BT))}):
                            effect_LG[i, j] += (row_means(model, piece).sum() - before).item()
            attributed_LG += _attributed(model, piece, theirs, sites, masks)
            total += before.item()
    if not bool(torch.isfinite(effect_LG).all() & torch.isfinite(attributed_LG).all()):
        raise ValueError("patched log-probabilities hold NaN or infinity; check both models")
    n = len(batch)
    return Localisation(
        chosen,
        tuple(groups),
        effect_LG / n,
        attributed_LG / n,
        rank_correlation=_spearman(effect_LG, attributed_LG),
        before=total / n,
    )


def _attributed(
    model: nn.Module, batch: Batch, theirs: dict[Site, Tensor], sites: Sequence[Site], masks: Sequence[MaskBT]
) -> PerGroupLG:
    with torch.enable_grad(), captured(model, sites) as ours:
        # A leaf that adds nothing makes states carry a graph even where all parameters are frozen.
        first = torch.zeros(1, device=batch.tokens_BT.device, dtype=next(model.parameters()).dtype, requires_grad=True)
        with edited(model, {Site(0, "embedding"): lambda hidden_BTD: hidden_BTD + first}):
            score = row_means(model, batch).sum()
        slopes = torch.autograd.grad(score, [ours[site] for site in sites])
    rows = []
    for site, slope_BTD in zip(sites, slopes, strict=True):
        along_BT = ((theirs[site] - ours[site].detach()).double() * slope_BTD.double()).sum(2)
        rows.append(torch.stack([(along_BT * mask_BT).sum() for mask_BT in masks]))
    return torch.stack(rows).cpu()


def _spearman(one_LG: PerGroupLG, other_LG: PerGroupLG) -> float:
    from scipy.stats import rankdata

    ranks = [torch.from_numpy(rankdata(x.flatten().numpy())) for x in (one_LG, other_LG)]
    centred = [rank_N - rank_N.mean() for rank_N in ranks]
    return float((centred[0] @ centred[1]) / (centred[0].norm() * centred[1].norm()))
