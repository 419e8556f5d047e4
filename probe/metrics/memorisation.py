"""What one teacher-forced pass tells: loss and probability of answers, and how much of them the model reproduces."""

from typing import Literal

import numpy as np
from torch import nn

from probe.data import Batch
from probe.metrics.tokens import MatchT, TokenStats, token_stats


def answer_stats(model: nn.Module, batch: Batch, batch_size: int = 64) -> TokenStats:
    """Loss and argmax matches of each row's target tokens, from one forward pass: ``token_stats`` as it mostly is used.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        batch: rows in any order; they are run sorted by length, which changes nothing but the time taken.
        batch_size: rows per pass.

    Returns:
        the statistics, one entry per row of the batch.

    Raises:
        ValueError: rows without a target token, rows longer than the model's context, or a model that gives NaN.

    >>> known, unknown = (probe.answer_stats(model, s.split.forget) for model in (s.original, s.retrained))
    >>> bool(known.probability_N.mean() > unknown.probability_N.mean())
    True
    """
    return token_stats(model, batch, batch_size=batch_size)


def extraction_strength(match_T: MatchT, *, floor: Literal["1/L", "0"]) -> float:
    """ES = 1 - k*/L, where k* is the shortest answer prefix after which every argmax is right.

    Carlini et al., arXiv 2012.07805, in the teacher-forced form; k* = 0 means that the question alone suffices.
    Teacher forcing and greedy generation agree here: after k* every token generated is the true one.

    Args:
        match_T: argmax matches of the L answer tokens, eos left out (``TokenStats.matches``).
        floor: what ES is when even the last token is wrong: ``"1/L"`` as in OpenUnlearning (arXiv 2506.12618), whose
            search stops at k = L - 1; ``"0"`` as in SatImp (arXiv 2505.11953).

    Returns:
        ES in [0, 1]; 0 for an answer without tokens.

    Raises:
        ValueError: an unknown floor.

    >>> import numpy as np
    >>> probe.extraction_strength(np.array([False, False, True, True]), floor="0")
    0.5
    """
    if floor not in ("1/L", "0"):
        raise ValueError(f"floor must be '1/L' (OpenUnlearning) or '0' (SatImp), got {floor!r}")
    length = len(match_T)
    if length == 0:
        return 0.0
    wrong = np.flatnonzero(np.logical_not(match_T))
    kept = length - 1 - int(wrong[-1]) if len(wrong) else length
    return max(kept, 1 if floor == "1/L" else 0) / length


def exact_memorisation(match_T: MatchT) -> float:
    """EM = share of answer tokens that are the argmax given the true tokens before them (OpenUnlearning).

    Tirumala et al., arXiv 2205.10770.

    Args:
        match_T: argmax matches of the answer tokens, eos left out (``TokenStats.matches``).

    Returns:
        EM in [0, 1].

    Raises:
        ValueError: an answer without tokens.

    >>> import numpy as np
    >>> probe.exact_memorisation(np.array([True, False, True, True]))
    0.75
    """
    if len(match_T) == 0:
        raise ValueError("the answer has no tokens besides eos; exact memorisation is undefined")
    return float(np.mean(match_T))
