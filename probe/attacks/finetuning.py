"""Out-of-domain fine-tuning: train on something else and see whether the forgotten comes back."""

from types import MappingProxyType

from torch import nn

from probe.attacks.curves import Curves, Run, Training, trained
from probe.attacks.facts import Facts
from probe.data import Batch
from probe.objectives import Objective
from probe.objectives.token import nll

# Rob_FT of arXiv 2510.07626, on GSM8K, SST2 or MNLI, 7 B models; its README has a batch size of 16.
PUBLISHED = MappingProxyType({"rob-ft": Training(steps=250, lr=2e-5, batch_size=32)})


def finetune(
    model: nn.Module,
    facts: Facts,
    data: Batch,
    training: Training,
    *,
    reference: nn.Module | Run | None = None,
    objective: Objective = nll,
    progress: bool = False,
) -> Curves:
    """Fine-tune on rows that say nothing of the facts; score the facts at chosen steps.

    Args:
        model: attacked in place and restored bit for bit, after an exception as well.
        facts: only scored here; ``shown`` rows are as unseen as the others.
        data: what is trained on: retain rows, world facts, any text.
        training: steps, learning rate, batch size, seeds; see ``PUBLISHED``.
        reference: a model that never knew the facts; trained on the same rows in the same order, or what it
            gave in an earlier attack of the same kind.
        objective: what is minimised.
        progress: show bars.

    Raises:
        ValueError: a row of ``data`` is one of the facts, or as ``minimise``.
        FloatingPointError: the attack diverged; lower its learning rate.
    """
    facts_seen = {_text(batch, i) for batch in (facts.shown_batch, facts.held_batch) for i in range(len(batch))}
    inside = [i for i in range(len(data)) if _text(data, i) in facts_seen]
    if inside:
        raise ValueError(
            f"{len(inside)} rows of the fine-tuning data are among the facts (the first is row {inside[0]}); this "
            "would be relearning: use relearn, or leave them out"
        )
    return trained("fine-tuning", model, facts, objective, data, training, reference=reference, progress=progress)


def _text(batch: Batch, row: int) -> tuple[int, ...]:
    return tuple(batch.tokens_BT[row][batch.attention_BT[row]].tolist())
