"""A method by its name: what was given is checked, what the recipe needs besides is found, and it is run."""

import inspect
from collections.abc import Callable, Mapping
from difflib import get_close_matches
from typing import Any, get_args, get_origin

import torch
from torch import nn

from probe.data import Split
from probe.methods.catalogue import method_named
from probe.methods.cru import Replacement
from probe.methods.method import Method, words_of, written
from probe.methods.supplies import handed_in, supplied
from probe.methods.unlearn import Loss
from probe.methods.uwc import Calibration
from probe.objectives.objective import Objective
from probe.sites import n_layers
from probe.weights import blended


def run_method(
    name: str,
    model: nn.Module,
    split: Split,
    tokenizer: Any,
    *,
    setting: str | None = None,
    supplies: Mapping[str, Any] | None = None,
    **arguments: Any,
) -> Any:
    """Unlearn with the method of that name; ``probe methods`` lists them, and what each takes.

    >>> import copy
    >>> model, numbers = copy.deepcopy(study.original), {"lr": 3e-4, "steps": 2, "batch_size": 4}
    >>> run_method("npo", model, study.split, study.tokenizer, beta=0.1, retain_weight=1, **numbers).names
    ('forget', 'retain')

    Args:
        name: of the method.
        model: before unlearning. It is trained, or mixed with an unlearned one, in place; methods that act while a text
            is read or written leave it as it is.
        split: forget and retain rows, with their texts (``probe.data.make_split``) where a method reads texts.
        tokenizer: of the model.
        setting: start from published settings, by name.
        supplies: what may be of use besides, by the names of ``probe.methods.supplies.HANDED_IN`` (original, refusals,
            sae, site, unlearned, ...); the method takes what it needs.
        arguments: hyper-parameters, arguments of ``probe.train.minimise``, or more supplies; they take precedence over
            setting and supplies. ``seed`` is 0 unless given. Where nothing is trained, ``batch_size`` is rows a pass.

    Returns:
        what the recipe returns: a history of losses or a result that holds one; how the model was mixed; or, where the
        model stays as it is, a module around it, a ``Template`` or edits by site (``Method.makes``).

    Raises:
        ValueError: an unknown method, setting or argument, hyper-parameters or supplies that are missing, or what the
            recipe raises.
    """
    method = method_named(name)
    accepted, known = accepts(method), (*handed_in(method), *method.needs)
    batch_size = 64 if "batch_size" in accepted else arguments.pop("batch_size", 64)
    for key in arguments:
        if key not in (*accepted, *known):
            raise ValueError(unknown(method, key, (*accepted, *known)))
    values = {"seed": 0} if "seed" in accepted else {}
    values = resolved(method, values | {key: value for key, value in arguments.items() if key in accepted}, setting)
    handed = {**(supplies or {}), **{key: value for key, value in arguments.items() if key in known}}
    seed = int(values.get("seed", 0))
    needed = supplied(method, model, split, tokenizer, handed, seed=seed, batch_size=batch_size)
    own = {key: value for key, value in (("model", model), ("split", split)) if key in method.takes}
    result = method.run(**own, **needed, **values)
    if isinstance(result, Calibration | Replacement):
        _mix(model, needed["unlearned"], result)
    return result


def forget_objective(method: Method, original: nn.Module, split: Split, values: Mapping[str, Any]) -> Objective | None:
    """What a method minimises on the forget answers; None where it has rows of its own or needs more than these.

    >>> forget_objective(method_named("wga"), study.original, study.split, {"beta": 1.0}).beta
    1.0

    Args:
        method: the method.
        original: the model before unlearning.
        split: its rows.
        values: hyper-parameters by name.
    """
    if method.loss is None:
        return None
    known = {**values, "original": original, "split": split}
    own = inspect.signature(method.loss).parameters.values()
    if any(p.default is p.empty and p.name not in known for p in own):
        return None
    built = method.loss(**{p.name: known[p.name] for p in own if p.name in known})
    if isinstance(built, Loss):
        return None if built.rows else built.forget
    found: Objective = built
    return found


def accepts(method: Method) -> tuple[str, ...]:
    """Every keyword that a recipe takes besides model, split and what it needs, those of the training loop included."""
    keywords = (inspect.Parameter.KEYWORD_ONLY,)
    taken = [
        p.name
        for taker in method.takers
        for p in inspect.signature(taker).parameters.values()
        if p.kind in ((*keywords, inspect.Parameter.POSITIONAL_OR_KEYWORD) if taker is method.run else keywords)
        and (taker is method.run or p.name not in method.decides)
    ]
    return tuple(dict.fromkeys(name for name in taken if name not in ("model", "split", *method.needs)))


def resolved(method: Method, arguments: Mapping[str, Any], setting: str | None = None) -> dict[str, Any]:
    """A published setting with ``arguments`` over it.

    >>> resolved(method_named("npo"), {"beta": 0.2, "steps": 30, "seed": 0}, "open-unlearning")["lr"]
    1e-05

    Raises:
        ValueError: an unknown setting, a text where a number belongs, or hyper-parameters without a value.
    """
    values = {**published(method, setting), **arguments}
    known = method.hyperparameters
    for key, p in known.items():
        if key not in values:
            continue
        if isinstance(values[key], list) and get_origin(p.annotation) is tuple:
            values[key] = tuple(values[key])
        kinds = get_args(p.annotation) or (p.annotation,)
        if isinstance(values[key], str) and str not in kinds and not words_of(p.annotation):
            raise ValueError(f"{method.name}: {key} must be a number, got the text {values[key]!r}")
        if type(values[key]) is int and float in kinds and int not in kinds:
            values[key] = float(values[key])
    absent = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in values]
    if absent:
        raise ValueError(missing(method, absent))
    return values


def published(method: Method, setting: str | None) -> dict[str, Any]:
    """The arguments of a published setting; none without a name.

    Raises:
        ValueError: an unknown setting; those there are stand in the message.
    """
    if setting is None:
        return {}
    if setting not in method.published:
        raise ValueError(
            f"{method.name} has no setting {setting!r}; published: {', '.join(method.published) or 'none'}"
        )
    return dict(method.published[setting].arguments)


def unknown(method: Method, key: str, known: tuple[str, ...]) -> str:
    """What to say to an argument that a method has not: the nearest one, and its hyper-parameters."""
    near = get_close_matches(key, known, n=1, cutoff=0)
    listed = ", ".join(name for name in method.hyperparameters if name in known)
    return f"{method.name} has no hyper-parameter {key!r}; did you mean {near[0]!r}? It has {listed}"


def missing(method: Method, absent: list[str], way: Callable[[str], str] = str, setting: str = 'setting="{}"') -> str:
    """What to say where hyper-parameters have no value: each with what was published.

    Args:
        method: whose.
        absent: their names.
        way: how each is written where the message is read.
        setting: the same of a published setting, {} being its name.
    """
    parts = []
    for key in absent:
        found = [f"{written(p.arguments[key])} in {name}" for name, p in method.published.items() if key in p.arguments]
        parts.append(f"{way(key)} ({'published: ' + ', '.join(found) if found else 'no published value'})")
    text = f"{method.name} also needs {'; '.join(parts)}"
    if len(text) > 360:
        named = " or ".join(map(setting.format, method.published))
        settings = f", or take a published setting: {named}" if named else ""
        text = f"{method.name} also needs {', '.join(absent)}{settings}; `probe methods {method.name}` says more"
    return text


def mixture(result: Calibration | Replacement, depth: int) -> tuple[list[float], float]:
    """Weights of the unlearned model by block and in the rest, as ``probe.weights.blended`` takes them."""
    if isinstance(result, Calibration):
        return [result.alpha] * depth, result.alpha
    return result.alpha_L.tolist(), 0.0


def _mix(model: nn.Module, unlearned: nn.Module, result: Calibration | Replacement) -> None:
    with blended(model, unlearned, *mixture(result, n_layers(model))):
        mixed = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for name, p in model.named_parameters():
            p.copy_(mixed[name])
