"""Steering recovery: find what unlearning added to the hidden states of forget rows, and take it away again."""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from torch import nn

from probe.attacks.facts import Facts, Studied, original_of, prepared
from probe.attacks.recovery import AttackOutcome, Recovery, compared
from probe.attacks.score import Measure, Score
from probe.axes import DirectionD
from probe.hooks import edited
from probe.interventions.activations import activations, answers, content
from probe.interventions.projection import Project
from probe.interventions.steering import Steer
from probe.positions import At, not_first
from probe.sites import Site, n_layers
from probe.weights import check_same_architecture

Mode = Literal["subtract", "ablate"]
TOKENS = {"answers": answers, "content": content}


def added_directions(
    model: nn.Module,
    original: nn.Module,
    facts: Facts,
    layers: Sequence[int],
    *,
    tokens: Literal["answers", "content"] = "content",
    batch_size: int = 32,
) -> Mapping[int, DirectionD]:
    """d_l = mean h_model - mean h_original at the output of block l over the shown rows; in activation units.

    Args:
        model: after unlearning.
        original: before.
        facts: the shown rows are read.
        layers: blocks.
        tokens: the mean runs over answer tokens, or over all but the first of each row.
        batch_size: rows per forward pass.

    Raises:
        ValueError: models that do not fit together, a layer outside them, or unknown tokens.
    """
    if tokens not in TOKENS:
        raise ValueError(f"tokens must be 'answers' or 'content', got {tokens!r}")
    check_same_architecture(model, original)
    sites = [Site(layer) for layer in layers]
    ours = activations(model, facts.shown_batch, sites, tokens=TOKENS[tokens], batch_size=batch_size)
    theirs = activations(original, facts.shown_batch, sites, tokens=TOKENS[tokens], batch_size=batch_size)
    return {
        site.layer: (ours[site].double().mean(0) - theirs[site].to(ours[site].device).double().mean(0)).float()
        for site in sites
    }


def steer_back(
    model: nn.Module,
    study: Facts | Studied,
    *,
    original: nn.Module | None = None,
    layers: Sequence[int] | None = None,
    modes: Sequence[Mode] = ("subtract", "ablate"),
    strengths: Sequence[float] = (1.0,),
    tokens: Literal["answers", "content"] = "content",
    choose_by: Measure = "probability",
    batch_size: int = 32,
    retrained: nn.Module | None = None,
) -> Recovery:
    """Subtract the added direction, or project it out, at one layer; the layer is chosen on the shown rows.

    The attacker has the original and could simply ask it; what is tested is whether one direction stands between the
    unlearned model and its knowledge.

    Args:
        model: its weights are not changed.
        study: a study, whose forget rows are divided (``facts_of``) and whose retrained model is compared with, or
            your own ``Facts``; directions and the choice come from the shown rows, scores from the held-out ones.
        original: the model before unlearning; the study's unless given.
        layers: blocks to try; all unless given.
        modes: ``"subtract"`` takes strength * d away, ``"ablate"`` strength times the component along d.
        strengths: what to try; 1 takes exactly the mean shift, or the whole component.
        tokens: as in ``added_directions``; edits act on every token but the first.
        choose_by: what the chosen edit raises most.
        batch_size: rows per forward pass.
        retrained: a model that never knew the facts; the direction from the original to it is tried alike.

    Returns:
        ``found`` holds ``layer``, ``mode`` and ``strength`` (None where no model state differs), ``on_shown`` by these
        three, and ``norms``, the length of each layer's direction.

    Raises:
        ValueError: nothing to try, an unknown mode, or models that do not fit together.

    >>> found = probe.steer_back(s.retrained, s, layers=[4])
    >>> found.model.found["layer"], found.model.found["mode"] in ("subtract", "ablate")
    (4, True)
    """
    facts, never = prepared(study, retrained)
    before_unlearning = original_of(study, original)
    chosen = tuple(range(n_layers(model)) if layers is None else layers)
    odd = [mode for mode in modes if mode not in ("subtract", "ablate")]
    if odd or not chosen or not modes or not strengths:
        raise ValueError(
            f"give layers, strengths and modes among subtract and ablate, got {chosen}, {strengths}, {modes}"
        )

    def act(one: nn.Module) -> AttackOutcome:
        found = added_directions(one, before_unlearning, facts, chosen, tokens=tokens, batch_size=batch_size)
        before = facts.score(one, facts.held, facts.template)
        tried: dict[tuple[int, Mode, float], float] = {}
        for layer, direction_D in found.items():
            # A layer below everything that was trained has no direction.
            for mode in modes if bool(direction_D.any()) else ():
                for strength in strengths:
                    score = _under(one, facts, facts.shown, layer, direction_D, mode, strength)
                    tried[layer, mode, strength] = float(score.of(choose_by).mean())
        norms = {layer: float(direction_D.norm()) for layer, direction_D in found.items()}
        if not tried:
            return AttackOutcome(before, before, {"layer": None, "mode": None, "strength": None, "norms": norms})
        layer, mode, strength = max(tried, key=lambda key: tried[key])
        after = _under(one, facts, facts.held, layer, found[layer], mode, strength)
        names = {"layer": layer, "mode": mode, "strength": strength}
        return AttackOutcome(before, after, {**names, "on_shown": tried, "norms": norms})

    settings = {"layers": chosen, "modes": tuple(modes), "strengths": tuple(strengths), "tokens": tokens}
    return compared("steering recovery", settings, act, facts, model, never)


def _under(
    model: nn.Module,
    facts: Facts,
    rows: Sequence,
    layer: int,
    direction_D: DirectionD,
    mode: Mode,
    strength: float,
) -> Score:
    edit = Steer(direction_D, scale=-float(strength)) if mode == "subtract" else Project(direction_D, float(strength))
    with torch.no_grad(), edited(model, {Site(layer): At(edit, not_first)}):
        return facts.score(model, rows, facts.template)
