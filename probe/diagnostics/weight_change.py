"""What did unlearning do to the weights: how much, of which rank, along which gradients?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from torch import Tensor, nn

from probe.axes import Scalar
from probe.data import Batch, Split
from probe.display import table
from probe.modes import evaluating
from probe.objectives.token import nll
from probe.sites import layer_of, unwrapped
from probe.weights import check_present, check_same_architecture


@dataclass(frozen=True)
class GroupChange:
    """The change of one group of parameters; NaN where nothing changed and a direction would be asked for.

    Args:
        norm: |theta_u - theta_o|.
        relative: the same over |theta_o|.
        stable_rank: |D|_F^2 / |D|_2^2 of each changed matrix, mean weighted by |D|_F^2; vectors are left out.
        effective_rank: exp(entropy of the normalised singular values), weighted alike.
        top_share: share of |D|_F^2 along the first singular vectors.
        forget_cosine: cosine with the gradient of the forget loss at theta_o: positive where the change, to first
            order, raises that loss.
        retain_share: share of |D|^2 that lies in the span of the retain gradients.
        retain_share_chance: what a random direction would have: gradients over parameters.
    """

    norm: float
    relative: float
    stable_rank: float
    effective_rank: float
    top_share: float
    forget_cosine: float
    retain_share: float
    retain_share_chance: float


@dataclass(frozen=True)
class WeightChange:
    """The change of each block and of the rest.

    Args:
        layers: one entry a block, in order.
        rest: embeddings, final norm and head.
        whole: everything.
        n_gradients: retain gradients that span the subspace.
    """

    layers: tuple[GroupChange, ...]
    rest: GroupChange
    whole: GroupChange
    n_gradients: int

    def _repr_html_(self) -> str:
        groups = (*self.layers, self.rest, self.whole)
        where = [*range(len(self.layers)), "rest", "whole"]
        columns = {field.name: [getattr(group, field.name) for group in groups] for field in fields(GroupChange)}
        return table({"block": where, **columns})


def weight_change(
    original: nn.Module,
    unlearned: nn.Module,
    split: Split,
    *,
    n_gradients: int,
    batch_size: int,
    risk: Callable[[nn.Module, Batch], Scalar] = nll,
) -> WeightChange:
    """Norm, spectrum and direction of theta_u - theta_o, by block.

    Gradients are those of the original: where the method set out. ``n_gradients`` copies of the parameters are held.

    Args:
        original, unlearned: same architecture; neither is changed.
        split: the forget gradient is over all forget rows; each retain gradient over ``batch_size`` retain rows.
        n_gradients: how many consecutive retain batches span the subspace.
        batch_size: rows of each.
        risk: whose gradients.

    Raises:
        ValueError: other architectures, weights that are not loaded or frozen, or fewer retain rows than one a batch.
    """
    check_same_architecture(original, unlearned)
    for model, name in ((original, "original model"), (unlearned, "unlearned model")):
        check_present(model, name)
    frozen = [name for name, p in original.named_parameters() if not p.requires_grad]
    if frozen:
        raise ValueError(f"{len(frozen)} parameters of the original are frozen (first: {frozen[0]}); unfreeze them")
    if n_gradients < 1 or batch_size < 1:
        raise ValueError(f"n_gradients and batch_size must be at least 1, got {n_gradients} and {batch_size}")
    if n_gradients > len(split.retain):
        raise ValueError(f"{n_gradients} retain gradients from {len(split.retain)} rows; give at most one a row")
    inner = unwrapped(original)
    ours, theirs = dict(inner.named_parameters()), dict(unwrapped(unlearned).named_parameters())
    change = {n: theirs[n].detach().to(p).double() - p.detach().double() for n, p in ours.items()}
    starts = [i * batch_size % len(split.retain) for i in range(n_gradients)]
    if len(set(starts)) < n_gradients:
        raise ValueError(
            f"{n_gradients} batches of {batch_size} rows repeat among {len(split.retain)} retain rows; ask for fewer"
        )
    pieces = [split.retain.select(range(s, min(s + batch_size, len(split.retain)))) for s in starts]
    with evaluating(original):
        forget = _gradient(original, split.forget, risk, batch_size)
        retain = [_gradient(original, piece, risk, batch_size) for piece in pieces]
    groups: dict[int | None, list[str]] = {}
    for name in ours:
        groups.setdefault(layer_of(original, name), []).append(name)
    norms = {n: p.detach().double().norm() for n, p in ours.items()}
    found = {key: _group(names, change, norms, forget, retain) for key, names in groups.items()}
    layers = tuple(found[key] for key in sorted(k for k in found if k is not None))
    return WeightChange(
        layers,
        found.get(None, _unchanged(float("nan"))),
        _group(list(ours), change, norms, forget, retain),
        n_gradients,
    )


def _gradient(
    model: nn.Module, batch: Batch, risk: Callable[[nn.Module, Batch], Scalar], size: int
) -> dict[str, Tensor]:
    """The gradient over all rows, by pieces weighted by their target tokens."""
    names, weights = zip(*unwrapped(model).named_parameters(), strict=True)
    total = [torch.zeros_like(w, dtype=torch.float64) for w in weights]
    n_all = int(batch.target_BT[:, 1:].sum())
    device = weights[0].device
    with torch.enable_grad():
        for piece in _with_targets(batch, size):
            share = int(piece.target_BT[:, 1:].sum()) / n_all
            grads = torch.autograd.grad(risk(model, piece.to(device)), weights, allow_unused=True)
            for kept, grad in zip(total, grads, strict=True):
                if grad is not None:
                    kept += share * grad.double()
    return dict(zip(names, total, strict=True))


def _with_targets(batch: Batch, size: int) -> Iterator[Batch]:
    yield from batch.select(batch.target_BT[:, 1:].any(1).nonzero()[:, 0]).chunks(size)


def _group(
    names: list[str],
    change: dict[str, Tensor],
    norms: dict[str, Tensor],
    forget: dict[str, Tensor],
    retain: list[dict[str, Tensor]],
) -> GroupChange:
    norm = float(sum(change[n].square().sum() for n in names)) ** 0.5
    before = float(sum(norms[n].square() for n in names)) ** 0.5
    chance = len(retain) / sum(change[n].numel() for n in names)
    if norm == 0:
        return _unchanged(min(1.0, chance))
    stable, effective, top = _spectrum([change[n] for n in names])
    flat_P = torch.cat([change[n].flatten() for n in names])
    forget_P = torch.cat([forget[n].flatten() for n in names])
    basis_PK = torch.stack([torch.cat([grad[n].flatten() for n in names]) for grad in retain], 1)
    left_PK, size_K, _ = torch.linalg.svd(basis_PK, full_matrices=False)
    left_PK = left_PK[:, size_K > 1e-10 * size_K[0]] if float(size_K[0]) > 0 else left_PK[:, :0]
    return GroupChange(
        norm,
        norm / before if before else float("nan"),
        stable,
        effective,
        top,
        forget_cosine=float(flat_P @ forget_P / (flat_P.norm() * forget_P.norm())),
        retain_share=float((left_PK.T @ flat_P).square().sum()) / norm**2,
        retain_share_chance=min(1.0, chance),
    )


def _unchanged(chance: float) -> GroupChange:
    nan = float("nan")
    return GroupChange(0.0, 0.0, nan, nan, nan, forget_cosine=nan, retain_share=nan, retain_share_chance=chance)


def _spectrum(changes: list[Tensor]) -> tuple[float, float, float]:
    matrices = [c for c in changes if c.ndim == 2 and bool(c.any())]
    if not matrices:
        return (float("nan"),) * 3
    weights, stable, effective, top = [], [], [], []
    for matrix in matrices:
        size_K = torch.linalg.svdvals(matrix)
        square_K = size_K.square()
        weights.append(square_K.sum())
        stable.append(square_K.sum() / square_K[0])
        effective.append(torch.special.entr(size_K / size_K.sum()).sum().exp())
        top.append(square_K[0] / square_K.sum())
    weight_M = torch.stack(weights) / sum(weights)
    mean = [float((weight_M * torch.stack(column)).sum()) for column in (stable, effective, top)]
    return mean[0], mean[1], mean[2]
