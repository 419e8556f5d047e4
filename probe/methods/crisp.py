"""CRISP: fine-tune until features that fire on forget rows are silent, with the rest of the model held in place.

Two losses go by that name, and both are here: the paper's (``crisp``) and that of its released code
(``crisp_released``). The code reads the hidden state that enters a block with an SAE trained on what leaves it; here
each SAE is tried at its site first, and refused where it fits a neighbouring block better. Silent features are not
forgotten facts: audit what comes out (``probe.sae.audit``).

>>> unlearned = study.unlearn("crisp_released", setting="released", features=3, ratio=1, steps=2)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from probe.data import Batch, Split
from probe.dictionaries.adapters import dictionary
from probe.features.activity import observe
from probe.features.ranking import rank
from probe.features.rules import Crisp, CrispRaw
from probe.interventions.attaching import check_site
from probe.methods.method import method
from probe.methods.published import Published
from probe.methods.rmu import block_parameters
from probe.methods.unlearn import check_original
from probe.objectives.features import FeatureActivity, LiftedActivity, StatesHeld, WatchedFeatures
from probe.sites import Site, layer_of, matching_parameters, n_layers
from probe.train import History, Term, lora, minimise

# Rows on which a dictionary is tried at its site.
_SITE_ROWS = 32

_PAPER = "Ashuach et al., arXiv 2508.13650, Gemma-2-2b, SAEs of blocks 4, 6, ..., 14, LoRA on blocks 3 to 9"


_WEIGHTS = {"forget_weight": 0.01, "retain_weight": 0.99, "coherence_weight": 0.01}
_RUN = {"ratio": 3.0, **_WEIGHTS, "lr": 4e-5, "steps": 200}


@dataclass(frozen=True, eq=False)
class CrispResult:
    """Losses, and the features that were silenced at each site."""

    history: History
    features: Mapping[Site, tuple[int, ...]] = field(repr=False)


@method(
    "representation",
    "a [mean of chosen features + spread mean of all] + b |h - h0|^2 at the SAEs + c |h - h0|^2 at the last block",
    "Ashuach et al., arXiv 2508.13650",
    trains="blocks 0 to that of the last SAE; with rank, LoRA on their linear maps",
    published={
        "wmdp-bio": Published(
            f"{_PAPER}; coherence is held on 20 sentences there",
            {"features": 30, "spread": 30.0, "rank": 8, **_RUN},
        ),
        "wmdp-cyber": Published(
            f"{_PAPER}; coherence is held on 20 sentences there",
            {"features": 50, "spread": 20.0, "rank": 4, **_RUN},
        ),
    },
)
def crisp(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    saes: Mapping[Site, Any],
    special_ids: Sequence[int],
    features: int,
    ratio: float,
    spread: float,
    forget_weight: float,
    retain_weight: float,
    coherence_weight: float,
    coherence: Batch | None = None,
    rank: int | None = None,
    parameters: str | None = None,
    **training: Any,
) -> CrispResult:
    """L = a mean_sites [mean_S f + spread mean f] + b |h - h0|^2 at the sites + c |h - h0|^2 at the last block.

    Ashuach et al., arXiv 2508.13650, as the paper states it. S: of the ``features`` features with the largest
    difference of rates (forget less retain) those whose mean activation is ``ratio`` times that on retain rows.

    Args:
        model: trained in place.
        split: forget and retain rows; features are chosen on them too.
        original: the model before unlearning, frozen; gives h0.
        saes: the dictionary of each site, which is measured.
        special_ids: token ids left out when features are chosen.
        features: candidates a site.
        ratio: smallest ratio of mean activations.
        spread: lambda, weight of the mean over all features.
        forget_weight, retain_weight, coherence_weight: a, b and c.
        coherence: rows on which the last block is held; the retain rows unless given.
        rank: of LoRA adapters (scale 2 * rank) on every linear map of the blocks, merged at the end; None trains the
            blocks' own weights.
        parameters: regular expression over the names of what is trained; every block from 0 to the last site's unless
            given. With ``rank``, the linear maps whose weights match get adapters.
        training: ``steps``, ``lr``, ``batch_size``, ``seed`` and the other arguments of ``probe.train.minimise``.

    Raises:
        ValueError: a dictionary at the wrong site, no feature that passes, a negative weight, an original that shares
            weights with the model, or what ``minimise`` raises.
    """
    _check_weights(forget_weight=forget_weight, retain_weight=retain_weight, coherence_weight=coherence_weight)
    watched = _salient(model, split, original, saes, special_ids, Crisp(features, ratio), features)
    sites = tuple(w.site for w in watched)
    terms = [
        Term(forget_weight, FeatureActivity(watched, spread), split.forget, "forget"),
        Term(retain_weight, StatesHeld(original, sites, "vectors"), split.retain, "retain"),
        Term(
            coherence_weight,
            StatesHeld(original, (Site(n_layers(model) - 1),), "vectors"),
            coherence or split.retain,
            "coherence",
        ),
    ]
    return _trained(model, terms, watched, saes, rank, parameters, training)


@method(
    "representation",
    "(1 - beta) mean of chosen features, lifted + beta MSE at the SAEs + beta gamma MSE after the final norm",
    "Ashuach et al., arXiv 2508.13650; the loss of its released code",
    trains="blocks 0 to that of the last SAE; with rank, LoRA on their linear maps",
    published={
        "released": Published(
            "defaults of github.com/tomerashuach/CRISP, commit f25b8df; one epoch, AMSGrad and dropout of 0.05 there",
            {
                "features": 10,
                "ratio": 3.0,
                "lift": 5.0,
                "beta": 0.99,
                "gamma": 0.01,
                "rank": 4,
                "lr": 1e-5,
                "batch_size": 1,
            },
        )
    },
)
def crisp_released(
    model: nn.Module,
    split: Split,
    *,
    original: nn.Module,
    saes: Mapping[Site, Any],
    special_ids: Sequence[int],
    features: int,
    ratio: float,
    lift: float,
    beta: float,
    gamma: float,
    coherence: Batch | None = None,
    rank: int | None = None,
    parameters: str | None = None,
    **training: Any,
) -> CrispResult:
    """L = (1 - beta) L_lifted + beta MSE(h, h0) at the sites + beta gamma MSE(h, h0) after the final norm.

    The loss of CRISP's released code as read (github.com/tomerashuach/CRISP, commit f25b8df; Ashuach et al., arXiv
    2508.13650), at the right blocks: see ``LiftedActivity``. Features are ranked by raw counts and chosen
    among ten times as many (``CrispRaw``).

    Args:
        model, split, original, saes, special_ids, coherence, rank, parameters, training: as for ``crisp``.
        features: how many a site.
        ratio: smallest ratio of summed activations.
        lift: alpha there.
        beta, gamma: weights, beta in [0, 1].

    Raises:
        ValueError: as ``crisp``, or a dictionary without pre-activations.
    """
    if not 0 <= beta <= 1 or not gamma >= 0:
        raise ValueError(f"beta must lie in [0, 1] and gamma be at least 0, got {beta} and {gamma}")
    watched = _salient(model, split, original, saes, special_ids, CrispRaw(features, tau=ratio), features)
    sites = tuple(w.site for w in watched)
    terms = [
        Term(1 - beta, LiftedActivity(watched, original, lift), split.forget, "forget"),
        Term(beta, StatesHeld(original, sites, "entries"), split.retain, "retain"),
        Term(
            beta * gamma,
            StatesHeld(original, (Site(0, "norm"),), "entries"),
            coherence or split.retain,
            "coherence",
        ),
    ]
    return _trained(model, terms, watched, saes, rank, parameters, training)


def _salient(
    model: nn.Module,
    split: Split,
    original: nn.Module,
    saes: Mapping[Site, Any],
    special_ids: Sequence[int],
    rule: Crisp | CrispRaw,
    features: int,
) -> tuple[WatchedFeatures, ...]:
    """The features to silence at every site that has some."""
    check_original(model, original)
    if features < 1:
        raise ValueError(f"features must be at least 1, got {features}")
    few = split.retain.select(range(min(_SITE_ROWS, len(split.retain))))
    for site, sae in saes.items():
        check_site(model, sae, site, few)
    seen = observe(model, saes, split.forget, split.retain, special_ids=special_ids)
    tables = {site: rank(rule, seen[site], site) for site in saes}
    watched = tuple(
        WatchedFeatures(site, dictionary(saes[site]), table.order[:features])
        for site, table in tables.items()
        if table.order
    )
    if not watched:
        raise ValueError(
            f"no feature at {', '.join(map(str, saes))} fires more on forget rows than on retain rows and "
            f"{rule.tau:g} times as strongly; lower the ratio, raise features, or use other rows"
        )
    return watched


def _trained(
    model: nn.Module,
    terms: list[Term],
    watched: tuple[WatchedFeatures, ...],
    saes: Mapping[Site, Any],
    rank: int | None,
    parameters: str | None,
    training: Mapping[str, Any],
) -> CrispResult:
    terms = [term for term in terms if term.weight > 0]
    pattern = parameters or block_parameters(model, range(max(site.layer for site in saes) + 1))
    found = {w.site: w.features for w in watched}
    if rank is None:
        return CrispResult(minimise(model, terms, parameters=pattern, **training), found)
    adapted = lora(
        model, rank=rank, alpha=2.0 * rank, targets=_linear_maps(model, pattern), seed=int(training.get("seed", 0))
    )
    try:
        history = minimise(adapted, terms, parameters="lora_", **training)
    finally:
        # Whatever happens, the user's model has its own modules again.
        adapted.merge_and_unload()
    return CrispResult(history, found)


def _linear_maps(model: nn.Module, pattern: str) -> list[str]:
    """Modules inside blocks with a weight matrix whose name matches."""
    names = [
        name for name, p in matching_parameters(model, pattern).items() if p.ndim == 2 and name.endswith(".weight")
    ]
    inside = [name.removesuffix(".weight") for name in names if layer_of(model, name) is not None]
    if not inside:
        raise ValueError(f"pattern {pattern!r} matches no weight matrix of a block, so there is nothing to adapt")
    return inside


def _check_weights(**weights: float) -> None:
    for name, weight in weights.items():
        if not weight >= 0:
            raise ValueError(f"{name} must be at least 0, got {weight}")
