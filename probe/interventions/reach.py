"""How many tokens an edit touches, and how far it moves them in units of their own length."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from probe.data import Batch
from probe.harvest import visit
from probe.hooks import edited
from probe.positions import Intervention, Positions
from probe.sites import Site


@dataclass(frozen=True)
class Reach:
    """What an edit does to the states at its site.

    Args:
        touched: share of the tokens whose state changes at all.
        relative: median over touched tokens of |h' - h| / |h|; NaN if none is touched. Far above 1 little is left of
            what the stream said, and what follows is collapse rather than forgetting.
        n_tokens: how many tokens were looked at.
    """

    touched: float
    relative: float
    n_tokens: int


def reach(
    model: nn.Module,
    batch: Batch,
    site: Site,
    edit: Intervention | Sequence[Intervention],
    *,
    positions: Positions,
    batch_size: int = 32,
) -> Reach:
    """Measure an edit, within ``At`` or behind a gate too, on rows of text.

    Args:
        model: any Hugging Face decoder; left as it was.
        batch: the rows.
        site: where the edit acts.
        edit: as for ``probe.hooks.edited``.
        positions: which tokens are looked at: ``NotIds(tokenizer.all_special_ids)``, say.
        batch_size: rows per forward pass.

    Raises:
        ValueError: no token is looked at.

    >>> found = probe.reach(s.original, s.split.forget, probe.Site(4), probe.Scale(0.5), positions=probe.not_first)
    >>> found.touched, round(found.relative, 2)
    (1.0, 0.5)
    """
    before: list[Tensor] = []
    after: list[Tensor] = []

    def keep(kept: list[Tensor]) -> None:
        def take(piece: Batch, states: dict[Site, Tensor]) -> None:
            kept.append(states[site])

        visit(model, batch.chunks(batch_size), [site], take, positions=positions)

    keep(before)
    with edited(model, {site: edit}):
        keep(after)
    shares, n_tokens, n_touched = [], 0, 0
    for before_ND, after_ND in zip(before, after, strict=True):
        touched_N = (before_ND != after_ND).any(1)
        moved_N = (after_ND.float() - before_ND.float()).norm(dim=1) / before_ND.float().norm(dim=1)
        shares.append(moved_N[touched_N])
        n_tokens, n_touched = n_tokens + len(touched_N), n_touched + int(touched_N.sum())
    if n_tokens == 0:
        raise ValueError(f"no token of the {len(batch)} rows is looked at; check the batch and the positions")
    return Reach(n_touched / n_tokens, torch.cat(shares).median().item() if n_touched else float("nan"), n_tokens)
