"""What is minimised and what a run leaves behind: terms, their batches, histories, schedules."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch

from probe.data import Batch
from probe.display import Result, ResultTable
from probe.objectives.objective import Objective
from probe.rows import Row

Schedule = Callable[[float], float]
# How many things an objective's mean over a batch runs over.
Count = Callable[[Batch], int]


@dataclass(frozen=True)
class Term:
    """One part of the sum that is minimised.

    Args:
        weight: factor of this term.
        objective: any callable ``(model, batch) -> scalar``.
        data: the rows it draws from.
        name: what the progress bar and errors call it.
        mean_over: counts what the objective is a mean over (``target_token_count``, ``rows``, ``real_token_count``);
            needed only where a batch is computed in pieces.

    >>> forget = probe.Term(1.0, probe.NPO(s.original, beta=0.1), s.split.forget, "forget")
    >>> retain = probe.Term(5.0, probe.nll, s.split.retain, "retain")
    >>> history = probe.minimise(copy.deepcopy(s.original), [forget, retain], steps=2, lr=3e-4, batch_size=4, seed=0)
    """

    weight: float
    objective: Objective
    data: Batch
    name: str = ""
    mean_over: Count | None = None


@dataclass(frozen=True)
class History(Result):
    """Loss of each term at each step, in the order of the terms.

    Args:
        names: the terms.
        losses: one tuple a step, before the step was taken.
        stopped: after how many steps ``stop`` ended the run; None if it did not.

    >>> term = probe.Term(1.0, probe.nll, s.split.retain, "retain")
    >>> history = probe.minimise(copy.deepcopy(s.original), [term], steps=2, lr=3e-4, batch_size=4, seed=0)
    >>> history.names, len(history.losses)
    (('retain',), 2)
    """

    names: tuple[str, ...]
    losses: tuple[tuple[float, ...], ...]
    stopped: int | None = None

    def rows(self, name: str = "model") -> list[Row]:
        """The loss of each term before each step (``item``)."""
        return [
            Row(name, "training", term, loss, item=step)
            for step, losses in enumerate(self.losses)
            for term, loss in zip(self.names, losses, strict=True)
        ]

    def table(self) -> ResultTable:
        """The first, middle and last steps."""
        last = len(self.losses) - 1
        steps = sorted({0, last // 2, last}) if self.losses else []
        columns = {name: [self.losses[step][k] for step in steps] for k, name in enumerate(self.names)}
        ended = "" if self.stopped is None else f", stopped after {self.stopped}"
        return ResultTable({"step": steps, **columns}, note=f"loss before each of {last + 1} steps{ended}")


def rows(batch: Batch) -> int:
    """Rows: what sequence-level objectives (NPO, SimNPO, DPO) are a mean over."""
    return len(batch)


def target_token_count(batch: Batch) -> int:
    """Target tokens: what token-mean objectives (NLL, GA, WGA, TNPO, forward KL) are a mean over."""
    return int(batch.target_BT[:, 1:].sum())


def real_token_count(batch: Batch) -> int:
    """Tokens that are not padding: what RMU's terms are a mean over unless told otherwise."""
    return int(batch.attention_BT.sum())


def constant(progress: float) -> float:
    """The learning rate stays as it is."""
    return 1.0


def one_cycle(progress: float) -> float:
    """Linear warm-up over the first tenth, then linear decay to a hundredth.

    >>> probe.one_cycle(0.05), probe.one_cycle(0.1), round(probe.one_cycle(1.0), 3)
    (0.5, 1.0, 0.01)
    """
    return progress / 0.1 if progress < 0.1 else max(0.01, (1 - progress) / 0.9)


def shuffled(data: Batch, size: int, seed: int, *, replacement: bool = False) -> Iterator[list[int]]:
    """Row indices, shuffled anew each epoch; a batch may run over the end of an epoch.

    With ``replacement`` every row is drawn by itself, so that one may come twice in a batch and another never.
    """
    generator = torch.Generator().manual_seed(seed)

    def stream() -> Iterator[int]:
        while True:
            yield from torch.randperm(len(data), generator=generator).tolist()

    order, size = stream(), min(size, len(data))
    while True:
        yield (
            torch.randint(len(data), (size,), generator=generator).tolist()
            if replacement
            else list(islice(order, size))
        )
