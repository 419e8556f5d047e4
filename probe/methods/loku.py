"""LoKU (Cha et al., arXiv 2408.06621): the inverted hinge loss, on adapters that begin where forget rows matter.

>>> unlearned = study.unlearn("loku", rank=4, alpha=8, retain_weight=1, lr=3e-4, steps=2, batch_size=4)
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from probe.data import Batch, Split
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.unlearn import forget_loss, unlearn
from probe.objectives.hinge import InvertedHinge
from probe.objectives.objective import Objective
from probe.objectives.token import nll
from probe.sites import layer_of
from probe.train import History, target_token_count
from probe.train.setup import trained_parameters
from probe.train.setup import training as trainable

_EPSILON = 1e-5
_ADAPTERS = r"\.parametrizations\.weight\.0\."


class LowRank(nn.Module):
    """rest + scale B A in place of a weight."""

    def __init__(self, a_RI: Tensor, b_OR: Tensor, scale: float) -> None:
        super().__init__()
        self.a_RI, self.b_OR, self.scale = nn.Parameter(a_RI), nn.Parameter(b_OR), scale

    def forward(self, rest_OI: Tensor) -> Tensor:
        """The whole weight."""
        return rest_OI + self.scale * self.b_OR @ self.a_RI


@forget_loss("divergence", "mean [1 + p(y) - max_{v != y} p(v)] + w NLL(retain)", "Cha et al., arXiv 2408.06621")
def ihl() -> Objective:
    """The inverted hinge loss with the retain NLL, on all weights; the paper trains adapters (``loku``)."""
    return InvertedHinge()


@method(
    "divergence",
    "IHL + w NLL(retain) on W_rest + (alpha/rank) B A, B A from the SVD weighed by Fisher(forget) / Fisher(retain)",
    "Cha et al., arXiv 2408.06621",
    trains="blocks 0 to the last: adapters of their linear maps, merged at the end",
    published={
        "tofu": Published(
            "code of Cha et al., arXiv 2408.06621, TOFU, Llama-2-7B",
            {"rank": 32, "alpha": 64.0, "forget_weight": 1.0, "retain_weight": 1.0, "lr": 1e-4, "batch_size": 32},
        )
    },
    training=unlearn,
)
def loku(
    model: nn.Module,
    split: Split,
    *,
    rank: int,
    alpha: float,
    retain_weight: float,
    seed: int,
    parameters: str | None = None,
    fisher_rows: int = 2,
    **training: Any,
) -> History:
    """The inverted hinge loss with the retain NLL, on low-rank adapters that FILA starts (IHL + FILA).

    W = W_rest + (alpha / rank) B A, of which B and A are trained; at the end they are merged, after an error too. They
    start as a weighted low-rank approximation of W. F is the empirical Fisher information (the mean of squared
    gradients of the NLL of ``fisher_rows`` rows, by their targets), rho_o^2 = sum_i F_forget,oi / (1e-5 + F_retain,oi),
    U S V' the truncated SVD of rho W, scale B A = (rho + 1e-5)^-1 U S V', and W_rest what is missing to W. The two 1e-5
    are those of the released code. F_retain is taken on as many rows as F_forget.

    Args:
        model: trained in place.
        split: forget and retain rows.
        rank: columns of B, at most the smaller side of each weight.
        alpha: the scale is alpha / rank.
        retain_weight: weight of the retain NLL.
        seed: fixes the order of rows, the retain rows of the Fisher information, and the truncated SVD.
        parameters: regular expression over the names of the weights that get adapters; those of all linear maps in
            blocks unless given.
        fisher_rows: rows whose gradient is squared together.
        training: as in ``probe.methods.unlearn``.

    Raises:
        ValueError: a number out of range, no linear map in a block that matches, or what ``minimise`` raises.
    """
    linear = {f"{name}.weight": module for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    names = trained_parameters(model, parameters or ".")
    linear = {n: m for n, m in linear.items() if n in names and layer_of(model, n) is not None}
    if not linear:
        raise ValueError(f"no linear map (torch.nn.Linear) of a block matches {parameters or '.'!r}; name others")
    smallest = min(min(module.weight.shape) for module in linear.values())
    if not 1 <= rank <= smallest or not alpha > 0 or fisher_rows < 1:
        raise ValueError(
            f"rank must lie between 1 and {smallest}, the smallest side of a weight, alpha above 0 and fisher_rows at "
            f"least at 1, got {rank}, {alpha} and {fisher_rows}"
        )
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randperm(len(split.retain), generator=generator)[: len(split.forget)]
    weights = {name: names[name] for name in linear}
    forget = fisher(model, weights, split.forget, fisher_rows)
    retain = fisher(model, weights, split.retain.select(drawn), fisher_rows)
    started = {}
    for name, weight in weights.items():
        rho_O = (forget.pop(name) / (_EPSILON + retain.pop(name))).sum(1).sqrt()
        started[linear[name]] = fila(weight.detach(), rho_O, rank, alpha / rank, seed)
    with adapted(started):
        return unlearn(
            model, split, InvertedHinge(), retain_weight=retain_weight, seed=seed, parameters=_ADAPTERS, **training
        )


def fisher(model: nn.Module, weights: dict[str, nn.Parameter], batch: Batch, rows: int) -> dict[str, Tensor]:
    """sum_k n_k (d NLL_k / d w)^2 / sum_k n_k over pieces k of ``rows`` rows with n_k targets each."""
    device = next(iter(weights.values())).device
    found = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    total = target_token_count(batch)
    with trainable(model, weights):
        for piece in batch.chunks(rows):
            gradients = torch.autograd.grad(nll(model, piece.to(device)), list(weights.values()))
            for name, gradient in zip(weights, gradients, strict=True):
                found[name].add_(gradient.square(), alpha=target_token_count(piece) / total)
    return found


def fila(weight_OI: Tensor, rho_O: Tensor, rank: int, scale: float, seed: int) -> LowRank:
    """B and A with scale B A = (rho + 1e-5)^-1 times the best approximation of rho W of that rank (Cha et al.)."""
    number = torch.promote_types(weight_OI.dtype, torch.float32)
    rho_O1 = rho_O.to(number)[:, None]
    with torch.random.fork_rng([weight_OI.device] if weight_OI.is_cuda else []):
        torch.manual_seed(seed)
        u_OR, s_R, v_IR = torch.svd_lowrank(rho_O1 * weight_OI.to(number), q=rank)
    root_R = (s_R / scale).sqrt()
    a_RI, b_OR = (v_IR * root_R).T, u_OR * root_R / (rho_O1 + _EPSILON)
    return LowRank(a_RI.contiguous().to(weight_OI), b_OR.to(weight_OI), scale)


@contextmanager
def adapted(started: dict[nn.Linear, LowRank]) -> Iterator[None]:
    """Inside, each map's weight is rest + scale B A, at first what it was; afterwards it is one weight again."""
    orders = {module: list(module._parameters) for module in started}
    try:
        for module, low in started.items():
            rest_OI = module.weight  # stays a parameter, of another name
            parametrize.register_parametrization(module, "weight", low)
            with torch.no_grad():
                rest_OI.sub_(low.scale * low.b_OR @ low.a_RI)
        yield
    finally:
        for module, order in orders.items():
            if parametrize.is_parametrized(module, "weight"):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
            for name in order:  # the weight comes back behind the bias
                module._parameters[name] = module._parameters.pop(name)
