"""What every model under judgement is asked: the same rows, the same attacks, the same original beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import torch
from torch import nn

from probe.attacks.facts import Facts, divided
from probe.data import QA, Split, Template, make_split
from probe.diagnostics.answer_values import value_split
from probe.diagnostics.split_states import SplitStates, split_states
from probe.questions import groups_of


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How a model is examined. A verdict is fitted under one protocol and holds under that one.

    Args:
        seed: divides forget rows, draws attacks.
        share: part of the forget rows that attacks are shown; the rest is scored.
        forget, retain: most rows of each side that are read.
        asked: retain rows that are scored with their wrong answers.
        generated: questions of each side that are answered freely.
        new_tokens: longest such answer.
        lr, batch_size, early, late: relearning: AdamW's rate, rows a step, and the two steps at which rows are scored.
        epsilon, push_steps: latent push at the middle layer, in residual norms, and its gradient steps.
        alpha: weight of the original in the mixture.
        gradients: retain gradients whose span the weight change is compared with.
    """

    seed: int = 0
    share: float = 0.5
    forget: int = 100
    retain: int = 200
    asked: int = 60
    generated: int = 20
    new_tokens: int = 16
    lr: float = 5e-4
    batch_size: int = 16
    early: int = 5
    late: int = 40
    epsilon: float = 0.5
    push_steps: int = 10
    alpha: float = 0.3
    gradients: int = 4


@dataclass(frozen=True, eq=False)
class VerdictRows:
    """Rows, their division and the original; made by ``verdict_rows``.

    Args:
        tokenizer: of all models.
        original: the model before unlearning.
        split: the rows read; without retain rows the forget rows stand on both sides, and nothing of retain is read.
        facts: shown and held-out forget rows.
        protocol: how models are examined.
        has_retain: whether retain rows were given.
    """

    tokenizer: Any = field(repr=False)
    original: nn.Module = field(repr=False)
    split: Split = field(repr=False)
    facts: Facts = field(repr=False)
    protocol: Protocol
    has_retain: bool

    @cached_property
    def values(self) -> Split:
        """The same rows with the answers' values as targets."""
        return value_split(self.tokenizer, self.split)

    @cached_property
    def original_states(self) -> SplitStates:
        """States of the original before each value, read once for all models."""
        return split_states(self.original, self.values)


def verdict_rows(
    tokenizer: Any,
    original: nn.Module,
    forget: Sequence[QA],
    retain: Sequence[QA],
    *,
    protocol: Protocol,
    swap: bool = False,
    max_length: int = 256,
    template: Template = Template(),
) -> VerdictRows:
    """Choose rows and divide them.

    Args:
        tokenizer: fast, not altered.
        original: the model before unlearning.
        forget: rows with wrong answers, lest guessing pass for knowing.
        retain: rows to be kept; may be empty.
        protocol: how many of each.
        swap: exchange shown and held-out rows.
        max_length: longest text in tokens.
        template: how question and answer become one text.

    Raises:
        ValueError: as ``check_verdict_rows``, or rows on both sides.
    """
    check_verdict_rows(forget, retain)
    rows, kept = _spread(forget, protocol.forget), _spread(retain, protocol.retain)
    made = make_split(tokenizer, rows, kept or rows, template=template, max_length=max_length, allow_overlap=not kept)
    facts = divided(
        tokenizer,
        rows,
        share=protocol.share,
        by="row",
        seed=protocol.seed,
        template=template,
        max_length=max_length,
    )
    if swap:
        facts = replace(facts, shown=facts.held, held=facts.shown)
    return VerdictRows(tokenizer, original, made, facts, protocol, bool(kept))


def check_verdict_rows(forget: Sequence[QA], retain: Sequence[QA]) -> None:
    """Refuse rows that no verdict can be made of, which needs no model.

    Raises:
        ValueError: no forget rows, forget rows without wrong answers, groups on both sides, or a side of one group.
    """
    if not forget:
        raise ValueError("no forget rows (0 given); a verdict is about facts that were to be forgotten")
    lone = [i for i, row in enumerate(forget) if not row.perturbed_answer]
    if lone:
        raise ValueError(
            f"{len(lone)} of {len(forget)} forget rows have no wrong answers (first: row {lone[0]}); without them "
            "knowing cannot be told from guessing. Give each row perturbed_answer, a list of wrong answers"
        )
    shared = sorted({row.group for row in forget if row.group} & {row.group for row in retain})
    if shared:
        raise ValueError(
            f"groups on both sides, forget and retain: {len(shared)} ({', '.join(shared[:3])}); probes are fitted on "
            "retain rows and may not have seen whom they are tested on. Leave the retain rows of these groups out, or "
            "give them groups of their own"
        )
    counts = [len(set(groups_of(rows))) for rows in (forget, retain)]
    if retain and min(counts) < 2:
        raise ValueError(
            f"the forget rows have {counts[0]} groups and the retain rows {counts[1]}; probes are fitted on some "
            "groups of either side and tested on others, so give rows of at least two groups a side"
        )


def _spread(rows: Sequence[QA], most: int) -> tuple[QA, ...]:
    """At most so many rows, evenly from all."""
    if len(rows) <= most:
        return tuple(rows)
    return tuple(rows[i] for i in torch.linspace(0, len(rows) - 1, most).round().long().tolist())
