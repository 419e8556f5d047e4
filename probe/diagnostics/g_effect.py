"""G-effect: does a step that lowers one loss raise or lower another, and which layers carry it?"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from probe.axes import LogpBT, PerLayerL
from probe.data import Batch
from probe.diagnostics.gradients import Gradient, Rows, gradients, refuse_without_gradient
from probe.diagnostics.parameter_groups import Group, groups
from probe.diagnostics.token_effects import token_effects
from probe.display import Result, ResultTable
from probe.modes import evaluating
from probe.objectives.objective import Objective
from probe.objectives.token import nll
from probe.rows import Row, over_layers
from probe.sites import n_layers

__all__ = ["GEffect", "Group", "Product", "g_effect", "g_effects", "token_g_effects"]


@dataclass(frozen=True)
class Product:
    """<grad L, grad R> within one group of parameters.

    Args:
        effect: the inner product, in nats times the unit of L per squared parameter unit.
        gradient_norm: |grad L|.
        risk_norm: |grad R|.
    """

    effect: float
    gradient_norm: float
    risk_norm: float

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two gradients; NaN where either is zero."""
        norms = self.gradient_norm * self.risk_norm
        return self.effect / norms if norms else float("nan")


@dataclass(frozen=True, eq=False)
class GEffect(Result):
    """e = <grad L, grad R>, split over groups of parameters.

    A gradient step of size eta on L changes R by about -eta e. R is a loss: e < 0 means that R rises, so the data
    behind R is forgotten; e > 0 means that it is learnt.

    Args:
        group: inner product and norms of each group; they sum to the whole.
        depth: number of decoder blocks.
    """

    group: Mapping[Group, Product]
    depth: int

    @property
    def layer_L(self) -> PerLayerL:
        """Share of each decoder block."""
        return self._by_layer(lambda group: True)

    def part_L(self, part: str) -> PerLayerL:
        """Share of one part of each decoder block.

        Raises:
            ValueError: no block has such a part.
        """
        known = sorted({group.part for group in self.group if group.layer is not None})
        if part not in known:
            raise ValueError(f"no block has a part {part!r}; this model's blocks have {', '.join(known)}")
        return self._by_layer(lambda group: group.part == part)

    @property
    def rest(self) -> float:
        """Share of embeddings, final norm and head."""
        return sum(product.effect for group, product in self.group.items() if group.layer is None)

    @property
    def total(self) -> float:
        """The whole inner product."""
        return self.layer_L.sum().item() + self.rest

    @property
    def gradient_norm(self) -> float:
        """|grad L|."""
        return sum(product.gradient_norm**2 for product in self.group.values()) ** 0.5

    @property
    def risk_norm(self) -> float:
        """|grad R|."""
        return sum(product.risk_norm**2 for product in self.group.values()) ** 0.5

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two gradients; NaN where the risk has no gradient."""
        return Product(self.total, self.gradient_norm, self.risk_norm).cosine

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """The whole effect, its cosine and norms, and the shares of each block and of its parts.

        Args:
            name: the objective, or what was done to the model.
            on: whose loss the risk is ("forget", "retain"); a figure needs both sides.
        """
        whole = {
            "total": self.total,
            "cosine": self.cosine,
            "gradient norm": self.gradient_norm,
            "risk norm": self.risk_norm,
            "rest": self.rest,
        }
        rows = [Row(name, "g_effect", quantity, value, on) for quantity, value in whole.items()]
        rows += over_layers(name, "g_effect", "effect", range(self.depth), self.layer_L, on)
        return rows + [
            Row(name, "g_effect", f"effect of {group.part}", product.effect, on, layer=group.layer)
            for group, product in self.group.items()
        ]

    def table(self) -> ResultTable:
        note = f"effect {self.total:.4g}, cosine {self.cosine:+.3f}; below 0 a step raises the risk's loss"
        where = [*range(self.depth), "rest"]
        return ResultTable({"block": where, "G-effect": [*self.layer_L, self.rest]}, note=note)

    def _by_layer(self, counts: Callable[[Group], bool]) -> PerLayerL:
        layer_L = torch.zeros(self.depth, dtype=torch.float64)
        for group, product in self.group.items():
            if group.layer is not None and counts(group):
                layer_L[group.layer] += product.effect
        return layer_L


def g_effect(
    model: nn.Module, objective: Objective, on: Rows, *, over: Rows, risk: Objective = nll, batch_size: int = 32
) -> GEffect:
    """e = <grad L(on), grad R(over)> per group of parameters (Wang et al., arXiv 2502.19301).

    As ``g_effects``, for one objective and one risk.

    Args:
        model: measured in eval mode; ``.grad``, modes and ``requires_grad`` stay as they are.
        objective: L, what a step would lower.
        on: the rows L is computed on.
        over: the rows R is computed on: the forget set for the unlearning effect, the retain set for the other.
        risk: R.
        batch_size: rows per pass; see ``g_effects`` for losses that it changes.

    Returns:
        the effect per group of parameters, and both gradients' norms. Costs one forward and backward pass per batch
        (two forwards where a batch is passed in pieces) and memory for two gradients.

    Raises:
        ValueError: a parameter is frozen or quantised, or the objective has no gradient.

    >>> few = s.split.forget.select(range(4))
    >>> effect = probe.g_effect(s.original, probe.ga, few, over=few)
    >>> effect.total < 0, round(effect.cosine, 3)
    (True, -1.0)
    """
    return g_effects(model, {"L": objective}, on, {"R": (risk, over)}, batch_size=batch_size)["L"]["R"]


def g_effects(
    model: nn.Module,
    objectives: Mapping[str, Objective],
    on: Rows,
    risks: Mapping[str, tuple[Objective, Rows]],
    *,
    batch_size: int = 32,
) -> dict[str, dict[str, GEffect]]:
    """e = <grad L(on), grad R> of every objective L with every risk R, from one set of passes (arXiv 2502.19301).

    Gradients are those of all rows, not running averages, and are summed in float32 under bf16 weights. Objectives that
    depend on the model through its targets' log-probabilities alone (every reweighting: GA, WGA, TNPO, SatImp, NPO,
    SimNPO, DPO, ...) share one forward, also with a risk on the very same batch; M of them cost 1 + 2M forwards beside
    the risks' 3 each. Pieces of any ``batch_size`` give the gradient of the whole batch up to rounding, at one more
    forward where it is smaller than the batch. Any other objective (KL, RMU's, maximal entropy) takes a forward of its
    own, and in pieces its gradients are averaged with weights proportional to the pieces' target tokens: the same for
    means over target tokens; for others choose a ``batch_size`` of at least the batch.

    Args:
        model: measured in eval mode; ``.grad``, modes and ``requires_grad`` stay as they are.
        objectives: L by name.
        on: the rows every L is computed on: a batch, or several of any number, whose L is the mean of theirs weighted
            by target tokens.
        risks: by name R and the rows it is computed on.
        batch_size: rows per pass.

    Returns:
        objective -> risk -> effect. A risk without gradient gives effects of 0 and a cosine of NaN. Memory is for one
        gradient a risk and one objective's, or all objectives' where ``on`` takes more than one pass.

    Raises:
        ValueError: no objective or no risk, a parameter is frozen or quantised, or an objective has no gradient.

    >>> few = s.split.forget.select(range(4))
    >>> found = probe.g_effects(s.original, {"GA": probe.ga}, few, {"forget": (probe.nll, few)})
    >>> len(found["GA"]["forget"].layer_L)
    8
    """
    if not objectives or not risks:
        raise ValueError(f"got {len(objectives)} objectives and {len(risks)} risks; give at least one of each")
    refuse_without_gradient(model)
    group, depth = groups(model), n_layers(model)
    found: dict[str, dict[str, GEffect]] = {}
    risk_square: dict[str, dict[str, float]] = {}
    with evaluating(model):
        risk_gradient: dict[str, Gradient] = {}
        # A risk on the objectives' own rows shares their forward, if those rows take one pass.
        same = [name for name, (_, over) in risks.items() if over is on and isinstance(on, Batch)]
        for name, (loss, over) in risks.items():
            if name not in same:
                risk_gradient |= gradients(model, {name: loss}, over, batch_size, "risk")
        losses: dict[tuple[str, str], Objective] = {("risk", name): risks[name][0] for name in same}
        losses |= {("objective", name): objective for name, objective in objectives.items()}
        for (kind, name), gradient in gradients(model, losses, on, batch_size, "objective"):
            if kind == "risk":
                risk_gradient[name] = gradient
                continue
            for risk in risks.keys() - risk_square.keys():
                risk_square[risk] = _squares(risk_gradient[risk])
            if not any(bool(g.any()) for g in gradient.values()):
                raise ValueError(
                    f"the gradient of objective {name} is exactly zero: it is at its minimum or saturated on these "
                    "rows, so there is no step whose effect could be measured"
                )
            square = _squares(gradient)
            found[name] = {
                risk: GEffect(_products(group, (gradient, risk_gradient[risk]), (square, risk_square[risk])), depth)
                for risk in risks
            }
            del gradient  # before the next one is there
    return found


def token_g_effects(model: nn.Module, on: Batch, *, over: Rows, risk: Objective = nll, batch_size: int = 32) -> LogpBT:
    """pg_t = <grad log p_t, grad R(over)> of every target token; ``token_effects`` for one risk.

    Any loss that depends on the model through the target log-probabilities alone has e = sum_t (dL / dlog p_t) pg_t.

    Args:
        model: measured in eval mode and left as it was; tied weights move together.
        on: the rows whose tokens are asked about.
        over, risk: the rows and the loss R, as in ``g_effect``.
        batch_size: rows per pass.

    Returns:
        pg in the shape of ``on.tokens_BT``, 0 where there is no target.

    Raises:
        ValueError: a parameter is frozen or quantised, or the risk depends on no parameter.
        NotImplementedError: an operation has no forward-mode rule.
    """
    return token_effects(model, on, {"R": (risk, over)}, batch_size=batch_size).pg_BT["R"]


def _products(
    group: Mapping[str, Group], gradient: tuple[Gradient, Gradient], square: tuple[dict[str, float], dict[str, float]]
) -> dict[Group, Product]:
    ours, theirs = gradient
    sums = {g: [0.0, 0.0, 0.0] for g in group.values()}
    for name, g in group.items():
        if name in ours and name in theirs:
            sums[g][0] += (ours[name].double() * theirs[name].double()).sum().item()
        for i in range(2):
            sums[g][1 + i] += square[i].get(name, 0.0)
    return {g: Product(effect, mine**0.5, other**0.5) for g, (effect, mine, other) in sums.items()}


def _squares(gradient: Gradient) -> dict[str, float]:
    return {name: g.double().square().sum().item() for name, g in gradient.items()}
