"""What an attacker is shown and what is then asked: rows divided so that success means recovery, not learning."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import nn

from probe.attacks.score import AnswerScorer, Scorer
from probe.data import QA, Batch, Split, Template, encode
from probe.questions import groups_of


@runtime_checkable
class Studied(Protocol):
    """What an attack reads of a study (``probe.Study``): rows, tokenizer, and the models beside the one attacked."""

    @property
    def tokenizer(self) -> Any: ...
    @property
    def split(self) -> Split: ...
    @property
    def original(self) -> nn.Module: ...
    @property
    def retrained(self) -> nn.Module | None: ...


@dataclass(frozen=True, eq=False)
class Facts:
    """Forget rows in two parts. Whatever an attack trains, fits or chooses, it does on ``shown``.

    Args:
        shown: what the attacker knows already.
        held: what it wants to get; scored, never trained on.
        tokenizer: fast, not altered.
        score: how rows are scored.
        template: how question and answer become one text.
        max_length: longest text in tokens.
        overlap: allow rows on both sides, as published protocols do that fine-tune on all forget rows. What comes
            back is then what was just taught.

    Raises:
        ValueError: nothing shown, nothing held out, or rows on both sides.
    """

    shown: tuple[QA, ...] = field(repr=False)
    held: tuple[QA, ...] = field(repr=False)
    tokenizer: Any = field(repr=False)
    score: Scorer = field(repr=False)
    template: Template = field(default_factory=Template)
    max_length: int = 256
    overlap: bool = False

    def __post_init__(self) -> None:
        for name, rows in (("shown to the attacker", self.shown), ("held out", self.held)):
            if not rows:
                raise ValueError(f"no rows are {name}; divide at least two rows (probe.attacks.facts.divided)")
        both = {(r.question, r.answer) for r in self.shown} & {(r.question, r.answer) for r in self.held}
        if both and not self.overlap:
            raise ValueError(
                f"{len(both)} rows are both shown and held out (the first asks {min(both)[0]!r}), so an attack would "
                "be scored on what it was taught; divide them, or pass overlap=True"
            )

    @cached_property
    def shown_batch(self) -> Batch:
        """The shown rows, tokenised."""
        return encode(self.tokenizer, self.shown, template=self.template, max_length=self.max_length)

    @cached_property
    def held_batch(self) -> Batch:
        """The held-out rows, tokenised."""
        return encode(self.tokenizer, self.held, template=self.template, max_length=self.max_length)

    @property
    def held_groups(self) -> tuple[str, ...]:
        """The group of each held-out row, the unit of its intervals; a row without one is a group of its own."""
        return groups_of(self.held)


def divided(
    tokenizer: Any,
    rows: Sequence[QA],
    *,
    share: float = 0.5,
    by: Literal["row", "group"] = "row",
    seed: int = 0,
    template: Template = Template(),
    batch_size: int = 64,
    max_length: int = 256,
    choices: bool = True,
) -> Facts:
    """Divide forget rows by chance, and score them by ``AnswerScorer``.

    Args:
        tokenizer: fast, not altered.
        rows: forget rows.
        share: part of the rows that is shown, in (0, 1).
        by: ``"row"`` shows that share of every group's rows, so that held-out facts are about the same people (or
            whatever a group is); ``"group"`` shows all rows of that share of the groups.
        seed: fixes who is shown.
        template, max_length: as in ``Facts``.
        batch_size, choices: of the scorer.

    Raises:
        ValueError: a share outside (0, 1), an unknown ``by``, or a side that would stay empty.

    >>> facts = probe.divided(s.tokenizer, s.split.forget_rows, share=0.5, by="group")
    >>> {row.group for row in facts.shown} & {row.group for row in facts.held}
    set()
    """
    if not 0 < share < 1:
        raise ValueError(f"share must lie between 0 and 1, both excluded, so that rows are held out; got {share}")
    if by not in ("row", "group"):
        raise ValueError(f"by must be 'row' or 'group', got {by!r}")
    generator = torch.Generator().manual_seed(seed)
    groups: dict[str, list[int]] = {}
    for i, row in enumerate(rows):
        # Rows without a group are divided together by rows, and are groups of their own by groups.
        groups.setdefault(row.group or (f"\0{i}" if by == "group" else ""), []).append(i)
    pools = list(groups.values()) if by == "row" else [list(range(len(groups)))]
    chosen: set[int] = set()
    for pool in pools:
        order = torch.randperm(len(pool), generator=generator).tolist()
        chosen |= {pool[k] for k in order[: round(share * len(pool))]}
    if by == "group":
        members = list(groups.values())
        chosen = {i for k in chosen for i in members[k]}
    scorer = AnswerScorer(tokenizer, batch_size, max_length, choices=choices)
    shown = tuple(row for i, row in enumerate(rows) if i in chosen)
    held = tuple(row for i, row in enumerate(rows) if i not in chosen)
    return Facts(shown, held, tokenizer, scorer, template, max_length)


def facts_of(
    study: Facts | Studied, *, share: float = 0.5, by: Literal["row", "group"] | None = None, seed: int = 0
) -> Facts:
    """The forget rows of a study, divided by ``divided`` and scored under its own template; facts stay as they are.

    Args:
        study: anything with ``tokenizer`` and ``split``.
        share, by, seed: as in ``divided``; ``by`` is "row" unless given, or "group" where every row is a group of its
            own. Facts are divided already, and these are not read.

    Raises:
        ValueError: as ``divided``.

    >>> facts = probe.attacks.facts_of(s)
    >>> len(facts.shown), len(facts.held)
    (10, 10)
    """
    if isinstance(study, Facts):
        return study
    split = study.split
    if by is None:
        named = [row.group for row in split.forget_rows if row.group]
        by = "group" if len(set(named)) == len(split.forget_rows) else "row"
    return divided(
        study.tokenizer,
        split.forget_rows,
        share=share,
        by=by,
        seed=seed,
        template=split.template,
        max_length=split.max_length,
    )


def prepared(study: Facts | Studied, retrained: Any) -> tuple[Facts, Any]:
    """What every attack begins with: divided facts, and the model that never knew, from the study where none is given.

    Raises:
        ValueError: as ``divided``.
    """
    if retrained is None and not isinstance(study, Facts):
        return facts_of(study), study.retrained
    return facts_of(study), retrained


def original_of(study: Facts | Studied, original: nn.Module | None) -> nn.Module:
    """The model before unlearning: the one given, or the study's.

    Raises:
        ValueError: neither is there.
    """
    if original is not None:
        return original
    if isinstance(study, Facts):
        raise ValueError("facts hold no original model; pass original=, the model before unlearning, or a study")
    return study.original
