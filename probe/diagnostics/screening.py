"""First-order guess of a layer map from one gradient, with what the measured map says of its worth."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from probe.axes import PerLayerL
from probe.data import Batch
from probe.diagnostics.layer_maps import replacement_map
from probe.diagnostics.sides import of_pair
from probe.display import Result, ResultTable
from probe.metrics.forward import device_of
from probe.metrics.tokens import TokenStats
from probe.modes import evaluating
from probe.objectives.logprobs import predicted_targets
from probe.objectives.token import nll
from probe.rows import Row, over_layers
from probe.sites import blocks, unwrapped
from probe.weights import check_exchangeable

_ORDERS = 5040  # 7!


@dataclass(frozen=True, eq=False)
class Screening(Result):
    """A guess of each layer's effect, beside the truth.

    Args:
        predicted_L: rise of the loss (nats a token) that the gradient foretells for each layer alone.
        exact_L: the rise measured with that layer of the unlearned model in the original.
        spearman: rank correlation of the two; NaN if either is the same for all layers.
        p_value: two-sided, from orders of the layers: all of them for up to seven layers, 5040 drawn ones beyond.
        n_exact: rows that ``exact_L`` was measured on.
    """

    predicted_L: PerLayerL
    exact_L: PerLayerL
    spearman: float
    p_value: float
    n_exact: int

    def order(self) -> tuple[int, ...]:
        """Layers by ``predicted_L``, the largest foretold rise first; read it with ``spearman`` beside it."""
        return tuple(torch.sort(self.predicted_L, descending=True, stable=True).indices.tolist())

    def __str__(self) -> str:
        return f"layers {self.order()}; Spearman {self.spearman:+.2f} (p {self.p_value:.2g}) with the measured map"

    def rows(self, name: str = "model", on: str = "") -> list[Row]:
        """Both maps and their rank correlation; ``on`` says whose rows they are of."""
        rows = [Row(name, "screening", "rank correlation", self.spearman, on, n=len(self.predicted_L))]
        for quantity, value_L in (("predicted rise", self.predicted_L), ("exact rise", self.exact_L)):
            rows += over_layers(name, "screening", quantity, range(len(value_L)), value_L, on)
        return rows

    def table(self) -> ResultTable:
        layers = range(len(self.predicted_L))
        return ResultTable({"layer": layers, "foretold rise": self.predicted_L, "exact": self.exact_L}, note=str(self))


@of_pair
def screened(
    original: nn.Module,
    unlearned: nn.Module,
    batch: Batch,
    *,
    exact_on: Batch | None = None,
    batch_size: int = 64,
) -> Screening:
    """d_l = (theta_u - theta_o)_l . grad_l NLL(theta_o) for every layer from one backward pass, and the measured map.

    A guess alone is not offered: with a step as long as unlearning takes, the sign, size and order can all be wrong,
    on retained rows above all. Where the measured map on all rows is too dear, measure it on a few of them.

    Args:
        original, unlearned: of the same architecture, left as found; ``.grad`` is neither read nor written.
        batch: rows of the gradient; NLL is the mean over all of their target tokens. A split gives a result a side.
        exact_on: rows of the measured map; None takes ``batch``.
        batch_size: rows per pass.

    Raises:
        ValueError: frozen weights in a block, and what ``replacement_map`` refuses.

    >>> few = s.split.forget.select(range(4))
    >>> sorted(probe.screened(s.original, s.retrained, few).order())
    [0, 1, 2, 3, 4, 5, 6, 7]
    """
    check_exchangeable(original, unlearned)
    stack, others = blocks(original), blocks(unlearned)
    _check_trainable(original, stack)
    exact_on = batch if exact_on is None else exact_on
    exact = replacement_map(original, unlearned, exact_on, _token_loss, batch_size=batch_size)
    exact_L = exact.score_L("", "loss") - exact.original[""]["loss"]
    predicted_L = torch.zeros(len(stack), dtype=torch.float64)
    whole = int(predicted_targets(batch).sum())
    weights = [list(block.parameters()) for block in stack]
    theirs = [list(block.parameters()) for block in others]
    with evaluating(original), torch.enable_grad():
        for rows in batch.chunks(batch_size):
            loss = nll(original, rows.to(device_of(original))) * (int(predicted_targets(rows).sum()) / whole)
            gradients = iter(torch.autograd.grad(loss, [p for mine in weights for p in mine], materialize_grads=True))
            for layer, (mine, other) in enumerate(zip(weights, theirs, strict=True)):
                # The gradients' iterator comes last: zip would take one too many from it.
                predicted_L[layer] += sum(_moved(p, q, g) for p, q, g in zip(mine, other, gradients, strict=False))
    rank, p_value = _rank_correlation(predicted_L.numpy(), exact_L.numpy())
    return Screening(predicted_L, exact_L, rank, p_value, len(exact_on))


def _rank_correlation(first_L: np.ndarray, second_L: np.ndarray) -> tuple[float, float]:
    """Spearman's coefficient with its two-sided p over orders of the layers.

    All orders are counted where there are at most ``_ORDERS``; else so many are drawn, and a side's p is
    (k + 1) / (n + 1), which is never 0 (Phipson and Smyth 2010).
    """
    from scipy.stats import permutation_test, rankdata

    if len(set(first_L)) < 2 or len(set(second_L)) < 2:
        return float("nan"), float("nan")
    one_L, two_L = (rankdata(value_L) - (len(value_L) + 1) / 2 for value_L in (first_L, second_L))
    two_L = two_L / np.sqrt((one_L**2).sum() * (two_L**2).sum())
    found = permutation_test(
        (one_L,),
        lambda order_L, axis: (order_L * two_L).sum(axis),
        permutation_type="pairings",
        vectorized=True,
        n_resamples=_ORDERS,
        rng=0,
    )
    return float(found.statistic), float(found.pvalue)


def _moved(mine: nn.Parameter, other: nn.Parameter, gradient: torch.Tensor) -> float:
    # In float32 at least: the difference of two bf16 weights is exact there, and the sum over them is not small.
    wide = torch.promote_types(mine.dtype, torch.float32)
    step = other.detach().to(mine.device, wide) - mine.detach().to(wide)
    return float((step * gradient.to(wide)).sum(dtype=torch.float64))


def _token_loss(tokens: TokenStats) -> dict[str, float]:
    n = tokens.n_tokens_N
    return {"loss": float((tokens.loss_N * n).sum() / n.sum())}


def _check_trainable(model: nn.Module, stack: nn.ModuleList) -> None:
    frozen = [name for name, p in stack.named_parameters() if not p.requires_grad]
    if frozen:
        raise ValueError(
            f"{len(frozen)} weights in the blocks of {type(unwrapped(model)).__name__} are frozen (the first is "
            f"{frozen[0]}) and have no gradient; call model.requires_grad_(True), or use replacement_map alone"
        )
