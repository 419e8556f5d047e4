"""Raw numbers made comparable between models: 0 where nothing is known or nothing changed, 1 where all is."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

Numbers = Mapping[str, float]
# Model, original, and a model that never knew, where there is one.
Made = Callable[[Numbers, Numbers, Numbers | None], float]

_LEAST_RANGE = 0.05
_KNOWN_AT_LEAST = 0.2
# Of what the original knows beyond chance: sentence answers can be guessed, and who never saw the facts may pick .4.
_KNOWN_AT_MOST = 0.6


@dataclass(frozen=True, eq=False)
class Feature:
    """One diagnostic as the verdict reads it.

    Args:
        name: unique.
        says: what a high value means.
        group: "outputs", "relearning", "other attacks", "states" or "weights".
        retain: whether it needs retain rows.
        made: from raw numbers.
        layers: name of the values by layer that stand behind it.
        layer_quantity: what those are.
    """

    name: str
    says: str
    group: str
    retain: bool
    made: Made = field(repr=False)
    layers: str = ""
    layer_quantity: str = ""


def _share(name: str, *, floor: float | str = "chance") -> Made:
    """(x - floor) / (original - floor); the retrained model's value is the floor where there is one.

    NaN where the original itself is hardly above the floor: then the number says nothing of knowledge.
    """

    def made(model: Numbers, original: Numbers, retrained: Numbers | None) -> float:
        low = retrained[name] if retrained is not None else original[floor] if isinstance(floor, str) else floor
        if original[name] - low < _LEAST_RANGE:
            return math.nan
        return min(max((model[name] - low) / (original[name] - low), -0.5), 1.5)

    return made


def _kept(name: str, floor: float | str) -> Made:
    """The same for what all models should know: a retrained model gives no floor."""
    return lambda model, original, retrained: _share(name, floor=floor)(model, original, None)


def _less(name: str) -> Made:
    return lambda model, original, retrained: model[name] - original[name]


def _plain(name: str) -> Made:
    return lambda model, original, retrained: model[name]


def _unlike(name: str) -> Made:
    return lambda model, original, retrained: 1 - model[name]


def _size(name: str) -> Made:
    """Decades, from 1e-4 on: a model that is bit for bit the original has no logarithm."""
    return lambda model, original, retrained: math.log10(max(model[name], 1e-4))


FEATURES = (
    Feature("forget choice", "picks the right forget answer", "outputs", False, _share("forget_choice")),
    Feature(
        "forget match", "gives the forget answer word by word", "outputs", False, _share("forget_match", floor=0.0)
    ),
    Feature(
        "forget probability",
        "gives forget answers probability",
        "outputs",
        False,
        _share("forget_probability", floor=0.0),
    ),
    Feature("forget entropy", "is unsure at forget answers", "outputs", False, _less("forget_entropy")),
    Feature("forget gibberish", "answers forget questions by gibberish", "outputs", False, _plain("forget_gibberish")),
    Feature("refusal", "refuses forget questions", "outputs", False, _plain("forget_refusal")),
    Feature("retain choice", "picks the right retain answer", "outputs", True, _kept("retain_known", "retain_floor")),
    Feature(
        "retain probability",
        "gives retain answers probability",
        "outputs",
        True,
        _kept("retain_probability", 0.0),
    ),
    Feature("retain entropy", "is unsure at retain answers", "outputs", True, _less("retain_entropy")),
    Feature("retain gibberish", "answers retain questions by gibberish", "outputs", True, _plain("retain_gibberish")),
    Feature(
        "relearning, early: choice",
        "picks unshown forget answers after a few steps on others",
        "relearning",
        False,
        _share("relearn_early_choice"),
    ),
    Feature(
        "relearning, late: choice",
        "picks unshown forget answers after fine-tuning on others",
        "relearning",
        False,
        _share("relearn_late_choice"),
    ),
    Feature(
        "relearning, early: probability",
        "gives unshown forget answers probability after a few steps on others",
        "relearning",
        False,
        _share("relearn_early_probability", floor=0.0),
    ),
    Feature(
        "relearning, late: probability",
        "gives unshown forget answers probability after fine-tuning on others",
        "relearning",
        False,
        _share("relearn_late_probability", floor=0.0),
    ),
    Feature(
        "latent push: choice", "picks forget answers when pushed inside", "other attacks", False, _share("push_choice")
    ),
    Feature(
        "latent push: probability",
        "gives forget answers probability when pushed inside",
        "other attacks",
        False,
        _share("push_probability", floor=0.0),
    ),
    Feature(
        "mixing: choice",
        "picks forget answers when mixed with the original",
        "other attacks",
        False,
        _share("mix_choice"),
    ),
    Feature(
        "mixing: probability",
        "gives forget answers probability when mixed with the original",
        "other attacks",
        False,
        _share("mix_probability", floor=0.0),
    ),
    Feature(
        "content probe",
        "holds forget answers in its states",
        "states",
        True,
        _share("content", floor=0.5),
        "content",
        "share of wrong answers below the right one",
    ),
    Feature(
        "lens",
        "has forget answers earlier than at the output",
        "states",
        False,
        _less("lens_hidden"),
        "lens",
        "answer probability",
    ),
    Feature(
        "separability",
        "keeps forget and retain states apart",
        "states",
        True,
        _less("separability"),
        "separability",
        "AUROC",
    ),
    Feature(
        "forget states",
        "has other states at forget rows",
        "states",
        False,
        _unlike("cka_forget"),
        "cka_forget",
        "CKA to the original",
    ),
    Feature(
        "retain states",
        "has other states at retain rows",
        "states",
        True,
        _unlike("cka_retain"),
        "cka_retain",
        "CKA to the original",
    ),
    Feature("weight change", "has other weights", "weights", False, _size("weight_norm")),
    Feature("along forget gradient", "moved up the forget loss", "weights", False, _plain("weight_cosine")),
    Feature("along retain gradients", "moved along retain gradients", "weights", True, _plain("weight_retain_share")),
)
BY_NAME = {feature.name: feature for feature in FEATURES}


def verdict_features(*, retain: bool, without: Sequence[str] = ()) -> tuple[Feature, ...]:
    """Features that can be had, less those of some groups."""
    return tuple(f for f in FEATURES if (retain or not f.retain) and f.group not in without)


def features(
    which: Sequence[Feature], model: Numbers, original: Numbers, retrained: Numbers | None = None
) -> dict[str, float]:
    """The chosen features of one model.

    Args:
        which: which ones.
        model, original: raw numbers of ``measure`` under one protocol.
        retrained: those of a model that never saw the forget rows.

    Returns:
        by name; NaN where the original shows no knowledge by that diagnostic.

    Raises:
        ValueError: an original that does not know the facts, a retrained model that knows them nearly as well, or
            a number that is not finite.
    """
    known = (original["forget_choice"] - original["chance"]) / (1 - original["chance"])
    if known < _KNOWN_AT_LEAST:
        raise ValueError(
            f"the original picks the right forget answer at {original['forget_choice']:.2f} of rows, chance is "
            f"{original['chance']:.2f}: it hardly knows the facts, so there is nothing to judge"
        )
    if retrained is not None:
        _check_retrained(retrained, original)
    odd = [name for name, value in model.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise ValueError(f"{', '.join(odd)} cannot be computed (NaN or infinity); is the model broken beyond running?")
    return {feature.name: float(feature.made(model, original, retrained)) for feature in which}


def _check_retrained(retrained: Numbers, original: Numbers) -> None:
    """Refuse a model that knows the facts, not one that guesses well: both are asked in two ways.

    Choices can be guessed from the form of an answer, and a short answer can be given by luck; whoever saw the facts
    does nearly as well as the original in both.
    """
    shares = [(retrained["forget_choice"] - retrained["chance"]) / (original["forget_choice"] - original["chance"])]
    recalled = "forget_match" if original["forget_match"] >= _LEAST_RANGE else "forget_probability"
    if original[recalled] >= _LEAST_RANGE:
        shares.append(retrained[recalled] / original[recalled])
    if min(shares) > _KNOWN_AT_MOST:
        raise ValueError(
            f"the retrained model picks the right forget answer at {retrained['forget_choice']:.2f} of rows (the "
            f"original at {original['forget_choice']:.2f}, chance {retrained['chance']:.2f}) and has a "
            f"{recalled.replace('_', ' ')} of {retrained[recalled]:.2f} ({original[recalled]:.2f}): it knows the "
            "facts, so it is no model that never saw them"
        )
