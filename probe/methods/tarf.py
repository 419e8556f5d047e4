"""TARF: forget a concept of which only part is listed, or whose labels are not the model's.

Zhu et al., arXiv 2406.08288. The listed rows are ascended with a weight that falls to zero; what else rises in loss
meanwhile is taken for part of the concept and is no longer retained. Everything is stated in objectives and batches,
so a classifier whose answer is one token and a language model go through the same lines.

>>> unlearned = study.unlearn("tarf", k0=1, t1=1, t0=2, share=0.5, lr=3e-4, steps=2, batch_size=4)
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from probe.axes import GroupB, LogpB
from probe.data import Batch, Split
from probe.methods.method import method
from probe.objectives.logprobs import target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.token import ga, nll
from probe.train import History, Step, Term, minimise

LossN = Float[Tensor, " N"]
FlagN = Bool[Tensor, " N"]
PhaseName = Literal["forget", "forget and retain", "retain"]
Selection = Callable[[LossN, GroupB], FlagN]
"""(rise of each remaining row's loss, its group) -> which rows are false retaining data."""


@dataclass(frozen=True)
class Annealing:
    """k(t) = k0 max(0, 1 - t / t0): the weight of the forget term at step t.

    Args:
        k0: weight at step 0; 0 forgets nothing.
        t1: steps of the first phase, which only forgets; what is false retaining data is judged at its end.
        t0: the step from which k is 0.

    Raises:
        ValueError: a negative number, or a first phase that outlasts the annealing.
    """

    k0: float
    t1: int
    t0: int

    def __post_init__(self) -> None:
        if not self.k0 >= 0 or not 0 <= self.t1 <= self.t0:
            raise ValueError(f"expected k0 >= 0 and 0 <= t1 <= t0, got k0 {self.k0}, t1 {self.t1} and t0 {self.t0}")

    def weight(self, step: int) -> float:
        """k at a step, counted from 0 over all phases."""
        return self.k0 * (1 - step / self.t0) if step < self.t0 else 0.0


@dataclass(frozen=True)
class Phase:
    """Steps ``start`` to ``stop - 1``, and which terms act in them."""

    name: PhaseName
    start: int
    stop: int


def phases(annealing: Annealing, steps: int) -> tuple[Phase, ...]:
    """I: forget [0, t1). II: forget and retain [t1, t0). III: retain [t0, steps). Empty phases are left out.

    Raises:
        ValueError: fewer steps than the annealing has.
    """
    if steps < max(annealing.t0, 1):
        raise ValueError(f"steps must be at least t0 = {annealing.t0} and 1, got {steps}")
    if annealing.k0 == 0:
        # Nothing is forgotten, so nothing can be told apart: plain fine-tuning on the remaining rows.
        return (Phase("retain", 0, steps),)
    cuts: tuple[tuple[PhaseName, int, int], ...] = (
        ("forget", 0, annealing.t1),
        ("forget and retain", annealing.t1, annealing.t0),
        ("retain", annealing.t0, steps),
    )
    return tuple(Phase(name, start, stop) for name, start, stop in cuts if stop > start)


@dataclass(frozen=True)
class Reweighted:
    """A way of stepping: the weight of one term is multiplied by factor(t) at step t.

    Args:
        name: of the term.
        factor: by step, counted over all phases.
        start: the step at which the present call of ``minimise`` begins.
    """

    name: str
    factor: Callable[[int], float]
    start: int = 0

    def __call__(self, step: Step) -> tuple[dict[int, float], dict[str, Tensor]]:
        now = self.factor(self.start + step.number)
        terms = [replace(term, weight=term.weight * now) if term.name == self.name else term for term in step.terms]
        return replace(step, terms=terms).gradient()


@dataclass(frozen=True)
class TopShare:
    """The rows whose loss rose most: the paper's heuristic takes a tenth of the remaining rows.

    Args:
        share: of the remaining rows, in [0, 1).
    """

    share: float

    def __post_init__(self) -> None:
        if not 0 <= self.share < 1:
            raise ValueError(f"share must lie in [0, 1), got {self.share}; some rows must be retained")

    def __call__(self, rise_N: LossN, group_N: GroupB) -> FlagN:
        chosen = torch.sort(rise_N, descending=True, stable=True).indices[: round(self.share * len(rise_N))]
        return torch.zeros(len(rise_N), dtype=torch.bool).index_fill(0, chosen, True)


@dataclass(frozen=True)
class TopGroups:
    """All rows of the groups (classes, authors) whose mean loss rose most, where their number is known.

    Args:
        number: how many groups of the remaining rows belong to the concept; 0 takes the list as complete.
    """

    number: int

    def __post_init__(self) -> None:
        if self.number < 0:
            raise ValueError(f"number must be at least 0, got {self.number}")

    def __call__(self, rise_N: LossN, group_N: GroupB) -> FlagN:
        groups = group_N.unique()
        if self.number >= len(groups):
            raise ValueError(f"number {self.number} leaves none of the {len(groups)} groups to be retained")
        mean = torch.stack([rise_N[group_N == group].mean() for group in groups])
        return torch.isin(group_N, groups[mean.argsort(descending=True, stable=True)[: self.number]])


@dataclass(frozen=True, eq=False)
class TARFResult:
    """What was taken for part of the concept, and why.

    Args:
        rise_N: rise of each remaining row's loss over the first phase (nats per target token); zeros without one.
        dropped_N: the false retaining data, where tau is 0.
        histories: losses of each phase, without weights.
    """

    rise_N: LossN
    dropped_N: FlagN
    histories: tuple[History, ...] = field(repr=False)


def row_losses(model: nn.Module, batch: Batch, batch_size: int = 256) -> LogpB:
    """Mean NLL of each row's target tokens (nats), without gradients, in the order of the batch."""
    device = next(model.parameters()).device
    with torch.no_grad():
        pieces = [
            -target_logprobs(model, piece).sum(1) / piece.target_BT[:, 1:].sum(1)
            for piece in (chunk.to(device) for chunk in batch.chunks(batch_size))
        ]
    return torch.cat(pieces).float().cpu()


def tarf(
    model: nn.Module,
    split: Split,
    *,
    annealing: Annealing,
    select: Selection,
    steps: int,
    lr: float,
    batch_size: int,
    seed: int,
    retain_objective: Objective = nll,
    parameters: str = ".",
    weight_decay: float = 0.0,
    clip: float | None = 1.0,
    progress: str | None = None,
) -> TARFResult:
    """L(t) = k(t) (-mean_{listed} CE) + mean_{remaining} tau CE, with tau 0 in phase I and on false retaining data.

    Zhu et al., arXiv 2406.08288. Phase I ascends the listed rows alone; the rise of the remaining rows' loss then
    says which of them belong to the concept. Phase II retains the others while k falls to 0; phase III retains only.
    The mean runs over all remaining rows, kept or not, so dropping rows lowers the weight of the retain term.

    The published code was not available: the schedule is the paper's, the optimiser is ``minimise``'s AdamW, which
    starts anew at each phase. Under AdamW the size of k acts in phase II, where it is weighed against the retain
    term; in phase I the number of steps and the learning rate decide.

    Args:
        model: trained in place.
        split: ``forget`` holds the listed rows, ``retain`` all that remain, those of the concept among them.
        annealing: k0, t1 and t0.
        select: ``TopGroups``, ``TopShare`` or any ``(rise, groups) -> mask``; called only after a first phase.
        steps, lr, batch_size: of all phases; rows per term.
        seed: a phase that starts at step s draws its rows by seed + s.
        retain_objective: CE unless told otherwise; the forget term is gradient ascent.
        parameters, weight_decay, clip, progress: as for ``minimise``.

    Returns:
        the rises, the rows no longer retained, and the losses of each phase.

    Raises:
        ValueError: settings that do not fit together, a selection that leaves nothing, or what ``minimise`` raises.
    """
    planned = phases(annealing, steps)
    rise_N = torch.zeros(len(split.retain))
    dropped_N = torch.zeros(len(split.retain), dtype=torch.bool)
    before_N = row_losses(model, split.retain) if planned[0].name == "forget" else rise_N
    histories = []
    for phase in planned:
        history = minimise(
            model,
            _terms(phase, split, dropped_N, retain_objective),
            steps=phase.stop - phase.start,
            lr=lr,
            batch_size=batch_size,
            seed=seed + phase.start,
            parameters=parameters,
            weight_decay=weight_decay,
            clip=clip,
            progress=progress,
            stepping=Reweighted("forget", annealing.weight, phase.start),
        )
        histories.append(history)
        if phase.name == "forget":
            rise_N = row_losses(model, split.retain) - before_N
            dropped_N = select(rise_N, split.retain.group_B.cpu())
            if bool(dropped_N.all()):
                raise ValueError(f"all {len(dropped_N)} remaining rows were selected as the concept's; select fewer")
    return TARFResult(rise_N, dropped_N, tuple(histories))


@method(
    "other",
    "-k(t) NLL(forget) + tau NLL(retain), tau 0 where the loss rose along",
    "Zhu et al., arXiv 2406.08288",
    name="tarf",
    training=tarf,
)
def tarf_by_numbers(
    model: nn.Module,
    split: Split,
    *,
    k0: float,
    t1: int,
    t0: int,
    share: float | None = None,
    groups: int | None = None,
    **training: Any,
) -> TARFResult:
    """``tarf`` with its schedule and selection as plain numbers.

    Args:
        model: trained in place.
        split: listed rows and all that remain.
        k0, t1, t0: of ``Annealing``.
        share: of the remaining rows to be taken for part of the concept (``TopShare``).
        groups: how many groups of the remaining rows are (``TopGroups``); a row without a group is one of its own.
        training: keyword arguments of ``tarf``.

    Raises:
        ValueError: both or neither of share and groups, or what ``tarf`` raises.
    """
    if (share is None) == (groups is None):
        raise ValueError(
            f"give either share (of the remaining rows) or groups (how many), got {share} and {groups}; one of them "
            "says how much of the remaining rows belongs to the concept"
        )
    select = TopShare(share) if share is not None else TopGroups(groups or 0)
    return tarf(model, split, annealing=Annealing(k0, t1, t0), select=select, **training)


def _terms(phase: Phase, split: Split, dropped_N: FlagN, retain: Objective) -> list[Term]:
    terms = []
    if phase.name != "retain":
        terms.append(Term(1.0, ga, split.forget, "forget"))
    if phase.name != "forget":
        kept_N = (~dropped_N).nonzero()[:, 0]
        # All rows kept: the same batch object, so that nothing differs from plain fine-tuning.
        data = split.retain.select(kept_N) if bool(dropped_N.any()) else split.retain
        terms.append(Term(len(kept_N) / len(dropped_N), retain, data, "retain"))
    return terms
