"""The interventions of a report, made one after another as they are asked for."""

import copy
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from torch import nn

from probe.axes import PerLayerL
from probe.interventions.projection import Project
from probe.interventions.steering import Steer
from probe.methods import baselines
from probe.methods.cru import best_layers
from probe.methods.rmu import block_parameters, random_target, rmu
from probe.methods.sae_suppression import suppress
from probe.objectives.objective import Objective
from probe.objectives.representation import TowardsTarget, real_tokens
from probe.objectives.sequence import NPO
from probe.objectives.token import WGA, ga
from probe.report.condition import Condition, as_is, trained, with_edits, with_layers
from probe.report.doses import Doses
from probe.report.settings import Settings, Training
from probe.sites import Site, n_layers
from probe.study.study import Study
from probe.weights import layers

# What is trained where no unlearned model is given.
TRAINED = ("GA", "GradDiff", "WGA", "NPO", "RMU")


def check_layers(study: Study, settings: Settings) -> None:
    """Refuse settings that do not fit the model, before anything is trained.

    Raises:
        ValueError: a layer outside the model.
    """
    depth = n_layers(study.original)
    asked = {"editing.layer": settings.editing.layer}
    if not study.unlearned:
        asked["training.rmu-layer"] = settings.training.rmu_layer
    for name, layer in asked.items():
        if not 0 <= layer < depth:
            raise ValueError(f"--{name} {layer} does not exist; the model has layers 0..{depth - 1}")


def references(study: Study) -> Iterator[Condition]:
    """The models that every intervention is held against."""
    yield as_is("original", "reference", study.original, "the model before unlearning")
    if study.retrained is not None:
        yield as_is("retrained", "reference", study.retrained, "trained without the forget rows: the gold standard")


def unlearned(study: Study, settings: Settings) -> Iterator[Condition]:
    """The unlearned models that were given or, without any, GA, GradDiff, WGA, NPO and RMU trained here."""
    if study.unlearned:
        for name, model in study.unlearned.items():
            yield as_is(
                name,
                "training",
                model,
                "an unlearned model that was given; it may have been trained on the retain rows reported here",
            )
    else:
        yield from _divergence(study, settings.training)
        yield _rmu(study, settings.training)


def patched(
    study: Study, condition: Condition, score_L: Mapping[str, PerLayerL], changed: Sequence[int], k: int
) -> Iterator[Condition]:
    """CRU: the k changed layers of an unlearned model that forget most and cost least, in the original.

    Nothing, with a warning, where the unlearned model's blocks are the original's.

    Args:
        study: whose original is patched.
        condition: the unlearned model.
        score_L: answer probability on ``forget`` and ``retain`` rows with one layer replaced.
        changed: the layers that differ from the original's.
        k: how many layers.
    """
    if not changed:
        warnings.warn(
            f"{condition.name} changed no block, so CRU has no layer to take and is left out; what it changed lies "
            "in embeddings, final norm or head",
            stacklevel=2,
        )
        return
    chosen = best_layers(-score_L["forget"], score_L["retain"], k, among=changed)
    listed = ", ".join(map(str, sorted(chosen)))
    what = (
        f"layers {listed} of {condition.name} in the original model, chosen by rank sum over single layers among "
        f"the {len(changed)} that {condition.name} changed"
    )
    alpha_L = layers(chosen, n_layers(study.original))
    yield with_layers(f"CRU ({condition.name})", study.original, condition, alpha_L, what)


def activation_edits(study: Study, doses: Doses, settings: Settings) -> Iterator[Condition]:
    """Steering, projection and SAE suppression at the doses that are diagnosed in full."""
    editing = settings.editing
    site = Site(editing.layer)
    minus = Steer(doses.direction_D, scale=-editing.steer_dose * doses.norm)
    what = (
        f"the forget-minus-retain direction subtracted after layer {editing.layer}, {editing.steer_dose:g} median "
        "residual norms at every token"
    )
    yield with_edits("Steer", study.original, {site: minus}, what)
    what = f"the same direction projected out after layer {editing.layer}"
    yield with_edits("Project", study.original, {site: Project(doses.direction_D)}, what)
    if study.sae is not None and study.sae_site is not None:
        count = editing.sae_features[len(editing.sae_features) // 2]
        features = doses.ranking.top(count)
        what = (
            f"{count} SAE features after layer {study.sae_site.layer} clamped where active, to minus "
            f"{editing.sae_dose:g} median residual norms each, reconstruction error kept"
        )
        clamp = suppress(study.sae, features, doses.clamp_value(features, editing.sae_dose))
        yield with_edits("SAE clamp", study.original, {study.sae_site: clamp}, what)


def _divergence(study: Study, training: Training) -> Iterator[Condition]:
    original = study.original
    steps = f"{training.steps} steps of {training.batch_size} rows a side, learning rate {training.gradient_lr:g}"

    def made(name: str, what: str, recipe: Callable[..., Any], objective: Objective, **arguments: Any) -> Condition:
        def make() -> nn.Module:
            model = copy.deepcopy(original)
            common = {"lr": training.gradient_lr, "batch_size": training.batch_size, "seed": training.seed}
            recipe(model, study.split, progress=name, **{"steps": training.steps, **common, **arguments})
            return model

        return trained(name, what, make, objective)

    what = f"gradient ascent on the forget loss and nothing else, {training.ga_steps} steps"
    yield made("GA", what, baselines.ga, ga, steps=training.ga_steps)
    weight = training.grad_diff_retain
    what = f"gradient ascent with {weight:g} times the retain loss, {steps}"
    yield made("GradDiff", what, baselines.grad_diff, ga, retain_weight=weight)
    weight, beta = training.wga_retain, training.wga_beta
    what = f"weighted gradient ascent (β = {beta:g}) with {weight:g} times the retain loss, {steps}"
    yield made("WGA", what, baselines.wga, WGA(beta=beta), beta=beta, retain_weight=weight)
    weight, beta = training.npo_retain, training.npo_beta
    what = f"negative preference optimisation (β = {beta:g}) with {weight:g} times the retain loss, {steps}"
    objective = NPO(original, beta=beta)
    yield made("NPO", what, baselines.npo, objective, original=original, beta=beta, retain_weight=weight)


def _rmu(study: Study, training: Training) -> Condition:
    blocks = range(max(0, training.rmu_layer - 2), training.rmu_layer + 1)

    def make() -> nn.Module:
        model = copy.deepcopy(study.original)
        rmu(
            model,
            study.split,
            original=study.original,
            layer=training.rmu_layer,
            coefficient=training.rmu_coefficient,
            alpha=training.rmu_alpha,
            seed=training.seed,
            steps=training.steps,
            lr=training.rmu_lr,
            parameters=block_parameters(model, blocks) if training.rmu_whole_blocks else None,
            batch_size=training.batch_size,
            progress="RMU",
        )
        return model

    what = (
        f"forget activations after layer {training.rmu_layer} drawn to a random vector of length "
        f"{training.rmu_coefficient:g}, retain activations held (α = {training.rmu_alpha:g}), "
        f"{'every weight' if training.rmu_whole_blocks else 'MLP outputs'} of blocks {blocks[0]} to {blocks[-1]}; "
        f"{training.steps} steps, learning rate {training.rmu_lr:g}"
    )
    target_D = random_target(study.original, training.rmu_coefficient, training.seed)
    return trained("RMU", what, make, TowardsTarget(Site(training.rmu_layer), target_D, real_tokens))
