"""Functions called by their names: what they take comes from a study, from options and from key=value words."""

import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from difflib import get_close_matches
from types import ModuleType, NoneType, UnionType
from typing import Any, Union, get_args, get_origin

from probe.commands.arguments.hyperparameters import read_value
from probe.methods.method import readable

# Never given as words: what a study has, and what stands for all of it.
_NOT_WORDS = ("progress", "retrained")


def called(room: ModuleType, study: Collection[str]) -> dict[str, Callable[..., Any]]:
    """The functions of a room that can be called by name: on a model, with what a study has, for a result with rows.

    Args:
        room: with public names, such as ``probe.attacks``.
        study: names of what there is.
    """
    every = {name: getattr(room, name) for name in room.__all__}
    found: dict[str, Callable[..., Any]] = {}
    for name, function in every.items():
        if not inspect.isfunction(function):
            continue
        signature = inspect.signature(function)
        needed = [p for p in signature.parameters.values() if p.default is p.empty]
        first = needed[0].name if needed else ""
        fits = all(p.name in study or _readable(p.annotation) for p in needed)
        if first in ("model", "original") and fits and hasattr(signature.return_annotation, "rows"):
            found[name] = function
    return found


def function_named(name: str, among: Mapping[str, Callable[..., Any]], kind: str) -> Callable[..., Any]:
    """The function of that name.

    Raises:
        ValueError: no such function; the nearest name is given.
    """
    plain = name.replace("-", "_")
    if plain not in among:
        near = get_close_matches(plain, list(among), n=1, cutoff=0)
        raise ValueError(f"no {kind} {name!r}; did you mean {near[0]!r}? There are {', '.join(among)}")
    return among[plain]


def call_arguments(
    function: Callable[..., Any], study: Mapping[str, Any], options: Mapping[str, Any], words: Sequence[str]
) -> dict[str, Any]:
    """Keyword call_arguments: what the study has, then options that were given, then words; later ones win.

    Args:
        function: takes some of them.
        study: what there is, by parameter name; None is passed over.
        options: numbers by parameter name; None is passed over.
        words: key=value.

    Raises:
        ValueError: an unknown key, a value that cannot be read, an option that the function does not take, or one that
            is missing.
    """
    known = inspect.signature(function).parameters
    settable = {key: p.annotation for key, p in known.items() if _readable(p.annotation) and key not in _NOT_WORDS}
    odd = [key for key, value in options.items() if value is not None and key not in known]
    if odd:
        raise ValueError(f"{function.__name__} takes no --{odd[0].replace('_', '-')}; leave it out")
    found = {key: value for key, value in {**study, **options}.items() if key in known and value is not None}
    for text in words:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r} is no key=value pair; write steps=20, say")
        if key not in settable:
            listed = ", ".join(settable) or "none"
            raise ValueError(f"{function.__name__} has no argument {key!r} that can be set by --set; it has {listed}")
        found[key] = read_value(f"--set {key}", value, settable[key])
    absent = [key for key, p in known.items() if p.default is p.empty and key not in found]
    if absent:
        parts = [
            f"--{key.replace('_', '-')}" if key in options else f"--set {key}=" for key in absent if key in settable
        ]
        loads = [f"--{key}" for key in absent if key not in settable]
        raise ValueError(f"{function.__name__} also needs {', '.join([*loads, *parts])}")
    return found


def _readable(annotation: Any) -> bool:
    """Whether a word can stand for it, alone or as one of a list."""
    if get_origin(annotation) is not None and get_origin(annotation).__module__ == "collections.abc":
        return get_origin(annotation) is Sequence and all(map(readable, get_args(annotation)))
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    own = [kind for kind in kinds if kind is not NoneType]
    return readable(annotation) or any(
        (get_origin(kind) is Sequence and _readable(kind)) or readable(kind) for kind in own
    )
