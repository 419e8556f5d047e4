"""Objectives on the whole next-token distribution: flatten it, or move it to a target distribution.

``positions`` says where distributions are read: ``before_targets``, ``all_but_last`` (prompts and padding too), or any
other choice of positions; ``normalise`` says how the values there are averaged.
"""

import math
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool
from torch import Tensor, nn

from probe.axes import MaskBT, Scalar
from probe.data import Batch
from probe.objectives.logprobs import LogpN, LogpNV, before_targets, logits_at, logprobs_at, next_tokens, scattered
from probe.objectives.original import OriginalAnswers, check_vocabulary, original_distributions
from probe.objectives.representation import TokenChoice
from probe.objectives.token import Normalise, check_not_negative, check_positive, token_mean

LongerMask = Bool[Tensor, "B longer"]


@dataclass(frozen=True)
class KLToUniform:
    """L = mean KL(pi || U) = mean [log V - H(pi)]: maximise entropy, ME as its paper states it.

    Yuan et al., arXiv 2410.08109; its code computes ``KLFromUniform``. Both are 0 at the uniform distribution only.

    Args:
        positions: where. The code takes its labels; its runs label all, padding too: ``all_but_last``.
        normalise: how positions are averaged.

    >>> loss = probe.KLToUniform()
    >>> 0 <= float(loss(s.original, s.split.forget)) <= 6.94  # at most log V, V = 1024 tokens
    True
    """

    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logp_NV = logprobs_at(model, batch, positions_BT)
        value_N = (logp_NV.exp() * logp_NV).sum(-1) + math.log(logp_NV.shape[1])
        return self.normalise(scattered(value_N, positions_BT), positions_BT)


@dataclass(frozen=True)
class KLFromUniform:
    """L = mean KL(U || pi) = mean [-log V - (1/V) sum_v log pi_v]: maximise entropy, ME as its code computes it.

    Code of Yuan et al., arXiv 2410.08109 (there with 1e-12 inside the logarithm). It punishes any tiny probability
    where ``KLToUniform`` does not. Published: all positions, weight 0.1 beside a retain NLL of weight 1 (TOFU).

    Args:
        positions: where. The code takes its labels; its runs label all, padding too: ``all_but_last``.
        normalise: how positions are averaged.

    >>> bool(probe.KLFromUniform()(s.original, s.split.forget) > probe.KLToUniform()(s.original, s.split.forget))
    True
    """

    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logp_NV = logprobs_at(model, batch, positions_BT)
        value_N = -logp_NV.mean(-1) - math.log(logp_NV.shape[1])
        return self.normalise(scattered(value_N, positions_BT), positions_BT)


@dataclass(frozen=True)
class UNDIAL:
    """L = mean CE(softmax(z0 - beta e_y), pi): distil from the original with the target's logit lowered by beta.

    Dong et al., arXiv 2402.10052. The original code takes every position with its next token as y. OpenUnlearning's
    code also averages over all positions, padding too, but lowers the next token only where it is a target; elsewhere
    its label -100, counted from the end of the vocabulary, lowers token V - 100: ``positions=all_but_last,
    elsewhere=-100``.

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it with full=True.
        beta: how far the logit is lowered, at least 0; the original code uses 5, OpenUnlearning 10.
        positions: where; ``all_but_last`` is the codes' choice.
        normalise: how positions are averaged.
        elsewhere: the token that is lowered before tokens that are no target, negative from the end of the vocabulary;
            None lowers that next token too.

    Raises:
        ValueError: beta is negative, the vocabularies differ or lack ``elsewhere``, or a position without a next token
            is chosen.

    >>> loss = probe.UNDIAL(s.original, beta=10.0)
    >>> bool(loss(s.original, s.split.forget) > probe.nll(s.original, s.split.forget))
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    beta: float
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean
    elsewhere: int | None = None

    def __post_init__(self) -> None:
        check_not_negative("beta", self.beta)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logp_NV = logprobs_at(model, batch, positions_BT)
        before_NV = original_distributions(self.original, batch, positions_BT)
        check_vocabulary(before_NV, logp_NV)
        lowered_NV = before_NV.clone()
        y_N = next_tokens(batch, positions_BT)
        if self.elsewhere is not None:
            if not -logp_NV.shape[1] <= self.elsewhere < logp_NV.shape[1]:
                raise ValueError(f"the vocabulary has {logp_NV.shape[1]} tokens, none is {self.elsewhere} (elsewhere)")
            y_N = y_N.masked_fill(~before_targets(batch)[positions_BT], self.elsewhere)
        lowered_NV[torch.arange(len(y_N), device=y_N.device), y_N] -= self.beta
        return self.normalise(scattered(_cross_entropy(lowered_NV, logp_NV), positions_BT), positions_BT)


@dataclass(frozen=True)
class CEU:
    """L = mean CE(sg softmax(z with z_y = -inf), pi): towards the model's own distribution without the target.

    Yang, CE-U, arXiv 2503.01224; token mean. dL/dz is p_y at the target and -p_v p_y / (1 - p_y) elsewhere.

    Args:
        skip: how many of each row's first targets are left out; OpenUnlearning leaves out 1.
        normalise: how tokens are averaged.

    Raises:
        ValueError: skip is negative, or leaves no target in the batch.

    >>> loss = probe.CEU()(s.original, s.split.forget)
    >>> bool(loss > probe.nll(s.original, s.split.forget))
    True
    """

    skip: int = 1
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_not_negative("skip", self.skip)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = before_targets(batch)
        positions_BT = positions_BT & (positions_BT.cumsum(1) > self.skip)
        if not positions_BT.any():
            raise ValueError(f"no row has more than skip = {self.skip} targets; lower skip")
        logits_NV = logits_at(model, batch, positions_BT)
        y_N = next_tokens(batch, positions_BT)
        without_NV = logits_NV.detach().scatter(1, y_N[:, None], -torch.inf)
        value_N = _cross_entropy(without_NV, torch.log_softmax(logits_NV, -1))
        return self.normalise(scattered(value_N, positions_BT), positions_BT)


@dataclass(frozen=True)
class LogitMargin:
    """L = mean (max_v z_v - mean_v z_v)^2: flatten the logits, the forget term of PDU.

    Entesari et al., arXiv 2506.05314. Its other half, the multiplier on (retain NLL - epsilon) that follows the
    constraint from step to step, is state of a training loop and no objective.

    Args:
        positions: where. The published code marks with labels that it does not shift: ``answer_tokens``, that is one
            position later than ``before_targets``, so the first answer token is not flattened and what follows the
            end of the text is.
        normalise: how positions are averaged.

    >>> bool(probe.LogitMargin()(s.original, s.split.forget) > 0)
    True
    """

    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logits_NV = logits_at(model, batch, positions_BT)
        value_N = (logits_NV.amax(-1) - logits_NV.mean(-1)).square()
        return self.normalise(scattered(value_N, positions_BT), positions_BT)


@dataclass(frozen=True)
class ELMErase:
    """L = mean CE(softmax(log pi0(.|x) - eta_t [log pi0(.|expert, x) - log pi0(.|novice, x)]), pi(.|x)).

    Gandikota et al., arXiv 2410.02760: away from what a text prefaced as an expert's would say. eta_t grows linearly
    from 1 at a row's first token to eta at its last, as in the code. The method's other terms: retain is
    ``ForwardKL(original)`` on retain text (the same gradient as cross-entropy to pi0), fluency is ``nll`` on text that
    the guided original wrote.

    Args:
        original: the model before unlearning, frozen.
        expert_ids, novice_ids: token ids of the two prefaces, without bos; a preface alone may be empty.
        eta: strength at the last token, above 0; published 1000.
        leading: how many of each row's first tokens stay in front of the preface: 1 where rows begin with bos.
        positions: where.
        normalise: how positions are averaged.

    Raises:
        ValueError: eta is not positive, leading is negative, or the vocabularies differ.

    >>> expert, novice = (tuple(s.tokenizer(text).input_ids) for text in ("An expert:", "A novice:"))
    >>> loss = probe.ELMErase(s.original, expert, novice, eta=500.0, leading=1)
    >>> tuple(loss(s.original, s.split.forget).shape)
    ()
    """

    original: nn.Module = field(repr=False)
    expert_ids: tuple[int, ...]
    novice_ids: tuple[int, ...]
    eta: float
    leading: int
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __post_init__(self) -> None:
        check_positive("eta", self.eta)
        check_not_negative("leading", self.leading)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = self.positions(batch)
        logp_NV = logprobs_at(model, batch, positions_BT)
        before_NV = original_distributions(self.original, batch, positions_BT)
        check_vocabulary(before_NV, logp_NV)
        expert_NV, novice_NV = (
            original_distributions(self.original, *_prefaced(batch, positions_BT, ids, self.leading))
            for ids in (self.expert_ids, self.novice_ids)
        )
        place_BT = (batch.attention_BT.cumsum(1) - 1).clamp(min=0)
        share_BT = place_BT / (batch.attention_BT.sum(1, keepdim=True) - 1).clamp(min=1)
        eta_N = (1 + (self.eta - 1) * share_BT)[positions_BT]
        target_NV = before_NV - eta_N[:, None] * (expert_NV - novice_NV)
        return self.normalise(scattered(_cross_entropy(target_NV, logp_NV), positions_BT), positions_BT)


def _prefaced(batch: Batch, positions_BT: MaskBT, ids: tuple[int, ...], leading: int) -> tuple[Batch, LongerMask]:
    """The rows with ``ids`` put in behind their first ``leading`` tokens, and the positions moved along.

    A position whose next token lies behind the preface moves with that token, so it sees the preface.
    """

    def spread(x: Tensor, filling: Tensor, at: int) -> Tensor:
        return torch.cat([x[:, :at], filling.to(x).expand(len(x), -1), x[:, at:]], dim=1)

    no, yes = torch.zeros(1, len(ids), dtype=torch.bool), torch.ones(1, len(ids), dtype=torch.bool)
    longer = replace(
        batch,
        tokens_BT=spread(batch.tokens_BT, torch.tensor([ids], dtype=torch.long), leading),
        target_BT=spread(batch.target_BT, no, leading),
        attention_BT=spread(batch.attention_BT, yes, leading),
        prompt_B=batch.prompt_B + len(ids),
        warn=False,
        preferred=None,
    )
    return longer, spread(positions_BT, no, max(leading - 1, 0))


def _cross_entropy(target_logits_NV: LogpNV, logp_NV: LogpNV) -> LogpN:
    """-sum_v t_v log pi_v with t = softmax(target logits); an absent token (-inf) adds nothing."""
    return -(torch.softmax(target_logits_NV, -1) * logp_NV).sum(-1)
