"""Where a gate's threshold comes from: retain texts, never the forget set itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.axes import MaskBT
from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.harvest import visit
from probe.interventions.gates import Cusum, Rate, Window, open_tokens
from probe.interventions.prompt_rate import PromptRate
from probe.interventions.suppression import chosen_features
from probe.positions import Counter, Positions, mask_of
from probe.sites import Site

ScoreB = Float[Tensor, " B"]
Calibratable = Rate | PromptRate | Window | Cusum


@dataclass(frozen=True, eq=False)
class Firing:
    """At which tokens of each row a chosen feature fired; made by ``firing``.

    Args:
        fired_BT: where one did, among the tokens that count.
        counted_BT: which tokens count.
        rows: ids of the tokens that count, by row: how rows are told to be the same.

    Raises:
        ValueError: a row without a token that counts.
    """

    fired_BT: MaskBT = field(repr=False)
    counted_BT: MaskBT = field(repr=False)
    rows: tuple[tuple[int, ...], ...] = field(repr=False)

    def __post_init__(self) -> None:
        empty = [i for i, row in enumerate(self.rows) if not row]
        if empty or not self.rows:
            where = f"{len(empty)} rows, the first of them row {empty[0]}, have" if empty else "no rows:"
            raise ValueError(f"{where} no token that counts; drop them, or check the positions")

    def __len__(self) -> int:
        return len(self.rows)

    def scores(self, gate: Calibratable) -> ScoreB:
        """By row, what must be above the threshold for the gate to be open at the row's last token.

        The largest value of the statistic for a gate that holds, the last one for others.
        """
        statistic_BT = gate.statistic(self.fired_BT, self.counted_BT)
        # What follows the last token that counts leaves the statistic as it is.
        return statistic_BT.amax(1) if gate.hold else statistic_BT[:, -1]

    def open_at_end(self, gate: Calibratable) -> Bool[Tensor, " B"]:
        """By row, whether the gate is open at the last token."""
        return open_tokens(gate, self.fired_BT, self.counted_BT)[:, -1]


@dataclass(frozen=True, eq=False)
class Calibrated:
    """A gate with its threshold, and what it saw.

    Args:
        gate: ready for ``Gated``.
        alpha: share of retain texts at which it may open.
        rows: the texts of the calibration, which must not be those it is judged on.
    """

    gate: Calibratable
    alpha: float
    rows: frozenset[tuple[int, ...]] = field(repr=False)


def firing(
    model: nn.Module,
    batch: Batch,
    site: Site,
    sae: Any,
    features: Sequence[int],
    *,
    positions: Positions,
    batch_size: int = 32,
) -> Firing:
    """Run rows through the model and note where a chosen feature fires.

    Args:
        model: the model that will be edited, without the edit.
        batch: the rows.
        site: where the gate will stand.
        sae: anything ``probe.dictionaries.adapters.dictionary`` takes.
        features: ids of the features whose firing counts.
        positions: as for ``Gated``: which tokens count.
        batch_size: rows per forward pass.

    Raises:
        ValueError: unknown features, no feature, or a row without a token that counts.

    >>> fired = probe.firing(s.original, s.split.retain, s.sae_site, s.sae, (3, 5), positions=probe.not_first)
    >>> tuple(fired.fired_BT.shape) == tuple(s.split.retain.tokens_BT.shape)
    True
    """
    found, ids = dictionary(sae), check_features(sae, features)
    if not ids:
        raise ValueError("no feature is given, so nothing can fire; name at least one")
    index_K = torch.tensor(ids, dtype=torch.long, device=found.directions_FD.device)
    n_rows, length = batch.tokens_BT.shape
    fired_BT, counted_BT = (torch.zeros(n_rows, length, dtype=torch.bool) for _ in range(2))
    done = 0

    def take(piece: Batch, states: dict[Site, Tensor]) -> None:
        nonlocal done
        counter = Counter()
        counter.see(piece.inputs)
        assert counter.tokens is not None
        hidden_BTD = states[site]
        mask_BT = mask_of(positions, counter.tokens, hidden_BTD).cpu()
        on_BT = chosen_features(found, hidden_BTD, index_K)[1].any(-1).cpu()
        rows, columns = slice(done, done + len(piece)), slice(0, mask_BT.shape[1])
        counted_BT[rows, columns], fired_BT[rows, columns] = mask_BT, on_BT & mask_BT
        done += len(piece)

    visit(model, batch.chunks(batch_size), [site], take)
    ids_BT = batch.tokens_BT.cpu()
    rows = tuple(tuple(ids_T[mask_T].tolist()) for ids_T, mask_T in zip(ids_BT, counted_BT, strict=True))
    return Firing(fired_BT, counted_BT, rows)


def by_quantile(gate: Calibratable, retain: Firing, *, forget: Firing, level: float = 0.95) -> Calibrated:
    """Threshold = ``level``-quantile of the retain rows' scores, as in Dynamic SAE Guardrails (arXiv 2504.08192).

    Nothing is promised about other texts; ``conformal`` does that.

    Raises:
        ValueError: rows of the forget set among the retain rows, a level outside (0, 1), or a threshold at which the
            gate never opens.

    >>> retain, forget = (
    ...     probe.firing(s.original, side, s.sae_site, s.sae, (3, 5), positions=probe.not_first)
    ...     for side in (s.split.retain, s.split.forget)
    ... )
    >>> gate = probe.by_quantile(probe.Rate(), retain, forget=forget, level=0.9).gate
    """
    if not 0 < level < 1:
        raise ValueError(f"level is a share of retain rows between 0 and 1, got {level}")
    _check_apart(retain, forget)
    return _settled(gate, float(torch.quantile(retain.scores(gate), level)), 1 - level, retain)


def conformal(gate: Calibratable, retain: Firing, *, forget: Firing, alpha: float) -> Calibrated:
    """Threshold = the ceil((n + 1)(1 - alpha))-th smallest of n retain rows' scores (split conformal prediction).

    At an exchangeable new retain row the gate is open at the end with probability alpha at most (Vovk, Gammerman and
    Shafer, 2005), and not at all if it holds.

    Args:
        gate: whose threshold is set; what it had before is of no effect.
        retain: rows that stand for what must go unharmed, in length and format too; keep others to judge it by.
        forget: rows that the gate shall find, to see that none is among ``retain``.
        alpha: rate of false alarms per row.

    Raises:
        ValueError: rows of the forget set among the retain rows, alpha outside (0, 1), too few rows for alpha, or a
            threshold at which the gate never opens.

    >>> retain, forget = (
    ...     probe.firing(s.original, side, s.sae_site, s.sae, (3, 5), positions=probe.not_first)
    ...     for side in (s.split.retain, s.split.forget)
    ... )
    >>> gate = probe.conformal(probe.Rate(), retain, forget=forget, alpha=0.1).gate
    """
    if not 0 < alpha < 1:
        raise ValueError(f"alpha is a rate of false alarms between 0 and 1, got {alpha}")
    _check_apart(retain, forget)
    place = math.ceil(round((len(retain) + 1) * (1 - alpha), 9))
    if place > len(retain):
        raise ValueError(
            f"{len(retain)} retain rows cannot hold a rate of false alarms of {alpha}; it takes "
            f"{math.ceil(1 / alpha) - 1} at least"
        )
    return _settled(gate, retain.scores(gate).sort().values[place - 1].item(), alpha, retain)


def _settled(gate: Calibratable, threshold: float, alpha: float, retain: Firing) -> Calibrated:
    if threshold >= gate.ceiling:
        raise ValueError(
            f"at {alpha:.3g} of the retain rows {type(gate).__name__} reaches {gate.ceiling:g}, the most it can, so it "
            "would never open; use a longer window, or features that fire more rarely on retain rows"
        )
    return Calibrated(replace(gate, threshold=threshold), alpha, frozenset(retain.rows))


def _check_apart(retain: Firing, forget: Firing) -> None:
    shared = set(retain.rows) & set(forget.rows)
    if shared:
        raise ValueError(
            f"{len(shared)} of the {len(retain)} rows for calibration are rows of the forget set: a gate that was "
            "calibrated on what it shall find looks better than it is, or finds nothing; calibrate on retain rows"
        )
