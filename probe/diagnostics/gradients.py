"""Gradients of several losses over many rows, from as few passes as will do."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from probe.data import Batch
from probe.metrics.forward import device_of
from probe.objectives.given import LogprobsAlone, NotAReweighting
from probe.objectives.logprobs import predicted_targets, target_logprobs
from probe.objectives.objective import Objective
from probe.quantised import quantised

Gradient = dict[str, Tensor]
Rows = Batch | Iterable[Batch]


def gradients(
    model: nn.Module, losses: Mapping[Any, Objective], rows: Rows, size: int, what: str
) -> Iterator[tuple[Any, Gradient]]:
    """The gradient of each loss over the same rows, one after another; parameters a loss does not reach are left out.

    Losses that depend on the model through log-probabilities of targets alone share forwards: for each, what is run
    again is the backward pass, from sum_t (dL / dlog p_t) log p_t. More rows than ``size`` are passed in pieces; such
    losses stay those of the whole batch, as dL / dlog p is computed for all rows at once. Any other loss is averaged
    over pieces with weights proportional to their targets, as are the batches of a stream.

    Args:
        model: in eval mode.
        losses: by name.
        rows: one batch, or several, whose loss is the mean of theirs.
        size: rows per pass.
        what: "objective" or "risk", for messages.

    Yields:
        name and gradient, in float32 at least. Rows that fit one pass hold one gradient at a time.
    """
    if isinstance(rows, Batch):
        yield from _of_batch(model, losses, rows, size, what)
        return
    total: dict[Any, Gradient] = {name: {} for name in losses}
    n_total = 0
    for batch in rows:
        n = int(batch.target_BT[:, 1:].sum())
        n_total += n
        for name, gradient in _of_batch(model, losses, batch, size, what):
            _add(total[name], gradient, float(n))
    if not n_total:
        raise ValueError(f"the {what} was given no batch (a generator that was read before, perhaps); give a list")
    for name, gradient in total.items():
        yield name, {key: g / n_total for key, g in gradient.items()}


def _of_batch(
    model: nn.Module, losses: Mapping[Any, Objective], batch: Batch, size: int, what: str
) -> Iterator[tuple[Any, Gradient]]:
    batch = batch.to(device_of(model))
    index = pieces(batch, size)
    known = Logprobs(model, batch, index)
    weights = {name: known.weights(loss, what) for name, loss in losses.items()}
    if len(index) == 1:
        for i, name in enumerate(losses):
            yield name, _of_piece(model, losses[name], batch, known.now, weights[name], i + 1 < len(losses), what)
        return
    total: dict[Any, Gradient] = {name: {} for name in losses}
    tokens_B = batch.target_BT[:, 1:].sum(1)
    for index_B in index:
        piece = batch.select(index_B)
        share = tokens_B[index_B].sum().item() / tokens_B.sum().item()
        sides = _once(model, piece)
        for i, (name, loss) in enumerate(losses.items()):
            w = weights[name]
            cut = w and [
                w_BT[index_B][:, : side.tokens_BT.shape[1]] for w_BT, side in zip(w, _sides(piece), strict=True)
            ]
            gradient = _of_piece(model, loss, piece, sides, cut, i + 1 < len(losses), what)
            _add(total[name], gradient, share if w is None else 1.0)
    yield from total.items()


def _of_piece(
    model: nn.Module,
    loss: Objective,
    piece: Batch,
    now: Callable[[int], Tensor],
    weights: Sequence[Tensor] | None,
    again: bool,
    what: str,
) -> Gradient:
    parameters = dict(model.named_parameters())
    if weights is None:
        with torch.enable_grad():
            value = loss(model, piece)
        _check_graph(value, what)
        outputs, given, again = [value], None, False
    else:
        chosen = [i for i, w_BT in enumerate(weights) if bool(w_BT.any())] or [0]
        outputs, given = [now(i) for i in chosen], [weights[i] for i in chosen]
    found = torch.autograd.grad(outputs, list(parameters.values()), given, retain_graph=again, allow_unused=True)
    # Half-precision sums over many pieces would lose the small ones.
    gradient = {
        name: g.to(torch.promote_types(g.dtype, torch.float32))
        for name, g in zip(parameters, found, strict=True)
        if g is not None
    }
    if not gradient:
        raise ValueError(f"the {what} does not depend on any parameter of this model; is it computed on another one?")
    return gradient


class Logprobs:
    """Log-probabilities of a batch's targets, and of its preferred answers, computed when first asked for.

    Rows that fit one pass keep their graph for the backward passes to come.
    """

    def __init__(self, model: nn.Module, batch: Batch, index: Sequence[Tensor]) -> None:
        self.model, self.batch, self.sides, self.index = model, batch, _sides(batch), index
        self.now = _once(model, batch)
        self.kept: dict[int, Tensor] = {}

    def __call__(self, i: int) -> Tensor:
        """log p of one side, without a graph."""
        if len(self.index) == 1:
            return self.now(i).detach()
        if i not in self.kept:
            side, found_BT = self.sides[i], None
            with torch.no_grad():
                for index_B in self.index:
                    logp_BT = target_logprobs(self.model, side.select(index_B))
                    if found_BT is None:
                        found_BT = logp_BT.new_zeros(side.tokens_BT.shape)
                    found_BT[index_B, : logp_BT.shape[1]] = logp_BT
            assert found_BT is not None
            self.kept[i] = found_BT
        return self.kept[i]

    def weights(self, loss: Objective, what: str) -> list[Tensor] | None:
        """dL / dlog p of each side, or None if the loss reads more of the model than that."""
        try:
            found, others = token_weights(loss, self.batch, self, list(self.model.parameters()), what)
        except NotAReweighting:
            return None
        return None if others else found


def token_weights(
    loss: Objective, batch: Batch, logprobs: Callable[[int], Tensor], others: Sequence[Tensor] = (), what: str = "loss"
) -> tuple[list[Tensor], bool]:
    """dL / dlog p_t, by autograd on the loss as it is written, with no model.

    Args:
        loss: L.
        batch: its rows.
        logprobs: which side -> log p, where sides are the rows and their preferred answers, if any.
        others: tensors that L must not depend on besides.
        what: for messages.

    Returns:
        the weights of each side, and whether L depends on ``others``.

    Raises:
        NotAReweighting: the loss reads more than log-probabilities of targets.
        ValueError: the value carries no graph.
    """
    sides, leaf = _sides(batch), {}

    def ask(i: int) -> Tensor:
        if i not in leaf:
            leaf[i] = logprobs(i).detach().requires_grad_()
        return leaf[i]

    with torch.enable_grad():
        value = loss(LogprobsAlone(sides, ask), batch)
    _check_graph(value, what)
    found = torch.autograd.grad(value, [*leaf.values(), *others], allow_unused=True)
    asked = dict(zip(leaf, found, strict=False))
    if all(g is None for g in asked.values()) and not any(g is not None for g in found[len(leaf) :]):
        raise ValueError(f"the {what} does not depend on any parameter of this model; is it computed on another one?")
    weights = []
    for i, side in enumerate(sides):
        g = asked.get(i)
        weights.append(torch.zeros(side.tokens_BT.shape, device=side.tokens_BT.device) if g is None else g)
    return weights, any(g is not None for g in found[len(leaf) :])


def _once(model: nn.Module, piece: Batch) -> Callable[[int], Tensor]:
    """Which side -> log p with its graph; one forward pass each, at the first call."""
    sides, kept = _sides(piece), {}

    def now(i: int) -> Tensor:
        if i not in kept:
            with torch.enable_grad():
                kept[i] = target_logprobs(model, sides[i])
        return kept[i]

    return now


def _sides(batch: Batch) -> tuple[Batch, ...]:
    return (batch,) if batch.preferred is None else (batch, batch.preferred)


def pieces(batch: Batch, size: int) -> list[Tensor]:
    """Row numbers of each pass; rows without a target need none, unless all fit one."""
    if size < 1:
        raise ValueError(f"batch_size must be at least 1, got {size}")
    if size >= len(batch):
        return [torch.arange(len(batch), device=batch.tokens_BT.device)]
    return list(torch.stack([predicted_targets(s).any(1) for s in _sides(batch)]).any(0).nonzero()[:, 0].split(size))


def refuse_without_gradient(model: nn.Module) -> None:
    """Refuse a model whose weights have no gradient, in part or in whole.

    Raises:
        ValueError: quantised or frozen parameters, with their share and what to do.
    """
    coded = quantised(model)
    # Buffers may hold weights too, and a packed parameter has fewer entries than weights.
    size = {name: p.numel() for name, p in model.named_parameters()} | coded
    frozen = [name for name, p in model.named_parameters() if not p.requires_grad and name not in coded]
    for names, what, way_out in (
        (list(coded), "quantised and have no gradient", "load the model without a quantization_config"),
        (frozen, "frozen", "call model.requires_grad_(True)"),
    ):
        if names:
            share = sum(size[name] for name in names) / sum(size.values())
            raise ValueError(
                f"{len(names)} of {len(size)} parameters ({share:.0%} of the weights; the first is {names[0]}) are "
                f"{what}, so their share of the G-effect would be missing; {way_out}"
            )


def _check_graph(value: Tensor, what: str) -> None:
    if not value.requires_grad:
        raise ValueError(
            f"the {what} does not depend on any parameter (its value carries no graph); it must not detach the "
            "model's output or run under torch.no_grad or torch.inference_mode"
        )


def _add(total: Gradient, gradient: Gradient, weight: float) -> None:
    for name, g in gradient.items():
        total[name] = total[name].add_(g, alpha=weight) if name in total else g * weight
