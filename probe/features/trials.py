"""An objective's value under many edits of one site: forwards resume at the site where that gives the model's value."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.axes import GroupB, HiddenBTD, MaskBT
from probe.data import Batch
from probe.dictionaries.adapters import check_features, dictionary
from probe.dictionaries.dictionary import Dictionary
from probe.features.activity import ordinary, pieces_of
from probe.features.watching import check_some
from probe.hooks import captured, edited
from probe.interventions.suppression import Suppress, chosen_features
from probe.modes import evaluating
from probe.objectives.given import LogprobsAlone, NotAReweighting
from probe.objectives.logprobs import predicted_targets, scattered
from probe.objectives.objective import Objective
from probe.positions import At, Intervention, NotIds
from probe.replay import CannotReplay, Replay, replayable
from probe.sites import Site

PerPieceP = Float[Tensor, " P"]
# How far a value from a resumed forward may lie from the model's own, in units of rounding at its size.
_ROUNDINGS = 64


@dataclass(frozen=True, eq=False)
class TrialRows:
    """Rows of whole groups, and what of their forward is kept.

    Args:
        batch: the rows.
        share: their share of all targets.
        mask_BT: tokens that are edited.
        hidden_BTD: the states at the site.
        f_BTK, on_BTK: the candidates' activations there.
        replay: the forward, where it can be resumed.
    """

    batch: Batch = field(repr=False)
    share: float
    mask_BT: MaskBT = field(repr=False)
    hidden_BTD: HiddenBTD = field(repr=False)
    f_BTK: Float[Tensor, "B T K"] = field(repr=False)
    on_BTK: Bool[Tensor, "B T K"] = field(repr=False)
    replay: Replay | None = field(repr=False)


@dataclass(frozen=True, eq=False)
class Trials:
    """The objective on some rows under any edit of the site; made by ``trials``.

    Args:
        model, site, objective, special_ids: as given.
        features: candidates whose activations are kept.
        n_features: of the dictionary.
        pieces: rows by groups.
        plain_P: the objective on each piece without an edit.
        why: why forwards are not resumed at the site; empty where they are.
    """

    model: nn.Module = field(repr=False)
    site: Site
    objective: Objective
    special_ids: tuple[int, ...] = field(repr=False)
    features: tuple[int, ...] = field(repr=False)
    n_features: int
    pieces: tuple[TrialRows, ...] = field(repr=False)
    plain_P: PerPieceP
    why: str

    @property
    def resumed(self) -> bool:
        """Whether forwards start at the site."""
        return not self.why

    @property
    def share_P(self) -> PerPieceP:
        """Each piece's share of the targets."""
        return torch.tensor([piece.share for piece in self.pieces], dtype=torch.float64)

    @property
    def plain(self) -> float:
        """The objective without an edit."""
        return float(self.share_P @ self.plain_P)

    @property
    def fires_K(self) -> Bool[Tensor, " K"]:
        """Which candidates are on at any token that is edited."""
        return torch.stack([p.on_BTK[p.mask_BT.to(p.on_BTK.device)].any(0) for p in self.pieces]).any(0).cpu()

    def value_P(self, edit: Intervention) -> PerPieceP:
        """The objective on each piece with ``edit`` at the tokens that count."""
        with evaluating(self.model), torch.no_grad():
            found = [self._value(i, edit) for i in range(len(self.pieces))]
        return torch.tensor(found, dtype=torch.float64)

    def value(self, edit: Intervention) -> float:
        """The objective on all rows."""
        return float(self.share_P @ self.value_P(edit))

    def _value(self, i: int, edit: Intervention) -> float:
        piece = self.pieces[i]
        if getattr(edit, "reads_tokens", False):
            return self._whole(piece, edit)
        after_BTD = torch.where(piece.mask_BT[..., None], self._after(piece, edit), piece.hidden_BTD)
        if torch.equal(after_BTD, piece.hidden_BTD):
            return float(self.plain_P[i])
        if piece.replay is None or not self.resumed:
            return self._whole(piece, edit)
        return float(_resumed(piece.replay, piece.batch, self.site, after_BTD, self.objective))

    def _after(self, piece: TrialRows, edit: Intervention) -> HiddenBTD:
        if isinstance(edit, Suppress) and not edit.dictionary.separable and set(edit.features) <= set(self.features):
            index = [self.features.index(j) for j in edit.features]
            f_BTK, on_BTK = piece.f_BTK[..., index], piece.on_BTK[..., index]
            return edit.moved(piece.hidden_BTD, f_BTK, on_BTK, None) if index else piece.hidden_BTD
        return edit(piece.hidden_BTD)

    def _whole(self, piece: TrialRows, edit: Intervention) -> float:
        with edited(self.model, {self.site: At(edit, NotIds(self.special_ids))}):
            return float(self.objective(self.model, piece.batch))


def trials(
    model: nn.Module,
    sae: Any,
    site: Site,
    batch: Batch,
    features: Sequence[int],
    *,
    objective: Objective,
    special_ids: Sequence[int],
    batch_size: int = 8,
) -> Trials:
    """Run the model once on every row and keep what edits of ``site`` need.

    Memory: a hidden state a block and token, and the candidates' activations. Resumed forwards cost the blocks above
    the site. Whether they give what the model gives is tried first, with half of the state at the site.

    Args:
        model: any Hugging Face decoder; measured in eval mode and left as it was.
        sae: the dictionary at ``site``.
        site: where edits act.
        batch: the rows. Rows of one group stay in one piece, which is what a bootstrap draws.
        features: candidates.
        objective: ``(model, batch) -> scalar``; those that need more than the targets' log-probabilities take whole
            forwards. Over several pieces it is their mean weighted by targets.
        special_ids: token ids that are not edited. Padding is not either.
        batch_size: rows per piece, as far as groups allow.

    Raises:
        ValueError: unknown features, a transcoder, a dictionary of another width, or no token left.
    """
    found, ids = dictionary(sae), check_features(sae, features)
    if getattr(found, "transcodes", False):
        raise ValueError("a transcoder writes to another site than it reads; only features edited in place are tried")
    check_some(batch, special_ids, "given")
    rows = _by_group(batch.group_B, batch_size)
    total = int(batch.target_BT[:, 1:].sum())
    device = next(model.parameters()).device
    pieces: list[TrialRows] = []
    plain, why = list[float](), ""
    with evaluating(model), torch.no_grad():
        for index in rows:
            part = batch.select(index).to(device)
            n = int(part.target_BT[:, 1:].sum())
            if n == 0:
                continue
            piece = _kept(model, found, site, replace(part, warn=False), ids, n / total, special_ids)
            plain.append(float(objective(model, piece.batch)))
            if not why:
                piece, why = _tried(model, site, piece, objective, plain[-1], check=not pieces)
            pieces.append(piece)
    if why:
        pieces = [replace(piece, replay=None) for piece in pieces]
        warnings.warn(f"every edit runs the whole model: {why}", stacklevel=2)
    plain_P = torch.tensor(plain, dtype=torch.float64)
    special = tuple(int(t) for t in special_ids)
    return Trials(model, site, objective, special, ids, found.n_features, tuple(pieces), plain_P, why)


def _kept(
    model: nn.Module,
    sae: Dictionary,
    site: Site,
    batch: Batch,
    features: tuple[int, ...],
    share: float,
    special_ids: Sequence[int],
) -> TrialRows:
    with captured(model, [site], stop=True) as states:
        model(**batch.inputs, use_cache=False)
    hidden_BTD = states[site]
    index_K = torch.tensor(features, dtype=torch.long, device=sae.directions_FD.device)
    # One row at a time where rows times features are too many at once.
    step = pieces_of(len(hidden_BTD), sae.n_features * hidden_BTD.shape[1])
    parts = [chosen_features(sae, hidden_BTD[rows], index_K) for rows in step]
    f_BTK, on_BTK = (torch.cat(column) for column in zip(*parts, strict=True))
    return TrialRows(batch, share, ordinary(batch, special_ids), hidden_BTD, f_BTK, on_BTK, None)


def _tried(
    model: nn.Module, site: Site, piece: TrialRows, objective: Objective, plain: float, *, check: bool
) -> tuple[TrialRows, str]:
    """The piece with its forward, or why there is none."""
    if site.part in ("embedding", "norm"):
        return piece, f"{site} lies outside the blocks"
    try:
        made = replayable(model, piece.batch)
        if check:
            _check(made, model, site, piece, objective, plain)
    except (NotAReweighting, CannotReplay) as error:
        return piece, str(error)
    except (AssertionError, AttributeError, IndexError, KeyError, TypeError, RuntimeError) as error:
        return piece, f"the blocks or the head cannot be called alone ({error})"
    return replace(piece, replay=made), ""


def _check(made: Replay, model: nn.Module, site: Site, piece: TrialRows, objective: Objective, plain: float) -> None:
    """Compare with the model's own forwards, as it is and with half of the state at the site."""

    def halved(hidden_BTD: Tensor) -> Tensor:
        return torch.where(piece.mask_BT[..., None], hidden_BTD / 2, hidden_BTD)

    with edited(model, {site: halved}):
        other = float(objective(model, piece.batch))
    for after_BTD, expected in ((piece.hidden_BTD, plain), (halved(piece.hidden_BTD), other)):
        found = float(_resumed(made, piece.batch, site, after_BTD, objective))
        allowed = _ROUNDINGS * torch.finfo(after_BTD.dtype).eps * max(1.0, abs(expected))
        if not abs(found - expected) <= allowed:
            raise CannotReplay(f"a resumed forward gives {found:.6g}, the model {expected:.6g}")


def _resumed(replay: Replay, batch: Batch, site: Site, after_BTD: HiddenBTD, objective: Objective) -> Tensor:
    """The objective if ``after_BTD`` stands at the site."""
    if site.part == "block":
        final_BTD = replay.onward(site.layer + (site.side == "out"), after_BTD)
    else:
        put: Callable[[Tensor], Tensor] = lambda hidden_BTD: after_BTD  # noqa: E731
        with edited(replay.model, {site: put}):
            leaving_BTD = replay.run(site.layer, replay.entering(site.layer))
        final_BTD = replay.onward(site.layer + 1, leaving_BTD)
    logp_NV = torch.log_softmax(replay.logits(final_BTD), -1)
    logp_N = logp_NV.gather(1, replay.target_N.to(logp_NV.device)[:, None])[:, 0]
    logp_BT = scattered(logp_N, predicted_targets(batch).to(logp_N.device))
    return objective(LogprobsAlone([batch], lambda i: logp_BT), batch)


def _by_group(group_B: GroupB, batch_size: int) -> list[list[int]]:
    """Rows in pieces of about ``batch_size``, no group in two of them."""
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    pieces: list[list[int]] = []
    for group in torch.unique(group_B).tolist():
        rows = (group_B == group).nonzero().flatten().tolist()
        if pieces and len(pieces[-1]) + len(rows) <= batch_size:
            pieces[-1] += rows
        else:
            pieces.append(rows)
    return pieces
