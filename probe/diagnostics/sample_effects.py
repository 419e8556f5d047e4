"""Which rows carry a G-effect, and in which layers: per-sample effects without per-sample gradients."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.data import Batch, Split
from probe.diagnostics.gradients import Gradient, Logprobs, Rows, gradients, pieces, refuse_without_gradient
from probe.diagnostics.parameter_groups import Group, groups
from probe.diagnostics.watched import Watch
from probe.display import Result, ResultTable
from probe.metrics.forward import device_of
from probe.modes import evaluating
from probe.objectives.logprobs import target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.token import nll
from probe.rows import Row
from probe.sites import n_layers

EffectBG = Float[Tensor, "B G"]
PerRowLayerBL = Float[Tensor, "B L"]
PerRowB = Float[Tensor, " B"]


@dataclass(frozen=True, eq=False)
class SampleEffects(Result):
    """e of each row and group of parameters; summed over rows and groups it is the G-effect.

    Args:
        groups: the groups of parameters, in the order of the last axis.
        effect_BG: risk -> <grad of row b's part of L, grad R> within each group.
        depth: number of decoder blocks.
    """

    groups: tuple[Group, ...]
    effect_BG: Mapping[str, EffectBG]
    depth: int

    def total_B(self, risk: str) -> PerRowB:
        """Each row's effect on a risk."""
        return self.effect_BG[risk].sum(1)

    def layer_BL(self, risk: str) -> PerRowLayerBL:
        """Each row's effect on a risk by decoder block."""
        layer_BL = torch.zeros(len(self.effect_BG[risk]), self.depth, dtype=torch.float64)
        for group, effect_B in zip(self.groups, self.effect_BG[risk].T, strict=True):
            if group.layer is not None:
                layer_BL[:, group.layer] += effect_B
        return layer_BL

    def rows(self, name: str = "model") -> list[Row]:
        """The effect of each row (``item``) on each risk (``on``)."""
        return [
            Row(name, "sample_effects", "effect", value, risk, item=row)
            for risk in self.effect_BG
            for row, value in enumerate(self.total_B(risk).tolist())
        ]

    def table(self) -> ResultTable:
        risks = {f"effect on {risk}": self.total_B(risk) for risk in self.effect_BG}
        return ResultTable({"row": range(len(next(iter(risks.values())))), **risks})


def sample_effects(
    model: nn.Module,
    objective: Objective,
    on: Split | Batch,
    risks: Mapping[str, tuple[Objective, Rows]] | None = None,
    *,
    batch_size: int = 32,
) -> SampleEffects:
    """<grad L_b, grad R> of each row b and group of parameters, from one forward and an activation-only backward.

    L_b is what flows through row b: for a sum over rows its summand, for a loss that couples rows (``BatchNPO``) the
    part of the gradient that passes through it. Each use of a parameter contributes delta . (df/dtheta grad R) with
    delta the gradient at the operation's output; for linear maps this is the outer-product identity of per-sample
    gradients (Goodfellow, arXiv 1510.01799). Uses are found as operations, not modules, so tied weights, norms,
    biases, GPT-2's transposed maps and position embeddings are counted whole. About 3 forwards beside 3 for each risk's
    gradient, and one more for each further risk; memory as a batch gradient. Rows beyond ``batch_size`` are passed in
    pieces; for which losses that changes nothing, ``g_effects`` says.

    Args:
        model: measured in eval mode and left as it was, ``.grad`` included.
        objective: L.
        on: the rows, of a split its forget rows; with preferred answers, row b is the pair.
        risks: by name R and the rows it is computed on; with a split the loss of either side unless given.
        batch_size: rows per pass.

    Raises:
        ValueError: frozen or quantised parameters, mixture-of-experts blocks (tokens leave their rows), a parameter
            used in a way that cannot be split by row or watched, or no risk.

    >>> found = probe.sample_effects(s.original, probe.ga, s.split)
    >>> found.total_B("retain").shape
    torch.Size([20])
    """
    if isinstance(on, Split):
        risks = {"forget": (nll, on.forget), "retain": (nll, on.retain)} if risks is None else risks
        on = on.forget
    if not risks:
        raise ValueError("no risk was given; name at least one, such as {'retain': (nll, retain)}")
    refuse_without_gradient(model)
    _refuse_experts(model)
    group_of = groups(model)
    listed = tuple(dict.fromkeys(group_of.values()))
    with evaluating(model):
        direction = [g for n, (r, o) in risks.items() for _, g in gradients(model, {n: r}, o, batch_size, "risk")]
        batch = on.to(device_of(model))
        index = pieces(batch, batch_size)
        # In pieces, a loss on all rows is known by its derivatives in log p; whole, by itself.
        weights = None if len(index) == 1 else Logprobs(model, batch, index).weights(objective, "objective")
        tokens_B = batch.target_BT[:, 1:].sum(1)
        found = torch.zeros(len(risks), len(on), len(listed), dtype=torch.float64)
        for index_B in index:
            piece = batch if len(index) == 1 else batch.select(index_B)
            scale = 1.0
            if len(index) > 1 and weights is None:
                scale = tokens_B[index_B].sum().item() / tokens_B.sum().item()
            cut = None if weights is None else [w_BT[index_B] for w_BT in weights]
            effect = _of_piece(model, objective, piece, cut, direction, group_of)
            for g, rows_KB in effect.items():
                found[:, index_B.cpu(), listed.index(g)] = scale * rows_KB
    return SampleEffects(listed, dict(zip(risks, found, strict=True)), n_layers(model))


def _of_piece(
    model: nn.Module,
    objective: Objective,
    piece: Batch,
    weights: Sequence[Tensor] | None,
    risk_gradients: Sequence[Gradient],
    group_of: Mapping[str, Group],
) -> dict[Group, Tensor]:
    frozen = {name: p.detach() for name, p in model.named_parameters()}
    directions = {
        id(frozen[name]): (name, group_of[name], _stacked([g.get(name) for g in risk_gradients], p))
        for name, p in frozen.items()
    }
    sides = [piece] if piece.preferred is None else [piece, piece.preferred]
    watch = Watch(directions, len(piece), {side.tokens_BT.shape[1] for side in sides}, len(risk_gradients))
    held = _Held(model, objective, sides, weights)
    with torch.enable_grad():
        with watch:
            value = torch.func.functional_call(held, {f"model.{name}": p for name, p in frozen.items()}, ())
        if not value.requires_grad:
            raise ValueError(
                "the objective does not depend on any parameter (its value carries no graph); it must not detach the "
                "model's output or run under torch.no_grad or torch.inference_mode"
            )
        _check_seen(model, objective, piece, frozen.keys() - watch.used)
        torch.autograd.grad(value, watch.leaves, allow_unused=True)
    return watch.effect


def _stacked(found: Sequence[Tensor | None], like: Tensor) -> Tensor:
    cast = [torch.zeros_like(like) if g is None else g.to(like.dtype) for g in found]
    # One direction needs no copy.
    return cast[0][None] if len(cast) == 1 else torch.stack(cast)


class _Held(nn.Module):
    """``functional_call`` wants a module whose forward is the loss."""

    def __init__(
        self, model: nn.Module, objective: Objective, sides: Sequence[Batch], weights: Sequence[Tensor] | None
    ) -> None:
        super().__init__()
        self.model, self.objective, self.sides, self.weights = model, objective, sides, weights

    def forward(self) -> Tensor:
        if self.weights is None:
            return self.objective(self.model, self.sides[0])
        parts = [
            (w_BT[:, : side.tokens_BT.shape[1]] * target_logprobs(self.model, side)).sum()
            for w_BT, side in zip(self.weights, self.sides, strict=True)
            if bool(w_BT.any())
        ]
        return torch.stack(parts).sum() if parts else torch.zeros(())


def _check_seen(model: nn.Module, objective: Objective, piece: Batch, unseen: set[str]) -> None:
    """Parameters that no operation was seen to use must be ones that the loss does not reach."""
    if not unseen:
        return
    row = piece.select([int(piece.attention_BT.sum(1).argmin())])
    parameters = {name: p for name, p in model.named_parameters() if name in unseen}
    found = torch.autograd.grad(objective(model, row), list(parameters.values()), allow_unused=True)
    missed = [name for name, g in zip(parameters, found, strict=True) if g is not None and bool(g.any())]
    if missed:
        raise ValueError(
            f"{len(missed)} parameters (the first is {missed[0]}) are used where no operation is seen (a custom "
            "kernel?), so their share of each row's effect would be missing; compute effects row by row with g_effect"
        )


def _refuse_experts(model: nn.Module) -> None:
    routed = [name for name, _ in model.named_parameters() if "experts" in name]
    if routed:
        raise ValueError(
            f"{len(routed)} parameters (the first is {routed[0]}) belong to a mixture of experts, where tokens leave "
            "their rows; compute effects row by row with g_effect instead"
        )
