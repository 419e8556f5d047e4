"""Suppress what a model should not know by clamping SAE features: which ones, and the clamp."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.axes import MaskBT
from probe.data import Batch, Split
from probe.interventions.activations import activations, check_width
from probe.interventions.features import Clamp, Dictionary, PerFeatureK, active, check_features, check_site
from probe.sites import Site

PerFeatureF = Float[Tensor, " F"]

# Rows on which an SAE is tried at its site.
_SITE_ROWS = 32


@dataclass(frozen=True, eq=False)
class Activity:
    """How often (share of tokens) and how strongly (mean over tokens) each feature is on."""

    forget_rate_F: PerFeatureF
    retain_rate_F: PerFeatureF
    forget_mean_F: PerFeatureF
    retain_mean_F: PerFeatureF


Rule = Callable[[Activity], PerFeatureF]
"""A score per feature, higher first; minus infinity leaves a feature out."""


@dataclass(frozen=True, eq=False)
class FeatureRanking:
    """Features that a rule admits, best first, with what it saw.

    Args:
        order: feature ids, best first; features left out by the rule are not in it.
        score_F: the rule's score of every feature, minus infinity where left out.
        activity: rates and means.
    """

    order: tuple[int, ...]
    score_F: PerFeatureF = field(repr=False)
    activity: Activity = field(repr=False)

    def top(self, n: int) -> tuple[int, ...]:
        """The n best features.

        Raises:
            ValueError: the rule admits fewer.
        """
        if not 0 <= n <= len(self.order):
            raise ValueError(f"asked for {n} features; the rule admits {len(self.order)}; loosen it or ask for fewer")
        return self.order[:n]


def frequency(retain_threshold: float) -> Rule:
    """Score = forget rate, for features on at fewer than ``retain_threshold`` of retain tokens.

    SAEBench's rule (Karvonen et al., arXiv 2503.09532), which sweeps thresholds 0.001 and 0.01.

    Raises:
        ValueError: the threshold is not in (0, 1].
    """
    if not 0 < retain_threshold <= 1:
        raise ValueError(f"retain_threshold is a share of tokens in (0, 1], got {retain_threshold}")

    def rule(activity: Activity) -> PerFeatureF:
        admitted_F = (activity.retain_rate_F < retain_threshold) & (activity.forget_rate_F > 0)
        return _where(admitted_F, activity.forget_rate_F)

    return rule


def activation_ratio(percentile: float) -> Rule:
    """Score = (forget mean)^2, for features whose ratio to (retain mean)^2 is in the top 100 - ``percentile`` per cent.

    As in Dynamic SAE Guardrails (Muhamed et al., arXiv 2504.08192), whose code takes the 95th percentile and drops
    the weakest 5 per cent first. Features that are never on count in neither percentile here.

    Raises:
        ValueError: the percentile is not in [0, 100).
    """
    if not 0 <= percentile < 100:
        raise ValueError(f"percentile must lie in [0, 100), got {percentile}")

    def rule(activity: Activity) -> PerFeatureF:
        forget_F, retain_F = activity.forget_mean_F.square(), activity.retain_mean_F.square()
        on_F = activity.forget_rate_F > 0
        if not bool(on_F.any()):
            return _where(on_F, forget_F)
        ratio_F = forget_F / (retain_F + 1e-21)
        weakest = torch.quantile(forget_F[on_F], 0.05)
        smallest = torch.quantile(ratio_F[on_F], percentile / 100)
        return _where(on_F & (forget_F >= weakest) & (ratio_F >= smallest), forget_F)

    return rule


def mean_difference(activity: Activity) -> PerFeatureF:
    """Score = forget mean - retain mean, for features stronger on forget tokens."""
    difference_F = activity.forget_mean_F - activity.retain_mean_F
    return _where(difference_F > 0, difference_F)


def rank_features(
    model: nn.Module,
    sae: Dictionary,
    site: Site,
    forget: Batch,
    retain: Batch,
    *,
    rule: Rule,
    special_ids: Sequence[int],
    chunk: int = 32,
) -> FeatureRanking:
    """Rank SAE features by their activity on forget and retain tokens.

    Args:
        model: the model that will be edited.
        sae: its SAE at ``site``; see ``probe.interventions.features.check_site``.
        site: where both live.
        forget, retain: rows to choose on; report on others.
        rule: ``frequency(...)``, ``activation_ratio(...)``, ``mean_difference`` or any function of ``Activity``.
        special_ids: token ids left out, ``tokenizer.all_special_ids``, say; bos above all, whose activations are
            unlike any other. Padding is left out through the mask.
        chunk: rows per forward pass.

    Raises:
        ValueError: no token is left on a side, or the SAE has another width than the model.
    """
    check_features(sae, ())
    rate, mean = {}, {}
    for name, batch in (("forget", forget), ("retain", retain)):
        rate[name], mean[name] = _activity(model, sae, site, batch, special_ids, chunk)
    activity = Activity(rate["forget"], rate["retain"], mean["forget"], mean["retain"])
    score_F = rule(activity)
    order = torch.sort(score_F, descending=True, stable=True).indices
    return FeatureRanking(tuple(order[score_F[order] > -torch.inf].tolist()), score_F, activity)


def random_active_features(ranking: FeatureRanking, n: int, *, seed: int) -> tuple[int, ...]:
    """The control: n features drawn from all that are ever on at forget tokens.

    Raises:
        ValueError: fewer than n are ever on.
    """
    on_K = (ranking.activity.forget_rate_F > 0).nonzero().flatten().cpu()
    if not 0 <= n <= len(on_K):
        raise ValueError(f"asked for {n} random features; {len(on_K)} are ever active on the forget tokens")
    drawn = torch.randperm(len(on_K), generator=torch.Generator().manual_seed(seed))[:n]
    return tuple(on_K[drawn].tolist())


def suppress(sae: Dictionary, features: Sequence[int], value: float | PerFeatureK) -> Clamp:
    """Clamp features to 0 or below wherever they are active (Farrell, Lau and Conmy, arXiv 2410.19278).

    Args:
        sae: the SAE.
        features: ``ranking.top(n)``.
        value: in activation units, or from ``probe.interventions.features.norm_relative``.

    Raises:
        ValueError: a positive value, which would amplify.
    """
    if bool((torch.as_tensor(value) > 0).any()):
        raise ValueError(f"a clamp suppresses at 0 or below, got {value}; use Clamp itself to amplify")
    return Clamp(sae, features, value)


def suppress_ranked(
    model: nn.Module,
    sae: Dictionary,
    site: Site,
    split: Split,
    special_ids: Sequence[int],
    *,
    rule: Literal["frequency", "activation-ratio", "mean-difference"],
    features: int,
    value: float,
    threshold: float | None = None,
) -> dict[Site, Clamp]:
    """``suppress`` the features that ``rank_features`` puts first, for ``probe.hooks.edited``.

    Args:
        model: the model that will be edited.
        sae, site: its SAE and where it belongs, which is measured.
        split: rows to choose on.
        special_ids: token ids left out.
        rule: by its function's name.
        features: how many.
        value: what they are clamped to, 0 or below, in activation units.
        threshold: ``retain_threshold`` of frequency, ``percentile`` of activation-ratio; mean-difference takes none.

    Raises:
        ValueError: a threshold too few or too many, an SAE of another width, model or site, fewer features than asked
            for, or a positive value.
    """
    rules = {"frequency": frequency, "activation-ratio": activation_ratio}
    if (rule in rules) != (threshold is not None):
        raise ValueError(f"rule {rule} {'needs a' if rule in rules else 'takes no'} threshold, got {threshold}")
    scored: Rule = rules[rule](threshold) if threshold is not None else mean_difference
    check_site(model, sae, site, split.retain.select(range(min(_SITE_ROWS, len(split.retain)))))
    ranking = rank_features(model, sae, site, split.forget, split.retain, rule=scored, special_ids=special_ids)
    return {site: suppress(sae, ranking.top(features), value)}


def _activity(
    model: nn.Module, sae: Dictionary, site: Site, batch: Batch, special_ids: Sequence[int], chunk: int
) -> tuple[PerFeatureF, PerFeatureF]:
    def ordinary(piece: Batch) -> MaskBT:
        special = torch.tensor(list(special_ids), dtype=torch.long, device=piece.tokens_BT.device)
        return piece.attention_BT & ~torch.isin(piece.tokens_BT, special)

    hidden_ND = activations(model, batch, [site], tokens=ordinary, chunk=chunk)[site]
    check_width(hidden_ND[None], sae.W_dec.shape[1], "the SAE")
    count_F = sum_F = torch.zeros(sae.W_dec.shape[0], device=sae.W_dec.device)
    with torch.no_grad():
        # Features are many times wider than the residual stream: encode in pieces and keep sums only.
        for piece_ND in hidden_ND.split(1024):
            f_NF = sae.encode(piece_ND.to(sae.W_dec))
            count_F = count_F + active(f_NF).sum(0)
            sum_F = sum_F + (f_NF * active(f_NF)).sum(0)
    return count_F / len(hidden_ND), sum_F / len(hidden_ND)


def _where(admitted_F: Tensor, score_F: PerFeatureF) -> PerFeatureF:
    return torch.where(admitted_F, score_F, -torch.inf)
