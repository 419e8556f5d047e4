"""Point-wise G-effects: what raising the log-probability of one token does to a risk, for all tokens in one pass."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import LogpBT
from probe.context import check_rows
from probe.data import Batch, Split
from probe.diagnostics.forward_mode import forward_mode
from probe.diagnostics.gradients import Gradient, Rows, gradients, pieces, refuse_without_gradient
from probe.display import Result, ResultTable
from probe.hooks import captured
from probe.metrics.forward import device_of
from probe.modes import evaluating
from probe.objectives.logprobs import before_targets, predicted_targets, scattered, target_logprobs
from probe.objectives.objective import Objective
from probe.objectives.token import nll
from probe.rows import Row
from probe.sites import Site, layer_of, n_layers, place_of, unwrapped

LayerBTL = Float[Tensor, "B T L"]


@dataclass(frozen=True, eq=False)
class TokenEffects(Result):
    """pg_t = <grad log p_t, grad R> of every target token, for one or more risks R.

    A step that raises log p_t by gradient ascent *raises* R by pg_t per unit of step, one that lowers it lowers R:
    pg < 0 means that un-learning this token raises R.

    Args:
        batch: the rows asked about.
        logp_BT: log p of each target, 0 elsewhere.
        pg_BT: risk -> effect of each target, 0 elsewhere.
        layer_BTL: risk -> the same, by decoder block, if asked for; what is missing to ``pg_BT`` belongs to
            embeddings, final norm and head.
        preferred: the same for the preferred answers of a paired batch.
        kernels: what was switched while forward mode ran, because it has no forward-mode rule, and back after.
    """

    batch: Batch
    logp_BT: LogpBT
    pg_BT: Mapping[str, LogpBT]
    layer_BTL: Mapping[str, LayerBTL] | None
    preferred: "TokenEffects | None"
    kernels: tuple[str, ...]

    @property
    def sides(self) -> "tuple[TokenEffects, ...]":
        """These and those of the preferred answers, if there are some."""
        return (self,) if self.preferred is None else (self, self.preferred)

    def rows(self, name: str = "model") -> list[Row]:
        """Log-probability of each target token and its effect on each risk; ``item`` counts targets row after row."""
        columns = {"": self.logp_BT} | dict(self.pg_BT)
        return [
            Row(name, "token_effects", "effect" if risk else "log-probability", value, risk, item=item)
            for risk, value_BT in columns.items()
            for item, value in enumerate(value_BT[self.targets_BT].tolist())
        ]

    def table(self) -> ResultTable:
        mask_BT = self.targets_BT
        columns = {f"effect on {risk}": pg_BT[mask_BT] for risk, pg_BT in self.pg_BT.items()}
        row_N, position_N = mask_BT.nonzero().T
        return ResultTable({"row": row_N, "position": position_N, "log p": self.logp_BT[mask_BT], **columns})

    @property
    def targets_BT(self) -> Tensor:
        """Which tokens are targets."""
        mask_BT = self.batch.target_BT.to(self.logp_BT.device).clone()
        mask_BT[:, 0] = False
        return mask_BT


def token_effects(
    model: nn.Module,
    on: Split | Batch,
    risks: Mapping[str, tuple[Objective, Rows]] | None = None,
    *,
    by_layer: bool = False,
    batch_size: int = 32,
    targets_at_once: int = 1024,
) -> TokenEffects:
    """pg_t = d log p_t along grad R: the point-wise G-effect (Wang et al., arXiv 2502.19301) of all tokens at once.

    One pass in forward mode (dual numbers) per batch of rows gives all tokens, at 1 + 2K forwards for K risks beside
    3 for each risk's gradient. Memory does not grow with depth. The head is passed in closed form, at target
    positions only: d log p_y = dz_y - sum_v p_v dz_v with dz = W dh + dW h + db.

    Forward mode has no rule for fused attention and expert kernels. While it runs, PyTorch's attention takes its
    plain ("math") kernel, any other implementation and grouped experts are set to "eager", and all is put back
    after; ``kernels`` of the result names what was switched. Values differ by rounding only.

    Args:
        model: measured in eval mode and left as it was; tied weights move together.
        on: the rows whose tokens are asked about, preferred answers included; of a split its forget rows.
        risks: by name R and the rows it is computed on; with a split the loss of either side unless given.
        by_layer: split every effect over decoder blocks too, by one forward-mode pass for each: about 1.5 forwards
            a block for one risk, 2.5 for two.
        batch_size: rows per pass.
        targets_at_once: targets whose logits are held at a time.

    Raises:
        ValueError: no risk, a parameter is frozen or quantised, or a risk depends on no parameter.
        NotImplementedError: another operation without a forward-mode rule (Bloom's GELU).

    >>> effects = probe.token_effects(s.original, s.split)
    >>> sorted(effects.pg_BT), effects.pg_BT["forget"].shape == s.split.forget.tokens_BT.shape
    (['forget', 'retain'], True)
    """
    if isinstance(on, Split):
        risks = {"forget": (nll, on.forget), "retain": (nll, on.retain)} if risks is None else risks
        on = on.forget
    if not risks:
        raise ValueError("no risk was given; name at least one, such as {'retain': (nll, retain)}")
    refuse_without_gradient(model)
    with evaluating(model):
        found: dict[str, Gradient] = {}
        for name, (risk, over) in risks.items():
            for _, gradient in gradients(model, {name: risk}, over, batch_size, "risk"):
                found[name] = gradient
        direction = {
            name: _stacked([g[name] if name in g else torch.zeros_like(p) for g in found.values()], p.dtype)
            for name, p in model.named_parameters()
            if any(name in g for g in found.values())
        }
        found.clear()
        with forward_mode(model) as kernels:
            ahead = _Ahead(model, direction, len(risks), targets_at_once)
            sides = [on] if on.preferred is None else [on, on.preferred]
            measured = [_of_side(ahead, side, by_layer, batch_size) for side in sides]
    after = None
    for side, (logp_BT, pg_KBT, layer_KBTL) in reversed(list(zip(sides, measured, strict=True))):
        layer = None if layer_KBTL is None else dict(zip(risks, layer_KBTL, strict=True))
        after = TokenEffects(side, logp_BT, dict(zip(risks, pg_KBT, strict=True)), layer, after, kernels)
    assert after is not None
    return after


def _stacked(found: list[Tensor], dtype: torch.dtype) -> Tensor:
    # One direction needs no copy.
    return found[0].to(dtype)[None] if len(found) == 1 else torch.stack([g.to(dtype) for g in found])


def _of_side(ahead: "_Ahead", side: Batch, by_layer: bool, size: int) -> tuple[Tensor, Tensor, Tensor | None]:
    device, (n, length) = device_of(ahead.model), side.tokens_BT.shape
    depth = n_layers(ahead.model)
    side = side.to(device)
    logp_BT, pg_KBT, layer_KBTL = None, None, None
    for index_B in pieces(side, size):
        piece = side.select(index_B)
        width = piece.tokens_BT.shape[1]
        logp, pg = ahead.along(piece, ahead.direction)
        if logp_BT is None or pg_KBT is None:
            logp_BT, pg_KBT = logp.new_zeros(n, length), pg.new_zeros(ahead.n_risks, n, length)
            layer_KBTL = pg.new_zeros(ahead.n_risks, n, length, depth) if by_layer else None
        logp_BT[index_B, :width], pg_KBT[:, index_B, :width] = logp, pg
        for layer in range(depth) if layer_KBTL is not None else ():
            block = {name: t for name, t in ahead.direction.items() if layer_of(ahead.model, name) == layer}
            if block:
                layer_KBTL[:, index_B, :width, layer] = ahead.along(piece, block)[1]  # type: ignore[index]
    assert logp_BT is not None
    assert pg_KBT is not None
    return logp_BT, pg_KBT, layer_KBTL


class _Ahead:
    """Log-probabilities of targets and their derivatives along K directions in the space of parameters."""

    def __init__(self, model: nn.Module, direction: dict[str, Tensor], n_risks: int, targets_at_once: int) -> None:
        self.model, self.direction, self.n_risks, self.targets_at_once = model, direction, n_risks, targets_at_once
        self.linear_head: bool | None = None

    def along(self, piece: Batch, direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """(log p (batch, position), its derivatives (risk, batch, position))."""
        check_rows(self.model, piece)
        with torch.no_grad():
            if self.linear_head is None:
                self.linear_head = _head_is_linear(self.model, piece)
            if not self.linear_head:
                return self._derivatives(lambda: target_logprobs(self.model, piece), direction)
            hidden_BTD, moved_KBTD = self._derivatives(lambda: _entering(self.model, piece.inputs), direction)
            before_BT, mask_BT = before_targets(piece), predicted_targets(piece)
            logp_N, pg_KN = self._head(
                hidden_BTD[before_BT], moved_KBTD[:, before_BT], piece.tokens_BT[mask_BT], direction
            )
            return scattered(logp_N, mask_BT), torch.stack([scattered(pg_N, mask_BT) for pg_N in pg_KN])

    def _derivatives(self, function: Callable[[], Tensor], direction: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        parameters = dict(self.model.named_parameters())
        primal = {f"model.{name}": parameters[name].detach() for name in direction}
        held = _Held(self.model, function)

        def run(parameters: dict[str, Tensor]) -> Tensor:
            return torch.func.functional_call(held, parameters, ())

        def one(tangent: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
            return torch.func.jvp(run, (primal,), (tangent,))  # type: ignore[return-value]

        tangents = {f"model.{name}": t for name, t in direction.items()}
        try:
            if self.n_risks == 1:
                value, moved = one({name: t[0] for name, t in tangents.items()})
                return value, moved[None]
            # What does not depend on the direction is computed once for all.
            return torch.func.vmap(one, out_dims=(None, 0))(tangents)  # type: ignore[arg-type]
        except (NotImplementedError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError):
                raise
            name = type(unwrapped(self.model)).__name__
            raise NotImplementedError(
                f"an operation of {name} has no forward-mode rule, so point-wise effects cannot be computed; effects "
                f"by row and layer are: probe.diagnostics.sample_effects. PyTorch says: {error}"
            ) from error

    def _head(self, hidden_ND: Tensor, moved_KND: Tensor, y_N: Tensor, direction: dict[str, Tensor]) -> Any:
        head = unwrapped(self.model).get_output_embeddings()  # type: ignore[operator]
        name_of = {id(p): name for name, p in self.model.named_parameters()}
        weight_VD, bias_V = head.weight, head.bias
        dweight_KVD = direction.get(name_of[id(weight_VD)])
        dbias_KV = None if bias_V is None else direction.get(name_of[id(bias_V)])
        device = weight_VD.device
        hidden_ND, moved_KND, y_N = hidden_ND.to(device), moved_KND.to(device), y_N.to(device)
        wide = torch.promote_types(weight_VD.dtype, torch.float32)
        logps, effects = [], []
        for start in range(0, len(y_N), self.targets_at_once):
            cut = slice(start, start + self.targets_at_once)
            h_ND, y_N1 = hidden_ND[cut], y_N[cut, None]
            logp_NV = torch.log_softmax(nn.functional.linear(h_ND, weight_VD, bias_V).to(wide), -1)
            p_NV = logp_NV.exp()
            logps.append(logp_NV.gather(1, y_N1)[:, 0])
            # d log p_y = (W_y - sum_v p_v W_v) . dh, and likewise for what moves in the head itself.
            away_NV = (-p_NV).scatter_add_(1, y_N1, torch.ones_like(p_NV[:, :1]))
            effect_KN = torch.einsum("nd,knd->kn", away_NV @ weight_VD.to(wide), moved_KND[:, cut].to(wide))
            if dweight_KVD is not None:
                for effect_N, dweight_VD in zip(effect_KN, dweight_KVD, strict=True):
                    effect_N += ((away_NV @ dweight_VD.to(wide)) * h_ND.to(wide)).sum(1)
            if dbias_KV is not None:
                effect_KN += dbias_KV.to(wide) @ away_NV.T
            effects.append(effect_KN)
        where = self.direction[next(iter(self.direction))].device
        return torch.cat(logps).to(where), torch.cat(effects, 1).to(where)


class _Held(nn.Module):
    """``functional_call`` wants a module whose forward is the function to differentiate."""

    def __init__(self, model: nn.Module, function: Callable[[], Tensor]) -> None:
        super().__init__()
        self.model, self.function = model, function

    def forward(self) -> Tensor:
        return self.function()


def _entering(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """What the final norm returns; the forward ends there."""
    site = Site(0, "norm")
    with captured(model, [site], stop=True) as states:
        model(**inputs, use_cache=False)
    return states[site]


def _head_is_linear(model: nn.Module, piece: Batch) -> bool:
    """Whether logits are the head's linear map of what the final norm returns, compared on a few tokens.

    Gemma 2 and Cohere cap or scale logits; then the head is passed in forward mode like all else.
    """
    inner = unwrapped(model)
    head = inner.get_output_embeddings()  # type: ignore[operator]
    if type(head) is not nn.Linear:
        return False
    try:
        place_of(model, Site(0, "norm"))
    except ValueError:
        return False
    # A few tokens tell: rows are padded on the right.
    short = {name: value[:1, :8] for name, value in piece.inputs.items()}
    site = Site(0, "norm")
    with captured(model, [site]) as states:
        logits = model(**short, use_cache=False).logits
    closed = head(states[site].to(head.weight.device)).to(logits.device)
    # The same map of the same numbers is equal bit by bit; anything less, and the general way is taken.
    return torch.equal(closed, logits)
