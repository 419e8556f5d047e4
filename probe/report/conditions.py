"""The conditions of a report: a model as it is, unlearned, edited, or with layers of another one."""

import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal

from torch import nn

from probe.axes import PerLayerL
from probe.figures.style import LOOKS
from probe.hooks import edited
from probe.methods.catalogue import method_named
from probe.methods.cru import best_layers
from probe.methods.method import Method, written
from probe.methods.running import accepts, forget_objective, resolved, unknown
from probe.methods.supplies import check_supplies, handed_in
from probe.objectives.objective import Objective
from probe.objectives.token import ga
from probe.positions import Intervention
from probe.report.settings import Settings
from probe.sites import Site, n_layers
from probe.study.study import Study
from probe.weights import blended, layers

_OWN = ("original", "retrained", "Steer", "Project", "SAE clamp")
Kind = Literal["reference", "training", "replacement", "activation"]
Methods = Mapping[str, Mapping[str, Any]]
"""Settings by method of the catalogue."""


@dataclass(frozen=True)
class Condition:
    """One intervention: ``with condition.applied() as model`` gives the model that diagnostics see.

    ``objective`` is the forget loss whose G-effect is reported: the method's own where it has one, otherwise
    gradient ascent, that is, what further unlearning would do in this state.
    """

    name: str
    kind: Kind
    what: str
    applied: Callable[[], AbstractContextManager[nn.Module]]
    objective: Objective = ga


def shown_name(method: str) -> str:
    """A method as figures write it, "GradDiff" for "grad_diff"; by its own name where they know none."""
    return next((name for name in LOOKS if name.replace("-", "").lower() == method.replace("_", "")), method)


def resolved_methods(methods: Methods, seed: int) -> dict[str, dict[str, Any]]:
    """Every hyper-parameter of every method, checked before anything is loaded.

    Args:
        methods: settings by method; "setting" among them starts from a published one.
        seed: where a method is given none.

    Raises:
        ValueError: an unknown method or setting, a hyper-parameter without a value, or a method that makes nothing
            that diagnostics could look into.
    """
    found = {}
    for name, given in methods.items():
        method, values = method_named(name), {key: value for key, value in given.items() if key != "setting"}
        if method.makes not in ("model", "edit"):
            raise ValueError(f"{name} trains no model and edits no hidden states, so a report cannot look into it")
        accepted = accepts(method)
        known = (*accepted, *handed_in(method), *method.needs)
        odd = [key for key in values if key not in known]
        if odd:
            raise ValueError(unknown(method, odd[0], known))
        found[name] = resolved(method, {"seed": seed, **values} if "seed" in accepted else values, given.get("setting"))
    return found


def check_fits(study: Study, methods: Methods, settings: Settings) -> None:
    """Refuse what does not fit the study, before anything is trained.

    Raises:
        ValueError: unlearned models that are called as conditions of the report are, a layer outside the model, or
            something that a method needs and the study has not.
    """
    own = {*_OWN, *map(shown_name, methods)}
    taken = [name for name in study.unlearned if name in own or name.startswith("CRU (")]
    if taken:
        raise ValueError(
            f"an unlearned model is called {taken[0]!r}, as the report calls a condition of its own; rename it"
        )
    depth = n_layers(study.original)
    named = {} if settings.steer_layer is None else {"--steer-layer": settings.steer_layer}
    named |= {f"{name}: layer": values["layer"] for name, values in methods.items() if "layer" in values}
    for name, layer in named.items():
        if not 0 <= layer < depth:
            raise ValueError(f"{name} {layer} does not exist; choose one of the model's layers 0..{depth - 1}")
    for name, values in methods.items():
        check_supplies(method_named(name), {**study.supplies, **values})


def references(study: Study) -> Iterator[Condition]:
    """The models that every intervention is held against."""
    yield _as_is("original", "reference", study.original, "the model before unlearning")
    if study.retrained is not None:
        yield _as_is("retrained", "reference", study.retrained, "trained without the forget rows: the gold standard")


def unlearned(study: Study, methods: Methods) -> Iterator[Condition]:
    """The unlearned models that the study has, and what methods make of its original when it is first asked for.

    Args:
        study: with the rows that methods are trained on.
        methods: every hyper-parameter by method.
    """
    what = "an unlearned model that was given; it may have been trained on the retain rows reported here"
    for name, model in study.unlearned.items():
        yield _as_is(name, "training", model, what)
    for name, values in methods.items():
        yield _made(study, method_named(name), values)


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

    @contextmanager
    def applied() -> Iterator[nn.Module]:
        with condition.applied() as model, blended(study.original, model, alpha_L):
            yield study.original

    yield Condition(f"CRU ({condition.name})", "replacement", what, applied)


def _as_is(name: str, kind: Kind, model: nn.Module, what: str) -> Condition:
    return Condition(name, kind, what, lambda: nullcontext(model))


def with_edits(name: str, study: Study, edits: Callable[[], Mapping[Site, Intervention]], what: str) -> Condition:
    """The original with edited activations; edits are made when they are needed."""

    @contextmanager
    def applied() -> Iterator[nn.Module]:
        with edited(study.original, edits()):
            yield study.original

    return Condition(name, "activation", what, applied)


def _made(study: Study, method: Method, values: Mapping[str, Any]) -> Condition:
    """A report that goes on after a kill may never train it."""
    make = cache(lambda: study.unlearn(method.name, **values))
    numbers = ", ".join(f"{key} {written(value)}" for key, value in values.items() if key in method.hyperparameters)
    what = f"{method.formula}; {numbers} ({method.name}: {method.source})"
    name = shown_name(method.name)
    if method.makes == "edit":
        return with_edits(name, study, make, what)
    objective = forget_objective(method, study.original, study.split, values)
    return Condition(name, "training", what, lambda: nullcontext(make()), objective or ga)
