"""From words to keyword arguments: settings, key=value pairs and flags, checked before anything is loaded."""

import inspect
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import NoneType
from typing import Any, Protocol, get_args, get_origin, runtime_checkable

from probe.methods.catalogue import method_named
from probe.methods.method import Method, words_of
from probe.methods.running import missing, published, unknown
from probe.sites import compiled


@runtime_checkable
class MethodOptions(Protocol):
    """The options that say how a method is run."""

    @property
    def setting(self) -> str | None: ...
    @property
    def set(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> str | None: ...


_FLAGS = ("steps", "lr", "batch_size", "seed", "parameters", "schedule", "warmup")


def hyperparameters(method: Method, options: MethodOptions) -> dict[str, Any]:
    """Every keyword argument that is a number or a word: the setting, then --set, then flags; later ones win.

    Raises:
        ValueError: an unknown setting or key, a value that cannot be read, hyper-parameters without a value, or
            parameters that are no regular expression.
    """
    known = method.hyperparameters
    values = published(method, options.setting)
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals:
            raise ValueError(f"--set {text!r} is no key=value pair; write beta=0.1, say")
        if key not in known or key in _FLAGS:
            raise ValueError(_unknown(method, key, known))
        values[key] = read_value(f"--set {key}", value, known[key].annotation)
    values |= _flags(method, options, known)
    absent = [key for key, p in known.items() if p.default is inspect.Parameter.empty and key not in values]
    if absent:
        raise ValueError(missing(method, absent, _written, "--setting {}"))
    return values


def _flags(method: Method, options: MethodOptions, known: Mapping[str, Any]) -> dict[str, Any]:
    given = {key: getattr(options, key) for key in _FLAGS if getattr(options, key) is not None}
    if options.parameters is not None:
        compiled(options.parameters)
    # The seed has a default, so it says nothing of what the user wants.
    odd = [key for key in given if key not in known and key != "seed"]
    if not method.trains_in_place:
        # There it says how many rows are measured at once.
        odd = [key for key in odd if key != "batch_size"]
    if odd:
        raise ValueError(f"{method.name} takes no --{odd[0].replace('_', '-')}; leave it out")
    return {key: value for key, value in given.items() if key in known}


def _unknown(method: Method, key: str, known: Mapping[str, Any]) -> str:
    if key in _FLAGS:
        return f"{key} is not set by --set; write --{key.replace('_', '-')}"
    return unknown(method, key, tuple(name for name in known if name not in _FLAGS))


def _written(key: str) -> str:
    return f"--{key.replace('_', '-')}" if key in _FLAGS else f"--set {key}="


def read_method(text: str) -> tuple[str, dict[str, Any]]:
    """A method and its settings from "npo:beta=0.1,steps=30" or "npo:setting=open-unlearning".

    >>> read_method("npo:beta=0.1,steps=30")
    ('npo', {'beta': 0.1, 'steps': 30})

    Raises:
        ValueError: an unknown method or key, or a value that cannot be read.
    """
    name, colon, rest = text.partition(":")
    method = method_named(name)
    values: dict[str, Any] = {}
    # A comma inside of a value is followed by no key.
    for piece in re.split(r",(?=[^,=]+=)", rest) if colon else ():
        key, equals, value = piece.partition("=")
        if not equals:
            raise ValueError(f"{piece!r} in {text[:60]!r} is no key=value pair; write {name}:steps=30, say")
        if key == "setting":
            published(method, value)
        elif key not in method.hyperparameters:
            raise ValueError(unknown(method, key, tuple(method.hyperparameters)))
        values[key] = (
            value if key == "setting" else read_value(f"{name}:{key}", value, method.hyperparameters[key].annotation)
        )
    return name, values


def read_value(key: str, text: str, annotation: Any) -> Any:
    """One value, by the type that the recipe gives it."""
    if get_origin(annotation) in (tuple, Sequence):
        return tuple(read_value(key, piece, get_args(annotation)[0]) for piece in text.split(","))
    kinds = get_args(annotation) or (annotation,)
    lists = [kind for kind in kinds if get_origin(kind) is Sequence]
    if lists and text.lower() != "none":
        return read_value(key, text, lists[0])
    words = words_of(annotation)
    if text in words:
        return text
    if words and not any(kind in (int, float, str) for kind in kinds):
        raise ValueError(f"{key}={text}: choose {' or '.join(words)}")
    if NoneType in kinds and text.lower() == "none":
        return None
    if bool in kinds and text.lower() in ("true", "false"):
        return text.lower() == "true"
    for kind in (kind for kind in (int, float) if kind in kinds):
        with suppress(ValueError):
            if math.isfinite(number := kind(text)):
                return number
    if str in kinds:
        return text
    listed = " or ".join("none" if kind is NoneType else kind.__name__ for kind in kinds)
    raise ValueError(f"{key}={text} cannot be read; expected a finite {listed}")
