"""What did unlearning do to the weights: how much, of which rank, along which gradients?"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float64
from torch import Tensor, nn

from probe.axes import Scalar
from probe.data import Batch, Split
from probe.display import Result, ResultTable
from probe.modes import evaluating
from probe.objectives.token import nll
from probe.rows import Row, over_layers
from probe.sites import layer_of, unwrapped
from probe.weights import check_present, check_same_architecture

# Entries that are taken to float64 at once.
_SLICE = 250_000


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
class WeightChange(Result):
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

    def rows(self, name: str = "model") -> list[Row]:
        rows = []
        for field in fields(GroupChange):
            quantity, value_L = field.name.replace("_", " "), [getattr(group, field.name) for group in self.layers]
            rows += over_layers(name, "weight_change", quantity, range(len(self.layers)), value_L)
            for on, group in (("rest", self.rest), ("whole", self.whole)):
                rows.append(Row(name, "weight_change", quantity, getattr(group, field.name), on))
        return rows

    def table(self) -> ResultTable:
        groups = (*self.layers, self.rest, self.whole)
        where = [*range(len(self.layers)), "rest", "whole"]
        columns = {field.name: [getattr(group, field.name) for group in groups] for field in fields(GroupChange)}
        return ResultTable({"block": where, **columns})


def weight_change(
    original: nn.Module,
    unlearned: nn.Module,
    split: Split,
    *,
    n_gradients: int = 4,
    batch_size: int = 16,
    rows_per_pass: int | None = None,
    risk: Callable[[nn.Module, Batch], Scalar] = nll,
) -> WeightChange:
    """Norm, spectrum and direction of theta_u - theta_o, by block.

    Gradients are those of the original: where the method set out. They are computed for some parameters at a time, so
    that beside the two models about twice the weights are held, however many gradients are asked for.

    Args:
        original, unlearned: same architecture; neither is changed.
        split: the forget gradient is over all forget rows; each retain gradient over ``batch_size`` retain rows.
        n_gradients: how many consecutive retain batches span the subspace.
        batch_size: rows of each.
        rows_per_pass: how many rows are run at once, ``batch_size`` unless fewer are given; more rows' gradients are
            added up, weighted by target tokens.
        risk: whose gradients; a mean over target tokens, where rows are run in pieces.

    Raises:
        ValueError: other architectures, weights that are not loaded or frozen, or fewer retain rows than one a batch.

    >>> found = probe.weight_change(s.original, s.retrained, s.split, n_gradients=1)
    >>> found.whole.relative > 0, len(found.layers)
    (True, 8)
    """
    check_same_architecture(original, unlearned)
    for model, name in ((original, "original model"), (unlearned, "unlearned model")):
        check_present(model, name)
    frozen = [name for name, p in original.named_parameters() if not p.requires_grad]
    if frozen:
        raise ValueError(f"{len(frozen)} parameters of the original are frozen (first: {frozen[0]}); unfreeze them")
    for what, number in (("n_gradients", n_gradients), ("batch_size", batch_size), ("rows_per_pass", rows_per_pass)):
        if number is not None and number < 1:
            raise ValueError(f"{what} must be at least 1, got {number}")
    if n_gradients > len(split.retain):
        raise ValueError(f"{n_gradients} retain gradients from {len(split.retain)} rows; give at most one a row")
    starts = [i * batch_size % len(split.retain) for i in range(n_gradients)]
    if len(set(starts)) < n_gradients:
        raise ValueError(
            f"{n_gradients} batches of {batch_size} rows repeat among {len(split.retain)} retain rows; "
            "take fewer gradients (n_gradients), or fewer rows for each (batch_size)"
        )
    batches = [split.forget]
    batches += [split.retain.select(range(s, min(s + batch_size, len(split.retain)))) for s in starts]
    ours, theirs = (dict(unwrapped(model).named_parameters()) for model in (original, unlearned))
    found: dict[int | None, _Sums] = {}
    with evaluating(original):
        for names in _portions(ours, n_gradients):
            gradients = [_gradient(original, batch, risk, rows_per_pass or batch_size, names) for batch in batches]
            for name in names:
                added = _sums(ours[name], theirs[name], [gradient.pop(name) for gradient in gradients])
                layer = layer_of(original, name)
                found[layer] = found[layer] + added if layer in found else added
    layers = tuple(_change(found[key]) for key in sorted(k for k in found if k is not None))
    rest = _change(found[None]) if None in found else _unchanged(float("nan"))
    first, *others = found.values()
    return WeightChange(layers, rest, _change(sum(others, first)), n_gradients)


def _portions(parameters: dict[str, nn.Parameter], n_gradients: int) -> Iterator[list[str]]:
    """Names in order, so many at a time that all their gradients together are twice as large as the model."""
    most = 2 * sum(p.numel() for p in parameters.values()) / (n_gradients + 1)
    names: list[str] = []
    size = 0
    for name, p in parameters.items():
        if names and size + p.numel() > most:
            yield names
            names, size = [], 0
        names, size = [*names, name], size + p.numel()
    yield names


def _gradient(
    model: nn.Module, batch: Batch, risk: Callable[[nn.Module, Batch], Scalar], size: int, names: list[str]
) -> dict[str, Tensor]:
    """The gradient of the named parameters over all rows, by pieces weighted by their target tokens."""
    known = dict(unwrapped(model).named_parameters())
    weights = [known[name] for name in names]
    # Sums over many pieces of half precision would lose the small ones.
    total = [torch.zeros_like(w, dtype=torch.promote_types(w.dtype, torch.float32)) for w in weights]
    n_all = int(batch.target_BT[:, 1:].sum())
    device = next(iter(known.values())).device
    with torch.enable_grad():
        for piece in _with_targets(batch, size):
            share = int(piece.target_BT[:, 1:].sum()) / n_all
            grads = torch.autograd.grad(risk(model, piece.to(device)), weights, allow_unused=True)
            for kept, grad in zip(total, grads, strict=True):
                if grad is not None:
                    kept.add_(grad, alpha=share)
    return dict(zip(names, total, strict=True))


def _with_targets(batch: Batch, size: int) -> Iterator[Batch]:
    yield from batch.select(batch.target_BT[:, 1:].any(1).nonzero()[:, 0]).chunks(size)


@dataclass(frozen=True, eq=False)
class _Sums:
    """What a group's numbers are made of, to be added up over its parameters.

    Args:
        inner_VV: inner products of the change, the forget gradient and the retain gradients, in this order.
        before: |theta_o|^2.
        size: how many weights.
        spectrum_4: |D|_F^2 and, weighted by it, stable rank, effective rank and top share, over changed matrices.
    """

    inner_VV: Float64[Tensor, "V V"]
    before: float
    size: int
    spectrum_4: Float64[Tensor, " 4"]

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.inner_VV + other.inner_VV,
            self.before + other.before,
            self.size + other.size,
            self.spectrum_4 + other.spectrum_4,
        )


def _sums(ours: nn.Parameter, theirs: nn.Parameter, gradients: list[Tensor]) -> _Sums:
    """Of one parameter; float64 is used for a slice at a time."""
    before = ours.detach().to(torch.promote_types(ours.dtype, torch.float32))
    change = theirs.detach().to(before) - before
    inner_VV = torch.zeros(len(gradients) + 1, len(gradients) + 1, dtype=torch.float64)
    norm = 0.0
    for start in range(0, change.numel(), _SLICE):
        slices = [v.reshape(-1)[start : start + _SLICE].double() for v in (change, *gradients)]
        rows_VP = torch.stack(slices)
        inner_VV += (rows_VP @ rows_VP.T).cpu()
        norm += float(before.reshape(-1)[start : start + _SLICE].double().square().sum())
    return _Sums(inner_VV, norm, change.numel(), _spectrum(change))


def _spectrum(change: Tensor) -> Float64[Tensor, " 4"]:
    """As ``_Sums`` keeps it, from the eigenvalues of D^T D; zeros for what is no matrix or did not change."""
    if change.ndim != 2 or not bool(change.any()):
        return torch.zeros(4, dtype=torch.float64)
    tall = change if change.shape[0] >= change.shape[1] else change.T
    square_KK = torch.zeros(tall.shape[1], tall.shape[1], dtype=torch.float64, device=change.device)
    for piece in tall.split(max(1, _SLICE // tall.shape[1])):
        square_KK.addmm_(piece.double().T, piece.double())
    square_K = torch.linalg.eigvalsh(square_KK).clamp(min=0).cpu()
    size_K, total = square_K.sqrt(), square_K.sum()
    effective = torch.special.entr(size_K / size_K.sum()).sum().exp()
    return torch.stack([total, total * total / square_K.max(), total * effective, square_K.max()])


def _change(sums: _Sums) -> GroupChange:
    norm = float(sums.inner_VV[0, 0]) ** 0.5
    chance = min(1.0, (len(sums.inner_VV) - 2) / sums.size)
    if norm == 0:
        return _unchanged(chance)
    _, stable, effective, top = (sums.spectrum_4 / sums.spectrum_4[0]).tolist()
    square_K, basis_KK = torch.linalg.eigh(sums.inner_VV[2:, 2:])
    # Directions below that are rounding: the gradients depend on each other.
    spanned_K = square_K > 1e-12 * square_K[-1]
    along_K = (basis_KK.T @ sums.inner_VV[2:, 0])[spanned_K].square() / square_K[spanned_K]
    return GroupChange(
        norm,
        norm / sums.before**0.5 if sums.before else float("nan"),
        stable,
        effective,
        top,
        forget_cosine=float(sums.inner_VV[0, 1] / (norm * sums.inner_VV[1, 1].sqrt())),
        retain_share=float(along_K.sum()) / norm**2,
        retain_share_chance=chance,
    )


def _unchanged(chance: float) -> GroupChange:
    nan = float("nan")
    return GroupChange(0.0, 0.0, nan, nan, nan, forget_cosine=nan, retain_share=nan, retain_share_chance=chance)
