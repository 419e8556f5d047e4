"""Methods that were made for image classifiers, on batches of any model: FT, random labels, L1-sparse, SalUn, SCRUB.

Each trains ``model`` in place. ``training`` stands for ``lr``, ``batch_size`` and ``seed``, which have no default, and
the other keyword arguments of ``probe.train.minimise``; ``steps`` counts optimiser steps.

>>> unlearned = study.unlearn("salun", labels="answers", share=0.5, lr=3e-4, steps=2, batch_size=4)
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from probe.axes import Scalar
from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.tarf import Reweighted
from probe.methods.unlearn import check_original
from probe.objectives.objective import Objective
from probe.objectives.retain import ForwardKL
from probe.objectives.token import ga, nll
from probe.train import Step, Term, minimise

Mask = Mapping[str, Bool[Tensor, "..."]]


@method("other", "NLL(retain)", "Golatkar et al., arXiv 1911.04933")
def fine_tune(model: nn.Module, split: Split, *, steps: int, **training: Any) -> None:
    """FT: minimise the NLL of the remaining rows and trust that the rest fades."""
    minimise(model, [Term(1.0, nll, split.retain, "retain")], steps=steps, **training)


# --- random labels ---


@dataclass(frozen=True, eq=False)
class RandomLabels:
    """L = NLL of target tokens drawn anew at each call, uniformly among ``labels`` (the true one not excluded).

    Golatkar et al., arXiv 1911.04933; SalUn's code (Fan et al., arXiv 2310.12508) draws each time, too.

    Args:
        labels_K: token ids to draw from: a classifier's classes.
        generator: source of the draws; it moves on with each call.
    """

    labels_K: Int[Tensor, " K"]
    generator: torch.Generator = field(repr=False)

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        place = torch.randint(len(self.labels_K), tuple(batch.tokens_BT.shape), generator=self.generator)
        drawn_BT = self.labels_K[place].to(batch.tokens_BT)
        return nll(model, replace(batch, tokens_BT=drawn_BT.where(batch.target_BT, batch.tokens_BT), warn=False))


@method("other", "NLL(retain) + NLL(random labels)", "Golatkar et al., arXiv 1911.04933")
def random_labels(
    model: nn.Module, split: Split, *, labels_K: Int[Tensor, " K"], steps: int, seed: int, **training: Any
) -> None:
    """RL: NLL of the remaining rows plus NLL of random labels on the listed rows."""
    minimise(model, _random_terms(split, labels_K, seed), steps=steps, seed=seed, **training)


def _random_terms(split: Split, labels_K: Int[Tensor, " K"], seed: int) -> list[Term]:
    drawn = RandomLabels(labels_K, torch.Generator().manual_seed(seed))
    return [Term(1.0, drawn, split.forget, "random labels"), Term(1.0, nll, split.retain, "retain")]


# --- L1-sparse ---


def l1_norm(model: nn.Module, batch: Batch) -> Scalar:
    """L = sum |w| over every parameter; the batch is not looked at."""
    return torch.stack([p.abs().sum() for p in model.parameters()]).sum()


@method("other", "NLL(retain) + alpha (1 - t/T) |w|_1", "Jia et al., arXiv 2304.04934")
def l1_sparse(model: nn.Module, split: Split, *, alpha: float, steps: int, **training: Any) -> None:
    """L1-sparse: NLL of the remaining rows + alpha (1 - t / steps) |w|_1 (Jia et al., arXiv 2304.04934).

    Args:
        model: trained in place.
        split: only the remaining rows are used.
        alpha: weight of the norm at the first step; it falls linearly, which is how the authors' code reads.
        steps: optimiser steps.
        training: see the module's text.

    Raises:
        ValueError: a negative alpha, or what ``minimise`` raises.
    """
    if not alpha >= 0:
        raise ValueError(f"alpha must be at least 0, got {alpha}")
    terms = [Term(1.0, nll, split.retain, "retain"), Term(alpha, l1_norm, split.retain, "L1")]
    falling = Reweighted("L1", lambda step: 1 - step / steps)
    minimise(model, terms, steps=steps, stepping=falling, **training)


# --- SalUn ---


def saliency_mask(model: nn.Module, forget: Batch, share: float) -> dict[str, Bool[Tensor, "..."]]:
    """The ``share`` of all weights whose gradient of the listed rows' NLL is largest in size (arXiv 2310.12508).

    The threshold is one for the whole model; the gradient is that of the full batch at the weights as given.

    Args:
        model: left as it was, gradients included.
        forget: the listed rows.
        share: of all weights, in (0, 1]; the paper's default threshold, the median, is 0.5.

    Raises:
        ValueError: share outside (0, 1].
    """
    if not 0 < share <= 1:
        raise ValueError(f"share must lie in (0, 1], got {share}")
    named = dict(model.named_parameters())
    there = forget.to(next(iter(named.values())).device)
    with torch.enable_grad():
        gradients = torch.autograd.grad(ga(model, there), list(named.values()), allow_unused=True)
    size = [torch.zeros_like(p) if g is None else g.abs() for g, p in zip(gradients, named.values(), strict=True)]
    flat_N = torch.cat([s.flatten() for s in size])
    chosen = torch.sort(flat_N, descending=True, stable=True).indices[: round(share * len(flat_N))]
    mask_N = torch.zeros(len(flat_N), dtype=torch.bool, device=flat_N.device).index_fill(0, chosen, True)
    pieces = mask_N.split([p.numel() for p in named.values()])
    return {name: piece.view_as(p) for (name, p), piece in zip(named.items(), pieces, strict=True)}


@dataclass(frozen=True, eq=False)
class _Masked:
    """A way of stepping: the gradient is zero outside a mask, so that AdamW without decay leaves those weights alone.

    Args:
        mask: True where a weight may move, by parameter name.
    """

    mask: Mask = field(repr=False)

    def __call__(self, step: Step) -> tuple[dict[int, float], dict[str, Tensor]]:
        losses, gradient = step.gradient()
        return losses, {name: g.masked_fill(~self.mask[name].to(g.device), 0.0) for name, g in gradient.items()}


@method(
    "other",
    "NLL(retain) + NLL(random labels), on the weights with the largest forget gradient",
    "Fan et al., arXiv 2310.12508",
    trains="the share of all weights with the largest forget gradient",
)
def salun(
    model: nn.Module,
    split: Split,
    *,
    labels_K: Int[Tensor, " K"],
    share: float,
    steps: int,
    seed: int,
    weight_decay: float = 0.0,
    **training: Any,
) -> dict[str, Bool[Tensor, "..."]]:
    """SalUn: random labels, moving only the weights that matter to the listed rows (Fan et al., arXiv 2310.12508).

    Returns:
        the mask; weights outside it keep their bits.

    Raises:
        ValueError: weight decay, which would move every weight, or what ``saliency_mask`` and ``minimise`` raise.
    """
    if weight_decay:
        raise ValueError(f"weight_decay must be 0, got {weight_decay}: it would move the weights outside the mask too")
    mask = saliency_mask(model, split.forget, share)
    terms = _random_terms(split, labels_K, seed)
    minimise(model, terms, steps=steps, seed=seed, stepping=_Masked(mask), **training)
    return mask


# --- SCRUB ---


@dataclass(frozen=True)
class _Negated:
    """-L: what one method minimises, maximised."""

    objective: Objective

    def __call__(self, model: nn.Module, batch: Batch) -> Scalar:
        return -self.objective(model, batch)


def scrub_terms(original: nn.Module, split: Split, *, alpha: float, gamma: float) -> tuple[list[Term], list[Term]]:
    """SCRUB's two sums, as (to leave the teacher, to stay): -KL(original || model) on listed rows; and
    alpha KL(original || model) + gamma NLL on remaining rows (Kurmanji et al., arXiv 2302.09880).
    """
    near = ForwardKL(original)
    leave = [Term(1.0, _Negated(near), split.forget, "leave")]
    return leave, [Term(alpha, near, split.retain, "stay"), Term(gamma, nll, split.retain, "retain")]


@method(
    "other",
    "in turns: -KL(original || model) on forget; a KL + g NLL on retain",
    "Kurmanji et al., arXiv 2302.09880",
    decides=("steps",),
)
def scrub(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    alpha: float,
    gamma: float,
    rounds: int,
    leaving_rounds: int,
    leave_steps: int,
    stay_steps: int,
    seed: int,
    **training: Any,
) -> None:
    """SCRUB: rounds of moving away from the original on listed rows, then towards it on the others.

    Kurmanji et al., arXiv 2302.09880. Only the first ``leaving_rounds`` move away. At the first step of the first
    round the gradient is zero, for the student is the teacher.

    Args:
        model: trained in place.
        split: listed and remaining rows.
        original: the model before unlearning, frozen.
        alpha, gamma: weights of KL and NLL on remaining rows.
        rounds, leaving_rounds: how often to stay, and in how many of the first rounds to leave before.
        leave_steps, stay_steps: optimiser steps of each half of a round.
        seed: fixes the order of rows.
        training: see the module's text.

    Raises:
        ValueError: an original that shares weights, more leaving rounds than rounds, or what ``minimise`` raises.
    """
    check_original(model, original)
    if not 0 <= leaving_rounds <= rounds:
        raise ValueError(f"leaving_rounds must lie in 0..{rounds} (rounds), got {leaving_rounds}")
    leave, stay = scrub_terms(original, split, alpha=alpha, gamma=gamma)
    for number in range(rounds):
        if number < leaving_rounds:
            minimise(model, leave, steps=leave_steps, seed=seed + 2 * number, **training)
        minimise(model, stay, steps=stay_steps, seed=seed + 2 * number + 1, **training)
