"""Out-of-domain fine-tuning: train on something else and see whether the forgotten comes back."""

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

from torch import nn

from probe.attacks.curves import Curves, SeedScores, Training, training_curves
from probe.attacks.facts import Facts, Studied, prepared
from probe.data import Batch
from probe.objectives.objective import Objective
from probe.objectives.token import nll

# Rob_FT of arXiv 2510.07626, on GSM8K, SST2 or MNLI, 7 B models; its README has a batch size of 16.
PUBLISHED: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {"rob-ft": MappingProxyType({"steps": 250, "lr": 2e-5, "batch_size": 32})}
)


def finetune(
    model: nn.Module,
    study: Facts | Studied,
    *,
    steps: int,
    lr: float,
    batch_size: int,
    data: Batch | None = None,
    at: Sequence[int] = (),
    seeds: Sequence[int] = (0,),
    parameters: str = ".",
    retrained: nn.Module | SeedScores | None = None,
    objective: Objective = nll,
    progress: bool = False,
) -> Curves:
    """Fine-tune on rows that say nothing of the facts; score the facts at chosen steps.

    Args:
        model: attacked in place and restored bit for bit, after an exception as well.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; ``shown`` rows are only scored here, as unseen as the others.
        steps, lr, batch_size, at, seeds, parameters: as in ``Training``; published: ``**PUBLISHED["rob-ft"]``.
        data: what is trained on: world facts, any text; the retain rows of the study unless given.
        retrained: a model that never knew the facts; trained on the same rows in the same order, or what it
            gave in an earlier attack of the same kind.
        objective: what is minimised.
        progress: show bars.

    Raises:
        ValueError: no ``data`` beside facts of your own, a row of it is one of the facts, or as ``minimise``.
        FloatingPointError: the attack diverged; lower its learning rate.

    >>> curves = probe.finetune(s.original, s, steps=2, lr=5e-4, batch_size=8)
    >>> curves.attack, [row.item for row in curves.rows("original") if row.intervention == "original"]
    ('fine-tuning', [0, 2])
    """
    facts, never = prepared(study, retrained)
    if data is None:
        if isinstance(study, Facts):
            raise ValueError("facts hold no retain rows; pass data=, what the attacker trains on, or a study")
        data = study.split.retain
    facts_seen = {_text(batch, i) for batch in (facts.shown_batch, facts.held_batch) for i in range(len(batch))}
    inside = [i for i in range(len(data)) if _text(data, i) in facts_seen]
    if inside:
        raise ValueError(
            f"{len(inside)} rows of the fine-tuning data are among the facts (the first is row {inside[0]}); this "
            "would be relearning: use relearn, or leave them out"
        )
    training = Training(steps, lr, batch_size, tuple(at), tuple(seeds), parameters)
    return training_curves("fine-tuning", model, facts, objective, data, training, retrained=never, progress=progress)


def _text(batch: Batch, row: int) -> tuple[int, ...]:
    return tuple(batch.tokens_BT[row][batch.attention_BT[row]].tolist())
