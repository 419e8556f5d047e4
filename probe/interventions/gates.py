"""When an edit acts: gates that open at a token by what fired up to it, or, one of them, in the whole prompt.

A gate is a function of the whole history of a row, one bit a token, so that a forward over a whole text and decoding
with a cache agree. The history lives with the generation, not in the gate.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from probe.axes import HiddenBTD, MaskBT
from probe.dictionaries.adapters import check_features
from probe.interventions.history import TokenHistory
from probe.interventions.suppression import Suppress, chosen_features
from probe.positions import Positions, Tokens, mask_of

StatisticBT = Float[Tensor, "B T"]


@runtime_checkable
class Gate(Protocol):
    """A statistic of the tokens so far, and the threshold above which the gate is open."""

    @property
    def threshold(self) -> float | None:
        """None until it is calibrated (``probe.interventions.calibration``)."""
        ...

    @property
    def hold(self) -> bool:
        """Whether the gate, once open, stays open for the rest of the row."""
        ...

    @property
    def ceiling(self) -> float:
        """The largest value that the statistic takes; a gate with its threshold there never opens."""
        ...

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT) -> StatisticBT:
        """The statistic after each token.

        Args:
            fired_BT: where a feature fired.
            counted_BT: which tokens count; the others neither fire nor lengthen anything.
        """
        ...


@dataclass(frozen=True)
class Open:
    """Always open: no gate.

    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), probe.Open(), probe.not_first)
    """

    @property
    def threshold(self) -> float:
        """Below the statistic."""
        return 0.0

    @property
    def hold(self) -> bool:
        """Of no effect."""
        return False

    @property
    def ceiling(self) -> float:
        """The statistic."""
        return 1.0

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT) -> StatisticBT:
        """Ones."""
        return torch.ones_like(fired_BT, dtype=torch.float64)


@dataclass(frozen=True)
class Rate:
    """Share of the tokens so far at which a feature fired.

    A running form of ``prompt_rate.PromptRate``, the gate of Dynamic SAE Guardrails (Muhamed et al., arXiv 2504.08192):
    this one may open late in a prompt, or close again. Text that does not fire dilutes it.

    Args:
        threshold: a share in [0, 1]; None until calibrated.
        least: the share counts as 0 while fewer tokens were seen, for one token of one is no rate.
        hold: whether it stays open once it is.

    Raises:
        ValueError: a threshold outside [0, 1], or ``least`` below 1.

    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), probe.Rate(threshold=0.1), probe.not_first)
    """

    threshold: float | None = None
    least: int = 1
    hold: bool = False

    def __post_init__(self) -> None:
        check_share(self.threshold)
        _check_length(self.least, "least")

    @property
    def ceiling(self) -> float:
        """All tokens fire."""
        return 1.0

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT) -> StatisticBT:
        """Fired so far / counted so far."""
        fires_BT, seen_BT = _cumulative(fired_BT, counted_BT)
        return torch.where(seen_BT >= self.least, fires_BT / seen_BT.clamp(min=1), 0.0)


@dataclass(frozen=True)
class Window:
    """Share of the last ``length`` counted tokens at which a feature fired; tokens before the first count as silent.

    Args:
        length: tokens in the window.
        threshold: a share in [0, 1]; None until calibrated.
        hold: whether it stays open once it is.

    Raises:
        ValueError: a threshold outside [0, 1], or a length below 1.

    >>> gate = probe.Window(length=5, threshold=0.2)
    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), gate, probe.not_first)
    """

    length: int
    threshold: float | None = None
    hold: bool = False

    def __post_init__(self) -> None:
        check_share(self.threshold)
        _check_length(self.length, "length")

    @property
    def ceiling(self) -> float:
        """All tokens fire."""
        return 1.0

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT) -> StatisticBT:
        """Fired among the last ``length`` / ``length``."""
        fires_BT, seen_BT = _cumulative(fired_BT, counted_BT)
        # How often a feature had fired after the n-th counted token, by n.
        by_count_BN = fires_BT.new_zeros(len(fires_BT), fires_BT.shape[1] + 1).scatter(1, seen_BT, fires_BT)
        return (fires_BT - by_count_BN.gather(1, (seen_BT - self.length).clamp(min=0))) / self.length


@dataclass(frozen=True)
class Cusum:
    """S_t = max(0, S_{t-1} + x_t - drift), x_t = 1 where a feature fires (Page, Biometrika 41, 1954).

    Text that does not fire cannot push S below 0, so filler before a prompt dilutes nothing.

    Args:
        drift: subtracted at each token; between the firing rates of retain and of forget texts.
        threshold: at least 0; None until calibrated.
        hold: whether it stays open once it is, as Page's alarm does.

    Raises:
        ValueError: a drift outside (0, 1), where S would never fall or never rise, or a negative threshold.

    >>> gate = probe.Cusum(drift=0.1, threshold=1.0)
    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), gate, probe.not_first)
    """

    drift: float
    threshold: float | None = None
    hold: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.drift < 1:
            raise ValueError(f"drift lies between 0 and 1, the firing rates of retain and forget; got {self.drift}")
        if self.threshold is not None and not 0 <= self.threshold < float("inf"):
            raise ValueError(f"a cumulative sum is at least 0, so is its threshold; got {self.threshold}")

    @property
    def ceiling(self) -> float:
        """None: it grows with the text."""
        return float("inf")

    def statistic(self, fired_BT: MaskBT, counted_BT: MaskBT) -> StatisticBT:
        """S after each token: the walk without a floor, less its lowest point so far or 0."""
        fires_BT, seen_BT = _cumulative(fired_BT, counted_BT)
        # Products, not sums of rounded steps: equal histories give equal bits whatever came at once.
        walk_BT = fires_BT - self.drift * seen_BT.double()
        # What is left of rounding must not decide whether 0.8 is above 0.8.
        return (walk_BT - walk_BT.cummin(1).values.clamp(max=0.0)).round(decimals=9)


def open_tokens(gate: Gate, fired_BT: MaskBT, counted_BT: MaskBT, prompt_BT: MaskBT | None = None) -> MaskBT:
    """At which tokens a gate is open; column t depends on columns up to t only, or for ``PromptRate`` on the prompt.

    Raises:
        ValueError: a gate without a threshold.
    """
    if gate.threshold is None:
        raise ValueError(
            f"{type(gate).__name__} has no threshold; give one, or calibrate it on retain texts with "
            "probe.interventions.calibration"
        )
    prompt = (prompt_BT,) if getattr(gate, "once", False) else ()
    open_BT = gate.statistic(fired_BT, counted_BT, *prompt) > gate.threshold
    return open_BT.cummax(1).values if gate.hold else open_BT


@dataclass(frozen=True, eq=False)
class Gated:
    """``edit`` at the chosen tokens at which ``gate`` is open; the others keep their bits.

    For ``probe.hooks.edited``, in forwards and in generation, with or without a cache and with beams. Each open block
    keeps its own history of every row, and forgets it when a new prompt starts. A plan cannot hold a gate.

    Args:
        edit: what to do.
        gate: when.
        positions: which tokens count for the gate and may be edited: ``NotIds(tokenizer.all_special_ids)``, say.
        detect: features whose firing the gate counts, of the same dictionary; None: those of the edit. Features that
            tell forget texts apart are seldom those whose change matters.

    Raises:
        ValueError: unknown features, a gate without a threshold, or, in a forward, a cache whose tokens were not seen
            inside the block.

    >>> edit = probe.Gated(probe.Suppress(s.sae, (3, 5), probe.Zero()), probe.Rate(threshold=0.1), probe.not_first)
    >>> with probe.edited(s.original, {s.sae_site: edit}):
    ...     guarded = probe.nll(s.original, s.split.forget)
    """

    edit: Suppress
    gate: Gate
    positions: Positions
    detect: Sequence[int] | None = None

    reads_tokens = True

    def __post_init__(self) -> None:
        nothing_BT = torch.zeros(1, 1, dtype=torch.bool)
        open_tokens(self.gate, nothing_BT, nothing_BT)  # refuses a gate without a threshold
        ids = self.edit.features if self.detect is None else check_features(self.edit.dictionary, self.detect)
        object.__setattr__(self, "detect", ids)

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        raise TypeError("a gate needs to know where tokens stand; it works inside probe.hooks.edited")

    def following(self) -> Callable[[HiddenBTD, Tokens], HiddenBTD]:
        """A function that remembers what fired, for one block of ``probe.hooks.edited``."""
        history = TokenHistory()
        n, found = len(self.edit.features), self.edit.dictionary
        both = torch.tensor([*self.edit.features, *(self.detect or ())], dtype=torch.long)

        def follow(hidden_BTD: HiddenBTD, tokens: Tokens) -> HiddenBTD:
            counted_BT = mask_of(self.positions, tokens, hidden_BTD)
            # Features of both lists are computed at once.
            f_BTK, on_BTK = chosen_features(found, hidden_BTD, both.to(found.directions_FD.device))
            history.extend(tokens, on_BTK[..., n:].any(-1).to(hidden_BTD.device), counted_BT)
            open_BT = open_tokens(self.gate, history.fired_BT, history.counted_BT, history.prompt_BT)
            open_BT = open_BT[:, -hidden_BTD.shape[1] :]
            if n == 0:
                return hidden_BTD
            where_BT = open_BT & counted_BT
            return self.edit.moved(hidden_BTD, f_BTK[..., :n], on_BTK[..., :n], tokens, where_BT=where_BT)

        return follow


def _cumulative(fired_BT: MaskBT, counted_BT: MaskBT) -> tuple[Tensor, Tensor]:
    """How many counted tokens fired, in float64, and how many there were, up to each column."""
    return (fired_BT & counted_BT).cumsum(1).double(), counted_BT.cumsum(1)


def check_share(threshold: float | None) -> None:
    """Refuse a threshold that no share of tokens can pass or fall below.

    Raises:
        ValueError: outside [0, 1].
    """
    if threshold is not None and not 0 <= threshold <= 1:
        raise ValueError(f"the threshold is a share of tokens in [0, 1], got {threshold}")


def _check_length(length: int, name: str) -> None:
    if length < 1:
        raise ValueError(f"{name} is a number of tokens, at least 1; got {length}")
