"""One optimiser step before the update: losses, gradients and products with the Hessian, over all pieces of a batch."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from probe.data import Batch
from probe.objectives.objective import Objective
from probe.sites import layer_of
from probe.train.sharding import is_sharded, own_part, whole
from probe.train.terms import Term

# By parameter name; a parameter that no term acts on has no entry.
Gradient = dict[str, Tensor]
# Loss of each term, by its index.
Losses = dict[int, float]
Within = Callable[[Batch], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Piece:
    """Rows of one term's batch that go through the model together, and their share of the batch's mean."""

    data: Batch
    share: float


@dataclass(frozen=True, eq=False)
class Step:
    """What a way of stepping is given.

    Args:
        number: how many steps were taken before.
        seed: of the run; whatever is drawn at random in a step comes from it and ``number``.
        model: the model, its weights those before the step.
        trained: the parameters being trained, by name.
        terms, names: what is minimised.
        pieces: the batch of each term, as the pieces this process computes.
        autocast: dtype that the forward runs in, or None.
        accelerator: sums gradients over processes, or None.
    """

    number: int
    seed: int
    model: nn.Module = field(repr=False)
    trained: dict[str, nn.Parameter] = field(repr=False)
    terms: Sequence[Term] = field(repr=False)
    names: tuple[str, ...]
    pieces: Sequence[Sequence[Piece]] = field(repr=False)
    autocast: torch.dtype | None = None
    accelerator: Any = field(default=None, repr=False)

    @property
    def device(self) -> torch.device:
        """Where batches go."""
        return next(iter(self.trained.values())).device

    def chosen(self, on: Sequence[str]) -> tuple[list[int], list[int]]:
        """Indices of the terms named in ``on`` (all, if it is empty) and of the others.

        Raises:
            ValueError: a name that no term has.
        """
        odd = [name for name in on if name not in self.names]
        if odd:
            raise ValueError(f"no term is called {odd[0]!r}; the terms are {', '.join(self.names)}")
        inside = [k for k, name in enumerate(self.names) if not on or name in on]
        return inside, [k for k in range(len(self.names)) if k not in inside]

    def loss(self, objective: Objective, batch: Batch, name: str) -> Tensor:
        """The objective on this batch, with its graph.

        Raises:
            FloatingPointError: it is NaN or infinite.
            ValueError: it depends on no trained parameter.
        """
        with torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext():
            loss = objective(self.model, batch)
        if not bool(torch.isfinite(loss)):
            # One process may be alone here, so it looks at its own part of the weights.
            broken = first_nonfinite(self.model, {n: own_part(p) for n, p in self.model.named_parameters()})
            why = "all weights are finite" if broken is None else f"the first weight that is not finite is in {broken}"
            raise FloatingPointError(
                f"step {self.number}: {name} is {loss.item()} ({why}); lower the learning rate or its weight"
            )
        if not loss.requires_grad:
            raise ValueError(
                f"step {self.number}: {name} depends on none of the {len(self.trained)} trained parameters (the first "
                f"is {next(iter(self.trained))}); name others in parameters, and let the objective neither detach the "
                "model's output nor run under torch.no_grad or torch.inference_mode"
            )
        return loss

    def gradient(self, terms: Sequence[int] | None = None, *, within: Within | None = None) -> tuple[Losses, Gradient]:
        """sum_k weight_k grad L_k at the present weights, over whole batches, and the losses L_k.

        Args:
            terms: which terms; all unless given.
            within: a context entered around forward and backward of each piece: activation edits, say.
        """
        losses: Losses = {}
        # Where weights are split, the backward pass itself leaves the mean over processes; shares ask for the sum.
        factor = self.accelerator.num_processes if is_sharded(self.trained.values()) else 1
        self._clear()
        for k in range(len(self.terms)) if terms is None else terms:
            term, losses[k] = self.terms[k], 0.0
            for piece in self.pieces[k]:
                batch = piece.data.to(self.device)
                with within(batch) if within else nullcontext():
                    loss = self.loss(term.objective, batch, self.names[k])
                    # One backward per piece: its graph is freed before the next is built.
                    (term.weight * piece.share * factor * loss).backward()
                losses[k] += piece.share * loss.item()
        taken = {name: p.grad for name, p in self.trained.items() if p.grad is not None}
        self._clear()
        return {k: self._summed(loss) for k, loss in losses.items()}, self._reduced(taken)

    def curvature(self, terms: Sequence[int], direction: Gradient) -> Gradient:
        """H v: the Hessian of sum_k weight_k L_k at the present weights times ``direction``, by double backward.

        Attention runs in torch's plain kernel, since the fused ones have no second derivative.
        """
        found: Gradient = {}
        parameters = list(self.trained.values())
        for k in terms:
            for piece in self.pieces[k]:
                with sdpa_kernel(SDPBackend.MATH):
                    loss = self.loss(self.terms[k].objective, piece.data.to(self.device), self.names[k])
                    scaled = self.terms[k].weight * piece.share * loss
                    first = torch.autograd.grad(scaled, parameters, create_graph=True, allow_unused=True)
                    pairs = zip(self.trained, first, strict=True)
                    parts = [(g * direction[name]).sum() for name, g in pairs if g is not None and name in direction]
                    slope = torch.stack(parts).sum() if parts else scaled.detach()
                    if not slope.requires_grad:  # linear in the weights
                        continue
                    second = torch.autograd.grad(slope, parameters, allow_unused=True)
                pieces = {name: h for name, h in zip(self.trained, second, strict=True) if h is not None}
                found = added(found, pieces)
        return self._reduced(found)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Weights may be moved inside; afterwards they have their bits, in the same storage."""
        before = {name: p.detach().clone() for name, p in self.trained.items()}
        try:
            yield
        finally:
            with torch.no_grad():
                for name, p in self.trained.items():
                    p.copy_(before[name])

    def move(self, by: Gradient, scale: float) -> None:
        """theta <- theta + scale * by, in place."""
        with torch.no_grad():
            for name, change in by.items():
                self.trained[name].add_(change, alpha=scale)

    def noise(self, draw: int) -> Gradient:
        """Standard normal numbers in the shape of the trained weights, from seed, step and ``draw`` alone."""
        found = {}
        for i, (name, p) in enumerate(self.trained.items()):
            generator = torch.Generator(p.device).manual_seed(drawn_seed(self.seed, self.number, draw, i))
            found[name] = torch.randn(p.shape, generator=generator, device=p.device, dtype=p.dtype)
        return found

    def _clear(self) -> None:
        for p in self.trained.values():
            p.grad = None

    def _summed(self, number: float) -> float:
        if self.accelerator is None or self.accelerator.num_processes == 1:
            return number
        total = torch.tensor(number, dtype=torch.float32, device=self.device)
        return self.accelerator.reduce(total, reduction="sum").item()

    def _reduced(self, gradient: Gradient) -> Gradient:
        alone = self.accelerator is None or self.accelerator.num_processes == 1
        if alone or is_sharded(gradient.values()):
            return gradient
        return {name: self.accelerator.reduce(g, reduction="sum") for name, g in gradient.items()}


# What a step leaves: the loss of each term, and the gradient that the optimiser is given.
Stepping = Callable[[Step], tuple[Losses, Gradient]]


def plain_gradient(step: Step) -> tuple[Losses, Gradient]:
    """The gradient of the sum of the terms at the present weights."""
    return step.gradient()


def added(one: Gradient, other: Gradient, scale: float = 1.0) -> Gradient:
    """one + scale * other; where only one has an entry, the other counts as zero. ``one`` may be changed."""
    for name, value in other.items():
        one[name] = one[name].add_(value, alpha=scale) if name in one else value * scale
    return one


def norm(gradient: Gradient) -> float:
    """The L2 norm over all entries of all parameters."""
    return torch.nn.utils.get_total_norm(list(gradient.values())).item()


def drawn_seed(*numbers: int) -> int:
    """One seed from several numbers: neighbours in any of them share nothing."""
    seed = 0
    for number in numbers:
        # The multiplier and mask of a 63-bit linear congruential generator: every number moves all higher bits.
        seed = (seed * 6364136223846793005 + number + 1442695040888963407) & (2**63 - 1)
    return seed


def first_nonfinite(model: nn.Module, values: Mapping[str, Tensor]) -> str | None:
    """Where the first tensor with a NaN or infinity belongs: "layer 3 (name)", or the name alone; None if none."""
    for name, value in values.items():
        if value.is_floating_point() and not bool(torch.isfinite(whole(value.detach())).all()):
            try:
                layer = layer_of(model, name)
            except ValueError:  # not a decoder: its parameters belong to no block
                layer = None
            return name if layer is None else f"layer {layer} ({name})"
    return None


def check_gradient(step: Step, gradient: Gradient) -> Tensor:
    """The gradient's norm, if it is finite.

    Raises:
        FloatingPointError: it is not; the message names the term and the first layer with a bad entry.
    """
    total = torch.nn.utils.get_total_norm(list(gradient.values()))
    if math.isfinite(whole(total).item()):
        return total
    place = first_nonfinite(step.model, gradient)
    if place is None:
        raise FloatingPointError(
            f"step {step.number}: the gradient's norm overflows {total.dtype} though every entry is finite; scale the "
            "terms' weights down"
        )
    # Terms are looked at one by one only now; weights have not moved yet.
    for k, name in enumerate(step.names):
        alone = first_nonfinite(step.model, step.gradient([k])[1])
        if alone is not None:
            raise FloatingPointError(
                f"step {step.number}: the gradient of {name} is not finite, first in {alone}; lower the learning rate "
                "or its weight"
            )
    raise FloatingPointError(
        f"step {step.number}: the gradient that the way of stepping made of {', '.join(step.names)} is not finite, "
        f"first in {place}, though each term's own is; lower its strength"
    )
