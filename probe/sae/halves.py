"""Rows to choose on and rows to report on: no entity lies on both."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from probe.data import QA, Split, Template, make_split
from probe.questions import groups_of


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

    >>> both = probe.halves(s.tokenizer, s.split.forget_rows, s.split.retain_rows, seed=0)
    >>> len(both.select.forget) + len(both.report.forget) == len(s.split.forget)
    True
    """
    parts = [_parted(rows, side, seed) for rows, side in ((forget, "forget"), (retain, "retain"))]
    select, report = (
        make_split(tokenizer, parts[0][k], parts[1][k], template=template, max_length=max_length) for k in (0, 1)
    )
    return Halves(select, report)


def limited_rows(rows: Sequence[QA], most: int) -> tuple[QA, ...]:
    """At most so many rows, in their order: one of every entity in turn, so that as many entities as may be stay."""
    if len(rows) <= most:
        return tuple(rows)
    seen: dict[str, int] = {}
    turn = []
    for place, owner in enumerate(groups_of(rows)):
        turn.append((seen.get(owner, 0), place))
        seen[owner] = seen.get(owner, 0) + 1
    return tuple(rows[place] for place in sorted(place for _, place in sorted(turn)[:most]))


# Fewer entities than this say nothing of their spread.
_FEWEST = 3


def units_of(rows: Sequence[QA]) -> tuple[tuple[str, ...], str]:
    """What the intervals of these rows count, and a note where that is not the entity.

    Rows of one entity are not independent, so intervals count entities; where there are fewer than three, their spread
    cannot be seen, and rows are counted instead.
    """
    owners = groups_of(rows)
    n = len(set(owners))
    if n >= _FEWEST or n == len(rows):
        return owners, "" if any(row.group for row in rows) else "no groups are given, so intervals count rows"
    counted = tuple(f"row {i}" for i in range(len(rows)))
    few = "one entity" if n == 1 else f"{n} entities"
    return counted, f"about {few}, so intervals count rows and say nothing of other entities"


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
