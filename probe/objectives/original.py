"""The model before unlearning as objectives ask it: run each time, or run once and looked up."""

from dataclasses import InitVar, dataclass, field, replace

import torch
from torch import Tensor, nn

from probe.axes import HiddenBTD, LogpBT, MaskBT
from probe.data import Batch
from probe.modes import evaluating
from probe.objectives.head import Head, entering_head, head_of
from probe.objectives.logprobs import (
    LogpNV,
    before_targets,
    logprobs_at,
    predicted_targets,
    scattered,
    target_logprobs,
)


@dataclass(frozen=True, eq=False)
class OriginalAnswers:
    """log pi0(token | tokens before it) of every row of ``batch``, computed once: an original without forward passes.

    Hand it to an objective in place of the original model. A row is looked up by its tokens, so that order, padding,
    device and choice of targets do not matter, and a row that was not computed is refused. Values differ from those
    of a fresh pass by rounding only. Rows of ``batch.preferred`` are computed too.

    Args:
        original: the model before unlearning; run in eval mode, and not kept.
        batch: every row that will be asked for.
        full: keep the whole distribution before each target too, as KL and UNDIAL need it. This takes targets *
            vocabulary * 4 bytes: 8 GB for 200 answers of 80 tokens at a vocabulary of 128,000, so it is for small
            ones.
        states: know the whole distribution before each target, but keep only what enters the head there, targets *
            width numbers, and one copy of the head; distributions are computed from them when asked for.
        batch_size: rows per pass.
        limit_gib: most memory that ``full`` or ``states`` may take.

    Raises:
        ValueError: ``full`` or ``states`` needs more than ``limit_gib``, both are asked for, weights that are not
            loaded, or a model whose head cannot be run by itself (compared on the first rows).

    >>> kept = probe.OriginalAnswers(s.original, s.split.forget)  # from here on without passes of the original
    >>> by_table, by_model = (probe.NPO(original, beta=0.1) for original in (kept, s.original))
    >>> bool(torch.isclose(by_table(s.retrained, s.split.forget), by_model(s.retrained, s.split.forget)))
    True
    """

    original: InitVar[nn.Module]
    batch: InitVar[Batch]
    full: InitVar[bool] = False
    states: InitVar[bool] = False
    batch_size: InitVar[int] = 16
    limit_gib: InitVar[float] = 2.0
    logps: dict[bytes, Tensor] = field(init=False, repr=False)
    # Which positions of a row are known, and there either log-probabilities or what the head makes them from.
    distributions: dict[bytes, tuple[Tensor, Tensor]] = field(init=False, repr=False)
    head: Head | None = field(init=False, repr=False)

    def __post_init__(
        self, original: nn.Module, batch: Batch, full: bool, states: bool, batch_size: int, limit_gib: float
    ) -> None:
        if full and states:
            raise ValueError("full and states are two ways to keep the same distributions; ask for one")
        object.__setattr__(self, "logps", {})
        object.__setattr__(self, "distributions", {})
        object.__setattr__(self, "head", None)
        sides = [batch] if batch.preferred is None else [batch, batch.preferred]
        n_targets = sum(int(side.target_BT[:, 1:].sum()) for side in sides)
        device = next(original.parameters()).device
        with evaluating(original), torch.no_grad():
            for piece in (piece for side in sides for piece in side.chunks(batch_size)):
                here, keys = piece.to(device), row_keys(piece)
                whole = _all_tokens(here)
                if states and self.head is None:
                    object.__setattr__(self, "head", head_of(original, here.select([0])))
                if self.head is not None:
                    hidden_BTD = entering_head(original, here)
                    logp_BT = self._logprobs_from(self.head, hidden_BTD, whole)
                    self._add(keys, here, hidden_BTD[before_targets(here)], n_targets, limit_gib)
                else:
                    logp_BT = target_logprobs(original, whole)
                if full:
                    self._add(keys, here, logprobs_at(original, here, before_targets(here)), n_targets, limit_gib)
                known_BT = predicted_targets(whole).cpu()
                for key, logp_T, known_T in zip(keys, logp_BT.cpu(), known_BT, strict=True):
                    self.logps[key] = logp_T[known_T]

    def _logprobs_from(self, head: Head, hidden_BTD: HiddenBTD, whole: Batch) -> LogpBT:
        logp_NV = torch.log_softmax(head.logits(hidden_BTD[before_targets(whole)]), -1)
        mask_BT = predicted_targets(whole)
        return scattered(logp_NV.gather(-1, whole.tokens_BT[mask_BT][:, None])[:, 0], mask_BT)

    def _add(self, keys: list[bytes], piece: Batch, kept: LogpNV, n_targets: int, limit_gib: float) -> None:
        """``kept``: log-probabilities, or what the head makes them from, before each target."""
        what, instead = ("states", "") if self.head else ("whole distributions", "states=True, or ")
        gib = n_targets * kept.shape[1] * kept.element_size() / 2**30
        if gib > limit_gib:
            raise ValueError(
                f"{what} before {n_targets} targets over {kept.shape[1]} "
                f"{'tokens' if self.head is None else 'numbers'} take {gib:.3g} GiB, more than limit_gib {limit_gib}; "
                f"use {instead}the model itself instead of an OriginalAnswers, or raise the limit"
            )
        positions_BT, attention_BT = before_targets(piece).cpu(), piece.attention_BT.cpu()
        pieces = kept.cpu().split(positions_BT.sum(1).tolist())
        for key, rows, positions_T, real_T in zip(keys, pieces, positions_BT, attention_BT, strict=True):
            # A copy: a slice would keep the whole chunk alive.
            self.distributions[key] = positions_T[real_T], rows.clone()

    def logprobs(self, batch: Batch) -> LogpBT:
        """log pi0 at target tokens, 0 elsewhere.

        Raises:
            ValueError: a row that was not computed.
        """
        known = torch.cat([self.logps[key] for key in self._known(batch)]).to(batch.tokens_BT.device)
        logp_BT = scattered(known, predicted_targets(_all_tokens(batch)))
        return logp_BT.masked_fill(~predicted_targets(batch), 0.0)

    def distributions_at(self, batch: Batch, positions_BT: MaskBT) -> LogpNV:
        """log pi0 over the whole vocabulary at the marked positions.

        Raises:
            ValueError: a row that was not computed, distributions that were not kept, or positions that precede no
                target of the batch this was made from.
        """
        if not self.distributions:
            raise ValueError(
                "these OriginalAnswers hold the targets' log-probabilities only; make them with full=True or "
                "states=True, or pass the model"
            )
        found = []
        rows = zip(self._known(batch), positions_BT.cpu(), batch.attention_BT.cpu(), strict=True)
        for i, (key, wanted_T, real_T) in enumerate(rows):
            kept_T, kept = self.distributions[key]
            if wanted_T[~real_T].any() or (wanted_T[real_T] & ~kept_T).any():
                raise ValueError(
                    f"row {i} is asked for at positions that precede no target; OriginalAnswers know only those that "
                    "do. Pass the model itself, or leave positions at before_targets"
                )
            found.append(kept[wanted_T[real_T][kept_T]])
        known = torch.cat(found)
        logp_NV = known if self.head is None else torch.log_softmax(self.head.logits(known), -1)
        return logp_NV.to(batch.tokens_BT.device)

    def _known(self, batch: Batch) -> list[bytes]:
        keys = row_keys(batch)
        unknown = [i for i, key in enumerate(keys) if key not in self.logps]
        if unknown:
            raise ValueError(
                f"{len(unknown)} of {len(keys)} rows are not among the {len(self.logps)} these answers were made "
                f"from (the first is row {unknown[0]}); make them from the data of the term that uses it"
            )
        return keys


def original_logprobs(original: nn.Module | OriginalAnswers, batch: Batch) -> LogpBT:
    """log pi0 at target tokens, 0 elsewhere, without gradient: from a pass of the model, or looked up.

    Raises:
        ValueError: as ``OriginalAnswers.logprobs``.
    """
    if isinstance(original, OriginalAnswers):
        return original.logprobs(batch)
    with torch.no_grad():
        return target_logprobs(original, batch)


def original_distributions(original: nn.Module | OriginalAnswers, batch: Batch, positions_BT: MaskBT) -> LogpNV:
    """log pi0 over the whole vocabulary at the marked positions, without gradient: from a pass, or looked up.

    Raises:
        ValueError: as ``OriginalAnswers.distributions_at``.
    """
    if isinstance(original, OriginalAnswers):
        return original.distributions_at(batch, positions_BT)
    with torch.no_grad():
        return logprobs_at(original, batch, positions_BT)


def check_vocabulary(before: Tensor, after: Tensor) -> None:
    """Refuse distributions over different vocabularies.

    Raises:
        ValueError: the last axes differ.
    """
    if before.shape[-1] != after.shape[-1]:
        raise ValueError(
            f"the original has a vocabulary of {before.shape[-1]} tokens and the model one of {after.shape[-1]}; "
            "compare models with the same tokenizer and embedding size"
        )


def _all_tokens(batch: Batch) -> Batch:
    """The rows with every real token as a target."""
    return replace(batch, target_BT=batch.attention_BT, warn=False, preferred=None)


def row_keys(batch: Batch) -> list[bytes]:
    """What tells rows apart: their real tokens."""
    rows = zip(batch.tokens_BT.long().cpu(), batch.attention_BT.cpu(), strict=True)
    return [tokens_T[real_T].numpy().tobytes() for tokens_T, real_T in rows]
