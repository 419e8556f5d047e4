"""Which features write what they say: pushed along its row, does a feature bring up the tokens its row points at?"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.features.activity import ordinary
from probe.features.ranking import FeatureTable
from probe.hooks import edited
from probe.interventions.activations import activations, check_number
from probe.modes import evaluating
from probe.objectives.head import through_head
from probe.positions import At, NotIds
from probe.sites import Site, unwrapped

TokensKN = Int[Tensor, "K N"]
PerFeatureK = Float[Tensor, " K"]


@dataclass(frozen=True, eq=False)
class OutputScores:
    """How far each feature's push brings up its logit-lens tokens.

    Args:
        features: ids.
        token_KN: each feature's first N tokens through the logit lens.
        score_K: p (1 - rank / V) of the best of them after the push, in [0, 1], mean over prompts; rank 0 is first.
        rise_K: rise of their mean log-probability (nats), mean over prompts: what a model that says them anyway does
            not get.
    """

    features: tuple[int, ...]
    token_KN: TokensKN = field(repr=False)
    score_K: PerFeatureK = field(repr=False)
    rise_K: PerFeatureK = field(repr=False)

    def filtered(self, table: FeatureTable, least: float) -> FeatureTable:
        """The table without features whose score is below ``least`` or was not measured; its stability is dropped."""
        kept = {j for j, score in zip(self.features, self.score_K.tolist(), strict=True) if score >= least}
        out = [j for j in range(len(table.score_F)) if j not in kept]
        score_F = table.score_F.clone()
        score_F[out] = -torch.inf
        order = tuple(j for j in table.order if j in kept)
        rule = f"{table.rule}, output score >= {least}"
        return replace(table, rule=rule, role="edit", order=order, score_F=score_F, stability=())


def lens_tokens(model: nn.Module, sae: Any, features: Sequence[int], n: int) -> tuple[TokensKN, Float[Tensor, "K N"]]:
    """The n tokens that each feature's row raises most through the final norm's gain and the head, and by how much.

    Later blocks and the norm's scale are left out, so only the order of the numbers means something.

    Args:
        model: any Hugging Face decoder with an output embedding.
        sae: a dictionary that writes to the residual stream.
        features: ids.
        n: tokens a feature.

    Raises:
        ValueError: unknown features, a dictionary that writes another width than the model's, or a model without head.
    """
    found, ids = dictionary(sae), check_features(sae, features)
    inner: Any = unwrapped(model)
    head = inner.get_output_embeddings()
    if head is None:
        raise ValueError(f"{type(inner).__name__} has no output embedding; pass a causal language model")
    width = inner.config.get_text_config().hidden_size
    if found.out_width != width:
        raise ValueError(f"the dictionary writes width {found.out_width}, the residual stream has width {width}")
    if not 1 <= n <= head.weight.shape[0]:
        raise ValueError(f"n must lie in 1..{head.weight.shape[0]}, the size of the vocabulary, got {n}")
    with torch.no_grad():
        row_KD = found.directions_FD[list(ids)].to(head.weight)
        # Of the length that hidden states have after norming, so that the norm's epsilon does not matter.
        row_KD = row_KD * (width**0.5 / row_KD.norm(dim=1, keepdim=True).clamp(min=1e-12))
        logits_KV = through_head(model, row_KD) - through_head(model, torch.zeros_like(row_KD[:1]))
        top = logits_KV.float().topk(n, dim=1)
    return top.indices.cpu(), top.values.cpu()


def output_scores(
    model: nn.Module,
    sae: Any,
    site: Site,
    prompts: Batch,
    features: Sequence[int],
    *,
    dose: float,
    tokens: int,
    special_ids: Sequence[int],
) -> OutputScores:
    """Push every token of neutral prompts along each feature's row, and read the prediction after the last token.

    The output score of Arad et al. (arXiv 2505.20063), by rank and probability of the row's logit-lens tokens; there a
    feature is amplified in multiples of its largest activation, here by ``dose`` median norms of the prompts' states,
    which means the same in every layer. Features that are on without writing anything are left out by it.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        sae: the dictionary at ``site``.
        site: where the push acts.
        prompts: neutral text; what follows its last token is read.
        features: ids, those of a table, say: each costs a forward.
        dose: size of the push in median norms.
        tokens: how many logit-lens tokens count.
        special_ids: token ids that are not pushed.

    Raises:
        ValueError: unknown features, a transcoder, a dose of 0 or not finite, or no token to push.
    """
    check_number(dose, "dose")
    found = dictionary(sae)
    if dose <= 0 or getattr(found, "transcodes", False):
        raise ValueError(f"a push needs a dose above 0, got {dose}, and a dictionary that writes where it reads")
    token_KN, _ = lens_tokens(model, found, features, tokens)
    ids = check_features(found, features)
    hidden_ND = activations(model, prompts, [site], tokens=lambda b: ordinary(b, special_ids))[site]
    norm = float(hidden_ND.norm(dim=1).median())
    there = prompts.to(next(model.parameters()).device)
    where = NotIds(tuple(int(t) for t in special_ids))
    scores, rises = [], []
    with evaluating(model), torch.no_grad():
        plain_BV = _last(model, there)
        for row_D, token_N in zip(found.directions_FD[list(ids)], token_KN, strict=True):
            push_D = dose * norm * row_D / row_D.norm()
            with edited(model, {site: At(_Push(push_D), where)}):
                logp_BV = _last(model, there)
            chosen_BN = logp_BV[:, token_N]
            rank_BN = (logp_BV[:, None] > chosen_BN[..., None]).sum(-1)
            score_BN = chosen_BN.exp() * (1 - rank_BN / logp_BV.shape[1])
            scores.append(score_BN.amax(1).mean())
            rises.append((chosen_BN - plain_BV[:, token_N]).mean())
    empty = torch.zeros(0)
    return OutputScores(
        ids,
        token_KN,
        torch.stack(scores).cpu() if scores else empty,
        torch.stack(rises).cpu() if rises else empty,
    )


@dataclass(frozen=True, eq=False)
class _Push:
    push_D: Tensor = field(repr=False)

    def __call__(self, hidden_BTD: Tensor) -> Tensor:
        return hidden_BTD + self.push_D.to(hidden_BTD)


def _last(model: nn.Module, batch: Batch) -> Tensor:
    """log p of what follows each row's last real token."""
    logits_BTV = model(**batch.inputs, use_cache=False).logits
    column_T = torch.arange(batch.tokens_BT.shape[1], device=logits_BTV.device)
    last_B = torch.where(batch.attention_BT, column_T, -1).amax(1)
    return logits_BTV[torch.arange(len(last_B), device=last_B.device), last_B].float().log_softmax(-1)
