"""Ways of stepping against an adversary: one who perturbs activations (LAT), one who fine-tunes weights (TAR)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from probe.axes import HiddenBTD
from probe.data import Batch
from probe.hooks import captured, edited
from probe.objectives.objective import Objective
from probe.sites import Site
from probe.train.step import Gradient, Losses, Step, added, drawn_seed, plain_gradient
from probe.train.terms import shuffled


@dataclass(frozen=True, eq=False)
class Perturb:
    """h + delta, one delta a row and position."""

    delta_BTD: HiddenBTD

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        if hidden_BTD.shape != self.delta_BTD.shape:
            raise ValueError(
                f"a perturbation of shape {tuple(self.delta_BTD.shape)} met hidden states of shape "
                f"{tuple(hidden_BTD.shape)}; latent attacks need objectives that run each batch once, whole"
            )
        return hidden_BTD + self.delta_BTD.to(hidden_BTD.dtype)


@dataclass(frozen=True)
class LAT:
    """g = grad L_on with h + delta in place of h, delta = argmin over |delta_bt| <= epsilon of the attacker's loss.

    Latent adversarial training (Casper et al., arXiv 2403.05030; targeted: Sheshadri et al., arXiv 2407.15549). delta
    starts at 0 and takes AdamW steps; after each, every position is projected back onto the L2
    ball. Padding is left alone. The other terms are computed without delta.

    Args:
        site: where delta is added; published: the MLP output of layer 7 of Zephyr-7B.
        attack: what the attacker minimises: ``nll`` on the forget rows brings the answers back.
        epsilon: L2 radius a position, at least 0; published 2.
        steps: attacker's steps, at least 0; published 16. 0 is the plain step.
        lr: attacker's learning rate; published 5e-2.
        on: names of the terms under attack, on whose batches the attacker works.
        weight_decay: of the attacker's AdamW; the published code has torch's default of 0.01.

    Raises:
        ValueError: a negative number, no term in ``on``, or an attack that delta has no effect on.

    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> lat = probe.LAT(probe.Site(3), probe.nll, epsilon=1.0, steps=2, lr=0.1, on=("forget",))
    >>> _ = probe.minimise(copy.deepcopy(s.original), [term], stepping=lat, steps=1, lr=3e-4, batch_size=4, seed=0)
    """

    site: Site
    attack: Objective
    epsilon: float
    steps: int
    lr: float
    on: tuple[str, ...]
    weight_decay: float = 0.0

    def __post_init__(self) -> None:
        if self.epsilon < 0 or self.steps < 0 or not self.lr > 0 or not self.on:
            raise ValueError(
                "LAT needs epsilon and steps of at least 0, an lr above 0 and the names of the terms under attack, got "
                f"{self.epsilon}, {self.steps}, {self.lr} and {self.on}"
            )

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.steps == 0 or self.epsilon == 0:
            return plain_gradient(step)

        def under_attack(batch: Batch):
            return edited(step.model, {self.site: Perturb(self.perturbation(step, batch))})

        losses, gradient = step.gradient(inside, within=under_attack)
        others, rest = step.gradient(outside)
        return losses | others, added(gradient, rest)

    def perturbation(self, step: Step, batch: Batch) -> HiddenBTD:
        """The attacker's delta for this batch, zero at padding."""
        with torch.no_grad(), captured(step.model, [self.site], stop=True) as states:
            step.model(**batch.inputs, use_cache=False)
        hidden_BTD = states[self.site]
        # Half precision would swallow the attacker's small steps.
        delta_BTD = torch.zeros_like(hidden_BTD, dtype=torch.promote_types(hidden_BTD.dtype, torch.float32))
        delta_BTD.requires_grad_()
        optimiser = torch.optim.AdamW([delta_BTD], lr=self.lr, weight_decay=self.weight_decay)
        for _ in range(self.steps):
            with edited(step.model, {self.site: Perturb(delta_BTD)}):
                loss = step.loss(self.attack, batch, "the latent attack")
                (found,) = torch.autograd.grad(loss, [delta_BTD], allow_unused=True)
            if found is None:
                raise ValueError(
                    f"the attack does not depend on activations at {self.site}; perturb a site below what it reads"
                )
            delta_BTD.grad = found * batch.attention_BT[..., None]
            optimiser.step()
            with torch.no_grad():
                delta_BTD.copy_(_projected(delta_BTD, self.epsilon))
        return delta_BTD.detach()


@dataclass(frozen=True)
class FineTuning:
    """One simulated attack: AdamW on an objective.

    Args:
        objective: what the attacker minimises, ``nll`` say.
        data: the attacker's rows.
        lr: learning rate; published 2e-6 to 4e-5.
        batch_size: rows a step.
        weight_decay: of every trained weight; the published code has torch's default of 0.01.

    >>> attack = probe.FineTuning(probe.nll, s.split.forget, lr=1e-4, batch_size=4)
    """

    objective: Objective
    data: Batch = field(repr=False)
    lr: float
    batch_size: int
    weight_decay: float = 0.0


@dataclass(frozen=True)
class TAR:
    """g = sum_i exp(growth (i - K + 1)) grad L_on(theta_i) + grad L_rest(theta), theta_i after attack step i.

    Tamper-resistance (Tamirisa et al., arXiv 2408.00761), first order: gradients at attacked weights are applied to the
    original ones, which come back bit for bit. The sum runs over every ``every``-th of the K = ``steps`` attack steps,
    counted so that the last is among them with weight 1. One attack is drawn per step of the run, from its seed. The
    attacker moves the trained parameters. The losses of ``on`` are those after the last attack step.

    Args:
        attacks: what to draw from; the same rows with another learning rate are another attack.
        steps: K, at least 0; published 64. 0 is the plain step.
        every: take a gradient every so many attack steps; divides ``steps``; published 4.
        growth: lambda, at least 0: later steps weigh more; published 0.0625.
        on: names of the terms that must hold under attack.

    Raises:
        ValueError: no attacks, a negative number, or an ``every`` that does not divide ``steps``.

    >>> attack = probe.FineTuning(probe.nll, s.split.forget, lr=1e-4, batch_size=4)
    >>> tar = probe.TAR([attack], steps=2, every=1, growth=0.5, on=("forget",))
    >>> term = probe.Term(1.0, probe.ga, s.split.forget, "forget")
    >>> _ = probe.minimise(copy.deepcopy(s.original), [term], stepping=tar, steps=1, lr=3e-4, batch_size=4, seed=0)
    """

    attacks: Sequence[FineTuning]
    steps: int
    every: int
    growth: float
    on: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.attacks or self.steps < 0 or self.growth < 0 or not self.on:
            raise ValueError(
                "TAR needs attacks, steps and growth of at least 0 and the names of the terms under attack, got "
                f"{len(self.attacks)} attacks, {self.steps}, {self.growth} and {self.on}"
            )
        if self.every < 1 or self.steps % self.every:
            raise ValueError(f"every must divide steps, got {self.every} and {self.steps}")

    def __call__(self, step: Step) -> tuple[Losses, Gradient]:
        inside, outside = step.chosen(self.on)
        if self.steps == 0:
            return plain_gradient(step)
        losses, gradient = step.gradient(outside)
        seed = drawn_seed(step.seed, step.number)
        which = int(torch.randint(len(self.attacks), (1,), generator=torch.Generator().manual_seed(seed)))
        attack = self.attacks[which]
        order = shuffled(attack.data, attack.batch_size, seed)
        with step.kept():
            attacked = list(step.trained.values())
            optimiser = torch.optim.AdamW(attacked, lr=attack.lr, weight_decay=attack.weight_decay)
            for i in range(self.steps):
                optimiser.zero_grad(set_to_none=True)
                batch = attack.data.select(next(order)).to(step.device)
                step.loss(attack.objective, batch, "the simulated attack").backward()
                optimiser.step()
                if (i + 1) % self.every == 0:
                    found, there = step.gradient(inside)
                    gradient = added(gradient, there, math.exp(self.growth * (i - self.steps + 1)))
        return losses | found, gradient


def _projected(delta_BTD: Tensor, epsilon: float) -> Tensor:
    length_BT1 = delta_BTD.norm(dim=-1, keepdim=True)
    return torch.where(length_BT1 > epsilon, delta_BTD * (epsilon / length_BT1), delta_BTD)
