"""Rows to choose on and rows to report on: no entity lies on both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from probe.data import QA, Split, Template, make_split


@dataclass(frozen=True, eq=False)
class Halves:
    """Two splits whose entities differ.

    Args:
        select: where features, strengths and rules are chosen.
        report: where the choice is judged.
    """

    select: Split = field(repr=False)
    report: Split = field(repr=False)


def halves(
    tokenizer: Any,
    forget: Sequence[QA],
    retain: Sequence[QA],
    *,
    seed: int,
    template: Template = Template(),
    max_length: int = 256,
) -> Halves:
    """Divide both sides by entity: all rows of a group (``QA.group``) go to one half.

    A row without a group is an entity of its own, which is right for rows that share nothing and too kind for rows
    that do. Halves are equal in entities, give or take one.

    Args:
        tokenizer: fast, not altered.
        forget, retain: rows of both sides.
        seed: of the draw.
        template: how question and answer become one text.
        max_length: longest text in tokens.

    Raises:
        ValueError: a side of a single entity, which cannot be on both halves, or rows on both sides.
    """
    parts = [_parted(rows, side, seed) for rows, side in ((forget, "forget"), (retain, "retain"))]
    select, report = (
        make_split(tokenizer, parts[0][k], parts[1][k], template=template, max_length=max_length) for k in (0, 1)
    )
    return Halves(select, report)


def groups_of(rows: Sequence[QA]) -> tuple[str, ...]:
    """The entity of each row, the unit of its intervals."""
    return tuple(row.group or f"row {i}" for i, row in enumerate(rows))


def _parted(rows: Sequence[QA], side: str, seed: int) -> tuple[list[QA], list[QA]]:
    owners = groups_of(rows)
    names = list(dict.fromkeys(owners))
    if len(names) < 2:
        raise ValueError(
            f"the {side} rows are about {len(names)} entity (their group), so none is left to report on; give rows of "
            "at least two groups"
        )
    order = torch.randperm(len(names), generator=torch.Generator().manual_seed(seed)).tolist()
    first = {names[i] for i in order[: len(names) // 2]}
    pairs = list(zip(rows, owners, strict=True))
    return [row for row, owner in pairs if owner in first], [row for row, owner in pairs if owner not in first]
