"""What one teacher-forced pass tells: loss and probability of answers, and how much of them the model reproduces."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from jaxtyping import Bool, Int
from torch import nn

from probe.data import Batch
from probe.metrics.arrays import ArrayN
from probe.metrics.forward import check_context, device_of
from probe.modes import evaluating

# Rows differ in length, so the axis is not named to the shape checker.
MatchT = Bool[np.ndarray, "_"]


@dataclass(frozen=True)
class AnswerStats:
    """One row per example, in the order of the batch.

    Args:
        loss_N: mean cross-entropy per target token, eos included (nats).
        probability_N: exp(-loss_N), the length-normalised probability of the answer.
        n_tokens_N: number of target tokens, eos included.
        correct: per row, whether each target token is the argmax given the true tokens before it; eos is last.
    """

    loss_N: ArrayN
    probability_N: ArrayN
    n_tokens_N: Int[np.ndarray, " N"]
    correct: tuple[MatchT, ...]

    def __len__(self) -> int:
        return len(self.loss_N)

    def matches(self) -> list[MatchT]:
        """``correct`` without the last target of each row, its eos: what memorisation is measured on."""
        return [match_T[:-1] for match_T in self.correct]


def answer_stats(model: nn.Module, batch: Batch, batch_size: int = 64) -> AnswerStats:
    """Loss and argmax matches of each row's target tokens, from one forward pass.

    Args:
        model: any Hugging Face decoder; edits and blends that are in force act here too.
        batch: rows in any order; they are run sorted by length, which changes nothing but the time taken.
        batch_size: rows per pass.

    Returns:
        the statistics, one entry per row of the batch.

    Raises:
        ValueError: rows without a target token, rows longer than the model's context, or a model that gives NaN.
    """
    empty = (~batch.target_BT[:, 1:].any(1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(f"{len(empty)} of {len(batch)} rows have no target token (first: row {empty[0]}); drop them")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    length_B = batch.attention_BT.sum(1)
    check_context(model, int(length_B.max()))
    order = torch.argsort(length_B, stable=True)
    loss_N = np.zeros(len(batch))
    correct: list[MatchT] = [np.zeros(0, dtype=bool)] * len(batch)
    device = device_of(model)
    with evaluating(model), torch.no_grad():
        for rows in order.split(batch_size):
            found = _chunk(model, batch.select(rows).to(device))
            for i, (loss, match_T) in zip(rows.tolist(), found, strict=True):
                loss_N[i], correct[i] = loss, match_T
    broken = int(np.isnan(loss_N).sum())
    if broken:
        raise ValueError(f"the model gives NaN for {broken} of {len(batch)} rows; its weights or an edit are broken")
    n_tokens_N = np.array([len(match_T) for match_T in correct])
    return AnswerStats(loss_N, np.exp(-loss_N), n_tokens_N, tuple(correct))


def _chunk(model: nn.Module, batch: Batch) -> list[tuple[float, MatchT]]:
    logits_BTV = model(**batch.inputs, use_cache=False).logits
    predicted_BT = batch.target_BT[:, 1:]
    chosen_NV = logits_BTV[:, :-1][predicted_BT]
    target_N = batch.tokens_BT[:, 1:][predicted_BT]
    chosen_NV = chosen_NV if chosen_NV.dtype == torch.float64 else chosen_NV.float()
    loss_N = nn.functional.cross_entropy(chosen_NV, target_N, reduction="none").double().cpu().numpy()
    match_N = (chosen_NV.argmax(-1) == target_N).cpu().numpy()
    ends = predicted_BT.sum(1).cumsum(0)[:-1].cpu().numpy()
    pieces = zip(np.split(loss_N, ends), np.split(match_N, ends), strict=True)
    return [(float(loss_T.mean()), match_T) for loss_T, match_T in pieces]


def extraction_strength(match_T: MatchT, *, floor: Literal["1/L", "0"]) -> float:
    """ES = 1 - k*/L, where k* is the shortest answer prefix after which every argmax is right.

    Carlini et al., arXiv 2012.07805, in the teacher-forced form; k* = 0 means that the question alone suffices.
    Teacher forcing and greedy generation agree here: after k* every token generated is the true one.

    Args:
        match_T: argmax matches of the L answer tokens, eos left out (``AnswerStats.matches``).
        floor: what ES is when even the last token is wrong: ``"1/L"`` as in OpenUnlearning (arXiv 2506.12618), whose
            search stops at k = L - 1; ``"0"`` as in SatImp (arXiv 2505.11953).

    Returns:
        ES in [0, 1]; 0 for an answer without tokens.

    Raises:
        ValueError: an unknown floor.
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
        match_T: argmax matches of the answer tokens, eos left out (``AnswerStats.matches``).

    Returns:
        EM in [0, 1].

    Raises:
        ValueError: an answer without tokens.
    """
    if len(match_T) == 0:
        raise ValueError("the answer has no tokens besides eos; exact memorisation is undefined")
    return float(np.mean(match_T))
