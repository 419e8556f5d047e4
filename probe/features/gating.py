"""How often a gate is open where it should not be and where it should, and behind how much filler it still is."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from probe.context import check_context
from probe.data import Batch
from probe.interventions.calibration import Calibratable, Calibrated, Firing, firing
from probe.interventions.gates import open_tokens
from probe.metrics.intervals import wilson
from probe.positions import Positions
from probe.sites import Site


@dataclass(frozen=True)
class OpenShare:
    """Share of rows at whose last token a gate is open; for a gate that holds, at any of their tokens.

    Args:
        n_open, n_rows: counts.
        low, high: Wilson's interval.
        level: its confidence.
    """

    n_open: int
    n_rows: int
    low: float
    high: float
    level: float

    @property
    def share(self) -> float:
        """n_open / n_rows."""
        return self.n_open / self.n_rows


@dataclass(frozen=True)
class GateRates:
    """What a gate does on texts that it was not calibrated on.

    Args:
        false_positive: retain rows.
        true_positive: forget rows.
        alpha: rate of false alarms that it was calibrated for.
    """

    false_positive: OpenShare
    true_positive: OpenShare
    alpha: float


@dataclass(frozen=True)
class Diluted:
    """What a gate finds behind ``filler`` tokens of retain text.

    Args:
        filler: how many tokens.
        true_positive: rows at whose end it is open.
        before: rows at which it is open before the forget text begins, by false alarm.
    """

    filler: int
    true_positive: OpenShare
    before: OpenShare


def open_share(gate: Calibratable, rows: Firing, *, level: float = 0.95) -> OpenShare:
    """At how many rows the gate is open."""
    return _share(rows.open_at_end(gate), level)


def gate_rates(calibrated: Calibrated, retain: Firing, forget: Firing, *, level: float = 0.95) -> GateRates:
    """False and true positives of a calibrated gate, with Wilson's intervals.

    Args:
        calibrated: from ``probe.interventions.calibration``.
        retain: held-out retain rows, in the formats that the model will meet; a gate is only as harmless as these
            are like what it meets.
        forget: forget rows.
        level: confidence of the intervals.

    Raises:
        ValueError: retain rows that the threshold was chosen on, or forget rows among them.
    """
    seen = calibrated.rows & set(retain.rows)
    if seen:
        raise ValueError(
            f"{len(seen)} of the {len(retain)} retain rows were used to set the threshold; hold rows back for this"
        )
    both = set(forget.rows) & (set(retain.rows) | calibrated.rows)
    if both:
        raise ValueError(f"{len(both)} rows are both retain and forget rows; a gate cannot be right on them")
    of_retain, of_forget = (open_share(calibrated.gate, rows, level=level) for rows in (retain, forget))
    return GateRates(of_retain, of_forget, calibrated.alpha)


def dilution_curve(
    model: nn.Module,
    gates: Sequence[Calibratable],
    forget: Batch,
    filler: Batch,
    site: Site,
    sae: Any,
    features: Sequence[int],
    *,
    positions: Positions,
    lengths: Sequence[int],
    seed: int,
    level: float = 0.95,
    batch_size: int = 32,
) -> tuple[tuple[Diluted, ...], ...]:
    """Forget rows behind more and more retain text: a gate that takes an average over the prompt goes blind.

    Each forget row gets retain tokens of its own, a run from ``filler`` that starts at a random place and goes round;
    its first token (bos) stays first.

    Args:
        model: as for ``firing``.
        gates: with thresholds; all see the same texts.
        forget: rows that each gate should find.
        filler: retain rows; their tokens but the first of each row are laid end to end.
        site, sae, features, positions, batch_size: as for ``firing``.
        lengths: numbers of filler tokens, 0 among them for comparison.
        seed: where the runs start.
        level: confidence of the intervals.

    Returns:
        a curve for each gate, one point per length.

    Raises:
        ValueError: no length, a negative one, no gate, no filler, or texts longer than the model's context.
    """
    if not gates or not lengths or min(lengths) < 0:
        raise ValueError(f"give at least one gate and lengths of 0 or more, got {len(gates)} gates, {list(lengths)}")
    check_context(model, int(forget.attention_BT.sum(1).max()) + max(lengths))
    later_BT = filler.attention_BT & (filler.attention_BT.cumsum(1) > 1)
    pool_N = filler.tokens_BT[later_BT].cpu()
    if len(pool_N) == 0:
        raise ValueError("the filler rows hold no token but their first; pass retain texts")
    generator = torch.Generator().manual_seed(seed)
    start_B = torch.randint(len(pool_N), (len(forget),), generator=generator)
    points: list[list[Diluted]] = [[] for _ in gates]
    for length in lengths:
        texts = _behind(forget, pool_N, start_B, length)
        found = firing(model, texts, site, sae, features, positions=positions, batch_size=batch_size)
        for curve, gate in zip(points, gates, strict=True):
            begun_BT = open_tokens(gate, found.fired_BT[:, : length + 1], found.counted_BT[:, : length + 1])
            before = _share(begun_BT[:, -1] if length else torch.zeros(len(forget), dtype=torch.bool), level)
            curve.append(Diluted(length, open_share(gate, found, level=level), before))
    return tuple(map(tuple, points))


def _share(open_B: torch.Tensor, level: float) -> OpenShare:
    n_open, n_rows = int(open_B.sum()), len(open_B)
    return OpenShare(n_open, n_rows, *wilson(n_open, n_rows, level), level)


def _behind(forget: Batch, pool_N: torch.Tensor, start_B: torch.Tensor, length: int) -> Batch:
    """Each row's first token, ``length`` tokens of the pool, and the rest of the row."""
    index_BT = (start_B[:, None] + torch.arange(length)) % len(pool_N)
    filler_BT = pool_N[index_BT].to(forget.tokens_BT.device)

    def with_filler(kept_BT: torch.Tensor, between_BT: torch.Tensor) -> torch.Tensor:
        return torch.cat([kept_BT[:, :1], between_BT, kept_BT[:, 1:]], 1)

    silent_BT = torch.zeros_like(filler_BT, dtype=torch.bool)
    return Batch(
        with_filler(forget.tokens_BT, filler_BT),
        with_filler(forget.target_BT, silent_BT),
        with_filler(forget.attention_BT, ~silent_BT),
        forget.group_B,
        forget.prompt_B + length,
        warn=False,
    )
