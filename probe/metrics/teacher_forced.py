"""Several metrics of one teacher-forced pass under one name each, for sweeps that ask the same of many models."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from probe.metrics.attacks import min_k, min_k_plus_plus, zlib_score
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.tokens import TokenStats

Metric = Callable[[TokenStats], Mapping[str, float]]


@dataclass(frozen=True)
class TeacherForced:
    """Every metric that one teacher-forced pass gives; means over rows, needs ``moments=True``.

    Loss (nats a token), probability, extraction strength (Carlini et al., arXiv 2012.07805), exact memorisation
    (Tirumala et al., arXiv 2205.10770), Min-K% (Shi et al., arXiv 2310.16789) and Min-K%++ (Zhang et al., arXiv
    2404.02936), the last two larger for rows that the model never saw.

    Args:
        floor: extraction strength of an answer whose last token is wrong; see ``extraction_strength``.
        k: share of tokens that Min-K% counts.
        texts: the answers as text, one a row, for the loss by compressed length (``zlib_score``); None leaves it out.

    >>> stats = probe.token_stats(s.original, s.split.forget, moments=True)
    >>> sorted(probe.TeacherForced(floor="0", k=0.4)(stats))
    ['exact_memorisation', 'extraction_strength', 'loss', 'min_k', 'min_k_plus_plus', 'probability']
    """

    floor: Literal["1/L", "0"]
    k: float
    texts: tuple[str, ...] | None = None

    def __call__(self, tokens: TokenStats) -> dict[str, float]:
        matches = tokens.matches()
        zlib = {} if self.texts is None else {"zlib": float(zlib_score(tokens.loss_N, self.texts).mean())}
        return zlib | {
            "loss": float(tokens.loss_N.mean()),
            "probability": float(tokens.probability_N.mean()),
            "extraction_strength": float(np.mean([extraction_strength(m_T, floor=self.floor) for m_T in matches])),
            "exact_memorisation": float(np.mean([exact_memorisation(m_T) for m_T in matches])),
            "min_k": float(min_k(tokens, self.k).mean()),
            "min_k_plus_plus": float(min_k_plus_plus(tokens, self.k).mean()),
        }


def loss_and_probability(tokens: TokenStats) -> dict[str, float]:
    """Mean over rows of the loss (nats a token) and of its exponential, the length-normalised probability.

    >>> sorted(probe.loss_and_probability(probe.token_stats(s.original, s.split.forget)))
    ['loss', 'probability']
    """
    return {"loss": float(tokens.loss_N.mean()), "probability": float(tokens.probability_N.mean())}
