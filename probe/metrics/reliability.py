"""Which metric can be trusted? One that still ranks models the same after they are attacked."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from probe.data import Batch
from probe.metrics.intervals import Correlation, correlation


@dataclass(frozen=True)
class Reliability:
    """How well each metric's values before an attack predict those after it, across models.

    Args:
        by_metric: for every metric, the correlation under every attack.
        models: number of models.
    """

    by_metric: dict[str, dict[str, Correlation]]
    models: int

    def worst(self) -> dict[str, tuple[str, float]]:
        """For every metric, the attack of the smallest r, and that r; NaN counts as the smallest."""
        found = {}
        for metric, attacks in self.by_metric.items():
            attack = min(attacks, key=lambda name: -2.0 if attacks[name].r != attacks[name].r else attacks[name].r)
            found[metric] = (attack, attacks[attack].r)
        return found


def reliability(
    before: Mapping[str, Any], after: Mapping[str, Mapping[str, Any]], *, seed: int, level: float = 0.95
) -> Reliability:
    """Pearson's r of each metric across models, before against after each attack (arXiv 2406.09179, section 3).

    The models are the sample: one value each, in the same order everywhere. What attacks them is the caller's:
    token noising is ``noised``; jailbreak prefixes, quantisation and relearning are in ``probe.attacks``.

    Args:
        before: metric -> values of the models.
        after: attack -> metric -> values of the same models under the attack.
        seed: of the bootstrap.
        level: confidence of the intervals.

    Returns:
        correlations with Fisher's interval, a bootstrap interval and n.

    Raises:
        ValueError: no metric or attack, a metric that one of the sides lacks, different numbers of models, or NaN.
    """
    if not before or not after:
        raise ValueError("give at least one metric before, and at least one attack after")
    for attack, values in after.items():
        odd = sorted(set(values) ^ set(before))
        if odd:
            raise ValueError(f"before and after {attack} have different metrics: {', '.join(odd)}")
    sizes = {len(values) for values in before.values()}
    if len(sizes) > 1:
        raise ValueError(f"the metrics have between {min(sizes)} and {max(sizes)} models; give every metric all models")
    found: dict[str, dict[str, Correlation]] = {metric: {} for metric in before}
    for attack, values in after.items():
        for metric in before:
            try:
                found[metric][attack] = correlation(before[metric], values[metric], seed=seed, level=level)
            except ValueError as error:
                raise ValueError(f"{metric} under {attack}: {error}") from error
    return Reliability(found, sizes.pop())


def noised(batch: Batch, *, rate: float, vocabulary: int, seed: int) -> Batch:
    """Token noising: each prompt token but the first is replaced with probability ``rate`` by one drawn uniformly.

    Answers, masks and lengths stay as they are, and a replaced token is always another one.

    Args:
        batch: question-answer rows.
        rate: probability for each token.
        vocabulary: number of token ids to draw from.
        seed: fixes which tokens and by what.

    Raises:
        ValueError: a rate outside [0, 1], or a vocabulary smaller than the ids in use.
    """
    if not 0 <= rate <= 1:
        raise ValueError(f"rate is a probability in [0, 1], got {rate}")
    largest = int(batch.tokens_BT.max())
    if vocabulary <= max(largest, 1):
        raise ValueError(f"vocabulary is {vocabulary} and the batch holds the id {largest}; give the model's size")
    generator = torch.Generator().manual_seed(seed)
    tokens_BT = batch.tokens_BT.cpu()
    chosen_BT = torch.rand(tokens_BT.shape, generator=generator) < rate
    shift_BT = torch.randint(1, vocabulary, tokens_BT.shape, generator=generator)
    position_T = torch.arange(tokens_BT.shape[1])
    prompt_BT = (position_T > 0) & (position_T < batch.prompt_B.cpu()[:, None]) & ~batch.target_BT.cpu()
    noisy_BT = torch.where(chosen_BT & prompt_BT, (tokens_BT + shift_BT) % vocabulary, tokens_BT)
    return replace(batch, tokens_BT=noisy_BT.to(batch.tokens_BT.device), warn=False)
