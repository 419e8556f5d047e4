"""SAE feature re-activation: features that the original had on the forget rows are set to what they were there."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from probe.attacks.facts import Facts, Studied, original_of, prepared
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.attacks.score import Measure, Score
from probe.attacks.steering_recovery import TOKENS
from probe.axes import HiddenBTD
from probe.data import QA
from probe.dictionaries.adapters import dictionary
from probe.hooks import edited
from probe.interventions.activations import activations
from probe.interventions.attaching import check_site
from probe.interventions.operations import Operation
from probe.interventions.suppression import Suppress
from probe.interventions.targets import Always
from probe.positions import At, not_first
from probe.sites import Site

MeanF = Float[Tensor, " F"]


@dataclass(frozen=True, eq=False)
class SetFeatures:
    """f'_j = value_j for the chosen j at every token, whether j was active or not: ``Suppress`` with ``Always``.

    ``Clamp`` leaves silent features silent; here they are what shall speak again.

    Args:
        sae: anything ``probe.dictionaries.adapters.dictionary`` takes.
        features: ids of the chosen features; none changes no bit.
        value_K: one activation a feature.
    """

    sae: Any = field(repr=False)
    features: Sequence[int]
    value_K: Float[Tensor, " K"] = field(repr=False)
    _edit: Suppress = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if len(self.value_K) != len(self.features):
            raise ValueError(f"{len(self.value_K)} values for {len(self.features)} features; give one each")
        object.__setattr__(self, "_edit", Suppress(self.sae, self.features, Always(self.value_K)))

    def __call__(self, hidden_BTD: HiddenBTD) -> HiddenBTD:
        return self._edit(hidden_BTD)

    def operation(self) -> Operation:
        """The same edit as data, equal to rounding; see ``Suppress.operation``."""
        return self._edit.operation()


def _mean_features(
    model: nn.Module, facts: Facts, site: Site, sae: Any, *, tokens: Literal["answers", "content"], batch_size: int
) -> MeanF:
    """Mean activation of every feature over the shown rows' tokens."""
    hidden_ND = activations(model, facts.shown_batch, [site], tokens=TOKENS[tokens], batch_size=batch_size)[site]
    with torch.no_grad():
        return dictionary(sae).encode(hidden_ND).mean(0)


def reactivate(
    model: nn.Module,
    study: Facts | Studied,
    *,
    sae: Any = None,
    site: Site | None = None,
    original: nn.Module | None = None,
    n_features: Sequence[int],
    factors: Sequence[float] = (1.0,),
    tokens: Literal["answers", "content"] = "content",
    choose_by: Measure = "probability",
    batch_size: int = 32,
    retrained: nn.Module | None = None,
) -> Recovery:
    """Set the features that fell most from original to model back to factor * their mean in the original.

    Args:
        model: its weights are not changed.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; features, values and the choice come from shown rows, scores from held-out ones.
        sae: a sparse autoencoder; the study's unless given.
        site: where it reads; the study's ``sae_site`` unless given. Checked on the original.
        original: the model before unlearning, which the SAE was trained on; the study's unless given.
        n_features: how many features to set; several numbers are tried.
        factors: how many times the original mean they are set to; several are tried.
        tokens: means run over answer tokens, or over all but the first of each row; edits act on the latter.
        choose_by: what the chosen edit raises most.
        batch_size: rows per forward pass.
        retrained: a model that never knew the facts; its own fallen features are set.

    Returns:
        ``found`` holds ``features``, ``n_features`` and ``factor``, and ``on_shown`` by the latter two.

    Raises:
        ValueError: nothing to try, more features than the SAE has, or an SAE that does not belong to ``site``.

    >>> found = probe.reactivate(s.retrained, s, n_features=[2])
    >>> len(found.model.found["features"])
    2
    """
    facts, never = prepared(study, retrained)
    original = original_of(study, original)
    sae, place = _sae_of(study, sae, site)
    size = sae.n_features
    if not n_features or not factors or min(n_features) < 0 or max(n_features) > size:
        raise ValueError(f"n_features must lie in 0..{size} and factors must be given, got {n_features}, {factors}")
    if tokens not in TOKENS:
        raise ValueError(f"tokens must be 'answers' or 'content', got {tokens!r}")
    check_site(original, sae, place, facts.shown_batch)
    target_F = _mean_features(original, facts, place, sae, tokens=tokens, batch_size=batch_size)

    def under(one: nn.Module, rows: Sequence[QA], chosen: Sequence[int], factor: float) -> Score:
        value_K = float(factor) * target_F[list(chosen)]
        with torch.no_grad(), edited(one, {place: At(SetFeatures(sae, chosen, value_K), not_first)}):
            return facts.score(one, rows, facts.template)

    def act(one: nn.Module) -> AttackOutcome:
        before = facts.score(one, facts.held, facts.template)
        fallen_F = target_F - _mean_features(one, facts, place, sae, tokens=tokens, batch_size=batch_size)
        order = fallen_F.argsort(descending=True, stable=True).tolist()
        tried = {
            (n, factor): float(under(one, facts.shown, order[:n], factor).of(choose_by).mean())
            for n in n_features
            for factor in factors
        }
        n, factor = max(tried, key=lambda key: tried[key])
        after = under(one, facts.held, order[:n], factor)
        found = {"features": tuple(order[:n]), "n_features": n, "factor": factor, "on_shown": tried}
        return AttackOutcome(before, after, found)

    settings = {"site": place, "n_features": tuple(n_features), "factors": tuple(factors), "tokens": tokens}
    return compared("SAE re-activation", settings, act, facts, model, never)


def _sae_of(study: Facts | Studied, sae: Any, site: Site | None) -> tuple[Any, Site]:
    """The SAE and its site as given, or those of the study."""
    sae = getattr(study, "sae", None) if sae is None else sae
    site = getattr(study, "sae_site", None) if site is None else site
    if sae is None or site is None:
        raise ValueError("there is no SAE to set features of; pass sae= and site=, or a study that has both")
    return dictionary(sae), site
