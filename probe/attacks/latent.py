"""Latent perturbation: a small push on hidden states that brings answers out."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from probe.attacks.facts import Facts, Studied, prepared
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.attacks.score import Score
from probe.data import Batch
from probe.hooks import edited
from probe.interventions.activations import activations, content
from probe.modes import evaluating
from probe.objectives.logprobs import before_targets, logits_at, predicted_targets
from probe.objectives.token import nll
from probe.positions import At, not_first
from probe.sites import Site, n_layers
from probe.train.adversary import Perturb

DeltaBD = Float[Tensor, "B D"]


def latent(
    model: nn.Module,
    study: Facts | Studied,
    site: Site | int | None = None,
    *,
    epsilon: float,
    steps: int,
    step_size: float = 0.3,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> Recovery:
    """One push for all rows: argmin over |d| <= epsilon |h| of the NLL of the shown answers under h + d.

    Projected gradient descent from 0, with steps along the gradient's direction (Casper et al., arXiv 2403.05030, use
    such attackers in training). |h| is the median norm of the shown rows' states at ``site``. The push is added at
    every token but the first and scored on the held-out rows.

    Args:
        model: not changed.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; fitted on the shown rows, all at once, scored on the held-out ones.
        site: where the push is added; a number is that block's output, None that of the middle block.
        epsilon: largest length of the push, in residual norms; 0 changes nothing.
        steps: gradient steps; 0 changes nothing.
        step_size: length of a step, as a share of ``epsilon``.
        retrained: a model that never knew the facts; it gets a push of its own.
        progress: show a bar.

    Returns:
        ``found`` holds ``losses``, before the first step and after each, and ``delta_D``.

    Raises:
        ValueError: negative numbers, or a push that has no effect on the answers.

    >>> found = probe.latent(s.original, s, epsilon=0.5, steps=2).model.found
    >>> bool(found["delta_D"].norm() <= found["radius"] * 1.001)
    True
    """
    _check(epsilon, steps, step_size)
    facts, never = prepared(study, retrained)
    site = _site(model, site)

    def act(one: nn.Module) -> AttackOutcome:
        before = facts.score(one, facts.held, facts.template)
        batch = facts.shown_batch.to(_device(one))
        radius = epsilon * _norm(one, batch, site)

        def under(delta_1D: Tensor) -> Tensor:
            with edited(one, {site: At(lambda h_BTD: h_BTD + delta_1D.to(h_BTD), not_first)}):
                return nll(one, batch)

        delta_1D, losses = _descent(one, under, (1, *_width(one, batch, site)), radius, steps, step_size, progress)
        with edited(one, {site: At(lambda h_BTD: h_BTD + delta_1D.to(h_BTD), not_first)}):
            after = facts.score(one, facts.held, facts.template)
        return AttackOutcome(before, after, {"losses": losses, "delta_D": delta_1D[0], "radius": radius})

    settings = {"site": site, "epsilon": epsilon, "steps": steps, "step_size": step_size}
    return compared("latent push, shared", settings, act, facts, model, never)


def latent_each(
    model: nn.Module,
    study: Facts | Studied,
    site: Site | int | None = None,
    *,
    epsilon: float,
    steps: int,
    step_size: float = 0.3,
    batch_size: int = 64,
    retrained: nn.Module | None = None,
    progress: bool = False,
) -> Recovery:
    """A push for every held-out row, fitted on that row's own answer: an upper bound, not a way to learn anything.

    What it reaches on the retrained model is what pushing alone can spell out; only the excess speaks of knowledge.
    Wrong answers have no push of their own, so there is no choice to score.

    Args:
        batch_size: rows fitted together; changes nothing but memory.
        model, study, site, epsilon, steps, step_size, retrained, progress: as for ``latent``; the shown rows give
            the norm only.

    Returns:
        ``found`` holds ``losses`` (mean over rows) and ``delta_BD``.

    Raises:
        ValueError: as ``latent``.

    >>> found = probe.latent_each(s.retrained, s, epsilon=0.5, steps=2)
    >>> found.gain().mean > 0
    True
    """
    _check(epsilon, steps, step_size)
    facts, never = prepared(study, retrained)
    site = _site(model, site)
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")

    def act(one: nn.Module) -> AttackOutcome:
        device = _device(one)
        radius = epsilon * _norm(one, facts.shown_batch.to(device), site)
        scores: dict[str, list[Tensor]] = {"before": [], "after": []}
        deltas, traces = [], []
        for piece in facts.held_batch.chunks(batch_size):
            rows = piece.to(device)

            def under(delta_BD: Tensor, rows: Batch = rows) -> Tensor:
                with edited(one, {site: _spread(delta_BD, rows)}):
                    return nll(one, rows)

            shape = (len(rows), *_width(one, rows, site))
            delta_BD, losses = _descent(one, under, shape, radius, steps, step_size, progress)
            scores["before"].append(_teacher_forced(one, rows))
            with edited(one, {site: _spread(delta_BD, rows)}):
                scores["after"].append(_teacher_forced(one, rows))
            deltas.append(delta_BD)
            traces.append(losses)
        trace = tuple(sum(column) / len(column) for column in zip(*traces, strict=True))
        found = {"losses": trace, "delta_BD": torch.cat(deltas), "radius": radius}
        return AttackOutcome(_score(scores["before"]), _score(scores["after"]), found)

    settings = {"site": site, "epsilon": epsilon, "steps": steps, "step_size": step_size}
    return compared("latent push, each row", settings, act, facts, model, never)


def _descent(
    model: nn.Module,
    loss_of: Callable[[Tensor], Tensor],
    shape: tuple[int, ...],
    radius: float,
    steps: int,
    step_size: float,
    progress: bool,
) -> tuple[Tensor, tuple[float, ...]]:
    """The best push met on the way, row by row along the first axis sharing one loss, and the losses."""
    delta = torch.zeros(shape, device=_device(model))
    best, losses = delta, []
    with evaluating(model), torch.enable_grad():
        for step in tqdm(range(steps + 1), desc="latent", disable=not progress, leave=False):
            delta = delta.detach().requires_grad_()
            loss = loss_of(delta)
            losses.append(loss.item())
            if losses[-1] <= min(losses):
                best = delta.detach()
            if step == steps or radius == 0:
                break
            (slope,) = torch.autograd.grad(loss, [delta], allow_unused=True)
            if slope is None:
                raise ValueError(
                    "the answers do not depend on the states that are pushed; choose a site below the head"
                )
            length = slope.norm(dim=1, keepdim=True)
            moved = delta - step_size * radius * slope / torch.where(length > 0, length, torch.ones_like(length))
            far = moved.norm(dim=1, keepdim=True)
            delta = torch.where(far > radius, moved * (radius / far.clamp(min=1e-30)), moved)
    return best.detach(), tuple(losses)


def _spread(delta_BD: DeltaBD, rows: Batch) -> Perturb:
    """Each row's push at all its tokens but the first; batches are padded on the right."""
    mask_BT = rows.attention_BT & (rows.attention_BT.cumsum(1) > 1)
    return Perturb(delta_BD[:, None] * mask_BT[..., None])


@torch.no_grad()
def _teacher_forced(model: nn.Module, rows: Batch) -> Float[Tensor, "B two"]:
    """Probability and greedy match of each row, in the order of the batch (edits depend on it)."""
    with evaluating(model):
        logits_NV = logits_at(model, rows, before_targets(rows))
    mask_BT = predicted_targets(rows)
    target_N = rows.tokens_BT[mask_BT]
    loss_N = nn.functional.cross_entropy(logits_NV, target_N, reduction="none")
    n_B = mask_BT.sum(1)
    row_N = torch.arange(len(rows), device=loss_N.device).repeat_interleave(n_B)
    loss_B = torch.zeros(len(rows), dtype=loss_N.dtype, device=loss_N.device).index_add(0, row_N, loss_N) / n_B
    # What ends an answer, its eos, a match does not ask for.
    wrong_N = ((logits_NV.argmax(-1) != target_N) & ~rows.ending_BT[mask_BT]).to(loss_N.dtype)
    wrong_B = torch.zeros_like(loss_B).index_add(0, row_N, wrong_N)
    return torch.stack([(-loss_B).exp(), (wrong_B == 0).to(loss_B.dtype)], dim=1)


def _score(pieces: list[Tensor]) -> Score:
    both = torch.cat(pieces).double().cpu().numpy()
    return Score(both[:, 0], both[:, 1])


def _site(model: nn.Module, site: Site | int | None) -> Site:
    if isinstance(site, Site):
        return site
    return Site(n_layers(model) // 2 if site is None else site)


def _norm(model: nn.Module, batch: Batch, site: Site) -> float:
    return float(activations(model, batch, [site], tokens=content)[site].float().norm(dim=1).median())


def _width(model: nn.Module, batch: Batch, site: Site) -> tuple[int]:
    return (activations(model, batch.select([0]), [site], tokens=content)[site].shape[1],)


def _device(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check(epsilon: float, steps: int, step_size: float) -> None:
    if epsilon < 0 or steps < 0 or not step_size > 0:
        raise ValueError(
            f"expected epsilon and steps of at least 0 and a step_size above 0, got {epsilon}, {steps} and {step_size}"
        )
