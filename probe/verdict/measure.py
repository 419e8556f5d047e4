"""Every diagnostic on one model: raw numbers, before anything is compared."""

import math
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import nn

from probe.attacks.latent import latent
from probe.attacks.mixing import mix_back
from probe.attacks.relearning import relearn
from probe.attacks.score import Score
from probe.diagnostics.content_probes import content_probe
from probe.diagnostics.logit_collapse import logit_collapse
from probe.diagnostics.logit_lens import logit_lens
from probe.diagnostics.ridge_probes import ridge_probes
from probe.diagnostics.similarity import states_similarity
from probe.diagnostics.split_states import split_states
from probe.diagnostics.spurious_unlearning import spurious_unlearning
from probe.diagnostics.weight_change import weight_change
from probe.runs.folder import Keep, unkept
from probe.sites import Site, n_layers
from probe.verdict.rows import VerdictRows


@dataclass(frozen=True, eq=False)
class Measurements:
    """What one model gave.

    Args:
        numbers: by name; NaN never stands here, what was not measured is absent.
        by_layer: the diagnostics that have a value at every layer.
    """

    numbers: dict[str, float]
    by_layer: dict[str, tuple[float, ...]] = field(repr=False)


# What a verdict measures of one model, one after another.
PARTS = ("answers", "texts", "weights", "attacks", "states")


def measure(model: nn.Module, given: VerdictRows, keep: Keep = unkept) -> Measurements:
    """Outputs, states, attacks and weights of one model.

    Args:
        model: attacked in place and restored bit for bit; edits that are in force are part of what is examined.
        given: rows, attacks and the original.
        keep: each of ``PARTS`` is kept by it.

    Raises:
        ValueError: another architecture, states with NaN, or what a diagnostic refuses.
        FloatingPointError: relearning diverged.
    """
    found: dict[str, float] = {}
    for name, part in zip(PARTS, (_answers, _texts, _weights, _attacks), strict=False):
        found |= keep(name, partial(part, model, given))
    numbers, by_layer = keep(PARTS[-1], partial(_states, model, given))
    return Measurements(found | numbers, {name: tuple(value_L) for name, value_L in by_layer.items()})


def _answers(model: nn.Module, given: VerdictRows) -> dict[str, float]:
    facts, split, size = given.facts, given.split, 64
    forget = facts.score(model, (*facts.shown, *facts.held), facts.template)
    found = {
        "forget_choice": _choice(forget),
        "forget_match": float(forget.match_N.mean()),
        "forget_probability": float(forget.probability_N.mean()),
        "forget_entropy": logit_collapse(model, split.forget, batch_size=size).entropy_share,
        "chance": 1 / _n_choices(forget),
    }
    if not given.has_retain:
        return found
    asked = facts.score(model, split.retain_rows[: given.protocol.asked], facts.template)
    found["retain_probability"] = float(asked.probability_N.mean())
    # Rows without wrong answers (TOFU's retain rows) are judged by greedy decoding.
    found["retain_known"] = float(asked.match_N.mean()) if asked.choice_N is None else _choice(asked)
    found["retain_floor"] = 0.0 if asked.n_choices is None else 1 / asked.n_choices
    batch = split.retain.select(range(min(len(split.retain), given.protocol.asked)))
    return found | {"retain_entropy": logit_collapse(model, batch, batch_size=size).entropy_share}


def _texts(model: nn.Module, given: VerdictRows) -> dict[str, float]:
    most, split, found = given.protocol.generated, given.split, {}
    sides = {"forget": split.forget_rows, **({"retain": split.retain_rows} if given.has_retain else {})}
    for side, rows in sides.items():
        step = max(1, len(rows) // most)
        said = spurious_unlearning(
            model,
            rows[::step][:most],
            tokenizer=given.tokenizer,
            template=split.template,
            max_new_tokens=given.protocol.new_tokens,
        ).shares
        found[f"{side}_gibberish"] = said["gibberish"] + said["empty"]
        if side == "forget":
            found["forget_refusal"] = said["refusal"]
    return found


def _weights(model: nn.Module, given: VerdictRows) -> dict[str, float]:
    p = given.protocol
    n = min(p.gradients, len(given.split.retain) // p.batch_size) or 1
    whole = weight_change(
        given.original, model, given.split, n_gradients=n, batch_size=p.batch_size, rows_per_pass=4
    ).whole
    found = {"weight_norm": whole.relative, "weight_cosine": 0.0, "weight_retain_share": 0.0}
    if whole.norm > 0:
        found |= {"weight_cosine": whole.forget_cosine}
        found |= {"weight_retain_share": whole.retain_share if given.has_retain else 0.0}
    return found


def _attacks(model: nn.Module, given: VerdictRows) -> dict[str, float]:
    p, facts = given.protocol, given.facts
    held = relearn(
        model, facts, steps=p.late, lr=p.lr, batch_size=p.batch_size, at=(p.early,), seeds=(p.seed,)
    ).model.held[0]
    site = Site(n_layers(model) // 2)
    pushed = latent(model, facts, site, epsilon=p.epsilon, steps=p.push_steps, step_size=0.3).model.after
    mixed = mix_back(model, facts, alphas=[p.alpha], original=given.original)
    scores = {
        "relearn_early": held[1],
        "relearn_late": held[-1],
        "push": pushed,
        "mix": mixed.scores[mixed.alphas.index(p.alpha)],
    }
    found: dict[str, float] = {}
    for name, score in scores.items():
        found |= {f"{name}_choice": _choice(score), f"{name}_probability": float(score.probability_N.mean())}
    return found


def _states(model: nn.Module, given: VerdictRows) -> tuple[dict[str, float], dict[str, tuple[float, ...]]]:
    """One pass over all rows; probes, similarity and separability read the same states."""
    states, before = split_states(model, given.values), given.original_states
    lens = logit_lens(model, given.values.forget)
    alike = states_similarity(states.forget_LND, before.forget_LND).debiased_cka_L
    by_layer = {"cka_forget": alike, "lens": lens.probability_L}
    found = {"lens_hidden": lens.hidden_from_output, "cka_forget": _mean(alike)}
    if given.has_retain:
        content = content_probe(
            model,
            given.values,
            tokenizer=given.tokenizer,
            states=states,
            codes_from=given.original,
            shuffles=0,
            # Few people are to be kept in a small trial; the zoo has more than five.
            folds=max(2, min(5, len(states.retain_group_N.unique()))),
        )
        apart = ridge_probes(model, given.values, states=states, shuffles=0).auc_L
        kept = states_similarity(states.retain_LND, before.retain_LND).debiased_cka_L
        by_layer |= {"content": content.above_L, "separability": apart, "cka_retain": kept}
        found |= {"separability": float(apart.max()), "cka_retain": _mean(kept)}
        found["content"] = float(content.above_L.max())
    return found, {name: tuple(float(x) for x in values_L) for name, values_L in by_layer.items()}


def _mean(values_L: torch.Tensor) -> float:
    """NaN, where all rows coincide, is no likeness at all."""
    return float(torch.nan_to_num(values_L, nan=0.0).mean())


def _choice(score: Score) -> float:
    return float(np.asarray(score.of("choice")).mean())


def _n_choices(score: Score) -> int:
    if score.n_choices is None or math.isnan(score.n_choices):
        raise ValueError("forget rows need wrong answers")
    return score.n_choices
