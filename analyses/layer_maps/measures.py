"""Rows of ``analyses.layer_maps`` and what a pass over them tells: memorisation, and forget quality."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import nn

from analyses.subjects import Subject
from probe.data import QA, Batch, Split, encode, make_split
from probe.metrics.arrays import ArrayN
from probe.metrics.memorisation import exact_memorisation, extraction_strength
from probe.metrics.tofu import forget_quality, truth_ratio
from probe.metrics.tokens import TokenStats, token_stats


@dataclass(frozen=True, eq=False)
class Half:
    """Rows of one half of the authors, and what is measured on them.

    Args:
        split: its rows.
        asked: the answers of the forget rows, then their paraphrases, then all wrong ones.
        goal_N: truth ratios of the retrained model.
    """

    split: Split
    asked: Batch
    goal_N: ArrayN

    def forget(self, tokens: TokenStats) -> dict[str, float]:
        """Metrics of ``asked``; forget quality is ln p of the test of Maini et al. (arXiv 2401.06121)."""
        n = len(self.split.forget_rows)
        quality = forget_quality(ratios(tokens, n), self.goal_N)
        return {**memorised(tokens.select(range(n))), "forget_quality": quality.ln_p, "floor": math.log(quality.floor)}

    def scores(self, model: nn.Module) -> dict[str, float]:
        """Metrics of both sides."""
        sides = {
            "forget": self.forget(token_stats(model, self.asked)),
            "retain": memorised(token_stats(model, self.split.retain)),
        }
        return {f"{on}/{name}": value for on, found in sides.items() for name, value in found.items()}


def memorised(tokens: TokenStats) -> dict[str, float]:
    """Probability (per token), loss, extraction strength and exact memorisation, means over rows."""
    matches = tokens.matches()
    return {
        "probability": float(tokens.probability_N.mean()),
        "loss": float(tokens.loss_N.mean()),
        "extraction_strength": float(np.mean([extraction_strength(m_T, floor="0") for m_T in matches])),
        "exact_memorisation": float(np.mean([exact_memorisation(m_T) for m_T in matches])),
    }


def ratios(tokens: TokenStats, n: int) -> ArrayN:
    """Truth ratios of ``n`` rows whose answers, paraphrases and wrong answers were run one after another."""
    loss_N = tokens.loss_N
    return truth_ratio(loss_N[n : 2 * n], loss_N[2 * n :].reshape(n, -1))


def half(chosen: Subject, forget: Sequence[QA], retain: Sequence[QA]) -> Half:
    """Rows with what they are measured by."""
    from_split = {"template": chosen.split.template, "max_length": chosen.split.max_length}
    split = make_split(chosen.tokenizer, forget, retain, **from_split)
    texts = [*forget, *(replace(row, answer=row.paraphrased_answer or row.answer) for row in forget)]
    texts += [replace(row, answer=wrong) for row in forget for wrong in row.perturbed_answer]
    asked = encode(chosen.tokenizer, texts, **from_split)
    return Half(split, asked, ratios(token_stats(chosen.retrained, asked), len(forget)))


def halves(chosen: Subject) -> tuple[Half, Half]:
    """Rows to choose layers on, and rows of other authors to report."""
    split, (n_forget, n_retain) = chosen.split, chosen.rows
    n_forget, n_retain = min(n_forget, len(split.forget) // 2), min(n_retain, len(split.retain) // 2)
    return (
        half(chosen, split.forget_rows[:n_forget], split.retain_rows[:n_retain]),
        half(chosen, split.forget_rows[-n_forget:], split.retain_rows[-n_retain:]),
    )
