"""What every way of weighting tokens does to forgetting and retention, and the weighting that would be best."""

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from probe.axes import LogpBT
from probe.diagnostics.gradients import token_weights
from probe.diagnostics.token_effects import TokenEffects
from probe.display import Result, ResultTable
from probe.objectives.given import NotAReweighting
from probe.objectives.objective import Objective
from probe.rows import Row

Name = TypeVar("Name", bound=Hashable)


@dataclass(frozen=True, eq=False)
class Reweighting(Result):
    """One objective seen as weights on tokens: grad L = sum_t w_t grad log p_t.

    Args:
        weight_BT: w_t = dL / dlog p_t; above 0 where a gradient step lowers log p_t.
        preferred_BT: the same for the preferred answers of a paired batch.
        effect: risk -> e = sum_t w_t pg_t.
        layer: risk -> the share of each decoder block, where the point-wise effects were split.
    """

    weight_BT: LogpBT
    preferred_BT: Tensor | None  # of another length than the rows, perhaps
    effect: Mapping[str, float]
    layer: Mapping[str, list[float]] | None

    @property
    def mass(self) -> float:
        """sum_t |w_t|: how strong the objective is as a whole."""
        sides = [self.weight_BT] if self.preferred_BT is None else [self.weight_BT, self.preferred_BT]
        return sum(w_BT.double().abs().sum().item() for w_BT in sides)

    def rows(self, name: str = "model") -> list[Row]:
        rows = [Row(name, "reweighting", "mass", self.mass)]
        rows += [Row(name, "reweighting", "total", value, risk) for risk, value in self.effect.items()]
        return rows + [
            Row(name, "reweighting", "effect", value, risk, layer=layer)
            for risk, value_L in (self.layer or {}).items()
            for layer, value in enumerate(value_L)
        ]

    def table(self) -> ResultTable:
        return ResultTable(
            {"risk": self.effect, "effect": self.effect.values()}, note=f"sum of weights {self.mass:.4g}"
        )


@dataclass(frozen=True, eq=False)
class Weighting(Result):
    """Token weights of total size 1, and what a gradient step on them does.

    Args:
        forgetting: -e of the risk to be raised, per unit of step and of weight: how fast it rises.
        harm: -e of the risk to be kept: how fast that rises; below 0 the step improves it.
        weight_BT: w_t, with sum_t |w_t| = 1.
        peak: the largest |w_t|, in multiples of the uniform weight 1 / n.
    """

    forgetting: float
    harm: float
    weight_BT: LogpBT
    peak: float

    def rows(self, name: str = "model") -> list[Row]:
        numbers = {"forgetting": self.forgetting, "harm": self.harm, "peak": self.peak}
        return [Row(name, "weighting", quantity, value) for quantity, value in numbers.items()]

    def table(self) -> ResultTable:
        return ResultTable({"forgetting": [self.forgetting], "harm": [self.harm], "peak weight": [self.peak]})


def reweighting_map(effects: TokenEffects, objectives: Mapping[Name, Objective]) -> dict[Name, Reweighting]:
    """The G-effects of any number of objectives at any hyper-parameters, from point-wise effects, with no further pass.

    An objective that depends on theta through its targets' log-probabilities alone has e = sum_t (dL / dlog p_t) pg_t
    (Wang et al., arXiv 2502.19301, write NPO's so). dL / dlog p_t is found by autograd on the objective as it is
    written: a weight that it detaches stays detached. Among such objectives are ``ga``, ``GA`` at temperature 1,
    ``WGA``, ``TNPO``, ``WTNPO``, ``SatImp``, ``SelectedTokens``, ``NPO``, ``BatchNPO``, ``SimNPO``, ``DPO``, ``FLAT``
    and, as ``GA(normalise=sequence_mean)`` times 1 - lambda, the target part of ``BST``.

    Args:
        effects: from ``token_effects``; objectives are those of its batch, all rows at once.
        objectives: by any name, ``("WGA", 5.0)`` for instance. Give those that ask the original ``OriginalAnswers``: a
            model in its place is run for each of them.

    Returns:
        weights and effects by the same names.

    Raises:
        ValueError: an objective that is no reweighting of log-probabilities (KL, RMU, maximal entropy): its G-effect
            is computed by ``g_effect``; or one that depends on no log-probability.

    >>> effects = probe.token_effects(s.original, s.split)
    >>> found = probe.reweighting_map(effects, {"GA": probe.ga})
    >>> found["GA"].effect["forget"] < 0
    True
    """
    return {name: _reweighting(effects, name, objective) for name, objective in objectives.items()}


def _reweighting(effects: TokenEffects, name: Any, objective: Objective) -> Reweighting:
    sides = effects.sides
    batch = effects.batch.to(effects.logp_BT.device)
    try:
        weights, _ = token_weights(objective, batch, lambda i: sides[i].logp_BT, what=f"objective {name}")
    except NotAReweighting as error:
        raise ValueError(
            f"{name} is no reweighting of log-probabilities, so point-wise effects do not give its G-effect ({error}); "
            "compute it directly with probe.diagnostics.g_effect.g_effect"
        ) from error
    pairs = list(zip(weights, sides, strict=True))
    effect = {
        risk: sum((w_BT.double() * side.pg_BT[risk].double()).sum().item() for w_BT, side in pairs)
        for risk in effects.pg_BT
    }
    layer = None
    if effects.layer_BTL is not None:
        layer = {risk: _by_layer(pairs, risk) for risk in effects.pg_BT}
    return Reweighting(weights[0], weights[1] if len(weights) > 1 else None, effect, layer)


def _by_layer(pairs: Sequence[tuple[Tensor, TokenEffects]], risk: str) -> list[float]:
    shares = []
    for w_BT, side in pairs:
        assert side.layer_BTL is not None
        shares.append(torch.einsum("bt,btl->l", w_BT.double(), side.layer_BTL[risk].double()))
    return torch.stack(shares).sum(0).tolist()


def weighting_of(
    effects: TokenEffects, found: Reweighting, *, unlearn: str = "forget", retain: str = "retain"
) -> Weighting:
    """The point of one objective in the plane of ``best_weightings``: its weights scaled to a total size of 1.

    Args:
        effects: what the objective's effects were made from.
        found: from ``reweighting_map``.
        unlearn, retain: names of the risk to be raised and the risk to be kept.

    Raises:
        ValueError: an unknown risk, or an objective that weighs no token.
    """
    _check_risks(effects, unlearn, retain)
    mass = found.mass
    if not mass:
        raise ValueError("the objective gives every token a weight of exactly 0; it cannot be scaled to a weight of 1")
    weight_BT = found.weight_BT / mass
    heaviest = max(w.abs().max().item() for w in (found.weight_BT, found.preferred_BT) if w is not None)
    n = sum(int(side.batch.target_BT[:, 1:].sum()) for side in effects.sides)
    return Weighting(-found.effect[unlearn] / mass, -found.effect[retain] / mass, weight_BT, heaviest * n / mass)


def best_weighting(
    effects: TokenEffects, *, unlearn: str = "forget", retain: str = "retain", peak: float = 5.0, most_harm: float = 0.0
) -> Weighting:
    """The token weights that forget fastest at bounded retain harm: a linear programme.

        max over w of -sum_t w_t pg_t(unlearn)   subject to   -sum_t w_t pg_t(retain) <= most_harm,
        0 <= w_t <= peak / n,   sum_t w_t = 1

    To first order: what one gradient step does, not a run. A linear programme, solved by HiGHS
    (scipy.optimize.linprog).

    Args:
        effects: from ``token_effects``, with both risks: those of a split have the names below.
        unlearn, retain: names of the risk to be raised and the risk to be kept.
        peak: largest weight in multiples of the uniform one, at least 1 (which leaves the uniform weighting, GA,
            alone); n puts all on one token.
        most_harm: bound on the rise of the retain risk per unit of step and weight; 0 allows none.

    Raises:
        ValueError: an unknown risk, a paired batch, a peak below 1, a risk without gradient, or a bound that no
            weighting meets, with the least that one does.

    >>> effects = probe.token_effects(s.retrained, s.split)
    >>> best = probe.best_weighting(effects, peak=5.0)
    >>> best.harm <= 1e-6
    True
    """
    forget_N, harm_N, n = _programme(effects, unlearn, retain, peak)
    least = harm_N @ _filled(harm_N, peak / n)
    # Rounding must not make the very bound unreachable that least_harmful reports.
    if most_harm < least - 1e-9 * abs(harm_N).max():
        raise ValueError(
            f"no weighting with weights up to {peak:g} / n does retain harm of at most {most_harm:.6g}; the least is "
            f"{least:.6g}. Raise most_harm or peak"
        )
    return _solved(effects, forget_N, harm_N, peak, max(most_harm, least))


def best_weightings(
    effects: TokenEffects, *, unlearn: str = "forget", retain: str = "retain", peak: float = 5.0, n_points: int = 20
) -> list[Weighting]:
    """The Pareto curve of forgetting against retain harm: ``best_weighting`` at bounds from the least harm upwards.

    The last point is the weighting that forgets fastest at whatever harm; no weighting within ``peak`` lies above
    the curve, which is concave.

    Args:
        effects, unlearn, retain, peak: as in ``best_weighting``.
        n_points: how many bounds, evenly spaced; at least 2.

    Raises:
        ValueError: as ``best_weighting``, or fewer than 2 points.

    >>> curve = probe.best_weightings(probe.token_effects(s.retrained, s.split), n_points=3)
    >>> curve[0].harm <= curve[-1].harm
    True
    """
    if n_points < 2:
        raise ValueError(f"a curve needs at least 2 points, got n_points={n_points}")
    forget_N, harm_N, n = _programme(effects, unlearn, retain, peak)
    least, fastest = (harm_N @ _filled(value_N, peak / n) for value_N in (harm_N, -forget_N))
    bounds: Sequence[float] = np.linspace(least, max(least, fastest), n_points).tolist()
    return [_solved(effects, forget_N, harm_N, peak, bound) for bound in bounds]


def _programme(effects: TokenEffects, unlearn: str, retain: str, peak: float) -> tuple[Any, Any, int]:
    """Rise of the unlearn and of the retain risk per unit of weight on each target, and how many there are."""
    _check_risks(effects, unlearn, retain)
    if effects.preferred is not None:
        raise ValueError(
            "the best weighting is over the answers to be forgotten; give point-wise effects of those only"
        )
    if not peak >= 1 or math.isinf(peak):
        raise ValueError(f"peak must be at least 1 (all weights equal) and finite, got {peak}")
    for name in (unlearn, retain):
        if not effects.pg_BT[name].any():
            raise ValueError(
                f"the risk {name} has no gradient: no token has an effect on it, so all weightings are alike"
            )
    mask_BT = effects.targets_BT
    forget_N, harm_N = (-effects.pg_BT[name][mask_BT].double().cpu().numpy() for name in (unlearn, retain))
    return forget_N, harm_N, len(forget_N)


def _solved(effects: TokenEffects, forget_N: Any, harm_N: Any, peak: float, most_harm: float) -> Weighting:
    from scipy.optimize import linprog

    n, scale = len(forget_N), abs(harm_N).max()
    cap = peak / n
    # In units of the uniform weight and of the largest effect, so that the solver's tolerances mean something.
    found = linprog(
        -forget_N / abs(forget_N).max(),
        A_ub=(harm_N / scale)[None],
        b_ub=[n * most_harm / scale + 1e-9 * n],
        A_eq=np.ones((1, n)),
        b_eq=[float(n)],
        bounds=(0.0, cap * n),
        method="highs",
    )
    if not found.success:
        raise ValueError(f"the linear programme for harm {most_harm:.6g} was not solved: {found.message}")
    w_N = found.x / found.x.sum()
    weight_BT = torch.zeros(effects.logp_BT.shape, dtype=torch.float64)
    weight_BT[effects.targets_BT.cpu()] = torch.from_numpy(w_N)
    return Weighting(float(forget_N @ w_N), float(harm_N @ w_N), weight_BT, float(w_N.max()) * n)


def _filled(cost_N: Any, cap: float) -> Any:
    """The weights up to ``cap`` of total 1 with the least cost: the cheapest tokens, filled one after another."""
    w_N, order = np.zeros_like(cost_N), np.argsort(cost_N, kind="stable")
    before = np.arange(len(cost_N)) * cap
    w_N[order] = np.clip(1.0 - before, 0.0, cap)
    return w_N


def _check_risks(effects: TokenEffects, *names: str) -> None:
    for name in names:
        if name not in effects.pg_BT:
            raise ValueError(f"no point-wise effects on {name!r}; there are those on {', '.join(effects.pg_BT)}")
