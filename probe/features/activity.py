"""What features do on forget and retain rows: how often, how strongly, in how many rows; one pass a side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from probe.axes import GroupB, MaskBT
from probe.data import Batch
from probe.dictionaries.adapters import dictionary
from probe.dictionaries.dictionary import Dictionary, check_hidden
from probe.features.separation import Piece, Values
from probe.harvest import visit
from probe.sites import Site

PerFeatureF = Float[Tensor, " F"]
PerBlockG = Float[Tensor, " G"]
PerBlockGF = Float[Tensor, "G F"]

# What is resampled are groups of rows; more groups than this are joined, so that memory does not grow with rows.
_BLOCKS = 64
# Features are many times wider than hidden states: so many activations are computed at once.
_ENTRIES = 2**22
# Activations that AUROC keeps, 11 bytes each.
_MOST_VALUES = 50_000_000


@dataclass(frozen=True, eq=False)
class Side:
    """One corpus as the features of one site see it, summed over blocks of groups.

    Args:
        tokens_G: tokens looked at.
        rows_G: rows.
        active_GF: tokens at which a feature is on.
        sum_GF: sum of its activations where it is on.
        square_GF: sum of their squares.
        active_rows_GF: rows in which it is on at any token.
        weight_G: how often each block counts; ones, unless resampled.
    """

    tokens_G: PerBlockG = field(repr=False)
    rows_G: PerBlockG = field(repr=False)
    active_GF: PerBlockGF = field(repr=False)
    sum_GF: PerBlockGF = field(repr=False)
    square_GF: PerBlockGF = field(repr=False)
    active_rows_GF: PerBlockGF = field(repr=False)
    weight_G: PerBlockG = field(repr=False)

    @property
    def tokens(self) -> float:
        """How many tokens."""
        return float(self.weight_G @ self.tokens_G)

    @property
    def rows(self) -> float:
        """How many rows."""
        return float(self.weight_G @ self.rows_G)

    @property
    def active_F(self) -> PerFeatureF:
        """Tokens at which each feature is on."""
        return self.weight_G @ self.active_GF

    @property
    def active_rows_F(self) -> PerFeatureF:
        """Rows in which each feature is on at any token."""
        return self.weight_G @ self.active_rows_GF

    @property
    def sum_F(self) -> PerFeatureF:
        """Sum of activations over tokens."""
        return self.weight_G @ self.sum_GF

    @property
    def rate_F(self) -> PerFeatureF:
        """Share of tokens at which each feature is on."""
        return self.active_F / self.tokens

    @property
    def mean_F(self) -> PerFeatureF:
        """Mean activation over all tokens, those where it is off included."""
        return self.sum_F / self.tokens

    @property
    def mean_square_F(self) -> PerFeatureF:
        """Mean of the squared activation over all tokens."""
        return self.weight_G @ self.square_GF / self.tokens


@dataclass(frozen=True, eq=False)
class Activity:
    """What rules of detection read: both corpora at one site.

    Args:
        forget, retain: see ``Side``.
        by_token: every activation, for AUROC; None unless asked for.
        by_row: every row's largest activation, for AUROC; None unless asked for.
    """

    forget: Side
    retain: Side
    by_token: Values | None = field(default=None, repr=False)
    by_row: Values | None = field(default=None, repr=False)

    @property
    def fires_F(self) -> Bool[Tensor, " F"]:
        """Which features are on at any forget token."""
        return self.forget.active_GF.sum(0) > 0

    @property
    def rate_F(self) -> PerFeatureF:
        """Share of forget tokens at which each feature is on."""
        return self.forget.rate_F

    @property
    def shown(self) -> str:
        """What was looked at, for messages."""
        n, k = int(self.forget.tokens_G.sum()), int(self.forget.rows_G.sum())
        return f"{n} forget tokens of {k} rows"

    @property
    def blocks(self) -> tuple[int, int]:
        """How many blocks of groups each side has."""
        return len(self.forget.weight_G), len(self.retain.weight_G)

    def weighted(self, forget_G: Tensor, retain_G: Tensor) -> "Activity":
        """These counts with every block weighted, as a bootstrap draws blocks."""
        forget = replace(self.forget, weight_G=forget_G.double())
        return replace(self, forget=forget, retain=replace(self.retain, weight_G=retain_G.double()))


def ordinary(batch: Batch, special_ids: Sequence[int]) -> MaskBT:
    """Real tokens whose id is none of ``special_ids``."""
    special = torch.tensor(list(special_ids), dtype=torch.long, device=batch.tokens_BT.device)
    return batch.attention_BT & ~torch.isin(batch.tokens_BT, special)


def block_of(group_B: GroupB, among_A: Int[Tensor, " A"]) -> Int[Tensor, " B"]:
    """The block of each row: its group's rank among all groups, counted anew after 64."""
    known = torch.unique(among_A)
    return torch.searchsorted(known, group_B.contiguous()) % _BLOCKS


def n_blocks(group_B: GroupB) -> int:
    """How many blocks the groups make."""
    return min(_BLOCKS, len(torch.unique(group_B)))


def pieces_of(n_tokens: int, n_features: int) -> list[slice]:
    """Tokens in pieces whose activations fit a bounded buffer."""
    step = max(1, _ENTRIES // n_features)
    return [slice(at, min(at + step, n_tokens)) for at in range(0, n_tokens, step)]


def observe(
    model: nn.Module,
    dictionaries: Mapping[Site, Any],
    forget: Batch,
    retain: Batch,
    *,
    special_ids: Sequence[int],
    values: bool = False,
    batch_size: int = 32,
    progress: bool = False,
) -> dict[Site, Activity]:
    """Rates, means and counts of every feature on both sides; any number of sites in one model pass a side.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        dictionaries: what reads each site (``probe.dictionaries.dictionary`` takes them).
        forget, retain: rows to choose on; report on others. Rows of one group are resampled together.
        special_ids: token ids left out, ``tokenizer.all_special_ids``, say; bos above all, whose activations are
            unlike any other. Padding is left out through the mask.
        values: keep every activation for AUROC: memory then grows with tokens times active features.
        batch_size: rows per forward pass.
        progress: show a bar.

    Raises:
        ValueError: no dictionary, one of another width than the model, no token left on a side, NaN, or more
            activations than AUROC can keep.

    >>> seen = probe.observe(s.original, {s.sae_site: s.sae}, s.split.forget, s.split.retain, special_ids=s.special_ids)
    >>> tuple(seen[s.sae_site].fires_F.shape)
    (1024,)
    """
    if not dictionaries:
        raise ValueError("no dictionary is given; pass at least one, {Site(0): sae}, say")
    found = {site: dictionary(thing) for site, thing in dictionaries.items()}
    tallies = {
        (side, site): _Tally(found[site].n_features, n_blocks(batch.group_B), values)
        for site in found
        for side, batch in (("forget", forget), ("retain", retain))
    }
    for side, batch in (("forget", forget), ("retain", retain)):
        whole = batch

        def take(piece: Batch, states: dict[Site, Tensor], side: str = side, whole: Batch = whole) -> None:
            mask_BT = ordinary(piece, special_ids)
            block_B = block_of(piece.group_B.cpu(), whole.group_B.cpu())
            for site, hidden_BTD in states.items():
                tallies[side, site].add(found[site], hidden_BTD, mask_BT, block_B, f"{site} on {side} rows")

        visit(model, batch.chunks(batch_size), list(found), take, progress=progress)
        if not int(tallies[side, next(iter(found))].tokens_G.sum()):
            raise ValueError(
                f"no token of the {len(batch)} {side} rows is left: all of them are special ids or padding"
            )
    return {
        site: _both(tallies["forget", site], tallies["retain", site], found[site].n_features, values) for site in found
    }


class _Tally:
    """Sums over one corpus at one site, on the CPU, filled batch by batch."""

    def __init__(self, n_features: int, n_blocks: int, keep: bool) -> None:
        self.tokens_G, self.rows_G = (torch.zeros(n_blocks, dtype=torch.float64) for _ in range(2))
        self.active_GF, self.sum_GF, self.square_GF, self.active_rows_GF = (
            torch.zeros(n_blocks, n_features, dtype=torch.float64) for _ in range(4)
        )
        self.keep, self.kept = keep, 0
        self.by_token: list[Piece] = []
        self.by_row: list[Piece] = []

    def add(self, sae: Dictionary, hidden_BTD: Tensor, mask_BT: Tensor, block_B: Tensor, where: str) -> None:
        n_rows, n_features = len(hidden_BTD), self.sum_GF.shape[1]
        hidden_ND, row_N = hidden_BTD[mask_BT], mask_BT.nonzero()[:, 0].cpu()
        check_hidden(sae, hidden_ND)
        if not bool(torch.isfinite(hidden_ND).all()):
            raise ValueError(f"the hidden states at {where} hold NaN or infinity; check the model and the site")
        self.rows_G.index_add_(0, block_B, torch.ones(n_rows, dtype=torch.float64))
        self.tokens_G.index_add_(0, block_B, mask_BT.sum(1).double().cpu())
        top_BF = torch.full((n_rows * n_features,), -torch.inf)
        for piece in pieces_of(len(hidden_ND), n_features):
            f_NF = sae.encode(hidden_ND[piece])
            token_M, feature_M = sae.active(f_NF).nonzero(as_tuple=True)
            value_M, feature_M = f_NF[token_M, feature_M].float().cpu(), feature_M.cpu()
            row_M = row_N[piece][token_M.cpu()]
            at_M = block_B[row_M] * n_features + feature_M
            wide_M = value_M.double()
            for total, added in (
                (self.active_GF, torch.ones_like(wide_M)),
                (self.sum_GF, wide_M),
                (self.square_GF, wide_M.square()),
            ):
                total.view(-1).index_add_(0, at_M, added)
            top_BF.scatter_reduce_(0, row_M * n_features + feature_M, value_M, "amax")
            if self.keep:
                self._record(self.by_token, feature_M, value_M, block_B[row_M], where)
        on_R = (top_BF > -torch.inf).nonzero()[:, 0]
        row_R, feature_R = on_R // n_features, on_R % n_features
        at_R = block_B[row_R] * n_features + feature_R
        self.active_rows_GF.view(-1).index_add_(0, at_R, torch.ones(len(at_R), dtype=torch.float64))
        if self.keep:
            self._record(self.by_row, feature_R, top_BF[on_R], block_B[row_R], where)

    def _record(self, to: list[Piece], feature: Tensor, value: Tensor, block: Tensor, where: str) -> None:
        self.kept += len(value)
        if self.kept > _MOST_VALUES:
            raise ValueError(
                f"AUROC keeps every activation that is not 0, and {where} have more than {_MOST_VALUES} of them; rank "
                "by another rule, or on fewer rows"
            )
        to.append((feature.int(), value, block.to(torch.int16)))

    def side(self) -> Side:
        ones_G = torch.ones_like(self.tokens_G)
        return Side(
            self.tokens_G, self.rows_G, self.active_GF, self.sum_GF, self.square_GF, self.active_rows_GF, ones_G
        )


def _both(forget: _Tally, retain: _Tally, n_features: int, values: bool) -> Activity:
    if not values:
        return Activity(forget.side(), retain.side())
    by_token, by_row = (
        Values.of(ours, theirs, n_features)
        for ours, theirs in ((forget.by_token, retain.by_token), (forget.by_row, retain.by_row))
    )
    return Activity(forget.side(), retain.side(), by_token, by_row)
