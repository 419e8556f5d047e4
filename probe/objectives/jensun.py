"""Jensen-Shannon divergences, to a fixed text and to the model before unlearning: JensUn (arXiv 2509.02820).

JS(p, q) = KL(p || m) / 2 + KL(q || m) / 2 with m = (p + q) / 2: symmetric, and between 0 and log 2 nats.
"""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from probe.axes import MaskBT, Scalar
from probe.data import Batch
from probe.objectives.logprobs import LogpN, LogpNV, TokensN, before_targets, logprobs_at, next_tokens, scattered
from probe.objectives.original import OriginalAnswers
from probe.objectives.representation import TokenChoice
from probe.objectives.retain import divergence
from probe.objectives.token import Normalise, token_mean


@dataclass(frozen=True)
class JensenShannonToText:
    """L = mean JS(e_y, pi) = mean [log 2 + (p log p - (1 + p) log(1 + p)) / 2], p = pi(y): towards a fixed text.

    Singh et al., JensUn, arXiv 2509.02820, whose text is "No idea". Without ``text_ids`` y are the batch's own targets,
    so its rows answer with the text, and the text so far is the context. With them it is the loss of the released code:
    the rows keep the answers that are to be forgotten, these stay the context, and y is the text, repeated along each
    answer. That code cuts probabilities at 1e-9. The gradient with respect to z_y is p (1 - p) log(p / (1 + p)) / 2: it
    vanishes at p = 0 too, where that of the NLL is largest.

    Args:
        text_ids: token ids of the text, or none for the batch's own targets.
        normalise: how tokens are averaged.

    Raises:
        ValueError: when called, an id outside the vocabulary.

    >>> refusal = tuple(s.tokenizer(" I do not know.", add_special_tokens=False).input_ids)
    >>> round(float(probe.JensenShannonToText(refusal)(s.original, s.split.forget)), 1)  # at most log 2
    0.7
    """

    text_ids: tuple[int, ...] = ()
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        positions_BT = before_targets(batch)
        logp_NV = logprobs_at(model, batch, positions_BT)
        logp_N = logp_NV.gather(-1, self._wanted(batch, positions_BT, logp_NV.shape[1])[:, None])[:, 0]
        p_N = logp_N.exp()
        value_N = math.log(2) + (p_N * logp_N - (1 + p_N) * p_N.log1p()) / 2
        return self.normalise(scattered(value_N, positions_BT), positions_BT)

    def _wanted(self, batch: Batch, positions_BT: MaskBT, vocabulary: int) -> TokensN:
        if not self.text_ids:
            return next_tokens(batch, positions_BT)
        odd = [i for i in self.text_ids if not 0 <= i < vocabulary]
        if odd:
            raise ValueError(f"text_ids holds {odd[0]}, but the model's token ids run from 0 to {vocabulary - 1}")
        place_N = (positions_BT.cumsum(1) - 1)[positions_BT]
        return torch.tensor(self.text_ids, device=place_N.device)[place_N % len(self.text_ids)]


@dataclass(frozen=True)
class JensenShannon:
    """L = mean JS(pi0, pi), in nats: the retain term of JensUn (Singh et al., arXiv 2509.02820).

    Args:
        original: the model before unlearning, frozen, or an ``OriginalAnswers`` made from it with full=True or
            states=True.
        positions: where.
        normalise: how positions are averaged.

    Raises:
        ValueError: the vocabularies differ.

    >>> loss = probe.JensenShannon(s.original)
    >>> 0 <= float(loss(s.retrained, s.split.retain)) < 0.694  # at most log 2
    True
    """

    original: nn.Module | OriginalAnswers = field(repr=False)
    positions: TokenChoice = before_targets
    normalise: Normalise = token_mean

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return divergence(self, model, batch, _jensen_shannon)


def _jensen_shannon(before_NV: LogpNV, logp_NV: LogpNV) -> LogpN:
    mixed_NV = torch.logaddexp(logp_NV, before_NV) - math.log(2)
    value_NV = logp_NV.exp() * (logp_NV - mixed_NV) + before_NV.exp() * (before_NV - mixed_NV)
    return value_NV.sum(-1) / 2
